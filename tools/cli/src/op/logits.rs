//! Biases, the softmax that consumes them, and its gradient.

use anyhow::{Context, Result, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::attend::{
    DeviceBias, DeviceInputs, GradOptions, HostInputs, HostState, Inputs as SoftmaxInputs, MergePlan, Order, State,
    merge_expect, merge_states,
};
use posenc::bias::{
    DeviceSwin2Weights, DeviceTermInputs, Distances, HostSwin2Weights, Numbers, Swin2Bias, Swin2Plan, Term, TermInputs,
    Terms,
};
use posenc::cudarc::driver::CudaSlice;
use posenc::{Alibi, Bias, BiasPlan, Heads, Logits, Places, Scalar, Softmax, SoftmaxPlan};
use serde::{Deserialize, Serialize};

use super::content::{DeviceRead, Read, added, with_terms};
use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements, sizes};
use crate::law::{Law, Made};
use crate::tensors::Dtype;

/// Adds a bias to logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiasOp {
    pub bias: Law,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub const LOGITS: (&str, &str) = ("logits", "f32, f16 or bf16, [batch, heads, queries, keys]");

pub fn bias_form() -> Form {
    let alibi = Law::Alibi(Alibi::new(4));
    let kerple = Law::parse("kerple-log=1,0.5").expect("a law");
    Form {
        about: "a bias by distance, added to logits: ALiBi, slopes, T5, KERPLE, Sandwich, FIRE or a row of numbers",
        reads: &[LOGITS],
        writes: &[("out", "[batch, heads, queries, keys]")],
        examples: vec![
            Op::Bias(BiasOp { bias: alibi, at: None }),
            Op::Bias(BiasOp { bias: kerple, at: Some([100, 0]) }),
        ],
    }
}

/// Positions of queries and keys.
pub fn places<A>(at: Option<[i64; 2]>) -> Places<A> {
    at.map_or_else(Places::bottom_right, |[query, key]| Places::counted(query, key))
}

/// The largest distance of a call.
pub fn reach(shape: &Logits, at: Option<[i64; 2]>) -> Result<i64> {
    let [query, key] = at.unwrap_or([0, 0]);
    let ends = [query, query.saturating_add(shape.queries as i64), key, key.saturating_add(shape.keys as i64)];
    let most = ends.iter().map(|end| end.unsigned_abs()).fold(0, u64::saturating_add);
    i64::try_from(most)
        .ok()
        .filter(|most| *most < 1 << 30)
        .with_context(|| format!("positions from {query} and {key} are too far apart"))
}

impl Operation for BiasOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let heads = self.bias.heads();
        Inputs::default().with_values("logits", dtype, &[2, heads, 3, 40 * scale], &values(2 * heads * 120 * scale))
    }
}

impl BiasOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let made = self.bias.made(reach(&shape, self.at)?)?;
        let x = elements::<T>("logits", tensor)?;
        let expected = match expected {
            true => Some(added::<T>(&x, made.bias().expect(&shape, &places(self.at))?)),
            false => None,
        };
        let mut y = x;
        match device {
            Device::Cpu => made.bias().add(&mut y, &shape, &places(self.at))?,
            Device::Gpu(gpu) => {
                let mut out = gpu.stream().clone_htod(&y)?;
                let plan = device_bias::<T>(gpu, &made, reach(&shape, self.at)?)?;
                plan.add(shape.of_mut(&mut out), places(self.at))?;
                y = gpu.stream().clone_dtoh(&out)?;
            }
        }
        Ok(vec![Out::new("out", &tensor.shape, &y, expected)])
    }
}

fn device_bias<T: Float>(gpu: &posenc::Gpu, made: &Made, reach: i64) -> Result<BiasPlan<T>> {
    Ok(match made {
        Made::Slopes(slopes) => BiasPlan::new(gpu, slopes)?,
        Made::Row(row) => BiasPlan::new(gpu, row)?,
        Made::Fire(fire) => BiasPlan::fire(gpu, fire, usize::try_from(reach)?)?,
    })
}

