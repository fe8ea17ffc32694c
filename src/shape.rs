//! Sizes and strides of one call: one strided core, and three shapes in front of it.
//!
//! A shape counts elements, never bytes; the innermost dimension has stride 1.

use crate::{Error, Result};

/// `a * b` of sizes, or an error that names the product. The limit is 63 bits, so that a kernel's signed offsets hold it.
#[inline]
pub(crate) fn product(what: &str, factors: &[usize]) -> Result<usize> {
    match factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor)) {
        Some(product) if product <= i64::MAX as usize => Ok(product),
        _ => Err(too_large(what, factors)),
    }
}

#[cold]
fn too_large(what: &str, factors: &[usize]) -> Error {
    let factors = factors.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    Error::Overflow(format!("{what} ({factors})"))
}

/// One past the last element that `dims` of `(size, stride)` reach from `offset`; 0 when a size is 0.
#[inline]
pub(crate) fn span(what: &str, offset: usize, dims: &[(usize, usize)]) -> Result<usize> {
    if dims.iter().any(|&(size, _)| size == 0) {
        return Ok(0);
    }
    let reach = |last: usize, &(size, stride): &(usize, usize)| last.checked_add((size - 1).checked_mul(stride)?);
    // Each sum is as large as the one before it, so that the last one answers for all.
    match dims.iter().try_fold(offset, reach) {
        Some(last) if last < i64::MAX as usize => Ok(last + 1),
        _ => Err(too_far(what, offset, dims)),
    }
}

/// The first product or sum of [`span`] that does not fit.
#[cold]
fn too_far(what: &str, offset: usize, dims: &[(usize, usize)]) -> Error {
    let mut last = offset;
    for &(size, stride) in dims {
        match product(what, &[size - 1, stride]) {
            Ok(step) if last.saturating_add(step) < i64::MAX as usize => last += step,
            Ok(_) => break,
            Err(error) => return error,
        }
    }
    Error::Overflow(format!("the reach of {what}"))
}

/// Refuses dimensions of which two different indices meet at one element.
#[inline]
pub(crate) fn distinct<const N: usize>(what: &str, dims: [(usize, usize); N]) -> Result<()> {
    // Nearly all tensors lie in the order of their dimensions, which then need no sorting.
    let mut taken = dims.iter().rev().filter(|&&(size, _)| size != 1);
    let reach = taken.try_fold(1usize, |reach, &(size, stride)| {
        let step = size.checked_sub(1)?.checked_mul(stride)?;
        if stride < reach { None } else { reach.checked_add(step) }
    });
    match reach {
        Some(reach) if reach <= i64::MAX as usize => Ok(()),
        _ => distinct_sorted(what, dims),
    }
}

/// [`distinct`] of dimensions in any order.
fn distinct_sorted<const N: usize>(what: &str, mut dims: [(usize, usize); N]) -> Result<()> {
    if dims.iter().any(|&(size, _)| size == 0) {
        return Ok(());
    }
    dims.sort_unstable_by_key(|&(_, stride)| stride);
    let mut reach = 1usize;
    for (size, stride) in dims.into_iter().filter(|&(size, _)| size > 1) {
        if stride < reach {
            return Err(Error::Value(format!(
                "{what} is written and its elements overlap: a dimension of {size} has stride {stride}, \
                 and {reach} elements lie below it"
            )));
        }
        reach = span(what, 0, &[(reach, 1), (size, stride)])?;
    }
    Ok(())
}

/// What all shapes are: an offset and dimensions of `(size, stride)`, outermost first. Fewer than four are led by `(1, 0)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Strided {
    pub(crate) what: &'static str,
    pub(crate) offset: usize,
    pub(crate) dims: [(usize, usize); 4],
}

impl Strided {
    #[inline]
    pub(crate) fn span(&self) -> Result<usize> {
        span(self.what, self.offset, &self.dims)
    }

