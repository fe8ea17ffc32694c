//! GGUF metadata: llama.cpp's `{arch}.rope.*` keys.

mod architectures;
mod file;

use std::cell::RefCell;
use std::collections::BTreeSet;

use self::architectures::{
    ARCHITECTURES, Architecture, Base, Carrier as Graph, Ignores, Pairs, Rotates, Windows, architecture,
};
pub use self::file::{Gguf, GgufValue};
use super::keys::wrong;
use super::positions::{Carrier, Read, Sizes};
use super::{Known, Layer, ModelRope, check_layers};
use crate::Pairing;
use crate::Result;
use crate::rotate::{Axes, QueryScale, Rope, Scaling, Yarn, yarn_mscale};

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'static Architecture,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> (String, Option<&'a GgufValue>) {
        let key = format!("{}.{key}", self.architecture.name);
        self.asked.borrow_mut().insert(key.clone());
        let value = self.gguf.keys.get(&key);
        (key, value)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(&GgufValue::Integer(value))) => Ok(Some(value as f64)),
            (_, Some(&GgufValue::Float(value))) if value.is_finite() => Ok(Some(value)),
            (key, Some(value)) => wrong(format!("{key} is {value}, it must be a number")),
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(&GgufValue::Integer(value))) if (0..1 << 32).contains(&value) => Ok(Some(value as usize)),
            (key, Some(value)) => wrong(format!("{key} is {value}, it must be a whole number below 2^32")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(&GgufValue::Bool(flag))) => Ok(Some(flag)),
            (key, Some(value)) => wrong(format!("{key} is {value}, it must be true or false")),
        }
    }

    /// One count for each layer, or one for all.
    fn counts(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        let (name, value) = self.get(key);
        let Some(GgufValue::List(list)) = value else { return Ok(self.count(key)?.map(|count| vec![count; layers])) };
        let count = |value: &GgufValue| match value {
            GgufValue::Integer(value) if (0..1 << 32).contains(value) => Ok(*value as usize),
            GgufValue::Bool(value) => Ok(usize::from(*value)),
            value => wrong(format!("{name} holds {value}, it must hold whole numbers")),
        };
        let list = list.iter().map(count).collect::<Result<Vec<_>>>()?;
        if list.len() != layers {
            return wrong(format!(
                "{name} holds {} layers, {}.block_count is {layers}",
                list.len(),
                self.architecture.name
            ));
        }
        Ok(Some(list))
    }
}

/// What a layer of a GGUF model is.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Full,
    Window,
    /// a layer without RoPE, with the window or without
    NoRope,
}

impl ModelRope {
    /// The RoPE of every layer as the metadata of a GGUF file states it: what llama.cpp computes, at the precision of its law.
    ///
    /// Pairs are those of the weights in the file, which llama.cpp reorders for some models: a Llama is interleaved there and
    /// in halves at Hugging Face.
    ///
    /// llama.cpp differs from the models' own code in two points, which this follows: YaRN's ramp is always rounded to whole
    /// pairs (GPT-OSS's is not), and `yarn_attn_factor` is overwritten. In one it does not: where llama.cpp gives the pairs of
    /// Qwen3-VL that no axis reaches (61 and 62) a fourth position, they have time.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if a key is missing or not what it must be, a key about RoPE or the architecture is not known.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Ok(read(gguf)?.rope)
    }
}

