//! Frequencies for each axis and head, where a pair turns by a sum over axes, and the gradients of angles.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::RopeGradPlan;

use crate::accuracy::Expected;
use crate::double::Double;
use crate::memory::zeros;
use crate::position::Positions;
use crate::rotate::{Angles, Rope};
use crate::shape::{Shape, product};
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Frequencies of [`Angles::Mixed`]: `angle = sum over axes of position[axis] * frequency[axis, head, pair]`.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `axes` | | axes of a token's position |
/// | `heads` | | sets of frequencies. A tensor's heads share them equally: of 8 query and 2 key heads with 2 sets, queries 0 to 3 and key 0 have the first. 1: all heads have the same |
/// | `frequencies` | `[axes, heads, pairs]` | radians per position, learned or given |
///
/// The phase is a wrapping sum of wrapping products, off by `|position| * 2^-65` turns for each axis.
///
/// # Source
/// RoPE-Mixed: Heo et al. 2024 (arXiv 2403.13298), equation 14; timm 1.0.31, `RotaryEmbeddingMixed`. Mochi 1: diffusers 0.42.1,
/// `MochiRoPE`.
///
/// # Example
/// ```
/// use posenc::rotate::{Angles, Mixed};
/// use posenc::{Direction, Heads, Rope};
///
/// // Two axes, two heads, one pair: the second head turns by twice the second position.
/// let mixed = Mixed { axes: 2, heads: 2, frequencies: vec![1.0, 0.0, 0.0, 2.0] };
/// let rope = Rope { angles: Angles::Mixed(mixed), ..Rope::new(2, 1.0) };
/// let mut x = [1.0f32, 0.0, 1.0, 0.0];
/// let positions = [3, 5];
/// rope.rotate(&mut x, &Heads::thd(1, 2, 2), &positions, Direction::Forward)?;
/// assert_eq!(x, [3f64.cos(), 3f64.sin(), 10f64.cos(), 10f64.sin()].map(|x| x as f32));
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mixed {
    /// axes of a token's position
    pub axes: usize,
    /// sets of frequencies
    pub heads: usize,
    /// radians per position, `[axes, heads, pairs]`
    pub frequencies: Vec<f64>,
}

/// Frequencies in turns are exact below it; `mixed_rates` of `kernels/rotate/fixed.cu` has the same limit.
const MOST_FREQUENCY: f64 = (1u64 << 40) as f64;

impl Mixed {
    pub(super) fn check(&self, pairs: usize) -> Result<()> {
        let Self { axes, heads, frequencies } = self;
        if !(1..=256).contains(axes) {
            return Err(Error::Value(format!("mixed angles have {axes} axes, 1 to 256 are possible")));
        }
        let need = product("axes x heads x pairs", &[*axes, *heads, pairs])?;
        if *heads == 0 || frequencies.len() != need {
            return Err(Error::Value(format!(
                "mixed angles have {} frequencies, {axes} axes of {heads} heads with {pairs} pairs need {need}",
                frequencies.len()
            )));
        }
        match frequencies.iter().position(|frequency| frequency.abs() >= MOST_FREQUENCY || frequency.is_nan()) {
            Some(at) => Err(Error::Value(format!(
                "the mixed frequencies hold {} at {at}, they must be below 2^40 in magnitude",
                frequencies[at]
            ))),
            None => Ok(()),
        }
    }

    /// Turns per unit of the position in units of 2^-64.
    pub(super) fn rate(&self, axis: usize, set: usize, pair: usize, pairs: usize, unit: f64) -> u64 {
        Double::from(self.frequencies[(axis * self.heads + set) * pairs + pair]).scaled(unit).rate()
    }

    /// All of them, `[axes, heads, pairs]`.
    pub(super) fn rates(&self, pairs: usize, unit: impl Fn(usize) -> f64) -> Vec<u64> {
        let of = |(axis, row): (usize, &[f64])| {
            let unit = unit(axis);
            row.iter().map(move |&frequency| Double::from(frequency).scaled(unit).rate()).collect::<Vec<_>>()
        };
        self.frequencies.chunks_exact(self.heads * pairs).enumerate().flat_map(of).collect()
    }
}

