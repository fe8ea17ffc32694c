//! How a model stretches RoPE's frequencies beyond its training length: one law per paper.
//!
//! Three results, never mixed:
//!
//! | result | acts on | where it is |
//! |---|---|---|
//! | frequencies | the angle of a pair | [`Scaling`] |
//! | attention factor | cos and sin, so the rotated part of the logit twice | [`Rope::attention_factor`], from [`yarn_mscale`], [`Yarn::attention_factor`], [`longrope_attention_factor`] |
//! | scale of the query or the logit | the whole logit | [`QueryScale`](crate::rotate::QueryScale), [`mla_logit_scale`] |

use crate::double::Double;
use crate::rotate::Angles;
use crate::rotate::power::torch_power;
use crate::{Error, Result, Rope};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Frequency scaling for a longer context.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#scalings).
///
/// Below, `i` is the pair, `d` the rotary size and `theta_i = base^(-2i/d)`. A scaling changes frequencies only: a factor
/// on cos and sin belongs to [`Rope::attention_factor`], a factor on the whole logit to neither.
///
/// # Example
/// ```
/// use posenc::{Rope, Scaling};
/// let rope = Rope { scaling: Scaling::Linear { factor: 4.0 }, ..Rope::new(128, 10_000.0) };
/// assert_eq!(rope.frequency(32), 0.01 / 4.0);
/// ```
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Scaling {
    /// `theta_i`, RoFormer (arXiv 2104.09864), eq. 15. A larger base is this with a larger base.
    #[default]
    None,
    /// Position interpolation: `theta_i / factor`.
    ///
    /// Source: Chen et al. 2023 (arXiv 2306.15595), section 2.3; Hugging Face's `linear`. vLLM divides the position
    /// instead, which is the same with other roundings.
    Linear {
        /// divides every frequency, at least 1
        factor: f64,
    },
    /// NTK-aware, fixed: `theta_i` of the base `base * alpha^(d / (d - 2))`, so that the lowest frequency is divided by
    /// `alpha` and the highest is kept.
    ///
    /// Source: YaRN (arXiv 2309.00071), section 3.1, definition 1; vLLM's `dynamic` with the key `alpha` (Hunyuan);
    /// exllama's alpha.
    NtkStatic {
        /// divides the lowest frequency, at least 1
        alpha: f64,
    },
    /// NTK in a mixed base: `theta_i / factor^(((i + 1) / (d / 2))^exponent)`.
    ///
    /// With `exponent` 1, every frequency is the one of the base `base * factor`, divided by `factor^(2/d)`.
    ///
    /// Source: Su 2023 (kexue.fm/archives/9706); vLLM's `ntk`, whose `mixed_b` is the exponent and whose default is 1.
    NtkMixed {
        /// divides the lowest frequency, at least 1
        factor: f64,
        /// how late the division sets in, above 0; Su's b, 0.625 there
        exponent: f64,
    },
    /// Dynamic NTK: [`Scaling::NtkStatic`] with `alpha = factor * S / L - (factor - 1)`, where `L = context` and
    /// `S = max(length, L)`.
    ///
    /// A function of the length of the sequence, which [`Rope::at_length`] sets. Keys that were rotated at another length
    /// do not fit: cache keys unrotated, or settle the length once.
    ///
    /// Source: YaRN (arXiv 2309.00071), section 3.3; Hugging Face's `dynamic`, whose `L` is `max_position_embeddings`. vLLM
    /// settles the length once, at the longest sequence it is configured for.
    DynamicNtk {
        /// how far the base grows beyond the context, at least 1
        factor: f64,
        /// the context up to which nothing changes, in tokens
        context: f64,
        /// tokens of the sequence, the new one included
        length: Option<u64>,
    },
    /// Dynamic NTK by steps: [`Scaling::NtkStatic`] with `alpha = 2^(n + 1) - 1`, where `n` is the least with
    /// `length <= context * 2^n`: 1 within the context, 3 up to twice of it, 7 up to four times.
    ///
    /// A function of the length of the sequence, which [`Rope::at_length`] sets. Qwen settles it at the prompt and keeps it.
    ///
    /// Source: `get_ntk_alpha` in the code that Qwen publishes with its first models (`use_dynamic_ntk`).
    SteppedNtk {
        /// the context up to which nothing changes, in tokens; `seq_length`
        context: f64,
        /// tokens of the sequence, the new one included
        length: Option<u64>,
    },
    /// YaRN's frequencies, "NTK by parts": high frequencies are kept, low ones divided, those between blended.
    Yarn(Yarn),
    /// LongRoPE: `theta_i / long[i]` if the sequence is longer than `original_context`, else `theta_i / short[i]`.
    ///
    /// A function of the length of the sequence, which [`Rope::at_length`] sets. The boundary itself belongs to the short
    /// list. Hugging Face asks at every call, with the longest sequence of the batch; vLLM and llama.cpp settle it once, at the
    /// longest sequence they are configured for.
    ///
    /// Source: LongRoPE (arXiv 2402.13753), eq. 3; Hugging Face's `longrope` (`su` in old files).
    LongRope {
        /// divisors within the original context, one for each pair
        short: Vec<f64>,
        /// divisors beyond it, one for each pair
        long: Vec<f64>,
        /// the context length of the first training, in tokens
        original_context: f64,
        /// tokens of the sequence, the new one included
        length: Option<u64>,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones are kept, those between are blended.
    ///
    /// With the wavelength `w = 2 pi / theta_i` and `L = original_context`:
    /// `w > L / low` gives `theta_i / factor`; `w < L / high` gives `theta_i`; between them, with
    /// `s = (L / w - low) / (high - low)`, `(1 - s) * theta_i / factor + s * theta_i`.
    ///
    /// `low == high` (Llama 4) leaves nothing between.
    ///
    /// Source: Meta's `apply_scaling` in llama-models 0.3.0; Hugging Face's `llama3` is the same.
    Llama3 {
        /// divides the lowest frequencies, at least 1
        factor: f64,
        /// turns over the original context below which a frequency is divided
        low: f64,
        /// turns over the original context above which a frequency is kept
        high: f64,
        /// the context length of the first training, in tokens
        original_context: f64,
    },
    /// p-RoPE: the first `rotated` pairs have `theta_i / factor`, the others stand still.
    ///
    /// Unlike a smaller [`Rope::rotary`], the exponent keeps the whole size, and in halves the still channels lie in
    /// the middle and at the end of the head.
    ///
    /// Source: Barbero et al. 2024 (arXiv 2410.06205), section 6; Hugging Face's `proportional`, where `rotated` is
    /// `partial_rotary_factor * head_dim / 2` rounded down (Gemma 4: 64 of 256).
    Proportional {
        /// pairs that turn
        rotated: usize,
        /// divides every frequency, at least 1
        factor: f64,
    },
    /// `theta_i / divisors[i]`; an infinite divisor stops its pair, a negative one turns it backwards (NanoChat: -1).
    ///
    /// Source: llama.cpp's tensors `rope_freqs.weight`, `rope_factors_long.weight` and `rope_factors_short.weight`.
    Divisors(Vec<f64>),
}

/// YaRN's frequencies.
///
/// With `s = factor`, `theta_i * (1 - m_i) + theta_i / s * m_i`, where `m_i = 1 - extrapolation * (1 - r_i)` and the ramp
/// `r_i` rises from 0 to 1.
///
/// [`Ramp::Pairs`], which every implementation and so every checkpoint has: linear in the pair between `low` and `high`,
///
/// ```text
/// at(turns) = d * ln(L / (2 pi turns)) / (2 ln base)       L = original_context
/// low  = max(at(beta_fast), 0)        rounded down if truncate
/// high = min(at(beta_slow), d - 1)    rounded up if truncate; + 0.001 where high = low
/// r_i  = (i - low) / (high - low), clipped to 0..=1
/// ```
///
/// [`Ramp::Turns`], the paper: `r_i = 1 - (L / w_i - beta_slow) / (beta_fast - beta_slow)`, clipped, linear in the turns
/// of the pair over the original context. For Llama 2 at 16 times, pair 38, it gives 0.33 of the other's frequency.
///
/// # Source
/// Peng et al. 2023 (arXiv 2309.00071), section 3.2, eq. 17 to 20; jquesnelle/yarn, Hugging Face's `yarn`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Yarn {
    /// divides the lowest frequencies, at least 1
    pub factor: f64,
    /// the context length of the first training, in tokens
    pub original_context: f64,
    /// turns over the original context above which a frequency is kept; 32
    pub beta_fast: f64,
    /// turns over the original context below which a frequency is divided; 1
    pub beta_slow: f64,
    /// Round the ramp's ends outwards to whole pairs; `true` everywhere but in GPT-OSS.
    pub truncate: bool,
    /// Share of the unscaled frequency in the kept pairs; 1. jquesnelle/yarn's `extrapolation_factor`, llama.cpp's `ext_factor`.
    pub extrapolation: f64,
    /// what the ramp is linear in
    pub ramp: Ramp,
}

