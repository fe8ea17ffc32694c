//! Gradients of [`Learned`] on a device.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Zeroable;

use crate::embed::launch::{THREADS, blocks, fitting, small};
use crate::embed::learned::{hold, shared_room};
use crate::embed::{DeviceLookup, DeviceTables, ErrorFlag, Learned, Norm, Tokens, check_scale};
use crate::gpu::args::{Divisor, LearnedArgs, ORDER_CHUNK, ORDER_TILE, ORDER_WAYS, Out, TableGradArgs};
use crate::gpu::kernel::{COUNTED_GRAD, NORM_GRAD, ORDER, SORTED_GRAD, SORTED_REST, VECTORS_GRAD};
use crate::gpu::{Kernel, Launch, Read, Scratch, View, ViewMut, Write, on_stream, widest};
use crate::shape::{Shape, product};
use crate::{Error, Gpu, Ids, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Blocks that keep partial sums. By the shape alone, so that every device adds in the same order.
const PARTIAL_BLOCKS: usize = 512;

/// Blocks of the norm's gradient, the rows of each, and the tokens of each, group after group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partials {
    blocks: usize,
    rows: usize,
    tokens: usize,
}

impl Learned {
    fn partials(&self, tokens: &Tokens) -> Partials {
        let rows = self.block_rows(tokens.tokens);
        let groups = tokens.tokens.div_ceil(rows).saturating_mul(tokens.batch);
        let per_block = groups.div_ceil(PARTIAL_BLOCKS).max(1);
        Partials { blocks: groups.div_ceil(per_block), rows, tokens: per_block.saturating_mul(rows) }
    }

    /// Partial sums of the norm's gradient: those of a block, and room for those of its rows of threads where they are not
    /// held.
    const fn norm_numbers(&self, blocks: usize, rows: usize) -> usize {
        blocks.saturating_mul((1 + rows).saturating_mul(2).saturating_mul(self.dim))
    }

    /// Partial sums of a table's gradient: two rows for each chunk of the order, and a flag.
    const fn table_numbers(&self, count: usize) -> usize {
        count.div_ceil(ORDER_CHUNK).saturating_mul(self.dim.saturating_mul(2).saturating_add(1))
    }

    /// Scratch memory for every call of up to `most` sequences and tokens.
    fn scratch(&self, most: &Tokens) -> usize {
        let Partials { rows, .. } = self.partials(most);
        // A few groups fewer may be one block each.
        let groups = most.tokens.div_ceil(rows).saturating_mul(most.batch);
        let norm = if self.norm.is_some() { self.norm_numbers(groups.min(PARTIAL_BLOCKS), rows) } else { 0 };
        let count = most.batch.saturating_mul(most.tokens);
        norm.max(self.table_numbers(count)).max(order_numbers(count))
    }

    /// The arguments of a table's gradient that shapes decide.
    fn table_args(&self, tokens: &Tokens, how: &TableGrad) -> Result<TableGradArgs> {
        check_scale(how.scale)?;
        Ok(TableGradArgs {
            strides: tokens.strides.map(|stride| stride as i64),
            rows: how.rows as i64,
            skipped: how.skipped.unwrap_or(0),
            tokens: small("tokens", tokens.tokens)?,
            batch: small("sequences", tokens.batch)?,
            dim: small("channels", self.dim)?,
            skips: u32::from(how.skipped.is_some()),
            accumulate: u32::from(how.accumulate),
            scale: how.scale as f32,
            ..TableGradArgs::zeroed()
        })
    }

