"""What happens between a projection and attention, in one kernel: bias, norm of heads, rotation, factor on queries,
and the cache."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import _c, _library, _plan, _tensor
from ._library import Handle
from ._plan import Call
from ._spec import Spec
from .errors import Error
from .model import Model, QueryScale
from .rotate import Rope, choice

_NORMS = {"none": _c.HEAD_NORM_NONE, "rms": _c.HEAD_NORM_RMS, "l2": _c.HEAD_NORM_L2}
_WEIGHTS = {"none": _c.NORM_WEIGHT_NONE, "weight": _c.NORM_WEIGHT, "one_plus_weight": _c.NORM_ONE_PLUS_WEIGHT}
_OVER = {"head": _c.NORM_OVER_HEAD, "all_heads": _c.NORM_OVER_ALL_HEADS}
_STORES = {"e4m3": _c.STORE_E4M3, "e5m2": _c.STORE_E5M2, "int8": _c.STORE_INT8}
#: element types that name their codes; bytes do not
_OWN_CODES = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "int8": "int8"}
_ROUNDINGS = {
    "once": _c.ROUNDING_ONCE,
    "steps": _c.ROUNDING_STEPS,
    "before_weight": _c.ROUNDING_BEFORE_WEIGHT,
}


@dataclass(frozen=True)
class Branch(Spec):
    """What is done with queries, keys or values: a bias is added, heads are normed, pairs are rotated.

    `norm`: `"rms"`, by `sqrt(mean(x^2) + eps)`, or `"l2"`, by `sqrt(sum(x^2) + eps)`, `over` each `"head"` or
    `"all_heads"` together; then it is multiplied by nothing, its `"weight"`, or `"one_plus_weight"` (Gemma 3).
    `rounding` to the element type: `"once"` at the end, after all `"steps"`, as separate operations do, or also
    `"before_weight"`, as Llama's norm does.
    """

    rope: bool = False
    norm: Literal["none", "rms", "l2"] = "none"
    weight: Literal["none", "weight", "one_plus_weight"] = "none"
    over: Literal["head", "all_heads"] = "head"
    eps: float = 1e-6
    bias: bool = False
    rounding: Literal["once", "steps", "before_weight"] = "once"

    def struct(self) -> _c.Branch:
        """The struct of posenc.h."""
        return _c.Branch(
            norm=choice("norm", self.norm, _NORMS),
            weight=choice("weight", self.weight, _WEIGHTS),
            over=choice("over", self.over, _OVER),
            rounding=choice("rounding", self.rounding, _ROUNDINGS),
            bias=int(self.bias),
            rope=int(self.rope),
            eps=self.eps,
        )

    @classmethod
    def _of(cls, own: _c.Branch) -> Branch:
        named: Any = {
            name: next(word for word, code in words.items() if code == getattr(own, name))
            for name, words in (("norm", _NORMS), ("weight", _WEIGHTS), ("over", _OVER), ("rounding", _ROUNDINGS))
        }
        return cls(rope=bool(own.rope), bias=bool(own.bias), eps=own.eps, **named)


class Projected:
    """Queries, keys or values of one call: `x`, `[batch, tokens, heads, dim]` in any strides, such as a part of a
    packed projection.

    `out` says where the result goes beside the cache: `"new"`, a new array; `"place"`, in place of `x`; `"cache"`,
    nowhere else; or an array. `weight`, `[dim]`, or `[heads, dim]` over all heads, is the norm's; `bias` is `[heads,
    dim]`.
    """

    def __init__(self, x: Any, *, out: Any = "new", weight: Any = None, bias: Any = None) -> None:
        self.x, self.out, self.weight, self.bias = x, out, weight, bias

    def struct(self, call: Call, name: str, layout: str) -> tuple[_c.Projected, Any]:
        """The struct of posenc.h, and where the result is."""
        word = self.out if isinstance(self.out, str) else ""
        if word not in ("", "new", "place", "cache"):
            raise Error(f"out of {name} is {word!r}, it may be 'new', 'place', 'cache' or an array")
        tensor = call.elements(name, self.x, word == "place")
        own = _c.Projected(x=call.buffer(tensor), heads=call.heads(tensor, layout), to=_c.TO_CACHE)
        own.weight, own.bias = call.own(f"{name}_weight", self.weight), call.own(f"{name}_bias", self.bias)
        result = None
        if word == "place":
            own.to, result = _c.TO_PLACE, self.x
        elif word != "cache":
            result = _tensor.empty_like(tensor, self.x) if word else self.out
            target = call.elements(f"{name}_out", result, True)
            own.to, own.out, own.out_heads = _c.TO_OUT, call.buffer(target), call.heads(target, layout)
        return own, result


class Codes:
    """Eight-bit codes, which take the place of a cache's elements or of queries: a value is its scale times its code.

    `x` is `[pages, rows of a page, heads, dim]` of bytes, int8 or a float of eight bits, and `code` `"e4m3"`
    (`e4m3fn`), `"e5m2"` or `"int8"`, which only bytes have to name. Values are rounded to the nearest code, ties to
    even; larger ones than the largest become it.

    `scales`, f32 `[1]` or `[heads]`, are read. `scales_out`, f32 `[pages, rows of a page, heads]` in the order of
    `x`, are written: the largest magnitude of each token and head over the largest code (448, 57344 or 127). Without
    both these are written as the first four of 16 bytes behind each head's codes, and `x` is `[..., dim + 16]`.
    """

    def __init__(self, x: Any, code: str | None = None, *, scales: Any = None, scales_out: Any = None) -> None:
        self.x, self.code, self.scales, self.scales_out = x, code, scales, scales_out

    def struct(self, call: Call, name: str, layout: str) -> _c.Stored:
        """The struct of posenc.h."""
        x = call.tensor(name, self.x, True, ("uint8", *_OWN_CODES))
        own = _OWN_CODES.get(x.dtype)
        if own is None and self.code is None:
            raise Error(f"{name} is {x.dtype}, which does not name its code: give 'e4m3', 'e5m2' or 'int8'")
        if own is not None and self.code not in (None, own):
            raise Error(f"{name} is {x.dtype}, its code is given as {self.code!r}")
        stored = _c.Stored(x=call.buffer(x), heads=call.heads(x, layout), scale=_c.SCALE_INLINE)
        stored.store = choice(f"code of {name}", self.code or own or "", _STORES)
        scales = f"{name}_scales"
        if self.scales is not None and self.scales_out is not None:
            raise Error(f"{scales} are given to be read and to be written, they are one of both")
        if self.scales is not None:
            stored.scale, stored.scales = _c.SCALE_GIVEN, call.plain(scales, self.scales)
        elif self.scales_out is not None:
            written = call.tensor(scales, self.scales_out, True, ("float32",))
            # a last dimension of one number for each head
            rows = replace(written, shape=(*written.shape, 1), strides=(*written.strides, 1))
            stored.scale, stored.scales = _c.SCALE_DYNAMIC, call.buffer(written)
            stored.scale_heads = call.heads(rows, layout)
        return stored


def _stored(call: Call, name: str, x: Any, layout: str) -> _c.Stored:
    """Elements or codes."""
    if isinstance(x, Codes):
        return x.struct(call, name, layout)
    elements = call.elements(name, x, True)
    return _c.Stored(x=call.buffer(elements), heads=call.heads(elements, layout))


class Cache:
    """A cache of keys and values, each `[pages, rows of a page, heads, dim]` (`layout="bhtd"`: `[pages, heads, rows,
    dim]`): an array, or `Codes`.

    Rows of tokens: `slots`, `[batch, tokens]`, each `page * rows of a page + row` (below 0: not cached); or `pages`,
    a table `[sequences, width]`, with the row of each token in its sequence in `rows` (`[batch, tokens]`) or the
    first in `starts` (`[batch]`); or without `pages` a page for each sequence. `flag`, a 32-bit word on a device,
    becomes 1 by a row outside.
    """

    def __init__(
        self,
        k: Any,
        v: Any = None,
        *,
        slots: Any = None,
        pages: Any = None,
        rows: Any = None,
        starts: Any = None,
        layout: str = "bthd",
        flag: Any = None,
    ) -> None:
        self.k, self.v, self.slots, self.pages = k, v, slots, pages
        self.rows, self.starts, self.layout, self.flag = rows, starts, layout, flag

    def struct(self, call: Call, batch: int, tokens: int) -> _c.Cache:
        """The struct of posenc.h."""
        own = _c.Cache(k=_stored(call, "cache_k", self.k, self.layout), rows=_c.CACHE_ROWS)
        if self.v is not None:
            own.v = _stored(call, "cache_v", self.v, self.layout)
        if self.slots is not None:
            if self.pages is not None or self.rows is not None or self.starts is not None:
                raise Error("slots are given with pages, rows or starts, which they take the place of")
            own.rows, own.slots = _c.CACHE_SLOTS, call.ids("slots", self.slots)
            if own.slots.len != batch * tokens:
                raise Error(f"slots holds {own.slots.len}, {batch} sequences of {tokens} tokens need as many")
        else:
            own.first = call.positions(self.rows, self.starts, None, batch, tokens, 1)
        if self.pages is not None:
            table = call.tensor("pages", self.pages, dtypes=("int32", "int64", "uint32"))
            if len(table.shape) != 2:
                raise Error(f"pages has the shape {list(table.shape)}, it must be [sequences, width]")
            own.rows, own.slots, own.width = _c.CACHE_PAGES, call.ids("pages", self.pages), table.shape[1]
        own.flag = call.plain("flag", self.flag, True, ("int32", "uint32"), (1,))
        return own


@dataclass(frozen=True)
class Prologue(Spec):
    """Bias, norm, rotation and factor of queries, keys and values: what to compute. `rope_first`: the rotation comes
    before the norm."""

    rope: Rope | None = None
    q: Branch = Branch()
    k: Branch = Branch()
    v: Branch = Branch()
    query_scale: QueryScale | None = None
    rope_first: bool = False

    def apply(
        self,
        q: Projected,
        k: Projected | None = None,
        v: Projected | None = None,
        *,
        positions: Any = None,
        starts: Any = None,
        cu_seqlens: Any = None,
        cache: Cache | None = None,
        q_codes: Codes | None = None,
        layout: str = "bthd",
        stream: Any = None,
    ) -> tuple[Any, Any, Any]:
        """Applies it in one kernel, and writes the cache; gives the results of queries, keys and values, or none
        where they went to the cache alone. Positions are those of `Rope.rotate`. `q_codes`, `[batch, tokens, heads,
        dim]`, are queries in eight bits, beside the result of `q` or, with `out="cache"`, in its place."""
        call = Call(stream)
        own = _c.PrologueCall()
        results: list[Any] = []
        for name, projected in (("q", q), ("k", k), ("v", v)):
            result = None
            if projected is not None:
                struct, result = projected.struct(call, name, layout)
                setattr(own, name, struct)
            results.append(result)
        batch, tokens = own.q.heads.batch, own.q.heads.tokens
        axes = 1 if self.rope is None else self.rope.axes_of_positions
        own.positions = call.positions(positions, starts, cu_seqlens, batch, tokens, axes)
        if cache is not None:
            own.cache = cache.struct(call, batch, tokens)
        if q_codes is not None:
            own.q_codes = q_codes.struct(call, "q_codes", layout)
        if batch * tokens:
            call.run("posenc_prologue_apply", self._plan(call), own)
        return results[0], results[1], results[2]

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            kept: list[Any] = []
            spec = _c.PrologueSpec(q=self.q.struct(), k=self.k.struct(), v=self.v.struct())
            if self.rope is not None:
                spec.rope = self.rope.struct(kept)
            if self.query_scale is not None:
                spec.query_scale = self.query_scale.struct()
            spec.rope_first = int(self.rope_first)
            return Handle("prologue", "posenc_prologue_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("prologue", (self, call.code), call.where, make)


@dataclass(frozen=True)
class LayerPrologue:
    """What a layer of a model does between projection and attention, beside its rotation: the fields of a `Prologue`.

    `gated`: queries and a gate are interleaved by head; `latent`: keys are the shared rotary part and values the
    latent; `shares_keys`: keys and values are those of a layer before."""

    q: Branch
    k: Branch
    v: Branch
    query_scale: QueryScale
    rope_first: bool
    gated: bool
    latent: bool
    shares_keys: bool

    @classmethod
    def from_config(cls, config: Any, layer: int = 0) -> LayerPrologue:
        """That of a layer of a `transformers` config: norms and biases are those of the model type's class."""
        model = Model.from_config(config)
        own = _library.gives("posenc_model_prologue", _c.LayerPrologue(), model.handle.address, layer)
        return cls(
            q=Branch._of(own.q),
            k=Branch._of(own.k),
            v=Branch._of(own.v),
            query_scale=model.layer(layer).query_scale,
            rope_first=bool(own.rope_first),
            gated=bool(own.gated),
            latent=bool(own.latent),
            shares_keys=bool(own.shares_keys),
        )
