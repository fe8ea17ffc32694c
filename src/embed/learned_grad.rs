//! Gradients of learned tables and of the norm behind them, in fixed orders of addition.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use crate::embed::launch::{THREADS, alignment, blocks, held_room, small, width};
use crate::embed::learned::{Gathered, hold_fault, hold_ids};
use crate::embed::tokens::at_least;
use crate::embed::{Fault, Inputs, Learned, Norm, Tokens, Weights};
use crate::gpu::args::{Divisor, In, LearnedArgs, Out, TableGradArgs};
use crate::gpu::{Function, Held, Launch, Read, Write};
use crate::shape::product;
use crate::{Error, Gpu, Ids, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------------- law

impl Learned {
    /// The largest error of an element of a table's gradient before it is rounded to its type, from the number of
    /// gradients that were added and the sum of their magnitudes, `scale` included: `(count + 4) * 2^-24 * magnitude`.
    pub fn table_grad_error_bound(count: usize, magnitude: f64) -> f64 {
        (count as f64 + 4.0) * f32::ROUNDOFF * magnitude + 4.0 * f32::TINY
    }

    /// The largest errors of one row of the sum's gradient before it is rounded to its type, of first order.
    ///
    /// | argument | meaning |
    /// |---|---|
    /// | `y` | the row before gain and bias |
    /// | `g` | gradient times gain |
    /// | `magnitude`, `sigma` | as in [`Learned::norm_error_bound`] |
    ///
    /// With `e = depth * 2^-24 * (1 + magnitude / sigma)`, `a = mean(|g|)` and `b = mean(|g| (1 + |y|))`, element c is off
    /// by `e * (2 |g_c| + 2 a + 3 (1 + |y_c|) b) / sigma`.
    pub fn sum_grad_error_bound(&self, y: &[f64], g: &[f64], magnitude: f64, sigma: f64) -> Vec<f64> {
        let depth = (self.dim as f64 / 128.0 + 40.0) * f32::ROUNDOFF;
        let e = depth * (1.0 + magnitude / sigma);
        let dim = self.dim as f64;
        let a = g.iter().map(|g| g.abs()).sum::<f64>() / dim;
        let b = g.iter().zip(y).map(|(g, y)| g.abs() * (1.0 + y.abs())).sum::<f64>() / dim;
        g.iter().zip(y).map(|(g, y)| e * (2.0 * g.abs() + 2.0 * a + 3.0 * (1.0 + y.abs()) * b) / sigma).collect()
    }
}

// -------------------------------------------------------------------------------------------------------------- launch

const NORM_ENTRIES: [&str; 2] = ["norm_grad_wide", "norm_grad_narrow"];
const COUNTED_ENTRIES: [&str; 2] = ["counted_grad_wide", "counted_grad_narrow"];
const SORTED_ENTRIES: [[&str; 2]; 2] =
    [["sorted_grad_wide", "sorted_grad_narrow"], ["sorted_rest_wide", "sorted_rest_narrow"]];
/// Channels that a thread of the tables' kernels takes at once, by the variant.
const STEP: [usize; 2] = [8, 1];
/// Places of the order that one thread walks, ids of a tile that one block sorts, runs that one launch merges: as in
/// table_grad.cu.
const CHUNK: usize = 16;
const TILE: usize = 1024;
const WAYS: usize = 8;

/// Blocks that keep partial sums. By the shape alone, so that every device adds in the same order.
const PARTIAL_BLOCKS: usize = 512;

impl Learned {
    /// Blocks of the norm's gradient, the rows of each, and the tokens of each, group after group.
    fn partial_shape(&self, tokens: &Tokens) -> (usize, usize, usize) {
        let rows = self.block_rows(tokens.tokens);
        let groups = tokens.tokens.div_ceil(rows).saturating_mul(tokens.batch);
        let per_block = groups.div_ceil(PARTIAL_BLOCKS).max(1);
        (groups.div_ceil(per_block), rows, per_block.saturating_mul(rows))
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// How a gradient of a table is written.
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

/// What [`GradPlan::norm`] writes.
pub struct NormGrad<'a, T> {
    /// `tokens`: the gradient of the sum
    pub sum: Write<'a, T>,
    /// `[dim]`: the gradient of the gain, the sum of `grad * y` over all tokens
    pub gain: Option<Write<'a, T>>,
    /// `[dim]`: the gradient of the bias, the sum of `grad`
    pub bias: Option<Write<'a, T>>,
    /// Adds to what is in `gain` and `bias`.
    pub accumulate: bool,
    /// [`GradPlan::partials`]: the sums of some rows each
    pub partials: Write<'a, f32>,
    /// raised when an id lies outside its table
    pub fault: Option<&'a mut Fault>,
}

/// Gradients of a [`Learned`] embedding on a [`Gpu`], for one element type.
///
/// | gradient of | call |
/// |---|---|
/// | the sum, with a norm behind it; gain and bias | [`GradPlan::norm`]; without a norm the sum's is the result's |
/// | a position table whose positions are counted | [`GradPlan::counted`]: a sum over the batch |
/// | any other table | [`GradPlan::table`], by an order of its ids from [`GradPlan::order`] |
///
/// Additions are made in an order that depends on the shape and the ids alone: two runs give the same bits on every device.
/// Each call allocates nothing, uploads nothing and synchronises nothing; what it needs between its kernels is a buffer of
/// the caller's.
///
/// | call | kernels | buffer |
/// |---|---|---|
/// | `norm` | 1; 2 with gain or bias | [`GradPlan::partials`] |
/// | `counted` | 1 | |
/// | `order` | 1 up to 1024 ids, one more for every factor of 8 | as many `u32` as ids |
/// | `table` | 2 | [`GradPlan::table_partials`] |
///
/// # Example
/// ```no_run
/// use posenc::embed::{GradPlan, Learned, TableGrad, Tokens};
/// use posenc::{Gpu, Id};
///
/// let gpu = Gpu::open(0)?;
/// let stream = gpu.stream();
/// let plan = GradPlan::<half::bf16>::new(&gpu, &Learned::new(768))?;
/// let tokens = Tokens::new(8, 1024, 768);
/// let grad = stream.alloc_zeros(8 * 1024 * 768)?;
/// let ids = stream.alloc_zeros::<i32>(8 * 1024)?;
///
/// let mut positions = stream.alloc_zeros(1024 * 768)?;
/// plan.counted(&mut positions, &grad, tokens, 0, TableGrad::new(1024))?;
///
/// let (mut order, mut between) = (stream.alloc_zeros(8 * 1024)?, stream.alloc_zeros(8 * 1024)?);
/// plan.order(&mut order, Some(&mut between), i32::ids(&ids), 8 * 1024)?;
/// let mut partials = stream.alloc_zeros(plan.table_partials(&tokens))?;
/// let mut words = stream.alloc_zeros(50257 * 768)?;
/// plan.table(&mut words, &mut partials, &grad, i32::ids(&ids), &order, tokens, TableGrad::new(50257))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GradPlan<T> {
    gpu: Gpu,
    spec: Learned,
    norm: Option<[Function; 2]>,
    /// bytes of shared memory that a block of the norm's kernel may hold its rows in
    room: usize,
    vectors: Function,
    counted: [Function; 2],
    sorted: [[Function; 2]; 2],
    order: [Function; 2],
    element: PhantomData<T>,
}

impl<T: Scalar> GradPlan<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Learned) -> Result<Self> {
        spec.check()?;
        let load = |entry| gpu.function("embed/table_grad", T::NAME, entry);
        let two = |[a, b]: [&'static str; 2]| Ok::<_, Error>([load(a)?, load(b)?]);
        let (norm, room) = match spec.norm {
            None => (None, 0),
            Some(_) => {
                let [wide, narrow] = NORM_ENTRIES.map(|entry| gpu.function("embed/norm_grad", T::NAME, entry));
                let wide = wide?;
                let room = held_room(gpu, &wide)?;
                (Some([wide, narrow?]), room)
            }
        };
        let [all, rest] = SORTED_ENTRIES;
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            norm,
            room,
            vectors: load("vectors_grad")?,
            counted: two(COUNTED_ENTRIES)?,
            sorted: [two(all)?, two(rest)?],
            order: two(["order_tile", "order_merge"])?,
            element: PhantomData,
        })
    }

    /// Elements of the partial sums that [`GradPlan::norm`] writes for this shape.
    pub fn partials(&self, tokens: &Tokens) -> usize {
        let (blocks, rows, _) = self.spec.partial_shape(tokens);
        // A block's sums, and room for those of its rows of threads where they are not held.
        blocks * (1 + rows) * 2 * self.spec.dim
    }

    /// Elements of the partial sums that [`GradPlan::table`] writes for this shape: an eighth of the gradient's, and one
    /// for every 16 tokens.
    pub fn table_partials(&self, tokens: &Tokens) -> usize {
        let chunks = tokens.batch.saturating_mul(tokens.tokens).div_ceil(CHUNK);
        chunks.saturating_mul(2 * self.spec.dim + 1)
    }

    /// The gradients of the sum `v`, of gain and of bias from the gradient of the normalised result.
    ///
    /// `dv = (g - mean(g) - y mean(g y)) / sigma` with `g = grad * gain`, `y = (v - mean) / sigma`; an RMS norm has no
    /// `mean(g)`. The sum is gathered again, nothing is kept from the forward call.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | | what is written: [`NormGrad`] |
    /// | `grad` | `tokens` | gradient of the result |
    /// | `x` | `tokens` | what the forward call read in place of token rows; `None` with a token table |
    /// | `weights`, `inputs` | | as in the forward call |
    ///
    /// # Accuracy
    /// [`Learned::sum_grad_error_bound`] for the sum. Gain and bias: `(tokens + 4) * 2^-24` of the sum of magnitudes, and
    /// what `y` is off by. Then the rounding to `T`.
    ///
    /// # Errors
    /// As [`LearnedPlan::gather`](crate::embed::LearnedPlan::gather), and if the spec has no norm, or none that uses a
    /// bias. Nothing is written then.
    ///
    /// # Source
    /// Layer norm, arXiv 1607.06450; RMS norm, arXiv 1910.07467.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{GradPlan, Inputs, Learned, Norm, NormGrad, Tokens, Weights};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let stream = gpu.stream();
    /// let spec = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(768) };
    /// let (plan, tokens) = (GradPlan::<f32>::new(&gpu, &spec)?, Tokens::new(8, 512, 768));
    /// let (token, position) = (stream.alloc_zeros(30522 * 768)?, stream.alloc_zeros(512 * 768)?);
    /// let weights = Weights { token: Some(&token), position: Some(&position), ..Weights::default() };
    /// let ids = stream.alloc_zeros::<i32>(8 * 512)?;
    /// let inputs = Inputs { ids: Some(i32::ids(&ids)), ..Inputs::default() };
    ///
    /// let (grad, mut sum) = (stream.alloc_zeros(8 * 512 * 768)?, stream.alloc_zeros(8 * 512 * 768)?);
    /// let (mut gain, mut bias) = (stream.alloc_zeros(768)?, stream.alloc_zeros(768)?);
    /// let mut partials = stream.alloc_zeros(plan.partials(&tokens))?;
    /// let out = NormGrad {
    ///     sum: &mut sum,
    ///     gain: Some(&mut gain),
    ///     bias: Some(&mut bias),
    ///     accumulate: false,
    ///     partials: &mut partials,
    ///     fault: None,
    /// };
    /// plan.norm(out, &grad, None, tokens, &weights, &inputs)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn norm(
        &self,
        out: NormGrad<'_, T>,
        grad: Read<'_, T>,
        x: Option<Read<'_, T>>,
        tokens: Tokens,
        weights: &Weights<'_, T>,
        inputs: &Inputs<'_>,
    ) -> Result<()> {
        let Some(functions) = &self.norm else {
            return Err(Error::Value(
                "the spec has no norm, the gradient of the sum is the gradient of the result".into(),
            ));
        };
        let NormGrad { sum, gain, bias, accumulate, partials, fault } = out;
        let dim = self.spec.dim;
        tokens.check_written("sum", dim, sum.len())?;
        tokens.check("grad", dim, grad.len())?;
        match (&x, weights.token.is_some()) {
            (None, false) => {
                return Err(Error::Value("x is missing, without a token table its rows are what was added to".into()));
            }
            (Some(x), false) => tokens.check("x", dim, x.len())?,
            _ => {}
        }
        if bias.is_some() && !matches!(self.spec.norm, Some(Norm::Layer { .. })) {
            return Err(Error::Value("there is a bias and the spec has no norm that uses it".into()));
        }
        for (name, vector) in [("gain", &gain), ("bias", &bias)] {
            at_least(name, vector.as_ref().map_or(dim, |vector| vector.len()), dim)?;
        }
        let need = self.partials(&tokens);
        at_least("partials", partials.len(), need)?;
        let gpu = &self.gpu;
        let gain = gain.map(|gain| gpu.write("gain", gain, dim)).transpose()?;
        let bias = bias.map(|bias| gpu.write("bias", bias, dim)).transpose()?;
        let partials = gpu.write("partials", partials, need)?;
        let (blocks, rows, tokens_per_block) = self.spec.partial_shape(&tokens);
        if !tokens.is_empty() {
            let held = Gathered::new(gpu, &self.spec, (tokens.batch, tokens.tokens), weights, inputs)?;
            let span = tokens.span()?;
            let sum = gpu.write("sum", sum, span)?;
            let grad = gpu.read("grad", grad, span)?;
            let x = x.filter(|_| weights.token.is_none()).map(|x| gpu.read("x", x, span)).transpose()?;
            let mut all = held.addresses(&sum, "sum")? | grad.address.address() | partials.address.address();
            if let Some(x) = &x {
                sum.apart_from("sum", x, "x")?;
                all |= x.address.address();
            }
            let fault = hold_fault(gpu, fault, held.rows())?;
            let width = width(size_of::<T>(), alignment(&[all]), tokens.sizes() | dim);
            let offset = (tokens.offset * size_of::<T>()) as u64;
            let args = LearnedArgs {
                x: sum.address.offset(offset),
                source: x.as_ref().map_or(In::NULL, |x| x.address.offset(offset)),
                grad: grad.address.offset(offset),
                partials: partials.address,
                fault: fault.as_ref().map_or(Out::NULL, |fault| fault.address),
                tokens_per_block: small("tokens of a block", tokens_per_block)?,
                ..held.fill(self.spec.args(&tokens)?)
            };
            let grid = [small("blocks", blocks)?, 1, 1];
            let block = [small("lanes", self.spec.lanes())?, small("rows", rows)?, 1];
            // A row's y and g, and its two sums.
            let held = self.spec.held(4, rows);
            let (variant, shared) = if width.index == 0 && held <= self.room { (0, held) } else { (1, 0) };
            let launch = Launch { file: "embed/norm_grad", entry: NORM_ENTRIES[variant], grid, block, args };
            gpu.launch_with(&functions[variant], &launch, small("bytes of shared memory", shared)?)?;
        }
        if gain.is_none() && bias.is_none() {
            return Ok(());
        }
        let address = |held: &Option<Held<'_, Out>>| held.as_ref().map_or(Out::NULL, |held| held.address);
        let args = TableGradArgs {
            table: address(&gain),
            second: address(&bias),
            grad: partials.address.as_in(),
            batch: small("partial sums", if tokens.is_empty() { 0 } else { blocks })?,
            dim: small("channels", dim)?,
            accumulate: u32::from(accumulate),
            ..TableGradArgs::zeroed()
        };
        let grid = [small("blocks of channels", dim.div_ceil(32))?, 2, 1];
        let launch = Launch { file: "embed/table_grad", entry: "vectors_grad", grid, block: [32, 8, 1], args };
        gpu.launch(&self.vectors, &launch)
    }

    /// The gradient of a position table whose positions are counted: row `first + t` is the sum of `grad[b, t]` over the
    /// batch.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[rows, dim]` | written at rows `first` to `first + tokens - 1` |
    /// | `grad` | `tokens` | gradient of the sum |
    /// | `first` | | row of the first token: the spec's offset |
    ///
    /// # Accuracy
    /// [`Learned::table_grad_error_bound`] with the batch as count, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape is refused, rows lie outside the table, or a buffer is too short or lies in another context. Nothing is
    /// written then.
    ///
    /// # Example
    /// [`GradPlan`] has it.
    pub fn counted(
        &self,
        table: Write<'_, T>,
        grad: Read<'_, T>,
        tokens: Tokens,
        first: usize,
        how: TableGrad,
    ) -> Result<()> {
        let end = first.saturating_add(tokens.tokens);
        if end > how.rows {
            return Err(Error::Value(format!("the last token reads row {}, the table has {} rows", end - 1, how.rows)));
        }
        if how.skipped.is_some() {
            return Err(Error::Value("skipped is an id, counted positions have none".into()));
        }
        let (args, width) = self.table_args(&table, &grad, &tokens, how)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let table = gpu.write("table", table, how.rows * self.spec.dim)?;
        let grad = gpu.read("grad", grad, tokens.span()?)?;
        table.apart_from("table", &grad, "grad")?;
        let width = width(table.address.address() | grad.address.address());
        let (blocks, block) = blocks(self.spec.dim.div_ceil(STEP[width]), tokens.tokens)?;
        let args = TableGradArgs {
            table: table.address,
            grad: grad.address.offset((tokens.offset * size_of::<T>()) as u64),
            first: first as i64,
            ..args
        };
        let entry = COUNTED_ENTRIES[width];
        let launch = Launch { file: "embed/table_grad", entry, grid: [blocks, 1, 1], block, args };
        gpu.launch(&self.counted[width], &launch)
    }

    /// The tokens in the order of their ids, equal ids in the order of the tokens.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `order` | `[count]` | written: indices into `ids` |
    /// | `between` | `[count]` | written: runs that are not merged yet; `None` up to 1024 ids |
    /// | `ids` | `[count]` | token ids, types, or rows from [`LearnedPlan::rows`](crate::embed::LearnedPlan::rows) |
    ///
    /// Tiles of 1024 ids are sorted by the first kernel; each further one makes one run of every eight. A stable argsort of
    /// any origin serves as well, [`order`](crate::embed::order) on the CPU among them.
    ///
    /// # Errors
    /// If a buffer is missing, too short, lies in another context or shares memory with another. Nothing is written then.
    ///
    /// # Example
    /// [`GradPlan`] has it.
    pub fn order(
        &self,
        order: Write<'_, u32>,
        between: Option<Write<'_, u32>>,
        ids: Ids<'_>,
        count: usize,
    ) -> Result<()> {
        at_least("order", order.len(), count)?;
        let between = between.filter(|_| count > TILE);
        match &between {
            None if count > TILE => {
                return Err(Error::Value(format!("between is missing, the runs of {count} ids are merged in it")));
            }
            None => {}
            Some(between) => at_least("between", between.len(), count)?,
        }
        if count == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let order = gpu.write("order", order, count)?;
        let Some((ids, id_type)) = hold_ids(gpu, "ids", Some(ids), true, count)? else { return Ok(()) };
        order.apart_from("order", &ids, "ids")?;
        let between = between.map(|between| gpu.write("between", between, count)).transpose()?;
        // The buffers take turns, so that the last kernel writes `order`.
        let mut merges = 0;
        let mut run = TILE;
        while run < count {
            run = run.saturating_mul(WAYS);
            merges += 1;
        }
        let buffer = |left: usize| match &between {
            Some(between) if left % 2 == 1 => between.address,
            _ => order.address,
        };
        let args = TableGradArgs {
            ids: ids.address,
            id_type,
            tokens: small("ids", count)?,
            batch: 1,
            table: buffer(merges),
            ..TableGradArgs::zeroed()
        };
        let tiles = [small("tiles of ids", count.div_ceil(TILE))?, 1, 1];
        let launch = Launch { file: "embed/table_grad", entry: "order_tile", grid: tiles, block: [256, 1, 1], args };
        gpu.launch(&self.order[0], &launch)?;
        let grid = [small("blocks of ids", count.div_ceil(256))?, 1, 1];
        run = TILE;
        for left in (0..merges).rev() {
            let args = TableGradArgs {
                order: buffer(left + 1).as_in(),
                table: buffer(left),
                run: small("ids of a run", run)?,
                ..args
            };
            let launch = Launch { file: "embed/table_grad", entry: "order_merge", grid, block: [256, 1, 1], args };
            gpu.launch(&self.order[1], &launch)?;
            run = run.saturating_mul(WAYS);
        }
        Ok(())
    }

    /// The gradient of a table by ids: row `r` is the sum of `grad` over the tokens whose id is `r`, times `scale`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[rows, dim]` | written at the rows that some token reads |
    /// | `partials` | [`GradPlan::table_partials`] | written: sums of ids that many tokens have |
    /// | `grad` | `tokens` | gradient of the sum |
    /// | `ids` | `[batch, tokens]` | ids outside the table have no gradient |
    /// | `order` | `[batch * tokens]` | the tokens in the order of their ids |
    ///
    /// # Accuracy
    /// [`Learned::table_grad_error_bound`] with the tokens of the row as count, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape is refused, or a buffer is too short or lies in another context. Nothing is written then.
    ///
    /// # Example
    /// [`GradPlan`] has it.
    #[expect(clippy::too_many_arguments, reason = "every buffer of the call, by name")]
    pub fn table(
        &self,
        table: Write<'_, T>,
        partials: Write<'_, f32>,
        grad: Read<'_, T>,
        ids: Ids<'_>,
        order: Read<'_, u32>,
        tokens: Tokens,
        how: TableGrad,
    ) -> Result<()> {
        let count = product("batch x tokens", &[tokens.batch, tokens.tokens])?;
        at_least("order", order.len(), count)?;
        at_least("partials", partials.len(), self.table_partials(&tokens))?;
        let (args, width) = self.table_args(&table, &grad, &tokens, how)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let table = gpu.write("table", table, how.rows * self.spec.dim)?;
        let grad = gpu.read("grad", grad, tokens.span()?)?;
        table.apart_from("table", &grad, "grad")?;
        let Some((ids, id_type)) = hold_ids(gpu, "ids", Some(ids), true, count)? else { return Ok(()) };
        let order = gpu.read("order", order, count)?;
        let need = self.table_partials(&tokens);
        let partials = gpu.write("partials", partials, need)?;
        let variant = width(table.address.address() | grad.address.address() | partials.address.address());
        let args = TableGradArgs {
            by_tokens: Divisor::new(args.tokens),
            table: table.address,
            grad: grad.address.offset((tokens.offset * size_of::<T>()) as u64),
            ids: ids.address,
            order: order.address,
            partials: partials.address,
            id_type,
            ..args
        };
        small("tokens", count)?;
        let chunks = count.div_ceil(CHUNK);
        let units = self.spec.dim.div_ceil(STEP[variant]);
        let lanes = units.min(THREADS);
        let rows = (THREADS / lanes).min(chunks.next_power_of_two()).max(1);
        let rest_lanes = units.next_power_of_two().clamp(2, 16);
        let blocks = [(chunks.div_ceil(rows), units.div_ceil(lanes)), (chunks, units.div_ceil(rest_lanes))];
        let block = [[small("lanes", lanes)?, small("rows", rows)?, 1], [small("lanes", rest_lanes)?, 16, 1]];
        let launch = |stage: usize| -> Result<_> {
            let (x, y) = blocks[stage];
            let grid = [small("blocks of tokens", x)?, small("groups of channels", y)?, 1];
            let entry = SORTED_ENTRIES[stage][variant];
            let launch = Launch { file: "embed/table_grad", entry, grid, block: block[stage], args };
            launch.check().map(|()| launch)
        };
        // Both are checked before one writes.
        for (launch, functions) in [launch(0)?, launch(1)?].iter().zip(&self.sorted) {
            gpu.launch(&functions[variant], launch)?;
        }
        Ok(())
    }

    /// What both kinds of tables share: the checks, the arguments of the shape, and the width by the addresses.
    fn table_args(
        &self,
        table: &Write<'_, T>,
        grad: &Read<'_, T>,
        tokens: &Tokens,
        how: TableGrad,
    ) -> Result<(TableGradArgs, impl Fn(u64) -> usize + use<T>)> {
        let dim = self.spec.dim;
        at_least("table", table.len(), product("rows x dim", &[how.rows, dim])?)?;
        tokens.check("grad", dim, grad.len())?;
        super::sinusoid::check_scale(how.scale)?;
        let args = TableGradArgs {
            strides: tokens.strides(),
            rows: how.rows as i64,
            skipped: how.skipped.unwrap_or(0),
            tokens: small("tokens", tokens.tokens)?,
            batch: small("sequences", tokens.batch)?,
            dim: small("channels", dim)?,
            skips: u32::from(how.skipped.is_some()),
            accumulate: u32::from(how.accumulate),
            scale: how.scale as f32,
            ..TableGradArgs::zeroed()
        };
        let sizes = tokens.sizes() | dim;
        Ok((args, move |addresses| width(size_of::<T>(), alignment(&[addresses]), sizes).index))
    }
}
