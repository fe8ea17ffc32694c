//! Grids: every token has a frame, a row and a column, and every axis has its own sinusoid in a part of the channels.
//!
//! ```text
//! angle(axis, pair) = (index along the axis + offset) * frequency(axis, pair)
//! ```

#[cfg(feature = "cuda")]
mod plan;

use std::f64::consts::TAU;

#[cfg(feature = "cuda")]
pub use plan::GridPlan;

use crate::embed::{Odd, Sinusoid, Tokens, at_least, check_scale};
use crate::shape::{Shape, product};
use crate::{Error, Pairing, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// A direction of a grid of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Along {
    /// time, of videos
    Frames = 0,
    /// downwards: y
    Rows = 1,
    /// to the right: x
    Columns = 2,
}

/// The size of a grid; its tokens lie frame by frame, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GridSize {
    /// frames; 1 for an image
    pub frames: usize,
    /// rows of a frame
    pub rows: usize,
    /// columns of a row
    pub columns: usize,
}

impl GridSize {
    /// An image.
    pub const fn image(rows: usize, columns: usize) -> Self {
        Self { frames: 1, rows, columns }
    }

    /// Tokens of the grid.
    ///
    /// # Errors
    /// If a size is 0, or the product does not fit into 63 bits.
    pub fn tokens(&self) -> Result<usize> {
        if self.frames == 0 || self.rows == 0 || self.columns == 0 {
            return Err(Error::Value(format!(
                "the grid has {} frames, {} rows and {} columns, each must be at least 1",
                self.frames, self.rows, self.columns
            )));
        }
        product("frames x rows x columns", &[self.frames, self.rows, self.columns])
    }

    /// The index of `token` along each axis: frame, row, column.
    ///
    /// # Panics
    /// If there are no rows or no columns.
    pub const fn place(&self, token: usize) -> [usize; 3] {
        let row = token / self.columns;
        [row / self.rows, row % self.rows, token % self.columns]
    }
}

/// One axis of a grid: its direction and the sinusoid of its index.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Axis {
    /// which index
    pub along: Along,
    /// what is made of it; `offset` crops, `scale` stretches
    pub sinusoid: Sinusoid,
}

/// Order of the channels of several axes in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Blocks {
    /// The first axis whole, then the second: `[sin y | cos y | sin x | cos x]` for axes in halves.
    #[default]
    ByAxis,
    /// The first wave of every axis, then the second: `[sin y | sin x | cos y | cos x]`. Every axis must be in halves and
    /// of even `dim`.
    ByWave,
}

/// Sinusoids of a grid's axes side by side: what to compute, without shape, element type or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::embed#grid).
///
/// | field | meaning |
/// |---|---|
/// | `axes` | the axes in the order of their channels |
/// | `blocks` | how they share a token's channels |
///
/// | model | |
/// |---|---|
/// | MAE, DiT, SD3 | [`Grid::columns_first`]: `[sin x, cos x, sin y, cos y]` |
/// | Hugging Face's helper, RT-DETR | [`Grid::rows_first`]: `[sin y, cos y, sin x, cos x]` |
/// | timm | [`Grid::by_wave`]: `[sin y, sin x, cos y, cos x]` |
/// | CogVideoX | [`Grid::video`]: a quarter of the channels for time, then as MAE |
/// | DETR | [`Grid::detr`]: y, then x, sine and cosine side by side; see [`Grid::write_masked`] |
///
/// # Source
/// MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed`; DETR (arXiv 2005.12872), appendix A.4.
///
/// # Example
/// ```
/// use posenc::embed::{Grid, GridSize};
/// let grid = Grid::columns_first(4);
/// // row 1, column 2 of 2 x 3 tokens
/// assert_eq!(grid.value(GridSize::image(2, 3).place(5), 0), 2f64.sin());
/// assert_eq!(grid.value(GridSize::image(2, 3).place(5), 3), 1f64.cos());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Grid {
    /// the axes in the order of their channels
    pub axes: Vec<Axis>,
    /// how they share a token's channels
    pub blocks: Blocks,
}

fn halves(along: Along, dim: usize) -> Axis {
    Axis { along, sinusoid: Sinusoid { pairing: Pairing::Half, odd: Odd::Refuse, ..Sinusoid::new(dim) } }
}

impl Grid {
    /// `[sin x | cos x | sin y | cos y]`: MAE, DiT, PixArt, SD3. `dim` is a multiple of 4.
    pub fn columns_first(dim: usize) -> Self {
        Self { axes: vec![halves(Along::Columns, dim / 2), halves(Along::Rows, dim - dim / 2)], blocks: Blocks::ByAxis }
    }

