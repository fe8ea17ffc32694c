"""PyTorch beside posenc and candle on the CPU: the cases of benches/peers/cpu, in one table.

usage: torch_cpu.py [--compile] [--threads N] [--beside PROGRAM] [part of a case's name]

PROGRAM is what `cargo build --release --manifest-path benches/peers/cpu/Cargo.toml` built; without it PyTorch's own
column is printed. --compile adds torch.compile, which needs a C++ compiler and minutes. --threads 1 gives everybody one
thread, which is the fair comparison where other programs take the other cores. The figure is the fastest of many
rounds, in microseconds. What can be ready beforehand, PyTorch is given: tables of cosines, sines, sinusoids and biases.
"""

import argparse
import math
import os
import subprocess
import time

import torch
from torch.nn import functional

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def frequencies(dim, base=10000.0):
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rope(tokens, heads, dim, dtype, layout, pairing):
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies(dim)
    shape = (tokens, heads, dim) if layout == "thd" else (1, heads, tokens, dim)
    x = torch.randn(shape).to(dtype)
    if pairing == "Half":
        cos, sin = (torch.cat((f, f), dim=-1).to(dtype) for f in (angles.cos(), angles.sin()))
        if layout == "thd":
            cos, sin = cos[:, None], sin[:, None]

        def call(x, cos, sin):
            a, b = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-b, a), dim=-1) * sin
    else:
        cos, sin = (f.repeat_interleave(2, dim=-1).to(dtype) for f in (angles.cos(), angles.sin()))

        def call(x, cos, sin):
            return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) * sin

    return call, (x, cos, sin)


def waves(tokens, dim):
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies(dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoid_add(batch, tokens, dim, dtype):
    return (lambda x, table: x + table), (torch.randn(batch, tokens, dim).to(dtype), waves(tokens, dim).to(dtype))


def sinusoid_write(tokens, dim, dtype):
    def call(positions, frequency):
        angles = positions[:, None].float() * frequency
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(dtype)

    return call, (torch.arange(tokens), frequencies(dim).float())


def timestep(times, dim, dtype):
    """As diffusers has it, which makes its frequencies in the call."""

    def call(t):
        exponent = -math.log(10000) * torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
        angles = t[:, None].float() * torch.exp(exponent)[None, :]
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)

    return call, (torch.arange(times) % 1000 + 0.25,)


def learned(tokens, dim, dtype, bert):
    make = lambda *shape: torch.randn(shape).to(dtype)
    ids = torch.arange(tokens) * 7919 % 30522
    types = (torch.arange(tokens) > tokens // 2).long()
    if not bert:
        return (lambda token, ids, rows: functional.embedding(ids, token) + rows), (
            make(30522, dim),
            ids,
            make(tokens, dim),
        )

    def call(token, ids, rows, kinds, types, gain, bias):
        v = functional.embedding(ids, token) + rows + functional.embedding(types, kinds)
        return functional.layer_norm(v, (dim,), gain, bias, 1e-5)

    return call, (make(30522, dim), ids, make(tokens, dim), make(2, dim), types, make(dim), make(dim))


def resample(dim, dtype):
    def call(table):
        grid = table.view(1, 14, 14, dim).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1).reshape(576, dim)

    return call, (torch.randn(196, dim).to(dtype),)


def alibi(heads, queries, keys, dtype, causal):
    slope = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    distance = torch.arange(keys)[None, :] - (torch.arange(queries)[:, None] + keys - queries)
    bias = -slope[:, None, None] * distance.abs()
    x = torch.randn(1, heads, queries, keys).to(dtype)
    if not causal:
        return (lambda x, bias: x + bias), (x, bias.to(dtype))
    bias = bias.masked_fill(distance > 0, -torch.inf)
    return (lambda x, bias: torch.softmax(x * 0.125 + bias, dim=-1)), (x, bias.to(dtype))


def cases():
    """Names as the Rust program has them."""
    for name, dtype in TYPES.items():
        for tokens in (1, 16, 512, 4096):
            for layout, pairing in (("thd", "Half"), ("bhtd", "Half"), ("bhtd", "Interleaved")):
                yield f"rope {layout} {pairing} 32x128 {tokens} {name}", rope, (tokens, 32, 128, dtype, layout, pairing)
            for batch in (1, 8):
                yield f"sinusoid add {batch}x{tokens}x768 {name}", sinusoid_add, (batch, tokens, 768, dtype)
                yield f"table add {batch}x{tokens}x768 {name}", sinusoid_add, (batch, tokens, 768, dtype)
            yield f"sinusoid write {tokens}x768 {name}", sinusoid_write, (tokens, 768, dtype)
            yield f"token + position {tokens}x768 {name}", learned, (tokens, 768, dtype, False)
            yield f"token + position + type + layer norm {tokens}x768 {name}", learned, (tokens, 768, dtype, True)
        for times in (1, 16, 1024):
            yield f"timestep {times}x320 {name}", timestep, (times, 320, dtype)
        yield f"resample bicubic 14x14 to 24x24x768 {name}", resample, (768, dtype)
        for queries, keys in ((1, 128), (1, 4096), (128, 128), (512, 512)):
            yield f"alibi add 16x{queries}x{keys} {name}", alibi, (16, queries, keys, dtype, False)
            yield f"alibi causal softmax 16x{queries}x{keys} {name}", alibi, (16, queries, keys, dtype, True)


def fastest(call, arguments, most):
    """With one thread and with all: where other programs run, waiting for a second thread can cost a scheduler's
    slice."""
    best = float("inf")
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        call(*arguments)
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            start = time.perf_counter()
            call(*arguments)
            best = min(best, time.perf_counter() - start)
    return best * 1e6


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--beside", metavar="PROGRAM")
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    others = {}
    if arguments.beside:
        command, threads = [arguments.beside, arguments.filter], {"RAYON_NUM_THREADS": str(arguments.threads)}
        environment = {**os.environ, **threads}
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        rows = [[cell.strip() for cell in line.split("|")] for line in output.splitlines()[1:]]
        others = {case: times for case, *times in rows}
    print(f"torch {torch.__version__}, {arguments.threads} threads, microseconds")
    print("case | posenc | candle | torch | posenc is faster than the faster one by")
    for case, make, parameters in cases():
        if arguments.filter not in case:
            continue
        call, tensors = make(*parameters)
        times = [fastest(call, tensors, arguments.threads)]
        if arguments.compile:
            times.append(fastest(torch.compile(call, dynamic=False), tensors, arguments.threads))
        mine, candle = others.pop(case, ("-", "-"))
        peers = times + ([float(candle)] if candle != "-" else [])
        gain = f"{min(peers) / float(mine):.2f}" if mine != "-" else "-"
        print(f"{case} | {mine} | {candle} | {', '.join(f'{t:.2f}' for t in times)} | {gain}", flush=True)
    for case in others:
        print(f"{case} | not in this script")


if __name__ == "__main__":
    main()
