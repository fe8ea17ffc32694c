//! posenc for C: raw device addresses, the caller's stream, an integer status.
//!
//! Each module declares its part of `posenc.h` in one `header!` block, which becomes the library's functions and the
//! header's text; conversions between structs of C and of the crate follow. `tests/header.rs` writes the header and its
//! rules for callers, `tests/complete.rs` compares it with the crate.
// One step for each item of a part of the header.
#![recursion_limit = "256"]
#![allow(non_camel_case_types, reason = "names of C")]

mod attend;
mod bias;
mod cpu;
mod embed;
mod gate_sums;
mod handle;
mod header;
mod memory;
mod merge;
mod model;
mod products;
mod prologue;
mod relative_values;
mod resize;
mod rotate;
mod status;
mod swin2;
mod term_grad;
mod terms;

use cudarc::driver::sys;
use posenc::{Gpu, Pairing};

use header::header;

pub use attend::*;
pub use bias::*;
pub use embed::*;
pub use gate_sums::*;
pub(crate) use handle::*;
#[doc(hidden)]
pub use header::{Item, Kind};
pub use memory::*;
pub use merge::*;
pub use model::*;
pub use products::*;
pub use prologue::*;
pub use relative_values::*;
pub use resize::*;
pub use rotate::*;
pub use status::*;
pub use swin2::*;
pub use term_grad::*;
pub use terms::*;

/// The driver's stream.
pub type PosencStream = sys::CUstream;

header! {{}
    constants u32 {
        POSENC_ABI = 1: "The version of every struct of this header that begins with `version` and `size`.",
    }
    constants u32 {
        POSENC_F32 = 0: "Element types of tensors and tables.",
        POSENC_F16 = 1: "IEEE half precision",
        POSENC_BF16 = 2: "bfloat16",
        POSENC_F64 = 3: "double precision; of timesteps alone",
    }
    codes Pairing {
        POSENC_HALF = 0 => Half: "Pairing: pair `i` is `(i, i + rotary / 2)`: GPT-NeoX, Llama, Qwen, Mistral.",
        POSENC_INTERLEAVED = 1 => Interleaved: "Pair `i` is `(2 i, 2 i + 1)`: GPT-J, GLM, DeepSeek; the paper's sinusoid.",
    }

    /// A device and a stream on it, or the CPU.
    opaque PosencGpu { gpu: Option<Gpu> }

    /// Opens device `ordinal` through its primary context (PyTorch's and the runtime's), for launches into `stream`.
    ///
    /// `stream` belongs to that context and outlives the handle and every plan made with it. With `overlap` not 0, kernels may
    /// start before their predecessor in the stream has ended (programmatic dependent launch, compute capability 9.0 on); they
    /// wait for its memory themselves.
    fn posenc_gpu_new(ordinal: u32, stream: PosencStream, overlap: u32, out: *mut *mut PosencGpu) -> PosencStatus {
        give(out, || {
            // Opening probes the driver, so that its absence is an error and no panic; it also gives the primary context.
            let own = Gpu::open(ordinal as usize)?;
            // The caller promises that the stream belongs to the primary context and outlives the handle. The caller's work is
            // ordered by that same stream.
            let stream = own.stream().context().wrap_borrowed_stream(stream);
            let gpu = Gpu::new(&stream)?.overlapping(overlap != 0);
            Ok(Box::into_raw(Box::new(PosencGpu { gpu: Some(gpu) })))
        })
    }
    /// Gives the CPU, without a driver or a device. Plans that are made with it take the same specs and calls, whose addresses are
    /// then host addresses; a call has done its work when it returns. It computes in f64 and rounds once, in as many threads as
    /// the machine has.
    fn posenc_cpu_new(out: *mut *mut PosencGpu) -> PosencStatus {
        give(out, || Ok(Box::into_raw(Box::new(PosencGpu { gpu: None }))))
    }
    free posenc_gpu_free(gpu: PosencGpu);
}

/// Every item of the header, in order: for the tests that write it and ask what is missing.
#[doc(hidden)]
pub fn items() -> impl Iterator<Item = &'static Item> {
    let first = [ITEMS, status::ITEMS, memory::ITEMS, rotate::ITEMS, embed::ITEMS];
    let bias =
        [terms::ITEMS, resize::ITEMS, bias::ITEMS, term_grad::ITEMS, products::ITEMS, swin2::ITEMS, gate_sums::ITEMS];
    first
        .into_iter()
        .chain(bias)
        .chain([attend::ITEMS, relative_values::ITEMS, merge::ITEMS, model::ITEMS, prologue::ITEMS])
        .flatten()
}
