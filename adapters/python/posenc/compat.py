"""Rotary embeddings under other libraries' names and signatures, by the caller's cosines and sines, in one kernel.

Angles are as exact as these tables: `posenc.torch.rope` and `posenc.patch` compute them from positions. Every
function has autograd but those in place; tables have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import Error
from .torch import rope_by_table

__all__ = [
    "apply_rotary",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_interleave",
    "apply_rotary_pos_emb_vision",
    "apply_rotary_transformers",
    "liger_rotary_pos_emb",
    "liger_rotary_pos_emb_gpt_oss",
    "liger_rotary_pos_emb_vision",
]


# flash-attn 2.8: flash_attn.layers.rotary, tables [seqlen, rotary / 2]


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """flash-attn's: `x` is `[batch, seqlen, heads, dim]`, or with `cu_seqlens` `[tokens, heads, dim]`. `max_seqlen`
    is not needed."""
    where: dict[str, Any] = {"cu_seqlens": cu_seqlens}
    if isinstance(seqlen_offsets, Tensor):
        where["starts"] = seqlen_offsets
    elif seqlen_offsets:
        sequences = 1 if cu_seqlens is None else cu_seqlens.numel() - 1
        where["starts"] = torch.full((sequences,), seqlen_offsets, dtype=torch.int32, device=x.device)
    pairing = "interleaved" if interleaved else "half"
    whole = x[None] if cu_seqlens is not None and x.dim() == 3 else x
    out = rope_by_table(whole, cos, sin, pairing=pairing, in_place=inplace, **where)
    return x if inplace else out.view(x.shape)


apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """flash-attn's, in place: `qkv` is `[batch, seqlen, 3, heads, dim]`, or with `num_heads_q` `[batch, seqlen,
    heads, dim]` of queries, keys and values."""
    if qkv.dim() == 5:
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    elif num_heads_q is None:
        raise Error(
            f"qkv has the shape {list(qkv.shape)}, without num_heads_q it must be [batch, seqlen, 3, heads, dim]"
        )
    else:
        groups, odd = divmod(qkv.shape[2] - num_heads_q, 2)
        if groups < 0 or odd:
            raise Error(
                f"qkv has {qkv.shape[2]} heads, {num_heads_q} of queries: the rest does not halve into keys and values"
            )
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + groups]
    apply_rotary_emb(q, cos, sin, interleaved, True, seqlen_offsets)
    own_cos, own_sin = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    apply_rotary_emb(k, own_cos, own_sin, interleaved, True, seqlen_offsets)
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor:
    """flash-attn's, in place: `kv` is `[batch, seqlen, 2, heads, dim]`, whose keys are rotated."""
    apply_rotary_emb(kv[:, :, 0], cos, sin, interleaved, True, seqlen_offsets)
    return kv


# transformers 5, Liger 0.8, kernels-community/rotary: tables [batch, seqlen, dim], halves alike, of which one is read


def _by_rows(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str,
    pairing: str = "half",
    repaired: bool = False,
    inverse: bool = False,
) -> Tensor:
    """Each token by a row of its own, of tables `[1 or batch, seqlen, rotary / 2]`."""
    sequences, tokens, half = cos.shape
    cos, sin = (own.reshape(sequences * tokens, half).contiguous() for own in (cos, sin))
    # A row for each token; sequences that share a table read its rows again.
    positions = torch.arange(sequences * tokens, device=x.device).view(sequences, tokens)
    kind: dict[str, Any] = {"pairing": pairing, "repaired": repaired, "layout": layout, "inverse": inverse}
    return rope_by_table(x, cos, sin, positions=positions, **kind)


def _layout(unsqueeze_dim: int) -> str:
    layouts = {1: "bhtd", 2: "bthd"}
    if unsqueeze_dim not in layouts:
        raise Error(f"unsqueeze_dim is {unsqueeze_dim}, it may be 1 or 2")
    return layouts[unsqueeze_dim]


def _rows(q: Tensor, cos: Tensor, sin: Tensor, rotary: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `rotary / 2` channels of tables, by default of both halves alike, with a batch before them."""
    cos, sin = (x[None] if x.dim() == 2 else x for x in (cos, sin))
    batch = q.shape[0]
    if cos.dim() != 3 or cos.shape[0] not in (1, batch) or sin.shape != cos.shape:
        raise Error(
            f"cos has the shape {list(cos.shape)}, sin {list(sin.shape)}: both must be [1 or {batch}, seqlen, rotary]"
        )
    half = (cos.shape[-1] if rotary is None else rotary) // 2
    if cos.shape[-1] < half:
        raise Error(f"cos and sin have {cos.shape[-1]} channels, {2 * half} that are rotated need {half}")
    return cos[..., :half], sin[..., :half]


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """transformers': `q` and `k` are `[batch, heads, seqlen, dim]`, or with `unsqueeze_dim=2` `[batch, seqlen,
    heads, dim]`; `cos` and `sin` `[batch, seqlen, rotary]` with both halves alike. Channels from `rotary` on stay."""
    layout, rows = _layout(unsqueeze_dim), _rows(q, cos, sin)
    return _by_rows(q, *rows, layout), _by_rows(k, *rows, layout)


def apply_rotary_pos_emb_interleave(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """transformers' of DeepSeek V3: pairs `(2 i, 2 i + 1)` are read, and written `(i, i + dim / 2)`. `position_ids`
    are not read, as there."""
    layout, rows = _layout(unsqueeze_dim), _rows(q, cos, sin)
    q, k = (_by_rows(x, *rows, layout, "interleaved", True) for x in (q, k))
    return q, k


def apply_rotary_pos_emb_vision(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' of Qwen2-VL's images: `[seqlen, heads, dim]` by tables `[seqlen, dim]`, in f32, rounded once."""
    cos, sin = (x.to(torch.float32) for x in _rows(q[None], cos, sin))
    q, k = (_by_rows(x[None], cos, sin, "bthd")[0] for x in (q, k))
    return q, k


def liger_rotary_pos_emb(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Liger's: `q` and `k` are `[batch, heads, seqlen, dim]`, `cos` and `sin` `[1 or batch, seqlen, rotary]`, or of
    any width from `rotary_dim / 2` on; `unsqueeze_dim` is where tables of four dimensions have one of 1.
    `position_ids` are not read, as there."""
    if cos.dim() == 4:
        at = unsqueeze_dim if cos.shape[unsqueeze_dim] == 1 else 1
        cos, sin = cos.squeeze(at), sin.squeeze(at)
    rows = _rows(q, cos, sin, rotary_dim)
    return _by_rows(q, *rows, "bhtd"), _by_rows(k, *rows, "bhtd")


def liger_rotary_pos_emb_gpt_oss(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Liger's of GPT-OSS, whose tables are `[batch, seqlen, dim / 2]`."""
    return liger_rotary_pos_emb(q, k, cos, sin, rotary_dim=q.shape[-1])


liger_rotary_pos_emb_vision = apply_rotary_pos_emb_vision


def apply_rotary_transformers(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """kernels-community/rotary's layer, with a gradient: as transformers', but all channels of a head are rotated, by
    the first `dim / 2` of `cos` and `sin`."""
    layout, rows = _layout(unsqueeze_dim), _rows(q, cos, sin, q.shape[-1])
    return _by_rows(q, *rows, layout), _by_rows(k, *rows, layout)


def apply_rotary(
    x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor, out1: Tensor, out2: Tensor, conj: bool = False
) -> None:
    """kernels-community/rotary's: halves `x1` and `x2` into `out1` and `out2`, which may be the same.

    Halves are `[batch, seqlen, heads, rotary / 2]` by `cos` and `sin` that broadcast with a 1 for the heads, such as
    `[seqlen, 1, rotary / 2]`, or `[batch, heads, seqlen, rotary / 2]` by `[batch, 1, seqlen, rotary / 2]`; a batch
    may be missing. Halves are put together first."""
    lead = x1.dim() - cos.dim()
    shape = (1,) * lead + tuple(cos.shape)
    fits = lead >= 0 and x1.dim() in (3, 4) and all(own in (1, n) for own, n in zip(shape, x1.shape, strict=True))
    if not fits or shape[-1] != x1.shape[-1] or sin.shape != cos.shape or 1 not in shape[-3:-1]:
        raise Error(
            f"cos has the shape {list(cos.shape)}, sin {list(sin.shape)} and the halves {list(x1.shape)}: both must "
            f"broadcast to the halves, with a 1 for the heads"
        )
    layout, heads = ("bthd", -2) if shape[-2] == 1 else ("bhtd", -3)
    x = torch.cat((x1, x2), -1)
    # the tokens' dimension may be broadcast, too
    full = list(shape)
    tokens = -5 - heads
    full[tokens] = x1.shape[tokens]
    cos, sin = (own.reshape(shape).expand(full).squeeze(heads) for own in (cos, sin))
    if x.dim() == 3:
        x, cos, sin = x[None], cos[None], sin[None]
    out = _by_rows(x, cos, sin, layout, inverse=conj).view(*x1.shape[:-1], 2 * x1.shape[-1])
    for half, place in zip(out.chunk(2, -1), (out1, out2), strict=True):
        place.copy_(half)
