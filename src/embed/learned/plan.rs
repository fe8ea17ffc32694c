//! [`Learned`] on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;
use cudarc::driver::CudaSlice;

use super::tables::{DeviceLookup, DeviceTables, Needs};
use super::{Learned, Norm, Rows};
use crate::embed::Tokens;
use crate::embed::launch::small;
use crate::gpu::args::{IdType, LearnedArgs, NormKind, RowRule};
use crate::gpu::kernel::{LEARNED, LEARNED_ROWS};
use crate::gpu::{Call, Kernel, Launch, ViewMut, Write, on_stream, widest};
use crate::shape::product;
use crate::{Error, Gpu, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block with a norm or without.
const THREADS: usize = 256;

impl Learned {
    /// Threads of one row with a norm: whole warps, at most 256, four units of 8 channels each, so that more channels share what
    /// a row's sums cost.
    pub(crate) fn lanes(&self) -> usize {
        self.dim.div_ceil(8).div_ceil(4).next_multiple_of(32).min(THREADS)
    }

    /// Threads of one row without a norm, for accesses of `width` channels: whole warps, or a power of two.
    ///
    /// A thread takes up to four accesses per table, so that what finding the rows costs is shared by more channels: as many as
    /// leave 1024 threads for each multiprocessor, and at least two threads, which fill a sector.
    fn plain_lanes(&self, tokens: &Tokens, width: usize, multiprocessors: u32) -> usize {
        let accesses = self.dim.div_ceil(width);
        let threads = accesses.saturating_mul(tokens.batch.saturating_mul(tokens.tokens));
        let each = (threads / (1024 * multiprocessors as usize)).clamp(1, 4);
        match accesses.div_ceil(each).max(accesses.min(2)) {
            lanes @ ..32 => lanes.next_power_of_two(),
            lanes => lanes.next_multiple_of(32).min(THREADS),
        }
    }

    /// Bytes of shared memory for `arrays` numbers for each channel of every row of a block, a KiB for 256.
    pub(crate) fn held(&self, arrays: usize, rows: usize) -> usize {
        (self.dim.div_ceil(256) * 1024).saturating_mul(arrays * rows)
    }

    /// Tokens that a block of a norm works on at once.
    pub(crate) fn block_rows(&self, tokens: usize) -> usize {
        // Small blocks hold rows in shared memory, so that several find room.
        block_rows(THREADS / 2, self.lanes(), tokens)
    }

    /// The arguments that the spec and the shape decide.
    pub(crate) fn args(&self, tokens: &Tokens) -> Result<LearnedArgs> {
        let (first, padded, padding, rule) = match self.rows {
            Rows::Offset(offset) => (offset, 0, 0, RowRule::OFFSET),
            Rows::Kept { padding: Some(padding), first, padded } => (first, padded, padding, RowRule::KEPT_BY_ID),
            Rows::Kept { padding: None, first, padded } => (first, padded, 0, RowRule::KEPT_BY_MASK),
        };
        let (norm, eps) = match self.norm {
            None => (NormKind::NONE, 0.0),
            Some(Norm::Layer { eps }) => (NormKind::LAYER, eps),
            Some(Norm::Rms { eps }) => (NormKind::RMS, eps),
        };
        Ok(LearnedArgs {
            strides: tokens.strides.map(|stride| stride as i64),
            first,
            padded,
            padding,
            tokens: small("tokens", tokens.tokens)?,
            batch: small("sequences", tokens.batch)?,
            dim: small("channels", self.dim)?,
            rule,
            norm,
            scale: self.scale as f32,
            eps: eps as f32,
            share: (1.0 / self.dim as f64) as f32,
            ..LearnedArgs::zeroed()
        })
    }

    /// A grid for groups of `rows` tokens that are `threads` threads each, and the arguments.
    ///
    /// Where tokens are counted every block counts those before its own, so that there are as few as keep the device busy,
    /// 1024 threads for each multiprocessor, and the cost of counting grows with the tokens alone.
    fn groups(
        &self,
        tokens: &Tokens,
        (rows, threads): (usize, usize),
        multiprocessors: u32,
    ) -> Result<([u32; 3], LearnedArgs)> {
        let groups = tokens.tokens.div_ceil(rows);
        let most = match self.rows {
            Rows::Offset(_) => 65535,
            Rows::Kept { .. } => (multiprocessors as usize * 1024 / threads).div_ceil(tokens.batch).min(65535),
        };
        let per_block = groups.div_ceil(most);
        let grid = [small("sequences", tokens.batch)?, small("blocks of tokens", groups.div_ceil(per_block))?, 1];
        let tokens_per_block = small("tokens of a block", per_block * rows)?;
        Ok((grid, LearnedArgs { tokens_per_block, ..self.args(tokens)? }))
    }

    /// The grid and the arguments that shapes decide, for accesses of `width` channels; tables and ids are still missing.
    fn launch(&self, tokens: &Tokens, width: usize, multiprocessors: u32) -> Result<Launch<LearnedArgs>> {
        let (lanes, rows) = if self.norm.is_some() {
            (self.lanes(), self.block_rows(tokens.tokens))
        } else {
            let lanes = self.plain_lanes(tokens, width, multiprocessors);
            (lanes, block_rows(THREADS, lanes, tokens.tokens))
        };
        let (grid, args) = self.groups(tokens, (rows, lanes * rows), multiprocessors)?;
        Ok(Launch::new(grid, [small("lanes", lanes)?, small("rows", rows)?, 1], args))
    }

    /// The kernel of [`LEARNED`] and the shared memory of its blocks, which work on `rows` tokens. `wide`: 16-byte accesses are
    /// possible; `room`: bytes of shared memory that a block may have.
    fn variant(&self, rows: usize, wide: bool, room: usize) -> (usize, usize) {
        let held = self.held(1, rows);
        match self.norm {
            None if wide => (0, 0),
            Some(_) if wide && held <= room => (1, held),
            _ => (2, 0),
        }
    }
}

/// Tokens that a block of up to `threads` works on at once, `lanes` threads each: whole warps.
fn block_rows(threads: usize, lanes: usize, tokens: usize) -> usize {
    (threads / lanes).min(tokens.min(threads).next_power_of_two().max(32 / lanes)).max(1)
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Error flag in device memory, raised by kernels when an id lies outside its table.
///
/// Such an id is never read; its row becomes NaN. The flag holds the first such token in the order of tokens, the same one
/// on every run. Of several calls before an [`ErrorFlag::check`] it does not say which; the message has the last one's tables.
#[derive(Debug)]
pub struct ErrorFlag {
    flag: CudaSlice<u64>,
    rows: [usize; 3],
}

impl ErrorFlag {
    /// A flag that is not raised.
    ///
    /// # Errors
    /// If the driver gives no memory.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { flag: gpu.buffer(&[u64::MAX])?, rows: [0; 3] })
    }

    /// The flag in device memory: `u64::MAX` while it is not raised, else `4 * token + table` with the token's index in
    /// `[batch, tokens]` and table 0 for tokens, 1 for positions, 2 for types.
    pub const fn flag(&self) -> &CudaSlice<u64> {
        &self.flag
    }

    /// Waits for the stream, reads the flag and resets it.
    ///
    /// # Errors
    /// [`Error::Value`] with the token and the table if it was raised; [`Error::Context`] if `gpu` is of another context than the
    /// one that the flag was made for.
    pub fn check(&mut self, gpu: &Gpu) -> Result<()> {
        gpu.check_context("the error flag", self.flag.stream())?;
        let flag = gpu.download(&self.flag)?.first().copied().unwrap_or(u64::MAX);
        if flag == u64::MAX {
            return Ok(());
        }
        gpu.overwrite(&mut self.flag, &[u64::MAX])?;
        let (name, table) =
            [("its id", "token"), ("its position's row", "position"), ("its type", "type")][(flag % 4).min(2) as usize];
        let rows = self.rows[(flag % 4).min(2) as usize];
        Err(Error::Value(format!("token {}: {name} lies outside the {table} table of {rows} rows", flag / 4)))
    }
}

/// Hands in tables, ids and the error flag, which [`Learned::check_tables`] has not seen yet, and the union of the tables'
/// addresses.
pub(crate) fn hold<'a, T>(
    call: &mut Call<'a>,
    spec: &Learned,
    shape: &Tokens,
    (tables, lookup): (&'a DeviceTables<'_, T>, &'a DeviceLookup<'_>),
    flag: Option<&'a mut ErrorFlag>,
    args: &mut LearnedArgs,
) -> Result<u64> {
    let rows = spec.check_tables(tables)?.map(|rows| rows.unwrap_or(0));
    [args.token_rows, args.position_rows, args.type_rows] = rows.map(|rows| rows as i64);
    let mut steps = 0;
    for (at, (table, name)) in [&mut args.token, &mut args.position, &mut args.types, &mut args.gain, &mut args.bias]
        .into_iter()
        .zip(tables.named())
    {
        *at = call.read_some(name, table, table.map_or(0, |table| table.len()))?;
        steps |= at.address();
    }
    hold_lookup(call, spec.needs(tables), shape, lookup, args)?;
    if let Some(flag) = flag {
        flag.rows = rows;
        args.flag = call.write("the error flag", &mut flag.flag, 1)?;
    }
    Ok(steps)
}

