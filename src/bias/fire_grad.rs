//! The gradient of FIRE's parameters: sums over the elements of each of the network's lines, then the parameters.

use cudarc::driver::CudaSlice;

use crate::bias::sums::{Cut, Kernel, Sums, small};
use crate::bias::{Bias, BiasPlan, Fire, Places};
use crate::gpu::args::FireGradArgs;
use crate::gpu::{Read, Write};
use crate::{Gpu, Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of [`Fire`], each of its field's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct FireGrad {
    /// of `c`
    pub c: f64,
    /// of `threshold`
    pub threshold: f64,
    /// `[width]`
    pub in_weight: Vec<f64>,
    /// `[width]`
    pub in_bias: Vec<f64>,
    /// `[heads, width]`
    pub out_weight: Vec<f64>,
    /// `[heads]`
    pub out_bias: Vec<f64>,
}

impl FireGrad {
    fn zeros(fire: &Fire) -> Self {
        let (width, heads) = (fire.in_weight.len(), fire.heads());
        Self {
            c: 0.0,
            threshold: 0.0,
            in_weight: vec![0.0; width],
            in_bias: vec![0.0; width],
            out_weight: vec![0.0; heads * width],
            out_bias: vec![0.0; heads],
        }
    }

    /// All numbers in the order of a kernel's output: `c`, `threshold`, `in_weight`, `in_bias`, `out_weight`, `out_bias`.
    pub fn flat(&self) -> Vec<f64> {
        [&[self.c, self.threshold][..], &self.in_weight, &self.in_bias, &self.out_weight, &self.out_bias].concat()
    }
}

