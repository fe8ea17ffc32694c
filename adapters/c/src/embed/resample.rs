//! Resampling of a learned table of an image's tokens.

use posenc::Gpu;
use posenc::embed::{Filter, GridSize, Resample, ResamplePlan};

use crate::{
    Failure, PosencBuffer, PosencGpu, PosencStatus, Versioned, call, free, make, make_plan, plans, size, switch,
    unknown, with_plan,
};

/// Filters: the two nearest on each axis.
pub const POSENC_BILINEAR: u32 = 0;
/// The four nearest on each axis, by Keys' cubic.
pub const POSENC_BICUBIC: u32 = 1;

/// What to compute.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencResampleSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencResampleSpec)`
    pub size: u32,
    /// rows and columns of the table
    pub from: [u64; 2],
    /// rows and columns of the one that is made
    pub to: [u64; 2],
    /// tokens before the grid, copied
    pub prefix: u64,
    /// `POSENC_BILINEAR` or `POSENC_BICUBIC`
    pub filter: u32,
    /// 1: the filter widens where the grid shrinks
    pub antialias: u32,
    /// new over old of rows and columns; 0 and 0: the quotient of the sizes
    pub factors: [f64; 2],
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencResampleSpec {}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencResampleCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencResampleCall)`
    pub size: u32,
    /// `[prefix + from rows * columns, dim]`: read, and written by the gradient
    pub table: PosencBuffer,
    /// `[prefix + to rows * columns, dim]`: written, and read by the gradient
    pub resampled: PosencBuffer,
    /// channels
    pub dim: u64,
    /// 1: the gradient is added to what is there
    pub accumulate: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencResampleCall {}

/// Resampling on a device, for one element type.
pub struct PosencResample {
    plan: plans!(ResamplePlan),
    gpu: Gpu,
}

fn resample(spec: &PosencResampleSpec) -> Result<Resample, Failure> {
    let grid = |[rows, columns]: [u64; 2]| -> Result<GridSize, Failure> {
        Ok(GridSize::image(size("rows", rows)?, size("columns", columns)?))
    };
    Ok(Resample {
        filter: match spec.filter {
            POSENC_BILINEAR => Filter::Bilinear,
            POSENC_BICUBIC => Filter::Bicubic,
            other => return Err(unknown("filter", other)),
        },
        antialias: switch("antialias", spec.antialias)?,
        factors: (spec.factors != [0.0, 0.0]).then_some(spec.factors),
        prefix: size("prefix", spec.prefix)?,
        ..Resample::new(grid(spec.from)?, grid(spec.to)?)
    })
}

/// Makes a plan: uploads the weights and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_resample_new(
    gpu: *const PosencGpu,
    spec: *const PosencResampleSpec,
    element: u32,
    out: *mut *mut PosencResample,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = resample(spec)?;
            Ok(PosencResample { plan: make_plan!(element, T => ResamplePlan::<T>::new(gpu, &spec)?), gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_resample_free(resample: *mut PosencResample) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(resample) }
}

/// Resamples a table, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_resample_write(
    resample: *const PosencResample,
    call: *const PosencResampleCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("resample", resample, call, |resample, call| {
            let (gpu, dim) = (&resample.gpu, size("dim", call.dim)?);
            Ok(with_plan!(&resample.plan, plan => {
                plan.write(&mut call.resampled.get(gpu, "resampled")?, &call.table.get(gpu, "table")?, dim)
            })?)
        })
    }
}

/// The gradient of the table from that of the resampled one, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_resample_grad(
    resample: *const PosencResample,
    call: *const PosencResampleCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("resample", resample, call, |resample, call| {
            let (gpu, dim) = (&resample.gpu, size("dim", call.dim)?);
            let accumulate = switch("accumulate", call.accumulate)?;
            Ok(with_plan!(&resample.plan, plan => {
                let grad = call.resampled.get(gpu, "resampled")?;
                plan.grad(&mut call.table.get(gpu, "table")?, &grad, dim, accumulate)
            })?)
        })
    }
}
