//! [`Prologue`] on a device: one launch for queries, keys and values.

use bytemuck::Zeroable;

use super::{
    CacheRows, Code8, HeadNorm, MOST_PAIRS, NormKind, NormOver, NormWeight, Prologue, Qkv, Rounding, TAIL, Vectors,
    check_cache, check_scale_shape, check_scales,
};
use crate::gpu::args::{
    BranchArgs, CachePlace, CodeScaleKind, Divisor, HeadNormKind, In, Out, PrologueArgs, QueryScaleKind, StepRounding,
    StoreKind,
};
use crate::gpu::kernel::PROLOGUE;
use crate::gpu::{
    Call, Gpu, Kernel, Launch, Placed, Read, Update, Updated, Uploaded, View, ViewMut, Write, on_stream, small, widest,
};
use crate::position::{Ids, Positions};
use crate::rotate::rope::DeviceRates;
use crate::rotate::{QueryScale, Rope};
use crate::shape::product;
use crate::{Error, Heads, Pairing, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Channels of a unit, which one thread owns, and the most tokens and heads of one norm in a block: as in
/// `kernels/rotate/prologue.cu`.
const UNIT: usize = 8;
const MOST_TOKENS: usize = 32;
const MOST_SUMS: usize = 512;
/// Threads of a block: by 16-byte accesses and by single elements, at most.
const THREADS: [usize; 2] = [256, 128];
/// Threads of a multiprocessor that should have work before one of them walks several heads.
const BUSY: usize = 1024;

/// How a call lies over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// heads of one tensor that a group of lanes walks
    per_thread: usize,
    /// threads of a head, groups of them and tokens of a block
    lanes: usize,
    groups: usize,
    rows: usize,
    /// blocks that share a token's heads
    splits: usize,
}

/// What a layout is decided from.
#[derive(Clone, Copy, Debug)]
struct Cut {
    batch: usize,
    tokens: usize,
    /// of queries, keys and values; 0: there are none
    heads: [usize; 3],
    /// threads of a head
    lanes: usize,
    pairs: usize,
    /// a block has all heads of its tokens, whose sums it keeps
    whole: bool,
    /// by 16-byte accesses
    wide: bool,
    multiprocessors: usize,
}

impl Cut {
    /// Groups of lanes for the heads of a token.
    fn walks(&self, per_thread: usize) -> usize {
        self.heads.iter().map(|heads| heads.div_ceil(per_thread)).sum()
    }

    fn blocks(&self, layout: &Layout) -> usize {
        self.tokens.div_ceil(layout.rows).saturating_mul(layout.splits).saturating_mul(self.batch)
    }

    fn of(&self, per_thread: usize, threads: usize) -> Layout {
        let (lanes, walks) = (self.lanes, self.walks(per_thread));
        let splits = walks.div_ceil((threads / lanes).max(1)).max(1);
        let groups = walks.div_ceil(splits).max(1);
        let rows = (threads / (lanes * groups)).min(MOST_TOKENS).min(MOST_PAIRS / self.pairs.max(1));
        let rows = if self.whole { rows.min(MOST_SUMS / self.heads.iter().sum::<usize>().max(1)) } else { rows };
        let rows = 1 << rows.max(1).ilog2().min(self.tokens.next_power_of_two().ilog2());
        Layout { per_thread, lanes, groups, rows, splits }
    }

    /// Small blocks where each multiprocessor has one at most; else several heads to a thread where all of them stay busy.
    fn layout(&self) -> Layout {
        let most = THREADS[usize::from(!self.wide)];
        if self.whole {
            let fits = |per_thread: &usize| self.walks(*per_thread) <= most / self.lanes;
            let largest = self.heads.iter().copied().max().unwrap_or(1);
            let per_thread = (1..=largest).find(fits).unwrap_or(largest);
            return self.of(per_thread, most);
        }
        for threads in [64, 128].into_iter().filter(|&threads| threads <= most) {
            let layout = self.of(1, threads.max(self.lanes));
            if self.blocks(&layout) <= self.multiprocessors {
                return layout;
            }
        }
        let busy = |layout: &Layout| {
            let threads = layout.lanes * layout.groups * layout.rows;
            self.blocks(layout).saturating_mul(threads) >= BUSY * self.multiprocessors
        };
        let several = [4, 2].map(|per_thread| self.of(per_thread, most));
        several.into_iter().find(busy).unwrap_or_else(|| self.of(1, most))
    }
}

/// Half of the units of a head, a power of two: how far the first two that are added are apart.
fn tree(dim: usize) -> usize {
    (dim.div_ceil(UNIT).next_power_of_two() / 2).max(1)
}

