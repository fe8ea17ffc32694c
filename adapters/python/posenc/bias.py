"""What is added to attention logits: biases by distance, by window and by content, with their gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from . import _c, _library, _plan, _tensor
from ._library import Handle
from ._plan import Call, Places
from ._spec import Spec
from ._tensor import CPU
from .errors import Error
from .rotate import choice


def host(name: str, values: Any, dtype: str, shape: tuple[int | None, ...]) -> Any:
    """Numbers of a spec in host memory, as a contiguous numpy array of this shape; None is any size."""
    import numpy

    array = numpy.ascontiguousarray(values, dtype=dtype)
    if array.ndim != len(shape) or any(want not in (None, n) for n, want in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise Error(f"{name} has the shape {list(array.shape)}, it must be [{wanted}]")
    return array


def _key(*parts: Any) -> tuple[Any, ...]:
    """What tells two specs apart, hashed once: arrays by their bytes."""
    return tuple((part.shape, part.tobytes()) if hasattr(part, "tobytes") else part for part in parts)


class Bias(Spec):
    """A bias of attention logits: written, added, or given to a softmax."""

    #: part of the constructor's name
    _name: ClassVar[str]
    heads: int

    def __init__(self, key: tuple[Any, ...]) -> None:
        self._key = (type(self).__name__, *key)
        self._freeze()

    def _spec(self) -> Any:
        raise NotImplementedError

    def _make(self, gpu: Handle, element: int) -> Handle:
        spec = self._spec()
        return Handle("bias", f"posenc_bias_{self._name}_new", gpu.address, ctypes.byref(spec), element)

    def _handle(self, call: Call) -> Handle:
        return _plan.cached("bias", (self._key, call.code), call.where, lambda gpu: self._make(gpu, call.code))

    def write(
        self,
        out: Any,
        places: Places | None = None,
        *,
        gates: Any = None,
        terms: Sequence[TermInputs] = (),
        stream: Any = None,
    ) -> Any:
        """Writes the bias of every query and key into `out`, `[batch, heads, queries, keys]` or without the batch.
        `gates`, f32 `[batch, heads, queries]`, multiply it; `terms` are what the terms of a sum read."""
        return self._run("posenc_bias_write", "out", out, places, gates, terms, stream)

    def add_(
        self,
        logits: Any,
        places: Places | None = None,
        *,
        gates: Any = None,
        terms: Sequence[TermInputs] = (),
        stream: Any = None,
    ) -> Any:
        """Adds the bias to logits in place."""
        return self._run("posenc_bias_add", "logits", logits, places, gates, terms, stream)

    def _run(
        self, verb: str, name: str, x: Any, places: Places | None, gates: Any, terms: Sequence[TermInputs], stream: Any
    ) -> Any:
        call = Call(stream)
        tensor = call.elements(name, x, True)
        own = _c.BiasCall(x=call.buffer(tensor), shape=call.logits(tensor))
        shape = own.shape
        own.places = call.places(places, shape.batch, shape.queries, shape.keys)
        own.gates = call.plain("gates", gates, shape=(shape.batch, shape.heads, shape.queries))
        inputs = term_structs(call, terms)
        own.terms, own.term_count = _plan.address_of(inputs), len(terms)
        if not tensor.empty:
            call.run(verb, self._handle(call), own)
        return x

    def matrix(self, queries: int, keys: int, places: Places | None = None, *, terms: Sequence[TermInputs] = ()) -> Any:
        """The law as a numpy array: the bias of every query and key, f32 `[heads, queries, keys]`."""
        import numpy

        return self.write(numpy.empty((self.heads, queries, keys), numpy.float32), places, terms=terms)

    def plan(self, dtype: str = "float32", *, device: int = CPU, stream: Any = None) -> BiasPlan:
        """A plan of its own on a device, whose table or numbers may be set."""
        return BiasPlan(self, dtype, device, stream)

    def _numbers(self, which: int = 0) -> Any:
        return self.plan().numbers(which)


class BiasPlan(Bias):
    """A bias with numbers of its own on one device and stream, for logits of one element type."""

    def __init__(self, bias: Bias, dtype: str, device: int, stream: Any) -> None:
        self.bias, self.dtype, self.heads = bias, dtype, bias.heads
        names = {name: _tensor.ELEMENTS[name] for name in ("float32", "float16", "bfloat16")}
        self._at = device, 0 if stream is None else _plan.stream_of(stream)
        self._own = bias._make(_plan.device(*self._at), choice("dtype", dtype, names))

    def _handle(self, call: Call) -> Handle:
        if call.where != self._at or call.element not in (None, self.dtype):
            device = _tensor.device_name(call.where[0])
            made = f"{self.dtype} on {_tensor.device_name(self._at[0])}, stream {self._at[1]:#x}"
            raise Error(
                f"the call is {call.element} on {device}, stream {call.where[1]:#x}; this bias was made for {made}"
            )
        return self._own

    def set_table(self, table: Any) -> None:
        """Takes a new T5 table, f32 `[buckets, heads]`, where the tensor lies."""
        call = Call(None if self._at[0] == CPU else self._at[1])
        own = _c.SetTableCall(table=call.plain("table", table))
        call.run("posenc_bias_set_table", self._handle(call), own)

    def numbers(self, which: int = 0) -> Any:
        """The numbers of the plan, f32, to be read or trained in place: 0 the row `[heads * distances]` or the
        slopes of the past, 1 those of the future. On the CPU a numpy array, on a device an object with
        `__cuda_array_interface__`; both keep the plan."""
        own = _library.gives("posenc_bias_numbers", _c.Buffer(), self._own.address, which)
        return Numbers(own.data or 0, own.len, self._at[0] != CPU, self._own).array()


class Numbers:
    """Memory of a plan."""

    def __init__(self, address: int, count: int, on_device: bool, kept: Any) -> None:
        self._kept = kept
        interface = {"data": (address, False), "shape": (count,), "typestr": "<f4", "version": 3}
        self._on_device = on_device
        if on_device:
            self.__cuda_array_interface__ = interface
        else:
            self.__array_interface__ = interface

    def array(self) -> Any:
        """A numpy array, or this itself on a device."""
        import numpy

        return self if self._on_device else numpy.asarray(self)


# ---------------------------------------------------------------------------------------------------------- by distance

Sides = Literal["symmetric", "signed", "halves"]
_SIDES = {"symmetric": _c.SIDES_SYMMETRIC, "signed": _c.SIDES_SIGNED, "halves": _c.SIDES_HALVES}


class Alibi(Bias):
    """ALiBi: `-slope * |key - query|`, for `heads` heads from `first` on of a model of `total_heads`.

    `sides`: `"symmetric"`; `"signed"`, the future is rewarded; `"halves"`, half of the heads sees the past alone.
    `key_only`: the key's position takes the place of the distance.
    """

    _name = "alibi"

    def __init__(
        self,
        heads: int,
        total_heads: int | None = None,
        first: int = 0,
        max_bias: float = 8.0,
        scale: float = 1.0,
        sides: Sides = "symmetric",
        key_only: bool = False,
    ) -> None:
        self.heads, self.total_heads, self.first = heads, heads if total_heads is None else total_heads, first
        self.max_bias, self.scale, self.sides, self.key_only = max_bias, scale, sides, key_only
        super().__init__(_key(heads, self.total_heads, first, max_bias, scale, sides, key_only))

    def _spec(self) -> _c.AlibiSpec:
        return _c.AlibiSpec(
            total_heads=self.total_heads,
            first=self.first,
            heads=self.heads,
            max_bias=self.max_bias,
            scale=self.scale,
            sides=choice("sides", self.sides, _SIDES),
            key_only=int(self.key_only),
        )

    def slopes(self) -> Any:
        """The law as a numpy array: the slope of each head, f32 `[heads]`."""
        return self._numbers()


class KeyOnlyAlibi(Bias):
    """ALiBi as one library computes it, a number per key from position 0 on, in its rounding."""

    _name = "key_only"
    _LIBRARIES: ClassVar[dict[str, int]] = {
        "bloom": _c.KEY_ONLY_BLOOM,
        "mpt": _c.KEY_ONLY_MPT,
        "flash_attention": _c.KEY_ONLY_FLASH_ATTENTION,
        "falcon": _c.KEY_ONLY_FALCON,
    }

    def __init__(self, alibi: Alibi, library: str, keys: int) -> None:
        self.alibi, self.library, self.keys, self.heads = alibi, library, keys, alibi.heads
        super().__init__(_key(alibi._key, library, keys))

    def _spec(self) -> _c.KeyOnlySpec:
        library = choice("library", self.library, self._LIBRARIES)
        return _c.KeyOnlySpec(alibi=self.alibi._spec(), library=library, keys=self.keys)


class Slopes(Bias):
    """Slopes of the caller: `left` for the past and `right` for the future (as `left` without it), `[heads]` or
    `[batch, heads]`."""

    _name = "slopes"

    def __init__(self, left: Any, right: Any = None, *, key_only: bool = False) -> None:
        import numpy

        self.left = host("left", numpy.atleast_2d(numpy.asarray(left)), "float32", (None, None))
        self.right = None if right is None else host("right", numpy.atleast_2d(right), "float32", self.left.shape)
        self.key_only, self.heads = key_only, self.left.shape[1]
        super().__init__(_key(self.left, self.right, key_only))

    def _spec(self) -> _c.SlopesSpec:
        batch, heads = self.left.shape
        spec = _c.SlopesSpec(batch=batch, heads=heads, left=self.left.ctypes.data, key_only=int(self.key_only))
        if self.right is not None:
            spec.right = self.right.ctypes.data
        return spec


class T5(Bias):
    """T5: a number for each bucket of distances and each head. `table` is `[buckets, heads]`; without it,
    `plan().set_table` takes one where the tensors are. `bidirectional`: the future has buckets of its own, as in an
    encoder."""

    _name = "t5"

    def __init__(
        self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = False, table: Any = None
    ) -> None:
        self.heads, self.buckets, self.max_distance, self.bidirectional = heads, buckets, max_distance, bidirectional
        self.table = None if table is None else host("table", table, "float32", (buckets, heads))
        super().__init__(_key(heads, buckets, max_distance, bidirectional, self.table))

    def _spec(self) -> _c.T5Spec:
        spec = _c.T5Spec(
            buckets=self.buckets,
            max_distance=self.max_distance,
            heads=self.heads,
            bidirectional=int(self.bidirectional),
        )
        if self.table is not None:
            spec.table = self.table.ctypes.data
        return spec

    def bucket(self, distances: Any) -> Any:
        """The law as a numpy array: the bucket of each distance `key - query`, int64."""
        import numpy

        d = numpy.atleast_1d(numpy.asarray(distances, dtype=numpy.int32))
        own = T5(1, self.buckets, self.max_distance, self.bidirectional, numpy.arange(self.buckets)[:, None])
        places = Places(queries=0, keys=d[None].copy())
        return own.matrix(1, len(d), places).reshape(-1).astype(numpy.int64)


class Row(Bias):
    """Any law of distance: `values`, `[heads, distances]`, from the distance `first` (key - query) on. `saturates`:
    distances outside take the number at the row's end."""

    _name = "row"

    def __init__(self, values: Any, first: int, *, saturates: bool = False, key_only: bool = False) -> None:
        self.values = host("values", values, "float32", (None, None))
        self.first, self.saturates, self.key_only, self.heads = first, saturates, key_only, self.values.shape[0]
        super().__init__(_key(self.values, first, saturates, key_only))

    def _spec(self) -> _c.RowSpec:
        return _c.RowSpec(
            heads=self.heads,
            first=self.first,
            distances=self.values.shape[1],
            values=self.values.ctypes.data,
            saturates=int(self.saturates),
            key_only=int(self.key_only),
        )


