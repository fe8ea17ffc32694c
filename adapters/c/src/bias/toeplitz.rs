//! A bias on a device: written, added to logits, or given to a softmax.

use std::any::Any;

use cudarc::driver::DevicePtr;
use posenc::{Bias, BiasPlan, Gpu, Scalar};

use crate::bias::{
    PosencAlibiSpec, PosencFireSpec, PosencKerpleSpec, PosencLogits, PosencPlaces, PosencRowSpec, PosencSandwichSpec,
    PosencSlopesSpec, PosencT5Spec,
};
use crate::{
    Failure, OfElement, PosencBuffer, PosencGpu, PosencStatus, Versioned, borrow_mut, call, free, guarded, make,
    make_plan, place, plans, size, switch, versioned, with_plan,
};

/// One call that writes or adds a bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencBiasCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencBiasCall)`
    pub size: u32,
    /// written, or added to
    pub x: PosencBuffer,
    /// the shape of `x`
    pub shape: PosencLogits,
    /// where queries and keys sit
    pub places: PosencPlaces,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencBiasCall {}

/// One call that takes a T5 table from the device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSetTableCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSetTableCall)`
    pub size: u32,
    /// `[buckets, heads]` of f32
    pub table: PosencBuffer,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSetTableCall {}

type BiasPlans = plans!(BiasPlan);

/// A bias on a device, for one element type of logits.
pub struct PosencBias {
    plan: BiasPlans,
    gpu: Gpu,
}

impl PosencBias {
    pub(crate) fn new(gpu: &Gpu, plan: BiasPlans) -> Self {
        Self { plan, gpu: gpu.clone() }
    }

    /// The plan, if it is for this element type.
    pub(crate) fn of<T: Scalar>(&self) -> Result<&BiasPlan<T>, Failure> {
        let (plan, element): (&dyn Any, _) = match &self.plan {
            OfElement::F32(plan) => (plan, "f32"),
            OfElement::F16(plan) => (plan, "f16"),
            OfElement::Bf16(plan) => (plan, "bf16"),
        };
        plan.downcast_ref()
            .ok_or_else(|| Failure::argument(format!("the bias is for {element}, the logits are {}", T::NAME)))
    }
}

/// What constructors share.
///
/// # Safety
/// As `make`.
unsafe fn make_bias<S: Versioned>(
    gpu: *const PosencGpu,
    spec: *const S,
    out: *mut *mut PosencBias,
    new: impl FnOnce(&Gpu, &S) -> Result<BiasPlans, Failure>,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { make(gpu, spec, out, |gpu, spec| Ok(PosencBias::new(gpu, new(gpu, spec)?))) }
}

fn plans(gpu: &Gpu, bias: Bias, key_only: u32, element: u32) -> Result<BiasPlans, Failure> {
    let key_only = switch("key_only", key_only)?;
    Ok(make_plan!(element, T => plan::<T>(gpu, bias, key_only)?))
}

fn plan<T: Scalar>(gpu: &Gpu, bias: Bias, key_only: bool) -> Result<BiasPlan<T>, Failure> {
    Ok(if key_only { BiasPlan::key_only(gpu, bias) } else { BiasPlan::new(gpu, bias) }?)
}

/// Makes a plan of ALiBi: uploads the slopes and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_alibi_new(
    gpu: *const PosencGpu,
    spec: *const PosencAlibiSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { make_bias(gpu, spec, out, |gpu, spec| plans(gpu, Bias::Slopes(&spec.slopes()?), spec.key_only, element)) }
}

/// Makes a plan of slopes of the caller.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_slopes_new(
    gpu: *const PosencGpu,
    spec: *const PosencSlopesSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises, `left` and `right` too.
    unsafe { make_bias(gpu, spec, out, |gpu, spec| plans(gpu, Bias::Slopes(&spec.slopes()?), spec.key_only, element)) }
}

/// Makes a plan of T5's bias.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_t5_new(
    gpu: *const PosencGpu,
    spec: *const PosencT5Spec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises, `table` too.
    unsafe {
        make_bias(gpu, spec, out, |gpu, spec| {
            if spec.table.is_null() {
                let (t5, heads) = (spec.t5()?, size("heads", spec.heads)?);
                return Ok(make_plan!(element, T => BiasPlan::<T>::t5(gpu, t5, heads)?));
            }
            plans(gpu, Bias::Toeplitz(&spec.row()?), 0, element)
        })
    }
}