impl Prologue {
    /// Whether units of 8 channels hold whole pairs, as threads with 16-byte accesses own them.
    fn has_units(&self, branch: Qkv, heads: &Heads) -> bool {
        let turned = self.rope_of(branch);
        let fits = |rope: &Rope| {
            rope.pairing == rope.written()
                && (rope.pairs() / rope.axes.blocks()).is_multiple_of(UNIT)
                && rope.first_channel(heads.dim).is_multiple_of(UNIT)
        };
        heads.dim.is_multiple_of(UNIT) && tree(heads.dim) <= 32 && turned.is_none_or(fits)
    }

    /// What the spec and a shape say of a branch; tensors are still missing.
    fn branch_args(&self, which: Qkv, heads: &Heads, per_thread: usize) -> Result<BranchArgs> {
        let branch = self.branch(which);
        let own = |what, n| small(what, n).map_err(|_| Error::Overflow(format!("{n} {what} of {}", which.name())));
        let mut args = BranchArgs {
            heads: own("heads", heads.heads)?,
            dim: own("channels", heads.dim)?,
            walks: own("heads", heads.heads.div_ceil(per_thread))?,
            rounding: match branch.rounding {
                Rounding::Once => StepRounding::ONCE,
                Rounding::Steps => StepRounding::STEPS,
                Rounding::BeforeWeight => StepRounding::BEFORE_WEIGHT,
            },
            scaled: u32::from(which == Qkv::Query && self.query_scale != QueryScale::One),
            tree: tree(heads.dim) as u32,
            rest_apart: tree(heads.dim) as u32,
            natural: 1,
            share: 1.0,
            ..BranchArgs::zeroed()
        };
        if let Some(HeadNorm { kind, weight, eps, over }) = branch.norm {
            let all = if over == NormOver::AllHeads { heads.heads } else { 1 };
            args.all_heads = u32::from(over == NormOver::AllHeads);
            args.eps = eps as f32;
            args.one_plus = u32::from(weight == NormWeight::OnePlusWeight);
            (args.norm, args.share) = match kind {
                NormKind::Rms => (HeadNormKind::RMS, (1.0 / product("channels", &[all, heads.dim])? as f64) as f32),
                NormKind::L2 => (HeadNormKind::L2, 1.0),
            };
        }
        if let Some(rope) = self.rope_of(which) {
            let (units, rotated) = (heads.dim / UNIT, rope.rotary / UNIT);
            (args.turned, args.offset) = (1, rope.first_channel(heads.dim) as u32);
            // Below, where there are no whole units, nothing reads these.
            args.rest_apart = units.saturating_sub(rotated).div_ceil(2) as u32;
            let whole = rotated == units && units == 2 * tree(heads.dim);
            args.natural = u32::from(whole && rope.axes.blocks() == 1);
        }
        Ok(args)
    }

    /// The grid and the arguments that the spec and shapes decide.
    fn launch(&self, cut: &Cut, layout: &Layout, shapes: [Option<Heads>; 3]) -> Result<Launch<PrologueArgs>> {
        let mut args = PrologueArgs {
            tokens: small("tokens", cut.tokens)?,
            batch: small("sequences", cut.batch)?,
            per_thread: layout.per_thread as u32,
            rope_first: u32::from(self.rope_first),
            ..PrologueArgs::zeroed()
        };
        for ((args, which), heads) in args.of.iter_mut().zip(ALL).zip(shapes) {
            if let Some(heads) = heads {
                *args = self.branch_args(which, &heads, layout.per_thread)?;
            }
        }
        if let Some(rope) = self.rope.as_ref().filter(|rope| !rope.is_none()) {
            let block = (rope.pairs() / rope.axes.blocks()) as u32;
            args.pairs = rope.pairs() as u32;
            (args.block, args.by_block) = (block, Divisor::new(block));
            args.interleaved = u32::from(rope.pairing == Pairing::Interleaved);
            args.interleaved_out = u32::from(rope.written() == Pairing::Interleaved);
            args.factor = rope.attention_factor as f32;
        }
        let (scale, by, floor, shift) = match self.query_scale {
            QueryScale::One => (QueryScaleKind::ONE, 0.0, 1.0, 0),
            QueryScale::Llama4 { scale, floor } => (QueryScaleKind::STEPS, scale, floor, 1),
            QueryScale::Mistral { beta, original_context } => (QueryScaleKind::STEPS, beta, original_context, 0),
            QueryScale::LogN { train_length } => (QueryScaleKind::LOG, 1.0 / train_length.ln(), 1.0, 1),
            QueryScale::Inkling { scale, floor } => (QueryScaleKind::ABOVE, scale, floor, 1),
        };
        (args.scale, args.scale_by, args.scale_shift) = (scale, by as f32, shift);
        args.floor = floor;
        let grid = [
            small("blocks of tokens", cut.tokens.div_ceil(layout.rows))?,
            small("blocks of heads", layout.splits)?,
            small("sequences", cut.batch.min(65535))?,
        ];
        let block = [layout.lanes, layout.groups, layout.rows].map(|n| n as u32);
        Ok(Launch::new(grid, block, args))
    }
}

