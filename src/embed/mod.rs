//! Positions are added to embeddings: sinusoids, timesteps, grids, learned tables.

mod cpu;
mod grid;
mod launch;
mod learned;
mod learned_grad;
mod resample;
mod sinusoid;
mod timestep;
mod tokens;

pub use grid::{Along, Axis, Blocks, Counted, Grid, GridPlan, GridSize};
pub use learned::{Fault, Gradients, Inputs, Learned, LearnedPlan, Lookup, Norm, Row, Rows, Tables, Weights, order};
pub use learned_grad::{GradPlan, NormGrad, TableGrad};
pub use resample::{Filter, Resample, ResamplePlan, Taps, Weighting};
pub use sinusoid::{Frequencies, Odd, Sinusoid, SinusoidPlan, Wave};
pub use timestep::{Time, TimestepPlan};
pub use tokens::Tokens;
