//! The gradient of a bias that depends on distance: batch, then diagonals, then buckets.

use cudarc::driver::CudaSlice;

use crate::bias::sums::{Cut, Kernel, Sums, small};
use crate::bias::toeplitz::{ALL, check_distances};
use crate::bias::{Bias, BiasPlan, Kerple, Place, Places, T5Bias};
use crate::gpu::args::{DistanceGradArgs, In};
use crate::gpu::{Read, Write};
use crate::{Error, Gpu, Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradient of a distance bias, summed over batch and pairs: one number per head and distance.
///
/// The first stage of every parameter's gradient: batch, then diagonals, then buckets. No number depends on the order
/// in which threads happen to run.
#[derive(Clone, Debug, PartialEq)]
pub struct DistanceGrad {
    /// heads
    pub heads: usize,
    /// the distance of the first number
    pub first: i64,
    /// `[heads, distances]`
    pub values: Vec<f64>,
}

impl DistanceGrad {
    /// Sums the gradient of the bias along its diagonals.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `positions` | | where queries and keys sit |
    /// | `distances` | | the range that is kept; distances outside are added to its ends, as [`Toeplitz`](crate::Toeplitz) reads them |
    ///
    /// # Errors
    /// If the shape, the positions or the range is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::{DistanceGrad, Logits, Places};
    /// let grad = DistanceGrad::new(&[1.0f32, 2.0, 4.0, 8.0], &Logits::bhqk(1, 1, 2, 2), &Places::from(0, 0), -1..=1)?;
    /// assert_eq!(grad.values, [4.0, 9.0, 2.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn new<T: Scalar>(
        grad: &[T],
        shape: &Logits,
        positions: &Places<&[i32]>,
        distances: std::ops::RangeInclusive<i64>,
    ) -> Result<Self> {
        shape.check("grad", grad.len())?;
        positions.check(shape)?;
        let count = check_distances(shape.heads, &distances)?;
        let first = *distances.start();
        let mut values = vec![0.0; shape.heads * count];
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let query_position = positions.query(shape, batch, query);
                    for key in (0..shape.keys).filter(|&key| positions.meet(shape, batch, query, key)) {
                        let distance = positions.key(shape, batch, key) - query_position;
                        let index = distance.saturating_sub(first).clamp(0, count as i64 - 1) as usize;
                        values[head * count + index] += grad[shape.index(batch, head, query, key)].to_f64();
                    }
                }
            }
        }
        Ok(Self { heads: shape.heads, first, values })
    }

    /// The distances of a head and their gradients.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn of(&self, head: usize) -> impl Iterator<Item = (i64, f64)> + '_ {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        let count = self.values.len() / self.heads;
        let distance = |index: usize| self.first.saturating_add(index as i64);
        (0..count).map(move |index| (distance(index), self.values[head * count + index]))
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl DistanceGrad {
    /// The largest error of a kernel's output, for `size`, the sum of the sizes of its terms: `24 * 2^-24 * size`.
    ///
    /// A compensated sum is within `2 * 2^-24` of it, and there are three: of tiles, whose diagonals are trees of three
    /// additions, of distances and of blocks. Behind the last two come five additions of a warp, and beside them an addition
    /// of neighbours, a gate, a weight, its rounding and a factor.
    pub fn error_bound(size: f64) -> f64 {
        24.0 * f32::ROUNDOFF * size
    }
}

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
        let Place::From(key) = places.keys else { return Self::bins(shape, target) };
        // The first and the last place where a query can sit.
        let (low, high) = match places.queries {
            Place::From(start) => (start, start + queries - 1),
            Place::Last if unknown => (-queries, keys - 1),
            Place::Last => (keys - queries, keys - 1),
            Place::Each(_) => return Self::bins(shape, target),
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
            Left::Outputs => crate::shape::product("heads x blocks x outputs", &[heads, strips, splits, outputs])?,
            _ => crate::shape::product("heads x splits x distances", &[heads, splits, distances])?,
        };
        Ok(Self { left, first, distances, cut: Cut { rows, splits, blocks: [strips, splits], threads, sums } })
    }

    fn bins(shape: &Logits, target: &Target) -> Result<Self> {
        let (first, distances) = target.bins;
        // The more bins a warp has, the more rows it walks: sums stay fewer than four a row.
        let rows = (distances / 4).clamp(64, ROWS);
        let splits = shape.batch.saturating_mul(shape.queries).div_ceil(rows).max(1);
        let sums = crate::shape::product("heads x splits x distances", &[2, shape.heads, splits, distances])?;
        let cut = Cut { rows, splits, blocks: [splits.div_ceil(THREADS / 32), 1], threads: THREADS, sums };
        Ok(Self { left: Left::Bins, first, distances, cut })
    }

    /// The most sums of a call up to the shape of `room`.
    fn most(room: &Logits, target: &Target) -> Result<usize> {
        // Any placement: queries from -queries to keys.
        let all = Self::diagonals(room, target, 0, room.queries + 2 * room.keys + 2 * TILE)?;
        // Fewer rows of fewer strips may be cut into more splits: into those of the least rows, or into BLOCKS blocks.
        let splits = room.batch.saturating_mul(room.queries).div_ceil(all.left.least_rows()).max(1);
        let [strips, _] = all.cut.blocks;
        let blocks = strips.saturating_mul(splits).min(BLOCKS / room.heads.max(1) + strips);
        let each = if all.left == Left::Outputs { target.outputs } else { THREADS * TILE };
        let diagonals = crate::shape::product("heads x blocks x sums", &[room.heads, blocks, each])?;
        Ok(diagonals.max(Self::bins(room, target)?.cut.sums))
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
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel: it adds the gradient of the bias
/// along its diagonals, and the last block of a head adds what its blocks left. Each number of the gradient is read once, at
/// the borders of blocks twice. No floating-point number is added by an atomic; a result depends on the shape alone, not on
/// the device or on which block runs first. Whether the bias has a gradient is the caller's choice: a softmax neither knows
/// nor asks. Calls of one plan must not run at the same time.
pub struct DistanceGradPlan<T> {
    target: Target,
    sums: Sums<T>,
    diagonals: Kernel,
    bins: Kernel,
}

struct Target {
    /// `[outputs, 2]`
    intervals: CudaSlice<i32>,
    outputs: usize,
    /// `[outputs, heads, weighted]`, and their first distance
    weights: Option<(CudaSlice<f32>, i64, usize)>,
    by_distance: bool,
    /// the distances that bins stand for: the first, and how many
    bins: (i64, usize),
    /// output o of head h lies at `o * strides[0] + h * strides[1]`
    strides: [usize; 2],
}

impl<T: Scalar> DistanceGradPlan<T> {
    /// For the table of T5, `[buckets, heads]`. `room` is the shape of the largest call.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn t5(gpu: &Gpu, spec: T5Bias, heads: usize, room: &Logits) -> Result<Self> {
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
        Self::new(gpu, heads, target, room)
    }

    /// For slopes, `[2, heads]`: those of the past, then those of the future. A symmetric slope's is the sum of both.
    ///
    /// # Errors
    /// If the kernels cannot be loaded.
    pub fn slopes(gpu: &Gpu, heads: usize, room: &Logits) -> Result<Self> {
        let target = Target {
            intervals: gpu.upload(&[i32::MIN, -1, 1, i32::MAX])?,
            outputs: 2,
            weights: None,
            by_distance: true,
            // The past, the query's own place, the future.
            bins: (-1, 3),
            strides: [heads, 1],
        };
        Self::new(gpu, heads, target, room)
    }

    /// For KERPLE's `p` and `a`, `[2, heads]`, at their present values. `distances` must hold every distance of a call.
    ///
    /// # Errors
    /// If the spec or the range is refused, or the kernels cannot be loaded.
    pub fn kerple(gpu: &Gpu, kerple: &Kerple, distances: std::ops::RangeInclusive<i64>, room: &Logits) -> Result<Self> {
        kerple.check()?;
        let heads = kerple.p.len();
        let (first, count) = check_row(heads, &distances)?;
        let mut weights = Vec::with_capacity(2 * heads * count);
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
        Self::new(gpu, heads, target, room)
    }

    /// For a row, `[heads, distances]`; distances outside are added to its ends.
    ///
    /// # Errors
    /// If the range is refused, or the kernels cannot be loaded.
    pub fn row(gpu: &Gpu, heads: usize, distances: std::ops::RangeInclusive<i64>, room: &Logits) -> Result<Self> {
        let (first, count) = check_row(heads, &distances)?;
        let mut intervals: Vec<[i32; 2]> = distances.map(|distance| [distance as i32; 2]).collect();
        extend(&mut intervals, 0, count - 1, first, count);
        let target = Target {
            intervals: gpu.upload(intervals.as_flattened())?,
            outputs: count,
            weights: None,
            by_distance: false,
            bins: (first, count),
            strides: [1, count],
        };
        Self::new(gpu, heads, target, room)
    }

    fn new(gpu: &Gpu, heads: usize, target: Target, room: &Logits) -> Result<Self> {
        room.check_sizes("room")?;
        let most = Summation::most(room, &target)?;
        Ok(Self {
            target,
            sums: Sums::new(gpu, BiasPlan::new(gpu, Bias::None)?, heads, room, most)?,
            diagonals: Kernel::new::<T>(gpu, "bias/distance_grad", "distance_grad")?,
            bins: Kernel::new::<T>(gpu, "bias/distance_grad", "distance_grad_bins")?,
        })
    }

    /// Numbers of the gradient.
    pub fn len(&self) -> usize {
        self.target.outputs * self.sums.heads
    }

    /// Whether the gradient has no numbers; it always has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the gradient of the parameters: `factor` times the sum over batch and pairs.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `places` | | where queries and keys sit |
    /// | `gates` | `[batch, heads, queries]` | those that multiplied the bias |
    /// | `factor` | | what turns `grad` into the bias's: 1; or `1 / scale` where it is the logits' own |
    /// | `out` | see the constructor | written |
    ///
    /// # Accuracy
    /// [`DistanceGrad::error_bound`]. The same bits on every device, and for every layout of `grad`. Where positions are
    /// given one by one, other sums are made, and so other bits; it takes longer.
    ///
    /// # Errors
    /// If a buffer is too short or belongs to another context, or the call is larger than the plan's room. Nothing is
    /// written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{DistanceGradPlan, Gpu, Logits, Places, T5Bias};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let shape = Logits::bhqk(4, 8, 512, 512);
    /// let plan = DistanceGradPlan::<half::bf16>::t5(&gpu, T5Bias::new(32, 128, true), 8, &shape)?;
    /// let grad = gpu.stream().alloc_zeros(4 * 8 * 512 * 512)?;
    /// let mut table = gpu.stream().alloc_zeros(plan.len())?;
    /// plan.apply((&grad, shape), &Places::last(), None, 1.0, &mut table)?;
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
        let (call, shape) = (self.sums.check(grad, places, gates)?, grad.1);
        let (gpu, target) = (&self.sums.gpu, &self.target);
        let plan = Summation::of(&shape, places, target)?;
        let weights = match &target.weights {
            Some((weights, first, count)) => {
                places.check_reach(&shape, ALL, *first, first + *count as i64 - 1)?;
                Some((gpu.read("weights", weights, self.len() * count)?, *first, *count))
            }
            None => None,
        };
        let intervals = gpu.read("intervals", &target.intervals, 2 * target.outputs)?;
        let first = i32::try_from(plan.first).map_err(|_| Error::Overflow(format!("distance {}", plan.first)))?;
        let (distances, outputs) = (small("distances", plan.distances)?, small("outputs", target.outputs)?);
        let kernel = if plan.left == Left::Bins { &self.bins } else { &self.diagonals };
        self.sums.launch(&call, (out, self.len()), factor, &plan.cut, kernel, |call| DistanceGradArgs {
            call,
            intervals: intervals.address,
            weights: weights.as_ref().map_or(In::NULL, |(weights, ..)| weights.address),
            output_stride: target.strides[0] as i64,
            head_stride: target.strides[1] as i64,
            first,
            distances,
            weights_first: weights.as_ref().map_or(0, |(_, first, _)| *first as i32),
            weighted: weights.as_ref().map_or(0, |(_, _, count)| *count as u32),
            outputs,
            by_distance: u32::from(target.by_distance),
            of_outputs: u32::from(plan.left == Left::Outputs),
            unused: 0,
        })
    }
}

/// The first of a row's distances and how many they are, which a kernel holds in 32 bits.
fn check_row(heads: usize, distances: &std::ops::RangeInclusive<i64>) -> Result<(i64, usize)> {
    let (first, count) = (*distances.start(), check_distances(heads, distances)?);
    if first.unsigned_abs() > 1 << 30 || count > 1 << 30 {
        return Err(Error::Value(format!("a row of {count} distances from {first}, both must lie within 2^30")));
    }
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
