//! Sinusoids at fractional times: the timesteps of diffusion models.

use posenc::Gpu;
use posenc::embed::TimestepPlan;

use crate::embed::PosencSinusoidSpec;
use crate::{
    POSENC_F32, POSENC_F64, PosencBuffer, PosencGpu, PosencStatus, Versioned, call, free, make, make_plan, plans, size,
    unknown, with_plan,
};

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencTimestepCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencTimestepCall)`
    pub size: u32,
    /// `[times, dim]`, written
    pub out: PosencBuffer,
    /// `[times]`
    pub t: PosencBuffer,
    /// rows
    pub times: u64,
    /// the type of `t`: `POSENC_F32` or `POSENC_F64`
    pub t_element: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencTimestepCall {}

/// Sinusoids of times on a device, for one element type.
pub struct PosencTimestep {
    plan: plans!(TimestepPlan),
    gpu: Gpu,
}

/// Makes a plan: uploads the frequencies and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_timestep_new(
    gpu: *const PosencGpu,
    spec: *const PosencSinusoidSpec,
    element: u32,
    out: *mut *mut PosencTimestep,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = spec.sinusoid()?;
            let plan = make_plan!(element, T => TimestepPlan::<T>::new(gpu, &spec)?);
            Ok(PosencTimestep { plan, gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_timestep_free(timestep: *mut PosencTimestep) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(timestep) }
}

/// Writes one row for each time, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_timestep_write(
    timestep: *const PosencTimestep,
    call: *const PosencTimestepCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("timestep", timestep, call, |timestep, call| {
            let (gpu, times) = (&timestep.gpu, size("times", call.times)?);
            with_plan!(&timestep.plan, plan => {
                let mut out = call.out.get(gpu, "out")?;
                match call.t_element {
                    POSENC_F32 => plan.write(&mut out, &call.t.get::<f32>(gpu, "t")?, times)?,
                    POSENC_F64 => plan.write(&mut out, &call.t.get::<f64>(gpu, "t")?, times)?,
                    other => return Err(unknown("t_element", other)),
                }
            });
            Ok(())
        })
    }
}
