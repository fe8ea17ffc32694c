//! GGUF metadata: llama.cpp's `{arch}.rope.*` keys.

mod file;

use std::cell::RefCell;
use std::collections::BTreeSet;

pub use self::file::{Gguf, GgufValue};
use super::keys::wrong;
use super::{Layer, ModelRope, check_layers};
use crate::Pairing;
use crate::Result;
use crate::rotate::{Axes, QueryScale, Rope, Scaling, Yarn, yarn_mscale};

/// How llama.cpp pairs channels, by architecture: `llama_model_rope_type` and `LLM_ARCH_NAMES` in its `src/llama-model.cpp` and
/// `src/llama-arch.cpp`.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// interleaved
    Norm,
    /// halves
    Neox,
    /// halves, axes by sections
    Sections,
    /// interleaved, or halves and axes by sections where there are any
    NormOrSections,
    /// halves, and axes by sections where there are any
    NeoxOrSections,
    /// halves, axes in turn
    InTurn,
    /// no RoPE
    None(&'static str),
}

#[rustfmt::skip]
static KINDS: &[(Kind, &[&str])] = &[
    (Kind::Norm, &["llama", "llama4", "deci", "baichuan", "starcoder", "internlm2", "minicpm", "xverse", "command-r", "cohere2",
        "olmo", "arctic", "deepseek", "deepseek2", "chatglm", "granite", "granitemoe", "granitehybrid", "chameleon", "smollm3",
        "ernie4_5", "ernie4_5-moe", "mistral3", "mistral4", "glm-dsa", "arcee", "llada", "plm", "bailingmoe", "neo-bert",
        "llama-embed", "maincoder"]),
    (Kind::Neox, &["falcon", "falcon-h1", "grok", "dbrx", "bert", "nomic-bert", "nomic-bert-moe", "modern-bert", "jina-bert-v3",
        "eurobert", "stablelm", "qwen", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "dream", "llada-moe", "rnd1", "olmo2",
        "olmoe", "phi2", "phi3", "phimoe", "plamo", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding", "starcoder2",
        "gptneox", "nemotron", "exaone", "exaone4", "minicpm3", "hunyuan-moe", "hunyuan-dense", "hy_v3", "gpt-oss", "lfm2", "lfm2moe",
        "seed_oss", "apertus", "minimax-m2", "mimo2", "codeshell", "orion", "openelm", "bitnet", "dots1", "bailingmoe2", "jais2",
        "grovemoe", "pangu-embedded", "laguna", "mellum"]),
    (Kind::Sections, &["qwen2vl", "paddleocr"]),
    (Kind::InTurn, &["qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"]),
    (Kind::NormOrSections, &["glm4"]),
    (Kind::NeoxOrSections, &["glm4moe", "hunyuan_vl"]),
    (Kind::None("ALiBi"), &["bloom", "mpt", "jais", "refact", "jina-bert-v2"]),
    (Kind::None("T5's buckets of distance"), &["t5", "t5encoder"]),
    (Kind::None("a learned table"), &["gpt2", "gptj"]),
    (Kind::None("nothing: order comes from the recurrent layers"),
        &["mamba", "mamba2", "jamba", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "nemotron_h", "nemotron_h_moe", "kimi-linear"]),
];

fn kind(architecture: &str) -> Option<Kind> {
    KINDS.iter().find(|(_, names)| names.contains(&architecture)).map(|&(kind, _)| kind)
}

/// Architectures whose rotary channels stand behind the others of a head.
const ROTARY_LAST: &[&str] = &["deepseek2", "glm-dsa", "mistral4", "minicpm3", "plm"];

/// Architectures with DeepSeek's scale of logits (`kq_scale` in `src/models/deepseek2.cpp`).
const SCALED_LOGITS: &[&str] = &["deepseek2", "glm-dsa", "mistral4"];

