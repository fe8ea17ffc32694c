//! Gradients of a term's numbers on a device: one launch.

use bytemuck::Zeroable;

use super::Of;
use crate::bias::BiasInputs;
use crate::bias::form::{hold_places, rows};
use crate::bias::sums::small;
use crate::bias::terms::plan::{TermPlan, strides};
use crate::bias::terms::{By, DeviceTermInputs, Index, Term};
use crate::gpu::args::{BiasGradArgs, Divisor, GRAD_STEP, GRAD_TILE, GRAD_TILE_SPACE, KEYS, TermGradArgs};
use crate::gpu::kernel::TERM_GRAD;
use crate::gpu::{Gpu, Kernel, Launch, Scratch, View, Write, on_stream, widest};
use crate::shape::{Numbers, Shape, product};
use crate::{Error, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block, at most.
const THREADS: usize = 256;
/// Blocks that keep a large device busy, beyond which no sum is split further.
const BLOCKS: usize = 512;
/// Shared memory of a block in numbers: what every device has without a request, less a line for the kernel's own.
const SPACE: usize = (12 << 10) - 16;
/// Rows that a warp's bins are worth.
const TABLE_ROWS: usize = 16;
/// Rows that a block of keys is worth.
const KEY_ROWS: usize = 256;

/// Which kernel: what the numbers have a dimension of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// entries alone
    Table,
    /// queries, and entries of each
    Queries,
    /// keys, and entries of each
    Keys,
    /// keys alone
    Columns,
    /// queries and keys
    Whole,
}

impl Form {
    fn of(term: &Term, of: Of, numbers: &Numbers, shape: &Logits) -> Self {
        match (&term.index, of, term.by) {
            (Index::Whole, ..) => match (numbers.rows == shape.queries, numbers.entries == shape.keys) {
                (true, true) => Self::Whole,
                (false, true) => Self::Columns,
                (true, false) => Self::Queries,
                (false, false) => Self::Table,
            },
            (_, Of::KeyNumbers, _) => Self::Columns,
            (_, _, By::Keys) => Self::Keys,
            (Index::Endpoints, ..) | (_, _, By::Queries) => Self::Queries,
            (_, _, By::Table) => Self::Table,
        }
    }

    /// The rows that a kernel has: the keys' numbers of a dense bias lie along its entries.
    const fn rows(self, term: &Term, numbers: Numbers) -> Numbers {
        if !matches!((self, &term.index), (Self::Columns, Index::Whole)) {
            return numbers;
        }
        let [batch, head, _, entry] = numbers.strides;
        Numbers { rows: numbers.entries, entries: 1, strides: [batch, head, entry, 0], ..numbers }
    }
}

/// How the entries of a row are cut: by their number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bins {
    /// entries that a warp, or a block, has bins for
    chunk: usize,
    chunks: usize,
    /// warps of a block
    warps: usize,
    /// keys of a block
    keys: usize,
}

impl Bins {
    fn of(form: Form, entries: usize) -> Self {
        // Two numbers each, one for compensation.
        let (chunk, warps, keys) = match form {
            Form::Keys => {
                let most = (SPACE - GRAD_TILE_SPACE) / 2;
                let keys = [32, 16].into_iter().find(|keys| keys * entries <= most).unwrap_or(8);
                (entries.min(most / keys), THREADS / 32, keys)
            }
            Form::Table | Form::Queries => {
                let chunk = entries.min((SPACE - GRAD_STEP) / 2);
                (chunk, (SPACE / warp_space(chunk)).clamp(1, THREADS / 32), 0)
            }
            Form::Columns => (1, THREADS / 32, GRAD_STEP),
            Form::Whole => (entries, THREADS / 32, 0),
        };
        Self { chunk, chunks: entries.div_ceil(chunk), warps, keys }
    }

    /// Bytes of a block's shared memory.
    const fn shared(&self, form: Form) -> usize {
        4 * match form {
            Form::Keys => GRAD_TILE_SPACE + 2 * self.keys * self.chunk,
            Form::Columns => self.warps * GRAD_STEP,
            Form::Table | Form::Queries => self.warps * warp_space(self.chunk),
            Form::Whole => 0,
        }
    }

