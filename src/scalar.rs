//! The element types of tensors: `f32`, `f16` and `bf16`.

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element type that every kernel is compiled for. Sealed.
pub trait Scalar:
    sealed::Sealed
    + bytemuck::Pod
    + cudarc::driver::DeviceRepr
    + cudarc::driver::ValidAsZeroBits
    + std::fmt::Debug
    + Send
    + Sync
{
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
        f16::from_f64(value)
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
        bf16::from_f64(value)
    }
}