const ALL: [Qkv; 3] = [Qkv::Query, Qkv::Key, Qkv::Value];

// ---------------------------------------------------------------------------------------------------------------- plan

/// Where queries, keys or values of one call are read, and where they go beside the cache.
#[derive(Debug)]
pub enum Projected<'a, T> {
    /// there are none
    None,
    /// read; the cache alone gets them
    Read(View<'a, T, Heads>),
    /// changed in place, or read and written elsewhere
    Update(Update<'a, T, Heads>),
    /// Read in the buffer of the queries, which are changed in place (packed QKV); the cache alone gets them.
    Beside(Heads),
    /// changed in place in the buffer of the queries, which are changed in place too
    BesideInPlace(Heads),
    /// read in the buffer of the queries, which are changed in place, and written elsewhere
    BesideTo(Heads, ViewMut<'a, T, Heads>),
}

impl<'a, T> From<View<'a, T, Heads>> for Projected<'a, T> {
    fn from(x: View<'a, T, Heads>) -> Self {
        Self::Read(x)
    }
}

impl<'a, T> From<ViewMut<'a, T, Heads>> for Projected<'a, T> {
    fn from(x: ViewMut<'a, T, Heads>) -> Self {
        Self::Update(x.into())
    }
}

impl<'a, T> From<Update<'a, T, Heads>> for Projected<'a, T> {
    fn from(x: Update<'a, T, Heads>) -> Self {
        Self::Update(x)
    }
}

impl<T> From<Heads> for Projected<'_, T> {
    fn from(x: Heads) -> Self {
        Self::Beside(x)
    }
}

impl<T> Projected<'_, T> {
    /// The shape of what is read.
    const fn shape(&self) -> Option<Heads> {
        match self {
            Self::None => None,
            Self::Read(x) => Some(x.shape),
            Self::Update(x) => Some(*x.shape()),
            Self::Beside(heads) | Self::BesideInPlace(heads) | Self::BesideTo(heads, _) => Some(*heads),
        }
    }
}

/// Eight-bit codes on a device that a call writes.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `x` | `[pages, rows of a page, heads, dim]`; `dim + 16` with [`CodeScale::Inline`] | written |
/// | `code` | | which |
/// | `scale` | | what codes are multiplied by |
#[derive(Debug)]
pub struct Codes<'a> {
    /// written
    pub x: ViewMut<'a, u8, Heads>,
    /// which
    pub code: Code8,
    /// what codes are multiplied by
    pub scale: CodeScale<'a>,
}

/// What codes on a device are multiplied by.
pub enum CodeScale<'a> {
    /// One for all, or one for each head: `[1]` or `[heads]`, above 0 and finite, and so its inverse. Another one raises the flag,
    /// and its codes are 0.
    Given(Read<'a, f32>),
    /// Of each token and head, its largest magnitude over the largest code: written in the shape `[pages, rows of a page, heads, 1]`.
    Dynamic(ViewMut<'a, f32, Heads>),
    /// The same, in the first four of 16 bytes behind the channels of a head.
    Inline,
}

impl std::fmt::Debug for CodeScale<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(scales) => write!(f, "Given({})", scales.len()),
            Self::Dynamic(scales) => f.debug_tuple("Dynamic").field(scales).finish(),
            Self::Inline => f.write_str("Inline"),
        }
    }
}

/// What a cache on a device holds.
#[derive(Debug)]
pub enum Stored<'a, T> {
    /// the element type
    Same(ViewMut<'a, T, Heads>),
    /// Of values: the element type, in the buffer of the cache of keys, which holds it too.
    Beside(Heads),
    /// eight bits
    Codes(Codes<'a>),
}

impl<'a, T> From<ViewMut<'a, T, Heads>> for Stored<'a, T> {
    fn from(x: ViewMut<'a, T, Heads>) -> Self {
        Self::Same(x)
    }
}

impl<'a, T> From<Codes<'a>> for Stored<'a, T> {
    fn from(codes: Codes<'a>) -> Self {
        Self::Codes(codes)
    }
}

impl<T> Stored<'_, T> {
    const fn shape(&self) -> &Heads {
        match self {
            Self::Same(x) => x.shape(),
            Self::Beside(heads) => heads,
            Self::Codes(codes) => codes.x.shape(),
        }
    }
}