/// The softmax of logits with a bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftmaxOp {
    pub spec: Softmax,
    #[serde(default)]
    pub bias: Option<Law>,
    /// a sum of terms in place of a bias by distance
    #[serde(default)]
    pub terms: Vec<Term>,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn softmax_form() -> Form {
    let spec = Softmax::causal(0.125);
    let shaw = vec![Term::queries(Distances::shaw(8, 4))];
    let capped = Softmax { softcap: Some(50.0), left: Some(16), order: Order::SoftcapThenBias, ..spec };
    Form {
        about: "the softmax of logits, with a bias by distance or of terms, a window, a softcap, a mask, sinks, gates and scales",
        reads: &[
            LOGITS,
            ("mask", "of the logits' type, [batch or 1, heads or 1, queries or 1, keys], added last; optional"),
            ("sinks", "f32, [heads]; optional"),
            ("gates", "f32, [batch, heads, queries]: multiply the bias; optional"),
            (
                "scales",
                "f32, [heads]: multiply the spec's scale, where the bias is of terms or there is none; optional",
            ),
            ("term0, ...", "what terms read, as in the operation terms"),
        ],
        writes: &[
            ("p", "[batch, heads, queries, keys]"),
            ("lse", "f32, [batch, heads, queries]: natural logarithms of the sums"),
        ],
        examples: vec![
            Op::Softmax(SoftmaxOp { spec, bias: Some(Law::Alibi(Alibi::new(4))), terms: vec![], at: None }),
            Op::Softmax(SoftmaxOp { spec: capped, bias: None, terms: vec![], at: None }),
            Op::Softmax(SoftmaxOp { spec: Softmax::new(1.0), bias: None, terms: shaw, at: None }),
        ],
    }
}

/// A softmax's inputs beside the logits.
struct Attended<T> {
    shape: Logits,
    made: Option<Made>,
    terms: Vec<Term>,
    read: Vec<Read>,
    mask: Option<(Vec<T>, Logits)>,
    sinks: Option<Vec<f32>>,
    gates: Option<Vec<f32>>,
    scales: Option<Vec<f32>>,
    at: Option<[i64; 2]>,
}

/// The same on a device.
struct DeviceAttended<T> {
    terms: Vec<DeviceRead>,
    mask: Option<(CudaSlice<T>, Logits)>,
    /// sinks, gates and scales
    rows: [Option<CudaSlice<f32>>; 3],
    at: Option<[i64; 2]>,
}

impl<T: Float> Attended<T> {
    fn new(inputs: &Inputs, shape: Logits, op: &SoftmaxOp) -> Result<Self> {
        ensure!(op.bias.is_none() || op.terms.is_empty(), "a softmax has a bias by distance or one of terms, not both");
        let made = op.bias.as_ref().map(|law| law.made(reach(&shape, op.at)?)).transpose()?;
        let mask = inputs.get("mask").map(|mask| -> Result<_> {
            let [batch, heads, queries, keys] = sizes("mask", mask, "[batch or 1, heads or 1, queries or 1, keys]")?;
            Ok((elements::<T>("mask", mask)?, Logits::bhqk(batch, heads, queries, keys)))
        });
        Ok(Self {
            made,
            terms: op.terms.clone(),
            read: Read::all(inputs, op.terms.len())?,
            mask: mask.transpose()?,
            sinks: inputs.values("sinks", &[shape.heads])?,
            gates: inputs.values("gates", &[shape.batch, shape.heads, shape.queries])?,
            scales: inputs.values("scales", &[shape.heads])?,
            at: op.at,
            shape,
        })
    }

