//! Scratch memory: what the blocks of a call leave for one another.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, result, sys};

use super::device::Gpu;
use super::driver;
use crate::{Error, Result};

/// The scratch memory of a plan: counters, which are 0 between calls, and numbers, which no call finds as it left them.
///
/// Calls of one stream follow one another on the device, so that they share the plan's own memory. Where they may run side by
/// side, in graphs and on the per-thread default stream (which is another stream in every thread), each call allocates its own
/// in the stream's order and frees it behind its launch; in a capture both become nodes of the graph.
///
/// Clones share the memory: they are of one stream. [`Scratch::on`] gives another stream its own.
#[derive(Clone)]
pub(crate) struct Scratch {
    shared: Arc<Shared>,
    counters: usize,
}

struct Shared {
    words: CudaSlice<u32>,
    busy: Mutex<()>,
}

/// Scratch memory of one call.
pub(super) enum Lent<'a> {
    /// the plan's, which no other thread launches with meanwhile
    Plan { _busy: MutexGuard<'a, ()> },
    /// its own
    Own { address: sys::CUdeviceptr, stream: Arc<CudaStream> },
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Self::Own { address, stream } = self {
            // SAFETY: allocated by `lend` on this stream and freed once, behind the launch that uses it. An error has no one to
            // go to: the context is gone, and its memory with it.
            let _ = unsafe { result::free_async(*address, stream.cu_stream()) };
        }
    }
}

impl Scratch {
    /// Room for `counters` counters and `numbers` numbers of 32 bits.
    pub(crate) fn new(gpu: &Gpu, counters: usize, numbers: usize) -> Result<Self> {
        // Numbers begin at a line of the cache.
        let counters = counters.checked_next_multiple_of(32).unwrap_or(usize::MAX);
        Self::of(gpu, counters, counters.saturating_add(numbers).max(1))
    }

    fn of(gpu: &Gpu, counters: usize, words: usize) -> Result<Self> {
        Ok(Self { shared: Arc::new(Shared { words: gpu.zeros(words)?, busy: Mutex::new(()) }), counters })
    }

    /// The same for calls of another stream.
    pub(crate) fn on(&self, gpu: &Gpu) -> Result<Self> {
        let words = &self.shared.words;
        if words.stream().cu_stream() == gpu.stream().cu_stream() {
            return Ok(self.clone());
        }
        Self::of(gpu, self.counters, words.len())
    }

    /// Refuses a call that needs more than there is; `call` says what it is.
    pub(crate) fn check(&self, numbers: usize, call: impl FnOnce() -> String) -> Result<()> {
        let there = self.shared.words.len() - self.counters;
        if numbers > there {
            return Err(Error::Value(format!(
                "{} needs {numbers} numbers of scratch memory, the plan was made with {there}",
                call()
            )));
        }
        Ok(())
    }

    /// Memory for one call: its address, its bytes, and what the call keeps until its launch is done. `beside_itself`: launches into
    /// the stream may run at the same time as others, because it is being captured or is another stream in every thread.
    pub(super) fn lend(&self, gpu: &Gpu, beside_itself: bool) -> Result<(sys::CUdeviceptr, u64, Lent<'_>)> {
        let Shared { words, busy } = &*self.shared;
        let (stream, bytes) = (gpu.stream(), words.len() * size_of::<u32>());
        if !beside_itself {
            let busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
            let (address, _) = cudarc::driver::DevicePtr::device_ptr(words, stream);
            return Ok((address, bytes as u64, Lent::Plan { _busy: busy }));
        }
        stream.context().bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;
        // SAFETY: the stream is alive; the address goes to one launch behind this and is freed behind it.
        let address =
            unsafe { result::malloc_async(stream.cu_stream(), bytes) }.map_err(driver::error("cuMemAllocAsync"))?;
        let lent = Lent::Own { address, stream: stream.clone() };
        // SAFETY: as many bytes were just allocated there.
        unsafe { result::memset_d8_async(address, 0, self.counters * size_of::<u32>(), stream.cu_stream()) }
            .map_err(driver::error("cuMemsetD8Async"))?;
        Ok((address, bytes as u64, lent))
    }

    /// Bytes before the numbers.
    pub(super) const fn counter_bytes(&self) -> u64 {
        (self.counters * size_of::<u32>()) as u64
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({} words)", self.shared.words.len())
    }
}

/// [`Scratch`] of calls that most plans never make: the first one allocates it.
#[derive(Clone, Debug)]
pub(crate) struct ScratchOnNeed {
    counters: usize,
    numbers: usize,
    made: OnceLock<Scratch>,
}

impl ScratchOnNeed {
    /// As [`Scratch::new`].
    pub(crate) const fn new(counters: usize, numbers: usize) -> Self {
        Self { counters, numbers, made: OnceLock::new() }
    }

    /// The memory, on the plan's stream.
    pub(crate) fn get(&self, gpu: &Gpu) -> Result<&Scratch> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let made = Scratch::new(gpu, self.counters, self.numbers)?;
        Ok(self.made.get_or_init(|| made))
    }

    /// The same for calls of another stream.
    pub(crate) fn on(&self, gpu: &Gpu) -> Result<Self> {
        let made = self.made.get().map(|made| made.on(gpu)).transpose()?;
        Ok(Self { made: made.map_or_else(OnceLock::new, OnceLock::from), ..*self })
    }
}
