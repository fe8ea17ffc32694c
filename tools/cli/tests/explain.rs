//! `posenc explain`, run as a program.

mod support;

use std::path::Path;

use posenc::{Direction, Heads, Pairing, Rope};
use serde_json::Value;
use support::{npy, posenc};

const TOKENS: usize = 64;
const HEADS: usize = 4;
const DIM: usize = 64;

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Writes `before.npy` and what a rotation at these positions makes of it, [tokens, heads, channels].
fn files(folder: &Path, after: &str, rope: &Rope, positions: &[i64]) {
    let x = numbers(TOKENS * HEADS * DIM);
    let mut y = x.clone();
    rope.rotate(&mut y, &Heads::thd(TOKENS, HEADS, DIM), positions, Direction::Forward).expect("a rotation");
    npy(folder, "before.npy", &[TOKENS, HEADS, DIM], &x);
    npy(folder, after, &[TOKENS, HEADS, DIM], &y);
}

fn counted(from: i64) -> Vec<i64> {
    (from..from + TOKENS as i64).collect()
}

#[test]
fn a_rotation_is_named_with_its_residual_and_the_second_best() {
    let folder = tempfile::tempdir().expect("a folder");
    let rope = Rope { pairing: Pairing::Interleaved, ..Rope::new(DIM, 5e5) };
    files(folder.path(), "after.npy", &rope, &counted(0));
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy"]).ends(0);
    assert!(text.starts_with("before and after [64, 4, 64], [tokens, heads, channels]\n"), "{text}");
    for line in [
        "pairing                interleaved",
        "base                   500000",
        "channels               0..64 of 64",
        "positions              as given",
    ] {
        assert!(text.contains(&format!("    {line}\n")), "{line} is not in {text}");
    }
    assert!(text.contains("residual ") && text.contains("second best: "), "{text}");
}

#[test]
fn the_config_is_confirmed_or_its_differences_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = r#"{"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8192, "rope_theta": 5e5}"#;
    std::fs::write(folder.path().join("config.json"), config).expect("a file");
    files(folder.path(), "right.npy", &Rope::new(DIM, 5e5), &counted(100));
    files(folder.path(), "wrong.npy", &Rope::new(DIM, 1e4), &counted(101));
    let run = |after: &str| {
        posenc(folder.path(), &["explain", "before.npy", after, "--start", "100", "--config", "config.json"])
    };
    assert!(run("right.npy").ends(0).contains("\n  as the config says\n"));
    // Cosines and sines as transformers makes them are no difference to a config.
    let rope = Rope { angles: posenc::rotate::Angles::HfCompat, ..Rope::new(DIM, 5e5) };
    files(folder.path(), "compat.npy", &rope, &counted(100_000));
    let arguments = ["explain", "before.npy", "compat.npy", "--start", "100000", "--config", "config.json"];
    let text = posenc(folder.path(), &arguments).ends(0);
    assert!(
        text.contains("\n  as the config says\n  angles are products in f32, as transformers makes them\n"),
        "{text}"
    );
    let text = run("wrong.npy").ends(1);
    assert!(text.contains("\n  positions are one too high\n"), "{text}");
    assert!(text.contains("\n  base: 10000, the config says 500000\n"), "{text}");
}

#[test]
fn positions_come_from_a_file_and_restarts_are_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let used: Vec<i64> = counted(4070).iter().map(|at| at % 4096).collect();
    files(folder.path(), "after.npy", &Rope::new(DIM, 1e4), &used);
    let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (64,)}\n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(counted(4070).iter().flat_map(|at| at.to_le_bytes()));
    std::fs::write(folder.path().join("positions.npy"), bytes).expect("a file");
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--positions", "positions.npy"]).ends(0);
    assert!(text.contains("\n  positions restart at 4096\n"), "{text}");
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--positions", "before.npy"]).fails();
    assert!(text.contains("before.npy holds f32, positions are i32 or i64"), "{text}");
}

#[test]
fn the_layout_is_the_one_that_explains() {
    let folder = tempfile::tempdir().expect("a folder");
    let x = numbers(TOKENS * HEADS * DIM);
    let mut y = x.clone();
    let heads = Heads::bhtd(1, HEADS, TOKENS, DIM);
    Rope::new(DIM, 1e4).rotate(&mut y, &heads, &counted(5)[..], Direction::Forward).expect("a rotation");
    for shape in [&[HEADS, TOKENS, DIM][..], &[1, HEADS, TOKENS, DIM]] {
        npy(folder.path(), "before.npy", shape, &x);
        npy(folder.path(), "after.npy", shape, &y);
        let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--start", "5"]).ends(0);
        assert!(text.contains("heads, tokens, channels]\n"), "{text}");
        assert!(text.contains("\n    positions              as given\n"), "{text}");
    }
}

