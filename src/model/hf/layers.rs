//! Which kinds of layers a model has, and which kind each layer is.

use serde_json::{Map, Value};

use super::super::keys::{Keys, wrong};
use super::families::{Form, GEMMA4, Pattern};
use super::{Reader, nested};
use crate::Result;

/// Layer types that do not attend.
pub(in super::super) const WITHOUT_ATTENTION: &[&str] =
    &["linear_attention", "conv", "mamba", "mamba2", "recurrent", "moe", "mlp"];

/// Layers of SAM 3 that see the whole image, not a window of it.
pub(super) const GLOBAL: &str = "global_attention";

/// How a kind of layers differs from the others.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kind {
    pub label: String,
    /// which entry of nested parameters
    pub entry: String,
    pub rotates: bool,
    pub scaled: bool,
    pub theta: Option<f64>,
    pub share: Option<f64>,
    /// channels of a head and of its unrotated part, from `per_layer_config`
    pub head: Option<usize>,
    pub nope: Option<usize>,
}

impl Reader<'_> {
    /// The type of each layer, from `layer_types` or the family's pattern.
    fn labels(&self, count: Option<usize>, pattern: Pattern, others: &str) -> Result<Vec<String>> {
        let config = &self.config;
        let listed = config.texts("layer_types")?;
        // MiMo-V2-Flash as published: 1 for a layer with a window.
        let hybrid = config.counts("hybrid_layer_pattern")?;
        // Bamba's and RecurrentGemma's, and the first files of LFM2.
        let attending = match config.counts("attn_layer_indices")? {
            Some(list) => Some(list),
            None => config.counts("full_attn_idxs")?,
        };
        if let Some(layer) = attending.iter().flatten().find(|&&layer| count.is_some_and(|count| layer >= count)) {
            return wrong(format!(
                "the list of layers that attend holds {layer}, the model has {} layers",
                count.unwrap_or_default()
            ));
        }
        let blocks = config.texts("block_types")?;
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
        let mut labels: Vec<String> = match (listed, hybrid, pattern) {
            (Some(listed), _, _) => listed,
            (None, None, Pattern::Listed) if attending.is_some() => {
                let attending = attending.unwrap_or_default();
                (0..count).map(|layer| label(attending.contains(&layer))).collect()
            }
            (None, None, Pattern::Listed) if blocks.as_ref().is_some_and(|blocks| !blocks.is_empty()) => {
                let blocks = blocks.unwrap_or_default();
                (0..count).map(|layer| label(blocks[layer % blocks.len()] == "attention")).collect()
            }
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
        if let (true, Some(last)) = (GEMMA4.contains(&self.model_type), labels.last_mut()) {
            *last = label(true);
        }
        Ok(labels)
    }

    /// The kind of each layer; one where they are all alike and not counted.
    pub(super) fn kinds(&self, count: Option<usize>, merged: &Map<String, Value>) -> Result<Vec<Kind>> {
        let mut kinds = self.kinds_alone(count, merged)?;
        let Some(layers) = self.config.object("per_layer_config")? else { return Ok(kinds) };
        for (layer, map) in layers {
            let (Ok(index), Value::Object(map)) = (layer.parse::<usize>(), map) else {
                return wrong(format!(
                    "per_layer_config.{layer} is {map}, it must be an object for the number of a layer"
                ));
            };
            let map = Keys::new(format!("per_layer_config.{layer}"), map);
            let (head, nope) = (map.count("head_dim")?, map.count("qk_nope_head_dim")?);
            if head.is_none() && nope.is_none() {
                continue;
            }
            let len = kinds.len();
            let Some(kind) = kinds.get_mut(index).filter(|_| count.is_some()) else {
                return wrong(format!("per_layer_config holds layer {index}, the model has {len}"));
            };
            (kind.head, kind.nope) = (head, nope);
        }
        Ok(kinds)
    }

    fn kinds_alone(&self, count: Option<usize>, merged: &Map<String, Value>) -> Result<Vec<Kind>> {
        let config = &self.config;
        let usual = Kind {
            label: "every layer".into(),
            entry: String::new(),
            rotates: true,
            scaled: true,
            theta: None,
            share: None,
            head: None,
            nope: None,
        };
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
                // Absent, the class has one; null is none.
                let own = ["afmoe", "flint", "kolibri1"].contains(&self.model_type);
                let windows = config.get("sliding_window").is_some()
                    || self.model_type == "lara_mini"
                    || own && !config.map.contains_key("sliding_window");
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
            Form::Grid(_) if self.model_type == "sam3_vit_model" => {
                let count = needs_count()?;
                let global = config.counts("global_attn_indexes")?.unwrap_or_else(|| vec![7, 15, 23, 31]);
                if let Some(layer) = global.iter().find(|&&layer| layer >= count) {
                    return wrong(format!("global_attn_indexes holds {layer}, the model has {count} layers"));
                }
                let kind = |layer| {
                    let label = if global.contains(&layer) { GLOBAL } else { "window_attention" };
                    Kind { label: label.into(), entry: label.into(), ..usual.clone() }
                };
                Ok((0..count).map(kind).collect())
            }
            Form::Compressed => self.compressed(needs_count()?, &usual),
            Form::ThetaList { none } => {
                let Some(list) = config.numbers("layer_rope_theta")? else {
                    let Some(every) = none else { return Ok(all()) };
                    let count = needs_count()?;
                    let kind = |layer: usize| {
                        let rotates = !(count - 1 - layer).is_multiple_of(*every);
                        let label = if rotates { "layers with RoPE" } else { "layers without RoPE" };
                        Kind { label: label.into(), rotates, ..usual.clone() }
                    };
                    return Ok((0..count).map(kind).collect());
                };
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
            Form::Cross => {
                let cross = config.counts("cross_attention_layers")?;
                let cross = cross.unwrap_or_else(|| (3..40).step_by(5).collect());
                let Some(count) = count else { return Ok(all()) };
                let kind = |layer| {
                    let rotates = !cross.contains(&layer);
                    let label = if rotates { "layers with self-attention" } else { "layers with cross-attention" };
                    Kind { label: label.into(), rotates, ..usual.clone() }
                };
                Ok((0..count).map(kind).collect())
            }
            Form::MemRope => {
                let count = needs_count()?;
                let hybrid: Vec<bool> = match (config.texts("layers_block_type")?, config.counts("hybrid_layer_ids")?) {
                    (Some(types), _) => types.iter().map(|kind| kind == "hybrid").collect(),
                    (None, Some(list)) => (0..count).map(|layer| list.contains(&layer)).collect(),
                    (None, None) => return wrong("layers_block_type is missing, model_type \"zamba2\" needs it"),
                };
                fits("layers_block_type", hybrid.len(), count)?;
                let label = |rotates: bool| if rotates { "hybrid layers" } else { "recurrent layers" };
                let kind = |rotates| Kind { label: label(rotates).into(), rotates, ..usual.clone() };
                Ok(hybrid.into_iter().map(kind).collect())
            }
            Form::Lists if !nested(merged) => {
                let list = |key: &str| match config.get(key) {
                    Some(Value::Array(_)) => config.numbers(key),
                    _ => Ok(None),
                };
                let (thetas, shares) = (list("rope_theta")?, list("partial_rotary_factors")?);
                let types = config.texts("layer_types")?;
                if thetas.is_none() && shares.is_none() && types.is_none() {
                    return Ok(all());
                }
                let count = needs_count()?;
                for (key, len) in [
                    ("rope_theta", thetas.as_ref().map(Vec::len)),
                    ("partial_rotary_factors", shares.as_ref().map(Vec::len)),
                    ("layer_types", types.as_ref().map(Vec::len)),
                ] {
                    // The lists go on over the layers of multi-token prediction.
                    if let Some(len) = len.filter(|&len| len < count) {
                        fits(key, len, count)?;
                    }
                }
                let kind = |layer: usize| {
                    let label = types.as_ref().map_or("every layer", |types| types[layer].as_str());
                    Kind {
                        label: label.into(),
                        scaled: types.is_none() || label == "full_attention",
                        theta: thetas.as_ref().map(|list| list[layer]),
                        share: shares.as_ref().map(|list| list[layer]),
                        ..usual.clone()
                    }
                };
                Ok((0..count).map(kind).collect())
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
}
