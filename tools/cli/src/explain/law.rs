//! Laws that give the measured rates: the base is solved from them, then the scaling and its numbers.

use posenc::rotate::{Ramp, Yarn};
use posenc::{Direction, Rope, Scaling};

use super::convention::{digits, rounded};
use super::rates::Rate;
use crate::tensors::Dtype;

/// A law of frequencies, and how it was applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Law {
    pub base: f64,
    pub scaling: Scaling,
    pub direction: Direction,
    /// how often the tensor was rotated
    pub times: u32,
    /// what a list of divisors is, where it has a name
    pub name: Option<String>,
}

impl Law {
    /// Turns in the direction of growing positions, for each of the rotation.
    pub fn sign(&self) -> f64 {
        f64::from(self.times) * if self.direction == Direction::Forward { 1.0 } else { -1.0 }
    }

    /// How much is said: of two laws that fit alike the simpler one is named.
    pub fn complexity(&self) -> u32 {
        let scaling = match &self.scaling {
            Scaling::None => 0,
            Scaling::Linear { factor } => 2 + digits(*factor),
            Scaling::Proportional { .. } => 4,
            Scaling::Llama3 { factor, low, high, .. } => 6 + digits(*factor) + u32::from((*low, *high) != (1.0, 4.0)),
            Scaling::Yarn(yarn) => {
                let usual = (yarn.beta_fast, yarn.beta_slow) == (32.0, 1.0);
                7 + digits(yarn.factor)
                    + u32::from(!usual)
                    + u32::from(!yarn.truncate)
                    + 2 * u32::from(yarn.ramp != Ramp::Pairs)
            }
            _ if self.name.is_some() => 8,
            _ => 60,
        };
        scaling + digits(self.base) + u32::from(!BASES.contains(&self.base))
    }

    /// The spec of these frequencies, in a head of that many rotated channels.
    pub fn rope(&self, rotary: usize) -> Rope {
        Rope { scaling: self.scaling.clone(), ..Rope::new(rotary, self.base) }
    }
}

/// Bases of published models.
pub const BASES: [f64; 22] = [
    1e4,
    5e5,
    1e6,
    5e6,
    1e7,
    1.5e5,
    2.5e5,
    5e4,
    1e5,
    1.3e5,
    1.6e5,
    6.4e5,
    8e6,
    1.2e7,
    1e8,
    1e9,
    1_000_042.0,
    256.0,
    100.0,
    1e3,
    3e4,
    2e4,
];
/// Divisors of published models.
const FACTORS: [f64; 14] = [2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0, 36.0, 128.0, 3.0, 6.0, 10.0, 1.5, 2.5];
/// Contexts that a scaling starts from.
const CONTEXTS: [f64; 13] = [
    512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 40960.0, 65536.0, 131072.0, 262144.0, 524288.0, 1048576.0,
];
/// `beta_fast` and `beta_slow`.
const BETAS: [(f64, f64); 3] = [(32.0, 1.0), (1.0, 1.0), (64.0, 1.0)];
/// `low` and `high` of Llama 3.
const BANDS: [(f64, f64); 5] = [(1.0, 4.0), (1.0, 1.0), (1.0, 2.0), (1.0, 8.0), (1.0, 32.0)];
/// Laws of a geometry that are looked at.
const KEPT: usize = 12;
/// A scaling divides by more than this.
const LEAST_FACTOR: f64 = 1.05;
/// Errors of a rate that are still a fit.
const FIT: f64 = 6.0;
/// What roundings of frequencies to f32 change.
const ROUNDED: f64 = 3e-7;

