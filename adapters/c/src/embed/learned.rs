//! Learned tables: token, position and type, and the norm behind them.

use std::marker::PhantomData;

use posenc::embed::{Fault, Inputs, Learned, LearnedPlan, Norm, Rows, Weights};
use posenc::{Gpu, Scalar};

use crate::embed::PosencTokens;
use crate::memory::{Foreign, ForeignIds, ForeignPositions, read};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencIds, PosencPositions, PosencStatus, Versioned, borrow_mut, call, factor,
    free, guarded, make, make_plan, place, plans, size, unknown, with_plan,
};

/// Rows of the position table: `position + first`.
pub const POSENC_ROWS_OFFSET: u32 = 0;
/// Tokens whose id is not `padding` are counted from row `first` on; padding reads row `padded`.
pub const POSENC_ROWS_KEPT_BY_ID: u32 = 1;
/// The same, by the mask.
pub const POSENC_ROWS_KEPT_BY_MASK: u32 = 2;

/// Norms behind the sum: none.
pub const POSENC_NORM_NONE: u32 = 0;
/// layer norm: gain and bias
pub const POSENC_NORM_LAYER: u32 = 1;
/// root mean square: gain
pub const POSENC_NORM_RMS: u32 = 2;

/// What to compute: `norm(token[id] * scale + position[row] + type[kind])`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencLearnedSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencLearnedSpec)`
    pub size: u32,
    /// channels of one row of every table
    pub dim: u64,
    /// multiplies token rows: 1, or the root of `dim`
    pub scale: f64,
    /// `POSENC_ROWS_...`
    pub rows: u32,
    /// `POSENC_NORM_...`
    pub norm: u32,
    /// see `rows`
    pub first: i64,
    /// see `rows`
    pub padded: i64,
    /// see `rows`
    pub padding: i64,
    /// of the norm
    pub eps: f64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencLearnedSpec {}

impl PosencLearnedSpec {
    pub(crate) fn learned(&self) -> Result<Learned, Failure> {
        let Self { first, padded, padding, eps, .. } = *self;
        Ok(Learned {
            scale: factor("scale", self.scale)?,
            rows: match self.rows {
                POSENC_ROWS_OFFSET => Rows::Offset(first),
                POSENC_ROWS_KEPT_BY_ID => Rows::Kept { padding: Some(padding), first, padded },
                POSENC_ROWS_KEPT_BY_MASK => Rows::Kept { padding: None, first, padded },
                other => return Err(unknown("rows", other)),
            },
            norm: match self.norm {
                POSENC_NORM_NONE => None,
                POSENC_NORM_LAYER => Some(Norm::Layer { eps }),
                POSENC_NORM_RMS => Some(Norm::Rms { eps }),
                other => return Err(unknown("norm", other)),
            },
            ..Learned::new(size("dim", self.dim)?)
        })
    }
}

/// The tables of a call, each `[rows, dim]` by its length, or not there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencWeights {
    /// by token id; without it, the rows of `x` take its place
    pub token: PosencBuffer,
    /// by the row that the spec gives
    pub position: PosencBuffer,
    /// by token type
    pub types: PosencBuffer,
    /// `[dim]`, of the norm; ones without it
    pub gain: PosencBuffer,
    /// `[dim]`, of the norm; zeros without it
    pub bias: PosencBuffer,
}

/// What the tokens of a call are, each `[batch, tokens]`, or not there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencInputs {
    /// token ids
    pub ids: PosencIds,
    /// token types
    pub types: PosencIds,
    /// bytes: 1 for a token, 0 for padding
    pub mask: PosencBuffer,
    /// where the tokens stand
    pub positions: PosencPositions,
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencLearnedCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencLearnedCall)`
    pub size: u32,
    /// written; read too if there is no token table
    pub x: PosencBuffer,
    /// the shape of `x`
    pub tokens: PosencTokens,
    /// the tables
    pub weights: PosencWeights,
    /// what the tokens are
    pub inputs: PosencInputs,
    /// raised when an id lies outside its table; or null. Two calls at once need two of them
    pub fault: *mut PosencFault,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencLearnedCall {}

/// One call that writes the row of the position table that each token reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencRowsCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencRowsCall)`
    pub size: u32,
    /// `[batch, tokens]` of 64-bit integers, written
    pub rows: PosencBuffer,
    /// sequences
    pub batch: u64,
    /// tokens of each
    pub tokens: u64,
    /// what the tokens are
    pub inputs: PosencInputs,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencRowsCall {}

/// Learned tables on a device, for one element type.
pub struct PosencLearned {
    plan: plans!(LearnedPlan),
    gpu: Gpu,
}

/// A flag on the device that kernels raise when an id lies outside its table.
pub struct PosencFault {
    pub(crate) fault: Fault,
    gpu: Gpu,
}

