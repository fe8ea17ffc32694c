//! One call: every buffer that it uses, checked as it is handed in, and the launch that uses them all.

use cudarc::driver::{CudaSlice, CudaStream, DeviceSlice, SyncOnDrop};

use super::args::{Args, In, Out};
use super::device::Gpu;
use super::launch::{Kernel, Launch};
use super::scratch::{Lent, Scratch};
use super::tensor::{Read, Update, View, ViewMut, Write};
use crate::shape::{Shape, Strided};
use crate::{Error, Result};

/// The most buffers of one call.
const MOST: usize = 24;

/// What one call holds: addresses and byte ranges of its buffers, and cudarc's order of events around their use, until the
/// launch is done.
///
/// A buffer is checked when it is handed in: its length, its context, and that nothing that is written shares memory with
/// anything else the call holds.
pub(crate) struct Call<'a> {
    gpu: &'a Gpu,
    ranges: [Option<Range>; MOST],
    orders: [Option<SyncOnDrop<'a>>; MOST],
    count: usize,
    scratch: Option<Lent<'a>>,
}

/// The bytes of one buffer that a call may touch.
#[derive(Clone, Copy, Debug)]
struct Range {
    name: &'static str,
    start: u64,
    end: u64,
    written: bool,
    /// the element's bytes and the shape of a tensor, counted from `base`
    strided: Option<(u64, u64, Strided)>,
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

impl<S> Updated<S> {
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

/// Refuses two tensors of different sizes; `sizes` names them.
pub(crate) fn check_same<S: Shape>(name: &str, x: &S, other_name: &str, other: &S, sizes: &str) -> Result<()> {
    let count = sizes.split(", ").count();
    let of = |shape: &S| shape.strided().dims.map(|(size, _)| size);
    if of(x) == of(other) {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} has the sizes {:?} and {other_name} {:?} ({sizes}), they must be equal",
        &of(x)[4 - count..],
        &of(other)[4 - count..]
    )))
}

impl Gpu {
    /// Opens a call.
    pub(crate) fn call(&self) -> Call<'_> {
        Call { gpu: self, ranges: [const { None }; MOST], orders: [const { None }; MOST], count: 0, scratch: None }
    }
}

impl<'a> Call<'a> {
    /// The device.
    pub(crate) const fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    fn check(&self, name: &'static str, got: usize, need: usize, stream: &CudaStream) -> Result<()> {
        if got < need {
            return Err(Error::Length { name, got, need });
        }
        self.gpu.check_context(name, stream)
    }

    fn held(&self) -> impl Iterator<Item = &Range> {
        self.ranges[..self.count].iter().flatten()
    }

    /// Adds a range, after a look at all that are there.
    fn hold(&mut self, range: Range) -> Result<()> {
        for other in self.held().filter(|other| range.written || other.written) {
            // Nothing meets an empty range, wherever it lies.
            if range.start.max(other.start) < range.end.min(other.end) {
                apart(other, &range)?;
            }
        }
        let place = self.ranges.get_mut(self.count);
        *place.ok_or_else(|| Error::Value(format!("{} is one buffer too many for a call", range.name)))? = Some(range);
        self.count += 1;
        Ok(())
    }

    fn order(&mut self, order: SyncOnDrop<'a>) {
        self.orders[self.count - 1] = Some(order);
    }

    /// A buffer to be read, which must hold `need` elements.
    pub(crate) fn read<V>(&mut self, name: &'static str, buffer: Read<'a, V>, need: usize) -> Result<In> {
        self.check(name, buffer.len(), need, buffer.stream())?;
        let (start, order) = buffer.device_ptr(self.gpu.stream());
        self.hold(Range { name, start, end: end::<V>(start, need), written: false, strided: None })?;
        self.order(order);
        Ok(In::new(start))
    }

    /// [`Call::read`] of a buffer that may be missing: then the kernel gets null.
    pub(crate) fn read_some<V>(&mut self, name: &'static str, buffer: Option<Read<'a, V>>, need: usize) -> Result<In> {
        buffer.map_or(Ok(In::NULL), |buffer| self.read(name, buffer, need))
    }

