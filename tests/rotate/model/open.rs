//! Models by the path of a file or a folder, and their summaries in words.

use std::fs;
use std::path::PathBuf;

use posenc::{ModelRope, Rope};

const QWEN: &str = r#"{"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 2, "rope_theta": 1e6}"#;
const MISTRAL: &str = r#"{"dim": 4096, "n_heads": 32, "n_layers": 3, "rope_theta": 1000000.0}"#;

/// A folder of one test, removed when it goes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("posenc-open-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_is_read_by_its_name() {
    let folder = Folder::new("file");
    let layers = |path: PathBuf| ModelRope::open(path).unwrap().layers();
    assert_eq!(layers(folder.write("config.json", QWEN)), Some(2));
    assert_eq!(layers(folder.write("qwen.json", QWEN)), Some(2));
    assert_eq!(layers(folder.write("params.json", MISTRAL)), Some(3));
    let gguf = folder.write("Model.GGUF", super::gguf::file());
    assert_eq!(ModelRope::open(gguf).unwrap().rope().unwrap().rotary, 8);
}

#[test]
fn a_folder_is_read_by_its_files() {
    let folder = Folder::new("folder");
    let name = folder.0.display().to_string();
    let message = || ModelRope::open(&folder.0).unwrap_err().to_string();
    assert_eq!(message(), format!("{name} has no config.json, params.json or .gguf file"));
    folder.write("one.gguf", super::gguf::file());
    assert_eq!(ModelRope::open(&folder.0).unwrap().name(), "llama");
    folder.write("two.gguf", super::gguf::file());
    assert_eq!(message(), format!("{name} has 2 .gguf files, name one of them"));
    folder.write("params.json", MISTRAL);
    assert_eq!(ModelRope::open(&folder.0).unwrap().layers(), Some(3));
    folder.write("config.json", QWEN);
    assert_eq!(ModelRope::open(&folder.0).unwrap().layers(), Some(2));
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = Folder::new("refused");
    let missing = folder.0.join("config.json");
    let message = ModelRope::open(&missing).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot read {}: ", missing.display())), "{message}");
    let message = ModelRope::open(folder.write("config.json", "{")).unwrap_err().to_string();
    assert!(message.starts_with("the config is not JSON: "), "{message}");
    let message = ModelRope::open(folder.write("empty.gguf", "")).unwrap_err().to_string();
    assert!(message.contains("GGUF"), "{message}");
}

#[test]
fn a_path_in_place_of_json_is_recognised() {
    for path in ["config.json", "models/qwen", "C:\\models\\params.json", " model.gguf\n"] {
        let message = ModelRope::from_hf(path).unwrap_err().to_string();
        let path = path.trim();
        assert_eq!(message, format!("the config is {path:?}, which looks like a path; ModelRope::open reads a file"));
    }
    let message = ModelRope::from_mistral("params.json").unwrap_err().to_string();
    assert_eq!(message, "params.json is \"params.json\", which looks like a path; ModelRope::open reads a file");
    for text in ["", "qwen3", "{\"a\": \"b/c.json\"", "[1, 2"] {
        let message = ModelRope::from_hf(text).unwrap_err().to_string();
        assert!(message.starts_with("the config is not JSON: "), "{message}");
    }
}

/// What a `main` that returns the error prints.
#[test]
fn debug_of_an_error_is_its_sentence() {
    let error = Rope::from_hf_config("config.json").unwrap_err();
    assert_eq!(format!("{error:?}"), error.to_string());
    assert!(format!("{:?}", Err::<(), _>(error)).starts_with("Err(the config is \"config.json\""));
}

/// Axes and scales in words, without the names of the crate's types.
#[test]
fn a_summary_is_in_words() {
    let hf = |json: &str| ModelRope::from_hf(json).unwrap().describe();
    let text = hf(r#"{"model_type": "qwen3_vl_text", "head_dim": 128, "num_hidden_layers": 1, "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": true}}"#);
    assert!(text.ends_with("base 5000000; 3 axes interleaved, with 24, 20, 20 pairs\n"), "{text}");
    let text = hf(r#"{"model_type": "qwen", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "kv_channels": 128, "rotary_emb_base": 10000, "seq_length": 8192, "use_logn_attn": true, "use_dynamic_ntk": false}"#);
    assert!(text.ends_with("base 10000; queries times ln(position + 1) / ln(8192), at least 1\n"), "{text}");
    let mistral = r#"{"dim": 4096, "n_heads": 32, "rope_theta": 1e6, "llama_4_scaling":
        {"original_max_position_embeddings": 16384, "beta": 0.1}}"#;
    let text = ModelRope::from_mistral(mistral).unwrap().describe();
    assert!(text.ends_with("queries times 1 + 0.1 ln(1 + floor(position / 16384))\n"), "{text}");
}
