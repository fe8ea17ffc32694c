//! `posenc inspect`.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::posenc;

const LLAMA_3_1: &str = r#"{
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    }
}"#;

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file");
}

/// The report of a config as JSON.
fn report(text: &str, arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "config.json", text);
    let text = posenc(folder.path(), &[&["inspect", "config.json", "--json"], arguments].concat()).ends(0);
    serde_json::from_str(&text).expect("JSON")
}

/// A verdict of the first kind of layers.
#[track_caller]
fn verdict<'a>(report: &'a Value, rule: &str) -> &'a Value {
    let list = report["kinds"][0]["verdicts"].as_array().expect("a list");
    list.iter().find(|it| it["rule"] == rule).unwrap_or_else(|| panic!("no {rule} in {list:?}"))
}

/// Numbers of the papers and of the models' own code, each computed apart from this program.
#[test]
fn numbers_are_those_of_the_papers() {
    let llama3 = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 8192, "rope_theta": 5e5}"#;
    let it = report(llama3, &[]);
    assert_eq!(verdict(&it, "critical-dimension")["value"], 70.0);
    assert!(
        verdict(&it, "turns")["text"].as_str().expect("text").starts_with("29 of 64 pairs turn less than once in 8192")
    );
    assert_eq!(verdict(&it, "decay")["level"], "ok");
    assert_eq!(verdict(&it, "coverage")["value"], 0.0);
    // The same model beyond its training.
    let it = report(llama3, &["--seq-len", "32768"]);
    assert_eq!((&verdict(&it, "decay")["level"], &verdict(&it, "decay")["value"]), (&json!("warn"), &json!(18438.0)));
    assert_eq!(verdict(&it, "coverage")["value"], 29.0);

    let it = report(LLAMA_3_1, &[]);
    assert_eq!(it["kinds"][0]["layers"].as_array().expect("a list").len(), 32);
    assert_eq!(it["kinds"][0]["pairs"][63]["divided_by"], 8.0);
    assert_eq!(it["length"], 131072);
    let text = verdict(&it, "llama3-pairs")["text"].as_str().expect("text").to_string();
    assert_eq!(text, "29 pairs are kept, 6 blended, 29 divided by 8");
    let error = verdict(&it, "f32-angles")["value"].as_f64().expect("a number");
    assert!((2e-3..9.3e-3).contains(&error), "{error}");
}

#[test]
fn yarn_says_which_pairs_it_divides_and_what_becomes_of_its_factor() {
    let deepseek = r#"{"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128, "num_hidden_layers": 61,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840,
        "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}}"#;
    let it = report(deepseek, &[]);
    let text = verdict(&it, "yarn-pairs")["text"].as_str().expect("text");
    assert_eq!(text, "YaRN keeps the pairs up to 10 and divides those from 23 on by 40");
    assert!(verdict(&it, "yarn-factor")["text"].as_str().expect("text").ends_with("YaRN's own factor is 1.368888"));
    // One key is rotated for 128 heads: 2 (read and written) * 129 heads * 64 channels * 2 bytes.
    let own = it["cost"]
        .as_array()
        .expect("costs")
        .iter()
        .find(|row| row["way"] == "rotation, angles computed")
        .expect("a row");
    assert_eq!((&own["own"], &own["per_token"]), (&json!(true), &json!(33024.0)));
}

#[test]
fn biases_and_tables_have_their_distances() {
    let bloom =
        r#"{"model_type": "bloom", "n_layer": 30, "hidden_size": 4096, "n_head": 32, "num_attention_heads": 32}"#;
    let it = report(bloom, &["--seq-len", "2048"]);
    // The flattest slope of 32 heads is 2^-8.
    let half = verdict(&it, "half-distance")["value"].as_f64().expect("a number");
    assert!((half - 2f64.ln() * 256.0).abs() < 1e-9, "{half}");
    assert_eq!(verdict(&it, "reach")["level"], "ok");

    let t5 = r#"{"model_type": "t5", "num_layers": 6, "d_model": 512, "num_heads": 8, "relative_attention_num_buckets": 32}"#;
    let it = report(t5, &["--seq-len", "512"]);
    // 32 buckets, 16 a side: the last begins at 8 * 16^(7/8) = 90.5.
    assert_eq!(verdict(&it, "last-distinct")["value"], 91.0);

    let gpt2 = r#"{"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}"#;
    let it = report(gpt2, &["--seq-len", "2048"]);
    let rows = &it["embedding_verdicts"][0];
    assert_eq!((&rows["level"], &rows["value"]), (&json!("warn"), &json!(1024.0)));
}

#[test]
fn text_has_every_kind_of_layer_and_one_layer_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let smollm3 = r#"{"model_type": "smollm3", "num_hidden_layers": 8, "hidden_size": 2048, "num_attention_heads": 16,
        "max_position_embeddings": 65536, "rope_theta": 5e6}"#;
    write(folder.path(), "config.json", smollm3);
    let all = posenc(folder.path(), &["inspect", "."]).ends(0);
    assert!(all.starts_with("smollm3, 8 layers, 65536 positions; numbers for 65536 tokens\n"), "{all}");
    assert!(all.contains("no RoPE") && all.contains("base 5000000"), "{all}");
    let third = posenc(folder.path(), &["inspect", ".", "--layer", "3"]).ends(0);
    assert!(third.contains("no RoPE") && !third.contains("base 5000000"), "{third}");
    let short = all.lines().count();
    let every = posenc(folder.path(), &["inspect", ".", "--pairs"]).ends(0).lines().count();
    assert_eq!(every - short, 64 - 9, "every pair has a line");
}

