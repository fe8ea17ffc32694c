//! RoPE.

use std::ffi::{CStr, c_char};

use half::{bf16, f16};
use posenc::rotate::{Angles, Axes, Beyond, Operand, Table, TableValues, Yarn};
use posenc::{Direction, Heads, Pairing, Rope, RopePlan, Scalar, Scaling};

use crate::{
    Failure, Foreign, POSENC_BF16, POSENC_F16, POSENC_F32, PosencGpu, PosencPositions, PosencStatus, borrow, free,
    guarded, place, size, slice, unknown, versioned, with_positions,
};

/// The version of `PosencRopeSpec` in this header.
pub const POSENC_ROPE_SPEC_VERSION: u32 = 1;
/// The version of `PosencRopeCall` in this header.
pub const POSENC_ROPE_CALL_VERSION: u32 = 1;

/// Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral.
pub const POSENC_HALF: u32 = 0;
/// Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek.
pub const POSENC_INTERLEAVED: u32 = 1;
/// `pairing_out`: where it was read.
pub const POSENC_SAME: u32 = 2;

/// Angles: exact at every position.
pub const POSENC_EXACT: u32 = 0;
/// The product of an f32 frequency and an f32 position, as Hugging Face's models compute it.
pub const POSENC_HF_COMPAT: u32 = 1;

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
    /// `POSENC_ROPE_SPEC_VERSION`
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
    /// where a pair is written, `POSENC_SAME` or the other pairing; out of place alone
    pub pairing_out: u32,
    /// `POSENC_EXACT` or `POSENC_HF_COMPAT`
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
    /// `POSENC_AXES_...`
    pub axes: u32,
    /// sizes of axes, at most 4
    pub axis_count: u32,
    /// pairs of each axis
    pub axis_sizes: [u32; 4],
}

/// Queries or keys: an address on the device, and the sizes and strides of `[batch, tokens, heads, dim]`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencHeads {
    /// device address of the buffer; 0: there is none
    pub data: u64,
    /// elements that the buffer holds
    pub len: u64,
    /// heads of each token
    pub heads: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence, token and head to the next; channels are contiguous
    pub strides: [u64; 3],
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencRopeCall {
    /// `POSENC_ROPE_CALL_VERSION`
    pub version: u32,
    /// `sizeof(PosencRopeCall)`
    pub size: u32,
    /// sequences
    pub batch: u64,
    /// tokens of each
    pub tokens: u64,
    /// channels of a head
    pub dim: u64,
    /// queries
    pub q: PosencHeads,
    /// rotated queries; `data` 0: in place
    pub q_out: PosencHeads,
    /// keys; `data` 0: there are none
    pub k: PosencHeads,
    /// rotated keys; `data` 0: in place
    pub k_out: PosencHeads,
    /// not 0: `q` and `k` are parts of one buffer, `q.data`, which is rotated in place; `k.data` is the same
    pub packed: u32,
    /// 0 forward, 1 back: the inverse, and the gradient
    pub inverse: u32,
    /// where the tokens stand
    pub positions: PosencPositions,
    /// not 0: the table below is used in place of the spec's angles
    pub by_table: u32,
    /// 0
    pub reserved: u32,
    /// device address of the cosines, by row
    pub cos: u64,
    /// elements there
    pub cos_len: u64,
    /// device address of the sines; 0: they follow the cosines in each row
    pub sin: u64,
    /// elements there
    pub sin_len: u64,
    /// positions that have a row
    pub table_rows: u64,
    /// elements from one row to the next
    pub table_stride: u64,
    /// `POSENC_F32`, or the tensors' type
    pub table_type: u32,
    /// a position without a row gives: 0 the nearest row, 1 NaN
    pub beyond: u32,
    /// device address of a 32-bit word that then becomes 1; or 0
    pub beyond_flag: u64,
}

/// RoPE on a device, for one element type.
pub struct PosencRope {
    plan: Plan,
    gpu: posenc::Gpu,
}

enum Plan {
    F32(RopePlan<f32>),
    F16(RopePlan<f16>),
    Bf16(RopePlan<bf16>),
}