class _OfDistance(Bias):
    """A bias whose plan holds a row of numbers for the distances from `least` to `most`."""

    least: int
    most: int

    def row(self) -> Any:
        """The law as a numpy array: f32 `[heads, distances]`, from the distance `least` (key - query) on."""
        return self._numbers().reshape(self.heads, -1)


class Kerple(_OfDistance):
    """KERPLE: `-p ln(1 + a |distance|)` (`"log"`) or `-a |distance|^p` (`"power"`), for distances from `least` to
    `most`."""

    _name = "kerple"

    def __init__(self, kind: Literal["log", "power"], p: Any, a: Any, least: int, most: int) -> None:
        self.p = host("p", p, "float64", (None,))
        self.a = host("a", a, "float64", self.p.shape)
        self.kind, self.least, self.most, self.heads = kind, least, most, len(self.p)
        super().__init__(_key(kind, self.p, self.a, least, most))

    def _spec(self) -> _c.KerpleSpec:
        return _c.KerpleSpec(
            kind=choice("kind", self.kind, {"log": _c.KERPLE_LOG, "power": _c.KERPLE_POWER}),
            heads=self.heads,
            p=self.p.ctypes.data,
            a=self.a.ctypes.data,
            least=self.least,
            most=self.most,
        )


class Sandwich(_OfDistance):
    """Sandwich: the product of two sinusoidal embeddings of `width` channels, for distances from `least` to `most`."""

    _name = "sandwich"

    def __init__(
        self, heads: int, least: int, most: int, width: int = 128, total_heads: int | None = None, first: int = 0
    ) -> None:
        self.heads, self.total_heads, self.first = heads, heads if total_heads is None else total_heads, first
        self.width, self.least, self.most = width, least, most
        super().__init__(_key(heads, self.total_heads, first, width, least, most))

    def _spec(self) -> _c.SandwichSpec:
        return _c.SandwichSpec(
            total_heads=self.total_heads,
            first=self.first,
            heads=self.heads,
            width=self.width,
            least=self.least,
            most=self.most,
        )


