//! [`Rope`] on a device: one launch for queries and keys.

use bytemuck::Zeroable;

use super::{Angles, Direction, Law, Rates, Rope};
use crate::gpu::args::{Divisor, In, MixedRatesArgs, RopeArgs};
use crate::gpu::kernel::{
    Entry, MIXED_RATES, ROPE, ROPE_BLOCKS, ROPE_COMPAT, ROPE_MIXED, ROPE_ONE, ROPE_SHARED_HALF,
    ROPE_SHARED_INTERLEAVED, ROPE_TABLE, ROPE_XPOS,
};
use crate::gpu::{Call, Gpu, Kernel, Launch, Read, Update, Updated, Uploaded, ViewMut, Write, on_stream, widest};
use crate::pairing::Runs;
use crate::position::{Ids, Positions};
use crate::rotate::table::Table;
use crate::rotate::xpos::{Side, XPos};
use crate::{Error, Heads, Pairing, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// What a launch is decided from, beside the spec.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    q: Heads,
    k: Option<Heads>,
    /// elements of an access, and bytes of one
    width: usize,
    element: usize,
    device: Device,
}

/// Multiprocessors, and how many threads one of them holds, by the registers of the images that are loaded.
#[derive(Clone, Copy, Debug)]
struct Device {
    multiprocessors: usize,
    /// of the kernel whose threads walk over heads
    walking: usize,
    /// of those whose blocks share their angles, with one head a thread and with two; `None` where the call is not for them
    sharing: Option<[usize; 2]>,
}

/// Threads of a block whose threads walk over heads; the kernels' launch bounds allow 256.
const THREADS: usize = 128;
/// Threads of a block that shares angles, at most: first while the device is not full.
const SHARING_THREADS: [usize; 2] = [64, 256];
/// Angles of a block that shares them, at most: `ANGLES` in `kernels/rotate/rope_shared.cu`.
const SHARED_ANGLES: usize = 512;

/// Cycles of one load from memory.
const MEMORY: usize = 700;
/// Cycles of a block whose threads walk one head each: rates and ids, angles, channels.
const WALK: usize = 2 * MEMORY + 920;

/// How a call lies over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// angles are made once a block, and shared by its heads
    shares: bool,
    per_thread: usize,
    /// threads for the pairs of a head, for the heads of a token, and for tokens, in a block
    lanes: usize,
    groups: usize,
    rows: usize,
    /// blocks that share a token's heads
    splits: usize,
}

impl Layout {
    /// Each thread makes the angles of its pairs and walks `per_thread` heads of both tensors.
    fn walking(cut: &Cut, pairs: usize, per_thread: usize) -> Self {
        let lanes = (pairs / cut.width).clamp(1, THREADS);
        let rows = (THREADS / lanes).min(cut.q.tokens.next_power_of_two()).max(1);
        let walks = (cut.q.heads + cut.k.map_or(0, |k| k.heads)).div_ceil(per_thread);
        let groups = (THREADS / (lanes * rows)).clamp(1, walks).min(64);
        Self { shares: false, per_thread, lanes, groups, rows, splits: walks.div_ceil(groups) }
    }

    /// Blocks of at most `threads` share the angles of their tokens; `more` of them a token than there must be. Heads of one
    /// thread are of one tensor.
    fn sharing(cut: &Cut, pairs: usize, per_thread: usize, threads: usize, more: usize) -> Self {
        let lanes = pairs / cut.width;
        let walks = cut.q.heads.div_ceil(per_thread) + cut.k.map_or(0, |k| k.heads.div_ceil(per_thread));
        let groups = walks.div_ceil(walks.div_ceil((threads / lanes).max(1)) + more);
        // A block is at most 64 threads deep.
        let rows = (threads / (lanes * groups)).min(SHARED_ANGLES / pairs).clamp(1, 64);
        let rows = (1 << rows.ilog2()).min(cut.q.tokens.next_power_of_two());
        Self { shares: true, per_thread, lanes, groups, rows, splits: walks.div_ceil(groups) }
    }

    fn blocks(&self, cut: &Cut) -> usize {
        cut.q.tokens.div_ceil(self.rows).saturating_mul(self.splits).saturating_mul(cut.q.batch)
    }

    /// How often a thread makes angles, two at a time.
    const fn rounds(&self, pairs: usize) -> usize {
        (pairs / 2).div_ceil(self.lanes * self.groups)
    }

    /// Predicted cycles, and instructions of all warps.
    ///
    /// The multiprocessor with most blocks issues four instructions a cycle, once its first blocks have what they asked for;
    /// each wave of blocks waits for memory anew; and no call is faster than its bytes, `BYTES` a cycle and multiprocessor.
    /// `docs/rotate.md` has the counts behind the numbers.
    fn cost(&self, cut: &Cut, pairs: usize) -> (usize, usize) {
        const BYTES: usize = 24;
        let Cut { q, k, width, element, device } = *cut;
        let threads = self.lanes * self.groups * self.rows;
        let warps = threads.div_ceil(32);
        let turns = 13 * width * self.per_thread;
        let (instructions, chain, held) = match (self.shares, device.sharing) {
            (true, Some(held)) => {
                let rounds = self.rounds(pairs);
                let making = warps.min(self.rows * pairs.div_ceil(64));
                let instructions = warps * (105 + turns) + making * rounds * 133;
                (instructions, MEMORY + 450 + 105 * self.per_thread + 150 * (rounds - 1), held[self.per_thread - 1])
            }
            _ => {
                let instructions = warps * (120 + 44 * width + turns);
                (instructions, WALK + (MEMORY + 105) * (self.per_thread - 1), device.walking)
            }
        };
        let blocks = self.blocks(cut);
        let resident = device.multiprocessors * (held / (32 * warps)).max(1);
        let issue = blocks.div_ceil(device.multiprocessors).saturating_mul(instructions) / 4;
        let waits = blocks.div_ceil(resident).saturating_mul(chain);
        let heads = q.heads + k.map_or(0, |k| k.heads);
        let bytes = [q.batch, q.tokens, heads, 4 * pairs * element].into_iter().fold(1, usize::saturating_mul);
        let memory = bytes / (BYTES * device.multiprocessors);
        (memory.max(issue.saturating_add(waits)), blocks.saturating_mul(instructions))
    }
}

