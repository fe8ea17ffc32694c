//! Operations of the crate as JSON: its specs, and what a call says beside them. Each computes on the CPU or on a device, and knows the
//! wanted values and the error that its documentation allows.

mod content;
mod embed;
mod gradients;
mod logits;
mod rotate;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use posenc::accuracy::Expected;
use posenc::half::{bf16, f16};
use posenc::{Error, Gpu, Scalar};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tensors::{Dtype, Element, Tensor, Tensors};

/// An element type that operations take.
pub trait Float: Element + Scalar {}
impl Float for f32 {}
impl Float for f16 {}
impl Float for bf16 {}

/// An expression for each of the element types.
macro_rules! by_type {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            crate::tensors::Dtype::F32 => {
                type $T = f32;
                $body
            }
            crate::tensors::Dtype::F16 => {
                type $T = posenc::half::f16;
                $body
            }
            crate::tensors::Dtype::Bf16 => {
                type $T = posenc::half::bf16;
                $body
            }
            other => anyhow::bail!("elements are {}, operations take f32, f16 and bf16", other.name()),
        }
    };
}
use by_type;

/// Where an operation runs.
pub enum Device {
    Cpu,
    Gpu(Gpu),
}

impl Device {
    /// `cpu`, `cuda`, `cuda:N`, or `auto`: the first GPU, or the CPU where there is none.
    pub fn parse(text: &str) -> Result<Self> {
        let ordinal = match text {
            "cpu" => return Ok(Self::Cpu),
            "auto" | "cuda" => 0,
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.with_context(|| format!("--device is {text:?}, it must be auto, cpu, cuda or cuda:N"))?
            }
        };
        match Gpu::open(ordinal) {
            Ok(gpu) => Ok(Self::Gpu(gpu)),
            Err(Error::NoDevice(_) | Error::NoKernels) if text == "auto" => Ok(Self::Cpu),
            Err(error) => Err(error).with_context(|| format!("--device {text}")),
        }
    }

    /// The device in words.
    pub fn name(&self) -> Result<String> {
        Ok(match self {
            Self::Cpu => "the CPU".into(),
            Self::Gpu(gpu) => {
                let (major, minor) = gpu.capability();
                format!("{}, compute capability {major}.{minor}", gpu.stream().context().name()?)
            }
        })
    }
}

/// Declares the operations: the name in Rust, what holds its JSON, and its form.
macro_rules! operations {
    ($($name:ident($op:ty) => $form:path,)*) => {
        /// An operation. `--schema` prints an example of each.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(tag = "op", rename_all = "kebab-case")]
        pub enum Op {
            $($name($op),)*
        }

        /// The operations by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Name {
            $($name,)*
        }

        impl Op {
            fn operation(&self) -> &dyn Operation {
                match self {
                    $(Self::$name(op) => op,)*
                }
            }
        }

        impl Name {
            /// The operation of this name from its other fields.
            fn read(self, fields: Value) -> Result<Op, serde_path_to_error::Error<serde_json::Error>> {
                Ok(match self {
                    $(Self::$name => Op::$name(serde_path_to_error::deserialize(fields)?),)*
                })
            }

            pub fn form(self) -> Form {
                match self {
                    $(Self::$name => $form(),)*
                }
            }
        }
    };
}

operations! {
    Rope(rotate::RopeOp) => rotate::rope_form,
    RopeGrad(rotate::RopeGradOp) => rotate::rope_grad_form,
    Xpos(rotate::XPosOp) => rotate::xpos_form,
    Prologue(rotate::PrologueOp) => rotate::prologue_form,
    Sinusoid(embed::SinusoidOp) => embed::sinusoid_form,
    Timestep(embed::TimestepOp) => embed::timestep_form,
    Grid(embed::GridOp) => embed::grid_form,
    Learned(embed::LearnedOp) => embed::learned_form,
    LearnedGrad(embed::LearnedGradOp) => embed::learned_grad_form,
    Resample(embed::ResampleOp) => embed::resample_form,
    ResampleGrad(embed::ResampleGradOp) => embed::resample_grad_form,
    Bias(logits::BiasOp) => logits::bias_form,
    BiasGrad(gradients::BiasGradOp) => gradients::bias_grad_form,
    Terms(content::TermsOp) => content::terms_form,
    TermsGrad(gradients::TermsGradOp) => gradients::terms_grad_form,
    Products(content::ProductsOp) => content::products_form,
    Swin2(logits::Swin2Op) => logits::swin2_form,
    Swin2Grad(gradients::Swin2GradOp) => gradients::swin2_grad_form,
    GateSums(content::GateSumsOp) => content::gate_sums_form,
    GateSumsGrad(gradients::GateSumsGradOp) => gradients::gate_sums_grad_form,
    Softmax(logits::SoftmaxOp) => logits::softmax_form,
    SoftmaxGrad(logits::SoftmaxGradOp) => logits::softmax_grad_form,
    Merge(logits::MergeOp) => logits::merge_form,
    MergeGrad(gradients::MergeGradOp) => gradients::merge_grad_form,
    RelativeValues(content::ValuesOp) => content::values_form,
    RelativeValuesGrad(gradients::ValuesGradOp) => gradients::values_grad_form,
}

