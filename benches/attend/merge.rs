//! Attention outputs put together by their log-sum-exps: split decoding and a ring of devices.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::attend::{MergePlan, State, merge_expect};
use posenc::bias::Numbers;
use posenc::{Gpu, Heads};

use crate::support::{Case, Operation, compare, values};

/// Every case: heads of Llama-3-8B, running states in place.
pub fn cases() -> Vec<Case> {
    let of = |tokens: usize| {
        let (heads, rows) = (Heads::thd(tokens, 32, 128), Numbers::rows(1, 32, tokens, 1));
        let elements = (tokens * 32 * 128) as u64;
        let lse = (tokens * 32 * 4) as u64;
        Case {
            name: format!("merge/llama-3-8b/bf16/{tokens}"),
            elements,
            read: 2 * (2 * elements + lse),
            written: 2 * elements + lse,
            make: Box::new(move |gpu, sets| Ok(Box::new(Merge::new(gpu, heads, rows, sets)?) as Box<dyn Operation>)),
        }
    };
    [1, 64, 4096].map(of).into()
}

struct Merge {
    gpu: Gpu,
    plan: MergePlan<bf16>,
    heads: Heads,
    rows: Numbers,
    other: (CudaSlice<bf16>, CudaSlice<f32>),
    sets: Vec<(CudaSlice<bf16>, CudaSlice<f32>)>,
}

impl Merge {
    fn new(gpu: &Gpu, heads: Heads, rows: Numbers, sets: usize) -> Result<Self> {
        let (n, count) = (heads.span()?, rows.span()?);
        let state = |seed: u64| -> Result<_> {
            let stream = gpu.stream();
            Ok((stream.clone_htod(&values::<bf16>(seed, n))?, stream.clone_htod(&values::<f32>(seed + 1, count))?))
        };
        let sets = (0..sets as u64).map(|set| state(2 * set)).collect::<Result<_>>()?;
        Ok(Self { gpu: gpu.clone(), plan: MergePlan::new(gpu)?, heads, rows, other: state(1000)?, sets })
    }
}

impl Operation for Merge {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (out, lse) = &mut self.sets[set];
        let running = State { out: self.heads.of_mut(out).into(), lse: self.rows.of_mut(lse).into() };
        self.plan.merge(running, State { out: self.heads.of(&self.other.0), lse: self.rows.of(&self.other.1) })
    }

    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let read = |(out, lse): &(CudaSlice<bf16>, CudaSlice<f32>)| -> Result<_> {
            Ok((stream.clone_dtoh(out)?, stream.clone_dtoh(lse)?))
        };
        let ((a, a_lse), (b, b_lse)) = (read(&self.sets[0])?, read(&self.other)?);
        self.call(0)?;
        let expected = merge_expect(
            State { out: (&a[..], self.heads), lse: (&a_lse[..], self.rows) },
            State { out: (&b[..], self.heads), lse: (&b_lse[..], self.rows) },
        )?;
        compare(&stream.clone_dtoh(&self.sets[0].0)?, &expected.out.want, |i| expected.out.bound[i])
    }
}
