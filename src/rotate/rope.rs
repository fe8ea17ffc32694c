//! RoPE: pairs of channels of a query or key are rotated by an angle that is proportional to the token's position.
//!
//! Pair `i` at position `p` turns by `p * frequency(i)`:
//!
//! ```text
//! a' = a * cos - b * sin
//! b' = a * sin + b * cos
//! ```

use crate::double::Double;
use crate::rotate::Scaling;
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Which two channels form a pair, counted from the first rotated one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pairing {
    /// Pair `i` is `(i, i + rotary / 2)`:
    /// ```text
    /// a0 a1 a2 a3 b0 b1 b2 b3
    /// ```
    /// GPT-NeoX, and Llama, Qwen, Mistral, Gemma, Phi as Hugging Face stores them.
    #[default]
    Half,
    /// Pair `i` is `(2i, 2i + 1)`:
    /// ```text
    /// a0 b0 a1 b1 a2 b2 a3 b3
    /// ```
    /// RoFormer, GPT-J, GLM, Cohere, DeepSeek, and Llama as Meta and GGUF store it.
    Interleaved,
}

impl Pairing {
    /// The two channels of `pair`, counted from the first rotated channel.
    pub const fn channels(self, pair: usize, rotary: usize) -> (usize, usize) {
        match self {
            Self::Half => (pair, pair + rotary / 2),
            Self::Interleaved => (2 * pair, 2 * pair + 1),
        }
    }
}

/// Forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    /// by `+angle`
    #[default]
    Forward,
    /// By `-angle`: undoes a forward rotation (up to [`Rope::attention_factor`], which multiplies again), and is its
    /// gradient.
    Inverse,
}

/// Rotary position embedding: what to compute, without shape, element type or device.
///
/// `angle(position, pair) = position * frequency(pair)`, and `attention_factor` multiplies cosine and sine.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `rotary` | channels | rotated channels of a head, even; the others pass through |
/// | `offset` | channels | first rotated channel |
/// | `pairing` | | which channels form a pair |
/// | `base` | | theta of the paper, 10000 there |
/// | `scaling` | | what stretches the frequencies |
/// | `attention_factor` | | multiplies cos and sin; YaRN's and LongRoPE's `mscale`, else 1 |
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
}

impl Rope {
    /// RoPE over the first `rotary` channels, in halves, without scaling.
    pub const fn new(rotary: usize, base: f64) -> Self {
        Self { rotary, offset: 0, pairing: Pairing::Half, base, scaling: Scaling::None, attention_factor: 1.0 }
    }

    /// Pairs that are rotated, `rotary / 2`.
    pub const fn pairs(&self) -> usize {
        self.rotary / 2
    }

