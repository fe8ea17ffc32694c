//! A bias as a sum of terms: each reads one number of an array, chosen by query and key.
//!
//! ```text
//! bias(b, h, i, j) = sum over terms of factor * values[b, h, i or j, entry(i, j)]
//! ```

mod distances;
mod grad;
#[cfg(feature = "cuda")]
pub(super) mod plan;
mod window;

pub use distances::{Distances, Outside, Sign};
pub use grad::TermGrad;
#[cfg(feature = "cuda")]
pub use grad::TermGradPlan;
#[cfg(feature = "cuda")]
pub use plan::AnyNumbers;
pub use window::{Coordinates, ShiftedWindows, Window, WindowAxes};

#[cfg(feature = "cuda")]
use crate::gpu::Read;
use crate::position::{LIMIT, Place, Places};
use crate::shape::{Numbers, Shape};
use crate::{Error, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// The most terms of a bias.
pub const MOST_TERMS: usize = 4;

/// What decides which number a term reads.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Index {
    /// query and key themselves: a dense bias, any dimension of which may be 1 (AlphaFold's pair bias)
    Whole,
    /// their distance
    Distance(Distances),
    /// their coordinates in a window
    Window(Window),
    /// whether a shifted window has them in two regions; such a term reads no numbers, its factor is added
    Shifted(ShiftedWindows),
    /// an index for each pair of positions, `[batch or 1, rows, columns]`, into `entries` numbers: Graphormer
    Given {
        /// positions of queries that have a row
        rows: usize,
        /// positions of keys that have a column
        columns: usize,
        /// numbers of a table
        entries: usize,
    },
    /// a number of the query less one of the key: Forgetting Transformer, Cable, data-dependent ALiBi
    Endpoints,
}

/// The rows of a term's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum By {
    /// none: a table that all queries and keys read
    #[default]
    Table,
    /// a row for each query: products of the queries' states and a table
    Queries,
    /// a row for each key: products of the keys' states and a table
    Keys,
}

/// One term of a bias: what is read, without the numbers.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#terms).
///
/// | field | meaning |
/// |---|---|
/// | `index` | which entry a query and a key read |
/// | `by` | whether the entries are of a table, or of each query's or key's own row. [`Index::Whole`] has rows of queries whose entries are keys |
/// | `factor` | multiplies the number; what [`Index::Shifted`] adds |
///
/// | encoding | term |
/// |---|---|
/// | Swin, BEiT, MaxViT, LeViT | `Term::table(Window::swin(7, 7))` |
/// | Swin's mask | `Term::shifted(windows, -100.0)` |
/// | Shaw, Transformer-XL, Conformer, Inkling | `Term::queries(Distances::shaw(64, 8))` |
/// | DeBERTa | `Term::queries(deberta.clone())` and `Term::keys(deberta)` |
/// | SAM, MViTv2 | `Term::queries(Window::decomposed(h, w, axes))` for each axis |
/// | LayoutLMv2 | `Term::table(Distances { lookup, .. })` for each axis, with coordinates in place of positions |
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Term {
    /// which entry
    pub index: Index,
    /// whose rows
    pub by: By,
    /// multiplies the number
    pub factor: f32,
}

impl From<Distances> for Index {
    fn from(distances: Distances) -> Self {
        Self::Distance(distances)
    }
}

impl From<Window> for Index {
    fn from(window: Window) -> Self {
        Self::Window(window)
    }
}

impl Term {
    /// A number of a table.
    pub fn table(index: impl Into<Index>) -> Self {
        Self { index: index.into(), by: By::Table, factor: 1.0 }
    }

    /// A number of each query's own row.
    pub fn queries(index: impl Into<Index>) -> Self {
        Self { by: By::Queries, ..Self::table(index) }
    }

    /// A number of each key's own row.
    pub fn keys(index: impl Into<Index>) -> Self {
        Self { by: By::Keys, ..Self::table(index) }
    }

    /// The mask of shifted windows: `masked` is -100 or -inf.
    pub const fn shifted(windows: ShiftedWindows, masked: f32) -> Self {
        Self { index: Index::Shifted(windows), by: By::Table, factor: masked }
    }

    /// A number for each query and key.
    pub const fn whole() -> Self {
        Self { index: Index::Whole, by: By::Table, factor: 1.0 }
    }

