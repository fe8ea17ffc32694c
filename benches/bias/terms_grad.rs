//! Gradients of the numbers of terms: tables of windows, products of queries or keys and a table, pair biases, endpoints.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::bias::{Distances, Numbers, Term, TermGrad, TermGradPlan, TermInputs, Window, WindowAxes};
use posenc::{Gpu, Logits, Places, Scalar};

use crate::support::{Case, Operation, compare, values};

/// A term of a model, the shape of its logits and the layout of its numbers.
#[derive(Clone)]
struct Model {
    name: &'static str,
    term: Term,
    shape: Logits,
    numbers: Numbers,
    /// the keys' ends
    of_keys: bool,
}

impl Model {
    fn new(name: &'static str, term: Term, shape: Logits, numbers: Numbers) -> Self {
        Self { name, term, shape, numbers, of_keys: false }
    }
}

fn models() -> Vec<Model> {
    let mut models = Vec::new();
    let mut push = |name, term, shape, numbers| models.push(Model::new(name, term, shape, numbers));
    let own = |shape: &Logits, rows, entries| Numbers::rows(shape.batch, shape.heads, rows, entries);
    for windows in [64, 4096] {
        let name = if windows == 64 { "swin-tiny-image" } else { "swin-tiny" };
        let table = Numbers::table(169, 3);
        push(name, Term::table(Window::swin(7, 7)), Logits::bhqk(windows, 3, 49, 49), table);
    }
    push("beit-base", Term::table(Window::beit(14, 14)), Logits::bhqk(8, 12, 197, 197), Numbers::table(732, 12));
    for (batch, tokens) in [(1, 128), (8, 512)] {
        let shape = Logits::bhqk(batch, 8, tokens, tokens);
        push("wav2vec2-bert", Term::queries(Distances::shaw(64, 8)), shape, own(&shape, tokens, 73));
        let conformer = Distances::conformer(tokens);
        push("conformer", Term::queries(conformer), shape, own(&shape, tokens, 2 * tokens - 1));
        if let Ok(deberta) = Distances::deberta(256, 512) {
            push("deberta-v3-keys", Term::keys(deberta), shape, own(&shape, tokens, 512));
        }
        push("bert-keys", Term::keys(Distances::bert(512)), shape, own(&shape, tokens, 1023));
        push("alphafold", Term::whole(), shape, Numbers::rows(1, 8, tokens, tokens));
    }
    let sam = Logits::bhqk(1, 2, 196, 196);
    push("sam-rows", Term::queries(Window::decomposed(14, 14, WindowAxes::Rows)), sam, own(&sam, 196, 14));
    let forget = Logits::bhqk(1, 8, 256, 256);
    push("forget", Term::endpoints(), forget, own(&forget, 256, 1));
    let keys = Model { of_keys: true, ..Model::new("forget-keys", Term::endpoints(), forget, own(&forget, 256, 1)) };
    models.push(keys);
    models
}

/// Every case.
pub fn cases() -> Vec<Case> {
    models().into_iter().map(case).collect()
}

fn case(model: Model) -> Case {
    let Model { name, shape, numbers, .. } = &model;
    let elements = (shape.batch * shape.heads * shape.queries * shape.keys) as u64;
    let written = (numbers.batch * numbers.heads * numbers.rows * numbers.entries * size_of::<f32>()) as u64;
    let name = format!("TermGrad/{name}/bf16/{}x{}x{}x{}", shape.batch, shape.heads, shape.queries, shape.keys);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Sums::<bf16>::new(gpu, model.clone(), sets)?))
    };
    Case { name, elements, read: elements * size_of::<bf16>() as u64, written, make: Box::new(make) }
}

struct Sums<T> {
    gpu: Gpu,
    model: Model,
    plan: TermGradPlan<T>,
    sets: Vec<CudaSlice<T>>,
    out: CudaSlice<f32>,
}

impl<T: Scalar> Sums<T> {
    fn new(gpu: &Gpu, model: Model, sets: usize) -> Result<Self> {
        let (stream, len) = (gpu.stream(), model.shape.elements()?);
        let plan = TermGradPlan::new(gpu, &model.term, model.shape)?;
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, len));
        let sets = (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?;
        let out = stream.alloc_zeros(model.numbers.span()?)?;
        Ok(Self { gpu: gpu.clone(), model, plan, sets, out })
    }
}

impl<T: Scalar> Operation for Sums<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let Self { model: Model { shape, numbers, of_keys, .. }, plan, .. } = self;
        let call = if *of_keys { TermGradPlan::apply_keys } else { TermGradPlan::apply };
        call(plan, shape.of(&self.sets[set]), Places::counted(0, 0), 1.0, *numbers, &mut self.out)
    }

    /// Every number, against the sums in f64.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        self.call(0)?;
        let grad = stream.clone_dtoh(&self.sets[0])?;
        let Model { term, shape, numbers, of_keys, .. } = &self.model;
        let call = if *of_keys { Term::key_grad } else { Term::grad };
        let want = call(term, &grad, shape, &Places::counted(0, 0), &TermInputs::default(), numbers)?;
        compare(&stream.clone_dtoh(&self.out)?, &want.values, |i| TermGrad::error_bound(want.sizes[i]))
    }
}
