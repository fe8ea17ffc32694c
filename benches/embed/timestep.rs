//! Timesteps of diffusion models: one row of sinusoids for each.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{Sinusoid, TimestepPlan, Tokens};
use posenc::{Gpu, Scalar};

use crate::support::{Case, Operation, bits, compare};

/// Every case: the batches of a sampler, then of a training step.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (model, dim, times) in [
        ("stable-diffusion", 320, 2),
        ("flux", 256, 1),
        ("dit-xl", 256, 256),
        ("sdxl-ids", 256, 6 * 64),
        ("ddpm", 128, 128),
        ("wan-14b", 256, 32_760),
    ] {
        cases.push(case::<bf16>(model, dim, times));
    }
    cases.push(case::<f32>("stable-diffusion", 320, 2));
    for times in (0..=20).step_by(2).map(|n| 1 << n) {
        cases.push(case::<bf16>("scale", 32, times));
    }
    cases
}

fn case<T: Scalar>(model: &str, dim: usize, times: usize) -> Case {
    let elements = (times * dim) as u64;
    let name = format!("timestep/{model}/{}/{times}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let stream = gpu.stream();
        let t: Vec<f32> = (0..times as u64).map(|i| (bits(3, i) % 1_000_000) as f32 / 1000.0).collect();
        Ok(Box::new(Times::<T> {
            plan: TimestepPlan::new(gpu, &Sinusoid::timestep(dim))?,
            gpu: gpu.clone(),
            device_t: stream.clone_htod(&t)?,
            t,
            out: (0..sets).map(|_| stream.alloc_zeros(times * dim)).collect::<Result<Vec<_>, _>>()?,
        }))
    };
    let (read, written) = (4 * times as u64, elements * size_of::<T>() as u64);
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Times<T> {
    plan: TimestepPlan<T>,
    gpu: Gpu,
    t: Vec<f32>,
    device_t: CudaSlice<f32>,
    out: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Times<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let rows = Tokens::new(1, self.t.len(), self.plan.sinusoid().dim);
        self.plan.write(rows.of_mut(&mut self.out[set]), &self.device_t)
    }

    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let out = self.gpu.stream().clone_dtoh(&self.out[0])?;
        let spec = self.plan.sinusoid();
        for pick in 0..8 {
            let i = bits(1, pick) as usize % self.t.len();
            let want: Vec<f64> = (0..spec.dim).map(|c| spec.value_at(f64::from(self.t[i]), c)).collect();
            compare(&out[i * spec.dim..][..spec.dim], &want, |c| {
                posenc::accuracy::rounded::<T>(want[c], spec.time_error_bound(want[c]))
            })?;
        }
        Ok(())
    }
}
