"""Devices, plans and calls: what every operation shares."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from . import _c, _driver, _library, _tensor
from ._library import Handle
from ._tensor import CPU, Tensor
from .errors import Error

#: plans that are kept, least recently used ones go
CAPACITY = 512

_LOCK = threading.RLock()
_DEVICES: OrderedDict[tuple[int, int, bool], Handle] = OrderedDict()
_PLANS: OrderedDict[Hashable, Handle] = OrderedDict()
_OVERLAP = False


def overlap(wanted: bool) -> None:
    """Lets kernels start before their predecessor in the stream has ended (programmatic dependent launch, compute
    capability 9.0 on), for plans that are made from now on. Off at first."""
    global _OVERLAP
    _OVERLAP = bool(wanted)


def clear() -> None:
    """Frees the plans that are kept. Those of running calls are freed behind them."""
    with _LOCK:
        _PLANS.clear()
        _DEVICES.clear()


def plans() -> int:
    """How many plans are kept."""
    return len(_PLANS)


def device(ordinal: int = CPU, stream: int = 0) -> Handle:
    """The handle of a device and a stream, or of the CPU."""
    key = (ordinal, stream, _OVERLAP)
    with _LOCK:
        if key not in _DEVICES:
            if ordinal == CPU:
                handle = Handle("gpu", "posenc_cpu_new")
            else:
                handle = Handle("gpu", "posenc_gpu_new", ordinal, stream, int(_OVERLAP))
            _DEVICES[key] = handle
        _DEVICES.move_to_end(key)
        # a handle may go before its plans, which keep what they need of it
        while len(_DEVICES) > CAPACITY:
            _DEVICES.popitem(last=False)
        return _DEVICES[key]


def cached(kind: str, key: Hashable, where: tuple[int, int], make: Callable[[Handle], Handle]) -> Handle:
    """The plan of a key on a device and stream. Plans of all streams share kernels and tables with that of the default
    stream: another one may be destroyed before a new plan is made of its own."""
    ordinal, stream = where
    whole = (kind, key, where, _OVERLAP)
    with _LOCK:
        plan = _PLANS.get(whole)
        if plan is None:
            if stream == 0:
                plan = make(device(ordinal))
            else:
                base = cached(kind, key, (ordinal, 0), make)
                plan = Handle(kind, f"posenc_{kind}_on", base.address, device(ordinal, stream).address)
            _PLANS[whole] = plan
        _PLANS.move_to_end(whole)
        while len(_PLANS) > CAPACITY:
            _PLANS.popitem(last=False)
        return plan


def known(kind: str, key: Hashable, where: tuple[int, int]) -> Handle | None:
    """The plan that `cached` would give, if there is one."""
    whole = (kind, key, where, _OVERLAP)
    with _LOCK:
        plan = _PLANS.get(whole)
        if plan is not None:
            _PLANS.move_to_end(whole)
        return plan


def host_list(values: Sequence[float] | None, kind: Any) -> Any:
    """Numbers in host memory for a pointer of a struct; keep it as long as the struct is read."""
    return None if values is None else (kind * len(values))(*values)


def address_of(array: Any) -> int:
    return 0 if array is None else ctypes.addressof(array)


def current_stream(x: Any, ordinal: int) -> int:
    """The stream that a tensor's library launches into now; the default stream if it does not say."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return int(torch.cuda.current_stream(ordinal).cuda_stream)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return int(cupy.cuda.get_current_stream().ptr)
    return 0


def stream_of(stream: Any) -> int:
    """The address of a stream: a number, or an object of torch, CuPy, cuda.core or numba."""
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            stream = getattr(stream, name)
            break
    try:
        return int(getattr(stream, "value", stream) or 0)
    except (TypeError, ValueError):
        raise Error(f"stream is {type(stream).__name__}, it must be an address or a stream of a library") from None


