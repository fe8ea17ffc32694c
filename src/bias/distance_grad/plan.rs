//! Gradients of a distance bias's parameters on a device: one launch.

use bytemuck::Zeroable;

use crate::bias::form::ALL;
use crate::bias::sums::{Cut, Sums, check_largest, counters, small};
use crate::bias::toeplitz::{check_distances, check_numbers};
use crate::bias::{BiasInputs, Kerple, T5Bias};
use crate::gpu::args::DistanceGradArgs;
use crate::gpu::kernel::DISTANCE_GRAD;
use crate::gpu::{Gpu, Kernel, OnStream, Read, ScratchOnNeed, Uploaded, View, Write, on_stream};
use crate::memory::{collected, reserved};
use crate::position::{Place, Places};
use crate::shape::product;
use crate::{Error, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of the largest block.
const THREADS: usize = 256;
/// Diagonals that are a thread's own, and rows of its tiles.
const TILE: usize = 8;
/// Outputs up to which a block leaves a sum for each; beyond it leaves one for each distance.
const FEW: usize = 512;
/// Blocks that keep a large device busy.
const BLOCKS: usize = 1024;
/// Rows of a warp's bins, at most.
const ROWS: usize = 4096;

/// What the blocks of a head leave to the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// a sum for each output
    Outputs,
    /// one for each distance of the call
    Distances,
    /// where positions are given one by one: a bin for each distance of the target
    Bins,
}

/// The sums of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summation {
    left: Left,
    /// the first distance
    first: i64,
    distances: usize,
    cut: Cut,
}

impl Summation {
    fn of(shape: &Logits, places: &Places<Read<'_, i32>>, target: &Target) -> Result<Self> {
        let (queries, keys) = (shape.queries as i64, shape.keys as i64);
        let unknown = places.packed.is_some() || places.query_lengths.is_some() || places.key_lengths.is_some();
        let Place::Counted(key) = places.keys else { return Self::bins(shape, target) };
        // The first and the last place where a query can sit.
        let (low, high) = match places.queries {
            Place::Counted(start) => (start, start + queries - 1),
            Place::BottomRight if unknown => (-queries, keys - 1),
            Place::BottomRight => (keys - queries, keys - 1),
            Place::Ids(_) => return Self::bins(shape, target),
        };
        // Tiles lie at multiples of eight keys: from a multiple of eight distances before the first query's, so that its row
        // begins one. Other sequences' tiles may begin up to seven rows before them, and so reach seven distances further.
        let before = ((high - low).max(0) as usize).next_multiple_of(TILE);
        let behind = if unknown { TILE } else { 0 };
        Self::diagonals(shape, target, key - low - before as i64, before + shape.keys + behind)
    }

    fn diagonals(shape: &Logits, target: &Target, first: i64, distances: usize) -> Result<Self> {
        let (heads, outputs) = (shape.heads, target.outputs);
        let left = if outputs <= FEW { Left::Outputs } else { Left::Distances };
        // The last thread's tiles are the next block's too, which has all numbers of their distances.
        let rest = distances.saturating_sub(TILE);
        let strips = rest.div_ceil((THREADS - 1) * TILE).max(1);
        let threads = (rest.div_ceil(strips * TILE) + 1).next_multiple_of(32);
        let distances = strips * (threads - 1) * TILE + TILE;
        let all = shape.batch.saturating_mul(shape.queries);
        let least = left.least_rows();
        let rows = all.saturating_mul(heads).saturating_mul(strips).div_ceil(BLOCKS);
        let rows = rows.clamp(least, all.max(least)).next_multiple_of(TILE);
        let splits = all.div_ceil(rows).max(1);
        let sums = match left {
            Left::Outputs => product("heads x blocks x outputs", &[heads, strips, splits, outputs])?,
            _ => product("heads x splits x distances", &[heads, splits, distances])?,
        };
        Ok(Self { left, first, distances, cut: Cut { rows, splits, blocks: [strips, splits], threads, sums } })
    }

