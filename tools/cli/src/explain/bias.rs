//! Biases: from attention logits without and with one, its scale, its law and its numbers.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use posenc::bias::{Alibi, Kerple, KerpleKind, T5Bias};
use posenc::half::bf16;
use serde::Serialize;

use super::convention::number;
use super::law::nice;
use super::{Property, Shown, print_best};
use crate::Outcome;
use crate::tensors::{Dtype, Tensor};
use crate::ulp::{coarser, ulp};

/// Logits below this are masked.
const MASKED: f64 = -1e30;
/// Entries that are looked at; of more, some of the queries.
const MOST: usize = 1 << 22;
/// Units in the last place that the entries of one distance may be apart: three roundings.
const ALIKE: f64 = 2.0;

/// One logit.
#[derive(Clone, Copy, Debug)]
struct Entry {
    head: usize,
    /// key minus query
    distance: i64,
    key: i64,
    without: f64,
    with: f64,
}

/// A mean, and the sum of its entries' weights.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    bias: f64,
    weight: f64,
}

/// The mean bias of a head at each distance or key.
type Row = BTreeMap<i64, Mean>;

/// The entries of two tensors of logits.
#[derive(Clone, Debug)]
struct Entries {
    dtype: Dtype,
    heads: usize,
    list: Vec<Entry>,
    masked: usize,
    not_finite: usize,
}

impl Entries {
    fn new(without: &Tensor, with: &Tensor, start: Option<i64>) -> Result<Self> {
        ensure!(
            without.shape == with.shape,
            "the shape without is {:?} and with a bias {:?}",
            without.shape,
            with.shape
        );
        let (batch, heads, queries, keys) = match without.shape[..] {
            [heads, queries, keys] => (1, heads, queries, keys),
            [batch, heads, queries, keys] => (batch, heads, queries, keys),
            _ => anyhow::bail!(
                "its shape is {:?}, logits are [heads, queries, keys] or [batch, heads, queries, keys]",
                without.shape
            ),
        };
        for tensor in [without, with] {
            ensure!(tensor.dtype.is_float(), "its type is {}, logits are floats", tensor.dtype.name());
        }
        // The last query is at the last key.
        let start = start.unwrap_or(keys as i64 - queries as i64);
        let (x, y) = (without.to_f64(), with.to_f64());
        let step = (x.len() / MOST).max(1);
        let mut entries =
            Self { dtype: coarser(without.dtype, with.dtype), heads, list: Vec::new(), masked: 0, not_finite: 0 };
        for row in (0..batch * heads * queries).filter(|row| row % queries % step == 0) {
            let (head, query) = (row / queries % heads, row % queries);
            for key in 0..keys {
                let (without, with) = (x[row * keys + key], y[row * keys + key]);
                if without <= MASKED || with <= MASKED {
                    entries.masked += 1;
                } else if !without.is_finite() || !with.is_finite() {
                    entries.not_finite += 1;
                } else {
                    let distance = key as i64 - (start + query as i64);
                    entries.list.push(Entry { head, distance, key: key as i64, without, with });
                }
            }
        }
        ensure!(
            !entries.list.is_empty(),
            "no logit is left: {} are masked and {} not finite",
            entries.masked,
            entries.not_finite
        );
        Ok(entries)
    }

    /// The size of a rounding at an entry.
    fn unit(&self, entry: &Entry, scale: f64) -> f64 {
        let scaled = entry.without * scale;
        ulp(self.dtype, entry.with.abs().max(scaled.abs()).max((entry.with - scaled).abs()))
    }

    fn largest(&self, scale: f64) -> f64 {
        self.list.iter().map(|it| it.with.abs().max((it.without * scale).abs())).fold(0.0, f64::max)
    }

    /// What multiplies the logits: entries of one distance, or of one key, have one bias, so that they differ by the scale alone.
    fn scale(&self, group: fn(&Entry) -> i64) -> f64 {
        // Of each group the count, and the sums of x, y, x^2 and x y.
        let mut groups: BTreeMap<(usize, i64), [f64; 5]> = BTreeMap::new();
        for entry in &self.list {
            let (x, y) = (entry.without, entry.with);
            let sums = groups.entry((entry.head, group(entry))).or_default();
            for (sum, term) in sums.iter_mut().zip([1.0, x, y, x * x, x * y]) {
                *sum += term;
            }
        }
        let (mut square, mut product) = (0.0, 0.0);
        for [count, x, y, xx, xy] in groups.into_values() {
            square += xx - x * x / count;
            product += xy - x * y / count;
        }
        if square > 0.0 { product / square } else { 1.0 }
    }

