//! Results in eight bits.

/// Numbers of eight bits, which a scale belongs to: a value is `scale * decode(code)`.
///
/// | code | largest | step near 1 | smallest above 0 |
/// |---|---|---|---|
/// | `E4m3` | 448 | 2^-3 | 2^-9 |
/// | `E5m2` | 57344 | 2^-2 | 2^-16 |
/// | `Int8` | 127 | 1 | 1 |
///
/// A value is rounded to the nearest code, ties to even, and one beyond the largest becomes the largest, infinities too. NaN is
/// 0x7f; of `Int8` it is 0. `E4m3` is the variant without infinities (`e4m3fn`), whose values are half of those of AMD's `fnuz`
/// variant.
///
/// # Source
/// Micikevicius et al. 2022 (arXiv 2209.05433); PTX's `cvt.rn.satfinite`.
///
/// # Example
/// ```
/// use posenc::rotate::Code8;
/// assert_eq!(Code8::E4m3.decode(Code8::E4m3.encode(1.06)), 1.0);
/// assert_eq!(Code8::E4m3.encode(1e9), 0x7e);
/// assert_eq!(Code8::Int8.encode(-2.5), -2i8 as u8);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Code8 {
    /// four bits of exponent, three of mantissa
    E4m3,
    /// five bits of exponent, two of mantissa
    E5m2,
    /// whole numbers, symmetric
    Int8,
}

/// A small float: bits of its mantissa, bias of its exponent, its largest code.
struct Small {
    mantissa: u32,
    bias: u32,
    most: u32,
}

impl Code8 {
    const fn small(self) -> Option<Small> {
        match self {
            Self::E4m3 => Some(Small { mantissa: 3, bias: 7, most: 0x7e }),
            Self::E5m2 => Some(Small { mantissa: 2, bias: 15, most: 0x7b }),
            Self::Int8 => None,
        }
    }

    /// The largest value.
    pub const fn most(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57344.0,
            Self::Int8 => 127.0,
        }
    }

    /// The nearest code.
    pub fn encode(self, x: f32) -> u8 {
        let Some(Small { mantissa, bias, most }) = self.small() else {
            return x.round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
        };
        if x.is_nan() {
            return 0x7f;
        }
        let (sign, bits) = ((x.to_bits() >> 24 & 0x80) as u8, x.abs().to_bits());
        let shift = 23 - mantissa;
        // The smallest normal number.
        let code = if bits < (128 - bias) << 23 {
            // The last place of a sum with this power of two is the step of subnormal codes.
            let even = f32::from_bits((128 - bias + shift) << 23);
            (x.abs() + even).to_bits() - even.to_bits()
        } else {
            let nearest = (bits + (1 << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift;
            (nearest - ((127 - bias) << mantissa)).min(most)
        };
        sign | code as u8
    }

    /// The value of a code.
    pub fn decode(self, code: u8) -> f32 {
        let Some(Small { mantissa, bias, most }) = self.small() else { return f32::from(code as i8) };
        let magnitude = u32::from(code & 0x7f);
        if magnitude > most {
            return if self == Self::E5m2 && magnitude == most + 1 {
                f32::INFINITY.copysign(sign(code))
            } else {
                f32::NAN
            };
        }
        let (exponent, fraction) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let step = |exponent: u32| f32::from_bits((127 + exponent - bias - mantissa) << 23);
        let whole = if exponent == 0 { fraction } else { fraction | 1 << mantissa };
        (whole as f32 * step(exponent.max(1))).copysign(sign(code))
    }

    /// How far the value of a code may be from `x`, which is known to `error`, where both are in units of the scale.
    pub fn error_bound(self, x: f64, error: f64) -> f64 {
        let most = f64::from(self.most());
        let size = x.abs() + error;
        let half = match self.small() {
            None => 0.5,
            Some(Small { mantissa, bias, .. }) => {
                let least = f64::exp2(1.0 - f64::from(bias));
                f64::exp2(size.max(least).min(most).log2().floor() - f64::from(mantissa) - 1.0)
            }
        };
        error + half.max(size - most)
    }
}

/// 1 with the sign of a code.
fn sign(code: u8) -> f32 {
    if code & 0x80 == 0 { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code, its neighbours, and what lies half-way between two.
    #[test]
    fn codes_are_the_nearest() {
        for code in [Code8::E4m3, Code8::E5m2, Code8::Int8] {
            let mut values: Vec<f32> = (0..=u8::MAX).map(|bits| code.decode(bits)).filter(|x| x.is_finite()).collect();
            values.retain(|x| x.abs() <= code.most());
            values.sort_by(f32::total_cmp);
            values.dedup();
            assert_eq!(values.len(), [253, 247, 255][code as usize]);
            let nearest = |x: f32| {
                let off = |y: &f32| (f64::from(*y) - f64::from(x)).abs();
                values.iter().copied().min_by(|a, b| off(a).total_cmp(&off(b))).expect("codes")
            };
            for pair in values.windows(2) {
                let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
                for x in [pair[0], pair[1], (middle as f32).next_down(), (middle as f32).next_up()] {
                    assert_eq!(code.decode(code.encode(x)), nearest(x), "{code:?} of {x}");
                }
                // A tie goes to the even one.
                let tie = code.encode(middle as f32);
                assert!(tie & 1 == 0 && [pair[0], pair[1]].contains(&code.decode(tie)), "{code:?} of {middle}");
            }
            for bits in 0..=u8::MAX {
                let x = code.decode(bits);
                let same = code.encode(x) == bits || x.is_nan() || x.is_infinite() || x < -127.0 && code == Code8::Int8;
                assert!(same, "{code:?} {bits:#x} is {x}");
            }
            for far in [code.most() * 1.01, 1e30, f32::INFINITY] {
                assert_eq!(code.decode(code.encode(far)), code.most());
                assert_eq!(code.decode(code.encode(-far)), -code.most());
            }
        }
        assert_eq!([Code8::E4m3, Code8::E5m2, Code8::Int8].map(|code| code.encode(f32::NAN)), [0x7f, 0x7f, 0]);
        // 464 lies half-way to what would be 480.
        assert_eq!([447.0, 449.0, 464.0, 465.0].map(|x| Code8::E4m3.encode(x)), [0x7e; 4]);
        assert_eq!(Code8::E4m3.encode(-0.0), 0x80);
    }

    #[test]
    fn the_bound_holds_and_is_met() {
        for code in [Code8::E4m3, Code8::E5m2, Code8::Int8] {
            let mut worst = 0f64;
            for i in 0..200_000u32 {
                let x = f32::from_bits(0x3600_0000 + i * 1237);
                let off = (f64::from(code.decode(code.encode(x))) - f64::from(x)).abs();
                let bound = code.error_bound(f64::from(x), 0.0);
                assert!(off <= bound, "{code:?} of {x}: {off} above {bound}");
                worst = worst.max(off / bound);
            }
            assert!(worst > 0.99, "{code:?}: {worst}");
        }
    }
}