impl Rope {
    /// The union of the sizes that decide how wide a thread's accesses may be, in elements; `copied` where channels beside the
    /// rotated ones are copied from heads of `dim`.
    fn sizes(&self, dim: usize, copied: bool) -> usize {
        (self.pairs() / self.axes.blocks()) | self.first_channel(dim) | if copied { dim } else { 0 }
    }

    /// Whether a kernel whose blocks share their angles knows such pairs, whatever the call.
    fn may_share(&self) -> bool {
        self.angles == Angles::Exact
            && self.pairing == self.written()
            && self.axes.blocks() == 1
            && (1..=SHARED_ANGLES).contains(&self.pairs())
    }

    /// How a call lies over the device: the layout of least cost, and of fewest instructions where costs are equal.
    fn layout(&self, cut: &Cut) -> Layout {
        // Without a rotation, threads copy as many channels.
        let pairs = if self.is_none() { (cut.q.dim / 2).max(1) } else { self.pairs() };
        let cheapest = |layouts: &mut dyn Iterator<Item = Layout>| {
            let fits = layouts.filter(|layout| layout.splits <= 65535);
            fits.map(|layout| (layout.cost(cut, pairs), layout)).min_by_key(|(cost, _)| *cost)
        };
        let mut best = None;
        if cut.device.sharing.is_some() {
            let [few, most] = SHARING_THREADS;
            let small = Layout::sharing(cut, pairs, 1, few, 0);
            // No larger block is faster where each multiprocessor has one small one at most, whose angles are one round.
            if small.blocks(cut) <= cut.device.multiprocessors && small.rounds(pairs) == 1 && small.splits <= 65535 {
                return small;
            }
            let large = [(1, 0), (1, 1), (2, 0), (2, 1)]
                .map(|(per_thread, more)| Layout::sharing(cut, pairs, per_thread, most, more));
            best = cheapest(&mut [small].into_iter().chain(large));
            // Nor is a walk, which waits for memory twice.
            if let Some(((time, _), layout)) = best
                && time <= WALK
            {
                return layout;
            }
        }
        // The same of walks: one head each, where each multiprocessor has one block at most.
        let spread = Layout::walking(cut, pairs, 1);
        if best.is_none() && spread.blocks(cut) <= cut.device.multiprocessors && spread.splits <= 65535 {
            return spread;
        }
        let heads = cut.q.heads + cut.k.map_or(0, |k| k.heads);
        let walks = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
        let per_thread = walks.into_iter().filter(|&walks| walks <= heads).map(|walks| heads.div_ceil(walks));
        // Angles are made anew for each set of heads.
        let most = cut.q.heads.min(cut.k.map_or(usize::MAX, |k| k.heads.max(1))) / self.sets();
        let per_thread = per_thread.filter(|&per_thread| self.sets() == 1 || per_thread <= most);
        let walking = per_thread.map(|per_thread| Layout::walking(cut, pairs, per_thread));
        let walking = cheapest(&mut walking.chain([spread]));
        let found = best.into_iter().chain(walking).min_by_key(|(cost, _)| *cost);
        found.map_or_else(|| Layout::walking(cut, pairs, heads), |(_, layout)| layout)
    }

