//! Relative values on a device: one launch for the values, one for each gradient.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{RelativeValues, check_values};
use crate::bias::{AnyNumbers, DeviceTermInputs, Distances, Term, TermPlan, hold_places, rows};
use crate::gpu::args::{Divisor, RelativeTableGradArgs, RelativeValuesArgs, VALUE_CHANNELS, VALUE_ENTRIES, VALUE_ROWS};
use crate::gpu::kernel::{RELATIVE_TABLE_GRAD, RELATIVE_VALUES};
use crate::gpu::{Call, Gpu, Kernel, Launch, Read, Scratch, View, ViewMut, Write, on_stream, widest};
use crate::position::{Place, Places};
use crate::shape::{Numbers, Shape, product};
use crate::{Error, Heads, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Entries that shared memory holds for a warp.
const TILE: usize = 512;
/// Warps of a block: 32 KiB of shared memory at most, with bins twice a warp's.
const WARPS: u32 = 4;
const BIN_WARPS: u32 = 2;
/// Warps of a multiprocessor below which each takes one row.
const FULL: u64 = 16;
/// Blocks that keep a large device busy.
const BLOCKS: usize = 1024;
/// Rows of the smallest split.
const LEAST_ROWS: usize = 64;
/// Rows that a block takes at a time.
const STEP: usize = 32;
/// Threads of a block of the table's gradient.
const THREADS: u32 = 256;

/// True if keys are added to bins: entries do not follow one another as keys do.
fn needs_bins(index: &Distances, places: &Places<Read<'_, i32>>) -> bool {
    !index.lookup.is_empty() || matches!(places.keys, Place::Ids(_))
}

/// The launch for `rows` rows of which `group_rows` share a table, both at least 1. No bit depends on how they are cut.
fn launch(
    mut args: RelativeValuesArgs,
    rows: u32,
    group_rows: u32,
    multiprocessors: u32,
) -> Launch<RelativeValuesArgs> {
    let few = u64::from(rows) < VALUE_ROWS as u64 * FULL * u64::from(multiprocessors);
    args.rows = if few { 1 } else { VALUE_ROWS as u32 };
    args.group_rows = group_rows;
    args.group_warps = group_rows.div_ceil(args.rows);
    args.warps = rows / group_rows * args.group_warps;
    args.by_group = Divisor::new(args.group_warps);
    let (warps, slots) = if args.bins == 1 { (BIN_WARPS, 2) } else { (WARPS, 1) };
    let shared = warps * slots * args.tile * VALUE_ROWS as u32 * size_of::<f32>() as u32;
    Launch { shared, ..Launch::new([args.warps.div_ceil(warps), 1, 1], [32 * warps, 1, 1], args) }
}

/// How the rows of a table's gradient are cut: by the shape alone, so that every device sums alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// tables
    groups: usize,
    tiles: usize,
    channel_tiles: usize,
    splits: usize,
    split_rows: usize,
}

impl Cut {
    fn of(group_rows: usize, groups: usize, entries: usize, dim: usize) -> Result<Self> {
        let (tiles, channel_tiles) = (entries.div_ceil(VALUE_ENTRIES), dim.div_ceil(VALUE_CHANNELS));
        let units = product("tables x entries x channels", &[groups, tiles, channel_tiles])?;
        let most = (BLOCKS / units.max(1)).clamp(1, (group_rows / LEAST_ROWS).max(1));
        let split_rows = group_rows.div_ceil(most).next_multiple_of(STEP).max(STEP);
        let splits = group_rows.div_ceil(split_rows).max(1);
        Ok(Self { groups, tiles, channel_tiles, splits, split_rows })
    }

    /// Blocks that meet.
    const fn units(&self) -> usize {
        self.groups * self.tiles * self.channel_tiles
    }

