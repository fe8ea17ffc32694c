//! Positions that are added to embeddings.

mod capture;
mod far;
mod golden;
mod grid;
mod learned;
mod limits;
mod overlap;
mod resample;
mod sinusoid;
#[path = "../support/mod.rs"]
mod support;
mod timestep;
