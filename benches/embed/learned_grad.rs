//! Gradients of learned tables: of the sum before BERT's norm, of gain and bias, of GPT-2's positions and tokens.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{
    DeviceLookup, DeviceTables, HostLookup, HostTables, Learned, LearnedGradPlan, Norm, NormGrad, TableGrad, Tokens,
    order,
};
use posenc::{Gpu, Id, Positions, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// of the sum, through the norm
    Sum,
    /// of the sum, and of gain and bias
    Norm,
    /// of positions that are counted
    Counted,
    /// of the token table
    Table,
    /// the tokens in the order of their ids
    Order,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [Form::Norm, Form::Sum] {
        for (batch, tokens) in [(1, 128), (32, 512), (256, 512)] {
            cases.push(case::<bf16>("bert-base", batch, tokens, 768, form));
        }
    }
    for form in [Form::Counted, Form::Table] {
        for (batch, tokens) in [(1, 128), (8, 1024), (64, 1024)] {
            cases.push(case::<bf16>("gpt2", batch, tokens, 768, form));
        }
    }
    for (batch, tokens) in [(1, 128), (2, 1024), (8, 1024)] {
        cases.push(case::<bf16>("gpt2", batch, tokens, 768, Form::Order));
    }
    for form in [Form::Norm, Form::Counted, Form::Table] {
        for tokens in (0..=16).step_by(2).map(|n| 1 << n) {
            let name = format!("learned_grad/scale/bf16/{form:?}/{tokens}");
            cases.push(Case { name, ..case::<bf16>("scale", 1, tokens, 32, form) });
        }
    }
    cases
}

const VOCABULARY: usize = 4096;

