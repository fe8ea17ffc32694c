//! Positions are added to embeddings: sinusoids, timesteps, grids, learned tables.

mod grid;
mod launch;
mod learned;
mod sinusoid;
mod timestep;
mod tokens;

pub use grid::{Along, Axis, Blocks, Counted, Grid, GridSize};
pub use learned::{Gradients, Learned, Lookup, Norm, Row, Rows, Tables, order};
pub use sinusoid::{Frequencies, Odd, Sinusoid, SinusoidPlan, Wave};
pub use timestep::{Time, TimestepPlan};
pub use tokens::Tokens;