// ----------------------------------------------------------------------------------------------------------- gradients

/// Tokens of a block's partial sum: shapes alone decide, so that every device adds in the same order.
fn chunk(rows: usize) -> usize {
    rows.div_ceil(512).next_multiple_of(ROWS).max(64)
}

/// Tokens that a block of the frequencies' gradient takes side by side: `ROWS` in `kernels/rotate/rope_grad.cu`.
const ROWS: usize = 8;

/// A tensor of queries or keys with its gradient, both before a rotation or both after it. `X` is a slice and its shape on the CPU,
/// a view on the device.
#[derive(Clone, Copy, Debug)]
pub struct RopeGrad<X> {
    /// elements
    pub x: X,
    /// the gradient of each element
    pub grad: X,
}

impl Rope {
    /// Radians per position of `pair` in one set of heads on each axis, 0 on those that do not turn it.
    fn frequencies(&self) -> Vec<f64> {
        if let Angles::Mixed(mixed) = &self.angles {
            return mixed.frequencies.clone();
        }
        let of = |axis, pair| match self.axes.axis(pair, self.pairs()) == axis {
            true if self.angles == Angles::Exact => self.frequency(pair),
            true => f64::from(self.compat_frequency(pair)) / self.unit(axis),
            false => 0.0,
        };
        (0..self.axes.count()).flat_map(|axis| (0..self.pairs()).map(move |pair| of(axis, pair))).collect()
    }

    /// Refuses a spec that the gradients of angles are not made for.
    fn check_angles(&self) -> Result<()> {
        self.check()?;
        match self.axes.blocks() {
            1 => Ok(()),
            blocks => {
                Err(Error::Value(format!("gradients of angles know no blocks of channels, the axes have {blocks}")))
            }
        }
    }

