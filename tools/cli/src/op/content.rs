//! Biases that read tables and content: sums of terms, products of states and a table, the value side, prefix sums of gates.

use anyhow::{Result, bail, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::attend::{RelativeValues, RelativeValuesPlan};
use posenc::bias::{
    BiasInputs, DeviceTermInputs, Distances, GateSums, GateSumsPlan, Index, Indices, Numbers, ProductInputs,
    RelativeProducts, RelativeProductsPlan, ShiftedWindows, Term, TermInputs, Terms, Window,
};
use posenc::{Bias, BiasPlan, Heads, Logits, Scalar};
use serde::{Deserialize, Serialize};

use super::logits::{LOGITS, places};
use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements, sizes};
use crate::tensors::Dtype;

/// Adds a sum of terms to logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermsOp {
    pub terms: Vec<Term>,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn terms_form() -> Form {
    let swin = vec![
        Term::table(Window::swin(4, 4)),
        Term::shifted(ShiftedWindows { height: 8, width: 8, window: [4, 4], shift: [2, 2] }, -100.0),
    ];
    let at = Some([0, 0]);
    Form {
        about: "a sum of terms added to logits: windows (Swin, BEiT, LeViT), products with relative positions, dense biases",
        reads: &[
            LOGITS,
            (
                "term0, term1, ...",
                "f32, of each term: a table [entries, heads], or rows [batch or 1, heads or 1, rows, entries]; none for masks",
            ),
            ("term0_keys, ...", "f32, of endpoints: the keys' ends, of the same form"),
            ("term0_indices, ...", "i32, of given indices: [batch or 1, rows, columns]"),
        ],
        writes: &[("out", "as the logits")],
        examples: vec![
            Op::Terms(TermsOp { terms: swin, at }),
            Op::Terms(TermsOp { terms: vec![Term::queries(Distances::shaw(8, 4))], at: None }),
        ],
    }
}

/// A term's numbers on the host.
type Array = (Vec<f32>, Numbers);

/// Everything that a term of a call reads.
struct Read {
    numbers: Option<Array>,
    keys: Option<Array>,
    indices: Option<Vec<i32>>,
}

fn array(inputs: &Inputs, name: &str) -> Result<Option<Array>> {
    let Some(tensor) = inputs.get(name) else { return Ok(None) };
    let numbers = match tensor.shape[..] {
        [entries, heads] => Numbers::table(entries, heads),
        [batch, heads, rows, entries] => Numbers::rows(batch, heads, rows, entries),
        _ => bail!("{name} is {:?}, it must be [entries, heads] or [batch, heads, rows, entries]", tensor.shape),
    };
    Ok(Some((elements::<f32>(name, tensor)?, numbers)))
}

impl Operation for TermsOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        // A window's tokens, or as many as the scale says.
        let window = self.terms.iter().find_map(|term| match &term.index {
            Index::Window(window) => Some(window.height * window.width),
            _ => None,
        });
        let tokens = window.unwrap_or(5 * scale.min(40));
        let batch = if window.is_some() { 4 * scale.min(8) } else { 2 };
        let shape = [batch, 3, tokens, tokens];
        let mut inputs = Inputs::default().with_values("logits", dtype, &shape, &values(shape.iter().product()));
        for (index, term) in self.terms.iter().enumerate() {
            let shape = match &term.index {
                Index::Window(window) => vec![window.entries(), 3],
                Index::Distance(distances) => vec![batch, 3, tokens, distances.entries],
                _ => continue,
            };
            let numbers = values(shape.iter().product());
            inputs = inputs.with_values(&format!("term{index}"), Dtype::F32, &shape, &numbers);
        }
        inputs
    }
}

impl TermsOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.need("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let read = (0..self.terms.len()).map(|index| {
            let indices = inputs.get(&format!("term{index}_indices")).map(|tensor| {
                tensor
                    .elements::<i32>()
                    .ok_or_else(|| anyhow::anyhow!("term{index}_indices is {}, it must be i32", tensor.dtype.name()))
            });
            let (numbers, keys) =
                (array(inputs, &format!("term{index}"))?, array(inputs, &format!("term{index}_keys"))?);
            Ok(Read { numbers, keys, indices: indices.transpose()? })
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        let host: Vec<TermInputs<'_>> = read
            .iter()
            .map(|read| TermInputs {
                numbers: read.numbers.as_ref().map(|(values, numbers)| (&values[..], *numbers)),
                key_numbers: read.keys.as_ref().map(|(values, numbers)| (&values[..], *numbers)),
                indices: read.indices.as_deref().map(Indices::I32),
                ..TermInputs::default()
            })
            .collect();
        let bias = Bias::Terms(Terms { terms: &self.terms, inputs: &host });
        let mut x = elements::<T>("logits", tensor)?;
        let expected = if expected { Some(added::<T>(&x, bias.expect(&shape, &places(self.at))?)) } else { None };
        match device {
            Device::Cpu => bias.add(&mut x, &shape, &places(self.at))?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let up = |array: &Option<Array>| {
                    array
                        .as_ref()
                        .map(|(values, numbers)| Ok::<_, anyhow::Error>((stream.clone_htod(values)?, *numbers)))
                        .transpose()
                };
                let buffers = read.iter().map(|read| {
                    let indices = read.indices.as_ref().map(|indices| stream.clone_htod(indices)).transpose()?;
                    Ok::<_, anyhow::Error>((up(&read.numbers)?, up(&read.keys)?, indices))
                });
                let buffers = buffers.collect::<Result<Vec<_>>>()?;
                let terms: Vec<DeviceTermInputs<'_>> = buffers
                    .iter()
                    .map(|(numbers, keys, indices)| DeviceTermInputs {
                        numbers: numbers.as_ref().map(|(buffer, numbers)| numbers.of(buffer).into()),
                        key_numbers: keys.as_ref().map(|(buffer, numbers)| numbers.of(buffer).into()),
                        indices: indices.as_ref().map(|indices| Indices::I32(indices as _)),
                        ..DeviceTermInputs::default()
                    })
                    .collect();
                let plan = BiasPlan::<T>::new(gpu, &self.terms[..])?;
                let mut y = stream.clone_htod(&x)?;
                plan.add(shape.of_mut(&mut y), BiasInputs { terms: &terms, ..places(self.at).into() })?;
                x = stream.clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &tensor.shape, &x, expected)])
    }
}

