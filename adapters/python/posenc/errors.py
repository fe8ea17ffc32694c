"""What posenc refuses: each error's text is the library's own sentence, with the numbers."""

from typing import ClassVar

__all__ = ["ArgumentError", "DeviceError", "DriverError", "Error", "InternalError", "InvalidValueError"]


class Error(Exception):
    """The base of every error of this package."""

    #: POSENC_... of the C library; 0: this package found the fault before it called the library
    status: ClassVar[int] = 0


class ArgumentError(Error, ValueError):
    """An address, an element type or a constant that the library does not take."""

    status = 1


class InvalidValueError(Error, ValueError):
    """A value, a length or a shape that breaks a rule."""

    status = 2


class DeviceError(Error, RuntimeError):
    """There is no driver, no device, or no kernel for it."""

    status = 3


class DriverError(Error, RuntimeError):
    """The driver refused a call."""

    status = 4


class InternalError(Error, RuntimeError):
    """A bug of the library."""

    status = 5


def of_status(status: int, text: str) -> Error:
    """The error of a status of the C library."""
    for kind in Error.__subclasses__():
        if kind.status == status:
            return kind(text)
    return InternalError(f"status {status}: {text}")
