"""posenc.h through ctypes: constants, structs and functions are read from the header itself, so that nothing here can
drift from it. A function that fails raises the library's own sentence.

    c = Library("libposenc_c.so", "posenc.h")
    gpu = c.gpu_new(0, stream, 0)
    rope = c.rope_new(gpu, c.RopeSpec(rotary=128, base=1e4, attention_factor=1.0), c.BF16)
    c.rope_rotate(rope, c.RopeCall(q=..., k=..., positions=...))

Names lose their `posenc_`, `Posenc` or `POSENC_`. Constructors return their handle; specs and calls know their version
and size. On the CPU, arrays of numpy and others are buffers as they are:

    cpu = c.cpu_new()
    rope = c.rope_new(cpu, c.RopeSpec(rotary=128, base=1e4, attention_factor=1.0), c.F32)
    c.rope_rotate(rope, c.RopeCall(q=c.Operand(x=c.buffer(q), heads=c.heads(*q.shape)), positions=...))
"""

import ctypes
import re
from pathlib import Path

NUMBERS = {
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "PosencStatus": ctypes.c_int32,
}


class PosencError(RuntimeError):
    """The library's sentence."""


class Struct(ctypes.Structure):
    """A struct of the header; fields by name, all others 0."""

    def __init__(self, **fields):
        if self._fields_[0][0] == "version":
            fields = {"version": self.abi, "size": ctypes.sizeof(type(self)), **fields}
        arrays = {name: value for name, value in fields.items() if isinstance(value, (list, tuple))}
        super().__init__(**{name: value for name, value in fields.items() if name not in arrays})
        for name, value in arrays.items():
            getattr(self, name)[:] = value

    def __setattr__(self, name, value):
        """ctypes takes any name, and of a number the bits that fit."""
        kind = type(self).__name__.removeprefix("Posenc")
        if all(name != field[0] for field in self._fields_):
            raise AttributeError(f"{kind} has no field {name}; it has {', '.join(field[0] for field in self._fields_)}")
        super().__setattr__(name, value)
        if isinstance(value, int) and (held := getattr(self, name)) is not None and held != value:
            raise ValueError(f"{name} of {kind} is {value}, which its type does not hold")


class Library:
    def __init__(self, path, header=None):
        path = Path(path).resolve()
        header = Path(header) if header else path.with_name("posenc.h")
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        self._c = ctypes.CDLL(str(path))
        self._c.posenc_last_error.restype = ctypes.c_char_p
        self._structs = {}
        for name, value in re.findall(r"^#define POSENC_(\w+) (\d+)\s*$", text, flags=re.M):
            setattr(self, name, int(value))
        for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \w+;", text, flags=re.S):
            fields = [self._field(*field) for field in re.findall(r"([\w ]+[ *]+)(\w+)(?:\[(\d+)\])?;", body)]
            self._structs[name] = type(name, (Struct,), {"_fields_": fields, "abi": self.ABI})
            setattr(self, name.removeprefix("Posenc"), self._structs[name])
        self.functions = []
        for result, name, arguments in re.findall(r"^(\w+) posenc_(\w+)\((.*?)\);", text, flags=re.S | re.M):
            function = getattr(self._c, "posenc_" + name)
            kinds = [
                re.fullmatch(r"\s*([\w ]+[ *]+)\w+\s*", part)[1] for part in arguments.split(",") if part != "void"
            ]
            function.restype = NUMBERS[result]
            function.argtypes = [self._argument(kind) for kind in kinds]
            self.functions.append(name)
            if result == "PosencStatus":
                # What a function gives is behind its last pointer, `out`: a handle, a text, a number, a struct.
                gives = None
                if arguments.split()[-1].lstrip("*") == "out":
                    gives = "value" if kinds[-1].count("*") == 1 else "text" if "char" in kinds[-1] else "handle"
                setattr(self, name, self._checked(function, gives))
            else:
                setattr(self, name, function)

    def _type(self, kind):
        words = kind.replace("const", "").replace("struct", "").replace("*", "").split()
        return NUMBERS.get(words[0]) or self._structs.get(words[0]) or ctypes.c_void_p

    def _field(self, kind, name, count):
        own = ctypes.c_void_p if "*" in kind else self._type(kind)
        return name, own * int(count) if count else own

    def _argument(self, kind):
        if kind.count("*") == 2:
            return ctypes.POINTER(ctypes.c_void_p)
        if "*" not in kind:
            return self._type(kind)
        if "char" in kind:
            return ctypes.c_char_p
        own = self._type(kind)
        return own if own is ctypes.c_void_p else ctypes.POINTER(own)

    def _checked(self, function, gives):
        def call(*arguments):
            out = []
            if gives:
                out = [function.argtypes[-1]._type_()]
            arguments = [ctypes.byref(a) if isinstance(a, Struct) else a for a in arguments]
            if function(*arguments, *map(ctypes.byref, out)):
                raise PosencError(self._c.posenc_last_error().decode())
            if gives == "text":
                return ctypes.string_at(out[0].value).decode()
            if gives:
                return out[0].value if hasattr(out[0], "value") else out[0]

        return call

    def release(self):
        n = self.version()
        return f"{n // 10000}.{n // 100 % 100}.{n % 100}"

    # Arrays on the host, for plans of `cpu_new`.

    def buffer(self, array):
        """A contiguous, writable array (numpy, array, ctypes), which must live as long as the buffer is used."""
        view = memoryview(array)
        if view.readonly or not view.c_contiguous:
            raise ValueError("the array must be writable and contiguous")
        n = view.nbytes // view.itemsize
        address = ctypes.addressof((ctypes.c_char * view.nbytes).from_buffer(view)) if n else 0
        return self.Buffer(data=address, len=n)

    def ids(self, array):
        """A contiguous array of i32, i64 or u32."""
        element = {"i": self.I32, "l": self.I64, "q": self.I64, "I": self.U32}[memoryview(array).format]
        buffer = self.buffer(array)
        return self.Ids(data=buffer.data, len=buffer.len, element=element)

    # Shapes of contiguous tensors.

    def heads(self, tokens, heads, dim, batch=1):
        """[batch, tokens, heads, dim]"""
        strides = [tokens * heads * dim, heads * dim, dim]
        return self.Heads(batch=batch, tokens=tokens, heads=heads, dim=dim, strides=strides)

    def tokens(self, batch, tokens, dim):
        """[batch, tokens, dim]"""
        return self.Tokens(batch=batch, tokens=tokens, dim=dim, strides=[tokens * dim, dim])

    def logits(self, batch, heads, queries, keys):
        """[batch, heads, queries, keys]"""
        strides = [heads * queries * keys, queries * keys, keys]
        return self.Logits(batch=batch, heads=heads, queries=queries, keys=keys, strides=strides)

    def numbers(self, batch, heads, rows, entries):
        """[batch, heads, rows, entries]"""
        strides = [heads * rows * entries, rows * entries, entries, 1]
        return self.Numbers(batch=batch, heads=heads, rows=rows, entries=entries, strides=strides)

    def table(self, entries, heads):
        """[entries, heads]: the table of a window, as models store it."""
        return self.Numbers(batch=1, heads=heads, rows=1, entries=entries, strides=[0, 1, 0, heads])
