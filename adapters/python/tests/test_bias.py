"""Biases against their formulas, sums of terms, the softmax, and gradients against finite differences."""

import math

import numpy as np
import posenc
import pytest
from posenc import Inputs, Places, Softmax, Term, TermInputs, Terms

F32 = np.float32


def values(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def close(got, want, bound=2e-6):
    assert np.abs(np.asarray(got, np.float64) - want).max(initial=0.0) < bound


def distances(queries, keys):
    return np.arange(keys)[None] - (np.arange(queries)[:, None] + keys - queries)


def test_alibi():
    slopes = posenc.Alibi(4).slopes()
    assert slopes.tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    want = -slopes[:, None, None] * np.abs(distances(3, 5))
    close(posenc.Alibi(4).matrix(3, 5), want)
    logits = values(1, 4, 3, 5)
    before = logits.copy()
    posenc.Alibi(4).add_(logits)
    close(logits, before + want)
    shard = posenc.Alibi(2, total_heads=4, first=2)
    close(shard.matrix(3, 5), want[2:])
    own = posenc.Slopes(slopes, slopes * 2)
    d = distances(3, 5)
    close(own.matrix(3, 5), np.where(d < 0, slopes[:, None, None] * d, -2 * slopes[:, None, None] * d))
    key_only = posenc.KeyOnlyAlibi(posenc.Alibi(4), "bloom", 5)
    assert key_only.matrix(3, 5).shape == (4, 3, 5)
    with pytest.raises(posenc.Error, match="library is 'nobody'"):
        posenc.KeyOnlyAlibi(posenc.Alibi(4), "nobody", 5).matrix(3, 5)


def bucket(distance, bidirectional, buckets=32, most=128):
    n, base = -distance, 0
    if bidirectional:
        buckets //= 2
        base = buckets if n < 0 else 0
        n = abs(n)
    n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return base + n
    return base + min(exact + int(math.log(n / exact) / math.log(most / exact) * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_t5(bidirectional):
    d = np.arange(-300, 301)
    # powers of two make the quotient of logarithms a whole number, which f64 rounds either way
    own = posenc.T5(1, bidirectional=bidirectional).bucket(d)
    assert (own == [bucket(int(x), bidirectional) for x in d]).mean() > 0.98
    table = values(32, 2)
    bias = posenc.T5(2, bidirectional=bidirectional, table=table)
    index = own[distances(4, 6) + 300]
    close(bias.matrix(4, 6), table[index].transpose(2, 0, 1))
    plan = posenc.T5(2, bidirectional=bidirectional).plan()
    plan.set_table(table)
    assert (plan.matrix(4, 6) == bias.matrix(4, 6)).all()
    assert plan.numbers().size % 2 == 0
    with pytest.raises(posenc.Error, match="this bias was made for float32 on cpu"):
        plan.write(np.zeros((2, 4, 6), np.float16))


def test_rows_and_laws():
    row = posenc.Row(np.arange(10).reshape(2, 5), first=-2)
    close(row.matrix(2, 2), np.arange(10).reshape(2, 5)[:, distances(2, 2) + 2])
    kerple = posenc.Kerple("log", [0.5, 1.0], [1.0, 2.0], -8, 8)
    d = np.abs(np.arange(-8, 9))
    close(kerple.row(), -np.array([[0.5], [1.0]]) * np.log1p(np.array([[1.0], [2.0]]) * d))
    sandwich = posenc.Sandwich(2, -8, 8)
    assert sandwich.row().shape == (2, 17)
    fire = posenc.Fire([1.0, -1.0], [0.0, 0.5], [[1.0, 2.0]], [0.25], c=1.0, threshold=4.0)
    assert np.isfinite(fire.matrix(3, 3)).all() and fire.heads == 1


def test_places():
    alibi = posenc.Alibi(1)
    positions = np.array([[0, 7, 3]], np.int32)
    got = alibi.matrix(3, 3, Places(queries=positions, keys=positions))
    close(got[0], -(2**-8) * np.abs(positions.T - positions))
    softmax = Softmax(right=0)
    lengths = np.array([2], np.int32)
    p = softmax.apply(values(1, 1, 3, 3), Inputs(places=Places(queries=0, key_lengths=lengths)))
    assert (p[..., 2] == 0).all() and np.allclose(p.sum(-1), 1)
    packed = np.array([0, 2, 5], np.int32)
    p = softmax.apply(values(1, 1, 5, 5), Inputs(places=Places(cu_seqlens_q=packed, cu_seqlens_k=packed)))
    assert (p[0, 0, 2:, :2] == 0).all() and (p[0, 0, :2, 2:] == 0).all()
    for places, sentence in (
        (Places(queries="top"), "query_positions is 'top'"),
        (Places(cu_seqlens_q=packed), "one of cu_seqlens_q and cu_seqlens_k is given"),
        (Places(queries=positions[:, :2]), r"it must be \[1, 3\]"),
    ):
        with pytest.raises(posenc.Error, match=sentence):
            alibi.matrix(3, 3, places)


def swin_index(rows, columns):
    r, c = np.divmod(np.arange(rows * columns), columns)
    return (r[:, None] - r + rows - 1) * (2 * columns - 1) + c[:, None] - c + columns - 1


def test_terms():
    term = Term.swin(2, 3)
    assert term.entries == 15
    table = values(15, 4)
    index = swin_index(2, 3)
    bias = Terms(term, heads=4)
    close(bias.matrix(6, 6, terms=[TermInputs(table)]), table[index].transpose(2, 0, 1))
    dense = values(1, 4, 6, 6, seed=2)
    both = Terms(term.scaled(2.0), Term.whole(), heads=4)
    got = both.matrix(6, 6, terms=[TermInputs(table), TermInputs(dense)])
    close(got, 2 * table[index].transpose(2, 0, 1) + dense[0])
    shaw = Terms(Term.shaw(2, 2), heads=2)
    products = values(1, 2, 5, 5, seed=3)
    clipped = np.clip(distances(5, 5), -2, 2) + 2
    want = np.take_along_axis(products[0], np.broadcast_to(clipped, (2, 5, 5)), 2)
    close(shaw.matrix(5, 5, terms=[TermInputs(products)]), want)
    given = Terms(Term.given(5, 5, 3), heads=2)
    indices = np.random.default_rng(4).integers(0, 3, (1, 5, 5)).astype(np.uint8)
    numbers = values(3, 2)
    close(given.matrix(5, 5, terms=[TermInputs(numbers, indices=indices)]), numbers[indices[0]].transpose(2, 0, 1))
    assert Term.deberta(4, 9).of("keys").entries == 8
    custom = Term.distance(-1, 3, query_minus_key=True, outside="zero")
    own = Terms(custom, heads=1).matrix(3, 3, terms=[TermInputs(np.array([[1.0], [2.0], [3.0]], F32))])
    assert own[0].tolist() == [[2, 1, 0], [3, 2, 1], [0, 3, 2]]
    for make, sentence in (
        (lambda: bias.matrix(6, 6), "terms"),
        (lambda: Term.swin(-1, 2), "a size of the term swin is -1"),
        (lambda: bias.matrix(6, 6, terms=[TermInputs(table.astype(np.float64))]), "numbers is float64"),
        (lambda: Terms().matrix(2, 2), "0"),
    ):
        with pytest.raises(posenc.Error, match=sentence):
            make()


def softmax(logits, scale, bias):
    z = logits.astype(np.float64) * scale + bias
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_softmax_with_a_bias():
    logits = values(2, 4, 3, 5)
    alibi = posenc.Alibi(4)
    d = distances(3, 5)
    bias = alibi.matrix(3, 5) + np.where(d > 0, -np.inf, 0)
    want = softmax(logits, 0.5, bias)
    spec, inputs = Softmax(scale=0.5, right=0), Inputs(alibi)
    lse = np.empty((2, 4, 3), F32)
    p = spec.apply(logits, inputs, lse=lse)
    close(p, want)
    z = logits.astype(np.float64) * 0.5 + bias
    close(lse, np.log(np.exp(z).sum(-1)), 1e-5)
    assert (spec.apply_(logits.copy(), inputs) == p).all()
    mask = np.where(np.arange(5) == 0, -np.inf, 0).astype(F32).reshape(1, 1, 1, 5)
    masked = Softmax().apply(logits, Inputs(mask=mask))
    assert (masked[..., 0] == 0).all()
    sinks = np.zeros(4, F32)
    less = Softmax().apply(logits, Inputs(sinks=sinks))
    assert (less.sum(-1) < 1).all()


def test_softmax_gradients():
    logits, out = values(1, 2, 3, 4), values(1, 2, 3, 4, seed=2)
    table = values(32, 2, seed=3)
    bias, spec = posenc.T5(2, table=table), Softmax(scale=0.5)
    lse = np.empty((1, 2, 3), F32)
    sinks = values(2, seed=4)
    inputs = Inputs(bias, sinks=sinks)
    p = spec.apply(logits, inputs, lse=lse)
    bias_grad, dots = np.empty_like(logits), np.empty((1, 2, 3), F32)
    grad = spec.grad(p, out, inputs, bias_grad=bias_grad, dots=dots)
    own = posenc.DistanceGrad(bias, 1, 3, 4).apply(bias_grad)
    sink_grad = spec.sink_grad(sinks, lse, dots, keys=4)

    def loss(logits, table, sinks):
        d = np.vectorize(lambda x: bucket(int(x), False))(distances(3, 4))
        z = logits.astype(np.float64) * 0.5 + table[d].transpose(2, 0, 1)
        e = np.exp(z)
        p = e / (e.sum(-1, keepdims=True) + np.exp(sinks.astype(np.float64))[:, None, None])
        return (p * out).sum()

    step = 1e-5
    arrays = [logits.astype(np.float64), table.astype(np.float64), sinks.astype(np.float64)]
    for at, (array, got) in enumerate(zip(arrays, (grad, own, sink_grad), strict=True)):
        for index in np.ndindex(array.shape):
            up, down = (list(map(np.copy, arrays)) for _ in range(2))
            up[at][index] += step
            down[at][index] -= step
            assert abs((loss(*up) - loss(*down)) / (2 * step) - got[index]) < 1e-5, (at, index)


def test_gradients_of_other_parameters():
    grad = values(1, 2, 4, 4)
    d = distances(4, 4)
    slopes = posenc.DistanceGrad(posenc.Slopes([0.5, 0.25]), 1, 4, 4).apply(grad)
    left = np.where(d < 0, d, 0)
    right = np.where(d > 0, -d, 0)
    close(slopes, np.stack([(grad[0] * left).sum((1, 2)), (grad[0] * right).sum((1, 2))]), 1e-5)
    row = posenc.DistanceGrad(posenc.Row(np.zeros((2, 7)), -3), 1, 4, 4).apply(grad)
    want = np.stack([[np.trace(grad[0, h], k) for k in range(-3, 4)] for h in range(2)])
    close(row, want, 1e-5)
    kerple = posenc.Kerple("log", [0.5, 1.0], [1.0, 2.0], -8, 8)
    assert posenc.DistanceGrad(kerple, 1, 4, 4).apply(grad).shape == (2, 2)
    fire = posenc.Fire([1.0, -1.0], [0.0, 0.5], [[1.0, 2.0], [0.5, 1.0]], [0.25, 0.5], c=1.0, threshold=4.0)
    assert posenc.DistanceGrad(fire, 1, 4, 4).apply(grad).shape == (2 + 2 + 2 + 4 + 2,)
    term = Term.swin(2, 2)
    table = posenc.TermGrad(term, 1, 2, 4, 4).apply(grad, np.zeros((9, 2), F32))
    want = np.zeros((9, 2))
    np.add.at(want, swin_index(2, 2), grad[0].transpose(1, 2, 0))
    close(table, want, 1e-5)
    with pytest.raises(posenc.Error, match="Alibi has no parameters with a gradient"):
        posenc.DistanceGrad(posenc.Alibi(2), 1, 4, 4)


def test_relative_products_and_values():
    term = Term.shaw(2, 2)
    q, table = values(1, 4, 2, 8), values(5, 8, seed=2)
    clipped = np.clip(distances(4, 4), -2, 2) + 2
    want = np.einsum("bqhd,qkd->bhqk", q.astype(np.float64), table[clipped])
    got = posenc.RelativeProducts(term).write(np.empty((1, 2, 4, 4), F32), q, table)
    close(got, want, 1e-5)
    logits = values(1, 2, 4, 4, seed=3)
    before = logits.copy()
    posenc.RelativeProducts(term).add_(logits, q, table)
    close(logits, before + want, 1e-5)
    p = Softmax().apply(logits)
    z = np.zeros((1, 4, 2, 8), F32)
    posenc.RelativeValues(term).add_(z, p, table)
    close(z, np.einsum("bhqk,qkd->bqhd", p.astype(np.float64), table[clipped]), 1e-5)
    dz = values(1, 4, 2, 8, seed=4)
    dp = posenc.RelativeValues(term).grad(dz, table, np.zeros_like(p))
    close(dp, np.einsum("bqhd,qkd->bhqk", dz.astype(np.float64), table[clipped]), 1e-5)
    own = posenc.RelativeTableGrad(term, 8, 1, 2, 4, 4).apply(p, dz)
    want = np.zeros((5, 8))
    np.add.at(want, clipped, np.einsum("bhqk,bqhd->qkd", p.astype(np.float64), dz))
    close(own[0], want, 1e-5)


def test_swin_v2():
    swin2 = posenc.Swin2((2, 3), 4, hidden=6)
    w1, b1, w2 = values(6, 2), values(6, seed=2), values(4, 6, seed=3)
    table = swin2.write(np.empty((15, 4), F32), w1, b1, w2)
    assert table.shape == (15, 4) and (table > 0).all() and (table < 16).all()
    out = np.empty((6, 2), F32), np.empty(6, F32), np.empty((4, 6), F32)
    swin2.grad(np.ones((15, 4), F32), (w1, b1, w2), out)
    step = 1e-2
    moved = w2.copy()
    moved[1, 2] += step
    larger = swin2.write(np.empty((15, 4), F32), w1, b1, moved).astype(np.float64)
    assert abs((larger - table).sum() / step - out[2][1, 2]) < 0.05 * max(1, abs(out[2][1, 2]))
    assert posenc.swin2_logit_scale(9.0) == 100.0
    larger = posenc.resize_window(Term.swin(1, 2), np.array([[0.0], [5.0], [10.0]], F32), (1, 3), "bilinear")
    assert larger[:, 0].tolist() == [0.0, 2.0, 5.0, 8.0, 10.0]
    axis = posenc.decomposed_axis(np.arange(6, dtype=F32).reshape(3, 2), 2, 2)
    assert axis[:, :, 0].tolist() == [[2, 0], [4, 2]]


def test_gates():
    gates = values(1, 2, 5)
    sums = posenc.GateSums().write(gates, np.empty((1, 2, 5, 2), F32))
    logs = -np.log1p(np.exp(-gates.astype(np.float64)))
    close(sums.astype(np.float64).sum(-1), np.cumsum(logs, -1), 1e-6)
    bias = Terms(Term.endpoints(), heads=2)
    got = bias.matrix(5, 5, terms=[TermInputs(sums, key_numbers=sums)])
    total = np.cumsum(logs, -1)[0]
    close(got, total[:, :, None] - total[:, None, :], 2e-6)
    grad = posenc.GateSums().grad(gates, values(1, 2, 5, seed=2), values(1, 2, 5, seed=3), np.empty((1, 2, 5), F32))
    assert np.isfinite(grad).all()
    state = np.zeros((1, 2, 2), np.int64)
    parts = []
    for part in (gates[..., :2], gates[..., 2:]):
        parts.append(posenc.GateSums().write(part, np.empty((*part.shape, 2), F32), state=state))
    close(np.concatenate(parts, 2).astype(np.float64).sum(-1), np.cumsum(logs, -1), 1e-6)


def test_states_are_merged():
    q, k, v = values(1, 3, 2, 8), values(1, 6, 2, 8, seed=2), values(1, 6, 2, 8, seed=3)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k).astype(F32)

    def attend(keys):
        own = np.ascontiguousarray(logits[..., keys])
        lse = np.empty((1, 2, 3), F32)
        p = Softmax().apply(own, lse=lse)
        return posenc.State(np.einsum("bhqk,bkhd->bqhd", p, v[:, keys]).astype(F32), lse)

    a, b, whole = attend(slice(0, 2)), attend(slice(2, 6)), attend(slice(0, 6))
    out = posenc.State(np.empty_like(a.out), np.empty_like(a.lse))
    posenc.merge_states(a, b, out)
    close(out.out, whole.out)
    close(out.lse, whole.lse)
    grads = [posenc.State(np.empty_like(a.out), np.empty_like(a.lse)) for _ in range(2)]
    posenc.merge_grad(a, b, posenc.State(np.ones_like(a.out), None), *grads)
    weight = np.exp(a.lse.astype(np.float64) - whole.lse).transpose(0, 2, 1)[..., None]
    close(grads[0].out, np.broadcast_to(weight, a.out.shape))
    posenc.merge_states(a, b)
    close(a.out, whole.out)


@pytest.mark.parametrize(
    "spec",
    [
        posenc.Alibi(4, total_heads=8, first=2),
        posenc.KeyOnlyAlibi(posenc.Alibi(2), "mpt", 7),
        posenc.Slopes([0.5, 0.25], [1.0, 2.0]),
        posenc.T5(2, table=values(32, 2)),
        posenc.Row(np.arange(8).reshape(2, 4), -2, saturates=True),
        posenc.Kerple("power", [0.5], [1.0], -8, 8),
        posenc.Sandwich(2, -8, 8),
        posenc.Fire([1.0, -1.0], [0.0, 0.5], [[1.0, 2.0]], [0.25], c=1.0, threshold=4.0),
        posenc.Terms(Term.shifted(4, 4, (2, 2), (1, 1)), heads=2),
        posenc.Terms(Term.distance(-1, 3, lookup=[0, 1, 0], entries=2), Term.swin(2, 2).scaled(0.5), heads=2),
        posenc.Grid((("rows", posenc.Sinusoid(8)), ("columns", posenc.Sinusoid(8, pairing="half")))),
        posenc.Resample((2, 2), (4, 4), 1),
        posenc.Softmax(0.5, right=0),
        posenc.Learned(8, norm="rms"),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_specs_are_texts(spec):
    again = posenc.spec_of(spec.text)
    assert type(again) is type(spec) and again.text == spec.text
    assert getattr(again, "_key", None) == getattr(spec, "_key", None)
    if isinstance(spec, posenc.Bias) and not isinstance(spec, posenc.Terms):
        assert (again.matrix(2, 3) == spec.matrix(2, 3)).all()
