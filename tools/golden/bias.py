"""Buckets of the T5 family, ALiBi's slopes and biases, and whole biases and probabilities of models that put them
together in their own way, as Hugging Face transformers computes them.

Writes tests/golden/bias_hf.json. Buckets stand as runs [bucket, count] over ascending distances.
"""

import datetime
import itertools
import json
import struct
import sys
from types import SimpleNamespace

import torch
import transformers
from transformers import BloomConfig, FalconConfig, LayoutLMv3Config, MptConfig
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.mpt.modeling_mpt import MptAttention
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as mpt_alibi
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.udop.modeling_udop import (
    RelativePositionBias1D,
    RelativePositionBiasAggregated,
    RelativePositionBiasHorizontal,
    RelativePositionBiasVertical,
)
from transformers.models.umt5.modeling_umt5 import UMT5Attention
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

torch.set_num_threads(1)
REACH = 3000


def f32_bits(tensor):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in tensor.float().flatten().tolist()]


def runs(buckets):
    return [[bucket, len(list(group))] for bucket, group in itertools.groupby(buckets.tolist())]


def buckets():
    distances = torch.arange(-REACH, REACH + 1)

    def case(source, buckets, max_distance, bidirectional, result):
        return {
            "source": source,
            "buckets": buckets,
            "max_distance": max_distance,
            "bidirectional": bidirectional,
            "first": -REACH,
            "runs": runs(result),
        }

    for bidirectional, (count, reach) in itertools.product(
        (True, False), ((32, 128), (64, 256), (16, 64), (512, 2048), (32, 1000))
    ):
        result = T5Attention._relative_position_bucket(distances, bidirectional, count, reach)
        yield case("T5Attention._relative_position_bucket", count, reach, bidirectional, result)
    result = MT5Attention._relative_position_bucket(distances, True, 32, 128)
    yield case("MT5Attention._relative_position_bucket", 32, 128, True, result)
    umt5 = SimpleNamespace(is_decoder=False, relative_attention_num_buckets=32, relative_attention_max_distance=128)
    yield case(
        "UMT5Attention._relative_position_bucket",
        32,
        128,
        True,
        UMT5Attention._relative_position_bucket(umt5, distances),
    )
    result = MPNetEncoder.relative_position_bucket(distances, 32, 128)
    # MPNet negates its argument.
    yield case("MPNetEncoder.relative_position_bucket", 32, 128, True, result)
    result = LayoutLMv3Encoder.relative_position_bucket(None, distances, True, 64, 256)
    yield case("LayoutLMv3Encoder.relative_position_bucket", 64, 256, True, result)
    wavlm = SimpleNamespace(num_buckets=320, max_distance=800)
    yield case(
        "WavLMAttention._relative_positions_bucket",
        320,
        800,
        True,
        WavLMAttention._relative_positions_bucket(wavlm, distances),
    )


def alibi():
    # Integers, as the models pass them: Falcon's product is then in bf16, its positions included.
    ones = torch.ones(1, 9, dtype=torch.int64)
    # Padding on the left: two tokens.
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    for heads in (1, 6, 12, 40, 71, 112):
        yield {
            "heads": heads,
            "bloom_f32": f32_bits(bloom_alibi(ones, heads, torch.float32)),
            "bloom_bf16": f32_bits(bloom_alibi(ones, heads, torch.bfloat16)),
            "bloom_padded_f32": f32_bits(bloom_alibi(padded, heads, torch.float32)),
            "mpt": f32_bits(mpt_alibi(heads, 9, 8)),
            "mpt_bias_max_4": f32_bits(mpt_alibi(heads, 9, 4)),
            "falcon": f32_bits(falcon_alibi(ones, heads, torch.float32)),
        }
    # Falcon-RW's own path at a distance where bf16 has lost the integers.
    long = torch.ones(1, 2049, dtype=torch.int64)
    far = falcon_alibi(long, 64, torch.float32).reshape(64, 2049)
    near = bloom_alibi(long, 64, torch.bfloat16).reshape(64, 2049)
    yield {"heads": 64, "keys": 2049, "falcon_head_0": f32_bits(far[0]), "bloom_bf16_head_0": f32_bits(near[0])}


def wavlm():
    """Table, projections of the gates, and the gated bias that goes into the softmax."""
    heads, tokens, batch = 3, 11, 2
    torch.manual_seed(1)
    attention = WavLMAttention(heads * 4, heads, num_buckets=320, max_distance=800, has_relative_position_bias=True)
    torch.nn.init.normal_(attention.gru_rel_pos_const, 1.0, 0.5)
    torch.nn.init.normal_(attention.gru_rel_pos_linear.weight)
    kept = {}
    attention.gru_rel_pos_linear.register_forward_hook(lambda module, inputs, output: kept.update(projection=output))
    attention.torch_multi_head_self_attention = lambda states, mask, bias: (kept.update(bias=bias), None)
    attention(torch.randn(batch, tokens, heads * 4))
    return {
        "heads": heads,
        "tokens": tokens,
        "batch": batch,
        "table": f32_bits(attention.rel_attn_embed.weight),
        # [batch, heads, queries, 8]: the sums of the first and the last four go into the sigmoids of a and b
        "projection": f32_bits(kept["projection"]),
        "const": f32_bits(attention.gru_rel_pos_const),
        "bias": f32_bits(kept["bias"]),
    }


