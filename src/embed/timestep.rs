//! The timestep embedding of diffusion models: the sinusoid at positions that are not whole numbers.
//!
//! ```text
//! turns(t, pair) = t * frequency(pair) / 2 pi       to 106 bits
//! channel        = sin(2 pi turns) or cos(2 pi turns) of its pair
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::TimestepPlan;

use crate::double::Double;
use crate::embed::{Odd, Sinusoid, Wave, at_least, cpu};
use crate::shape::product;
use crate::{Error, Pairing, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The type of a timestep: `f32` or `f64`. Sealed.
///
/// Half types are refused by the compiler. Of the timesteps 0 to 1000, bf16 cannot hold 494 and moves them by up to 2:
/// t = 937 becomes 936, and a channel of the embedding changes by 0.91.
///
/// ```compile_fail
/// # use posenc::embed::Sinusoid;
/// let t = [half::bf16::from_f32(937.0)];
/// Sinusoid::timestep(256).write_times(&mut [0.0f32; 256], &t)?;
/// # Ok::<(), posenc::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "timesteps of type `{Self}` are refused",
    note = "timesteps are f32 or f64: bf16 moves 494 of the timesteps 0 to 1000, by up to 2, and f16 moves fractional ones"
)]
pub trait Time: sealed::Sealed + Copy + Into<f64> {}

impl Time for f32 {}
impl Time for f64 {}

impl Sinusoid {
    /// The timestep embedding of most diffusion models: cosines, then sines, without frequency shift.
    ///
    /// Stable Diffusion, SDXL, SD3, Flux, Wan and GLIDE use it with 256 or 320 channels. The names of other code for its
    /// knobs:
    ///
    /// | diffusers | here |
    /// |---|---|
    /// | `flip_sin_to_cos=True` | `first: Wave::Cosine` |
    /// | `downscale_freq_shift` | `shift`; 1 in DDPM's checkpoints |
    /// | `scale`, `max_period` | `scale`, `max_period` |
    ///
    /// # Source
    /// "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), appendix B; diffusers 0.42.1,
    /// `get_timestep_embedding`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::Sinusoid;
    /// let mut t = [0.0f32; 4];
    /// Sinusoid::timestep(4).write_times(&mut t, &[0.5f32])?;
    /// assert_eq!(t, [0.5f64.cos() as f32, 0.005f64.cos() as f32, 0.5f64.sin() as f32, 0.005f64.sin() as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub const fn timestep(dim: usize) -> Self {
        Self { pairing: Pairing::Half, first: Wave::Cosine, odd: Odd::Zero, ..Self::new(dim) }
    }

    /// Turns beyond which a timestep is refused: there, one unit in the last place of t is no longer a small angle.
    pub(crate) const MAX_TURNS: f64 = 281474976710656.0;
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Sinusoid {
    /// Turns per unit of time of `pair`, to 106 bits.
    pub(crate) fn turns(&self, pair: usize) -> Double {
        self.exact_frequency(pair) / Double::TAU
    }

    /// The value of `channel` at time `t`, within `2^-50` of itself for every `t` of up to `2^48` turns.
    ///
    /// # Panics
    /// If `channel` is not below `dim`.
    pub fn value_at(&self, t: f64, channel: usize) -> f64 {
        assert!(channel < self.dim, "channel {channel} of {}", self.dim);
        match self.channel(channel) {
            Some((pair, wave)) if !self.is_padding(t) => {
                wave.of_turns(Double::from(self.shifted(t)) * self.turns(pair))
            }
            _ => 0.0,
        }
    }

    fn shifted(&self, t: f64) -> f64 {
        t + self.offset as f64
    }

    fn is_padding(&self, t: f64) -> bool {
        self.padding.is_some_and(|padding| self.shifted(t) == padding as f64)
    }

    /// The largest error of an element of [`Sinusoid::write_times`], given its true `value`, before it is rounded to its
    /// type: `2^-49 |value|`.
    ///
    /// The error is relative: it holds at the zeros of sine and cosine too, where a formula in f64 is off by
    /// `2^-53 |t * frequency|`, 1e-10 at a million. A kernel rounds once, from f64 to the element type, so that the result
    /// is the nearest value of its type, or the other neighbour of the truth.
    pub fn time_error_bound(&self, value: f64) -> f64 {
        value.abs() / 562949953421312.0
    }
}

impl Wave {
    pub(super) fn of_turns(self, turns: Double) -> f64 {
        // To the nearest quarter turn, so that the rest is small and keeps all its bits at the zeros of both waves.
        let quarters = (turns.hi * 4.0).round();
        let rest = (turns - Double::from(quarters / 4.0)) * Double::TAU;
        let quarter = quarters.rem_euclid(4.0) as u8 + if self == Self::Cosine { 1 } else { 0 };
        match quarter % 4 {
            0 => rest.hi.sin(),
            1 => rest.hi.cos(),
            2 => -rest.hi.sin(),
            _ => -rest.hi.cos(),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Sinusoid {
    /// Writes one row per timestep on the CPU.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[times, dim]` | written |
    /// | `t` | `[times]` | timesteps; fractions and negative ones are welcome |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu) beyond [`Sinusoid::value_at`].
    ///
    /// # Errors
    /// If the spec is refused, `out` is too short, or a timestep is not finite or turns more than 2^48 times. Nothing is
    /// written then.
    ///
    /// # Source
    /// "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), appendix B.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::Sinusoid;
    /// let mut row = [0.0f32; 4];
    /// Sinusoid::timestep(4).write_times(&mut row, &[0.5f64])?;
    /// assert_eq!(row, [0.5f64.cos() as f32, 0.005f64.cos() as f32, 0.5f64.sin() as f32, 0.005f64.sin() as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write_times<T: Scalar>(&self, out: &mut [T], t: &[impl Time]) -> Result<()> {
        self.check()?;
        at_least("out", out.len(), product("times x dim", &[t.len(), self.dim])?)?;
        let turns = self.kept_turns();
        let fastest = turns[0].iter().map(|turns| turns.abs()).fold(0.0, f64::max);
        for (index, &t) in t.iter().enumerate() {
            check_time(index, self.shifted(t.into()), fastest)?;
        }
        let t: Vec<f64> = t.iter().map(|&t| t.into()).collect();
        cpu::write_times(self, out, &turns, t.len(), &|row| (!self.is_padding(t[row])).then(|| self.shifted(t[row])));
        Ok(())
    }
}

pub(crate) fn check_time(index: usize, t: f64, fastest: f64) -> Result<()> {
    if !t.is_finite() {
        return Err(Error::Value(format!("t[{index}] is {t}, timesteps must be finite")));
    }
    if t.abs() * fastest > Sinusoid::MAX_TURNS {
        return Err(Error::Value(format!(
            "t[{index}] is {t:e} and the fastest channel turns {fastest:e} times per unit, together at most 2^48 turns are held"
        )));
    }
    Ok(())
}