    /// Numbers that a block leaves to the last one of its item.
    const fn left(&self, form: Form) -> usize {
        if matches!(form, Form::Keys | Form::Columns) { self.keys * self.chunk } else { self.chunk }
    }

    /// Rows of grad that a block is worth: those of at least 16 times as many numbers as it leaves.
    fn least_rows(&self, form: Form, keys: usize) -> usize {
        match form {
            Form::Keys | Form::Columns => KEY_ROWS.max(16 * self.chunk),
            _ => (TABLE_ROWS * self.warps).max(16 * self.chunk / keys.max(1)),
        }
    }

    /// The most partial sums of calls up to `max_shape`.
    fn most(&self, form: Form, max_shape: &Logits) -> Result<usize> {
        // All items have the rows of all heads together, each of which is worth a block where an item has several.
        let rows = max_shape.rows()?;
        let each = if matches!(form, Form::Keys | Form::Columns) { max_shape.keys.div_ceil(self.keys) } else { 1 };
        let blocks = (rows / self.least_rows(form, max_shape.keys)).saturating_mul(each).saturating_mul(self.chunks);
        product("blocks x numbers", &[blocks.min(BLOCKS), self.left(form)])
    }
}

/// Numbers of a warp's shared memory: a step of a row, at a multiple of 16 bytes, and bins.
const fn warp_space(chunk: usize) -> usize {
    (GRAD_STEP + 2 * chunk).next_multiple_of(4)
}

/// How a call is cut: from the shapes alone, so that every device sums alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    form: Form,
    bins: Bins,
    /// sequences times heads that one batch and head of the output is the sum of, and heads of them
    members: [usize; 2],
    /// what a block, a warp, or the threads of a row own
    items: usize,
    /// blocks that share an item
    parts: usize,
    /// rows of grad of a block's part; of a warp's, where each has its own
    rows: usize,
    key_blocks: usize,
    /// partial sums
    sums: usize,
}

impl Cut {
    fn of(form: Form, shape: &Logits, numbers: &Numbers) -> Result<Self> {
        let bins = Bins::of(form, numbers.entries);
        let shared = |of: usize, members: usize| if of == 1 { members } else { 1 };
        let head_members = shared(numbers.heads, shape.heads);
        let members = if shape.is_empty() { 0 } else { shared(numbers.batch, shape.batch) * head_members };
        let groups = product("batch x heads", &[numbers.batch, numbers.heads])?;
        let by_key = matches!(form, Form::Keys | Form::Columns);
        let key_blocks = if by_key { shape.keys.div_ceil(bins.keys) } else { 1 };
        let own = match form {
            Form::Table => 1,
            Form::Queries | Form::Whole => shape.queries,
            Form::Keys | Form::Columns => key_blocks,
        };
        let items = product("batch x heads x rows x chunks", &[groups, own, bins.chunks])?;
        let all = product("members x queries", &[members, shape.queries])?;
        let mut cut =
            Self { form, bins, members: [members, head_members], items, parts: 1, rows: all, key_blocks, sums: 0 };
        if form == Form::Table || by_key {
            let most = (BLOCKS / items.max(1)).max(1);
            cut.split((all / bins.least_rows(form, shape.keys)).clamp(1, most), all);
        }
        if cut.parts > 1 {
            cut.sums = product("items x parts x numbers", &[items, cut.parts, bins.left(form)])?;
        }
        Ok(cut)
    }

    /// Splits `all` rows of an item into at most `parts`.
    fn split(&mut self, parts: usize, all: usize) {
        let (warps, step) = match self.form {
            Form::Keys => (1, GRAD_TILE / self.bins.keys),
            Form::Columns => (1, self.bins.warps),
            _ => (self.bins.warps, 1),
        };
        self.rows = all.div_ceil(parts * warps).max(1).next_multiple_of(step);
        self.parts = all.div_ceil(self.rows * warps).max(1);
    }

