//! Buffers of the engine as arguments of one launch: checked, then turned into addresses.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::args::{In, Out};
use super::device::Gpu;
use crate::{Error, Result};

/// A buffer of `V` that a kernel reads: a `CudaSlice`, a view of one, unified memory.
pub type Read<'a, V> = &'a dyn DevicePtr<V>;
/// A buffer of `V` that a kernel writes.
pub type Write<'a, V> = &'a mut dyn DevicePtrMut<V>;

/// An address, and cudarc's order of events around its use; keep it until the launch is done.
pub(crate) struct Held<'a, Address> {
    pub address: Address,
    len: usize,
    width: usize,
    _order: SyncOnDrop<'a>,
}

impl Gpu {
    /// A buffer to be read, which must hold `need` elements.
    pub(crate) fn read<'a, V>(&'a self, name: &'static str, buffer: Read<'a, V>, need: usize) -> Result<Held<'a, In>> {
        self.check(name, buffer.len(), need, buffer.stream())?;
        let (address, order) = buffer.device_ptr(self.stream());
        Ok(Held { address: In::new(address), len: need, width: size_of::<V>(), _order: order })
    }

    /// A buffer to be written, which must hold `need` elements.
    pub(crate) fn write<'a, 'b: 'a, V>(
        &'a self,
        name: &'static str,
        buffer: &'a mut (dyn DevicePtrMut<V> + 'b),
        need: usize,
    ) -> Result<Held<'a, Out>> {
        self.check(name, buffer.len(), need, buffer.stream())?;
        let (address, order) = buffer.device_ptr_mut(self.stream());
        Ok(Held { address: Out::new(address), len: need, width: size_of::<V>(), _order: order })
    }

    fn check(&self, name: &'static str, got: usize, need: usize, stream: &CudaStream) -> Result<()> {
        if got < need {
            return Err(Error::Length { name, got, need });
        }
        self.check_context(name, stream)
    }

    /// Refuses what belongs to a stream of another context.
    pub(crate) fn check_context(&self, name: &'static str, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() != self.stream().context().cu_ctx() {
            return Err(Error::Context(name));
        }
        Ok(())
    }
}

impl Held<'_, Out> {
    /// Refuses a source whose memory meets this destination's.
    pub(crate) fn apart_from(&self, name: &str, source: &Held<'_, In>, source_name: &str) -> Result<()> {
        let (out, input) = (self.address.address(), source.address.address());
        let end = |start: u64, len: usize, width: usize| start.saturating_add((len * width) as u64);
        if out < end(input, source.len, source.width) && input < end(out, self.len, self.width) {
            return Err(Error::Value(format!("{name} and {source_name} share memory, out of place they must not")));
        }
        Ok(())
    }
}
