//! Sinusoids, written and added.

use half::{bf16, f16};
use posenc::embed::{Odd, Sinusoid, SinusoidPlan, Tokens, Wave};
use posenc::{Pairing, Scalar};

use crate::{
    Failure, Foreign, POSENC_BF16, POSENC_F16, POSENC_F32, POSENC_HALF, POSENC_INTERLEAVED, PosencGpu, PosencPositions,
    PosencStatus, borrow, free, guarded, place, size, unknown, versioned, with_positions,
};

/// The version of `PosencSinusoidSpec` in this header.
pub const POSENC_SINUSOID_SPEC_VERSION: u32 = 1;
/// The version of `PosencSinusoidCall` in this header.
pub const POSENC_SINUSOID_CALL_VERSION: u32 = 1;

/// Of an odd number of channels, the last one: is refused.
pub const POSENC_ODD_REFUSE: u32 = 0;
/// holds 0
pub const POSENC_ODD_ZERO: u32 = 1;
/// holds the first wave of one more pair
pub const POSENC_ODD_LONGER: u32 = 2;

/// Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 - shift))`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSinusoidSpec {
    /// `POSENC_SINUSOID_SPEC_VERSION`
    pub version: u32,
    /// `sizeof(PosencSinusoidSpec)`
    pub size: u32,
    /// channels
    pub dim: u64,
    /// `POSENC_INTERLEAVED` (the paper) or `POSENC_HALF`
    pub pairing: u32,
    /// not 0: the cosine comes first
    pub cosine_first: u32,
    /// `POSENC_ODD_...`
    pub odd: u32,
    /// not 0: the position `padding` gives zeros
    pub has_padding: u32,
    /// taken off half of `dim` in the exponent: 0 in the paper
    pub shift: f64,
    /// 10000 in the paper
    pub max_period: f64,
    /// multiplies the position: 1 in the paper
    pub scale: f64,
    /// added to the position
    pub offset: i64,
    /// see `has_padding`
    pub padding: i64,
}

/// One call on a tensor `[batch, tokens, dim]`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSinusoidCall {
    /// `POSENC_SINUSOID_CALL_VERSION`
    pub version: u32,
    /// `sizeof(PosencSinusoidCall)`
    pub size: u32,
    /// sequences
    pub batch: u64,
    /// tokens of each
    pub tokens: u64,
    /// device address of the tensor
    pub data: u64,
    /// elements there
    pub len: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence and one token to the next
    pub strides: [u64; 2],
    /// where the tokens stand
    pub positions: PosencPositions,
    /// 0: the sinusoids are written; else `x = x * scale + sinusoid`
    pub add: u32,
    /// 0
    pub reserved: u32,
    /// see `add`
    pub scale: f64,
}

/// Sinusoids on a device, for one element type.
pub struct PosencSinusoid {
    plan: Plan,
    gpu: posenc::Gpu,
}

enum Plan {
    F32(SinusoidPlan<f32>),
    F16(SinusoidPlan<f16>),
    Bf16(SinusoidPlan<bf16>),
}

/// Makes a plan: uploads the frequencies and loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`, `POSENC_BF16`).
///
/// # Safety
/// Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_new(
    gpu: *const PosencGpu,
    spec: *const PosencSinusoidSpec,
    element: u32,
    out: *mut *mut PosencSinusoid,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = &unsafe { borrow("gpu", gpu) }?.gpu;
        // SAFETY: the caller promises that it points to what its type says.
        let spec = unsafe { versioned("spec", spec, POSENC_SINUSOID_SPEC_VERSION) }?;
        let out = place("out", out)?;
        let spec = sinusoid(spec)?;
        let plan = match element {
            POSENC_F32 => Plan::F32(SinusoidPlan::new(gpu, &spec)?),
            POSENC_F16 => Plan::F16(SinusoidPlan::new(gpu, &spec)?),
            POSENC_BF16 => Plan::Bf16(SinusoidPlan::new(gpu, &spec)?),
            other => return Err(unknown("element", other)),
        };
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(PosencSinusoid { plan, gpu: gpu.clone() }))) };
        Ok(())
    })
}

fn sinusoid(spec: &PosencSinusoidSpec) -> Result<Sinusoid, Failure> {
    Ok(Sinusoid {
        pairing: match spec.pairing {
            POSENC_HALF => Pairing::Half,
            POSENC_INTERLEAVED => Pairing::Interleaved,
            other => return Err(unknown("pairing", other)),
        },
        first: if spec.cosine_first == 0 { Wave::Sine } else { Wave::Cosine },
        odd: match spec.odd {
            POSENC_ODD_REFUSE => Odd::Refuse,
            POSENC_ODD_ZERO => Odd::Zero,
            POSENC_ODD_LONGER => Odd::Longer,
            other => return Err(unknown("odd", other)),
        },
        shift: spec.shift,
        max_period: spec.max_period,
        scale: spec.scale,
        offset: spec.offset,
        padding: (spec.has_padding != 0).then_some(spec.padding),
        ..Sinusoid::new(size("dim", spec.dim)?)
    })
}

/// Frees a plan; null is allowed. Synchronise the stream first.
///
/// # Safety
/// `sinusoid` is null or comes from its constructor and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_free(sinusoid: *mut PosencSinusoid) -> PosencStatus {
    // SAFETY: as the caller promises.
    guarded(|| unsafe { free(sinusoid) })
}

/// Writes sinusoids, or adds them, in one kernel.
///
/// # Safety
/// `sinusoid` comes from its constructor, `call` is null or points to what its type says, and each device address holds as
/// many elements as the call says until the kernel has run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_run(
    sinusoid: *const PosencSinusoid,
    call: *const PosencSinusoidCall,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let sinusoid = unsafe { borrow("sinusoid", sinusoid) }?;
        // SAFETY: the caller promises that it points to what its type says.
        let call = unsafe { versioned("call", call, POSENC_SINUSOID_CALL_VERSION) }?;
        match &sinusoid.plan {
            Plan::F32(plan) => run(plan, &sinusoid.gpu, call),
            Plan::F16(plan) => run(plan, &sinusoid.gpu, call),
            Plan::Bf16(plan) => run(plan, &sinusoid.gpu, call),
        }
    })
}

fn run<T: Scalar>(plan: &SinusoidPlan<T>, gpu: &posenc::Gpu, call: &PosencSinusoidCall) -> Result<(), Failure> {
    with_positions(gpu, &call.positions, |positions| {
        let mut x = Foreign::<T>::new(gpu, "data", call.data, call.len)?;
        let [sequence, token] = call.strides;
        let tokens = Tokens {
            batch: size("batch", call.batch)?,
            tokens: size("tokens", call.tokens)?,
            dim: plan.sinusoid().dim,
            offset: size("offset", call.offset)?,
            strides: [size("a stride", sequence)?, size("a stride", token)?],
        };
        if call.add == 0 {
            return Ok(plan.write(&mut x, tokens, positions)?);
        }
        Ok(plan.add(&mut x, tokens, positions, call.scale)?)
    })
}
