//! Pictures of sinusoids and RoPE, from numbers or a model's config.

use std::f64::consts::TAU;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use posenc::half::bf16;
use posenc::rotate::{Angles, Yarn};
use posenc::{Direction, Heads, ModelRope, Rope, Scaling, Sinusoid};

use super::picture::{Axis, Content, Heat, Picture, Series};
use crate::inspect::{first_negative, original_context};

/// Rotations to look at.
#[derive(Args)]
pub struct Rotations {
    /// a model's config.json, params.json, GGUF file or folder, or ROTARY,BASE such as 128,10000
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// the layer of a model whose layers differ; default: the first that rotates
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// the first MODEL with this scaling as well: none, linear=F, ntk=F, dynamic=F, yarn=F or llama3=F; may be repeated
    #[arg(long, value_name = "NAME=F")]
    scaling: Vec<String>,
    /// positions of the training; default: the config's original context
    #[arg(long, value_name = "TOKENS")]
    trained: Option<u64>,
    /// positions of the call
    #[arg(long, value_name = "TOKENS")]
    seq_len: Option<u64>,
}

/// A rotation with its name, and the positions of its training.
#[derive(Clone)]
struct Named {
    name: String,
    rope: Rope,
    trained: Option<u64>,
}

impl Rotations {
    fn all(&self) -> Result<Vec<Named>> {
        let mut all = self.models.iter().map(|model| self.model(model)).collect::<Result<Vec<_>>>()?;
        for scaling in &self.scaling {
            let scaled = self.scaled(&all[0], scaling).with_context(|| format!("--scaling {scaling}"))?;
            all.push(scaled);
        }
        Ok(all)
    }

    /// The only one.
    fn one(&self) -> Result<Named> {
        let mut all = self.all()?;
        ensure!(all.len() == 1, "this picture shows one rotation, {} are given", all.len());
        Ok(all.remove(0))
    }

    fn model(&self, model: &str) -> Result<Named> {
        let numbers = model.split_once(',').and_then(|(rotary, base)| Some((rotary.parse().ok()?, base.parse().ok()?)));
        let (name, rope, context) = match numbers {
            Some((rotary, base)) => (format!("base {base}"), Rope::new(rotary, base), None),
            None => {
                let read = ModelRope::open(model)?;
                let read = self.seq_len.map_or(read.clone(), |length| read.at_length(length));
                let layer = match self.layer {
                    Some(layer) => read.layer(layer).with_context(|| model.to_string())?,
                    None => {
                        let rotating = read.kinds().iter().find(|kind| kind.rope.is_some());
                        rotating.with_context(|| format!("{model}: {} has no RoPE", read.name()))?
                    }
                };
                let rope = layer.rope.clone().with_context(|| format!("{model}: {} has no RoPE", layer.label))?;
                let mut name = read.name().to_string();
                if read.kinds().len() > 1 {
                    name = format!("{name} ({})", layer.label);
                }
                let trained = original_context(&rope.scaling).map(|it| it as u64).or(read.context());
                (name, rope, trained)
            }
        };
        let rope = self.seq_len.map_or(rope.clone(), |length| rope.at_length(length));
        ensure!(!rope.scaling.needs_length(), "{model}: its scaling depends on the length of the call: say --seq-len");
        rope.check().with_context(|| model.to_string())?;
        Ok(Named { name, rope, trained: self.trained.or(context) })
    }

    /// The same rotation with another scaling.
    fn scaled(&self, of: &Named, text: &str) -> Result<Named> {
        let (name, number) = text.split_once('=').unwrap_or((text, "1"));
        let factor: f64 = number.parse().with_context(|| format!("{number:?} is no number"))?;
        let trained = || of.trained.context("say --trained, the positions of the training");
        let scaling = match name {
            "none" => Scaling::None,
            "linear" => Scaling::Linear { factor },
            "ntk" => Scaling::NtkStatic { alpha: factor },
            "dynamic" => {
                let length = self.seq_len.context("say --seq-len, the positions of the call")?;
                Scaling::DynamicNtk { factor, context: trained()? as f64, length: Some(length) }
            }
            "yarn" => Scaling::Yarn(Yarn::new(factor, trained()? as f64)),
            "llama3" => Scaling::Llama3 { factor, low: 1.0, high: 4.0, original_context: trained()? as f64 },
            _ => bail!("not one of none, linear=F, ntk=F, dynamic=F, yarn=F, llama3=F"),
        };
        let attention_factor = match &scaling {
            Scaling::Yarn(yarn) => yarn.attention_factor(),
            _ => 1.0,
        };
        let rope = Rope { scaling, attention_factor, ..of.rope.clone() };
        rope.check()?;
        Ok(Named { name: text.to_string(), rope, trained: of.trained })
    }

