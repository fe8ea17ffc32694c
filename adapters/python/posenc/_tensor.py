"""Tensors of other libraries: their addresses, shapes, strides, types and devices, without copies."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _c, _driver
from .errors import Error

#: names of element types, in the order of their constants
ELEMENTS = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16, "float64": _c.F64}
INTEGERS = {"int32": _c.I32, "int64": _c.I64, "uint32": _c.U32, "uint16": _c.U16, "uint8": _c.U8}
SIZES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4},
    **{"int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1},
}
#: what may be given as a tensor
KINDS = "a torch, numpy or CuPy array, or any other with __dlpack__, __cuda_array_interface__ or the buffer protocol"

CPU = -1


def device_name(device: int) -> str:
    """`cpu`, or `cuda:1`."""
    return "cpu" if device == CPU else f"cuda:{device}"


@dataclass(slots=True)
class Tensor:
    """Memory of somebody else."""

    name: str
    address: int
    shape: tuple[int, ...]
    #: in elements
    strides: tuple[int, ...]
    dtype: str
    #: CPU, or the ordinal of a CUDA device
    device: int
    readonly: bool
    #: keeps the memory
    owner: Any
    #: the stream whose work on it has to come first, if the tensor says so
    behind: int | None = None

    @property
    def empty(self) -> bool:
        return 0 in self.shape

    @property
    def span(self) -> int:
        """Elements from the first to behind the last."""
        if self.empty:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))

    def contiguous(self) -> bool:
        if self.empty:
            return True
        need = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != need:
                return False
            need *= n
        return True

    def is_alike(self) -> str:
        return f"{self.name} is {self.dtype} {list(self.shape)} on {device_name(self.device)}"


def compact(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous array."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def of(name: str, x: Any, stream: int | None = None) -> Tensor:
    """A tensor of any library. `stream` is where it will be used, if it lies on a CUDA device."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        tensor = _torch(name, x)
    elif hasattr(x, "__cuda_array_interface__"):
        tensor = _interface(name, x, x.__cuda_array_interface__, True)
    elif hasattr(x, "__array_interface__"):
        tensor = _interface(name, x, x.__array_interface__, False)
    elif hasattr(x, "__dlpack__"):
        tensor = _dlpack(name, x, stream)
    else:
        tensor = _buffer(name, x)
    if not tensor.empty and any(stride < 0 for stride in tensor.strides):
        raise Error(f"{name} has strides {list(tensor.strides)}, they must not be negative: copy it first")
    if tensor.empty:
        tensor.address = 0
    return tensor


def _torch(name: str, x: Any) -> Tensor:
    kind = x.device.type
    if kind not in ("cpu", "cuda"):
        raise Error(f"{name} is on {x.device}, posenc computes on cpu and cuda")
    if str(x.layout) != "torch.strided" or x.is_quantized:
        raise Error(f"{name} has the layout {x.layout}, it must be strided")
    if x.is_conj() or x.is_neg():
        raise Error(f"{name} is a lazy conjugate or negative: call resolve_conj() or resolve_neg() first")
    device = CPU if kind == "cpu" else x.device.index
    try:
        address = x.data_ptr()
    except RuntimeError as error:
        raise Error(f"{name} is a {type(x).__name__} without memory of its own: {error}") from error
    return Tensor(name, address, tuple(x.shape), tuple(x.stride()), str(x.dtype)[6:], device, False, x)


