//! The gradient of the softmax: back through the probabilities, the softcap and the scale.
//!
//! ```text
//! dz = p * (dp - sum over keys of p * dp)
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::GradOptions;

use crate::attend::softmax::bias;
use crate::attend::{Inputs, Order, Softmax};
use crate::memory::zeros;
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------------- law

impl Softmax {
    /// The derivatives of [`Softmax::logit`] by the logit and by the bias.
    pub fn derivatives(&self, s: f64, bias: f64) -> [f64; 2] {
        let (scale, slope) = (f64::from(self.scale), self.softcap_slope(s, bias));
        let by_bias = match self.order {
            Order::SoftcapThenBias => 1.0,
            Order::BiasThenSoftcap => slope,
            Order::BiasThenScale => slope * scale,
        };
        [slope * scale, by_bias]
    }

    /// The softcap's derivative.
    fn softcap_slope(&self, s: f64, bias: f64) -> f64 {
        self.softcap.map_or(1.0, |cap| {
            let tanh = (self.before_softcap(s, bias) / f64::from(cap)).tanh();
            1.0 - tanh * tanh
        })
    }

    /// The derivative of [`Softmax::logit`] by the scale.
    fn by_scale(&self, s: f64, bias: f64) -> f64 {
        self.softcap_slope(s, bias) * if self.order == Order::BiasThenScale { s + bias } else { s }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of a softmax.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// of the logits, laid out as they are
    pub logits: Vec<f64>,
    /// of the bias at every query and key, laid out as the logits
    pub bias: Vec<f64>,
    /// of the sinks, `[heads]`
    pub sinks: Vec<f64>,
    /// of the scales of heads, `[heads]`; zeros where there are none
    pub scales: Vec<f64>,
}

/// Expected result of a softmax's gradient.
#[derive(Clone, Debug)]
pub struct ExpectedGrad {
    /// of the logits, laid out as they are
    pub logits: Vec<f64>,
    /// the error allowed at each
    pub logits_bound: Vec<f64>,
    /// of the bias, laid out as the logits
    pub bias: Vec<f64>,
    /// the error allowed at each
    pub bias_bound: Vec<f64>,
    /// the sum of probability and gradient of each row, `[batch, heads, queries]`
    pub dots: Vec<f64>,
    /// the error allowed at each
    pub dots_bound: Vec<f64>,
}

impl Softmax {
    /// The gradients of the logits, the bias, the sinks and the scales of heads on the CPU, in f64, from the gradient of the probabilities.
    ///
    /// ```text
    /// dz = p * (dp - sum over keys of p * dp)
    /// dsink = -p(sink) * sum over keys of p * dp
    /// dscales[head] = sum over rows and keys of dz * scale * s * (1 - tanh^2)        s + bias with Order::BiasThenScale
    /// ```
    ///
    /// and `dz` goes back through bias, softcap and scale. The rows of `dz` sum to zero where there is no sink.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `shape` | the logits before the softmax |
    /// | `grad` | `shape` | the gradient of the probabilities |
    /// | `inputs` | | as in the softmax |
    ///
    /// # Errors
    /// If the spec, the shape or an input is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::attend::Inputs;
    /// use posenc::{Logits, Softmax};
    /// // Both probabilities are 1/2, and the scale is a factor of the logits' gradient alone.
    /// let got = Softmax::new(2.0).grad(&[0.0f32; 2], &[1.0, 0.0], &Logits::bhqk(1, 1, 1, 2), &Inputs::default())?;
    /// assert_eq!((got.bias, got.logits), (vec![0.25, -0.25], vec![0.5, -0.5]));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(&self, logits: &[T], grad: &[T], shape: &Logits, inputs: &Inputs<T>) -> Result<Gradient> {
        shape.check("logits", logits.len())?;
        shape.check("grad", grad.len())?;
        self.check_call(shape, inputs)?;
        let [mut logits_grad, mut bias_grad] = [(); 2].map(|()| vec![0.0; logits.len()]);
        let (mut sinks, mut scales) = (zeros("sums by head", shape.heads)?, zeros("sums by head", shape.heads)?);
        for at @ [batch, head, query] in shape.each_row() {
            let row = self.row(logits, shape, inputs, at);
            if row.lse == f64::NEG_INFINITY {
                continue;
            }
            let index = |key: usize| shape.index(batch, head, query, key);
            let seen = || (0..shape.keys).map(|key| (key, row.probability(key))).filter(|&(_, p)| p != 0.0);
            let dot: f64 = seen().map(|(key, p)| p * grad[index(key)].to_f64()).sum();
            let own = self.of_head(inputs, head);
            for (key, p) in seen() {
                let dz = p * (grad[index(key)].to_f64() - dot);
                let (s, bias) = (logits[index(key)].to_f64(), bias(shape, inputs, at, key));
                let [by_logit, by_bias] = own.derivatives(s, bias);
                logits_grad[index(key)] = dz * by_logit;
                bias_grad[index(key)] = dz * by_bias;
                if inputs.scales.is_some() {
                    scales[head] += dz * f64::from(self.scale) * own.by_scale(s, bias);
                }
            }
            if inputs.sinks.is_some() {
                sinks[head] -= (inputs.sink(head) - row.lse).exp() * dot;
            }
        }
        Ok(Gradient { logits: logits_grad, bias: bias_grad, sinks, scales })
    }