    fn launch(&self, args: TermGradArgs) -> Result<Launch<TermGradArgs>> {
        let (items, keys) = (self.items, args.call.bias.keys as usize);
        let lanes = keys.div_ceil(KEYS).next_power_of_two().clamp(1, THREADS);
        let (blocks, block) = match self.form {
            Form::Table => (product("items x parts", &[items, self.parts])?, [self.bins.warps * 32, 1]),
            Form::Keys | Form::Columns => (product("items x parts", &[items, self.parts])?, [THREADS, 1]),
            Form::Queries => (items.div_ceil(self.bins.warps), [self.bins.warps * 32, 1]),
            Form::Whole => (items.div_ceil(THREADS / lanes), [lanes, THREADS / lanes]),
        };
        if blocks > i32::MAX as usize {
            return Err(Error::Value(format!("the call needs {blocks} blocks, a grid has 2147483647")));
        }
        // Blocks are at most as many threads as constants say, and so is shared memory.
        let [x, y] = block.map(|threads| threads as u32);
        let launch = Launch::new([blocks as u32, 1, 1], [x, y, 1], args);
        Ok(Launch { shared: self.bins.shared(self.form) as u32, ..launch })
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Gradients of the numbers that a [`Term`] reads, on a [`Gpu`]: tables of windows and buckets, products of states and a table,
/// dense biases, endpoints.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel. No floating-point number is added by an
/// atomic; a result depends on the shapes alone, not on the device or on which block runs first. The gradient of the logits is
/// read once. The exception are rows of more entries than a block's shared memory has bins for: it is read once for each chunk of
/// 6008 entries of a table or of queries' rows, of 695 of keys' rows; where entries go by distance, each chunk reads its own part
/// alone.
#[derive(Clone, Debug)]
pub struct TermGradPlan<T> {
    gpu: Gpu,
    term: TermPlan,
    scratch: Scratch,
    kernels: [Kernel<TermGradArgs>; 5],
    element: std::marker::PhantomData<T>,
}

on_stream! { TermGradPlan { gpu; scratch } }

impl<T: Scalar> TermGradPlan<T> {
    /// Uploads what the term looks up and loads the kernels. `max_shape` is that of the largest call.
    ///
    /// # Errors
    /// If the term is refused or reads no numbers, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, term: &Term, max_shape: Logits) -> Result<Self> {
        term.check_has_numbers()?;
        max_shape.check_sizes("max_shape")?;
        let term = TermPlan::new(gpu, term)?;
        let scratch = Scratch::new(gpu, BLOCKS, most(&term.term, &max_shape)?)?;
        let kernels = gpu.load::<T, _, 5>(TERM_GRAD)?;
        Ok(Self { gpu: gpu.clone(), term, scratch, kernels, element: std::marker::PhantomData })
    }

    /// Writes the gradient of the numbers: `factor` times the sum over every pair that reads one. Of
    /// [`Index::Endpoints`](crate::bias::Index) that of the queries' ends.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `[batch, heads, queries, keys]` | the gradient of every logit after the bias |
    /// | `inputs` | | [`Places`](crate::Places), or [`BiasInputs`] with the gates that multiplied the bias, and in `terms` the given indices or coordinates of the term, without numbers |
    /// | `factor` | | what turns `grad` into the bias's: 1; or `1 / scale` where it is the logits' own. The term's own factor comes on top |
    /// | `numbers` | | layout of `out`; a size of 1 sums over that dimension. Endpoints have one entry: a second float has the same gradient |
    /// | `out` | `numbers` | written |
    ///
    /// # Accuracy
    /// [`TermGrad::error_bound`](crate::bias::TermGrad::error_bound). The same bits on every device, and for every layout of `grad` and
    /// `out`.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `out`, elements of `out` overlap, its sizes are
    /// not those of the term's numbers, or the call needs more scratch memory than one of `max_shape`. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::{Numbers, Term, TermGradPlan, Window};
    /// use posenc::{Gpu, Logits, Places};
    ///
    /// // Swin's table of 169 entries for 3 heads, from 64 windows of 7 x 7 tokens.
    /// let gpu = Gpu::open(0)?;
    /// let shape = Logits::bhqk(64, 3, 49, 49);
    /// let plan = TermGradPlan::<half::bf16>::new(&gpu, &Term::table(Window::swin(7, 7)), shape)?;
    /// let grad = gpu.stream().alloc_zeros(64 * 3 * 49 * 49)?;
    /// let mut table = gpu.stream().alloc_zeros(169 * 3)?;
    /// plan.apply(shape.of(&grad), Places::counted(0, 0), 1.0, Numbers::table(169, 3), &mut table)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<'a>(
        &'a self,
        grad: View<'a, T, Logits>,
        inputs: impl Into<BiasInputs<'a>>,
        factor: f32,
        numbers: Numbers,
        out: Write<'a, f32>,
    ) -> Result<()> {
        self.run(Of::Numbers, grad, inputs.into(), factor, (numbers, out))
    }

