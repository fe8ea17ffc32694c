"""`posenc.patch` on tiny random models of transformers: near positions as the model's own, far ones as the model in
f64."""

import math
import os

import pytest

if os.environ.get("POSENC_TEST_ALL") is None:
    pytest.importorskip("transformers", reason="transformers is not installed")

import posenc
import torch
import transformers

SIZES = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
    **{
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
MLA = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    **{"n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 256,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def config(kind):
    without_groups = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return {
        "llama": lambda: transformers.LlamaConfig(**SIZES),
        "llama3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
        "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**without_groups),
        "gemma": lambda: transformers.GemmaConfig(**SIZES, head_dim=16),
        "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8),
        "deepseek_v2": lambda: transformers.DeepseekV2Config(**{**SIZES, **MLA}),
        "deepseek_v3": lambda: transformers.DeepseekV3Config(**{**SIZES, **MLA}),
        "qwen2_vl": lambda: transformers.Qwen2VLTextConfig(**SIZES, rope_parameters=MROPE),
        "gpt_oss": lambda: transformers.GptOssConfig(**SIZES, **experts, head_dim=16, sliding_window=8),
    }[kind]()


KINDS = ["llama", "llama3", "qwen3", "gpt_neox", "gemma", "gemma3", "deepseek_v2", "deepseek_v3", "qwen2_vl", "gpt_oss"]


def model(kind):
    torch.manual_seed(1)
    own = config(kind)
    own._attn_implementation = own._experts_implementation = "eager"
    maker = transformers.AutoModel if kind == "qwen2_vl" else transformers.AutoModelForCausalLM
    made = maker.from_config(own).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "query_key_value", "q_b_proj", "kv_a_proj")):
                parameter.mul_(20)  # attention that depends on positions, where small weights make all keys alike
    return made


def outputs(made, first, tokens=12, kind=""):
    ids = torch.arange(1, tokens + 1)[None]
    positions = torch.arange(first, first + tokens)[None]
    if kind == "qwen2_vl":
        # text, then an image whose height and width run apart
        positions = torch.stack([positions, positions + torch.arange(tokens) % 3, positions + torch.arange(tokens) % 2])
    with torch.no_grad():
        out = made(input_ids=ids, position_ids=positions, use_cache=False)
    return (out.logits if "logits" in out else out.last_hidden_state).double()


def frequencies(made, kind, layer_type=None):
    """Radians per position of each pair, in f64, by the formulas of the papers."""
    own = made.config
    parameters = own.rope_parameters[layer_type] if layer_type else own.rope_parameters
    dim = own.qk_rope_head_dim if "deepseek" in kind else getattr(own, "head_dim", None) or 16
    dim = int(dim * parameters.get("partial_rotary_factor", 1.0))
    base = parameters["rope_theta"]
    f = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scale = 1.0
    if parameters["rope_type"] == "llama3":
        context, factor = parameters["original_max_position_embeddings"], parameters["factor"]
        turns = context * f / (2 * math.pi)
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        f = f * kept + f / factor * (1 - kept)
    elif parameters["rope_type"] == "yarn":
        context, factor = parameters["original_max_position_embeddings"], parameters["factor"]
        pair = lambda turns: dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))
        low, high = pair(parameters["beta_fast"]), pair(parameters["beta_slow"])
        if parameters.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
        f = f / factor * ramp + f * (1 - ramp)
        scale = 0.1 * math.log(factor) + 1.0
    return f, scale


def in_f64(made, kind):
    """The model in f64, its angles too."""
    made = made.double()
    for module in made.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):

            def forward(x, position_ids, layer_type=None, module=module):
                f, scale = frequencies(made, kind, layer_type)
                angle = position_ids[..., None].double() * f
                if kind == "qwen2_vl":
                    parts = angle.split(MROPE["mrope_section"], -1)
                    angle = torch.cat([part[at % 3] for at, part in enumerate(parts)], -1)
                if kind == "deepseek_v2":
                    return torch.polar(torch.full_like(angle, scale), angle)
                if kind != "gpt_oss":
                    angle = torch.cat((angle, angle), -1)
                return angle.cos() * scale, angle.sin() * scale

            module.forward = forward
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_near_positions_are_the_models_own_and_far_ones_those_of_f64(kind):
    made = model(kind)
    own_near, own_far = outputs(made, 0, kind=kind), outputs(made, 1_000_000, kind=kind)
    patch = posenc.patch(made)
    assert len(patch.replaced) == 1 and not patch.skipped and "rotary_emb" in repr(patch)
    near, far = outputs(made, 0, kind=kind), outputs(made, 1_000_000, kind=kind)
    patch.undo()
    assert (outputs(made, 1_000_000, kind=kind) == own_far).all()
    true = in_f64(made, kind)
    true_near, true_far = outputs(true, 0, kind=kind), outputs(true, 1_000_000, kind=kind)
    size = true_near.abs().max()
    # as the model rounds: no farther from the truth at a million than at the start
    rounding = max((own_near - true_near).abs().max(), 1e-6 * size)
    assert (near - true_near).abs().max() < 2 * rounding
    assert (near - own_near).abs().max() < 3 * rounding
    assert (far - true_far).abs().max() < 4 * rounding, (rounding, (far - true_far).abs().max())
    assert (own_far - true_far).abs().max() > 20 * rounding, (rounding, (own_far - true_far).abs().max())


def test_models_in_half_precision_and_compiled():
    made = model("llama").bfloat16()
    want = outputs(made, 0)
    with posenc.patch(made):
        assert (outputs(made, 0) - want).abs().max() <= 0.05 * want.abs().max()
        ids = torch.arange(1, 9)[None]
        got = torch.compile(made.model.rotary_emb, fullgraph=True)(torch.zeros(1, 8, 1, dtype=torch.bfloat16), ids)
        eager = made.model.rotary_emb(torch.zeros(1, 8, 1, dtype=torch.bfloat16), ids)
        assert all((a == b).all() and a.dtype == torch.bfloat16 for a, b in zip(got, eager, strict=True))
    assert "forward" not in made.model.rotary_emb.__dict__


def test_generation_goes_on():
    made = model("qwen3")
    prompt = torch.arange(1, 6)[None]
    want = made.generate(prompt, max_new_tokens=6, do_sample=False)
    with posenc.patch(made):
        assert (made.generate(prompt, max_new_tokens=6, do_sample=False) == want).all()


def test_what_cannot_be_patched_is_said():
    with pytest.raises(posenc.Error, match="Linear has no rotary embedding that posenc can replace"):
        posenc.patch(torch.nn.Linear(2, 2))
    made = model("llama")
    made.model.rotary_emb.inv_freq.mul_(1.5)
    with pytest.raises(posenc.Error, match="LlamaRotaryEmbedding gives other cosines and sines at the first positions"):
        posenc.patch(made)
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    made = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES, rope_parameters=dynamic))
    with pytest.raises(
        posenc.Error, match="the scaling 'dynamic' depends on the length of the sequence: give `length`"
    ):
        posenc.patch(made)
    assert posenc.patch(made, length=4096).replaced