    /// The mean bias of each group of a head, and how far the entries are from it, in units of rounding at the most.
    fn means(&self, scale: f64, group: fn(&Entry) -> i64) -> (Vec<Row>, f64) {
        let mut rows: Vec<Row> = vec![Row::new(); self.heads];
        for entry in &self.list {
            // An entry counts by its precision.
            let weight = self.unit(entry, scale).powi(-2);
            let mean = rows[entry.head].entry(group(entry)).or_default();
            mean.bias += weight * (entry.with - scale * entry.without);
            mean.weight += weight;
        }
        rows.iter_mut().flat_map(BTreeMap::values_mut).for_each(|mean| mean.bias /= mean.weight);
        let far =
            |it: &Entry| (it.with - scale * it.without - rows[it.head][&group(it)].bias).abs() / self.unit(it, scale);
        let far = self.list.iter().map(far).fold(0.0, f64::max);
        (rows, far)
    }

    /// How far the tensor is from a law.
    fn residual(&self, scale: f64, bias: impl Fn(&Entry) -> f64) -> Shown {
        let (mut square, mut worst) = (0.0, 0.0f64);
        for entry in &self.list {
            let far = (entry.with - scale * entry.without - bias(entry)).abs() / self.unit(entry, scale);
            square += far * far;
            worst = worst.max(far);
        }
        // Of the bias's numbers one unit, of its product and of the sum half a unit each.
        Shown { rms_ulps: (square / self.list.len() as f64).sqrt(), worst_ulps: worst, share_of_bound: worst / 2.0 }
    }
}

/// A bias that fits.
struct Law {
    properties: Vec<Property>,
    /// in words, what is unusual
    says: Vec<String>,
    residual: Shown,
}

/// What was found of one tensor of logits.
#[derive(Serialize)]
struct Explained {
    name: String,
    shape: Vec<usize>,
    masked: usize,
    not_finite: usize,
    explained: bool,
    says: Vec<String>,
    best: Vec<Property>,
    residual: Option<Shown>,
    second: Vec<Property>,
    second_residual: Option<Shown>,
}

pub fn run(
    logits: &[(String, Tensor, Tensor)],
    start: Option<i64>,
    bound: f64,
    json: bool,
    out: &mut dyn Write,
) -> Result<Outcome> {
    let mut all = Vec::new();
    for (name, without, with) in logits {
        let entries = Entries::new(without, with, start).with_context(|| format!("tensor {name}"))?;
        all.push(explain(name, &without.shape, &entries, bound));
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "tensors": all }))?;
        writeln!(out)?;
    } else {
        for it in &all {
            print(it, out)?;
        }
    }
    Ok(if all.iter().all(|it| it.explained) { Outcome::Same } else { Outcome::Differs })
}

fn print(it: &Explained, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{} {:?}, {} masked, {} not finite", it.name, it.shape, it.masked, it.not_finite)?;
    let shown = |it: &Shown| it.words("ulps");
    print_best(&it.says, &it.best, it.residual.as_ref().map(shown), out)?;
    if !it.explained {
        writeln!(
            out,
            "  not explained: tried were biases by distance and by key, ALiBi, T5's buckets, KERPLE, a constant and a table"
        )?;
    }
    if let Some(residual) = &it.second_residual {
        let list: Vec<_> = it.second.iter().map(|(property, value)| format!("{property} {value}")).collect();
        writeln!(out, "  second best: {}; {}", list.join(", "), shown(residual))?;
    }
    Ok(())
}

fn explain(name: &str, shape: &[usize], entries: &Entries, bound: f64) -> Explained {
    let laws = laws(entries);
    let mut it = Explained {
        name: name.into(),
        shape: shape.to_vec(),
        masked: entries.masked,
        not_finite: entries.not_finite,
        explained: false,
        says: Vec::new(),
        best: Vec::new(),
        residual: None,
        second: Vec::new(),
        second_residual: None,
    };
    // Laws come the simplest first: the first that fits is named, else the nearest.
    let fits = laws.iter().position(|law| law.residual.share_of_bound <= bound);
    let nearest = || {
        let each = laws.iter().enumerate().map(|(at, law)| (at, law.residual.rms_ulps));
        each.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    };
    let Some(best) = fits.or_else(nearest) else { return it };
    let second =
        laws.iter().enumerate().filter(|(at, law)| *at != best && law.properties[1..] != laws[best].properties[1..]);
    if let Some((_, second)) = second.min_by(|a, b| a.1.residual.rms_ulps.total_cmp(&b.1.residual.rms_ulps)) {
        it.second = second.properties[1..].to_vec();
        it.second_residual = Some(second.residual);
    }
    it.explained = fits.is_some();
    it.says = laws[best].says.clone();
    it.best = laws[best].properties.clone();
    it.residual = Some(laws[best].residual);
    it
}