    /// Positions up to which a picture goes: of the call, or four times the training, or this.
    fn reach(&self, all: &[Named], otherwise: u64) -> u64 {
        let trained = all.iter().filter_map(|named| named.trained).max();
        self.seq_len.or(trained.map(|trained| trained.saturating_mul(4))).unwrap_or(otherwise)
    }
}

/// Cells of a heat map on a side, at most.
const MOST_CELLS: usize = 1024;

fn check_cells(what: &str, count: usize) -> Result<()> {
    ensure!((1..=MOST_CELLS).contains(&count), "{count} {what}, a heat map shows 1 to {MOST_CELLS}");
    Ok(())
}

/// A sinusoidal table
#[derive(Args)]
pub struct SinusoidOptions {
    /// channels of a token
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// positions from 0
    #[arg(long, default_value_t = 128)]
    positions: usize,
}

pub fn sinusoid(options: &SinusoidOptions) -> Result<(Picture, Vec<String>)> {
    let &SinusoidOptions { dim, positions } = options;
    check_cells("channels", dim)?;
    check_cells("positions", positions)?;
    let spec = Sinusoid::new(dim);
    spec.check()?;
    let cells = (0..dim).flat_map(|channel| (0..positions).map(move |position| (position as i64, channel)));
    let values = cells.map(|(position, channel)| spec.value(position, channel)).collect();
    let heat = Heat { columns: counted(positions), rows: counted(dim), values, unit: "value".into() };
    let title = format!("sinusoidal embedding of {dim} channels");
    Ok((
        Picture::one(title, Axis::linear("position (tokens)"), Axis::linear("channel"), Content::Heat(heat)),
        Vec::new(),
    ))
}

fn counted(count: usize) -> Vec<f64> {
    (0..count).map(|index| index as f64).collect()
}

/// Cosines of the angles of every pair
#[derive(Args)]
pub struct RopeOptions {
    #[command(flatten)]
    rotations: Rotations,
    /// positions from 0
    #[arg(long, default_value_t = 256)]
    positions: usize,
}

pub fn rope(options: &RopeOptions) -> Result<(Picture, Vec<String>)> {
    let Named { name, rope, .. } = options.rotations.one()?;
    check_cells("positions", options.positions)?;
    check_cells("pairs", rope.pairs())?;
    let cells = (0..rope.pairs()).flat_map(|pair| (0..options.positions).map(move |position| (position as i64, pair)));
    let values = cells.map(|(position, pair)| rope.angle(position, pair).cos()).collect();
    let heat = Heat { columns: counted(options.positions), rows: counted(rope.pairs()), values, unit: "cosine".into() };
    let title = format!("RoPE of {name}: cosine of each pair's angle");
    Ok((Picture::one(title, Axis::linear("position (tokens)"), Axis::linear("pair"), Content::Heat(heat)), Vec::new()))
}

/// Wavelength of every pair, beside the trained length
pub fn wavelengths(rotations: &Rotations) -> Result<(Picture, Vec<String>)> {
    let all = rotations.all()?;
    let mut text = Vec::new();
    let mut series: Vec<Series> = Vec::new();
    for Named { name, rope, trained } in &all {
        let waves: Vec<f64> = (0..rope.pairs()).map(|pair| TAU / rope.frequency(pair).abs()).collect();
        if let Some(trained) = trained {
            let longer = waves.iter().filter(|wave| **wave > *trained as f64).count();
            text.push(format!("{name}: {longer} of {} pairs turn less than once in {trained} positions", waves.len()));
        }
        series.push(Series::new(name, waves.into_iter().enumerate().map(|(pair, wave)| (pair as f64, wave))));
    }
    let last = all.iter().map(|named| named.rope.pairs()).max().unwrap_or(1) as f64 - 1.0;
    if let Some(trained) = all[0].trained {
        series.push(Series::level(format!("trained: {trained}"), 0.0, last, trained as f64));
    }
    if let Some(length) = rotations.seq_len {
        series.push(Series::level(format!("call: {length}"), 0.0, last, length as f64));
    }
    let content = Content::Lines { series, marks: Vec::new(), stepped: false };
    Ok((Picture::one("wavelength of each pair", Axis::linear("pair"), Axis::log("wavelength (tokens)"), content), text))
}

