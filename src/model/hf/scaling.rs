//! What one map of parameters says of a scaling: frequencies, the factor on cos and sin, the factors on logits and queries.

use super::super::keys::{Keys, wrong};
use super::Reader;
use super::families::Form;
use crate::rotate::{QueryScale, Scaling, Yarn, longrope_attention_factor, mla_logit_scale, yarn_mscale};
use crate::{Error, Result};

/// Keys of `rope_parameters` that some type has. One that the type at hand does not use changes nothing and is noted;
/// every other key is refused.
pub(super) const KNOWN: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "short_factor",
    "long_factor",
    "short_mscale",
    "long_mscale",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "mrope_section",
    "xdrope_section",
    "mrope_interleaved",
    "llama_4_scaling_beta",
    "alpha",
    "mixed_b",
    "attn_factor",
    "extrapolation_factor",
    "finetuned",
];

/// What one map of parameters comes to.
pub(super) struct Parts {
    pub scaling: Scaling,
    pub rotary: usize,
    pub attention_factor: f64,
    pub long_attention_factor: Option<f64>,
    pub logit_scale: f64,
    pub query_scale: QueryScale,
}

impl Reader<'_> {
    pub(super) fn scaling(
        &self,
        map: &Keys<'_>,
        kind: &str,
        (head, rotary, share): (usize, usize, f64),
        context: Option<u64>,
        notes: &mut Vec<String>,
    ) -> Result<Parts> {
        let config = &self.config;
        let because = format!("rope_type {kind:?}");
        let latent = matches!(self.family.form, Form::Latent | Form::Skipping { latent: true, .. });
        let pairs = rotary / 2;
        // The training length: beside the map (Phi-3, GPT-OSS) or in it.
        let mut original = || -> Result<f64> {
            let outside = ["original_max_position_embeddings", "initial_context_length"];
            let inside = map.number("original_max_position_embeddings")?;
            for key in outside {
                if let Some(outer) = config.number(key)? {
                    if let Some(inner) = inside
                        && inner != outer
                    {
                        return wrong(format!(
                            "{key} is {outer} and {}.original_max_position_embeddings is {inner}, they must be the same",
                            map.name()
                        ));
                    }
                    return Ok(outer);
                }
            }
            match (inside, context) {
                (Some(inside), _) => Ok(inside),
                // As transformers and vLLM do.
                (None, Some(context)) => {
                    notes.push(format!(
                        "original_max_position_embeddings is missing: max_position_embeddings {context} stands for it"
                    ));
                    Ok(context as f64)
                }
                (None, None) => wrong(format!("original_max_position_embeddings is missing, {because} needs it")),
            }
        };
        let longest = || match context {
            Some(context) => Ok(context as f64),
            None => wrong(format!("max_position_embeddings is missing, {because} needs it")),
        };
        let mut parts = Parts {
            scaling: Scaling::None,
            rotary,
            attention_factor: 1.0,
            long_attention_factor: None,
            logit_scale: 1.0,
            query_scale: QueryScale::One,
        };
        // 0 counts as absent, as Python's `or` has it.
        let truthy = |key: &str| Ok::<_, Error>(map.number(key)?.filter(|&number| number != 0.0));
        match kind {
            "default" => {}
            "axial" if matches!(self.family.form, Form::Grid(_)) => {}
            // Hunyuan's, a fixed base.
            "ntk_alpha" => parts.scaling = Scaling::NtkStatic { alpha: map.needed("alpha", &because)? },
            "linear" => parts.scaling = Scaling::Linear { factor: map.needed("factor", &because)? },
            "dynamic" => {
                parts.scaling = match map.number("alpha")? {
                    // Hunyuan: a fixed base.
                    Some(alpha) if alpha != 0.0 => Scaling::NtkStatic { alpha },
                    _ => Scaling::DynamicNtk {
                        factor: map.needed("factor", &because)?,
                        context: longest()?,
                        length: None,
                    },
                };
            }
            "ntk" => {
                parts.scaling = Scaling::NtkMixed {
                    factor: map.needed("factor", &because)?,
                    exponent: map.number("mixed_b")?.unwrap_or(1.0),
                };
            }
            "yarn" | "telechat3-yarn" => {
                let original = original()?;
                let factor = match (map.map.get("factor"), map.number("factor")?) {
                    (_, Some(factor)) => factor,
                    (Some(_), None) => longest()? / original,
                    (None, None) => return wrong(format!("factor is missing, {because} needs it")),
                };
                parts.scaling = Scaling::Yarn(Yarn {
                    beta_fast: truthy("beta_fast")?.unwrap_or(32.0),
                    beta_slow: truthy("beta_slow")?.unwrap_or(1.0),
                    truncate: map.flag("truncate")?.unwrap_or(true),
                    extrapolation: map.number("extrapolation_factor")?.unwrap_or(1.0),
                    ..Yarn::new(factor, original)
                });
                let (mscale, all) = (truthy("mscale")?, truthy("mscale_all_dim")?);
                let given = map.number("attention_factor")?;
                parts.attention_factor = match (given, mscale, all) {
                    (Some(given), _, _) => given,
                    // The published code of DeepSeek-V4 leaves cos and sin alone.
                    _ if matches!(self.family.form, Form::Compressed) => 1.0,
                    _ if kind == "telechat3-yarn" => yarn_mscale(factor, 0.7),
                    (None, Some(mscale), Some(all)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all),
                    _ => yarn_mscale(factor, 1.0),
                } * map.number("attn_factor")?.unwrap_or(1.0);
                if let (true, Some(all)) = (latent, all) {
                    parts.logit_scale = mla_logit_scale(factor, all);
                }
            }
            "longrope" => {
                let original = original()?;
                let list = |key: &str| match map.numbers(key)? {
                    None => wrong(format!("{key} is missing, {because} needs it")),
                    Some(list) if list.len() == pairs => Ok(list),
                    Some(list) => {
                        wrong(format!("{key} holds {} numbers, the rotary part has {pairs} pairs", list.len()))
                    }
                };
                let factor = match map.number("factor")? {
                    Some(factor) => factor,
                    None => longest()? / original,
                };
                let mscales = (map.number("short_mscale")?, map.number("long_mscale")?);
                (parts.attention_factor, parts.long_attention_factor) = match (map.number("attention_factor")?, mscales)
                {
                    (_, (Some(short), Some(long))) => (short, Some(long).filter(|&long| long != short)),
                    (Some(given), _) => (given, None),
                    _ => (longrope_attention_factor(factor, original), None),
                };
                parts.scaling = Scaling::LongRope {
                    short: list("short_factor")?,
                    long: list("long_factor")?,
                    original_context: original,
                    length: None,
                };
            }
            "llama3" => {
                parts.scaling = Scaling::Llama3 {
                    factor: map.needed("factor", &because)?,
                    low: map.needed("low_freq_factor", &because)?,
                    high: map.needed("high_freq_factor", &because)?,
                    original_context: original()?,
                };
            }
            "proportional" => {
                parts.rotary = head;
                let rotated = (share * head as f64 / 2.0) as usize;
                parts.scaling = Scaling::Proportional { rotated, factor: map.number("factor")?.unwrap_or(1.0) };
            }
            other => {
                return wrong(format!(
                    "rope_type is {other:?}, this crate knows default, linear, dynamic, ntk, ntk_alpha, yarn, longrope, llama3 \
                     and proportional"
                ));
            }
        }
        if let Some(beta) = map.number("llama_4_scaling_beta")?
            && beta != 0.0
        {
            parts.query_scale = QueryScale::Mistral { beta, original_context: original()? };
        }
        // Nomic's own words for dynamic NTK.
        if let Some(factor) = config.number("rotary_scaling_factor")? {
            if parts.scaling != Scaling::None {
                return wrong(format!(
                    "rotary_scaling_factor is {factor} beside {because}, only one of them can scale"
                ));
            }
            let context = config.needed("max_trained_positions", "rotary_scaling_factor")?;
            parts.scaling = Scaling::DynamicNtk { factor, context, length: None };
        }
        if matches!(self.family.form, Form::Stepped) && config.flag("use_dynamic_ntk")?.unwrap_or(true) {
            if parts.scaling != Scaling::None {
                return wrong(format!("use_dynamic_ntk stands beside {because}, only one of them can scale"));
            }
            let context = config.needed("seq_length", "use_dynamic_ntk")?;
            parts.scaling = Scaling::SteppedNtk { context, length: None };
        }
        if self.model_type == "phi3small"
            && let Some(scale) = config.number("rope_position_scale")?
            && scale != 1.0
        {
            if parts.scaling != Scaling::None {
                return wrong(format!("rope_position_scale is {scale} beside {because}, only one of them can scale"));
            }
            parts.scaling = Scaling::Linear { factor: 1.0 / scale };
        }
        Ok(parts)
    }
}
