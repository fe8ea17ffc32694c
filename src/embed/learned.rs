//! Learned tables: rows of a token table, a position table and a type table are gathered, added and normalised.
//!
//! ```text
//! v[t]   = token[id[t]] * scale + position[row(t)] + type[kind[t]]
//! out[t] = v[t],  (v - mean) / sqrt(variance + eps) * gain + bias,  or  v / sqrt(mean square + eps) * gain
//! ```

use std::marker::PhantomData;

use bytemuck::Zeroable;
use cudarc::driver::CudaSlice;

use crate::embed::launch::{alignment, held_room, small, width};
use crate::embed::sinusoid::check_scale;
use crate::embed::tokens::at_least;
use crate::embed::{Tokens, cpu};
use crate::gpu::args::{In, LearnedArgs, Out};
use crate::gpu::{Function, Held, Launch, Read, Write};
use crate::positions::Resolved;
use crate::shape::product;
use crate::{Error, Gpu, Ids, Positions, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Which row of the position table a token reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// `position + offset`: 0 in GPT-2, BERT and ViT, 2 in BART.
    Offset(i64),
    /// Tokens that are no padding are counted in each sequence: the first reads row `first`, the next `first + 1`.
    /// Padding reads row `padded`.
    ///
    /// | model | `padding` | `first` | `padded` |
    /// |---|---|---|---|
    /// | RoBERTa, XLM-R, MPNet, ESM with padding id p | `Some(p)` | `p + 1` | `p` |
    /// | OPT | `None` | 2 | 1 |
    /// | GPT-2 padded on the left | `None` | 0 | 0; 1 before transformers 5 |
    Kept {
        /// the id that is padding; `None` asks the mask
        padding: Option<i64>,
        /// row of a sequence's first token
        first: i64,
        /// row of padding
        padded: i64,
    },
}

/// What follows the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// `(v - mean) / sqrt(variance + eps) * gain + bias`: BERT, RoBERTa.
    Layer {
        /// added to the variance
        eps: f64,
    },
    /// `v / sqrt(mean square + eps) * gain`.
    Rms {
        /// added to the mean square
        eps: f64,
    },
}

/// A learned embedding: what to compute, without shape, element type or device.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `dim` | channels | of one row of every table |
/// | `scale` | | multiplies token rows: 1, or `sqrt(dim)` in the paper, M2M100, Marian |
/// | `rows` | | which row of the position table a token reads |
/// | `norm` | | what follows the sum |
///
/// # Source
/// "Attention Is All You Need" (arXiv 1706.03762), section 3.4; BERT (arXiv 1810.04805), figure 2.
///
/// # Example
/// ```
/// use posenc::embed::{Learned, Norm};
/// let bert = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(768) };
/// bert.check()?;
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// channels of one row of every table
    pub dim: usize,
    /// multiplies token rows
    pub scale: f64,
    /// which row of the position table a token reads
    pub rows: Rows,
    /// what follows the sum
    pub norm: Option<Norm>,
}

impl Learned {
    /// Token plus position, as in GPT-2.
    pub const fn new(dim: usize) -> Self {
        Self { dim, scale: 1.0, rows: Rows::Offset(0), norm: None }
    }

    /// Refuses `dim` 0, a `scale` that f32 does not hold, an `eps` that is not finite or below 0.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        if self.dim == 0 || self.dim > i32::MAX as usize {
            return Err(Error::Value(format!("dim is {}, it must be between 1 and 2^31 - 1", self.dim)));
        }
        check_scale(self.scale)?;
        if let Some(Norm::Layer { eps } | Norm::Rms { eps }) = self.norm
            && !(eps.is_finite() && eps >= 0.0)
        {
            return Err(Error::Value(format!("eps is {eps}, it must be finite and at least 0")));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Rows {
    /// The row of a token. `position` counts all tokens from the start of the sequence, or is the position it was given;
    /// `kept` counts the tokens before it that are no padding, those of earlier calls included; `padding` says whether it
    /// is padding itself.
    pub const fn row(self, position: i64, kept: i64, padding: bool) -> i64 {
        match self {
            Self::Offset(offset) => position.wrapping_add(offset),
            Self::Kept { padded, .. } if padding => padded,
            Self::Kept { first, .. } => first.wrapping_add(kept),
        }
    }
}

impl Learned {
    /// The largest error of an element of a sum before it is rounded to its type, from the magnitude of its terms,
    /// `magnitude = |token * scale| + |position| + |type|`: `4 * 2^-24 * magnitude`, for the roundings of `scale`, of a
    /// fused multiply-add and of a sum. A gather of one table with scale 1 is exact.
    pub fn sum_error_bound(magnitude: f64) -> f64 {
        4.0 * f32::ROUNDOFF * magnitude + 4.0 * f32::TINY
    }

    /// The largest error of a normalised element before it is rounded to its type:
    ///
    /// `|gain| (1 + |y|) (d + depth * 2^-24) + 2^-23 (|gain y| + |bias|)` with `d = depth * 2^-24 * magnitude / sigma`
    ///
    /// where `y` is the element before gain and bias, `sigma` the square root that it was divided by, `magnitude` the
    /// largest of [`Learned::sum_error_bound`] in the row, and `depth = dim / 128 + 40` bounds the additions that one
    /// value goes through. It is of first order in `d`.
    pub fn norm_error_bound(&self, y: f64, gain: f64, bias: f64, magnitude: f64, sigma: f64) -> f64 {
        let depth = (self.dim as f64 / 128.0 + 40.0) * f32::ROUNDOFF;
        let d = depth * magnitude / sigma;
        gain.abs() * (1.0 + y.abs()) * (d + depth)
            + 2.0 * f32::ROUNDOFF * ((gain * y).abs() + bias.abs())
            + 4.0 * f32::TINY
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// The tables of one call on the CPU, each `[rows, dim]` by its length; an empty one is not there.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a, T> {
    /// by token id; without it, the rows of `x` take its place
    pub token: &'a [T],
    /// by the row that [`Rows`] gives
    pub position: &'a [T],
    /// by token type
    pub types: &'a [T],
    /// `[dim]`, of the norm; ones without it
    pub gain: &'a [T],
    /// `[dim]`, of the norm; zeros without it
    pub bias: &'a [T],
}

impl<T> Default for Tables<'_, T> {
    fn default() -> Self {
        Self { token: &[], position: &[], types: &[], gain: &[], bias: &[] }
    }
}

/// What the tokens of one call are, on the CPU: each `[batch, tokens]`, or empty where nothing asks for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup<'a> {
    /// token ids
    pub ids: &'a [i64],
    /// token types
    pub types: &'a [i64],
    /// 1 for a token, 0 for padding
    pub mask: &'a [u8],
    /// positions, for [`Rows::Offset`]; counted from 0 without them
    pub positions: &'a [i64],
    /// `[batch]`, the tokens of earlier calls that were no padding, for [`Rows::Kept`]; 0 without them
    pub past: &'a [i64],
}

