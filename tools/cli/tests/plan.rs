//! `posenc plan`.

mod support;

use std::fs;
use std::path::Path;

use support::posenc;

const LLAMA2: &str = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
    "max_position_embeddings": 4096, "rope_theta": 10000.0}"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a config");
    write("llama2.json", LLAMA2);
    write("gpt2.json", r#"{"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}"#);
    write("bloom.json", r#"{"model_type": "bloom", "n_layer": 24, "n_embed": 1024, "num_attention_heads": 16}"#);
    folder
}

fn numbers(folder: &Path, arguments: &[&str]) -> Vec<(String, String)> {
    posenc(folder, &[&["plot", "wavelengths"], arguments, &["--data", "w.csv"]].concat()).ends(0);
    let mut reader = csv::Reader::from_path(folder.join("w.csv")).expect("data");
    reader.records().map(|record| record.expect("a row")).map(|row| (row[1].to_string(), row[3].to_string())).collect()
}

#[test]
fn yarn_is_planned_with_the_models_numbers() {
    let folder = folder();
    let arguments = ["plan", "llama2.json", "--to", "yarn", "--seq-len", "16384", "--config", "new.json"];
    let text = posenc(folder.path(), &arguments).ends(0);
    for part in [
        "llama: from RoPE with base 10000 trained on 4096 positions to YaRN for 16384, 4 times as many\n",
        "\"rope_scaling\": {\"factor\":4.0,\"original_max_position_embeddings\":4096,\"rope_type\":\"yarn\"}, \"max_position_embeddings\": 16384",
        "checked: the crate reads the changed config.json as this rotation",
        "pairs in angles that training did not have, at 16384: 18 before, 0 then",
        "first distance with a negative mean cosine: 1707 before, 4328 then",
        "cos and sin times 1.138629",
        "400 steps of 64 sequences",
        "posenc inspect llama2.json new.json",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The pairs of YaRN's ramp: 21 of Llama 2's are kept, and 18 are divided.
    assert!(
        text.contains("of 64 pairs 21 keep their frequency, 25 are divided by less, 18 are divided by 4"),
        "{text}"
    );
    // The new config's frequencies are those of the scaling.
    let new = numbers(folder.path(), &["new.json", "--seq-len", "16384"]);
    let scaled = numbers(folder.path(), &["llama2.json", "--scaling", "yarn=4", "--seq-len", "16384"]);
    let of = |rows: &[(String, String)], name: &str| {
        rows.iter().filter(|row| row.0 == name).map(|row| row.1.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of(&new, "llama").len(), 64);
    assert_eq!(of(&new, "llama"), of(&scaled, "yarn=4"));
}

#[test]
fn other_scalings_are_planned() {
    let folder = folder();
    let plan = |to: &str, length: &str| {
        posenc(folder.path(), &["plan", "llama2.json", "--to", to, "--seq-len", length]).ends(0)
    };
    let linear = plan("linear", "8192");
    assert!(
        linear.contains("of 64 pairs 0 keep their frequency, 0 are divided by less, 64 are divided by 2"),
        "{linear}"
    );
    // The published base of NTK at 4 times: 40889.94.
    let ntk = plan("ntk", "16384");
    assert!(ntk.contains("\"rope_theta\": 40889.9"), "{ntk}");
    assert!(ntk.contains("at 16384: 18 before, 17 then"), "{ntk}");
    let llama3 = plan("llama3", "32768");
    assert!(llama3.contains("\"factor\":8.0") && llama3.contains("10 billion tokens"), "{llama3}");
    let longrope = plan("longrope", "131072");
    // sqrt(1 + ln 32 / ln 4096), Phi-3's own number.
    for part in ["64 ones", "checked: the crate reads", "cos and sin times 1.190238", "up to 1000 steps"] {
        assert!(longrope.contains(part), "{part}\n{longrope}");
    }
    let arguments = ["plan", "llama2.json", "--to", "longrope", "--seq-len", "131072", "--config", "longrope.json"];
    posenc(folder.path(), &arguments).ends(0);
    let new: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("longrope.json")).expect("a config"))
            .expect("JSON");
    let long = new["rope_scaling"]["long_factor"].as_array().expect("a list");
    assert_eq!((long.len(), &long[0], &long[63]), (64, &1.0.into(), &32.0.into()));
    // Both keys of version 5, and the sizes that a config has beside.
    let v5 = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}"#;
    fs::write(folder.path().join("v5.json"), v5).expect("a config");
    let text = posenc(folder.path(), &["plan", "v5.json", "--to", "yarn", "--config", "v5-new.json"]).ends(0);
    assert!(text.contains("checked: the crate reads"), "{text}");
    let new: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("v5-new.json")).expect("a config")).expect("JSON");
    assert_eq!(new["rope_parameters"]["factor"], 4.0);
    assert_eq!(new["hidden_size"], 4096);
}

