//! Gradients of a bias's parameters: T5's table, ALiBi's slopes, KERPLE's numbers, a row, FIRE's network.

use posenc::{DistanceGradPlan, FireGradPlan, Gpu};

use crate::bias::{PosencFireSpec, PosencKerpleSpec, PosencLogits, PosencPlaces, PosencRowSpec, PosencT5Spec};
use crate::memory::read;
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencStatus, Versioned, borrow, call, factor, free, give, make, make_plan,
    plans, size, with_plan,
};

/// The heads whose slopes have a gradient.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSlopesGradSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSlopesGradSpec)`
    pub size: u32,
    /// heads
    pub heads: u64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSlopesGradSpec {}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencDistanceGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencDistanceGradCall)`
    pub size: u32,
    /// the gradient of every logit after the bias
    pub grad: PosencBuffer,
    /// its shape
    pub shape: PosencLogits,
    /// where queries and keys sit
    pub places: PosencPlaces,
    /// `[batch, heads, queries]` of f32: those that multiplied the bias; or none
    pub gates: PosencBuffer,
    /// f32, written, as many as `..._len` says: T5 `[buckets, heads]`, slopes and KERPLE `[2, heads]`, a row
    /// `[heads, distances]`, FIRE `c`, `threshold` and its four layers in their order
    pub out: PosencBuffer,
    /// multiplies the sums: 1
    pub factor: f32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencDistanceGradCall {}

/// Runs a call on a handle's plan, of a distance bias or of FIRE: they share no type.
macro_rules! apply_grad {
    ($grad:expr, $call:expr) => {
        call("grad", $grad, $call, |grad, call| {
            let (gpu, shape) = (&grad.gpu, call.shape.shape()?);
            let places = call.places.get(gpu)?;
            let (gates, mut out) = (call.gates.optional(gpu, "gates")?, call.out.get(gpu, "out")?);
            let factor = factor("factor", call.factor)?;
            Ok(with_plan!(&grad.plan, plan => {
                let grad = call.grad.get(gpu, "grad")?;
                plan.apply((&grad, shape), &places.places()?, read(&gates), factor, &mut out)
            })?)
        })
    };
}

/// Gradients of a distance bias on a device, for one element type of logits.
pub struct PosencDistanceGrad {
    plan: plans!(DistanceGradPlan),
    gpu: Gpu,
}

/// What constructors share: `room` is the shape of the largest call.
///
/// # Safety
/// As `make`, and `room` is null or points to a shape.
unsafe fn make_grad<S: Versioned>(
    gpu: *const PosencGpu,
    spec: *const S,
    room: *const PosencLogits,
    out: *mut *mut PosencDistanceGrad,
    new: impl FnOnce(&Gpu, &S, &posenc::Logits) -> Result<plans!(DistanceGradPlan), Failure>,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let room = borrow("room", room)?.shape()?;
            Ok(PosencDistanceGrad { plan: new(gpu, spec, &room)?, gpu: gpu.clone() })
        })
    }
}

/// Makes a plan for T5's table; `room` is the shape of the largest call.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_t5_new(
    gpu: *const PosencGpu,
    spec: *const PosencT5Spec,
    room: *const PosencLogits,
    element: u32,
    out: *mut *mut PosencDistanceGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make_grad(gpu, spec, room, out, |gpu, spec, room| {
            let (t5, heads) = (spec.t5()?, size("heads", spec.heads)?);
            Ok(make_plan!(element, T => DistanceGradPlan::<T>::t5(gpu, t5, heads, room)?))
        })
    }
}

/// Makes a plan for slopes; `room` is the shape of the largest call.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_slopes_new(
    gpu: *const PosencGpu,
    spec: *const PosencSlopesGradSpec,
    room: *const PosencLogits,
    element: u32,
    out: *mut *mut PosencDistanceGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make_grad(gpu, spec, room, out, |gpu, spec, room| {
            let heads = size("heads", spec.heads)?;
            Ok(make_plan!(element, T => DistanceGradPlan::<T>::slopes(gpu, heads, room)?))
        })
    }
}

/// Makes a plan for a row; `room` is the shape of the largest call. The row's numbers are not looked at.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_row_new(
    gpu: *const PosencGpu,
    spec: *const PosencRowSpec,
    room: *const PosencLogits,
    element: u32,
    out: *mut *mut PosencDistanceGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make_grad(gpu, spec, room, out, |gpu, spec, room| {
            let heads = size("heads", spec.heads)?;
            let last = i64::try_from(spec.distances).ok().and_then(|n| spec.first.checked_add(n - 1));
            let Some(last) = last else {
                let (first, n) = (spec.first, spec.distances);
                return Err(Failure::argument(format!(
                    "a row of {n} distances from {first}, both must lie within 2^30"
                )));
            };
            Ok(make_plan!(element, T => DistanceGradPlan::<T>::row(gpu, heads, spec.first..=last, room)?))
        })
    }
}

/// Makes a plan for KERPLE's `p` and `a`, at their present values; `room` is the shape of the largest call.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_kerple_new(
    gpu: *const PosencGpu,
    spec: *const PosencKerpleSpec,
    room: *const PosencLogits,
    element: u32,
    out: *mut *mut PosencDistanceGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises, `p` and `a` too.
    unsafe {
        make_grad(gpu, spec, room, out, |gpu, spec, room| {
            let (kerple, distances) = (spec.kerple()?, spec.least..=spec.most);
            Ok(make_plan!(element, T => DistanceGradPlan::<T>::kerple(gpu, &kerple, distances.clone(), room)?))
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_free(grad: *mut PosencDistanceGrad) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(grad) }
}

/// Gives the numbers of the gradient.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_len(grad: *const PosencDistanceGrad, out: *mut u64) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { give(out, || Ok(with_plan!(&borrow("grad", grad)?.plan, plan => plan.len()))) }
}

/// Writes the gradient of the parameters, in one kernel; two calls of one plan must not run at the same time.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_distance_grad_apply(
    grad: *const PosencDistanceGrad,
    call: *const PosencDistanceGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { apply_grad!(grad, call) }
}

/// Gradients of FIRE's parameters on a device, for one element type of logits.
pub struct PosencFireGrad {
    plan: plans!(FireGradPlan),
    gpu: Gpu,
}

/// Makes a plan for FIRE's parameters, at their present values; `room` is the shape of the largest call.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fire_grad_new(
    gpu: *const PosencGpu,
    spec: *const PosencFireSpec,
    room: *const PosencLogits,
    element: u32,
    out: *mut *mut PosencFireGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises, the layers too.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let (fire, reach, room) = (spec.fire()?, size("reach", spec.reach)?, borrow("room", room)?.shape()?);
            let plan = make_plan!(element, T => FireGradPlan::<T>::new(gpu, &fire, reach, &room)?);
            Ok(PosencFireGrad { plan, gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fire_grad_free(grad: *mut PosencFireGrad) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(grad) }
}

/// Gives the numbers of the gradient.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fire_grad_len(grad: *const PosencFireGrad, out: *mut u64) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { give(out, || Ok(with_plan!(&borrow("grad", grad)?.plan, plan => plan.len()))) }
}

/// Writes the gradient of the parameters, in one kernel; two calls of one plan must not run at the same time.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fire_grad_apply(
    grad: *const PosencFireGrad,
    call: *const PosencDistanceGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { apply_grad!(grad, call) }
}
