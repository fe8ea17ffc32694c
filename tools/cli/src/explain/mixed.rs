//! Frequencies of each head, on one axis or several, where a pair turns by the sum: RoPE-Mixed.

use std::f64::consts::TAU;

use super::convention::{Residual, copied_is_same, limit};
use super::geometry::{Geometry, Measured, candidates};
use super::rates::{rate, steps};
use super::sample::Sample;
use crate::ulp::ulp;

/// What was found: frequencies `[heads][pairs][axes]`.
pub struct Mixed {
    pub geometry: Geometry,
    pub frequencies: Vec<Vec<Vec<f64>>>,
    pub factor: f64,
    pub residual: Residual,
}

/// Pairs of tokens by how far apart they are on an axis.
type Steps = Vec<(i64, Vec<(usize, usize)>)>;

/// Passes of the solution, each with the phases that the one before unwraps.
const PASSES: usize = 4;

pub fn mixed(sample: &Sample, rounding: f64) -> Option<Mixed> {
    let heads: Vec<usize> = (0..sample.heads).collect();
    let all = candidates(sample, &heads);
    let least = all.first()?.1 * 3.0 + 4.0 * rounding;
    let usual = |it: &Geometry| it.rotary == sample.dim || it.rotary * 2 == sample.dim;
    let fitting = all.into_iter().filter(|(geometry, share)| *share <= least && usual(geometry));
    let axes = sample.positions.len();
    let steps: Vec<_> =
        (0..axes).map(|axis| steps(sample, &(0..axes).map(|it| i64::from(it == axis)).collect::<Vec<_>>())).collect();
    if steps.iter().any(Vec::is_empty) {
        return None;
    }
    let each = fitting.take(4).filter_map(|(geometry, _)| {
        let mut frequencies = Vec::new();
        let mut factors = 0.0;
        for head in 0..sample.heads {
            let own = sample.of_heads(&[head]);
            let measured = Measured::new(&own, &[0], geometry, rounding);
            factors += measured.factor / sample.heads as f64;
            let of = |pair| solve(sample, &measured, pair, &steps);
            frequencies.push((0..geometry.pairs()).map(of).collect::<Option<Vec<_>>>()?);
        }
        let factor = if (factors - 1.0).abs() < rounding + 1e-6 { 1.0 } else { factors };
        let residual = residual(sample, geometry, &frequencies, factor);
        Some(Mixed { geometry, frequencies, factor, residual })
    });
    each.min_by(|a, b| a.residual.share.total_cmp(&b.residual.share))
}

/// The frequencies of one pair: first from neighbours on each axis, then by least squares of all tokens' phases.
fn solve(sample: &Sample, measured: &Measured, pair: usize, steps: &[Steps]) -> Option<Vec<f64>> {
    let axes = steps.len();
    let mut found: Vec<f64> = steps.iter().map(|steps| rate(measured, pair, steps).value).collect();
    for _ in 0..PASSES {
        let (mut square, mut side) = (vec![vec![0.0; axes]; axes], vec![0.0; axes]);
        for &token in &sample.used {
            let at: Vec<f64> = sample.positions.iter().map(|axis| axis[token] as f64).collect();
            let want: f64 = found.iter().zip(&at).map(|(rate, at)| rate * at).sum();
            let left = measured.unit(token, pair).arg() - want;
            let left = left - (left / TAU).round() * TAU;
            for i in 0..axes {
                side[i] += at[i] * left;
                (0..axes).for_each(|j| square[i][j] += at[i] * at[j]);
            }
        }
        let step = linear(square, side)?;
        found.iter_mut().zip(&step).for_each(|(rate, step)| *rate += step);
    }
    Some(found)
}

/// Solves a small system by elimination; none if it has no single solution.
fn linear(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        if a[pivot][column].abs() < 1e-12 {
            return None;
        }
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..n {
            let by = a[row][column] / a[column][column];
            let top = a[column].clone();
            a[row].iter_mut().zip(&top).skip(column).for_each(|(x, y)| *x -= by * y);
            b[row] -= by * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|column| a[row][column] * b[column]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    Some(b)
}

fn residual(sample: &Sample, geometry: Geometry, frequencies: &[Vec<Vec<f64>>], factor: f64) -> Residual {
    let (mut square, mut worst, mut share, mut count) = (0.0, 0.0f64, 0.0f64, 0usize);
    for &token in &sample.used {
        for (head, pairs) in frequencies.iter().enumerate() {
            let (x, y) = (sample.x(token, head), sample.y(token, head));
            for (pair, rates) in pairs.iter().enumerate() {
                let angle: f64 =
                    rates.iter().zip(&sample.positions).map(|(rate, axis)| rate * axis[token] as f64).sum();
                let (sin, cos) = (angle.sin() * factor, angle.cos() * factor);
                let ((a, b), (c, d)) = (geometry.read(pair), geometry.written(pair));
                let want = [x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos];
                let unit = ulp(sample.dtype, want[0].hypot(want[1]));
                // Measured frequencies are off by a part of the roundings that they were measured from.
                let inside = factor * (x[a].abs() + x[b].abs()) * (1e-7 + 2f64.powi(-21));
                for (channel, want) in [(c, want[0]), (d, want[1])] {
                    let far = (y[channel] - want).abs();
                    square += (far / unit).powi(2);
                    worst = worst.max(far / unit);
                    share = share.max(far / limit(sample.dtype, want, inside, 1));
                    count += 1;
                }
            }
            if !copied_is_same(x, y, geometry) {
                share = f64::INFINITY;
            }
        }
    }
    Residual { rms: (square / count.max(1) as f64).sqrt(), worst, share }
}
