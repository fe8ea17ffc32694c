//! Tables of relative positions at another window size, as the models' code resizes them: once for each resolution, on the host.

use crate::bias::{Coordinates, Numbers, Window};
use crate::filter::{Filter, Stand, Taps, taps};
use crate::memory::{collected, reserved};
use crate::shape::product;
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// How a table of a window is resized. Both axes of the table, `2 * size - 1` entries or `size` for sizes of differences, are
/// interpolated one after the other.
///
/// | method | weights | implementation |
/// |---|---|---|
/// | `Bilinear` | linear, half-pixel centres, border repeated | Hugging Face's BEiT and Data2VecVision; SAM, ViTDet, MViTv2 on each axis |
/// | `Bicubic` | Keys' cubic, A = -0.75, half-pixel centres, border repeated | timm `resize_rel_pos_bias_table_simple`; Swin's own code |
/// | `BicubicAntialias` | Keys' cubic, A = -0.5, widened where the table shrinks, cut at the border, weights sum to 1 | timm `resize_rel_pos_bias_table_levit` |
/// | `Geometric` | linear between old entries in geometric distances from the middle, border repeated | timm `resize_rel_pos_bias_table` |
///
/// With `Geometric` the old entry `n` steps from the middle lies at `1 + q + ... + q^(n - 1)` and the new one at `n`; `q` is found
/// by bisection of 1.01 to 1.5, to 1e-6, so that the old table's end falls on the new one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum TableResize {
    /// linear
    Bilinear,
    /// Keys' cubic
    Bicubic,
    /// Keys' cubic, antialiased
    BicubicAntialias,
    /// linear between geometric distances
    Geometric,
}

/// Entries of a table along one axis, at most.
const MOST_SIDE: usize = 1 << 16;

// ----------------------------------------------------------------------------------------------------------------- law

/// Distances of the old entries from the middle, when the new ones are `0, 1, 2 ... to / 2`.
fn geometric(from: usize, to: usize) -> Vec<f64> {
    let (half, reach) = (from / 2, (to / 2) as f64);
    let (mut left, mut right, mut q) = (1.01f64, 1.5f64, 1.01);
    while right - left > 1e-6 {
        q = (left + right) / 2.0;
        let end = (1.0 - q.powi(half as i32)) / (1.0 - q);
        if end > reach { right = q } else { left = q }
    }
    let mut places = vec![0.0];
    for n in 0..half {
        places.push(places[n] + q.powi(n as i32));
    }
    places
}

/// The weights of the entry at `distance` from the middle, linear between the old ones.
fn geometric_taps(places: &[f64], distance: i64) -> Taps {
    let (half, at) = (places.len() - 1, distance.unsigned_abs() as f64);
    let above = places.partition_point(|&place| place <= at).min(half);
    let near = above.saturating_sub(1);
    let width = places[above] - places[near];
    let far = if width == 0.0 { 0.0 } else { ((at - places[near]) / width).min(1.0) };
    if distance < 0 {
        Taps { first: half - above, weights: if above == near { vec![1.0] } else { vec![far, 1.0 - far] } }
    } else {
        Taps { first: half + near, weights: if above == near { vec![1.0] } else { vec![1.0 - far, far] } }
    }
}

