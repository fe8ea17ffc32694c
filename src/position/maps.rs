//! Positions of tokens, as plain integer maps: shards of a sequence, packed sequences, and methods that change the distance that
//! RoPE sees.
//!
//! A RoPE kernel takes any positions. These functions make them; no kernel knows of them.

use std::ops::Range;

use crate::memory::{collected, reserved};
use crate::{Error, Result};

fn wrong<T>(text: String) -> Result<T> {
    Err(Error::Value(text))
}

fn check_rank(ranks: usize, rank: usize) -> Result<()> {
    if ranks == 0 || rank >= ranks {
        return wrong(format!("rank is {rank} of {ranks}, it must be below the number of ranks"));
    }
    Ok(())
}

// ----------------------------------------------------------------------------------------------------------- fractions

/// Real positions as whole numbers of units of `2^-bits`, for a rope with that many
/// [`fraction_bits`](crate::Rope::fraction_bits): rounded to the nearest, ties to even, so by half a unit at most.
///
/// # Errors
/// If `bits` is above 62, or a position is not finite or does not fit into 64 bits.
///
/// # Example
/// ```
/// use posenc::position::fixed;
/// // 24 frames a second, in units of 1/8192 second: off by 61 us at most.
/// assert_eq!(fixed(&[0.0, 1.0 / 24.0, 0.5], 13)?, [0, 341, 4096]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn fixed<F: Copy + Into<f64>>(positions: &[F], bits: u32) -> Result<Vec<i64>> {
    if bits > 62 {
        return wrong(format!("positions have {bits} fraction bits, at most 62 are possible"));
    }
    let mut units = reserved("positions", positions.len())?;
    for (at, &position) in positions.iter().enumerate() {
        let position: f64 = position.into();
        // Exact: a power of two.
        let unit = (position * (1u64 << bits) as f64).round_ties_even();
        // 2^63 itself is the first that does not fit.
        if !(-(2f64.powi(63))..2f64.powi(63)).contains(&unit) {
            return wrong(format!(
                "position {at} is {position}, with {bits} fraction bits it must lie within 2^{}",
                63 - bits
            ));
        }
        units.push(unit as i64);
    }
    Ok(units)
}

/// Positions `[2, windows * frames]` of sound in windows, as MusicFlamingo counts them: frame `j` of window `w` is the `n`-th
/// of all, and has positions `n w` and `n j`. Seconds and the length of a frame are in the rope's frequencies, so that these are whole.
///
/// Source: transformers 5.24.0, `modeling_musicflamingo.py`.
///
/// # Errors
/// If the positions do not fit into 63 bits, or into the host's memory.
///
/// # Example
/// ```
/// use posenc::position::timed_windows;
/// assert_eq!(timed_windows(2, 3)?, [0, 0, 0, 3, 4, 5, 0, 1, 4, 0, 4, 10]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn timed_windows(windows: usize, frames: usize) -> Result<Vec<i64>> {
    let tokens = windows.checked_mul(frames).and_then(|tokens| tokens.checked_mul(2));
    let fits = tokens
        .and_then(|tokens| tokens.checked_mul(windows.max(frames)))
        .is_some_and(|most| i64::try_from(most).is_ok());
    let (Some(all), true) = (tokens, fits) else {
        return wrong(format!("{windows} windows of {frames} frames have positions beyond 63 bits"));
    };
    let mut made = reserved("positions", all)?;
    made.extend((0..all / 2).map(|n| (n * (n / frames)) as i64));
    made.extend((0..all / 2).map(|n| (n * (n % frames)) as i64));
    Ok(made)
}

// -------------------------------------------------------------------------------------------------------------- shards

/// The positions of one rank's tokens in zig-zag context parallelism.
///
/// The sequence is cut into `2 * ranks` equal chunks, of which rank `r` holds the `r`-th and the `r`-th from the end, so that
/// a causal mask gives every rank the same work:
///
/// ```text
/// 2 ranks, 8 tokens:  rank 0 has 0 1 6 7,  rank 1 has 2 3 4 5
/// ```
///
/// # Errors
/// If `tokens` is no multiple of `2 * ranks`, or there is no such rank.
///
/// # Source
/// Megatron-LM's and TransformerEngine's context parallelism; Llama 3 (arXiv 2407.21783), section 3.3.2.
///
/// # Example
/// ```
/// assert_eq!(posenc::position::zigzag(8, 2, 0)?, [0, 1, 6, 7]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn zigzag(tokens: usize, ranks: usize, rank: usize) -> Result<Vec<i64>> {
    zigzag_packed(&[0, tokens], ranks, rank)
}

