//! [`Sinusoid`] at fractional positions on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::Time;
use crate::embed::launch::{blocks, even_rows, fitting, small};
use crate::embed::{Sinusoid, Tokens, Wave};
use crate::gpu::args::TimestepArgs;
use crate::gpu::kernel::TIMESTEP;
use crate::gpu::{Kernel, Launch, Read, Uploaded, ViewMut, on_stream};
use crate::{Gpu, Pairing, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

impl Sinusoid {
    /// The grid and the arguments that shapes decide, for accesses of `width` elements; tensors and turns are still missing.
    fn time_launch(&self, times: usize, row: usize, width: usize) -> Result<Launch<TimestepArgs>> {
        let (blocks, block) = blocks(self.dim / 2 / width, times)?;
        let (last, last_channel) = self.last();
        let args = TimestepArgs {
            offset: self.offset as f64,
            padding: self.padding.unwrap_or(0) as f64,
            times: small("timesteps", times)?,
            stride: small("elements between rows", row)?,
            pairs: small("pairs", self.dim / 2)?,
            second: small("channels", self.pairs())?,
            last,
            last_channel: small("channels", last_channel)?,
            interleaved: u32::from(self.pairing == Pairing::Interleaved),
            cosine_first: u32::from(self.first == Wave::Cosine),
            padded: u32::from(self.padding.is_some()),
            ..TimestepArgs::zeroed()
        };
        Ok(Launch::new([blocks, 1, 1], block, args))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Sinusoid`] at fractional positions on a [`Gpu`], for one element type: its turns are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct TimestepPlan<T> {
    gpu: Gpu,
    spec: Sinusoid,
    turns: Uploaded<f64>,
    kernels: [Kernel<TimestepArgs>; 2],
    element: PhantomData<T>,
}

on_stream! { TimestepPlan { gpu } }

impl<T: Scalar> TimestepPlan<T> {
    /// Uploads the turns of every pair and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Sinusoid) -> Result<Self> {
        spec.check()?;
        let turns = (0..spec.pairs()).map(|pair| spec.turns(pair));
        let turns: Vec<f64> = turns.flat_map(|turns| [turns.hi, turns.lo]).collect();
        Ok(Self {
            gpu: gpu.clone(),
            spec: spec.clone(),
            turns: gpu.upload(&turns)?,
            kernels: gpu.load::<T, _, 2>(TIMESTEP)?,
            element: PhantomData,
        })
    }

    /// The spec.
    pub const fn sinusoid(&self) -> &Sinusoid {
        &self.spec
    }

    /// Writes one row per timestep.
    ///
    /// `channel = sin or cos((t + offset) * frequency(pair))`
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[1, times, dim]` | written; `[batch, tokens, dim]` whose rows are evenly spaced for a time of each token |
    /// | `t` | `[times]` | `f32` or `f64`; half types do not compile, and [`Time`] says why |
    ///
    /// A timestep that is not finite, or turns more than 2^48 times, makes a row of NaN.
    ///
    /// # Accuracy
    /// The nearest value of `T` or, where the truth lies within `2^-49` of itself of a tie, the other neighbour: 1 ulp of
    /// the formula in f64 at most, whose own angle is off by `2^-52 |t * frequency|`. The same bits on every device.
    ///
    /// # Errors
    /// If a shape is refused, a buffer is too short, belongs to another context or shares memory with `out`. Nothing is
    /// written then.
    ///
    /// # Source
    /// "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), appendix B.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{Sinusoid, TimestepPlan, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = TimestepPlan::<half::bf16>::new(&gpu, &Sinusoid::timestep(256))?;
    /// let t = gpu.stream().clone_htod(&[999.0f32, 0.25])?;
    /// let mut out = gpu.stream().alloc_zeros(2 * 256)?;
    /// plan.write(Tokens::new(1, 2, 256).of_mut(&mut out), &t)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a, F: Time>(&'a self, out: ViewMut<'a, T, Tokens>, t: Read<'a, F>) -> Result<()> {
        let (spec, shape) = (&self.spec, out.shape);
        shape.check_dim("out", spec.dim)?;
        let mut call = self.gpu.call();
        let out = call.view_mut("out", out)?;
        let (times, row) = even_rows("out", &shape)?;
        let t = call.read("t", t, times)?;
        if times == 0 {
            return Ok(());
        }
        // Wide accesses have no way to an odd last channel.
        let sizes = (spec.dim | spec.sizes()) * size_of::<T>();
        let (kernel, width) = fitting::<T, _>(&self.kernels, out.steps | sizes as u64);
        let mut launch = spec.time_launch(times, row, width)?;
        let args = &mut launch.args;
        (args.x, args.t) = (out.at, t);
        args.turns = call.table("turns", &self.turns)?;
        args.double_time = u32::from(size_of::<F>() == 8);
        call.launch(kernel, &launch)
    }
}
