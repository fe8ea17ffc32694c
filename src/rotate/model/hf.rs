//! Hugging Face's `config.json`: legacy `rope_scaling`, version 5's `rope_parameters`, and the keys of single models.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::families::{Family, Form, Pattern, family};
use super::{Layer, ModelRope, check_layers};
use crate::rotate::positions::DualChunk;
use crate::rotate::{
    Axes, Pairing, QueryScale, Rope, Scaling, Yarn, longrope_attention_factor, mla_logit_scale, yarn_mscale,
};
use crate::{Error, Result};

pub(super) fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Config(text.into()))
}

/// A JSON object that remembers which of its keys were asked for.
pub(super) struct Keys<'a> {
    /// what the messages call it
    name: String,
    map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub fn new(name: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        Self { name: name.into(), map, asked: RefCell::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a key; `None` where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_string());
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => wrong(format!("{key} is {value}, it must be a number")),
            },
        }
    }

    pub fn needed(&self, key: &str, because: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => wrong(format!("{key} is missing, {because} needs it")),
        }
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.number(key)? {
            None => Ok(None),
            Some(number) if number >= 0.0 && number.fract() == 0.0 && number < 4294967296.0 => {
                Ok(Some(number as usize))
            }
            Some(number) => wrong(format!("{key} is {number}, it must be a whole number below 2^32")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => wrong(format!("{key} is {value}, it must be true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => wrong(format!("{key} is {value}, it must be a string")),
        }
    }

    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(value) => wrong(format!("{key} is {value}, it must be an object or null")),
        }
    }

    fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => wrong(format!("{key} is {value}, it must be a list")),
        }
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let number = |(at, value): (usize, &Value)| match value.as_f64() {
            Some(number) if number.is_finite() => Ok(number),
            _ => wrong(format!("{key} holds {value} at {at}, it must hold numbers")),
        };
        list.iter().enumerate().map(number).collect::<Result<_>>().map(Some)
    }

    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(numbers) = self.numbers(key)? else { return Ok(None) };
        let count = |(at, &number): (usize, &f64)| {
            if number >= 0.0 && number.fract() == 0.0 && number < 4294967296.0 {
                return Ok(number as usize);
            }
            wrong(format!("{key} holds {number} at {at}, it must hold whole numbers below 2^32"))
        };
        numbers.iter().enumerate().map(count).collect::<Result<_>>().map(Some)
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let text = |(at, value): (usize, &Value)| match value {
            Value::String(text) => Ok(text.clone()),
            value => wrong(format!("{key} holds {value} at {at}, it must hold strings")),
        };
        list.iter().enumerate().map(text).collect::<Result<_>>().map(Some)
    }

    /// The keys that say something and were never asked for.
    pub fn unasked(&self) -> Vec<&'a str> {
        let asked = self.asked.borrow();
        let says = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        let kept = self.map.iter().filter(|(key, value)| says(value) && !asked.contains(*key));
        kept.map(|(key, _)| key.as_str()).collect()
    }
}

/// Keys of `rope_parameters` that some type has. One that the type at hand does not use changes nothing and is noted;
/// every other key is refused.
const KNOWN: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "short_factor",
    "long_factor",
    "short_mscale",
    "long_mscale",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "mrope_section",
    "mrope_interleaved",
    "llama_4_scaling_beta",
    "alpha",
    "mixed_b",
    "attn_factor",
    "extrapolation_factor",
    "finetuned",
];

/// Names of one type.
fn same_type(kind: &str, model_type: &str) -> String {
    match kind {
        "su" => "longrope",
        // Phi-3's first files.
        "yarn" if model_type == "phi3" => "longrope",
        "mrope" => "default",
        "deepseek_yarn" => "yarn",
        other => other,
    }
    .to_string()
}

