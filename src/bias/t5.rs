//! T5's relative bias: distances fall into buckets, narrow ones near zero and wider ones far away; a table holds one
//! number per bucket and head.
//!
//! ```text
//! bias(head, distance) = table[bucket(distance), head]
//! ```

use crate::bias::integers::{at_least, divisor, power};
use crate::bias::{DistanceGrad, Toeplitz};
use crate::double::Double;
use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Relative position buckets of T5.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#t5).
///
/// With `N = buckets`, or `buckets / 2` for each side when `bidirectional`, `E = N / 2` and `D = max_distance`, a
/// distance of `n` tokens into the past falls into
///
/// ```text
/// n                                                    n < E
/// min(N - 1, E + floor(ln(n / E) / ln(D / E) * (N - E)))   n >= E
/// ```
///
/// Keys of the future fall into the buckets from `buckets / 2` on when `bidirectional`, else into bucket 0. T5 divides
/// no logit by `sqrt(dim)`.
///
/// The bucket is at least `E + k` exactly when `n^(N-E) * E^k >= D^k * E^(N-E)`, an inequality of integers, which decides
/// where the root of its right side may be a whole number; that root, in 106 bits, gives [`T5Bias::thresholds`].
///
/// | model | `buckets` | `max_distance` | `bidirectional` |
/// |---|---|---|---|
/// | T5, mT5, UMT5 encoders; MPNet; LayoutLMv3 and UDOP, 1-D | 32 | 128 | true |
/// | T5, mT5, UMT5 decoders | 32 | 128 | false |
/// | LayoutLMv3, x and y each | 64 | 256 | true |
/// | WavLM | 320 | 800 | true |
/// | CPM-Ant | 512 | 2048 | true |
///
/// # Source
/// T5 (arXiv 1910.10683), section 2.1; the buckets are those of `_relative_position_bucket` in its authors' code and
/// in Hugging Face's, whose f32 logarithm equals the exact integers for all real settings. Where a port computes the
/// logarithm in bf16 or with folded constants, single distances (16, 32, 64, 90) land one bucket low.
///
/// # Example
/// ```
/// use posenc::T5Bias;
/// let encoder = T5Bias::new(32, 128, true);
/// assert_eq!(encoder.bucket(-11)?, 8);
/// assert_eq!(encoder.bucket(-12)?, 9);
/// assert_eq!(encoder.bucket(12)?, 16 + 9);
/// assert_eq!(T5Bias::new(32, 128, false).bucket(5)?, 0);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct T5Bias {
    /// buckets of both sides together
    pub buckets: usize,
    /// the distance from which all fall into the last bucket of their side
    pub max_distance: usize,
    /// whether the future has buckets of its own
    pub bidirectional: bool,
}

impl T5Bias {
    /// A spec of these three numbers.
    pub const fn new(buckets: usize, max_distance: usize, bidirectional: bool) -> Self {
        Self { buckets, max_distance, bidirectional }
    }

