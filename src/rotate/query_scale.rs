//! What multiplies a query, and so its whole row of logits, beside the rotation: attention temperature.

use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// A factor on the query that depends on its position alone, never part of cos and sin.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#scales).
///
/// # Example
/// ```
/// use posenc::rotate::QueryScale;
/// let llama4 = QueryScale::Llama4 { scale: 0.1, floor: 8192.0 };
/// assert_eq!(llama4.at(8190), 1.0);
/// assert_eq!(llama4.at(8191), 1.0 + 0.1 * 2f64.ln());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum QueryScale {
    /// 1 everywhere
    #[default]
    One,
    /// Llama 4, in its layers without RoPE: `1 + scale * ln(1 + floor((position + 1) / floor))`.
    ///
    /// Source: `attn_temperature_tuning`, `attn_scale` and `floor_scale` in transformers 5.23.0, `modeling_llama4.py`.
    Llama4 {
        /// `attn_scale`, 0.1 in the published models
        scale: f64,
        /// `floor_scale`, 8192 there
        floor: f64,
    },
    /// Mistral (Ministral 3, Mistral Large 3), in every layer: `1 + beta * ln(1 + floor(position / original_context))`. The
    /// position is not shifted by 1.
    ///
    /// Source: `llama_4_scaling` of Mistral's params.json and `llama_4_scaling_beta` in transformers 5.23.0.
    Mistral {
        /// 0.1 in the published models
        beta: f64,
        /// tokens of a step
        original_context: f64,
    },
    /// log-n: `max(1, ln(position + 1) / ln(train_length))`.
    ///
    /// Source: Su 2021 (kexue.fm/archives/8823); Qwen's `use_logn_attn`, the ReRoPE repository.
    LogN {
        /// tokens of the training context
        train_length: f64,
    },
    /// Inkling, in its full layers: `1 + scale * ln(max(1, (position + 1) / floor))`, on the query and on its product with the
    /// table of relative positions.
    ///
    /// Source: `log_scaling_alpha` and `log_scaling_n_floor` in transformers 5.24.0, `modeling_inkling.py`.
    Inkling {
        /// `log_scaling_alpha`, 0.1 in the published models
        scale: f64,
        /// `log_scaling_n_floor`, 128000 in Inkling 2
        floor: f64,
    },
}

impl QueryScale {
    /// Refuses parameters outside the law.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let check = |name: &str, value: f64, above: f64| {
            if value.is_finite() && value > above {
                return Ok(());
            }
            Err(Error::Value(format!("{name} is {value}, it must be finite and above {above}")))
        };
        match *self {
            Self::One => Ok(()),
            Self::Llama4 { scale, floor } => {
                check("the Llama-4 query scale's scale", scale, 0.0)?;
                check("the Llama-4 query scale's floor", floor, 0.0)
            }
            Self::Mistral { beta, original_context } => {
                check("the Mistral query scale's beta", beta, 0.0)?;
                check("the Mistral query scale's original_context", original_context, 0.0)
            }
            Self::Inkling { scale, floor } => {
                check("the Inkling query scale's scale", scale, 0.0)?;
                check("the Inkling query scale's floor", floor, 0.0)
            }
            Self::LogN { train_length } => check("the log-n query scale's train_length", train_length, 1.0),
        }
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl QueryScale {
    /// The factor on the query at `position`.
    pub fn at(&self, position: u64) -> f64 {
        let position = position as f64;
        match *self {
            Self::One => 1.0,
            Self::Llama4 { scale, floor } => 1.0 + scale * ((position + 1.0) / floor).floor().ln_1p(),
            Self::Mistral { beta, original_context } => 1.0 + beta * (position / original_context).floor().ln_1p(),
            Self::Inkling { scale, floor } => 1.0 + scale * ((position + 1.0) / floor).max(1.0).ln(),
            Self::LogN { train_length } => ((position + 1.0).ln() / train_length.ln()).max(1.0),
        }
    }
}
