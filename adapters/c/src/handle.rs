//! What the functions of the header share: handles, versioned structs, values of the caller.

use posenc::Gpu;

use crate::memory::Scope;
use crate::{Failure, POSENC_ABI, PosencGpu, PosencStatus, guarded};

/// A struct of the header that begins with `version` and `size`.
///
/// # Safety
/// It is `repr(C)`, its first two fields are 32-bit numbers, and all its fields are numbers, raw pointers and structs of
/// them: any bits are a value.
pub(crate) unsafe trait Versioned: Copy {}

/// A plan of one of the three element types.
pub(crate) enum OfElement<A, B, C> {
    F32(A),
    F16(B),
    Bf16(C),
}

/// Runs one expression on the plan, whatever its element type.
macro_rules! each {
    ($plans:expr, $plan:ident => $value:expr) => {
        match $plans {
            $crate::OfElement::F32($plan) => $value,
            $crate::OfElement::F16($plan) => $value,
            $crate::OfElement::Bf16($plan) => $value,
        }
    };
}

/// [`each`], of the same element type again.
macro_rules! map_each {
    ($plans:expr, $plan:ident => $value:expr) => {
        match $plans {
            $crate::OfElement::F32($plan) => $crate::OfElement::F32($value),
            $crate::OfElement::F16($plan) => $crate::OfElement::F16($value),
            $crate::OfElement::Bf16($plan) => $crate::OfElement::Bf16($value),
        }
    };
}

/// Makes a plan of the element type that `element` names.
macro_rules! plan_of {
    ($element:expr, $plan:expr) => {
        match $element {
            $crate::POSENC_F32 => $crate::OfElement::F32($plan),
            $crate::POSENC_F16 => $crate::OfElement::F16($plan),
            $crate::POSENC_BF16 => $crate::OfElement::Bf16($plan),
            other => return Err($crate::unknown("element", other)),
        }
    };
}

pub(crate) use {each, map_each, plan_of};

/// Makes a handle and puts it into `out`.
///
/// # Safety
/// Pointers are null or point to what their types say, and `gpu` comes from `posenc_gpu_new`.
pub(crate) unsafe fn make<H>(
    gpu: *const PosencGpu,
    out: *mut *mut H,
    new: impl FnOnce(&Gpu) -> Result<H, Failure>,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { give(out, || Ok(Box::into_raw(Box::new(new(&borrow("gpu", gpu)?.gpu)?)))) }
}

/// Runs one verb of a handle.
///
/// # Safety
/// `handle` is null or comes from its constructor; `call` is null or points to what its type says.
pub(crate) unsafe fn verb<H, C: Versioned>(
    name: &str,
    handle: *const H,
    call: *const C,
    body: impl for<'a> FnOnce(&'a H, &'a C, &Scope<'a>) -> Result<(), Failure>,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let (handle, call) = unsafe { (borrow(name, handle)?, versioned("call", call)?) };
        let mut slots = Scope::slots();
        body(handle, call, &Scope::new(&mut slots))
    })
}

/// Gives back what a constructor gave out.
///
/// # Safety
/// `handle` is null or comes from a constructor of this library and was not freed.
pub(crate) unsafe fn free<H>(handle: *mut H) -> PosencStatus {
    guarded(|| {
        if !handle.is_null() {
            // SAFETY: made by `Box::into_raw`, once, as the caller promises.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    })
}

/// Writes a result for the caller.
///
/// # Safety
/// `out` is null or points to a place for a `T`.
pub(crate) unsafe fn give<T>(out: *mut T, value: impl FnOnce() -> Result<T, Failure>) -> PosencStatus {
    guarded(|| {
        let out = place("out", out)?;
        // SAFETY: `place` refused null, and the caller promises that it points to a place for one.
        unsafe { out.write(value()?) };
        Ok(())
    })
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

/// Refuses a null pointer to something of the caller that the call changes.
///
/// # Safety
/// `pointer` is null or points to a `T` that nothing else uses until the end of the call.
pub(crate) unsafe fn borrow_mut<'a, T>(name: &str, pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// Refuses a struct of a version or size that this library does not know, before anything else of it is read.
///
/// # Safety
/// `pointer` is null or points to two 32-bit numbers, version and size, and to the struct that they name.
pub(crate) unsafe fn versioned<'a, T: Versioned>(name: &str, pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: every struct of the header begins with these two.
    let [version, size] = *unsafe { borrow(name, pointer.cast::<[u32; 2]>()) }?;
    if version != POSENC_ABI {
        return Err(Failure::argument(format!("{name} has version {version}, this library knows {POSENC_ABI}")));
    }
    if size as usize != size_of::<T>() {
        let want = size_of::<T>();
        return Err(Failure::argument(format!("{name} has size {size}, version {version} has {want}")));
    }
    // SAFETY: not null, and of the size that the version has.
    unsafe { borrow(name, pointer) }
}

/// A copy of `count` values of the caller in host memory; null is allowed where there are none.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn list<T: Clone>(name: &str, pointer: *const T, count: u64) -> Result<Vec<T>, Failure> {
    // SAFETY: as the caller promises.
    Ok(unsafe { slice(name, pointer, count) }?.to_vec())
}

/// `count` values of the caller in host memory; null is allowed where there are none.
///
/// # Safety
/// `pointer` is null or points to `count` values that do not change until the end of the call.
pub(crate) unsafe fn slice<'a, T>(name: &str, pointer: *const T, count: u64) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    place(name, pointer.cast_mut())?;
    if count > isize::MAX as u64 / size_of::<T>().max(1) as u64 {
        return Err(Failure::argument(format!("{name} counts {count} values, which no memory holds")));
    }
    // SAFETY: not null, and the caller promises as many values.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count as usize) })
}

/// A text of the caller.
///
/// # Safety
/// `text` is null or ends in a zero byte.
pub(crate) unsafe fn text<'a>(name: &str, text: *const std::ffi::c_char) -> Result<&'a str, Failure> {
    // SAFETY: not null, and the caller promises a text with its end.
    let text = unsafe { std::ffi::CStr::from_ptr(place(name, text.cast_mut())?) };
    text.to_str().map_err(|_| Failure::argument(format!("{name} is not UTF-8")))
}

pub(crate) fn unknown(name: &str, value: u32) -> Failure {
    Failure::argument(format!("{name} is {value}, the header has no such constant for it"))
}

/// A factor. A struct that was filled with zeros has it at 0, where it was forgotten, not meant.
pub(crate) fn factor<F: Default + PartialEq>(name: &str, value: F) -> Result<F, Failure> {
    if value == F::default() {
        return Err(Failure::argument(format!("{name} is 0, it must be set: 1 changes nothing")));
    }
    Ok(value)
}

/// A field that is 0 or 1.
pub(crate) fn switch(name: &str, value: u32) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(format!("{name} is {other}, it must be 0 or 1"))),
    }
}