#[test]
fn encodings_are_replaced() {
    let folder = folder();
    let alibi = posenc(folder.path(), &["plan", "gpt2.json", "--to", "alibi"]).ends(0);
    assert!(alibi.starts_with("gpt2: from a vector added to the token to ALiBi\n"), "{alibi}");
    assert!(
        alibi.contains("Alibi::new(12)") && alibi.contains("slopes from 0.7071067811865476 to 0.003906"),
        "{alibi}"
    );
    // Heads whose channels are not those of the model over their number: T5 11B.
    let t5 = r#"{"model_type": "t5", "d_model": 1024, "d_kv": 128, "num_heads": 128, "num_layers": 24,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}"#;
    fs::write(folder.path().join("t5.json"), t5).expect("a config");
    let from_t5 = posenc(folder.path(), &["plan", "t5.json", "--to", "rope", "--seq-len", "2048"]).ends(0);
    assert!(from_t5.starts_with("t5: from T5's buckets to RoPE") && from_t5.contains("Rope::new(128, "), "{from_t5}");
    let to_alibi = posenc(folder.path(), &["plan", "t5.json", "--to", "alibi", "--seq-len", "2048"]).ends(0);
    assert!(to_alibi.contains("Alibi::new(128)") && to_alibi.contains("add no other bias"), "{to_alibi}");
    let to_t5 = posenc(folder.path(), &["plan", "gpt2.json", "--to", "t5"]).ends(0);
    for part in [
        "32 buckets and 12 heads: 384 numbers",
        "distances from 113 on share one number in a decoder, from 91",
        "97.2 %",
    ] {
        assert!(to_t5.contains(part), "{part}\n{to_t5}");
    }
    let error = posenc(folder.path(), &["plan", "t5.json", "--to", "t5", "--seq-len", "2048"]).fails();
    assert_eq!(error, "error: t5.json: t5 has T5's buckets already\n");
    let rope = posenc(folder.path(), &["plan", "bloom.json", "--to", "rope", "--seq-len", "4096"]).ends(0);
    // 64 channels on base 1e5 turn negative at 3616, on 1.5e5 at 2774 (the bound is not monotonous), on 5e5 at 9937.
    assert!(rope.contains("Rope::new(64, 500000.0)"), "{rope}");
    let nope = posenc(folder.path(), &["plan", "llama2.json", "--to", "nope", "--seq-len", "8192"]).ends(0);
    // 1 + 0.412 ln 2 and 1 + 0.103 ln 2
    assert!(nope.contains("1.2856") && nope.contains("1.0714"), "{nope}");
}

#[test]
fn what_the_config_contradicts_is_refused() {
    let folder = folder();
    for (arguments, error) in [
        (
            &["llama2.json", "--to", "yarn", "--seq-len", "4096"][..],
            "llama2.json: 4096 tokens are within the 4096 that llama was trained on: nothing is to be scaled",
        ),
        (
            &["bloom.json", "--to", "yarn", "--seq-len", "4096"],
            "bloom.json: bloom has no RoPE that could be scaled, position comes from ALiBi",
        ),
        (&["bloom.json", "--to", "alibi", "--seq-len", "4096"], "bloom.json: bloom has ALiBi already"),
        (
            &["llama2.json", "--to", "rope"],
            "llama2.json: every layer of llama has RoPE: go to linear, ntk, yarn, llama3 or longrope for another length",
        ),
        (&["bloom.json", "--to", "nope"], "bloom.json states no context: say --seq-len"),
        (
            &["llama2.json", "--to", "yarn", "--config", "llama2.json"],
            "llama2.json is the input: write to another file",
        ),
    ] {
        let got = posenc(folder.path(), &[&["plan"], arguments].concat()).fails();
        assert_eq!(got, format!("error: {error}\n"), "{arguments:?}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("llama2.json")).expect("the config"), LLAMA2);
}
