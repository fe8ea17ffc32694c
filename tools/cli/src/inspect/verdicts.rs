//! Verdicts: a number, the rule that judges it, and where the rule is from.

use std::f64::consts::{LN_2, TAU};

use anyhow::Result;
use posenc::bias::Distances;
use posenc::half::bf16;
use posenc::model::{LogitBias, PositionEmbedding};
use posenc::rotate::{Axes, Layer, QueryScale, Ramp};
use posenc::{Rope, Scaling};
use serde::Serialize;

use super::Pair;
use crate::progress::Progress;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Note,
    Warn,
}

impl Level {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "WARN",
        }
    }

    const fn warn_if(bad: bool) -> Self {
        if bad { Self::Warn } else { Self::Ok }
    }
}

/// A number with its rule.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub level: Level,
    /// a name for programs
    pub rule: &'static str,
    pub value: f64,
    pub text: String,
    pub source: &'static str,
}

/// Positions that the mean cosine is looked at, at most.
const FARTHEST: u64 = 1 << 22;
/// Positions before the last whose angles are compared.
const WINDOW: u64 = 2048;
/// Half a unit in the last place of bf16 at 1.
const BF16_ROUNDING: f64 = 1.0 / 512.0;

const ROFORMER: &str = "2 pi / frequency; RoFormer, arXiv 2104.09864";
const BASE_BOUND: &str = "Base of RoPE Bounds Context Length, arXiv 2405.14591";

/// Of a sequence of `end` tokens, whose queries see keys less than `length` away.
pub fn of_rope(rope: &Rope, pairs: &[Pair], trained: Option<f64>, [length, end]: [u64; 2]) -> Vec<Verdict> {
    let mut list = Vec::new();
    let mut push = |level, rule, value, text, source| list.push(Verdict { level, rule, value, text, source });
    let turning: Vec<&Pair> = pairs.iter().filter(|pair| pair.frequency != 0.0).collect();
    if turning.len() < pairs.len() {
        let still = pairs.len() - turning.len();
        push(Level::Note, "still", still as f64, format!("{still} of {} pairs never turn", pairs.len()), "frequency 0");
    }
    let Some(slowest) = turning.iter().copied().min_by(|a, b| a.turns.total_cmp(&b.turns)) else { return list };
    if let Some(trained) = trained {
        let within = slowest.turns_trained.unwrap_or(0.0);
        let partial = turning.iter().filter(|pair| pair.wavelength.is_some_and(|it| it > trained)).count();
        let text = format!(
            "{partial} of {} pairs turn less than once in {trained} positions, the slowest {within:.4} times",
            turning.len()
        );
        push(Level::Note, "turns", within, text, ROFORMER);
        if matches!(rope.scaling, Scaling::None) && rope.axes.one_ladder() && trained > TAU {
            let share = (trained / TAU).ln() / rope.base.ln();
            let critical = 2.0 * (rope.rotary as f64 / 2.0 * share).ceil();
            let text = if critical < rope.rotary as f64 {
                format!("channels from {critical} on see less than one turn in {trained} positions")
            } else {
                format!("every channel sees a turn in {trained} positions")
            };
            push(
                Level::Note,
                "critical-dimension",
                critical,
                text,
                "2 ceil(d / 2 log_base(L / 2 pi)), arXiv 2310.05209",
            );
        }
        coverage(rope, &turning, trained, length, &mut push);
    }
    if rope.axes == Axes::One {
        decay(rope, &turning, length, &mut push);
    }
    if matches!(rope.scaling, Scaling::None) && rope.axes.one_ladder() {
        let bound = 0.0424 * (length as f64).powf(1.628);
        let text = format!("base {} where the fit asks for {bound:.3e} at {length} positions", rope.base);
        push(Level::warn_if(rope.base < bound), "base", rope.base, text, "base >= 0.0424 L^1.628, arXiv 2405.14591");
        let limit = TAU * rope.base;
        let text = format!("base {} keeps the slowest phase from wrapping up to {limit:.0} positions", rope.base);
        push(Level::warn_if(length as f64 >= limit), "wrap", limit, text, "L < 2 pi base, arXiv 2602.10959");
    }
    angles(rope, end, &mut push);
    scaling(rope, pairs, end, &mut push);
    list
}

