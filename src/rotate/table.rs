//! Cosines and sines of the caller, in place of those that a [`Rope`] makes.

use crate::gpu::args::{self, Out, RopeArgs};
use crate::gpu::{Call, Read, Write};
use crate::rotate::Rope;
use crate::{Error, Result, Scalar};

/// Cosines and sines of the caller, by position: row `p` holds those of position `p` for every pair.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `values` | `[rows, pairs]` twice, or `[rows, 2 * pairs]` | f32 or the tensors' type |
/// | `rows` | | positions from 0 on |
/// | `stride` | elements | from one row to the next |
/// | `out_of_range` | | policy for positions outside the table |
#[derive(Debug)]
pub struct Table<'a, T> {
    /// the buffers
    pub values: TableValues<'a, T>,
    /// positions that have a row
    pub rows: usize,
    /// elements from one row to the next
    pub stride: usize,
    /// policy for positions outside the table
    pub out_of_range: OutOfRange<'a>,
}

/// Buffers of a [`Table`]. Without `sin`, a row of `cos` holds the cosines and then the sines, as vLLM's cache does.
pub enum TableValues<'a, T> {
    /// in f32
    F32 {
        /// cosines
        cos: Read<'a, f32>,
        /// sines
        sin: Option<Read<'a, f32>>,
    },
    /// in the tensors' own type, whose rounding then limits the result: 2e-3 in bf16
    Same {
        /// cosines
        cos: Read<'a, T>,
        /// sines
        sin: Option<Read<'a, T>>,
    },
}

/// Policy for positions outside the cos/sin table, which is never read out of bounds.
pub enum OutOfRange<'a> {
    /// the nearest row
    Clamp,
    /// NaN in every rotated channel of the token, and 1 in this word if there is one
    Nan(Option<Write<'a, u32>>),
}

impl<'a, T: Scalar> Table<'a, T> {
    /// Hands in the buffers, whose rows are read by threads of `width` values.
    pub(super) fn hold(self, call: &mut Call<'a>, rope: &Rope, width: usize, args: &mut RopeArgs) -> Result<()> {
        let Self { values, rows, stride, out_of_range } = self;
        let pairs = rope.pairs();
        let apart = match &values {
            TableValues::F32 { sin, .. } => sin.is_some(),
            TableValues::Same { sin, .. } => sin.is_some(),
        };
        let row = if apart { pairs } else { 2 * pairs };
        if rows == 0 || stride < row || rows > i32::MAX as usize {
            return Err(Error::Value(format!(
                "the table has {rows} rows {stride} elements apart, it needs 1 to {} rows of at least {row}",
                i32::MAX
            )));
        }
        let need = crate::shape::span("the table", 0, &[(rows, stride), (row, 1)])?;
        let element = match values {
            TableValues::F32 { cos, sin } => {
                args.rates = call.read("cos", cos, need)?;
                args.sines = call.read_some("sin", sin, need)?;
                args.table_is_f32 = 1;
                size_of::<f32>()
            }
            TableValues::Same { cos, sin } => {
                args.rates = call.read("cos", cos, need)?;
                args.sines = call.read_some("sin", sin, need)?;
                size_of::<T>()
            }
        };
        if !apart {
            args.sines = args.rates.offset((pairs * element) as u64);
        }
        (args.out_of_range, args.flag) = match out_of_range {
            OutOfRange::Clamp => (args::OutOfRange::CLAMP, Out::NULL),
            OutOfRange::Nan(flag) => (args::OutOfRange::NAN, call.write_some("the flag", flag, 1)?),
        };
        args.table_rows = rows as i64;
        args.table_stride = stride as i64;
        // One access takes the thread's values, 16 bytes at most.
        let bytes = (width * element).min(16) as u64;
        let places = args.rates.address() | args.sines.address() | stride.wrapping_mul(element) as u64;
        args.table_aligned = u32::from(places.is_multiple_of(bytes));
        Ok(())
    }
}

impl<T> std::fmt::Debug for TableValues<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 { cos, sin } => write!(f, "F32({} cosines, {:?} sines)", cos.len(), sin.map(|sin| sin.len())),
            Self::Same { cos, sin } => write!(f, "Same({} cosines, {:?} sines)", cos.len(), sin.map(|sin| sin.len())),
        }
    }
}

impl std::fmt::Debug for OutOfRange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clamp => f.write_str("Clamp"),
            Self::Nan(flag) => write!(f, "Nan({})", if flag.is_some() { "flag" } else { "no flag" }),
        }
    }
}