class Fire(Bias):
    """FIRE: a network of `ln(c d + 1) / ln(c max(position, threshold) + 1)`. `in_weight` and `in_bias` are
    `[width]`, `out_weight` `[heads, width]`, `out_bias` `[heads]`; positions and distances beyond `reach` are taken
    as this one."""

    _name = "fire"

    def __init__(
        self,
        in_weight: Any,
        in_bias: Any,
        out_weight: Any,
        out_bias: Any,
        *,
        c: float = 0.1,
        threshold: float = 512.0,
        eps: float = 1e-6,
        reach: int = 1 << 20,
    ) -> None:
        self.in_weight = host("in_weight", in_weight, "float64", (None,))
        width = len(self.in_weight)
        self.in_bias = host("in_bias", in_bias, "float64", (width,))
        self.out_weight = host("out_weight", out_weight, "float64", (None, width))
        self.heads = self.out_weight.shape[0]
        self.out_bias = host("out_bias", out_bias, "float64", (self.heads,))
        self.c, self.threshold, self.eps, self.reach = c, threshold, eps, reach
        weights = self.in_weight, self.in_bias, self.out_weight, self.out_bias
        super().__init__(_key(*weights, c, threshold, eps, reach))

    def _spec(self) -> _c.FireSpec:
        return _c.FireSpec(
            c=self.c,
            threshold=self.threshold,
            eps=self.eps,
            width=len(self.in_weight),
            heads=self.heads,
            in_weight=self.in_weight.ctypes.data,
            in_bias=self.in_bias.ctypes.data,
            out_weight=self.out_weight.ctypes.data,
            out_bias=self.out_bias.ctypes.data,
            reach=self.reach,
        )


# -------------------------------------------------------------------------------------------------------- sums of terms

By = Literal["table", "queries", "keys"]
_BY = {"table": _c.BY_TABLE, "queries": _c.BY_QUERIES, "keys": _c.BY_KEYS}
_COORDINATES = {
    "query_minus_key": _c.COORDINATES_QUERY_MINUS_KEY,
    "key_minus_query": _c.COORDINATES_KEY_MINUS_QUERY,
    "absolute": _c.COORDINATES_ABSOLUTE,
    "key": _c.COORDINATES_KEY,
}
_WINDOW_AXES = {"both": _c.WINDOW_BOTH, "rows": _c.WINDOW_ROWS, "columns": _c.WINDOW_COLUMNS}


