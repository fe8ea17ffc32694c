//! The committed output of tools/golden/window.py: biases of windows as public implementations compute them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::LazyLock;

use serde_json::Value;

static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../golden/window.json")).expect("the golden file is JSON"));

/// One case, by its name.
pub fn case(name: &str) -> &'static Value {
    let cases = GOLDEN["cases"].as_array().expect("a list of cases");
    cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// An array of a case, row after row.
pub fn floats(case: &Value, key: &str) -> Vec<f64> {
    let array = case[key].as_array().unwrap_or_else(|| panic!("no {key}"));
    array.iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// The same, rounded to f32.
pub fn singles(case: &Value, key: &str) -> Vec<f32> {
    floats(case, key).into_iter().map(|x| x as f32).collect()
}

pub fn size(case: &Value, key: &str) -> usize {
    usize::try_from(case[key].as_u64().unwrap_or_else(|| panic!("no {key}"))).expect("a size")
}

/// Rows and columns.
pub fn pair(case: &Value, key: &str) -> [usize; 2] {
    let sizes = floats(case, key);
    [sizes[0] as usize, sizes[1] as usize]
}

#[track_caller]
pub fn assert_near(got: &[f64], want: &[f64], error: f64) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= error * (1.0 + want.abs()), "element {index}: {got} and {want}");
    }
}
