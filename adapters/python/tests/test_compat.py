"""`posenc.compat` against the formulas of the libraries whose signatures these are."""

import inspect
import os

import pytest

if os.environ.get("POSENC_TEST_ALL") is None:
    pytest.importorskip("torch", reason="torch is not installed")

import posenc
import torch
from posenc import compat

# opcheck looks at gradients of tensors that have none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def values(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tables(rows, rotary, dtype=torch.float32):
    angle = torch.arange(rows)[:, None] * 10_000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def turned(x, cos, sin, interleaved=False):
    """`[..., heads, dim]` by `[..., 1, rotary / 2]`, in the operations of flash-attn's reference."""
    rotary = 2 * cos.shape[-1]
    own, rest = x[..., :rotary], x[..., rotary:]
    if interleaved:
        a, b = own[..., ::2], own[..., 1::2]
        own = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = own.chunk(2, -1)
        own = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((own, rest), -1)


def close(a, b, bound=1e-6):
    assert a.shape == b.shape and (a - b).abs().max() < bound


@pytest.mark.parametrize("interleaved", [False, True])
def test_flash_attn(interleaved):
    cos, sin = tables(32, 8)
    x = values(2, 5, 3, 12)
    want = turned(x, cos[:5, None], sin[:5, None], interleaved)
    close(compat.apply_rotary_emb(x, cos, sin, interleaved), want)
    shifted = turned(x, cos[7:12, None], sin[7:12, None], interleaved)
    close(compat.apply_rotary_emb(x[:1], cos, sin, interleaved, seqlen_offsets=7), shifted[:1])
    offsets = torch.tensor([0, 7], dtype=torch.int32)
    both = torch.stack((want[0], shifted[1]))
    close(compat.apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets), both)
    packed, cu_seqlens = x.reshape(10, 3, 12), torch.tensor([0, 5, 10], dtype=torch.int32)
    got = compat.apply_rotary_emb(packed, cos, sin, interleaved, False, offsets, cu_seqlens, 5)
    close(got.view(x.shape), both)
    own = x.clone()
    assert compat.apply_rotary_emb(own, cos, sin, interleaved, inplace=True) is own
    close(own, want)


def test_flash_attn_packed_queries_keys_and_values():
    cos, sin = tables(32, 8)
    qkv = values(2, 5, 3, 4, 12)
    want = qkv.clone()
    want[:, :, :2] = turned(qkv[:, :, :2], cos[:5, None, None], sin[:5, None, None])
    close(compat.apply_rotary_emb_qkv_(qkv.clone(), cos, sin), want)
    close(compat.apply_rotary_emb_qkv_(qkv.clone(), cos, sin, cos * 1, sin * 1), want)
    grouped = values(2, 5, 8, 12)
    want = grouped.clone()
    want[:, :, :6] = turned(grouped[:, :, :6], cos[:5, None], sin[:5, None])
    close(compat.apply_rotary_emb_qkv_(grouped.clone(), cos, sin, num_heads_q=4), want)
    kv = values(2, 5, 2, 4, 12)
    want = kv.clone()
    want[:, :, 0] = turned(kv[:, :, 0], cos[:5, None], sin[:5, None])
    close(compat.apply_rotary_emb_kv_(kv.clone(), cos, sin), want)
    with pytest.raises(posenc.Error, match="without num_heads_q it must be"):
        compat.apply_rotary_emb_qkv_(grouped, cos, sin)
    with pytest.raises(posenc.Error, match="qkv has 8 heads, 3 of queries"):
        compat.apply_rotary_emb_qkv_(grouped, cos, sin, num_heads_q=3)


#: flash-attn's of 2.8.3 and kernels-community/rotary's, which have no wheels for the CPU
ROTARY = "x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None"
QKV = "qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, num_heads_q=None"
PUBLISHED = {
    "apply_rotary_emb": ROTARY,
    "apply_rotary_emb_func": ROTARY,
    "apply_rotary_emb_qkv_": QKV,
    "apply_rotary_emb_kv_": "kv, cos, sin, interleaved=False, seqlen_offsets=0",
    "apply_rotary_transformers": "q, k, cos, sin, unsqueeze_dim=1",
    "apply_rotary": "x1, x2, cos, sin, out1, out2, conj=False",
}


def signature(function):
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    return ", ".join(p.name if p.default is empty else f"{p.name}={p.default}" for p in parameters)