    /// The most splits of a call of up to `group_rows` rows.
    fn most_splits(&self, group_rows: usize) -> usize {
        (BLOCKS / self.units().max(1)).clamp(1, (group_rows / LEAST_ROWS).max(1))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// The distances of a plan, as a term whose numbers the call brings.
fn term(gpu: &Gpu, spec: &RelativeValues) -> Result<TermPlan> {
    TermPlan::new(gpu, &Term::table(spec.index.clone()))
}

/// [`RelativeValues`] on a [`Gpu`], for one element type: the values, and the gradient of the probabilities.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel. The gradient of the table is
/// [`RelativeTableGradPlan`]'s.
#[derive(Clone, Debug)]
pub struct RelativeValuesPlan<T> {
    gpu: Gpu,
    spec: RelativeValues,
    term: TermPlan,
    kernel: Kernel<RelativeValuesArgs>,
    grad: Kernel<RelativeValuesArgs>,
    element: PhantomData<T>,
}

on_stream! { RelativeValuesPlan { gpu } }

impl<T: Scalar> RelativeValuesPlan<T> {
    /// Loads the kernels, and uploads the lookup of the distances if there is one.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &RelativeValues) -> Result<Self> {
        spec.check()?;
        let [kernel, grad] = gpu.load::<T, _, 2>(RELATIVE_VALUES)?;
        Ok(Self { gpu: gpu.clone(), spec: spec.clone(), term: term(gpu, spec)?, kernel, grad, element: PhantomData })
    }

    /// The spec.
    pub const fn spec(&self) -> &RelativeValues {
        &self.spec
    }

    /// Adds `sum over keys j of p[b, h, i, j] * table[h or 0, entry(i, j), :]` to each `z[b, i, h, :]`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `p` | `[batch, heads, queries, keys]` | probabilities |
    /// | `table` | `[1, heads or 1, entries, dim]` | a view of f32 or `T`: [`Numbers::rows`]`(1, heads, entries, dim)` |
    /// | `z` | `[batch, queries, heads, dim]` | values, changed in place |
    /// | `places` | | positions and lengths; keys beyond a length add nothing, queries beyond one keep their `z` |
    ///
    /// Each probability whose distance has an entry is read once; those outside a window are not read. With a lookup or with
    /// key positions given one by one all are read, once for each 512 entries. A decode step reads a row by one warp.
    ///
    /// # Accuracy
    /// [`RelativeValues::error_bound`] and the rounding to `T`. The same bits on every device, for every alignment and number
    /// of rows, for shards of heads and of queries, and behind more keys than a row sees. An entry whose weight is 0 adds
    /// nothing, whatever the table holds.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `z`, shapes do not go together, or elements
    /// of `z` overlap. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::attend::{RelativeValues, RelativeValuesPlan};
    /// use posenc::bias::Numbers;
    /// use posenc::{Gpu, Heads, Logits, Places};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RelativeValuesPlan::<half::bf16>::new(&gpu, &RelativeValues::vits(4))?;
    /// let p = gpu.stream().alloc_zeros(2 * 100 * 100)?;
    /// let table = gpu.stream().alloc_zeros::<f32>(9 * 96)?;
    /// let mut z = gpu.stream().alloc_zeros(100 * 2 * 96)?;
    /// let (shape, heads) = (Logits::bhqk(1, 2, 100, 100), Heads::bthd(1, 100, 2, 96));
    /// plan.add(shape.of(&p), Numbers::rows(1, 1, 9, 96).of(&table), heads.of_mut(&mut z), Places::counted(0, 0))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add<'a>(
        &'a self,
        p: View<'a, T, Logits>,
        table: impl Into<AnyNumbers<'a>>,
        z: ViewMut<'a, T, Heads>,
        places: Places<Read<'a, i32>>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (p, z) = (call.view("probabilities", p)?, call.view_mut("z", z)?);
        check_values("z", &z.shape, &p.shape)?;
        let mut args = self.hold(&mut call, &p.shape, &z.shape, table.into(), places)?;
        (args.p, args.z, args.aligned) = (p.at, z.at, u32::from(widest(p.steps) == 16));
        self.launch(&call, &self.kernel, args, &p.shape)
    }