pub(super) fn read(gguf: &Gguf) -> Result<Read> {
    let name = match gguf.keys.get("general.architecture") {
        Some(GgufValue::Text(architecture)) => architecture.as_str(),
        Some(value) => return wrong(format!("general.architecture is {value}, it must be a string")),
        None => return wrong("general.architecture is missing"),
    };
    let Some(architecture) = architecture(name) else {
        return wrong(format!("general.architecture is {name:?}, which this crate does not know"));
    };
    let keys = Keys { gguf, architecture, asked: RefCell::default() };
    let context = keys.count("context_length")?;
    let layers = check_layers("block_count", keys.count("block_count")?)?;
    let count = layers.unwrap_or(1);
    let max_bias = keys.number("attention.max_alibi_bias")?.filter(|&bias| bias > 0.0);
    let carrier = match architecture.carrier {
        Graph::Refused(why) => return wrong(format!("general.architecture is {name:?}: {why}")),
        Graph::Rope(_) if architecture.alibi_of_40 && layers == Some(40) => Carrier::Alibi,
        Graph::Rope(_) => Carrier::Rope,
        Graph::Learned => Carrier::Learned(0),
        Graph::Alibi => Carrier::Alibi,
        // MPT's table is a tensor that the metadata does not name: without a slope, it is what is left.
        Graph::AlibiKey { .. } if max_bias.is_some() => Carrier::Alibi,
        Graph::AlibiKey { learned: true } => Carrier::Learned(0),
        Graph::AlibiKey { learned: false } => Carrier::Nothing("nothing: attention.max_alibi_bias is missing or 0"),
        Graph::T5 { decoder } => Carrier::T5 { encoder: true, decoder },
        Graph::None(text) => Carrier::Nothing(text),
    };
    let heads = || Ok(keys.counts("attention.head_count", count)?.and_then(|heads| heads.first().copied()));
    if carrier != Carrier::Rope {
        let sizes = Sizes {
            hidden: keys.count("embedding_length")?,
            heads: heads()?,
            rows: context,
            max_bias: max_bias.filter(|_| matches!(architecture.carrier, Graph::AlibiKey { .. })),
            buckets: keys.count("attention.relative_buckets_count")?,
            ..Sizes::default()
        };
        let notes = vec![format!("position comes from {}", carrier.text())];
        let layer = Layer::none("every layer", 0);
        let places = vec![0; layers.unwrap_or(0)];
        let rope = ModelRope::new(name.into(), context.map(|n| n as u64), vec![layer], places, notes)?;
        return Ok(Read { rope, carrier, sizes });
    }
    if name == "dflash" && keys.count("hyper_connection.count")?.is_some_and(|count| count > 0) {
        return wrong(
            "dflash.hyper_connection.count is above 0: this crate knows drafts without DeepSeek-V4's blocks alone",
        );
    }

    let classes = classes(&keys, count)?;
    let mut notes = Vec::new();
    // The classes that occur, and the layer of each; classes that come to the same layer share it.
    let mut seen: Vec<(Class, usize)> = Vec::new();
    let mut built: Vec<Layer> = Vec::new();
    let mut places = Vec::new();
    for &class in &classes {
        if let Some(&(_, index)) = seen.iter().find(|(other, _)| *other == class) {
            places.push(index);
            continue;
        }
        let layer = layer(&keys, class, context)?;
        let same = |other: &Layer| Layer { label: layer.label.clone(), ..other.clone() } == layer;
        let index = built.iter().position(same).unwrap_or_else(|| {
            built.push(layer);
            built.len() - 1
        });
        seen.push((class, index));
        places.push(index);
    }
    if let [only] = &mut built[..] {
        only.label = "every layer".into();
    }
    if layers.is_none() {
        places.clear();
    }
    // A remark, if it is no switch.
    let _ = keys.get("rope.scaling.finetuned");
    if keys.get("rope.scaling.yarn_attn_factor").1.is_some() {
        notes.push(format!("{name}.rope.scaling.yarn_attn_factor has no effect in llama.cpp"));
    }
    if architecture.log_multiplier.is_none() && keys.get("rope.scaling.yarn_log_multiplier").1.is_some() {
        notes.push(format!("{name}.rope.scaling.yarn_log_multiplier has no effect in llama.cpp"));
    }
    if architecture.ignores != Ignores::None {
        notes.push(format!("the graph of {name} uses no key of the scaling"));
    }
    let asked = keys.asked.borrow();
    let about_rope = |key: &&String| key.starts_with(&format!("{name}.rope.")) && !asked.contains(*key);
    if let Some(key) = gguf.keys.keys().find(about_rope) {
        return wrong(format!("the metadata holds {key}, which this crate does not know"));
    }
    ModelRope::new(name.into(), context.map(|n| n as u64), built, places, notes).map(Read::rope)
}

