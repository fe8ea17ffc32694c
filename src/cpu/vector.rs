//! Loops that a compiler makes vectors of: no library function and no branch stands in them.
//!
//! They are written for any processor and compiled for each [`Width`], of which [`wide`] chooses one when it runs. Nothing is
//! reordered, and products and sums are fused where `mul_add` says so and nowhere else, so all give the same bits.

use std::ops::Range;

use crate::Scalar;
use crate::cpu::Lines;
use crate::cpu::width::Width;

/// Runs `work` with this processor's vectors. What it calls must be inlined into it; the width that it is given is a constant then.
#[inline]
pub(crate) fn wide<R>(work: impl FnOnce(Width) -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi1,bmi2,f16c,fma")]
        fn avx2<R>(work: impl FnOnce(Width) -> R) -> R {
            work(Width::Avx2)
        }
        #[cfg(avx512)]
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,f16c,fma")]
        fn avx512<R>(work: impl FnOnce(Width) -> R) -> R {
            work(Width::Avx512)
        }
        match Width::chosen() {
            // SAFETY: the processor has what the chosen width names.
            #[cfg(avx512)]
            Width::Avx512 => return unsafe { avx512(work) },
            // SAFETY: as above.
            Width::Avx2 => return unsafe { avx2(work) },
            _ => {}
        }
    }
    work(Width::Least)
}

/// Elements that are converted at once: their loops have a fixed length, and stay in the first cache.
const BLOCK: usize = 64;

/// Converted elements, which begin where a line of the cache does.
#[repr(align(64))]
struct Block([f32; BLOCK]);

/// Calls `work` on parts of `0..n`: blocks, so that its loops have a fixed length, and what is left; all at once for `f32`, which
/// is not converted.
#[inline(always)]
fn blocks<T: Scalar>(n: usize, mut work: impl FnMut(Range<usize>)) {
    if T::NAME == f32::NAME {
        return work(0..n);
    }
    let whole = n - n % BLOCK;
    for first in (0..whole).step_by(BLOCK) {
        work(first..first + BLOCK);
    }
    if whole < n {
        work(whole..n);
    }
}

/// The exact values of a block.
#[inline(always)]
fn floats<'a, T: Scalar>(width: Width, from: &'a [T], between: &'a mut Block) -> &'a [f32] {
    if T::NAME == f32::NAME {
        return bytemuck::cast_slice(from);
    }
    let between = &mut between.0[..from.len()];
    T::widen(width, from, between);
    between
}

/// Calls `work` on `x` as `f32`, a part from `first` on at a time, and rounds what it leaves there to `T`. What it finds there has
/// a meaning if they are `read`.
#[inline(always)]
pub(crate) fn through<T: Scalar>(width: Width, x: &mut [T], read: bool, mut work: impl FnMut(usize, &mut [f32])) {
    blocks::<T>(
        x.len(),
        #[inline(always)]
        |at| {
            let (first, x) = (at.start, &mut x[at]);
            if T::NAME == f32::NAME {
                return work(first, bytemuck::cast_slice_mut(x));
            }
            let mut between = Block([0.0; BLOCK]);
            let between = &mut between.0[..x.len()];
            if read {
                T::widen(width, x, between);
            }
            work(first, between);
            T::narrow(width, between, x);
        },
    );
}

/// Calls `work` on each of `to` and the exact value beside it.
#[inline(always)]
fn beside<T: Scalar>(width: Width, to: &mut [f64], from: &[T], work: impl Fn(&mut f64, f64)) {
    blocks::<T>(
        from.len(),
        #[inline(always)]
        |at| {
            let mut between = Block([0.0; BLOCK]);
            let to = &mut to[at.clone()];
            for (to, from) in to.iter_mut().zip(floats(width, &from[at], &mut between)) {
                work(to, f64::from(*from));
            }
        },
    );
}

/// The exact values.
#[inline(always)]
pub(crate) fn widen<T: Scalar>(width: Width, from: &[T], to: &mut [f64]) {
    beside(
        width,
        to,
        from,
        #[inline(always)]
        |to, from| *to = from,
    );
}

