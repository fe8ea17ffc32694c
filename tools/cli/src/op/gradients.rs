//! Gradients of parameters and tables, of merged attention and of the value side.

use std::ops::RangeInclusive;

use anyhow::{Result, bail, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::attend::{MergeGrad, MergePlan, RelativeTableGradPlan, RelativeValues, RelativeValuesPlan, State};
use posenc::bias::{
    BiasInputs, DeviceSwin2Weights, DeviceTermInputs, DistanceGrad, DistanceGradPlan, FireGradPlan, GateSums,
    GateSumsPlan, Index, Indices, Kerple, Numbers, Slopes, Swin2Bias, Swin2GradOut, Swin2Plan, Term, TermGrad,
    TermGradPlan, TermInputs, Window,
};
use posenc::{Alibi, Heads, Logits};
use serde::{Deserialize, Serialize};

use super::content::ValuesOp;
use super::logits::{Attention, Swin2Op, places, reach};
use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements, parts, sizes};
use crate::law::Law;
use crate::tensors::Dtype;

const GRAD: (&str, &str) =
    ("grad", "f32, f16 or bf16, [batch, heads, queries, keys]: the gradient of every logit after the bias");

/// Sums a bias's gradient into those of its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiasGradOp {
    pub bias: Law,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn bias_grad_form() -> Form {
    let of = |bias| Op::BiasGrad(BiasGradOp { bias, at: None });
    let t5 = Law::parse("t5=32,128").expect("a law");
    let kerple = Law::parse("kerple-log=1,0.5").expect("a law");
    Form {
        about: "gradients of a bias's parameters: slopes, T5's table, KERPLE's numbers, FIRE's network, a row",
        reads: &[GRAD],
        writes: &[
            ("slopes", "f32, [2, heads], of ALiBi and slopes: those of the past, then those of the future"),
            ("table", "f32, [buckets, heads], of T5"),
            ("p, a", "f32, [heads], of KERPLE"),
            ("c, threshold", "f32, scalars of FIRE"),
            ("in_weight, in_bias, out_weight, out_bias", "f32, as FIRE has them"),
            ("values", "f32, [heads, distances], of a row; distances outside count at its ends"),
        ],
        examples: vec![of(Law::Alibi(Alibi::new(4))), of(t5), of(kerple), of(Law::example_fire())],
    }
}

/// Every distance, key minus query, of a call.
fn distances(shape: &Logits, at: Option<[i64; 2]>) -> Result<RangeInclusive<i64>> {
    reach(shape, at)?;
    let [query, key] = at.unwrap_or([shape.keys as i64 - shape.queries as i64, 0]);
    Ok(key - query - (shape.queries as i64 - 1).max(0)..=key - query + (shape.keys as i64 - 1).max(0))
}

impl Operation for BiasGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("grad")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let shape = [2, self.bias.heads(), 3, 40 * scale];
        Inputs::default().with_values("grad", dtype, &shape, &values(shape.iter().product()))
    }
}

