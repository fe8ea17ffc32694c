//! Models' configs: real ones, mutated with the words of their readers.

use anyhow::{Context, Result};
use posenc::{Direction, Heads, ModelRope};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::Run;

/// Configs of transformers' classes with what they compute: the seeds.
const GOLDEN: &str = include_str!("../../../tests/golden/rope_models_hf.json");
/// Their quoted words are the keys and values that mean something.
const READERS: [&str; 4] = [
    include_str!("../../../src/model/hf/mod.rs"),
    include_str!("../../../src/model/hf/families.rs"),
    include_str!("../../../src/model/hf/layer.rs"),
    include_str!("../../../src/model/keys.rs"),
];

#[derive(Clone, Debug)]
enum Edit {
    Remove,
    Replace(Value),
    Insert(String, Value),
}

/// Words in quotes.
pub(crate) fn words(texts: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = texts
        .iter()
        .flat_map(|text| text.split('"').skip(1).step_by(2))
        .filter(|word| {
            !word.is_empty() && word.len() < 40 && word.chars().all(|c| c.is_alphanumeric() || "_.-".contains(c))
        })
        .map(str::to_string)
        .collect();
    words.sort();
    words.dedup();
    words
}

fn numbers() -> impl Strategy<Value = Value> {
    let exact =
        [0u64, 1, 2, 3, 4, 8, 16, 24, 64, 80, 128, 255, 65_535, 65_536, 1 << 31, 1 << 32, (1 << 32) - 2, u64::MAX];
    let signed = [-1i64, -2, i64::MIN];
    let real = [0.0, -0.0, 0.5, 0.25, 1.0, 1e-320, 1e-30, 1e4, 5e5, 1e308, -1e308, 32.0];
    let mut all: Vec<Value> = exact.into_iter().map(|n| json!(n)).collect();
    all.extend(signed.into_iter().map(|n| json!(n)));
    all.extend(real.into_iter().map(|n| json!(n)));
    select(all)
}

fn values(words: Vec<String>) -> impl Strategy<Value = Value> {
    let keys = select(words.clone());
    let leaf = prop_oneof![
        4 => numbers(),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => Just(Value::Null),
        2 => select(words).prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::Array),
            (inner.clone(), select(vec![8usize, 16, 32, 64])).prop_map(|(value, n)| Value::Array(vec![value; n])),
            btree_map(keys.clone(), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Walks by `path` to an object or value and changes it there.
fn edit(value: &mut Value, path: &mut impl Iterator<Item = usize>, change: &Edit) {
    let deeper = path.next().unwrap_or(0);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(deeper % map.len()).cloned().unwrap_or_default();
            if let Edit::Insert(key, value) = change {
                map.insert(key.clone(), value.clone());
            } else if deeper.is_multiple_of(3)
                && let Some(inner @ (Value::Object(_) | Value::Array(_))) = map.get_mut(&key)
            {
                edit(inner, path, change);
            } else {
                match change {
                    Edit::Remove => drop(map.remove(&key)),
                    Edit::Replace(value) | Edit::Insert(_, value) => drop(map.insert(key, value.clone())),
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = deeper % list.len();
            match change {
                Edit::Remove => drop(list.remove(at)),
                Edit::Replace(value) => list[at] = value.clone(),
                Edit::Insert(_, value) => list.insert(at, value.clone()),
            }
        }
        _ => {
            if let Edit::Replace(new) | Edit::Insert(_, new) = change {
                *value = new.clone();
            }
        }
    }
}

/// Everything that an engine asks of a model. No law may be NaN.
pub(crate) fn ask(model: &ModelRope) -> Result<(), String> {
    let _ = model.describe();
    for index in [0, 1, 63, usize::MAX] {
        let _ = model.layer(index);
    }
    for length in [0, 1, 4096, 131_072, 1 << 40, u64::MAX] {
        for layer in model.at_length(length).kinds() {
            let Some(rope) = layer.rope.as_ref().filter(|rope| rope.check().is_ok()) else { continue };
            let pairs = rope.pairs();
            for pair in [0, pairs / 2, pairs.saturating_sub(1)].into_iter().filter(|&pair| pair < pairs) {
                let (frequency, angle) = (rope.frequency(pair), rope.angle(i64::MAX, pair));
                if frequency.is_nan() || angle.is_nan() {
                    return Err(format!("pair {pair} has the frequency {frequency} and the angle {angle}: {rope:?}"));
                }
            }
            if length == 4096 && layer.head <= 512 {
                let mut x = vec![1.0f32; 2 * layer.head];
                let positions: Vec<i64> = (0..16).map(|i| if i % 2 == 0 { 3 } else { 1 << 31 }).collect();
                let _ = rope.rotate(&mut x, &Heads::thd(2, 1, layer.head), &positions, Direction::Forward);
            }
        }
    }
    Ok(())
}

pub(crate) fn fuzz(run: &Run) -> Result<()> {
    let golden: Value = serde_json::from_str(GOLDEN)?;
    let cases = golden["cases"].as_array().context("the golden file has cases")?;
    let seeds: Vec<Value> = cases.iter().map(|case| case["config"].clone()).collect();
    let words = words(&READERS);
    let change = prop_oneof![
        1 => Just(Edit::Remove),
        3 => values(words.clone()).prop_map(Edit::Replace),
        2 => (select(words), values(crate::models::words(&READERS))).prop_map(|(key, value)| Edit::Insert(key, value)),
    ];
    // Of the text: where it is cut, and a byte that is put in.
    let text = proptest::option::weighted(0.1, (any::<prop::sample::Index>(), proptest::option::of(any::<u8>())));
    let edits = vec((vec(0usize..64, 1..5), change), 1..6);
    let inputs = (select(seeds), edits, text).prop_map(|(mut config, edits, text)| {
        for (path, change) in &edits {
            edit(&mut config, &mut path.iter().copied(), change);
        }
        let mut bytes = config.to_string().into_bytes();
        if let Some((at, byte)) = text.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            match byte {
                Some(byte) => bytes[at] = byte,
                None => bytes.truncate(at),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    run.of(&inputs, |text| {
        let models = [ModelRope::from_hf(text), ModelRope::from_mistral(text), ModelRope::from_hf_as(text, "llama")];
        let mut accepted = false;
        for model in models.into_iter().flatten() {
            ask(&model)?;
            accepted = true;
        }
        Ok(accepted)
    })
}
