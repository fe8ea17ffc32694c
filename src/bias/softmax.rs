//! The softmax that consumes a bias: scale, softcap, bias, mask and sink in one pass over the logits.
//!
//! ```text
//! z = softcap(scale * s) + bias + mask           the order is a choice, see Order
//! p = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))
//! ```

use std::sync::{Mutex, PoisonError};

use bytemuck::Zeroable;
use cudarc::driver::CudaSlice;

use crate::bias::toeplitz::{aligned, alignment, rows, strides};
use crate::bias::work::{HELD, PARTS, Room, Work, held_grad};
use crate::bias::{Bias, BiasPlan, Places, cpu};
use crate::gpu::args::{Args, In, Out, SinkGradArgs, SoftmaxArgs, SoftmaxGradArgs, SoftmaxLaw};
use crate::gpu::{Function, Launch, Read, Write};
use crate::{Error, Gpu, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// In which order scale, softcap and bias act; the mask and the sink always come last.
///
/// | order | `z` before the mask | who |
/// |---|---|---|
/// | `SoftcapThenBias` | `softcap(scale * s) + bias` | flash-attention, BLOOM, MPT, T5, Hugging Face's T5 and Gemma |
/// | `BiasThenSoftcap` | `softcap(scale * s + bias)` | FlashInfer |
/// | `BiasThenScale` | `softcap(scale * (s + bias))` | Falcon; TensorRT-LLM's `scale_alibi_bias` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// `softcap(scale * s) + bias`
    #[default]
    SoftcapThenBias,
    /// `softcap(scale * s + bias)`
    BiasThenSoftcap,
    /// `softcap(scale * (s + bias))`
    BiasThenScale,
}

/// The softmax of attention logits: what to compute, without shape, element type or device.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `scale` | | multiplies the logit; 1 for T5, `1 / sqrt(dim)` elsewhere |
/// | `softcap` | logits | `softcap(x) = cap * tanh(x / cap)`, above 0; `None`: nothing |
/// | `order` | | see [`Order`] |
/// | `left` | positions | a key may lie this far before its query; `None`: any distance |
/// | `right` | positions | a key may lie this far after its query; 0: causal; `None`: any distance |
///
/// Masked are keys outside the window, keys beyond their sequence's length, and those whose `z` is -inf. A query
/// without keys, and one beyond its sequence's length, gets zeros and an `lse` of -inf (of the sink, where there is
/// one); never NaN.
///
/// # Example
/// ```
/// use posenc::{Inputs, Logits, Places, Softmax};
/// let mut logits = [0.0f32, 9.0, 0.0, 0.0];
/// let lse = Softmax::causal(1.0).apply(&mut logits, &Logits::bhqk(1, 1, 2, 2), &Inputs::at(Places::from(0, 0)))?;
/// assert_eq!(logits, [1.0, 0.0, 0.5, 0.5]);
/// assert_eq!(lse, [0.0, 2f32.ln()]);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// multiplies the logit
    pub scale: f32,
    /// the logit's limit
    pub softcap: Option<f32>,
    /// in which order scale, softcap and bias act
    pub order: Order,
    /// how far a key may lie before its query
    pub left: Option<u32>,
    /// how far a key may lie after its query
    pub right: Option<u32>,
}

impl Softmax {
    /// All keys, no softcap.
    pub const fn new(scale: f32) -> Self {
        Self { scale, softcap: None, order: Order::SoftcapThenBias, left: None, right: None }
    }

    /// No keys of the future, no softcap.
    pub const fn causal(scale: f32) -> Self {
        Self { right: Some(0), ..Self::new(scale) }
    }

    /// Refuses a scale that is not finite and a softcap that is not finite and above 0.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::Value(format!("scale is {}, it must be finite", self.scale)));
        }
        if let Some(cap) = self.softcap
            && !(cap.is_finite() && cap > 0.0)
        {
            return Err(Error::Value(format!("softcap is {cap}, it must be finite and above 0")));
        }
        Ok(())
    }

    /// The least and the largest distance inside the window.
    pub(crate) fn window(&self) -> (i64, i64) {
        (self.left.map_or(i64::MIN, |left| -i64::from(left)), self.right.map_or(i64::MAX, i64::from))
    }

    /// Whether a key at this distance lies inside the window.
    pub fn sees(&self, distance: i64) -> bool {
        let (low, high) = self.window();
        (low..=high).contains(&distance)
    }
}

/// What a call adds to its logits.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `bias` | | any bias of this room |
/// | `positions` | | where queries and keys sit, and how many of them there are |
/// | `mask` | `[batch or 1, heads or 1, queries or 1, keys]` | added last; -inf masks |
/// | `gates` | `[batch, heads, queries]` | multiply the bias: WavLM's, `gate_a * (gate_b * const - 1) + 2` |
/// | `sinks` | `[heads]` | a logit without a key, neither scaled nor biased: it takes its share of the sum |
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// any bias of this room
    pub bias: Bias<'a>,
    /// where queries and keys sit
    pub positions: Places<&'a [i32]>,
    /// added last
    pub mask: Option<(&'a [T], Logits)>,
    /// logits without keys
    pub sinks: Option<&'a [f32]>,
    /// multiply the bias
    pub gates: Option<&'a [f32]>,
}

impl<'a, T: Scalar> Inputs<'a, T> {
    /// Nothing but positions.
    pub const fn at(positions: Places<&'a [i32]>) -> Self {
        Self { bias: Bias::None, positions, mask: None, sinks: None, gates: None }
    }