class Call:
    """The tensors of one call: all on one device, kept until the call returns."""

    def __init__(self, stream: Any = None) -> None:
        self.kept: list[Any] = []
        self.ordinal: int | None = None
        self.asked = None if stream is None else stream_of(stream)
        self.stream = 0
        #: element type of the tensors, of the first one that must be of it
        self.element: str | None = None
        self._first = ""

    def tensor(self, name: str, x: Any, written: bool = False, dtypes: Sequence[str] | None = None) -> Tensor:
        """A tensor of the call."""
        tensor = x if isinstance(x, Tensor) else _tensor.of(name, x, self._stream_for(x))
        self.kept.append((tensor, x))
        if self.ordinal is None:
            self.ordinal, self._first = tensor.device, name
            if tensor.device != CPU:
                self.stream = current_stream(x, tensor.device) if self.asked is None else self.asked
        elif tensor.device != self.ordinal:
            first, own = _tensor.device_name(self.ordinal), _tensor.device_name(tensor.device)
            raise Error(f"{name} is on {own}, {self._first} is on {first}: one call computes on one device")
        if tensor.behind is not None:
            _driver.order(tensor.behind, self.stream)
        if dtypes is not None and tensor.dtype not in dtypes:
            raise Error(f"{name} is {tensor.dtype}, it must be {' or '.join(dtypes)}")
        if written:
            if tensor.readonly:
                raise Error(f"{name} is read-only, and it is written")
            torch = sys.modules.get("torch")
            if torch is not None and isinstance(x, torch.Tensor) and x.requires_grad and torch.is_grad_enabled():
                raise Error(
                    f"{name} requires grad and is written, which autograd would not see: "
                    f"use torch.no_grad(), or a function of posenc.torch that gives a new tensor"
                )
        return tensor

    def _stream_for(self, x: Any) -> int:
        return (self.asked or 0) if self.ordinal is None else self.stream

    def elements(self, name: str, x: Any, written: bool = False) -> Tensor:
        """A tensor of the call's element type: f32, f16 or bf16, the same for all of them."""
        tensor = self.tensor(name, x, written)
        if self.element is None:
            if tensor.dtype not in ("float32", "float16", "bfloat16"):
                raise Error(f"{name} is {tensor.dtype}, it must be float32, float16 or bfloat16")
            self.element, self._typed = tensor.dtype, name
        elif tensor.dtype != self.element:
            raise Error(f"{name} is {tensor.dtype}, {self._typed} is {self.element}")
        return tensor

    @property
    def where(self) -> tuple[int, int]:
        return (CPU if self.ordinal is None else self.ordinal), self.stream

    @property
    def code(self) -> int:
        """The constant of the element type."""
        return _tensor.ELEMENTS[self.element or "float32"]

    # What structs hold.

    def buffer(self, tensor: Tensor) -> _c.Buffer:
        return _c.Buffer(data=tensor.address, len=tensor.span)

    def plain(
        self, name: str, x: Any, written: bool = False, dtypes: Sequence[str] = ("float32",), shape: Any = None
    ) -> _c.Buffer:
        """A contiguous tensor; none: nothing."""
        if x is None:
            return _c.Buffer()
        tensor = self.tensor(name, x, written, dtypes)
        return self.whole(tensor, shape)

    def own(self, name: str, x: Any, written: bool = False, shape: Any = None) -> _c.Buffer:
        """A contiguous tensor of the call's element type; none: nothing."""
        return _c.Buffer() if x is None else self.whole(self.elements(name, x, written), shape)

    def whole(self, tensor: Tensor, shape: Any = None) -> _c.Buffer:
        if not tensor.contiguous():
            raise Error(f"{tensor.name} has strides {list(tensor.strides)}, it must be contiguous")
        if shape is not None and tensor.shape != tuple(shape):
            raise Error(f"{tensor.name} has the shape {list(tensor.shape)}, it must be {list(shape)}")
        return self.buffer(tensor)

    def ids(self, name: str, x: Any, dtypes: Sequence[str] = ("int32", "int64", "uint32")) -> _c.Ids:
        """Contiguous integers; none: nothing."""
        if x is None:
            return _c.Ids()
        tensor = self.tensor(name, self._integers(name, x), dtypes=dtypes)
        if not tensor.contiguous():
            raise Error(f"{name} has strides {list(tensor.strides)}, it must be contiguous")
        return _c.Ids(data=tensor.address, len=tensor.span, element=_tensor.INTEGERS[tensor.dtype])

    def heads(self, tensor: Tensor, layout: str = "bthd") -> _c.Heads:
        """`[tokens, heads, dim]`, or with a batch before it; `layout` names the order of sizes."""
        return _c.Heads(**_sizes(tensor, HEADS[layout], ("batch", "tokens", "heads", "dim")))

    def tokens(self, tensor: Tensor) -> _c.Tokens:
        """`[tokens, dim]`, or with a batch before it."""
        return _c.Tokens(**_sizes(tensor, ("batch", "tokens", "dim"), ("batch", "tokens", "dim")))

    def logits(self, tensor: Tensor) -> _c.Logits:
        """`[heads, queries, keys]`, or with a batch before it."""
        names = ("batch", "heads", "queries", "keys")
        return _c.Logits(**_sizes(tensor, names, names))

    def numbers(self, tensor: Tensor, names: tuple[str, ...]) -> _c.Numbers:
        """Sizes in the order of `names`, some of batch, heads, rows, entries; those that are missing are 1."""
        if len(tensor.shape) == len(names) + 1 and "batch" not in names:
            names = ("batch", *names)
        if len(tensor.shape) != len(names):
            raise Error(f"{tensor.name} has the shape {list(tensor.shape)}, it must be [{', '.join(names)}]")
        own = dict(zip(names, zip(tensor.shape, tensor.strides, strict=True), strict=True))
        sizes = [own.get(name, (1, 0)) for name in ("batch", "heads", "rows", "entries")]
        shape = dict(zip(("batch", "heads", "rows", "entries"), (n for n, _ in sizes), strict=True))
        # A size of 1 has no step.
        return _c.Numbers(**shape, strides=tuple(step if n > 1 else 0 for n, step in sizes))

    def positions(
        self, positions: Any, starts: Any, cu_seqlens: Any, batch: int, tokens: int, axes: int
    ) -> _c.Positions:
        """Token positions: an array of them, one start for each sequence, or packed sequences."""
        if positions is not None and starts is not None:
            raise Error("positions and starts are given, one call has one of them")
        if cu_seqlens is not None:
            indptr = self.plain("cu_seqlens", cu_seqlens, dtypes=("int32",))
            first = positions if positions is not None else starts
            return _c.Positions(
                kind=_c.PACKED,
                indptr=indptr,
                sequences=max(indptr.len, 1) - 1,
                ids=self.ids("positions", None if first is None else self._integers("positions", first)),
            )
        if positions is None and starts is None:
            return _c.Positions(kind=_c.COUNTED)
        kind, own = (_c.STARTS, starts) if positions is None else (_c.IDS, positions)
        name = "starts" if positions is None else "positions"
        tensor = self.tensor(name, self._integers(name, own), dtypes=("int32", "int64", "uint32"))
        inner = () if kind == _c.STARTS else (tokens,)
        return self._laid(tensor, kind, inner, batch, axes)

    def _laid(self, tensor: Tensor, kind: int, inner: tuple[int, ...], batch: int, axes: int) -> _c.Positions:
        shape = tensor.shape
        lead = shape[: len(shape) - len(inner)]
        if shape[len(lead) :] != inner or len(lead) > 2:
            raise self._misfit(tensor, inner, batch, axes)
        strides = tensor.strides[: len(lead)]
        rows, row_stride, own_axes, axis_stride = 1, 0, 1, 0
        if len(lead) == 2:
            (own_axes, rows), (axis_stride, row_stride) = lead, strides
        elif len(lead) == 1 and axes > 1:
            own_axes, axis_stride = lead[0], strides[0]
        elif len(lead) == 1:
            rows, row_stride = lead[0], strides[0]
        if rows not in (1, batch):
            raise self._misfit(tensor, inner, batch, axes)
        if own_axes != axes:
            raise Error(f"{tensor.name} has {own_axes} axes, the spec has {axes}")
        if tensor.empty:
            return _c.Positions(kind=kind, shared=int(rows == 1 and batch > 1))
        need = inner[0] if inner else 1
        if inner and inner[0] > 1 and tensor.strides[-1] != 1:
            raise Error(
                f"{tensor.name} has strides {list(tensor.strides)}, positions of one sequence must be contiguous"
            )
        if own_axes > 1 and axis_stride == 0:
            raise Error(f"{tensor.name} has strides {list(tensor.strides)}, its axes must not share memory")
        shared = rows == 1 and batch > 1 or (rows > 1 and row_stride == 0)
        if not shared and rows > 1 and row_stride != need:
            raise Error(f"{tensor.name} has strides {list(tensor.strides)}, its sequences must follow one another")
        ids = _c.Ids(data=tensor.address, len=tensor.span, element=_tensor.INTEGERS[tensor.dtype])
        return _c.Positions(kind=kind, shared=int(shared), ids=ids, axis_stride=axis_stride if own_axes > 1 else 0)

    def _misfit(self, tensor: Tensor, inner: tuple[int, ...], batch: int, axes: int) -> Error:
        wanted = ", ".join(["axes"] * (axes > 1) + ["batch"] + ["tokens"] * len(inner))
        tokens = f" of {inner[0]} tokens" if inner else ""
        return Error(
            f"{tensor.name} has the shape {list(tensor.shape)}, it must be [{wanted}] with {batch} sequences{tokens}"
        )

    def _integers(self, name: str, x: Any) -> Any:
        """Numbers of Python become an array where the call computes on the CPU."""
        if isinstance(x, (int, list, tuple, range)):
            import numpy

            array = numpy.atleast_1d(numpy.asarray(x, dtype=numpy.int64))
            if self.ordinal not in (None, CPU):
                raise Error(f"{name} is {type(x).__name__}, on {_tensor.device_name(self.ordinal)} it must be a tensor")
            return array
        return x

    def places(self, places: Places | None, batch: int, queries: int, keys: int) -> _c.Places:
        places = Places() if places is None else places
        out = _c.Places(
            queries=self._place("query_positions", places.queries, places.query_lengths, batch, queries),
            keys=self._place("key_positions", places.keys, places.key_lengths, batch, keys),
        )
        if (places.cu_seqlens_q is None) != (places.cu_seqlens_k is None):
            raise Error("one of cu_seqlens_q and cu_seqlens_k is given, packed sequences have both")
        if places.cu_seqlens_q is not None:
            out.packed_queries = self.plain("cu_seqlens_q", places.cu_seqlens_q, dtypes=("int32",))
            out.packed_keys = self.plain("cu_seqlens_k", places.cu_seqlens_k, dtypes=("int32",))
            out.sequences = max(out.packed_queries.len, 1) - 1
        return out

    def _place(self, name: str, place: Any, lengths: Any, batch: int, n: int) -> _c.Place:
        out = _c.Place(lengths=self.plain(name.replace("positions", "lengths"), lengths, dtypes=("int32",)))
        if isinstance(place, str):
            if place != "bottom_right":
                raise Error(f"{name} is {place!r}, it may be 'bottom_right', a number or int32 [{batch}, {n}]")
            out.kind = _c.PLACE_BOTTOM_RIGHT
        elif isinstance(place, int):
            if not -(2**63) <= place < 2**63:
                raise Error(f"{name} starts at {place}, which 64 bits do not hold")
            out.kind, out.start = _c.PLACE_COUNTED, place
        else:
            out.kind, out.ids = _c.PLACE_IDS, self.plain(name, place, dtypes=("int32",), shape=(batch, n))
        return out

    def run(self, name: str, plan: Handle, call: Any) -> None:
        """Calls a verb of a plan."""
        _library.call(name, plan.address, ctypes.byref(call))


