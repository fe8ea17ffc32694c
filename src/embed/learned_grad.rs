//! Gradients of learned tables and of the norm behind them, in fixed orders of addition.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use crate::embed::launch::{THREADS, alignment, small, width};
use crate::embed::learned::{Gathered, hold_fault, hold_ids};
use crate::embed::tokens::at_least;
use crate::embed::{Fault, Inputs, Learned, Norm, Tokens, Weights};
use crate::gpu::args::{In, LearnedArgs, Out, TableGradArgs};
use crate::gpu::{Function, Launch, Read, Write};
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
        let depth = (self.dim as f64 / 256.0 + 32.0) * f32::ROUNDOFF;
        let e = depth * (1.0 + magnitude / sigma);
        let dim = self.dim as f64;
        let a = g.iter().map(|g| g.abs()).sum::<f64>() / dim;
        let b = g.iter().zip(y).map(|(g, y)| g.abs() * (1.0 + y.abs())).sum::<f64>() / dim;
        g.iter().zip(y).map(|(g, y)| e * (2.0 * g.abs() + 2.0 * a + 3.0 * (1.0 + y.abs()) * b) / sigma).collect()
    }
}

// -------------------------------------------------------------------------------------------------------------- launch

const NORM_ENTRIES: [&str; 2] = ["norm_grad_wide", "norm_grad_narrow"];
const COUNTED_ENTRIES: [&str; 3] = ["counted_grad_wide", "counted_grad_mid", "counted_grad_one"];
const SORTED_ENTRIES: [&str; 3] = ["sorted_grad_wide", "sorted_grad_mid", "sorted_grad_one"];
/// Channels that a thread of the tables' kernels takes at once, by the variant.
const fn step(variant: usize) -> usize {
    if variant == 2 { 1 } else { 8 }
}

/// Blocks that keep partial sums. By the shape alone, so that every device adds in the same order.
const PARTIAL_BLOCKS: usize = 512;

impl Learned {
    /// Blocks of the norm's gradient, and the rows of each.
    fn partial_shape(&self, tokens: &Tokens) -> (usize, usize) {
        let rows = self.block_rows(tokens.tokens);
        (tokens.tokens.div_ceil(rows).saturating_mul(tokens.batch).min(PARTIAL_BLOCKS), rows)
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

/// Gradients of a [`Learned`] embedding on a [`Gpu`], for one element type.
///
/// | gradient of | call |
/// |---|---|
/// | the sum, with a norm behind it | [`GradPlan::norm`]; without a norm it is the result's gradient |
/// | gain and bias | [`GradPlan::vectors`], behind [`GradPlan::norm`] |
/// | a position table whose positions are counted | [`GradPlan::counted`]: a sum over the batch |
/// | any other table | [`GradPlan::table`], by an order of its ids from [`GradPlan::order`] |
///
/// Additions are made in an order that depends on the shape and the ids alone: two runs give the same bits. Each call
/// allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
pub struct GradPlan<T> {
    gpu: Gpu,
    spec: Learned,
    norm: Option<[Function; 2]>,
    vectors: Function,
    counted: [Function; 3],
    sorted: [Function; 3],
    order: Function,
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
        let load_norm = |entry| gpu.function("embed/norm_grad", T::NAME, entry);
        let three = |[a, b, c]: [&'static str; 3]| Ok::<_, Error>([load(a)?, load(b)?, load(c)?]);
        let [a, b] = NORM_ENTRIES;
        let norm = match spec.norm {
            None => None,
            Some(_) => Some([load_norm(a)?, load_norm(b)?]),
        };
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            norm,
            vectors: load("vectors_grad")?,
            counted: three(COUNTED_ENTRIES)?,
            sorted: three(SORTED_ENTRIES)?,
            order: load("order")?,
            element: PhantomData,
        })
    }

    /// Elements of the partial sums that [`GradPlan::norm`] writes for this shape.
    pub fn partials(&self, tokens: &Tokens) -> usize {
        let (blocks, rows) = self.spec.partial_shape(tokens);
        blocks * rows * 2 * self.spec.dim
    }

