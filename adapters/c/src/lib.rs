//! posenc for C: raw device addresses, the caller's stream, an integer status.
//!
//! The header is the crate in C, one pattern for each operation: a `Posenc...Spec` says what to compute, `posenc_..._new`
//! makes a handle of it for one element type, `posenc_..._free` frees that, and each verb takes the handle and a
//! `Posenc...Call`. The rules of the whole header stand at its top, in `cbindgen.toml`.
#![allow(non_camel_case_types, reason = "names of C")]

pub mod bias;
pub mod embed;
mod handle;
mod memory;
pub mod rotate;
mod status;

use cudarc::driver::sys;
use posenc::Gpu;

pub(crate) use handle::{
    OfElement, Versioned, borrow, borrow_mut, call, factor, free, give, make, make_plan, place, plans, size, slice,
    switch, unknown, versioned, with_plan,
};
pub use memory::*;
pub use status::*;

/// The driver's stream.
pub type PosencStream = sys::CUstream;

/// The version of every struct of this header that begins with `version` and `size`.
pub const POSENC_ABI: u32 = 1;

/// Element types of tensors and tables.
pub const POSENC_F32: u32 = 0;
/// IEEE half precision
pub const POSENC_F16: u32 = 1;
/// bfloat16
pub const POSENC_BF16: u32 = 2;
/// double precision; of timesteps alone
pub const POSENC_F64: u32 = 3;

/// Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral.
pub const POSENC_HALF: u32 = 0;
/// Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek; the paper's sinusoid.
pub const POSENC_INTERLEAVED: u32 = 1;

/// A device and a stream on it.
pub struct PosencGpu {
    pub(crate) gpu: Gpu,
}

/// Opens device `ordinal` through its primary context (PyTorch's and the runtime's), for launches into `stream`.
///
/// `stream` belongs to that context and outlives the handle and every plan made with it. With `overlap` not 0, kernels may
/// start before their predecessor in the stream has ended (programmatic dependent launch, compute capability 9.0 on); they
/// wait for its memory themselves.
///
/// # Safety
/// `stream` is null or a stream of that context, and `out` is null or points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_gpu_new(
    ordinal: u32,
    stream: PosencStream,
    overlap: u32,
    out: *mut *mut PosencGpu,
) -> PosencStatus {
    guarded(|| {
        let out = place("out", out)?;
        // Opening probes the driver, so that its absence is an error and no panic; it also gives the primary context.
        let own = Gpu::open(ordinal as usize)?;
        // SAFETY: the caller promises that the stream belongs to the primary context and outlives the handle. Work of the
        // caller is ordered by that same stream.
        let stream = unsafe { own.stream().context().wrap_borrowed_stream(stream) };
        let gpu = Gpu::new(&stream)?.overlapping(overlap != 0);
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(PosencGpu { gpu }))) };
        Ok(())
    })
}

/// Frees a handle; null is allowed. Plans made with it stay valid.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_gpu_free(gpu: *mut PosencGpu) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(gpu) }
}

pub(crate) fn pairing(value: u32) -> Result<posenc::Pairing, Failure> {
    match value {
        POSENC_HALF => Ok(posenc::Pairing::Half),
        POSENC_INTERLEAVED => Ok(posenc::Pairing::Interleaved),
        other => Err(unknown("pairing", other)),
    }
}
