//! posenc on the CPU beside candle, on the same values, in one process; `compare.py` puts the other peers beside both.
//!
//! `cargo run --release --manifest-path benches/peers/cpu/Cargo.toml [part of a case's name [seconds a case]]`
//!
//! The peer is given tables of cosines and sines and of biases, which posenc computes in the call. Sinusoids are computed by
//! both, or are a table of both. Each result is compared with the reference before it is timed. The figure is the fastest of many
//! rounds: other programs can only add.

mod bias;
mod embed;
mod rope;

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor, WithDType};
use posenc::Scalar;

/// The type of a tensor, here and at the peer.
pub trait Element: Scalar + WithDType {}
impl<T: Scalar + WithDType> Element for T {}

/// Which cases are wanted, and for how long each is run.
pub struct Bench {
    filter: String,
    seconds: f64,
}

impl Bench {
    pub fn wants(&self, case: &str) -> bool {
        case.contains(&self.filter)
    }

    /// One row: what takes part is timed, in turns of a few rounds each, so that all meet the same machine, and for the same time.
    pub fn row(
        &self,
        case: &str,
        mut ours: impl FnMut() -> Result<()>,
        mut theirs: Option<impl FnMut() -> Result<()>>,
    ) -> Result<()> {
        let (mut best, mut their_best) = (f64::INFINITY, f64::INFINITY);
        let (mut spent, mut their_spent) = (0.0, 0.0);
        while spent < self.seconds / 2.0 {
            let start = Instant::now();
            best = best.min(turn(&mut ours)?);
            spent += start.elapsed().as_secs_f64();
            if let Some(theirs) = theirs.as_mut().filter(|_| their_spent < self.seconds / 2.0) {
                let start = Instant::now();
                their_best = their_best.min(turn(theirs)?);
                their_spent += start.elapsed().as_secs_f64();
            }
        }
        let theirs = if theirs.is_some() { format!("{:.2}", their_best * 1e6) } else { "-".into() };
        println!("{case} | {:.2} | {theirs}", best * 1e6);
        Ok(())
    }
}

/// The fastest of some rounds, in seconds.
fn turn(call: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.02 {
        let start = Instant::now();
        call()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Elements that begin at a line of the cache, as every tensor of PyTorch does.
pub struct Values<T> {
    buffer: Vec<T>,
    first: usize,
}

impl<T: Scalar> Values<T> {
    fn of(length: usize, value: impl Fn(usize) -> T) -> Self {
        let mut buffer = vec![T::from_f64(0.0); length + 64];
        let first = buffer.as_ptr().align_offset(64);
        buffer[first..first + length].iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
        buffer.truncate(first + length);
        Self { buffer, first }
    }
}

impl<T: Scalar> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self::of(self.len(), |i| self[i])
    }
}

impl<T> Deref for Values<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.buffer[self.first..]
    }
}

impl<T> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.first..]
    }
}

/// Numbers between -1 and 1, the same on every run.
pub fn values<T: Scalar>(n: usize) -> Values<T> {
    Values::of(n, |i| T::from_f64(((i * 7919) % 1021) as f64 / 512.0 - 1.0))
}

/// A tensor at the peer.
pub fn tensor<T: Element>(values: &[T], shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
}

/// A table that a peer is given, rounded to its type.
pub fn table<T: Element>(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Result<Tensor> {
    let values: Vec<T> =
        (0..rows * columns).map(|i| <T as Scalar>::from_f64(value(i / columns, i % columns))).collect();
    tensor(&values, &[rows, columns])
}

/// The peer's result within a few roundings of its type, for values up to about 1: it computes in that type.
pub fn close<T: Element>(theirs: &Tensor, ours: &[T], roundings: f64) -> Result<()> {
    let theirs = theirs.flatten_all()?.to_vec1::<T>()?;
    ensure!(theirs.len() == ours.len(), "{} and {} elements", theirs.len(), ours.len());
    for (i, (a, b)) in theirs.iter().zip(ours).enumerate() {
        let (a, b) = (Scalar::to_f64(*a), Scalar::to_f64(*b));
        let bound = roundings * T::ROUNDOFF * b.abs().max(1.0);
        ensure!((a - b).abs() <= bound, "element {i}: the peer has {a}, posenc {b}");
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let filter = arguments.next().unwrap_or_default();
    let bench = Bench { filter, seconds: arguments.next().map_or(Ok(0.5), |seconds| seconds.parse())? };
    println!("case | posenc us | candle us");
    rope::run(&bench)?;
    embed::run(&bench)?;
    bias::run(&bench)
}