/// The rows that one token reads; `None` where there is no table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// of the token table
    pub token: Option<usize>,
    /// of the position table
    pub position: Option<usize>,
    /// of the type table
    pub types: Option<usize>,
}

/// The gradients of a call on the CPU, in f64: as long as the tables that they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// of the sum `v`, `[batch, tokens, dim]`
    pub sum: Vec<f64>,
    /// of the token table
    pub token: Vec<f64>,
    /// of the position table
    pub position: Vec<f64>,
    /// of the type table
    pub types: Vec<f64>,
    /// of the norm's gain
    pub gain: Vec<f64>,
    /// of the norm's bias
    pub bias: Vec<f64>,
}

/// One row before and after its norm, in f64.
pub(crate) struct Normed {
    /// before gain and bias
    pub y: Vec<f64>,
    /// what it was divided by
    pub sigma: f64,
}

impl Learned {
    /// The rows that every token reads, `[batch, tokens]`: the position rule, and the check of every id.
    ///
    /// # Errors
    /// If an id, a type or a position's row lies outside its table, or an array that is asked for has another length than
    /// `batch * tokens`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Learned, Lookup, Rows, Tables};
    /// // RoBERTa's positions with padding id 1.
    /// let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    /// let learned = Learned { rows, ..Learned::new(1) };
    /// let tables = Tables { token: &[0.0f32; 9], position: &[0.0; 8], ..Tables::default() };
    /// let lookup = Lookup { ids: &[5, 6, 1, 7, 1], ..Lookup::default() };
    /// let rows = learned.rows(1, 5, &tables, &lookup)?;
    /// let positions: Vec<_> = rows.iter().filter_map(|row| row.position).collect();
    /// assert_eq!(positions, [2, 3, 1, 4, 1]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rows<T: Scalar>(
        &self,
        batch: usize,
        tokens: usize,
        tables: &Tables<'_, T>,
        lookup: &Lookup<'_>,
    ) -> Result<Vec<Row>> {
        self.check()?;
        let all = product("batch x tokens", &[batch, tokens])?;
        let exact = |name: &'static str, got: usize, wanted: bool, need: usize| {
            if wanted && got != need {
                return Err(Error::Value(format!("{name} holds {got} elements, the call needs {need}")));
            }
            Ok(())
        };
        let kept = match self.rows {
            Rows::Kept { padding, .. } if !tables.position.is_empty() => Some(padding),
            _ => None,
        };
        let needs_ids = !tables.token.is_empty() || matches!(kept, Some(Some(_)));
        exact("ids", lookup.ids.len(), needs_ids, all)?;
        exact("types", lookup.types.len(), !tables.types.is_empty(), all)?;
        exact("mask", lookup.mask.len(), kept == Some(None), all)?;
        exact("positions", lookup.positions.len(), !lookup.positions.is_empty(), all)?;
        exact("past", lookup.past.len(), !lookup.past.is_empty(), batch)?;
        let inside = |name: &str, index: usize, id: i64, table: &[T], table_name: &str| {
            let rows = table.len() / self.dim;
            match usize::try_from(id) {
                Ok(row) if row < rows => Ok(Some(row)),
                _ => Err(Error::Value(format!("{name}[{index}] is {id}, the {table_name} table has {rows} rows"))),
            }
        };
        let mut rows = Vec::new();
        rows.try_reserve_exact(all)
            .map_err(|_| Error::Value(format!("there is no memory for the rows of {all} tokens")))?;
        // None of them where they have no tokens, however many they are.
        for sequence in 0..if tokens > 0 { batch } else { 0 } {
            let mut seen = lookup.past.get(sequence).copied().unwrap_or(0);
            for token in 0..tokens {
                let index = sequence * tokens + token;
                let mut row = Row::default();
                if !tables.token.is_empty() {
                    row.token = inside("ids", index, lookup.ids[index], tables.token, "token")?;
                }
                if !tables.types.is_empty() {
                    row.types = inside("types", index, lookup.types[index], tables.types, "type")?;
                }
                if !tables.position.is_empty() {
                    let padding = match kept {
                        None => false,
                        Some(None) => lookup.mask[index] == 0,
                        Some(Some(padding)) => lookup.ids[index] == padding,
                    };
                    let position = lookup.positions.get(index).copied().unwrap_or(token as i64);
                    let at = self.rows.row(position, seen, padding);
                    seen = seen.wrapping_add(i64::from(!padding));
                    row.position = inside("the position row of token", index, at, tables.position, "position")?;
                }
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Gathers, adds and normalises on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `tokens` | written; read too if there is no token table |
    /// | `tables` | `[rows, dim]` each | the tables that there are |
    /// | `lookup` | `[batch, tokens]` each | what the tokens are |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-15 of the terms; 1e-12 after a norm.
    ///
    /// # Errors
    /// As [`Learned::rows`], and if the shape is refused or a table is no whole number of rows. Nothing is written then.
    ///
    /// # Source
    /// BERT (arXiv 1810.04805), figure 2; layer norm arXiv 1607.06450, RMS norm arXiv 1910.07467.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Learned, Lookup, Tables, Tokens};
    /// let tables = Tables { token: &[1.0f32, 2.0, 3.0], position: &[10.0, 20.0], ..Tables::default() };
    /// let mut x = [0.0; 2];
    /// let lookup = Lookup { ids: &[2, 0], ..Lookup::default() };
    /// Learned::new(1).gather(&mut x, &Tokens::new(1, 2, 1), &tables, &lookup)?;
    /// assert_eq!(x, [13.0, 21.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn gather<T: Scalar>(
        &self,
        x: &mut [T],
        tokens: &Tokens,
        tables: &Tables<'_, T>,
        lookup: &Lookup<'_>,
    ) -> Result<()> {
        tokens.check_written("x", self.dim, x.len())?;
        self.check_tables(tables)?;
        let rows = self.rows(tokens.batch, tokens.tokens, tables, lookup)?;
        cpu::gather(self, x, tokens, tables, &rows);
        Ok(())
    }

    /// The wanted values of [`Learned::gather`] in f64 and the error allowed at each element of `x`, for comparison with a
    /// kernel.
    ///
    /// # Errors
    /// As [`Learned::gather`].
    pub fn expect<T: Scalar>(
        &self,
        x: &[T],
        tokens: &Tokens,
        tables: &Tables<'_, T>,
        lookup: &Lookup<'_>,
    ) -> Result<crate::accuracy::Expected> {
        tokens.check_written("x", self.dim, x.len())?;
        self.check_tables(tables)?;
        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; x.len()];
        let rows = self.rows(tokens.batch, tokens.tokens, tables, lookup)?;
        for (index, row) in rows.iter().enumerate() {
            let at = tokens.index(index / tokens.tokens, index % tokens.tokens, 0);
            let (v, magnitude) = self.sum(row, &x[at..at + self.dim], tables);
            let normed = self.normed(&v);
            let largest = magnitude.iter().copied().fold(0.0, f64::max);
            let exact = self.scale == 1.0 && row.position.is_none() && row.types.is_none();
            for c in 0..self.dim {
                let (value, error) = match &normed {
                    None if exact => (v[c], None),
                    None => (v[c], Some(Self::sum_error_bound(magnitude[c]))),
                    Some(Normed { y, sigma }) => {
                        let (gain, bias) = (of(tables.gain, c, 1.0), of(tables.bias, c, 0.0));
                        (y[c] * gain + bias, Some(self.norm_error_bound(y[c], gain, bias, largest, *sigma)))
                    }
                };
                want[at + c] = value;
                bound[at + c] = error.map_or(0.0, |error| crate::accuracy::rounded::<T>(value, error));
            }
        }
        Ok(crate::accuracy::Expected { want, bound })
    }

    /// The gradients of a scalar with respect to every table, from its gradient with respect to [`Learned::gather`]'s
    /// result, in f64.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `(batch, tokens)` | | sizes |
    /// | `x` | `[batch, tokens, dim]` | what `gather` read in place of token rows; empty with a token table |
    /// | `grad` | `[batch, tokens, dim]` | gradient of the result |
    /// | `tables`, `lookup` | | as in `gather` |
    ///
    /// # Errors
    /// As [`Learned::gather`].
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Learned, Lookup, Tables};
    /// let tables = Tables { token: &[1.0f32, 2.0, 3.0], position: &[10.0, 20.0], ..Tables::default() };
    /// let lookup = Lookup { ids: &[2, 2], ..Lookup::default() };
    /// let got = Learned::new(1).grad((1, 2), &[], &[0.5, 0.25], &tables, &lookup)?;
    /// assert_eq!((got.token, got.position), (vec![0.0, 0.0, 0.75], vec![0.5, 0.25]));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(
        &self,
        (batch, tokens): (usize, usize),
        x: &[T],
        grad: &[T],
        tables: &Tables<'_, T>,
        lookup: &Lookup<'_>,
    ) -> Result<Gradients> {
        self.check_tables(tables)?;
        let need = product("batch x tokens x dim", &[batch, tokens, self.dim])?;
        at_least("grad", grad.len(), need)?;
        if tables.token.is_empty() {
            at_least("x", x.len(), need)?;
        }
        let rows = self.rows(batch, tokens, tables, lookup)?;
        let dim = self.dim;
        let mut gradients = Gradients {
            sum: vec![0.0; need],
            token: vec![0.0; tables.token.len()],
            position: vec![0.0; tables.position.len()],
            types: vec![0.0; tables.types.len()],
            gain: vec![0.0; if self.norm.is_some() { dim } else { 0 }],
            bias: vec![0.0; if matches!(self.norm, Some(Norm::Layer { .. })) { dim } else { 0 }],
        };
        for (index, row) in rows.iter().enumerate() {
            let at = index * dim;
            let empty: &[T] = &[];
            let x = if tables.token.is_empty() { &x[at..at + dim] } else { empty };
            let (v, _) = self.sum(row, x, tables);
            let grad: Vec<f64> = grad[at..at + dim].iter().map(|grad| grad.to_f64()).collect();
            let sum = match self.normed(&v) {
                None => grad,
                Some(Normed { y, sigma }) => {
                    for c in 0..dim {
                        gradients.gain[c] += grad[c] * y[c];
                        if let Some(bias) = gradients.bias.get_mut(c) {
                            *bias += grad[c];
                        }
                    }
                    let g: Vec<f64> = (0..dim).map(|c| grad[c] * of(tables.gain, c, 1.0)).collect();
                    let along = g.iter().zip(&y).map(|(g, y)| g * y).sum::<f64>() / dim as f64;
                    let mean = match self.norm {
                        Some(Norm::Layer { .. }) => g.iter().sum::<f64>() / dim as f64,
                        _ => 0.0,
                    };
                    g.iter().zip(&y).map(|(g, y)| (g - mean - y * along) / sigma).collect()
                }
            };
            for (c, sum) in sum.into_iter().enumerate() {
                gradients.sum[at + c] = sum;
                if let Some(row) = row.token {
                    gradients.token[row * dim + c] += sum * self.scale;
                }
                if let Some(row) = row.position {
                    gradients.position[row * dim + c] += sum;
                }
                if let Some(row) = row.types {
                    gradients.types[row * dim + c] += sum;
                }
            }
        }
        Ok(gradients)
    }

    /// Refuses tables that are no whole number of rows, and a norm's vectors without a norm or of another length.
    fn check_tables<T>(&self, tables: &Tables<'_, T>) -> Result<()> {
        self.check()?;
        for (name, table) in [("token", tables.token), ("position", tables.position), ("type", tables.types)] {
            if !table.len().is_multiple_of(self.dim) {
                return Err(Error::Value(format!(
                    "the {name} table holds {} elements, its rows hold {}",
                    table.len(),
                    self.dim
                )));
            }
        }
        let layer = matches!(self.norm, Some(Norm::Layer { .. }));
        for (name, vector, allowed) in [("gain", tables.gain, self.norm.is_some()), ("bias", tables.bias, layer)] {
            if !vector.is_empty() && !allowed {
                return Err(Error::Value(format!("there is a {name} and the spec has no norm that uses it")));
            }
            if !vector.is_empty() && vector.len() != self.dim {
                return Err(Error::Value(format!("{name} holds {} elements, dim is {}", vector.len(), self.dim)));
            }
        }
        Ok(())
    }

    /// The sum of one token's rows, and the sum of their magnitudes.
    fn sum<T: Scalar>(&self, row: &Row, x: &[T], tables: &Tables<'_, T>) -> (Vec<f64>, Vec<f64>) {
        (0..self.dim)
            .map(|c| {
                let token =
                    row.token.map_or_else(|| x[c], |row| tables.token[row * self.dim + c]).to_f64() * self.scale;
                let position = row.position.map_or(0.0, |row| tables.position[row * self.dim + c].to_f64());
                let types = row.types.map_or(0.0, |row| tables.types[row * self.dim + c].to_f64());
                (token + position + types, token.abs() + position.abs() + types.abs())
            })
            .unzip()
    }

    fn normed(&self, v: &[f64]) -> Option<Normed> {
        let dim = self.dim as f64;
        let (mean, eps) = match self.norm? {
            Norm::Layer { eps } => (v.iter().sum::<f64>() / dim, eps),
            Norm::Rms { eps } => (0.0, eps),
        };
        let square = v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / dim;
        let sigma = (square + eps).sqrt();
        Some(Normed { y: v.iter().map(|v| (v - mean) / sigma).collect(), sigma })
    }
}