class Term(Spec):
    """One term of a bias: a number of an array, whose entry is arithmetic in query and key.

    Made by the names of models (`swin`, `shaw`, `deberta`, ...) or of indices (`whole`, `distance`, `window`,
    `shifted`, `given`, `endpoints`). `factor` multiplies the number; `by` says whether each query or key has a row
    of numbers of its own, such as products of its state with a table, or all share a table.
    """

    def __init__(self, struct: _c.Term | str, lookup: Any = None) -> None:
        own = _c.Term.from_buffer_copy(bytes.fromhex(struct)) if isinstance(struct, str) else struct
        self._kept = None if lookup is None else host("lookup", lookup, "uint16", (own.distances.count,))
        # an address is no part of a text
        own.distances.lookup = 0
        self.struct, self.lookup = bytes(own).hex(), self._kept
        if self._kept is not None:
            own.distances.lookup = self._kept.ctypes.data
        self._struct = own
        self._freeze()

    def scaled(self, factor: float) -> Term:
        """The same with this factor."""
        return self._changed(factor=factor)

    def of(self, by: By) -> Term:
        """The same with numbers in a table, or in a row of each query or key."""
        return self._changed(by=choice("by", by, _BY))

    def _changed(self, **fields: Any) -> Term:
        own = _c.Term.from_buffer_copy(self._struct)
        for name, value in fields.items():
            setattr(own, name, value)
        return Term(own, self._kept)

    @property
    def factor(self) -> float:
        """What multiplies the number."""
        return float(self._struct.factor)

    @property
    def entries(self) -> int:
        """Numbers of a row; 0 for a dense bias, a mask and endpoints."""
        return int(_library.gives("posenc_term_entries", ctypes.c_uint64(), ctypes.byref(self._struct)).value)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.struct, None if self._kept is None else self._kept.tobytes()

    @classmethod
    def _named(cls, name: str, *sizes: int) -> Term:
        for size in sizes:
            if not isinstance(size, int) or size < 0:
                raise Error(f"a size of the term {name} is {size!r}, it must be a whole number that is not negative")
        return cls(_library.gives(f"posenc_term_{name}", _c.Term(), *sizes))

    @classmethod
    def swin(cls, height: int, width: int) -> Term:
        """Swin: a table by `query - key` in a window."""
        return cls._named("swin", height, width)

    @classmethod
    def beit(cls, height: int, width: int) -> Term:
        """BEiT: Swin's entries, one class token and three entries for it."""
        return cls._named("beit", height, width)

    @classmethod
    def maxvit(cls, height: int, width: int) -> Term:
        """MaxViT and CoAtNet: a table by `key - query` in a window."""
        return cls._named("maxvit", height, width)

    @classmethod
    def levit(cls, height: int, width: int, stride: int = 1) -> Term:
        """LeViT and TinyViT: a table by `|query - key|` in a window; `stride` is 2 where LeViT halves the grid."""
        return cls._named("levit", height, width, stride)

    @classmethod
    def decomposed(cls, height: int, width: int, axes: Literal["rows", "columns"]) -> Term:
        """One axis of decomposed positions (SAM, ViTDet, MViTv2): the queries' products, by the key's coordinate."""
        return cls._named("decomposed", height, width, choice("axes", axes, _WINDOW_AXES))

    @classmethod
    def shaw(cls, left: int, right: int) -> Term:
        """Shaw's clipped distances, `clip(key - query, -left, right) + left`, of the queries' products."""
        return cls._named("shaw", left, right)

    @classmethod
    def vits(cls, window: int) -> Term:
        """VITS: Shaw's entries up to `window` on both sides, nothing beyond, of the queries' products."""
        return cls._named("vits", window)

    @classmethod
    def speecht5(cls, max_length: int) -> Term:
        """SpeechT5: `clamp(query - key, -max_length, max_length - 1) + max_length`, of the queries' products."""
        return cls._named("speecht5", max_length)

    @classmethod
    def gemma_audio(cls, past: int, right: int) -> Term:
        """The audio encoders of Gemma 3n and 4: row `past - (query - key)`, of the queries' products."""
        return cls._named("gemma_audio", past, right)

    @classmethod
    def bert(cls, max_positions: int) -> Term:
        """BERT's `relative_key`: `query - key + max_positions - 1`, of the queries' products."""
        return cls._named("bert", max_positions)

    @classmethod
    def transformer_xl(cls, keys: int) -> Term:
        """Transformer-XL: `keys` rows, from the distance `keys - 1` into the past on, of the queries' products."""
        return cls._named("transformer_xl", keys)

    @classmethod
    def xlnet(cls, queries: int, keys: int) -> Term:
        """XLNet: `keys + queries` rows, from the distance `keys` into the past on, of the queries' products."""
        return cls._named("xlnet", queries, keys)

    @classmethod
    def conformer(cls, tokens: int) -> Term:
        """Conformer: `2 tokens - 1` rows, from the distance `tokens - 1` into the past on, of the queries' products."""
        return cls._named("conformer", tokens)

    @classmethod
    def inkling(cls, extent: int) -> Term:
        """Inkling's band: `query - key` from 0 to below `extent`, nothing outside, of the queries' products."""
        return cls._named("inkling", extent)

    @classmethod
    def deberta_v1(cls, span: int) -> Term:
        """DeBERTa v1: `clamp(query - key + span, 0, 2 span - 1)`, of the queries' products; `.of("keys")` is the
        keys' term."""
        return cls._named("deberta_v1", span)

    @classmethod
    def deberta(cls, buckets: int, max_positions: int) -> Term:
        """DeBERTa v2 and v3: logarithmic buckets of `query - key`, of the queries' products; `.of("keys")` is the
        keys' term."""
        return cls._named("deberta", buckets, max_positions)

    @classmethod
    def whole(cls) -> Term:
        """A dense bias: a number for each query and key."""
        return cls(_c.Term(kind=_c.TERM_WHOLE, factor=1.0))

    @classmethod
    def distance(
        cls,
        first: int,
        count: int,
        *,
        lookup: Any = None,
        entries: int | None = None,
        query_minus_key: bool = False,
        outside: Literal["clamp", "zero"] = "clamp",
    ) -> Term:
        """Entries by distance: `lookup[clamp(distance - first, 0, count - 1)]`; without a lookup each distance has
        its own."""
        own = _c.Distances(
            sign=_c.QUERY_MINUS_KEY if query_minus_key else _c.KEY_MINUS_QUERY,
            outside=choice("outside", outside, {"clamp": _c.OUTSIDE_CLAMP, "zero": _c.OUTSIDE_ZERO}),
            first=first,
            count=count,
            entries=count if entries is None else entries,
        )
        return cls(_c.Term(kind=_c.TERM_DISTANCE, factor=1.0, distances=own), lookup)

    @classmethod
    def window(
        cls,
        height: int,
        width: int,
        *,
        stride: int = 1,
        prefix: int = 0,
        coordinates: str = "query_minus_key",
        axes: Literal["both", "rows", "columns"] = "both",
        prefix_entries: bool = False,
    ) -> Term:
        """Entries by coordinates in a window of tokens, behind `prefix` class and register tokens."""
        own = _c.Window(
            height=height,
            width=width,
            stride=stride,
            prefix=prefix,
            coordinates=choice("coordinates", coordinates, _COORDINATES),
            axes=choice("axes", axes, _WINDOW_AXES),
            prefix_entries=int(prefix_entries),
        )
        return cls(_c.Term(kind=_c.TERM_WINDOW, factor=1.0, window=own))

    @classmethod
    def shifted(
        cls, height: int, width: int, window: tuple[int, int], shift: tuple[int, int], factor: float = -100.0
    ) -> Term:
        """The mask of shifted windows of an image of `height` by `width` tokens: adds `factor` between regions,
        reads no numbers."""
        own = _c.ShiftedWindows(height=height, width=width, window=window, shift=shift)
        return cls(_c.Term(kind=_c.TERM_SHIFTED, factor=factor, shifted=own))

    @classmethod
    def given(cls, rows: int, columns: int, entries: int) -> Term:
        """An index for each pair of positions, which the call brings, into a table of `entries`."""
        own = _c.Given(rows=rows, columns=columns, entries=entries)
        return cls(_c.Term(kind=_c.TERM_GIVEN, factor=1.0, given=own))

    @classmethod
    def endpoints(cls) -> Term:
        """A number of the query less one of the key, such as prefix sums of log gates."""
        return cls(_c.Term(kind=_c.TERM_ENDPOINTS, factor=1.0))


