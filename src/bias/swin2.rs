//! Swin v2's continuous position bias: a small network of log-spaced coordinates writes the table of a window.
//!
//! ```text
//! c(d) = sign(d) * log2(1 + 8 * |d| / (size - 1)) / log2(8)        d = query - key on one axis
//! z[entry, head] = b2[head] + sum over k of w2[head, k] * max(0, w1[k, 0] * c(dy) + w1[k, 1] * c(dx) + b1[k])
//! table[entry, head] = limit * sigmoid(z[entry, head])
//! ```

#[cfg(feature = "cuda")]
mod plan;

use std::fmt;

#[cfg(feature = "cuda")]
pub use plan::{Swin2GradOut, Swin2Plan};

use crate::bias::Window;
use crate::memory::{Host, Memory, collected, reserved};
use crate::shape::product;
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Coordinates that the network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum LogCoordinates {
    /// `sign(d) * log2(1 + 8 * |d| / (size - 1)) / log2(8)`; `size` is that of the pretraining window, rows and columns, where
    /// there is one, else the window's own
    Relative {
        /// rows and columns of the pretraining window
        pretrained: Option<[usize; 2]>,
    },
    /// `sign(d) * ln(1 + |d|)`: timm's Swin v2 CR and MaxViT RW
    Absolute,
}

/// Swin v2's continuous relative position bias: what to compute, without weights or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#swin2).
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `window` | tokens | rows and columns |
/// | `coordinates` | | which logarithm |
/// | `hidden` | | width of the hidden layer, 512 in Swin v2 |
/// | `heads` | | outputs of the network |
/// | `limit` | logits | `table = limit * sigmoid(z)`, 16 in Swin v2; `None`: `table = z` |
///
/// The table is [`Window::swin`]'s: a [`Term::table`](crate::bias::Term::table) with
/// [`Numbers::table`](crate::bias::Numbers::table) reads it.
///
/// # Source
/// Swin Transformer V2 (arXiv 2111.09883), section 3.3, equation 4 and the authors' code. timm 1.0.31 (`WindowAttention`,
/// `RelPosMlp`) and Hugging Face (`Swinv2SelfAttention`) divide both axes by the pretraining window where one is given.
///
/// # Example
/// ```
/// use posenc::bias::{HostSwin2Weights, Swin2Bias};
/// // One hidden unit, which is the distance of columns to the right.
/// let bias = Swin2Bias::new([2, 2], 1, 1);
/// let weights = HostSwin2Weights { w1: &[0.0f32, 1.0], b1: &[0.0], w2: &[f32::ln(3.0)], b2: None };
/// let table = bias.table(&weights)?;
/// assert_eq!(table.len(), 9);
/// assert_eq!(table[0], 8.0);
/// // c(1) = log2(9) / 3
/// assert!((table[5] - 16.0 / (1.0 + 3f64.powf(-9f64.log2() / 3.0))).abs() < 1e-6);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Swin2Bias {
    /// rows and columns
    pub window: [usize; 2],
    /// which logarithm
    pub coordinates: LogCoordinates,
    /// width of the hidden layer
    pub hidden: usize,
    /// outputs of the network
    pub heads: usize,
    /// the largest bias
    pub limit: Option<f32>,
}

/// Weights of the network of a [`Swin2Bias`], on the CPU ([`Host`]) or on the device ([`Device`](crate::Device)), as
/// `torch.nn.Linear` stores them.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `w1` | `[hidden, 2]` | of the coordinates of rows and columns |
/// | `b1` | `[hidden]` | |
/// | `w2` | `[heads, hidden]` | |
/// | `b2` | `[heads]` | absent in Swin v2 |
pub struct Swin2Weights<'a, T: 'a, M: Memory = Host> {
    /// `[hidden, 2]`
    pub w1: M::Slice<'a, T>,
    /// `[hidden]`
    pub b1: M::Slice<'a, T>,
    /// `[heads, hidden]`
    pub w2: M::Slice<'a, T>,
    /// `[heads]`
    pub b2: Option<M::Slice<'a, T>>,
}