/// Variable of YaRN's linear ramp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Ramp {
    /// the index of the pair, as in all implementations
    #[default]
    Pairs,
    /// the turns of the pair over the original context, as in the paper
    Turns,
}

impl Yarn {
    /// YaRN with the paper's betas, 32 and 1, and the ramp of the implementations.
    pub const fn new(factor: f64, original_context: f64) -> Self {
        Self {
            factor,
            original_context,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            extrapolation: 1.0,
            ramp: Ramp::Pairs,
        }
    }
}

fn wrong<T>(text: String) -> Result<T> {
    Err(Error::Value(text))
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    wrong(format!("{name} is {value}, it must be finite and above 0"))
}

fn at_least_1(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 1.0 {
        return Ok(());
    }
    wrong(format!("{name} is {value}, it must be finite and at least 1"))
}

fn divisors(name: &str, list: &[f64], pairs: usize) -> Result<()> {
    if list.len() != pairs {
        return wrong(format!("{name} holds {} divisors, the rotary part has {pairs} pairs", list.len()));
    }
    match list.iter().position(|&divisor| divisor.is_nan() || divisor == 0.0) {
        Some(at) => wrong(format!("{name} holds {} at {at}, a divisor must be a number other than 0", list[at])),
        None => Ok(()),
    }
}

