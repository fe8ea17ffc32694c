//! Errors of cosines by position: posenc's on this device, those of angles in f32, and those of a table in bf16.

use std::fmt::Write as _;

use anyhow::Result;
use posenc::half::bf16;
use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};

/// Positions of a row, which end at the row's own.
const WINDOW: i64 = 64;
/// Two rows an octave, up to 2^31.
const ROWS: u32 = 62;

/// Names of the sources of cosines, as the file's columns.
pub const COLUMNS: [&str; 3] = ["posenc", "f32 angles", "bf16 table"];

/// Largest error of the cosine over all pairs and a few positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// the last of these positions
    pub position: i64,
    /// by source, in the order of [`COLUMNS`]
    pub errors: [f64; 3],
}

/// Cosines of every pair at every position, `[positions, pairs]`, as posenc computes them on `gpu` or on the CPU: a head whose pairs
/// are all (1, 0) is rotated.
pub fn cosines(rope: &Rope, gpu: Option<&Gpu>, positions: &[i64]) -> Result<Vec<f64>> {
    let dim = rope.offset + rope.rotary;
    let heads = Heads::thd(positions.len(), 1, dim);
    let channel = |pair| rope.offset + rope.pairing.channels(pair, rope.rotary).0;
    let mut x = vec![0f32; heads.elements()?];
    for row in x.chunks_exact_mut(dim) {
        (0..rope.pairs()).for_each(|pair| row[channel(pair)] = 1.0);
    }
    // A text stands at the same place on every axis.
    let positions = positions.repeat(rope.axes.count());
    match gpu {
        Some(gpu) => {
            let stream = gpu.stream();
            let (mut device, ids) = (stream.clone_htod(&x)?, stream.clone_htod(&positions)?);
            RopePlan::<f32>::new(gpu, rope)?.rotate(heads.of_mut(&mut device), None, Positions::ids(&ids))?;
            x = stream.clone_dtoh(&device)?;
        }
        None => rope.rotate(&mut x, &heads, &positions[..], Direction::Forward)?,
    }
    let cosine = |row: &[f32], pair| f64::from(row[channel(pair)]) / rope.attention_factor;
    Ok(x.chunks_exact(dim).flat_map(|row| (0..rope.pairs()).map(move |pair| cosine(row, pair))).collect())
}

/// One row for each of the positions.
pub fn rows(rope: &Rope, gpu: Option<&Gpu>, last: &[i64]) -> Result<Vec<Row>> {
    let window = |last: i64| (last - WINDOW + 1).max(0)..=last;
    let positions: Vec<i64> = last.iter().copied().flat_map(window).collect();
    let cosines = cosines(rope, gpu, &positions)?;
    let mut of_positions = positions.iter().zip(cosines.chunks_exact(rope.pairs()));
    let rows = last.iter().map(|&last| {
        let mut row = Row { position: last, errors: [0.0; 3] };
        for (&position, cosines) in of_positions.by_ref().take(window(last).count()) {
            for (pair, &cosine) in cosines.iter().enumerate() {
                let truth = rope.angle(position, pair).cos();
                // What engines do: a frequency in f32, times a position in f32, rounded once.
                let usual = f64::from(position as f32 * rope.frequency(pair) as f32).cos();
                let sources = [cosine, usual, bf16::from_f64(truth).to_f64()];
                for (worst, source) in row.errors.iter_mut().zip(sources) {
                    *worst = worst.max((source - truth).abs());
                }
            }
        }
        row
    });
    Ok(rows.collect())
}

/// The rows of a picture, as CSV.
pub fn csv(rope: &Rope, gpu: Option<&Gpu>) -> Result<String> {
    let last: Vec<i64> = (0..=ROWS).map(|half| (2f64.powf(f64::from(half) / 2.0) as i64).min((1 << 31) - 1)).collect();
    let mut text = format!("position,{}\n", COLUMNS.join(","));
    for Row { position, errors: [ours, usual, table] } in rows(rope, gpu, &last)? {
        writeln!(text, "{position},{ours:.2e},{usual:.2e},{table:.2e}")?;
    }
    Ok(text)
}