/// A cache of keys and values on a device.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `k` | `[pages, rows of a page, heads, dim]` by [`Heads`] | written where tokens have a row; every other element stays as it is |
/// | `v` | as many pages and rows | the same of values; `None`: values are not cached |
/// | `rows` | [`CacheRows`] | the row of each token |
/// | `flag` | 1 | set to 1 by a row outside the cache, whose token is not cached, and by a scale that is not above 0 and finite |
pub struct Cache<'a, T> {
    /// of keys
    pub k: Stored<'a, T>,
    /// of values
    pub v: Option<Stored<'a, T>>,
    /// the row of each token
    pub rows: CacheRows<Ids<'a>>,
    /// set to 1 by a row outside the cache
    pub flag: Option<Write<'a, u32>>,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Cache<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { k, v, rows, flag } = self;
        let mut cache = f.debug_struct("Cache");
        cache.field("k", k).field("v", v).field("rows", rows).field("flag", &flag.is_some()).finish()
    }
}

/// What one call of a [`ProloguePlan`] takes beside its tensors. Positions alone become a call without vectors and cache.
#[derive(Debug)]
pub struct PrologueCall<'a, T> {
    /// token positions
    pub positions: Positions<Ids<'a>>,
    /// weight and bias of queries
    pub q: Vectors<Read<'a, T>>,
    /// weight and bias of keys
    pub k: Vectors<Read<'a, T>>,
    /// weight and bias of values
    pub v: Vectors<Read<'a, T>>,
    /// where keys and values are kept
    pub cache: Option<Cache<'a, T>>,
    /// Queries in eight bits, `[batch, tokens, heads, dim]`, beside or in place of a tensor of them.
    pub q_codes: Option<Codes<'a>>,
}

impl<'a, T> PrologueCall<'a, T> {
    /// Without vectors and cache.
    pub const fn at(positions: Positions<Ids<'a>>) -> Self {
        let none = (Vectors::none(), Vectors::none(), Vectors::none());
        Self { positions, q: none.0, k: none.1, v: none.2, cache: None, q_codes: None }
    }
}

impl<'a, T> From<Positions<Ids<'a>>> for PrologueCall<'a, T> {
    fn from(positions: Positions<Ids<'a>>) -> Self {
        Self::at(positions)
    }
}

/// [`Prologue`] on a [`Gpu`], for one element type: its rates are uploaded, its kernels loaded. One plan serves all layers of
/// one spec, whose weights a call takes.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; it can be captured in a CUDA graph.
#[derive(Clone, Debug)]
pub struct ProloguePlan<T> {
    gpu: Gpu,
    prologue: Prologue,
    rates: Option<DeviceRates>,
    axes: Option<Uploaded<u8>>,
    /// by 16-byte accesses, and by single elements
    kernels: [Kernel<PrologueArgs>; 2],
    element: std::marker::PhantomData<T>,
}

on_stream! { ProloguePlan { gpu } }

/// A tensor of a call.
#[derive(Clone, Copy)]
struct Held {
    x: Placed<In, Heads>,
    y: Option<Placed<Out, Heads>>,
}

