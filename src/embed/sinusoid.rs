//! The sinusoid: sines and cosines of the position at geometrically spaced frequencies.
//!
//! ```text
//! angle(position, pair) = (position + offset) * frequency(pair)
//! frequency(pair)       = scale * max_period^(-pair / (half - shift))
//! channel               = sin(angle) or cos(angle) of its pair
//! ```

#[cfg(feature = "cuda")]
mod plan;

use std::f64::consts::TAU;

#[cfg(feature = "cuda")]
pub use plan::SinusoidPlan;

use crate::double::Double;
use crate::embed::{Tokens, at_least, check_scale, cpu};
use crate::shape::{Shape, product};
use crate::{Error, Pairing, Positions, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// One of the two functions that a pair of channels holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Wave {
    /// sin(angle)
    #[default]
    Sine,
    /// cos(angle)
    Cosine,
}

impl Wave {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Sine => Self::Cosine,
            Self::Cosine => Self::Sine,
        }
    }
}

/// Last channel of an odd `dim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Odd {
    /// An odd `dim` is an error: Whisper, CTRL.
    #[default]
    Refuse,
    /// The last channel is 0, and `half` is `(dim - 1) / 2`: tensor2tensor, fairseq, M2M100, diffusers, GLIDE.
    Zero,
    /// The first wave has one channel more, and `half` is `dim / 2`, a fraction: "Attention Is All You Need", Marian,
    /// DistilBERT, XLM.
    Longer,
}

/// Rounding of the frequencies before they are multiplied by the position, as some reference code does.
///
/// The exact frequency is rounded to f32 and, for the half types, once more; `scale` multiplies afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Frequencies {
    /// as the formula says
    #[default]
    Exact,
    /// to f32
    F32,
    /// to f32, then to f16
    F16,
    /// To f32, then to bf16: Qwen-Image in bf16.
    Bf16,
}

impl Frequencies {
    fn round(self, frequency: f64) -> f64 {
        let single = frequency as f32;
        match self {
            Self::Exact => frequency,
            Self::F32 => f64::from(single),
            Self::F16 => half::f16::from_f32(single).to_f64(),
            Self::Bf16 => half::bf16::from_f32(single).to_f64(),
        }
    }
}

/// Sinusoidal position embedding: what to compute, without shape, element type or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::embed#sinusoid).
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `dim` | channels | of one token |
/// | `pairing` | | `Interleaved` puts a pair's two waves side by side, `Half` puts all of one wave first |
/// | `first` | | the wave that comes first, in a pair or in the halves |
/// | `odd` | | what an odd `dim` means |
/// | `shift` | pairs | frequency shift: 0 as in the paper, 1 so that the last frequency is `1 / max_period` exactly |
/// | `max_period` | | 10000 in the paper |
/// | `scale` | | multiplies positions |
/// | `offset` | positions | added to every position |
/// | `padding` | positions | rows whose position, offset included, is this one are zero |
/// | `frequencies` | | rounding of the frequencies, for parity with one model |
///
/// The settings of real models:
///
/// | model | |
/// |---|---|
/// | "Attention Is All You Need", DistilBERT, XLM | `Sinusoid::new(dim)` |
/// | Parakeet, FastConformer | `Sinusoid::new(dim)` at distances |
/// | Transformer-XL, XLNet | `pairing: Half` at distances |
/// | CTRL | `pairing: Half` |
/// | Marian | `pairing: Half, odd: Longer` |
/// | fairseq, M2M100, XGLM, Speech2Text | `pairing: Half, shift: 1.0, odd: Zero, padding: Some(p), offset: p + 1` |
/// | Whisper | `pairing: Half, shift: 1.0` |
/// | Musicgen | `pairing: Half, shift: 1.0, first: Cosine, odd: Zero` |
/// | timesteps of diffusion models | [`Sinusoid::timestep`] |
///
/// # Source
/// "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
///
/// # Example
/// ```
/// use posenc::embed::Sinusoid;
/// let sinusoid = Sinusoid::new(512);
/// assert_eq!(sinusoid.frequency(0), 1.0);
/// assert_eq!(sinusoid.frequency(128), 0.01);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sinusoid {
    /// channels of one token
    pub dim: usize,
    /// where a pair's two channels lie
    pub pairing: Pairing,
    /// the wave that comes first
    pub first: Wave,
    /// what an odd `dim` means
    pub odd: Odd,
    /// frequency shift
    pub shift: f64,
    /// the longest period, over 2 pi
    pub max_period: f64,
    /// multiplies positions
    pub scale: f64,
    /// added to every position
    pub offset: i64,
    /// the position, offset included, of zero rows
    pub padding: Option<i64>,
    /// rounding of the frequencies
    pub frequencies: Frequencies,
}