    /// The union of the offset and of every stride that is taken: a power of two divides all where it divides this.
    #[inline]
    pub(crate) fn steps(&self) -> usize {
        let outer = self.dims.iter().take(3).filter(|(size, _)| *size > 1);
        outer.fold(self.offset, |all, &(_, stride)| all | stride)
    }

    /// Refuses two tensors of one buffer that may share an element.
    ///
    /// Proved apart: ranges that do not meet, at the top level or inside a common outer dimension whose stride holds
    /// both. Everything else is refused, even where a finer argument would find no common element.
    ///
    /// # Errors
    /// With offsets and strides of both.
    pub fn check_apart(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        // Outermost first; a dimension of one element has no stride to speak of.
        let sorted = |of: &Self| {
            let mut dims = of.dims.map(|(size, stride)| (size, if size == 1 { 0 } else { stride }));
            dims.sort_unstable_by_key(|&(_, stride)| std::cmp::Reverse(stride));
            dims
        };
        let (a, b) = (sorted(self), sorted(other));
        let (mut a, mut b) = (&a[..], &b[..]);
        loop {
            let a_end = span(name, self.offset, a)?;
            let b_end = span(other_name, other.offset, b)?;
            if a_end <= other.offset || b_end <= self.offset {
                return Ok(());
            }
            match (a.split_first(), b.split_first()) {
                (Some((outer, a_rest)), Some((b_outer, b_rest))) if outer == b_outer => {
                    let start = self.offset.min(other.offset);
                    let end = span(name, self.offset, a_rest)?.max(span(other_name, other.offset, b_rest)?);
                    if end - start > outer.1 {
                        break;
                    }
                    (a, b) = (a_rest, b_rest);
                }
                _ => break,
            }
        }
        let strides = |of: &Self| of.dims.iter().take(3).map(|&(_, stride)| stride).collect::<Vec<_>>();
        Err(Error::Value(format!(
            "{name} (offset {}, strides {:?}) and {other_name} (offset {}, strides {:?}) may overlap in one buffer",
            self.offset,
            strides(self),
            other.offset,
            strides(other)
        )))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Heads {}
    impl Sealed for super::Tokens {}
    impl Sealed for super::Logits {}
    impl Sealed for super::Numbers {}
}

/// The sizes and strides of a tensor: [`Heads`], [`Tokens`](crate::embed::Tokens), [`Logits`] or
/// [`Numbers`](crate::bias::Numbers). Sealed.
pub trait Shape: sealed::Sealed + Copy + std::fmt::Debug + PartialEq {
    /// names of the sizes
    #[doc(hidden)]
    const SIZES: &'static str;

    #[doc(hidden)]
    fn strided(&self) -> Strided;

    /// Refuses sizes outside the shape's own rules.
    #[doc(hidden)]
    fn check_sizes(&self, name: &str) -> Result<()>;

    /// Refuses sizes outside the shape's rules, and a buffer of `len` elements that is too short. Returns the span.
    #[doc(hidden)]
    #[inline]
    fn check(&self, name: &'static str, len: usize) -> Result<usize> {
        self.check_sizes(name)?;
        let need = self.strided().span()?;
        if len < need { Err(Error::Length { name, got: len, need }) } else { Ok(need) }
    }

    /// [`Shape::check`] for a tensor that is written: its elements must not overlap.
    #[doc(hidden)]
    #[inline]
    fn check_written(&self, name: &'static str, len: usize) -> Result<usize> {
        let span = self.check(name, len)?;
        distinct(name, self.strided().dims)?;
        Ok(span)
    }

