"""posenc beside other implementations of RoPE, on one GPU, in one run, on the same data.

Needs a GPU and PyTorch; transformers, liger_kernel, flashinfer, vllm and xformers take part where they are installed, and
are named as missing where they are not. Every result is compared with f64 arithmetic before it is timed; what is wrong is
named and not timed. Times are medians over replays of a CUDA graph that holds many calls; where a peer cannot be captured,
over batches of calls between two events, and the row says so. Cold: the calls go round through sets of tensors that hold
four times the L2 cache.

usage: run.py --library libposenc_c.so --out results.csv [--only PEER] [--tokens N,N,...]
"""

import argparse
import csv
import importlib
import importlib.metadata
import statistics
import sys
from pathlib import Path

import posenc

MODELS = [("llama-3-8b", 32, 8, 128), ("llama-3-70b-tp8", 8, 1, 128), ("llama-3-70b", 64, 8, 128)]
TOKENS = [1, 8, 64, 512, 2048, 8192, 32768]
BASE = 500_000.0
# Small enough that an f32 angle is right within bf16's rounding: peers are not to lose by their angles here.
MOST_POSITION = 4096
# bf16's half ulp is 2^-9 of a value; peers that compute in bf16 round three times, and cos and sin before.
TOLERANCE = {"posenc": 2.0**-8, "peer": 2.0**-5}
ROUNDS = 30


class Missing(Exception):
    """A peer that is not installed."""


def need(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"missing: {error}") from error


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


class Problem:
    """Queries and keys [tokens, heads, dim] in bf16, their positions, and what a peer may have ready beforehand."""

    def __init__(self, torch, model, tokens, sets, device="cuda"):
        self.torch = torch
        self.name, self.q_heads, self.k_heads, self.dim = model
        self.tokens = tokens
        generator = torch.Generator(device=device).manual_seed(tokens)
        random = lambda heads: torch.randn(
            tokens, heads, self.dim, device=device, dtype=torch.float32, generator=generator
        ).to(torch.bfloat16)
        self.sets = [(random(self.q_heads), random(self.k_heads)) for _ in range(sets)]
        self.positions = torch.randint(MOST_POSITION, (tokens,), device=device, generator=generator)
        frequency = BASE ** (-torch.arange(0, self.dim, 2, device=device, dtype=torch.float64) / self.dim)
        self.angles = self.positions[:, None].double() * frequency
        table = torch.arange(MOST_POSITION, device=device, dtype=torch.float64)[:, None] * frequency
        self.cache = torch.cat((table.cos(), table.sin()), dim=-1).float()
        self.cos = torch.cat((self.angles, self.angles), dim=-1).cos().to(torch.bfloat16)
        self.sin = torch.cat((self.angles, self.angles), dim=-1).sin().to(torch.bfloat16)

    def bytes(self):
        """The least that must move, in place."""
        return 4 * self.tokens * (self.q_heads + self.k_heads) * self.dim + 8 * self.tokens

    def wanted(self, x):
        """The rotation of one tensor in f64, and |a| + |b| of each pair."""
        torch = self.torch
        a, b = x.double().chunk(2, dim=-1)
        cos, sin = self.angles.cos()[:, None], self.angles.sin()[:, None]
        size = a.abs() + b.abs()
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1), torch.cat((size, size), dim=-1)

    def error(self, before, after):
        """The largest error as a share of |a| + |b|."""
        worst = 0.0
        for x, y in zip(before, after, strict=True):
            want, size = self.wanted(x)
            worst = max(worst, ((y.double().view_as(want) - want).abs() / size).max().item())
        return worst


# Peers: each gives its version and a function `call(q, k) -> (q', k')`, which may work in place.


