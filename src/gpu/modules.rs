//! Images of the kernels, and loading the best one that a device takes.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::CUjit_option_enum as Option_;
use cudarc::driver::{CudaContext, DriverError, sys};

use super::driver::{self, reason};
use super::packed::unpacked;
use super::ptx;
use crate::{Error, Result};

/// The images of one kernel file for one element type.
#[derive(Debug)]
pub struct Images {
    /// such as `rotate/rope`
    pub file: &'static str,
    /// `f32`, `f16` or `bf16`
    pub dtype: &'static str,
    /// machine code by architecture, lowest first
    pub cubins: &'static [Image],
    /// PTX by architecture, lowest first
    pub ptx: &'static [Image],
}

/// One image, compressed.
#[derive(Debug)]
pub struct Image {
    /// the architecture; 90 is compute capability 9.0
    pub sm: u32,
    /// its bytes, packed; one PTX text serves several architectures
    pub packed: &'static [u8],
    /// of PTX, the version that the architecture's instructions need
    pub ptx_version: Option<&'static str>,
}

impl Image {
    /// A cubin, or the PTX text of this architecture; empty if the build's own compression is damaged.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = unpacked(self.packed).unwrap_or_default();
        match self.ptx_version {
            None => bytes,
            Some(version) => ptx::for_architecture(&String::from_utf8_lossy(&bytes), self.sm, version).into_bytes(),
        }
    }
}

/// Every image in this build of the crate; none if it was built without kernels.
pub fn images() -> &'static [Images] {
    include!(concat!(env!("OUT_DIR"), "/images.rs"))
}

/// A module in a context.
pub(super) struct Module {
    context: Arc<CudaContext>,
    raw: sys::CUmodule,
    /// the architecture of the image that was loaded, which may be older than the device's
    pub(super) sm: u32,
}

// SAFETY: a CUmodule is a handle that the driver lets any thread use.
unsafe impl Send for Module {}
// SAFETY: as above; nothing here changes it.
unsafe impl Sync for Module {}

impl Module {
    /// The cubin of the device's own generation (same major, highest minor that it has), then the highest PTX that it
    /// has, then lower ones.
    pub(super) fn load(
        context: &Arc<CudaContext>,
        (major, minor): (i32, i32),
        driver: i32,
        (file, dtype): (&'static str, &'static str),
    ) -> Result<Self> {
        let Some(images) = images().iter().find(|images| images.file == file && images.dtype == dtype) else {
            return Err(Error::NoKernels);
        };
        let device = u32::try_from(major * 10 + minor).unwrap_or(0);
        context.bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;

        let mut tried = Vec::new();
        let cubins = images.cubins.iter().rev().filter(|image| image.sm / 10 == device / 10 && image.sm <= device);
        for image in cubins {
            match load(&image.bytes()) {
                Ok(raw) => return Ok(Self { context: context.clone(), raw, sm: image.sm }),
                Err(why) => tried.push(format!("cubin of sm_{}: {why}", image.sm)),
            }
        }
        for image in images.ptx.iter().rev().filter(|image| image.sm <= device) {
            let mut text = image.bytes();
            text.push(0);
            match load(&text) {
                Ok(raw) => return Ok(Self { context: context.clone(), raw, sm: image.sm }),
                Err(why) => tried.push(format!("PTX of sm_{}: {why}", image.sm)),
            }
        }
        if tried.is_empty() {
            tried.push(format!("the oldest image is for sm_{}", images.ptx.first().map_or(0, |image| image.sm)));
        }
        let driver = format!("{}.{}", driver / 1000, driver % 1000 / 10);
        Err(Error::Load { file, dtype, major, minor, driver, tried: tried.join("; ") })
    }

    /// The address of an entry, good as long as the module.
    pub(super) fn entry(&self, name: &str) -> Result<sys::CUfunction> {
        self.context.bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;
        let text = CString::new(name).map_err(|_| Error::NoKernels)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends in a zero.
        unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, text.as_ptr()) }.result().map_err(|error| {
            Error::Driver { call: "cuModuleGetFunction", reason: format!("{name}: {}", reason(error)) }
        })?;
        Ok(raw)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `load`, and unloaded once; no function outlives its module. An error here has no one to
            // go to: the context is gone, and the module with it.
            let _ = unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// Loads an image into the current context, or says why the driver refuses it, with its compiler's words if it has any.
fn load(image: &[u8]) -> Result<sys::CUmodule, String> {
    let mut log = [0u8; 4096];
    let mut options = [Option_::CU_JIT_ERROR_LOG_BUFFER, Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes the size by value in a pointer.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    let mut raw = std::ptr::null_mut();
    // SAFETY: the image is a whole cubin or a zero-terminated text; both option arrays have two entries, of the types
    // that the options ask for, and the buffer outlives the call.
    let result = unsafe {
        sys::cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    match result.result() {
        Ok(()) => Ok(raw),
        Err(error @ DriverError(_)) => {
            let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
            let text = String::from_utf8_lossy(text);
            let text = text.trim();
            Err(if text.is_empty() { reason(error) } else { format!("{} ({text})", reason(error)) })
        }
    }
}
