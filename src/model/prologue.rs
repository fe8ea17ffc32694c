//! What a model does between the projection of queries, keys and values and attention, layer by layer.

use std::path::Path;

use serde_json::Value;

use super::hf::{self, WITHOUT_ATTENTION};
use super::keys::{Keys, wrong};
use super::open::Text;
use super::{Layer, ModelRope};
use crate::Result;
use crate::rotate::{Branch, HeadNorm, NormKind, NormOver, NormWeight, Prologue, Rounding};

/// The [`Prologue`] of every layer of a model, from its own config.
///
/// Model types and their sources: [docs](crate::docs::prologue#models).
///
/// # Example
/// ```
/// use posenc::model::ModelPrologue;
/// use posenc::rotate::{HeadNorm, Rounding};
/// let model = ModelPrologue::from_hf(
///     r#"{"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 36, "rope_theta": 1000000, "rms_norm_eps": 1e-6}"#,
/// )?;
/// let layer = model.layer(0)?;
/// assert_eq!(layer.prologue.k.norm, Some(HeadNorm::rms(1e-6)));
/// assert_eq!(layer.prologue.k.rounding, Rounding::BeforeWeight);
/// assert!(layer.prologue.v.norm.is_none() && !layer.prologue.v.bias);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ModelPrologue {
    rope: ModelRope,
    /// of each layer, one where the config does not count its layers
    layers: Vec<LayerPrologue>,
}

/// What one layer does between projection and attention.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerPrologue {
    /// Bias, norm, rotation and factor. [`Branch::rounding`] is the class's own around a norm; set another one where the closest
    /// values are wanted, or those of an engine.
    pub prologue: Prologue,
    /// Queries and a gate of the same size are interleaved by head in the projection, `[heads, 2, dim]`: Qwen3-Next. The gate is
    /// applied after attention.
    pub gated: bool,
    /// Latent attention: queries are rotated behind their other channels, keys are the shared rotary part alone, and values are
    /// the latent.
    pub latent: bool,
    /// Keys and values are those of a layer before; queries alone are made: Gemma 4's last layers.
    pub shares_keys: bool,
}

impl ModelPrologue {
    /// The prologues that Hugging Face's `config.json` states.
    ///
    /// The rotation is that of [`ModelRope::from_hf`]; norms and biases are those of the model type's class in transformers
    /// 5.24.0, with its defaults where the config is silent.
    ///
    /// # Errors
    /// As [`ModelRope::from_hf`], and [`Error::Config`](crate::Error::Config) if norms and biases of the model's type are not
    /// known, or the config asks for a step that a prologue has not: a norm with a mean, clipping.
    pub fn from_hf(json: &str) -> Result<Self> {
        Self::read(json, None)
    }

    /// [`ModelPrologue::from_hf`] for a model whose own type is not known but whose attention is that of `model_type`.
    ///
    /// # Errors
    /// As [`ModelPrologue::from_hf`].
    pub fn from_hf_as(json: &str, model_type: &str) -> Result<Self> {
        Self::read(json, Some(model_type))
    }

