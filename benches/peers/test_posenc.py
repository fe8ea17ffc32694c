"""posenc.py against the library, on any driver: the driver's functions come from libcuda.so.1 itself. No PyTorch.

usage: test_posenc.py LIBRARY
"""

import ctypes
import math
import struct
import sys
from ctypes import byref, c_int, c_uint64, c_void_p

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


def values(n):
    return [(-1.0) ** (i % 3) * (0.5 + (i * 37 % 101) / 64) for i in range(n)]


def rotated(x, heads, pairing):
    y = list(x)
    for t, position in enumerate(POSITIONS):
        for h in range(heads):
            for i in range(DIM // 2):
                a, b = (i, i + DIM // 2) if pairing == posenc.HALF else (2 * i, 2 * i + 1)
                a, b = ((t * heads + h) * DIM + c for c in (a, b))
                angle = position * BASE ** (-2 * i / DIM)
                y[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
                y[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return y


def close(got, want):
    worst = max(abs(g - w) for g, w in zip(got, want, strict=True))
    assert worst < 2e-6, worst


def main(path):
    driver = Driver()
    library = posenc.Library(path)
    gpu = library.gpu(0, driver.stream)
    floats = lambda x: struct.pack(f"{len(x)}f", *x)
    # What the library reads back must be what f32 holds.
    q, k = (list(struct.unpack(f"{n}f", floats(values(n)))) for n in (TOKENS * Q_HEADS * DIM, TOKENS * K_HEADS * DIM))
    for id_type, code in ((posenc.I32, "i"), (posenc.I64, "q")):
        ids = driver.upload(struct.pack(f"{TOKENS}{code}", *POSITIONS))
        for pairing in (posenc.HALF, posenc.INTERLEAVED):
            rope = library.rope(gpu, posenc.F32, DIM, BASE, pairing)
            q_x, k_x, q_y, k_y = (driver.upload(floats(x)) for x in (q, k, q, k))
            shape = lambda address, count: posenc.heads(address, TOKENS, count, DIM)
            operands = (shape(q_x, Q_HEADS), shape(k_x, K_HEADS))
            outputs = (shape(q_y, Q_HEADS), shape(k_y, K_HEADS))
            library.rotate(rope, posenc.call(TOKENS, DIM, *operands, ids, TOKENS, id_type, *outputs))
            close(driver.read(q_y, len(q)), rotated(q, Q_HEADS, pairing))
            close(driver.read(k_y, len(k)), rotated(k, K_HEADS, pairing))
            assert driver.read(q_x, len(q)) == q
            library.rotate(rope, posenc.call(TOKENS, DIM, *operands, ids, TOKENS, id_type))
            close(driver.read(q_x, len(q)), rotated(q, Q_HEADS, pairing))
            close(driver.read(k_x, len(k)), rotated(k, K_HEADS, pairing))
    try:
        library.rope(gpu, posenc.F32, 7, BASE)
        raise AssertionError("7 rotated channels were taken")
    except posenc.PosencError as error:
        assert str(error) == "rotary is 7, it must be even and at least 2", error
    print("all is well")


if __name__ == "__main__":
    main(sys.argv[1])
