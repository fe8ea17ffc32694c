//! GGUF files: written from random keys and tensors, then damaged.

use std::io::Cursor;

use anyhow::Result;
use posenc::ModelRope;
use posenc::rotate::Gguf;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::{Run, models};

const READERS: [&str; 2] =
    [include_str!("../../../src/model/gguf/mod.rs"), include_str!("../../../src/model/gguf/file.rs")];

/// A value by the file format's type numbers.
#[derive(Clone, Debug)]
enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    Text(String),
    U64(u64),
    F64(f64),
    List(Vec<i32>),
}

impl Value {
    fn write(&self, bytes: &mut Vec<u8>) {
        let number = |bytes: &mut Vec<u8>, kind: u32, value: &[u8]| {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        };
        match self {
            Self::U32(value) => number(bytes, 4, &value.to_le_bytes()),
            Self::I32(value) => number(bytes, 5, &value.to_le_bytes()),
            Self::F32(value) => number(bytes, 6, &value.to_le_bytes()),
            Self::Bool(value) => number(bytes, 7, &[*value]),
            Self::Text(text) => {
                bytes.extend(8u32.to_le_bytes());
                string(bytes, text);
            }
            Self::List(list) => {
                number(bytes, 9, &5u32.to_le_bytes());
                bytes.extend((list.len() as u64).to_le_bytes());
                bytes.extend(list.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::U64(value) => number(bytes, 10, &value.to_le_bytes()),
            Self::F64(value) => number(bytes, 12, &value.to_le_bytes()),
        }
    }
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn value(words: Vec<String>) -> impl Strategy<Value = Value> {
    let numbers = || select(vec![0u32, 1, 2, 4, 8, 16, 32, 64, 80, 128, 4096, 65_536, 1 << 31, u32::MAX]);
    let real = || select(vec![0.0f32, 1.0, -1.0, 0.1, 8.0, 1e4, 5e5, 1e-30, f32::MAX, f32::NAN, f32::INFINITY]);
    prop_oneof![
        4 => numbers().prop_map(Value::U32),
        1 => numbers().prop_map(|n| Value::I32(n as i32)),
        3 => real().prop_map(Value::F32),
        1 => (0u8..3).prop_map(Value::Bool),
        2 => select(words).prop_map(Value::Text),
        1 => any::<u64>().prop_map(Value::U64),
        1 => real().prop_map(|x| Value::F64(f64::from(x))),
        1 => vec(select(vec![0, 1, 2, 8, 16, 24, 64, -1, i32::MIN]), 0..70).prop_map(Value::List),
    ]
}

pub(crate) fn fuzz(run: &Run) -> Result<()> {
    let words = models::words(&READERS);
    let architectures =
        vec!["llama", "qwen2", "gemma3", "deepseek2", "phi3", "glm4", "qwen2vl", "bert", "falcon", "gptneox"];
    let key = prop_oneof![3 => Just(None), 1 => Just(Some("general.".to_string()))];
    let keys = vec((key, select(words.clone()), value(words)), 0..12);
    let tensors = vec(
        (
            select(vec!["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "output.weight"]),
            select(vec![0u64, 1, 4, 32, 64, 4096, 1 << 32, u64::MAX]),
            select(vec![0u32, 1, 2, 8, 30, u32::MAX]),
        ),
        0..4,
    );
    let damage = vec((any::<Index>(), any::<u8>()), 0..3);
    let cut = proptest::option::weighted(0.1, any::<Index>());
    let inputs =
        (select(architectures), keys, tensors, damage, cut).prop_map(|(architecture, keys, tensors, damage, cut)| {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend((tensors.len() as u64).to_le_bytes());
            // What every model has, unless a random key has the name too: then it stands twice, which is refused.
            let usual = ["attention.head_count", "block_count", "embedding_length", "attention.key_length"];
            bytes.extend(((keys.len() + usual.len()) as u64 + 1).to_le_bytes());
            string(&mut bytes, "general.architecture");
            Value::Text(architecture.into()).write(&mut bytes);
            for (name, value) in usual.into_iter().zip([4, 2, 256, 64]) {
                string(&mut bytes, &format!("{architecture}.{name}"));
                Value::U32(value).write(&mut bytes);
            }
            for (prefix, name, value) in &keys {
                // A reader's words are what stands behind the architecture, or a whole key.
                let name = name.trim_start_matches('.');
                string(
                    &mut bytes,
                    &prefix.as_ref().map_or(format!("{architecture}.{name}"), |prefix| format!("{prefix}{name}")),
                );
                value.write(&mut bytes);
            }
            for (name, elements, kind) in &tensors {
                string(&mut bytes, name);
                bytes.extend(1u32.to_le_bytes());
                bytes.extend(elements.to_le_bytes());
                bytes.extend(kind.to_le_bytes());
                bytes.extend(0u64.to_le_bytes());
            }
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend((0..64).flat_map(|i| (1.0 + i as f32).to_le_bytes()));
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        });
    run.of(&inputs, |bytes| {
        let Ok(gguf) = Gguf::read(Cursor::new(bytes)) else { return Ok(false) };
        let Ok(model) = ModelRope::from_gguf(&gguf) else { return Ok(false) };
        models::ask(&model).map(|()| true)
    })
}