fn plan(gpu: &PosencGpu, rope: &Rope, element: u32) -> Result<PosencRope, Failure> {
    let gpu = &gpu.gpu;
    let plan = match element {
        POSENC_F32 => Plan::F32(RopePlan::new(gpu, rope)?),
        POSENC_F16 => Plan::F16(RopePlan::new(gpu, rope)?),
        POSENC_BF16 => Plan::Bf16(RopePlan::new(gpu, rope)?),
        _ => return Err(unknown("element", element)),
    };
    Ok(PosencRope { plan, gpu: gpu.clone() })
}

/// # Safety
/// `spec.divisors` is null or points to `divisor_count` values.
unsafe fn rope(spec: &PosencRopeSpec) -> Result<Rope, Failure> {
    let pairing = |name: &str, value: u32| match value {
        POSENC_HALF => Ok(Pairing::Half),
        POSENC_INTERLEAVED => Ok(Pairing::Interleaved),
        _ => Err(unknown(name, value)),
    };
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
            // SAFETY: the caller promises as many values as it counts.
            Scaling::Divisors(unsafe { slice("divisors", spec.divisors, spec.divisor_count) }?.to_vec())
        }
        other => return Err(unknown("scaling", other)),
    };
    let Some(sizes) = spec.axis_sizes.get(..spec.axis_count as usize) else {
        return Err(Failure::argument(format!("axis_count is {}, at most 4 are allowed", spec.axis_count)));
    };
    let sizes = sizes.iter().map(|&size| size as usize).collect();
    Ok(Rope {
        offset: size("offset", spec.offset)?,
        pairing: pairing("pairing", spec.pairing)?,
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
            other => Some(pairing("pairing_out", other)?),
        },
        angles: match spec.angles {
            POSENC_EXACT => Angles::Exact,
            POSENC_HF_COMPAT => Angles::HfCompat,
            other => return Err(unknown("angles", other)),
        },
        ..Rope::new(size("rotary", spec.rotary)?, spec.base)
    })
}

/// Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).
///
/// # Safety
/// Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_new(
    gpu: *const PosencGpu,
    spec: *const PosencRopeSpec,
    element: u32,
    out: *mut *mut PosencRope,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = unsafe { borrow("gpu", gpu) }?;
        // SAFETY: the caller promises that it points to what its type says.
        let spec = unsafe { versioned("spec", spec, POSENC_ROPE_SPEC_VERSION) }?;
        let out = place("out", out)?;
        // SAFETY: the caller promises that `divisors` holds what `divisor_count` says.
        let made = plan(gpu, &unsafe { rope(spec) }?, element)?;
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// Makes the plan of layer `layer` of a model from its `config.json` (Hugging Face), a text that ends in a zero byte.
///
/// `length` is the tokens of the longest sequence, for scalings that depend on it.
///
/// # Safety
/// Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
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
        let gpu = unsafe { borrow("gpu", gpu) }?;
        // SAFETY: the caller promises that it points to what its type says.
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

/// Frees a plan; null is allowed. Launched calls are not waited for: their kernels need nothing of it but its tables, so
/// synchronise the stream first.
///
/// # Safety
/// `rope` is null or comes from a constructor and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_free(rope: *mut PosencRope) -> PosencStatus {
    // SAFETY: as the caller promises.
    guarded(|| unsafe { free(rope) })
}

/// Rotates queries, and keys if there are any, in one kernel.
///
/// # Safety
/// `rope` comes from a constructor, `call` is null or points to what its type says, and each device address holds as many
/// elements as the call says until the kernel has run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_rope_rotate(rope: *const PosencRope, call: *const PosencRopeCall) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let rope = unsafe { borrow("rope", rope) }?;
        // SAFETY: the caller promises that it points to what its type says.
        let call = unsafe { versioned("call", call, POSENC_ROPE_CALL_VERSION) }?;
        match &rope.plan {
            Plan::F32(plan) => rotate(plan, rope, call),
            Plan::F16(plan) => rotate(plan, rope, call),
            Plan::Bf16(plan) => rotate(plan, rope, call),
        }
    })
}

impl PosencHeads {
    fn shape(&self, call: &PosencRopeCall) -> Result<Heads, Failure> {
        let [batch, token, head] = self.strides;
        Ok(Heads {
            batch: size("batch", call.batch)?,
            tokens: size("tokens", call.tokens)?,
            heads: size("heads", self.heads)?,
            dim: size("dim", call.dim)?,
            offset: size("an offset", self.offset)?,
            strides: [size("a stride", batch)?, size("a stride", token)?, size("a stride", head)?],
        })
    }
}