    fn bins(shape: &Logits, target: &Target) -> Result<Self> {
        let (first, distances) = target.bins;
        // The more bins a warp has, the more rows it walks: sums stay fewer than four a row.
        let rows = (distances / 4).clamp(64, ROWS);
        let splits = shape.batch.saturating_mul(shape.queries).div_ceil(rows).max(1);
        let sums = product("heads x splits x distances", &[2, shape.heads, splits, distances])?;
        let cut = Cut { rows, splits, blocks: [splits.div_ceil(THREADS / 32), 1], threads: THREADS, sums };
        Ok(Self { left: Left::Bins, first, distances, cut })
    }

    /// The most sums of a call along diagonals, up to `max_shape`.
    fn most(max_shape: &Logits, target: &Target) -> Result<usize> {
        // Any placement: queries from -queries to keys.
        let all = Self::diagonals(max_shape, target, 0, max_shape.queries + 2 * max_shape.keys + 2 * TILE)?;
        // Fewer rows of fewer strips may be cut into more splits: into those of the least rows, or into BLOCKS blocks.
        let splits = max_shape.batch.saturating_mul(max_shape.queries).div_ceil(all.left.least_rows()).max(1);
        let [strips, _] = all.cut.blocks;
        let blocks = strips.saturating_mul(splits).min(BLOCKS / max_shape.heads.max(1) + strips);
        let each = if all.left == Left::Outputs { target.outputs } else { THREADS * TILE };
        product("heads x blocks x sums", &[max_shape.heads, blocks, each])
    }
}