type Push<'a> = dyn FnMut(Level, &'static str, f64, String, &'static str) + 'a;

/// Pairs that reach angles which the training did not show them.
fn coverage(rope: &Rope, turning: &[&Pair], trained: f64, length: u64, push: &mut Push) {
    let before = Rope {
        scaling: if is_of_training(&rope.scaling) { rope.scaling.clone() } else { Scaling::None },
        ..rope.clone()
    };
    let mut worst = 0.0f64;
    let beyond = turning.iter().filter(|pair| {
        let seen = trained * before.frequency(pair.pair).abs();
        let reached = length as f64 * pair.frequency.abs();
        let is_new = seen < TAU && reached > seen * (1.0 + 1e-9);
        if is_new {
            worst = worst.max(reached / seen);
        }
        is_new
    });
    let beyond = beyond.count();
    let text = if beyond == 0 {
        format!("no pair reaches an angle at {length} that {trained} positions of training did not show")
    } else {
        format!(
            "{beyond} of {} pairs reach angles at {length} that {trained} positions of training did not show, up to {worst:.1} times as far",
            turning.len()
        )
    };
    push(
        Level::warn_if(beyond > 0),
        "coverage",
        beyond as f64,
        text,
        "L f' > L_trained f where L_trained f < 2 pi; LongRoPE2, arXiv 2502.20082",
    );
}

/// Whether a model is trained with it from the beginning.
const fn is_of_training(scaling: &Scaling) -> bool {
    matches!(scaling, Scaling::Proportional { .. } | Scaling::Divisors(_))
}

/// The first distance at which the mean cosine of the turning pairs is negative.
fn decay(rope: &Rope, turning: &[&Pair], length: u64, push: &mut Push) {
    let rates: Vec<f64> = turning.iter().map(|pair| rope.frequency(pair.pair)).collect();
    let end = length.min(FARTHEST);
    let first = first_negative(&rates, end);
    let (level, value, text) = match first {
        Some(at) => {
            (Level::Warn, at as f64, format!("the mean cosine turns negative at distance {at}, before {length}"))
        }
        None if end == length => (Level::Ok, end as f64, format!("the mean cosine stays above 0 up to {length}")),
        None => {
            (Level::Note, end as f64, format!("the mean cosine stays above 0 up to {end}; it was not looked at beyond"))
        }
    };
    push(level, "decay", value, text, BASE_BOUND);
}

/// The first distance from 1 to `end` at which the sum of cosines is negative.
pub fn first_negative(rates: &[f64], end: u64) -> Option<u64> {
    const BLOCK: u64 = 256;
    // Cosines of a block by turning on from its first distance, which is computed anew: f64 loses 1e-14 in a block.
    let steps: Vec<(f64, f64)> = rates.iter().map(|rate| rate.sin_cos()).collect();
    let mut progress = Progress::new(end, "mean cosine");
    let mut begin = 1;
    while begin <= end {
        let mut points: Vec<(f64, f64)> = rates.iter().map(|rate| (rate * begin as f64).sin_cos()).collect();
        let count = BLOCK.min(end - begin + 1);
        for distance in begin..begin + count {
            if points.iter().map(|(_, cos)| cos).sum::<f64>() < 0.0 {
                return Some(distance);
            }
            for ((sin, cos), (by_sin, by_cos)) in points.iter_mut().zip(&steps) {
                (*sin, *cos) = (*sin * by_cos + *cos * by_sin, *cos * by_cos - *sin * by_sin);
            }
        }
        begin += count;
        progress.step(count);
    }
    None
}