class TermInputs:
    """What one term of a call reads.

    `numbers`, f32 or of the logits' type: `[entries, heads]` for a table, as models store it, else `[batch or 1,
    heads or 1, rows or 1, entries]` in any order of memory. Of endpoints, `numbers` and `key_numbers` are `[batch,
    heads, tokens, 1 or 2]`. `indices` of a term of given indices are uint8, uint16 or int32 `[batch or 1, rows,
    columns]`. `query_at` and `key_at`, int32 `[batch, queries]` and `[batch, keys]`, are coordinates in place of
    positions.
    """

    def __init__(
        self,
        numbers: Any = None,
        *,
        key_numbers: Any = None,
        indices: Any = None,
        query_at: Any = None,
        key_at: Any = None,
    ) -> None:
        self.numbers, self.key_numbers, self.indices = numbers, key_numbers, indices
        self.query_at, self.key_at = query_at, key_at

    def struct(self, call: Call) -> _c.TermInputs:
        """The struct of posenc.h."""
        own = _c.TermInputs()
        types = ("float32", call.element or "float32")
        for name in ("numbers", "key_numbers"):
            if (x := getattr(self, name)) is None:
                continue
            tensor = call.tensor(name, x, dtypes=types)
            own.element = _tensor.ELEMENTS[tensor.dtype]
            setattr(own, name, call.buffer(tensor))
            setattr(own, f"{name}_shape", numbers_shape(call, tensor))
        own.indices = call.ids("indices", self.indices, ("uint8", "uint16", "int32"))
        own.query_at = call.plain("query_at", self.query_at, dtypes=("int32",))
        own.key_at = call.plain("key_at", self.key_at, dtypes=("int32",))
        return own


def numbers_shape(call: Call, tensor: _tensor.Tensor) -> _c.Numbers:
    """`[entries, heads]`, or `[batch, heads, rows, entries]`."""
    names = ("entries", "heads") if len(tensor.shape) == 2 else ("batch", "heads", "rows", "entries")
    return call.numbers(tensor, names)


def term_structs(call: Call, terms: Sequence[TermInputs]) -> Any:
    """Inputs of terms side by side, or none."""
    return (_c.TermInputs * len(terms))(*(term.struct(call) for term in terms)) if terms else None


class Terms(Bias):
    """A sum of one to four terms; a call brings what they read."""

    _name = "terms"

    def __init__(self, *terms: Term, heads: int = 1) -> None:
        self.terms, self.heads = terms, heads
        self._structs = (_c.Term * len(terms))(*(term._struct for term in terms))
        super().__init__(tuple(term.key for term in terms))

    @classmethod
    def _made(cls, arguments: dict[str, Any]) -> Spec:
        return cls(*arguments.pop("terms"), **arguments)

    def _spec(self) -> _c.TermsSpec:
        return _c.TermsSpec(terms=ctypes.addressof(self._structs), count=len(self.terms))


# ------------------------------------------------------------------------------------------------------------ gradients