/// Hands in ids, types, mask and positions as far as they are needed.
fn hold_lookup<'a>(
    call: &mut Call<'a>,
    needs: Needs,
    shape: &Tokens,
    lookup: &'a DeviceLookup<'_>,
    args: &mut LearnedArgs,
) -> Result<()> {
    lookup.check(&needs)?;
    let all = product("batch x tokens", &[shape.batch, shape.tokens])?;
    if needs.positions {
        args.at = lookup.positions.hold(call, 1, shape.batch, shape.tokens)?;
    }
    args.mask = call.read_some("mask", lookup.mask.filter(|_| needs.mask), all)?;
    if let Some(ids) = lookup.ids.filter(|_| needs.ids) {
        (args.ids, args.id_type) = ids.hold(call, "ids", all)?;
    }
    if let Some(types) = lookup.types.filter(|_| needs.types) {
        (args.type_ids, args.type_id_type) = types.hold(call, "types", all)?;
    }
    // Where no id of this type can be padding, every token is kept: positions go on from the starts.
    let padding = args.rule != RowRule::KEPT_BY_ID
        || match args.id_type {
            IdType::I32 => i32::try_from(args.padding).is_ok(),
            IdType::U32 => u32::try_from(args.padding).is_ok(),
            _ => true,
        };
    if !(needs.counted && padding) {
        args.rule = RowRule::OFFSET;
    }
    Ok(())
}