/// [`zigzag`] for packed sequences: each of them is cut on its own.
///
/// `indptr` holds the first token of each sequence and the end of the last.
///
/// # Errors
/// If a sequence's length is no multiple of `2 * ranks`, `indptr` does not start at 0 or falls, or there is no such rank.
pub fn zigzag_packed(indptr: &[usize], ranks: usize, rank: usize) -> Result<Vec<i64>> {
    check_rank(ranks, rank)?;
    check_indptr(indptr)?;
    let chunks = ranks.saturating_mul(2);
    let mut positions = reserved("positions", indptr[indptr.len() - 1] / ranks)?;
    for (sequence, ends) in indptr.windows(2).enumerate() {
        let tokens = ends[1] - ends[0];
        if !tokens.is_multiple_of(chunks) {
            return wrong(format!(
                "sequence {sequence} has {tokens} tokens, it must be a multiple of twice the {ranks} ranks"
            ));
        }
        let chunk = tokens / chunks;
        for start in [rank * chunk, (chunks - 1 - rank) * chunk] {
            positions.extend((start..start + chunk).map(|position| position as i64));
        }
    }
    Ok(positions)
}

/// The positions of one rank's tokens in striped context parallelism: every `ranks`-th token.
///
/// # Errors
/// If `tokens` is no multiple of `ranks`, or there is no such rank.
///
/// # Source
/// Brandon et al. 2023 (arXiv 2311.09431), section 3.
///
/// # Example
/// ```
/// assert_eq!(posenc::position::striped(6, 2, 1)?, [1, 3, 5]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn striped(tokens: usize, ranks: usize, rank: usize) -> Result<Vec<i64>> {
    check_rank(ranks, rank)?;
    if !tokens.is_multiple_of(ranks) {
        return wrong(format!("there are {tokens} tokens, it must be a multiple of the {ranks} ranks"));
    }
    collected("positions", tokens / ranks, (rank..tokens).step_by(ranks).map(|position| position as i64))
}

/// The heads of one rank in tensor parallelism.
///
/// Positions are the same on every rank. Where there are fewer heads than ranks (keys of grouped queries), a head is on several
/// ranks.
///
/// # Errors
/// If neither of `heads` and `ranks` is a multiple of the other, or there is no such rank.
///
/// # Example
/// ```
/// use posenc::position::head_shard;
/// assert_eq!(head_shard(32, 4, 1)?, 8..16);
/// assert_eq!(head_shard(2, 4, 3)?, 1..2);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn head_shard(heads: usize, ranks: usize, rank: usize) -> Result<Range<usize>> {
    check_rank(ranks, rank)?;
    if heads > 0 && heads.is_multiple_of(ranks) {
        let each = heads / ranks;
        return Ok(rank * each..(rank + 1) * each);
    }
    if heads > 0 && ranks.is_multiple_of(heads) {
        let head = rank / (ranks / heads);
        return Ok(head..head + 1);
    }
    wrong(format!("{heads} heads and {ranks} ranks do not go together, one must be a multiple of the other"))
}

// -------------------------------------------------------------------------------------------------------------- packed

fn check_indptr(indptr: &[usize]) -> Result<()> {
    if indptr.first() != Some(&0) {
        return wrong("indptr must start at 0".into());
    }
    match indptr.windows(2).position(|ends| ends[0] > ends[1]) {
        Some(at) => wrong(format!("indptr falls from {} to {} at {}", indptr[at], indptr[at + 1], at + 1)),
        None => Ok(()),
    }
}

/// The positions of packed sequences: each starts at 0.
///
/// # Errors
/// If `indptr` does not start at 0 or falls.
///
/// # Example
/// ```
/// assert_eq!(posenc::position::packed(&[0, 3, 3, 5])?, [0, 1, 2, 0, 1]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn packed(indptr: &[usize]) -> Result<Vec<i64>> {
    packed_from(indptr, &vec![0; indptr.len().saturating_sub(1)])
}

/// The positions of packed sequences that go on from `starts`, their numbers of cached tokens.
///
/// # Errors
/// As [`packed`], and if there is not one start for each sequence.
pub fn packed_from(indptr: &[usize], starts: &[i64]) -> Result<Vec<i64>> {
    check_indptr(indptr)?;
    if starts.len() + 1 != indptr.len() {
        return wrong(format!("starts holds {} elements, indptr counts {} sequences", starts.len(), indptr.len() - 1));
    }
    let sequences = indptr.windows(2).zip(starts);
    let positions =
        sequences.flat_map(|(ends, &start)| (0..ends[1] - ends[0]).map(move |token| start.wrapping_add(token as i64)));
    collected("positions", indptr[indptr.len() - 1], positions)
}

