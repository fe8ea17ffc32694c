//! The commands of docs/cli.md print what the page says. `POSENC_BLESS=1` writes the page anew.

mod support;

use std::path::Path;

use posenc::{Direction, Heads, Rope};
use support::{npy, posenc};

const CONFIG: &str = r#"{
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    }
}"#;
const SHAPE: (usize, usize, usize) = (128, 4, 64);

/// Tensors as safetensors.
fn safetensors(path: &Path, tensors: &[(&str, &[f32])]) {
    let (tokens, heads, dim) = SHAPE;
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for (name, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": [tokens, heads, dim], "data_offsets": [begin, data.len()] });
        header.insert((*name).into(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).expect("a file");
}

/// The files that the page's commands name.
fn prepare(folder: &Path) {
    std::fs::write(folder.join("config.json"), CONFIG).expect("a file");
    std::fs::write(folder.join("other.json"), CONFIG.replace("500000.0", "10000.0")).expect("a file");
    let (tokens, heads, dim) = SHAPE;
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut tensor = |count: usize| (0..count).map(|_| next()).collect::<Vec<f32>>();
    let (q, k) = (tensor(tokens * heads * dim), tensor(tokens * heads * dim));
    let rope = Rope::from_hf_config(CONFIG).expect("a rotation");
    let shape = Heads::thd(tokens, heads, dim);
    let (mut q_after, mut k_after) = (q.clone(), k.clone());
    let positions: Vec<i64> = (0..tokens as i64).collect();
    rope.rotate(&mut q_after, &shape, &positions[..], Direction::Forward).expect("a rotation");
    // The engine forgets the scaling of keys, has another base, and begins anew after 100 tokens.
    let restarted: Vec<i64> = positions.iter().map(|at| at % 100).collect();
    Rope::new(dim, 1e4).rotate(&mut k_after, &shape, &restarted[..], Direction::Forward).expect("a rotation");
    safetensors(&folder.join("before.safetensors"), &[("k", &k), ("q", &q)]);
    safetensors(&folder.join("after.safetensors"), &[("k", &k_after), ("q", &q_after)]);
    // ALiBi's slopes for 12 heads as a port has them that follows the paper's text.
    let (heads, keys) = (12, 24);
    let logits: Vec<f32> = tensor(heads * keys * keys).iter().map(|it| 4.0 * it).collect();
    let biased = logits.iter().enumerate().map(|(at, logit)| {
        let (head, query, key) = (at / keys / keys, at / keys % keys, at % keys);
        let bias = 2f32.powf(-8.0 * (head + 1) as f32 / heads as f32) * query.abs_diff(key) as f32;
        if key > query { f32::NEG_INFINITY } else { logit / 8.0 - bias }
    });
    npy(folder, "logits.npy", &[heads, keys, keys], &logits);
    npy(folder, "biased.npy", &[heads, keys, keys], &biased.collect::<Vec<f32>>());
    let op = serde_json::json!({ "op": "rope", "spec": rope });
    std::fs::write(folder.join("rope.json"), op.to_string()).expect("a file");
    npy(folder, "a.npy", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    npy(folder, "b.npy", &[2, 3], &[1.0, 2.0, 3.001, 4.0, 5.0, 6.5]);
}

#[test]
fn commands_of_the_page_print_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder");
    prepare(folder.path());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let mut written = String::new();
    let mut commands = 0;
    for (index, block) in page.split("```").enumerate() {
        if index > 0 {
            written += "```";
        }
        let Some(rest) = block.strip_prefix("console\n$ posenc ").filter(|_| index % 2 == 1) else {
            written += block;
            continue;
        };
        let command = rest.lines().next().expect("a command");
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let run = posenc(folder.path(), &arguments);
        assert!(run.status < 2 && run.err.is_empty(), "{command}: {}", run.err);
        written += &format!("console\n$ posenc {command}\n{}", run.out);
        commands += 1;
    }
    assert!(commands >= 5, "{commands} commands");
    if std::env::var_os("POSENC_BLESS").is_some() {
        std::fs::write(&path, &written).expect("written");
    }
    assert!(
        written == page || std::env::var_os("POSENC_BLESS").is_some(),
        "the page is not what the program prints:\n{written}"
    );
}

/// Every command has a section.
#[test]
fn the_page_has_every_command() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md")).expect("the page");
    let help = posenc(Path::new("."), &["--help"]).ends(0);
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("commands");
    for name in
        list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| !["help", "shell"].contains(name))
    {
        assert!(page.contains(&format!("\n## {name}\n")), "the page has no section on {name}");
    }
}
