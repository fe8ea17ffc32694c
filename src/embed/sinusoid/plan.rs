//! [`Sinusoid`] on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{Odd, Sinusoid, Wave};
use crate::embed::launch::{fitting, small, spread};
use crate::embed::{Tokens, check_scale};
use crate::gpu::args::{LastChannel, SinusoidArgs};
use crate::gpu::kernel::SINUSOID;
use crate::gpu::{Kernel, Launch, Uploaded, ViewMut, on_stream};
use crate::pairing::Runs;
use crate::{Gpu, Ids, Pairing, Positions, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

impl Sinusoid {
    /// The last channel of an odd dim, and its index.
    pub(crate) fn last(&self) -> (LastChannel, usize) {
        match (self.dim % 2, self.odd, self.pairing) {
            (0, _, _) => (LastChannel::NONE, 0),
            (_, Odd::Longer, Pairing::Half) => (LastChannel::WAVE, self.dim / 2),
            (_, Odd::Longer, Pairing::Interleaved) => (LastChannel::WAVE, self.dim - 1),
            _ => (LastChannel::ZERO, self.dim - 1),
        }
    }

    /// The union of the sizes that decide how wide a thread's accesses may be, in elements.
    pub(crate) const fn sizes(&self) -> usize {
        (self.dim / 2) | if matches!(self.pairing, Pairing::Half) { self.pairs() } else { 0 }
    }

    /// The grid and the arguments that shapes decide, for accesses of `width` elements; tensors, rates and positions are still
    /// missing. `shared`: the sequences have the same positions.
    fn launch(
        &self,
        tokens: &Tokens,
        width: usize,
        shared: bool,
        multiprocessors: u32,
    ) -> Result<Launch<SinusoidArgs>> {
        let pairs = self.dim / 2;
        let spread = spread(pairs / width, tokens.batch, tokens.tokens, shared, multiprocessors)?;
        let (last, last_channel) = self.last();
        let runs = Runs::new(self.pairing, pairs, width);
        let args = SinusoidArgs {
            strides: tokens.strides.map(|stride| stride as i64),
            offset: self.offset,
            padding: self.padding.unwrap_or(0),
            tokens: small("tokens", tokens.tokens)?,
            batch: small("sequences", tokens.batch)?,
            batches_per_thread: spread.batches_per_thread,
            groups: spread.groups,
            pairs: small("pairs", pairs)?,
            second: small("channels", runs.second(self.pairing, width, self.pairs()))?,
            run: small("pairs of a run", runs.run)?,
            runs: small("pairs of first runs", runs.first)?,
            apart: small("pairs between runs", runs.apart)?,
            last,
            last_channel: small("channels", last_channel)?,
            interleaved: u32::from(self.pairing == Pairing::Interleaved),
            cosine_first: u32::from(self.first == Wave::Cosine),
            padded: u32::from(self.padding.is_some()),
            ..SinusoidArgs::zeroed()
        };
        Ok(Launch::new(spread.grid, spread.block, args))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Sinusoid`] on a [`Gpu`], for one element type: its rates are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; shapes may change from call to
/// call.
#[derive(Clone, Debug)]
pub struct SinusoidPlan<T> {
    gpu: Gpu,
    spec: Sinusoid,
    rates: Uploaded<u64>,
    kernels: [Kernel<SinusoidArgs>; 2],
    element: PhantomData<T>,
}

on_stream! { SinusoidPlan { gpu } }

impl<T: Scalar> SinusoidPlan<T> {
    /// Uploads the rates and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Sinusoid) -> Result<Self> {
        spec.check()?;
        let rates: Vec<u64> = (0..spec.pairs()).map(|pair| spec.rate(pair)).collect();
        Ok(Self {
            gpu: gpu.clone(),
            spec: spec.clone(),
            rates: gpu.upload(&rates)?,
            kernels: gpu.load::<T, _, 2>(SINUSOID)?,
            element: PhantomData,
        })
    }

    /// The spec.
    pub const fn sinusoid(&self) -> &Sinusoid {
        &self.spec
    }

    /// Writes the sinusoid of every token: a table, or the values at given positions.
    ///
    /// `channel = sin or cos((position + offset) * frequency(pair))`
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, tokens, dim]` | written; a table of n rows is `Tokens::new(1, n, dim).of_mut(&mut table)` |
    /// | `positions` | see [`Positions`] | any integers; [`Positions::counted`] for the rows of a table |
    ///
    /// # Accuracy
    /// [`Sinusoid::error_bound`] and the rounding to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// If the shape is refused, a buffer is too short, belongs to another context or shares memory with `out`. Nothing is
    /// written then.
    ///
    /// # Source
    /// "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{Sinusoid, SinusoidPlan, Tokens};
    /// use posenc::{Gpu, Positions};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(512))?;
    /// let mut table = gpu.stream().alloc_zeros(1500 * 512)?;
    /// plan.write(Tokens::new(1, 1500, 512).of_mut(&mut table), Positions::counted())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(&'a self, out: ViewMut<'a, T, Tokens>, positions: Positions<Ids<'a>>) -> Result<()> {
        self.run("out", out, positions, None)
    }

    /// `x = x * scale + sinusoid` in place.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `[batch, tokens, dim]` | embeddings |
    /// | `positions` | see [`Positions`] | token positions |
    /// | `scale` | | multiplies `x`: 1, or `sqrt(dim)` in the paper |
    ///
    /// `x` is read and written once and no table is read. Sequences that share their positions share their angles.
    ///
    /// # Accuracy
    /// [`Sinusoid::add_error_bound`] and the rounding to `T`. The same bits on every device, for every shape and
    /// alignment.
    ///
    /// # Errors
    /// As [`SinusoidPlan::write`], and if `scale` is refused.
    ///
    /// # Source
    /// "Attention Is All You Need" (arXiv 1706.03762), sections 3.4 and 3.5.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{Sinusoid, SinusoidPlan, Tokens};
    /// use posenc::{Gpu, Positions};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = SinusoidPlan::<half::bf16>::new(&gpu, &Sinusoid::new(512))?;
    /// let mut x = gpu.stream().alloc_zeros(8 * 100 * 512)?;
    /// plan.add(Tokens::new(8, 100, 512).of_mut(&mut x), Positions::counted(), 512f64.sqrt())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add<'a>(&'a self, x: ViewMut<'a, T, Tokens>, positions: Positions<Ids<'a>>, scale: f64) -> Result<()> {
        check_scale(scale)?;
        self.run("x", x, positions, Some(scale as f32))
    }

    fn run<'a>(
        &'a self,
        name: &'static str,
        x: ViewMut<'a, T, Tokens>,
        positions: Positions<Ids<'a>>,
        scale: Option<f32>,
    ) -> Result<()> {
        let (spec, shape) = (&self.spec, x.shape);
        shape.check_dim(name, spec.dim)?;
        let mut call = self.gpu.call();
        let x = call.view_mut(name, x)?;
        if shape.is_empty() {
            return Ok(());
        }
        let (kernel, width) = fitting::<T, _>(&self.kernels, x.steps | (spec.sizes() * size_of::<T>()) as u64);
        let mut launch = spec.launch(&shape, width, positions.is_shared(shape.batch), self.gpu.multiprocessors())?;
        launch.args = SinusoidArgs {
            x: x.at,
            at: positions.hold(&mut call, 1, shape.batch, shape.tokens)?,
            rates: call.table("rates", &self.rates)?,
            scale: scale.unwrap_or(1.0),
            add: u32::from(scale.is_some()),
            ..launch.args
        };
        call.launch(kernel, &launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_the_same_positions_share_a_thread_where_the_device_is_busy() {
        let spec = Sinusoid::new(512);
        let launch = |batch, tokens, shared| spec.launch(&Tokens::new(batch, tokens, 512), 8, shared, 132).unwrap();
        let many = launch(64, 8192, true);
        assert_eq!((many.args.batches_per_thread, many.args.groups, many.grid), (32, 2, [2048, 2, 1]));
        assert_eq!(many.block, [32, 4, 1]);
        assert_eq!(launch(64, 8192, false).args.batches_per_thread, 1);
        assert_eq!(launch(64, 4, true).grid, [1, 64, 1]);
        assert_eq!(launch(70_000, 1, false).grid[1], 65535);
    }
}
