//! Any bias on a device: one launch, and the arguments of every kernel that reads a bias.

use bytemuck::Zeroable;
use cudarc::driver::CudaViewMut;

use super::{ALL, Bias, check_heads, check_sequences};
use crate::bias::terms::plan::{TermPlan, hold_terms};
use crate::bias::{Alibi, DeviceTermInputs, Fire, Slopes, T5Bias, Term, Toeplitz};
use crate::gpu::args::{
    ApplyTermsArgs, Args, BiasArgs, BiasKind, Divisor, In, KEYS, Out, TILE_KEYS, TILE_ROWS, TermsArgs, ToeplitzArgs,
    ToeplitzRowArgs,
};
use crate::gpu::kernel::{BIAS, BIAS_ROW, BIAS_TERMS};
use crate::gpu::{Call, Gpu, Kernel, Launch, Placed, Read, Uploaded, ViewMut, on_stream, widest};
use crate::position::{Place, Places};
use crate::shape::product;
use crate::{Error, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block.
const THREADS: u32 = 256;

/// Writes the bias over the rows of `x`, or adds it; `args` makes the kernel's arguments of what all forms share.
fn launch<A: Args>(
    x: &Placed<Out, Logits>,
    bias: BiasArgs,
    add: bool,
    args: impl FnOnce(ToeplitzArgs) -> A,
) -> Result<Launch<A>> {
    let rows = rows(&x.shape)?;
    // Enough lanes for one step over a row, the rest of the block on other rows.
    let lanes = x.shape.keys.div_ceil(KEYS).next_power_of_two().clamp(1, THREADS as usize) as u32;
    let per_block = THREADS / lanes;
    let call = ToeplitzArgs {
        bias,
        x: x.at,
        strides: x.shape.strides.map(|stride| stride as i64),
        rows,
        aligned: u32::from(widest(x.steps) == 16),
        add: u32::from(add),
        ..ToeplitzArgs::zeroed()
    };
    Ok(Launch::new([rows.div_ceil(per_block), 1, 1], [lanes, per_block, 1], args(call)))
}

/// Grid and block of tiles of queries and keys that share the numbers of their distances: where positions are counted and there
/// are queries for a whole tile.
fn tiled(bias: &BiasArgs) -> Option<([u32; 3], [u32; 3])> {
    let follow = [bias.query_positions, bias.key_positions].iter().all(|at| *at == In::NULL);
    let numbers = matches!(bias.kind, BiasKind::ROW | BiasKind::FIRE) && bias.key_only == 0;
    if !(numbers && follow && bias.sequences == 0 && bias.queries >= TILE_ROWS as u32) {
        return None;
    }
    let lanes = bias.keys.div_ceil(KEYS as u32).next_power_of_two().min((TILE_KEYS / KEYS) as u32);
    let rows = (THREADS / lanes).min(TILE_ROWS as u32);
    let tiles = bias.queries.div_ceil(TILE_ROWS as u32);
    let heads = bias.batch.saturating_mul(bias.heads);
    (tiles <= 65535 && heads <= 65535)
        .then_some(([bias.keys.div_ceil(TILE_KEYS as u32), tiles, heads], [lanes, rows, 1]))
}

/// The rows of a call: a grid has a dimension for them.
pub(crate) fn rows(shape: &Logits) -> Result<u32> {
    let rows = shape.rows()?;
    u32::try_from(rows).ok().filter(|&rows| rows <= i32::MAX as u32).ok_or_else(|| {
        Error::Value(format!("the call has {rows} rows (batch x heads x queries), one takes 2147483647"))
    })
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Positions and gates of one call of a bias. [`Places`] alone become one without gates.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `places` | | positions of queries and keys |
/// | `gates` | `[batch, heads, queries]` | multiply the bias: WavLM's. Refused where there is no bias |
/// | `terms` | | what each term of a bias of terms reads; empty for other biases |
#[derive(Clone, Copy)]
pub struct BiasInputs<'a> {
    /// positions of queries and keys
    pub places: Places<Read<'a, i32>>,
    /// multiply the bias
    pub gates: Option<Read<'a, f32>>,
    /// what each term reads
    pub terms: &'a [DeviceTermInputs<'a>],
}

impl<'a> From<Places<Read<'a, i32>>> for BiasInputs<'a> {
    fn from(places: Places<Read<'a, i32>>) -> Self {
        Self { places, gates: None, terms: &[] }
    }
}

impl<'a> From<&Places<Read<'a, i32>>> for BiasInputs<'a> {
    fn from(places: &Places<Read<'a, i32>>) -> Self {
        Self::from(*places)
    }
}