/// Errors of cosines from f32 angles and from a table in bf16, over the last positions.
fn angles(rope: &Rope, length: u64, push: &mut Push) {
    if !rope.fraction_bits.is_empty() || matches!(rope.angles, posenc::rotate::Angles::Mixed(_)) {
        return;
    }
    let begin = length.saturating_sub(WINDOW);
    let (mut in_f32, mut in_bf16) = (0.0f64, 0.0f64);
    for pair in 0..rope.pairs() {
        let (rate, frequency) = (rope.rate(pair), rope.compat_frequency(pair));
        for position in begin..length {
            let turn = rate.wrapping_mul(position) as i64 as f64 * (TAU / 2f64.powi(64));
            let (sin, cos) = turn.sin_cos();
            let (other_sin, other_cos) = f64::from(position as f32 * frequency).sin_cos();
            in_f32 = in_f32.max((sin - other_sin).abs()).max((cos - other_cos).abs());
            let rounded = |x: f64| (f64::from(bf16::from_f64(x)) - x).abs();
            in_bf16 = in_bf16.max(rounded(sin)).max(rounded(cos));
        }
    }
    let text = format!(
        "angles in f32, as transformers computes them, are off by {in_f32:.1e} in cosine or sine before position {length}"
    );
    push(
        Level::warn_if(in_f32 > BF16_ROUNDING),
        "f32-angles",
        in_f32,
        text,
        "more than 2^-9, half an ulp of bf16 at 1",
    );
    let text = format!("a table of cosines and sines in bf16 is off by {in_bf16:.1e} at any position");
    push(Level::Note, "bf16-table", in_bf16, text, "half an ulp of bf16 at 1 is 2^-9");
}

/// What the law of the scaling does with the pairs.
fn scaling(rope: &Rope, pairs: &[Pair], length: u64, push: &mut Push) {
    let divided = |pair: &&Pair, by: f64| pair.divided_by.is_some_and(|it| (it / by - 1.0).abs() < 1e-9);
    match &rope.scaling {
        Scaling::Yarn(yarn) => {
            if yarn.ramp == Ramp::Pairs {
                let (low, high) = yarn.ramp_ends(rope.base, rope.rotary);
                let text =
                    format!("YaRN keeps the pairs up to {low} and divides those from {high} on by {}", yarn.factor);
                push(Level::Note, "yarn-pairs", low, text, "YaRN, arXiv 2309.00071; ramp of the implementations");
            }
            let factor = yarn.attention_factor();
            if (rope.attention_factor - factor).abs() > 1e-6 {
                let text = format!(
                    "cosine and sine are multiplied by {}, YaRN's own factor is {factor:.6}",
                    rope.attention_factor
                );
                push(Level::Note, "yarn-factor", rope.attention_factor, text, "0.1 ln(s) + 1, arXiv 2309.00071");
            }
        }
        Scaling::Llama3 { factor, .. } => {
            let kept = pairs.iter().filter(|pair| divided(pair, 1.0)).count();
            let whole = pairs.iter().filter(|pair| divided(pair, *factor)).count();
            let between = pairs.len() - kept - whole;
            let text = format!("{kept} pairs are kept, {between} blended, {whole} divided by {factor}");
            push(Level::Note, "llama3-pairs", kept as f64, text, "apply_scaling in llama-models 0.3.0");
        }
        Scaling::DynamicNtk { .. } | Scaling::SteppedNtk { .. } | Scaling::LongRope { .. } => {
            let text = format!(
                "frequencies depend on the sequence's length, {length} here: keys cached at another length do not fit"
            );
            push(Level::Warn, "length", length as f64, text, "YaRN, arXiv 2309.00071, section 3.3");
        }
        _ => {}
    }
}

/// Scales of queries and Dual Chunk Attention.
pub fn of_layer(layer: &Layer, length: u64) -> Vec<Verdict> {
    let mut list = Vec::new();
    if layer.query_scale != QueryScale::One {
        let last = length - 1;
        let value = layer.query_scale.at(last);
        let text = format!("queries are multiplied by {value:.6} at position {last}");
        list.push(Verdict { level: Level::Note, rule: "query-scale", value, text, source: "the config's temperature" });
    }
    if let Some(it) = &layer.dual_chunk {
        let text =
            format!("no distance beyond {} is rotated: chunks of {}, {} of them local", it.chunk, it.chunk, it.local);
        list.push(Verdict {
            level: Level::Note,
            rule: "dual-chunk",
            value: it.chunk as f64,
            text,
            source: "Dual Chunk Attention, arXiv 2402.17463",
        });
    }
    list
}

