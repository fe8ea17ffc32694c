//! The gradient of a bias that depends on distance: batch, then diagonals, then buckets.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::DistanceGradPlan;

use crate::bias::toeplitz::check_distances;
use crate::memory::zeros;
use crate::position::Places;
use crate::shape::Shape;
use crate::{Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradient of a distance bias, summed over batch and pairs: one number per head and distance.
///
/// More: [docs](crate::docs::bias#gradients).
///
/// The first stage of every parameter's gradient: batch, then diagonals, then buckets. No number depends on the order
/// in which threads happen to run.
#[derive(Clone, Debug, PartialEq)]
pub struct DistanceGrad {
    /// heads
    pub heads: usize,
    /// the distance of the first number
    pub first: i64,
    /// `[heads, distances]`
    pub values: Vec<f64>,
}

impl DistanceGrad {
    /// Sums the gradient of the bias along its diagonals.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `places` | | positions of queries and keys |
    /// | `distances` | | the range that is kept; distances outside are added to its ends, as [`Toeplitz`](crate::bias::Toeplitz) reads them |
    ///
    /// # Errors
    /// If the shape, the positions or the range is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::DistanceGrad;
    /// use posenc::{Logits, Places};
    /// let grad = DistanceGrad::new(&[1.0f32, 2.0, 4.0, 8.0], &Logits::bhqk(1, 1, 2, 2), &Places::counted(0, 0), -1..=1)?;
    /// assert_eq!(grad.values, [4.0, 9.0, 2.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn new<T: Scalar>(
        grad: &[T],
        shape: &Logits,
        places: &Places<&[i32]>,
        distances: std::ops::RangeInclusive<i64>,
    ) -> Result<Self> {
        shape.check("grad", grad.len())?;
        places.check(shape)?;
        let count = check_distances(shape.heads, &distances)?;
        let first = *distances.start();
        let mut values = zeros("sums by head and distance", shape.heads * count)?;
        for [batch, head, query] in shape.each_full_row() {
            let query_position = places.query(shape, batch, query);
            for key in (0..shape.keys).filter(|&key| places.meet(shape, batch, query, key)) {
                let distance = places.key(shape, batch, key) - query_position;
                let index = distance.saturating_sub(first).clamp(0, count as i64 - 1) as usize;
                values[head * count + index] += grad[shape.index(batch, head, query, key)].to_f64();
            }
        }
        Ok(Self { heads: shape.heads, first, values })
    }

    /// The distances of a head and their gradients.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn of(&self, head: usize) -> impl Iterator<Item = (i64, f64)> + '_ {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        let count = self.values.len() / self.heads;
        let distance = |index: usize| self.first.saturating_add(index as i64);
        (0..count).map(move |index| (distance(index), self.values[head * count + index]))
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl DistanceGrad {
    /// The largest error of a kernel's output, for `size`, the sum of the sizes of its terms: `24 * 2^-24 * size`.
    ///
    /// A compensated sum is within `2 * 2^-24` of it, and there are three: of tiles, whose diagonals are trees of three
    /// additions, of distances and of blocks. Behind the last two come five additions of a warp, and beside them an addition
    /// of neighbours, a gate, a weight, its rounding and a factor.
    pub fn error_bound(size: f64) -> f64 {
        24.0 * f32::ROUNDOFF * size
    }
}