pub(super) fn known() -> Vec<Known> {
    let known = |architecture: &Architecture| {
        let mut positions = match architecture.carrier {
            Graph::Rope(pairs) => {
                let pairs = match pairs {
                    Pairs::Norm => "interleaved",
                    Pairs::Neox => "in halves",
                    Pairs::Sections => "in halves, axes by sections",
                    Pairs::NormOrSections => "interleaved, or in halves with axes by sections",
                    Pairs::NeoxOrSections => "in halves, perhaps with axes by sections",
                    Pairs::InTurn => "in halves, axes in turn",
                };
                format!("RoPE {pairs}")
            }
            Graph::Learned => Carrier::Learned(0).text().into(),
            Graph::Alibi => Carrier::Alibi.text().into(),
            Graph::AlibiKey { learned: true } => "ALiBi by `max_alibi_bias`, or a learned table".into(),
            Graph::AlibiKey { learned: false } => "ALiBi by `max_alibi_bias`".into(),
            Graph::T5 { decoder } => Carrier::T5 { encoder: true, decoder }.text().into(),
            Graph::None(text) => text.into(),
            Graph::Refused(why) => format!("refused: {why}"),
        };
        let more = match architecture.rotates {
            Rotates::All if architecture.alibi_of_40 => "; ALiBi with 40 layers",
            Rotates::All | Rotates::Compressed => "",
            Rotates::Windows => "; in layers with a window",
            Rotates::WindowsAndDense => "; in layers with a window and the dense ones before",
            Rotates::AllButLast | Rotates::AllButLastUnlessZero => "; not in layers 3, 7, ...",
            Rotates::AllButFirst => "; not in layers 0, 4, ...",
            Rotates::Pattern => "; in the layers of `rope_pattern`",
            Rotates::Switch => "; none if `rope.scaling.finetuned` is false",
        };
        positions.push_str(more);
        for (is, text) in [
            (architecture.windows.is_some() && more.is_empty(), "; windows apart"),
            (architecture.hybrid.is_some(), "; not in recurrent layers"),
            (architecture.last, "; the last channels of a head"),
            (architecture.rotates == Rotates::Compressed, "; compressed keys on a base of their own"),
        ] {
            if is {
                positions.push_str(text);
            }
        }
        Known { name: architecture.name, positions, source: architecture.source }
    };
    ARCHITECTURES.iter().map(known).collect()
}

/// Which layers have a window.
fn windows(keys: &Keys<'_>, count: usize) -> Result<Vec<bool>> {
    let window_size = keys.count("attention.sliding_window")?;
    let none = vec![false; count];
    let Some(rule) = keys.architecture.windows else { return Ok(none) };
    let absent = !(rule.always || window_size.is_some_and(|window| window > 0));
    if absent || rule.of_layers.is_some_and(|of| of != count) {
        return Ok(none);
    }
    let (name, value) = keys.get("attention.sliding_window_pattern");
    let every = match (value, rule.every) {
        (Some(GgufValue::List(_)), _) => {
            let list = keys.counts("attention.sliding_window_pattern", count)?.unwrap_or_default();
            return Ok(list.into_iter().map(|flag| flag != 0).collect());
        }
        (None, Some(every)) => every,
        (None, None) => {
            return wrong(format!("{name} is missing, the architecture {:?} needs it", keys.architecture.name));
        }
        (Some(GgufValue::Integer(every)), _) if (1..1 << 16).contains(every) => *every as usize,
        (Some(value), _) => {
            return wrong(format!("{name} is {value}, it must be a list, or a whole number from 1 to 65535"));
        }
    };
    let shift = usize::from(!rule.full_first);
    Ok((shift..count + shift).map(|layer| !layer.is_multiple_of(every)).collect())
}