/// Bytes of shared memory that a block of `kernel` may have beside the kernel's own few; asked for here, once.
pub(crate) fn shared_room<A>(gpu: &Gpu, kernel: &Kernel<A>) -> Result<usize> {
    let room = gpu.shared_memory()?.saturating_sub(1024);
    kernel.reserve(room)?;
    Ok(room as usize)
}

/// [`Learned`] on a [`Gpu`], for one element type: its kernels are loaded. The tables are the caller's.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct LearnedPlan<T> {
    gpu: Gpu,
    spec: Learned,
    kernels: [Kernel<LearnedArgs>; 3],
    /// bytes of shared memory that a block may hold its rows in
    room: usize,
    rows: Kernel<LearnedArgs>,
    element: PhantomData<T>,
}

on_stream! { LearnedPlan { gpu } }

impl<T: Scalar> LearnedPlan<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Learned) -> Result<Self> {
        spec.check()?;
        let kernels = gpu.load::<T, _, 3>(LEARNED)?;
        let room = shared_room(gpu, &kernels[1])?;
        let [rows] = gpu.load::<T, _, 1>(LEARNED_ROWS)?;
        Ok(Self { gpu: gpu.clone(), spec: *spec, kernels, room, rows, element: PhantomData })
    }

    /// The spec.
    pub const fn learned(&self) -> &Learned {
        &self.spec
    }

    /// Gathers, adds and normalises in one kernel.
    ///
    /// `v = token[id] * scale + position[row] + type[kind]`, then the spec's norm.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `[batch, tokens, dim]` | written; read too if there is no token table |
    /// | `tables` | `[rows, dim]` each | the tables that there are |
    /// | `lookup` | `[batch, tokens]` each | ids, types, mask, positions |
    /// | `flag` | | raised when an id lies outside its table; `None` leaves it unreported |
    ///
    /// An id outside its table is not read, and its row of `x` becomes NaN. Three streams move with a token and a position
    /// table: two rows are read, one is written; a norm adds none.
    ///
    /// # Accuracy
    /// Exact for one table without scale; [`Learned::sum_error_bound`] or [`Learned::norm_error_bound`], and the rounding
    /// to `T`. The same bits on every device, for every shape and alignment.
    ///
    /// # Errors
    /// If a shape is refused, a table is no whole number of rows, something that is needed is missing, or a buffer is too
    /// short, belongs to another context or shares memory with `x`. Nothing is written then.
    ///
    /// # Source
    /// BERT (arXiv 1810.04805), figure 2; layer norm arXiv 1607.06450, RMS norm arXiv 1910.07467.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{ErrorFlag, Learned, LearnedPlan, Lookup, Tables, Tokens};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let stream = gpu.stream();
    /// let plan = LearnedPlan::<half::f16>::new(&gpu, &Learned::new(768))?;
    /// let (token, position) = (stream.alloc_zeros(50257 * 768)?, stream.alloc_zeros(1024 * 768)?);
    /// let ids = stream.clone_htod(&[464, 3797, 3332])?;
    /// let mut x = stream.alloc_zeros(3 * 768)?;
    /// let mut flag = ErrorFlag::new(&gpu)?;
    /// plan.gather(
    ///     Tokens::new(1, 3, 768).of_mut(&mut x),
    ///     &Tables { token: Some(&token), position: Some(&position), ..Tables::default() },
    ///     &Lookup { ids: Some(i32::ids(&ids)), ..Lookup::default() },
    ///     Some(&mut flag),
    /// )?;
    /// flag.check(&gpu)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn gather<'a>(
        &'a self,
        x: ViewMut<'a, T, Tokens>,
        tables: &'a DeviceTables<'_, T>,
        lookup: &'a DeviceLookup<'_>,
        flag: Option<&'a mut ErrorFlag>,
    ) -> Result<()> {
        let (spec, shape) = (&self.spec, x.shape);
        shape.check_dim("x", spec.dim)?;
        let mut call = self.gpu.call();
        let x = call.view_mut("x", x)?;
        if shape.is_empty() {
            return Ok(());
        }
        let mut launch = spec.launch(&shape, 16 / size_of::<T>(), self.gpu.multiprocessors())?;
        let steps = hold(&mut call, spec, &shape, (tables, lookup), flag, &mut launch.args)?;
        (launch.args.x, launch.args.source) = (x.at, x.at.as_in());
        let wide = widest(steps | x.steps | (spec.dim * size_of::<T>()) as u64) == 16;
        let (kernel, shared) = spec.variant(launch.block[1] as usize, wide, self.room);
        launch.shared = small("bytes of shared memory", shared)?;
        call.launch(&self.kernels[kernel], &launch)
    }

    /// [`LearnedPlan::gather`], then waits for it and reports the first id outside its table.
    ///
    /// # Errors
    /// As [`LearnedPlan::gather`] and [`ErrorFlag::check`].
    pub fn gather_checked(
        &self,
        x: ViewMut<'_, T, Tokens>,
        tables: &DeviceTables<'_, T>,
        lookup: &DeviceLookup<'_>,
    ) -> Result<()> {
        let mut flag = ErrorFlag::new(&self.gpu)?;
        // For as long as the flag lives.
        self.gather(x.shape.of_mut(x.buffer), tables, lookup, Some(&mut flag))?;
        flag.check(&self.gpu)
    }

    /// Writes the row of the position table that every token reads, for [`LearnedGradPlan::table`](crate::embed::LearnedGradPlan::table).
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `rows` | `[batch, tokens]` | written; rows outside the table too |
    /// | `batch`, `tokens` | | sizes |
    /// | `lookup` | `[batch, tokens]` each | ids or mask, positions |
    ///
    /// # Errors
    /// If something that is needed is missing, or a buffer is too short, belongs to another context or shares memory with
    /// `rows`. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{Learned, LearnedPlan, Lookup, Rows};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// // RoBERTa's positions with padding id 1.
    /// let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    /// let plan = LearnedPlan::<f32>::new(&gpu, &Learned { rows, ..Learned::new(768) })?;
    /// let ids = gpu.stream().clone_htod(&[5i64, 6, 1, 7, 1])?;
    /// let mut rows = gpu.stream().alloc_zeros(5)?;
    /// plan.rows(&mut rows, 1, 5, &Lookup { ids: Some(i64::ids(&ids)), ..Lookup::default() })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rows<'a>(
        &'a self,
        rows: Write<'a, i64>,
        batch: usize,
        tokens: usize,
        lookup: &'a DeviceLookup<'_>,
    ) -> Result<()> {
        let (spec, shape) = (&self.spec, Tokens::new(batch, tokens, self.spec.dim));
        let mut call = self.gpu.call();
        let rows = call.write("rows", rows, product("batch x tokens", &[batch, tokens])?)?;
        if shape.is_empty() {
            return Ok(());
        }
        let (grid, args) = spec.groups(&shape, (THREADS, THREADS), self.gpu.multiprocessors())?;
        let mut launch = Launch::new(grid, [1, small("rows", THREADS)?, 1], LearnedArgs { x: rows, ..args });
        hold_lookup(&mut call, spec.row_needs(), &shape, lookup, &mut launch.args)?;
        call.launch(&self.rows, &launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_held_where_shared_memory_has_room() {
        let (plain, layer) =
            (Learned::new(768), Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(768) });
        assert_eq!(plain.variant(2, true, 0), (0, 0));
        assert_eq!(plain.variant(2, false, 1 << 20), (2, 0));
        // Two rows of three KiB.
        assert_eq!(layer.variant(2, true, 6 << 10), (1, 6 << 10));
        assert_eq!(layer.variant(2, true, (6 << 10) - 1), (2, 0));
        assert_eq!(layer.variant(2, false, 6 << 10), (2, 0));
    }

    #[test]
    fn threads_take_more_accesses_where_tokens_are_many() {
        let lanes = |dim, width, tokens| Learned::new(dim).plain_lanes(&Tokens::new(1, tokens, dim), width, 132);
        assert_eq!([1, 2815, 2816, 4224, 1 << 20].map(|tokens| lanes(768, 8, tokens)), [96, 96, 64, 32, 32]);
        // Two threads fill a sector.
        assert_eq!([1, 1 << 20].map(|tokens| lanes(32, 8, tokens)), [4, 2]);
        assert_eq!([1, 1 << 20].map(|tokens| lanes(8, 8, tokens)), [1, 1]);
        assert_eq!([1, 1 << 20].map(|tokens| lanes(8192, 4, tokens)), [256, 256]);
        assert_eq!(lanes(usize::MAX, 8, usize::MAX), 256);
    }

    #[test]
    fn blocks_are_few_where_each_counts_the_tokens_before_it() {
        let kept = Learned { rows: Rows::Kept { padding: None, first: 0, padded: 0 }, ..Learned::new(768) };
        for (spec, threads) in [(Learned::new(768), 0), (kept, 132 * 1024)] {
            for (batch, tokens) in [(1, 1), (1, 4096), (1, 1 << 20), (300, 777)] {
                let launch = spec.launch(&Tokens::new(batch, tokens, 768), 8, 132).unwrap();
                let per_block = launch.args.tokens_per_block as usize;
                assert!(launch.grid[1] as usize * per_block >= tokens, "{launch:?}");
                assert!((launch.grid[1] as usize - 1) * per_block < tokens, "{launch:?}");
                let most = if threads == 0 { 65535 } else { threads / (launch.block[0] * launch.block[1]) as usize };
                assert!(launch.grid[1] as usize <= most && per_block.is_multiple_of(launch.block[1] as usize));
            }
        }
    }
}
