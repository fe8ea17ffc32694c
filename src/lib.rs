#![doc = include_str!("../README.md")]

pub mod accuracy;
pub mod bias;
mod cpu;
mod double;
pub mod embed;
mod error;
pub mod gpu;
mod positions;
pub mod rotate;
mod scalar;
mod shape;

pub use bias::{
    Alibi, Bias, BiasPlan, DistanceGrad, DistanceGradPlan, ExpectedGrad, Fire, FireGrad, FireGradPlan, FireLines,
    GatedBias, GradOutputs, Gradient, Inputs, Kerple, KerpleGrad, KerpleKind, KeyOnly, LogitsOperand, Order, Output,
    Packed, Place, Places, Sandwich, Sides, Slopes, SlopesGrad, Softmax, SoftmaxInputs, SoftmaxPlan, T5Bias, Toeplitz,
};
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use positions::{Id, Ids, Positions};
pub use rotate::{Direction, ModelRope, Pairing, Rope, RopePlan, Scaling};
pub use scalar::Scalar;
pub use shape::{Heads, Logits};
