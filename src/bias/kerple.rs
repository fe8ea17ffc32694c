//! KERPLE: a kernel of the distance with two learned numbers per head.
//!
//! ```text
//! log:    bias(head, distance) = -p * ln(1 + a * |distance|)
//! power:  bias(head, distance) = -a * |distance|^p
//! ```

use crate::bias::{DistanceGrad, Toeplitz};
use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// The kernel of the distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum KerpleKind {
    /// `-p * ln(1 + a * |distance|)`
    Log,
    /// `-a * |distance|^p`
    Power,
}

/// Kernelized relative positional embedding.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#kerple).
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `kind` | | which kernel |
/// | `p` | `[heads]` | the factor of the logarithm (`r1` of the paper), or the power (`r2`), at most 2 |
/// | `a` | `[heads]` | what multiplies the distance (`r2`), or the power (`r1`) |
///
/// # Source
/// KERPLE (arXiv 2205.09921), section 4, equations 6 and 7. Its authors keep both numbers at 0.01 or more while they
/// train; this crate takes any positive ones.
///
/// # Example
/// ```
/// use posenc::bias::{Kerple, KerpleKind};
/// let kerple = Kerple { kind: KerpleKind::Power, p: vec![0.5], a: vec![2.0] };
/// assert_eq!(kerple.bias(0, -9), -6.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Kerple {
    /// which kernel
    pub kind: KerpleKind,
    /// `[heads]`
    pub p: Vec<f64>,
    /// `[heads]`
    pub a: Vec<f64>,
}

impl Kerple {
    /// Refuses no heads, parameters of different counts, ones that are not finite and above 0, and a power above 2, for
    /// which the kernel is not conditionally positive definite.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        if self.p.is_empty() || self.p.len() != self.a.len() {
            return Err(Error::Value(format!(
                "KERPLE has {} p and {} a, there must be one of both for each of at least 1 head",
                self.p.len(),
                self.a.len()
            )));
        }
        for (name, values) in [("p", &self.p), ("a", &self.a)] {
            for (head, &value) in values.iter().enumerate() {
                if !(value.is_finite() && value > 0.0) {
                    return Err(Error::Value(format!(
                        "{name} of head {head} is {value}, it must be finite and above 0"
                    )));
                }
                if self.kind == KerpleKind::Power && name == "p" && value > 2.0 {
                    return Err(Error::Value(format!("p of head {head} is {value}, a power is at most 2")));
                }
            }
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Kerple {
    /// The bias of `head` at `distance`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn bias(&self, head: usize, distance: i64) -> f64 {
        let (n, p, a) = (distance.unsigned_abs() as f64, self.p[head], self.a[head]);
        match self.kind {
            KerpleKind::Log => -p * (a * n).ln_1p(),
            KerpleKind::Power => -a * n.powf(p),
        }
    }

    /// The derivatives of the bias by `p` and `a`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn derivatives(&self, head: usize, distance: i64) -> [f64; 2] {
        let (n, p, a) = (distance.unsigned_abs() as f64, self.p[head], self.a[head]);
        match self.kind {
            KerpleKind::Log => [-(a * n).ln_1p(), -p * n / (1.0 + a * n)],
            // n^p * ln(n) tends to 0 with n.
            KerpleKind::Power if n == 0.0 => [0.0, 0.0],
            KerpleKind::Power => [-a * n.powf(p) * n.ln(), -n.powf(p)],
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradients of [`Kerple`], `[heads]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct KerpleGrad {
    /// of `p`
    pub p: Vec<f64>,
    /// of `a`
    pub a: Vec<f64>,
}

impl Kerple {
    /// The bias of a range of distances: it must hold every distance of a call.
    ///
    /// # Errors
    /// If the spec or the range is refused.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{Kerple, KerpleKind};
    /// let kerple = Kerple { kind: KerpleKind::Power, p: vec![1.0], a: vec![0.5] };
    /// assert_eq!(kerple.row(-2..=0)?.values, [-1.0, -0.5, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn row(&self, distances: std::ops::RangeInclusive<i64>) -> Result<Toeplitz> {
        self.check()?;
        Toeplitz::from_law(self.p.len(), distances, |head, distance| self.bias(head, distance))
    }

    /// The gradients of `p` and `a` from the gradient of the bias summed by distance.
    ///
    /// # Errors
    /// If the spec is refused, or `grad` is of another number of heads.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{DistanceGrad, Kerple, KerpleKind};
    /// // -a |distance| at distance 2: its derivative by a is -2.
    /// let kerple = Kerple { kind: KerpleKind::Power, p: vec![1.0], a: vec![0.5] };
    /// let got = kerple.grad(&DistanceGrad { heads: 1, first: -2, values: vec![0.25] })?;
    /// assert_eq!(got.a, [-0.5]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad(&self, grad: &DistanceGrad) -> Result<KerpleGrad> {
        self.check()?;
        if grad.heads != self.p.len() {
            return Err(Error::Value(format!("the gradient has {} heads, KERPLE has {}", grad.heads, self.p.len())));
        }
        let mut sums = KerpleGrad { p: vec![0.0; grad.heads], a: vec![0.0; grad.heads] };
        for head in 0..grad.heads {
            for (distance, value) in grad.of(head) {
                let [by_p, by_a] = self.derivatives(head, distance);
                sums.p[head] += value * by_p;
                sums.a[head] += value * by_a;
            }
        }
        Ok(sums)
    }
}
