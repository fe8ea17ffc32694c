//! Learned tables: rows of a token table, a position table and a type table are gathered, added and normalised.
//!
//! ```text
//! v[t]   = token[id[t]] * scale + position[row(t)] + type[kind[t]]
//! out[t] = v[t],  (v - mean) / sqrt(variance + eps) * gain + bias,  or  v / sqrt(mean square + eps) * gain
//! ```

#[cfg(feature = "cuda")]
mod plan;
mod tables;

#[cfg(feature = "cuda")]
pub use plan::{ErrorFlag, LearnedPlan};
#[cfg(feature = "cuda")]
pub(super) use plan::{hold, shared_room};
#[cfg(feature = "cuda")]
pub use tables::{DeviceLookup, DeviceTables};
pub use tables::{HostLookup, HostTables, Lookup, Tables};

use crate::embed::{Tokens, at_least, check_scale, cpu};
use crate::memory::reserved;
use crate::shape::{Shape, product};
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Row of the position table that a token reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
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

/// Norm after the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
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
/// Formulas, sources and disagreements: [docs](crate::docs::embed#learned).
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `dim` | channels | of one row of every table |
/// | `scale` | | multiplies token rows: 1, or `sqrt(dim)` in the paper, M2M100, Marian |
/// | `rows` | | which row of the position table a token reads |
/// | `norm` | | norm after the sum |
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Learned {
    /// channels of one row of every table
    pub dim: usize,
    /// multiplies token rows
    pub scale: f64,
    /// which row of the position table a token reads
    pub rows: Rows,
    /// norm after the sum
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
    /// If an id, a type or a position's row lies outside its table, or something that is needed is missing or has another
    /// length than `batch * tokens`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{HostLookup, HostTables, Learned, Rows};
    /// // RoBERTa's positions with padding id 1.
    /// let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    /// let learned = Learned { rows, ..Learned::new(1) };
    /// let tables = HostTables { token: Some(&[0.0f32; 9]), position: Some(&[0.0; 8]), ..HostTables::default() };
    /// let lookup = HostLookup { ids: Some(&[5, 6, 1, 7, 1]), ..HostLookup::default() };
    /// let rows = learned.rows(1, 5, &tables, &lookup)?;
    /// let positions: Vec<_> = rows.iter().filter_map(|row| row.position).collect();
    /// assert_eq!(positions, [2, 3, 1, 4, 1]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn rows<T: Scalar>(
        &self,
        batch: usize,
        tokens: usize,
        tables: &HostTables<'_, T>,
        lookup: &HostLookup<'_>,
    ) -> Result<Vec<Row>> {
        let table_rows = self.check_tables(tables)?;
        let all = product("batch x tokens", &[batch, tokens])?;
        let needs = self.needs(tables);
        lookup.check(&needs)?;
        let ids = exact("ids", lookup.ids, needs.ids, all)?;
        let types = exact("types", lookup.types, needs.types, all)?;
        let position_rows = match tables.position {
            Some(_) => self.position_rows(batch, tokens, lookup)?,
            None => Vec::new(),
        };
        let inside = |name: &str, index: usize, id: i64, rows: Option<usize>, table_name: &str| {
            let rows = rows.unwrap_or(0);
            match usize::try_from(id) {
                Ok(row) if row < rows => Ok(Some(row)),
                _ => Err(Error::Value(format!("{name}[{index}] is {id}, the {table_name} table has {rows} rows"))),
            }
        };
        let mut rows = Vec::new();
        rows.try_reserve_exact(all)
            .map_err(|_| Error::Value(format!("there is no memory for the rows of {all} tokens")))?;
        for index in 0..all {
            let mut row = Row::default();
            if tables.token.is_some() {
                row.token = inside("ids", index, ids[index], table_rows[0], "token")?;
            }
            if tables.types.is_some() {
                row.types = inside("types", index, types[index], table_rows[2], "type")?;
            }
            if let Some(&at) = position_rows.get(index) {
                row.position = inside("the position row of token", index, at, table_rows[1], "position")?;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// The row of the position table that every token reads, `[batch, tokens]`, whether or not a table has it.
    ///
    /// # Errors
    /// If something that the rule needs is missing or has another length than `batch * tokens`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{HostLookup, Learned, Rows};
    /// // OPT: kept tokens are counted from row 2 on, padding reads row 1.
    /// let learned = Learned { rows: Rows::Kept { padding: None, first: 2, padded: 1 }, ..Learned::new(1) };
    /// let lookup = HostLookup { mask: Some(&[0, 1, 1]), ..HostLookup::default() };
    /// assert_eq!(learned.position_rows(1, 3, &lookup)?, [1, 2, 3]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn position_rows(&self, batch: usize, tokens: usize, lookup: &HostLookup<'_>) -> Result<Vec<i64>> {
        let all = product("batch x tokens", &[batch, tokens])?;
        let needs = self.row_needs();
        lookup.check(&needs)?;
        let ids = exact("ids", lookup.ids, needs.ids, all)?;
        let mask = exact("mask", lookup.mask, needs.mask, all)?;
        let shared = lookup.positions.is_shared(batch);
        // Where tokens are counted, the number of each sequence's kept tokens before the call.
        let each = if needs.counted { 1 } else { tokens };
        let positions = lookup.positions.resolve(1, if shared { 1 } else { batch }, each)?;
        let mut rows = reserved("rows of a position table", all)?;
        // None of them where they have no tokens, however many they are.
        for sequence in 0..if tokens > 0 { batch } else { 0 } {
            let first = if shared { 0 } else { sequence };
            let mut seen = if needs.counted { positions[first] } else { 0 };
            for token in 0..tokens {
                let index = sequence * tokens + token;
                let padding = match self.rows {
                    Rows::Offset(_) => false,
                    Rows::Kept { padding: None, .. } => mask[index] == 0,
                    Rows::Kept { padding: Some(padding), .. } => ids[index] == padding,
                };
                let own = if needs.counted { 0 } else { positions[first * tokens + token] };
                rows.push(self.rows.row(own, seen, padding));
                seen = seen.wrapping_add(i64::from(!padding));
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
    /// use posenc::embed::{HostLookup, HostTables, Learned, Tokens};
    /// let (token, position) = (Some(&[1.0f32, 2.0, 3.0][..]), Some(&[10.0, 20.0][..]));
    /// let tables = HostTables { token, position, ..HostTables::default() };
    /// let mut x = [0.0; 2];
    /// let lookup = HostLookup { ids: Some(&[2, 0]), ..HostLookup::default() };
    /// Learned::new(1).gather(&mut x, &Tokens::new(1, 2, 1), &tables, &lookup)?;
    /// assert_eq!(x, [13.0, 21.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn gather<T: Scalar>(
        &self,
        x: &mut [T],
        tokens: &Tokens,
        tables: &HostTables<'_, T>,
        lookup: &HostLookup<'_>,
    ) -> Result<()> {
        tokens.check_dim("x", self.dim)?;
        tokens.check_written("x", x.len())?;
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
        tables: &HostTables<'_, T>,
        lookup: &HostLookup<'_>,
    ) -> Result<crate::accuracy::Expected> {
        tokens.check_dim("x", self.dim)?;
        tokens.check_written("x", x.len())?;
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
                        let (gain, bias) = (element(tables.gain, c, 1.0), element(tables.bias, c, 0.0));
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
    /// use posenc::embed::{HostLookup, HostTables, Learned};
    /// let (token, position) = (Some(&[1.0f32, 2.0, 3.0][..]), Some(&[10.0, 20.0][..]));
    /// let tables = HostTables { token, position, ..HostTables::default() };
    /// let lookup = HostLookup { ids: Some(&[2, 2]), ..HostLookup::default() };
    /// let got = Learned::new(1).grad((1, 2), &[], &[0.5, 0.25], &tables, &lookup)?;
    /// assert_eq!((got.token, got.position), (vec![0.0, 0.0, 0.75], vec![0.5, 0.25]));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(
        &self,
        (batch, tokens): (usize, usize),
        x: &[T],
        grad: &[T],
        tables: &HostTables<'_, T>,
        lookup: &HostLookup<'_>,
    ) -> Result<Gradients> {
        self.check_tables(tables)?;
        let need = product("batch x tokens x dim", &[batch, tokens, self.dim])?;
        at_least("grad", grad.len(), need)?;
        if tables.token.is_none() {
            at_least("x", x.len(), need)?;
        }
        let rows = self.rows(batch, tokens, tables, lookup)?;
        let dim = self.dim;
        let mut gradients = Gradients {
            sum: vec![0.0; need],
            token: vec![0.0; tables.token.map_or(0, <[T]>::len)],
            position: vec![0.0; tables.position.map_or(0, <[T]>::len)],
            types: vec![0.0; tables.types.map_or(0, <[T]>::len)],
            gain: vec![0.0; if self.norm.is_some() { dim } else { 0 }],
            bias: vec![0.0; if matches!(self.norm, Some(Norm::Layer { .. })) { dim } else { 0 }],
        };
        for (index, row) in rows.iter().enumerate() {
            let at = index * dim;
            let empty: &[T] = &[];
            let x = if tables.token.is_none() { &x[at..at + dim] } else { empty };
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
                    let g: Vec<f64> = (0..dim).map(|c| grad[c] * element(tables.gain, c, 1.0)).collect();
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

    /// Sets the gradients of a row of the token table and of one of the position table to 0: torch's `padding_idx`, as BERT's token
    /// table and both of RoBERTa's tables have it. Of gradients on a device, [`TableGrad::skipped`](crate::embed::TableGrad) does
    /// the same.
    ///
    /// # Errors
    /// [`Error::Value`] if a table has no such row; nothing is changed then.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{HostLookup, HostTables, Learned, Rows};
    /// // RoBERTa's rows with padding id 1, six rows of one channel each.
    /// let learned = Learned { rows: Rows::Kept { padding: Some(1), first: 2, padded: 1 }, ..Learned::new(1) };
    /// let table = [0.0f32; 6];
    /// let tables = HostTables { token: Some(&table[..]), position: Some(&table[..]), ..HostTables::default() };
    /// let lookup = HostLookup { ids: Some(&[5i64, 1, 3, 1][..]), ..HostLookup::default() };
    /// let mut gradients = learned.grad((1, 4), &[], &[1.0f32, 2.0, 4.0, 8.0], &tables, &lookup)?;
    /// learned.skip_rows(&mut gradients, Some(1), Some(1))?;
    /// assert_eq!(gradients.token, [0.0, 0.0, 0.0, 4.0, 0.0, 1.0]);
    /// assert_eq!(gradients.position, [0.0, 0.0, 1.0, 4.0, 0.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn skip_rows(&self, gradients: &mut Gradients, token: Option<usize>, position: Option<usize>) -> Result<()> {
        let tables = [("token", &gradients.token, token), ("position", &gradients.position, position)];
        for (name, table, row) in tables {
            let rows = table.len() / self.dim.max(1);
            if let Some(row) = row.filter(|&row| row >= rows) {
                return Err(Error::Value(format!("row {row} of the {name} table is skipped, it has {rows} rows")));
            }
        }
        for (table, row) in [(&mut gradients.token, token), (&mut gradients.position, position)] {
            if let Some(row) = row {
                table[row * self.dim..][..self.dim].fill(0.0);
            }
        }
        Ok(())
    }

    /// The sum of one token's rows, and the sum of their magnitudes.
    fn sum<T: Scalar>(&self, row: &Row, x: &[T], tables: &HostTables<'_, T>) -> (Vec<f64>, Vec<f64>) {
        let of =
            |table: Option<&[T]>, row: Option<usize>, c: usize| element(table, row.unwrap_or(0) * self.dim + c, 0.0);
        (0..self.dim)
            .map(|c| {
                let token =
                    if row.token.is_some() { of(tables.token, row.token, c) } else { x[c].to_f64() } * self.scale;
                let (position, types) = (of(tables.position, row.position, c), of(tables.types, row.types, c));
                (token + position + types, token.abs() + position.abs() + types.abs())
            })
            .unzip()
    }

    /// The result of one token.
    #[cfg_attr(feature = "cpu", allow(dead_code, reason = "the plain path alone uses it"))]
    pub(super) fn gathered<T: Scalar>(&self, row: &Row, x: &[T], tables: &HostTables<'_, T>) -> Vec<f64> {
        let (v, _) = self.sum(row, x, tables);
        let Some(Normed { y, .. }) = self.normed(&v) else { return v };
        let scaled = |(c, y)| y * element(tables.gain, c, 1.0) + element(tables.bias, c, 0.0);
        y.into_iter().enumerate().map(scaled).collect()
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

/// Values of a lookup, exactly `need` of them where they are read.
fn exact<'a, V>(name: &str, values: Option<&'a [V]>, needed: bool, need: usize) -> Result<&'a [V]> {
    match values {
        _ if !needed => Ok(&[]),
        Some(values) if values.len() != need => {
            Err(Error::Value(format!("{name} holds {} elements, the call needs {need}", values.len())))
        }
        values => Ok(values.unwrap_or(&[])),
    }
}

/// An element of a table or a vector that may be missing.
fn element<T: Scalar>(values: Option<&[T]>, index: usize, missing: f64) -> f64 {
    values.map_or(missing, |values| values[index].to_f64())
}

/// The indices of `ids` in the order of their ids, equal ids in the order of their indices: what the gradients of tables
/// are summed by. The kernel [`LearnedGradPlan::order`](crate::embed::LearnedGradPlan::order) makes the same.
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
