//! A complete convention, and how far a tensor is from it.

use std::f64::consts::TAU;

use posenc::half::{bf16, f16};
use posenc::rotate::{Axes, Ramp, yarn_mscale};
use posenc::{Direction, Pairing, Scaling};

use super::geometry::Geometry;
use super::law::{self, Law};
use super::places::Places;
use super::sample::Sample;
use crate::tensors::Dtype;
use crate::ulp::ulp;

/// How angles become cosines and sines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// position times frequency in f32, as transformers does
    pub f32_angles: bool,
    /// type of the table of cosines and sines, if it is narrower than f32
    pub table: Option<Dtype>,
    /// products are rounded to the tensor's type before they are added
    pub narrow: bool,
}

impl Arithmetic {
    pub const EXACT: Self = Self { f32_angles: false, table: None, narrow: false };

    /// What a tensor of that type may come from, the simplest first.
    pub fn all(dtype: Dtype) -> Vec<Self> {
        let mut all = Vec::new();
        for table in [None, Some(Dtype::F16), Some(Dtype::Bf16)] {
            for f32_angles in [false, true] {
                for narrow in [false, true] {
                    if !narrow || matches!(dtype, Dtype::Bf16 | Dtype::F16) {
                        all.push(Self { f32_angles, table, narrow });
                    }
                }
            }
        }
        all
    }
}

/// Everything that decides a rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Convention {
    /// the head that is read for each head
    pub heads: Vec<usize>,
    pub geometry: Geometry,
    pub law: Law,
    /// multiplies cosine and sine
    pub factor: f64,
    pub places: Places,
    /// the axis of each pair
    pub axes: Vec<u8>,
    pub arithmetic: Arithmetic,
}

/// How far a tensor is from a convention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// root of the mean square, in ulps of the pair's length
    pub rms: f64,
    /// the largest, in ulps of the pair's length
    pub worst: f64,
    /// the largest share of the rotation's own error bound
    pub share: f64,
}

