//! Error bounds and the one comparison that uses them.
//!
//! Every operation has an `error_bound` beside its law: the largest error of one output element as a formula in its
//! inputs, before the result is rounded to the element type. [`rounded`] adds that last rounding.

use crate::Scalar;

/// The error bound of a result that is `error` away from `want` and then rounded to `T`.
///
/// `error + (|want| + error) * T::ROUNDOFF + T::TINY`: the rounding acts on the computed value, which may be larger
/// than the wanted one by `error`.
pub fn rounded<T: Scalar>(want: f64, error: f64) -> f64 {
    error + (want.abs() + error) * T::ROUNDOFF + T::TINY
}

/// [`rounded`] of what is computed on the CPU, where `f16` and `bf16` are rounded to `f32` before.
#[cfg(test)]
pub(crate) fn rounded_on_cpu<T: Scalar>(want: f64, error: f64) -> f64 {
    rounded::<T>(want, if T::NAME == f32::NAME { error } else { rounded::<f32>(want, error) })
}

/// Expected result of an operation: values in f64, and the error allowed at each.
#[derive(Clone, Debug)]
pub struct Expected {
    /// the true values
    pub want: Vec<f64>,
    /// the error allowed, rounding to the element type included; 0 where the element must not change
    pub bound: Vec<f64>,
}

/// The element that uses the largest share of its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// its index
    pub index: usize,
    /// what was computed
    pub got: f64,
    /// what is true
    pub want: f64,
    /// `|got - want| / bound`; infinite for NaN, infinities of the other sign and missing elements
    pub share: f64,
    /// the largest `|got - want|` of all elements, not only of this one
    pub error: f64,
}

/// Compares element by element and finds the worst one; `bound(i)` is the largest error allowed at element `i`.
///
/// NaN matches NaN alone and an infinity matches itself alone. Slices of different lengths compare as infinitely wrong
/// at the first missing element.
pub fn compare<T: Scalar>(got: &[T], want: &[f64], bound: impl Fn(usize) -> f64) -> Worst {
    let mut worst = Worst { index: 0, got: 0.0, want: 0.0, share: 0.0, error: 0.0 };
    for (index, (g, &want)) in got.iter().zip(want).enumerate() {
        let got = g.to_f64();
        let same = got == want || (got.is_nan() && want.is_nan());
        let error = if same { 0.0 } else { (got - want).abs() };
        let share = if same {
            0.0
        } else if error.is_finite() {
            error / bound(index)
        } else {
            f64::INFINITY
        };
        worst.error = worst.error.max(if error.is_nan() { f64::INFINITY } else { error });
        // `>=` keeps NaN shares (0/0) out and lets the first element stand for an all-exact comparison.
        if share > worst.share || index == 0 {
            worst = Worst { index, got, want, share, error: worst.error };
        }
    }
    if got.len() != want.len() {
        let index = got.len().min(want.len());
        worst = Worst { index, share: f64::INFINITY, error: f64::INFINITY, ..worst };
    }
    worst
}

/// Panics unless every element is within its bound; prints the worst element, its index and the share of its bound.
///
/// # Panics
/// If an element is outside its bound, or the lengths differ.
#[track_caller]
pub fn assert_close<T: Scalar>(got: &[T], want: &[f64], bound: impl Fn(usize) -> f64) -> Worst {
    let worst = compare(got, want, bound);
    assert!(
        worst.share <= 1.0,
        "element {} of {} {} is {:e}, the truth is {:e}: {:.3} times the bound",
        worst.index,
        got.len(),
        T::NAME,
        worst.got,
        worst.want,
        worst.share
    );
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_named() {
        let worst = compare(&[1.0f32, 2.5, 3.0], &[1.0, 2.0, 3.25], |_| 1.0);
        assert_eq!((worst.index, worst.share, worst.error), (1, 0.5, 0.5));
    }

    #[test]
    fn nan_infinity_and_missing_elements_are_never_close() {
        assert_eq!(compare(&[f32::NAN], &[0.0], |_| 1e30).share, f64::INFINITY);
        assert_eq!(compare(&[f32::INFINITY], &[f64::NEG_INFINITY], |_| 1e30).share, f64::INFINITY);
        assert_eq!(compare(&[0.0f32], &[0.0, 0.0], |_| 1e30).share, f64::INFINITY);
        assert_eq!(compare(&[f32::NAN], &[f64::NAN], |_| 0.0).share, 0.0);
        assert_eq!(compare(&[1.0f32], &[2.0], |_| 0.0).share, f64::INFINITY);
    }

    #[test]
    #[should_panic(expected = "element 1 of 2 f32 is 2e0, the truth is 3e0: 2.000 times the bound")]
    fn outside_the_bound_panics_with_the_numbers() {
        assert_close(&[1.0f32, 2.0], &[1.0, 3.0], |_| 0.5);
    }

    #[test]
    fn a_rounded_value_is_within_half_an_ulp() {
        for value in [1.0 + 1.0 / 512.0, 3.0e-39, 1.0e-45, 65000.3, 1.0e-8] {
            fn check<T: Scalar>(value: f64) {
                let got = T::from_f64(value);
                assert_close(&[got], &[value], |_| rounded::<T>(value, 0.0));
            }
            check::<f32>(value);
            check::<half::f16>(value);
            check::<half::bf16>(value);
        }
    }
}
