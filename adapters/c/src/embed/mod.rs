//! A vector is added to the token embedding.

mod grid;
mod learned;
mod learned_grad;
mod resample;
mod sinusoid;
mod timestep;

use posenc::embed::Tokens;

use crate::{Failure, size};

pub use grid::*;
pub use learned::*;
pub use learned_grad::*;
pub use resample::*;
pub use sinusoid::*;
pub use timestep::*;

/// The shape of embeddings `[batch, tokens, dim]`; the channels of a token are contiguous.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencTokens {
    /// sequences
    pub batch: u64,
    /// tokens of each
    pub tokens: u64,
    /// channels of each token
    pub dim: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence and one token to the next
    pub strides: [u64; 2],
}

impl PosencTokens {
    pub(crate) fn shape(&self) -> Result<Tokens, Failure> {
        let [sequence, token] = self.strides;
        Ok(Tokens {
            batch: size("batch", self.batch)?,
            tokens: size("tokens", self.tokens)?,
            dim: size("dim", self.dim)?,
            offset: size("an offset", self.offset)?,
            strides: [size("a stride", sequence)?, size("a stride", token)?],
        })
    }
}