    /// The grid and the arguments that shapes decide; tensors, tables and positions are still missing.
    fn launch(&self, cut: &Cut, layout: &Layout) -> Result<Launch<RopeArgs>> {
        let Cut { q, k, width, .. } = *cut;
        let small = |what: &str, n: usize| {
            let small = u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32);
            small.ok_or_else(|| Error::Value(format!("{n} {what} in one call, a kernel counts to {}", i32::MAX)))
        };
        // Pairs that move from one pairing to the other are in a row in both.
        let stay = if self.pairing == self.written() { self.pairing } else { Pairing::Half };
        let runs = Runs::new(stay, self.pairs(), width);
        let block = self.pairs() / self.axes.blocks();
        let args = RopeArgs {
            tokens: small("tokens", q.tokens)?,
            batch: small("sequences", q.batch)?,
            q_heads: small("query heads", q.heads)?,
            k_heads: small("key heads", k.map_or(0, |k| k.heads))?,
            heads_per_thread: small("heads of a thread", layout.per_thread)?,
            pairs: small("pairs", self.pairs())?,
            block: small("pairs of a block", block)?,
            run: small("pairs of a run", runs.run)?,
            runs: small("pairs of first runs", runs.first)?,
            apart: small("pairs between runs", runs.apart)?,
            x_second: small("elements between accesses", runs.second(self.pairing, width, block))?,
            y_second: small("elements between accesses", runs.second(self.written(), width, block))?,
            offset: small("channels before the rotary part", self.first_channel(q.dim))?,
            interleaved: u32::from(self.pairing == Pairing::Interleaved),
            interleaved_out: u32::from(self.written() == Pairing::Interleaved),
            factor: self.attention_factor as f32,
            ..RopeArgs::zeroed()
        };
        let grid = [
            small("blocks of tokens", q.tokens.div_ceil(layout.rows))?,
            small("blocks of heads", layout.splits)?,
            small("sequences", q.batch.min(65535))?,
        ];
        let (lanes, groups, rows) =
            (small("lanes", layout.lanes)?, small("groups", layout.groups)?, small("rows", layout.rows)?);
        let block = if layout.shares { [lanes, groups, rows] } else { [lanes, rows, groups] };
        Ok(Launch::new(grid, block, args))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Keys of one call, beside its queries.
#[derive(Debug)]
pub enum Keys<'a, T> {
    /// there are none
    None,
    /// a tensor of their own
    Apart(Update<'a, T, Heads>),
    /// in the buffer of the queries, which is rotated in place: packed QKV
    Beside(Heads),
}

impl<'a, T> From<ViewMut<'a, T, Heads>> for Keys<'a, T> {
    fn from(k: ViewMut<'a, T, Heads>) -> Self {
        Self::Apart(k.into())
    }
}

impl<'a, T> From<Update<'a, T, Heads>> for Keys<'a, T> {
    fn from(k: Update<'a, T, Heads>) -> Self {
        Self::Apart(k)
    }
}

impl<'a, T> From<Option<Update<'a, T, Heads>>> for Keys<'a, T> {
    fn from(k: Option<Update<'a, T, Heads>>) -> Self {
        k.map_or(Self::None, Self::Apart)
    }
}

impl<T> From<Heads> for Keys<'_, T> {
    fn from(k: Heads) -> Self {
        Self::Beside(k)
    }
}

/// Options of one rotation. Token positions alone become a forward rotation by the plan's own angles.
///
/// | field | meaning |
/// |---|---|
/// | `positions` | token positions, any integers |
/// | `direction` | forward; or inverse, which is also the gradient |
/// | `table` | cosines and sines in place of the plan's own; `attention_factor` multiplies them too |
/// | `xpos` | for a plan of [`XPos`]: which side of the score the first tensor is on. `None`: queries |
#[derive(Debug)]
pub struct Rotation<'a, T> {
    /// token positions
    pub positions: Positions<Ids<'a>>,
    /// forward or inverse
    pub direction: Direction,
    /// cosines and sines of the caller
    pub table: Option<Table<'a, T>>,
    /// which side of the score the first tensor is on
    pub xpos: Option<Side>,
}

impl<'a, T> Rotation<'a, T> {
    /// A forward rotation by the plan's own angles.
    pub const fn at(positions: Positions<Ids<'a>>) -> Self {
        Self { positions, direction: Direction::Forward, table: None, xpos: None }
    }
}

impl<'a, T> From<Positions<Ids<'a>>> for Rotation<'a, T> {
    fn from(positions: Positions<Ids<'a>>) -> Self {
        Self::at(positions)
    }
}

/// [`Rope`] or [`XPos`] on a [`Gpu`], for one element type: its rates are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; token counts may change from call
/// to call. It can be captured in a CUDA graph ([`Gpu::new`] shows how), which keeps the plan's tables.
#[derive(Clone, Debug)]
pub struct RopePlan<T> {
    gpu: Gpu,
    rope: Rope,
    rates: DeviceRates,
    axes: Option<Uploaded<u8>>,
    xpos: Option<XPosTable>,
    own: Kernels,
    by_table: Kernels,
    mixed: Option<MixedTable>,
    element: std::marker::PhantomData<T>,
}

/// What makes the angles of a spec.
#[derive(Clone, Debug)]
pub(in crate::rotate) enum DeviceRates {
    /// turns per position in units of 2^-64
    Exact(Uploaded<u64>),
    /// frequencies
    Compat(Uploaded<f32>),
}

impl DeviceRates {
    /// Checks the spec and uploads them.
    pub(in crate::rotate) fn new(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        match &Law::of(rope)?.rates {
            // A table on the device has at least one number, though a plan without a rotation reads none.
            Rates::Exact(rates) | Rates::Mixed(rates) if rates.is_empty() => Ok(Self::Exact(gpu.upload(&[0])?)),
            Rates::Exact(rates) | Rates::Mixed(rates) => Ok(Self::Exact(gpu.upload(rates)?)),
            Rates::Compat(frequencies) => Ok(Self::Compat(gpu.upload(frequencies)?)),
        }
    }
}

/// The kernels of one source of angles, by their accesses: 16 bytes, 8 bytes where odd sizes are common enough, one element.
/// Where there are any, those of 16 bytes whose blocks share their angles: with one head a thread, and with two.
#[derive(Clone, Debug)]
struct Kernels {
    sharing: Option<[Resident; 2]>,
    wide: Resident,
    mid: Option<Resident>,
    one: Resident,
}

/// A kernel, and how many of its threads a multiprocessor holds.
#[derive(Clone, Debug)]
struct Resident {
    kernel: Kernel<RopeArgs>,
    threads: usize,
}

