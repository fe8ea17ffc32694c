#![doc = include_str!("../README.md")]

pub mod accuracy;
mod double;
mod error;
pub mod gpu;
mod positions;
pub mod rotate;
mod scalar;
mod shape;

pub use error::{Error, Result};
pub use gpu::Gpu;
pub use positions::{Id, Ids, Positions};
pub use rotate::{Direction, ModelRope, Pairing, Rope, RopePlan, Scaling};
pub use scalar::Scalar;
pub use shape::Heads;
