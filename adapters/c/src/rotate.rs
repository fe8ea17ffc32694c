//! Queries and keys are rotated: RoPE and xPos.

use posenc::gpu::{Read, View};
use posenc::position::{FixedPlan, Reals};
use posenc::rotate::{
    Angles, Axes, Keys, Mixed, OutOfRange, Ramp, RopeGrad, RopeGradPlan, Rotation, Side, Table, TableValues, XPos, Yarn,
};
use posenc::{Device, Direction, Heads, Host, Pairing, Rope, RopePlan, Scalar, Scaling};

use crate::cpu::{HostRope, HostRopeGrad};
use crate::header::{Coded, header};
use crate::memory::{Scope, slots, term_slots};
use crate::{
    Failure, POSENC_BF16, POSENC_F16, POSENC_F32, POSENC_F64, Plan, PosencBuffer, PosencGpu, PosencHeads,
    PosencPositions, PosencStatus, borrow, borrow_mut, each, guarded, list, make, nested, switch, unknown, versioned,
};

header! {{}
    constants u32 {
        POSENC_SAME = 0: "`pairing_out`: a pair is written where it was read.",
        POSENC_OTHER = 1: "It is written where the other pairing has it; out of place alone.",
    }
    kinds Angles {
        POSENC_EXACT = 0 => Exact: "Angles: exact at every position.",
        POSENC_HF_COMPAT = 1 => HfCompat: "The product of an f32 frequency and an f32 position, as Hugging Face's models \
            compute it.",
        POSENC_GIVEN = 2 => Given: "The same of given frequencies, a model's `inv_freq`; base and scaling are then not \
            used.",
        POSENC_MIXED = 3 => Mixed: "A sum over axes, exact at every position, with frequencies for every head: `mixed`; base, \
            scaling and axes are then not used.",
    }
    kinds Scaling {
        POSENC_SCALING_NONE = 0 => None: "Scaling: none.",
        POSENC_SCALING_LINEAR = 1 => Linear: "`factor`",
        POSENC_SCALING_NTK = 2 => NtkStatic: "NTK-aware, fixed: `factor` is alpha",
        POSENC_SCALING_LLAMA3 = 3 => Llama3: "`factor`, `low` and `high` (turns over the original context), \
            `original_context`",
        POSENC_SCALING_YARN = 4 => Yarn: "`factor`, `original_context`, `high` is beta_fast and `low` is beta_slow, \
            `not_truncated`, `extrapolation`, `ramp`",
        POSENC_SCALING_DIVISORS = 5 => Divisors: "`divisors`, one for each pair",
        POSENC_SCALING_NTK_MIXED = 6 => NtkMixed: "`factor`, `exponent`: NTK in a mixed base",
        POSENC_SCALING_NTK_DYNAMIC = 7 => DynamicNtk: "`factor`, `original_context`, `length`",
        POSENC_SCALING_NTK_STEPPED = 8 => SteppedNtk: "`original_context`, `length`: Qwen's dynamic NTK by steps",
        POSENC_SCALING_LONGROPE = 9 => LongRope: "`divisors` within `original_context`, `long_divisors` beyond it, one \
            for each pair; `length`",
        POSENC_SCALING_PROPORTIONAL = 10 => Proportional: "`factor`, and `rotated`: the pairs that turn",
    }
    codes Ramp {
        POSENC_RAMP_PAIRS = 0 => Pairs: "Ramp of YaRN: linear in the pair's index, as in all implementations.",
        POSENC_RAMP_TURNS = 1 => Turns: "linear in the pair's turns over the original context, as in the paper",
    }
    kinds Axes {
        POSENC_AXES_ONE = 0 => One: "Axes: one position a token.",
        POSENC_AXES_SECTIONS = 1 => Sections: "Runs of `axis_sizes` pairs, one ladder of frequencies: M-RoPE of Qwen2-VL.",
        POSENC_AXES_INTERLEAVED = 2 => Interleaved: "Axes take turns: Qwen3-VL.",
        POSENC_AXES_LADDERS = 3 => Ladders: "Runs of `axis_sizes` pairs, each with a ladder of its own: grids and volumes.",
        POSENC_AXES_HEIGHT_WIDTH_FIRST = 4 => HeightWidthFirst: "`axis_sizes` of time, height and width; height and width \
            alternate first: ERNIE 4.5-VL.",
        POSENC_AXES_TABLE = 5 => Table: "`axis_of_pair`: the axis of each pair",
        POSENC_AXES_DEALT = 6 => Dealt: "`axis_count` runs of equal size, the one ladder dealt out to them: Pixtral.",
        POSENC_AXES_BLOCKS = 7 => Blocks: "`axis_count` blocks of channels of equal size, each rotated as a rotary part \
            of its own: Gemma 4's vision tower.",
        POSENC_AXES_ALTERNATING = 8 => Alternating: "`axis_count` axes in turn, each with a ladder of its own: Kimi's vision tower.",
    }
    codes Side {
        POSENC_XPOS_QUERY = 0 => Query: "`xpos`: the first tensor is queries.",
        POSENC_XPOS_KEY = 1 => Key: "The first tensor is keys.",
    }
    kinds OutOfRange {
        POSENC_OUT_OF_RANGE_CLAMP = 0 => Clamp: "A position outside the table takes the nearest row.",
        POSENC_OUT_OF_RANGE_NAN = 1 => Nan: "It makes every rotated channel of the token NaN, and raises the flag.",
    }

    /// RoPE: what to compute.
    versioned struct PosencRopeSpec {
        rotary: u64 => "rotated channels of a head, even; 0 with a base of 1: no rotation",
        offset: u64 => "first rotated channel; heads of `rotary` channels hold nothing else and are rotated whole",
        base: f64 => "theta",
        attention_factor: f64 => "multiplies cosine and sine; 1 unless a scaling says otherwise",
        pairing: u32 => "`POSENC_HALF` or `POSENC_INTERLEAVED`",
        pairing_out: u32 => "where a pair is written, `POSENC_SAME` or `POSENC_OTHER`",
        angles: u32 => "`POSENC_EXACT`, `POSENC_HF_COMPAT` or `POSENC_GIVEN`",
        scaling: u32 => "`POSENC_SCALING_...`, which says what it reads of the fields below",
        factor: f64 => "divides frequencies",
        low: f64 => "turns over the original context below which a frequency is divided",
        high: f64 => "turns over the original context above which a frequency is kept",
        original_context: f64 => "tokens of the first training; the context of dynamic and stepped NTK",
        exponent: f64 => "of mixed NTK",
        extrapolation: f64 => "of YaRN: how much of a kept frequency is kept, 1 but in llama.cpp",
        not_truncated: u32 => "of YaRN: 1: the ramp's ends are not rounded to whole pairs, as in GPT-OSS",
        ramp: u32 => "of YaRN: `POSENC_RAMP_...`",
        length: u64 => "tokens of the sequence, the new ones included; 0: not known, which a scaling that needs it refuses",
        rotated: u64 => "of the proportional scaling: pairs that turn",
        divisors: *const f64 => "divisors of the frequencies, in host memory",
        long_divisors: *const f64 => "of LongRoPE: those beyond the original context, in host memory",
        divisor_count: u64 => "how many divisors each list holds",
        frequencies: *const f32 => "of `POSENC_GIVEN`: one f32 for each pair, in host memory",
        axis_of_pair: *const u8 => "of `POSENC_AXES_TABLE`: the axis of each pair, in host memory",
        axes: u32 => "`POSENC_AXES_...`",
        axis_count: u32 => "sizes of axes, at most 4; axes of `POSENC_AXES_DEALT`, `POSENC_AXES_BLOCKS` and `POSENC_AXES_ALTERNATING`",
        axis_sizes: [u32; 4] => "pairs of each axis",
        fraction_bits: [u32; 4] => "positions on each axis are whole numbers of units of `2^-bits`; all 0: of ones",
        mixed: *const f64 => "of `POSENC_MIXED`: `[mixed_axes, mixed_heads, rotary / 2]` radians per position, in host memory",
        mixed_axes: u32 => "of `POSENC_MIXED`: axes of a position",
        mixed_heads: u32 => "of `POSENC_MIXED`: sets of frequencies, which heads share equally",
    }
    /// xPos: rotated queries shrink with their position, keys grow.
    versioned struct PosencXPosSpec {
        rope: PosencRopeSpec => "the rotation",
        gamma: f64 => "the offset of zeta: 0.4 in the paper",
        scale_base: f64 => "positions over which a pair shrinks by its zeta: 512 in the paper",
        center: i64 => "the position where nothing shrinks",
    }

    /// Queries or keys, and where their rotation goes.
    struct PosencOperand {
        x: PosencBuffer => "read; no `data`: there are none",
        heads: PosencHeads => "the shape of `x`",
        out: PosencBuffer => "written; no `data`: `x` is rotated in place",
        out_heads: PosencHeads => "the shape of `out`",
    }
    /// Cosines and sines of the caller, by position: row `p` holds one cosine, and one sine, for each pair.
    struct PosencTable {
        cos: PosencBuffer => "the cosines; no `data`: there is no table, angles come from the spec",
        sin: PosencBuffer => "the sines; no `data`: they follow the cosines in each row",
        rows: u64 => "positions that have a row",
        stride: u64 => "elements from one row to the next",
        element: u32 => "`POSENC_F32`, or the tensors' type",
        out_of_range: u32 => "policy for positions outside the table: `POSENC_OUT_OF_RANGE_...`",
        flag: PosencBuffer => "of `POSENC_OUT_OF_RANGE_NAN`: a 32-bit word that becomes 1; or no `data`",
    }
    /// One rotation.
    versioned struct PosencRopeCall {
        packed: u32 => "1: the keys lie in the buffer of `q.x`, which is rotated in place (packed QKV); `k.heads` alone \
            is read of `k`",
        inverse: u32 => "0 forward, 1 back: the inverse, and the gradient",
        xpos: u32 => "which side of the score the first tensor is on, of xPos alone: `POSENC_XPOS_...`",
        reserved: u32 => "0",
        q: PosencOperand => "queries; keys alone of `POSENC_XPOS_KEY`",
        k: PosencOperand => "keys, in place or copied whatever the queries are",
        positions: PosencPositions => "token positions",
        table: PosencTable => "cosines and sines in place of the spec's angles",
    }

    /// RoPE or xPos on a device, for one element type.
    plan PosencRope(RopePlan, HostRope);

    /// Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).
    new posenc_rope_new(spec: PosencRopeSpec) -> PosencRope as RopePlan::new
        where rope = HostRope::Rope(spec.rope()?), |gpu| rope.plan(gpu);

    /// Makes a plan of xPos.
    new posenc_rope_xpos_new(spec: PosencXPosSpec) -> PosencRope as RopePlan::xpos
        where rope = HostRope::XPos(spec.xpos()?), |gpu| rope.plan(gpu);

    on posenc_rope_on(rope: PosencRope) as RopePlan::on;
    free posenc_rope_free(rope: PosencRope);

    /// Rotates queries, and keys if there are any, in one kernel.
    verb posenc_rope_rotate(rope: PosencRope, call: PosencRopeCall) as RopePlan::rotate where cpu = rotate, |plan, scope| {
        let PosencOperand { x, heads, out, out_heads } = &call.q;
        let q = heads.update(x, (out, out_heads), scope, ["q", "q_out"])?;
        plan.rotate(q, call.keys(scope)?, call.rotation(scope)?)
    };

    /// Learned frequencies of a plan.
    versioned struct PosencSetFrequenciesCall {
        frequencies: PosencBuffer => "f32 `[mixed_axes, mixed_heads, rotary / 2]`, radians per position, below 2^40 in magnitude",
        flag: PosencBuffer => "a 32-bit word that becomes 1 if one is not; or no `data`",
    }
    /// Makes the angles of a plan of `POSENC_MIXED` of learned frequencies, in one kernel. No other call uses `rope` at the same
    /// time.
    fn posenc_rope_set_frequencies(rope: *mut PosencRope, call: *const PosencSetFrequenciesCall) -> PosencStatus
        as RopePlan::set_frequencies {
        guarded(|| {
            let call = versioned("call", call)?;
            match &mut borrow_mut("rope", rope)?.plan {
                Plan::Gpu(plan) => {
                    let (mut slots, mut terms) = (slots::<Device>(), term_slots::<Device>());
                    let scope = Scope::<Device>::new(&mut slots, &mut terms);
                    let (frequencies, flag) =
                        (call.frequencies.read(&scope, "frequencies")?, call.flag.write_some(&scope, "flag")?);
                    Ok(each!(plan, plan => plan.set_frequencies(frequencies, flag))?)
                }
                Plan::Cpu { spec, .. } => {
                    let (mut slots, mut terms) = (slots::<Host>(), term_slots::<Host>());
                    spec.set_frequencies(&call, &Scope::<Host>::new(&mut slots, &mut terms))
                }
            }
        })
    }

    /// A tensor with its gradient, both before the rotation or both after it.
    struct PosencTensorGrad {
        x: PosencBuffer => "elements; no `data`: there is no such tensor",
        heads: PosencHeads => "the shape of `x`",
        grad: PosencBuffer => "their gradient",
        grad_heads: PosencHeads => "its shape, of the same sizes",
    }
    /// One call for the gradient of frequencies.
    versioned struct PosencFrequencyGradCall {
        q: PosencTensorGrad => "queries",
        k: PosencTensorGrad => "keys with the same frequencies, or none",
        positions: PosencPositions => "those of the rotation",
        out: PosencBuffer => "f32 `[axes, sets, rotary / 2]`, written",
    }
    /// One call for the gradient of positions.
    versioned struct PosencPositionGradCall {
        q: PosencTensorGrad => "queries",
        k: PosencTensorGrad => "keys with the same frequencies, or none",
        frequencies: PosencBuffer => "f32 `[axes, sets, rotary / 2]`, learned ones; no `data`: those of the spec",
        out: PosencBuffer => "f32 `[axes, batch, tokens]`, written: per whole position",
    }
    /// Gradients of RoPE's angles, for tensors of one element type.
    plan PosencRopeGrad(RopeGradPlan, HostRopeGrad);
    /// Makes a plan: uploads the frequencies and loads the kernels for `element`.
    new posenc_rope_grad_new(spec: PosencRopeSpec) -> PosencRopeGrad as RopeGradPlan::new
        where rope = HostRopeGrad(spec.rope()?), |gpu| RopeGradPlan::new(gpu, &rope.0);
    on posenc_rope_grad_on(rope: PosencRopeGrad) as RopeGradPlan::on;
    free posenc_rope_grad_free(rope: PosencRopeGrad);
    /// Writes the gradient of frequencies: the sum over tokens and the heads of a set of `position * (a db - b da)`.
    verb posenc_rope_grad_frequencies(rope: PosencRopeGrad, call: PosencFrequencyGradCall) as RopeGradPlan::frequencies
        where cpu = frequencies, |plan, scope| {
        let (q, k) = (call.q.get(scope, ["q", "q_grad"])?, call.k.get_some(scope, ["k", "k_grad"])?);
        plan.frequencies(q, k, call.positions.get(scope)?, call.out.write(scope, "out")?)
    };
    /// Writes the gradient of positions: the sum over heads and pairs of `frequency * (a db - b da)`.
    verb posenc_rope_grad_positions(rope: PosencRopeGrad, call: PosencPositionGradCall) as RopeGradPlan::positions
        where cpu = positions, |plan, scope| {
        let (q, k) = (call.q.get(scope, ["q", "q_grad"])?, call.k.get_some(scope, ["k", "k_grad"])?);
        plan.positions(q, k, call.frequencies.read_some(scope, "frequencies")?, call.out.write(scope, "out")?)
    };

    /// Real positions in units.
    versioned struct PosencFixedCall {
        positions: PosencBuffer => "real numbers",
        element: u32 => "`POSENC_F32` or `POSENC_F64`",
        bits: u32 => "fraction bits, at most 62",
        out: PosencBuffer => "64-bit integers, as many, written: units of `2^-bits`, rounded to the nearest, ties to even",
        flag: PosencBuffer => "a 32-bit word that becomes 1 if a position is not finite or does not fit, whose units are 0; or \
            no `data`. The CPU refuses such a position in place of it",
    }
    /// What makes units of real positions.
    opaque PosencFixed { plan: Option<FixedPlan> }
    /// Loads the kernel.
    fn posenc_fixed_new(gpu: *const PosencGpu, out: *mut *mut PosencFixed) -> PosencStatus {
        make(gpu, out, |gpu| Ok(PosencFixed { plan: gpu.map(FixedPlan::new).transpose()? }))
    }
    /// Makes the same for another stream.
    fn posenc_fixed_on(fixed: *const PosencFixed, gpu: *const PosencGpu, out: *mut *mut PosencFixed) -> PosencStatus {
        make(gpu, out, |gpu| match (&borrow("fixed", fixed)?.plan, gpu) {
            (Some(plan), Some(gpu)) => Ok(PosencFixed { plan: Some(plan.on(gpu.stream())?) }),
            (None, None) => Ok(PosencFixed { plan: None }),
            _ => Err(Failure::argument("one of `fixed` and `gpu` is of the CPU and the other of a device".into())),
        })
    }
    free posenc_fixed_free(fixed: PosencFixed);
    /// Writes real positions in units, in one kernel.
    fn posenc_fixed_write(fixed: *const PosencFixed, call: *const PosencFixedCall) -> PosencStatus {
        guarded(|| {
            let call = versioned("call", call)?;
            match &borrow("fixed", fixed)?.plan {
                Some(plan) => {
                    let (mut slots, mut terms) = (slots::<Device>(), term_slots::<Device>());
                    let scope = Scope::<Device>::new(&mut slots, &mut terms);
                    let reals = match call.element {
                        POSENC_F32 => Reals::F32(call.positions.read(&scope, "positions")?),
                        POSENC_F64 => Reals::F64(call.positions.read(&scope, "positions")?),
                        other => return Err(unknown("element", other)),
                    };
                    let (out, flag) = (call.out.write(&scope, "out")?, call.flag.write_some(&scope, "flag")?);
                    Ok(plan.write(reals, call.bits, out, flag)?)
                }
                None => {
                    let (mut slots, mut terms) = (slots::<Host>(), term_slots::<Host>());
                    call.write(&Scope::<Host>::new(&mut slots, &mut terms))
                }
            }
        })
    }
}

