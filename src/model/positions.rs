//! What takes position in, for models with and without RoPE: the spec of each place.

use std::fmt::Write;

use super::keys::wrong;
use super::{Gguf, Layer, ModelRope};
use crate::bias::{Alibi, Distances, T5Bias};
use crate::embed::{Learned, Odd, Rows, Sinusoid, Wave};
use crate::{Pairing, Result};

/// Everything that a model computes from positions.
///
/// | place | answer |
/// |---|---|
/// | the token's vector | [`ModelPositions::embedding`]: a learned table or sinusoids |
/// | queries and keys | [`Layer::rope`] and the scales of each layer |
/// | the attention logit | [`LayerPositions::bias`]: ALiBi, T5's buckets, products with a table of relative positions |
/// | tables whose size is the call's | [`ModelPositions::beside`] names the specs: Transformer-XL, Swin, SAM |
/// | nowhere | all of them are `None`, and [`ModelPositions::without`] says what gives order instead |
///
/// # Example
/// ```
/// use posenc::model::{LogitBias, ModelPositions};
/// use posenc::Alibi;
/// let bloom = ModelPositions::from_hf(r#"{"model_type": "bloom", "n_layer": 24, "n_embed": 1024, "num_attention_heads": 16}"#)?;
/// let layer = bloom.layer(23)?;
/// assert!(layer.layer.rope.is_none() && bloom.embedding().is_none());
/// assert_eq!(layer.bias, Some(&LogitBias::Alibi(Alibi::new(16))));
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ModelPositions {
    rope: ModelRope,
    embedding: Option<PositionEmbedding>,
    /// of each of `rope.kinds()`
    biases: Vec<Option<LogitBias>>,
    without: Option<String>,
    beside: Option<String>,
}

/// Positions in one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerPositions<'a> {
    /// rotation of queries and keys, and scales
    pub layer: &'a Layer,
    /// what is added to the logit
    pub bias: Option<&'a LogitBias>,
}

/// A vector that is added to the token embedding.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum PositionEmbedding {
    /// A row of a learned table.
    ///
    /// `rows` counts the table's rows, those before the first position included; `None` if the config does not say. Scales
    /// of token rows and norms after the sum are the model's, not the config's: set them in the spec.
    Learned {
        /// how a token finds its row
        spec: Learned,
        /// rows of the table
        rows: Option<u64>,
    },
    /// Sinusoids.
    Sinusoid(Sinusoid),
}

/// A number that is added to the attention logit.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum LogitBias {
    /// a slope for each head
    Alibi(Alibi),
    /// T5's buckets of distance, a learned number for each head
    T5 {
        /// self-attention of the encoder
        encoder: Option<T5Bias>,
        /// self-attention of the decoder
        decoder: Option<T5Bias>,
    },
    /// Products of queries, keys or states with the rows of a table of relative positions: the terms of a
    /// [`RelativeLayer`](crate::bias::RelativeLayer).
    Relative {
        /// rows by which queries, or states of their own, meet the table
        queries: Option<Distances>,
        /// rows by which keys meet the table
        keys: Option<Distances>,
        /// channels of states in place of the queries (Inkling); `None`: the queries themselves
        states: Option<usize>,
    },
}

impl ModelPositions {
    /// What takes position in, as a model's `config.json` states it.
    ///
    /// # Errors
    /// As [`ModelRope::from_hf`], and [`Error::Config`](crate::Error::Config) if a size that the encoding needs (channels,
    /// heads) is missing.
    pub fn from_hf(json: &str) -> Result<Self> {
        super::hf::read(json, None)?.positions()
    }

    /// [`ModelPositions::from_hf`] for a model that takes position in as `model_type` does.
    ///
    /// # Errors
    /// As [`ModelPositions::from_hf`].
    pub fn from_hf_as(json: &str, model_type: &str) -> Result<Self> {
        super::hf::read(json, Some(model_type))?.positions()
    }

