//! Mistral's `params.json`.

use posenc::rotate::{QueryScale, Yarn};
use posenc::{ModelRope, Pairing, Scaling};
use serde_json::{Value, json};

use Pairing::Interleaved;

use super::{near, spec};

#[test]
fn mistrals_own_files_are_read() {
    let model = ModelRope::from_mistral(
        &json!({"dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": 32, "rope_theta": 1000000.0, "max_seq_len": 32768, "sliding_window": 4096}).to_string(),
    );
    let model = model.unwrap();
    assert_eq!(model.rope().unwrap(), &spec(128, 0, Interleaved, 1e6, Scaling::None));
    assert_eq!((model.layers(), model.context()), (Some(32), Some(32768)));
    // Mistral-Large-3 (P)
    let large = json!({"dim": 7168, "n_layers": 61, "head_dim": 128, "n_heads": 128, "rope_theta": 10000.0, "max_position_embeddings": 294912,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        "yarn": {"original_max_position_embeddings": 8192, "factor": 36, "apply_scale": false, "beta": 32, "alpha": 1},
        "llama_4_scaling": {"original_max_position_embeddings": 8192, "beta": 0.1}});
    let model = ModelRope::from_mistral(&large.to_string()).unwrap();
    let layer = model.layer(60).unwrap();
    assert_eq!(layer.rope, Some(spec(64, 128, Interleaved, 1e4, Scaling::Yarn(Yarn::new(36.0, 8192.0)))));
    assert_eq!(layer.logit_scale, 1.0);
    assert_eq!(layer.query_scale, QueryScale::Mistral { beta: 0.1, original_context: 8192.0 });
    // Without apply_scale: on the logits of latent attention, on cos and sin elsewhere.
    let mut scaled = large.clone();
    scaled["yarn"]["apply_scale"] = json!(true);
    let layer = ModelRope::from_mistral(&scaled.to_string()).unwrap().kinds()[0].clone();
    near(layer.logit_scale, (0.1 * 36f64.ln() + 1.0).powi(2));
    assert_eq!(layer.rope.unwrap().attention_factor, 1.0);
    let plain =
        json!({"head_dim": 128, "rope_theta": 1e6, "yarn": {"original_max_position_embeddings": 16384, "factor": 16}});
    near(ModelRope::from_mistral(&plain.to_string()).unwrap().rope().unwrap().attention_factor, 1.277259);
}

/// Mistral 7B v0.1's params.json has no base; its authors' code has 10000.
#[test]
fn a_params_file_without_a_base_has_10000() {
    let first = json!({"dim": 4096, "n_layers": 32, "head_dim": 128, "n_heads": 32, "sliding_window": 4096});
    assert_eq!(ModelRope::from_mistral(&first.to_string()).unwrap().rope().unwrap().base, 1e4);
}

#[test]
fn mistral_files_that_are_not_understood_are_refused() {
    let refused = |config: Value| ModelRope::from_mistral(&config.to_string()).unwrap_err().to_string();
    assert_eq!(refused(json!({"head_dim": 128, "rope_theta": "a"})), "rope_theta is \"a\", it must be a number");
    assert_eq!(refused(json!({"rope_theta": 1e4, "dim": 100, "n_heads": 3})), "dim 100 does not divide into 3 heads");
    assert_eq!(
        refused(
            json!({"head_dim": 128, "rope_theta": 1e4, "yarn": {"factor": 16, "original_max_position_embeddings": 8192, "gamma": 1}})
        ),
        "yarn holds gamma, which this crate does not know"
    );
    assert_eq!(
        refused(json!({"head_dim": 128, "rope_theta": 1e4, "rope_kind": "new"})),
        "params.json holds rope_kind, which this crate does not know"
    );
    assert!(ModelRope::from_mistral("{").unwrap_err().to_string().starts_with("params.json is not JSON: "));
}
