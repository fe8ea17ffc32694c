//! Query and key are rotated: RoPE.

mod axes;
mod cpu;
mod model;
pub mod positions;
mod power;
mod query_scale;
mod rope;
mod scaling;
mod xpos;

pub use axes::Axes;
pub use model::{Gguf, GgufValue, Layer, ModelRope};
pub use query_scale::QueryScale;
pub use rope::{Angles, Beyond, Direction, Operand, Pairing, Rope, RopePlan, Table, TableValues};
pub use scaling::{Ramp, Scaling, Yarn, longrope_attention_factor, mla_logit_scale, yarn_mscale};
pub use xpos::{Side, XPos, XPosPlan};
