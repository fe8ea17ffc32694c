//! xPos: RoPE whose pairs also shrink with distance.

use crate::double::Double;
use crate::{Direction, Error, Heads, Result, Rope, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// RoPE, and a factor `zeta_i^((p - center) / scale_base)` on queries and its inverse on keys.
///
/// The product of a query at `m` and a key at `n` has `zeta_i^((m - n) / scale_base)`: since `zeta_i < 1`, a key decays the
/// further it lies before its query, fast pairs first. `center` falls out of that product; it keeps the factors near 1 where
/// it lies near the positions. At a distance of 36,000 from it, `zeta_0` leaves the range of f32.
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
/// middle of the sequence at hand, so that theirs changes with its length; scores are the same.
///
/// # Example
/// ```
/// use posenc::Rope;
/// use posenc::rotate::{Side, XPos};
/// let xpos = XPos::new(Rope::new(64, 10_000.0));
/// assert!((xpos.zeta(0) - 2.0 / 7.0).abs() < 1e-16);
/// assert_eq!(xpos.scale(0, 0, Side::Query), 1.0);
/// assert_eq!(xpos.scale(-7, 0, Side::Key), xpos.scale(7, 0, Side::Query));
/// ```
#[derive(Clone, Debug, PartialEq)]
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

/// Which side of a score a tensor is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Refuses a spec outside the law.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        self.rope.check()?;
        for (name, value) in [("gamma", self.gamma), ("scale_base", self.scale_base)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Value(format!("xPos's {name} is {value}, it must be finite and above 0")));
            }
        }
        Ok(())
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

    /// The factor on `pair` at `position`: `zeta^((position - center) / scale_base)` for a query, its inverse for a key.
    ///
    /// As `2^((position - center) * log2(zeta) / scale_base)` the exponent is a product of the position and a constant of the
    /// pair, which fixed-point numbers hold as they hold phases.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn scale(&self, position: i64, pair: usize, side: Side) -> f64 {
        let distance = i128::from(position) - i128::from(self.center);
        let exponent = distance as f64 / self.scale_base;
        let exponent = if side == Side::Query { exponent } else { -exponent };
        if exponent.fract() == 0.0 && exponent.abs() < 64.0 {
            return self.zeta(pair).powi(exponent as i32);
        }
        self.zeta(pair).powf(exponent)
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl XPos {
    /// Rotates and scales `x` in place on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `heads` | queries or keys; channels outside the rotary part stay as they are |
    /// | `heads` | | sizes and strides of `x`, in elements |
    /// | `positions` | `[batch, tokens]` | any integers |
    /// | `side` | | whose factor it is |
    /// | `direction` | | [`Direction::Inverse`] is the gradient: rotates back, with the same factor |
    ///
    /// # Accuracy
    /// Half an ulp of `T`, and 1e-13 of the scaled pair.
    ///
    /// # Errors
    /// If the spec or the shape is refused, or `positions` is shorter than the tokens. Nothing is written then.
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
        self.check()?;
        let rotated = self.rope.expect(x, heads, positions, direction)?.want;
        for batch in 0..heads.batch {
            for token in 0..heads.tokens {
                let position = positions[batch * heads.tokens + token];
                for pair in 0..self.rope.pairs() {
                    let scale = self.scale(position, pair, side);
                    let (a, b) = self.rope.pairing.channels(pair, self.rope.rotary);
                    for head in 0..heads.heads {
                        for channel in [a, b] {
                            let index = heads.index(batch, token, head, self.rope.offset + channel);
                            x[index] = T::from_f64(rotated[index] * scale);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
