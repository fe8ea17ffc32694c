//! One call: every buffer that it uses, checked as it is handed in, and the launch that uses them all.

use std::cell::OnceCell;

use arrayvec::ArrayVec;
use cudarc::driver::{DevicePtr, DeviceRepr, SyncOnDrop, sys};

use super::args::{Args, In, Out};
use super::buffer::sealed::Hold;
use super::capture::{self, Keep, Kept};
use super::device::{Gpu, is_per_thread};
use super::launch::{Kernel, Launch};
use super::scratch::{Lent, Scratch};
use super::tensor::{Read, Update, View, ViewMut, Write};
use super::uploaded::Uploaded;
use crate::shape::{Shape, Strided};
use crate::{Error, Result};

/// The most buffers of one call: a softmax with four terms of five buffers each has 36.
const MOST: usize = 40;
/// The most tensors of one call: three of a softmax, and two of each of four terms.
const MOST_TENSORS: usize = 12;

/// What one call holds: addresses and byte ranges of its buffers, and cudarc's order of events around their use, until the
/// launch is done.
///
/// A buffer is checked when it is handed in: its length, its context, and that nothing that is written shares memory with
/// anything else the call holds.
pub(crate) struct Call<'a> {
    gpu: &'a Gpu,
    context: sys::CUcontext,
    ranges: ArrayVec<Range, MOST>,
    orders: ArrayVec<SyncOnDrop<'a>, MOST>,
    tensors: ArrayVec<Tensor, MOST_TENSORS>,
    scratch: Option<Lent<'a>>,
    /// the graph into which it is captured, once it was asked for
    graph: OnceCell<Option<sys::CUgraph>>,
    /// tables, which a captured call leaves to its graph
    tables: ArrayVec<&'a dyn Keep, MOST>,
    /// the table that it writes
    changed: Option<Kept>,
}

/// The bytes of one buffer that a call may touch.
#[derive(Clone, Copy, Debug)]
struct Range {
    name: &'static str,
    start: u64,
    end: u64,
    written: bool,
    /// which of the call's tensors it is
    tensor: Option<usize>,
}

/// Where the elements of a tensor lie.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    /// the address that its shape counts from
    base: u64,
    /// bytes of an element
    width: u64,
    strided: Strided,
}

/// A tensor of a call: where its first element lies, its shape, and what decides how wide its accesses may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<Address, S> {
    pub at: Address,
    pub shape: S,
    /// the union of the buffer's address, the offset and every stride, in bytes
    pub steps: u64,
}

/// A tensor that is changed in place or copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Updated<S> {
    pub x: Placed<In, S>,
    pub y: Placed<Out, S>,
    pub in_place: bool,
    buffer: (u64, usize),
}

impl<S: Copy> Updated<S> {
    /// A tensor that is changed in place, in a buffer of an address and a length.
    const fn in_place(y: Placed<Out, S>, buffer: (u64, usize)) -> Self {
        let x = Placed { at: y.at.as_in(), shape: y.shape, steps: y.steps };
        Self { x, y, in_place: true, buffer }
    }

    /// What decides how wide the accesses to both may be.
    pub(crate) const fn steps(&self) -> u64 {
        self.x.steps | self.y.steps
    }
}

/// The widest access up to 16 bytes to tensors whose union of addresses, offsets, strides and sizes in bytes is `steps`.
pub(crate) const fn widest(steps: u64) -> usize {
    let zeros = steps.trailing_zeros();
    1 << if zeros < 4 { zeros } else { 4 }
}

impl Gpu {
    /// Opens a call.
    #[inline]
    pub(crate) fn call(&self) -> Call<'_> {
        Call {
            gpu: self,
            context: self.stream().context().cu_ctx(),
            ranges: ArrayVec::new(),
            orders: ArrayVec::new(),
            tensors: ArrayVec::new(),
            scratch: None,
            graph: OnceCell::new(),
            tables: ArrayVec::new(),
            changed: None,
        }
    }
}

impl<'a> Call<'a> {
    /// The device.
    pub(crate) const fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    #[inline]
    fn check<V>(&self, name: &'static str, buffer: Read<'_, V>, need: usize) -> Result<()> {
        let got = buffer.len();
        if got < need {
            return Err(Error::Length { name, got, need });
        }
        self.check_context(name, buffer)
    }

    #[inline]
    fn check_context<V>(&self, name: &'static str, buffer: &(impl Hold<V> + ?Sized)) -> Result<()> {
        if buffer.context().is_none_or(|context| context == self.context) { Ok(()) } else { Err(Error::Context(name)) }
    }

