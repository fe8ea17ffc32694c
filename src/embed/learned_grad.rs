//! Gradients of learned tables and of the norm behind them, in fixed orders of addition.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::{LearnedGradPlan, NormGrad, TableGrad};

use crate::Scalar;
use crate::embed::Learned;

// ----------------------------------------------------------------------------------------------------------------- law

impl Learned {
    /// The largest error of an element of a table's gradient before it is rounded to its type, from the number of
    /// gradients that were added and the sum of their magnitudes, `scale` included: `(count + 4) * 2^-24 * magnitude`.
    pub fn table_grad_error_bound(count: usize, magnitude: f64) -> f64 {
        (count as f64 + 4.0) * f32::ROUNDOFF * magnitude + 4.0 * f32::TINY
    }

    /// The largest errors of one row of the sum's gradient before it is rounded to its type, of first order.
    ///
    /// | argument | meaning |
    /// |---|---|
    /// | `y` | the row before gain and bias |
    /// | `g` | gradient times gain |
    /// | `magnitude`, `sigma` | as in [`Learned::norm_error_bound`] |
    ///
    /// With `e = depth * 2^-24 * (1 + magnitude / sigma)`, `a = mean(|g|)` and `b = mean(|g| (1 + |y|))`, element c is off
    /// by `e * (2 |g_c| + 2 a + 3 (1 + |y_c|) b) / sigma`.
    pub fn sum_grad_error_bound(&self, y: &[f64], g: &[f64], magnitude: f64, sigma: f64) -> Vec<f64> {
        let depth = (self.dim as f64 / 128.0 + 40.0) * f32::ROUNDOFF;
        let e = depth * (1.0 + magnitude / sigma);
        let dim = self.dim as f64;
        let a = g.iter().map(|g| g.abs()).sum::<f64>() / dim;
        let b = g.iter().zip(y).map(|(g, y)| g.abs() * (1.0 + y.abs())).sum::<f64>() / dim;
        g.iter().zip(y).map(|(g, y)| e * (2.0 * g.abs() + 2.0 * a + 3.0 * (1.0 + y.abs()) * b) / sigma).collect()
    }
}