/// A decoder's step: no neighbour shows a rate, and published bases are tried.
#[test]
fn a_single_token_tells_base_and_position() {
    let folder = tempfile::tempdir().expect("a folder");
    let x = numbers(DIM);
    let mut y = x.clone();
    Rope::new(DIM, 1e6).rotate(&mut y, &Heads::thd(1, 1, DIM), &[997][..], Direction::Forward).expect("a rotation");
    npy(folder.path(), "before.npy", &[1, DIM], &x);
    npy(folder.path(), "after.npy", &[1, DIM], &y);
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--start", "1000"]).ends(0);
    assert!(text.contains("\n  positions are shifted by -3\n"), "{text}");
    assert!(text.contains("\n    base                   1000000\n"), "{text}");
}

#[test]
fn json_has_what_the_text_has() {
    let folder = tempfile::tempdir().expect("a folder");
    files(folder.path(), "after.npy", &Rope::new(DIM / 2, 1e4), &counted(0));
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--json"]).ends(0);
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let it = &json["tensors"][0];
    assert_eq!(it["explained"], true);
    let best = it["best"].as_array().expect("properties");
    assert!(best.contains(&serde_json::json!(["channels", "0..32 of 64"])), "{best:?}");
    assert!(it["residual"]["share_of_bound"].as_f64().expect("a number") <= 1.0);
}

#[test]
fn what_is_no_rotation_is_not_explained_and_says_what_was_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let x = numbers(2 * TOKENS * HEADS * DIM);
    let (x, y) = x.split_at(TOKENS * HEADS * DIM);
    npy(folder.path(), "before.npy", &[TOKENS, HEADS, DIM], x);
    npy(folder.path(), "after.npy", &[TOKENS, HEADS, DIM], y);
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy"]).ends(1);
    assert!(
        text.contains("no rotation") || text.contains("not explained: nothing fits within 1 of the bound"),
        "{text}"
    );
    let text = posenc(folder.path(), &["explain", "before.npy", "before.npy"]).ends(0);
    assert!(text.contains("not rotated at all: the tensors are equal"), "{text}");
}

#[test]
fn bad_input_is_an_error_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    files(folder.path(), "after.npy", &Rope::new(DIM, 1e4), &counted(0));
    npy(folder.path(), "flat.npy", &[TOKENS * HEADS * DIM], &numbers(TOKENS * HEADS * DIM));
    npy(folder.path(), "nan.npy", &[TOKENS, HEADS, DIM], &vec![f32::NAN; TOKENS * HEADS * DIM]);
    npy(folder.path(), "empty.npy", &[0, HEADS, DIM], &[]);
    let fails = |arguments: &[&str]| posenc(folder.path(), &[&["explain"], arguments].concat()).fails();
    for (arguments, want) in [
        (&["before.npy", "flat.npy"][..], "the shape before is [64, 4, 64] and after [16384]"),
        (&["flat.npy", "flat.npy"], "its shape is [16384], queries and keys have 2 to 4 dimensions"),
        (&["before.npy", "nan.npy"], "every token has elements that are not finite: 0 before, 16384 after"),
        (&["empty.npy", "empty.npy"], "there is nothing to look at"),
        (
            &["before.npy", "after.npy", "--layout", "bthd"],
            "its shape is [64, 4, 64], --layout is [batch, tokens, heads, channels]",
        ),
        (&["before.npy", "after.npy", "--config", "config.json"], "config.json"),
        (&["before.npy", "missing.npy"], "cannot read missing.npy"),
    ] {
        let text = fails(arguments);
        assert!(text.contains(want), "{arguments:?}: {text}");
    }
}

