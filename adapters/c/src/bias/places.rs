//! The shape of logits, and where queries and keys sit.

use posenc::gpu::Read;
use posenc::{Gpu, Logits, Packed, Place, Places};

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

/// Where queries and keys sit.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencPlaces {
    /// queries
    pub queries: PosencPlace,
    /// keys
    pub keys: PosencPlace,
    /// sequences packed into a batch of one, in place of lengths; 0: they are not packed
    pub sequences: u64,
    /// their first queries and the end of the last, `[sequences + 1]`, 32 bits
    pub packed_queries: PosencBuffer,
    /// their first keys and the end of the last, `[sequences + 1]`, 32 bits
    pub packed_keys: PosencBuffer,
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

impl PosencPlace {
    fn place<'a>(&self, each: Option<Read<'a, i32>>) -> Result<Place<Read<'a, i32>>, Failure> {
        match (self.kind, each) {
            (POSENC_PLACE_FROM, _) => Ok(Place::From(self.start)),
            (POSENC_PLACE_LAST, _) => Ok(Place::Last),
            (POSENC_PLACE_EACH, Some(each)) => Ok(Place::Each(each)),
            (other, _) => Err(unknown("the kind of a place", other)),
        }
    }
}

/// Buffers of places, for as long as a call.
pub(crate) struct ForeignPlaces {
    call: PosencPlaces,
    each: [Option<Foreign<i32>>; 2],
    lengths: [Option<Foreign<i32>>; 2],
    packed: Option<[Foreign<i32>; 2]>,
}

impl PosencPlaces {
    pub(crate) fn get(&self, gpu: &Gpu) -> Result<ForeignPlaces, Failure> {
        let each = |name: &str, place: &PosencPlace| {
            (place.kind == POSENC_PLACE_EACH).then(|| place.each.get(gpu, name)).transpose()
        };
        let packed = match self.sequences {
            0 => None,
            _ => Some([self.packed_queries.get(gpu, "packed_queries")?, self.packed_keys.get(gpu, "packed_keys")?]),
        };
        Ok(ForeignPlaces {
            call: *self,
            each: [each("query positions", &self.queries)?, each("key positions", &self.keys)?],
            lengths: [
                self.queries.lengths.optional(gpu, "query lengths")?,
                self.keys.lengths.optional(gpu, "key lengths")?,
            ],
            packed,
        })
    }
}

impl ForeignPlaces {
    pub(crate) fn places(&self) -> Result<Places<Read<'_, i32>>, Failure> {
        let [query_positions, key_positions] = self.each.each_ref().map(read);
        let [query_lengths, key_lengths] = self.lengths.each_ref().map(read);
        let packed = match &self.packed {
            None => None,
            Some([queries, keys]) => Some(Packed {
                queries: queries as _,
                keys: keys as _,
                sequences: size("sequences", self.call.sequences)?,
            }),
        };
        Ok(Places {
            queries: self.call.queries.place(query_positions)?,
            keys: self.call.keys.place(key_positions)?,
            query_lengths,
            key_lengths,
            packed,
        })
    }
}