    /// A number of the query less one of the key.
    pub const fn endpoints() -> Self {
        Self { index: Index::Endpoints, by: By::Table, factor: 1.0 }
    }

    /// Refuses an index of its own rules, rows where an index has none, and a factor that is NaN, or infinite where it multiplies.
    ///
    /// # Errors
    /// [`Error::Value`] with the rule and the numbers.
    pub fn check(&self) -> Result<()> {
        match &self.index {
            Index::Distance(distances) => distances.check()?,
            Index::Window(window) => window.check()?,
            Index::Shifted(windows) => windows.check()?,
            Index::Given { rows, columns, entries } => {
                let most = 1 << 30;
                if [rows, columns, entries].iter().any(|&&n| n == 0 || n > most) {
                    return Err(Error::Value(format!(
                        "given indices are {rows} x {columns} into {entries} entries, all three must be at least 1 and within 2^30"
                    )));
                }
            }
            Index::Whole | Index::Endpoints => {}
        }
        let rows = matches!(self.index, Index::Distance(_) | Index::Window(_) | Index::Given { .. });
        if self.by != By::Table && !rows {
            return Err(Error::Value(format!("a term by {} has no rows of {:?}", self.name(), self.by)));
        }
        let masks = matches!(self.index, Index::Shifted(_)) && self.factor == f32::NEG_INFINITY;
        if !self.factor.is_finite() && !masks {
            return Err(Error::Value(format!("the factor of a term is {}, it must be finite", self.factor)));
        }
        Ok(())
    }

    /// Refuses numbers of other sizes than the term and the call have.
    fn check_numbers(&self, numbers: &Numbers, shape: &Logits) -> Result<()> {
        let (rows, entries) = match (&self.index, self.by) {
            (Index::Whole, _) => (Some(shape.queries), shape.keys),
            (_, By::Table) => (None, self.entries()),
            (_, By::Queries) => (Some(shape.queries), self.entries()),
            (_, By::Keys) => (Some(shape.keys), self.entries()),
        };
        let fits = |size: usize, of: usize| size == 1 || size == of;
        let whole = matches!(self.index, Index::Whole);
        let rows_fit = if whole { fits(numbers.rows, shape.queries) } else { numbers.rows == rows.unwrap_or(1) };
        let entries_fit = numbers.entries == entries || (whole && numbers.entries == 1);
        if fits(numbers.batch, shape.batch) && fits(numbers.heads, shape.heads) && rows_fit && entries_fit {
            return Ok(());
        }
        let or_one = if whole { " or 1" } else { "" };
        Err(Error::Value(format!(
            "the numbers of a term are [{}, {}, {}, {}], they must be [{} or 1, {} or 1, {}{or_one}, {entries}{or_one}]",
            numbers.batch,
            numbers.heads,
            numbers.rows,
            numbers.entries,
            shape.batch,
            shape.heads,
            rows.unwrap_or(1),
        )))
    }

    /// Refuses ends of another size, or of more floats than `floats`.
    fn check_ends(name: &str, numbers: &Numbers, shape: &Logits, [rows, floats]: [usize; 2]) -> Result<()> {
        let fits = |size: usize, of: usize| size == 1 || size == of;
        if fits(numbers.batch, shape.batch)
            && fits(numbers.heads, shape.heads)
            && numbers.rows == rows
            && (1..=floats).contains(&numbers.entries)
        {
            return Ok(());
        }
        let floats = if floats == 1 { "1" } else { "1 or 2" };
        Err(Error::Value(format!(
            "{name} are [{}, {}, {}, {}], they must be [{} or 1, {} or 1, {rows}, {floats}]",
            numbers.batch, numbers.heads, numbers.rows, numbers.entries, shape.batch, shape.heads
        )))
    }

    /// Numbers of a row, 0 where the index has no array of entries.
    fn entries(&self) -> usize {
        match &self.index {
            Index::Distance(distances) => distances.entries,
            Index::Window(window) => window.entries(),
            Index::Given { entries, .. } => *entries,
            Index::Whole | Index::Shifted(_) | Index::Endpoints => 0,
        }
    }

