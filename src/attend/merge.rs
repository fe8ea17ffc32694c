//! Attention over two sets of keys put together by their log-sum-exps: split decoding, cascades, rings of devices.
//!
//! ```text
//! lse = ln(exp(lse_a) + exp(lse_b))
//! out = exp(lse_a - lse) a + exp(lse_b - lse) b
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::{MergeGrad, MergePlan};

use crate::accuracy::{Expected, rounded};
use crate::bias::Numbers;
use crate::memory::zeros;
use crate::shape::{Shape, product};
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Attention of queries over some of their keys.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `out` | `[batch, tokens, heads, dim]` | probabilities times values |
/// | `lse` | f32 `[batch, heads, tokens, 1]`, any strides | natural logarithm of the sum of exponentials; -inf: no keys, and `out` is not looked at |
///
/// On the CPU each is a slice with its shape, on the device a view.
#[derive(Clone, Copy, Debug)]
pub struct State<X, L> {
    /// probabilities times values
    pub out: X,
    /// log-sum-exp
    pub lse: L,
}

/// A [`State`] on the CPU.
pub type HostState<'a, T> = State<(&'a [T], Heads), (&'a [f32], Numbers)>;

/// Refuses log-sum-exps that are not `[batch, heads, tokens, 1]`.
fn check_lse(name: &str, lse: &Numbers, heads: &Heads) -> Result<()> {
    if [lse.batch, lse.heads, lse.rows, lse.entries] == [heads.batch, heads.heads, heads.tokens, 1] {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} is [{}, {}, {}, {}], it must be [{}, {}, {}, 1]",
        lse.batch, lse.heads, lse.rows, lse.entries, heads.batch, heads.heads, heads.tokens
    )))
}

/// Refuses states that do not go together; gives the rows of both, `batch x heads x tokens`.
fn check_parts<T: Scalar>(a: &HostState<'_, T>, b: &HostState<'_, T>) -> Result<usize> {
    let shape = &a.out.1;
    shape.check_same("a", &b.out.1, "b")?;
    for (names, part) in [(["a", "a_lse"], a), (["b", "b_lse"], b)] {
        part.out.1.check(names[0], part.out.0.len())?;
        check_lse(names[1], &part.lse.1, shape)?;
        part.lse.1.check(names[1], part.lse.0.len())?;
    }
    product("batch x heads x tokens", &[shape.batch, shape.heads, shape.tokens])
}

// ----------------------------------------------------------------------------------------------------------------- law

/// The two weights of a row, their errors on a device, and the log-sum-exp.
struct Weights {
    of: [f64; 2],
    errors: [f64; 2],
    lse: f64,
    lse_error: f64,
}

impl Weights {
    fn new(a: f32, b: f32) -> Self {
        let (a, b) = (f64::from(a), f64::from(b));
        let max = a.max(b);
        if a.is_nan() || b.is_nan() || max == f64::INFINITY {
            return Self { of: [f64::NAN; 2], errors: [0.0; 2], lse: f64::NAN, lse_error: 0.0 };
        }
        if max == f64::NEG_INFINITY {
            return Self { of: [0.0; 2], errors: [0.0; 2], lse: max, lse_error: 0.0 };
        }
        // The smaller one over the larger.
        let apart = (a - b).abs();
        let small = (-apart).exp();
        let eps = f32::ROUNDOFF;
        let relative = if small == 0.0 { 0.0 } else { apart * eps } + 1.02e-7;
        let [large_weight, small_weight] = [1.0 / (1.0 + small), small / (1.0 + small)];
        // Below e^-87.7 a weight is 0.
        let flush = if apart > 87.0 { f64::exp2(-126.0) } else { 0.0 };
        let errors = [
            large_weight * (small * relative + 3.0 * eps),
            small_weight * (relative + small * relative + 4.0 * eps) + flush,
        ];
        let (of, errors) = if a >= b {
            ([large_weight, small_weight], errors)
        } else {
            ([small_weight, large_weight], [errors[1], errors[0]])
        };
        let log = small.ln_1p();
        let lse_error = small * relative + eps + 1.3e-7 * log + (max.abs() + log) * 2.0 * eps + flush;
        Self { of, errors, lse: max + log, lse_error }
    }
}

/// One element times a weight; what has no weight may be anything.
fn weighed(weight: f64, x: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * x }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// What [`merge_states`] gives in f64, with the device's error bounds.
#[derive(Debug)]
pub struct ExpectedMerge {
    /// of each element of the buffer of `a`
    pub out: Expected,
    /// `[batch, heads, tokens]`
    pub lse: Expected,
}

