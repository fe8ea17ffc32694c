//! The prologue of attention on the shapes of real models: a packed projection, queries to a tensor, keys and values to pages.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::rotate::{Branch, Cache, CacheRows, HeadNorm, NormWeight, PrologueCall, ProloguePlan, Qkv, Vectors};
use posenc::{Gpu, Heads, Id, Positions, Prologue, Rope};

use crate::support::{Case, Operation, bits, compare, values};

/// Rows of a page.
const PAGE: usize = 16;

/// A model's heads.
#[derive(Clone)]
struct Model {
    name: &'static str,
    q_heads: usize,
    k_heads: usize,
    dim: usize,
    prologue: Prologue,
}

fn models() -> Vec<Model> {
    let rope = |rotary| Prologue::new(Rope::new(rotary, 500_000.0));
    let normed = |rotary, weight, v: Option<HeadNorm>| {
        let norm = Some(HeadNorm { weight, ..HeadNorm::rms(1e-6) });
        let turned = Branch { norm, ..Branch::rotated() };
        Prologue { q: turned, k: turned, v: Branch { norm: v, ..Branch::plain() }, ..rope(rotary) }
    };
    let weightless = Some(HeadNorm { weight: NormWeight::None, ..HeadNorm::rms(1e-6) });
    let model = |name, q_heads, k_heads, dim, prologue| Model { name, q_heads, k_heads, dim, prologue };
    vec![
        model("llama-3-8b", 32, 8, 128, rope(128)),
        model("qwen3-30b-a3b", 32, 4, 128, normed(128, NormWeight::Weight, None)),
        model("llama-3-70b-tp8", 8, 1, 128, rope(128)),
        model("qwen3.5", 16, 2, 256, normed(64, NormWeight::OnePlusWeight, None)),
        model("gemma-4", 16, 1, 512, normed(512, NormWeight::Weight, weightless)),
    ]
}

/// Every case, the headline ones first.
pub fn cases() -> Vec<Case> {
    let tokens = [1, 64, 1024, 8192];
    models().iter().flat_map(|model| tokens.map(|tokens| case(model, tokens))).collect()
}

fn case(model: &Model, tokens: usize) -> Case {
    let elements = (tokens * (model.q_heads + 2 * model.k_heads) * model.dim) as u64;
    let bytes = elements * size_of::<bf16>() as u64;
    let name = format!("prologue/{}/bf16/{tokens}", model.name);
    let model = model.clone();
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Step::new(gpu, &model, tokens, sets)?))
    };
    // A position and a slot of 4 bytes each; rates and weights are a plan's and a layer's own.
    Case { name, elements, read: bytes + 8 * tokens as u64, written: bytes, make: Box::new(make) }
}

/// Buffers of one call.
struct Set {
    qkv: CudaSlice<bf16>,
    q: CudaSlice<bf16>,
    k_cache: CudaSlice<bf16>,
    v_cache: CudaSlice<bf16>,
}

struct Step {
    plan: ProloguePlan<bf16>,
    gpu: Gpu,
    model: Model,
    tokens: usize,
    weight: CudaSlice<bf16>,
    positions: Vec<i64>,
    ids: CudaSlice<i32>,
    slots: CudaSlice<i32>,
    sets: Vec<Set>,
}

