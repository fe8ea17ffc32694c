//! The softmax of attention with its bias.

use half::{bf16, f16};
use posenc::bias::{LogitsOperand, SoftmaxInputs};
use posenc::{Alibi, Bias, BiasPlan, Logits, Place, Places, Scalar, Softmax, SoftmaxPlan, T5Bias, Toeplitz};

use crate::{
    Failure, Foreign, POSENC_BF16, POSENC_F16, POSENC_F32, PosencGpu, PosencStatus, borrow, free, guarded, place, size,
    slice, unknown, versioned,
};

/// The version of `PosencSoftmaxSpec` in this header.
pub const POSENC_SOFTMAX_SPEC_VERSION: u32 = 1;
/// The version of `PosencSoftmaxCall` in this header.
pub const POSENC_SOFTMAX_CALL_VERSION: u32 = 1;

/// Bias: nothing is added.
pub const POSENC_BIAS_NONE: u32 = 0;
/// ALiBi with the paper's slopes for `heads`.
pub const POSENC_BIAS_ALIBI: u32 = 1;
/// T5: `values` is the table `[buckets, heads]` of relative attention biases.
pub const POSENC_BIAS_T5: u32 = 2;
/// Any law of distance: `values` is `[heads, distances]` from the distance `first` on.
pub const POSENC_BIAS_ROW: u32 = 3;

/// Place of queries or keys: element `i` sits at `start + i`.
pub const POSENC_PLACE_FROM: u32 = 0;
/// The last query at the last key; of queries alone.
pub const POSENC_PLACE_LAST: u32 = 1;
/// A position for each, `[batch, n]`, 32 bits.
pub const POSENC_PLACE_EACH: u32 = 2;

/// What to compute: `softmax(softcap(scale * logit) + bias)`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxSpec {
    /// `POSENC_SOFTMAX_SPEC_VERSION`
    pub version: u32,
    /// `sizeof(PosencSoftmaxSpec)`
    pub size: u32,
    /// `POSENC_BIAS_...`
    pub bias: u32,
    /// not 0: keys of the future are masked
    pub causal: u32,
    /// multiplies the logit
    pub scale: f32,
    /// the logit's limit; 0: none
    pub softcap: f32,
    /// heads of the bias
    pub heads: u64,
    /// see the bias, in host memory
    pub values: *const f32,
    /// how many
    pub value_count: u64,
    /// the first distance of a row
    pub first: i64,
    /// not 0: distances outside a row take the value at its end
    pub saturates: u32,
    /// T5: whether the future has buckets of its own
    pub bidirectional: u32,
    /// T5: buckets, and the distance from which all share the last one
    pub buckets: u64,
    /// see `buckets`
    pub max_distance: u64,
}

/// Logits `[batch, heads, queries, keys]` on the device; keys are contiguous.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencLogits {
    /// device address; 0: there is none
    pub data: u64,
    /// elements there
    pub len: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence, head and query to the next
    pub strides: [u64; 3],
}

/// Where queries or keys sit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencPlace {
    /// `POSENC_PLACE_...`
    pub kind: u32,
    /// 0
    pub reserved: u32,
    /// of `POSENC_PLACE_FROM`
    pub start: i64,
    /// device address of the positions
    pub each: u64,
    /// elements there
    pub each_len: u64,
    /// device address of the lengths of the sequences, `[batch]`, 32 bits; 0: all
    pub lengths: u64,
}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSoftmaxCall {
    /// `POSENC_SOFTMAX_CALL_VERSION`
    pub version: u32,
    /// `sizeof(PosencSoftmaxCall)`
    pub size: u32,
    /// sequences
    pub batch: u64,
    /// heads of each
    pub heads: u64,
    /// rows of each
    pub queries: u64,
    /// logits of each
    pub keys: u64,
    /// logits
    pub logits: PosencLogits,
    /// probabilities; `data` 0: in place
    pub out: PosencLogits,
    /// where queries sit
    pub query_places: PosencPlace,
    /// where keys sit
    pub key_places: PosencPlace,
    /// device address of `[batch, heads, queries]` f32 for the log-sum-exp; 0: not wanted
    pub lse: u64,
    /// device address of `[heads]` f32, logits without keys; 0: none
    pub sinks: u64,
}

