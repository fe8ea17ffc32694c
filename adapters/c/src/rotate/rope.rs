//! RoPE.

use std::ffi::{CStr, c_char};

use posenc::rotate::{Angles, Axes, Beyond, Operand, Table, TableValues, Yarn};
use posenc::{Direction, Gpu, Heads, Pairing, Rope, RopePlan, Scalar, Scaling};

use crate::{
    Failure, Foreign, POSENC_BF16, POSENC_F16, POSENC_F32, PosencBuffer, PosencGpu, PosencPositions, PosencStatus,
    Versioned, borrow, call, free, guarded, make, make_plan, pairing, place, plans, read, size, slice, switch, unknown,
    with_plan, write,
};

/// `pairing_out`: a pair is written where it was read.
pub const POSENC_SAME: u32 = 0;
/// It is written where the other pairing has it; out of place alone.
pub const POSENC_OTHER: u32 = 1;

/// Angles: exact at every position.
pub const POSENC_EXACT: u32 = 0;
/// The product of an f32 frequency and an f32 position, as Hugging Face's models compute it.
pub const POSENC_HF_COMPAT: u32 = 1;
/// The same of given frequencies, a model's `inv_freq`; base and scaling then say nothing.
pub const POSENC_GIVEN: u32 = 2;

/// Scaling: none.
pub const POSENC_SCALING_NONE: u32 = 0;
/// `factor`
pub const POSENC_SCALING_LINEAR: u32 = 1;
/// `factor` is alpha
pub const POSENC_SCALING_NTK: u32 = 2;
/// `factor`, `low` and `high` (turns over the original context), `original_context`
pub const POSENC_SCALING_LLAMA3: u32 = 3;
/// `factor`, `original_context`, `high` is beta_fast and `low` is beta_slow
pub const POSENC_SCALING_YARN: u32 = 4;
/// `divisors`, one for each pair
pub const POSENC_SCALING_DIVISORS: u32 = 5;

/// Axes: one position a token.
pub const POSENC_AXES_ONE: u32 = 0;
/// Runs of `axis_sizes` pairs, one ladder of frequencies.
pub const POSENC_AXES_SECTIONS: u32 = 1;
/// Axes take turns.
pub const POSENC_AXES_INTERLEAVED: u32 = 2;
/// Runs of `axis_sizes` pairs, each with a ladder of its own.
pub const POSENC_AXES_LADDERS: u32 = 3;

/// What to compute.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencRopeSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencRopeSpec)`
    pub size: u32,
    /// rotated channels of a head, even
    pub rotary: u64,
    /// first rotated channel
    pub offset: u64,
    /// theta
    pub base: f64,
    /// multiplies cosine and sine; 1 unless a scaling says otherwise
    pub attention_factor: f64,
    /// `POSENC_HALF` or `POSENC_INTERLEAVED`
    pub pairing: u32,
    /// where a pair is written, `POSENC_SAME` or `POSENC_OTHER`
    pub pairing_out: u32,
    /// `POSENC_EXACT`, `POSENC_HF_COMPAT` or `POSENC_GIVEN`
    pub angles: u32,
    /// `POSENC_SCALING_...`
    pub scaling: u32,
    /// see the scaling
    pub factor: f64,
    /// see the scaling
    pub low: f64,
    /// see the scaling
    pub high: f64,
    /// see the scaling; tokens
    pub original_context: f64,
    /// divisors of the frequencies, in host memory; null without
    pub divisors: *const f64,
    /// how many
    pub divisor_count: u64,
    /// of `POSENC_GIVEN`: one f32 for each pair, in host memory; null without
    pub frequencies: *const f32,
    /// `POSENC_AXES_...`
    pub axes: u32,
    /// sizes of axes, at most 4
    pub axis_count: u32,
    /// pairs of each axis
    pub axis_sizes: [u32; 4],
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers.
unsafe impl Versioned for PosencRopeSpec {}