impl Scaling {
    /// Refuses parameters outside the law for this base and rotary size, and a missing length.
    pub(crate) fn check(&self, base: f64, rotary: usize) -> Result<()> {
        self.check_but_length(base, rotary)?;
        let name = match self {
            Self::DynamicNtk { length: None, .. } => "the dynamic NTK scaling",
            Self::SteppedNtk { length: None, .. } => "the stepped NTK scaling",
            Self::LongRope { length: None, .. } => "the LongRoPE scaling",
            _ => return Ok(()),
        };
        wrong(format!("{name} depends on the length of the sequence, which at_length must set first"))
    }

    /// [`Scaling::check`], the length aside.
    pub(crate) fn check_but_length(&self, base: f64, rotary: usize) -> Result<()> {
        let pairs = rotary / 2;
        let ntk = |name: &str| {
            if rotary > 2 {
                return Ok(());
            }
            wrong(format!("{name} needs more than 2 rotated channels, there are {rotary}"))
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => at_least_1("the linear scaling's factor", *factor),
            Self::NtkStatic { alpha } => {
                ntk("the NTK scaling")?;
                at_least_1("the NTK scaling's alpha", *alpha)
            }
            Self::NtkMixed { factor, exponent } => {
                at_least_1("the mixed NTK scaling's factor", *factor)?;
                positive("the mixed NTK scaling's exponent", *exponent)
            }
            Self::DynamicNtk { factor, context, .. } => {
                ntk("the dynamic NTK scaling")?;
                at_least_1("the dynamic NTK scaling's factor", *factor)?;
                positive("the dynamic NTK scaling's context", *context)
            }
            Self::SteppedNtk { context, .. } => {
                ntk("the stepped NTK scaling")?;
                positive("the stepped NTK scaling's context", *context)
            }
            Self::Yarn(yarn) => yarn.check(base),
            Self::LongRope { short, long, original_context, .. } => {
                divisors("the LongRoPE scaling's short list", short, pairs)?;
                divisors("the LongRoPE scaling's long list", long, pairs)?;
                positive("the LongRoPE scaling's original_context", *original_context)
            }
            &Self::Llama3 { factor, low, high, original_context } => {
                at_least_1("the Llama-3 scaling's factor", factor)?;
                positive("the Llama-3 scaling's low", low)?;
                positive("the Llama-3 scaling's high", high)?;
                positive("the Llama-3 scaling's original_context", original_context)?;
                if low > high {
                    return wrong(format!(
                        "the Llama-3 scaling's low is {low} and its high is {high}, low must not exceed high"
                    ));
                }
                Ok(())
            }
            Self::Proportional { rotated, factor } => {
                at_least_1("the proportional scaling's factor", *factor)?;
                if *rotated > pairs {
                    return wrong(format!(
                        "the proportional scaling turns {rotated} pairs, the rotary part has {pairs}"
                    ));
                }
                Ok(())
            }
            Self::Divisors(list) => divisors("the list of divisors", list, pairs),
        }
    }

