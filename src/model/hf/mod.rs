//! Hugging Face's `config.json`: legacy `rope_scaling`, version 5's `rope_parameters`, and the keys of single models.

mod carried;
mod classes;
mod families;
mod layer;
mod layers;
mod measured;
mod others;
mod scaling;
mod towers;

use serde_json::{Map, Value};

pub(super) use self::layers::WITHOUT_ATTENTION;

use self::families::{Family, Form, family};
use self::layers::Kind;
use self::others::{Other, other};
use super::keys::{Keys, not_json, wrong};
use super::positions::{Carrier, Read};
use super::{Known, Layer, ModelRope, check_layers, json};
use crate::Result;

/// Names of one type.
fn same_type(kind: &str, model_type: &str) -> String {
    match kind {
        "su" => "longrope",
        // Phi-3's first files.
        "yarn" if model_type == "phi3" => "longrope",
        "mrope" => "default",
        "xdrope" => "ntk_alpha",
        "deepseek_yarn" => "yarn",
        other => other,
    }
    .to_string()
}

/// The type that a map of rope parameters names.
fn rope_type(map: &Keys<'_>, model_type: &str) -> Result<String> {
    match (map.text("rope_type")?, map.text("type")?) {
        (Some(new), Some(old)) if same_type(new, model_type) != same_type(old, model_type) => {
            wrong(format!("{0}.rope_type is {new:?} and {0}.type is {old:?}, they must be the same", map.name()))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(same_type(kind, model_type)),
        (None, None) => Ok("default".into()),
    }
}

/// What the legacy and the version-5 map say together; refuses a contradiction.
fn merge(config: &Keys<'_>, model_type: &str) -> Result<Map<String, Value>> {
    let legacy = config.object("rope_scaling")?;
    let modern = config.object("rope_parameters")?;
    let mut merged = modern.cloned().unwrap_or_default();
    let Some(legacy) = legacy else { return Ok(merged) };
    if !merged.is_empty() {
        let old = rope_type(&Keys::new("rope_scaling", legacy), model_type)?;
        let new = rope_type(&Keys::new("rope_parameters", &merged), model_type)?;
        if nested(&merged) || old != new {
            return wrong(format!(
                "rope_scaling says {old:?} and rope_parameters {}, a config must have one of them",
                if nested(&merged) { "has an entry for each layer type".to_string() } else { format!("{new:?}") }
            ));
        }
    }
    for (key, value) in legacy {
        match merged.get(key) {
            Some(new) if !equal(new, value) && key != "type" && key != "rope_type" => {
                return wrong(format!(
                    "rope_scaling.{key} is {value} and rope_parameters.{key} is {new}, they must be the same"
                ));
            }
            _ => _ = merged.insert(key.clone(), value.clone()),
        }
    }
    Ok(merged)
}

/// Whether two values are the same, 8 and 8.0 too.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// Whether a map has an entry for each layer type instead of parameters.
fn nested(map: &Map<String, Value>) -> bool {
    map.values().any(Value::is_object)
}

/// The sub-config of a multimodal model that is the language model's.
const LANGUAGE: &[&str] = &["text_config", "llm_config", "language_config", "thinker_config", "decoder_config"];

impl ModelRope {
    /// The RoPE of every layer as a model's `config.json` states it.
    ///
    /// Of a multimodal model, the language model's. Legacy `rope_theta` and `rope_scaling`, version 5's `rope_parameters`
    /// (one, or one for each layer type), and the keys of single models are understood; where a key is absent, the model's
    /// class decides, as in transformers 5.24.0. Numbers that Python writes and JSON has not (`NaN`, `Infinity`) are read.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the text is not JSON, a key that is needed is missing or not what it must
    /// be, legacy and version-5 keys contradict each other, a key that has to do with RoPE is not understood, or the
    /// model's type is not known; [`ModelRope::from_hf_as`] reads such a config. [`Error::Value`](crate::Error::Value) if a
    /// number is outside the law of its scaling.
    ///
    /// # Example
    /// ```
    /// use posenc::ModelRope;
    /// let model = ModelRope::from_hf(
    ///     r#"{"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 36, "max_position_embeddings": 40960,
    ///         "rope_theta": 1000000, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
    ///                                                 "original_max_position_embeddings": 32768}}"#,
    /// )?;
    /// assert_eq!(
    ///     model.describe(),
    ///     "qwen3, 36 layers, 40960 positions\n\
    ///      every layer (36 from layer 0): RoPE over all 128 channels in halves, base 1000000; YaRN by 4 of 32768; \
    ///      cos and sin times 1.138629436111989\n"
    /// );
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn from_hf(json: &str) -> Result<Self> {
        Ok(read(json, None)?.rope)
    }

    /// [`ModelRope::from_hf`] for a model whose own type is not known but which rotates as `model_type` does: pairs and
    /// missing keys are that type's.
    ///
    /// # Errors
    /// As [`ModelRope::from_hf`].
    pub fn from_hf_as(json: &str, model_type: &str) -> Result<Self> {
        Ok(read(json, Some(model_type))?.rope)
    }
}

/// The language model's own config, the type whose conventions it follows, and its name.
pub(super) fn language<'a>(
    text: &str,
    value: &'a mut Value,
    as_type: Option<&'a str>,
) -> Result<(&'a Map<String, Value>, &'a str, &'a str)> {
    *value = match json::parse(text) {
        Ok(value) => value,
        Err(error) => return not_json("the config", text, &error),
    };
    let Value::Object(whole) = &*value else {
        return wrong("the config is not a JSON object");
    };
    let mut map = whole;
    let mut outer_type = map.get("model_type");
    // The encoder behind SAM's, of DeepSeek-OCR 2's tower.
    let tower =
        (map.get("model_type").and_then(Value::as_str) == Some("deepseek_ocr2_vision")).then_some("encoder_config");
    let part = Reader::part_of(as_type);
    // Named, MusicFlamingo is the rotation of its sound, not its language model.
    let parts = LANGUAGE.iter().copied().filter(|_| as_type != Some("musicflamingo"));
    let map = loop {
        match part.into_iter().chain(parts.clone()).chain(tower).find_map(|key| map.get(key)?.as_object()) {
            Some(inner) => {
                outer_type = inner.get("model_type").or(outer_type);
                refuse_outer(map, inner)?;
                map = inner;
            }
            None => break map,
        }
    };
    let own_type = match outer_type {
        Some(Value::String(name)) => Some(name.as_str()),
        None | Some(Value::Null) => None,
        Some(value) => return wrong(format!("model_type is {value}, it must be a string")),
    };
    let Some(model_type) = as_type.or(own_type) else {
        return wrong(
            "model_type is missing; it decides which channels form a pair (ModelRope::from_hf_as can name one)",
        );
    };
    let name = own_type.unwrap_or(model_type);
    Ok((map, model_type, name))
}

