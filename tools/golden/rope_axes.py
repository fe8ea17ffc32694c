"""Angles of each pair at position 1 on one axis and 0 on the others, from the multi-axis RoPE of Hugging Face
transformers and of timm.

Writes tests/golden/rope_axes_hf.json.
"""

import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import pathlib
import struct
import sys
import types

import torch
import transformers
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as ernie
from transformers.models.gemma4 import configuration_gemma4
from transformers.models.gemma4 import modeling_gemma4 as gemma4
from transformers.models.glm4v import modeling_glm4v as glm4v
from transformers.models.pixtral import modeling_pixtral as pixtral
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl
from transformers.models.sam2_video import modeling_sam2_video as sam2

torch.set_num_threads(1)

# timm as a whole needs torchvision; the one file does not.
folder = pathlib.Path(importlib.util.find_spec("timm").origin).parent
for package, path in [("timm", folder), ("timm.layers", folder / "layers")]:
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(path)]
timm_pos_embed = importlib.import_module("timm.layers.pos_embed_sincos")


def bits(values):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in values]


def angles(cos, sin, pairing):
    angle = torch.atan2(sin.reshape(-1), cos.reshape(-1))
    return bits((angle[: len(angle) // 2] if pairing == "half" else angle[0::2]).tolist())


cases = []


def case(name, form, pairing, theta, rows, **more):
    cases.append({"name": name, "form": form, "pairing": pairing, "theta": theta, "angles_f32_bits": rows, **more})


def text(name, module, config, form, pairing):
    rows = []
    for axis in range(3):
        positions = torch.zeros(3, 1, 1, dtype=torch.long)
        positions[axis] = 1
        rows.append(angles(*module(config)(torch.zeros(1), positions), pairing))
    case(name, form, pairing, config.rope_parameters["rope_theta"], rows)


def grid(name, module, config, form, pairing):
    rows = []
    for axis in range(2):
        positions = torch.zeros(1, 2, 1, dtype=torch.long)
        positions[0, axis] = 1
        made = module(config)
        try:
            cos, sin = made(torch.zeros(1), positions)
        except (IndexError, RuntimeError):
            cos, sin = made(torch.zeros(1), positions[0])
        rows.append(angles(cos, sin, pairing))
    case(name, form, pairing, config.rope_parameters["rope_theta"], rows)


def text_config(kind, **values):
    return kind(num_hidden_layers=1, **values)


text(
    "qwen2-vl",
    qwen2_vl.Qwen2VLRotaryEmbedding,
    text_config(
        transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLTextConfig, hidden_size=1024, num_attention_heads=8
    ),
    {"sections": [16, 24, 24]},
    "half",
)
text(
    "glm-4v",
    glm4v.Glm4vTextRotaryEmbedding,
    text_config(
        transformers.models.glm4v.configuration_glm4v.Glm4vTextConfig,
        hidden_size=1024,
        num_attention_heads=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    {"sections": [8, 12, 12]},
    "interleaved",
)
text(
    "qwen3-vl",
    qwen3_vl.Qwen3VLTextRotaryEmbedding,
    text_config(
        transformers.models.qwen3_vl.configuration_qwen3_vl.Qwen3VLTextConfig,
        hidden_size=1024,
        num_attention_heads=8,
        rope_parameters={"rope_type": "default", "rope_theta": 5000000.0},
    ),
    {"interleaved": [24, 20, 20]},
    "half",
)
text(
    "qwen3.5",
    qwen3_5.Qwen3_5TextRotaryEmbedding,
    text_config(
        transformers.models.qwen3_5.configuration_qwen3_5.Qwen3_5TextConfig,
        rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
    ),
    {"interleaved": [11, 11, 10]},
    "half",
)
text(
    "ernie4.5-vl",
    ernie.Ernie4_5_VLMoeTextRotaryEmbedding,
    text_config(
        transformers.models.ernie4_5_vl_moe.configuration_ernie4_5_vl_moe.Ernie4_5_VLMoeTextConfig,
        hidden_size=1024,
        num_attention_heads=8,
    ),
    {"height_width_first": [20, 22, 22]},
    "interleaved",
)

grid(
    "qwen2-vl vision",
    qwen2_vl.Qwen2VLVisionRotaryEmbedding,
    transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig(),
    {"ladders": [20, 20]},
    "half",
)
grid(
    "pixtral",
    pixtral.PixtralVisionRotaryEmbedding,
    transformers.models.pixtral.configuration_pixtral.PixtralVisionConfig(),
    {"dealt": 2},
    "half",
)
grid(
    "sam2",
    sam2.Sam2VideoVisionRotaryEmbedding,
    transformers.models.sam2_video.configuration_sam2_video.Sam2VideoConfig(),
    {"ladders": [64, 64]},
    "interleaved",
)

# Vision towers with Qwen2-VL's law, from the sizes that their config.json holds.
TOWERS = """qwen2_vl/qwen2_vl_vision qwen2_5_vl/qwen2_5_vl_vision qwen3_vl/qwen3_vl_vision
qwen3_vl_moe/qwen3_vl_moe_vision qwen3_5/qwen3_5_vision qwen3_5_moe/qwen3_5_moe_vision glm4v/glm4v_vision
glm4v_moe/glm4v_moe_vision glm_ocr/glm_ocr_vision paddleocr_vl/paddleocr_vl_vision
qwen2_5_omni/qwen2_5_omni_vision_encoder qwen3_omni_moe/qwen3_omni_moe_vision_encoder
ernie4_5_vl_moe/ernie4_5_vl_moe_vision video_llama_3/video_llama_3_vision exaone4_5/exaone4_5_vision""".split()
for tower in TOWERS:
    folder, model_type = tower.split("/")
    configuration = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    config = next(kind for kind in vars(configuration).values() if getattr(kind, "model_type", None) == model_type)()
    rotary = next(kind for name, kind in vars(modeling).items() if name.endswith("VisionRotaryEmbedding"))(config)
    rows = []
    for axis in range(2):
        positions = torch.zeros(1, 2, 1, dtype=torch.long)
        positions[0, axis] = 1
        try:
            cos, sin = rotary(torch.zeros(1), positions)
        except (IndexError, RuntimeError):
            cos, sin = rotary(torch.zeros(1), positions[0])
        rows.append(angles(cos, sin, "half"))
    keys = ["embed_dim", "hidden_size", "num_heads", "num_attention_heads", "depth"]
    sizes = {key: getattr(config, key) for key in keys if isinstance(getattr(config, key, None), int)}
    half = len(rows[0]) // 2
    case(model_type, {"ladders": [half, half]}, "half", 10000.0, rows, config={"model_type": model_type, **sizes})

# DINOv3: a patch's coordinate is its middle on -1..1; patch i of n stands at (2i + 1 - n) / n and turns by 2 pi times
# that.
made = dinov3.DINOv3ViTRopePositionEmbedding(transformers.DINOv3ViTConfig()).eval()  # training shifts the patches
cos, sin = made(torch.zeros(1, 3, 16 * 14, 16 * 10))
rows = {"grid": [14, 10], "patches": [], "angles": []}
for y, x in [(0, 0), (13, 0), (7, 5), (6, 9)]:
    rows["patches"].append([y, x])
    rows["angles"].append([bits(row[y * 10 + x][: cos.shape[-1] // 2].tolist()) for row in (cos, sin)])
dinov3_case = {"name": "dinov3", "theta": made.base, **rows}

# EVA-02 in timm: pixel positions of a grid, optionally stretched to the grid of the training.
eva = []
for feat, ref in [((3, 5), None), ((24, 40), (16, 16))]:
    sin, cos = timm_pos_embed.build_rotary_pos_embed(
        list(feat), dim=64, temperature=10000.0, in_pixels=False, ref_feat_shape=None if ref is None else list(ref)
    )
    at = feat[0] * feat[1] - 1
    eva.append(
        {
            "name": "eva-02",
            "grid": feat,
            "reference": ref,
            "patch": [feat[0] - 1, feat[1] - 1],
            "cos_f32_bits": bits(cos[at][0::2].tolist()),
            "sin_f32_bits": bits(sin[at][0::2].tolist()),
        }
    )

# Gemma 4's vision tower rotates each half of a head for itself: a head as it goes in and comes out, for some patches.
config = configuration_gemma4.Gemma4VisionConfig(rope_parameters={"rope_type": "axial", "rope_theta": 100.0})
patches = torch.tensor([[[0, 0], [1, 0], [0, 1], [7, 30], [47, 13]]])
x = torch.rand(1, patches.shape[1], 1, config.head_dim, generator=torch.Generator().manual_seed(4)) * 2 - 1
cos, sin = gemma4.Gemma4VisionRotaryEmbedding(config)(x, patches)
y = gemma4.apply_multidimensional_rope(x, cos, sin, patches)
gemma4_case = {
    "name": "gemma4 vision",
    "theta": 100.0,
    "dim": config.head_dim,
    "patches": patches[0].tolist(),
    "x_f32_bits": bits(x.flatten().tolist()),
    "y_f32_bits": bits(y.flatten().tolist()),
}

meta = {
    "script": "tools/golden/rope_axes.py",
    "versions": {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": importlib.metadata.version("timm"),
    },
    "date": datetime.date.today().isoformat(),
}
json.dump(
    {"meta": meta, "cases": cases, "dinov3": dinov3_case, "eva02": eva, "gemma4": gemma4_case},
    sys.stdout,
    separators=(",", ":"),
)
print()