impl PosencRopeSpec {
    /// # Safety
    /// Pointers are null or point to as many values as the fields beside them say.
    pub(crate) unsafe fn rope(&self) -> Result<Rope, Failure> {
        let pairing = Pairing::of("pairing", self.pairing)?;
        Ok(Rope {
            rotary: self.rotary as usize,
            offset: self.offset as usize,
            pairing,
            base: self.base,
            // SAFETY: as the caller promises.
            scaling: unsafe { self.scaling() }?,
            attention_factor: self.attention_factor,
            // SAFETY: as the caller promises.
            axes: unsafe { self.axes() }?,
            pairing_out: match self.pairing_out {
                POSENC_SAME => None,
                POSENC_OTHER if pairing == Pairing::Half => Some(Pairing::Interleaved),
                POSENC_OTHER => Some(Pairing::Half),
                other => return Err(unknown("pairing_out", other)),
            },
            fraction_bits: if self.fraction_bits == [0; 4] {
                Vec::new()
            } else {
                let axes = if self.angles == POSENC_MIXED { self.mixed_axes } else { self.axis_count.max(1) };
                self.fraction_bits.iter().copied().chain(std::iter::repeat(0)).take(axes as usize).collect()
            },
            angles: match self.angles {
                POSENC_EXACT => Angles::Exact,
                POSENC_HF_COMPAT => Angles::HfCompat,
                // SAFETY: the caller promises one for each pair.
                POSENC_GIVEN => Angles::Given(unsafe { list("frequencies", self.frequencies, self.rotary / 2) }?),
                POSENC_MIXED => {
                    let (axes, heads) = (self.mixed_axes as usize, self.mixed_heads as usize);
                    let count = self.rotary / 2 * u64::from(self.mixed_axes) * u64::from(self.mixed_heads);
                    // SAFETY: the caller promises one for each axis, set and pair.
                    let frequencies = unsafe { list("mixed", self.mixed, count) }?;
                    Angles::Mixed(Mixed { axes, heads, frequencies })
                }
                other => return Err(unknown("angles", other)),
            },
        })
    }

