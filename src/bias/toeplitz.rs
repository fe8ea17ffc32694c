//! Biases that depend on distance alone, as a kernel takes them.
//!
//! ```text
//! bias(head, query, key) = row[head, key - query]
//! ```

use bytemuck::Zeroable;
use cudarc::driver::CudaSlice;

use crate::bias::{Fire, Place, Places, Slopes, T5Bias, cpu};
use crate::gpu::args::{BiasArgs, Divisor, In, ToeplitzArgs, ToeplitzRowArgs};
use crate::gpu::{Function, Held, Launch, Read, Write};
use crate::{Error, Gpu, Logits, Result, Scalar};

/// Half a unit in the last place of f32, relative.
pub(crate) const EPSILON: f64 = f32::ROUNDOFF;

// ---------------------------------------------------------------------------------------------------------------- spec

/// One row of numbers per head: the bias at each distance of a range.
///
/// T5's bias is constant beyond `max_distance`, so that a row of `2 * max_distance + 1` numbers is exact everywhere.
///
/// # Example
/// ```
/// use posenc::Toeplitz;
/// let row = Toeplitz::from_law(2, -2..=0, |head, distance| (head as f64 + 1.0) * distance as f64)?;
/// assert_eq!(row.values, [-2.0, -1.0, 0.0, -4.0, -2.0, 0.0]);
/// assert_eq!(row.bias(1, -1), -2.0);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Toeplitz {
    /// heads
    pub heads: usize,
    /// the distance of the first number
    pub first: i64,
    /// `[heads, distances]`
    pub values: Vec<f32>,
    /// whether distances outside take the value at the row's end; else a call that has such distances is refused, where
    /// its positions are known on the host
    pub saturates: bool,
}

impl Toeplitz {
    /// The row of a law over a range of distances, rounded to f32. It must hold every distance of a call.
    ///
    /// # Errors
    /// If there are no heads or distances, the product of both does not fit, or the law gives NaN.
    pub fn from_law(
        heads: usize,
        distances: std::ops::RangeInclusive<i64>,
        law: impl Fn(usize, i64) -> f64,
    ) -> Result<Self> {
        let count = check_distances(heads, &distances)?;
        let first = *distances.start();
        let mut values = Vec::with_capacity(heads * count);
        for head in 0..heads {
            for distance in distances.clone() {
                let value = law(head, distance);
                if value.is_nan() {
                    return Err(Error::Value(format!("the bias of head {head} at distance {distance} is NaN")));
                }
                values.push(value as f32);
            }
        }
        Ok(Self { heads, first, values, saturates: false })
    }

    /// Numbers of each head.
    pub fn distances(&self) -> usize {
        self.values.len() / self.heads.max(1)
    }

    /// Refuses a row without heads or numbers, whose length is not a multiple of the heads, or that reaches beyond 2^30.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        let reach = 1 << 30;
        if self.first < -reach || self.first > reach || self.values.len() > reach as usize {
            return Err(Error::Value(format!(
                "a Toeplitz row of {} numbers from distance {}, both must lie within 2^30",
                self.values.len(),
                self.first
            )));
        }
        if self.heads == 0 || self.values.is_empty() || !self.values.len().is_multiple_of(self.heads) {
            return Err(Error::Value(format!(
                "a Toeplitz row of {} numbers for {} heads, it must hold the same count, at least 1, for each head",
                self.values.len(),
                self.heads
            )));
        }
        Ok(())
    }
}

/// The count of distances, or an error.
pub(crate) fn check_distances(heads: usize, distances: &std::ops::RangeInclusive<i64>) -> Result<usize> {
    let count = distances.end().checked_sub(*distances.start()).and_then(|last| last.checked_add(1));
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    if heads == 0 || count == 0 {
        return Err(Error::Value(format!(
            "{heads} heads and distances {} to {}, there must be at least 1 of both",
            distances.start(),
            distances.end()
        )));
    }
    crate::shape::product("heads x distances", &[heads, count])?;
    Ok(count)
}

