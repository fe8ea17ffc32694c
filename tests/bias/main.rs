//! The `bias` room: numbers that are added to attention logits.

mod alibi;
#[path = "../support/biases.rs"]
mod biases;
#[path = "../support/cases.rs"]
mod cases;
mod distance_grad;
mod fire;
mod gate_sums;
mod header;
mod kerple;
mod layer;
mod limits;
mod overlap;
mod products;
mod resize;
mod sandwich;
#[path = "../support/mod.rs"]
mod support;
mod swin2;
mod t5;
mod terms;
mod terms_grad;
#[path = "../support/terms.rs"]
mod terms_support;
mod toeplitz;
mod window;