impl TableResize {
    /// The weights of every new entry along one axis of the table.
    fn axis(self, from: usize, to: usize) -> Vec<Taps> {
        let places = geometric(from, to);
        let step = from as f64 / to as f64;
        let of = |index: usize| match self {
            Self::Bilinear => taps(from, step, index, Filter::Bilinear, Stand::Centres),
            Self::Bicubic => taps(from, step, index, Filter::Bicubic, Stand::Centres),
            Self::BicubicAntialias => taps(from, step, index, Filter::Bicubic, Stand::Antialiased),
            Self::Geometric => geometric_taps(&places, index as i64 - (to / 2) as i64),
        };
        (0..to).map(of).collect()
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// `sum over taps of weight * value(tap)`
fn weighted(taps: &Taps, value: impl Fn(usize) -> f64) -> f64 {
    taps.weights.iter().enumerate().map(|(tap, weight)| weight * value(taps.first + tap)).sum()
}

impl Window {
    /// The table of this window resized to a window of `to`, rows and columns: `[entries, heads]` of `Window { height, width, ..self }`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | | elements |
    /// | `numbers` | | shape and strides of `table`: `Numbers::table(entries, heads)` for Swin and BEiT, `Numbers::by_head(heads, entries)` for MaxViT and LeViT |
    /// | `to` | tokens | rows and columns of the new window |
    /// | `resize` | | method |
    ///
    /// The three entries of [`Window::prefix_entries`] are copied. A table whose axes keep their sizes is copied.
    ///
    /// # Accuracy
    /// f64 arithmetic, one rounding to `T`.
    ///
    /// # Errors
    /// If the window or the shape is refused or does not fit, if the window has no table ([`Coordinates::Key`]), or if
    /// [`TableResize::Geometric`] is asked for sizes of differences.
    ///
    /// # Source
    /// timm 1.0.31 `layers/pos_embed_rel.py`; transformers 5.24 `BeitRelativePositionBias`. BEiT's own code interpolates between
    /// the same geometric distances by scipy's cubic spline (`interp2d(kind="cubic")`), which is not here. Hugging Face's BEiT reads the table of a window that is not square with its
    /// axes exchanged, which is a fault of that port.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{Numbers, TableResize, Window};
    /// // Three distances along a row become five.
    /// let (window, numbers) = (Window::swin(1, 2), Numbers::table(3, 1));
    /// let resized = window.resize(&[0.0f32, 5.0, 10.0], &numbers, [1, 3], TableResize::Bilinear)?;
    /// assert_eq!(resized, [0.0, 2.0, 5.0, 8.0, 10.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn resize<T: Scalar>(
        &self,
        table: &[T],
        numbers: &Numbers,
        to: [usize; 2],
        resize: TableResize,
    ) -> Result<Vec<T>> {
        let out = Self { height: to[0], width: to[1], ..*self };
        self.check_resize(table.len(), numbers, &out, resize)?;
        let ([rows, columns], [out_rows, out_columns]) = (self.sides(), out.sides());
        let entry = |head: usize, entry: usize| table[numbers.shared_index(0, head, 0, entry)].to_f64();
        let heads = numbers.heads;
        let mut resized = reserved("numbers of a resized table", out.entries().saturating_mul(heads))?;
        if (rows, columns) == (out_rows, out_columns) {
            resized.extend((0..rows * columns).flat_map(|at| (0..heads).map(move |head| entry(head, at))));
        } else {
            let (y_taps, x_taps) = (resize.axis(rows, out_rows), resize.axis(columns, out_columns));
            for y in &y_taps {
                for x in &x_taps {
                    let along = |head: usize, row: usize| weighted(x, |column| entry(head, row * columns + column));
                    resized.extend((0..heads).map(|head| weighted(y, |row| along(head, row))));
                }
            }
        }
        let prefix = rows * columns..self.entries();
        resized.extend(prefix.flat_map(|at| (0..heads).map(move |head| entry(head, at))));
        Ok(resized.into_iter().map(T::from_f64).collect())
    }

    fn check_resize(&self, len: usize, numbers: &Numbers, out: &Self, resize: TableResize) -> Result<()> {
        use crate::shape::Shape;
        self.check()?;
        out.check()?;
        check_sides([self.sides(), out.sides()].concat())?;
        if self.coordinates == Coordinates::Key {
            return Err(Error::Value(
                "keys' own coordinates have no table to resize, their products are made anew".into(),
            ));
        }
        if resize == TableResize::Geometric && self.coordinates == Coordinates::Absolute {
            return Err(Error::Value("geometric distances lie on both sides of 0, a table by sizes has one".into()));
        }
        numbers.check("the table", len)?;
        if (numbers.batch, numbers.rows, numbers.entries) != (1, 1, self.entries()) || numbers.heads == 0 {
            return Err(Error::Value(format!(
                "the table is [{}, {}, {}, {}], that of the window is [1, heads, 1, {}]",
                numbers.batch,
                numbers.heads,
                numbers.rows,
                numbers.entries,
                self.entries()
            )));
        }
        Ok(())
    }
}

/// Refuses sides whose entries cannot each have weights of their own.
fn check_sides(sides: impl IntoIterator<Item = usize>) -> Result<()> {
    match sides.into_iter().find(|&side| side > MOST_SIDE) {
        Some(side) => {
            Err(Error::Value(format!("a table with {side} entries on an axis is resized, {MOST_SIDE} are possible")))
        }
        None => Ok(()),
    }
}

/// The row of a table of `2 * max(queries, keys) - 1` relative positions that a query and a key read on one axis:
/// `floor(query * max(keys / queries, 1) + (keys - 1 - key) * max(queries / keys, 1))`.
///
/// In f32, as timm and Hugging Face compute it, whose product may fall below an integer that it equals: of the sizes up to 32, 60
/// pairs of which none divides the other have rows that are one below the exact floor, such as 8 queries and 6 keys.
///
/// # Panics
/// If a size is 0.
pub fn decomposed_row(query: usize, key: usize, queries: usize, keys: usize) -> usize {
    // Numbers of Python in f64, tensors in f32.
    let ratio = |a: usize, b: usize| (a as f64 / b as f64).max(1.0);
    let (by_query, by_key) = (ratio(keys, queries), ratio(queries, keys));
    let shift = ((keys - 1) as f64 * by_key) as f32;
    (query as f32 * by_query as f32 - key as f32 * by_key as f32 + shift).max(0.0) as usize
}

/// Relative positions of one axis, `[queries, keys, dim]`: a query's product with a pair's gives SAM's, ViTDet's and MViTv2's
/// decomposed bias ([`Window::decomposed`]).
///
/// The table `[length, dim]` is resized to `2 * max(queries, keys) - 1` rows, linear with half-pixel centres, where it has another
/// length; then each pair reads its [`decomposed_row`].
///
/// # Errors
/// If a size is 0 or the table is not `[length, dim]`.
///
/// # Source
/// `get_rel_pos` of SAM, timm 1.0.31 and transformers 5.24.
///
/// # Example
/// ```
/// // Two queries and two keys: the differences 0 and -1, then 1 and 0.
/// let positions = posenc::bias::decomposed_axis(&[1.0f32, 2.0, 3.0], 1, 2, 2)?;
/// assert_eq!(positions, [2.0, 1.0, 3.0, 2.0]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn decomposed_axis<T: Scalar>(table: &[T], dim: usize, queries: usize, keys: usize) -> Result<Vec<T>> {
    if [table.len(), dim, queries, keys].contains(&0) || !table.len().is_multiple_of(dim) {
        return Err(Error::Value(format!(
            "a table of {} elements in rows of {dim} for {queries} queries and {keys} keys: rows must be whole, and none of these 0",
            table.len()
        )));
    }
    let need = product("queries x keys x dim", &[queries, keys, dim])?;
    check_sides([queries, keys])?;
    let (length, wanted) = (table.len() / dim, 2 * queries.max(keys) - 1);
    let rows = if length == wanted { Vec::new() } else { TableResize::Bilinear.axis(length, wanted) };
    let value = |row: usize, channel: usize| match rows.get(row) {
        Some(taps) => T::from_f64(weighted(taps, |row| table[row * dim + channel].to_f64())),
        None => table[row * dim + channel],
    };
    let pairs = (0..queries).flat_map(|query| (0..keys).map(move |key| decomposed_row(query, key, queries, keys)));
    let elements = pairs.flat_map(|row| (0..dim).map(move |channel| (row, channel)));
    collected("elements of an axis", need, elements.map(|(row, channel)| value(row, channel)))
}
