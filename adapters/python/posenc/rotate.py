"""Rotations of queries and keys: RoPE in every form, xPos, and gradients of their angles."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

from . import _c, _library, _plan, _tensor
from ._library import Handle
from ._plan import Call
from ._spec import Spec
from .errors import Error
from .model import Model, config_text

Pairing = Literal["half", "interleaved"]
PAIRINGS = {"half": _c.HALF, "interleaved": _c.INTERLEAVED}


def choice(name: str, value: Any, choices: dict[str, int]) -> int:
    """The constant of a word."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise Error(f"{name} is {value!r}, it may be {', '.join(map(repr, choices))}") from None


# ------------------------------------------------------------------------------------------------------------- scalings


@dataclass(frozen=True)
class Scaling(Spec):
    """How a model's context was stretched: one of the classes below."""

    code: ClassVar[int]

    def fill(self, spec: _c.RopeSpec, kept: list[Any]) -> None:
        spec.scaling = self.code
        for own in fields(self):
            setattr(spec, own.name, getattr(self, own.name))


@dataclass(frozen=True)
class Linear(Scaling):
    """Positions divided by `factor`."""

    factor: float
    code = _c.SCALING_LINEAR


@dataclass(frozen=True)
class Ntk(Scaling):
    """NTK-aware scaling with a fixed `factor`."""

    factor: float
    code = _c.SCALING_NTK


@dataclass(frozen=True)
class NtkMixed(Scaling):
    """NTK in a mixed base."""

    factor: float
    exponent: float
    code = _c.SCALING_NTK_MIXED


@dataclass(frozen=True)
class NtkDynamic(Scaling):
    """Dynamic NTK: the base grows with `length`, the tokens of the sequence."""

    factor: float
    original_context: float
    length: int = 0
    code = _c.SCALING_NTK_DYNAMIC


@dataclass(frozen=True)
class NtkStepped(Scaling):
    """Qwen's dynamic NTK by steps."""

    original_context: float
    length: int = 0
    code = _c.SCALING_NTK_STEPPED


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1: slow pairs are divided by `factor`, those in between are mixed."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    original_context: float = 8192.0
    code = _c.SCALING_LLAMA3


@dataclass(frozen=True)
class Yarn(Scaling):
    """YaRN. `attention_factor` of the rope is `yarn_mscale(factor)` in most models."""

    factor: float
    original_context: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    extrapolation: float = 1.0
    ramp: Literal["pairs", "turns"] = "pairs"
    code = _c.SCALING_YARN

    def fill(self, spec: _c.RopeSpec, kept: list[Any]) -> None:
        spec.scaling, spec.factor, spec.original_context = self.code, self.factor, self.original_context
        spec.high, spec.low, spec.extrapolation = self.beta_fast, self.beta_slow, self.extrapolation
        spec.not_truncated = int(not self.truncate)
        spec.ramp = choice("ramp", self.ramp, {"pairs": _c.RAMP_PAIRS, "turns": _c.RAMP_TURNS})


@dataclass(frozen=True)
class Divisors(Scaling):
    """A divisor for the frequency of each pair."""

    divisors: tuple[float, ...]
    code = _c.SCALING_DIVISORS

    def fill(self, spec: _c.RopeSpec, kept: list[Any]) -> None:
        kept.append(_plan.host_list(self.divisors, ctypes.c_double))
        spec.scaling, spec.divisors, spec.divisor_count = (
            self.code,
            _plan.address_of(kept[-1]),
            len(self.divisors),
        )