/// Softmax and bias on a device, for one element type.
pub struct PosencSoftmax {
    plan: Plan,
    gpu: posenc::Gpu,
}

enum Plan {
    F32(SoftmaxPlan<f32>, BiasPlan<f32>),
    F16(SoftmaxPlan<f16>, BiasPlan<f16>),
    Bf16(SoftmaxPlan<bf16>, BiasPlan<bf16>),
}

/// Makes a plan: uploads slopes or a row of biases, loads the kernels for `element` (`POSENC_F32`, `POSENC_F16`,
/// `POSENC_BF16`), and takes the memory that calls need.
///
/// # Safety
/// Pointers are null or point to what their types say; `gpu` comes from `posenc_gpu_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_new(
    gpu: *const PosencGpu,
    spec: *const PosencSoftmaxSpec,
    element: u32,
    out: *mut *mut PosencSoftmax,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = &unsafe { borrow("gpu", gpu) }?.gpu;
        // SAFETY: the caller promises that it points to what its type says.
        let spec = unsafe { versioned("spec", spec, POSENC_SOFTMAX_SPEC_VERSION) }?;
        let out = place("out", out)?;
        // SAFETY: the caller promises as many values as it counts.
        let values = unsafe { slice("values", spec.values, spec.value_count) }?;
        let softcap = (spec.softcap != 0.0).then_some(spec.softcap);
        let right = (spec.causal != 0).then_some(0);
        let softmax = Softmax { softcap, right, ..Softmax::new(spec.scale) };
        let heads = size("heads", spec.heads)?;
        let (slopes, row);
        let bias = match spec.bias {
            POSENC_BIAS_NONE => Bias::None,
            POSENC_BIAS_ALIBI => {
                slopes = Alibi::new(heads).slopes()?;
                Bias::Slopes(&slopes)
            }
            POSENC_BIAS_T5 => {
                let (buckets, max_distance) =
                    (size("buckets", spec.buckets)?, size("max_distance", spec.max_distance)?);
                row = T5Bias::new(buckets, max_distance, spec.bidirectional != 0).row(values, heads)?;
                Bias::Toeplitz(&row)
            }
            POSENC_BIAS_ROW => {
                let (first, saturates) = (spec.first, spec.saturates != 0);
                row = Toeplitz { heads, first, values: values.to_vec(), saturates };
                Bias::Toeplitz(&row)
            }
            other => return Err(unknown("bias", other)),
        };
        let plan = match element {
            POSENC_F32 => Plan::F32(SoftmaxPlan::new(gpu, &softmax)?, BiasPlan::new(gpu, bias)?),
            POSENC_F16 => Plan::F16(SoftmaxPlan::new(gpu, &softmax)?, BiasPlan::new(gpu, bias)?),
            POSENC_BF16 => Plan::Bf16(SoftmaxPlan::new(gpu, &softmax)?, BiasPlan::new(gpu, bias)?),
            other => return Err(unknown("element", other)),
        };
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(PosencSoftmax { plan, gpu: gpu.clone() }))) };
        Ok(())
    })
}

/// Frees a plan; null is allowed. Synchronise the stream first.
///
/// # Safety
/// `softmax` is null or comes from its constructor and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_free(softmax: *mut PosencSoftmax) -> PosencStatus {
    // SAFETY: as the caller promises.
    guarded(|| unsafe { free(softmax) })
}

/// The softmax of every row.
///
/// # Safety
/// `softmax` comes from its constructor, `call` is null or points to what its type says, and each device address holds as
/// many elements as the call says until the kernel has run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_softmax_apply(
    softmax: *const PosencSoftmax,
    call: *const PosencSoftmaxCall,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let softmax = unsafe { borrow("softmax", softmax) }?;
        // SAFETY: the caller promises that it points to what its type says.
        let call = unsafe { versioned("call", call, POSENC_SOFTMAX_CALL_VERSION) }?;
        match &softmax.plan {
            Plan::F32(plan, bias) => apply(plan, bias, &softmax.gpu, call),
            Plan::F16(plan, bias) => apply(plan, bias, &softmax.gpu, call),
            Plan::Bf16(plan, bias) => apply(plan, bias, &softmax.gpu, call),
        }
    })
}