pub(super) fn read(text: &str, as_type: Option<&str>) -> Result<Read> {
    let mut value = Value::Null;
    let (map, model_type, name) = language(text, &mut value, as_type)?;
    let config = Keys::new("the config", map);
    let (family, other) = (family(model_type), other(model_type));
    if family.is_none() && other.is_none() {
        return wrong(format!(
            "model_type is {model_type:?}, which this crate does not know; ModelRope::from_hf_as reads it as a known one"
        ));
    }
    let rotates = family.is_some();
    Reader {
        config,
        family: family.unwrap_or(Family::new(crate::Pairing::Half, 10_000.0)),
        rotates,
        other,
        model_type,
        name,
    }
    .read()
}

pub(super) fn known() -> Vec<Known> {
    let apart = families::all().filter(|(name, _)| other(name).is_none());
    let rotating = apart.map(|(name, family)| {
        let pairs = match family.pairing {
            crate::Pairing::Half => "RoPE in halves",
            crate::Pairing::Interleaved => "RoPE interleaved",
        };
        let positions = match family.form {
            Form::Refused(why) => format!("refused: {why}"),
            _ => pairs.into(),
        };
        Known { name, positions, source: "" }
    });
    let others = others::all().map(|(name, other)| {
        let mut positions: String = match other {
            Other::Deberta | Other::Inkling | Other::SpeechT5 | Other::Vits | Other::Wav2Vec2Bert => {
                Carrier::Relative(Vec::new()).text().into()
            }
            other => other.carrier().map_or(String::new(), |carrier| carrier.text().into()),
        };
        if family(name).is_some() {
            positions += "; RoPE in halves if `position_embeddings_type` is rotary";
        }
        Known { name, positions, source: "" }
    });
    let mut known: Vec<Known> = rotating.chain(others).collect();
    known.sort_by_key(|known| known.name);
    known
}

/// Refuses RoPE's keys beside the language model's config that it does not repeat: they would be lost.
fn refuse_outer(outer: &Map<String, Value>, inner: &Map<String, Value>) -> Result<()> {
    for key in ["rope_theta", "rope_scaling", "rope_parameters"] {
        let says = |map: &Map<String, Value>| map.get(key).filter(|value| !value.is_null()).cloned();
        match (says(outer), says(inner)) {
            (None, _) => {}
            (Some(out), Some(inn)) if equal(&out, &inn) => {}
            _ => return wrong(format!("{key} stands beside the language model's config and says something else")),
        }
    }
    Ok(())
}

struct Reader<'a> {
    config: Keys<'a>,
    family: Family,
    /// whether the type has a family, and with it pairs
    rotates: bool,
    /// what the class has in place of RoPE
    other: Option<Other>,
    model_type: &'a str,
    name: &'a str,
}