/// Channels, at most: far above any model's, and few enough for a plan to be made at once.
const MOST_DIM: usize = 1 << 16;

impl Sinusoid {
    /// The paper's sinusoid: sine and cosine side by side, periods up to 10000 times 2 pi.
    pub const fn new(dim: usize) -> Self {
        Self {
            dim,
            pairing: Pairing::Interleaved,
            first: Wave::Sine,
            odd: Odd::Longer,
            shift: 0.0,
            max_period: 10_000.0,
            scale: 1.0,
            offset: 0,
            padding: None,
            frequencies: Frequencies::Exact,
        }
    }

    /// Pairs that have a frequency, `ceil(dim / 2)` with [`Odd::Longer`] and `floor(dim / 2)` otherwise.
    pub const fn pairs(&self) -> usize {
        match self.odd {
            Odd::Longer => self.dim.div_ceil(2),
            Odd::Zero | Odd::Refuse => self.dim / 2,
        }
    }

    /// What the exponent is divided by: half the channels, less `shift`.
    fn denominator(&self) -> f64 {
        let half = match self.odd {
            Odd::Longer => self.dim as f64 / 2.0,
            Odd::Zero | Odd::Refuse => (self.dim / 2) as f64,
        };
        half - self.shift
    }

    /// Refuses a spec outside the law: `dim` 0 or above 65536, an odd `dim` that `odd` refuses, a `shift` that leaves nothing to divide
    /// by, a `max_period` or `scale` that is not finite or of the wrong sign.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        if self.dim == 0 || self.dim > u32::MAX as usize {
            return wrong(format!("dim is {}, it must be between 1 and 2^32 - 1", self.dim));
        }
        if self.dim > MOST_DIM {
            return wrong(format!("dim is {}, a sinusoid has at most {MOST_DIM} channels", self.dim));
        }
        if self.dim % 2 == 1 {
            if self.odd == Odd::Refuse {
                return wrong(format!(
                    "dim is {}, it must be even unless odd says what the last channel holds",
                    self.dim
                ));
            }
            if self.odd == Odd::Zero && self.dim == 1 {
                return wrong("dim is 1, with a zero in the last channel it must be at least 2".into());
            }
        }
        if !(self.max_period.is_finite() && self.max_period > 0.0) {
            return wrong(format!("max_period is {}, it must be finite and above 0", self.max_period));
        }
        if !self.scale.is_finite() {
            return wrong(format!("scale is {}, it must be finite", self.scale));
        }
        if !self.shift.is_finite() {
            return wrong(format!("shift is {}, it must be finite", self.shift));
        }
        let denominator = self.denominator();
        if denominator <= 0.0 {
            return wrong(format!(
                "shift is {} and half of dim {} is {}, half - shift divides the exponent and must be above 0",
                self.shift,
                self.dim,
                denominator + self.shift
            ));
        }
        // Frequencies run from max_period^0 to max_period^(-(pairs - 1) / denominator); a shift near half makes the last
        // one vanish or overflow.
        let last = (self.pairs() - 1) as f64 / denominator * self.max_period.ln().abs();
        if last > 600.0 {
            return wrong(format!(
                "shift is {} and max_period {}, the last frequency is max_period^(-{} / {denominator}) and leaves f64",
                self.shift,
                self.max_period,
                self.pairs() - 1
            ));
        }
        if self.scale.abs() > 1e12 {
            return wrong(format!("scale is {}, its magnitude must be at most 1e12", self.scale));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Sinusoid {
    /// Radians per position of `pair`, `scale` included: the nearest `f64`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn frequency(&self, pair: usize) -> f64 {
        self.exact_frequency(pair).hi
    }

    /// Turns per position of `pair` in units of 2^-64, rounded to the nearest: what a kernel multiplies integer positions
    /// by. The phase at position p is `|p| * 2^-65` turns from the truth at most.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn rate(&self, pair: usize) -> u64 {
        self.exact_frequency(pair).rate()
    }

    pub(crate) fn exact_frequency(&self, pair: usize) -> Double {
        assert!(pair < self.pairs(), "pair {pair} of {}", self.pairs());
        let exponent = Double::from(-(pair as f64)) / Double::from(self.denominator());
        let plain = Double::from(self.max_period).pow(exponent);
        let rounded = match self.frequencies {
            Frequencies::Exact => plain,
            other => Double::from(other.round(plain.hi)),
        };
        rounded * Double::from(self.scale)
    }

    /// The pair and the wave of `channel`; `None` where the channel is always 0.
    pub fn channel(&self, channel: usize) -> Option<(usize, Wave)> {
        let longer = self.pairs();
        let shorter = self.dim / 2;
        match self.pairing {
            Pairing::Interleaved if channel / 2 < longer => {
                let wave = if channel.is_multiple_of(2) { self.first } else { self.first.other() };
                Some((channel / 2, wave))
            }
            Pairing::Half if channel < longer => Some((channel, self.first)),
            Pairing::Half if channel < longer + shorter => Some((channel - longer, self.first.other())),
            _ => None,
        }
    }

    /// The value of `channel` at an integer `position`, from the exact phase: within `1e-15 + |position| * 2^-65 * 2 pi`.
    ///
    /// # Panics
    /// If `channel` is not below `dim`.
    pub fn value(&self, position: i64, channel: usize) -> f64 {
        assert!(channel < self.dim, "channel {channel} of {}", self.dim);
        let row = self.row(position);
        match self.channel(channel) {
            Some((pair, wave)) if Some(row) != self.padding => wave.of_phase(self.rate(pair).wrapping_mul(row as u64)),
            _ => 0.0,
        }
    }

    /// `position + offset`. It may wrap: phases are multiples of 2^-64 of a turn, so that 2^64 positions are whole turns.
    pub(super) fn row(&self, position: i64) -> i64 {
        position.wrapping_add(self.offset)
    }

    /// The largest error of a written element before it is rounded to its type:
    /// `1e-7 + |position + offset| * 2^-65 * 2 pi`, 1.01e-7 at position 2^31.
    pub fn error_bound(&self, position: i64) -> f64 {
        1e-7 + self.row(position).unsigned_abs() as f64 * (TAU / 36893488147419103232.0)
    }

    /// The largest error of an element of [`Sinusoid::add`] before it is rounded to its type: [`Sinusoid::error_bound`],
    /// and `2^-24 * (2 |x * scale| + 2)` for the roundings of `scale`, of the sinusoid and of the sum to f32.
    pub fn add_error_bound(&self, position: i64, x: f64, scale: f64) -> f64 {
        self.error_bound(position) + f32::ROUNDOFF * (2.0 * (x * scale).abs() + 2.0) + 2.0 * f32::TINY
    }
}

