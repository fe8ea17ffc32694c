"""The softmax that consumes biases, Shaw's value side, and attention outputs put together."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _c, _plan, _tensor
from ._library import Handle
from ._plan import Call, Places
from ._spec import Spec
from .bias import Bias, Term, TermInputs, _OfLogits, table_shape, term_structs
from .errors import Error
from .rotate import choice

_ORDERS = {
    "softcap_then_bias": _c.SOFTCAP_THEN_BIAS,
    "bias_then_softcap": _c.BIAS_THEN_SOFTCAP,
    "bias_then_scale": _c.BIAS_THEN_SCALE,
}


@dataclass(frozen=True)
class Inputs:
    """Bias, mask, sinks, gates and scales of one softmax call.

    `terms` are what the terms of a sum read; `gates`, f32 `[batch, heads, queries]`, multiply the bias; `mask`, of
    the logits' type, is added last, and each of its sizes but the keys' may be 1; `sinks`, f32 `[heads]`, are logits
    without keys; `scales`, f32 `[heads]`, multiply `scale` (cosine attention).
    """

    bias: Bias | None = None
    places: Places | None = None
    terms: Sequence[TermInputs] = ()
    gates: Any = None
    mask: Any = None
    sinks: Any = None
    scales: Any = None

    def fill(self, call: Call, own: _c.Inputs, shape: _c.Logits) -> Any:
        """Fills the struct of posenc.h in; gives what must live as long as it is read."""
        own.places = call.places(self.places, shape.batch, shape.queries, shape.keys)
        inputs = term_structs(call, self.terms)
        own.terms, own.term_count = _plan.address_of(inputs), len(self.terms)
        own.gates = call.plain("gates", self.gates, shape=(shape.batch, shape.heads, shape.queries))
        if self.mask is not None:
            mask = call.elements("mask", self.mask)
            own.mask, own.mask_shape = call.buffer(mask), call.logits(mask)
        own.sinks = call.plain("sinks", self.sinks, shape=(shape.heads,))
        own.scales = call.plain("scales", self.scales, shape=(shape.heads,))
        handle = None
        if self.bias is not None:
            handle = self.bias._handle(call)
            own.bias = handle.address
        return inputs, handle


@dataclass(frozen=True)
class Softmax(Spec):
    """A softmax: `scale` multiplies the logit, `softcap` limits it (0: no limit), and keys may lie at most `left`
    before their query and `right` after it (none: any number). `right=0` is causal."""

    scale: float = 1.0
    softcap: float = 0.0
    left: int | None = None
    right: int | None = None
    order: Literal["softcap_then_bias", "bias_then_softcap", "bias_then_scale"] = "softcap_then_bias"

    def struct(self) -> _c.SoftmaxSpec:
        """The struct of posenc.h."""
        return _c.SoftmaxSpec(
            scale=self.scale,
            softcap=self.softcap,
            order=choice("order", self.order, _ORDERS),
            has_left=int(self.left is not None),
            left=self.left or 0,
            has_right=int(self.right is not None),
            right=self.right or 0,
        )

    def apply(
        self, logits: Any, inputs: Inputs | None = None, *, out: Any = None, lse: Any = None, stream: Any = None
    ) -> Any:
        """The softmax of every row of `logits`, `[batch, heads, queries, keys]` or without the batch, as a new array
        or into `out`. `lse`, f32 `[batch, heads, queries]`, takes the log-sum-exp."""
        return self._apply(logits, inputs, out, lse, stream, False)

    def apply_(self, logits: Any, inputs: Inputs | None = None, *, lse: Any = None, stream: Any = None) -> Any:
        """`apply` in place."""
        return self._apply(logits, inputs, None, lse, stream, True)

    def _apply(self, logits: Any, inputs: Inputs | None, out: Any, lse: Any, stream: Any, in_place: bool) -> Any:
        call = Call(stream)
        tensor = call.elements("logits", logits, in_place)
        own = _c.SoftmaxCall(x=call.buffer(tensor), shape=call.logits(tensor))
        if not in_place:
            out = _tensor.empty_like(tensor, logits) if out is None else out
            target = call.elements("out", out, True)
            own.out, own.out_shape = call.buffer(target), call.logits(target)
        shape = own.shape
        kept = (inputs or Inputs()).fill(call, own.inputs, shape)
        own.lse = call.plain("lse", lse, True, shape=(shape.batch, shape.heads, shape.queries))
        if not tensor.empty:
            call.run("posenc_softmax_apply", self._plan(call), own)
        del kept
        return logits if in_place else out

    def grad(
        self,
        probabilities: Any,
        grad: Any,
        inputs: Inputs | None = None,
        *,
        out: Any = None,
        logits: Any = None,
        bias_grad: Any = None,
        dots: Any = None,
        stream: Any = None,
    ) -> Any:
        """The gradient of the logits from the probabilities and their gradient, into `out` or a new array. `logits`
        are needed with a softcap; `bias_grad` takes the gradient of the bias, laid out as that of the logits;
        `dots`, f32 `[batch, heads, queries]`, what `sink_grad` needs."""
        call = Call(stream)
        given, read = call.elements("probabilities", probabilities), call.elements("grad", grad)
        out = _tensor.empty_like(given, probabilities) if out is None else out
        target = call.elements("out", out, True)
        own = _c.SoftmaxGradCall(probabilities=call.buffer(given), probabilities_shape=call.logits(given))
        own.grad, own.grad_shape = call.buffer(read), call.logits(read)
        own.out, own.out_shape = call.buffer(target), call.logits(target)
        shape = own.probabilities_shape
        kept = (inputs or Inputs()).fill(call, own.inputs, shape)
        if logits is not None:
            tensor = call.elements("logits", logits)
            own.logits, own.logits_shape = call.buffer(tensor), call.logits(tensor)
        if bias_grad is not None:
            tensor = call.elements("bias_grad", bias_grad, True)
            if tensor.shape != target.shape or tensor.strides != target.strides:
                raise Error(
                    f"{tensor.is_alike()} with strides {list(tensor.strides)}, the gradient of the logits has others"
                )
            own.bias_grad = call.buffer(tensor)
        own.dots = call.plain("dots", dots, True, shape=(shape.batch, shape.heads, shape.queries))
        if not given.empty:
            call.run("posenc_softmax_grad", self._plan(call), own)
        del kept
        return out

    def sink_grad(
        self, sinks: Any, lse: Any, dots: Any, keys: int, *, out: Any = None, dtype: str = "float32", stream: Any = None
    ) -> Any:
        """The gradient of the sinks, f32 `[heads]`, from the softmax's `lse` and its gradient's `dots`, `[batch,
        heads, queries]`."""
        call = Call(stream)
        call.element = dtype
        tensor = call.tensor("lse", lse, dtypes=("float32",))
        if len(tensor.shape) != 3:
            raise Error(f"lse has the shape {list(tensor.shape)}, it must be [batch, heads, queries]")
        batch, heads, queries = tensor.shape
        out = _tensor.empty_like(tensor, lse, (heads,)) if out is None else out
        own = _c.SinkGradCall(lse=call.whole(tensor), sinks=call.plain("sinks", sinks, shape=(heads,)))
        own.dots, own.grad = call.plain("dots", dots, shape=tensor.shape), call.plain("out", out, True, shape=(heads,))
        own.shape = _c.Logits(batch=batch, heads=heads, queries=queries, keys=keys)
        own.shape.strides = (heads * queries * keys, queries * keys, keys)
        call.run("posenc_softmax_sink_grad", self._plan(call), own)
        return out

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            return Handle("softmax", "posenc_softmax_new", gpu.address, ctypes.byref(self.struct()), call.code)

        return _plan.cached("softmax", (self, call.code), call.where, make)


class RelativeValues:
    """Shaw's relative positions on the value side: each key adds the vector of a table that its distance chooses.
    `term` is one of distances, such as `Term.shaw`."""

    def __init__(self, term: Term) -> None:
        self.term = term

    def add_(
        self,
        z: Any,
        probabilities: Any,
        table: Any,
        places: Places | None = None,
        *,
        layout: str = "bthd",
        stream: Any = None,
    ) -> Any:
        """Adds to `z`, `[batch, queries, heads, dim]`, the sum over keys of probability and vector. `table` is
        `[entries, dim]` or `[heads, entries, dim]`, f32 or of the type of `z`."""
        call = Call(stream)
        target, given = call.elements("z", z, True), call.elements("probabilities", probabilities)
        own = _c.RelativeValuesCall(probabilities=call.buffer(given), shape=call.logits(given))
        own.z, own.z_shape = call.buffer(target), call.heads(target, layout)
        own.element, own.table, own.table_shape = _vectors(call, table)
        own.places = call.places(places, own.shape.batch, own.shape.queries, own.shape.keys)
        call.run("posenc_relative_values_add", self._plan(call), own)
        return z

    def grad(
        self,
        dz: Any,
        table: Any,
        out: Any,
        places: Places | None = None,
        *,
        add: bool = False,
        layout: str = "bthd",
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of the probabilities into `out`, `[batch, heads, queries, keys]`, or adds it."""
        call = Call(stream)
        given, target = call.elements("dz", dz), call.elements("out", out, True)
        own = _c.RelativeValuesGradCall(dz=call.buffer(given), dz_shape=call.heads(given, layout), add=int(add))
        own.dp, own.dp_shape = call.buffer(target), call.logits(target)
        own.element, own.table, own.table_shape = _vectors(call, table)
        own.places = call.places(places, own.dp_shape.batch, own.dp_shape.queries, own.dp_shape.keys)
        call.run("posenc_relative_values_grad", self._plan(call), own)
        return out

    def _plan(self, call: Call) -> Handle:
        def make(gpu: Handle) -> Handle:
            spec = _c.RelativeValuesSpec(distances=self.term._struct.distances)
            return Handle("relative_values", "posenc_relative_values_new", gpu.address, ctypes.byref(spec), call.code)

        return _plan.cached("relative_values", (self.term.key, call.code), call.where, make)