/// What an operation reads, computes and writes, in words, with examples.
pub struct Form {
    pub about: &'static str,
    /// name, shape and meaning of each tensor
    pub reads: &'static [(&'static str, &'static str)],
    pub writes: &'static [(&'static str, &'static str)],
    pub examples: Vec<Op>,
}

/// What each operation has.
trait Operation {
    /// Computes on a device; with the wanted values and the error allowed where they are asked for.
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>>;

    /// Inputs of a call with generated numbers, of this type; `scale` times as many tokens, keys or channels as the least.
    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs;
}

impl Op {
    /// Reads a JSON file.
    pub fn open(path: &Path) -> Result<Self> {
        let json = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&json).with_context(|| path.display().to_string())
    }

    /// Reads JSON; an error names the field, and the line that it is on.
    fn parse(json: &str) -> Result<Self> {
        let mut fields: Value = serde_json::from_str(json)?;
        let Some(name) = fields.as_object_mut().and_then(|fields| fields.remove("op")) else {
            bail!("an operation is an object with its name as \"op\": posenc apply --schema lists them");
        };
        let name: Name = serde_json::from_value(name)?;
        name.read(fields).map_err(|error| {
            let path = error.path().to_string();
            let last = path.rsplit('.').find(|part| !part.starts_with('[')).unwrap_or_default();
            let last = last.split('[').next().unwrap_or_default();
            let line = json.lines().position(|line| line.contains(&format!("\"{last}\"")));
            let error = error.into_inner();
            match (path.as_str(), line) {
                ("." | "?", _) => anyhow::anyhow!("{error}"),
                (_, Some(line)) => anyhow::anyhow!("{path} in line {}: {error}", line + 1),
                _ => anyhow::anyhow!("{path}: {error}"),
            }
        })
    }

    /// Computes on a device. With `expected` each result has its wanted values and the error that is allowed at each.
    pub fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        self.operation().apply(inputs, device, expected)
    }

    /// The same operation, whose results are of this type where no input says it.
    pub fn written_as(&self, dtype: Dtype) -> Self {
        let mut op = self.clone();
        if let (Self::Timestep(op), Some(written)) = (&mut op, embed::Written::of(dtype)) {
            op.dtype = written;
        }
        op
    }

    /// Inputs of a call of this type with generated numbers; a larger `scale` has more tokens, keys or channels.
    pub fn sample(&self, dtype: Dtype, scale: usize) -> Inputs {
        let mut at = scale as u64;
        self.operation().sample(dtype, scale, &mut |count| {
            let next = |_| {
                // splitmix64
                at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = at;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            };
            (0..count).map(next).collect()
        })
    }
}

impl Name {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }
}

/// Tensors of a call, by name.
#[derive(Clone, Debug, Default)]
pub struct Inputs(BTreeMap<String, Tensor>);

/// A result.
pub struct Out {
    pub name: String,
    pub tensor: Tensor,
    /// wanted values, and the error allowed at each
    pub expected: Option<Expected>,
}

impl Out {
    fn new<T: Float>(name: &str, shape: &[usize], data: &[T], expected: Option<Expected>) -> Self {
        Self { name: name.into(), tensor: Tensor::new(shape, data), expected }
    }
}