@dataclass(frozen=True)
class LongRope(Scaling):
    """LongRoPE: divisors within the original context and beyond it; `length` decides."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: float
    length: int = 0
    code = _c.SCALING_LONGROPE

    def fill(self, spec: _c.RopeSpec, kept: list[Any]) -> None:
        if len(self.short) != len(self.long):
            raise Error(f"short holds {len(self.short)} divisors, long {len(self.long)}: both hold one for each pair")
        short, long = (_plan.host_list(values, ctypes.c_double) for values in (self.short, self.long))
        kept += [short, long]
        spec.scaling, spec.divisor_count = self.code, len(self.short)
        spec.divisors, spec.long_divisors = _plan.address_of(short), _plan.address_of(long)
        spec.original_context, spec.length = self.original_context, self.length


@dataclass(frozen=True)
class Proportional(Scaling):
    """`rotated` pairs turn, at frequencies divided by `factor`; the others stay."""

    rotated: int
    factor: float = 1.0
    code = _c.SCALING_PROPORTIONAL


# ----------------------------------------------------------------------------------------------------------------- axes


@dataclass(frozen=True)
class Axes(Spec):
    """Which axis of a position turns each pair. `sizes` are pairs; of `dealt` and `blocks` there is `count` in their
    place.

    `sections`: M-RoPE of Qwen2-VL. `interleaved`: Qwen3-VL. `ladders`: grids and volumes, each axis with frequencies
    of its own. `height_width_first`: ERNIE 4.5-VL. `table`: the axis of each pair. `dealt`: Pixtral. `blocks`: Gemma
    4's vision tower.
    """

    kind: Literal["sections", "interleaved", "ladders", "height_width_first", "table", "dealt", "blocks"]
    sizes: tuple[int, ...] = ()
    count: int = 0
    CODES: ClassVar[dict[str, int]] = {
        "sections": _c.AXES_SECTIONS,
        "interleaved": _c.AXES_INTERLEAVED,
        "ladders": _c.AXES_LADDERS,
        "height_width_first": _c.AXES_HEIGHT_WIDTH_FIRST,
        "table": _c.AXES_TABLE,
        "dealt": _c.AXES_DEALT,
        "blocks": _c.AXES_BLOCKS,
        "alternating": _c.AXES_ALTERNATING,
    }

    def axes(self) -> int:
        """Axes of a position."""
        if self.kind == "table":
            return max(self.sizes, default=0) + 1
        return self.count or len(self.sizes)

    def fill(self, spec: _c.RopeSpec, kept: list[Any]) -> None:
        spec.axes = choice("kind of axes", self.kind, self.CODES)
        if self.kind == "table":
            if len(self.sizes) != spec.rotary // 2:
                raise Error(f"the table of axes holds {len(self.sizes)} pairs, {spec.rotary // 2} are rotated")
            kept.append(_plan.host_list(self.sizes, ctypes.c_uint8))
            spec.axis_of_pair = _plan.address_of(kept[-1])
            return
        spec.axis_count = self.axes()
        if self.sizes:
            spec.axis_sizes = self.sizes


# ---------------------------------------------------------------------------------------------------------------- specs


class _Rotation(Spec):
    """What RoPE, xPos and a model's rope share: one kernel for queries and keys."""

    #: empty where the plan is not that of the spec alone
    text = ""

    def _plan(self, call: Call) -> Handle:
        raise NotImplementedError

    @property
    def axes_of_positions(self) -> int:
        """Axes of a position."""
        raise NotImplementedError

    def rotate(
        self,
        q: Any,
        k: Any = None,
        *,
        positions: Any = None,
        starts: Any = None,
        cu_seqlens: Any = None,
        inverse: bool = False,
        out: Any = None,
        k_out: Any = None,
        layout: str = "bthd",
        table: CosSin | None = None,
        side: Literal["query", "key"] = "query",
        stream: Any = None,
    ) -> Any:
        """Rotates queries, and keys if there are any, into new arrays: `q`, or `(q, k)`.

        `q` and `k` are `[tokens, heads, dim]` or `[batch, tokens, heads, dim]`, of f32, f16 or bf16; with
        `layout="bhtd"` heads come before tokens. Any strides are taken whose last is 1. Positions are integers
        `[tokens]`, `[batch, tokens]` or `[axes, batch, tokens]`; in their place `starts`, `[batch]`, are the first
        position of each sequence, and `cu_seqlens`, int32, packs sequences into a batch of one (`positions` then has
        one first position for each). Without any, tokens count from 0. `out` and `k_out` are written in place of new
        arrays; `side` is xPos' alone.
        """
        return self._rotate(
            q, k, out, k_out, False, positions, starts, cu_seqlens, inverse, layout, table, side, stream
        )

    def rotate_(
        self,
        q: Any,
        k: Any = None,
        *,
        positions: Any = None,
        starts: Any = None,
        cu_seqlens: Any = None,
        inverse: bool = False,
        layout: str = "bthd",
        table: CosSin | None = None,
        side: Literal["query", "key"] = "query",
        stream: Any = None,
    ) -> Any:
        """`rotate` in place; gives `q`, or `(q, k)`."""
        return self._rotate(q, k, None, None, True, positions, starts, cu_seqlens, inverse, layout, table, side, stream)

    def _rotate(
        self,
        q: Any,
        k: Any,
        q_out: Any,
        k_out: Any,
        in_place: bool,
        positions: Any,
        starts: Any,
        cu_seqlens: Any,
        inverse: bool,
        layout: str,
        table: CosSin | None,
        side: str,
        stream: Any,
    ) -> Any:
        if layout not in _plan.HEADS:
            raise Error(f"layout is {layout!r}, it may be 'bthd' or 'bhtd'")
        again = None
        if self.text and q_out is None and k_out is None and cu_seqlens is None and table is None:
            again = _Again.of(self.text, (q, k, positions, starts), stream, (in_place, bool(inverse), layout, side))
            if again is not None and (done := again.run(in_place)) is not None:
                return done
        call = Call(stream)
        out = _c.RopeCall(inverse=int(inverse), xpos=choice("side", side, SIDES))
        out.q, q_given = self._operand(call, "q", q, q_out, in_place, layout)
        heads = out.q.heads
        given = [q_given]
        if k is not None:
            out.k, k_given = self._operand(call, "k", k, k_out, in_place, layout)
            given.append(k_given)
        axes = self.axes_of_positions
        if cu_seqlens is not None and heads.batch != 1:
            raise Error(f"q has a batch of {heads.batch}, packed sequences are a batch of 1")
        out.positions = call.positions(positions, starts, cu_seqlens, heads.batch, heads.tokens, axes)
        if table is not None:
            out.table = table.struct(call)
        if heads.batch * heads.tokens:
            plan = self._plan(call)
            call.run("posenc_rope_rotate", plan, out)
            if again is not None:
                again.keep(plan, out)
        return given[0] if k is None else tuple(given)

    def _operand(self, call: Call, name: str, x: Any, out: Any, in_place: bool, layout: str) -> tuple[_c.Operand, Any]:
        tensor = call.elements(name, x, in_place)
        operand = _c.Operand(x=call.buffer(tensor), heads=call.heads(tensor, layout))
        if in_place:
            return operand, x
        if out is None:
            out = _tensor.empty_like(tensor, x)
        target = call.elements(f"{name}_out", out, True)
        operand.out, operand.out_heads = call.buffer(target), call.heads(target, layout)
        return operand, out

    def cos_sin(self, positions: Any) -> tuple[Any, Any]:
        """The law as numpy arrays: cosine and sine of each pair, f32 `[..., rotary / 2]`, within 1e-7 of the truth
        at every position from -2^31 to 2^31 - 1; the attention factor is in both. `positions` as in `rotate`,
        without a batch."""
        import numpy

        ids = numpy.atleast_1d(numpy.asarray(positions, dtype=numpy.int64))
        tokens, (first, last, step) = ids.shape[-1], self.channels()
        # A pair (1, 0) becomes its cosine and its sine.
        x = numpy.zeros((tokens, 1, last), numpy.float32)
        pairs = (
            x[:, 0, first:].reshape(tokens, -1, 2)
            if step == 1
            else x[:, 0, first:].reshape(tokens, 2, -1).swapaxes(1, 2)
        )
        pairs[..., 0] = 1.0
        self.rotate_(x, positions=ids.reshape(ids.shape[0], 1, tokens) if ids.ndim == 2 else ids)
        return pairs[..., 0].copy(), pairs[..., 1].copy()

    def channels(self) -> tuple[int, int, int]:
        """The first rotated channel, the one behind the last, and the step from a pair's first channel to its
        second."""
        first, last = self._rotated
        return first, last, 1 if self._written() == "interleaved" else (last - first) // 2

    @property
    def _rotated(self) -> tuple[int, int]:
        """The first rotated channel, and the one behind the last."""
        raise NotImplementedError

    def _written(self) -> Pairing:
        raise NotImplementedError


