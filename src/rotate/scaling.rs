//! How a model stretches RoPE's frequencies beyond its training length: one law per paper.

use crate::double::Double;
use crate::{Error, Result};

/// What a scaling does to RoPE's frequencies.
///
/// A scaling changes frequencies only. A factor on cos and sin belongs to [`Rope::attention_factor`](crate::Rope), a
/// factor on the whole logit to neither.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Scaling {
    /// `base^(-2i/rotary)`, RoFormer (arXiv 2104.09864), eq. 15.
    #[default]
    None,
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones are kept, those between are blended.
    ///
    /// With the wavelength `w = 2 pi / frequency` and `L = original_context`:
    /// `w > L / low` gives `frequency / factor`; `w < L / high` gives `frequency`; between them, with
    /// `s = (L / w - low) / (high - low)`, `(1 - s) * frequency / factor + s * frequency`.
    ///
    /// `low == high` (Llama 4) leaves nothing between.
    ///
    /// Source: Meta's `apply_scaling` in llama-models 0.3.0; Hugging Face's `llama3` is the same.
    Llama3 {
        /// divides the lowest frequencies
        factor: f64,
        /// turns over the original context below which a frequency is divided
        low: f64,
        /// turns over the original context above which a frequency is kept
        high: f64,
        /// the context length of the first training, in tokens
        original_context: f64,
    },
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Error::Value(format!("{name} is {value}, it must be finite and above 0")))
    }
}

impl Scaling {
    /// Refuses parameters outside the law.
    pub(crate) fn check(&self) -> Result<()> {
        match *self {
            Self::None => Ok(()),
            Self::Llama3 { factor, low, high, original_context } => {
                positive("the Llama-3 scaling's factor", factor)?;
                positive("the Llama-3 scaling's low", low)?;
                positive("the Llama-3 scaling's high", high)?;
                positive("the Llama-3 scaling's original_context", original_context)?;
                if factor < 1.0 {
                    return Err(Error::Value(format!(
                        "the Llama-3 scaling's factor is {factor}, it must be at least 1"
                    )));
                }
                if low > high {
                    return Err(Error::Value(format!(
                        "the Llama-3 scaling's low is {low} and its high is {high}, low must not exceed high"
                    )));
                }
                Ok(())
            }
        }
    }

    /// The law: the frequency of `pair`, in radians per position, from the base and the rotary size.
    pub(crate) fn frequency(&self, base: f64, rotary: usize, pair: usize) -> Double {
        let exponent = Double::from(-2.0 * pair as f64) / Double::from(rotary as f64);
        let plain = Double::from(base).pow(exponent);
        match *self {
            Self::None => plain,
            Self::Llama3 { factor, low, high, original_context } => {
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
        }
    }
}