impl BiasGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("grad")?;
        let [batch, heads, queries, keys] = sizes("grad", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let grad = elements::<T>("grad", tensor)?;
        // Sizes of the addends, of which the error allowed is a part.
        let magnitudes: Vec<T> = grad.iter().map(|x| T::from_f64(x.to_f64().abs())).collect();
        let by_distance = |x: &[T], range| DistanceGrad::new(x, &shape, &places(self.at), range);
        let all = distances(&shape, self.at)?;
        let furthest = reach(&shape, self.at)?;
        let heads_of = self.bias.heads();
        ensure!(heads == heads_of, "grad has {heads} heads, the bias {heads_of}");
        let bounded = |size: &[f64]| size.iter().map(|size| DistanceGrad::error_bound(size.abs())).collect();
        let (names, wanted): (Vec<(&str, Vec<usize>)>, Expected) = match &self.bias {
            Law::Alibi(_) | Law::Slopes(_) => {
                let [want, size] = [&grad, &magnitudes].map(|x| -> Result<Vec<f64>> {
                    let sums = Slopes::grad(&by_distance(x, all.clone())?);
                    Ok([sums.left, sums.right].concat())
                });
                (vec![("slopes", vec![2, heads])], Expected { want: want?, bound: bounded(&size?) })
            }
            Law::T5(t5) => {
                let [want, size] =
                    [&grad, &magnitudes].map(|x| t5.buckets.grad(&by_distance(x, t5.buckets.distances())?));
                (vec![("table", vec![t5.buckets.buckets, heads])], Expected { want: want?, bound: bounded(&size?) })
            }
            Law::Kerple(kerple) => {
                let sums = kerple.grad(&by_distance(&grad, all.clone())?)?;
                let size = kerple_sizes(kerple, &by_distance(&magnitudes, all.clone())?);
                let want = [sums.p, sums.a].concat();
                (vec![("p", vec![heads]), ("a", vec![heads])], Expected { want, bound: bounded(&size) })
            }
            Law::Toeplitz(row) => {
                let range = row.first..=row.first + row.distances() as i64 - 1;
                let [want, size] = [&grad, &magnitudes].map(|x| by_distance(x, range.clone()));
                let expected = Expected { want: want?.values, bound: bounded(&size?.values) };
                (vec![("values", vec![heads, row.distances()])], expected)
            }
            Law::Fire(fire) => {
                let (want, bound) = fire.expect_grad(&grad, &shape, &places(self.at))?;
                let width = fire.in_weight.len();
                let names = vec![
                    ("c", vec![]),
                    ("threshold", vec![]),
                    ("in_weight", vec![width]),
                    ("in_bias", vec![width]),
                    ("out_weight", vec![heads, width]),
                    ("out_bias", vec![heads]),
                ];
                (names, Expected { want: want.flat(), bound: bound.flat() })
            }
            Law::Sandwich(_) => bail!("Sandwich has no parameters, and so no gradient of them"),
        };
        let got = match device {
            Device::Cpu => wanted.want.iter().map(|&value| value as f32).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, mut y) = (stream.clone_htod(&grad)?, stream.clone_htod(&vec![0f32; wanted.want.len()])?);
                let plan = match &self.bias {
                    Law::Fire(fire) => {
                        let plan = FireGradPlan::<T>::new(gpu, fire, usize::try_from(furthest)?, shape)?;
                        plan.apply(shape.of(&x), places(self.at), 1.0, &mut y)?;
                        None
                    }
                    Law::T5(t5) => Some(DistanceGradPlan::t5(gpu, t5.buckets, heads, shape)?),
                    Law::Kerple(kerple) => Some(DistanceGradPlan::kerple(gpu, kerple, all, shape)?),
                    Law::Toeplitz(row) => {
                        let range = row.first..=row.first + row.distances() as i64 - 1;
                        Some(DistanceGradPlan::row(gpu, heads, range, shape)?)
                    }
                    _ => Some(DistanceGradPlan::<T>::slopes(gpu, heads, shape)?),
                };
                if let Some(plan) = plan {
                    plan.apply(shape.of(&x), places(self.at), 1.0, &mut y)?;
                }
                stream.clone_dtoh(&y)?
            }
        };
        Ok(parts(&names, &got, expected.then_some(wanted)))
    }
}

/// The sums of the sizes of what KERPLE's gradients add.
fn kerple_sizes(kerple: &Kerple, magnitudes: &DistanceGrad) -> Vec<f64> {
    let heads = magnitudes.heads;
    let mut size = vec![0.0; 2 * heads];
    for head in 0..heads {
        for (distance, value) in magnitudes.of(head) {
            let [by_p, by_a] = kerple.derivatives(head, distance);
            size[head] += (value * by_p).abs();
            size[heads + head] += (value * by_a).abs();
        }
    }
    size
}

/// Sums a bias's gradient into that of the numbers which a term reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermsGradOp {
    pub term: Term,
    /// shape of the term's numbers: `[entries, heads]`, or `[batch or 1, heads or 1, rows, entries]`
    pub shape: Vec<usize>,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn terms_grad_form() -> Form {
    let swin = Window::swin(4, 4);
    let table = vec![swin.entries(), 3];
    let ends = vec![2, 3, 16, 1];
    Form {
        about: "the gradient of the numbers that a term reads: a window's table, products, endpoints",
        reads: &[GRAD, ("indices", "i32, of given indices: [batch or 1, rows, columns]")],
        writes: &[
            ("numbers", "f32, of the spec's shape; of endpoints those of the queries"),
            ("keys", "f32, of endpoints: those of the keys, [batch or 1, heads or 1, keys, 1]"),
        ],
        examples: vec![
            Op::TermsGrad(TermsGradOp { term: Term::table(swin), shape: table, at: Some([0, 0]) }),
            Op::TermsGrad(TermsGradOp { term: Term::endpoints(), shape: ends, at: None }),
        ],
    }
}

