"""The device's side, through buffers and streams of cuda.core: on a GPU, or on the emulator of the driver."""

import ctypes
import os

import numpy as np
import posenc
import pytest
from posenc import _plan

if os.environ.get("POSENC_TEST_DEVICE") is None:
    pytest.skip("a device is asked for by cargo xtask test-adapters", allow_module_level=True)

from cuda.core import Device, LegacyPinnedMemoryResource

F32 = np.float32
DEVICE = Device(0)
DEVICE.set_current()
PINNED = LegacyPinnedMemoryResource()


class Array:
    """A buffer of cuda.core with a shape and a type."""

    def __init__(self, array, stream, names=None):
        self.stream, self.dtype, self.shape, self.names = stream, array.dtype, array.shape, names
        self.buffer = DEVICE.allocate(max(array.nbytes, 1), stream=stream)
        staged = PINNED.allocate(max(array.nbytes, 1), stream=stream)
        ctypes.memmove(int(staged.handle), np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.buffer.copy_from(staged, stream=stream)
        stream.sync()

    @property
    def __cuda_array_interface__(self):
        return {
            **{"data": (int(self.buffer.handle), False), "shape": self.shape, "typestr": self.dtype.str, "version": 3},
            "stream": self.names,
        }

    def numpy(self):
        staged = PINNED.allocate(self.buffer.size, stream=self.stream)
        self.buffer.copy_to(staged, stream=self.stream)
        self.stream.sync()
        out = np.empty(self.shape, self.dtype)
        ctypes.memmove(out.ctypes.data, int(staged.handle), out.nbytes)
        return out


def values(*shape, seed=1, dtype=F32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def stream():
    posenc.clear()
    own = DEVICE.create_stream()
    yield own
    own.sync()
    posenc.clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_rope_on_the_device_is_that_of_the_cpu(stream, dtype, pairing):
    rope = posenc.Rope(32, pairing=pairing, scaling=posenc.Llama3(8.0))
    q, k = values(2, 5, 4, 32, dtype=dtype), values(2, 5, 2, 32, seed=2, dtype=dtype)
    ids = np.array([[0, 1, 7, 131_071, 2**31 - 1], [3, 4, 5, 6, 7]])
    want = rope.rotate(q, k, positions=ids)
    ours = [Array(x, stream) for x in (q, k)]
    outs = [Array(np.zeros_like(x), stream) for x in (q, k)]
    rope.rotate(*ours, out=outs[0], k_out=outs[1], positions=Array(ids, stream), stream=stream)
    bound = 1e-6 if dtype == np.float32 else 4e-3
    for out, cpu, before, own in zip(outs, want, (q, k), ours, strict=True):
        assert np.abs(out.numpy().astype(F32) - cpu.astype(F32)).max() < bound
        assert (own.numpy() == before).all()
    rope.rotate_(*ours, positions=Array(ids, stream), stream=stream)
    assert (ours[0].numpy() == outs[0].numpy()).all()
    rope.rotate_(*ours, positions=Array(ids, stream), inverse=True, stream=stream)
    assert np.abs(ours[1].numpy().astype(F32) - k.astype(F32)).max() < 2 * bound + 1e-6


def test_streams_share_plans(stream):
    other, rope = DEVICE.create_stream(), posenc.Rope(8)
    x = values(4, 2, 8)
    want = rope.rotate(x)
    posenc.clear()
    first, second = Array(x, stream), Array(x, other)
    rope.rotate_(first, stream=stream)
    rope.rotate_(second, stream=other)
    rope.rotate_(second, stream=other, inverse=True)
    rope.rotate_(second, stream=other)
    assert np.abs(first.numpy() - want).max() < 1e-6 and np.abs(second.numpy() - want).max() < 2e-6
    # one for each stream, which share what the default stream's has
    assert {key[2] for key in _plan._PLANS} == {(0, 0), (0, int(stream.handle)), (0, int(other.handle))}


def test_a_tensor_that_names_its_stream_is_waited_for(stream):
    other = DEVICE.create_stream()
    x = values(4, 2, 8)
    named = Array(x, other, names=int(other.handle))
    posenc.Rope(8).rotate_(named, stream=stream)
    stream.sync()
    assert np.abs(named.numpy() - posenc.Rope(8).rotate(x)).max() < 1e-6


def test_a_call_is_captured_in_a_graph(stream):
    rope, x = posenc.Rope(8), values(3, 2, 8)
    own, starts = Array(x, stream), Array(np.array([5], np.int32), stream)
    rope.rotate_(own, starts=starts, stream=stream)  # the plan is made before the capture
    builder = stream.create_graph_builder()
    builder.begin_building()
    rope.rotate_(own, starts=starts, stream=stream)
    graph = builder.end_building().complete()
    graph.upload(stream)
    for _ in range(2):
        graph.launch(stream)
    want = x
    for _ in range(3):
        want = rope.rotate(want, starts=5)
    assert np.abs(own.numpy() - want).max() < 4e-6


def test_embeddings_on_the_device(stream):
    sinusoid = posenc.Sinusoid(16)
    out = Array(np.zeros((4, 16), F32), stream)
    sinusoid.write(out, stream=stream)
    assert np.abs(out.numpy() - sinusoid.table(range(4))).max() < 1e-6
    spec, flag = posenc.Learned(16, scale=2.0), posenc.ErrorFlag(0, stream=stream)
    token, ids = values(10, 16), np.array([[3, 9]])
    want = spec.gather(np.empty((1, 2, 16), F32), posenc.Tables(token), posenc.Lookup(ids))
    out = Array(np.zeros((1, 2, 16), F32), stream)
    tables = posenc.Tables(Array(token, stream))
    spec.gather(out, tables, posenc.Lookup(Array(ids, stream)), flag=flag, stream=stream)
    flag.check()
    assert (out.numpy() == want).all()
    spec.gather(out, tables, posenc.Lookup(Array(ids + 1, stream)), flag=flag, stream=stream)
    with pytest.raises(posenc.Error, match="10"):
        flag.check()
    assert np.isnan(out.numpy()[0, 1]).all()


def test_dlpack_of_cuda_core(stream):
    """Its buffers lend themselves as bytes: a mask."""
    spec, mask = posenc.Learned(8, kept="mask", first=2, padded=1), np.array([[1, 0, 1]], np.int8)
    buffer = DEVICE.allocate(3, stream=stream)
    staged = PINNED.allocate(3, stream=stream)
    ctypes.memmove(int(staged.handle), mask.ctypes.data, 3)
    buffer.copy_from(staged, stream=stream)
    stream.sync()
    out = Array(np.zeros((1, 3), np.int64), stream)
    spec.rows(out, posenc.Lookup(mask=buffer), stream=stream)
    assert out.numpy().tolist() == [[2, 1, 3]]


def test_biases_on_the_device(stream):
    logits, table = values(1, 2, 5, 7), values(32, 2, seed=2)
    t5, spec = posenc.T5(2), posenc.Softmax(0.5, right=0)
    lse = Array(np.zeros((1, 2, 5), F32), stream)
    plan = t5.plan(device=0, stream=stream)
    plan.set_table(Array(table, stream))
    own = Array(logits, stream)
    spec.apply_(own, posenc.Inputs(plan), lse=lse, stream=stream)
    want_lse = np.empty((1, 2, 5), F32)
    want = spec.apply(logits, posenc.Inputs(posenc.T5(2, table=table)), lse=want_lse)
    assert np.abs(own.numpy() - want).max() < 1e-6 and np.abs(lse.numpy() - want_lse).max() < 1e-5
    numbers = plan.numbers().__cuda_array_interface__
    assert numbers["typestr"] == "<f4" and numbers["data"][0] != 0
    window = posenc.Terms(posenc.Term.swin(2, 2), heads=2)
    table = values(9, 2)
    out = Array(np.zeros((1, 2, 4, 4), F32), stream)
    window.write(out, terms=[posenc.TermInputs(Array(table, stream))], stream=stream)
    assert (out.numpy()[0] == window.matrix(4, 4, terms=[posenc.TermInputs(table)])).all()
    grad = values(1, 2, 4, 4, seed=3)
    place = Array(np.zeros((9, 2), F32), stream)
    posenc.TermGrad(posenc.Term.swin(2, 2), 1, 2, 4, 4).apply(Array(grad, stream), place, stream=stream)
    on_cpu = posenc.TermGrad(posenc.Term.swin(2, 2), 1, 2, 4, 4).apply(grad, np.zeros((9, 2), F32))
    assert np.abs(place.numpy() - on_cpu).max() < 1e-5


def test_the_prologue_on_the_device(stream):
    branch = posenc.Branch(rope=True, norm="rms", weight="one_plus_weight")
    spec = posenc.Prologue(posenc.Rope(16), branch, branch, posenc.Branch(bias=True))
    x = {name: values(1, 3, heads, 16, seed=heads) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    weight, bias, slots = values(16, seed=7), values(2, 16, seed=8), np.array([[4, -1, 2]])
    caches = np.zeros((2, 3, 2, 16), F32), np.zeros((2, 3, 2, 16), F32)

    def apply(place, stream=None):
        own = {name: place(array) for name, array in x.items()}
        cache = posenc.Cache(place(caches[0]), place(caches[1]), slots=place(slots))
        out = place(np.zeros_like(x["q"]))
        spec.apply(
            posenc.Projected(own["q"], weight=place(weight), out=out),
            posenc.Projected(own["k"], weight=place(weight), out="cache"),
            posenc.Projected(own["v"], bias=place(bias), out="place"),
            cache=cache,
            stream=stream,
        )
        return out, cache.k, cache.v, own["v"]

    want = apply(np.copy)
    for got, cpu in zip(apply(lambda array: Array(array, stream), stream), want, strict=True):
        assert np.abs(got.numpy() - cpu).max() < 2e-6


@pytest.mark.parametrize("code", ["e4m3", "e5m2", "int8"])
def test_codes_on_the_device(stream, code):
    spec = posenc.Prologue(posenc.Rope(16), posenc.Branch(rope=True), posenc.Branch(rope=True))
    x = [values(1, 3, 2, 16, seed=seed) for seed in range(3)]

    def apply(place, stream=None):
        keys, codes = place(np.zeros((2, 3, 2, 16), np.uint8)), place(np.zeros((1, 3, 2, 16), np.uint8))
        vals, given = place(np.zeros((2, 3, 2, 32), np.uint8)), place(np.array([0.02, 0.03], F32))
        scales = place(np.zeros((2, 3, 2), F32))
        kept = posenc.Codes(keys, code, scales_out=scales), posenc.Codes(vals, code)
        cache = posenc.Cache(*kept, slots=place(np.array([[4, -1, 2]])))
        q, k, v = (posenc.Projected(place(array), out="cache") for array in x)
        spec.apply(q, k, v, cache=cache, q_codes=posenc.Codes(codes, code, scales=given), stream=stream)
        return keys, vals, codes, scales

    want = apply(np.copy)
    for got, cpu in zip(apply(lambda array: Array(array, stream), stream), want, strict=True):
        own = got.numpy()
        if cpu.dtype == F32:
            assert np.abs(own - cpu).max() < 1e-8
            continue
        # a value in the middle of two codes may have another nearest one
        same = own == cpu
        assert same.mean() > 0.95 and np.abs(own.astype(int) - cpu)[~same].max(initial=0) <= 1


def test_bad_input_is_an_error_and_the_device_goes_on(stream):
    rope, x = posenc.Rope(8), values(4, 2, 8)
    own = Array(x, stream)

    class Nowhere:
        """An address of the host that claims to be the device's."""

        __cuda_array_interface__ = {"data": (x.ctypes.data, False), "shape": (4, 2, 8), "typestr": "<f4", "version": 3}

    for make, sentence in (
        (lambda: rope.rotate_(own, Array(values(4, 1, 6), stream), stream=stream), "6"),
        (lambda: rope.rotate_(own, values(4, 1, 8), stream=stream), "k is on cpu, q is on cuda:0"),
        (lambda: rope.rotate_(own, positions=np.arange(4), stream=stream), "positions is on cpu, q is on cuda:0"),
        (lambda: rope.rotate_(own, positions=[1, 2, 3, 4], stream=stream), "it must be a tensor"),
        (lambda: rope.rotate(own, stream=stream), "posenc cannot make arrays of Array: give the place of the result"),
        (lambda: rope.rotate_(Array(values(4, 2, 8, dtype=np.float64), stream), stream=stream), "q is float64"),
        (lambda: rope.rotate_(Nowhere(), stream=stream), "which is no memory of a device"),
        (lambda: rope.rotate_(own, stream="fast"), "stream is str, it must be an address or a stream of a library"),
        (lambda: posenc.ErrorFlag(99), "99"),
    ):
        with pytest.raises((posenc.Error, ValueError), match=sentence):
            make()
    rope.rotate_(own, stream=stream)
    assert np.abs(own.numpy() - rope.rotate(x)).max() < 1e-6


@pytest.mark.skipif(not DEVICE.name.startswith("Emulator"), reason="a GPU's pool keeps memory that is freed")
def test_a_buffer_that_is_freed_is_an_error(stream):
    own = Array(values(4, 2, 8), stream)

    class Stale:
        __cuda_array_interface__ = own.__cuda_array_interface__

    posenc.Rope(8).rotate_(Stale(), stream=stream)
    stream.sync()
    own.buffer.close(stream)
    stream.sync()
    with pytest.raises(posenc.Error, match="which is no memory of a device"):
        posenc.Rope(8).rotate_(Stale(), stream=stream)


def test_a_stream_that_is_gone_leaves_its_plans_to_others():
    posenc.clear()
    x = values(4, 2, 8)
    for _ in range(3):
        passing = DEVICE.create_stream()
        own = Array(x, passing)
        posenc.Rope(8).rotate_(own, stream=passing)
        assert np.abs(own.numpy() - posenc.Rope(8).rotate(x)).max() < 1e-6
        own.buffer.close(passing)
        passing.sync()
        passing.close()
    posenc.clear()


def test_a_closed_stream_is_an_error():
    posenc.clear()
    own, closed = DEVICE.create_stream(), DEVICE.create_stream()
    x = Array(values(4, 2, 8), own)
    address = int(closed.handle)
    closed.close()
    with pytest.raises(posenc.Error):
        posenc.Rope(8).rotate_(x, stream=address)
    posenc.clear()
    posenc.Rope(8).rotate_(x, stream=own)
    own.sync()