    /// The two launches of a table's gradient, whose threads take `step` channels at once.
    fn table_launches(&self, count: usize, step: usize, args: TableGradArgs) -> Result<[Launch<TableGradArgs>; 2]> {
        small("tokens", count)?;
        let chunks = count.div_ceil(ORDER_CHUNK);
        let units = self.dim.div_ceil(step);
        let lanes = units.min(THREADS);
        let rows = (THREADS / lanes).min(chunks.next_power_of_two()).max(1);
        let rest_lanes = units.next_power_of_two().clamp(2, 16);
        let launch = |x: usize, y: usize, [lanes, rows]: [usize; 2]| -> Result<_> {
            let grid = [small("blocks of tokens", x)?, small("groups of channels", y)?, 1];
            let launch = Launch::new(grid, [small("lanes", lanes)?, small("rows", rows)?, 1], args);
            launch.check("the gradient of a table").map(|()| launch)
        };
        Ok([
            launch(chunks.div_ceil(rows), units.div_ceil(lanes), [lanes, rows])?,
            launch(chunks, units.div_ceil(rest_lanes), [rest_lanes, 16])?,
        ])
    }
}

/// Numbers of an order in between, where sorted tiles are merged.
const fn order_numbers(count: usize) -> usize {
    if count > ORDER_TILE { count } else { 0 }
}

/// Refuses tensors that one set of strides cannot describe.
fn check_strides(name: &str, x: &Tokens, other_name: &str, other: &Tokens) -> Result<()> {
    x.check_same(name, other, other_name)?;
    let taken =
        |of: &Tokens| [(of.batch, of.strides[0]), (of.tokens, of.strides[1])].map(|(n, by)| if n > 1 { by } else { 0 });
    if taken(x) == taken(other) {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} has the strides {:?} and {other_name} {:?}, they must be equal",
        x.strides, other.strides
    )))
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Options of a table's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableGrad {
    /// Rows of the table.
    pub rows: usize,
    /// Multiplies the sums: the forward call's scale for the token table, 1 for the others.
    pub scale: f64,
    /// An id whose row has no gradient: the padding of RoBERTa's tables.
    pub skipped: Option<i64>,
    /// Adds to what is there, instead of writing over it. Rows that no token reads stay as they are in both cases.
    pub accumulate: bool,
}

impl TableGrad {
    /// The gradient of a table of `rows` rows, written over what is there.
    pub const fn new(rows: usize) -> Self {
        Self { rows, scale: 1.0, skipped: None, accumulate: false }
    }
}

/// Outputs of [`LearnedGradPlan::norm`].
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `sum` | `[batch, tokens, dim]` | gradient of the sum |
/// | `gain` | `[dim]` | gradient of the gain, the sum of `grad * y` over all tokens |
/// | `bias` | `[dim]` | gradient of the bias, the sum of `grad` |
/// | `accumulate` | | adds to what is in `gain` and `bias`, at least one of which is there then |
/// | `flag` | | raised when an id lies outside its table |
pub struct NormGrad<'a, T> {
    /// gradient of the sum
    pub sum: ViewMut<'a, T, Tokens>,
    /// gradient of the gain
    pub gain: Option<Write<'a, T>>,
    /// gradient of the bias
    pub bias: Option<Write<'a, T>>,
    /// adds to what is in `gain` and `bias`
    pub accumulate: bool,
    /// raised when an id lies outside its table
    pub flag: Option<&'a mut ErrorFlag>,
}

impl<'a, T> NormGrad<'a, T> {
    /// The gradient of the sum alone.
    pub const fn new(sum: ViewMut<'a, T, Tokens>) -> Self {
        Self { sum, gain: None, bias: None, accumulate: false, flag: None }
    }
}

impl<T> fmt::Debug for NormGrad<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NormGrad")
            .field("sum", &self.sum)
            .field("gain", &self.gain.as_ref().map(|gain| gain.len()))
            .field("bias", &self.bias.as_ref().map(|bias| bias.len()))
            .field("accumulate", &self.accumulate)
            .field("flag", &self.flag)
            .finish()
    }
}

