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
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_pos_emb",
    "apply_rotary_transformers",
    "liger_rotary_pos_emb",
]


# flash-attn: flash_attn.layers.rotary, tables [seqlen, rotary / 2]


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
        groups = (qkv.shape[2] - num_heads_q) // 2
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


# transformers, Liger, kernels-community/rotary: tables [batch, seqlen, dim], each half twice


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """transformers': `q` and `k` are `[batch, heads, seqlen, dim]`, or with `unsqueeze_dim=2` `[batch, seqlen,
    heads, dim]`; `cos` and `sin` `[batch, seqlen, rotary]` with both halves alike. Channels from `rotary` on stay."""
    layouts = {1: "bhtd", 2: "bthd"}
    if unsqueeze_dim not in layouts:
        raise Error(f"unsqueeze_dim is {unsqueeze_dim}, it may be 1 or 2")
    layout = layouts[unsqueeze_dim]
    cos, sin = (x[None] if x.dim() == 2 else x for x in (cos, sin))
    sequences, tokens, rotary = cos.shape
    batch = q.shape[0]
    if sequences not in (1, batch) or sin.shape != cos.shape:
        raise Error(
            f"cos has the shape {list(cos.shape)}, sin {list(sin.shape)}: both must be [1 or {batch}, seqlen, rotary]"
        )
    rows = (x.contiguous().view(sequences * tokens, rotary)[:, : rotary // 2] for x in (cos, sin))
    cos, sin = rows
    # A row for each token; sequences that share a table read its rows again.
    positions = torch.arange(sequences * tokens, device=q.device).view(sequences, tokens)
    turned = [rope_by_table(x, cos, sin, positions=positions, layout=layout) for x in (q, k)]
    return turned[0], turned[1]


def liger_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Liger's: as transformers', of which `position_ids` and `unsqueeze_dim` are not read, as there."""
    return apply_rotary_pos_emb(q, k, cos, sin)


def apply_rotary_transformers(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """kernels-community/rotary's layer: as transformers', with a gradient."""
    return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)


def apply_rotary(
    x1: Tensor, x2: Tensor, cos: Tensor, sin: Tensor, out1: Tensor, out2: Tensor, conj: bool = False
) -> None:
    """kernels-community/rotary's: halves `x1` and `x2` `[batch, seqlen, heads, rotary / 2]` into `out1` and `out2`,
    by `cos` and `sin` `[seqlen, 1, rotary / 2]`. Halves that are no halves of one tensor are put together first."""
    tables = [x.reshape(-1, x.shape[-1]).contiguous() for x in (cos, sin)]
    out = rope_by_table(torch.cat((x1, x2), -1), *tables, inverse=conj)
    for half, place in zip(out.chunk(2, -1), (out1, out2), strict=True):
        place.copy_(half)