    /// True if a pair's frequency may be no number where its neighbours' are: lists, and powers of powers.
    pub(crate) const fn is_uneven(&self) -> bool {
        matches!(self, Self::LongRope { .. } | Self::Divisors(_) | Self::NtkMixed { .. })
    }

    /// True if the frequencies depend on a length that is not set.
    pub const fn needs_length(&self) -> bool {
        matches!(
            self,
            Self::DynamicNtk { length: None, .. }
                | Self::SteppedNtk { length: None, .. }
                | Self::LongRope { length: None, .. }
        )
    }

    /// The same scaling for a sequence of `length` tokens. Laws that do not depend on it stay as they are.
    pub fn at_length(mut self, length: u64) -> Self {
        if let Self::DynamicNtk { length: at, .. }
        | Self::SteppedNtk { length: at, .. }
        | Self::LongRope { length: at, .. } = &mut self
        {
            *at = Some(length);
        }
        self
    }
}

impl Rope {
    /// The same spec for a sequence of `length` tokens, the new ones included: what dynamic NTK and LongRoPE depend on.
    /// Every other scaling stays as it is.
    ///
    /// Two lengths are two specs: keys that were rotated by one do not fit queries rotated by the other.
    ///
    /// ```
    /// use posenc::{Rope, Scaling};
    /// // InternLM2-chat-7b
    /// let scaling = Scaling::DynamicNtk { factor: 2.0, context: 32768.0, length: None };
    /// let rope = Rope { scaling, ..Rope::new(128, 1e6) };
    /// assert_eq!(
    ///     rope.check().unwrap_err().to_string(),
    ///     "the dynamic NTK scaling depends on the length of the sequence, which at_length must set first"
    /// );
    /// assert_eq!(rope.at_length(32768).frequency(32), 1e-3);
    /// ```
    pub fn at_length(&self, length: u64) -> Self {
        Self { scaling: self.scaling.clone().at_length(length), ..self.clone() }
    }
}