impl Convention {
    /// Compares on these tokens.
    pub fn residual(&self, sample: &Sample, tokens: &[usize]) -> Residual {
        let dtype = sample.dtype;
        let rope = self.law.rope(self.geometry.rotary);
        let pairs = self.geometry.pairs();
        let rates: Vec<u64> = (0..pairs).map(|pair| rope.rate(pair)).collect();
        let frequencies: Vec<f32> = if self.arithmetic.f32_angles {
            (0..pairs).map(|pair| rope.compat_frequency(pair)).collect()
        } else {
            Vec::new()
        };
        let places: Vec<Vec<i64>> = sample.positions.iter().map(|axis| self.places.of(axis)).collect();
        let sign = if self.law.direction == Direction::Forward { 1.0 } else { -1.0 };
        let (mut square, mut worst, mut share, mut count) = (0.0, 0.0f64, 0.0f64, 0usize);
        let mut turns = vec![(0.0, 0.0); pairs];
        let mut vector = vec![0.0; sample.dim];
        let mut before = vector.clone();
        let rotated = self.geometry.offset..self.geometry.offset + self.geometry.rotary;
        let copied: Vec<usize> = (0..sample.dim).filter(|channel| !rotated.contains(channel)).collect();
        for &token in tokens {
            for (pair, turn) in turns.iter_mut().enumerate() {
                let at = places[usize::from(self.axes[pair])][token];
                let angle = if self.arithmetic.f32_angles {
                    f64::from(at as f32 * frequencies[pair])
                } else {
                    rates[pair].wrapping_mul(at as u64) as i64 as f64 * (TAU / 2f64.powi(64))
                };
                let (sin, cos) = angle.sin_cos();
                let table = |value: f64| match self.arithmetic.table {
                    Some(dtype) => rounded(dtype, value * self.factor),
                    None => value * self.factor,
                };
                *turn = (table(sin * sign), table(cos));
            }
            for head in 0..sample.heads {
                let (x, y) = (sample.x(token, self.heads[head]), sample.written(token, head));
                vector.copy_from_slice(x);
                for time in 0..self.law.times {
                    before.copy_from_slice(&vector);
                    for (pair, &(sin, cos)) in turns.iter().enumerate() {
                        let ((a, b), (c, d)) = (self.geometry.read(pair), self.geometry.written(pair));
                        let (a, b) = (before[a], before[b]);
                        let products = [a * cos, b * sin, a * sin, b * cos];
                        let [p, q, r, s] =
                            if self.arithmetic.narrow { products.map(|it| rounded(dtype, it)) } else { products };
                        let is_last = time + 1 == self.law.times;
                        let keep = |value: f64| if is_last { value } else { rounded(dtype, value) };
                        // In place, the second channel may have read what the first had become.
                        let r = if sample.overwritten { rounded(dtype, p - q) * sin } else { r };
                        (vector[c], vector[d]) = (keep(p - q), keep(r + s));
                    }
                }
                if self.arithmetic.narrow {
                    vector.iter_mut().for_each(|it| *it = rounded(dtype, *it));
                }
                let mut scale = 1.0;
                for pair in 0..pairs {
                    let (c, d) = self.geometry.written(pair);
                    let (a, b) = self.geometry.read(pair);
                    if let Some(decay) = &sample.decay {
                        scale = decay.at(sample.positions[0][token], pair);
                        (vector[c], vector[d]) = (vector[c] * scale, vector[d] * scale);
                    }
                    // The length as it was written, and a bound in it: what the crate promises of its own rotation.
                    let unit = ulp(dtype, (vector[c] * vector[c] + vector[d] * vector[d]).sqrt());
                    let inside = f64::from(self.law.times)
                        * self.factor
                        * scale
                        * (x[a].abs() + x[b].abs())
                        * (1e-7 + 2f64.powi(-22));
                    // The first channel's rounding is in the second once more.
                    let inside = if sample.overwritten { 2.0 * inside + ulp(dtype, vector[c]) } else { inside };
                    for channel in [c, d] {
                        let far = (y[channel] - vector[channel]).abs();
                        let bound = limit(dtype, vector[channel], inside, self.law.times);
                        square += (far / unit).powi(2);
                        worst = worst.max(far / unit);
                        share = share.max(far / bound);
                        count += 1;
                    }
                }
                // What is not rotated is copied.
                for &channel in &copied {
                    let far = (y[channel] - x[channel]).abs();
                    if far > 0.0 {
                        let unit = ulp(dtype, x[channel]);
                        square += (far / unit).powi(2);
                        worst = worst.max(far / unit);
                        share = f64::INFINITY;
                    }
                    count += 1;
                }
            }
        }
        Residual { rms: (square / count.max(1) as f64).sqrt(), worst, share }
    }

    /// How much is said: of two that fit alike the simpler one is named.
    pub fn complexity(&self) -> u32 {
        let mut cost = self.law.complexity();
        cost += 2 * u32::from(self.geometry.input != self.geometry.output);
        cost += 3 * (self.law.times - 1) + u32::from(self.law.direction == Direction::Inverse);
        // A factor that comes from a law has many digits.
        let of_law = FACTORS.iter().any(|it| yarn_mscale(*it, 1.0) == self.factor);
        cost += if self.factor == 1.0 {
            0
        } else if of_law {
            3
        } else {
            2 + digits(self.factor)
        };
        let is_one_axis = self.axes.iter().all(|axis| *axis == self.axes[0]);
        cost += if is_one_axis { u32::from(self.axes[0]) } else { axes_cost(&self.axes) };
        cost += match &self.places {
            Places::Same => 0,
            Places::Listed(_) => 40,
            _ => 3,
        };
        let Arithmetic { f32_angles, table, narrow } = self.arithmetic;
        cost + u32::from(f32_angles) + u32::from(table.is_some()) + u32::from(narrow)
    }

