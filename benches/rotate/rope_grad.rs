//! Gradients of RoPE's angles: learned frequencies and real positions.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::rotate::{Angles, Mixed, RopeGrad, RopeGradPlan};
use posenc::{Gpu, Heads, Pairing, Positions, Rope};

use crate::support::{Case, Operation, bits, compare, values};

/// Every case: RoPE-Mixed's ViT-B and Mochi, queries and keys.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, heads, dim, axes, tokens) in [("vit-mixed", 12, 64, 2, 8 * 196), ("mochi", 24, 128, 3, 1024)] {
        for of in [Of::Frequencies, Of::Positions] {
            let elements = (2 * tokens * heads * dim) as u64;
            let results = if of == Of::Frequencies { axes * heads * dim / 2 } else { axes * tokens };
            cases.push(Case {
                name: format!("rope-grad/{name}/bf16/{of:?}/{tokens}"),
                elements,
                read: 4 * elements + (tokens * axes * 8) as u64,
                written: 4 * results as u64,
                make: Box::new(move |gpu, sets| {
                    Ok(Box::new(Grad::new(gpu, [heads, dim, axes, tokens], of, sets)?) as Box<dyn Operation>)
                }),
            });
        }
    }
    cases
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Frequencies,
    Positions,
}

struct Grad {
    gpu: Gpu,
    plan: RopeGradPlan<bf16>,
    of: Of,
    heads: Heads,
    positions: Vec<i64>,
    ids: CudaSlice<i64>,
    /// queries, keys and their gradients, and the result
    sets: Vec<([CudaSlice<bf16>; 4], CudaSlice<f32>)>,
}

impl Grad {
    fn new(gpu: &Gpu, [heads, dim, axes, tokens]: [usize; 4], of: Of, sets: usize) -> Result<Self> {
        let n = axes * heads * dim / 2;
        let frequencies = (0..n).map(|i| bits(11, i as u64) as f64 / u64::MAX as f64).collect();
        let angles = Angles::Mixed(Mixed { axes, heads, frequencies });
        let rope = Rope { pairing: Pairing::Interleaved, angles, ..Rope::new(dim, 1.0) };
        let shape = Heads::thd(tokens, heads, dim);
        let positions: Vec<i64> = (0..axes * tokens).map(|i| (bits(7, i as u64) % 64) as i64).collect();
        let stream = gpu.stream();
        let results = if of == Of::Frequencies { n } else { axes * tokens };
        let mut all = Vec::new();
        for set in 0..sets as u64 {
            let tensor = |i: u64| stream.clone_htod(&values::<bf16>(4 * set + i, tokens * heads * dim));
            all.push(([tensor(0)?, tensor(1)?, tensor(2)?, tensor(3)?], stream.alloc_zeros(results)?));
        }
        let ids = stream.clone_htod(&positions)?;
        Ok(Self { gpu: gpu.clone(), plan: RopeGradPlan::new(gpu, &rope)?, of, heads: shape, positions, ids, sets: all })
    }
}

impl Operation for Grad {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let ([q, k, q_grad, k_grad], out) = &mut self.sets[set];
        let heads = self.heads;
        let q = RopeGrad { x: heads.of(q), grad: heads.of(q_grad) };
        let k = Some(RopeGrad { x: heads.of(k), grad: heads.of(k_grad) });
        match self.of {
            Of::Frequencies => self.plan.frequencies(q, k, Positions::ids(&self.ids), out),
            Of::Positions => self.plan.positions(q, k, None, out),
        }
    }

    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let stream = self.gpu.stream().clone();
        let ([q, k, q_grad, k_grad], out) = &self.sets[0];
        let read = |x: &CudaSlice<bf16>| stream.clone_dtoh(x);
        let [q, k, q_grad, k_grad] = [read(q)?, read(k)?, read(q_grad)?, read(k_grad)?];
        let heads = self.heads;
        let tensors = [
            RopeGrad { x: (&q[..], heads), grad: (&q_grad[..], heads) },
            RopeGrad { x: (&k[..], heads), grad: (&k_grad[..], heads) },
        ];
        let rope = self.plan.rope();
        let expected = match self.of {
            Of::Frequencies => rope.frequency_grad(&tensors, &self.positions)?,
            Of::Positions => rope.position_grad(&tensors)?,
        };
        compare(&stream.clone_dtoh(out)?, &expected.want, |i| expected.bound[i])
    }
}
