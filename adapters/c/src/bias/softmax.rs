//! The softmax of attention with its bias, and its gradients.

use posenc::{Bias, BiasPlan, Gpu, GradOutputs, LogitsOperand, Order, Scalar, Softmax, SoftmaxInputs, SoftmaxPlan};

use crate::bias::{PosencBias, PosencLogits, PosencPlaces};
use crate::memory::{read, write};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencStatus, Versioned, call, factor, free, make, make_plan, plans, switch,
    unknown, with_plan,
};

/// Orders of scale, softcap and bias: `softcap(scale * s) + bias`.
pub const POSENC_SOFTCAP_THEN_BIAS: u32 = 0;
/// `softcap(scale * s + bias)`
pub const POSENC_BIAS_THEN_SOFTCAP: u32 = 1;
/// `softcap(scale * (s + bias))`
pub const POSENC_BIAS_THEN_SCALE: u32 = 2;

/// What to compute.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSoftmaxSpec)`
    pub size: u32,
    /// multiplies the logit
    pub scale: f32,
    /// the logit's limit; 0: none
    pub softcap: f32,
    /// in which order they act, and the bias
    pub order: u32,
    /// 1: a key may lie at most `left` before its query
    pub has_left: u32,
    /// see `has_left`
    pub left: u32,
    /// 1: a key may lie at most `right` after its query; 0 there is a causal softmax
    pub has_right: u32,
    /// see `has_right`
    pub right: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSoftmaxSpec {}

/// What a softmax and its gradient take beside their logits.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxInputs {
    /// the bias, made for the same element type; null: none
    pub bias: *const PosencBias,
    /// where queries and keys sit
    pub places: PosencPlaces,
    /// `[batch, heads, queries]` of f32, multiply the bias; or none
    pub gates: PosencBuffer,
    /// added last, -inf masks; or none. A gradient does not look at it
    pub mask: PosencBuffer,
    /// the shape of `mask`: each size but the keys' may be 1
    pub mask_shape: PosencLogits,
    /// `[heads]` of f32, logits without keys; or none. A gradient does not look at them
    pub sinks: PosencBuffer,
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSoftmaxCall)`
    pub size: u32,
    /// logits
    pub x: PosencBuffer,
    /// their shape
    pub shape: PosencLogits,
    /// probabilities; none: in place
    pub out: PosencBuffer,
    /// their shape
    pub out_shape: PosencLogits,
    /// bias, places, mask, sinks, gates
    pub inputs: PosencSoftmaxInputs,
    /// `[batch, heads, queries]` of f32, written: the log-sum-exp; or none
    pub lse: PosencBuffer,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencSoftmaxCall {}

/// One call for the gradients of logits and bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSoftmaxGradCall)`
    pub size: u32,
    /// what the softmax gave
    pub probabilities: PosencBuffer,
    /// their shape
    pub probabilities_shape: PosencLogits,
    /// the gradient of the probabilities
    pub grad: PosencBuffer,
    /// its shape
    pub grad_shape: PosencLogits,
    /// the gradient of the logits; none: in place of `grad`
    pub out: PosencBuffer,
    /// its shape
    pub out_shape: PosencLogits,
    /// as in the softmax
    pub inputs: PosencSoftmaxInputs,
    /// the logits, where a softcap needs them
    pub logits: PosencBuffer,
    /// their shape
    pub logits_shape: PosencLogits,
    /// written: the gradient of the bias, laid out as that of the logits; or none
    pub bias_grad: PosencBuffer,
    /// `[batch, heads, queries]` of f32, written: the sum of probability and gradient of each row; or none
    pub dots: PosencBuffer,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencSoftmaxGradCall {}

/// One call for the gradient of the sinks.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSinkGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSinkGradCall)`
    pub size: u32,
    /// `[heads]` of f32, as in the softmax
    pub sinks: PosencBuffer,
    /// of the softmax
    pub lse: PosencBuffer,
    /// of its gradient
    pub dots: PosencBuffer,
    /// `[heads]` of f32, written
    pub grad: PosencBuffer,
    /// the shape of the logits
    pub shape: PosencLogits,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSinkGradCall {}

/// Softmax on a device, for one element type.
pub struct PosencSoftmax {
    plan: plans!(SoftmaxPlan),
    /// of a call without a bias
    none: PosencBias,
    gpu: Gpu,
}

/// Makes a plan: loads the kernels for `element` and takes the memory that calls need.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_new(
    gpu: *const PosencGpu,
    spec: *const PosencSoftmaxSpec,
    element: u32,
    out: *mut *mut PosencSoftmax,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let softmax = Softmax {
                softcap: (spec.softcap != 0.0).then_some(spec.softcap),
                order: match spec.order {
                    POSENC_SOFTCAP_THEN_BIAS => Order::SoftcapThenBias,
                    POSENC_BIAS_THEN_SOFTCAP => Order::BiasThenSoftcap,
                    POSENC_BIAS_THEN_SCALE => Order::BiasThenScale,
                    other => return Err(unknown("order", other)),
                },
                left: switch("has_left", spec.has_left)?.then_some(spec.left),
                right: switch("has_right", spec.has_right)?.then_some(spec.right),
                ..Softmax::new(factor("scale", spec.scale)?)
            };
            Ok(PosencSoftmax {
                plan: make_plan!(element, T => SoftmaxPlan::<T>::new(gpu, &softmax)?),
                none: PosencBias::new(gpu, make_plan!(element, T => BiasPlan::<T>::new(gpu, Bias::None)?)),
                gpu: gpu.clone(),
            })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_free(softmax: *mut PosencSoftmax) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(softmax) }
}