    /// `[sin y | cos y | sin x | cos x]`: Hugging Face's helper, RT-DETR; timm's with `interleave_sin_cos`. `dim` is a
    /// multiple of 4.
    pub fn rows_first(dim: usize) -> Self {
        Self { axes: vec![halves(Along::Rows, dim / 2), halves(Along::Columns, dim - dim / 2)], blocks: Blocks::ByAxis }
    }

    /// `[sin y | sin x | cos y | cos x]`: timm. `dim` is a multiple of 4.
    pub fn by_wave(dim: usize) -> Self {
        Self { blocks: Blocks::ByWave, ..Self::rows_first(dim) }
    }

    /// A quarter of the channels for the frame, three eighths for each of x and y: CogVideoX. `dim` is a multiple of 16.
    pub fn video(dim: usize) -> Self {
        let mut axes = vec![halves(Along::Frames, dim / 4)];
        axes.extend(Self::columns_first(dim - dim / 4).axes);
        Self { axes, blocks: Blocks::ByAxis }
    }

    /// `[y | x]`, each with sine and cosine side by side: DETR and its relatives. `dim` is a multiple of 4.
    pub fn detr(dim: usize, temperature: f64) -> Self {
        let axis = |along, dim| Axis {
            along,
            sinusoid: Sinusoid { odd: Odd::Refuse, max_period: temperature, ..Sinusoid::new(dim) },
        };
        Self { axes: vec![axis(Along::Rows, dim / 2), axis(Along::Columns, dim - dim / 2)], blocks: Blocks::ByAxis }
    }

    /// The same grid with the index along one direction counted from `first`: a cut out of a larger grid.
    pub fn cropped(mut self, along: Along, first: i64) -> Self {
        for axis in self.axes.iter_mut().filter(|axis| axis.along == along) {
            axis.sinusoid.offset = axis.sinusoid.offset.wrapping_add(first);
        }
        self
    }

    /// The same grid with coordinates along one direction multiplied by `scale`: diffusers'
    /// `base_size / grid_size / interpolation_scale`.
    pub fn scaled(mut self, along: Along, scale: f64) -> Self {
        for axis in self.axes.iter_mut().filter(|axis| axis.along == along) {
            axis.sinusoid.scale *= scale;
        }
        self
    }

    /// Channels of one token.
    pub fn dim(&self) -> usize {
        self.axes.iter().map(|axis| axis.sinusoid.dim).sum()
    }

    /// Refuses no axes, an axis whose sinusoid is refused or has a padding row, and [`Blocks::ByWave`] with axes it has no meaning for.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        if self.axes.is_empty() {
            return Err(Error::Value("axes is empty, a grid needs at least one axis".into()));
        }
        for (index, axis) in self.axes.iter().enumerate() {
            axis.sinusoid.check().map_err(|error| Error::Value(format!("axis {index} of the grid: {error}")))?;
            let Sinusoid { dim, pairing, padding, .. } = axis.sinusoid;
            if let Some(padding) = padding {
                return Err(Error::Value(format!(
                    "axis {index} of the grid has its padding at {padding}, the tokens of a grid have none"
                )));
            }
            if self.blocks == Blocks::ByWave && (pairing != Pairing::Half || dim % 2 == 1) {
                return Err(Error::Value(format!(
                    "axis {index} of the grid has {dim} channels in the pairing {pairing:?}, blocks by wave need an even \
                     number in halves"
                )));
            }
        }
        if self.dim() > u32::MAX as usize {
            return Err(Error::Value(format!("the grid has {} channels, it must have fewer than 2^32", self.dim())));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Grid {
    /// The axis of `channel` and the channel of that axis's sinusoid.
    ///
    /// # Panics
    /// If `channel` is not below [`Grid::dim`].
    pub fn channel(&self, channel: usize) -> (usize, usize) {
        let mut rest = channel;
        let halves = match self.blocks {
            Blocks::ByAxis => 1,
            Blocks::ByWave => 2,
        };
        for half in 0..halves {
            for (index, axis) in self.axes.iter().enumerate() {
                let part = axis.sinusoid.dim / halves;
                if rest < part {
                    return (index, half * part + rest);
                }
                rest -= part;
            }
        }
        panic!("channel {channel} of {}", self.dim());
    }

    /// The value of `channel` at the place (frame, row, column).
    ///
    /// # Panics
    /// If `channel` is not below [`Grid::dim`].
    pub fn value(&self, place: [usize; 3], channel: usize) -> f64 {
        let (axis, channel) = self.channel(channel);
        let axis = &self.axes[axis];
        axis.sinusoid.value(axis.along.of(place), channel)
    }

    /// The largest error of a written element at `place` before it is rounded to its type: the largest
    /// [`Sinusoid::error_bound`] of the axes.
    pub fn error_bound(&self, place: [usize; 3]) -> f64 {
        self.axes.iter().map(|axis| axis.sinusoid.error_bound(axis.along.of(place))).fold(0.0, f64::max)
    }

    /// The largest error of an element of [`Grid::add`] before it is rounded to its type: [`Grid::error_bound`], and
    /// `2^-24 * (2 |x * scale| + 2)` for the roundings of `scale`, of the sinusoid and of the sum to f32.
    pub fn add_error_bound(&self, place: [usize; 3], x: f64, scale: f64) -> f64 {
        self.error_bound(place) + f32::ROUNDOFF * (2.0 * (x * scale).abs() + 2.0) + 2.0 * f32::TINY
    }
}

impl Along {
    /// The index in this direction of the place (frame, row, column).
    fn of(self, place: [usize; 3]) -> i64 {
        place[match self {
            Self::Frames => 0,
            Self::Rows => 1,
            Self::Columns => 2,
        }] as i64
    }
}

/// Coordinates counted over a padding mask, as DETR does: `(count - centre) / (last count + 1e-6) * scale`.
///
/// A token's y is the number of unmasked tokens of its column down to itself, its x the number in its row up to itself;
/// `last count` is the number in the whole column or row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Counted {
    /// Divide counts by the last count and multiply them by `scale`.
    pub normalize: bool,
    /// 2 pi in every model known here
    pub scale: f64,
    /// 0 in DETR, 0.5 in Deformable DETR
    pub centre: f64,
}