// ------------------------------------------------------------------------------------------------------------ remapped

/// Positions for a query and a key whose distance lies in one range; scores of all ranges are put together by a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Pass {
    /// the keys near the query
    Near,
    /// the keys far from it
    Far,
}

/// Self-Extend: distances of `window` and more are counted in groups.
///
/// | pass | keys at a distance | query at `p` | key at `p` |
/// |---|---|---|---|
/// | near | below `window` | `p` | `p` |
/// | far | `window` and more | `p / group + window - window / group` | `p / group` |
///
/// (whole divisions)
///
/// # Panics
/// The functions of a position do for a group of 0, which [`SelfExtend::check`] refuses.
///
/// # Source
/// Jin et al. 2024 (arXiv 2401.01325), section 3, eq. 4; llama.cpp's `--grp-attn-n` and `--grp-attn-w`.
///
/// # Example
/// ```
/// use posenc::position::SelfExtend;
/// let extend = SelfExtend { group: 4, window: 512 };
/// assert_eq!(extend.distance(10_000, 9_999), 1);
/// assert_eq!(extend.distance(10_000, 0), 10_000 / 4 + 512 - 128);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SelfExtend {
    /// positions that become one
    pub group: i64,
    /// distances that stay
    pub window: i64,
}

impl SelfExtend {
    /// Refuses a group below 1 and a window below the group.
    ///
    /// # Errors
    /// [`Error::Value`] with both numbers.
    pub fn check(&self) -> Result<()> {
        if self.group < 1 || self.window < self.group {
            return wrong(format!(
                "Self-Extend's group is {} and its window {}, the group must be at least 1 and at most the window",
                self.group, self.window
            ));
        }
        Ok(())
    }

    /// The pass of a query and a key before it.
    pub const fn pass(&self, query: i64, key: i64) -> Pass {
        if query - key < self.window { Pass::Near } else { Pass::Far }
    }

    /// The position to rotate a query by.
    pub const fn query(&self, position: i64, pass: Pass) -> i64 {
        match pass {
            Pass::Near => position,
            Pass::Far => position.div_euclid(self.group) + self.window - self.window / self.group,
        }
    }

    /// The position to rotate a key by.
    pub const fn key(&self, position: i64, pass: Pass) -> i64 {
        match pass {
            Pass::Near => position,
            Pass::Far => position.div_euclid(self.group),
        }
    }

    /// The distance that RoPE sees.
    pub const fn distance(&self, query: i64, key: i64) -> i64 {
        let pass = self.pass(query, key);
        self.query(query, pass) - self.key(key, pass)
    }
}

/// ReRoPE and Leaky ReRoPE: distances of `window` and more are all `window`, or grow by `1 / leak` of a position only.
///
/// | pass | keys at a distance | query at `p` | key at `p` | frequencies |
/// |---|---|---|---|---|
/// | near | below `window` | `p` | `p` | as they are |
/// | far, no leak | `window` and more | `window` | 0 | as they are |
/// | far, `leak` | `window` and more | `p + window * (leak - 1)` | `p` | divided by `leak`: [`Scaling::Linear`](crate::Scaling) |
///
/// The last row turns by `window + (distance - window) / leak` with whole positions.
///
/// # Source
/// Su 2023 (kexue.fm/archives/9708); bojone/rerope.
///
/// # Example
/// ```
/// use posenc::position::ReRope;
/// let leaky = ReRope { window: 512, leak: Some(16) };
/// assert_eq!(leaky.distance(1000, 900), 100.0);
/// assert_eq!(leaky.distance(2112, 0), 512.0 + 1600.0 / 16.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ReRope {
    /// distances that stay
    pub window: i64,
    /// positions beyond the window that count as one; `None` for none
    pub leak: Option<i64>,
}

