//! Grids: every token has a frame, a row and a column, and every axis has its own sinusoid in a part of the channels.
//!
//! ```text
//! angle(axis, pair) = (index along the axis + offset) * frequency(axis, pair)
//! ```

use std::f64::consts::TAU;
use std::marker::PhantomData;

use cudarc::driver::CudaSlice;

use crate::embed::launch::{alignment, blocks, small, spread, width};
use crate::embed::tokens::at_least;
use crate::embed::{Odd, Sinusoid, Tokens, Wave};
use crate::gpu::args::{Divisor, GridArgs, MaskedArgs};
use crate::gpu::{Function, Launch, Read, Write};
use crate::rotate::Pairing;
use crate::shape::product;
use crate::{Error, Gpu, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// A direction of a grid of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub struct Axis {
    /// which index
    pub along: Along,
    /// what is made of it; `offset` crops, `scale` stretches
    pub sinusoid: Sinusoid,
}

/// How the channels of several axes share a token's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
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
pub struct Counted {
    /// Whether counts are divided by the last count and multiplied by `scale`.
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
        tokens.check_written("x", self.dim(), x.len())?;
        super::sinusoid::check_scale(scale)?;
        check_tokens(tokens, size)?;
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
pub(crate) fn check_tokens(tokens: &Tokens, size: GridSize) -> Result<()> {
    let grid = size.tokens()?;
    if tokens.tokens != grid {
        return Err(Error::Value(format!(
            "x has {} tokens, a grid of {} x {} x {} has {grid}",
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

// -------------------------------------------------------------------------------------------------------------- launch

/// The variants of the kernel, from wide accesses to narrow ones.
const ENTRIES: [&str; 2] = ["grid_wide", "grid_one"];
const MASKED_ENTRIES: [&str; 2] = ["grid_masked_wide", "grid_masked_one"];

impl Grid {
    /// Rate and phase of every channel, and its axis as the kernel knows it.
    fn channels(&self) -> (Vec<u64>, Vec<u8>) {
        const QUARTER: u64 = 1 << 62;
        let mut channels = Vec::with_capacity(2 * self.dim());
        let mut axes = Vec::with_capacity(self.dim());
        for channel in 0..self.dim() {
            let (axis, inner) = self.channel(channel);
            let Axis { along, sinusoid } = &self.axes[axis];
            match sinusoid.channel(inner) {
                None => {
                    channels.extend([0, 0]);
                    axes.push(3);
                }
                Some((pair, wave)) => {
                    let rate = sinusoid.rate(pair);
                    let start = rate.wrapping_mul(sinusoid.offset as u64);
                    channels.extend([rate, if wave == Wave::Cosine { start.wrapping_add(QUARTER) } else { start }]);
                    axes.push(*along as u8);
                }
            }
        }
        (channels, axes)
    }

    /// Turns and offset of every channel, and its axis and wave as the masked kernel knows them.
    fn masked_channels(&self) -> (Vec<f64>, Vec<u8>) {
        let mut channels = Vec::with_capacity(3 * self.dim());
        let mut axes = Vec::with_capacity(self.dim());
        for channel in 0..self.dim() {
            let (axis, inner) = self.channel(channel);
            let Axis { along, sinusoid } = &self.axes[axis];
            match sinusoid.channel(inner) {
                None => {
                    channels.extend([0.0; 3]);
                    axes.push(3);
                }
                Some((pair, wave)) => {
                    let turns = sinusoid.turns(pair);
                    channels.extend([turns.hi, turns.lo, sinusoid.offset as f64]);
                    let axis = *along as u8 + if wave == Wave::Cosine { 4 } else { 0 };
                    // The angle of the channel before it: a pair's waves side by side are made at once.
                    let [own, before] = [channel, channel.saturating_sub(1)].map(|at| &channels[3 * at..3 * at + 3]);
                    let same = channel > 0 && own == before && axes[channel - 1] % 4 == axis % 4;
                    axes.push(axis + if same { 8 } else { 0 });
                }
            }
        }
        (channels, axes)
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Grid`] on a [`Gpu`], for one element type: its channels are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; sizes may change from call to call.
pub struct GridPlan<T> {
    gpu: Gpu,
    spec: Grid,
    channels: CudaSlice<u64>,
    axes: CudaSlice<u8>,
    masked_channels: CudaSlice<f64>,
    masked_axes: CudaSlice<u8>,
    functions: [Function; 2],
    masked: [Function; 2],
    element: PhantomData<T>,
}

impl<T: Scalar> GridPlan<T> {
    /// Uploads the channels and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Grid) -> Result<Self> {
        spec.check()?;
        let (channels, axes) = spec.channels();
        let (masked_channels, masked_axes) = spec.masked_channels();
        let load = |entry| gpu.function("embed/grid", T::NAME, entry);
        let load_masked = |entry| gpu.function("embed/grid_masked", T::NAME, entry);
        let [wide, one] = ENTRIES;
        let [a, b] = MASKED_ENTRIES;
        Ok(Self {
            gpu: gpu.clone(),
            spec: spec.clone(),
            channels: gpu.upload(&channels)?,
            axes: gpu.upload(&axes)?,
            masked_channels: gpu.upload(&masked_channels)?,
            masked_axes: gpu.upload(&masked_axes)?,
            functions: [load(wide)?, load(one)?],
            masked: [load_masked(a)?, load_masked(b)?],
            element: PhantomData,
        })
    }

    /// The spec.
    pub fn grid(&self) -> &Grid {
        &self.spec
    }

    /// Writes the grid's table, once for every sequence of `tokens`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `tokens` | written |
    /// | `tokens` | | sizes and strides; its number of tokens is the grid's |
    /// | `size` | | frames, rows and columns |
    ///
    /// # Accuracy
    /// [`Grid::error_bound`] and the rounding to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// If a shape is refused, or a buffer is too short or lies in another context. Nothing is written then.
    ///
    /// # Source
    /// MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{Grid, GridPlan, GridSize, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = GridPlan::<f32>::new(&gpu, &Grid::columns_first(768))?;
    /// // Behind a class token, whose row stays zero.
    /// let mut table = gpu.stream().alloc_zeros(197 * 768)?;
    /// plan.write(&mut table, Tokens { offset: 768, ..Tokens::new(1, 196, 768) }, GridSize::image(14, 14))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self, out: Write<'_, T>, tokens: Tokens, size: GridSize) -> Result<()> {
        self.run("out", out, tokens, size, None)
    }

    /// `x = x * scale + grid` in place.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `tokens` | embeddings; `tokens.tokens` is the grid's number of tokens |
    /// | `size` | | frames, rows and columns |
    /// | `scale` | | multiplies `x` |
    ///
    /// # Accuracy
    /// [`Grid::add_error_bound`] and the rounding to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// If a shape or `scale` is refused, or a buffer is too short or lies in another context. Nothing is written then.
    ///
    /// # Source
    /// MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{Grid, GridPlan, GridSize, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = GridPlan::<f32>::new(&gpu, &Grid::columns_first(768))?;
    /// let mut x = gpu.stream().alloc_zeros(8 * 196 * 768)?;
    /// plan.add(&mut x, Tokens::new(8, 196, 768), GridSize::image(14, 14), 1.0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add(&self, x: Write<'_, T>, tokens: Tokens, size: GridSize, scale: f64) -> Result<()> {
        super::sinusoid::check_scale(scale)?;
        self.run("x", x, tokens, size, Some(scale as f32))
    }

    /// Writes a table per image whose coordinates are counted over a padding mask.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, rows * columns, dim]` | written, masked tokens too |
    /// | `mask` | `[batch, rows * columns]` | not 0 for a token of the image |
    /// | `size` | | rows and columns; one frame |
    /// | `counted` | | how counts become coordinates |
    ///
    /// Channels at a coordinate that turns more than 2^48 times become NaN.
    ///
    /// # Accuracy
    /// [`Sinusoid::time_error_bound`] at coordinates in f64, and the rounding to `T`.
    ///
    /// # Errors
    /// If the size or `counted` is refused, the grid has frames, or a buffer is too short or lies in another context.
    /// Nothing is written then.
    ///
    /// # Source
    /// DETR (arXiv 2005.12872), `PositionEmbeddingSine`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{Counted, Grid, GridPlan, GridSize};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = GridPlan::<f32>::new(&gpu, &Grid::detr(256, 10_000.0))?;
    /// let mask = gpu.stream().clone_htod(&[1u8; 2 * 25 * 34])?;
    /// let mut out = gpu.stream().alloc_zeros(2 * 25 * 34 * 256)?;
    /// plan.write_masked(&mut out, &mask, 2, GridSize::image(25, 34), Counted::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_masked(
        &self,
        out: Write<'_, T>,
        mask: Read<'_, u8>,
        batch: usize,
        size: GridSize,
        counted: Counted,
    ) -> Result<()> {
        counted.check()?;
        self.spec.check_image(size)?;
        let (tokens, dim) = (size.tokens()?, self.spec.dim());
        if size.rows >= 1 << 24 || size.columns >= 1 << 24 {
            return Err(Error::Value(format!(
                "the grid has {} rows and {} columns, each must be below 2^24 to be counted",
                size.rows, size.columns
            )));
        }
        let need = product("batch x tokens x dim", &[batch, tokens, dim])?;
        let places = product("batch x tokens", &[batch, tokens])?;
        at_least("mask", mask.len(), places)?;
        at_least("out", out.len(), need)?;
        if batch == 0 {
            return Ok(());
        }
        small("tokens", tokens)?;
        let gpu = &self.gpu;
        let mask = gpu.read("mask", mask, places)?;
        let out = gpu.write("out", out, need)?;
        let channels = gpu.read("channels", &self.masked_channels, 3 * dim)?;
        let axes = gpu.read("axes", &self.masked_axes, dim)?;
        let variant = width(size_of::<T>(), alignment(&[out.address.address()]), dim).index;
        // A warp for each token, whose threads count together.
        let (blocks, block) = blocks(32, tokens)?;
        let args = MaskedArgs {
            x: out.address,
            mask: mask.address,
            channels: channels.address,
            axes: axes.address,
            centre: counted.centre,
            scale: counted.scale,
            rows: small("rows", size.rows)?,
            columns: small("columns", size.columns)?,
            batch: small("images", batch)?,
            dim: small("channels", dim)?,
            normalize: u32::from(counted.normalize),
            unused: 0,
        };
        let grid = [blocks, small("images", batch.min(65535))?, 1];
        let entry = MASKED_ENTRIES[variant];
        let launch = Launch { file: "embed/grid_masked", entry, grid, block, args };
        gpu.launch(&self.masked[variant], &launch)
    }

    fn run(
        &self,
        name: &'static str,
        x: Write<'_, T>,
        tokens: Tokens,
        size: GridSize,
        scale: Option<f32>,
    ) -> Result<()> {
        let dim = self.spec.dim();
        tokens.check_written(name, dim, x.len())?;
        check_tokens(&tokens, size)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let x = gpu.write(name, x, tokens.span()?)?;
        let channels = gpu.read("channels", &self.channels, 2 * dim)?;
        let axes = gpu.read("axes", &self.axes, dim)?;
        let width = width(size_of::<T>(), alignment(&[x.address.address()]), tokens.sizes() | dim);
        let units = dim.div_ceil(width.elements);
        let spread = spread(units, tokens.batch, tokens.tokens, true, gpu.multiprocessors())?;
        let (rows, columns) = (small("rows", size.rows)?, small("columns", size.columns)?);
        let args = GridArgs {
            x: x.address.offset((tokens.offset * size_of::<T>()) as u64),
            channels: channels.address,
            axes: axes.address,
            strides: tokens.strides(),
            tokens: small("tokens", tokens.tokens)?,
            rows,
            columns,
            by_rows: Divisor::new(rows),
            by_columns: Divisor::new(columns),
            batch: small("sequences", tokens.batch)?,
            batches_per_thread: spread.batches_per_thread,
            groups: spread.groups,
            dim: small("channels", dim)?,
            scale: scale.unwrap_or(1.0),
            add: u32::from(scale.is_some()),
            unused: 0,
        };
        let entry = ENTRIES[width.index];
        let launch = Launch { file: "embed/grid", entry, grid: spread.grid, block: spread.block, args };
        gpu.launch(&self.functions[width.index], &launch)
    }
}
