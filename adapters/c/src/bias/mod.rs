//! A number is added to the attention logit.

mod distance_grad;
mod encodings;
mod places;
mod softmax;
mod toeplitz;

pub use distance_grad::*;
pub use encodings::*;
pub use places::*;
pub use softmax::*;
pub use toeplitz::*;
