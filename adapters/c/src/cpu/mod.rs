//! The calls of the header on host memory: what the crate computes on the CPU, from and into tensors of any strides.
#![allow(
    clippy::extra_unused_type_parameters,
    reason = "each call is asked for an element type, a few have the same for all"
)]

mod attend;
mod bias;
mod embed;
mod prologue;
mod rotate;

use posenc::embed::Tokens;
use posenc::{Logits, Scalar};

pub(crate) use attend::{HostMerge, HostTableGrad};
pub(crate) use bias::{Form, HostBias, HostDistanceGrad, fire_grad_len};
pub(crate) use rotate::{HostRope, HostRopeGrad};

use crate::Failure;

/// Too little of something, in the crate's sentence.
fn at_least(name: &'static str, got: usize, need: usize) -> Result<(), Failure> {
    if got < need { Err(posenc::Error::Length { name, got, need }.into()) } else { Ok(()) }
}

/// Refuses no numbers, and more than a plan on a device has.
fn few(what: &str, sizes: &[usize]) -> Result<(), Failure> {
    let n = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    if n.is_some_and(|n| (1..=1 << 30).contains(&n)) {
        return Ok(());
    }
    let sizes = sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    Err(posenc::Error::Value(format!("there are {sizes} {what}, there must be 1 to 2^30")).into())
}

/// Rounds a result into its place, or adds it to what is there.
fn put<T: Scalar>(place: &mut T, value: f64, add: bool) {
    *place = T::from_f64(if add { place.to_f64() + value } else { value });
}

/// Where each row of a tensor begins, in the order of the rows. Rows without elements begin nowhere: no check has seen their
/// strides.
trait Rows: Copy {
    fn starts(self) -> impl Iterator<Item = usize>;
    /// Elements of a row.
    fn row(self) -> usize;

    /// The tensor's elements one after another.
    fn gathered<T: Scalar>(self, x: &[T]) -> Vec<T> {
        self.starts().flat_map(|at| x[at..at + self.row()].iter().copied()).collect()
    }

    /// Elements one after another, put where the tensor has them.
    fn scatter<T: Scalar>(self, values: &[T], x: &mut [T]) {
        for (at, values) in self.starts().zip(values.chunks_exact(self.row().max(1))) {
            x[at..at + self.row()].copy_from_slice(values);
        }
    }
}

impl Rows for Tokens {
    fn starts(self) -> impl Iterator<Item = usize> {
        (0..if self.tokens == 0 || self.dim == 0 { 0 } else { self.batch })
            .flat_map(move |b| (0..self.tokens).map(move |t| self.index(b, t, 0)))
    }

    fn row(self) -> usize {
        self.dim
    }
}

impl Rows for Logits {
    fn starts(self) -> impl Iterator<Item = usize> {
        let batch = if self.heads == 0 || self.queries == 0 || self.keys == 0 { 0 } else { self.batch };
        (0..batch).flat_map(move |b| {
            (0..self.heads).flat_map(move |h| (0..self.queries).map(move |query| self.index(b, h, query, 0)))
        })
    }

    fn row(self) -> usize {
        self.keys
    }
}
