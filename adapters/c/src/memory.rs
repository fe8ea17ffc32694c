//! Memory of the caller on the device, and what lies there: buffers, ids, positions, tensors.

use std::cell::Cell;

use posenc::bias::{DeviceTermInputs, MOST_TERMS, Numbers};
use posenc::embed::Tokens;
use posenc::gpu::{Raw, Read, Update, View, ViewMut, Write};
use posenc::{Heads, Ids, Logits, Place, Places, Positions};

use crate::header::header;
use crate::{Failure, switch, unknown};

const _: () = assert!(size_of::<usize>() == 8, "CUDA's hosts have 64 bits: a u64 of the header is a usize");

header! {{}
    constants u32 {
        POSENC_I32 = 0: "Integer types of positions and ids: 32 bits.",
        POSENC_I64 = 1: "64 bits",
        POSENC_U32 = 2: "32 bits without sign",
        POSENC_U16 = 3: "16 bits without sign; of given indices alone",
        POSENC_U8 = 4: "8 bits without sign; of given indices alone",
    }
    constants u32 {
        POSENC_IDS = 0: "Position kinds: an id for each token, `[axes, batch, tokens]`.",
        POSENC_STARTS = 1: "One start for each sequence, `[axes, batch]`.",
        POSENC_PACKED = 2: "Sequences packed into a batch of one (varlen): `indptr` holds `sequences + 1` first tokens \
            (`cu_seqlens`), `ids` (or none) their first positions.",
        POSENC_COUNTED = 3: "Every sequence counts from 0; no ids are read.",
    }
    kinds Place {
        POSENC_PLACE_COUNTED = 0 => Counted: "Place of queries or keys: element `i` is at position `start + i`.",
        POSENC_PLACE_BOTTOM_RIGHT = 1 => BottomRight: "The last query is at the last key's position (bottom-right \
            aligned); of queries alone.",
        POSENC_PLACE_IDS = 2 => Ids: "A position for each, `[batch, n]`, 32 bits.",
    }

    /// Memory on the device.
    struct PosencBuffer {
        data: u64 => "address; 0: there is none, or it is empty",
        len: u64 => "elements there",
    }
    /// Integers on the device.
    struct PosencIds {
        data: u64 => "address; 0: there are none",
        len: u64 => "elements there",
        element: u32 => "`POSENC_I32`, `POSENC_I64` or `POSENC_U32`, unless the field says otherwise",
        reserved: u32 => "0",
    }
    /// Token positions of one call.
    struct PosencPositions {
        kind: u32 => "`POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED`",
        shared: u32 => "1: one row of ids, or one start, for every sequence",
        ids: PosencIds => "the ids, the starts, or the first positions of packed sequences",
        axis_stride: u64 => "elements from one axis to the next; 0: they follow one another",
        indptr: PosencBuffer => "`sequences + 1` 32-bit integers, of a packed batch",
        sequences: u64 => "sequences of a packed batch",
    }

    /// The shape of embeddings `[batch, tokens, dim]`; the channels of a token are contiguous.
    struct PosencTokens {
        batch: u64 => "sequences",
        tokens: u64 => "tokens of each",
        dim: u64 => "channels of each token",
        offset: u64 => "first element",
        strides: [u64; 2] => "elements from one sequence and one token to the next",
    }
    /// The shape of `[batch, tokens, heads, dim]`; the channels of a head are contiguous.
    struct PosencHeads {
        batch: u64 => "sequences",
        tokens: u64 => "tokens of each",
        heads: u64 => "heads of each token",
        dim: u64 => "channels of each head",
        offset: u64 => "first element",
        strides: [u64; 3] => "elements from one sequence, token and head to the next",
    }
    /// The shape of logits `[batch, heads, queries, keys]`; the keys of a row are contiguous.
    struct PosencLogits {
        batch: u64 => "sequences",
        heads: u64 => "heads of each",
        queries: u64 => "rows of each",
        keys: u64 => "logits of each",
        offset: u64 => "first element",
        strides: [u64; 3] => "elements from one sequence, head and query to the next",
    }

    /// The shape of numbers that a term of a bias reads, `[batch, heads, rows, entries]` in any order of memory. A size of 1
    /// serves every sequence, head or row.
    struct PosencNumbers {
        batch: u64 => "sequences, or 1",
        heads: u64 => "heads, or 1",
        rows: u64 => "queries or keys, or 1",
        entries: u64 => "numbers of a row",
        offset: u64 => "first element",
        strides: [u64; 4] => "elements from one sequence, head, row and entry to the next",
    }

    /// Positions of queries or keys, and how many of them each sequence has.
    struct PosencPlace {
        kind: u32 => "`POSENC_PLACE_...`",
        reserved: u32 => "0",
        start: i64 => "of `POSENC_PLACE_COUNTED`",
        ids: PosencBuffer => "of `POSENC_PLACE_IDS`: the positions, 32 bits",
        lengths: PosencBuffer => "the lengths of the sequences, `[batch]`, 32 bits; none: all",
    }
    /// Positions of queries and keys.
    struct PosencPlaces {
        queries: PosencPlace => "queries",
        keys: PosencPlace => "keys",
        sequences: u64 => "sequences packed into a batch of one, in place of lengths; 0: they are not packed",
        packed_queries: PosencBuffer => "their first queries and the end of the last, `[sequences + 1]`, 32 bits",
        packed_keys: PosencBuffer => "their first keys and the end of the last, `[sequences + 1]`, 32 bits",
    }
}