/// Laws that fit the rates of all pairs, the simplest first. With `scaled` those whose slow pairs have other rates than the base
/// gives them, and at the end one that lists divisors.
pub fn laws(rates: &[Rate], rotary: usize, expected: Option<&Rope>, scaled: bool) -> Vec<Law> {
    let first = rates[0];
    let mut found = Vec::new();
    if first.error > 0.1 || first.value == 0.0 {
        return found;
    }
    let direction = if first.value > 0.0 { Direction::Forward } else { Direction::Inverse };
    let kappa = first.value.abs();
    let tolerance = (FIT * first.error).max(1e-6);
    let mut speeds: Vec<(f64, u32, Option<f64>)> = Vec::new();
    for times in 1..=3 {
        if (kappa - f64::from(times)).abs() < tolerance * f64::from(times) {
            speeds.push((f64::from(times), times, None));
        }
    }
    if kappa < 1.0 - tolerance {
        let relative = tolerance / kappa;
        speeds.extend(nice(1.0 / kappa, relative).into_iter().take(2).map(|factor| (1.0 / factor, 1, Some(factor))));
    }
    if let Some(rope) = expected.filter(|rope| rope.rotary == rotary) {
        for times in 1..=2 {
            let speed = f64::from(times);
            if fits(rates, |pair| rope.frequency(pair) * speed) {
                found.push(Law { base: rope.base, scaling: rope.scaling.clone(), direction, times, name: None });
            }
        }
        if let Scaling::LongRope { short, long, .. } = &rope.scaling {
            for (name, list) in [("short", short), ("long", long)] {
                let scaling = Scaling::Divisors(list.clone());
                let of = Rope { scaling: scaling.clone(), ..Rope::new(rotary, rope.base) };
                if list.len() == rotary / 2 && fits(rates, |pair| of.frequency(pair)) {
                    let name = Some(format!("LongRoPE by the config's {name} list"));
                    found.push(Law { base: rope.base, scaling, direction, times: 1, name });
                }
            }
        }
    }
    for (speed, times, linear) in speeds {
        let normal: Vec<Rate> =
            rates.iter().map(|it| Rate { value: it.value.abs() / speed, error: it.error / speed }).collect();
        for base in bases(&normal, rotary, expected.map(|rope| rope.base)) {
            let mut push = |scaling: Scaling, name| found.push(Law { base, scaling, direction, times, name });
            let plain = Rope::new(rotary, base);
            let theta: Vec<f64> = (0..rotary / 2).map(|pair| plain.frequency(pair)).collect();
            if fits(&normal, |pair| theta[pair]) {
                push(linear.map_or(Scaling::None, |factor| Scaling::Linear { factor }), None);
                continue;
            }
            // Scalings leave the fastest pairs alone.
            let fast = (rates.len() / 8).max(2).min(rates.len());
            if linear.is_none() && scaled && fits(&normal[..fast], |pair| theta[pair]) {
                for scaling in scalings(&normal, &theta, base, rotary) {
                    push(scaling, None);
                }
            }
        }
    }
    // Frequencies that were cast to a narrow type: of bases that models have, since casts hide the base's last digits.
    let is_narrow = |it: &Law| matches!(it.scaling, Scaling::Divisors(_)) || it.scaling == Scaling::None;
    if scaled && !found.iter().any(is_narrow) && (kappa - 1.0).abs() < tolerance {
        for base in expected.map(|rope| rope.base).into_iter().chain(BASES) {
            let plain = Rope::new(rotary, base);
            let theta: Vec<f64> = (0..rotary / 2).map(|pair| plain.frequency(pair)).collect();
            for (dtype, divisors) in narrowed(&theta) {
                let fits = fits(rates, |pair| theta[pair] / divisors[pair]);
                if fits && !found.iter().any(is_narrow) {
                    let name = Some(format!("none; frequencies are rounded to {}", dtype.name()));
                    found.push(Law { base, scaling: Scaling::Divisors(divisors), direction, times: 1, name });
                }
            }
        }
    }
    found.dedup();
    best(&mut found, rates, rotary);
    if !scaled {
        return found;
    }
    // The least that can be said: what each pair's frequency is divided by.
    let base = expected.map_or(1e4, |rope| rope.base);
    let plain = Rope::new(rotary, base);
    let divisors = (0..rotary / 2).map(|pair| plain.frequency(pair) / rates[pair].value.abs());
    let divisors: Vec<f64> = divisors.map(|it| if it.is_finite() { it } else { f64::INFINITY }).collect();
    found.push(Law { base, scaling: Scaling::Divisors(divisors), direction, times: 1, name: None });
    found
}

/// What frequencies are divided by where they are rounded to bf16 or f16.
fn narrowed(theta: &[f64]) -> [(Dtype, Vec<f64>); 2] {
    [Dtype::Bf16, Dtype::F16].map(|dtype| (dtype, theta.iter().map(|&theta| theta / rounded(dtype, theta)).collect()))
}

/// Keeps the laws that are nearest to the rates, the simplest of those that are near alike.
fn best(laws: &mut Vec<Law>, rates: &[Rate], rotary: usize) {
    if laws.len() <= KEPT {
        return;
    }
    let distance = |law: &Law| {
        let rope = law.rope(rotary);
        let each = rates.iter().enumerate().map(|(pair, rate)| {
            let want = rope.frequency(pair) * f64::from(law.times);
            ((rate.value.abs() - want) / (rate.error + ROUNDED * want)).powi(2)
        });
        each.sum::<f64>()
    };
    let mut known: Vec<(f64, Law)> = laws.drain(..).map(|law| (distance(&law), law)).collect();
    let least = known.iter().map(|(distance, _)| *distance).fold(f64::INFINITY, f64::min);
    known.sort_by_key(|(distance, law)| (*distance > 2.0 * least + 1.0, law.complexity()));
    laws.extend(known.into_iter().take(KEPT).map(|(_, law)| law));
}

