//! The RoPE of a model, from its own config.

use std::ffi::{CString, c_char};

use posenc::bias::Distances;
use posenc::embed::{Learned, Rows, Wave};
use posenc::model::{LogitBias, ModelPositions, ModelPrologue, PositionEmbedding};
use posenc::position::{
    After, GridAxis, GridCoordinate, GridExtent, GridPositions, Mix, Patches, Span, SpanPositions, timed_windows,
};
use posenc::rotate::{Gguf, QueryScale, longrope_attention_factor, mla_logit_scale, yarn_mscale};
use posenc::{Error, Gpu, ModelRope, RopePlan, Sinusoid};

use crate::cpu::HostRope;
use crate::embed::{
    POSENC_NORM_NONE, POSENC_ROWS_KEPT_BY_ID, POSENC_ROWS_KEPT_BY_MASK, POSENC_ROWS_OFFSET, PosencLearnedSpec,
    PosencSinusoidSpec,
};
use crate::header::{Coded, header};
use crate::terms::PosencDistances;
use crate::{
    Element, Failure, POSENC_ABI, Plan, PosencGpu, PosencRope, PosencStatus, borrow, give, make, plan_of, slice, text,
    unknown,
};

header! {{}
    kinds QueryScale {
        POSENC_QUERY_SCALE_ONE = 0 => One: "Query scale: 1 everywhere.",
        POSENC_QUERY_SCALE_LLAMA4 = 1 => Llama4: "`1 + factor * ln(1 + floor((position + 1) / context))`: Llama 4",
        POSENC_QUERY_SCALE_MISTRAL = 2 => Mistral: "`1 + factor * ln(1 + floor(position / context))`: Mistral",
        POSENC_QUERY_SCALE_LOG_N = 3 => LogN: "`max(1, ln(position + 1) / ln(context))`",
        POSENC_QUERY_SCALE_INKLING = 4 => Inkling: "`1 + factor * ln(max(1, (position + 1) / context))`: Inkling",
    }
    kinds PositionEmbedding {
        POSENC_EMBEDDING_NONE = 0: "What a model adds to its tokens' vectors: nothing.",
        POSENC_EMBEDDING_LEARNED = 1 => Learned: "a row of a learned table: `learned`",
        POSENC_EMBEDDING_SINUSOID = 2 => Sinusoid: "sinusoids: `sinusoid`",
    }
    kinds LogitBias {
        POSENC_LOGIT_BIAS_NONE = 0: "What a layer adds to its logits: nothing.",
        POSENC_LOGIT_BIAS_ALIBI = 1 => Alibi: "a slope for each head: `heads`, `max_bias`",
        POSENC_LOGIT_BIAS_T5 = 2 => T5: "buckets of distance: `buckets`, `max_distance`, `has_encoder`, `has_decoder`",
        POSENC_LOGIT_BIAS_RELATIVE = 3 => Relative: "products with a table of relative positions: `queries`, `keys`, `states`",
    }
    kinds Span {
        POSENC_SPAN_TEXT = 0 => Text: "Stretches of a sequence: `tokens` with the same position on all axes, one after the other.",
        POSENC_SPAN_TOGETHER = 1 => Together: "`tokens` at one position",
        POSENC_SPAN_PATCHES = 2 => Patches: "an image or a video",
        POSENC_SPAN_SOUNDING = 3 => Sounding: "a video mixed with `tokens` of its sound",
    }
    kinds Mix {
        POSENC_MIX_CHUNKS = 0 => Chunks: "How a video and its sound are mixed: by chunks of `chunk` positions (Qwen2.5-Omni).",
        POSENC_MIX_TIME = 1 => Time: "by time (Qwen3-Omni)",
    }
    codes After {
        POSENC_AFTER_LARGEST = 0 => Largest: "Where a sequence goes on after a grid: behind the largest position of the last stretch.",
        POSENC_AFTER_SPACE = 1 => Space: "the larger of height and width further on: transformers 5, but for the Omni models",
    }
    codes GridAxis {
        POSENC_GRID_AXIS_TIME = 0 => Time: "Coordinate of a patch of an image or a video: its step of time.",
        POSENC_GRID_AXIS_ROW = 1 => Row: "its row, counted from the top",
        POSENC_GRID_AXIS_COLUMN = 2 => Column: "its column, counted from the left",
    }
    kinds GridCoordinate {
        POSENC_GRID_COORDINATE_INDEX = 0 => Index: "How an index becomes a position: counted from `first` on.",
        POSENC_GRID_COORDINATE_CENTER = 1 => Center: "the patch's centre, `(2 index + 1) / extent - 1`, in units of `2^-bits`",
    }
    codes GridExtent {
        POSENC_GRID_EXTENT_OWN = 0 => Own: "What a centre is divided by: rows for a row, columns for a column.",
        POSENC_GRID_EXTENT_LONGER = 1 => Longer: "the larger of rows and columns",
        POSENC_GRID_EXTENT_SHORTER = 2 => Shorter: "the smaller of rows and columns",
    }

    /// A factor on the query that depends on its position: attention temperature.
    struct PosencQueryScale {
        kind: u32 => "`POSENC_QUERY_SCALE_...`",
        reserved: u32 => "0",
        factor: f64 => "see the kind",
        context: f64 => "tokens; see the kind",
    }
    /// What position does in one layer of a model.
    struct PosencLayer {
        has_rope: u32 => "1: the layer rotates; `posenc_rope_of_model` makes its plan",
        has_dual_chunk: u32 => "1: Dual Chunk Attention",
        head: u64 => "channels of a query's head",
        rotary: u64 => "rotated channels of a head",
        offset: u64 => "the first rotated channel",
        logit_scale: f64 => "multiplies every logit, beside `1 / sqrt(head)`",
        query_scale: PosencQueryScale => "multiplies the query at each position",
        chunk: i64 => "of Dual Chunk Attention: the longest distance",
        local: i64 => "of Dual Chunk Attention: how far distances to the chunk before are exact",
    }

    /// What a layer of a model adds beside its rotation, and what the model adds to its tokens.
    struct PosencAdded {
        embedding: u32 => "`POSENC_EMBEDDING_...`, of the model",
        bias: u32 => "`POSENC_LOGIT_BIAS_...`, of the layer",
        learned: PosencLearnedSpec => "see `embedding`",
        table_rows: u64 => "rows of the learned table; 0 if the config does not say",
        sinusoid: PosencSinusoidSpec => "see `embedding`",
        heads: u64 => "heads of ALiBi",
        max_bias: f64 => "of ALiBi",
        buckets: u64 => "of T5",
        max_distance: u64 => "of T5",
        has_encoder: u32 => "1: T5's encoder has the buckets of both sides",
        has_decoder: u32 => "1: T5's decoder has those of the past",
        has_queries: u32 => "1: queries, or states of their own, meet the table",
        has_keys: u32 => "1: keys meet the table",
        states: u64 => "channels of states in place of the queries (Inkling); 0: the queries",
        queries: PosencDistances => "rows that queries meet; `lookup` lives as long as the model",
        keys: PosencDistances => "rows that keys meet; `lookup` lives as long as the model",
    }
    /// A stretch of a sequence.
    struct PosencSpan {
        kind: u32 => "`POSENC_SPAN_...`",
        mix: u32 => "`POSENC_MIX_...`, of a video with its sound",
        tokens: u64 => "of text, or of the sound",
        grid: [u64; 3] => "patches of time, height and width, before merging",
        merge: u64 => "patches of a token along height and along width",
        temporal_merge: u64 => "patches of a token along time: 1",
        interval: f64 => "positions from one token of time to the next: 1",
        chunk: u64 => "positions of a chunk of `POSENC_MIX_CHUNKS`",
    }
    /// How a vision tower counts the patches of its images. Tokens before and after them have position 0 on every axis.
    struct PosencPatchGrid {
        axis_count: u32 => "axes of the rope, at most 3; 0: none",
        axes: [u32; 3] => "`POSENC_GRID_AXIS_...` of each",
        coordinate: u32 => "`POSENC_GRID_COORDINATE_...`",
        extent: u32 => "`POSENC_GRID_EXTENT_...` of centres",
        first: i64 => "position of the first index",
        bits: u32 => "fraction bits of centres, those of the rope",
        reserved: u32 => "0",
        merge: u64 => "rows and columns of a block of patches that follow one another; 1: patches are in rows",
        before: u64 => "tokens before the patches of each grid",
        after: u64 => "tokens after them",
    }

    /// What a model does with positions.
    opaque PosencModel {
        model: ModelRope, positions: Result<ModelPositions, String>, prologue: Result<ModelPrologue, String>, name: CString,
        description: CString
    }

    /// Reads Hugging Face's `config.json`, a text that ends in a zero byte. What is not understood is an error, never a
    /// default.
    fn posenc_model_from_hf(config: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_hf, ModelPrologue::from_hf {
        give(out, || {
            let config = text("config", config)?;
            model(ModelRope::from_hf(config)?, ModelPositions::from_hf(config), ModelPrologue::from_hf(config))
        })
    }
    /// The same for a model whose own type is not known but which rotates as `model_type` does.
    fn posenc_model_from_hf_as(
        config: *const c_char, model_type: *const c_char, out: *mut *mut PosencModel,
    ) -> PosencStatus as ModelRope::from_hf_as, ModelPrologue::from_hf_as {
        give(out, || {
            let (config, model_type) = (text("config", config)?, text("model_type", model_type)?);
            model(
                ModelRope::from_hf_as(config, model_type)?,
                ModelPositions::from_hf_as(config, model_type),
                ModelPrologue::from_hf_as(config, model_type),
            )
        })
    }
    /// Reads Mistral's `params.json`, a text that ends in a zero byte.
    fn posenc_model_from_mistral(params: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_mistral {
        give(out, || {
            let params = text("params", params)?;
            model(ModelRope::from_mistral(params)?, ModelPositions::from_mistral(params), no_prologue("params.json"))
        })
    }
    /// Reads the head of the `.gguf` file at `path`.
    fn posenc_model_from_gguf(path: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_gguf {
        give(out, || {
            let path = text("path", path)?;
            let file = std::fs::File::open(path)
                .map_err(|error| Failure::argument(format!("{path} cannot be opened: {error}")))?;
            let gguf = Gguf::read(std::io::BufReader::new(file))?;
            model(ModelRope::from_gguf(&gguf)?, ModelPositions::from_gguf(&gguf), no_prologue("GGUF metadata"))
        })
    }
    /// Reads the model at `path`: a folder, its `config.json`, `params.json` or `.gguf`.
    fn posenc_model_open(path: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::open, ModelPrologue::open {
        give(out, || {
            let path = text("path", path)?;
            model(ModelRope::open(path)?, ModelPositions::open(path), ModelPrologue::open(path))
        })
    }
    free posenc_model_free(model: PosencModel);

    /// Gives the model's type, as its config names it; it lives as long as the handle.
    fn posenc_model_name(model: *const PosencModel, out: *mut *const c_char) -> PosencStatus as ModelRope::name {
        give(out, || Ok(borrow("model", model)?.name.as_ptr()))
    }
    /// Gives what was understood, for a person to read; it lives as long as the handle.
    fn posenc_model_describe(model: *const PosencModel, out: *mut *const c_char) -> PosencStatus as ModelRope::describe {
        give(out, || Ok(borrow("model", model)?.description.as_ptr()))
    }
    /// Gives the positions that the config promises; 0 if it promises none.
    fn posenc_model_context(model: *const PosencModel, out: *mut u64) -> PosencStatus as ModelRope::context {
        give(out, || Ok(borrow("model", model)?.model.context().unwrap_or(0)))
    }
    /// Gives the number of layers; 0 if the config does not count them, and all are alike.
    fn posenc_model_layers(model: *const PosencModel, out: *mut u64) -> PosencStatus as ModelRope::layers {
        give(out, || Ok(borrow("model", model)?.model.layers().unwrap_or(0) as u64))
    }
    /// Gives what position does in layer `layer`, counted from 0.
    fn posenc_model_layer(model: *const PosencModel, layer: u64, out: *mut PosencLayer) -> PosencStatus as ModelRope::layer {
        give(out, || {
            let layer = borrow("model", model)?.model.layer(layer as usize)?;
            let rope = layer.rope.as_ref();
            Ok(PosencLayer {
                has_rope: u32::from(rope.is_some()),
                has_dual_chunk: u32::from(layer.dual_chunk.is_some()),
                head: layer.head as u64,
                rotary: rope.map_or(0, |rope| rope.rotary as u64),
                offset: rope.map_or(0, |rope| rope.offset as u64),
                logit_scale: layer.logit_scale,
                query_scale: PosencQueryScale::of(layer.query_scale)?,
                chunk: layer.dual_chunk.map_or(0, |dual| dual.chunk),
                local: layer.dual_chunk.map_or(0, |dual| dual.local),
            })
        })
    }
    /// Gives what layer `layer` adds beside its rotation, and what the model adds to its tokens. Tables whose size depends on
    /// the call (Transformer-XL, windows of towers) are named by `posenc_model_describe` alone.
    fn posenc_model_added(model: *const PosencModel, layer: u64, out: *mut PosencAdded) -> PosencStatus {
        give(out, || match &borrow("model", model)?.positions {
            Ok(positions) => added(positions, layer as usize),
            Err(error) => Err(Failure::argument(error.clone())),
        })
    }
    /// Gives how a vision tower counts the patches of its images; `axis_count` is 0 where tokens have their indices as positions,
    /// or positions without such a rule, which `posenc_model_describe` notes.
    fn posenc_model_grid(model: *const PosencModel, out: *mut PosencPatchGrid) -> PosencStatus as ModelRope::grid {
        give(out, || PosencPatchGrid::of(borrow("model", model)?.model.grid()))
    }
    /// Gives the tokens of `count` grids of times, rows and columns, `grids[3 * i]`, those before and after the patches included.
    fn posenc_patch_tokens(grid: *const PosencPatchGrid, grids: *const u64, count: u64, out: *mut u64) -> PosencStatus {
        give(out, || {
            let grids = grids_of(grids, count)?;
            Ok(borrow("grid", grid)?.positions()?.tokens(&grids)? as u64)
        })
    }
    /// Writes the positions of `count` grids, one after the other: `ids[axis * stride + token]`, in host memory, where `stride` is
    /// at least the tokens; gives their number.
    fn posenc_patch_positions(
        grid: *const PosencPatchGrid, grids: *const u64, count: u64, stride: u64, ids: *mut i64, out: *mut u64,
    ) -> PosencStatus {
        give(out, || {
            let positions = borrow("grid", grid)?.positions()?;
            let grids = grids_of(grids, count)?;
            let tokens = positions.tokens(&grids)?;
            write_rows(&positions.ids(&grids)?, tokens, stride, ids)?;
            Ok(tokens as u64)
        })
    }
    /// Writes the positions of sound in windows of frames on two axes, as MusicFlamingo counts them: `ids[axis * stride + frame]`, in
    /// host memory, where `stride` is at least `windows * frames`, which it gives.
    fn posenc_timed_windows(windows: u64, frames: u64, stride: u64, ids: *mut i64, out: *mut u64) -> PosencStatus {
        give(out, || {
            let made = timed_windows(windows as usize, frames as usize)?;
            write_rows(&made, made.len() / 2, stride, ids)?;
            Ok(made.len() as u64 / 2)
        })
    }
    /// Gives the tokens of `count` stretches.
    fn posenc_span_tokens(spans: *const PosencSpan, count: u64, out: *mut u64) -> PosencStatus {
        give(out, || {
            let spans = spans_of(slice("spans", spans, count)?)?;
            let tokens = spans.iter().map(Span::tokens).collect::<posenc::Result<Vec<_>>>()?;
            let sum = tokens.into_iter().try_fold(0usize, usize::checked_add);
            sum.map(|sum| sum as u64).ok_or_else(|| Failure::argument("the tokens of all spans do not fit into 64 bits".into()))
        })
    }
    /// Writes the positions of one sequence of `count` stretches on time, height and width: `ids[axis * stride + token]`, in
    /// host memory, where `stride` is at least the sequence's tokens; gives the position of the token that follows it.
    fn posenc_span_positions(
        spans: *const PosencSpan, count: u64, after: u32, stride: u64, ids: *mut i64, out: *mut i64,
    ) -> PosencStatus {
        give(out, || {
            let spans = spans_of(slice("spans", spans, count)?)?;
            let made = SpanPositions::new(&[&spans], After::of("after", after)?)?;
            write_rows(&made.ids, made.ids.len() / 3, stride, ids)?;
            Ok(made.next[0])
        })
    }
    /// Gives the factor on the query at `position`.
    fn posenc_query_scale_at(scale: *const PosencQueryScale, position: u64, out: *mut f64) -> PosencStatus {
        give(out, || Ok(borrow("scale", scale)?.get()?.at(position)))
    }

    /// Makes the plan of layer `layer` of a model; `length` is the tokens of the longest sequence, the new ones included, for
    /// scalings that depend on it. In latent attention (DeepSeek) it is the query's: the key's rotary part is a tensor of its
    /// own, which a call of its own rotates whole, as heads of `rotary` channels. The plan of a layer without RoPE rotates nothing.
    fn posenc_rope_of_model(
        gpu: *const PosencGpu, model: *const PosencModel, layer: u64, length: u64, element: u32, out: *mut *mut PosencRope,
    ) -> PosencStatus {
        make(gpu, out, |gpu| plan(gpu, &borrow("model", model)?.model, layer, length, element))
    }
    /// The same of a `config.json` at once: `posenc_model_from_hf` and `posenc_rope_of_model`.
    fn posenc_rope_from_hf(
        gpu: *const PosencGpu, config: *const c_char, layer: u64, length: u64, element: u32, out: *mut *mut PosencRope,
    ) -> PosencStatus {
        make(gpu, out, |gpu| plan(gpu, &ModelRope::from_hf(text("config", config)?)?, layer, length, element))
    }

    /// YaRN's factor on cosine and sine, `attention_factor` of its spec: `0.1 mscale ln(factor) + 1`; 1 up to a factor of 1.
    fn posenc_yarn_mscale(factor: f64, mscale: f64) -> f64 as rotate::yarn_mscale {
        yarn_mscale(factor, mscale)
    }
    /// DeepSeek's factor on the logits beside `1 / sqrt(head)`: the square of `posenc_yarn_mscale`.
    fn posenc_mla_logit_scale(factor: f64, mscale_all_dim: f64) -> f64 as rotate::mla_logit_scale {
        mla_logit_scale(factor, mscale_all_dim)
    }
    /// LongRoPE's factor on cosine and sine: `sqrt(1 + ln(factor) / ln(original_context))`; 1 up to a factor of 1.
    fn posenc_longrope_attention_factor(factor: f64, original_context: f64) -> f64 as rotate::longrope_attention_factor {
        longrope_attention_factor(factor, original_context)
    }
}

/// Files that say nothing of norms and biases.
fn no_prologue(file: &str) -> posenc::Result<ModelPrologue> {
    Err(Error::Config(format!("{file} does not say how queries and keys are normed and biased, a config.json does")))
}

fn model(
    model: ModelRope,
    positions: posenc::Result<ModelPositions>,
    prologue: posenc::Result<ModelPrologue>,
) -> Result<*mut PosencModel, Failure> {
    let description = positions.as_ref().map_or_else(|_| model.describe(), ModelPositions::describe);
    let [name, description] =
        [model.name().to_string(), description].map(|text| CString::new(text.replace('\0', " ")).unwrap_or_default());
    let positions = positions.map_err(|error| error.to_string());
    let prologue = prologue.map_err(|error| error.to_string());
    Ok(Box::into_raw(Box::new(PosencModel { model, positions, prologue, name, description })))
}

fn added(positions: &ModelPositions, layer: usize) -> Result<PosencAdded, Failure> {
    let none = PosencDistances { sign: 0, outside: 0, first: 0, count: 0, entries: 0, lookup: std::ptr::null() };
    let distances = |distances: &Option<Distances>| match distances {
        None => none,
        Some(Distances { sign, first, count, outside, lookup, entries }) => PosencDistances {
            sign: sign.code(),
            outside: outside.code(),
            first: *first,
            count: *count as u64,
            entries: *entries as u64,
            lookup: if lookup.is_empty() { std::ptr::null() } else { lookup.as_ptr() },
        },
    };
    let mut added = PosencAdded {
        embedding: POSENC_EMBEDDING_NONE,
        bias: POSENC_LOGIT_BIAS_NONE,
        learned: PosencLearnedSpec::of(&Learned::new(0)),
        table_rows: 0,
        sinusoid: PosencSinusoidSpec::of(&Sinusoid::new(0)),
        heads: 0,
        max_bias: 0.0,
        buckets: 0,
        max_distance: 0,
        has_encoder: 0,
        has_decoder: 0,
        has_queries: 0,
        has_keys: 0,
        states: 0,
        queries: none,
        keys: none,
    };
    match positions.embedding() {
        None => {}
        Some(PositionEmbedding::Learned { spec, rows }) => {
            added.embedding = POSENC_EMBEDDING_LEARNED;
            added.learned = PosencLearnedSpec::of(spec);
            added.table_rows = rows.unwrap_or(0);
        }
        Some(PositionEmbedding::Sinusoid(spec)) => {
            added.embedding = POSENC_EMBEDDING_SINUSOID;
            added.sinusoid = PosencSinusoidSpec::of(spec);
        }
        Some(other) => return Err(Failure::argument(format!("the header has no constant for {other:?}"))),
    }
    match positions.layer(layer)?.bias {
        None => {}
        Some(LogitBias::Alibi(alibi)) => {
            added.bias = POSENC_LOGIT_BIAS_ALIBI;
            (added.heads, added.max_bias) = (alibi.total_heads as u64, alibi.max_bias);
        }
        Some(LogitBias::T5 { encoder, decoder }) => {
            added.bias = POSENC_LOGIT_BIAS_T5;
            if let Some(spec) = encoder.or(*decoder) {
                (added.buckets, added.max_distance) = (spec.buckets as u64, spec.max_distance as u64);
            }
            (added.has_encoder, added.has_decoder) = (encoder.is_some().into(), decoder.is_some().into());
        }
        Some(LogitBias::Relative { queries, keys, states }) => {
            added.bias = POSENC_LOGIT_BIAS_RELATIVE;
            (added.has_queries, added.has_keys) = (queries.is_some().into(), keys.is_some().into());
            (added.queries, added.keys) = (distances(queries), distances(keys));
            added.states = states.unwrap_or(0) as u64;
        }
        Some(other) => return Err(Failure::argument(format!("the header has no constant for {other:?}"))),
    }
    Ok(added)
}

impl PosencLearnedSpec {
    fn of(spec: &Learned) -> Self {
        let (rows, first, padded, padding) = match spec.rows {
            Rows::Kept { padding: Some(padding), first, padded } => (POSENC_ROWS_KEPT_BY_ID, first, padded, padding),
            Rows::Kept { padding: None, first, padded } => (POSENC_ROWS_KEPT_BY_MASK, first, padded, 0),
            Rows::Offset(first) => (POSENC_ROWS_OFFSET, first, 0, 0),
            _ => (u32::MAX, 0, 0, 0),
        };
        Self {
            version: POSENC_ABI,
            size: size_of::<Self>() as u32,
            dim: spec.dim as u64,
            scale: spec.scale,
            rows,
            // A config's table has none.
            norm: POSENC_NORM_NONE,
            first,
            padded,
            padding,
            eps: 0.0,
        }
    }
}

impl PosencSinusoidSpec {
    fn of(spec: &Sinusoid) -> Self {
        Self {
            version: POSENC_ABI,
            size: size_of::<Self>() as u32,
            dim: spec.dim as u64,
            pairing: spec.pairing.code(),
            cosine_first: u32::from(spec.first == Wave::Cosine),
            odd: spec.odd.code(),
            frequencies: spec.frequencies.code(),
            shift: spec.shift,
            max_period: spec.max_period,
            scale: spec.scale,
            offset: spec.offset,
            has_padding: u32::from(spec.padding.is_some()),
            reserved: 0,
            padding: spec.padding.unwrap_or(0),
        }
    }
}

/// Writes rows of `tokens` positions `stride` apart.
///
/// # Safety
/// `ids` is null or points to `stride` positions for each row.
unsafe fn write_rows(made: &[i64], tokens: usize, stride: u64, ids: *mut i64) -> Result<(), Failure> {
    if (stride as usize) < tokens {
        return Err(Failure::argument(format!("stride is {stride}, the sequence has {tokens} tokens")));
    }
    if ids.is_null() && tokens > 0 {
        return Err(Failure::argument("ids is null".into()));
    }
    for (axis, row) in made.chunks(tokens.max(1)).enumerate() {
        // SAFETY: as the caller promises; a row is no longer than the stride.
        unsafe { ids.add(axis * stride as usize).copy_from_nonoverlapping(row.as_ptr(), row.len()) };
    }
    Ok(())
}

/// # Safety
/// `grids` is null or points to three sizes for each of `count` grids.
unsafe fn grids_of(grids: *const u64, count: u64) -> Result<Vec<[usize; 3]>, Failure> {
    // SAFETY: as the caller promises.
    let sizes = unsafe { slice("grids", grids, count.saturating_mul(3)) }?;
    Ok(sizes.chunks_exact(3).map(|grid| [grid[0] as usize, grid[1] as usize, grid[2] as usize]).collect())
}

impl PosencPatchGrid {
    fn of(grid: Option<&GridPositions>) -> Result<Self, Failure> {
        let mut out = Self {
            axis_count: 0,
            axes: [0; 3],
            coordinate: POSENC_GRID_COORDINATE_INDEX,
            extent: POSENC_GRID_EXTENT_OWN,
            first: 0,
            bits: 0,
            reserved: 0,
            merge: 1,
            before: 0,
            after: 0,
        };
        let Some(GridPositions { axes, coordinate, merge, before, after }) = grid else { return Ok(out) };
        if axes.len() > out.axes.len() {
            return Err(Failure::argument(format!("a grid has {} axes, at most 3 are allowed", axes.len())));
        }
        out.axis_count = axes.len() as u32;
        axes.iter().zip(&mut out.axes).for_each(|(axis, out)| *out = axis.code());
        match *coordinate {
            GridCoordinate::Index { first } => out.first = first,
            GridCoordinate::Center { extent, bits } => {
                (out.coordinate, out.extent, out.bits) = (POSENC_GRID_COORDINATE_CENTER, extent.code(), bits);
            }
            other => return Err(Failure::argument(format!("the header has no constant for {other:?}"))),
        }
        (out.merge, out.before, out.after) = (*merge as u64, *before as u64, *after as u64);
        Ok(out)
    }

    fn positions(&self) -> Result<GridPositions, Failure> {
        let count = self.axis_count;
        let Some(axes) = self.axes.get(..count as usize) else {
            return Err(Failure::argument(format!("axis_count is {count}, at most 3 are allowed")));
        };
        let axes = axes.iter().map(|&axis| GridAxis::of("axes", axis)).collect::<Result<_, _>>()?;
        let coordinate = match self.coordinate {
            POSENC_GRID_COORDINATE_INDEX => GridCoordinate::Index { first: self.first },
            POSENC_GRID_COORDINATE_CENTER => {
                GridCoordinate::Center { extent: GridExtent::of("extent", self.extent)?, bits: self.bits }
            }
            other => return Err(unknown("coordinate", other)),
        };
        let [merge, before, after] = [self.merge, self.before, self.after].map(|size| size as usize);
        Ok(GridPositions { axes, coordinate, merge, before, after })
    }
}

fn spans_of(spans: &[PosencSpan]) -> Result<Vec<Span>, Failure> {
    spans.iter().map(PosencSpan::span).collect()
}

impl PosencSpan {
    fn span(&self) -> Result<Span, Failure> {
        let tokens = self.tokens as usize;
        let patches = Patches {
            grid: self.grid.map(|size| size as usize),
            merge: self.merge as usize,
            temporal_merge: self.temporal_merge as usize,
            interval: self.interval,
        };
        Ok(match self.kind {
            POSENC_SPAN_TEXT => Span::Text(tokens),
            POSENC_SPAN_TOGETHER => Span::Together(tokens),
            POSENC_SPAN_PATCHES => Span::Patches(patches),
            POSENC_SPAN_SOUNDING => {
                let mix = match self.mix {
                    POSENC_MIX_CHUNKS => Mix::Chunks(self.chunk as usize),
                    POSENC_MIX_TIME => Mix::Time,
                    other => return Err(unknown("mix", other)),
                };
                Span::Sounding { video: patches, audio: tokens, mix }
            }
            other => return Err(unknown("the kind of a span", other)),
        })
    }
}

fn plan(gpu: Option<&Gpu>, model: &ModelRope, layer: u64, length: u64, element: u32) -> Result<PosencRope, Failure> {
    let rope = model.at_length(length).layer(layer as usize)?.rope_or_none();
    let element = Element::of("element", element)?;
    let plan = match gpu {
        Some(gpu) => Plan::Gpu(plan_of!(element, RopePlan::new(gpu, &rope)?)),
        None => Plan::Cpu { spec: HostRope::Rope(rope), element },
    };
    Ok(PosencRope { plan })
}

impl PosencQueryScale {
    pub(crate) fn of(scale: QueryScale) -> Result<Self, Failure> {
        let (kind, factor, context) = match scale {
            QueryScale::One => (POSENC_QUERY_SCALE_ONE, 0.0, 0.0),
            QueryScale::Llama4 { scale, floor } => (POSENC_QUERY_SCALE_LLAMA4, scale, floor),
            QueryScale::Mistral { beta, original_context } => (POSENC_QUERY_SCALE_MISTRAL, beta, original_context),
            QueryScale::LogN { train_length } => (POSENC_QUERY_SCALE_LOG_N, 0.0, train_length),
            QueryScale::Inkling { scale, floor } => (POSENC_QUERY_SCALE_INKLING, scale, floor),
            other => return Err(Failure::argument(format!("the header has no constant for {other:?}"))),
        };
        Ok(Self { kind, reserved: 0, factor, context })
    }

    pub(crate) fn get(&self) -> Result<QueryScale, Failure> {
        let Self { factor, context, .. } = *self;
        let scale = match self.kind {
            POSENC_QUERY_SCALE_ONE => QueryScale::One,
            POSENC_QUERY_SCALE_LLAMA4 => QueryScale::Llama4 { scale: factor, floor: context },
            POSENC_QUERY_SCALE_MISTRAL => QueryScale::Mistral { beta: factor, original_context: context },
            POSENC_QUERY_SCALE_LOG_N => QueryScale::LogN { train_length: context },
            POSENC_QUERY_SCALE_INKLING => QueryScale::Inkling { scale: factor, floor: context },
            other => return Err(unknown("the kind of a query scale", other)),
        };
        scale.check()?;
        Ok(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::POSENC_OK;

    fn model_of(config: &str) -> *mut PosencModel {
        let config = CString::new(config).unwrap();
        let mut model = std::ptr::null_mut();
        // SAFETY: a text that ends in zero, and a place for a pointer.
        assert_eq!(unsafe { posenc_model_from_hf(config.as_ptr(), &mut model) }, POSENC_OK);
        model
    }

    #[test]
    fn what_is_added_arrives() {
        let model = model_of(r#"{"model_type": "opt", "hidden_size": 768, "max_position_embeddings": 2048}"#);
        let mut added = std::mem::MaybeUninit::uninit();
        // SAFETY: a model, and a place for a struct, which is written on success.
        let opt = unsafe {
            assert_eq!(posenc_model_added(model, 0, added.as_mut_ptr()), POSENC_OK);
            posenc_model_free(model);
            added.assume_init()
        };
        assert_eq!((opt.embedding, opt.bias, opt.table_rows), (POSENC_EMBEDDING_LEARNED, POSENC_LOGIT_BIAS_NONE, 2050));
        let learned = opt.learned;
        assert_eq!((learned.dim, learned.rows, learned.first, learned.padded), (768, POSENC_ROWS_KEPT_BY_MASK, 2, 1));
        let model = model_of(r#"{"model_type": "inkling_text", "num_hidden_layers": 6}"#);
        // SAFETY: as above.
        let full = unsafe {
            assert_eq!(posenc_model_added(model, 5, added.as_mut_ptr()), POSENC_OK);
            posenc_model_free(model);
            added.assume_init()
        };
        assert_eq!((full.bias, full.has_queries, full.has_keys, full.states), (POSENC_LOGIT_BIAS_RELATIVE, 1, 0, 16));
        assert_eq!((full.queries.count, full.queries.sign, full.queries.outside), (1024, 1, 1));
    }

    #[test]
    fn positions_of_spans_arrive() {
        let text = PosencSpan {
            kind: POSENC_SPAN_TEXT,
            mix: 0,
            tokens: 2,
            grid: [0; 3],
            merge: 0,
            temporal_merge: 0,
            interval: 0.0,
            chunk: 0,
        };
        let image = PosencSpan {
            kind: POSENC_SPAN_PATCHES,
            grid: [1, 4, 4],
            merge: 2,
            temporal_merge: 1,
            interval: 1.0,
            ..text
        };
        let spans = [text, image];
        let (mut tokens, mut next, mut ids) = (0, 0, [-1i64; 21]);
        // SAFETY: two spans, and rows of seven positions.
        unsafe {
            assert_eq!(posenc_span_tokens(spans.as_ptr(), 2, &mut tokens), POSENC_OK);
            let made = posenc_span_positions(spans.as_ptr(), 2, POSENC_AFTER_LARGEST, 7, ids.as_mut_ptr(), &mut next);
            assert_eq!(made, POSENC_OK);
            let short = posenc_span_positions(spans.as_ptr(), 2, POSENC_AFTER_LARGEST, 5, ids.as_mut_ptr(), &mut next);
            assert_ne!(short, POSENC_OK);
        }
        assert_eq!((tokens, next), (6, 4));
        assert_eq!(ids, [0, 1, 2, 2, 2, 2, -1, 0, 1, 2, 2, 3, 3, -1, 0, 1, 2, 3, 2, 3, -1]);
    }
}