#[test]
fn two_configs_are_compared_layer_by_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.json", LLAMA_3_1);
    write(
        folder.path(),
        "b.json",
        &LLAMA_3_1.replace("500000.0", "10000.0").replace("\"factor\": 8.0", "\"factor\": 32.0"),
    );
    let same = posenc(folder.path(), &["inspect", "a.json", "a.json"]).ends(0);
    assert!(same.ends_with("positions are taken in alike\n"), "{same}");
    let text = posenc(folder.path(), &["inspect", "a.json", "b.json"]).ends(1);
    assert!(text.contains("layers 0-31\n  base\n    a 500000.0\n    b 10000.0\n"), "{text}");
    assert!(text.contains("factor 8.0") && text.contains("factor 32.0"), "{text}");
    assert!(text.contains("pair 40: 0.010841 times as fast in a"), "{text}");
    let json = posenc(folder.path(), &["inspect", "a.json", "b.json", "--json"]).ends(1);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["layers"][0]["layers"].as_array().expect("layers").len(), 32);
}

/// A model whose layers differ against one whose layers do not.
#[test]
fn only_the_layers_that_differ_are_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |every: usize| {
        format!(
            r#"{{"model_type": "smollm3", "num_hidden_layers": 8, "hidden_size": 2048, "num_attention_heads": 16,
            "max_position_embeddings": 65536, "rope_theta": 5e6, "no_rope_layer_interval": {every}}}"#
        )
    };
    write(folder.path(), "a.json", &of(4));
    write(folder.path(), "b.json", &of(8));
    let text = posenc(folder.path(), &["inspect", "a.json", "b.json"]).ends(1);
    assert!(text.contains("\nlayer 3\n  rope\n    a no RoPE\n    b rotated\n"), "{text}");
}

#[test]
fn bad_configs_are_errors_with_file_and_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "cut.json", &LLAMA_3_1[..100]);
    write(folder.path(), "empty.json", "");
    write(folder.path(), "unknown.json", &LLAMA_3_1.replace("llama3", "spiral"));
    std::fs::create_dir(folder.path().join("nothing")).expect("a folder");
    write(folder.path(), "cut.gguf", "GGUF\u{3}");
    write(folder.path(), "short.json", r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32}"#);
    let fails = |arguments: &[&str]| posenc(folder.path(), &[&["inspect"], arguments].concat()).fails();
    for (arguments, want) in [
        (&["cut.json"][..], "error: cut.json: "),
        (&["cut.json"], "line "),
        (&["empty.json"], "error: empty.json: "),
        (&["unknown.json"], "spiral"),
        (&["cut.gguf"], "error: cut.gguf: "),
        (&["missing.json"], "missing.json"),
        (&["nothing"], "no config.json"),
        (&["short.json"], "short.json states no context: give --seq-len"),
        (&["short.json", "--seq-len", "0"], "--seq-len"),
        (&["short.json", "--seq-len", "8", "--layer", "40", "--layer", "41"], "--layer"),
    ] {
        let text = fails(arguments);
        assert!(text.contains(want), "{arguments:?}: {text}");
    }
    write(folder.path(), "llama.json", LLAMA_3_1);
    let text = fails(&["llama.json", "--layer", "40"]);
    assert_eq!(text, "error: llama.json: layer 40 is asked for, the model has 32\n");
}

/// Layers of one rotation with and without a window are apart, and scores are judged by the distances that they see.
#[test]
fn windows_bound_the_distances() {
    let config = r#"{"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 4,
        "max_position_embeddings": 32768, "rope_theta": 10000.0, "sliding_window": 1024}"#;
    let it = report(config, &[]);
    assert_eq!(it["kinds"].as_array().expect("a list").len(), 1);
    assert_eq!(it["kinds"][0]["window"], 1024);
    // 1024 positions of the first pair, one radian each.
    let turns = it["kinds"][0]["pairs"][0]["turns"].as_f64().expect("a number");
    assert!((turns - 1024.0 / std::f64::consts::TAU).abs() < 1e-9, "{turns}");
    // The mean cosine of base 10000 turns negative at 1707, which no window of 1024 sees.
    assert_eq!(verdict(&it, "decay")["level"], "ok");
    // Angles are those of positions, whatever the window.
    assert!(verdict(&it, "f32-angles")["text"].as_str().expect("text").ends_with("before position 32768"));
    let whole = report(&config.replace("1024", "null"), &[]);
    assert_eq!((&whole["kinds"][0]["window"], &verdict(&whole, "decay")["value"]), (&Value::Null, &json!(1707.0)));

    let mixed = r#"{"model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_hidden_layers": 4,
        "max_position_embeddings": 8192, "sliding_window": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}"#;
    let it = report(mixed, &[]);
    let of = |kind: usize| (it["kinds"][kind]["layers"].clone(), it["kinds"][kind]["window"].clone());
    assert_eq!(of(0), (json!([0, 2]), json!(128)));
    assert_eq!(of(1), (json!([1, 3]), Value::Null));
    let one = report(mixed, &["--layer", "3"]);
    assert_eq!((one["kinds"].as_array().map(Vec::len), &one["kinds"][0]["layers"]), (Some(1), &json!([1, 3])));

    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.json", mixed);
    write(
        folder.path(),
        "b.json",
        &mixed.replace(
            "\"full_attention\", \"sliding_attention\", \"full_attention\"",
            "\"full_attention\", \"full_attention\", \"full_attention\"",
        ),
    );
    let text = posenc(folder.path(), &["inspect", "a.json", "b.json"]).ends(1);
    assert!(text.contains("layer 2\n  window\n    a 128\n    b none\n"), "{text}");
    let text = posenc(folder.path(), &["inspect", "a.json"]).ends(0);
    assert!(text.contains("a window of 128 tokens in layers 0, 2: numbers are for its distances"), "{text}");
    assert!(text.contains("no window in layers 1, 3"), "{text}");
}
