//! What public implementations compute: tests/golden/embed.json, made by tools/golden/embed.py.

use std::sync::LazyLock;

use serde_json::Value;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/embed.json")).expect("the golden file is JSON"));

/// The cases of one kind; there is at least one.
pub fn cases(kind: &str) -> &'static [Value] {
    let cases = GOLDEN[kind].as_array().expect("a list of cases");
    assert!(!cases.is_empty());
    cases
}

/// The cases of one kind that have this name; there is at least one.
pub fn named(kind: &str, name: &'static str) -> impl Iterator<Item = &'static Value> {
    assert!(cases(kind).iter().any(|case| case["name"] == name), "no case {name}");
    cases(kind).iter().filter(move |case| case["name"] == name)
}

pub fn name(case: &Value) -> &str {
    case["name"].as_str().expect("a name")
}

pub fn size(case: &Value, key: &str) -> usize {
    usize::try_from(case[key].as_u64().unwrap_or_else(|| panic!("{key}"))).unwrap()
}

pub fn float(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("{key}"))
}

pub fn floats(case: &Value, key: &str) -> Vec<f64> {
    case[key].as_array().unwrap_or_else(|| panic!("{key}")).iter().map(|value| value.as_f64().unwrap()).collect()
}

pub fn integers(case: &Value, key: &str) -> Vec<i64> {
    case[key].as_array().unwrap_or_else(|| panic!("{key}")).iter().map(|value| value.as_i64().unwrap()).collect()
}
