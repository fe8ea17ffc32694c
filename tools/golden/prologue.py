"""Queries, keys and values as the attention classes of Hugging Face transformers hand them to attention, behind
projections whose outputs are replaced by known numbers.

Each case is a whole model of two to four tiny layers, made from its config, with an attention function that keeps what
it gets. The output of a projection is `number(seed, token * width + column)`, its bias and weights of norms are such
numbers too; seeds are 1, 2, 3 for queries, keys and values, 3 more for their biases and 6 more for their weights.

`default_eps` is the config class's where a config is silent. Of each norm, the result for the same queries in bf16
(`norm_bf16_bits`) tells where the class rounds.

Writes tests/golden/prologue.json.
"""

import datetime
import json
import re
import struct

import torch
import transformers
from transformers import AttentionInterface, AutoConfig, AutoModel

torch.set_num_threads(1)
POSITIONS = [3, 50]
WEIGHTS = {"q": 7, "query": 7, "qk": 7, "k": 8, "key": 8, "v": 9, "kv_a": 9}

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 8,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.01,
    "layer_norm_eps": 0.01,
    "norm_eps": 0.01,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 8,
    "moe_num_experts": 2,
    "first_k_dense_replace": 1,
}
LATENT = {
    "kv_lora_rank": 6,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
INTERLEAVED = {"rope_parameters": {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "mrope_section": [1, 1, 1],
    "mrope_interleaved": True,
}}  # fmt: skip
HYBRID = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
TWO = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
BIAS = {"attention_bias": True}


def sections(theta, *sizes):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sizes)}}


CASES = [
    ("llama", {}, [0]), ("llama", BIAS, [0]), ("mistral", {}, [0]), ("mixtral", EXPERTS, [0]), ("ministral", {}, [0]),
    ("ministral3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1,
                                        "mscale": 1.0, "mscale_all_dim": 1.0}}, [0]),
    ("qwen2", {}, [0]), ("qwen2_moe", EXPERTS, [0]), ("qwen2_moe", {**EXPERTS, "qkv_bias": False}, [0]),
    ("qwen3", {}, [0]), ("qwen3", BIAS, [0]), ("qwen3_moe", EXPERTS, [0]),
    ("qwen3_next", {**EXPERTS, **HYBRID}, [1]), ("qwen3_5_text", {**HYBRID, **INTERLEAVED}, [1]),
    ("qwen3_5_moe_text", {**EXPERTS, **HYBRID, **INTERLEAVED}, [1]),
    ("qwen2_vl_text", sections(1e6, 1, 1, 2), [0]),
    ("qwen2_5_vl_text", sections(1e6, 1, 1, 2), [0]),
    ("qwen3_vl_text", sections(5e6, 2, 1, 1), [0]),
    ("gemma", {}, [0]), ("gemma2", {}, [0, 1]), ("gemma3_text", TWO, [0, 1]), ("gemma3_text", {**TWO, **BIAS}, [0]),
    ("gemma4_text", {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "sliding_window": 16, "num_kv_shared_layers": 2, "global_head_dim": 16,
                     "num_global_key_value_heads": 2,
                     "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 16, "rope_parameters": {
                         "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                         "full_attention": {"rope_type": "proportional", "rope_theta": 1e6,
                                            "partial_rotary_factor": 0.25}}},
     [0, 1, 3]),
    ("olmo", {}, [0]), ("olmo2", {}, [0]), ("olmo2", BIAS, [0]), ("olmo3", TWO, [0, 1]), ("olmoe", EXPERTS, [0]),
    ("minimax", {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]}, [1]), ("minimax_m2", EXPERTS, [0]),
    ("llama4_text", {**EXPERTS, "no_rope_layers": [1, 0], "intermediate_size_mlp": 8, "interleave_moe_layer_step": 1,
                     "floor_scale": 2, "attention_chunk_size": 64}, [0, 1]),
    ("llama4_text", {**EXPERTS, "no_rope_layers": [1, 0], "intermediate_size_mlp": 8, "use_qk_norm": False,
                     "floor_scale": 2, "attention_chunk_size": 64, **BIAS}, [0]),
    ("deepseek_v2", {**EXPERTS, **LATENT}, [0]), ("deepseek_v2", {**EXPERTS, **LATENT, "q_lora_rank": None}, [0]),
    ("deepseek_v3", {**EXPERTS, **LATENT}, [0]), ("deepseek_v3", {**EXPERTS, **LATENT, **BIAS}, [0]),
    ("mistral4", {**EXPERTS, **LATENT, "head_dim": 12, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.1, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}}, [0]),
    ("glm", {}, [0]), ("glm", BIAS, [0]), ("glm4", {}, [0]), ("glm4_moe", EXPERTS, [0]),
    ("glm4_moe", {**EXPERTS, "use_qk_norm": True, **BIAS}, [0]),
    ("cohere", {}, [0]), ("cohere", BIAS, [0]), ("cohere2", TWO, [0, 1]),
    ("phi", {}, [0]), ("phi3", {}, [0]), ("phimoe", EXPERTS, [0]), ("phimoe", {**EXPERTS, **BIAS}, [0]),
    ("gpt_oss", {**EXPERTS, **TWO, "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}, [0]),
    ("gpt_oss", {**EXPERTS, **TWO, "attention_bias": False,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}, [0]),
    ("starcoder2", {}, [0]), ("starcoder2", {"use_bias": False}, [0]),
    ("stablelm", {}, [0]), ("stablelm", {"use_qkv_bias": True}, [0]),
    ("granite", {}, [0]), ("granite", BIAS, [0]), ("granitemoe", EXPERTS, [0]), ("helium", {}, [0]), ("arcee", {}, [0]),
    ("nemotron", {}, [0]), ("smollm3", {"no_rope_layers": [1, 0]}, [0, 1]), ("exaone4", TWO, [0, 1]),
    ("seed_oss", {}, [0]), ("seed_oss", {"attention_bias": False}, [0]), ("ernie4_5", {}, [0]),
    ("ernie4_5", {"use_bias": True}, [0]),
    ("ernie4_5_moe", EXPERTS, [0]),
    ("hunyuan_v1_dense", {}, [0]), ("hunyuan_v1_moe", {**EXPERTS, "moe_topk": 1}, [0]), ("apertus", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 12e6}}, [0]),
    ("dots1", EXPERTS, [0]), ("lfm2", {"layer_types": ["conv", "full_attention"]}, [1]),
]  # fmt: skip