impl<T: Scalar> ProloguePlan<T> {
    /// Uploads the rates and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, prologue: &Prologue) -> Result<Self> {
        prologue.check()?;
        let rope = prologue.rope.as_ref();
        Ok(Self {
            gpu: gpu.clone(),
            prologue: prologue.clone(),
            rates: rope.map(|rope| DeviceRates::new(gpu, rope)).transpose()?,
            axes: rope.and_then(|rope| rope.axes.table(rope.pairs())).map(|table| gpu.upload(&table)).transpose()?,
            kernels: gpu.load::<T, _, 2>(PROLOGUE)?,
            element: std::marker::PhantomData,
        })
    }

    /// The spec.
    pub const fn prologue(&self) -> &Prologue {
        &self.prologue
    }

    /// Applies the prologue to queries, keys and values, in one kernel.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q`, `k`, `v` | `[batch, tokens, heads, dim]` in any order | [`Projected`]: `heads.of_mut(&mut q)` in place, `heads.of(&q).to(heads.of_mut(&mut y))` elsewhere, `heads.of(&k)` into the cache alone, `Projected::None` |
    /// | `call` | | [`Positions`], or a [`PrologueCall`] with vectors and a cache |
    ///
    /// Heads and channels may differ from tensor to tensor. Every packing of a projection is a shape:
    ///
    /// | layout of the buffer | `q` | `k` |
    /// |---|---|---|
    /// | `[tokens, (hq + 2 hk) * dim]` | `Heads::thd(tokens, hq, dim).row(row)` | `Heads::thd(tokens, hk, dim).row(row).at(hq * dim)` |
    /// | `[tokens, hq, 2 dim]`: `q` and a gate | `Heads { strides: [0, 2 * hq * dim, 2 * dim], ..Heads::thd(tokens, hq, dim) }` | |
    /// | `[tokens, hk, (group + 2) * dim]`: by head | `Heads` of `group` query heads for each, one call for each | |
    ///
    /// # Accuracy
    /// [`Prologue::expect`] has the bound. The same bits on every device, for every layout, alignment, batch and chunking of a
    /// sequence, cached or not; without a norm, a bias and a factor those of [`RopePlan`](crate::RopePlan); with
    /// [`Rounding::Steps`] those of a plan for each step.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with what is written, shapes do not go together or
    /// written elements overlap, or a vector is missing. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::rotate::{Branch, Cache, CacheRows, HeadNorm, PrologueCall, ProloguePlan, Vectors};
    /// use posenc::{Gpu, Heads, Id, Positions, Prologue, Rope};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
    /// let qwen3 = Prologue { q: normed, k: normed, ..Prologue::new(Rope::new(128, 1e6)) };
    /// let plan = ProloguePlan::<half::bf16>::new(&gpu, &qwen3)?;
    /// let stream = gpu.stream();
    ///
    /// // 7 tokens of 32 queries, 8 keys and 8 values; queries go to a tensor, keys and values into pages of 16 rows.
    /// let (row, qkv) = (48 * 128, stream.alloc_zeros(7 * 48 * 128)?);
    /// let (q, k) = (Heads::thd(7, 32, 128), Heads::thd(7, 8, 128).row(48 * 128));
    /// let mut out = stream.alloc_zeros(7 * 32 * 128)?;
    /// let pages = Heads::bthd(100, 16, 8, 128);
    /// let (mut k_cache, mut v_cache) = (stream.alloc_zeros(100 * 16 * 1024)?, stream.alloc_zeros(100 * 16 * 1024)?);
    /// let (q_weight, k_weight) = (stream.alloc_zeros(128)?, stream.alloc_zeros(128)?);
    /// let positions = stream.clone_htod(&[40, 41, 42, 43, 44, 45, 46])?;
    /// let slots = stream.clone_htod(&[328, 329, 330, 331, 332, 333, -1])?;
    /// let call = PrologueCall {
    ///     q: Vectors::weight(&q_weight),
    ///     k: Vectors::weight(&k_weight),
    ///     cache: Some(Cache {
    ///         k: pages.of_mut(&mut k_cache).into(),
    ///         v: Some(pages.of_mut(&mut v_cache).into()),
    ///         rows: CacheRows::Slots(i32::ids(&slots)),
    ///         flag: None,
    ///     }),
    ///     ..PrologueCall::at(Positions::ids(&positions))
    /// };
    /// plan.apply(q.row(row).of(&qkv).to(q.of_mut(&mut out)), k.at(32 * 128).of(&qkv), k.at(40 * 128).of(&qkv), call)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<'a>(
        &'a self,
        q: impl Into<Projected<'a, T>>,
        k: impl Into<Projected<'a, T>>,
        v: impl Into<Projected<'a, T>>,
        call: impl Into<PrologueCall<'a, T>>,
    ) -> Result<()> {
        let (tensors, options) = ([q.into(), k.into(), v.into()], call.into());
        let shapes = [0, 1, 2].map(|i| tensors[i].shape());
        let vectors = [options.q, options.k, options.v];
        let size = self.check_shapes(&shapes, &vectors, &options)?;

        let mut call = self.gpu.call();
        let held = hold_tensors(&mut call, tensors)?;
        let goes = |which: usize| match &options.cache {
            _ if which == 0 => options.q_codes.is_some(),
            Some(cache) => which == 1 || cache.v.is_some(),
            None => false,
        };
        for (i, held) in held.iter().enumerate() {
            if held.is_some_and(|held| held.y.is_none()) && !goes(i) {
                return Err(Error::Value(format!("{} is read and goes nowhere", ALL[i].name())));
            }
        }
        let mut steps =
            held.iter().flatten().fold(0, |steps, held| steps | held.x.steps | held.y.map_or(0, |y| y.steps));
        let mut wide = shapes
            .iter()
            .zip(ALL)
            .all(|(heads, which)| heads.is_none_or(|heads| self.prologue.has_units(which, &heads)));
        let mut branches = [BranchArgs::zeroed(); 3];
        for (i, (branch, vectors)) in branches.iter_mut().zip(vectors).enumerate() {
            let [weight, bias] = [["q_weight", "q_bias"], ["k_weight", "k_bias"], ["v_weight", "v_bias"]][i];
            branch.weight = hold_vector(&mut call, weight, vectors.weight)?;
            branch.bias = hold_vector(&mut call, bias, vectors.bias)?;
            steps |= branch.weight.address() | branch.bias.address();
        }
        let mut placed = PrologueArgs::zeroed();
        let (mut code_steps, mut keys) = (0, None);
        let mut stores = [options.q_codes.map(Stored::Codes), None, None];
        if let Some(Cache { k, v, rows, flag }) = options.cache {
            hold_rows(&mut call, rows, size, k.shape(), &mut placed)?;
            placed.flag = call.write_some("the flag", flag, 1)?;
            (stores[1], stores[2]) = (Some(k), v);
        }
        for ((branch, store), which) in branches.iter_mut().zip(stores).zip(ALL) {
            let Some(store) = store else { continue };
            let is_coded = matches!(store, Stored::Codes(_));
            let own = hold_store(&mut call, which, store, &mut keys, branch)?;
            *(if is_coded { &mut code_steps } else { &mut steps }) |= own;
        }
        let positions = options.positions.hold(&mut call, self.prologue.position_axes(), size[0], size[1])?;
        if size[0] == 0 || size[1] == 0 {
            return Ok(());
        }
        wide &= widest(steps) == 16 && widest(code_steps) >= 8;
        let whole = ALL.iter().zip(&shapes).any(|(&which, heads)| {
            heads.is_some() && self.prologue.branch(which).norm.is_some_and(|norm| norm.over == NormOver::AllHeads)
        });
        let lanes = if wide { shapes.iter().flatten().map(|heads| tree(heads.dim)).max().unwrap_or(1) } else { 32 };
        let cut = Cut {
            batch: size[0],
            tokens: size[1],
            heads: shapes.map(|heads| heads.map_or(0, |heads| heads.heads)),
            lanes,
            pairs: self.prologue.rope.as_ref().map_or(0, Rope::pairs),
            whole,
            wide,
            multiprocessors: self.gpu.multiprocessors() as usize,
        };
        let layout = cut.layout();
        let mut launch = self.prologue.launch(&cut, &layout, shapes)?;
        let args = &mut launch.args;
        for ((of, held), branch) in args.of.iter_mut().zip(&held).zip(&branches) {
            let Some(held) = held else { continue };
            of.x = held.x.at;
            of.x_strides = held.x.shape.strides.map(|stride| stride as i64);
            if let Some(y) = &held.y {
                of.y = y.at;
                of.y_strides = y.shape.strides.map(|stride| stride as i64);
            }
            (of.weight, of.bias) = (branch.weight, branch.bias);
            (of.cache, of.cache_strides) = (branch.cache, branch.cache_strides);
            (of.scales, of.scale_strides) = (branch.scales, branch.scale_strides);
            (of.store, of.scale) = (branch.store, branch.scale);
        }
        args.at = positions;
        (args.slots, args.rows, args.flag) = (placed.slots, placed.rows, placed.flag);
        (args.place, args.slot_type, args.table_width) = (placed.place, placed.slot_type, placed.table_width);
        (args.pages, args.page_size, args.by_page) = (placed.pages, placed.page_size, placed.by_page);
        if let Some(axes) = &self.axes {
            args.axes = call.table("axes", axes)?;
        }
        match &self.rates {
            None => {}
            Some(DeviceRates::Exact(rates)) => args.rates = call.table("rates", rates)?,
            Some(DeviceRates::Compat(rates)) => {
                args.rates = call.table("rates", rates)?;
                args.compat = 1;
            }
        }
        call.launch(&self.kernels[usize::from(!wide)], &launch)
    }

    /// Refuses shapes that do not go together; gives sequences and tokens.
    fn check_shapes(
        &self,
        shapes: &[Option<Heads>; 3],
        vectors: &[Vectors<Read<'_, T>>; 3],
        options: &PrologueCall<'_, T>,
    ) -> Result<[usize; 2]> {
        let wrong = |text: String| Err(Error::Value(text));
        let there = || ALL.into_iter().zip(shapes).filter_map(|(which, heads)| Some((which, (*heads)?)));
        let Some((first, Heads { batch, tokens, .. })) = there().next() else {
            return wrong("there are no queries, keys or values".into());
        };
        for (which, heads) in there() {
            let lengths = &vectors[which as usize];
            let lengths = Vectors {
                weight: lengths.weight.map(|weight| weight.len()),
                bias: lengths.bias.map(|bias| bias.len()),
            };
            self.prologue.check_branch(which, &heads, lengths)?;
            for (what, own, other) in [("sequences", batch, heads.batch), ("tokens", tokens, heads.tokens)] {
                if own != other {
                    let (first, name) = (first.name(), which.name());
                    return wrong(format!("{first} has {own} {what} and {name} {other}, they must be equal"));
                }
            }
            let all = self.prologue.branch(which).norm.is_some_and(|norm| norm.over == NormOver::AllHeads);
            let heads: usize = there().map(|(_, heads)| heads.heads).fold(0, usize::saturating_add);
            if all && heads > MOST_SUMS {
                return wrong(format!(
                    "a norm over all heads takes at most {MOST_SUMS} heads a token, there are {heads}"
                ));
            }
        }
        if let Some(codes) = &options.q_codes {
            let Some(heads) = shapes[0] else { return wrong("there are codes of q and no q".into()) };
            codes.check(Qkv::Query, &heads)?;
            let (own, other) = ([batch, tokens], [codes.x.shape.batch, codes.x.shape.tokens]);
            if own != other {
                return wrong(format!(
                    "q has {own:?} sequences and tokens and its codes {other:?}, they must be equal"
                ));
            }
        }
        let Some(cache) = &options.cache else { return Ok([batch, tokens]) };
        for (which, of) in [(Qkv::Key, Some(&cache.k)), (Qkv::Value, cache.v.as_ref())] {
            let Some(of) = of else { continue };
            let Some(heads) = shapes[which as usize] else {
                return wrong(format!("there is a cache of {0} and no {0}", which.name()));
            };
            match of {
                Stored::Same(_) | Stored::Beside(_) => check_cache(which, &heads, of.shape(), 0)?,
                Stored::Codes(codes) => codes.check(which, &heads)?,
            }
            let (k, of) = (cache.k.shape(), of.shape());
            for (what, k, v) in [("pages", k.batch, of.batch), ("rows of a page", k.tokens, of.tokens)] {
                if k != v {
                    return wrong(format!("the cache of k has {k} {what} and that of v {v}, they must be equal"));
                }
            }
        }
        Ok([batch, tokens])
    }
}

