//! Cases of tests/golden/{window,content,content_old}.json.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use serde_json::Value;

/// One case: sizes by name, arrays flat in row-major order.
pub struct Case(Value);

/// The cases of one file.
pub fn cases(text: &str) -> Vec<Case> {
    let mut file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array_mut().unwrap().drain(..).map(Case).collect()
}

pub fn window() -> Vec<Case> {
    cases(include_str!("../golden/window.json"))
}

/// One case of windows, by its name.
pub fn case(name: &str) -> Case {
    window().into_iter().find(|case| case.name() == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// Each number within `error` of the truth, relative to 1 and to itself.
#[track_caller]
pub fn assert_near(got: &[f64], want: &[f64], error: f64) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= error * (1.0 + want.abs()), "element {index}: {got} and {want}");
    }
}

/// Of both files of biases that read the content.
pub fn content() -> Vec<Case> {
    let [new, old] = [include_str!("../golden/content.json"), include_str!("../golden/content_old.json")].map(cases);
    new.into_iter().chain(old).collect()
}

impl Case {
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.0[name].is_null()
    }

    pub fn size(&self, name: &str) -> usize {
        self.0[name].as_u64().unwrap_or_else(|| panic!("{} has no size {name}", self.name())) as usize
    }

    /// A size of two axes.
    pub fn pair(&self, name: &str) -> [usize; 2] {
        [0, 1].map(|axis| self.0[name][axis].as_u64().unwrap() as usize)
    }

    pub fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap()
    }

    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let array = self.0[name].as_array().unwrap_or_else(|| panic!("{} has no array {name}", self.name()));
        array.iter().map(|x| x.as_f64().unwrap()).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.f64s(name).into_iter().map(|x| x as f32).collect()
    }

    pub fn ints(&self, name: &str) -> Vec<i64> {
        self.f64s(name).into_iter().map(|x| x as i64).collect()
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        self.ints(name).into_iter().map(|x| x as i32).collect()
    }

    /// `[a, b, c]` of an array to `[b, a, c]`, of each of `outer` ones.
    pub fn swapped(&self, name: &str, [outer, a, b, c]: [usize; 4]) -> Vec<f32> {
        let x = self.f32s(name);
        assert_eq!(x.len(), outer * a * b * c);
        let at = |i: usize| {
            let (o, j, k, l) = (i / (a * b * c), i / (a * c) % b, i / c % a, i % c);
            x[((o * a + k) * b + j) * c + l]
        };
        (0..x.len()).map(at).collect()
    }
}
