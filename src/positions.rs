//! Positions on the device: an id for each token, or one start for each sequence.

use crate::gpu::args::In;
use crate::gpu::{Gpu, Read};
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
/// use posenc::Positions;
/// fn positions(ids: &cudarc::driver::CudaSlice<f32>) -> Positions<'_> {
///     Positions::ids(ids)
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "ids of type `{Self}` are refused",
    note = "ids and positions are i32, i64 or u32: f32 holds whole numbers up to 2^24 only"
)]
pub trait Id: sealed::Sealed + Sized {
    /// A device buffer as ids of this type: `i32::ids(&ids)`.
    fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a>;
}

impl Id for i32 {
    fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a> {
        Ids::I32(ids)
    }
}

impl Id for i64 {
    fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a> {
        Ids::I64(ids)
    }
}

impl Id for u32 {
    fn ids<'a>(ids: Read<'a, Self>) -> Ids<'a> {
        Ids::U32(ids)
    }
}

/// A buffer of ids.
#[derive(Clone, Copy)]
pub enum Ids<'a> {
    /// 32 bits
    I32(Read<'a, i32>),
    /// 64 bits
    I64(Read<'a, i64>),
    /// 32 bits without sign
    U32(Read<'a, u32>),
}

impl Ids<'_> {
    fn len(&self) -> usize {
        match self {
            Self::I32(ids) => ids.len(),
            Self::I64(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }
}

/// Refuses fewer than `row` positions for each axis, whose rows lie `stride` apart.
pub(crate) fn check_positions(got: usize, axes: usize, row: usize, stride: usize) -> Result<()> {
    let need = span("positions", 0, &[(axes, stride), (row, 1)])?;
    match axes {
        _ if got >= need => Ok(()),
        0 | 1 => Err(Error::Length { name: "positions", got, need }),
        _ => Err(Error::Value(format!("positions holds {got} elements, {axes} axes of {row} positions need {need}"))),
    }
}

/// Where the tokens of a call stand.
///
/// | constructor | buffer | position of token `t` of sequence `b` |
/// |---|---|---|
/// | [`Positions::ids`] | `[axes, batch, tokens]` | its own id |
/// | [`Positions::starts`] | `[axes, batch]` | `starts[b] + t` |
/// | [`Positions::counted`] | none | `t` |
/// | [`Positions::packed`] | `indptr [sequences + 1]` | `t - indptr[s]` in a batch of one, for the sequence `s` with `indptr[s] <= t < indptr[s + 1]` |
#[derive(Clone, Copy)]
pub struct Positions<'a> {
    kind: Kind<'a>,
    axis_stride: Option<usize>,
    shared: bool,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Ids(Ids<'a>),
    Starts(Ids<'a>),
    Counted,
    Packed { indptr: Read<'a, i32>, sequences: usize, starts: Option<Ids<'a>> },
}

impl<'a> Positions<'a> {
    /// One id for each token: `[batch, tokens]`, or `[axes, batch, tokens]` for a spec with several axes.
    pub fn ids<I: Id>(ids: Read<'a, I>) -> Self {
        Self { kind: Kind::Ids(I::ids(ids)), axis_stride: None, shared: false }
    }

    /// One start for each sequence, `[batch]`; its tokens follow one another.
    pub fn starts<I: Id>(starts: Read<'a, I>) -> Self {
        Self { kind: Kind::Starts(I::ids(starts)), axis_stride: None, shared: false }
    }

    /// 0, 1, 2 ... in every sequence; no buffer is read.
    pub fn counted() -> Self {
        Self { kind: Kind::Counted, axis_stride: None, shared: true }
    }

    /// Sequences packed one after another into a batch of one: `indptr` holds `sequences + 1` first tokens, from 0 to
    /// the number of tokens. Each sequence starts at position 0, or at [`Positions::from`].
    pub fn packed(indptr: Read<'a, i32>, sequences: usize) -> Self {
        Self { kind: Kind::Packed { indptr, sequences, starts: None }, axis_stride: None, shared: false }
    }

    /// The first position of each packed sequence, `[sequences]`.
    pub fn from<I: Id>(mut self, first: Read<'a, I>) -> Self {
        if let Kind::Packed { starts, .. } = &mut self.kind {
            *starts = Some(I::ids(first));
        }
        self
    }

    /// One row of ids, `[tokens]`, for every sequence of the batch.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Rows of different axes lie `stride` elements apart, as in a longer buffer `[axes, most_tokens]` of which a call
    /// uses the front.
    pub fn axis_stride(mut self, stride: usize) -> Self {
        self.axis_stride = Some(stride);
        self
    }

    /// What a kernel needs, after the buffers' lengths are checked.
    pub(crate) fn resolve(&self, gpu: &'a Gpu, axes: usize, batch: usize, tokens: usize) -> Result<Resolved<'a>> {
        let (kind, buffer, rows, row) = match self.kind {
            Kind::Ids(ids) => (0, Some(ids), if self.shared { 1 } else { batch }, tokens),
            Kind::Starts(starts) => (1, Some(starts), if self.shared { 1 } else { batch }, 1),
            Kind::Counted => (1, None, 1, 1),
            Kind::Packed { starts, sequences, .. } => (2, starts, 1, sequences),
        };
        if axes > 1 && buffer.is_none() {
            return Err(Error::Value(format!("the spec has {axes} axes, positions without ids have one")));
        }
        let axis_stride = self.axis_stride.unwrap_or(product("batch x tokens of positions", &[rows, row])?);
        if axes > 1 && axis_stride < rows * row {
            return Err(Error::Value(format!(
                "positions have an axis stride of {axis_stride}, a row of one axis holds {}",
                rows * row
            )));
        }
        let need = span("positions", 0, &[(axes, axis_stride), (rows, row), (row, 1)])?;
        if let Some(ids) = buffer {
            check_positions(ids.len(), axes, rows * row, axis_stride)?;
        }
        let (ids, id_type) = match buffer {
            None => (None, 0),
            Some(Ids::I32(ids)) => (Some(gpu.read("positions", ids, need)?), 0),
            Some(Ids::I64(ids)) => (Some(gpu.read("positions", ids, need)?), 1),
            Some(Ids::U32(ids)) => (Some(gpu.read("positions", ids, need)?), 2),
        };
        let (indptr, sequences) = match self.kind {
            Kind::Packed { indptr, sequences, .. } => {
                if batch != 1 {
                    return Err(Error::Value(format!("packed positions need a batch of 1, the shape has {batch}")));
                }
                if sequences == 0 {
                    return Err(Error::Value("packed positions hold 0 sequences, at least 1 is needed".into()));
                }
                (Some(gpu.read("indptr", indptr, sequences + 1)?), sequences)
            }
            _ => (None, 0),
        };
        let sequences = u32::try_from(sequences)
            .map_err(|_| Error::Overflow(format!("{sequences} sequences of a packed batch")))?;
        Ok(Resolved {
            kind,
            id_type,
            axis_stride: axis_stride as i64,
            sequence_stride: if self.shared { 0 } else { row as i64 },
            sequences,
            ids,
            indptr,
        })
    }
}

/// [`Positions`] as a kernel's arguments.
pub(crate) struct Resolved<'a> {
    pub kind: u32,
    pub id_type: u32,
    pub axis_stride: i64,
    pub sequence_stride: i64,
    pub sequences: u32,
    ids: Option<crate::gpu::Held<'a, In>>,
    indptr: Option<crate::gpu::Held<'a, In>>,
}

impl Resolved<'_> {
    pub(crate) fn ids(&self) -> In {
        self.ids.as_ref().map_or(In::NULL, |held| held.address)
    }

    pub(crate) fn indptr(&self) -> In {
        self.indptr.as_ref().map_or(In::NULL, |held| held.address)
    }
}