/// `to = to + from * weight` of the exact values.
#[inline(always)]
pub(crate) fn gather<T: Scalar>(width: Width, to: &mut [f64], from: &[T], weight: f64) {
    beside(
        width,
        to,
        from,
        #[inline(always)]
        |to, from| *to = from.mul_add(weight, *to),
    );
}

/// `to = from * scale + a + b` of the exact values; the sum of what they are above `origin`, and of its squares.
#[inline(always)]
pub(crate) fn sum_of_three<T: Scalar>(
    width: Width,
    to: &mut [f64],
    from: &[T],
    scale: f64,
    more: [&[T]; 2],
    origin: f64,
) -> [f64; 2] {
    let [mut sums, mut squares] = [[0.0; 8]; 2];
    three(
        width,
        from,
        more,
        #[inline(always)]
        |first, [from, a, b]| {
            let to = &mut to[first..first + from.len()];
            for (((to, from), a), b) in to.iter_mut().zip(from).zip(a).zip(b) {
                *to = f64::from(*from).mul_add(scale, f64::from(*a)) + f64::from(*b);
            }
            let (eights, rest) = to.as_chunks::<8>();
            for eight in eights {
                for ((to, sum), square) in eight.iter().zip(&mut sums).zip(&mut squares) {
                    (*sum, *square) = (*sum + (to - origin), (to - origin).mul_add(to - origin, *square));
                }
            }
            for ((to, sum), square) in rest.iter().zip(&mut sums).zip(&mut squares) {
                (*sum, *square) = (*sum + (to - origin), (to - origin).mul_add(to - origin, *square));
            }
        },
    );
    [sums.iter().sum(), squares.iter().sum()]
}

/// Calls `work` on the exact values of three, a part from somewhere on at a time.
#[inline(always)]
fn three<T: Scalar>(width: Width, from: &[T], [a, b]: [&[T]; 2], mut work: impl FnMut(usize, [&[f32]; 3])) {
    blocks::<T>(
        from.len(),
        #[inline(always)]
        |at| {
            let [mut x, mut y, mut z] = [(); 3].map(|()| Block([0.0; BLOCK]));
            let (from, a, b) = (&from[at.clone()], &a[at.clone()], &b[at.clone()]);
            work(at.start, [floats(width, from, &mut x), floats(width, a, &mut y), floats(width, b, &mut z)]);
        },
    );
}

/// `x = x * scale + a + b`
#[inline(always)]
pub(crate) fn add_three<T: Scalar>(width: Width, x: &mut [T], scale: f64, [a, b]: [&[T]; 2]) {
    through(
        width,
        x,
        true,
        #[inline(always)]
        |first, x| {
            let [mut y, mut z] = [(); 2].map(|()| Block([0.0; BLOCK]));
            let at = first..first + x.len();
            let (a, b) = (floats(width, &a[at.clone()], &mut y), floats(width, &b[at], &mut z));
            for ((x, a), b) in x.iter_mut().zip(a).zip(b) {
                *x = (f64::from(*x).mul_add(scale, f64::from(*a)) + f64::from(*b)) as f32;
            }
        },
    );
}

/// `from * scale`, rounded to `f32` and from there to `T`.
#[inline(always)]
pub(crate) fn narrow<T: Scalar>(width: Width, from: &[f64], scale: f64, to: &mut [T]) {
    through(
        width,
        to,
        false,
        #[inline(always)]
        |first, to| {
            let from = &from[first..first + to.len()];
            for (to, from) in to.iter_mut().zip(from) {
                *to = (*from * scale) as f32;
            }
        },
    );
}

/// `x += more`, rounded once: every type's sum of two is right when `f32` rounds it first, which has more than twice the bits.
#[inline(always)]
pub(crate) fn add_two<T: Scalar>(width: Width, x: &mut [T], more: &[T]) {
    through(
        width,
        x,
        true,
        #[inline(always)]
        |first, x| {
            let mut between = Block([0.0; BLOCK]);
            let more = floats(width, &more[first..first + x.len()], &mut between);
            x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
        },
    );
}

/// The largest number; NaN is passed over.
#[inline(always)]
pub(crate) fn largest(x: &[f64]) -> f64 {
    let mut parts = [f64::NEG_INFINITY; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        for (part, x) in parts.iter_mut().zip(eight) {
            *part = if *x > *part { *x } else { *part };
        }
    }
    parts.iter().chain(rest).fold(f64::NEG_INFINITY, |most, x| most.max(*x))
}

