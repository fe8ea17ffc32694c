//! Grids: MAE's and DiT's tables, added and written; CogVideoX's frames; DETR's, counted over a mask.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{Counted, Grid, GridPlan, GridSize, Tokens};
use posenc::{Gpu, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Write,
    Add,
    Masked,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let image = GridSize::image;
    let mut cases = Vec::new();
    for (form, batch) in [(Form::Write, 1), (Form::Add, 1), (Form::Add, 64)] {
        cases.push(case::<bf16>("vit-b-16", Grid::columns_first(768), image(14, 14), batch, form));
        cases.push(case::<bf16>("dit-xl-2", Grid::columns_first(1152), image(16, 16), batch, form));
        cases.push(case::<bf16>("sd3", Grid::columns_first(1536), image(64, 64), batch, form));
    }
    let frames = GridSize { frames: 13, rows: 30, columns: 45 };
    cases.push(case::<bf16>("cogvideox", Grid::video(1920), frames, 1, Form::Add));
    cases.push(case::<f32>("vit-b-16", Grid::columns_first(768), image(14, 14), 1, Form::Write));
    for batch in [1, 16] {
        cases.push(case::<f32>("detr", Grid::detr(256, 10_000.0), image(25, 34), batch, Form::Masked));
        cases.push(case::<f32>("deformable-detr", Grid::detr(256, 10_000.0), image(100, 134), batch, Form::Masked));
    }
    for side in (0..=10).map(|n| 1 << n) {
        let name = format!("grid/scale/bf16/Add/{}", side * side);
        cases.push(Case { name, ..case::<bf16>("scale", Grid::columns_first(32), image(side, side), 1, Form::Add) });
    }
    cases
}

fn case<T: Scalar>(model: &str, spec: Grid, size: GridSize, batch: usize, form: Form) -> Case {
    let tokens = size.frames * size.rows * size.columns;
    let elements = (batch * tokens * spec.dim()) as u64;
    let written = elements * size_of::<T>() as u64;
    let read = match form {
        Form::Write => 0,
        Form::Add => written,
        Form::Masked => (batch * tokens) as u64,
    };
    let name = format!("grid/{model}/{}/{form:?}/{batch}x{tokens}x{}", T::NAME, spec.dim());
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let stream = gpu.stream();
        let shape = Tokens::new(batch, tokens, spec.dim());
        // Images of three quarters of the size, as a batch of pictures of different sizes has them.
        let inside =
            |i: usize| i / size.columns % size.rows < size.rows * 3 / 4 && i % size.columns < size.columns * 3 / 4;
        let mask: Vec<u8> = (0..batch * tokens).map(|i| u8::from(inside(i % tokens))).collect();
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, batch * tokens * spec.dim()));
        Ok(Box::new(Gridded::<T> {
            plan: GridPlan::new(gpu, &spec)?,
            gpu: gpu.clone(),
            shape,
            size,
            form,
            mask: stream.clone_htod(&mask)?,
            host_mask: mask,
            sets: (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?,
        }))
    };
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Gridded<T> {
    plan: GridPlan<T>,
    gpu: Gpu,
    shape: Tokens,
    size: GridSize,
    form: Form,
    mask: CudaSlice<u8>,
    host_mask: Vec<u8>,
    sets: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Gridded<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let x = self.shape.of_mut(&mut self.sets[set]);
        match self.form {
            Form::Write => self.plan.write(x, self.size),
            Form::Add => self.plan.add(x, self.size, 1.0),
            Form::Masked => self.plan.write_masked(x, &self.mask, self.size, Counted::default()),
        }
    }

    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let before = stream.clone_dtoh(&self.sets[0])?;
        self.call(0)?;
        let after = stream.clone_dtoh(&self.sets[0])?;
        let (spec, shape) = (self.plan.grid(), self.shape);
        if self.form == Form::Masked {
            // The reference of the first image: it counts as the kernel does.
            let n = shape.tokens * shape.dim;
            let mut want = vec![0f32; n];
            spec.write_masked(&mut want, &self.host_mask[..shape.tokens], 1, self.size, Counted::default())?;
            let want: Vec<f64> = want.into_iter().map(f64::from).collect();
            return compare(&after[..n], &want, |i| posenc::accuracy::rounded::<T>(want[i], 1.2e-7));
        }
        for pick in 0..8 {
            let (batch, token) = (bits(1, pick) as usize % shape.batch, bits(2, pick) as usize % shape.tokens);
            let (at, place) = (shape.index(batch, token, 0), self.size.place(token));
            let old = |c: usize| if self.form == Form::Add { before[at + c].to_f64() } else { 0.0 };
            let want: Vec<f64> = (0..shape.dim).map(|c| old(c) + spec.value(place, c)).collect();
            compare(&after[at..at + shape.dim], &want, |c| {
                let error = match self.form {
                    Form::Add => spec.add_error_bound(place, old(c), 1.0),
                    _ => spec.error_bound(place),
                };
                posenc::accuracy::rounded::<T>(want[c], error)
            })?;
        }
        Ok(())
    }
}