/// The type that a map of rope parameters names.
fn rope_type(map: &Keys<'_>, model_type: &str) -> Result<String> {
    match (map.text("rope_type")?, map.text("type")?) {
        (Some(new), Some(old)) if same_type(new, model_type) != same_type(old, model_type) => {
            wrong(format!("{0}.rope_type is {new:?} and {0}.type is {old:?}, they must be the same", map.name))
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
    /// class decides, as in transformers 5.23.0.
    ///
    /// # Errors
    /// [`Error::Config`] if the text is not JSON, a key that is needed is missing or not what it must be, legacy and
    /// version-5 keys contradict each other, a key that has to do with RoPE is not understood, or the model's type is not
    /// known; [`ModelRope::from_hf_as`] reads such a config. [`Error::Value`] if a number is outside the law of its scaling.
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
        read(json, None)
    }

    /// As [`ModelRope::from_hf`], for a model whose own type is not known but which rotates as `model_type` does: pairs and
    /// missing keys are that type's.
    ///
    /// # Errors
    /// As [`ModelRope::from_hf`].
    pub fn from_hf_as(json: &str, model_type: &str) -> Result<Self> {
        read(json, Some(model_type))
    }
}

fn read(json: &str, as_type: Option<&str>) -> Result<ModelRope> {
    let value: Value = match serde_json::from_str(json) {
        Ok(value) => value,
        Err(error) => return wrong(format!("the config is not JSON: {error}")),
    };
    let Value::Object(whole) = &value else {
        return wrong("the config is not a JSON object");
    };
    let mut map = whole;
    let mut outer_type = map.get("model_type");
    let map = loop {
        match LANGUAGE.iter().find_map(|key| map.get(*key)) {
            Some(Value::Object(inner)) => {
                outer_type = inner.get("model_type").or(outer_type);
                refuse_outer(map, inner)?;
                map = inner;
            }
            _ => break map,
        }
    };
    let config = Keys::new("the config", map);
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
    let Some(family) = family(model_type) else {
        return wrong(format!(
            "model_type is {model_type:?}, which this crate does not know; ModelRope::from_hf_as reads it as a known one"
        ));
    };
    Reader { config, family, model_type, name: own_type.unwrap_or(model_type) }.read()
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

/// Layer types that do not attend.
const WITHOUT_ATTENTION: &[&str] = &["linear_attention", "conv", "mamba", "mamba2", "recurrent", "moe", "mlp"];

struct Reader<'a> {
    config: Keys<'a>,
    family: Family,
    model_type: &'a str,
    name: &'a str,
}

/// How a kind of layers differs from the others.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    label: String,
    /// which entry of nested parameters
    entry: String,
    rotates: bool,
    scaled: bool,
    theta: Option<f64>,
}

impl<'a> Reader<'a> {
    fn read(self) -> Result<ModelRope> {
        let config = &self.config;
        let count = match config.count("num_hidden_layers")? {
            Some(count) => Some(count),
            None => config.count("n_layer")?.or(config.count("num_layers")?).or(config.count("n_layers")?),
        };
        let count = check_layers("num_hidden_layers", count)?;
        let context =
            ["max_position_embeddings", "n_positions", "seq_length", "model_max_length", "max_sequence_length"];
        let mut positions = None;
        for key in context {
            positions = positions.or(config.count(key)?);
        }
        let context = positions.map(|positions| positions as u64);
        if let Some(text) = self.without_rope(count)? {
            let head = self.head().unwrap_or(0);
            let layers = vec![0; count.unwrap_or(0)];
            let notes = vec![format!("position comes from {text}")];
            let kind = Layer { label: "every layer".into(), ..Layer::none("", head) };
            return ModelRope::new(self.name.into(), context, vec![kind], layers, notes);
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

        self.refuse_unasked()?;
        notes.sort();
        notes.dedup();
        ModelRope::new(self.name.into(), context, distinct, indices, notes)
    }

    /// What carries position instead of RoPE.
    fn without_rope(&self, count: Option<usize>) -> Result<Option<&'static str>> {
        let config = &self.config;
        Ok(match &self.family.form {
            Form::NoRope(text) => Some(*text),
            Form::Falcon if config.flag("alibi")? == Some(true) => Some("ALiBi"),
            Form::Baichuan if count == Some(40) => Some("ALiBi"),
            Form::Mpt => {
                let empty = Map::new();
                let attention = Keys::new("attn_config", config.object("attn_config")?.unwrap_or(&empty));
                if attention.flag("rope")? == Some(true) {
                    return wrong("attn_config.rope is true, this crate knows MPT with ALiBi or a learned table only");
                }
                Some(if attention.flag("alibi")? == Some(true) { "ALiBi" } else { "a learned table" })
            }
            _ => None,
        })
    }

    /// Refuses keys about RoPE that were not understood.
    fn refuse_unasked(&self) -> Result<()> {
        // The indexer of sparse attention has a RoPE of its own, of which the model's specs say nothing.
        let _ = self.config.get("indexer_rope_interleave");
        let about_rope = |key: &&str| ["rope", "rotary", "yarn", "alibi"].iter().any(|word| key.contains(word));
        match self.config.unasked().into_iter().find(about_rope) {
            None => Ok(()),
            Some(key) => wrong(format!(
                "the config holds {key}, which this crate does not know for model_type {:?}",
                self.model_type
            )),
        }
    }

