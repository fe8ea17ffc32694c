//! What a model does with positions, from the model's own config: [`ModelRope`], the rotation of every layer, and
//! [`ModelPositions`], with what is added to tokens and logits.
//!
//! | from | function |
//! |---|---|
//! | Hugging Face's `config.json`, legacy and version 5 | [`ModelRope::from_hf`] |
//! | Mistral's `params.json` | [`ModelRope::from_mistral`] |
//! | a folder or a file of these, by its name | [`ModelRope::open`] |
//! | GGUF metadata, or the head of a `.gguf` file | [`ModelRope::from_gguf`], [`Gguf::read`] |
//!
//! What is not understood and would change the result is an error, never a default.

mod gguf;
mod hf;
mod json;
mod keys;
mod mistral;
mod open;
mod positions;
mod prologue;
mod words;

use std::fmt::Write;

pub use gguf::{Gguf, GgufValue};
pub use positions::{LayerPositions, LogitBias, ModelPositions, PositionEmbedding};
pub use prologue::{LayerPrologue, ModelPrologue};

use crate::position::{DualChunk, GridPositions};
use crate::rotate::{Axes, Prologue, QueryScale, Ramp, Rope, Scaling};
use crate::{Direction, Error, Heads, Pairing, Positions, Result, Scalar, Shape};

/// What is known of a model type or an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// `model_type` of a `config.json`, or `general.architecture` of a GGUF file
    pub name: &'static str,
    /// what takes position in
    pub positions: String,
    /// of an architecture: file and line of llama.cpp's `src/models`; else empty
    pub source: &'static str,
}

/// The model types that [`ModelPositions::from_hf`] knows.
pub fn model_types() -> Vec<Known> {
    hf::known()
}

/// The architectures of llama.cpp that [`ModelPositions::from_gguf`] knows, those it refuses by name included.
pub fn architectures() -> Vec<Known> {
    gguf::known()
}

/// The RoPE of every layer of a model.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#models).
///
/// # Example
/// ```
/// use posenc::ModelRope;
/// let model = ModelRope::from_hf(
///     r#"{"model_type": "smollm3", "num_hidden_layers": 8, "hidden_size": 2048, "num_attention_heads": 16, "rope_theta": 5e6}"#,
/// )?;
/// assert_eq!(model.layer(2)?.rope.as_ref().map(|rope| rope.base), Some(5e6));
/// assert!(model.layer(3)?.rope.is_none());
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ModelRope {
    name: String,
    context: Option<u64>,
    kinds: Vec<Layer>,
    /// the kind of each layer; empty where the config does not count its layers and all are one kind
    layers: Vec<usize>,
    notes: Vec<String>,
    #[cfg_attr(feature = "serde", serde(default))]
    grid: Option<GridPositions>,
}

/// Positions in one layer: a rotation or none, and the scales beside it.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Layer {
    /// which layers these are, in the config's words
    pub label: String,
    /// The rotation; `None` in layers without RoPE, which [`Layer::rotate`] leaves alone.
    ///
    /// In latent attention (DeepSeek) it is the query's: its rotary part follows `qk_nope_head_dim` channels. The key's rotary
    /// part is a tensor of its own there, whose heads of `rotary` channels the same spec rotates whole.
    pub rope: Option<Rope>,
    /// channels of a query's head
    pub head: usize,
    /// multiplies every logit, beside `1 / sqrt(head)`
    pub logit_scale: f64,
    /// multiplies the query at each position
    pub query_scale: QueryScale,
    /// Dual Chunk Attention, which changes the positions of queries and keys; `None` in almost every model.
    pub dual_chunk: Option<DualChunk>,
    /// the attention factor beyond LongRoPE's original context, where it is another one
    long_attention_factor: Option<f64>,
}

impl Layer {
    fn none(label: impl Into<String>, head: usize) -> Self {
        Self {
            label: label.into(),
            rope: None,
            head,
            logit_scale: 1.0,
            query_scale: QueryScale::One,
            dual_chunk: None,
            long_attention_factor: None,
        }
    }