    /// A buffer to be written, which must hold `need` elements.
    pub(crate) fn write<V>(&mut self, name: &'static str, buffer: Write<'a, V>, need: usize) -> Result<Out> {
        self.check(name, buffer.len(), need, buffer.stream())?;
        let (start, order) = buffer.device_ptr_mut(self.gpu.stream());
        self.hold(Range { name, start, end: end::<V>(start, need), written: true, strided: None })?;
        self.order(order);
        Ok(Out::new(start))
    }

    /// [`Call::write`] of a buffer that may be missing: then the kernel gets null.
    pub(crate) fn write_some<V>(
        &mut self,
        name: &'static str,
        buffer: Option<Write<'a, V>>,
        need: usize,
    ) -> Result<Out> {
        buffer.map_or(Ok(Out::NULL), |buffer| self.write(name, buffer, need))
    }

    /// A table of the plan.
    pub(crate) fn table<V>(&mut self, name: &'static str, table: &'a CudaSlice<V>) -> Result<In> {
        self.read(name, table, DeviceSlice::len(table))
    }

    /// A tensor to be read.
    pub(crate) fn view<T, S: Shape>(&mut self, name: &'static str, x: View<'a, T, S>) -> Result<Placed<In, S>> {
        let View { buffer, shape } = x;
        shape.check(name, buffer.len())?;
        self.gpu.check_context(name, buffer.stream())?;
        let (start, order) = buffer.device_ptr(self.gpu.stream());
        self.hold(tensor::<T>(name, start, &shape.strided(), false)?)?;
        self.order(order);
        Ok(placed::<T, _, _>(start, shape, In::new))
    }

    /// A tensor to be written, or changed in place.
    pub(crate) fn view_mut<T, S: Shape>(&mut self, name: &'static str, x: ViewMut<'a, T, S>) -> Result<Placed<Out, S>> {
        let ViewMut { buffer, shape } = x;
        shape.check_written(name, buffer.len())?;
        self.gpu.check_context(name, buffer.stream())?;
        let (start, order) = buffer.device_ptr_mut(self.gpu.stream());
        self.hold(tensor::<T>(name, start, &shape.strided(), true)?)?;
        self.order(order);
        Ok(placed::<T, _, _>(start, shape, Out::new))
    }