    /// # Safety
    /// As [`PosencRopeSpec::rope`].
    unsafe fn scaling(&self) -> Result<Scaling, Failure> {
        let Self { factor, low, high, original_context, exponent, .. } = *self;
        let length = (self.length != 0).then_some(self.length);
        // SAFETY: as the caller promises.
        let divisors = |name, pointer| unsafe { list(name, pointer, self.divisor_count) };
        Ok(match self.scaling {
            POSENC_SCALING_NONE => Scaling::None,
            POSENC_SCALING_LINEAR => Scaling::Linear { factor },
            POSENC_SCALING_NTK => Scaling::NtkStatic { alpha: factor },
            POSENC_SCALING_NTK_MIXED => Scaling::NtkMixed { factor, exponent },
            POSENC_SCALING_NTK_DYNAMIC => Scaling::DynamicNtk { factor, context: original_context, length },
            POSENC_SCALING_NTK_STEPPED => Scaling::SteppedNtk { context: original_context, length },
            POSENC_SCALING_YARN => Scaling::Yarn(Yarn {
                factor,
                original_context,
                beta_fast: high,
                beta_slow: low,
                truncate: !switch("not_truncated", self.not_truncated)?,
                extrapolation: crate::factor("extrapolation", self.extrapolation)?,
                ramp: Ramp::of("ramp", self.ramp)?,
            }),
            POSENC_SCALING_LONGROPE => Scaling::LongRope {
                short: divisors("divisors", self.divisors)?,
                long: divisors("long_divisors", self.long_divisors)?,
                original_context,
                length,
            },
            POSENC_SCALING_LLAMA3 => Scaling::Llama3 { factor, low, high, original_context },
            POSENC_SCALING_PROPORTIONAL => Scaling::Proportional { rotated: self.rotated as usize, factor },
            POSENC_SCALING_DIVISORS => Scaling::Divisors(divisors("divisors", self.divisors)?),
            other => return Err(unknown("scaling", other)),
        })
    }