impl Inputs {
    /// Every tensor of a file.
    pub fn read(file: &mut Tensors) -> Result<Self> {
        let names: Vec<String> = file.names().into_iter().map(String::from).collect();
        names.into_iter().map(|name| Ok((name.clone(), file.read(&name)?))).collect::<Result<_>>().map(Self)
    }

    fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.0.insert(name.into(), tensor);
        self
    }

    /// Generated numbers as a tensor of this type.
    fn with_values(self, name: &str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Self {
        fn of<T: Element>(shape: &[usize], values: &[f64], from: impl Fn(f64) -> T) -> Tensor {
            Tensor::new(shape, &values.iter().map(|&value| from(value)).collect::<Vec<T>>())
        }
        let tensor = match dtype {
            Dtype::F16 => of(shape, values, f16::from_f64),
            Dtype::Bf16 => of(shape, values, bf16::from_f64),
            Dtype::F64 => of(shape, values, |value| value),
            Dtype::I64 => of(shape, values, |value| value as i64),
            Dtype::I32 => of(shape, values, |value| value as i32),
            Dtype::F32 => of(shape, values, |value| value as f32),
        };
        self.with(name, tensor)
    }

    /// Numbers of a tensor of this type and shape, which must be there.
    fn given<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        self.need(name)?;
        Ok(self.values(name, shape)?.expect("a tensor that is there"))
    }

    /// Elements of an i32 tensor, if it is there.
    fn i32s(&self, name: &str) -> Result<Option<Vec<i32>>> {
        let Some(tensor) = self.get(name) else { return Ok(None) };
        tensor.elements().map(Some).with_context(|| format!("{name} is {}, it must be i32", tensor.dtype.name()))
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    fn need(&self, name: &str) -> Result<&Tensor> {
        self.get(name).with_context(|| format!("the input has no tensor {name:?}, only {}", self.names()))
    }

    /// The tensor of this name, or the only one.
    pub fn main(&self, name: &str) -> Result<&Tensor> {
        match (self.get(name), self.0.len()) {
            (Some(tensor), _) => Ok(tensor),
            (None, 1) => Ok(self.0.values().next().expect("one tensor")),
            _ => self.need(name),
        }
    }

    fn names(&self) -> String {
        if self.0.is_empty() { "none".into() } else { self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ") }
    }

    /// Tensors of numbers with a fraction.
    fn floats(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().filter(|(_, tensor)| tensor.dtype.is_float()).map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Integers of a tensor, if it is there.
    fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let Some(tensor) = self.get(name) else { return Ok(None) };
        let list = tensor.to_i64();
        list.map(Some).with_context(|| format!("{name} is {}, it must be i64 or i32", tensor.dtype.name()))
    }

    /// Numbers of a tensor of this type and shape, if it is there.
    fn values<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<T>>> {
        let Some(tensor) = self.get(name) else { return Ok(None) };
        ensure!(tensor.shape == shape, "{name} is {:?}, it must be {shape:?}", tensor.shape);
        elements(name, tensor).map(Some)
    }
}

/// The elements of a tensor, which are of this type.
fn elements<T: Float>(name: &str, tensor: &Tensor) -> Result<Vec<T>> {
    let elements = tensor.elements();
    elements.with_context(|| format!("{name} is {}, it must be {}", tensor.dtype.name(), T::DTYPE.name()))
}

/// Sizes of a tensor with this many axes.
fn sizes<const N: usize>(name: &str, tensor: &Tensor, axes: &str) -> Result<[usize; N]> {
    let Ok(sizes) = <[usize; N]>::try_from(&tensor.shape[..]) else {
        bail!("{name} is {:?}, it must be {axes}", tensor.shape);
    };
    Ok(sizes)
}

/// Cuts numbers that a kernel writes one after the other into tensors.
fn parts(names: &[(&str, Vec<usize>)], got: &[f32], expected: Option<Expected>) -> Vec<Out> {
    let mut begin = 0;
    let of = |(name, shape): &(&str, Vec<usize>)| {
        let own = begin..begin + shape.iter().product::<usize>();
        begin = own.end;
        let cut = |all: &[f64]| all[own.clone()].to_vec();
        let expected = expected.as_ref().map(|all| Expected { want: cut(&all.want), bound: cut(&all.bound) });
        Out::new(name, shape, &got[own.clone()], expected)
    };
    names.iter().map(of).collect()
}