/// A scale in words: the head's size if it is one.
fn scale_words(scale: f64) -> String {
    let sizes = [16, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 512];
    let is = |value: f64| (value / scale - 1.0).abs() < 1e-12;
    if let Some(size) = sizes.iter().find(|size| is(1.0 / f64::from(**size).sqrt())) {
        return format!("1 / sqrt({size})");
    }
    match sizes.iter().find(|size| is(1.0 / f64::from(**size))) {
        Some(size) => format!("1 / {size}"),
        None => number(scale),
    }
}

/// Scales near a measured one: 1, those of heads' sizes, round numbers, and itself.
fn scales(measured: f64, dtype: Dtype) -> Vec<f64> {
    let tolerance = (ulp(dtype, 1.0) * 2.0).max(1e-7);
    let sizes = [16, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256, 512].map(f64::from);
    let mut known = vec![1.0];
    known.extend(sizes.map(|size| 1.0 / size.sqrt()));
    known.extend(sizes.map(|size| 1.0 / size));
    known.retain(|it| (it / measured - 1.0).abs() < tolerance);
    known.extend(nice(measured, tolerance));
    known.truncate(3);
    known
}

/// Laws that may have made the tensor, the simplest first.
fn laws(entries: &Entries) -> Vec<Law> {
    let mut found = Vec::new();
    let by_distance: fn(&Entry) -> i64 = |entry| entry.distance;
    let by_key: fn(&Entry) -> i64 = |entry| entry.key;
    let mut table: Option<(f64, f64)> = None;
    for scale in scales(entries.scale(by_distance), entries.dtype) {
        let (means, far) = entries.means(scale, by_distance);
        if far > ALIKE {
            continue;
        }
        // The nearest of the scales, for what is no law.
        if table.is_none_or(|(_, best)| far < best) {
            table = Some((scale, far));
        }
        of_distances(entries, scale, &means, &mut found);
        if found.iter().any(|law| law.residual.share_of_bound <= 1.0) {
            break;
        }
    }
    for scale in scales(entries.scale(by_key), entries.dtype) {
        let (means, far) = entries.means(scale, by_key);
        if far <= ALIKE {
            let fits: Vec<Line> =
                means.iter().map(|row| Line::new(row.iter().map(|(at, mean)| (*at as f64, *mean)))).collect();
            let slopes: Vec<f64> = fits.iter().map(|line| line.slope).collect();
            let Slopes { law, mut says, exact } = slope_law(&slopes, scale, entries, &means);
            let residual = entries.residual(scale, |it| exact[it.head] * it.key as f64);
            says.push("the bias depends on the key alone: rows of logits differ by a constant from ALiBi's, probabilities do not".into());
            let properties =
                vec![("scale", scale_words(scale)), ("bias", "a line in the key's position".into()), ("slopes", law)];
            found.push(Law { properties, says, residual });
        }
    }
    if let Some((scale, _)) = table {
        let (means, _) = entries.means(scale, by_distance);
        let residual = entries.residual(scale, |it| means[it.head][&it.distance].bias);
        let distances: usize = means.iter().map(BTreeMap::len).max().unwrap_or(0);
        let properties =
            vec![("scale", scale_words(scale)), ("bias", format!("a table of {distances} distances, by no known law"))];
        found.push(Law { properties, says: Vec::new(), residual });
    }
    found
}

/// A straight line.
struct Line {
    slope: f64,
    first: f64,
}

impl Line {
    /// The line nearest to the means.
    fn new(points: impl Iterator<Item = (f64, Mean)> + Clone) -> Self {
        let (mut n, mut x, mut y) = (0.0, 0.0, 0.0);
        for (at, Mean { bias, weight }) in points.clone() {
            (n, x, y) = (n + weight, x + weight * at, y + weight * bias);
        }
        let (x, y) = if n > 0.0 { (x / n, y / n) } else { (0.0, 0.0) };
        let (mut square, mut product) = (0.0, 0.0);
        for (at, Mean { bias, weight }) in points {
            square += weight * (at - x) * (at - x);
            product += weight * (at - x) * (bias - y);
        }
        let slope = if square > 0.0 { product / square } else { 0.0 };
        Self { slope, first: y - slope * x }
    }
}

