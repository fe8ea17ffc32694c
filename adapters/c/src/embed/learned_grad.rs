//! Gradients of learned tables and of the norm behind them.

use posenc::Gpu;
use posenc::embed::{GradPlan, TableGrad};

use crate::embed::learned::{ForeignTables, fault};
use crate::embed::{PosencFault, PosencInputs, PosencLearnedSpec, PosencTokens, PosencWeights};
use crate::memory::{read, write};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencIds, PosencStatus, Versioned, borrow, call, free, guarded, make, make_plan,
    place, plans, size, switch, with_plan,
};

/// One call for the gradient of the sum that a norm follows.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencNormGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencNormGradCall)`
    pub size: u32,
    /// written: the gradient of the sum
    pub sum: PosencBuffer,
    /// written: as many f32 as `posenc_learned_grad_partials` says
    pub partials: PosencBuffer,
    /// gradient of the result
    pub grad: PosencBuffer,
    /// what the forward call read in place of token rows; none with a token table
    pub x: PosencBuffer,
    /// the shape of `sum`, `grad` and `x`
    pub tokens: PosencTokens,
    /// as in the forward call
    pub weights: PosencWeights,
    /// as in the forward call
    pub inputs: PosencInputs,
    /// as in the forward call
    pub fault: *mut PosencFault,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencNormGradCall {}

/// One call for the gradients of gain and bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencVectorsGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencVectorsGradCall)`
    pub size: u32,
    /// `[dim]`, written
    pub gain: PosencBuffer,
    /// `[dim]`, written; none without a bias
    pub bias: PosencBuffer,
    /// of `posenc_learned_grad_norm`
    pub partials: PosencBuffer,
    /// the shape of that call
    pub tokens: PosencTokens,
    /// 1: added to what is there
    pub accumulate: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencVectorsGradCall {}

/// One call for the gradient of a table.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencTableGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencTableGradCall)`
    pub size: u32,
    /// `[rows, dim]`, written at the rows that some token reads
    pub table: PosencBuffer,
    /// rows of the table
    pub rows: u64,
    /// gradient of the sum
    pub grad: PosencBuffer,
    /// the shape of `grad`
    pub tokens: PosencTokens,
    /// `[batch, tokens]`; `posenc_learned_grad_counted` has none
    pub ids: PosencIds,
    /// the tokens in the order of their ids, 32 bits without sign, as `posenc_learned_grad_order` writes it
    pub order: PosencBuffer,
    /// of `posenc_learned_grad_counted`: the row of the first token
    pub first: u64,
    /// multiplies the sums: the forward call's scale for the token table, 1 for the others
    pub scale: f64,
    /// 1: the row of the id `skipped` has no gradient
    pub has_skipped: u32,
    /// 1: added to what is there
    pub accumulate: u32,
    /// see `has_skipped`
    pub skipped: i64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencTableGradCall {}

/// One call that orders tokens by their ids.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencOrderCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencOrderCall)`
    pub size: u32,
    /// `[count]` of 32 bits without sign, written
    pub order: PosencBuffer,
    /// `[count]`
    pub ids: PosencIds,
    /// ids
    pub count: u64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencOrderCall {}

/// Gradients of learned tables on a device, for one element type.
pub struct PosencLearnedGrad {
    plan: plans!(GradPlan),
    gpu: Gpu,
}

/// Makes a plan: loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_new(
    gpu: *const PosencGpu,
    spec: *const PosencLearnedSpec,
    element: u32,
    out: *mut *mut PosencLearnedGrad,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = spec.learned()?;
            Ok(PosencLearnedGrad { plan: make_plan!(element, T => GradPlan::<T>::new(gpu, &spec)?), gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_free(grad: *mut PosencLearnedGrad) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(grad) }
}

/// Gives the f32 numbers of the partial sums that `posenc_learned_grad_norm` writes for a shape.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_partials(
    grad: *const PosencLearnedGrad,
    tokens: *const PosencTokens,
    out: *mut u64,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let (grad, tokens) = unsafe { (borrow("grad", grad)?, borrow("tokens", tokens)?) };
        let (tokens, out) = (tokens.shape()?, place("out", out)?);
        let partials = with_plan!(&grad.plan, plan => plan.partials(&tokens));
        // SAFETY: `place` refused null, and the caller promises that it points to a number.
        unsafe { out.write(partials as u64) };
        Ok(())
    })
}