    /// A tensor to be changed in place, or read and written elsewhere. `sizes` names the sizes of both.
    pub(crate) fn update<T, S: Shape>(
        &mut self,
        [name, out_name]: [&'static str; 2],
        x: Update<'a, T, S>,
        sizes: &str,
    ) -> Result<Updated<S>> {
        match x {
            Update::InPlace(x) => {
                let len = x.buffer.len();
                let y = self.view_mut(name, x)?;
                let x = Placed { at: y.at.as_in(), shape: y.shape, steps: y.steps };
                let offset = (y.shape.strided().offset as u64).wrapping_mul(size_of::<T>() as u64);
                let start = y.at.address().wrapping_sub(offset);
                Ok(Updated { x, y, in_place: true, buffer: (start, len) })
            }
            Update::Copy(x, y) => {
                x.shape.check(name, x.buffer.len())?;
                y.shape.check_written(out_name, y.buffer.len())?;
                check_same(name, &x.shape, out_name, &y.shape, sizes)?;
                let x = self.view(name, x)?;
                let y = self.view_mut(out_name, y)?;
                Ok(Updated { x, y, in_place: false, buffer: (0, 0) })
            }
        }
    }

    /// A tensor in the buffer of one that is changed in place, to be changed in place too.
    pub(crate) fn beside<T, S: Shape>(&mut self, name: &'static str, x: &Updated<S>, shape: S) -> Result<Updated<S>> {
        let (start, len) = x.buffer;
        shape.check_written(name, len)?;
        self.hold(tensor::<T>(name, start, &shape.strided(), true)?)?;
        let y = placed::<T, _, _>(start, shape, Out::new);
        let x = Placed { at: y.at.as_in(), shape, steps: y.steps };
        Ok(Updated { x, y, in_place: true, buffer: (start, len) })
    }

    /// Scratch memory of the plan: its counters and its numbers. A call takes it once.
    pub(crate) fn scratch(&mut self, scratch: &'a Scratch) -> Result<(Out, Out)> {
        let (start, bytes, lent) = scratch.lend(self.gpu)?;
        self.hold(Range { name: "scratch memory", start, end: start + bytes, written: true, strided: None })?;
        self.scratch = Some(lent);
        let counters = Out::new(start);
        Ok((counters, counters.offset(scratch.counter_bytes())))
    }

    /// Puts one kernel into the stream. A call may launch several, one after another.
    pub(crate) fn launch<A: Args>(&self, kernel: &Kernel<A>, launch: &Launch<A>) -> Result<()> {
        let mut stray = None;
        launch.args.addresses(&mut |address| {
            // One past the end belongs to a tensor without elements.
            let inside = || self.held().any(|range| (range.start..=range.end).contains(&address));
            if address != 0 && !inside() {
                stray = Some(address);
            }
        });
        if let Some(address) = stray {
            return Err(Error::Value(format!(
                "{kernel:?} gets the address {address:#x}, which the call does not hold"
            )));
        }
        // SAFETY: every address is null or lies in memory that this call holds, as was just seen: memory of this context (checked
        // when it was handed in) whose owners are borrowed until the call is dropped, behind this launch, and order what follows
        // in other streams behind it. Lengths were compared with the shapes that the same methods gave out.
        unsafe { self.gpu.launch(kernel, launch) }
    }
}

fn end<V>(start: u64, len: usize) -> u64 {
    start.saturating_add((len as u64).saturating_mul(size_of::<V>() as u64))
}

/// The range of a tensor that its shape's check has passed.
fn tensor<T>(name: &'static str, start: u64, strided: &Strided, written: bool) -> Result<Range> {
    let width = size_of::<T>() as u64;
    let span = strided.span()?;
    let end = end::<T>(start, span);
    Ok(Range {
        name,
        start: if span == 0 { end } else { start + strided.offset as u64 * width },
        end,
        written,
        strided: Some((start, width, *strided)),
    })
}

fn placed<T, Address, S: Shape>(start: u64, shape: S, address: impl Fn(u64) -> Address) -> Placed<Address, S> {
    let (width, strided) = (size_of::<T>() as u64, shape.strided());
    // A tensor without elements may have an offset beyond its buffer.
    let empty = strided.dims.iter().any(|&(size, _)| size == 0);
    let at = if empty { start } else { start.wrapping_add(strided.offset as u64 * width) };
    Placed { at: address(at), shape, steps: start | (strided.steps() as u64).wrapping_mul(width) }
}

/// Refuses two ranges that meet, unless their shapes prove that no element does.
fn apart(first: &Range, second: &Range) -> Result<()> {
    if let (Some((base, width, a)), Some((other, other_width, b))) = (first.strided, second.strided)
        && width == other_width
        && base.abs_diff(other).is_multiple_of(width)
    {
        let origin = base.min(other);
        let from = |base: u64, of: Strided| {
            let skip = usize::try_from((base - origin) / width).unwrap_or(usize::MAX);
            Strided { offset: of.offset.saturating_add(skip), ..of }
        };
        return from(base, a).check_apart(first.name, &from(other, b), second.name);
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
        let range = |name, base: u64, heads: Heads| tensor::<f32>(name, base, &heads.strided(), true).unwrap();
        let q = range("q", 4096, Heads::bthd(3, 5, 32, 64).row(row));
        // The same keys by an offset, and by an address of their own.
        let k = Heads::bthd(3, 5, 8, 64).row(row);
        apart(&q, &range("k", 4096, k.at(32 * 64))).unwrap();
        apart(&q, &range("k", 4096 + 4 * 32 * 64, k)).unwrap();
        let error = apart(&q, &range("k", 4096 + 4 * 31 * 64, k)).unwrap_err();
        assert!(error.to_string().ends_with("may overlap in one buffer"), "{error}");
        let mask = Range { name: "mask", written: false, strided: None, ..q };
        let error = apart(&mask, &q).unwrap_err();
        assert_eq!(error.to_string(), "q is written and shares memory with mask");
    }
}