    /// [`TermGradPlan::apply`] for the keys' ends of [`Index::Endpoints`](crate::bias::Index), whose numbers are subtracted.
    ///
    /// # Errors
    /// As [`TermGradPlan::apply`]; and if the term is no difference of endpoints.
    pub fn apply_keys<'a>(
        &'a self,
        grad: View<'a, T, Logits>,
        inputs: impl Into<BiasInputs<'a>>,
        factor: f32,
        numbers: Numbers,
        out: Write<'a, f32>,
    ) -> Result<()> {
        self.run(Of::KeyNumbers, grad, inputs.into(), factor, (numbers, out))
    }

    fn run<'a>(
        &'a self,
        of: Of,
        grad: View<'a, T, Logits>,
        inputs: BiasInputs<'a>,
        factor: f32,
        (numbers, out): (Numbers, Write<'a, f32>),
    ) -> Result<()> {
        let term = &self.term.term;
        let mut call = self.gpu.call();
        let grad = call.view("grad", grad)?;
        let shape = &grad.shape;
        rows(shape)?;
        let own = match inputs.terms {
            [] => DeviceTermInputs::default(),
            [own] => *own,
            more => {
                return Err(Error::Value(format!(
                    "the call brings inputs of {} terms, the gradient is of one",
                    more.len()
                )));
            }
        };
        term.check_grad_inputs(&own)?;
        let bias = hold_places(&mut call, shape, &inputs)?;
        let index = self.term.hold_index(&mut call, shape, &inputs.places, &own)?;
        term.check_grad_numbers(of, &numbers, shape)?;
        let out = call.view_mut("out", numbers.of_mut(out))?;
        let form = Form::of(term, of, &numbers, shape);
        let numbers = form.rows(term, numbers);
        let cut = Cut::of(form, shape, &numbers)?;
        let (queries, keys) = (shape.queries, shape.keys);
        self.scratch.check(cut.sums, || format!("a call of {queries} queries and {keys} keys"))?;
        let (counters, sums) = call.scratch(&self.scratch)?;
        if numbers.elements()? == 0 {
            return Ok(());
        }
        let mut args = TermGradArgs {
            call: BiasGradArgs {
                bias,
                grad: grad.at,
                sums,
                counters,
                out: out.at,
                strides: shape.strides.map(|stride| stride as i64),
                rows: small("rows", cut.rows)?,
                splits: small("parts", cut.parts)?,
                aligned: u32::from(widest(grad.steps) == 16),
                factor: (term.grad_factor(of) * f64::from(factor)) as f32,
                ..BiasGradArgs::zeroed()
            },
            term: index,
            out_strides: strides(&numbers),
            by_parts: Divisor::new(cut.parts as u32),
            heads: small("heads", numbers.heads)?,
            members: small("members", cut.members[0])?,
            head_members: small("heads", cut.members[1])?,
            entries: small("entries", numbers.entries)?,
            chunk: small("entries", cut.bins.chunk)?,
            chunks: small("chunks", cut.bins.chunks)?,
            items: small("items", cut.items)?,
            keys: small("keys", cut.bins.keys)?,
            key_blocks: small("blocks", cut.key_blocks)?,
            space: small("numbers", warp_space(cut.bins.chunk))?,
            left: small("numbers", cut.bins.left(cut.form))?,
            out_aligned: u32::from(widest(out.steps) == 16 && numbers.strides[3] == 1),
            ..TermGradArgs::zeroed()
        };
        // A call without queries sums nothing; no kernel divides by 0.
        args.call.bias.queries = args.call.bias.queries.max(1);
        let [table, queries, keys, columns, whole] = &self.kernels;
        let kernel = match cut.form {
            Form::Table => table,
            Form::Queries => queries,
            Form::Keys => keys,
            Form::Columns => columns,
            Form::Whole => whole,
        };
        call.launch(kernel, &cut.launch(args)?)
    }
}