    /// What takes position in, as Mistral's `params.json` states it: RoPE.
    ///
    /// # Errors
    /// As [`ModelRope::from_mistral`].
    pub fn from_mistral(json: &str) -> Result<Self> {
        Read::rope(ModelRope::from_mistral(json)?).positions()
    }

    /// What takes position in, as the graph of llama.cpp does by the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`ModelRope::from_gguf`], and [`Error::Config`](crate::Error::Config) if a size that the encoding needs is missing.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        super::gguf::read(gguf)?.positions()
    }

    /// The rotation of every layer, and the name, context and count of layers.
    pub const fn rope(&self) -> &ModelRope {
        &self.rope
    }

    /// What is added to the token embedding.
    pub const fn embedding(&self) -> Option<&PositionEmbedding> {
        self.embedding.as_ref()
    }

    /// What gives order where nothing takes position in, such as recurrent layers.
    pub fn without(&self) -> Option<&str> {
        self.without.as_deref()
    }

    /// Which specs serve tables whose size depends on a call, or on a tower's window, which the config of a text model does not
    /// state: Transformer-XL's products, windows of Swin and SAM.
    pub fn beside(&self) -> Option<&str> {
        self.beside.as_deref()
    }

    /// Positions in layer `index`, counted from 0.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) if the model has no such layer.
    pub fn layer(&self, index: usize) -> Result<LayerPositions<'_>> {
        let kind = self.rope.kind(index)?;
        Ok(LayerPositions { layer: &self.rope.kinds()[kind], bias: self.biases[kind].as_ref() })
    }

    /// Summary for a person to read: [`ModelRope::describe`], and what is added.
    pub fn describe(&self) -> String {
        let mut text = self.rope.describe();
        if let Some(embedding) = &self.embedding {
            let _ = match embedding {
                PositionEmbedding::Learned { spec, rows } => {
                    let rows = rows.map_or(String::new(), |rows| format!("{rows} rows of "));
                    writeln!(text, "added to the token: a learned table, {rows}{} channels, {:?}", spec.dim, spec.rows)
                }
                PositionEmbedding::Sinusoid(spec) => writeln!(text, "added to the token: sinusoids, {spec:?}"),
            };
        }
        for (kind, bias) in self.rope.kinds().iter().zip(&self.biases) {
            if let Some(bias) = bias {
                let _ = writeln!(text, "added to the logit in {}: {bias:?}", kind.label);
            }
        }
        text
    }
}

/// What was read: the rotation, what takes position in beside it, and the sizes that its specs need.
pub(super) struct Read {
    pub rope: ModelRope,
    pub carrier: Carrier,
    pub sizes: Sizes,
}

/// Sizes, where the config or the class states them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    pub hidden: Option<usize>,
    pub heads: Option<usize>,
    /// positions of a table, without the rows before the first
    pub rows: Option<usize>,
    /// the id of padding, of models whose rows depend on it
    pub padding: Option<i64>,
    pub max_bias: Option<f64>,
    pub buckets: Option<usize>,
    pub max_distance: Option<usize>,
}

/// What takes position in beside RoPE.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Carrier {
    /// nothing beside it
    Rope,
    /// nothing at all
    Nothing(&'static str),
    /// a learned table whose first position reads this row
    Learned(i64),
    /// RoBERTa's: tokens that are no padding are counted from behind the padding id on
    LearnedKept,
    /// OPT's: tokens that are no padding by the mask
    LearnedMasked,
    /// fairseq's sinusoids, from behind the padding id on
    SinusoidKept,
    Sinusoid {
        pairing: Pairing,
        first: Wave,
        odd: Odd,
        shift: bool,
    },
    Alibi,
    T5 {
        encoder: bool,
        decoder: bool,
    },
    /// products with a table, of each kind of layers
    Relative(Vec<Option<LogitBias>>),
    /// what depends on more than the config: the text names the specs
    Open(&'static str),
}

impl Carrier {
    /// What a note says.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Rope => "RoPE",
            Self::Nothing(text) => text,
            Self::Learned(_) | Self::LearnedKept | Self::LearnedMasked => "a learned table",
            Self::SinusoidKept | Self::Sinusoid { .. } => "sinusoids",
            Self::Alibi => "ALiBi",
            Self::T5 { .. } => "T5's buckets of distance",
            Self::Relative(_) => "products with a table of relative positions",
            Self::Open(text) => text,
        }
    }
}

