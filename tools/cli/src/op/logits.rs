//! Biases, the softmax that consumes them, and its gradient.

use anyhow::{Context, Result, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::attend::{
    DeviceInputs, GradOptions, HostInputs, HostState, Inputs as SoftmaxInputs, MergePlan, Order, State, merge_expect,
    merge_states,
};
use posenc::bias::{DeviceSwin2Weights, HostSwin2Weights, Numbers, Swin2Bias, Swin2Plan};
use posenc::{Alibi, Bias, BiasPlan, Heads, Logits, Places, Softmax, SoftmaxPlan};
use serde::{Deserialize, Serialize};

use super::content::added;
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
fn reach(shape: &Logits, at: Option<[i64; 2]>) -> Result<i64> {
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
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn softmax_form() -> Form {
    let spec = Softmax::causal(0.125);
    let capped = Softmax { softcap: Some(50.0), left: Some(16), order: Order::SoftcapThenBias, ..spec };
    Form {
        about: "the softmax of logits, with a bias by distance, a window, a softcap, an additive mask and sinks",
        reads: &[
            LOGITS,
            ("mask", "of the logits' type, [batch or 1, heads or 1, queries or 1, keys], added last; optional"),
            ("sinks", "f32, [heads]; optional"),
        ],
        writes: &[
            ("p", "[batch, heads, queries, keys]"),
            ("lse", "f32, [batch, heads, queries]: natural logarithms of the sums"),
        ],
        examples: vec![
            Op::Softmax(SoftmaxOp { spec, bias: Some(Law::Alibi(Alibi::new(4))), at: None }),
            Op::Softmax(SoftmaxOp { spec: capped, bias: None, at: None }),
        ],
    }
}

/// A softmax's inputs beside the logits.
struct Attended<T> {
    shape: Logits,
    made: Option<Made>,
    mask: Option<(Vec<T>, Logits)>,
    sinks: Option<Vec<f32>>,
    at: Option<[i64; 2]>,
}

impl<T: Float> Attended<T> {
    fn new(inputs: &Inputs, shape: Logits, law: Option<&Law>, at: Option<[i64; 2]>) -> Result<Self> {
        let made = law.map(|law| law.made(reach(&shape, at)?)).transpose()?;
        let mask = inputs.get("mask").map(|mask| -> Result<_> {
            let [batch, heads, queries, keys] = sizes("mask", mask, "[batch or 1, heads or 1, queries or 1, keys]")?;
            Ok((elements::<T>("mask", mask)?, Logits::bhqk(batch, heads, queries, keys)))
        });
        let (mask, sinks) = (mask.transpose()?, inputs.values::<f32>("sinks", &[shape.heads])?);
        Ok(Self { shape, made, mask, sinks, at })
    }

    fn host(&self) -> HostInputs<'_, T> {
        SoftmaxInputs {
            bias: self.made.as_ref().map_or(Bias::None, Made::bias),
            mask: self.mask.as_ref().map(|(mask, shape)| (&mask[..], *shape)),
            sinks: self.sinks.as_deref(),
            ..SoftmaxInputs::at(places(self.at))
        }
    }

    fn plan(&self, gpu: &posenc::Gpu, spec: &Softmax) -> Result<SoftmaxPlan<T>> {
        Ok(match &self.made {
            Some(made) => {
                let plan = device_bias::<T>(gpu, made, reach(&self.shape, self.at)?)?;
                SoftmaxPlan::new(gpu, spec, plan)?
            }
            None => SoftmaxPlan::new(gpu, spec, Bias::None)?,
        })
    }
}

impl Operation for SoftmaxOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let heads = self.bias.as_ref().map_or(4, Law::heads);
        let logits: Vec<f64> = values(2 * heads * 120 * scale).iter().map(|value| value * 8.0).collect();
        let inputs = Inputs::default().with_values("logits", dtype, &[2, heads, 3, 40 * scale], &logits);
        inputs.with_values("sinks", Dtype::F32, &[heads], &values(heads))
    }
}

