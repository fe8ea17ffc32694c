//! RoPE: pairs of channels of a query or key are rotated by an angle that is proportional to the token's position.
//!
//! Pair `i` at position `p` turns by `p * frequency(i)`:
//!
//! ```text
//! a' = a * cos - b * sin
//! b' = a * sin + b * cos
//! ```

#[cfg(any(feature = "cpu", feature = "cuda"))]
mod law;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(feature = "cuda")]
mod plans;

#[cfg(any(feature = "cpu", feature = "cuda"))]
pub(crate) use law::{Law, Rates};
#[cfg(feature = "cuda")]
pub(super) use plan::DeviceRates;
#[cfg(feature = "cuda")]
pub use plan::{Keys, RopePlan, Rotation};
#[cfg(feature = "cuda")]
pub use plans::RopePlans;

use crate::accuracy::{Expected, rounded};
use crate::double::Double;
use crate::position::Positions;
use crate::rotate::{Axes, Mixed, Scaling};
use crate::shape::Shape;
use crate::{Error, Heads, Pairing, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Direction {
    /// by `+angle`
    #[default]
    Forward,
    /// By `-angle`: undoes a forward rotation (up to [`Rope::attention_factor`], which multiplies again), and is its
    /// gradient.
    Inverse,
}

/// Source of the angles.
///
/// More: [docs](crate::docs::rotate#accuracy).
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Angles {
    /// The exact phase, `position * frequency` modulo one turn in 64-bit integers: cos and sin within 1e-7 of the truth at
    /// every position from -2^31 to 2^31 - 1.
    #[default]
    Exact,
    /// The arithmetic of Hugging Face's models: the frequency in f32 ([`Rope::compat_frequency`]), the position in f32, their
    /// product rounded to f32, and the nearest cosine and sine of that, which Hugging Face's are within a unit in the last
    /// place of. For parity with a checkpoint's reference code; off by 9e-3 at position 131072 and by 8e-2 at a million.
    HfCompat,
    /// [`Angles::HfCompat`] with frequencies of the caller, one for each pair: a model's `inv_freq` buffer, made on
    /// another machine. Base, scaling and ladders then say nothing.
    Given(Vec<f32>),
    /// The exact phase of a sum over axes, `position * frequency` of each, with frequencies of the caller for every head. Base,
    /// scaling and axes then say nothing.
    Mixed(Mixed),
}

impl Angles {
    /// Whether angles are products in f32.
    const fn in_f32(&self) -> bool {
        matches!(self, Self::HfCompat | Self::Given(_))
    }
}

/// Rotary position embedding: what to compute, without shape, element type or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#rope).
///
/// `angle(position, pair) = position * frequency(pair)`, and `attention_factor` multiplies cosine and sine.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `rotary` | channels | rotated channels of a head, even; the others pass through |
/// | `offset` | channels | first rotated channel; heads of `rotary` channels hold nothing else and are rotated whole, as the keys of latent attention are |
/// | `pairing` | | which channels form a pair |
/// | `base` | | theta of the paper, 10000 there |
/// | `scaling` | | what stretches the frequencies |
/// | `attention_factor` | | multiplies cos and sin; YaRN's and LongRoPE's `mscale`, else 1 |
/// | `axes` | | which axis of the position turns a pair; one for text |
/// | `pairing_out` | | where a pair is written, if not where it was read; only out of place |
/// | `angles` | | how a position becomes an angle |
/// | `fraction_bits` | bits | a position on each axis is a whole number of units of `2^-bits`; empty: of ones |
///
/// # Positions between whole numbers
/// A position in seconds, a coordinate scaled to a reference size or the centre of a patch is a whole number of units of
/// `2^-bits`: [`fixed`](crate::position::fixed) makes it. The frequency of a unit is as exact as that of a position, so that the
/// phase is off by `|units| * 2^-65` turns at most and cosine and sine are within 1e-7 from -2^31 to 2^31 - 1 units. An hour, in
/// units of 2^-19 seconds (1.9 us), is below 2^31 of them; a day is 2^35.4, where the phase is within 7.7e-9 rad of the truth.
///
/// # Source
/// RoFormer (arXiv 2104.09864), section 3.2.2, equations 15 and 34.
///
/// # Example
/// ```
/// use posenc::{Pairing, Rope};
/// let rope = Rope { pairing: Pairing::Interleaved, ..Rope::new(128, 10_000.0) };
/// assert_eq!(rope.frequency(0), 1.0);
/// assert_eq!(rope.frequency(32), 0.01);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rope {
    /// rotated channels of a head
    pub rotary: usize,
    /// first rotated channel
    pub offset: usize,
    /// which channels form a pair
    pub pairing: Pairing,
    /// theta
    pub base: f64,
    /// what stretches the frequencies
    pub scaling: Scaling,
    /// multiplies cos and sin
    pub attention_factor: f64,
    /// which axis of the position turns a pair
    pub axes: Axes,
    /// Pairing of the output; `None`: that of the input. Hugging Face's DeepSeek-V3 reads interleaved pairs and writes
    /// halves, which scores do not show and a cache of keys does.
    pub pairing_out: Option<Pairing>,
    /// how a position becomes an angle
    pub angles: Angles,
    /// Fraction bits of positions, for each axis; empty: positions are whole
    #[cfg_attr(feature = "serde", serde(default))]
    pub fraction_bits: Vec<u32>,
}

