//! GGUF metadata: llama.cpp's `{arch}.rope.*` keys, and a reader for the head of a `.gguf` file.
//!
//! The reader is our own: a header is a count, typed values and a list of tensors, 150 lines; the crates that read it bring a
//! tensor library along.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};

use super::keys::wrong;
use super::{Layer, ModelRope, check_layers};
use crate::Result;
use crate::rotate::{Axes, Pairing, QueryScale, Rope, Scaling, Yarn, yarn_mscale};

/// What the metadata of a GGUF file says.
///
/// # Example
/// ```
/// use posenc::ModelRope;
/// use posenc::rotate::{Gguf, GgufValue};
/// let mut gguf = Gguf::default();
/// gguf.keys.insert("general.architecture".into(), GgufValue::Text("qwen3".into()));
/// gguf.keys.insert("qwen3.attention.key_length".into(), GgufValue::Integer(128));
/// gguf.keys.insert("qwen3.rope.freq_base".into(), GgufValue::Float(1e6));
/// assert_eq!(ModelRope::from_gguf(&gguf)?.rope()?.base, 1e6);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gguf {
    /// The keys; lists of strings (vocabularies) are left out when a file is read.
    pub keys: BTreeMap<String, GgufValue>,
    /// The tensors that hold divisors of frequencies: `rope_freqs.weight`, `rope_factors_long.weight`,
    /// `rope_factors_short.weight`.
    pub divisors: BTreeMap<String, Vec<f64>>,
}

/// A value of GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// any of the integer types
    Integer(i128),
    /// f32 or f64
    Float(f64),
    /// bool
    Bool(bool),
    /// string
    Text(String),
    /// a list of numbers or flags
    List(Vec<GgufValue>),
}

impl std::fmt::Display for GgufValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::List(list) => write!(f, "a list of {}", list.len()),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- the reader

const DIVISORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

struct Source<R> {
    input: R,
    at: u64,
}

impl<R: Read> Source<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => self.at += N as u64,
            Err(error) => return wrong(format!("the GGUF file ends or fails at byte {}: {error}", self.at)),
        }
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        // A damaged length must not ask for memory that the file does not fill.
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(length).read_to_end(&mut bytes);
        if read.is_err() || bytes.len() as u64 != length {
            return wrong(format!("the GGUF file ends or fails in a string of {length} bytes at byte {}", self.at));
        }
        self.at += length;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => wrong(format!("the GGUF file holds a string that is not UTF-8 before byte {}", self.at)),
        }
    }

    /// A value of a type; `None` for a list of strings, which is passed over.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<GgufValue>> {
        use GgufValue::{Bool, Float, Integer, Text};
        Ok(Some(match kind {
            0 => Integer(self.bytes::<1>()?[0].into()),
            1 => Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Integer(self.u32()?.into()),
            5 => Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Bool(self.bytes::<1>()?[0] != 0),
            8 => Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if depth > 0 && kind == 9 {
                    return wrong(format!("the GGUF file nests lists too deeply at byte {}", self.at));
                }
                let mut list = Vec::new();
                for _ in 0..count {
                    list.extend(self.value(kind, depth + 1)?.filter(|value| !matches!(value, Text(_))));
                }
                if list.len() as u64 != count {
                    return Ok(None);
                }
                GgufValue::List(list)
            }
            10 => Integer(self.u64()?.into()),
            11 => Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Float(f64::from_le_bytes(self.bytes()?)),
            other => {
                return wrong(format!(
                    "the GGUF file holds a value of type {other} at byte {}, types end at 12",
                    self.at
                ));
            }
        }))
    }
}

