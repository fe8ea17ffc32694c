//! Token positions: those of one call, those of queries and keys, and integer maps that make them.

#[cfg(feature = "cuda")]
mod fixed;
mod grid;
mod maps;
mod places;
mod spans;

#[cfg(feature = "cuda")]
pub use fixed::{FixedPlan, Reals};
pub use grid::{GridAxis, GridCoordinate, GridExtent, GridPositions};
pub use maps::*;
pub(crate) use places::LIMIT;
pub use places::{AsIndices, Packed, Place, Places};
pub use spans::{After, Mix, Patches, Span, SpanPositions};

#[cfg(feature = "cuda")]
use crate::gpu::{Call, Read, args};
use crate::shape::{product, span};
use crate::{Error, Result};

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
    impl Sealed for u32 {}
}

/// An integer type that positions and ids may have on the device: `i32`, `i64` or `u32`. Sealed.
///
/// Other types are refused by the compiler: a float holds whole numbers up to 2^24 only, a half type up to 2048 or 256.
///
/// ```compile_fail
/// use posenc::{Ids, Positions};
/// fn positions(ids: &cudarc::driver::CudaSlice<f32>) -> Positions<Ids<'_>> {
///     Positions::ids(ids)
/// }
/// ```
#[cfg(feature = "cuda")]
#[diagnostic::on_unimplemented(
    message = "ids of type `{Self}` are refused",
    note = "ids and positions are i32, i64 or u32: f32 holds whole numbers up to 2^24 only"
)]
pub trait Id: sealed::Sealed + Sized {
    /// A device buffer as ids of this type: `i32::ids(&ids)`.
    fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a>;
}

#[cfg(feature = "cuda")]
macro_rules! id {
    ($($Id:ty => $variant:ident),*) => {$(
        impl Id for $Id {
            fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a> {
                Ids::$variant(ids)
            }
        }
    )*};
}

#[cfg(feature = "cuda")]
id!(i32 => I32, i64 => I64, u32 => U32);

/// A device buffer of ids.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy)]
pub enum Ids<'a> {
    /// 32 bits
    I32(Read<'a, i32>),
    /// 64 bits
    I64(Read<'a, i64>),
    /// 32 bits without sign
    U32(Read<'a, u32>),
}

#[cfg(feature = "cuda")]
impl<'a> Ids<'a> {
    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::I32(ids) => ids.len(),
            Self::I64(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// True without ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands them in, `need` of them.
    pub(crate) fn hold(self, call: &mut Call<'a>, name: &'static str, need: usize) -> Result<(args::In, args::IdType)> {
        Ok(match self {
            Self::I32(ids) => (call.read(name, ids, need)?, args::IdType::I32),
            Self::I64(ids) => (call.read(name, ids, need)?, args::IdType::I64),
            Self::U32(ids) => (call.read(name, ids, need)?, args::IdType::U32),
        })
    }
}

#[cfg(feature = "cuda")]
impl std::fmt::Debug for Ids<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::I32(_) => "i32",
            Self::I64(_) => "i64",
            Self::U32(_) => "u32",
        };
        write!(f, "Ids({} of {name})", self.len())
    }
}

/// What positions may be made of: a slice of `i64` on the CPU, a buffer of any [`Id`] on the device.
#[diagnostic::on_unimplemented(
    message = "positions cannot be made of `{Self}`",
    note = "they are a slice of i64 on the CPU, a device buffer of i32, i64 or u32 on a GPU: f32 holds whole numbers up to 2^24 only"
)]
pub trait AsIds<A> {
    #[doc(hidden)]
    fn into_ids(self) -> A;
}

impl<'a> AsIds<&'a [i64]> for &'a [i64] {
    fn into_ids(self) -> &'a [i64] {
        self
    }
}

impl<'a> AsIds<&'a [i64]> for &'a Vec<i64> {
    fn into_ids(self) -> &'a [i64] {
        self
    }
}

impl<'a, const N: usize> AsIds<&'a [i64]> for &'a [i64; N] {
    fn into_ids(self) -> &'a [i64] {
        self
    }
}

#[cfg(feature = "cuda")]
impl<'a> AsIds<Ids<'a>> for Ids<'a> {
    fn into_ids(self) -> Ids<'a> {
        self
    }
}