def layoutlmv3():
    """Tables [buckets, heads], boxes, and the sum of the 1-D and both 2-D biases."""
    heads, tokens = 3, 13
    torch.manual_seed(2)
    config = LayoutLMv3Config(
        hidden_size=heads * 4,
        num_attention_heads=heads,
        num_hidden_layers=1,
        has_relative_attention_bias=True,
        has_spatial_attention_bias=True,
    )
    encoder = LayoutLMv3Encoder(config)
    positions = torch.arange(2, 2 + tokens)[None]
    boxes = torch.randint(0, 1000, (1, tokens, 4))
    bias = encoder._cal_1d_pos_emb(positions) + encoder._cal_2d_pos_emb(boxes)
    return {
        "heads": heads,
        "tokens": tokens,
        "table": f32_bits(encoder.rel_pos_bias.weight.t()),
        "table_x": f32_bits(encoder.rel_pos_x_bias.weight.t()),
        "table_y": f32_bits(encoder.rel_pos_y_bias.weight.t()),
        "x": boxes[0, :, 0].tolist(),
        "y": boxes[0, :, 3].tolist(),
        "bias": f32_bits(bias),
    }


def udop():
    """As LayoutLMv3. Boxes lie on quarters of a page, so that a hundred times a distance is an integer in f32."""
    heads, tokens = 3, 13
    torch.manual_seed(3)
    kinds = (RelativePositionBias1D, RelativePositionBiasHorizontal, RelativePositionBiasVertical)
    parts = [kind(num_heads=heads) for kind in kinds]
    boxes = torch.randint(0, 3, (1, tokens, 4)) / 2
    bias = RelativePositionBiasAggregated(parts)(torch.ones(1, tokens), boxes)
    middle = lambda a, b: (boxes[0, :, [a, b]].mean(-1) * 100).to(torch.int64).tolist()
    return {
        "heads": heads,
        "tokens": tokens,
        "table": f32_bits(parts[0].relative_attention_bias.weight),
        "table_x": f32_bits(parts[1].relative_attention_bias.weight),
        "table_y": f32_bits(parts[2].relative_attention_bias.weight),
        "x": middle(0, 2),
        "y": middle(1, 3),
        "bias": f32_bits(bias),
    }


def probabilities():
    """Attention of the ALiBi models: products of queries and keys, then what their softmax gives."""
    heads, tokens, dim = 12, 9, 4
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, tokens, tokens).masked_fill(future, torch.finfo(torch.float32).min)
    ones = torch.ones(1, tokens, dtype=torch.int64)

    def case(name, run):
        torch.manual_seed(4)
        states = torch.randn(1, tokens, heads * dim)
        query, key, probabilities = run(states)
        return {
            "model": name,
            "heads": heads,
            "tokens": tokens,
            "scale": 0.5,
            "scores": f32_bits(query @ key.transpose(-1, -2)),
            "probabilities": f32_bits(probabilities),
        }

    def kept_output(module):
        kept = []
        module.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
        return kept

    def bloom(states):
        attention = BloomAttention(BloomConfig(hidden_size=heads * dim, n_head=heads), 0).eval()
        torch.nn.init.normal_(attention.query_key_value.weight, 0.0, 0.5)
        kept = kept_output(attention.query_key_value)
        alibi = bloom_alibi(ones, heads, torch.float32)
        output = attention(states, torch.zeros_like(states), alibi, mask, output_attentions=True)
        query, key, _ = attention._reshape(kept[0])
        return query, key, output[1]

    def falcon(states):
        config = FalconConfig(
            hidden_size=heads * dim,
            num_attention_heads=heads,
            alibi=True,
            multi_query=False,
            new_decoder_architecture=False,
            attn_implementation="eager",
        )
        attention = FalconAttention(config, 0).eval()
        torch.nn.init.normal_(attention.query_key_value.weight, 0.0, 0.5)
        kept = kept_output(attention.query_key_value)
        alibi = falcon_alibi(ones, heads, torch.float32)
        output = attention(states, alibi, mask, output_attentions=True)
        query, key, _ = attention._split_heads(kept[0])
        return query.transpose(1, 2), key.transpose(1, 2), output[1]

    def mpt(states):
        attention = MptAttention(MptConfig(d_model=heads * dim, n_heads=heads), 0).eval()
        torch.nn.init.normal_(attention.Wqkv.weight, 0.0, 0.5)
        kept = kept_output(attention.Wqkv)
        output = attention(states, mpt_alibi(heads, tokens, 8), attention_mask=future[None, None])
        query, key, _ = kept[0].chunk(3, dim=2)
        split = lambda x: x.reshape(1, tokens, heads, dim).transpose(1, 2)
        return split(query), split(key), output[1]

    return [case("bloom", bloom), case("falcon", falcon), case("mpt", mpt)]


meta = {
    "script": "tools/golden/bias.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
with torch.no_grad():
    results = {"wavlm": wavlm(), "layoutlmv3": layoutlmv3(), "udop": udop(), "probabilities": probabilities()}
json.dump({"meta": meta, "buckets": list(buckets()), "alibi": list(alibi())} | results, sys.stdout)
print()
