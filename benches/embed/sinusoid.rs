//! Sinusoids: written as a table and added to embeddings. Transformer-base and -big, Whisper, M2M-100.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{Sinusoid, SinusoidPlan, Tokens};
use posenc::{Gpu, Positions, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Write,
    Add,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [Form::Write, Form::Add] {
        cases.push(case::<bf16>("transformer-base", 1, 1, 512, form));
        cases.push(case::<bf16>("transformer-base", 32, 64, 512, form));
        cases.push(case::<bf16>("transformer-big", 64, 512, 1024, form));
        cases.push(case::<bf16>("whisper-large", 1, 64, 1280, form));
        cases.push(case::<bf16>("whisper-large", 16, 1500, 1280, form));
        cases.push(case::<bf16>("wide", 4, 8192, 4096, form));
        cases.push(case::<f32>("transformer-base", 1, 64, 512, form));
        cases.push(case::<f32>("transformer-big", 64, 512, 1024, form));
        // Cost against tokens: few channels, so that the emulator reaches many.
        for tokens in (0..=20).step_by(2).map(|n| 1 << n) {
            let name = format!("sinusoid/scale/bf16/{form:?}/{tokens}");
            cases.push(Case { name, ..case::<bf16>("scale", 1, tokens, 32, form) });
        }
    }
    cases
}

fn case<T: Scalar>(model: &str, batch: usize, tokens: usize, dim: usize, form: Form) -> Case {
    let elements = (batch * tokens * dim) as u64;
    let written = elements * size_of::<T>() as u64;
    let read = if form == Form::Add { written } else { 0 };
    let name = format!("sinusoid/{model}/{}/{form:?}/{batch}x{tokens}x{dim}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let shape = Tokens::new(batch, tokens, dim);
        let spec = Sinusoid::new(dim);
        let n = shape.span()?;
        let stream = gpu.stream();
        let sets =
            (0..sets).map(|set| Ok(stream.clone_htod(&values::<T>(set as u64, n))?)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(Added { plan: SinusoidPlan::new(gpu, &spec)?, gpu: gpu.clone(), shape, form, sets }))
    };
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Added<T> {
    plan: SinusoidPlan<T>,
    gpu: Gpu,
    shape: Tokens,
    form: Form,
    sets: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Added<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let x = self.shape.of_mut(&mut self.sets[set]);
        match self.form {
            Form::Write => self.plan.write(x, Positions::counted()),
            // 1 keeps a thousand calls on the same embeddings finite, and costs what any scale costs.
            Form::Add => self.plan.add(x, Positions::counted(), 1.0),
        }
    }

    fn verify(&mut self) -> Result<()> {
        let read = |gpu: &Gpu, x: &CudaSlice<T>| gpu.stream().clone_dtoh(x);
        let before = read(&self.gpu, &self.sets[0])?;
        self.call(0)?;
        let after = read(&self.gpu, &self.sets[0])?;
        let spec = self.plan.sinusoid();
        for pick in 0..8 {
            let (batch, token) =
                (bits(1, pick) as usize % self.shape.batch, bits(2, pick) as usize % self.shape.tokens);
            let at = self.shape.index(batch, token, 0);
            let position = token as i64;
            let row = 0..self.shape.dim;
            let old = |c: usize| if self.form == Form::Add { before[at + c].to_f64() } else { 0.0 };
            let want: Vec<f64> = row.clone().map(|c| old(c) + spec.value(position, c)).collect();
            compare(&after[at..at + self.shape.dim], &want, |c| {
                let error = if self.form == Form::Add {
                    spec.add_error_bound(position, old(c), 1.0)
                } else {
                    spec.error_bound(position)
                };
                posenc::accuracy::rounded::<T>(want[c], error)
            })?;
        }
        Ok(())
    }
}
