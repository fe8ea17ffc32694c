//! ALiBi: a straight line in the distance between query and key, one slope per head.
//!
//! ```text
//! bias(head, distance) = -slope(head) * |distance|
//! ```

use crate::bias::toeplitz::{check_few_heads, check_numbers};
use crate::bias::{DistanceGrad, Toeplitz};
use crate::memory::collected;
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Treatment of keys of the future, `distance > 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Sides {
    /// `-slope * |distance|` on both sides. The causal form too, when the future is masked.
    #[default]
    Symmetric,
    /// `slope * distance`: the future is rewarded. FlashInfer's form; equal to the others where it is masked.
    Signed,
    /// The first half of the heads sees the past alone, the second half the future alone; both halves have the slopes
    /// of `total_heads / 2` heads. The "nonsymmetric" encoder of
    /// [attention_with_linear_biases#5](https://github.com/ofirpress/attention_with_linear_biases/issues/5).
    Halves,
}

/// Attention with linear biases: the slopes of some of a model's heads.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#alibi).
///
/// With `P` the largest power of two that is at most `total_heads`, and `B = max_bias`, head `h` of the model has
///
/// ```text
/// slope(h) = 2^(-B * (h + 1) / P)                   h <  P
///            2^(-B / 2 * (2 * (h - P) + 1) / P)     h >= P
/// ```
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `total_heads` | heads | of the whole model: the law depends on it |
/// | `first` | heads | the first head of this shard |
/// | `heads` | heads | of this shard; shards of one model together have exactly the model's slopes |
/// | `max_bias` | | `B`, 8 in the paper; MPT's `alibi_bias_max` |
/// | `scale` | | multiplies every slope: a learned scale, else 1 |
/// | `sides` | | what happens to keys of the future |
///
/// # Source
/// "Train Short, Test Long" (arXiv 2108.12409), section 3, and its authors' code for head counts that are no power of
/// two; BLOOM, MPT, flash-attention, llama.cpp and FlashInfer agree with it. The paper's text alone, `2^(-8(h+1)/H)`,
/// is up to 45 times off at 12 heads (2^-6 for head 8, not 2^-0.5) and is what some ports use.
///
/// # Example
/// ```
/// use posenc::Alibi;
/// let alibi = Alibi::new(12);
/// assert_eq!(alibi.slope(0), 0.5);
/// assert_eq!(alibi.slope(8), 0.5f64.sqrt());
/// assert_eq!(alibi.slopes()?.bias(0, 0, -7), -3.5);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Alibi {
    /// heads of the whole model
    pub total_heads: usize,
    /// first head of this shard
    pub first: usize,
    /// heads of this shard
    pub heads: usize,
    /// the exponent of the smallest slope, negated
    pub max_bias: f64,
    /// multiplies every slope
    pub scale: f64,
    /// what happens to keys of the future
    pub sides: Sides,
}

impl Alibi {
    /// All heads of a model, `max_bias` 8, symmetric.
    pub const fn new(heads: usize) -> Self {
        Self { total_heads: heads, first: 0, heads, max_bias: 8.0, scale: 1.0, sides: Sides::Symmetric }
    }

    /// Heads `first .. first + heads` of the same model: one rank of tensor parallelism.
    #[must_use]
    pub const fn shard(self, first: usize, heads: usize) -> Self {
        Self { first, heads, ..self }
    }

    /// Refuses zero heads, a shard outside the model or of more than 65535, an odd count of heads for [`Sides::Halves`], and
    /// a `max_bias` or `scale` that is not finite, or not above 0.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        for (name, heads) in [("total_heads", self.total_heads), ("heads", self.heads)] {
            if heads == 0 {
                return wrong(format!("{name} is 0, it must be at least 1"));
            }
        }
        if self.first.checked_add(self.heads).is_none_or(|end| end > self.total_heads) {
            return wrong(format!(
                "ALiBi's shard of {} heads from head {} lies outside a model of {} heads",
                self.heads, self.first, self.total_heads
            ));
        }
        check_few_heads("ALiBi", self.heads)?;
        if self.sides == Sides::Halves && self.total_heads % 2 == 1 {
            return wrong(format!("total_heads is {}, Sides::Halves needs an even number", self.total_heads));
        }
        for (name, value) in [("max_bias", self.max_bias), ("scale", self.scale)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(format!("{name} is {value}, it must be finite and above 0"));
            }
        }
        Ok(())
    }
}

