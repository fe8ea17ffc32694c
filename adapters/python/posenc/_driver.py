"""The few functions of CUDA's driver that foreign tensors need: which device holds an address, and one stream behind
another."""

from __future__ import annotations

import ctypes
from functools import lru_cache

from .errors import DeviceError, DriverError

_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_WITHOUT_TIMES = 2  # CU_EVENT_DISABLE_TIMING


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(f"the NVIDIA driver's library cannot be loaded: {error}") from error


def _call(name: str, *arguments: object) -> None:
    driver = _driver()
    status = getattr(driver, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(text))
        raise DriverError(f"{name} failed: {(text.value or b'an unknown error').decode()}")


def device_of(name: str, address: int) -> int:
    """The device that holds an address."""
    ordinal = ctypes.c_int()
    try:
        _call("cuPointerGetAttribute", ctypes.byref(ordinal), _ORDINAL, ctypes.c_uint64(address))
    except DriverError as error:
        raise DriverError(f"{name} lies at {address:#x}, which is no memory of a device: {error}") from None
    return ordinal.value


def order(first: int, then: int) -> None:
    """Lets what is launched into `then` from now on wait for what `first` holds now."""
    if first == then:
        return
    event = ctypes.c_void_p()
    _call("cuEventCreate", ctypes.byref(event), _WITHOUT_TIMES)
    try:
        _call("cuEventRecord", event, ctypes.c_void_p(first))
        _call("cuStreamWaitEvent", ctypes.c_void_p(then), event, 0)
    finally:
        _call("cuEventDestroy_v2", event)
