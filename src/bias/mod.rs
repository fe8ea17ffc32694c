//! A number is added to the attention logit: biases that depend on distance.
//!
//! `distance = key - query`, signed: keys of the past have negative distances. Every bias that depends on distance
//! alone reaches a kernel in one of two forms: [`Slopes`], two numbers per head, or [`Toeplitz`], one row of numbers
//! per head. [`Fire`] depends on the query's position too and has a form of its own. [`Bias`] is any of them; the
//! softmax of [`attend`](crate::attend) reads it without writing it to memory.

mod alibi;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
mod distance_grad;
mod fire;
mod fire_grad;
mod form;
mod gate_sums;
mod integers;
mod kerple;
mod layer;
mod products;
mod resize;
mod sandwich;
#[cfg(feature = "cuda")]
mod sums;
mod swin2;
mod t5;
mod terms;
mod toeplitz;

pub use crate::shape::Numbers;
pub use alibi::{Alibi, KeyOnly, Sides, Slopes, SlopesGrad};
pub use distance_grad::DistanceGrad;
#[cfg(feature = "cuda")]
pub use distance_grad::DistanceGradPlan;
pub use fire::{Fire, FireLines};
pub use fire_grad::FireGrad;
#[cfg(feature = "cuda")]
pub use fire_grad::FireGradPlan;
#[cfg(feature = "cuda")]
pub use form::{AsBias, BiasInputs, BiasPlan};
pub use form::{Bias, ExpectedBias};
#[cfg(feature = "cuda")]
pub(crate) use form::{Held, hold_places, rows};
#[cfg(feature = "cuda")]
pub use gate_sums::GateSumsPlan;
pub use gate_sums::{GateSums, Gates};
pub use kerple::{Kerple, KerpleGrad, KerpleKind};
pub use layer::{Relative, RelativeLayer, Segments};
#[cfg(feature = "cuda")]
pub use products::RelativeProductsPlan;
pub use products::{ProductInputs, RelativeProducts};
pub use resize::{TableResize, decomposed_axis, decomposed_row};
pub use sandwich::Sandwich;
#[cfg(feature = "cuda")]
pub use swin2::{DeviceSwin2Weights, Swin2GradOut, Swin2Plan};
pub use swin2::{HostSwin2Weights, LogCoordinates, Swin2Bias, Swin2Grad, Swin2Table, Swin2Weights, swin2_logit_scale};
pub use t5::T5Bias;
pub(crate) use terms::Pair;
#[cfg(feature = "cuda")]
pub(crate) use terms::plan::TermPlan;
#[cfg(feature = "cuda")]
pub use terms::{AnyNumbers, DeviceTermInputs, TermGradPlan};
pub use terms::{
    By, Coordinates, Distances, Index, Indices, MOST_TERMS, Outside, ShiftedWindows, Sign, Term, TermData, TermGrad,
    TermInputs, Terms, Window, WindowAxes,
};
pub use toeplitz::Toeplitz;

/// `kernels/bias/bias.cuh`: the biases of this room as functions for other people's attention kernels.
///
/// CUDA C++ that needs no other header: put it before a kernel's text, or include it. A build script of a crate that
/// depends on this one finds it as `bias/bias.cuh` in the folder that `DEP_POSENC_INCLUDE` names.
///
/// | function | what it takes | from |
/// |---|---|---|
/// | `posenc_alibi(left, right, distance)` | slopes of one head | [`Slopes`] |
/// | `posenc_toeplitz(row, first, count, distance)` | one head's row: T5, KERPLE, Sandwich | [`Toeplitz`] |
/// | `posenc_distance_entry(distance, first, count, zero_outside)` | the entry of a table by distance | [`Distances`] |
/// | `posenc_window_entry(dy, dx, height, width)` | the entry of a window's table | [`Window`] |
/// | `posenc_fire_factor(logs, count, least_norm, eps, query)` | once per query | [`Fire::logs`], [`Fire::least_norm`] |
/// | `posenc_fire_input(logs, count, factor, distance)` | | [`Fire::logs`] |
/// | `posenc_fire_line(breaks, count, input)` | | [`Fire::lines`] |
/// | `posenc_fire(breaks, count, slopes, intercepts, input)` | one head's lines | [`Fire::lines`] |
///
/// `distance = key - query` in positions; each gives what is added to the scaled logit, before the mask.
pub const DEVICE_HEADER: &str = include_str!("../../kernels/bias/bias.cuh");