/// The layout of a term's numbers.
pub fn numbers_of(name: &str, shape: &[usize]) -> Result<Numbers> {
    match *shape {
        [entries, heads] => Ok(Numbers::table(entries, heads)),
        [batch, heads, rows, entries] => Ok(Numbers::rows(batch, heads, rows, entries)),
        _ => bail!("{name} is {shape:?}, it must be [entries, heads] or [batch, heads, rows, entries]"),
    }
}

impl Operation for TermsGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("grad")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (batch, tokens) =
            if self.term.index == Index::Endpoints { (2, self.shape[2]) } else { (scale.min(40), 16) };
        let shape = [batch, 3, tokens, tokens];
        Inputs::default().with_values("grad", dtype, &shape, &values(shape.iter().product()))
    }
}

impl TermsGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("grad")?;
        let [batch, heads, queries, keys] = sizes("grad", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let grad = elements::<T>("grad", tensor)?;
        let indices = inputs.i32s("indices")?;
        let host = TermInputs { indices: indices.as_deref().map(Indices::I32), ..TermInputs::default() };
        let has_ends = self.term.index == Index::Endpoints;
        let mut key_shape = self.shape.clone();
        if let (true, [_, _, rows, _]) = (has_ends, &mut key_shape[..]) {
            *rows = keys;
        }
        let mut out = Vec::new();
        for (name, of_keys, own) in [("numbers", false, &self.shape), ("keys", true, &key_shape)] {
            if of_keys && !has_ends {
                continue;
            }
            let numbers = numbers_of(name, own)?;
            let place = places(self.at);
            let sums = match of_keys {
                false => self.term.grad(&grad, &shape, &place, &host, &numbers)?,
                true => self.term.key_grad(&grad, &shape, &place, &host, &numbers)?,
            };
            let bound = sums.sizes.iter().map(|&size| TermGrad::error_bound(size)).collect();
            let wanted = Expected { want: sums.values, bound };
            let got = match device {
                Device::Cpu => wanted.want.iter().map(|&value| value as f32).collect(),
                Device::Gpu(gpu) => {
                    let stream = gpu.stream();
                    let (x, mut y) = (stream.clone_htod(&grad)?, stream.clone_htod(&vec![0f32; wanted.want.len()])?);
                    let indices = indices.as_ref().map(|indices| stream.clone_htod(indices)).transpose()?;
                    let terms = [DeviceTermInputs {
                        indices: indices.as_ref().map(|indices| Indices::I32(indices as _)),
                        ..DeviceTermInputs::default()
                    }];
                    let call = BiasInputs { terms: &terms, ..places(self.at).into() };
                    let plan = TermGradPlan::<T>::new(gpu, &self.term, shape)?;
                    match of_keys {
                        false => plan.apply(shape.of(&x), call, 1.0, numbers, &mut y)?,
                        true => plan.apply_keys(shape.of(&x), call, 1.0, numbers, &mut y)?,
                    }
                    stream.clone_dtoh(&y)?
                }
            };
            out.extend(parts(&[(name, own.clone())], &got, expected.then_some(wanted)));
        }
        Ok(out)
    }
}

/// The gradients of Swin v2's network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swin2GradOp {
    pub spec: Swin2Bias,
}

pub fn swin2_grad_form() -> Form {
    Form {
        about: "gradients of the weights of Swin v2's network, from that of its table",
        reads: &[
            ("w1, b1, w2", "f32, f16 or bf16, [hidden, 2], [hidden] and [heads, hidden]"),
            ("b2", "[heads]; optional"),
            ("grad", "f32, [entries, heads]: the gradient of the table"),
        ],
        writes: &[("w1, b1, w2, b2", "f32, of the weights' shapes")],
        examples: vec![Op::Swin2Grad(Swin2GradOp { spec: Swin2Bias::new([3, 4], 32, 4) })],
    }
}