    /// Refuses two tensors of different sizes.
    #[doc(hidden)]
    #[inline]
    fn check_same(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        let of = |shape: &Self| shape.strided().dims.map(|(size, _)| size);
        if of(self) == of(other) {
            return Ok(());
        }
        let (sizes, missing) = (Self::SIZES.replace(" x ", ", "), 4 - Self::SIZES.split(" x ").count());
        Err(Error::Value(format!(
            "{name} has the sizes {:?} and {other_name} {:?} ({sizes}), they must be equal",
            &of(self)[missing..],
            &of(other)[missing..]
        )))
    }
}

/// `elements`, `span`, `at` and the core of a shape of `$rank` dimensions.
macro_rules! shape {
    ($Shape:ident, $what:literal, $sizes:literal, $rank:literal, $dims:expr, $check:expr) => {
        impl $Shape {
            #[doc = concat!("Elements of the tensor, `", $sizes, "`.")]
            ///
            /// # Errors
            /// If the product does not fit into 63 bits.
            #[inline]
            pub fn elements(&self) -> Result<usize> {
                let sizes = $dims(self).map(|(size, _)| size);
                product($sizes, &sizes[4 - $rank..])
            }

            /// Elements that a buffer must hold: one past the last element that the tensor reaches, 0 for an empty tensor.
            ///
            /// # Errors
            /// If a product does not fit into 63 bits.
            pub fn span(&self) -> Result<usize> {
                self.strided().span()
            }

            /// The same tensor, starting at element `offset` of its buffer.
            #[must_use]
            pub const fn at(self, offset: usize) -> Self {
                Self { offset, ..self }
            }
        }

        impl Shape for $Shape {
            const SIZES: &'static str = $sizes;

            #[inline]
            fn strided(&self) -> Strided {
                Strided { what: $what, offset: self.offset, dims: $dims(self) }
            }

            #[inline]
            fn check_sizes(&self, name: &str) -> Result<()> {
                $check(self, name)?;
                self.elements().map(|_| ())
            }
        }
    };
}

/// A tensor of embeddings, `[batch, tokens, dim]`; the channels of a token lie side by side.
///
/// Element `(b, t, c)` lies at `offset + b * strides[0] + t * strides[1] + c`.
///
/// ```
/// use posenc::embed::Tokens;
/// // The 196 patches behind a class token, in a buffer of [2, 197, 768].
/// let patches = Tokens { offset: 768, strides: [197 * 768, 768], ..Tokens::new(2, 196, 768) };
/// assert_eq!(patches.span()?, 2 * 197 * 768);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tokens {
    /// sequences
    pub batch: usize,
    /// tokens of each sequence
    pub tokens: usize,
    /// channels of each token
    pub dim: usize,
    /// first element
    pub offset: usize,
    /// elements from one sequence and one token to the next
    pub strides: [usize; 2],
}

impl Tokens {
    /// `[batch, tokens, dim]`, contiguous.
    pub const fn new(batch: usize, tokens: usize, dim: usize) -> Self {
        // Saturating: an overflow here is found, with its numbers, by `span`.
        Self { batch, tokens, dim, offset: 0, strides: [tokens.saturating_mul(dim), dim] }
    }

    /// Index of element `(batch, token, channel)` in the buffer.
    pub const fn index(&self, batch: usize, token: usize, channel: usize) -> usize {
        self.offset + batch * self.strides[0] + token * self.strides[1] + channel
    }

    /// True if a call has nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.batch == 0 || self.tokens == 0
    }

    /// Refuses another number of channels than `dim`.
    #[doc(hidden)]
    pub fn check_dim(&self, name: &str, dim: usize) -> Result<()> {
        if self.dim == dim {
            return Ok(());
        }
        Err(Error::Value(format!("{name} has {} channels, the encoding has {dim}", self.dim)))
    }
}

shape!(
    Tokens,
    "a tensor of embeddings",
    "batch x tokens x dim",
    3,
    |of: &Tokens| [(1, 0), (of.batch, of.strides[0]), (of.tokens, of.strides[1]), (of.dim, 1)],
    |_: &Tokens, _: &str| Ok::<(), Error>(())
);

