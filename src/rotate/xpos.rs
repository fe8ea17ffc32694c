//! xPos: RoPE whose pairs also shrink with distance.

use crate::accuracy::{Expected, rounded};
use crate::double::Double;
use crate::rotate::{Angles, Direction, Rope};
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// RoPE, and a factor `zeta_i^((p - center) / scale_base)` on queries and its inverse on keys.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#xpos).
///
/// The product of a query at `m` and a key at `n` has `zeta_i^((m - n) / scale_base)`: since `zeta_i < 1`, a key decays the
/// further it lies before its query, fast pairs first. `center` falls out of that product; it keeps the factors near 1 where
/// it lies near the positions. [`XPos::reach`] is the distance from it up to which every factor is between 2^-120 and 2^120:
/// beyond, the CPU refuses a position and a kernel writes NaN, because the product of a factor that has vanished and one that
/// has overflowed is no score.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `rope` | | the rotation |
/// | `gamma` | | `zeta_i = (2i/d + gamma) / (1 + gamma)`; 0.4 |
/// | `scale_base` | positions | 512 |
/// | `center` | position | where the factor is 1; 0 |
///
/// # Source
/// Sun et al. 2022 (arXiv 2212.10554), section 3.2, eq. 12 and algorithm 1. torchscale and x-transformers put `center` in the
/// middle of the sequence at hand, so that theirs changes with its length; scores are the same. Both have interleaved pairs.
///
/// # Example
/// ```
/// use posenc::Rope;
/// use posenc::rotate::{Side, XPos};
/// let xpos = XPos::new(Rope::new(64, 10_000.0));
/// assert!((xpos.zeta(0) - 2.0 / 7.0).abs() < 1e-16);
/// assert_eq!(xpos.scale(0, 0, Side::Query), 1.0);
/// assert_eq!(xpos.scale(-7, 0, Side::Key), xpos.scale(7, 0, Side::Query));
/// assert_eq!(xpos.reach(), 33_994);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct XPos {
    /// the rotation
    pub rope: Rope,
    /// the offset of zeta
    pub gamma: f64,
    /// positions over which a pair shrinks by its zeta
    pub scale_base: f64,
    /// the position where nothing shrinks
    pub center: i64,
}

/// Side of a score: query or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Side {
    /// queries
    Query,
    /// keys
    Key,
}

impl XPos {
    /// xPos with the paper's constants around position 0.
    pub const fn new(rope: Rope) -> Self {
        Self { rope, gamma: 0.4, scale_base: 512.0, center: 0 }
    }

    /// Refuses a spec outside the law: a rope that is refused, has several axes or angles other than the exact ones, constants
    /// that are not finite and above 0, a `scale_base` so small that no position but the center has factors in range.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        self.rope.check()?;
        if self.rope.is_none() {
            return wrong("the rope is no rotation, xPos scales what is rotated".into());
        }
        if self.rope.position_axes() > 1 {
            return wrong(format!("the rope has {} axes of position, xPos has one", self.rope.position_axes()));
        }
        if let Some(bits) = self.rope.fraction_bits.iter().find(|&&bits| bits > 0) {
            return wrong(format!("positions have {bits} fraction bits, xPos's are whole"));
        }
        if matches!(self.rope.angles, Angles::Mixed(_)) {
            return wrong("the rope's angles are mixed, xPos has those of one ladder".into());
        }
        if self.rope.angles != Angles::Exact {
            return wrong("the rope's angles are products in f32, xPos has exact ones alone".into());
        }
        for (name, value) in [("gamma", self.gamma), ("scale_base", self.scale_base)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(format!("xPos's {name} is {value}, it must be finite and above 0"));
            }
        }
        if self.center.unsigned_abs() > 1 << 31 {
            return wrong(format!("xPos's center is {}, it must lie within 2^31 of 0", self.center));
        }
        if self.reach() == 0 {
            return wrong(format!(
                "xPos's scale_base is {}, beside the center no position has a factor between 2^-120 and 2^120",
                self.scale_base
            ));
        }
        Ok(())
    }

    /// [`XPos::check`], and that every position is within reach of the center.
    fn check_positions(&self, positions: &[i64]) -> Result<()> {
        self.check()?;
        let reach = self.reach();
        match positions.iter().find(|&&position| self.distance(position).unsigned_abs() > u128::from(reach)) {
            None => Ok(()),
            Some(position) => Err(Error::Value(format!(
                "position {position} is {} from xPos's center {}, factors stay in range up to {reach}",
                self.distance(*position).unsigned_abs(),
                self.center
            ))),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl XPos {
    /// `(2i/d + gamma) / (1 + gamma)`, between 0 and 1.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn zeta(&self, pair: usize) -> f64 {
        self.exact_zeta(pair).hi
    }

    fn exact_zeta(&self, pair: usize) -> Double {
        assert!(pair < self.rope.pairs(), "pair {pair} of {}", self.rope.pairs());
        let share = Double::from(2.0 * pair as f64) / Double::from(self.rope.rotary as f64);
        (share + Double::from(self.gamma)) / (Double::ONE + Double::from(self.gamma))
    }

    /// Exponent of two that one position adds to a query's factor on `pair`, in units of 2^-56.
    ///
    /// The factor is `2^((position - center) * log2(zeta) / scale_base)`: a product of the distance and a constant of the
    /// pair, which a whole number holds as it holds the rate of a phase.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn exponent(&self, pair: usize) -> i64 {
        let exponent = self.exact_zeta(pair).ln() / Double::LN_2 / Double::from(self.scale_base);
        // Saturates, and then the reach is 0.
        (exponent.hi * UNIT).round() as i64
    }

    /// The largest distance from the center at which every factor is between 2^-120 and 2^120.
    pub fn reach(&self) -> u64 {
        let largest = (0..self.rope.pairs()).map(|pair| self.exponent(pair).unsigned_abs()).max().unwrap_or(0);
        ((MOST_EXPONENT << 56) / largest.max(1)).min(i64::MAX as u64)
    }

    fn distance(&self, position: i64) -> i128 {
        i128::from(position) - i128::from(self.center)
    }

    /// The factor on `pair` at `position`: `zeta^((position - center) / scale_base)` for a query, its inverse for a key.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn scale(&self, position: i64, pair: usize, side: Side) -> f64 {
        let exponent = self.distance(position) as f64 / self.scale_base;
        let exponent = if side == Side::Query { exponent } else { -exponent };
        if exponent.fract() == 0.0 && exponent.abs() < 64.0 {
            return self.zeta(pair).powi(exponent as i32);
        }
        self.zeta(pair).powf(exponent)
    }

    /// The largest error of an element that was rotated and scaled, before it is rounded to its type, for the pair `(a, b)`
    /// that it came from: `scale * attention_factor * (|a| + |b|) * (2e-7 + 5 * 2^-24 + |position - center| * 2^-57) + 2^-148`.
    ///
    /// 1e-7 is the error of cosine and sine, 1e-7 that of the power of two, and half a unit of the exponent grows with the
    /// distance; five roundings follow: of `attention_factor` to f32, of its product with the cosine, of that with the
    /// scale, of one product and of the sum. It holds where `scale * attention_factor * (|a| + |b|)` is below 2^128.
    pub fn error_bound(&self, a: f64, b: f64, position: i64, pair: usize, side: Side) -> f64 {
        let exponent = self.distance(position).unsigned_abs() as f64 / (2.0 * UNIT);
        let relative = 2e-7 + 5.0 * f32::ROUNDOFF + exponent;
        self.scale(position, pair, side) * self.rope.attention_factor * (a.abs() + b.abs()) * relative + 4.0 * f32::TINY
    }
}

