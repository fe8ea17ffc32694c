//! Positional encodings on the GPU.

pub mod accuracy;
mod double;
pub mod embed;
mod error;
pub mod rotate;
mod scalar;
mod shape;

pub use error::{Error, Result};
pub use rotate::{Direction, Pairing, Rope, Scaling};
pub use scalar::Scalar;
pub use shape::Heads;
