"""Biases as `score_mod` of FlexAttention: the attention of the bias that is written."""

import os

import pytest

if os.environ.get("POSENC_TEST_ALL") is None:
    pytest.importorskip("torch", reason="torch is not installed")

import posenc
import posenc.torch as pt
import torch
from torch.nn.attention.flex_attention import flex_attention

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def values(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WINDOW = posenc.Terms(posenc.Term.swin(2, 4).scaled(2.0), heads=2)
SHAW = posenc.Terms(posenc.Term.distance(-2, 5, outside="zero"), heads=2)
TABLE = values(32, 2, seed=7)


@pytest.mark.parametrize(
    ("spec", "queries", "keys", "table"),
    [
        (posenc.Alibi(2), 5, 8, None),
        (posenc.Alibi(2, sides="signed"), 8, 8, None),
        (posenc.Alibi(2, sides="halves"), 8, 8, None),
        (posenc.Slopes([0.5, 0.25], [1.0, 2.0]), 8, 8, None),
        (posenc.T5(2, bidirectional=True, table=TABLE.numpy()), 5, 8, None),
        (posenc.T5(2), 8, 8, TABLE),
        (posenc.Kerple("log", [0.5, 1.0], [1.0, 2.0], -16, 16), 5, 8, None),
        (posenc.Sandwich(2, -16, 16), 8, 8, None),
        (WINDOW, 8, 8, values(21, 2)),
        (SHAW, 6, 8, values(5, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, posenc.Bias) else None,
)
def test_attention_with_a_score_mod(spec, queries, keys, table):
    q, k, v = values(2, 2, queries, 16), values(2, 2, keys, 16, seed=2), values(2, 2, keys, 16, seed=3)
    of_terms = isinstance(spec, posenc.Terms)
    arguments = {"numbers": [table]} if of_terms else {"table": table}
    bias = pt.bias(queries, keys, spec=spec, **arguments)
    want = torch.softmax(q @ k.mT * 0.25 + bias, -1) @ v
    got = flex_attention(q, k, v, score_mod=pt.score_mod(spec, queries, keys, table=table), scale=0.25)
    assert (got - want).abs().max() < 2e-6


def test_a_table_has_its_gradient():
    """By the function itself: FlexAttention has no gradient on the CPU."""
    logits, table = values(1, 2, 6, 6), values(32, 2, seed=4).requires_grad_()
    t5, softmax = posenc.T5(2), posenc.Softmax()
    b, h, q, k = torch.meshgrid(*map(torch.arange, logits.shape), indexing="ij")
    out = torch.softmax(pt.score_mod(t5, 6, 6, table=table)(logits, b, h, q, k), -1)
    (got,) = torch.autograd.grad(out.square().sum(), table)
    own = pt.softmax(logits, spec=softmax, bias=t5, table=table)
    (want,) = torch.autograd.grad(own.square().sum(), table)
    assert (got - want).abs().max() < 1e-5


def test_what_is_no_score_mod():
    fire = posenc.Fire([1.0], [0.0], [[1.0], [1.0]], [0.0, 0.0])
    for spec, sentence in (
        (fire, "Fire is no score_mod"),
        (posenc.Terms(posenc.Term.shaw(2, 2), heads=2), "Terms is no score_mod"),
        (posenc.Terms(posenc.Term.whole(), heads=2), "a term without a table is no score_mod"),
        (posenc.T5(2), "T5 needs a table"),
        (posenc.Row([[1.0, 2.0]], 0, key_only=True), "Row is no score_mod"),
        (posenc.Slopes([[0.5], [0.25]]), "slopes of each sequence are no score_mod"),
    ):
        with pytest.raises(posenc.Error, match=sentence):
            pt.score_mod(spec, 4, 4)
