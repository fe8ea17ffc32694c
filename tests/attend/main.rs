//! The `attend` room: the softmax of attention logits and its gradient.

#[path = "../support/biases.rs"]
mod biases;
#[path = "../support/cases.rs"]
mod cases;
mod forget;
mod libraries;
mod merge;
mod overlap;
mod relative_values;
mod scales;
mod softmax;
mod softmax_grad;
#[path = "../support/mod.rs"]
mod support;
mod terms;
#[path = "../support/terms.rs"]
mod terms_support;