impl Kernels {
    /// The widest kernel whose accesses divide `steps`, in bytes, and the elements of one of them.
    fn fitting<T>(&self, steps: u64) -> (&Resident, usize) {
        match (widest(steps), &self.mid) {
            (16, _) => (&self.wide, 16 / size_of::<T>()),
            (8, Some(mid)) => (mid, 8 / size_of::<T>()),
            _ => (&self.one, 1),
        }
    }
}

/// Loads the kernels of one list for element type `T`.
fn load<T: Scalar, const N: usize>(gpu: &Gpu, entries: [Entry<RopeArgs>; N]) -> Result<[Resident; N]> {
    let mut kernels = Vec::with_capacity(N);
    for kernel in gpu.load::<T, _, N>(entries)? {
        let threads = gpu.resident_threads(&kernel, THREADS as u32)?;
        kernels.push(Resident { kernel, threads });
    }
    kernels.try_into().map_err(|_| Error::NoKernels)
}

on_stream! { RopePlan { gpu } }

impl<T: Scalar> RopePlan<T> {
    /// Uploads the rates and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        let rates = DeviceRates::new(gpu, rope)?;
        let [one] = load::<T, 1>(gpu, ROPE_ONE)?;
        let single = |[wide]: [Resident; 1]| Kernels { sharing: None, wide, mid: None, one: one.clone() };
        let double = |[wide, mid]: [Resident; 2]| Kernels { sharing: None, wide, mid: Some(mid), one: one.clone() };
        let own = match rope.angles {
            Angles::Exact => {
                let blocks = rope.axes.blocks() > 1;
                let mut own =
                    if blocks { single(load::<T, 1>(gpu, ROPE_BLOCKS)?) } else { double(load::<T, 2>(gpu, ROPE)?) };
                if rope.may_share() {
                    let halves = rope.pairing == Pairing::Half;
                    let entries = if halves { ROPE_SHARED_HALF } else { ROPE_SHARED_INTERLEAVED };
                    own.sharing = Some(load::<T, 2>(gpu, entries)?);
                }
                own
            }
            Angles::Mixed(_) => {
                let [wide, one] = load::<T, 2>(gpu, ROPE_MIXED)?;
                Kernels { sharing: None, wide, mid: None, one }
            }
            Angles::HfCompat | Angles::Given(_) => single(load::<T, 1>(gpu, ROPE_COMPAT)?),
        };
        Ok(Self {
            gpu: gpu.clone(),
            rope: rope.clone(),
            rates,
            axes: rope.axes.table(rope.pairs()).map(|table| gpu.upload(&table)).transpose()?,
            xpos: None,
            mixed: matches!(rope.angles, Angles::Mixed(_)).then(|| MixedTable::new::<T>(gpu, rope)).transpose()?,
            own,
            by_table: double(load::<T, 2>(gpu, ROPE_TABLE)?),
            element: std::marker::PhantomData,
        })
    }

    /// xPos: [`RopePlan::new`] of its rope, and its exponents.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn xpos(gpu: &Gpu, xpos: &XPos) -> Result<Self> {
        let table = XPosTable::new(gpu, xpos)?;
        let plan = Self::new(gpu, &xpos.rope)?;
        let [wide] = load::<T, 1>(gpu, ROPE_XPOS)?;
        let own = Kernels { sharing: None, wide, mid: None, one: plan.own.one.clone() };
        Ok(Self { own, xpos: Some(table), ..plan })
    }

    /// The spec.
    pub const fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Rotates queries, and keys if they are given, in one kernel.
    ///
    /// `a' = a cos - b sin`, `b' = a sin + b cos` for every pair `(a, b)`, cos and sin of `position * frequency(pair)`; with
    /// [`XPos`] times `zeta^(+-(position - center) / scale_base)`, `+` for queries, `-` for keys.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q` | `[batch, tokens, heads, dim]` in any order | queries: `heads.of_mut(&mut q)` in place, `heads.of(&q).to(heads.of_mut(&mut y))` elsewhere |
    /// | `k` | the same batch, tokens and dim | keys, with heads and strides of their own: a tensor, `None`, or a shape in the buffer of `q` |
    /// | `rotation` | | [`Positions`], or a [`Rotation`] with options |
    ///
    /// Channels outside the rotary part are not touched in place, and copied otherwise. One of `q` and `k` may be rotated in
    /// place and the other elsewhere. Packed QKV is one buffer with two shapes:
    ///
    /// | layout of the buffer | `q` | `k` |
    /// |---|---|---|
    /// | `[tokens, (hq + 2 hk) * dim]` | `Heads::thd(tokens, hq, dim).row(row)` | `Heads::thd(tokens, hk, dim).row(row).at(hq * dim)` |
    ///
    /// # Accuracy
    /// [`Rope::error_bound`] and the rounding to `T`, at every position from -2^31 to 2^31 - 1; around the table's values with a
    /// table, [`XPos::error_bound`] with xPos. The same bits on every device, for every layout and alignment.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with what is written, if shapes do not go
    /// together or written elements overlap, or the table is refused. Nothing is written then.
    ///
    /// # Source
    /// RoFormer (arXiv 2104.09864), equation 34. xPos: Sun et al. 2022 (arXiv 2212.10554), algorithm 1.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Gpu, Heads, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &Rope::new(128, 10_000.0))?;
    /// let stream = gpu.stream();
    /// let mut q = stream.alloc_zeros(7 * 32 * 128)?;
    /// let mut k = stream.alloc_zeros(7 * 8 * 128)?;
    /// let ids = stream.clone_htod(&[0, 1, 2, 3, 4, 5, 6])?;
    /// let (q_heads, k_heads) = (Heads::thd(7, 32, 128), Heads::thd(7, 8, 128));
    /// plan.rotate(q_heads.of_mut(&mut q), k_heads.of_mut(&mut k), Positions::ids(&ids))?;
    ///
    /// // Packed: 7 tokens of 32 queries, 8 keys and 8 values.
    /// let (row, mut qkv) = (48 * 128, stream.alloc_zeros(7 * 48 * 128)?);
    /// plan.rotate(q_heads.row(row).of_mut(&mut qkv), k_heads.row(row).at(32 * 128), Positions::counted())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Back, with cosines and sines from vLLM's cache, whose rows have 64 cosines and then 64 sines:
    ///
    /// ```no_run
    /// use posenc::rotate::{OutOfRange, Rotation, Table, TableValues};
    /// use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &Rope::new(128, 10_000.0))?;
    /// let cache = gpu.stream().alloc_zeros(4096 * 128)?;
    /// let values = TableValues::F32 { cos: &cache, sin: None };
    /// let table = Table { values, rows: 4096, stride: 128, out_of_range: OutOfRange::Clamp };
    /// let mut q = gpu.stream().alloc_zeros(7 * 32 * 128)?;
    /// let back = Rotation {
    ///     direction: Direction::Inverse,
    ///     table: Some(table),
    ///     ..Rotation::at(Positions::counted())
    /// };
    /// plan.rotate(Heads::thd(7, 32, 128).of_mut(&mut q), None, back)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rotate<'a>(
        &'a self,
        q: impl Into<Update<'a, T, Heads>>,
        k: impl Into<Keys<'a, T>>,
        rotation: impl Into<Rotation<'a, T>>,
    ) -> Result<()> {
        let (q, k, rotation) = (q.into(), k.into(), rotation.into());
        if rotation.table.is_some() {
            self.rope.check_table()?;
        }
        let side = match (&self.xpos, rotation.xpos) {
            (None, Some(side)) => {
                return Err(Error::Value(format!(
                    "the rotation is of xPos's {side:?}, the plan is not made of an XPos"
                )));
            }
            (Some(_), _) if rotation.table.is_some() => {
                return Err(Error::Value("the rotation has a table, which xPos's factors do not go with".into()));
            }
            (_, side) => side.unwrap_or(Side::Query),
        };
        let names = if side == Side::Key { ["k", "k_out"] } else { ["q", "q_out"] };
        let shape = *q.shape();
        self.rope.check_fits(shape.dim)?;
        self.rope.check_sets(names[0], shape.heads)?;
        match &k {
            Keys::None => {}
            Keys::Apart(_) | Keys::Beside(_) if side == Side::Key => {
                return Err(Error::Value("the first tensor is keys, there are no others beside it".into()));
            }
            Keys::Apart(k) => {
                shape.check_pair(k.shape())?;
                self.rope.check_sets("k", k.shape().heads)?;
            }
            Keys::Beside(k) => {
                shape.check_pair(k)?;
                self.rope.check_sets("k", k.heads)?;
            }
        }

        let mut call = self.gpu.call();
        let q = call.update(names, q)?;
        let k = match k {
            Keys::None => None,
            Keys::Apart(k) => Some(call.update(["k", "k_out"], k)?),
            Keys::Beside(_) if !q.in_place => {
                return Err(Error::Value("k lies in the buffer of q, which then is rotated in place".into()));
            }
            Keys::Beside(k) => Some(call.beside::<T, _>("k", &q, k)?),
        };
        self.check_moves(q.in_place || k.as_ref().is_some_and(|k| k.in_place))?;
        if shape.is_empty() {
            return Ok(());
        }
        let copied = !q.in_place || k.as_ref().is_some_and(|k| !k.in_place);
        if self.rope.is_none() && !copied {
            return Ok(());
        }
        let sizes = (self.rope.sizes(shape.dim, copied) * size_of::<T>()) as u64;
        let kernels = if rotation.table.is_some() { &self.by_table } else { &self.own };
        let (walking, width) = kernels.fitting::<T>(q.steps() | k.as_ref().map_or(0, Updated::steps) | sizes);
        let sharing = kernels.sharing.as_ref().filter(|_| width * size_of::<T>() == 16 && shape.batch <= 65535);
        let device = Device {
            multiprocessors: self.gpu.multiprocessors() as usize,
            walking: walking.threads,
            sharing: sharing.map(|of| [of[0].threads, of[1].threads]),
        };
        let k_shape = k.as_ref().map(|k| k.x.shape);
        let cut = Cut { q: shape, k: k_shape, width, element: size_of::<T>(), device };
        let layout = self.rope.layout(&cut);
        let kernel = match sharing {
            Some(sharing) if layout.shares => &sharing[layout.per_thread - 1].kernel,
            _ => &walking.kernel,
        };
        let mut launch = self.rope.launch(&cut, &layout)?;
        let args = &mut launch.args;
        // Below 2^31, as pairs and offset are.
        args.copied = if copied { (shape.dim - self.rope.rotary) as u32 } else { 0 };
        for (tensor, x) in [(&mut args.q, Some(&q)), (&mut args.k, k.as_ref())] {
            let Some(x) = x else { continue };
            (tensor.x, tensor.y) = (x.x.at, x.y.at);
            tensor.x_strides = x.x.shape.strides.map(|stride| stride as i64);
            tensor.y_strides = x.y.shape.strides.map(|stride| stride as i64);
        }
        args.q_copied = u32::from(!q.in_place);
        args.k_copied = u32::from(k.as_ref().is_some_and(|k| !k.in_place));
        args.at = rotation.positions.hold(&mut call, self.rope.position_axes(), shape.batch, shape.tokens)?;
        args.sign = if rotation.direction == Direction::Forward { 1.0 } else { -1.0 };
        if let Some(axes) = &self.axes {
            args.axes = call.table("axes", axes)?;
        }
        match (rotation.table, &self.rates) {
            (Some(table), _) => table.hold(&mut call, &self.rope, width, args)?,
            (None, DeviceRates::Exact(rates)) => args.rates = call.table("rates", rates)?,
            (None, DeviceRates::Compat(rates)) => {
                args.rates = call.table("rates", rates)?;
                args.compat = 1;
            }
        }
        if self.mixed.is_some() {
            // Heads count up to 2^31 in all, see `launch`.
            args.axis_count = self.rope.position_axes() as u32;
            args.sets = self.rope.sets() as u32;
            args.q_sharing = args.q_heads / args.sets;
            args.k_sharing = args.k_heads / args.sets;
            args.by_q_sharing = Divisor::new(args.q_sharing.max(1));
            args.by_k_sharing = Divisor::new(args.k_sharing.max(1));
        }
        if let Some(xpos) = &self.xpos {
            xpos.hold(&mut call, side, args)?;
        }
        call.launch(kernel, &launch)
    }

    /// Makes the plan's angles of learned frequencies, in one kernel. Graphs of this plan see them, its clones do not.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `frequencies` | f32 `[axes, heads, pairs]` | in radians per position, below 2^40 in magnitude |
    /// | `flag` | 1 | set to 1 by a frequency that is not; its pair then is not turned on that axis |
    ///
    /// # Accuracy
    /// A rate is within 2^-64 turns per unit of the position of the f32 that is given.
    ///
    /// # Errors
    /// If the plan's angles are not [`Mixed`](crate::rotate::Mixed), or the buffer is too short or belongs to another context.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::rotate::{Angles, Mixed};
    /// use posenc::{Gpu, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let mixed = Mixed { axes: 2, heads: 12, frequencies: vec![0.0; 2 * 12 * 32] };
    /// let rope = Rope { angles: Angles::Mixed(mixed), ..Rope::new(64, 10_000.0) };
    /// let mut plan = RopePlan::<half::bf16>::new(&gpu, &rope)?;
    /// let learned = gpu.stream().alloc_zeros::<f32>(2 * 12 * 32)?;
    /// plan.set_frequencies(&learned, None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_frequencies<'a>(&'a mut self, frequencies: Read<'a, f32>, flag: Option<Write<'a, u32>>) -> Result<()> {
        let (Some(mixed), DeviceRates::Exact(rates)) = (&self.mixed, &mut self.rates) else {
            return Err(Error::Value("the plan's angles are not mixed, it has no learned frequencies".into()));
        };
        let need = rates.len();
        let mut call = self.gpu.call();
        // A rotary part, axes and heads of a spec that fits into memory.
        let args = MixedRatesArgs {
            frequencies: call.read("frequencies", frequencies, need)?,
            bits: mixed.bits.as_ref().map_or(Ok(In::NULL), |bits| call.table("bits", bits))?,
            rates: call.table_mut("rates", rates)?,
            flag: call.write_some("flag", flag, 1)?,
            count: u32::try_from(need).map_err(|_| Error::Overflow(format!("{need} frequencies")))?,
            by_axis: Divisor::new((need / self.rope.position_axes()) as u32),
            ..MixedRatesArgs::zeroed()
        };
        call.launch(&mixed.kernel, &Launch::new([args.count.div_ceil(256), 1, 1], [256, 1, 1], args))
    }

    /// Refuses pairs that move in place: one thread's store would fall on another thread's load.
    fn check_moves(&self, in_place: bool) -> Result<()> {
        let rope = &self.rope;
        if !in_place || rope.written() == rope.pairing {
            return Ok(());
        }
        Err(Error::Value(format!(
            "pairing is {:?} and pairing_out {:?}: pairs move, so the rotation cannot be in place",
            rope.pairing,
            rope.written()
        )))
    }
}