#[cfg(feature = "cuda")]
impl<'a, I: Id> AsIds<Ids<'a>> for Read<'a, I> {
    fn into_ids(self) -> Ids<'a> {
        I::ids(self)
    }
}

#[cfg(feature = "cuda")]
impl<'a, I: Id> AsIds<Ids<'a>> for &'a cudarc::driver::CudaSlice<I> {
    fn into_ids(self) -> Ids<'a> {
        I::ids(self)
    }
}

#[cfg(feature = "cuda")]
impl<'a, I: Id> AsIds<Ids<'a>> for &'a cudarc::driver::CudaView<'_, I> {
    fn into_ids(self) -> Ids<'a> {
        I::ids(self)
    }
}

/// Refuses fewer than `row` positions for each axis, whose rows lie `stride` apart.
fn check_len(got: usize, axes: usize, row: usize, stride: usize) -> Result<()> {
    let need = span("positions", 0, &[(axes, stride), (row, 1)])?;
    match axes {
        _ if got >= need => Ok(()),
        0 | 1 => Err(Error::Length { name: "positions", got, need }),
        _ => Err(Error::Value(format!("positions holds {got} elements, {axes} axes of {row} positions need {need}"))),
    }
}

/// Token positions of one call. `A` is `&[i64]` on the CPU and [`Ids`] on the device.
///
/// | constructor | buffer | position of token `t` of sequence `b` |
/// |---|---|---|
/// | [`Positions::counted`] | none | `t` |
/// | [`Positions::starts`] | `[axes, batch]` | `starts[b] + t` |
/// | [`Positions::ids`] | `[axes, batch, tokens]` | its own id |
/// | [`Positions::packed`] | `indptr [sequences + 1]` | `t - indptr[s]` in a batch of one, for the sequence `s` with `indptr[s] <= t < indptr[s + 1]` |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Positions<A> {
    kind: Kind<A>,
    /// of packed sequences
    first: Option<A>,
    axis_stride: Option<usize>,
    shared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind<A> {
    Counted,
    Starts(A),
    Ids(A),
    Packed { indptr: A, sequences: usize },
}

impl<A> Positions<A> {
    const fn of(kind: Kind<A>) -> Self {
        Self { kind, first: None, axis_stride: None, shared: false }
    }

    /// 0, 1, 2 ... in every sequence; no buffer is read.
    #[must_use]
    pub const fn counted() -> Self {
        Self::of(Kind::Counted)
    }

    /// A start for each sequence, `[batch]`; its tokens follow one another.
    #[must_use]
    pub fn starts(starts: impl AsIds<A>) -> Self {
        Self::of(Kind::Starts(starts.into_ids()))
    }

    /// An id for each token: `[batch, tokens]`, or `[axes, batch, tokens]` for a spec with several axes.
    #[must_use]
    pub fn ids(ids: impl AsIds<A>) -> Self {
        Self::of(Kind::Ids(ids.into_ids()))
    }

    /// Sequences packed one after another into a batch of one: `indptr` holds `sequences + 1` first tokens, from 0 to
    /// the number of tokens (`cu_seqlens`), as `i32` on the device. Each sequence starts at position 0, or at
    /// [`Positions::starting_at`].
    #[must_use]
    pub fn packed(indptr: impl AsIds<A>, sequences: usize) -> Self {
        Self::of(Kind::Packed { indptr: indptr.into_ids(), sequences })
    }

    /// The first position of each packed sequence, `[sequences]`. Refused by a call whose positions are not packed.
    #[must_use]
    pub fn starting_at(mut self, first: impl AsIds<A>) -> Self {
        self.first = Some(first.into_ids());
        self
    }

    /// Shares a row of ids, `[tokens]`, or a start, among all sequences of the batch. Refused by a call whose positions are counted
    /// or packed.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Rows of different axes lie `stride` elements apart, as in a longer buffer `[axes, most_tokens]` of which a call
    /// uses the front. Refused by a call with one axis.
    #[must_use]
    pub const fn axis_stride(mut self, stride: usize) -> Self {
        self.axis_stride = Some(stride);
        self
    }

