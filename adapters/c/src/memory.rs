//! Memory of the caller, on the device or on the host, and what lies there: buffers, ids, positions, tensors.

use std::cell::{Cell, RefCell};

use posenc::attend::Attended;
use posenc::bias::{AnyNumbers, MOST_TERMS, Numbers, TermData};
use posenc::embed::Tokens;
use posenc::gpu::{Raw, Update, View, ViewMut, Write};
use posenc::position::AsIds;
use posenc::{Device, Error, Heads, Host, Ids, Logits, Memory, Place, Places, Positions, Scalar, Shape};

use crate::header::header;
use crate::{Element, Failure, switch, unknown};

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

    /// Memory where the plan computes: on its device, or on the host for a plan of `posenc_cpu_new`.
    struct PosencBuffer {
        data: u64 => "address; 0: there is none, or it is empty",
        len: u64 => "elements there",
    }
    /// Integers there.
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

/// What one term of a call reads, in one memory.
pub(crate) type TermOf<'a, M> = TermData<
    <M as Space>::Numbers<'a>,
    <M as Memory>::Slice<'a, u8>,
    <M as Memory>::Slice<'a, u16>,
    <M as Memory>::Slice<'a, i32>,
>;

/// The two memories of the header's addresses: what a call's structs become in each.
pub(crate) trait Space: Attended {
    /// Numbers of a term with their shape.
    type Numbers<'a>: Copy;
    /// Room for one buffer of a call.
    type Slot;

    fn slot() -> Self::Slot;
    /// A buffer, to be read.
    fn read<'a, V: 'a>(
        scope: &Scope<'a, Self>,
        name: &'static str,
        buffer: PosencBuffer,
    ) -> Result<Self::Slice<'a, V>, Failure>;
    /// Integers.
    fn ids<'a>(scope: &Scope<'a, Self>, name: &'static str, ids: &PosencIds) -> Result<Self::Ids<'a>, Failure>;
    /// Numbers of a term, of f32 or of the call's element type.
    fn numbers<'a>(
        scope: &Scope<'a, Self>,
        name: &'static str,
        element: u32,
        x: &PosencBuffer,
        shape: &PosencNumbers,
    ) -> Result<Self::Numbers<'a>, Failure>;
    /// A mask of a softmax.
    fn mask<'a, T: Scalar>(
        scope: &Scope<'a, Self>,
        x: &PosencBuffer,
        shape: &PosencLogits,
    ) -> Result<Self::Mask<'a, T>, Failure>;
}

/// Buffers and terms of one call, for as long as it lasts.
pub(crate) struct Scope<'a, M: Space> {
    free: Cell<&'a mut [M::Slot]>,
    terms: Cell<&'a mut [TermOf<'a, M>]>,
    /// what is held on the host
    ranges: RefCell<Vec<Range>>,
}

/// Host memory that a call holds.
struct Range {
    name: &'static str,
    start: u64,
    end: u64,
    written: bool,
    /// address of the buffer, bytes of an element, and shape, of queries and keys: their elements may be interleaved
    heads: Option<(u64, usize, Heads)>,
}

/// Room for the buffers of a call, so that one on the device allocates nothing.
pub(crate) fn slots<M: Space>() -> [M::Slot; MOST] {
    std::array::from_fn(|_| M::slot())
}

/// Room for what the terms of a call read.
pub(crate) fn term_slots<'a, M: Space>() -> [TermOf<'a, M>; MOST_TERMS] {
    std::array::from_fn(|_| TermData::default())
}

/// Refuses an address that cannot hold so many elements.
fn check_address<T>(name: &str, address: u64, len: u64) -> Result<(), Failure> {
    // An empty tensor of other libraries has no address.
    if address == 0 && len > 0 {
        return Err(Failure::argument(format!("{name} is null")));
    }
    let align = align_of::<T>();
    if !address.is_multiple_of(align as u64) {
        let text = format!("{name} lies at {address:#x}, its elements need multiples of {align}");
        return Err(Failure::argument(text));
    }
    Ok(())
}

impl<'a, M: Space> Scope<'a, M> {
    pub(crate) fn new(slots: &'a mut [M::Slot], terms: &'a mut [TermOf<'a, M>]) -> Self {
        Self { free: Cell::new(slots), terms: Cell::new(terms), ranges: RefCell::default() }
    }

    /// Room for what `count` terms read; a call asks once.
    pub(crate) fn terms(&self, count: u64) -> Result<&'a mut [TermOf<'a, M>], Failure> {
        let most =
            || Failure::argument(format!("the call brings inputs of {count} terms, a bias has at most {MOST_TERMS}"));
        self.terms.take().get_mut(..count as usize).ok_or_else(most)
    }