/// A window without ends.
pub(crate) const ALL: (i64, i64) = (i64::MIN, i64::MAX);

/// Any bias, in the form in which a kernel takes it.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a> {
    /// nothing is added
    None,
    /// ALiBi
    Slopes(&'a Slopes),
    /// T5, KERPLE, Sandwich, or any law of distance
    Toeplitz(&'a Toeplitz),
    /// FIRE
    Fire(&'a Fire),
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Toeplitz {
    /// The bias of `head` at `distance`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn bias(&self, head: usize, distance: i64) -> f64 {
        assert!(head < self.heads, "head {head} of {}", self.heads);
        let count = self.distances();
        let index = distance.saturating_sub(self.first).clamp(0, count as i64 - 1);
        f64::from(self.values[head * count + index as usize])
    }
}

impl Bias<'_> {
    /// The bias of `head` of sequence `batch` for a query and a key at these positions.
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn at(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Slopes(slopes) => slopes.bias(batch, head, key - query),
            Self::Toeplitz(row) => row.bias(head, key - query),
            Self::Fire(fire) => fire.bias(head, query, key),
        }
    }

    /// The largest error of [`Bias::at`] when an f32 kernel computes it, before it is rounded to an element type.
    ///
    /// | form | bound |
    /// |---|---|
    /// | `None`, `Toeplitz` | 0: the number itself is added |
    /// | `Slopes` | `\|bias\| * 2 * 2^-24` |
    /// | `Fire` | [`Fire::error_bound`] |
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn error_bound(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None | Self::Toeplitz(_) => 0.0,
            Self::Slopes(slopes) => Slopes::error_bound(slopes.bias(batch, head, key - query)),
            Self::Fire(fire) => fire.error_bound(head, fire.input(query, key)).unwrap_or(f64::INFINITY),
        }
    }

    /// Refuses a bias for another number of heads or sequences, and a row that lacks a distance of the call.
    pub(crate) fn check<A>(&self, shape: &Logits, places: &super::Places<A>, window: (i64, i64)) -> Result<()> {
        let heads = match self {
            Self::None => return Ok(()),
            Self::Slopes(slopes) => {
                slopes.check()?;
                if slopes.batch != 1 && slopes.batch != shape.batch {
                    return Err(Error::Value(format!(
                        "slopes are for {} sequences, the logits have {}",
                        slopes.batch, shape.batch
                    )));
                }
                slopes.heads
            }
            Self::Toeplitz(row) => {
                row.check()?;
                if !row.saturates {
                    let last = row.first + row.distances() as i64 - 1;
                    places.check_reach(shape, window, row.first, last)?;
                }
                row.heads
            }
            Self::Fire(fire) => {
                fire.check()?;
                fire.heads()
            }
        };
        if heads != shape.heads {
            return Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", shape.heads)));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Bias<'_> {
    /// Writes the bias of every query and key on the CPU. Packed sequences do not see each other: their bias is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `shape` | written |
    /// | `shape` | | sizes and strides of `out`; a batch of more than 1 gets one bias per sequence |
    /// | `positions` | | where queries and keys sit |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu).
    ///
    /// # Errors
    /// If the shape, the positions or the count of heads is refused. Nothing is written then.
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// let slopes = Alibi::new(1).slopes()?;
    /// let mut out = [0.0f32; 3];
    /// // One query at position 2 of a cache of three keys.
    /// Bias::Slopes(&slopes).write(&mut out, &Logits::bhqk(1, 1, 1, 3), &Places::from(2, 0))?;
    /// assert_eq!(out, [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], shape: &Logits, positions: &super::Places<&[i32]>) -> Result<()> {
        self.check_call("out", out.len(), shape, positions)?;
        cpu::put(*self, out, false, shape, positions);
        Ok(())
    }

    /// Adds the bias to logits in place on the CPU.
    ///
    /// Arguments, accuracy of the sum and errors as [`Bias::write`].
    ///
    /// # Errors
    /// As [`Bias::write`].
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// let slopes = Alibi::new(1).slopes()?;
    /// let mut logits = [1.0f32; 3];
    /// Bias::Slopes(&slopes).add(&mut logits, &Logits::bhqk(1, 1, 1, 3), &Places::from(2, 0))?;
    /// assert_eq!(logits, [1.0 - 2.0 / 256.0, 1.0 - 1.0 / 256.0, 1.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn add<T: Scalar>(&self, logits: &mut [T], shape: &Logits, positions: &super::Places<&[i32]>) -> Result<()> {
        self.check_call("logits", logits.len(), shape, positions)?;
        cpu::put(*self, logits, true, shape, positions);
        Ok(())
    }

    fn check_call(
        &self,
        name: &'static str,
        len: usize,
        shape: &Logits,
        positions: &super::Places<&[i32]>,
    ) -> Result<()> {
        shape.check_written(name, len)?;
        positions.check(shape)?;
        self.check(shape, positions, ALL)
    }
}

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block.
const THREADS: u32 = 256;
/// Keys of a thread's step.
const KEYS: usize = 8;