/// The most buffers of one call: its own, and those of its terms.
const MOST: usize = 24 + 5 * MOST_TERMS;

/// Room for what a call reads and writes, so that it allocates nothing.
pub(crate) struct Slots<'a> {
    buffers: [Raw<()>; MOST],
    terms: [DeviceTermInputs<'a>; MOST_TERMS],
}

/// Buffers of one call, for as long as it lasts.
pub(crate) struct Scope<'a> {
    free: Cell<&'a mut [Raw<()>]>,
    terms: Cell<&'a mut [DeviceTermInputs<'a>]>,
}

impl<'a> Scope<'a> {
    /// Room for the buffers of a call.
    pub(crate) fn slots() -> Slots<'a> {
        // SAFETY: no elements.
        let none = unsafe { Raw::new(0, 0) };
        Slots { buffers: [none; MOST], terms: [DeviceTermInputs::default(); MOST_TERMS] }
    }

    pub(crate) fn new(slots: &'a mut Slots<'a>) -> Self {
        Self { free: Cell::new(&mut slots.buffers), terms: Cell::new(&mut slots.terms) }
    }

    /// Room for what `count` terms read; a call asks once.
    pub(crate) fn terms(&self, count: u64) -> Result<&'a mut [DeviceTermInputs<'a>], Failure> {
        let most =
            || Failure::argument(format!("the call brings inputs of {count} terms, a bias has at most {MOST_TERMS}"));
        self.terms.take().get_mut(..count as usize).ok_or_else(most)
    }

    fn put<T>(&self, name: &str, address: u64, len: u64) -> Result<&'a mut Raw<T>, Failure> {
        // An empty tensor of other libraries has no address.
        if address == 0 && len > 0 {
            return Err(Failure::argument(format!("{name} is null")));
        }
        let align = align_of::<T>();
        if !address.is_multiple_of(align as u64) {
            let text = format!("{name} lies at {address:#x}, its elements need multiples of {align}");
            return Err(Failure::argument(text));
        }
        let Some((slot, rest)) = self.free.take().split_first_mut() else {
            return Err(Failure::argument(format!("{name} is one buffer too many for a call")));
        };
        self.free.set(rest);
        // SAFETY: a `Raw` has the same layout for every type, and this is its one use. The header's rules are what `Raw::new` asks
        // for: so many elements there, in this context, whose use the caller's stream orders.
        Ok(unsafe {
            let slot = &mut *std::ptr::from_mut(slot).cast::<Raw<T>>();
            *slot = Raw::new(address, len as usize);
            slot
        })
    }
}

impl PosencBuffer {
    /// The memory, to be read.
    pub(crate) fn read<'a, T>(&self, scope: &Scope<'a>, name: &str) -> Result<Read<'a, T>, Failure> {
        Ok(scope.put::<T>(name, self.data, self.len)?)
    }

    /// The memory, to be written.
    pub(crate) fn write<'s, 'a: 's, T: 'a>(&self, scope: &Scope<'a>, name: &str) -> Result<Write<'s, T>, Failure> {
        Ok(scope.put::<T>(name, self.data, self.len)?)
    }

    /// The memory, if there is any, to be read.
    pub(crate) fn read_some<'a, T>(&self, scope: &Scope<'a>, name: &str) -> Result<Option<Read<'a, T>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.read(scope, name).map(Some) }
    }

    /// The memory, if there is any, to be written.
    pub(crate) fn write_some<'s, 'a: 's, T: 'a>(
        &self,
        scope: &Scope<'a>,
        name: &str,
    ) -> Result<Option<Write<'s, T>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.write(scope, name).map(Some) }
    }
}

