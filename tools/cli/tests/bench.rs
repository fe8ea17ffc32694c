//! `posenc bench` of the default features: the committed counts.
#![cfg(not(feature = "bench"))]

mod support;

use std::path::Path;

use support::posenc;

#[test]
fn counts_are_printed_under_that_name() {
    let counts = include_str!("../../../benches/tests/counts.csv");
    let text = posenc(Path::new("."), &["bench", "rotate/rope/llama-3-8b/bf16/InPlace/"]).ends(0);
    assert!(text.starts_with("counted on the emulator") && text.contains("no times"), "{text}");
    let of = |part: &str| counts.lines().filter(|line| line.contains(part)).count();
    assert_eq!(text.lines().count(), 2 + of("rotate/rope/llama-3-8b/bf16/InPlace/"), "{text}");
    let row = text.lines().find(|line| line.starts_with("rotate/rope/llama-3-8b/bf16/InPlace/64 ")).expect("a case");
    let shown: Vec<&str> = row.split_whitespace().skip(1).collect();
    let counted: Vec<&str> = counts
        .lines()
        .find(|line| line.starts_with("rotate/rope/llama-3-8b/bf16/InPlace/64,"))
        .expect("a case")
        .split(',')
        .collect();
    assert_eq!(shown, [counted[1], counted[3], counted[4], counted[5], counted[6], counted[8]]);
    let all = posenc(Path::new("."), &["bench"]).ends(0);
    assert_eq!(all.lines().count(), 2 + counts.lines().count() - 1);
    let error = posenc(Path::new("."), &["bench", "warp"]).fails();
    assert_eq!(error, "error: no case is named like \"warp\"\n");
}
