//! Entries by distance: Shaw, Transformer-XL, XLNet, Conformer, DeBERTa, Inkling.

use crate::bias::integers::{at_least, divisor, power};
use crate::double::Double;
use crate::{Error, Result};

/// The sign of a difference between query and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Sign {
    /// `key - query`
    #[default]
    KeyMinusQuery,
    /// `query - key`
    QueryMinusKey,
}

/// What a term adds at distances that it has no entry for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Outside {
    /// the number of the nearest distance that has one: Shaw, DeBERTa
    #[default]
    Clamp,
    /// nothing: Inkling
    Zero,
}

/// Entries by distance.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#content).
///
/// ```text
/// n     = distance - first                        distance = key - query, or query - key
/// entry = lookup[clamp(n, 0, count - 1)]          without a lookup the clamped n itself; Outside::Zero: nothing outside
/// ```
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `sign` | | which difference is the distance |
/// | `first` | positions | the distance of the first entry |
/// | `count` | positions | distances that have an entry |
/// | `outside` | | what other distances get |
/// | `lookup` | entries | the entry of each distance, `count` of them; empty: each has its own |
/// | `entries` | | numbers that the array holds for each row |
///
/// A relative shift (Transformer-XL, XLNet, Conformer) is an index, and nothing is moved: row `t` of their tables belongs to
/// one distance.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Distances {
    /// which difference is the distance
    pub sign: Sign,
    /// the first distance
    pub first: i64,
    /// distances that have an entry
    pub count: usize,
    /// what other distances get
    pub outside: Outside,
    /// the entry of each distance, or empty
    pub lookup: Vec<u16>,
    /// entries
    pub entries: usize,
}

impl Distances {
    /// `count` distances from `first` on, each with an entry of its own; others take the nearest.
    pub const fn new(sign: Sign, first: i64, count: usize) -> Self {
        Self { sign, first, count, outside: Outside::Clamp, lookup: Vec::new(), entries: count }
    }

    const fn or_zero(mut self) -> Self {
        self.outside = Outside::Zero;
        self
    }

    /// Shaw's clipped distances, `clip(key - query, -left, right) + left`.
    ///
    /// | who | `left`, `right` |
    /// |---|---|
    /// | Shaw (arXiv 1803.02155) | `k`, `k` |
    /// | Wav2Vec2-BERT, SeamlessM4T v2 | 64, 8 |
    ///
    /// ```
    /// use posenc::bias::Distances;
    /// assert_eq!([-70, -1, 9].map(|distance| Distances::shaw(64, 8).entry(0, distance)), [Some(0), Some(63), Some(72)]);
    /// ```
    pub const fn shaw(left: usize, right: usize) -> Self {
        Self::new(Sign::KeyMinusQuery, past(left, 0), left.saturating_add(right).saturating_add(1))
    }

    /// VITS: Shaw's entries up to `window` on both sides, nothing beyond, for keys and for values.
    pub const fn vits(window: usize) -> Self {
        Self::shaw(window, window).or_zero()
    }

    /// SpeechT5: `clamp(query - key, -max_length, max_length - 1) + max_length`.
    pub const fn speecht5(max_length: usize) -> Self {
        Self::deberta_v1(max_length)
    }

    /// The audio encoders of Gemma 3n and Gemma 4: row `past - (query - key)`, nothing beyond `past` keys before the query and
    /// `right` after it. Their chunks are a way to compute this band, not another law.
    pub const fn gemma_audio(past: usize, right: usize) -> Self {
        Self::shaw(past, right).or_zero()
    }

    /// `query - key + max_positions - 1`: BERT's `relative_key` and `relative_key_query`.
    pub const fn bert(max_positions: usize) -> Self {
        Self::new(Sign::QueryMinusKey, past(max_positions, 1), max_positions.saturating_mul(2).saturating_sub(1))
    }

    /// Transformer-XL with memories: row `t` of the table of sinusoids is the distance `keys - 1 - t` into the past. Keys of the
    /// future get nothing: the original's shift leaves numbers of the next row there, which its mask hides.
    pub const fn transformer_xl(keys: usize) -> Self {
        Self::new(Sign::KeyMinusQuery, past(keys, 1), keys).or_zero()
    }

    /// XLNet, both directions: row `t` is the distance `keys - t` into the past, `keys + queries` rows. Of one direction
    /// (`attn_type = "uni"`) the first `keys + 1` rows are used.
    pub const fn xlnet(queries: usize, keys: usize) -> Self {
        Self::new(Sign::KeyMinusQuery, past(keys, 0), keys.saturating_add(queries))
    }

