//! Rotates a model's queries and keys on this machine and shows how exact that is: `cargo xtask demo [CONFIG.json]`.

mod errors;

use std::fs;

use anyhow::{Context, Result, ensure};
use posenc::accuracy::compare;
use posenc::half::bf16;
use posenc::{Direction, Error, Gpu, Heads, ModelRope, Pairing, Positions, Rope, RopePlan};
use serde_json::Value;

/// What decides the rotation in the config.json of meta-llama/Meta-Llama-3.1-8B.
const LLAMA_3_1_8B: &str = r#"{
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    }
}"#;
const LAST_POSITION: i64 = 131_071;
/// Positions of the table of cosines.
const SHOWN: [i64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// `demo TOKENS [--errors FILE] [CONFIG]`
fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let errors_to = match arguments.iter().position(|argument| argument == "--errors") {
        Some(at) if at + 1 < arguments.len() => arguments.drain(at..at + 2).nth(1),
        _ => None,
    };
    let mut arguments = arguments.into_iter();
    let tokens: usize = arguments.next().map_or(Ok(128), |n| n.parse()).context("TOKENS is a number")?;
    ensure!(tokens >= 2, "{tokens} tokens show nothing, at least 2 are needed");
    let (name, json) = match arguments.next() {
        Some(path) => (path.clone(), fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?),
        None => ("Llama-3.1-8B (bundled)".into(), LLAMA_3_1_8B.into()),
    };
    // Of a model whose layers differ, the first kind that rotates; at the length that the last position makes.
    let model = ModelRope::from_hf(&json)?.at_length(LAST_POSITION as u64 + 1);
    let mut kinds = model.kinds().iter().filter_map(|kind| Some((kind, kind.rope.as_ref()?)));
    let (layer, rope) = kinds.next().with_context(|| format!("{} has no RoPE", model.name()))?;
    let config: Value = serde_json::from_str(&json)?;
    let config = config.get("text_config").unwrap_or(&config);
    let heads_of = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let q_heads = heads_of("num_attention_heads").unwrap_or(32);
    let k_heads = heads_of("num_key_value_heads").unwrap_or(q_heads);

    let gpu = match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            eprintln!("{error}\ngoing on with the CPU alone");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let device = match &gpu {
        Some(gpu) => {
            let (major, minor) = gpu.capability();
            format!("{}, compute capability {major}.{minor}", gpu.stream().context().name()?)
        }
        None => "none: the CPU's reference".into(),
    };
    let pairing = match rope.pairing {
        Pairing::Half => "in halves",
        Pairing::Interleaved => "interleaved",
    };
    println!("model       {name}");
    if model.kinds().len() > 1 {
        println!("layers      {}, of {} kinds", layer.label, model.kinds().len());
    }
    println!("rope        {} of {} channels {pairing}, base {}", rope.rotary, layer.head, rope.base);
    println!("device      {device}\n");
    show_cosines(rope, gpu.as_ref())?;
    show_rotation(rope, gpu.as_ref(), tokens, [q_heads, k_heads], layer.head)?;
    if let Some(path) = errors_to {
        fs::write(&path, errors::csv(rope, gpu.as_ref())?).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// The table of cosines: what the angles are worth.
fn show_cosines(rope: &Rope, gpu: Option<&Gpu>) -> Result<()> {
    let rows = errors::rows(rope, gpu, &SHOWN)?;
    let line = |name: &str, cells: Vec<String>| {
        println!("{name:26}{}", cells.iter().map(|cell| format!("{cell:>12}")).collect::<String>());
    };
    println!("largest error of cos");
    line("  at position", SHOWN.iter().map(i64::to_string).collect());
    let names = ["  posenc on this device", "  angles in f32, as usual", "  a table in bf16"];
    for (source, name) in names.into_iter().enumerate() {
        line(name, rows.iter().map(|row| format!("{:.1e}", row.errors[source])).collect());
    }
    let ours = rows.iter().map(|row| row.errors[0]).fold(0.0, f64::max);
    // An attention factor is rounded to f32, and so is its product.
    let bound = 1e-7 + if rope.attention_factor == 1.0 { 0.0 } else { 2f64.powi(-23) };
    ensure!(ours <= bound, "cosines are off by {ours:e}, the bound is {bound:e}");
    println!();
    Ok(())
}

/// The model's queries and keys in bf16, compared element by element with the reference in f64.
fn show_rotation(rope: &Rope, gpu: Option<&Gpu>, tokens: usize, heads: [usize; 2], dim: usize) -> Result<()> {
    let [q, k] = heads.map(|heads| Heads::thd(tokens, heads, dim));
    let row: Vec<i64> = (0..tokens as i64).map(|t| t * LAST_POSITION / (tokens as i64 - 1)).collect();
    let positions = row.repeat(rope.axes.count());
    let x = |heads: &Heads| -> Result<Vec<bf16>> { Ok((0..heads.elements()?).map(value).collect()) };
    let (q_x, k_x) = (x(&q)?, x(&k)?);
    let (mut q_y, mut k_y) = (q_x.clone(), k_x.clone());
    match gpu {
        Some(gpu) => {
            let stream = gpu.stream();
            let (mut q_d, mut k_d) = (stream.clone_htod(&q_y)?, stream.clone_htod(&k_y)?);
            let ids = stream.clone_htod(&positions)?;
            let plan = RopePlan::<bf16>::new(gpu, rope)?;
            plan.rotate(q.of_mut(&mut q_d), k.of_mut(&mut k_d), Positions::ids(&ids))?;
            (q_y, k_y) = (stream.clone_dtoh(&q_d)?, stream.clone_dtoh(&k_d)?);
        }
        None => {
            rope.rotate(&mut q_y, &q, &positions, Direction::Forward)?;
            rope.rotate(&mut k_y, &k, &positions, Direction::Forward)?;
        }
    }
    println!(
        "q and k     bf16 [{tokens}, {}, {dim}] and [{tokens}, {}, {dim}], positions 0 to {LAST_POSITION}",
        heads[0], heads[1]
    );
    println!("rotated by  {}", gpu.map_or("the reference on the CPU", |_| "one launch of one kernel"));
    for (name, x, y, heads) in [("q", &q_x, &q_y, &q), ("k", &k_x, &k_y, &k)] {
        let expected = rope.expect(x, heads, &positions, Direction::Forward)?;
        let nearest = y.iter().zip(&expected.want).filter(|&(got, want)| *got == bf16::from_f64(*want)).count();
        let worst = compare(y, &expected.want, |i| expected.bound[i]);
        ensure!(worst.share <= 1.0, "{name} is off by {:e}, {:.2} times the bound", worst.error, worst.share);
        let others = y.len() - nearest;
        println!(
            "{name:12}{nearest} of {} elements are the bf16 nearest to the truth, {others} the one beside it",
            y.len()
        );
    }
    Ok(())
}

/// Values of both signs and magnitudes 0.5 to 2, so that both terms of every sum are seen.
fn value(i: usize) -> bf16 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let magnitude = 0.5 + 1.5 * mixed as f32 / (1 << 24) as f32;
    bf16::from_f32(if mixed & 1 == 0 { magnitude } else { -magnitude })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the README's picture are what this device computes.
    #[test]
    #[ignore = "needs a device: cargo xtask test"]
    fn the_committed_errors_are_what_the_demo_writes() {
        let gpu = Gpu::open(0).expect("a device");
        let rope = Rope::from_hf_config(LLAMA_3_1_8B).expect("a config");
        let errors = errors::csv(&rope, Some(&gpu)).expect("errors");
        assert_eq!(errors, include_str!("../../../docs/accuracy.csv"), "cargo xtask demo --plot docs/accuracy.svg");
    }
}
