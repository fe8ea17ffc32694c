//! The driver itself: whether it is there, its version, its errors in words.

use cudarc::driver::{DriverError, sys};

use crate::{Error, Result};

/// Names of the driver's library, in the order in which cudarc tries them; the first one that loads is its own.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// What this crate calls, itself and through cudarc, which looks each up at its first use and panics if it is missing.
const FUNCTIONS: [&str; 34] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuFuncSetAttribute",
    "cuGraphRetainUserObject",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCaptureInfo_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuUserObjectCreate",
    "cuUserObjectRelease",
];

/// Asks for the driver before cudarc does, which panics where there is none, or one without the functions that are called.
pub(super) fn find() -> Result<()> {
    // SAFETY: the driver's initialisers have no preconditions; cudarc loads the same library.
    let found = LIBRARIES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok().map(|it| (name, it)));
    let Some((name, library)) = found else {
        let usual = LIBRARIES[LIBRARIES.len() - 1];
        return Err(Error::NoDevice(format!("the NVIDIA driver's library {usual} cannot be loaded")));
    };
    // SAFETY: the symbol is not used, so that its type says nothing.
    let lacks = |function: &&&str| unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) }.is_err();
    match FUNCTIONS.iter().find(lacks) {
        None => Ok(()),
        Some(function) => Err(Error::NoDevice(format!(
            "the library {name} has no function {function}, the NVIDIA driver's must have it"
        ))),
    }
}

/// A function of the driver that cudarc has no binding for; `name` ends in a zero.
///
/// # Safety
/// `F` is the type of a pointer to the function by that name.
pub(super) unsafe fn function<F: Copy>(name: &[u8]) -> Option<F> {
    LIBRARIES.iter().find_map(|library| {
        // SAFETY: the driver's initialisers have no preconditions; cudarc has loaded the same library.
        let library = unsafe { libloading::Library::new(*library) }.ok()?;
        // SAFETY: the caller's promise.
        let function = unsafe { library.get::<F>(name) }.ok().map(|symbol| *symbol);
        // It stays loaded, as long as the pointer.
        std::mem::forget(library);
        function
    })
}

/// The CUDA version that the driver supports; 12090 is 12.9.
pub(super) fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the pointer is to a live i32.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(error("cuDriverGetVersion"))?;
    Ok(version)
}

/// The driver's name and text of an error.
pub(super) fn reason(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| format!("error {}", error.0 as u32), |text| text.to_string_lossy().into_owned())
    };
    format!("{}: {}", text(error.error_name()), text(error.error_string()))
}

#[inline]
pub(super) fn error(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| refused(call, error)
}

/// cudarc waits for events of its own, and reports their errors from whatever is called next.
#[cold]
fn refused(call: &'static str, error: DriverError) -> Error {
    use sys::cudaError_enum::{CUDA_ERROR_CAPTURED_EVENT, CUDA_ERROR_STREAM_CAPTURE_ISOLATION};
    let reason = reason(error);
    if !matches!(error.0, CUDA_ERROR_STREAM_CAPTURE_ISOLATION | CUDA_ERROR_CAPTURED_EVENT) {
        return Error::Driver { call, reason };
    }
    Error::Driver {
        call: "cuStreamWaitEvent",
        reason: format!(
            "{reason}; a call is captured into a graph while cudarc's event tracking is on: call \
             CudaContext::disable_event_tracking before the buffers are made, as the example of Gpu::new does"
        ),
    }
}