    /// Refuses what the call brings and the term does not read, and the reverse.
    fn check_inputs<N, U8, U16, I32>(&self, inputs: &TermData<N, U8, U16, I32>) -> Result<()> {
        let reads_numbers = !matches!(self.index, Index::Shifted(_));
        self.check_input("numbers", inputs.numbers.is_some(), Some(reads_numbers))?;
        self.check_input("key_numbers", inputs.key_numbers.is_some(), Some(matches!(self.index, Index::Endpoints)))?;
        self.check_other_inputs(inputs)
    }

    /// [`Term::check_inputs`] of what decides the entry.
    fn check_other_inputs<N, U8, U16, I32>(&self, inputs: &TermData<N, U8, U16, I32>) -> Result<()> {
        let places = matches!(self.index, Index::Distance(_) | Index::Window(_) | Index::Given { .. });
        self.check_input("indices", inputs.indices.is_some(), Some(matches!(self.index, Index::Given { .. })))?;
        self.check_input("query_at", inputs.query_at.is_some(), (!places).then_some(false))?;
        self.check_input("key_at", inputs.key_at.is_some(), (!places).then_some(false))
    }

    /// `wanted`: whether there must be one, or `None` where there may.
    fn check_input(&self, what: &str, there: bool, wanted: Option<bool>) -> Result<()> {
        match wanted {
            Some(true) if !there => {
                Err(Error::Value(format!("a term by {} needs {what}, there are none", self.name())))
            }
            Some(false) if there => Err(Error::Value(format!("a term by {} reads no {what}", self.name()))),
            _ => Ok(()),
        }
    }

    /// The index in words.
    const fn name(&self) -> &'static str {
        match self.index {
            Index::Whole => "query and key",
            Index::Distance(_) => "distance",
            Index::Window(_) => "coordinates",
            Index::Shifted(_) => "shifted windows",
            Index::Given { .. } => "given indices",
            Index::Endpoints => "endpoints",
        }
    }

    /// Refuses positions beyond a window, as far as the host can tell, and sequences that are no whole images.
    fn check_places<A>(&self, shape: &Logits, places: &Places<A>, own: [bool; 2]) -> Result<()> {
        if let Index::Shifted(windows) = &self.index
            && !shape.batch.is_multiple_of(windows.windows())
        {
            return Err(Error::Value(format!(
                "the call has {} sequences, shifted windows come in images of {}",
                shape.batch,
                windows.windows()
            )));
        }
        let (queries, keys) = match &self.index {
            Index::Window(window) => (window.queries(), window.keys()),
            Index::Shifted(windows) => (windows.tokens(), windows.tokens()),
            Index::Given { rows, columns, .. } => (*rows, *columns),
            _ => return Ok(()),
        };
        let own_lengths = places.packed.is_some() || places.query_lengths.is_some() || places.key_lengths.is_some();
        let check = |what: &str, start: i64, count: usize, most: usize| {
            if count == 0 || (start >= 0 && start + count as i64 <= most as i64) {
                return Ok(());
            }
            Err(Error::Value(format!(
                "the call has {what} at positions {start} to {}, a term by {} has {most}",
                start + count as i64 - 1,
                self.name()
            )))
        };
        if let (Place::Counted(start), false, false) = (&places.keys, own[1], own_lengths) {
            check("keys", *start, shape.keys, keys)?;
        }
        match places.queries {
            Place::Counted(start) if !own[0] && !own_lengths => check("queries", start, shape.queries, queries),
            Place::BottomRight if !own[0] && !own_lengths => {
                check("queries", shape.keys as i64 - shape.queries as i64, shape.queries, queries)
            }
            _ => Ok(()),
        }
    }
}

/// Refuses another count of terms than 1 to [`MOST_TERMS`], and terms that are refused themselves.
pub(crate) fn check_terms(terms: &[Term]) -> Result<()> {
    if terms.is_empty() || terms.len() > MOST_TERMS {
        return Err(Error::Value(format!("a bias has {} terms, there must be 1 to {MOST_TERMS}", terms.len())));
    }
    terms.iter().try_for_each(Term::check)
}

/// Refuses inputs of another count of terms.
fn check_count(terms: usize, inputs: usize) -> Result<()> {
    if terms == inputs {
        return Ok(());
    }
    Err(Error::Value(format!("the call brings inputs of {inputs} terms, the bias has {terms}")))
}

// ---------------------------------------------------------------------------------------------------------------- call