/// What windows have where the metadata is silent.
struct Windows {
    /// whether they are there without `attention.sliding_window`
    always: bool,
    /// each `every`-th layer is full; `None` if the metadata must say
    every: Option<usize>,
    /// whether layer 0 is full, or the last of each `every`
    dense_first: bool,
    /// the base; `None` for that of the full layers
    base: Option<f64>,
    /// whether they are scaled as the full layers are
    scaled: bool,
}

/// How windows rotate, by architecture: `load_arch_hparams` of each in llama.cpp's `src/models`.
fn windows(architecture: &str) -> Option<Windows> {
    let windows = |every, base| Windows { always: true, every, dense_first: false, base, scaled: false };
    Some(match architecture {
        "gemma3" => Windows { always: false, ..windows(Some(6), Some(10_000.0)) },
        "gemma-embedding" => windows(Some(6), Some(10_000.0)),
        "gemma3n" => windows(Some(5), Some(10_000.0)),
        "gemma4" | "mimo2" => windows(None, Some(10_000.0)),
        "modern-bert" => Windows { always: false, dense_first: true, ..windows(Some(3), Some(10_000.0)) },
        "laguna" => Windows { always: false, dense_first: true, ..windows(None, Some(10_000.0)) },
        "olmo2" => Windows { always: false, ..windows(Some(4), None) },
        "mellum" => Windows { always: false, ..windows(Some(4), None) },
        "gpt-oss" => Windows { scaled: true, ..windows(Some(2), None) },
        _ => return None,
    })
}

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> (String, Option<&'a GgufValue>) {
        let key = format!("{}.{key}", self.architecture);
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
            return wrong(format!("{name} holds {} layers, {}.block_count is {layers}", list.len(), self.architecture));
        }
        Ok(Some(list))
    }
}

/// What a layer of a GGUF model is.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Full,
    Window,
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
        let architecture = match gguf.keys.get("general.architecture") {
            Some(GgufValue::Text(architecture)) => architecture.as_str(),
            Some(value) => return wrong(format!("general.architecture is {value}, it must be a string")),
            None => return wrong("general.architecture is missing"),
        };
        let Some(kind) = kind(architecture) else {
            return wrong(format!("general.architecture is {architecture:?}, which this crate does not know"));
        };
        let keys = Keys { gguf, architecture, asked: RefCell::default() };
        let context = keys.count("context_length")?;
        let layers = check_layers("block_count", keys.count("block_count")?)?;
        let count = layers.unwrap_or(1);
        if let Kind::None(text) = kind {
            let notes = vec![format!("position comes from {text}")];
            let layer = Layer::none("every layer", 0);
            let places = vec![0; layers.unwrap_or(0)];
            return Self::new(architecture.into(), context.map(|n| n as u64), vec![layer], places, notes);
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
            let layer = layer(&keys, kind, class, context)?;
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
        // A remark.
        let _ = keys.get("rope.scaling.finetuned");
        if keys.get("rope.scaling.yarn_attn_factor").1.is_some() {
            notes.push(format!("{architecture}.rope.scaling.yarn_attn_factor has no effect in llama.cpp"));
        }
        let asked = keys.asked.borrow();
        let about_rope = |key: &&String| key.starts_with(&format!("{architecture}.rope.")) && !asked.contains(*key);
        if let Some(key) = gguf.keys.keys().find(about_rope) {
            return wrong(format!("the metadata holds {key}, which this crate does not know"));
        }
        Self::new(architecture.into(), context.map(|n| n as u64), built, places, notes)
    }
}