    /// The convention, one property a line: name and value.
    pub fn properties(&self, sample: &Sample) -> Vec<(&'static str, String)> {
        let Geometry { offset, rotary, input, output } = self.geometry;
        let pairing = |it| match it {
            Pairing::Half => "halves",
            Pairing::Interleaved => "interleaved",
        };
        let mut list = vec![
            (
                "pairing",
                if input == output {
                    pairing(input).to_string()
                } else {
                    format!("{} in, {} out", pairing(input), pairing(output))
                },
            ),
            ("channels", format!("{offset}..{} of {}", offset + rotary, sample.dim)),
            (
                "direction",
                if self.law.direction == Direction::Forward { "forward".into() } else { "inverse".to_string() },
            ),
            ("base", number(self.law.base)),
        ];
        if rotary == 2 {
            list.pop();
        }
        let scaling = match &self.law.name {
            Some(name) => name.clone(),
            None => scaling_words(&self.law.scaling, self.law.base, rotary),
        };
        list.push(("scaling", scaling));
        list.push(("factor on cos and sin", number(self.factor)));
        if self.law.times > 1 {
            list.push((
                "applied",
                match self.law.times {
                    2 => "rotated twice".to_string(),
                    times => format!("rotated {times} times"),
                },
            ));
        }
        list.push(("positions", self.places.words(&sample.positions[0]).unwrap_or_else(|| "as given".into())));
        if sample.positions.len() > 1 {
            list.push(("axes", axes_words(&self.axes)));
        }
        if sample.heads > 1 {
            list.push(("heads", super::heads::words(&self.heads).unwrap_or_else(|| "in order".into())));
        }
        let Arithmetic { f32_angles, table, narrow } = self.arithmetic;
        list.push(("angles", if f32_angles { "in f32, as transformers makes them" } else { "exact" }.into()));
        list.push(("table", table.map_or_else(|| "f32 or none".into(), |dtype| dtype.name().to_string())));
        if narrow {
            list.push(("products", format!("rounded to {} before they are added", sample.dtype.name())));
        }
        list
    }
}

/// The error allowed of a value: `inside` before it is rounded, so many times.
pub fn limit(dtype: Dtype, value: f64, inside: f64, times: u32) -> f64 {
    inside + ulp(dtype, value.abs() + inside) * 0.5 * f64::from(times) + 2f64.powi(-148)
}

/// Whether the channels beside the rotated ones are as they were.
pub fn copied_is_same(x: &[f64], y: &[f64], geometry: Geometry) -> bool {
    let rotated = geometry.offset..geometry.offset + geometry.rotary;
    (0..x.len()).filter(|channel| !rotated.contains(channel)).all(|channel| x[channel] == y[channel])
}

/// Significant decimal digits of a number.
pub fn digits(value: f64) -> u32 {
    let text = format!("{value:e}");
    text.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).count() as u32
}

/// A number as a person writes it.
pub fn number(value: f64) -> String {
    let short = format!("{value:.7e}").parse::<f64>().unwrap_or(value);
    if (short / value - 1.0).abs() < 1e-12 || value == 0.0 { format!("{short}") } else { format!("{value:.7}") }
}

pub fn scaling_words(scaling: &Scaling, base: f64, rotary: usize) -> String {
    match scaling {
        Scaling::None => match law::as_ntk(base, rotary) {
            Some((of, alpha)) => format!("none, or NTK with alpha {alpha} on base {of}"),
            None => "none".into(),
        },
        Scaling::Linear { factor } => format!("linear by {}", number(*factor)),
        Scaling::Proportional { rotated, .. } => format!("proportional: {rotated} pairs turn"),
        Scaling::Llama3 { factor, low, high, original_context } => {
            format!("Llama 3 by {} of {original_context}, low {low}, high {high}", number(*factor))
        }
        Scaling::Yarn(yarn) => {
            let mut text = format!("YaRN by {} of {}", number(yarn.factor), yarn.original_context);
            if (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0) {
                text += &format!(", betas {} and {}", yarn.beta_fast, yarn.beta_slow);
            }
            if !yarn.truncate {
                text += ", ramp not rounded";
            }
            if yarn.ramp != Ramp::Pairs {
                text += ", the paper's ramp";
            }
            text
        }
        Scaling::Divisors(list) => {
            let shown: Vec<_> = [0, list.len() / 2, list.len() - 1]
                .iter()
                .map(|&pair| format!("{:.5} at pair {pair}", list[pair]))
                .collect();
            format!("no known law; frequencies of base {} are divided by {}", number(base), shown.join(", "))
        }
        Scaling::LongRope { original_context, length, .. } => {
            let is_long = length.is_some_and(|length| length as f64 > *original_context);
            format!("LongRoPE by the config's {} list", if is_long { "long" } else { "short" })
        }
        other => format!("{other:?}"),
    }
}