/// Indices of a term, one for each query and key: slices on the CPU, buffers on the device.
#[derive(Clone, Copy)]
pub enum Indices<U8, U16, I32> {
    /// 8 bits
    U8(U8),
    /// 16 bits
    U16(U16),
    /// 32 bits
    I32(I32),
}

/// What one term of a call reads: [`TermInputs`] on the CPU, [`DeviceTermInputs`] on the device.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `numbers` | [`Numbers`] | the array; [`Index::Endpoints`]: of the queries, `[batch or 1, heads or 1, queries, 1 or 2]`, the second entry a second float |
/// | `key_numbers` | [`Numbers`] | [`Index::Endpoints`]: of the keys |
/// | `indices` | `[batch or 1, rows, columns]` | [`Index::Given`]: an index that the array does not hold gives nothing |
/// | `query_at`, `key_at` | `[batch, queries]`, `[batch, keys]` | coordinates in place of positions: LayoutLM's boxes. Those outside -2^30 to 2^30 - 1 count as the nearest inside |
///
/// A query or key reads its own row by its place in the tensor of the call; distances, windows and given indices go by position.
#[derive(Clone, Copy)]
pub struct TermData<N, U8, U16, I32> {
    /// the array
    pub numbers: Option<N>,
    /// the keys' ends
    pub key_numbers: Option<N>,
    /// an index for each pair
    pub indices: Option<Indices<U8, U16, I32>>,
    /// coordinates of the queries
    pub query_at: Option<I32>,
    /// coordinates of the keys
    pub key_at: Option<I32>,
}

/// [`TermData`] on the CPU: numbers are f32 with their shape.
pub type TermInputs<'a> = TermData<(&'a [f32], Numbers), &'a [u8], &'a [u16], &'a [i32]>;
/// [`TermData`] on the device: numbers are views of f32 or of the logits' type.
#[cfg(feature = "cuda")]
pub type DeviceTermInputs<'a> = TermData<AnyNumbers<'a>, Read<'a, u8>, Read<'a, u16>, Read<'a, i32>>;

impl<N, U8, U16, I32> Default for TermData<N, U8, U16, I32> {
    fn default() -> Self {
        Self { numbers: None, key_numbers: None, indices: None, query_at: None, key_at: None }
    }
}

impl<U8, U16, I32> std::fmt::Debug for Indices<U8, U16, I32> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::U8(_) => "U8",
            Self::U16(_) => "U16",
            Self::I32(_) => "I32",
        })
    }
}

impl<N: std::fmt::Debug, U8, U16, I32> std::fmt::Debug for TermData<N, U8, U16, I32> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("TermData");
        debug.field("numbers", &self.numbers).field("key_numbers", &self.key_numbers).field("indices", &self.indices);
        debug.field("query_at", &self.query_at.is_some()).field("key_at", &self.key_at.is_some()).finish()
    }
}

impl<N, U8, U16, I32> TermData<N, U8, U16, I32> {
    /// An array, and nothing else.
    pub fn of(numbers: impl Into<N>) -> Self {
        Self { numbers: Some(numbers.into()), ..Self::default() }
    }
}

/// Terms and what they read: [`Bias::Terms`](crate::Bias::Terms) on the CPU.
///
/// ```
/// use posenc::bias::{Numbers, Term, TermInputs, Terms, Window};
/// use posenc::{Bias, Logits, Places};
/// // A window of 1 x 2 tokens, whose table has an entry for each of the differences -1, 0 and 1 of query and key; one head.
/// let terms = [Term::table(Window::swin(1, 2))];
/// let inputs = [TermInputs::of((&[0.5f32, 1.0, 2.0][..], Numbers::table(3, 1)))];
/// let mut bias = [0.0f32; 4];
/// let terms = Terms { terms: &terms, inputs: &inputs };
/// Bias::Terms(terms).write(&mut bias, &Logits::bhqk(1, 1, 2, 2), &Places::counted(0, 0))?;
/// assert_eq!(bias, [1.0, 0.5, 2.0, 1.0]);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// what is read
    pub terms: &'a [Term],
    /// of each term
    pub inputs: &'a [TermInputs<'a>],
}

/// A query and a key: where they lie in the tensor, and their positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub batch: usize,
    pub head: usize,
    pub query: usize,
    pub key: usize,
    /// position of the query, and of the key
    pub at: [i64; 2],
}