impl Codes<'_> {
    /// Refuses codes that do not go with heads.
    fn check(&self, which: Qkv, heads: &Heads) -> Result<()> {
        check_cache(which, heads, &self.x.shape, if matches!(self.scale, CodeScale::Inline) { TAIL } else { 0 })?;
        match &self.scale {
            CodeScale::Given(scales) => check_scales(which, heads, scales.len()),
            CodeScale::Dynamic(scales) => check_scale_shape(which, &scales.shape, &self.x.shape),
            CodeScale::Inline => Ok(()),
        }
    }
}

/// Hands in what a branch is stored in; gives what decides how wide accesses may be.
fn hold_store<'a, T: Scalar>(
    call: &mut Call<'a>,
    which: Qkv,
    store: Stored<'a, T>,
    keys: &mut Option<Updated<Heads>>,
    args: &mut BranchArgs,
) -> Result<u64> {
    let [name, scales_name] = [
        ["the codes of queries", "the scales of queries"],
        ["the cache of keys", "the scales of keys"],
        ["the cache of values", "the scales of values"],
    ][which as usize];
    let Placed { at, shape, steps } = match store {
        Stored::Same(x) => {
            let held = call.update([name, name], x.into())?;
            *keys = (which == Qkv::Key).then_some(held);
            held.y
        }
        Stored::Beside(heads) => match keys {
            Some(keys) => call.beside::<T, _>(name, keys, heads)?.y,
            None => {
                return Err(Error::Value(format!(
                    "{name} lies in the buffer of a cache of keys, which holds no elements"
                )));
            }
        },
        Stored::Codes(Codes { x, code, scale }) => {
            let held = call.view_mut(name, x)?;
            args.store = match code {
                Code8::E4m3 => StoreKind::E4M3,
                Code8::E5m2 => StoreKind::E5M2,
                Code8::Int8 => StoreKind::INT8,
            };
            match scale {
                CodeScale::Given(scales) => {
                    let len = scales.len();
                    args.scale = if len == 1 { CodeScaleKind::TENSOR } else { CodeScaleKind::HEAD };
                    args.scales = Out::read_only(call.read(scales_name, scales, len)?);
                }
                CodeScale::Dynamic(scales) => {
                    let scales = call.view_mut(scales_name, scales)?;
                    (args.scale, args.scales) = (CodeScaleKind::TOKEN, scales.at);
                    args.scale_strides = scales.shape.strides.map(|stride| stride as i64);
                }
                CodeScale::Inline => {
                    args.scale = CodeScaleKind::INLINE;
                    if widest(held.steps | held.shape.dim as u64) < size_of::<f32>() {
                        return Err(Error::Value(format!(
                            "{name} has its scales inline: its address, strides and channels must be multiples of 4"
                        )));
                    }
                }
            }
            held
        }
    };
    (args.cache, args.cache_strides) = (at, shape.strides.map(|stride| stride as i64));
    Ok(steps)
}

