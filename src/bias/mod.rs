//! A number is added to the attention logit: biases that depend on distance, and the softmax that consumes them.
//!
//! `distance = key - query`, signed: keys of the past have negative distances. Every bias that depends on distance
//! alone reaches a kernel in one of two forms: [`Slopes`], two numbers per head, or [`Toeplitz`], one row of numbers
//! per head. [`Fire`] depends on the query's position too and has a form of its own.

mod alibi;
mod distance_grad;
mod fire;
mod kerple;
mod places;
mod sandwich;
mod softmax;
mod t5;
mod toeplitz;

pub use alibi::{Alibi, KeyOnly, Sides, Slopes, SlopesGrad};
pub use distance_grad::{DistanceGrad, DistanceGradPlan};
pub use fire::{Fire, FireGrad, FireLines};
pub use kerple::{Kerple, KerpleGrad, KerpleKind};
pub use places::{Place, Places};
pub use sandwich::Sandwich;
pub use softmax::{
    ExpectedGrad, GradOutputs, Gradient, Inputs, LogitsOperand, Order, Output, Softmax, SoftmaxInputs, SoftmaxPlan,
};
pub use t5::T5Bias;
pub use toeplitz::{Bias, BiasPlan, Toeplitz};
