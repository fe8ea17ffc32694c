"""Rotations of vision towers and of other classes beside text, as Hugging Face transformers makes them.

Each case is a config drawn at random, grids of patches, and one head of queries after the rotation: made by the model's
own rotary class and its own function that applies it, from positions made as its forward pass makes them. Inputs are
`((7919 i + 13) mod 1021) / 1021 - 0.5`, i counted over tokens and channels.

Writes tests/golden/rope_towers.json.
"""

import datetime
import importlib
import json
import os
import random
import struct
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformers.vision_utils import get_vision_position_ids

torch.set_num_threads(1)
draws = random.Random(20)


def load(folder, name):
    return getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)


def config_of(folder, name, **keys):
    module = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    return getattr(module, name)(**json.loads(json.dumps(keys)))


def inputs(tokens, width):
    index = torch.arange(tokens * width, dtype=torch.int64)
    return (((7919 * index + 13) % 1021).double() / 1021 - 0.5).float().reshape(tokens, width)


def axial(theta):
    return {"rope_parameters": {"rope_type": "axial", "rope_theta": theta}}


def default(theta):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def theta():
    return round(10 ** draws.uniform(1.5, 5.0), 1)


def grids(merge, times=1):
    def one():
        return [draws.randint(1, times), merge * draws.randint(1, 3), merge * draws.randint(1, 3)]

    return [one(), one()]


def drawn(step=4):
    """Heads, and channels of one: a multiple of `step`."""
    return draws.choice([2, 4]), step * draws.randint(2, 6)


cases = []


