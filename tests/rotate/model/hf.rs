//! Hugging Face's `config.json`.
//!
//! Sources of the values: A = config.json in ai-dynamo/aiconfigurator at 095f58a51c, L = litgpt 0.5.13, T = the class's
//! defaults in transformers 5.24.0, H = the model's page, P = params.json in vLLM 0.32.0 and mistral-common 1.13.1,
//! M = mlx-lm 0.32.2.

use posenc::position::DualChunk;
use posenc::rotate::{Axes, Layer, QueryScale, Yarn};
use posenc::{ModelRope, Pairing, Rope, Scaling};
use serde_json::{Value, json};

use Pairing::{Half, Interleaved};

use super::{half, llama3, near, spec};

fn hf(config: Value) -> ModelRope {
    let text = config.to_string();
    ModelRope::from_hf(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn refused(config: Value) -> String {
    ModelRope::from_hf(&config.to_string()).unwrap_err().to_string()
}

#[track_caller]
fn one(config: Value) -> Layer {
    let model = hf(config);
    assert_eq!(model.kinds().len(), 1, "{}", model.describe());
    model.kinds()[0].clone()
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn plain_models_have_their_base_and_size() {
    for (config, rope, head, context) in [
        // Llama-1: 1e4, 2048, 128 (paper)
        (
            json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 2048}),
            half(128, 1e4),
            128,
            2048,
        ),
        // Llama-2 (L)
        (
            json!({"model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": null}),
            half(128, 1e4),
            128,
            4096,
        ),
        // CodeLlama (L)
        (
            json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 16384, "rope_theta": 1000000}),
            half(128, 1e6),
            128,
            16384,
        ),
        // Llama-3 (L)
        (
            json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 8192, "rope_theta": 500000.0}),
            half(128, 5e5),
            128,
            8192,
        ),
        // Llama-3.1, in the legacy form and in version 5's (A)
        (
            json!({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 500000.0,
                "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
            spec(128, 0, Half, 5e5, llama3(8.0, 4.0)),
            128,
            131072,
        ),
        (
            json!({"model_type": "llama", "head_dim": 128, "max_position_embeddings": 131072,
                "rope_parameters": {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
            spec(128, 0, Half, 5e5, llama3(8.0, 4.0)),
            128,
            131072,
        ),
        // Llama-3.2 1B and 3B (L)
        (
            json!({"model_type": "llama", "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0,
                "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
            spec(64, 0, Half, 5e5, llama3(32.0, 4.0)),
            64,
            131072,
        ),
        // Mistral-7B v0.1, v0.2 (L); Mixtral 8x7B, 8x22B (A); Mistral-Small-3.1 (T)
        (
            json!({"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096, "rope_theta": 10000.0}),
            half(128, 1e4),
            128,
            4096,
        ),
        (
            json!({"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 32768, "rope_theta": 1e6}),
            half(128, 1e6),
            128,
            32768,
        ),
        (
            json!({"model_type": "mixtral", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 32768, "rope_theta": 1000000.0}),
            half(128, 1e6),
            128,
            32768,
        ),
        (
            json!({"model_type": "mixtral", "hidden_size": 6144, "num_attention_heads": 48, "max_position_embeddings": 65536}),
            half(128, 1e6),
            128,
            65536,
        ),
        (
            json!({"model_type": "mistral3", "text_config": {"model_type": "mistral", "head_dim": 128, "hidden_size": 5120, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 1000000000.0}}),
            half(128, 1e9),
            128,
            131072,
        ),
        // Qwen2.5 0.5B, 7B, Math (L), Qwen3 (A), Qwen3-Coder-480B (A)
        (
            json!({"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "max_position_embeddings": 32768, "rope_theta": 1000000.0}),
            half(64, 1e6),
            64,
            32768,
        ),
        (
            json!({"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "max_position_embeddings": 131072, "rope_theta": 1000000.0}),
            half(128, 1e6),
            128,
            131072,
        ),
        (
            json!({"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "max_position_embeddings": 4096, "rope_theta": 10000}),
            half(128, 1e4),
            128,
            4096,
        ),
        (
            json!({"model_type": "qwen3", "head_dim": 128, "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 40960, "rope_theta": 1000000, "rope_scaling": null}),
            half(128, 1e6),
            128,
            40960,
        ),
        (
            json!({"model_type": "qwen3_moe", "head_dim": 128, "max_position_embeddings": 262144, "rope_theta": 10000000}),
            half(128, 1e7),
            128,
            262144,
        ),
        // Gemma 1 and 2 (L)
        (
            json!({"model_type": "gemma2", "head_dim": 256, "hidden_size": 2304, "num_attention_heads": 8, "max_position_embeddings": 8192}),
            half(256, 1e4),
            256,
            8192,
        ),
        // Phi-1.5, Phi-2, Phi-3-mini-4k, Phi-4 (L)
        (
            json!({"model_type": "phi", "hidden_size": 2048, "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5}),
            half(32, 1e4),
            64,
            2048,
        ),
        (
            json!({"model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4}),
            half(32, 1e4),
            80,
            2048,
        ),
        (
            json!({"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "max_position_embeddings": 4096, "rope_scaling": null}),
            half(96, 1e4),
            96,
            4096,
        ),
        (
            json!({"model_type": "phi3", "hidden_size": 5120, "num_attention_heads": 40, "max_position_embeddings": 16384, "rope_theta": 250000}),
            half(128, 250_000.0),
            128,
            16384,
        ),
        // GLM-4-9B (T, H), where the class knows the half
        (
            json!({"model_type": "glm", "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 10000.0}),
            spec(64, 0, Interleaved, 1e4, Scaling::None),
            128,
            32768,
        ),
        // GPT-NeoX-20B, Pythia-70m, where the class knows the quarter (T, L)
        (
            json!({"model_type": "gpt_neox", "hidden_size": 6144, "num_attention_heads": 64, "max_position_embeddings": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25}),
            half(24, 1e4),
            96,
            2048,
        ),
        (
            json!({"model_type": "gpt_neox", "hidden_size": 512, "num_attention_heads": 8, "max_position_embeddings": 2048}),
            half(16, 1e4),
            64,
            2048,
        ),
        // GPT-J-6B (T)
        (
            json!({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64}),
            spec(64, 0, Interleaved, 1e4, Scaling::None),
            256,
            2048,
        ),
        // Falcon-7B, Falcon3 (L)
        (
            json!({"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "max_position_embeddings": 2048, "alibi": false}),
            half(64, 1e4),
            64,
            2048,
        ),
        (
            json!({"model_type": "llama", "head_dim": 256, "max_position_embeddings": 32768, "rope_theta": 1000042}),
            half(256, 1_000_042.0),
            256,
            32768,
        ),
        // Baichuan2-7B (H)
        (
            json!({"model_type": "baichuan", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "max_position_embeddings": 4096}),
            half(128, 1e4),
            128,
            4096,
        ),
        // StableLM-2 (L, T)
        (
            json!({"model_type": "stablelm", "hidden_size": 2048, "num_attention_heads": 32, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25}),
            half(16, 1e4),
            64,
            4096,
        ),
        // Yi-34B, InternLM2-20B (H)
        (
            json!({"model_type": "llama", "hidden_size": 7168, "num_attention_heads": 56, "max_position_embeddings": 4096, "rope_theta": 5000000.0}),
            half(128, 5e6),
            128,
            4096,
        ),
        (
            json!({"model_type": "internlm2", "hidden_size": 6144, "num_attention_heads": 48, "max_position_embeddings": 32768, "rope_theta": 1000000, "rope_scaling": null}),
            half(128, 1e6),
            128,
            32768,
        ),
        // Command-R v01 (M)
        (
            json!({"model_type": "cohere", "hidden_size": 8192, "num_attention_heads": 64, "rope_theta": 8000000.0, "max_position_embeddings": 8192}),
            spec(128, 0, Interleaved, 8e6, Scaling::None),
            128,
            8192,
        ),
        // Granite-3.3-8B (H)
        (
            json!({"model_type": "granite", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 10000000.0}),
            half(128, 1e7),
            128,
            131072,
        ),
        // MiniMax-M2.5 (A); M3, which has the share as well
        (
            json!({"model_type": "minimax_m2", "head_dim": 128, "max_position_embeddings": 196608, "rope_theta": 5000000, "rotary_dim": 64}),
            half(64, 5e6),
            128,
            196608,
        ),
        (
            json!({"model_type": "minimax_m3_vl", "text_config": {"model_type": "minimax_m3_vl_text", "head_dim": 128, "max_position_embeddings": 1048576, "rope_theta": 5000000, "rotary_dim": 64, "partial_rotary_factor": 0.5}}),
            half(64, 5e6),
            128,
            1048576,
        ),
        // OLMo-2 (L), SmolLM2 (L), MiMo-7B (A)
        (
            json!({"model_type": "olmo2", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096, "rope_theta": 500000}),
            half(128, 5e5),
            128,
            4096,
        ),
        (
            json!({"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "max_position_embeddings": 8192, "rope_theta": 130000}),
            half(64, 130_000.0),
            64,
            8192,
        ),
        (
            json!({"model_type": "mimo", "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 640000, "use_mrope": false}),
            half(128, 640_000.0),
            128,
            32768,
        ),
        // Apertus, CWM (T)
        (
            json!({"model_type": "apertus", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 65536, "rope_theta": 12000000.0,
                "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
            spec(128, 0, Half, 12e6, llama3(8.0, 4.0)),
            128,
            65536,
        ),
        (
            json!({"model_type": "cwm", "head_dim": 128, "max_position_embeddings": 131072,
                "rope_scaling": {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}),
            spec(128, 0, Half, 1e6, llama3(16.0, 4.0)),
            128,
            131072,
        ),
        // ChatGLM's rope_ratio: GLM-4-9B-chat (H)
        (
            json!({"model_type": "chatglm", "hidden_size": 4096, "num_attention_heads": 32, "kv_channels": 128, "seq_length": 131072, "rope_ratio": 500}),
            spec(64, 0, Interleaved, 5e6, Scaling::None),
            128,
            131072,
        ),
    ] {
        let model = hf(config.clone());
        assert_eq!(model.rope().unwrap(), &rope, "{config}");
        assert_eq!((model.kinds()[0].head, model.context()), (head, Some(context)), "{config}");
        let scales = (model.kinds()[0].logit_scale, model.kinds()[0].query_scale);
        assert_eq!(scales, (1.0, QueryScale::One), "{config}");
    }
}

fn mla(theta: f64, model_type: &str, scaling: Value) -> Value {
    json!({"model_type": model_type, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "head_dim": 192, "rope_theta": theta,
           "num_attention_heads": 128, "hidden_size": 7168, "max_position_embeddings": 163840, "rope_scaling": scaling})
}

#[test]
fn latent_attention_rotates_64_channels_and_scales_logits() {
    let yarn = |factor: f64, fast: f64, mscale: f64| {
        json!({"type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale,
               "original_max_position_embeddings": 4096})
    };
    for (config, base, want, logit) in [
        // DeepSeek-V2 (H), V3 (A), Kimi-K2 and K2.5 (A)
        (mla(1e4, "deepseek_v2", yarn(40.0, 32.0, 0.707)), 1e4, Yarn::new(40.0, 4096.0), 1.589626),
        (mla(1e4, "deepseek_v3", yarn(40.0, 32.0, 1.0)), 1e4, Yarn::new(40.0, 4096.0), 1.873854),
        (mla(1e4, "deepseek_v32", yarn(40.0, 32.0, 1.0)), 1e4, Yarn::new(40.0, 4096.0), 1.873854),
        (mla(5e4, "kimi_k2", yarn(32.0, 1.0, 1.0)), 5e4, Yarn { beta_fast: 1.0, ..Yarn::new(32.0, 4096.0) }, 1.813260),
        (
            json!({"model_type": "kimi_k25", "text_config": mla(5e4, "kimi_k2", yarn(64.0, 32.0, 1.0))}),
            5e4,
            Yarn::new(64.0, 4096.0),
            2.004740,
        ),
    ] {
        let layer = one(config);
        assert_eq!(layer.rope, Some(spec(64, 128, Interleaved, base, Scaling::Yarn(want))));
        assert_eq!(layer.head, 192);
        near(layer.logit_scale, logit);
    }
    // GLM-5.1 and 5.2 (A): no scaling; 5.2's head_dim of 192 is not the rotary size.
    for theta in [1e6, 8e6] {
        let layer = one(
            json!({"model_type": "glm_moe_dsa", "head_dim": 192, "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "rope_interleave": true,
            "indexer_rope_interleave": true, "max_position_embeddings": 202752, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}),
        );
        assert_eq!((layer.rope, layer.logit_scale), (Some(spec(64, 192, Interleaved, theta, Scaling::None)), 1.0));
    }
    // The flag decides where the class reads it.
    let mut config = mla(1e4, "deepseek_v3", json!(null));
    config["rope_interleave"] = json!(false);
    assert_eq!(one(config).rope, Some(spec(64, 128, Half, 1e4, Scaling::None)));
    // Mistral-4 (T): MLA's factor as in transformers since July 2026, and the temperature.
    let layer = one(
        json!({"model_type": "mistral4", "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "max_position_embeddings": 1048576,
        "rope_parameters": {"type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192,
            "max_position_embeddings": 1048576, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
            "llama_4_scaling_beta": 0.1, "partial_rotary_factor": 0.5}}),
    );
    assert_eq!(layer.rope, Some(spec(64, 64, Interleaved, 1e4, Scaling::Yarn(Yarn::new(128.0, 8192.0)))));
    near(layer.logit_scale, 2.205828);
    assert_eq!(layer.query_scale, QueryScale::Mistral { beta: 0.1, original_context: 8192.0 });
}

#[test]
fn deepseek_v4_rotates_the_tail_by_two_bases() {
    // (A): 43 layers and one more for multi-token prediction
    let ratios: Vec<usize> =
        [0, 0].into_iter().chain((2..43).map(|layer| if layer % 2 == 0 { 4 } else { 128 })).chain([0]).collect();
    let model = hf(
        json!({"model_type": "deepseek_v4", "head_dim": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 43, "rope_theta": 10000,
        "compress_rope_theta": 160000, "compress_ratios": ratios, "max_position_embeddings": 1048576,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536, "type": "yarn"}}),
    );
    let main = spec(64, 448, Interleaved, 1e4, Scaling::None);
    let compress = spec(64, 448, Interleaved, 160_000.0, Scaling::Yarn(Yarn::new(16.0, 65536.0)));
    assert_eq!(model.layer(1).unwrap().rope, Some(main));
    for layer in 2..43 {
        assert_eq!(model.layer(layer).unwrap().rope, Some(compress.clone()));
        assert_eq!(model.layer(layer).unwrap().logit_scale, 1.0);
    }
    assert_eq!(
        model.rope().unwrap_err().to_string(),
        "the layers of deepseek_v4 differ (main, compress); ask ModelRope::layer for each"
    );
}

#[test]
fn yarn_models_have_their_factor_on_cos_and_sin() {
    // GPT-OSS (A)
    let layer = one(
        json!({"model_type": "gpt_oss", "head_dim": 64, "initial_context_length": 4096, "max_position_embeddings": 131072, "rope_theta": 150000,
        "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false}}),
    );
    let rope = layer.rope.unwrap();
    assert_eq!(rope.scaling, Scaling::Yarn(Yarn { truncate: false, ..Yarn::new(32.0, 4096.0) }));
    near(rope.attention_factor, 1.346573590);
    // Qwen2.5 with the scaling of its README (L)
    let layer =
        one(json!({"model_type": "qwen2", "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}));
    near(layer.rope.unwrap().attention_factor, 1.138629436);
    // Ministral-3 (T): equal mscales leave cos and sin alone, and there is no latent attention whose logits they would scale.
    let layer = one(json!({"model_type": "ministral3", "head_dim": 128, "max_position_embeddings": 262144,
        "rope_parameters": {"type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384, "max_position_embeddings": 262144,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}}));
    let rope = layer.rope.unwrap();
    assert_eq!((rope.attention_factor, layer.logit_scale), (1.0, 1.0));
    assert_eq!(rope.scaling, Scaling::Yarn(Yarn::new(16.0, 16384.0)));
    assert_eq!(layer.query_scale, QueryScale::Mistral { beta: 0.1, original_context: 16384.0 });
    // A factor of null is max_position_embeddings over the original context.
    let layer = one(json!({"model_type": "llama", "head_dim": 128, "max_position_embeddings": 65536,
        "rope_scaling": {"type": "yarn", "factor": null, "original_max_position_embeddings": 4096}}));
    assert_eq!(layer.rope.unwrap().scaling, Scaling::Yarn(Yarn::new(16.0, 4096.0)));
}

#[test]
fn mistral_large_4_skips_every_fourth_layer() {
    // (T)
    let model = hf(
        json!({"model_type": "mistral_large4", "text_config": {"model_type": "mistral_large4_text", "num_hidden_layers": 8, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        "max_position_embeddings": 1048576, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2048.0, "original_max_position_embeddings": 512,
            "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0}}}),
    );
    let rotates: Vec<bool> = (0..8).map(|layer| model.layer(layer).unwrap().rope.is_some()).collect();
    assert_eq!(rotates, [true, true, true, false, true, true, true, false]);
    let rope = model.layer(0).unwrap().rope.clone().unwrap();
    assert_eq!((rope.attention_factor, rope.scaling), (1.0, Scaling::Yarn(Yarn::new(2048.0, 512.0))));
}

#[test]
fn layers_without_rope_are_found() {
    // Llama-4 Scout (A) says nothing of its layers: every fourth has no RoPE, and a temperature instead.
    let scout = hf(
        json!({"model_type": "llama4", "text_config": {"model_type": "llama4_text", "head_dim": 128, "num_hidden_layers": 48,
        "max_position_embeddings": 10485760, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}}),
    );
    for layer in 0..48 {
        let layer_is = scout.layer(layer).unwrap();
        if layer % 4 == 3 {
            assert_eq!(layer_is.rope, None);
            assert_eq!(layer_is.query_scale, QueryScale::Llama4 { scale: 0.1, floor: 8192.0 });
        } else {
            assert_eq!(layer_is.rope, Some(spec(128, 0, Interleaved, 5e5, llama3(16.0, 1.0))));
            assert_eq!(layer_is.query_scale, QueryScale::One);
        }
    }
    // Llama-4 Maverick (A): no scaling. 1 in no_rope_layers means RoPE.
    let maverick = hf(
        json!({"model_type": "llama4_text", "head_dim": 128, "num_hidden_layers": 2, "max_position_embeddings": 1048576, "rope_theta": 500000.0,
        "no_rope_layers": [1, 0], "attn_temperature_tuning": false}),
    );
    assert_eq!(maverick.layer(0).unwrap().rope, Some(spec(128, 0, Interleaved, 5e5, Scaling::None)));
    assert_eq!((&maverick.layer(1).unwrap().rope, maverick.layer(1).unwrap().query_scale), (&None, QueryScale::One));
    // SmolLM3 (T)
    let smol =
        hf(json!({"model_type": "smollm3", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 36}));
    assert_eq!(
        (0..36).filter(|&layer| smol.layer(layer).unwrap().rope.is_none()).collect::<Vec<_>>(),
        [3, 7, 11, 15, 19, 23, 27, 31, 35]
    );
    assert_eq!(smol.layer(0).unwrap().rope, Some(half(128, 2e6)));
    // Cohere2 (T): layers that see everything have no RoPE; Command-R7B's base (M)
    let cohere = hf(
        json!({"model_type": "cohere2", "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "num_hidden_layers": 8, "sliding_window": 4096, "rope_theta": 50000}),
    );
    assert_eq!(cohere.layer(0).unwrap().rope, Some(spec(128, 0, Interleaved, 5e4, Scaling::None)));
    assert_eq!(
        (3..8).map(|layer| cohere.layer(layer).unwrap().rope.is_none()).collect::<Vec<_>>(),
        [true, false, false, false, true]
    );
    // Qwen3-Next, a quarter of the head (T): every fourth layer attends.
    let next = hf(json!({"model_type": "qwen3_next", "head_dim": 256, "num_hidden_layers": 8, "rope_theta": 10000000}));
    assert_eq!((0..8).filter(|&layer| next.layer(layer).unwrap().rope.is_some()).collect::<Vec<_>>(), [3, 7]);
    assert_eq!(next.layer(3).unwrap().rope, Some(half(64, 1e7)));
    // granite_swa: a base for each layer, 0 for none
    let granite = hf(
        json!({"model_type": "granite_swa", "head_dim": 128, "num_hidden_layers": 3, "rope_theta": 10000.0, "layer_rope_theta": [0, 10000, 1000000]}),
    );
    let bases: Vec<_> = (0..3).map(|layer| granite.layer(layer).unwrap().rope.as_ref().map(|rope| rope.base)).collect();
    assert_eq!(bases, [None, Some(1e4), Some(1e6)]);
}

#[test]
fn models_of_other_encodings_have_no_rope() {
    for (config, carrier) in [
        (json!({"model_type": "falcon", "hidden_size": 2048, "num_attention_heads": 32, "alibi": true}), "ALiBi"), // Falcon-rw (T)
        (
            json!({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "attn_config": {"alibi": true, "alibi_bias_max": 8}}),
            "ALiBi",
        ), // (T)
        (json!({"model_type": "bloom", "hidden_size": 4096, "n_head": 32}), "ALiBi"),
        (
            json!({"model_type": "baichuan", "hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40, "model_max_length": 4096}),
            "ALiBi",
        ), // Baichuan2-13B (H)
        (
            json!({"model_type": "t5", "d_model": 512, "num_heads": 8, "relative_attention_num_buckets": 32}),
            "T5's buckets of distance",
        ),
    ] {
        let model = hf(config);
        assert_eq!(model.kinds()[0].rope, None);
        assert!(model.describe().contains(&format!("note: position comes from {carrier}")), "{}", model.describe());
        assert_eq!(model.rope().unwrap_err().to_string(), format!("{} has no RoPE", model.name()));
    }
}

/// Where `head_dim` is absent, the class has a number, or divides: 3840 channels and 16 heads are Gemma 3's 12B.
#[test]
fn a_head_that_the_config_does_not_give_is_the_classs() {
    for (model_type, head) in [
        ("llama", 240),
        ("mistral", 240),
        ("qwen2", 240),
        ("qwen3_moe", 240),
        ("qwen3", 128),
        ("glm4", 128),
        ("helium", 128),
        ("gpt_oss", 64),
        ("gemma", 256),
        ("gemma2", 256),
        ("gemma3_text", 256),
        ("gemma3n_text", 256),
    ] {
        let layer = hf(
            json!({"model_type": model_type, "hidden_size": 3840, "num_attention_heads": 16, "num_hidden_layers": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
        )
        .layer(5)
        .unwrap()
        .clone();
        assert_eq!(layer.head, head, "{model_type}");
        let share = if model_type == "glm4" { 2 } else { 1 };
        assert_eq!(layer.rope.unwrap().rotary, head / share, "{model_type}");
    }
    // Gemma 3's 4B says nothing of its heads.
    let layer = hf(
        json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}),
    );
    assert_eq!(layer.layer(5).unwrap().rope, Some(spec(256, 0, Half, 1e6, Scaling::Linear { factor: 8.0 })));
}

#[test]
fn windows_have_a_base_of_their_own() {
    // Gemma-3-4B (L): linear by 8 in the full layers only
    let gemma3 = hf(
        json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "head_dim": 256, "num_hidden_layers": 34, "max_position_embeddings": 131072,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}),
    );
    for layer in 0..34 {
        let want =
            if layer % 6 == 5 { spec(256, 0, Half, 1e6, Scaling::Linear { factor: 8.0 }) } else { half(256, 1e4) };
        assert_eq!(gemma3.layer(layer).unwrap().rope, Some(want), "layer {layer}");
    }
    // Gemma-3-1B (L), in version 5's form
    let gemma3 = hf(
        json!({"model_type": "gemma3_text", "head_dim": 256, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    );
    assert_eq!(gemma3.layer(0).unwrap().rope, Some(half(256, 1e4)));
    assert_eq!(gemma3.layer(1).unwrap().rope, Some(half(256, 1e6)));
    // Gemma-4 (A): full layers have heads of 512 of which 64 pairs turn
    let gemma4 = hf(
        json!({"model_type": "gemma4", "text_config": {"model_type": "gemma4_text", "head_dim": 256, "global_head_dim": 512, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 262144,
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
                            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}}}),
    );
    assert_eq!((gemma4.layer(0).unwrap().head, &gemma4.layer(0).unwrap().rope), (256, &Some(half(256, 1e4))));
    let full = spec(512, 0, Half, 1e6, Scaling::Proportional { rotated: 64, factor: 1.0 });
    assert_eq!((gemma4.layer(1).unwrap().head, &gemma4.layer(1).unwrap().rope), (512, &Some(full.clone())));
    // The class's own head sizes, and its last layer, which is full (T); without parameters it scales as no key says.
    let silent = json!({"model_type": "gemma4_text", "hidden_size": 3840, "num_attention_heads": 16, "num_hidden_layers": 7,
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
                            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}});
    let gemma4 = hf(silent.clone());
    let ropes: Vec<_> = (0..7).map(|layer| gemma4.layer(layer).unwrap().rope.clone().unwrap()).collect();
    let local = half(256, 1e4);
    assert_eq!(ropes, [&local, &local, &local, &local, &local, &full, &full].map(Clone::clone));
    let mut silent = silent;
    silent["rope_parameters"] = json!(null);
    assert_eq!(
        refused(silent),
        "rope_parameters is missing; the class of model_type \"gemma4_text\" scales by default, so the config must say how"
    );
    // MiMo-V2-Flash (A): 0.334 of 192 channels is 64.128, 64 are rotated
    let mimo = hf(
        json!({"model_type": "mimo_v2_flash", "head_dim": 192, "num_hidden_layers": 7, "rope_theta": 5000000, "swa_rope_theta": 10000, "partial_rotary_factor": 0.334,
        "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1], "max_position_embeddings": 262144}),
    );
    for (layer, base) in [(0, 5e6), (1, 1e4), (4, 1e4), (5, 5e6), (6, 1e4)] {
        assert_eq!(mimo.layer(layer).unwrap().rope, Some(half(64, base)));
    }
    // ModernBERT (T)
    let modern = hf(
        json!({"model_type": "modernbert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 6, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}),
    );
    for (layer, base) in [(0, 160_000.0), (1, 1e4), (2, 1e4), (3, 160_000.0)] {
        assert_eq!(modern.layer(layer).unwrap().rope, Some(half(64, base)));
    }
    // An entry that is null is a kind without RoPE (T, Beam's form).
    let null = hf(
        json!({"model_type": "llama", "head_dim": 128, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": null}}),
    );
    assert_eq!((null.layer(0).unwrap().rope.is_some(), null.layer(1).unwrap().rope.is_some()), (true, false));
}

#[test]
fn several_axes_come_with_their_sections() {
    let sections = |axes: Axes, rotary: usize, base: f64| Some(Rope { axes, ..half(rotary, base) });
    // Qwen2-VL as published, flat, and Qwen2.5-VL (T)
    let layer = one(
        json!({"model_type": "qwen2_vl", "hidden_size": 3584, "num_attention_heads": 28, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
    );
    assert_eq!(layer.rope, sections(Axes::Sections(vec![16, 24, 24]), 128, 1e6));
    let layer = one(json!({"model_type": "qwen2_5_vl_text", "hidden_size": 3584, "num_attention_heads": 28}));
    assert_eq!(layer.rope, sections(Axes::Sections(vec![16, 24, 24]), 128, 1e6));
    // Qwen3-VL (A), which leaves the sections to the class
    let layer = one(
        json!({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "head_dim": 128, "rope_theta": 5000000, "max_position_embeddings": 262144}}),
    );
    assert_eq!(layer.rope, sections(Axes::Interleaved(vec![24, 20, 20]), 128, 5e6));
    // A key of another model's that is null.
    let nested = one(
        json!({"model_type": "x", "text_config": null, "llm_config": {"model_type": "qwen3_vl_text", "head_dim": 128, "rope_theta": 5e6}}),
    );
    assert_eq!(nested.rope, layer.rope);
    // Qwen3.5 (A)
    let model = hf(
        json!({"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text", "head_dim": 256, "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25}}}),
    );
    assert_eq!(model.layer(3).unwrap().rope, sections(Axes::Interleaved(vec![11, 11, 10]), 64, 1e7));
    assert_eq!(model.layer(2).unwrap().rope, None);
    // HunyuanOCR's four axes, on a fixed base (the authors' code; transformers 5.23 is another, see the page)
    for (kind, key) in [("xdrope", "xdrope_section"), ("ntk_alpha", "mrope_section")] {
        let layer = one(
            json!({"model_type": "hunyuan_vl", "attention_head_dim": 128, "rope_theta": 10000.0, "max_position_embeddings": 32768,
            "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": kind, key: [16, 16, 16, 16]}}),
        );
        let want =
            Rope { axes: Axes::Sections(vec![16; 4]), ..spec(128, 0, Half, 1e4, Scaling::NtkStatic { alpha: 1000.0 }) };
        assert_eq!(layer.rope, Some(want));
    }
    // ERNIE 4.5-VL lists height, width, time
    let layer = one(
        json!({"model_type": "ernie4_5_vl_moe_text", "head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [22, 22, 20]}}),
    );
    let rope = layer.rope.unwrap();
    assert_eq!((rope.axes, rope.pairing), (Axes::HeightWidthFirst([20, 22, 22]), Interleaved));
}

/// Phi-3-mini-128k's shape (H): the April revision calls it "su", later ones "longrope"; the length decides the list.
#[test]
fn longrope_waits_for_a_length() {
    let config = |kind: &str, longest: usize| {
        json!({"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "max_position_embeddings": longest, "original_max_position_embeddings": 4096,
               "rope_theta": 10000.0, "rope_scaling": {"type": kind, "short_factor": vec![1.05; 48], "long_factor": vec![1.07; 48]}})
    };
    for kind in ["su", "longrope", "yarn"] {
        let model = hf(config(kind, 131072));
        let rope = model.rope().unwrap();
        near(rope.attention_factor, 1.19023807);
        assert_eq!(
            rope.check().unwrap_err().to_string(),
            "the LongRoPE scaling depends on the length of the sequence, which at_length must set first"
        );
        let short = model.at_length(4096);
        let long = model.at_length(4097);
        near(short.rope().unwrap().frequency(0), 1.0 / 1.05);
        near(long.rope().unwrap().frequency(0), 1.0 / 1.07);
    }
    // PhiMoE has a factor on cos and sin for each list.
    let model = hf(
        json!({"model_type": "phimoe", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 64], "long_factor": vec![2.0; 64], "short_mscale": 1.25, "long_mscale": 1.243163121016122,
                         "original_max_position_embeddings": 4096}}),
    );
    assert_eq!(model.at_length(100).rope().unwrap().attention_factor, 1.25);
    assert_eq!(model.at_length(5000).rope().unwrap().attention_factor, 1.243163121016122);
    // Phi-4-mini (L): three quarters of the head
    let model = hf(
        json!({"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.0; 48]}}),
    );
    assert_eq!((model.kinds()[0].head, model.rope().unwrap().rotary), (128, 96));
}

#[test]
fn dynamic_models_wait_for_a_length_unless_their_base_is_fixed() {
    // InternLM2-chat-7b-sft and chat-20b (H)
    for factor in [2.0, 3.0] {
        let model = hf(
            json!({"model_type": "internlm2", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 32768, "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": factor}}),
        );
        assert_eq!(model.rope().unwrap().scaling, Scaling::DynamicNtk { factor, context: 32768.0, length: None });
        model.at_length(65536).rope().unwrap().check().unwrap();
    }
    // Hunyuan: alpha fixes it.
    let layer = one(
        json!({"model_type": "hunyuan_v1_dense", "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 10000.0,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"}}),
    );
    assert_eq!(layer.rope.unwrap().scaling, Scaling::NtkStatic { alpha: 1000.0 });
}

/// Qwen-7B-Chat and Qwen-7B as published (authors' code: NTK by steps of the length, log-n).
#[test]
fn qwen_1_steps_its_base_with_the_length() {
    let qwen = |more: Value| {
        let mut config = json!({"model_type": "qwen", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "kv_channels": 128,
            "max_position_embeddings": 32768, "rotary_emb_base": 10000, "rotary_pct": 1.0, "seq_length": 8192});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let layer = one(qwen(json!({"use_dynamic_ntk": true, "use_logn_attn": true})));
    assert_eq!(layer.rope, Some(spec(128, 0, Half, 1e4, Scaling::SteppedNtk { context: 8192.0, length: None })));
    assert_eq!(layer.query_scale, QueryScale::LogN { train_length: 8192.0 });
    let layer = one(qwen(json!({"use_dynamic_ntk": false, "use_logn_attn": false})));
    assert_eq!((layer.rope, layer.query_scale), (Some(half(128, 1e4)), QueryScale::One));
    assert_eq!(
        hf(qwen(json!({"use_dynamic_ntk": true}))).describe(),
        "qwen, 32 layers, 32768 positions\n\
         every layer (32 from layer 0): RoPE over all 128 channels in halves, base 10000; NTK by steps beyond 8192, the \
         length still to be given\n"
    );
}

/// karpathy/nanochat-d32 (T): its rotation has the opposite sign.
#[test]
fn nanochat_turns_backwards() {
    let model =
        hf(json!({"model_type": "nanochat", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 32,
        "max_position_embeddings": 2048, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}));
    let (rope, plain) = (model.rope().unwrap(), half(128, 1e4));
    for pair in 0..64 {
        assert_eq!(rope.frequency(pair), -plain.frequency(pair));
        assert_eq!(rope.rate(pair), plain.rate(pair).wrapping_neg());
        assert_eq!(rope.compat_frequency(pair), -plain.compat_frequency(pair));
    }
    assert!(model.describe().ends_with("RoPE over all 128 channels in halves, base 10000; backwards\n"));
    assert_eq!(
        refused(
            json!({"model_type": "nanochat", "head_dim": 128, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
        ),
        "rope_type is \"linear\", model_type \"nanochat\" has default alone"
    );
}

/// Keys of published files that change nothing, or stand where one does not look.
#[test]
fn published_files_are_read_whole() {
    for (config, rope) in [
        // DBRX-instruct: theta in attn_config, which transformers 5.23 does not read any more
        (
            json!({"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "max_seq_len": 32768, "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000}}),
            half(128, 5e5),
        ),
        // GPT-J-6B
        (
            json!({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_positions": 2048, "rotary": true, "rotary_dim": 64}),
            spec(64, 0, Interleaved, 1e4, Scaling::None),
        ),
        // GLM-4-9B-chat-1M
        (
            json!({"model_type": "chatglm", "hidden_size": 4096, "kv_channels": 128, "num_attention_heads": 32, "num_layers": 40, "original_rope": true, "rope_ratio": 10000, "seq_length": 1048576}),
            spec(64, 0, Interleaved, 1e8, Scaling::None),
        ),
        // OpenELM-1.1B
        (
            json!({"model_type": "openelm", "head_dim": 64, "model_dim": 2048, "num_transformer_layers": 28, "max_context_length": 2048, "rope_freq_constant": 10000, "rope_max_length": 4096}),
            half(64, 1e4),
        ),
        // nomic-embed-text-v1.5, in both forms at once
        (
            json!({"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 8192, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false, "rotary_emb_scale_base": null, "rotary_scaling_factor": null,
                "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}),
            half(64, 1e3),
        ),
        // Bamba-9B: three of 32 layers attend
        (
            json!({"model_type": "bamba", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "attn_layer_indices": [9, 18, 27], "attn_rotary_emb": 64, "rope_theta": 10000.0}),
            half(64, 1e4),
        ),
        // RecurrentGemma-2B: every third layer attends
        (
            json!({"model_type": "recurrent_gemma", "hidden_size": 2560, "head_dim": 256, "num_attention_heads": 10, "num_hidden_layers": 26, "block_types": ["recurrent", "recurrent", "attention"], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}),
            half(128, 1e4),
        ),
        // ESM-2
        (
            json!({"model_type": "esm", "hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 33, "position_embedding_type": "rotary"}),
            half(64, 1e4),
        ),
        // Hunyuan 7B in version 5's form
        (
            json!({"model_type": "hunyuan_v1_dense", "head_dim": 128, "rope_parameters": {"rope_type": "ntk_alpha", "rope_theta": 10000.0, "alpha": 1000.0}}),
            spec(128, 0, Half, 1e4, Scaling::NtkStatic { alpha: 1000.0 }),
        ),
    ] {
        let model = hf(config.clone());
        let rotating: Vec<_> = model.kinds().iter().filter_map(|kind| kind.rope.clone()).collect();
        assert_eq!(rotating, [rope], "{config}");
    }
    let layers = |config: Value| {
        let model = hf(config);
        (0..model.layers().unwrap()).filter(|&layer| model.layer(layer).unwrap().rope.is_some()).collect::<Vec<_>>()
    };
    let bamba =
        json!({"model_type": "bamba", "head_dim": 128, "num_hidden_layers": 32, "attn_layer_indices": [9, 18, 27]});
    assert_eq!(layers(bamba), [9, 18, 27]);
    let gemma = json!({"model_type": "recurrent_gemma", "head_dim": 256, "num_hidden_layers": 8, "block_types": ["recurrent", "recurrent", "attention"]});
    assert_eq!(layers(gemma), [2, 5]);
    // Granite 4.0-H says "nope", ESM-1b "absolute".
    for (config, carrier) in [
        (
            json!({"model_type": "granitemoehybrid", "hidden_size": 1536, "num_attention_heads": 12, "position_embedding_type": "nope", "rope_theta": 10000}),
            "nothing: order comes from the recurrent layers",
        ),
        (
            json!({"model_type": "esm", "hidden_size": 1280, "num_attention_heads": 20, "position_embedding_type": "absolute"}),
            "a learned table",
        ),
    ] {
        assert!(hf(config).describe().contains(&format!("note: position comes from {carrier}")));
    }
}

/// Vision towers, read from their own config (T): rows and columns share the pairs.
#[test]
fn vision_towers_have_a_grid() {
    for (config, rope) in [
        // Qwen2-VL-7B, whose hidden_size is the language model's, and Qwen2.5-VL
        (
            json!({"model_type": "qwen2_vl_vision", "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "depth": 32}),
            Rope { axes: Axes::Ladders(vec![20, 20]), ..half(80, 1e4) },
        ),
        (
            json!({"model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "num_heads": 16, "depth": 32}),
            Rope { axes: Axes::Ladders(vec![20, 20]), ..half(80, 1e4) },
        ),
        // Pixtral-12B
        (
            json!({"model_type": "pixtral", "hidden_size": 1024, "head_dim": 64, "num_attention_heads": 16, "num_hidden_layers": 24, "rope_theta": 10000.0}),
            Rope { axes: Axes::Dealt(2), ..half(64, 1e4) },
        ),
        // Gemma 4
        (
            json!({"model_type": "gemma4_vision", "hidden_size": 1152, "head_dim": 72, "num_attention_heads": 16, "num_hidden_layers": 27,
                "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}),
            Rope { axes: Axes::Blocks(2), ..half(72, 100.0) },
        ),
    ] {
        let layer = one(config.clone());
        assert_eq!(layer.rope, Some(rope), "{config}");
    }
}

#[test]
fn dual_chunk_comes_with_its_sizes() {
    // Qwen2.5-7B-Instruct-1M (L; sizes from vLLM 0.32.0)
    let layer = one(
        json!({"model_type": "qwen2", "head_dim": 128, "max_position_embeddings": 1010000, "rope_theta": 10000000.0,
        "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}}),
    );
    assert_eq!(layer.dual_chunk, Some(DualChunk { chunk: 262_144, local: 8192 }));
    assert_eq!(layer.rope, Some(half(128, 1e7)));
    assert_eq!(
        refused(llama(json!({"dual_chunk_attention_config": {"chunk_size": 8192}}))),
        "local_size is missing, dual_chunk_attention_config needs it"
    );
    assert_eq!(
        refused(llama(json!({"dual_chunk_attention_config": {"chunk_size": 8192, "local_size": 8192}}))),
        "Dual Chunk's local is 8192 and its chunk 8192, local must be at least 0 and below the chunk"
    );
}

#[test]
fn keys_that_a_type_does_not_use_are_noted() {
    let model = hf(
        json!({"model_type": "llama", "head_dim": 128, "rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}),
    );
    assert_eq!(
        model.describe(),
        "llama\nevery layer: RoPE over all 128 channels in halves, base 10000; linear by 2\n\
         note: rope_scaling.beta_fast means nothing to rope_type \"linear\"\n"
    );
}

#[test]
fn an_unknown_type_is_read_as_a_known_one() {
    let config = json!({"model_type": "brand_new", "head_dim": 128, "rope_theta": 77000.0}).to_string();
    assert_eq!(
        ModelRope::from_hf(&config).unwrap_err().to_string(),
        "model_type is \"brand_new\", which this crate does not know; ModelRope::from_hf_as reads it as a known one"
    );
    assert_eq!(ModelRope::from_hf_as(&config, "glm4_moe").unwrap().rope().unwrap(), &half(64, 77_000.0));
    assert_eq!(ModelRope::from_hf_as(&config, "gptj").unwrap().rope().unwrap().pairing, Interleaved);
}

/// The same fixture as the scalings', through the loader.
#[test]
fn the_loader_reads_the_golden_configs() {
    let golden: Value = serde_json::from_str(include_str!("../../golden/rope_scaling_hf.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let mut config = case["config"].clone();
        // A class in halves that reads a share of the head.
        config["model_type"] = json!("solar_open");
        let model = hf(config).at_length(case["seq_len"].as_u64().unwrap_or(0));
        let rope = model.rope().unwrap();
        near(rope.attention_factor, case["attention_factor"].as_f64().unwrap());
        let tolerance = match rope.scaling {
            Scaling::Yarn(_) | Scaling::Llama3 { .. } => 3e-6,
            _ => 1e-6,
        };
        for (pair, bits) in case["inv_freq_f32_bits"].as_array().unwrap().iter().enumerate() {
            let want = f64::from(f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()));
            let got = rope.frequency(pair);
            assert!((got - want).abs() <= tolerance * want, "{}, pair {pair}: {got:e}, {want:e}", case["name"]);
        }
    }
}

/// transformers 5.24.0 on every class with a RoPE: configs of sizes alone, with a legacy base or scaling, one drawn at random, and
/// with version 5's parameters written out. What its classes and the loader make of them must be the same in every layer that rotates: pairs,
/// frequencies, the factor on cos and sin, and which channels the model's own code rotates.
#[test]
fn defaults_are_those_of_the_classes_in_transformers() {
    let golden: Value = serde_json::from_str(include_str!("../../golden/rope_models_hf.json")).unwrap();
    let mut wrong = Vec::new();
    let mut unpaired = std::collections::BTreeSet::new();
    for case in golden["cases"].as_array().unwrap() {
        let config = case["config"].to_string();
        let model = match ModelRope::from_hf(&config) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{error}: {config}"));
                continue;
            }
        };
        let labels = case["layers"].as_array().unwrap();
        if !(0..labels.len()).any(|index| model.layer(index).unwrap().rope.is_some()) {
            wrong.push(format!("no layer rotates: {config}"));
        }
        for (index, label) in labels.iter().enumerate() {
            let Some(kind) = case["kinds"].get(label.as_str().unwrap()) else { continue };
            let Some(rope) = &model.layer(index).unwrap().rope else { continue };
            let rope = rope.at_length(1);
            let pairs = usize::try_from(kind["pairs"].as_u64().unwrap()).unwrap();
            if rope.pairs() != pairs {
                wrong.push(format!("layer {index}: {} pairs, not {pairs}: {config}", rope.pairs()));
                break;
            }
            // ERNIE's table lists the pairs in another order.
            let ordered = !config.contains("ernie4_5_vl");
            let backwards = (0..pairs).all(|pair| rope.frequency(pair) < 0.0);
            let pairing = match (rope.pairing, backwards) {
                (Half, false) => "half",
                (Half, true) => "half backwards",
                (Interleaved, _) => "interleaved",
            };
            if case["pairing"].is_null() {
                unpaired.insert(case["config"]["model_type"].as_str().unwrap());
            } else if case["pairing"] != json!(pairing) {
                wrong.push(format!("{pairing}, not {}: {config}", case["pairing"]));
                break;
            }
            let bits = kind["inv_freq_f32_bits"].as_array().unwrap();
            for (pair, bits) in [0, 1, pairs / 2, pairs - 1].into_iter().zip(bits).filter(|_| ordered) {
                let want = f64::from(f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()));
                if (rope.frequency(pair).abs() - want).abs() > 3e-6 * want {
                    wrong.push(format!(
                        "layer {index}, pair {pair}: {:e}, not {want:e}: {config}",
                        rope.frequency(pair)
                    ));
                    break;
                }
            }
            let factor = kind["attention_factor"].as_f64().unwrap();
            if (rope.attention_factor - factor).abs() > 1e-9 {
                wrong.push(format!("layer {index}: factor {}, not {factor}: {config}", rope.attention_factor));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    // Their rotation takes other arguments than the script's: read in their source.
    assert_eq!(unpaired.into_iter().collect::<Vec<_>>(), ["hunyuan_vl_text", "minimax_m3_vl_text"]);
}

// ------------------------------------------------------------------------------------------------------------ refusals

fn llama(more: Value) -> Value {
    let mut config = json!({"model_type": "llama", "head_dim": 128});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn configs_that_are_not_understood_are_refused() {
    for (config, message) in [
        (json!([1]), "the config is not a JSON object"),
        (llama(json!({"head_dim": 4194304})), "rotary is 4194304, it must be at most 65536"),
        (llama(json!({"head_dim": 4294967294u32})), "rotary is 4294967294, it must be at most 65536"),
        (llama(json!({"rope_theta": 1e-320})), "the frequency of pair 0 is NaN with base 1e-320, it must be finite"),
        (
            json!({"head_dim": 128}),
            "model_type is missing; it decides which channels form a pair (ModelRope::from_hf_as can name one)",
        ),
        (json!({"model_type": 7}), "model_type is 7, it must be a string"),
        (
            llama(json!({"rope_scaling": {"type": "cubic", "factor": 2.0}})),
            "rope_type is \"cubic\", this crate knows default, linear, dynamic, ntk, ntk_alpha, yarn, longrope, llama3 and proportional",
        ),
        (llama(json!({"rope_scaling": 3})), "rope_scaling is 3, it must be an object or null"),
        (llama(json!({"rope_scaling": {"type": "linear"}})), "factor is missing, rope_type \"linear\" needs it"),
        (llama(json!({"rope_scaling": {"type": "linear", "factor": "two"}})), "factor is \"two\", it must be a number"),
        (
            llama(json!({"rope_scaling": {"type": "linear", "factor": 0.25}})),
            "the linear scaling's factor is 0.25, it must be finite and at least 1",
        ),
        (llama(json!({"rope_theta": "1e6"})), "rope_theta is \"1e6\", it must be a number"),
        (llama(json!({"rope_theta": 0})), "base is 0, it must be finite and above 0"),
        (
            llama(json!({"rope_scaling": {"type": "linear", "factor": 2.0, "flavour": 1}})),
            "rope_scaling holds flavour, which this crate does not know",
        ),
        (
            llama(json!({"rope_flavour": 2})),
            "the config holds rope_flavour, which this crate does not know for model_type \"llama\"",
        ),
        // A key of another family is not passed over.
        (
            llama(json!({"swa_rope_theta": 10000})),
            "the config holds swa_rope_theta, which this crate does not know for model_type \"llama\"",
        ),
        (
            llama(json!({"alibi": true})),
            "the config holds alibi, which this crate does not know for model_type \"llama\"",
        ),
        (
            llama(json!({"rotary_pct": 0.5})),
            "the config holds rotary_pct, which this crate does not know for model_type \"llama\"",
        ),
        (
            llama(json!({"rope_interleave": true})),
            "the config holds rope_interleave, which this crate does not know for model_type \"llama\"",
        ),
        // Legacy and version-5 keys in conflict
        (
            llama(json!({"rope_theta": 10000, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}})),
            "rope_theta is 10000 and rope_parameters.rope_theta is 500000, they must be the same",
        ),
        (
            llama(
                json!({"rope_scaling": {"rope_type": "linear", "factor": 8}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
            ),
            "rope_scaling.factor is 8 and rope_parameters.factor is 4.0, they must be the same",
        ),
        (
            llama(
                json!({"rope_scaling": {"rope_type": "linear", "factor": 8}, "rope_parameters": {"rope_type": "default"}}),
            ),
            "rope_scaling says \"linear\" and rope_parameters \"default\", a config must have one of them",
        ),
        (
            llama(json!({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 8}})),
            "rope_scaling.rope_type is \"linear\" and rope_scaling.type is \"yarn\", they must be the same",
        ),
        (
            llama(
                json!({"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
            ),
            "partial_rotary_factor is 0.5 and rope_parameters.partial_rotary_factor is 0.25, they must be the same",
        ),
        (
            llama(
                json!({"original_max_position_embeddings": 4096, "max_position_embeddings": 8192, "rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8192}}),
            ),
            "original_max_position_embeddings is 4096 and rope_scaling.original_max_position_embeddings is 8192, they must be the same",
        ),
        (
            json!({"model_type": "gpt_neox", "head_dim": 64, "rope_theta": 10000, "rotary_emb_base": 20000}),
            "rotary_emb_base is 20000 and rope_theta is 10000, they must be the same",
        ),
        (
            json!({"model_type": "gpt_neox", "head_dim": 64, "rope_theta": 10000}),
            "rope_theta is 10000, model_type \"gpt_neox\" reads rotary_emb_base instead",
        ),
        (
            json!({"model_type": "gpt_oss", "head_dim": 64, "rope_theta": 150000, "rope_scaling": null}),
            "rope_parameters is missing; the class of model_type \"gpt_oss\" scales by default, so the config must say how",
        ),
        // Lengths that a scaling needs
        (
            llama(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})),
            "original_max_position_embeddings is missing, rope_type \"yarn\" needs it",
        ),
        (
            llama(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})),
            "max_position_embeddings is missing, rope_type \"dynamic\" needs it",
        ),
        (
            llama(
                json!({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
            ),
            "original_max_position_embeddings is missing, rope_type \"llama3\" needs it",
        ),
        (
            llama(
                json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 32, "original_max_position_embeddings": 4096}}),
            ),
            "the YaRN scaling's beta_fast is 1 and its beta_slow is 32, beta_fast must not be the smaller",
        ),
        // Lists
        (
            llama(
                json!({"max_position_embeddings": 8192, "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0], "original_max_position_embeddings": 4096}}),
            ),
            "short_factor holds 2 numbers, the rotary part has 64 pairs",
        ),
        (
            llama(
                json!({"max_position_embeddings": 8192, "rope_scaling": {"type": "longrope", "short_factor": "all", "original_max_position_embeddings": 4096}}),
            ),
            "short_factor is \"all\", it must be a list",
        ),
        (
            llama(
                json!({"max_position_embeddings": 8192, "rope_scaling": {"type": "longrope", "short_factor": [1.0, null], "original_max_position_embeddings": 4096}}),
            ),
            "short_factor holds null at 1, it must hold numbers",
        ),
        (
            json!({"model_type": "qwen2_vl", "head_dim": 128, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}),
            "mrope_section is [16, 24, 23] and sums to 63, the rotary part has 64 pairs",
        ),
        // Sizes
        (json!({"model_type": "mimo"}), "hidden_size is missing, a head size that head_dim does not give needs it"),
        (
            json!({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 3}),
            "hidden_size 100 does not divide into 3 heads",
        ),
        (
            json!({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 0}),
            "hidden_size 100 does not divide into 0 heads",
        ),
        (
            json!({"model_type": "llama", "head_dim": 81}),
            "the rotary size is 81 (the head's), it must be even and at least 2",
        ),
        (
            json!({"model_type": "phi", "head_dim": 80, "partial_rotary_factor": 0.4625}),
            "the rotary size is 37 (0.4625 of a head of 80), it must be even and at least 2",
        ),
        (
            json!({"model_type": "phi", "head_dim": 80, "partial_rotary_factor": 1.5}),
            "partial_rotary_factor is 1.5, it must be above 0 and at most 1",
        ),
        (
            json!({"model_type": "minimax_m2", "head_dim": 128, "rotary_dim": 64, "partial_rotary_factor": 0.25}),
            "rotary_dim is 64 and partial_rotary_factor 0.25 of a head of 128, they must agree",
        ),
        (json!({"model_type": "gptj", "head_dim": 32, "rotary_dim": 64}), "rotary_dim is 64, a head has 32 channels"),
        (
            json!({"model_type": "deepseek_v3", "head_dim": 192}),
            "qk_rope_head_dim is missing, model_type \"deepseek_v3\" needs it",
        ),
        // Layers
        (
            json!({"model_type": "smollm3", "head_dim": 128, "num_hidden_layers": 3, "no_rope_layers": [1, 0]}),
            "no_rope_layers holds 2 layers, num_hidden_layers is 3",
        ),
        (
            json!({"model_type": "smollm3", "head_dim": 128, "num_hidden_layers": 2, "no_rope_layers": [1, 3]}),
            "no_rope_layers holds 3, it must hold 1 for a layer with RoPE and 0 for one without",
        ),
        (
            json!({"model_type": "smollm3", "head_dim": 128}),
            "num_hidden_layers is missing, a model whose layers differ needs it",
        ),
        (
            json!({"model_type": "gemma3_text", "head_dim": 256, "num_hidden_layers": 2, "layer_types": ["full_attention"]}),
            "layer_types holds 1 layers, num_hidden_layers is 2",
        ),
        (
            json!({"model_type": "lfm2", "head_dim": 64, "num_hidden_layers": 2}),
            "layer_types is missing, model_type \"lfm2\" needs it",
        ),
        (
            json!({"model_type": "llama", "head_dim": 128, "num_hidden_layers": 1, "layer_types": ["full_attention"], "rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}),
            "rope_parameters has no entry for the layer type \"full_attention\"",
        ),
        (
            json!({"model_type": "mpt", "attn_config": {"rope": true}}),
            "attn_config.rope is true, this crate knows MPT with ALiBi or a learned table only",
        ),
        (
            json!({"model_type": "gemma3", "rope_theta": 1e6, "text_config": {"model_type": "gemma3_text", "head_dim": 256, "num_hidden_layers": 6}}),
            "rope_theta stands beside the language model's config and says something else",
        ),
    ] {
        assert_eq!(refused(config), message);
    }
    assert!(ModelRope::from_hf("{").unwrap_err().to_string().starts_with("the config is not JSON: "));
    for layers in [0, 4_000_000_000u64] {
        assert_eq!(
            refused(llama(json!({"num_hidden_layers": layers}))),
            format!("num_hidden_layers is {layers}, a model has 1 to 65536 layers")
        );
    }
    let model = hf(json!({"model_type": "llama", "head_dim": 128, "num_hidden_layers": 2}));
    assert_eq!(model.layer(2).unwrap_err().to_string(), "layer 2 is asked for, the model has 2");
}

/// Every key of every known type's config, and every key of its parameters, with a value that is not one: an error that ends
/// in one sentence, or a spec inside its law; never a panic.
#[test]
fn no_value_of_a_key_panics() {
    let golden: Value = serde_json::from_str(include_str!("../../golden/rope_models_hf.json")).unwrap();
    let odd = [
        json!(null),
        json!("x"),
        json!(""),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(1e-300),
        json!(18446744073709551615u64),
        json!([]),
        json!([0, "x", null]),
        json!({}),
        json!({"full_attention": 3}),
    ];
    let check = |config: &Value| match ModelRope::from_hf(&config.to_string()) {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n') && text.len() < 600, "{text}: {config}");
            false
        }
        Ok(model) => {
            assert!(!model.describe().is_empty());
            model.layer(0).unwrap();
            for kind in model.at_length(1 << 40).kinds() {
                if let Some(rope) = &kind.rope {
                    rope.check().unwrap();
                    let last = rope.pairs() - 1;
                    let _ = (rope.rate(last), rope.compat_frequency(last), rope.angle(-5, last));
                }
            }
            true
        }
    };
    let (mut understood, mut refused) = (0, 0);
    let mut seen = std::collections::BTreeSet::new();
    for case in golden["cases"].as_array().unwrap() {
        let config = &case["config"];
        // A config of each type and form.
        let form: Vec<_> = config.as_object().unwrap().keys().cloned().collect();
        if !seen.insert((config["model_type"].to_string(), form.clone())) {
            continue;
        }
        for value in &odd {
            for key in &form {
                let mut changed = config.clone();
                changed[key] = value.clone();
                *(if check(&changed) { &mut understood } else { &mut refused }) += 1;
                let inner: Vec<_> = config[key].as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
                for inner in inner {
                    let mut changed = config.clone();
                    changed[key][&inner] = value.clone();
                    *(if check(&changed) { &mut understood } else { &mut refused }) += 1;
                }
            }
        }
    }
    println!("{understood} configs understood, {refused} refused");
    assert!(understood > 5_000 && refused > 10_000, "{understood} understood, {refused} refused");
}
