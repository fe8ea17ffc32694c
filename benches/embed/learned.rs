//! Learned tables: token and position (GPT-2), and token, position and type (BERT), with and without the layer norm behind;
//! positions that count the tokens before, over a mask (OPT) and by the padding id (RoBERTa).

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::embed::{DeviceLookup, DeviceTables, Learned, LearnedPlan, Norm, Rows, Tokens};
use posenc::{Gpu, Id, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, tokens) in [(1, 1), (1, 128), (8, 1024), (64, 1024)] {
        cases.push(case::<bf16>("gpt2", batch, tokens, 768, false, false, OFFSET));
    }
    for (batch, tokens) in [(1, 128), (32, 512), (256, 512)] {
        cases.push(case::<bf16>("bert-base", batch, tokens, 768, true, false, OFFSET));
        cases.push(case::<bf16>("bert-base-norm", batch, tokens, 768, true, true, OFFSET));
    }
    for tokens in (0..=20).step_by(2).map(|n| 1 << n) {
        cases.push(Case {
            name: format!("learned/scale/bf16/{tokens}"),
            ..case::<bf16>("scale", 1, tokens, 32, false, false, OFFSET)
        });
    }
    for (model, padding, types) in [("opt-125m", None, false), ("roberta-base", Some(1), true)] {
        let rows = Rows::Kept { padding, first: 2, padded: 1 };
        for tokens in [512, 2048, 8192] {
            cases.push(Case {
                name: format!("learned/kept/{model}/bf16/{tokens}"),
                ..case::<bf16>(model, 1, tokens, 768, types, types, rows)
            });
        }
    }
    cases
}

const VOCABULARY: usize = 4096;
const OFFSET: Rows = Rows::Offset(0);
const EPS: f64 = 1e-12;

