"""Buckets of the T5 family and ALiBi's slopes and biases, as Hugging Face transformers computes them.

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
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as mpt_alibi
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention
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
            "source": source, "buckets": buckets, "max_distance": max_distance, "bidirectional": bidirectional,
            "first": -REACH, "runs": runs(result),
        }

    for bidirectional, (count, reach) in itertools.product((True, False), ((32, 128), (64, 256), (16, 64), (512, 2048), (32, 1000))):
        result = T5Attention._relative_position_bucket(distances, bidirectional, count, reach)
        yield case("T5Attention._relative_position_bucket", count, reach, bidirectional, result)
    result = MT5Attention._relative_position_bucket(distances, True, 32, 128)
    yield case("MT5Attention._relative_position_bucket", 32, 128, True, result)
    umt5 = SimpleNamespace(is_decoder=False, relative_attention_num_buckets=32, relative_attention_max_distance=128)
    yield case("UMT5Attention._relative_position_bucket", 32, 128, True, UMT5Attention._relative_position_bucket(umt5, distances))
    result = MPNetEncoder.relative_position_bucket(distances, 32, 128)
    # MPNet negates its argument.
    yield case("MPNetEncoder.relative_position_bucket", 32, 128, True, result)
    result = LayoutLMv3Encoder.relative_position_bucket(None, distances, True, 64, 256)
    yield case("LayoutLMv3Encoder.relative_position_bucket", 64, 256, True, result)
    wavlm = SimpleNamespace(num_buckets=320, max_distance=800)
    yield case("WavLMAttention._relative_positions_bucket", 320, 800, True, WavLMAttention._relative_positions_bucket(wavlm, distances))


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


meta = {
    "script": "tools/golden/bias.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
json.dump({"meta": meta, "buckets": list(buckets()), "alibi": list(alibi())}, sys.stdout)
print()