/// A tensor of heads, `[batch, tokens, heads, dim]` in any order of memory: queries, keys, values or their gradients.
///
/// Element `(b, t, h, c)` lies at `offset + b * strides[0] + t * strides[1] + h * strides[2] + c`.
///
/// ```
/// use posenc::Heads;
/// // Queries and keys inside one packed buffer [tokens, (32 + 8 + 8) * 128].
/// let row = (32 + 8 + 8) * 128;
/// let q = Heads::thd(7, 32, 128).row(row);
/// let k = Heads::thd(7, 8, 128).row(row).at(32 * 128);
/// assert_eq!(k.span()?, 6 * row + (32 + 8) * 128);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Heads {
    /// sequences
    pub batch: usize,
    /// tokens of each sequence
    pub tokens: usize,
    /// heads of each token
    pub heads: usize,
    /// channels of each head
    pub dim: usize,
    /// first element
    pub offset: usize,
    /// elements from one batch, token and head to the next
    pub strides: [usize; 3],
}

impl Heads {
    /// `[tokens, heads, dim]`, contiguous.
    pub const fn thd(tokens: usize, heads: usize, dim: usize) -> Self {
        Self::bthd(1, tokens, heads, dim)
    }

    /// `[batch, tokens, heads, dim]`, contiguous.
    pub const fn bthd(batch: usize, tokens: usize, heads: usize, dim: usize) -> Self {
        // Saturating: an overflow here is found, with its numbers, by `span`.
        let head = dim;
        let token = heads.saturating_mul(head);
        let strides = [tokens.saturating_mul(token), token, head];
        Self { batch, tokens, heads, dim, offset: 0, strides }
    }

    /// `[batch, heads, tokens, dim]`, contiguous.
    pub const fn bhtd(batch: usize, heads: usize, tokens: usize, dim: usize) -> Self {
        let token = dim;
        let head = tokens.saturating_mul(token);
        let strides = [heads.saturating_mul(head), token, head];
        Self { batch, tokens, heads, dim, offset: 0, strides }
    }

    /// The same tensor as part of rows of `row` elements: one token's row follows another's, one sequence another.
    #[must_use]
    pub const fn row(self, row: usize) -> Self {
        let [_, _, head] = self.strides;
        Self { strides: [self.tokens.saturating_mul(row), row, head], ..self }
    }

    /// Index of element `(batch, token, head, channel)` in the buffer.
    pub const fn index(&self, batch: usize, token: usize, head: usize, channel: usize) -> usize {
        self.offset + batch * self.strides[0] + token * self.strides[1] + head * self.strides[2] + channel
    }

    /// True if a call has nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.batch == 0 || self.tokens == 0
    }

    /// Refuses keys that do not go with these queries.
    #[doc(hidden)]
    pub fn check_pair(&self, k: &Self) -> Result<()> {
        for (what, q, k) in
            [("sequences", self.batch, k.batch), ("tokens", self.tokens, k.tokens), ("channels", self.dim, k.dim)]
        {
            if q != k {
                return Err(Error::Value(format!("q has {q} {what} and k {k}, they must be equal")));
            }
        }
        Ok(())
    }
}

shape!(
    Heads,
    "a tensor of heads",
    "batch x tokens x heads x dim",
    4,
    |of: &Heads| [(of.batch, of.strides[0]), (of.tokens, of.strides[1]), (of.heads, of.strides[2]), (of.dim, 1)],
    |of: &Heads, name: &str| {
        if of.heads > 0 && of.dim > 0 {
            return Ok(());
        }
        Err(Error::Value(format!("{name} has {} heads of {} channels, both must be at least 1", of.heads, of.dim)))
    }
);