/// Laws of the distance.
fn of_distances(entries: &Entries, scale: f64, means: &[Row], found: &mut Vec<Law>) {
    let head = |name: String| vec![("scale", scale_words(scale)), ("bias", name)];
    let nothing = entries.residual(scale, |_| 0.0);
    found.push(Law { properties: head("nothing is added".into()), says: Vec::new(), residual: nothing });
    let constant = |row: &Row| {
        let (sum, weight) =
            row.values().fold((0.0, 0.0), |(sum, all), it| (sum + it.weight * it.bias, all + it.weight));
        if weight > 0.0 { sum / weight } else { 0.0 }
    };
    let constants: Vec<f64> = means.iter().map(constant).collect();
    let residual = entries.residual(scale, |it| constants[it.head]);
    found.push(Law { properties: head("a constant for each head".into()), says: Vec::new(), residual });
    lines(entries, scale, means, found);
    buckets(entries, scale, means, found);
    kerple(entries, scale, means, found);
}

/// ALiBi: a line in the distance, on each side.
fn lines(entries: &Entries, scale: f64, means: &[Row], found: &mut Vec<Law>) {
    let side = |row: &Row, past: bool| {
        let of_side = row.iter().filter(|(at, _)| if past { **at <= 0 } else { **at > 0 });
        let points: Vec<(f64, Mean)> = of_side.map(|(at, mean)| (at.abs() as f64, *mean)).collect();
        (points.len(), Line::new(points.into_iter()))
    };
    let past: Vec<_> = means.iter().map(|row| side(row, true)).collect();
    let future: Vec<_> = means.iter().map(|row| side(row, false)).collect();
    if past.iter().any(|(count, _)| *count < 2) {
        return;
    }
    // A slope of ALiBi is positive, and takes from keys that are far away.
    let slopes: Vec<f64> = past.iter().map(|(_, line)| -line.slope).collect();
    let Slopes { law, mut says, exact } = slope_law(&slopes, scale, entries, means);
    // What a line is at distance 0, in distances; the steepest head shows it best.
    let steepest = past.iter().map(|(_, line)| line).max_by(|a, b| a.slope.abs().total_cmp(&b.slope.abs()));
    let longer = steepest.filter(|line| line.slope != 0.0).map_or(0.0, |line| (line.first / line.slope).round());
    let distance = match longer {
        0.0 => "query minus key".into(),
        1.0 => "distances are one too long".into(),
        -1.0 => "distances are one too short".into(),
        by => format!("distances are too long by {by}"),
    };
    if longer != 0.0 {
        says.push(distance.clone());
    }
    let mut properties = vec![
        ("scale", scale_words(scale)),
        ("bias", "a line in the distance".into()),
        ("slopes", law),
        ("distance", distance),
    ];
    let has_future = future.iter().all(|(count, _)| *count >= 2);
    let mut sign = 1.0;
    if has_future {
        let is = |sign: f64| {
            future
                .iter()
                .zip(&past)
                .all(|((_, of), (_, past))| (of.slope - sign * past.slope).abs() <= 0.1 * past.slope.abs())
        };
        let words = if is(1.0) {
            "as the past: symmetric"
        } else if is(-1.0) {
            sign = -1.0;
            "with the other sign: keys after the query are rewarded"
        } else {
            sign = 0.0;
            "other slopes than the past"
        };
        properties.push(("future", words.into()));
    }
    let by = |slopes: &[f64]| {
        entries.residual(scale, |it| {
            let size = it.distance.abs() as f64;
            if it.distance <= 0 || sign == 1.0 {
                -slopes[it.head] * (size + longer)
            } else if sign == -1.0 {
                slopes[it.head] * (size + longer)
            } else {
                let line = &future[it.head].1;
                line.first + line.slope * size
            }
        })
    };
    // A port may compute slopes in f32, a few units off: then those that were measured stand for the law.
    let residual = Some(by(&exact)).filter(|it| it.share_of_bound <= 1.0).unwrap_or_else(|| by(&slopes));
    found.push(Law { properties, says, residual });
}

/// Slopes of all heads.
struct Slopes {
    /// in words
    law: String,
    /// what is wrong with it
    says: Vec<String>,
    /// by the law; those that were measured, if there is none
    exact: Vec<f64>,
}

