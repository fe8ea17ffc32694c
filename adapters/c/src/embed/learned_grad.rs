//! Gradients of learned tables and of the norm behind them.

use posenc::Gpu;
use posenc::embed::{GradPlan, NormGrad, TableGrad, Tokens};

use crate::embed::learned::{ForeignTables, fault};
use crate::embed::{PosencFault, PosencInputs, PosencLearnedSpec, PosencTokens, PosencWeights};
use crate::memory::{read, write};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencIds, PosencStatus, Versioned, borrow, call, free, guarded, make, make_plan,
    place, plans, size, switch, with_plan,
};

/// One call for the gradients of a norm: of the sum before it, of gain and bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencNormGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencNormGradCall)`
    pub size: u32,
    /// written: the gradient of the sum
    pub sum: PosencBuffer,
    /// `[dim]`, written; none: not wanted
    pub gain: PosencBuffer,
    /// `[dim]`, written; none: not wanted
    pub bias: PosencBuffer,
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
    /// 1: gain and bias are added to what is there
    pub accumulate: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencNormGradCall {}

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
    /// written by `posenc_learned_grad_table`: as many f32 as `posenc_learned_grad_table_partials` says
    pub partials: PosencBuffer,
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
    /// the same, written; none up to 1024 ids
    pub between: PosencBuffer,
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
    // SAFETY: as the caller promises.
    unsafe { partials(grad, tokens, out, |plan, tokens| with_plan!(plan, plan => plan.partials(tokens))) }
}

/// Gives the f32 numbers of the partial sums that `posenc_learned_grad_table` writes for a shape.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_grad_table_partials(
    grad: *const PosencLearnedGrad,
    tokens: *const PosencTokens,
    out: *mut u64,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { partials(grad, tokens, out, |plan, tokens| with_plan!(plan, plan => plan.table_partials(tokens))) }
}

/// # Safety
/// As those of the two functions above.
unsafe fn partials(
    grad: *const PosencLearnedGrad,
    tokens: *const PosencTokens,
    out: *mut u64,
    count: impl FnOnce(&plans!(GradPlan), &Tokens) -> usize,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let (grad, tokens) = unsafe { (borrow("grad", grad)?, borrow("tokens", tokens)?) };
        let (tokens, out) = (tokens.shape()?, place("out", out)?);
        // SAFETY: `place` refused null, and the caller promises that it points to a number.
        unsafe { out.write(count(&grad.plan, &tokens) as u64) };
        Ok(())
    })
}

/// The gradients of the sum, of gain and of bias from that of the normalised result.
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
            let accumulate = switch("accumulate", call.accumulate)?;
            with_plan!(&grad.plan, plan => {
                let tables = ForeignTables::new(gpu, Some(&call.weights), &call.inputs)?;
                let (mut sum, mut partials) = (call.sum.get(gpu, "sum")?, call.partials.get(gpu, "partials")?);
                let (mut gain, mut bias) = (call.gain.optional(gpu, "gain")?, call.bias.optional(gpu, "bias")?);
                let (grad, x) = (call.grad.get(gpu, "grad")?, call.x.optional(gpu, "x")?);
                let out = NormGrad {
                    sum: &mut sum,
                    gain: write(&mut gain),
                    bias: write(&mut bias),
                    accumulate,
                    partials: &mut partials,
                    fault,
                };
                Ok(plan.norm(out, &grad, read(&x), tokens, &tables.weights(), &tables.inputs()?)?)
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

/// Writes the tokens in the order of their ids.
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
            let mut between = call.between.optional(&grad.gpu, "between")?;
            let count = size("count", call.count)?;
            Ok(with_plan!(&grad.plan, plan => plan.order(&mut order, write(&mut between), ids.ids(), count))?)
        })
    }
}

/// The gradient of a table by ids.
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
            let mut partials = call.partials.get(gpu, "partials")?;
            with_plan!(&grad.plan, plan => {
                let (mut table, grad) = (call.table.get(gpu, "table")?, call.grad.get(gpu, "grad")?);
                Ok(plan.table(&mut table, &mut partials, &grad, ids.ids(), &order, tokens, how)?)
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