impl Gguf {
    /// Reads the head of a `.gguf` file of version 2 or 3, little-endian, and the tensors that hold divisors.
    ///
    /// Of a model in several files, the first one holds the keys.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is no such file, or damaged.
    pub fn read<R: Read + Seek>(input: R) -> Result<Self> {
        let mut source = Source { input, at: 0 };
        let magic = source.bytes::<4>()?;
        if &magic != b"GGUF" {
            return wrong(format!("the file starts with {magic:?}, a GGUF file starts with \"GGUF\""));
        }
        let version = source.u32()?;
        if !(2..=3).contains(&version) {
            return wrong(format!(
                "the GGUF file has version {version}, this crate reads little-endian versions 2 and 3"
            ));
        }
        let (tensors, values) = (source.u64()?, source.u64()?);
        let mut gguf = Self::default();
        for _ in 0..values {
            let key = source.text()?;
            let kind = source.u32()?;
            if let Some(value) = source.value(kind, 0)? {
                gguf.keys.insert(key, value);
            }
        }
        let mut wanted = Vec::new();
        for _ in 0..tensors {
            let name = source.text()?;
            let dimensions = source.u32()?;
            let mut elements = 1u64;
            for _ in 0..dimensions {
                elements = elements.saturating_mul(source.u64()?);
            }
            let (kind, offset) = (source.u32()?, source.u64()?);
            if DIVISORS.contains(&name.as_str()) {
                // Type 0 is f32, the only one that llama.cpp writes here.
                if kind != 0 || elements > 1 << 20 {
                    return wrong(format!(
                        "{name} holds {elements} elements of type {kind}, it must hold f32 (type 0)"
                    ));
                }
                wanted.push((name, elements, offset));
            }
        }
        let alignment = match gguf.keys.get("general.alignment") {
            None => 32,
            Some(&GgufValue::Integer(alignment)) if (1..=1 << 20).contains(&alignment) => alignment as u64,
            Some(value) => return wrong(format!("general.alignment is {value}, it must be a number of bytes")),
        };
        let data = source.at.next_multiple_of(alignment);
        for (name, elements, offset) in wanted {
            let at = data.saturating_add(offset);
            if let Err(error) = source.input.seek(SeekFrom::Start(at)) {
                return wrong(format!("{name} lies at byte {at}, which the file does not reach: {error}"));
            }
            source.at = at;
            let divisor = |_| source.bytes().map(|bytes| f64::from(f32::from_le_bytes(bytes)));
            let list = (0..elements).map(divisor).collect::<Result<_>>()?;
            gguf.divisors.insert(name, list);
        }
        Ok(gguf)
    }
}

// --------------------------------------------------------------------------------------------------------- understanding

/// How llama.cpp pairs channels, by architecture (llama.cpp 0c1e57098, `llama_model_rope_type`).
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// interleaved
    Norm,
    /// halves
    Neox,
    /// halves, axes by sections
    Sections,
    /// halves, axes in turn
    InTurn,
    /// no RoPE
    None(&'static str),
}

fn kind(architecture: &str) -> Option<Kind> {
    Some(match architecture {
        "llama" | "llama4" | "deci" | "baichuan" | "starcoder" | "internlm2" | "minicpm" | "xverse" | "command-r"
        | "cohere2" | "olmo" | "arctic" | "deepseek" | "deepseek2" | "chatglm" | "glm4" | "granite" | "granitemoe"
        | "granitehybrid" | "chameleon" | "smollm3" | "ernie4_5" | "ernie4_5-moe" | "mistral3" | "mistral4"
        | "glm-dsa" | "orion" => Kind::Norm,
        "falcon" | "grok" | "dbrx" | "bert" | "nomic-bert" | "nomic-bert-moe" | "modern-bert" | "stablelm" | "qwen"
        | "qwen2" | "qwen2moe" | "qwen3" | "qwen3moe" | "qwen3next" | "olmo2" | "olmoe" | "phi2" | "phi3"
        | "phimoe" | "gemma" | "gemma2" | "gemma3" | "gemma3n" | "gemma4" | "gemma-embedding" | "starcoder2"
        | "gptneox" | "nemotron" | "exaone" | "exaone4" | "minicpm3" | "hunyuan-moe" | "hunyuan-dense" | "gpt-oss"
        | "lfm2" | "lfm2moe" | "seed_oss" | "apertus" | "minimax-m2" | "mimo2" | "glm4moe" | "codeshell"
        | "openelm" | "bitnet" | "dots1" => Kind::Neox,
        "qwen2vl" | "paddleocr" => Kind::Sections,
        "qwen3vl" | "qwen3vlmoe" | "qwen35" | "qwen35moe" => Kind::InTurn,
        "bloom" | "mpt" | "jais" | "refact" | "jina-bert-v2" => Kind::None("ALiBi"),
        "t5" | "t5encoder" => Kind::None("T5's buckets of distance"),
        "gpt2" | "gptj" => Kind::None("a learned table"),
        "mamba" | "mamba2" | "jamba" | "rwkv6" | "rwkv7" | "nemotron_h" | "kimi-linear" => {
            Kind::None("nothing: order comes from the recurrent layers")
        }
        _ => return None,
    })
}

