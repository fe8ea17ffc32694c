"""Biases that read the content, as public implementations compute them: Shaw, Transformer-XL, DeBERTa, Inkling.

Prints tests/golden/content.json. q, k, v are [batch, heads, tokens, dim] after their projections, `scores` is what goes
into the softmax; i is a query, j a key. What version 5 of transformers dropped is in content_old.py.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import x_transformers
from cases import DRAWS, Given, case, draw, fill, near, numpy, softmax, softmax_inputs, write
from transformers import (
    DebertaConfig,
    DebertaV2Config,
    FastSpeech2ConformerConfig,
    FunnelConfig,
    Gemma3nAudioConfig,
    ParakeetEncoderConfig,
    VitsConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2ConformerConfig,
    XLNetConfig,
    XLNetModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention as DebertaAttention
from transformers.models.deberta.modeling_deberta import build_relative_position as deberta_positions
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention as DebertaV2Attention
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position as deberta_v2_positions
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerAttention
from transformers.models.funnel.modeling_funnel import FunnelAttentionStructure, FunnelRelMultiheadAttention
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioAttention
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4AudioAttention,
    Gemma4AudioModel,
    Gemma4AudioRelPositionalEncoding,
    sliding_window_mask_function,
)
from transformers.models.granite_speech.configuration_granite_speech import GraniteSpeechEncoderConfig
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechConformerAttention
from transformers.models.inkling.configuration_inkling import InklingTextConfig
from transformers.models.inkling.modeling_inkling import InklingAttention, InklingRelativeLogits
from transformers.models.inkling2.configuration_inkling2 import Inkling2TextConfig
from transformers.models.inkling2.modeling_inkling2 import Inkling2FullAttention, Inkling2SlidingAttention
from transformers.models.nemotron_asr_streaming.configuration_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoderConfig,
)
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoderAttention,
)
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalAudioConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioRelativeAttentionBias
from transformers.models.speecht5.modeling_speecht5 import SpeechT5Attention, SpeechT5RelativePositionalEncoding
from transformers.models.vits.modeling_vits import VitsAttention
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerSelfAttention
from x_transformers.x_transformers import CoPE, DataDependentAlibi

HEADS, DIM = 2, 4


class Identity(torch.nn.Module):
    """Stands for a projection of the output that takes more than the output."""

    def forward(self, x, *_):
        return x


def distance(queries, keys=None):
    """i - j, the last query at the last key."""
    keys = keys or queries
    return np.arange(queries)[:, None] + keys - queries - np.arange(keys)[None]


def products(q, k):
    return np.einsum("bhid,bhjd->bhij", numpy(q), numpy(k))


def relative(q, rows):
    """q [batch, heads, i, dim] with rows [i, j, dim] or, per head, [i, j, heads, dim]."""
    rows = numpy(rows)
    return np.einsum("bhid,ijd->bhij" if rows.ndim == 3 else "bhid,ijhd->bhij", numpy(q), rows)


def given_qkv(batch, tokens, count=3):
    """Projections as [batch, tokens, heads*dim] and as [batch, heads, tokens, dim], both leaves of the graph."""
    flat = [draw(batch, tokens, HEADS * DIM).requires_grad_() for _ in range(count)]
    return flat, [x.view(batch, tokens, HEADS, DIM).transpose(1, 2) for x in flat]


def split(x):
    return numpy(x).reshape(*x.shape[:2], HEADS, DIM).transpose(0, 2, 1, 3)


def rows_gradient(weights, states, index, count):
    """Gradient of a table shared by the heads: the sum of weights[b,h,i,j] * states[b,h,i] at index[i,j]."""
    result = np.zeros((count, states.shape[-1]))
    np.add.at(result, index, np.einsum("bhij,bhid->ijd", numpy(weights), numpy(states)))
    return result


def speecht5():
    tokens, batch, reach = 9, 1, 4
    module = fill(SpeechT5Attention(HEADS * DIM, HEADS))
    encoding = fill(SpeechT5RelativePositionalEncoding(DIM, reach))
    flat, (q, k, v) = given_qkv(batch, tokens)
    module.q_proj, module.k_proj, module.v_proj = map(Given, flat)
    module.out_proj = torch.nn.Identity()
    states = torch.zeros(batch, tokens, HEADS * DIM)
    with softmax_inputs() as inputs:
        output, _, *_ = module(states, position_bias=encoding(states))
    scores = inputs[0].view(batch, HEADS, tokens, tokens)
    index = np.clip(distance(tokens), -reach, reach - 1) + reach
    table = encoding.pe_k.weight
    law = (products(q, k) + relative(q, numpy(table)[index])) / math.sqrt(DIM)
    precision = near(scores, law)
    upstream = draw(*scores.shape)
    gradients = torch.autograd.grad((upstream * scores).sum(), (table, *flat[:2]))
    near(gradients[0], rows_gradient(upstream, numpy(q) / math.sqrt(DIM), index, 2 * reach))
    near(output, (softmax(law) @ numpy(v)).transpose(0, 2, 1, 3).reshape(output.shape))
    return case(
        "speecht5",
        "speecht5",
        "transformers SpeechT5Attention, SpeechT5RelativePositionalEncoding",
        "scores = q_i.(k_j + E[clamp(i-j, -M, M-1) + M]) / sqrt(D), E [2M, D] shared by heads; gradients of "
        "sum(upstream*scores)",
        precision,
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "reach": reach},
        q=q,
        k=k,
        v=v,
        table=table,
        index=index,
        scores=scores,
        output=split(output),
        upstream=upstream,
        table_gradient=gradients[0],
        q_gradient=split(gradients[1]),
        k_gradient=split(gradients[2]),
    )


def wav2vec2_bert():
    tokens, batch = 8, 1
    config = Wav2Vec2BertConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=4,
        right_max_position_embeddings=2,
        attn_implementation="eager",
    )
    module = fill(Wav2Vec2BertSelfAttention(config))
    flat, (q, k, v) = given_qkv(batch, tokens)
    module.linear_q, module.linear_k, module.linear_v = map(Given, flat)
    module.linear_out = torch.nn.Identity()
    with softmax_inputs() as inputs:
        module(torch.zeros(batch, tokens, HEADS * DIM))
    index = np.clip(-distance(tokens), -4, 2) + 4
    table = module.distance_embedding.weight
    law = (products(q, k) + relative(q, numpy(table)[index])) / math.sqrt(DIM)
    return case(
        "wav2vec2_bert",
        "wav2vec2-bert, seamless-m4t-v2",
        "transformers Wav2Vec2BertSelfAttention, relative_key",
        "scores = q_i.(k_j + E[clamp(j-i, -L, R) + L]) / sqrt(D): key minus query; E [L+R+1, D] shared by heads; the "
        "model's L = 64, R = 8",
        near(inputs[0], law),
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "left": 4, "right": 2},
        q=q,
        k=k,
        table=table,
        index=index,
        scores=inputs[0],
    )


def vits():
    window, batch = 4, 1
    for tokens in (9, 3):
        config = VitsConfig(hidden_size=HEADS * DIM, num_attention_heads=HEADS, window_size=window)
        module = fill(VitsAttention(config))
        flat, (q, k, v) = given_qkv(batch, tokens)
        module.q_proj, module.k_proj, module.v_proj = map(Given, flat)
        module.out_proj = torch.nn.Identity()
        with softmax_inputs() as inputs:
            output, probabilities = module(torch.zeros(batch, tokens, HEADS * DIM), output_attentions=True)
        scores = inputs[0].view(batch, HEADS, tokens, tokens)
        away = -distance(tokens)
        within, index = np.abs(away) <= window, np.clip(away, -window, window) + window
        of = lambda table: numpy(table)[0][index] * within[..., None]  # noqa: B023
        law = (products(q, k) + relative(q, of(module.emb_rel_k))) / math.sqrt(DIM)
        precision = near(scores, law)
        p = softmax(law)
        law = p @ numpy(v) + np.einsum("bhij,ijd->bhid", p, of(module.emb_rel_v))
        near(split(output), law)
        upstream = draw(*output.shape)
        parameters = module.emb_rel_k, module.emb_rel_v, *flat
        gradients = torch.autograd.grad((upstream * output).sum(), parameters)
        # dEv[r] = sum p_ij dO_i; the rest follows from dP_ij = dO_i.(v_j + Ev[r]).
        u = split(upstream)
        near(gradients[1][0], rows_gradient(p * within, u, index, 2 * window + 1))
        dp = np.einsum("bhid,bhjd->bhij", u, numpy(v)) + relative(u, of(module.emb_rel_v))
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        near(gradients[0][0], rows_gradient(ds * within, numpy(q) / math.sqrt(DIM), index, 2 * window + 1))
        yield case(
            f"vits_{tokens}",
            "vits",
            "transformers VitsAttention",
            "r = j-i+W where |j-i| <= W, else both terms are 0 (not clamped): scores = q_i.(k_j + Ek[r]) / sqrt(D); "
            "output_i = sum_j p_ij (v_j + Ev[r]); tables [2W+1, D] shared by heads; gradients of "
            "sum(upstream*output): Ev'[r] = sum p_ij upstream_i, dS = p*(dP - sum p*dP) with dP_ij = upstream_i.(v_j "
            "+ Ev[r]), Ek'[r] = sum dS_ij q_i/sqrt(D)",
            precision,
            {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "window": window},
            q=q,
            k=k,
            v=v,
            table_k=module.emb_rel_k[0],
            table_v=module.emb_rel_v[0],
            scores=scores,
            output=split(output),
            upstream=u,
            table_k_gradient=gradients[0][0],
            table_v_gradient=gradients[1][0],
            q_gradient=split(gradients[2]),
            k_gradient=split(gradients[3]),
            v_gradient=split(gradients[4]),
        )


CONFORMER = (
    "R [2T-1, heads, D], row t stands for distance i-j = T-1-t: scores = ((q_i+u).k_j + (q_i+v).R[T-1-i+j]) / "
    "sqrt(D), u_bias and v_bias are u and v [heads, D]; "
)


def conformers():
    tokens, batch = 6, 2
    rows = 2 * tokens - 1

    def law(q, k, u, v, r):
        index = tokens - 1 - distance(tokens)
        q, u, v = (numpy(x) for x in (q, u, v))
        r = numpy(r).reshape(rows, HEADS, DIM)
        return (products(q + u[:, None], k) + relative(q + v[:, None], r[index])) / math.sqrt(DIM)

    config = ParakeetEncoderConfig(
        hidden_size=HEADS * DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, attn_implementation="eager"
    )
    module = fill(ParakeetEncoderAttention(config, 0))
    flat, (q, k, v) = given_qkv(batch, tokens)
    r = draw(1, rows, HEADS * DIM).requires_grad_()
    module.q_proj, module.k_proj, module.v_proj = map(Given, flat)
    module.relative_k_proj, module.o_proj = Given(r.expand(batch, -1, -1)), torch.nn.Identity()
    with softmax_inputs() as inputs:
        module(torch.zeros(batch, tokens, HEADS * DIM), None)
    scores = inputs[0]
    precision = near(scores, law(q, k, module.bias_u, module.bias_v, r))
    upstream = draw(*scores.shape)
    parameters = r, module.bias_u, module.bias_v, *flat[:2]
    gradients = torch.autograd.grad((upstream * scores).sum(), parameters)
    expected = np.zeros((rows, HEADS, DIM))
    biased = numpy(q) + numpy(module.bias_v)[:, None]
    each = np.einsum("bhij,bhid->ijhd", numpy(upstream), biased) / math.sqrt(DIM)
    np.add.at(expected, tokens - 1 - distance(tokens), each)
    near(gradients[0].reshape(rows, HEADS, DIM), expected)
    yield case(
        "parakeet",
        "parakeet, fastconformer",
        "transformers ParakeetEncoderAttention",
        CONFORMER + "gradients of sum(upstream*scores)",
        precision,
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch},
        q=q,
        k=k,
        u_bias=module.bias_u,
        v_bias=module.bias_v,
        r=r.reshape(rows, HEADS, DIM),
        scores=scores,
        upstream=upstream,
        r_gradient=gradients[0].reshape(rows, HEADS, DIM),
        u_bias_gradient=gradients[1],
        v_bias_gradient=gradients[2],
        q_gradient=split(gradients[3]),
        k_gradient=split(gradients[4]),
    )

    batch = 1
    for name, model, source in (
        ("wav2vec2_conformer", "wav2vec2-conformer", "transformers Wav2Vec2ConformerSelfAttention, relative"),
        ("wav2vec2_bert_relative", "wav2vec2-bert", "transformers Wav2Vec2BertSelfAttention, relative"),
        ("fastspeech2_conformer", "fastspeech2-conformer", "transformers FastSpeech2ConformerAttention"),
    ):
        settings = {"hidden_size": HEADS * DIM, "num_attention_heads": HEADS, "attn_implementation": "eager"}
        if name == "wav2vec2_conformer":
            config = Wav2Vec2ConformerConfig(position_embeddings_type="relative", **settings)
            module = Wav2Vec2ConformerSelfAttention(config)
        elif name == "wav2vec2_bert_relative":
            module = Wav2Vec2BertSelfAttention(Wav2Vec2BertConfig(position_embeddings_type="relative", **settings))
        else:
            config = FastSpeech2ConformerConfig(hidden_size=HEADS * DIM)
            settings = {"num_attention_heads": HEADS, "attention_dropout_rate": 0.0}
            module = FastSpeech2ConformerAttention(config, settings)
        module = fill(module)
        flat, (q, k, v) = given_qkv(batch, tokens)
        r = draw(1, rows, HEADS * DIM)
        module.linear_q, module.linear_k, module.linear_v = map(Given, flat)
        module.linear_pos, module.linear_out = Given(r), torch.nn.Identity()
        states = torch.zeros(batch, tokens, HEADS * DIM)
        with softmax_inputs() as inputs:
            if name == "fastspeech2_conformer":
                module(states, pos_emb=r)
            else:
                module(states, relative_position_embeddings=r)
        yield case(
            name,
            model,
            source,
            CONFORMER,
            near(inputs[0], law(q, k, module.pos_bias_u, module.pos_bias_v, r)),
            {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch},
            q=q,
            k=k,
            u_bias=module.pos_bias_u,
            v_bias=module.pos_bias_v,
            r=r.reshape(rows, HEADS, DIM),
            scores=inputs[0],
        )


def streaming():
    """A chunk of queries behind cached frames."""
    queries, keys, batch = 3, 8, 1
    rows = 2 * keys - 1
    config = NemotronAsrStreamingEncoderConfig(
        hidden_size=HEADS * DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS
    )
    config._attn_implementation = "eager"
    module = fill(NemotronAsrStreamingEncoderAttention(config, 0))
    flat, (q, k, v) = given_qkv(batch, keys)
    new = [x[:, -queries:] for x in flat]
    cached = [x[:, :, :-queries] for x in (k, v)]

    class Cache:
        def update(self, *states, **_):
            return [torch.cat(pair, 2) for pair in zip(cached, states[:2], strict=True)]

    r = draw(1, rows, HEADS * DIM)
    module.q_proj, module.k_proj, module.v_proj = map(Given, new)
    module.relative_k_proj, module.o_proj = Given(r), torch.nn.Identity()
    with softmax_inputs() as inputs:
        module(torch.zeros(batch, queries, HEADS * DIM), None, cache=Cache())
    q, r = numpy(q)[:, :, -queries:], r.reshape(rows, HEADS, DIM)
    u, v = numpy(module.bias_u)[:, None], numpy(module.bias_v)[:, None]
    law = (products(q + u, k) + relative(q + v, numpy(r)[keys - 1 - distance(queries, keys)])) / math.sqrt(DIM)
    return case(
        "nemotron_asr_streaming",
        "nemotron asr streaming, cached fastconformer",
        "transformers NemotronAsrStreamingEncoderAttention with cached frames",
        "R [2*Lk-1, heads, D], row t stands for Lk-1-t; row of (i, j): Lq-1-i+j, that is distance i+Lk-Lq-j, i from "
        "0; scores = ((q_i+u).k_j + (q_i+v).R[row]) / sqrt(D), later keys too",
        near(inputs[0], law),
        {"heads": HEADS, "dim": DIM, "queries": queries, "keys": keys, "batch": batch},
        q=q,
        k=k,
        u_bias=module.bias_u,
        v_bias=module.bias_v,
        r=r,
        scores=inputs[0],
    )


def xlnet():
    queries, batch = 4, 2
    for name, kind, memory, clamp, both in (
        ("bi", "bi", 3, -1, False),
        ("bi_clamp", "bi", 3, 3, False),
        ("bi_data", "bi", 0, 2, True),
        ("uni", "uni", 3, -1, False),
    ):
        keys = queries + memory
        config = XLNetConfig(
            vocab_size=4,
            pad_token_id=0,
            d_model=HEADS * DIM,
            n_layer=1,
            n_head=HEADS,
            d_inner=4,
            attn_type=kind,
            clamp_len=clamp,
            bi_data=both,
            dropout=0.0,
        )
        model = XLNetModel(config)
        attention = fill(model.layer[0].rel_attn)
        embedding = model.relative_positional_encoding(queries, keys, bsz=batch).double()
        r = torch.einsum("ibh,hnd->ibnd", embedding, attention.r)
        q, k, v = draw(queries, batch, HEADS, DIM), draw(keys, batch, HEADS, DIM), draw(keys, batch, HEADS, DIM)
        segments = torch.randint(0, 2, (keys, batch), generator=DRAWS)
        apart = (segments[-queries:, None] != segments[None]).long()
        mask = None
        away = distance(queries, keys)
        if kind == "uni":
            future = torch.tensor(away < 0)
            mask = future[:, :, None, None].double().expand(-1, -1, batch, 1)
        with softmax_inputs() as inputs:
            _, p = attention.rel_attn_core(q, k, v, r, F.one_hot(apart, 2).double(), mask, output_attentions=True)
        at = lambda x: numpy(x).transpose(1, 2, 0, 3)  # noqa: E731
        row = queries + memory - away if kind == "bi" else keys - away
        assert (row == keys - away).all()
        valid = away >= 0 if kind == "uni" else away > -queries - 1
        assert r.shape[0] == (keys + queries if kind == "bi" else keys + 1)
        biased = lambda bias: at(q) + numpy(bias)[:, None]  # noqa: B023, E731
        clipped = np.where(valid, row, 0)
        law = products(biased(attention.r_w_bias), at(k))
        law += np.einsum("bhid,ijbhd->bhij", biased(attention.r_r_bias), numpy(r)[clipped])
        segment = np.einsum("bhid,shd->bhis", biased(attention.r_s_bias), numpy(attention.seg_embed))
        pick = np.broadcast_to(numpy(apart).transpose(2, 0, 1)[:, None], law.shape)
        law += np.take_along_axis(segment, pick, -1)
        law /= math.sqrt(DIM)
        precision = near(inputs[0], law, where=valid)
        near(numpy(p).transpose(2, 3, 0, 1), softmax(np.where(valid, law, -1e30)))
        # The embedding's own law.
        position = keys - np.arange(r.shape[0], dtype=np.float64)
        sign = np.ones(batch)
        if both:
            sign[batch // 2 :] = -1
        position = position[:, None] * sign
        if clamp > 0:
            position = np.clip(position, -clamp, clamp)
        angles = position[..., None] * 10000 ** -(np.arange(0, HEADS * DIM, 2) / (HEADS * DIM))
        near(embedding, np.concatenate((np.sin(angles), np.cos(angles)), -1), 1e-6)
        yield case(
            f"xlnet_{name}",
            "xlnet",
            f"transformers XLNetRelativeAttention.rel_attn_core, XLNetModel.relative_positional_encoding, {kind}",
            "row t of R (Lk+Lq rows, uni Lk+1) stands for Lk-t; with i counted from Lk-Lq the row is Lk - (i-j); "
            "scores = ((q_i+u).k_j + (q_i+v).R[Lk-(i-j)] + (q_i+w).seg[s_i != s_j]) / sqrt(D), u = r_w_bias, v = "
            "r_r_bias, w = r_s_bias; all three terms are scaled; uni has no row for j > i: masked, 0 here; distances "
            "are clamped to [-clamp, clamp] if clamp > 0 (after bi_data negates those of the batch's second half)",
            precision,
            {
                "heads": HEADS,
                "dim": DIM,
                "queries": queries,
                "keys": keys,
                "batch": batch,
                "clamp": clamp,
                "bi_data": both,
            },
            q=at(q),
            k=at(k),
            v=at(v),
            u_bias=attention.r_w_bias,
            w_bias=attention.r_s_bias,
            v_bias=attention.r_r_bias,
            segment_table=attention.seg_embed,
            segments=segments.T,
            embedding=embedding.transpose(0, 1),
            weight_r=attention.r,
            r=r.transpose(0, 1),
            valid=valid,
            scores=np.where(valid, numpy(inputs[0]), 0),
            probabilities=numpy(p).transpose(2, 3, 0, 1),
        )


def funnel():
    """The first block, without pooling: the same index as XLNet's; and the factorised form of the same scores."""
    tokens, batch = 5, 1
    settings = dict(
        d_model=HEADS * DIM, n_head=HEADS, d_head=DIM, block_sizes=[1], hidden_dropout=0.0, attention_dropout=0.0
    )
    scores = []
    flat, (q, k, v) = given_qkv(batch, tokens)
    kinds = torch.tensor([[2, 0, 0, 1, 1]])
    parameters = None
    for attention_type in ("relative_shift", "factorized"):
        config = FunnelConfig(attention_type=attention_type, separate_cls=True, **settings)
        module = fill(FunnelRelMultiheadAttention(config, 0))
        if parameters is None:
            parameters = module.state_dict()
        module.load_state_dict(parameters)
        module.q_head, module.k_head, module.v_head = map(Given, flat)
        states = torch.zeros(batch, tokens, HEADS * DIM)
        inputs_of = FunnelAttentionStructure(config).init_attention_inputs(states, token_type_ids=kinds)
        with softmax_inputs() as inputs:
            module(states, states, states, inputs_of)
        scores.append(inputs[0])
    near(*scores, 1e-6)
    away = distance(tokens)
    positions = away[..., None] * 10000 ** -(np.arange(HEADS * DIM // 2) / (HEADS * DIM // 2))
    embedding = np.concatenate((np.sin(positions), np.cos(positions)), -1)
    r = np.einsum("ijc,chd->ijhd", embedding, numpy(module.r_kernel))
    word = (np.arange(tokens) > 0).astype(float)
    word = word[:, None] * word[None]
    biased = lambda bias: numpy(q) + numpy(bias)[:, None]
    segment = np.einsum("bhid,shd->bhis", biased(module.r_s_bias), numpy(module.seg_embed))
    kind = numpy(kinds)[0]
    same = (kind[:, None] == kind[None]) | (kind[:, None] == 2) | (kind[None] == 2)
    terms = relative(biased(module.r_r_bias), r) + np.where(same, segment[..., 1:], segment[..., :1])
    law = (products(biased(module.r_w_bias), k) + word * terms) / math.sqrt(DIM)
    return case(
        "funnel",
        "funnel",
        "transformers FunnelRelMultiheadAttention, relative_shift and factorized agree",
        "scores = ((q_i+u).k_j + c_ij*((q_i+v).R(i-j) + (q_i+w).seg[same])) / sqrt(D), c_ij = 0 where i or j is the "
        "class token 0, else 1; seg row 1 is the same segment, segment 2 (class) is the same as any; R = W_r of (sin, "
        "cos) halves of i-j",
        near(scores[0], law, 1e-6),
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch},
        q=q,
        k=k,
        u_bias=module.r_w_bias,
        v_bias=module.r_r_bias,
        w_bias=module.r_s_bias,
        segment_table=module.seg_embed,
        segments=kinds,
        weight_r=module.r_kernel,
        r=r,
        scores=scores[0],
    )


def unblock(blocked, tokens, chunk, past):
    """[batch, heads, blocks, chunk, context] to [batch, heads, tokens, tokens] and which were there."""
    blocked = numpy(blocked)
    dense = np.zeros((*blocked.shape[:2], tokens, tokens))
    there = np.zeros((tokens, tokens), bool)
    for i, c in itertools.product(range(tokens), range(blocked.shape[-1])):
        j = i // chunk * chunk + c - past
        if 0 <= j < tokens:
            dense[:, :, i, j] = blocked[:, :, i // chunk, i % chunk, c]
            there[i, j] = True
    return dense, there


def gemma_audio():
    tokens, batch, cap = 10, 1, 5.0
    softplus = lambda x: np.log1p(np.exp(numpy(x)))
    near_i = distance(tokens)
    for name, chunk, left, right in (("gemma3n", 4, 5, 0), ("gemma3n_right", 4, 3, 2), ("gemma4", 4, 5, 0)):
        past = left - 1
        if name.startswith("gemma3n"):
            config = Gemma3nAudioConfig(
                hidden_size=HEADS * DIM,
                conf_num_attention_heads=HEADS,
                conf_attention_chunk_size=chunk,
                conf_attention_context_left=left,
                conf_attention_context_right=right,
                conf_attention_logit_cap=cap,
            )
            module = fill(Gemma3nAudioAttention(config))
            projection = module.relative_position_embedding.pos_proj
        else:
            config = Gemma4AudioConfig(
                hidden_size=HEADS * DIM,
                num_attention_heads=HEADS,
                attention_chunk_size=chunk,
                attention_context_left=left,
                attention_context_right=right,
                attention_logit_cap=cap,
                use_clipped_linears=False,
            )
            config._attn_implementation = "eager"
            # It casts its projections to f32.
            module = fill(Gemma4AudioAttention(config, 0)).float()
            module.post = torch.nn.Identity()
            projection = module.relative_k_proj
        flat, (q, k, v) = given_qkv(batch, tokens)
        module.q_proj, module.k_proj, module.v_proj = map(Given, flat)
        states = torch.zeros(batch, tokens, HEADS * DIM)
        with softmax_inputs() as inputs:
            if name.startswith("gemma3n"):
                output = module(states, torch.zeros(batch, tokens, dtype=torch.bool)).reshape(batch, tokens, -1)
                allowed = (near_i <= past) & (near_i >= -right)
            else:
                embedding = Gemma4AudioRelPositionalEncoding(config)(states.float())
                mask = create_bidirectional_mask(
                    config=config,
                    inputs_embeds=states,
                    attention_mask=None,
                    and_mask_function=sliding_window_mask_function((left - 1, right)),
                )
                blocked = Gemma4AudioModel._convert_4d_mask_to_blocked_5d(type("Model", (), {"config": config})(), mask)
                output, _ = module(states, embedding, blocked)
                allowed = (near_i < past) & (near_i >= 0)
        lowest = -1e8
        dense, there = unblock(inputs[0], tokens, chunk, past)
        assert (allowed == (there & (dense[0, 0] > lowest))).all()
        # R of each distance i-j = past .. -right.
        timescales = np.exp(-math.log(1e4) / (HEADS * DIM // 2 - 1) * np.arange(HEADS * DIM // 2))
        angles = np.arange(past, -right - 1, -1)[:, None] * timescales
        r = np.concatenate((np.sin(angles), np.cos(angles)), -1) @ numpy(projection.weight).T
        r = r.reshape(-1, HEADS, DIM)
        query = numpy(q) * softplus(module.per_dim_scale) / math.log(2) / math.sqrt(DIM)
        key = numpy(k)
        if name == "gemma4":
            key = key * math.log(1 + math.e) / math.log(2)
        index = np.clip(past - near_i, 0, past + right)
        raw = products(query, key) + relative(query, r[index])
        law = cap * np.tanh(raw / cap)
        precision = near(dense, law, 1e-6, where=allowed)
        p = softmax(np.where(allowed, law, -np.inf))
        near(split(output), p @ numpy(v), 1e-6)
        statement = (
            "q' = q * softplus(per_dim_scale) / (ln 2 * sqrt(D)); "
            + ("k' = k * ln(1+e)/ln 2; " if name == "gemma4" else "k' = k; ")
            + "scores = cap*tanh((q'_i.k'_j + q'_i.R[past-(i-j)])/cap), R row t for distance past-t; keys "
            + (
                "0 <= i-j < past: the mask stops one short of R's first row (R has (chunk+past+right)//2 + 1 rows and "
                "is right only where past = (chunk+past+right)//2, as here and in the models)"
                if name == "gemma4"
                else "-right <= i-j <= past"
            )
            + ", whatever the chunk; past = context_left - 1; other scores are 0 here"
        )
        yield case(
            name,
            "gemma 4 audio" if name == "gemma4" else "gemma 3n audio",
            "transformers Gemma4AudioAttention" if name == "gemma4" else "transformers Gemma3nAudioAttention",
            statement,
            precision,
            {
                "heads": HEADS,
                "dim": DIM,
                "tokens": tokens,
                "batch": batch,
                "chunk": chunk,
                "past": past,
                "right": right,
                "cap": cap,
            },
            q=q,
            k=k,
            v=v,
            per_dim_scale=module.per_dim_scale,
            weight_r=projection.weight,
            r=r,
            allowed=allowed,
            scores=np.where(allowed, dense, 0),
            output=split(output),
        )


def granite_speech():
    tokens, batch, context, reach = 10, 1, 4, 6
    config = GraniteSpeechEncoderConfig(
        hidden_dim=HEADS * DIM, num_heads=HEADS, dim_head=DIM, context_size=context, max_pos_emb=reach, dropout=0.0
    )
    module = fill(GraniteSpeechConformerAttention(config))
    module.pre_norm, module.to_out = torch.nn.Identity(), torch.nn.Identity()
    padded = 12
    q, k, v = (draw(batch, padded, HEADS * DIM) for _ in range(3))
    module.to_q, module.to_kv = Given(q), Given(torch.cat((k, v), -1))
    step = torch.arange(context)
    distances = (step[:, None] - step[None]).clamp(-context, context) + reach
    kept = []
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask, scale):
        kept.append(query @ key.transpose(-1, -2) * scale + attn_mask)
        return original(query, key, value, attn_mask=attn_mask, scale=scale)

    F.scaled_dot_product_attention = attention
    output = module(torch.zeros(batch, tokens, HEADS * DIM), distances)
    F.scaled_dot_product_attention = original
    blocked = numpy(kept[0]).reshape(batch, -1, HEADS, context, context)
    scores = np.zeros((batch, HEADS, padded, padded))
    for b in range(padded // context):
        place = slice(b * context, (b + 1) * context)
        scores[:, :, place, place] = blocked[:, b]
    scores = scores[:, :, :tokens, :tokens]
    block = np.arange(tokens) // context
    allowed = block[:, None] == block[None]
    short = lambda x: split(x)[:, :, :tokens]
    index = np.where(allowed, distance(tokens), 0) + reach
    table = module.rel_pos_emb.weight
    law = (products(short(q), short(k)) + relative(short(q), numpy(table)[index])) / math.sqrt(DIM)
    precision = near(scores, law, where=allowed)
    near(split(output), softmax(np.where(allowed, law, -np.inf)) @ short(v))
    return case(
        "granite_speech",
        "granite speech",
        "transformers GraniteSpeechConformerAttention",
        "keys of the query's own block only, block = position // context; there scores = q_i.(k_j + E[i-j+M]) / "
        "sqrt(D), E [2M+1, D] shared by heads, |i-j| < context <= M so nothing is clamped; other scores are 0 here",
        precision,
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "context": context, "reach": reach},
        q=short(q),
        k=short(k),
        v=short(v),
        table=table,
        allowed=allowed,
        scores=np.where(allowed, scores, 0),
        output=split(output),
    )


def log_bucket(r, buckets, reach):
    """By integers alone."""
    middle = buckets // 2
    n = abs(r)
    if n <= middle:
        return r
    t = 0
    # The least t with (n/middle)^(middle-1) <= ((reach-1)/middle)^t.
    while n ** (middle - 1) * middle**t > (reach - 1) ** t * middle ** (middle - 1):
        t += 1
    return (t + middle) * (1 if r > 0 else -1)


def log_buckets():
    first = -700
    for buckets, reach in ((256, 512), (32, 128), (48, 256), (8, 16), (4, 16)):
        distances = torch.arange(first, 1 - first)
        torch.set_default_dtype(torch.float32)
        result = make_log_bucket_position(distances, buckets, reach).long().tolist()
        torch.set_default_dtype(torch.float64)
        assert result == [log_bucket(r, buckets, reach) for r in distances.tolist()]
        runs = [[bucket, len(list(group))] for bucket, group in itertools.groupby(result)]
        yield case(
            f"log_buckets_{buckets}_{reach}",
            "deberta v2, v3",
            "transformers deberta_v2 make_log_bucket_position",
            "m = buckets/2, M = reach: r for |r| <= m, else sign(r)*(m + the least t with (|r|/m)^(m-1) <= "
            "((M-1)/m)^t), that is m + ceil(ln(|r|/m)/ln((M-1)/m)*(m-1)); not bounded; runs [bucket, count] over "
            "distances from `first`",
            0,
            {"buckets": buckets, "reach": reach, "first": first},
            runs=np.array(runs),
        )


def deberta():
    tokens, batch = 7, 1
    hidden = HEADS * DIM

    def expected(q, k, kr, qr, index, scale):
        kr, qr = (None if x is None else numpy(x) for x in (kr, qr))
        content = products(q, k) / scale
        c2p = 0 if kr is None else relative(q, kr[index]) / scale
        p2c = 0 if qr is None else np.einsum("bhjd,ijhd->bhij", numpy(k), qr[index]) / scale
        return content + c2p + p2c, c2p, p2c

    for kinds, reach in ((["c2p", "p2c"], 4), (["c2p", "p2c"], 16), (["c2p"], 4)):
        config = DebertaConfig(
            hidden_size=hidden,
            num_attention_heads=HEADS,
            relative_attention=True,
            max_relative_positions=reach,
            pos_att_type=kinds,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        module = fill(DebertaAttention(config), 0.25)
        qkv = draw(batch, tokens, 3 * hidden)
        module.in_proj = Given(qkv)
        q, k, _ = module.transpose_for_scores(qkv).chunk(3, -1)
        q = q + module.transpose_for_scores(module.q_bias[None, None])
        span = min(tokens, reach)
        embedding = draw(2 * reach, hidden)
        part = embedding[reach - span : reach + span]
        kr = module.pos_proj(part).view(2 * span, HEADS, DIM)
        qr = module.pos_q_proj(part).view(2 * span, HEADS, DIM) if "p2c" in kinds else None
        mask = torch.ones(batch, 1, tokens, tokens)
        positions = deberta_positions(q, k)
        with softmax_inputs() as inputs:
            module(torch.zeros(batch, tokens, hidden), mask, relative_pos=positions, rel_embeddings=embedding)
        scores = inputs[0]
        index = np.clip(distance(tokens) + span, 0, 2 * span - 1)
        scale = math.sqrt(DIM * (1 + len(kinds)))
        law, c2p, p2c = expected(q, k, kr, qr, index, scale)
        precision = near(scores, law, 1e-7)
        arrays = dict(q=q, k=k, embedding=embedding, kr=kr, c2p=c2p)
        if qr is not None:
            arrays |= dict(qr=qr, p2c=p2c)
        yield case(
            f"deberta_{'_'.join(kinds)}_reach_{reach}",
            "deberta",
            "transformers deberta DisentangledSelfAttention",
            "S = min(max(Lq,Lk), M); Kr, Qr of rows E[M-S..M+S] (pos_proj without, pos_q_proj with a constant); q "
            "holds q_bias, k none; index = clamp(i-j+S, 0, 2S-1); scores = (q_i.k_j + q_i.Kr[index] + k_j.Qr[index]) "
            "/ sqrt(D*(1+n)), n of c2p, p2c; c2p and p2c apart here are scaled",
            precision,
            {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "reach": reach, "span": span},
            **arrays,
            index=index,
            scores=scores,
        )

    tokens = 11
    for name, share, kinds, buckets, reach in (
        ("shared", True, ["p2c", "c2p"], 4, 12),
        ("own", False, ["p2c", "c2p"], 6, 16),
        ("no_buckets", True, ["p2c", "c2p"], -1, 5),
        ("p2c", False, ["p2c"], 4, 12),
    ):
        config = DebertaV2Config(
            hidden_size=hidden,
            num_attention_heads=HEADS,
            relative_attention=True,
            max_relative_positions=reach,
            position_buckets=buckets,
            share_att_key=share,
            pos_att_type=kinds,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        module = fill(DebertaV2Attention(config), 0.25)
        span = buckets if buckets > 0 else reach
        states, embedding = draw(batch, tokens, hidden), draw(2 * span, hidden).requires_grad_()
        split_rows = lambda x: x.view(2 * span, HEADS, DIM)  # noqa: B023, E731
        q, k = (p(states).view(batch, tokens, HEADS, DIM).transpose(1, 2) for p in (module.query_proj, module.key_proj))
        of_key = module.key_proj if share else getattr(module, "pos_key_proj", None)
        of_query = module.query_proj if share else module.pos_query_proj
        kr = split_rows(of_key(embedding)) if "c2p" in kinds else None
        qr = split_rows(of_query(embedding))
        positions = deberta_v2_positions(states, states, bucket_size=buckets, max_position=reach)
        mask = torch.ones(batch, 1, tokens, tokens)
        with softmax_inputs() as inputs:
            module(states, mask, relative_pos=positions, rel_embeddings=embedding)
        scores = inputs[0]
        away = distance(tokens)
        if buckets > 0:
            away = np.vectorize(lambda r: log_bucket(int(r), buckets, reach))(away)  # noqa: B023
        assert (away == numpy(positions[0])).all()
        index = np.clip(away + span, 0, 2 * span - 1)
        scale = math.sqrt(DIM * (1 + len(kinds)))
        law, c2p, p2c = expected(q, k, kr, qr, index, scale)
        precision = near(scores, law, 1e-7)
        arrays = dict(q=q, k=k, embedding=embedding, qr=qr, p2c=p2c)
        if kr is not None:
            arrays |= dict(kr=kr, c2p=c2p)
        if name == "shared":
            upstream = draw(*scores.shape)
            (gradient,) = torch.autograd.grad((upstream * scores).sum(), embedding)
            kr_gradient, qr_gradient = np.zeros((2 * span, HEADS, DIM)), np.zeros((2 * span, HEADS, DIM))
            np.add.at(kr_gradient, index, np.einsum("bhij,bhid->ijhd", numpy(upstream), numpy(q)) / scale)
            np.add.at(qr_gradient, index, np.einsum("bhij,bhjd->ijhd", numpy(upstream), numpy(k)) / scale)
            back = kr_gradient.reshape(2 * span, -1) @ numpy(of_key.weight)
            back += qr_gradient.reshape(2 * span, -1) @ numpy(of_query.weight)
            near(gradient, back, 1e-6)
            arrays |= dict(
                weight_q=of_query.weight,
                weight_k=of_key.weight,
                upstream=upstream,
                embedding_gradient=gradient,
                kr_gradient=kr_gradient,
                qr_gradient=qr_gradient,
            )
        yield case(
            f"deberta_v2_{name}",
            "deberta v2, v3",
            f"transformers deberta_v2 DisentangledSelfAttention, share_att_key={share}",
            "S = buckets, or M without buckets; r = log bucket of i-j (i-j without buckets); index = clamp(r+S, 0, "
            "2S-1); Kr, Qr of E[0..2S], with their constants (share_att_key: key_proj, query_proj); scores = (q_i.k_j "
            "+ q_i.Kr[index] + k_j.Qr[index]) / sqrt(D*(1+n)), n of c2p, p2c; c2p and p2c apart here are scaled; "
            "transformers raises for Lq != Lk (known bad: in p2c buckets and M change places and the index is Lk x Lk)",
            precision,
            {
                "heads": HEADS,
                "dim": DIM,
                "tokens": tokens,
                "batch": batch,
                "buckets": buckets,
                "reach": reach,
                "span": span,
            },
            **arrays,
            index=index,
            scores=scores,
        )


def inkling():
    tokens, batch, heads, groups, width = 9, 1, 4, 2, 3
    law_text = (
        "n = i-j: scores = tau_i*(q_i.k_j/D + (0 <= n < extent ? r_i.W[:,n] : 0)), r [batch, tokens, heads, width], W "
        "[width, extent] shared by heads, q and k after their norms, query head h reads key head "
        "h//(heads/key_heads); full layers: tau_i = 1 + alpha*ln(max(1, (i+1)/floor)) if a floor is set, else 1; "
        "sliding layers: 1, extent = their window; before the causal mask"
    )
    for name, floor in (("full", None), ("full_scaled", 3), ("sliding", 3)):
        config = InklingTextConfig(
            hidden_size=heads * DIM,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=DIM,
            swa_num_attention_heads=heads,
            swa_num_key_value_heads=groups,
            swa_head_dim=DIM,
            sliding_window_size=4,
            d_rel=width,
            rel_extent=6,
            log_scaling_n_floor=floor,
            layer_types=["hybrid_sliding" if name == "sliding" else "hybrid"],
            mlp_layer_types=["dense"],
        )
        config._attn_implementation = "eager"
        module = fill(InklingAttention(config, 0))
        extent = module.rel_extent
        assert extent == (4 if name == "sliding" else 6)
        q = draw(batch, tokens, heads * DIM)
        k, v = (draw(batch, tokens, groups * DIM) for _ in range(2))
        r = draw(batch, tokens, heads * width).requires_grad_()
        nothing = torch.nn.Identity()
        module.q_proj, module.k_proj, module.v_proj, module.r_proj = Given(q), nothing, nothing, Given(r)
        module.k_sconv, module.v_sconv, module.o_proj = Given(k), Given(v), nothing
        module.q_norm, module.k_norm = nothing, nothing
        with softmax_inputs() as inputs:
            module(torch.zeros(batch, tokens, heads * DIM), None)
        scores = inputs[0]
        heads_of = lambda x, n: numpy(x).reshape(batch, tokens, n, -1).transpose(0, 2, 1, 3)
        q, k = heads_of(q, heads), heads_of(k, groups)
        w = module.rel_logits_proj.proj
        n = distance(tokens)
        inside = (n >= 0) & (n < extent)
        bias = np.einsum("bhiw,wij->bhij", heads_of(r, heads), numpy(w)[:, np.clip(n, 0, extent - 1)]) * inside
        tau = np.ones(tokens)
        if name == "full_scaled":
            tau = 1 + 0.1 * np.log(np.maximum(1, (np.arange(tokens) + 1) / floor))
        law = tau[:, None] * (products(q, k.repeat(heads // groups, 1)) / DIM + bias)
        precision = near(scores, law, 1e-6)
        upstream = draw(*scores.shape)
        gradients = torch.autograd.grad((upstream * scores).sum(), (w, r))
        back = np.zeros((extent, width))
        each = np.einsum("bhij,bhiw->ijw", numpy(upstream) * tau[:, None] * inside, heads_of(r, heads))
        np.add.at(back, np.clip(n, 0, extent - 1), each)
        near(gradients[0].T, back, 1e-6)
        yield case(
            f"inkling_{name}",
            "inkling",
            "transformers InklingAttention",
            law_text,
            precision,
            {
                "heads": heads,
                "key_heads": groups,
                "dim": DIM,
                "tokens": tokens,
                "batch": batch,
                "width": width,
                "extent": extent,
                "floor": floor if name == "full_scaled" else None,
                "alpha": 0.1,
            },
            q=q,
            k=k,
            r=r.reshape(batch, tokens, heads, width),
            w=w,
            tau=tau,
            bias=bias * tau[:, None],
            scores=scores,
            upstream=upstream,
            w_gradient=gradients[0],
            r_gradient=gradients[1].reshape(batch, tokens, heads, width),
        )
    # Queries behind a cache, and keys that begin later.
    module = fill(InklingRelativeLogits(width, 5))
    r = draw(batch, 3, heads, width)
    at, keys = torch.arange(8, 11), torch.arange(2, 11)
    bias = module(r, at, keys)
    n = numpy(at)[:, None] - numpy(keys)[None]
    law = np.einsum("bihw,wij->bhij", numpy(r), numpy(module.proj)[:, np.clip(n, 0, 4)]) * ((n >= 0) & (n < 5))
    yield case(
        "inkling_cache",
        "inkling",
        "transformers InklingRelativeLogits",
        "queries at positions 8..10, keys at 2..10; bias = r_i.W[:, n] for 0 <= n < extent, n of the positions; no tau",
        near(bias, law),
        {"heads": heads, "width": width, "extent": 5, "first_query": 8, "first_key": 2, "queries": 3, "keys": 9},
        r=r,
        w=module.proj,
        bias=bias,
    )


def inkling2():
    """Full and sliding layers: states of the bias with a scale and a clipped norm, a sink for each query."""
    tokens, batch, heads, groups, width, threshold, floor = 7, 1, 4, 2, 3, 2.0, 3
    for name in ("full", "sliding"):
        config = Inkling2TextConfig(
            hidden_size=heads * DIM,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=DIM,
            swa_num_attention_heads=heads,
            swa_num_key_value_heads=groups,
            swa_head_dim=DIM,
            sliding_window_size=4,
            d_rel=width,
            rel_extent=5,
            log_scaling_n_floor=floor,
            layer_types=["hybrid_sliding" if name == "sliding" else "hybrid"],
            mlp_layer_types=["dense"],
        )
        config._attn_implementation, config.rel_l2_clip_threshold = "eager", threshold
        module = fill((Inkling2SlidingAttention if name == "sliding" else Inkling2FullAttention)(config, 0))
        part = module.relative_position_bias
        extent = part.rel_extent
        q, r, sink = draw(batch, heads, tokens, DIM), draw(batch, tokens, heads * width), draw(batch, tokens, heads)
        k, v = (draw(batch, groups, tokens, DIM) for _ in range(2))
        module.q_proj, module.k_proj, module.v_proj, module.sink_proj = map(Given, (q, k, v, sink))
        part.linear, module.o_proj = Given(r), Identity()
        states = []
        part.norm.register_forward_hook(lambda module, inputs, output: states.append(output))  # noqa: B023
        zeros, positions = torch.zeros(batch, tokens, heads * DIM), torch.arange(tokens)[None]
        n = distance(tokens)
        mask = torch.where(torch.tensor(n >= 0), 0.0, -torch.inf)
        names = {} if name == "sliding" else {"key_hidden_states": zeros, "value_hidden_states": zeros}
        with softmax_inputs() as inputs:
            output, _ = module(
                zeros,
                attention_mask=mask[None, None],
                relative_distance=torch.tensor(n),
                position_ids=positions,
                **names,
            )
        scores = inputs[0][..., :-1]
        tau = 1 + 0.1 * np.log(np.maximum(1, (np.arange(tokens) + 1) / floor)) if name == "full" else np.ones(tokens)
        scaled = numpy(r).reshape(batch, tokens, heads, width) * numpy(part.norm.scale)
        norm = np.linalg.norm(scaled, axis=-1, keepdims=True)
        scaled = scaled * np.minimum(1, threshold / (norm + 1e-6)) * tau[:, None, None]
        near(states[0], scaled, 1e-6)
        inside = (n >= 0) & (n < extent)
        w = numpy(part.proj)
        bias = np.einsum("bihw,wij->bhij", scaled, w[:, np.clip(n, 0, extent - 1)]) * inside
        law = products(q, k.repeat_interleave(heads // groups, 1)) / math.sqrt(DIM) + bias
        law = np.where(n >= 0, law, -np.inf)
        precision = near(scores, law, 1e-6, where=n >= 0)
        p = softmax(np.concatenate((law, numpy(sink).transpose(0, 2, 1)[..., None]), -1))[..., :-1]
        near(output.reshape(batch, tokens, heads, DIM).transpose(1, 2), p @ numpy(v).repeat(heads // groups, 1), 1e-6)
        yield case(
            f"inkling2_{name}",
            "inkling 2",
            f"transformers Inkling2{name.capitalize()}Attention",
            "n = i-j; r = x*min(1, threshold/(|x|+1e-6))*tau_i with x = r0*scale per head, tau_i = 1 + "
            "alpha*ln(max(1, (i+1)/floor)) in full layers, 1 in sliding ones; q as given is after its own norm and "
            "tau: scores = q_i.k_j/sqrt(D) + (0 <= n < extent ? r_i.W[:,n] : 0), causal (0 here where j > i); the "
            "sink of each query and head is one more score without a value",
            precision,
            {
                "heads": heads,
                "key_heads": groups,
                "dim": DIM,
                "tokens": tokens,
                "batch": batch,
                "width": width,
                "extent": extent,
                "floor": floor if name == "full" else None,
                "alpha": 0.1,
                "threshold": threshold,
            },
            q=q,
            k=k,
            v=v,
            r0=r.reshape(batch, tokens, heads, width),
            scale=part.norm.scale,
            tau=tau,
            r=states[0],
            w=w,
            sink=sink.transpose(1, 2),
            scores=np.where(n >= 0, numpy(scores), 0),
            output=output.reshape(batch, tokens, heads, DIM).transpose(1, 2),
        )


def phi4():
    tokens, heads = 8, 3
    for symmetric in (False, True):
        config = Phi4MultimodalAudioConfig(
            num_attention_heads=heads, bias_max_distance=5 if symmetric else 4, bias_symmetric=symmetric
        )
        reach = config.bias_max_distance
        module = fill(Phi4MultimodalAudioRelativeAttentionBias(config))
        away = np.clip(-distance(tokens), -reach, reach - 1)
        if symmetric:
            # |-reach| would be one past the table.
            tokens = reach
            away = np.clip(-distance(tokens), -reach, reach - 1)
        bias = module(torch.zeros(1, tokens, 1))[0]
        index = np.abs(away) if symmetric else away + reach
        yield case(
            f"phi4_audio_{'symmetric' if symmetric else 'signed'}",
            "phi-4 multimodal audio",
            "transformers Phi4MultimodalAudioRelativeAttentionBias",
            "d = clamp(j-i, -M, M-1); bias[h,i,j] = table[d+M, h], table [2M, heads]; symmetric: table[|d|, h], table "
            "[M, heads] (|d| = M, for i-j >= M, is out of the table: fails)",
            near(bias, numpy(module.bias_values.weight)[index].transpose(2, 0, 1), 0),
            {"heads": heads, "tokens": tokens, "reach": reach, "symmetric": symmetric},
            table=module.bias_values.weight,
            index=index,
            bias=bias,
        )


def forget():
    """A bias of differences of sums of log gates."""
    tokens, batch = 7, 2
    log_gate = lambda x: -np.log1p(np.exp(-numpy(x)))
    for causal in (True, False):
        logits = draw(batch, tokens, HEADS * (1 if causal else 2)).requires_grad_()
        module = DataDependentAlibi(4, HEADS, causal=causal)
        module.to_forget_gates[0] = Given(logits)
        bias = module(torch.zeros(batch, tokens, 4))
        sums = np.cumsum(log_gate(logits), 1).transpose(0, 2, 1)
        forward, backward = sums[:, :HEADS], sums[:, -HEADS:]
        n = distance(tokens)
        law = forward[..., :, None] - forward[..., None, :]
        if not causal:
            law = np.where(n >= 0, law, backward[..., None, :] - backward[..., :, None])
        precision = near(bias, law)
        upstream = draw(*bias.shape) * torch.tensor(n >= 0 if causal else n > -tokens)
        (gradient,) = torch.autograd.grad((upstream * bias).sum(), logits)
        given = numpy(upstream)
        parts = [given * (n >= 0)] if causal else [given * (n > 0), -given * (n < 0)]
        back = np.concatenate([x.sum(-1) - x.sum(-2) for x in parts], 1)
        back = np.cumsum(back[..., ::-1], -1)[..., ::-1].transpose(0, 2, 1) / (1 + np.exp(numpy(logits)))
        near(gradient, back)
        yield case(
            f"forget_{'causal' if causal else 'both_ways'}",
            "forgetting transformer",
            "x-transformers DataDependentAlibi",
            "F_i = sum over t <= i of ln(sigmoid(f_t)), per head; bias[h,i,j] = F_i - F_j, that is the sum over j < t "
            "<= i "
            + (
                "(keys after the query are to be masked; upstream is 0 there)"
                if causal
                else "where j <= i; where j > i: G_j - G_i of the gates in the second half of the heads of f"
            )
            + "; not scaled; gradient of sum(upstream*bias): d_i = sum_j upstream_ij - sum_i' upstream_i'i, then f_t' "
            "= (1 - sigmoid(f_t)) * sum over i >= t of d_i",
            precision,
            {"heads": HEADS, "tokens": tokens, "batch": batch, "causal": causal},
            f=logits,
            bias=bias,
            upstream=upstream,
            f_gradient=gradient,
        )


def cope():
    tokens, batch, reach = 7, 1, 4
    module = fill(CoPE(DIM, HEADS, reach))
    q = draw(batch, HEADS, tokens, DIM)
    logits = draw(batch, HEADS, tokens, tokens)
    past = torch.tensor(distance(tokens) >= 0)
    bias = module(q, torch.where(past, logits, -1e300))
    gates = np.where(numpy(past), 1 / (1 + np.exp(-numpy(logits))), 0)
    place = np.minimum(np.cumsum(gates[..., ::-1], -1)[..., ::-1], reach - 1)
    low, high = np.floor(place).astype(int), np.ceil(place).astype(int)
    each = np.einsum("bhid,pd->bhip", numpy(q), numpy(module.pos_emb))
    at = lambda index: np.take_along_axis(each, index, -1)
    law = at(high) * (place - low) + at(low) * (1 - place + low)
    return case(
        "cope",
        "cope",
        "x-transformers CoPE",
        "g_ij = sigmoid(logits_ij) where j <= i, else 0; p_ij = min(sum over j <= t <= i of g_it, M-1); bias = "
        "(1-w)*q_i.E[floor p] + w*q_i.E[ceil p], w = p - floor p, E [M, D] shared by heads; logits are the scores "
        "before it; keys after the query: q_i.E[0], to be masked",
        near(bias, law),
        {"heads": HEADS, "dim": DIM, "tokens": tokens, "batch": batch, "reach": reach},
        q=q,
        logits=logits,
        table=module.pos_emb,
        place=place,
        bias=bias,
    )


write(
    "content.py",
    (torch, transformers, x_transformers),
    [
        speecht5(),
        wav2vec2_bert(),
        *vits(),
        *conformers(),
        streaming(),
        *xlnet(),
        funnel(),
        *gemma_audio(),
        granite_speech(),
        *log_buckets(),
        *deberta(),
        *inkling(),
        *inkling2(),
        *phi4(),
        *forget(),
        cope(),
    ],
)