/// The class of each layer.
fn classes(keys: &Keys<'_>, count: usize) -> Result<Vec<Class>> {
    let windows = windows(keys, count)?;
    let any_window = windows.contains(&true);
    let rotates: Vec<bool> = match keys.architecture.rotates {
        Rotates::All | Rotates::Compressed => vec![true; count],
        Rotates::Windows if !any_window && keys.architecture.windows.is_some_and(|rule| rule.of_layers.is_some()) => {
            vec![true; count]
        }
        Rotates::Windows => windows.clone(),
        Rotates::WindowsAndDense => {
            let dense = keys.count("leading_dense_block_count")?.unwrap_or(0);
            windows.iter().enumerate().map(|(layer, &window)| window || layer < dense).collect()
        }
        Rotates::AllButLastUnlessZero if keys.count("attention.sliding_window")? == Some(0) => vec![true; count],
        Rotates::AllButLast | Rotates::AllButLastUnlessZero => {
            (1..=count).map(|layer| !layer.is_multiple_of(4)).collect()
        }
        Rotates::AllButFirst => (0..count).map(|layer| !any_window || !layer.is_multiple_of(4)).collect(),
        Rotates::Pattern => match keys.counts("attention.rope_pattern", count)? {
            Some(list) => list.into_iter().map(|flag| flag != 0).collect(),
            None => vec![true; count],
        },
        Rotates::Switch => vec![keys.flag("rope.scaling.finetuned")?.unwrap_or(true); count],
    };
    let compressed = match keys.architecture.rotates {
        Rotates::Compressed => match keys.get("attention.compress_ratios") {
            // The list may go on over the layers of multi-token prediction.
            (_, Some(GgufValue::List(list))) => {
                let ratios = keys.counts("attention.compress_ratios", list.len().max(count))?;
                ratios.into_iter().flatten().take(count).map(|ratio| ratio != 0).collect::<Vec<_>>()
            }
            _ => {
                return wrong(format!(
                    "{0}.attention.compress_ratios is missing, the architecture {0:?} needs it",
                    keys.architecture.name
                ));
            }
        },
        // The others' windows are what differs from the full layers.
        _ => windows.iter().map(|window| !window).collect::<Vec<_>>(),
    };
    let mut classes: Vec<Class> = rotates
        .iter()
        .zip(compressed)
        .map(|(&rotates, full)| match (rotates, full) {
            (false, _) => Class::NoRope,
            (true, true) => Class::Full,
            (true, false) => Class::Window,
        })
        .collect();
    // Layers without keys do not attend (LFM2, Granite hybrid), nor do recurrent ones.
    let idle = |key: &str| -> Result<Option<Vec<usize>>> {
        match keys.get(key) {
            (_, Some(GgufValue::List(_))) => keys.counts(key, count),
            _ => Ok(None),
        }
    };
    let mut stop = vec![false; count];
    if let Some(heads) = idle("attention.head_count_kv")? {
        stop = heads.into_iter().map(|heads| heads == 0).collect();
    }
    if let Some(every) = keys.architecture.hybrid {
        let every = keys.count("full_attention_interval")?.unwrap_or(every).max(1);
        match idle("attention.recurrent_layers")? {
            Some(list) => list.into_iter().zip(&mut stop).for_each(|(recurrent, stop)| *stop |= recurrent != 0),
            None => (1..=count).zip(&mut stop).for_each(|(layer, stop)| *stop |= !layer.is_multiple_of(every)),
        }
    }
    for (class, stop) in classes.iter_mut().zip(stop) {
        if stop {
            *class = Class::NoRope;
        }
    }
    Ok(classes)
}

