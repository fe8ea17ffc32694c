//! Rotates a model's queries and keys on this machine and shows how exact that is: `cargo xtask demo [CONFIG.json]`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use half::bf16;
use indicatif::{ProgressBar, ProgressStyle};
use posenc::accuracy::{Worst, compare};
use posenc::{Direction, Error, Gpu, Heads, ModelRope, Positions, RopePlan};
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

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tokens: usize = arguments.next().map_or(Ok(128), |n| n.parse()).context("TOKENS is a number")?;
    ensure!(tokens >= 2, "{tokens} tokens show nothing, at least 2 are needed");
    let (name, json) = match arguments.next() {
        Some(path) => (path.clone(), std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?),
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
    let dim = layer.head;
    let (q, k) = (Heads::thd(tokens, q_heads, dim), Heads::thd(tokens, k_heads, dim));
    let row: Vec<i64> = (0..tokens as i64).map(|t| t * LAST_POSITION / (tokens as i64 - 1)).collect();
    // A text stands at the same place on every axis.
    let positions = row.repeat(rope.axes.count());

    let bar = ProgressBar::new(4);
    bar.set_style(ProgressStyle::with_template("{bar:24} {msg} ({elapsed})")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    let step = |text: &'static str| {
        bar.set_message(text);
        bar.inc(1);
    };

    step("opening the device");
    let gpu = match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            bar.suspend(|| eprintln!("{error}"));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let x = |heads: &Heads| -> Result<Vec<bf16>> { Ok((0..heads.elements()?).map(value).collect()) };
    let (q_x, k_x) = (x(&q)?, x(&k)?);

    step("rotating q and k");
    let (mut q_y, mut k_y) = (q_x.clone(), k_x.clone());
    let mut unit = vec![0.0f32; tokens * dim];
    for t in 0..tokens {
        for pair in 0..rope.pairs() {
            unit[t * dim + rope.offset + rope.pairing.channels(pair, rope.rotary).0] = 1.0;
        }
    }
    let one = Heads::thd(tokens, 1, dim);
    let (device, kernel) = match &gpu {
        Some(gpu) => {
            let stream = gpu.stream();
            let (mut q_d, mut k_d, mut unit_d) =
                (stream.clone_htod(&q_y)?, stream.clone_htod(&k_y)?, stream.clone_htod(&unit)?);
            let ids = stream.clone_htod(&positions)?;
            RopePlan::<f32>::new(gpu, rope)?.rotate(one.of_mut(&mut unit_d), None, Positions::ids(&ids))?;
            let plan = RopePlan::<bf16>::new(gpu, rope)?;
            plan.rotate(q.of_mut(&mut q_d), k.of_mut(&mut k_d), Positions::ids(&ids))?;
            let report = emulator::attach().and_then(|emulator| emulator.last_launch());
            (q_y, k_y, unit) = (stream.clone_dtoh(&q_d)?, stream.clone_dtoh(&k_d)?, stream.clone_dtoh(&unit_d)?);
            let (major, minor) = gpu.capability();
            let device = format!("{}, compute capability {major}.{minor}", stream.context().name()?);
            let kernel = match report {
                Some(report) => format!(
                    "1 launch of {}; the emulator counts {} bytes read (rates and positions at every use) and {} written",
                    report.kernel, report.counters.bytes_read, report.counters.bytes_written
                ),
                None => "1 launch".into(),
            };
            (device, kernel)
        }
        None => {
            rope.rotate(&mut q_y, &q, &positions, Direction::Forward)?;
            rope.rotate(&mut k_y, &k, &positions, Direction::Forward)?;
            rope.rotate(&mut unit, &one, &positions, Direction::Forward)?;
            ("none: the CPU alone".into(), "none: the reference".into())
        }
    };

    step("comparing with the reference");
    let worst_of = |x: &[bf16], y: &[bf16], heads: &Heads| -> Result<Worst> {
        let expected = rope.expect(x, heads, &positions, Direction::Forward)?;
        Ok(compare(y, &expected.want, |i| expected.bound[i]))
    };
    let (q_worst, k_worst) = (worst_of(&q_x, &q_y, &q)?, worst_of(&k_x, &k_y, &k)?);

    step("comparing angles");
    let (mut ours, mut usual) = (0f64, 0f64);
    for (t, &position) in row.iter().enumerate() {
        for pair in 0..rope.pairs() {
            let (a, b) = rope.pairing.channels(pair, rope.rotary);
            let (sin, cos) = rope.angle(position, pair).sin_cos();
            let got = |channel: usize| f64::from(unit[t * dim + rope.offset + channel]) / rope.attention_factor;
            ours = ours.max((got(a) - cos).abs()).max((got(b) - sin).abs());
            // What engines do: a frequency in f32, times a position in f32, rounded once.
            let angle = f64::from(position as f32 * rope.frequency(pair) as f32);
            usual = usual.max((angle.cos() - cos).abs()).max((angle.sin() - sin).abs());
        }
    }
    bar.finish_and_clear();

    let rotated = (q_heads + k_heads) * tokens * rope.rotary * 2;
    println!("model       {name}");
    if model.kinds().len() > 1 {
        println!("layers      {}, of {} kinds", layer.label, model.kinds().len());
    }
    println!("rope        {} of {dim} channels, {:?}, base {}", rope.rotary, rope.pairing, rope.base);
    println!("device      {device}");
    println!(
        "q, k        bf16 [{tokens}, {q_heads}, {dim}] and [{tokens}, {k_heads}, {dim}], positions 0 to {LAST_POSITION}"
    );
    println!("kernel      {kernel}");
    println!("must move   {rotated} bytes read and {rotated} written: each rotated element once");
    println!("                     worst error   share of the bound");
    println!("q            {:>18.2e} {:>20.2}", q_worst.error, q_worst.share);
    println!("k            {:>18.2e} {:>20.2}", k_worst.error, k_worst.share);
    println!("cos and sin  {ours:>18.2e}   (bound 1e-7)");
    println!("  the usual  {usual:>18.2e}   (f32 angle, same positions)");
    ensure!(q_worst.share <= 1.0 && k_worst.share <= 1.0, "outside the bound");
    ensure!(ours <= 1.0e-7 + f64::EPSILON, "cos and sin are off by {ours:e}");
    Ok(())
}

/// Values of both signs and magnitudes 0.5 to 2, so that both terms of every sum are seen.
fn value(i: usize) -> bf16 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let magnitude = 0.5 + 1.5 * mixed as f32 / (1 << 24) as f32;
    bf16::from_f32(if mixed & 1 == 0 { magnitude } else { -magnitude })
}
