"""RoPE on the CPU with PyTorch: eager, and with the argument `compile` torch.compile too, which needs a C++ compiler and
minutes. Beside benches/peers/cpu."""

import sys
import time

import torch

HEADS, DIM = 32, 128


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def fastest(call):
    call()
    best, end = float("inf"), time.perf_counter() + 0.6
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main():
    print(f"torch {torch.__version__}, {HEADS} heads of {DIM}, {torch.get_num_threads()} threads")
    compiled = torch.compile(rotate, dynamic=False)
    for tokens in (1, 16, 512, 4096):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            frequency = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
            angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
            cos, sin = (torch.cat((f, f), dim=-1)[:, None].to(dtype) for f in (angles.cos(), angles.sin()))
            x = torch.randn(tokens, HEADS, DIM).to(dtype)
            times = [f"eager {fastest(lambda: rotate(x, cos, sin)):10.1f} us"]
            if sys.argv[1:] == ["compile"]:
                times.append(f"compiled {fastest(lambda: compiled(x, cos, sin)):10.1f} us")
            print(f"{str(dtype)[6:]:8} {tokens:6} tokens, thd Half: {', '.join(times)}", flush=True)


if __name__ == "__main__":
    main()