    /// Conformer, Parakeet, Wav2Vec2-Conformer: `2 * tokens - 1` rows from the distance `tokens - 1` into the past on.
    pub const fn conformer(tokens: usize) -> Self {
        Self::new(Sign::KeyMinusQuery, past(tokens, 1), tokens.saturating_mul(2).saturating_sub(1))
    }

    /// Inkling's band: `query - key` from 0 to below `extent`, nothing outside.
    ///
    /// ```
    /// use posenc::bias::Distances;
    /// assert_eq!([5, 6, 0].map(|key| Distances::inkling(4).entry(5, key)), [Some(0), None, None]);
    /// ```
    pub const fn inkling(extent: usize) -> Self {
        Self::new(Sign::QueryMinusKey, 0, extent).or_zero()
    }

    /// DeBERTa v1: `clamp(query - key + span, 0, 2 * span - 1)`, with `span = min(max(queries, keys), max_positions)`.
    pub const fn deberta_v1(span: usize) -> Self {
        Self::new(Sign::QueryMinusKey, past(span, 0), span.saturating_mul(2))
    }

    /// DeBERTa v2 and v3: logarithmic buckets of `query - key`, `clamp(bucket + buckets, 0, 2 * buckets - 1)`.
    ///
    /// ```text
    /// bucket(n) = n                                                               |n| <= mid = buckets / 2
    ///             sign(n) * (mid + ceil(ln(|n| / mid) / ln((max_positions - 1) / mid) * (mid - 1)))
    /// ```
    ///
    /// Both terms, of queries against positions and of keys against positions, have this index. Where a logarithm decides,
    /// whole numbers are compared: no distance is off by one.
    ///
    /// # Errors
    /// If `buckets` is odd, below 4 or above 32768, or `max_positions - 1` is not above `buckets / 2` or above 2^20.
    ///
    /// # Source
    /// DeBERTa (arXiv 2006.03654) and its authors' `make_log_bucket_position`.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::Distances;
    /// // deberta-v3-base: 256 buckets, 512 positions.
    /// let deberta = Distances::deberta(256, 512)?;
    /// assert_eq!([0, 128, 129, 511].map(|query| deberta.entry(query, 0)), [256, 384, 385, 511].map(Some));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn deberta(buckets: usize, max_positions: usize) -> Result<Self> {
        let (mid, reach) = (buckets / 2, max_positions.saturating_sub(1));
        if !buckets.is_multiple_of(2) || !(4..=1 << 15).contains(&buckets) || reach <= mid || reach > 1 << 20 {
            return Err(Error::Value(format!(
                "DeBERTa has {buckets} buckets and {max_positions} positions, the buckets must be even and lie within 4 to 32768, \
                 and the positions less 1 within {} to 1048576",
                mid + 1
            )));
        }
        // The last distance of each bucket of the far side: mid, then mid - 1 ones whose last is `reach`.
        let mut last = vec![mid];
        let [start, end] = [mid, reach].map(|n| Double::from(n as f64));
        for step in 1..mid {
            let share = Double::from(step as f64) / Double::from((mid - 1) as f64);
            let root = (start * (end / start).pow(share)).hi;
            let near = root.round();
            // Off by 2^-32 at most, so that integers decide where it may be a whole number.
            let most = if (root - near).abs() > 1e-9 {
                root.floor()
            } else if within(near as usize, mid, reach, step) {
                near
            } else {
                near - 1.0
            };
            last.push(most as usize);
        }
        let bucket = |n: usize| if n <= mid { n } else { mid + last.partition_point(|&last| last < n) };
        let entry = |distance: i64| {
            let size = bucket(distance.unsigned_abs() as usize) as i64;
            (distance.signum() * size + buckets as i64).clamp(0, 2 * buckets as i64 - 1) as u16
        };
        // Beyond `reach` both sides are clamped.
        let first = -(reach as i64 + 1);
        let lookup: Vec<u16> = (first..=-first).map(entry).collect();
        Ok(Self { lookup, entries: 2 * buckets, ..Self::new(Sign::QueryMinusKey, first, 2 * reach + 3) })
    }

    /// Refuses a range that is empty or leaves 2^30, and a lookup of another length or beyond the entries.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        let reach = 1 << 30;
        if self.count == 0 || self.count > reach as usize || self.first < -reach || self.first > reach {
            return Err(Error::Value(format!(
                "a term has {} distances from {}, there must be at least 1 and all within 2^30",
                self.count, self.first
            )));
        }
        if self.lookup.is_empty() {
            if self.entries != self.count {
                return Err(Error::Value(format!(
                    "a term has {} distances and {} entries: without a lookup both must be equal",
                    self.count, self.entries
                )));
            }
            return Ok(());
        }
        if self.lookup.len() != self.count {
            return Err(Error::Value(format!(
                "the lookup of a term holds {} entries for {} distances",
                self.lookup.len(),
                self.count
            )));
        }
        if let Some(entry) = self.lookup.iter().find(|&&entry| usize::from(entry) >= self.entries) {
            return Err(Error::Value(format!("the lookup of a term names entry {entry} of {}", self.entries)));
        }
        Ok(())
    }

    /// The entry of a query and a key at these positions; `None`: nothing is added.
    pub fn entry(&self, query: i64, key: i64) -> Option<usize> {
        let distance = match self.sign {
            Sign::KeyMinusQuery => key.saturating_sub(query),
            Sign::QueryMinusKey => query.saturating_sub(key),
        };
        let (n, last) = (distance.saturating_sub(self.first), self.count as i64 - 1);
        if self.outside == Outside::Zero && !(0..=last).contains(&n) {
            return None;
        }
        let near = n.clamp(0, last) as usize;
        Some(self.lookup.get(near).map_or(near, |&entry| usize::from(entry)))
    }
}