impl Read {
    pub fn rope(rope: ModelRope) -> Self {
        Self { rope, carrier: Carrier::Rope, sizes: Sizes::default() }
    }

    pub fn positions(self) -> Result<ModelPositions> {
        let Self { rope, carrier, sizes } = self;
        let name = rope.name().to_string();
        let needs = |size: Option<usize>, what: &str| match size {
            Some(size) => Ok(size),
            None => wrong(format!("{what} is missing, {} of {name:?} needs it", carrier.text())),
        };
        let learned = |rows: Rows, before: i64| -> Result<_> {
            let spec = Learned { rows, ..Learned::new(needs(sizes.hidden, "hidden_size")?) };
            spec.check()?;
            Ok(PositionEmbedding::Learned { spec, rows: sizes.rows.map(|rows| rows as u64 + before.unsigned_abs()) })
        };
        let alibi = || -> Result<_> {
            let alibi = Alibi::new(needs(sizes.heads, "num_attention_heads")?);
            let alibi = Alibi { max_bias: sizes.max_bias.unwrap_or(alibi.max_bias), ..alibi };
            alibi.check()?;
            Ok(LogitBias::Alibi(alibi))
        };
        let padding = sizes.padding.unwrap_or(1);
        let (mut embedding, mut bias, mut without, mut beside) = (None, None, None, None);
        let mut biases = None;
        match &carrier {
            Carrier::Rope => {}
            Carrier::Nothing(text) => without = Some((*text).to_string()),
            Carrier::Learned(first) => embedding = Some(learned(Rows::Offset(*first), *first)?),
            Carrier::LearnedKept => {
                let rows = Rows::Kept { padding: Some(padding), first: padding + 1, padded: padding };
                embedding = Some(learned(rows, 0)?);
            }
            Carrier::LearnedMasked => {
                embedding = Some(learned(Rows::Kept { padding: None, first: 2, padded: 1 }, 2)?);
            }
            Carrier::SinusoidKept => {
                let spec = Sinusoid {
                    pairing: Pairing::Half,
                    shift: 1.0,
                    odd: Odd::Zero,
                    padding: Some(padding),
                    offset: padding + 1,
                    ..Sinusoid::new(needs(sizes.hidden, "d_model")?)
                };
                spec.check()?;
                embedding = Some(PositionEmbedding::Sinusoid(spec));
            }
            &Carrier::Sinusoid { pairing, first, odd, shift } => {
                let spec = Sinusoid {
                    pairing,
                    first,
                    odd,
                    shift: f64::from(u8::from(shift)),
                    ..Sinusoid::new(needs(sizes.hidden, "d_model")?)
                };
                spec.check()?;
                embedding = Some(PositionEmbedding::Sinusoid(spec));
            }
            Carrier::Alibi => bias = Some(alibi()?),
            &Carrier::T5 { encoder, decoder } => {
                let spec = |bidirectional| -> Result<_> {
                    let buckets = sizes.buckets.unwrap_or(32);
                    let spec = T5Bias::new(buckets, sizes.max_distance.unwrap_or(128), bidirectional);
                    spec.check()?;
                    Ok(spec)
                };
                let (encoder, decoder) =
                    (encoder.then(|| spec(true)).transpose()?, decoder.then(|| spec(false)).transpose()?);
                bias = Some(LogitBias::T5 { encoder, decoder });
            }
            Carrier::Relative(list) => biases = Some(list.clone()),
            Carrier::Open(text) => beside = Some((*text).to_string()),
        }
        let biases = biases.unwrap_or_else(|| vec![bias; rope.kinds().len()]);
        Ok(ModelPositions { rope, embedding, biases, without, beside })
    }
}