    /// The rotation, [`Rope::none`] in layers without RoPE.
    pub fn rope_or_none(&self) -> Rope {
        self.rope.clone().unwrap_or_else(Rope::none)
    }

    fn at_length(&self, length: u64) -> Self {
        let mut layer = self.clone();
        let Some(rope) = &mut layer.rope else { return layer };
        *rope = rope.at_length(length);
        let beyond =
            matches!(rope.scaling, Scaling::LongRope { original_context, .. } if length as f64 > original_context);
        if let (true, Some(factor)) = (beyond, self.long_attention_factor) {
            rope.attention_factor = factor;
        }
        layer
    }

    /// The layer's rotation and query scale as a [`Prologue`]; [`ModelPrologue`] knows norms and biases too, of fewer models.
    ///
    /// # Example
    /// ```
    /// use posenc::rotate::HeadNorm;
    /// use posenc::{ModelRope, Prologue};
    /// let config = r#"{"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 36, "rope_theta": 1000000.0}"#;
    /// let mut qwen3: Prologue = ModelRope::from_hf(config)?.layer(0)?.prologue();
    /// (qwen3.q.norm, qwen3.k.norm) = (Some(HeadNorm::rms(1e-6)), Some(HeadNorm::rms(1e-6)));
    /// assert!(qwen3.q.rope && !qwen3.v.rope);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn prologue(&self) -> Prologue {
        let plain = self.rope.clone().map_or(Prologue::plain(), Prologue::new);
        Prologue { query_scale: self.query_scale, ..plain }
    }

    /// Rotates `x` as this layer does, in place: [`Rope::rotate`], or nothing at all in a layer without RoPE.
    ///
    /// On a device, `RopePlan::new(&gpu, &layer.rope_or_none())` is the plan.
    ///
    /// # Errors
    /// As [`Rope::rotate`]; without RoPE, if `x` is shorter than its shape.
    ///
    /// # Example
    /// ```
    /// use posenc::{Direction, Heads, ModelRope};
    /// let llama4 = ModelRope::from_hf(r#"{"model_type": "llama4_text", "head_dim": 2, "num_hidden_layers": 4}"#)?;
    /// let mut x = [1.0f32, 0.0];
    /// // Every fourth layer has none.
    /// llama4.layer(3)?.rotate(&mut x, &Heads::thd(1, 1, 2), &[5], Direction::Forward)?;
    /// assert_eq!(x, [1.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rotate<'a, T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: impl Into<Positions<&'a [i64]>>,
        direction: Direction,
    ) -> Result<()> {
        match &self.rope {
            Some(rope) => rope.rotate(x, heads, positions, direction),
            None => heads.check_written("x", x.len()).map(|_| ()),
        }
    }

    /// Refuses a rotation outside its law, whose length may still be missing, or outside its head.
    fn check(&self) -> Result<()> {
        self.query_scale.check()?;
        if let Some(dual_chunk) = &self.dual_chunk {
            dual_chunk.check()?;
        }
        if let Some(rope) = &self.rope {
            rope.at_length(1).check_head(self.head)?;
        }
        Ok(())
    }
}

impl ModelRope {
    fn new(
        name: String,
        context: Option<u64>,
        labelled: Vec<Layer>,
        layers: Vec<usize>,
        notes: Vec<String>,
    ) -> Result<Self> {
        for kind in &labelled {
            kind.check()?;
        }
        Ok(Self { name, context, kinds: labelled, layers, notes, grid: None })
    }

    /// The model's type, as its config names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Positions that the config promises, `max_position_embeddings`.
    pub const fn context(&self) -> Option<u64> {
        self.context
    }

    /// Layers, where the config counts them.
    pub fn layers(&self) -> Option<usize> {
        (!self.layers.is_empty()).then_some(self.layers.len())
    }

    /// The different kinds of layers.
    pub fn kinds(&self) -> &[Layer] {
        &self.kinds
    }