/// Architectures with latent attention, whose scale of logits llama.cpp takes from `yarn_log_multiplier`.
const LATENT: &[&str] = &["deepseek2", "glm-dsa", "mistral4"];

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
    /// llama.cpp differs from the models' own code in three points, which this follows: YaRN's ramp is always rounded to whole
    /// pairs (GPT-OSS's is not), `yarn_attn_factor` is overwritten, and windows have no scaling. In one it does not: where
    /// llama.cpp gives the pairs of Qwen3-VL that no axis reaches (61 and 62) a fourth position, they have time.
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
        let mut kinds = Vec::new();
        let mut built: Vec<Layer> = Vec::new();
        let mut places = Vec::new();
        for &class in &classes {
            let index = kinds.iter().position(|&other| other == class);
            let index = match index {
                Some(index) => index,
                None => {
                    built.push(layer(&keys, kind, class, context)?);
                    kinds.push(class);
                    kinds.len() - 1
                }
            };
            places.push(index);
        }
        if let [only] = &mut built[..] {
            only.label = "every layer".into();
        }
        if layers.is_none() {
            places.clear();
        }
        // Baked into the base when the file was made (Hunyuan), and a remark.
        for key in ["rope.scaling.alpha", "rope.scaling.finetuned"] {
            let _ = keys.get(key);
        }
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
    let mut classes = match keys.architecture {
        "llama4" | "smollm3" => {
            every(keys.count("no_rope_layer_interval")?.unwrap_or(4).max(1), Class::Full, Class::NoRope)
        }
        "cohere2" | "exaone4" if keys.count("attention.sliding_window")?.is_some() => {
            every(4, Class::Full, Class::NoRope)
        }
        "qwen3next" | "qwen35" | "qwen35moe" => {
            every(keys.count("full_attention_interval")?.unwrap_or(4).max(1), Class::NoRope, Class::Full)
        }
        "gemma3" | "gemma3n" | "gemma4" | "gemma-embedding" | "mimo2" | "modern-bert" => {
            let default = match keys.architecture {
                "gemma3n" => Some(5),
                "gemma3" | "gemma-embedding" => Some(6),
                _ => None,
            };
            let window = |window: bool| if window { Class::Window } else { Class::Full };
            match keys.get("attention.sliding_window_pattern") {
                (_, Some(GgufValue::List(_))) => {
                    let list = keys.counts("attention.sliding_window_pattern", count)?.unwrap_or_default();
                    list.into_iter().map(|flag| window(flag != 0)).collect()
                }
                (key, _) => match keys.count("attention.sliding_window_pattern")?.or(default) {
                    Some(n) if n > 0 && keys.architecture == "modern-bert" => {
                        (0..count).map(|layer| window(!layer.is_multiple_of(n))).collect()
                    }
                    Some(n) if n > 0 => every(n, Class::Window, Class::Full),
                    _ => return wrong(format!("{key} is missing, the architecture {:?} needs it", keys.architecture)),
                },
            }
        }
        _ => vec![Class::Full; count],
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
    let latent = LATENT.contains(&architecture);
    if let (true, Some(own)) = (latent, keys.count("attention.key_length_mla")?) {
        head = own;
    }
    let given = keys.count(&swa("rope.dimension_count"))?.or(keys.count("rope.dimension_count")?);
    let rotary = given.unwrap_or(head);
    if rotary == 0 || !rotary.is_multiple_of(2) || rotary > head {
        return wrong(format!(
            "{architecture}.rope.dimension_count is {rotary}, it must be even and at most the head's {head}"
        ));
    }
    let offset = if latent { head - rotary } else { 0 };
    // Both bases are read for every layer, so that neither counts as unknown.
    let (base, base_swa) = (keys.number("rope.freq_base")?.unwrap_or(10_000.0), keys.number("rope.freq_base_swa")?);
    let _ = keys.count("rope.dimension_count_swa")?;
    let default_swa = if matches!(architecture, "gemma3" | "gemma3n" | "gemma-embedding") { 10_000.0 } else { base };
    let base = if window { base_swa.unwrap_or(default_swa) } else { base };

    let (scaling, attention_factor, logit_scale) = scaling(keys, rotary / 2, window, context)?;
    let axes = axes(keys, kind, rotary / 2)?;
    let query_scale = query_scale(keys, class)?;
    if class == Class::NoRope {
        return Ok(Layer { query_scale, ..Layer::none("layers without RoPE", head) });
    }
    let pairing = if kind == Kind::Norm { Pairing::Interleaved } else { Pairing::Half };
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
    let sections = match value {
        Some(GgufValue::List(list)) => keys.counts("rope.dimension_sections", list.len())?.unwrap_or_default(),
        Some(value) => return wrong(format!("{name} is {value}, it must be a list")),
        None if several => {
            return wrong(format!("{name} is missing, the architecture {:?} needs it", keys.architecture));
        }
        None => return Ok(Axes::One),
    };
    if !several {
        // GLM-4V's text model carries them along.
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
fn scaling(keys: &Keys<'_>, pairs: usize, window: bool, context: Option<usize>) -> Result<(Scaling, f64, f64)> {
    let architecture = keys.architecture;
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
    if window {
        return Ok((Scaling::None, 1.0, 1.0));
    }
    let divisors = |name: &str| -> Result<Option<Vec<f64>>> {
        match keys.gguf.divisors.get(name) {
            Some(list) if list.len() != pairs => {
                wrong(format!("{name} holds {} divisors, the rotary part has {pairs} pairs", list.len()))
            }
            found => Ok(found.cloned()),
        }
    };
    let freqs = divisors("rope_freqs.weight")?;
    let (long, short) = (divisors("rope_factors_long.weight")?, divisors("rope_factors_short.weight")?);
    let scaling = match (kind, long, short) {
        ("none" | "linear" | "longrope", Some(long), Some(short)) if factor == 1.0 || kind != "linear" => {
            Scaling::LongRope { short, long, original_context: needs_original()?, length: None }
        }
        (_, Some(_), None) | (_, None, Some(_)) => {
            return wrong(
                "one of rope_factors_long.weight and rope_factors_short.weight is missing, they need each other",
            );
        }
        ("longrope", None, None) => {
            return wrong("rope_factors_long.weight is missing, the scaling longrope needs it");
        }
        (_, Some(_), Some(_)) => {
            return wrong(format!("the long and short divisors stand beside the scaling {kind:?}"));
        }
        ("none", ..) => Scaling::None,
        ("linear", ..) if factor == 1.0 => Scaling::None,
        ("linear", ..) => Scaling::Linear { factor },
        ("yarn", ..) => Scaling::Yarn(Yarn {
            beta_fast: fast,
            beta_slow: slow,
            extrapolation: extrapolation.unwrap_or(1.0),
            ..Yarn::new(factor, needs_original()?)
        }),
        (other, ..) => {
            return wrong(format!(
                "{architecture}.rope.scaling.type is {other:?}, this crate knows none, linear, yarn and longrope"
            ));
        }
    };
    let scaling = match (freqs, scaling) {
        (None, scaling) => scaling,
        (Some(list), Scaling::None) => Scaling::Divisors(list),
        (Some(_), _) => {
            return wrong(format!("rope_freqs.weight stands beside the scaling {kind:?}, one of them must be alone"));
        }
    };
    let blends = matches!(scaling, Scaling::Yarn(Yarn { extrapolation, .. }) if extrapolation != 0.0);
    let mscale = match (blends, log_mul) {
        (false, _) => 1.0,
        (true, 0.0) => yarn_mscale(factor, 1.0),
        (true, all) if architecture == "deepseek2" && all != 1.0 => 1.0,
        (true, all) => yarn_mscale(factor, 1.0) / yarn_mscale(factor, all),
    };
    let attention_factor = mscale * attn_factor;
    let logit_scale = if LATENT.contains(&architecture) && log_mul != 0.0 && factor > 1.0 {
        let scale = attention_factor * yarn_mscale(factor, log_mul);
        scale * scale
    } else {
        1.0
    };
    Ok((scaling, attention_factor, logit_scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn errors_are_of_one_kind() {
        let error = Gguf::read(std::io::Cursor::new(b"GGML")).unwrap_err();
        assert!(matches!(error, Error::Config(_)));
    }
}
