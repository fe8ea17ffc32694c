//! Which channels are rotated, and which of them form a pair: recognised by the lengths of pairs, which a rotation keeps.

use num_complex::Complex64;
use posenc::Pairing;

use super::sample::Sample;

/// Rotated channels of a head and their pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub offset: usize,
    pub rotary: usize,
    pub input: Pairing,
    pub output: Pairing,
}

impl Geometry {
    pub const fn pairs(self) -> usize {
        self.rotary / 2
    }

    /// Channels of a pair as it is read.
    pub const fn read(self, pair: usize) -> (usize, usize) {
        let (a, b) = self.input.channels(pair, self.rotary);
        (self.offset + a, self.offset + b)
    }

    /// Channels of a pair as it is written.
    pub const fn written(self, pair: usize) -> (usize, usize) {
        let (a, b) = self.output.channels(pair, self.rotary);
        (self.offset + a, self.offset + b)
    }
}

/// Geometries that fit, the best first, each with the share of the vectors' energy that contradicts it.
pub fn candidates(sample: &Sample, heads: &[usize]) -> Vec<(Geometry, f64)> {
    let dim = sample.dim;
    let tokens = moved(sample, heads, 16);
    let every: Vec<usize> = (0..sample.heads).collect();
    let few = &every[..every.len().min(4)];
    let changed = |channel: usize| {
        sample
            .used
            .iter()
            .any(|&t| (0..sample.heads).any(|h| sample.y(t, h)[channel] != sample.x(t, heads[h])[channel]))
    };
    let first = (0..dim).find(|&channel| changed(channel)).unwrap_or(0);
    let last = (0..dim).rfind(|&channel| changed(channel)).unwrap_or(dim - 1);
    let mut found = Vec::new();
    for rotary in (2..=dim).step_by(2) {
        let mut offsets = vec![0, dim - rotary, first.min(dim - rotary), (first & !1).min(dim - rotary)];
        offsets.sort_unstable();
        offsets.dedup();
        // What lies outside has not changed.
        for offset in offsets.into_iter().filter(|&offset| offset <= first && last < offset + rotary) {
            for (input, output) in [
                (Pairing::Half, Pairing::Half),
                (Pairing::Interleaved, Pairing::Interleaved),
                (Pairing::Interleaved, Pairing::Half),
                (Pairing::Half, Pairing::Interleaved),
            ] {
                let geometry = Geometry { offset, rotary, input, output };
                found.push((geometry, contradiction(sample, heads, geometry, &tokens, few)));
            }
        }
    }
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found.truncate(48);
    let more = moved(sample, heads, 64);
    for (geometry, share) in &mut found {
        *share = contradiction(sample, heads, *geometry, &more, &every);
    }
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found
}

/// Tokens that were turned most evenly spread: position 0 shows nothing.
fn moved(sample: &Sample, heads: &[usize], count: usize) -> Vec<usize> {
    let is_moved = |&token: &usize| (0..sample.heads).any(|head| sample.y(token, head) != sample.x(token, heads[head]));
    let all: Vec<usize> = sample.used.iter().copied().filter(is_moved).collect();
    if all.len() <= count {
        return all;
    }
    (0..count).map(|i| all[i * (all.len() - 1) / (count - 1)]).collect()
}

/// How much the lengths of pairs change beyond one common factor, as a share of all lengths.
fn contradiction(sample: &Sample, heads: &[usize], geometry: Geometry, tokens: &[usize], of: &[usize]) -> f64 {
    let mut lengths = Vec::new();
    for &token in tokens {
        for &head in of {
            let (x, y) = (sample.x(token, heads[head]), sample.y(token, head));
            for pair in 0..geometry.pairs() {
                let ((a, b), (c, d)) = (geometry.read(pair), geometry.written(pair));
                lengths.push(((x[a] * x[a] + x[b] * x[b]).sqrt(), (y[c] * y[c] + y[d] * y[d]).sqrt()));
            }
        }
    }
    let (before, after) = lengths.iter().fold((0.0, 0.0), |(p, q), (x, y)| (p + x * x, q + y * y));
    let factor = if before > 0.0 { (after / before).sqrt() } else { 1.0 };
    let far: f64 = lengths.iter().map(|(x, y)| (y - factor * x).powi(2)).sum();
    (far / after.max(f64::MIN_POSITIVE)).sqrt()
}

/// What was measured of each pair of each token: the complex number that the pair was multiplied by.
#[derive(Clone, Debug)]
pub struct Measured {
    pub pairs: usize,
    /// `[tokens, pairs]`
    ratio: Vec<Complex64>,
    /// factor on the length, of all pairs together
    pub factor: f64,
    /// how far ratios are off, as an angle: by what heads disagree on, or by roundings
    pub noise: f64,
}

impl Measured {
    pub fn new(sample: &Sample, heads: &[usize], geometry: Geometry, rounding: f64) -> Self {
        let pairs = geometry.pairs();
        let mut ratio = vec![Complex64::new(0.0, 0.0); sample.tokens * pairs];
        let (mut before, mut after, mut left) = (0.0, 0.0, 0.0);
        for &token in &sample.used {
            for pair in 0..pairs {
                let ((a, b), (c, d)) = (geometry.read(pair), geometry.written(pair));
                let each = (0..sample.heads).map(|head| {
                    let (x, y) = (sample.x(token, heads[head]), sample.y(token, head));
                    (Complex64::new(x[a], x[b]), Complex64::new(y[c], y[d]))
                });
                let (mut product, mut length, mut length_after) = (Complex64::new(0.0, 0.0), 0.0, 0.0);
                for (x, y) in each {
                    product += y * x.conj();
                    length += x.norm_sqr();
                    length_after += y.norm_sqr();
                }
                before += length;
                after += length_after;
                if length > 0.0 {
                    let of = product / length;
                    ratio[token * pairs + pair] = of;
                    left += (length_after - of.norm_sqr() * length).max(0.0);
                }
            }
        }
        let noise = ((left / after.max(f64::MIN_POSITIVE)).sqrt()).max(rounding) / (sample.heads as f64).sqrt();
        Self { pairs, ratio, factor: (after / before.max(f64::MIN_POSITIVE)).sqrt(), noise }
    }

    /// The ratio of a pair, of length 1; 0 where nothing was measured.
    pub fn unit(&self, token: usize, pair: usize) -> Complex64 {
        let ratio = self.ratio[token * self.pairs + pair];
        let length = ratio.norm();
        if length > 0.0 { ratio / length } else { ratio }
    }
}