class _Again:
    """A call of tensors of torch whose sizes an earlier call had: its struct is that one's, with other addresses. A
    decode step takes a third of the time."""

    __slots__ = ("key", "spec", "tensors", "torch", "where")
    key: tuple[Any, ...]
    spec: tuple[str, int]
    tensors: tuple[Any, ...]
    torch: Any
    where: tuple[int, int]

    #: calls that one plan keeps
    MOST = 64

    @classmethod
    def of(cls, text: str, tensors: tuple[Any, ...], stream: Any, options: tuple[Any, ...]) -> _Again | None:
        """What may be such a call: plain tensors on one device, none of them empty."""
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        key: list[Any] = [options]
        device = None
        for x in tensors:
            if x is None:
                key.append(None)
                continue
            if type(x) is not torch.Tensor or x.layout is not torch.strided or x.is_neg() or x.is_conj():
                return None
            own, shape = x.device, x.shape
            if device is None:
                device = own
            elif own != device:
                return None
            key.append((x.dtype, shape, x.stride()))
        if device is None or tensors[0].numel() == 0:
            return None
        ordinal = -1 if device.type == "cpu" else device.index if device.type == "cuda" else None
        code = {torch.float32: _c.F32, torch.float16: _c.F16, torch.bfloat16: _c.BF16}.get(tensors[0].dtype)
        if ordinal is None or code is None:
            return None
        if ordinal < 0:
            at = 0
        else:
            at = _plan.current_stream(tensors[0], ordinal) if stream is None else _plan.stream_of(stream)
        self = cls()
        self.torch, self.tensors, self.key = torch, tensors, tuple(key)
        self.spec, self.where = (text, code), (ordinal, at)
        return self

    def keep(self, plan: Handle, call: _c.RopeCall) -> None:
        """Keeps a call that was right."""
        if len(plan.calls) >= self.MOST:
            plan.calls.clear()
        plan.calls[self.key] = bytes(call)

    def run(self, in_place: bool) -> Any:
        """The result, or none where no such call was kept."""
        plan = _plan.known("rope", self.spec, self.where)
        if plan is None or (kept := plan.calls.get(self.key)) is None:
            return None
        own = _c.RopeCall.from_buffer_copy(kept)
        q, k, positions, starts = self.tensors
        given = []
        for operand, x in ((own.q, q), (own.k, k)):
            if x is None:
                continue
            operand.x.data = x.data_ptr()
            if in_place:
                if x.requires_grad and self.torch.is_grad_enabled():
                    return None  # the whole way says what is wrong
                given.append(x)
            else:
                given.append(self.torch.empty(x.shape, dtype=x.dtype, device=x.device))
                operand.out.data = given[-1].data_ptr()
        if (integers := positions if starts is None else starts) is not None:
            own.positions.ids.data = integers.data_ptr()
        _library.call("posenc_rope_rotate", plan.address, ctypes.byref(own))
        return given[0] if k is None else tuple(given)


