//! What takes position in beside RoPE, with the spec that serves it.
//!
//! Sources: T = class in transformers 5.24.0; G = graph in llama.cpp, as llama-cpp-sys-2 0.1.161 packs it.

use posenc::bias::Distances;
use posenc::embed::{Odd, Rows};
use posenc::model::{LogitBias, ModelPositions, PositionEmbedding};
use posenc::rotate::{Gguf, GgufValue, QueryScale};
use posenc::{Alibi, Learned, ModelRope, Pairing, Rope, Sinusoid, T5Bias};
use serde_json::{Value, json};

fn hf(config: Value) -> ModelPositions {
    let text = config.to_string();
    ModelPositions::from_hf(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn gguf(architecture: &str, keys: &[(&str, GgufValue)]) -> Gguf {
    let mut gguf = Gguf::default();
    gguf.keys.insert("general.architecture".into(), GgufValue::Text(architecture.into()));
    for (key, value) in keys {
        gguf.keys.insert(format!("{architecture}.{key}"), value.clone());
    }
    gguf
}

fn int(value: i128) -> GgufValue {
    GgufValue::Integer(value)
}

fn list(values: &[i128]) -> GgufValue {
    GgufValue::List(values.iter().map(|&value| int(value)).collect())
}

fn learned(dim: usize, rows: Rows, count: u64) -> PositionEmbedding {
    PositionEmbedding::Learned { spec: Learned { rows, ..Learned::new(dim) }, rows: Some(count) }
}

#[test]
fn what_is_added_to_tokens_has_its_spec() {
    let kept = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    for (config, want) in [
        (json!({"model_type": "gpt2", "n_embd": 1600, "n_positions": 1024}), learned(1600, Rows::Offset(0), 1024)),
        // BERT's sizes are its class's.
        (json!({"model_type": "bert"}), learned(768, Rows::Offset(0), 512)),
        (
            json!({"model_type": "bart", "d_model": 1024, "max_position_embeddings": 1024}),
            learned(1024, Rows::Offset(2), 1026),
        ),
        (
            json!({"model_type": "opt", "hidden_size": 768, "max_position_embeddings": 2048}),
            learned(768, Rows::Kept { padding: None, first: 2, padded: 1 }, 2050),
        ),
        // 514 rows: the first position reads row 2.
        (
            json!({"model_type": "roberta", "hidden_size": 768, "max_position_embeddings": 514, "pad_token_id": 1}),
            learned(768, kept, 514),
        ),
        (
            json!({"model_type": "marian", "d_model": 512}),
            PositionEmbedding::Sinusoid(Sinusoid { pairing: Pairing::Half, odd: Odd::Longer, ..Sinusoid::new(512) }),
        ),
        (
            json!({"model_type": "m2m_100", "d_model": 1024, "pad_token_id": 1}),
            PositionEmbedding::Sinusoid(Sinusoid {
                pairing: Pairing::Half,
                shift: 1.0,
                odd: Odd::Zero,
                padding: Some(1),
                offset: 2,
                ..Sinusoid::new(1024)
            }),
        ),
    ] {
        let text = config.to_string();
        let model = hf(config);
        assert_eq!(model.embedding(), Some(&want), "{text}");
        assert_eq!((model.layer(0).unwrap().bias, model.without()), (None, None), "{text}");
        assert!(model.describe().contains("added to the token: "), "{text}");
    }
}

#[test]
fn what_is_added_to_logits_has_its_spec() {
    let bert = Distances::bert(512);
    let relative = |queries, keys| LogitBias::Relative { queries: Some(queries), keys, states: None };
    for (config, want) in [
        (json!({"model_type": "bloom", "n_embed": 1024, "num_attention_heads": 16}), LogitBias::Alibi(Alibi::new(16))),
        (
            json!({"model_type": "mpt", "n_heads": 32, "attn_config": {"alibi": true, "alibi_bias_max": 16}}),
            LogitBias::Alibi(Alibi { max_bias: 16.0, ..Alibi::new(32) }),
        ),
        (json!({"model_type": "falcon", "num_attention_heads": 32, "alibi": true}), LogitBias::Alibi(Alibi::new(32))),
        (
            json!({"model_type": "t5", "relative_attention_num_buckets": 64}),
            LogitBias::T5 { encoder: Some(T5Bias::new(64, 128, true)), decoder: Some(T5Bias::new(64, 128, false)) },
        ),
        // The key that names the encoding decides: files of BERTs with other positions.
        (
            json!({"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "position_embedding_type": "alibi"}),
            LogitBias::Alibi(Alibi::new(12)),
        ),
        (
            json!({"model_type": "bert", "max_position_embeddings": 512, "position_embedding_type": "relative_key"}),
            relative(bert.clone(), None),
        ),
        (
            json!({"model_type": "electra", "max_position_embeddings": 512, "position_embedding_type": "relative_key_query"}),
            relative(bert.clone(), Some(bert)),
        ),
        // DeBERTa v3: 256 log buckets over 512 positions
        (
            json!({"model_type": "deberta-v2", "relative_attention": true, "position_biased_input": false, "position_buckets": 256,
                "max_position_embeddings": 512, "max_relative_positions": -1, "pos_att_type": ["p2c", "c2p"]}),
            relative(Distances::deberta(256, 512).unwrap(), Some(Distances::deberta(256, 512).unwrap())),
        ),
        (json!({"model_type": "vits"}), relative(Distances::vits(4), None)),
        (
            json!({"model_type": "wav2vec2-bert", "position_embeddings_type": "relative_key"}),
            relative(Distances::shaw(64, 8), None),
        ),
    ] {
        let text = config.to_string();
        let model = hf(config);
        assert_eq!(model.layer(0).unwrap().bias, Some(&want), "{text}");
        assert_eq!(model.embedding(), None, "{text}");
        assert!(
            model.layer(0).unwrap().layer.rope.is_none() && model.describe().contains("added to the logit"),
            "{text}"
        );
    }
    // Jais with learned positions in place of ALiBi
    let jais = json!({"model_type": "jais", "n_embd": 2048, "n_head": 16, "n_layer": 24, "n_positions": 2048, "position_embedding_type": "learned"});
    assert_eq!(hf(jais.clone()).embedding(), Some(&learned(2048, Rows::Offset(0), 2048)));
    assert_eq!(hf(jais).layer(23).unwrap().bias, None);
}

#[test]
fn inklings_bias_and_temperature_differ_by_layer() {
    // T, modeling_inkling.py: windows have a band of their size, full layers of rel_extent and, in Inkling 2, a temperature.
    let model = hf(json!({"model_type": "inkling2_text", "num_hidden_layers": 6, "head_dim": 128}));
    let band = |extent| LogitBias::Relative { queries: Some(Distances::inkling(extent)), keys: None, states: Some(16) };
    assert_eq!(model.layer(0).unwrap().bias, Some(&band(1024)));
    let full = model.layer(5).unwrap();
    assert_eq!(full.layer.query_scale, QueryScale::Inkling { scale: 0.1, floor: 128_000.0 });
    assert_eq!((full.layer.query_scale.at(127_999), full.layer.query_scale.at(255_999)), (1.0, 1.0 + 0.1 * 2f64.ln()));
    let first = hf(
        json!({"model_type": "inkling_mm_model", "text_config": {"model_type": "inkling_text", "num_hidden_layers": 12, "sliding_window_size": 512}}),
    );
    assert_eq!(first.layer(0).unwrap().bias, Some(&band(512)));
    assert_eq!(
        (first.layer(11).unwrap().bias, first.layer(11).unwrap().layer.query_scale),
        (Some(&band(1024)), QueryScale::One)
    );
}

#[test]
fn models_whose_order_comes_from_elsewhere_say_so() {
    for (config, what) in [
        (json!({"model_type": "mamba2"}), "nothing: order comes from the recurrent layers"),
        (
            json!({"model_type": "kimi_k3", "num_hidden_layers": 2}),
            "nothing: latent attention without positions beside recurrent layers",
        ),
        (
            json!({"model_type": "granitemoehybrid", "num_hidden_layers": 2, "position_embedding_type": "nope"}),
            "nothing: order comes from the recurrent layers",
        ),
    ] {
        let model = hf(config);
        assert_eq!((model.without(), model.embedding()), (Some(what), None));
    }
    assert!(hf(json!({"model_type": "xlnet"})).beside().unwrap().contains("Distances::transformer_xl"));
}

#[test]
fn encodings_that_cannot_be_made_are_refused() {
    let refused = |config: Value| ModelPositions::from_hf(&config.to_string()).unwrap_err().to_string();
    assert_eq!(refused(json!({"model_type": "btlm"})), "num_attention_heads is missing, ALiBi of \"btlm\" needs it");
    assert_eq!(
        refused(json!({"model_type": "bert", "position_embedding_type": "rotary"})),
        "position_embedding_type is \"rotary\", which this crate does not know for model_type \"bert\""
    );
    assert_eq!(
        refused(json!({"model_type": "llama", "position_embedding_type": "alibi"})),
        "position_embedding_type is \"alibi\", which this crate does not know for model_type \"llama\""
    );
    // ModernBERT's file has it, and its class does not read it.
    let modern = json!({"model_type": "modernbert", "num_hidden_layers": 3, "position_embedding_type": "absolute"});
    assert!(hf(modern).layer(0).unwrap().layer.rope.is_some());
}

// ---------------------------------------------------------------------------------------------------------------- GGUF

#[test]
fn gguf_graphs_without_rope_have_their_spec() {
    let sizes = [
        ("block_count", int(40)),
        ("context_length", int(512)),
        ("embedding_length", int(5120)),
        ("attention.head_count", int(40)),
    ];
    let read = |architecture: &str, more: &[(&'static str, GgufValue)]| {
        ModelPositions::from_gguf(&gguf(architecture, &[&sizes[..], more].concat())).unwrap()
    };
    // bert.cpp adds its table whatever the list of rope types says.
    for architecture in ["bert", "gpt2", "starcoder"] {
        let model = read(architecture, &[]);
        assert_eq!(model.embedding(), Some(&learned(5120, Rows::Offset(0), 512)), "{architecture}");
        assert!(model.layer(0).unwrap().layer.rope.is_none());
    }
    // baichuan.cpp: 40 layers have ALiBi, 32 rotate.
    assert_eq!(read("baichuan", &[]).layer(0).unwrap().bias, Some(&LogitBias::Alibi(Alibi::new(40))));
    let small =
        ModelRope::from_gguf(&gguf("baichuan", &[("block_count", int(32)), ("attention.key_length", int(128))]));
    assert_eq!(small.unwrap().rope().unwrap().pairing, Pairing::Interleaved);
    let bias = [("attention.max_alibi_bias", GgufValue::Float(16.0))];
    let want = LogitBias::Alibi(Alibi { max_bias: 16.0, ..Alibi::new(40) });
    for architecture in ["mpt", "jais"] {
        assert_eq!(read(architecture, &bias).layer(0).unwrap().bias, Some(&want), "{architecture}");
    }
    assert!(read("mpt", &[]).embedding().is_some());
    assert_eq!(read("jais", &[]).without(), Some("nothing: attention.max_alibi_bias is missing or 0"));
    let t5 = LogitBias::T5 { encoder: Some(T5Bias::new(64, 128, true)), decoder: None };
    assert_eq!(read("t5encoder", &[("attention.relative_buckets_count", int(64))]).layer(0).unwrap().bias, Some(&t5));
    for architecture in ["kimi-k3", "glm5-next", "mamba", "rwkv7"] {
        assert!(read(architecture, &[]).without().unwrap().starts_with("nothing: "), "{architecture}");
    }
    for (architecture, message) in [
        ("gptj", "general.architecture is \"gptj\": llama.cpp has no graph for it"),
        ("clip", "general.architecture is \"clip\": llama.cpp reads its projectors elsewhere"),
    ] {
        assert_eq!(ModelRope::from_gguf(&gguf(architecture, &sizes)).unwrap_err().to_string(), message);
    }
}

#[test]
fn gguf_layers_rotate_where_the_graph_does() {
    let read = |architecture: &str, layers: i128, more: &[(&'static str, GgufValue)]| {
        let keys = [
            &[
                ("block_count", int(layers)),
                ("attention.key_length", int(128)),
                ("rope.freq_base", GgufValue::Float(5e5)),
            ][..],
            more,
        ];
        ModelRope::from_gguf(&gguf(architecture, &keys.concat()))
            .unwrap_or_else(|error| panic!("{architecture}: {error}"))
    };
    let rotating = |model: &ModelRope| {
        let layers = 0..model.layers().unwrap();
        layers.filter(|&layer| model.layer(layer).unwrap().rope.is_some()).collect::<Vec<_>>()
    };
    let off = ("rope.scaling.finetuned", GgufValue::Bool(false));
    let heads = ("attention.head_count_kv", list(&[0, 0, 0, 8, 0, 0, 0, 8]));
    // granite.cpp, granite-hybrid.cpp: a switch; minicpm.cpp and granite-moe.cpp rotate whatever it says.
    assert!(rotating(&read("granitehybrid", 8, &[off.clone(), heads.clone()])).is_empty());
    assert_eq!(rotating(&read("granitehybrid", 8, &[heads])), [3, 7]);
    assert!(rotating(&read("granite", 2, std::slice::from_ref(&off))).is_empty());
    assert_eq!(rotating(&read("minicpm", 2, std::slice::from_ref(&off))), [0, 1]);
    assert_eq!(rotating(&read("granitemoe", 2, &[off])), [0, 1]);
    let window = ("attention.sliding_window", int(512));
    let pattern = ("attention.sliding_window_pattern", list(&[1, 0, 1, 1]));
    for (architecture, more, want) in [
        // afmoe.cpp, smallthinker.cpp: steps of four, from the end and from the start
        ("afmoe", vec![window.clone()], vec![0, 1, 2]),
        ("smallthinker", vec![window.clone()], vec![1, 2, 3]),
        ("smallthinker", vec![], vec![0, 1, 2, 3]),
        // windows alone: maple.cpp, exaone-moe.cpp, muse-glimmer.cpp; cohere2moe.cpp with the dense layers before
        ("maple", vec![pattern.clone()], vec![0, 2, 3]),
        ("exaone-moe", vec![], vec![0, 1, 2]),
        ("muse-glimmer", vec![], vec![0, 1, 2]),
        ("cohere2moe", vec![], vec![1, 2, 3]),
        ("cohere2moe", vec![("leading_dense_block_count", int(1))], vec![0, 1, 2, 3]),
        ("granite_swa", vec![("attention.rope_pattern", list(&[0, 1, 0, 1]))], vec![1, 3]),
        ("minimax-01", vec![("attention.recurrent_layers", list(&[1, 1, 0, 1]))], vec![2]),
        ("qwen4exp", vec![("rope.dimension_sections", list(&[24, 20, 20, 0]))], vec![3]),
    ] {
        assert_eq!(rotating(&read(architecture, 4, &more)), want, "{architecture}");
    }
    // step35.cpp: full layers rotate half of the count; the scaling is theirs
    let step = read("step35", 4, &[pattern.clone(), ("rope.freq_base_swa", GgufValue::Float(1e4))]);
    assert_eq!(step.layer(1).unwrap().rope, Some(Rope::new(64, 5e5)));
    assert_eq!(step.layer(0).unwrap().rope, Some(Rope::new(128, 1e4)));
    // deepseek4.cpp: the last channels; layers with compressed keys on another base
    let keys = [
        ("rope.dimension_count", int(64)),
        ("attention.compress_ratios", list(&[0, 4, 128, 0, 0])),
        ("attention.compress_rope_freq_base", GgufValue::Float(160_000.0)),
    ];
    let deepseek = read("deepseek4", 4, &keys);
    let last = |base| Rope { offset: 64, pairing: Pairing::Interleaved, ..Rope::new(64, base) };
    assert_eq!(deepseek.layer(0).unwrap().rope, Some(last(5e5)));
    assert_eq!(deepseek.layer(2).unwrap().rope, Some(last(160_000.0)));
    // cogvlm.cpp calls ggml_rope, which has a base of 10000 and no scaling; deepseek2.cpp rotates OCR's whole heads in halves.
    let linear = [("rope.scaling.factor", GgufValue::Float(4.0))];
    assert_eq!(read("cogvlm", 1, &linear).rope().unwrap(), &Rope::new(128, 1e4));
    assert_eq!(read("deepseek2-ocr", 1, &linear).rope().unwrap(), &Rope::new(128, 5e5));
    // dots3note.cpp: windows have latent heads of their own size
    let keys = [
        pattern,
        ("rope.dimension_count", int(64)),
        ("rope.freq_base_swa", GgufValue::Float(5e4)),
        ("attention.key_length_mla", int(192)),
        ("attention.key_length_mla_swa", int(256)),
    ];
    let dots = read("dots3note", 4, &keys);
    assert_eq!((dots.layer(0).unwrap().head, dots.layer(1).unwrap().head), (256, 192));
    assert_eq!(dots.layer(0).unwrap().rope, Some(Rope { offset: 192, ..last(5e4) }));
}
