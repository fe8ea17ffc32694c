//! One launch: decided on the CPU as plain data, then handed to the driver.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::args::Args;
use super::device::{Gpu, driver_error};
use super::modules::Module;
use crate::{Error, Result};

/// Which kernel runs, over which grid, with which arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch<A> {
    /// the kernel file, such as `rotate/rope`
    pub file: &'static str,
    /// the variant, such as `rope_wide`; its name in the module ends in the element type
    pub entry: &'static str,
    /// blocks
    pub grid: [u32; 3],
    /// threads of a block
    pub block: [u32; 3],
    /// the kernel's one argument
    pub args: A,
}

/// The largest grid of every CUDA device.
pub(crate) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

impl<A> Launch<A> {
    /// Refuses a grid or block beyond what every device takes.
    pub(crate) fn check(&self) -> Result<()> {
        let in_range = self.grid.iter().zip(MAX_GRID).all(|(&blocks, most)| (1..=most).contains(&blocks));
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        if !in_range || threads == 0 || threads > 1024 {
            return Err(Error::Value(format!(
                "{} needs a grid of {:?} blocks of {:?} threads, a device takes {MAX_GRID:?} blocks of 1024",
                self.entry, self.grid, self.block
            )));
        }
        Ok(())
    }
}

/// An entry of a loaded module.
#[derive(Clone)]
pub(crate) struct Function {
    raw: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: a CUfunction is a handle that the driver lets any thread use; its module is kept.
unsafe impl Send for Function {}
// SAFETY: as above; nothing here changes it.
unsafe impl Sync for Function {}

impl Function {
    pub(super) fn new(module: Arc<Module>, raw: sys::CUfunction) -> Self {
        Self { raw, _module: module }
    }

    /// Lets launches ask for up to `bytes` of shared memory beside the kernel's own.
    pub(crate) fn reserve(&self, bytes: u32) -> Result<()> {
        let bytes = i32::try_from(bytes).map_err(|_| Error::Overflow(format!("{bytes} bytes of shared memory")))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is alive as long as its module, which is kept.
        unsafe { sys::cuFuncSetAttribute(self.raw, attribute, bytes) }
            .result()
            .map_err(driver_error("cuFuncSetAttribute"))
    }

    /// Blocks of `threads` threads with `shared` bytes of shared memory beside the kernel's own that a multiprocessor has
    /// room for at once. The context must be current.
    pub(crate) fn resident(&self, threads: u32, shared: u32) -> Result<u32> {
        let mut blocks = 0;
        let threads = i32::try_from(threads).map_err(|_| Error::Overflow(format!("{threads} threads")))?;
        // SAFETY: the pointer is to a live i32, and the function is alive as said above.
        unsafe { sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.raw, threads, shared as usize) }
            .result()
            .map_err(driver_error("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }
}

impl Gpu {
    /// Puts one kernel into the stream: no allocation, no copy, no synchronisation.
    ///
    /// Addresses in `args` come from [`Gpu::read`] and [`Gpu::write`] alone, which checked that each buffer reaches as
    /// far as the shapes in `args` do, and whose guards the caller still holds.
    pub(crate) fn launch<A: Args>(&self, function: &Function, launch: &Launch<A>) -> Result<()> {
        self.launch_with(function, launch, 0)
    }

    /// [`Gpu::launch_with`], with all blocks on the device at once, so that they may wait for one another; refused by the
    /// driver if there are more than [`Function::resident`] says.
    pub(crate) fn launch_together<A: Args>(&self, function: &Function, launch: &Launch<A>, shared: u32) -> Result<()> {
        launch.check()?;
        let stream = self.stream();
        stream.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        let mut args = launch.args;
        let mut pointers = [std::ptr::from_mut(&mut args).cast::<c_void>()];
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        // SAFETY: as in `launch_with`.
        unsafe {
            sys::cuLaunchCooperativeKernel(
                function.raw,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                shared,
                stream.cu_stream(),
                pointers.as_mut_ptr(),
            )
        }
        .result()
        .map_err(driver_error("cuLaunchCooperativeKernel"))
    }

    /// [`Gpu::launch`] with `shared` bytes of shared memory beside the kernel's own; above 48 KiB after
    /// [`Function::reserve`].
    pub(crate) fn launch_with<A: Args>(&self, function: &Function, launch: &Launch<A>, shared: u32) -> Result<()> {
        launch.check()?;
        let stream = self.stream();
        stream.context().bind_to_thread().map_err(driver_error("cuCtxSetCurrent"))?;
        let mut args = launch.args;
        let mut pointers = [std::ptr::from_mut(&mut args).cast::<c_void>()];
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        if !self.overlaps() {
            // SAFETY: the function's one parameter is A (tests compare its size and offsets with the PTX), every address
            // in it is checked as said above, and the driver copies it before it returns.
            return unsafe {
                sys::cuLaunchKernel(
                    function.raw,
                    grid_x,
                    grid_y,
                    grid_z,
                    block_x,
                    block_y,
                    block_z,
                    shared,
                    stream.cu_stream(),
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
            .map_err(driver_error("cuLaunchKernel"));
        }
        let mut attribute: sys::CUlaunchAttribute = no_attribute();
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: shared,
            hStream: stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as above; the attribute lives until the call returns.
        unsafe { sys::cuLaunchKernelEx(&config, function.raw, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(driver_error("cuLaunchKernelEx"))
    }
}

fn no_attribute() -> sys::CUlaunchAttribute {
    // SAFETY: a C struct of an enum with a zero variant (CU_LAUNCH_ATTRIBUTE_IGNORE), padding and a union of plain data.
    unsafe { std::mem::zeroed() }
}
