//! Sandwich: the inner product of two sinusoidal embeddings, one strength per head.
//!
//! ```text
//! bias(head, distance) = heads / (8 * (head + 1)) * sum over i < width / 2 of cos(distance / 10000^(2i / width))
//! ```

use crate::bias::Toeplitz;
use crate::bias::toeplitz::{check_distances, check_few_heads};
use crate::memory::collected;
use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// The Sandwich bias of some of a model's heads. Nothing in it is learned.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#sandwich).
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `total_heads` | heads | of the whole model: the law depends on it |
/// | `first` | heads | the first head of this shard |
/// | `heads` | heads | of this shard |
/// | `width` | channels | of the sinusoidal embedding, even; 128 in the paper |
///
/// # Source
/// "Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis" (arXiv 2212.10356), section
/// 5 and its listing.
///
/// # Example
/// ```
/// use posenc::bias::Sandwich;
/// let sandwich = Sandwich::new(8);
/// assert_eq!(sandwich.bias(0, 0), 64.0);
/// assert_eq!(sandwich.bias(7, 0), 8.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sandwich {
    /// heads of the whole model
    pub total_heads: usize,
    /// first head of this shard
    pub first: usize,
    /// heads of this shard
    pub heads: usize,
    /// channels of the sinusoidal embedding
    pub width: usize,
}

/// Channels, at most.
const MOST_WIDTH: usize = 1 << 16;
/// Cosines of a row, at most: what takes seconds.
const MOST_COSINES: usize = 1 << 30;

impl Sandwich {
    /// All heads of a model, 128 channels.
    pub const fn new(heads: usize) -> Self {
        Self { total_heads: heads, first: 0, heads, width: 128 }
    }

    /// Refuses zero heads, a shard outside the model or of more than 65535, and a width that is odd, 0 or above
    /// 65536.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        for (name, heads) in [("total_heads", self.total_heads), ("heads", self.heads)] {
            if heads == 0 {
                return Err(Error::Value(format!("{name} is 0, it must be at least 1")));
            }
        }
        if self.first.checked_add(self.heads).is_none_or(|end| end > self.total_heads) {
            return Err(Error::Value(format!(
                "Sandwich's shard of {} heads from head {} lies outside a model of {} heads",
                self.heads, self.first, self.total_heads
            )));
        }
        check_few_heads("Sandwich", self.heads)?;
        if self.width == 0 || self.width % 2 == 1 {
            return Err(Error::Value(format!("width is {}, it must be even and at least 2", self.width)));
        }
        if self.width > MOST_WIDTH {
            return Err(Error::Value(format!("width is {}, it must be at most {MOST_WIDTH}", self.width)));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Sandwich {
    /// The bias of head `head` of this shard at `distance`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn bias(&self, head: usize, distance: i64) -> f64 {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        self.strength(head) * self.waves(distance)
    }

    fn strength(&self, head: usize) -> f64 {
        self.total_heads as f64 / (8.0 * (self.first + head + 1) as f64)
    }

    /// The inner product of the embeddings at a distance, which all heads share.
    fn waves(&self, distance: i64) -> f64 {
        let wave = |i: usize| {
            let period = 10_000f64.powf(2.0 * i as f64 / self.width as f64);
            (distance as f64 / period).cos()
        };
        (0..self.width / 2).map(wave).sum()
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Sandwich {
    /// The bias of a range of distances: it must hold every distance of a call.
    ///
    /// # Errors
    /// If the spec or the range is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::Sandwich;
    /// let row = Sandwich { width: 2, ..Sandwich::new(1) }.row(-1..=0)?;
    /// assert_eq!(row.values, [(1f64.cos() / 8.0) as f32, 0.125]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn row(&self, distances: std::ops::RangeInclusive<i64>) -> Result<Toeplitz> {
        self.check()?;
        let (first, count) = (*distances.start(), check_distances(self.heads, &distances)?);
        let cosines = count.saturating_mul(self.width / 2);
        if cosines > MOST_COSINES {
            return Err(Error::Value(format!(
                "a Sandwich row of {count} distances and {} channels is made of {cosines} cosines, it may be of 2^30",
                self.width
            )));
        }
        let waves = collected("sums of cosines", count, distances.clone().map(|distance| self.waves(distance)))?;
        Toeplitz::from_law(self.heads, distances, |head, distance| {
            self.strength(head) * waves[distance.abs_diff(first) as usize]
        })
    }
}
