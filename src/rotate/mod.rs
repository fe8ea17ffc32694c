//! Query and key are rotated: RoPE.

mod hf;
mod rope;
mod scaling;

pub use rope::{Direction, Expected, Pairing, Rope};
pub use scaling::Scaling;
