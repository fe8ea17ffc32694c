"""The RoPE of every model type that the config loader knows, as Hugging Face transformers builds it from a minimal
config.

Each case is a config.json of sizes alone, or with a legacy theta or scaling, or with version 5's parameters written
out; and of each layer type the number of pairs, the inverse frequencies 0, 1, the middle one and the last, and the
attention factor.

Writes tests/golden/rope_models_hf.json.
"""

import datetime
import importlib
import inspect
import json
import os
import struct
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformers import CONFIG_MAPPING

torch.set_num_threads(1)

TYPES = """llama mistral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 granite granitemoe granitemoeshared starcoder2
olmo olmo2 olmoe phi3 arcee seed_oss jetmoe diffllama dots1 ministral chameleon jais2 eurobert hunyuan_v1_dense
hunyuan_v1_moe vaultgemma mixtral phimoe solar_open gpt_oss bitnet csm flex_olmo hy_v3 nomic_bert phi persimmon nemotron
glm4_moe stablelm gpt_neox minimax_m2 glm glm4 cohere ernie4_5 ernie4_5_moe helium moonshine deepseek_v2 deepseek_v3
deepseek_v32 glm4_moe_lite glm_moe_dsa youtu axk1 longcat_flash minicpm3 deepseek_v4 gemma3_text gemma3n_text modernbert
mimo_v2_flash olmo3 gemma4_text laguna mellum llama4_text smollm3 cohere2 exaone4 exaone_moe afmoe qwen3_next lfm2
minimax qwen2_vl_text qwen2_5_vl_text qwen3_vl_text qwen3_5_text ernie4_5_vl_moe_text mllama_text_model apertus cwm
emu3_text_model doge hrm_text ministral3 mistral4 olmo_hybrid
deepseek_ocr2_text unlimited_ocr_text granite_docling_text hyperclovax esmc dia_decoder voxtral_realtime_text
kyutai_speech_to_text mimi qwen3_omni_moe_talker_text qwen3_omni_moe_talker_code_predictor falcon_h1 t5_gemma_module
csm_depth_decoder_model gte nanochat blt_local_encoder blt_local_decoder blt_global_transformer blt_patcher
moonshine_streaming gemma4_unified_text diffusion_gemma_text t5gemma2_text t5gemma2_decoder ultrabert neomme
lfm3 beam openai_privacy_filter cohere2_moe bamba recurrent_gemma granitemoehybrid qwen2_5_omni_text qwen2_5_omni_talker
glm_ocr_text cosmos3_edge_text axk2 hy_v4 bailing_hybrid""".split()


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


def rotary_class(module):
    found = [
        kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if name.endswith("RotaryEmbedding")
        and kind.__module__ == module.__name__
        and not any(word in name for word in ["Vision", "Audio", "Indexer", "Unscaled", "Depth"])
    ]
    return found[0]


def get(config, key):
    try:
        return getattr(config, key, None)
    except Exception:
        return None


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
    out.update(more)
    return out


def rows(config, module):
    rotary = rotary_class(module)(config)
    labels = get(config, "layer_types") or []
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
    names = ["apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb"]
    apply = next(getattr(module, name) for name in names if hasattr(module, name))
    rotary = rotary_class(module)(config)
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
WRITTEN_OUT = """gpt_oss apertus cwm ministral3 mistral4 gemma4_text laguna mellum mimo_v2_flash gemma4_unified_text
diffusion_gemma_text ultrabert neomme lfm3 beam openai_privacy_filter moonshine_streaming cosmos3_edge_text""".split()
# Layers that the config must list.
LISTED = """lfm2 minimax deepseek_v4 laguna mellum olmo_hybrid ultrabert neomme lfm3 beam bamba
recurrent_gemma granitemoehybrid cohere2_moe bailing_hybrid""".split()
# Classes with RoPE where the config asks for it.
ASKED = {"granitemoehybrid": {"position_embedding_type": "rope"}}
# Classes whose default has no layer that attends.
ATTENDING = {
    "bamba": {"attn_layer_indices": [3, 7]},
    "granitemoehybrid": {"layers_block_type": ["attention" if i % 4 == 3 else "mamba" for i in range(12)]},
}
# Classes that refuse a scaling, or lose a legacy one.
UNSCALED = "nanochat cohere2_moe".split()
# Where theta stands, if not under rope_theta.
THETA = {"gpt_neox": "rotary_emb_base", "modernbert": "global_rope_theta"}
# OLMo 3's class gives a legacy rope_theta to the full layers alone; its models have the default everywhere.
DEFAULT_THETA = ["olmo3"]

cases, failed = [], []
for model_type in TYPES:
    theta = THETA.get(model_type, "rope_theta")
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    variants = [None] if model_type in WRITTEN_OUT else [{}, None, linear]
    if model_type in UNSCALED:
        variants = [{}, None, {theta: 123456.0}]
    elif model_type not in WRITTEN_OUT + DEFAULT_THETA:
        variants += [{theta: 123456.0}, {theta: 50000.0, **linear}]
    for more in variants:
        try:
            kind = find_config(model_type)
            small = {"num_hidden_layers": 12}
            if model_type == "glm4_moe":
                small["head_dim"] = 128
            small.update(ATTENDING.get(model_type, {}))
            config = kind(**small, **json.loads(json.dumps(more or {})))
            written = dict(more or {})
            if more is None:
                written["rope_parameters"] = config.rope_parameters
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
json.dump({"meta": meta, "cases": cases}, sys.stdout, separators=(",", ":"))
print()
