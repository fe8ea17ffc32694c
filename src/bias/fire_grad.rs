//! The gradient of FIRE's parameters: sums over the elements of each of the network's lines, then the parameters.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::FireGradPlan;

use crate::bias::form::ALL;
use crate::bias::{Bias, Fire};
use crate::position::Places;
use crate::shape::Shape;
use crate::{Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of [`Fire`], each of its field's shape.
///
/// More: [docs](crate::docs::bias#gradients).
#[derive(Clone, Debug, PartialEq)]
pub struct FireGrad {
    /// of `c`
    pub c: f64,
    /// of `threshold`
    pub threshold: f64,
    /// `[width]`
    pub in_weight: Vec<f64>,
    /// `[width]`
    pub in_bias: Vec<f64>,
    /// `[heads, width]`
    pub out_weight: Vec<f64>,
    /// `[heads]`
    pub out_bias: Vec<f64>,
}

impl FireGrad {
    fn zeros(fire: &Fire) -> Self {
        let (width, heads) = (fire.in_weight.len(), fire.heads());
        Self {
            c: 0.0,
            threshold: 0.0,
            in_weight: vec![0.0; width],
            in_bias: vec![0.0; width],
            out_weight: vec![0.0; heads * width],
            out_bias: vec![0.0; heads],
        }
    }

    /// All numbers in the order of a kernel's output: `c`, `threshold`, `in_weight`, `in_bias`, `out_weight`, `out_bias`.
    pub fn flat(&self) -> Vec<f64> {
        [&[self.c, self.threshold][..], &self.in_weight, &self.in_bias, &self.out_weight, &self.out_bias].concat()
    }
}

impl Fire {
    /// The gradients of every parameter from the gradient of every logit after the bias.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `places` | | positions of queries and keys |
    ///
    /// # Errors
    /// If the spec, the shape or the places are refused.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::Fire;
    /// use posenc::{Logits, Places};
    /// // One head; every logit's gradient is one of `out_bias`.
    /// let fire = Fire {
    ///     c: 1.0,
    ///     threshold: 8.0,
    ///     eps: 0.0,
    ///     in_weight: vec![1.0],
    ///     in_bias: vec![0.0],
    ///     out_weight: vec![1.0],
    ///     out_bias: vec![0.0],
    /// };
    /// let got = fire.grad(&[0.25f32, 0.5], &Logits::bhqk(1, 1, 1, 2), &Places::bottom_right())?;
    /// assert_eq!(got.out_bias, [0.75]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(&self, grad: &[T], shape: &Logits, places: &Places<&[i32]>) -> Result<FireGrad> {
        Ok(self.expect_grad(grad, shape, places)?.0)
    }

    /// [`Fire::grad`], and the error allowed at each number that a kernel computes: `40 * 2^-24` of the sum of the sizes of
    /// its terms, where a ramp `w * x + b` counts as `|w * x| + |b|`.
    ///
    /// `x` carries 5 roundings. A term whose `x` lies within them of a bend of the network may count on either side of it:
    /// the bounds of the numbers that jump there, all but those of `out_weight` and `out_bias`, hold the term once more.
    ///
    /// # Errors
    /// As [`Fire::grad`].
    pub fn expect_grad<T: Scalar>(
        &self,
        grad: &[T],
        shape: &Logits,
        places: &Places<&[i32]>,
    ) -> Result<(FireGrad, FireGrad)> {
        shape.check("grad", grad.len())?;
        places.check(shape)?;
        Bias::Fire(self).check(shape, places, ALL)?;
        let (width, heads) = (self.in_weight.len(), self.heads());
        let (mut sums, mut bounds) = (FireGrad::zeros(self), FireGrad::zeros(self));
        let eps = f32::ROUNDOFF;
        for batch in 0..shape.batch {
            for query in 0..shape.queries {
                let query_position = places.query(shape, batch, query);
                let (norm, reach) = (self.norm(query_position), (query_position as f64).max(self.threshold));
                for key in (0..shape.keys).filter(|&key| places.meet(shape, batch, query, key)) {
                    let distance = places.key(shape, batch, key).abs_diff(query_position) as f64;
                    let x = self.log(distance) / norm;
                    let by_c = (self.bend(distance) - x * self.bend(reach)) / norm;
                    let by_c_size = (self.bend(distance) + x * self.bend(reach)) / norm;
                    let before = (query_position as f64) < self.threshold;
                    let by_threshold = if before { x * self.threshold_factor() } else { 0.0 };
                    for head in 0..heads {
                        let value = grad[shape.index(batch, head, query, key)].to_f64();
                        sums.out_bias[head] += value;
                        bounds.out_bias[head] += 40.0 * eps * value.abs();
                        let (mut slope, mut slope_size, mut jump) = (0.0, 0.0, 0.0);
                        for k in 0..width {
                            let (w, b, out) = (self.in_weight[k], self.in_bias[k], self.out_weight[head * width + k]);
                            let ramp = w * x + b;
                            let up = ramp > 0.0;
                            // Whether roundings of x and of the bend may decide.
                            let near = ramp.abs() <= 16.0 * eps * (w * x).abs() + 2.0 * eps * b.abs();
                            let size = if up { 40.0 * eps } else { 0.0 } + if near { 1.0 } else { 0.0 };
                            if up {
                                sums.out_weight[head * width + k] += value * ramp;
                                sums.in_weight[k] += value * out * x;
                                sums.in_bias[k] += value * out;
                                slope += out * w;
                            }
                            slope_size += if up { (out * w).abs() } else { 0.0 };
                            jump += if near { (out * w).abs() } else { 0.0 };
                            if up || near {
                                bounds.out_weight[head * width + k] +=
                                    40.0 * eps * value.abs() * ((w * x).abs() + b.abs());
                            }
                            bounds.in_weight[k] += size * (value * out).abs() * x;
                            bounds.in_bias[k] += size * (value * out).abs();
                        }
                        sums.c += value * slope * by_c;
                        bounds.c += value.abs() * (40.0 * eps * slope_size * by_c_size + jump * by_c.abs());
                        sums.threshold += value * slope * by_threshold;
                        bounds.threshold += value.abs() * (40.0 * eps * slope_size + jump) * by_threshold.abs();
                    }
                }
            }
        }
        Ok((sums, bounds))
    }

    /// `n / (1 + c n)`: the derivative of `ln(1 + c n)` by `c`.
    fn bend(&self, n: f64) -> f64 {
        n / (1.0 + self.c * n)
    }

    /// What `x` is multiplied by in its derivative by the threshold, where the query lies before it.
    fn threshold_factor(&self) -> f64 {
        -self.c / ((1.0 + self.c * self.threshold) * (self.log(self.threshold) + self.eps))
    }

    /// The first and the last of the lines between `breaks`, ascending, on which a ramp is up; none: a last before a first.
    fn ramp(&self, breaks: &[f64], k: usize) -> [usize; 2] {
        let up: Vec<usize> = (0..=breaks.len()).filter(|&line| self.is_up(breaks, line, k)).collect();
        match (up.first(), up.last()) {
            (Some(&first), Some(&last)) => [first, last],
            _ => [1, 0],
        }
    }
}