    fn slot(&self, name: &str) -> Result<&'a mut M::Slot, Failure> {
        let Some((slot, rest)) = self.free.take().split_first_mut() else {
            return Err(Failure::argument(format!("{name} is one buffer too many for a call")));
        };
        self.free.set(rest);
        Ok(slot)
    }
}

impl<'a> Scope<'a, Device> {
    fn put<T>(&self, name: &str, address: u64, len: u64) -> Result<&'a mut Raw<T>, Failure> {
        check_address::<T>(name, address, len)?;
        let slot = self.slot(name)?;
        // SAFETY: a `Raw` has the same layout for every type, and this is its one use. The header's rules are what `Raw::new` asks
        // for: so many elements there, in this context, whose use the caller's stream orders.
        Ok(unsafe {
            let slot = &mut *std::ptr::from_mut(slot).cast::<Raw<T>>();
            *slot = Raw::new(address, len as usize);
            slot
        })
    }
}

impl Space for Device {
    type Numbers<'a> = AnyNumbers<'a>;
    type Slot = Raw<()>;

    fn slot() -> Raw<()> {
        // SAFETY: no elements.
        unsafe { Raw::new(0, 0) }
    }

    fn read<'a, V: 'a>(
        scope: &Scope<'a, Self>,
        name: &'static str,
        buffer: PosencBuffer,
    ) -> Result<Self::Slice<'a, V>, Failure> {
        Ok(scope.put::<V>(name, buffer.data, buffer.len)?)
    }

    fn ids<'a>(scope: &Scope<'a, Self>, name: &'static str, ids: &PosencIds) -> Result<Ids<'a>, Failure> {
        let PosencIds { data, len, element, .. } = *ids;
        Ok(match element {
            POSENC_I32 => Ids::I32(scope.put::<i32>(name, data, len)?),
            POSENC_I64 => Ids::I64(scope.put::<i64>(name, data, len)?),
            POSENC_U32 => Ids::U32(scope.put::<u32>(name, data, len)?),
            other => return Err(unknown("the type of integers", other)),
        })
    }

    fn numbers<'a>(
        scope: &Scope<'a, Self>,
        name: &'static str,
        element: u32,
        x: &PosencBuffer,
        shape: &PosencNumbers,
    ) -> Result<AnyNumbers<'a>, Failure> {
        Ok(match Element::of("element", element)? {
            Element::F32 => shape.of::<f32>(x, scope, name)?.into(),
            Element::F16 => shape.of::<half::f16>(x, scope, name)?.into(),
            Element::Bf16 => shape.of::<half::bf16>(x, scope, name)?.into(),
        })
    }

    fn mask<'a, T: Scalar>(
        scope: &Scope<'a, Self>,
        x: &PosencBuffer,
        shape: &PosencLogits,
    ) -> Result<View<'a, T, Logits>, Failure> {
        shape.of(x, scope, "mask")
    }
}

impl PosencBuffer {
    /// The memory, to be read.
    pub(crate) fn read<'a, M: Space, T: 'a>(
        &self,
        scope: &Scope<'a, M>,
        name: &'static str,
    ) -> Result<M::Slice<'a, T>, Failure> {
        M::read(scope, name, *self)
    }

    /// The memory, if there is any, to be read.
    pub(crate) fn read_some<'a, M: Space, T: 'a>(
        &self,
        scope: &Scope<'a, M>,
        name: &'static str,
    ) -> Result<Option<M::Slice<'a, T>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.read(scope, name).map(Some) }
    }

    /// The memory on the device, to be written.
    pub(crate) fn write<'s, 'a: 's, T: 'a>(
        &self,
        scope: &Scope<'a, Device>,
        name: &str,
    ) -> Result<Write<'s, T>, Failure> {
        Ok(scope.put::<T>(name, self.data, self.len)?)
    }

    /// The memory on the device, if there is any, to be written.
    pub(crate) fn write_some<'s, 'a: 's, T: 'a>(
        &self,
        scope: &Scope<'a, Device>,
        name: &str,
    ) -> Result<Option<Write<'s, T>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.write(scope, name).map(Some) }
    }
}

// ------------------------------------------------------------------------------------------------------------------ host