fn rotate<T: Scalar>(plan: &RopePlan<T>, rope: &PosencRope, call: &PosencRopeCall) -> Result<(), Failure> {
    let gpu = &rope.gpu;
    let direction = if call.inverse == 0 { Direction::Forward } else { Direction::Inverse };
    with_positions(gpu, &call.positions, |positions| {
        with_table(gpu, call, |table| {
            let mut q = Foreign::<T>::new(gpu, "q", call.q.data, call.q.len)?;
            let q_heads = call.q.shape(call)?;
            if call.packed != 0 {
                if call.k.data != call.q.data {
                    return Err(Failure::argument("packed queries and keys have one address, these have two".into()));
                }
                let k_heads = call.k.shape(call)?;
                return match table {
                    None => plan.rotate_packed(&mut q, q_heads, k_heads, positions, direction),
                    Some(table) => plan.rotate_packed_by_table(table, &mut q, q_heads, k_heads, positions, direction),
                }
                .map_err(Failure::from);
            }
            let optional = |name: &str, heads: &PosencHeads| {
                (heads.data != 0).then(|| Foreign::<T>::new(gpu, name, heads.data, heads.len)).transpose()
            };
            let mut q_out = optional("q_out", &call.q_out)?;
            let mut k = optional("k", &call.k)?;
            let mut k_out = optional("k_out", &call.k_out)?;
            if k.is_none() && k_out.is_some() {
                return Err(Failure::argument("k is null and k_out is not".into()));
            }
            let q = operand(&mut q, q_heads, q_out.as_mut(), call.q_out.shape(call)?);
            let k = match &mut k {
                None => None,
                Some(k) => Some(operand(k, call.k.shape(call)?, k_out.as_mut(), call.k_out.shape(call)?)),
            };
            match table {
                None => plan.rotate(q, k, positions, direction),
                Some(table) => plan.rotate_by_table(table, q, k, positions, direction),
            }
            .map_err(Failure::from)
        })
    })
}

fn operand<'a, T: Scalar>(
    x: &'a mut Foreign<T>,
    heads: Heads,
    out: Option<&'a mut Foreign<T>>,
    out_heads: Heads,
) -> Operand<'a, T> {
    match out {
        None => Operand::in_place(x, heads),
        Some(out) => Operand::copy(x, heads, out, out_heads),
    }
}

fn with_table<T: Scalar>(
    gpu: &posenc::Gpu,
    call: &PosencRopeCall,
    then: impl FnOnce(Option<Table<'_, T>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if call.by_table == 0 {
        return then(None);
    }
    let mut flag =
        (call.beyond_flag != 0).then(|| Foreign::<u32>::new(gpu, "beyond_flag", call.beyond_flag, 1)).transpose()?;
    let beyond = match call.beyond {
        0 => Beyond::Clamp,
        1 => Beyond::Nan(flag.as_mut().map(|flag| flag as _)),
        other => return Err(unknown("beyond", other)),
    };
    let (rows, stride) = (size("table_rows", call.table_rows)?, size("table_stride", call.table_stride)?);
    let own = match T::NAME {
        "f32" => POSENC_F32,
        "f16" => POSENC_F16,
        _ => POSENC_BF16,
    };
    if call.table_type == POSENC_F32 {
        let cos = Foreign::<f32>::new(gpu, "cos", call.cos, call.cos_len)?;
        let sin = (call.sin != 0).then(|| Foreign::<f32>::new(gpu, "sin", call.sin, call.sin_len)).transpose()?;
        let values = TableValues::F32 { cos: &cos, sin: sin.as_ref().map(|sin| sin as _) };
        then(Some(Table { values, rows, stride, beyond }))
    } else if call.table_type == own {
        let cos = Foreign::<T>::new(gpu, "cos", call.cos, call.cos_len)?;
        let sin = (call.sin != 0).then(|| Foreign::<T>::new(gpu, "sin", call.sin, call.sin_len)).transpose()?;
        let values = TableValues::Same { cos: &cos, sin: sin.as_ref().map(|sin| sin as _) };
        then(Some(Table { values, rows, stride, beyond }))
    } else {
        let text = format!("table_type is {}, it must be POSENC_F32 or the tensors' own ({own})", call.table_type);
        Err(Failure::argument(text))
    }
}