/// Attention logits `[batch, heads, queries, keys]` in any order of memory, keys innermost with stride 1.
///
/// Element `(b, h, i, j)` lies at `offset + b * strides[0] + h * strides[1] + i * strides[2] + j`.
///
/// ```
/// use posenc::Logits;
/// // Rows of 1023 keys inside rows of 1024 elements: 16-byte accesses stay possible.
/// let s = Logits::bhqk(2, 12, 5, 1023).row(1024);
/// assert_eq!(s.span()?, (2 * 12 * 5 - 1) * 1024 + 1023);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Logits {
    /// sequences
    pub batch: usize,
    /// heads of each sequence
    pub heads: usize,
    /// queries of each head: rows
    pub queries: usize,
    /// keys of each row
    pub keys: usize,
    /// first element
    pub offset: usize,
    /// elements from one batch, head and query to the next
    pub strides: [usize; 3],
}

impl Logits {
    /// `[batch, heads, queries, keys]`, contiguous.
    pub const fn bhqk(batch: usize, heads: usize, queries: usize, keys: usize) -> Self {
        Self { batch, heads, queries, keys, offset: 0, strides: [0; 3] }.row(keys)
    }

    /// `[batch, heads, queries]` rows that are `row` elements apart.
    #[must_use]
    pub const fn row(self, row: usize) -> Self {
        // Saturating: an overflow here is found, with its numbers, by `span`.
        let head = self.queries.saturating_mul(row);
        Self { strides: [self.heads.saturating_mul(head), head, row], ..self }
    }

    /// Rows of the tensor, `batch * heads * queries`.
    ///
    /// # Errors
    /// If the product does not fit into 63 bits.
    pub fn rows(&self) -> Result<usize> {
        product("batch x heads x queries", &[self.batch, self.heads, self.queries])
    }

    /// Index of element `(batch, head, query, key)` in the buffer.
    pub const fn index(&self, batch: usize, head: usize, query: usize, key: usize) -> usize {
        self.offset + batch * self.strides[0] + head * self.strides[1] + query * self.strides[2] + key
    }

    /// Sequence, head and query of every row.
    pub(crate) fn each_row(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let Self { batch, heads, queries, .. } = *self;
        // Sequences without rows may be without number, and are not walked.
        let batch = if heads == 0 || queries == 0 { 0 } else { batch };
        (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..queries).map(move |i| [b, h, i])))
    }

    /// [`Logits::each_row`] of rows that have keys.
    pub(crate) fn each_full_row(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let batch = if self.keys == 0 { 0 } else { self.batch };
        Self { batch, ..*self }.each_row()
    }

    /// True if a call has nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.batch == 0 || self.queries == 0 || self.keys == 0
    }

    /// Refuses sizes of 2^31 and more.
    pub(crate) fn check_counts(&self, name: &str) -> Result<()> {
        for (what, size) in
            [("sequences", self.batch), ("heads", self.heads), ("queries", self.queries), ("keys", self.keys)]
        {
            if size > i32::MAX as usize {
                return Err(Error::Value(format!("{name} has {size} {what}, there may be 2147483647")));
            }
        }
        Ok(())
    }
}

shape!(
    Logits,
    "a tensor of logits",
    "batch x heads x queries x keys",
    4,
    |of: &Logits| [(of.batch, of.strides[0]), (of.heads, of.strides[1]), (of.queries, of.strides[2]), (of.keys, 1)],
    |of: &Logits, name: &str| {
        if of.heads == 0 {
            return Err(Error::Value(format!("{name} has 0 heads, there must be at least 1")));
        }
        of.check_counts(name)
    }
);

/// Numbers that a term of a bias reads, `[batch, heads, rows, entries]` in any order of memory. A size of 1 serves every
/// sequence, head or row.
///
/// Number `(b, h, r, e)` lies at `offset + b * strides[0] + h * strides[1] + r * strides[2] + e * strides[3]`.
///
/// ```
/// use posenc::bias::Numbers;
/// // Swin's table as the model stores it, [169, 3].
/// assert_eq!(Numbers::table(169, 3).index(0, 2, 0, 100), 302);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Numbers {
    /// sequences, or 1
    pub batch: usize,
    /// heads, or 1
    pub heads: usize,
    /// queries or keys, or 1
    pub rows: usize,
    /// numbers of a row
    pub entries: usize,
    /// first element
    pub offset: usize,
    /// elements from one batch, head, row and entry to the next
    pub strides: [usize; 4],
}