impl Fire {
    /// The gradients of every parameter from the gradient of every logit after the bias.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `positions` | | where queries and keys sit |
    ///
    /// # Errors
    /// If the spec, the shape or the positions are refused.
    ///
    /// # Example
    /// ```
    /// use posenc::{Fire, Logits, Places};
    /// // One head; every logit's gradient is one of `out_bias`.
    /// let fire = Fire {
    ///     c: 1.0,
    ///     threshold: 8.0,
    ///     eps: 0.0,
    ///     in_weight: vec![1.0],
    ///     in_bias: vec![0.0],
    ///     out_weight: vec![1.0],
    ///     out_bias: vec![0.0],
    /// };
    /// let got = fire.grad(&[0.25f32, 0.5], &Logits::bhqk(1, 1, 1, 2), &Places::last())?;
    /// assert_eq!(got.out_bias, [0.75]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(&self, grad: &[T], shape: &Logits, positions: &Places<&[i32]>) -> Result<FireGrad> {
        Ok(self.expect_grad(grad, shape, positions)?.0)
    }

    /// [`Fire::grad`], and the error allowed at each number that a kernel computes: `40 * 2^-24` of the sum of the sizes of
    /// its terms, where a ramp `w * x + b` counts as `|w * x| + |b|`.
    ///
    /// `x` carries 5 roundings. A term whose `x` lies within them of a bend of the network may count on either side of it:
    /// the bounds of the numbers that jump there, all but those of `out_weight` and `out_bias`, hold the term once more.
    ///
    /// # Errors
    /// As [`Fire::grad`].
    pub fn expect_grad<T: Scalar>(
        &self,
        grad: &[T],
        shape: &Logits,
        positions: &Places<&[i32]>,
    ) -> Result<(FireGrad, FireGrad)> {
        shape.check("grad", grad.len())?;
        positions.check(shape)?;
        Bias::Fire(self).check(shape, positions, super::toeplitz::ALL)?;
        let (width, heads) = (self.in_weight.len(), self.heads());
        let (mut sums, mut bounds) = (FireGrad::zeros(self), FireGrad::zeros(self));
        let eps = f32::ROUNDOFF;
        for batch in 0..shape.batch {
            for query in 0..shape.queries {
                let query_position = positions.query(shape, batch, query);
                let (norm, reach) = (self.norm(query_position), (query_position as f64).max(self.threshold));
                for key in (0..shape.keys).filter(|&key| positions.meet(shape, batch, query, key)) {
                    let distance = positions.key(shape, batch, key).abs_diff(query_position) as f64;
                    let x = self.log(distance) / norm;
                    let by_c = (self.bend(distance) - x * self.bend(reach)) / norm;
                    let by_c_size = (self.bend(distance) + x * self.bend(reach)) / norm;
                    let before = (query_position as f64) < self.threshold;
                    let by_threshold = if before { x * self.threshold_factor() } else { 0.0 };
                    for head in 0..heads {
                        let value = grad[shape.index(batch, head, query, key)].to_f64();
                        sums.out_bias[head] += value;
                        bounds.out_bias[head] += 40.0 * eps * value.abs();
                        let (mut slope, mut slope_size, mut jump) = (0.0, 0.0, 0.0);
                        for k in 0..width {
                            let (w, b, out) = (self.in_weight[k], self.in_bias[k], self.out_weight[head * width + k]);
                            let ramp = w * x + b;
                            let up = ramp > 0.0;
                            // Whether roundings of x and of the bend may decide.
                            let near = ramp.abs() <= 16.0 * eps * (w * x).abs() + 2.0 * eps * b.abs();
                            let size = if up { 40.0 * eps } else { 0.0 } + if near { 1.0 } else { 0.0 };
                            if up {
                                sums.out_weight[head * width + k] += value * ramp;
                                sums.in_weight[k] += value * out * x;
                                sums.in_bias[k] += value * out;
                                slope += out * w;
                            }
                            slope_size += if up { (out * w).abs() } else { 0.0 };
                            jump += if near { (out * w).abs() } else { 0.0 };
                            if up || near {
                                bounds.out_weight[head * width + k] +=
                                    40.0 * eps * value.abs() * ((w * x).abs() + b.abs());
                            }
                            bounds.in_weight[k] += size * (value * out).abs() * x;
                            bounds.in_bias[k] += size * (value * out).abs();
                        }
                        sums.c += value * slope * by_c;
                        bounds.c += value.abs() * (40.0 * eps * slope_size * by_c_size + jump * by_c.abs());
                        sums.threshold += value * slope * by_threshold;
                        bounds.threshold += value.abs() * (40.0 * eps * slope_size + jump) * by_threshold.abs();
                    }
                }
            }
        }
        Ok((sums, bounds))
    }

    /// `n / (1 + c n)`: the derivative of `ln(1 + c n)` by `c`.
    fn bend(&self, n: f64) -> f64 {
        n / (1.0 + self.c * n)
    }

    /// What `x` is multiplied by in its derivative by the threshold, where the query lies before it.
    fn threshold_factor(&self) -> f64 {
        -self.c / ((1.0 + self.c * self.threshold) * (self.log(self.threshold) + self.eps))
    }

    /// The first and the last of the lines between `breaks`, ascending, on which a ramp is up; none: a last before a first.
    fn ramp(&self, breaks: &[f64], k: usize) -> [usize; 2] {
        let up: Vec<usize> = (0..=breaks.len()).filter(|&line| self.is_up(breaks, line, k)).collect();
        match (up.first(), up.last()) {
            (Some(&first), Some(&last)) => [first, last],
            _ => [1, 0],
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block.
const THREADS: usize = 256;
/// Rows that a warp walks, counted over sequences.
const ROWS: usize = 64;
/// Sums of a line, and as many for compensation.
const SUMS: usize = 8;

fn cut(shape: &Logits, lines: usize) -> Result<Cut> {
    let splits = shape.batch.saturating_mul(shape.queries).div_ceil(ROWS).max(1);
    let sums = crate::shape::product("splits x heads x lines", &[SUMS, splits, shape.heads, lines])?;
    Ok(Cut { rows: ROWS, splits, blocks: [splits.div_ceil(THREADS / 32), 1], threads: THREADS, sums })
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Gradients of the parameters of [`Fire`] on a [`Gpu`], at the parameters' present values.
///
/// The rules of a call are those of [`DistanceGradPlan`](crate::DistanceGradPlan); each number of the gradient is read once.
pub struct FireGradPlan<T> {
    sums: Sums<T>,
    kernel: Kernel,
    tables: Tables,
    width: usize,
    lines: usize,
    threshold: i32,
    least_bend: f32,
    threshold_factor: f32,
}

struct Tables {
    bends: CudaSlice<f32>,
    ramps: CudaSlice<i32>,
    in_weight: CudaSlice<f32>,
    in_bias: CudaSlice<f32>,
    out_weight: CudaSlice<f32>,
}

impl<T: Scalar> FireGradPlan<T> {
    /// For positions and distances up to `reach`, as in [`BiasPlan::fire`]. `room` is the shape of the largest call.
    ///
    /// # Errors
    /// If the spec is refused, is of other heads, `reach` is 2^30 or more, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, fire: &Fire, reach: usize, room: &Logits) -> Result<Self> {
        let bias = BiasPlan::fire(gpu, fire, reach)?;
        let (width, heads) = (fire.in_weight.len(), fire.heads());
        let breaks = fire.breaks();
        let lines = breaks.len() + 1;
        // At most as many lines as ramps and one, which lie in memory.
        let ramps: Vec<i32> = (0..width).flat_map(|k| fire.ramp(&breaks, k)).map(|line| line as i32).collect();
        let single = |values: &[f64]| gpu.upload(&values.iter().map(|&value| value as f32).collect::<Vec<_>>());
        let tables = Tables {
            bends: single(&(0..=reach).map(|n| fire.bend(n as f64)).collect::<Vec<_>>())?,
            ramps: gpu.upload(&ramps)?,
            in_weight: single(&fire.in_weight)?,
            in_bias: single(&fire.in_bias)?,
            out_weight: single(&fire.out_weight)?,
        };
        let most = cut(room, lines)?.sums;
        Ok(Self {
            sums: Sums::new(gpu, bias, heads, room, most)?,
            kernel: Kernel::new::<T>(gpu, "bias/fire_grad", "fire_grad")?,
            tables,
            width,
            lines,
            // Positions end at 2^30.
            threshold: fire.threshold.ceil().min(f64::from(1 << 30)) as i32,
            least_bend: fire.bend(fire.threshold) as f32,
            threshold_factor: fire.threshold_factor() as f32,
        })
    }

    /// Numbers of the gradient: `2 + 2 * width + heads * width + heads`.
    pub fn len(&self) -> usize {
        let Self { width, sums, .. } = self;
        2 + 2 * width + sums.heads * width + sums.heads
    }

    /// Whether the gradient has no numbers; it always has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the gradient of the parameters, in the order of [`FireGrad::flat`], from what
    /// [`DistanceGradPlan::apply`](crate::DistanceGradPlan::apply) takes.
    ///
    /// # Accuracy
    /// [`Fire::expect_grad`] states it. The same bits on every device, and for every layout of `grad`.
    ///
    /// # Errors
    /// As [`DistanceGradPlan::apply`](crate::DistanceGradPlan::apply).
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Fire, FireGradPlan, Gpu, Logits, Places};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let network = Fire { in_weight: vec![1.0], in_bias: vec![0.0], ..Fire::new() };
    /// let fire = Fire { out_weight: vec![0.5; 12], out_bias: vec![0.0; 12], ..network };
    /// let shape = Logits::bhqk(1, 12, 512, 512);
    /// let plan = FireGradPlan::<f32>::new(&gpu, &fire, 512, &shape)?;
    /// let grad = gpu.stream().alloc_zeros(12 * 512 * 512)?;
    /// let mut parameters = gpu.stream().alloc_zeros(plan.len())?;
    /// plan.apply((&grad, shape), &Places::last(), None, 1.0, &mut parameters)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply(
        &self,
        grad: (Read<'_, T>, Logits),
        places: &Places<Read<'_, i32>>,
        gates: Option<Read<'_, f32>>,
        factor: f32,
        out: Write<'_, f32>,
    ) -> Result<()> {
        let call = self.sums.check(grad, places, gates)?;
        let (gpu, tables) = (&self.sums.gpu, &self.tables);
        let bends = gpu.read("bends", &tables.bends, 1)?;
        let ramps = gpu.read("ramps", &tables.ramps, 2 * self.width)?;
        let in_weight = gpu.read("in_weight", &tables.in_weight, self.width)?;
        let in_bias = gpu.read("in_bias", &tables.in_bias, self.width)?;
        let out_weight = gpu.read("out_weight", &tables.out_weight, self.sums.heads * self.width)?;
        let width = small("ramps", self.width)?;
        let cut = cut(&grad.1, self.lines)?;
        self.sums.launch(&call, (out, self.len()), factor, &cut, &self.kernel, |call| FireGradArgs {
            call,
            bends: bends.address,
            ramps: ramps.address,
            in_weight: in_weight.address,
            in_bias: in_bias.address,
            out_weight: out_weight.address,
            width,
            threshold: self.threshold,
            least_bend: self.least_bend,
            threshold_factor: self.threshold_factor,
        })
    }
}
