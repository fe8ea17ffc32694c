//! A tensor before and after another engine's rotation.

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::geometry::Geometry;
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
    /// the values as they were written, where `y` has a mistake undone
    written: Option<Vec<f64>>,
    /// what was undone in `y`
    pub decay: Option<Decay>,
    /// what was undone in `y`: the second channel of a pair was made from the first after it had been written
    pub overwritten: bool,
}

/// xPos: the length of a pair by its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Decay {
    pub geometry: Geometry,
    pub gamma: f64,
    pub scale_base: f64,
    pub center: f64,
    pub is_key: bool,
}

impl Decay {
    /// The factor of a pair.
    pub fn at(&self, position: i64, pair: usize) -> f64 {
        let zeta = (pair as f64 / self.geometry.pairs() as f64 + self.gamma) / (1.0 + self.gamma);
        let power = (position as f64 - self.center) / self.scale_base;
        zeta.powf(if self.is_key { -power } else { power })
    }

    /// The factor of a channel as it is written, 1 of those that are not rotated.
    pub fn channel(&self, position: i64, channel: usize) -> f64 {
        let is_of = |&pair: &usize| {
            let (c, d) = self.geometry.written(pair);
            c == channel || d == channel
        };
        (0..self.geometry.pairs()).find(is_of).map_or(1.0, |pair| self.at(position, pair))
    }
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
        let (written, decay) = (None, None);
        Ok(Self {
            dtype,
            batch,
            tokens,
            heads,
            dim,
            x,
            y,
            positions,
            not_finite,
            used,
            written,
            decay,
            overwritten: false,
        })
    }

    /// These tokens alone.
    pub fn of_tokens(&self, used: Vec<usize>) -> Self {
        Self { used, ..self.clone() }
    }

    /// These heads alone.
    pub fn of_heads(&self, heads: &[usize]) -> Self {
        let pick = |data: &[f64]| {
            let of = |at: usize| &data[at * self.dim..(at + 1) * self.dim];
            let rows = (0..self.tokens).flat_map(|token| heads.iter().map(move |head| token * self.heads + head));
            rows.flat_map(of).copied().collect::<Vec<f64>>()
        };
        let written = self.written.as_deref().map(pick);
        Self { heads: heads.len(), x: pick(&self.x), y: pick(&self.y), written, ..self.clone() }
    }

    /// The values after by what token, head, channel and they are; those that were written are kept.
    pub fn with_y(&self, y: impl Fn(usize, usize, usize, f64) -> f64) -> Self {
        let of = |(at, &value): (usize, &f64)| {
            y(at / self.dim / self.heads, at / self.dim % self.heads, at % self.dim, value)
        };
        let undone = self.y.iter().enumerate().map(of).collect();
        Self { y: undone, written: Some(self.written.clone().unwrap_or_else(|| self.y.clone())), ..self.clone() }
    }

    pub fn x(&self, token: usize, head: usize) -> &[f64] {
        let begin = (token * self.heads + head) * self.dim;
        &self.x[begin..begin + self.dim]
    }

    pub fn y(&self, token: usize, head: usize) -> &[f64] {
        let begin = (token * self.heads + head) * self.dim;
        &self.y[begin..begin + self.dim]
    }

    /// The values as they were written.
    pub fn written(&self, token: usize, head: usize) -> &[f64] {
        let begin = (token * self.heads + head) * self.dim;
        match &self.written {
            Some(data) if self.decay.is_some() || self.overwritten => &data[begin..begin + self.dim],
            _ => self.y(token, head),
        }
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