fn case<T: Scalar>(model: &str, batch: usize, tokens: usize, dim: usize, types: bool, norm: bool, rows: Rows) -> Case {
    let elements = (batch * tokens * dim) as u64;
    // Rows of positions and types are few and come from a cache; rows of tokens are read and the sum is written.
    let written = elements * size_of::<T>() as u64;
    let masked = matches!(rows, Rows::Kept { padding: None, .. });
    let ids = 4 + if types { 4 } else { 0 } + usize::from(masked);
    let read = written + (batch * tokens * ids) as u64;
    let name = format!("learned/{model}/{}/{batch}x{tokens}x{dim}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        let stream = gpu.stream();
        let n = batch * tokens;
        let table =
            |seed: u64, rows: usize| -> Result<CudaSlice<T>> { Ok(stream.clone_htod(&values::<T>(seed, rows * dim))?) };
        let ids: Vec<i32> = (0..n as u64).map(|i| (bits(5, i) % VOCABULARY as u64) as i32).collect();
        let kinds: Vec<i32> = (0..n as u64).map(|i| (bits(6, i) % 2) as i32).collect();
        let mask: Vec<u8> = (0..n as u64).map(|i| u8::from(!bits(9, i).is_multiple_of(8))).collect();
        let learned = Learned { norm: norm.then_some(Norm::Layer { eps: EPS }), rows, ..Learned::new(dim) };
        Ok(Box::new(Gather {
            plan: LearnedPlan::new(gpu, &learned)?,
            vectors: [table(7, 1)?, table(8, 1)?],
            gpu: gpu.clone(),
            shape: Tokens::new(batch, tokens, dim),
            token: table(1, VOCABULARY)?,
            position: table(2, tokens + 2)?,
            types: if types { Some((table(3, 2)?, stream.clone_htod(&kinds)?)) } else { None },
            ids: stream.clone_htod(&ids)?,
            mask: if masked { Some(stream.clone_htod(&mask)?) } else { None },
            host_ids: ids,
            host_mask: mask,
            host_kinds: kinds,
            out: (0..sets).map(|_| stream.alloc_zeros(n * dim)).collect::<Result<Vec<_>, _>>()?,
        }))
    };
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Gather<T> {
    plan: LearnedPlan<T>,
    gpu: Gpu,
    shape: Tokens,
    token: CudaSlice<T>,
    position: CudaSlice<T>,
    types: Option<(CudaSlice<T>, CudaSlice<i32>)>,
    /// gain and bias of the norm
    vectors: [CudaSlice<T>; 2],
    ids: CudaSlice<i32>,
    mask: Option<CudaSlice<u8>>,
    host_ids: Vec<i32>,
    host_mask: Vec<u8>,
    host_kinds: Vec<i32>,
    out: Vec<CudaSlice<T>>,
}

impl<T: Scalar> Operation for Gather<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (types, kinds) = match &self.types {
            None => (None, None),
            Some((table, kinds)) => (Some(table as _), Some(i32::ids(kinds))),
        };
        let (gain, bias) = match self.plan.learned().norm {
            None => (None, None),
            Some(_) => (Some(&self.vectors[0] as _), Some(&self.vectors[1] as _)),
        };
        let tables = DeviceTables { token: Some(&self.token), position: Some(&self.position), types, gain, bias };
        let mask = self.mask.as_ref().map(|mask| mask as _);
        let lookup = DeviceLookup { ids: Some(i32::ids(&self.ids)), types: kinds, mask, ..DeviceLookup::default() };
        self.plan.gather(self.shape.of_mut(&mut self.out[set]), &tables, &lookup, None)
    }

    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let read = |x: &CudaSlice<T>| self.gpu.stream().clone_dtoh(x);
        let (out, token, position) = (read(&self.out[0])?, read(&self.token)?, read(&self.position)?);
        let types = self.types.as_ref().map(|(table, _)| read(table)).transpose()?;
        let (gain, bias) = (read(&self.vectors[0])?, read(&self.vectors[1])?);
        let (tokens, dim, masked) = (self.shape.tokens, self.shape.dim, self.mask.is_some());
        for pick in 0..8 {
            let i = bits(4, pick) as usize % self.host_ids.len();
            let row = |table: &[T], row: usize, c: usize| table[row * dim + c].to_f64();
            let (step, first) = (i % tokens, i / tokens * tokens);
            let own = match self.plan.learned().rows {
                Rows::Offset(_) => step,
                rows => {
                    let padding = |i: usize| if masked { self.host_mask[i] == 0 } else { self.host_ids[i] == 1 };
                    let kept = (first..i).filter(|&i| !padding(i)).count();
                    rows.row(step as i64, kept as i64, padding(i)) as usize
                }
            };
            let terms = |c: usize| {
                let kind = types.as_ref().map_or(0.0, |types| row(types, self.host_kinds[i] as usize, c));
                [row(&token, self.host_ids[i] as usize, c), row(&position, own, c), kind]
            };
            let sums: Vec<f64> = (0..dim).map(|c| terms(c).iter().sum()).collect();
            let magnitudes: Vec<f64> = (0..dim).map(|c| terms(c).iter().map(|x| x.abs()).sum()).collect();
            let learned = self.plan.learned();
            if learned.norm.is_none() {
                compare(&out[i * dim..(i + 1) * dim], &sums, |c| {
                    posenc::accuracy::rounded::<T>(sums[c], Learned::sum_error_bound(magnitudes[c]))
                })?;
                continue;
            }
            let mean = sums.iter().sum::<f64>() / dim as f64;
            let sigma = (sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64 + EPS).sqrt();
            let want: Vec<f64> =
                (0..dim).map(|c| (sums[c] - mean) / sigma * row(&gain, 0, c) + row(&bias, 0, c)).collect();
            let largest = magnitudes.iter().copied().fold(0.0, f64::max);
            compare(&out[i * dim..(i + 1) * dim], &want, |c| {
                let y = (sums[c] - mean) / sigma;
                let bound = learned.norm_error_bound(y, row(&gain, 0, c), row(&bias, 0, c), largest, sigma);
                posenc::accuracy::rounded::<T>(want[c], bound)
            })?;
        }
        Ok(())
    }
}