/// Hands in the tensors of a call, queries first.
fn hold_tensors<'a, T: Scalar>(call: &mut Call<'a>, tensors: [Projected<'a, T>; 3]) -> Result<[Option<Held>; 3]> {
    let mut queries = None;
    let mut held = [None; 3];
    for ((tensor, held), which) in tensors.into_iter().zip(&mut held).zip(ALL) {
        let names = [["q", "q_out"], ["k", "k_out"], ["v", "v_out"]][which as usize];
        let beside = |queries: &Option<_>| match queries {
            Some(queries) => Ok(*queries),
            None => {
                Err(Error::Value(format!("{} lies in the buffer of q, which then is changed in place", which.name())))
            }
        };
        *held = match tensor {
            Projected::None => None,
            Projected::Read(x) => Some(Held { x: call.view(names[0], x)?, y: None }),
            Projected::Update(x) => {
                let x = call.update(names, x)?;
                if which == Qkv::Query && x.in_place {
                    queries = Some(x);
                }
                Some(Held { x: x.x, y: Some(x.y) })
            }
            Projected::Beside(heads) => {
                Some(Held { x: call.beside_read::<T, _>(names[0], &beside(&queries)?, heads)?, y: None })
            }
            Projected::BesideInPlace(heads) => {
                let x = call.beside::<T, _>(names[0], &beside(&queries)?, heads)?;
                Some(Held { x: x.x, y: Some(x.y) })
            }
            Projected::BesideTo(heads, y) => {
                crate::shape::Shape::check_same(&heads, names[0], &y.shape, names[1])?;
                let x = call.beside_read::<T, _>(names[0], &beside(&queries)?, heads)?;
                Some(Held { x, y: Some(call.view_mut(names[1], y)?) })
            }
        };
    }
    Ok(held)
}