/// The law of the slopes of all heads.
fn slope_law(slopes: &[f64], scale: f64, entries: &Entries, means: &[Row]) -> Slopes {
    let heads = slopes.len();
    let farthest = means.iter().flat_map(|row| row.keys()).map(|at| at.abs()).max().unwrap_or(1).max(1) as f64;
    // Roundings of the logits, over the longest distance.
    let tolerance = 2.0 * ulp(entries.dtype, entries.largest(scale)) / farthest;
    let is_flipped = slopes.iter().all(|slope| *slope <= 0.0) && slopes.iter().any(|slope| *slope < 0.0);
    let sign = if is_flipped { -1.0 } else { 1.0 };
    let matches = |law: &[f64]| {
        law.iter().zip(slopes).all(|(law, slope)| (law * sign - slope).abs() <= tolerance + 1e-6 * slope.abs())
    };
    let alibi = Alibi::new(heads);
    let of = |alibi: Alibi| (0..heads).map(|head| alibi.slope(head)).collect::<Vec<f64>>();
    let plain = of(alibi);
    let mut laws: Vec<(String, Option<String>, Vec<f64>)> = vec![
        ("ALiBi's".into(), None, plain.clone()),
        (
            "ALiBi's, rounded to bf16".into(),
            Some("slopes are rounded to bf16".into()),
            plain.iter().map(|slope| f64::from(bf16::from_f64(*slope))).collect(),
        ),
        (
            "ALiBi's, heads in reverse order".into(),
            Some("heads are in reverse order".into()),
            plain.iter().rev().copied().collect(),
        ),
        (
            format!("2^(-8 (h + 1) / {heads})"),
            Some(format!("slopes are those of the paper's text, 2^(-8 (h + 1) / {heads}), not of its authors' code")),
            (0..heads).map(|head| 2f64.powf(-8.0 * (head + 1) as f64 / heads as f64)).collect(),
        ),
    ];
    for times in [2, 4, 8] {
        for rank in 0..times {
            let (total, first) = (times * heads, rank * heads);
            let words = format!("heads {first} to {} of {total}", first + heads - 1);
            let slopes = of(Alibi::new(total).shard(first, heads));
            laws.push((format!("ALiBi's, {words}"), Some(format!("slopes are those of {words}")), slopes));
        }
    }
    let orders = if scale == 1.0 { vec![1.0] } else { vec![1.0, scale] };
    for order in orders {
        // The exponent that the first head's slope gives.
        let exponent =
            slopes.first().map_or(f64::NAN, |slope| -(slope * sign / order).log2() * 2f64.powi(heads.ilog2() as i32));
        if exponent.is_finite() && exponent > 0.0 {
            let max_bias = nice(exponent, 1e-3)[0];
            laws.push((format!("ALiBi's with max_bias {}", number(max_bias)), None, of(Alibi { max_bias, ..alibi })));
        }
        for (law, says, list) in &laws {
            let list: Vec<f64> = list.iter().map(|slope| slope * order).collect();
            if !matches(&list) {
                continue;
            }
            let mut says: Vec<String> = says.iter().cloned().collect();
            if is_flipped {
                says.push("the sign is wrong: far keys are rewarded".into());
            }
            let mut law = law.clone();
            if order != 1.0 {
                says.push("the bias is added before the scale, which multiplies it too".into());
                law += ", times the scale";
            }
            return Slopes { law, says, exact: list.iter().map(|slope| slope * sign).collect() };
        }
    }
    let listed: Vec<_> = slopes.iter().take(4).map(|slope| format!("{slope:.6}")).collect();
    let law = format!("{}{}", listed.join(", "), if heads > 4 { ", ..." } else { "" });
    Slopes { law, says: Vec::new(), exact: slopes.to_vec() }
}

/// Buckets and the distance from which all share one, of published models.
const T5: [(usize, usize); 9] =
    [(32, 128), (64, 256), (320, 800), (512, 2048), (32, 64), (32, 256), (64, 128), (16, 128), (32, 512)];