/// Logits and a bias: the sum is rounded once in f32, then to the element type.
pub fn added<T: Float>(x: &[T], bias: posenc::bias::ExpectedBias) -> Expected {
    let want: Vec<f64> = x.iter().zip(&bias.want).map(|(x, bias)| x.to_f64() + bias).collect();
    let error = |i: usize| bias.bound[i] + f64::EPSILON + want[i].abs() * f32::ROUNDOFF;
    let bound =
        (0..want.len()).map(|i| if want[i].is_finite() { rounded::<T>(want[i], error(i)) } else { 0.0 }).collect();
    Expected { want, bound }
}

/// Adds products of states and a table of relative positions to logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductsOp {
    pub spec: RelativeProducts,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn products_form() -> Form {
    Form {
        about: "products of queries' or keys' states and a table of relative positions, added to logits: Shaw, Transformer-XL, Inkling",
        reads: &[
            LOGITS,
            ("states", "of the logits' type, [batch, tokens, heads, width]"),
            ("table", "of the logits' type, [batch or 1, heads or 1, entries, width]"),
            ("bias", "f32, [heads, width], added to the states; optional"),
        ],
        writes: &[("out", "as the logits")],
        examples: vec![
            Op::Products(ProductsOp { spec: RelativeProducts::queries(Distances::inkling(8)), at: None }),
            Op::Products(ProductsOp { spec: RelativeProducts::keys(Distances::shaw(5, 5)), at: None }),
        ],
    }
}

impl Operation for ProductsOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (tokens, width) = (5 * scale.min(30), 16);
        let sizes = [
            ("logits", vec![2, 3, tokens, tokens]),
            ("states", vec![2, tokens, 3, width]),
            ("table", vec![1, 1, self.spec.index.entries, width]),
        ];
        sizes.into_iter().fold(Inputs::default(), |inputs, (name, shape)| {
            let numbers = values(shape.iter().product());
            inputs.with_values(name, dtype, &shape, &numbers)
        })
    }
}

impl ProductsOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let (tensor, states, table) = (inputs.need("logits")?, inputs.need("states")?, inputs.need("table")?);
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let [own_batch, tokens, own_heads, width] = sizes("states", states, "[batch, tokens, heads, width]")?;
        let states_shape = Heads::bthd(own_batch, tokens, own_heads, width);
        let [of_batch, of_heads, entries, of_width] =
            sizes("table", table, "[batch or 1, heads or 1, entries, width]")?;
        let numbers = Numbers::rows(of_batch, of_heads, entries, of_width);
        let (states, table) = (elements::<T>("states", states)?, elements::<T>("table", table)?);
        let bias = inputs.values::<f32>("bias", &[heads, width])?;
        let host = ProductInputs { states: (&states, states_shape), bias: bias.as_deref(), table: (&table, numbers) };
        let mut x = elements::<T>("logits", tensor)?;
        let expected =
            if expected { Some(added::<T>(&x, self.spec.expect(&shape, &host, &places(self.at))?)) } else { None };
        match device {
            Device::Cpu => self.spec.add(&mut x, &shape, &host, &places(self.at))?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (states, table, mut y) =
                    (stream.clone_htod(&states)?, stream.clone_htod(&table)?, stream.clone_htod(&x)?);
                let bias = bias.as_ref().map(|bias| stream.clone_htod(bias)).transpose()?;
                let plan = RelativeProductsPlan::<T>::new(gpu, &self.spec)?;
                let bias = bias.as_ref().map(|bias| bias as _);
                plan.add(shape.of_mut(&mut y), states_shape.of(&states), bias, numbers.of(&table), places(self.at))?;
                x = stream.clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &tensor.shape, &x, expected)])
    }
}