/// Element `c` of a vector that may not be there.
fn of<T: Scalar>(vector: &[T], c: usize, default: f64) -> f64 {
    vector.get(c).map_or(default, |x| x.to_f64())
}

/// The indices of `ids` in the order of their ids, equal ids in the order of their indices: what the gradients of tables
/// are summed by. The kernel [`GradPlan::order`](crate::embed::GradPlan::order) makes the same.
///
/// ```
/// assert_eq!(posenc::embed::order(&[7, 3, 7, 0])?, [3, 1, 0, 2]);
/// # Ok::<(), posenc::Error>(())
/// ```
///
/// # Errors
/// If there are more than 2^32 - 1 ids.
pub fn order(ids: &[i64]) -> Result<Vec<u32>> {
    let count = u32::try_from(ids.len()).map_err(|_| Error::Overflow(format!("{} ids", ids.len())))?;
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_by_key(|&index| ids[index as usize]);
    Ok(order)
}

// -------------------------------------------------------------------------------------------------------------- launch

/// Threads of a block with a norm or without.
const THREADS: usize = 256;
/// The variants of the kernel: wide accesses without a norm; with one, for rows that are held in registers and for longer
/// ones; narrow accesses for all.
const ENTRIES: [&str; 3] = ["learned_wide", "learned_norm", "learned_narrow"];