/// [`Swin2Weights`] on the CPU.
pub type HostSwin2Weights<'a, T> = Swin2Weights<'a, T, Host>;
/// [`Swin2Weights`] on the device.
#[cfg(feature = "cuda")]
pub type DeviceSwin2Weights<'a, T> = Swin2Weights<'a, T, crate::memory::Device>;

impl<T, M: Memory> Clone for Swin2Weights<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, M: Memory> Copy for Swin2Weights<'_, T, M> {}

impl<T, M: Memory> fmt::Debug for Swin2Weights<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Swin2Weights");
        debug.field("w1", &M::len(self.w1)).field("b1", &M::len(self.b1)).field("w2", &M::len(self.w2));
        debug.field("b2", &self.b2.map(M::len)).finish()
    }
}

impl Swin2Bias {
    /// Swin v2 trained in its own window, with its limit of 16.
    pub const fn new(window: [usize; 2], hidden: usize, heads: usize) -> Self {
        Self { window, coordinates: LogCoordinates::Relative { pretrained: None }, hidden, heads, limit: Some(16.0) }
    }

    /// Swin v2 trained in another window.
    #[must_use]
    pub const fn pretrained(self, window: [usize; 2]) -> Self {
        Self { coordinates: LogCoordinates::Relative { pretrained: Some(window) }, ..self }
    }

    /// The window whose table is written.
    pub const fn entries_of(&self) -> Window {
        Window::swin(self.window[0], self.window[1])
    }

    /// Rows of the table, `(2 * rows - 1) * (2 * columns - 1)`.
    pub fn entries(&self) -> usize {
        self.entries_of().entries()
    }

    /// Rows and columns whose size less 1 divides distances; `None`: nothing divides them.
    const fn divisors(&self) -> Option<[usize; 2]> {
        match self.coordinates {
            LogCoordinates::Relative { pretrained: Some(size) } => Some(size),
            LogCoordinates::Relative { pretrained: None } => Some(self.window),
            LogCoordinates::Absolute => None,
        }
    }