/// Adds relative positions on the value side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValuesOp {
    pub spec: RelativeValues,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn values_form() -> Form {
    Form {
        about: "relative positions on the value side: probabilities times rows of a table, added to the attention's output",
        reads: &[
            ("p", "f32, f16 or bf16, [batch, heads, queries, keys]: probabilities"),
            ("table", "f32, [heads or 1, entries, dim]"),
            ("z", "of the probabilities' type, [batch, queries, heads, dim]"),
        ],
        writes: &[("out", "as z")],
        examples: vec![Op::RelativeValues(ValuesOp { spec: RelativeValues::vits(4), at: None })],
    }
}

impl Operation for ValuesOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("p")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (tokens, dim) = (5 * scale.min(30), 16);
        let p: Vec<f64> = values(2 * 3 * tokens * tokens).iter().map(|value| value.abs()).collect();
        let inputs = Inputs::default().with_values("p", dtype, &[2, 3, tokens, tokens], &p);
        let entries = self.spec.index.entries;
        let inputs = inputs.with_values("table", Dtype::F32, &[1, entries, dim], &values(entries * dim));
        inputs.with_values("z", dtype, &[2, tokens, 3, dim], &values(2 * tokens * 3 * dim))
    }
}

impl ValuesOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let (tensor, table, out) = (inputs.need("p")?, inputs.need("table")?, inputs.need("z")?);
        let [batch, heads, queries, keys] = sizes("p", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let [own_batch, tokens, own_heads, dim] = sizes("z", out, "[batch, queries, heads, dim]")?;
        let z_shape = Heads::bthd(own_batch, tokens, own_heads, dim);
        let [of_heads, entries, of_dim] = sizes("table", table, "[heads or 1, entries, dim]")?;
        let numbers = Numbers::rows(1, of_heads, entries, of_dim);
        let (p, table, mut z) =
            (elements::<T>("p", tensor)?, elements::<f32>("table", table)?, elements::<T>("z", out)?);
        let expected = expected
            .then(|| self.spec.expect((&p, shape), (&table, numbers), (&z, z_shape), &places(self.at)))
            .transpose()?;
        match device {
            Device::Cpu => self.spec.add((&p, shape), (&table, numbers), (&mut z, z_shape), &places(self.at))?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (p, table, mut y) = (stream.clone_htod(&p)?, stream.clone_htod(&table)?, stream.clone_htod(&z)?);
                let plan = RelativeValuesPlan::<T>::new(gpu, &self.spec)?;
                plan.add(shape.of(&p), numbers.of(&table), z_shape.of_mut(&mut y), places(self.at))?;
                z = stream.clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &out.shape, &z, expected)])
    }
}

/// Prefix sums of log gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSumsOp {
    pub spec: GateSums,
}

pub fn gate_sums_form() -> Form {
    Form {
        about: "prefix sums of log gates along the tokens of each head, each as two floats (Forgetting Transformer)",
        reads: &[("gates", "f32, [batch, heads, tokens]: logarithms, at most 0, or logits, as the spec says")],
        writes: &[("out", "f32, [batch, heads, tokens, 2]: the sum as two floats")],
        examples: vec![
            Op::GateSums(GateSumsOp { spec: GateSums::logs() }),
            Op::GateSums(GateSumsOp { spec: GateSums::logits() }),
        ],
    }
}

impl Operation for GateSumsOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("gates")?;
        let [batch, heads, tokens] = sizes("gates", tensor, "[batch, heads, tokens]")?;
        let gates = elements::<f32>("gates", tensor)?;
        ensure!(gates.iter().all(|gate| !gate.is_nan()), "gates hold NaN");
        let (shape, pairs) = (Numbers::rows(batch, heads, tokens, 1), Numbers::rows(batch, heads, tokens, 2));
        let mut out = vec![0f32; 2 * gates.len()];
        self.spec.write((&gates, shape), (&mut out, pairs), None)?;
        let expected = expected.then(|| {
            let want: Vec<f64> = out.iter().map(|&value| f64::from(value)).collect();
            // The bound is of both floats' sum: either may take its part of the other's rounding.
            let bound = want.chunks_exact(2).flat_map(|pair| {
                let sum = pair[0] + pair[1];
                let error = self.spec.error_bound(tokens, sum);
                [error + sum.abs() * f64::exp2(-23.0) + f32::TINY; 2]
            });
            let bound = bound.collect();
            Expected { want, bound }
        });
        if let Device::Gpu(gpu) = device {
            let stream = gpu.stream();
            let (x, mut y) = (stream.clone_htod(&gates)?, stream.clone_htod(&vec![0f32; 2 * gates.len()])?);
            GateSumsPlan::<f32>::new(gpu, self.spec)?.write(shape.of(&x), pairs.of_mut(&mut y), None)?;
            out = stream.clone_dtoh(&y)?;
        }
        Ok(vec![Out::new("out", &[batch, heads, tokens, 2], &out, expected)])
    }

    fn sample(&self, _: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let gates: Vec<f64> = values(2 * 3 * 5 * scale).iter().map(|value| value.abs() * -4.0).collect();
        Inputs::default().with_values("gates", Dtype::F32, &[2, 3, 5 * scale], &gates)
    }
}
