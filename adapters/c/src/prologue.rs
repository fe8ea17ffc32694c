//! Between a projection and attention: bias, norm, rotation and a cache.

use posenc::model::LayerPrologue;
use posenc::rotate::{
    Branch, Cache, CacheRows, Code8, CodeScale, Codes, HeadNorm, NormKind, NormOver, NormWeight, Projected,
    PrologueCall, Rounding, Stored, Vectors,
};
use posenc::{Device, Prologue, ProloguePlan, Scalar};

use crate::header::{Coded, header};
use crate::memory::{Scope, Space};
use crate::{
    Element, Failure, Plan, PosencBuffer, PosencGpu, PosencHeads, PosencIds, PosencModel, PosencPositions,
    PosencQueryScale, PosencRopeSpec, PosencStatus, borrow, give, make, nested, plan_of, switch, unknown,
};

header! {{}
    kinds NormKind {
        POSENC_HEAD_NORM_NONE = 0: "Norms of a head: none.",
        POSENC_HEAD_NORM_RMS = 1 => Rms: "by `sqrt(mean(x^2) + eps)`",
        POSENC_HEAD_NORM_L2 = 2 => L2: "by `sqrt(sum(x^2) + eps)`",
    }
    codes NormWeight {
        POSENC_NORM_WEIGHT_NONE = 0 => None: "What a norm multiplies by afterwards: nothing.",
        POSENC_NORM_WEIGHT = 1 => Weight: "the weight",
        POSENC_NORM_ONE_PLUS_WEIGHT = 2 => OnePlusWeight: "1 + the weight: Gemma 3, Qwen3-Next",
    }
    codes NormOver {
        POSENC_NORM_OVER_HEAD = 0 => Head: "Channels of one norm: those of a head, with a weight `[dim]`.",
        POSENC_NORM_OVER_ALL_HEADS = 1 => AllHeads: "those of all heads, with a weight `[heads, dim]`: OLMo 2, MiniMax, Wan",
    }
    codes Rounding {
        POSENC_ROUNDING_ONCE = 0 => Once: "Where values are rounded to the element type: at the end alone.",
        POSENC_ROUNDING_STEPS = 1 => Steps: "after each step: the bits of separate operations",
        POSENC_ROUNDING_BEFORE_WEIGHT = 2 => BeforeWeight: "after each step, and before the norm's weight: Hugging Face's \
            Llama-type norms",
    }
    kinds CacheRows {
        POSENC_CACHE_SLOTS = 0 => Slots: "Rows of a cache: a slot for each token, `page * rows of a page + row`; below 0: not cached.",
        POSENC_CACHE_PAGES = 1 => Pages: "Row `n` of a sequence is row `n % rows of a page` of page `table[sequence, n / rows of a \
            page]`.",
        POSENC_CACHE_ROWS = 2 => Rows: "A page for each sequence: a contiguous cache.",
    }
    kinds Code8 {
        POSENC_STORE_SAME = 0: "What a cache holds: the element type.",
        POSENC_STORE_E4M3 = 1 => E4m3: "eight bits (`e4m3fn`): nearest, ties to even, saturated; a value is the code times a scale",
        POSENC_STORE_E5M2 = 2 => E5m2: "eight bits",
        POSENC_STORE_INT8 = 3 => Int8: "whole numbers of eight bits, symmetric",
    }
    kinds CodeScale {
        POSENC_SCALE_GIVEN = 0 => Given: "What codes are multiplied by: one f32, or one for each head.",
        POSENC_SCALE_DYNAMIC = 1 => Dynamic: "an f32 of each token and head, by its largest magnitude: written",
        POSENC_SCALE_INLINE = 2 => Inline: "the same, in the first four of 16 bytes behind the channels of a head; the shape has as many \
            channels more",
    }
    constants u32 {
        POSENC_TO_CACHE = 0: "Where a result goes beside the cache: nowhere.",
        POSENC_TO_PLACE = 1: "It takes the place of `x`.",
        POSENC_TO_OUT = 2: "It goes to `out`.",
    }

    /// What is done with queries, keys or values.
    struct PosencBranch {
        norm: u32 => "`POSENC_HEAD_NORM_...`",
        weight: u32 => "`POSENC_NORM_...`",
        over: u32 => "`POSENC_NORM_OVER_...`",
        rounding: u32 => "`POSENC_ROUNDING_...`",
        bias: u32 => "1: a bias `[heads, dim]` is added first",
        rope: u32 => "1: pairs are rotated",
        eps: f64 => "of the norm",
    }
    /// Bias, norm, rotation and factor: what to compute.
    versioned struct PosencPrologueSpec {
        rope: PosencRopeSpec => "the rotation, if a branch has one",
        q: PosencBranch => "what is done with queries",
        k: PosencBranch => "what is done with keys",
        v: PosencBranch => "what is done with values",
        query_scale: PosencQueryScale => "factor on queries by their position, zeros: 1",
        rope_first: u32 => "1: the rotation comes before the norm",
        reserved: u32 => "0",
    }
    /// What one layer of a model does between projection and attention, beside its rotation.
    struct PosencLayerPrologue {
        q: PosencBranch => "what is done with queries",
        k: PosencBranch => "what is done with keys; in latent attention, with the shared rotary part",
        v: PosencBranch => "what is done with values; in latent attention, with the latent",
        query_scale: PosencQueryScale => "factor on queries by their position",
        rope_first: u32 => "1: the rotation comes before the norm",
        gated: u32 => "1: queries and a gate are interleaved by head, `[heads, 2, dim]`",
        latent: u32 => "1: latent attention",
        shares_keys: u32 => "1: keys and values are those of a layer before",
    }
    /// Queries, keys or values of one call.
    struct PosencProjected {
        x: PosencBuffer => "read; no `data`: there are none",
        heads: PosencHeads => "the shape of `x`",
        out: PosencBuffer => "of `POSENC_TO_OUT`: written",
        out_heads: PosencHeads => "the shape of `out`",
        to: u32 => "`POSENC_TO_...`",
        packed: u32 => "of keys and values: 1: they lie in the buffer of `q.x`, whose queries are changed in place; `x` is not read",
        weight: PosencBuffer => "of the norm: `[dim]`, or `[heads, dim]` over all heads; or no `data`",
        bias: PosencBuffer => "`[heads, dim]`, or no `data`",
    }
    /// What is kept of queries, keys or values: `[pages, rows of a page, heads, dim]` in any order of memory, where `batch` of a
    /// shape counts pages and `tokens` the rows of each.
    struct PosencStored {
        x: PosencBuffer => "elements or codes, written where tokens have a row; no `data`: nothing is kept",
        heads: PosencHeads => "its shape",
        store: u32 => "`POSENC_STORE_...`",
        scale: u32 => "of codes: `POSENC_SCALE_...`",
        scales: PosencBuffer => "of codes, but of inline scales: f32, above 0 and finite, and so the inverse",
        scale_heads: PosencHeads => "of `POSENC_SCALE_DYNAMIC`: their shape `[pages, rows of a page, heads, 1]`",
    }
    /// A cache of keys and values.
    struct PosencCache {
        k: PosencStored => "of keys; no `data`: there is no cache",
        v: PosencStored => "of values, of as many pages and rows; no `data`: they are not cached",
        rows: u32 => "`POSENC_CACHE_...`",
        reserved: u32 => "0",
        slots: PosencIds => "slots `[batch, tokens]`, or the table of pages `[sequences, width]`",
        width: u64 => "of `POSENC_CACHE_PAGES`: pages of a sequence",
        first: PosencPositions => "but of slots: the row in its sequence that each token takes, given like positions; below 0: not \
            cached",
        flag: PosencBuffer => "a 32-bit word that becomes 1 by a row outside the cache, whose token is not cached, and by a scale \
            that is not above 0 and finite; or no `data`. The CPU refuses both in place of it",
    }
    /// One call.
    versioned struct PosencPrologueCall {
        q: PosencProjected => "queries",
        k: PosencProjected => "keys",
        v: PosencProjected => "values",
        positions: PosencPositions => "token positions",
        cache: PosencCache => "where keys and values are kept",
        q_codes: PosencStored => "queries in eight bits `[batch, tokens, heads, dim]`, beside or in place of `q.out`",
    }

    /// Between a projection and attention, on a device, for one element type.
    plan PosencPrologue(ProloguePlan, Prologue);
    /// Makes a plan: uploads the frequencies and loads the kernels for `element`.
    new posenc_prologue_new(spec: PosencPrologueSpec) -> PosencPrologue as ProloguePlan::new
        where prologue = spec.prologue()?, |gpu| ProloguePlan::new(gpu, &prologue);
    /// Gives what layer `layer` of a model does between projection and attention; refused where the model's norms and biases are
    /// not known.
    fn posenc_model_prologue(
        model: *const PosencModel, layer: u64, out: *mut PosencLayerPrologue,
    ) -> PosencStatus as ModelPrologue::layer {
        give(out, || {
            let layer = borrow("model", model)?.prologue.as_ref().map_err(|error| Failure::argument(error.clone()))?
                .layer(layer as usize)?;
            let LayerPrologue { prologue, gated, latent, shares_keys, .. } = layer;
            Ok(PosencLayerPrologue {
                q: PosencBranch::from(&prologue.q),
                k: PosencBranch::from(&prologue.k),
                v: PosencBranch::from(&prologue.v),
                query_scale: PosencQueryScale::of(prologue.query_scale)?,
                rope_first: u32::from(prologue.rope_first),
                gated: u32::from(*gated),
                latent: u32::from(*latent),
                shares_keys: u32::from(*shares_keys),
            })
        })
    }
    /// Makes the plan of layer `layer` of a model: norms, biases, rotation and factor; `length` is the tokens of the longest
    /// sequence, for scalings that depend on it.
    fn posenc_prologue_of_model(
        gpu: *const PosencGpu, model: *const PosencModel, layer: u64, length: u64, element: u32, out: *mut *mut PosencPrologue,
    ) -> PosencStatus as ModelPrologue::at_length {
        make(gpu, out, |gpu| {
            let model = borrow("model", model)?.prologue.as_ref().map_err(|error| Failure::argument(error.clone()))?;
            let spec = model.at_length(length).layer(layer as usize)?.prologue.clone();
            let element = Element::of("element", element)?;
            Ok(PosencPrologue {
                plan: match gpu {
                    Some(gpu) => Plan::Gpu(plan_of!(element, ProloguePlan::new(gpu, &spec)?)),
                    None => Plan::Cpu { spec, element },
                },
            })
        })
    }
    on posenc_prologue_on(prologue: PosencPrologue) as ProloguePlan::on;
    free posenc_prologue_free(prologue: PosencPrologue);
    /// Applies bias, norm, rotation and factor to queries, keys and values, and writes the cache, in one kernel.
    verb posenc_prologue_apply(prologue: PosencPrologue, call: PosencPrologueCall) as ProloguePlan::apply
        where cpu = apply, |plan, scope| {
        let q = call.q.projected(scope, ["q", "q_out"])?;
        let k = call.k.projected(scope, ["k", "k_out"])?;
        let v = call.v.projected(scope, ["v", "v_out"])?;
        plan.apply(q, k, v, call.options(scope)?)
    };
}