    fn check(&self, shape: &Logits, window: (i64, i64)) -> Result<()> {
        self.positions.check(shape)?;
        self.bias.check(shape, &self.positions, window)?;
        if let Some(gates) = self.gates {
            let need = shape.rows()?;
            if gates.len() < need {
                return Err(Error::Length { name: "gates", got: gates.len(), need });
            }
        }
        if let Some((mask, mask_shape)) = &self.mask {
            check_mask(mask_shape, shape)?;
            mask_shape.check("mask", mask.len())?;
        }
        if let Some(sinks) = self.sinks {
            if sinks.len() != shape.heads {
                return Err(Error::Value(format!("there are {} sinks for {} heads", sinks.len(), shape.heads)));
            }
            if let Some(head) = sinks.iter().position(|sink| sink.is_nan() || *sink == f32::INFINITY) {
                return Err(Error::Value(format!("the sink of head {head} is {}, it must be below inf", sinks[head])));
            }
        }
        Ok(())
    }

    fn mask_at(&self, batch: usize, head: usize, query: usize, key: usize) -> f64 {
        self.mask.map_or(0.0, |(mask, shape)| {
            let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
            let index = shape.index(at(shape.batch, batch), at(shape.heads, head), at(shape.queries, query), key);
            mask[index].to_f64()
        })
    }
}

/// Refuses a mask that does not broadcast to the logits.
pub(crate) fn check_mask(mask: &Logits, shape: &Logits) -> Result<()> {
    let fits = |mask: usize, size: usize| mask == size || mask == 1;
    if !fits(mask.batch, shape.batch)
        || !fits(mask.heads, shape.heads)
        || !fits(mask.queries, shape.queries)
        || mask.keys != shape.keys
    {
        return Err(Error::Value(format!(
            "the mask is [{}, {}, {}, {}] and the logits [{}, {}, {}, {}]: each of the first three must be equal or 1, \
             and the keys equal",
            mask.batch, mask.heads, mask.queries, mask.keys, shape.batch, shape.heads, shape.queries, shape.keys
        )));
    }
    Ok(())
}

// ----------------------------------------------------------------------------------------------------------------- law

/// A logit on its way: `z`, its largest error in f32, and its derivatives by the logit and by the bias.
#[derive(Clone, Copy, Debug)]
struct Step {
    z: f64,
    error: f64,
    by_logit: f64,
    by_bias: f64,
}

impl Softmax {
    /// The logit after scale, softcap and bias, before the mask.
    pub fn logit(&self, s: f64, bias: f64) -> f64 {
        self.step(s, bias, 0.0).z
    }

    fn step(&self, s: f64, bias: f64, bias_error: f64) -> Step {
        let scale = f64::from(self.scale);
        let eps = f32::ROUNDOFF;
        // Value, error, and derivative of the softcap; the kernel's tanh is within 8 roundings.
        let capped = |x: f64, error: f64| match self.softcap {
            None => (x, error, 1.0),
            Some(cap) => {
                let cap = f64::from(cap);
                let tanh = (x / cap).tanh();
                (cap * tanh, error + eps * (3.0 * x.abs() + 8.0 * cap * tanh.abs()), 1.0 - tanh * tanh)
            }
        };
        match self.order {
            Order::SoftcapThenBias => {
                let x = s * scale;
                let (x, error, slope) = capped(x, eps * x.abs());
                let z = x + bias;
                Step { z, error: error + bias_error + eps * z.abs(), by_logit: slope * scale, by_bias: 1.0 }
            }
            Order::BiasThenSoftcap => {
                let x = s * scale;
                let sum = x + bias;
                let (z, error, slope) = capped(sum, eps * (x.abs() + sum.abs()) + bias_error);
                Step { z, error, by_logit: slope * scale, by_bias: slope }
            }
            Order::BiasThenScale => {
                let sum = s + bias;
                let error = (eps * sum.abs() + bias_error) * scale.abs() + eps * (sum * scale).abs();
                let (z, error, slope) = capped(sum * scale, error);
                Step { z, error, by_logit: slope * scale, by_bias: slope * scale }
            }
        }
    }

    /// The largest relative error of a probability in f32, before it is rounded to its type:
    ///
    /// ```text
    /// (1 + e) / (1 - mean(e)) * (1 + (32 + 3 * keys / 8192) * 2^-24) - 1,   e = exp(error + |z - max| * 2^-24) - 1
    /// ```
    ///
    /// `error` is that of the logit `z`: one rounding of each of its steps, and the bias's own. `mean` weighs with the
    /// probabilities. The rest are the exponential (3 roundings), the sum, the reciprocal and two products. Weights
    /// below e^-87.7 of the largest are zero: `2^-120` is added to the bound of each.
    pub fn error_bound(&self, deviation: f64, mean: f64, keys: usize) -> f64 {
        (1.0 + deviation) / (1.0 - mean.min(0.5)) * (1.0 + Self::steps(keys)) - 1.0
    }

