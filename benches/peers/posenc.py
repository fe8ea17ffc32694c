"""posenc.h through ctypes: structs, and calls that raise the library's own sentence."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_uint32, c_uint64, c_void_p, sizeof

F32, F16, BF16 = 0, 1, 2
I32, I64, U32 = 0, 1, 2
HALF, INTERLEAVED, SAME = 0, 1, 2
IDS, STARTS, PACKED = 0, 1, 2


class RopeSpec(ctypes.Structure):
    _fields_ = [
        ("version", c_uint32),
        ("size", c_uint32),
        ("rotary", c_uint64),
        ("offset", c_uint64),
        ("base", c_double),
        ("attention_factor", c_double),
        ("pairing", c_uint32),
        ("pairing_out", c_uint32),
        ("angles", c_uint32),
        ("scaling", c_uint32),
        ("factor", c_double),
        ("low", c_double),
        ("high", c_double),
        ("original_context", c_double),
        ("divisors", c_void_p),
        ("divisor_count", c_uint64),
        ("axes", c_uint32),
        ("axis_count", c_uint32),
        ("axis_sizes", c_uint32 * 4),
    ]


class Heads(ctypes.Structure):
    _fields_ = [
        ("data", c_uint64),
        ("len", c_uint64),
        ("heads", c_uint64),
        ("offset", c_uint64),
        ("strides", c_uint64 * 3),
    ]


class Positions(ctypes.Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("element", c_uint32),
        ("ids", c_uint64),
        ("ids_len", c_uint64),
        ("axis_stride", c_uint64),
        ("shared", c_uint32),
        ("reserved", c_uint32),
        ("indptr", c_uint64),
        ("sequences", c_uint64),
    ]


class RopeCall(ctypes.Structure):
    _fields_ = [
        ("version", c_uint32),
        ("size", c_uint32),
        ("batch", c_uint64),
        ("tokens", c_uint64),
        ("dim", c_uint64),
        ("q", Heads),
        ("q_out", Heads),
        ("k", Heads),
        ("k_out", Heads),
        ("packed", c_uint32),
        ("inverse", c_uint32),
        ("positions", Positions),
        ("by_table", c_uint32),
        ("reserved", c_uint32),
        ("cos", c_uint64),
        ("cos_len", c_uint64),
        ("sin", c_uint64),
        ("sin_len", c_uint64),
        ("table_rows", c_uint64),
        ("table_stride", c_uint64),
        ("table_type", c_uint32),
        ("beyond", c_uint32),
        ("beyond_flag", c_uint64),
    ]


class PosencError(RuntimeError):
    """The library's sentence."""


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(str(path))
        self.c.posenc_last_error.restype = c_char_p
        self.c.posenc_gpu_new.argtypes = [c_uint32, c_void_p, c_uint32, POINTER(c_void_p)]
        self.c.posenc_rope_new.argtypes = [c_void_p, POINTER(RopeSpec), c_uint32, POINTER(c_void_p)]
        self.c.posenc_rope_rotate.argtypes = [c_void_p, POINTER(RopeCall)]
        self.c.posenc_gpu_free.argtypes = [c_void_p]
        self.c.posenc_rope_free.argtypes = [c_void_p]

    def check(self, status):
        if status:
            raise PosencError(self.c.posenc_last_error().decode())

    def version(self):
        n = self.c.posenc_version()
        return f"{n // 10000}.{n // 100 % 100}.{n % 100}"

    def gpu(self, ordinal, stream, overlap=False):
        out = c_void_p()
        self.check(self.c.posenc_gpu_new(ordinal, stream, int(overlap), byref(out)))
        return out

    def rope(self, gpu, element, rotary, base, pairing=HALF, offset=0):
        spec = RopeSpec(version=1, size=sizeof(RopeSpec), rotary=rotary, offset=offset, base=base)
        spec.attention_factor = 1.0
        spec.pairing, spec.pairing_out = pairing, SAME
        out = c_void_p()
        self.check(self.c.posenc_rope_new(gpu, byref(spec), element, byref(out)))
        return out

    def rotate(self, rope, call):
        self.check(self.c.posenc_rope_rotate(rope, byref(call)))


def heads(address, tokens, count, dim):
    """[tokens, heads, dim], contiguous."""
    h = Heads(data=address, len=tokens * count * dim, heads=count)
    h.strides[:] = [tokens * count * dim, count * dim, dim]
    return h


def call(tokens, dim, q, k, ids, ids_len, id_type, q_out=None, k_out=None):
    """Queries and keys, in place unless outputs are given, with an id for each token."""
    c = RopeCall(version=1, size=sizeof(RopeCall), batch=1, tokens=tokens, dim=dim)
    c.q, c.k = q, k
    if q_out is not None:
        c.q_out, c.k_out = q_out, k_out
    c.positions = Positions(kind=IDS, element=id_type, ids=ids, ids_len=ids_len)
    return c
