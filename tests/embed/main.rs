//! Positions that are added to embeddings.

mod golden;
mod grid;
mod sinusoid;
mod timestep;