    /// Channels of a query's head.
    fn head(&self) -> Result<usize> {
        let config = &self.config;
        for key in ["head_dim", "kv_channels"] {
            if let Some(head) = config.count(key)? {
                return Ok(head);
            }
        }
        let first = |keys: [&'static str; 3]| -> Result<Option<(&str, usize)>> {
            for key in keys {
                if let Some(count) = config.count(key)? {
                    return Ok(Some((key, count)));
                }
            }
            Ok(None)
        };
        let because = "a head size that head_dim does not give";
        let Some((size_key, size)) = first(["hidden_size", "n_embd", "d_model"])? else {
            return wrong(format!("hidden_size is missing, {because} needs it"));
        };
        let Some((_, heads)) = first(["num_attention_heads", "n_head", "n_heads"])? else {
            return wrong(format!("num_attention_heads is missing, {because} needs it"));
        };
        if heads == 0 || size % heads != 0 {
            return wrong(format!("{size_key} {size} does not divide into {heads} heads"));
        }
        Ok(size / heads)
    }

    /// The type of each layer, from `layer_types` or the family's pattern.
    fn labels(&self, count: Option<usize>, pattern: Pattern, others: &str) -> Result<Vec<String>> {
        let config = &self.config;
        let listed = config.texts("layer_types")?;
        // MiMo-V2-Flash as published: 1 for a layer with a window.
        let hybrid = config.counts("hybrid_layer_pattern")?;
        let label = |full: bool| if full { "full_attention".to_string() } else { others.to_string() };
        let every = |key: &str, every: usize| -> Result<usize> {
            match config.count(key)?.or(config.count(&format!("_{key}"))?) {
                Some(0) => wrong(format!("{key} is 0, it must be at least 1")),
                found => Ok(found.unwrap_or(every)),
            }
        };
        let Some(count) = count else {
            return wrong("num_hidden_layers is missing, a model whose layers differ needs it");
        };
        let labels: Vec<String> = match (listed, hybrid, pattern) {
            (Some(listed), _, _) => listed,
            (None, Some(hybrid), _) => hybrid.iter().map(|&window| label(window == 0)).collect(),
            (None, None, Pattern::Listed) => {
                return wrong(format!("layer_types is missing, model_type {:?} needs it", self.model_type));
            }
            (None, None, Pattern::Last { key, every: default }) => {
                let every = every(key, default)?;
                (1..=count).map(|layer| label(layer.is_multiple_of(every))).collect()
            }
            (None, None, Pattern::First { key, every: default }) => {
                let every = every(key, default)?;
                (0..count).map(|layer| label(layer.is_multiple_of(every))).collect()
            }
            (None, None, Pattern::FirstAndLast { every }) => {
                (1..=count).map(|layer| label(layer == 1 || layer.is_multiple_of(every))).collect()
            }
        };
        if labels.len() != count {
            return wrong(format!("layer_types holds {} layers, num_hidden_layers is {count}", labels.len()));
        }
        Ok(labels)
    }

