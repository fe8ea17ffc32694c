//! Numbers of 106 bits (a sum of two `f64`), for laws whose result must outlive a multiplication by 2^31.
//!
//! A frequency in `f64` is off by up to 1.1e-16 of itself, 2.4e-7 rad at position 2^31. These are off by about 1e-30.
//! Algorithms: Dekker 1971 and Hida, Li and Bailey 2000 (QD).

use std::ops::{Add, Div, Mul, Neg, Sub};

/// An unevaluated sum `hi + lo` with `|lo|` at most half an ulp of `hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Double {
    pub hi: f64,
    pub lo: f64,
}

/// `a + b` without error, for any order of magnitude.
fn two_sum(a: f64, b: f64) -> Double {
    let hi = a + b;
    let b_part = hi - a;
    Double { hi, lo: (a - (hi - b_part)) + (b - b_part) }
}

/// `a + b` without error, for `|a| >= |b|`.
fn quick_two_sum(a: f64, b: f64) -> Double {
    let hi = a + b;
    Double { hi, lo: b - (hi - a) }
}

impl Double {
    pub const ONE: Self = Self { hi: 1.0, lo: 0.0 };
    /// 2 pi
    pub const TAU: Self = Self { hi: std::f64::consts::TAU, lo: 2.4492935982947064e-16 };
    /// ln 2
    pub const LN_2: Self = Self { hi: std::f64::consts::LN_2, lo: 2.3190468138462996e-17 };

    /// `e^self`, for results between 1e-280 and 1e280.
    pub fn exp(self) -> Self {
        // e^x = 2^k (e^r)^512 with |r| < ln 2 / 1024; 1 is left out until the end, so that squaring loses no bits.
        let k = (self.hi / std::f64::consts::LN_2).round();
        let r = (self - Self::LN_2 * Self::from(k)) * Self::from(1.0 / 512.0);
        let mut term = r;
        let mut sum = r;
        for n in 2..=9 {
            term = term * r / Self::from(f64::from(n));
            sum = sum + term;
        }
        for _ in 0..9 {
            sum = sum + sum + sum * sum;
        }
        let scale = 2f64.powi(k as i32);
        let result = sum + Self::ONE;
        Self { hi: result.hi * scale, lo: result.lo * scale }
    }

    /// The natural logarithm of a positive number.
    pub fn ln(self) -> Self {
        // Newton on e^y = x doubles the correct digits: 16 of them become 32.
        let y = Self::from(self.hi.ln());
        y + self * (-y).exp() - Self::ONE
    }

    /// `self^exponent` for a positive `self`.
    pub fn pow(self, exponent: Self) -> Self {
        (self.ln() * exponent).exp()
    }

    /// The largest whole number that is not above.
    pub fn floor(self) -> Self {
        let whole = self.hi.floor();
        if whole == self.hi { quick_two_sum(whole, self.lo.floor()) } else { Self::from(whole) }
    }

    /// Times a power of two.
    pub fn scaled(self, power: f64) -> Self {
        Self { hi: self.hi * power, lo: self.lo * power }
    }

    /// This many radians per position as a fraction of a turn per position, rounded to units of 2^-64. Whole turns fall
    /// away: at integer positions they change nothing.
    pub fn rate(self) -> u64 {
        const SCALE: f64 = 18446744073709551616.0;
        let turns = self / Self::TAU;
        let turns = turns - Self::from(turns.hi.floor());
        let (hi, lo) = (turns.hi * SCALE, turns.lo * SCALE);
        let whole = hi.floor();
        // Integers below 2^65 in magnitude, of less than 2^106 turns; the sum wraps at a whole turn.
        (whole as i128).wrapping_add(((hi - whole) + lo).round() as i128) as u64
    }
}

impl From<f64> for Double {
    fn from(hi: f64) -> Self {
        Self { hi, lo: 0.0 }
    }
}