impl Learned {
    /// Threads of one row: whole warps, one thread for 8 channels and at most 256.
    pub(crate) fn lanes(&self) -> usize {
        let units = self.dim.div_ceil(8);
        match self.norm {
            None if units < 32 => units.next_power_of_two(),
            None => units.next_multiple_of(32).min(THREADS),
            // Four units a thread: what a row's sums cost is shared by more channels.
            Some(_) => units.div_ceil(4).next_multiple_of(32).min(THREADS),
        }
    }

    /// Bytes of shared memory for `arrays` numbers for each channel of every row of a block, a KiB for 256.
    pub(crate) fn held(&self, arrays: usize, rows: usize) -> usize {
        (self.dim.div_ceil(256) * 1024).saturating_mul(arrays * rows)
    }

    /// Tokens that a block works on at once.
    pub(crate) fn block_rows(&self, tokens: usize) -> usize {
        // Blocks that hold rows in shared memory are small, so that several find room. A block is whole warps.
        let threads = if self.norm.is_some() { THREADS / 2 } else { THREADS };
        (threads / self.lanes()).min(tokens.next_power_of_two().max(32 / self.lanes())).max(1)
    }

    /// The arguments that the spec and the shape decide.
    pub(crate) fn args(&self, tokens: &Tokens) -> Result<LearnedArgs> {
        let (first, padded, padding, rule) = match self.rows {
            Rows::Offset(offset) => (offset, 0, 0, 0),
            Rows::Kept { padding: Some(padding), first, padded } => (first, padded, padding, 1),
            Rows::Kept { padding: None, first, padded } => (first, padded, 0, 2),
        };
        let (norm, eps) = match self.norm {
            None => (0, 0.0),
            Some(Norm::Layer { eps }) => (1, eps),
            Some(Norm::Rms { eps }) => (2, eps),
        };
        Ok(LearnedArgs {
            strides: tokens.strides(),
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

    /// The variant, the grid and the arguments that shapes decide; addresses, ids and positions are still missing.
    fn launch(
        &self,
        tokens: &Tokens,
        element: usize,
        alignment: usize,
        room: usize,
        multiprocessors: u32,
    ) -> Result<Launch<LearnedArgs>> {
        let wide = width(element, alignment, tokens.sizes() | self.dim).index == 0;
        let rows = self.block_rows(tokens.tokens);
        let (grid, args) = self.groups(tokens, (rows, self.lanes() * rows), multiprocessors)?;
        let block = [small("lanes", self.lanes())?, small("rows", rows)?, 1];
        let entry = ENTRIES[match self.norm {
            None if wide => 0,
            Some(_) if wide && self.held(1, rows) <= room => 1,
            _ => 2,
        }];
        Ok(Launch { file: "embed/learned", entry, grid, block, args })
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// The tables of one call on the device, each `[rows, dim]` by its length; `None` is not there.
#[derive(Clone, Copy)]
pub struct Weights<'a, T> {
    /// by token id; without it, the rows of `x` take its place
    pub token: Option<Read<'a, T>>,
    /// by the row that [`Rows`] gives
    pub position: Option<Read<'a, T>>,
    /// by token type
    pub types: Option<Read<'a, T>>,
    /// `[dim]`, of the norm; ones without it
    pub gain: Option<Read<'a, T>>,
    /// `[dim]`, of the norm; zeros without it
    pub bias: Option<Read<'a, T>>,
}

impl<T> Default for Weights<'_, T> {
    fn default() -> Self {
        Self { token: None, position: None, types: None, gain: None, bias: None }
    }
}

/// What the tokens of one call are, on the device: each `[batch, tokens]`, or `None` where nothing asks for it.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// token ids, `i32`, `i64` or `u32`: [`Ids`]
    pub ids: Option<Ids<'a>>,
    /// token types
    pub types: Option<Ids<'a>>,
    /// 1 for a token, 0 for padding
    pub mask: Option<Read<'a, u8>>,
    /// Where the tokens stand, for [`Rows::Offset`]. For [`Rows::Kept`]: [`Positions::counted`], or the number of tokens
    /// of earlier calls that were no padding as [`Positions::starts`].
    pub positions: Positions<'a>,
}

impl Default for Inputs<'_> {
    fn default() -> Self {
        Self { ids: None, types: None, mask: None, positions: Positions::counted() }
    }
}

/// A flag in device memory that kernels raise when an id lies outside its table.
///
/// Such an id is never read; its row becomes NaN. The flag holds the first such token in the order of tokens, the same one
/// on every run. Of several calls before a [`Fault::check`] it does not say which; the message has the last one's tables.
pub struct Fault {
    flag: CudaSlice<u64>,
    rows: [usize; 3],
}

impl Fault {
    /// A flag that is down.
    ///
    /// # Errors
    /// If the driver gives no memory.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { flag: gpu.upload(&[u64::MAX])?, rows: [0; 3] })
    }