/// The gradient of the sum from that of the normalised result, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_norm(
    grad: *const PosencLearnedGrad,
    call: *const PosencNormGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises, `fault` too.
    unsafe {
        self::call("grad", grad, call, |grad, call| {
            let (gpu, tokens) = (&grad.gpu, call.tokens.shape()?);
            let fault = fault(call.fault);
            with_plan!(&grad.plan, plan => {
                let tables = ForeignTables::new(gpu, Some(&call.weights), &call.inputs)?;
                let (mut sum, mut partials) = (call.sum.get(gpu, "sum")?, call.partials.get(gpu, "partials")?);
                let (grad, x) = (call.grad.get(gpu, "grad")?, call.x.optional(gpu, "x")?);
                let (weights, inputs) = (tables.weights(), tables.inputs()?);
                Ok(plan.norm(&mut sum, &mut partials, &grad, read(&x), tokens, &weights, &inputs, fault)?)
            })
        })
    }
}

/// The gradients of gain and bias from the partial sums of `posenc_learned_grad_norm`, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_vectors(
    grad: *const PosencLearnedGrad,
    call: *const PosencVectorsGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grad", grad, call, |grad, call| {
            let (gpu, tokens) = (&grad.gpu, call.tokens.shape()?);
            let accumulate = switch("accumulate", call.accumulate)?;
            let partials = call.partials.get(gpu, "partials")?;
            with_plan!(&grad.plan, plan => {
                let (mut gain, mut bias) = (call.gain.get(gpu, "gain")?, call.bias.optional(gpu, "bias")?);
                Ok(plan.vectors(&mut gain, write(&mut bias), &partials, tokens, accumulate)?)
            })
        })
    }
}

/// The gradient of a position table whose positions are counted, a sum over the batch, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_counted(
    grad: *const PosencLearnedGrad,
    call: *const PosencTableGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grad", grad, call, |grad, call| {
            let (gpu, tokens, how) = (&grad.gpu, call.tokens.shape()?, call.how()?);
            let first = size("first", call.first)?;
            with_plan!(&grad.plan, plan => {
                let (mut table, grad) = (call.table.get(gpu, "table")?, call.grad.get(gpu, "grad")?);
                Ok(plan.counted(&mut table, &grad, tokens, first, how)?)
            })
        })
    }
}

/// Writes the tokens in the order of their ids, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_order(
    grad: *const PosencLearnedGrad,
    call: *const PosencOrderCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grad", grad, call, |grad, call| {
            let (mut order, ids) = (call.order.get(&grad.gpu, "order")?, call.ids.get(&grad.gpu, "ids")?);
            let count = size("count", call.count)?;
            Ok(with_plan!(&grad.plan, plan => plan.order(&mut order, ids.ids(), count))?)
        })
    }
}

/// The gradient of a table by ids, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_table(
    grad: *const PosencLearnedGrad,
    call: *const PosencTableGradCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grad", grad, call, |grad, call| {
            let (gpu, tokens, how) = (&grad.gpu, call.tokens.shape()?, call.how()?);
            let (ids, order) = (call.ids.get(gpu, "ids")?, call.order.get(gpu, "order")?);
            with_plan!(&grad.plan, plan => {
                let (mut table, grad) = (call.table.get(gpu, "table")?, call.grad.get(gpu, "grad")?);
                Ok(plan.table(&mut table, &grad, ids.ids(), &order, tokens, how)?)
            })
        })
    }
}

impl PosencTableGradCall {
    fn how(&self) -> Result<TableGrad, Failure> {
        Ok(TableGrad {
            scale: self.scale,
            skipped: switch("has_skipped", self.has_skipped)?.then_some(self.skipped),
            accumulate: switch("accumulate", self.accumulate)?,
            ..TableGrad::new(size("rows", self.rows)?)
        })
    }
}
