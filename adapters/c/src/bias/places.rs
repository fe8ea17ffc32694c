//! The shape of logits, and where queries and keys sit.

use posenc::gpu::Read;
use posenc::{Gpu, Logits, Place, Places};

use crate::memory::{Foreign, read};
use crate::{Failure, PosencBuffer, size, unknown};

/// Place of queries or keys: element `i` sits at `start + i`.
pub const POSENC_PLACE_FROM: u32 = 0;
/// The last query at the last key; of queries alone.
pub const POSENC_PLACE_LAST: u32 = 1;
/// A position for each, `[batch, n]`, 32 bits.
pub const POSENC_PLACE_EACH: u32 = 2;

/// The shape of logits `[batch, heads, queries, keys]`; the keys of a row are contiguous.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencLogits {
    /// sequences
    pub batch: u64,
    /// heads of each
    pub heads: u64,
    /// rows of each
    pub queries: u64,
    /// logits of each
    pub keys: u64,
    /// first element
    pub offset: u64,
    /// elements from one sequence, head and query to the next
    pub strides: [u64; 3],
}

/// Where queries or keys sit, and how many of them each sequence has.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencPlace {
    /// `POSENC_PLACE_...`
    pub kind: u32,
    /// 0
    pub reserved: u32,
    /// of `POSENC_PLACE_FROM`
    pub start: i64,
    /// of `POSENC_PLACE_EACH`: the positions, 32 bits
    pub each: PosencBuffer,
    /// the lengths of the sequences, `[batch]`, 32 bits; none: all
    pub lengths: PosencBuffer,
}

impl PosencLogits {
    pub(crate) fn shape(&self) -> Result<Logits, Failure> {
        let [batch, head, query] = self.strides;
        Ok(Logits {
            batch: size("batch", self.batch)?,
            heads: size("heads", self.heads)?,
            queries: size("queries", self.queries)?,
            keys: size("keys", self.keys)?,
            offset: size("an offset", self.offset)?,
            strides: [size("a stride", batch)?, size("a stride", head)?, size("a stride", query)?],
        })
    }
}

/// Buffers of places, for as long as a call.
pub(crate) struct ForeignPlaces {
    calls: [PosencPlace; 2],
    each: [Option<Foreign<i32>>; 2],
    lengths: [Option<Foreign<i32>>; 2],
}

impl ForeignPlaces {
    pub(crate) fn new(gpu: &Gpu, queries: &PosencPlace, keys: &PosencPlace) -> Result<Self, Failure> {
        let each = |name: &str, place: &PosencPlace| {
            (place.kind == POSENC_PLACE_EACH).then(|| place.each.get(gpu, name)).transpose()
        };
        Ok(Self {
            calls: [*queries, *keys],
            each: [each("query positions", queries)?, each("key positions", keys)?],
            lengths: [queries.lengths.optional(gpu, "query lengths")?, keys.lengths.optional(gpu, "key lengths")?],
        })
    }

    pub(crate) fn places(&self) -> Result<Places<Read<'_, i32>>, Failure> {
        let place = |i: usize| match (self.calls[i].kind, &self.each[i]) {
            (POSENC_PLACE_FROM, _) => Ok(Place::From(self.calls[i].start)),
            (POSENC_PLACE_LAST, _) => Ok(Place::Last),
            (POSENC_PLACE_EACH, Some(each)) => Ok(Place::Each(each as Read<'_, i32>)),
            (other, _) => Err(unknown("the kind of a place", other)),
        };
        let [query_lengths, key_lengths] = self.lengths.each_ref().map(read);
        Ok(Places { queries: place(0)?, keys: place(1)?, query_lengths, key_lengths, packed: None })
    }
}
