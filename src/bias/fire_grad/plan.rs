//! The gradient of FIRE's parameters on a device: one launch.

use bytemuck::Zeroable;

use crate::bias::fire::by_position;
use crate::bias::sums::{Cut, Sums, check_largest, small};
use crate::bias::{BiasInputs, BiasPlan, Fire};
use crate::gpu::args::FireGradArgs;
use crate::gpu::kernel::FIRE_GRAD;
use crate::gpu::{Gpu, Kernel, Uploaded, View, Write, on_stream};
use crate::shape::product;
use crate::{Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block.
const THREADS: usize = 256;
/// Rows that a warp walks, counted over sequences.
const ROWS: usize = 64;
/// Sums of a line, and as many for compensation.
const SUMS: usize = 8;

fn cut(shape: &Logits, lines: usize) -> Result<Cut> {
    let splits = shape.batch.saturating_mul(shape.queries).div_ceil(ROWS).max(1);
    let sums = product("splits x heads x lines", &[SUMS, splits, shape.heads, lines])?;
    Ok(Cut { rows: ROWS, splits, blocks: [splits.div_ceil(THREADS / 32), 1], threads: THREADS, sums })
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Gradients of the parameters of [`Fire`] on a [`Gpu`], at the parameters' present values.
///
/// The rules of a call are those of [`DistanceGradPlan`](crate::bias::DistanceGradPlan); each number of the gradient is read once.
#[derive(Clone, Debug)]
pub struct FireGradPlan<T> {
    sums: Sums<T>,
    kernel: Kernel<FireGradArgs>,
    tables: Tables,
    width: usize,
    lines: usize,
    threshold: i32,
    least_bend: f32,
    threshold_factor: f32,
}

#[derive(Clone, Debug)]
struct Tables {
    bends: Uploaded<f32>,
    ramps: Uploaded<i32>,
    in_weight: Uploaded<f32>,
    in_bias: Uploaded<f32>,
    out_weight: Uploaded<f32>,
}

on_stream! { FireGradPlan { sums } }

impl<T: Scalar> FireGradPlan<T> {
    /// For positions and distances up to `reach`, as in [`BiasPlan::fire`]. `max_shape` is that of the largest call.
    ///
    /// # Errors
    /// If the spec is refused, is of other heads, `reach` is above 2^24, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, fire: &Fire, reach: usize, max_shape: Logits) -> Result<Self> {
        check_largest(&max_shape)?;
        let bias = BiasPlan::fire(gpu, fire, reach)?;
        let (width, heads) = (fire.in_weight.len(), fire.heads());
        let breaks = fire.breaks();
        let lines = breaks.len() + 1;
        // At most as many lines as ramps and one, which lie in memory.
        let ramps: Vec<i32> = (0..width).flat_map(|k| fire.ramp(&breaks, k)).map(|line| line as i32).collect();
        let single = |values: &[f64]| gpu.upload(&values.iter().map(|&value| value as f32).collect::<Vec<_>>());
        let tables = Tables {
            bends: gpu.upload(&by_position(reach, |n| fire.bend(n))?)?,
            ramps: gpu.upload(&ramps)?,
            in_weight: single(&fire.in_weight)?,
            in_bias: single(&fire.in_bias)?,
            out_weight: single(&fire.out_weight)?,
        };
        let [kernel] = gpu.load::<T, _, 1>(FIRE_GRAD)?;
        let most = cut(&max_shape, lines)?.sums;
        Ok(Self {
            sums: Sums::new(gpu, Some(bias), heads, &max_shape, most)?,
            kernel,
            tables,
            width,
            lines,
            // Positions end at 2^30.
            threshold: fire.threshold.ceil().min(f64::from(1 << 30)) as i32,
            least_bend: fire.bend(fire.threshold) as f32,
            threshold_factor: fire.threshold_factor() as f32,
        })
    }

    /// Number of gradient values: `2 + 2 * width + heads * width + heads`.
    pub fn len(&self) -> usize {
        let Self { width, sums, .. } = self;
        2 + 2 * width + sums.heads * width + sums.heads
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the gradient of the parameters, in the order of [`FireGrad::flat`](crate::bias::FireGrad::flat), from what
    /// [`DistanceGradPlan::apply`](crate::bias::DistanceGradPlan::apply) takes.
    ///
    /// # Accuracy
    /// [`Fire::expect_grad`] states it. The same bits on every device, and for every layout of `grad`.
    ///
    /// # Errors
    /// As [`DistanceGradPlan::apply`](crate::bias::DistanceGradPlan::apply).
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::{Fire, FireGradPlan};
    /// use posenc::{Gpu, Logits, Places};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let network = Fire { in_weight: vec![1.0], in_bias: vec![0.0], ..Fire::new() };
    /// let fire = Fire { out_weight: vec![0.5; 12], out_bias: vec![0.0; 12], ..network };
    /// let shape = Logits::bhqk(1, 12, 512, 512);
    /// let plan = FireGradPlan::<f32>::new(&gpu, &fire, 512, shape)?;
    /// let grad = gpu.stream().alloc_zeros(12 * 512 * 512)?;
    /// let mut parameters = gpu.stream().alloc_zeros(plan.len())?;
    /// plan.apply(shape.of(&grad), Places::bottom_right(), 1.0, &mut parameters)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<'a>(
        &'a self,
        grad: View<'a, T, Logits>,
        inputs: impl Into<BiasInputs<'a>>,
        factor: f32,
        out: Write<'a, f32>,
    ) -> Result<()> {
        let (shape, tables) = (*grad.shape(), &self.tables);
        let mut call = self.sums.call();
        let mut args = self.sums.read(&mut call, grad, inputs.into())?;
        let cut = cut(&shape, self.lines)?;
        Sums::<T>::write(&mut call, &self.sums.scratch, &mut args, (out, self.len()), factor, &cut)?;
        let args = FireGradArgs {
            call: args,
            bends: call.table("bends", &tables.bends)?,
            ramps: call.table("ramps", &tables.ramps)?,
            in_weight: call.table("in_weight", &tables.in_weight)?,
            in_bias: call.table("in_bias", &tables.in_bias)?,
            out_weight: call.table("out_weight", &tables.out_weight)?,
            width: small("ramps", self.width)?,
            threshold: self.threshold,
            least_bend: self.least_bend,
            threshold_factor: self.threshold_factor,
            ..FireGradArgs::zeroed()
        };
        call.launch(&self.kernel, &cut.launch(shape.heads, args)?)
    }
}
