//! Mistral's `params.json`.

use serde_json::Value;

use super::keys::{Keys, not_json, wrong};
use super::{Layer, ModelRope, check_layers};
use crate::rotate::{QueryScale, Rope, Scaling, Yarn, mla_logit_scale};
use crate::{Error, Pairing, Result};

impl ModelRope {
    /// The RoPE of every layer as Mistral's `params.json` states it.
    ///
    /// Pairs are interleaved, as in Mistral's own weights (`consolidated.safetensors`); Hugging Face's files of models without
    /// latent attention hold the same weights reordered for halves.
    ///
    /// | key | meaning |
    /// |---|---|
    /// | `rope_theta` | base; 10000 where it is absent |
    /// | `head_dim`, or `dim` and `n_heads`; `qk_rope_head_dim`, `qk_nope_head_dim` | sizes |
    /// | `yarn.factor`, `.original_max_position_embeddings`, `.beta` (fast), `.alpha` (slow) | YaRN |
    /// | `yarn.apply_scale` | whether YaRN's factor multiplies cos and sin; true where it is absent |
    /// | `llama_4_scaling.beta`, `.original_max_position_embeddings` | [`QueryScale::Mistral`] |
    ///
    /// With latent attention and `apply_scale: false`, vLLM multiplies logits by nothing and Hugging Face by
    /// `mscale^2` of its own copy of the config; this follows the file, so [`Layer::logit_scale`] is 1.
    ///
    /// # Errors
    /// [`Error::Config`] if the text is not JSON, a key is missing or not what it must be, or one about RoPE is not known.
    ///
    /// # Example
    /// ```
    /// use posenc::ModelRope;
    /// let model = ModelRope::from_mistral(r#"{"dim": 4096, "n_heads": 32, "n_layers": 32, "rope_theta": 1000000.0}"#)?;
    /// assert_eq!(model.rope()?.rotary, 128);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn from_mistral(json: &str) -> Result<Self> {
        let value: Value = match super::json::parse(json) {
            Ok(value) => value,
            Err(error) => return not_json("params.json", json, &error),
        };
        let Value::Object(map) = &value else { return wrong("params.json is not a JSON object") };
        let params = Keys::new("params.json", map);
        let rotary = params.count("qk_rope_head_dim")?;
        let (head, rotary, offset) = match rotary {
            Some(rotary) => {
                let Some(nope) = params.count("qk_nope_head_dim")? else {
                    return wrong("qk_nope_head_dim is missing, qk_rope_head_dim needs it");
                };
                (nope + rotary, rotary, nope)
            }
            None => {
                let head = match params.count("head_dim")? {
                    Some(head) => head,
                    None => {
                        let dim = params.needed("dim", "a head size that head_dim does not give")?;
                        let heads = params.needed("n_heads", "a head size that head_dim does not give")?;
                        if heads < 1.0 || dim % heads != 0.0 {
                            return wrong(format!("dim {dim} does not divide into {heads} heads"));
                        }
                        (dim / heads) as usize
                    }
                };
                (head, head, 0)
            }
        };
        // Mistral 7B v0.1: the default of its authors' code.
        let theta = params.number("rope_theta")?.unwrap_or(10_000.0);
        let mut scaling = Scaling::None;
        let (mut attention_factor, mut logit_scale) = (1.0, 1.0);
        if let Some(yarn) = params.object("yarn")? {
            let yarn = Keys::new("yarn", yarn);
            let (factor, original) =
                (yarn.needed("factor", "yarn")?, yarn.needed("original_max_position_embeddings", "yarn")?);
            let spec = Yarn {
                beta_fast: yarn.number("beta")?.unwrap_or(32.0),
                beta_slow: yarn.number("alpha")?.unwrap_or(1.0),
                ..Yarn::new(factor, original)
            };
            if yarn.flag("apply_scale")?.unwrap_or(true) {
                // In latent attention the scale belongs to the whole logit.
                if offset > 0 {
                    logit_scale = mla_logit_scale(factor, 1.0);
                } else {
                    attention_factor = spec.attention_factor();
                }
            }
            refuse_unknown(&yarn, |_| true)?;
            scaling = Scaling::Yarn(spec);
        }
        let mut query_scale = QueryScale::One;
        if let Some(temperature) = params.object("llama_4_scaling")? {
            let temperature = Keys::new("llama_4_scaling", temperature);
            query_scale = QueryScale::Mistral {
                beta: temperature.needed("beta", "llama_4_scaling")?,
                original_context: temperature.needed("original_max_position_embeddings", "llama_4_scaling")?,
            };
            refuse_unknown(&temperature, |_| true)?;
        }
        let context = params.count("max_position_embeddings")?.or(params.count("max_seq_len")?);
        let layers = check_layers("n_layers", params.count("n_layers")?)?.unwrap_or(0);
        refuse_unknown(&params, |key| key.contains("rope") || key.contains("rotary"))?;
        let rope =
            Rope { offset, pairing: Pairing::Interleaved, scaling, attention_factor, ..Rope::new(rotary, theta) };
        let layer = Layer { rope: Some(rope), logit_scale, query_scale, ..Layer::none("every layer", head) };
        let context = context.map(|context| context as u64);
        Self::new("mistral".into(), context, vec![layer], vec![0; layers], Vec::new())
    }
}

fn refuse_unknown(keys: &Keys<'_>, matters: impl Fn(&str) -> bool) -> Result<()> {
    match keys.unasked().into_iter().find(|key| matters(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Config(format!("{} holds {key}, which this crate does not know", keys.name()))),
    }
}