/// ALiBi's slopes as a kernel takes them: for each head, one for the past and one for the future.
///
/// ```text
/// bias(batch, head, distance) = left[batch, head] * distance       distance < 0
///                               0                                  distance = 0
///                               -right[batch, head] * distance     distance > 0
/// ```
///
/// Positive slopes lower the logits of far keys. An infinite slope masks its side.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Slopes {
    /// sequences with slopes of their own; 1: all share the same
    pub batch: usize,
    /// heads
    pub heads: usize,
    /// of keys before the query, `[batch, heads]`
    pub left: Vec<f32>,
    /// of keys after the query, `[batch, heads]`
    pub right: Vec<f32>,
}

impl Slopes {
    /// Slopes of the caller, `[heads]` or `[batch, heads]`, the same for both sides.
    ///
    /// # Errors
    /// If there are no heads, `slopes` does not hold a multiple of `heads`, or a slope is NaN.
    pub fn symmetric(heads: usize, slopes: &[f32]) -> Result<Self> {
        Self::new(heads, slopes, slopes)
    }

    /// Slopes of the caller, `[heads]` or `[batch, heads]`, one set for each side.
    ///
    /// # Errors
    /// If there are no heads, the sets differ in length or do not hold a multiple of `heads`, or a slope is NaN.
    pub fn new(heads: usize, left: &[f32], right: &[f32]) -> Result<Self> {
        let batch = (left.len() / heads.max(1)).max(1);
        let slopes = Self { batch, heads, left: left.to_vec(), right: right.to_vec() };
        slopes.check()?;
        Ok(slopes)
    }

