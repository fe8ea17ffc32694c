#![doc = include_str!("../README.md")]
#![deny(missing_debug_implementations)]

mod at;
mod rope;
pub mod rotary_emb;
mod tensor;

pub use at::At;
/// The crate whose specs these operations take.
pub use posenc;
pub use rope::Rope;