    /// # Safety
    /// As [`PosencRopeSpec::rope`].
    unsafe fn axes(&self) -> Result<Axes, Failure> {
        let count = self.axis_count as usize;
        let sizes = || match self.axis_sizes.get(..count) {
            Some(sizes) => Ok(sizes.iter().map(|&size| size as usize).collect::<Vec<_>>()),
            None => Err(Failure::argument(format!("axis_count is {count}, at most 4 are allowed"))),
        };
        Ok(match self.axes {
            POSENC_AXES_ONE => Axes::One,
            POSENC_AXES_SECTIONS => Axes::Sections(sizes()?),
            POSENC_AXES_INTERLEAVED => Axes::Interleaved(sizes()?),
            POSENC_AXES_LADDERS => Axes::Ladders(sizes()?),
            POSENC_AXES_HEIGHT_WIDTH_FIRST => Axes::HeightWidthFirst(
                sizes()?
                    .try_into()
                    .map_err(|_| Failure::argument(format!("axis_count is {count}, time, height and width are 3")))?,
            ),
            // SAFETY: the caller promises one for each pair.
            POSENC_AXES_TABLE => Axes::Table(unsafe { list("axis_of_pair", self.axis_of_pair, self.rotary / 2) }?),
            POSENC_AXES_DEALT => Axes::Dealt(count),
            POSENC_AXES_BLOCKS => Axes::Blocks(count),
            POSENC_AXES_ALTERNATING => Axes::Alternating(count),
            other => return Err(unknown("axes", other)),
        })
    }
}