def ours(problem, library):
    torch = problem.torch
    handles = {}

    def call(q, k):
        # A plan belongs to a stream; captures run on one of their own.
        stream = torch.cuda.current_stream().cuda_stream
        if stream not in handles:
            gpu = library.gpu_new(torch.cuda.current_device(), stream, 0)
            spec = library.RopeSpec(rotary=problem.dim, base=BASE, attention_factor=1.0, pairing_out=library.SAME)
            handles[stream] = library.rope_new(gpu, spec, library.BF16)
        tokens = problem.tokens
        operand = lambda x, heads: library.Operand(
            x=library.Buffer(data=x.data_ptr(), len=x.numel()), heads=library.heads(tokens, heads, problem.dim)
        )
        ids = library.Ids(data=problem.positions.data_ptr(), len=tokens, element=library.I64)
        arguments = library.RopeCall(
            q=operand(q, problem.q_heads), k=operand(k, problem.k_heads), positions=library.Positions(ids=ids)
        )
        library.rope_rotate(handles[stream], arguments)
        return q, k

    return library.release(), call


def rotate_half(torch, x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def eager_function(problem):
    torch = problem.torch

    def call(q, k):
        cos, sin = problem.cos[:, None], problem.sin[:, None]
        return q * cos + rotate_half(torch, q) * sin, k * cos + rotate_half(torch, k) * sin

    return call


def torch_eager(problem, _):
    return problem.torch.__version__, eager_function(problem)


def torch_compile(problem, _):
    return problem.torch.__version__, problem.torch.compile(eager_function(problem), dynamic=False)


def transformers(problem, _):
    llama = need("transformers.models.llama.modeling_llama")
    cos, sin = problem.cos[None], problem.sin[None]

    def call(q, k):
        # Its layout is [batch, heads, tokens, dim]; views cost nothing.
        return tuple(
            x.transpose(1, 2)[0]
            for x in llama.apply_rotary_pos_emb(q[None].transpose(1, 2), k[None].transpose(1, 2), cos, sin)
        )

    return version("transformers"), call


def liger(problem, _):
    rope = need("liger_kernel.transformers.rope")
    cos, sin = problem.cos[None].contiguous(), problem.sin[None].contiguous()

    def call(q, k):
        return tuple(
            x.transpose(1, 2)[0]
            for x in rope.liger_rotary_pos_emb(q[None].transpose(1, 2), k[None].transpose(1, 2), cos, sin)
        )

    return version("liger_kernel"), call


def flashinfer_cache(problem, _):
    flashinfer = need("flashinfer")

    def call(q, k):
        flashinfer.apply_rope_with_cos_sin_cache_inplace(
            problem.positions,
            q.view(problem.tokens, -1),
            k.view(problem.tokens, -1),
            problem.dim,
            problem.cache,
            is_neox=True,
        )
        return q, k

    return version("flashinfer-python"), call


def flashinfer_on_the_fly(problem, _):
    flashinfer = need("flashinfer")
    positions = problem.positions.int()

    def call(q, k):
        flashinfer.apply_rope_pos_ids_inplace(q, k, positions, interleave=False, rope_theta=BASE)
        return q, k

    return version("flashinfer-python"), call


def vllm(problem, _):
    operations = need("vllm._custom_ops")
    cache = problem.cache.to(problem.torch.bfloat16)

    def call(q, k):
        tokens = problem.tokens
        operations.rotary_embedding(problem.positions, q.view(tokens, -1), k.view(tokens, -1), problem.dim, cache, True)
        return q, k

    return version("vllm"), call


def xformers(problem, _):
    need("xformers.ops")
    rope = need("xformers.ops.rope_padded").rope_padded
    masks = need("xformers.ops.fmha.attn_bias")
    torch = problem.torch
    tokens = problem.tokens
    bias = masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[tokens], kv_padding=tokens, kv_seqlen=[tokens]
    )
    value = torch.zeros(1, tokens, problem.k_heads, problem.dim, device="cuda", dtype=torch.bfloat16)
    cache_k, cache_v = torch.empty_like(value), torch.empty_like(value)

    def call(q, k):
        # It writes keys and values to a cache, so it moves more.
        out = rope(q[None], k[None], value, cache_k, cache_v, bias, theta=BASE, seqpos=problem.positions, adjacents=False)
        return out[0], cache_k[0]

    return version("xformers"), call


