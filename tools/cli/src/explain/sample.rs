//! A tensor before and after another engine's rotation.

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::tensors::{Dtype, Tensor};
use crate::ulp::coarser;

/// Order of the dimensions of a tensor: batch, tokens, heads, channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// [tokens, channels]
    Td,
    /// [tokens, heads, channels]
    Thd,
    /// [heads, tokens, channels]
    Htd,
    /// [batch, tokens, heads, channels]
    Bthd,
    /// [batch, heads, tokens, channels]
    Bhtd,
}

impl Layout {
    /// Layouts that a tensor of so many dimensions can have.
    pub const fn of(dimensions: usize) -> &'static [Self] {
        match dimensions {
            2 => &[Self::Td],
            3 => &[Self::Thd, Self::Htd],
            4 => &[Self::Bthd, Self::Bhtd],
            _ => &[],
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Td => "[tokens, channels]",
            Self::Thd => "[tokens, heads, channels]",
            Self::Htd => "[heads, tokens, channels]",
            Self::Bthd => "[batch, tokens, heads, channels]",
            Self::Bhtd => "[batch, heads, tokens, channels]",
        }
    }

    /// Sizes and strides of batch, tokens, heads and channels.
    fn sizes(self, shape: &[usize]) -> [(usize, usize); 4] {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let axis = |at: usize| (shape[at], stride(at));
        let one = (1, 0);
        match self {
            Self::Td => [one, axis(0), one, axis(1)],
            Self::Thd => [one, axis(0), axis(1), axis(2)],
            Self::Htd => [one, axis(1), axis(0), axis(2)],
            Self::Bthd => [axis(0), axis(1), axis(2), axis(3)],
            Self::Bhtd => [axis(0), axis(2), axis(1), axis(3)],
        }
    }
}

/// Both tensors as `[tokens, heads, channels]`, the sequences of a batch one after the other.
#[derive(Clone, Debug)]
pub struct Sample {
    pub dtype: Dtype,
    /// sequences, of equally many tokens each
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub dim: usize,
    x: Vec<f64>,
    y: Vec<f64>,
    /// the position of each token on each axis
    pub positions: Vec<Vec<i64>>,
    /// elements that are not finite, before and after; their tokens are left out
    pub not_finite: [usize; 2],
    /// tokens that are looked at
    pub used: Vec<usize>,
}

impl Sample {
    /// Sizes of batch, tokens of a sequence, heads and channels.
    pub fn sizes(shape: &[usize], layout: Layout) -> [usize; 4] {
        layout.sizes(shape).map(|(size, _)| size)
    }

    /// `positions` holds one list for each axis, of all tokens.
    pub fn new(x: &Tensor, y: &Tensor, layout: Layout, positions: Vec<Vec<i64>>) -> Result<Self> {
        ensure!(x.shape == y.shape, "the shape before is {:?} and after {:?}", x.shape, y.shape);
        let sizes = layout.sizes(&x.shape);
        let [batch, row, heads, dim] = sizes.map(|(size, _)| size);
        let strides = sizes.map(|(_, stride)| stride);
        let tokens = batch * row;
        ensure!(x.len() > 0, "the tensors have the shape {:?}, there is nothing to look at", x.shape);
        for list in &positions {
            ensure!(list.len() == tokens, "there are {} positions for {tokens} tokens", list.len());
        }
        let arrange = |tensor: &Tensor| {
            let data = tensor.to_f64();
            let mut out = Vec::with_capacity(data.len());
            for token in 0..tokens {
                for head in 0..heads {
                    let begin = token / row * strides[0] + token % row * strides[1] + head * strides[2];
                    out.extend((0..dim).map(|channel| data[begin + channel * strides[3]]));
                }
            }
            out
        };
        let dtype = coarser(x.dtype, y.dtype);
        let (x, y) = (arrange(x), arrange(y));
        let bad = |data: &[f64]| data.iter().filter(|it| !it.is_finite()).count();
        let not_finite = [bad(&x), bad(&y)];
        let size = heads * dim;
        let is_whole = |token: usize| {
            let range = token * size..(token + 1) * size;
            x[range.clone()].iter().chain(&y[range]).all(|it| it.is_finite())
        };
        let used = (0..tokens).filter(|&token| is_whole(token)).collect::<Vec<_>>();
        ensure!(
            !used.is_empty(),
            "every token has elements that are not finite: {} before, {} after",
            not_finite[0],
            not_finite[1]
        );
        Ok(Self { dtype, batch, tokens, heads, dim, x, y, positions, not_finite, used })
    }

    pub fn x(&self, token: usize, head: usize) -> &[f64] {
        let begin = (token * self.heads + head) * self.dim;
        &self.x[begin..begin + self.dim]
    }

    pub fn y(&self, token: usize, head: usize) -> &[f64] {
        let begin = (token * self.heads + head) * self.dim;
        &self.y[begin..begin + self.dim]
    }

    /// At most `count` of the tokens, evenly spread, the first and the last among them.
    pub fn some(&self, count: usize) -> Vec<usize> {
        let all = &self.used;
        if all.len() <= count {
            return all.clone();
        }
        (0..count).map(|i| all[i * (all.len() - 1) / (count - 1)]).collect()
    }

    /// Tokens of one sequence, by their place in it.
    pub fn rows(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let row = self.tokens / self.batch;
        (0..self.batch).map(move |i| i * row..(i + 1) * row)
    }
}