/// The softmax of every row, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_apply(
    softmax: *const PosencSoftmax,
    call: *const PosencSoftmaxCall,
) -> PosencStatus {
    // SAFETY: as the caller promises, `inputs.bias` too.
    unsafe {
        self::call("softmax", softmax, call, |softmax, call| {
            let bias = call.inputs.bias.as_ref().unwrap_or(&softmax.none);
            with_plan!(&softmax.plan, plan => apply(plan, bias, &softmax.gpu, call))
        })
    }
}

/// The gradients of the logits, and of the bias if it is wanted, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_grad(
    softmax: *const PosencSoftmax,
    call: *const PosencSoftmaxGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises, `inputs.bias` too.
    unsafe {
        self::call("softmax", softmax, call, |softmax, call| {
            let bias = call.inputs.bias.as_ref().unwrap_or(&softmax.none);
            with_plan!(&softmax.plan, plan => grad(plan, bias, &softmax.gpu, call))
        })
    }
}

/// The gradient of the sinks, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_sink_grad(
    softmax: *const PosencSoftmax,
    call: *const PosencSinkGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("softmax", softmax, call, |softmax, call| {
            let (gpu, shape) = (&softmax.gpu, call.shape.shape()?);
            let (sinks, lse) = (call.sinks.get(gpu, "sinks")?, call.lse.get(gpu, "lse")?);
            let (dots, mut grad) = (call.dots.get(gpu, "dots")?, call.grad.get(gpu, "grad")?);
            Ok(with_plan!(&softmax.plan, plan => plan.sink_grad(&sinks, &lse, &dots, &shape, &mut grad))?)
        })
    }
}

fn apply<T: Scalar>(
    plan: &SoftmaxPlan<T>,
    bias: &PosencBias,
    gpu: &Gpu,
    call: &PosencSoftmaxCall,
) -> Result<(), Failure> {
    let inputs = &call.inputs;
    let places = inputs.places.get(gpu)?;
    let (mask, mask_shape) = (inputs.mask.optional::<T>(gpu, "mask")?, inputs.mask_shape.shape()?);
    let (sinks, gates) = (inputs.sinks.optional(gpu, "sinks")?, inputs.gates.optional(gpu, "gates")?);
    let (mut x, shape) = (call.x.get::<T>(gpu, "logits")?, call.shape.shape()?);
    let (mut out, mut lse) = (call.out.optional::<T>(gpu, "probabilities")?, call.lse.optional(gpu, "lse")?);
    let operand = match &mut out {
        None => LogitsOperand::InPlace(&mut x, shape),
        Some(out) => LogitsOperand::Copy(&x, shape, out, call.out_shape.shape()?),
    };
    let inputs = SoftmaxInputs {
        mask: read(&mask).map(|mask| (mask, mask_shape)),
        sinks: read(&sinks),
        gates: read(&gates),
        ..SoftmaxInputs::new(bias.of()?, places.places()?)
    };
    Ok(plan.apply(operand, &inputs, write(&mut lse))?)
}

fn grad<T: Scalar>(
    plan: &SoftmaxPlan<T>,
    bias: &PosencBias,
    gpu: &Gpu,
    call: &PosencSoftmaxGradCall,
) -> Result<(), Failure> {
    let inputs = &call.inputs;
    let places = inputs.places.get(gpu)?;
    let gates = inputs.gates.optional(gpu, "gates")?;
    let (p, p_shape) = (call.probabilities.get::<T>(gpu, "probabilities")?, call.probabilities_shape.shape()?);
    let (mut grad, shape) = (call.grad.get::<T>(gpu, "grad")?, call.grad_shape.shape()?);
    let mut out = call.out.optional::<T>(gpu, "logits_grad")?;
    let (logits, logits_shape) = (call.logits.optional::<T>(gpu, "logits")?, call.logits_shape.shape()?);
    let (mut bias_grad, mut dots) = (call.bias_grad.optional(gpu, "bias_grad")?, call.dots.optional(gpu, "dots")?);
    let operand = match &mut out {
        None => LogitsOperand::InPlace(&mut grad, shape),
        Some(out) => LogitsOperand::Copy(&grad, shape, out, call.out_shape.shape()?),
    };
    let inputs = SoftmaxInputs { gates: read(&gates), ..SoftmaxInputs::new(bias.of()?, places.places()?) };
    let outputs = GradOutputs {
        logits: read(&logits).map(|logits| (logits, logits_shape)),
        bias: write(&mut bias_grad),
        dots: write(&mut dots),
    };
    Ok(plan.grad((&p, p_shape), operand, &inputs, outputs)?)
}