/// T5: distances of one bucket have one number.
fn buckets(entries: &Entries, scale: f64, means: &[Row], found: &mut Vec<Law>) {
    let rounding = ulp(entries.dtype, entries.largest(scale));
    for (buckets, max_distance) in T5 {
        for bidirectional in [true, false] {
            let spec = T5Bias::new(buckets, max_distance, bidirectional);
            let Ok(thresholds) = spec.thresholds() else { continue };
            for (sign, shift) in [(1, 0), (-1, 0), (1, 1), (1, -1)] {
                let bucket = |distance: i64| {
                    let distance = sign * distance + shift;
                    let future = if bidirectional { buckets / 2 } else { 0 };
                    let side = |n: u64| thresholds.partition_point(|least| *least as u64 <= n) - 1;
                    match distance {
                        0 => 0,
                        ..0 => side(distance.unsigned_abs()),
                        _ if bidirectional => future + side(distance.unsigned_abs()),
                        _ => 0,
                    }
                };
                let mut sums: Vec<BTreeMap<usize, (f64, f64)>> = vec![BTreeMap::new(); means.len()];
                for (row, sums) in means.iter().zip(&mut sums) {
                    for (distance, Mean { bias, weight }) in row {
                        let sum = sums.entry(bucket(*distance)).or_default();
                        *sum = (sum.0 + weight * bias, sum.1 + weight);
                    }
                }
                let many = sums.iter().map(BTreeMap::len).max().unwrap_or(0);
                let distances = means.iter().map(BTreeMap::len).max().unwrap_or(0);
                // Buckets of one distance each explain anything.
                if many < 3 || distances < many + 2 {
                    continue;
                }
                // Most are refused by the means alone.
                let mean = |head: usize, distance: i64| {
                    let (sum, count) = sums[head][&bucket(distance)];
                    sum / count
                };
                let rows = means.iter().enumerate();
                let far = rows.flat_map(|(head, row)| row.iter().map(move |(at, mean)| (head, *at, mean.bias)));
                if far.into_iter().any(|(head, at, bias)| (bias - mean(head, at)).abs() > ALIKE * rounding) {
                    continue;
                }
                let residual = entries.residual(scale, |it| mean(it.head, it.distance));
                let mut says = Vec::new();
                if sign < 0 {
                    says.push("the direction is wrong: past and future are exchanged".into());
                }
                if shift != 0 {
                    says.push(format!("distances are off by {}", -shift));
                }
                let sides = if bidirectional { "both sides" } else { "the past alone" };
                let properties = vec![
                    ("scale", scale_words(scale)),
                    ("bias", format!("T5's buckets: {buckets} up to distance {max_distance}, {sides}")),
                    ("distance", says.first().cloned().unwrap_or_else(|| "key minus query".into())),
                ];
                found.push(Law { properties, says, residual });
            }
        }
    }
}

