//! [`Grid`] on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{Axis, Counted, Grid, GridSize, check_tokens};
use crate::embed::launch::{blocks, check_contiguous, fitting, small, spread};
use crate::embed::{Tokens, Wave, check_scale};
use crate::gpu::args::{Divisor, GridArgs, MaskedArgs};
use crate::gpu::kernel::{GRID, GRID_MASKED};
use crate::gpu::{Kernel, Launch, Read, Uploaded, ViewMut, on_stream};
use crate::shape::product;
use crate::{Error, Gpu, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Tokens with one index that a thread walks at most: then what it writes is twice what it reads for its waves.
const MOST_RUN: usize = 16;
/// Threads of each multiprocessor that are left where threads walk several tokens.
const RUN_THREADS: usize = 256;

/// Threads that 16 bytes of channels need for a grid of `size`, each with up to `run` tokens of one index, on whatever axis they
/// are.
fn slots(size: GridSize, run: usize) -> usize {
    let GridSize { frames, rows, columns } = size;
    // Lines of one index, and tokens of each, along frames, rows and columns, and of channels of several axes.
    [(frames, rows * columns), (frames * rows, columns), (columns, frames * rows), (1, frames * rows * columns)]
        .map(|(lines, tokens)| lines * tokens.div_ceil(run))
        .into_iter()
        .fold(1, usize::max)
}

/// Rates and phases of channels side by side for threads that own `width` channels each: `[width, channels / width]`.
fn side_by_side(channels: &[u64], width: usize) -> Vec<u64> {
    let units = channels.len() / 2 / width;
    let of = |channel: usize| &channels[2 * channel..2 * channel + 2];
    (0..width).flat_map(|i| (0..units).flat_map(move |unit| of(unit * width + i))).copied().collect()
}

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

    /// The grid and the arguments that shapes decide, for accesses of `width` elements; tensors and channels are still missing.
    fn launch(&self, tokens: &Tokens, size: GridSize, width: usize, multiprocessors: u32) -> Result<Launch<GridArgs>> {
        let units = self.dim().div_ceil(width);
        // A thread needs 17 bytes and 40 instructions per channel for its waves, whatever it writes with them.
        let threads = units.saturating_mul(tokens.batch.saturating_mul(tokens.tokens));
        let run = (threads / (RUN_THREADS * multiprocessors as usize)).clamp(1, MOST_RUN);
        let spread = spread(units, tokens.batch, slots(size, run), true, multiprocessors)?;
        let (rows, columns) = (small("rows", size.rows)?, small("columns", size.columns)?);
        let run = small("tokens of a thread", run)?;
        let args = GridArgs {
            by_run: Divisor::new(run),
            run,
            strides: tokens.strides.map(|stride| stride as i64),
            tokens: small("tokens", tokens.tokens)?,
            rows,
            columns,
            by_rows: Divisor::new(rows),
            by_columns: Divisor::new(columns),
            batch: small("sequences", tokens.batch)?,
            batches_per_thread: spread.batches_per_thread,
            groups: spread.groups,
            dim: small("channels", self.dim())?,
            ..GridArgs::zeroed()
        };
        Ok(Launch::new(spread.grid, spread.block, args))
    }

    /// [`Grid::launch`] for coordinates that are counted over a mask: a warp for each token, whose threads count together.
    fn masked_launch(&self, images: &Tokens, size: GridSize, counted: Counted) -> Result<Launch<MaskedArgs>> {
        let (blocks, block) = blocks(32, images.tokens)?;
        small("tokens", images.tokens)?;
        let args = MaskedArgs {
            centre: counted.centre,
            scale: counted.scale,
            rows: small("rows", size.rows)?,
            columns: small("columns", size.columns)?,
            batch: small("images", images.batch)?,
            dim: small("channels", self.dim())?,
            normalize: u32::from(counted.normalize),
            ..MaskedArgs::zeroed()
        };
        Ok(Launch::new([blocks, small("images", images.batch.min(65535))?, 1], block, args))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Grid`] on a [`Gpu`], for one element type: its channels are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; sizes may change from call to call.
#[derive(Clone, Debug)]
pub struct GridPlan<T> {
    gpu: Gpu,
    spec: Grid,
    /// in the order of each of the kernels
    channels: [Uploaded<u64>; 2],
    axes: Uploaded<u8>,
    masked_channels: Uploaded<f64>,
    masked_axes: Uploaded<u8>,
    kernels: [Kernel<GridArgs>; 2],
    masked: [Kernel<MaskedArgs>; 2],
    element: PhantomData<T>,
}

on_stream! { GridPlan { gpu } }

impl<T: Scalar> GridPlan<T> {
    /// Uploads the channels and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Grid) -> Result<Self> {
        spec.check()?;
        let (channels, axes) = spec.channels();
        let width = 16 / size_of::<T>();
        // Channels that 16-byte accesses do not divide are read one by one alone.
        let width = if spec.dim().is_multiple_of(width) { width } else { 1 };
        let (masked_channels, masked_axes) = spec.masked_channels();
        Ok(Self {
            gpu: gpu.clone(),
            spec: spec.clone(),
            channels: [gpu.upload(&side_by_side(&channels, width))?, gpu.upload(&channels)?],
            axes: gpu.upload(&axes)?,
            masked_channels: gpu.upload(&masked_channels)?,
            masked_axes: gpu.upload(&masked_axes)?,
            kernels: gpu.load::<T, _, 2>(GRID)?,
            masked: gpu.load::<T, _, 2>(GRID_MASKED)?,
            element: PhantomData,
        })
    }

    /// The spec.
    pub const fn grid(&self) -> &Grid {
        &self.spec
    }

    /// Writes the grid's table, once for every sequence of `out`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, tokens, dim]` | written; its number of tokens is the grid's |
    /// | `size` | | frames, rows and columns |
    ///
    /// # Accuracy
    /// [`Grid::error_bound`] and the rounding to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// If a shape is refused, or a buffer is too short or belongs to another context. Nothing is written then.
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
    /// plan.write(Tokens::new(1, 196, 768).at(768).of_mut(&mut table), GridSize::image(14, 14))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(&'a self, out: ViewMut<'a, T, Tokens>, size: GridSize) -> Result<()> {
        self.run("out", out, size, None)
    }

    /// `x = x * scale + grid` in place.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `[batch, tokens, dim]` | embeddings; their number of tokens is the grid's |
    /// | `size` | | frames, rows and columns |
    /// | `scale` | | multiplies `x` |
    ///
    /// # Accuracy
    /// [`Grid::add_error_bound`] and the rounding to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// As [`GridPlan::write`], and if `scale` is refused.
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
    /// plan.add(Tokens::new(8, 196, 768).of_mut(&mut x), GridSize::image(14, 14), 1.0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add<'a>(&'a self, x: ViewMut<'a, T, Tokens>, size: GridSize, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.run("x", x, size, Some(scale as f32))
    }

    /// Writes a table per image whose coordinates are counted over a padding mask.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, rows * columns, dim]`, contiguous | written, masked tokens too |
    /// | `mask` | `[batch, rows * columns]` | not 0 for a token of the image |
    /// | `size` | | rows and columns; one frame |
    /// | `counted` | | how counts become coordinates |
    ///
    /// Channels at a coordinate that turns more than 2^48 times become NaN.
    ///
    /// # Accuracy
    /// [`Sinusoid::time_error_bound`](crate::embed::Sinusoid::time_error_bound) at coordinates in f64, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape, the size or `counted` is refused, the grid has frames, or a buffer is too short, belongs to another
    /// context or shares memory with `out`. Nothing is written then.
    ///
    /// # Source
    /// DETR (arXiv 2005.12872), `PositionEmbeddingSine`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{Counted, Grid, GridPlan, GridSize, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = GridPlan::<f32>::new(&gpu, &Grid::detr(256, 10_000.0))?;
    /// let mask = gpu.stream().clone_htod(&[1u8; 2 * 25 * 34])?;
    /// let mut out = gpu.stream().alloc_zeros(2 * 25 * 34 * 256)?;
    /// let images = Tokens::new(2, 25 * 34, 256).of_mut(&mut out);
    /// plan.write_masked(images, &mask, GridSize::image(25, 34), Counted::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_masked<'a>(
        &'a self,
        out: ViewMut<'a, T, Tokens>,
        mask: Read<'a, u8>,
        size: GridSize,
        counted: Counted,
    ) -> Result<()> {
        counted.check()?;
        self.spec.check_image(size)?;
        if size.rows >= 1 << 24 || size.columns >= 1 << 24 {
            return Err(Error::Value(format!(
                "the grid has {} rows and {} columns, each must be below 2^24 to be counted",
                size.rows, size.columns
            )));
        }
        let (dim, shape) = (self.spec.dim(), out.shape);
        shape.check_dim("out", dim)?;
        check_tokens("out", &shape, size)?;
        check_contiguous("out", &shape)?;
        let mut call = self.gpu.call();
        let mask = call.read("mask", mask, product("batch x tokens", &[shape.batch, shape.tokens])?)?;
        let out = call.view_mut("out", out)?;
        if shape.is_empty() {
            return Ok(());
        }
        let (kernel, _) = fitting::<T, _>(&self.masked, out.steps | (dim * size_of::<T>()) as u64);
        let mut launch = self.spec.masked_launch(&shape, size, counted)?;
        launch.args = MaskedArgs {
            x: out.at,
            mask,
            channels: call.table("channels", &self.masked_channels)?,
            axes: call.table("axes", &self.masked_axes)?,
            ..launch.args
        };
        call.launch(kernel, &launch)
    }

    fn run<'a>(
        &'a self,
        name: &'static str,
        x: ViewMut<'a, T, Tokens>,
        size: GridSize,
        scale: Option<f32>,
    ) -> Result<()> {
        let (dim, shape) = (self.spec.dim(), x.shape);
        shape.check_dim(name, dim)?;
        let mut call = self.gpu.call();
        let x = call.view_mut(name, x)?;
        check_tokens(name, &shape, size)?;
        if shape.is_empty() {
            return Ok(());
        }
        let [wide, one] = &self.kernels;
        let [side_by_side, channels] = &self.channels;
        let kernels = [(wide, side_by_side), (one, channels)];
        let (&(kernel, channels), width) = fitting::<T, _>(&kernels, x.steps | (dim * size_of::<T>()) as u64);
        let mut launch = self.spec.launch(&shape, size, width, self.gpu.multiprocessors())?;
        launch.args = GridArgs {
            x: x.at,
            channels: call.table("channels", channels)?,
            axes: call.table("axes", &self.axes)?,
            scale: scale.unwrap_or(1.0),
            add: u32::from(scale.is_some()),
            ..launch.args
        };
        call.launch(kernel, &launch)
    }
}
