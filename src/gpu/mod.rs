//! The device: contexts, images of the kernels, buffers and launches. All the `unsafe` of the crate is in this room, but for the
//! calls of vector instructions (`cpu::vector`, `cpu::f16`) and the prefetch (`cpu::ahead`).
//!
//! A plan opens a `Call`, hands in every buffer, and launches. The layers, each built on those before it: `driver`, `args`,
//! `capture`, `kernel`, `ptx`, `modules`, `uploaded` with `device`, `launch`, `buffer`, `tensor`, `scratch`, `on`, `call`.

#[allow(dead_code, reason = "a field's layout is read by tests and by build.rs")]
pub(crate) mod args;
mod buffer;
mod call;
mod capture;
mod device;
mod driver;
pub(crate) mod kernel;
mod launch;
mod modules;
mod on;
mod packed;
#[allow(dead_code, reason = "build.rs uses the rest")]
mod ptx;
mod scratch;
mod tensor;
mod uploaded;

#[doc(hidden)]
pub use args::FieldLayout;
pub use buffer::{Buffer, BufferMut, Raw};
pub use device::Gpu;
#[doc(hidden)]
pub use kernel::{Listed, kernels};
#[doc(hidden)]
pub use modules::{Image, Images, images};
pub use tensor::{Read, Update, View, ViewMut, Write};

pub(crate) use call::{Call, Placed, Updated, widest};
pub(crate) use launch::{Kernel, Launch, small};
pub(crate) use on::{OnStream, on_stream};
pub(crate) use scratch::{Scratch, ScratchOnNeed};
pub(crate) use uploaded::Uploaded;
