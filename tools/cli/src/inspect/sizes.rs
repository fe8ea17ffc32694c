//! Sizes that only the table of costs needs, by the names that configs have for them.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use posenc::rotate::{Gguf, GgufValue};
use serde_json::Value;

/// Sizes of a model, where its config states them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    pub query_heads: Option<u64>,
    pub key_heads: Option<u64>,
    pub hidden: Option<u64>,
}

const QUERY_HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"];
const KEY_HEADS: &[&str] = &["num_key_value_heads", "n_kv_heads", "num_kv_heads"];
const HIDDEN: &[&str] = &["hidden_size", "n_embd", "n_embed", "d_model", "dim"];

impl Sizes {
    /// Those of the file that [`posenc::ModelPositions::open`] reads.
    pub fn open(path: &Path) -> Result<Self> {
        let path = file_of(path);
        if path.extension().is_some_and(|it| it.eq_ignore_ascii_case("gguf")) {
            let gguf = Gguf::read(BufReader::new(File::open(&path)?))?;
            return Ok(Self::of_gguf(&gguf));
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Python's NaN and Infinity are no JSON: the model was read, its costs are left out.
        Ok(serde_json::from_str(&text).map_or_else(|_| Self::default(), |config| Self::of_json(&config)))
    }

    fn of_json(config: &Value) -> Self {
        let config =
            ["text_config", "llm_config", "language_config"].iter().find_map(|key| config.get(key)).unwrap_or(config);
        let first = |names: &[&str]| names.iter().find_map(|name| config.get(name).and_then(Value::as_u64));
        // Latent attention rotates one key for all heads.
        let is_latent = first(&["kv_lora_rank"]).is_some();
        let key_heads = if is_latent { Some(1) } else { first(KEY_HEADS) };
        Self { query_heads: first(QUERY_HEADS), key_heads, hidden: first(HIDDEN) }
    }

    fn of_gguf(gguf: &Gguf) -> Self {
        let Some(GgufValue::Text(architecture)) = gguf.keys.get("general.architecture") else { return Self::default() };
        let number = |name: &str| match gguf.keys.get(&format!("{architecture}.{name}")) {
            Some(GgufValue::Integer(value)) => u64::try_from(*value).ok(),
            _ => None,
        };
        Self {
            query_heads: number("attention.head_count"),
            key_heads: number("attention.kv_lora_rank").map(|_| 1).or_else(|| number("attention.head_count_kv")),
            hidden: number("embedding_length"),
        }
    }
}

/// The file of a model's folder; of several .gguf files the model's own reader has complained before.
fn file_of(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.into();
    }
    let named = ["config.json", "params.json"].map(|name| path.join(name)).into_iter().find(|it| it.is_file());
    let gguf = || {
        let entries = fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        entries.into_iter().find(|it| it.extension().is_some_and(|it| it.eq_ignore_ascii_case("gguf")))
    };
    named.or_else(gguf).unwrap_or_else(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_many_names() {
        let of = |text: &str| Sizes::of_json(&serde_json::from_str(text).expect(text));
        let want = Sizes { query_heads: Some(32), key_heads: Some(8), hidden: Some(4096) };
        for text in [
            r#"{"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}"#,
            r#"{"text_config": {"n_heads": 32, "n_kv_heads": 8, "dim": 4096}}"#,
        ] {
            assert_eq!(of(text), want, "{text}");
        }
        assert_eq!(
            of(r#"{"n_head": 16, "n_embed": 1024}"#),
            Sizes { query_heads: Some(16), key_heads: None, hidden: Some(1024) }
        );
    }
}