/// Writes or adds over the rows of `shape`; addresses and the bias are still missing.
pub(crate) fn launch(shape: &Logits, add: bool, alignment: usize, element: usize) -> Result<Launch<ToeplitzArgs>> {
    let rows = rows(shape)?;
    // Enough lanes for one step over a row, the rest of the block on other rows.
    let lanes = shape.keys.div_ceil(KEYS).next_power_of_two().clamp(1, THREADS as usize) as u32;
    let per_block = THREADS / lanes;
    let args = ToeplitzArgs {
        strides: strides(shape),
        rows,
        aligned: u32::from(aligned(shape, alignment, element)),
        add: u32::from(add),
        ..ToeplitzArgs::zeroed()
    };
    Ok(Launch {
        file: "bias/toeplitz",
        entry: "apply",
        grid: [rows.div_ceil(per_block), 1, 1],
        block: [lanes, per_block, 1],
        args,
    })
}

/// The rows of a call: a grid has a dimension for them.
pub(crate) fn rows(shape: &Logits) -> Result<u32> {
    let rows = shape.rows()?;
    u32::try_from(rows).ok().filter(|&rows| rows <= i32::MAX as u32).ok_or_else(|| {
        Error::Value(format!("the call has {rows} rows (batch x heads x queries), one takes 2147483647"))
    })
}

/// Strides as a kernel takes them.
pub(crate) fn strides(shape: &Logits) -> [i64; 3] {
    shape.strides.map(|stride| stride as i64)
}

/// Whether every row begins at a multiple of 16 bytes, in a buffer whose address is a multiple of `alignment` bytes.
pub(crate) fn aligned(shape: &Logits, alignment: usize, element: usize) -> bool {
    let per_access = 16 / element;
    let dims = shape.dims();
    let steps = dims[..3].iter().all(|&(size, stride)| size == 1 || stride.is_multiple_of(per_access));
    alignment.is_multiple_of(16) && shape.offset.is_multiple_of(per_access) && steps
}