    /// The kind of each layer; one where they are all alike and not counted.
    fn kinds(&self, count: Option<usize>, merged: &Map<String, Value>) -> Result<Vec<Kind>> {
        let config = &self.config;
        let usual =
            Kind { label: "every layer".into(), entry: String::new(), rotates: true, scaled: true, theta: None };
        let labelled = |labels: Vec<String>, kind: &dyn Fn(&str) -> Kind| -> Vec<Kind> {
            let rotates = |label: &str| !WITHOUT_ATTENTION.contains(&label);
            let one = |label: String| {
                let kind = kind(&label);
                Kind { rotates: kind.rotates && rotates(&label), entry: label.clone(), label, ..kind }
            };
            labels.into_iter().map(one).collect()
        };
        let all = || vec![usual.clone(); count.unwrap_or(1)];
        let needs_count = || match count {
            Some(count) => Ok(count),
            None => wrong("num_hidden_layers is missing, a model whose layers differ needs it"),
        };
        let fits = |key: &str, len: usize, count: usize| {
            if len == count {
                return Ok(());
            }
            wrong(format!("{key} holds {len} layers, num_hidden_layers is {count}"))
        };
        match &self.family.form {
            Form::Local { key, theta, scaled, pattern } => {
                let labels = self.labels(count, *pattern, "sliding_attention")?;
                let local_theta = if *key == "rope_theta" { None } else { Some(config.number(key)?.unwrap_or(*theta)) };
                Ok(labelled(labels, &|label| {
                    let local = label == "sliding_attention";
                    Kind { scaled: *scaled || !local, theta: if local { local_theta } else { None }, ..usual.clone() }
                }))
            }
            Form::Hybrid(pattern) | Form::HybridAxes(_, pattern) => {
                Ok(labelled(self.labels(count, *pattern, "linear_attention")?, &|_| usual.clone()))
            }
            Form::WindowsOnly(pattern) => {
                let labels = self.labels(count, *pattern, "sliding_attention")?;
                let windows = config.get("sliding_window").is_some() || self.model_type == "afmoe";
                Ok(labelled(labels, &|label| Kind {
                    rotates: !windows || label == "sliding_attention",
                    ..usual.clone()
                }))
            }
            Form::Skipping { .. } => {
                let count = needs_count()?;
                let interval = config.count("no_rope_layer_interval")?.unwrap_or(4);
                let rotates: Vec<bool> = match config.counts("no_rope_layers")? {
                    Some(list) if !list.is_empty() => {
                        fits("no_rope_layers", list.len(), count)?;
                        if let Some(other) = list.iter().find(|&&flag| flag > 1) {
                            return wrong(format!(
                                "no_rope_layers holds {other}, it must hold 1 for a layer with RoPE and 0 for one without"
                            ));
                        }
                        list.iter().map(|&flag| flag == 1).collect()
                    }
                    _ if interval == 0 => return wrong("no_rope_layer_interval is 0, it must be at least 1"),
                    _ => (1..=count).map(|layer| !layer.is_multiple_of(interval)).collect(),
                };
                let label = |rotates: bool| if rotates { "layers with RoPE" } else { "layers without RoPE" };
                Ok(rotates
                    .into_iter()
                    .map(|rotates| Kind { label: label(rotates).into(), rotates, ..usual.clone() })
                    .collect())
            }
            Form::Compressed => self.compressed(needs_count()?, &usual),
            Form::ThetaList => {
                let Some(list) = config.numbers("layer_rope_theta")? else { return Ok(all()) };
                let count = needs_count()?;
                fits("layer_rope_theta", list.len(), count)?;
                let kind = |&theta: &f64| Kind {
                    label: if theta == 0.0 { "layers without RoPE".into() } else { format!("base {theta}") },
                    rotates: theta != 0.0,
                    theta: (theta != 0.0).then_some(theta),
                    ..usual.clone()
                };
                Ok(list.iter().map(kind).collect())
            }
            Form::ScalingList => {
                let Some(list) = config.counts("rope_scaling_layers")? else { return Ok(all()) };
                let count = needs_count()?;
                if let Some(layer) = list.iter().find(|&&layer| layer >= count) {
                    return wrong(format!("rope_scaling_layers holds {layer}, the model has {count} layers"));
                }
                let kind = |layer| {
                    let scaled = list.contains(&layer);
                    let label = if scaled { "scaled layers" } else { "unscaled layers" };
                    Kind { label: label.into(), scaled, ..usual.clone() }
                };
                Ok((0..count).map(kind).collect())
            }
            _ if nested(merged) => {
                Ok(labelled(self.labels(count, Pattern::Listed, "sliding_attention")?, &|_| usual.clone()))
            }
            _ => {
                // Types of layers that all attend alike make no difference.
                let listed = config.texts("layer_types")?;
                let some_idle =
                    |list: &Vec<String>| list.iter().any(|label| WITHOUT_ATTENTION.contains(&label.as_str()));
                match listed.filter(some_idle) {
                    Some(_) => Ok(labelled(self.labels(count, Pattern::Listed, "")?, &|_| usual.clone())),
                    None => Ok(all()),
                }
            }
        }
    }

    /// DeepSeek-V4: layers with a window alone have the `main` RoPE, those with compressed keys the `compress` one.
    fn compressed(&self, count: usize, usual: &Kind) -> Result<Vec<Kind>> {
        let config = &self.config;
        let main: Vec<bool> = match (config.texts("layer_types")?, config.counts("compress_ratios")?) {
            (Some(types), _) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            (None, Some(ratios)) => ratios.iter().map(|&ratio| ratio == 0).collect(),
            (None, None) => {
                return wrong("compress_ratios is missing, model_type \"deepseek_v4\" needs it or layer_types");
            }
        };
        // The list goes on over the layers of multi-token prediction.
        if main.len() < count {
            return wrong(format!("compress_ratios holds {} layers, num_hidden_layers is {count}", main.len()));
        }
        let theta = config.number("compress_rope_theta")?.unwrap_or(160_000.0);
        let kind = |&main: &bool| {
            let label = if main { "main" } else { "compress" }.to_string();
            let theta = (!main).then_some(theta);
            Kind { entry: label.clone(), label, scaled: !main, theta, ..usual.clone() }
        };
        Ok(main[..count].iter().map(kind).collect())
    }