fn layer(keys: &Keys<'_>, class: Class, context: Option<usize>) -> Result<Layer> {
    let Architecture { name: architecture, last, ignores, .. } = *keys.architecture;
    let compressed = keys.architecture.rotates == Rotates::Compressed;
    let window = class == Class::Window;
    let swa = |key: &str| if window { format!("{key}_swa") } else { key.to_string() };
    let mut head = match keys.count(&swa("attention.key_length"))?.or(keys.count("attention.key_length")?) {
        Some(head) => head,
        None => {
            let size = keys.count("embedding_length")?;
            let heads = keys.counts("attention.head_count", 1)?.and_then(|heads| heads.first().copied());
            match (size, heads) {
                (Some(size), Some(heads)) if heads > 0 && size.is_multiple_of(heads) => size / heads,
                (Some(size), Some(heads)) => {
                    return wrong(format!("{architecture}.embedding_length {size} does not divide into {heads} heads"));
                }
                _ => {
                    return wrong(format!(
                        "{architecture}.attention.key_length is missing, and so is embedding_length or attention.head_count"
                    ));
                }
            }
        }
    };
    // A window's own size counts before that of all layers (dots.3).
    for key in ["attention.key_length_mla", "attention.key_length_mla_swa"] {
        if let (true, Some(own)) = (last, keys.count(key)?)
            && (window || !key.ends_with("swa"))
        {
            head = own;
        }
    }
    let given = keys.count(&swa("rope.dimension_count"))?.or(keys.count("rope.dimension_count")?);
    let _ = keys.count("rope.dimension_count_swa")?;
    let mut rotary = given.filter(|_| ignores == Ignores::None).unwrap_or(head);
    if keys.architecture.half_of_full && !window {
        rotary /= 2;
    }
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head {
        let half = if keys.architecture.half_of_full && !window { " after its half is taken" } else { "" };
        return wrong(format!(
            "{architecture}.rope.dimension_count is {rotary}{half}, it must be even and at most the head's {head}"
        ));
    }
    let offset = if last { head - rotary } else { 0 };
    // Both bases are read for every layer, so that neither counts as unknown.
    let (base, base_swa) = (keys.number("rope.freq_base")?.unwrap_or(10_000.0), keys.number("rope.freq_base_swa")?);
    let compress_base = keys.number("attention.compress_rope_freq_base")?;
    let rule = keys.architecture.windows.filter(|_| window);
    let base = match &rule {
        Some(Windows { base: Base::Own, .. }) => base_swa.unwrap_or(10_000.0),
        Some(Windows { base: Base::Full, .. }) => base_swa.unwrap_or(base),
        None if compressed && !window => match compress_base {
            Some(base) => base,
            None => {
                return wrong(format!(
                    "{architecture}.attention.compress_rope_freq_base is missing, compressed layers need it"
                ));
            }
        },
        _ if ignores == Ignores::BaseToo => 10_000.0,
        _ => base,
    };

    let scaled = ignores == Ignores::None && !(compressed && window) && rule.is_none_or(|rule| rule.scaled);
    let (scaling, attention_factor, logit_scale) = scaling(keys, rotary, scaled, context)?;
    // DeepSeek-V4's graph cancels YaRN's factor.
    let attention_factor = if compressed { 1.0 } else { attention_factor };
    let axes = axes(keys, rotary / 2)?;
    let query_scale = query_scale(keys, class)?;
    if class == Class::NoRope {
        return Ok(Layer { query_scale, ..Layer::none("layers without RoPE", head) });
    }
    let pairing = match keys.architecture.carrier {
        Graph::Rope(Pairs::Norm) => Pairing::Interleaved,
        Graph::Rope(Pairs::NormOrSections) if axes == Axes::One => Pairing::Interleaved,
        _ => Pairing::Half,
    };
    let rope = Rope { offset, pairing, scaling, attention_factor, axes, ..Rope::new(rotary, base) };
    let label = match (window, compressed) {
        (true, false) => "layers with a window",
        (true, true) => "layers without compressed keys",
        (false, true) => "layers with compressed keys",
        (false, false) => "full layers",
    };
    Ok(Layer { rope: Some(rope), logit_scale, query_scale, ..Layer::none(label, head) })
}

