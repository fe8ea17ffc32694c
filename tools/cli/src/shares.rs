//! How much of an operation's documented error a result uses.

use std::fmt;

use posenc::accuracy::Expected;
use serde::Serialize;

use crate::tensors::Tensor;

/// Shares of the error allowed, over the elements of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    pub elements: usize,
    /// elements outside their bound
    pub outside: usize,
    /// the largest share of its bound that an element uses, and its index
    pub worst: f64,
    pub index: usize,
    /// elements that are not finite, got and wanted
    pub not_finite: [usize; 2],
}

impl Shares {
    /// Compares element by element: NaN equals NaN, and an infinity itself.
    pub fn new(got: &Tensor, expected: &Expected) -> Self {
        let mut shares = Self { elements: got.len(), outside: 0, worst: 0.0, index: 0, not_finite: [0; 2] };
        for (index, ((got, want), bound)) in got.to_f64().iter().zip(&expected.want).zip(&expected.bound).enumerate() {
            let share = share(*got, *want, *bound);
            shares.outside += usize::from(share > 1.0);
            shares.not_finite[0] += usize::from(!got.is_finite());
            shares.not_finite[1] += usize::from(!want.is_finite());
            if share > shares.worst {
                (shares.worst, shares.index) = (share, index);
            }
        }
        shares
    }
}

/// The share of its bound that an element uses; above 1 it is outside.
pub fn share(got: f64, want: f64, bound: f64) -> f64 {
    let error = (got - want).abs();
    if got == want || (got.is_nan() && want.is_nan()) {
        0.0
    } else if error.is_finite() {
        error / bound
    } else {
        f64::INFINITY
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outside {
            0 => write!(
                f,
                "{} elements within the bound, the worst uses {:.1} % of it",
                self.elements,
                100.0 * self.worst
            ),
            n => write!(
                f,
                "{n} of {} elements OUTSIDE the bound, the worst, {}, by {:.2} times",
                self.elements, self.index, self.worst
            ),
        }?;
        match self.not_finite {
            [0, 0] => Ok(()),
            [got, want] => write!(f, "; {got} are NaN or infinite where {want} must be"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_outside_are_counted_and_the_worst_is_named() {
        let got = Tensor::new(&[5], &[1.0f32, 2.5, f32::NAN, f32::INFINITY, f32::NAN]);
        let expected = Expected { want: vec![1.5, 2.0, f64::NAN, 1.0, 0.0], bound: vec![1.0, 0.25, 0.0, 1.0, 1.0] };
        let shares = Shares::new(&got, &expected);
        assert_eq!((shares.outside, shares.worst, shares.index), (3, f64::INFINITY, 3));
        let text =
            "3 of 5 elements OUTSIDE the bound, the worst, 3, by inf times; 3 are NaN or infinite where 1 must be";
        assert_eq!(shares.to_string(), text);
        let first = Expected { want: vec![1.5], bound: vec![1.0] };
        let shares = Shares::new(&Tensor::new(&[1], &[1.0f32]), &first);
        assert_eq!(shares.to_string(), "1 elements within the bound, the worst uses 50.0 % of it");
    }
}
