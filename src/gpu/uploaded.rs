//! Numbers of a plan in device memory: shared by its clones, kept by the graphs that read them.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut};

use super::capture::{Keep, Kept, captured_into};
use super::device::{Gpu, is_per_thread};
use super::driver;
use crate::Result;

/// Numbers of a plan in device memory.
///
/// Clones share it. One that is changed while others share it moves to memory of its own first.
pub(crate) struct Uploaded<V> {
    shared: Arc<Shared<V>>,
}

struct Shared<V> {
    slice: UnsafeCell<CudaSlice<V>>,
    /// `Uploaded`s that share it; graphs only keep it allocated
    tables: AtomicUsize,
    /// streams that read it, beside the one that frees it
    others: Mutex<Vec<Arc<CudaStream>>>,
}

// SAFETY: a shared reference to the slice is given to those who hold a `Uploaded`, a mutable one to the only `Uploaded` that there is, by
// its own mutable reference; graphs that keep a `Shared` never look at it. A CudaSlice may be used and dropped in any thread.
unsafe impl<V: Send + Sync> Sync for Shared<V> {}

impl<V> Drop for Shared<V> {
    fn drop(&mut self) {
        let stream = self.slice.get_mut().stream();
        // The slice is freed in the current context, and a graph drops it in a thread that has none.
        let _ = stream.context().bind_to_thread();
        // An error has no one to go to: the context is gone, and its memory with it.
        for other in self.others.get_mut().unwrap_or_else(PoisonError::into_inner) {
            if is_per_thread(other) {
                // Another stream in every thread, of which this thread can wait for its own alone.
                let _ = stream.context().synchronize();
            } else if !matches!(captured_into(other), Ok(Some(_)) | Err(_)) {
                // What a capture has recorded keeps the memory itself.
                let _ = stream.join(other);
            }
        }
    }
}

impl<V> Uploaded<V> {
    pub(crate) fn new(slice: CudaSlice<V>) -> Self {
        let (slice, tables) = (UnsafeCell::new(slice), AtomicUsize::new(1));
        Self { shared: Arc::new(Shared { slice, tables, others: Mutex::default() }) }
    }

    /// The memory.
    pub(crate) fn slice(&self) -> &CudaSlice<V> {
        // SAFETY: only `slice_mut` makes a mutable reference, of a mutable one to the only `Uploaded`.
        unsafe { &*self.shared.slice.get() }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.slice().len()
    }

    /// Notes that a stream reads it, so that the memory is freed behind that.
    pub(super) fn read_on(&self, stream: &Arc<CudaStream>) {
        if stream.cu_stream() != self.slice().stream().cu_stream() || is_per_thread(stream) {
            let mut others = self.shared.others.lock().unwrap_or_else(PoisonError::into_inner);
            if !others.iter().any(|other| other.cu_stream() == stream.cu_stream()) {
                others.push(stream.clone());
            }
        }
    }
}

impl<V: cudarc::driver::DeviceRepr> Uploaded<V> {
    /// The memory, to be changed; moved first if clones of the plan share it. Graphs of this plan read what is written there.
    pub(crate) fn slice_mut(&mut self, gpu: &Gpu) -> Result<CudaViewMut<'_, V>> {
        if self.shared.tables.load(Ordering::Acquire) > 1 {
            let copy = gpu.stream().clone_dtod(self.slice()).map_err(driver::error("cuMemcpyDtoDAsync"))?;
            *self = Self::new(copy);
        }
        // SAFETY: no other `Uploaded` shares it, and none can come while this one is borrowed; see `Shared`'s Sync.
        let slice = unsafe { &mut *self.shared.slice.get() };
        Ok(slice.as_view_mut())
    }
}

impl<V> Clone for Uploaded<V> {
    fn clone(&self) -> Self {
        self.shared.tables.fetch_add(1, Ordering::Relaxed);
        Self { shared: self.shared.clone() }
    }
}

impl<V> Drop for Uploaded<V> {
    fn drop(&mut self) {
        self.shared.tables.fetch_sub(1, Ordering::Release);
    }
}

impl<V: Send + Sync + 'static> Keep for Uploaded<V> {
    fn kept(&self) -> Kept {
        self.shared.clone()
    }
}

impl<V> std::fmt::Debug for Uploaded<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uploaded({} elements)", self.len())
    }
}
