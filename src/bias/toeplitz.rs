//! Biases that depend on distance alone, as a kernel takes them.
//!
//! ```text
//! bias(head, query, key) = row[head, key - query]
//! ```

use crate::bias::{Fire, Slopes};
use crate::{Error, Logits, Result, Scalar};

/// Half a unit in the last place of f32, relative.
pub(crate) const EPSILON: f64 = f32::ROUNDOFF;

// ---------------------------------------------------------------------------------------------------------------- spec

/// One row of numbers per head: the bias at each distance of a range. Distances outside take the value at its end.
///
/// T5's bias is constant beyond `max_distance`, so that a row of `2 * max_distance + 1` numbers is exact everywhere.
///
/// # Example
/// ```
/// use posenc::Toeplitz;
/// let row = Toeplitz::from_law(2, -2..=0, |head, distance| (head as f64 + 1.0) * distance as f64)?;
/// assert_eq!(row.values, [-2.0, -1.0, 0.0, -4.0, -2.0, 0.0]);
/// assert_eq!(row.bias(1, -1), -2.0);
/// assert_eq!(row.bias(1, -9), -4.0);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Toeplitz {
    /// heads
    pub heads: usize,
    /// the distance of the first number
    pub first: i64,
    /// `[heads, distances]`
    pub values: Vec<f32>,
}

impl Toeplitz {
    /// The row of a law over a range of distances, rounded to f32.
    ///
    /// # Errors
    /// If there are no heads or distances, the product of both does not fit, or the law gives NaN.
    pub fn from_law(
        heads: usize,
        distances: std::ops::RangeInclusive<i64>,
        law: impl Fn(usize, i64) -> f64,
    ) -> Result<Self> {
        let count = check_distances(heads, &distances)?;
        let first = *distances.start();
        let mut values = Vec::with_capacity(heads * count);
        for head in 0..heads {
            for distance in distances.clone() {
                let value = law(head, distance);
                if value.is_nan() {
                    return Err(Error::Value(format!("the bias of head {head} at distance {distance} is NaN")));
                }
                values.push(value as f32);
            }
        }
        Ok(Self { heads, first, values })
    }

    /// Numbers of each head.
    pub fn distances(&self) -> usize {
        self.values.len() / self.heads.max(1)
    }

    /// Refuses a row without heads or numbers, or whose length is not a multiple of the heads.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        if self.heads == 0 || self.values.is_empty() || self.values.len() % self.heads != 0 {
            return Err(Error::Value(format!(
                "a Toeplitz row of {} numbers for {} heads, it must hold the same count, at least 1, for each head",
                self.values.len(),
                self.heads
            )));
        }
        Ok(())
    }
}

/// The count of distances, or an error.
pub(crate) fn check_distances(heads: usize, distances: &std::ops::RangeInclusive<i64>) -> Result<usize> {
    let count = distances.end().checked_sub(*distances.start()).and_then(|last| last.checked_add(1));
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    if heads == 0 || count == 0 {
        return Err(Error::Value(format!(
            "{heads} heads and distances {} to {}, there must be at least 1 of both",
            distances.start(),
            distances.end()
        )));
    }
    crate::shape::product("heads x distances", &[heads, count])?;
    Ok(count)
}

/// Any bias, in the form in which a kernel takes it.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// nothing is added
    None,
    /// ALiBi
    Slopes(&'a Slopes),
    /// T5, KERPLE, Sandwich, or any law of distance
    Toeplitz(&'a Toeplitz),
    /// FIRE
    Fire(&'a Fire),
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Toeplitz {
    /// The bias of `head` at `distance`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn bias(&self, head: usize, distance: i64) -> f64 {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        let count = self.distances();
        let index = distance.saturating_sub(self.first).clamp(0, count as i64 - 1);
        f64::from(self.values[head * count + index as usize])
    }
}

impl Bias<'_> {
    /// The bias of `head` of sequence `batch` for a query and a key at these positions.
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn at(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Slopes(slopes) => slopes.bias(batch, head, key - query),
            Self::Toeplitz(row) => row.bias(head, key - query),
            Self::Fire(fire) => fire.bias(head, query, key),
        }
    }

    /// The largest error of [`Bias::at`] when an f32 kernel computes it, before it is rounded to an element type.
    ///
    /// | form | bound |
    /// |---|---|
    /// | `None`, `Toeplitz` | 0: the number itself is added |
    /// | `Slopes` | `\|bias\| * 2 * 2^-24` |
    /// | `Fire` | [`Fire::error_bound`] |
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn error_bound(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None | Self::Toeplitz(_) => 0.0,
            Self::Slopes(slopes) => Slopes::error_bound(slopes.bias(batch, head, key - query)),
            Self::Fire(fire) => fire.error_bound(head, fire.input(query, key)).unwrap_or(f64::INFINITY),
        }
    }

    /// Refuses a bias for another number of heads, or of sequences.
    pub(crate) fn check(&self, shape: &Logits) -> Result<()> {
        let heads = match self {
            Self::None => return Ok(()),
            Self::Slopes(slopes) => {
                if slopes.batch != 1 && slopes.batch != shape.batch {
                    return Err(Error::Value(format!(
                        "slopes are for {} sequences, the logits have {}",
                        slopes.batch, shape.batch
                    )));
                }
                slopes.heads
            }
            Self::Toeplitz(row) => {
                row.check()?;
                row.heads
            }
            Self::Fire(fire) => {
                fire.check()?;
                fire.heads()
            }
        };
        if heads != shape.heads {
            return Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", shape.heads)));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Bias<'_> {
    /// Writes the bias of every query and key on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `shape` | written |
    /// | `shape` | | sizes and strides of `out`; a batch of more than 1 gets one bias per sequence |
    /// | `positions` | | where queries and keys sit |
    ///
    /// # Accuracy
    /// Half an ulp of `T`.
    ///
    /// # Errors
    /// If the shape, the positions or the count of heads is refused. Nothing is written then.
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// let slopes = Alibi::new(1).slopes()?;
    /// let mut out = [0.0f32; 3];
    /// // One query at position 2 of a cache of three keys.
    /// Bias::Slopes(&slopes).write(&mut out, &Logits::bhqk(1, 1, 1, 3), &Places::from(2, 0))?;
    /// assert_eq!(out, [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], shape: &Logits, positions: &super::Places<&[i32]>) -> Result<()> {
        self.each("out", out, shape, positions, |_, bias| bias)
    }

    /// Adds the bias to logits in place on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// Arguments and errors as [`Bias::write`].
    ///
    /// # Errors
    /// As [`Bias::write`].
    pub fn add<T: Scalar>(&self, logits: &mut [T], shape: &Logits, positions: &super::Places<&[i32]>) -> Result<()> {
        self.each("logits", logits, shape, positions, |logit, bias| logit.to_f64() + bias)
    }

    fn each<T: Scalar>(
        &self,
        name: &'static str,
        x: &mut [T],
        shape: &Logits,
        positions: &super::Places<&[i32]>,
        value: impl Fn(T, f64) -> f64,
    ) -> Result<()> {
        shape.check_written(name, x.len())?;
        self.check(shape)?;
        positions.check(shape)?;
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let query_position = positions.query(shape, batch, query);
                    for key in 0..shape.keys {
                        let bias = self.at(batch, head, query_position, positions.key(shape, batch, key));
                        let index = shape.index(batch, head, query, key);
                        x[index] = T::from_f64(value(x[index], bias));
                    }
                }
            }
        }
        Ok(())
    }
}

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
        positions: &super::Places<&[i32]>,
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
