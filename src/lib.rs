//! Positional encodings on the GPU.

pub mod accuracy;
pub mod bias;
mod double;
mod error;
pub mod rotate;
mod scalar;
mod shape;

pub use bias::{
    Alibi, Bias, DistanceGrad, Fire, FireGrad, FireLines, Gradient, Inputs, Kerple, KerpleGrad, KerpleKind, KeyOnly,
    Order, Output, Place, Places, Sandwich, Sides, Slopes, SlopesGrad, Softmax, T5Bias, Toeplitz,
};
pub use error::{Error, Result};
pub use rotate::{Direction, Pairing, Rope, Scaling};
pub use scalar::Scalar;
pub use shape::{Heads, Logits};
