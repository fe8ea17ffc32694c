//! Attention probabilities: the softmax of the logits, with any [`Bias`](crate::Bias) of the room [`bias`](crate::bias), and
//! its gradient.

#[cfg(feature = "cpu")]
mod cpu;
mod inputs;
mod merge;
mod relative_values;
mod softmax;
mod softmax_grad;
#[cfg(feature = "cuda")]
mod work;

pub use inputs::{Attended, HostInputs, Inputs};
#[cfg(feature = "cuda")]
pub use inputs::{DeviceBias, DeviceInputs};
pub use merge::{ExpectedMerge, ExpectedMergeGrad, HostState, State, merge_expect, merge_grad_expect, merge_states};
#[cfg(feature = "cuda")]
pub use merge::{MergeGrad, MergePlan};
#[cfg(feature = "cuda")]
pub use relative_values::{RelativeTableGradPlan, RelativeValuesPlan};
pub use relative_values::{RelativeValues, RelativeValuesGrad};
#[cfg(feature = "cuda")]
pub use softmax::SoftmaxPlan;
pub use softmax::{Order, Output, Softmax};
#[cfg(feature = "cuda")]
pub use softmax_grad::GradOptions;
pub use softmax_grad::{ExpectedGrad, Gradient};
