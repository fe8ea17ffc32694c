//! Gradients of learned tables and of the norm behind them.

use posenc::Gpu;
use posenc::embed::{GradPlan, NormGrad, TableGrad, Tokens};

use crate::embed::learned::{ForeignTables, fault};
use crate::embed::{PosencFault, PosencInputs, PosencLearnedSpec, PosencTokens, PosencWeights};
use crate::memory::{read, write};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencIds, PosencStatus, Versioned, borrow, call, factor, free, give, make,
    make_plan, plans, size, switch, with_plan,
};

/// One call for the gradients of the sum that a norm follows, of gain and of bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencNormGradCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencNormGradCall)`
    pub size: u32,
    /// written: the gradient of the sum
    pub sum: PosencBuffer,
    /// `[dim]`, written: the gradient of the gain; or none
    pub gain: PosencBuffer,
    /// `[dim]`, written: the gradient of the bias; or none
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
    /// 1: adds to what is in `gain` and `bias`
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
    /// of `posenc_learned_grad_table`, written: as many f32 as `posenc_learned_grad_table_partials` says
    pub partials: PosencBuffer,
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
    /// as `order`: runs that are not merged yet; none up to 1024 ids
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

/// What both kinds of partial sums share.
///
/// # Safety
/// `grad`, `tokens` and `out` are null or point to what their types say.
unsafe fn partials(
    grad: *const PosencLearnedGrad,
    tokens: *const PosencTokens,
    out: *mut u64,
    count: impl FnOnce(&PosencLearnedGrad, &Tokens) -> usize,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { give(out, || Ok(count(borrow("grad", grad)?, &borrow("tokens", tokens)?.shape()?))) }
}

/// Gives the f32 numbers of the partial sums of `posenc_learned_grad_norm` for a shape.
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
    unsafe { partials(grad, tokens, out, |grad, tokens| with_plan!(&grad.plan, plan => plan.partials(tokens))) }
}

/// Gives the f32 numbers of the partial sums of `posenc_learned_grad_table` for a shape.
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
    unsafe { partials(grad, tokens, out, |grad, tokens| with_plan!(&grad.plan, plan => plan.table_partials(tokens))) }
}

/// The gradient of the sum from that of the normalised result, in one kernel; with gain or bias in two.
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
                let (mut gain, mut bias) = (call.gain.optional(gpu, "gain")?, call.bias.optional(gpu, "bias")?);
                let (grad, x) = (call.grad.get(gpu, "grad")?, call.x.optional(gpu, "x")?);
                let out = NormGrad {
                    sum: &mut sum,
                    gain: write(&mut gain),
                    bias: write(&mut bias),
                    accumulate: switch("accumulate", call.accumulate)?,
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

/// Writes the tokens in the order of their ids, in one kernel up to 1024 of them.
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
            let (gpu, count) = (&grad.gpu, size("count", call.count)?);
            let (mut order, ids) = (call.order.get(gpu, "order")?, call.ids.get(gpu, "ids")?);
            let mut between = call.between.optional(gpu, "between")?;
            Ok(with_plan!(&grad.plan, plan => plan.order(&mut order, write(&mut between), ids.ids(), count))?)
        })
    }
}

/// The gradient of a table by ids, in two kernels.
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
            scale: factor("scale", self.scale)?,
            skipped: switch("has_skipped", self.has_skipped)?.then_some(self.skipped),
            accumulate: switch("accumulate", self.accumulate)?,
            ..TableGrad::new(size("rows", self.rows)?)
        })
    }
}