/// KERPLE: a logarithm or a power of the distance, with numbers for each head.
fn kerple(entries: &Entries, scale: f64, means: &[Row], found: &mut Vec<Law>) {
    let fits = |kind: KerpleKind| -> Option<(Kerple, Shown)> {
        let (mut p, mut a) = (Vec::new(), Vec::new());
        for row in means {
            let points: Vec<(f64, Mean)> = row.iter().map(|(at, mean)| (at.unsigned_abs() as f64, *mean)).collect();
            // The best factor of a shape that one number bends, and what is left.
            let factor = |bend: f64| {
                let shape = |n: f64| match kind {
                    KerpleKind::Log => -(bend * n).ln_1p(),
                    KerpleKind::Power => -n.powf(bend),
                };
                let (mut square, mut product) = (0.0, 0.0);
                for (n, Mean { bias, weight }) in &points {
                    square += weight * shape(*n).powi(2);
                    product += weight * shape(*n) * bias;
                }
                let factor = if square > 0.0 { product / square } else { 0.0 };
                let far = |(n, mean): &(f64, Mean)| mean.weight * (mean.bias - factor * shape(*n)).powi(2);
                let left: f64 = points.iter().map(far).sum();
                (factor, left)
            };
            let (mut low, mut high) = match kind {
                KerpleKind::Log => (1e-4f64.ln(), 1e3f64.ln()),
                KerpleKind::Power => (0.01f64.ln(), 2f64.ln()),
            };
            // A coarse look, then thirds: what is left has one valley in the logarithm of the number.
            let steps = 64;
            let at = |step: usize| low + (high - low) * step as f64 / f64::from(steps);
            let best = (0..=steps as usize).min_by(|&a, &b| factor(at(a).exp()).1.total_cmp(&factor(at(b).exp()).1))?;
            (low, high) = (at(best.saturating_sub(1)), at((best + 1).min(steps as usize)));
            for _ in 0..60 {
                let (left, right) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
                if factor(left.exp()).1 < factor(right.exp()).1 { high = right } else { low = left }
            }
            let bend = ((low + high) / 2.0).exp();
            let (factor, _) = factor(bend);
            if factor <= 0.0 {
                return None;
            }
            match kind {
                KerpleKind::Log => (p.push(factor), a.push(bend)),
                KerpleKind::Power => (p.push(bend), a.push(factor)),
            };
        }
        let law = Kerple { kind, p, a };
        let residual = entries.residual(scale, |it| law.bias(it.head, it.distance));
        Some((law, residual))
    };
    for kind in [KerpleKind::Log, KerpleKind::Power] {
        let Some((law, residual)) = fits(kind) else { continue };
        let list = |values: &[f64]| values.iter().take(4).map(|it| format!("{it:.4}")).collect::<Vec<_>>().join(", ");
        let name = match kind {
            KerpleKind::Log => "KERPLE's logarithm, -p ln(1 + a |distance|)",
            KerpleKind::Power => "KERPLE's power, -a |distance|^p",
        };
        let properties =
            vec![("scale", scale_words(scale)), ("bias", name.to_string()), ("p", list(&law.p)), ("a", list(&law.a))];
        found.push(Law { properties, says: Vec::new(), residual });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Element;
    use posenc::Scalar;

    /// No power of two, so that the law of the paper's text and that of its authors' code differ.
    const HEADS: usize = 12;

    /// Logits and what an engine makes of them.
    fn explained<T: Scalar + Element>(
        seed: u64,
        (queries, keys): (usize, usize),
        causal: bool,
        engine: &dyn Fn(usize, i64, i64, f64) -> f64,
    ) -> Explained {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for head in 0..HEADS {
            for query in 0..queries as i64 {
                for key in 0..keys as i64 {
                    let logit = T::from_f64((rng.f64() - 0.5) * 8.0);
                    let query = query + keys as i64 - queries as i64;
                    let is_masked = causal && key > query;
                    without.push(logit);
                    let with_bias = engine(head, query, key, logit.to_f64());
                    with.push(T::from_f64(if is_masked { f64::NEG_INFINITY } else { with_bias }));
                }
            }
        }
        let shape = [HEADS, queries, keys];
        let (without, with) = (Tensor::new(&shape, &without), Tensor::new(&shape, &with));
        explain("logits", &shape, &Entries::new(&without, &with, None).expect("logits"), 1.0)
    }

    fn numbers(seed: u64, count: usize) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(seed + 1000);
        (0..count).map(|_| rng.f64() * 4.0 - 2.0).collect()
    }

    /// Every mistake in both types, square and as a decoder sees it; each is named, and nothing else is named within the bound.
    #[test]
    fn biases_are_found_by_name() {
        let alibi = Alibi::new(HEADS);
        let scale = 1.0 / 8.0;
        let (mut cases, mut wrong) = (0, Vec::new());
        for seed in 0..2u64 {
            let table = numbers(seed, 32 * HEADS);
            let t5 = T5Bias::new(32, 128, true);
            let causal_t5 = T5Bias::new(32, 128, false);
            let entry = |spec: &T5Bias, head: usize, distance: i64| {
                table[spec.bucket(distance).expect("a bucket") * HEADS + head]
            };
            let kerple = Kerple {
                kind: KerpleKind::Log,
                p: numbers(seed, HEADS).iter().map(|it| it.abs() + 0.5).collect(),
                a: numbers(seed + 7, HEADS).iter().map(|it| it.abs() + 0.1).collect(),
            };
            let power = Kerple {
                kind: KerpleKind::Power,
                p: numbers(seed, HEADS).iter().map(|it| 0.3 + it.abs() / 5.0).collect(),
                a: numbers(seed + 7, HEADS).iter().map(|it| it.abs() + 0.1).collect(),
            };
            let far = |query: i64, key: i64| (query - key).abs() as f64;
            type Engine<'a> = Box<dyn Fn(usize, i64, i64, f64) -> f64 + 'a>;
            let list: Vec<(&str, bool, Engine<'_>, &str, &str)> = vec![
                ("nothing", true, Box::new(|_, _, _, s| s * scale), "bias", "nothing is added"),
                ("alibi", true, Box::new(|h, q, k, s| s * scale - alibi.slope(h) * far(q, k)), "slopes", "ALiBi's"),
                (
                    "sign",
                    true,
                    Box::new(|h, q, k, s| s * scale + alibi.slope(h) * far(q, k)),
                    "says",
                    "the sign is wrong: far keys are rewarded",
                ),
                (
                    "reverse",
                    true,
                    Box::new(|h, q, k, s| s * scale - alibi.slope(HEADS - 1 - h) * far(q, k)),
                    "slopes",
                    "ALiBi's, heads in reverse order",
                ),
                (
                    "before the scale",
                    true,
                    Box::new(|h, q, k, s| (s - alibi.slope(h) * far(q, k)) * scale),
                    "says",
                    "the bias is added before the scale, which multiplies it too",
                ),
                (
                    "off by one",
                    true,
                    Box::new(|h, q, k, s| s * scale - alibi.slope(h) * (far(q, k) + 1.0)),
                    "distance",
                    "distances are one too long",
                ),
                (
                    "key alone",
                    true,
                    Box::new(|h, _, k, s| s * scale + alibi.slope(h) * k as f64),
                    "bias",
                    "a line in the key's position",
                ),
                (
                    "symmetric",
                    false,
                    Box::new(|h, q, k, s| s - alibi.slope(h) * far(q, k)),
                    "future",
                    "as the past: symmetric",
                ),
                (
                    "signed",
                    false,
                    Box::new(|h, q, k, s| s + alibi.slope(h) * (k - q) as f64),
                    "future",
                    "with the other sign: keys after the query are rewarded",
                ),
                (
                    "t5",
                    false,
                    Box::new(|h, q, k, s| s + entry(&t5, h, k - q)),
                    "bias",
                    "T5's buckets: 32 up to distance 128, both sides",
                ),
                (
                    "t5 causal",
                    true,
                    Box::new(|h, q, k, s| s + entry(&causal_t5, h, k - q)),
                    "bias",
                    "T5's buckets: 32 up to distance 128, the past alone",
                ),
                (
                    "t5 reversed",
                    false,
                    Box::new(|h, q, k, s| s + entry(&causal_t5, h, q - k)),
                    "says",
                    "the direction is wrong: past and future are exchanged",
                ),
                (
                    "t5 off by one",
                    true,
                    Box::new(|h, q, k, s| s + entry(&causal_t5, h, k - q - 1)),
                    "says",
                    "distances are off by 1",
                ),
                (
                    "the paper's text",
                    true,
                    Box::new(|h, q, k, s| s * scale - 2f64.powf(-8.0 * (h + 1) as f64 / HEADS as f64) * far(q, k)),
                    "slopes",
                    "2^(-8 (h + 1) / 12)",
                ),
                (
                    "slopes in bf16, in f32",
                    true,
                    Box::new(|h, q, k, s| s * scale - f64::from(bf16::from_f64(alibi.slope(h))) * far(q, k)),
                    "slopes",
                    "ALiBi's, rounded to bf16",
                ),
                (
                    "kerple",
                    true,
                    Box::new(|h, q, k, s| s * scale + kerple.bias(h, k - q)),
                    "bias",
                    "KERPLE's logarithm, -p ln(1 + a |distance|)",
                ),
                (
                    "kerple power",
                    true,
                    Box::new(|h, q, k, s| s * scale + power.bias(h, k - q)),
                    "bias",
                    "KERPLE's power, -a |distance|^p",
                ),
                (
                    "shard",
                    true,
                    Box::new(|h, q, k, s| s * scale - Alibi::new(24).slope(12 + h) * far(q, k)),
                    "slopes",
                    "ALiBi's, heads 12 to 23 of 24",
                ),
                (
                    "max bias",
                    true,
                    Box::new(|h, q, k, s| s * scale - Alibi { max_bias: 16.0, ..alibi }.slope(h) * far(q, k)),
                    "slopes",
                    "ALiBi's with max_bias 16",
                ),
            ];
            for (name, causal, engine, property, want) in &list {
                let sizes = if seed % 2 == 0 { (48, 48) } else { (12, 120) };
                // Logits in f16 do not show the roundings of slopes.
                for narrow in [false, true].into_iter().filter(|narrow| !narrow || !name.ends_with("in f32")) {
                    let it = if narrow {
                        explained::<posenc::half::f16>(seed, sizes, *causal, engine)
                    } else {
                        explained::<f32>(seed, sizes, *causal, engine)
                    };
                    let found = match *property {
                        "says" => it.says.iter().any(|says| says == want),
                        property => it.best.iter().any(|(name, value)| *name == property && value == want),
                    };
                    cases += 1;
                    if !found || !it.explained {
                        wrong.push(format!(
                            "{name}, f16 {narrow}, {sizes:?}: {:?} {:?}, {:?} of the bound",
                            it.says,
                            it.best,
                            it.residual.map(|it| it.share_of_bound)
                        ));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {cases} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}
