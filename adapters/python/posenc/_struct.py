"""Bases of the structs of posenc.h."""

import ctypes
from typing import Any


class Struct(ctypes.Structure):
    """A struct of the header: unknown fields and numbers that do not fit are errors, where ctypes cuts them."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no field {name}")
        if isinstance(value, (list, tuple)):
            array = getattr(self, name)
            if len(value) > len(array):
                raise ValueError(f"{name} holds {len(value)} numbers, at most {len(array)} are allowed")
            for i, number in enumerate(value):
                array[i] = number
                if array[i] != number:
                    raise ValueError(f"{name}[{i}] is {number}, which its type does not hold")
            return
        super().__setattr__(name, value)
        if isinstance(value, int) and getattr(self, name) not in (value, None):
            raise ValueError(f"{name} is {value}, which its type does not hold")


class PlainStruct(ctypes.Structure):
    """A struct whose numbers this package has computed."""


class PlainVersioned(ctypes.Structure):
    """One of them that begins with its version and its size."""

    _fields_ = [("version", ctypes.c_uint32), ("size", ctypes.c_uint32)]

    def __init__(self, **fields: Any) -> None:
        from ._c import ABI

        super().__init__(ABI, ctypes.sizeof(self), **fields)


class Versioned(Struct):
    """A struct that begins with its version and its size."""

    _fields_ = [("version", ctypes.c_uint32), ("size", ctypes.c_uint32)]

    def __init__(self, **fields: Any) -> None:
        from ._c import ABI

        super().__init__(version=ABI, size=ctypes.sizeof(type(self)), **fields)
