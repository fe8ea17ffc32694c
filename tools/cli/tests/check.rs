//! `posenc check`: on a device where there is one, else on the CPU.

mod support;

use std::path::Path;

use support::posenc;

#[test]
fn every_operation_is_within_its_bound() {
    let text = posenc(Path::new("."), &["check", "--quick"]).ends(0);
    let rows: Vec<&str> = text.lines().filter(|line| line.ends_with("  ok")).collect();
    let operations = posenc(Path::new("."), &["apply", "--schema"]).ends(0).lines().count();
    assert_eq!(rows.len(), 3 * operations, "{text}");
    let compared = |row: &&str| row.split_whitespace().nth(3).and_then(|count| count.parse::<usize>().ok());
    assert!(rows.iter().all(|row| compared(row).is_some_and(|count| count > 0)), "{text}");
    assert!(text.ends_with("all within their bounds\n"), "{text}");
    // Nothing is compared with itself: rounding to a half type uses most of a bound.
    assert!(rows.iter().filter(|row| row.contains("bf16")).any(|row| row.contains(" 9")), "{text}");
}

#[test]
fn the_cpu_is_within_the_bounds_in_every_size() {
    let text = posenc(Path::new("."), &["check", "--device", "cpu", "softmax"]).ends(0);
    assert!(text.starts_with("on the CPU\n") && text.matches("  ok\n").count() == 6, "{text}");
    let error = posenc(Path::new("."), &["check", "--device", "cpu", "warp"]).fails();
    assert_eq!(error, "error: no operation is named like \"warp\"\n");
}
