"""The operations for PyTorch: each a `torch.library.custom_op` of the namespace `posenc` with a fake kernel and, where
it has a gradient, autograd. They compile with `torch.compile(fullgraph=True)`, on the CPU and on CUDA, in torch's
current stream.

    import torch, posenc, posenc.torch
    rope = posenc.Rope.from_config(model.config)
    q, k = posenc.torch.rope(q, k, spec=rope, positions=position_ids, layout="bhtd")

"""

# No `annotations` of the future: torch reads the types of an operation as they are.
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import _plan, attend, embed
from . import bias as _bias
from ._plan import Places
from ._spec import Spec, spec_of
from .errors import Error
from .prologue import Cache, Codes, Projected
from .rotate import CosSin, Rope, XPos

__all__ = [
    "bias",
    "cos_sin",
    "fixed",
    "grid",
    "grid_add",
    "learned",
    "merge",
    "prologue",
    "resample",
    "rope",
    "rope_",
    "rope_by_table",
    "score_mod",
    "sinusoid",
    "sinusoid_add",
    "sinusoid_add_",
    "softmax",
    "timestep",
]

#: a plan whose table is set is used by one call at a time
_TABLES = threading.RLock()


def _text(spec: "Spec | str") -> str:
    return spec if isinstance(spec, str) else spec.text


def _ready(x: Tensor) -> Tensor:
    """The tensor with contiguous channels. Gradients of sums are expanded: their channels share memory."""
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()


def _alone(**tensors: Tensor | None) -> None:
    """An operation in place has no gradient: what autograd follows is refused."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise Error(
                f"{name} requires grad and is changed in place, which autograd would not see: use torch.no_grad()"
            )


def _refuse(ctx: Any, names: dict[int, str], operation: str) -> None:
    """A gradient that an operation does not have must not be none in silence."""
    for at, name in names.items():
        if ctx.needs_input_grad[at]:
            raise Error(f"{operation} has no gradient of {name}, which requires grad: detach it")


# ----------------------------------------------------------------------------------------------------------------- rope


def _rotate(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
    side: str,
    in_place: bool,
) -> Any:
    arguments = {**_where(positions, starts), "inverse": inverse, "layout": layout, "side": side}
    arguments["cu_seqlens"] = None if cu_seqlens is None else cu_seqlens.contiguous()
    rope = spec_of(spec)
    if in_place:
        return rope.rotate_(q, k, **arguments)
    return rope.rotate(_ready(q), None if k is None else _ready(k), **arguments)


@torch.library.custom_op("posenc::rope", mutates_args=())
def _rope(
    x: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
    side: str,
) -> Tensor:
    return _rotate(x, None, positions, starts, cu_seqlens, spec, inverse, layout, side, False)


@_rope.register_fake
def _(x, positions, starts, cu_seqlens, spec, inverse, layout, side):
    return x.new_empty(x.shape)


@torch.library.custom_op("posenc::rope_pair", mutates_args=())
def _rope_pair(
    q: Tensor,
    k: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
) -> tuple[Tensor, Tensor]:
    return _rotate(q, k, positions, starts, cu_seqlens, spec, inverse, layout, "query", False)


@_rope_pair.register_fake
def _(q, k, positions, starts, cu_seqlens, spec, inverse, layout):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("posenc::rope_", mutates_args={"x"})
def _rope_in_place(
    x: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
    side: str,
) -> None:
    _rotate(x, None, positions, starts, cu_seqlens, spec, inverse, layout, side, True)


@torch.library.custom_op("posenc::rope_pair_", mutates_args={"q", "k"})
def _rope_pair_in_place(
    q: Tensor,
    k: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
) -> None:
    _rotate(q, k, positions, starts, cu_seqlens, spec, inverse, layout, "query", True)


def _keep_rope(ctx, inputs, output):
    _, *positions, spec, inverse, layout, side = inputs
    ctx.rest = spec, not inverse, layout, side
    ctx.save_for_backward(*positions)


def _transposed(spec: str) -> str:
    """The rope that reads pairs where this one writes them."""
    own = spec_of(spec)
    if isinstance(own, XPos):
        return replace(own, rope=spec_of(_transposed(own.rope.text))).text
    if not isinstance(own, Rope) or not own.repaired:
        return spec
    return replace(own, pairing="half" if own.pairing == "interleaved" else "interleaved").text


def _rope_backward(ctx, grad):
    # The gradient of a rotation is the rotation back, of a scaled one the same scaled.
    spec, *rest = ctx.rest
    return _rope(grad, *ctx.saved_tensors, _transposed(spec), *rest), *[None] * 7


def _keep_rope_pair(ctx, inputs, output):
    _, _, *positions, spec, inverse, layout = inputs
    ctx.rest = spec, not inverse, layout
    ctx.save_for_backward(*positions)


def _rope_pair_backward(ctx, q_grad, k_grad):
    spec, *rest = ctx.rest
    return *_rope_pair(q_grad, k_grad, *ctx.saved_tensors, _transposed(spec), *rest), *[None] * 6


_rope.register_autograd(_rope_backward, setup_context=_keep_rope)
_rope_pair.register_autograd(_rope_pair_backward, setup_context=_keep_rope_pair)


def rope(
    q: Tensor,
    k: Tensor | None = None,
    *,
    spec: "Spec | str",
    positions: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    layout: str = "bthd",
    side: str = "query",
) -> Any:
    """Queries, and keys if there are any, rotated in one kernel: `posenc.Rope.rotate` with autograd."""
    rest = positions, starts, cu_seqlens, _text(spec), inverse, layout
    return _rope(q, *rest, side) if k is None else _rope_pair(q, k, *rest)


def rope_(
    q: Tensor,
    k: Tensor | None = None,
    *,
    spec: "Spec | str",
    positions: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    layout: str = "bthd",
    side: str = "query",
) -> Any:
    """`rope` in place, without autograd; gives `q`, or `(q, k)`."""
    rest = positions, starts, cu_seqlens, _text(spec), inverse, layout
    _alone(q=q, k=k)
    if k is None:
        _rope_in_place(q, *rest, side)
        return q
    _rope_pair_in_place(q, k, *rest)
    return q, k


# ------------------------------------------------------------------------------------------------------------ embedding


def _where(positions: Tensor | None, starts: Tensor | None) -> dict[str, Any]:
    integers = {"positions": positions, "starts": starts}
    return {name: x.contiguous() for name, x in integers.items() if x is not None}


@torch.library.custom_op("posenc::sinusoid_add", mutates_args=())
def _sinusoid_add(x: Tensor, positions: Tensor | None, starts: Tensor | None, spec: str, scale: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
    with torch.no_grad():
        return spec_of(spec).add_(out, scale, **_where(positions, starts))


@_sinusoid_add.register_fake
def _(x, positions, starts, spec, scale):
    return x.new_empty(x.shape)


@torch.library.custom_op("posenc::sinusoid_add_", mutates_args={"x"})
def _sinusoid_add_in_place(x: Tensor, positions: Tensor | None, starts: Tensor | None, spec: str, scale: float) -> None:
    spec_of(spec).add_(x, scale, **_where(positions, starts))


def _keep_scale(ctx, inputs, output):
    ctx.scale, ctx.others = inputs[-1], len(inputs) - 1


_sinusoid_add.register_autograd(lambda ctx, grad: (grad * ctx.scale, *[None] * ctx.others), setup_context=_keep_scale)


def sinusoid_add(
    x: Tensor,
    *,
    spec: "Spec | str",
    scale: float = 1.0,
    positions: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """`x * scale + sinusoid`, of `x` `[batch, tokens, dim]`."""
    return _sinusoid_add(x, positions, starts, _text(spec), scale)


def sinusoid_add_(
    x: Tensor,
    *,
    spec: "Spec | str",
    scale: float = 1.0,
    positions: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """`sinusoid_add` in place, without autograd."""
    _alone(x=x)
    _sinusoid_add_in_place(x, positions, starts, _text(spec), scale)
    return x


@torch.library.custom_op("posenc::sinusoid", mutates_args=())
def _sinusoid(positions: Tensor, spec: str, dtype: torch.dtype) -> Tensor:
    own = spec_of(spec)
    out = torch.empty((*positions.shape, own.dim), dtype=dtype, device=positions.device)
    return own.write(out, positions=positions.contiguous())


@_sinusoid.register_fake
def _(positions, spec, dtype):
    return positions.new_empty((*positions.shape, spec_of(spec).dim), dtype=dtype)


def sinusoid(positions: Tensor, *, spec: "Spec | str", dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoids of positions, `[tokens]` or `[batch, tokens]`."""
    return _sinusoid(positions, _text(spec), dtype)


