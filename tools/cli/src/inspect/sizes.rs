//! Sizes and windows that no rotation needs, by the names that configs have for them.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use posenc::rotate::{Gguf, GgufValue};
use serde_json::Value;

/// Sizes of a model, where its config states them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sizes {
    pub query_heads: Option<u64>,
    pub key_heads: Option<u64>,
    pub hidden: Option<u64>,
    /// channels of a head, where they are stated
    pub head: Option<u64>,
    pub windows: Windows,
}

/// Keys that a query sees at most, itself among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Windows {
    #[default]
    None,
    /// in every layer
    All(u64),
    /// in every layer that rotates
    Rotating(u64),
    /// layer by layer
    Layers(Vec<Option<u64>>),
    /// in the layers of these labels
    Labels { sliding: Option<u64>, chunked: Option<u64> },
}

impl Windows {
    /// The window of a layer, by its index, its label in the config's words, and whether it rotates.
    pub fn of(&self, layer: usize, label: &str, rotates: bool) -> Option<u64> {
        match self {
            Self::None => None,
            Self::All(window) => Some(*window).filter(|_| label != "full_attention"),
            Self::Rotating(window) => Some(*window).filter(|_| rotates),
            Self::Layers(list) => list.get(layer).copied().flatten(),
            Self::Labels { sliding, chunked } => match label {
                "sliding_attention" => *sliding,
                "chunked_attention" => *chunked,
                _ => None,
            },
        }
    }

    fn of_json(config: &Value) -> Self {
        let number = |name: &str| config.get(name).and_then(Value::as_u64).filter(|&it| it > 0);
        let (sliding, chunked) = (number("sliding_window"), number("attention_chunk_size"));
        if config.get("use_sliding_window").and_then(Value::as_bool) == Some(false) {
            return Self::None;
        }
        if let Some(types) = config.get("layer_types").and_then(Value::as_array) {
            let of = |kind: &Value| match kind.as_str() {
                Some("sliding_attention" | "local_attention") => sliding,
                Some("chunked_attention") => chunked,
                _ => None,
            };
            return Self::Layers(types.iter().map(of).collect());
        }
        let layers = number("num_hidden_layers").unwrap_or(0);
        let each = |is_full: &dyn Fn(u64) -> bool| {
            Self::Layers((0..layers).map(|layer| sliding.filter(|_| !is_full(layer))).collect())
        };
        // Defaults of the model's own class, where its config leaves the pattern out.
        let of_class = match config.get("model_type").and_then(Value::as_str) {
            Some("gemma2") => Some(2),
            Some("gemma3" | "gemma3_text") => Some(6),
            Some("cohere2") => Some(4),
            _ => None,
        };
        match (sliding, number("max_window_layers"), number("sliding_window_pattern").or(of_class), chunked) {
            (Some(_), Some(first), _, _) => each(&|layer| layer < first),
            (Some(_), None, Some(pattern), _) => each(&|layer| (layer + 1).is_multiple_of(pattern)),
            (Some(window), None, None, _) => Self::All(window),
            (None, _, _, Some(chunk)) => Self::Rotating(chunk),
            (None, _, _, None) => Self::None,
        }
    }

    fn of_gguf(gguf: &Gguf, architecture: &str) -> Self {
        let key = |name: &str| gguf.keys.get(&format!("{architecture}.{name}"));
        let number = |name: &str| match key(name) {
            Some(GgufValue::Integer(value)) => u64::try_from(*value).ok().filter(|&it| it > 0),
            _ => None,
        };
        let (Some(window), Some(layers)) = (number("attention.sliding_window"), number("block_count")) else {
            return Self::None;
        };
        match key("attention.sliding_window_pattern") {
            Some(GgufValue::List(list)) => {
                let is_window = |value: &GgufValue| match value {
                    GgufValue::Integer(value) => *value != 0,
                    GgufValue::Bool(value) => *value,
                    _ => false,
                };
                Self::Layers(list.iter().map(|value| Some(window).filter(|_| is_window(value))).collect())
            }
            Some(GgufValue::Integer(every)) if *every > 0 => {
                let every = u64::try_from(*every).unwrap_or(1);
                let of = |layer: u64| Some(window).filter(|_| !(layer + 1).is_multiple_of(every));
                Self::Layers((0..layers).map(of).collect())
            }
            // llama.cpp knows the pattern by the architecture, the file does not: labels say what the reader knows.
            _ => Self::Labels { sliding: Some(window), chunked: None },
        }
    }
}

const QUERY_HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"];
const KEY_HEADS: &[&str] = &["num_key_value_heads", "n_kv_heads", "num_kv_heads"];
const HEAD: &[&str] = &["head_dim", "d_kv", "attention_head_dim"];
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
        Self {
            query_heads: first(QUERY_HEADS),
            key_heads,
            hidden: first(HIDDEN),
            head: first(HEAD),
            windows: Windows::of_json(config),
        }
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
            head: number("attention.key_length"),
            windows: Windows::of_gguf(gguf, architecture),
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
        let want = Sizes { query_heads: Some(32), key_heads: Some(8), hidden: Some(4096), ..Sizes::default() };
        for text in [
            r#"{"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}"#,
            r#"{"text_config": {"n_heads": 32, "n_kv_heads": 8, "dim": 4096}}"#,
        ] {
            assert_eq!(of(text), want, "{text}");
        }
        assert_eq!(
            of(r#"{"n_head": 16, "n_embed": 1024}"#),
            Sizes { query_heads: Some(16), hidden: Some(1024), ..Sizes::default() }
        );
    }

    #[test]
    fn windows_are_those_of_the_models_own_classes() {
        let of = |text: &str| Windows::of_json(&serde_json::from_str(text).expect(text));
        let window = |it: &Windows, layer: usize| it.of(layer, "every layer", true);
        let mistral = of(r#"{"model_type": "mistral", "sliding_window": 4096, "num_hidden_layers": 32}"#);
        assert_eq!((window(&mistral, 0), window(&mistral, 31)), (Some(4096), Some(4096)));
        assert_eq!(of(r#"{"sliding_window": null, "num_hidden_layers": 32}"#), Windows::None);
        assert_eq!(of(r#"{"sliding_window": 32768, "use_sliding_window": false}"#), Windows::None);
        let qwen = of(r#"{"sliding_window": 131072, "use_sliding_window": true, "max_window_layers": 28,
            "num_hidden_layers": 32}"#);
        assert_eq!((window(&qwen, 27), window(&qwen, 28)), (None, Some(131_072)));
        let gemma2 = of(r#"{"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 4}"#);
        assert_eq!([0, 1, 2, 3].map(|layer| window(&gemma2, layer)), [Some(4096), None, Some(4096), None]);
        let oss = of(r#"{"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}"#);
        assert_eq!((window(&oss, 0), window(&oss, 1)), (Some(128), None));
        let llama4 = of(r#"{"attention_chunk_size": 8192, "num_hidden_layers": 4}"#);
        assert_eq!((llama4.of(0, "", true), llama4.of(3, "", false)), (Some(8192), None));
    }
}
