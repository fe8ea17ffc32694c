"""Cosines and sines of Hugging Face's rotary embedding in f32, at positions up to 131072.

Each case is a base and a head size: the bits of all frequencies, of cosine and sine at a few positions, and, from every
position 0 to 131072, how far transformers' values are from the nearest ones of the same f32 angle, in units in the last
place.

Writes tests/golden/rope_compat_hf.json.
"""

import datetime
import json
import struct
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

torch.set_num_threads(1)

LAST = 131072
POSITIONS = [0, 1, 2, 3, 4095, 32768, 65537, 100003, 131071, 131072]
# Pairs whose cosines and sines are written out: those of torch's vectors, and, of 40, those left over.
PAIRS = [0, 1, 2, 3, 5, 8, 13, 21, 31, -8, -2, -1]


def bits(tensor):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in tensor.flatten().tolist()]


def ordered(x):
    """Whole numbers in the order of the floats, one apart where the floats are neighbours."""
    i = x.view(torch.int32).to(torch.int64)
    return torch.where(i < 0, -(i & 0x7FFFFFFF), i)


def apart(x, angle, wave):
    nearest = wave(angle.double()).float()
    return int((ordered(x) - ordered(nearest)).abs().max())


cases = []
for base in [1e4, 5e5, 1e6, 1e7]:
    for dim in [64, 80, 96, 128]:
        config = LlamaConfig(
            head_dim=dim,
            hidden_size=dim * 8,
            num_attention_heads=8,
            max_position_embeddings=LAST,
            rope_parameters={"rope_theta": base, "rope_type": "default"},
        )
        rotary = LlamaRotaryEmbedding(config)
        pairs = dim // 2
        furthest = 0
        for first in range(0, LAST + 1, 8192):
            positions = torch.arange(first, min(first + 8192, LAST + 1))
            cos, sin = (x[0, :, :pairs].contiguous() for x in rotary(torch.zeros(1), positions[None]))
            angle = positions[:, None].float() * rotary.inv_freq
            furthest = max(furthest, apart(cos, angle, torch.cos), apart(sin, angle, torch.sin))
        cos, sin = (x[0, :, :pairs][:, PAIRS] for x in rotary(torch.zeros(1), torch.tensor([POSITIONS])))
        cases.append(
            {
                "base": base,
                "dim": dim,
                "inv_freq_f32_bits": bits(rotary.inv_freq),
                "furthest_from_nearest": furthest,
                "pairs": [pair % pairs for pair in PAIRS],
                "positions": POSITIONS,
                "cos_f32_bits": [bits(row) for row in cos],
                "sin_f32_bits": [bits(row) for row in sin],
            }
        )
        print(base, dim, furthest, file=sys.stderr)

meta = {
    "script": "tools/golden/rope_compat.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "cpu": torch.backends.cpu.get_cpu_capability(),
    "date": datetime.date.today().isoformat(),
}
json.dump({"meta": meta, "cases": cases}, sys.stdout, separators=(",", ":"))
print()
