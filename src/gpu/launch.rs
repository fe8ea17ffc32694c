//! One launch: decided on the CPU as plain data, then handed to the driver.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys;

use super::args::Args;
use super::capture::{Keep, Kept};
use super::device::Gpu;
use super::driver;
use super::kernel::Entry;
use super::modules::Module;
use crate::{Error, Result, Scalar};

/// Grid, block, shared memory and arguments of one launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch<A> {
    /// blocks
    pub grid: [u32; 3],
    /// threads of a block
    pub block: [u32; 3],
    /// bytes of dynamic shared memory
    pub shared: u32,
    /// all blocks are on the device at once, so that they may wait for one another
    pub cooperative: bool,
    /// the kernel's one argument
    pub args: A,
}

/// A count as a kernel takes it: below 2^31.
pub(crate) fn small(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32).ok_or_else(|| Error::Overflow(format!("{n} {what}")))
}

/// The largest grid of every CUDA device.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

impl<A> Launch<A> {
    /// A launch without dynamic shared memory.
    pub(crate) const fn new(grid: [u32; 3], block: [u32; 3], args: A) -> Self {
        Self { grid, block, shared: 0, cooperative: false, args }
    }

    /// Refuses a grid or block beyond what every device takes.
    #[inline]
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        let in_range = self.grid.iter().zip(MAX_GRID).all(|(&blocks, most)| (1..=most).contains(&blocks));
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        if !in_range || threads == 0 || threads > 1024 {
            return Err(Error::Value(format!(
                "{name} needs a grid of {:?} blocks of {:?} threads, a device takes {MAX_GRID:?} blocks of 1024",
                self.grid, self.block
            )));
        }
        Ok(())
    }
}

/// A loaded kernel, which takes one `A`.
pub(crate) struct Kernel<A> {
    name: &'static str,
    raw: sys::CUfunction,
    module: Arc<Module>,
    takes: PhantomData<fn(A)>,
}

// SAFETY: a CUfunction is a handle that the driver lets any thread use; its module is kept.
unsafe impl<A> Send for Kernel<A> {}
// SAFETY: as above; nothing here changes it.
unsafe impl<A> Sync for Kernel<A> {}

impl<A> Keep for Kernel<A> {
    fn kept(&self) -> Kept {
        self.module.clone()
    }
}

impl<A> Clone for Kernel<A> {
    fn clone(&self) -> Self {
        Self { name: self.name, raw: self.raw, module: self.module.clone(), takes: PhantomData }
    }
}

impl<A> std::fmt::Debug for Kernel<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({}, sm_{})", self.name, self.module.sm)
    }
}

impl<A> Kernel<A> {
    /// Lets launches ask for up to `bytes` of dynamic shared memory.
    pub(crate) fn reserve(&self, bytes: u32) -> Result<()> {
        let bytes = i32::try_from(bytes).map_err(|_| Error::Overflow(format!("{bytes} bytes of shared memory")))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is alive as long as its module, which is kept.
        unsafe { sys::cuFuncSetAttribute(self.raw, attribute, bytes) }
            .result()
            .map_err(driver::error("cuFuncSetAttribute"))
    }
}

impl Gpu {
    /// Loads kernels of one list for element type `T`.
    pub(crate) fn load<T: Scalar, A, const N: usize>(&self, entries: [Entry<A>; N]) -> Result<[Kernel<A>; N]> {
        let mut loaded = Vec::with_capacity(N);
        for Entry { file, name, .. } in entries {
            let module = self.module(file, T::NAME)?;
            let raw = module.entry(&format!("{name}_{}", T::NAME))?;
            loaded.push(Kernel { name, raw, module, takes: PhantomData });
        }
        loaded.try_into().map_err(|_| Error::NoKernels)
    }

    /// The largest grid of a cooperative launch of `kernel`; 0 if the device has no such launches.
    pub(crate) fn cooperative_blocks<A>(&self, kernel: &Kernel<A>, threads: u32, shared: u32) -> Result<u32> {
        let context = self.stream().context();
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH;
        if context.attribute(attribute).map_err(driver::error("cuDeviceGetAttribute"))? == 0 {
            return Ok(0);
        }
        let blocks = self.resident_blocks(kernel, threads, shared)?;
        Ok(blocks.saturating_mul(self.multiprocessors()))
    }

    /// Blocks of `threads` and `shared` bytes of dynamic shared memory that one multiprocessor holds at once, by the registers
    /// and the memory of the image that is loaded.
    fn resident_blocks<A>(&self, kernel: &Kernel<A>, threads: u32, shared: u32) -> Result<u32> {
        self.stream().context().bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;
        let mut blocks = 0;
        let threads = i32::try_from(threads).map_err(|_| Error::Overflow(format!("{threads} threads")))?;
        // SAFETY: the pointer is to a live i32, and the function is alive as long as its module, which is kept.
        unsafe { sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, kernel.raw, threads, shared as usize) }
            .result()
            .map_err(driver::error("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Threads that one multiprocessor holds at once, in blocks of `threads` without dynamic shared memory.
    pub(crate) fn resident_threads<A>(&self, kernel: &Kernel<A>, threads: u32) -> Result<usize> {
        Ok(self.resident_blocks(kernel, threads, 0)? as usize * threads as usize)
    }

    /// Puts one kernel into the stream: no allocation, no copy, no synchronisation. False: the driver refused a cooperative launch
    /// because not all of its blocks fit at once.
    ///
    /// # Safety
    /// Every address in the arguments is null or lies in memory of this context that stays allocated, initialised where it is
    /// read, until the kernel has run; that memory reaches as far as the shapes in the arguments do.
    pub(super) unsafe fn launch<A: Args>(&self, kernel: &Kernel<A>, launch: &Launch<A>) -> Result<bool> {
        launch.check(kernel.name)?;
        let stream = self.stream();
        stream.context().bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;
        // The driver only reads them, through a pointer that C does not call const.
        let mut pointers = [std::ptr::from_ref(&launch.args).cast_mut().cast::<c_void>()];
        let ([x, y, z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let mut attributes = [NO_ATTRIBUTE; 2];
        let mut count = 0;
        if launch.cooperative {
            attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            attributes[count].value.cooperative = 1;
            count += 1;
        }
        // What waits for the memory of the launch ahead is an instruction of 9.0: an older image, which a newer device runs
        // too, does not have it.
        if self.overlaps() && kernel.module.sm >= 90 && !launch.cooperative {
            attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared,
            hStream: stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        // SAFETY: the kernel's one parameter is A (the list of kernels gives it its type), the caller answers for the addresses
        // in it, the driver copies it before it returns, and attributes and pointers live until then.
        let result = unsafe { sys::cuLaunchKernelEx(&config, kernel.raw, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        if launch.cooperative && result == sys::CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE {
            return Ok(false);
        }
        result.result().map(|()| true).map_err(driver::error("cuLaunchKernelEx"))
    }
}

// SAFETY: a C struct of an enum with a zero variant (CU_LAUNCH_ATTRIBUTE_IGNORE), padding and a union of plain data.
const NO_ATTRIBUTE: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