/// The shape of the crate, and tensors of it.
macro_rules! shape {
    ($($Name:ident => $Shape:ident { $($size:ident),* })*) => {$(
        impl $Name {
            pub(crate) fn shape(&self) -> $Shape {
                $Shape {
                    $($size: self.$size as usize,)*
                    offset: self.offset as usize,
                    strides: self.strides.map(|stride| stride as usize),
                }
            }

            /// A tensor of this shape, to be read.
            pub(crate) fn of<'a, T>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a>,
                name: &str,
            ) -> Result<View<'a, T, $Shape>, Failure> {
                Ok(self.shape().of(x.read(scope, name)?))
            }

            /// A tensor of this shape, if there is one, to be read.
            #[allow(dead_code, reason = "heads are never optional")]
            pub(crate) fn of_some<'a, T>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a>,
                name: &str,
            ) -> Result<Option<View<'a, T, $Shape>>, Failure> {
                if x.data == 0 { Ok(None) } else { self.of(x, scope, name).map(Some) }
            }

            /// A tensor of this shape, to be written, or changed in place.
            #[allow(dead_code, reason = "numbers of a term are read alone")]
            pub(crate) fn of_mut<'s, 'a: 's, T: 'a>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a>,
                name: &str,
            ) -> Result<ViewMut<'s, T, $Shape>, Failure> {
                Ok(self.shape().of_mut(x.write(scope, name)?))
            }

            /// A tensor of this shape, changed in place unless there is an `out`.
            #[allow(dead_code, reason = "embeddings are changed in place alone, numbers of a term are read")]
            pub(crate) fn update<'a, T: 'a>(
                &self,
                x: &PosencBuffer,
                (out, out_shape): (&PosencBuffer, &Self),
                scope: &Scope<'a>,
                [name, out_name]: [&str; 2],
            ) -> Result<Update<'a, T, $Shape>, Failure> {
                if out.data == 0 {
                    return Ok(self.of_mut(x, scope, name)?.into());
                }
                Ok(self.of(x, scope, name)?.to(out_shape.of_mut(out, scope, out_name)?))
            }
        }
    )*};
}

shape! {
    PosencTokens => Tokens { batch, tokens, dim }
    PosencHeads => Heads { batch, tokens, heads, dim }
    PosencLogits => Logits { batch, heads, queries, keys }
    PosencNumbers => Numbers { batch, heads, rows, entries }
}

impl PosencIds {
    pub(crate) fn get<'a>(&self, scope: &Scope<'a>, name: &str) -> Result<Ids<'a>, Failure> {
        let Self { data, len, element, .. } = *self;
        Ok(match element {
            POSENC_I32 => Ids::I32(scope.put::<i32>(name, data, len)?),
            POSENC_I64 => Ids::I64(scope.put::<i64>(name, data, len)?),
            POSENC_U32 => Ids::U32(scope.put::<u32>(name, data, len)?),
            other => return Err(unknown("the type of integers", other)),
        })
    }

    pub(crate) fn some<'a>(&self, scope: &Scope<'a>, name: &str) -> Result<Option<Ids<'a>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.get(scope, name).map(Some) }
    }
}

impl PosencPositions {
    pub(crate) fn get<'a>(&self, scope: &Scope<'a>) -> Result<Positions<Ids<'a>>, Failure> {
        let mut positions = match self.kind {
            POSENC_IDS => Positions::ids(self.ids.get(scope, "ids")?),
            POSENC_STARTS => Positions::starts(self.ids.get(scope, "ids")?),
            POSENC_COUNTED => Positions::counted(),
            POSENC_PACKED => {
                let indptr = Ids::I32(self.indptr.read(scope, "indptr")?);
                let packed = Positions::packed(indptr, self.sequences as usize);
                match self.ids.some(scope, "ids")? {
                    None => packed,
                    Some(first) => packed.starting_at(first),
                }
            }
            other => return Err(unknown("the kind of positions", other)),
        };
        if self.axis_stride != 0 {
            positions = positions.axis_stride(self.axis_stride as usize);
        }
        Ok(if switch("shared", self.shared)? { positions.shared() } else { positions })
    }
}

impl PosencPlace {
    fn get<'a>(&self, scope: &Scope<'a>, name: &str) -> Result<Place<Read<'a, i32>>, Failure> {
        match self.kind {
            POSENC_PLACE_COUNTED => Ok(Place::Counted(self.start)),
            POSENC_PLACE_BOTTOM_RIGHT => Ok(Place::BottomRight),
            POSENC_PLACE_IDS => Ok(Place::Ids(self.ids.read(scope, name)?)),
            other => Err(unknown("the kind of a place", other)),
        }
    }
}

impl PosencPlaces {
    pub(crate) fn get<'a>(&self, scope: &Scope<'a>) -> Result<Places<Read<'a, i32>>, Failure> {
        let packed = match self.sequences {
            0 => None,
            sequences => Some(posenc::Packed {
                queries: self.packed_queries.read(scope, "packed_queries")?,
                keys: self.packed_keys.read(scope, "packed_keys")?,
                sequences: sequences as usize,
            }),
        };
        Ok(Places {
            queries: self.queries.get(scope, "query positions")?,
            keys: self.keys.get(scope, "key positions")?,
            query_lengths: self.queries.lengths.read_some(scope, "query lengths")?,
            key_lengths: self.keys.lengths.read_some(scope, "key lengths")?,
            packed,
        })
    }
}