impl PosencXPosSpec {
    /// # Safety
    /// As [`PosencRopeSpec::rope`].
    unsafe fn xpos(&self) -> Result<XPos, Failure> {
        // SAFETY: as the caller promises.
        let rope = unsafe { nested("rope", &self.rope)?.rope() }?;
        Ok(XPos { rope, gamma: self.gamma, scale_base: self.scale_base, center: self.center })
    }
}

/// Where the keys of a call are.
pub(crate) enum KeysOf {
    None,
    Apart,
    /// in the buffer of the queries
    Beside,
}

impl PosencRopeCall {
    pub(crate) fn keys_of(&self) -> Result<KeysOf, Failure> {
        Ok(match (switch("packed", self.packed)?, self.k.x.data, self.k.out.data) {
            (true, data, _) if data != 0 && data != self.q.x.data => {
                let text = "packed queries and keys have one address, these have two";
                return Err(Failure::argument(text.into()));
            }
            (true, ..) => KeysOf::Beside,
            (false, 0, 0) => KeysOf::None,
            (false, 0, _) => return Err(Failure::argument("k is null and k_out is not".into())),
            _ => KeysOf::Apart,
        })
    }

    fn keys<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<Keys<'a, T>, Failure> {
        let PosencOperand { x, heads, out, out_heads } = &self.k;
        Ok(match self.keys_of()? {
            KeysOf::None => Keys::None,
            KeysOf::Beside => Keys::Beside(heads.shape()),
            KeysOf::Apart => Keys::Apart(heads.update(x, (out, out_heads), scope, ["k", "k_out"])?),
        })
    }

    fn rotation<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<Rotation<'a, T>, Failure> {
        let inverse = switch("inverse", self.inverse)?;
        Ok(Rotation {
            positions: self.positions.get(scope)?,
            direction: if inverse { Direction::Inverse } else { Direction::Forward },
            table: if self.table.cos.data == 0 { None } else { Some(self.table.get(scope)?) },
            xpos: match Side::of("xpos", self.xpos)? {
                Side::Query => None,
                Side::Key => Some(Side::Key),
            },
        })
    }
}

