//! Biases that read tables and content: sums of terms, products of states and a table, the value side, prefix sums of gates.

use anyhow::{Result, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::attend::{RelativeValues, RelativeValuesPlan};
use posenc::bias::{
    BiasInputs, DeviceTermInputs, Distances, GateSums, GateSumsPlan, Index, Indices, Numbers, ProductInputs,
    RelativeProducts, RelativeProductsPlan, ShiftedWindows, Term, TermInputs, Terms, Window,
};
use posenc::cudarc::driver::CudaSlice;
use posenc::{Bias, BiasPlan, Gpu, Heads, Logits, Scalar};
use serde::{Deserialize, Serialize};

use super::gradients::numbers_of;
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
            (
                "term0_query_at, term0_key_at, ...",
                "i32, [batch, queries] and [batch, keys]: coordinates in place of positions; optional",
            ),
        ],
        writes: &[("out", "as the logits")],
        examples: vec![
            Op::Terms(TermsOp { terms: swin, at }),
            Op::Terms(TermsOp { terms: vec![Term::queries(Distances::shaw(8, 4))], at: None }),
            Op::Terms(TermsOp { terms: vec![Term::whole(), Term::endpoints()], at: None }),
            Op::Terms(TermsOp {
                terms: vec![Term::table(Index::Given { rows: 200, columns: 200, entries: 9 })],
                at: None,
            }),
        ],
    }
}

/// A term's numbers on the host, and on a device.
type Array = (Vec<f32>, Numbers);
type DeviceArray = (CudaSlice<f32>, Numbers);

/// Everything that a term of a call reads.
pub struct Read {
    numbers: Option<Array>,
    keys: Option<Array>,
    indices: Option<Vec<i32>>,
    at: [Option<Vec<i32>>; 2],
}

/// The same on a device.
pub struct DeviceRead {
    numbers: Option<DeviceArray>,
    keys: Option<DeviceArray>,
    indices: Option<CudaSlice<i32>>,
    at: [Option<CudaSlice<i32>>; 2],
}

fn array(inputs: &Inputs, name: &str) -> Result<Option<Array>> {
    let Some(tensor) = inputs.get(name) else { return Ok(None) };
    Ok(Some((elements::<f32>(name, tensor)?, numbers_of(name, &tensor.shape)?)))
}

impl Read {
    /// What each of so many terms reads: tensors named after its place.
    pub fn all(inputs: &Inputs, count: usize) -> Result<Vec<Self>> {
        let read = |term: usize| {
            let name = |what: &str| format!("term{term}{what}");
            Ok(Self {
                numbers: array(inputs, &name(""))?,
                keys: array(inputs, &name("_keys"))?,
                indices: inputs.i32s(&name("_indices"))?,
                at: [inputs.i32s(&name("_query_at"))?, inputs.i32s(&name("_key_at"))?],
            })
        };
        (0..count).map(read).collect()
    }

    pub fn host(&self) -> TermInputs<'_> {
        TermInputs {
            numbers: self.numbers.as_ref().map(|(values, numbers)| (&values[..], *numbers)),
            key_numbers: self.keys.as_ref().map(|(values, numbers)| (&values[..], *numbers)),
            indices: self.indices.as_deref().map(Indices::I32),
            query_at: self.at[0].as_deref(),
            key_at: self.at[1].as_deref(),
        }
    }

    pub fn upload(&self, gpu: &Gpu) -> Result<DeviceRead> {
        let stream = gpu.stream();
        let array = |array: &Option<Array>| -> Result<Option<DeviceArray>> {
            let Some((values, numbers)) = array else { return Ok(None) };
            Ok(Some((stream.clone_htod(values)?, *numbers)))
        };
        let list = |list: &Option<Vec<i32>>| list.as_ref().map(|list| stream.clone_htod(list)).transpose();
        Ok(DeviceRead {
            numbers: array(&self.numbers)?,
            keys: array(&self.keys)?,
            indices: list(&self.indices)?,
            at: [list(&self.at[0])?, list(&self.at[1])?],
        })
    }
}

impl DeviceRead {
    pub fn inputs(&self) -> DeviceTermInputs<'_> {
        DeviceTermInputs {
            numbers: self.numbers.as_ref().map(|(buffer, numbers)| numbers.of(buffer).into()),
            key_numbers: self.keys.as_ref().map(|(buffer, numbers)| numbers.of(buffer).into()),
            indices: self.indices.as_ref().map(|indices| Indices::I32(indices as _)),
            query_at: self.at[0].as_ref().map(|at| at as _),
            key_at: self.at[1].as_ref().map(|at| at as _),
        }
    }
}

/// Generated numbers of the terms of a call.
pub fn with_terms(
    inputs: Inputs,
    terms: &[Term],
    [batch, heads, queries, keys]: [usize; 4],
    values: &mut dyn FnMut(usize) -> Vec<f64>,
) -> Inputs {
    terms.iter().enumerate().fold(inputs, |inputs, (index, term)| {
        let mut add = |inputs: Inputs, name: String, shape: Vec<usize>| {
            let numbers = values(shape.iter().product());
            inputs.with_values(&name, Dtype::F32, &shape, &numbers)
        };
        let name = format!("term{index}");
        match &term.index {
            Index::Window(window) => add(inputs, name, vec![window.entries(), heads]),
            Index::Distance(distances) => add(inputs, name, vec![batch, heads, queries, distances.entries]),
            Index::Whole => add(inputs, name, vec![1, heads, queries, keys]),
            Index::Endpoints => {
                let inputs = add(inputs, name.clone(), vec![batch, heads, queries, 1]);
                add(inputs, format!("{name}_keys"), vec![batch, heads, keys, 1])
            }
            Index::Given { rows, columns, entries } => {
                let list: Vec<f64> = (0..rows * columns).map(|at| (at % entries) as f64).collect();
                let inputs = add(inputs, name.clone(), vec![*entries, heads]);
                inputs.with_values(&format!("{name}_indices"), Dtype::I32, &[1, *rows, *columns], &list)
            }
            _ => inputs,
        }
    })
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
        let inputs = Inputs::default().with_values("logits", dtype, &shape, &values(shape.iter().product()));
        with_terms(inputs, &self.terms, shape, values)
    }
}

impl TermsOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.need("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let read = Read::all(inputs, self.terms.len())?;
        let host: Vec<_> = read.iter().map(Read::host).collect();
        let bias = Bias::Terms(Terms { terms: &self.terms, inputs: &host });
        let mut x = elements::<T>("logits", tensor)?;
        let expected = if expected { Some(added::<T>(&x, bias.expect(&shape, &places(self.at))?)) } else { None };
        match device {
            Device::Cpu => bias.add(&mut x, &shape, &places(self.at))?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let buffers = read.iter().map(|read| read.upload(gpu)).collect::<Result<Vec<_>>>()?;
                let terms: Vec<_> = buffers.iter().map(DeviceRead::inputs).collect();
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
