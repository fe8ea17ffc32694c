//! Vision towers against transformers' own rotations, positions included.

use posenc::bias::Distances;
use posenc::model::{LogitBias, ModelPositions};
use posenc::position::{fixed, timed_windows};
use posenc::{Direction, Heads, ModelRope, Rope};
use serde_json::{Value, json};

use super::{half, near};

pub fn golden() -> Value {
    serde_json::from_str(include_str!("../../golden/rope_towers.json")).unwrap()
}

fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(size).collect()
}

/// The script's inputs.
fn inputs(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (((7919 * i + 13) % 1021) as f64 / 1021.0 - 0.5) as f32).collect()
}

/// Real positions of each axis, as the rope's fraction bits have them.
fn measured(rope: &Rope, rows: &[Value]) -> Vec<i64> {
    let row = |(row, &bits): (&Value, &u32)| {
        let row: Vec<f64> = row.as_array().unwrap().iter().map(|at| at.as_f64().unwrap()).collect();
        fixed(&row, bits).unwrap()
    };
    rows.iter().zip(&rope.fraction_bits).flat_map(row).collect()
}

#[test]
fn towers_rotate_as_transformers_does() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let text = case["config"].to_string();
        let model = match case["as"].as_str() {
            Some(model_type) => ModelRope::from_hf_as(&text, model_type),
            None => ModelRope::from_hf(&text),
        };
        let model = model.unwrap_or_else(|error| panic!("{error}: {text}"));
        let (count, head) = (size(&case["count"]), size(&case["head"]));
        let layer = model.layer(size(&case["layer"])).unwrap();
        assert_eq!(layer.head, head, "{text}");
        let heads = Heads::thd(count, size(&case["heads"]), head);
        let row = heads.heads * head;
        let mut x = inputs(count * row);
        if let Some(grid) = model.grid() {
            let grids: Vec<[usize; 3]> =
                case["grids"].as_array().unwrap().iter().map(|grid| sizes(grid).try_into().unwrap()).collect();
            assert_eq!(grid.tokens(&grids).unwrap(), count, "{text}");
            layer.rotate(&mut x, &heads, &grid.ids(&grids).unwrap(), Direction::Forward).unwrap();
        } else {
            let ids = match (case["as"].as_str(), case["positions"].as_array()) {
                (_, Some(rows)) => measured(layer.rope.as_ref().unwrap(), rows),
                (Some("musicflamingo"), _) => {
                    let windows = sizes(&case["grids"][0]);
                    timed_windows(windows[0], windows[1]).unwrap()
                }
                _ => (0..count as i64).collect(),
            };
            layer.rotate(&mut x, &heads, &ids, Direction::Forward).unwrap();
        }
        let want: Vec<f32> = case["y_f32_bits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bits| f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()))
            .collect();
        let got = sizes(&case["tokens"]).into_iter().flat_map(|token| &x[token * row..(token + 1) * row]);
        for (at, (got, want)) in got.zip(&want).enumerate() {
            assert!((got - want).abs() < 2e-6, "{text}, number {at}: {got} is not {want}");
        }
    }
    assert!(cases.len() >= 160);
}

