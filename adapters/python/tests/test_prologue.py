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


MOST = {"e4m3": 448.0, "e5m2": 57_344.0, "int8": 127.0}


def decoded(code, x):
    """The values of eight-bit codes, by the formats' definitions."""
    bits = np.asarray(x).view(np.uint8).astype(np.int64)
    if code == "int8":
        return bits.astype(np.int8).astype(np.float64)
    mantissa, bias = {"e4m3": (3, 7), "e5m2": (2, 15)}[code]
    exponent, fraction = bits >> mantissa & (1 << 7 - mantissa) - 1, bits & (1 << mantissa) - 1
    whole = np.where(exponent > 0, fraction + (1 << mantissa), fraction)
    return np.where(bits > 127, -1.0, 1.0) * whole * 2.0 ** (np.maximum(exponent, 1) - bias - mantissa)


def nearest(code, x):
    """The nearest values that have a code, at most the largest."""
    table = np.unique(decoded(code, np.arange(256, dtype=np.uint8)))
    table = table[np.abs(table) <= MOST[code]]
    above = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
    below, above = table[above - 1], table[above]
    return np.where(np.abs(x - below) < np.abs(x - above), below, above)


def are_codes(code, x, scale, want, bound=1e-5):
    """Each code is a nearest one of a value that is known to `bound`."""
    got = decoded(code, x)
    errors = [np.abs(got - nearest(code, (want + change) / scale)) for change in (-bound, 0.0, bound)]
    assert np.min(errors, 0).max() == 0 and len(np.unique(got)) > 20


@pytest.mark.parametrize("code", MOST)
@pytest.mark.parametrize("layout", ["bthd", "bhtd"])
def test_codes_of_eight_bits(code, layout):
    spec = Prologue(posenc.Rope(16), Branch(rope=True), Branch(rope=True))
    q, k, v = (values(1, 3, 2, 16, seed=seed) for seed in (1, 2, 3))
    want_q, want_k = rotated(q, IDS)[0], rotated(k, IDS)[0]
    order = (lambda x: x.transpose(0, 2, 1, 3)) if layout == "bhtd" else (lambda x: x)
    bytes_of = lambda *shape: order(np.full((2, 4, 2, *shape), 0x55, np.uint8)).copy()
    slots = np.array([[6, 0, 3]])

    def rows(x):
        """The rows that were written, of all pages."""
        x = order(x)
        assert (x.reshape(8, *x.shape[2:])[[1, 2, 4, 5, 7]].view(np.uint8) == 0x55).all()
        return x.reshape(8, *x.shape[2:])[slots[0]]

    def kept(k_codes, v_codes):
        arguments = {"positions": IDS, "cache": Cache(k_codes, v_codes, slots=slots, layout=layout)}
        spec.apply(Projected(q), Projected(k, out="cache"), Projected(v, out="cache"), **arguments)

    # scales that are given: one, and one for each head
    keys, vals = bytes_of(16), bytes_of(16)
    one, heads = np.array([2 / MOST[code]], F32), np.array([3 / MOST[code], 0.75 / MOST[code]], F32)
    kept(posenc.Codes(keys, code, scales=one), posenc.Codes(vals, code, scales=heads))
    are_codes(code, rows(keys), one[0], want_k)
    are_codes(code, rows(vals), heads[:, None], v[0])
    # scales of each token and head, beside the codes and behind them
    keys, vals = bytes_of(16), bytes_of(32)
    scales = order(np.full((2, 4, 2, 1), 0x55555555, np.uint32).view(F32)).copy()[..., 0]
    kept(posenc.Codes(keys, code, scales_out=scales), posenc.Codes(vals, code))
    own = rows(scales[..., None])
    close(own[..., 0] * MOST[code], np.abs(want_k).max(-1))
    are_codes(code, rows(keys), own, want_k)
    inline = np.ascontiguousarray(rows(vals)[..., 16:20]).view(F32)
    close(inline[..., 0] * MOST[code], np.abs(v[0]).max(-1))
    are_codes(code, rows(vals)[..., :16], inline, v[0])
    # queries, beside and in place of their own type
    codes, scales = np.zeros((1, 3, 2, 16), np.uint8), np.zeros((1, 3, 2), F32)
    alone = Prologue(posenc.Rope(16), Branch(rope=True))
    for out in ("new", "cache"):
        codes[:], scales[:] = 0, 0
        got, _, _ = alone.apply(
            Projected(q, out=out), positions=IDS, q_codes=posenc.Codes(codes, code, scales_out=scales)
        )
        assert (got is None) == (out == "cache")
        are_codes(code, codes[0], scales[0, :, :, None], want_q)