/// Rotated channels of a head, at most: far above any model's, and few enough for a plan to be made at once.
const MOST_ROTARY: usize = 1 << 16;
/// Fraction bits of a position, at most: ones still fit into 64 bits.
const MOST_FRACTION_BITS: u32 = 62;

impl Rope {
    /// RoPE over the first `rotary` channels, in halves, without scaling.
    pub const fn new(rotary: usize, base: f64) -> Self {
        Self {
            rotary,
            offset: 0,
            pairing: Pairing::Half,
            base,
            scaling: Scaling::None,
            attention_factor: 1.0,
            axes: Axes::One,
            pairing_out: None,
            angles: Angles::Exact,
            fraction_bits: Vec::new(),
        }
    }

    /// No rotation, for layers without RoPE wherever a rope is asked for: in place nothing is touched, elsewhere all is copied.
    /// It has no channels and the base 1, which no other spec has.
    ///
    /// ```
    /// use posenc::{Direction, Heads, Rope};
    /// let mut x = [1.0f32, 2.0, 3.0];
    /// Rope::none().rotate(&mut x, &Heads::thd(1, 1, 3), &[7], Direction::Forward)?;
    /// assert_eq!(x, [1.0, 2.0, 3.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub const fn none() -> Self {
        Self::new(0, 1.0)
    }

    /// Whether nothing is rotated.
    pub fn is_none(&self) -> bool {
        self.rotary == 0
    }

    /// Pairs that are rotated, `rotary / 2`.
    pub const fn pairs(&self) -> usize {
        self.rotary / 2
    }

    /// The two channels of `pair` in `pairing`, counted from the first rotated channel.
    pub(crate) const fn channels(&self, pairing: Pairing, pair: usize) -> (usize, usize) {
        let size = self.pairs() / self.axes.blocks();
        let (a, b) = pairing.channels(pair % size, 2 * size);
        let block = pair / size * 2 * size;
        (block + a, block + b)
    }

    /// Axes of a token's position: the rows of positions that a call takes.
    pub fn position_axes(&self) -> usize {
        match &self.angles {
            Angles::Mixed(mixed) => mixed.axes,
            _ => self.axes.count(),
        }
    }

    /// Sets of frequencies that heads share equally; 1: all heads have the same.
    pub(crate) const fn sets(&self) -> usize {
        match &self.angles {
            Angles::Mixed(mixed) => mixed.heads,
            _ => 1,
        }
    }

    /// Refuses heads that do not share the sets of frequencies equally.
    pub(crate) fn check_sets(&self, name: &str, heads: usize) -> Result<()> {
        let sets = self.sets();
        if heads.is_multiple_of(sets) {
            return Ok(());
        }
        Err(Error::Value(format!("{name} has {heads} heads, which {sets} sets of frequencies do not share equally")))
    }

    /// A unit of positions on `axis`.
    pub(crate) fn unit(&self, axis: usize) -> f64 {
        self.fraction_bits.get(axis).map_or(1.0, |&bits| 0.5f64.powi(bits as i32))
    }

    /// Pairing of the output.
    pub fn written(&self) -> Pairing {
        self.pairing_out.unwrap_or(self.pairing)
    }

    /// Refuses a spec outside the law: odd or zero `rotary` or one above 65536, a base that is not finite and above 0, a
    /// scaling's parameters outside its own law, axes that do not fit the pairs, frequencies that are not finite.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        if *self == Self::none() {
            return Ok(());
        }
        if self.rotary == 0 || self.rotary % 2 == 1 {
            return wrong(format!("rotary is {}, it must be even and at least 2", self.rotary));
        }
        if self.rotary > u32::MAX as usize || self.offset > u32::MAX as usize {
            return wrong(format!("rotary is {} and offset {}, both must be below 2^32", self.rotary, self.offset));
        }
        if self.rotary > MOST_ROTARY {
            return wrong(format!("rotary is {}, it must be at most {MOST_ROTARY}", self.rotary));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return wrong(format!("base is {}, it must be finite and above 0", self.base));
        }
        let factor = self.attention_factor as f32;
        if !(factor.is_finite() && factor > 0.0) {
            return wrong(format!(
                "attention_factor is {}, it must be finite and above 0 in f32",
                self.attention_factor
            ));
        }
        if let Angles::Given(list) = &self.angles {
            if list.len() != self.pairs() {
                return wrong(format!(
                    "{} frequencies are given, the rotary part has {} pairs",
                    list.len(),
                    self.pairs()
                ));
            }
            if let Some(at) = list.iter().position(|frequency| !frequency.is_finite()) {
                return wrong(format!("the frequencies given hold {} at {at}, they must be finite", list[at]));
            }
        }
        if let Angles::Mixed(mixed) = &self.angles {
            mixed.check(self.pairs())?;
            if self.axes != Axes::One {
                return wrong("mixed angles have axes of their own, `axes` must be `One`".into());
            }
        }
        self.axes.check(self.pairs())?;
        if !matches!(self.fraction_bits.len(), 0) && self.fraction_bits.len() != self.position_axes() {
            return wrong(format!(
                "fraction_bits holds {} numbers, positions have {} axes",
                self.fraction_bits.len(),
                self.position_axes()
            ));
        }
        if let Some(bits) = self.fraction_bits.iter().find(|&&bits| bits > MOST_FRACTION_BITS) {
            return wrong(format!("fraction_bits holds {bits}, a position has at most {MOST_FRACTION_BITS}"));
        }
        if !self.axes.one_ladder()
            && !matches!(self.scaling, Scaling::None | Scaling::Linear { .. } | Scaling::Divisors(_))
        {
            return wrong("axes with ladders of their own go with no scaling, a linear one or divisors".into());
        }
        self.scaling.check(self.base, self.rotary)?;
        self.check_frequencies()
    }

    /// Refuses a law that gives a frequency which is not finite.
    fn check_frequencies(&self) -> Result<()> {
        let last = self.pairs() - 1;
        // A ladder's frequencies lie between those of its ends.
        let step = if self.axes.one_ladder() && !self.scaling.is_uneven() { last.max(1) } else { 1 };
        for pair in (0..=last).step_by(step) {
            let frequency =
                if self.angles.in_f32() { f64::from(self.compat_frequency(pair)) } else { self.frequency(pair) };
            if !frequency.is_finite() {
                return Err(Error::Value(format!(
                    "the frequency of pair {pair} is {frequency} with base {:?}, it must be finite",
                    self.base
                )));
            }
        }
        Ok(())
    }

    /// [`Rope::check`], and that the rotated channels lie inside a head of `dim` channels.
    #[doc(hidden)]
    pub fn check_head(&self, dim: usize) -> Result<()> {
        self.check()?;
        self.check_fits(dim)
    }

    /// The first rotated channel of a head of `dim` channels: of the rotary part alone the first, whatever stands before it in
    /// other heads.
    #[doc(hidden)]
    pub const fn first_channel(&self, dim: usize) -> usize {
        if dim == self.rotary { 0 } else { self.offset }
    }

    /// Refuses a head of `dim` channels that the rotated ones leave.
    pub(crate) fn check_fits(&self, dim: usize) -> Result<()> {
        if self.first_channel(dim) + self.rotary > dim {
            return Err(Error::Value(format!(
                "the rotary part ends at channel {} ({} from {}), a head has {dim}",
                self.offset + self.rotary,
                self.rotary,
                self.offset
            )));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Rope {
    /// Radians per position of `pair` by base, scaling and axes, the nearest `f64`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn frequency(&self, pair: usize) -> f64 {
        self.exact_frequency(pair).hi
    }

    /// Turns per position, or per unit of it, of `pair` in units of 2^-64, rounded to the nearest: what a kernel multiplies
    /// positions by.
    ///
    /// The law is evaluated in 106 bits, so that the phase at position `p` is `|p| * 2^-65` turns from the truth at
    /// most: 3.7e-10 rad at 2^31.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn rate(&self, pair: usize) -> u64 {
        let axis = self.axes.axis(pair, self.pairs());
        self.exact_frequency(pair).scaled(self.unit(axis)).rate()
    }

    /// The rates of each axis of a pair in one set of heads, and the axis.
    fn rates(&self, set: usize, pair: usize) -> Vec<(usize, u64)> {
        match &self.angles {
            Angles::Mixed(mixed) => {
                let rate = |axis| mixed.rate(axis, set, pair, self.pairs(), self.unit(axis));
                (0..mixed.axes).map(|axis| (axis, rate(axis))).collect()
            }
            _ => vec![(self.axes.axis(pair, self.pairs()), self.rate(pair))],
        }
    }

    /// What a kernel multiplies positions by: `[pairs]`, of mixed angles `[axes, heads, pairs]`.
    pub(crate) fn all_rates(&self) -> Vec<u64> {
        match &self.angles {
            Angles::Mixed(mixed) => mixed.rates(self.pairs(), |axis| self.unit(axis)),
            _ => (0..self.pairs()).map(|pair| self.rate(pair)).collect(),
        }
    }

    fn exact_frequency(&self, pair: usize) -> Double {
        assert!(pair < self.pairs(), "pair {pair} of {}", self.pairs());
        let (rung, size) = self.axes.rung(pair, self.pairs());
        self.scaling.frequency(self.base, size, rung, pair)
    }

    /// The angle of `pair` at `position`, in units of the position and the same on every axis, in radians; exact ones lie within
    /// half a turn of zero. Of mixed angles those of the first heads.
    pub fn angle(&self, position: i64, pair: usize) -> f64 {
        self.turner(0, pair)(&vec![position; self.position_axes()])
    }

    /// The angle of one pair in one set of heads by the position on each axis, its law evaluated once.
    fn turner(&self, set: usize, pair: usize) -> impl Fn(&[i64]) -> f64 {
        let axis = self.axes.axis(pair, self.pairs());
        let (rates, frequency) = if self.angles.in_f32() {
            (Vec::new(), Some(self.compat_frequency(pair)))
        } else {
            (self.rates(set, pair), None)
        };
        move |at| match frequency {
            // Exact modulo one turn; as a signed number it is the turn nearest to zero.
            None => {
                let phase =
                    rates.iter().fold(0u64, |sum, &(axis, rate)| sum.wrapping_add(rate.wrapping_mul(at[axis] as u64)));
                phase as i64 as f64 * (std::f64::consts::TAU / 18446744073709551616.0)
            }
            Some(frequency) => f64::from(at[axis] as f32 * frequency),
        }
    }

    /// The largest error of a rotated element before it is rounded to its type, for the pair `(a, b)` that it came
    /// from: `attention_factor * (|a| + |b|) * (1e-7 + 4 * 2^-24) + 2^-148`.
    ///
    /// 1e-7 is the error of cosine and sine; four roundings follow: of `attention_factor` to f32, of its product with
    /// the cosine, of one product and of the sum. 2^-148 is what products below the normal range lose.
    pub fn error_bound(&self, a: f64, b: f64) -> f64 {
        self.attention_factor * (a.abs() + b.abs()) * (1e-7 + 4.0 * f32::ROUNDOFF) + 4.0 * f32::TINY
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Rope {
    /// Rotates `x` in place on the CPU.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `heads` | queries or keys; channels outside the rotary part stay as they are |
    /// | `heads` | | sizes and strides of `x`, in elements |
    /// | `positions` | see [`Positions`] | any integers; a slice holds `[axes, batch, tokens]`. A text's are the same for every axis |
    ///
    /// With the feature `cpu` in vectors, and large tensors shared out among rayon's threads; the result does not depend on their
    /// number. A spec's sines and cosines of the last four lists of positions are kept, if they are at most 1 MiB (1024 tokens of
    /// 128 channels): the layers of a model ask for the same.
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 2e-15 of the pair. `f16` and `bf16` are rotated in f32, by cosines and sines
    /// that are rounded to it: 1.2e-7 of the pair.
    ///
    /// # Errors
    /// If the spec or the shape is refused, or `positions` is shorter than the tokens. Nothing is written then.
    ///
    /// # Source
    /// RoFormer (arXiv 2104.09864), equation 34.
    ///
    /// # Example
    /// ```
    /// use posenc::{Direction, Heads, Rope};
    /// let rope = Rope::new(2, 10_000.0);
    /// let mut x = [1.0f32, 0.0];
    /// rope.rotate(&mut x, &Heads::thd(1, 1, 2), &[1], Direction::Forward)?;
    /// assert_eq!(x, [1f64.cos() as f32, 1f64.sin() as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rotate<'a, T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: impl Into<Positions<&'a [i64]>>,
        direction: Direction,
    ) -> Result<()> {
        self.turn(None, x, heads, positions.into(), direction)
    }

    /// Rotates `x` into `out` on the CPU: for queries and keys that stay as they are, and for a framework's tensors of any strides.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | its own | queries or keys, read; channels outside the rotary part are copied |
    /// | `out` | its own, of the same sizes | written |
    /// | `positions`, `direction` | | as in [`Rope::rotate`] |
    ///
    /// Every element is read and written once. Accuracy is that of [`Rope::rotate`].
    ///
    /// # Errors
    /// As [`Rope::rotate`], and if the sizes of both shapes differ.
    ///
    /// # Example
    /// ```
    /// use posenc::{Direction, Heads, Positions, Rope};
    /// // [batch, heads, tokens, dim] in, [batch, tokens, heads, dim] out.
    /// let (x, mut out) = ([1.0f32, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], [0.0; 8]);
    /// let (from, to) = (Heads::bhtd(1, 2, 2, 2), Heads::bthd(1, 2, 2, 2));
    /// Rope::new(2, 10_000.0).rotate_to((&x, &from), (&mut out, &to), Positions::counted(), Direction::Forward)?;
    /// let (sin, cos) = (1f64.sin() as f32, 1f64.cos() as f32);
    /// assert_eq!(out, [1.0, 0.0, 0.0, 1.0, cos, sin, -sin, cos]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rotate_to<'a, T: Scalar>(
        &self,
        (x, heads): (&[T], &Heads),
        (out, out_heads): (&mut [T], &Heads),
        positions: impl Into<Positions<&'a [i64]>>,
        direction: Direction,
    ) -> Result<()> {
        self.turn(Some((x, heads)), out, out_heads, positions.into(), direction)
    }

    /// Rotates `x` in place, or what `from` reads.
    fn turn<T: Scalar>(
        &self,
        from: Option<(&[T], &Heads)>,
        x: &mut [T],
        heads: &Heads,
        positions: Positions<&[i64]>,
        direction: Direction,
    ) -> Result<()> {
        #[cfg(feature = "cpu")]
        let law = Law::of(self)?;
        #[cfg(not(feature = "cpu"))]
        self.check()?;
        let read = from.map_or(heads, |(_, heads)| heads);
        self.check_fits(read.dim)?;
        self.check_sets("x", read.heads)?;
        match from {
            None => {
                heads.check_written("x", x.len())?;
            }
            Some((from, read)) => {
                read.check("x", from.len())?;
                heads.check_written("out", x.len())?;
                read.check_same("x", heads, "out")?;
            }
        }
        let resolved = positions.resolve(self.position_axes(), heads.batch, heads.tokens)?;
        if heads.is_empty() {
            return Ok(());
        }
        #[cfg(feature = "cpu")]
        if !self.is_none() {
            return super::cpu::rotate((self, &law), from, x, heads, &resolved, direction);
        }
        if let Some((from, of)) = from {
            let each = (0..heads.batch * heads.tokens * heads.heads)
                .map(|i| (i / heads.heads / heads.tokens, i / heads.heads % heads.tokens, i % heads.heads));
            for (batch, token, head) in each {
                let (from_at, at) = (of.index(batch, token, head, 0), heads.index(batch, token, head, 0));
                x[at..at + heads.dim].copy_from_slice(&from[from_at..from_at + heads.dim]);
            }
        }
        self.rotate_f64(x, heads, (&resolved[..]).into(), direction, self.sin_cos(), |x, _, outputs, values| {
            for (index, value) in outputs.into_iter().zip(values) {
                x[index] = T::from_f64(value);
            }
        })
    }

    /// The wanted values in f64 and the error allowed at each element, for comparison with a rotation of `x`.
    ///
    /// # Errors
    /// As [`Rope::rotate`].
    pub fn expect<'a, T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: impl Into<Positions<&'a [i64]>>,
        direction: Direction,
    ) -> Result<Expected> {
        self.check()?;
        self.expect_f64(x, heads, positions.into(), direction, self.sin_cos())
    }

    /// [`Rope::expect`] for a rotation by a table: row `position` of `cos` and `sin`, each `[rows, pairs]`; positions beyond
    /// them take the nearest row.
    ///
    /// # Errors
    /// As [`Rope::rotate`], and if the tables are empty, ragged or of different sizes.
    pub fn expect_by_table<'a, T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: impl Into<Positions<&'a [i64]>>,
        direction: Direction,
        (cos, sin): (&[f64], &[f64]),
    ) -> Result<Expected> {
        self.check_table()?;
        let pairs = self.pairs().max(1);
        if cos.is_empty() || cos.len() % pairs != 0 || cos.len() != sin.len() {
            return Err(Error::Value(format!(
                "cos holds {} values and sin {}, both must hold the same number of rows of {pairs}",
                cos.len(),
                sin.len()
            )));
        }
        let last = (cos.len() / pairs - 1) as i64;
        let axes: Vec<_> = (0..self.pairs()).map(|pair| self.axes.axis(pair, self.pairs())).collect();
        self.expect_f64(x, heads, positions.into(), direction, |_, pair, at| {
            let at = at[axes[pair]].clamp(0, last) as usize * pairs + pair;
            (sin[at], cos[at])
        })
    }

    /// Refuses what has no rows in a table of cosines and sines by whole position.
    pub(crate) fn check_table(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::Value(text.into()));
        if self.is_none() {
            return wrong("a table has rows of angles, this rope is no rotation");
        }
        if matches!(self.angles, Angles::Mixed(_)) {
            return wrong("a table has a row for each position, mixed angles depend on all axes and on the head");
        }
        if self.fraction_bits.iter().any(|&bits| bits > 0) {
            return wrong("a table has rows for whole positions, these have fraction bits");
        }
        Ok(())
    }

    /// Sine and cosine by set of heads, pair and the position on each axis.
    pub(super) fn sin_cos(&self) -> impl Fn(usize, usize, &[i64]) -> (f64, f64) {
        let pairs = self.pairs();
        let turners: Vec<_> = (0..self.sets() * pairs).map(|i| self.turner(i / pairs, i % pairs)).collect();
        move |set, pair, at| turners[set * pairs + pair](at).sin_cos()
    }

    fn expect_f64<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: Positions<&[i64]>,
        direction: Direction,
        sin_cos: impl Fn(usize, usize, &[i64]) -> (f64, f64),
    ) -> Result<Expected> {
        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; x.len()];
        let mut source = x.to_vec();
        self.rotate_f64(&mut source, heads, positions, direction, sin_cos, |_, [a, b], outputs, values| {
            let error = self.error_bound(x[a].to_f64(), x[b].to_f64());
            for (index, value) in outputs.into_iter().zip(values) {
                want[index] = value;
                bound[index] = rounded::<T>(value, error);
            }
        })?;
        Ok(Expected { want, bound })
    }

    fn rotate_f64<T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: Positions<&[i64]>,
        direction: Direction,
        sin_cos: impl Fn(usize, usize, &[i64]) -> (f64, f64),
        mut put: impl FnMut(&mut [T], [usize; 2], [usize; 2], [f64; 2]),
    ) -> Result<()> {
        self.check_head(heads.dim)?;
        self.check_sets("x", heads.heads)?;
        heads.check_written("x", x.len())?;
        let row = heads.batch * heads.tokens;
        let axes = self.position_axes();
        let positions = positions.resolve(axes, heads.batch, heads.tokens)?;
        let pairs: Vec<_> = (0..self.pairs())
            .map(|pair| {
                let (a, b) = self.channels(self.pairing, pair);
                let (a_out, b_out) = self.channels(self.written(), pair);
                ([a, b], [a_out, b_out])
            })
            .collect();
        let mut inputs = vec![[0.0; 2]; pairs.len()];
        let mut turns = vec![(0.0, 0.0); pairs.len()];
        let mut at = vec![0; axes];
        let sharing = heads.heads / self.sets();
        for batch in 0..if heads.is_empty() { 0 } else { heads.batch } {
            for token in 0..heads.tokens {
                for (axis, at) in at.iter_mut().enumerate() {
                    *at = positions[axis * row + batch * heads.tokens + token];
                }
                for head in 0..heads.heads {
                    if head % sharing == 0 {
                        for (pair, turn) in turns.iter_mut().enumerate() {
                            let (sin, cos) = sin_cos(head / sharing, pair, &at);
                            let sin = if direction == Direction::Forward { sin } else { -sin };
                            *turn = (sin * self.attention_factor, cos * self.attention_factor);
                        }
                    }
                    let first = self.first_channel(heads.dim);
                    let place =
                        |channels: [usize; 2]| channels.map(|channel| heads.index(batch, token, head, first + channel));
                    // All pairs of a head are read before one is written: they may move.
                    for (input, &(channels, _)) in inputs.iter_mut().zip(&pairs) {
                        *input = place(channels).map(|index| x[index].to_f64());
                    }
                    for ((&[a, b], &(sin, cos)), &(from, to)) in inputs.iter().zip(&turns).zip(&pairs) {
                        put(x, place(from), place(to), [a * cos - b * sin, a * sin + b * cos]);
                    }
                }
            }
        }
        Ok(())
    }
}
