//! The head of a `.gguf` file: typed values, and the tensors that hold divisors.
//!
//! The reader is our own: a header is a count, typed values and a list of tensors, 150 lines; the crates that read it bring a
//! tensor library along.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use super::super::keys::wrong;
use crate::Result;

/// Metadata of a GGUF file.
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