/// Gradients of a [`Learned`] embedding on a [`Gpu`], for one element type.
///
/// | gradient of | call |
/// |---|---|
/// | the sum, with a norm behind it; gain and bias | [`LearnedGradPlan::norm`]; without a norm the sum's is the result's |
/// | a position table whose positions are counted | [`LearnedGradPlan::counted`]: a sum over the batch |
/// | any other table | [`LearnedGradPlan::table`], by an order of its ids from [`LearnedGradPlan::order`] |
///
/// Additions are made in an order that depends on the shape and the ids alone: two runs give the same bits on every device.
/// Each call allocates nothing, uploads nothing and synchronises nothing; partial sums lie in scratch memory of the plan.
///
/// | call | kernels | numbers of scratch memory |
/// |---|---|---|
/// | `norm` | 1; 2 with gain or bias | up to `512 * (1 + rows of a block) * 2 * dim` |
/// | `counted` | 1 | |
/// | `order` | 1 up to 1024 ids, one more for every factor of 8 | as many as ids, beyond 1024 |
/// | `table` | 2 | an eighth of the gradient's, and one for every 16 tokens |
///
/// # Example
/// ```no_run
/// use posenc::embed::{LearnedGradPlan, Learned, TableGrad, Tokens};
/// use posenc::{Gpu, Id};
///
/// let gpu = Gpu::open(0)?;
/// let stream = gpu.stream();
/// let tokens = Tokens::new(8, 1024, 768);
/// let plan = LearnedGradPlan::<half::bf16>::new(&gpu, &Learned::new(768), tokens)?;
/// let grad = stream.alloc_zeros(8 * 1024 * 768)?;
/// let ids = stream.alloc_zeros::<i32>(8 * 1024)?;
///
/// let mut positions = stream.alloc_zeros(1024 * 768)?;
/// plan.counted(&mut positions, tokens.of(&grad), 0, TableGrad::new(1024))?;
///
/// let mut order = stream.alloc_zeros(8 * 1024)?;
/// plan.order(&mut order, i32::ids(&ids), 8 * 1024)?;
/// let mut words = stream.alloc_zeros(50257 * 768)?;
/// plan.table(&mut words, tokens.of(&grad), i32::ids(&ids), &order, TableGrad::new(50257))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LearnedGradPlan<T> {
    gpu: Gpu,
    spec: Learned,
    norm: Option<[Kernel<LearnedArgs>; 2]>,
    /// bytes of shared memory that a block of the norm's kernel may hold its rows in
    room: usize,
    vectors: Kernel<TableGradArgs>,
    counted: [Kernel<TableGradArgs>; 2],
    /// all chunks of the order, then what crosses from one into the next; by width
    sorted: [[Kernel<TableGradArgs>; 2]; 2],
    order: [Kernel<TableGradArgs>; 2],
    scratch: Scratch,
    element: PhantomData<T>,
}

on_stream! { LearnedGradPlan { gpu; scratch } }