def test_signatures_are_those_of_the_libraries():
    own = {name: signature(getattr(compat, name)) for name in compat.__all__}
    want = dict(PUBLISHED)
    models = pytest.importorskip("transformers.models", reason="transformers is not installed")
    want["apply_rotary_pos_emb"] = signature(models.llama.modeling_llama.apply_rotary_pos_emb)
    want["apply_rotary_pos_emb_interleave"] = signature(
        models.deepseek_v3.modeling_deepseek_v3.apply_rotary_pos_emb_interleave
    )
    want["apply_rotary_pos_emb_vision"] = signature(models.qwen2_vl.modeling_qwen2_vl.apply_rotary_pos_emb_vision)
    if os.environ.get("POSENC_TEST_ALL") is None:
        pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    from liger_kernel.transformers import rope as liger

    for name in ("liger_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss", "liger_rotary_pos_emb_vision"):
        want[name] = signature(getattr(liger, name))
    assert own == want


@pytest.mark.parametrize("function", [compat.apply_rotary_pos_emb, compat.liger_rotary_pos_emb])
@pytest.mark.parametrize("sequences", [1, 2])
def test_transformers(function, sequences):
    rows = tables(5 * sequences, 8)
    cos, sin = (torch.cat((x, x), -1).view(sequences, 5, 8) for x in rows)
    q, k = values(2, 4, 5, 12), values(2, 1, 5, 12, seed=2)
    halves = [x[:, None, :, :4] for x in (cos, sin)]
    for x, got in zip((q, k), function(q, k, cos, sin), strict=True):
        close(got, turned(x, *halves))
    if function is compat.liger_rotary_pos_emb:
        for at in (1, 2):
            tall = [x.unsqueeze(at) for x in (cos, sin)]
            for x, got in zip((q, k), function(q, k, *tall, unsqueeze_dim=at), strict=True):
                close(got, turned(x, *halves))
        for x, got in zip((q, k), function(q, k, cos[..., :5], sin[..., :5], rotary_dim=8), strict=True):
            close(got, turned(x, *halves))
        with pytest.raises(posenc.Error, match="cos and sin have 8 channels, 18 that are rotated need 9"):
            function(q, k, cos, sin, rotary_dim=18)
        return
    turned_back = function(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    for x, got in zip((q, k), turned_back, strict=True):
        close(got.transpose(1, 2), turned(x, *halves))
    with pytest.raises(posenc.Error, match="both must be"):
        function(q.expand(2, 4, 5, 12), k, cos[:1].expand(3, 5, 8), sin)
    with pytest.raises(posenc.Error, match="unsqueeze_dim is 3, it may be 1 or 2"):
        function(q, k, cos, sin, unsqueeze_dim=3)


def test_the_hubs_layer_rotates_whole_heads():
    rows = tables(10, 8)
    q, k = values(2, 4, 5, 8), values(2, 1, 5, 8, seed=2)
    halves = [x.view(2, 1, 5, 4) for x in rows]
    for cos, sin in ([x.view(2, 5, 4) for x in rows], [torch.cat((x, x), -1).view(2, 5, 8) for x in rows]):
        for x, got in zip((q, k), compat.apply_rotary_transformers(q, k, cos, sin), strict=True):
            close(got, turned(x, *halves))
    with pytest.raises(posenc.Error, match="cos and sin have 3 channels, 8 that are rotated need 4"):
        compat.apply_rotary_transformers(q, k, cos[..., :3], sin[..., :3])


def test_liger_of_gpt_oss():
    rows = tables(5, 8)
    q, k = values(2, 4, 5, 8), values(2, 1, 5, 8, seed=2)
    for x, got in zip((q, k), compat.liger_rotary_pos_emb_gpt_oss(q, k, *(x[None] for x in rows)), strict=True):
        close(got, turned(x, *rows))


def test_they_are_what_transformers_computes():
    transformers = pytest.importorskip("transformers.models.llama.modeling_llama")
    rows = tables(5, 8, torch.bfloat16)
    cos, sin = (torch.cat((x, x), -1)[None] for x in rows)
    q, k = values(2, 4, 5, 8, dtype=torch.bfloat16), values(2, 1, 5, 8, seed=2, dtype=torch.bfloat16)
    for ours, theirs in zip(
        compat.apply_rotary_pos_emb(q, k, cos, sin), transformers.apply_rotary_pos_emb(q, k, cos, sin), strict=True
    ):
        # theirs rounds the products, too
        assert (ours.float() - theirs.float()).abs().max() < 2e-2


def test_they_are_what_other_models_compute():
    models = pytest.importorskip("transformers.models", reason="transformers is not installed")
    own, third = tables(10, 8), values(2, 4, 5, 8, seed=3)
    q, k = values(2, 4, 5, 8).requires_grad_(), values(2, 1, 5, 8, seed=2)
    interleave = models.deepseek_v3.modeling_deepseek_v3.apply_rotary_pos_emb_interleave
    cos, sin = (torch.cat((x, x), -1).view(2, 5, 8) for x in own)
    ours, theirs = (f(q, k, cos, sin) for f in (compat.apply_rotary_pos_emb_interleave, interleave))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    # Pairs move: the gradient moves them back.
    grads = (torch.autograd.grad((x[0] * third).sum(), q)[0] for x in (ours, theirs))
    close(*grads)
    vision = models.qwen2_vl.modeling_qwen2_vl.apply_rotary_pos_emb_vision
    cos, sin = (x.view(10, 8) for x in (cos, sin))
    for dtype in (torch.float32, torch.bfloat16):
        q, k = values(10, 4, 8, dtype=dtype), values(10, 4, 8, seed=2, dtype=dtype)
        pairs = zip(compat.apply_rotary_pos_emb_vision(q, k, cos, sin), vision(q, k, cos, sin), strict=True)
        for a, b in pairs:
            assert a.dtype == dtype and (a - b).abs().max() <= (1e-6 if dtype == torch.float32 else 2.0**-6)


def test_the_hubs_halves():
    cos, sin = tables(5, 8)
    x = values(2, 5, 3, 8)
    out1, out2 = torch.empty(2, 5, 3, 4), torch.empty(2, 5, 3, 4)
    compat.apply_rotary(*x.chunk(2, -1), cos[:, None], sin[:, None], out1, out2, False)
    close(torch.cat((out1, out2), -1), turned(x, cos[:, None], sin[:, None]))
    compat.apply_rotary(out1.clone(), out2.clone(), cos[:, None], sin[:, None], out1, out2, True)
    close(torch.cat((out1, out2), -1), x, 2e-6)
    # the shapes that broadcast, in place
    rows = tables(10, 8)
    for lead, shape in (
        ((2, 5, 3), (2, 5, 1)),  # a table for each sequence
        ((2, 3, 5), (2, 1, 5)),  # tokens behind heads
        ((2, 3, 5), (1, 1, 5)),
        ((2, 3, 5), (5,)),
        ((2, 5, 3), (2, 1, 1)),  # a row for each sequence
        ((5, 3), (5, 1)),
        ((3, 5), (1, 5)),
    ):
        x = values(*lead, 8)
        count = torch.Size(shape).numel()
        cos, sin = (own[:count].view(*shape, 4) for own in rows)
        want = turned(x, cos, sin)
        first, second = (half.clone() for half in x.chunk(2, -1))
        compat.apply_rotary(first, second, cos, sin, first, second)
        close(torch.cat((first, second), -1), want)
    with pytest.raises(posenc.Error, match="both must broadcast to the halves, with a 1 for the heads"):
        compat.apply_rotary(*values(2, 5, 3, 8).chunk(2, -1), *(x.view(2, 5, 4) for x in rows), out1, out2)


def test_gradients_and_compilation():
    cos, sin = tables(5, 8)
    x = values(2, 5, 3, 12).requires_grad_()
    weights = values(2, 5, 3, 12, seed=3)
    (own,) = torch.autograd.grad((compat.apply_rotary_emb(x, cos, sin) * weights).sum(), x)
    (want,) = torch.autograd.grad((turned(x, cos[:, None], sin[:, None]) * weights).sum(), x)
    close(own, want)
    doubled = [torch.cat((table, table), -1)[None] for table in (cos, sin)]
    rotate = lambda q: compat.apply_rotary_pos_emb(q, q, *doubled)[0]
    q = x.detach().transpose(1, 2)
    close(torch.compile(rotate, fullgraph=True)(q), rotate(q))
    arguments = x, cos, sin, None, None, None, posenc.Rope(8).text, False, "bthd"
    torch.library.opcheck(torch.ops.posenc.rope_by_table.default, arguments)
    torch.library.opcheck(torch.ops.posenc.rope_by_table_.default, (values(2, 5, 3, 12), *arguments[1:]))
    torch.library.opcheck(torch.ops.posenc.cos_sin.default, (torch.arange(10).view(2, 5), posenc.Rope(8).text))
    out = compat.apply_rotary_emb(x, cos.requires_grad_(), sin)
    with pytest.raises(posenc.Error, match="rope_by_table has no gradient of cosines"):
        out.sum().backward()
    with pytest.raises(posenc.Error, match="x requires grad and is changed in place"):
        compat.apply_rotary_emb(x, cos, sin, inplace=True)
