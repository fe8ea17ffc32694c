"""The prologue against its steps in f64: norm, rotation, bias, caches."""

import os

import numpy as np
import posenc
import pytest
from posenc import Branch, Cache, Projected, Prologue

F32 = np.float32
IDS = np.array([[0, 131_071, 3]])


def values(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def normed(x, weight):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1.0 + weight)


def rotated(x, positions):
    dim = x.shape[-1]
    angle = positions[..., None, None] * 10_000.0 ** (-np.arange(dim // 2) * 2 / dim)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def close(got, want, bound=2e-6):
    assert np.abs(np.asarray(got, np.float64) - want).max() < bound


NORMED = Branch(rope=True, norm="rms", weight="one_plus_weight")
SPEC = Prologue(posenc.Rope(16), NORMED, NORMED, Branch(bias=True))


def test_steps_and_slots_of_a_cache():
    assert posenc.spec_of(SPEC.text) == SPEC
    qkv, weight, bias = values(1, 3, 7, 16), values(16, seed=2), values(2, 16, seed=3)
    q, k, v = qkv[:, :, :3], qkv[:, :, 3:5], qkv[:, :, 5:]
    before = qkv.copy()
    keys, vals = values(2, 3, 2, 16, seed=4), values(2, 3, 2, 16, seed=5)
    want_keys, want_vals = keys.astype(np.float64), vals.astype(np.float64)
    want_k = rotated(normed(k, weight), IDS)
    for token, slot in ((0, 4), (2, 2)):
        want_keys[slot // 3, slot % 3], want_vals[slot // 3, slot % 3] = want_k[0, token], v[0, token] + bias
    out, *none = SPEC.apply(
        Projected(q, weight=weight),
        Projected(k, weight=weight, out="cache"),
        Projected(v, bias=bias, out="cache"),
        positions=IDS,
        cache=Cache(keys, vals, slots=np.array([[4, -1, 2]])),
    )
    assert none == [None, None] and (qkv == before).all()
    close(out, rotated(normed(q, weight), IDS))
    close(keys, want_keys)
    close(vals, want_vals)
    # in place, and pages by a table from a row on
    paged = values(2, 2, 3, 16, seed=4), values(2, 2, 3, 16, seed=5)
    cache = Cache(*paged, pages=np.array([[1, 0]], np.int32), starts=[2], layout="bhtd")
    q_out, k_out, v_out = SPEC.apply(
        Projected(q, weight=weight, out="place"),
        Projected(k, weight=weight, out="place"),
        Projected(v, bias=bias),
        positions=IDS,
        cache=cache,
    )
    assert q_out is q and k_out is k and (q == out).all()
    for token in range(3):
        page, row = [1, 0][(2 + token) // 3], (2 + token) % 3
        assert (paged[0][page, :, row] == k_out[0, token]).all() and (paged[1][page, :, row] == v_out[0, token]).all()


def test_queries_alone_and_a_contiguous_cache():
    x = values(2, 3, 2, 16)
    rope = Prologue(posenc.Rope(16), Branch(rope=True))
    out, _, _ = rope.apply(Projected(x), starts=[5, 9])
    assert (out == posenc.Rope(16).rotate(x, starts=[5, 9])).all()
    cache = np.zeros((2, 8, 2, 16), F32)
    both = Prologue(posenc.Rope(16), Branch(rope=True), Branch(rope=True))
    both.apply(Projected(x), Projected(x.copy(), out="cache"), starts=[5, 2], cache=Cache(cache, starts=[5, 2]))
    want = posenc.Rope(16).rotate(x, starts=[5, 2])
    assert (cache[0, 5:] == want[0]).all() and (cache[1, 2:5] == want[1]).all() and (cache[0, :5] == 0).all()


def test_bad_input_is_an_error():
    q, k = values(1, 3, 3, 16), values(1, 3, 2, 16)
    weight = values(16)
    given = Projected(q, weight=weight)
    cache = np.zeros((2, 3, 2, 16), F32)
    for make, sentence in (
        (lambda: SPEC.apply(Projected(q)), "q needs a weight of 16 elements, there is none"),
        (lambda: SPEC.apply(given, Projected(k, weight=weight, out="cache")), "k is read and goes nowhere"),
        (lambda: SPEC.apply(Projected(q, weight=weight, out="there")), "out of q is 'there', it may be"),
        (lambda: SPEC.apply(given, cache=Cache(cache, slots=np.zeros((1, 2), np.int32))), "slots holds 2"),
        (lambda: SPEC.apply(given, cache=Cache(cache, slots=[[0, 0, 0]], starts=[1])), "slots are given with pages"),
        (
            lambda: SPEC.apply(given, cache=Cache(cache, pages=np.zeros(2, np.int32))),
            r"it must be \[sequences, width\]",
        ),
        (
            lambda: SPEC.apply(
                given,
                Projected(k, weight=weight, out="cache"),
                cache=Cache(cache, slots=np.array([[6, 0, 1]])),
            ),
            "slot 6 lies outside the cache, which has 6",
        ),
        (
            lambda: Prologue(None, Branch(norm="max")).apply(Projected(q)),
            "norm is 'max', it may be 'none', 'rms', 'l2'",
        ),
    ):
        with pytest.raises(posenc.Error, match=sentence):
            make()


# opcheck looks at gradients of tensors that have none
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_prologue_of_torch():
    if os.environ.get("POSENC_TEST_ALL") is None:
        pytest.importorskip("torch", reason="torch is not installed")
    import posenc.torch as pt
    import torch

    qkv, weight = torch.from_numpy(values(1, 3, 7, 16)), torch.from_numpy(values(16, seed=2))
    q, k, v = qkv[:, :, :3], qkv[:, :, 3:5], qkv[:, :, 5:]
    ids, slots = torch.from_numpy(IDS), torch.tensor([[4, -1, 2]])
    spec = Prologue(posenc.Rope(16), NORMED, NORMED)
    weights = [weight, None, weight, None, None, None]

    def step(q, k, v, cache_k, cache_v):
        arguments = {"q_weight": weight, "k_weight": weight, "positions": ids, "slots": slots}
        return pt.prologue(q, k, v, spec=spec, cache=(cache_k, cache_v), **arguments)

    caches = [torch.zeros(2, 3, 2, 16) for _ in range(4)]
    got = step(q, k, v, *caches[:2])
    close(got[0].numpy(), rotated(normed(q.numpy(), weight.numpy()), IDS))
    close(got[1].numpy(), rotated(normed(k.numpy(), weight.numpy()), IDS))
    assert (got[2] == v).all() and (caches[0][1, 1] == got[1][0, 0]).all() and (caches[1][0, 2] == v[0, 2]).all()
    compiled = torch.compile(step, fullgraph=True)(q, k, v, *caches[2:])
    assert all((a == b).all() for a, b in zip(got, compiled, strict=True)) and (caches[2] == caches[0]).all()
    rest = ids, None, *caches[:2], slots, None, None, None, spec.text, False, "bthd", "bthd"
    torch.library.opcheck(torch.ops.posenc.prologue.default, (q, k, v, weights, *rest))
    with pytest.raises(posenc.Error, match="q requires grad, and the prologue has no gradient"):
        step(q.clone().requires_grad_(), k, v, *caches[:2])
