//! What a model's code fixes and its config does not say, by `model_type`.
//!
//! Read from transformers 5.23.0 (configuration and modelling files of each type) and, where marked, from the code that the
//! model's authors publish beside the weights.

use crate::rotate::{Axes, Pairing};

/// Conventions of the model types that share them.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub pairing: Pairing,
    /// theta where the config has none; `None` if it must have one
    pub theta: Option<f64>,
    /// the share of the head that is rotated, where the config has none
    pub share: f64,
    /// where theta stands, beside `rope_theta`
    pub theta_key: Option<&'static str>,
    /// whether the class scales where the config is silent, so that the config must speak
    pub must_say: bool,
    /// where the share stands, beside `partial_rotary_factor`
    pub share_key: Option<&'static str>,
    pub form: Form,
}

/// How layers differ, and where their numbers stand.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// All layers that attend are alike.
    Plain,
    /// Latent attention: the rotary part of `qk_rope_head_dim` channels stands alone; the scale of logits has YaRN's mscale.
    Latent,
    /// Latent attention of DeepSeek-V4: the last channels of the head; layers with compressed keys have a base and a scaling
    /// of their own.
    Compressed,
    /// Layers with a window have the base under a key of their own; the scaling belongs to the others, or to all.
    Local { key: &'static str, theta: f64, scaled: bool, pattern: Pattern },
    /// Some layers have no RoPE: `no_rope_layers` holds 1 where a layer has it, else every n-th has none.
    Skipping { latent: bool, temperature: bool },
    /// Layers that see everything have no RoPE, where there are others.
    WindowsOnly(Pattern),
    /// Layers without attention between layers with it.
    Hybrid(Pattern),
    /// `layer_rope_theta` holds the base of each layer, 0 for none.
    ThetaList,
    /// `rope_scaling_layers` holds the layers that are scaled.
    ScalingList,
    /// ChatGLM: half of the head, base 10000 * `rope_ratio`.
    Ratio,
    /// Several axes of position, as the class has them where the config is silent.
    Axes(Axes),
    /// Several axes, and layers without attention.
    HybridAxes(Axes, Pattern),
    /// No rotation; the text says what carries position instead.
    NoRope(&'static str),
    /// Falcon: RoPE, or ALiBi where `alibi` is true.
    Falcon,
    /// MPT: ALiBi or a learned table in `attn_config`.
    Mpt,
    /// Baichuan: RoPE with 32 layers, ALiBi with 40. (authors' code)
    Baichuan,
}

/// Which layers are of the second kind where the config has no `layer_types`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pattern {
    /// none is known: the config must say
    Listed,
    /// each `n`-th layer is full, counted from the first `n - 1`; the key may change `n`
    Last { key: &'static str, every: usize },
    /// layers 0, n, 2n, ... are full
    First { key: &'static str, every: usize },
    /// the first layer and each n-th are full
    FirstAndLast { every: usize },
}

const fn plain(pairing: Pairing, theta: f64) -> Family {
    Family {
        pairing,
        theta: Some(theta),
        share: 1.0,
        theta_key: None,
        share_key: None,
        must_say: false,
        form: Form::Plain,
    }
}

/// The conventions of a model type; `None` where they are not known.
pub(super) fn family(model_type: &str) -> Option<Family> {
    use Pairing::{Half, Interleaved};
    let half = plain(Half, 10_000.0);
    let with = |theta: f64| plain(Half, theta);
    let share = |share: f64| Family { share, ..plain(Half, 10_000.0) };
    let interleaved = |theta: f64| plain(Interleaved, theta);
    let latent = |theta: f64| Family { form: Form::Latent, ..plain(Interleaved, theta) };
    let windows = |pattern| Form::WindowsOnly(pattern);
    let last = |key, every| Pattern::Last { key, every };
    Some(match model_type {
        // One RoPE in halves over the head. mimo, internlm2, xverse, orion, minicpm: authors' code.
        "llama" | "mistral" | "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" | "gemma" | "gemma2" | "granite"
        | "granitemoe" | "granitemoeshared" | "starcoder2" | "olmo" | "olmo2" | "olmoe" | "phi3"
        | "phi4_multimodal" | "arcee" | "seed_oss" | "dbrx" | "jetmoe" | "diffllama" | "dots1" | "ministral"
        | "chameleon" | "mimo" | "internlm2" | "xverse" | "orion" | "minicpm" | "esm" | "jais2" | "hrm_text"
        | "eurobert" | "hunyuan_v1_dense" | "hunyuan_v1_moe" | "vaultgemma" | "idefics" | "doge" | "moshi"
        | "aria_text" => half,
        "mixtral" | "phimoe" | "qwen3_omni_moe_text" | "solar_open" | "emu3_text_model" => with(1e6),
        "gpt_oss" => Family { must_say: true, ..with(150_000.0) },
        "cwm" => Family { must_say: true, ..with(1e6) },
        "apertus" => Family { must_say: true, ..with(12e6) },
        "ministral3" => Family { must_say: true, ..half },
        "bitnet" | "csm" | "mllama_text_model" | "flex_olmo" | "evolla" => with(500_000.0),
        "hy_v3" => with(11_158_840.0),
        "nomic_bert" => with(1_000.0),
        "jina_embeddings_v3" => with(20_000.0),
        // A share of the head.
        "phi" | "persimmon" | "nemotron" | "glm4_moe" => share(0.5),
        "stablelm" => share(0.25),
        // (authors' code)
        "stablelm_epoch" => Family { share: 0.25, share_key: Some("rope_pct"), ..half },
        "gpt_neox" => Family { share: 0.25, theta_key: Some("rotary_emb_base"), share_key: Some("rotary_pct"), ..half },
        "gpt_neox_japanese" => Family { theta_key: Some("rotary_emb_base"), share_key: Some("rotary_pct"), ..half },
        "minimax_m2" | "minimax_m3_vl_text" => with(5e6),
        // (authors' code)
        "openelm" => Family { theta_key: Some("rope_freq_constant"), ..half },
        "phi3small" => Family { theta: Some(1e6), theta_key: Some("rope_embedding_base"), ..half },
        // Interleaved pairs.
        "gptj" | "codegen" => interleaved(10_000.0),
        "glm" | "glm4" => Family { share: 0.5, ..interleaved(10_000.0) },
        "chatglm" => Family { form: Form::Ratio, ..interleaved(10_000.0) },
        "cohere" | "ernie4_5" | "ernie4_5_moe" => interleaved(500_000.0),
        "helium" => interleaved(100_000.0),
        "moonshine" => Family { share: 0.9, ..interleaved(10_000.0) },
        // Latent attention.
        "deepseek_v2" | "deepseek_v3" | "deepseek_v32" | "kimi_k2" | "glm4_moe_lite" | "glm_moe_dsa" | "mistral4"
        | "youtu" | "axk1" => Family { must_say: model_type == "mistral4", ..latent(10_000.0) },
        "longcat_flash" => latent(1e7),
        // DeepSeek-V2's latent attention with pairs in halves.
        "minicpm3" => Family { pairing: Half, ..latent(10_000.0) },
        "deepseek_v4" => Family { form: Form::Compressed, ..interleaved(10_000.0) },
        // Layers that differ.
        "gemma3_text" | "gemma3" | "gemma3n_text" => {
            let pattern = if model_type == "gemma3n_text" {
                last("sliding_window_pattern", 5)
            } else {
                last("sliding_window_pattern", 6)
            };
            let form = Form::Local { key: "rope_local_base_freq", theta: 10_000.0, scaled: false, pattern };
            Family { form, ..with(1e6) }
        }
        "modernbert" | "modernbert-decoder" => {
            let pattern = Pattern::First { key: "global_attn_every_n_layers", every: 3 };
            let form = Form::Local { key: "local_rope_theta", theta: 10_000.0, scaled: true, pattern };
            Family { theta_key: Some("global_rope_theta"), form, ..with(160_000.0) }
        }
        "mimo_v2_flash" => {
            let pattern = Pattern::FirstAndLast { every: 6 };
            Family {
                form: Form::Local { key: "swa_rope_theta", theta: 10_000.0, scaled: true, pattern },
                share: 0.334,
                ..with(5e6)
            }
        }
        "olmo3" => {
            let form = Form::Local {
                key: "rope_theta",
                theta: 500_000.0,
                scaled: false,
                pattern: last("sliding_window_pattern", 4),
            };
            Family { form, ..with(500_000.0) }
        }
        "gemma4_text" => {
            let pattern = last("sliding_window_pattern", 6);
            Family {
                form: Form::Local { key: "rope_local_base_freq", theta: 10_000.0, scaled: false, pattern },
                ..with(1e6)
            }
        }
        "laguna" | "mellum" => {
            let form = Form::Local { key: "swa_rope_theta", theta: 10_000.0, scaled: false, pattern: Pattern::Listed };
            let share = if model_type == "laguna" { 0.5 } else { 1.0 };
            Family { form, share, must_say: true, ..with(500_000.0) }
        }
        "llama4_text" | "llama4" => {
            Family { form: Form::Skipping { latent: false, temperature: true }, ..interleaved(500_000.0) }
        }
        "smollm3" => Family { form: Form::Skipping { latent: false, temperature: false }, ..with(2e6) },
        "mistral_large4_text" => Family {
            form: Form::Skipping { latent: true, temperature: false },
            must_say: true,
            ..interleaved(10_000.0)
        },
        "cohere2" => Family { form: windows(last("sliding_window_pattern", 4)), ..interleaved(10_000.0) },
        "exaone4" | "exaone_moe" => Family { form: windows(last("sliding_window_pattern", 4)), ..half },
        "afmoe" => Family { form: windows(last("global_attn_every_n_layers", 4)), ..half },
        "granite_swa" | "granitemoe_swa" => Family { form: Form::ThetaList, ..half },
        "molmo2_text" => Family { form: Form::ScalingList, ..half },
        // Attention in some layers only.
        "qwen3_next" => Family { share: 0.25, form: Form::Hybrid(last("full_attention_interval", 4)), ..half },
        "lfm2" | "lfm2_moe" => Family { form: Form::Hybrid(Pattern::Listed), ..with(1e6) },
        "minimax" => Family { form: Form::Hybrid(Pattern::Listed), ..with(1e6) },
        "olmo_hybrid" => Family { form: Form::Hybrid(Pattern::Listed), ..half },
        // Several axes of position.
        "qwen2_vl" | "qwen2_vl_text" | "qwen2_5_vl" | "qwen2_5_vl_text" => {
            Family { form: Form::Axes(Axes::Sections(vec![16, 24, 24])), ..with(1e6) }
        }
        "paddleocr_vl_text" | "paddleocr_vl" => {
            Family { form: Form::Axes(Axes::Sections(vec![16, 24, 24])), ..with(500_000.0) }
        }
        "glm4v_text" | "glm4v" => Family { form: Form::Axes(Axes::Sections(vec![8, 12, 12])), ..interleaved(10_000.0) },
        "glm4v_moe_text" => Family { form: Form::Axes(Axes::Sections(vec![8, 12, 12])), ..share(0.5) },
        "qwen3_vl_text" | "qwen3_vl" | "qwen3_vl_moe_text" | "qwen3_vl_moe" => {
            Family { form: Form::Axes(Axes::Interleaved(vec![24, 20, 20])), ..with(500_000.0) }
        }
        "ernie4_5_vl_moe_text" => {
            Family { form: Form::Axes(Axes::HeightWidthFirst([20, 22, 22])), ..interleaved(500_000.0) }
        }
        "qwen3_5_text" | "qwen3_5" | "qwen3_5_moe_text" | "qwen3_5_moe" => {
            let form = Form::HybridAxes(Axes::Interleaved(vec![11, 11, 10]), last("full_attention_interval", 4));
            Family { form, ..share(0.25) }
        }
        // Other encodings.
        "falcon" | "RefinedWeb" | "RefinedWebModel" => Family { form: Form::Falcon, ..half },
        "mpt" => Family { form: Form::Mpt, ..half },
        "baichuan" => Family { form: Form::Baichuan, ..half },
        "bloom" => Family { form: Form::NoRope("ALiBi"), ..half },
        "t5" | "mt5" | "umt5" => Family { form: Form::NoRope("T5's buckets of distance"), ..half },
        "gpt2" | "opt" | "gpt_neo" | "gpt_bigcode" | "bert" | "roberta" => {
            Family { form: Form::NoRope("a learned table"), ..half }
        }
        "jamba" | "mamba" | "mamba2" | "kimi_linear" | "nemotron_h" => {
            Family { form: Form::NoRope("nothing: order comes from the recurrent layers"), ..half }
        }
        _ => return None,
    })
}