fn case<T: Scalar>(model: &str, batch: usize, tokens: usize, dim: usize, form: Form) -> Case {
    let count = batch * tokens;
    let shape = Tokens::new(batch, tokens, dim);
    let ids: Vec<i64> = (0..count as u64).map(|i| (bits(5, i) % VOCABULARY as u64) as i64).collect();
    let norm = matches!(form, Form::Norm | Form::Sum).then_some(Norm::Layer { eps: 1e-12 });
    let spec = Learned { norm, ..Learned::new(dim) };
    let (element, count) = (size_of::<T>() as u64, count as u64);
    let n = count * dim as u64;
    let (elements, read, written) = match form {
        // The sum is gathered again: rows of tokens, and the gradient.
        Form::Norm | Form::Sum => (n, 2 * n * element + 8 * count, n * element),
        Form::Counted => (n, n * element, (tokens * dim) as u64 * element),
        Form::Table => {
            let rows = ids.iter().collect::<BTreeSet<_>>().len() as u64;
            (n, n * element + 12 * count, rows * dim as u64 * element)
        }
        Form::Order => (count, 8 * count, 4 * count),
    };
    let name = format!("learned_grad/{model}/{}/{form:?}/{batch}x{tokens}x{dim}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let stream = gpu.stream();
        let plan = LearnedGradPlan::<T>::new(gpu, &spec, shape)?;
        let rows = match form {
            Form::Counted => tokens,
            Form::Table => VOCABULARY,
            _ => 1,
        };
        let upload = |seed: u64, n: usize| stream.clone_htod(&values::<T>(seed, n));
        let made = Grads {
            gpu: gpu.clone(),
            form,
            shape,
            spec,
            token: upload(1, VOCABULARY * dim)?,
            position: upload(2, tokens * dim)?,
            gain: upload(3, dim)?,
            device_ids: stream.clone_htod(&ids)?,
            order: stream.clone_htod(&order(&ids)?)?,
            ids: ids.clone(),
            grads: (0..sets)
                .map(|set| upload(10 + set as u64, shape.span()?).map_err(Into::into))
                .collect::<Result<_>>()?,
            sum: stream.alloc_zeros(if norm.is_some() { shape.span()? } else { 1 })?,
            table: stream.alloc_zeros(rows * dim)?,
            vectors: [stream.alloc_zeros(dim)?, stream.alloc_zeros(dim)?],
            plan,
        };
        Ok(Box::new(made))
    };
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Grads<T> {
    plan: LearnedGradPlan<T>,
    gpu: Gpu,
    form: Form,
    shape: Tokens,
    spec: Learned,
    token: CudaSlice<T>,
    position: CudaSlice<T>,
    gain: CudaSlice<T>,
    ids: Vec<i64>,
    device_ids: CudaSlice<i64>,
    order: CudaSlice<u32>,
    grads: Vec<CudaSlice<T>>,
    sum: CudaSlice<T>,
    table: CudaSlice<T>,
    vectors: [CudaSlice<T>; 2],
}

impl<T: Scalar> Grads<T> {
    fn norm(&mut self, set: usize) -> posenc::Result<()> {
        let tables = DeviceTables {
            token: Some(&self.token),
            position: Some(&self.position),
            gain: Some(&self.gain),
            ..DeviceTables::default()
        };
        let lookup = DeviceLookup { ids: Some(i64::ids(&self.device_ids)), ..DeviceLookup::default() };
        let mut out = NormGrad::new(self.shape.of_mut(&mut self.sum));
        let [gain, bias] = &mut self.vectors;
        if self.form == Form::Norm {
            (out.gain, out.bias) = (Some(gain as _), Some(bias as _));
        }
        self.plan.norm(out, self.shape.of(&self.grads[set]), None, &tables, &lookup)
    }

    /// The normalised row of a token, in f64, with what its bound asks for.
    fn normed(&self, token: &[T], position: &[T], i: usize) -> (Vec<f64>, f64, f64) {
        let dim = self.shape.dim;
        let row = |table: &[T], row: usize, c: usize| table[row * dim + c].to_f64();
        let terms = |c| [row(token, self.ids[i] as usize, c), row(position, i % self.shape.tokens, c)];
        let v: Vec<f64> = (0..dim).map(|c| terms(c).iter().sum()).collect();
        let magnitude = (0..dim).map(|c| terms(c).iter().map(|x| x.abs()).sum::<f64>()).fold(0.0, f64::max);
        let mean = v.iter().sum::<f64>() / dim as f64;
        let sigma = (v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / dim as f64 + 1e-12).sqrt();
        (v.iter().map(|v| (v - mean) / sigma).collect(), magnitude, sigma)
    }
}

impl<T: Scalar> Operation for Grads<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (shape, table) = (self.shape, &mut self.table);
        match self.form {
            Form::Norm | Form::Sum => self.norm(set),
            Form::Counted => self.plan.counted(table, shape.of(&self.grads[set]), 0, TableGrad::new(shape.tokens)),
            Form::Table => {
                let (grad, ids) = (shape.of(&self.grads[set]), i64::ids(&self.device_ids));
                self.plan.table(table, grad, ids, &self.order, TableGrad::new(VOCABULARY))
            }
            Form::Order => self.plan.order(&mut self.order, i64::ids(&self.device_ids), self.ids.len()),
        }
    }

    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        self.call(0)?;
        let read = |x: &CudaSlice<T>| stream.clone_dtoh(x);
        let (grad, token, position, gain) =
            (read(&self.grads[0])?, read(&self.token)?, read(&self.position)?, read(&self.gain)?);
        let (dim, tokens, count) = (self.shape.dim, self.shape.tokens, self.ids.len());
        let picks = |n: usize| (0..8u64).map(move |pick| bits(4, pick) as usize % n);
        // The sum over some tokens' gradients, and of their magnitudes.
        let sums = |rows: &[usize], c: usize| {
            let values = rows.iter().map(|row| grad[row * dim + c].to_f64());
            values.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
        };
        let table = |got: &[T], rows: &[usize]| {
            let want: Vec<f64> = (0..dim).map(|c| sums(rows, c).0).collect();
            compare(got, &want, |c| {
                let error = Learned::table_grad_error_bound(rows.len(), sums(rows, c).1);
                posenc::accuracy::rounded::<T>(want[c], error)
            })
        };
        match self.form {
            Form::Norm | Form::Sum => {
                let sum = read(&self.sum)?;
                for i in picks(count) {
                    let own = i * dim..(i + 1) * dim;
                    let tables = HostTables {
                        token: Some(&token),
                        position: Some(&position),
                        gain: Some(&gain),
                        ..HostTables::default()
                    };
                    let at = [(i % tokens) as i64];
                    let (ids, positions) = (Some(&self.ids[i..=i]), Positions::ids(&at));
                    let lookup = HostLookup { ids, positions, ..HostLookup::default() };
                    let want = self.spec.grad((1, 1), &[], &grad[own.clone()], &tables, &lookup)?.sum;
                    let (y, magnitude, sigma) = self.normed(&token, &position, i);
                    let g: Vec<f64> = (0..dim).map(|c| grad[i * dim + c].to_f64() * gain[c].to_f64()).collect();
                    let bound = self.spec.sum_grad_error_bound(&y, &g, magnitude, sigma);
                    compare(&sum[own], &want, |c| posenc::accuracy::rounded::<T>(want[c], bound[c]))?;
                }
                if self.form == Form::Sum {
                    return Ok(());
                }
                let (got_gain, got_bias) = (read(&self.vectors[0])?, read(&self.vectors[1])?);
                let all: Vec<usize> = (0..count).collect();
                let (mut want, mut size) = (vec![0.0; dim], vec![0.0; dim]);
                for &i in &all {
                    let (y, ..) = self.normed(&token, &position, i);
                    for c in 0..dim {
                        let term = grad[i * dim + c].to_f64() * y[c];
                        want[c] += term;
                        // y itself is off by a few hundred roundings of its size and one.
                        size[c] += term.abs()
                            + 300.0 / (count as f64 + 4.0) * grad[i * dim + c].to_f64().abs() * (1.0 + y[c].abs());
                    }
                }
                let bound = |c: usize| Learned::table_grad_error_bound(count, size[c]);
                compare(&got_gain, &want, |c| posenc::accuracy::rounded::<T>(want[c], bound(c)))?;
                table(&got_bias, &all)
            }
            Form::Counted => {
                let got = read(&self.table)?;
                picks(tokens).try_for_each(|t| {
                    let rows: Vec<usize> = (0..self.shape.batch).map(|b| b * tokens + t).collect();
                    table(&got[t * dim..(t + 1) * dim], &rows)
                })
            }
            Form::Table => {
                let got = read(&self.table)?;
                picks(count).try_for_each(|i| {
                    let id = self.ids[i];
                    let rows: Vec<usize> = (0..count).filter(|&other| self.ids[other] == id).collect();
                    table(&got[id as usize * dim..(id as usize + 1) * dim], &rows)
                })
            }
            Form::Order => {
                ensure!(stream.clone_dtoh(&self.order)? == order(&self.ids)?, "the order is another");
                Ok(())
            }
        }
    }
}