/// The mean of the pairs' cosines against distance
pub fn decay(rotations: &Rotations) -> Result<(Picture, Vec<String>)> {
    let all = rotations.all()?;
    let reach = rotations.reach(&all, 1 << 15);
    let steps = steps(reach, 8)?;
    let mut text = Vec::new();
    let series = all.iter().map(|Named { name, rope, .. }| {
        let factor = rope.attention_factor.powi(2);
        // A point is the mean of the distances up to the next one: single ones would be noise.
        let points = steps.windows(2).map(|ends| {
            let (first, count) = (ends[0] as f64, (ends[1] - ends[0]) as f64);
            (first, factor * mean_cosine(rope, first, count))
        });
        let scanned = reach.min(MOST_SCANNED);
        let rates: Vec<f64> = (0..rope.pairs()).map(|pair| rope.frequency(pair)).collect();
        text.push(match first_negative(&rates, scanned) {
            Some(distance) => format!("{name}: the mean cosine is below 0 at distance {distance} first"),
            None => format!("{name}: the mean cosine is above 0 up to distance {scanned}"),
        });
        Series::new(name, points)
    });
    let series = series.collect();
    let marks = all[0].trained.map(|trained| (trained as f64, "trained".to_string())).into_iter().collect();
    let content = Content::Lines { series, marks, stepped: false };
    let y = Axis::linear("mean cosine times the squared attention factor");
    Ok((Picture::one("RoPE's score of equal vectors", Axis::log("distance (tokens)"), y, content), text))
}

/// The mean over pairs and over `count` distances from `first` of `cos(distance * frequency)`.
fn mean_cosine(rope: &Rope, first: f64, count: f64) -> f64 {
    let of = |pair: usize| {
        let half = rope.frequency(pair) / 2.0;
        // A sum of cosines at equal steps.
        let shrunk = if half.sin().abs() < 1e-12 { 1.0 } else { (count * half).sin() / (count * half.sin()) };
        ((2.0 * first + count - 1.0) * half).cos() * shrunk
    };
    (0..rope.pairs()).map(of).sum::<f64>() / rope.pairs() as f64
}

/// Distances whose mean cosine is computed one by one, at most.
const MOST_SCANNED: u64 = 1 << 22;

/// Whole numbers from 1 to `last` in equal ratios, so many an octave.
fn steps(last: u64, an_octave: u32) -> Result<Vec<u64>> {
    ensure!((2..=1 << 31).contains(&last), "{last} positions, a picture shows 2 to 2^31");
    let count = (last as f64).log2() * f64::from(an_octave);
    let at = |step: u32| (f64::from(step) / f64::from(an_octave)).exp2().round() as u64;
    let mut steps: Vec<u64> = (0..=count as u32).map(at).chain([last]).filter(|step| *step <= last).collect();
    steps.dedup();
    Ok(steps)
}

/// Turns of every pair in training, and in the call
pub fn coverage(rotations: &Rotations) -> Result<(Picture, Vec<String>)> {
    let all = rotations.all()?;
    let trained = all[0].trained.context("say --trained, the positions of the training")?;
    let reach = rotations.reach(&all, 0);
    let turns = |rope: &Rope, length: u64, pair: usize| rope.frequency(pair).abs() * length as f64 / TAU;
    let first = &all[0].rope;
    let plain = Rope { scaling: Scaling::None, ..first.clone() };
    let points = |rope: &Rope, length: u64| {
        (0..rope.pairs()).map(|pair| (pair as f64, turns(rope, length, pair))).collect::<Vec<_>>()
    };
    let mut series = vec![Series::new(format!("in training: {trained} positions"), points(&plain, trained))];
    let mut text = Vec::new();
    for Named { name, rope, .. } in &all {
        // A pair that has been through a whole turn has seen every angle.
        let unseen = |pair: &usize| {
            let (before, now) = (turns(&plain, trained, *pair), turns(rope, reach, *pair));
            before < 1.0 && now > before * (1.0 + 1e-9)
        };
        let unseen = (0..rope.pairs()).filter(unseen).count();
        text.push(format!(
            "{name}: at {reach} positions {unseen} of {} pairs reach angles that {trained} positions of training did not have",
            rope.pairs()
        ));
        series.push(Series::new(format!("{name}, {reach} positions"), points(rope, reach)));
    }
    series.push(Series::level("one turn", 0.0, first.pairs() as f64 - 1.0, 1.0));
    let content = Content::Lines { series, marks: Vec::new(), stepped: false };
    let title = "turns of each pair: below one turn, more than in training is unseen";
    Ok((Picture::one(title, Axis::linear("pair"), Axis::log("turns"), content), text))
}