/// Encoders of speech whose config names RoPE, another encoding or none (T).
#[test]
fn conformers_have_what_their_config_names() {
    let read = |config: Value| ModelPositions::from_hf(&config.to_string()).unwrap();
    for model_type in ["wav2vec2-bert", "wav2vec2-conformer", "seamless_m4t", "seamless_m4t_v2"] {
        let rotary = read(json!({"model_type": model_type, "position_embeddings_type": "rotary"}));
        assert_eq!(rotary.layer(0).unwrap().layer.rope, Some(half(64, 1e4)), "{model_type}");
        assert!(rotary.describe().contains("note: the hidden states are rotated") && rotary.beside().is_none());
        let none = read(json!({"model_type": model_type, "position_embeddings_type": null}));
        assert_eq!(none.without(), Some("nothing: position_embeddings_type is null"));
        let relative = read(json!({"model_type": model_type, "position_embeddings_type": "relative"}));
        assert!(relative.beside().unwrap().contains("Distances::transformer_xl"), "{model_type}");
    }
    for model_type in ["wav2vec2-bert", "seamless_m4t_v2"] {
        let shaw = read(json!({"model_type": model_type, "left_max_position_embeddings": 32}));
        let Some(LogitBias::Relative { queries: Some(distances), .. }) = shaw.layer(0).unwrap().bias else {
            panic!("{}", shaw.describe())
        };
        assert_eq!(*distances, Distances::shaw(32, 8));
    }
    // CLVP's flag; more channels than a head has; a speech encoder's own count of layers.
    let none = read(json!({"model_type": "clvp_encoder", "use_rotary_embedding": false}));
    assert_eq!(none.without(), Some("nothing: use_rotary_embedding is false"));
    let error = ModelRope::from_hf(r#"{"model_type": "clvp_encoder", "projection_dim": 4096}"#).unwrap_err();
    assert_eq!(error.to_string(), "projection_dim 4096 gives 170 rotated channels, a head has 64");
    let seamless = read(
        json!({"model_type": "seamless_m4t", "speech_encoder_layers": 5, "num_hidden_layers": 24, "position_embeddings_type": "rotary"}),
    );
    assert_eq!(seamless.rope().layers(), Some(5));
}

/// Meta's Llama 4 tower, DINOv3 ViT-S/16 and SAM 3, in words (T).
#[test]
fn towers_say_how_patches_are_counted() {
    let describe = |config: Value| ModelRope::from_hf(&config.to_string()).unwrap().describe();
    let text = describe(json!({"model_type": "llama4_vision_model", "hidden_size": 1408, "num_attention_heads": 16}));
    assert!(text.contains("positions of patches: column, row from 1; 1 tokens after the patches are not rotated\n"));
    let text = describe(json!({"model_type": "dinov3_vit", "num_register_tokens": 4}));
    assert!(text.contains(
        "positions of patches: row, column, centres from -1 to 1, each by its own length, in units of 2^-32; \
         5 tokens before the patches are not rotated\n"
    ));
    let text = describe(json!({"model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "num_heads": 16}));
    assert!(text.contains("positions of patches: row, column from 0; in blocks of 2 x 2 patches\n"));
    let text = describe(json!({"model_type": "mlcd_vision_model"}));
    assert!(text.contains("note: the class token has learned angles") && !text.contains("positions of patches"));
    // 72 patches a side, windows of 24: a third of the rate.
    let sam3 = ModelRope::from_hf(r#"{"model_type": "sam3_vit_model", "num_hidden_layers": 32}"#).unwrap();
    let rate = |layer: usize| sam3.layer(layer).unwrap().rope.as_ref().unwrap().frequency(0);
    near(rate(6), 1.0);
    near(rate(7), 1.0 / 3.0);
}

/// MusicFlamingo's file is its language model's, unless its own type is named.
#[test]
fn sound_is_read_by_its_name() {
    let config = json!({"model_type": "musicflamingo", "audio_config": {"hidden_size": 1280},
        "text_config": {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_hidden_layers": 28}});
    let text = config.to_string();
    assert_eq!(ModelRope::from_hf(&text).unwrap().rope().unwrap(), &half(128, 1e4));
    let sound = ModelRope::from_hf_as(&text, "musicflamingo").unwrap();
    assert_eq!((sound.rope().unwrap().rotary, sound.kinds()[0].head), (512, 1280));
    assert!(sound.describe().contains("posenc::position::timed_windows"));
    let mut wrong = config;
    wrong["audio_frame_step"] = json!(0.0);
    let error = ModelRope::from_hf_as(&wrong.to_string(), "musicflamingo").unwrap_err();
    assert_eq!(error.to_string(), "audio_frame_step is 0, it must be above 0");
    let error = ModelRope::from_hf_as(r#"{"num_uid_rope_pairs": 11}"#, "esmfold2_atom_encoder").unwrap_err();
    assert_eq!(error.to_string(), "atoms turn 17 pairs, a head has 16");
    assert!(timed_windows(0, 5).unwrap().is_empty() && timed_windows(5, 0).unwrap().is_empty());
    let error = timed_windows(1 << 30, 1 << 30).unwrap_err().to_string();
    assert_eq!(error, "1073741824 windows of 1073741824 frames have positions beyond 63 bits");
}

#[test]
fn sizes_of_towers_must_fit() {
    let refused = |config: Value| ModelRope::from_hf(&config.to_string()).unwrap_err().to_string();
    assert_eq!(
        refused(
            json!({"model_type": "sam2_video", "memory_attention_hidden_size": 256, "memory_attention_num_attention_heads": 3})
        ),
        "memory_attention_hidden_size 256 does not divide into 3, the product of its downsample rate and heads"
    );
    assert_eq!(
        refused(json!({"model_type": "efficientloftr", "num_attention_heads": 4})),
        "partial_rotary_factor is 4 of 4 heads, rows and columns must share all heads equally"
    );
    assert_eq!(
        refused(json!({"model_type": "sam3_vit_model", "num_hidden_layers": 8})),
        "global_attn_indexes holds 15, the model has 8 layers"
    );
    assert_eq!(
        refused(json!({"model_type": "dinov3_vit", "rope_parameters": {"rope_type": "linear", "factor": 2.0}})),
        "rope_type is \"linear\", model_type \"dinov3_vit\" has default alone"
    );
    assert_eq!(
        refused(json!({"model_type": "inkling2_vision", "spatial_merge_size": 0})),
        "spatial_merge_size is 0, it must be at least 1"
    );
}