impl Left {
    /// Rows of the smallest split; a sum for each distance is worth more of them.
    const fn least_rows(self) -> usize {
        match self {
            Self::Outputs => 32,
            _ => 64,
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Gradients of the parameters of a distance bias on a [`Gpu`]: T5's table, ALiBi's slopes, KERPLE's numbers, a row.
///
/// A call uploads nothing, synchronises nothing, and is one kernel. It allocates nothing, but for the first one whose positions are
/// given one by one, which takes memory for sums by distance. It adds the gradient of the bias along its diagonals, and the last block of a head adds what its blocks left. Each number of the gradient is read once, at
/// the borders of blocks twice. No floating-point number is added by an atomic; a result depends on the shape alone, not on
/// the device or on which block runs first. Whether the bias has a gradient is the caller's choice: a softmax neither knows
/// nor asks.
#[derive(Clone, Debug)]
pub struct DistanceGradPlan<T> {
    target: Target,
    sums: Sums<T>,
    diagonals: Kernel<DistanceGradArgs>,
    bins: Kernel<DistanceGradArgs>,
    /// of calls whose positions are given one by one: bins for each block, far more than diagonals leave
    bins_scratch: ScratchOnNeed,
}

#[derive(Clone, Debug)]
struct Target {
    /// `[outputs, 2]`
    intervals: Uploaded<i32>,
    outputs: usize,
    /// `[outputs, heads, weighted]`, and their first distance
    weights: Option<(Uploaded<f32>, i64, usize)>,
    by_distance: bool,
    /// the distances that bins stand for: the first, and how many
    bins: (i64, usize),
    /// output o of head h lies at `o * strides[0] + h * strides[1]`
    strides: [usize; 2],
}

on_stream! { DistanceGradPlan { sums; bins_scratch } }

impl<T: Scalar> DistanceGradPlan<T> {
    /// For the table of T5, `[buckets, heads]`. `max_shape` is that of the largest call.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn t5(gpu: &Gpu, spec: T5Bias, heads: usize, max_shape: Logits) -> Result<Self> {
        let lookup = spec.lookup()?;
        let first = *spec.distances().start();
        let mut intervals = vec![[i32::MAX, i32::MIN]; spec.buckets];
        for (distance, &bucket) in (first..).zip(&lookup) {
            // Distances of a spec lie within 2^20.
            let interval = &mut intervals[usize::from(bucket)];
            interval[0] = interval[0].min(distance as i32);
            interval[1] = interval[1].max(distance as i32);
        }
        extend(&mut intervals, usize::from(lookup[0]), usize::from(lookup[lookup.len() - 1]), first, lookup.len());
        let target = Target {
            intervals: gpu.upload(intervals.as_flattened())?,
            outputs: spec.buckets,
            weights: None,
            by_distance: false,
            bins: (first, lookup.len()),
            strides: [heads, 1],
        };
        Self::new(gpu, heads, target, max_shape)
    }

    /// For slopes, `[2, heads]`: those of the past, then those of the future. A symmetric slope's is the sum of both.
    ///
    /// # Errors
    /// If the kernels cannot be loaded.
    pub fn slopes(gpu: &Gpu, heads: usize, max_shape: Logits) -> Result<Self> {
        let target = Target {
            intervals: gpu.upload(&[i32::MIN, -1, 1, i32::MAX])?,
            outputs: 2,
            weights: None,
            by_distance: true,
            // The past, the query's own place, the future.
            bins: (-1, 3),
            strides: [heads, 1],
        };
        Self::new(gpu, heads, target, max_shape)
    }

    /// For KERPLE's `p` and `a`, `[2, heads]`, at their present values. `distances` must hold every distance of a call.
    ///
    /// # Errors
    /// If the spec or the range is refused, or the kernels cannot be loaded.
    pub fn kerple(
        gpu: &Gpu,
        kerple: &Kerple,
        distances: std::ops::RangeInclusive<i64>,
        max_shape: Logits,
    ) -> Result<Self> {
        kerple.check()?;
        let heads = kerple.p.len();
        let (first, count) = check_row(heads, &distances)?;
        let mut weights = reserved("weights by head and distance", 2 * heads * count)?;
        for output in 0..2 {
            for head in 0..heads {
                weights.extend(distances.clone().map(|d| kerple.derivatives(head, d)[output] as f32));
            }
        }
        let target = Target {
            intervals: gpu.upload(&[i32::MIN, i32::MAX, i32::MIN, i32::MAX])?,
            outputs: 2,
            weights: Some((gpu.upload(&weights)?, first, count)),
            by_distance: false,
            bins: (first, count),
            strides: [heads, 1],
        };
        Self::new(gpu, heads, target, max_shape)
    }

    /// For a row, `[heads, distances]`; distances outside are added to its ends.
    ///
    /// # Errors
    /// If the range is refused, or the kernels cannot be loaded.
    pub fn row(gpu: &Gpu, heads: usize, distances: std::ops::RangeInclusive<i64>, max_shape: Logits) -> Result<Self> {
        let (first, count) = check_row(heads, &distances)?;
        let mut intervals = collected("distances", count, distances.map(|distance| [distance as i32; 2]))?;
        extend(&mut intervals, 0, count - 1, first, count);
        let target = Target {
            intervals: gpu.upload(intervals.as_flattened())?,
            outputs: count,
            weights: None,
            by_distance: false,
            bins: (first, count),
            strides: [1, count],
        };
        Self::new(gpu, heads, target, max_shape)
    }

    fn new(gpu: &Gpu, heads: usize, target: Target, max_shape: Logits) -> Result<Self> {
        check_largest(&max_shape)?;
        let sums = Sums::new(gpu, None, heads, &max_shape, Summation::most(&max_shape, &target)?)?;
        let [diagonals, bins] = gpu.load::<T, _, 2>(DISTANCE_GRAD)?;
        let bins_scratch = ScratchOnNeed::new(counters(heads), Summation::bins(&max_shape, &target)?.cut.sums);
        Ok(Self { target, sums, diagonals, bins, bins_scratch })
    }

    /// Number of gradient values.
    pub fn len(&self) -> usize {
        self.target.outputs * self.sums.heads
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the gradient of the parameters: `factor` times the sum over batch and pairs.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `[batch, heads, queries, keys]` | the gradient of every logit after the bias |
    /// | `inputs` | | [`Places`], or [`BiasInputs`] with the gates that multiplied the bias |
    /// | `factor` | | what turns `grad` into the bias's: 1; or `1 / scale` where it is the logits' own |
    /// | `out` | see the constructor | written |
    ///
    /// # Accuracy
    /// [`DistanceGrad::error_bound`](crate::bias::DistanceGrad::error_bound). The same bits on every device, and for every layout
    /// of `grad`. Where positions are given one by one, other sums are made, and so other bits; it takes longer.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `out`, or the call needs more scratch memory
    /// than one of `max_shape`. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::DistanceGradPlan;
    /// use posenc::{Gpu, Logits, Places, T5Bias};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let shape = Logits::bhqk(4, 8, 512, 512);
    /// let plan = DistanceGradPlan::<half::bf16>::t5(&gpu, T5Bias::new(32, 128, true), 8, shape)?;
    /// let grad = gpu.stream().alloc_zeros(4 * 8 * 512 * 512)?;
    /// let mut table = gpu.stream().alloc_zeros(plan.len())?;
    /// plan.apply(shape.of(&grad), Places::bottom_right(), 1.0, &mut table)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<'a>(
        &'a self,
        grad: View<'a, T, Logits>,
        inputs: impl Into<BiasInputs<'a>>,
        factor: f32,
        out: Write<'a, f32>,
    ) -> Result<()> {
        let (shape, inputs, target) = (*grad.shape(), inputs.into(), &self.target);
        let mut call = self.sums.call();
        let mut args = self.sums.read(&mut call, grad, inputs)?;
        let plan = Summation::of(&shape, &inputs.places, target)?;
        let scratch = match plan.left {
            Left::Bins => self.bins_scratch.get(self.sums.gpu())?,
            _ => &self.sums.scratch,
        };
        Sums::<T>::write(&mut call, scratch, &mut args, (out, self.len()), factor, &plan.cut)?;
        let mut args = DistanceGradArgs {
            call: args,
            intervals: call.table("intervals", &target.intervals)?,
            output_stride: target.strides[0] as i64,
            head_stride: target.strides[1] as i64,
            first: i32::try_from(plan.first).map_err(|_| Error::Overflow(format!("distance {}", plan.first)))?,
            distances: small("distances", plan.distances)?,
            outputs: small("outputs", target.outputs)?,
            by_distance: u32::from(target.by_distance),
            of_outputs: u32::from(plan.left == Left::Outputs),
            ..DistanceGradArgs::zeroed()
        };
        if let Some((weights, first, count)) = &target.weights {
            inputs.places.check_reach(&shape, ALL, *first, first + *count as i64 - 1)?;
            args.weights = call.table("weights", weights)?;
            // Within 2^30, as check_row says.
            (args.weights_first, args.weighted) = (*first as i32, *count as u32);
        }
        let kernel = if plan.left == Left::Bins { &self.bins } else { &self.diagonals };
        call.launch(kernel, &plan.cut.launch(shape.heads, args)?)
    }
}

/// The first of a row's distances and how many they are, which a kernel holds in 32 bits.
fn check_row(heads: usize, distances: &std::ops::RangeInclusive<i64>) -> Result<(i64, usize)> {
    let (first, count) = (*distances.start(), check_distances(heads, distances)?);
    if first.unsigned_abs() > 1 << 30 || count > 1 << 30 {
        return Err(Error::Value(format!("a row of {count} distances from {first}, both must lie within 2^30")));
    }
    check_numbers(heads * count, first)?;
    Ok((first, count))
}

/// Extends the intervals at both ends of a row to all distances beyond.
fn extend(intervals: &mut [[i32; 2]], low: usize, high: usize, first: i64, count: usize) {
    let last = first + count as i64 - 1;
    for (interval, end) in [(low, 0), (high, 1)] {
        // Only the interval that lies at the row's end.
        let at_end = if end == 0 {
            i64::from(intervals[interval][0]) == first
        } else {
            i64::from(intervals[interval][1]) == last
        };
        if at_end {
            intervals[interval][end] = if end == 0 { i32::MIN } else { i32::MAX };
        }
    }
}
