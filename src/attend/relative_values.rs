//! Relative positions on the value side: each key adds a vector of a table, chosen by its distance.
//!
//! ```text
//! z[b, h, i, :] += sum over keys j of p[b, h, i, j] * table[h, entry(i, j), :]
//! ```

#[cfg(feature = "cuda")]
mod plan;

use std::collections::BTreeMap;

#[cfg(feature = "cuda")]
pub use plan::{RelativeTableGradPlan, RelativeValuesPlan};

use crate::accuracy::{Expected, rounded};
use crate::bias::{Distances, Numbers};
use crate::memory::zeros;
use crate::position::Places;
use crate::shape::Shape;
use crate::{Error, Heads, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Shaw's relative positions on the value side.
///
/// Formulas, sources and disagreements: [docs](crate::docs::attend#relative-values).
///
/// ```text
/// z[b, h, i, :] += sum over keys j of p[b, h, i, j] * table[h or 0, entry(i, j), :]
/// ```
///
/// | field | meaning |
/// |---|---|
/// | `index` | the entry of each distance; a distance without one adds nothing |
///
/// | model | `index` | table |
/// |---|---|---|
/// | Shaw (arXiv 1803.02155, equation 3) | `Distances::shaw(k, k)` | `[2 k + 1, dim]`, shared by heads |
/// | VITS, window 4 | [`RelativeValues::vits`]: nothing beyond the window | `[9, dim]`, shared by heads |
///
/// The key side, `q_i . table[entry(i, j), :]`, is a [`Term::queries`](crate::bias::Term::queries) of the same distances.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RelativeValues {
    /// the entry of each distance
    pub index: Distances,
}

impl From<Distances> for RelativeValues {
    fn from(index: Distances) -> Self {
        Self { index }
    }
}

impl RelativeValues {
    /// By distance.
    pub const fn new(index: Distances) -> Self {
        Self { index }
    }

    /// VITS: entry `key - query + window`, nothing beyond the window.
    pub const fn vits(window: usize) -> Self {
        let mut index = Distances::shaw(window, window);
        index.outside = crate::bias::Outside::Zero;
        Self { index }
    }

    /// Refuses distances that [`Distances::check`] refuses.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        self.index.check()
    }

    /// Refuses a table that is not `[heads or 1, entries, dim]`.
    fn check_table(&self, table: &Numbers, shape: &Logits, dim: usize) -> Result<()> {
        let heads_fit = table.heads == 1 || table.heads == shape.heads;
        if table.batch == 1 && heads_fit && table.rows == self.index.entries && table.entries == dim {
            return Ok(());
        }
        Err(Error::Value(format!(
            "the table is [{}, {}, {}, {}], it must be [1, {} or 1, {}, {dim}]",
            table.batch, table.heads, table.rows, table.entries, shape.heads, self.index.entries
        )))
    }
}

/// Refuses values of other sizes than the probabilities'.
fn check_values(name: &str, z: &Heads, p: &Logits) -> Result<()> {
    if (z.batch, z.tokens, z.heads) == (p.batch, p.queries, p.heads) {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} has {} sequences, {} tokens and {} heads, the probabilities have {}, {} and {}",
        z.batch, z.tokens, z.heads, p.batch, p.queries, p.heads
    )))
}

// ----------------------------------------------------------------------------------------------------------------- law

impl RelativeValues {
    /// The error of a value before it is rounded: `2^-24 * ((11 + entries) * size + |z|)`.
    ///
    /// | argument | meaning |
    /// |---|---|
    /// | `entries` | entries of the row that have a weight |
    /// | `size` | sum over keys of `\|p * table\|` |
    /// | `z` | the result |
    ///
    /// A weight that is one probability is exact, a sum of many is within 11 roundings, however many.
    pub fn error_bound(entries: usize, size: f64, z: f64) -> f64 {
        f32::ROUNDOFF * ((11.0 + entries as f64) * size + z.abs()) + entries as f64 * f32::TINY
    }

    /// The error of a gradient of a probability before it is rounded or added: `2^-24 * (10 + dim / 32) * size` with the sum
    /// over channels of `|dz * table|`.
    pub fn grad_error_bound(dim: usize, size: f64) -> f64 {
        f32::ROUNDOFF * (10.0 + dim as f64 / 32.0) * size + dim as f64 * f32::TINY
    }

