//! Prefix sums of log gates: what the endpoints of a forgetting attention read.
//!
//! ```text
//! bias(i, j) = B[i] - B[j] = sum over j < s <= i of gate[s]        B[t] = sum over s <= t of gate[s]
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::GateSumsPlan;

use crate::bias::Numbers;
use crate::memory::zeros;
use crate::shape::{Shape, product};
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// What the numbers of the gates are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Gates {
    /// the logarithms themselves, at most 0
    #[default]
    Logs,
    /// `x`, with the gate `ln(sigmoid(x))`: the output of a projection
    Logits,
}

/// Prefix sums of log gates along the tokens of each head, as two floats: for [`Term::endpoints`](crate::bias::Term::endpoints).
///
/// More: [docs](crate::docs::bias#gate-sums).
///
/// ```text
/// B[b, h, t] = sum over s <= t of gate[b, h, s]          out[b, h, t] = (first float, second float)
/// ```
///
/// | field | meaning |
/// |---|---|
/// | `gates` | whether logarithms or logits of the gates are given |
///
/// Sums are integers in units of 2^-64: exact in any order, so that a chunk or a decode step that goes on from a state has the
/// bits of the whole. A gate below -65536, -inf too, counts as -65536.
///
/// Packed sequences need nothing of their own: a difference of two tokens of one sequence holds no other's gates.
///
/// # Source
/// Forgetting Transformer (arXiv 2503.02130, `F_ij` of section 3); Cable and data-dependent ALiBi have the same sum of other
/// gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GateSums {
    /// what is given
    pub gates: Gates,
}

// ----------------------------------------------------------------------------------------------------------------- law

/// The largest size of a gate.
const MOST: f32 = 65536.0;
/// Whole units of a sum with a gate above 0 or NaN.
const BROKEN: u64 = 1 << 62;

/// The size of a sum: whole units, and 2^-64 of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Fixed([u64; 2]);

impl Fixed {
    /// The size of a gate, at most 0.
    fn of(gate: f32) -> Self {
        let size = f64::from((-gate).min(MOST));
        let whole = size as u64;
        Self([whole, ((size - whole as f64) * f64::exp2(64.0)) as u64])
    }

    fn plus(self, Self([whole, part]): Self) -> Self {
        let (part, carry) = self.0[1].overflowing_add(part);
        Self([(self.0[0] + whole + u64::from(carry)).min(BROKEN), part])
    }

    /// Minus the size, as two floats.
    fn split(self) -> [f32; 2] {
        if self.0[0] >= BROKEN {
            return [f32::NAN; 2];
        }
        let [whole, part] = [self.0[0] as f64, self.0[1] as f64 * f64::exp2(-64.0)];
        let first = -(whole + part) as f32;
        [first, -((whole + f64::from(first)) + part) as f32]
    }
}

impl GateSums {
    /// Logarithms of gates are given.
    pub const fn logs() -> Self {
        Self { gates: Gates::Logs }
    }

    /// Logits of gates are given.
    pub const fn logits() -> Self {
        Self { gates: Gates::Logits }
    }

    /// The gate of a number.
    pub fn gate(&self, x: f64) -> f64 {
        match self.gates {
            Gates::Logs => x,
            Gates::Logits => x.min(0.0) - (-x.abs()).exp().ln_1p(),
        }
    }

    /// The derivative of a gate by its number.
    pub fn derivative(&self, x: f64) -> f64 {
        match self.gates {
            Gates::Logs => 1.0,
            Gates::Logits => 1.0 / (1.0 + x.exp()),
        }
    }

    /// The error of both floats' sum: `2^-47 * |sum| + tokens * 2^-64`; of logits `2^-21 * |sum|` more, as a kernel's gate is
    /// within 2^-21 of itself.
    ///
    /// The bias of a query and a key, `(first_i - first_j) + (second_i - second_j)` in f32, then has an error of at most
    ///
    /// ```text
    /// 3 * 2^-24 * |B_i - B_j| + 2^-46 * (|B_i| + |B_j|) + (i - j) * 2^-64
    /// ```
    ///
    /// Of sums up to a million the second term is below 3e-8.
    pub fn error_bound(&self, tokens: usize, sum: f64) -> f64 {
        let gate = if self.gates == Gates::Logits { f64::exp2(-21.0) } else { 0.0 };
        (f64::exp2(-47.0) + gate) * sum.abs() + tokens as f64 * f64::exp2(-64.0)
    }

    /// The error of a gradient: `2^-23 * |grad| + (tokens / 128 + 32) * 2^-53 * size` with the sum over tokens of the sizes of
    /// both ends' gradients; of logits `2^-20 * |grad|` more.
    pub fn grad_error_bound(&self, tokens: usize, size: f64, grad: f64) -> f64 {
        let logits = if self.gates == Gates::Logits { f64::exp2(-20.0) } else { 0.0 };
        (f64::exp2(-23.0) + logits) * grad.abs() + (tokens as f64 / 128.0 + 32.0) * f64::exp2(-53.0) * size + f32::TINY
    }
}

/// Refuses sizes that are not `[batch, heads, tokens, entries]` of the first tensor.
fn check_sizes(name: &str, numbers: &Numbers, gates: &Numbers, entries: usize) -> Result<()> {
    let Numbers { batch, heads, rows, .. } = *gates;
    if (numbers.batch, numbers.heads, numbers.rows, numbers.entries) == (batch, heads, rows, entries) {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{name} are [{}, {}, {}, {}], they must be [{batch}, {heads}, {rows}, {entries}]",
        numbers.batch, numbers.heads, numbers.rows, numbers.entries
    )))
}

