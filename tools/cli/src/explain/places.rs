//! Where each token really was: its position decoded from the ratios of its pairs, from slow pairs to fast ones.

use std::f64::consts::{PI, TAU};

use super::geometry::Measured;
use super::sample::Sample;
use crate::tensors::Dtype;
use posenc::half::{bf16, f16};

/// How the positions that were used follow from those that were given.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    Same,
    Shifted(i64),
    /// position modulo this
    Restart(i64),
    /// every token at this one
    Constant(i64),
    /// rounded to a type
    Rounded(Dtype),
    /// counted over all sequences of the batch, from this one on
    Counted(i64),
    /// the position of each token
    Listed(Vec<i64>),
}

impl Places {
    /// The position of each token on one axis.
    pub fn of(&self, given: &[i64]) -> Vec<i64> {
        let each = |f: &dyn Fn(i64) -> i64| given.iter().map(|&it| f(it)).collect();
        match self {
            Self::Same => given.to_vec(),
            Self::Shifted(by) => each(&|it| it.saturating_add(*by)),
            Self::Restart(at) => each(&|it| it.rem_euclid(*at)),
            Self::Constant(at) => each(&|_| *at),
            Self::Rounded(Dtype::F16) => each(&|it| f64::from(f16::from_f64(it as f64)) as i64),
            Self::Rounded(_) => each(&|it| f64::from(bf16::from_f64(it as f64)) as i64),
            Self::Counted(first) => (0..given.len() as i64).map(|i| first + i).collect(),
            Self::Listed(list) => list.clone(),
        }
    }

    pub fn words(&self, given: &[i64]) -> Option<String> {
        Some(match self {
            Self::Same => return None,
            Self::Shifted(1) => "positions are one too high".into(),
            Self::Shifted(-1) => "positions are one too low".into(),
            Self::Shifted(by) => format!("positions are shifted by {by}"),
            Self::Restart(at) => format!("positions restart at {at}"),
            Self::Constant(at) => format!("every token is at position {at}"),
            Self::Rounded(dtype) => format!("positions are rounded to {}", dtype.name()),
            Self::Counted(first) => format!("positions count on through the batch, from {first} on"),
            Self::Listed(list) => {
                let wrong: Vec<_> = given.iter().zip(list).filter(|(a, b)| a != b).collect();
                match wrong.first() {
                    Some((given, used)) => {
                        format!(
                            "{} of {} positions are others, the first is {used} in place of {given}",
                            wrong.len(),
                            list.len()
                        )
                    }
                    None => return None,
                }
            }
        })
    }
}

/// Share of a token's pairs that must agree with its position.
const AGREES: f64 = 0.98;

/// Positions of tokens from the rates of the pairs, each in radians per position, negative if turned back. None if more than a
/// tenth of the tokens agree with no position.
pub fn decode(tokens: &[usize], measured: &Measured, rates: &[f64], given: &[i64]) -> Option<Vec<(usize, i64)>> {
    let mut order: Vec<usize> = (0..measured.pairs).filter(|&pair| rates[pair] != 0.0).collect();
    order.sort_by(|&a, &b| rates[a].abs().total_cmp(&rates[b].abs()));
    let range = given.iter().map(|it| it.unsigned_abs()).max().unwrap_or(0) as f64 * 4.0 + 4096.0;
    // The fastest pair that does not turn once within the range, or the slowest.
    let start = order.iter().rposition(|&pair| PI / rates[pair].abs() > range).unwrap_or(0);
    let decoded = tokens.iter().map(|&token| {
        let agreement = |position: f64| {
            let sum: f64 = order
                .iter()
                .map(|&pair| {
                    let unit = measured.unit(token, pair);
                    (unit.arg() - rates[pair] * position).cos() * unit.norm()
                })
                .sum();
            sum / order.len() as f64
        };
        let expected = given[token] as f64;
        if agreement(expected) > AGREES {
            // Neighbours agree nearly as well where all pairs are slow.
            let near = [expected - 1.0, expected + 1.0].into_iter().map(agreement).fold(f64::MIN, f64::max);
            if agreement(expected) >= near {
                return Some((token, given[token]));
            }
        }
        let mut position = 0.0;
        for &pair in &order[start..] {
            let left = measured.unit(token, pair).arg() - rates[pair] * position;
            position += (left - (left / TAU).round() * TAU) / rates[pair];
        }
        let whole = position.round();
        (agreement(whole) > AGREES).then_some((token, whole as i64))
    });
    let all: Vec<_> = decoded.collect();
    let found: Vec<(usize, i64)> = all.iter().flatten().copied().collect();
    (found.len() * 10 >= all.len() * 9).then_some(found)
}

/// Rules that give the decoded positions, the simplest first; the list itself is the last.
pub fn name(sample: &Sample, decoded: &[(usize, i64)], given: &[i64]) -> Vec<Places> {
    let mut rules = vec![Places::Same];
    let Some(&(token, first)) = decoded.first() else { return rules };
    rules.extend(Some(first - given[token]).filter(|by| *by != 0).map(Places::Shifted));
    // The first token that falls back to 0 says where.
    rules.extend(
        decoded
            .iter()
            .find(|&&(token, at)| at == 0 && given[token] > 0)
            .map(|&(token, _)| Places::Restart(given[token])),
    );
    // Where none is at 0, a difference that all later ones share.
    rules.extend(decoded.iter().map(|&(token, at)| given[token] - at).find(|it| *it > 1).map(Places::Restart));
    rules.push(Places::Constant(first));
    rules.extend([Places::Rounded(Dtype::Bf16), Places::Rounded(Dtype::F16)]);
    if sample.batch > 1 {
        rules.push(Places::Counted(first - token as i64));
    }
    let agrees = |rule: &Places| {
        let all = rule.of(given);
        decoded.iter().all(|&(token, at)| all[token] == at)
    };
    rules.retain(agrees);
    rules.dedup();
    if rules.is_empty() {
        let mut list = given.to_vec();
        for &(token, at) in decoded {
            list[token] = at;
        }
        rules.push(Places::Listed(list));
    }
    rules
}