/// What a host call keeps of a buffer that the crate takes in another type.
pub(crate) enum Converted {
    Nothing,
    Ids(Vec<i64>),
    Numbers(Vec<f32>),
}

impl<'a> Scope<'a, Host> {
    /// Adds a range, and refuses one that is written and shares memory with another.
    fn hold(&self, range: Range) -> Result<(), Failure> {
        let mut ranges = self.ranges.borrow_mut();
        for other in ranges.iter().filter(|other| range.written || other.written) {
            if range.start.max(other.start) >= range.end.min(other.end) {
                continue;
            }
            if let (Some((base, width, heads)), Some((other_base, other_width, other_heads))) =
                (range.heads, other.heads)
                && width == other_width
                && base.abs_diff(other_base).is_multiple_of(width as u64)
            {
                let origin = base.min(other_base);
                let from = |base: u64, heads: Heads| {
                    let skip = ((base - origin) / width as u64) as usize;
                    heads.at(heads.offset.saturating_add(skip)).strided()
                };
                from(other_base, other_heads).check_apart(other.name, &from(base, heads), range.name)?;
                continue;
            }
            let (written, other) = if range.written { (range.name, other.name) } else { (other.name, range.name) };
            return Err(Error::Value(format!("{written} is written and shares memory with {other}")).into());
        }
        ranges.push(range);
        Ok(())
    }

    /// Checks a buffer and holds it.
    fn held<T>(&self, name: &'static str, buffer: PosencBuffer, written: bool) -> Result<*mut T, Failure> {
        let PosencBuffer { data, len } = buffer;
        check_address::<T>(name, data, len)?;
        let Some(bytes) = len.checked_mul(size_of::<T>() as u64).filter(|&bytes| bytes <= isize::MAX as u64) else {
            return Err(Failure::argument(format!("{name} counts {len} values, which no memory holds")));
        };
        self.hold(Range { name, start: data, end: data.saturating_add(bytes), written, heads: None })?;
        Ok(if len == 0 { std::ptr::dangling_mut() } else { std::ptr::with_exposed_provenance_mut(data as usize) })
    }

