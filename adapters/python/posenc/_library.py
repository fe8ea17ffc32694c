"""The C library: loaded once, its functions declared, its statuses turned into errors."""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from . import _c, errors

#: a library in place of the wheel's own, for those who build the C library themselves
VARIABLE = "POSENC_LIBRARY"
NAME = "libposenc_c.so"


def path() -> Path:
    """The library that is loaded."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise errors.Error(f"{VARIABLE} is {chosen!r}, and there is no such file")
        return Path(chosen).resolve()
    found = Path(__file__).with_name(NAME)
    if not found.is_file():
        raise errors.Error(f"{found} is not there: install the package with pip, or name a library in {VARIABLE}")
    return found


def build() -> dict[str, str]:
    """What the library was built with: `kernels`, all, none, or the rooms that have theirs; and `architectures` of
    devices."""
    beside = path().with_name("build.json")
    if os.environ.get(VARIABLE) or not beside.is_file():
        return {"kernels": "unknown", "architectures": "unknown"}
    return dict(json.loads(beside.read_text(encoding="utf-8")))


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(path()))
    version = library.posenc_version
    version.restype = ctypes.c_uint32
    for name, (result, arguments) in _c.FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            number = version()
            release = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
            raise errors.Error(f"{path()} is posenc {release}, which has no {name}")
        function.restype, function.argtypes = result, arguments
    library.posenc_last_error.restype = ctypes.c_char_p
    return library


_LIBRARY = _load()


def call(name: str, *arguments: Any) -> None:
    """Calls a function that gives a status."""
    status = getattr(_LIBRARY, name)(*arguments)
    if status:
        sentence = _LIBRARY.posenc_last_error()
        raise errors.of_status(status, sentence.decode("utf-8", "replace"))


def value(name: str, *arguments: Any) -> Any:
    """Calls a function that gives a number."""
    return getattr(_LIBRARY, name)(*arguments)


def gives(name: str, out: Any, *arguments: Any) -> Any:
    """Calls a function that puts what it gives behind its last argument, `out`, and gives that."""
    call(name, *arguments, ctypes.byref(out))
    return out


def text(name: str, handle: "Handle") -> str:
    """Calls a function that gives a text of a handle."""
    found = gives(name, ctypes.c_char_p(), handle.address)
    return (found.value or b"").decode()


def version() -> str:
    """The library's version."""
    n = value("posenc_version")
    return f"{n // 10000}.{n // 100 % 100}.{n % 100}"


class Handle:
    """A handle of the library, freed with its last reference."""

    __slots__ = ("address", "calls", "kind")

    def __init__(self, kind: str, constructor: str, *arguments: Any) -> None:
        self.address, self.kind = None, kind
        #: calls of a plan that were checked, by the sizes of their tensors
        self.calls: dict[Any, Any] = {}
        self.address = gives(constructor, ctypes.c_void_p(), *arguments).value

    def __del__(self) -> None:
        # At the interpreter's end modules may be gone; the process frees what is left.
        if self.address is not None and _LIBRARY is not None:
            getattr(_LIBRARY, f"posenc_{self.kind}_free")(self.address)