impl ReRope {
    /// Refuses a window or a leak below 1.
    ///
    /// # Errors
    /// [`Error::Value`] with the field and the value.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("window", self.window), ("leak", self.leak.unwrap_or(1))] {
            if value < 1 {
                return wrong(format!("ReRoPE's {name} is {value}, it must be at least 1"));
            }
        }
        Ok(())
    }

    /// The pass of a query and a key before it.
    pub const fn pass(&self, query: i64, key: i64) -> Pass {
        if query - key < self.window { Pass::Near } else { Pass::Far }
    }

    /// The position to rotate a query by.
    pub const fn query(&self, position: i64, pass: Pass) -> i64 {
        match (pass, self.leak) {
            (Pass::Near, _) => position,
            (Pass::Far, None) => self.window,
            (Pass::Far, Some(leak)) => position + self.window * (leak - 1),
        }
    }

    /// The position to rotate a key by.
    pub const fn key(&self, position: i64, pass: Pass) -> i64 {
        match (pass, self.leak) {
            (Pass::Far, None) => 0,
            _ => position,
        }
    }

    /// Divisor of the frequencies of a pass.
    pub const fn divisor(&self, pass: Pass) -> i64 {
        match (pass, self.leak) {
            (Pass::Far, Some(leak)) => leak,
            _ => 1,
        }
    }

    /// The distance that RoPE sees.
    pub fn distance(&self, query: i64, key: i64) -> f64 {
        let pass = self.pass(query, key);
        (self.query(query, pass) - self.key(key, pass)) as f64 / self.divisor(pass) as f64
    }
}

/// Dual Chunk Attention: keys keep their position in their chunk; a query has one position for its own chunk, one for the chunk
/// before, and one for all earlier ones.
///
/// With `c = chunk - local`:
///
/// | keys in | query at `p` | key at `p` |
/// |---|---|---|
/// | the query's chunk | `p mod c` | `p mod c` |
/// | the one before | `min(p mod c + c, chunk)` | `p mod c` |
/// | earlier ones | `min(2c - 1, chunk)` | `p mod c` |
///
/// For the tokens of sparse prefill that vLLM calls critical, the second is `p mod c + c` and the third `p mod c + chunk`.
///
/// # Panics
/// The functions of a position do for a local size as long as the chunk, which [`DualChunk::check`] refuses.
///
/// # Source
/// An et al. 2024 (arXiv 2402.17463), section 3; vLLM 0.32.0, `DualChunkRotaryEmbedding`, whose Qwen2.5-1M has a chunk of
/// 262144 and a local size of 8192.
///
/// # Example
/// ```
/// use posenc::position::DualChunk;
/// let qwen = DualChunk { chunk: 262_144, local: 8192 };
/// assert_eq!(qwen.distance(5, 0), 5);
/// assert_eq!(qwen.distance(1_000_000, 0), 262_144);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DualChunk {
    /// the longest distance
    pub chunk: i64,
    /// how far distances to the chunk before are exact
    pub local: i64,
}

/// Chunk of a key relative to that of a query, in [`DualChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Part {
    /// in the query's chunk
    Intra,
    /// in the chunk before
    Successive,
    /// in an earlier chunk
    Inter,
}

impl DualChunk {
    /// Refuses a local size outside the chunk.
    ///
    /// # Errors
    /// [`Error::Value`] with both numbers.
    pub fn check(&self) -> Result<()> {
        if self.local < 0 || self.local >= self.chunk {
            return wrong(format!(
                "Dual Chunk's local is {} and its chunk {}, local must be at least 0 and below the chunk",
                self.local, self.chunk
            ));
        }
        Ok(())
    }

    const fn length(&self) -> i64 {
        self.chunk - self.local
    }

    /// Chunk of a key relative to that of a query after it.
    pub const fn part(&self, query: i64, key: i64) -> Part {
        match query.div_euclid(self.length()) - key.div_euclid(self.length()) {
            ..=0 => Part::Intra,
            1 => Part::Successive,
            _ => Part::Inter,
        }
    }

    /// The position to rotate a key by.
    pub const fn key(&self, position: i64) -> i64 {
        position.rem_euclid(self.length())
    }

    /// The position to rotate a query by, for the keys of a part.
    pub fn query(&self, position: i64, part: Part) -> i64 {
        let length = self.length();
        match part {
            Part::Intra => position.rem_euclid(length),
            Part::Successive => (position.rem_euclid(length) + length).min(self.chunk),
            Part::Inter => (2 * length - 1).min(self.chunk),
        }
    }

    /// [`DualChunk::query`] for the critical tokens of sparse prefill, which are not held at the chunk's size.
    pub const fn query_critical(&self, position: i64, part: Part) -> i64 {
        let inside = position.rem_euclid(self.length());
        match part {
            Part::Intra => inside,
            Part::Successive => inside + self.length(),
            Part::Inter => inside + self.chunk,
        }
    }

    /// The distance that RoPE sees.
    pub fn distance(&self, query: i64, key: i64) -> i64 {
        self.query(query, self.part(query, key)) - self.key(key)
    }
}