impl Yarn {
    fn check(&self, base: f64) -> Result<()> {
        at_least_1("the YaRN scaling's factor", self.factor)?;
        positive("the YaRN scaling's original_context", self.original_context)?;
        positive("the YaRN scaling's beta_fast", self.beta_fast)?;
        positive("the YaRN scaling's beta_slow", self.beta_slow)?;
        if self.beta_fast < self.beta_slow {
            return wrong(format!(
                "the YaRN scaling's beta_fast is {} and its beta_slow is {}, beta_fast must not be the smaller",
                self.beta_fast, self.beta_slow
            ));
        }
        if !(0.0..=1.0).contains(&self.extrapolation) {
            return wrong(format!(
                "the YaRN scaling's extrapolation is {}, it must be between 0 and 1",
                self.extrapolation
            ));
        }
        // Below this the ramp of the implementations has its ends on the wrong sides and nothing is scaled.
        let least = std::f64::consts::TAU * self.beta_slow;
        if self.original_context <= least {
            return wrong(format!(
                "the YaRN scaling's original_context is {}, it must exceed 2 pi * beta_slow = {least:.2}",
                self.original_context
            ));
        }
        if base <= 1.0 {
            return wrong(format!("base is {base}, the YaRN scaling needs one above 1"));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Scaling {
    /// The law: the frequency of `pair`, in radians per position, which is the number `rung` of a ladder of `rotary` channels
    /// on `base`. Without axes of their own ladders, `rung` is `pair` and `rotary` the rotary size.
    ///
    /// Where a length is missing, as within the original context.
    pub(crate) fn frequency(&self, base: f64, rotary: usize, rung: usize, pair: usize) -> Double {
        let size = Double::from(rotary as f64);
        let exponent = Double::from(-2.0 * rung as f64) / size;
        let plain = Double::from(base).pow(exponent);
        // base^(-2i/d) with base * alpha^(d/(d-2)) for the base
        let ntk = |alpha: Double| {
            let exponent = Double::from(-2.0 * pair as f64) / Double::from(rotary as f64 - 2.0);
            plain * alpha.pow(exponent)
        };
        match self {
            Self::None => plain,
            Self::Linear { factor } => plain / Double::from(*factor),
            Self::NtkStatic { alpha } => ntk(Double::from(*alpha)),
            Self::NtkMixed { factor, exponent } => {
                let share = Double::from(2.0 * (pair + 1) as f64) / size;
                plain / Double::from(*factor).pow(share.pow(Double::from(*exponent)))
            }
            Self::DynamicNtk { factor, context, length } => ntk(dynamic_alpha(*factor, *context, *length)),
            Self::SteppedNtk { context, length } => ntk(Double::from(stepped_alpha(*context, *length))),
            Self::Yarn(yarn) => yarn.frequency(plain, base, rotary, pair),
            Self::LongRope { short, long, original_context, length } => {
                divided(plain, longrope_list(short, long, *original_context, *length)[pair])
            }
            &Self::Llama3 { factor, low, high, original_context } => {
                let divided = plain / Double::from(factor);
                // turns over the original context, L / w
                let turns = Double::from(original_context) * plain / Double::TAU;
                if turns.hi < low {
                    divided
                } else if turns.hi > high || low == high {
                    plain
                } else {
                    let s = (turns - Double::from(low)) / Double::from(high - low);
                    (Double::ONE - s) * divided + s * plain
                }
            }
            Self::Proportional { rotated, factor } => {
                if pair < *rotated {
                    plain / Double::from(*factor)
                } else {
                    Double::from(0.0)
                }
            }
            Self::Divisors(list) => divided(plain, list[pair]),
        }
    }
}

fn divided(plain: Double, divisor: f64) -> Double {
    if divisor.is_infinite() { Double::from(0.0) } else { plain / Double::from(divisor) }
}

/// `factor * S / L - (factor - 1)` with `S = max(length, L)`
fn dynamic_alpha(factor: f64, context: f64, length: Option<u64>) -> Double {
    let length = length.map_or(context, |length| context.max(length as f64));
    let beyond = (Double::from(length) - Double::from(context)) / Double::from(context);
    Double::ONE + Double::from(factor) * beyond
}

/// `2^(n + 1) - 1` with the least `n` for which `length <= context * 2^n`
fn stepped_alpha(context: f64, length: Option<u64>) -> f64 {
    let length = length.map_or(context, |length| length as f64);
    let mut steps = 1.0;
    while length > context * steps {
        steps *= 2.0;
    }
    2.0 * steps - 1.0
}

fn longrope_list<'a>(short: &'a [f64], long: &'a [f64], original_context: f64, length: Option<u64>) -> &'a [f64] {
    if length.is_some_and(|length| length as f64 > original_context) { long } else { short }
}

impl Yarn {
    /// The pairs between which [`Ramp::Pairs`] rises, `(low, high)`: below `low` frequencies are kept, above `high` divided.
    ///
    /// ```
    /// use posenc::rotate::Yarn;
    /// // DeepSeek-V3: base 10000, 64 rotated channels
    /// assert_eq!(Yarn::new(40.0, 4096.0).ramp_ends(10_000.0, 64), (10.0, 23.0));
    /// ```
    pub fn ramp_ends(&self, base: f64, rotary: usize) -> (f64, f64) {
        let (low, high) = self.exact_ends(base, rotary);
        (low.hi, high.hi)
    }

    fn exact_ends(&self, base: f64, rotary: usize) -> (Double, Double) {
        let at = |turns: f64| {
            let context = Double::from(self.original_context) / (Double::TAU * Double::from(turns));
            Double::from(rotary as f64) * context.ln() / (Double::from(base).ln() * Double::from(2.0))
        };
        let (mut low, mut high) = (at(self.beta_fast), at(self.beta_slow));
        if self.truncate {
            low = low.floor();
            high = -(-high).floor();
        }
        let zero = Double::from(0.0);
        let last = Double::from(rotary as f64 - 1.0);
        if (low - zero).hi < 0.0 {
            low = zero;
        }
        if (high - last).hi > 0.0 {
            high = last;
        }
        if low == high {
            high = high + Double::from(0.001);
        }
        (low, high)
    }

    /// How far the frequency of `pair` is divided, 0 to 1.
    fn ramp(&self, plain: Double, base: f64, rotary: usize, pair: usize) -> Double {
        let share = match self.ramp {
            Ramp::Pairs => {
                let (low, high) = self.exact_ends(base, rotary);
                (Double::from(pair as f64) - low) / (high - low)
            }
            Ramp::Turns => {
                let turns = Double::from(self.original_context) * plain / Double::TAU;
                if self.beta_fast == self.beta_slow {
                    Double::from(if turns.hi < self.beta_slow { 1.0 } else { 0.0 })
                } else {
                    let width = Double::from(self.beta_fast) - Double::from(self.beta_slow);
                    Double::ONE - (turns - Double::from(self.beta_slow)) / width
                }
            }
        };
        if share.hi <= 0.0 {
            Double::from(0.0)
        } else if share.hi >= 1.0 {
            Double::ONE
        } else {
            share
        }
    }

    fn frequency(&self, plain: Double, base: f64, rotary: usize, pair: usize) -> Double {
        let kept = (Double::ONE - self.ramp(plain, base, rotary, pair)) * Double::from(self.extrapolation);
        let divided = plain / Double::from(self.factor);
        // The ends are taken whole, so that pairs outside the ramp have the plain frequency's very bits.
        if kept == Double::ONE {
            plain
        } else if kept == Double::from(0.0) {
            divided
        } else {
            divided * (Double::ONE - kept) + plain * kept
        }
    }

    /// YaRN's factor on cos and sin: `yarn_mscale(factor, 1)`.
    ///
    /// ```
    /// use posenc::rotate::Yarn;
    /// assert_eq!(Yarn::new(4.0, 32768.0).attention_factor(), 1.138629436111989); // Qwen2.5
    /// ```
    pub fn attention_factor(&self) -> f64 {
        yarn_mscale(self.factor, 1.0)
    }
}

/// YaRN's temperature `0.1 * mscale * ln(factor) + 1`, and 1 for a factor up to 1.
///
/// Source: YaRN (arXiv 2309.00071), eq. 22, `sqrt(1/t)`; the parameter `mscale` is DeepSeek's.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Factor on the whole logit in DeepSeek's latent attention: `yarn_mscale(factor, mscale_all_dim)^2`.
///
/// It acts on the rotated and the unrotated part together and replaces nothing in cos and sin, whose factor is
/// `yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)`.
///
/// ```
/// // DeepSeek-V3
/// assert_eq!(posenc::rotate::mla_logit_scale(40.0, 1.0), 1.8738542070926265);
/// ```
pub fn mla_logit_scale(factor: f64, mscale_all_dim: f64) -> f64 {
    let mscale = yarn_mscale(factor, mscale_all_dim);
    mscale * mscale
}

/// LongRoPE's factor on cos and sin: `sqrt(1 + ln(factor) / ln(original_context))`, and 1 for a factor up to 1.
///
/// `factor` is the longest context over the original one.
///
/// Source: LongRoPE's published models (Phi-3); Hugging Face's `longrope`.
pub fn longrope_attention_factor(factor: f64, original_context: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() }
}

// -------------------------------------------------------------------------------------------- law, as Hugging Face has it

impl Rope {
    /// The frequency of `pair` as Hugging Face computes it: the same operations in the same order, each rounded to f32. The
    /// one that is given, where they are ([`Angles::Given`](crate::rotate::Angles::Given)).
    ///
    /// Frequencies are made on the CPU, when a model is built or loaded, and then moved to its device (but those of the types
    /// `dynamic` and `longrope`, which a call makes anew where its tensors are). The bits are those of a machine with AVX2: torch's
    /// power is not always the nearest f32 and has other bits on a machine without it (1.4 % of them).
    ///
    /// Per unit of the position, where it has fraction bits.
    ///
    /// # Panics
    /// If there is no such pair.
    ///
    /// # Source
    /// transformers 5.23.0, `modeling_rope_utils.py`; SLEEF's `powf`.
    ///
    /// # Example
    /// ```
    /// use posenc::Rope;
    /// let rope = Rope::new(128, 10_000.0);
    /// assert_eq!(rope.compat_frequency(32), 0.01f32);
    /// ```
    pub fn compat_frequency(&self, pair: usize) -> f32 {
        assert!(pair < self.pairs(), "pair {pair} of {}", self.pairs());
        // A power of two changes no bit of the product with a position.
        let unit = self.unit(self.axes.axis(pair, self.pairs())) as f32;
        if let Angles::Given(list) = &self.angles {
            return list[pair] * unit;
        }
        let (rung, size) = self.axes.rung(pair, self.pairs());
        self.scaling.compat_frequency(self.base, size, rung, pair) * unit
    }
}

impl Scaling {
    // f64 to f32 rounds to the nearest, as torch does with a Python number beside an f32 tensor.
    fn compat_frequency(&self, base: f64, rotary: usize, rung: usize, pair: usize) -> f32 {
        // How many pairs the tensor of exponents holds decides which of them torch takes in vectors.
        let count = match self {
            Self::Proportional { rotated, .. } => *rotated,
            _ => rotary / 2,
        };
        let power = |base: f64| torch_power(base as f32, (2 * rung) as f32 / rotary as f32, rung, count);
        let plain = 1.0 / power(base);
        let ntk = |alpha: f64| 1.0 / power(base * alpha.powf(rotary as f64 / (rotary as f64 - 2.0)));
        match self {
            Self::None => plain,
            Self::Linear { factor } => plain / *factor as f32,
            Self::NtkStatic { alpha } => ntk(*alpha),
            Self::NtkMixed { factor, exponent } => {
                let rate = (*factor as f32).ln() / ((rotary as f64 / 2.0).powf(*exponent)) as f32;
                plain / (rate * ((pair + 1) as f32).powf(*exponent as f32)).exp()
            }
            // The length of a call is a tensor, so that the base is made in f32 too.
            Self::DynamicNtk { factor, context, length } => {
                let length = length.map_or(*context, |length| context.max(length as f64)) as f32;
                let alpha = *factor as f32 * length / *context as f32 - (factor - 1.0) as f32;
                let grown = f64::from(alpha).powf(rotary as f64 / (rotary as f64 - 2.0)) as f32;
                1.0 / power(f64::from(base as f32 * grown))
            }
            Self::SteppedNtk { context, length } => ntk(stepped_alpha(*context, *length)),
            Self::Yarn(yarn) => {
                let divided = 1.0 / (yarn.factor as f32 * power(base));
                let ramp = match yarn.ramp {
                    Ramp::Pairs => {
                        let (low, high) = yarn.ramp_ends(base, rotary);
                        ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)
                    }
                    Ramp::Turns => yarn.ramp(Double::from(f64::from(plain)), base, rotary, pair).hi as f32,
                };
                let kept = (1.0 - ramp) * yarn.extrapolation as f32;
                divided * (1.0 - kept) + plain * kept
            }
            Self::LongRope { short, long, original_context, length } => {
                1.0 / (longrope_list(short, long, *original_context, *length)[pair] as f32 * power(base))
            }
            &Self::Llama3 { factor, low, high, original_context } => {
                // A number over a tensor is a reciprocal and a product in torch.
                let wave = 1.0 / plain * std::f64::consts::TAU as f32;
                if wave > (original_context / low) as f32 {
                    plain / factor as f32
                } else if wave < (original_context / high) as f32 || low == high {
                    plain
                } else {
                    let s = (1.0 / wave * original_context as f32 - low as f32) / (high - low) as f32;
                    (1.0 - s) * plain / factor as f32 + s * plain
                }
            }
            Self::Proportional { rotated, factor } => {
                if pair < *rotated {
                    plain / *factor as f32
                } else {
                    0.0
                }
            }
            Self::Divisors(list) => plain / list[pair] as f32,
        }
    }
}