    /// The prologues of a model, from its `config.json` or the folder that holds it.
    ///
    /// # Errors
    /// As [`ModelRope::open`] and [`ModelPrologue::from_hf`]; `params.json` and GGUF say nothing of biases and the order of norms,
    /// and are refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match Text::open(path)? {
            Text::Hf(json) => Self::from_hf(&json),
            Text::Mistral(_) | Text::Gguf(_) => wrong(format!(
                "{} does not say how queries and keys are normed and biased, a config.json does",
                path.display()
            )),
        }
    }

    /// The prologue of layer `index`, counted from 0.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) if the model has no such layer; [`Error::Config`](crate::Error::Config) if it has no
    /// attention.
    pub fn layer(&self, index: usize) -> Result<&LayerPrologue> {
        let label = &self.rope.layer(index)?.label;
        if WITHOUT_ATTENTION.contains(&label.as_str()) {
            return wrong(format!("layer {index} of {} is {label:?}, which has no queries and keys", self.rope.name));
        }
        Ok(&self.layers[if self.layers.len() == 1 { 0 } else { index }])
    }

    /// The rotations alone.
    pub const fn rope(&self) -> &ModelRope {
        &self.rope
    }

    /// The same model for sequences of `length` tokens: [`ModelRope::at_length`].
    pub fn at_length(&self, length: u64) -> Self {
        let rope = self.rope.at_length(length);
        let mut layers = self.layers.clone();
        for (index, layer) in layers.iter_mut().enumerate() {
            let kind = rope.layers.get(index).copied().unwrap_or(0);
            layer.prologue.rope = rope.kinds[kind].rope.clone();
        }
        Self { rope, layers }
    }

    fn read(json: &str, as_type: Option<&str>) -> Result<Self> {
        let rope = hf::read(json, as_type)?.rope;
        let mut value = Value::Null;
        let (map, model_type, _) = hf::language(json, &mut value, as_type)?;
        let config = Keys::new("the config", map);
        let Some(class) = CLASSES.iter().find(|(names, _)| names.contains(&model_type)).map(|(_, class)| class) else {
            return wrong(format!(
                "norms and biases of model_type {model_type:?} are not known; ModelPrologue::from_hf_as reads it as a known one"
            ));
        };
        for key in class.refused {
            match config.get(key) {
                None | Some(Value::Bool(false)) => {}
                Some(value) => return wrong(format!("{key} is {value}: a step that a prologue does not have")),
            }
        }
        let count = rope.layers.len();
        let shared = if class.form == Form::Gemma4 { config.count("num_kv_shared_layers")?.unwrap_or(0) } else { 0 };
        if shared > 0 && shared >= count {
            return wrong(format!("num_kv_shared_layers is {shared}, the model has {count} layers"));
        }
        let layer = |index: usize| {
            let kind = rope.layers.get(index).copied().unwrap_or(0);
            let prologue = class.prologue(&config, &rope.kinds[kind])?;
            // A length may still be missing.
            Prologue { rope: prologue.rope.as_ref().map(|rope| rope.at_length(1)), ..prologue.clone() }.check()?;
            Ok(LayerPrologue {
                prologue,
                gated: class.form == Form::Gated,
                latent: class.form == Form::Latent,
                shares_keys: shared > 0 && index + shared >= count,
            })
        };
        let layers = (0..count.max(1)).map(layer).collect::<Result<_>>()?;
        Ok(Self { rope, layers })
    }
}

/// What the attention class of a model type does between projection and attention.
#[derive(Clone, Copy)]
struct Class {
    bias: Bias,
    /// weight and channels of the norm of queries and keys
    norm: Option<(NormWeight, NormOver)>,
    /// a flag that the norm depends on, and its default
    flag: Option<(&'static str, bool)>,
    /// where `eps` stands, and its default
    eps: (&'static str, f64),
    /// around the norm
    rounding: Rounding,
    form: Form,
    /// keys that ask for other steps, unless they are false or null
    refused: &'static [&'static str],
}

/// Whether projections have a bias.
#[derive(Clone, Copy)]
enum Bias {
    Never,
    Always,
    /// by this key, with this default
    Key(&'static str, bool),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Usual,
    /// queries and a gate by head
    Gated,
    /// the norm comes after the rotation
    RopeFirst,
    /// rope first, a norm in layers with RoPE alone
    Llama4,
    /// values have a norm without a weight
    Gemma4,
    /// a norm of the latent alone, whose `eps` is the norm's default
    Latent,
}

impl Class {
    const fn plain(bias: Bias) -> Self {
        Self {
            bias,
            norm: None,
            flag: None,
            eps: ("rms_norm_eps", 1e-6),
            rounding: Rounding::Once,
            form: Form::Usual,
            refused: &[],
        }
    }

    /// Queries and keys have a norm of each head with a weight, which multiplies what was rounded.
    const fn normed(bias: Bias, eps: f64) -> Self {
        Self {
            norm: Some((NormWeight::Weight, NormOver::Head)),
            eps: ("rms_norm_eps", eps),
            rounding: Rounding::BeforeWeight,
            ..Self::plain(bias)
        }
    }

    const fn one_plus(self) -> Self {
        Self { norm: Some((NormWeight::OnePlusWeight, NormOver::Head)), rounding: Rounding::Steps, ..self }
    }

    const fn all_heads(self, rounding: Rounding) -> Self {
        Self { norm: Some((NormWeight::Weight, NormOver::AllHeads)), rounding, ..self }
    }

    const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    const fn refusing(self, refused: &'static [&'static str]) -> Self {
        Self { refused, ..self }
    }

    const fn flag(self, key: &'static str, default: bool) -> Self {
        Self { flag: Some((key, default)), ..self }
    }