    /// What each term reads, for [`Self::host`].
    fn host_terms(&self) -> Vec<TermInputs<'_>> {
        self.read.iter().map(Read::host).collect()
    }

    fn host<'a>(&'a self, terms: &'a [TermInputs<'a>]) -> HostInputs<'a, T> {
        let bias = match &self.made {
            Some(made) => made.bias(),
            None if self.terms.is_empty() => Bias::None,
            None => Bias::Terms(Terms { terms: &self.terms, inputs: terms }),
        };
        SoftmaxInputs {
            bias,
            mask: self.mask.as_ref().map(|(mask, shape)| (&mask[..], *shape)),
            sinks: self.sinks.as_deref(),
            gates: self.gates.as_deref(),
            scales: self.scales.as_deref(),
            ..SoftmaxInputs::at(places(self.at))
        }
    }

    fn plan(&self, gpu: &posenc::Gpu, spec: &Softmax) -> Result<SoftmaxPlan<T>> {
        Ok(match &self.made {
            Some(made) => {
                let plan = device_bias::<T>(gpu, made, reach(&self.shape, self.at)?)?;
                SoftmaxPlan::new(gpu, spec, plan)?
            }
            None if self.terms.is_empty() => SoftmaxPlan::new(gpu, spec, Bias::None)?,
            None => SoftmaxPlan::new(gpu, spec, BiasPlan::<T>::new(gpu, &self.terms[..])?)?,
        })
    }

    fn upload(&self, gpu: &posenc::Gpu) -> Result<DeviceAttended<T>> {
        let stream = gpu.stream();
        let mask = self.mask.as_ref().map(|(mask, shape)| Ok::<_, anyhow::Error>((stream.clone_htod(mask)?, *shape)));
        let row = |row: &Option<Vec<f32>>| row.as_ref().map(|row| stream.clone_htod(row)).transpose();
        Ok(DeviceAttended {
            terms: self.read.iter().map(|read| read.upload(gpu)).collect::<Result<_>>()?,
            mask: mask.transpose()?,
            rows: [row(&self.sinks)?, row(&self.gates)?, row(&self.scales)?],
            at: self.at,
        })
    }
}

impl<T: Float> DeviceAttended<T> {
    fn inputs<'a>(&'a self, terms: &'a [DeviceTermInputs<'a>]) -> DeviceInputs<'a, T> {
        let [sinks, gates, scales] = self.rows.each_ref().map(|row| row.as_ref().map(|row| row as _));
        DeviceInputs {
            bias: DeviceBias::terms(terms),
            mask: self.mask.as_ref().map(|(mask, shape)| shape.of(mask)),
            sinks,
            gates,
            scales,
            ..DeviceInputs::at(places(self.at))
        }
    }
}

impl Operation for SoftmaxOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let heads = self.bias.as_ref().map_or(4, Law::heads);
        let logits: Vec<f64> = values(2 * heads * 120 * scale).iter().map(|value| value * 8.0).collect();
        let shape = [2, heads, 3, 40 * scale];
        let inputs = Inputs::default().with_values("logits", dtype, &shape, &logits);
        let inputs = inputs.with_values("sinks", Dtype::F32, &[heads], &values(heads));
        let name = if self.bias.is_some() { "gates" } else { "scales" };
        let own = if self.bias.is_some() { vec![2, heads, 3] } else { vec![heads] };
        let inputs = inputs.with_values(name, Dtype::F32, &own, &values(own.iter().product()));
        with_terms(inputs, &self.terms, shape, values)
    }
}

impl SoftmaxOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let attended = Attended::<T>::new(inputs, shape, self)?;
        let terms = attended.host_terms();
        let host = attended.host(&terms);
        let mut x = elements::<T>("logits", tensor)?;
        let expected = expected.then(|| self.spec.expect(&x, &shape, &host)).transpose()?;
        let rows = [batch, heads, queries];
        let lse = match device {
            Device::Cpu => self.spec.apply(&mut x, &shape, &host)?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let plan = attended.plan(gpu, &self.spec)?;
                let (mut y, mut lse) = (stream.clone_htod(&x)?, stream.clone_htod(&vec![0f32; rows.iter().product()])?);
                let uploaded = attended.upload(gpu)?;
                let terms: Vec<_> = uploaded.terms.iter().map(DeviceRead::inputs).collect();
                plan.apply_with_lse(shape.of_mut(&mut y), &uploaded.inputs(&terms), &mut lse)?;
                x = stream.clone_dtoh(&y)?;
                stream.clone_dtoh(&lse)?
            }
        };
        let (p_expected, lse_expected) = match expected {
            Some(output) => {
                let lse = Expected { want: output.lse, bound: output.lse_bound };
                (Some(Expected { want: output.want, bound: output.bound }), Some(lse))
            }
            None => (None, None),
        };
        Ok(vec![Out::new("p", &tensor.shape, &x, p_expected), Out::new("lse", &rows, &lse, lse_expected)])
    }
}

/// The gradients of a softmax's logits, bias and sinks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SoftmaxGradOp(pub SoftmaxOp);