/// The class of each layer.
fn classes(keys: &Keys<'_>, count: usize) -> Result<Vec<Class>> {
    let every = |n: usize, rest: Class, nth: Class| {
        (1..=count).map(|layer| if layer.is_multiple_of(n) { nth } else { rest }).collect::<Vec<_>>()
    };
    let period = |default: Option<usize>| {
        let (name, value) = keys.get("attention.sliding_window_pattern");
        match value {
            None => match default {
                Some(every) => Ok(every),
                None => wrong(format!("{name} is missing, the architecture {:?} needs it", keys.architecture)),
            },
            Some(GgufValue::Integer(every)) if (1..1 << 16).contains(every) => Ok(*every as usize),
            Some(value) => wrong(format!("{name} is {value}, it must be a list, or a whole number from 1 to 65535")),
        }
    };
    let windowed = match keys.count("attention.sliding_window")? {
        Some(window) => window > 0,
        None => false,
    };
    let mut classes = match keys.architecture {
        // The interval is no key. A window of 0 is Llama 4's way of saying that every layer rotates.
        "llama4" if keys.count("attention.sliding_window")? == Some(0) => vec![Class::Full; count],
        "llama4" | "smollm3" => every(4, Class::Full, Class::NoRope),
        "cohere2" => every(period(Some(4))?, Class::Full, Class::NoRope),
        // EXAONE 4.0 32B alone.
        "exaone4" if count == 64 => every(period(Some(4))?, Class::Full, Class::NoRope),
        "qwen3next" | "qwen35" | "qwen35moe" => {
            every(keys.count("full_attention_interval")?.unwrap_or(4).max(1), Class::NoRope, Class::Full)
        }
        architecture => match windows(architecture) {
            Some(rule) if rule.always || windowed => {
                let window = |window: bool| if window { Class::Window } else { Class::Full };
                if let (_, Some(GgufValue::List(_))) = keys.get("attention.sliding_window_pattern") {
                    let list = keys.counts("attention.sliding_window_pattern", count)?.unwrap_or_default();
                    list.into_iter().map(|flag| window(flag != 0)).collect()
                } else {
                    let n = period(rule.every)?;
                    let shift = usize::from(!rule.dense_first);
                    (shift..count + shift).map(|layer| window(!layer.is_multiple_of(n))).collect()
                }
            }
            _ => vec![Class::Full; count],
        },
    };
    // Layers without keys do not attend (LFM2, Granite hybrid).
    if let (_, Some(GgufValue::List(_))) = keys.get("attention.head_count_kv") {
        let heads = keys.counts("attention.head_count_kv", count)?.unwrap_or_default();
        for (class, heads) in classes.iter_mut().zip(heads) {
            if heads == 0 {
                *class = Class::NoRope;
            }
        }
    }
    Ok(classes)
}

fn layer(keys: &Keys<'_>, kind: Kind, class: Class, context: Option<usize>) -> Result<Layer> {
    let architecture = keys.architecture;
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
    let last = ROTARY_LAST.contains(&architecture);
    if let (true, Some(own)) = (last, keys.count("attention.key_length_mla")?) {
        head = own;
    }
    let given = keys.count(&swa("rope.dimension_count"))?.or(keys.count("rope.dimension_count")?);
    let rotary = given.unwrap_or(head);
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head {
        return wrong(format!(
            "{architecture}.rope.dimension_count is {rotary}, it must be even and at most the head's {head}"
        ));
    }
    let offset = if last { head - rotary } else { 0 };
    // Both bases are read for every layer, so that neither counts as unknown.
    let (base, base_swa) = (keys.number("rope.freq_base")?.unwrap_or(10_000.0), keys.number("rope.freq_base_swa")?);
    let _ = keys.count("rope.dimension_count_swa")?;
    let rule = windows(architecture).filter(|_| window);
    let base = match &rule {
        // OLMo 3's windows keep the base, whatever the metadata says.
        Some(_) if architecture == "olmo2" => base,
        Some(rule) => base_swa.or(rule.base).unwrap_or(base),
        None => base,
    };

    let scaled = rule.is_none_or(|rule| rule.scaled);
    let (scaling, attention_factor, logit_scale) = scaling(keys, rotary, scaled, context)?;
    let axes = axes(keys, kind, rotary / 2)?;
    let query_scale = query_scale(keys, class)?;
    if class == Class::NoRope {
        return Ok(Layer { query_scale, ..Layer::none("layers without RoPE", head) });
    }
    let pairing = match kind {
        Kind::Norm => Pairing::Interleaved,
        Kind::NormOrSections if axes == Axes::One => Pairing::Interleaved,
        _ => Pairing::Half,
    };
    let rope = Rope { offset, pairing, scaling, attention_factor, axes, ..Rope::new(rotary, base) };
    let label = if window { "layers with a window" } else { "full layers" };
    Ok(Layer { rope: Some(rope), logit_scale, query_scale, ..Layer::none(label, head) })
}