/// The most partial sums of calls up to `max_shape`, whatever the layout of the numbers.
fn most(term: &Term, max_shape: &Logits) -> Result<usize> {
    let entries = term.entries().max(1);
    let of = |form: Form| Bins::of(form, entries).most(form, max_shape);
    match (&term.index, term.by) {
        (Index::Whole | Index::Endpoints, _) => Ok(of(Form::Table)?.max(of(Form::Columns)?)),
        (_, By::Table) => of(Form::Table),
        (_, By::Queries) => Ok(0),
        (_, By::Keys) => of(Form::Keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bias::{Distances, Window};

    /// Layouts of the numbers that a term of a call may have.
    fn layouts(term: &Term, shape: &Logits) -> Vec<(Of, Numbers)> {
        let Logits { batch, heads, queries, keys, .. } = *shape;
        let entries = term.entries();
        let rows = match (&term.index, term.by) {
            (Index::Whole, _) => vec![(queries, keys), (1, keys), (queries, 1), (1, 1)],
            (Index::Endpoints, _) | (_, By::Queries) => vec![(queries, entries.max(1))],
            (_, By::Keys) => vec![(keys, entries)],
            (_, By::Table) => vec![(1, entries)],
        };
        let mut all = Vec::new();
        for (batch, heads) in [(batch, heads), (1, heads), (batch, 1), (1, 1)] {
            let of = |&(rows, entries): &(usize, usize)| (Of::Numbers, Numbers::rows(batch, heads, rows, entries));
            all.extend(rows.iter().map(of));
            if matches!(term.index, Index::Endpoints) {
                all.push((Of::KeyNumbers, Numbers::rows(batch, heads, keys, 1)));
            }
        }
        // Refused before.
        all.retain(|(_, numbers)| numbers.entries > 0);
        all
    }

    fn terms() -> Vec<Term> {
        vec![
            Term::whole(),
            Term::endpoints(),
            Term::table(Window::swin(7, 7)),
            Term::table(Window::beit(32, 32)),
            Term::queries(Distances::shaw(64, 8)),
            Term::keys(Distances::shaw(6, 3)),
            Term::keys(Distances::bert(512)),
            Term::table(Distances::bert(20_000)),
        ]
    }

    /// Every row of grad belongs to one part, and every block has one.
    fn check(cut: &Cut, shape: &Logits) {
        let warps = if cut.form == Form::Table { cut.bins.warps } else { 1 };
        let (part, all) = (cut.rows * warps, cut.members[0] * shape.queries);
        assert!(part * cut.parts >= all && (cut.parts == 1 || part * (cut.parts - 1) < all), "{cut:?} {shape:?}");
        assert!(cut.bins.chunk * cut.bins.chunks >= 1 && cut.bins.shared(cut.form) <= 4 * SPACE, "{cut:?}");
        assert!(cut.parts == 1 || cut.items * cut.parts <= BLOCKS, "{cut:?}");
    }

    #[test]
    fn a_plan_has_scratch_memory_for_every_call_up_to_its_largest() {
        let largest = Logits::bhqk(64, 12, 600, 1200);
        for term in terms() {
            let most = most(&term, &largest).unwrap();
            for batch in [0, 1, 2, 3, 17, 64] {
                for (heads, queries, keys) in
                    [(1, 0, 9), (1, 1, 1), (3, 49, 49), (12, 600, 1), (1, 600, 1200), (12, 257, 0)]
                {
                    let shape = Logits::bhqk(batch, heads, queries, keys);
                    for (of, numbers) in layouts(&term, &shape) {
                        let form = Form::of(&term, of, &numbers, &shape);
                        let cut = Cut::of(form, &shape, &form.rows(&term, numbers)).unwrap();
                        check(&cut, &shape);
                        assert!(cut.sums <= most, "{most} {term:?} {shape:?} {cut:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn long_rows_of_grad_and_few_outputs_are_shared_by_many_blocks() {
        // Swin's first stage, 64 windows of 56 x 56 tokens of each of 8 images.
        let shape = Logits::bhqk(512, 3, 49, 49);
        let cut = Cut::of(Form::Table, &shape, &Numbers::table(169, 3)).unwrap();
        assert_eq!((cut.items, cut.bins.warps, cut.bins.chunks), (3, 8, 1));
        assert!((128..=170).contains(&cut.parts), "{cut:?}");
    }
}