    /// The error of a gradient of a table: `2^-24 * 64 * size` with the sum over rows and keys of `|p * dz|`, however
    /// many rows.
    pub fn table_error_bound(size: f64) -> f64 {
        f32::ROUNDOFF * 64.0 * size + 32.0 * f32::TINY
    }

    /// The weights of a row: the sum of the probabilities of each entry's keys, and of their sizes; without entries that have
    /// none.
    fn weights<T: Scalar>(
        &self,
        p: &[T],
        shape: &Logits,
        places: &Places<&[i32]>,
        [batch, head, query]: [usize; 3],
    ) -> BTreeMap<usize, [f64; 2]> {
        let mut weights = BTreeMap::new();
        for key in 0..shape.keys {
            let Some(entry) = self.entry_of(shape, places, [batch, query, key]) else { continue };
            let p = p[shape.index(batch, head, query, key)].to_f64();
            if p != 0.0 {
                let [weight, size] = weights.entry(entry).or_insert([0.0; 2]);
                (*weight, *size) = (*weight + p, *size + p.abs());
            }
        }
        weights
    }

    /// The entry of a query and a key of the tensor, if both are there and their distance has one.
    fn entry_of(&self, shape: &Logits, places: &Places<&[i32]>, [batch, query, key]: [usize; 3]) -> Option<usize> {
        if !places.meet(shape, batch, query, key) {
            return None;
        }
        self.index.entry(places.query(shape, batch, query), places.key(shape, batch, key))
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of [`RelativeValues`].
#[derive(Clone, Debug)]
pub struct RelativeValuesGrad {
    /// of the probabilities, laid out as they are
    pub p: Vec<f64>,
    /// the error allowed at each, before it is rounded to the element type or added
    pub p_error: Vec<f64>,
    /// of the table, `[heads or 1, entries, dim]`
    pub table: Vec<f64>,
    /// the error allowed at each, as f32
    pub table_bound: Vec<f64>,
}

impl RelativeValues {
    /// The values after the addition on the CPU, in f64, and the error allowed at each: [`RelativeValues::error_bound`] and
    /// the rounding to `T`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `p` | `[batch, heads, queries, keys]` | probabilities |
    /// | `table` | `[1, heads or 1, entries, dim]` | vectors: [`Numbers::rows`]`(1, heads, entries, dim)` |
    /// | `z` | `[batch, queries, heads, dim]` | values before the addition |
    /// | `places` | | positions and lengths |
    ///
    /// # Errors
    /// If the spec, a shape, a length or a position is refused.
    pub fn expect<T: Scalar>(
        &self,
        p: (&[T], Logits),
        table: (&[f32], Numbers),
        z: (&[T], Heads),
        places: &Places<&[i32]>,
    ) -> Result<Expected> {
        self.check_call(p, table, ("z", z), places)?;
        let ((p, shape), (table, numbers), (z, heads)) = (p, table, z);
        let mut out = Expected { want: z.iter().map(|z| z.to_f64()).collect(), bound: vec![0.0; z.len()] };
        for at @ [batch, head, query] in shape.each_row() {
            if !places.has(&shape, batch, query) {
                continue;
            }
            let weights = self.weights(p, &shape, places, at);
            for channel in 0..heads.dim {
                let number = |entry: usize| f64::from(table[numbers.shared_index(0, head, entry, channel)]);
                let index = heads.index(batch, query, head, channel);
                let size = weights.iter().map(|(&entry, [_, size])| size * number(entry).abs()).sum();
                let sum: f64 = weights.iter().map(|(&entry, [weight, _])| weight * number(entry)).sum();
                let want = out.want[index] + sum;
                out.want[index] = want;
                out.bound[index] = rounded::<T>(want, Self::error_bound(weights.len(), size, want));
            }
        }
        Ok(out)
    }

    /// Adds the values of the table on the CPU: [`RelativeValues::expect`], rounded to `T`.
    ///
    /// # Errors
    /// As [`RelativeValues::expect`].
    ///
    /// # Example
    /// ```
    /// use posenc::attend::RelativeValues;
    /// use posenc::bias::{Distances, Numbers};
    /// use posenc::{Heads, Logits, Places};
    /// // Distances of -1 and less, 0, 1 and more; one head of one channel, one query at position 2 of a cache of three keys.
    /// let values = RelativeValues::new(Distances::shaw(1, 1));
    /// let (p, table, mut z) = ([0.25f32, 0.25, 0.5], [10.0, 4.0, 100.0], [1.0f32]);
    /// let table = (&table[..], Numbers::rows(1, 1, 3, 1));
    /// let places = Places::bottom_right();
    /// values.add((&p, Logits::bhqk(1, 1, 1, 3)), table, (&mut z, Heads::bthd(1, 1, 1, 1)), &places)?;
    /// assert_eq!(z, [1.0 + 0.5 * 10.0 + 0.5 * 4.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn add<T: Scalar>(
        &self,
        p: (&[T], Logits),
        table: (&[f32], Numbers),
        (z, heads): (&mut [T], Heads),
        places: &Places<&[i32]>,
    ) -> Result<()> {
        heads.check_written("z", z.len())?;
        let sums = self.expect(p, table, (z, heads), places)?;
        for (z, sum) in z.iter_mut().zip(sums.want).filter(|(z, sum)| z.to_f64() != *sum) {
            *z = T::from_f64(sum);
        }
        Ok(())
    }

    /// The gradients of probabilities and table on the CPU, in f64, from the gradient `dz` of the values.
    ///
    /// ```text
    /// dp[b, h, i, j]   = sum over channels of dz[b, i, h, :] * table[h or 0, entry(i, j), :]
    /// dtable[h, e, :] = sum over sequences, queries (and heads that share it) of weight[b, h, i, e] * dz[b, i, h, :]
    /// ```
    ///
    /// Bounds: [`RelativeValues::grad_error_bound`], [`RelativeValues::table_error_bound`].
    ///
    /// # Errors
    /// As [`RelativeValues::expect`].
    pub fn grad<T: Scalar>(
        &self,
        p: (&[T], Logits),
        table: (&[f32], Numbers),
        dz: (&[T], Heads),
        places: &Places<&[i32]>,
    ) -> Result<RelativeValuesGrad> {
        self.check_call(p, table, ("dz", dz), places)?;
        let ((p, shape), (table, numbers), (dz, heads)) = (p, table, dz);
        let (dim, size) = (heads.dim, numbers.heads * numbers.rows * heads.dim);
        let of_table = || zeros("numbers of a table", size);
        let (mut sizes, of_p) = (of_table()?, || vec![0.0; p.len()]);
        let mut out = RelativeValuesGrad { p: of_p(), p_error: of_p(), table: of_table()?, table_bound: vec![] };
        for at @ [batch, head, query] in shape.each_row() {
            let own = |channel: usize| dz[heads.index(batch, query, head, channel)].to_f64();
            for (entry, [weight, weight_size]) in self.weights(p, &shape, places, at) {
                let first = ((if numbers.heads == 1 { 0 } else { head }) * numbers.rows + entry) * dim;
                for channel in 0..dim {
                    out.table[first + channel] += weight * own(channel);
                    sizes[first + channel] += weight_size * own(channel).abs();
                }
            }
            for key in 0..shape.keys {
                let Some(entry) = self.entry_of(&shape, places, [batch, query, key]) else { continue };
                let index = shape.index(batch, head, query, key);
                let term = |c: usize| own(c) * f64::from(table[numbers.shared_index(0, head, entry, c)]);
                out.p[index] = (0..dim).map(term).sum();
                out.p_error[index] = Self::grad_error_bound(dim, (0..dim).map(|c| term(c).abs()).sum());
            }
        }
        out.table_bound = out
            .table
            .iter()
            .zip(sizes)
            .map(|(&want, size)| rounded::<f32>(want, Self::table_error_bound(size)))
            .collect();
        Ok(out)
    }

    fn check_call<T: Scalar>(
        &self,
        (p, shape): (&[T], Logits),
        (table, numbers): (&[f32], Numbers),
        (name, (z, heads)): (&'static str, (&[T], Heads)),
        places: &Places<&[i32]>,
    ) -> Result<()> {
        self.check()?;
        shape.check("probabilities", p.len())?;
        numbers.check("the table", table.len())?;
        heads.check(name, z.len())?;
        check_values(name, &heads, &shape)?;
        self.check_table(&numbers, &shape, heads.dim)?;
        places.check(&shape)
    }
}