/// What the gradient of [`merge_states`] is in f64, with the device's error bounds: elements as in the buffers of `a` and `b`,
/// log-sum-exps `[batch, heads, tokens]`.
#[derive(Debug)]
pub struct ExpectedMergeGrad {
    /// of `a` and of `b`
    pub out: [Expected; 2],
    /// of their log-sum-exps
    pub lse: [Expected; 2],
}

/// Goes through the rows of checked states: index of the row in `[batch, heads, tokens]`, the three coordinates, the weights.
fn each_row<T: Scalar>(a: &HostState<'_, T>, b: &HostState<'_, T>, mut row: impl FnMut(usize, [usize; 3], &Weights)) {
    let shape = a.out.1;
    for batch in 0..if shape.is_empty() { 0 } else { shape.batch } {
        for head in 0..shape.heads {
            for token in 0..shape.tokens {
                let lse = |part: &HostState<'_, T>| part.lse.0[part.lse.1.index(batch, head, token, 0)];
                let index = (batch * shape.heads + head) * shape.tokens + token;
                row(index, [batch, token, head], &Weights::new(lse(a), lse(b)));
            }
        }
    }
}

/// Puts two states together on the CPU: the attention over both sets of keys.
///
/// | argument | shape | meaning |
/// |---|---|---|
/// | `a`, `b` | [`State`] | slices with their shapes |
/// | `out` | `out_shape`, the sizes of `a` | written |
///
/// Returns the log-sum-exps, `[batch, heads, tokens]`.
///
/// # Accuracy
/// Half an ulp of `T`; log-sum-exps half an ulp of f32.
///
/// # Errors
/// If a buffer is too short, or sizes differ. Nothing is written then.
///
/// # Source
/// Online softmax: Milakov and Gimelshein 2018 (arXiv 1805.02867), section 3; FlashInfer's `merge_state`.
///
/// # Example
/// ```
/// use posenc::attend::{State, merge_states};
/// use posenc::bias::Numbers;
/// use posenc::Heads;
///
/// let (heads, rows) = (Heads::thd(1, 1, 2), Numbers::rows(1, 1, 1, 1));
/// // One key of weight 1 with the value [4, 0], and three with the value [0, 4].
/// let a = State { out: (&[4.0f32, 0.0][..], heads), lse: (&[0.0][..], rows) };
/// let b = State { out: (&[0.0f32, 4.0][..], heads), lse: (&[3f32.ln()][..], rows) };
/// let mut out = [0.0; 2];
/// let lse = merge_states(a, b, &mut out, &heads)?;
/// assert!((out[0] - 1.0).abs() < 1e-6 && (out[1] - 3.0).abs() < 1e-6);
/// assert!((lse[0] - 4f32.ln()).abs() < 1e-6);
/// # Ok::<(), posenc::Error>(())
/// ```
pub fn merge_states<T: Scalar>(
    a: HostState<'_, T>,
    b: HostState<'_, T>,
    out: &mut [T],
    out_shape: &Heads,
) -> Result<Vec<f32>> {
    a.out.1.check_same("a", out_shape, "out")?;
    out_shape.check_written("out", out.len())?;
    check_parts(&a, &b)?;
    let mut lse = Vec::new();
    each_row(&a, &b, |_, [batch, token, head], weights| {
        for channel in 0..out_shape.dim {
            let [x, y] = [&a, &b].map(|part| part.out.0[part.out.1.index(batch, token, head, channel)].to_f64());
            let value = weighed(weights.of[0], x) + weighed(weights.of[1], y);
            out[out_shape.index(batch, token, head, channel)] = T::from_f64(value);
        }
        lse.push(weights.lse as f32);
    });
    Ok(lse)
}