def case(folder, config, grids, x, y, layer=0, as_type=None, heads=1):
    """Of a long sequence, the first, the last and some tokens between."""
    count = x.shape[0]
    tokens = sorted({0, 1, count // 2, count - 2, count - 1} & set(range(count)))
    bits = [struct.unpack("<I", struct.pack("<f", value))[0] for value in y[tokens].flatten().tolist()]
    cases.append(
        {
            "folder": folder,
            "config": config,
            "grids": grids,
            "layer": layer,
            "as": as_type,
            "tokens": tokens,
            "count": count,
            "heads": heads,
            "head": x.shape[1] // heads,
            "y_f32_bits": bits,
        }
    )


def seen_grids(folder, config_class, rotary_class, model_type, merge, times=1, flip=False, first=0, sizes=None):
    """Towers of Qwen's kind: `get_vision_position_ids`, and cos and sin applied by `apply_rotary_pos_emb_vision`."""
    for number in range(4):
        heads, head = drawn(sizes or 4)
        keys = {"hidden_size": heads * head, "num_attention_heads": heads} | axial(theta())
        side = merge(number) if merge else 1
        if merge:
            keys["spatial_merge_size"] = side
        if folder == "dots3_note":
            keys |= {"adapter_in_dim": heads * head, "adapter_merge_size": side}
        config = config_of(folder, config_class, **keys)
        found = grids(side, times)
        rotary = load(folder, rotary_class)(config)
        three = model_type == "minimax_m3_vl_vision"
        ids = get_vision_position_ids(torch.tensor(found), side, include_temporal=three)
        if flip:
            ids = ids.flip(-1)
        ids = ids + first
        if model_type == "inkling2_vision":
            spans, parts = [grid[0] * grid[1] * grid[2] for grid in found], []
            for part in ids.split(spans):
                parts += [part.new_zeros(1, 2), part]
            ids = torch.cat(parts)
        cos, sin = rotary(torch.zeros(1), ids)
        x = inputs(ids.shape[0], head)
        apply = load(folder, "apply_rotary_pos_emb_vision")
        y, _ = apply(x[:, None], x[:, None], cos, sin)
        case(folder, {"model_type": model_type, **keys}, found, x, y[:, 0])


def two(number):
    return [1, 2, 2, 3][number]


# Towers of Qwen's kind: folder, and what the names of its classes begin with.
for folder, prefix, model_type, merge in [
    ("qwen2_5_vl", "Qwen2_5_VLVision", "qwen2_5_vl_vision", two),
    ("qwen3_vl", "Qwen3VLVision", "qwen3_vl_vision", two),
    ("qwen3_vl_moe", "Qwen3VLMoeVision", "qwen3_vl_moe_vision", two),
    ("qwen3_5", "Qwen3_5Vision", "qwen3_5_vision", two),
    ("qwen3_5_moe", "Qwen3_5MoeVision", "qwen3_5_moe_vision", two),
    ("glm4v", "Glm4vVision", "glm4v_vision", two),
    ("glm4v_moe", "Glm4vMoeVision", "glm4v_moe_vision", two),
    ("glm_ocr", "GlmOcrVision", "glm_ocr_vision", two),
    ("glm5_next", "Glm5NextVision", "glm5_next_vision", two),
    ("ernie4_5_vl_moe", "Ernie4_5_VLMoeVision", "ernie4_5_vl_moe_vision", two),
    ("exaone4_5", "Exaone4_5_Vision", "exaone4_5_vision", two),
    ("qwen4_exp", "Qwen4ExpVision", "qwen4_exp_vision", two),
    ("cohere_compass", "CohereCompassVision", "cohere_compass_vision", two),
    ("dots3_note", "Dots3NoteVision", "dots3_note_vision_encoder", two),
    ("lfm3_vl", "Lfm3VlVision", "lfm3_vl_vision", two),
    ("video_llama_3", "VideoLlama3Vision", "video_llama_3_vision", None),
    ("paddleocr_vl", "PaddleOCRVision", "paddleocr_vl_vision", None),
]:
    seen_grids(folder, f"{prefix}Config", f"{prefix}RotaryEmbedding", model_type, merge, 3)
seen_grids("step3p7", "Step3p7VisionConfig", "Step3p7VisionRotaryEmbedding", "step3p5_vision", None)
seen_grids("kimi_k25", "Kimi_K25VisionConfig", "Kimi_K25VisionRotaryEmbedding", "kimi_k25_vision", None, 3)
seen_grids("inkling2", "Inkling2VisionConfig", "Inkling2VisionRotaryEmbedding", "inkling2_vision", two, 1, first=1)
seen_grids(
    "minimax_m3_vl",
    "MiniMaxM3VLVisionConfig",
    "MiniMaxM3VLVisionRotaryEmbedding",
    "minimax_m3_vl_vision",
    two,
    3,
    sizes=10,
)
seen_grids(
    "muse_glimmer", "MuseGlimmerVisionConfig", "MuseGlimmerVisionRotaryEmbedding", "muse_glimmer_vision", None, 3,
    flip=True, first=1,
)  # fmt: skip
seen_grids(
    "muse_spark", "MuseSparkVisionConfig", "MuseSparkVisionRotaryEmbedding", "muse_spark_vision", None, 3,
    flip=True, first=1,
)  # fmt: skip


def llama4():
    for _ in range(4):
        heads, head = drawn()
        side = draws.randint(1, 5)
        keys = {
            "hidden_size": heads * head,
            "num_attention_heads": heads,
            "image_size": 14 * side + 3,
            "patch_size": 14,
        }
        keys |= default(theta())
        config = config_of("llama4", "Llama4VisionConfig", **keys)
        table = load("llama4", "Llama4VisionRotaryEmbedding")(config)(torch.zeros(1))
        x = inputs(side * side + 1, head)
        y, _ = load("llama4", "vision_apply_rotary_emb")(x[None, :, None], x[None, :, None], table)
        case("llama4", {"model_type": "llama4_vision_model", **keys}, [[1, side, side]], x, y[0, :, 0])


def dinov3(folder, config_class, rotary_class, model_type):
    for number in range(4):
        heads, head = drawn()
        keys = {"hidden_size": heads * head, "num_attention_heads": heads, "patch_size": 16}
        if number:
            keys["num_register_tokens"] = draws.randint(0, 5)
        keys |= default(theta()) if folder == "eomt_dinov3" else {"rope_theta": theta()}
        config = config_of(folder, config_class, **keys)
        rows, columns = draws.randint(1, 7), draws.randint(1, 7)
        rotary = load(folder, rotary_class)(config).eval()
        cos, sin = rotary(torch.zeros(1, 3, 16 * rows + 5, 16 * columns))
        x = inputs(1 + config.num_register_tokens + rows * columns, head)
        y, _ = load(folder, "apply_rotary_pos_emb")(x[None, None], x[None, None], cos, sin)
        case(folder, {"model_type": model_type, **keys}, [[1, rows, columns]], x, y[0, 0])


def sam(folder, prefix, model_type):
    for _ in range(4):
        heads, head = drawn()
        columns, rows = draws.randint(1, 5), draws.randint(1, 5)
        keys = {
            "memory_attention_hidden_size": 2 * heads * head,
            "memory_attention_downsample_rate": 2,
            "memory_attention_num_attention_heads": heads,
            "memory_attention_num_layers": 3,
            "memory_attention_rope_feat_sizes": [columns, rows],
        } | axial(theta())
        config = config_of(folder, f"{prefix}Config", **keys)
        # SAM 3's class takes them from the size of its images.
        config.memory_attention_rope_feat_sizes = [columns, rows]
        rotary = load(folder, f"{prefix}VisionRotaryEmbedding")(config)
        ids = load(folder, f"{prefix}MemoryAttention").precompute_positions(config)
        cos, sin = rotary(torch.zeros(1), ids)
        x = inputs(rows * columns, head)
        if folder == "edgetam_video":
            y, _ = load(folder, "apply_rotary_pos_emb_2d_self_attn")(x[None, None], x[None, None], cos, sin)
        else:
            y, _ = load(folder, "apply_rotary_pos_emb_2d")(x[None, None], x[None, None], cos, sin)
        case(folder, {"model_type": model_type, **keys}, [[1, rows, columns]], x, y[0, 0])


def sam3():
    for number in range(4):
        heads, head = drawn()
        side, window = draws.randint(2, 6), draws.randint(1, 4)
        keys = {
            "hidden_size": heads * head,
            "num_attention_heads": heads,
            "num_hidden_layers": 3,
            "image_size": 14 * side,
            "patch_size": 14,
            "window_size": window,
            "global_attn_indexes": [1],
        } | axial(theta())
        config = config_of("sam3", "Sam3ViTConfig", **keys)
        rotary = load("sam3", "Sam3ViTRotaryEmbedding")(config)
        of_layer = 0 if number % 2 else window
        ids = load("sam3", "Sam3ViTLayer").precompute_positions(config, of_layer)
        cos, sin = rotary(torch.zeros(1), ids)
        side = of_layer or side
        x = inputs(side * side, head)
        y, _ = load("sam3", "apply_rotary_pos_emb_2d")(x[None, None], x[None, None], cos, sin)
        case("sam3", {"model_type": "sam3_vit_model", **keys}, [[1, side, side]], x, y[0, 0], layer=number % 2)


def loftr():
    for _ in range(4):
        width = 8 * draws.randint(2, 6)
        heads = draws.choice([2, 4, 8])
        width = heads * max(1, width // heads)
        width += -width % 8
        keys = {"hidden_size": width, "num_attention_heads": heads, "num_attention_layers": 2}
        share = heads / 2
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": theta(), "partial_rotary_factor": share}
        config = config_of("efficientloftr", "EfficientLoFTRConfig", **keys, out_features=[8, 8, 16, width])
        rows, columns = draws.randint(1, 5), draws.randint(1, 5)
        cos, sin = load("efficientloftr", "EfficientLoFTRRotaryEmbedding")(config)(
            torch.zeros(1, width, 4 * rows, 4 * columns)
        )
        x = inputs(rows * columns, width)
        flat = [table.reshape(1, rows * columns, width) for table in (cos, sin)]
        y, _ = load("efficientloftr", "apply_rotary_pos_emb")(
            x[None, :, None], x[None, :, None], *flat, unsqueeze_dim=2
        )
        case("efficientloftr", {"model_type": "efficientloftr", **keys}, [[1, rows, columns]], x, y[0, :, 0])


def speech(folder, config_class, rotary_class, attention, model_type, heads_key="num_attention_heads"):
    """Conformers, whose hidden states are rotated."""
    for _ in range(4):
        heads, head = drawn()
        keys = {"hidden_size": heads * head, heads_key: heads, "position_embeddings_type": "rotary"}
        keys["rotary_embedding_base"] = draws.choice([10000, 500, 77777])
        config = config_of(folder, config_class, **keys)
        tokens = draws.randint(2, 40)
        x = inputs(tokens, heads * head)
        table = load(folder, rotary_class)(config)(x[None])
        y = load(folder, attention)(config)._apply_rotary_embedding(x[None], table)[0]
        case(folder, {"model_type": model_type, **keys}, None, x, y, heads=heads)


def clvp():
    for number in range(4):
        heads, head = draws.choice([2, 4]), 32 + 8 * draws.randint(0, 4)
        keys = {"hidden_size": heads * head, "num_attention_heads": heads}
        keys["projection_dim"] = 2 * heads * draws.choice([8, 32, head])
        config = config_of("clvp", "ClvpEncoderConfig", **keys)
        tokens = draws.randint(2, 40)
        x = inputs(tokens, head)
        angles = load("clvp", "ClvpRotaryPositionalEmbedding")(config)(x[None])
        width = angles.shape[-1]
        ids = torch.arange(tokens)[None]
        part = x[None, None, :, :width]
        tables = angles.cos().squeeze(0), angles.sin().squeeze(0)
        _, y, _ = load("clvp", "apply_rotary_pos_emb")(part, part, part, *tables, ids)
        whole = {"text_config": {"model_type": "clvp_encoder", **keys}, "model_type": "clvp"}
        config = {"model_type": "clvp_encoder", **keys} if number else whole
        case("clvp", config, None, x, torch.cat([y[0, 0], x[:, width:]], dim=-1))


def plain(folder, config_class, rotary_class, model_type, interleaved=False, as_type=None):
    for number in range(4):
        heads, head = drawn()
        keys = {"hidden_size": heads * head, "num_attention_heads": heads}
        if as_type:
            keys |= {"rope_theta": theta(), "position_embedding_type": "rotary"}
        else:
            keys |= default(theta())
        if model_type == "qwen2_5_omni_dit":
            keys["head_dim"] = head
        config = config_of(folder, config_class, **keys)
        x = inputs(draws.randint(2, 40), head)
        ids = torch.arange(x.shape[0])[None]
        cos, sin = load(folder, rotary_class)(config)(x[None], ids)
        own = x[None, None]
        if interleaved:
            own = load(folder, "deinterleave_head_dim")(own)
        y, _ = load(folder, "apply_rotary_pos_emb")(own, own, cos, sin)
        if interleaved:
            # Scores are the same in either order of channels; this is the one that was read.
            y = torch.stack(y.chunk(2, dim=-1), dim=-1).flatten(-2)
        named = {"model_type": model_type, **keys} if model_type else keys
        if model_type == "deepseek_ocr2_encoder" and number == 0:
            named = {"model_type": "deepseek_ocr2_vision", "encoder_config": named}
        case(folder, named, None, x, y[0, 0], as_type=as_type)


def atoms():
    for number in range(4):
        heads, head = draws.choice([2, 4]), 32 + 8 * draws.randint(0, 3)
        keys = {
            "hidden_size": heads * head,
            "num_attention_heads": heads,
            "num_spatial_rope_pairs_per_axis": draws.randint(0, 3),
            "num_uid_rope_pairs": draws.randint(1, 6),
            "spatial_rope_base_frequency": round(draws.uniform(2, 50), 2),
            "uid_rope_base_frequency": round(10 ** draws.uniform(1, 4), 1),
        }
        config = config_of("esmfold2", "EsmFold2AtomEncoderConfig", **keys)
        x = inputs(draws.randint(2, 20), head)
        at = [[draws.randint(-(1 << 22), 1 << 22) / (1 << 20) for _ in range(3)] for _ in x]
        uid = [draws.randint(0, 20) for _ in x]
        rotary = load("esmfold2", "EsmFold2RotaryEmbedding")(config)
        cos, sin = rotary(torch.tensor([at]), torch.tensor([uid]), torch.float32)
        y, _ = load("esmfold2", "apply_rotary_pos_emb")(x[None, None], x[None, None], cos, sin)
        named = {"model_type": "esmfold2", "atom_encoder": keys} if number else keys
        case("esmfold2", named, None, x, y[0, 0], as_type="esmfold2_atom_encoder")
        cases[-1]["positions"] = [*map(list, zip(*at, strict=True)), uid]


def sound():
    for _ in range(4):
        head = 8 * draws.randint(3, 6)
        keys = {
            "model_type": "musicflamingo",
            "audio_config": {"model_type": "audioflamingo3_encoder", "hidden_size": head},
            "text_config": {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 2},
            "audio_frame_step": draws.choice([0.01, 0.02]),
        }
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": draws.choice([1200, 300, 5000])}
        share = draws.choice([0.2, 0.25, 0.5])
        share = int(head * share) // 2 * 2 / head
        keys["rope_parameters"]["partial_rotary_factor"] = share
        config = config_of("musicflamingo", "MusicFlamingoConfig", **keys)
        windows, frames = draws.randint(1, 3), draws.randint(1, 8)
        model = load("musicflamingo", "MusicFlamingoModel")
        maker = type("Maker", (), {"config": config})()
        tokens = torch.full((1, windows * frames + 2), config.audio_token_id)
        tokens[0, 0], tokens[0, -1] = 1, 2
        times = model._build_audio_timestamps(maker, tokens, torch.tensor([frames] * windows), frames)
        cos, sin = load("musicflamingo", "MusicFlamingoRotaryEmbedding")(config)(times, frames)
        x = inputs(windows * frames, head)
        y = load("musicflamingo", "apply_rotary_time_emb")(x.reshape(windows, frames, head), cos, sin)
        case("musicflamingo", keys, [[windows, frames]], x, y.reshape(-1, head), as_type="musicflamingo")


llama4()
dinov3("dinov3_vit", "DINOv3ViTConfig", "DINOv3ViTRopePositionEmbedding", "dinov3_vit")
dinov3("eomt_dinov3", "EomtDinov3Config", "EomtDinov3RotaryEmbedding", "eomt_dinov3")
dinov3("sapiens2", "Sapiens2Config", "Sapiens2RopePositionEmbedding", "sapiens2")
sam("sam2_video", "Sam2Video", "sam2_video")
sam("sam3_tracker_video", "Sam3TrackerVideo", "sam3_tracker_video")
sam("edgetam_video", "EdgeTamVideo", "edgetam_video")
sam3()
loftr()
speech(
    "wav2vec2_bert",
    "Wav2Vec2BertConfig",
    "Wav2Vec2BertRotaryPositionalEmbedding",
    "Wav2Vec2BertSelfAttention",
    "wav2vec2-bert",
)
speech(
    "wav2vec2_conformer",
    "Wav2Vec2ConformerConfig",
    "Wav2Vec2ConformerRotaryPositionalEmbedding",
    "Wav2Vec2ConformerSelfAttention",
    "wav2vec2-conformer",
)
speech(
    "seamless_m4t",
    "SeamlessM4TConfig",
    "SeamlessM4TConformerRotaryPositionalEmbedding",
    "SeamlessM4TConformerSelfAttention",
    "seamless_m4t",
    "speech_encoder_attention_heads",
)
clvp()
atoms()
sound()
plain("qwen2_5_omni", "Qwen2_5OmniDiTConfig", "Qwen2_5OmniDiTRotaryEmbedding", "qwen2_5_omni_dit", interleaved=True)
plain(
    "deepseek_ocr2",
    "DeepseekOcr2VisionEncoderConfig",
    "DeepseekOcr2VisionRotaryEmbedding",
    "deepseek_ocr2_encoder",
)
plain("evolla", "SaProtConfig", "EvollaSaProtRotaryEmbedding", None, as_type="esm")
seen_grids(
    "qwen2_5_omni",
    "Qwen2_5OmniVisionEncoderConfig",
    "Qwen2_5OmniVisionRotaryEmbedding",
    "qwen2_5_omni_vision_encoder",
    two,
    3,
)
seen_grids(
    "qwen3_omni_moe",
    "Qwen3OmniMoeVisionEncoderConfig",
    "Qwen3OmniMoeVisionRotaryEmbedding",
    "qwen3_omni_moe_vision_encoder",
    two,
    3,
)

meta = {
    "script": "tools/golden/rope_towers.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
json.dump({"meta": meta, "cases": cases}, sys.stdout, separators=(",", ":"))
print()