/// Whether a law gives the measured rates, up to their errors.
fn fits(rates: &[Rate], law: impl Fn(usize) -> f64) -> bool {
    let is_off = |(pair, rate): (usize, &Rate)| {
        let want = law(pair).abs();
        (rate.value.abs() - want).abs() > FIT * rate.error + ROUNDED * want
    };
    // Of many pairs one may be an accident.
    rates.iter().enumerate().filter(|&it| is_off(it)).count() <= rates.len() / 50
}

/// Bases that the rates of the first pairs give, which most scalings leave alone; round numbers first.
fn bases(rates: &[Rate], rotary: usize, expected: Option<f64>) -> Vec<f64> {
    let pairs = rates.len();
    let mut found: Vec<f64> = Vec::new();
    if pairs == 1 {
        // One pair turns by 1 whatever the base is.
        return vec![expected.unwrap_or(1e4)];
    }
    for last in [pairs, pairs / 2, pairs / 4, pairs / 8, 3] {
        let last = last.clamp(2, pairs);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (pair, rate) in rates.iter().enumerate().take(last).skip(1) {
            let error = rate.error.max(1e-7 * rate.value);
            if rate.value <= 0.0 || error > 0.05 * rate.value {
                continue;
            }
            // ln base = -ln(rate) rotary / (2 pair)
            let lever = 2.0 * pair as f64 / rotary as f64;
            let weight = (lever * rate.value / error).powi(2);
            sum += weight * -rate.value.ln() / lever;
            weights += weight;
        }
        if weights == 0.0 {
            continue;
        }
        let relative = (FIT / weights.sqrt()).max(1e-5);
        let base = (sum / weights).exp();
        if base.is_finite() && base > 1.0 {
            found.extend(expected.filter(|it| (it / base - 1.0).abs() < relative));
            found.extend(BASES.iter().filter(|it| (*it / base - 1.0).abs() < relative));
            found.extend(nice(base, relative));
        }
    }
    let mut unique: Vec<f64> = Vec::new();
    for base in found {
        if !unique.iter().any(|it| (it / base - 1.0f64).abs() < 1e-9) {
            unique.push(base);
        }
    }
    unique
}

/// Numbers near `value` with few digits, the roundest first, and the value itself.
pub fn nice(value: f64, relative: f64) -> Vec<f64> {
    let mut found = Vec::new();
    let scale = 10f64.powf(value.abs().log10().floor());
    for digits in 0..=6 {
        let unit = 10f64.powi(digits);
        let round = (value / scale * unit).round() / unit * scale;
        // A whole number is exact; others are cleaned of the product's last bits.
        let round = format!("{round:.12e}").parse().unwrap_or(round);
        if (round / value - 1.0f64).abs() <= relative && !found.contains(&round) {
            found.push(round);
            if found.len() == 2 {
                break;
            }
        }
    }
    found.push(value);
    found
}

