//! Norms, biases and their order in every layer, as the attention classes of transformers 5.24.0 have them.

use half::bf16;
use posenc::model::{LayerPrologue, ModelPrologue};
use posenc::rotate::{Branch, NormOver, NormWeight, Prologue, Qkv, Rounding, Vectors};
use posenc::{Error, Heads, Pairing, Positions, Scalar};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../golden/prologue.json")).unwrap()
}

/// The numbers that the script puts in place of a projection, a bias or a weight.
fn numbers<T: Scalar>(seed: usize, len: usize) -> Vec<T> {
    (1..=len).map(|i| T::from_f32((i * (2 * seed + 3) * 37 % 257) as f32 / 64.0 - 2.0)).collect()
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(item).collect()
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// Weight and bias of a branch, where its spec has them.
fn vectors<T: Scalar>(which: Qkv, branch: &Branch, heads: &Heads, gated: bool) -> [Option<Vec<T>>; 2] {
    let all = heads.heads * heads.dim;
    let weight = branch.norm.filter(|norm| norm.weight != NormWeight::None);
    let len = weight.map(|norm| if norm.over == NormOver::AllHeads { all } else { heads.dim });
    let bias = branch.bias.then(|| {
        // The bias of queries and gate is interleaved as they are.
        let whole: Vec<T> = numbers(which as usize + 4, if gated { 2 * all } else { all });
        let (row, own) = if gated { (2 * heads.dim, heads.dim) } else { (all, all) };
        whole.chunks(row).flat_map(|row| row[..own].to_vec()).collect()
    });
    [len.map(|len| numbers(which as usize + 7, len)), bias]
}

/// Queries, keys or values behind a projection of known numbers.
fn applied<T: Scalar>(prologue: &Prologue, which: Qkv, heads: &Heads, gated: bool, positions: &[i64]) -> Vec<T> {
    let axes = prologue.rope.as_ref().map_or(1, |rope| rope.axes.count());
    let ids = positions.repeat(axes);
    let [weight, bias] = vectors::<T>(which, prologue.branch(which), heads, gated);
    let shape = if gated {
        let row = 2 * heads.heads * heads.dim;
        Heads { strides: [heads.tokens * row, row, 2 * heads.dim], ..*heads }
    } else {
        *heads
    };
    let mut x: Vec<T> = numbers(which as usize + 1, heads.tokens * heads.heads * heads.dim * if gated { 2 } else { 1 });
    let vectors = Vectors { weight: weight.as_deref(), bias: bias.as_deref() };
    prologue.apply(which, &mut x, &shape, vectors, Positions::ids(&ids[..]), None).unwrap();
    let mut out = Vec::new();
    for token in 0..heads.tokens {
        for head in 0..heads.heads {
            let at = shape.index(0, token, head, 0);
            out.extend_from_slice(&x[at..at + heads.dim]);
        }
    }
    out
}

/// transformers 5.24.0 itself, whose angles are of f32.
#[test]
fn classes_of_transformers_do_the_same_between_projection_and_attention() {
    let golden = golden();
    let positions = list(&golden["positions"], |n| n.as_i64().unwrap());
    let mut branches = 0;
    for case in golden["cases"].as_array().unwrap() {
        let config = case["config"].to_string();
        let name = case["config"]["model_type"].as_str().unwrap();
        let model = ModelPrologue::from_hf(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
        for layer in case["layers"].as_array().unwrap() {
            // Llama 4's factor counts tokens.
            let own = &layer["positions"];
            let positions = if own.is_null() { positions.clone() } else { list(own, |n| n.as_i64().unwrap()) };
            let LayerPrologue { prologue, gated, shares_keys, .. } = model.layer(count(&layer["layer"])).unwrap();
            for which in [Qkv::Query, Qkv::Key, Qkv::Value] {
                if *shares_keys && which != Qkv::Query {
                    continue;
                }
                let at = which as usize;
                let shape = &layer["shapes"][at];
                let heads = Heads::thd(positions.len(), count(&shape[0]), count(&shape[1]));
                assert_eq!(layer["bias"][at], prologue.branch(which).bias, "bias of {which:?}, {config}");
                let mut own = prologue.clone();
                // These classes take interleaved pairs and leave them in halves.
                if ["deepseek_v3", "mistral4"].contains(&name)
                    && let Some(rope) = &mut own.rope
                {
                    rope.pairing_out = Some(Pairing::Half);
                }
                // A call in place moves no pairs; a branch that does is the spec's reference.
                let got: Vec<f64> = if own.rope.as_ref().is_some_and(|rope| rope.pairing_out.is_some()) {
                    let [weight, bias] = vectors::<f32>(which, own.branch(which), &heads, false);
                    let x: Vec<f32> = numbers(at + 1, heads.tokens * heads.heads * heads.dim);
                    let vectors = Vectors { weight: weight.as_deref(), bias: bias.as_deref() };
                    own.expect(which, (&x, &heads), vectors, Positions::ids(&positions[..])).unwrap().want
                } else {
                    let gated = *gated && which == Qkv::Query;
                    applied::<f32>(&own, which, &heads, gated, &positions).into_iter().map(f64::from).collect()
                };
                let want = list(&layer[["q", "k", "v"][at]], |x| x.as_f64().unwrap());
                assert_eq!(got.len(), want.len(), "{which:?}, {config}");
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let off = (got - want).abs();
                    assert!(off <= 2e-5 * want.abs().max(1.0), "{which:?}, {i}: {got} is not {want}, {config}");
                }
                branches += 1;
            }
        }
    }
    assert!(branches > 200, "{branches}");
}

/// The bits of the class's own norm in bf16.
#[test]
fn norms_round_where_the_classes_do() {
    let golden = golden();
    let (mut norms, mut differ) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let model = ModelPrologue::from_hf(&case["config"].to_string()).unwrap();
        for layer in case["layers"].as_array().unwrap() {
            let LayerPrologue { prologue, .. } = model.layer(count(&layer["layer"])).unwrap();
            for (which, name) in [(Qkv::Query, "q"), (Qkv::Key, "k"), (Qkv::Value, "v")] {
                let norm = &layer["norm_bf16_bits"][name];
                if norm.is_null() {
                    continue;
                }
                let shape = &layer["shapes"][which as usize];
                let heads = Heads::thd(2, count(&shape[0]), count(&shape[1]));
                let own = *prologue.branch(which);
                assert!(
                    own.norm.is_some() || model.layer(3).is_ok_and(|layer| layer.shares_keys),
                    "{}",
                    case["config"]
                );
                let alone = |rounding| {
                    let branch = Branch { bias: false, rope: false, rounding, ..own };
                    let prologue = Prologue { q: branch, k: branch, v: branch, ..Prologue::plain() };
                    let bits = applied::<bf16>(&prologue, which, &heads, false, &[0, 0]);
                    bits.into_iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>()
                };
                let want = list(norm, |bits| bits.as_u64().unwrap());
                assert_eq!(alone(own.rounding), want, "{name}, {}", case["config"]);
                norms += 1;
                let other = match own.rounding {
                    Rounding::BeforeWeight => Rounding::Steps,
                    _ => Rounding::BeforeWeight,
                };
                differ += usize::from(alone(other) != want);
            }
        }
    }
    assert!(norms > 30 && differ > 20, "{norms} {differ}");
}

