//! FIRE: a small network of the distance, normalised by the query's position.
//!
//! ```text
//! x(query, key) = ln(c * |query - key| + 1) / (ln(c * max(query, threshold) + 1) + eps)
//! bias(head, query, key) = out_bias[head] + sum over k of out_weight[head, k] * max(0, in_weight[k] * x + in_bias[k])
//! ```

use crate::memory::collected;
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Functional interpolation for relative position encoding. It depends on the query's position and not on the distance
/// alone, so that it has no Toeplitz row.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#fire).
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `c` | | stretches distances; 0.1 at the start of training |
/// | `threshold` | positions | queries before it are normalised as if they sat there; 512 at the start |
/// | `eps` | | keeps the normaliser above 0; 1e-6 |
/// | `in_weight`, `in_bias` | `[width]` | the first layer, 32 wide in the paper |
/// | `out_weight` | `[heads, width]` | the second layer, as `torch.nn.Linear` stores it |
/// | `out_bias` | `[heads]` | |
///
/// # Source
/// FIRE (arXiv 2310.04418), equation 4 and appendix. The authors' code takes the absolute distance, so that keys of the
/// future are as far as those of the past.
///
/// # Example
/// ```
/// use posenc::bias::Fire;
/// let fire = Fire { in_weight: vec![1.0], in_bias: vec![0.0], out_weight: vec![3.0], out_bias: vec![0.5], ..Fire::new() };
/// assert_eq!(fire.bias(0, 7, 7), 0.5);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Fire {
    /// stretches distances
    pub c: f64,
    /// the position from which a query is normalised by its own
    pub threshold: f64,
    /// keeps the normaliser above 0
    pub eps: f64,
    /// `[width]`
    pub in_weight: Vec<f64>,
    /// `[width]`
    pub in_bias: Vec<f64>,
    /// `[heads, width]`
    pub out_weight: Vec<f64>,
    /// `[heads]`
    pub out_bias: Vec<f64>,
}

impl Default for Fire {
    fn default() -> Self {
        Self::new()
    }
}

impl Fire {
    /// The paper's starting numbers, without a network.
    pub const fn new() -> Self {
        Self {
            c: 0.1,
            threshold: 512.0,
            eps: 1e-6,
            in_weight: Vec::new(),
            in_bias: Vec::new(),
            out_weight: Vec::new(),
            out_bias: Vec::new(),
        }
    }

    /// Heads of the network.
    pub fn heads(&self) -> usize {
        self.out_bias.len()
    }

    /// Refuses an empty network, layers that do not fit together, numbers that are not finite, and `c`, `threshold` or
    /// `eps` below or at 0 (`eps` may be 0).
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let (width, heads) = (self.in_weight.len(), self.heads());
        if width == 0 || heads == 0 || self.in_bias.len() != width || self.out_weight.len() != heads * width {
            return Err(Error::Value(format!(
                "FIRE's network has {width} inputs' weights and {} biases, {} outputs' weights and {heads} biases; \
                 they must be w, w, heads x w and heads, none of them 0",
                self.in_bias.len(),
                self.out_weight.len()
            )));
        }
        for (name, value, least) in
            [("c", self.c, f64::MIN_POSITIVE), ("threshold", self.threshold, f64::MIN_POSITIVE), ("eps", self.eps, 0.0)]
        {
            if !(value.is_finite() && value >= least) {
                return Err(Error::Value(format!("FIRE's {name} is {value}, it must be finite and positive")));
            }
        }
        for (name, values) in [
            ("in_weight", &self.in_weight),
            ("in_bias", &self.in_bias),
            ("out_weight", &self.out_weight),
            ("out_bias", &self.out_bias),
        ] {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::Value(format!("FIRE's {name} {index} is {}, it must be finite", values[index])));
            }
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

/// The largest position of a table.
const MOST_REACH: usize = 1 << 24;

/// A number for every position up to `reach`, rounded to f32.
pub(crate) fn by_position(reach: usize, number: impl Fn(f64) -> f64) -> Result<Vec<f32>> {
    if reach > MOST_REACH {
        return Err(Error::Value(format!("FIRE's reach is {reach}, its tables hold positions up to {MOST_REACH}")));
    }
    collected("positions", reach + 1, (0..=reach).map(|n| number(n as f64) as f32))
}

impl Fire {
    /// The normalised distance, 0 for the query's own position.
    pub fn input(&self, query: i64, key: i64) -> f64 {
        self.log(key.abs_diff(query) as f64) / self.norm(query)
    }

    /// `ln(c * distance + 1)`
    pub(crate) fn log(&self, distance: f64) -> f64 {
        (self.c * distance).ln_1p()
    }