impl Step {
    fn new(gpu: &Gpu, model: &Model, tokens: usize, sets: usize) -> Result<Self> {
        let stream = gpu.stream();
        let (heads, dim) = (model.q_heads + 2 * model.k_heads, model.dim);
        let pages = tokens.div_ceil(PAGE);
        let set = |seed: usize| -> Result<Set> {
            let cache = pages * PAGE * model.k_heads * dim;
            Ok(Set {
                qkv: stream.clone_htod(&values::<bf16>(seed as u64, tokens * heads * dim))?,
                q: stream.alloc_zeros(tokens * model.q_heads * dim)?,
                k_cache: stream.alloc_zeros(cache)?,
                v_cache: stream.alloc_zeros(cache)?,
            })
        };
        let positions: Vec<i64> = (0..tokens).map(|i| (bits(7, i as u64) % 131_072) as i64).collect();
        let narrow: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
        // Pages in an order of their own.
        let slot = |token: usize| ((pages - 1 - token / PAGE) * PAGE + token % PAGE) as i32;
        Ok(Self {
            plan: ProloguePlan::new(gpu, &model.prologue)?,
            gpu: gpu.clone(),
            model: model.clone(),
            tokens,
            weight: stream.clone_htod(&values::<bf16>(5, dim))?,
            positions,
            ids: stream.clone_htod(&narrow)?,
            slots: stream.clone_htod(&(0..tokens).map(slot).collect::<Vec<_>>())?,
            sets: (0..sets).map(set).collect::<Result<_>>()?,
        })
    }

    /// Queries, keys and values in the projection.
    fn shapes(&self) -> [Heads; 3] {
        let Model { q_heads, k_heads, dim, .. } = self.model;
        let row = (q_heads + 2 * k_heads) * dim;
        let of = |heads, first| Heads::thd(self.tokens, heads, dim).row(row).at(first * dim);
        [of(q_heads, 0), of(k_heads, q_heads), of(k_heads, q_heads + k_heads)]
    }
}

impl Operation for Step {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let [q, k, v] = self.shapes();
        let pages = Heads::bthd(self.tokens.div_ceil(PAGE), PAGE, self.model.k_heads, self.model.dim);
        let Set { qkv, q: out, k_cache, v_cache } = &mut self.sets[set];
        let has = |which| self.model.prologue.branch(which).norm.is_some_and(|norm| norm.weight != NormWeight::None);
        let weight = |which| if has(which) { Vectors::weight(&self.weight as _) } else { Vectors::none() };
        let call = PrologueCall {
            q: weight(Qkv::Query),
            k: weight(Qkv::Key),
            cache: Some(Cache {
                k: pages.of_mut(k_cache).into(),
                v: Some(pages.of_mut(v_cache).into()),
                rows: CacheRows::Slots(i32::ids(&self.slots)),
                flag: None,
            }),
            ..PrologueCall::at(Positions::ids(&self.ids))
        };
        let to = Heads::thd(self.tokens, self.model.q_heads, self.model.dim);
        self.plan.apply(q.of(qkv).to(to.of_mut(out)), k.of(qkv), v.of(qkv), call)
    }

    fn verify(&mut self) -> Result<()> {
        self.call(0)?;
        let stream = self.gpu.stream().clone();
        let set = &self.sets[0];
        let read = |slice: &CudaSlice<bf16>| stream.clone_dtoh(slice);
        let (qkv, weight) = (read(&set.qkv)?, read(&self.weight)?);
        let results = [read(&set.q)?, read(&set.k_cache)?, read(&set.v_cache)?];
        let slots = self.gpu.stream().clone_dtoh(&self.slots)?;
        let picks = (0..8u64).map(|i| bits(9, i) as usize % self.tokens).chain([0, self.tokens - 1]);
        for token in picks {
            for ((which, heads), result) in
                [Qkv::Query, Qkv::Key, Qkv::Value].into_iter().zip(self.shapes()).zip(&results)
            {
                let at = heads.index(0, token, 0, 0);
                let one = Heads::thd(1, heads.heads, heads.dim);
                let norm = self.model.prologue.branch(which).norm;
                let weighed = norm.is_some_and(|norm| norm.weight != NormWeight::None);
                let vectors = if weighed { Vectors::weight(&weight[..]) } else { Vectors::none() };
                let from = (&qkv[at..at + one.span()?], &one);
                let expected = self.model.prologue.expect(which, from, vectors, &[self.positions[token]])?;
                let row = if which == Qkv::Query { token } else { slots[token] as usize };
                let to = row * heads.heads * heads.dim;
                compare(&result[to..to + one.span()?], &expected.want, |i| expected.bound[i])?;
            }
        }
        Ok(())
    }
}