    /// Refuses fewer than two buckets a side, an odd count for two sides, more than 65536, a `max_distance` that is not
    /// above the exact range, and one above 2^20.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        if self.bidirectional && self.buckets % 2 == 1 {
            return wrong(format!("buckets is {}, two sides need an even number", self.buckets));
        }
        let least = if self.bidirectional { 4 } else { 2 };
        if self.buckets < least || self.buckets > 1 << 16 {
            return wrong(format!("buckets is {}, it must lie between {least} and 65536", self.buckets));
        }
        if self.max_distance <= self.exact() || self.max_distance > 1 << 20 {
            return wrong(format!(
                "max_distance is {}, it must be above the {} distances that have buckets of their own, and at most 2^20",
                self.max_distance,
                self.exact()
            ));
        }
        Ok(())
    }

    /// Buckets of one side.
    const fn side(&self) -> usize {
        if self.bidirectional { self.buckets / 2 } else { self.buckets }
    }

    /// Distances of one side that have a bucket of their own.
    const fn exact(&self) -> usize {
        self.side() / 2
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl T5Bias {
    /// The least distance of each bucket of one side, ascending: bucket `i` holds `thresholds[i] .. thresholds[i + 1]`.
    ///
    /// # Errors
    /// As [`T5Bias::check`].
    pub fn thresholds(&self) -> Result<Vec<usize>> {
        self.check()?;
        let (side, exact) = (self.side(), self.exact());
        let wide = side - exact;
        let mut thresholds: Vec<usize> = (0..=exact).collect();
        let [start, end] = [exact, self.max_distance].map(|n| Double::from(n as f64));
        for step in 1..wide {
            // The least n with n^wide * exact^step >= max_distance^step * exact^wide, which is at least this root.
            let share = Double::from(step as f64) / Double::from(wide as f64);
            let root = (start * (end / start).pow(share)).hi;
            let near = root.round();
            // Off by 2^-32 at most, so that integers decide where it may be a whole number.
            let least = if (root - near).abs() > 1e-9 {
                root.ceil()
            } else if self.reaches(near as usize, step, wide) {
                near
            } else {
                near + 1.0
            };
            thresholds.push(least as usize);
        }
        Ok(thresholds)
    }

    /// `n^wide * exact^step >= max_distance^step * exact^wide`
    fn reaches(&self, n: usize, step: usize, wide: usize) -> bool {
        let common = divisor(step, wide);
        let (step, wide) = (step / common, wide / common);
        let of = |a, b| power(a, b, vec![1]);
        at_least(&power(n, wide, of(self.exact(), step)), &power(self.max_distance, step, of(self.exact(), wide)))
    }

    /// The bucket of `distance = key - query`.
    ///
    /// # Errors
    /// As [`T5Bias::check`].
    pub fn bucket(&self, distance: i64) -> Result<usize> {
        Ok(self.bucket_from(&self.thresholds()?, distance))
    }

    fn bucket_from(&self, thresholds: &[usize], distance: i64) -> usize {
        let (first, n) = match (self.bidirectional, distance > 0) {
            (true, true) => (self.side(), distance.unsigned_abs()),
            (false, true) => (0, 0),
            (_, false) => (0, distance.unsigned_abs()),
        };
        // Thresholds may repeat where a bucket is empty; the last one that is reached counts.
        first + thresholds.partition_point(|&threshold| threshold as u64 <= n) - 1
    }

    /// The distances between which buckets change: outside, the bucket is that of the nearest end.
    pub fn distances(&self) -> std::ops::RangeInclusive<i64> {
        let reach = self.max_distance as i64;
        -reach..=if self.bidirectional { reach } else { 0 }
    }

    /// The bucket of every distance of [`T5Bias::distances`]: what a kernel looks up.
    ///
    /// # Errors
    /// As [`T5Bias::check`].
    pub fn lookup(&self) -> Result<Vec<u16>> {
        let thresholds = self.thresholds()?;
        // At most 65536 buckets.
        Ok(self.distances().map(|distance| self.bucket_from(&thresholds, distance) as u16).collect())
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl T5Bias {
    /// The bias of every distance of a table: one row per head, exact at all distances.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[buckets, heads]` | as Hugging Face stores `relative_attention_bias.weight`; FasterTransformer and TensorRT-LLM store its transpose |
    /// | `heads` | | heads of the table |
    ///
    /// # Errors
    /// If the spec is refused, or the table is of another length.
    ///
    /// # Source
    /// T5 (arXiv 1910.10683), section 2.1.
    ///
    /// # Example
    /// ```
    /// use posenc::T5Bias;
    /// // Two buckets for the past, the nearer one for distance 0 alone; two heads.
    /// let row = T5Bias::new(2, 8, false).row(&[0.5, 1.5, 2.0, -1.0], 2)?;
    /// assert_eq!((row.bias(0, 0), row.bias(1, 0)), (0.5, 1.5));
    /// assert_eq!((row.bias(0, -1), row.bias(1, -1_000_000)), (2.0, -1.0));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn row(&self, table: &[f32], heads: usize) -> Result<Toeplitz> {
        let lookup = self.lookup()?;
        self.check_table("table", table.len(), heads)?;
        let first = *self.distances().start();
        let row = Toeplitz::from_law(heads, self.distances(), |head, distance| {
            let bucket = usize::from(lookup[(distance - first) as usize]);
            f64::from(table[bucket * heads + head])
        })?;
        Ok(Toeplitz { saturates: true, ..row })
    }

    /// The gradient of the table, `[buckets, heads]`, from the gradient of the bias summed by distance over
    /// [`T5Bias::distances`].
    ///
    /// A softmax without sinks gives rows that sum to zero, and then the numbers of a head sum to zero too.
    ///
    /// # Errors
    /// If the spec is refused, or `grad` covers other distances.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::DistanceGrad;
    /// use posenc::{Logits, Places, T5Bias};
    /// let t5 = T5Bias::new(2, 8, false);
    /// // One query at the second of two keys: distances -1 and 0.
    /// let sums = DistanceGrad::new(&[0.25f32, -0.25], &Logits::bhqk(1, 1, 1, 2), &Places::bottom_right(), t5.distances())?;
    /// assert_eq!(t5.grad(&sums)?, [-0.25, 0.25]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad(&self, grad: &DistanceGrad) -> Result<Vec<f64>> {
        let lookup = self.lookup()?;
        if grad.first != *self.distances().start() || grad.values.len() != grad.heads * lookup.len() {
            return Err(Error::Value(format!(
                "the gradient holds {} numbers for {} heads from distance {}, it must hold one for each of {} to {}",
                grad.values.len(),
                grad.heads,
                grad.first,
                self.distances().start(),
                self.distances().end()
            )));
        }
        let mut table = vec![0.0; self.buckets * grad.heads];
        for head in 0..grad.heads {
            for ((_, value), &bucket) in grad.of(head).zip(&lookup) {
                table[usize::from(bucket) * grad.heads + head] += value;
            }
        }
        Ok(table)
    }

    pub(crate) fn check_table(&self, name: &'static str, len: usize, heads: usize) -> Result<()> {
        let need = crate::shape::product("buckets x heads", &[self.buckets, heads])?;
        if heads == 0 || len != need {
            return Err(Error::Value(format!(
                "{name} holds {len} elements, {} buckets of {heads} heads are {need}",
                self.buckets
            )));
        }
        Ok(())
    }
}
