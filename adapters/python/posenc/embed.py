"""What is added to the token embedding: sinusoids, timesteps, grids, learned tables, resampling."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

from . import _c, _library, _plan, _tensor
from ._library import Handle
from ._plan import Call
from ._spec import Spec
from ._tensor import CPU
from .errors import Error
from .rotate import PAIRINGS, Pairing, choice


@dataclass(frozen=True)
class Sinusoid(Spec):
    """Sinusoids of `dim` channels: `sin` and `cos` of `scale (position + offset) max_period^(-pair / (dim / 2 -
    shift))`.

    The defaults are the paper's. `odd`: what the last of an odd number of channels holds, `"refuse"`, `"zero"` or
    `"longer"` (the first wave of one more pair). `frequencies` may be rounded to f32, f16 or bf16. The position
    `padding` gives zeros.
    """

    dim: int
    pairing: Pairing = "interleaved"
    cosine_first: bool = False
    odd: Literal["refuse", "zero", "longer"] = "refuse"
    frequencies: Literal["exact", "float32", "float16", "bfloat16"] = "exact"
    shift: float = 0.0
    max_period: float = 10_000.0
    scale: float = 1.0
    offset: int = 0
    padding: int | None = None

    def struct(self) -> _c.SinusoidSpec:
        """The struct of posenc.h."""
        return _c.SinusoidSpec(
            dim=self.dim,
            pairing=choice("pairing", self.pairing, PAIRINGS),
            cosine_first=int(self.cosine_first),
            odd=choice("odd", self.odd, _ODD),
            frequencies=choice("frequencies", self.frequencies, _FREQUENCIES),
            shift=self.shift,
            max_period=self.max_period,
            scale=self.scale,
            offset=self.offset,
            has_padding=int(self.padding is not None),
            padding=self.padding or 0,
        )

    def write(
        self, out: Any, *, positions: Any = None, starts: Any = None, cu_seqlens: Any = None, stream: Any = None
    ) -> Any:
        """Writes sinusoids into `out`, `[tokens, dim]` or `[batch, tokens, dim]`; positions as in `Rope.rotate`."""
        return self._run("posenc_sinusoid_write", out, 1.0, positions, starts, cu_seqlens, stream)

    def add_(
        self,
        x: Any,
        scale: float = 1.0,
        *,
        positions: Any = None,
        starts: Any = None,
        cu_seqlens: Any = None,
        stream: Any = None,
    ) -> Any:
        """`x = x * scale + sinusoid` in place."""
        return self._run("posenc_sinusoid_add", x, scale, positions, starts, cu_seqlens, stream)

    def _run(self, verb: str, x: Any, scale: float, positions: Any, starts: Any, cu_seqlens: Any, stream: Any) -> Any:
        call = Call(stream)
        tensor = call.elements("x" if verb.endswith("add") else "out", x, True)
        own = _c.SinusoidCall(x=call.buffer(tensor), tokens=call.tokens(tensor), scale=scale)
        batch, tokens = own.tokens.batch, own.tokens.tokens
        own.positions = call.positions(positions, starts, cu_seqlens, batch, tokens, 1)
        if not tensor.empty:
            call.run(verb, self._plan("sinusoid", call), own)
        return x

    def timesteps(self, t: Any, out: Any, *, stream: Any = None) -> Any:
        """Writes one row for each fractional time of diffusion models: `t`, f32 or f64 `[times]`, `out` `[times,
        dim]`."""
        call = Call(stream)
        target = call.elements("out", out, True)
        times = call.tensor("t", t, dtypes=("float32", "float64"))
        own = _c.TimestepCall(out=call.buffer(target), tokens=call.tokens(target), t=call.whole(times))
        own.t_element = _tensor.ELEMENTS[times.dtype]
        if own.tokens.batch * own.tokens.tokens != times.span:
            raise Error(f"t holds {times.span} times, out has the shape {list(target.shape)}")
        if not target.empty:
            call.run("posenc_timestep_write", self._plan("timestep", call), own)
        return out

    def _plan(self, kind: str, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            return Handle(kind, f"posenc_{kind}_new", gpu.address, ctypes.byref(self.struct()), call.code)

        return _plan.cached(kind, (self, call.code), call.where, make)

    def table(self, positions: Any) -> Any:
        """The law as a numpy array: f32 `[tokens, dim]`."""
        import numpy

        ids = numpy.atleast_1d(numpy.asarray(positions, dtype=numpy.int64))
        return self.write(numpy.empty((len(ids), self.dim), numpy.float32), positions=ids)


_ODD = {"refuse": _c.ODD_REFUSE, "zero": _c.ODD_ZERO, "longer": _c.ODD_LONGER}
_FREQUENCIES = {
    "exact": _c.FREQUENCIES_EXACT,
    "float32": _c.FREQUENCIES_F32,
    "float16": _c.FREQUENCIES_F16,
    "bfloat16": _c.FREQUENCIES_BF16,
}
_ALONG = {"frames": _c.ALONG_FRAMES, "rows": _c.ALONG_ROWS, "columns": _c.ALONG_COLUMNS}


@dataclass(frozen=True)
class Grid(Spec):
    """The sinusoids of a grid's axes side by side: `axes` are pairs of a direction (`"frames"`, `"rows"`,
    `"columns"`) and a `Sinusoid`. `by_wave` puts the first wave of every axis before the second."""

    axes: tuple[tuple[Literal["frames", "rows", "columns"], Sinusoid], ...]
    by_wave: bool = False

    def write(self, out: Any, rows: int, columns: int, frames: int = 1, *, stream: Any = None) -> Any:
        """Writes the grid's table, once for each sequence: `out` is `[frames * rows * columns, dim]`, or with a
        batch."""
        return self._run("posenc_grid_write", out, 1.0, rows, columns, frames, stream)

    def add_(self, x: Any, rows: int, columns: int, frames: int = 1, scale: float = 1.0, *, stream: Any = None) -> Any:
        """`x = x * scale + grid` in place."""
        return self._run("posenc_grid_add", x, scale, rows, columns, frames, stream)

    def _run(self, verb: str, x: Any, scale: float, rows: int, columns: int, frames: int, stream: Any) -> Any:
        call = Call(stream)
        tensor = call.elements("x" if verb.endswith("add") else "out", x, True)
        own = _c.GridCall(x=call.buffer(tensor), tokens=call.tokens(tensor), scale=scale)
        own.frames, own.rows, own.columns = frames, rows, columns
        if not tensor.empty:
            call.run(verb, self._plan(call), own)
        return x

    def write_masked(
        self,
        out: Any,
        mask: Any,
        *,
        normalize: bool = True,
        scale: float = 6.283185307179586,
        centre: float = 0.0,
        stream: Any = None,
    ) -> Any:
        """Writes a table for each image whose coordinates are counted over a mask, uint8 or bool `[batch, rows,
        columns]`, as in DETR: `out` is `[batch, rows * columns, dim]`."""
        call = Call(stream)
        tensor = call.elements("out", out, True)
        cells = call.tensor("mask", mask, dtypes=("uint8", "int8", "bool"))
        if len(cells.shape) != 3:
            raise Error(f"mask has the shape {list(cells.shape)}, it must be [batch, rows, columns]")
        own = _c.GridMaskedCall(out=call.buffer(tensor), tokens=call.tokens(tensor), mask=call.whole(cells))
        own.rows, own.columns = cells.shape[1:]
        own.normalize, own.scale, own.centre = int(normalize), scale, centre
        if not tensor.empty:
            call.run("posenc_grid_write_masked", self._plan(call), own)
        return out

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            axes = (_c.Axis * len(self.axes))()
            for at, (along, sinusoid) in enumerate(self.axes):
                axes[at] = _c.Axis(along=choice("direction", along, _ALONG), sinusoid=sinusoid.struct())
            spec = _c.GridSpec(
                blocks=_c.BY_WAVE if self.by_wave else _c.BY_AXIS,
                axis_count=len(axes),
                axes=ctypes.addressof(axes),
            )
            return Handle("grid", "posenc_grid_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("grid", (self, call.code), call.where, make)


@dataclass(frozen=True)
class Tables:
    """The tables of a learned embedding: `token`, `position` and `types`, `[rows, dim]`; `gain` and `bias` of the
    norm, `[dim]`."""

    token: Any = None
    position: Any = None
    types: Any = None
    gain: Any = None
    bias: Any = None

    def struct(self, call: Call, dim: int) -> _c.Tables:
        """The struct of posenc.h."""
        own = _c.Tables()
        for name in ("token", "position", "types"):
            if (x := getattr(self, name)) is not None:
                tensor = call.elements(name, x)
                if len(tensor.shape) != 2 or tensor.shape[1] != dim:
                    raise Error(f"{name} has the shape {list(tensor.shape)}, it must be [rows, {dim}]")
                setattr(own, name, call.whole(tensor))
        own.gain, own.bias = call.own("gain", self.gain, shape=(dim,)), call.own("bias", self.bias, shape=(dim,))
        return own


@dataclass(frozen=True)
class Lookup:
    """Integers of a call, each `[batch, tokens]`: token `ids`, token `types`, `mask` (uint8, 1 for a token), and
    positions as in `Rope.rotate`."""

    ids: Any = None
    types: Any = None
    mask: Any = None
    positions: Any = None
    starts: Any = None
    cu_seqlens: Any = None

    def struct(self, call: Call, batch: int, tokens: int) -> _c.Lookup:
        """The struct of posenc.h."""
        own = _c.Lookup(ids=call.ids("ids", self.ids), types=call.ids("types", self.types))
        for name, integers in (("ids", own.ids), ("types", own.types)):
            if getattr(self, name) is not None and integers.len != batch * tokens:
                raise Error(f"{name} holds {integers.len} integers, {batch} sequences of {tokens} tokens need as many")
        own.mask = call.plain("mask", self.mask, dtypes=("uint8", "int8", "bool"))
        own.positions = call.positions(self.positions, self.starts, self.cu_seqlens, batch, tokens, 1)
        return own


class ErrorFlag:
    """A flag on a device that kernels raise when an id lies outside its table. On the CPU such an id is an error of
    the call."""

    def __init__(self, device: int = CPU, *, stream: Any = None) -> None:
        at = 0 if stream is None else _plan.stream_of(stream)
        self._handle = Handle("error_flag", "posenc_error_flag_new", _plan.device(device, at).address)

    def check(self) -> None:
        """Waits for the stream and takes the flag down; an error with the first token and its table, if it was up."""
        _library.call("posenc_error_flag_check", self._handle.address)


def _flag(flag: ErrorFlag | None) -> int | None:
    return None if flag is None else flag._handle.address


@dataclass(frozen=True)
class Learned(Spec):
    """Learned tables: `norm(token[id] * scale + position[row] + type[kind])`.

    The row is `position + first`; with `kept="id"` (`"mask"`) tokens whose id is not `padding` (whose mask is 1) are
    counted from row `first` on, and the others read row `padded`.
    """

    dim: int
    scale: float = 1.0
    norm: Literal["none", "layer", "rms"] = "none"
    eps: float = 1e-5
    kept: Literal["none", "id", "mask"] = "none"
    first: int = 0
    padded: int = 0
    padding: int = 0

    def struct(self) -> _c.LearnedSpec:
        """The struct of posenc.h."""
        return _c.LearnedSpec(
            dim=self.dim,
            scale=self.scale,
            rows=choice("kept", self.kept, _ROWS),
            norm=choice("norm", self.norm, _NORMS),
            first=self.first,
            padded=self.padded,
            padding=self.padding,
            eps=self.eps,
        )

    def gather(
        self, out: Any, tables: Tables, lookup: Lookup, *, flag: ErrorFlag | None = None, stream: Any = None
    ) -> Any:
        """Gathers, adds and normalises into `out`, `[tokens, dim]` or `[batch, tokens, dim]`. Without a token table
        the rows of `out` are read in its place."""
        call = Call(stream)
        tensor = call.elements("out", out, True)
        own = _c.LearnedCall(x=call.buffer(tensor), tokens=call.tokens(tensor), flag=_flag(flag))
        own.tables = tables.struct(call, self.dim)
        own.lookup = lookup.struct(call, own.tokens.batch, own.tokens.tokens)
        if not tensor.empty:
            call.run("posenc_learned_gather", self._plan(call), own)
        return out

    def rows(self, out: Any, lookup: Lookup, *, stream: Any = None) -> Any:
        """Writes the row of the position table that each token reads into `out`, int64 `[batch, tokens]`."""
        call = Call(stream)
        tensor = call.tensor("out", out, True, ("int64",))
        if len(tensor.shape) != 2:
            raise Error(f"out has the shape {list(tensor.shape)}, it must be [batch, tokens]")
        own = _c.RowsCall(rows=call.whole(tensor), batch=tensor.shape[0], tokens=tensor.shape[1])
        own.lookup = lookup.struct(call, *tensor.shape)
        if not tensor.empty:
            call.run("posenc_learned_rows", self._plan(call), own)
        return out

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            return Handle("learned", "posenc_learned_new", gpu.address, ctypes.byref(self.struct()), call.code)

        return _plan.cached("learned", (self, call.code), call.where, make)


_ROWS = {"none": _c.ROWS_OFFSET, "id": _c.ROWS_KEPT_BY_ID, "mask": _c.ROWS_KEPT_BY_MASK}
_NORMS = {"none": _c.NORM_NONE, "layer": _c.NORM_LAYER, "rms": _c.NORM_RMS}


class LearnedGrad:
    """Gradients of learned tables, for calls of up to `batch` sequences of `tokens`."""

    def __init__(self, learned: Learned, batch: int, tokens: int) -> None:
        self.learned, self.batch, self.tokens = learned, batch, tokens

    def norm(
        self,
        grad: Any,
        sum_grad: Any,
        tables: Tables,
        lookup: Lookup,
        *,
        x: Any = None,
        gain_grad: Any = None,
        bias_grad: Any = None,
        accumulate: bool = False,
        flag: ErrorFlag | None = None,
        stream: Any = None,
    ) -> None:
        """Writes the gradient of the sum before the norm into `sum_grad`, and those of gain and bias where they are
        wanted. `x` is what the forward call read in place of token rows."""
        call = Call(stream)
        given, out = call.elements("grad", grad), call.elements("sum_grad", sum_grad, True)
        own = _c.NormGradCall(sum=call.buffer(out), sum_tokens=call.tokens(out), flag=_flag(flag))
        own.grad, own.grad_tokens = call.buffer(given), call.tokens(given)
        own.gain = call.own("gain_grad", gain_grad, True, (self.learned.dim,))
        own.bias = call.own("bias_grad", bias_grad, True, (self.learned.dim,))
        if x is not None:
            read = call.elements("x", x)
            own.x, own.x_tokens = call.buffer(read), call.tokens(read)
        own.tables = tables.struct(call, self.learned.dim)
        own.lookup = lookup.struct(call, own.grad_tokens.batch, own.grad_tokens.tokens)
        own.accumulate = int(accumulate)
        call.run("posenc_learned_grad_norm", self._plan(call), own)

    def counted(
        self,
        grad: Any,
        table_grad: Any,
        *,
        first: int = 0,
        scale: float = 1.0,
        accumulate: bool = False,
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of a position table whose positions are counted, from row `first` on."""
        call = Call(stream)
        own = self._table(call, grad, table_grad, scale, accumulate)
        own.first = first
        call.run("posenc_learned_grad_counted", self._plan(call), own)
        return table_grad

    def order(self, ids: Any, out: Any, dtype: str = "float32", *, stream: Any = None) -> Any:
        """Writes the tokens in the order of their ids into `out`, uint32 (or int32) `[count]`."""
        call = Call(stream)
        call.element = dtype
        own = _c.OrderCall(ids=call.ids("ids", ids), order=call.plain("out", out, True, ("uint32", "int32")))
        own.count = own.ids.len
        if own.order.len != own.count:
            raise Error(f"out holds {own.order.len} integers, there are {own.count} ids")
        call.run("posenc_learned_grad_order", self._plan(call), own)
        return out

    def table(
        self,
        grad: Any,
        table_grad: Any,
        ids: Any,
        order: Any,
        *,
        scale: float = 1.0,
        skipped: int | None = None,
        accumulate: bool = False,
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of a table by ids at the rows that some token reads. `order` is what `order` wrote;
        the row of the id `skipped` has no gradient."""
        call = Call(stream)
        own = self._table(call, grad, table_grad, scale, accumulate)
        own.ids = call.ids("ids", ids)
        own.order = call.plain("order", order, dtypes=("uint32", "int32"))
        own.has_skipped, own.skipped = int(skipped is not None), skipped or 0
        call.run("posenc_learned_grad_table", self._plan(call), own)
        return table_grad

    def _table(self, call: Call, grad: Any, out: Any, scale: float, accumulate: bool) -> _c.TableGradCall:
        given, table = call.elements("grad", grad), call.elements("table_grad", out, True)
        if len(table.shape) != 2 or table.shape[1] != self.learned.dim:
            raise Error(f"table_grad has the shape {list(table.shape)}, it must be [rows, {self.learned.dim}]")
        return _c.TableGradCall(
            table=call.whole(table),
            rows=table.shape[0],
            grad=call.buffer(given),
            tokens=call.tokens(given),
            scale=scale,
            accumulate=int(accumulate),
        )

    def _plan(self, call: Call) -> Handle:
        most = _c.Tokens(batch=self.batch, tokens=self.tokens, dim=self.learned.dim)
        most.strides = (self.tokens * self.learned.dim, self.learned.dim)

        def make(gpu: Handle) -> Handle:
            spec = self.learned.struct()
            rest = ctypes.byref(spec), ctypes.byref(most), call.code
            return Handle("learned_grad", "posenc_learned_grad_new", gpu.address, *rest)

        return _plan.cached("learned_grad", (self.learned, self.batch, self.tokens, call.code), call.where, make)


@dataclass(frozen=True)
class Resample(Spec):
    """Resampling of a learned table of an image's tokens: from a grid of `from_size` (rows, columns) to one of
    `to_size`, behind `prefix` tokens that are copied. `factors`: new over old of both axes, in place of the quotient
    of the sizes. `align_corners`: the first and last outputs stand on the first and last inputs."""

    from_size: tuple[int, int]
    to_size: tuple[int, int]
    prefix: int = 0
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = False
    factors: tuple[float, float] = (0.0, 0.0)
    weighting: Literal["exact", "torch_f32"] = "exact"
    align_corners: bool = False

    def write(self, table: Any, out: Any, *, stream: Any = None) -> Any:
        """Resamples `table`, `[prefix + rows * columns, dim]`, into `out`."""
        call = Call(stream)
        source, target = call.elements("table", table), call.elements("out", out, True)
        call.run("posenc_resample_write", self._plan(call), self._call(call, source, target))
        return out

    def grad(self, grad: Any, table_grad: Any, *, accumulate: bool = False, stream: Any = None) -> Any:
        """Writes the gradient of the table from that of the resampled one."""
        call = Call(stream)
        source, target = call.elements("table_grad", table_grad, True), call.elements("grad", grad)
        own = self._call(call, source, target)
        own.accumulate = int(accumulate)
        call.run("posenc_resample_grad", self._plan(call), own)
        return table_grad

    def _call(self, call: Call, table: Any, resampled: Any) -> _c.ResampleCall:
        return _c.ResampleCall(
            table=call.buffer(table),
            table_tokens=call.tokens(table),
            resampled=call.buffer(resampled),
            resampled_tokens=call.tokens(resampled),
        )

    def _plan(self, call: Call) -> Handle:
        spec = _c.ResampleSpec(to=self.to_size, prefix=self.prefix, antialias=int(self.antialias), factors=self.factors)
        setattr(spec, "from", self.from_size)
        spec.align_corners = int(self.align_corners)
        spec.filter = choice("filter", self.filter, {"bilinear": _c.BILINEAR, "bicubic": _c.BICUBIC})
        weightings = {"exact": _c.WEIGHTING_EXACT, "torch_f32": _c.WEIGHTING_TORCH_F32}
        spec.weighting = choice("weighting", self.weighting, weightings)

        def make(gpu: Handle) -> Handle:
            return Handle("resample", "posenc_resample_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("resample", (self, call.code), call.where, make)
