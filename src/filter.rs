//! Interpolation filters: the weights of neighbours on one axis.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Filter {
    /// The two nearest on each axis, by distance.
    Bilinear,
    /// The four nearest on each axis, by Keys' cubic with A = -0.75; antialiased with A = -0.5.
    #[default]
    Bicubic,
}

/// The weights of one output along one axis: of `first`, `first + 1` and so on.
#[derive(Clone, Debug, PartialEq)]
pub struct Taps {
    /// the first input
    pub first: usize,
    /// one weight for each input
    pub weights: Vec<f64>,
}

/// Numbers that weights are made in: `f64`, or `f32` as torch does.
pub(crate) trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The nearest number of this type.
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    /// `self * a + b`, rounded once
    fn fused(self, a: Self, b: Self) -> Self;
    fn abs(self) -> Self;
}

macro_rules! real {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn of(x: f64) -> Self {
                x as Self
            }
            fn wide(self) -> f64 {
                f64::from(self)
            }
            fn fused(self, a: Self, b: Self) -> Self {
                self.mul_add(a, b)
            }
            fn abs(self) -> Self {
                self.abs()
            }
        }
    )*};
}
real!(f32, f64);

/// Keys' cubic at distance `x` from 0. `last` says whether the last addition of its polynomials is fused.
fn keys<R: Real>(x: R, a: f64, last: bool) -> R {
    let of = R::of;
    let end = |product: R, x: R, c: f64| if last { product.fused(x, of(c)) } else { product * x + of(c) };
    if x <= of(1.0) {
        end(of(a + 2.0).fused(x, of(-(a + 3.0))) * x, x, 1.0)
    } else if x < of(2.0) {
        end(of(a).fused(x, of(-5.0 * a)).fused(x, of(8.0 * a)), x, -4.0 * a)
    } else {
        of(0.0)
    }
}

/// Where outputs stand among inputs, in steps of one output to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Output `i` at `step * (i + 1/2)`, with inputs at 1/2, 3/2 ...
    Centres,
    /// The same, with a filter that is widened where the grid shrinks.
    Antialiased,
    /// Output `i` at `step * i`, with inputs at 0, 1 ...
    Corners,
}

/// The weights of output `index`, from the inputs, the step from one output to the next, and the filter.
pub(crate) fn taps<R: Real>(from: usize, step: R, index: usize, filter: Filter, stand: Stand) -> Taps {
    let of = R::of;
    let (half, one) = (of(0.5), of(1.0));
    let middle = of(index as f64) + half;
    let wide = |weights: Vec<R>| weights.into_iter().map(R::wide).collect();
    if stand == Stand::Antialiased {
        let place = step * middle;
        let shrinks = step >= one;
        let reach = of(match filter {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        });
        let radius = if shrinks { reach * step } else { reach };
        let narrowed = if shrinks { one / step } else { one };
        let first = (place - radius + half).wide().max(0.0) as usize;
        let end = ((place + radius + half).wide() as usize).min(from);
        let mut sum = of(0.0);
        let weights: Vec<R> = (first..end)
            .map(|input| {
                let x = ((of(input as f64) - place + half) * narrowed).abs();
                let weight = match filter {
                    Filter::Bilinear if x < one => one - x,
                    Filter::Bilinear => of(0.0),
                    Filter::Bicubic => keys(x, -0.5, true),
                };
                sum = sum + weight;
                weight
            })
            .collect();
        return Taps { first, weights: wide(weights.into_iter().map(|weight| weight / sum).collect()) };
    }
    let source = if stand == Stand::Corners { step * of(index as f64) } else { step.fused(middle, -half) };
    let source = if filter == Filter::Bilinear && source < of(0.0) { of(0.0) } else { source };
    let base = source.wide().floor();
    let t = source - of(base);
    let rest = one - t;
    let (offset, weights): (i64, &[R]) = match filter {
        Filter::Bilinear => (0, &[rest, t]),
        Filter::Bicubic => (-1, &[t + one, t, rest, rest + one].map(|x| keys(x, -0.75, false))),
    };
    let at = |tap: usize| (base as i64 + offset + tap as i64).clamp(0, from as i64 - 1) as usize;
    let (first, last) = (at(0), at(weights.len() - 1));
    let mut own = vec![of(0.0); last - first + 1];
    for (tap, &weight) in weights.iter().enumerate() {
        own[at(tap) - first] = own[at(tap) - first] + weight;
    }
    Taps { first, weights: wide(own) }
}