    /// Whether sequences have the same positions.
    pub(crate) const fn is_shared(&self, batch: usize) -> bool {
        self.shared || matches!(self.kind, Kind::Counted) || batch == 1
    }

    /// Whether tokens are counted from 0 or from starts.
    pub(crate) const fn follow(&self) -> bool {
        matches!(self.kind, Kind::Counted | Kind::Starts(_))
    }

    /// Sequences of a batch, those of a packed one.
    pub(crate) const fn sequence_count(&self, batch: usize) -> usize {
        match self.kind {
            Kind::Packed { sequences, .. } => sequences,
            _ => batch,
        }
    }

    /// Refuses what does not go together, and gives rows and the length of a row of positions, and the axes' stride.
    fn check(&self, axes: usize, batch: usize, tokens: usize) -> Result<(usize, usize, usize)> {
        let wrong = |text: String| Err(Error::Value(text));
        let (rows, row) = match self.kind {
            Kind::Counted | Kind::Starts(_) | Kind::Ids(_) if self.first.is_some() => {
                return wrong("`starting_at` is for packed positions, these are not packed".into());
            }
            Kind::Counted if self.shared => {
                return wrong("counted positions are those of every sequence, `shared` says nothing".into());
            }
            Kind::Packed { .. } if self.shared => {
                return wrong("packed positions have a batch of one, `shared` says nothing".into());
            }
            Kind::Counted => (1, 1),
            Kind::Starts(_) => (if self.shared { 1 } else { batch }, 1),
            Kind::Ids(_) => (if self.shared { 1 } else { batch }, tokens),
            Kind::Packed { sequences: 0, .. } => {
                return wrong("packed positions hold 0 sequences, at least 1 is needed".into());
            }
            Kind::Packed { .. } if batch != 1 => {
                return wrong(format!("packed positions need a batch of 1, the shape has {batch}"));
            }
            Kind::Packed { sequences, .. } => (1, sequences),
        };
        let values = match self.kind {
            Kind::Counted => false,
            Kind::Starts(_) | Kind::Ids(_) => true,
            Kind::Packed { .. } => self.first.is_some(),
        };
        if axes > 1 && !values {
            return wrong(format!("the spec has {axes} axes, positions without ids have one"));
        }
        let all = product("batch x tokens of positions", &[rows, row])?;
        let axis_stride = match self.axis_stride {
            Some(stride) if axes == 1 => {
                return wrong(format!("positions have an axis stride of {stride}, the spec has one axis"));
            }
            Some(stride) if stride < all => {
                return wrong(format!("positions have an axis stride of {stride}, a row of one axis holds {all}"));
            }
            stride => stride.unwrap_or(all),
        };
        Ok((rows, row, axis_stride))
    }
}

#[cfg(feature = "cuda")]
impl<'a> Positions<Ids<'a>> {
    /// Hands the buffers in, after everything that needs no device is checked.
    pub(crate) fn hold(
        &self,
        call: &mut Call<'a>,
        axes: usize,
        batch: usize,
        tokens: usize,
    ) -> Result<args::PositionArgs> {
        let (rows, row, axis_stride) = self.check(axes, batch, tokens)?;
        let mut held: args::PositionArgs = bytemuck::Zeroable::zeroed();
        let buffer = match self.kind {
            Kind::Counted => None,
            Kind::Starts(ids) | Kind::Ids(ids) => Some(ids),
            Kind::Packed { .. } => self.first,
        };
        held.kind = match self.kind {
            Kind::Counted | Kind::Starts(_) => args::PositionKind::STARTS,
            Kind::Ids(_) => args::PositionKind::IDS,
            Kind::Packed { .. } => args::PositionKind::PACKED,
        };
        if let Some(ids) = buffer {
            check_len(ids.len(), axes, rows * row, axis_stride)?;
            let need = span("positions", 0, &[(axes, axis_stride), (rows, row), (row, 1)])?;
            (held.ids, held.id_type) = ids.hold(call, "positions", need)?;
        }
        if let Kind::Packed { indptr, sequences } = self.kind {
            let Ids::I32(indptr) = indptr else {
                return Err(Error::Value("indptr holds 64-bit or unsigned integers, it must hold i32".into()));
            };
            held.indptr = call.read("indptr", indptr, sequences.saturating_add(1))?;
            held.sequences = u32::try_from(sequences)
                .map_err(|_| Error::Overflow(format!("{sequences} sequences of a packed batch")))?;
        }
        held.axis_stride = axis_stride as i64;
        held.sequence_stride = if self.is_shared(2) { 0 } else { row as i64 };
        Ok(held)
    }
}