    fn steps(keys: usize) -> f64 {
        (32.0 + 3.0 * (keys / 8192) as f64) * f32::ROUNDOFF
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// What a kernel should have written.
#[derive(Clone, Debug)]
pub struct Output {
    /// the true probabilities, laid out as the logits
    pub want: Vec<f64>,
    /// the error allowed at each, rounding to the element type included; 0 where an element must not change
    pub bound: Vec<f64>,
    /// `[batch, heads, queries]`
    pub lse: Vec<f64>,
    /// the error allowed at each
    pub lse_bound: Vec<f64>,
}

/// The gradients of a softmax.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// of the logits, laid out as they are
    pub logits: Vec<f64>,
    /// of the bias at every query and key, laid out as the logits
    pub bias: Vec<f64>,
    /// of the sinks, `[heads]`
    pub sinks: Vec<f64>,
}

/// What a kernel of the gradient should have written.
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
    /// The softmax in place on the CPU: f64 arithmetic, one rounding at the end. Returns the log-sum-exp of each row,
    /// `[batch, heads, queries]`, the sink included.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `shape` | logits, then probabilities |
    /// | `shape` | | sizes and strides of `logits` |
    /// | `inputs` | | bias, positions, mask, sinks |
    ///
    /// Rows are shared out among rayon's threads. The result does not depend on their number.
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-12 of the probability.
    ///
    /// # Errors
    /// If the spec, the shape or an input is refused. Nothing is written then.
    ///
    /// # Source
    /// "Attention Is All You Need" (arXiv 1706.03762), section 3.2.1; softcap: Gemma 2 (arXiv 2408.00118), section 2.
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Inputs, Logits, Places, Softmax};
    /// // Two heads with slopes of 1/16 and 1/256, one query, which sits at the second of two keys.
    /// let slopes = Alibi::new(2).slopes()?;
    /// let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Places::last()) };
    /// let mut p = [0.0f32; 4];
    /// let lse = Softmax::causal(1.0).apply(&mut p, &Logits::bhqk(1, 2, 1, 2), &inputs)?;
    /// let sum = 1.0 + (-1.0f64 / 16.0).exp();
    /// assert_eq!(p[..2], [(1.0 - 1.0 / sum) as f32, (1.0 / sum) as f32]);
    /// assert_eq!(lse[0], sum.ln() as f32);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn apply<T: Scalar>(&self, logits: &mut [T], shape: &Logits, inputs: &Inputs<T>) -> Result<Vec<f32>> {
        shape.check_written("logits", logits.len())?;
        self.check()?;
        inputs.check(shape, self.window())?;
        Ok(cpu::softmax(self, logits, shape, inputs))
    }

    /// One row of [`Softmax::apply`], whatever its positions and logits are; gives its log-sum-exp.
    pub(super) fn apply_row<T: Scalar>(
        &self,
        logits: &mut [T],
        shape: &Logits,
        inputs: &Inputs<T>,
        [batch, head, query]: [usize; 3],
    ) -> f64 {
        let row = self.row(logits, shape, inputs, batch, head, query);
        for (x, step) in logits.iter_mut().zip(&row.steps) {
            *x = T::from_f64(row.probability(step));
        }
        row.lse
    }

    /// The wanted values in f64 and the error allowed at each element, for comparison with a softmax of `logits`.
    ///
    /// # Errors
    /// As [`Softmax::apply`].
    pub fn expect<T: Scalar>(&self, logits: &[T], shape: &Logits, inputs: &Inputs<T>) -> Result<Output> {
        self.check()?;
        shape.check("logits", logits.len())?;
        inputs.check(shape, self.window())?;
        let rows = shape.rows()?;
        let mut output = Output {
            want: logits.iter().map(|x| x.to_f64()).collect(),
            bound: vec![0.0; logits.len()],
            lse: Vec::with_capacity(rows),
            lse_bound: Vec::with_capacity(rows),
        };
        let eps = f32::ROUNDOFF;
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let row = self.row(of_row(logits, shape, batch, head, query), shape, inputs, batch, head, query);
                    let (max, lse) = (row.max, row.lse);
                    let p = |z: f64| if z == f64::NEG_INFINITY { 0.0 } else { (z - lse).exp() };
                    let deviation = |step: &Step| {
                        if step.z == f64::NEG_INFINITY {
                            return 0.0;
                        }
                        (step.error + (step.z - max).abs() * eps).exp_m1()
                    };
                    let mean: f64 = row.steps.iter().map(|step| p(step.z) * deviation(step)).sum();
                    for (key, step) in row.steps.iter().enumerate() {
                        let index = shape.index(batch, head, query, key);
                        let want = p(step.z);
                        output.want[index] = want;
                        let error = want * self.error_bound(deviation(step), mean, shape.keys);
                        let flush = if want == 0.0 { 0.0 } else { f64::exp2(-120.0) };
                        output.bound[index] = if row.masked[key] || !row.any {
                            0.0
                        } else {
                            crate::accuracy::rounded::<T>(want, error + flush)
                        };
                    }
                    output.lse.push(lse);
                    // The logarithm is within 4 roundings of itself, and of the largest logit that is added.
                    let size = if lse.is_finite() { 4.0 * (lse.abs() + max.abs() + 1.0) * eps } else { 0.0 };
                    output.lse_bound.push(2.0 * mean + Self::steps(shape.keys) + size);
                }
            }
        }
        Ok(output)
    }

    /// The gradients of the logits, the bias and the sinks on the CPU, in f64, from the gradient of the probabilities.
    ///
    /// ```text
    /// dz = p * (dp - sum over keys of p * dp)
    /// dsink = -p(sink) * sum over keys of p * dp
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
    /// use posenc::{Inputs, Logits, Places, Softmax};
    /// // Both probabilities are 1/2, and the scale is a factor of the logits' gradient alone.
    /// let inputs = Inputs::at(Places::last());
    /// let got = Softmax::new(2.0).grad(&[0.0f32; 2], &[1.0, 0.0], &Logits::bhqk(1, 1, 1, 2), &inputs)?;
    /// assert_eq!((got.bias, got.logits), (vec![0.25, -0.25], vec![0.5, -0.5]));
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(&self, logits: &[T], grad: &[T], shape: &Logits, inputs: &Inputs<T>) -> Result<Gradient> {
        self.check()?;
        shape.check("logits", logits.len())?;
        shape.check("grad", grad.len())?;
        inputs.check(shape, self.window())?;
        let size = logits.len();
        let mut out = Gradient { logits: vec![0.0; size], bias: vec![0.0; size], sinks: vec![0.0; shape.heads] };
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let row = self.row(of_row(logits, shape, batch, head, query), shape, inputs, batch, head, query);
                    if row.lse == f64::NEG_INFINITY {
                        continue;
                    }
                    let p: Vec<f64> = row.steps.iter().map(|step| (step.z - row.lse).exp()).collect();
                    let dp = |key: usize| grad[shape.index(batch, head, query, key)].to_f64();
                    let seen = |key: &usize| p[*key] != 0.0;
                    let dot: f64 = (0..shape.keys).filter(seen).map(|key| p[key] * dp(key)).sum();
                    for key in (0..shape.keys).filter(seen) {
                        let index = shape.index(batch, head, query, key);
                        let dz = p[key] * (dp(key) - dot);
                        out.logits[index] = dz * row.steps[key].by_logit;
                        out.bias[index] = dz * row.steps[key].by_bias;
                    }
                    if let Some(sinks) = inputs.sinks {
                        out.sinks[head] -= (f64::from(sinks[head]) - row.lse).exp() * dot;
                    }
                }
            }
        }
        Ok(out)
    }

    /// The gradients that a kernel computes, in f64 from the probabilities as they were rounded, and the error allowed at
    /// each element.
    ///
    /// ```text
    /// dz = p * (dp - dot),  |error of dz| <= p * (e + 2^-24 * |dp - dot|) + 2^-24 * |dz|
    /// e = (20 + 3 * keys / 8192) * 2^-24 * sum over keys of |p * dp|
    /// ```
    ///
    /// and a rounding for each factor behind it: the softcap's slope `1 - tanh^2` is within `20 * 2^-24`.
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
        self.check()?;
        for (name, x) in [("probabilities", probabilities), ("grad", grad), ("logits", logits)] {
            shape.check(name, x.len())?;
        }
        inputs.check(shape, self.window())?;
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
        for batch in 0..shape.batch {
            for head in 0..shape.heads {
                for query in 0..shape.queries {
                    let row = self.row(of_row(logits, shape, batch, head, query), shape, inputs, batch, head, query);
                    let at = |key: usize| shape.index(batch, head, query, key);
                    let p = |key: usize| probabilities[at(key)].to_f64();
                    let dp = |key: usize| grad[at(key)].to_f64();
                    let seen: Vec<usize> = (0..shape.keys).filter(|&key| p(key) != 0.0 && !row.masked[key]).collect();
                    let dot: f64 = seen.iter().map(|&key| p(key) * dp(key)).sum();
                    let size: f64 = seen.iter().map(|&key| (p(key) * dp(key)).abs()).sum();
                    let dot_error = (20.0 + 3.0 * (shape.keys / 8192) as f64) * eps * size;
                    out.dots.push(dot);
                    out.dots_bound.push(dot_error);
                    for key in seen {
                        let step = row.steps[key];
                        let dz = p(key) * (dp(key) - dot);
                        let error = p(key) * (dot_error + eps * (dp(key) - dot).abs()) + eps * dz.abs();
                        // The slope is a difference from 1 and carries the logit's own error too.
                        let slope = if self.softcap.is_some() {
                            20.0 * eps + 2.0 * step.error / f64::from(self.softcap.unwrap_or(1.0))
                        } else {
                            0.0
                        };
                        let scale = f64::from(self.scale).abs();
                        let bound = |by: f64, most: f64| {
                            let value = (dz * by).abs();
                            crate::accuracy::rounded::<T>(
                                dz * by,
                                error * by.abs() + dz.abs() * slope * most + 3.0 * eps * value,
                            )
                        };
                        let by_bias_most = match self.order {
                            Order::SoftcapThenBias => 0.0,
                            Order::BiasThenSoftcap => 1.0,
                            Order::BiasThenScale => scale,
                        };
                        out.logits[at(key)] = dz * step.by_logit;
                        out.logits_bound[at(key)] = bound(step.by_logit, scale);
                        out.bias[at(key)] = dz * step.by_bias;
                        out.bias_bound[at(key)] = bound(step.by_bias, by_bias_most);
                    }
                }
            }
        }
        Ok(out)
    }

    /// `logits` are those of the row.
    fn row<T: Scalar>(
        &self,
        logits: &[T],
        shape: &Logits,
        inputs: &Inputs<T>,
        batch: usize,
        head: usize,
        query: usize,
    ) -> Row {
        let positions = &inputs.positions;
        let query_position = positions.query(shape, batch, query);
        let any = positions.has(shape, batch, query);
        let mut masked = vec![false; shape.keys];
        let steps: Vec<Step> = (0..shape.keys)
            .map(|key| {
                let position = positions.key(shape, batch, key);
                if !positions.meet(shape, batch, query, key) || !self.sees(position - query_position) {
                    masked[key] = true;
                    return Step { z: f64::NEG_INFINITY, error: 0.0, by_logit: 0.0, by_bias: 0.0 };
                }
                let gate = inputs
                    .gates
                    .map_or(1.0, |gates| f64::from(gates[(batch * shape.heads + head) * shape.queries + query]));
                let bias = gate * inputs.bias.at(batch, head, query_position, position);
                let rounding = if gate == 1.0 { 0.0 } else { bias.abs() * f32::ROUNDOFF };
                let bias_error = gate.abs() * inputs.bias.error_bound(batch, head, query_position, position) + rounding;
                let s = logits[key].to_f64();
                let mut step = self.step(s, bias, bias_error);
                step.z += inputs.mask_at(batch, head, query, key);
                step.error += f32::ROUNDOFF * step.z.abs();
                if step.z == f64::NEG_INFINITY {
                    masked[key] = true;
                    step.error = 0.0;
                }
                step
            })
            .collect();
        let sink = inputs.sinks.filter(|_| any).map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
        let max = steps.iter().fold(sink, |max, step| max.max(step.z));
        let sum: f64 = steps.iter().map(|step| step.z).chain([sink]).map(|z| (z - max).exp()).sum();
        let lse = if max == f64::NEG_INFINITY { max } else { max + sum.ln() };
        Row { steps, masked, max, lse, any }
    }
}