    /// The gradient of the probabilities: writes `dz[b, i, h, :] . table[h or 0, entry(i, j), :]` to each `dp[b, h, i, j]`, or
    /// adds it.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `dz` | `[batch, queries, heads, dim]` | gradient of the values |
    /// | `table` | `[1, heads or 1, entries, dim]` | as in [`RelativeValuesPlan::add`] |
    /// | `dp` | `[batch, heads, queries, keys]` | gradient of the probabilities |
    /// | `places` | | positions and lengths |
    /// | `add` | | true: added to what is there, and a key without an entry is left alone; false: written, 0 for such a key |
    ///
    /// # Accuracy
    /// [`RelativeValues::grad_error_bound`] and the rounding to `T`, of the sum where it is added. The same bits on every
    /// device.
    ///
    /// # Errors
    /// As [`RelativeValuesPlan::add`], with `dp` written.
    pub fn grad<'a>(
        &'a self,
        dz: View<'a, T, Heads>,
        table: impl Into<AnyNumbers<'a>>,
        dp: ViewMut<'a, T, Logits>,
        places: Places<Read<'a, i32>>,
        add: bool,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (dz, dp) = (call.view("dz", dz)?, call.view_mut("dp", dp)?);
        check_values("dz", &dz.shape, &dp.shape)?;
        let mut args = self.hold(&mut call, &dp.shape, &dz.shape, table.into(), places)?;
        (args.dz, args.dp, args.aligned) = (dz.at, dp.at, u32::from(widest(dp.steps) == 16));
        args.add = u32::from(add);
        self.launch(&call, &self.grad, args, &dp.shape)
    }

    /// Hands in the table and positions.
    fn hold<'a>(
        &'a self,
        call: &mut Call<'a>,
        shape: &Logits,
        heads: &Heads,
        table: AnyNumbers<'a>,
        places: Places<Read<'a, i32>>,
    ) -> Result<RelativeValuesArgs> {
        self.spec.check_table(table.shape(), shape, heads.dim)?;
        let bias = hold_places(call, shape, &places.into())?;
        let mut term = self.term.hold_index(call, shape, &places, &DeviceTermInputs::default())?;
        let (table, is_f32) = table.hold::<T>(call, "the table")?;
        let Numbers { heads: table_heads, strides: [_, head, entry, channel], .. } = table.shape;
        term.values = table.at;
        term.values_f32 = u32::from(is_f32);
        term.entries = small("entries", self.spec.index.entries)?;
        term.strides = [0, if table_heads == 1 { 0 } else { head as i64 }, 0, 0, entry as i64];
        Ok(RelativeValuesArgs {
            bias,
            term,
            p_strides: shape.strides.map(|stride| stride as i64),
            z_strides: heads.strides.map(|stride| stride as i64),
            channel_stride: channel as i64,
            dim: small("channels", heads.dim)? as u32,
            bins: u32::from(needs_bins(&self.spec.index, &places)),
            tile: self.spec.index.entries.min(TILE) as u32,
            ..RelativeValuesArgs::zeroed()
        })
    }

    fn launch(
        &self,
        call: &Call<'_>,
        kernel: &Kernel<RelativeValuesArgs>,
        args: RelativeValuesArgs,
        shape: &Logits,
    ) -> Result<()> {
        if shape.is_empty() {
            return Ok(());
        }
        let rows = rows(shape)?;
        let group_rows = if args.term.strides[1] == 0 { rows } else { args.bias.queries };
        call.launch(kernel, &launch(args, rows, group_rows, self.gpu.multiprocessors()))
    }
}

/// The gradient of the table of [`RelativeValues`] on a [`Gpu`], for one element type.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel: blocks sum splits of the rows, and the
/// last block of each part of the table adds them in their order. No floating-point number is added by an atomic; a result
/// depends on the shape alone, not on the device.
#[derive(Clone, Debug)]
pub struct RelativeTableGradPlan<T> {
    gpu: Gpu,
    spec: RelativeValues,
    term: TermPlan,
    heads: usize,
    dim: usize,
    scratch: Scratch,
    kernel: Kernel<RelativeTableGradArgs>,
    element: PhantomData<T>,
}

on_stream! { RelativeTableGradPlan { gpu; scratch } }