impl Operation for Swin2GradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("w1")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let inputs = Swin2Op { spec: self.spec }.sample(dtype, scale, values);
        let shape = [self.spec.entries(), self.spec.heads];
        inputs.with_values("grad", Dtype::F32, &shape, &values(shape[0] * shape[1]))
    }
}

impl Swin2GradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.spec;
        let net = Swin2Op { spec: *spec }.weights::<T>(inputs)?;
        let grad = inputs.given::<f32>("grad", &[spec.entries(), spec.heads])?;
        let (want, bound) = spec.expect_grad(&net.host(), &grad)?;
        let flat = |it: posenc::bias::Swin2Grad| [it.w1, it.b1, it.w2, it.b2].concat();
        let wanted = Expected { want: flat(want), bound: flat(bound) };
        let got = match device {
            Device::Cpu => wanted.want.iter().map(|&value| value as f32).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (w1, b1, w2) =
                    (stream.clone_htod(&net.w1)?, stream.clone_htod(&net.b1)?, stream.clone_htod(&net.w2)?);
                let b2 = net.b2.as_ref().map(|b2| stream.clone_htod(b2)).transpose()?;
                let weights = DeviceSwin2Weights { w1: &w1, b1: &b1, w2: &w2, b2: b2.as_ref().map(|b2| b2 as _) };
                let table = stream.clone_htod(&grad)?;
                let blank = |count: usize| stream.clone_htod(&vec![0f32; count]);
                let (hidden, heads) = (spec.hidden, spec.heads);
                let mut out = [blank(2 * hidden)?, blank(hidden)?, blank(heads * hidden)?, blank(heads)?];
                let [w1_out, b1_out, w2_out, b2_out] = &mut out;
                let written = Swin2GradOut { w1: w1_out, b1: b1_out, w2: w2_out, b2: Some(b2_out) };
                Swin2Plan::<T>::new(gpu, spec)?.grad(weights, &table, written)?;
                let mut all = Vec::new();
                for buffer in &out {
                    all.extend(stream.clone_dtoh(buffer)?);
                }
                all
            }
        };
        let (hidden, heads) = (spec.hidden, spec.heads);
        let names = [("w1", vec![hidden, 2]), ("b1", vec![hidden]), ("w2", vec![heads, hidden]), ("b2", vec![heads])];
        let mut out = parts(&names, &got, expected.then_some(wanted));
        if net.b2.is_none() {
            out.pop();
        }
        Ok(out)
    }
}

/// The gradient of gates from those of their prefix sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSumsGradOp {
    pub spec: GateSums,
}

pub fn gate_sums_grad_form() -> Form {
    Form {
        about: "the gradient of log gates from those of their prefix sums at queries' and at keys' ends",
        reads: &[
            ("gates", "f32, [batch, heads, tokens]: what the sums were made of"),
            ("query_grad, key_grad", "f32, as gates: the gradient of a token's sum as a query's end and as a key's"),
        ],
        writes: &[("out", "f32, as gates")],
        examples: vec![
            Op::GateSumsGrad(GateSumsGradOp { spec: GateSums::logs() }),
            Op::GateSumsGrad(GateSumsGradOp { spec: GateSums::logits() }),
        ],
    }
}

impl Operation for GateSumsGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.need("gates")?;
        let [batch, heads, tokens] = sizes("gates", tensor, "[batch, heads, tokens]")?;
        let gates = elements::<f32>("gates", tensor)?;
        let [query, key] = ["query_grad", "key_grad"].map(|name| inputs.given::<f32>(name, &tensor.shape));
        let (query, key, shape) = (query?, key?, Numbers::rows(batch, heads, tokens, 1));
        let (want, bound) = self.spec.grad((&gates, shape), (&query, shape), (&key, shape))?;
        let got = match device {
            Device::Cpu => want.iter().map(|&value| value as f32).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, query, key) =
                    (stream.clone_htod(&gates)?, stream.clone_htod(&query)?, stream.clone_htod(&key)?);
                let mut y = stream.clone_htod(&vec![0f32; gates.len()])?;
                let plan = GateSumsPlan::<f32>::new(gpu, self.spec)?;
                plan.grad(shape.of(&x), shape.of(&query), shape.of(&key), shape.of_mut(&mut y))?;
                stream.clone_dtoh(&y)?
            }
        };
        Ok(parts(&[("out", tensor.shape.clone())], &got, expected.then_some(Expected { want, bound })))
    }

    fn sample(&self, _: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (shape, count) = ([2, 3, 5 * scale], 30 * scale);
        let gates: Vec<f64> = values(count).iter().map(|value| value.abs() * -4.0).collect();
        ["query_grad", "key_grad"]
            .into_iter()
            .fold(Inputs::default().with_values("gates", Dtype::F32, &shape, &gates), |inputs, name| {
                inputs.with_values(name, Dtype::F32, &shape, &values(count))
            })
    }
}

