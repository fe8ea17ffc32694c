"""Frequencies and attention factors of every RoPE type of Hugging Face transformers, and cosines and sines of three
models.

Writes tests/golden/rope_scaling_hf.json.
"""

import datetime
import json
import struct
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

torch.set_num_threads(1)


def bits(tensor):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in tensor.tolist()]


def config(head_dim, max_position_embeddings, **rope_parameters):
    return {
        "head_dim": head_dim,
        "hidden_size": head_dim * 8,
        "num_attention_heads": 8,
        "max_position_embeddings": max_position_embeddings,
        "rope_parameters": rope_parameters,
    }


def llama3(theta, factor, high, d, longest):
    return config(
        d,
        longest,
        rope_theta=theta,
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=high,
        original_max_position_embeddings=8192,
    )


def yarn(theta, factor, original, d, longest, **more):
    return config(
        d, longest, rope_theta=theta, rope_type="yarn", factor=factor, original_max_position_embeddings=original, **more
    )


# Made-up divisors with the published lists' shape: near 1 at first, then up to the factor.
def divisors(pairs, top):
    return [round(1.0 + (top - 1.0) * (i / (pairs - 1)) ** 2 + 0.003 * (i % 7), 6) for i in range(pairs)]


def longrope(d, share, longest, **more):
    pairs = int(d * share) // 2
    return config(
        d,
        longest,
        rope_theta=10000.0,
        rope_type="longrope",
        partial_rotary_factor=share,
        original_max_position_embeddings=4096,
        short_factor=divisors(pairs, 1.3),
        long_factor=divisors(pairs, 64.0),
        **more,
    )


internlm2 = config(128, 32768, rope_theta=1000000, rope_type="dynamic", factor=2.0)
phi3 = longrope(96, 1.0, 131072)
CASES = [
    ("llama2", config(128, 4096, rope_theta=10000.0, rope_type="default"), None),
    ("llama3.1-8b", llama3(500000.0, 8.0, 4.0, 128, 131072), None),
    ("llama3.2-1b", llama3(500000.0, 32.0, 4.0, 64, 131072), None),
    ("llama4-scout", llama3(500000.0, 16.0, 1.0, 128, 10485760), None),
    ("apertus", llama3(12000000.0, 8.0, 4.0, 128, 65536), None),
    ("deepseek-v3", yarn(10000, 40, 4096, 64, 163840, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0), None),
    (
        "deepseek-v2",
        yarn(10000, 40, 4096, 64, 163840, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707),
        None,
    ),
    (
        "kimi-k2",
        yarn(50000.0, 32.0, 4096, 64, 131072, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0),
        None,
    ),
    (
        "kimi-k2.5",
        yarn(50000.0, 64.0, 4096, 64, 262144, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0),
        None,
    ),
    ("gpt-oss", yarn(150000, 32.0, 4096, 64, 131072, beta_fast=32.0, beta_slow=1.0, truncate=False), None),
    ("qwen2.5-yarn4", yarn(1000000.0, 4.0, 32768, 128, 131072), None),
    ("yarn-llama2-16", yarn(10000.0, 16.0, 4096, 128, 65536), None),
    ("ministral-3", yarn(1000000.0, 16.0, 16384, 128, 262144, mscale=1.0, mscale_all_dim=1.0), None),
    ("mistral-4", yarn(10000.0, 128.0, 8192, 64, 1048576, mscale=1.0, mscale_all_dim=1.0), None),
    ("yarn mscale 0.7 over 0.3", yarn(10000.0, 40.0, 4096, 64, 163840, mscale=0.7, mscale_all_dim=0.3), None),
    ("yarn explicit attention_factor", yarn(10000.0, 40.0, 4096, 64, 163840, attention_factor=1.25, mscale=0.7), None),
    ("yarn betas 0 mean the defaults", yarn(10000.0, 8.0, 4096, 64, 32768, beta_fast=0, beta_slow=0), None),
    ("yarn partial", yarn(10000.0, 8.0, 4096, 128, 32768, partial_rotary_factor=0.5), None),
    ("gemma3-4b-full", config(256, 131072, rope_theta=1000000.0, rope_type="linear", factor=8.0), None),
    ("linear 3", config(80, 8192, rope_theta=10000.0, rope_type="linear", factor=3.0), None),
    (
        "gemma4-full",
        config(512, 262144, rope_theta=1000000.0, rope_type="proportional", partial_rotary_factor=0.25),
        None,
    ),
    (
        "proportional 0.7 of 96 by 3",
        config(96, 8192, rope_theta=10000.0, rope_type="proportional", partial_rotary_factor=0.7, factor=3.0),
        None,
    ),
    (
        "mimo-v2-flash-full",
        config(192, 262144, rope_theta=5000000, rope_type="default", partial_rotary_factor=0.334),
        None,
    ),
    ("phi-2", config(80, 2048, rope_theta=10000.0, rope_type="default", partial_rotary_factor=0.4), None),
    ("gpt-neox-20b", config(96, 2048, rope_theta=10000, rope_type="default", partial_rotary_factor=0.25), None),
    *[("internlm2-chat-7b", internlm2, n) for n in [None, 1, 16384, 32768, 32769, 65536, 131072, 1000003]],
    ("internlm2-chat-20b", config(128, 32768, rope_theta=1000000, rope_type="dynamic", factor=3.0), 100000),
    ("dynamic factor 1", config(64, 2048, rope_theta=10000.0, rope_type="dynamic", factor=1.0), 8192),
    *[("phi-3 shape", phi3, n) for n in [None, 4096, 4097]],
    ("phi-4-mini shape", longrope(128, 0.75, 131072), 131072),
    ("longrope factor 16", longrope(64, 1.0, 131072, factor=16.0), 4097),
    ("longrope explicit attention_factor", longrope(64, 1.0, 131072, attention_factor=1.5), 100),
]

cases = []
for name, values, seq_len in CASES:
    made = LlamaConfig(**json.loads(json.dumps(values)))
    kind = values["rope_parameters"]["rope_type"]
    compute = LlamaRotaryEmbedding.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    if kind == "default":
        # Llama itself knows no partial rotary; the models that do compute over int(head_dim * share).
        share = values["rope_parameters"].get("partial_rotary_factor", 1.0)
        made.head_dim = int(values["head_dim"] * share)
    # A call gives the length as a tensor, and then the base is made in f32.
    length = None if seq_len is None else torch.tensor(seq_len)
    inv_freq, factor = compute(made, device=None, seq_len=length)
    cases.append(
        {
            "name": name,
            "config": values,
            "seq_len": seq_len,
            "attention_factor": float(factor),
            "inv_freq_f32_bits": bits(inv_freq),
        }
    )

# cos and sin as the models compute them, of the first half of the head (the second half repeats it)
tables = []
positions = [0, 1, 4095, 32767, 131071]
for name in ["llama3.1-8b", "qwen2.5-yarn4", "gpt-oss"]:
    values = next(v for n, v, _ in CASES if n == name)
    made = LlamaConfig(**json.loads(json.dumps(values)))
    cos, sin = LlamaRotaryEmbedding(made)(torch.zeros(1), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    tables.append(
        {
            "name": name,
            "positions": positions,
            "cos_f32_bits": [bits(row[:half]) for row in cos[0]],
            "sin_f32_bits": [bits(row[:half]) for row in sin[0]],
        }
    )

meta = {
    "script": "tools/golden/rope_scaling.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "cpu": torch.backends.cpu.get_cpu_capability(),
    "date": datetime.date.today().isoformat(),
}
json.dump({"meta": meta, "cases": cases, "tables": tables}, sys.stdout, separators=(",", ":"))
print()