pub fn softmax_grad_form() -> Form {
    let spec = Softmax::causal(0.125);
    let shaw = vec![Term::queries(Distances::shaw(8, 4))];
    let of = |op| Op::SoftmaxGrad(SoftmaxGradOp(op));
    Form {
        about: "the gradients of a softmax's logits, bias and sinks from that of its probabilities",
        reads: &[
            ("logits", "f32, f16 or bf16, [batch, heads, queries, keys]: what the softmax read"),
            ("p", "the probabilities that it gave"),
            ("grad", "the gradient of the probabilities"),
            ("lse", "f32, [batch, heads, queries]: what it gave beside, for the gradient of sinks"),
            ("mask, sinks, gates, scales, term0, ...", "as in the operation softmax; optional"),
        ],
        writes: &[
            ("out", "the gradient of the logits"),
            ("bias", "that of the bias at every query and key, where there is one: what bias-grad and terms-grad read"),
            ("sinks", "f32, [heads], where there are sinks and lse"),
        ],
        examples: vec![
            of(SoftmaxOp { spec, bias: Some(Law::Alibi(Alibi::new(4))), terms: vec![], at: None }),
            of(SoftmaxOp { spec: Softmax { softcap: Some(5.0), ..spec }, bias: None, terms: shaw, at: None }),
        ],
    }
}

impl Operation for SoftmaxGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let inputs = self.0.sample(dtype, scale, values);
        let [p, lse] = <[Out; 2]>::try_from(self.0.apply(&inputs, &Device::Cpu, false).expect("a softmax"))
            .unwrap_or_else(|_| unreachable!("a softmax gives two"))
            .map(|out| out.tensor);
        let (shape, count) = (p.shape.clone(), p.len());
        inputs.with("p", p).with("lse", lse).with_values("grad", dtype, &shape, &values(count))
    }
}

impl SoftmaxGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.0.spec;
        let tensor = inputs.need("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let attended = Attended::<T>::new(inputs, shape, &self.0)?;
        let terms = attended.host_terms();
        let host = attended.host(&terms);
        let logits = elements::<T>("logits", tensor)?;
        let (p, grad) = (inputs.given::<T>("p", &tensor.shape)?, inputs.given::<T>("grad", &tensor.shape)?);
        let lse = inputs.values::<f32>("lse", &[batch, heads, queries])?;
        let whole = spec.expect_grad(&p, &grad, &logits, &shape, &host)?;
        let of_sinks = attended.sinks.as_ref().zip(lse.as_ref());
        let sinks_wanted =
            of_sinks.map(|(sinks, lse)| sinks_expected(sinks, lse, &whole.dots, &whole.dots_bound, queries));
        let round = |all: &[f64]| all.iter().map(|&value| T::from_f64(value)).collect::<Vec<T>>();
        let (mut out, mut bias) = (round(&whole.logits), round(&whole.bias));
        let mut of_head =
            sinks_wanted.as_ref().map(|wanted| wanted.want.iter().map(|&value| value as f32).collect::<Vec<f32>>());
        if let Device::Gpu(gpu) = device {
            let stream = gpu.stream();
            let plan = attended.plan(gpu, spec)?;
            let uploaded = attended.upload(gpu)?;
            let terms: Vec<_> = uploaded.terms.iter().map(DeviceRead::inputs).collect();
            let (p, mut dx, logits) = (stream.clone_htod(&p)?, stream.clone_htod(&grad)?, stream.clone_htod(&logits)?);
            let (mut dbias, mut dots) =
                (stream.clone_htod(&grad)?, stream.clone_htod(&vec![0f32; batch * heads * queries])?);
            let options =
                GradOptions { logits: Some(shape.of(&logits)), bias: Some(&mut dbias), dots: Some(&mut dots) };
            plan.grad(shape.of(&p), shape.of_mut(&mut dx), &uploaded.inputs(&terms), options)?;
            (out, bias) = (stream.clone_dtoh(&dx)?, stream.clone_dtoh(&dbias)?);
            if let Some((sinks, lse)) = of_sinks {
                let (sinks, lse) = (stream.clone_htod(sinks)?, stream.clone_htod(lse)?);
                let mut y = stream.clone_htod(&vec![0f32; heads])?;
                plan.sink_grad(&sinks, &lse, &dots, shape, &mut y)?;
                of_head = Some(stream.clone_dtoh(&y)?);
            }
        }
        let wanted = |want, bound| expected.then_some(Expected { want, bound });
        let mut outs = vec![Out::new("out", &tensor.shape, &out, wanted(whole.logits, whole.logits_bound))];
        if attended.made.is_some() || !attended.terms.is_empty() {
            outs.push(Out::new("bias", &tensor.shape, &bias, wanted(whole.bias, whole.bias_bound)));
        }
        if let (Some(got), Some(sinks)) = (of_head, sinks_wanted) {
            outs.push(Out::new("sinks", &[heads], &got, wanted(sinks.want, sinks.bound)));
        }
        Ok(outs)
    }
}

