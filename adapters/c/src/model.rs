//! The RoPE of a model, from its own config.

use std::ffi::{CString, c_char};

use posenc::rotate::{Gguf, QueryScale, longrope_attention_factor, mla_logit_scale, yarn_mscale};
use posenc::{Gpu, ModelRope, RopePlan};

use crate::header::header;
use crate::{Failure, PosencGpu, PosencRope, PosencStatus, borrow, give, make, plan_of, text, unknown};

header! {{}
    kinds QueryScale {
        POSENC_QUERY_SCALE_ONE = 0 => One: "Query scale: 1 everywhere.",
        POSENC_QUERY_SCALE_LLAMA4 = 1 => Llama4: "`1 + factor * ln(1 + floor((position + 1) / context))`: Llama 4",
        POSENC_QUERY_SCALE_MISTRAL = 2 => Mistral: "`1 + factor * ln(1 + floor(position / context))`: Mistral",
        POSENC_QUERY_SCALE_LOG_N = 3 => LogN: "`max(1, ln(position + 1) / ln(context))`",
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

    /// The RoPE of every layer of a model.
    opaque PosencModel { model: ModelRope, name: CString, description: CString }

    /// Reads Hugging Face's `config.json`, a text that ends in a zero byte. What is not understood is an error, never a
    /// default.
    fn posenc_model_from_hf(config: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_hf {
        give(out, || model(ModelRope::from_hf(text("config", config)?)?))
    }
    /// The same for a model whose own type is not known but which rotates as `model_type` does.
    fn posenc_model_from_hf_as(
        config: *const c_char, model_type: *const c_char, out: *mut *mut PosencModel,
    ) -> PosencStatus as ModelRope::from_hf_as {
        give(out, || model(ModelRope::from_hf_as(text("config", config)?, text("model_type", model_type)?)?))
    }
    /// Reads Mistral's `params.json`, a text that ends in a zero byte.
    fn posenc_model_from_mistral(params: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_mistral {
        give(out, || model(ModelRope::from_mistral(text("params", params)?)?))
    }
    /// Reads the head of the `.gguf` file at `path`.
    fn posenc_model_from_gguf(path: *const c_char, out: *mut *mut PosencModel) -> PosencStatus as ModelRope::from_gguf {
        give(out, || {
            let path = text("path", path)?;
            let file = std::fs::File::open(path)
                .map_err(|error| Failure::argument(format!("{path} cannot be opened: {error}")))?;
            model(ModelRope::from_gguf(&Gguf::read(std::io::BufReader::new(file))?)?)
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
    /// Gives the factor on the query at `position`.
    fn posenc_query_scale_at(scale: *const PosencQueryScale, position: u64, out: *mut f64) -> PosencStatus {
        give(out, || Ok(borrow("scale", scale)?.get()?.at(position)))
    }

    /// Makes the plan of layer `layer` of a model; `length` is the tokens of the longest sequence, the new ones included, for
    /// scalings that depend on it. In latent attention (DeepSeek) it is the query's: the key's rotary part is a tensor of its
    /// own.
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

fn model(model: ModelRope) -> Result<*mut PosencModel, Failure> {
    let [name, description] = [model.name().to_string(), model.describe()]
        .map(|text| CString::new(text.replace('\0', " ")).unwrap_or_default());
    Ok(Box::into_raw(Box::new(PosencModel { model, name, description })))
}

fn plan(gpu: &Gpu, model: &ModelRope, layer: u64, length: u64, element: u32) -> Result<PosencRope, Failure> {
    let Some(rope) = &model.at_length(length).layer(layer as usize)?.rope.clone() else {
        return Err(Failure::argument(format!("layer {layer} has no RoPE")));
    };
    Ok(PosencRope { plan: plan_of!(element, RopePlan::new(gpu, rope)?) })
}

impl PosencQueryScale {
    fn of(scale: QueryScale) -> Result<Self, Failure> {
        let (kind, factor, context) = match scale {
            QueryScale::One => (POSENC_QUERY_SCALE_ONE, 0.0, 0.0),
            QueryScale::Llama4 { scale, floor } => (POSENC_QUERY_SCALE_LLAMA4, scale, floor),
            QueryScale::Mistral { beta, original_context } => (POSENC_QUERY_SCALE_MISTRAL, beta, original_context),
            QueryScale::LogN { train_length } => (POSENC_QUERY_SCALE_LOG_N, 0.0, train_length),
            other => return Err(Failure::argument(format!("the header has no constant for {other:?}"))),
        };
        Ok(Self { kind, reserved: 0, factor, context })
    }

    fn get(&self) -> Result<QueryScale, Failure> {
        let Self { factor, context, .. } = *self;
        let scale = match self.kind {
            POSENC_QUERY_SCALE_ONE => QueryScale::One,
            POSENC_QUERY_SCALE_LLAMA4 => QueryScale::Llama4 { scale: factor, floor: context },
            POSENC_QUERY_SCALE_MISTRAL => QueryScale::Mistral { beta: factor, original_context: context },
            POSENC_QUERY_SCALE_LOG_N => QueryScale::LogN { train_length: context },
            other => return Err(unknown("the kind of a query scale", other)),
        };
        scale.check()?;
        Ok(scale)
    }
}