/// `x = e^(x - max)` of each, and the sum of these.
#[inline(always)]
pub(crate) fn exponentials(x: &mut [f64], max: f64) -> f64 {
    let mut parts = [0.0; 8];
    let (eights, rest) = x.as_chunks_mut::<8>();
    for eight in eights {
        for (part, x) in parts.iter_mut().zip(eight) {
            *x = exp(*x - max);
            *part += *x;
        }
    }
    rest.iter_mut().for_each(|x| *x = exp(*x - max));
    parts.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// `e^x` for `x` from -700 to 700, within 2e-13 of itself; `e^-700`, which every type rounds to 0, below.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    /// Added to a small number, it leaves the nearest whole number in the lowest bits.
    const WHOLE: f64 = 6755399441055744.0;
    let held = if x < -700.0 { -700.0 } else { x };
    let shifted = held.mul_add(std::f64::consts::LOG2_E, WHOLE);
    let whole = shifted - WHOLE;
    // ln 2 is off by 2e-17, up to 1010 times.
    let rest = whole.mul_add(-std::f64::consts::LN_2, held);
    // Least squares of degree 9 on half of ln 2 to each side, off by 1.8e-14.
    let e = polynomial(
        rest,
        &[
            [1.0, 0.9999999999998632],
            [0.4999999999960297, 0.16666666668157556],
            [0.041666666988368746, 0.008333332903277877],
            [0.0013888807771098857, 0.00019841707229698269],
            [2.4882169094453988e-05, 2.74410948433141e-06],
        ],
    );
    // The whole number goes to the exponent.
    f64::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 52))
}

/// Coefficients from the lowest power on. Even and odd powers are two sums side by side, so that neither waits for the other.
#[inline(always)]
fn polynomial<const N: usize>(z: f64, coefficients: &[[f64; 2]; N]) -> f64 {
    let (square, [mut even, mut odd]) = (z * z, coefficients[N - 1]);
    for [a, b] in coefficients[..N - 1].iter().rev() {
        (even, odd) = (even.mul_add(square, *a), odd.mul_add(square, *b));
    }
    odd.mul_add(z, even)
}

/// Sine and cosine of a phase in units of 2^-64 turn, within 1e-15.
#[inline(always)]
pub(crate) fn sin_cos_of_phase(phase: u64) -> (f64, f64) {
    let turned = phase.wrapping_add(1 << 61);
    let quadrant = turned >> 62;
    // The lower 62 bits as the fraction of a number from 1 to 2: no conversion from 64-bit integers, which SSE2 lacks.
    let quarter = f64::from_bits((turned << 2 >> 12) | 1.0f64.to_bits()) - 1.5;
    sin_cos(quadrant, quarter * std::f64::consts::FRAC_PI_2)
}

/// Sine and cosine at a position of pairs whose rates are turns per position in units of 2^-64.
pub(crate) fn waves(rates: &[u64], position: u64) -> [Lines; 2] {
    let [mut sin, mut cos] = [(); 2].map(|()| Lines::new(0.0, rates.len()));
    wide(
        #[inline(always)]
        |_| {
            for ((sin, cos), rate) in sin.iter_mut().zip(&mut *cos).zip(rates) {
                (*sin, *cos) = sin_cos_of_phase(rate.wrapping_mul(position));
            }
        },
    );
    [sin, cos]
}

/// Sine and cosine of `hi + lo` turns times `t`, for up to 2^48 turns, within 2^-50 of themselves: at the zeros of both
/// too.
#[inline(always)]
pub(crate) fn sin_cos_of_turns(t: f64, hi: f64, lo: f64) -> (f64, f64) {
    /// Added to a number below 2^51, it leaves the nearest whole number in the lowest bits.
    const WHOLE: f64 = 6755399441055744.0;
    // The product in 106 bits.
    let product = t * hi;
    let rest = t.mul_add(hi, -product) + t * lo;
    let shifted = product * 4.0 + WHOLE;
    let quarters = shifted - WHOLE;
    // The difference is exact, so that the rest keeps all its bits.
    let turns = (product - quarters * 0.25) + rest;
    sin_cos(shifted.to_bits() & 3, turns * std::f64::consts::TAU)
}