impl std::fmt::Debug for BiasInputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BiasInputs").field("gates", &self.gates.map(|gates| gates.len())).finish_non_exhaustive()
    }
}

/// What a [`BiasPlan`] may be made of: [`&Alibi`](Alibi), [`&Slopes`](Slopes), [`&Toeplitz`](Toeplitz), a [`Bias`] that is
/// not FIRE, a [`&Term`](Term) or several, or a plan that is ready.
#[diagnostic::on_unimplemented(
    message = "a bias on the device cannot be made of `{Self}`",
    note = "it is made of &Alibi, &Slopes, &Toeplitz, &Term, &[Term], Bias or BiasPlan<T>; FIRE needs its largest position: \
            BiasPlan::fire"
)]
pub trait AsBias<T> {
    #[doc(hidden)]
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>>;
}

impl<T: Scalar> AsBias<T> for BiasPlan<T> {
    fn plan(self, _: &Gpu) -> Result<Self> {
        Ok(self)
    }
}

impl<T: Scalar> AsBias<T> for Bias<'_> {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        match self {
            Self::None => BiasPlan::with(gpu, 0, Form::None),
            Self::Slopes(slopes) => {
                slopes.check()?;
                let (left, right) = (gpu.upload(&slopes.left)?, gpu.upload(&slopes.right)?);
                BiasPlan::with(gpu, slopes.heads, Form::Slopes { left, right, batch: slopes.batch })
            }
            Self::Toeplitz(row) => {
                row.check()?;
                let (first, count) = (row.first, row.distances());
                let form =
                    Form::Row { row: gpu.upload(&row.values)?, first, count, saturates: row.saturates, buckets: None };
                BiasPlan::with(gpu, row.heads, form)
            }
            Self::Fire(_) => Err(Error::Value("FIRE needs its largest position: use BiasPlan::fire".into())),
            Self::Terms(terms) => terms.terms.plan(gpu),
        }
    }
}

impl<T: Scalar> AsBias<T> for &[Term] {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        BiasPlan::with(gpu, 0, Form::Terms(TermPlan::all(gpu, self)?))
    }
}

impl<T: Scalar, const N: usize> AsBias<T> for &[Term; N] {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        self.as_slice().plan(gpu)
    }
}

impl<T: Scalar> AsBias<T> for &Term {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        std::slice::from_ref(self).plan(gpu)
    }
}

impl<T: Scalar> AsBias<T> for &Slopes {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        Bias::Slopes(self).plan(gpu)
    }
}

impl<T: Scalar> AsBias<T> for &Toeplitz {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        Bias::Toeplitz(self).plan(gpu)
    }
}

impl<T: Scalar> AsBias<T> for &Alibi {
    fn plan(self, gpu: &Gpu) -> Result<BiasPlan<T>> {
        self.slopes()?.plan(gpu)
    }
}

/// A [`Bias`] on a [`Gpu`], for one element type: its numbers are uploaded, its kernels loaded.
///
/// It writes a bias, adds it to logits, or goes into a [`SoftmaxPlan`](crate::SoftmaxPlan). A call allocates nothing,
/// uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct BiasPlan<T> {
    gpu: Gpu,
    heads: usize,
    form: Form,
    key_only: bool,
    /// of any bias, and of a row of numbers at positions that follow one another
    kernels: [Kernel<ToeplitzArgs>; 2],
    row_kernel: Kernel<ToeplitzRowArgs>,
    terms_kernel: Kernel<ApplyTermsArgs>,
    element: std::marker::PhantomData<T>,
}

#[derive(Clone, Debug)]
enum Form {
    None,
    Slopes { left: Uploaded<f32>, right: Uploaded<f32>, batch: usize },
    Row { row: Uploaded<f32>, first: i64, count: usize, saturates: bool, buckets: Option<Buckets> },
    Fire { logs: Uploaded<f32>, lines: [Uploaded<f32>; 3], breaks: usize, least_norm: f32, eps: f32 },
    Terms(Vec<TermPlan>),
}

/// A bias that a call holds.
pub(crate) struct Held {
    /// positions, gates, and the bias where it is no sum of terms
    pub bias: BiasArgs,
    /// the terms
    pub terms: Option<TermsArgs>,
}

/// T5's buckets, by which a table becomes a row.
#[derive(Clone, Debug)]
struct Buckets {
    count: usize,
    /// the bucket of each distance
    lookup: Uploaded<u16>,
}

on_stream! { BiasPlan { gpu } }

