//! What a model's config says about position: `cargo run --example 02_describe -- path/to/config.json ...`
//!
//! Reads Hugging Face's `config.json`, Mistral's `params.json`, `.gguf` files and folders with one of them; without a path,
//! Gemma 3's keys.

use posenc::{ModelRope, Result};

const GEMMA3: &str = r#"{
    "model_type": "gemma3_text", "head_dim": 256, "num_hidden_layers": 34, "max_position_embeddings": 131072,
    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}
}"#;

fn main() -> Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    for path in &paths {
        println!("{path}");
        match ModelRope::open(path) {
            Ok(model) => println!("{}", model.describe()),
            Err(error) => println!("{error}\n"),
        }
    }
    if paths.is_empty() {
        let model = ModelRope::from_hf(GEMMA3)?;
        print!("{}", model.describe());
        assert_eq!(
            model.describe(),
            "gemma3_text, 34 layers, 131072 positions\n\
             sliding_attention (29 from layer 0): RoPE over all 256 channels in halves, base 10000\n\
             full_attention (5 from layer 5): RoPE over all 256 channels in halves, base 1000000; linear by 8\n"
        );
    }
    Ok(())
}