/// Factors of YaRN that models have.
pub const FACTORS: [f64; 8] = [2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0, 128.0];

/// Axes in the order in which a form takes them, if that is not their own: `[2, 0, 1]` and the form of the axes put in order.
fn exchanged(axes: &[u8]) -> Option<(Vec<usize>, Axes)> {
    let count = usize::from(*axes.iter().max()?) + 1;
    if !(2..=4).contains(&count) {
        return None;
    }
    let mut order: Vec<usize> = Vec::new();
    for &axis in axes {
        if !order.contains(&usize::from(axis)) {
            order.push(usize::from(axis));
        }
    }
    let place = |axis: u8| order.iter().position(|it| *it == usize::from(axis)).unwrap_or(0) as u8;
    let sorted: Vec<u8> = axes.iter().map(|&axis| place(axis)).collect();
    let is_other = order.iter().enumerate().any(|(place, axis)| place != *axis);
    Some((order.clone(), axes_form(&sorted)?)).filter(|_| is_other && order.len() == count)
}

/// The form that deals pairs out to axes, if it is one with a name.
fn axes_form(axes: &[u8]) -> Option<Axes> {
    let pairs = axes.len();
    let count = usize::from(*axes.iter().max()?) + 1;
    let sizes: Vec<usize> = (0..count).map(|axis| axes.iter().filter(|it| usize::from(**it) == axis).count()).collect();
    let is = |form: &Axes| (0..pairs).all(|pair| form.axis(pair, pairs) == usize::from(axes[pair]));
    [Axes::Sections(sizes.clone()), Axes::Interleaved(sizes)].into_iter().find(is)
}

fn axes_cost(axes: &[u8]) -> u32 {
    if axes_form(axes).is_some() { 4 } else { 20 }
}

/// The axis of each pair, by the name of the crate's form.
fn axes_words(axes: &[u8]) -> String {
    if axes.iter().all(|axis| *axis == axes[0]) {
        return format!("every pair turns by axis {}, the others are dropped", axes[0]);
    }
    match axes_form(axes) {
        Some(Axes::Sections(sizes)) => return format!("sections of {sizes:?} pairs"),
        Some(Axes::Interleaved(sizes)) => return format!("interleaved, {sizes:?} pairs"),
        _ => {}
    }
    if let Some((order, form)) = exchanged(axes) {
        let (name, sizes) = match form {
            Axes::Interleaved(sizes) => ("interleaved", sizes),
            Axes::Sections(sizes) => ("sections", sizes),
            _ => ("pairs", Vec::new()),
        };
        let order: Vec<_> = order.iter().map(usize::to_string).collect();
        return format!("{name} of {sizes:?} pairs by the axes {}: axes are exchanged", order.join(", "));
    }
    let list: Vec<_> = axes.iter().map(u8::to_string).collect();
    format!("the axis of each pair is {}", list.join(" "))
}

/// The nearest number of a type.
pub fn rounded(dtype: Dtype, value: f64) -> f64 {
    match dtype {
        Dtype::Bf16 => f64::from(bf16::from_f32(value as f32)),
        Dtype::F16 => f64::from(f16::from_f32(value as f32)),
        Dtype::F32 => f64::from(value as f32),
        _ => value,
    }
}
