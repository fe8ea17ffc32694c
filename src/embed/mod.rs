//! Positions are added to embeddings: sinusoids, timesteps, grids, learned tables.

mod grid;
mod sinusoid;
mod timestep;
mod tokens;

pub use grid::{Along, Axis, Blocks, Counted, Grid, GridSize};
pub use sinusoid::{Frequencies, Odd, Sinusoid, Wave};
pub use timestep::Time;
pub use tokens::Tokens;