impl SoftmaxOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.main("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let attended = Attended::<T>::new(inputs, shape, self.bias.as_ref(), self.at)?;
        let mut x = elements::<T>("logits", tensor)?;
        let expected = expected.then(|| self.spec.expect(&x, &shape, &attended.host())).transpose()?;
        let rows = [batch, heads, queries];
        let lse = match device {
            Device::Cpu => self.spec.apply(&mut x, &shape, &attended.host())?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let plan = attended.plan(gpu, &self.spec)?;
                let (mut y, mut lse) = (stream.clone_htod(&x)?, stream.clone_htod(&vec![0f32; rows.iter().product()])?);
                let mask = attended
                    .mask
                    .as_ref()
                    .map(|(mask, shape)| Ok::<_, anyhow::Error>((stream.clone_htod(mask)?, *shape)));
                let mask = mask.transpose()?;
                let sinks = attended.sinks.as_ref().map(|sinks| stream.clone_htod(sinks)).transpose()?;
                let inputs = DeviceInputs {
                    mask: mask.as_ref().map(|(mask, shape)| shape.of(mask)),
                    sinks: sinks.as_ref().map(|sinks| sinks as _),
                    ..DeviceInputs::at(places(self.at))
                };
                plan.apply_with_lse(shape.of_mut(&mut y), &inputs, &mut lse)?;
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

/// The gradient of a softmax's logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftmaxGradOp {
    pub spec: Softmax,
    #[serde(default)]
    pub bias: Option<Law>,
    /// positions of the first query and the first key; absent: the last query sits at the last key
    #[serde(default)]
    pub at: Option<[i64; 2]>,
}

pub fn softmax_grad_form() -> Form {
    let spec = Softmax::causal(0.125);
    Form {
        about: "the gradient of a softmax's logits from that of its probabilities",
        reads: &[
            ("logits", "f32, f16 or bf16, [batch, heads, queries, keys]: what the softmax read"),
            ("p", "the probabilities that it gave"),
            ("grad", "the gradient of the probabilities"),
        ],
        writes: &[("out", "the gradient of the logits")],
        examples: vec![Op::SoftmaxGrad(SoftmaxGradOp { spec, bias: Some(Law::Alibi(Alibi::new(4))), at: None })],
    }
}

impl Operation for SoftmaxGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("logits")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let softmax = SoftmaxOp { spec: self.spec, bias: self.bias.clone(), at: self.at };
        let mut inputs = softmax.sample(dtype, scale, values);
        inputs.0.remove("sinks");
        let p = softmax.apply(&inputs, &Device::Cpu, false).expect("a softmax").swap_remove(0).tensor;
        let (shape, count) = (p.shape.clone(), p.len());
        inputs.with("p", p).with_values("grad", dtype, &shape, &values(count))
    }
}

impl SoftmaxGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let tensor = inputs.need("logits")?;
        let [batch, heads, queries, keys] = sizes("logits", tensor, "[batch, heads, queries, keys]")?;
        let shape = Logits::bhqk(batch, heads, queries, keys);
        let attended = Attended::<T>::new(inputs, shape, self.bias.as_ref(), self.at)?;
        let logits = elements::<T>("logits", tensor)?;
        let other = |name: &str| -> Result<Vec<T>> {
            inputs.need(name)?;
            Ok(inputs.values(name, &tensor.shape)?.expect("a tensor that is there"))
        };
        let (p, grad) = (other("p")?, other("grad")?);
        let whole = self.spec.expect_grad(&p, &grad, &logits, &shape, &attended.host())?;
        let wanted = Expected { want: whole.logits, bound: whole.logits_bound };
        let out = match device {
            Device::Cpu => wanted.want.iter().map(|&value| T::from_f64(value)).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let plan = attended.plan(gpu, &self.spec)?;
                let (p, mut dx, logits) =
                    (stream.clone_htod(&p)?, stream.clone_htod(&grad)?, stream.clone_htod(&logits)?);
                let options = GradOptions { logits: Some(shape.of(&logits)), ..GradOptions::default() };
                plan.grad(shape.of(&p), shape.of_mut(&mut dx), &DeviceInputs::at(places(self.at)), options)?;
                stream.clone_dtoh(&dx)?
            }
        };
        Ok(vec![Out::new("out", &tensor.shape, &out, expected.then_some(wanted))])
    }
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