impl Positions<&[i64]> {
    /// The position of every token on every axis, `[axes, batch, tokens]`: for one row of ids the caller's own.
    ///
    /// # Errors
    /// If the positions do not go with these sizes, or a buffer is too short.
    ///
    /// # Example
    /// ```
    /// use posenc::Positions;
    /// assert_eq!(*Positions::starts(&[7, 0]).resolve(1, 2, 3)?, [7, 8, 9, 0, 1, 2]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn resolve(&self, axes: usize, batch: usize, tokens: usize) -> Result<std::borrow::Cow<'_, [i64]>> {
        let (rows, row, axis_stride) = self.check(axes, batch, tokens)?;
        let all = product("axes x batch x tokens", &[axes, batch, tokens])?;
        let mut made = Vec::new();
        if let Kind::Ids(ids) = self.kind {
            check_len(ids.len(), axes, rows * row, axis_stride)?;
            if !self.shared && axis_stride == batch * tokens {
                return Ok(ids[..all].into());
            }
        }
        let values = match self.kind {
            Kind::Counted => None,
            Kind::Starts(values) | Kind::Ids(values) => Some(values),
            Kind::Packed { .. } => self.first,
        };
        if let Some(values) = values {
            check_len(values.len(), axes, rows * row, axis_stride)?;
        }
        if let Kind::Packed { indptr, sequences } = self.kind {
            let need = sequences.saturating_add(1);
            if indptr.len() < need {
                return Err(Error::Length { name: "indptr", got: indptr.len(), need });
            }
            let indptr = &indptr[..need];
            let inside = indptr.iter().all(|&first| (0..=tokens as i64).contains(&first));
            if !inside || indptr.windows(2).any(|pair| pair[0] > pair[1]) {
                return Err(Error::Value(format!("indptr is {indptr:?}, it must ascend from 0 to at most {tokens}")));
            }
        }
        made.try_reserve_exact(all).map_err(|_| Error::Value(format!("there is no memory for {all} positions")))?;
        for axis in 0..axes {
            for sequence in 0..if tokens == 0 { 0 } else { batch } {
                for token in 0..tokens {
                    let own = if self.shared { 0 } else { sequence };
                    let (index, step) = match self.kind {
                        Kind::Counted | Kind::Starts(_) => (own, token as i64),
                        Kind::Ids(_) => (own * tokens + token, 0),
                        Kind::Packed { indptr, sequences } => {
                            // As kernels find it: the last sequence that begins at the token or before it.
                            let at = indptr[..sequences].partition_point(|&first| first <= token as i64);
                            let at = at.saturating_sub(1);
                            (at, token as i64 - indptr[at])
                        }
                    };
                    let from = values.map_or(0, |values| values[axis * axis_stride + index]);
                    made.push(from.wrapping_add(step));
                }
            }
        }
        Ok(made.into())
    }
}

impl Positions<&[i64]> {
    /// The sequence of every token, `[batch, tokens]`, of positions that are resolved.
    pub(crate) fn sequences(&self, batch: usize, tokens: usize) -> Vec<usize> {
        let of = |at: usize| match self.kind {
            Kind::Packed { indptr, sequences } => {
                indptr[..sequences].partition_point(|&first| first <= (at % tokens) as i64).saturating_sub(1)
            }
            _ => at / tokens,
        };
        (0..batch * tokens).map(of).collect()
    }
}

impl<'a> From<&'a [i64]> for Positions<&'a [i64]> {
    fn from(ids: &'a [i64]) -> Self {
        Self::ids(ids)
    }
}

impl<'a> From<&'a Vec<i64>> for Positions<&'a [i64]> {
    fn from(ids: &'a Vec<i64>) -> Self {
        Self::ids(ids)
    }
}

impl<'a, const N: usize> From<&'a [i64; N]> for Positions<&'a [i64]> {
    fn from(ids: &'a [i64; N]) -> Self {
        Self::ids(ids)
    }
}