impl From<&Branch> for PosencBranch {
    fn from(branch: &Branch) -> Self {
        let norm = branch.norm;
        let kind = |norm: HeadNorm| match norm.kind {
            NormKind::Rms => POSENC_HEAD_NORM_RMS,
            NormKind::L2 => POSENC_HEAD_NORM_L2,
        };
        Self {
            norm: norm.map_or(POSENC_HEAD_NORM_NONE, kind),
            weight: norm.map_or(NormWeight::None, |norm| norm.weight).code(),
            over: norm.map_or(NormOver::Head, |norm| norm.over).code(),
            rounding: branch.rounding.code(),
            bias: u32::from(branch.bias),
            rope: u32::from(branch.rope),
            eps: norm.map_or(0.0, |norm| norm.eps),
        }
    }
}

impl PosencBranch {
    fn branch(&self) -> Result<Branch, Failure> {
        let norm = match self.norm {
            POSENC_HEAD_NORM_NONE => None,
            POSENC_HEAD_NORM_RMS => Some(NormKind::Rms),
            POSENC_HEAD_NORM_L2 => Some(NormKind::L2),
            other => return Err(unknown("norm", other)),
        };
        let (weight, over) = (NormWeight::of("weight", self.weight)?, NormOver::of("over", self.over)?);
        Ok(Branch {
            bias: switch("bias", self.bias)?,
            norm: norm.map(|kind| HeadNorm { kind, weight, eps: self.eps, over }),
            rope: switch("rope", self.rope)?,
            rounding: Rounding::of("rounding", self.rounding)?,
        })
    }
}

