//! Query and key are rotated: RoPE.

mod axes;
#[cfg(feature = "cpu")]
mod cpu;
mod mixed;
mod power;
mod prologue;
mod query_scale;
mod rope;
mod scaling;
#[cfg(feature = "cuda")]
mod table;
mod xpos;

#[cfg(feature = "models")]
pub use crate::model::{Gguf, GgufValue, Layer, ModelRope};
pub use axes::Axes;
#[cfg(feature = "cuda")]
pub use mixed::RopeGradPlan;
pub use mixed::{Mixed, RopeGrad};
pub use prologue::{
    Branch, CacheRows, Code8, HeadNorm, HostCache, HostScale, HostStored, NormKind, NormOver, NormWeight, Prologue,
    Qkv, Rounding, Vectors,
};
#[cfg(feature = "cuda")]
pub use prologue::{Cache, CodeScale, Codes, Projected, PrologueCall, ProloguePlan, Stored};
pub use query_scale::QueryScale;
pub use rope::{Angles, Direction, Rope};
#[cfg(feature = "cuda")]
pub use rope::{Keys, RopePlan, RopePlans, Rotation};
pub use scaling::{Ramp, Scaling, Yarn, longrope_attention_factor, mla_logit_scale, yarn_mscale};
#[cfg(feature = "cuda")]
pub use table::{OutOfRange, Table, TableValues};
pub use xpos::{Side, XPos};
