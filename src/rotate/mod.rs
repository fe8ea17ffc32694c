//! Query and key are rotated: RoPE.

mod hf;
mod rope;
mod scaling;

pub use rope::{Direction, Expected, Operand, Pairing, Rope, RopePlan};
pub use scaling::Scaling;