pub fn of_bias(bias: &LogitBias, length: u64) -> Result<Vec<Verdict>> {
    let mut list = Vec::new();
    match bias {
        LogitBias::Alibi(alibi) => {
            let slopes: Vec<f64> = (0..alibi.heads).map(|head| alibi.slope(head)).collect();
            let (steepest, flattest) = slopes.iter().fold((0f64, f64::MAX), |(a, b), &it| (a.max(it), b.min(it)));
            let (near, far) = (LN_2 / steepest, LN_2 / flattest);
            let text =
                format!("weights halve every {near:.2} tokens in the steepest head, every {far:.1} in the flattest");
            list.push(Verdict {
                level: Level::Note,
                rule: "half-distance",
                value: far,
                text,
                source: "ln 2 / slope; ALiBi, arXiv 2108.12409",
            });
            // exp(-16 ln 2) is the smallest weight that a sum in f16 or bf16 beside 1 shows.
            let reach = 16.0 * far;
            let text = format!("beyond {reach:.0} tokens even the flattest head has weights below 2^-16");
            list.push(Verdict {
                level: Level::warn_if(reach < length as f64),
                rule: "reach",
                value: reach,
                text,
                source: "16 ln 2 / slope",
            });
        }
        LogitBias::T5 { encoder, decoder } => {
            for (side, spec) in [("encoder", encoder), ("decoder", decoder)] {
                let Some(spec) = spec else { continue };
                let last = spec.thresholds()?.last().copied().unwrap_or(0);
                let level = if length as usize > last { Level::Note } else { Level::Ok };
                let text = format!("{side}: distances from {last} on share one number per head");
                list.push(Verdict {
                    level,
                    rule: "last-distinct",
                    value: last as f64,
                    text,
                    source: "buckets of T5, arXiv 1910.10683",
                });
            }
        }
        LogitBias::Relative { queries, keys, .. } => {
            for (side, it) in [("queries", queries), ("keys", keys)] {
                let Some(Distances { first, count, outside, .. }) = it else { continue };
                let end = first.saturating_add(*count as i64);
                let far = end.max(-*first);
                let outside = match outside {
                    posenc::bias::Outside::Zero => "nothing is added",
                    _ => "the last number is added",
                };
                let level = if length as i64 > far { Level::Note } else { Level::Ok };
                let text = format!("{side}: the table covers distances {first} to {}, {outside} outside", end - 1);
                list.push(Verdict { level, rule: "extent", value: far as f64, text, source: "the config's extent" });
            }
        }
        _ => {}
    }
    Ok(list)
}

pub fn of_embedding(embedding: &PositionEmbedding, length: u64) -> Vec<Verdict> {
    match embedding {
        PositionEmbedding::Learned { spec, rows: Some(rows) } => {
            let before = match spec.rows {
                posenc::embed::Rows::Offset(offset) => offset.unsigned_abs(),
                posenc::embed::Rows::Kept { first, .. } => first.unsigned_abs(),
                _ => 0,
            };
            let positions = rows.saturating_sub(before);
            let text = format!("the table has rows for {positions} positions, {length} are asked for");
            let level = Level::warn_if(length > positions);
            vec![Verdict {
                level,
                rule: "rows",
                value: positions as f64,
                text,
                source: "a learned table has no row beyond its last",
            }]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First negative distances, computed apart from this program in f64.
    #[test]
    fn the_mean_cosine_turns_negative_where_it_is_known_to() {
        for (rotary, base, want) in
            [(64, 1e4, 725), (128, 1e4, 1707), (128, 5e5, 18438), (128, 1e6, 27115), (256, 5e4, 8134)]
        {
            let rope = Rope::new(rotary, base);
            let rates: Vec<f64> = (0..rope.pairs()).map(|pair| rope.frequency(pair)).collect();
            assert_eq!(first_negative(&rates, 100_000), Some(want), "{rotary} channels, base {base}");
            assert_eq!(first_negative(&rates, want - 1), None);
        }
    }
}