def _interface(name: str, x: Any, interface: dict[str, Any], cuda: bool) -> Tensor:
    shape = tuple(interface["shape"])
    # numpy has no bfloat16: ml_dtypes' is two bytes of no known kind, under its own name
    dtype = getattr(getattr(x, "dtype", None), "name", None) or _typestr(name, interface["typestr"])
    size = SIZES.get(dtype)
    if size is None:
        raise Error(f"{name} has elements of {dtype}, posenc knows {', '.join(SIZES)}")
    if interface["typestr"][0] == ">":
        raise Error(f"{name} has elements in another byte order")
    steps = interface.get("strides")
    if steps is None:
        strides = compact(shape)
    else:
        if any(step % size for step in steps):
            raise Error(f"{name} has strides of {list(steps)} bytes, its elements are {size} bytes long")
        strides = tuple(step // size for step in steps)
    address, readonly = interface["data"]
    if not cuda:
        return Tensor(name, address, shape, strides, dtype, CPU, bool(readonly), x)
    device = _driver.device_of(name, address) if address else 0
    return Tensor(name, address, shape, strides, dtype, device, bool(readonly), x, interface.get("stream"))


def _typestr(name: str, typestr: str) -> str:
    kinds = {"f2": "float16", "f4": "float32", "f8": "float64", "i2": "int16", "i4": "int32", "i8": "int64"}
    kinds |= {"u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "i1": "int8", "b1": "bool"}
    kinds |= {"V2": "bfloat16"}
    if typestr[1:] not in kinds:
        raise Error(f"{name} has elements of the type {typestr!r}")
    return kinds[typestr[1:]]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManaged(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_is_capsule = ctypes.pythonapi.PyCapsule_IsValid
_is_capsule.restype, _is_capsule.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]

#: kDLCPU, kDLCUDA, kDLCUDAHost, kDLCUDAManaged
_DL_CPU, _DL_CUDA, _DL_HOST, _DL_MANAGED = 1, 2, 3, 13
_DL_TYPES = {
    **{(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16", (6, 8): "bool"},
    **{(10, 8): "float8_e4m3fn", (12, 8): "float8_e5m2"},
    **{(0, bits): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(1, bits): f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def _dlpack(name: str, x: Any, stream: int | None) -> Tensor:
    kind, ordinal = (int(part) for part in x.__dlpack_device__())
    if kind not in (_DL_CPU, _DL_CUDA, _DL_HOST, _DL_MANAGED):
        raise Error(f"{name} is on a device of DLPack's kind {kind}, posenc computes on cpu (1) and cuda (2)")
    on_cuda = kind in (_DL_CUDA, _DL_MANAGED)
    # DLPack's number of the default stream is 1.
    arguments = {"stream": stream or 1} if on_cuda else {}
    try:
        capsule = x.__dlpack__(**arguments, max_version=(1, 0))
    except TypeError:
        capsule = x.__dlpack__(**arguments)
    except BufferError as error:
        raise Error(f"{name} does not lend its memory: {error}") from error
    # The capsule is not renamed: it stays its maker's, who frees the tensor with it.
    if _is_capsule(capsule, b"dltensor_versioned"):
        managed = _DLManaged.from_address(_pointer_of(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise Error(f"{name} speaks DLPack {managed.major}.{managed.minor}, posenc knows 1")
        tensor, readonly = managed.tensor, bool(managed.flags & 1)
    else:
        tensor, readonly = _DLTensor.from_address(_pointer_of(capsule, b"dltensor")), False
    dtype = _DL_TYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise Error(f"{name} has elements of DLPack's type ({tensor.code}, {tensor.bits}, {tensor.lanes})")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else compact(shape)
    address = (tensor.data or 0) + tensor.byte_offset
    return Tensor(name, address, shape, strides, dtype, ordinal if on_cuda else CPU, readonly, (x, capsule))


def _buffer(name: str, x: Any) -> Tensor:
    try:
        view = memoryview(x)
    except TypeError:
        raise Error(f"{name} is {type(x).__name__}, it must be {KINDS}") from None
    codes = {"e": "float16", "f": "float32", "d": "float64", "i": "int32", "l": "int64", "q": "int64"}
    codes |= {"I": "uint32", "H": "uint16", "B": "uint8", "?": "bool"}
    dtype = codes.get(view.format)
    if dtype is None:
        raise Error(f"{name} has elements of the format {view.format!r}")
    if not view.c_contiguous:
        raise Error(f"{name} is not contiguous, which buffers that are no arrays must be")
    shape = tuple(view.shape or ())
    if view.readonly:
        # ctypes takes the address of writable buffers alone.
        import numpy

        tensor = _interface(name, x, numpy.frombuffer(view, dtype).__array_interface__, False)
        tensor.owner, tensor.shape, tensor.strides = view, shape, compact(shape)
        return tensor
    address = ctypes.addressof((ctypes.c_char * view.nbytes).from_buffer(view)) if view.nbytes else 0
    return Tensor(name, address, shape, compact(shape), dtype, CPU, False, view)


def empty_like(tensor: Tensor, x: Any, shape: Sequence[int] | None = None, dtype: str | None = None) -> Any:
    """A new contiguous array of the library that `x` comes from."""
    shape = tuple(tensor.shape if shape is None else shape)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype or tensor.dtype), device=x.device)
    library = sys.modules.get(type(x).__module__.split(".")[0])
    if tensor.device == CPU and (library is None or type(x).__module__ in ("builtins", "array")):
        import numpy as library  # the buffer protocol has no arrays of its own
    if library is None or not hasattr(library, "empty"):
        raise Error(f"posenc cannot make arrays of {type(x).__name__}: give the place of the result")
    own = getattr(x, "dtype", None) if dtype in (None, tensor.dtype) else None
    return library.empty(shape, dtype=own if own is not None else dtype or tensor.dtype)
