//! The shape of embeddings.

use crate::shape::{distinct, product, span};
use crate::{Error, Result};

/// A tensor of embeddings, `[batch, tokens, dim]`; the channels of a token lie side by side.
///
/// Element `(b, t, c)` lies at `offset + b * strides[0] + t * strides[1] + c`.
///
/// ```
/// use posenc::embed::Tokens;
/// // The 196 patches behind a class token, in a buffer of [2, 197, 768].
/// let patches = Tokens { offset: 768, strides: [197 * 768, 768], ..Tokens::new(2, 196, 768) };
/// assert_eq!(patches.span()?, 2 * 197 * 768);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// sequences
    pub batch: usize,
    /// tokens of each sequence
    pub tokens: usize,
    /// channels of each token
    pub dim: usize,
    /// first element
    pub offset: usize,
    /// elements from one sequence and one token to the next
    pub strides: [usize; 2],
}

impl Tokens {
    /// `[batch, tokens, dim]`, contiguous.
    pub const fn new(batch: usize, tokens: usize, dim: usize) -> Self {
        // Saturating: an overflow here is found, with its numbers, by `span`.
        Self { batch, tokens, dim, offset: 0, strides: [tokens.saturating_mul(dim), dim] }
    }

    /// Elements of the tensor, `batch * tokens * dim`.
    ///
    /// # Errors
    /// If the product does not fit into 63 bits.
    pub fn elements(&self) -> Result<usize> {
        product("batch x tokens x dim", &[self.batch, self.tokens, self.dim])
    }

    /// Elements that a buffer must hold: one past the last element that the tensor reaches, 0 for an empty tensor.
    ///
    /// # Errors
    /// If a product does not fit into 63 bits.
    pub fn span(&self) -> Result<usize> {
        span("a tensor of embeddings", self.offset, &self.dims())
    }

    /// Index of element `(batch, token, channel)` in the buffer.
    pub const fn index(&self, batch: usize, token: usize, channel: usize) -> usize {
        self.offset + batch * self.strides[0] + token * self.strides[1] + channel
    }

    /// Whether a call has nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.batch == 0 || self.tokens == 0
    }

    fn dims(&self) -> [(usize, usize); 3] {
        [(self.batch, self.strides[0]), (self.tokens, self.strides[1]), (self.dim, 1)]
    }

    /// Refuses another number of channels than `dim`, products that overflow, and a buffer of `len` elements that is too
    /// short.
    pub(crate) fn check(&self, name: &'static str, dim: usize, len: usize) -> Result<()> {
        if self.dim != dim {
            return Err(Error::Value(format!("{name} has {} channels, the encoding has {dim}", self.dim)));
        }
        self.elements()?;
        at_least(name, len, self.span()?)
    }

    /// [`Tokens::check`] for a tensor that is written: its elements must not overlap.
    pub(crate) fn check_written(&self, name: &'static str, dim: usize, len: usize) -> Result<()> {
        self.check(name, dim, len)?;
        distinct(name, self.dims())
    }
}

/// Refuses a buffer of `got` elements where `need` are read or written.
pub(crate) fn at_least(name: &'static str, got: usize, need: usize) -> Result<()> {
    if got < need { Err(Error::Length { name, got, need }) } else { Ok(()) }
}