    /// Hands every pair of every head to `each` with its row, its set of frequencies and `[a, b, da, db]`.
    fn each_angle<T: Scalar>(
        &self,
        tensors: &[RopeGrad<(&[T], Heads)>],
        mut each: impl FnMut(usize, usize, usize, [f64; 4]),
    ) -> Result<()> {
        self.check_angles()?;
        for RopeGrad { x: (x, heads), grad: (grad, grad_heads) } in tensors {
            self.check_fits(heads.dim)?;
            self.check_sets("x", heads.heads)?;
            heads.check("x", x.len())?;
            grad_heads.check("grad", grad.len())?;
            heads.check_same("x", grad_heads, "grad")?;
            let sharing = heads.heads / self.sets();
            for batch in 0..if heads.is_empty() { 0 } else { heads.batch } {
                for token in 0..heads.tokens {
                    for head in 0..heads.heads {
                        for pair in 0..self.pairs() {
                            let (a, b) = self.channels(self.pairing, pair);
                            let [a, b] = [a, b].map(|channel| {
                                let channel = self.first_channel(heads.dim) + channel;
                                let at = heads.index(batch, token, head, channel);
                                (x[at].to_f64(), grad[grad_heads.index(batch, token, head, channel)].to_f64())
                            });
                            each(batch * heads.tokens + token, head / sharing, pair, [a.0, b.0, a.1, b.1]);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The gradient of frequencies, `[axes, heads, pairs]` ([`Mixed`]; one set of heads for other angles), per radian per position:
    /// the sum over tokens and the heads of a set of `position * (a db - b da)`, with the device's error bound.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `tensors` | `[batch, tokens, heads, dim]` each | queries, and keys if they have the same frequencies, with their gradients: before the rotation, or after it where `pairing_out` is `None` |
    /// | `positions` | `[axes, batch, tokens]` | as in [`Rope::rotate`] |
    ///
    /// # Accuracy
    /// `bound`: `(heads of a set + tokens of a thread + blocks + 16) * 2^-24` of the sum of magnitudes, as
    /// [`RopeGradPlan::frequencies`](crate::rotate::RopeGradPlan::frequencies) adds in f32; `want` itself is in f64.
    ///
    /// # Errors
    /// As [`Rope::rotate`], and if a gradient has other sizes than its tensor, or the axes are blocks of channels.
    pub fn frequency_grad<'a, T: Scalar>(
        &self,
        tensors: &[RopeGrad<(&[T], Heads)>],
        positions: impl Into<Positions<&'a [i64]>>,
    ) -> Result<Expected> {
        let (positions, rows) = self.grad_positions(tensors, positions.into())?;
        let (axes, sets, pairs) = (self.position_axes(), self.sets(), self.pairs());
        let n = axes * sets * pairs;
        let (mut want, mut bound) = (zeros("gradients", n)?, zeros("gradients", n)?);
        self.each_angle(tensors, |row, set, pair, [a, b, da, db]| {
            for axis in 0..axes {
                let at = (axis * sets + set) * pairs + pair;
                let position = positions[axis * rows + row] as f64 * self.unit(axis);
                want[at] += position * (a * db - b * da);
                bound[at] += position.abs() * ((a * db).abs() + (b * da).abs());
            }
        })?;
        let sharing: usize = tensors.iter().map(|tensor| tensor.x.1.heads / sets).sum();
        let chunk = chunk(rows);
        let chain = sharing + chunk / ROWS + rows.div_ceil(chunk) + ROWS + 8;
        bound.iter_mut().for_each(|bound| *bound = *bound * chain as f64 * f32::ROUNDOFF + f32::TINY);
        Ok(Expected { want, bound })
    }

    /// The gradient of positions, `[axes, batch, tokens]`, per whole position: the sum over heads and pairs of
    /// `frequency * (a db - b da)`, with the device's error bound. Arguments as for [`Rope::frequency_grad`].
    ///
    /// # Accuracy
    /// `bound`: `(pairs of a thread + 16) * 2^-24` of the sum of magnitudes, as
    /// [`RopeGradPlan::positions`](crate::rotate::RopeGradPlan::positions) adds in f32; `want` itself is in f64.
    ///
    /// # Errors
    /// As [`Rope::frequency_grad`].
    pub fn position_grad<T: Scalar>(&self, tensors: &[RopeGrad<(&[T], Heads)>]) -> Result<Expected> {
        let rows = tensors.first().map_or(0, |tensor| tensor.x.1.batch * tensor.x.1.tokens);
        let (axes, sets, pairs) = (self.position_axes(), self.sets(), self.pairs());
        let frequencies = self.frequencies();
        let (mut want, mut bound) = (zeros("gradients", axes * rows)?, zeros("gradients", axes * rows)?);
        self.each_angle(tensors, |row, set, pair, [a, b, da, db]| {
            for axis in 0..axes {
                let frequency = frequencies[(axis * sets + set) * pairs + pair];
                want[axis * rows + row] += frequency * (a * db - b * da);
                bound[axis * rows + row] += frequency.abs() * ((a * db).abs() + (b * da).abs());
            }
        })?;
        let wide = 16 / size_of::<T>();
        let steps = |heads: usize| (heads * pairs.div_ceil(wide)).div_ceil(32);
        let chain = tensors.iter().map(|tensor| wide * steps(tensor.x.1.heads)).sum::<usize>() + 16;
        bound.iter_mut().for_each(|bound| *bound = *bound * chain as f64 * f32::ROUNDOFF + f32::TINY);
        Ok(Expected { want, bound })
    }

    /// Positions of all rows, and how many rows there are.
    fn grad_positions<T>(
        &self,
        tensors: &[RopeGrad<(&[T], Heads)>],
        positions: Positions<&[i64]>,
    ) -> Result<(Vec<i64>, usize)> {
        let Some(RopeGrad { x: (_, first), .. }) = tensors.first() else { return Ok((Vec::new(), 0)) };
        for RopeGrad { x: (_, heads), .. } in tensors {
            if (heads.batch, heads.tokens) != (first.batch, first.tokens) {
                return Err(Error::Value(format!(
                    "a tensor has {} sequences of {} tokens and another {} of {}, they must be equal",
                    first.batch, first.tokens, heads.batch, heads.tokens
                )));
            }
        }
        self.check()?;
        let positions = positions.resolve(self.position_axes(), first.batch, first.tokens)?;
        Ok((positions.into_owned(), first.batch * first.tokens))
    }
}