/// `nearer - n`; saturating, so that `check` refuses what no i64 holds.
const fn past(n: usize, nearer: i64) -> i64 {
    nearer.saturating_sub_unsigned(n as u64)
}

/// `n^(mid - 1) * mid^step <= reach^step * mid^(mid - 1)`
fn within(n: usize, mid: usize, reach: usize, step: usize) -> bool {
    let common = divisor(step, mid - 1);
    let (step, whole) = (step / common, (mid - 1) / common);
    let of = |a, b| power(a, b, vec![1]);
    at_least(&power(reach, step, of(mid, whole)), &power(n, whole, of(mid, step)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deberta_buckets_are_the_formula_in_integers() {
        for (buckets, positions) in [(256, 512), (64, 512), (8, 20), (4, 100), (32, 4096)] {
            let deberta = Distances::deberta(buckets, positions).unwrap();
            deberta.check().unwrap();
            let (mid, reach) = (buckets / 2, positions - 1);
            for n in 0..2 * positions {
                // The least bucket whose limit is not below n.
                let far = (1..=mid).find(|&step| within(n, mid, reach, step)).unwrap_or(mid);
                let bucket = if n <= mid { n } else { mid + far } as i64;
                let want = |bucket: i64| Some((bucket + buckets as i64).clamp(0, 2 * buckets as i64 - 1) as usize);
                assert_eq!(deberta.entry(n as i64, 0), want(bucket), "{buckets} {positions} {n}");
                assert_eq!(deberta.entry(0, n as i64), want(-bucket), "{buckets} {positions} -{n}");
            }
        }
    }

    #[test]
    fn broken_distances_are_refused() {
        let refused = |distances: Distances| distances.check().unwrap_err().to_string();
        assert_eq!(
            refused(Distances::inkling(0)),
            "a term has 0 distances from 0, there must be at least 1 and all within 2^30"
        );
        for n in [1 << 63, usize::MAX] {
            for distances in
                [Distances::shaw(n, 0), Distances::bert(n), Distances::xlnet(0, n), Distances::conformer(n)]
            {
                assert!(refused(distances).ends_with("there must be at least 1 and all within 2^30"));
            }
        }
        assert_eq!(
            refused(Distances { entries: 7, ..Distances::shaw(1, 1) }),
            "a term has 3 distances and 7 entries: without a lookup both must be equal"
        );
        assert_eq!(
            refused(Distances { lookup: vec![0, 1], ..Distances::shaw(1, 1) }),
            "the lookup of a term holds 2 entries for 3 distances"
        );
        assert_eq!(
            refused(Distances { lookup: vec![0, 3, 1], ..Distances::shaw(1, 1) }),
            "the lookup of a term names entry 3 of 3"
        );
        assert_eq!(
            Distances::deberta(7, 512).unwrap_err().to_string(),
            "DeBERTa has 7 buckets and 512 positions, the buckets must be even and lie within 4 to 32768, and the positions \
             less 1 within 4 to 1048576"
        );
    }
}