/// What makes the rates of learned frequencies.
#[derive(Clone, Debug)]
struct MixedTable {
    kernel: Kernel<MixedRatesArgs>,
    /// fraction bits of each axis
    bits: Option<Uploaded<u32>>,
}

impl MixedTable {
    fn new<T: Scalar>(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        let [kernel] = gpu.load::<T, _, 1>(MIXED_RATES)?;
        let bits = &rope.fraction_bits;
        Ok(Self { kernel, bits: (!bits.is_empty()).then(|| gpu.upload(bits)).transpose()? })
    }
}

/// The exponents of a spec on the device.
#[derive(Clone, Debug)]
struct XPosTable {
    /// of the queries' factors, and of the keys'
    exponents: Uploaded<i64>,
    pairs: usize,
    center: i64,
    reach: i64,
}

impl XPosTable {
    fn new(gpu: &Gpu, xpos: &XPos) -> Result<Self> {
        xpos.check()?;
        let pairs = xpos.rope.pairs();
        let queries: Vec<i64> = (0..pairs).map(|pair| xpos.exponent(pair)).collect();
        let keys: Vec<i64> = queries.iter().map(|exponent| -exponent).collect();
        let exponents = gpu.upload(&[queries, keys].concat())?;
        Ok(Self { exponents, pairs, center: xpos.center, reach: xpos.reach() as i64 })
    }

