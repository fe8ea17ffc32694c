//! What the functions of the header share: handles, versioned structs, the step from an element's number to its type.

use posenc::Gpu;

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

/// The type of a plan of one of the three element types.
macro_rules! plans {
    ($Plan:ident) => {
        $crate::OfElement<$Plan<f32>, $Plan<half::f16>, $Plan<half::bf16>>
    };
}

/// Makes a plan of the element type that a number names: `make_plan!(element, T => RopePlan::<T>::new(gpu, &rope)?)`.
macro_rules! make_plan {
    ($element:expr, $T:ident => $plan:expr) => {
        match $element {
            $crate::POSENC_F32 => {
                type $T = f32;
                $crate::OfElement::F32($plan)
            }
            $crate::POSENC_F16 => {
                type $T = half::f16;
                $crate::OfElement::F16($plan)
            }
            $crate::POSENC_BF16 => {
                type $T = half::bf16;
                $crate::OfElement::Bf16($plan)
            }
            other => return Err($crate::unknown("element", other)),
        }
    };
}

/// Runs one body on the plan, whatever its element type.
macro_rules! with_plan {
    ($plans:expr, $plan:ident => $body:expr) => {
        match $plans {
            $crate::OfElement::F32($plan) => $body,
            $crate::OfElement::F16($plan) => $body,
            $crate::OfElement::Bf16($plan) => $body,
        }
    };
}

pub(crate) use {make_plan, plans, with_plan};

/// Makes a handle of a spec and puts it into `out`.
///
/// # Safety
/// Pointers are null or point to what their types say, and `gpu` comes from `posenc_gpu_new`.
pub(crate) unsafe fn make<S: Versioned, H>(
    gpu: *const PosencGpu,
    spec: *const S,
    out: *mut *mut H,
    new: impl FnOnce(&Gpu, &S) -> Result<H, Failure>,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let gpu = &unsafe { borrow("gpu", gpu) }?.gpu;
        // SAFETY: as the caller promises.
        let spec = unsafe { versioned("spec", spec) }?;
        let out = place("out", out)?;
        let made = Box::new(new(gpu, spec)?);
        // SAFETY: `place` refused null, and the caller promises that it points to a pointer.
        unsafe { out.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// Runs one verb of a handle.
///
/// # Safety
/// `handle` is null or comes from its constructor; `call` is null or points to what its type says.
pub(crate) unsafe fn call<H, C: Versioned>(
    name: &str,
    handle: *const H,
    call: *const C,
    verb: impl FnOnce(&H, &C) -> Result<(), Failure>,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { borrow(name, handle) }?;
        // SAFETY: as the caller promises.
        verb(handle, unsafe { versioned("call", call) }?)
    })
}

/// Gives back what `Box::into_raw` gave out.
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

/// Refuses a null place for a result.
pub(crate) fn place<T>(name: &str, pointer: *mut T) -> Result<*mut T, Failure> {
    if pointer.is_null() { Err(Failure::argument(format!("{name} is null"))) } else { Ok(pointer) }
}

/// Writes a number for the caller.
///
/// # Safety
/// `out` is null or points to a number.
pub(crate) unsafe fn give(out: *mut u64, number: impl FnOnce() -> Result<usize, Failure>) -> PosencStatus {
    guarded(|| {
        let number = number()?;
        // SAFETY: `place` refuses null, and the caller promises that it points to a number.
        unsafe { place("out", out)?.write(number as u64) };
        Ok(())
    })
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

/// `count` values of the caller in host memory; null is allowed where there are none.
///
/// # Safety
/// `pointer` is null or points to `count` values that live and do not change until the end of the call.
pub(crate) unsafe fn slice<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
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
    Failure::argument(format!("{name} is {value}, the header has no such constant for it"))
}

pub(crate) fn size(name: &str, value: u64) -> Result<usize, Failure> {
    usize::try_from(value)
        .map_err(|_| Failure::argument(format!("{name} is {value}, this machine counts to {}", usize::MAX)))
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