impl PosencLogits {
    fn shape(&self, call: &PosencSoftmaxCall) -> Result<Logits, Failure> {
        let [batch, head, query] = self.strides;
        Ok(Logits {
            batch: size("batch", call.batch)?,
            heads: size("heads", call.heads)?,
            queries: size("queries", call.queries)?,
            keys: size("keys", call.keys)?,
            offset: size("an offset", self.offset)?,
            strides: [size("a stride", batch)?, size("a stride", head)?, size("a stride", query)?],
        })
    }
}

fn apply<T: Scalar>(
    plan: &SoftmaxPlan<T>,
    bias: &BiasPlan<T>,
    gpu: &posenc::Gpu,
    call: &PosencSoftmaxCall,
) -> Result<(), Failure> {
    let shape = call.logits.shape(call)?;
    let mut x = Foreign::<T>::new(gpu, "logits", call.logits.data, call.logits.len)?;
    let mut out = match call.out.data {
        0 => None,
        data => Some(Foreign::<T>::new(gpu, "out", data, call.out.len)?),
    };
    let optional = |name: &str, address: u64, len: u64| -> Result<Option<Foreign<f32>>, Failure> {
        (address != 0).then(|| Foreign::new(gpu, name, address, len)).transpose()
    };
    let rows = call.batch.saturating_mul(call.heads).saturating_mul(call.queries);
    let mut lse = optional("lse", call.lse, rows)?;
    let sinks = optional("sinks", call.sinks, call.heads)?;
    let each = |name: &str, place: &PosencPlace| -> Result<Option<Foreign<i32>>, Failure> {
        (place.kind == POSENC_PLACE_EACH).then(|| Foreign::new(gpu, name, place.each, place.each_len)).transpose()
    };
    let lengths = |name: &str, place: &PosencPlace| -> Result<Option<Foreign<i32>>, Failure> {
        (place.lengths != 0).then(|| Foreign::new(gpu, name, place.lengths, call.batch)).transpose()
    };
    let (queries, keys) = (each("query positions", &call.query_places)?, each("key positions", &call.key_places)?);
    let query_lengths = lengths("query lengths", &call.query_places)?;
    let key_lengths = lengths("key lengths", &call.key_places)?;
    let places = Places {
        queries: where_they_sit(&call.query_places, queries.as_ref())?,
        keys: where_they_sit(&call.key_places, keys.as_ref())?,
        query_lengths: query_lengths.as_ref().map(|lengths| lengths as _),
        key_lengths: key_lengths.as_ref().map(|lengths| lengths as _),
        packed: None,
    };
    let operand = match &mut out {
        None => LogitsOperand::InPlace(&mut x, shape),
        Some(out) => LogitsOperand::Copy(&x, shape, out, call.out.shape(call)?),
    };
    let inputs = SoftmaxInputs { sinks: sinks.as_ref().map(|sinks| sinks as _), ..SoftmaxInputs::new(bias, places) };
    Ok(plan.apply(operand, &inputs, lse.as_mut().map(|lse| lse as _))?)
}

fn where_they_sit<'a>(
    place: &PosencPlace,
    each: Option<&'a Foreign<i32>>,
) -> Result<Place<posenc::gpu::Read<'a, i32>>, Failure> {
    match (place.kind, each) {
        (POSENC_PLACE_FROM, _) => Ok(Place::From(place.start)),
        (POSENC_PLACE_LAST, _) => Ok(Place::Last),
        (POSENC_PLACE_EACH, Some(each)) => Ok(Place::Each(each)),
        (other, _) => Err(unknown("the kind of a place", other)),
    }
}