    /// The gradient of the sum `v` from the gradient of the normalised result, and partial sums for [`GradPlan::vectors`].
    ///
    /// `dv = (g - mean(g) - y mean(g y)) / sigma` with `g = grad * gain`, `y = (v - mean) / sigma`; an RMS norm has no
    /// `mean(g)`. The sum is gathered again, nothing is kept from the forward call.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `sum` | `tokens` | written |
    /// | `partials` | [`GradPlan::partials`] | written |
    /// | `grad` | `tokens` | gradient of the result |
    /// | `x` | `tokens` | what the forward call read in place of token rows; `None` with a token table |
    /// | `weights`, `inputs` | | as in the forward call |
    ///
    /// # Accuracy
    /// [`Learned::sum_grad_error_bound`] and the rounding to `T`.
    ///
    /// # Errors
    /// As [`LearnedPlan::gather`](crate::embed::LearnedPlan::gather), and if the spec has no norm. Nothing is written then.
    ///
    /// # Source
    /// Layer norm, arXiv 1607.06450; RMS norm, arXiv 1910.07467.
    #[expect(clippy::too_many_arguments, reason = "every tensor of the call, by name")]
    pub fn norm(
        &self,
        sum: Write<'_, T>,
        partials: Write<'_, f32>,
        grad: Read<'_, T>,
        x: Option<Read<'_, T>>,
        tokens: Tokens,
        weights: &Weights<'_, T>,
        inputs: &Inputs<'_>,
        fault: Option<&mut Fault>,
    ) -> Result<()> {
        let Some(functions) = &self.norm else {
            return Err(Error::Value(
                "the spec has no norm, the gradient of the sum is the gradient of the result".into(),
            ));
        };
        tokens.check_written("sum", self.spec.dim, sum.len())?;
        tokens.check("grad", self.spec.dim, grad.len())?;
        match (&x, weights.token.is_some()) {
            (None, false) => {
                return Err(Error::Value("x is missing, without a token table its rows are what was added to".into()));
            }
            (Some(x), false) => tokens.check("x", self.spec.dim, x.len())?,
            _ => {}
        }
        let need = self.partials(&tokens);
        at_least("partials", partials.len(), need)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let held = Gathered::new(gpu, &self.spec, (tokens.batch, tokens.tokens), weights, inputs)?;
        let span = tokens.span()?;
        let sum = gpu.write("sum", sum, span)?;
        let partials = gpu.write("partials", partials, need)?;
        let grad = gpu.read("grad", grad, span)?;
        let x = x.filter(|_| weights.token.is_none()).map(|x| gpu.read("x", x, span)).transpose()?;
        let mut all = held.addresses(&sum, "sum")? | grad.address.address() | partials.address.address();
        if let Some(x) = &x {
            sum.apart_from("sum", x, "x")?;
            all |= x.address.address();
        }
        let fault = hold_fault(gpu, fault, held.rows())?;
        let width = width(size_of::<T>(), alignment(&[all]), tokens.sizes() | self.spec.dim);
        let (blocks, rows) = self.spec.partial_shape(&tokens);
        let offset = (tokens.offset * size_of::<T>()) as u64;
        let args = LearnedArgs {
            x: sum.address.offset(offset),
            source: x.as_ref().map_or(In::NULL, |x| x.address.offset(offset)),
            grad: grad.address.offset(offset),
            partials: partials.address,
            fault: fault.as_ref().map_or(Out::NULL, |fault| fault.address),
            ..held.fill(self.spec.args(&tokens)?)
        };
        let grid = [small("blocks", blocks)?, 1, 1];
        let block = [small("lanes", self.spec.lanes())?, small("rows", rows)?, 1];
        let variant = width.index.min(1);
        let launch = Launch { file: "embed/norm_grad", entry: NORM_ENTRIES[variant], grid, block, args };
        gpu.launch(&functions[variant], &launch)
    }

