"""RoPE against its formula, layouts, strides, positions, and what is refused."""

import array
import json

import numpy as np
import posenc
import pytest

F32 = np.float32


def values(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def rotated(x, positions, base=10_000.0, interleaved=False, divisors=None):
    """`[batch, tokens, heads, dim]` in f64."""
    dim = x.shape[-1]
    frequencies = base ** (-2.0 * np.arange(dim // 2) / dim) / (1.0 if divisors is None else divisors)
    angle = np.asarray(positions, np.float64)[..., None, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    out = x.astype(np.float64)
    a, b = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    first, second = x[..., a].astype(np.float64), x[..., b].astype(np.float64)
    out[..., a], out[..., b] = first * cos - second * sin, first * sin + second * cos
    return out


def close(got, want, bound=1e-6):
    assert np.abs(np.asarray(got, np.float64) - want).max(initial=0.0) < bound


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("ids", [np.int32, np.int64, np.uint32])
def test_rope_is_its_formula_at_every_position(pairing, ids):
    rope = posenc.Rope(16, pairing=pairing)
    positions = np.array([0, 1, 131_071, 2**31 - 1], ids)
    q, k = values(4, 3, 16), values(4, 2, 16, seed=2)
    before = q.copy()
    q_out, k_out = rope.rotate(q, k, positions=positions)
    # the truth in f64 is itself off by the angle's rounding, 2^31 * 2^-53
    close(q_out, rotated(q, positions, interleaved=pairing == "interleaved"))
    close(k_out, rotated(k, positions, interleaved=pairing == "interleaved"))
    assert (q == before).all()
    assert rope.rotate_(q, positions=positions) is q
    assert (q == q_out).all()
    close(rope.rotate(q, positions=positions, inverse=True), before.astype(np.float64))


def test_layouts_and_strides_give_the_same_bits():
    rope = posenc.Rope(8, offset=2)
    x, ids = values(2, 5, 3, 12), np.arange(10).reshape(2, 5)
    want = rope.rotate(x, positions=ids)
    assert (want[..., :2] == x[..., :2]).all() and (want[..., 10:] == x[..., 10:]).all()
    turned = np.ascontiguousarray(x.swapaxes(1, 2))
    assert (rope.rotate(turned, positions=ids, layout="bhtd").swapaxes(1, 2) == want).all()
    # every second head of a larger tensor, and its view
    large = np.zeros((2, 5, 6, 24), F32)
    large[:, :, ::2, 4:16] = x
    assert (rope.rotate(large[:, :, ::2, 4:16], positions=ids) == want).all()
    rope.rotate_(large[:, :, ::2, 4:16], positions=ids)
    assert (large[:, :, ::2, 4:16] == want).all() and (large[:, :, 1::2] == 0).all()
    out = np.zeros((2, 5, 3, 12), F32)
    assert rope.rotate(x, positions=ids, out=out) is out and (out == want).all()
    # one head for all: a stride of zero is read
    shared = np.broadcast_to(x[:, :, :1], x.shape)
    assert (rope.rotate(shared, positions=ids)[:, :, 1] == want[:, :, 0]).all()


def test_positions_in_every_form_agree():
    rope = posenc.Rope(8)
    x = values(2, 4, 3, 8)
    by_ids = rope.rotate(x, positions=np.array([[7, 8, 9, 10], [0, 1, 2, 3]]))
    assert (rope.rotate(x, starts=[7, 0]) == by_ids).all()
    assert (rope.rotate(x[1:]) == by_ids[1:]).all()
    assert (rope.rotate(x, positions=[7, 8, 9, 10])[0] == by_ids[0]).all()
    assert (rope.rotate(x, starts=7)[0] == by_ids[0]).all()
    packed = x.reshape(1, 8, 3, 8)
    cu_seqlens = np.array([0, 4, 8], np.int32)
    assert (rope.rotate(packed, cu_seqlens=cu_seqlens, positions=[7, 0]).reshape(x.shape) == by_ids).all()
    assert rope.rotate(x[:, :0]).shape == (2, 0, 3, 8)


def test_several_axes():
    rope = posenc.Rope(8, axes=posenc.Axes("sections", (1, 1, 2)))
    x, ids = values(2, 4, 3, 8), np.arange(24).reshape(3, 2, 4)
    pairs = np.array([0, 1, 2, 2])
    want = np.stack([rotated(x, ids[axis])[..., [p, p + 4]] for p, axis in enumerate(pairs)], -2)
    got = rope.rotate(x, positions=ids)
    close(got[..., :4], want[..., 0])
    close(got[..., 4:], want[..., 1])
    one = rope.rotate(x[:1], positions=ids[:, 0])
    assert (one == got[:1]).all()
    with pytest.raises(posenc.Error, match="positions has 2 axes, the spec has 3"):
        rope.rotate(x, positions=ids[:2])


def test_half_types_round_once():
    rope = posenc.Rope(8)
    x = values(4, 2, 8).astype(np.float16)
    want = rotated(x, np.arange(4)).astype(np.float16)
    got = rope.rotate(x)
    assert got.dtype == np.float16 and (got == want).mean() > 0.9
    close(got, want.astype(np.float64), 2e-3)


def test_buffers_and_foreign_arrays():
    rope = posenc.Rope(4)
    x = array.array("f", [1, 1, 0, 0])
    view = memoryview(x).cast("B").cast("f", (1, 1, 4))
    rope.rotate_(view, positions=[100_000])
    assert abs(x[0] - np.cos(100_000)) < 1e-7
    got = rope.rotate(view, positions=[0])
    assert isinstance(got, np.ndarray)

    class Lent:
        """DLPack alone."""

        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __dlpack__(self, **arguments):
            return self.array.__dlpack__(**arguments)

    own = values(3, 2, 4)
    want = rope.rotate(own)
    rope.rotate_(Lent(own))
    assert (own == want).all()
    with pytest.raises(posenc.Error, match="posenc cannot make arrays of Lent: give the place of the result"):
        rope.rotate(Lent(own))
    fixed = own.copy()
    fixed.flags.writeable = False
    with pytest.raises(posenc.Error, match="q is read-only, and it is written"):
        rope.rotate_(Lent(fixed))


def test_laws_are_arrays():
    cos, sin = posenc.Rope(8, offset=4).cos_sin([0, 3, 1_000_000])
    angle = np.array([[0], [3], [1_000_000]]) * 10_000.0 ** (-np.arange(4) / 4)
    close(cos, np.cos(angle))
    close(sin, np.sin(angle))
    interleaved, _ = posenc.Rope(8, pairing="interleaved").cos_sin([0, 3, 1_000_000])
    assert (interleaved == cos).all()


def test_scalings():
    x = values(5, 1, 8)
    linear = posenc.Rope(8, scaling=posenc.Linear(4.0)).rotate(x)
    close(linear, rotated(x, np.arange(5) / 4.0))
    divisors = (1.0, 2.0, 3.0, 4.0)
    own = posenc.Rope(8, scaling=posenc.Divisors(divisors)).rotate(x)
    close(own, rotated(x, np.arange(5), divisors=np.array(divisors)))
    long = posenc.LongRope((1.0,) * 4, divisors, 16, length=17)
    assert (posenc.Rope(8, scaling=long).rotate(x) == own).all()
    for scaling in (
        posenc.Ntk(2.0),
        posenc.NtkMixed(2.0, 0.5),
        posenc.NtkDynamic(2.0, 16, 32),
        posenc.NtkStepped(16, 32),
        posenc.Llama3(8.0),
        posenc.Yarn(4.0, 2048),
        posenc.Proportional(2),
    ):
        rope = posenc.Rope(8, scaling=scaling)
        assert posenc.spec_of(rope.text) == rope
        cos, sin = rope.cos_sin([0, 1, 10_000])
        assert (cos[0] == 1).all() and (sin[0] == 0).all()
        close(cos.astype(np.float64) ** 2 + sin.astype(np.float64) ** 2, 1.0)
        assert (cos != posenc.Rope(8).cos_sin([0, 1, 10_000])[0]).any()
    assert abs(posenc.yarn_mscale(40.0) - (0.1 * np.log(40) + 1)) < 1e-12
    assert abs(posenc.mla_logit_scale(40.0, 1.0) - (0.1 * np.log(40) + 1) ** 2) < 1e-12
    assert posenc.longrope_attention_factor(1.0, 4096) == 1.0


def test_xpos_keeps_products():
    xpos = posenc.XPos(posenc.Rope(8))
    assert posenc.spec_of(xpos.text) == xpos
    q, k = values(6, 1, 8), values(6, 1, 8, seed=2)
    both = xpos.rotate(q, k)
    alone = xpos.rotate(k, side="key")
    assert (alone == both[1]).all() and (both[0] != posenc.Rope(8).rotate(q)).any()
    # the product depends on the distance alone
    same = np.broadcast_to(q[:1], q.shape), np.broadcast_to(k[:1], k.shape)
    q_out, k_out = xpos.rotate(*same)
    products = np.einsum("qhd,khd->qk", q_out.astype(np.float64), k_out.astype(np.float64))
    for distance in range(-5, 6):
        diagonal = np.diagonal(products, distance)
        close(diagonal, diagonal[0], 1e-5)


def test_tables_of_the_caller():
    rope = posenc.Rope(8)
    cos, sin = rope.cos_sin(np.arange(16))
    x = values(4, 2, 8)
    got = rope.rotate(x, positions=[3, 15, 0, 99], table=posenc.CosSin(cos, sin))
    close(got, rotated(x, np.array([3, 15, 0, 15])))
    flag = np.zeros(1, np.int32)
    both = np.concatenate([cos, sin], 1)
    got = rope.rotate(x, positions=[3, 15, 0, 99], table=posenc.CosSin(both, flag=flag))
    assert flag[0] == 1 and np.isnan(got[3]).all() and not np.isnan(got[:3]).any()


def test_frequencies_of_a_checkpoint():
    frequencies = (10_000.0 ** (-np.arange(4) / 4)).astype(F32)
    x = values(3, 1, 8)
    compat = posenc.Rope(8, angles="hf_compat", frequencies=tuple(map(float, frequencies)))
    angle = np.arange(3, dtype=F32)[:, None] * frequencies
    cos, sin = compat.cos_sin([0, 1, 2])
    close(cos, np.cos(angle.astype(np.float64)))
    close(compat.rotate(x), rotated(x, np.arange(3)), 1e-5)


def test_learned_frequencies_and_gradients():
    start = np.array([[[0.5, 0.25]], [[0.125, 1.0]]])
    rope = posenc.Rope(4, mixed=tuple(tuple(map(tuple, axis)) for axis in start.tolist()))
    learned = posenc.LearnedRope(rope)
    x, ids = values(1, 3, 2, 4), np.array([[[0, 1, 2]], [[5, 6, 7]]])
    assert (learned.rotate(x, positions=ids) == rope.rotate(x, positions=ids)).all()
    moved = (start * 2).astype(F32)
    learned.set_frequencies(moved)
    doubled = rope.rotate(x, positions=2 * ids)
    close(learned.rotate(x, positions=ids), doubled.astype(np.float64))
    # finite differences of a sum of products
    grad = values(1, 3, 2, 4, seed=3)
    back, out = rope.rotate(grad, positions=ids, inverse=True), np.zeros((2, 1, 2), F32)
    posenc.RopeGrad(rope).frequencies(x, back, out, positions=ids)
    step = 1e-3
    for index in np.ndindex(start.shape):
        losses = []
        for sign in (1, -1):
            own = start.copy()
            own[index] += sign * step
            turned = posenc.Rope(4, mixed=tuple(tuple(map(tuple, axis)) for axis in own.tolist()))
            losses.append((turned.rotate(x, positions=ids).astype(np.float64) * grad).sum())
        assert abs((losses[0] - losses[1]) / (2 * step) - out[index]) < 2e-2, index
    places = np.zeros((2, 1, 3), F32)
    posenc.RopeGrad(rope).positions(x, back, places)
    assert np.isfinite(places).all() and (places != 0).any()


def test_fractions_of_positions():
    units = posenc.fixed(np.array([0.5, -1.25, 3.0]), 2)
    assert units.dtype == np.int64 and units.tolist() == [2, -5, 12]
    x = values(3, 1, 8)
    got = posenc.Rope(8, fraction_bits=(2,)).rotate(x, positions=units)
    close(got, rotated(x, np.array([0.5, -1.25, 3.0])))
    with pytest.raises(posenc.Error, match="position 0 is NaN"):
        posenc.fixed(np.array([np.nan]), 2)


CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "rope_theta": 5e5}


def test_from_config():
    rope = posenc.Rope.from_config(CONFIG)
    assert rope.rotary == 16 and "llama" in rope.describe() and rope.model.layers == 2
    x = values(3, 2, 16)
    assert (rope.rotate(x) == posenc.Rope(16, base=5e5).rotate(x)).all()
    assert (rope.cos_sin([7])[0] == posenc.Rope(16, base=5e5).cos_sin([7])[0]).all()
    assert posenc.spec_of(rope.text) == rope
    assert posenc.Rope.from_config(json.dumps(CONFIG)).rotary == 16
    gptj = {"model_type": "gptj", "n_embd": 64, "n_head": 4, "rotary_dim": 8, "n_layer": 1, "n_positions": 64}
    rope = posenc.Rope.from_config(gptj)
    x = values(3, 4, 16)
    assert (rope.rotate(x) == posenc.Rope(8, pairing="interleaved").rotate(x)).all()
    assert (rope.cos_sin([7])[0] == posenc.Rope(8, pairing="interleaved").cos_sin([7])[0]).all()


def test_what_a_model_says():
    model = posenc.Model.from_config(CONFIG)
    layer = model.layer(1)
    assert (layer.has_rope, layer.head, layer.rotary, layer.offset, layer.logit_scale) == (True, 16, 16, 0, 1.0)
    assert layer.query_scale.at(5) == 1.0 and (model.name, model.context) == ("llama", 0)
    bloom = posenc.Model.from_config({"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 1})
    assert (bloom.added().bias, bloom.added().heads) == ("alibi", 4)
    with pytest.raises(posenc.Error, match='model_type is "nobody", which this crate does not know'):
        posenc.Model.from_config({"model_type": "nobody"})
    assert posenc.Model.from_config({**CONFIG, "model_type": "nobody"}, "llama").layers == 2
    with pytest.raises(posenc.Error, match="layer 2 is asked for, the model has 2"):
        model.layer(2)
    with pytest.raises(posenc.Error, match="does not rotate"):
        posenc.Rope.from_config({"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 1})


def test_positions_of_images():
    ids, following = posenc.span_positions([posenc.Span("text", 2), posenc.Span("patches", grid=(1, 4, 4))])
    assert ids.tolist() == [[0, 1, 2, 2, 2, 2], [0, 1, 2, 2, 3, 3], [0, 1, 2, 3, 2, 3]] and following == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"q": values(4, 2, 8).astype(np.float64)}, "q is float64, it must be float32, float16 or bfloat16"),
        ({"k": values(4, 2, 8).astype(np.float16)}, "k is float16, q is float32"),
        ({"q": values(4, 2, 16)[..., ::2]}, "its last dimension must be contiguous"),
        ({"q": values(4, 2, 8)[::-1]}, "they must not be negative: copy it first"),
        ({"q": values(4, 16)}, "it must be \\[tokens, heads, dim\\], or with a batch before it"),
        ({"q": object()}, "q is object, it must be a torch, numpy or CuPy array"),
        ({"q": values(4, 2, 6)}, "6"),
        ({"k": values(5, 2, 8)}, "5"),
        ({"positions": [1, 2]}, "positions has the shape \\[2\\]"),
        ({"positions": np.zeros(4)}, "positions is float64, it must be int32 or int64 or uint32"),
        ({"positions": np.zeros((3, 4), np.int64)}, "with 1 sequences"),
        ({"positions": [0] * 4, "starts": 3}, "positions and starts are given"),
        ({"layout": "thd"}, "layout is 'thd', it may be 'bthd' or 'bhtd'"),
        ({"cu_seqlens": np.array([0, 9], np.int32)}, "it must ascend from 0 to at most 4"),
        ({"out": np.zeros((4, 2, 8), np.float16)}, "q_out is float16, q is float32"),
        ({"out": np.zeros((3, 2, 8), F32)}, "3"),
        ({"out": np.broadcast_to(np.zeros(8, F32), (4, 2, 8))}, "q_out is read-only"),
    ],
)
def test_bad_input_is_an_error(arguments, sentence):
    arguments = {"q": values(4, 2, 8), **arguments}
    q, k = arguments.pop("q"), arguments.pop("k", None)
    with pytest.raises(posenc.Error, match=sentence):
        posenc.Rope(8).rotate(q, k, **arguments)


def test_bad_specs_are_errors():
    x = values(4, 2, 8)
    for rope, sentence in (
        (posenc.Rope(7), "rotary is 7, it must be even and at least 2"),
        (posenc.Rope(8, pairing="both"), "pairing is 'both', it may be 'half', 'interleaved'"),
        (posenc.Rope(8, base=-1.0), "base"),
        (posenc.Rope(8, scaling=posenc.LongRope((1.0,), (1.0, 1.0), 16)), "short holds 1 divisors, long 2"),
        (posenc.Rope(8, axes=posenc.Axes("table", (0, 1))), "the table of axes holds 2 pairs, 4 are rotated"),
        (posenc.Rope(8, frequencies=(1.0,)), "frequencies holds 1, 4 pairs are rotated"),
        (posenc.Rope(-8), "rotary is -8, which its type does not hold"),
    ):
        with pytest.raises((posenc.Error, ValueError), match=sentence):
            rope.rotate(x)
    overlapping = np.lib.stride_tricks.as_strided(np.zeros(16, F32), (4, 2, 8), (0, 32, 4))
    with pytest.raises(posenc.Error):
        posenc.Rope(8).rotate_(overlapping)
