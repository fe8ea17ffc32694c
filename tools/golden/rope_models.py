"""The RoPE of every model type that the config loader knows, as Hugging Face transformers builds it from a minimal
config.

Each case is a config.json of sizes alone, or with a legacy theta or scaling, or with version 5's parameters written
out; and of each layer type the number of pairs, the inverse frequencies 0, 1, the middle one and the last, and the
attention factor.

Writes tests/golden/rope_models_hf.json.
"""

import datetime
import glob
import importlib
import inspect
import json
import os
import random
import re
import struct
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformers import CONFIG_MAPPING

torch.set_num_threads(1)

# Classes whose RoPE is no text's: towers (rope_axes.py has those of Qwen2-VL's kind), or no law of one position.
TOWERS = re.compile("Vision|ViT|Sam|DINO|Dino|Sapiens|LoFTR|MLCD|Pixtral|EdgeTam|VJEPA|MusicFlamingo|DiT")
# Where one module serves several configs, or a config of another name.
MORE = """phi4_multimodal gemma3n_text blt_local_encoder blt_local_decoder blt_global_transformer blt_patcher
dia_decoder emu3_text_model t5_gemma_module qwen2_vl_text qwen2_5_vl_text qwen2_5_omni_text
qwen2_5_omni_talker qwen3_omni_moe_talker_code_predictor csm_depth_decoder_model t5gemma2_decoder
minimax_m3_vl_text muse_glimmer_text muse_spark_text nemotron3_diarization_audio step3p5 glmasr_encoder
cohere_compass_text paddleocr_vl_text""".split()


def folders():
    """Every folder of models with a rotary embedding, its classes, and the types of the configs they are made from."""
    root = os.path.join(os.path.dirname(transformers.__file__), "models")
    for folder in sorted(os.listdir(root)):
        for path in sorted(glob.glob(f"{root}/{folder}/modeling_*.py")):
            with open(path) as file:
                names = re.findall(r"^class (\w*(?:Rotary|RoPE|Rope)\w*)\(", file.read(), re.MULTILINE)
            names = [name for name in names if "Attention" not in name]
            if not names:
                continue
            stem = os.path.basename(path)[:-3]
            module = importlib.import_module(f"transformers.models.{folder}.{stem}")
            types = []
            for name in names:
                first = list(inspect.signature(getattr(module, name).__init__).parameters.values())[1:2]
                kind = first[0].annotation if first else None
                kind = getattr(module, kind, None) if isinstance(kind, str) else kind
                if getattr(kind, "model_type", None):
                    types.append(kind.model_type)
                else:
                    types.append(None)
            yield {"folder": folder, "classes": names, "types": types}


def bits(tensor):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in tensor.flatten().tolist()]


def find_config(model_type):
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    for sub in os.listdir(os.path.join(os.path.dirname(transformers.__file__), "models")):
        if model_type.startswith(sub.split("_")[0]):
            try:
                module = importlib.import_module(f"transformers.models.{sub}.configuration_{sub}")
            except ImportError:
                continue
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if getattr(kind, "model_type", None) == model_type and kind.__module__ == module.__name__:
                    return kind
    raise KeyError(model_type)


def rotary_class(module, config_name=""):
    found = [
        kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if name.endswith("RotaryEmbedding")
        and kind.__module__ == module.__name__
        and not any(word in name for word in ["Vision", "Indexer", "Unscaled", "Depth"])
        and ("Audio" not in name or "Audio" in config_name or "audio" in config_name)
    ]
    return found[0]


def get(config, key):
    try:
        return getattr(config, key, None)
    except Exception:  # noqa: BLE001
        # A size that may differ by layer.
        return config.to_dict().get(key)


def sizes(model_type, config, more):
    """The keys of a config.json that say how large the model is."""
    keys = [
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "max_position_embeddings",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "global_head_dim",
        "sliding_window",
        "rotary_dim",
        "attention_head_dim",
    ]
    out = {"model_type": model_type}
    for key in keys:
        if isinstance(get(config, key), int) and not isinstance(get(config, key), bool):
            out[key] = get(config, key)
    gemma4 = ["gemma4_text", "gemma4_unified_text", "diffusion_gemma_text"]
    if model_type not in gemma4 and isinstance(get(config, "head_dim"), int):
        out["head_dim"] = get(config, "head_dim")
    elif model_type in gemma4:
        out["head_dim"] = 256
        out["global_head_dim"] = 512
    for key in ["per_layer_config", "layers_block_type", "use_mem_rope", "layer_rope_theta", "layer_types"]:
        value = config.to_dict().get(key)
        if key == "layer_types" and model_type not in LISTED:
            continue
        if value:
            out[key] = value
    out.update(more)
    return out


