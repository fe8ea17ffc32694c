//! What the functions of the header share: handles, versioned structs, values of the caller.

use posenc::{Device, Gpu, Host};

use crate::memory::{Scope, slots, term_slots};
use crate::{Failure, POSENC_ABI, POSENC_BF16, POSENC_F16, POSENC_F32, PosencGpu, PosencStatus, guarded};

/// A struct of the header that begins with `version` and `size`.
///
/// # Safety
/// It is `repr(C)`, its first two fields are 32-bit numbers, and all its fields are numbers, raw pointers and structs of
/// them: any bits are a value, zeros too.
pub(crate) unsafe trait Versioned: Copy {}

/// An element type of plans.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// The element type of a constant; `field` holds it.
    pub(crate) fn of(field: &str, code: u32) -> Result<Self, Failure> {
        match code {
            POSENC_F32 => Ok(Self::F32),
            POSENC_F16 => Ok(Self::F16),
            POSENC_BF16 => Ok(Self::Bf16),
            other => Err(unknown(field, other)),
        }
    }
}

/// A plan on a device, or the spec that the CPU computes.
pub(crate) enum Plan<D, S> {
    Gpu(D),
    Cpu { spec: S, element: Element },
}

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
            $crate::Element::F32 => $crate::OfElement::F32($plan),
            $crate::Element::F16 => $crate::OfElement::F16($plan),
            $crate::Element::Bf16 => $crate::OfElement::Bf16($plan),
        }
    };
}

/// Runs one expression with `$T` as an element type.
macro_rules! with_element {
    ($element:expr, $T:ident => $value:expr) => {
        match $element {
            $crate::Element::F32 => {
                type $T = f32;
                $value
            }
            $crate::Element::F16 => {
                type $T = half::f16;
                $value
            }
            $crate::Element::Bf16 => {
                type $T = half::bf16;
                $value
            }
        }
    };
}

pub(crate) use {each, map_each, plan_of, with_element};

/// A spec that the CPU computes.
pub(crate) trait Spec {
    /// Refuses what no plan is made of.
    fn checked(&self) -> Result<(), Failure>;
}

macro_rules! specs {
    ($($Spec:ty),*) => {$(
        impl Spec for $Spec {
            fn checked(&self) -> Result<(), Failure> {
                Ok(self.check()?)
            }
        }
    )*};
}

specs! {
    posenc::Sinusoid, posenc::Grid, posenc::Learned, posenc::Resample, posenc::Fire, posenc::Softmax,
    posenc::Prologue, posenc::bias::RelativeProducts, posenc::bias::Swin2Bias, posenc::attend::RelativeValues
}

/// Makes a handle and puts it into `out`.
///
/// # Safety
/// Pointers are null or point to what their types say, and `gpu` comes from `posenc_gpu_new`.
pub(crate) unsafe fn make<H>(
    gpu: *const PosencGpu,
    out: *mut *mut H,
    new: impl FnOnce(Option<&Gpu>) -> Result<H, Failure>,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { give(out, || Ok(Box::into_raw(Box::new(new(borrow("gpu", gpu)?.gpu.as_ref())?)))) }
}

/// Runs one verb of a handle.
///
/// # Safety
/// `handle` is null or comes from its constructor; `call` is null or points to what its type says.
pub(crate) unsafe fn verb<H, D, S, C: Versioned>(
    name: &str,
    handle: *const H,
    call: *const C,
    plan: impl for<'a> FnOnce(&'a H) -> &'a Plan<D, S>,
    device: impl for<'a> FnOnce(&'a D, &'a C, &Scope<'a, Device>) -> Result<(), Failure>,
    host: impl for<'a> FnOnce(&'a S, Element, &'a C, &Scope<'a, Host>) -> Result<(), Failure>,
) -> PosencStatus {
    guarded(|| {
        // SAFETY: as the caller promises.
        let (handle, call) = unsafe { (borrow(name, handle)?, versioned("call", call)?) };
        match plan(handle) {
            Plan::Gpu(plan) => device(plan, &call, &Scope::new(&mut slots::<Device>(), &mut term_slots::<Device>())),
            Plan::Cpu { spec, element } => {
                host(spec, *element, &call, &Scope::new(&mut slots::<Host>(), &mut term_slots::<Host>()))
            }
        }
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

/// Bytes of fields that later headers add to a struct, at most: other sizes are none.
const MOST_LATER: usize = 4096;

/// Version and size of a struct, before anything else of it is read.
///
/// # Safety
/// `pointer` is null or points to two 32-bit numbers.
unsafe fn size_of_version<T>(name: &str, pointer: *const T) -> Result<usize, Failure> {
    // SAFETY: every versioned struct of the header begins with these two.
    let [version, size] = *unsafe { borrow(name, pointer.cast::<[u32; 2]>()) }?;
    if version != POSENC_ABI {
        let text =
            format!("{name} has version {version}, this library knows {POSENC_ABI}; POSENC_INIT sets version and size");
        return Err(Failure::argument(text));
    }
    Ok(size as usize)
}

/// A struct of another version is refused. Of a shorter one, as an older header had it, what is missing is 0; of a longer one, as
/// a newer header has it, what is over must be 0.
///
/// # Safety
/// `pointer` is null or points to two 32-bit numbers, version and size, and to as many bytes as these say.
pub(crate) unsafe fn versioned<T: Versioned>(name: &str, pointer: *const T) -> Result<T, Failure> {
    // SAFETY: as the caller promises.
    let (size, own) = (unsafe { size_of_version(name, pointer) }?, size_of::<T>());
    if !(size_of::<[u32; 2]>()..=own + MOST_LATER).contains(&size) {
        return Err(Failure::argument(format!("{name} has size {size}, version {POSENC_ABI} has {own}")));
    }
    // SAFETY: the caller promises as many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) };
    if let Some(at) = bytes.iter().skip(own).position(|&byte| byte != 0) {
        return Err(Failure::argument(format!(
            "{name} has size {size}, this library knows {own} bytes of it, and byte {} is not 0",
            own + at
        )));
    }
    let mut whole = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: as many bytes are there, and there is room for `own`; any bits are a value of `T`, zeros too.
    unsafe {
        whole.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), size.min(own));
        Ok(whole.assume_init())
    }
}

/// A struct within another, which has its size: another one would move what follows it.
pub(crate) fn nested<'a, T: Versioned>(name: &str, inner: &'a T) -> Result<&'a T, Failure> {
    // SAFETY: a reference to a struct that begins with both.
    let (size, own) = (unsafe { size_of_version(name, inner) }?, size_of::<T>());
    if size != own {
        return Err(Failure::argument(format!("{name} has size {size}, within another struct it must have {own}")));
    }
    Ok(inner)
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
