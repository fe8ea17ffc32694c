//! A number is added to the attention logit: biases that depend on distance, and the softmax that consumes them.
//!
//! `distance = key - query`, signed: keys of the past have negative distances. Every bias that depends on distance
//! alone reaches a kernel in one of two forms: [`Slopes`], two numbers per head, or [`Toeplitz`], one row of numbers
//! per head. [`Fire`] depends on the query's position too and has a form of its own.

mod alibi;
mod cpu;
mod distance_grad;
mod fire;
mod fire_grad;
mod kerple;
mod places;
mod sandwich;
mod softmax;
mod sums;
mod t5;
mod toeplitz;
mod work;

pub use alibi::{Alibi, KeyOnly, Sides, Slopes, SlopesGrad};
pub use distance_grad::{DistanceGrad, DistanceGradPlan};
pub use fire::{Fire, FireLines};
pub use fire_grad::{FireGrad, FireGradPlan};
pub use kerple::{Kerple, KerpleGrad, KerpleKind};
pub use places::{Packed, Place, Places};
pub use sandwich::Sandwich;
pub use softmax::{
    ExpectedGrad, GradOutputs, Gradient, Inputs, LogitsOperand, Order, Output, Softmax, SoftmaxInputs, SoftmaxPlan,
};
pub use t5::T5Bias;
pub use toeplitz::{Bias, BiasPlan, GatedBias, Toeplitz};

/// `kernels/bias/bias.cuh`: the biases of this room as functions for other people's attention kernels.
///
/// CUDA C++ that needs no other header: put it before a kernel's text, or include it. A build script of a crate that
/// depends on this one finds it as `bias/bias.cuh` in the folder that `DEP_POSENC_INCLUDE` names.
///
/// | function | what it takes | from |
/// |---|---|---|
/// | `posenc_alibi(left, right, distance)` | slopes of one head | [`Slopes`] |
/// | `posenc_toeplitz(row, first, count, distance)` | one head's row: T5, KERPLE, Sandwich | [`Toeplitz`] |
/// | `posenc_fire_factor(logs, count, least_norm, eps, query)` | once per query | [`Fire::logs`], [`Fire::least_norm`] |
/// | `posenc_fire_input(logs, count, factor, distance)` | | [`Fire::logs`] |
/// | `posenc_fire_line(breaks, count, input)` | | [`Fire::lines`] |
/// | `posenc_fire(breaks, count, slopes, intercepts, input)` | one head's lines | [`Fire::lines`] |
///
/// `distance = key - query` in positions; each gives what is added to the scaled logit, before the mask.
pub const DEVICE_HEADER: &str = include_str!("../../kernels/bias/bias.cuh");