def rows(config, module):
    rotary = rotary_class(module, type(config).__name__)(config)
    labels = get(config, "layer_types") or []
    if model_type in ["muse_glimmer_text", "muse_spark_text"]:
        labels = []
    if model_type == "deepseek_v4":
        labels = ["main" if label == "sliding_attention" else "compress" for label in labels]
    found = {}
    for label in dict.fromkeys(labels) or [None]:
        inv_freq = getattr(rotary, f"{label}_inv_freq", None)
        if inv_freq is None:
            inv_freq = getattr(rotary, "inv_freq", None)
        if inv_freq is None:
            continue
        scale = getattr(rotary, f"{label}_attention_scaling", None)
        if scale is None:
            scale = getattr(rotary, "attention_scaling", 1.0)
        if isinstance(scale, dict):
            scale = scale[label]
        inv_freq = inv_freq.float().flatten()
        chosen = inv_freq[[0, 1, len(inv_freq) // 2, -1]]
        found[label or "every layer"] = {
            "pairs": len(inv_freq),
            "inv_freq_f32_bits": bits(chosen),
            "attention_factor": float(scale),
        }
    layers = labels or ["every layer"] * 1
    return found, layers


def pairing(config, module):
    """Which channels the module's own rotation mixes, and whether it turns forward: channel 0 with 1, or with the
    middle."""
    torch.manual_seed(0)
    names = [] if "audio" in model_type else ["apply_rotary_pos_emb_interleave"]
    names += ["apply_rotary_pos_emb", "apply_rotary_emb"]
    apply = next(getattr(module, name) for name in names if hasattr(module, name))
    rotary = rotary_class(module, type(config).__name__)(config)
    labels = getattr(config, "_rope_type_labels", None) or get(config, "layer_types") or []
    nested = any(hasattr(rotary, f"{label}_inv_freq") for label in labels)
    label = next((label for label in labels if hasattr(rotary, f"{label}_inv_freq")), None)
    more = {"layer_type": label} if nested else {}
    shape = (3, 1, 1) if "vl" in model_type else (1, 1)
    made = rotary(torch.zeros(1, 1, 8), torch.ones(shape, dtype=torch.long), **more)
    tables = made if isinstance(made, tuple) else (made,)
    width = tables[0].shape[-1] * (
        2 if torch.is_complex(tables[0]) or model_type in ["deepseek_v4", "gpt_oss", "openai_privacy_filter"] else 1
    )

    def turned(channel):
        x = torch.zeros(1, 1, 1, width)
        x[..., channel] = 1
        if list(inspect.signature(apply).parameters)[1] == "cos":
            return apply(x, *tables).flatten()
        return apply(x, x.clone(), *tables)[0].flatten()

    first = turned(0)
    for name, other in [("interleaved", 1), ("half", width // 2)]:
        touched = (first.abs() > 1e-7) & (turned(other).abs() > 1e-7)
        if touched.sum() == 2:
            # a' = cos and b' = sin of a positive angle, both positive at position 1
            return name if (first[touched] > 0).all() else name + " backwards"
    raise ValueError("no pair")


# Classes whose own default is a scaling, or an entry for each layer type: the loader wants those written out.
WRITTEN_OUT = """mistral_large4_text nemotron3_5_transcribe_asr_audio apertus1p5_text dory embedding_gemma2_text
dots3_note_text higgs_audio_v2 zaya gpt_oss apertus cwm ministral3 mistral4 gemma4_text laguna mellum
mimo_v2_flash gemma4_unified_text diffusion_gemma_text ultrabert neomme lfm3 beam openai_privacy_filter
moonshine_streaming cosmos3_edge_text""".split()
# Layers that the config must list.
LISTED = """lfm2_moe dory embedding_gemma2_text dots3_note_text zaya flint kolibri1 lara_mini qwen4_exp_text step3p5
cohere_compass_text lfm2 minimax deepseek_v4 laguna mellum olmo_hybrid ultrabert neomme lfm3 beam bamba
recurrent_gemma granitemoehybrid cohere2_moe bailing_hybrid""".split()
# Classes with RoPE where the config asks for it.
ASKED = {
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "zamba2": {"use_mem_rope": True},
    "esm": {"position_embedding_type": "rotary"},
    "lfm2_moe": {"layer_types": ["full_attention"] * 12},
}
# Defaults that the class itself cannot run: a share that makes the sections fit.
GIVEN = {
    "qwen4_exp_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}},
    "glm_image_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "glm4v_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "glm4v_moe_text": {
        "head_dim": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "qwen3_omni_moe_text": {"head_dim": 128},
    # rotary_dim alone has no effect there.
    "minimax_m3_vl_text": {
        "rotary_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1234567.0, "partial_rotary_factor": 0.5},
    },
    "hy_v4_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]}},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 6,
    },
}
# Classes whose default has no layer that attends.
ATTENDING = {
    "lfm2_moe": {"layer_types": ["full_attention"] * 12},
    "bamba": {"attn_layer_indices": [3, 7]},
    "granitemoehybrid": {"layers_block_type": ["attention" if i % 4 == 3 else "mamba" for i in range(12)]},
}
# Classes that refuse a scaling, or lose a legacy one.
UNSCALED = "nanochat cohere2_moe esm".split()
# Where theta stands, if not under rope_theta.
THETA = {
    "gpt_neox": "rotary_emb_base",
    "gpt_neox_japanese": "rotary_emb_base",
    "modernbert-decoder": "global_rope_theta",
    "modernbert": "global_rope_theta",
}
# OLMo 3's class gives a legacy rope_theta to the full layers alone; its models have the default everywhere.
DEFAULT_THETA = ["olmo3"]


def rotates(model_type):
    """Whether a type's config is itself that of the layers, not of a model around them."""
    try:
        values = find_config(model_type)().to_dict()
    except Exception:  # noqa: BLE001
        return False
    return any(key in values for key in ["rope_parameters", "rope_theta"]) or model_type in ["codegen", "gptj"]


found_folders = list(folders())
TYPES = list(
    dict.fromkeys(
        [
            model_type
            for folder in found_folders
            for name, model_type in zip(folder["classes"], folder["types"], strict=True)
            if model_type and not TOWERS.search(name) and rotates(model_type)
        ]
        + MORE
    )
)

draws = random.Random(1)


def drawn(theta):
    """A config with a base and perhaps a scaling drawn at random."""
    config = {theta: round(10 ** draws.uniform(3.5, 7.5), 1)}
    factor = round(draws.uniform(1.5, 16.0), 3)
    original = draws.choice([2048, 4096, 8192])
    scaling = draws.choice(
        [
            None,
            {"rope_type": "linear", "factor": factor},
            {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original},
            {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            },
        ]
    )
    return config | ({"rope_scaling": scaling} if scaling else {})


cases, failed = [], []
for model_type in TYPES:
    theta = THETA.get(model_type, "rope_theta")
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    variants = [None] if model_type in WRITTEN_OUT else [{}, None, linear]
    if model_type in GIVEN:
        variants = [GIVEN[model_type]]
    elif model_type in UNSCALED:
        variants = [{}, None, {theta: 123456.0}]
    elif model_type not in WRITTEN_OUT + DEFAULT_THETA:
        variants += [{theta: 123456.0}, {theta: 50000.0, **linear}] + [drawn(theta)]
    for more in variants:
        try:
            kind = find_config(model_type)
            small = {"num_hidden_layers": 12}
            if model_type == "glm4_moe":
                small["head_dim"] = 128
            if model_type == "zamba2":
                small |= {"use_mem_rope": True, "layers_block_type": (["linear_attention"] * 3 + ["hybrid"]) * 3}
            if kind().to_dict().get("per_layer_config"):
                del small["num_hidden_layers"]
            small.update(ATTENDING.get(model_type, {}))
            config = kind(**small, **json.loads(json.dumps(more or {})))
            written = dict(more or {})
            if more is None:
                written["rope_parameters"] = config.to_dict()["rope_parameters"]
            written.update(ASKED.get(model_type, {}))
            if model_type in LISTED:
                written["layer_types"] = config.layer_types
            module = importlib.import_module(kind.__module__.replace("configuration_", "modeling_"))
            found, layers = rows(config, module)
            try:
                pairs = pairing(config, module)
            except Exception as error:  # noqa: BLE001
                failed.append((model_type, "pairing", repr(error)[:150]))
                pairs = None
            cases.append(
                {"pairing": pairs, "config": sizes(model_type, config, written), "layers": layers, "kinds": found}
            )
        except Exception as error:  # noqa: BLE001
            failed.append((model_type, more, repr(error)[:150]))

for failure in failed:
    print(*failure, file=sys.stderr)
meta = {
    "script": "tools/golden/rope_models.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
output = {"meta": meta, "folders": found_folders, "refused": failed, "cases": cases}
json.dump(output, sys.stdout, separators=(",", ":"))
print()
