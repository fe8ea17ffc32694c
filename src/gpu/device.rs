//! A device as a plan sees it: the engine's stream, and what is loaded there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits, sys};

use super::driver;
use super::modules::{self, Module};
use super::uploaded::Uploaded;
use crate::shape::product;
use crate::{Error, Result};

/// A stream of the engine, and the kernels that were loaded for its context.
///
/// It creates no stream and no context, and synchronises nothing. Cloning is cheap and shares the loaded kernels.
#[derive(Clone)]
pub struct Gpu {
    stream: Arc<CudaStream>,
    shared: Arc<Shared>,
    overlap: bool,
}

/// What every stream of the context shares.
struct Shared {
    context: Arc<CudaContext>,
    capability: (i32, i32),
    driver: i32,
    multiprocessors: u32,
    modules: Mutex<HashMap<(&'static str, &'static str), Arc<Module>>>,
}

impl Gpu {
    /// Kernels on `stream`, in its context.
    ///
    /// # Errors
    /// [`Error::NoKernels`] if the crate was built without kernels, [`Error::Driver`] if the driver does not answer.
    ///
    /// # Example
    /// ```no_run
    /// use cudarc::driver::CudaContext;
    /// let stream = CudaContext::new(0)?.default_stream();
    /// let gpu = posenc::Gpu::new(&stream)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A call of a plan in a CUDA graph: the stream is not the default one, which captures nothing, and cudarc's events
    /// are off, since one that was recorded before a capture cannot be waited for inside it.
    ///
    /// ```no_run
    /// use cudarc::driver::CudaContext;
    /// use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    /// use posenc::embed::{Sinusoid, SinusoidPlan, Tokens};
    /// use posenc::{Gpu, Positions};
    ///
    /// let context = CudaContext::new(0)?;
    /// // SAFETY: every buffer of this program is used on one stream alone.
    /// unsafe { context.disable_event_tracking() };
    /// let stream = context.new_stream()?;
    /// let gpu = Gpu::new(&stream)?;
    /// let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(512))?;
    /// let mut x = stream.alloc_zeros(8 * 100 * 512)?;
    ///
    /// stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    /// plan.add(Tokens::new(8, 100, 512).of_mut(&mut x), Positions::counted(), 1.0)?;
    /// let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    /// let graph = stream.end_capture(flags)?.ok_or("an empty graph")?;
    /// // The graph keeps what it needs of the plan, which may be dropped. Of the buffers it has the addresses alone: they outlive it.
    /// graph.launch()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        if modules::images().is_empty() {
            return Err(Error::NoKernels);
        }
        let context = stream.context();
        let attribute = |name: &'static str, attribute| context.attribute(attribute).map_err(driver::error(name));
        use sys::CUdevice_attribute as Attribute;
        let multiprocessors = attribute("cuDeviceGetAttribute", Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Self {
            stream: stream.clone(),
            shared: Arc::new(Shared {
                context: context.clone(),
                capability: context.compute_capability().map_err(driver::error("cuDeviceGetAttribute"))?,
                driver: driver::version()?,
                multiprocessors: u32::try_from(multiprocessors).unwrap_or(1).max(1),
                modules: Mutex::default(),
            }),
            overlap: false,
        })
    }

    /// Device `ordinal` through its primary context and default stream, for programs that have no engine.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if there is no driver or no such device; then as [`Gpu::new`]. It never panics.
    pub fn open(ordinal: usize) -> Result<Self> {
        if modules::images().is_empty() {
            return Err(Error::NoKernels);
        }
        driver::find()?;
        let context = CudaContext::new(ordinal).map_err(|error| {
            Error::NoDevice(format!("the driver does not give device {ordinal} ({})", driver::reason(error)))
        })?;
        Self::new(&context.default_stream())
    }

    /// The same kernels on another stream of the context, which waits for what this one's stream has been given so far.
    ///
    /// # Errors
    /// [`Error::Context`] if the stream is of another context.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<Self> {
        self.check_context("the stream", stream)?;
        if stream.cu_stream() != self.stream.cu_stream() {
            stream.join(&self.stream).map_err(driver::error("cuStreamWaitEvent"))?;
            if is_per_thread(stream) {
                // Its other threads' streams wait for nothing.
                stream.synchronize().map_err(driver::error("cuStreamSynchronize"))?;
            }
        }
        Ok(Self { stream: stream.clone(), ..self.clone() })
    }

    /// The same kernels, launched so that each may start before the kernel ahead of it in the stream has ended
    /// (programmatic dependent launch; compute capability 9.0 and later, no effect before).
    ///
    /// Safe after kernels of any origin: ours wait for the memory of the one ahead before they touch a tensor.
    pub fn overlapping(mut self, overlap: bool) -> Self {
        self.overlap = overlap;
        self
    }

    /// The engine's stream.
    #[inline]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Compute capability, such as `(9, 0)`.
    pub fn capability(&self) -> (i32, i32) {
        self.shared.capability
    }

    /// Streaming multiprocessors of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.shared.multiprocessors
    }

    /// Bytes of shared memory that a block may have.
    pub(crate) fn shared_memory(&self) -> Result<u32> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let bytes = self.stream().context().attribute(attribute).map_err(driver::error("cuDeviceGetAttribute"))?;
        Ok(u32::try_from(bytes).unwrap_or(0))
    }

    /// Refuses what belongs to a stream of another context.
    #[inline]
    pub(crate) fn check_context(&self, name: &'static str, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() != self.stream().context().cu_ctx() {
            return Err(Error::Context(name));
        }
        Ok(())
    }

    /// Whether launches may start before the one ahead of them has ended.
    #[inline]
    pub(super) fn overlaps(&self) -> bool {
        self.overlap && self.shared.capability.0 >= 9
    }

    /// The module of kernel file `file` for element type `dtype`, loaded at its first use.
    pub(super) fn module(&self, file: &'static str, dtype: &'static str) -> Result<Arc<Module>> {
        let mut modules = self.shared.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&(file, dtype)) {
            return Ok(module.clone());
        }
        let Shared { context, capability, driver, .. } = &*self.shared;
        let module = Arc::new(Module::load(context, *capability, *driver, (file, dtype))?);
        modules.insert((file, dtype), module.clone());
        Ok(module)
    }

    /// What a plan's memory holds is there before it is used: in the stream's order, or at once where other threads use it in
    /// streams of their own.
    fn settled<V>(&self, made: CudaSlice<V>) -> Result<CudaSlice<V>> {
        if is_per_thread(&self.stream) {
            self.stream().synchronize().map_err(driver::error("cuStreamSynchronize"))?;
        }
        Ok(made)
    }

    /// Numbers of a plan.
    pub(crate) fn upload<V: DeviceRepr>(&self, values: &[V]) -> Result<Uploaded<V>> {
        self.buffer(values).map(Uploaded::new)
    }

    /// A buffer with these values.
    pub(crate) fn buffer<V: DeviceRepr>(&self, values: &[V]) -> Result<CudaSlice<V>> {
        self.settled(self.stream().clone_htod(values).map_err(driver::error("cuMemcpyHtoDAsync"))?)
    }

    /// `len` zeros.
    pub(crate) fn zeros<V: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<V>> {
        let bytes = product("device memory", &[len, size_of::<V>()])?;
        let refused = |error| Error::Driver {
            call: "cuMemAllocAsync",
            reason: format!("{}, for {bytes} bytes", driver::reason(error)),
        };
        self.settled(self.stream().alloc_zeros(len).map_err(refused)?)
    }

    /// Values of a buffer, after everything ahead of them in the stream: this waits.
    pub(crate) fn download<V: DeviceRepr>(&self, values: &CudaSlice<V>) -> Result<Vec<V>> {
        self.stream().clone_dtoh(values).map_err(driver::error("cuMemcpyDtoHAsync"))
    }

    /// New values for a buffer.
    pub(crate) fn overwrite<V: DeviceRepr>(&self, buffer: &mut CudaSlice<V>, values: &[V]) -> Result<()> {
        self.stream().memcpy_htod(values, buffer).map_err(driver::error("cuMemcpyHtoDAsync"))
    }
}

/// Whether a stream is the per-thread default one, which is another stream in every thread.
pub(super) fn is_per_thread(stream: &CudaStream) -> bool {
    const PER_THREAD: usize = 2;
    stream.cu_stream().addr() == PER_THREAD
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.capability();
        write!(f, "Gpu(device {}, {major}.{minor})", self.stream().context().ordinal())
    }
}