    /// The gradient of the sinks on the CPU, in f64, `[heads]`, from what softmax and gradient leave behind.
    ///
    /// ```text
    /// dsink[head] = -sum over batch and queries of exp(sink[head] - lse) * dot
    /// ```
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `sinks` | `[heads]` | as in the softmax |
    /// | `lse` | `[batch, heads, queries]` | log-sum-exp of each row |
    /// | `dots` | `[batch, heads, queries]` | sum of probability and gradient of each row |
    /// | `shape` | | of the logits |
    ///
    /// # Errors
    /// If a length is not the shape's.
    ///
    /// # Example
    /// ```
    /// use posenc::{Logits, Softmax};
    /// // Key and sink have a logit of 0 each: both get a half.
    /// let (lse, dots) = ([2f32.ln()], [0.5]);
    /// let grad = Softmax::new(1.0).sink_grad(&[0.0], &lse, &dots, &Logits::bhqk(1, 1, 1, 1))?;
    /// assert!((grad[0] + 0.25).abs() < 1e-7);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn sink_grad(&self, sinks: &[f32], lse: &[f32], dots: &[f32], shape: &Logits) -> Result<Vec<f64>> {
        self.check()?;
        shape.check_sizes("logits")?;
        let rows = shape.rows()?;
        for (name, got, need) in
            [("sinks", sinks.len(), shape.heads), ("lse", lse.len(), rows), ("dots", dots.len(), rows)]
        {
            if got < need {
                return Err(Error::Length { name, got, need });
            }
        }
        let mut grad = zeros("sums by head", shape.heads)?;
        for (row, [_, head, _]) in shape.each_row().enumerate() {
            let (sink, lse, dot) = (f64::from(sinks[head]), f64::from(lse[row]), f64::from(dots[row]));
            // A row without keys and without a sink has no share of either.
            if lse != f64::NEG_INFINITY {
                grad[head] -= (sink - lse).exp() * dot;
            }
        }
        Ok(grad)
    }

    /// The gradients that a kernel computes, in f64 from the probabilities as they were rounded, and the error allowed at
    /// each element.
    ///
    /// ```text
    /// dz = p * (dp - dot),  |error of dz| <= p * (e + 2^-24 * |dp - dot|) + 2^-24 * |dz|
    /// e = (20 + 3 * keys / 8192) * 2^-24 * sum over keys of |p * dp|
    /// ```
    ///
    /// and a rounding for each factor behind it, `2^-147` at the least: the softcap's slope `1 - tanh^2` is within `20 * 2^-24`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `probabilities` | `shape` | what the softmax gave |
    /// | `grad` | `shape` | the gradient of the probabilities |
    /// | `logits` | `shape` | before the softmax; used with a softcap alone |
    ///
    /// # Errors
    /// If the spec, the shape or an input is refused.
    pub fn expect_grad<T: Scalar>(
        &self,
        probabilities: &[T],
        grad: &[T],
        logits: &[T],
        shape: &Logits,
        inputs: &Inputs<T>,
    ) -> Result<ExpectedGrad> {
        for (name, x) in [("probabilities", probabilities), ("grad", grad), ("logits", logits)] {
            shape.check(name, x.len())?;
        }
        self.check_call(shape, inputs)?;
        let eps = f32::ROUNDOFF;
        let zeros = || vec![0.0; grad.len()];
        let mut out = ExpectedGrad {
            logits: zeros(),
            logits_bound: zeros(),
            bias: zeros(),
            bias_bound: zeros(),
            dots: Vec::new(),
            dots_bound: Vec::new(),
        };
        for at @ [batch, head, query] in shape.each_row() {
            let row = self.row(logits, shape, inputs, at);
            let errors = self.row_errors(logits, shape, inputs, at, &row);
            let own = self.of_head(inputs, head);
            let index = |key: usize| shape.index(batch, head, query, key);
            let p = |key: usize| probabilities[index(key)].to_f64();
            let dp = |key: usize| grad[index(key)].to_f64();
            let seen: Vec<usize> = (0..shape.keys).filter(|&key| p(key) != 0.0 && !row.is_masked(key)).collect();
            let dot: f64 = seen.iter().map(|&key| p(key) * dp(key)).sum();
            let size: f64 = seen.iter().map(|&key| (p(key) * dp(key)).abs()).sum();
            let dot_error = (20.0 + 3.0 * (shape.keys / 8192) as f64) * eps * size;
            out.dots.push(dot);
            out.dots_bound.push(dot_error);
            for key in seen {
                let [by_logit, by_bias] = own.derivatives(logits[index(key)].to_f64(), bias(shape, inputs, at, key));
                let dz = p(key) * (dp(key) - dot);
                let error = p(key) * (dot_error + eps * (dp(key) - dot).abs()) + eps * dz.abs();
                // The slope is a difference from 1 and carries the logit's own error too.
                let slope = self.softcap.map_or(0.0, |cap| 20.0 * eps + 2.0 * errors[key] / f64::from(cap));
                let scale = f64::from(own.scale).abs();
                let bound = |by: f64, most: f64| {
                    let value = (dz * by).abs();
                    // Products below 2^-126 are rounded to multiples of 2^-149.
                    let error = error * by.abs() + dz.abs() * slope * most + 3.0 * eps * value + f64::exp2(-147.0);
                    crate::accuracy::rounded::<T>(dz * by, error)
                };
                let by_bias_most = match self.order {
                    Order::SoftcapThenBias => 0.0,
                    Order::BiasThenSoftcap => 1.0,
                    Order::BiasThenScale => scale,
                };
                out.logits[index(key)] = dz * by_logit;
                out.logits_bound[index(key)] = bound(by_logit, scale);
                out.bias[index(key)] = dz * by_bias;
                out.bias_bound[index(key)] = bound(by_bias, by_bias_most);
            }
        }
        Ok(out)
    }
}
