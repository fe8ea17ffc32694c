//! The head of a `.gguf` file: typed values, and the tensors that hold divisors.
//!
//! The reader is our own: a header is a count, typed values and a list of tensors, 150 lines; the crates that read it bring a
//! tensor library along.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};

use super::super::keys::wrong;
use crate::Result;

/// Metadata of a GGUF file.
///
/// More: [docs](crate::docs::rotate#gguf).
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
    /// The keys. When a file is read, lists of strings (vocabularies) and lists that no key of this crate asks for (their scores)
    /// are left out.
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

const DIVISORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The longest head whose divisors are read: 65536 channels. Real ones have some hundred.
const LONGEST_HEAD: u64 = 1 << 16;

/// The most values that the lists of a file may hold together, of those that are read: four lists of 2^16 layers.
const LISTED: u64 = 1 << 18;

/// Whether [`ModelRope::from_gguf`](crate::ModelRope::from_gguf) asks for a key, or refuses one that it does not know. Lists of
/// others are as long as a vocabulary and are not kept.
fn is_asked_for(key: &str) -> bool {
    let rest = key.split_once('.').map_or(key, |(_, rest)| rest);
    let plain = ["architecture", "alignment", "block_count", "context_length", "embedding_length"];
    plain.contains(&rest)
        || rest == "full_attention_interval"
        || rest.starts_with("attention.")
        || rest.starts_with("rope.")
}

/// Bytes of a value of a type; `None` for strings, lists and types that are not known.
fn size(kind: u32) -> Option<u64> {
    [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].get(kind as usize).copied().filter(|&size| size > 0)
}

struct Source<R> {
    input: R,
    at: u64,
    /// values in the lists that were kept
    listed: u64,
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

    fn pass_over(&mut self, length: u64) -> Result<()> {
        let passed = std::io::copy(&mut self.input.by_ref().take(length), &mut std::io::sink());
        if !matches!(passed, Ok(passed) if passed == length) {
            return wrong(format!("the GGUF file ends or fails in a list of {length} bytes at byte {}", self.at));
        }
        self.at += length;
        Ok(())
    }

    /// The value of a key; `None` for a list that is passed over.
    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Option<GgufValue>> {
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
            9 => return self.list(key, depth),
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

    /// The tensors of divisors among `count`, each of them of `most` elements at most.
    fn tensors(&mut self, count: u64, most: u64) -> Result<Vec<Divisors>> {
        let (mut names, mut divisors) = (BTreeSet::new(), Vec::new());
        for _ in 0..count {
            let name = self.text()?;
            let dimensions = self.u32()?;
            let mut elements = 1u64;
            for _ in 0..dimensions {
                elements = elements.saturating_mul(self.u64()?);
            }
            let (kind, offset) = (self.u32()?, self.u64()?);
            if !names.insert(name.clone()) {
                return wrong(format!("the GGUF file holds the tensor {name} twice, each must be there once"));
            }
            if !DIVISORS.contains(&name.as_str()) {
                continue;
            }
            // Type 0 is f32, the only one that llama.cpp writes here.
            if kind != 0 {
                return wrong(format!("{name} holds {elements} elements of type {kind}, it must hold f32 (type 0)"));
            }
            if elements > most {
                return wrong(format!("{name} holds {elements} divisors, half a head has {most}"));
            }
            divisors.push(Divisors { name, elements, offset });
        }
        Ok(divisors)
    }

    /// A value takes 48 bytes here and may take one in the file.
    fn count_listed(&mut self, key: &str, count: u64) -> Result<()> {
        let before = self.listed;
        self.listed = before.saturating_add(count);
        if self.listed > LISTED {
            return wrong(format!(
                "{key} holds a list of {count} values after {before} in lists before it, they must be at most {LISTED} together"
            ));
        }
        Ok(())
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Option<GgufValue>> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if depth > 0 && kind == 9 {
            return wrong(format!("the GGUF file nests lists too deeply at byte {}", self.at));
        }
        match size(kind) {
            // In one step: a vocabulary has a number for each of its words.
            Some(size) if !is_asked_for(key) => {
                return self.pass_over(count.saturating_mul(size)).map(|()| None);
            }
            Some(_) => self.count_listed(key, count)?,
            None => {}
        }
        let mut list = Vec::new();
        for _ in 0..count {
            if kind == 9 {
                self.count_listed(key, 1)?;
            }
            let value = self.value(key, kind, depth + 1)?;
            list.extend(value.filter(|value| !matches!(value, GgufValue::Text(_))));
        }
        Ok((list.len() as u64 == count).then_some(GgufValue::List(list)))
    }
}

/// A tensor of divisors.
struct Divisors {
    name: String,
    elements: u64,
    offset: u64,
}

impl Gguf {
    /// Reads the head of a `.gguf` file of version 2 or 3, little-endian, and the tensors that hold divisors.
    ///
    /// Of a model in several files, the first one holds the keys.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is no such file, or damaged.
    pub fn read<R: Read + Seek>(input: R) -> Result<Self> {
        let mut source = Source { input, at: 0, listed: 0 };
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
        let mut keys = BTreeSet::new();
        for _ in 0..values {
            let key = source.text()?;
            let kind = source.u32()?;
            let value = source.value(&key, kind, 0)?;
            if !keys.insert(key.clone()) {
                return wrong(format!("the GGUF file holds the key {key} twice, each must be there once"));
            }
            if let Some(value) = value {
                gguf.keys.insert(key, value);
            }
        }
        let divisors = source.tensors(tensors, gguf.longest_head() / 2)?;
        let alignment = match gguf.keys.get("general.alignment") {
            None => 32,
            Some(&GgufValue::Integer(alignment)) if (1..=1 << 20).contains(&alignment) => alignment as u64,
            Some(value) => return wrong(format!("general.alignment is {value}, it must be a number of bytes")),
        };
        let data = source.at.next_multiple_of(alignment);
        for Divisors { name, elements, offset } in divisors {
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

    /// The channels of the longest head that the keys state; [`LONGEST_HEAD`] where they state none, or a longer one.
    fn longest_head(&self) -> u64 {
        let Some(GgufValue::Text(architecture)) = self.keys.get("general.architecture") else { return LONGEST_HEAD };
        let number = |key: &str| match self.keys.get(&format!("{architecture}.{key}"))? {
            GgufValue::List(list) => list.first().and_then(integer),
            value => integer(value),
        };
        let stated = ["key_length", "key_length_swa", "key_length_mla"].map(|key| number(&format!("attention.{key}")));
        let shared = || number("embedding_length")?.checked_div(number("attention.head_count")?);
        let head = stated.into_iter().flatten().max().or_else(shared);
        head.map_or(LONGEST_HEAD, |head| head.min(LONGEST_HEAD))
    }
}

fn integer(value: &GgufValue) -> Option<u64> {
    if let GgufValue::Integer(value) = value { u64::try_from(*value).ok() } else { None }
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
