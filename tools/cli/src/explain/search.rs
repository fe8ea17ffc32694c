//! The search: geometries, laws and positions that the measured ratios allow, then residuals of whole conventions.

use posenc::rotate::yarn_mscale;
use posenc::{Direction, Rope, Scaling};

use super::convention::{Arithmetic, Convention, FACTORS, Residual};
use super::geometry::{self, Geometry, Measured};
use super::heads;
use super::law::{self, Law};
use super::places::{self, Places};
use super::rates::{self, Rate};
use super::sample::Sample;
use crate::ulp::ulp;

/// A convention and how well it fits.
#[derive(Clone, Debug)]
pub struct Fit {
    pub convention: Convention,
    pub residual: Residual,
}

/// Tokens that a first look takes.
const FEW: usize = 24;
/// Tokens of the last look.
const MANY: usize = 2048;
/// Conventions whose arithmetic is varied.
const LISTED: usize = 10;
/// Conventions that are looked at last.
const KEPT: usize = 8;

/// What was found, the best first.
pub enum Found {
    /// the tensor is as it was, up to the order of its heads
    Unchanged(Vec<usize>),
    Fits(Vec<Fit>),
}

pub fn search(sample: &Sample, expected: Option<&Rope>) -> Found {
    let heads = heads::map(sample);
    let same = |&token: &usize| (0..sample.heads).all(|head| sample.y(token, head) == sample.x(token, heads[head]));
    if sample.used.iter().all(same) {
        return Found::Unchanged(heads);
    }
    let rounding = rounding(sample) + 1e-7;
    let looks: Vec<Look> = geometries(sample, &heads, expected)
        .into_iter()
        .map(|geometry| {
            let measured = Measured::new(sample, &heads, geometry, rounding);
            let rates = rates::rates(sample, &measured);
            Look { geometry, measured, rates }
        })
        .collect();
    let mut fits: Vec<Fit> = Vec::new();
    for effort in EFFORTS {
        let mut first: Vec<Fit> =
            looks.iter().flat_map(|look| of_look(sample, &heads, look, effort, expected)).collect();
        shortlist(&mut first, LISTED);
        fits.extend(refine(sample, first, expected));
        sort(&mut fits, 1.02);
        if fits.first().is_some_and(|fit| fit.residual.share <= 1.0) {
            break;
        }
    }
    // A list of positions that fits as well as a rule is the same rotation told at length, such as backwards from negative ones.
    if let Some(best) = fits.first().filter(|fit| !is_listed(fit)).map(|fit| fit.residual.rms) {
        fits.retain(|fit| !is_listed(fit) || fit.residual.rms > best * 1.02 + 0.003);
    }
    fits.truncate(KEPT);
    Found::Fits(fits)
}

const fn is_listed(fit: &Fit) -> bool {
    matches!(fit.convention.places, Places::Listed(_))
}

/// A geometry and what was measured by it.
struct Look {
    geometry: Geometry,
    measured: Measured,
    rates: Option<Vec<Rate>>,
}

/// How hard a law is searched.
#[derive(Clone, Copy)]
struct Effort {
    /// with scalings
    scaled: bool,
    /// share of a rate that it may be off beyond its error, as cosines and sines of a narrow table are
    relative: f64,
}

const EFFORTS: [Effort; 4] = [
    Effort { scaled: false, relative: 0.0 },
    Effort { scaled: true, relative: 0.0 },
    Effort { scaled: false, relative: 1.0 / 1024.0 },
    Effort { scaled: false, relative: 1.0 / 128.0 },
];

/// Varies arithmetic and factor, and takes the last look at the best.
fn refine(sample: &Sample, first: Vec<Fit>, expected: Option<&Rope>) -> Vec<Fit> {
    let few = sample.some(FEW);
    let mut second: Vec<Fit> = Vec::new();
    for it in first {
        for arithmetic in Arithmetic::all(sample.dtype) {
            for factor in factors(&it.convention, rounding(sample), expected) {
                let convention = Convention { arithmetic, factor, ..it.convention.clone() };
                second.push(fit(sample, convention, &few));
            }
        }
    }
    // Roundings of one convention do not crowd out the others.
    sort(&mut second, 1.02);
    let mut seen: Vec<(Convention, u32)> = Vec::new();
    second.retain(|fit| {
        let other = Convention { arithmetic: Arithmetic::EXACT, ..fit.convention.clone() };
        match seen.iter_mut().find(|(it, _)| *it == other) {
            Some((_, count)) => {
                *count += 1;
                *count <= 2
            }
            None => {
                seen.push((other, 1));
                true
            }
        }
    });
    shortlist(&mut second, KEPT);
    let many = sample.some(MANY);
    for fit in &mut second {
        fit.residual = fit.convention.residual(sample, &many);
    }
    second
}