@torch.library.custom_op("posenc::timestep", mutates_args=())
def _timestep(t: Tensor, spec: str, dtype: torch.dtype) -> Tensor:
    own = spec_of(spec)
    return own.timesteps(t.contiguous(), torch.empty((*t.shape, own.dim), dtype=dtype, device=t.device))


@_timestep.register_fake
def _(t, spec, dtype):
    return t.new_empty((*t.shape, spec_of(spec).dim), dtype=dtype)


def timestep(t: Tensor, *, spec: "Spec | str", dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoids of fractional times, f32 or f64 `[times]`, of diffusion models; without a gradient of the times."""
    return _timestep(t.detach(), _text(spec), dtype)


def _width(spec: str) -> int:
    return sum(sinusoid.dim for _, sinusoid in spec_of(spec).axes)


@torch.library.custom_op("posenc::grid_add", mutates_args=())
def _grid_add(x: Tensor, spec: str, rows: int, columns: int, frames: int, scale: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
    with torch.no_grad():
        return spec_of(spec).add_(out, rows, columns, frames, scale)


@_grid_add.register_fake
def _(x, spec, rows, columns, frames, scale):
    return x.new_empty(x.shape)


_grid_add.register_autograd(lambda ctx, grad: (grad * ctx.scale, *[None] * ctx.others), setup_context=_keep_scale)


def grid_add(x: Tensor, rows: int, columns: int, frames: int = 1, *, spec: "Spec | str", scale: float = 1.0) -> Tensor:
    """`x * scale + grid`, of `x` `[batch, frames * rows * columns, dim]`."""
    return _grid_add(x, _text(spec), rows, columns, frames, scale)


@torch.library.custom_op("posenc::grid", mutates_args=())
def _grid(
    mask: Tensor | None,
    spec: str,
    rows: int,
    columns: int,
    frames: int,
    normalize: bool,
    scale: float,
    centre: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    own = spec_of(spec)
    if mask is None:
        out = torch.empty((frames * rows * columns, _width(spec)), dtype=dtype, device=device)
        return own.write(out, rows, columns, frames)
    out = torch.empty((mask.shape[0], rows * columns, _width(spec)), dtype=dtype, device=device)
    return own.write_masked(out, mask.contiguous(), normalize=normalize, scale=scale, centre=centre)


@_grid.register_fake
def _(mask, spec, rows, columns, frames, normalize, scale, centre, dtype, device):
    batch = (frames * rows * columns,) if mask is None else (mask.shape[0], rows * columns)
    return torch.empty((*batch, _width(spec)), dtype=dtype, device=device)


def grid(
    rows: int = 0,
    columns: int = 0,
    frames: int = 1,
    *,
    spec: "Spec | str",
    mask: Tensor | None = None,
    normalize: bool = True,
    scale: float = 6.283185307179586,
    centre: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Tensor:
    """The table of a grid, `[frames * rows * columns, dim]`; with a mask, bool `[batch, rows, columns]`, one for
    each image, whose coordinates are counted over it as in DETR."""
    if mask is not None:
        rows, columns, device = mask.shape[1], mask.shape[2], mask.device
    return _grid(mask, _text(spec), rows, columns, frames, normalize, scale, centre, dtype, torch.device(device))


_TABLE_NAMES = ("token", "position", "types", "gain", "bias")


@torch.library.custom_op("posenc::learned", mutates_args=())
def _learned(
    x: Tensor | None,
    ids: Tensor | None,
    kinds: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    token: Tensor | None,
    position: Tensor | None,
    types: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> Tensor:
    tables, lookup = _tables(token, position, types, gain, bias), _lookup(ids, kinds, mask, positions)
    out = _rows_like(x, ids, mask, kinds, token, position, types, spec)
    if x is not None:
        out.copy_(x)
    with torch.no_grad():
        return spec_of(spec).gather(out, tables, lookup)


def _tables(*tables: Tensor | None) -> embed.Tables:
    return embed.Tables(*(None if table is None else table.contiguous() for table in tables))


def _lookup(*integers: Tensor | None) -> embed.Lookup:
    return embed.Lookup(*(None if x is None else x.contiguous() for x in integers))


def _rows_like(
    x: Tensor | None,
    ids: Tensor | None,
    mask: Tensor | None,
    kinds: Tensor | None,
    token: Tensor | None,
    position: Tensor | None,
    types: Tensor | None,
    spec: str,
) -> Tensor:
    if x is not None:
        return x.new_empty(x.shape)
    shape = next((own.shape for own in (ids, mask, kinds) if own is not None), None)
    table = next((own for own in (token, position, types) if own is not None), None)
    if shape is None or table is None:
        raise Error("a learned embedding needs x, or ids, types or a mask, with a table")
    return table.new_empty((*shape, spec_of(spec).dim))


@_learned.register_fake
def _(x, ids, kinds, mask, positions, token, position, types, gain, bias, spec):
    return _rows_like(x, ids, mask, kinds, token, position, types, spec)


@torch.library.custom_op("posenc::learned_grad", mutates_args=())
def _learned_grad(
    grad: Tensor,
    x: Tensor | None,
    ids: Tensor | None,
    kinds: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    token: Tensor | None,
    position: Tensor | None,
    types: Tensor | None,
    gain: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> list[Tensor]:
    """Gradients of the sum, and of each table that is there, in their order."""
    own: embed.Learned = spec_of(spec)
    grad = grad.contiguous()
    whole = grad if grad.dim() == 3 else grad[None]
    batch, tokens, _ = whole.shape
    tables, lookup = _tables(token, position, types, gain, bias), _lookup(ids, kinds, mask, positions)
    plan = embed.LearnedGrad(own, batch, tokens)
    given = dict(zip(_TABLE_NAMES, (token, position, types, gain, bias), strict=True))
    out = {name: table.new_zeros(table.shape) for name, table in given.items() if table is not None}
    total = torch.empty_like(whole) if own.norm != "none" else whole
    if whole.numel():
        if own.norm != "none":
            source = None if x is None else x.contiguous().view(whole.shape)
            gain_grad, bias_grad = out.get("gain"), out.get("bias")
            plan.norm(whole, total, tables, lookup, x=source, gain_grad=gain_grad, bias_grad=bias_grad)
        rows = None
        if position is not None:
            rows = own.rows(torch.empty((batch, tokens), dtype=torch.int64, device=grad.device), lookup)
        for name, integers, scale in (("token", ids, own.scale), ("position", rows, 1.0), ("types", kinds, 1.0)):
            if name in out and integers is not None:
                integers = integers.reshape(-1)
                dtype = str(grad.dtype)[6:]
                order = plan.order(integers, torch.empty(len(integers), dtype=torch.int32, device=grad.device), dtype)
                plan.table(total, out[name], integers, order, scale=scale)
    # an output of its own
    total = (total.clone() if total.data_ptr() == grad.data_ptr() else total).view(grad.shape)
    return [total, *out.values()]


@_learned_grad.register_fake
def _(grad, x, ids, kinds, mask, positions, token, position, types, gain, bias, spec):
    tables = [table for table in (token, position, types, gain, bias) if table is not None]
    return [grad.new_empty(grad.shape), *(table.new_empty(table.shape) for table in tables)]


def _keep_all(ctx, inputs, output):
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)


def _learned_backward(ctx, grad):
    tensors = ctx.saved_tensors
    total, *grads = _learned_grad(grad, *tensors, ctx.spec)
    own = iter(grads)
    tables = [None if table is None else next(own) for table in tensors[5:]]
    return None if tensors[0] is None else total, None, None, None, None, *tables, None


_learned.register_autograd(_learned_backward, setup_context=_keep_all)


def learned(
    ids: Tensor | None = None,
    *,
    spec: "Spec | str",
    token: Tensor | None = None,
    position: Tensor | None = None,
    types: Tensor | None = None,
    kinds: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """`norm(token[ids] * scale + position[row] + types[kinds])`, with gradients of every table. `x`, `[batch,
    tokens, dim]`, takes the place of token rows; integers are `[batch, tokens]`."""
    return _learned(x, ids, kinds, mask, positions, token, position, types, gain, bias, _text(spec))


@torch.library.custom_op("posenc::resample", mutates_args=())
def _resample(table: Tensor, spec: str) -> Tensor:
    own = spec_of(spec)
    out = table.new_empty(_resampled(table, spec, True))
    return own.write(_ready(table), out)


def _resampled(table: Tensor, spec: str, forward: bool) -> tuple[int, ...]:
    own = spec_of(spec)
    rows, columns = own.to_size if forward else own.from_size
    return (*table.shape[:-2], own.prefix + rows * columns, table.shape[-1])


@_resample.register_fake
def _(table, spec):
    return table.new_empty(_resampled(table, spec, True))


@torch.library.custom_op("posenc::resample_grad", mutates_args=())
def _resample_grad(grad: Tensor, spec: str) -> Tensor:
    return spec_of(spec).grad(_ready(grad), grad.new_empty(_resampled(grad, spec, False)))


@_resample_grad.register_fake
def _(grad, spec):
    return grad.new_empty(_resampled(grad, spec, False))


_resample.register_autograd(lambda ctx, grad: (_resample_grad(grad, ctx.spec), None), setup_context=_keep_all)


def resample(table: Tensor, *, spec: "Spec | str") -> Tensor:
    """A learned table of an image's tokens at another resolution, with its gradient."""
    return _resample(table, _text(spec))


# ----------------------------------------------------------------------------------------------------- bias and softmax


class _Source:
    """A bias of a call: its plan takes the tensor that trains it, if there is one."""

    def __init__(self, text: str, table: Tensor | None) -> None:
        self.spec: Any = spec_of(text) if text else None
        self.table = table
        if table is None:
            return
        if not isinstance(self.spec, _bias.T5):
            kind = type(self.spec).__name__ if text else "no bias"
            raise Error(f"table is given with {kind}, it is T5's")
        if self.spec.table is not None:
            raise Error("the T5 bias has a table of its own, and table is given: make it without one")

    def bias(self, call_like: Tensor) -> Any:
        if self.table is None:
            return self.spec
        dtype, at = str(call_like.dtype)[6:], call_like.device
        device = -1 if at.type == "cpu" else at.index
        stream = 0 if device < 0 else _plan.current_stream(call_like, device)
        return _with_table(self.spec, self.table, dtype, device, stream)


def _with_table(spec: Any, table: Tensor, dtype: str, device: int, stream: int) -> Any:
    key = spec._key, dtype, device, stream
    with _TABLES:
        plan = _OWNED.get(key)
        if plan is None:
            if len(_OWNED) >= _plan.CAPACITY:
                _OWNED.clear()
            plan = _OWNED[key] = spec.plan(dtype, device=device, stream=stream)
        plan.set_table(table.detach().to(torch.float32).contiguous())
    return plan


_OWNED: dict[Any, Any] = {}


def _places(
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    first_query: int | None,
    first_key: int,
) -> Places:
    whole = lambda x: None if x is None else x.to(torch.int32).contiguous()
    queries: Any = "bottom_right" if first_query is None else first_query
    return Places(
        queries if query_positions is None else whole(query_positions),
        first_key if key_positions is None else whole(key_positions),
        query_lengths=whole(query_lengths),
        key_lengths=whole(key_lengths),
        cu_seqlens_q=whole(cu_seqlens_q),
        cu_seqlens_k=whole(cu_seqlens_k),
    )


@torch.library.custom_op("posenc::bias", mutates_args=())
def _write_bias(
    table: Tensor | None,
    numbers: Sequence[Tensor],
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    first_query: int | None,
    first_key: int,
    spec: str,
    batch: int,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    source = _Source(spec, table)
    out = torch.empty((batch, source.spec.heads, queries, keys), dtype=dtype, device=device)
    places = _places(query_positions, key_positions, None, None, None, None, first_query, first_key)
    with torch.no_grad(), _TABLES:
        return source.bias(out).write(out, places, terms=[_bias.TermInputs(x.detach()) for x in numbers])


@_write_bias.register_fake
def _(
    table, numbers, query_positions, key_positions, first_query, first_key, spec, batch, queries, keys, dtype, device
):
    return torch.empty((batch, spec_of(spec).heads, queries, keys), dtype=dtype, device=device)


@torch.library.custom_op("posenc::bias_grad", mutates_args=())
def _bias_grad(
    grad: Tensor,
    table: Tensor | None,
    numbers: Sequence[Tensor],
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    first_query: int | None,
    first_key: int,
    spec: str,
) -> list[Tensor]:
    """The gradient of a T5 table, if there is one, and of each term's numbers."""
    own = spec_of(spec)
    grad = _ready(grad)
    batch, heads, queries, keys = grad.shape
    places = _places(
        query_positions, key_positions, query_lengths, key_lengths, cu_seqlens_q, cu_seqlens_k, first_query, first_key
    )
    out = []
    if table is not None:
        plain = torch.zeros(table.shape, dtype=torch.float32, device=grad.device)
        if grad.numel():
            _bias.DistanceGrad(own, batch, queries, keys).apply(grad, plain, places)
        out.append(plain.to(table.dtype))
    for term, read in zip(own.terms if numbers else (), numbers, strict=True):
        plain = torch.zeros(read.shape, dtype=torch.float32, device=grad.device)
        if grad.numel():
            _bias.TermGrad(term, batch, heads, queries, keys).apply(grad, plain, places)
        out.append(plain.to(read.dtype))
    return out


@_bias_grad.register_fake
def _(
    grad,
    table,
    numbers,
    query_positions,
    key_positions,
    query_lengths,
    key_lengths,
    cu_seqlens_q,
    cu_seqlens_k,
    first_query,
    first_key,
    spec,
):
    return [own.new_empty(own.shape) for own in ([] if table is None else [table]) + list(numbers)]


def _keep_bias(ctx, inputs, output):
    table, numbers, query_positions, key_positions, ctx.first_query, ctx.first_key, ctx.spec, *_ = inputs
    ctx.count = len(numbers)
    ctx.save_for_backward(table, query_positions, key_positions, *numbers)


def _bias_backward(ctx, grad):
    table, query_positions, key_positions, *numbers = ctx.saved_tensors
    rest = query_positions, key_positions, None, None, None, None, ctx.first_query, ctx.first_key
    grads = list(_bias_grad(grad, table, numbers, *rest, ctx.spec))
    of_table = None if table is None else grads.pop(0)
    return of_table, grads, *[None] * 10


_write_bias.register_autograd(_bias_backward, setup_context=_keep_bias)


def bias(
    queries: int,
    keys: int,
    *,
    spec: "Spec | str",
    table: Tensor | None = None,
    numbers: Sequence[Tensor] = (),
    batch: int = 1,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    first_query: int | None = None,
    first_key: int = 0,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Tensor:
    """The bias of every query and key, `[batch, heads, queries, keys]`. `table`, `[buckets, heads]`, trains a T5
    without a table of its own; `numbers` are those of a sum of terms. Both have gradients. The last query is at the
    last key's position unless `first_query` or `query_positions` say otherwise."""
    if device is None:
        device = next((own.device for own in (table, *numbers, query_positions) if own is not None), "cpu")
    where = query_positions, key_positions, first_query, first_key
    return _write_bias(table, list(numbers), *where, _text(spec), batch, queries, keys, dtype, torch.device(device))


@torch.library.custom_op("posenc::softmax", mutates_args=())
def _softmax(
    logits: Tensor,
    table: Tensor | None,
    numbers: Sequence[Tensor],
    mask: Tensor | None,
    sinks: Tensor | None,
    scales: Tensor | None,
    gates: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    first_query: int | None,
    first_key: int,
    spec: str,
    bias: str,
) -> tuple[Tensor, Tensor]:
    out, lse = logits.new_empty(logits.shape), logits.new_empty(logits.shape[:-1], dtype=torch.float32)
    places = _places(
        query_positions, key_positions, query_lengths, key_lengths, cu_seqlens_q, cu_seqlens_k, first_query, first_key
    )
    with torch.no_grad(), _TABLES:
        inputs = _inputs(logits, table, numbers, mask, sinks, scales, gates, places, bias)
        spec_of(spec).apply(_ready(logits), inputs, out=out, lse=lse)
    return out, lse


def _inputs(
    logits: Tensor,
    table: Tensor | None,
    numbers: Sequence[Tensor],
    mask: Tensor | None,
    sinks: Tensor | None,
    scales: Tensor | None,
    gates: Tensor | None,
    places: Places,
    bias: str,
) -> attend.Inputs:
    whole = lambda x: None if x is None else x.to(torch.float32).contiguous()
    return attend.Inputs(
        _Source(bias, table).bias(logits),
        places,
        [_bias.TermInputs(own.detach()) for own in numbers],
        gates=whole(gates),
        mask=None if mask is None else _ready(mask),
        sinks=whole(sinks),
        scales=whole(scales),
    )


@_softmax.register_fake
def _(logits, *rest):
    return logits.new_empty(logits.shape), logits.new_empty(logits.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("posenc::softmax_grad", mutates_args=())
def _softmax_grad(
    grad: Tensor,
    probabilities: Tensor,
    logits: Tensor | None,
    table: Tensor | None,
    numbers: Sequence[Tensor],
    sinks: Tensor | None,
    scales: Tensor | None,
    gates: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    first_query: int | None,
    first_key: int,
    spec: str,
    bias: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the logits and of the bias, and the dots that a sink's needs."""
    out, of_bias = grad.new_empty(grad.shape), grad.new_empty(grad.shape)
    dots = grad.new_zeros(grad.shape[:-1], dtype=torch.float32)
    places = _places(
        query_positions, key_positions, query_lengths, key_lengths, cu_seqlens_q, cu_seqlens_k, first_query, first_key
    )
    with torch.no_grad(), _TABLES:
        inputs = _inputs(grad, table, numbers, None, sinks, scales, gates, places, bias)
        spec_of(spec).grad(
            _ready(probabilities),
            _ready(grad),
            inputs,
            out=out,
            bias_grad=of_bias,
            dots=dots,
            logits=None if logits is None else _ready(logits),
        )
    return out, of_bias, dots


@_softmax_grad.register_fake
def _(grad, *rest):
    dots = grad.new_empty(grad.shape[:-1], dtype=torch.float32)
    return grad.new_empty(grad.shape), grad.new_empty(grad.shape), dots


@torch.library.custom_op("posenc::sink_grad", mutates_args=())
def _sink_grad(sinks: Tensor, lse: Tensor, dots: Tensor, spec: str, dtype: str, keys: int) -> Tensor:
    whole = sinks.detach().to(torch.float32).contiguous()
    own = spec_of(spec).sink_grad(whole, lse.contiguous(), dots.contiguous(), keys, dtype=dtype)
    return own.to(sinks.dtype)


@_sink_grad.register_fake
def _(sinks, lse, dots, spec, dtype, keys):
    return sinks.new_empty(sinks.shape)


def _keep_softmax(ctx, inputs, output):
    logits, table, numbers, mask, sinks, scales, gates, *places, ctx.first_query, ctx.first_key, ctx.spec, ctx.bias = (
        inputs
    )
    ctx.keys, ctx.dtype = logits.shape[-1], str(logits.dtype)[6:]
    ctx.count = len(numbers)
    kept = logits if spec_of(ctx.spec).softcap else None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, kept, table, sinks, scales, gates, *places, *numbers)


def _softmax_backward(ctx, grad, _):
    _refuse(ctx, {3: "the mask", 5: "scales", 6: "gates"}, "the softmax")
    if grad is None:
        return (None,) * 17
    p, lse, logits, table, sinks, scales, gates, *rest = ctx.saved_tensors
    places, numbers = rest[:6], list(rest[6:])
    where = *places, ctx.first_query, ctx.first_key
    own, of_bias, dots = _softmax_grad(
        grad, p, logits, table, numbers, sinks, scales, gates, *where, ctx.spec, ctx.bias
    )
    of_table, of_numbers, of_sinks = None, [None] * ctx.count, None
    if table is not None or numbers:
        if gates is not None:
            raise Error("the softmax has no gradient of a bias that is multiplied by gates")
        grads = list(_bias_grad(of_bias, table, numbers, *where, ctx.bias))
        of_table = None if table is None else grads.pop(0)
        of_numbers = grads
    if sinks is not None:
        of_sinks = _sink_grad(sinks, lse, dots, ctx.spec, ctx.dtype, ctx.keys)
    return own, of_table, of_numbers, None, of_sinks, *[None] * 12


_softmax.register_autograd(_softmax_backward, setup_context=_keep_softmax)


def softmax(
    logits: Tensor,
    *,
    spec: "Spec | str",
    bias: "Spec | str" = "",
    table: Tensor | None = None,
    numbers: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    scales: Tensor | None = None,
    gates: Tensor | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    first_query: int | None = None,
    first_key: int = 0,
    with_lse: bool = False,
) -> Any:
    """The softmax of `logits`, `[batch, heads, queries, keys]`, with a bias, a mask, sinks, lengths and packed
    sequences in one kernel; with `with_lse` also the log-sum-exp, f32 `[batch, heads, queries]`, which has no gradient.

    Gradients: the logits, `table` (`[buckets, heads]` of a T5 without a table of its own), `numbers` (of a sum of
    terms) and `sinks`.
    """
    places = query_positions, key_positions, query_lengths, key_lengths, cu_seqlens_q, cu_seqlens_k
    rest = *places, first_query, first_key, _text(spec), _text(bias)
    out, lse = _softmax(logits, table, list(numbers), mask, sinks, scales, gates, *rest)
    return (out, lse) if with_lse else out


@torch.library.custom_op("posenc::merge", mutates_args=())
def _merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    out, lse = a.new_empty(a.shape), a_lse.new_empty(a_lse.shape)
    if out.numel():
        attend.merge_states(_state(a, a_lse), _state(b, b_lse), attend.State(out, lse), layout=layout)
    return out, lse


def _state(out: Tensor, lse: Tensor) -> attend.State:
    return attend.State(_ready(out.detach()), lse.detach().contiguous())


@_merge.register_fake
def _(a, a_lse, b, b_lse, layout):
    return a.new_empty(a.shape), a_lse.new_empty(a_lse.shape)


@torch.library.custom_op("posenc::merge_grad", mutates_args=())
def _merge_grad(
    a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, grad: Tensor, grad_lse: Tensor | None, layout: str
) -> list[Tensor]:
    out = [x.new_empty(x.shape) for x in (a, a_lse, b, b_lse)]
    if a.numel():
        states = _state(a, a_lse), _state(b, b_lse)
        own = attend.State(_ready(grad), None if grad_lse is None else grad_lse.contiguous())
        attend.merge_grad(*states, own, attend.State(*out[:2]), attend.State(*out[2:]), layout=layout)
    return out


@_merge_grad.register_fake
def _(a, a_lse, b, b_lse, grad, grad_lse, layout):
    return [x.new_empty(x.shape) for x in (a, a_lse, b, b_lse)]


def _keep_merge(ctx, inputs, output):
    *tensors, ctx.layout = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _merge_backward(ctx, grad, grad_lse):
    if grad is None and grad_lse is None:
        return (None,) * 5
    a = ctx.saved_tensors[0]
    return *_merge_grad(*ctx.saved_tensors, torch.zeros_like(a) if grad is None else grad, grad_lse, ctx.layout), None


_merge.register_autograd(_merge_backward, setup_context=_keep_merge)


def merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor, *, layout: str = "bthd") -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each, `[batch, tokens, heads, dim]` with log-sum-exps f32
    `[batch, heads, tokens]` (-inf: no keys), and its log-sum-exp; with gradients of all four."""
    return _merge(a, a_lse, b, b_lse, layout)


# ------------------------------------------------------------------------------------------------------------ positions


@torch.library.custom_op("posenc::fixed", mutates_args=())
def _fixed(positions: Tensor, bits: int) -> Tensor:
    from .rotate import fixed as of_reals

    return of_reals(positions.contiguous(), bits)


@_fixed.register_fake
def _(positions, bits):
    return positions.new_empty(positions.shape, dtype=torch.int64)


def fixed(positions: Tensor, bits: int) -> Tensor:
    """Real positions as int64 units of `2^-bits`, for ropes with `fraction_bits`; without a gradient."""
    return _fixed(positions.detach(), bits)


# --------------------------------------------------------------------------------------------------------- cosine, sine


@torch.library.custom_op("posenc::cos_sin", mutates_args=())
def _cos_sin(positions: Tensor, spec: str) -> tuple[Tensor, Tensor]:
    rope = spec_of(spec)
    first, last, step = rope.channels()
    positions = positions.contiguous()
    batch, tokens = positions.shape[-2:]
    # A pair (1, 0) becomes its cosine and its sine.
    x = torch.zeros((batch, tokens, 1, last), dtype=torch.float32, device=positions.device)
    cos, sin = (slice(first + at, last, 2) for at in (0, 1)) if step == 1 else _halves(first, last)
    x[..., cos] = 1.0
    rope.rotate_(x, positions=positions)
    return x[:, :, 0, cos].clone(), x[:, :, 0, sin].clone()


def _halves(first: int, last: int) -> tuple[slice, slice]:
    middle = (first + last) // 2
    return slice(first, middle), slice(middle, last)


@_cos_sin.register_fake
def _(positions, spec):
    first, last, _ = spec_of(spec).channels()
    shape = *positions.shape[-2:], (last - first) // 2
    return tuple(positions.new_empty(shape, dtype=torch.float32) for _ in range(2))


def cos_sin(positions: Tensor, *, spec: "Spec | str") -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair at integer positions, `[batch, tokens]` or `[axes, batch, tokens]`: f32 `[batch,
    tokens, rotary / 2]`, exact at every position; the attention factor is in both."""
    return _cos_sin(positions, _text(spec))


@torch.library.custom_op("posenc::rope_by_table", mutates_args=())
def _rope_by_table(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
) -> Tensor:
    arguments = {
        **_where(positions, starts),
        "inverse": inverse,
        "layout": layout,
        "table": CosSin(cos.contiguous(), sin.contiguous()),
    }
    arguments["cu_seqlens"] = None if cu_seqlens is None else cu_seqlens.contiguous()
    with torch.no_grad():
        return spec_of(spec).rotate(_ready(x), **arguments)


@_rope_by_table.register_fake
def _(x, cos, sin, positions, starts, cu_seqlens, spec, inverse, layout):
    return x.new_empty(x.shape)


@torch.library.custom_op("posenc::rope_by_table_", mutates_args={"x"})
def _rope_by_table_in_place(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: str,
    inverse: bool,
    layout: str,
) -> None:
    arguments = {
        **_where(positions, starts),
        "inverse": inverse,
        "layout": layout,
        "table": CosSin(cos.contiguous(), sin.contiguous()),
    }
    arguments["cu_seqlens"] = None if cu_seqlens is None else cu_seqlens.contiguous()
    with torch.no_grad():
        spec_of(spec).rotate_(x, **arguments)


def _keep_table(ctx, inputs, output):
    _, *tensors, spec, inverse, layout = inputs
    ctx.rest = spec, not inverse, layout
    ctx.save_for_backward(*tensors)


def _rope_by_table_backward(ctx, grad):
    _refuse(ctx, {1: "cosines", 2: "sines"}, "rope_by_table")
    spec, *rest = ctx.rest
    return _rope_by_table(grad, *ctx.saved_tensors, _transposed(spec), *rest), *[None] * 8


_rope_by_table.register_autograd(_rope_by_table_backward, setup_context=_keep_table)


def rope_by_table(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    pairing: str = "half",
    positions: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    layout: str = "bthd",
    repaired: bool = False,
    in_place: bool = False,
) -> Tensor:
    """Rotation by cosines and sines of the caller, `[rows, rotary / 2]` by position, of f32 or of the type of `x`.
    The first channels are rotated; with `repaired` their pairs are written where the other pairing has them. The
    tables have no gradient."""
    rest = positions, starts, cu_seqlens, _table_spec(2 * cos.shape[-1], pairing, repaired), inverse, layout
    if in_place:
        _alone(x=x)
        _rope_by_table_in_place(x, cos, sin, *rest)
        return x
    return _rope_by_table(x, cos, sin, *rest)


def _table_spec(rotary: int, pairing: str, repaired: bool) -> str:
    """The text of such a `posenc.Rope`, which a compiler can follow."""
    spec = _TABLE_SPEC.replace('"rotary": 2', f'"rotary": {rotary}').replace('"half"', f'"{pairing}"')
    return spec.replace('"repaired": false', '"repaired": true') if repaired else spec


_TABLE_SPEC = Rope(2).text


# -------------------------------------------------------------------------------------------------------- FlexAttention


def score_mod(
    spec: "Spec | str", queries: int, keys: int, *, table: Tensor | None = None, device: Any = "cpu"
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A bias as `score_mod` of `torch.nn.attention.flex_attention`, with the numbers of this crate. The last of
    `queries` is at the position of the last of `keys`.

    `table` trains a T5 without a table of its own, `[buckets, heads]`, or holds the numbers of a sum of one term,
    `[entries, heads]`; its gradient is FlexAttention's. FIRE, and terms by queries or keys, depend on more than
    FlexAttention gives: write them with `bias`.
    """
    own = spec_of(_text(spec))
    behind = keys - queries
    if isinstance(own, (_bias.Alibi, _bias.Slopes)) and not own.key_only:
        slopes = own.plan()
        left, right = (torch.tensor(slopes.numbers(which), device=device).clone() for which in (0, 1))
        if left.numel() != own.heads:
            raise Error("slopes of each sequence are no score_mod")

        def of_slopes(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            distance = k - q - behind
            future = torch.where(distance > 0, -right[h] * distance, 0.0)
            return score + torch.where(distance < 0, left[h] * distance, future)

        return of_slopes
    entries, numbers = _indices(own, queries, keys, table, device)
    # Behind the table a row of zeros, for pairs to which nothing is added.
    rows = torch.cat((numbers, numbers.new_zeros(1, numbers.shape[1])))

    def of_table(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + rows[entries[q, k], h].to(score.dtype)

    return of_table


def _indices(own: Any, queries: int, keys: int, table: Tensor | None, device: Any) -> tuple[Tensor, Tensor]:
    """The entry of each query and key, and the numbers of the entries, `[entries, heads]`."""
    import numpy

    if isinstance(own, _bias.T5):
        distance = numpy.arange(keys) - (numpy.arange(queries)[:, None] + keys - queries)
        entries = own.bucket(distance.reshape(-1)).reshape(queries, keys)
        numbers = torch.from_numpy(own.table) if table is None and own.table is not None else table
    elif isinstance(own, _bias.Terms) and len(own.terms) == 1 and own.terms[0].of("table").key == own.terms[0].key:
        (term,) = own.terms
        count = term.entries
        if not count:
            raise Error("a term without a table is no score_mod: write it with posenc.torch.bias")
        alone = _bias.Terms(term.scaled(1.0), heads=1)
        at = numpy.arange(1, count + 1, dtype=numpy.float32)[:, None]
        # nothing is added where not even a one is
        entries = alone.matrix(queries, keys, terms=[_bias.TermInputs(at)])[0].astype(numpy.int64) - 1
        entries[entries < 0] = count
        numbers = None if table is None else table * term.factor
    elif isinstance(own, (_bias.Row, _bias.Kerple, _bias.Sandwich)) and not getattr(own, "key_only", False):
        matrix = own.matrix(queries, keys)
        distance = numpy.arange(keys) - (numpy.arange(queries)[:, None] + keys - queries)
        entries = distance + queries - 1 + max(keys - queries, 0)
        numbers = torch.zeros(int(entries.max()) + 1, own.heads)
        numbers[torch.from_numpy(entries)] = torch.from_numpy(matrix).permute(1, 2, 0)
    else:
        raise Error(f"{type(own).__name__} is no score_mod: write it with posenc.torch.bias")
    if numbers is None:
        raise Error(f"{type(own).__name__} needs a table")
    return torch.from_numpy(numpy.ascontiguousarray(entries)).to(device), numbers.to(device)


# ------------------------------------------------------------------------------------------------------------- prologue


_CACHED = "cache_k", "cache_v", "q_codes", "k_scales_out", "v_scales_out", "q_scales_out"


@torch.library.custom_op("posenc::prologue", mutates_args=set(_CACHED))
def _prologue(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    weights: Sequence[Tensor | None],
    positions: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    cache_k: Tensor | None,
    cache_v: Tensor | None,
    q_codes: Tensor | None,
    k_scales_out: Tensor | None,
    v_scales_out: Tensor | None,
    q_scales_out: Tensor | None,
    scales: Sequence[Tensor | None],
    codes: str,
    slots: Tensor | None,
    pages: Tensor | None,
    rows: Tensor | None,
    cache_starts: Tensor | None,
    spec: str,
    keep: bool,
    layout: str,
    cache_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:
    whole = lambda x: None if x is None else x.contiguous()
    own = list(map(whole, weights))
    given = []
    for at, x in enumerate((q, k, v)):
        to = "new" if keep or (at == 0 and q_codes is None) else "cache"
        given.append(None if x is None else Projected(_ready(x), out=to, weight=own[2 * at], bias=own[2 * at + 1]))
    stores: list[Any] = []
    written = (cache_k, k_scales_out), (cache_v, v_scales_out), (q_codes, q_scales_out)
    for (x, scales_out), read, code in zip(written, map(whole, scales), codes.split(","), strict=True):
        stores.append(x if code == "same" or x is None else Codes(x, code or None, scales=read, scales_out=scales_out))
    cache = None
    if cache_k is not None:
        integers = {"slots": slots, "pages": pages, "rows": rows, "starts": cache_starts}
        cache = Cache(*stores[:2], layout=cache_layout, **{name: whole(x) for name, x in integers.items()})
    arguments = {**_where(positions, starts), "cu_seqlens": whole(cu_seqlens)}
    with torch.no_grad():
        out = spec_of(spec).apply(*given, **arguments, cache=cache, q_codes=stores[2], layout=layout)
    # A list could not be told from what is mutated: what is not there is empty.
    q_out, k_out, v_out = (q.new_empty(0) if x is None else x for x in out)
    return q_out, k_out, v_out


@_prologue.register_fake
def _(q, k, v, weights, positions, starts, cu_seqlens, cache_k, cache_v, q_codes, *rest):
    keep = rest[-3]
    there = keep or q_codes is None, keep and k is not None, keep and v is not None
    return tuple(
        x.new_empty(x.shape) if is_there else q.new_empty(0) for x, is_there in zip((q, k, v), there, strict=True)
    )


def prologue(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    spec: "Spec | str",
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_weight: Tensor | None = None,
    v_bias: Tensor | None = None,
    positions: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cache: "tuple[Tensor | Codes, Tensor | Codes | None] | None" = None,
    slots: Tensor | None = None,
    pages: Tensor | None = None,
    rows: Tensor | None = None,
    cache_starts: Tensor | None = None,
    q_codes: Codes | None = None,
    keep: bool = True,
    layout: str = "bthd",
    cache_layout: str = "bthd",
) -> Any:
    """Bias, norm, rotation and factor of queries, keys and values in one kernel, which writes keys and values into
    `cache` (of `posenc.Cache`, whose rows `slots`, `pages`, `rows` and `cache_starts` give), as elements or as
    `posenc.Codes`. Gives `q`, and with `keep` also `k` and `v` where they are; without `keep` but with `q_codes`
    none. For inference: nothing has a gradient."""
    tensors = {"q": q, "k": k, "v": v, "q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight}
    tensors |= {"k_bias": k_bias, "v_weight": v_weight, "v_bias": v_bias}
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise Error(f"{name} requires grad, and the prologue has no gradient: use torch.no_grad()")
    weights = [q_weight, q_bias, k_weight, k_bias, v_weight, v_bias]
    written: list[Tensor | None] = []
    scales: list[Tensor | None] = []
    scales_out: list[Tensor | None] = []
    codes: list[str] = []
    for place in (*((None, None) if cache is None else cache), q_codes):
        own = place if isinstance(place, Codes) else Codes(place, "same")
        written.append(own.x)
        scales.append(own.scales)
        scales_out.append(own.scales_out)
        codes.append(own.code or "")
    where = (
        positions,
        starts,
        cu_seqlens,
        *written,
        *scales_out,
        scales,
        ",".join(codes),
        slots,
        pages,
        rows,
        cache_starts,
    )
    out = _prologue(q, k, v, weights, *where, _text(spec), keep, layout, cache_layout)
    there = [out[0]] if keep or q_codes is None else []
    there += [own for own, x in zip(out[1:], (k, v), strict=True) if keep and x is not None]
    return None if not there else there[0] if len(there) == 1 else tuple(there)