    /// Refuses a window of 0 tokens, sizes below 2 that divide distances (0 / 0 in the original), layers of width 0, tables and
    /// layers beyond 2^30 numbers, and a limit that is not finite and above 0.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        self.entries_of().check()?;
        if let Some([rows, columns]) = self.divisors()
            && (rows < 2 || columns < 2)
        {
            return Err(Error::Value(format!(
                "distances are divided by the size less 1 of a window of {rows} x {columns} tokens, both must be at least 2"
            )));
        }
        let (entries, most) = (self.entries(), 1usize << 30);
        let within = |a: usize, b: usize| a.checked_mul(b).is_some_and(|n| (1..=most).contains(&n));
        if !within(entries, self.heads) || !within(self.hidden, self.heads) || !within(self.hidden, 2) {
            return Err(Error::Value(format!(
                "a network of {} hidden units and {} heads for {entries} entries: all must be at least 1, and each table within 2^30",
                self.hidden, self.heads
            )));
        }
        match self.limit {
            Some(limit) if !(limit.is_finite() && limit > 0.0) => {
                Err(Error::Value(format!("limit is {limit}, it must be finite and above 0")))
            }
            _ => Ok(()),
        }
    }

    /// Elements of `w1`, `b1`, `w2` and `b2`.
    pub(super) const fn sizes(&self) -> [usize; 4] {
        [2 * self.hidden, self.hidden, self.heads * self.hidden, self.heads]
    }

    fn check_weights<T>(&self, weights: &Swin2Weights<T>) -> Result<()> {
        self.check()?;
        let there = [weights.w1.len(), weights.b1.len(), weights.w2.len(), weights.b2.map_or(self.heads, <[T]>::len)];
        for ((name, need), got) in ["w1", "b1", "w2", "b2"].into_iter().zip(self.sizes()).zip(there) {
            if got != need {
                return Err(Error::Value(format!("{name} has {got} elements, the network has {need}")));
            }
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

/// Swin v2's factor of cosine attention, `exp(min(logit_scale, ln 100))`: multiplies the cosines of queries and keys of one
/// head, as an element of [`Inputs::scales`](crate::attend::Inputs). 100 at the most; a NaN stays one.
///
/// ```
/// assert_eq!(posenc::bias::swin2_logit_scale(10f32.ln()), 10.0);
/// assert_eq!(posenc::bias::swin2_logit_scale(5.0), 100.0);
/// ```
pub fn swin2_logit_scale(logit_scale: f32) -> f32 {
    let scale = f64::from(logit_scale);
    if scale >= 100f64.ln() { 100.0 } else { scale.exp() as f32 }
}

/// Coordinates of both axes, row after row.
pub(super) fn pairs<'a>(rows: &'a [f64], columns: &'a [f64]) -> impl Iterator<Item = [f64; 2]> + 'a {
    rows.iter().flat_map(move |&y| columns.iter().map(move |&x| [y, x]))
}

impl Swin2Bias {
    /// The coordinate of a distance `query - key` on an axis, 0 for rows and 1 for columns.
    ///
    /// # Panics
    /// If there is no such axis.
    pub fn coordinate(&self, axis: usize, distance: i64) -> f64 {
        let (size, sign) = (distance.unsigned_abs() as f64, distance.signum() as f64);
        match self.divisors() {
            Some(sizes) => sign * (8.0 * size / (sizes[axis] as f64 - 1.0)).ln_1p() / 8f64.ln(),
            None => sign * size.ln_1p(),
        }
    }

    /// The coordinates of every entry of the table, `[entries, 2]`.
    ///
    /// # Errors
    /// If the spec is refused, or the host lacks the memory.
    pub fn coordinates(&self) -> Result<Vec<[f64; 2]>> {
        let [rows, columns] = self.axes()?;
        collected("entries with coordinates", self.entries(), pairs(&rows, &columns))
    }

    /// The coordinates along rows and along columns.
    pub(super) fn axes(&self) -> Result<[Vec<f64>; 2]> {
        self.check()?;
        let along = |axis: usize| {
            let reach = self.window[axis] as i64 - 1;
            let coordinates = (-reach..=reach).map(|distance| self.coordinate(axis, distance));
            collected("coordinates", 2 * self.window[axis] - 1, coordinates)
        };
        Ok([along(0)?, along(1)?])
    }

    /// What the limit makes of an output of the network.
    pub fn limited(&self, z: f64) -> f64 {
        self.limit.map_or(z, |limit| f64::from(limit) / (1.0 + (-z).exp()))
    }

    /// The derivative of [`Swin2Bias::limited`].
    pub fn slope(&self, z: f64) -> f64 {
        self.limit.map_or(1.0, |limit| {
            let e = (-z.abs()).exp();
            f64::from(limit) * e / ((1.0 + e) * (1.0 + e))
        })
    }

    /// The largest error of an entry that an f32 kernel computes:
    ///
    /// ```text
    /// dz = (hidden / 32 + 12) * 2^-24 * (|b2| + sum over k of |w2[k]| * (|w1[k, 0] * cy| + |w1[k, 1] * cx| + |b1[k]|))
    /// min(limit / 4 * dz, table * (exp(dz) - 1)) + 6 * 2^-24 * table            without a limit: dz
    /// ```
    ///
    /// `magnitude` is the sum in `dz`. Coordinates and each hidden unit carry 3 roundings, the sum one for each 32 units and
    /// 6 more; the exponential 2, and 4 behind it. `hidden * 2^-149` is added to `dz`.
    pub fn error_bound(&self, z: f64, magnitude: f64) -> f64 {
        let dz = self.network_error(magnitude);
        let Some(limit) = self.limit.map(f64::from) else { return dz };
        let value = self.limited(z);
        (limit / 4.0 * dz).min(value * dz.exp_m1()) + 6.0 * f32::ROUNDOFF * value + f64::exp2(-120.0)
    }

    fn network_error(&self, magnitude: f64) -> f64 {
        (self.hidden.div_ceil(32) as f64 + 12.0) * f32::ROUNDOFF * magnitude + 2.0 * self.hidden as f64 * f32::TINY
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// A table, and the error allowed at each number.
#[derive(Clone, Debug)]
pub struct Swin2Table {
    /// `[entries, heads]`
    pub want: Vec<f64>,
    /// `[entries, heads]`
    pub bound: Vec<f64>,
}

/// The gradients of [`Swin2Weights`], each of its field's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Swin2Grad {
    /// `[hidden, 2]`
    pub w1: Vec<f64>,
    /// `[hidden]`
    pub b1: Vec<f64>,
    /// `[heads, hidden]`
    pub w2: Vec<f64>,
    /// `[heads]`
    pub b2: Vec<f64>,
}

impl Swin2Grad {
    fn zeros(of: &Swin2Bias) -> Self {
        let [w1, b1, w2, b2] = of.sizes().map(|size| vec![0.0; size]);
        Self { w1, b1, w2, b2 }
    }
}

/// The network at one entry.
struct At {
    coordinates: [f64; 2],
    /// inputs of the hidden layer, and the sums of the sizes of their terms
    pre: Vec<[f64; 2]>,
}

impl Swin2Bias {
    /// The network's hidden layer at an entry.
    fn at<T: Scalar>(&self, weights: &Swin2Weights<T>, coordinates: [f64; 2]) -> At {
        let pre = |(k, bias): (usize, &T)| {
            let terms = [0, 1].map(|axis| weights.w1[2 * k + axis].to_f64() * coordinates[axis]);
            let bias = bias.to_f64();
            [terms[0] + terms[1] + bias, terms[0].abs() + terms[1].abs() + bias.abs()]
        };
        At { coordinates, pre: weights.b1.iter().enumerate().map(pre).collect() }
    }

    /// An output of the network, and the sum of the sizes of its terms.
    fn output<T: Scalar>(&self, weights: &Swin2Weights<T>, at: &At, head: usize) -> [f64; 2] {
        let bias = weights.b2.map_or(0.0, |b2| b2[head].to_f64());
        let w2 = &weights.w2[head * self.hidden..(head + 1) * self.hidden];
        at.pre.iter().zip(w2).fold([bias, bias.abs()], |[sum, sizes], ([pre, size], w2)| {
            [sum + w2.to_f64() * pre.max(0.0), sizes + w2.to_f64().abs() * size]
        })
    }

    /// The table `[entries, heads]` in f64.
    ///
    /// # Errors
    /// If the spec is refused or a weight has another size.
    pub fn table<T: Scalar>(&self, weights: &Swin2Weights<T>) -> Result<Vec<f64>> {
        Ok(self.expect(weights)?.want)
    }

    /// [`Swin2Bias::table`], and the error allowed at each number that a kernel writes.
    ///
    /// # Errors
    /// As [`Swin2Bias::table`].
    pub fn expect<T: Scalar>(&self, weights: &Swin2Weights<T>) -> Result<Swin2Table> {
        self.check_weights(weights)?;
        let ([rows, columns], numbers) = (self.axes()?, self.entries() * self.heads);
        let room = || reserved("numbers of a table", numbers);
        let mut table = Swin2Table { want: room()?, bound: room()? };
        for coordinates in pairs(&rows, &columns) {
            let at = self.at(weights, coordinates);
            for head in 0..self.heads {
                let [z, magnitude] = self.output(weights, &at, head);
                table.want.push(self.limited(z));
                table.bound.push(self.error_bound(z, magnitude));
            }
        }
        Ok(table)
    }

    /// The gradients of the weights in f64, from the gradient of the table, `[entries, heads]`: of each entry
    /// the sum of the gradients of all pairs that read it.
    ///
    /// # Errors
    /// As [`Swin2Bias::table`]; if `table_grad` has another size.
    pub fn grad<T: Scalar>(&self, weights: &Swin2Weights<T>, table_grad: &[f32]) -> Result<Swin2Grad> {
        Ok(self.expect_grad(weights, table_grad)?.0)
    }

    /// [`Swin2Bias::grad`], and the error allowed at each number that a kernel writes: of the sum of the sizes of its terms
    ///
    /// ```text
    /// (entries / 16 + heads + 40) * 2^-24 + exp(dz) - 1            dz of Swin2Bias::error_bound
    /// ```
    ///
    /// where `w1 * c + b1` counts as `|w1[0] * cy| + |w1[1] * cx| + |b1|`. A hidden unit whose input lies within its roundings
    /// of 0 may count or not: the bounds of `w1` and `b1` hold the term once more.
    ///
    /// # Errors
    /// As [`Swin2Bias::grad`].
    pub fn expect_grad<T: Scalar>(
        &self,
        weights: &Swin2Weights<T>,
        table_grad: &[f32],
    ) -> Result<(Swin2Grad, Swin2Grad)> {
        self.check_weights(weights)?;
        let need = product("entries x heads", &[self.entries(), self.heads])?;
        if table_grad.len() != need {
            return Err(Error::Value(format!("table_grad has {} elements, the table has {need}", table_grad.len())));
        }
        let (mut sums, mut bounds) = (Swin2Grad::zeros(self), Swin2Grad::zeros(self));
        let [rows, columns] = self.axes()?;
        for (coordinates, grad) in pairs(&rows, &columns).zip(table_grad.chunks(self.heads)) {
            let at = self.at(weights, coordinates);
            let outputs: Vec<[f64; 2]> = (0..self.heads)
                .map(|head| {
                    let [z, magnitude] = self.output(weights, &at, head);
                    let own = f64::from(grad[head]) * self.slope(z);
                    [own, self.network_error(if self.limit.is_some() { magnitude } else { 0.0 }).exp_m1()]
                })
                .collect();
            self.add_grad(weights, &at, &outputs, (&mut sums, &mut bounds));
        }
        Ok((sums, bounds))
    }

    /// Adds an entry to sums and bounds; `outputs` are the gradients of the network's outputs with their relative errors.
    fn add_grad<T: Scalar>(
        &self,
        weights: &Swin2Weights<T>,
        at: &At,
        outputs: &[[f64; 2]],
        (sums, bounds): (&mut Swin2Grad, &mut Swin2Grad),
    ) {
        let eps = f32::ROUNDOFF;
        let rounding = (self.entries().div_ceil(16) as f64 + self.heads as f64 + 40.0) * eps;
        // Products below 2^-126 are rounded to multiples of 2^-149.
        let least = f64::exp2(-140.0);
        for (head, [grad, error]) in outputs.iter().enumerate() {
            sums.b2[head] += grad;
            bounds.b2[head] += grad.abs() * (rounding + error) + least;
        }
        for (k, [pre, size]) in at.pre.iter().enumerate() {
            let (mut back, mut back_size, mut back_error) = (0.0, 0.0, 0.0);
            for (head, [grad, error]) in outputs.iter().enumerate() {
                let index = head * self.hidden + k;
                let w2 = weights.w2[index].to_f64();
                sums.w2[index] += grad * pre.max(0.0);
                bounds.w2[index] += grad.abs() * size * (rounding + error) + least;
                back += grad * w2;
                back_size += (grad * w2).abs();
                back_error += (grad * w2).abs() * error;
            }
            let up = *pre > 0.0;
            let near = pre.abs() <= 4.0 * eps * size;
            let error = if up { back_error + rounding * back_size } else { 0.0 } + if near { back_size } else { 0.0 };
            let back = if up { back } else { 0.0 };
            sums.b1[k] += back;
            bounds.b1[k] += error + least;
            for axis in 0..2 {
                sums.w1[2 * k + axis] += back * at.coordinates[axis];
                bounds.w1[2 * k + axis] += error * at.coordinates[axis].abs() + least;
            }
        }
    }
}