impl Swin2Op {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        self.spec.check()?;
        let Swin2Bias { hidden, heads, .. } = self.spec;
        let weights = |name: &str, shape: &[usize]| -> Result<Vec<T>> {
            inputs.need(name)?;
            Ok(inputs.values(name, shape)?.expect("a tensor that is there"))
        };
        let (w1, b1, w2) = (weights("w1", &[hidden, 2])?, weights("b1", &[hidden])?, weights("w2", &[heads, hidden])?);
        let b2 = inputs.values::<T>("b2", &[heads])?;
        let table = self.spec.expect(&HostSwin2Weights { w1: &w1, b1: &b1, w2: &w2, b2: b2.as_deref() })?;
        let out: Vec<f32> = match device {
            Device::Cpu => table.want.iter().map(|&value| value as f32).collect(),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (w1, b1, w2) = (stream.clone_htod(&w1)?, stream.clone_htod(&b1)?, stream.clone_htod(&w2)?);
                let b2 = b2.as_ref().map(|b2| stream.clone_htod(b2)).transpose()?;
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

fn merge<T: Float>(inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
    let tensor = inputs.need("a")?;
    let [batch, tokens, heads, dim] = sizes("a", tensor, "[batch, tokens, heads, dim]")?;
    let (shape, rows) = (Heads::bthd(batch, tokens, heads, dim), Numbers::rows(batch, heads, tokens, 1));
    let lse_shape = [batch, heads, tokens];
    let state = |name: &str| -> Result<(Vec<T>, Vec<f32>)> {
        let lse = format!("{name}_lse");
        inputs.need(name)?;
        inputs.need(&lse)?;
        let out = inputs.values::<T>(name, &tensor.shape)?.expect("a tensor that is there");
        Ok((out, inputs.values::<f32>(&lse, &lse_shape)?.expect("a tensor that is there")))
    };
    let (a, b) = (state("a")?, state("b")?);
    let on_host = |(out, lse): &'_ (Vec<T>, Vec<f32>)| -> (usize, usize) { (out.len(), lse.len()) };
    ensure!(on_host(&a) == on_host(&b), "a and b differ in size");
    fn host<T>(state: &(Vec<T>, Vec<f32>), shape: Heads, rows: Numbers) -> HostState<'_, T> {
        State { out: (&state.0, shape), lse: (&state.1, rows) }
    }
    let [first, second] = [&a, &b].map(|state| host(state, shape, rows));
    let wanted = expected.then(|| merge_expect(first, second)).transpose()?;
    let (mut out, lse) = (a.0.clone(), a.1.clone());
    let lse = match device {
        Device::Cpu => merge_states(first, second, &mut out, &shape)?,
        Device::Gpu(gpu) => {
            let stream = gpu.stream();
            let (mut x, mut x_lse) = (stream.clone_htod(&out)?, stream.clone_htod(&lse)?);
            let (y, y_lse) = (stream.clone_htod(&b.0)?, stream.clone_htod(&b.1)?);
            let running = State { out: shape.of_mut(&mut x).into(), lse: rows.of_mut(&mut x_lse).into() };
            MergePlan::<T>::new(gpu)?.merge(running, State { out: shape.of(&y), lse: rows.of(&y_lse) })?;
            out = stream.clone_dtoh(&x)?;
            stream.clone_dtoh(&x_lse)?
        }
    };
    let (out_expected, lse_expected) = wanted.map_or((None, None), |wanted| (Some(wanted.out), Some(wanted.lse)));
    Ok(vec![Out::new("out", &tensor.shape, &out, out_expected), Out::new("lse", &lse_shape, &lse, lse_expected)])
}