    /// Integers of any type, widened.
    fn widened<V: Copy + Into<i64> + 'a>(
        &self,
        name: &'static str,
        PosencIds { data, len, .. }: PosencIds,
    ) -> Result<&'a [i64], Failure> {
        let values = Host::read::<V>(self, name, PosencBuffer { data, len })?;
        let slot = self.slot(name)?;
        *slot = Converted::Ids(values.iter().map(|&value| value.into()).collect());
        let Converted::Ids(ids) = slot else { unreachable!("put there just now") };
        Ok(ids)
    }

    /// Numbers of any element type, widened.
    fn single<T: Scalar>(&self, name: &'static str, x: &PosencBuffer) -> Result<&'a [f32], Failure> {
        let values = Host::read::<T>(self, name, *x)?;
        let slot = self.slot(name)?;
        *slot = Converted::Numbers(values.iter().map(|value| value.to_f64() as f32).collect());
        let Converted::Numbers(numbers) = slot else { unreachable!("put there just now") };
        Ok(numbers)
    }

    /// Numbers of an element type, as f32.
    pub(crate) fn floats(&self, name: &'static str, element: u32, x: &PosencBuffer) -> Result<&'a [f32], Failure> {
        match Element::of("element", element)? {
            Element::F32 => x.read(self, name),
            Element::F16 => self.single::<half::f16>(name, x),
            Element::Bf16 => self.single::<half::bf16>(name, x),
        }
    }

    /// Holds queries or keys, whose elements may lie between those of others.
    pub(crate) fn heads<T>(
        &self,
        name: &'static str,
        x: &PosencBuffer,
        heads: Heads,
        written: bool,
    ) -> Result<HostHeads, Failure> {
        check_address::<T>(name, x.data, x.len)?;
        let len = x.len as usize;
        let span = if written { heads.check_written(name, len) } else { heads.check(name, len) }?;
        let width = size_of::<T>();
        let bytes = |elements: usize| (elements as u64).saturating_mul(width as u64);
        let start = x.data.saturating_add(if span == 0 { 0 } else { bytes(heads.offset) });
        let end = x.data.saturating_add(bytes(span));
        if end > isize::MAX as u64 {
            return Err(Failure::argument(format!("{name} counts {span} values, which no memory holds")));
        }
        self.hold(Range { name, start, end, written, heads: Some((x.data, width, heads)) })?;
        Ok(HostHeads { address: x.data, span, heads })
    }
}

/// Queries or keys that a host call holds. No two slices of them are there at once.
#[derive(Clone, Copy)]
pub(crate) struct HostHeads {
    address: u64,
    span: usize,
    pub(crate) heads: Heads,
}

impl HostHeads {
    /// The elements, to be read.
    ///
    /// # Safety
    /// They are `T`, as they were held, and nothing writes them as long as the slice is there.
    pub(crate) unsafe fn slice<'a, T>(self) -> &'a [T] {
        if self.span == 0 {
            return &[];
        }
        // SAFETY: the header's rules promise so many elements there, `heads` has checked address and length.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address as usize), self.span) }
    }

    /// The elements, to be written.
    ///
    /// # Safety
    /// They are `T`, as they were held to be written, and nothing else uses them as long as the slice is there.
    pub(crate) unsafe fn slice_mut<'a, T>(self) -> &'a mut [T] {
        if self.span == 0 {
            return &mut [];
        }
        let start = std::ptr::with_exposed_provenance_mut(self.address as usize);
        // SAFETY: the header's rules promise so many elements there, `heads` has checked address and length.
        unsafe { std::slice::from_raw_parts_mut(start, self.span) }
    }
}

impl Space for Host {
    type Numbers<'a> = (&'a [f32], Numbers);
    type Slot = Converted;

    fn slot() -> Converted {
        Converted::Nothing
    }

    fn read<'a, V: 'a>(scope: &Scope<'a, Self>, name: &'static str, buffer: PosencBuffer) -> Result<&'a [V], Failure> {
        let start = scope.held::<V>(name, buffer, false)?;
        // SAFETY: the header's rules promise so many elements there for as long as the call; `held` has checked address and length,
        // and refuses every other buffer of the call that is written there.
        Ok(unsafe { std::slice::from_raw_parts(start, buffer.len as usize) })
    }

    fn ids<'a>(scope: &Scope<'a, Self>, name: &'static str, ids: &PosencIds) -> Result<&'a [i64], Failure> {
        match ids.element {
            POSENC_I32 => scope.widened::<i32>(name, *ids),
            POSENC_I64 => Self::read(scope, name, PosencBuffer { data: ids.data, len: ids.len }),
            POSENC_U32 => scope.widened::<u32>(name, *ids),
            other => Err(unknown("the type of integers", other)),
        }
    }

    fn numbers<'a>(
        scope: &Scope<'a, Self>,
        name: &'static str,
        element: u32,
        x: &PosencBuffer,
        shape: &PosencNumbers,
    ) -> Result<(&'a [f32], Numbers), Failure> {
        Ok((scope.floats(name, element, x)?, shape.shape()))
    }

    fn mask<'a, T: Scalar>(
        scope: &Scope<'a, Self>,
        x: &PosencBuffer,
        shape: &PosencLogits,
    ) -> Result<(&'a [T], Logits), Failure> {
        Ok((x.read(scope, "mask")?, shape.shape()))
    }
}