impl<T: Scalar> RelativeTableGradPlan<T> {
    /// For a table `[heads, entries, dim]`, shared by all heads where `heads` is 1. `max_shape` is that of the largest call.
    ///
    /// # Errors
    /// If the spec is refused, the sizes are 0 or do not fit, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &RelativeValues, heads: usize, dim: usize, max_shape: Logits) -> Result<Self> {
        spec.check()?;
        max_shape.check_sizes("max_shape")?;
        if heads == 0 || dim == 0 {
            return Err(Error::Value(format!(
                "the table has {heads} heads of {dim} channels, both must be at least 1"
            )));
        }
        let (entries, group_rows) = (spec.index.entries, group_rows(&max_shape, heads)?);
        let cut = Cut::of(group_rows, heads, entries, dim)?;
        let splits = cut.most_splits(group_rows);
        let sums = product("heads x splits x entries x dim", &[heads, splits, entries, dim])?;
        let [kernel] = gpu.load::<T, _, 1>(RELATIVE_TABLE_GRAD)?;
        // Blocks that split nothing leave nothing.
        let (counters, sums) = if splits == 1 { (1, 0) } else { (cut.units(), sums) };
        let scratch = Scratch::new(gpu, counters, sums)?;
        let (spec, term, element) = (spec.clone(), term(gpu, spec)?, PhantomData);
        Ok(Self { gpu: gpu.clone(), spec, term, heads, dim, scratch, kernel, element })
    }

    /// Number of gradient values, `heads * entries * dim`.
    pub const fn len(&self) -> usize {
        self.heads * self.spec.index.entries * self.dim
    }

    /// Always false.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the gradient of the table: `sum over sequences, queries (and heads that share it) of weight * dz`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `p` | `[batch, heads, queries, keys]` | probabilities |
    /// | `dz` | `[batch, queries, heads, dim]` | gradient of the values |
    /// | `places` | | positions and lengths |
    /// | `out` | `[heads or 1, entries, dim]` | written |
    ///
    /// # Accuracy
    /// [`RelativeValues::table_error_bound`]. The same bits on every device.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `out`, shapes do not go together, or the call
    /// needs more scratch memory than one of `max_shape`. Nothing is written then.
    pub fn apply<'a>(
        &'a self,
        p: View<'a, T, Logits>,
        dz: View<'a, T, Heads>,
        places: Places<Read<'a, i32>>,
        out: Write<'a, f32>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (p, dz) = (call.view("probabilities", p)?, call.view("dz", dz)?);
        let (shape, heads, entries) = (p.shape, dz.shape, self.spec.index.entries);
        check_values("dz", &heads, &shape)?;
        self.check(&shape, heads.dim)?;
        let group_rows = group_rows(&shape, self.heads)?;
        let cut = Cut::of(group_rows, self.heads, entries, self.dim)?;
        let bias = hold_places(&mut call, &shape, &places.into())?;
        let mut term = self.term.hold_index(&mut call, &shape, &places, &DeviceTermInputs::default())?;
        term.entries = small("entries", entries)?;
        let mut args = RelativeTableGradArgs {
            bias,
            term,
            p: p.at,
            dz: dz.at,
            out: call.write("out", out, self.len())?,
            p_strides: shape.strides.map(|stride| stride as i64),
            z_strides: heads.strides.map(|stride| stride as i64),
            dim: small("channels", self.dim)? as u32,
            aligned: u32::from(widest(p.steps) == 16),
            bins: u32::from(needs_bins(&self.spec.index, &places)),
            by_head: u32::from(self.heads > 1),
            group_rows: small("rows", group_rows)? as u32,
            split_rows: small("rows", cut.split_rows)? as u32,
            splits: small("splits", cut.splits)? as u32,
            tiles: small("tiles", cut.tiles)? as u32,
            channel_tiles: small("tiles", cut.channel_tiles)? as u32,
            ..RelativeTableGradArgs::zeroed()
        };
        if cut.splits > 1 {
            let sums = product("heads x splits x entries x dim", &[cut.splits, self.len()])?;
            self.scratch.check(sums, || format!("a call of {group_rows} rows of a table"))?;
            (args.counters, args.sums) = call.scratch(&self.scratch)?;
        }
        let blocks = small("blocks", product("blocks", &[cut.units(), cut.splits])?)? as u32;
        call.launch(&self.kernel, &Launch::new([blocks, 1, 1], [THREADS, 1, 1], args))
    }

    /// Refuses other heads or channels than the plan's.
    fn check(&self, shape: &Logits, dim: usize) -> Result<()> {
        if (self.heads == 1 || self.heads == shape.heads) && self.dim == dim {
            return Ok(());
        }
        Err(Error::Value(format!(
            "the call has {} heads of {dim} channels, the table was planned with {} of {}",
            shape.heads, self.heads, self.dim
        )))
    }
}

/// Rows of one table.
fn group_rows(shape: &Logits, heads: usize) -> Result<usize> {
    Ok(rows(shape)? as usize / if heads == 1 { 1 } else { shape.heads })
}

/// A count as a kernel takes it.
fn small(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Overflow(format!("{n} {what}")))
}