// ----------------------------------------------------------------------------------------------------------- reference

impl GateSums {
    /// Writes the sums on the CPU: of logarithms the same bits as the kernel's.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `gates` | `[batch, heads, tokens, 1]` | logarithms or logits of gates |
    /// | `out` | `[batch, heads, tokens, 2]` | written |
    /// | `state` | `[batch, heads, 2]` | what the tokens before sum to, 0 at the start of a sequence; becomes what they and these do |
    ///
    /// # Errors
    /// If a shape or a length is refused, elements of `out` overlap, or a gate is above 0 or NaN. Nothing is written then.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{GateSums, Numbers};
    /// let (gates, mut out) = ([-0.5f32, -0.25, -1.0], [0.0; 6]);
    /// let (shape, pairs) = (Numbers::rows(1, 1, 3, 1), Numbers::rows(1, 1, 3, 2));
    /// GateSums::logs().write((&gates, shape), (&mut out, pairs), None)?;
    /// assert_eq!(out, [-0.5, 0.0, -0.75, 0.0, -1.75, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write(
        &self,
        (gates, shape): (&[f32], Numbers),
        (out, pairs): (&mut [f32], Numbers),
        mut state: Option<&mut [u64]>,
    ) -> Result<()> {
        self.check_gates(gates, &shape)?;
        pairs.check_written("the sums", out.len())?;
        check_sizes("the sums", &pairs, &shape, 2)?;
        let need = product("batch x heads x 2", &[shape.batch, shape.heads, 2])?;
        if let Some(got) = state.as_ref().map(|state| state.len()).filter(|&got| got < need) {
            return Err(Error::Length { name: "state", got, need });
        }
        for (row, [batch, head]) in rows(&shape).enumerate() {
            let own = 2 * row;
            let mut sum = state.as_ref().map_or(Fixed::default(), |state| Fixed([state[own], state[own + 1]]));
            for token in 0..shape.rows {
                let gate = self.gate(f64::from(gates[shape.index(batch, head, token, 0)])) as f32;
                sum = sum.plus(Fixed::of(gate));
                for (entry, float) in sum.split().into_iter().enumerate() {
                    out[pairs.index(batch, head, token, entry)] = float;
                }
            }
            if let Some(state) = &mut state {
                state[own..own + 2].copy_from_slice(&sum.0);
            }
        }
        Ok(())
    }

    /// The gradient of the gates' numbers on the CPU, in f64, `[batch, heads, tokens]`, and the error allowed at each as f32.
    ///
    /// ```text
    /// grad[b, h, s] = derivative(x[b, h, s]) * sum over t >= s of (query_grad[b, h, t] + key_grad[b, h, t])
    /// ```
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `gates` | `[batch, heads, tokens, 1]` | as in [`GateSums::write`] |
    /// | `query_grad` | `[batch, heads, tokens, 1]` | gradient of a token's sum as a query's end: the sum over keys of the bias's |
    /// | `key_grad` | `[batch, heads, tokens, 1]` | as a key's: minus the sum over queries |
    ///
    /// # Errors
    /// If a shape, a length or a gate is refused.
    pub fn grad(
        &self,
        (gates, shape): (&[f32], Numbers),
        query_grad: (&[f32], Numbers),
        key_grad: (&[f32], Numbers),
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        self.check_gates(gates, &shape)?;
        for (name, (grad, numbers)) in [("the queries' gradients", query_grad), ("the keys' gradients", key_grad)] {
            numbers.check(name, grad.len())?;
            check_sizes(name, &numbers, &shape, 1)?;
        }
        let count = product("batch x heads x tokens", &[shape.batch, shape.heads, shape.rows])?;
        let (mut out, mut bound) = (zeros("gradients of gates", count)?, zeros("gradients of gates", count)?);
        for (row, [batch, head]) in rows(&shape).enumerate() {
            let [mut sum, mut size] = [0.0; 2];
            for token in (0..shape.rows).rev() {
                for (grad, numbers) in [query_grad, key_grad] {
                    let grad = f64::from(grad[numbers.index(batch, head, token, 0)]);
                    (sum, size) = (sum + grad, size + grad.abs());
                }
                let slope = self.derivative(f64::from(gates[shape.index(batch, head, token, 0)]));
                let index = row * shape.rows + token;
                out[index] = slope * sum;
                bound[index] = self.grad_error_bound(shape.rows, slope * size, out[index]);
            }
        }
        Ok((out, bound))
    }

    /// Refuses gates above 0 and NaN.
    fn check_gates(&self, gates: &[f32], shape: &Numbers) -> Result<()> {
        shape.check("gates", gates.len())?;
        check_sizes("gates", shape, shape, 1)?;
        for [batch, head] in rows(shape) {
            for token in 0..shape.rows {
                let x = gates[shape.index(batch, head, token, 0)];
                if x.is_nan() || (self.gates == Gates::Logs && x > 0.0) {
                    let most = if self.gates == Gates::Logs { "at most 0" } else { "a number" };
                    return Err(Error::Value(format!(
                        "the gate of sequence {batch}, head {head}, token {token} is {x}, it must be {most}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Sequence and head of every row.
fn rows(shape: &Numbers) -> impl Iterator<Item = [usize; 2]> + use<> {
    // Rows without tokens have nothing to say, and may be without number.
    let heads = if shape.rows == 0 { 0 } else { shape.heads };
    let batch = if heads == 0 { 0 } else { shape.batch };
    (0..batch).flat_map(move |batch| (0..heads).map(move |head| [batch, head]))
}