impl Wave {
    /// This wave of a phase in units of 2^-64 of a turn.
    fn of_phase(self, phase: u64) -> f64 {
        let angle = phase as i64 as f64 * (TAU / 18446744073709551616.0);
        match self {
            Self::Sine => angle.sin(),
            Self::Cosine => angle.cos(),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Sinusoid {
    /// Writes one row per position on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[positions, dim]` | written |
    /// | `positions` | `[positions]` | any integers, negative ones too |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 3e-15 beyond [`Sinusoid::value`].
    ///
    /// # Errors
    /// If the spec is refused or `out` is too short. Nothing is written then.
    ///
    /// # Source
    /// "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::Sinusoid;
    /// let mut row = [0.0f32; 4];
    /// Sinusoid::new(4).write(&mut row, &[1])?;
    /// assert_eq!(row, [1f64.sin() as f32, 1f64.cos() as f32, 0.01f64.sin() as f32, 0.01f64.cos() as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], positions: &[i64]) -> Result<()> {
        self.check()?;
        at_least("out", out.len(), product("positions x dim", &[positions.len(), self.dim])?)?;
        cpu::write(self, out, positions);
        Ok(())
    }

    /// `x = x * scale + sinusoid` in place, on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `tokens` | embeddings |
    /// | `positions` | see [`Positions`] | a slice is `[batch, tokens]`; [`Positions::shared`] of `[tokens]` for every sequence |
    /// | `scale` | | multiplies `x`: 1, or `sqrt(dim)` in the paper |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 4e-15 of the terms; of `f16` and `bf16`, half an ulp of `f32` of each.
    ///
    /// # Errors
    /// If the spec, the shape, the positions or `scale` is refused. Nothing is written then.
    ///
    /// # Source
    /// "Attention Is All You Need" (arXiv 1706.03762), sections 3.4 and 3.5.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Sinusoid, Tokens};
    /// let mut x = [0.5f32, -1.0];
    /// Sinusoid::new(2).add(&mut x, &Tokens::new(1, 1, 2), &[0], 2.0)?;
    /// assert_eq!(x, [1.0, -1.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    ///
    /// # Speed
    /// Positions that come again and again are added faster from a table, which [`Sinusoid::write`] makes once and
    /// [`Learned::gather`](crate::embed::Learned::gather) adds: 41 us instead of 100 for 512 x 768 in f32, in one thread of the
    /// AMD EPYC with AVX-512 of `docs/notes/2026-11-30.md`. The table's numbers are rounded to `T` first, so that half an ulp of the
    /// sinusoid comes to the error: 2^-25 at most in f32, 2^-12 in f16, 2^-9 in bf16.
    ///
    /// ```
    /// use posenc::Positions;
    /// use posenc::embed::{HostLookup, HostTables, Learned, Sinusoid, Tokens};
    /// let sinusoid = Sinusoid::new(2);
    /// let mut table = [0.0f32; 1024 * 2];
    /// sinusoid.write(&mut table, &(0..1024).collect::<Vec<_>>())?;
    ///
    /// let (tokens, positions) = (Tokens::new(1, 2, 2), [3, 1000]);
    /// let (mut x, mut y) = ([0.5f32; 4], [0.5f32; 4]);
    /// let tables = HostTables { position: Some(&table), ..HostTables::default() };
    /// let lookup = HostLookup { positions: Positions::ids(&positions), ..HostLookup::default() };
    /// Learned { scale: 2.0, ..Learned::new(2) }.gather(&mut x, &tokens, &tables, &lookup)?;
    /// assert_eq!(x[2], (1.0 + f64::from(1000f64.sin() as f32)) as f32);
    /// sinusoid.add(&mut y, &tokens, &positions, 2.0)?;
    /// assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= 2f32.powi(-23)));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn add<'a, T: Scalar>(
        &self,
        x: &mut [T],
        tokens: &Tokens,
        positions: impl Into<Positions<&'a [i64]>>,
        scale: f64,
    ) -> Result<()> {
        self.check()?;
        tokens.check_dim("x", self.dim)?;
        tokens.check_written("x", x.len())?;
        check_scale(scale)?;
        let positions = positions.into();
        let shared = positions.is_shared(tokens.batch);
        let positions = positions.resolve(1, if shared { 1 } else { tokens.batch }, tokens.tokens)?;
        cpu::add(self, x, tokens, &positions, shared, scale);
        Ok(())
    }

    /// The values of every channel at one position after another, from rates that are computed once.
    pub(crate) fn rows(&self) -> impl Fn(i64, usize) -> f64 {
        let rates: Vec<u64> = (0..self.pairs()).map(|pair| self.rate(pair)).collect();
        let channels: Vec<_> = (0..self.dim).map(|channel| self.channel(channel)).collect();
        move |position, channel| {
            let row = self.row(position);
            match channels[channel] {
                Some((pair, wave)) if Some(row) != self.padding => wave.of_phase(rates[pair].wrapping_mul(row as u64)),
                _ => 0.0,
            }
        }
    }
}