    fn prologue(&self, config: &Keys<'_>, layer: &Layer) -> Result<Prologue> {
        let mut prologue = layer.prologue();
        let bias = match self.bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Key(key, default) => config.flag(key)?.unwrap_or(default),
        };
        let eps = match self.form {
            Form::Latent => self.eps.1,
            _ => config.number(self.eps.0)?.unwrap_or(self.eps.1),
        };
        let wanted = match self.flag {
            Some((key, default)) => config.flag(key)?.unwrap_or(default),
            None => true,
        };
        let norm = self.norm.map(|(weight, over)| HeadNorm { kind: NormKind::Rms, weight, eps, over });
        let mut norm = norm.filter(|_| wanted && (self.form != Form::Llama4 || layer.rope.is_some()));
        let latent = if self.form == Form::Latent { norm.take() } else { None };
        let values = match self.form {
            Form::Gemma4 => norm.map(|norm| HeadNorm { weight: NormWeight::None, ..norm }),
            _ => latent,
        };
        let branch = |usual: Branch, bias: bool, norm: Option<HeadNorm>| Branch {
            bias,
            norm,
            rounding: if norm.is_some() { self.rounding } else { Rounding::Once },
            ..usual
        };
        prologue.q = branch(prologue.q, bias && self.form != Form::Latent, norm);
        prologue.k = branch(prologue.k, bias, norm);
        prologue.v = branch(prologue.v, bias, values);
        prologue.rope_first = matches!(self.form, Form::RopeFirst | Form::Llama4);
        Ok(prologue)
    }
}

/// By `attention_bias`, absent: none.
const ASKED: Bias = Bias::Key("attention_bias", false);
/// By `attention_bias`, absent: there is one.
const UNLESS: Bias = Bias::Key("attention_bias", true);

/// Read from transformers 5.24.0; `tools/golden/prologue.py` runs these classes.
#[rustfmt::skip]
static CLASSES: &[(&[&str], Class)] = &[
    (&["mistral", "mixtral", "ministral", "ministral3", "phi3", "minimax"], Class::plain(Bias::Never)),
    (&["llama", "gemma", "gemma2", "granite", "granitemoe", "smollm3", "arcee", "cohere2", "helium", "phimoe", "nemotron"],
     Class::plain(ASKED)),
    (&["glm", "glm4", "gpt_oss", "seed_oss"], Class::plain(UNLESS)),
    (&["qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"], Class::plain(Bias::Always)),
    (&["qwen2_moe"], Class::plain(Bias::Key("qkv_bias", true))),
    (&["starcoder2"], Class::plain(Bias::Key("use_bias", true))),
    (&["ernie4_5", "ernie4_5_moe"], Class::plain(Bias::Key("use_bias", false))),
    (&["stablelm"], Class::plain(Bias::Key("use_qkv_bias", false)).refusing(&["qk_layernorm"])),
    (&["phi"], Class::plain(Bias::Always).refusing(&["qk_layernorm"])),
    (&["cohere"], Class::plain(ASKED).refusing(&["use_qk_norm"])),
    (&["olmo"], Class::plain(ASKED).refusing(&["clip_qkv"])),
    // A norm of each head.
    (&["qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_text", "dots1"], Class::normed(ASKED, 1e-6)),
    (&["apertus"], Class::normed(ASKED, 1e-5)),
    (&["exaone4"], Class::normed(Bias::Never, 1e-5)),
    (&["lfm2"], Class { eps: ("norm_eps", 1e-5), ..Class::normed(Bias::Never, 1e-5) }),
    (&["glm4_moe"], Class::normed(ASKED, 1e-5).flag("use_qk_norm", false)),
    (&["hunyuan_v1_dense", "hunyuan_v1_moe"], Class::normed(ASKED, 1e-5).form(Form::RopeFirst)),
    (&["gemma3", "gemma3_text"], Class::normed(ASKED, 1e-6).one_plus()),
    (&["gemma4_text"], Class { rounding: Rounding::Steps, ..Class::normed(ASKED, 1e-6) }.form(Form::Gemma4)),
    (&["qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
     Class::normed(ASKED, 1e-6).one_plus().form(Form::Gated)),
    (&["llama4", "llama4_text"],
     Class { norm: Some((NormWeight::None, NormOver::Head)), rounding: Rounding::Steps, ..Class::normed(ASKED, 1e-5) }
         .form(Form::Llama4).flag("use_qk_norm", true)),
    // A norm over all heads.
    (&["olmo2"], Class::normed(ASKED, 1e-5).all_heads(Rounding::Steps)),
    (&["olmo3"], Class::normed(ASKED, 1e-5).all_heads(Rounding::Steps)),
    (&["olmoe"], Class::normed(ASKED, 1e-5).all_heads(Rounding::BeforeWeight).refusing(&["clip_qkv"])),
    (&["minimax_m2"], Class::normed(Bias::Never, 1e-6).all_heads(Rounding::BeforeWeight)),
    // Latent attention.
    (&["deepseek_v2", "deepseek_v3", "mistral4"], Class::normed(ASKED, 1e-6).form(Form::Latent)),
];