impl PosencPrologueSpec {
    /// # Safety
    /// As [`PosencRopeSpec::rope`].
    unsafe fn prologue(&self) -> Result<Prologue, Failure> {
        let (q, k, v) = (self.q.branch()?, self.k.branch()?, self.v.branch()?);
        let turns = q.rope || k.rope || v.rope;
        // SAFETY: as the caller promises.
        let rope = if turns { Some(unsafe { nested("rope", &self.rope)?.rope() }?) } else { None };
        Ok(Prologue {
            rope,
            q,
            k,
            v,
            rope_first: switch("rope_first", self.rope_first)?,
            query_scale: self.query_scale.get()?,
        })
    }
}

/// Where a result goes beside the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Cache,
    Place,
    Out,
}

impl PosencProjected {
    /// Where it goes, and whether it is read beside the queries; `None`: there are none.
    pub(crate) fn to(&self, name: &str) -> Result<Option<(To, bool)>, Failure> {
        let beside = switch("packed", self.packed)?;
        if beside && name == "q" {
            return Err(Failure::argument("packed of q is 1: keys and values lie in the buffer of queries".into()));
        }
        if self.x.data == 0 && !beside && self.heads.heads == 0 {
            return Ok(None);
        }
        let to = match self.to {
            POSENC_TO_CACHE => To::Cache,
            POSENC_TO_PLACE => To::Place,
            POSENC_TO_OUT => To::Out,
            other => return Err(unknown("to", other)),
        };
        Ok(Some((to, beside)))
    }