/// By residual; of those that fit alike, the simpler first.
fn sort(fits: &mut [Fit], alike: f64) {
    fits.sort_by(|a, b| a.residual.rms.total_cmp(&b.residual.rms));
    let Some(best) = fits.first().map(|fit| fit.residual.rms) else { return };
    let alike = fits.iter().take_while(|fit| fit.residual.rms <= best * alike + 0.003).count();
    fits[..alike].sort_by_key(|fit| fit.convention.complexity());
}

/// The best half by residual and the simplest of those not far behind, whose roundings are still to be found.
fn shortlist(fits: &mut Vec<Fit>, count: usize) {
    sort(fits, 1.02);
    let mut rest = fits.split_off(fits.len().min(count / 2));
    if let Some(best) = fits.first().map(|fit| fit.residual.rms) {
        rest.retain(|fit| fit.residual.rms <= best * 4.0 + 1.0);
        rest.sort_by_key(|fit| fit.convention.complexity());
        fits.extend(rest.into_iter().take(count - count / 2));
    }
}

pub fn rounding(sample: &Sample) -> f64 {
    ulp(sample.dtype, 1.0) / 2.0
}

/// Geometries worth a search. Of interleaved pairs the lengths do not tell how many there are: usual sizes are tried.
fn geometries(sample: &Sample, heads: &[usize], expected: Option<&Rope>) -> Vec<Geometry> {
    let all = geometry::candidates(sample, heads);
    let Some(&(best, least)) = all.first() else { return Vec::new() };
    let limit = least * 3.0 + 4.0 * rounding(sample) + 1e-6;
    let mut fitting: Vec<Geometry> =
        all.iter().filter(|(_, share)| *share <= limit).map(|(geometry, _)| *geometry).collect();
    let smallest = fitting.iter().map(|it| it.rotary).min().unwrap_or(best.rotary);
    let dim = sample.dim;
    let usual = |it: &Geometry| {
        let is_expected = expected.is_some_and(|rope| rope.rotary == it.rotary && rope.offset == it.offset);
        is_expected
            || it.rotary == smallest
            || it.rotary.is_power_of_two()
            || it.rotary == dim
            || it.rotary * 4 == dim * 3
            || it.rotary * 2 == dim
    };
    if fitting.len() > 8 {
        fitting.retain(usual);
    }
    // A rotary part begins or ends with its head.
    fitting.sort_by_key(|it| (it.offset != 0 && it.offset + it.rotary != dim, it.input != it.output));
    fitting.truncate(12);
    fitting
}

/// Conventions of a geometry in exact arithmetic, with the factor that was measured.
fn of_look(sample: &Sample, heads: &[usize], look: &Look, effort: Effort, expected: Option<&Rope>) -> Vec<Fit> {
    let Look { geometry, measured, rates } = look;
    let few = sample.some(FEW);
    let mut laws = match rates {
        Some(rates) => {
            let widened = rates.iter().map(|it| Rate { error: it.error + effort.relative * it.value.abs(), ..*it });
            law::laws(&widened.collect::<Vec<_>>(), geometry.rotary, expected, effort.scaled)
        }
        None => Vec::new(),
    };
    // Without neighbours, or where these disagree, laws of published models.
    if laws.is_empty() || sample.positions.len() > 1 || !laws.iter().any(is_known) {
        laws.extend(published(expected, geometry.rotary));
    }
    let mut found: Vec<Fit> = Vec::new();
    for law in laws {
        let rope = law.rope(geometry.rotary);
        let speeds: Vec<f64> = (0..geometry.pairs()).map(|pair| rope.frequency(pair) * law.sign()).collect();
        let convention = |places: Places, axes: Vec<u8>| Convention {
            heads: heads.to_vec(),
            geometry: *geometry,
            law: law.clone(),
            factor: measured.factor.powf(1.0 / f64::from(law.times)),
            places,
            axes,
            arithmetic: Arithmetic::EXACT,
        };
        if sample.positions.len() > 1 {
            let axes = axes(sample, measured, &speeds, &few, expected);
            found.extend(axes.into_iter().map(|axes| fit(sample, convention(Places::Same, axes), &few)));
        } else if let Some(decoded) = places::decode(&few, measured, &speeds, &sample.positions[0]) {
            let places = places::name(sample, &decoded, &sample.positions[0]);
            let one = vec![0; geometry.pairs()];
            found.extend(places.into_iter().take(2).map(|it| fit(sample, convention(it, one.clone()), &few)));
        }
    }
    shortlist(&mut found, LISTED);
    if sample.positions.len() > 1 {
        return found;
    }
    // The rule of the positions was seen on a few tokens alone.
    let mut whole: Vec<Fit> = Vec::new();
    for Fit { convention, .. } in found {
        let rope = convention.law.rope(geometry.rotary);
        let speeds: Vec<f64> = (0..geometry.pairs()).map(|pair| rope.frequency(pair) * convention.law.sign()).collect();
        if let Some(decoded) = places::decode(&sample.used, measured, &speeds, &sample.positions[0]) {
            for places in places::name(sample, &decoded, &sample.positions[0]).into_iter().take(2) {
                let it = Convention { places, ..convention.clone() };
                if !whole.iter().any(|fit| fit.convention == it) {
                    whole.push(fit(sample, it, &few));
                }
            }
        }
    }
    whole
}