    /// One kind of layers, built.
    fn layer(
        &self,
        kind: &Kind,
        merged: &Map<String, Value>,
        context: Option<u64>,
        notes: &mut Vec<String>,
    ) -> Result<Layer> {
        let config = &self.config;
        let empty = Map::new();
        let is_nested = nested(merged);
        let map = if is_nested {
            match merged.get(&kind.entry) {
                Some(Value::Object(map)) => map,
                // An entry that is null is a layer without RoPE.
                Some(Value::Null) => return Ok(Layer::none(&kind.label, self.head()?)),
                Some(value) => {
                    return wrong(format!("rope_parameters.{} is {value}, it must be an object", kind.entry));
                }
                None if !kind.rotates => &empty,
                None => {
                    return wrong(format!("rope_parameters has no entry for the layer type {:?}", kind.entry));
                }
            }
        } else if kind.scaled {
            merged
        } else {
            &empty
        };
        let name = if is_nested {
            format!("rope_parameters.{}", kind.entry)
        } else if config.get("rope_parameters").is_some() {
            "rope_parameters".into()
        } else {
            "rope_scaling".into()
        };
        let map = Keys::new(name, map);

        // A window's base key is always consumed; so are the others' keys, whichever kind comes first.
        let scaling_kind = rope_type(&map, self.model_type)?;
        let theta = self.theta(kind, &map, merged, is_nested)?;
        let (head, rotary, offset, share) = self.sizes(kind, &map, &scaling_kind)?;
        let pairing = self.pairing()?;
        if !kind.rotates {
            let mut layer = Layer::none(&kind.label, head);
            if matches!(self.family.form, Form::Skipping { temperature: true, .. }) && self.temperature()? {
                let scale = config.number("attn_scale")?.unwrap_or(0.1);
                let floor = config.number("floor_scale")?.unwrap_or(8192.0);
                layer.query_scale = QueryScale::Llama4 { scale, floor };
            }
            return Ok(layer);
        }

        let Parts { scaling, rotary, attention_factor, long_attention_factor, logit_scale, query_scale } =
            self.scaling(&map, &scaling_kind, head, rotary, share, context)?;
        let axes = self.axes(&map, rotary / 2)?;
        let rope = Rope { offset, pairing, scaling, attention_factor, axes, ..Rope::new(rotary, theta) };

        for key in map.unasked() {
            if !KNOWN.contains(&key) {
                return wrong(format!("{} holds {key}, which this crate does not know", map.name));
            }
            notes.push(format!("{}.{key} means nothing to rope_type {scaling_kind:?}", map.name));
        }
        if matches!(self.family.form, Form::Skipping { temperature: true, .. }) {
            // asked for here as well, so that a model without unrotated layers may hold them
            let _ = (self.temperature()?, config.number("attn_scale")?, config.number("floor_scale")?);
        }
        let log_n = config.flag("use_logn_attn")?.unwrap_or(false);
        let query_scale = match (query_scale, log_n) {
            (QueryScale::One, true) => {
                let train_length = config.needed("seq_length", "use_logn_attn")?;
                QueryScale::LogN { train_length }
            }
            (scale, _) => scale,
        };
        Ok(Layer {
            label: kind.label.clone(),
            rope: Some(rope),
            head,
            logit_scale,
            query_scale,
            dual_chunk: self.dual_chunk()?,
            long_attention_factor,
        })
    }

    /// Qwen2.5-1M's `dual_chunk_attention_config`. Its other keys belong to the sparse attention that goes with it.
    fn dual_chunk(&self) -> Result<Option<DualChunk>> {
        let Some(map) = self.config.object("dual_chunk_attention_config")? else { return Ok(None) };
        let map = Keys::new("dual_chunk_attention_config", map);
        let count = |key: &str| match map.count(key)? {
            Some(count) => Ok(count as i64),
            None => wrong(format!("{key} is missing, dual_chunk_attention_config needs it")),
        };
        Ok(Some(DualChunk { chunk: count("chunk_size")?, local: count("local_size")? }))
    }