/// The gradient of sinks, `-sum over rows of exp(sink - lse) * dot`, and the error that `SoftmaxPlan::sink_grad` states, with those of
/// the dots.
fn sinks_expected(sinks: &[f32], lse: &[f32], dots: &[f64], dots_bound: &[f64], queries: usize) -> Expected {
    let mut expected = Expected { want: vec![0.0; sinks.len()], bound: vec![f32::TINY; sinks.len()] };
    for (row, (&lse, (dot, error))) in lse.iter().zip(dots.iter().zip(dots_bound)).enumerate() {
        let head = row / queries.max(1) % sinks.len();
        let apart = f64::from(sinks[head]) - f64::from(lse);
        // A row without keys and without a sink has no share of either.
        if lse != f32::NEG_INFINITY {
            let share = apart.exp();
            expected.want[head] -= share * dot;
            expected.bound[head] += share * ((9.0 + apart.abs()) * f32::ROUNDOFF * dot.abs() + error);
        }
    }
    expected
}

/// The table of Swin v2's network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swin2Op {
    pub spec: Swin2Bias,
}

pub fn swin2_form() -> Form {
    Form {
        about: "the table of Swin v2's network of log-spaced coordinates",
        reads: &[
            ("w1, b1, w2", "f32, f16 or bf16, [hidden, 2], [hidden] and [heads, hidden]"),
            ("b2", "[heads]; optional"),
        ],
        writes: &[("table", "f32, [entries, heads]")],
        examples: vec![Op::Swin2(Swin2Op { spec: Swin2Bias::new([3, 4], 32, 4) })],
    }
}

impl Operation for Swin2Op {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("w1")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, _: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let Swin2Bias { hidden, heads, .. } = self.spec;
        let sizes = [("w1", vec![hidden, 2]), ("b1", vec![hidden]), ("w2", vec![heads, hidden])];
        sizes.into_iter().fold(Inputs::default(), |inputs, (name, shape)| {
            let values = values(shape.iter().product());
            inputs.with_values(name, dtype, &shape, &values)
        })
    }
}

/// The weights of a network on the host.
pub struct Net<T> {
    pub w1: Vec<T>,
    pub b1: Vec<T>,
    pub w2: Vec<T>,
    pub b2: Option<Vec<T>>,
}

impl<T: Float> Net<T> {
    pub fn host(&self) -> HostSwin2Weights<'_, T> {
        HostSwin2Weights { w1: &self.w1, b1: &self.b1, w2: &self.w2, b2: self.b2.as_deref() }
    }
}

impl Swin2Op {
    pub fn weights<T: Float>(&self, inputs: &Inputs) -> Result<Net<T>> {
        self.spec.check()?;
        let Swin2Bias { hidden, heads, .. } = self.spec;
        Ok(Net {
            w1: inputs.given("w1", &[hidden, 2])?,
            b1: inputs.given("b1", &[hidden])?,
            w2: inputs.given("w2", &[heads, hidden])?,
            b2: inputs.values("b2", &[heads])?,
        })
    }

    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let net = self.weights::<T>(inputs)?;
        let heads = self.spec.heads;
        let table = self.spec.expect(&net.host())?;
        let out: Vec<f32> = match device {
            Device::Cpu => table.want.iter().map(|&value| value as f32).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (w1, b1, w2) =
                    (stream.clone_htod(&net.w1)?, stream.clone_htod(&net.b1)?, stream.clone_htod(&net.w2)?);
                let b2 = net.b2.as_ref().map(|b2| stream.clone_htod(b2)).transpose()?;
                let weights = DeviceSwin2Weights { w1: &w1, b1: &b1, w2: &w2, b2: b2.as_ref().map(|b2| b2 as _) };
                let mut out = stream.clone_htod(&vec![0f32; self.spec.entries() * heads])?;
                Swin2Plan::<T>::new(gpu, &self.spec)?.write(weights, &mut out)?;
                stream.clone_dtoh(&out)?
            }
        };
        let bound = table.want.iter().zip(&table.bound).map(|(&want, &error)| rounded::<f32>(want, error)).collect();
        let expected = expected.then_some(Expected { want: table.want, bound });
        Ok(vec![Out::new("table", &[self.spec.entries(), heads], &out, expected)])
    }
}