def _vectors(call: Call, table: Any) -> tuple[int, _c.Buffer, _c.Numbers]:
    tensor = call.tensor("table", table, dtypes=("float32", call.element or "float32"))
    return _tensor.ELEMENTS[tensor.dtype], call.buffer(tensor), table_shape(call, tensor)


class RelativeTableGrad(_OfLogits):
    """The gradient of the table of relative values, for probabilities of up to a shape."""

    kind = "relative_table_grad"

    def __init__(
        self, term: Term, dim: int, batch: int, heads: int, queries: int, keys: int, *, table_heads: int = 1
    ) -> None:
        super().__init__(batch, heads, queries, keys)
        self.term, self.dim, self.table_heads = term, dim, table_heads
        self._key = term.key, dim, table_heads

    def _constructor(self) -> tuple[str, Any]:
        spec = _c.RelativeTableGradSpec(distances=self.term._struct.distances, heads=self.table_heads, dim=self.dim)
        return "posenc_relative_table_grad_new", spec

    def apply(
        self,
        probabilities: Any,
        dz: Any,
        out: Any = None,
        places: Places | None = None,
        *,
        layout: str = "bthd",
        stream: Any = None,
    ) -> Any:
        """Writes the gradient of the table into `out`, f32 `[table_heads, entries, dim]`."""
        call = Call(stream)
        given, read = call.elements("probabilities", probabilities), call.elements("dz", dz)
        own = _c.RelativeTableGradCall(probabilities=call.buffer(given), shape=call.logits(given))
        own.dz, own.dz_shape = call.buffer(read), call.heads(read, layout)
        own.places = call.places(places, own.shape.batch, own.shape.queries, own.shape.keys)
        plan = self._plan(call)
        length = _plan_length(plan)
        shape = (self.table_heads, length // (self.table_heads * self.dim), self.dim)
        out = _tensor.empty_like(given, probabilities, shape, "float32") if out is None else out
        own.out = call.plain("out", out, True, shape=shape)
        call.run("posenc_relative_table_grad_apply", plan, own)
        return out


def _plan_length(plan: Handle) -> int:
    from ._library import gives

    return int(gives("posenc_relative_table_grad_len", ctypes.c_uint64(), plan.address).value)


@dataclass(frozen=True)
class State:
    """Attention of queries over some of their keys: `out`, `[batch, tokens, heads, dim]`, and `lse`, f32 `[batch,
    heads, tokens]`, natural logarithms of the sums of exponentials (-inf: no keys)."""

    out: Any
    lse: Any

    def struct(self, call: Call, name: str, written: bool, layout: str) -> _c.State:
        """The struct of posenc.h."""
        tensor = call.elements(name, self.out, written)
        own = _c.State(out=call.buffer(tensor), heads=call.heads(tensor, layout))
        if self.lse is not None:
            lse = call.tensor(f"{name}_lse", self.lse, written, ("float32",))
            own.lse, own.lse_shape = call.buffer(lse), call.numbers(lse, ("heads", "rows"))
        return own


def merge_states(a: State, b: State, out: State | None = None, *, layout: str = "bthd", stream: Any = None) -> State:
    """The attention over both sets of keys, into `out`; without it `a` is changed in place."""
    call = Call(stream)
    own = _c.MergeCall(a=a.struct(call, "a", out is None, layout), b=b.struct(call, "b", False, layout))
    if out is not None:
        own.result = out.struct(call, "result", True, layout)
    call.run("posenc_merge_states", _merge(call), own)
    return a if out is None else out


def merge_grad(
    a: State, b: State, grad: State, a_grad: State, b_grad: State, *, layout: str = "bthd", stream: Any = None
) -> None:
    """Writes the gradients of both states into `a_grad` and `b_grad`, from that of the result; `grad.lse` may be
    none."""
    call = Call(stream)
    own = _c.MergeGradCall(a=a.struct(call, "a", False, layout), b=b.struct(call, "b", False, layout))
    own.grad = grad.struct(call, "grad", False, layout)
    own.a_grad, own.b_grad = a_grad.struct(call, "a_grad", True, layout), b_grad.struct(call, "b_grad", True, layout)
    call.run("posenc_merge_grad", _merge(call), own)


def _merge(call: Call) -> Handle:
    def make(gpu: Handle) -> Handle:
        spec = _c.MergeSpec()
        return Handle("merge", "posenc_merge_new", gpu.address, ctypes.byref(spec), call.code)

    return _plan.cached("merge", call.code, call.where, make)