struct Row {
    steps: Vec<Step>,
    masked: Vec<bool>,
    max: f64,
    lse: f64,
    any: bool,
}

impl Row {
    fn probability(&self, step: &Step) -> f64 {
        if step.z == f64::NEG_INFINITY { 0.0 } else { (step.z - self.lse).exp() }
    }
}

/// The logits of a row; none where there are no keys.
fn of_row<'a, T>(logits: &'a [T], shape: &Logits, batch: usize, head: usize, query: usize) -> &'a [T] {
    let at = shape.index(batch, head, query, 0);
    logits.get(at..at + shape.keys).unwrap_or_default()
}

// -------------------------------------------------------------------------------------------------------------- launch

impl Softmax {
    fn law(&self) -> SoftmaxLaw {
        let limit = |side: Option<u32>| side.and_then(|n| i32::try_from(n).ok()).unwrap_or(i32::MAX);
        let cap = self.softcap.unwrap_or(0.0);
        SoftmaxLaw {
            scale: self.scale,
            cap,
            inverse_cap: if cap == 0.0 { 0.0 } else { 1.0 / cap },
            order: match self.order {
                Order::SoftcapThenBias => 0,
                Order::BiasThenSoftcap => 1,
                Order::BiasThenScale => 2,
            },
            left: limit(self.left),
            right: limit(self.right),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Logits, where they lie and where the probabilities go.
pub enum LogitsOperand<'a, T> {
    /// probabilities take the place of the logits
    InPlace(Write<'a, T>, Logits),
    /// logits are read, probabilities are written
    Copy(Read<'a, T>, Logits, Write<'a, T>, Logits),
}

impl<T: Scalar> LogitsOperand<'_, T> {
    fn shape(&self) -> &Logits {
        match self {
            Self::InPlace(_, shape) | Self::Copy(_, shape, ..) => shape,
        }
    }
}

/// What a call of [`SoftmaxPlan`] takes beside its logits; all on the device.
pub struct SoftmaxInputs<'a, T> {
    /// the bias
    pub bias: &'a BiasPlan<T>,
    /// where queries and keys sit
    pub places: Places<Read<'a, i32>>,
    /// added last, `[batch or 1, heads or 1, queries or 1, keys]`; -inf masks
    pub mask: Option<(Read<'a, T>, Logits)>,
    /// `[heads]`, logits without keys
    pub sinks: Option<Read<'a, f32>>,
    /// `[batch, heads, queries]`, multiply the bias
    pub gates: Option<Read<'a, f32>>,
}

impl<'a, T> SoftmaxInputs<'a, T> {
    /// A bias and positions.
    pub const fn new(bias: &'a BiasPlan<T>, places: Places<Read<'a, i32>>) -> Self {
        Self { bias, places, mask: None, sinks: None, gates: None }
    }
}

/// [`Softmax`] on a [`Gpu`], for one element type.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel, for a decode step against a long
/// cache too: there several blocks share a row and meet once, in a cooperative launch. Calls of one plan must not run at
/// the same time, as they would from two graphs: its blocks meet in memory of the plan.
pub struct SoftmaxPlan<T> {
    gpu: Gpu,
    softmax: Softmax,
    meeting: Mutex<Meeting>,
    apply: Function,
    grad: Function,
    sink_grad: Function,
    room: Room,
    room_grad: Room,
    element: std::marker::PhantomData<T>,
}

/// Where blocks that share a row leave the sums of their chunks, and count who is there.
struct Meeting {
    parts: CudaSlice<f32>,
    counters: CudaSlice<u32>,
}

impl<T: Scalar> SoftmaxPlan<T> {
    /// Loads the kernels, and takes 512 KiB for the sums of shared rows.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, softmax: &Softmax) -> Result<Self> {
        softmax.check()?;
        let load = |file, entry| gpu.function(file, T::NAME, entry);
        let (apply, grad) = (load("bias/softmax", "softmax")?, load("bias/softmax_grad", "grad")?);
        let meeting = Meeting {
            parts: gpu.upload(&vec![0.0f32; 2 * PARTS])?,
            counters: gpu.upload(&vec![0u32; gpu.multiprocessors() as usize])?,
        };
        Ok(Self {
            gpu: gpu.clone(),
            softmax: *softmax,
            meeting: Mutex::new(meeting),
            room: Room::of(gpu, &apply, HELD)?,
            room_grad: Room::of(gpu, &grad, held_grad::<T>())?,
            apply,
            grad,
            sink_grad: load("bias/softmax_grad", "sink_grad")?,
            element: std::marker::PhantomData,
        })
    }

    /// One kernel; `args` takes what [`Work`] says of parts and counters.
    fn launch<A: Args>(
        &self,
        function: &Function,
        file: &'static str,
        entry: &'static str,
        work: &Work,
        shared: u32,
        args: impl FnOnce(Out, Out) -> A,
    ) -> Result<()> {
        let gpu = &self.gpu;
        let (grid, block) = ([work.blocks, 1, 1], [work.threads, 1, 1]);
        if work.share == 1 {
            let args = args(Out::NULL, Out::NULL);
            return gpu.launch_with(function, &Launch { file, entry, grid, block, args }, shared);
        }
        let mut meeting = self.meeting.lock().unwrap_or_else(PoisonError::into_inner);
        let Meeting { parts, counters } = &mut *meeting;
        let parts = gpu.write("parts", parts, 2 * PARTS)?;
        let counters = gpu.write("counters", counters, gpu.multiprocessors() as usize)?;
        let args = args(parts.address, counters.address);
        gpu.launch_together(function, &Launch { file, entry, grid, block, args }, shared)
    }

    /// The spec.
    pub fn softmax(&self) -> &Softmax {
        &self.softmax
    }

    /// The softmax of every row, `p = exp(z - lse)` with `z = softcap(scale * s) + bias + mask` in the spec's order.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `[batch, heads, queries, keys]` | in place or copied |
    /// | `inputs` | | bias, positions, mask, sinks, gates |
    /// | `lse` | `[batch, heads, queries]` | written: the log-sum-exp, sink included |
    ///
    /// Each logit that is not masked is read once and each probability written once where a row fits into a block's
    /// shared memory, 4 bytes a key in steps of 8192 keys: 57344 keys on compute capability 9.0 and 10.0, 40960 on 8.0,
    /// 24576 on 8.6, 8.9 and 12.0, 8192 on 7.5. Where there are fewer rows than multiprocessors, all blocks that the device
    /// has at once share them, and the limit is theirs together: a row of 7 million keys on an H100. Longer rows are read
    /// twice.
    ///
    /// # Accuracy
    /// [`Softmax::error_bound`] and the rounding to `T`. The same bits on every device and for every alignment, number of
    /// rows, and way of reading. Bit for bit equal are: a shard of heads or of sequences, a chunk of queries, and a row
    /// whose tensor has more keys than it sees, be it by a longer cache, a causal mask, a window or a length. Rows of
    /// which each device holds a part of the keys are put together by their `lse`, and are then equal within the bound,
    /// not bit for bit.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with an output, if shapes do not go
    /// together or written elements overlap. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, LogitsOperand, Places, Softmax, SoftmaxInputs, SoftmaxPlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let slopes = Alibi::new(32).slopes()?;
    /// let bias = BiasPlan::<half::bf16>::new(&gpu, Bias::Slopes(&slopes))?;
    /// let plan = SoftmaxPlan::new(&gpu, &Softmax::causal(1.0 / 128f32.sqrt()))?;
    /// let mut logits = gpu.stream().alloc_zeros(32 * 7 * 7)?;
    /// let logits = LogitsOperand::InPlace(&mut logits, Logits::bhqk(1, 32, 7, 7));
    /// plan.apply(logits, &SoftmaxInputs::new(&bias, Places::last()), None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply(
        &self,
        mut logits: LogitsOperand<'_, T>,
        inputs: &SoftmaxInputs<'_, T>,
        lse: Option<Write<'_, f32>>,
    ) -> Result<()> {
        let shape = *logits.shape();
        match &logits {
            LogitsOperand::InPlace(x, shape) => shape.check_written("logits", x.len())?,
            LogitsOperand::Copy(x, shape, out, out_shape) => {
                shape.check("logits", x.len())?;
                out_shape.check_written("probabilities", out.len())?;
                check_same("logits", shape, "probabilities", out_shape)?;
            }
        }
        let bias = inputs.bias.hold(&self.gpu, &shape, &inputs.places, inputs.gates, self.softmax.window())?;
        if let Some((mask, mask_shape)) = &inputs.mask {
            check_mask(mask_shape, &shape)?;
            mask_shape.check("mask", mask.len())?;
        }
        if shape.batch == 0 || shape.queries == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let (x, y, out_shape) = match &mut logits {
            LogitsOperand::InPlace(x, shape) => (None, gpu.write("logits", &mut **x, shape.span()?)?, *shape),
            LogitsOperand::Copy(x, shape, out, out_shape) => {
                let x = gpu.read("logits", *x, shape.span()?)?;
                let out = gpu.write("probabilities", &mut **out, out_shape.span()?)?;
                out.apart_from("probabilities", &x, "logits")?;
                (Some(x), out, *out_shape)
            }
        };
        let mask = match &inputs.mask {
            Some((mask, shape)) => Some((gpu.read("mask", *mask, shape.span()?)?, *shape)),
            None => None,
        };
        let sinks = inputs.sinks.map(|sinks| gpu.read("sinks", sinks, shape.heads)).transpose()?;
        let lse = lse.map(|lse| gpu.write("lse", lse, shape.rows()?)).transpose()?;
        if let Some((mask, _)) = &mask {
            y.apart_from("logits", mask, "mask")?;
        }

        let rows = rows(&shape)?;
        let x_address = x.as_ref().map_or(y.address.as_in(), |x| x.address);
        let element = size_of::<T>();
        let wide = aligned(&shape, alignment(x_address.address()), element)
            && aligned(&out_shape, alignment(y.address.address()), element);
        let mask_wide =
            mask.as_ref().is_none_or(|(mask, shape)| aligned(shape, alignment(mask.address.address()), element));
        let bytes = |shape: &Logits| (shape.offset * element) as u64;
        let work = Work::of(rows, shape.keys, &self.room);
        let shared = work.shared(work.held.max(1), HELD);
        self.launch(&self.apply, "bias/softmax", "softmax", &work, shared, |parts, counters| SoftmaxArgs {
            bias: bias.args,
            law: self.softmax.law(),
            x: x_address.offset(bytes(&shape)),
            y: y.address.offset(bytes(&out_shape)),
            mask: mask.as_ref().map_or(In::NULL, |(mask, shape)| mask.address.offset(bytes(shape))),
            sinks: sinks.as_ref().map_or(In::NULL, |sinks| sinks.address),
            lse: lse.as_ref().map_or(Out::NULL, |lse| lse.address),
            parts,
            counters,
            x_strides: strides(&shape),
            y_strides: strides(&out_shape),
            mask_strides: mask.as_ref().map_or([0; 3], |(_, shape)| shared_strides(shape)),
            rows,
            chunks: work.chunks,
            aligned: if wide { 1 + u32::from(mask_wide) } else { 0 },
            held: work.held,
            lanes_log: work.lanes.ilog2(),
            packs: work.packs,
            share: work.share,
            ..SoftmaxArgs::zeroed()
        })
    }

