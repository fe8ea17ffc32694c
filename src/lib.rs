//! Positional encodings for transformers as CUDA kernels behind safe Rust, exact at every position.
//!
#![deny(missing_debug_implementations)]
#![cfg_attr(doc, doc = include_str!(concat!(env!("OUT_DIR"), "/pages/front.md")))]
#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "plans alone use it"))]
//!
//! # Where names are
//!
//! The root has every spec and every plan, and what all rooms share: shapes, positions, errors. What one operation takes beside
//! is in its room: [`embed`], [`rotate`], [`bias`], [`attend`].

pub mod accuracy;
pub mod attend;
pub mod bias;
mod cpu;
#[cfg(doc)]
pub mod docs;
mod double;
pub mod embed;
mod error;
mod filter;
#[cfg(feature = "cuda")]
pub mod gpu;
mod memory;
#[cfg(feature = "models")]
pub mod model;
mod pairing;
pub mod position;
pub mod rotate;
mod scalar;
mod shape;

/// The version of cudarc whose buffers and streams plans take.
#[cfg(feature = "cuda")]
pub use cudarc;
/// The version of half whose `f16` and `bf16` are element types.
pub use half;

pub use attend::Softmax;
#[cfg(feature = "cuda")]
pub use attend::SoftmaxPlan;
pub use bias::{Alibi, Bias, Fire, Kerple, Sandwich, T5Bias, Toeplitz};
#[cfg(feature = "cuda")]
pub use bias::{BiasPlan, DistanceGradPlan, FireGradPlan};
pub use embed::{Grid, Learned, Resample, Sinusoid};
#[cfg(feature = "cuda")]
pub use embed::{GridPlan, LearnedGradPlan, LearnedPlan, ResamplePlan, SinusoidPlan, TimestepPlan};
pub use error::{Error, Result};
#[cfg(feature = "cuda")]
pub use gpu::Gpu;
#[cfg(feature = "cuda")]
pub use memory::Device;
pub use memory::{Host, Memory};
#[cfg(feature = "models")]
pub use model::{ModelPositions, ModelPrologue, ModelRope};
pub use pairing::Pairing;
#[cfg(feature = "cuda")]
pub use position::{Id, Ids};
pub use position::{Packed, Place, Places, Positions};
pub use rotate::{Direction, Prologue, Rope, Scaling, XPos};
#[cfg(feature = "cuda")]
pub use rotate::{ProloguePlan, RopePlan, RopePlans};
pub use scalar::Scalar;
pub use shape::{Heads, Logits, Shape, Tokens};

/// The samples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