    /// The gradients of gain and bias from the partial sums of [`GradPlan::norm`] for the same shape.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `gain` | `[dim]` | written: the sum of `grad * y` over all tokens |
    /// | `bias` | `[dim]` | written: the sum of `grad`; `None` without a bias |
    /// | `partials` | [`GradPlan::partials`] | of the call before |
    /// | `accumulate` | | adds to what is there |
    ///
    /// # Accuracy
    /// `(tokens + 4) * 2^-24` of the sum of magnitudes, what `y` is off by, and the rounding to `T`.
    ///
    /// # Errors
    /// If a buffer is too short or lies in another context. Nothing is written then.
    pub fn vectors(
        &self,
        gain: Write<'_, T>,
        bias: Option<Write<'_, T>>,
        partials: Read<'_, f32>,
        tokens: Tokens,
        accumulate: bool,
    ) -> Result<()> {
        let dim = self.spec.dim;
        let need = self.partials(&tokens);
        at_least("gain", gain.len(), dim)?;
        at_least("partials", partials.len(), need)?;
        if let Some(bias) = &bias {
            if !matches!(self.spec.norm, Some(Norm::Layer { .. })) {
                return Err(Error::Value("there is a bias and the spec has no norm that uses it".into()));
            }
            at_least("bias", bias.len(), dim)?;
        }
        let gpu = &self.gpu;
        let gain = gpu.write("gain", gain, dim)?;
        let bias = bias.map(|bias| gpu.write("bias", bias, dim)).transpose()?;
        let partials = gpu.read("partials", partials, need)?;
        let (blocks, rows) = self.spec.partial_shape(&tokens);
        let args = TableGradArgs {
            table: gain.address,
            second: bias.as_ref().map_or(Out::NULL, |bias| bias.address),
            grad: partials.address,
            batch: small("partial sums", if tokens.is_empty() { 0 } else { blocks * rows })?,
            dim: small("channels", dim)?,
            accumulate: u32::from(accumulate),
            ..TableGradArgs::zeroed()
        };
        let grid = [small("blocks of channels", dim.div_ceil(32))?, 1 + u32::from(bias.is_some()), 1];
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
        let lanes = self.spec.dim.div_ceil(step(width)).min(THREADS);
        let rows = (THREADS / lanes).min(tokens.tokens.next_power_of_two()).max(1);
        let args = TableGradArgs {
            table: table.address,
            grad: grad.address.offset((tokens.offset * size_of::<T>()) as u64),
            first: first as i64,
            ..args
        };
        let grid = [small("blocks of tokens", tokens.tokens.div_ceil(rows))?, 1, 1];
        let block = [small("lanes", lanes)?, small("rows", rows)?, 1];
        let launch = Launch { file: "embed/table_grad", entry: COUNTED_ENTRIES[width], grid, block, args };
        gpu.launch(&self.counted[width], &launch)
    }

    /// The tokens in the order of their ids, equal ids in the order of the tokens.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `order` | `[count]` | written: indices into `ids` |
    /// | `ids` | `[count]` | token ids, types, or rows from [`LearnedPlan::rows`](crate::embed::LearnedPlan::rows) |
    ///
    /// Every id is compared with every other: `count^2` comparisons, for tens of thousands of tokens. A stable argsort of
    /// any origin serves as well, [`order`](crate::embed::order) on the CPU among them.
    ///
    /// # Errors
    /// If a buffer is too short or lies in another context. Nothing is written then.
    pub fn order(&self, order: Write<'_, u32>, ids: Ids<'_>, count: usize) -> Result<()> {
        at_least("order", order.len(), count)?;
        if count == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let order = gpu.write("order", order, count)?;
        let Some((ids, id_type)) = hold_ids(gpu, "ids", Some(ids), true, count)? else { return Ok(()) };
        let args = TableGradArgs {
            table: order.address,
            ids: ids.address,
            id_type,
            tokens: small("ids", count)?,
            batch: 1,
            ..TableGradArgs::zeroed()
        };
        let grid = [small("blocks of ids", count.div_ceil(256))?, 1, 1];
        let launch = Launch { file: "embed/table_grad", entry: "order", grid, block: [256, 1, 1], args };
        gpu.launch(&self.order, &launch)
    }

    /// The gradient of a table by ids: row `r` is the sum of `grad` over the tokens whose id is `r`, times `scale`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[rows, dim]` | written at the rows that some token reads |
    /// | `grad` | `tokens` | gradient of the sum |
    /// | `ids` | `[batch, tokens]` | ids outside the table have no gradient |
    /// | `order` | `[batch * tokens]` | the tokens in the order of their ids |
    ///
    /// # Accuracy
    /// [`Learned::table_grad_error_bound`] with the tokens of the row as count, and the rounding to `T`.
    ///
    /// # Errors
    /// If a shape is refused, or a buffer is too short or lies in another context. Nothing is written then.
    pub fn table(
        &self,
        table: Write<'_, T>,
        grad: Read<'_, T>,
        ids: Ids<'_>,
        order: Read<'_, u32>,
        tokens: Tokens,
        how: TableGrad,
    ) -> Result<()> {
        let count = product("batch x tokens", &[tokens.batch, tokens.tokens])?;
        at_least("order", order.len(), count)?;
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
        let width = width(table.address.address() | grad.address.address());
        let args = TableGradArgs {
            table: table.address,
            grad: grad.address.offset((tokens.offset * size_of::<T>()) as u64),
            ids: ids.address,
            order: order.address,
            id_type,
            ..args
        };
        let grid = [small("tokens", count)?, small("groups of channels", self.spec.dim.div_ceil(16 * step(width)))?, 1];
        let launch = Launch { file: "embed/table_grad", entry: SORTED_ENTRIES[width], grid, block: [16, 16, 1], args };
        gpu.launch(&self.sorted[width], &launch)
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
