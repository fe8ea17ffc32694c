//! The device: contexts, kernels' images, buffers and launches. All the `unsafe` of the crate is in this room,
//! but for the calls of f16's instructions (`cpu::f16`).

#[allow(dead_code, reason = "a field's layout is read by tests and by build.rs")]
pub(crate) mod args;
mod buffer;
mod device;
mod launch;
mod modules;

pub use args::{Args, FieldLayout, all as arguments};
pub use buffer::{Read, Write};
pub use device::Gpu;
pub use launch::Launch;
pub use modules::{Image, Images, images};

pub(crate) use buffer::Held;
pub(crate) use launch::Function;