/// Scalings of a base whose frequencies the slower pairs do not have.
fn scalings(rates: &[Rate], theta: &[f64], base: f64, rotary: usize) -> Vec<Scaling> {
    let mut found = Vec::new();
    let is_known = |pair: usize| rates[pair].error < 0.02 * theta[pair];
    let still = |pair: usize| rates[pair].value <= FIT * rates[pair].error;
    // Pairs that stand still behind those that turn.
    let turning = (0..rates.len()).rfind(|&pair| is_known(pair) && !still(pair)).map_or(0, |pair| pair + 1);
    if (turning..rates.len()).any(is_known) && (turning..rates.len()).all(|pair| !is_known(pair) || still(pair)) {
        // Those between the last that is known to turn and the first that is known to stand.
        let first_still = (turning..rates.len()).find(|&pair| is_known(pair)).unwrap_or(turning);
        for rotated in turning..=first_still {
            let scaling = Scaling::Proportional { rotated, factor: 1.0 };
            let rope = Rope { scaling: scaling.clone(), ..Rope::new(rotary, base) };
            if fits(rates, |pair| rope.frequency(pair)) {
                found.push(scaling);
            }
        }
    }
    if !found.is_empty() {
        return found;
    }
    let divided = |pair: usize| theta[pair] / rates[pair].value;
    let slow = (0..rates.len()).rfind(|&pair| is_known(pair) && !still(pair));
    let mut factors: Vec<f64> = FACTORS.to_vec();
    if let Some(pair) = slow {
        let value = divided(pair);
        let relative = (FIT * rates[pair].error / rates[pair].value).max(1e-5);
        if value > 1.0 {
            factors.splice(0..0, nice(value, relative));
        }
    }
    // The factor is seen at the slowest pair, or that pair is not divided whole.
    let least = slow.map_or(1.0, |pair| divided(pair) * (1.0 - FIT * rates[pair].error / rates[pair].value) - 1e-3);
    factors.retain(|factor| *factor >= least && *factor >= LEAST_FACTOR);
    let mut tried = Vec::new();
    for &factor in &factors {
        for original_context in CONTEXTS {
            for (low, high) in BANDS {
                tried.push(Scaling::Llama3 { factor, low, high, original_context });
            }
            for (beta_fast, beta_slow) in BETAS {
                for (truncate, ramp) in [(true, Ramp::Pairs), (false, Ramp::Pairs), (true, Ramp::Turns)] {
                    let yarn = Yarn { beta_fast, beta_slow, truncate, ramp, ..Yarn::new(factor, original_context) };
                    tried.push(Scaling::Yarn(yarn));
                }
            }
        }
    }
    // One pair after another refuses most, the slowest that is known first.
    let slow = slow.unwrap_or(rates.len() - 1);
    let probes = [slow, slow * 3 / 4, slow / 2, slow * 7 / 8, slow * 5 / 8];
    for scaling in tried {
        let rope = Rope { scaling: scaling.clone(), ..Rope::new(rotary, base) };
        let is_near = |pair: usize| {
            (rope.frequency(pair) - rates[pair].value).abs() <= FIT * rates[pair].error + ROUNDED * theta[pair]
        };
        if probes.into_iter().all(is_near) && rope.check().is_ok() && fits(rates, |pair| rope.frequency(pair)) {
            found.push(scaling);
        }
    }
    found
}

/// The base and alpha of NTK that a base which is no round number may come from.
pub fn as_ntk(base: f64, rotary: usize) -> Option<(f64, f64)> {
    if rotary <= 2 || BASES.iter().any(|it| (it / base - 1.0).abs() < 1e-6) {
        return None;
    }
    let d = rotary as f64;
    let pairs = BASES[..6].iter().flat_map(|&of| FACTORS.iter().map(move |&alpha| (of, alpha)));
    pairs.into_iter().find(|&(of, alpha)| (of * alpha.powf(d / (d - 2.0)) / base - 1.0).abs() < 1e-5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(rope: &Rope, error: f64) -> Vec<Rate> {
        (0..rope.pairs()).map(|pair| Rate { value: rope.frequency(pair), error }).collect()
    }

    #[test]
    fn scalings_are_found_from_exact_rates() {
        let yarn = Yarn { truncate: false, ..Yarn::new(32.0, 4096.0) };
        for (rotary, base, scaling) in [
            (128, 5e5, Scaling::None),
            (64, 12_345.0, Scaling::None),
            (128, 1e6, Scaling::Linear { factor: 8.0 }),
            (128, 5e5, Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 }),
            (64, 1.5e5, Scaling::Yarn(yarn)),
            (64, 1e4, Scaling::Yarn(Yarn::new(40.0, 4096.0))),
            (512, 1e6, Scaling::Proportional { rotated: 64, factor: 1.0 }),
        ] {
            let rope = Rope { scaling: scaling.clone(), ..Rope::new(rotary, base) };
            let found = laws(&exact(&rope, 1e-11), rotary, None, true);
            let same = found.iter().any(|law| law.base == base && law.scaling == scaling && law.times == 1);
            assert!(same, "{base} {scaling:?}: {:?}", found.iter().take(3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_base_of_ntk_is_recognised() {
        assert_eq!(as_ntk(40_889.94, 128), Some((1e4, 4.0)));
        assert_eq!(as_ntk(5e5, 128), None);
    }

    #[test]
    fn nice_numbers_have_few_digits() {
        assert_eq!(nice(499_980.0, 1e-3)[0], 5e5);
        assert_eq!(nice(1_000_042.0, 1e-9)[0], 1_000_042.0);
        assert_eq!(nice(39.9999, 1e-4)[0], 40.0);
    }
}
