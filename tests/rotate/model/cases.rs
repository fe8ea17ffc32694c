//! Configs that real files hold, each with what its model's code does.
//!
//! Sources: T = class in transformers 5.24.0; C = the authors' code beside the weights; F = the file's own words.

use posenc::model::ModelPositions;
use posenc::rotate::Axes;
use posenc::{ModelRope, Pairing, Scaling};
use serde_json::{Value, json};

use Pairing::{Half, Interleaved};

use super::{half, spec};

fn hf(config: Value) -> ModelRope {
    let text = config.to_string();
    ModelRope::from_hf(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn refused(config: Value) -> String {
    ModelRope::from_hf(&config.to_string()).unwrap_err().to_string()
}

/// The layers that rotate.
fn rotating(model: &ModelRope) -> Vec<usize> {
    let layers = 0..model.layers().unwrap();
    layers.filter(|&layer| model.layer(layer).unwrap().rope.is_some()).collect()
}

#[test]
fn numbers_as_python_writes_them_are_read() {
    for number in ["Infinity", "-Infinity", "NaN", "1e999"] {
        let text = format!(r#"{{"model_type":"nemotron_h","num_hidden_layers":2,"time_step_limit":[0.0,{number}]}}"#);
        assert!(ModelRope::from_hf(&text).unwrap().layer(1).unwrap().rope.is_none(), "{number}");
        let text = format!(r#"{{"model_type":"llama","head_dim":128,"rope_theta":{number}}}"#);
        assert_eq!(
            ModelRope::from_hf(&text).unwrap_err().to_string(),
            format!("rope_theta is {number:?}, it must be a number")
        );
    }
}

#[test]
fn layers_that_do_not_rotate_are_found() {
    // Llama 3.2 Vision: cross-attention layers have no positions (T, modeling_mllama.py); the list is the class's default.
    let cross = [3, 8, 13, 18, 23, 28, 33, 38];
    for config in [
        json!({"model_type": "mllama_text_model", "num_hidden_layers": 40, "cross_attention_layers": cross}),
        json!({"model_type": "mllama_text_model", "num_hidden_layers": 40}),
    ] {
        let model = hf(config);
        assert_eq!(rotating(&model), (0..40).filter(|layer| !cross.contains(layer)).collect::<Vec<_>>());
        assert_eq!(model.layer(0).unwrap().rope, Some(half(128, 5e5)));
    }
    // The first files of LFM2 (F)
    let model = hf(
        json!({"model_type": "lfm2", "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "rope_theta": 1e6}),
    );
    assert_eq!(rotating(&model), [2, 5, 8, 10, 12, 14]);
    assert_eq!(model.layer(2).unwrap().rope, Some(half(64, 1e6)));
    // Flint: windows alone; Kolibri: windows alone unless there are none; Lara mini: windows alone (T)
    let types = json!(["full_attention", "sliding_attention", "sliding_attention"]);
    for (model_type, window, want) in [
        ("flint", json!(513), vec![1, 2]),
        ("kolibri1", json!(513), vec![1, 2]),
        ("kolibri1", json!(null), vec![0, 1, 2]),
        ("lara_mini", json!(512), vec![1, 2]),
    ] {
        let model = hf(
            json!({"model_type": model_type, "num_hidden_layers": 3, "layer_types": types, "sliding_window": window}),
        );
        assert_eq!(rotating(&model), want, "{model_type}");
    }
    // Muse: each fourth from the last, or where layer_rope_theta is 0 (T, configuration_muse_glimmer.py)
    let model = hf(json!({"model_type": "muse_glimmer_text", "num_hidden_layers": 8}));
    assert_eq!(rotating(&model), [0, 1, 2, 4, 5, 6]);
    let model = hf(json!({"model_type": "muse_spark_text", "num_hidden_layers": 3, "layer_rope_theta": [0, 5e5, 0]}));
    assert_eq!((rotating(&model), model.layer(1).unwrap().rope.clone()), (vec![1], Some(half(64, 5e5))));
    // Zamba 2: its shared attention sees twice the channels, and rotates if use_mem_rope says so (T)
    let zamba = |rope: bool| {
        hf(json!({"model_type": "zamba2", "hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 3,
            "kv_channels": 80, "layers_block_type": ["mamba", "hybrid", "mamba"], "use_mem_rope": rope}))
    };
    assert_eq!(rotating(&zamba(true)), [1]);
    assert_eq!(zamba(true).layer(1).unwrap().rope, Some(half(160, 1e4)));
    assert!(rotating(&zamba(false)).is_empty());
}

#[test]
fn layers_with_sizes_of_their_own_have_them() {
    // EmbeddingGemma 2: full layers have heads of 512 channels (T)
    let model = hf(json!({"model_type": "embedding_gemma2_text", "head_dim": 256, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"01": {"head_dim": 512}},
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                            "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}));
    assert_eq!(model.layer(0).unwrap().rope, Some(half(256, 1e4)));
    assert_eq!(model.layer(1).unwrap().rope, Some(half(512, 1e6)));
    // dots.3 note: windows have 192 channels before the rotary ones (T)
    let dots = |share: f64| {
        json!({"model_type": "dots3_note_text", "num_hidden_layers": 2, "head_dim": 256, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        "layer_types": ["indexed_attention", "sliding_attention"], "per_layer_config": {"1": {"qk_nope_head_dim": 192}},
        "rope_parameters": {"indexed_attention": {"rope_type": "default", "rope_theta": 8e7, "partial_rotary_factor": share},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": share}}})
    };
    let model = hf(dots(0.25));
    assert_eq!(model.layer(0).unwrap().rope, Some(spec(64, 128, Interleaved, 8e7, Scaling::None)));
    assert_eq!(model.layer(1).unwrap().rope, Some(spec(64, 192, Interleaved, 5e4, Scaling::None)));
    assert_eq!((model.layer(0).unwrap().head, model.layer(1).unwrap().head), (192, 256));
    assert_eq!(
        refused(dots(0.75)),
        "partial_rotary_factor is 0.75, the class of model_type \"dots3_note_text\" rotates 64 of 192 channels whatever it says"
    );
    assert_eq!(
        refused(json!({"model_type": "llama", "num_hidden_layers": 2, "per_layer_config": {"2": {"head_dim": 64}}})),
        "per_layer_config holds layer 2, the model has 2"
    );
    // Step 3.5: lists over the layers, the scaling for full layers alone (T, configuration_step3p7.py)
    let model = hf(json!({"model_type": "step3p5", "head_dim": 128, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_theta": [5e6, 1e4, 1e4], "partial_rotary_factors": [0.5, 1.0, 1.0],
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}}));
    assert_eq!(model.layer(0).unwrap().rope, Some(spec(64, 0, Half, 5e6, Scaling::Linear { factor: 2.0 })));
    assert_eq!(model.layer(2).unwrap().rope, Some(half(128, 1e4)));
}

#[test]
fn what_a_class_does_not_read_is_no_silence() {
    for model_type in ["llama", "mistral", "qwen2"] {
        assert_eq!(
            refused(json!({"model_type": model_type, "head_dim": 128, "partial_rotary_factor": 0.5})),
            format!(
                "partial_rotary_factor is 0.5, the class of model_type {model_type:?} rotates 128 of 128 channels whatever it says"
            )
        );
        assert_eq!(
            hf(json!({"model_type": model_type, "head_dim": 128, "partial_rotary_factor": 1.0})).rope().unwrap().rotary,
            128
        );
    }
    for model_type in ["deepseek_v2", "deepseek_v3", "youtu", "glm_moe_dsa"] {
        let config = json!({"model_type": model_type, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "partial_rotary_factor": 0.5});
        assert!(refused(config).starts_with("partial_rotary_factor is 0.5, the class of model_type"), "{model_type}");
    }
    // A flag that denies RoPE is not known, as one that states it is a note.
    assert_eq!(
        refused(json!({"model_type": "llama", "head_dim": 128, "use_rope": false})),
        "the config holds use_rope, which this crate does not know for model_type \"llama\""
    );
    for (model_type, key, value) in [
        ("cohere2", "rotary_pct", json!(1.0)),
        ("llama", "use_rope", json!(true)),
        ("hunyuan_v1_dense", "use_rotary_pos_emb", json!(true)),
        ("cohere", "rope_interleaved", json!(true)),
        ("llama", "rope_type", json!("default")),
        ("mimo", "use_mrope", json!(false)),
    ] {
        let mut config = json!({"model_type": model_type, "head_dim": 128, "num_hidden_layers": 4});
        config[key] = value.clone();
        let model = hf(config);
        assert!(model.describe().contains(&format!("note: {key} is {value}, which changes nothing\n")), "{key}");
    }
}

#[test]
fn the_class_decides_absent_sizes() {
    // LLaVA 1.5 (F), Qwen2-Audio: 4096 channels by 32 heads (T)
    let model = hf(
        json!({"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064}}),
    );
    assert_eq!(model.rope().unwrap(), &half(128, 1e4));
    assert_eq!(
        hf(json!({"model_type": "qwen2_audio", "text_config": {"model_type": "qwen2"}})).rope().unwrap().rotary,
        128
    );
    // DeepSeek without latent attention (F; Llama's attention, as llama.cpp's deepseek2.cpp has it)
    let plain = hf(
        json!({"model_type": "deepseek_v2", "use_mla": false, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0, "hidden_size": 1280, "num_attention_heads": 10}),
    );
    assert_eq!((plain.rope().unwrap(), plain.kinds()[0].head), (&half(128, 1e4), 128));
    // Mistral 7B v0.1 (C)
    let mistral = ModelRope::from_mistral(r#"{"dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": 32}"#).unwrap();
    assert_eq!(mistral.rope().unwrap().base, 1e4);
    // A scaling without the trained length (T, vLLM)
    let yarn = hf(
        json!({"model_type": "qwen2", "head_dim": 128, "max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
    );
    assert!(matches!(&yarn.rope().unwrap().scaling, Scaling::Yarn(yarn) if yarn.original_context == 32768.0));
    assert!(
        yarn.describe().contains("note: original_max_position_embeddings is missing: max_position_embeddings 32768")
    );
}

#[test]
fn models_of_other_families_are_read() {
    // ChatGLM-6B: two axes, each with half of the channels, in halves (C)
    let model = hf(
        json!({"model_type": "chatglm", "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 28, "position_encoding_2d": true}),
    );
    let rope = model.rope().unwrap();
    assert_eq!((rope.rotary, rope.pairing, &rope.axes), (128, Half, &Axes::Blocks(2)));
    // Nomic (C): dynamic NTK in its own words
    let model = hf(
        json!({"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_scaling_factor": 2, "max_trained_positions": 2048}),
    );
    let want = Scaling::DynamicNtk { factor: 2.0, context: 2048.0, length: None };
    assert_eq!((&model.rope().unwrap().scaling, model.rope().unwrap().base), (&want, 1000.0));
    // Cohere Compass: layers whose entry is null do not rotate; axes in turn (T)
    let model = hf(json!({"model_type": "cohere_compass_text", "head_dim": 128, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": null}}));
    assert_eq!(rotating(&model), [0]);
    assert_eq!(model.layer(0).unwrap().rope.as_ref().unwrap().axes, Axes::Interleaved(vec![24, 20, 20]));
    // Other names (T)
    for (config, rope) in [
        (json!({"model_type": "minimax_m3", "head_dim": 128, "rotary_dim": 64, "rope_theta": 5e6}), half(64, 5e6)),
        (json!({"model_type": "nemotron-nas", "hidden_size": 8192, "num_attention_heads": 64}), half(128, 1e4)),
        (json!({"model_type": "minimax_m1", "head_dim": 128, "rotary_dim": 64, "rope_theta": 1e7}), half(64, 1e7)),
        (
            json!({"model_type": "exaone4_5_text", "head_dim": 128, "num_hidden_layers": 4, "sliding_window": null}),
            half(128, 1e4),
        ),
        (json!({"model_type": "phi3_v", "hidden_size": 3072, "num_attention_heads": 32}), half(96, 1e4)),
        (json!({"model_type": "llava", "hidden_size": 4096, "num_attention_heads": 32}), half(128, 1e4)),
        (json!({"model_type": "higgs_audio_v2", "rope_scaling": {"rope_type": "default"}}), half(128, 5e5)),
        (json!({"model_type": "timesfm2_5"}), half(80, 1e4)),
        (json!({"model_type": "glmasr_encoder"}), half(32, 1e4)),
    ] {
        let text = config.to_string();
        assert_eq!(hf(config).rope().unwrap(), &rope, "{text}");
    }
    // DeepSeek's own code beside V4's weights: the same layers
    let layers = json!({"num_hidden_layers": 2, "head_dim": 512, "compress_ratios": [0, 4]});
    let [own, hf_name] = ["deepseek_ref", "deepseek_v4"].map(|model_type| {
        let mut config = layers.clone();
        config["model_type"] = json!(model_type);
        hf(config).kinds().to_vec()
    });
    assert_eq!((own.len(), &own), (2, &hf_name));
    // V-JEPA 2 turns the two channels of a pair by different angles (T).
    assert_eq!(
        refused(json!({"model_type": "vjepa2", "hidden_size": 1024})),
        "model_type is \"vjepa2\": the two channels of a pair turn by different angles there, which is no rotation"
    );
}

#[test]
fn models_that_rotate_add_nothing() {
    let model = ModelPositions::from_hf(r#"{"model_type": "llama", "num_hidden_layers": 2}"#).unwrap();
    assert_eq!((model.embedding(), model.without(), model.beside()), (None, None, None));
    assert_eq!(model.layer(1).unwrap().bias, None);
    assert_eq!(model.rope().rope().unwrap(), &half(128, 1e4));
    assert!(model.layer(2).is_err());
}