/// The largest power of two up to 16 that divides an address.
pub(crate) fn alignment(address: u64) -> usize {
    1 << address.trailing_zeros().min(4)
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// A [`Bias`] on a [`Gpu`], for one element type: its numbers are uploaded, its kernels loaded.
///
/// It writes a bias, adds it to logits, or goes into a [`SoftmaxPlan`](crate::SoftmaxPlan). A call allocates nothing,
/// uploads nothing, synchronises nothing, and is one kernel.
pub struct BiasPlan<T> {
    gpu: Gpu,
    heads: usize,
    form: Form,
    key_only: bool,
    apply: Function,
    element: std::marker::PhantomData<T>,
}

enum Form {
    None,
    Slopes { left: CudaSlice<f32>, right: CudaSlice<f32>, batch: usize },
    Row { row: CudaSlice<f32>, first: i64, count: usize, saturates: bool, t5: Option<T5Form> },
    Fire { logs: CudaSlice<f32>, lines: [CudaSlice<f32>; 3], breaks: usize, least_norm: f32, eps: f32 },
}

struct T5Form {
    buckets: usize,
    lookup: CudaSlice<u16>,
    function: Function,
}

impl<T: Scalar> BiasPlan<T> {
    /// Uploads the numbers of a bias and loads the kernels.
    ///
    /// # Errors
    /// If the bias is refused, is FIRE (see [`BiasPlan::fire`]), or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, bias: Bias) -> Result<Self> {
        match bias {
            Bias::None => Self::with(gpu, 0, Form::None),
            Bias::Slopes(slopes) => {
                slopes.check()?;
                let (left, right) = (gpu.upload(&slopes.left)?, gpu.upload(&slopes.right)?);
                Self::with(gpu, slopes.heads, Form::Slopes { left, right, batch: slopes.batch })
            }
            Bias::Toeplitz(row) => {
                row.check()?;
                let form = Form::Row {
                    row: gpu.upload(&row.values)?,
                    first: row.first,
                    count: row.distances(),
                    saturates: row.saturates,
                    t5: None,
                };
                Self::with(gpu, row.heads, form)
            }
            Bias::Fire(_) => Err(Error::Value("FIRE needs its largest position: use BiasPlan::fire".into())),
        }
    }

    /// A bias that takes the key's position instead of its distance: with slopes `slope * key`, flash-attention's and
    /// BLOOM's causal form; with a row, such as that of [`KeyOnly::bias`](crate::KeyOnly::bias), any library's rounding.
    /// Its log-sum-exp is shifted by `slope * query`. For parity alone: its error grows with the position (5e-2 at a million
    /// keys).
    ///
    /// Of slopes those of the future count, negated: [`Sides::Signed`](crate::Sides) gives the libraries' sign.
    ///
    /// # Errors
    /// If the bias is refused, is neither slopes nor a row, or the kernels cannot be loaded.
    pub fn key_only(gpu: &Gpu, bias: Bias) -> Result<Self> {
        match bias {
            Bias::Slopes(_) | Bias::Toeplitz(_) => Ok(Self { key_only: true, ..Self::new(gpu, bias)? }),
            Bias::None | Bias::Fire(_) => Err(Error::Value("a key-only bias is made of slopes or of a row".into())),
        }
    }

    /// T5's bias of `heads` heads, all zero until [`BiasPlan::set_table`]: for a table that lives on the device.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn t5(gpu: &Gpu, spec: T5Bias, heads: usize) -> Result<Self> {
        let lookup = spec.lookup()?;
        let row = Toeplitz::from_law(heads, spec.distances(), |_, _| 0.0)?;
        let t5 = T5Form {
            buckets: spec.buckets,
            lookup: gpu.upload(&lookup)?,
            function: gpu.function("bias/toeplitz", T::NAME, "row")?,
        };
        let form = Form::Row {
            row: gpu.upload(&row.values)?,
            first: row.first,
            count: lookup.len(),
            saturates: true,
            t5: Some(t5),
        };
        Self::with(gpu, heads, form)
    }

    /// FIRE for positions and distances up to `reach`, larger ones taken as `reach`.
    ///
    /// # Errors
    /// If the spec is refused, `reach` is 2^30 or more, or the kernels cannot be loaded.
    pub fn fire(gpu: &Gpu, fire: &Fire, reach: usize) -> Result<Self> {
        let lines = fire.lines()?;
        if reach >= 1 << 30 {
            return Err(Error::Value(format!("FIRE's reach is {reach}, it must be below 2^30")));
        }
        let logs = fire.logs(reach);
        // No lines break: an empty buffer has no address, so that one number stands there and none is looked at.
        let breaks = if lines.breaks.is_empty() { vec![0.0] } else { lines.breaks.clone() };
        let form = Form::Fire {
            logs: gpu.upload(&logs)?,
            lines: [gpu.upload(&breaks)?, gpu.upload(&lines.slopes)?, gpu.upload(&lines.intercepts)?],
            breaks: lines.breaks.len(),
            least_norm: fire.least_norm(),
            eps: fire.eps as f32,
        };
        Self::with(gpu, fire.heads(), form)
    }

    fn with(gpu: &Gpu, heads: usize, form: Form) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            heads,
            form,
            key_only: false,
            apply: gpu.function("bias/toeplitz", T::NAME, "apply")?,
            element: std::marker::PhantomData,
        })
    }

    /// The slopes on the device, those of the past and those of the future, to be read or trained in place.
    pub fn slopes_mut(&mut self) -> Option<(&mut CudaSlice<f32>, &mut CudaSlice<f32>)> {
        match &mut self.form {
            Form::Slopes { left, right, .. } => Some((left, right)),
            _ => None,
        }
    }

    /// The row on the device, `[heads, distances]`, to be read or trained in place.
    pub fn row_mut(&mut self) -> Option<&mut CudaSlice<f32>> {
        match &mut self.form {
            Form::Row { row, .. } => Some(row),
            _ => None,
        }
    }

    /// Takes a new T5 table into the plan, in one kernel: `row[head, distance] = table[bucket(distance), head]`.
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
        let Form::Row { row, count, t5: Some(t5), .. } = &mut self.form else {
            return Err(Error::Value("the plan of this bias has no T5 table".into()));
        };
        let (heads, count) = (self.heads, *count);
        let need = t5.buckets * heads;
        if table.len() != need {
            return Err(Error::Value(format!(
                "table holds {} elements, {} buckets of {heads} heads are {need}",
                table.len(),
                t5.buckets
            )));
        }
        let gpu = &self.gpu;
        let (table, lookup) = (gpu.read("table", table, need)?, gpu.read("lookup", &t5.lookup, count)?);
        let row = gpu.write("row", row, heads * count)?;
        // heads x distances fit into 63 bits, and a plan's tables into memory.
        let args = ToeplitzRowArgs {
            table: table.address,
            lookup: lookup.address,
            row: row.address,
            heads: heads as u32,
            count: count as u32,
        };
        let grid = [args.count.div_ceil(THREADS), args.heads.min(65535), 1];
        gpu.launch(&t5.function, &Launch { file: "bias/toeplitz", entry: "row", grid, block: [THREADS, 1, 1], args })
    }

    /// Writes the bias of every query and key, in one kernel. Packed sequences do not see each other: their bias is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `shape` | written |
    /// | `shape` | | sizes and strides of `out`; a batch of 1 where sequences share positions |
    /// | `places` | | where queries and keys sit |
    ///
    /// # Accuracy
    /// [`Bias::error_bound`] and the rounding to `T`. The same bits on every device and for every alignment; a shard of
    /// heads, queries or keys is the slice of the whole, bit for bit.
    ///
    /// # Errors
    /// If a buffer is too short or belongs to another context, elements of `out` overlap, or the bias has other heads or
    /// sequences. Nothing is written then. Lengths and positions on the device are not looked at: a length outside the
    /// tensor counts as the tensor's.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Places};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let slopes = Alibi::new(32).slopes()?;
    /// let plan = BiasPlan::<half::bf16>::new(&gpu, Bias::Slopes(&slopes))?;
    /// let mut bias = gpu.stream().alloc_zeros(32 * 7 * 7)?;
    /// plan.write(&mut bias, &Logits::bhqk(1, 32, 7, 7), &Places::last())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self, out: Write<'_, T>, shape: &Logits, places: &Places<Read<'_, i32>>) -> Result<()> {
        self.run("out", false, out, shape, places, None)
    }

    /// Adds the bias to logits in place, in one kernel. Arguments, accuracy and errors as [`BiasPlan::write`].
    ///
    /// # Errors
    /// As [`BiasPlan::write`].
    pub fn add(&self, logits: Write<'_, T>, shape: &Logits, places: &Places<Read<'_, i32>>) -> Result<()> {
        self.run("logits", true, logits, shape, places, None)
    }

    /// The bias with a number for each row that multiplies it, WavLM's gates, `[batch, heads, queries]`.
    pub fn gated<'a>(&'a self, gates: Read<'a, f32>) -> GatedBias<'a, T> {
        GatedBias { plan: self, gates }
    }

    fn run(
        &self,
        name: &'static str,
        add: bool,
        x: Write<'_, T>,
        shape: &Logits,
        places: &Places<Read<'_, i32>>,
        gates: Option<Read<'_, f32>>,
    ) -> Result<()> {
        shape.check_written(name, x.len())?;
        let held = self.hold(&self.gpu, shape, places, gates, ALL)?;
        if shape.is_empty() {
            return Ok(());
        }
        let x = self.gpu.write(name, x, shape.span()?)?;
        let mut launch = launch(shape, add, alignment(x.address.address()), size_of::<T>())?;
        launch.args.bias = held.args;
        launch.args.x = x.address.offset((shape.offset * size_of::<T>()) as u64);
        self.gpu.launch(&self.apply, &launch)
    }

    /// Checks a call of a kernel on `gpu`, which may be another stream than the plan's own, and gives the kernel's view of
    /// bias and positions.
    pub(crate) fn hold<'a>(
        &'a self,
        gpu: &'a Gpu,
        shape: &Logits,
        places: &Places<Read<'a, i32>>,
        gates: Option<Read<'a, f32>>,
        window: (i64, i64),
    ) -> Result<HeldBias<'a>> {
        places.check_starts(shape)?;
        let heads = if matches!(self.form, Form::None) { shape.heads } else { self.heads };
        if heads != shape.heads {
            return Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", shape.heads)));
        }
        gpu.check_context("the bias", self.gpu.stream())?;
        let ids = |name, buffer: Option<Read<'a, i32>>, need: usize| {
            buffer.map(|buffer| gpu.read(name, buffer, need)).transpose()
        };
        let each = |place: Place<Read<'a, i32>>| match place {
            Place::Each(positions) => Some(positions),
            _ => None,
        };
        let size = |what, n| crate::shape::product(what, &[shape.batch, n]);
        let query_positions = ids("query positions", each(places.queries), size("batch x queries", shape.queries)?)?;
        let key_positions = ids("key positions", each(places.keys), size("batch x keys", shape.keys)?)?;
        let (query_lengths, key_lengths) = match places.packed {
            None => (
                ids("query_lengths", places.query_lengths, shape.batch)?,
                ids("key_lengths", places.key_lengths, shape.batch)?,
            ),
            Some(packed) => (
                ids("the packed queries", Some(packed.queries), packed.sequences + 1)?,
                ids("the packed keys", Some(packed.keys), packed.sequences + 1)?,
            ),
        };
        let gates = gates.map(|gates| gpu.read("gates", gates, shape.rows()?)).transpose()?;
        let address = |held: &Option<Held<'a, In>>| held.as_ref().map_or(In::NULL, |held| held.address);
        // Starts lie within 2^30; sizes, rows and counts within 2^31, as the shape's and the bias's checks say.
        let start = |place: &Place<Read<'a, i32>>| if let Place::From(start) = place { *start as i32 } else { 0 };
        let mut args = BiasArgs {
            query_positions: address(&query_positions),
            key_positions: address(&key_positions),
            query_lengths: address(&query_lengths),
            key_lengths: address(&key_lengths),
            gates: address(&gates),
            query_start: start(&places.queries),
            key_start: start(&places.keys),
            last: u32::from(matches!(places.queries, Place::Last)),
            batch: shape.batch as u32,
            heads: shape.heads as u32,
            queries: shape.queries as u32,
            keys: shape.keys as u32,
            key_only: u32::from(self.key_only),
            sequences: places.packed.map_or(0, |packed| packed.sequences as u32),
            by_queries: Divisor::new(shape.queries.max(1) as u32),
            by_heads: Divisor::new(shape.heads.max(1) as u32),
            ..BiasArgs::zeroed()
        };
        let mut numbers = [None, None, None, None];
        match &self.form {
            Form::None => {}
            Form::Slopes { left, right, batch } => {
                if *batch != 1 && *batch != shape.batch {
                    return Err(Error::Value(format!(
                        "slopes are for {batch} sequences, the logits have {}",
                        shape.batch
                    )));
                }
                args.kind = 1;
                args.slopes_stride = if *batch == 1 { 0 } else { heads as i64 };
                numbers[0] = Some(gpu.read("slopes", left, batch * heads)?);
                numbers[1] = Some(gpu.read("slopes", right, batch * heads)?);
            }
            Form::Row { row, first, count, saturates, .. } => {
                if !saturates {
                    let last = first + *count as i64 - 1;
                    match places.keys {
                        Place::From(key) if self.key_only && (key < *first || key + shape.keys as i64 - 1 > last) => {
                            return Err(Error::Value(format!(
                                "the call has {} keys from {key}, the row of the bias holds {first} to {last}",
                                shape.keys
                            )));
                        }
                        _ if self.key_only => {}
                        _ => places.check_reach(shape, window, *first, last)?,
                    }
                }
                args.kind = 2;
                args.first = *first as i32;
                args.count = *count as i32;
                numbers[0] = Some(gpu.read("row", row, heads * count)?);
            }
            Form::Fire { logs, lines: [breaks, slopes, intercepts], breaks: count, least_norm, eps } => {
                args.kind = 3;
                args.count = logs.len() as i32;
                args.break_count = *count as u32;
                args.least_norm = *least_norm;
                args.eps = *eps;
                numbers[0] = Some(gpu.read("logs", logs, logs.len())?);
                numbers[1] = Some(gpu.read("slopes", slopes, heads * (count + 1))?);
                numbers[2] = Some(gpu.read("intercepts", intercepts, heads * (count + 1))?);
                numbers[3] = Some(gpu.read("breaks", breaks, *count)?);
            }
        }
        args.values = address(&numbers[0]);
        args.more = address(&numbers[1]);
        args.intercepts = address(&numbers[2]);
        args.breaks = address(&numbers[3]);
        let places = [query_positions, key_positions, query_lengths, key_lengths];
        Ok(HeldBias { args, _numbers: numbers, _places: places, _gates: gates })
    }
}