    /// Positions in layer `index`, counted from 0.
    ///
    /// # Errors
    /// [`Error::Value`] if the model has no such layer.
    pub fn layer(&self, index: usize) -> Result<&Layer> {
        Ok(&self.kinds[self.kind(index)?])
    }

    /// Which of the kinds layer `index` is.
    fn kind(&self, index: usize) -> Result<usize> {
        if self.layers.is_empty() {
            return Ok(0);
        }
        match self.layers.get(index) {
            Some(&kind) => Ok(kind),
            None => Err(Error::Value(format!("layer {index} is asked for, the model has {}", self.layers.len()))),
        }
    }

    /// The one spec of all layers.
    ///
    /// # Errors
    /// [`Error::Config`] if layers differ or have no RoPE.
    pub fn rope(&self) -> Result<&Rope> {
        if let [Layer { rope: Some(rope), .. }] = &self.kinds[..] {
            return Ok(rope);
        }
        let names: Vec<_> = self.kinds.iter().map(|kind| kind.label.as_str()).collect();
        Err(Error::Config(if self.kinds.iter().all(|kind| kind.rope.is_none()) {
            format!("{} has no RoPE", self.name)
        } else {
            format!("the layers of {} differ ({}); ask ModelRope::layer for each", self.name, names.join(", "))
        }))
    }

    /// How a vision tower counts the patches of its images; `None` where tokens have their indices as positions, and for towers
    /// whose positions follow no such rule, which [`ModelRope::describe`] notes.
    ///
    /// # Example
    /// ```
    /// use posenc::{Direction, Heads, ModelRope};
    /// let config = r#"{"model_type": "dinov3_vit", "hidden_size": 384, "num_attention_heads": 6, "num_register_tokens": 4}"#;
    /// let dinov3 = ModelRope::from_hf(config)?;
    /// // A class token, four registers and 14 x 14 patches: positions on two axes, rows and columns.
    /// let grid = dinov3.grid().ok_or(posenc::Error::Config("no grid".into()))?;
    /// let ids = grid.ids(&[[1, 14, 14]])?;
    /// assert_eq!(ids.len(), 2 * 201);
    /// let mut q = vec![1.0f32; 201 * 6 * 64];
    /// dinov3.rope()?.rotate(&mut q, &Heads::thd(201, 6, 64), &ids, Direction::Forward)?;
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub const fn grid(&self) -> Option<&GridPositions> {
        self.grid.as_ref()
    }

    /// The same model for sequences of `length` tokens, the new ones included: what dynamic NTK and LongRoPE depend on.
    pub fn at_length(&self, length: u64) -> Self {
        Self { kinds: self.kinds.iter().map(|kind| kind.at_length(length)).collect(), ..self.clone() }
    }