    pub(crate) fn norm(&self, query: i64) -> f64 {
        self.log((query as f64).max(self.threshold)) + self.eps
    }

    /// The bias of `head` for a query and a key at these positions.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn bias(&self, head: usize, query: i64, key: i64) -> f64 {
        let x = self.input(query, key);
        let width = self.in_weight.len();
        let weights = &self.out_weight[head * width..(head + 1) * width];
        let hidden = self.in_weight.iter().zip(&self.in_bias).map(|(w, b)| (w * x + b).max(0.0));
        self.out_bias[head] + weights.iter().zip(hidden).map(|(w, h)| w * h).sum::<f64>()
    }

    /// `ln(c * n + 1)` for `n` up to `reach`: distances, and positions of queries, as a kernel looks them up.
    ///
    /// # Errors
    /// If `reach` is above 2^24.
    pub fn logs(&self, reach: usize) -> Result<Vec<f32>> {
        by_position(reach, |n| self.log(n))
    }

    /// The normaliser of the queries up to `threshold`.
    pub fn least_norm(&self) -> f32 {
        (self.log(self.threshold) + self.eps) as f32
    }

    /// Where the network's lines meet, ascending. Ramps that are flat do not bend; the others bend where their input is 0,
    /// and `x` is never below 0.
    pub(crate) fn breaks(&self) -> Vec<f64> {
        let bends = self.in_weight.iter().zip(&self.in_bias).map(|(w, b)| -b / w);
        let mut breaks: Vec<f64> = bends.filter(|x| x.is_finite() && *x > 0.0).collect();
        breaks.sort_by(f64::total_cmp);
        breaks.dedup();
        breaks
    }

    /// Whether ramp `k` is above 0 on a line between `breaks`: any point strictly inside the line tells.
    pub(crate) fn is_up(&self, breaks: &[f64], line: usize, k: usize) -> bool {
        let left = if line == 0 { 0.0 } else { breaks[line - 1] };
        let inside = breaks.get(line).map_or(2.0 * left + 1.0, |right| (left + right) / 2.0);
        self.in_weight[k] * inside + self.in_bias[k] > 0.0
    }

    /// The network as straight lines, which it is: a sum of ramps in the one number `x`.
    ///
    /// # Errors
    /// As [`Fire::check`].
    pub fn lines(&self) -> Result<FireLines> {
        self.check()?;
        let width = self.in_weight.len();
        let breaks = self.breaks();
        let (mut slopes, mut intercepts) = (Vec::new(), Vec::new());
        for head in 0..self.heads() {
            let weights = &self.out_weight[head * width..(head + 1) * width];
            for line in 0..=breaks.len() {
                let (mut slope, mut intercept) = (0.0, self.out_bias[head]);
                for (k, out) in weights.iter().enumerate().filter(|(k, _)| self.is_up(&breaks, line, *k)) {
                    slope += out * self.in_weight[k];
                    intercept += out * self.in_bias[k];
                }
                slopes.push(slope as f32);
                intercepts.push(intercept as f32);
            }
        }
        Ok(FireLines { breaks: breaks.iter().map(|&x| x as f32).collect(), slopes, intercepts })
    }

    /// The largest error of a bias that an f32 kernel computes from [`Fire::lines`], for the input `x`:
    /// `2^-24 * (16 * x * A + 2 * B)` with `A` and `B` the largest slope and intercept of the head's lines, in
    /// magnitude.
    ///
    /// `x` carries 5 roundings, and may so fall on the wrong side of a break, where two lines meet; slope, intercept,
    /// product and sum carry one each.
    ///
    /// # Errors
    /// As [`Fire::check`].
    pub fn error_bound(&self, head: usize, x: f64) -> Result<f64> {
        let lines = self.lines()?;
        let count = lines.breaks.len() + 1;
        let largest = |values: &[f32]| {
            values[head * count..(head + 1) * count].iter().fold(0.0, |most: f64, v| most.max(f64::from(v.abs())))
        };
        Ok(f32::ROUNDOFF * (16.0 * x * largest(&lines.slopes) + 2.0 * largest(&lines.intercepts)))
    }
}

/// FIRE's network as a kernel takes it: between two breaks of `x` each head is a straight line.
#[derive(Clone, Debug, PartialEq)]
pub struct FireLines {
    /// where the lines meet, ascending
    pub breaks: Vec<f32>,
    /// `[heads, breaks + 1]`
    pub slopes: Vec<f32>,
    /// `[heads, breaks + 1]`
    pub intercepts: Vec<f32>,
}
