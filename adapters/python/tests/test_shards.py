"""Shards of a model on four processes (gloo) give the bits of the whole: heads apart, and tokens apart in a zig-zag."""

import os

import pytest

if os.environ.get("POSENC_TEST_ALL") is None:
    pytest.importorskip("torch", reason="torch is not installed")

import posenc
import posenc.torch as pt
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

RANKS, HEADS, TOKENS, DIM = 4, 8, 16, 16
ROPE, SOFTMAX = posenc.Rope(DIM), posenc.Softmax(0.25, right=0)


def states():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, HEADS, TOKENS, DIM, generator=generator) for _ in range(3)]


def weights(q, k):
    """Logits of each head and query apart, so that a shard's are the whole's, whatever the product's blocks are."""
    return (q[:, :, :, None] * k[:, :, None]).sum(-1)


def whole():
    q, k, _ = states()
    q, k = pt.rope(q, k, spec=ROPE, layout="bhtd")
    return q, k, pt.softmax(weights(q, k), spec=SOFTMAX, bias=posenc.Alibi(HEADS))


def gathered(x):
    parts = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(parts, x.contiguous())
    return parts


def heads_apart(rank):
    q, k, _ = (x.chunk(RANKS, 1)[rank] for x in states())
    q, k = pt.rope(q, k, spec=ROPE, layout="bhtd")
    alibi = posenc.Alibi(HEADS // RANKS, total_heads=HEADS, first=rank * HEADS // RANKS)
    p = pt.softmax(weights(q, k), spec=SOFTMAX, bias=alibi)
    return [torch.cat(gathered(x), 1) for x in (q, k, p)]


def tokens_apart(rank):
    """Rank r holds chunk r and, from behind, chunk r again: all have as much of a causal triangle."""
    chunks = torch.arange(TOKENS).chunk(2 * RANKS)
    order = [torch.cat((chunks[r], chunks[2 * RANKS - 1 - r])) for r in range(RANKS)]
    own = order[rank]
    q, k, _ = (x[:, :, own] for x in states())
    q, k = pt.rope(q, k, spec=ROPE, positions=own, layout="bhtd")
    keys = torch.cat(gathered(k), 2)[:, :, torch.cat(order).argsort()]
    places = own[None].to(torch.int32)
    p = pt.softmax(weights(q, keys), spec=SOFTMAX, bias=posenc.Alibi(HEADS), query_positions=places)
    back = torch.cat(order).argsort()
    return [torch.cat(gathered(x), 2)[:, :, back] for x in (q, k, p)]


def work(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        for shard in (heads_apart, tokens_apart):
            for name, got, want in zip("qkp", shard(rank), whole(), strict=True):
                if not torch.equal(got, want):
                    results.put(f"rank {rank}: {name} of {shard.__name__} differs")
        results.put("done")
    finally:
        dist.destroy_process_group()


def test_shards_give_the_bits_of_the_whole():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = processes.get_context("spawn").Queue()
    processes.spawn(work, (port, results), nprocs=RANKS, join=True)
    assert [results.get(timeout=10) for _ in range(RANKS)] == ["done"] * RANKS