impl PosencTensorGrad {
    fn get<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        [name, grad_name]: [&'static str; 2],
    ) -> Result<RopeGrad<View<'a, T, Heads>>, Failure> {
        let x = self.heads.of(&self.x, scope, name)?;
        Ok(RopeGrad { x, grad: self.grad_heads.of(&self.grad, scope, grad_name)? })
    }

    fn get_some<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        names: [&'static str; 2],
    ) -> Result<Option<RopeGrad<View<'a, T, Heads>>>, Failure> {
        if self.x.data == 0 { Ok(None) } else { self.get(scope, names).map(Some) }
    }
}

impl PosencTable {
    /// Whether values are of the tensors' type, and not f32.
    pub(crate) fn own<T: Scalar>(&self) -> Result<bool, Failure> {
        let own = match T::NAME {
            "f32" => POSENC_F32,
            "f16" => POSENC_F16,
            _ => POSENC_BF16,
        };
        match self.element {
            POSENC_F32 => Ok(false),
            element if element == own => Ok(true),
            element => Err(Failure::argument(format!(
                "table.element is {element}, it must be POSENC_F32 or the tensors' own ({own})"
            ))),
        }
    }

    fn get<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<Table<'a, T>, Failure> {
        fn both<'a, V>(
            table: &PosencTable,
            scope: &Scope<'a, Device>,
        ) -> Result<(Read<'a, V>, Option<Read<'a, V>>), Failure> {
            Ok((table.cos.read(scope, "cos")?, table.sin.read_some(scope, "sin")?))
        }
        let values = if self.own::<T>()? {
            let (cos, sin) = both(self, scope)?;
            TableValues::Same { cos, sin }
        } else {
            let (cos, sin) = both(self, scope)?;
            TableValues::F32 { cos, sin }
        };
        let out_of_range = match self.out_of_range {
            POSENC_OUT_OF_RANGE_CLAMP => OutOfRange::Clamp,
            POSENC_OUT_OF_RANGE_NAN => OutOfRange::Nan(self.flag.write_some(scope, "flag")?),
            other => return Err(unknown("out_of_range", other)),
        };
        Ok(Table { values, rows: self.rows as usize, stride: self.stride as usize, out_of_range })
    }
}