    /// Refuses no heads, sides that do not hold one slope for each head of each sequence, and NaN.
    pub(crate) fn check(&self) -> Result<()> {
        let (batch, heads) = (self.batch, self.heads);
        if heads == 0 {
            return Err(Error::Value("slopes have 0 heads, there must be at least 1".into()));
        }
        let need = batch.checked_mul(heads).filter(|&need| need > 0);
        if need != Some(self.left.len()) || need != Some(self.right.len()) {
            return Err(Error::Value(format!(
                "slopes hold {} on the left and {} on the right, both must hold {heads} heads for each of {batch} sequences",
                self.left.len(),
                self.right.len()
            )));
        }
        for (side, slopes) in [("left", &self.left), ("right", &self.right)] {
            if let Some(index) = slopes.iter().position(|slope| slope.is_nan()) {
                return Err(Error::Value(format!("the {side} slope {index} is NaN")));
            }
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Alibi {
    /// The slope of head `head` of this shard.
    ///
    /// # Panics
    /// If there is no such head, or of a spec with too few heads in all, which [`Alibi::check`] refuses.
    pub fn slope(&self, head: usize) -> f64 {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        let (total, head) = match self.sides {
            Sides::Halves => (self.total_heads / 2, (self.first + head) % (self.total_heads / 2)),
            _ => (self.total_heads, self.first + head),
        };
        let power = 1usize << total.ilog2();
        let exponent = if head < power {
            self.max_bias * (head + 1) as f64 / power as f64
        } else {
            self.max_bias / 2.0 * (2 * (head - power) + 1) as f64 / power as f64
        };
        self.scale * (-exponent).exp2()
    }

    /// The slopes of one rank of `ranks` among which the model's heads are shared equally, `total_heads / ranks` rounded up each:
    /// the heads that pad the last ranks have slopes of 0.
    ///
    /// # Errors
    /// As [`Alibi::check`], and [`Error::Value`] if this is a shard itself or there is no such rank.
    ///
    /// # Example
    /// ```
    /// use posenc::Alibi;
    /// // 66 heads on 8 ranks: 9 each, of which the last rank has 3.
    /// let slopes = Alibi::new(66).padded_shard(8, 7)?;
    /// assert_eq!(slopes.bias(0, 0, -1), -Alibi::new(66).slope(63));
    /// assert_eq!(slopes.bias(0, 3, -1), 0.0);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn padded_shard(&self, ranks: usize, rank: usize) -> Result<Slopes> {
        let wrong = |text: String| Err(Error::Value(text));
        if (self.first, self.heads) != (0, self.total_heads) {
            return wrong(format!(
                "{} heads from head {} are a shard of {} already",
                self.heads, self.first, self.total_heads
            ));
        }
        if ranks == 0 || rank >= ranks {
            return wrong(format!("rank is {rank} of {ranks}, it must be below the number of ranks"));
        }
        self.check()?;
        let each = self.total_heads.div_ceil(ranks);
        let first = rank * each;
        let own = self.total_heads.saturating_sub(first).min(each);
        let mut sides = [vec![0.0; each], vec![0.0; each]];
        if own > 0 {
            let slopes = self.shard(first, own).slopes()?;
            sides[0][..own].copy_from_slice(&slopes.left);
            sides[1][..own].copy_from_slice(&slopes.right);
        }
        Slopes::new(each, &sides[0], &sides[1])
    }

    /// The slopes of both sides, rounded to f32.
    ///
    /// # Errors
    /// As [`Alibi::check`].
    pub fn slopes(&self) -> Result<Slopes> {
        self.check()?;
        let slopes: Vec<f32> = (0..self.heads).map(|head| self.slope(head) as f32).collect();
        let side = |value: fn(&Self, usize, f32) -> f32| {
            slopes.iter().enumerate().map(|(head, &slope)| value(self, head, slope)).collect::<Vec<_>>()
        };
        let (left, right) = match self.sides {
            Sides::Symmetric => (slopes.clone(), slopes.clone()),
            Sides::Signed => (slopes.clone(), side(|_, _, slope| -slope)),
            Sides::Halves => (
                side(|alibi, head, slope| if alibi.looks_forward(head) { f32::INFINITY } else { slope }),
                side(|alibi, head, slope| if alibi.looks_forward(head) { slope } else { f32::INFINITY }),
            ),
        };
        Slopes::new(self.heads, &left, &right)
    }

    fn looks_forward(&self, head: usize) -> bool {
        self.first + head >= self.total_heads / 2
    }
}

impl Slopes {
    /// The bias of `head` of sequence `batch` at `distance`.
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn bias(&self, batch: usize, head: usize, distance: i64) -> f64 {
        let index = if self.batch == 1 { 0 } else { batch * self.heads } + head;
        match distance.signum() {
            0 => 0.0,
            -1 => f64::from(self.left[index]) * distance as f64,
            _ => -f64::from(self.right[index]) * distance as f64,
        }
    }

    /// The largest error of a bias that an f32 kernel computes from these slopes: `|bias| * 2 * 2^-24`.
    ///
    /// The distance is rounded to f32 (exact up to 2^24), and so is the product. The error is relative: at any
    /// distance, a key whose bias is above -104, below which a softmax in f32 gives it no weight, is off by 1.3e-5 at
    /// most. A key-only form, `slope * key`, is off by 5e-2 at a million keys.
    pub fn error_bound(bias: f64) -> f64 {
        bias.abs() * 2.0 * f32::ROUNDOFF
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of [`Slopes`], `[heads]` each, summed over the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct SlopesGrad {
    /// of the slopes of the past
    pub left: Vec<f64>,
    /// of the slopes of the future
    pub right: Vec<f64>,
}

/// A library's own form of ALiBi: a number per key, whatever the query, in the library's rounding.
///
/// A softmax with a causal mask does not notice what is added to a whole row, so that `slope * key` stands for
/// `-slope * (query - key)`. It is kept for parity: its numbers grow with the position and are rounded there, and its
/// log-sum-exp is shifted by `slope * query`, so that parts of a row can only be merged with parts of the same form.
/// The numbers go into a softmax as an additive mask `[1, heads, 1, keys]`, or, where they are added before the scale, as
/// a [`BiasPlan::key_only`](crate::BiasPlan::key_only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum KeyOnly {
    /// `slope * position`, the product rounded to the element type. Hugging Face's BLOOM.
    Bloom,
    /// `slope * (position - last)` with the last key's position. Hugging Face's MPT and llm-foundry.
    Mpt,
    /// `slope * position` in f32. flash-attention's causal kernels, up to the softmax.
    FlashAttention,
    /// `slope * position` with slope, position and product rounded to bf16, whatever the element type. Falcon-RW; a bias
    /// with [`Order::BiasThenScale`](crate::attend::Order), or times the scale where Hugging Face has folded it into the mask.
    Falcon,
}

impl KeyOnly {
    /// The numbers of every head and key, `[heads, keys]`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `alibi` | | the slopes; `sides` plays no part |
    /// | `positions` | `[keys]` | BLOOM and Falcon count attended tokens from 0 and give padding 0 |
    ///
    /// # Accuracy
    /// `FlashAttention` and `Mpt` round the closed form's slope to f32. BLOOM and Falcon raise an f32 base to integer
    /// powers instead, up to 7e-7 from the closed form; that is followed, with the power itself rounded to the nearest.
    ///
    /// # Errors
    /// As [`Alibi::check`].
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{Alibi, KeyOnly};
    /// let row: Vec<f32> = KeyOnly::Mpt.row(&Alibi::new(1), &[0, 1, 2])?;
    /// assert_eq!(row, [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn row<T: Scalar>(self, alibi: &Alibi, positions: &[i32]) -> Result<Vec<T>> {
        alibi.check()?;
        let last = positions.last().copied().unwrap_or(0);
        let bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
        let number = |head: usize, position: i32| match self {
            Self::Bloom => alibi.slope_by_powers(head) * position as f32,
            Self::Mpt => alibi.slope(head) as f32 * (i64::from(position) - i64::from(last)) as f32,
            Self::FlashAttention => alibi.slope(head) as f32 * position as f32,
            Self::Falcon => bf16(bf16(alibi.slope_by_powers(head)) * bf16(position as f32)),
        };
        let (heads, count) = (0..alibi.heads, alibi.heads.saturating_mul(positions.len()));
        let numbers = heads.flat_map(|head| positions.iter().map(move |&p| T::from_f32(number(head, p))));
        collected("numbers by head and key", count, numbers)
    }
}

impl KeyOnly {
    /// [`KeyOnly::row`] for the key positions from 0 to below `keys`, for [`BiasPlan::key_only`](crate::BiasPlan::key_only).
    ///
    /// # Errors
    /// As [`Alibi::check`], and if there are no keys.
    pub fn bias(self, alibi: &Alibi, keys: usize) -> Result<Toeplitz> {
        let last = i32::try_from(keys).map_err(|_| Error::Overflow(format!("{keys} keys")))?;
        check_numbers(alibi.heads.saturating_mul(keys), 0)?;
        let positions = collected("keys", keys, 0..last)?;
        let row = Toeplitz { heads: alibi.heads, first: 0, values: self.row(alibi, &positions)?, saturates: false };
        row.check()?;
        Ok(row)
    }
}

impl Alibi {
    /// The slope as BLOOM and Falcon compute it: an f32 base raised to an integer power.
    fn slope_by_powers(&self, head: usize) -> f32 {
        let head = self.first + head;
        let power = 1usize << self.total_heads.ilog2();
        let (base, exponent) = if head < power {
            ((-self.max_bias / power as f64).exp2(), head + 1)
        } else {
            ((-self.max_bias / 2.0 / power as f64).exp2(), 2 * (head - power) + 1)
        };
        // An exponent is at most twice the heads, which a shape limits to 31 bits.
        f64::from(base as f32).powi(exponent as i32) as f32
    }
}

impl Slopes {
    /// The gradients of slopes that a batch shares, from the gradient of the bias summed by distance.
    ///
    /// ```text
    /// left[head] = sum over distance < 0 of grad[head, distance] * distance
    /// right[head] = sum over distance > 0 of grad[head, distance] * -distance
    /// ```
    ///
    /// A symmetric slope's gradient is the sum of both.
    pub fn grad(grad: &DistanceGrad) -> SlopesGrad {
        let mut sums = SlopesGrad { left: vec![0.0; grad.heads], right: vec![0.0; grad.heads] };
        for head in 0..grad.heads {
            for (distance, value) in grad.of(head) {
                let side = if distance < 0 { &mut sums.left } else { &mut sums.right };
                side[head] += value * -(distance.unsigned_abs() as f64);
            }
        }
        sums
    }
}