impl Default for Counted {
    fn default() -> Self {
        Self { normalize: true, scale: TAU, centre: 0.0 }
    }
}

impl Counted {
    /// The coordinate of a token that is the `count`-th of `last`.
    pub fn coordinate(&self, count: usize, last: usize) -> f64 {
        let count = count as f64 - self.centre;
        if self.normalize { count / (last as f64 + 1e-6) * self.scale } else { count }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.scale.is_finite() && self.scale.abs() <= 1e6 && self.centre.is_finite() && self.centre.abs() <= 1e6 {
            Ok(())
        } else {
            Err(Error::Value(format!(
                "scale is {} and centre {}, both must be finite and at most 1e6",
                self.scale, self.centre
            )))
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Grid {
    /// Writes the grid's table on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[frames * rows * columns, dim]` | written |
    ///
    /// A class token's row of zeros is the caller's: write behind it.
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-15.
    ///
    /// # Errors
    /// If the spec or the size is refused, or `out` is too short. Nothing is written then.
    ///
    /// # Source
    /// MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Grid, GridSize};
    /// let mut table = [9.0f32; 2 * 4];
    /// Grid::rows_first(4).write(&mut table, GridSize::image(1, 2))?;
    /// assert_eq!(table, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1f64.sin() as f32, 1f64.cos() as f32]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], size: GridSize) -> Result<()> {
        self.check()?;
        let tokens = size.tokens()?;
        at_least("out", out.len(), product("tokens x dim", &[tokens, self.dim()])?)?;
        let value = self.values();
        for (token, row) in out.chunks_exact_mut(self.dim()).take(tokens).enumerate() {
            for (channel, out) in row.iter_mut().enumerate() {
                *out = T::from_f64(value(size.place(token), channel));
            }
        }
        Ok(())
    }

    /// `x = x * scale + grid` in place, on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `tokens` | embeddings; `tokens.tokens` is the grid's number of tokens |
    /// | `size` | | of the grid |
    /// | `scale` | | multiplies `x` |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-15.
    ///
    /// # Errors
    /// If the spec, a shape or `scale` is refused. Nothing is written then.
    ///
    /// # Source
    /// MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Grid, GridSize, Tokens};
    /// let mut x = [1.0f32; 4];
    /// Grid::rows_first(4).add(&mut x, &Tokens::new(1, 1, 4), GridSize::image(1, 1), 3.0)?;
    /// assert_eq!(x, [3.0, 4.0, 3.0, 4.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn add<T: Scalar>(&self, x: &mut [T], tokens: &Tokens, size: GridSize, scale: f64) -> Result<()> {
        self.check()?;
        tokens.check_dim("x", self.dim())?;
        tokens.check_written("x", x.len())?;
        check_scale(scale)?;
        check_tokens("x", tokens, size)?;
        let value = self.values();
        for batch in 0..tokens.batch {
            for token in 0..tokens.tokens {
                for channel in 0..self.dim() {
                    let x = &mut x[tokens.index(batch, token, channel)];
                    *x = T::from_f64(x.to_f64() * scale + value(size.place(token), channel));
                }
            }
        }
        Ok(())
    }

    /// Writes a table per image whose coordinates are counted over a padding mask, on the CPU.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, rows * columns, dim]` | written, masked tokens too |
    /// | `mask` | `[batch, rows * columns]` | 1 for a token of the image, 0 for padding |
    /// | `size` | | rows and columns; one frame |
    /// | `counted` | | how counts become coordinates |
    ///
    /// # Accuracy
    /// As [`Sinusoid::write_times`], at coordinates rounded to f64.
    ///
    /// # Errors
    /// If the spec or the size is refused, the grid has frames, a buffer is too short, or a coordinate turns more than 2^48
    /// times. Nothing is written then.
    ///
    /// # Source
    /// DETR (arXiv 2005.12872), `PositionEmbeddingSine`. Its code works in the model's type, in bf16 off by 0.034; this
    /// works in f64.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Counted, Grid, GridSize};
    /// let counted = Counted { normalize: false, ..Counted::default() };
    /// let mut out = [0.0f32; 2 * 4];
    /// Grid::detr(4, 10_000.0).write_masked(&mut out, &[1, 0], 1, GridSize::image(1, 2), counted)?;
    /// let (sin, cos) = (1f64.sin() as f32, 1f64.cos() as f32);
    /// // The second token is padding: none below it in its column, one up to it in its row.
    /// assert_eq!(out, [sin, cos, sin, cos, 0.0, 1.0, sin, cos]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write_masked<T: Scalar>(
        &self,
        out: &mut [T],
        mask: &[u8],
        batch: usize,
        size: GridSize,
        counted: Counted,
    ) -> Result<()> {
        self.check()?;
        counted.check()?;
        self.check_image(size)?;
        let tokens = size.tokens()?;
        at_least("mask", mask.len(), product("batch x tokens", &[batch, tokens])?)?;
        at_least("out", out.len(), product("batch x tokens x dim", &[batch, tokens, self.dim()])?)?;
        let fastest = self.axes.iter().flat_map(|axis| {
            let sinusoid = &axis.sinusoid;
            (0..sinusoid.pairs()).map(|pair| sinusoid.turns(pair).hi.abs())
        });
        let fastest = fastest.fold(0.0, f64::max);
        let mut coordinates = Vec::with_capacity(batch * tokens);
        for image in 0..batch {
            let mask = &mask[image * tokens..(image + 1) * tokens];
            for token in 0..tokens {
                let [_, row, column] = size.place(token);
                let count = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
                    rows.flat_map(|row| columns.clone().map(move |column| row * size.columns + column))
                        .filter(|&token| mask[token] != 0)
                        .count()
                };
                let own = [
                    counted.coordinate(count(0..row + 1, column..column + 1), count(0..size.rows, column..column + 1)),
                    counted.coordinate(count(row..row + 1, 0..column + 1), count(row..row + 1, 0..size.columns)),
                ];
                for axis in &self.axes {
                    let t = own[usize::from(axis.along != Along::Rows)] + axis.sinusoid.offset as f64;
                    if t.abs() * fastest > Sinusoid::MAX_TURNS {
                        return Err(Error::Value(format!(
                            "the coordinate of token {token} of image {image} is {t:e} and the fastest channel turns \
                             {fastest:e} times per unit, together at most 2^48 turns are held"
                        )));
                    }
                }
                coordinates.push(own);
            }
        }
        for (coordinates, row) in coordinates.iter().zip(out.chunks_exact_mut(self.dim())) {
            for (channel, out) in row.iter_mut().enumerate() {
                let (axis, inner) = self.channel(channel);
                let axis = &self.axes[axis];
                let t = coordinates[usize::from(axis.along != Along::Rows)];
                *out = T::from_f64(axis.sinusoid.value_at(t, inner));
            }
        }
        Ok(())
    }

    /// The values of every channel at one place after another, from rates that are computed once.
    fn values(&self) -> impl Fn([usize; 3], usize) -> f64 {
        let channels: Vec<_> = (0..self.dim()).map(|channel| self.channel(channel)).collect();
        let axes: Vec<_> = self.axes.iter().map(|axis| (axis.along, axis.sinusoid.rows())).collect();
        move |place, channel| {
            let (axis, channel) = channels[channel];
            let (along, value) = &axes[axis];
            value(along.of(place), channel)
        }
    }
}

/// Refuses a tensor whose number of tokens is not the grid's.
fn check_tokens(name: &str, tokens: &Tokens, size: GridSize) -> Result<()> {
    let grid = size.tokens()?;
    if tokens.tokens != grid {
        return Err(Error::Value(format!(
            "{name} has {} tokens, a grid of {} x {} x {} has {grid}",
            tokens.tokens, size.frames, size.rows, size.columns
        )));
    }
    Ok(())
}

impl Grid {
    /// Refuses frames where only images have a meaning.
    fn check_image(&self, size: GridSize) -> Result<()> {
        if size.frames != 1 {
            return Err(Error::Value(format!(
                "the grid has {} frames, a mask is counted over images of 1",
                size.frames
            )));
        }
        if self.axes.iter().any(|axis| axis.along == Along::Frames) {
            return Err(Error::Value("an axis runs along frames, a mask is counted over rows and columns".into()));
        }
        Ok(())
    }
}