/// Makes a plan of any law of distance.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_row_new(
    gpu: *const PosencGpu,
    spec: *const PosencRowSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises, `values` too.
    unsafe { make_bias(gpu, spec, out, |gpu, spec| plans(gpu, Bias::Toeplitz(&spec.row()?), spec.key_only, element)) }
}

/// Makes a plan of KERPLE's bias.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_kerple_new(
    gpu: *const PosencGpu,
    spec: *const PosencKerpleSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises, `p` and `a` too.
    unsafe {
        make_bias(gpu, spec, out, |gpu, spec| {
            plans(gpu, Bias::Toeplitz(&spec.kerple()?.row(spec.least..=spec.most)?), 0, element)
        })
    }
}

/// Makes a plan of Sandwich's bias.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_sandwich_new(
    gpu: *const PosencGpu,
    spec: *const PosencSandwichSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { make_bias(gpu, spec, out, |gpu, spec| plans(gpu, Bias::Toeplitz(&spec.row()?), 0, element)) }
}

/// Makes a plan of FIRE's bias.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_fire_new(
    gpu: *const PosencGpu,
    spec: *const PosencFireSpec,
    element: u32,
    out: *mut *mut PosencBias,
) -> PosencStatus {
    // SAFETY: as the caller promises, the layers too.
    unsafe {
        make_bias(gpu, spec, out, |gpu, spec| {
            let (fire, reach) = (spec.fire()?, size("reach", spec.reach)?);
            Ok(make_plan!(element, T => BiasPlan::<T>::fire(gpu, &fire, reach)?))
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_free(bias: *mut PosencBias) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(bias) }
}

/// Writes the bias of every query and key, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_write(bias: *const PosencBias, call: *const PosencBiasCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("bias", bias, call, |bias, call| {
            let (shape, places) = (call.shape.shape()?, call.places.get(&bias.gpu)?);
            let places = places.places()?;
            Ok(with_plan!(&bias.plan, plan => plan.write(&mut call.x.get(&bias.gpu, "x")?, &shape, &places))?)
        })
    }
}

/// Adds the bias to logits in place, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_add(bias: *const PosencBias, call: *const PosencBiasCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("bias", bias, call, |bias, call| {
            let (shape, places) = (call.shape.shape()?, call.places.get(&bias.gpu)?);
            let places = places.places()?;
            Ok(with_plan!(&bias.plan, plan => plan.add(&mut call.x.get(&bias.gpu, "x")?, &shape, &places))?)
        })
    }
}

/// Takes a new T5 table from the device, in one kernel; the plan was made without one.
///
/// # Safety
/// The rules at the top; no other call uses `bias` at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_set_table(bias: *mut PosencBias, call: *const PosencSetTableCall) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let (bias, call) = unsafe { (borrow_mut("bias", bias)?, versioned("call", call)?) };
        let table = call.table.get(&bias.gpu, "table")?;
        Ok(with_plan!(&mut bias.plan, plan => plan.set_table(&table))?)
    })
}

/// Gives the numbers of a plan on the device, f32, to be read or trained in place: 0 the row `[heads, distances]` or the
/// slopes of the past, 1 those of the future. They live as long as the plan.
///
/// # Safety
/// The rules at the top; no other call uses `bias` at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_bias_numbers(
    bias: *mut PosencBias,
    which: u32,
    out: *mut PosencBuffer,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let PosencBias { plan, gpu } = unsafe { borrow_mut("bias", bias) }?;
        let out = place("out", out)?;
        let numbers = with_plan!(plan, plan => match which {
            0 if plan.row_mut().is_some() => plan.row_mut(),
            0 => plan.slopes_mut().map(|(left, _)| left),
            1 => plan.slopes_mut().map(|(_, right)| right),
            _ => None,
        });
        let Some(numbers) = numbers else {
            return Err(Failure::argument(format!("the bias has no numbers {which}")));
        };
        let (data, _order) = numbers.device_ptr(gpu.stream());
        // SAFETY: `place` refused null, and the caller promises that it points to a buffer.
        unsafe { out.write(PosencBuffer { data, len: numbers.len() as u64 }) };
        Ok(())
    })
}