    /// Hands in the exponents of a call whose first tensor is on `side`.
    fn hold<'a>(&'a self, call: &mut Call<'a>, side: Side, args: &mut RopeArgs) -> Result<()> {
        let first = if side == Side::Query { 0 } else { self.pairs };
        args.exponents = call.table("exponents", &self.exponents)?.offset((first * size_of::<i64>()) as u64);
        args.center = self.center;
        args.reach = self.reach;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    /// A cut for elements of `element` bytes, in tensors at multiples of `alignment` bytes.
    fn cut(rope: &Rope, q: Heads, k: Option<Heads>, copied: bool, [alignment, element]: [usize; 2]) -> Cut {
        let sizes = rope.sizes(q.dim, copied) | q.strided().steps() | k.map_or(0, |k| k.strided().steps());
        let bytes = widest((alignment | (sizes * element)) as u64);
        let sharing = (rope.may_share() && bytes == 16 && q.batch <= 65535).then_some([1280, 1024]);
        let device = Device { multiprocessors: 132, walking: 1280, sharing };
        Cut { q, k, width: if bytes >= 8 { bytes / element } else { 1 }, element, device }
    }

    /// How often the kernel's index arithmetic reaches each of `n` things from threads that begin at `starts` and take `step`
    /// of them.
    fn reached(n: usize, starts: impl Iterator<Item = usize>, step: usize) -> bool {
        let mut count = vec![0u8; n];
        for start in starts.filter(|&start| start < n) {
            count[start..(start + step).min(n)].iter_mut().for_each(|count| *count += 1);
        }
        count.iter().all(|&count| count == 1)
    }