def test_codes_that_do_not_fit_are_refused():
    q, k = values(1, 3, 2, 16), values(1, 3, 2, 16, seed=2)
    spec = Prologue(None)
    x, one = np.zeros((1, 4, 2, 16), np.uint8), np.ones(1, F32)
    for codes, sentence in (
        (posenc.Codes(x, scales=one), "cache_k is uint8, which does not name its code: give 'e4m3'"),
        (posenc.Codes(x, "e3m4", scales=one), "code of cache_k is 'e3m4', it may be 'e4m3', 'e5m2', 'int8'"),
        (posenc.Codes(x.view(np.int8), "e4m3", scales=one), "cache_k is int8, its code is given as 'e4m3'"),
        (posenc.Codes(x.astype(F32), "e4m3", scales=one), "cache_k is float32, it must be uint8 or float8_e4m3fn"),
        (posenc.Codes(x, "int8", scales=one, scales_out=one), "are given to be read and to be written"),
        (
            posenc.Codes(x, "int8", scales=np.ones(3, F32)),
            "there are 3 scales of k, there must be 1 or one for each of 2 heads",
        ),
        (posenc.Codes(x, "int8", scales=np.zeros(1, F32)), "scale"),
        (
            posenc.Codes(x, "int8", scales_out=np.ones((1, 3, 2), F32)),
            r"the scales of k are \[1, 3, 2, 1\], they must be",
        ),
        (posenc.Codes(x, "int8", scales=np.ones(1)), "cache_k_scales is float64, it must be float32"),
        (posenc.Codes(x, "int8"), "has 16 bytes a head, 16 codes and 16 for their scale are needed"),
    ):
        with pytest.raises(posenc.Error, match=sentence):
            spec.apply(Projected(q), Projected(k, out="cache"), cache=Cache(codes, slots=[[0, 1, 2]]))
        assert (x == 0).all()


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
    rest = ids, None, None, *caches[:2], *[None] * 4, [None] * 3, "same,same,same", slots, *[None] * 3
    rest = *rest, spec.text, False, "bthd", "bthd"
    torch.library.opcheck(torch.ops.posenc.prologue.default, (q, k, v, weights, *rest))
    with pytest.raises(posenc.Error, match="q requires grad, and the prologue has no gradient"):
        step(q.clone().requires_grad_(), k, v, *caches[:2])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_codes_of_torch():
    if os.environ.get("POSENC_TEST_ALL") is None:
        pytest.importorskip("torch", reason="torch is not installed")
    import posenc.torch as pt
    import torch

    q, k, v = (torch.from_numpy(values(1, 3, 2, 16, seed=seed)) for seed in (1, 2, 3))
    spec, ids, slots = Prologue(posenc.Rope(16), NORMED, NORMED), torch.from_numpy(IDS), torch.tensor([[4, -1, 2]])
    weight, scale = torch.from_numpy(values(16, seed=4)), torch.tensor([0.01])

    def places():
        keys, vals = torch.zeros(2, 3, 2, 16, dtype=torch.float8_e4m3fn), torch.zeros(2, 3, 2, 16, dtype=torch.int8)
        return keys, vals, torch.zeros(2, 3, 2), torch.zeros(1, 3, 2, 32, dtype=torch.uint8)

    def step(keys, vals, scales, q_codes, keep=False):
        cache = posenc.Codes(keys, scales=scale), posenc.Codes(vals, scales_out=scales)
        arguments = {"q_weight": weight, "k_weight": weight, "positions": ids, "slots": slots, "cache": cache}
        return pt.prologue(q, k, v, spec=spec, q_codes=posenc.Codes(q_codes, "e5m2"), keep=keep, **arguments)

    own, compiled = places(), places()
    assert step(*own) is None
    got_q, got_k, got_v = step(*places(), keep=True)
    want_k = rotated(normed(k.numpy(), weight.numpy()), IDS)
    close(got_k.numpy(), want_k)
    assert (got_v == v).all() and got_q.shape == q.shape
    for token, (page, row) in ((0, (1, 1)), (2, (0, 2))):
        # torch's own values of its type
        near = (own[0][page, row].to(torch.float64) * 0.01 - torch.from_numpy(want_k)[0, token]).abs()
        assert (near <= 2.0**-4 * torch.from_numpy(want_k)[0, token].abs() + 1e-4).all()
        scales = own[2][page, row]
        assert (scales * 127 - v[0, token].abs().amax(-1)).abs().max() < 1e-6
        assert ((own[1][page, row] * scales[:, None] - v[0, token]).abs() <= 0.501 * scales[:, None]).all()
    torch.compile(step, fullgraph=True)(*compiled)
    bits = lambda x: x.view(torch.uint8) if x.dtype.itemsize == 1 else x
    assert all((bits(a) == bits(b)).all() for a, b in zip(own, compiled, strict=True))
    keys, vals, scales, q_codes = own
    rest = ids, None, None, bits(keys), vals, q_codes, None, scales, None, [scale, None, None], "e4m3,,e5m2", slots
    rest = *rest, None, None, None, spec.text, True, "bthd", "bthd"
    weights = [weight, None, weight, None, None, None]
    torch.library.opcheck(torch.ops.posenc.prologue.default, (q, k, v, weights, *rest))


def test_the_prologue_of_a_layer_is_that_of_its_config():
    config = {"model_type": "qwen3", "head_dim": 16, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    layer = posenc.LayerPrologue.from_config(config, 1)
    norm = posenc.Branch(rope=True, norm="rms", weight="weight", eps=1e-5, rounding="before_weight")
    assert (layer.q, layer.k, layer.rope_first, layer.latent) == (norm, norm, False, False)
    assert layer.v.norm == "none" and not layer.v.rope
    with pytest.raises(posenc.Error, match="norms and biases of model_type"):
        posenc.LayerPrologue.from_config({"model_type": "gpt_neox", "num_hidden_layers": 1})


def test_patches_and_windows_have_the_positions_of_their_models():
    ids = posenc.Model.from_config({"model_type": "llama4_vision_model"}).patch_positions([(1, 2, 2)])
    assert ids.tolist() == [[1, 2, 1, 2, 0], [1, 1, 2, 2, 0]]
    assert posenc.timed_windows(2, 3).tolist() == [[0, 0, 0, 3, 4, 5], [0, 1, 4, 0, 4, 10]]
    with pytest.raises(posenc.Error, match="no rule for the positions of patches"):
        posenc.Model.from_config({"model_type": "qwen3", "num_hidden_layers": 1}).patch_positions([(1, 2, 2)])