fn query_scale(keys: &Keys<'_>, class: Class) -> Result<QueryScale> {
    let (length, scale) = (keys.number("attention.temperature_length")?, keys.number("attention.temperature_scale")?);
    Ok(match (keys.architecture.temperature, class) {
        (true, Class::NoRope) => QueryScale::Llama4 { scale: scale.unwrap_or(0.1), floor: length.unwrap_or(8192.0) },
        (true, _) => QueryScale::One,
        _ => match (length, scale) {
            (Some(original_context), Some(beta)) if beta != 0.0 => QueryScale::Mistral { beta, original_context },
            _ => QueryScale::One,
        },
    })
}

fn axes(keys: &Keys<'_>, pairs: usize) -> Result<Axes> {
    let (name, value) = keys.get("rope.dimension_sections");
    let Graph::Rope(kind) = keys.architecture.carrier else { return Ok(Axes::One) };
    let several = matches!(kind, Pairs::Sections | Pairs::InTurn);
    let perhaps = matches!(kind, Pairs::NormOrSections | Pairs::NeoxOrSections);
    let sections = match value {
        Some(GgufValue::List(list)) => keys.counts("rope.dimension_sections", list.len())?.unwrap_or_default(),
        Some(value) => return wrong(format!("{name} is {value}, it must be a list")),
        None if several => {
            return wrong(format!("{name} is missing, the architecture {:?} needs it", keys.architecture.name));
        }
        None => return Ok(Axes::One),
    };
    // `llama_hparams::use_mrope`
    let used = sections.len() > 1 && sections[0] > 0 && sections[1] > 0;
    if !(several || perhaps && used) {
        return Ok(Axes::One);
    }
    let sections: Vec<usize> = sections.into_iter().take_while(|&section| section > 0).collect();
    let sum = sections.iter().sum::<usize>();
    if sum != pairs {
        return wrong(format!("{name} is {sections:?} and sums to {sum}, the rotary part has {pairs} pairs"));
    }
    Ok(if kind == Pairs::InTurn { Axes::Interleaved(sections) } else { Axes::Sections(sections) })
}