/// Sine and cosine of quarter turns and an angle of at most an eighth of a turn: Taylor's polynomials of degree 15 and 16,
/// which are off by 5e-17.
#[inline(always)]
fn sin_cos(quadrant: u64, x: f64) -> (f64, f64) {
    let z = x * x;
    let s = polynomial(
        z,
        &[
            [-1.0 / 6.0, 1.0 / 120.0],
            [-1.0 / 5040.0, 1.0 / 362880.0],
            [-1.0 / 39916800.0, 1.0 / 6227020800.0],
            [-1.0 / 1307674368000.0, 0.0],
        ],
    );
    let s = (x * z).mul_add(s, x);
    let c = polynomial(
        z,
        &[
            [-0.5, 1.0 / 24.0],
            [-1.0 / 720.0, 1.0 / 40320.0],
            [-1.0 / 3628800.0, 1.0 / 479001600.0],
            [-1.0 / 87178291200.0, 1.0 / 20922789888000.0],
        ],
    );
    let c = z.mul_add(c, 1.0);
    // Quadrant 0: (s, c), 1: (c, -s), 2: (-s, -c), 3: (-c, s).
    let (s, c) = (s.to_bits(), c.to_bits());
    let swap = (s ^ c) & (quadrant & 1).wrapping_neg();
    (f64::from_bits(s ^ swap ^ (quadrant >> 1 << 63)), f64::from_bits(c ^ swap ^ ((quadrant + 1) >> 1 << 63)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::Double;
    use half::{bf16, f16};

    fn bits(i: u64) -> u64 {
        i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn sine_and_cosine_of_every_quadrant_and_its_edges() {
        let check = |phase: u64| {
            let angle = phase as i64 as f64 * (std::f64::consts::TAU / 18446744073709551616.0);
            let (sin, cos) = sin_cos_of_phase(phase);
            assert!((sin - angle.sin()).abs() < 1e-15 && (cos - angle.cos()).abs() < 1e-15, "{phase}: {sin} {cos}");
        };
        for eighth in 0..8u64 {
            for off in -3i64..=3 {
                check((eighth << 61).wrapping_add_signed(off));
                check((eighth << 61).wrapping_add_signed(off << 10));
            }
        }
        (0..100_000u64).for_each(|i| check(bits(i)));
    }

    #[test]
    fn sine_and_cosine_of_turns_are_right_of_themselves() {
        for i in 1..100_000u64 {
            let turns = Double::from((bits(i) >> 11) as f64) / Double::from(3e15) / Double::TAU;
            // Whole numbers of quarter turns among them, whose sine or cosine is what the lower half says.
            let t = if i % 3 == 0 { (0.25 / turns.hi) * (i % 7) as f64 } else { (i as f64 - 5e4) * 1.37 };
            let exact = Double::from(t) * turns;
            let quarters = (exact.hi * 4.0).round();
            let rest = ((exact - Double::from(quarters / 4.0)) * Double::TAU).hi;
            let (s, c) = (rest.sin(), rest.cos());
            let want = match quarters.rem_euclid(4.0) as u8 {
                0 => (s, c),
                1 => (c, -s),
                2 => (-s, -c),
                _ => (-c, s),
            };
            let got = sin_cos_of_turns(t, turns.hi, turns.lo);
            for (got, want) in [(got.0, want.0), (got.1, want.1)] {
                assert!((got - want).abs() <= want.abs() * f64::exp2(-50.0), "{t} x {turns:?}: {got:e} for {want:e}");
            }
        }
    }

    #[test]
    fn every_width_gives_the_same_bits() {
        fn check<T: Scalar>() {
            let x: Vec<T> = (0..331).map(|i| T::from_f64((bits(i) >> 40) as f64 / 1e6 - 8.0)).collect();
            let mut first = None;
            Width::each(|_| {
                let (mut z, mut y, mut w) = ([0.0; 331], x.clone(), x.clone());
                let found = wide(
                    #[inline(always)]
                    |width| {
                        let sums = sum_of_three(width, &mut z, &x, 1.7, [&x, &x], 0.3);
                        gather(width, &mut z, &x, -0.3);
                        add_three(width, &mut y, 0.7, [&x, &x]);
                        let max = largest(&z);
                        let total = exponentials(&mut z, max);
                        narrow(width, &z, 1.0 / total, &mut w);
                        (sums, total)
                    },
                );
                let waves = waves(&[1, u64::MAX / 3, u64::MAX / 7], 123_456_789).map(|waves| waves.to_vec());
                let bits: Vec<_> = y.iter().chain(&w).map(|value| value.to_f64().to_bits()).collect();
                let got = (found, bits, waves);
                assert_eq!(*first.get_or_insert_with(|| got.clone()), got);
            });
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }

    #[test]
    fn exponentials_down_to_nothing() {
        for i in 0..100_000 {
            let x = -0.007 * f64::from(i);
            assert!((exp(x) / x.exp() - 1.0).abs() < 2e-13, "{x}");
        }
        assert_eq!([exp(0.0), exp(-700.1), exp(f64::NEG_INFINITY)], [1.0, exp(-700.0), exp(-700.0)]);
        assert!(exp(f64::NAN).is_nan() && (exp(700.0) / 700f64.exp() - 1.0).abs() < 2e-13);
    }

    #[test]
    fn narrow_and_widen_are_the_scalars_own() {
        fn check<T: Scalar>() {
            let mut x: Vec<f64> = (0..100_003).map(|i| f64::from_bits(bits(i))).collect();
            x.extend((0..100_000).map(|i| f64::from(f32::from_bits(bits(i) as u32))));
            x.extend(
                (0..100_000u64).map(|i| T::from_f64(f64::from(f32::from_bits(bits(i) as u32))).to_f64() * 1.00390625),
            );
            x.extend([0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 65520.0, 3.39e38, 1e-46, 7e-46]);
            let mut got = vec![T::from_f64(7.0); x.len()];
            wide(|width| narrow(width, &x, 1.0, &mut got));
            let mut back = vec![7.0; x.len()];
            wide(|width| widen(width, &got, &mut back));
            for ((&x, got), &back) in x.iter().zip(&got).zip(&back) {
                let want = T::from_f64(x).to_f64();
                assert!(got.to_f64() == want || want.is_nan() && got.to_f64().is_nan(), "{x:e}: {got:?}");
                assert!(back == want || want.is_nan() && back.is_nan(), "{got:?}: {back:e}");
            }
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }

    #[test]
    fn weighted_sums_are_exact_products() {
        fn check<T: Scalar>() {
            let from: Vec<T> = (0..331).map(|i| T::from_f64((bits(i) >> 40) as f64 / 1e6 - 8.0)).collect();
            let mut sums: Vec<f64> = (0..331).map(f64::from).collect();
            wide(|width| gather(width, &mut sums, &from, 0.25));
            for (i, (sum, from)) in (0..).map(f64::from).zip(sums.iter().zip(&from)) {
                assert_eq!(*sum, i + from.to_f64() * 0.25);
            }
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }

    #[test]
    fn a_sum_of_two_is_rounded_once() {
        fn check<T: Scalar>() {
            let of = |seed: u64| -> Vec<T> {
                // Exponents of about 1, 2^-8 .. 2^-26 apart, so that many sums lie next to a tie.
                let value = |i: u64| {
                    let bits = bits(i * 7 + seed);
                    f64::exp2(-((bits % 27) as f64)) * (1.0 + (bits >> 40) as f64 / f64::exp2(24.0))
                };
                (0..200_003).map(|i| T::from_f64(value(i))).collect()
            };
            let (a, b) = (of(1), of(2));
            let mut got = a.clone();
            wide(|width| add_two(width, &mut got, &b));
            for ((got, a), b) in got.iter().zip(&a).zip(&b) {
                assert_eq!(got.to_f64(), T::from_f64(a.to_f64() + b.to_f64()).to_f64(), "{a:?} + {b:?}");
            }
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }

    #[test]
    fn largest_takes_every_element() {
        for n in 0..40 {
            let x: Vec<f64> = (0..n).map(|i| f64::from(i * 7 % 11) - 20.0).collect();
            assert_eq!(largest(&x), x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
        assert_eq!(largest(&[f64::NAN, 1.0]), 1.0);
    }
}