/// The gradients of relative positions on the value side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValuesGradOp {
    pub spec: RelativeValues,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn values_grad_form() -> Form {
    Form {
        about: "gradients of probabilities and table of relative positions on the value side",
        reads: &[
            ("p", "f32, f16 or bf16, [batch, heads, queries, keys]: probabilities"),
            ("table", "f32, [heads or 1, entries, dim]"),
            ("grad", "of the probabilities' type, [batch, queries, heads, dim]: the gradient of the values"),
        ],
        writes: &[("p", "the gradient of the probabilities"), ("table", "f32, that of the table")],
        examples: vec![Op::RelativeValuesGrad(ValuesGradOp { spec: RelativeValues::vits(4), at: None })],
    }
}

impl Operation for ValuesGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("p")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let mut inputs = ValuesOp { spec: self.spec.clone(), at: self.at }.sample(dtype, scale, values);
        let grad = inputs.0.remove("z").expect("z");
        inputs.with("grad", grad)
    }
}

impl ValuesGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let (tensor, table, grad) = (inputs.need("p")?, inputs.need("table")?, inputs.need("grad")?);
        let [batch, heads, queries, keys] = sizes("p", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let [own_batch, tokens, own_heads, dim] = sizes("grad", grad, "[batch, queries, heads, dim]")?;
        let own = Heads::bthd(own_batch, tokens, own_heads, dim);
        let [of_heads, entries, of_dim] = sizes("table", table, "[heads or 1, entries, dim]")?;
        let numbers = Numbers::rows(1, of_heads, entries, of_dim);
        let table_shape = table.shape.clone();
        let (p, table, grad) =
            (elements::<T>("p", tensor)?, elements::<f32>("table", table)?, elements::<T>("grad", grad)?);
        let all = self.spec.grad((&p, shape), (&table, numbers), (&grad, own), &places(self.at))?;
        let (p_out, table_out): (Vec<T>, Vec<f32>) = match device {
            Device::Cpu => (
                all.p.iter().map(|&value| T::from_f64(value)).collect(),
                all.table.iter().map(|&value| value as f32).collect(),
            ),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, t, dz) = (stream.clone_htod(&p)?, stream.clone_htod(&table)?, stream.clone_htod(&grad)?);
                let (mut dp, mut dt) = (stream.clone_htod(&p)?, stream.clone_htod(&table)?);
                let plan = RelativeValuesPlan::<T>::new(gpu, &self.spec)?;
                plan.grad(own.of(&dz), numbers.of(&t), shape.of_mut(&mut dp), places(self.at), false)?;
                let plan = RelativeTableGradPlan::<T>::new(gpu, &self.spec, of_heads, dim, shape)?;
                plan.apply(shape.of(&x), own.of(&dz), places(self.at), &mut dt)?;
                (stream.clone_dtoh(&dp)?, stream.clone_dtoh(&dt)?)
            }
        };
        let bound = all.p.iter().zip(&all.p_error).map(|(&want, &error)| rounded::<T>(want, error)).collect();
        let p_expected = expected.then_some(Expected { want: all.p, bound });
        let table_expected = expected.then_some(Expected { want: all.table, bound: all.table_bound });
        Ok(vec![
            Out::new("p", &tensor.shape, &p_out, p_expected),
            Out::new("table", &table_shape, &table_out, table_expected),
        ])
    }
}

/// The gradients of two attention outputs that were put together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeGradOp {}

