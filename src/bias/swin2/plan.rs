//! Swin v2's continuous position bias on a device: one launch for the table, two for the gradient of the weights.

use std::fmt;

use bytemuck::Zeroable;

use super::{DeviceSwin2Weights, Swin2Bias, pairs};
use crate::bias::sums::small;
use crate::gpu::args::{In, Out, Swin2Args, Swin2GradArgs, Swin2Net};
use crate::gpu::kernel::{SWIN2, SWIN2_GRAD};
use crate::gpu::{Call, Gpu, Kernel, Launch, Read, Scratch, Uploaded, Write, on_stream};
use crate::memory::collected;
use crate::{Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Entries of a block of the table: four warps of four.
const BLOCK_ENTRIES: usize = 16;
/// Heads of a block.
const BLOCK_HEADS: usize = 8;
/// Hidden units of a block of the gradient.
const BLOCK_UNITS: usize = 32;

impl Swin2Bias {
    fn launch(&self, args: Swin2Args) -> Result<Launch<Swin2Args>> {
        let [x, y] = [self.entries().div_ceil(BLOCK_ENTRIES), self.heads.div_ceil(BLOCK_HEADS)];
        Ok(Launch::new([small("blocks", x)?, small("blocks", y)?, 1], [128, 1, 1], args))
    }

    /// A block for each 32 hidden units and 8 heads, and one more for the first layer. `b2` is one more unit.
    fn grad_launch(&self, args: Swin2GradArgs) -> Result<Launch<Swin2GradArgs>> {
        let units = self.hidden + usize::from(args.b2_grad != Out::NULL);
        let [x, y] = [units.div_ceil(BLOCK_UNITS), self.heads.div_ceil(BLOCK_HEADS) + 1];
        Ok(Launch::new([small("blocks", x)?, small("blocks", y)?, 1], [512, 1, 1], args))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Swin2Bias`] on a [`Gpu`], for weights of one element type. Tables and gradients are f32.
///
/// A call allocates nothing, uploads nothing and synchronises nothing; [`Swin2Plan::grad`] keeps `entries * heads` numbers in
/// scratch memory of the plan.
#[derive(Clone, Debug)]
pub struct Swin2Plan<T> {
    gpu: Gpu,
    spec: Swin2Bias,
    coordinates: Uploaded<f32>,
    scratch: Scratch,
    kernel: Kernel<Swin2Args>,
    grad: Kernel<Swin2GradArgs>,
    element: std::marker::PhantomData<T>,
}

/// Outputs of [`Swin2Plan::grad`], f32.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `w1` | `[hidden, 2]` | written |
/// | `b1` | `[hidden]` | written |
/// | `w2` | `[heads, hidden]` | written |
/// | `b2` | `[heads]` | written; `None` where it is not wanted |
pub struct Swin2GradOut<'a> {
    /// `[hidden, 2]`
    pub w1: Write<'a, f32>,
    /// `[hidden]`
    pub b1: Write<'a, f32>,
    /// `[heads, hidden]`
    pub w2: Write<'a, f32>,
    /// `[heads]`
    pub b2: Option<Write<'a, f32>>,
}

impl fmt::Debug for Swin2GradOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Swin2GradOut");
        debug.field("w1", &self.w1.len()).field("b1", &self.b1.len()).field("w2", &self.w2.len());
        debug.field("b2", &self.b2.as_ref().map(|b2| b2.len())).finish()
    }
}

on_stream! { Swin2Plan { gpu; scratch } }

impl<T: Scalar> Swin2Plan<T> {
    /// Uploads the coordinates, rounded to f32, loads the kernels and allocates scratch memory.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Swin2Bias) -> Result<Self> {
        let [rows, columns] = spec.axes()?;
        let single = pairs(&rows, &columns).flatten().map(|coordinate| coordinate as f32);
        let coordinates = collected("coordinates", 2 * spec.entries(), single)?;
        let ([kernel], [grad]) = (gpu.load::<T, _, 1>(SWIN2)?, gpu.load::<T, _, 1>(SWIN2_GRAD)?);
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            coordinates: gpu.upload(&coordinates)?,
            scratch: Scratch::new(gpu, 0, spec.entries() * spec.heads)?,
            kernel,
            grad,
            element: std::marker::PhantomData,
        })
    }

    /// The spec.
    pub const fn spec(&self) -> &Swin2Bias {
        &self.spec
    }

    fn hold<'a, 'b: 'a>(&'a self, call: &mut Call<'a>, weights: DeviceSwin2Weights<'b, T>) -> Result<Swin2Net> {
        let [w1, b1, w2, b2] = self.spec.sizes();
        Ok(Swin2Net {
            w1: call.read("w1", weights.w1, w1)?,
            b1: call.read("b1", weights.b1, b1)?,
            w2: call.read("w2", weights.w2, w2)?,
            b2: call.read_some("b2", weights.b2, b2)?,
            coordinates: call.table("coordinates", &self.coordinates)?,
            entries: small("entries", self.spec.entries())?,
            heads: small("heads", self.spec.heads)?,
            hidden: small("hidden units", self.spec.hidden)?,
            limit: self.spec.limit.unwrap_or(0.0),
            ..Swin2Net::zeroed()
        })
    }

    /// Writes the table, `[entries, heads]`, in one launch.
    ///
    /// # Accuracy
    /// [`Swin2Bias::error_bound`]. The same bits on every device.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context, or shares memory with `table`. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::{Swin2Bias, Swin2Plan, Swin2Weights};
    /// use posenc::Gpu;
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = Swin2Plan::<f32>::new(&gpu, &Swin2Bias::new([8, 8], 512, 4))?;
    /// let stream = gpu.stream();
    /// let [w1, b1, w2] = [1024, 512, 2048].map(|n| stream.alloc_zeros::<f32>(n));
    /// let (w1, b1, w2) = (w1?, b1?, w2?);
    /// let mut table = stream.alloc_zeros(225 * 4)?;
    /// plan.write(Swin2Weights { w1: &w1, b1: &b1, w2: &w2, b2: None }, &mut table)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a, 'b: 'a>(&'a self, weights: DeviceSwin2Weights<'b, T>, table: Write<'a, f32>) -> Result<()> {
        let mut call = self.gpu.call();
        let net = self.hold(&mut call, weights)?;
        let out = call.write("table", table, self.spec.entries() * self.spec.heads)?;
        call.launch(&self.kernel, &self.spec.launch(Swin2Args { net, grad: In::NULL, out, ..Swin2Args::zeroed() })?)
    }

    /// Writes the gradients of the weights from the gradient of the table, in two launches: the hidden layer is recomputed.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `weights` | | as in [`Swin2Plan::write`] |
    /// | `table_grad` | `[entries, heads]` | the gradient of the table, behind the sigmoid |
    /// | `out` | | written |
    ///
    /// # Accuracy
    /// [`Swin2Bias::expect_grad`]. The same bits on every device: sums have one order, no number is added by an atomic.
    ///
    /// # Errors
    /// As [`Swin2Plan::write`].
    pub fn grad<'a, 'b: 'a>(
        &'a self,
        weights: DeviceSwin2Weights<'b, T>,
        table_grad: Read<'a, f32>,
        out: Swin2GradOut<'a>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let net = self.hold(&mut call, weights)?;
        let grad = call.read("table_grad", table_grad, self.spec.entries() * self.spec.heads)?;
        let [w1, b1, w2, b2] = self.spec.sizes();
        let (_, outer) = call.scratch(&self.scratch)?;
        let args = Swin2GradArgs {
            net,
            outer: outer.as_in(),
            w1_grad: call.write("w1_grad", out.w1, w1)?,
            b1_grad: call.write("b1_grad", out.b1, b1)?,
            w2_grad: call.write("w2_grad", out.w2, w2)?,
            b2_grad: call.write_some("b2_grad", out.b2, b2)?,
            ..Swin2GradArgs::zeroed()
        };
        call.launch(&self.kernel, &self.spec.launch(Swin2Args { net, grad, out: outer, ..Swin2Args::zeroed() })?)?;
        call.launch(&self.grad, &self.spec.grad_launch(args)?)
    }
}