impl<T: Scalar> LearnedGradPlan<T> {
    /// Loads the kernels and allocates scratch memory for every call of up to the sequences and tokens of `max_shape`.
    ///
    /// # Errors
    /// If the spec is refused, the kernels cannot be loaded, or the driver gives no memory.
    pub fn new(gpu: &Gpu, spec: &Learned, max_shape: Tokens) -> Result<Self> {
        spec.check()?;
        let norm = spec.norm.map(|_| gpu.load::<T, _, 2>(NORM_GRAD)).transpose()?;
        let room = norm.as_ref().map_or(Ok(0), |[wide, _]| shared_room(gpu, wide))?;
        let [vectors] = gpu.load::<T, _, 1>(VECTORS_GRAD)?;
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            norm,
            room,
            vectors,
            counted: gpu.load::<T, _, 2>(COUNTED_GRAD)?,
            sorted: [gpu.load::<T, _, 2>(SORTED_GRAD)?, gpu.load::<T, _, 2>(SORTED_REST)?],
            order: gpu.load::<T, _, 2>(ORDER)?,
            scratch: Scratch::new(gpu, 0, spec.scratch(&max_shape))?,
            element: PhantomData,
        })
    }

    /// The gradients of the sum `v`, of gain and of bias from the gradient of the normalised result.
    ///
    /// `dv = (g - mean(g) - y mean(g y)) / sigma` with `g = grad * gain`, `y = (v - mean) / sigma`; an RMS norm has no
    /// `mean(g)`. The sum is gathered again, nothing is kept from the forward call.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | | what is written: [`NormGrad`] |
    /// | `grad` | `[batch, tokens, dim]` | gradient of the result |
    /// | `x` | `[batch, tokens, dim]` | what the forward call read in place of token rows; `None` with a token table |
    /// | `tables`, `lookup` | | as in the forward call |
    ///
    /// The strides of `out.sum`, `grad` and `x` are equal, offsets are their own.
    ///
    /// # Accuracy
    /// [`Learned::sum_grad_error_bound`] for the sum. Gain and bias: `(tokens + 4) * 2^-24` of the sum of magnitudes, and
    /// what `y` is off by. Then the rounding to `T`.
    ///
    /// # Errors
    /// As [`LearnedPlan::gather`](crate::embed::LearnedPlan::gather), and if the spec has no norm, or none that uses a bias,
    /// or the shape is larger than the plan was made for. Nothing is written then.
    ///
    /// # Source
    /// Layer norm, arXiv 1607.06450; RMS norm, arXiv 1910.07467.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{LearnedGradPlan, Learned, Lookup, Norm, NormGrad, Tables, Tokens};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let stream = gpu.stream();
    /// let spec = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(768) };
    /// let tokens = Tokens::new(8, 512, 768);
    /// let plan = LearnedGradPlan::<f32>::new(&gpu, &spec, tokens)?;
    /// let (token, position) = (stream.alloc_zeros(30522 * 768)?, stream.alloc_zeros(512 * 768)?);
    /// let ids = stream.alloc_zeros::<i32>(8 * 512)?;
    ///
    /// let (grad, mut sum) = (stream.alloc_zeros(8 * 512 * 768)?, stream.alloc_zeros(8 * 512 * 768)?);
    /// let (mut gain, mut bias) = (stream.alloc_zeros(768)?, stream.alloc_zeros(768)?);
    /// plan.norm(
    ///     NormGrad { gain: Some(&mut gain), bias: Some(&mut bias), ..NormGrad::new(tokens.of_mut(&mut sum)) },
    ///     tokens.of(&grad),
    ///     None,
    ///     &Tables { token: Some(&token), position: Some(&position), ..Tables::default() },
    ///     &Lookup { ids: Some(i32::ids(&ids)), ..Lookup::default() },
    /// )?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn norm<'a>(
        &'a self,
        out: NormGrad<'a, T>,
        grad: View<'a, T, Tokens>,
        x: Option<View<'a, T, Tokens>>,
        tables: &'a DeviceTables<'_, T>,
        lookup: &'a DeviceLookup<'_>,
    ) -> Result<()> {
        let wrong = |text: &str| Err(Error::Value(text.into()));
        let Some(kernels) = &self.norm else {
            return wrong("the spec has no norm, the gradient of the sum is the gradient of the result");
        };
        let NormGrad { sum, gain, bias, accumulate, flag } = out;
        let (spec, shape) = (&self.spec, sum.shape);
        shape.check_dim("sum", spec.dim)?;
        check_strides("grad", &grad.shape, "sum", &shape)?;
        match (&x, tables.token.is_some()) {
            (None, false) => return wrong("x is missing, without a token table its rows are what was added to"),
            (Some(_), true) => return wrong("there is an x, with a token table its rows are not read"),
            (Some(x), false) => check_strides("x", &x.shape, "sum", &shape)?,
            (None, true) => {}
        }
        if bias.is_some() && !matches!(spec.norm, Some(Norm::Layer { .. })) {
            return wrong("there is a bias and the spec has no norm that uses it");
        }
        let vectors = gain.is_some() || bias.is_some();
        if accumulate && !vectors {
            return wrong("gradients of gain and bias are to be accumulated, neither is asked for");
        }
        let Partials { blocks, rows, tokens: tokens_per_block } = spec.partials(&shape);
        let call_of = || format!("the gradient of {} x {} x {}", shape.batch, shape.tokens, shape.dim);
        let mut call = self.gpu.call();
        let sum = call.view_mut("sum", sum)?;
        let grad = call.view("grad", grad)?;
        let x = x.map(|x| call.view("x", x)).transpose()?;
        let gain = call.write_some("gain", gain, spec.dim)?;
        let bias = call.write_some("bias", bias, spec.dim)?;
        self.scratch.check(spec.norm_numbers(blocks, rows), call_of)?;
        let (_, partials) = call.scratch(&self.scratch)?;
        if !shape.is_empty() {
            let mut args = LearnedArgs { x: sum.at, grad: grad.at, partials, ..spec.args(&shape)? };
            let mut steps = hold(&mut call, spec, &shape, (tables, lookup), flag, &mut args)?;
            steps |= sum.steps | grad.steps | (spec.dim * size_of::<T>()) as u64;
            if let Some(x) = x {
                args.source = x.at;
                steps |= x.steps;
            }
            args.tokens_per_block = small("tokens of a block", tokens_per_block)?;
            let block = [small("lanes", spec.lanes())?, small("rows", rows)?, 1];
            let mut launch = Launch::new([small("blocks", blocks)?, 1, 1], block, args);
            // A row's y and g, and its two sums.
            let held = spec.held(4, rows);
            let fits = widest(steps) == 16 && held <= self.room;
            launch.shared = small("bytes of shared memory", if fits { held } else { 0 })?;
            call.launch(&kernels[usize::from(!fits)], &launch)?;
        }
        if !vectors {
            return Ok(());
        }
        let args = TableGradArgs {
            table: gain,
            second: bias,
            grad: partials.as_in(),
            batch: small("partial sums", if shape.is_empty() { 0 } else { blocks })?,
            dim: small("channels", spec.dim)?,
            accumulate: u32::from(accumulate),
            ..TableGradArgs::zeroed()
        };
        let grid = [small("blocks of channels", spec.dim.div_ceil(32))?, 2, 1];
        call.launch(&self.vectors, &Launch::new(grid, [32, 8, 1], args))
    }

    /// The gradient of a position table whose positions are counted: row `first + t` is the sum of `grad[b, t]` over the
    /// batch.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[rows, dim]` | written at rows `first` to `first + tokens - 1` |
    /// | `grad` | `[batch, tokens, dim]` | gradient of the sum |
    /// | `first` | | row of the first token: the spec's offset |
    ///
    /// # Accuracy
    /// [`Learned::table_grad_error_bound`] with the batch as count, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape is refused, rows lie outside the table, or a buffer is too short, belongs to another context or shares
    /// memory with `table`. Nothing is written then.
    ///
    /// # Example
    /// [`LearnedGradPlan`] has it.
    pub fn counted<'a>(
        &'a self,
        table: Write<'a, T>,
        grad: View<'a, T, Tokens>,
        first: usize,
        how: TableGrad,
    ) -> Result<()> {
        let (spec, shape) = (&self.spec, grad.shape);
        let end = first.saturating_add(shape.tokens);
        if end > how.rows {
            return Err(Error::Value(format!("the last token reads row {}, the table has {} rows", end - 1, how.rows)));
        }
        if how.skipped.is_some() {
            return Err(Error::Value("skipped is an id, counted positions have none".into()));
        }
        shape.check_dim("grad", spec.dim)?;
        let mut args = spec.table_args(&shape, &how)?;
        let mut call = self.gpu.call();
        args.table = call.write("table", table, product("rows x dim", &[how.rows, spec.dim])?)?;
        let grad = call.view("grad", grad)?;
        if shape.is_empty() {
            return Ok(());
        }
        (args.grad, args.first) = (grad.at, first as i64);
        let steps = args.table.address() | grad.steps | (spec.dim * size_of::<T>()) as u64;
        let (kernel, width) = fitting::<T, _>(&self.counted, steps);
        let (blocks, block) = blocks(spec.dim.div_ceil(step(width)), shape.tokens)?;
        call.launch(kernel, &Launch::new([blocks, 1, 1], block, args))
    }

    /// The tokens in the order of their ids, equal ids in the order of the tokens.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `order` | `[count]` | written: indices into `ids` |
    /// | `ids` | `[count]` | token ids, types, or rows from [`LearnedPlan::rows`](crate::embed::LearnedPlan::rows) |
    ///
    /// Tiles of 1024 ids are sorted by the first kernel; each further one makes one run of every eight. A stable argsort of
    /// any origin serves as well, [`order`](crate::embed::order) on the CPU among them.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with the other, or there are more ids than the plan
    /// was made for. Nothing is written then.
    ///
    /// # Example
    /// [`LearnedGradPlan`] has it.
    pub fn order<'a>(&'a self, order: Write<'a, u32>, ids: Ids<'a>, count: usize) -> Result<()> {
        let mut call = self.gpu.call();
        let order = call.write("order", order, count)?;
        let (ids, id_type) = ids.hold(&mut call, "ids", count)?;
        let numbers = order_numbers(count);
        self.scratch.check(numbers, || format!("the order of {count} ids"))?;
        let between = if numbers > 0 { call.scratch(&self.scratch)?.1 } else { Out::NULL };
        if count == 0 {
            return Ok(());
        }
        // The buffers take turns, so that the last kernel writes `order`.
        let mut merges = 0;
        let mut run = ORDER_TILE;
        while run < count {
            run = run.saturating_mul(ORDER_WAYS);
            merges += 1;
        }
        let buffer = |left: usize| if left % 2 == 1 { between } else { order };
        let args = TableGradArgs {
            ids,
            id_type,
            tokens: small("ids", count)?,
            batch: 1,
            table: buffer(merges),
            ..TableGradArgs::zeroed()
        };
        let [tile, merge] = &self.order;
        let tiles = small("tiles of ids", count.div_ceil(ORDER_TILE))?;
        call.launch(tile, &Launch::new([tiles, 1, 1], [256, 1, 1], args))?;
        let grid = [small("blocks of ids", count.div_ceil(256))?, 1, 1];
        run = ORDER_TILE;
        for left in (0..merges).rev() {
            let (order, table, run_size) = (buffer(left + 1).as_in(), buffer(left), small("ids of a run", run)?);
            let args = TableGradArgs { order, table, run: run_size, ..args };
            call.launch(merge, &Launch::new(grid, [256, 1, 1], args))?;
            run = run.saturating_mul(ORDER_WAYS);
        }
        Ok(())
    }

    /// The gradient of a table by ids: row `r` is the sum of `grad` over the tokens whose id is `r`, times `scale`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[rows, dim]` | written at the rows that some token reads |
    /// | `grad` | `[batch, tokens, dim]` | gradient of the sum |
    /// | `ids` | `[batch, tokens]` | ids outside the table have no gradient |
    /// | `order` | `[batch * tokens]` | every token once, in the order of their ids, as [`LearnedGradPlan::order`] writes it |
    ///
    /// The order is not compared with the ids. In one that is not sorted, tokens of one id lie in several runs: each run writes its
    /// own sum to the row, and which of them stays is not determined. Whatever it holds, nothing outside the buffers is touched.
    ///
    /// # Accuracy
    /// [`Learned::table_grad_error_bound`] with the tokens of the row as count, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape is refused, a buffer is too short, belongs to another context or shares memory with `table`, or the shape is
    /// larger than the plan was made for. Nothing is written then.
    ///
    /// # Example
    /// [`LearnedGradPlan`] has it.
    pub fn table<'a>(
        &'a self,
        table: Write<'a, T>,
        grad: View<'a, T, Tokens>,
        ids: Ids<'a>,
        order: Read<'a, u32>,
        how: TableGrad,
    ) -> Result<()> {
        let (spec, shape) = (&self.spec, grad.shape);
        shape.check_dim("grad", spec.dim)?;
        let count = product("batch x tokens", &[shape.batch, shape.tokens])?;
        let mut args = spec.table_args(&shape, &how)?;
        let mut call = self.gpu.call();
        args.table = call.write("table", table, product("rows x dim", &[how.rows, spec.dim])?)?;
        let grad = call.view("grad", grad)?;
        args.order = call.read("order", order, count)?;
        (args.ids, args.id_type) = ids.hold(&mut call, "ids", count)?;
        self.scratch.check(spec.table_numbers(count), || {
            format!("the gradient of a table from {count} tokens of {} channels", spec.dim)
        })?;
        if shape.is_empty() {
            return Ok(());
        }
        (_, args.partials) = call.scratch(&self.scratch)?;
        args.grad = grad.at;
        args.by_tokens = Divisor::new(args.tokens);
        let steps = args.table.address() | grad.steps | (spec.dim * size_of::<T>()) as u64;
        let [(all, width), (rest, _)] = self.sorted.each_ref().map(|kernels| fitting::<T, _>(kernels, steps));
        // Both are checked before one writes.
        let launches = spec.table_launches(count, step(width), args)?;
        for (kernel, launch) in [all, rest].into_iter().zip(&launches) {
            call.launch(kernel, launch)?;
        }
        Ok(())
    }
}

