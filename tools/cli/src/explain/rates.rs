//! The rate of each pair, from ratios of tokens that are 1, 2, 4, ... positions apart: whatever the first position is.

use std::collections::HashMap;
use std::f64::consts::TAU;

use num_complex::Complex64;

use super::geometry::Measured;
use super::sample::Sample;

/// Radians per position, and how far off they may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub value: f64,
    pub error: f64,
}

/// Mean of unit vectors below which tokens do not agree on a rate.
const COHERENT: f64 = 0.7;

/// Rates of all pairs; none if no tokens are one position apart on every axis.
pub fn rates(sample: &Sample, measured: &Measured) -> Option<Vec<Rate>> {
    let steps = steps(sample, &vec![1; sample.positions.len()]);
    (!steps.is_empty()).then(|| (0..measured.pairs).map(|pair| rate(measured, pair, &steps)).collect())
}

/// Pairs of tokens that are 1, 2, 4, ... times `direction` apart.
pub fn steps(sample: &Sample, direction: &[i64]) -> Vec<(i64, Vec<(usize, usize)>)> {
    let is_used: Vec<bool> = (0..sample.tokens).map(|token| sample.used.binary_search(&token).is_ok()).collect();
    let at = |token: usize| sample.positions.iter().map(|axis| axis[token]).collect::<Vec<_>>();
    let mut steps: Vec<(i64, Vec<(usize, usize)>)> = Vec::new();
    let mut lag = 1;
    loop {
        let mut pairs = Vec::new();
        for row in sample.rows() {
            let row: Vec<usize> = row.filter(|&token| is_used[token]).collect();
            let places: HashMap<Vec<i64>, usize> = row.iter().map(|&token| (at(token), token)).collect();
            for &token in &row {
                let by = direction.iter().map(|step| step * lag);
                let next: Vec<i64> = at(token).iter().zip(by).map(|(it, by)| it.saturating_add(by)).collect();
                pairs.extend(places.get(&next).map(|&other| (token, other)));
            }
        }
        if pairs.is_empty() {
            return steps;
        }
        steps.push((lag, pairs));
        lag *= 2;
    }
}

pub fn rate(measured: &Measured, pair: usize, steps: &[(i64, Vec<(usize, usize)>)]) -> Rate {
    let mut found = Rate { value: 0.0, error: f64::INFINITY };
    for (lag, tokens) in steps {
        let turns = tokens.iter().map(|&(a, b)| measured.unit(b, pair) * measured.unit(a, pair).conj());
        let mean = turns.sum::<Complex64>() / tokens.len() as f64;
        let coherence = mean.norm();
        if coherence < COHERENT {
            break;
        }
        let lag = *lag as f64;
        // The turn that continues the rate of the shorter lag.
        let whole = if found.error.is_finite() { ((found.value * lag - mean.arg()) / TAU).round() } else { 0.0 };
        let value = (mean.arg() + whole * TAU) / lag;
        let spread = (2.0 * (1.0 - coherence)).max(0.0).sqrt().max(measured.noise * std::f64::consts::SQRT_2);
        // Neighbouring lags share tokens: as many independent ones as fit side by side.
        let error = spread / lag / (tokens.len() as f64).sqrt();
        if error < found.error {
            found = Rate { value, error };
        }
    }
    found
}