impl PosencBuffer {
    /// The memory on the host, to be written.
    pub(crate) fn lend<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Host>,
        name: &'static str,
    ) -> Result<&'a mut [T], Failure> {
        self.lend_plain(scope, name)
    }

    /// [`PosencBuffer::lend`] of integers.
    pub(crate) fn lend_plain<'a, V: Copy + 'a>(
        &self,
        scope: &Scope<'a, Host>,
        name: &'static str,
    ) -> Result<&'a mut [V], Failure> {
        let start = scope.held::<V>(name, *self, true)?;
        // SAFETY: as in `Host::read`; nothing else of the call lies there.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, self.len as usize) })
    }

    /// The memory on the host, if there is any, to be written; at least `need` elements.
    pub(crate) fn lend_some<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Host>,
        name: &'static str,
        need: usize,
    ) -> Result<Option<&'a mut [T]>, Failure> {
        if self.data == 0 {
            return Ok(None);
        }
        self.lend_exact(scope, name, need).map(Some)
    }

    /// The first `need` elements on the host, to be written.
    pub(crate) fn lend_exact<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Host>,
        name: &'static str,
        need: usize,
    ) -> Result<&'a mut [T], Failure> {
        let values = self.lend(scope, name)?;
        let got = values.len();
        values.get_mut(..need).ok_or_else(|| Error::Length { name, got, need }.into())
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
                scope: &Scope<'a, Device>,
                name: &'static str,
            ) -> Result<View<'a, T, $Shape>, Failure> {
                Ok(self.shape().of(x.read(scope, name)?))
            }

            /// A tensor of this shape, if there is one, to be read.
            #[allow(dead_code, reason = "heads are never optional")]
            pub(crate) fn of_some<'a, T>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a, Device>,
                name: &'static str,
            ) -> Result<Option<View<'a, T, $Shape>>, Failure> {
                if x.data == 0 { Ok(None) } else { self.of(x, scope, name).map(Some) }
            }

            /// A tensor of this shape, to be written, or changed in place.
            #[allow(dead_code, reason = "numbers of a term are read alone")]
            pub(crate) fn of_mut<'s, 'a: 's, T: 'a>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a, Device>,
                name: &'static str,
            ) -> Result<ViewMut<'s, T, $Shape>, Failure> {
                Ok(self.shape().of_mut(x.write(scope, name)?))
            }

            /// A tensor of this shape on the host, to be read.
            #[allow(dead_code, reason = "one for all shapes")]
            pub(crate) fn host<'a, T: Scalar>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a, Host>,
                name: &'static str,
            ) -> Result<(&'a [T], $Shape), Failure> {
                let (x, shape) = (x.read(scope, name)?, self.shape());
                shape.check(name, <[T]>::len(x))?;
                Ok((x, shape))
            }

            /// A tensor of this shape on the host, to be written.
            #[allow(dead_code, reason = "one for all shapes")]
            pub(crate) fn host_mut<'a, T: Scalar>(
                &self,
                x: &PosencBuffer,
                scope: &Scope<'a, Host>,
                name: &'static str,
            ) -> Result<(&'a mut [T], $Shape), Failure> {
                let (x, shape) = (x.lend(scope, name)?, self.shape());
                shape.check_written(name, x.len())?;
                Ok((x, shape))
            }

            /// A tensor of this shape, changed in place unless there is an `out`.
            #[allow(dead_code, reason = "embeddings are changed in place alone, numbers of a term are read")]
            pub(crate) fn update<'a, T: 'a>(
                &self,
                x: &PosencBuffer,
                (out, out_shape): (&PosencBuffer, &Self),
                scope: &Scope<'a, Device>,
                [name, out_name]: [&'static str; 2],
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

/// Ids of a memory, as positions are made of.
struct Same<A>(A);

impl<A> AsIds<A> for Same<A> {
    fn into_ids(self) -> A {
        self.0
    }
}

impl PosencIds {
    pub(crate) fn get<'a, M: Space>(&self, scope: &Scope<'a, M>, name: &'static str) -> Result<M::Ids<'a>, Failure> {
        M::ids(scope, name, self)
    }

    pub(crate) fn some<'a, M: Space>(
        &self,
        scope: &Scope<'a, M>,
        name: &'static str,
    ) -> Result<Option<M::Ids<'a>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.get(scope, name).map(Some) }
    }
}

impl PosencPositions {
    pub(crate) fn get<'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<Positions<M::Ids<'a>>, Failure> {
        let mut positions = match self.kind {
            POSENC_IDS => Positions::ids(Same(self.ids.get(scope, "ids")?)),
            POSENC_STARTS => Positions::starts(Same(self.ids.get(scope, "ids")?)),
            POSENC_COUNTED => Positions::counted(),
            POSENC_PACKED => {
                let PosencBuffer { data, len } = self.indptr;
                let indptr = M::ids(scope, "indptr", &PosencIds { data, len, element: POSENC_I32, reserved: 0 })?;
                let packed = Positions::packed(Same(indptr), self.sequences as usize);
                match self.ids.some(scope, "ids")? {
                    None => packed,
                    Some(first) => packed.starting_at(Same(first)),
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
    fn get<'a, M: Space>(&self, scope: &Scope<'a, M>, name: &'static str) -> Result<Place<M::Slice<'a, i32>>, Failure> {
        match self.kind {
            POSENC_PLACE_COUNTED => Ok(Place::Counted(self.start)),
            POSENC_PLACE_BOTTOM_RIGHT => Ok(Place::BottomRight),
            POSENC_PLACE_IDS => Ok(Place::Ids(self.ids.read(scope, name)?)),
            other => Err(unknown("the kind of a place", other)),
        }
    }
}

impl PosencPlaces {
    pub(crate) fn get<'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<Places<M::Slice<'a, i32>>, Failure> {
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