    /// The flag in device memory: `u64::MAX` while it is down, else `4 * token + table` with the token's index in
    /// `[batch, tokens]` and table 0 for tokens, 1 for positions, 2 for types.
    pub fn flag(&self) -> &CudaSlice<u64> {
        &self.flag
    }

    /// Waits for the stream, reads the flag and takes it down.
    ///
    /// # Errors
    /// [`Error::Value`] with the token and the table if it was up.
    pub fn check(&mut self, gpu: &Gpu) -> Result<()> {
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

/// Buffers of one call, held until its launch is done.
pub(crate) struct Gathered<'a> {
    tables: [Option<Held<'a, In>>; 5],
    rows: [usize; 3],
    ids: Option<(Held<'a, In>, u32)>,
    types: Option<(Held<'a, In>, u32)>,
    mask: Option<Held<'a, In>>,
    positions: Resolved<'a>,
    /// whether a table is read by the number of kept tokens
    counted: bool,
}

const TABLES: [&str; 5] = ["the token table", "the position table", "the type table", "gain", "bias"];

impl<'a> Gathered<'a> {
    /// Checks everything about tables and ids that needs no reading of them.
    pub(crate) fn new<T: Scalar>(
        gpu: &'a Gpu,
        spec: &Learned,
        (batch, tokens): (usize, usize),
        weights: &Weights<'a, T>,
        inputs: &Inputs<'a>,
    ) -> Result<Self> {
        let dim = spec.dim;
        let all = product("batch x tokens", &[batch, tokens])?;
        let given = [weights.token, weights.position, weights.types, weights.gain, weights.bias];
        let layer = matches!(spec.norm, Some(Norm::Layer { .. }));
        let mut tables = [const { None }; 5];
        let mut rows = [0; 3];
        for (index, (table, name)) in given.into_iter().zip(TABLES).enumerate() {
            let Some(table) = table else { continue };
            let len = table.len();
            if index < 3 {
                if !len.is_multiple_of(dim) {
                    return Err(Error::Value(format!("{name} holds {len} elements, its rows hold {dim}")));
                }
                rows[index] = len / dim;
            } else {
                if if index == 3 { spec.norm.is_none() } else { !layer } {
                    return Err(Error::Value(format!("there is a {name} and the spec has no norm that uses it")));
                }
                if len != dim {
                    return Err(Error::Value(format!("{name} holds {len} elements, dim is {dim}")));
                }
            }
            tables[index] = Some(gpu.read(name, table, len)?);
        }
        let counted = tables[1].is_some() && matches!(spec.rows, Rows::Kept { .. });
        let by_id = matches!(spec.rows, Rows::Kept { padding: Some(_), .. });
        let ids_wanted = tables[0].is_some() || (counted && by_id);
        let positions = inputs.positions.resolve(gpu, 1, batch, tokens)?;
        if counted && positions.kind != 1 {
            return Err(Error::Value("tokens are counted by the spec, positions must be counted() or starts".into()));
        }
        let mask = match (inputs.mask, counted && !by_id) {
            (Some(mask), true) => Some(gpu.read("mask", mask, all)?),
            (None, true) => return Err(Error::Value("mask is missing, the spec counts tokens over it".into())),
            (_, false) => None,
        };
        Ok(Self {
            ids: hold_ids(gpu, "ids", inputs.ids, ids_wanted, all)?,
            types: hold_ids(gpu, "types", inputs.types, tables[2].is_some(), all)?,
            tables,
            rows,
            mask,
            positions,
            counted,
        })
    }

    /// Rows of the token, position and type table.
    pub(crate) fn rows(&self) -> [usize; 3] {
        self.rows
    }

    /// Puts the addresses into `args`.
    pub(crate) fn fill(&self, args: LearnedArgs) -> LearnedArgs {
        let address = |held: &Option<Held<'_, In>>| held.as_ref().map_or(In::NULL, |held| held.address);
        let ids = |ids: &Option<(Held<'_, In>, u32)>| {
            ids.as_ref().map_or((In::NULL, 0), |(held, id_type)| (held.address, *id_type))
        };
        let [token, position, types, gain, bias] = [0, 1, 2, 3, 4].map(|index| address(&self.tables[index]));
        let ((ids, id_type), (type_ids, type_id_type)) = (ids(&self.ids), ids(&self.types));
        // Where no id of this type can be padding, every token is kept: positions go on from the starts.
        let padded = args.rule != 1
            || match id_type {
                0 => i32::try_from(args.padding).is_ok(),
                2 => u32::try_from(args.padding).is_ok(),
                _ => true,
            };
        LearnedArgs {
            rule: if self.counted && padded { args.rule } else { 0 },
            token,
            position,
            types,
            gain,
            bias,
            ids,
            type_ids,
            mask: address(&self.mask),
            positions: self.positions.ids(),
            indptr: self.positions.indptr(),
            sequence_stride: self.positions.sequence_stride,
            token_rows: self.rows[0] as i64,
            position_rows: self.rows[1] as i64,
            type_rows: self.rows[2] as i64,
            id_type,
            type_id_type,
            position_kind: self.positions.kind,
            position_type: self.positions.id_type,
            sequences: self.positions.sequences,
            ..args
        }
    }

    /// The union of the tables' addresses, and that none of them meets `out`.
    pub(crate) fn addresses(&self, out: &Held<'_, Out>, name: &str) -> Result<u64> {
        let mut all = out.address.address();
        for (table, table_name) in self.tables.iter().zip(TABLES) {
            if let Some(table) = table {
                out.apart_from(name, table, table_name)?;
                all |= table.address.address();
            }
        }
        Ok(all)
    }
}

/// A buffer of ids and its type as kernels know it.
pub(crate) fn hold_ids<'a>(
    gpu: &'a Gpu,
    name: &'static str,
    ids: Option<Ids<'a>>,
    wanted: bool,
    need: usize,
) -> Result<Option<(Held<'a, In>, u32)>> {
    match ids {
        _ if !wanted => Ok(None),
        None => Err(Error::Value(format!("{name} are missing, a table is read by them"))),
        Some(Ids::I32(ids)) => Ok(Some((gpu.read(name, ids, need)?, 0))),
        Some(Ids::I64(ids)) => Ok(Some((gpu.read(name, ids, need)?, 1))),
        Some(Ids::U32(ids)) => Ok(Some((gpu.read(name, ids, need)?, 2))),
    }
}

/// [`Learned`] on a [`Gpu`], for one element type: its kernels are loaded. The tables are the caller's.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
pub struct LearnedPlan<T> {
    gpu: Gpu,
    spec: Learned,
    functions: [Function; 3],
    /// bytes of shared memory that a block may hold its rows in
    room: usize,
    rows: Function,
    element: PhantomData<T>,
}

impl<T: Scalar> LearnedPlan<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Learned) -> Result<Self> {
        spec.check()?;
        let load = |entry| gpu.function("embed/learned", T::NAME, entry);
        let [a, b, c] = ENTRIES;
        let functions = [load(a)?, load(b)?, load(c)?];
        let room = held_room(gpu, &functions[1])?;
        Ok(Self { gpu: gpu.clone(), spec: *spec, functions, room, rows: load("learned_rows")?, element: PhantomData })
    }

    /// The spec.
    pub fn learned(&self) -> &Learned {
        &self.spec
    }

    /// Gathers, adds and normalises in one kernel.
    ///
    /// `v = token[id] * scale + position[row] + type[kind]`, then the spec's norm.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `tokens` | written; read too if there is no token table |
    /// | `tokens` | | sizes and strides of `x` |
    /// | `weights` | `[rows, dim]` each | the tables that there are |
    /// | `inputs` | `[batch, tokens]` each | what the tokens are |
    /// | `fault` | | raised when an id lies outside its table; `None` leaves it unreported |
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
    /// short, lies in another context or shares memory with `x`. Nothing is written then.
    ///
    /// # Source
    /// BERT (arXiv 1810.04805), figure 2; layer norm arXiv 1607.06450, RMS norm arXiv 1910.07467.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{Fault, Inputs, Learned, LearnedPlan, Tokens, Weights};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let stream = gpu.stream();
    /// let plan = LearnedPlan::<half::f16>::new(&gpu, &Learned::new(768))?;
    /// let (token, position) = (stream.alloc_zeros(50257 * 768)?, stream.alloc_zeros(1024 * 768)?);
    /// let ids = stream.clone_htod(&[464, 3797, 3332])?;
    /// let mut x = stream.alloc_zeros(3 * 768)?;
    /// let mut fault = Fault::new(&gpu)?;
    /// plan.gather(
    ///     &mut x,
    ///     Tokens::new(1, 3, 768),
    ///     &Weights { token: Some(&token), position: Some(&position), ..Weights::default() },
    ///     &Inputs { ids: Some(i32::ids(&ids)), ..Inputs::default() },
    ///     Some(&mut fault),
    /// )?;
    /// fault.check(&gpu)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn gather(
        &self,
        x: Write<'_, T>,
        tokens: Tokens,
        weights: &Weights<'_, T>,
        inputs: &Inputs<'_>,
        fault: Option<&mut Fault>,
    ) -> Result<()> {
        tokens.check_written("x", self.spec.dim, x.len())?;
        if tokens.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let held = Gathered::new(gpu, &self.spec, (tokens.batch, tokens.tokens), weights, inputs)?;
        let x = gpu.write("x", x, tokens.span()?)?;
        let alignment = alignment(&[held.addresses(&x, "x")?]);
        let fault = hold_fault(gpu, fault, held.rows)?;
        let mut launch = self.spec.launch(&tokens, size_of::<T>(), alignment, self.room, gpu.multiprocessors())?;
        let at = x.address.offset((tokens.offset * size_of::<T>()) as u64);
        launch.args = LearnedArgs {
            x: at,
            source: at.as_in(),
            fault: fault.as_ref().map_or(Out::NULL, |fault| fault.address),
            ..held.fill(launch.args)
        };
        let function = ENTRIES.iter().position(|&entry| entry == launch.entry).unwrap_or(2);
        let shared = if function == 1 { self.spec.held(1, launch.block[1] as usize) } else { 0 };
        gpu.launch_with(&self.functions[function], &launch, small("bytes of shared memory", shared)?)
    }

