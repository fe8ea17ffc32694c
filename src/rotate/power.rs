//! The power of an f32 as torch computes it on a CPU: what Hugging Face's frequencies are made with.
//!
//! torch takes elements in vectors, 16 at a time with AVX2, through SLEEF's `powf` (error below a unit in the last place, not
//! always the nearest), and what is left over one by one through the C library, whose result is the nearest but for one in
//! two thousand. Every operation here is one f32 operation with one result, so the bits are those of a machine with AVX2.
//! Without AVX2 torch takes every element through the C library; with AVX-512 it takes 32 at a time, so that the last 16 of
//! 48 are left over.
//!
//! Source: SLEEF 3 (github.com/shibatch/sleef), `xpowf`, `logkf`, `expkf` and the double-float operations of `df.h` with FMA, whose
//! constants these are; ATen's `vectorized_loop`. Of 16,065 powers of 17 bases over 19 sizes all have torch 2.15.0's bits but one,
//! which was left over (50000^(14/24)).

/// Elements that torch takes at a time.
const VECTOR: usize = 16;

/// Element `index` of `count` of `base ** exponents` in torch, for finite positive numbers.
pub(super) fn torch_power(base: f32, exponent: f32, index: usize, count: usize) -> f32 {
    if base.is_normal() && index < count / VECTOR * VECTOR {
        sleef_power(base, exponent)
    } else {
        f64::from(base).powf(f64::from(exponent)) as f32
    }
}

fn sleef_power(base: f32, exponent: f32) -> f32 {
    if exponent == 0.0 || base == 1.0 {
        return 1.0;
    }
    exp(ln(base).times_f32(exponent))
}

/// An unevaluated sum of two f32. Results depend on the order of operations below, not only on their meaning.
#[derive(Clone, Copy)]
struct Pair {
    hi: f32,
    lo: f32,
}

impl Pair {
    const fn new(hi: f32, lo: f32) -> Self {
        Self { hi, lo }
    }

    /// `a + b` without error.
    fn sum(a: f32, b: f32) -> Self {
        let hi = a + b;
        let b_part = hi - a;
        Self::new(hi, (a - (hi - b_part)) + (b - b_part))
    }

    fn plus(self, other: Self) -> Self {
        let sum = Self::sum(self.hi, other.hi);
        Self::new(sum.hi, sum.lo + (self.lo + other.lo))
    }

    fn plus_f32(self, other: f32) -> Self {
        let sum = Self::sum(self.hi, other);
        Self::new(sum.hi, sum.lo + self.lo)
    }

    /// The sum where `self` is the larger.
    fn plus_smaller(self, other: Self) -> Self {
        let hi = self.hi + other.hi;
        Self::new(hi, (((self.hi - hi) + other.hi) + self.lo) + other.lo)
    }

    fn times(self, other: Self) -> Self {
        let hi = self.hi * other.hi;
        let lo = self.lo.mul_add(other.hi, self.hi.mul_add(other.hi, -hi));
        Self::new(hi, self.hi.mul_add(other.lo, lo))
    }

    fn times_f32(self, other: f32) -> Self {
        let hi = self.hi * other;
        Self::new(hi, self.lo.mul_add(other, self.hi.mul_add(other, -hi)))
    }

    fn squared(self) -> Self {
        let hi = self.hi * self.hi;
        Self::new(hi, (self.hi + self.hi).mul_add(self.lo, self.hi.mul_add(self.hi, -hi)))
    }

    fn over(self, other: Self) -> Self {
        let inverse = 1.0 / other.hi;
        let hi = self.hi * inverse;
        let rest = (-other.lo).mul_add(inverse, (-other.hi).mul_add(inverse, 1.0));
        Self::new(hi, hi.mul_add(rest, self.lo.mul_add(inverse, inverse.mul_add(self.hi, -hi))))
    }
}

fn horner(x: f32, coefficients: &[f32]) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |sum, &c| sum.mul_add(x, c))
}

/// `ln x = n ln 2 + 2 artanh((m - 1) / (m + 1))` with `x = 2^n m` and `m` from 0.75 to 1.5.
fn ln(x: f32) -> Pair {
    let n = ((x * (1.0 / 0.75)).to_bits() >> 23) as i32 - 127;
    let m = f32::from_bits(x.to_bits().wrapping_sub((n << 23) as u32));
    let r = Pair::sum(-1.0, m).over(Pair::sum(1.0, m));
    let square = r.squared();
    let series = horner(square.hi, &[0.240_320_35, 0.285_112_68, 0.400_008]);
    let series = square.times_f32(series).plus(Pair::new(0.666_666_6, 3.691_838_6e-9));
    let whole = Pair::new(std::f32::consts::LN_2, -1.904_654_3e-9).times_f32(n as f32);
    whole.plus_smaller(Pair::new(2.0 * r.hi, 2.0 * r.lo)).plus_smaller(square.times(r).times(series))
}

/// `e^x = 2^n e^r` with `|r| <= ln 2 / 2`.
fn exp(x: Pair) -> f32 {
    let n = ((x.hi + x.lo) * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, of which the first has few bits, so that n times it is exact
    let r = x.plus_f32(n * -0.693_145_75).plus_f32(n * -1.428_606_8e-6);
    let hi = r.hi + r.lo;
    let r = Pair::new(hi, (r.hi - hi) + r.lo);
    let series = horner(r.hi, &[0.001_363_246_5, 0.008_365_969, 0.041_671_082, 0.166_665_52, 0.499_999_85]);
    let r = r.plus_smaller(r.squared().times_f32(series));
    let result = Pair::new(1.0, 0.0).plus_smaller(r);
    let half = (n as i32) >> 1;
    (result.hi + result.lo) * 2f32.powi(half) * 2f32.powi(n as i32 - half)
}