/// The shape of `[batch, tokens, heads, dim]`; the channels of a head are contiguous.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencHeads {
    /// sequences
    pub batch: u64,
    /// tokens of each
    pub tokens: u64,
    /// heads of each token
    pub heads: u64,
    /// channels of each head
    pub dim: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence, token and head to the next
    pub strides: [u64; 3],
}

/// Queries or keys, and where their rotation goes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencOperand {
    /// read; no `data`: there are none
    pub x: PosencBuffer,
    /// the shape of `x`
    pub heads: PosencHeads,
    /// written; no `data`: `x` is rotated in place
    pub out: PosencBuffer,
    /// the shape of `out`
    pub out_heads: PosencHeads,
}

/// Cosines and sines of the caller, by position: row `p` holds one cosine, and one sine, for each pair.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencTable {
    /// the cosines; no `data`: there is no table, angles come from the spec
    pub cos: PosencBuffer,
    /// the sines; no `data`: they follow the cosines in each row
    pub sin: PosencBuffer,
    /// positions that have a row
    pub rows: u64,
    /// elements from one row to the next
    pub stride: u64,
    /// `POSENC_F32`, or the tensors' type
    pub element: u32,
    /// a position without a row gives: 0 the nearest row, 1 NaN
    pub beyond: u32,
    /// a 32-bit word that then becomes 1; or no `data`
    pub beyond_flag: PosencBuffer,
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencRopeCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencRopeCall)`
    pub size: u32,
    /// 1: `q.x` and `k.x` are one buffer, which is rotated in place
    pub packed: u32,
    /// 0 forward, 1 back: the inverse, and the gradient
    pub inverse: u32,
    /// queries
    pub q: PosencOperand,
    /// keys
    pub k: PosencOperand,
    /// where the tokens stand
    pub positions: PosencPositions,
    /// cosines and sines in place of the spec's angles
    pub table: PosencTable,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencRopeCall {}

/// RoPE on a device, for one element type.
pub struct PosencRope {
    plan: plans!(RopePlan),
    gpu: Gpu,
}

fn plan(gpu: &Gpu, rope: &Rope, element: u32) -> Result<PosencRope, Failure> {
    Ok(PosencRope { plan: make_plan!(element, T => RopePlan::<T>::new(gpu, rope)?), gpu: gpu.clone() })
}

/// # Safety
/// `spec.divisors` is null or points to `divisor_count` values, `spec.frequencies` to one for each pair.
pub(crate) unsafe fn rope(spec: &PosencRopeSpec) -> Result<Rope, Failure> {
    let PosencRopeSpec { factor, low, high, original_context, .. } = *spec;
    let scaling = match spec.scaling {
        POSENC_SCALING_NONE => Scaling::None,
        POSENC_SCALING_LINEAR => Scaling::Linear { factor },
        POSENC_SCALING_NTK => Scaling::NtkStatic { alpha: factor },
        POSENC_SCALING_LLAMA3 => Scaling::Llama3 { factor, low, high, original_context },
        POSENC_SCALING_YARN => {
            Scaling::Yarn(Yarn { beta_fast: high, beta_slow: low, ..Yarn::new(factor, original_context) })
        }
        POSENC_SCALING_DIVISORS => {
            let count = size("divisor_count", spec.divisor_count)?;
            // SAFETY: the caller promises as many values as it counts.
            Scaling::Divisors(unsafe { slice("divisors", spec.divisors, count) }?.to_vec())
        }
        other => return Err(unknown("scaling", other)),
    };
    let Some(sizes) = spec.axis_sizes.get(..spec.axis_count as usize) else {
        return Err(Failure::argument(format!("axis_count is {}, at most 4 are allowed", spec.axis_count)));
    };
    let sizes = sizes.iter().map(|&size| size as usize).collect();
    let rotary = size("rotary", spec.rotary)?;
    let pairing = pairing(spec.pairing)?;
    Ok(Rope {
        offset: size("offset", spec.offset)?,
        pairing,
        scaling,
        attention_factor: spec.attention_factor,
        axes: match spec.axes {
            POSENC_AXES_ONE => Axes::One,
            POSENC_AXES_SECTIONS => Axes::Sections(sizes),
            POSENC_AXES_INTERLEAVED => Axes::Interleaved(sizes),
            POSENC_AXES_LADDERS => Axes::Ladders(sizes),
            other => return Err(unknown("axes", other)),
        },
        pairing_out: match spec.pairing_out {
            POSENC_SAME => None,
            POSENC_OTHER => Some(match pairing {
                Pairing::Half => Pairing::Interleaved,
                Pairing::Interleaved => Pairing::Half,
            }),
            other => return Err(unknown("pairing_out", other)),
        },
        angles: match spec.angles {
            POSENC_EXACT => Angles::Exact,
            POSENC_HF_COMPAT => Angles::HfCompat,
            // SAFETY: the caller promises one for each pair.
            POSENC_GIVEN => Angles::Given(unsafe { slice("frequencies", spec.frequencies, rotary / 2) }?.to_vec()),
            other => return Err(unknown("angles", other)),
        },
        ..Rope::new(rotary, spec.base)
    })
}

/// Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_new(
    gpu: *const PosencGpu,
    spec: *const PosencRopeSpec,
    element: u32,
    out: *mut *mut PosencRope,
) -> PosencStatus {
    // SAFETY: as the caller promises, `divisors` too.
    unsafe { make(gpu, spec, out, |gpu, spec| plan(gpu, &rope(spec)?, element)) }
}

/// Makes the plan of layer `layer` of a model from its `config.json` (Hugging Face), a text that ends in a zero byte.
///
/// `length` is the tokens of the longest sequence, for scalings that depend on it.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_from_hf(
    gpu: *const PosencGpu,
    config: *const c_char,
    layer: u64,
    length: u64,
    element: u32,
    out: *mut *mut PosencRope,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = &unsafe { borrow("gpu", gpu) }?.gpu;
        // SAFETY: not null, and the caller promises a text with its end.
        let config = unsafe { CStr::from_ptr(place("config", config.cast_mut())?) };
        let out = place("out", out)?;
        let config = config.to_str().map_err(|_| Failure::argument("config is not UTF-8".into()))?;
        let model = posenc::ModelRope::from_hf(config)?;
        let Some(rope) = &model.layer(size("layer", layer)?)?.rope else {
            return Err(Failure::argument(format!("layer {layer} has no RoPE")));
        };
        let made = plan(gpu, &rope.at_length(length), element)?;
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_free(rope: *mut PosencRope) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(rope) }
}

/// Rotates queries, and keys if there are any, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_rotate(rope: *const PosencRope, call: *const PosencRopeCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("rope", rope, call, |rope, call| with_plan!(&rope.plan, plan => rotate(plan, &rope.gpu, call)))
    }
}

impl PosencHeads {
    fn shape(&self) -> Result<Heads, Failure> {
        let [batch, token, head] = self.strides;
        Ok(Heads {
            batch: size("batch", self.batch)?,
            tokens: size("tokens", self.tokens)?,
            heads: size("heads", self.heads)?,
            dim: size("dim", self.dim)?,
            offset: size("an offset", self.offset)?,
            strides: [size("a stride", batch)?, size("a stride", token)?, size("a stride", head)?],
        })
    }
}

fn rotate<T: Scalar>(plan: &RopePlan<T>, gpu: &Gpu, call: &PosencRopeCall) -> Result<(), Failure> {
    let direction = direction(call)?;
    let positions = call.positions.get(gpu)?;
    let positions = positions.positions()?;
    with_table(gpu, &call.table, |table| {
        if switch("packed", call.packed)? {
            let (mut x, q, k) = call.packed::<T>(gpu)?;
            return match table {
                None => plan.rotate_packed(&mut x, q, k, positions, direction),
                Some(table) => plan.rotate_packed_by_table(table, &mut x, q, k, positions, direction),
            }
            .map_err(Failure::from);
        }
        let (mut q, mut q_out) = (Some(call.q.x.get(gpu, "q")?), call.q.out.optional(gpu, "q_out")?);
        let (mut k, mut k_out) = (call.k.x.optional(gpu, "k")?, call.k.out.optional(gpu, "k_out")?);
        let q = call.q.operand("q", &mut q, &mut q_out)?;
        let (Some(q), k) = (q, call.k.operand("k", &mut k, &mut k_out)?) else { return Ok(()) };
        match table {
            None => plan.rotate(q, k, positions, direction),
            Some(table) => plan.rotate_by_table(table, q, k, positions, direction),
        }
        .map_err(Failure::from)
    })
}

pub(crate) fn direction(call: &PosencRopeCall) -> Result<Direction, Failure> {
    Ok(if switch("inverse", call.inverse)? { Direction::Inverse } else { Direction::Forward })
}

impl PosencRopeCall {
    /// The one buffer of packed queries and keys, and the shapes of both.
    pub(crate) fn packed<T>(&self, gpu: &Gpu) -> Result<(Foreign<T>, Heads, Heads), Failure> {
        if self.k.x.data != self.q.x.data {
            return Err(Failure::argument("packed queries and keys have one address, these have two".into()));
        }
        Ok((self.q.x.get(gpu, "q")?, self.q.heads.shape()?, self.k.heads.shape()?))
    }
}

impl PosencOperand {
    /// The operand, if there is one.
    pub(crate) fn operand<'a, T: Scalar>(
        &self,
        name: &str,
        x: &'a mut Option<Foreign<T>>,
        out: &'a mut Option<Foreign<T>>,
    ) -> Result<Option<Operand<'a, T>>, Failure> {
        let heads = self.heads.shape()?;
        Ok(match (x, out) {
            (None, None) => None,
            (None, Some(_)) => return Err(Failure::argument(format!("{name} is null and {name}_out is not"))),
            (Some(x), None) => Some(Operand::in_place(x, heads)),
            (Some(x), Some(out)) => Some(Operand::copy(x, heads, out, self.out_heads.shape()?)),
        })
    }
}

/// The values of a table have one of two types and live for one call, so what they are used for comes as a function.
fn with_table<T: Scalar>(
    gpu: &Gpu,
    table: &PosencTable,
    then: impl FnOnce(Option<Table<'_, T>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if table.cos.data == 0 {
        return then(None);
    }
    let mut flag = table.beyond_flag.optional::<u32>(gpu, "beyond_flag")?;
    let beyond = match table.beyond {
        0 => Beyond::Clamp,
        1 => Beyond::Nan(write(&mut flag)),
        other => return Err(unknown("beyond", other)),
    };
    let (rows, stride) = (size("table.rows", table.rows)?, size("table.stride", table.stride)?);
    let own = match T::NAME {
        "f32" => POSENC_F32,
        "f16" => POSENC_F16,
        _ => POSENC_BF16,
    };
    if table.element == POSENC_F32 {
        let (cos, sin) = (table.cos.get::<f32>(gpu, "cos")?, table.sin.optional::<f32>(gpu, "sin")?);
        let values = TableValues::F32 { cos: &cos, sin: read(&sin) };
        then(Some(Table { values, rows, stride, beyond }))
    } else if table.element == own {
        let (cos, sin) = (table.cos.get::<T>(gpu, "cos")?, table.sin.optional::<T>(gpu, "sin")?);
        let values = TableValues::Same { cos: &cos, sin: read(&sin) };
        then(Some(Table { values, rows, stride, beyond }))
    } else {
        let text = format!("table.element is {}, it must be POSENC_F32 or the tensors' own ({own})", table.element);
        Err(Failure::argument(text))
    }
}