impl Numbers {
    /// A table `[entries, heads]`, contiguous: how models store the biases of windows and buckets.
    pub const fn table(entries: usize, heads: usize) -> Self {
        Self { batch: 1, heads, rows: 1, entries, offset: 0, strides: [0, 1, 0, heads] }
    }

    /// A table `[heads, entries]`, contiguous.
    pub const fn by_head(heads: usize, entries: usize) -> Self {
        Self::rows(1, heads, 1, entries)
    }

    /// `[batch, heads, rows, entries]`, contiguous: products of states and a table, or a dense bias.
    pub const fn rows(batch: usize, heads: usize, rows: usize, entries: usize) -> Self {
        // Saturating: an overflow here is found, with its numbers, by `span`.
        let head = rows.saturating_mul(entries);
        Self { batch, heads, rows, entries, offset: 0, strides: [heads.saturating_mul(head), head, entries, 1] }
    }

    /// Index of number `(batch, head, row, entry)` in the buffer.
    pub const fn index(&self, batch: usize, head: usize, row: usize, entry: usize) -> usize {
        let [b, h, r, e] = self.strides;
        self.offset + batch * b + head * h + row * r + entry * e
    }

    /// Strides of batch, head and row, as a kernel takes them.
    #[cfg(feature = "cuda")]
    pub(crate) fn row_strides(&self) -> [i64; 3] {
        let [batch, head, row, _] = self.strides;
        [batch, head, row].map(|stride| stride as i64)
    }

    /// The index of a number, where a size of 1 serves all.
    pub(crate) fn shared_index(&self, batch: usize, head: usize, row: usize, entry: usize) -> usize {
        let own = |size: usize, at: usize| if size == 1 { 0 } else { at };
        self.index(own(self.batch, batch), own(self.heads, head), own(self.rows, row), own(self.entries, entry))
    }
}

