//! RoPE from a Hugging Face `config.json`.

use serde_json::{Map, Value};

use crate::rotate::{Pairing, Rope, Scaling};
use crate::{Error, Result};

fn wrong<T>(text: String) -> Result<T> {
    Err(Error::Config(text))
}

/// A number of `map`; `None` where the key is absent or null.
fn number(map: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => wrong(format!("{key} is {value}, it must be a number")),
        },
    }
}

fn needed(map: &Map<String, Value>, key: &str, because: &str) -> Result<f64> {
    match number(map, key)? {
        Some(number) => Ok(number),
        None => wrong(format!("{key} is missing, {because} needs it")),
    }
}

/// A whole number of `map`.
fn count(map: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    match number(map, key)? {
        None => Ok(None),
        Some(number) if number >= 0.0 && number.fract() == 0.0 && number < 4294967296.0 => Ok(Some(number as usize)),
        Some(number) => wrong(format!("{key} is {number}, it must be a whole number below 2^32")),
    }
}

impl Rope {
    /// RoPE as a model's `config.json` states it.
    ///
    /// # Errors
    /// [`Error::Config`] if the text is not JSON, a key is missing or not a number, or a key that changes the result is
    /// not understood.
    pub fn from_hf_config(json: &str) -> Result<Self> {
        let value: Value = match serde_json::from_str(json) {
            Ok(value) => value,
            Err(error) => return wrong(format!("the config is not JSON: {error}")),
        };
        let Value::Object(config) = value else {
            return wrong("the config is not a JSON object".into());
        };
        let head = match count(&config, "head_dim")? {
            Some(head) => head,
            None => {
                let hidden = needed(&config, "hidden_size", "a head size that head_dim does not give")?;
                let heads = needed(&config, "num_attention_heads", "a head size that head_dim does not give")?;
                let head = hidden / heads;
                if head.fract() != 0.0 {
                    return wrong(format!("hidden_size {hidden} does not divide into {heads} heads"));
                }
                head as usize
            }
        };
        if head % 2 == 1 {
            return wrong(format!("the head size is {head}, it must be even"));
        }
        let rope = Self {
            pairing: Pairing::Half,
            scaling: scaling(&config)?,
            ..Self::new(head, needed(&config, "rope_theta", "RoPE")?)
        };
        rope.check()?;
        Ok(rope)
    }
}

fn scaling(config: &Map<String, Value>) -> Result<Scaling> {
    let map = match config.get("rope_scaling") {
        None | Some(Value::Null) => return Ok(Scaling::None),
        Some(Value::Object(map)) => map,
        Some(value) => return wrong(format!("rope_scaling is {value}, it must be an object or null")),
    };
    let kind = match map.get("rope_type").or_else(|| map.get("type")) {
        Some(Value::String(kind)) => kind.as_str(),
        Some(value) => return wrong(format!("rope_type is {value}, it must be a string")),
        None => return wrong("rope_type is missing in rope_scaling".into()),
    };
    match kind {
        "default" => Ok(Scaling::None),
        "llama3" => {
            let because = "rope_type llama3";
            Ok(Scaling::Llama3 {
                factor: needed(map, "factor", because)?,
                low: needed(map, "low_freq_factor", because)?,
                high: needed(map, "high_freq_factor", because)?,
                original_context: needed(map, "original_max_position_embeddings", because)?,
            })
        }
        other => wrong(format!("rope_type is {other:?}, this crate knows default and llama3")),
    }
}