impl<'a> Reader<'a> {
    fn read(self) -> Result<Read> {
        let config = &self.config;
        // Its other layers are the text's.
        let speech = self.model_type.starts_with("seamless_m4t").then(|| config.count("speech_encoder_layers"));
        let count = match speech.unwrap_or_else(|| config.count("num_hidden_layers"))? {
            Some(count) => Some(count),
            None => {
                let mut count = None;
                let tower = ["layers", "memory_attention_num_layers", "num_attention_layers"];
                let tower = matches!(self.family.form, Form::Grid(_)).then_some(tower);
                let keys = ["n_layer", "num_layers", "n_layers", "depth", "num_transformer_layers"];
                for key in keys.into_iter().chain(tower.into_iter().flatten()) {
                    count = count.or(config.count(key)?);
                }
                count
            }
        };
        let count = check_layers("num_hidden_layers", count)?;
        let context = [
            "max_position_embeddings",
            "n_positions",
            "seq_length",
            "model_max_length",
            "max_sequence_length",
            "max_seq_len",
            "max_context_length",
        ];
        let mut positions = None;
        for key in context {
            positions = positions.or(config.count(key)?);
        }
        let context = positions.map(|positions| positions as u64);
        if let Form::Refused(why) = self.family.form {
            return wrong(format!("model_type is {:?}: {why}", self.model_type));
        }
        if let Some(carrier) = self.without_rope(count)? {
            return self.carried(carrier, count, context);
        }

        let merged = merge(config, self.model_type)?;
        if merged.is_empty() && self.family.must_say {
            return wrong(format!(
                "rope_parameters is missing; the class of model_type {:?} scales by default, so the config must say how",
                self.model_type
            ));
        }
        let layers = self.kinds(count, &merged)?;
        let mut kinds: Vec<Kind> = Vec::new();
        let mut indices = Vec::new();
        for kind in &layers {
            let index = kinds.iter().position(|other| other == kind).unwrap_or_else(|| {
                kinds.push(kind.clone());
                kinds.len() - 1
            });
            indices.push(index);
        }
        if count.is_none() {
            indices.clear();
        }
        let mut notes = Vec::new();
        let built: Vec<Layer> =
            kinds.iter().map(|kind| self.layer(kind, &merged, context, &mut notes)).collect::<Result<_>>()?;
        // Labels that come to the same layer are one kind.
        let mut distinct: Vec<Layer> = Vec::new();
        let places: Vec<usize> = built
            .into_iter()
            .map(|layer| {
                let same = |other: &Layer| Layer { label: layer.label.clone(), ..other.clone() } == layer;
                distinct.iter().position(same).unwrap_or_else(|| {
                    distinct.push(layer);
                    distinct.len() - 1
                })
            })
            .collect();
        if let [only] = &mut distinct[..] {
            only.label = "every layer".into();
        }
        let indices = indices.into_iter().map(|index| places[index]).collect();

        let grid = self.grid()?;
        notes.extend(self.beside());
        self.refuse_unasked(&mut notes)?;
        notes.sort();
        notes.dedup();
        let rope = ModelRope::new(self.name.into(), context, distinct, indices, notes)?;
        Ok(Read::rope(ModelRope { grid, ..rope }))
    }

    /// Refuses keys about RoPE that were not understood.
    fn refuse_unasked(&self, notes: &mut Vec<String>) -> Result<()> {
        // The indexer of sparse attention has a RoPE of its own, of which the model's specs say nothing.
        let _ = self.config.get("indexer_rope_interleave");
        for key in self.family.silent {
            let _ = self.config.get(key);
        }
        self.neutral(notes)?;
        let about_rope = |key: &&str| ["rope", "rotary", "yarn", "alibi"].iter().any(|word| key.contains(word));
        match self.config.unasked().into_iter().find(about_rope) {
            None => Ok(()),
            Some(key) => wrong(format!(
                "the config holds {key}, which this crate does not know for model_type {:?}",
                self.model_type
            )),
        }
    }

    /// Notes keys that state what is the case anyway; refuses flags that deny it.
    fn neutral(&self, notes: &mut Vec<String>) -> Result<()> {
        let asked = |key: &str| self.config.asked(key);
        let pairing = self.family.pairing == crate::Pairing::Interleaved;
        for (key, value) in self.config.map {
            if asked(key) || value.is_null() {
                continue;
            }
            let neutral = match key.as_str() {
                "rotary_pct" | "rope_pct" | "rope_percent" | "rotary_emb_fraction" | "rotary_percent" => {
                    value.as_f64() == Some(1.0)
                }
                "use_rope" | "rotary" | "use_rotary_pos_emb" | "use_rotary_embedding" | "use_rotary" | "apply_rope" => {
                    value == &Value::Bool(true)
                }
                "rope_interleaved" | "rope_interleave" | "rotary_emb_interleaved" | "is_rope_interleaved" => {
                    value == &Value::Bool(pairing)
                }
                "rope_type" => value.as_str() == Some("default"),
                // An addition that is not made.
                other => {
                    let added =
                        ["alibi", "yarn", "ntk", "scaling", "dynamic", "mrope"].iter().any(|word| other.contains(word));
                    if !added || value != &Value::Bool(false) {
                        continue;
                    }
                    true
                }
            };
            if neutral {
                let _ = self.config.get(key);
                notes.push(format!("{key} is {value}, which changes nothing"));
            }
        }
        Ok(())
    }
}
