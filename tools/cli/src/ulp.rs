//! Units in the last place.

use crate::tensors::Dtype;

/// Digits of the significand behind the first, and the exponent of the smallest normal number.
const fn format(dtype: Dtype) -> (i32, i32) {
    match dtype {
        Dtype::F64 => (52, -1022),
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        Dtype::Bf16 => (7, -126),
        // Integers are a unit apart.
        Dtype::I64 | Dtype::I32 => (0, 0),
    }
}

/// The distance of `x` to the next number of that type away from zero; of an integer type 1.
pub fn ulp(dtype: Dtype, x: f64) -> f64 {
    if !dtype.is_float() {
        return 1.0;
    }
    let (digits, lowest) = format(dtype);
    // The exponent from the bits: a logarithm would round up just below a power of two.
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(lowest) - digits;
    if exponent >= -1022 { f64::from_bits(((exponent + 1023) as u64) << 52) } else { 2f64.powi(exponent) }
}

/// The coarser of two types: that whose ulps a comparison counts.
pub fn coarser(a: Dtype, b: Dtype) -> Dtype {
    let digits = |dtype: Dtype| if dtype.is_float() { format(dtype).0 } else { i32::MAX };
    if digits(b) < digits(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ulp_is_the_step_to_the_next_number() {
        for x in [1.0f32, 1.999_999_9, 2.0, 3.0e-39, 1.0e-45, 65504.0, 0.1] {
            let next = f64::from(f32::from_bits(x.to_bits() + 1));
            assert_eq!(ulp(Dtype::F32, f64::from(x)), next - f64::from(x), "{x}");
        }
        assert_eq!(ulp(Dtype::Bf16, 1.0), 1.0 / 128.0);
        assert_eq!(ulp(Dtype::F16, 0.0), 2f64.powi(-24));
        assert_eq!(ulp(Dtype::F64, -1.0), f64::EPSILON);
        assert_eq!(ulp(Dtype::I32, 1e9), 1.0);
        assert_eq!(coarser(Dtype::F32, Dtype::Bf16), Dtype::Bf16);
        assert_eq!(coarser(Dtype::F16, Dtype::I64), Dtype::F16);
    }
}
