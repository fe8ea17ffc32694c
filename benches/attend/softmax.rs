//! The fused softmax and its gradient, prefill and decode, on the shapes of real models.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::attend::{GradOptions, Inputs};
use posenc::bias::{Slopes, Toeplitz};
use posenc::{Alibi, Bias, Gpu, Logits, Places, Scalar, Softmax, SoftmaxPlan, T5Bias};

use crate::support::{Case, Operation, compare, values};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Softmax,
    CausalSoftmax,
    SoftmaxGrad,
}

/// A model's heads and its bias.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    heads: usize,
    t5: Option<T5Bias>,
}

const BLOOM: Model = Model { name: "bloom-7b1", heads: 32, t5: None };
const T5: Model = Model { name: "t5-large", heads: 16, t5: Some(T5Bias::new(32, 128, true)) };

/// Every case, the headline ones first.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for model in [BLOOM, T5] {
        for (queries, keys) in [(512, 512), (2048, 2048), (8192, 8192), (1, 8192), (1, 131_072), (32, 32)] {
            cases.push(case::<bf16>(model, 1, queries, keys, Form::Softmax));
            cases.push(case::<bf16>(model, 1, queries, keys, Form::CausalSoftmax));
        }
        for (queries, keys) in [(32, 32), (512, 512), (2048, 2048), (8192, 8192)] {
            cases.push(case::<bf16>(model, 1, queries, keys, Form::SoftmaxGrad));
        }
        cases.push(case::<bf16>(model, 64, 1, 2048, Form::Softmax));
        cases.push(case::<f32>(model, 1, 2048, 2048, Form::Softmax));
    }
    // Rows of 1k to 32k keys, as many as fill a device.
    for keys in [1024, 4096, 16384, 32768] {
        cases.push(case::<bf16>(BLOOM, 1, (1 << 22) / keys, keys, Form::Softmax));
    }
    // Just as many rows as leave each thread eight packs: what the emulator can count.
    for (model, keys) in [(BLOOM, 1024), (BLOOM, 8192), (T5, 1024)] {
        cases.push(case::<bf16>(
            Model { name: "rows", ..model },
            1,
            (33 << 18) / model.heads / keys,
            keys,
            Form::Softmax,
        ));
    }
    cases.push(case::<bf16>(Model { name: "rows", ..BLOOM }, 1, 33, 8192, Form::SoftmaxGrad));
    // Cost against keys, queries and heads: small otherwise, so that the emulator reaches far.
    let few = |heads| Model { name: "few", heads, t5: None };
    for form in [Form::Softmax, Form::SoftmaxGrad] {
        for keys in (10..=17).map(|n| 1 << n) {
            let name = format!("{form:?}/keys/bf16/{keys}");
            cases.push(Case { name, ..case::<bf16>(few(4), 1, 4, keys, form) });
        }
        for queries in (0..=16).step_by(2).map(|n| 1 << n) {
            let name = format!("{form:?}/scale/bf16/{queries}");
            cases.push(Case { name, ..case::<bf16>(few(1), 1, queries, 64, form) });
        }
        for heads in (0..=7).map(|n| 1 << n) {
            let name = format!("{form:?}/heads/bf16/{heads}");
            cases.push(Case { name, ..case::<bf16>(few(heads), 1, 16, 256, form) });
        }
    }
    cases
}

fn case<T: Scalar>(model: Model, batch: usize, queries: usize, keys: usize, form: Form) -> Case {
    let shape = Logits::bhqk(batch, model.heads, queries, keys);
    let elements = (batch * model.heads * queries * keys) as u64;
    let element = size_of::<T>() as u64;
    let read = match form {
        Form::Softmax => elements,
        // The keys up to each query's own; for the others zeros are written.
        Form::CausalSoftmax => {
            (batch * model.heads * (1..=queries).map(|query| keys + query - queries).sum::<usize>()) as u64
        }
        Form::SoftmaxGrad => 2 * elements,
    };
    let of = if batch == 1 { String::new() } else { format!("{batch}x") };
    let name = format!("{form:?}/{}/{}/{of}{queries}x{keys}", model.name, T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Call::<T>::new(gpu, model, shape, form, sets)?))
    };
    Case { name, elements, read: read * element, written: elements * element, make: Box::new(make) }
}

