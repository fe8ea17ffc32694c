//! `posenc inspect A B`: what differs between two models, layer by layer.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::{Kind, Report};
use crate::Outcome;

/// A field whose values differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Difference {
    field: String,
    a: String,
    b: String,
}

/// Layers that differ in the same way.
#[derive(Serialize)]
struct Group {
    layers: Vec<usize>,
    differences: Vec<Difference>,
}

pub fn print(a: &Report, b: &Report, json: bool, out: &mut dyn Write) -> Result<Outcome> {
    let mut model = Vec::new();
    for (field, left, right) in [
        ("model type", Some(a.model.clone()), Some(b.model.clone())),
        ("layers", a.layers.map(|it| it.to_string()), b.layers.map(|it| it.to_string())),
        ("positions", a.context.map(|it| it.to_string()), b.context.map(|it| it.to_string())),
        ("length", Some(a.length.to_string()), Some(b.length.to_string())),
        ("embedding", a.embedding.clone(), b.embedding.clone()),
    ] {
        push(&mut model, field, left, right);
    }
    let mut groups: Vec<Group> = Vec::new();
    // Of models whose configs do not count layers, one layer stands for all.
    let count = a.kinds.iter().chain(&b.kinds).flat_map(|kind| &kind.layers).max().map_or(1, |last| last + 1);
    for layer in 0..count {
        let (Some(left), Some(right)) = (kind_of(a, layer), kind_of(b, layer)) else { continue };
        let differences = differences(left, right);
        match groups.iter_mut().find(|group| group.differences == differences) {
            Some(group) => group.layers.push(layer),
            None => groups.push(Group { layers: vec![layer], differences }),
        }
    }
    groups.retain(|group| !group.differences.is_empty());
    let is_same = model.is_empty() && groups.is_empty();
    if json {
        serde_json::to_writer_pretty(
            &mut *out,
            &serde_json::json!({ "a": a.file, "b": b.file, "model": model, "layers": groups }),
        )?;
        writeln!(out)?;
    } else {
        writeln!(out, "a {}\nb {}", a.file, b.file)?;
        table(&model, out)?;
        for group in &groups {
            writeln!(out, "\n{}", ranges(&group.layers))?;
            table(&group.differences, out)?;
        }
        if is_same {
            writeln!(out, "positions are taken in alike")?;
        }
    }
    Ok(if is_same { Outcome::Same } else { Outcome::Differs })
}

fn kind_of(report: &Report, layer: usize) -> Option<&Kind> {
    match &report.kinds[..] {
        [only] if only.layers.is_empty() => Some(only),
        kinds => kinds.iter().find(|kind| kind.layers.contains(&layer)),
    }
}

fn push(list: &mut Vec<Difference>, field: &str, a: Option<String>, b: Option<String>) {
    let shown = |it: Option<String>| it.unwrap_or_else(|| "none".into());
    let (a, b) = (shown(a), shown(b));
    if a != b {
        list.push(Difference { field: field.into(), a, b });
    }
}

fn differences(a: &Kind, b: &Kind) -> Vec<Difference> {
    let mut list = Vec::new();
    // The spec's own fields, as serde names them, so that none is forgotten.
    let fields = |kind: &Kind| match serde_json::to_value(&kind.rope) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (left, right) = (fields(a), fields(b));
    match (&a.rope, &b.rope) {
        (Some(_), Some(_)) => {
            for (field, value) in &left {
                push(&mut list, field, Some(plain(value)), right.get(field).map(plain));
            }
        }
        (one, other) => {
            let text = |rope: bool| Some(if rope { "rotated" } else { "no RoPE" }.to_string());
            push(&mut list, "rope", text(one.is_some()), text(other.is_some()));
        }
    }
    push(&mut list, "window", a.window.map(|it| it.to_string()), b.window.map(|it| it.to_string()));
    push(&mut list, "bias", a.bias.clone(), b.bias.clone());
    // Scales of the logit and of the query are in words alone.
    let rest = |kind: &Kind| {
        let said = kind.says.split(": ").nth(1).unwrap_or_default();
        let parts = said
            .split("; ")
            .filter(|it| it.starts_with("logits") || it.starts_with("queries") || it.starts_with("Dual"));
        Some(parts.collect::<Vec<_>>().join("; ")).filter(|it| !it.is_empty())
    };
    push(&mut list, "scales", rest(a), rest(b));
    let far = a.pairs.iter().zip(&b.pairs).filter(|(a, b)| a.frequency != b.frequency);
    let ratios = far.map(|(a, b)| (a.pair, a.frequency / b.frequency));
    if let Some((pair, ratio)) = ratios.max_by(|(_, a), (_, b)| a.ln().abs().total_cmp(&b.ln().abs())) {
        let differing = a.pairs.iter().zip(&b.pairs).filter(|(a, b)| a.frequency != b.frequency).count();
        list.push(Difference {
            field: "frequencies".into(),
            a: format!("{differing} of {} differ", a.pairs.len()),
            b: format!("pair {pair}: {ratio:.6} times as fast in a"),
        });
    }
    list
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            let fields: Vec<_> = map.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
            fields.join(", ")
        }
        other => other.to_string(),
    }
}

fn table(list: &[Difference], out: &mut dyn Write) -> Result<()> {
    for Difference { field, a, b } in list {
        writeln!(out, "  {field}\n    a {a}\n    b {b}")?;
    }
    Ok(())
}

/// `layers 0-3, 5`
pub fn ranges(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let runs: Vec<_> = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    format!("{} {}", if layers.len() == 1 { "layer" } else { "layers" }, runs.join(", "))
}