PEERS = {
    "posenc": ours,
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "transformers": transformers,
    "liger": liger,
    "flashinfer cos_sin_cache": flashinfer_cache,
    "flashinfer pos_ids": flashinfer_on_the_fly,
    "vllm": vllm,
    "xformers rope_padded": xformers,
}


def measure(torch, call, sets, calls):
    """Microseconds a call: median, 5th and 95th of 100, and how they were taken."""
    n = len(sets)
    run = lambda: [call(*sets[i % n]) for i in range(calls)]
    # On the stream of the capture: what is compiled, loaded or made there must be ready before.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(*sets[0])
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            run()
        replay, mode = graph.replay, "graph"
    except Exception as error:  # a peer may do anything that cannot be captured
        torch.cuda.synchronize()
        replay, mode = run, f"stream ({type(error).__name__} in capture)"
    replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    times.sort()
    at = lambda share: times[round(share * (len(times) - 1))]
    return statistics.median(times), at(0.05), at(0.95), mode


def copy_time(torch, size, sets, calls):
    """The floor: a device copy that moves as many bytes."""
    pairs = [tuple(torch.empty(size // 2, dtype=torch.uint8, device="cuda") for _ in range(2)) for _ in range(sets)]
    return measure(torch, lambda a, b: b.copy_(a), pairs, calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", help="a part of the wanted peers' names")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is missing: peers are measured on a machine that has it")
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU: a time is from a GPU or it is not there")
    library = posenc.Library(arguments.library.resolve())
    device = torch.cuda.get_device_properties(0)
    rows = []
    print(f"{device.name}, PyTorch {torch.__version__}")
    for model in MODELS:
        for tokens in map(int, arguments.tokens.split(",")):
            size = Problem(torch, model, tokens, 1).bytes()
            cold = -(-4 * device.L2_cache_size // size)
            for cache, sets in (("cold", cold), ("hot", 1)):
                if (cache == "cold" and size < 4 << 20) or (cache == "hot" and size > device.L2_cache_size // 2):
                    continue
                calls = max(sets, 64 if size < 1 << 20 else 16)
                problem = Problem(torch, model, tokens, sets)
                case = [problem.name, tokens, cache, size]
                median, low, high, mode = copy_time(torch, size, sets, calls)
                rows.append(["device copy", torch.__version__, *case, mode, f"{median:.3f}", f"{low:.3f}", f"{high:.3f}", ""])
                for name, peer in PEERS.items():
                    if arguments.only and arguments.only not in name:
                        continue
                    rows.append([name, *one(torch, problem, peer, library, case, calls, name)])
                    print(" ".join(map(str, rows[-1])), flush=True)
                del problem
                torch.cuda.empty_cache()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["# " + device.name, "PyTorch " + torch.__version__, "CUDA " + str(torch.version.cuda)])
        writer.writerow(
            "peer version model tokens cache bytes_to_move taken median_us p5_us p95_us error_of_pair".split()
        )
        writer.writerows(rows)
    print(arguments.out)


def one(torch, problem, peer, library, case, calls, name):
    """One row: measured, or why not."""
    try:
        its_version, call = peer(problem, library)
        before = tuple(x.clone() for x in problem.sets[0])
        work = tuple(x.clone() for x in before)
        after = call(*work)
        torch.cuda.synchronize()
        error = problem.error(before, after)
        if not error <= TOLERANCE["posenc" if name == "posenc" else "peer"]:
            return [its_version, *case, f"wrong by {error:.2e} of a pair, not timed", "", "", "", f"{error:.2e}"]
        median, low, high, mode = measure(torch, call, problem.sets, calls)
        return [its_version, *case, mode, f"{median:.3f}", f"{low:.3f}", f"{high:.3f}", f"{error:.2e}"]
    except Missing as missing:
        return ["", *case, str(missing), "", "", "", ""]
    except Exception as error:  # one peer's failure is a row, not the end of the run
        return ["", *case, f"failed: {type(error).__name__}: {error}".replace("\n", " ")[:200], "", "", "", ""]


if __name__ == "__main__":
    main()