fn query_scale(keys: &Keys<'_>, class: Class) -> Result<QueryScale> {
    let (length, scale) = (keys.number("attention.temperature_length")?, keys.number("attention.temperature_scale")?);
    Ok(match (keys.architecture, class) {
        ("llama4", Class::NoRope) => {
            QueryScale::Llama4 { scale: scale.unwrap_or(0.1), floor: length.unwrap_or(8192.0) }
        }
        ("llama4", _) => QueryScale::One,
        _ => match (length, scale) {
            (Some(original_context), Some(beta)) if beta != 0.0 => QueryScale::Mistral { beta, original_context },
            _ => QueryScale::One,
        },
    })
}

fn axes(keys: &Keys<'_>, kind: Kind, pairs: usize) -> Result<Axes> {
    let (name, value) = keys.get("rope.dimension_sections");
    let several = matches!(kind, Kind::Sections | Kind::InTurn);
    let perhaps = matches!(kind, Kind::NormOrSections | Kind::NeoxOrSections);
    let sections = match value {
        Some(GgufValue::List(list)) => keys.counts("rope.dimension_sections", list.len())?.unwrap_or_default(),
        Some(value) => return wrong(format!("{name} is {value}, it must be a list")),
        None if several => {
            return wrong(format!("{name} is missing, the architecture {:?} needs it", keys.architecture));
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
    Ok(if kind == Kind::InTurn { Axes::Interleaved(sections) } else { Axes::Sections(sections) })
}

/// The scaling, the factor on cos and sin, and the factor on logits.
fn scaling(keys: &Keys<'_>, rotary: usize, scaled: bool, context: Option<usize>) -> Result<(Scaling, f64, f64)> {
    let (architecture, pairs) = (keys.architecture, rotary / 2);
    let kind = match keys.get("rope.scaling.type") {
        (_, None) => "linear",
        (_, Some(GgufValue::Text(kind))) => kind.as_str(),
        (key, Some(value)) => return wrong(format!("{key} is {value}, it must be a string")),
    };
    let factor = keys.number("rope.scaling.factor")?.or(keys.number("rope.scale_linear")?);
    // 0 means none, as llama.cpp reads it.
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let attn_factor = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let log_mul = keys.number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    // The deepseek2 architecture stores a tenth.
    let log_mul = if architecture == "deepseek2" { log_mul / 0.1 } else { log_mul };
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
        (Some(alpha), Scaling::None) if matches!(architecture, "hunyuan-dense" | "hunyuan_vl") => {
            Scaling::NtkStatic { alpha }
        }
        (Some(_), scaling) if scaling != Scaling::None && matches!(architecture, "hunyuan-dense" | "hunyuan_vl") => {
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
    let logit_scale = if SCALED_LOGITS.contains(&architecture) {
        // `attn_factor_org`: without a ramp, nothing has cancelled the factor that it takes back.
        let restored = if extrapolation != 0.0 { 1.0 } else { yarn_mscale(factor, 1.0) };
        let scale = attention_factor * restored * yarn_mscale(factor, log_mul);
        scale * scale
    } else {
        1.0
    };
    Ok((scaling, attention_factor, logit_scale))
}
