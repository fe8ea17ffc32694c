//! A CUDA driver for the CPU: `libcuda.so.1` over a PTX interpreter.
//!
//! The shared library of this package is loaded by an unmodified CUDA application (through cudarc, say) in the place of
//! NVIDIA's driver. This Rust library is its client: [`attach`] finds the emulator in the running process and gives
//! access to [`Counters`], the [last launch](Emulator::last_launch) and the [last error](Emulator::last_error).
//!
//! The way of a kernel: `ptx` parses, `lower` resolves names and orders blocks, `exec` runs warps and watches memory,
//! `driver` is the interface. `README.md` says how to use it and what it cannot show.

// lanes are numbers: a loop over them reads several arrays and a mask
#![allow(clippy::needless_range_loop)]

mod client;
mod config;
mod counters;
mod device;
mod driver;
mod exec;
mod fault;
mod lower;
mod ptx;
mod written;

pub use client::{Emulator, LaunchReport, Strictness, attach};
pub use counters::Counters;
