"""Times on this CPU, beside PyTorch's and transformers' own rope, in one run: the least of many, in microseconds.

RAYON_NUM_THREADS=1 python times.py
"""

import os
import platform
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")

import posenc
import posenc.torch as pt
import torch
import transformers
from transformers.models.llama import modeling_llama as llama

torch.set_num_threads(int(os.environ["RAYON_NUM_THREADS"]))
SECONDS, ROUNDS = 0.15, 7


def least(functions):
    """The least time of each, by turns, so that a busy machine disturbs all alike."""
    times = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            end = time.perf_counter() + SECONDS
            while True:
                start = time.perf_counter()
                function()
                now = time.perf_counter()
                times[name] = min(times[name], now - start)
                if now > end:
                    break
    return times


def complex_rope(x, turns):
    """Interleaved pairs as complex numbers, as Meta's code has it."""
    own = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(own * turns).flatten(-2).type_as(x)


def case(tokens, dtype):
    config = transformers.LlamaConfig(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, rope_theta=5e5)
    module = llama.LlamaRotaryEmbedding(config)
    q, k = (torch.randn(1, heads, tokens, 128).to(dtype) for heads in (32, 8))
    ids = torch.arange(1000, 1000 + tokens)[None]
    cos, sin = module(q, ids)
    spec = posenc.Rope(128, base=5e5)
    turns = torch.polar(torch.ones(tokens, 64), torch.arange(tokens)[:, None] * spec.base ** (-torch.arange(64) / 64))
    compiled = torch.compile(llama.apply_rotary_pos_emb)
    return {
        "posenc, exact angles": lambda: pt.rope(q, k, spec=spec, positions=ids, layout="bhtd"),
        "posenc, in place": lambda: pt.rope_(q, k, spec=spec, positions=ids, layout="bhtd"),
        "posenc, without autograd's dispatch": lambda: spec.rotate(q, k, positions=ids, layout="bhtd"),
        "transformers, angles and rotation": lambda: llama.apply_rotary_pos_emb(q, k, *module(q, ids)),
        "transformers, angles beforehand": lambda: llama.apply_rotary_pos_emb(q, k, cos, sin),
        "the same compiled": lambda: compiled(q, k, cos, sin),
        "PyTorch, complex, turns beforehand": lambda: (complex_rope(q, turns), complex_rope(k, turns)),
    }


def main():
    cases = {
        (f"{tokens} token{'s' * (tokens > 1)}, {str(dtype)[6:]}"): least(case(tokens, dtype))
        for tokens in (1, 512)
        for dtype in (torch.float32, torch.bfloat16)
    }
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    threads = os.environ["RAYON_NUM_THREADS"]
    versions = f"posenc {posenc.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, Python {platform.python_version()}, {model}, {threads} thread(s)\n")
    print(f"| 32 + 8 heads of 128 | {' | '.join(cases)} |")
    print(f"|---|{'---|' * len(cases)}")
    for name in next(iter(cases.values())):
        print(f"| {name} | {' | '.join(f'{times[name] * 1e6:.0f}' for times in cases.values())} |")


if __name__ == "__main__":
    with torch.no_grad():
        main()