    /// [`LearnedPlan::gather`], then waits for it and reports the first id outside its table.
    ///
    /// # Errors
    /// As [`LearnedPlan::gather`] and [`Fault::check`].
    pub fn gather_checked(
        &self,
        x: Write<'_, T>,
        tokens: Tokens,
        weights: &Weights<'_, T>,
        inputs: &Inputs<'_>,
    ) -> Result<()> {
        let mut fault = Fault::new(&self.gpu)?;
        self.gather(x, tokens, weights, inputs, Some(&mut fault))?;
        fault.check(&self.gpu)
    }

    /// Writes the row of the position table that every token reads, for [`GradPlan::table`](crate::embed::GradPlan::table).
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `rows` | `[batch, tokens]` | written; rows outside the table too |
    /// | `batch`, `tokens` | | sizes |
    /// | `inputs` | `[batch, tokens]` each | what the tokens are |
    ///
    /// # Errors
    /// If something that is needed is missing, or a buffer is too short or lies in another context. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::embed::{Inputs, Learned, LearnedPlan, Rows};
    /// use posenc::{Gpu, Id};
    ///
    /// let gpu = Gpu::open(0)?;
    /// // RoBERTa's positions with padding id 1.
    /// let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    /// let plan = LearnedPlan::<f32>::new(&gpu, &Learned { rows, ..Learned::new(768) })?;
    /// let ids = gpu.stream().clone_htod(&[5i64, 6, 1, 7, 1])?;
    /// let mut rows = gpu.stream().alloc_zeros(5)?;
    /// plan.rows(&mut rows, 1, 5, &Inputs { ids: Some(i64::ids(&ids)), ..Inputs::default() })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rows(&self, rows: Write<'_, i64>, batch: usize, tokens: usize, inputs: &Inputs<'_>) -> Result<()> {
        let shape = Tokens::new(batch, tokens, self.spec.dim);
        let need = product("batch x tokens", &[batch, tokens])?;
        at_least("rows", rows.len(), need)?;
        if shape.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        // The rule is the table's; whether there is one does not matter here.
        let by_id = matches!(self.spec.rows, Rows::Kept { padding: Some(_), .. });
        let by_mask = matches!(self.spec.rows, Rows::Kept { padding: None, .. });
        let positions = inputs.positions.resolve(gpu, 1, batch, tokens)?;
        if (by_id || by_mask) && positions.kind != 1 {
            return Err(Error::Value("tokens are counted by the spec, positions must be counted() or starts".into()));
        }
        let mask = match (inputs.mask, by_mask) {
            (Some(mask), true) => Some(gpu.read("mask", mask, need)?),
            (None, true) => return Err(Error::Value("mask is missing, the spec counts tokens over it".into())),
            (_, false) => None,
        };
        let held = Gathered {
            tables: [const { None }; 5],
            rows: [0; 3],
            ids: hold_ids(gpu, "ids", inputs.ids, by_id, need)?,
            types: None,
            mask,
            positions,
            counted: by_id || by_mask,
        };
        let out = gpu.write("rows", rows, need)?;
        let (grid, args) = self.spec.groups(&shape, (THREADS, THREADS), gpu.multiprocessors())?;
        let args = LearnedArgs { x: out.address, ..held.fill(args) };
        let block = [1, small("rows", THREADS)?, 1];
        let launch = Launch { file: "embed/learned", entry: "learned_rows", grid, block, args };
        gpu.launch(&self.rows, &launch)
    }
}

pub(crate) fn hold_fault<'a>(
    gpu: &'a Gpu,
    fault: Option<&'a mut Fault>,
    rows: [usize; 3],
) -> Result<Option<Held<'a, Out>>> {
    fault
        .map(|fault| {
            fault.rows = rows;
            gpu.write("fault", &mut fault.flag, 1)
        })
        .transpose()
}
