"""Queries and keys as torchscale's XPOS rotates and scales them, in f32.

Writes tests/golden/rope_xpos.json.
"""

import datetime
import json
import struct
import sys

import torch
from torchscale.component.xpos_relative_position import XPOS

torch.set_num_threads(1)


def bits(tensor):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in tensor.flatten().tolist()]


# Of a sequence of `tokens`, the last `rows`: torchscale centres it at its middle, rounded up.
cases = []
for dim, tokens, rows, scale_base in [(8, 7, 7, 512), (24, 2048, 2, 512), (64, 4096, 2, 512), (16, 300, 3, 100)]:
    generator = torch.Generator().manual_seed(dim)
    x = torch.rand(2, rows, dim, generator=generator) * 2 - 1
    xpos = XPOS(dim, scale_base)
    # The first row is queries, the second keys.
    q = xpos(x[:1], offset=tokens - rows)
    k = xpos(x[1:], offset=tokens - rows, downscale=True)
    cases.append(
        {
            "dim": dim,
            "scale_base": scale_base,
            "center": (tokens + 1) // 2,
            "positions": list(range(tokens - rows, tokens)),
            "q_f32_bits": bits(x[0]),
            "k_f32_bits": bits(x[1]),
            "q_out_f32_bits": bits(q),
            "k_out_f32_bits": bits(k),
        }
    )

meta = {
    "script": "tools/golden/rope_xpos.py",
    "versions": {"torch": torch.__version__, "torchscale": "0.3.0"},
    "date": datetime.date.today().isoformat(),
}
json.dump({"meta": meta, "cases": cases}, sys.stdout, separators=(",", ":"))
print()