#[test]
fn a_bias_is_named_and_bad_logits_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let (heads, keys) = (4, 32);
    let logits = numbers(heads * keys * keys);
    let biased = logits.iter().enumerate().map(|(at, logit)| {
        let (head, query, key) = (at / keys / keys, at / keys % keys, at % keys);
        logit / 8.0 - posenc::Alibi::new(heads).slope(head) as f32 * query.abs_diff(key) as f32
    });
    npy(folder.path(), "logits.npy", &[heads, keys, keys], &logits);
    npy(folder.path(), "biased.npy", &[heads, keys, keys], &biased.collect::<Vec<f32>>());
    npy(folder.path(), "flat.npy", &[heads * keys * keys], &logits);
    npy(folder.path(), "masked.npy", &[heads, keys, keys], &vec![f32::NEG_INFINITY; heads * keys * keys]);
    let text = posenc(folder.path(), &["explain", "--bias", "logits.npy", "biased.npy"]).ends(0);
    for line in [
        "scale                  1 / sqrt(64)",
        "slopes                 ALiBi's",
        "future                 as the past: symmetric",
    ] {
        assert!(text.contains(&format!("    {line}\n")), "{line} is not in {text}");
    }
    let fails = |other: &str| posenc(folder.path(), &["explain", "--bias", "logits.npy", other]).fails();
    assert!(fails("flat.npy").contains("the shape without is [4, 32, 32] and with a bias [4096]"));
    assert!(fails("masked.npy").contains("no logit is left: 4096 are masked and 0 not finite"));
    // Logits that have nothing to do with each other.
    let other = numbers(2 * heads * keys * keys).split_off(heads * keys * keys);
    npy(folder.path(), "other.npy", &[heads, keys, keys], &other);
    let text = posenc(folder.path(), &["explain", "--bias", "logits.npy", "other.npy"]).ends(1);
    assert!(text.contains("not explained: tried were"), "{text}");
}

/// A token whose numbers are not finite is left out and counted.
#[test]
fn numbers_that_are_not_finite_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (x, shape) = (numbers(TOKENS * HEADS * DIM), Heads::thd(TOKENS, HEADS, DIM));
    let mut y = x.clone();
    Rope::new(DIM, 1e4).rotate(&mut y, &shape, &counted(0)[..], Direction::Forward).expect("a rotation");
    y[5] = f32::NAN;
    y[6] = f32::INFINITY;
    npy(folder.path(), "before.npy", &[TOKENS, HEADS, DIM], &x);
    npy(folder.path(), "after.npy", &[TOKENS, HEADS, DIM], &y);
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy"]).ends(0);
    assert!(text.contains("0 elements before and 2 after are not finite, their tokens are left out"), "{text}");
    assert!(text.contains("base                   10000"), "{text}");
}

/// A prompt within the first context is rotated by the short list, whatever the config's longest is; without the config its divisors are
/// printed.
#[test]
fn lists_of_longrope_are_named_from_the_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = |of: &dyn Fn(usize) -> f64| (0..DIM / 2).map(of).collect::<Vec<f64>>();
    let config = serde_json::json!({
        "model_type": "phi3", "hidden_size": HEADS * DIM, "num_attention_heads": HEADS, "num_hidden_layers": 2,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": list(&|pair| 1.0 + pair as f64 / 100.0),
            "long_factor": list(&|pair| 1.0 + pair as f64)}
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    let model = posenc::ModelRope::from_hf(&config.to_string()).expect("a config");
    for (length, file) in [(64, "short.npy"), (131_072, "long.npy")] {
        let rope = model.at_length(length).kinds()[0].rope.clone().expect("a rotation");
        files(folder.path(), file, &rope, &counted(0));
    }
    let text = posenc(folder.path(), &["explain", "before.npy", "long.npy", "--config", "config.json"]).ends(0);
    assert!(text.contains("as the config says"), "{text}");
    let text = posenc(folder.path(), &["explain", "before.npy", "short.npy", "--config", "config.json"]).ends(1);
    let said = "scaling: LongRoPE by the config's short list, the config says LongRoPE by the config's long list";
    assert!(text.contains(said), "{text}");
    let text = posenc(folder.path(), &["explain", "before.npy", "short.npy"]).ends(0);
    assert!(text.contains("no known law; frequencies of base 10000 are divided by"), "{text}");
}

/// Heads that a kernel left alone, from the program.
#[test]
fn heads_that_are_left_out_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let x = numbers(TOKENS * HEADS * DIM);
    let mut y = x.clone();
    Rope::new(DIM, 1e4)
        .rotate(&mut y, &Heads::thd(TOKENS, HEADS, DIM), &counted(5)[..], Direction::Forward)
        .expect("a rotation");
    for at in (0..x.len()).filter(|at| !(at / DIM).is_multiple_of(HEADS)) {
        y[at] = x[at];
    }
    npy(folder.path(), "before.npy", &[TOKENS, HEADS, DIM], &x);
    npy(folder.path(), "after.npy", &[TOKENS, HEADS, DIM], &y);
    let text = posenc(folder.path(), &["explain", "before.npy", "after.npy", "--start", "5"]).ends(0);
    assert!(
        text.contains("  heads 1 to 3 are not rotated\n") && text.contains("base                   10000"),
        "{text}"
    );
}