/// Attention over two sets of keys, put together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeOp {}

pub fn merge_form() -> Form {
    Form {
        about: "attention outputs of two sets of keys, put together by their log-sum-exps",
        reads: &[
            ("a, b", "f32, f16 or bf16, [batch, tokens, heads, dim]"),
            ("a_lse, b_lse", "f32, [batch, heads, tokens]"),
        ],
        writes: &[("out", "as a"), ("lse", "f32, as a_lse")],
        examples: vec![Op::Merge(MergeOp {})],
    }
}

impl Operation for MergeOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("a")?.dtype, T => merge::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        ["a", "b"].into_iter().fold(Inputs::default(), |inputs, name| {
            let tokens = 3 * scale;
            let inputs = inputs.with_values(name, dtype, &[2, tokens, 4, 16], &values(2 * tokens * 4 * 16));
            inputs.with_values(&format!("{name}_lse"), Dtype::F32, &[2, 4, tokens], &values(2 * 4 * tokens))
        })
    }
}

/// Attention of the same queries over two sets of keys, on the host.
pub struct Attention<T> {
    pub shape: Vec<usize>,
    pub lse_shape: Vec<usize>,
    pub heads: Heads,
    pub rows: Numbers,
    pub a: (Vec<T>, Vec<f32>),
    pub b: (Vec<T>, Vec<f32>),
}

impl<T: Float> Attention<T> {
    pub fn new(inputs: &Inputs) -> Result<Self> {
        let shape = inputs.need("a")?.shape.clone();
        let [batch, tokens, heads, dim] = sizes("a", inputs.need("a")?, "[batch, tokens, heads, dim]")?;
        let lse_shape = vec![batch, heads, tokens];
        let state = |name: &str| -> Result<_> {
            Ok((inputs.given(name, &shape)?, inputs.given(&format!("{name}_lse"), &lse_shape)?))
        };
        let (a, b) = (state("a")?, state("b")?);
        let rows = Numbers::rows(batch, heads, tokens, 1);
        Ok(Self { heads: Heads::bthd(batch, tokens, heads, dim), rows, a, b, lse_shape, shape })
    }

    pub fn host(&self) -> [HostState<'_, T>; 2] {
        [&self.a, &self.b].map(|(out, lse)| State { out: (&out[..], self.heads), lse: (&lse[..], self.rows) })
    }
}

fn merge<T: Float>(inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
    let attention = Attention::<T>::new(inputs)?;
    let Attention { heads, rows, a, b, shape, lse_shape } = &attention;
    let [first, second] = attention.host();
    let wanted = expected.then(|| merge_expect(first, second)).transpose()?;
    let mut out = a.0.clone();
    let lse = match device {
        Device::Cpu => merge_states(first, second, &mut out, heads)?,
        Device::Gpu(gpu) => {
            let stream = gpu.stream();
            let (mut x, mut x_lse) = (stream.clone_htod(&a.0)?, stream.clone_htod(&a.1)?);
            let (y, y_lse) = (stream.clone_htod(&b.0)?, stream.clone_htod(&b.1)?);
            let running = State { out: heads.of_mut(&mut x).into(), lse: rows.of_mut(&mut x_lse).into() };
            MergePlan::<T>::new(gpu)?.merge(running, State { out: heads.of(&y), lse: rows.of(&y_lse) })?;
            out = stream.clone_dtoh(&x)?;
            stream.clone_dtoh(&x_lse)?
        }
    };
    let (out_expected, lse_expected) = wanted.map_or((None, None), |wanted| (Some(wanted.out), Some(wanted.lse)));
    Ok(vec![Out::new("out", shape, &out, out_expected), Out::new("lse", lse_shape, &lse, lse_expected)])
}