#[test]
fn a_silent_config_has_the_eps_of_its_class() {
    for case in golden()["cases"].as_array().unwrap() {
        let Some(eps) = case["default_eps"].as_f64() else { continue };
        let mut config = case["config"].clone();
        let map = config.as_object_mut().unwrap();
        map.retain(|key, _| !key.ends_with("norm_eps"));
        let model = ModelPrologue::from_hf(&config.to_string()).unwrap();
        let layer = model.layer(count(&case["layers"][0]["layer"])).unwrap();
        let norm = if layer.latent { layer.prologue.v.norm } else { layer.prologue.k.norm };
        assert_eq!(norm.map(|norm| norm.eps), Some(eps), "{config}");
    }
}

#[test]
fn what_a_prologue_has_not_is_refused_with_a_sentence() {
    let refused = |config: Value| ModelPrologue::from_hf(&config.to_string()).unwrap_err().to_string();
    let llama = |more: Value| {
        let mut config = json!({"head_dim": 8, "num_hidden_layers": 2});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    for (config, why) in [
        (
            llama(json!({"model_type": "cohere", "use_qk_norm": true})),
            "use_qk_norm is true: a step that a prologue does not have",
        ),
        (
            llama(json!({"model_type": "phi", "qk_layernorm": true})),
            "qk_layernorm is true: a step that a prologue does not have",
        ),
        (
            llama(json!({"model_type": "olmo", "clip_qkv": 8.0})),
            "clip_qkv is 8.0: a step that a prologue does not have",
        ),
        (
            llama(json!({"model_type": "persimmon"})),
            "norms and biases of model_type \"persimmon\" are not known; ModelPrologue::from_hf_as reads it as a known one",
        ),
        (llama(json!({"model_type": "qwen3", "attention_bias": 1})), "attention_bias is 1, it must be true or false"),
        (
            llama(
                json!({"model_type": "gemma4_text", "num_kv_shared_layers": 2, "layer_types": ["full_attention", "full_attention"],
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}),
            ),
            "num_kv_shared_layers is 2, the model has 2 layers",
        ),
    ] {
        assert_eq!(refused(config), why);
    }
    let hybrid = llama(json!({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}));
    let model = ModelPrologue::from_hf(&hybrid.to_string()).unwrap();
    assert!(model.layer(1).unwrap().gated);
    let error = model.layer(0).unwrap_err();
    assert!(matches!(error, Error::Config(_)));
    assert_eq!(error.to_string(), "layer 0 of qwen3_next is \"linear_attention\", which has no queries and keys");
    assert_eq!(model.layer(2).unwrap_err().to_string(), "layer 2 is asked for, the model has 2");
}

#[test]
fn a_length_changes_the_rotation_alone() {
    let config = json!({"model_type": "qwen3", "head_dim": 8, "num_hidden_layers": 2, "max_position_embeddings": 64,
        "rope_theta": 1e4, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
    let model = ModelPrologue::from_hf(&config.to_string()).unwrap();
    let longer = model.at_length(100);
    assert_eq!(longer.rope(), &model.rope().at_length(100));
    for layer in 0..2 {
        let (short, long) = (model.layer(layer).unwrap(), longer.layer(layer).unwrap());
        assert_ne!(short.prologue.rope, long.prologue.rope);
        assert_eq!(long.prologue.rope, longer.rope().layer(layer).unwrap().rope);
        assert_eq!(Prologue { rope: short.prologue.rope.clone(), ..long.prologue.clone() }, short.prologue);
    }
}