    /// Refuses a spec outside the law: odd or zero `rotary`, a base that is not finite and above 0, a scaling's
    /// parameters outside its own law.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        if self.rotary == 0 || self.rotary % 2 == 1 {
            return wrong(format!("rotary is {}, it must be even and at least 2", self.rotary));
        }
        if self.rotary > u32::MAX as usize || self.offset > u32::MAX as usize {
            return wrong(format!("rotary is {} and offset {}, both must be below 2^32", self.rotary, self.offset));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return wrong(format!("base is {}, it must be finite and above 0", self.base));
        }
        if !(self.attention_factor.is_finite() && self.attention_factor > 0.0) {
            return wrong(format!("attention_factor is {}, it must be finite and above 0", self.attention_factor));
        }
        self.scaling.check(self.base, self.rotary)
    }

    /// [`Rope::check`], and that the rotated channels lie inside a head of `dim` channels.
    pub(crate) fn check_head(&self, dim: usize) -> Result<()> {
        self.check()?;
        if self.offset + self.rotary > dim {
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
    /// Radians per position of `pair`, the nearest `f64`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn frequency(&self, pair: usize) -> f64 {
        self.exact_frequency(pair).hi
    }

    /// Turns per position of `pair` in units of 2^-64, rounded to the nearest: what a kernel multiplies positions by.
    ///
    /// The law is evaluated in 106 bits, so that the phase at position `p` is `|p| * 2^-65` turns from the truth at
    /// most: 7.3e-10 rad at 2^31.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn rate(&self, pair: usize) -> u64 {
        self.exact_frequency(pair).rate()
    }

    fn exact_frequency(&self, pair: usize) -> Double {
        assert!(pair < self.pairs(), "pair {pair} of {}", self.pairs());
        self.scaling.frequency(self.base, self.rotary, pair)
    }

    /// The angle of `pair` at `position` in radians, within half a turn of zero.
    pub fn angle(&self, position: i64, pair: usize) -> f64 {
        angle(self.rate(pair), position)
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

fn angle(rate: u64, position: i64) -> f64 {
    // Exact modulo one turn; as a signed number it is the turn nearest to zero.
    let phase = rate.wrapping_mul(position as u64) as i64;
    phase as f64 * (std::f64::consts::TAU / 18446744073709551616.0)
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Rope {
    /// Rotates `x` in place on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `heads` | queries or keys; channels outside the rotary part stay as they are |
    /// | `heads` | | sizes and strides of `x`, in elements |
    /// | `positions` | `[batch, tokens]` | any integers; negative ones rotate backwards |
    ///
    /// # Accuracy
    /// Half an ulp of `T`, and 1e-15 of the pair.
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
    pub fn rotate<T: Scalar>(&self, x: &mut [T], heads: &Heads, positions: &[i64], direction: Direction) -> Result<()> {
        self.rotate_f64(x, heads, positions, direction, |x, index, value| x[index] = T::from_f64(value))
    }

    /// The wanted values in f64 and the error allowed at each element, for comparison with a rotation of `x`.
    ///
    /// # Errors
    /// As [`Rope::rotate`].
    pub fn expect<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
    ) -> Result<Expected> {
        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; x.len()];
        let mut source = x.to_vec();
        let mut pair = None;
        self.rotate_f64(&mut source, heads, positions, direction, |x, index, value| {
            // Elements come in pairs, and both bounds need both inputs.
            match pair.take() {
                None => pair = Some((index, value)),
                Some((first, first_value)) => {
                    let error = self.error_bound(x[first].to_f64(), x[index].to_f64());
                    for (index, value) in [(first, first_value), (index, value)] {
                        want[index] = value;
                        bound[index] = crate::accuracy::rounded::<T>(value, error);
                    }
                }
            }
        })?;
        Ok(Expected { want, bound })
    }

    fn rotate_f64<T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
        mut put: impl FnMut(&mut [T], usize, f64),
    ) -> Result<()> {
        self.check_head(heads.dim)?;
        heads.check_written("x", x.len())?;
        let need = heads.batch * heads.tokens;
        if positions.len() < need {
            return Err(Error::Length { name: "positions", got: positions.len(), need });
        }
        let rates: Vec<u64> = (0..self.pairs()).map(|pair| self.rate(pair)).collect();
        for batch in 0..heads.batch {
            for token in 0..heads.tokens {
                let position = positions[batch * heads.tokens + token];
                for (pair, &rate) in rates.iter().enumerate() {
                    let (sin, cos) = angle(rate, position).sin_cos();
                    let sin = if direction == Direction::Forward { sin } else { -sin };
                    let (sin, cos) = (sin * self.attention_factor, cos * self.attention_factor);
                    let (a, b) = self.pairing.channels(pair, self.rotary);
                    for head in 0..heads.heads {
                        let a_index = heads.index(batch, token, head, self.offset + a);
                        let b_index = heads.index(batch, token, head, self.offset + b);
                        let (a, b) = (x[a_index].to_f64(), x[b_index].to_f64());
                        put(x, a_index, a * cos - b * sin);
                        put(x, b_index, a * sin + b * cos);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a kernel should have written: values in f64, and the error allowed at each.
#[derive(Clone, Debug)]
pub struct Expected {
    /// the true values
    pub want: Vec<f64>,
    /// the error allowed, rounding to the element type included; 0 where the element must not change
    pub bound: Vec<f64>,
}