struct Call<T> {
    gpu: Gpu,
    form: Form,
    shape: Logits,
    slopes: Slopes,
    row: Option<Toeplitz>,
    softmax: SoftmaxPlan<T>,
    /// logits; or the gradient of probabilities
    sets: Vec<CudaSlice<T>>,
    /// of the gradient: probabilities, and the gradient of logits
    grad: Vec<[CudaSlice<T>; 2]>,
}

impl<T: Scalar> Call<T> {
    fn new(gpu: &Gpu, model: Model, shape: Logits, form: Form, sets: usize) -> Result<Self> {
        let stream = gpu.stream();
        let heads = model.heads;
        let slopes = Alibi::new(heads).slopes()?;
        let row = match model.t5 {
            Some(spec) => Some(spec.row(&values::<f32>(1, spec.buckets * heads), heads)?),
            None => None,
        };
        let spec = if form == Form::CausalSoftmax { Softmax::causal(0.125) } else { Softmax::new(0.125) };
        let bias = row.as_ref().map_or(Bias::Slopes(&slopes), Bias::Toeplitz);
        let softmax = SoftmaxPlan::new(gpu, &spec, bias)?;
        let len = shape.elements()?;
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, len));
        let mut grad = Vec::new();
        if form == Form::SoftmaxGrad {
            for set in 0..sets {
                let mut p = fill(sets + set)?;
                softmax.apply(shape.of_mut(&mut p), &Inputs::default())?;
                grad.push([p, stream.alloc_zeros(len)?]);
            }
        }
        let sets = (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { gpu: gpu.clone(), form, shape, slopes, row, softmax, sets, grad })
    }
}

impl<T: Scalar> Operation for Call<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (x, shape) = (&mut self.sets[set], self.shape);
        let inputs = Inputs::default();
        match self.grad.get_mut(set) {
            None => self.softmax.apply(shape.of_mut(x), &inputs),
            Some([p, out]) => {
                self.softmax.grad(shape.of(p), shape.of(x).to(shape.of_mut(out)), &inputs, GradOptions::default())
            }
        }
    }

    /// The first row and the last one of every head of the last sequence.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let before = stream.clone_dtoh(&self.sets[0])?;
        self.call(0)?;
        let after = stream.clone_dtoh(self.grad.first().map_or(&self.sets[0], |[_, out]| out))?;
        let p = self.grad.first().map(|[p, _]| stream.clone_dtoh(p)).transpose()?;
        let (heads, queries, keys) = (self.shape.heads, self.shape.queries, self.shape.keys);
        for query in [0, queries - 1] {
            // Row `query` of every head, as one call at that query's position.
            let places = Places::counted((keys + query) as i64 - queries as i64, 0);
            let bias = self.row.as_ref().map_or(Bias::Slopes(&self.slopes), Bias::Toeplitz);
            let own = |x: &[T]| -> Vec<T> {
                let at = |head| self.shape.index(self.shape.batch - 1, head, query, 0);
                (0..heads).flat_map(|head| x[at(head)..][..keys].to_vec()).collect()
            };
            let (before, after, rows) = (own(&before), own(&after), Logits::bhqk(1, heads, 1, keys));
            let inputs = Inputs { bias, ..Inputs::at(places) };
            match &p {
                None => {
                    let expected = self.softmax.softmax().expect(&before, &rows, &inputs)?;
                    compare(&after, &expected.want, |i| expected.bound[i])?;
                }
                Some(p) => {
                    let p = own(p);
                    let expected = self.softmax.softmax().expect_grad(&p, &before, &p, &rows, &inputs)?;
                    compare(&after, &expected.logits, |i| expected.logits_bound[i])?;
                }
            }
            if self.form == Form::CausalSoftmax && query + 1 < queries {
                anyhow::ensure!(after[keys - 1].to_f64() == 0.0, "a key of the future has a probability");
            }
        }
        Ok(())
    }
}