class _OfLogits:
    """A gradient plan for calls of up to a shape of logits."""

    kind: ClassVar[str]
    _key: tuple[Any, ...]

    def __init__(self, batch: int, heads: int, queries: int, keys: int) -> None:
        self._most = _c.Logits(batch=batch, heads=heads, queries=queries, keys=keys)
        self._most.strides = (heads * queries * keys, queries * keys, keys)
        self._sizes = batch, heads, queries, keys

    def _constructor(self) -> tuple[str, Any]:
        raise NotImplementedError

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            name, spec = self._constructor()
            return Handle(self.kind, name, gpu.address, ctypes.byref(spec), ctypes.byref(self._most), call.code)

        return _plan.cached(self.kind, (self._key, self._sizes, call.code), call.where, make)


class DistanceGrad(_OfLogits):
    """Gradients of the parameters of a distance bias: T5's table, slopes, a row's numbers, KERPLE's `p` and `a`, or
    FIRE's network, from the gradient of the logits after the bias."""

    kind = "distance_grad"

    def __init__(self, bias: Bias, batch: int, queries: int, keys: int) -> None:
        if not isinstance(bias, (T5, Slopes, Row, Kerple, Fire)):
            raise Error(
                f"{type(bias).__name__} has no parameters with a gradient; T5, Slopes, Row, Kerple and Fire have"
            )
        super().__init__(batch, bias.heads, queries, keys)
        self.bias, self._key = bias, bias._key
        if isinstance(bias, Fire):
            self.kind = "fire_grad"  # type: ignore[misc]

    def _constructor(self) -> tuple[str, Any]:
        if isinstance(self.bias, Fire):
            return "posenc_fire_grad_new", self.bias._spec()
        if isinstance(self.bias, Slopes):
            return "posenc_distance_grad_slopes_new", _c.SlopesGradSpec(heads=self.bias.heads)
        return f"posenc_distance_grad_{self.bias._name}_new", self.bias._spec()

    def apply(
        self,
        grad: Any,
        out: Any = None,
        places: Places | None = None,
        *,
        gates: Any = None,
        factor: float = 1.0,
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of the parameters into `out`, f32: T5 `[buckets, heads]`, slopes and KERPLE `[2,
        heads]`, a row `[heads, distances]`, FIRE `c`, `threshold` and its four layers one after another."""
        call = Call(stream)
        tensor = call.elements("grad", grad)
        own = _c.DistanceGradCall(grad=call.buffer(tensor), shape=call.logits(tensor), factor=factor)
        shape = own.shape
        own.places = call.places(places, shape.batch, shape.queries, shape.keys)
        own.gates = call.plain("gates", gates, shape=(shape.batch, shape.heads, shape.queries))
        plan = self._plan(call)
        if out is None:
            length = _library.gives(f"posenc_{self.kind}_len", ctypes.c_uint64(), plan.address).value
            out = _tensor.empty_like(tensor, grad, self._shape(length), "float32")
        own.out = call.plain("out", out, True)
        call.run(f"posenc_{self.kind}_apply", plan, own)
        return out

    def _shape(self, length: int) -> tuple[int, ...]:
        if isinstance(self.bias, T5):
            return self.bias.buckets, self.bias.heads
        if isinstance(self.bias, Row):
            return tuple(self.bias.values.shape)
        return (2, self.bias.heads) if isinstance(self.bias, (Slopes, Kerple)) else (length,)


class TermGrad(_OfLogits):
    """The gradient of a term's numbers, from that of the logits after the bias."""

    kind = "term_grad"

    def __init__(self, term: Term, batch: int, heads: int, queries: int, keys: int) -> None:
        super().__init__(batch, heads, queries, keys)
        self.term, self._key = term, term.key

    def _constructor(self) -> tuple[str, Any]:
        return "posenc_term_grad_new", _c.TermGradSpec(term=self.term._struct)

    def apply(
        self,
        grad: Any,
        out: Any,
        places: Places | None = None,
        *,
        inputs: TermInputs | None = None,
        gates: Any = None,
        factor: float = 1.0,
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of the numbers into `out`, f32, of their shape: a size of 1 sums over that dimension.
        Of endpoints it is that of the queries' numbers, with one entry. `inputs` are the term's indices or
        coordinates."""
        return self._run("posenc_term_grad_apply", grad, out, places, inputs, gates, factor, stream)

    def apply_keys(
        self,
        grad: Any,
        out: Any,
        places: Places | None = None,
        *,
        inputs: TermInputs | None = None,
        gates: Any = None,
        factor: float = 1.0,
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of the keys' numbers of endpoints."""
        return self._run("posenc_term_grad_apply_keys", grad, out, places, inputs, gates, factor, stream)

    def _run(
        self,
        verb: str,
        grad: Any,
        out: Any,
        places: Places | None,
        inputs: TermInputs | None,
        gates: Any,
        factor: float,
        stream: Any,
    ) -> Any:
        call = Call(stream)
        tensor = call.elements("grad", grad)
        own = _c.TermGradCall(grad=call.buffer(tensor), shape=call.logits(tensor), factor=factor)
        shape = own.shape
        own.places = call.places(places, shape.batch, shape.queries, shape.keys)
        own.gates = call.plain("gates", gates, shape=(shape.batch, shape.heads, shape.queries))
        if inputs is not None:
            own.inputs = inputs.struct(call)
        target = call.tensor("out", out, True, ("float32",))
        own.out, own.out_shape = call.buffer(target), numbers_shape(call, target)
        call.run(verb, self._plan(call), own)
        return out


# --------------------------------------------------------------------------------------------- products, windows, gates


class RelativeProducts:
    """Products of queries' or keys' states with a table of relative positions, made where they are added and never
    stored. `term` is a term of distances: the row of the table, and whose states meet it."""

    def __init__(self, term: Term) -> None:
        self.term = term

    def add_(
        self,
        logits: Any,
        states: Any,
        table: Any,
        places: Places | None = None,
        *,
        bias: Any = None,
        layout: str = "bthd",
        stream: Any = None,
    ) -> Any:
        """Adds the products to logits. `states` are `[batch, tokens, heads, width]`, `table` `[entries, width]` or
        `[heads, entries, width]`; `bias`, f32 `[heads, width]`, is added to the states (Transformer-XL's `v`)."""
        return self._run("posenc_relative_products_add", logits, states, table, places, bias, layout, stream)

    def write(
        self,
        out: Any,
        states: Any,
        table: Any,
        places: Places | None = None,
        *,
        bias: Any = None,
        layout: str = "bthd",
        stream: Any = None,
    ) -> Any:
        """Writes the products of every query and key."""
        return self._run("posenc_relative_products_write", out, states, table, places, bias, layout, stream)

    def _run(
        self, verb: str, x: Any, states: Any, table: Any, places: Places | None, bias: Any, layout: str, stream: Any
    ) -> Any:
        call = Call(stream)
        logits, own_states = call.elements("logits", x, True), call.elements("states", states)
        rows = call.elements("table", table)
        own = _c.RelativeProductsCall(x=call.buffer(logits), shape=call.logits(logits))
        own.states, own.states_shape = call.buffer(own_states), call.heads(own_states, layout)
        own.table, own.table_shape = call.buffer(rows), table_shape(call, rows)
        own.bias = call.plain("bias", bias, shape=(own.states_shape.heads, own.states_shape.dim))
        own.places = call.places(places, own.shape.batch, own.shape.queries, own.shape.keys)

        def make(gpu: Handle) -> Handle:
            spec = _c.RelativeProductsSpec(term=self.term._struct)
            name = "posenc_relative_products_new"
            return Handle("relative_products", name, gpu.address, ctypes.byref(spec), call.code)

        plan = _plan.cached("relative_products", (self.term.key, call.code), call.where, make)
        if not logits.empty:
            call.run(verb, plan, own)
        return x


def table_shape(call: Call, table: _tensor.Tensor) -> _c.Numbers:
    """The shape of a table of vectors, `[entries, width]` or `[heads, entries, width]`: its rows are entries, its
    entries channels."""
    names = {2: ("rows", "entries"), 3: ("heads", "rows", "entries")}.get(len(table.shape))
    if names is None:
        raise Error(f"table has the shape {list(table.shape)}, it must be [entries, width] or [heads, entries, width]")
    return call.numbers(table, names)


class Swin2:
    """Swin v2's continuous position bias: a network of log-spaced coordinates writes the table of a window.

    `pretrained` is the pretraining window of `"relative"` coordinates, `window` by default; `"absolute"` are timm's.
    The table is `limit * sigmoid(z)` of the network's output, or with a limit of 0 `z` itself.
    """

    def __init__(
        self,
        window: tuple[int, int],
        heads: int,
        *,
        hidden: int = 512,
        pretrained: tuple[int, int] = (0, 0),
        coordinates: Literal["relative", "absolute"] = "relative",
        limit: float = 16.0,
    ) -> None:
        self.window, self.heads, self.hidden, self.pretrained = tuple(window), heads, hidden, tuple(pretrained)
        self.coordinates, self.limit = coordinates, limit
        self.entries = (2 * window[0] - 1) * (2 * window[1] - 1)

    def write(self, out: Any, w1: Any, b1: Any, w2: Any, b2: Any = None, *, stream: Any = None) -> Any:
        """Writes the table into `out`, f32 `[entries, heads]`: numbers of `Term.swin`. Weights are as
        `torch.nn.Linear` stores them: `w1` `[hidden, 2]`, `b1` `[hidden]`, `w2` `[heads, hidden]`, `b2` `[heads]` or
        none."""
        call = Call(stream)
        own = _c.Swin2Call(weights=self._weights(call, (w1, b1, w2, b2), False))
        own.table = call.plain("out", out, True, shape=(self.entries, self.heads))
        call.run("posenc_swin2_write", self._plan(call), own)
        return out

    def grad(self, table_grad: Any, weights: tuple[Any, ...], out: tuple[Any, ...], *, stream: Any = None) -> None:
        """Writes the gradient of the weights into `out`, f32 arrays of their shapes, from that of the table."""
        call = Call(stream)
        own = _c.Swin2GradCall(weights=self._weights(call, weights, False))
        own.table_grad = call.plain("table_grad", table_grad, shape=(self.entries, self.heads))
        own.out = self._weights(call, out, True)
        call.run("posenc_swin2_grad", self._plan(call), own)

    def _weights(self, call: Call, weights: tuple[Any, ...], written: bool) -> _c.Swin2Weights:
        shapes = (self.hidden, 2), (self.hidden,), (self.heads, self.hidden), (self.heads,)
        own = _c.Swin2Weights()
        if len(weights) not in (3, 4):
            raise Error(f"{len(weights)} weights are given, they are w1, b1, w2 and, where there is one, b2")
        for name, x, shape in zip(("w1", "b1", "w2", "b2"), weights, shapes):  # noqa: B905 - b2 may be missing
            if written:
                setattr(own, name, call.plain(f"{name}_grad", x, True, shape=shape))
            else:
                setattr(own, name, call.own(name, x, shape=shape))
        return own

    def _plan(self, call: Call) -> Handle:
        kinds = {"relative": _c.LOG_COORDINATES_RELATIVE, "absolute": _c.LOG_COORDINATES_ABSOLUTE}
        spec = _c.Swin2Spec(window=self.window, pretrained=self.pretrained, hidden=self.hidden, heads=self.heads)
        spec.coordinates, spec.limit = choice("coordinates", self.coordinates, kinds), self.limit

        def make(gpu: Handle) -> Handle:
            return Handle("swin2", "posenc_swin2_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("swin2", (bytes(spec), call.code), call.where, make)


def swin2_logit_scale(logit_scale: float) -> float:
    """Swin v2's factor of cosine attention, `exp(min(logit_scale, ln 100))`: one of `scales` of a softmax."""
    return float(_library.value("posenc_swin2_logit_scale", logit_scale))


class GateSums:
    """Prefix sums of log gates along the tokens of each head, as two floats each: numbers of `Term.endpoints` (the
    Forgetting Transformer). `gates`: `"logs"`, logarithms of the gates, at most 0; or `"logits"`, `x` of the gate
    `ln(sigmoid(x))`."""

    def __init__(self, gates: Literal["logs", "logits"] = "logits") -> None:
        self._code = choice("gates", gates, {"logs": _c.GATES_LOGS, "logits": _c.GATES_LOGITS})

    def write(self, gates: Any, out: Any, *, state: Any = None, stream: Any = None) -> Any:
        """Writes the sums of `gates`, `[batch, heads, tokens]`, into `out`, f32 `[batch, heads, tokens, 2]`.
        `state`, int64 `[batch, heads, 2]`, is changed in place: the sums of the tokens before, 0 at the start of a
        sequence."""
        call = Call(stream)
        own = _c.GateSumsCall()
        own.element, own.gates, own.gates_shape = self._gates(call, gates)
        target = call.tensor("out", out, True, ("float32",))
        own.out, own.out_shape = call.buffer(target), call.numbers(target, ("heads", "rows", "entries"))
        own.state = call.plain("state", state, True, ("int64", "uint64"), (own.out_shape.batch, own.out_shape.heads, 2))
        call.run("posenc_gate_sums_write", self._plan(call), own)
        return out

    def grad(self, gates: Any, query_grad: Any, key_grad: Any, out: Any, *, stream: Any = None) -> Any:
        """Writes the gradient of the gates' numbers into `out`, f32 `[batch, heads, tokens]`, from those of the sums
        as queries' and as keys' numbers."""
        call = Call(stream)
        own = _c.GateSumsGradCall()
        own.element, own.gates, own.gates_shape = self._gates(call, gates)
        for name, x, written in (("query_grad", query_grad, 0), ("key_grad", key_grad, 0), ("grad", out, 1)):
            tensor = call.tensor("out" if written else name, x, bool(written), ("float32",))
            setattr(own, name, call.buffer(tensor))
            setattr(own, f"{name}_shape", call.numbers(tensor, ("heads", "rows")))
        call.run("posenc_gate_sums_grad", self._plan(call), own)
        return out

    def _gates(self, call: Call, gates: Any) -> tuple[int, _c.Buffer, _c.Numbers]:
        tensor = call.elements("gates", gates)
        return call.code, call.buffer(tensor), call.numbers(tensor, ("heads", "rows"))

    def _plan(self, call: Call) -> Handle:
        spec = _c.GateSumsSpec(gates=self._code)

        def make(gpu: Handle) -> Handle:
            return Handle("gate_sums", "posenc_gate_sums_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("gate_sums", (self._code, call.code), call.where, make)


# --------------------------------------------------------------------------------------------------- tables on the host

_RESIZES = {
    "bilinear": _c.RESIZE_BILINEAR,
    "bicubic": _c.RESIZE_BICUBIC,
    "bicubic_antialias": _c.RESIZE_BICUBIC_ANTIALIAS,
    "geometric": _c.RESIZE_GEOMETRIC,
}


def resize_window(term: Term, table: Any, to: tuple[int, int], resize: str = "bicubic") -> Any:
    """The table of a window, `[entries, heads]` in host memory, for a window of other rows and columns, `[entries,
    heads]`."""
    call = Call()
    tensor = call.elements("table", table)
    window = term._struct.window
    larger = _c.Window.from_buffer_copy(window)
    larger.height, larger.width = to
    entries = Term(_c.Term(kind=term._struct.kind, by=term._struct.by, factor=1.0, window=larger)).entries
    shape = numbers_shape(call, tensor)
    out = _tensor.empty_like(tensor, table, (entries, shape.heads))
    target = call.elements("out", out, True)
    if tensor.device != CPU:
        raise Error("table is on a device, tables are resized in host memory")
    own = _c.WindowResizeCall(
        window=window,
        to=to,
        resize=choice("resize", resize, _RESIZES),
        element=call.code,
        table=tensor.address,
        table_len=tensor.span,
        table_shape=shape,
        out=target.address,
        out_len=target.span,
    )
    _library.call("posenc_window_resize", ctypes.byref(own))
    return out


def decomposed_axis(table: Any, queries: int, keys: int) -> Any:
    """The row of `table`, `[length, dim]` in host memory, of each query and key of an axis (SAM, ViTDet, MViTv2):
    `[queries, keys, dim]`."""
    call = Call()
    tensor = call.elements("table", table)
    if len(tensor.shape) != 2 or tensor.device != CPU:
        raise Error(f"{tensor.is_alike()}, it must be [length, dim] in host memory")
    out = _tensor.empty_like(tensor, table, (queries, keys, tensor.shape[1]))
    target = call.elements("out", out, True)
    own = _c.DecomposedAxisCall(
        table=call.whole(tensor).data,
        table_len=tensor.span,
        dim=tensor.shape[1],
        queries=queries,
        keys=keys,
        element=call.code,
        out=target.address,
        out_len=target.span,
    )
    _library.call("posenc_decomposed_axis", ctypes.byref(own))
    return out