SIDES = {"query": _c.XPOS_QUERY, "key": _c.XPOS_KEY}


@dataclass(frozen=True)
class Rope(_Rotation):
    """RoPE: what to compute.

    `rotary` channels of a head, from `offset` on, are rotated in pairs: `(i, i + rotary / 2)` for `"half"` (Llama,
    Qwen, GPT-NeoX), `(2 i, 2 i + 1)` for `"interleaved"` (GPT-J, GLM, DeepSeek). `angles`: `"exact"` at every
    position, or `"hf_compat"`, the product of f32 frequency and f32 position that Hugging Face's models compute.
    `frequencies`, f32, take the place of base and scaling under `"hf_compat"`. `mixed`, `[axes][sets][rotary / 2]`
    radians per position, gives heads frequencies of their own.
    """

    rotary: int
    base: float = 10_000.0
    pairing: Pairing = "half"
    offset: int = 0
    scaling: Scaling | None = None
    attention_factor: float = 1.0
    axes: Axes | None = None
    angles: Literal["exact", "hf_compat"] = "exact"
    frequencies: tuple[float, ...] | None = None
    mixed: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    #: pairs are written where the other pairing has them
    repaired: bool = False
    #: positions on each axis are whole numbers of units of `2^-bits`
    fraction_bits: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Any, layer: int = 0, length: int = 0) -> ModelRope:
        """The rope of a layer of a model, from its own config: a `transformers` config, a dict, JSON or a path.

        `length` is the tokens of the longest sequence, for scalings that depend on it. Configs that are not
        understood are errors.
        """
        return ModelRope(config_text(config), layer, length)

    @property
    def axes_of_positions(self) -> int:
        if self.mixed is not None:
            return len(self.mixed)
        return 1 if self.axes is None else self.axes.axes()

    @property
    def _rotated(self) -> tuple[int, int]:
        return self.offset, self.offset + self.rotary

    def _written(self) -> Pairing:
        other: dict[Pairing, Pairing] = {"half": "interleaved", "interleaved": "half"}
        if self.repaired:
            raise Error(f"a rope whose pairs move to {other[self.pairing]} has no cosines and sines in place")
        return self.pairing

    def struct(self, kept: list[Any]) -> _c.RopeSpec:
        """The struct of posenc.h; `kept` must live as long as it is read."""
        spec = _c.RopeSpec(
            rotary=self.rotary,
            offset=self.offset,
            base=self.base,
            attention_factor=self.attention_factor,
            pairing=choice("pairing", self.pairing, PAIRINGS),
            pairing_out=_c.OTHER if self.repaired else _c.SAME,
            angles=choice("angles", self.angles, {"exact": _c.EXACT, "hf_compat": _c.HF_COMPAT}),
            fraction_bits=self.fraction_bits,
        )
        if self.scaling is not None:
            self.scaling.fill(spec, kept)
        if self.axes is not None:
            self.axes.fill(spec, kept)
        if self.frequencies is not None:
            if len(self.frequencies) != self.rotary // 2:
                raise Error(f"frequencies holds {len(self.frequencies)}, {self.rotary // 2} pairs are rotated")
            kept.append(_plan.host_list(self.frequencies, ctypes.c_float))
            spec.angles, spec.frequencies = _c.GIVEN, _plan.address_of(kept[-1])
        if self.mixed is not None:
            sizes = {len(row) for axis in self.mixed for row in axis}
            if sizes != {self.rotary // 2} or len({len(axis) for axis in self.mixed}) != 1:
                raise Error(f"mixed must be [axes][sets][{self.rotary // 2}], its rows hold {sorted(sizes)}")
            flat = [number for axis in self.mixed for row in axis for number in row]
            kept.append(_plan.host_list(flat, ctypes.c_double))
            spec.angles, spec.mixed = _c.MIXED, _plan.address_of(kept[-1])
            spec.mixed_axes, spec.mixed_heads = len(self.mixed), len(self.mixed[0])
        return spec

    def _plan(self, call: Call) -> Handle:
        return _plan.cached("rope", (self.text, call.code), call.where, lambda gpu: self._make(gpu, call.code))

    def _make(self, gpu: Handle, element: int) -> Handle:
        kept: list[Any] = []
        spec = self.struct(kept)
        return Handle("rope", "posenc_rope_new", gpu.address, ctypes.byref(spec), element)


@dataclass(frozen=True)
class XPos(_Rotation):
    """xPos: RoPE whose queries shrink and whose keys grow with their position. Rotate keys alone with `side="key"`,
    or with the queries in one call."""

    rope: Rope
    gamma: float = 0.4
    scale_base: float = 512.0
    center: int = 0

    @property
    def axes_of_positions(self) -> int:
        return self.rope.axes_of_positions

    def _plan(self, call: Call) -> Handle:
        return _plan.cached("rope", (self.text, call.code), call.where, lambda gpu: self._make(gpu, call.code))

    def _make(self, gpu: Handle, element: int) -> Handle:
        kept: list[Any] = []
        spec = _c.XPosSpec(
            rope=self.rope.struct(kept), gamma=self.gamma, scale_base=self.scale_base, center=self.center
        )
        return Handle("rope", "posenc_rope_xpos_new", gpu.address, ctypes.byref(spec), element)


@dataclass(frozen=True)
class ModelRope(_Rotation):
    """The rope of a layer of a model: `Rope.from_config` makes it."""

    config: str
    layer: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # what is not understood is said now, not at the first call
        layer = self.model.layer(self.layer)
        if not layer.has_rope:
            raise Error(f"layer {self.layer} of {self.model.name} does not rotate")

    @cached_property
    def model(self) -> Model:
        """What the config says."""
        return Model.from_config(self.config)

    def describe(self) -> str:
        """What was understood, for a person to read."""
        return self.model.describe()

    @property
    def rotary(self) -> int:
        """Rotated channels of a head."""
        return self.model.layer(self.layer).rotary

    @property
    def _rotated(self) -> tuple[int, int]:
        layer = self.model.layer(self.layer)
        return layer.offset, layer.offset + layer.rotary

    @property
    def axes_of_positions(self) -> int:
        return self._probed[0]

    @cached_property
    def _probed(self) -> tuple[int, Pairing]:
        """Axes of a position, and the pairing, which the C library's layers do not name: by a rotation of one head."""
        import numpy

        first, last = self._rotated
        for axes in range(1, 5):
            x = numpy.zeros((1, 1, last), numpy.float32)
            x[0, 0, first] = 1.0
            try:
                _Counted(self, axes).rotate_(x, positions=numpy.ones((axes, 1, 1), numpy.int64))
            except Error as error:
                refused = error
                continue
            return axes, "interleaved" if last - first > 2 and x[0, 0, first + 1] != 0.0 else "half"
        raise refused

    def _written(self) -> Pairing:
        return self._probed[1]

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            rest = self.layer, self.length, call.code
            return Handle("rope", "posenc_rope_of_model", gpu.address, self.model.handle.address, *rest)

        return _plan.cached("rope", (self.text, call.code), call.where, make)


class _Counted(_Rotation):
    """A model's rope whose positions have so many axes."""

    def __init__(self, rope: ModelRope, axes: int) -> None:
        self._rope, self._axes = rope, axes

    @property
    def axes_of_positions(self) -> int:
        return self._axes

    def _plan(self, call: Call) -> Handle:
        return self._rope._plan(call)


class CosSin:
    """Cosines and sines of the caller by position, in place of a spec's angles: `cos` and `sin` `[rows, rotary /
    2]`, of f32 or of the tensors' type; without `sin`, sines follow the cosines in each row. A position outside
    takes the nearest row, or with `flag`, a 32-bit word that becomes 1, NaN."""

    def __init__(self, cos: Any, sin: Any = None, flag: Any = None) -> None:
        self.cos, self.sin, self.flag = cos, sin, flag

    def struct(self, call: Call) -> _c.Table:
        cos = call.tensor("cos", self.cos, dtypes=("float32", call.element or "float32"))
        tables = [cos]
        if self.sin is not None:
            tables.append(call.tensor("sin", self.sin, dtypes=(cos.dtype,)))
        for tensor in tables:
            if len(tensor.shape) != 2 or tensor.strides[1] != 1 and tensor.shape[1] > 1:
                raise Error(f"{tensor.is_alike()} with strides {list(tensor.strides)}, it must be [rows, pairs]")
            if tensor.shape != cos.shape or tensor.strides != cos.strides:
                raise Error(f"{tensor.is_alike()}, {cos.is_alike()}: both must be alike")
        return _c.Table(
            cos=call.buffer(cos),
            sin=call.buffer(tables[1]) if len(tables) == 2 else _c.Buffer(),
            rows=cos.shape[0],
            stride=cos.strides[0] if cos.shape[0] > 1 else cos.shape[1],
            element=_tensor.ELEMENTS[cos.dtype],
            out_of_range=_c.OUT_OF_RANGE_CLAMP if self.flag is None else _c.OUT_OF_RANGE_NAN,
            flag=call.plain("flag", self.flag, True, ("int32", "uint32"), (1,)),
        )


class LearnedRope:
    """RoPE whose frequencies are trained (`Rope(mixed=...)`): one plan on one device, whose frequencies are set from
    a tensor."""

    def __init__(self, rope: Rope, dtype: str = "float32", *, device: int = -1, stream: Any = None) -> None:
        if rope.mixed is None:
            raise Error("the rope has no `mixed` frequencies, which are those that are trained")
        self.rope, self.dtype = rope, dtype
        self._at = device, 0 if stream is None else _plan.stream_of(stream)
        element = choice("dtype", dtype, {n: _tensor.ELEMENTS[n] for n in ("float32", "float16", "bfloat16")})
        self._handle = rope._make(_plan.device(*self._at), element)

    def _check(self, call: Call) -> Handle:
        if call.where != self._at:
            raise Error(f"the tensors are on {_where(call.where)}, this rope was made for {_where(self._at)}")
        return self._handle

    def set_frequencies(self, frequencies: Any, flag: Any = None) -> None:
        """Takes new frequencies, f32 `[axes, sets, rotary / 2]`; `flag` becomes 1 if one is not below 2^40."""
        call = Call(self._at[1] if self._at[0] != _tensor.CPU else None)
        axes, sets, pairs = len(self.rope.mixed or ()), len((self.rope.mixed or ((),))[0]), self.rope.rotary // 2
        own = _c.SetFrequenciesCall(frequencies=call.plain("frequencies", frequencies, shape=(axes, sets, pairs)))
        own.flag = call.plain("flag", flag, True, ("int32", "uint32"), (1,))
        call.run("posenc_rope_set_frequencies", self._check(call), own)

    def rotate(self, q: Any, k: Any = None, **arguments: Any) -> Any:
        """As `Rope.rotate`."""
        return _Owned(self).rotate(q, k, stream=self._stream(), **arguments)

    def rotate_(self, q: Any, k: Any = None, **arguments: Any) -> Any:
        """As `Rope.rotate_`."""
        return _Owned(self).rotate_(q, k, stream=self._stream(), **arguments)

    def _stream(self) -> Any:
        return None if self._at[0] == _tensor.CPU else self._at[1]


class _Owned(_Rotation):
    """A rope's rotation by a plan of its own."""

    def __init__(self, learned: LearnedRope) -> None:
        self._learned = learned

    @property
    def axes_of_positions(self) -> int:
        return self._learned.rope.axes_of_positions

    def _plan(self, call: Call) -> Handle:
        if call.element != self._learned.dtype:
            raise Error(f"q is {call.element}, this rope was made for {self._learned.dtype}")
        return self._learned._check(call)


def _where(where: tuple[int, int]) -> str:
    device = _tensor.device_name(where[0])
    return device if where[0] == _tensor.CPU else f"{device}, stream {where[1]:#x}"


class RopeGrad:
    """Gradients of a rope's angles, from queries and keys and their gradients, both before the rotation or both
    after it."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope

    def frequencies(
        self,
        q: Any,
        q_grad: Any,
        out: Any,
        *,
        k: Any = None,
        k_grad: Any = None,
        positions: Any = None,
        starts: Any = None,
        cu_seqlens: Any = None,
        layout: str = "bthd",
        stream: Any = None,
    ) -> None:
        """Writes the gradient of the frequencies into `out`, f32 `[axes, sets, rotary / 2]`."""
        call = Call(stream)
        own = _c.FrequencyGradCall(
            q=_with_grad(call, "q", q, q_grad, layout), k=_with_grad(call, "k", k, k_grad, layout)
        )
        heads, axes = own.q.heads, self.rope.axes_of_positions
        own.positions = call.positions(positions, starts, cu_seqlens, heads.batch, heads.tokens, axes)
        sets = 1 if self.rope.mixed is None else len(self.rope.mixed[0])
        own.out = call.plain("out", out, True, shape=(axes, sets, self.rope.rotary // 2))
        call.run("posenc_rope_grad_frequencies", self._plan(call), own)

    def positions(
        self,
        q: Any,
        q_grad: Any,
        out: Any,
        *,
        k: Any = None,
        k_grad: Any = None,
        frequencies: Any = None,
        layout: str = "bthd",
        stream: Any = None,
    ) -> None:
        """Writes the gradient of the positions into `out`, f32 `[axes, batch, tokens]`. `frequencies` are learned
        ones."""
        call = Call(stream)
        own = _c.PositionGradCall(
            q=_with_grad(call, "q", q, q_grad, layout), k=_with_grad(call, "k", k, k_grad, layout)
        )
        own.frequencies = call.plain("frequencies", frequencies)
        heads, axes = own.q.heads, self.rope.axes_of_positions
        own.out = call.plain("out", out, True, shape=(axes, heads.batch, heads.tokens))
        call.run("posenc_rope_grad_positions", self._plan(call), own)

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            kept: list[Any] = []
            spec = self.rope.struct(kept)
            return Handle("rope_grad", "posenc_rope_grad_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("rope_grad", (self.rope, call.code), call.where, make)


def _with_grad(call: Call, name: str, x: Any, grad: Any, layout: str) -> _c.TensorGrad:
    if x is None:
        return _c.TensorGrad()
    if grad is None:
        raise Error(f"{name} is given without {name}_grad")
    tensor, own = call.elements(name, x), call.elements(f"{name}_grad", grad)
    return _c.TensorGrad(
        x=call.buffer(tensor),
        heads=call.heads(tensor, layout),
        grad=call.buffer(own),
        grad_heads=call.heads(own, layout),
    )


def fixed(positions: Any, bits: int, out: Any = None, flag: Any = None, *, stream: Any = None) -> Any:
    """Real positions, f32 or f64, as int64 units of `2^-bits`, rounded to the nearest, for ropes with
    `fraction_bits`."""
    call = Call(stream)
    tensor = call.tensor("positions", positions, dtypes=("float32", "float64"))
    if out is None:
        out = _tensor.empty_like(tensor, positions, dtype="int64")
    own = _c.FixedCall(
        positions=call.whole(tensor),
        element=_tensor.ELEMENTS[tensor.dtype],
        bits=bits,
        out=call.plain("out", out, True, ("int64",), tensor.shape),
        flag=call.plain("flag", flag, True, ("int32", "uint32"), (1,)),
    )
    plan = _plan.cached("fixed", (), call.where, lambda gpu: Handle("fixed", "posenc_fixed_new", gpu.address))
    if not tensor.empty:
        call.run("posenc_fixed_write", plan, own)
    return out


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor on cosine and sine, `0.1 mscale ln(factor) + 1`; 1 up to a factor of 1."""
    return float(_library.value("posenc_yarn_mscale", factor, mscale))


def mla_logit_scale(factor: float, mscale_all_dim: float) -> float:
    """DeepSeek's factor on the logits beside `1 / sqrt(head)`."""
    return float(_library.value("posenc_mla_logit_scale", factor, mscale_all_dim))


def longrope_attention_factor(factor: float, original_context: float) -> float:
    """LongRoPE's factor on cosine and sine; 1 up to a factor of 1."""
    return float(_library.value("posenc_longrope_attention_factor", factor, original_context))
