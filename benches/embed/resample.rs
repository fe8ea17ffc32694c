//! Learned tables of images, resampled to another size, and the gradient.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{Along, Filter, GridSize, Resample, ResamplePlan, Tokens};
use posenc::{Gpu, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

/// Every case: written, and the gradient.
pub fn cases() -> Vec<Case> {
    let square = |n| GridSize::image(n, n);
    let vit = Resample { prefix: 1, ..Resample::new(square(14), square(24)) };
    let dino = Resample { prefix: 1, ..Resample::new(square(37), square(16)) };
    let registers = Resample { prefix: 5, antialias: true, ..dino };
    let siglip =
        Resample { filter: Filter::Bilinear, antialias: true, ..Resample::new(square(16), GridSize::image(24, 18)) };
    let mut cases = Vec::new();
    for grad in [false, true] {
        cases.push(case::<bf16>("vit-b-16", vit, 768, grad));
        cases.push(case::<bf16>("dinov2-l", dino, 1024, grad));
        cases.push(case::<bf16>("dinov2-l-registers", registers, 1024, grad));
        cases.push(case::<bf16>("siglip-2", siglip, 1152, grad));
        cases.push(case::<f32>("vit-b-16", vit, 768, grad));
    }
    // Smaller grids do not read the whole table.
    for side in (4..=9).map(|n| 1 << n) {
        let name = format!("resample/scale/bf16/{}", side * side);
        cases.push(Case { name, ..case::<bf16>("scale", Resample::new(square(14), square(side)), 32, false) });
    }
    cases
}

fn case<T: Scalar>(model: &str, spec: Resample, dim: usize, grad: bool) -> Case {
    let tokens = |size: GridSize| spec.prefix + size.rows * size.columns;
    let (table, resampled) = (tokens(spec.from) * dim, tokens(spec.to) * dim);
    let (input, output) = if grad { (resampled, table) } else { (table, resampled) };
    let form = if grad { "Grad" } else { "Write" };
    let name = format!("resample/{model}/{}/{form}/{}x{dim}", T::NAME, tokens(spec.to));
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let stream = gpu.stream();
        Ok(Box::new(Resampled::<T> {
            plan: ResamplePlan::new(gpu, &spec)?,
            gpu: gpu.clone(),
            dim,
            grad,
            input: stream.clone_htod(&values::<T>(1, input))?,
            out: (0..sets).map(|_| stream.alloc_zeros(output)).collect::<Result<Vec<_>, _>>()?,
        }))
    };
    let bytes = |n: usize| (n * size_of::<T>()) as u64;
    Case { name, elements: output as u64, read: bytes(input), written: bytes(output), make: Box::new(make) }
}

struct Resampled<T> {
    plan: ResamplePlan<T>,
    gpu: Gpu,
    dim: usize,
    grad: bool,
    input: CudaSlice<T>,
    out: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Resampled<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let rows = |len: usize| Tokens::new(1, len / self.dim, self.dim);
        let (input, out) = (rows(self.input.len()).of(&self.input), &mut self.out[set]);
        let out = rows(out.len()).of_mut(out);
        if self.grad { self.plan.grad(out, input, false) } else { self.plan.write(out, input) }
    }

    /// Some places, from the weights of their rows and columns.
    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let read = |x: &CudaSlice<T>| self.gpu.stream().clone_dtoh(x);
        let (out, input) = (read(&self.out[0])?, read(&self.input)?);
        let (spec, dim) = (self.plan.resample(), self.dim);
        let (from, to) = (spec.from, spec.to);
        let taps = |along, n| (0..n).map(|i| spec.taps(along, i)).collect::<Vec<_>>();
        let (rows, columns) = (taps(Along::Rows, to.rows), taps(Along::Columns, to.columns));
        let size = if self.grad { from } else { to };
        for pick in 0..4 {
            let (y, x) = (bits(1, pick) as usize % size.rows, bits(2, pick) as usize % size.columns);
            // The other side's places that meet this one, with their weights.
            let mut terms = Vec::new();
            for (oy, row) in rows.iter().enumerate() {
                for (ox, column) in columns.iter().enumerate() {
                    if !self.grad && (oy, ox) != (y, x) {
                        continue;
                    }
                    for (i, a) in row.weights.iter().enumerate() {
                        for (j, b) in column.weights.iter().enumerate() {
                            let near = (row.first + i, column.first + j);
                            let (here, other) = if self.grad {
                                (near, oy * to.columns + ox)
                            } else {
                                ((y, x), near.0 * from.columns + near.1)
                            };
                            if here == (y, x) {
                                terms.push((spec.prefix + other, a * b));
                            }
                        }
                    }
                }
            }
            let at = (spec.prefix + y * size.columns + x) * dim;
            let sum = |f: fn(f64) -> f64, c: usize| -> f64 {
                terms.iter().map(|(row, weight)| f(weight * input[row * dim + c].to_f64())).sum()
            };
            let want: Vec<f64> = (0..dim).map(|c| sum(|x| x, c)).collect();
            compare(&out[at..at + dim], &want, |c| {
                let error = Resample::error_bound(spec.most_taps(self.grad), sum(f64::abs, c));
                posenc::accuracy::rounded::<T>(want[c], error)
            })?;
        }
        Ok(())
    }
}