    /// Adds a range, after a look at all that are there.
    fn hold(&mut self, name: &'static str, [start, end]: [u64; 2], written: bool, tensor: Option<usize>) -> Result<()> {
        for other in self.ranges.iter().filter(|other| written || other.written) {
            // Nothing meets an empty range, wherever it lies.
            if start.max(other.start) < end.min(other.end) {
                self.check_apart(other, &Range { name, start, end, written, tensor })?;
            }
        }
        self.ranges.try_push(Range { name, start, end, written, tensor }).map_err(|_| one_too_many(name))
    }

    #[cold]
    fn check_apart(&self, first: &Range, second: &Range) -> Result<()> {
        apart(first, second, [first, second].map(|of| Some(self.tensors[of.tensor?])))
    }

    /// Adds the range of a tensor of `span` elements; returns where the tensor begins, and its steps.
    fn hold_tensor<S: Shape>(
        &mut self,
        name: &'static str,
        [base, width]: [u64; 2],
        shape: &S,
        span: usize,
        written: bool,
    ) -> Result<(u64, u64)> {
        let strided = shape.strided();
        let steps = base | (strided.steps() as u64).wrapping_mul(width);
        // A tensor without elements may have an offset beyond its buffer.
        let start = if span == 0 { base } else { base.wrapping_add(strided.offset as u64 * width) };
        let end = base.saturating_add((span as u64).saturating_mul(width));
        let tensor = self.tensors.len();
        self.tensors.try_push(Tensor { base, width, strided }).map_err(|_| one_too_many(name))?;
        self.hold(name, [start, end], written, Some(tensor)).map(|()| (start, steps))
    }

    /// A buffer to be read, which must hold `need` elements.
    pub(crate) fn read<V>(&mut self, name: &'static str, buffer: Read<'a, V>, need: usize) -> Result<In> {
        self.check(name, buffer, need)?;
        let (start, order) = buffer.hold(self.gpu.stream());
        self.hold(name, [start, end::<V>(start, need)], false, None)?;
        self.orders.push(order);
        Ok(In::new(start))
    }

    /// [`Call::read`] of a buffer that may be missing: then the kernel gets null.
    #[inline]
    pub(crate) fn read_some<V>(&mut self, name: &'static str, buffer: Option<Read<'a, V>>, need: usize) -> Result<In> {
        buffer.map_or(Ok(In::NULL), |buffer| self.read(name, buffer, need))
    }

    /// A buffer to be written, which must hold `need` elements.
    pub(crate) fn write<V>(&mut self, name: &'static str, buffer: Write<'a, V>, need: usize) -> Result<Out> {
        self.check(name, buffer, need)?;
        let (start, order) = buffer.hold_mut(self.gpu.stream());
        self.hold(name, [start, end::<V>(start, need)], true, None)?;
        self.orders.push(order);
        Ok(Out::new(start))
    }

    /// [`Call::write`] of a buffer that may be missing: then the kernel gets null.
    #[inline]
    pub(crate) fn write_some<V>(
        &mut self,
        name: &'static str,
        buffer: Option<Write<'a, V>>,
        need: usize,
    ) -> Result<Out> {
        buffer.map_or(Ok(Out::NULL), |buffer| self.write(name, buffer, need))
    }

