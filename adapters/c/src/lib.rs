//! posenc for C: raw device addresses, the caller's stream, an integer status.
//!
//! Rules of the whole header:
//! - Every function returns a status, 0 for success. `posenc_last_error` is the sentence to the last one that was not 0.
//! - A struct begins with `version` and `size`: the caller fills in the header's constant and `sizeof`. Unknown versions and
//!   other sizes are refused, so a program and a library of different versions cannot misread each other.
//! - Everything is checked before anything is launched. A call launches one kernel into the stream and returns; it
//!   allocates nothing and waits for nothing, and can be captured in a graph.
//! - No panic leaves the library.
#![allow(non_camel_case_types, reason = "names of C")]

mod bias;
mod embed;
mod positions;
mod rope;
mod status;

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys};
use posenc::Gpu;

pub use bias::*;
pub use embed::*;
pub use positions::*;
pub use rope::*;
pub use status::*;

/// The driver's stream.
pub type PosencStream = sys::CUstream;

/// Element types of tensors and tables.
pub const POSENC_F32: u32 = 0;
/// IEEE half precision
pub const POSENC_F16: u32 = 1;
/// bfloat16
pub const POSENC_BF16: u32 = 2;

/// Integer types of positions: 32 bits.
pub const POSENC_I32: u32 = 0;
/// 64 bits
pub const POSENC_I64: u32 = 1;
/// 32 bits without sign
pub const POSENC_U32: u32 = 2;

/// A device and a stream on it.
pub struct PosencGpu {
    pub(crate) gpu: Gpu,
}

/// Opens device `ordinal` through its primary context (PyTorch's and the runtime's), for launches into `stream`.
///
/// `stream` belongs to that context and outlives the handle and every plan made with it. With `overlap` not 0, kernels may
/// start before their predecessor in the stream has ended (programmatic dependent launch, compute capability 9.0 on); they
/// wait for its memory themselves.
///
/// # Safety
/// `stream` is null or a stream of that context, and `out` is null or points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_gpu_new(
    ordinal: u32,
    stream: PosencStream,
    overlap: u32,
    out: *mut *mut PosencGpu,
) -> PosencStatus {
    guarded(|| {
        let out = place("out", out)?;
        // Opening probes the driver, so that its absence is an error and no panic; it also gives the primary context.
        let own = Gpu::open(ordinal as usize)?;
        // SAFETY: the caller promises that the stream belongs to the primary context and outlives the handle. Work of the
        // caller is ordered by that same stream.
        let stream = unsafe { own.stream().context().wrap_borrowed_stream(stream) };
        let gpu = Gpu::new(&stream)?.overlapping(overlap != 0);
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(Box::new(PosencGpu { gpu }))) };
        Ok(())
    })
}

/// Frees a handle; null is allowed. Plans made with it stay valid.
///
/// # Safety
/// `gpu` is null or comes from `posenc_gpu_new` and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_gpu_free(gpu: *mut PosencGpu) -> PosencStatus {
    // SAFETY: as the caller promises.
    guarded(|| unsafe { free(gpu) })
}

/// Gives back what `Box::into_raw` gave out.
///
/// # Safety
/// `handle` is null or comes from a constructor of this library and was not freed.
pub(crate) unsafe fn free<H>(handle: *mut H) -> Result<(), Failure> {
    if !handle.is_null() {
        // SAFETY: made by `Box::into_raw`, once, as the caller promises.
        drop(unsafe { Box::from_raw(handle) });
    }
    Ok(())
}

/// Refuses a null place for a result.
pub(crate) fn place<T>(name: &str, pointer: *mut T) -> Result<*mut T, Failure> {
    if pointer.is_null() { Err(Failure::argument(format!("{name} is null"))) } else { Ok(pointer) }
}

/// Refuses a null pointer to something of the caller.
///
/// # Safety
/// `pointer` is null or points to a `T` that lives and does not change until the end of the call.
pub(crate) unsafe fn borrow<'a, T>(name: &str, pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// Refuses a struct of a version or size that this library does not know, before anything else of it is read.
///
/// # Safety
/// `pointer` is null or points to two 32-bit numbers, version and size, and to the struct that they name.
pub(crate) unsafe fn versioned<'a, T>(name: &str, pointer: *const T, version: u32) -> Result<&'a T, Failure> {
    // SAFETY: every struct of the header begins with these two.
    let [got, size] = *unsafe { borrow(name, pointer.cast::<[u32; 2]>()) }?;
    if got != version {
        return Err(Failure::argument(format!("{name} has version {got}, this library knows {version}")));
    }
    if size as usize != size_of::<T>() {
        let want = size_of::<T>();
        return Err(Failure::argument(format!("{name} has size {size}, version {version} has {want}")));
    }
    // SAFETY: not null, and of the size that the version has.
    unsafe { borrow(name, pointer) }
}

/// `count` values of the caller; null is allowed where there are none.
///
/// # Safety
/// `pointer` is null or points to `count` values that live and do not change until the end of the call.
pub(crate) unsafe fn slice<'a, T>(name: &str, pointer: *const T, count: u64) -> Result<&'a [T], Failure> {
    let count = size(name, count)?;
    if count == 0 {
        return Ok(&[]);
    }
    place(name, pointer.cast_mut())?;
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::argument(format!("{name} counts {count} values, which no memory holds")));
    }
    // SAFETY: not null, and the caller promises as many values.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

pub(crate) fn unknown(name: &str, value: u32) -> Failure {
    Failure::argument(format!("{name} is {value}, which is no constant of the header"))
}

pub(crate) fn size(name: &str, value: u64) -> Result<usize, Failure> {
    usize::try_from(value)
        .map_err(|_| Failure::argument(format!("{name} is {value}, this machine counts to {}", usize::MAX)))
}

pub(crate) use positions::with_positions;

/// Memory of the caller on the device: an address and how many elements it holds.
///
/// The caller's stream orders its use, so that there is no event to wait for or to record.
pub(crate) struct Foreign<T> {
    address: sys::CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    element: std::marker::PhantomData<T>,
}

impl<T> Foreign<T> {
    pub(crate) fn new(gpu: &Gpu, name: &str, address: u64, len: u64) -> Result<Self, Failure> {
        if address == 0 {
            return Err(Failure::argument(format!("{name} is null")));
        }
        if !address.is_multiple_of(align_of::<T>() as u64) {
            let align = align_of::<T>();
            return Err(Failure::argument(format!(
                "{name} lies at {address:#x}, its elements need multiples of {align}"
            )));
        }
        let element = std::marker::PhantomData;
        Ok(Self { address, len: size(name, len)?, stream: gpu.stream().clone(), element })
    }
}

impl<T> DeviceSlice<T> for Foreign<T> {
    fn len(&self) -> usize {
        self.len
    }
    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Foreign<T> {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}

impl<T> DevicePtrMut<T> for Foreign<T> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}
