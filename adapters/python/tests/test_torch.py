"""`posenc.torch`: opcheck, gradients against formulas in f64, `torch.compile`, in place, what is refused."""

import itertools
import os

import pytest

if os.environ.get("POSENC_TEST_ALL") is None:
    pytest.importorskip("torch", reason="torch is not installed")

import posenc
import posenc.torch as pt
import torch
from torch.library import opcheck

# opcheck looks at gradients of tensors that have none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

OPS = torch.ops.posenc
ROPE = posenc.Rope(8, attention_factor=1.5, offset=2).text
IDS = torch.arange(10).reshape(2, 5)


def values(*shape, seed=1, grad=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def layouts(shape, grad=False):
    """Tensors of one shape: contiguous, expanded, sliced, transposed."""
    batch, tokens, heads, dim = shape
    yield "whole", values(*shape)
    yield "expanded", values(batch, 1, 1, dim).expand(shape)
    yield "sliced", values(batch, 2 * tokens, heads, dim + 4)[:, ::2, :, 4:]
    yield "transposed", values(batch, heads, tokens, dim).transpose(1, 2)
    yield "channels apart", values(batch, tokens, dim, heads).transpose(2, 3)


CASES = list(layouts((2, 5, 3, 12)))


@pytest.mark.parametrize("x", [x for _, x in CASES], ids=[name for name, _ in CASES])
@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
def test_opcheck_of_rope(x, grad):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_() if grad else x
    opcheck(OPS.rope.default, (x, IDS, None, None, ROPE, False, "bthd", "query"))
    opcheck(OPS.rope_pair.default, (x, values(2, 5, 1, 12, grad=grad), None, IDS[:, 0], None, ROPE, True, "bthd"))


def test_opcheck_of_empty_tensors():
    for shape in ((2, 0, 3, 12), (0, 5, 3, 12)):
        opcheck(OPS.rope.default, (values(*shape, grad=True), None, None, None, ROPE, False, "bthd", "query"))
    opcheck(OPS.softmax.default, softmax_arguments(values(1, 2, 0, 4, grad=True)))
    opcheck(OPS.sinusoid_add.default, (values(2, 0, 8, grad=True), None, None, posenc.Sinusoid(8).text, 1.0))


@pytest.mark.parametrize("name", [name for name, _ in CASES[:1]])
def test_opcheck_in_place(name):
    arguments = IDS, None, None, ROPE, False, "bthd"
    opcheck(OPS.rope_.default, (values(2, 5, 3, 12), *arguments, "query"))
    opcheck(OPS.rope_pair_.default, (values(2, 5, 3, 12), values(2, 5, 1, 12), *arguments))
    opcheck(OPS.sinusoid_add_.default, (values(2, 5, 8), IDS, None, posenc.Sinusoid(8).text, 2.0))


def softmax_arguments(logits, table=None, numbers=(), mask=None, sinks=None, spec=None, bias=""):
    spec = posenc.Softmax(0.5, right=0).text if spec is None else spec
    return (logits, table, list(numbers), mask, sinks, *[None] * 8, None, 0, spec, bias)


LEARNED = posenc.Learned(8, scale=2.0, norm="layer")
WINDOW = posenc.Terms(posenc.Term.swin(2, 2), heads=2)


def learned_arguments(grad=True):
    ids, kinds = torch.tensor([[3, 9, 3], [1, 1, 2]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    tables = values(10, 8, grad=grad), values(4, 8, seed=2, grad=grad), values(2, 8, seed=3, grad=grad)
    norm = values(8, seed=4, grad=grad), values(8, seed=5, grad=grad)
    return (None, ids, kinds, None, None, *tables, *norm, LEARNED.text)


def test_opcheck_of_embeddings():
    sinusoid = posenc.Sinusoid(8)
    opcheck(OPS.sinusoid.default, (IDS, sinusoid.text, torch.float16))
    opcheck(OPS.sinusoid_add.default, (values(2, 5, 8, grad=True), None, IDS[:, 0], sinusoid.text, 2.0))
    opcheck(OPS.timestep.default, (values(4), sinusoid.text, torch.float32))
    grid = posenc.Grid((("rows", sinusoid), ("columns", sinusoid))).text
    opcheck(OPS.grid_add.default, (values(2, 6, 16, grad=True), grid, 2, 3, 1, 2.0))
    rest = 2, 3, 1, True, 6.28, 0.0, torch.float32, torch.device("cpu")
    opcheck(OPS.grid.default, (None, grid, *rest))
    opcheck(OPS.grid.default, (torch.ones(2, 2, 3, dtype=torch.bool), grid, *rest))
    opcheck(OPS.learned.default, learned_arguments())
    x = values(2, 3, 8, grad=True)
    opcheck(OPS.learned.default, (x, None, None, None, None, None, values(4, 8, grad=True), *[None] * 3, LEARNED.text))
    opcheck(OPS.resample.default, (values(5, 8, grad=True), posenc.Resample((2, 2), (3, 3), 1).text))
    opcheck(OPS.fixed.default, (values(4), 8))


def test_opcheck_of_biases_and_softmax():
    t5 = posenc.T5(2).text
    rest = None, None, None, 0
    shape = 1, 3, 4, torch.float32, torch.device("cpu")
    opcheck(OPS.bias.default, (values(32, 2, grad=True), [], *rest, t5, *shape))
    opcheck(OPS.bias.default, (None, [values(9, 2, grad=True)], *rest, WINDOW.text, 1, 4, 4, *shape[3:]))
    opcheck(OPS.bias.default, (None, [], *rest, posenc.Alibi(2).text, *shape))
    logits, sinks = values(1, 2, 3, 4, grad=True), values(2, seed=7, grad=True)
    opcheck(OPS.softmax.default, softmax_arguments(logits, bias=posenc.Alibi(2).text))
    opcheck(OPS.softmax.default, softmax_arguments(logits, values(32, 2, grad=True), sinks=sinks, bias=t5))
    opcheck(OPS.softmax.default, softmax_arguments(logits.expand(3, 2, 3, 4), mask=values(1, 1, 3, 4)))
    square = values(1, 2, 4, 4, grad=True).transpose(2, 3)
    opcheck(OPS.softmax.default, softmax_arguments(square, numbers=[values(9, 2, grad=True)], bias=WINDOW.text))
    capped = posenc.Softmax(0.5, softcap=5.0).text
    opcheck(OPS.softmax.default, softmax_arguments(logits, spec=capped))


def view(layout, shape, seed, grad):
    """Numbers of a shape that lie as `layout` says; of less than two sizes they are expanded or every second one."""
    *lead, rows, columns = shape if len(shape) > 1 else (1, *shape)
    if layout == "expanded":
        return values(1, *shape[1:], seed=seed, grad=grad).expand(shape)
    if layout == "sliced":
        x = values(*lead, 2 * rows, 2 * columns + 3, seed=seed, grad=grad)[..., ::2, 3 + columns :]
    elif layout == "transposed":
        x = values(*lead, columns, rows, seed=seed, grad=grad).mT
    else:
        x = values(*lead, rows, columns, seed=seed, grad=grad)
    return x if len(shape) > 1 else x[0]


GRID = posenc.Grid((("rows", posenc.Sinusoid(4)), ("columns", posenc.Sinusoid(4)))).text
NORMED = posenc.Branch(rope=True, norm="rms", weight="weight")
PROLOGUE = posenc.Prologue(posenc.Rope(8), NORMED, NORMED, posenc.Branch(bias=True)).text
#: arguments of each operation, of tensors that `of` makes, for a number of tokens
EVERY = {
    "rope": lambda of, n: (of(2, n, 3, 12), of.ids(2, n), None, None, ROPE, False, "bthd", "query"),
    "rope_pair": lambda of, n: (of(2, n, 3, 12), of(2, n, 1, 12), None, of.ids(2), None, ROPE, True, "bthd"),
    "rope_by_table": lambda of, n: (
        *(of(2, n, 3, 12), of.plain(16, 4), of.plain(16, 4), of.ids(2, n), None, None),
        *(posenc.Rope(8).text, False, "bthd"),
    ),
    "cos_sin": lambda of, n: (of.ids(2, n), posenc.Rope(8).text),
    "sinusoid": lambda of, n: (of.ids(2, n), posenc.Sinusoid(8).text, torch.float32),
    "sinusoid_add": lambda of, n: (of(2, n, 8), of.ids(2, n), None, posenc.Sinusoid(8).text, 2.0),
    "timestep": lambda of, n: (of.plain(n), posenc.Sinusoid(8).text, torch.float32),
    "fixed": lambda of, n: (of.plain(2, n), 8),
    "grid_add": lambda of, n: (of(2, n, 8), GRID, 2, n // 2, 1, 2.0),
    "grid": lambda of, n: (of.ids(2, 2, n) > 3, GRID, 2, n, 1, True, 6.28, 0.0, torch.float32, torch.device("cpu")),
    "learned": lambda of, n: (
        *(None, of.ids(2, n), of.ids(2, n) % 2, None, None, of(16, 8), of(16, 8), of(2, 8), of(8), of(8)),
        LEARNED.text,
    ),
    "resample": lambda of, n: (of(5, 8), posenc.Resample((2, 2), (3, 3), 1).text),
    "bias": lambda of, n: (
        *(of(32, 2), [], of.ids(2, n).int(), None, None, 0),
        *(posenc.T5(2).text, 2, n, 4, torch.float32, torch.device("cpu")),
    ),
    "softmax": lambda of, n: (
        *(of(2, 2, n, 4), of(32, 2), [], of.plain(2, 1, n, 4), of(2), *[None] * 8, None, 0),
        *(posenc.Softmax(0.5, softcap=5.0).text, posenc.T5(2).text),
    ),
    "softmax of terms": lambda of, n: (
        *(of(2, 2, 4 * (n > 0), 4), None, [of(9, 2)], *[None] * 10, None, 0),
        *(posenc.Softmax(0.5).text, WINDOW.text),
    ),
    "merge": lambda of, n: (of(2, n, 3, 8), of(2, 3, n), of(2, n, 3, 8), of(2, 3, n), "bthd"),
    "prologue": lambda of, n: (
        *(of.plain(2, n, 3, 8), of.plain(2, n, 1, 8), of.plain(2, n, 1, 8)),
        *([of.plain(8), None, of.plain(8), None, None, of.plain(1, 8)], of.ids(2, n), None, None),
        *(torch.zeros(2, 16, 1, 8), torch.zeros(2, 16, 1, 8), *[None] * 4, [None] * 3, "same,same,same"),
        *(of.ids(2, n), None, None, None, PROLOGUE, True, "bthd", "bthd"),
    ),
}


class Maker:
    """Tensors of one layout."""

    def __init__(self, layout):
        self.layout, self.count = layout, 0

    def __call__(self, *shape, grad=True):
        self.count += 1
        return view(self.layout, shape, self.count, grad)

    def plain(self, *shape):
        return self(*shape, grad=False)

    def ids(self, *shape):
        return self(*shape, grad=False).mul(5).long().abs().remainder(16)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", ["expanded", "sliced", "transposed", "empty"])
def test_opcheck_of_every_operation(name, layout):
    opcheck(getattr(OPS, name.split()[0]).default, EVERY[name](Maker(layout), 0 if layout == "empty" else 4))


def test_every_operation_is_checked():
    forward = {name for name in pt.__all__ if name != "score_mod"}
    assert forward - {name.split()[0] for name in EVERY} == {"rope_", "sinusoid_add_"}


# ------------------------------------------------------------------------------------------------------------ gradients


def check(got, reference, inputs, *, bound=2e-5):
    """Values and gradients against a function of f64."""
    doubles = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    want = reference(*doubles)
    assert (got.double() - want).abs().max() < bound
    weights = values(*got.shape, seed=9)
    own = torch.autograd.grad((got * weights).sum(), [x for x in inputs if x is not None], retain_graph=True)
    true = torch.autograd.grad((want * weights.double()).sum(), [x for x in doubles if x is not None])
    for a, b in zip(own, true, strict=True):
        assert a.shape == b.shape and (a.double() - b).abs().max() < bound, (a, b)


def rotated(x, positions, base=10_000.0):
    dim = x.shape[-1]
    angle = positions.double()[..., None, None] * base ** (-torch.arange(dim // 2, dtype=torch.float64) * 2 / dim)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


@pytest.mark.parametrize("far", [0, 1_000_000])
def test_rope_and_its_gradient(far):
    rope = posenc.Rope(8, attention_factor=1.5)
    q, k = values(2, 5, 3, 8, grad=True), values(2, 5, 2, 8, seed=2, grad=True)
    ids = IDS + far
    out = pt.rope(q, k, spec=rope, positions=ids)
    check(out[0], lambda x: 1.5 * rotated(x, ids), [q])
    check(out[1], lambda x: 1.5 * rotated(x, ids), [k])
    turned = pt.rope(q.transpose(1, 2), spec=rope, positions=ids, layout="bhtd")
    assert (turned.transpose(1, 2) == out[0]).all()
    # only one of them is used
    pt.rope(q, k, spec=rope)[1].sum().backward()
    assert (q.grad == 0).all() and (k.grad != 0).any()


def test_xpos_has_the_gradient_of_its_scale():
    xpos = posenc.XPos(posenc.Rope(8))
    q, k = values(1, 5, 1, 8, grad=True), values(1, 5, 1, 8, seed=2, grad=True)
    for at, (x, side) in enumerate(((q, "query"), (k, "key"))):
        out = pt.rope(x, spec=xpos, side=side)
        eye = torch.eye(8).reshape(8, 1, 1, 8).expand(8, 5, 1, 8).contiguous()
        matrix = pt.rope(eye, spec=xpos, side=side)[:, :, 0].double()  # [in, token, out]
        check(out, lambda x, m=matrix: torch.einsum("bthi,ito->btho", x, m), [x])
        both = pt.rope(q, k, spec=xpos)[at]
        check(both, lambda x, m=matrix: torch.einsum("bthi,ito->btho", x, m), [x])


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_the_gradient_moves_pairs_back(pairing):
    moved = posenc.Rope(6, pairing=pairing, offset=1, repaired=True)
    for spec in (moved, posenc.XPos(moved)):
        q, k = values(1, 3, 2, 8, grad=True), values(1, 3, 1, 8, seed=2, grad=True)
        eye = torch.eye(8).reshape(8, 1, 1, 8).expand(8, 3, 1, 8).contiguous()
        for at, (x, side) in enumerate(((q, "query"), (k, "key" if spec != moved else "query"))):
            matrix = pt.rope(eye, spec=spec, side=side)[:, :, 0].double()  # [in, token, out]
            reference = lambda x, m=matrix: torch.einsum("bthi,ito->btho", x, m)
            check(pt.rope(x, spec=spec, side=side), reference, [x])
            check(pt.rope(q, k, spec=spec)[at], reference, [x])


def test_second_gradients_of_rope():
    q = values(1, 3, 1, 8, grad=True)
    out = pt.rope(q, spec=posenc.Rope(8))
    (first,) = torch.autograd.grad((out**3).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), q)
    double = q.detach().double().requires_grad_()
    want = rotated(double, torch.arange(3))
    (true,) = torch.autograd.grad((want**3).sum(), double, create_graph=True)
    (true,) = torch.autograd.grad(true.sum(), double)
    assert (second.double() - true).abs().max() < 1e-4


def test_learned_embedding_and_its_gradients():
    arguments = learned_arguments()
    ids, kinds, tables = arguments[1], arguments[2], arguments[5:10]

    def reference(token, position, types, gain, bias):
        total = token[ids] * 2.0 + position[:3] + types[kinds]
        return torch.nn.functional.layer_norm(total, (8,), gain, bias, 1e-5)

    names = ("token", "position", "types", "gain", "bias")
    out = pt.learned(ids, kinds=kinds, spec=LEARNED, **dict(zip(names, tables, strict=True)))
    check(out, reference, tables, bound=5e-5)
    x, position = values(2, 3, 8, grad=True), tables[1]
    out = pt.learned(x=x, position=position, spec=posenc.Learned(8))
    check(out, lambda x, position: x + position[:3], [x, position])


def test_parts_of_attention_are_merged_with_gradients():
    def reference(a, a_lse, b, b_lse, layout="bthd"):
        lse = torch.logaddexp(a_lse, b_lse)
        move = (lambda x: x.transpose(1, 2)[..., None]) if layout == "bthd" else (lambda x: x[..., None])
        return a * move((a_lse - lse).exp()) + b * move((b_lse - lse).exp()), lse

    for layout, shape in (("bthd", (2, 5, 3, 8)), ("bhtd", (2, 3, 5, 8))):
        a, b = values(*shape, grad=True), values(*shape, seed=2, grad=True)
        lses = [values(2, 3, 5, seed=seed, grad=True) for seed in (3, 4)]
        inputs = [a, lses[0], b, lses[1]]
        for at in range(2):
            out = pt.merge(*inputs, layout=layout)[at]
            own = [inputs[1], inputs[3]] if at else inputs
            whole = lambda *x, layout=layout: reference(*x, layout)[0]
            check(out, torch.logaddexp if at else whole, own)
        out, lse = pt.merge(*inputs, layout=layout)
        (together,) = torch.autograd.grad(out.sum() + lse.sum(), [a])
        (apart,) = torch.autograd.grad(pt.merge(*inputs, layout=layout)[0].sum(), [a])
        assert (together == apart).all()
        opcheck(OPS.merge.default, (*inputs, layout))
    sliced = [values(2, 4, 3, 8)[:, :2], values(2, 3, 2), values(2, 3, 2, 8, seed=2).transpose(1, 2), values(2, 3, 2)]
    opcheck(OPS.merge.default, (*sliced, "bthd"))
    opcheck(OPS.merge.default, (values(2, 1, 3, 1, grad=True).expand(2, 2, 3, 8), *sliced[1:], "bthd"))
    opcheck(
        OPS.merge.default,
        (*(x[:, :0] for x in (sliced[0],)), values(2, 3, 0), values(2, 0, 3, 8), values(2, 3, 0), "bthd"),
    )
    none = torch.full((2, 3, 2), float("-inf"))
    out, lse = pt.merge(*sliced[:3], none)
    assert (out == sliced[0]).all() and (lse == sliced[1]).all()


def test_other_embeddings():
    sinusoid = posenc.Sinusoid(8)
    table = pt.sinusoid(IDS, spec=sinusoid)
    assert table.shape == (2, 5, 8)
    x = values(2, 5, 8, grad=True)
    check(pt.sinusoid_add(x, spec=sinusoid, scale=3.0, positions=IDS), lambda x: 3 * x + table.double(), [x])
    own = x.detach().clone()
    assert pt.sinusoid_add_(own, spec=sinusoid, scale=3.0, starts=IDS[:, 0]) is own
    assert (own == pt.sinusoid_add(x, spec=sinusoid, scale=3.0, positions=IDS)).all()
    assert (pt.timestep(torch.tensor([2.0]), spec=sinusoid) == pt.sinusoid(torch.tensor([2]), spec=sinusoid)).all()
    grid = posenc.Grid((("rows", sinusoid), ("columns", sinusoid)))
    whole = pt.grid(2, 3, spec=grid)
    x = values(2, 6, 16, grad=True)
    check(pt.grid_add(x, 2, 3, spec=grid, scale=0.5), lambda x: 0.5 * x + whole.double(), [x])
    assert pt.grid(spec=grid, mask=torch.ones(2, 2, 3, dtype=torch.bool)).shape == (2, 6, 16)
    spec = posenc.Resample((2, 2), (4, 4), 0, filter="bilinear")
    table = values(4, 8, grad=True)

    def reference(table):
        image = table.T.reshape(1, 8, 2, 2)
        return torch.nn.functional.interpolate(image, size=(4, 4), mode="bilinear").reshape(8, 16).T

    check(pt.resample(table, spec=spec), reference, [table])
    assert pt.fixed(torch.tensor([0.5]), 2).tolist() == [2]


def distances(queries, keys):
    return torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)


def test_softmax_with_a_trained_table():
    logits, table, sinks = values(2, 2, 5, 5, grad=True), values(32, 2, seed=2, grad=True), values(2, seed=3, grad=True)
    t5, spec = posenc.T5(2, bidirectional=True), posenc.Softmax(0.5)
    buckets = torch.from_numpy(t5.bucket(distances(5, 5).reshape(-1).numpy())).reshape(5, 5)

    def reference(logits, table, sinks):
        z = logits * 0.5 + table[buckets].permute(2, 0, 1)
        sink = sinks[:, None, None].expand(2, 2, 5, 1)
        return torch.softmax(torch.cat([z, sink], -1), -1)[..., :5]

    out, lse = pt.softmax(logits, spec=spec, bias=t5, table=table, sinks=sinks, with_lse=True)
    check(out, reference, [logits, table, sinks])
    assert not lse.requires_grad
    # a new table is another result
    again = pt.softmax(logits, spec=spec, bias=t5, table=2 * table, sinks=sinks)
    assert (again != out).any()
    assert (pt.softmax(logits, spec=spec, bias=t5, table=table, sinks=sinks) == out).all()
    check(pt.bias(5, 5, spec=t5, table=table), lambda table: table[buckets].permute(2, 0, 1)[None], [table])


def test_softmax_with_terms_mask_and_softcap():
    logits, table, dense = values(1, 2, 4, 4, grad=True), values(9, 2, grad=True), values(1, 2, 4, 4, seed=3, grad=True)
    terms = posenc.Terms(posenc.Term.swin(2, 2), posenc.Term.whole().scaled(2.0), heads=2)
    r, c = torch.arange(4) // 2, torch.arange(4) % 2
    index = (r[:, None] - r + 1) * 3 + c[:, None] - c + 1
    mask = torch.zeros(1, 1, 1, 4).masked_fill(torch.tensor([False, True, False, False]), -torch.inf)

    def reference(logits, table, dense):
        z = torch.tanh(logits * 0.5 / 3) * 3 + table[index].permute(2, 0, 1) + 2 * dense
        return torch.softmax(z + mask, -1)

    spec = posenc.Softmax(0.5, softcap=3.0)
    out = pt.softmax(logits, spec=spec, bias=terms, numbers=[table, dense], mask=mask)
    check(out, reference, [logits, table, dense])
    check(
        pt.bias(4, 4, spec=terms, numbers=[table, dense]),
        lambda table, dense: table[index].permute(2, 0, 1) + 2 * dense,
        [table, dense],
    )


def test_gradients_that_are_missing_are_errors():
    logits = values(1, 2, 3, 3, grad=True)
    out = pt.softmax(logits, spec=posenc.Softmax(), mask=values(1, 1, 3, 3, grad=True))
    with pytest.raises(posenc.Error, match="the softmax has no gradient of the mask, which requires grad"):
        out.sum().backward()


# ------------------------------------------------------------------------------------------------------------- compiled


class Layer(torch.nn.Module):
    """What a decoder does with positions, and what an encoder does."""

    def __init__(self):
        super().__init__()
        self.rope, self.alibi = posenc.Rope(8), posenc.Alibi(2)
        self.softmax, self.t5 = posenc.Softmax(0.5, right=0), posenc.T5(2)
        self.table = torch.nn.Parameter(values(32, 2))
        self.learned = posenc.Learned(16)
        self.positions = torch.nn.Parameter(values(8, 16, seed=4))

    def forward(self, x):
        x = pt.learned(x=x, position=self.positions, spec=self.learned)
        q, k = (x * 2).view(1, -1, 2, 8), (x * 3).view(1, -1, 2, 8)
        q, k = pt.rope(q, k, spec=self.rope)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k)
        p = pt.softmax(logits, spec=self.softmax, bias=self.alibi)
        return pt.softmax(p * 4, spec=self.softmax, bias=self.t5, table=self.table).sum(-1).square()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_layer_compiles_whole(backend):
    layer, x = Layer(), values(1, 6, 16)
    want = layer(x)
    gradients = torch.autograd.grad(want.sum(), list(layer.parameters()))
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    got = compiled(x)
    assert (got - want).abs().max() < 1e-6
    for a, b in zip(torch.autograd.grad(got.sum(), list(layer.parameters())), gradients, strict=True):
        assert (a - b).abs().max() < 1e-5
    # another length
    x = values(1, 7, 16)
    assert (compiled(x) - layer(x)).abs().max() < 1e-6


def test_in_place_compiles():
    rope, ids = posenc.Rope(8), torch.arange(4)

    def step(q, k):
        q, k = q * 2, k * 3
        pt.rope_(q, k, spec=rope, positions=ids)
        return q + 1, k + 1

    q, k = values(1, 4, 2, 8), values(1, 4, 1, 8, seed=2)
    for a, b in zip(torch.compile(step, fullgraph=True)(q, k), step(q, k), strict=True):
        assert (a == b).all()


# -------------------------------------------------------------------------------------------------------------- refused


def test_bad_input_is_an_error():
    rope = posenc.Rope(8)
    q = values(1, 4, 2, 8)
    for make, sentence in (
        (lambda: pt.rope(q.double(), spec=rope), "q is float64"),
        (lambda: pt.rope(q, q.half(), spec=rope), "k is float16, q is float32"),
        (lambda: pt.rope(q, spec=rope, layout="thd"), "layout is 'thd'"),
        (lambda: pt.rope(q, spec="{}"), "spec"),
        (lambda: pt.rope_(values(1, 4, 8, 2).transpose(2, 3), spec=rope), "its last dimension must be contiguous"),
        (lambda: pt.rope_(q[:, :1].expand(1, 4, 2, 8), spec=rope), "q"),
        (lambda: pt.rope_(values(1, 4, 2, 8, grad=True), spec=rope), "q requires grad and is changed in place"),
        (lambda: pt.rope_(values(1, 4, 2, 8, grad=True) * 1, spec=rope), "q requires grad and is changed in place"),
        (lambda: posenc.Rope(8).rotate(q.to_sparse()), "q has the layout torch.sparse_coo, it must be strided"),
        (lambda: pt.rope(q, spec=rope, positions=torch.zeros(4)), "positions is float32"),
        (lambda: pt.rope(q, spec=rope, positions=torch.zeros(3, dtype=torch.int64)), "positions has the shape"),
        (lambda: pt.softmax(q, spec=posenc.Softmax(), bias=posenc.Alibi(3)), "3"),
        (lambda: pt.softmax(q, spec=posenc.Softmax(), table=values(32, 2)), "table is given with no bias, it is T5's"),
        (lambda: pt.learned(spec=LEARNED), "a learned embedding needs x"),
        (lambda: pt.learned(torch.tensor([[99]]), token=values(10, 8), spec=posenc.Learned(8)), "99"),
    ):
        with pytest.raises((posenc.Error, RuntimeError), match=sentence):
            make()
            pytest.fail(f"nothing was raised in place of {sentence!r}")
    with torch.no_grad():
        leaf = values(1, 4, 2, 8, grad=True)
        pt.rope_(leaf, spec=rope)


def test_the_core_takes_torch_tensors():
    rope, q = posenc.Rope(8), values(2, 4, 2, 8, dtype=torch.bfloat16)
    out = rope.rotate(q)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.bfloat16 and out.device == q.device
    want = rotated(q.double(), torch.arange(4))
    assert (out.double() - want).abs().max() < 2e-2
    with pytest.raises(posenc.Error, match="q is a lazy conjugate or negative"):
        rope.rotate(torch._neg_view(q.float()))
    with pytest.raises(posenc.Error, match="on meta"):
        rope.rotate(q.to("meta"))
    alias = q.clone()
    with pytest.raises(posenc.Error, match="may overlap in one buffer"):
        rope.rotate(alias[:, :, :1], alias[:, :, 1:], out=alias[:, :, 1:])


def test_threads_train_their_own_tables():
    import threading

    logits, spec, t5 = values(1, 2, 4, 4), posenc.Softmax(), posenc.T5(2)
    tables = [values(32, 2, seed=seed) for seed in range(4)]
    want = [pt.softmax(logits, spec=spec, bias=t5, table=table) for table in tables]
    wrong = []

    def work(at):
        for _ in range(50):
            if (pt.softmax(logits, spec=spec, bias=t5, table=tables[at]) != want[at]).any():
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_calls_of_the_same_sizes_are_not_mixed_up():
    """A call whose sizes are known goes a shorter way: other tensors, sizes, layouts and options must not meet
    there."""
    rope, generator = posenc.Rope(8), torch.Generator().manual_seed(3)
    cases = itertools.product(((2, 4), (4, 2)), (torch.float32, torch.bfloat16), ("bthd", "bhtd"), (False, True))
    for (heads, tokens), dtype, layout, inverse in 3 * list(cases):
        shape = (2, tokens, heads, 8) if layout == "bthd" else (2, heads, tokens, 8)
        q, k = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        ids = torch.randint(0, 1000, (2, tokens), generator=generator)
        arguments = {"positions": ids, "layout": layout, "inverse": inverse}
        for x, out in ((q, rope.rotate(q, **arguments)), *zip((q, k), rope.rotate(q, k, **arguments), strict=True)):
            own = x.double() if layout == "bthd" else x.double().transpose(1, 2)
            want = rotated(own, -ids if inverse else ids)
            want = want if layout == "bthd" else want.transpose(1, 2)
            assert (out.double() - want).abs().max() < (1e-5 if dtype == torch.float32 else 5e-2)
            assert out.data_ptr() != x.data_ptr()
    q = values(1, 4, 2, 8)
    for _ in range(2):
        with pytest.raises(posenc.Error, match="requires grad"):
            rope.rotate_(q.clone().requires_grad_(), positions=torch.arange(4))
        rope.rotate_(q, positions=torch.arange(4))
        with pytest.raises(posenc.Error, match="k is on meta"):
            rope.rotate_(q, q.to("meta"), positions=torch.arange(4))
        with pytest.raises(posenc.Error, match="positions"):
            rope.rotate_(q, positions=torch.arange(4.0))
        sliced = torch.arange(8)[::2]
        with pytest.raises(posenc.Error, match="must be contiguous"):
            rope.rotate_(q, positions=sliced)