/// One, in the units of an exponent.
const UNIT: f64 = (1u64 << 56) as f64;
/// Powers of two up to which factors are in range: sums of two products with them stay below 2^128.
const MOST_EXPONENT: u64 = 120;

// ----------------------------------------------------------------------------------------------------------- reference

impl XPos {
    /// The wanted values in f64 and the error allowed at each element, for comparison with a rotation of `x`.
    ///
    /// # Errors
    /// As [`XPos::rotate`].
    pub fn expect<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: &[i64],
        side: Side,
        direction: Direction,
    ) -> Result<Expected> {
        self.check()?;
        let mut expected = self.rope.expect(x, heads, positions, direction)?;
        self.check_positions(&positions[..heads.batch * heads.tokens])?;
        for batch in 0..if heads.is_empty() { 0 } else { heads.batch } {
            for token in 0..heads.tokens {
                let position = positions[batch * heads.tokens + token];
                for pair in 0..self.rope.pairs() {
                    let scale = self.scale(position, pair, side);
                    for head in 0..heads.heads {
                        let first = self.rope.first_channel(heads.dim);
                        let places = |(a, b): (usize, usize)| {
                            [a, b].map(|channel| heads.index(batch, token, head, first + channel))
                        };
                        let from = places(self.rope.channels(self.rope.pairing, pair));
                        let [a, b] = from.map(|index| x[index].to_f64());
                        let error = self.error_bound(a, b, position, pair, side);
                        for index in places(self.rope.channels(self.rope.written(), pair)) {
                            expected.want[index] *= scale;
                            expected.bound[index] = rounded::<T>(expected.want[index], error);
                        }
                    }
                }
            }
        }
        Ok(expected)
    }

    /// Rotates and scales `x` in place on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `heads` | queries or keys; channels outside the rotary part stay as they are |
    /// | `heads` | | sizes and strides of `x`, in elements |
    /// | `positions` | `[batch, tokens]` | integers within [`XPos::reach`] of the center |
    /// | `side` | | whose factor it is |
    /// | `direction` | | [`Direction::Inverse`] is the gradient: rotates back, with the same factor |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-13 of the scaled pair.
    ///
    /// # Errors
    /// If the spec or the shape is refused, `positions` is shorter than the tokens, or one is out of reach. Nothing is
    /// written then.
    ///
    /// # Source
    /// Sun et al. 2022 (arXiv 2212.10554), algorithm 1.
    ///
    /// # Example
    /// ```
    /// use posenc::rotate::{Side, XPos};
    /// use posenc::{Direction, Heads, Rope};
    /// let xpos = XPos::new(Rope::new(2, 10_000.0));
    /// let mut q = [1.0f32, 0.0];
    /// xpos.rotate(&mut q, &Heads::thd(1, 1, 2), &[512], Side::Query, Direction::Forward)?;
    /// assert_eq!(q, [(512f64.cos() * 2.0 / 7.0) as f32, (512f64.sin() * 2.0 / 7.0) as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rotate<T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: &[i64],
        side: Side,
        direction: Direction,
    ) -> Result<()> {
        let expected = self.expect(x, heads, positions, side, direction)?;
        for ((x, want), _) in x.iter_mut().zip(expected.want).zip(expected.bound).filter(|&(_, bound)| bound > 0.0) {
            *x = T::from_f64(want);
        }
        Ok(())
    }
}
