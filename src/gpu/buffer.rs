//! Device memory that a call may use: cudarc's own types, and addresses of elsewhere.

use std::marker::PhantomData;

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, UnifiedSlice,
    UnifiedView, UnifiedViewMut, sys,
};

/// What a call asks of a buffer. Private, so that no other type gives an address of its own in safe code.
pub(crate) mod sealed {
    use super::{CudaStream, SyncOnDrop, sys};

    pub trait Hold<V> {
        /// elements
        fn len(&self) -> usize;
        /// its context; `None`: the caller of `Raw::new` has promised it
        fn context(&self) -> Option<sys::CUcontext>;
        /// the address, and what records the read when it is dropped
        fn hold<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>);
    }

    pub trait HoldMut<V>: Hold<V> {
        /// the address, and what records the write when it is dropped
        fn hold_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>);
    }
}

/// Device memory of `V` that a call reads: `CudaSlice`, `CudaView`, `CudaViewMut`, unified memory and its views, or [`Raw`].
///
/// The trait is sealed: a type of another crate could give any address. [`Raw::new`] takes one, and is `unsafe`.
pub trait Buffer<V>: sealed::Hold<V> {}

/// Device memory of `V` that a call writes: `CudaSlice`, `CudaViewMut`, unified memory and its mutable view, or [`Raw`].
pub trait BufferMut<V>: Buffer<V> + sealed::HoldMut<V> {}

macro_rules! buffers {
    ($($Type:ty)*) => {$(
        impl<V> sealed::Hold<V> for $Type {
            fn len(&self) -> usize {
                DeviceSlice::len(self)
            }
            fn context(&self) -> Option<sys::CUcontext> {
                Some(DeviceSlice::stream(self).context().cu_ctx())
            }
            fn hold<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
                DevicePtr::device_ptr(self, stream)
            }
        }
        impl<V> Buffer<V> for $Type {}
    )*};
}

macro_rules! mutable_buffers {
    ($($Type:ty)*) => {$(
        impl<V> sealed::HoldMut<V> for $Type {
            fn hold_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
                DevicePtrMut::device_ptr_mut(self, stream)
            }
        }
        impl<V> BufferMut<V> for $Type {}
    )*};
}

buffers! { CudaSlice<V> CudaView<'_, V> CudaViewMut<'_, V> UnifiedSlice<V> UnifiedView<'_, V> UnifiedViewMut<'_, V> }
mutable_buffers! { CudaSlice<V> CudaViewMut<'_, V> UnifiedSlice<V> UnifiedViewMut<'_, V> }

/// Device memory by its address: that of another library, framework or language.
///
/// A call checks its length, its overlap with the call's other buffers and its alignment as it does for cudarc's own types. It
/// records no event: the order between streams is the caller's. Its layout is the same for every `V`.
///
/// # Example
/// ```no_run
/// use posenc::gpu::Raw;
/// use posenc::{Gpu, Heads, Positions, Rope, RopePlan};
///
/// # fn from_elsewhere() -> u64 { 0 }
/// let gpu = Gpu::open(0)?;
/// let plan = RopePlan::<f32>::new(&gpu, &Rope::new(128, 10_000.0))?;
/// let address = from_elsewhere();
/// // SAFETY: the engine allocated 7 * 32 * 128 f32 there, in this context, and uses them on this stream alone.
/// let mut q = unsafe { Raw::<f32>::new(address, 7 * 32 * 128) };
/// plan.rotate(Heads::thd(7, 32, 128).of_mut(&mut q), None, Positions::counted())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Raw<V> {
    address: u64,
    len: usize,
    element: PhantomData<V>,
}

impl<V> Raw<V> {
    /// `len` elements at a device address.
    ///
    /// # Safety
    /// For every call that gets it, until the call's kernel has run (of a captured call: until every launch of the graph has run):
    /// `len` elements of `V` are allocated there in the context of the plan, initialised where they are read; nothing else writes
    /// them, and nothing else reads what the call writes, unless an event or the stream orders it. A copy is the same memory.
    pub const unsafe fn new(address: u64, len: usize) -> Self {
        Self { address, len, element: PhantomData }
    }

    /// Its device address.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<V> sealed::Hold<V> for Raw<V> {
    fn len(&self) -> usize {
        self.len
    }
    fn context(&self) -> Option<sys::CUcontext> {
        None
    }
    fn hold<'a>(&'a self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<V> sealed::HoldMut<V> for Raw<V> {
    fn hold_mut<'a>(&'a mut self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Record(None))
    }
}

impl<V> Buffer<V> for Raw<V> {}
impl<V> BufferMut<V> for Raw<V> {}
