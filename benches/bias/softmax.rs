//! The fused softmax, the bias alone and the gradients of T5's table, on the shapes of real models.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::{
    Alibi, Bias, BiasPlan, DistanceGrad, DistanceGradPlan, Gpu, Inputs, Logits, LogitsOperand, Places, Scalar, Slopes,
    Softmax, SoftmaxInputs, SoftmaxPlan, T5Bias, Toeplitz,
};

use crate::support::{Case, Operation, compare, values};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Softmax,
    CausalSoftmax,
    Add,
    TableGrad,
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
            cases.push(case::<bf16>(model, queries, keys, Form::Softmax));
            cases.push(case::<bf16>(model, queries, keys, Form::CausalSoftmax));
        }
        cases.push(case::<f32>(model, 2048, 2048, Form::Softmax));
        cases.push(case::<bf16>(model, 2048, 2048, Form::Add));
    }
    for keys in [128, 512, 2048, 8192] {
        cases.push(case::<bf16>(T5, keys, keys, Form::TableGrad));
    }
    // Cost against keys: few heads, so that the emulator reaches long rows.
    let few = Model { name: "keys", heads: 4, t5: None };
    for keys in (10..=17).map(|n| 1 << n) {
        let mut keys_case = case::<bf16>(few, 4, keys, Form::Softmax);
        keys_case.name = format!("Softmax/keys/bf16/{keys}");
        cases.push(keys_case);
    }
    cases
}

fn case<T: Scalar>(model: Model, queries: usize, keys: usize, form: Form) -> Case {
    let shape = Logits::bhqk(1, model.heads, queries, keys);
    let elements = (model.heads * queries * keys) as u64;
    // A causal softmax reads the keys up to each query's own; it writes zeros for the others.
    let seen = (1..=queries).map(|query| keys - queries + query).sum::<usize>();
    let read = if form == Form::CausalSoftmax { (model.heads * seen) as u64 } else { elements };
    let written = if form == Form::TableGrad { 0 } else { elements };
    let bytes = (read + written) * size_of::<T>() as u64;
    let name = format!("{form:?}/{}/{}/{queries}x{keys}", model.name, T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Call::<T>::new(gpu, model, shape, form, sets)?))
    };
    Case { name, elements, bytes, make: Box::new(make) }
}

struct Call<T> {
    gpu: Gpu,
    form: Form,
    shape: Logits,
    slopes: Slopes,
    row: Option<Toeplitz>,
    t5: Option<T5Bias>,
    bias: BiasPlan<T>,
    softmax: SoftmaxPlan<T>,
    grad: Option<DistanceGradPlan<T>>,
    sets: Vec<CudaSlice<T>>,
    table: CudaSlice<f32>,
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
        let bias = match &row {
            Some(row) => BiasPlan::new(gpu, Bias::Toeplitz(row))?,
            None => BiasPlan::new(gpu, Bias::Slopes(&slopes))?,
        };
        let softmax = if form == Form::CausalSoftmax { Softmax::causal(0.125) } else { Softmax::new(0.125) };
        let grad = match (form, model.t5) {
            (Form::TableGrad, Some(spec)) => Some(DistanceGradPlan::t5(gpu, spec, heads, &shape)?),
            _ => None,
        };
        let len = shape.elements()?;
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, len));
        Ok(Self {
            gpu: gpu.clone(),
            form,
            shape,
            slopes,
            row,
            t5: model.t5,
            bias,
            softmax: SoftmaxPlan::new(gpu, &softmax)?,
            table: stream.clone_htod(&vec![0.0f32; grad.as_ref().map_or(1, DistanceGradPlan::len)])?,
            grad,
            sets: (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?,
        })
    }
}

impl<T: Scalar> Operation for Call<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let x = &mut self.sets[set];
        match (self.form, &self.grad) {
            (Form::Softmax | Form::CausalSoftmax, _) => {
                let inputs = SoftmaxInputs::new(&self.bias, Places::last());
                self.softmax.apply(LogitsOperand::InPlace(x, self.shape), &inputs, None)
            }
            (_, Some(grad)) => grad.apply((x, self.shape), &Places::last(), None, 1.0, &mut self.table),
            (_, None) => self.bias.add(x, &self.shape, &Places::last()),
        }
    }

    /// The first and the last row, or the whole table.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let before = stream.clone_dtoh(&self.sets[0])?;
        self.call(0)?;
        let (heads, queries, keys) = (self.shape.heads, self.shape.queries, self.shape.keys);
        if let (Some(_), Some(spec)) = (&self.grad, self.t5) {
            let sums = |x: &[T]| DistanceGrad::new(x, &self.shape, &Places::last(), spec.distances());
            let want = spec.grad(&sums(&before)?)?;
            let sizes: Vec<T> = before.iter().map(|x| T::from_f64(x.to_f64().abs())).collect();
            let size = spec.grad(&sums(&sizes)?)?;
            return compare(&stream.clone_dtoh(&self.table)?, &want, |i| DistanceGrad::error_bound(size[i]));
        }
        let after = stream.clone_dtoh(&self.sets[0])?;
        for query in [0, queries - 1] {
            // Row `query` of every head, as one call at that query's position.
            let one = Logits { queries: 1, ..self.shape }.at(query * keys);
            let places = Places::from((keys - queries + query) as i64, 0);
            let bias = self.row.as_ref().map_or(Bias::Slopes(&self.slopes), Bias::Toeplitz);
            let own = |x: &[T]| -> Vec<T> {
                (0..heads).flat_map(|head| x[one.index(0, head, 0, 0)..][..keys].to_vec()).collect()
            };
            let (before, after, rows) = (own(&before), own(&after), Logits::bhqk(1, heads, 1, keys));
            if self.form == Form::Add {
                let mut want = before;
                bias.add(&mut want, &rows, &places)?;
                let want: Vec<f64> = want.iter().map(|x| x.to_f64()).collect();
                // Both are rounded from sums that differ by the bias's own error.
                compare(&after, &want, |i| 2.0 * T::ROUNDOFF * want[i].abs() + 1e-5)?;
            } else {
                let inputs = Inputs { bias, ..Inputs::at(places) };
                let expected = self.softmax.softmax().expect(&before, &rows, &inputs)?;
                compare(&after, &expected.want, |i| expected.bound[i])?;
            }
        }
        Ok(())
    }
}
