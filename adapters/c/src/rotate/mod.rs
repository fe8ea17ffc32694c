//! Queries and keys are rotated.

mod rope;
mod xpos;

pub use rope::*;
pub use xpos::*;
