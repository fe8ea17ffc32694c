//! The driver itself: whether it is there, its version, its errors in words.

use cudarc::driver::{DriverError, sys};

use crate::{Error, Result};

/// Asks for the driver before cudarc does, which panics where there is none.
pub(super) fn find() -> Result<()> {
    let names = if cfg!(windows) { ["nvcuda.dll", "nvcuda.dll"] } else { ["libcuda.so.1", "libcuda.so"] };
    for name in names {
        // SAFETY: the driver's initialisers have no preconditions; cudarc loads the same library.
        if unsafe { libloading::Library::new(name) }.is_ok() {
            return Ok(());
        }
    }
    Err(Error::NoDevice(format!("the NVIDIA driver's library {} cannot be loaded", names[0])))
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
    move |error| Error::Driver { call, reason: reason(error) }
}