fn fit(sample: &Sample, convention: Convention, tokens: &[usize]) -> Fit {
    let residual = convention.residual(sample, tokens);
    Fit { convention, residual }
}

const fn is_known(law: &Law) -> bool {
    law.name.is_some() || !matches!(law.scaling, Scaling::Divisors(_))
}

/// Laws that are tried where rates cannot be measured.
fn published(expected: Option<&Rope>, rotary: usize) -> Vec<Law> {
    let mut laws = Vec::new();
    let mut push = |base: f64, scaling: &Scaling| {
        for direction in [Direction::Forward, Direction::Inverse] {
            for times in [1, 2] {
                laws.push(Law { base, scaling: scaling.clone(), direction, times, name: None });
            }
        }
    };
    if let Some(rope) = expected.filter(|rope| rope.rotary == rotary) {
        push(rope.base, &rope.scaling);
    }
    for base in law::BASES {
        push(base, &Scaling::None);
    }
    laws
}

/// Factors on cosine and sine near the measured one, which narrow tables shift.
fn factors(convention: &Convention, rounding: f64, expected: Option<&Rope>) -> Vec<f64> {
    let measured = convention.factor;
    let mut known = vec![1.0];
    known.extend(expected.map(|rope| rope.attention_factor));
    if let Scaling::Yarn(yarn) = &convention.law.scaling {
        known.push(yarn.attention_factor());
    }
    known.extend(FACTORS.map(|factor| yarn_mscale(factor, 1.0)));
    known.retain(|it| (it / measured - 1.0).abs() < NARROW);
    known.truncate(2);
    let tolerance = rounding / 2.0 + 2e-6;
    if !known.iter().any(|it| (it / measured - 1.0).abs() < tolerance) {
        known.extend(law::nice(measured, tolerance));
    }
    known
}

/// How far a table in bf16 shifts the length of all pairs together, at most.
const NARROW: f64 = 2e-3;

/// The axis of each pair: all pairs by one axis, the expected ones, or for each pair the axis that it agrees with.
fn axes(
    sample: &Sample,
    measured: &Measured,
    speeds: &[f64],
    tokens: &[usize],
    expected: Option<&Rope>,
) -> Vec<Vec<u8>> {
    let pairs = measured.pairs;
    let count = sample.positions.len().min(usize::from(u8::MAX));
    let agreement = |pair: usize, axis: usize| {
        let each = tokens.iter().map(|&token| {
            let unit = measured.unit(token, pair);
            (unit.arg() - speeds[pair] * sample.positions[axis][token] as f64).cos()
        });
        each.sum::<f64>() / tokens.len() as f64
    };
    let mut found: Vec<Vec<u8>> = (0..count as u8).map(|axis| vec![axis; pairs]).collect();
    if let Some(rope) = expected.filter(|rope| rope.pairs() == pairs && rope.axes.count() <= count) {
        found.push((0..pairs).map(|pair| rope.axes.axis(pair, pairs) as u8).collect());
    }
    let mut each: Vec<u8> = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let scores: Vec<f64> = (0..count).map(|axis| agreement(pair, axis)).collect();
        let best = scores.iter().copied().fold(f64::MIN, f64::max);
        // Slow pairs agree with every axis: the axis that the pair one period before has.
        let alike: Vec<u8> = (0..count)
            .filter(|&axis| scores[axis] > best - 4.0 * measured.noise.powi(2) - 1e-9)
            .map(|axis| axis as u8)
            .collect();
        let before = if pair >= count { each[pair - count] } else { 0 };
        each.push(if alike.contains(&before) { before } else { alike[0] });
    }
    found.push(each);
    // A pair that agrees with none says that the law is another one.
    found.retain(|axes| {
        let good = axes.iter().enumerate().filter(|(pair, axis)| agreement(*pair, usize::from(**axis)) > 0.98).count();
        good * 10 >= pairs * 9
    });
    found
}