    /// Summary for a person to read.
    pub fn describe(&self) -> String {
        let mut text = self.name.clone();
        if let Some(layers) = self.layers() {
            let _ = write!(text, ", {layers} layers");
        }
        if let Some(context) = self.context {
            let _ = write!(text, ", {context} positions");
        }
        text.push('\n');
        for (index, kind) in self.kinds.iter().enumerate() {
            let count = self.layers.iter().filter(|&&layer| layer == index).count();
            let _ = if self.layers.is_empty() {
                writeln!(text, "{}: {}", kind.label, describe_layer(kind))
            } else {
                let first = self.layers.iter().position(|&layer| layer == index).unwrap_or(0);
                writeln!(text, "{} ({count} from layer {first}): {}", kind.label, describe_layer(kind))
            };
        }
        if let Some(grid) = &self.grid {
            let _ = writeln!(text, "positions of patches: {}", words::grid(grid));
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

/// Layers that a config may count: a damaged file must not ask for memory.
fn check_layers(key: &str, count: Option<usize>) -> Result<Option<usize>> {
    match count {
        Some(count) if !(1..=1 << 16).contains(&count) => {
            Err(Error::Config(format!("{key} is {count}, a model has 1 to 65536 layers")))
        }
        count => Ok(count),
    }
}

fn describe_layer(layer: &Layer) -> String {
    let mut parts = Vec::new();
    match &layer.rope {
        None => parts.push("no RoPE".to_string()),
        Some(rope) => {
            let place = if rope.rotary == layer.head {
                format!("all {} channels", layer.head)
            } else {
                format!("channels {}..{} of {}", rope.offset, rope.offset + rope.rotary, layer.head)
            };
            let pairing = match rope.pairing {
                Pairing::Half => "in halves",
                Pairing::Interleaved => "interleaved",
            };
            parts.push(format!("RoPE over {place} {pairing}, base {}", rope.base));
            parts.extend(describe_scaling(&rope.scaling));
            if rope.attention_factor != 1.0 {
                parts.push(format!("cos and sin times {}", rope.attention_factor));
            }
            if let Some(factor) = layer.long_attention_factor {
                parts.push(format!("beyond the original context times {factor}"));
            }
            if rope.axes != Axes::One {
                parts.push(words::axes(&rope.axes));
            }
        }
    }
    if layer.logit_scale != 1.0 {
        parts.push(format!("logits times {}", layer.logit_scale));
    }
    if layer.query_scale != QueryScale::One {
        parts.push(words::query_scale(&layer.query_scale));
    }
    if let Some(DualChunk { chunk, local }) = layer.dual_chunk {
        parts.push(format!("Dual Chunk Attention, chunks of {chunk}, {local} local"));
    }
    parts.join("; ")
}

fn describe_scaling(scaling: &Scaling) -> Option<String> {
    let length = |length: &Option<u64>| match length {
        None => "the length still to be given".to_string(),
        Some(length) => format!("at {length} tokens"),
    };
    Some(match scaling {
        Scaling::None => return None,
        Scaling::Linear { factor } => format!("linear by {factor}"),
        Scaling::NtkStatic { alpha } => format!("NTK with alpha {alpha}"),
        Scaling::NtkMixed { factor, exponent } => format!("mixed NTK by {factor} with exponent {exponent}"),
        Scaling::DynamicNtk { factor, context, length: at } => {
            format!("dynamic NTK by {factor} beyond {context}, {}", length(at))
        }
        Scaling::SteppedNtk { context, length: at } => {
            format!("NTK by steps beyond {context}, {}", length(at))
        }
        Scaling::Yarn(yarn) => {
            let mut text = format!("YaRN by {} of {}", yarn.factor, yarn.original_context);
            if (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0) {
                let _ = write!(text, ", betas {} and {}", yarn.beta_fast, yarn.beta_slow);
            }
            if !yarn.truncate {
                text.push_str(", ramp not rounded");
            }
            if yarn.ramp == Ramp::Turns {
                text.push_str(", the paper's ramp");
            }
            if yarn.extrapolation != 1.0 {
                let _ = write!(text, ", extrapolation {}", yarn.extrapolation);
            }
            text
        }
        Scaling::LongRope { original_context, length: at, .. } => {
            format!("LongRoPE with long divisors beyond {original_context}, {}", length(at))
        }
        Scaling::Llama3 { factor, low, high, original_context } => {
            format!("Llama 3 by {factor} of {original_context}, low {low}, high {high}")
        }
        Scaling::Proportional { rotated, factor } => {
            let by = if *factor == 1.0 { String::new() } else { format!(", divided by {factor}") };
            format!("proportional: {rotated} pairs turn{by}")
        }
        Scaling::Divisors(list) if list.iter().all(|&divisor| divisor == -1.0) => "backwards".into(),
        Scaling::Divisors(list) => format!("{} divisors", list.len()),
    })
}

impl Rope {
    /// RoPE as a model's `config.json` states it, for models whose layers are all alike.
    ///
    /// # Errors
    /// As [`ModelRope::from_hf`], and [`Error::Config`] if layers differ or have no RoPE.
    pub fn from_hf_config(json: &str) -> Result<Self> {
        ModelRope::from_hf(json)?.rope().cloned()
    }
}