/// The scaling, the factor on cos and sin, and the factor on logits.
fn scaling(keys: &Keys<'_>, rotary: usize, scaled: bool, context: Option<usize>) -> Result<(Scaling, f64, f64)> {
    let Architecture { name: architecture, log_multiplier, mscale: scales_logits, half_of_full, .. } =
        *keys.architecture;
    let pairs = rotary / 2;
    let kind = match keys.get("rope.scaling.type") {
        (_, None) => "linear",
        (_, Some(GgufValue::Text(kind))) => kind.as_str(),
        (key, Some(value)) => return wrong(format!("{key} is {value}, it must be a string")),
    };
    let factor = keys.number("rope.scaling.factor")?.or(keys.number("rope.scale_linear")?);
    // 0 means none, as llama.cpp reads it.
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let attn_factor = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    // DeepSeek's files store a tenth.
    let log_mul = keys.number("rope.scaling.yarn_log_multiplier")?.zip(log_multiplier);
    let log_mul = log_mul.map_or(0.0, |(value, unit)| value / unit);
    let original = keys.number("rope.scaling.original_context_length")?.or(context.map(|context| context as f64));
    let needs_original = || match original {
        Some(original) => Ok(original),
        None => wrong(format!(
            "{architecture}.rope.scaling.original_context_length is missing, the scaling {kind} needs it"
        )),
    };
    let (extrapolation, fast, slow) = (
        keys.number("rope.scaling.yarn_ext_factor")?.filter(|&factor| factor >= 0.0),
        keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
    );
    let alpha = keys.number("rope.scaling.alpha")?.filter(|&alpha| alpha > 0.0);
    if !scaled {
        return Ok((Scaling::None, 1.0, 1.0));
    }
    // `rope_freq_scale`; a scaling of none has none.
    let factor = if kind == "none" { 1.0 } else { factor };
    let extrapolation = extrapolation.unwrap_or(if kind == "yarn" { 1.0 } else { 0.0 });
    let divisors = |name: &str| -> Result<Option<Vec<f64>>> {
        match keys.gguf.divisors.get(name) {
            // Step 3.5's list is as long as its windows' pairs.
            Some(list) if half_of_full && list.len() > pairs => {
                Ok(Some(list[..pairs].iter().map(|divisor| divisor * factor).collect()))
            }
            Some(list) if list.len() != pairs => {
                wrong(format!("{name} holds {} divisors, the rotary part has {pairs} pairs", list.len()))
            }
            // llama.cpp divides by the factor as well.
            found => Ok(found.map(|list| list.iter().map(|divisor| divisor * factor).collect())),
        }
    };
    let freqs = divisors("rope_freqs.weight")?;
    let (long, short) = (divisors("rope_factors_long.weight")?, divisors("rope_factors_short.weight")?);
    if !matches!(kind, "none" | "linear" | "yarn" | "longrope") {
        return wrong(format!(
            "{architecture}.rope.scaling.type is {kind:?}, this crate knows none, linear, yarn and longrope"
        ));
    }
    if long.is_some() != short.is_some() {
        return wrong("one of rope_factors_long.weight and rope_factors_short.weight is missing, they need each other");
    }
    let several = freqs.is_some() || long.is_some();
    if several && extrapolation != 0.0 {
        let name = if freqs.is_some() { "rope_freqs.weight" } else { "rope_factors_long.weight" };
        return wrong(format!("{name} stands beside YaRN's ramp, one of them must be alone"));
    }
    // `rope_freqs.weight` comes first, as in `llama_model::get_rope_factors`.
    let scaling = match (freqs, long.zip(short)) {
        (Some(list), _) => Scaling::Divisors(list),
        (None, Some((long, short))) => {
            Scaling::LongRope { short, long, original_context: needs_original()?, length: None }
        }
        (None, None) if kind == "longrope" => {
            return wrong("rope_factors_long.weight is missing, the scaling longrope needs it");
        }
        (None, None) if extrapolation != 0.0 => Scaling::Yarn(Yarn {
            beta_fast: fast,
            beta_slow: slow,
            extrapolation,
            ..Yarn::new(factor, needs_original()?)
        }),
        (None, None) if factor == 1.0 => Scaling::None,
        (None, None) => Scaling::Linear { factor },
    };
    // Only these two rescale the base when they load; elsewhere it was done when the file was made.
    let scaling = match (alpha, scaling) {
        (Some(alpha), Scaling::None) if keys.architecture.alpha => Scaling::NtkStatic { alpha },
        (Some(_), scaling) if scaling != Scaling::None && keys.architecture.alpha => {
            return wrong(format!(
                "{architecture}.rope.scaling.alpha stands beside the scaling {kind:?}, one of them must be alone"
            ));
        }
        (_, scaling) => scaling,
    };
    let mscale = match (extrapolation != 0.0, log_mul) {
        (false, _) => 1.0,
        (true, 0.0) => yarn_mscale(factor, 1.0),
        (true, all) if architecture == "deepseek2" && all != 1.0 => 1.0,
        (true, all) => yarn_mscale(factor, 1.0) / yarn_mscale(factor, all),
    };
    let attention_factor = mscale * attn_factor;
    let logit_scale = if scales_logits {
        // `attn_factor_org`: without a ramp, nothing has cancelled the factor that it takes back.
        let restored = if extrapolation != 0.0 { 1.0 } else { yarn_mscale(factor, 1.0) };
        let scale = attention_factor * restored * yarn_mscale(factor, log_mul);
        scale * scale
    } else {
        1.0
    };
    Ok((scaling, attention_factor, logit_scale))
}