impl Add for Double {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (s, t) = (two_sum(self.hi, other.hi), two_sum(self.lo, other.lo));
        let u = quick_two_sum(s.hi, s.lo + t.hi);
        quick_two_sum(u.hi, u.lo + t.lo)
    }
}

impl Neg for Double {
    type Output = Self;
    fn neg(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }
}

impl Sub for Double {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Double {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let hi = self.hi * other.hi;
        let lo = self.hi.mul_add(other.hi, -hi);
        quick_two_sum(hi, lo + (self.hi * other.lo + self.lo * other.hi))
    }
}

impl Div for Double {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        // Long division, three digits of 53 bits.
        let first = self.hi / other.hi;
        let rest = self - other * Self::from(first);
        let second = rest.hi / other.hi;
        let rest = rest - other * Self::from(second);
        quick_two_sum(first, second) + Self::from(rest.hi / other.hi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use astro_float::{BigFloat, Consts, Radix, RoundingMode};

    const BITS: usize = 256;
    const NEAREST: RoundingMode = RoundingMode::ToEven;

    fn big(x: Double) -> BigFloat {
        BigFloat::from_f64(x.hi, BITS).add(&BigFloat::from_f64(x.lo, BITS), BITS, NEAREST)
    }

    /// |got / want - 1| as f64
    fn relative(got: Double, want: &BigFloat, consts: &mut Consts) -> f64 {
        let off = big(got).div(want, BITS, NEAREST).sub(&BigFloat::from_f64(1.0, BITS), BITS, NEAREST).abs();
        off.format(Radix::Dec, NEAREST, consts).unwrap().parse().unwrap()
    }

    #[test]
    fn logarithms_and_powers_hold_30_digits() {
        let mut consts = Consts::new().unwrap();
        for base in [1.5, 100.0, 1e4, 160000.0, 5e5, 1e6, 1e7, 8e6, 1.1158840e7, 1e9] {
            let want = BigFloat::from_f64(base, BITS).ln(BITS, NEAREST, &mut consts);
            assert!(relative(Double::from(base).ln(), &want, &mut consts) < 1e-30, "ln {base}");
            for (pair, rotary) in [(0, 128), (1, 128), (31, 64), (63, 128), (127, 256), (5, 18)] {
                let exponent = Double::from(-2.0 * f64::from(pair)) / Double::from(f64::from(rotary));
                let want_exponent = BigFloat::from_f64(-2.0 * f64::from(pair), BITS).div(
                    &BigFloat::from_f64(f64::from(rotary), BITS),
                    BITS,
                    NEAREST,
                );
                let want = BigFloat::from_f64(base, BITS).pow(&want_exponent, BITS, NEAREST, &mut consts);
                let off = relative(Double::from(base).pow(exponent), &want, &mut consts);
                assert!(off < 2e-30, "{base}^(-2*{pair}/{rotary}) is off by {off:e}");
            }
        }
    }

    #[test]
    fn rates_are_the_nearest_fraction_of_a_turn() {
        let mut consts = Consts::new().unwrap();
        let tau = consts.pi(BITS, NEAREST).mul(&BigFloat::from_f64(2.0, BITS), BITS, NEAREST);
        let scale = BigFloat::from_f64(18446744073709551616.0, BITS);
        for frequency in [1.0, 0.5, 1e-3, 3.0689e-7, std::f64::consts::TAU, 7.0, 1e-18, 0.0] {
            let turns = BigFloat::from_f64(frequency, BITS).div(&tau, BITS, NEAREST);
            let fraction = turns.sub(&turns.floor(), BITS, NEAREST).mul(&scale, BITS, NEAREST);
            let rate = Double::from(frequency).rate();
            let rate = BigFloat::from_u64(rate, BITS);
            let off = rate.sub(&fraction, BITS, NEAREST).abs();
            assert!(off <= BigFloat::from_f64(0.500001, BITS), "{frequency}: {off}");
        }
    }
}
