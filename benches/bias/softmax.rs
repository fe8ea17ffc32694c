//! The softmax with its bias made on the way: ALiBi (BLOOM, MPT) and T5.

use anyhow::{Context, Result};
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::bias::{Inputs, SoftmaxInputs};
use posenc::{
    Alibi, Bias, BiasPlan, Gpu, Logits, LogitsOperand, Places, Scalar, Slopes, Softmax, SoftmaxPlan, T5Bias, Toeplitz,
};

use crate::support::{Case, Operation, bits, compare, values};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Alibi,
    T5,
}

/// Every case: prefill and decode, 1k to 32k keys.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [Kind::Alibi, Kind::T5] {
        for (heads, queries, keys) in [
            (2, 32, 1024),
            (32, 1, 1024),
            (32, 1, 8192),
            (112, 1, 2048),
            (32, 1024, 1024),
            (32, 2048, 2048),
            (32, 1024, 8192),
            (32, 256, 32768),
        ] {
            cases.push(case::<bf16>(kind, heads, queries, keys));
        }
        // Cost against keys.
        for keys in [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072] {
            let mut keys = case::<bf16>(kind, 4, 4, keys);
            keys.name = format!("softmax/keys-{kind:?}/bf16/{}", keys.elements / 16);
            cases.push(keys);
        }
        cases.push(case::<f32>(kind, 2, 32, 1024));
        cases.push(case::<f32>(kind, 32, 1024, 2048));
    }
    cases
}

fn case<T: Scalar>(kind: Kind, heads: usize, queries: usize, keys: usize) -> Case {
    let elements = (heads * queries * keys) as u64;
    let bytes = 2 * elements * size_of::<T>() as u64;
    let name = format!("softmax/{kind:?}/{}/{heads}x{queries}x{keys}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let shape = Logits::bhqk(1, heads, queries, keys);
        let (softmax, law) = match kind {
            Kind::Alibi => (Softmax::new(0.088_388_35), Law::Slopes(Alibi::new(heads).slopes()?)),
            Kind::T5 => {
                (Softmax::new(1.0), Law::Row(T5Bias::new(32, 128, true).row(&values::<f32>(3, 32 * heads), heads)?))
            }
        };
        let stream = gpu.stream();
        let n = shape.span()?;
        let fill = |set: usize| -> Result<CudaSlice<T>> { Ok(stream.clone_htod(&values::<T>(set as u64, n))?) };
        Ok(Box::new(Fused {
            plan: SoftmaxPlan::new(gpu, &softmax)?,
            bias: BiasPlan::new(gpu, law.bias())?,
            gpu: gpu.clone(),
            law,
            shape,
            logits: (0..sets).map(fill).collect::<Result<Vec<_>>>()?,
            out: (0..sets).map(|_| stream.alloc_zeros(n)).collect::<Result<Vec<_>, _>>()?,
        }))
    };
    Case { name, elements, bytes, make: Box::new(make) }
}

enum Law {
    Slopes(Slopes),
    Row(Toeplitz),
}

impl Law {
    fn bias(&self) -> Bias<'_> {
        match self {
            Self::Slopes(slopes) => Bias::Slopes(slopes),
            Self::Row(row) => Bias::Toeplitz(row),
        }
    }
}

struct Fused<T> {
    plan: SoftmaxPlan<T>,
    bias: BiasPlan<T>,
    gpu: Gpu,
    law: Law,
    shape: Logits,
    logits: Vec<CudaSlice<T>>,
    /// a softmax of a softmax would be of other data: out of place
    out: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Fused<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let logits = LogitsOperand::Copy(&self.logits[set], self.shape, &mut self.out[set], self.shape);
        self.plan.apply(logits, &SoftmaxInputs::new(&self.bias, Places::last()), None)
    }

    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let read = |x: &CudaSlice<T>| self.gpu.stream().clone_dtoh(x);
        let (logits, out) = (read(&self.logits[0])?, read(&self.out[0])?);
        let Logits { queries, keys, .. } = self.shape;
        // The last query of some heads: the one that sits at the last key, where a row of its own sits too.
        for pick in 0..4 {
            let head = bits(8, pick) as usize % self.shape.heads;
            let at = self.shape.index(0, head, queries - 1, 0);
            let row = &logits[at..at + keys];
            // The bias counts heads, so every head is there, each with this row.
            let shape = Logits::bhqk(1, self.shape.heads, 1, keys);
            let all: Vec<T> = row.iter().copied().cycle().take(shape.span()?).collect();
            let inputs =
                Inputs { bias: self.law.bias(), positions: Places::last(), mask: None, sinks: None, gates: None };
            let expected = self.plan.softmax().expect(&all, &shape, &inputs).context("the reference")?;
            let from = head * keys;
            compare(&out[at..at + keys], &expected.want[from..from + keys], |i| expected.bound[from + i])?;
        }
        Ok(())
    }
}
