//! Sinusoids, written and added.

use posenc::Gpu;
use posenc::embed::{Frequencies, Odd, Sinusoid, SinusoidPlan, Wave};

use crate::embed::PosencTokens;
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencPositions, PosencStatus, Versioned, call, factor, free, make, make_plan,
    pairing, plans, size, switch, unknown, with_plan,
};

/// Of an odd number of channels, the last one: is refused.
pub const POSENC_ODD_REFUSE: u32 = 0;
/// holds 0
pub const POSENC_ODD_ZERO: u32 = 1;
/// holds the first wave of one more pair
pub const POSENC_ODD_LONGER: u32 = 2;

/// Frequencies: as the formula says.
pub const POSENC_FREQUENCIES_EXACT: u32 = 0;
/// rounded to f32
pub const POSENC_FREQUENCIES_F32: u32 = 1;
/// rounded to f32, then to f16
pub const POSENC_FREQUENCIES_F16: u32 = 2;
/// rounded to f32, then to bf16
pub const POSENC_FREQUENCIES_BF16: u32 = 3;

/// Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 - shift))`.
///
/// Of positions, of timesteps, and of the axes of a grid.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSinusoidSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSinusoidSpec)`
    pub size: u32,
    /// channels
    pub dim: u64,
    /// `POSENC_INTERLEAVED` (the paper) or `POSENC_HALF`
    pub pairing: u32,
    /// 1: the cosine comes first
    pub cosine_first: u32,
    /// `POSENC_ODD_...`
    pub odd: u32,
    /// `POSENC_FREQUENCIES_...`
    pub frequencies: u32,
    /// taken off half of `dim` in the exponent: 0 in the paper
    pub shift: f64,
    /// 10000 in the paper
    pub max_period: f64,
    /// multiplies the position: 1 in the paper
    pub scale: f64,
    /// added to the position
    pub offset: i64,
    /// 1: the position `padding` gives zeros
    pub has_padding: u32,
    /// 0
    pub reserved: u32,
    /// see `has_padding`; `offset` included
    pub padding: i64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSinusoidSpec {}

impl PosencSinusoidSpec {
    pub(crate) fn sinusoid(&self) -> Result<Sinusoid, Failure> {
        Ok(Sinusoid {
            pairing: pairing(self.pairing)?,
            first: if switch("cosine_first", self.cosine_first)? { Wave::Cosine } else { Wave::Sine },
            odd: match self.odd {
                POSENC_ODD_REFUSE => Odd::Refuse,
                POSENC_ODD_ZERO => Odd::Zero,
                POSENC_ODD_LONGER => Odd::Longer,
                other => return Err(unknown("odd", other)),
            },
            shift: self.shift,
            max_period: self.max_period,
            scale: factor("scale", self.scale)?,
            offset: self.offset,
            padding: switch("has_padding", self.has_padding)?.then_some(self.padding),
            frequencies: match self.frequencies {
                POSENC_FREQUENCIES_EXACT => Frequencies::Exact,
                POSENC_FREQUENCIES_F32 => Frequencies::F32,
                POSENC_FREQUENCIES_F16 => Frequencies::F16,
                POSENC_FREQUENCIES_BF16 => Frequencies::Bf16,
                other => return Err(unknown("frequencies", other)),
            },
            ..Sinusoid::new(size("dim", self.dim)?)
        })
    }
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSinusoidCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSinusoidCall)`
    pub size: u32,
    /// written, or added to
    pub x: PosencBuffer,
    /// the shape of `x`
    pub tokens: PosencTokens,
    /// where the tokens stand
    pub positions: PosencPositions,
    /// multiplies `x` before the sinusoid is added; `posenc_sinusoid_write` does not look at it
    pub scale: f64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSinusoidCall {}

/// Sinusoids of positions on a device, for one element type.
pub struct PosencSinusoid {
    plan: plans!(SinusoidPlan),
    gpu: Gpu,
}

/// Makes a plan: uploads the frequencies and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_new(
    gpu: *const PosencGpu,
    spec: *const PosencSinusoidSpec,
    element: u32,
    out: *mut *mut PosencSinusoid,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = spec.sinusoid()?;
            let plan = make_plan!(element, T => SinusoidPlan::<T>::new(gpu, &spec)?);
            Ok(PosencSinusoid { plan, gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_free(sinusoid: *mut PosencSinusoid) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(sinusoid) }
}

/// Writes sinusoids, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_write(
    sinusoid: *const PosencSinusoid,
    call: *const PosencSinusoidCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { self::call("sinusoid", sinusoid, call, |sinusoid, call| run(sinusoid, call, None)) }
}

/// `x = x * scale + sinusoid` in place, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_sinusoid_add(
    sinusoid: *const PosencSinusoid,
    call: *const PosencSinusoidCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("sinusoid", sinusoid, call, |sinusoid, call| run(sinusoid, call, Some(factor("scale", call.scale)?)))
    }
}

fn run(sinusoid: &PosencSinusoid, call: &PosencSinusoidCall, scale: Option<f64>) -> Result<(), Failure> {
    let gpu = &sinusoid.gpu;
    let positions = call.positions.get(gpu)?;
    let positions = positions.positions()?;
    Ok(with_plan!(&sinusoid.plan, plan => {
        let (mut x, tokens) = (call.x.get(gpu, "x")?, call.tokens.shape()?);
        match scale {
            None => plan.write(&mut x, tokens, positions),
            Some(scale) => plan.add(&mut x, tokens, positions, scale),
        }
    })?)
}