/// Channels that a thread of the tables' kernels takes at once, with accesses of `width` elements.
const fn step(width: usize) -> usize {
    if width == 1 { 1 } else { 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_call_has_saturate() {
        let normed = Learned { norm: Some(Norm::Rms { eps: 1e-6 }), ..Learned::new(i32::MAX as usize) };
        for tokens in [(1 << 63) + 2, usize::MAX] {
            let shape = Tokens::new(1, tokens, 8);
            assert_eq!(Learned::new(8).partials(&shape).blocks, 512);
            assert_eq!(normed.partials(&shape).blocks, 512);
            assert_eq!(normed.scratch(&Tokens::new(usize::MAX, tokens, 8)), usize::MAX);
        }
        assert_eq!(Learned::new(8).norm_numbers(usize::MAX, usize::MAX - 1), usize::MAX);
    }

    #[test]
    fn scratch_memory_is_enough_for_every_smaller_shape() {
        let norm = Some(Norm::Layer { eps: 1e-5 });
        for spec in [Learned { norm, ..Learned::new(24) }, Learned { norm, ..Learned::new(768) }, Learned::new(3)] {
            for most in [Tokens::new(1, 5000, spec.dim), Tokens::new(600, 2, spec.dim), Tokens::new(7, 333, spec.dim)] {
                let there = spec.scratch(&most);
                for batch in 1..=most.batch {
                    for tokens in 1..=most.tokens {
                        let Partials { blocks, rows, .. } = spec.partials(&Tokens { batch, tokens, ..most });
                        assert!(spec.norm.is_none() || spec.norm_numbers(blocks, rows) <= there);
                        assert!(spec.table_numbers(batch * tokens) <= there && order_numbers(batch * tokens) <= there);
                    }
                }
            }
        }
    }

    #[test]
    fn every_token_belongs_to_one_block_of_partial_sums() {
        let spec = Learned { norm: Some(Norm::Rms { eps: 0.0 }), ..Learned::new(16) };
        for (batch, tokens) in [(1, 1), (600, 2), (3, 1001), (70_000, 1), (1, 1 << 20)] {
            let Partials { blocks, rows, tokens: per_block } = spec.partials(&Tokens::new(batch, tokens, 16));
            let all = tokens.next_multiple_of(rows) * batch;
            assert!(blocks <= PARTIAL_BLOCKS && blocks * per_block >= all && (blocks - 1) * per_block < all);
        }
    }
}