shape!(
    Numbers,
    "numbers of a term",
    "batch x heads x rows x entries",
    4,
    |of: &Numbers| [
        (of.batch, of.strides[0]),
        (of.heads, of.strides[1]),
        (of.rows, of.strides[2]),
        (of.entries, of.strides[3])
    ],
    |of: &Numbers, name: &str| {
        if of.heads > 0 && of.entries > 0 && of.entries <= i32::MAX as usize {
            return Ok(());
        }
        Err(Error::Value(format!(
            "{name} has {} heads and {} entries, both must be at least 1 and the entries below 2^31",
            of.heads, of.entries
        )))
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_place_every_element() {
        let (b, t, h, d) = (2, 3, 5, 7);
        assert_eq!(Heads::bthd(b, t, h, d).index(1, 2, 4, 6), ((3 + 2) * 5 + 4) * 7 + 6);
        assert_eq!(Heads::bhtd(b, h, t, d).index(1, 2, 4, 6), ((5 + 4) * 3 + 2) * 7 + 6);
        for heads in [Heads::bthd(b, t, h, d), Heads::bhtd(b, h, t, d)] {
            assert_eq!(heads.span().unwrap(), b * t * h * d);
            heads.check_written("q", b * t * h * d).unwrap();
        }
    }

    #[test]
    fn an_empty_tensor_needs_nothing() {
        assert_eq!(Heads::thd(0, 8, 64).span().unwrap(), 0);
        assert!(Heads::thd(0, 8, 64).is_empty());
        // Strides of contiguous tensors without elements are 0.
        Heads::bthd(2, 0, 8, 64).check_written("q", 0).unwrap();
        Logits::bhqk(2, 3, 0, 5).check_written("logits", 0).unwrap();
        Logits::bhqk(2, 3, 5, 0).check_written("logits", 0).unwrap();
    }

    #[test]
    fn short_buffers_are_refused_with_both_numbers() {
        let error = Heads::thd(2, 2, 2).check("q", 7).unwrap_err();
        assert_eq!(error.to_string(), "q holds 7 elements, the shape needs 8");
    }

    #[test]
    fn overlapping_writes_are_refused() {
        let heads = Heads { strides: [0, 4, 6], ..Heads::thd(3, 2, 8) };
        let error = heads.check_written("q", 1000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "q is written and its elements overlap: a dimension of 3 has stride 4, and 8 elements lie below it"
        );
        assert!(Heads { strides: [0, 0, 8], ..Heads::thd(2, 1, 8) }.check_written("q", 1000).is_err());
        Heads { strides: [0, 0, 0], ..Heads::thd(1, 1, 8) }.check_written("q", 8).unwrap();
    }

    #[test]
    fn products_that_overflow_are_refused() {
        let error = Heads::thd(1 << 40, 1 << 20, 1 << 20).check("q", 7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "batch x tokens x heads x dim (1 x 1099511627776 x 1048576 x 1048576) does not fit into 63 bits"
        );
        assert!(Heads::thd(2, 1, 1).at(usize::MAX).span().is_err());
    }

    #[test]
    fn packed_queries_and_keys_are_apart_and_shifted_ones_are_not() {
        let row = 48 * 64;
        let q = Heads::bthd(3, 5, 32, 64).row(row);
        let k = Heads::bthd(3, 5, 8, 64).row(row).at(32 * 64);
        let apart = |a: Heads, b: Heads| a.strided().check_apart("a", &b.strided(), "b");
        apart(q, k).unwrap();
        apart(k, q).unwrap();
        assert!(apart(q, k.at(32 * 64 - 1)).is_err());
        assert!(apart(q, k.at(row - 1)).is_err());

        let block = 48 * 5 * 64;
        let bhtd = |heads: usize, at: usize| {
            let heads = Heads::bhtd(3, heads, 5, 64).at(at);
            Heads { strides: [block, heads.strides[1], heads.strides[2]], ..heads }
        };
        apart(bhtd(32, 0), bhtd(8, 32 * 5 * 64)).unwrap();
        assert!(apart(bhtd(32, 0), bhtd(8, 31 * 5 * 64)).is_err());
    }

    #[test]
    fn logits_place_every_element_and_refuse_what_breaks() {
        let s = Logits::bhqk(2, 3, 5, 7).row(8).at(4);
        assert_eq!(s.index(1, 2, 4, 6), 4 + (29 * 8) + 6);
        assert_eq!(s.span().unwrap(), 4 + 29 * 8 + 7);
        s.check_written("logits", s.span().unwrap()).unwrap();
        assert_eq!(s.check("logits", 10).unwrap_err().to_string(), "logits holds 10 elements, the shape needs 243");
        let error = Logits::bhqk(2, 3, 5, 7).row(6).check_written("logits", 1000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "logits is written and its elements overlap: a dimension of 5 has stride 6, and 7 elements lie below it"
        );
        let error = Logits::bhqk(1, 0, 5, 7).check("logits", 0).unwrap_err();
        assert_eq!(error.to_string(), "logits has 0 heads, there must be at least 1");
        let side = 1 << 31;
        let error = Logits::bhqk(1, 1, 1, side).check("logits", 0).unwrap_err();
        assert_eq!(error.to_string(), "logits has 2147483648 keys, there may be 2147483647");
        let side = (1 << 31) - 1;
        let error = Logits::bhqk(side, 1, side, side).check("logits", 0).unwrap_err();
        assert!(error.to_string().ends_with("does not fit into 63 bits"), "{error}");
    }
}