impl<T: Scalar> BiasPlan<T> {
    /// Uploads the numbers of a bias and loads the kernels.
    ///
    /// # Errors
    /// If the bias is refused, is FIRE (see [`BiasPlan::fire`]), or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, bias: impl AsBias<T>) -> Result<Self> {
        bias.plan(gpu)
    }

    /// A bias of the key's position instead of its distance: with slopes `slope * key`, flash-attention's and BLOOM's causal
    /// form; with a row, such as that of [`KeyOnly::bias`](crate::bias::KeyOnly::bias), any library's rounding. Its
    /// log-sum-exp is shifted by `slope * query`. For parity alone: its error grows with the position (5e-2 at a million keys).
    ///
    /// Of slopes those of the future count, negated: [`Sides::Signed`](crate::bias::Sides) gives the libraries' sign.
    ///
    /// # Errors
    /// If the bias is refused, is neither slopes nor a row, or the kernels cannot be loaded.
    pub fn key_only(gpu: &Gpu, bias: Bias) -> Result<Self> {
        match bias {
            Bias::Slopes(_) | Bias::Toeplitz(_) => Ok(Self { key_only: true, ..Self::new(gpu, bias)? }),
            Bias::None | Bias::Fire(_) | Bias::Terms(_) => {
                Err(Error::Value("a key-only bias is made of slopes or of a row".into()))
            }
        }
    }

    /// T5's bias of `heads` heads, all zero until [`BiasPlan::set_table`]: for a table on the device.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn t5(gpu: &Gpu, spec: T5Bias, heads: usize) -> Result<Self> {
        let lookup = spec.lookup()?;
        let row = Toeplitz::from_law(heads, spec.distances(), |_, _| 0.0)?;
        let form = Form::Row {
            row: gpu.upload(&row.values)?,
            first: row.first,
            count: lookup.len(),
            saturates: true,
            buckets: Some(Buckets { count: spec.buckets, lookup: gpu.upload(&lookup)? }),
        };
        Self::with(gpu, heads, form)
    }

    /// FIRE for positions and distances up to `reach`; larger ones count as `reach`.
    ///
    /// # Errors
    /// If the spec is refused, `reach` is above 2^24, or the kernels cannot be loaded.
    pub fn fire(gpu: &Gpu, fire: &Fire, reach: usize) -> Result<Self> {
        let lines = fire.lines()?;
        if reach >= 1 << 30 {
            return Err(Error::Value(format!("FIRE's reach is {reach}, it must be below 2^30")));
        }
        // No lines break: an empty buffer has no address, so that one number stands there and none is looked at.
        let breaks = if lines.breaks.is_empty() { vec![0.0] } else { lines.breaks.clone() };
        let form = Form::Fire {
            logs: gpu.upload(&fire.logs(reach)?)?,
            lines: [gpu.upload(&breaks)?, gpu.upload(&lines.slopes)?, gpu.upload(&lines.intercepts)?],
            breaks: lines.breaks.len(),
            least_norm: fire.least_norm(),
            eps: fire.eps as f32,
        };
        Self::with(gpu, fire.heads(), form)
    }

    fn with(gpu: &Gpu, heads: usize, form: Form) -> Result<Self> {
        let (kernels, [row_kernel]) = (gpu.load::<T, _, 2>(BIAS)?, gpu.load::<T, _, 1>(BIAS_ROW)?);
        let ([terms_kernel], element) = (gpu.load::<T, _, 1>(BIAS_TERMS)?, std::marker::PhantomData);
        Ok(Self { gpu: gpu.clone(), heads, form, key_only: false, kernels, row_kernel, terms_kernel, element })
    }

    /// The slopes on the device, those of the past and those of the future, to be read or trained in place; `None` for other
    /// forms. Graphs of this plan see what is written there; clones of the plan do not.
    ///
    /// # Errors
    /// If clones share them and the driver gives no memory for a copy.
    pub fn slopes_mut(&mut self) -> Result<Option<(CudaViewMut<'_, f32>, CudaViewMut<'_, f32>)>> {
        match &mut self.form {
            Form::Slopes { left, right, .. } => Ok(Some((left.slice_mut(&self.gpu)?, right.slice_mut(&self.gpu)?))),
            _ => Ok(None),
        }
    }

    /// The row on the device, `[heads, distances]`, to be read or trained in place; `None` for other forms. Graphs of this plan
    /// see what is written there; clones of the plan do not.
    ///
    /// # Errors
    /// If clones share it and the driver gives no memory for a copy.
    pub fn row_mut(&mut self) -> Result<Option<CudaViewMut<'_, f32>>> {
        match &mut self.form {
            Form::Row { row, .. } => row.slice_mut(&self.gpu).map(Some),
            _ => Ok(None),
        }
    }

    /// Copies a new T5 table into the plan, in one kernel: `row[head, distance] = table[bucket(distance), head]`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[buckets, heads]` | on the device |
    ///
    /// # Accuracy
    /// The numbers are copied.
    ///
    /// # Errors
    /// If the plan was not made by [`BiasPlan::t5`], or the table is of another length.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{BiasPlan, Gpu, T5Bias};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let mut plan = BiasPlan::<half::bf16>::t5(&gpu, T5Bias::new(32, 128, true), 8)?;
    /// let table = gpu.stream().alloc_zeros(32 * 8)?;
    /// plan.set_table(&table)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_table(&mut self, table: Read<'_, f32>) -> Result<()> {
        let Form::Row { row, count, buckets: Some(buckets), .. } = &mut self.form else {
            return Err(Error::Value("the plan of this bias has no T5 table".into()));
        };
        let (heads, count) = (self.heads, *count);
        let need = buckets.count * heads;
        if table.len() != need {
            return Err(Error::Value(format!(
                "table holds {} elements, {} buckets of {heads} heads are {need}",
                table.len(),
                buckets.count
            )));
        }
        let mut call = self.gpu.call();
        // heads x distances fit into 63 bits, and a plan's tables into memory.
        let args = ToeplitzRowArgs {
            table: call.read("table", table, need)?,
            lookup: call.table("lookup", &buckets.lookup)?,
            row: call.table_mut("row", row)?,
            heads: heads as u32,
            count: count as u32,
            ..ToeplitzRowArgs::zeroed()
        };
        let grid = [args.count.div_ceil(THREADS), args.heads.min(65535), 1];
        call.launch(&self.row_kernel, &Launch::new(grid, [THREADS, 1, 1], args))
    }

    /// Writes the bias of every query and key, in one kernel. Across packed sequences the bias is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[batch, heads, queries, keys]` | written: `shape.of_mut(&mut out)`; a batch of 1 where sequences share positions |
    /// | `inputs` | | [`Places`], or [`BiasInputs`] with gates |
    ///
    /// # Accuracy
    /// [`Bias::error_bound`] and the rounding to `T`; one rounding more with gates. The same bits on every device and for every
    /// alignment; a shard of heads, queries or keys is the slice of the whole, bit for bit.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `out`, elements of `out` overlap, or the bias
    /// has other heads or sequences. Nothing is written then. Lengths and positions on the device are not looked at: a length
    /// outside the tensor counts as the tensor's.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Alibi, BiasPlan, Gpu, Logits, Places};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = BiasPlan::<half::bf16>::new(&gpu, &Alibi::new(32))?;
    /// let mut bias = gpu.stream().alloc_zeros(32 * 7 * 7)?;
    /// plan.write(Logits::bhqk(1, 32, 7, 7).of_mut(&mut bias), Places::bottom_right())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(&'a self, out: ViewMut<'a, T, Logits>, inputs: impl Into<BiasInputs<'a>>) -> Result<()> {
        self.run("out", false, out, inputs.into())
    }

    /// Adds the bias to logits in place, in one kernel. Arguments, accuracy and errors as [`BiasPlan::write`].
    ///
    /// # Errors
    /// As [`BiasPlan::write`].
    pub fn add<'a>(&'a self, logits: ViewMut<'a, T, Logits>, inputs: impl Into<BiasInputs<'a>>) -> Result<()> {
        self.run("logits", true, logits, inputs.into())
    }

    fn run<'a>(
        &'a self,
        name: &'static str,
        add: bool,
        x: ViewMut<'a, T, Logits>,
        inputs: BiasInputs<'a>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let x = call.view_mut(name, x)?;
        let Held { bias, terms } = self.hold(&mut call, &x.shape, inputs, ALL)?;
        if x.shape.is_empty() {
            return Ok(());
        }
        match terms {
            None => {
                let mut launch = launch(&x, bias, add, |call| call)?;
                let tiles = tiled(&bias);
                if let Some((grid, block)) = tiles {
                    (launch.grid, launch.block) = (grid, block);
                }
                call.launch(&self.kernels[usize::from(tiles.is_some())], &launch)
            }
            Some(terms) => {
                let args = |call| ApplyTermsArgs { call, terms, ..ApplyTermsArgs::zeroed() };
                call.launch(&self.terms_kernel, &launch(&x, bias, add, args)?)
            }
        }
    }

    /// Hands in the bias, its positions and its gates: what every kernel that reads a bias takes. `window` holds the distances
    /// that the kernel looks at.
    pub(crate) fn hold<'a>(
        &'a self,
        call: &mut Call<'a>,
        shape: &Logits,
        inputs: BiasInputs<'a>,
        window: (i64, i64),
    ) -> Result<Held> {
        let places = &inputs.places;
        match &self.form {
            Form::None if inputs.gates.is_some() => {
                return Err(Error::Value("gates multiply a bias, and there is none".into()));
            }
            Form::None | Form::Terms(_) => {}
            _ => check_heads(self.heads, shape)?,
        }
        if !matches!(self.form, Form::Terms(_)) && !inputs.terms.is_empty() {
            return Err(Error::Value("the call brings inputs of terms, the bias has none".into()));
        }
        call.gpu().check_context("the bias", self.gpu.stream())?;
        let mut args = hold_places(call, shape, &inputs)?;
        args.key_only = u32::from(self.key_only);
        // Counts lie within 2^31, as the checks of a bias say.
        match &self.form {
            Form::None => {}
            Form::Terms(terms) => {
                let terms = Some(hold_terms::<T>(terms, call, shape, places, inputs.terms)?);
                return Ok(Held { bias: args, terms });
            }
            Form::Slopes { left, right, batch } => {
                check_sequences(*batch, shape)?;
                args.kind = BiasKind::SLOPES;
                args.slopes_stride = if *batch == 1 { 0 } else { self.heads as i64 };
                args.values = call.table("slopes", left)?;
                args.more = call.table("slopes", right)?;
            }
            Form::Row { row, first, count, saturates, .. } => {
                let last = first + *count as i64 - 1;
                match places.keys {
                    _ if *saturates => {}
                    Place::Counted(key) if self.key_only && (key < *first || key + shape.keys as i64 - 1 > last) => {
                        return Err(Error::Value(format!(
                            "the call has {} keys from {key}, the row of the bias holds {first} to {last}",
                            shape.keys
                        )));
                    }
                    _ if self.key_only => {}
                    _ => places.check_reach(shape, window, *first, last)?,
                }
                args.kind = BiasKind::ROW;
                args.first = *first as i32;
                args.count = *count as i32;
                args.values = call.table("row", row)?;
            }
            Form::Fire { logs, lines: [breaks, slopes, intercepts], breaks: count, least_norm, eps } => {
                args.kind = BiasKind::FIRE;
                args.count = logs.len() as i32;
                args.break_count = *count as u32;
                args.least_norm = *least_norm;
                args.eps = *eps;
                args.values = call.table("logs", logs)?;
                args.more = call.table("slopes", slopes)?;
                args.intercepts = call.table("intercepts", intercepts)?;
                args.breaks = call.table("breaks", breaks)?;
            }
        }
        Ok(Held { bias: args, terms: None })
    }
}

