"""posenc.py against the library, on the CPU and on any driver (functions of libcuda.so.1 itself). No PyTorch.

usage: test_posenc.py LIBRARY HEADER cpu|gpu
"""

import array
import ctypes
import importlib.util
import math
import struct
import sys
from ctypes import byref, c_int, c_uint64, c_void_p

import machine
import posenc

TOKENS, Q_HEADS, K_HEADS, DIM, BASE = 4, 3, 2, 16, 10000.0
POSITIONS = [0, 1, 1000, 131071]


class Driver:
    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
        device, context, stream = c_int(), c_void_p(), c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", byref(stream), 1)
        self.stream = stream.value

    def call(self, name, *args):
        status = getattr(self.c, name)(*args)
        assert status == 0, f"{name} gives {status}"

    def device(self, c):
        return c.gpu_new(0, self.stream, 0)

    def upload(self, data):
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), ctypes.c_size_t(len(data)))
        self.call("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        return address.value

    def read(self, address, n):
        self.call("cuStreamSynchronize", c_void_p(self.stream))
        data = ctypes.create_string_buffer(4 * n)
        self.call("cuMemcpyDtoH_v2", data, c_uint64(address), ctypes.c_size_t(4 * n))
        return list(struct.unpack(f"{n}f", data.raw))


class Host:
    """The same for plans on the CPU."""

    def __init__(self):
        self.kept = []

    def device(self, c):
        return c.cpu_new()

    def upload(self, data):
        self.kept.append(ctypes.create_string_buffer(data, len(data)))
        return ctypes.addressof(self.kept[-1])

    def read(self, address, n):
        return list((ctypes.c_float * n).from_address(address))


def floats(x):
    return struct.pack(f"{len(x)}f", *x)


def values(n):
    """What f32 holds of them."""
    return list(struct.unpack(f"{n}f", floats([(-1.0) ** (i % 3) * (0.5 + (i * 37 % 101) / 64) for i in range(n)])))


def rotated(x, heads, interleaved):
    y = list(x)
    for t, position in enumerate(POSITIONS):
        for h in range(heads):
            for i in range(DIM // 2):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + DIM // 2)
                a, b = ((t * heads + h) * DIM + c for c in (a, b))
                angle = position * BASE ** (-2 * i / DIM)
                y[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
                y[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return y


def close(got, want):
    worst = max(abs(g - w) for g, w in zip(got, want, strict=True))
    assert worst < 2e-6, worst


def rotates(c, driver, gpu):
    q, k = values(TOKENS * Q_HEADS * DIM), values(TOKENS * K_HEADS * DIM)
    for id_type, code in ((c.I32, "i"), (c.I64, "q")):
        ids = c.Ids(data=driver.upload(struct.pack(f"{TOKENS}{code}", *POSITIONS)), len=TOKENS, element=id_type)
        for pairing in (c.HALF, c.INTERLEAVED):
            spec = c.RopeSpec(rotary=DIM, base=BASE, attention_factor=1.0, pairing=pairing)
            rope = c.rope_new(gpu, spec, c.F32)
            buffer = lambda x: c.Buffer(data=driver.upload(floats(x)), len=len(x))
            operands = [(buffer(x), buffer(x), c.heads(TOKENS, n, DIM)) for x, n in ((q, Q_HEADS), (k, K_HEADS))]
            positions = c.Positions(kind=c.IDS, ids=ids)
            call = c.RopeCall(positions=positions)
            call.q, call.k = (c.Operand(x=x, heads=shape, out=y, out_heads=shape) for x, y, shape in operands)
            c.rope_rotate(rope, call)
            close(driver.read(operands[0][1].data, len(q)), rotated(q, Q_HEADS, pairing))
            close(driver.read(operands[1][1].data, len(k)), rotated(k, K_HEADS, pairing))
            assert driver.read(operands[0][0].data, len(q)) == q
            call.q, call.k = (c.Operand(x=x, heads=shape) for x, _, shape in operands)
            c.rope_rotate(rope, call)
            close(driver.read(operands[0][0].data, len(q)), rotated(q, Q_HEADS, pairing))
            c.rope_free(rope)
    try:
        c.rope_new(gpu, c.RopeSpec(rotary=7, base=BASE, attention_factor=1.0), c.F32)
        raise AssertionError("7 rotated channels were taken")
    except posenc.PosencError as error:
        assert str(error) == "rotary is 7, it must be even and at least 2", error


def reads_a_models_config(c, gpu):
    config = b'{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}'
    model = c.model_from_hf(config)
    assert c.model_name(model) == "llama" and c.model_layers(model) == 2
    layer = c.model_layer(model, 1)
    assert (layer.has_rope, layer.head, layer.logit_scale) == (1, 16, 1.0)
    assert c.query_scale_at(layer.query_scale, 5) == 1.0
    c.rope_free(c.rope_of_model(gpu, model, 1, 64, c.F32))
    c.model_free(model)
    assert c.yarn_mscale(1.0, 1.0) == 1.0


def refuses_what_no_struct_holds(c):
    for make, want in (
        (lambda: c.Tokens(batches=2), "Tokens has no field batches; it has batch, tokens, dim, offset, strides"),
        (lambda: c.Tokens(batch=-2), "batch of Tokens is -2, which its type does not hold"),
    ):
        try:
            make()
        except (AttributeError, ValueError) as error:
            assert str(error) == want, error
        else:
            raise AssertionError(want)


def adds_a_sinusoid(c, driver, gpu):
    x = values(TOKENS * DIM)
    spec = c.SinusoidSpec(dim=DIM, pairing=c.INTERLEAVED, max_period=BASE, scale=1.0)
    sinusoid = c.sinusoid_new(gpu, spec, c.F32)
    buffer = c.Buffer(data=driver.upload(floats(x)), len=len(x))
    positions = c.Positions(kind=c.COUNTED)
    c.sinusoid_add(sinusoid, c.SinusoidCall(x=buffer, tokens=c.tokens(1, TOKENS, DIM), positions=positions, scale=2.0))
    wave = lambda t, i: (math.cos if i % 2 else math.sin)(t * BASE ** (-2 * (i // 2) / DIM))
    close(driver.read(buffer.data, len(x)), [2 * x[i] + wave(i // DIM, i % DIM) for i in range(len(x))])
    c.sinusoid_free(sinusoid)


def softmaxes_with_alibi(c, driver, gpu):
    heads, n = 2, 5
    x = values(heads * n * n)
    bias = c.bias_alibi_new(gpu, c.AlibiSpec(total_heads=heads, heads=heads, max_bias=8.0, scale=1.0), c.F32)
    softmax = c.softmax_new(gpu, c.SoftmaxSpec(scale=0.5, has_right=1), c.F32)
    buffer = c.Buffer(data=driver.upload(floats(x)), len=len(x))
    places = c.Places(queries=c.Place(kind=c.PLACE_BOTTOM_RIGHT))
    inputs = c.Inputs(bias=bias, places=places)
    c.softmax_apply(softmax, c.SoftmaxCall(x=buffer, shape=c.logits(1, heads, n, n), inputs=inputs))
    want = []
    for row in range(heads * n):
        slope, query = 2.0 ** (-4 * (row // n + 1)), row % n
        z = [math.exp(0.5 * x[row * n + key] + slope * (key - query)) if key <= query else 0.0 for key in range(n)]
        want += [each / sum(z) for each in z]
    close(driver.read(buffer.data, len(x)), want)
    # A plan that trains its slopes: their address is a buffer.
    slopes = c.bias_numbers(bias, 0)
    assert driver.read(slopes.data, slopes.len) == [2.0**-4, 2.0**-8]
    c.softmax_free(softmax)
    c.bias_free(bias)


def writes_a_table_of_a_window(c, driver, gpu):
    heads, side = 2, 2
    tokens, entries = side * side, (2 * side - 1) ** 2
    table = values(entries * heads)
    term = c.term_swin(side, side)
    assert c.term_entries(term) == entries
    bias = c.bias_terms_new(gpu, c.TermsSpec(terms=ctypes.addressof(term), count=1), c.F32)
    shape = c.table(entries, heads)
    reads = c.TermInputs(numbers=c.Buffer(data=driver.upload(floats(table)), len=len(table)), numbers_shape=shape)
    out = c.Buffer(data=driver.upload(floats([0.0] * heads * tokens**2)), len=heads * tokens**2)
    call = c.BiasCall(x=out, shape=c.logits(1, heads, tokens, tokens), terms=ctypes.addressof(reads), term_count=1)
    c.bias_write(bias, call)
    entry = lambda q, k: (q // side - k // side + side - 1) * (2 * side - 1) + q % side - k % side + side - 1
    pairs = [(q, k) for q in range(tokens) for k in range(tokens)]
    want = [table[entry(q, k) * heads + head] for head in range(heads) for q, k in pairs]
    assert driver.read(out.data, out.len) == want
    c.bias_free(bias)
    # The gradient of the table, from a gradient of the logits.
    grad = values(len(want))
    plan = c.term_grad_new(gpu, c.TermGradSpec(term=term), call.shape, c.F32)
    read = c.Buffer(data=driver.upload(floats(grad)), len=len(grad))
    out = c.Buffer(data=driver.upload(floats(table)), len=len(table))
    c.term_grad_apply(plan, c.TermGradCall(grad=read, shape=call.shape, out=out, out_shape=shape, factor=1.0))
    sums = [0.0] * len(table)
    for i, each in enumerate(grad):
        q, k = pairs[i % len(pairs)]
        sums[entry(q, k) * heads + i // len(pairs)] += each
    close(driver.read(out.data, out.len), sums)
    c.term_grad_free(plan)


def adds_relative_values(c, driver, gpu):
    n, window, dim = 5, 2, 4
    entries = 2 * window + 1
    p, table, z = values(n * n), values(entries * dim), values(n * dim)
    plan = c.relative_values_new(gpu, c.RelativeValuesSpec(distances=c.term_vits(window).distances), c.F32)
    p_buffer, table_buffer, z_buffer = (c.Buffer(data=driver.upload(floats(x)), len=len(x)) for x in (p, table, z))
    call = c.RelativeValuesCall(probabilities=p_buffer, shape=c.logits(1, 1, n, n), table=table_buffer, z=z_buffer)
    call.table_shape, call.z_shape = c.numbers(1, 1, entries, dim), c.heads(n, 1, dim)
    c.relative_values_add(plan, call)
    near = lambda q: range(max(0, q - window), min(n, q + window + 1))
    vector = lambda q, k, i: p[q * n + k] * table[(k - q + window) * dim + i]
    want = [z[q * dim + i] + sum(vector(q, k, i) for k in near(q)) for q in range(n) for i in range(dim)]
    close(driver.read(z_buffer.data, len(z)), want)
    c.relative_values_free(plan)


def resizes_a_table(c):
    table, out = (ctypes.c_float * 3)(0.0, 5.0, 10.0), (ctypes.c_float * 5)()
    call = c.WindowResizeCall(window=c.term_swin(1, 2).window, to=[1, 3], table_len=3, table_shape=c.table(3, 1))
    call.table, call.out, call.out_len = ctypes.addressof(table), ctypes.addressof(out), 5
    c.window_resize(call)
    assert list(out) == [0.0, 2.0, 5.0, 8.0, 10.0], list(out)
    assert c.swin2_logit_scale(9.0) == 100.0


def takes_arrays(c, cpu):
    q, ids = array.array("f", values(TOKENS * Q_HEADS * DIM)), array.array("q", POSITIONS)
    rotates_arrays(c, cpu, q, ids, list(q))
    if importlib.util.find_spec("numpy"):
        import numpy

        q = numpy.array(values(TOKENS * Q_HEADS * DIM), dtype=numpy.float32).reshape(TOKENS, Q_HEADS, DIM)
        rotates_arrays(c, cpu, q, numpy.array(POSITIONS), q.flatten().tolist())
    for wrong in (b"1234", memoryview(array.array("f", [0.0] * 4))[::2]):
        try:
            c.buffer(wrong)
            raise AssertionError(wrong)
        except ValueError as error:
            assert str(error) == "the array must be writable and contiguous", error


def rotates_arrays(c, cpu, q, ids, before):
    rope = c.rope_new(cpu, c.RopeSpec(rotary=DIM, base=BASE, attention_factor=1.0), c.F32)
    operand = c.Operand(x=c.buffer(q), heads=c.heads(TOKENS, Q_HEADS, DIM))
    call = c.RopeCall(q=operand, positions=c.Positions(kind=c.IDS, ids=c.ids(ids)))
    c.rope_rotate(rope, call)
    close(memoryview(q).cast("B").cast("f").tolist(), rotated(before, Q_HEADS, False))
    c.rope_free(rope)


def leaves_kernels_of_others_to_a_gpu():
    """A check without a GPU names who is missing; it does not fail."""
    try:
        machine.Check.kernels(None, "liger_kernel")
    except machine.Missing as missing:
        assert str(missing) == "missing: the kernels of liger_kernel run on a GPU alone", missing
    else:
        raise AssertionError("a kernel for a GPU was promised without one")


def main(library, header, device):
    driver = {"cpu": Host, "gpu": Driver}[device]()
    c = posenc.Library(library, header)
    assert c.release().count(".") == 2 and len(c.functions) > 50, c.functions
    gpu = driver.device(c)
    if device == "cpu":
        takes_arrays(c, gpu)
    refuses_what_no_struct_holds(c)
    rotates(c, driver, gpu)
    reads_a_models_config(c, gpu)
    adds_a_sinusoid(c, driver, gpu)
    softmaxes_with_alibi(c, driver, gpu)
    writes_a_table_of_a_window(c, driver, gpu)
    adds_relative_values(c, driver, gpu)
    resizes_a_table(c)
    leaves_kernels_of_others_to_a_gpu()
    c.gpu_free(gpu)
    print("all is well")


if __name__ == "__main__":
    main(*sys.argv[1:])