    /// The gradients of the logits, and of the bias if it is wanted, in one kernel.
    ///
    /// `dz = p * (dp - sum over keys of p * dp)`, and back through softcap and scale in the spec's order. Probability and
    /// gradient are read once where a row fits into a block's shared memory, as in [`SoftmaxPlan::apply`] with two elements
    /// a key instead of 4 bytes; longer rows are read twice.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `probabilities` | `[batch, heads, queries, keys]` | what [`SoftmaxPlan::apply`] gave |
    /// | `grad` | the same, in place or copied | the gradient of the probabilities; becomes that of the logits |
    /// | `inputs` | | as in the softmax; mask and sinks play no part |
    /// | `outputs` | | what else is wanted, and the logits where a softcap needs them |
    ///
    /// # Accuracy
    /// [`Softmax::expect_grad`] states it. The same bits on every device and for every alignment.
    ///
    /// # Errors
    /// As [`SoftmaxPlan::apply`]; if a softcap lacks the logits.
    ///
    /// # Example
    /// [`SoftmaxPlan::sink_grad`] has it.
    pub fn grad(
        &self,
        probabilities: (Read<'_, T>, Logits),
        mut grad: LogitsOperand<'_, T>,
        inputs: &SoftmaxInputs<'_, T>,
        outputs: GradOutputs<'_, T>,
    ) -> Result<()> {
        let shape = *grad.shape();
        let (p, p_shape) = probabilities;
        p_shape.check("probabilities", p.len())?;
        check_same("probabilities", &p_shape, "grad", &shape)?;
        let out_shape = match &grad {
            LogitsOperand::InPlace(x, shape) => {
                shape.check_written("grad", x.len())?;
                *shape
            }
            LogitsOperand::Copy(x, shape, out, out_shape) => {
                shape.check("grad", x.len())?;
                out_shape.check_written("logits_grad", out.len())?;
                check_same("grad", shape, "logits_grad", out_shape)?;
                *out_shape
            }
        };
        let capped = self.softmax.softcap.is_some();
        if let Some((logits, logits_shape)) = &outputs.logits {
            logits_shape.check("logits", logits.len())?;
            check_same("logits", logits_shape, "grad", &shape)?;
        }
        if capped && outputs.logits.is_none() {
            return Err(Error::Value("the gradient of a softcap needs the logits before the softmax".into()));
        }
        if let Some(bias) = &outputs.bias {
            out_shape.check_written("bias_grad", bias.len())?;
        }
        let held = inputs.bias.hold(&self.gpu, &shape, &inputs.places, inputs.gates, self.softmax.window())?;
        if shape.batch == 0 || shape.queries == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let p = gpu.read("probabilities", p, p_shape.span()?)?;
        let (dp, dx) = match &mut grad {
            LogitsOperand::InPlace(x, shape) => (None, gpu.write("grad", &mut **x, shape.span()?)?),
            LogitsOperand::Copy(x, shape, out, out_shape) => {
                let x = gpu.read("grad", *x, shape.span()?)?;
                let out = gpu.write("logits_grad", &mut **out, out_shape.span()?)?;
                out.apart_from("logits_grad", &x, "grad")?;
                (Some(x), out)
            }
        };
        dx.apart_from("grad", &p, "probabilities")?;
        let logits = match &outputs.logits {
            Some((logits, shape)) if capped => Some((gpu.read("logits", *logits, shape.span()?)?, *shape)),
            _ => None,
        };
        let dbias = outputs.bias.map(|bias| gpu.write("bias_grad", bias, out_shape.span()?)).transpose()?;
        let dots = outputs.dots.map(|dots| gpu.write("dots", dots, shape.rows()?)).transpose()?;
        if let Some(dbias) = &dbias {
            dbias.apart_from("bias_grad", &p, "probabilities")?;
            if let Some(dp) = &dp {
                dbias.apart_from("bias_grad", dp, "grad")?;
            }
        }

        let rows = rows(&shape)?;
        let element = size_of::<T>();
        let bytes = |shape: &Logits| (shape.offset * element) as u64;
        let dp = dp.as_ref().map_or(dx.address.as_in(), |dp| dp.address);
        let wide = [
            Some((p.address.address(), p_shape)),
            Some((dp.address(), shape)),
            Some((dx.address.address(), out_shape)),
            dbias.as_ref().map(|dbias| (dbias.address.address(), out_shape)),
            logits.as_ref().map(|(logits, shape)| (logits.address.address(), *shape)),
        ];
        let wide = wide.iter().flatten().all(|(address, shape)| aligned(shape, alignment(*address), element));
        let work = Work::of(rows, shape.keys, &self.room_grad);
        let shared = work.shared(work.held, held_grad::<T>());
        self.launch(&self.grad, "bias/softmax_grad", "grad", &work, shared, |parts, counters| SoftmaxGradArgs {
            bias: held.args,
            law: self.softmax.law(),
            p: p.address.offset(bytes(&p_shape)),
            dp: dp.offset(bytes(&shape)),
            x: logits.as_ref().map_or(In::NULL, |(logits, shape)| logits.address.offset(bytes(shape))),
            dx: dx.address.offset(bytes(&out_shape)),
            dbias: dbias.as_ref().map_or(Out::NULL, |dbias| dbias.address.offset(bytes(&out_shape))),
            dots: dots.as_ref().map_or(Out::NULL, |dots| dots.address),
            p_strides: strides(&p_shape),
            dp_strides: strides(&shape),
            x_strides: logits.as_ref().map_or([0; 3], |(_, shape)| strides(shape)),
            dx_strides: strides(&out_shape),
            parts,
            counters,
            rows,
            chunks: work.chunks,
            aligned: u32::from(wide),
            held: work.held,
            lanes_log: work.lanes.ilog2(),
            packs: work.packs,
            share: work.share,
            ..SoftmaxGradArgs::zeroed()
        })
    }

    /// The gradient of the sinks, in one kernel: `-sum over rows of exp(sink - lse) * dot`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `sinks` | `[heads]` | as in the softmax |
    /// | `lse` | `[batch, heads, queries]` | from [`SoftmaxPlan::apply`] |
    /// | `dots` | `[batch, heads, queries]` | from [`SoftmaxPlan::grad`] |
    /// | `shape` | | the logits' |
    /// | `grad` | `[heads]` | written |
    ///
    /// # Accuracy
    /// `(8 + |sink - lse|) * 2^-24` of the sum of the sizes of its terms, and the errors of `lse` and `dots`. The same
    /// bits on every device.
    ///
    /// # Errors
    /// If a buffer is too short or belongs to another context.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Bias, BiasPlan, Gpu, GradOutputs, Logits, LogitsOperand, Places, Softmax, SoftmaxInputs, SoftmaxPlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0))?;
    /// let (bias, shape) = (BiasPlan::new(&gpu, Bias::None)?, Logits::bhqk(1, 8, 7, 7));
    /// let inputs = SoftmaxInputs::new(&bias, Places::last());
    /// let stream = gpu.stream();
    /// let (sinks, mut p) = (stream.alloc_zeros(8)?, stream.alloc_zeros(8 * 7 * 7)?);
    /// let (mut lse, mut dots) = (stream.alloc_zeros(8 * 7)?, stream.alloc_zeros(8 * 7)?);
    /// let with_sinks = SoftmaxInputs { sinks: Some(&sinks), ..inputs };
    /// plan.apply(LogitsOperand::InPlace(&mut p, shape), &with_sinks, Some(&mut lse))?;
    /// let (mut grad, mut sinks_grad) = (stream.alloc_zeros(8 * 7 * 7)?, stream.alloc_zeros(8)?);
    /// let outputs = GradOutputs { dots: Some(&mut dots), ..GradOutputs::default() };
    /// plan.grad((&p, shape), LogitsOperand::InPlace(&mut grad, shape), &with_sinks, outputs)?;
    /// plan.sink_grad(&sinks, &lse, &dots, &shape, &mut sinks_grad)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sink_grad(
        &self,
        sinks: Read<'_, f32>,
        lse: Read<'_, f32>,
        dots: Read<'_, f32>,
        shape: &Logits,
        grad: Write<'_, f32>,
    ) -> Result<()> {
        let gpu = &self.gpu;
        let rows = rows(shape)?;
        let sinks = gpu.read("sinks", sinks, shape.heads)?;
        let lse = gpu.read("lse", lse, rows as usize)?;
        let dots = gpu.read("dots", dots, rows as usize)?;
        let grad = gpu.write("sinks_grad", grad, shape.heads)?;
        grad.apart_from("sinks_grad", &sinks, "sinks")?;
        let size = |what: &str, n: usize| u32::try_from(n).map_err(|_| Error::Overflow(format!("{n} {what}")));
        let args = SinkGradArgs {
            sinks: sinks.address,
            lse: lse.address,
            dots: dots.address,
            grad: grad.address,
            batch: size("sequences", shape.batch)?,
            heads: size("heads", shape.heads)?,
            queries: size("queries", shape.queries)?,
            ..SinkGradArgs::zeroed()
        };
        let (grid, block) = ([args.heads, 1, 1], [256, 1, 1]);
        gpu.launch(&self.sink_grad, &Launch { file: "bias/softmax_grad", entry: "sink_grad", grid, block, args })
    }
}