#: orders of the sizes of queries and keys: `[batch, tokens, heads, dim]` and `[batch, heads, tokens, dim]`
HEADS = {"bthd": ("batch", "tokens", "heads", "dim"), "bhtd": ("batch", "heads", "tokens", "dim")}


def _sizes(tensor: Tensor, names: tuple[str, ...], order: tuple[str, ...]) -> dict[str, Any]:
    """Sizes and strides by name. The last one has to be contiguous, a batch may be missing."""
    shape, strides = tensor.shape, tensor.strides
    if len(shape) == len(names) - 1:
        shape, strides = (1, *shape), (tensor.span, *strides)
    if len(shape) != len(names):
        wanted = ", ".join(names[1:])
        raise Error(f"{tensor.name} has the shape {list(shape)}, it must be [{wanted}], or with a batch before it")
    if shape[-1] > 1 and strides[-1] != 1 and not tensor.empty:
        raise Error(f"{tensor.name} has strides {list(strides)}, its last dimension must be contiguous")
    own = dict(zip(names, zip(shape, strides, strict=True), strict=True))
    sizes = {name: own[name][0] for name in order}
    return {**sizes, "strides": tuple(own[name][1] for name in order[:-1])}


class Places:
    """Positions of queries and keys of a softmax or a bias, and how many of them each sequence has.

    `queries` is `"bottom_right"` (the last query is at the last key's position, the default), the position of the
    first query, or int32 `[batch, queries]`; `keys` the position of the first key or int32 `[batch, keys]`; lengths
    are int32 `[batch]`. `cu_seqlens_q` and `cu_seqlens_k`, int32 `[sequences + 1]`, pack sequences into a batch of
    one.
    """

    __slots__ = ("cu_seqlens_k", "cu_seqlens_q", "key_lengths", "keys", "queries", "query_lengths")

    def __init__(
        self,
        queries: Any = "bottom_right",
        keys: Any = 0,
        *,
        query_lengths: Any = None,
        key_lengths: Any = None,
        cu_seqlens_q: Any = None,
        cu_seqlens_k: Any = None,
    ) -> None:
        self.queries, self.keys = queries, keys
        self.query_lengths, self.key_lengths = query_lengths, key_lengths
        self.cu_seqlens_q, self.cu_seqlens_k = cu_seqlens_q, cu_seqlens_k