/// Positions in a row at whose end an error is taken: the largest of them.
const WINDOW: i64 = 64;

/// The error of cosines against position
pub fn accuracy(rotations: &Rotations) -> Result<(Picture, Vec<String>)> {
    let Named { name, rope, .. } = rotations.one()?;
    let exact = Rope { angles: Angles::Exact, attention_factor: 1.0, ..rope };
    let usual = Rope { angles: Angles::HfCompat, ..exact.clone() };
    let last = rotations.seq_len.unwrap_or(1 << 31);
    let mut series = ["posenc", "angles in f32", "a table in bf16"].map(|name| Series::new(name, []));
    // Position 0 has no error that could be drawn.
    for position in steps(last, 2)?.into_iter().skip(1) {
        let position = position as i64 - 1;
        let positions: Vec<i64> = ((position - WINDOW + 1).max(0)..=position).collect();
        let mut worst = [0f64; 3];
        for (&position, row) in positions.iter().zip(cosines(&exact, &positions)?.chunks_exact(exact.pairs())) {
            for (pair, &ours) in row.iter().enumerate() {
                let truth = exact.angle(position, pair).cos();
                let sources = [f64::from(ours), usual.angle(position, pair).cos(), bf16::from_f64(truth).to_f64()];
                for (worst, source) in worst.iter_mut().zip(sources) {
                    *worst = worst.max((source - truth).abs());
                }
            }
        }
        series.iter_mut().zip(worst).for_each(|(series, worst)| series.points.push((position as f64 + 1.0, worst)));
    }
    let text = series.iter().map(|series| {
        let (position, error) = series.points[series.points.len() - 1];
        format!("{}: off by up to {error:.1e} near position {position}", series.name)
    });
    let text = text.collect();
    let content = Content::Lines { series: series.into(), marks: Vec::new(), stepped: false };
    let title = format!("RoPE of {name}: largest error of a cosine");
    Ok((Picture::one(title, Axis::log("position (tokens)"), Axis::log("error of the cosine"), content), text))
}

/// Cosines of every pair as the crate computes them: a head whose pairs are all (1, 0) is rotated.
fn cosines(rope: &Rope, positions: &[i64]) -> Result<Vec<f32>> {
    let rope = Rope { offset: 0, pairing: posenc::Pairing::Interleaved, pairing_out: None, ..rope.clone() };
    let heads = Heads::thd(positions.len(), 1, rope.rotary);
    let mut x = [1f32, 0.0].repeat(positions.len() * rope.pairs());
    // A text stands at the same place on every axis.
    let positions = positions.repeat(rope.position_axes());
    rope.rotate(&mut x, &heads, &positions[..], Direction::Forward)?;
    Ok(x.into_iter().step_by(2).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_over_distances_is_the_sum_over_them() {
        let rope = Rope { scaling: Scaling::Proportional { rotated: 3, factor: 1.0 }, ..Rope::new(16, 1e4) };
        let angle = |distance: i64| (0..rope.pairs()).map(move |pair| (distance, pair));
        let sum: f64 = (7..12).flat_map(angle).map(|(distance, pair)| rope.angle(distance, pair).cos()).sum();
        assert!((mean_cosine(&rope, 7.0, 5.0) - sum / 5.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn steps_reach_both_ends_once() {
        assert_eq!(steps(4, 1).expect("steps"), [1, 2, 4]);
        assert_eq!(steps(5, 1).expect("steps"), [1, 2, 4, 5]);
        let fine = steps(100, 48).expect("steps");
        assert!(fine.windows(2).all(|pair| pair[0] < pair[1]) && fine[0] == 1 && fine[fine.len() - 1] == 100);
    }
}