/// What [`SoftmaxPlan::grad`] gives beside the gradient of the logits, and the logits that a softcap needs.
pub struct GradOutputs<'a, T> {
    /// before the softmax; needed with a softcap alone
    pub logits: Option<(Read<'a, T>, Logits)>,
    /// written: the gradient of the bias at every query and key, laid out as that of the logits
    pub bias: Option<Write<'a, T>>,
    /// written: the sum of probability and gradient of each row, `[batch, heads, queries]`
    pub dots: Option<Write<'a, f32>>,
}

impl<T> Default for GradOutputs<'_, T> {
    fn default() -> Self {
        Self { logits: None, bias: None, dots: None }
    }
}

/// Strides that stand still where a size is 1.
fn shared_strides(shape: &Logits) -> [i64; 3] {
    let dims = shape.dims();
    [0, 1, 2].map(|i| if dims[i].0 == 1 { 0 } else { dims[i].1 as i64 })
}

/// Refuses tensors of different sizes.
fn check_same(name: &str, shape: &Logits, other_name: &str, other: &Logits) -> Result<()> {
    let sizes = |shape: &Logits| [shape.batch, shape.heads, shape.queries, shape.keys];
    if sizes(shape) == sizes(other) {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} has the sizes {:?} and {other_name} {:?} (batch, heads, queries, keys), they must be equal",
        sizes(shape),
        sizes(other)
    )))
}