    /// Whether each (token, head, first pair) is reached once. A thread's token, its heads and its pairs depend on coordinates
    /// of their own, so that each is reached once where each token, each head and each group of pairs is.
    fn covered(launch: &Launch<RopeArgs>, layout: &Layout, width: usize) -> bool {
        let a = &launch.args;
        let [grid_x, grid_y, _] = launch.grid.map(|n| n as usize);
        let [lanes, y, z] = launch.block.map(|n| n as usize);
        let (rows, groups) = if layout.shares { (z, y) } else { (y, z) };
        let [q_heads, k_heads, per_thread] = [a.q_heads, a.k_heads, a.heads_per_thread].map(|n| n as usize);
        let pair_groups = a.pairs as usize / width;
        let tokens = (0..grid_x).flat_map(|x| (0..rows).map(move |y| x * rows + y));
        let walks = || (0..grid_y).flat_map(|y| (0..groups).map(move |z| y * groups + z));
        let pairs = (0..lanes).flat_map(|lane| (lane..pair_groups).step_by(lanes));
        let heads = if layout.shares {
            // Heads of a walk are of one tensor.
            let q_walks = q_heads.div_ceil(per_thread);
            reached(q_heads, walks().filter(|&walk| walk < q_walks).map(|walk| walk * per_thread), per_thread)
                && reached(
                    k_heads,
                    walks().filter_map(|walk| walk.checked_sub(q_walks)).map(|walk| walk * per_thread),
                    per_thread,
                )
        } else {
            reached(q_heads + k_heads, walks().map(|walk| walk * per_thread), per_thread)
        };
        reached(a.tokens as usize, tokens, 1) && heads && reached(pair_groups, pairs, 1)
    }

    #[test]
    fn every_token_count_is_covered_once_without_idle_blocks() {
        for (rotary, dim, hq, hk, in_place) in [
            (128, 128, 32, 8, true),
            (128, 128, 8, 1, true),
            (64, 64, 71, 1, true),
            (24, 96, 64, 64, true),
            (64, 256, 16, 2, false),
            (576, 576, 128, 0, true),
        ] {
            let rope = Rope::new(rotary, 10_000.0);
            for tokens in 1..=4096 {
                let (q, k) = (Heads::thd(tokens, hq, dim), Heads::thd(tokens, hk, dim));
                let cut = cut(&rope, q, (hk > 0).then_some(k), !in_place, [16, 2]);
                let (layout, width) = (rope.layout(&cut), cut.width);
                let launch = rope.launch(&cut, &layout).unwrap();
                launch.check("rope").unwrap();
                assert!(covered(&launch, &layout, width), "{tokens} tokens, {hq} and {hk} heads: {launch:?}");
                assert!(launch.block[2] <= 64 && launch.block.iter().product::<u32>() <= 256, "{launch:?}");
                assert!(!layout.shares || layout.rows * rope.pairs() <= SHARED_ANGLES, "{launch:?}");
                // Threads without a token or a head: at most as many as those with.
                let threads: u64 = launch.grid.iter().chain(&launch.block).map(|&n| u64::from(n)).product();
                let walks = (hq + hk).div_ceil(launch.args.heads_per_thread as usize);
                let busy = (tokens * walks * (rotary / 2 / width).min(THREADS)) as u64;
                assert!(threads <= 2 * busy, "{tokens} tokens: {threads} threads for {busy}, {launch:?}");
            }
        }
    }

