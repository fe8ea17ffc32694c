//! Positions are added to embeddings: sinusoids, timesteps, grids, learned tables.

#[cfg(feature = "cpu")]
mod cpu;
#[cfg(not(feature = "cpu"))]
#[path = "plain.rs"]
mod cpu;
mod grid;
#[cfg(feature = "cuda")]
mod launch;
mod learned;
mod learned_grad;
mod resample;
mod sinusoid;
mod timestep;

pub use crate::filter::{Filter, Taps};
#[cfg(feature = "cuda")]
pub use grid::GridPlan;
pub use grid::{Along, Axis, Blocks, Counted, Grid, GridSize};
#[cfg(feature = "cuda")]
pub use learned::{DeviceLookup, DeviceTables, ErrorFlag, LearnedPlan};
pub use learned::{Gradients, HostLookup, HostTables, Learned, Lookup, Norm, Row, Rows, Tables, order};
#[cfg(feature = "cuda")]
pub use learned_grad::{LearnedGradPlan, NormGrad, TableGrad};
#[cfg(feature = "cuda")]
pub use resample::ResamplePlan;
pub use resample::{Resample, Weighting};
#[cfg(feature = "cuda")]
pub use sinusoid::SinusoidPlan;
pub use sinusoid::{Frequencies, Odd, Sinusoid, Wave};
pub use timestep::Time;
#[cfg(feature = "cuda")]
pub use timestep::TimestepPlan;

pub use crate::shape::Tokens;

use crate::{Error, Result};

/// Refuses a buffer of `got` elements where `need` are read or written.
fn at_least(name: &'static str, got: usize, need: usize) -> Result<()> {
    if got < need { Err(Error::Length { name, got, need }) } else { Ok(()) }
}

/// Refuses a factor that f32 cannot hold.
fn check_scale(scale: f64) -> Result<()> {
    if scale.is_finite() && scale.abs() <= f64::from(f32::MAX) {
        Ok(())
    } else {
        Err(Error::Value(format!("scale is {scale}, it must be finite and fit into f32")))
    }
}