    /// A table of the plan.
    #[inline]
    pub(crate) fn table<V: Send + Sync + 'static>(&mut self, name: &'static str, table: &'a Uploaded<V>) -> Result<In> {
        let slice = table.slice();
        self.check_context(name, slice)?;
        table.read_on(self.gpu.stream());
        let (start, order) = slice.device_ptr(self.gpu.stream());
        self.hold(name, [start, end::<V>(start, table.len())], false, None)?;
        self.orders.push(order);
        self.tables.try_push(table).map_err(|_| one_too_many(name))?;
        Ok(In::new(start))
    }

    /// A table of the plan, to be written. A call has one.
    pub(crate) fn table_mut<V>(&mut self, name: &'static str, table: &'a mut Uploaded<V>) -> Result<Out>
    where
        V: DeviceRepr + Send + Sync + 'static,
    {
        self.check_context(name, table.slice())?;
        table.read_on(self.gpu.stream());
        self.changed = Some(table.kept());
        let view = table.slice_mut(self.gpu)?;
        let len = view.len();
        let (start, order) = view.view_ptr_mut(self.gpu.stream());
        self.hold(name, [start, end::<V>(start, len)], true, None)?;
        self.orders.push(order);
        Ok(Out::new(start))
    }

    /// A tensor to be read.
    pub(crate) fn view<T, S: Shape>(&mut self, name: &'static str, x: View<'a, T, S>) -> Result<Placed<In, S>> {
        let span = x.shape.check(name, x.buffer.len())?;
        self.place(name, x, span)
    }

    /// A tensor to be written, or changed in place.
    pub(crate) fn view_mut<T, S: Shape>(&mut self, name: &'static str, x: ViewMut<'a, T, S>) -> Result<Placed<Out, S>> {
        let span = x.shape.check_written(name, x.buffer.len())?;
        self.place_mut(name, x, span)
    }

    fn place<T, S: Shape>(&mut self, name: &'static str, x: View<'a, T, S>, span: usize) -> Result<Placed<In, S>> {
        let View { buffer, shape } = x;
        self.check_context(name, buffer)?;
        let (base, order) = buffer.hold(self.gpu.stream());
        let (at, steps) = self.hold_tensor(name, [base, size_of::<T>() as u64], &shape, span, false)?;
        self.orders.push(order);
        Ok(Placed { at: In::new(at), shape, steps })
    }

    fn place_mut<T, S: Shape>(
        &mut self,
        name: &'static str,
        x: ViewMut<'a, T, S>,
        span: usize,
    ) -> Result<Placed<Out, S>> {
        let ViewMut { buffer, shape } = x;
        self.check_context(name, buffer)?;
        let (base, order) = buffer.hold_mut(self.gpu.stream());
        let (at, steps) = self.hold_tensor(name, [base, size_of::<T>() as u64], &shape, span, true)?;
        self.orders.push(order);
        Ok(Placed { at: Out::new(at), shape, steps })
    }

    /// A tensor to be changed in place, or read and written elsewhere.
    pub(crate) fn update<T, S: Shape>(
        &mut self,
        [name, out_name]: [&'static str; 2],
        x: Update<'a, T, S>,
    ) -> Result<Updated<S>> {
        match x {
            Update::InPlace(x) => {
                let len = x.buffer.len();
                let y = self.view_mut(name, x)?;
                let base = self.tensors.last().map_or(0, |tensor| tensor.base);
                Ok(Updated::in_place(y, (base, len)))
            }
            Update::Copy(x, y) => {
                // Both lengths before the sizes: a short buffer is what the caller must know first.
                let span = x.shape.check(name, x.buffer.len())?;
                let out_span = y.shape.check_written(out_name, y.buffer.len())?;
                x.shape.check_same(name, &y.shape, out_name)?;
                let x = self.place(name, x, span)?;
                let base = self.tensors.last().map_or(0, |tensor| tensor.base);
                let ViewMut { buffer, shape } = y;
                self.check_context(out_name, buffer)?;
                let len = buffer.len();
                let (out_base, order) = buffer.hold_mut(self.gpu.stream());
                // The same elements under both names, which addresses of elsewhere may be.
                let in_place = span > 0 && out_base == base && shape == x.shape;
                if in_place {
                    self.ranges.pop();
                    self.tensors.pop();
                }
                let width = size_of::<T>() as u64;
                let (at, steps) = self.hold_tensor(out_name, [out_base, width], &shape, out_span, true)?;
                self.orders.push(order);
                let y = Placed { at: Out::new(at), shape, steps };
                Ok(if in_place {
                    Updated::in_place(y, (base, len))
                } else {
                    Updated { x, y, in_place, buffer: (0, 0) }
                })
            }
        }
    }

    /// A tensor in the buffer of one that is changed in place, to be changed in place too.
    pub(crate) fn beside<T, S: Shape>(&mut self, name: &'static str, x: &Updated<S>, shape: S) -> Result<Updated<S>> {
        let (base, len) = x.buffer;
        let span = shape.check_written(name, len)?;
        let (at, steps) = self.hold_tensor(name, [base, size_of::<T>() as u64], &shape, span, true)?;
        Ok(Updated::in_place(Placed { at: Out::new(at), shape, steps }, x.buffer))
    }

    /// A tensor in the buffer of one that is changed in place, to be read.
    pub(crate) fn beside_read<T, S: Shape>(
        &mut self,
        name: &'static str,
        x: &Updated<S>,
        shape: S,
    ) -> Result<Placed<In, S>> {
        let (base, len) = x.buffer;
        let span = shape.check(name, len)?;
        let (at, steps) = self.hold_tensor(name, [base, size_of::<T>() as u64], &shape, span, false)?;
        Ok(Placed { at: In::new(at), shape, steps })
    }

    /// The graph into which the stream is being captured, if it is.
    #[inline]
    fn graph(&self) -> Result<Option<sys::CUgraph>> {
        if let Some(graph) = self.graph.get() {
            return Ok(*graph);
        }
        let graph = capture::captured_into(self.gpu.stream())?;
        Ok(*self.graph.get_or_init(|| graph))
    }

    /// Scratch memory of the plan: its counters and its numbers. A call takes it once.
    pub(crate) fn scratch(&mut self, scratch: &'a Scratch) -> Result<(Out, Out)> {
        let beside_itself = is_per_thread(self.gpu.stream()) || self.graph()?.is_some();
        let (start, bytes, lent) = scratch.lend(self.gpu, beside_itself)?;
        self.hold("scratch memory", [start, start + bytes], true, None)?;
        self.scratch = Some(lent);
        let counters = Out::new(start);
        Ok((counters, counters.offset(scratch.counter_bytes())))
    }

    /// Puts one kernel into the stream. A call may launch several, one after another.
    #[inline]
    pub(crate) fn launch<A: Args>(&self, kernel: &Kernel<A>, launch: &Launch<A>) -> Result<()> {
        if self.try_launch(kernel, launch)? {
            return Ok(());
        }
        Err(Error::Value(format!("{kernel:?} needs {:?} blocks on the device at once, which do not fit", launch.grid)))
    }

    /// [`Call::launch`]; false if the driver refused a cooperative launch because not all of its blocks fit at once.
    #[inline]
    pub(crate) fn try_launch<A: Args>(&self, kernel: &Kernel<A>, launch: &Launch<A>) -> Result<bool> {
        let mut stray = None;
        launch.args.addresses(&mut |address| {
            // One past the end belongs to a tensor without elements.
            let inside = || self.ranges.iter().any(|range| (range.start..=range.end).contains(&address));
            if address != 0 && !inside() {
                stray = Some(address);
            }
        });
        if let Some(address) = stray {
            return Err(Error::Value(format!(
                "{kernel:?} gets the address {address:#x}, which the call does not hold"
            )));
        }
        if let Some(graph) = self.graph()? {
            let tables = self.tables.iter().map(|table| table.kept());
            capture::keep(graph, tables.chain(self.changed.clone()).chain([kernel.kept()]).collect())?;
        }
        // SAFETY: every address is null or lies in memory that this call holds, as was just seen: memory of this context (checked
        // when it was handed in) whose owners are borrowed until the call is dropped, behind this launch, and order what follows
        // in other streams behind it. Lengths were compared with the shapes that the same methods gave out.
        unsafe { self.gpu.launch(kernel, launch) }
    }
}

