#![doc = include_str!("../README.md")]
#![deny(missing_debug_implementations)]

mod at;
mod embed;
#[cfg(feature = "cuda")]
mod plans;
mod prologue;
mod rope;
pub mod rotary_emb;
mod softmax;
mod tensor;

pub use at::At;
pub use embed::{Learned, Sinusoid};
/// The crate whose specs these operations take.
pub use posenc;
pub use prologue::{Prologue, Slots};
pub use rope::Rope;
pub use softmax::{Bias, Softmax};

/// The samples of the page are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/candle.md")]
struct Page;