    fn projected<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        names: [&'static str; 2],
    ) -> Result<Projected<'a, T>, Failure> {
        let Self { x, heads, out, out_heads, .. } = self;
        let out = || out_heads.of_mut(out, scope, names[1]);
        Ok(match self.to(names[0])? {
            None => Projected::None,
            Some((To::Cache, true)) => Projected::Beside(heads.shape()),
            Some((To::Place, true)) => Projected::BesideInPlace(heads.shape()),
            Some((To::Out, true)) => Projected::BesideTo(heads.shape(), out()?),
            Some((To::Cache, false)) => Projected::Read(heads.of(x, scope, names[0])?),
            Some((To::Place, false)) => Projected::Update(heads.of_mut(x, scope, names[0])?.into()),
            Some((To::Out, false)) => Projected::Update(heads.of(x, scope, names[0])?.to(out()?)),
        })
    }

    pub(crate) fn vectors<'a, M: Space, T: Scalar>(
        &self,
        scope: &Scope<'a, M>,
        [weight, bias]: [&'static str; 2],
    ) -> Result<Vectors<M::Slice<'a, T>>, Failure> {
        Ok(Vectors { weight: self.weight.read_some(scope, weight)?, bias: self.bias.read_some(scope, bias)? })
    }
}

impl PosencStored {
    /// Which codes; `None`: the element type.
    pub(crate) fn code(&self) -> Result<Option<Code8>, Failure> {
        Ok(match self.store {
            POSENC_STORE_SAME => None,
            POSENC_STORE_E4M3 => Some(Code8::E4m3),
            POSENC_STORE_E5M2 => Some(Code8::E5m2),
            POSENC_STORE_INT8 => Some(Code8::Int8),
            other => return Err(unknown("store", other)),
        })
    }

    fn stored<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        [name, scales]: [&'static str; 2],
    ) -> Result<Stored<'a, T>, Failure> {
        let Some(code) = self.code()? else {
            return Ok(Stored::Same(self.heads.of_mut(&self.x, scope, name)?));
        };
        let scale = match self.scale {
            POSENC_SCALE_GIVEN => CodeScale::Given(self.scales.read(scope, scales)?),
            POSENC_SCALE_DYNAMIC => CodeScale::Dynamic(self.scale_heads.of_mut(&self.scales, scope, scales)?),
            POSENC_SCALE_INLINE => CodeScale::Inline,
            other => return Err(unknown("scale", other)),
        };
        Ok(Stored::Codes(Codes { x: self.heads.of_mut(&self.x, scope, name)?, code, scale }))
    }
}

impl PosencCache {
    pub(crate) fn rows<'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<CacheRows<M::Ids<'a>>, Failure> {
        Ok(match self.rows {
            POSENC_CACHE_SLOTS => CacheRows::Slots(self.slots.get(scope, "slots")?),
            POSENC_CACHE_PAGES => CacheRows::Pages {
                table: self.slots.get(scope, "the table of pages")?,
                width: self.width as usize,
                rows: self.first.get(scope)?,
            },
            POSENC_CACHE_ROWS => CacheRows::Rows(self.first.get(scope)?),
            other => return Err(unknown("rows", other)),
        })
    }
}

impl PosencPrologueCall {
    fn options<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<PrologueCall<'a, T>, Failure> {
        let Self { positions, cache, .. } = self;
        let cache = if cache.k.x.data == 0 {
            None
        } else {
            let names = ["the cache of values", "the scales of values"];
            let v = if cache.v.x.data == 0 { None } else { Some(cache.v.stored(scope, names)?) };
            Some(Cache {
                k: cache.k.stored(scope, ["the cache of keys", "the scales of keys"])?,
                v,
                rows: cache.rows(scope)?,
                flag: cache.flag.write_some(scope, "the flag")?,
            })
        };
        Ok(PrologueCall {
            positions: positions.get(scope)?,
            q: self.q.vectors(scope, ["q_weight", "q_bias"])?,
            k: self.k.vectors(scope, ["k_weight", "k_bias"])?,
            v: self.v.vectors(scope, ["v_weight", "v_bias"])?,
            cache,
            q_codes: match self.q_codes.x.data {
                0 => None,
                _ => match self.q_codes.stored::<T>(scope, ["the codes of queries", "the scales of queries"])? {
                    Stored::Codes(codes) => Some(codes),
                    Stored::Same(_) | Stored::Beside(_) => return Err(no_codes()),
                },
            },
        })
    }
}

pub(crate) fn no_codes() -> Failure {
    Failure::argument("store of q_codes is the element type, which `q.out` is for".into())
}
