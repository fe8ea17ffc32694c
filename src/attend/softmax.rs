//! The softmax of attention logits: scale, softcap, bias, mask and sink in one pass.
//!
//! ```text
//! z = softcap(scale * s) + bias + mask           the order is a choice, see Order
//! p = exp(z - lse),  lse = ln(sum over keys of exp(z) + exp(sink))
//! ```

#[cfg(feature = "cuda")]
pub(super) mod plan;

#[cfg(feature = "cuda")]
pub use plan::SoftmaxPlan;

#[cfg(feature = "cpu")]
use crate::attend::cpu;
use crate::attend::inputs::Inputs;
use crate::bias::Pair;
#[cfg(not(feature = "cpu"))]
use crate::memory::collected;
use crate::memory::reserved;
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Order of scale, softcap and bias; mask and sink always come last. `scale` is the spec's, times the head's own where the call
/// brings [`Inputs::scales`].
///
/// | order | `z` before the mask | who |
/// |---|---|---|
/// | `SoftcapThenBias` | `softcap(scale * s) + bias` | flash-attention, BLOOM, MPT, T5, Hugging Face's T5 and Gemma |
/// | `BiasThenSoftcap` | `softcap(scale * s + bias)` | FlashInfer |
/// | `BiasThenScale` | `softcap(scale * (s + bias))` | Falcon; TensorRT-LLM's `scale_alibi_bias` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
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
/// Formulas, sources and disagreements: [docs](crate::docs::attend#softmax).
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `scale` | | multiplies the logit; 1 for T5 and with [`Inputs::scales`], `1 / sqrt(dim)` elsewhere |
/// | `softcap` | logits | `softcap(x) = cap * tanh(x / cap)`, above 0; `None`: nothing |
/// | `order` | | see [`Order`] |
/// | `left` | positions | a key may lie this far before its query; `None`: any distance |
/// | `right` | positions | a key may lie this far after its query; 0: causal; `None`: any distance |
///
/// Masked are keys outside the window, keys beyond their sequence's length, and those whose `z` is -inf. A query
/// without keys, and one beyond its sequence's length, gets zeros and an `lse` of -inf (of the sink, where there is
/// one); never NaN.
///
/// Each step of `z` must fit into f32, and `|z| < 2^127`. Beyond `f32::MAX / log2(e)`, which is 2.36e38, on the CPU as in every
/// kernel:
///
/// | `z` | result |
/// |---|---|
/// | -inf, or a key that is masked, whatever its logit holds | the key's probability is 0, in every row |
/// | finite and below -2.36e38 | counts as -2.36e38: a row of nothing else is uniform |
/// | above 2.36e38, inf or NaN | every key of the row that is not masked is NaN, and so is its `lse` |
///
/// # Example
/// ```
/// use posenc::attend::Inputs;
/// use posenc::{Logits, Places, Softmax};
/// let mut logits = [0.0f32, 9.0, 0.0, 0.0];
/// let inputs = Inputs::at(Places::counted(0, 0));
/// let lse = Softmax::causal(1.0).apply(&mut logits, &Logits::bhqk(1, 1, 2, 2), &inputs)?;
/// assert_eq!(logits, [1.0, 0.0, 0.5, 0.5]);
/// assert_eq!(lse, [0.0, 2f32.ln()]);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Softmax {
    /// multiplies the logit
    pub scale: f32,
    /// the logit's limit
    pub softcap: Option<f32>,
    /// order of scale, softcap and bias
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

    /// Refuses what [`Softmax::check`] does, and inputs that do not fit the logits.
    pub(super) fn check_call<T: Scalar>(&self, shape: &Logits, inputs: &Inputs<T>) -> Result<()> {
        self.check()?;
        inputs.check(shape, self.window())?;
        inputs.check_scales(shape, self.scale)
    }

    /// The spec of one head: its scale times the head's own, rounded to f32 as in a kernel.
    pub(super) fn of_head<T: Scalar>(&self, inputs: &Inputs<T>, head: usize) -> Self {
        Self { scale: inputs.scales.map_or(self.scale, |scales| self.scale * scales[head]), ..*self }
    }

    /// The least and the largest distance inside the window.
    pub(super) fn window(&self) -> (i64, i64) {
        (self.left.map_or(i64::MIN, |left| -i64::from(left)), self.right.map_or(i64::MAX, i64::from))
    }

    /// True if a key at this distance lies inside the window.
    pub fn sees(&self, distance: i64) -> bool {
        let (low, high) = self.window();
        (low..=high).contains(&distance)
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Softmax {
    /// The logit after scale, softcap and bias, before the mask.
    pub fn logit(&self, s: f64, bias: f64) -> f64 {
        let x = self.before_softcap(s, bias);
        let x = self.softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        if self.order == Order::SoftcapThenBias { x + bias } else { x }
    }

    /// What the softcap bends.
    pub(super) fn before_softcap(&self, s: f64, bias: f64) -> f64 {
        let scale = f64::from(self.scale);
        match self.order {
            Order::SoftcapThenBias => s * scale,
            Order::BiasThenSoftcap => s * scale + bias,
            Order::BiasThenScale => (s + bias) * scale,
        }
    }

    /// The largest error of [`Softmax::logit`] in f32, from a bias that is off by `bias_error`: one rounding of each step. What
    /// brings log2(e) in (the scale, the softcap, or a bias that is added last) has 1.3 of them more, and the kernel's tanh 8.
    pub(super) fn logit_error(&self, s: f64, bias: f64, bias_error: f64) -> f64 {
        let (scale, eps) = (f64::from(self.scale), f32::ROUNDOFF);
        let x = self.before_softcap(s, bias);
        let z = self.logit(s, bias);
        let capped = |error: f64| match self.softcap.map(f64::from) {
            None => error + 1.3 * eps * x.abs(),
            Some(cap) => error + eps * (3.0 * x.abs() + 9.3 * cap * (x / cap).tanh().abs()),
        };
        match self.order {
            Order::SoftcapThenBias => capped(eps * x.abs()) + bias_error + eps * (1.3 * bias.abs() + z.abs()),
            Order::BiasThenSoftcap => {
                let last = if self.softcap.is_none() { 1.3 * eps * bias.abs() } else { 0.0 };
                capped(eps * (2.3 * (s * scale).abs() + x.abs()) + bias_error + last)
            }
            Order::BiasThenScale => capped((eps * (s + bias).abs() + bias_error) * scale.abs() + eps * x.abs()),
        }
    }

    /// The largest relative error of a probability in f32, before it is rounded to its type:
    ///
    /// ```text
    /// (1 + e) / (1 - mean(e)) * (1 + (32 + 3 * keys / 8192) * 2^-24) - 1,   e = exp(error) - 1
    /// ```
    ///
    /// `error` is that of the logit `z`, which is made in base 2: one rounding of each of its steps, 1.3 for log2(e) in scale,
    /// softcap, mask and bias, and the bias's own. A slope times a distance `d` is off by `2^-24 (3 |slope d| + 7 |slope|)`. The
    /// largest is subtracted without a rounding. `mean` weighs with the probabilities. The rest are the exponential (3
    /// roundings), the sum, the reciprocal and two products. Weights below 2^-126 of the largest are between 0 and that, and
    /// 0 below 2^-128: `2^-120` is added to the bound of each.
    pub fn error_bound(&self, deviation: f64, mean: f64, keys: usize) -> f64 {
        (1.0 + deviation) / (1.0 - mean.min(0.5)) * (1.0 + Self::steps(keys)) - 1.0
    }

    fn steps(keys: usize) -> f64 {
        (32.0 + 3.0 * (keys / 8192) as f64) * f32::ROUNDOFF
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// Expected result of a softmax.
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

impl Softmax {
    /// The softmax in place on the CPU: f64 arithmetic, one rounding at the end. Returns the log-sum-exp of each row,
    /// `[batch, heads, queries]`, the sink included.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `shape` | logits, then probabilities |
    /// | `shape` | | sizes and strides of `logits` |
    /// | `inputs` | | bias, positions, mask, sinks, gates, scales |
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
    /// use posenc::attend::Inputs;
    /// use posenc::{Alibi, Bias, Logits, Softmax};
    /// // Two heads with slopes of 1/16 and 1/256, one query, which sits at the second of two keys.
    /// let slopes = Alibi::new(2).slopes()?;
    /// let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::default() };
    /// let mut p = [0.0f32; 4];
    /// let lse = Softmax::causal(1.0).apply(&mut p, &Logits::bhqk(1, 2, 1, 2), &inputs)?;
    /// let sum = 1.0 + (-1.0f64 / 16.0).exp();
    /// assert_eq!(p[..2], [(1.0 - 1.0 / sum) as f32, (1.0 / sum) as f32]);
    /// assert_eq!(lse[0], sum.ln() as f32);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn apply<T: Scalar>(&self, logits: &mut [T], shape: &Logits, inputs: &Inputs<T>) -> Result<Vec<f32>> {
        shape.check_written("logits", logits.len())?;
        self.check_call(shape, inputs)?;
        #[cfg(feature = "cpu")]
        return cpu::softmax(self, logits, shape, inputs);
        #[cfg(not(feature = "cpu"))]
        self.apply_plainly(logits, shape, inputs)
    }

    /// [`Softmax::apply`] of checked arguments, one row after another.
    #[cfg(not(feature = "cpu"))]
    fn apply_plainly<T: Scalar>(&self, logits: &mut [T], shape: &Logits, inputs: &Inputs<T>) -> Result<Vec<f32>> {
        let row = |at: [usize; 3]| {
            let row = self.row(logits, shape, inputs, at);
            for key in 0..shape.keys {
                logits[shape.index(at[0], at[1], at[2], key)] = T::from_f64(row.probability(key));
            }
            row.lse as f32
        };
        collected("rows", shape.rows()?, shape.each_row().map(row))
    }

    /// The wanted values in f64 and the error allowed at each element, for comparison with a softmax of `logits`.
    ///
    /// # Errors
    /// As [`Softmax::apply`].
    pub fn expect<T: Scalar>(&self, logits: &[T], shape: &Logits, inputs: &Inputs<T>) -> Result<Output> {
        shape.check("logits", logits.len())?;
        self.check_call(shape, inputs)?;
        let mut output = Output {
            want: logits.iter().map(|x| x.to_f64()).collect(),
            bound: vec![0.0; logits.len()],
            lse: reserved("rows", shape.rows()?)?,
            lse_bound: reserved("rows", shape.rows()?)?,
        };
        let eps = f32::ROUNDOFF;
        for at @ [batch, head, query] in shape.each_row() {
            let row = self.row(logits, shape, inputs, at);
            let errors = self.row_errors(logits, shape, inputs, at, &row);
            let deviation = |key: usize| {
                if row.is_masked(key) { 0.0 } else { errors[key].exp_m1() }
            };
            let mean: f64 = (0..shape.keys).map(|key| row.probability(key) * deviation(key)).sum();
            for key in 0..shape.keys {
                let (index, want) = (shape.index(batch, head, query, key), row.probability(key));
                output.want[index] = want;
                let error = want * self.error_bound(deviation(key), mean, shape.keys);
                let flush = if want == 0.0 { 0.0 } else { f64::exp2(-120.0) };
                if !row.is_masked(key) {
                    output.bound[index] = crate::accuracy::rounded::<T>(want, error + flush);
                }
            }
            output.lse.push(row.lse);
            // The logarithm is within 4 roundings of itself, and of the largest logit that is added.
            let size = if row.lse.is_finite() { 4.0 * (row.lse.abs() + row.max.abs() + 1.0) * eps } else { 0.0 };
            output.lse_bound.push(2.0 * mean + Self::steps(shape.keys) + size);
        }
        Ok(output)
    }

    /// The row of sequence, head and query `at`.
    pub(super) fn row<T: Scalar>(&self, x: &[T], shape: &Logits, inputs: &Inputs<T>, at: [usize; 3]) -> Row {
        let [batch, head, query] = at;
        let own = self.of_head(inputs, head);
        let (places, mask) = (&inputs.places, inputs.mask_of(at));
        let position = places.query(shape, batch, query);
        let z = |key: usize| {
            let distance = places.key(shape, batch, key) - position;
            if !places.meet(shape, batch, query, key) || !self.sees(distance) {
                return f64::NEG_INFINITY;
            }
            let z = own.logit(x[shape.index(batch, head, query, key)].to_f64(), bias(shape, inputs, at, key));
            as_in_f32(masked(z, mask.map_or(0.0, |(mask, first)| mask[first + key].to_f64())))
        };
        let z: Vec<f64> = (0..shape.keys).map(z).collect();
        let sink = if places.has(shape, batch, query) { inputs.sink(head) } else { f64::NEG_INFINITY };
        let sink = as_in_f32(sink);
        let max = z.iter().fold(sink, |max, z| max.max(*z));
        let sum: f64 = z.iter().chain([&sink]).map(|z| (z - max).exp()).sum();
        let lse = if max == f64::NEG_INFINITY { max } else { max + sum.ln() };
        Row { z, max, sum, lse }
    }

    /// The largest error of each `z` of a row in f32.
    pub(super) fn row_errors<T: Scalar>(
        &self,
        x: &[T],
        shape: &Logits,
        inputs: &Inputs<T>,
        at: [usize; 3],
        row: &Row,
    ) -> Vec<f64> {
        let [batch, head, query] = at;
        let (own, gate, mask) = (self.of_head(inputs, head), inputs.gate(shape, at), inputs.mask_of(at));
        let error = |key: usize| {
            if row.is_masked(key) {
                return 0.0;
            }
            let bias = bias(shape, inputs, at, key);
            let pair = Pair::of(shape, &inputs.places, at, key);
            let rounding = if gate == 1.0 { 0.0 } else { bias.abs() * f32::ROUNDOFF };
            let of_bias = inputs.bias.error_of(shape, &pair) + inputs.bias.error_of_pack(&pair);
            let bias_error = gate.abs() * of_bias + rounding;
            let s = x[shape.index(batch, head, query, key)].to_f64();
            // A mask has log2(e) and a sum of its own.
            let mask = mask.map_or(0.0, |(mask, first)| 1.3 * mask[first + key].to_f64().abs() + row.z[key].abs());
            own.logit_error(s, bias, bias_error) + f32::ROUNDOFF * mask
        };
        (0..shape.keys).map(error).collect()
    }
}

/// The largest size of a `z`: in base 2 it is [`f32::MAX`].
pub(super) const LARGEST: f64 = f32::MAX as f64 / std::f64::consts::LOG2_E;

/// A logit where f32 has no number for it, as a kernel has it: inf above; below, the least that is not masked.
#[inline(always)]
pub(super) fn as_in_f32(z: f64) -> f64 {
    match z {
        _ if z > LARGEST => f64::INFINITY,
        _ if z < -LARGEST && z != f64::NEG_INFINITY => -LARGEST,
        _ => z,
    }
}

/// A logit and its mask: -inf masks a key whatever its logit holds.
#[inline(always)]
pub(super) fn masked(z: f64, mask: f64) -> f64 {
    if mask == f64::NEG_INFINITY { mask } else { z + mask }
}

/// The bias of a key, times the row's gate.
pub(super) fn bias<T: Scalar>(shape: &Logits, inputs: &Inputs<T>, at: [usize; 3], key: usize) -> f64 {
    inputs.gate(shape, at) * inputs.bias.of(shape, &Pair::of(shape, &inputs.places, at, key))
}

/// A row of logits on the way to probabilities.
pub(super) struct Row {
    /// -inf is masked
    pub(super) z: Vec<f64>,
    /// the largest of them and of the sink
    max: f64,
    /// of the exponentials of their distances from it
    sum: f64,
    pub(super) lse: f64,
}

impl Row {
    pub(super) fn is_masked(&self, key: usize) -> bool {
        self.z[key] == f64::NEG_INFINITY
    }

    pub(super) fn probability(&self, key: usize) -> f64 {
        // Not by `lse`, which loses the sum beside a large `max`.
        if self.is_masked(key) { 0.0 } else { (self.z[key] - self.max).exp() / self.sum }
    }
}