#[inline]
fn end<V>(start: u64, len: usize) -> u64 {
    start.saturating_add((len as u64).saturating_mul(size_of::<V>() as u64))
}

#[cold]
fn one_too_many(name: &str) -> Error {
    Error::Value(format!("{name} is one buffer too many for a call"))
}

/// Refuses two ranges that meet, unless they are of tensors whose shapes prove that no element does.
fn apart(first: &Range, second: &Range, tensors: [Option<Tensor>; 2]) -> Result<()> {
    if let [Some(a), Some(b)] = tensors
        && a.width == b.width
        && a.base.abs_diff(b.base).is_multiple_of(a.width)
    {
        let origin = a.base.min(b.base);
        let from = |Tensor { base, width, strided }: Tensor| {
            let skip = usize::try_from((base - origin) / width).unwrap_or(usize::MAX);
            Strided { offset: strided.offset.saturating_add(skip), ..strided }
        };
        return from(a).check_apart(first.name, &from(b), second.name);
    }
    let (written, other) = if second.written { (second, first) } else { (first, second) };
    Err(Error::Value(format!("{} is written and shares memory with {}", written.name, other.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Heads;

    #[test]
    fn accesses_are_as_wide_as_every_step_allows() {
        assert_eq!(widest(0x7f00_0000 | 256), 16);
        assert_eq!(widest(256 | 24), 8);
        assert_eq!(widest(256 | 6), 2);
        assert_eq!(widest(0), 16);
    }

    #[test]
    fn tensors_of_one_buffer_are_apart_where_their_strides_prove_it() {
        let row = 48 * 64;
        let range = |name, written| Range { name, start: 0, end: 0, written, tensor: None };
        let tensor = |base: u64, heads: Heads| Some(Tensor { base, width: 4, strided: heads.strided() });
        let (q, k) = (range("q", true), range("k", true));
        let queries = tensor(4096, Heads::bthd(3, 5, 32, 64).row(row));
        // The same keys by an offset, and by an address of their own.
        let keys = Heads::bthd(3, 5, 8, 64).row(row);
        apart(&q, &k, [queries, tensor(4096, keys.at(32 * 64))]).unwrap();
        apart(&q, &k, [queries, tensor(4096 + 4 * 32 * 64, keys)]).unwrap();
        let error = apart(&q, &k, [queries, tensor(4096 + 4 * 31 * 64, keys)]).unwrap_err();
        assert!(error.to_string().ends_with("may overlap in one buffer"), "{error}");
        let error = apart(&range("mask", false), &q, [None, queries]).unwrap_err();
        assert_eq!(error.to_string(), "q is written and shares memory with mask");
    }
}
