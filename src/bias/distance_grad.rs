//! The gradient of a bias that depends on distance: batch, then diagonals, then buckets.

use crate::bias::Places;
use crate::bias::toeplitz::check_distances;
use crate::{Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradient of a distance bias, summed over batch and pairs: one number per head and distance.
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
    /// | `positions` | | where queries and keys sit |
    /// | `distances` | | the range that is kept; distances outside are added to its ends, as [`Toeplitz`] reads them |
    ///
    /// # Errors
    /// If the shape, the positions or the range is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::{DistanceGrad, Logits, Places};
    /// let grad = DistanceGrad::new(&[1.0f32, 2.0, 4.0, 8.0], &Logits::bhqk(1, 1, 2, 2), &Places::from(0, 0), -1..=1)?;
    /// assert_eq!(grad.values, [4.0, 9.0, 2.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn new<T: Scalar>(
        grad: &[T],
        shape: &Logits,
        positions: &Places<&[i32]>,
        distances: std::ops::RangeInclusive<i64>,
    ) -> Result<Self> {
        shape.check("grad", grad.len())?;
        positions.check(shape)?;
        let count = check_distances(shape.heads, &distances)?;
        let first = *distances.start();
        let mut values = vec![0.0; shape.heads * count];
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let query_position = positions.query(shape, batch, query);
                    for key in 0..shape.keys {
                        let distance = positions.key(shape, batch, key) - query_position;
                        let index = (distance - first).clamp(0, count as i64 - 1) as usize;
                        values[head * count + index] += grad[shape.index(batch, head, query, key)].to_f64();
                    }
                }
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
        (self.first..).zip(self.values[head * count..(head + 1) * count].iter().copied())
    }
}