impl Pair {
    /// By their place in the tensor.
    pub(crate) fn of(shape: &Logits, places: &Places<&[i32]>, [batch, head, query]: [usize; 3], key: usize) -> Self {
        let at = [places.query(shape, batch, query), places.key(shape, batch, key)];
        Self { batch, head, query, key, at }
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl TermInputs<'_> {
    fn check(&self, term: &Term, shape: &Logits, places: &Places<&[i32]>) -> Result<()> {
        term.check_inputs(self)?;
        self.check_index(term, shape, places)?;
        if let Some((values, numbers)) = &self.numbers {
            numbers.check("the numbers of a term", values.len())?;
            if matches!(term.index, Index::Endpoints) {
                Term::check_ends("the queries' ends", numbers, shape, [shape.queries, 2])?;
            } else {
                term.check_numbers(numbers, shape)?;
            }
        }
        if let Some((values, numbers)) = &self.key_numbers {
            numbers.check("the keys' ends", values.len())?;
            Term::check_ends("the keys' ends", numbers, shape, [shape.keys, 2])?;
        }
        Ok(())
    }

    /// The part of the check that is not about numbers.
    fn check_index(&self, term: &Term, shape: &Logits, places: &Places<&[i32]>) -> Result<()> {
        term.check_places(shape, places, [self.query_at.is_some(), self.key_at.is_some()])?;
        for (name, at, size) in [("query_at", self.query_at, shape.queries), ("key_at", self.key_at, shape.keys)] {
            let need = shape.batch.saturating_mul(size);
            if let Some(at) = at
                && at.len() < need
            {
                return Err(Error::Length { name, got: at.len(), need });
            }
        }
        if let (Some(indices), Index::Given { rows, columns, .. }) = (&self.indices, &term.index) {
            shared_indices(indices.len(), shape, *rows, *columns)?;
        }
        Ok(())
    }

    /// What a term adds.
    fn value(&self, term: &Term, shape: &Logits, pair: &Pair) -> f64 {
        let Pair { batch, head, query, key, .. } = *pair;
        let row = match term.by {
            By::Table => 0,
            By::Queries => query,
            By::Keys => key,
        };
        let number = |entry: Option<usize>| {
            let (Some((values, numbers)), Some(entry)) = (&self.numbers, entry) else { return 0.0 };
            f64::from(values[numbers.shared_index(batch, head, row, entry)])
        };
        let factor = f64::from(term.factor);
        let end = |of: &Option<(&[f32], Numbers)>, row: usize| {
            of.as_ref().map_or(0.0, |(values, numbers)| {
                let float = |entry| f64::from(values[numbers.shared_index(batch, head, row, entry)]);
                (0..numbers.entries).map(float).sum::<f64>()
            })
        };
        match &term.index {
            Index::Whole => self.numbers.as_ref().map_or(0.0, |(values, numbers)| {
                factor * f64::from(values[numbers.shared_index(batch, head, query, key)])
            }),
            Index::Distance(_) | Index::Window(_) | Index::Given { .. } => {
                factor * number(self.entry(term, shape, pair))
            }
            Index::Shifted(windows) => {
                let at = self.at(shape, pair);
                if windows.apart(batch, at[0], at[1]) { factor } else { 0.0 }
            }
            Index::Endpoints => factor * (end(&self.numbers, query) - end(&self.key_numbers, key)),
        }
    }

    /// Positions of a query and a key, or their coordinates.
    fn at(&self, shape: &Logits, pair: &Pair) -> [i64; 2] {
        let Pair { batch, query, key, at, .. } = *pair;
        let coordinate = |own: Option<&[i32]>, size: usize, index: usize, position: i64| {
            own.map_or(position, |own| i64::from(own[batch * size + index]).clamp(-LIMIT, LIMIT - 1))
        };
        [coordinate(self.query_at, shape.queries, query, at[0]), coordinate(self.key_at, shape.keys, key, at[1])]
    }

    /// The entry of a query and a key in their row; `None`: nothing is added. Endpoints have rows of one entry.
    fn entry(&self, term: &Term, shape: &Logits, pair: &Pair) -> Option<usize> {
        let at = self.at(shape, pair);
        match &term.index {
            Index::Whole => Some(pair.key),
            Index::Distance(distances) => distances.entry(at[0], at[1]),
            Index::Window(window) => window.entry(at[0], at[1]),
            Index::Shifted(_) => None,
            Index::Given { rows, columns, entries } => self.given([*rows, *columns, *entries], pair.batch, at),
            Index::Endpoints => Some(0),
        }
    }

    /// The given index of two positions, if the array holds it.
    fn given(&self, [rows, columns, entries]: [usize; 3], batch: usize, at: [i64; 2]) -> Option<usize> {
        let row = usize::try_from(at[0]).ok().filter(|&row| row < rows)?;
        let column = usize::try_from(at[1]).ok().filter(|&column| column < columns)?;
        let indices = self.indices?;
        let own = if indices.len() == rows * columns { 0 } else { batch };
        let index = (own * rows + row) * columns + column;
        let entry = match indices {
            Indices::U8(indices) => i64::from(indices[index]),
            Indices::U16(indices) => i64::from(indices[index]),
            Indices::I32(indices) => i64::from(indices[index]),
        };
        usize::try_from(entry).ok().filter(|&entry| entry < entries)
    }
}

impl Indices<&[u8], &[u16], &[i32]> {
    const fn len(&self) -> usize {
        match self {
            Self::U8(indices) => indices.len(),
            Self::U16(indices) => indices.len(),
            Self::I32(indices) => indices.len(),
        }
    }
}

/// True if all sequences share `len` given indices, false if each has its own. Refuses other lengths.
fn shared_indices(len: usize, shape: &Logits, rows: usize, columns: usize) -> Result<bool> {
    let one = crate::shape::product("rows x columns", &[rows, columns])?;
    let all = crate::shape::product("batch x rows x columns", &[shape.batch, rows, columns])?;
    if len == one || len == all {
        return Ok(len == one);
    }
    Err(Error::Value(format!(
        "there are {len} given indices, {rows} x {columns} are {one}, for {} sequences {all}",
        shape.batch
    )))
}

impl Terms<'_> {
    /// Refuses terms or inputs that do not go together, or that do not fit the call.
    pub(crate) fn check(&self, shape: &Logits, places: &Places<&[i32]>) -> Result<()> {
        check_terms(self.terms)?;
        check_count(self.terms.len(), self.inputs.len())?;
        self.terms.iter().zip(self.inputs).try_for_each(|(term, inputs)| inputs.check(term, shape, places))
    }

