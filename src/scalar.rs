//! The element types of tensors: `f32`, `f16` and `bf16`.

use half::{bf16, f16};

use crate::cpu::{self, Width};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

#[cfg(feature = "cuda")]
mod device {
    /// Bounds of cudarc on an element.
    pub trait DeviceScalar: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits {}
    impl<T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits> DeviceScalar for T {}
}

#[cfg(not(feature = "cuda"))]
mod device {
    pub trait DeviceScalar {}
    impl<T> DeviceScalar for T {}
}

use device::DeviceScalar;

/// An element type that every kernel is compiled for. Sealed.
///
/// # On the CPU
/// Results are computed in `f64` and rounded to `f32`, and from there to `f16` and `bf16`: within half an ulp, and for those two
/// half an ulp of `f32` more.
pub trait Scalar: sealed::Sealed + bytemuck::Pod + DeviceScalar + std::fmt::Debug + Send + Sync {
    /// The name that its kernels carry: `"f32"`, `"f16"`, `"bf16"`.
    const NAME: &'static str;
    /// Half a unit in the last place of a normal number, relative to it: `2^-24`, `2^-11`, `2^-8`.
    const ROUNDOFF: f64;
    /// Half of the smallest subnormal: the absolute error of rounding a tiny number.
    const TINY: f64;
    /// The largest finite value.
    const MAX: f64;

    /// The exact value.
    fn to_f64(self) -> f64;
    /// The nearest value, ties to even; what a kernel's store does.
    fn from_f32(value: f32) -> Self;
    /// The nearest value, ties to even.
    fn from_f64(value: f64) -> Self;
    /// [`Scalar::to_f64`] of each element, in vectors of `width`, as `f32`; both slices have one length.
    #[doc(hidden)]
    fn widen(width: Width, from: &[Self], to: &mut [f32]);
    /// [`Scalar::from_f32`] of each element, in vectors of `width`; both slices have one length.
    #[doc(hidden)]
    fn narrow(width: Width, from: &[f32], to: &mut [Self]);
}

impl Scalar for f32 {
    const NAME: &'static str = "f32";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;
    const TINY: f64 = f64::from_bits((1023 - 150) << 52);
    const MAX: f64 = f32::MAX as f64;

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn widen(_: Width, from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    #[inline(always)]
    fn narrow(_: Width, from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Scalar for f16 {
    const NAME: &'static str = "f16";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 11) as f64;
    const TINY: f64 = 1.0 / (1u64 << 25) as f64;
    const MAX: f64 = 65504.0;

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f32(to_odd(value))
    }
    #[inline(always)]
    fn widen(width: Width, from: &[Self], to: &mut [f32]) {
        cpu::f16::widen(width, from, to);
    }
    #[inline(always)]
    fn narrow(width: Width, from: &[f32], to: &mut [Self]) {
        cpu::f16::narrow(width, from, to);
    }
}

impl Scalar for bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 8) as f64;
    const TINY: f64 = f64::from_bits((1023 - 134) << 52);
    const MAX: f64 = 3.3895313892515355e38;

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(to_odd(value))
    }
    #[inline(always)]
    fn widen(_: Width, from: &[Self], to: &mut [f32]) {
        for (from, to) in from.iter().zip(to) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
    #[inline(always)]
    fn narrow(_: Width, from: &[f32], to: &mut [Self]) {
        // bf16::from_f32 branches on NaN, which keeps the compiler from vectors; this selects.
        for (from, to) in from.iter().zip(to) {
            let bits = from.to_bits();
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            *to = bf16::from_bits(if from.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16);
        }
    }
}

/// `value` cut to 13 bits whose last one is 1 if anything was cut: rounding that to a shorter type is rounding `value` itself,
/// where two roundings to the nearest could meet a false tie. 13 bits are `f32`'s down to 2^-137, below which a shorter
/// type has nothing.
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    const CUT: u64 = (1 << 40) - 1;
    let bits = value.to_bits();
    f64::from_bits((bits | ((bits & CUT) + CUT)) & !CUT) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_false_tie_is_rounded_by_what_lies_beyond_f32() {
        // Half an ulp of the short type above 1, and a little: f32 drops the little, and the tie would go to 1.
        let (ulp_f16, ulp_bf16, little) = (1.0 / 1024.0, 1.0 / 128.0, 2f64.powi(-40));
        assert_eq!(<f16 as Scalar>::from_f64(1.0 + ulp_f16 / 2.0 + little).to_f64(), 1.0 + ulp_f16);
        assert_eq!(<f16 as Scalar>::from_f64(1.0 + ulp_f16 / 2.0 - little).to_f64(), 1.0);
        assert_eq!(<f16 as Scalar>::from_f64(1.0 + ulp_f16 / 2.0).to_f64(), 1.0);
        assert_eq!(<bf16 as Scalar>::from_f64(-1.0 - ulp_bf16 / 2.0 - little).to_f64(), -1.0 - ulp_bf16);
        assert_eq!(<bf16 as Scalar>::from_f64(-1.0 - ulp_bf16 / 2.0 + little).to_f64(), -1.0);
        assert_eq!(<bf16 as Scalar>::from_f64(0.0).to_f64(), 0.0);
        assert_eq!(<bf16 as Scalar>::from_f64(1e300).to_f64(), f64::INFINITY);
        assert!(<f16 as Scalar>::from_f64(f64::NAN).to_f64().is_nan());
    }

    /// Every value, its neighbours in f32, and what lies half-way between two. Those of `f16` are in `cpu::f16`.
    #[test]
    fn slices_of_bf16_convert_like_single_values() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut wide = vec![0f32; all.len()];
        bf16::widen(Width::Least, &all, &mut wide);
        let mut between = Vec::new();
        for (i, (value, wide)) in all.iter().zip(&wide).enumerate() {
            let exact = value.to_f64();
            assert!(f64::from(*wide) == exact || exact.is_nan() && wide.is_nan(), "{value:?}");
            let next = all.get(i + 1).map_or(0.0, |next| next.to_f64());
            let middle = ((exact + next) / 2.0) as f32;
            between.extend([*wide, wide.next_up(), wide.next_down(), middle, middle.next_up(), middle.next_down()]);
        }
        let mut narrow = vec![bf16::ZERO; between.len()];
        bf16::narrow(Width::Least, &between, &mut narrow);
        for (&got, &from) in narrow.iter().zip(&between) {
            let want = bf16::from_f32(from);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{from:e} gives {got:?}");
        }
    }
}