pub fn merge_grad_form() -> Form {
    Form {
        about: "gradients of two attention outputs and their log-sum-exps from those of the merged one",
        reads: &[
            ("a, b", "f32, f16 or bf16, [batch, tokens, heads, dim]"),
            ("a_lse, b_lse", "f32, [batch, heads, tokens]"),
            ("grad", "as a: the gradient of the merged output"),
            ("lse_grad", "f32, [batch, heads, tokens]: the gradient of its log-sum-exp; optional"),
        ],
        writes: &[("a, b", "as they are"), ("a_lse, b_lse", "f32, as they are")],
        examples: vec![Op::MergeGrad(MergeGradOp {})],
    }
}

impl Operation for MergeGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("a")?.dtype, T => merge_grad::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let inputs = super::logits::MergeOp {}.sample(dtype, scale, values);
        let tokens = 3 * scale;
        let inputs = inputs.with_values("grad", dtype, &[2, tokens, 4, 16], &values(2 * tokens * 4 * 16));
        inputs.with_values("lse_grad", Dtype::F32, &[2, 4, tokens], &values(2 * 4 * tokens))
    }
}

fn merge_grad<T: Float>(inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
    let attention = Attention::<T>::new(inputs)?;
    let Attention { heads, rows, a, b, .. } = &attention;
    let (shape, lse_shape) = (&attention.shape, &attention.lse_shape);
    let grad = inputs.given::<T>("grad", shape)?;
    let lse_grad = inputs.values::<f32>("lse_grad", lse_shape)?;
    let [first, second] = attention.host();
    let wanted = posenc::attend::merge_grad_expect(first, second, (&grad, *heads), lse_grad.as_deref())?;
    let (out, lse): ([Vec<T>; 2], [Vec<f32>; 2]) = match device {
        Device::Cpu => (
            wanted.out.each_ref().map(|it| it.want.iter().map(|&value| T::from_f64(value)).collect()),
            wanted.lse.each_ref().map(|it| it.want.iter().map(|&value| value as f32).collect()),
        ),
        Device::Gpu(gpu) => {
            let stream = gpu.stream();
            let (x, x_lse) = (stream.clone_htod(&a.0)?, stream.clone_htod(&a.1)?);
            let (y, y_lse) = (stream.clone_htod(&b.0)?, stream.clone_htod(&b.1)?);
            let given = stream.clone_htod(&grad)?;
            let given_lse = lse_grad.as_ref().map(|grad| stream.clone_htod(grad)).transpose()?;
            let (mut x_out, mut x_lse_out) = (stream.clone_htod(&a.0)?, stream.clone_htod(&a.1)?);
            let (mut y_out, mut y_lse_out) = (stream.clone_htod(&b.0)?, stream.clone_htod(&b.1)?);
            MergePlan::<T>::new(gpu)?.grad(
                State { out: heads.of(&x), lse: rows.of(&x_lse) },
                State { out: heads.of(&y), lse: rows.of(&y_lse) },
                heads.of(&given),
                given_lse.as_ref().map(|grad| rows.of(grad)),
                MergeGrad {
                    a: State { out: heads.of_mut(&mut x_out), lse: rows.of_mut(&mut x_lse_out) },
                    b: State { out: heads.of_mut(&mut y_out), lse: rows.of_mut(&mut y_lse_out) },
                },
            )?;
            (
                [stream.clone_dtoh(&x_out)?, stream.clone_dtoh(&y_out)?],
                [stream.clone_dtoh(&x_lse_out)?, stream.clone_dtoh(&y_lse_out)?],
            )
        }
    };
    let [a_want, b_want] = wanted.out.map(|it| expected.then_some(it));
    let [a_lse_want, b_lse_want] = wanted.lse.map(|it| {
        // The bound is of the sum before it is rounded to f32.
        let bound = it.want.iter().zip(&it.bound).map(|(&want, &error)| rounded::<f32>(want, error)).collect();
        expected.then_some(Expected { bound, want: it.want })
    });
    Ok(vec![
        Out::new("a", shape, &out[0], a_want),
        Out::new("b", shape, &out[1], b_want),
        Out::new("a_lse", lse_shape, &lse[0], a_lse_want),
        Out::new("b_lse", lse_shape, &lse[1], b_lse_want),
    ])
}