    #[test]
    fn few_tokens_spread_their_heads_and_many_walk_them() {
        let rope = Rope::new(128, 10_000.0);
        let launch = |tokens| {
            let (q, k) = (Heads::thd(tokens, 32, 128), Heads::thd(tokens, 8, 128));
            let cut = cut(&rope, q, Some(k), false, [16, 2]);
            rope.launch(&cut, &rope.layout(&cut)).unwrap()
        };
        assert_eq!(launch(1).args.heads_per_thread, 1);
        assert_eq!(launch(1 << 20).args.heads_per_thread, 40);
        // Half a million blocks of one sequence, and more sequences than a grid is deep.
        let deep = Heads::bthd(70_000, 1, 4, 128);
        let cut = cut(&rope, deep, None, false, [16, 2]);
        assert_eq!(rope.launch(&cut, &rope.layout(&cut)).unwrap().grid[2], 65535);
    }

    #[test]
    fn short_calls_share_angles_and_two_heads_a_thread_where_the_device_is_full() {
        let layout = |rope: &Rope, tokens| {
            let (q, k) = (Heads::thd(tokens, 32, 128), Heads::thd(tokens, 8, 128));
            rope.layout(&cut(rope, q, Some(k), false, [16, 2]))
        };
        for rope in [Rope::new(128, 1e4), Rope { pairing: Pairing::Interleaved, ..Rope::new(128, 1e4) }] {
            for (tokens, per_thread) in [(1, 1), (8, 1), (64, 1), (128, 2), (512, 2), (2048, 2)] {
                let layout = layout(&rope, tokens);
                assert!(layout.shares && layout.per_thread == per_thread, "{tokens} tokens: {layout:?}");
            }
            // One token spreads over five multiprocessors, blocks of 64 threads.
            let Layout { lanes, groups, rows, splits, .. } = layout(&rope, 1);
            assert_eq!((lanes, groups, rows, splits), (8, 8, 1, 5));
            assert!(!layout(&rope, 1 << 20).shares);
        }
        // Pairs that move, angles of another source, blocks of channels and more pairs than a block holds: none is shared.
        let plain = Rope::new(128, 1e4);
        for rope in [
            Rope { pairing_out: Some(Pairing::Interleaved), ..plain.clone() },
            Rope { angles: Angles::HfCompat, ..plain.clone() },
            Rope { axes: crate::rotate::Axes::Blocks(2), ..plain.clone() },
            Rope::new(1040, 1e4),
        ] {
            assert!(!rope.may_share(), "{rope:?}");
        }
        assert!(Rope::new(1024, 1e4).may_share());
    }

    #[test]
    fn waves_end_where_the_resident_threads_do() {
        let rope = Rope { angles: Angles::HfCompat, ..Rope::new(128, 1e4) };
        let per_thread = |walking| {
            let mut cut = cut(&rope, Heads::thd(2304, 32, 128), Some(Heads::thd(2304, 8, 128)), false, [16, 2]);
            cut.device.walking = walking;
            rope.layout(&cut).per_thread
        };
        // The registers of compute capability 9.0, and of 7.5.
        assert_eq!((per_thread(1280), per_thread(1024)), (5, 7));
    }

    #[test]
    fn width_follows_sizes_strides_and_addresses() {
        let width = |rope: &Rope, q: Heads, in_place: bool, alignment: usize, element: usize| {
            cut(rope, q, None, !in_place, [alignment, element]).width * element
        };
        let rope = Rope::new(64, 10_000.0);
        let q = Heads::thd(3, 2, 64);
        assert_eq!(width(&rope, q, true, 16, 2), 16);
        assert_eq!(width(&rope, q, true, 8, 2), 8);
        assert_eq!(width(&rope, q, true, 4, 2), 2);
        assert_eq!(width(&rope, q.row(132), true, 16, 2), 8);
        assert_eq!(width(&rope, q.row(132), true, 16, 4), 16);
        assert_eq!(width(&rope, q.at(1), true, 16, 4), 4);
        // 24 of 96 channels, GPT-NeoX-20B: 12 pairs are three accesses of 8 bytes.
        assert_eq!(width(&Rope::new(24, 10_000.0), Heads::thd(3, 64, 96), true, 16, 2), 8);
        // What is copied beside the rotary part counts out of place alone.
        assert_eq!(width(&rope, Heads::thd(3, 1, 70), false, 16, 2), 2);
        // A stride that is never taken does not count.
        assert_eq!(width(&rope, Heads { strides: [1, 1, 64], ..Heads::thd(1, 2, 64) }, true, 16, 2), 16);
    }

    #[test]
    fn more_tokens_than_a_kernel_counts_are_refused() {
        let rope = Rope::new(2, 1e4);
        let cut = cut(&rope, Heads::thd(1 << 31, 1, 2), None, false, [2, 2]);
        let error = rope.launch(&cut, &rope.layout(&cut)).unwrap_err();
        assert_eq!(error.to_string(), "2147483648 tokens in one call, a kernel counts to 2147483647");
    }
}