def number(seed, n):
    i = torch.arange(n, dtype=torch.int64)
    return (((i + 1) * (2 * seed + 3) * 37) % 257).float() / 64 - 2


def grid(seed, width):
    return number(seed, len(POSITIONS) * width).reshape(1, len(POSITIONS), width)


seen = {}


def capture(module, query, key, value, mask, **options):
    seen[module.layer_idx] = (query, key, value)
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register("capture", capture)


def widths(name, config, out):
    """Columns of one projection that belong to queries, keys and values, in their order: (seed, columns)."""
    if name == "qkv_proj":
        q, k = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        # Linear attention has one of that name and of another width.
        return [(1, q), (2, k), (3, k)] if out == q + 2 * k else None
    if name == "kv_a_proj_with_mqa":
        return [(3, config.kv_lora_rank), (2, config.qk_rope_head_dim)]
    seed = {"q_proj": 1, "q_b_proj": 1, "k_proj": 2, "v_proj": 3}.get(name)
    return [(seed, out)] if seed else None


def run(kind, more, layers):
    given = {"model_type": kind, **SIZES, "num_hidden_layers": 2, **more}
    config = AutoConfig.for_model(**json.loads(json.dumps(given)))
    config._attn_implementation = "capture"
    torch.manual_seed(0)
    model = AutoModel.from_config(config).float().eval()
    biased, norms, latent = {}, {}, {}
    for path, module in model.named_modules():
        match = re.search(r"layers\.(\d+)\.(?:self_attn|attention)\.(\w+)$", path)
        if not match:
            continue
        layer, name = int(match[1]), match[2]
        if isinstance(module, torch.nn.Linear):
            parts = widths(name, config, module.out_features)
            if parts is None:
                continue
            has_bias = module.bias is not None
            for seed, _ in parts:
                biased[layer, seed] = has_bias
            if has_bias:
                with torch.no_grad():
                    module.bias.copy_(torch.cat([number(seed + 3, columns) for seed, columns in parts]))

            def hook(own, inputs, output, parts=parts):
                made = torch.cat([grid(seed, columns) for seed, columns in parts], -1)
                return made if own.bias is None else made + own.bias

            module.register_forward_hook(hook)
        match = re.fullmatch(r"(q|k|v|query|key|qk|kv_a)_(?:layer)?norm", name)
        if match:
            seed = WEIGHTS[match[1]]
            if getattr(module, "weight", None) is not None:
                with torch.no_grad():
                    module.weight.copy_(number(seed, module.weight.numel()).reshape(module.weight.shape))
            norms[layer, seed] = module
            if name == "kv_a_layernorm":
                module.register_forward_hook(lambda own, inputs, output, layer=layer: latent.update({layer: output}))
    seen.clear()
    with torch.no_grad():
        hidden = torch.zeros(1, len(POSITIONS), config.hidden_size) + 0.5
        options = {}
        if kind == "gemma4_text":
            options["per_layer_inputs"] = torch.zeros(
                1, len(POSITIONS), config.num_hidden_layers, config.hidden_size_per_layer_input
            )
        model(inputs_embeds=hidden, position_ids=torch.tensor([POSITIONS]), use_cache=kind == "gemma4_text", **options)
    result = []
    for layer in layers:
        q, k, v = (x[0].transpose(0, 1) for x in seen[layer])  # tokens, heads, channels
        if layer in latent:
            k, v = k[:, :1, config.qk_nope_head_dim :], latent[layer].reshape(len(POSITIONS), 1, -1)
        case = {
            "layer": layer,
            "shapes": [list(x.shape[1:]) for x in (q, k, v)],
            "bias": [biased.get((layer, seed), None) for seed in (1, 2, 3)],
            "q": q.reshape(-1).tolist(),
            "k": k.reshape(-1).tolist(),
            "v": v.reshape(-1).tolist(),
        }
        if kind == "llama4_text" and not config.no_rope_layers[layer]:
            # Its factor counts tokens of the sequence, whatever their positions.
            case["positions"] = list(range(len(POSITIONS)))
        for seed, which in [(7, "q"), (8, "k"), (9, "v")]:
            norm = norms.get((layer, seed))
            if norm is None:
                continue
            x = {"q": q, "k": k, "v": v}[which]
            weight = getattr(norm, "weight", None)
            whole = weight is not None and weight.numel() != x.shape[-1]
            made = grid(seed - 6, x.shape[-2] * x.shape[-1])
            made = made if whole else made.reshape(len(POSITIONS), x.shape[-2], x.shape[-1])
            with torch.no_grad():
                out = norm.to(torch.bfloat16)(made.to(torch.bfloat16))
            case.setdefault("norm_bf16_bits", {})[which] = [
                bits & 0xFFFF for bits in out.reshape(-1).view(torch.int16).tolist()
            ]
        result.append(case)
    silent = AutoConfig.for_model(kind)
    eps = getattr(silent, "rms_norm_eps", getattr(silent, "norm_eps", None))
    return {"config": given, "default_eps": eps if norms else None, "layers": result}


def short(value):
    if isinstance(value, float):
        return float(f"{struct.unpack('<f', struct.pack('<f', value))[0]:.9g}")
    if isinstance(value, list):
        return [short(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("config", "default_eps") else short(item) for key, item in value.items()}
    return value


cases = []
for kind, more, layers in CASES:
    cases.append(short(run(kind, more, layers)))
meta = {
    "script": "tools/golden/prologue.py",
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "date": datetime.date.today().isoformat(),
}
print(json.dumps({"meta": meta, "positions": POSITIONS, "cases": cases}, separators=(",", ":")))
