//! Biases alone: written as a tensor, and added to logits.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::bias::{Fire, Slopes, Toeplitz};
use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Places, Scalar, T5Bias};

use crate::support::{Case, Operation, compare, values};

/// Which bias.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Alibi,
    T5,
    Fire,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, heads) in [(Kind::Alibi, 32), (Kind::T5, 16), (Kind::Fire, 12)] {
        for (queries, keys) in [(512, 512), (2048, 2048), (1, 8192)] {
            cases.push(case::<bf16>(kind, heads, queries, keys, false));
            cases.push(case::<bf16>(kind, heads, queries, keys, true));
        }
        for keys in (10..=17).map(|n| 1 << n) {
            let name = format!("Add/{kind:?}/keys/bf16/{keys}");
            cases.push(Case { name, ..case::<bf16>(kind, 4, 4, keys, true) });
        }
    }
    cases
}

fn case<T: Scalar>(kind: Kind, heads: usize, queries: usize, keys: usize, add: bool) -> Case {
    let elements = (heads * queries * keys) as u64;
    let written = elements * size_of::<T>() as u64;
    let form = if add { "Add" } else { "Write" };
    let name = format!("{form}/{kind:?}/{}/{heads}x{queries}x{keys}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Added::<T>::new(gpu, kind, Logits::bhqk(1, heads, queries, keys), add, sets)?))
    };
    Case { name, elements, read: if add { written } else { 0 }, written, make: Box::new(make) }
}

/// A bias on the CPU, to compare with.
enum Own {
    Slopes(Slopes),
    Row(Toeplitz),
    Fire(Fire),
}

impl Own {
    fn bias(&self) -> Bias<'_> {
        match self {
            Self::Slopes(slopes) => Bias::Slopes(slopes),
            Self::Row(row) => Bias::Toeplitz(row),
            Self::Fire(fire) => Bias::Fire(fire),
        }
    }
}

struct Added<T> {
    gpu: Gpu,
    own: Own,
    plan: BiasPlan<T>,
    shape: Logits,
    add: bool,
    sets: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Added<T> {
    fn new(gpu: &Gpu, kind: Kind, shape: Logits, add: bool, sets: usize) -> Result<Self> {
        let heads = shape.heads;
        let own = match kind {
            Kind::Alibi => Own::Slopes(Alibi::new(heads).slopes()?),
            Kind::T5 => {
                let spec = T5Bias::new(32, 128, true);
                Own::Row(spec.row(&values::<f32>(1, spec.buckets * heads), heads)?)
            }
            Kind::Fire => {
                let wide = |seed, n: usize| values::<f32>(seed, n).into_iter().map(|x| f64::from(x) / 8.0).collect();
                let (in_weight, in_bias) = (wide(1, 32), wide(2, 32));
                let (out_weight, out_bias) = (wide(3, 32 * heads), wide(4, heads));
                Own::Fire(Fire { in_weight, in_bias, out_weight, out_bias, ..Fire::new() })
            }
        };
        let plan = match &own {
            Own::Fire(fire) => BiasPlan::fire(gpu, fire, shape.keys)?,
            _ => BiasPlan::new(gpu, own.bias())?,
        };
        let (len, stream) = (shape.elements()?, gpu.stream());
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, len));
        let sets = (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { gpu: gpu.clone(), own, plan, shape, add, sets })
    }
}

impl<T: Scalar> Operation for Added<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (x, places) = (self.shape.of_mut(&mut self.sets[set]), Places::bottom_right());
        if self.add { self.plan.add(x, places) } else { self.plan.write(x, places) }
    }

    /// The first row and the last one of every head.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let before = stream.clone_dtoh(&self.sets[0])?;
        self.call(0)?;
        let after = stream.clone_dtoh(&self.sets[0])?;
        let Logits { heads, queries, keys, .. } = self.shape;
        for query in [0, queries - 1] {
            let position = (keys - queries + query) as i64;
            for head in 0..heads {
                let at = self.shape.index(0, head, query, 0);
                let old = |key: usize| if self.add { before[at + key].to_f64() } else { 0.0 };
                let bias = |key: usize| self.own.bias().at(0, head, position, key as i64);
                let want: Vec<f64> = (0..keys).map(|key| old(key) + bias(key)).collect();
                compare(&after[at..at + keys], &want, |key| {
                    let own = self.own.bias().error_bound(0, head, position, key as i64);
                    // The sum is rounded once more in f32.
                    posenc::accuracy::rounded::<T>(want[key], own + f32::ROUNDOFF * (own + want[key].abs()))
                })?;
            }
        }
        Ok(())
    }
}