    /// Llama 4's `attn_temperature_tuning`: true where it is absent, and a number in early files.
    fn temperature(&self) -> Result<bool> {
        match self.config.get("attn_temperature_tuning") {
            None => Ok(true),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Number(number)) => Ok(number.as_f64() != Some(0.0)),
            Some(value) => wrong(format!("attn_temperature_tuning is {value}, it must be true or false")),
        }
    }

    fn pairing(&self) -> Result<Pairing> {
        // DeepSeek's and GLM's flag, which other classes do not read; absent, the class decides.
        if !matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. }) {
            return Ok(self.family.pairing);
        }
        Ok(match self.config.flag("rope_interleave")? {
            None => self.family.pairing,
            Some(true) => Pairing::Interleaved,
            Some(false) => Pairing::Half,
        })
    }

    fn theta(&self, kind: &Kind, map: &Keys<'_>, merged: &Map<String, Value>, is_nested: bool) -> Result<f64> {
        let config = &self.config;
        let mut own = config.number("rope_theta")?.map(|theta| ("rope_theta", theta));
        if let Some(key) = self.family.theta_key {
            match (own, config.number(key)?) {
                (Some((_, usual)), Some(theta)) if usual != theta => {
                    return wrong(format!("{key} is {theta} and rope_theta is {usual}, they must be the same"));
                }
                (Some((_, usual)), None) => {
                    return wrong(format!(
                        "rope_theta is {usual}, model_type {:?} reads {key} instead",
                        self.model_type
                    ));
                }
                (_, theta) => own = theta.map(|theta| (key, theta)),
            }
        }
        let listed = map.number("rope_theta")?;
        // Beside entries for each layer type, the config's own theta is their default.
        if let (Some((key, own)), Some(listed), false, None) = (own, listed, is_nested, kind.theta)
            && own != listed
        {
            return wrong(format!("{key} is {own} and {}.rope_theta is {listed}, they must be the same", map.name));
        }
        let ratio = match self.family.form {
            Form::Ratio => config.number("rope_ratio")?.unwrap_or(1.0),
            _ => 1.0,
        };
        let general = own.map(|(_, theta)| theta).or(if is_nested {
            None
        } else {
            Keys::new("rope_parameters", merged).number("rope_theta")?
        });
        let theta = if is_nested { listed.or(kind.theta) } else { kind.theta.or(listed) };
        match theta.or(general).or(self.family.theta) {
            Some(theta) => Ok(theta * ratio),
            None => wrong(format!("rope_theta is missing, model_type {:?} has no default", self.model_type)),
        }
    }

    /// The head, the rotated channels, the first of them, and the share that the config gives.
    fn sizes(&self, kind: &Kind, map: &Keys<'_>, scaling_kind: &str) -> Result<(usize, usize, usize, f64)> {
        let config = &self.config;
        let mut share = config.number("partial_rotary_factor")?.map(|share| ("partial_rotary_factor", share));
        let keys = self.family.share_key.into_iter().chain(["rope_percent", "rotary_emb_fraction"]);
        for key in keys {
            if let Some(other) = config.number(key)? {
                share = Some((key, other));
            }
        }
        let listed = map.number("partial_rotary_factor")?;
        if let (Some((key, own)), Some(listed)) = (share, listed)
            && own != listed
            && !map.name.contains('.')
        {
            return wrong(format!(
                "{key} is {own} and {}.partial_rotary_factor is {listed}, they must be the same",
                map.name
            ));
        }
        let given = listed.or(share.map(|(_, share)| share));
        let share = given.unwrap_or(self.family.share);
        if !(share > 0.0 && share <= 1.0) {
            return wrong(format!("partial_rotary_factor is {share}, it must be above 0 and at most 1"));
        }
        let even = |rotary: usize, how: String| {
            if rotary > 0 && rotary.is_multiple_of(2) {
                return Ok(rotary);
            }
            wrong(format!("the rotary size is {rotary} ({how}), it must be even and at least 2"))
        };
        let latent = matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. });
        if latent {
            let because = format!("model_type {:?}", self.model_type);
            let Some(rotary) = config.count("qk_rope_head_dim")? else {
                return wrong(format!("qk_rope_head_dim is missing, {because} needs it"));
            };
            let nope = match config.count("qk_nope_head_dim")? {
                Some(nope) => nope,
                None => return wrong(format!("qk_nope_head_dim is missing, {because} needs it")),
            };
            return Ok((nope + rotary, even(rotary, "qk_rope_head_dim".into())?, nope, 1.0));
        }
        let mut head = self.head()?;
        if kind.entry == "full_attention"
            && let Some(global) = config.count("global_head_dim")?
        {
            head = global;
        }
        if matches!(self.family.form, Form::Compressed) {
            let rotary = config.count("qk_rope_head_dim")?.unwrap_or(64);
            if rotary > head {
                return wrong(format!("qk_rope_head_dim is {rotary}, a head has {head} channels"));
            }
            return Ok((head, even(rotary, "qk_rope_head_dim".into())?, head - rotary, 1.0));
        }
        if matches!(self.family.form, Form::Ratio) {
            return Ok((head, even(head / 2, format!("half of the head's {head}"))?, 0, 0.5));
        }
        // A count says what a share only comes near to: 44 * (30 / 44) is below 30.
        let mut rotary_dim = config.count("rotary_dim")?;
        if self.model_type == "gptj" || self.model_type == "codegen" {
            rotary_dim = rotary_dim.or(Some(64));
        }
        let rotary = match rotary_dim {
            Some(rotary) => {
                if rotary > head {
                    return wrong(format!("rotary_dim is {rotary}, a head has {head} channels"));
                }
                if let Some(share) = given
                    && (head as f64 * share - rotary as f64).abs() >= 1.0
                {
                    return wrong(format!(
                        "rotary_dim is {rotary} and partial_rotary_factor {share} of a head of {head}, they must agree"
                    ));
                }
                even(rotary, "rotary_dim".into())?
            }
            None if scaling_kind == "proportional" => even(head, "head_dim".into())?,
            None => {
                let rotary = (head as f64 * share) as usize;
                let how = if share == 1.0 { "the head's".into() } else { format!("{share} of a head of {head}") };
                even(rotary, how)?
            }
        };
        Ok((head, rotary, 0, share))
    }

    fn axes(&self, map: &Keys<'_>, pairs: usize) -> Result<Axes> {
        let default = match &self.family.form {
            Form::Axes(axes) | Form::HybridAxes(axes, _) => Some(axes),
            _ => None,
        };
        let interleaved = map.flag("mrope_interleaved")?;
        let Some(sections) = map.counts("mrope_section")? else {
            return match default {
                None => Ok(Axes::One),
                Some(axes) => Ok(axes.clone()),
            };
        };
        let sum = sections.iter().sum::<usize>();
        if sum != pairs {
            return wrong(format!(
                "mrope_section is {sections:?} and sums to {sum}, the rotary part has {pairs} pairs"
            ));
        }
        Ok(match (default, interleaved) {
            (Some(Axes::HeightWidthFirst(_)), None | Some(false)) => match sections[..] {
                [height, width, time] => Axes::HeightWidthFirst([time, height, width]),
                _ => {
                    return wrong(format!(
                        "mrope_section is {sections:?}, model_type {:?} has 3 axes",
                        self.model_type
                    ));
                }
            },
            (Some(Axes::Interleaved(_)), None) | (_, Some(true)) => Axes::Interleaved(sections),
            _ => Axes::Sections(sections),
        })
    }

    fn scaling(
        &self,
        map: &Keys<'_>,
        kind: &str,
        head: usize,
        rotary: usize,
        share: f64,
        context: Option<u64>,
    ) -> Result<Parts> {
        let config = &self.config;
        let because = format!("rope_type {kind:?}");
        let latent = matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. });
        let pairs = rotary / 2;
        // The training length: beside the map (Phi-3, GPT-OSS) or in it.
        let original = || -> Result<f64> {
            let outside = ["original_max_position_embeddings", "initial_context_length"];
            let inside = map.number("original_max_position_embeddings")?;
            for key in outside {
                if let Some(outer) = config.number(key)? {
                    if let Some(inner) = inside
                        && inner != outer
                    {
                        return wrong(format!(
                            "{key} is {outer} and {}.original_max_position_embeddings is {inner}, they must be the same",
                            map.name
                        ));
                    }
                    return Ok(outer);
                }
            }
            match inside {
                Some(inside) => Ok(inside),
                None => wrong(format!("original_max_position_embeddings is missing, {because} needs it")),
            }
        };
        let longest = || match context {
            Some(context) => Ok(context as f64),
            None => wrong(format!("max_position_embeddings is missing, {because} needs it")),
        };
        let mut parts = Parts {
            scaling: Scaling::None,
            rotary,
            attention_factor: 1.0,
            long_attention_factor: None,
            logit_scale: 1.0,
            query_scale: QueryScale::One,
        };
        // 0 counts as absent, as Python's `or` has it.
        let truthy = |key: &str| Ok::<_, Error>(map.number(key)?.filter(|&number| number != 0.0));
        match kind {
            "default" => {}
            "linear" => parts.scaling = Scaling::Linear { factor: map.needed("factor", &because)? },
            "dynamic" => {
                parts.scaling = match map.number("alpha")? {
                    // Hunyuan: a fixed base.
                    Some(alpha) if alpha != 0.0 => Scaling::NtkStatic { alpha },
                    _ => Scaling::DynamicNtk {
                        factor: map.needed("factor", &because)?,
                        context: longest()?,
                        length: None,
                    },
                };
            }
            "ntk" => {
                parts.scaling = Scaling::NtkMixed {
                    factor: map.needed("factor", &because)?,
                    exponent: map.number("mixed_b")?.unwrap_or(1.0),
                };
            }
            "yarn" | "telechat3-yarn" => {
                let original = original()?;
                let factor = match (map.map.get("factor"), map.number("factor")?) {
                    (_, Some(factor)) => factor,
                    (Some(_), None) => longest()? / original,
                    (None, None) => return wrong(format!("factor is missing, {because} needs it")),
                };
                parts.scaling = Scaling::Yarn(Yarn {
                    beta_fast: truthy("beta_fast")?.unwrap_or(32.0),
                    beta_slow: truthy("beta_slow")?.unwrap_or(1.0),
                    truncate: map.flag("truncate")?.unwrap_or(true),
                    extrapolation: map.number("extrapolation_factor")?.unwrap_or(1.0),
                    ..Yarn::new(factor, original)
                });
                let (mscale, all) = (truthy("mscale")?, truthy("mscale_all_dim")?);
                let given = map.number("attention_factor")?;
                parts.attention_factor = match (given, mscale, all) {
                    (Some(given), _, _) => given,
                    // The published code of DeepSeek-V4 leaves cos and sin alone.
                    _ if matches!(self.family.form, Form::Compressed) => 1.0,
                    _ if kind == "telechat3-yarn" => yarn_mscale(factor, 0.7),
                    (None, Some(mscale), Some(all)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all),
                    _ => yarn_mscale(factor, 1.0),
                } * map.number("attn_factor")?.unwrap_or(1.0);
                if let (true, Some(all)) = (latent, all) {
                    parts.logit_scale = mla_logit_scale(factor, all);
                }
            }
            "longrope" => {
                let original = original()?;
                let list = |key: &str| match map.numbers(key)? {
                    None => wrong(format!("{key} is missing, {because} needs it")),
                    Some(list) if list.len() == pairs => Ok(list),
                    Some(list) => {
                        wrong(format!("{key} holds {} numbers, the rotary part has {pairs} pairs", list.len()))
                    }
                };
                let factor = match map.number("factor")? {
                    Some(factor) => factor,
                    None => longest()? / original,
                };
                let mscales = (map.number("short_mscale")?, map.number("long_mscale")?);
                (parts.attention_factor, parts.long_attention_factor) = match (map.number("attention_factor")?, mscales)
                {
                    (_, (Some(short), Some(long))) => (short, Some(long).filter(|&long| long != short)),
                    (Some(given), _) => (given, None),
                    _ => (longrope_attention_factor(factor, original), None),
                };
                parts.scaling = Scaling::LongRope {
                    short: list("short_factor")?,
                    long: list("long_factor")?,
                    original_context: original,
                    length: None,
                };
            }
            "llama3" => {
                parts.scaling = Scaling::Llama3 {
                    factor: map.needed("factor", &because)?,
                    low: map.needed("low_freq_factor", &because)?,
                    high: map.needed("high_freq_factor", &because)?,
                    original_context: original()?,
                };
            }
            "proportional" => {
                parts.rotary = head;
                let rotated = (share * head as f64 / 2.0) as usize;
                parts.scaling = Scaling::Proportional { rotated, factor: map.number("factor")?.unwrap_or(1.0) };
            }
            other => {
                return wrong(format!(
                    "rope_type is {other:?}, this crate knows default, linear, dynamic, ntk, yarn, longrope, llama3 and \
                     proportional"
                ));
            }
        }
        if let Some(beta) = map.number("llama_4_scaling_beta")?
            && beta != 0.0
        {
            parts.query_scale = QueryScale::Mistral { beta, original_context: original()? };
        }
        if self.model_type == "phi3small"
            && let Some(scale) = config.number("rope_position_scale")?
            && scale != 1.0
        {
            if parts.scaling != Scaling::None {
                return wrong(format!("rope_position_scale is {scale} beside {because}, only one of them can scale"));
            }
            parts.scaling = Scaling::Linear { factor: 1.0 / scale };
        }
        Ok(parts)
    }
}

/// What one map of parameters comes to.
struct Parts {
    scaling: Scaling,
    rotary: usize,
    attention_factor: f64,
    long_attention_factor: Option<f64>,
    logit_scale: f64,
    query_scale: QueryScale,
}