/// Hands in positions and gates, without a bias.
pub(crate) fn hold_places<'a>(call: &mut Call<'a>, shape: &Logits, inputs: &BiasInputs<'a>) -> Result<BiasArgs> {
    let BiasInputs { places, gates, .. } = *inputs;
    places.check_starts(shape)?;
    let ids = |place: Place<Read<'a, i32>>| if let Place::Ids(ids) = place { Some(ids) } else { None };
    // Starts lie within 2^30; sizes and rows within 2^31, as the shape's checks say.
    let start = |place: Place<Read<'a, i32>>| if let Place::Counted(start) = place { start as i32 } else { 0 };
    let [queries, keys] = [
        product("batch x queries", &[shape.batch, shape.queries])?,
        product("batch x keys", &[shape.batch, shape.keys])?,
    ];
    let mut args = BiasArgs {
        query_positions: call.read_some("query positions", ids(places.queries), queries)?,
        key_positions: call.read_some("key positions", ids(places.keys), keys)?,
        query_lengths: call.read_some("query_lengths", places.query_lengths, shape.batch)?,
        key_lengths: call.read_some("key_lengths", places.key_lengths, shape.batch)?,
        gates: call.read_some("gates", gates, shape.rows()?)?,
        query_start: start(places.queries),
        key_start: start(places.keys),
        last: u32::from(matches!(places.queries, Place::BottomRight)),
        batch: shape.batch as u32,
        heads: shape.heads as u32,
        queries: shape.queries as u32,
        keys: shape.keys as u32,
        by_queries: Divisor::new(shape.queries.max(1) as u32),
        by_heads: Divisor::new(shape.heads.max(1) as u32),
        ..BiasArgs::zeroed()
    };
    if let Some(packed) = places.packed {
        args.query_lengths = call.read("the packed queries", packed.queries, packed.sequences + 1)?;
        args.key_lengths = call.read("the packed keys", packed.keys, packed.sequences + 1)?;
        args.sequences = packed.sequences as u32;
    }
    Ok(args)
}