/// Hands in a weight or a bias, whose length was checked.
fn hold_vector<'a, T: Scalar>(call: &mut Call<'a>, name: &'static str, x: Option<Read<'a, T>>) -> Result<In> {
    call.read_some(name, x, x.map_or(0, |x| x.len()))
}

/// Hands in what says where tokens are in a cache.
fn hold_rows<'a>(
    call: &mut Call<'a>,
    rows: CacheRows<Ids<'a>>,
    [batch, tokens]: [usize; 2],
    cache: &Heads,
    args: &mut PrologueArgs,
) -> Result<()> {
    let size = small("rows of a page", cache.tokens)?;
    if cache.batch == 0 || size == 0 {
        return Err(Error::Value(format!(
            "the cache has {} pages of {size} rows, both must be at least 1",
            cache.batch
        )));
    }
    args.pages = small("pages", cache.batch)?;
    (args.page_size, args.by_page) = (size, Divisor::new(size));
    match rows {
        CacheRows::Slots(slots) => {
            small("rows of the cache", product("pages x rows", &[cache.batch, cache.tokens])?)?;
            args.place = CachePlace::SLOTS;
            (args.slots, args.slot_type) = slots.hold(call, "slots", product("batch x tokens", &[batch, tokens])?)?;
        }
        CacheRows::Pages { table, width, rows } => {
            small("rows of a sequence", product("pages of a sequence x rows", &[width, cache.tokens])?)?;
            args.place = CachePlace::PAGES;
            args.table_width = width as u32;
            let need = product("sequences x pages", &[rows.sequence_count(batch), width])?;
            (args.slots, args.slot_type) = table.hold(call, "the table of pages", need)?;
            args.rows = rows.hold(call, 1, batch, tokens)?;
        }
        CacheRows::Rows(rows) => {
            if rows.sequence_count(batch) > cache.batch {
                return Err(Error::Value(format!(
                    "the cache has {} pages, one is needed for each of {} sequences",
                    cache.batch,
                    rows.sequence_count(batch)
                )));
            }
            args.place = CachePlace::ROWS;
            args.rows = rows.hold(call, 1, batch, tokens)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: usize, heads: [usize; 3], lanes: usize, whole: bool) -> Cut {
        Cut { batch: 1, tokens, heads, lanes, pairs: 64, whole, wide: lanes < 32, multiprocessors: 132 }
    }

    #[test]
    fn every_head_and_token_is_covered_once() {
        for (heads, lanes) in [([32, 8, 8], 8), ([8, 1, 1], 8), ([71, 1, 1], 4), ([64, 8, 0], 32), ([1, 0, 0], 1)] {
            for whole in [false, true] {
                for tokens in (1..300).chain([4096, 100_000]) {
                    let cut = cut(tokens, heads, lanes, whole);
                    let layout = cut.layout();
                    let Layout { per_thread, groups, rows, splits, .. } = layout;
                    assert!(groups * splits >= cut.walks(per_thread), "{cut:?}: {layout:?}");
                    assert!(groups * (splits - 1) < cut.walks(per_thread), "{cut:?}: {layout:?}");
                    assert!(lanes * groups * rows <= THREADS[usize::from(!cut.wide)], "{cut:?}: {layout:?}");
                    assert!(rows <= MOST_TOKENS && rows * 64 <= MOST_PAIRS, "{cut:?}: {layout:?}");
                    assert!(!whole || splits == 1 && rows * heads.iter().sum::<usize>() <= MOST_SUMS, "{layout:?}");
                }
            }
        }
    }

    #[test]
    fn few_tokens_are_spread_and_many_walk_heads() {
        let layout = |tokens| cut(tokens, [32, 8, 8], 8, false).layout();
        // One token: six blocks of eight heads.
        assert_eq!(layout(1), Layout { per_thread: 1, lanes: 8, groups: 8, rows: 1, splits: 6 });
        assert_eq!(layout(8192).per_thread, 4);
    }
}