/// The values of [`merge_states`] in f64 and the errors allowed to a device: of a weight `w` beside a larger one
/// `w (|lse_a - lse_b| 2^-24 + 3.5e-7)`, of the result both weights' errors and two roundings.
///
/// # Errors
/// As [`merge_states`].
pub fn merge_expect<T: Scalar>(a: HostState<'_, T>, b: HostState<'_, T>) -> Result<ExpectedMerge> {
    let (shape, eps) = (a.out.1, f32::ROUNDOFF);
    let rows = check_parts(&a, &b)?;
    let [mut want, mut bound] = [zeros("values", a.out.0.len())?, zeros("bounds", a.out.0.len())?];
    let [mut lse, mut lse_bound] = [zeros("values", rows)?, zeros("bounds", rows)?];
    each_row(&a, &b, |row, [batch, token, head], weights| {
        for channel in 0..shape.dim {
            let at = shape.index(batch, token, head, channel);
            let values = [&a, &b].map(|part| part.out.0[part.out.1.index(batch, token, head, channel)].to_f64());
            let terms = [0, 1].map(|i| weighed(weights.of[i], values[i]));
            let errors = [0, 1].map(|i| weighed(weights.errors[i], values[i].abs()) + 2.0 * eps * terms[i].abs());
            want[at] = terms[0] + terms[1];
            bound[at] = rounded::<T>(want[at], errors[0] + errors[1] + f32::TINY);
        }
        (lse[row], lse_bound[row]) = (weights.lse, weights.lse_error);
    });
    Ok(ExpectedMerge { out: Expected { want, bound }, lse: Expected { want: lse, bound: lse_bound } })
}

/// The gradient of [`merge_states`] in f64 and the errors allowed to a device.
///
/// | argument | shape | meaning |
/// |---|---|---|
/// | `a`, `b` | [`State`] | as in [`merge_states`] |
/// | `grad` | the sizes of `a` | gradient of the result |
/// | `lse_grad` | `[batch, heads, tokens]` | gradient of its log-sum-exp; `None`: 0 |
///
/// ```text
/// a_grad = weight_a grad                            s = sum over channels of grad (a - b)
/// a_lse_grad = weight_a (weight_b s + lse_grad)     b_lse_grad = weight_b (lse_grad - weight_a s)
/// ```
///
/// # Errors
/// As [`merge_states`].
pub fn merge_grad_expect<T: Scalar>(
    a: HostState<'_, T>,
    b: HostState<'_, T>,
    (grad, grad_shape): (&[T], Heads),
    lse_grad: Option<&[f32]>,
) -> Result<ExpectedMergeGrad> {
    let (shape, eps) = (a.out.1, f32::ROUNDOFF);
    shape.check_same("a", &grad_shape, "grad")?;
    grad_shape.check("grad", grad.len())?;
    let rows = check_parts(&a, &b)?;
    if let Some(lse_grad) = lse_grad
        && lse_grad.len() < rows
    {
        return Err(Error::Length { name: "lse_grad", got: lse_grad.len(), need: rows });
    }
    let blank = |n: usize| Ok::<_, Error>(Expected { want: zeros("values", n)?, bound: zeros("bounds", n)? });
    let mut out = [blank(a.out.0.len())?, blank(b.out.0.len())?];
    let mut lse = [blank(rows)?, blank(rows)?];
    // Additions of a lane, and across lanes.
    let chain = shape.dim.div_ceil(16) as f64 + 12.0;
    each_row(&a, &b, |row, [batch, token, head], weights| {
        let (mut sum, mut size) = (0.0, 0.0);
        for channel in 0..shape.dim {
            let g = grad[grad_shape.index(batch, token, head, channel)].to_f64();
            let values = [&a, &b].map(|part| part.out.0[part.out.1.index(batch, token, head, channel)].to_f64());
            if weights.of.iter().all(|&weight| weight != 0.0) {
                sum += g * (values[0] - values[1]);
                size += (g * values[0]).abs() + (g * values[1]).abs();
            }
            for (i, part) in [&a, &b].into_iter().enumerate() {
                let at = part.out.1.index(batch, token, head, channel);
                let want = weighed(weights.of[i], g);
                let error = weighed(weights.errors[i], g.abs()) + eps * want.abs() + f32::TINY;
                (out[i].want[at], out[i].bound[at]) = (want, rounded::<T>(want, error));
            }
        }
        let lse_grad = lse_grad.map_or(0.0, |grad| f64::from(grad[row]));
        for (i, sign) in [1.0, -1.0].into_iter().enumerate() {
            let (own, other) = (weights.of[i], weights.of[1 - i]);
            let inner = sign * weighed(other, sum) + lse_grad;
            lse[i].want[row] = weighed(own, inner);
            let error =
                weighed(other, size) * chain * eps + weights.errors[1 - i] * sum.abs() + 2.0 * eps * inner.abs();
            lse[i].bound[row] = weighed(own, error) + weights.errors[i] * inner.abs() + f32::TINY;
        }
    });
    Ok(ExpectedMergeGrad { out, lse })
}
