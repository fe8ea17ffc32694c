//! Queries and keys are rotated.

mod rope;

pub use rope::*;
