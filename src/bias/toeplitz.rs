//! Biases that depend on distance alone, as a kernel takes them.
//!
//! ```text
//! bias(head, query, key) = row[head, key - query]
//! ```

use crate::memory::reserved;
use crate::shape::product;
use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// One row of numbers per head: the bias at each distance of a range.
///
/// T5's bias is constant beyond `max_distance`, so that a row of `2 * max_distance + 1` numbers is exact everywhere.
///
/// # Example
/// ```
/// use posenc::bias::Toeplitz;
/// let row = Toeplitz::from_law(2, -2..=0, |head, distance| (head as f64 + 1.0) * distance as f64)?;
/// assert_eq!(row.values, [-2.0, -1.0, 0.0, -4.0, -2.0, 0.0]);
/// assert_eq!(row.bias(1, -1), -2.0);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Toeplitz {
    /// heads
    pub heads: usize,
    /// the distance of the first number
    pub first: i64,
    /// `[heads, distances]`
    pub values: Vec<f32>,
    /// whether distances outside take the value at the row's end; else a call that has such distances is refused, where
    /// its positions are known on the host
    pub saturates: bool,
}

impl Toeplitz {
    /// The row of a law over a range of distances, rounded to f32. It must hold every distance of a call.
    ///
    /// # Errors
    /// If there are no heads or distances, the product of both is above 2^30, or the law gives NaN.
    pub fn from_law(
        heads: usize,
        distances: std::ops::RangeInclusive<i64>,
        law: impl Fn(usize, i64) -> f64,
    ) -> Result<Self> {
        let count = check_distances(heads, &distances)?;
        let first = *distances.start();
        check_numbers(heads * count, first)?;
        let mut values = reserved("numbers of a Toeplitz row", heads * count)?;
        for head in 0..heads {
            for distance in distances.clone() {
                let value = law(head, distance);
                if value.is_nan() {
                    return Err(Error::Value(format!("the bias of head {head} at distance {distance} is NaN")));
                }
                values.push(value as f32);
            }
        }
        Ok(Self { heads, first, values, saturates: false })
    }

    /// Numbers of each head.
    pub fn distances(&self) -> usize {
        self.values.len() / self.heads.max(1)
    }

    /// Refuses a row without heads or numbers, whose length is not a multiple of the heads, or that reaches beyond 2^30.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        check_numbers(self.values.len(), self.first)?;
        if self.first.unsigned_abs() > REACH as u64 {
            return Err(too_far(self.values.len(), self.first));
        }
        if self.heads == 0 || self.values.is_empty() || !self.values.len().is_multiple_of(self.heads) {
            return Err(Error::Value(format!(
                "a Toeplitz row of {} numbers for {} heads, it must hold the same count, at least 1, for each head",
                self.values.len(),
                self.heads
            )));
        }
        Ok(())
    }
}

/// Numbers of a row, and its first distance, at most.
const REACH: usize = 1 << 30;

/// Heads of a bias that numbers are made for, at most: what a grid has blocks for.
const MOST_HEADS: usize = 65535;

pub(crate) fn check_few_heads(what: &str, heads: usize) -> Result<()> {
    if heads <= MOST_HEADS {
        return Ok(());
    }
    Err(Error::Value(format!("{what} has {heads} heads, it must have at most {MOST_HEADS}")))
}

/// Refuses more numbers than a row may have.
pub(crate) fn check_numbers(numbers: usize, first: i64) -> Result<()> {
    if numbers <= REACH { Ok(()) } else { Err(too_far(numbers, first)) }
}

fn too_far(numbers: usize, first: i64) -> Error {
    Error::Value(format!("a Toeplitz row of {numbers} numbers from distance {first}, both must lie within 2^30"))
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
    product("heads x distances", &[heads, count])?;
    Ok(count)
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