/// A [`BiasPlan`] and gates, as [`BiasPlan::gated`] makes it.
pub struct GatedBias<'a, T> {
    plan: &'a BiasPlan<T>,
    gates: Read<'a, f32>,
}

impl<T: Scalar> GatedBias<'_, T> {
    /// [`BiasPlan::write`], each row times its gate; one rounding more.
    ///
    /// # Errors
    /// As [`BiasPlan::write`].
    pub fn write(&self, out: Write<'_, T>, shape: &Logits, places: &Places<Read<'_, i32>>) -> Result<()> {
        self.plan.run("out", false, out, shape, places, Some(self.gates))
    }

    /// [`BiasPlan::add`], the bias of each row times its gate; one rounding more.
    ///
    /// # Errors
    /// As [`BiasPlan::write`].
    pub fn add(&self, logits: Write<'_, T>, shape: &Logits, places: &Places<Read<'_, i32>>) -> Result<()> {
        self.plan.run("logits", true, logits, shape, places, Some(self.gates))
    }
}

/// A bias as a kernel's arguments; keep it until the launch is done.
pub(crate) struct HeldBias<'a> {
    pub args: BiasArgs,
    _numbers: [Option<Held<'a, In>>; 4],
    _places: [Option<Held<'a, In>>; 4],
    _gates: Option<Held<'a, In>>,
}