/// Buffers of a call's tables and tokens, for as long as it lasts.
pub(crate) struct ForeignTables<T> {
    tables: [Option<Foreign<T>>; 5],
    ids: Option<ForeignIds>,
    types: Option<ForeignIds>,
    mask: Option<Foreign<u8>>,
    positions: ForeignPositions,
    element: PhantomData<T>,
}

impl<T: Scalar> ForeignTables<T> {
    pub(crate) fn new(gpu: &Gpu, weights: Option<&PosencWeights>, inputs: &PosencInputs) -> Result<Self, Failure> {
        let table = |name: &str, buffer: fn(&PosencWeights) -> PosencBuffer| match weights {
            None => Ok(None),
            Some(weights) => buffer(weights).optional::<T>(gpu, name),
        };
        Ok(Self {
            tables: [
                table("the token table", |weights| weights.token)?,
                table("the position table", |weights| weights.position)?,
                table("the type table", |weights| weights.types)?,
                table("gain", |weights| weights.gain)?,
                table("bias", |weights| weights.bias)?,
            ],
            ids: inputs.ids.optional(gpu, "ids")?,
            types: inputs.types.optional(gpu, "types")?,
            mask: inputs.mask.optional(gpu, "mask")?,
            positions: inputs.positions.get(gpu)?,
            element: PhantomData,
        })
    }

    pub(crate) fn weights(&self) -> Weights<'_, T> {
        let [token, position, types, gain, bias] = self.tables.each_ref().map(read);
        Weights { token, position, types, gain, bias }
    }

    pub(crate) fn inputs(&self) -> Result<Inputs<'_>, Failure> {
        Ok(Inputs {
            ids: self.ids.as_ref().map(ForeignIds::ids),
            types: self.types.as_ref().map(ForeignIds::ids),
            mask: read(&self.mask),
            positions: self.positions.positions()?,
        })
    }
}

/// The flag behind a pointer that may be null.
///
/// # Safety
/// `fault` is null or comes from `posenc_fault_new`, and no other call uses it at the same time.
pub(crate) unsafe fn fault<'a>(fault: *mut PosencFault) -> Option<&'a mut Fault> {
    // SAFETY: as the caller promises.
    unsafe { fault.as_mut() }.map(|fault| &mut fault.fault)
}

/// Makes a plan: loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_new(
    gpu: *const PosencGpu,
    spec: *const PosencLearnedSpec,
    element: u32,
    out: *mut *mut PosencLearned,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = spec.learned()?;
            Ok(PosencLearned { plan: make_plan!(element, T => LearnedPlan::<T>::new(gpu, &spec)?), gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_free(learned: *mut PosencLearned) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(learned) }
}

/// Gathers, adds and normalises, in one kernel. A row whose id lies outside its table becomes NaN.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_gather(
    learned: *const PosencLearned,
    call: *const PosencLearnedCall,
) -> PosencStatus {
    // SAFETY: as the caller promises, `fault` too.
    unsafe {
        self::call("learned", learned, call, |learned, call| {
            let (gpu, tokens) = (&learned.gpu, call.tokens.shape()?);
            let fault = fault(call.fault);
            with_plan!(&learned.plan, plan => {
                let tables = ForeignTables::new(gpu, Some(&call.weights), &call.inputs)?;
                let mut x = call.x.get(gpu, "x")?;
                Ok(plan.gather(&mut x, tokens, &tables.weights(), &tables.inputs()?, fault)?)
            })
        })
    }
}

/// Writes the row of the position table that each token reads, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_learned_rows(
    learned: *const PosencLearned,
    call: *const PosencRowsCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("learned", learned, call, |learned, call| {
            let gpu = &learned.gpu;
            let (batch, tokens) = (size("batch", call.batch)?, size("tokens", call.tokens)?);
            let mut rows = call.rows.get(gpu, "rows")?;
            // No table is read, so that their type does not matter.
            let tables = ForeignTables::<f32>::new(gpu, None, &call.inputs)?;
            Ok(with_plan!(&learned.plan, plan => plan.rows(&mut rows, batch, tokens, &tables.inputs()?))?)
        })
    }
}

/// Makes a flag that is down.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fault_new(gpu: *const PosencGpu, out: *mut *mut PosencFault) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = &unsafe { crate::borrow("gpu", gpu) }?.gpu;
        let out = place("out", out)?;
        let made = Box::new(PosencFault { fault: Fault::new(gpu)?, gpu: gpu.clone() });
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// Frees a flag; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fault_free(fault: *mut PosencFault) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(fault) }
}

/// Waits for the stream and takes the flag down; `POSENC_VALUE`, with the first token and its table, if it was up.
///
/// # Safety
/// The rules at the top; no other call uses `fault` at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_fault_check(fault: *mut PosencFault) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let PosencFault { fault, gpu } = unsafe { borrow_mut("fault", fault) }?;
        Ok(fault.check(gpu)?)
    })
}