    /// The bias of a pair.
    pub(crate) fn value(&self, shape: &Logits, pair: &Pair) -> f64 {
        self.terms.iter().zip(self.inputs).map(|(term, inputs)| inputs.value(term, shape, pair)).sum()
    }

    /// The largest error of a kernel's sum of terms in f32: of each term one rounding of the product's sum and, for endpoints,
    /// three of the difference:
    ///
    /// ```text
    /// 2^-24 * (count of terms + 3) * sum over terms of |term|
    /// ```
    ///
    /// A single term with a factor of 1 that is no difference has none.
    pub(crate) fn error_bound(&self, shape: &Logits, pair: &Pair) -> f64 {
        if let ([Term { index, factor: 1.0, .. }], [_]) = (self.terms, self.inputs)
            && !matches!(index, Index::Endpoints)
        {
            return 0.0;
        }
        let size = |(term, inputs): (&Term, &TermInputs)| {
            let value = inputs.value(term, shape, pair).abs();
            let second = match (&term.index, &inputs.numbers) {
                // The second floats may be larger than the difference.
                (Index::Endpoints, Some((_, numbers))) if numbers.entries == 2 => inputs.second(pair),
                _ => 0.0,
            };
            value + second * f64::from(term.factor).abs()
        };
        let sizes = self.terms.iter().zip(self.inputs).map(size).filter(|size| size.is_finite());
        f32::ROUNDOFF * (self.terms.len() as f64 + 3.0) * sizes.sum::<f64>()
    }
}

impl TermInputs<'_> {
    /// The sizes of the second floats of both ends.
    fn second(&self, pair: &Pair) -> f64 {
        let of = |numbers: &Option<(&[f32], Numbers)>, row: usize| {
            numbers.as_ref().filter(|(_, numbers)| numbers.entries == 2).map_or(0.0, |(values, numbers)| {
                f64::from(values[numbers.shared_index(pair.batch, pair.head, row, 1)]).abs()
            })
        };
        of(&self.numbers, pair.query) + of(&self.key_numbers, pair.key)
    }
}
