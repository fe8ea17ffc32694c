//! What is added to the token embedding.

use anyhow::{Result, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::cudarc::driver::CudaSlice;
use posenc::embed::{
    Along, Counted, DeviceLookup, DeviceTables, Gradients, GridSize, HostLookup, HostTables, LearnedGradPlan,
    LearnedPlan, Norm, NormGrad, ResamplePlan, Row, SinusoidPlan, TableGrad, TimestepPlan, Tokens,
};
use posenc::{Gpu, Grid, GridPlan, Id, Learned, Positions, Resample, Sinusoid};
use serde::{Deserialize, Serialize};

use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements, sizes};
use crate::tensors::Dtype;

/// The element type of a result that has no input of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Written {
    #[default]
    F32,
    F16,
    Bf16,
}

impl Written {
    pub const fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::Bf16 => Some(Self::Bf16),
            _ => None,
        }
    }

    const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

const fn one() -> f64 {
    1.0
}

/// Writes sinusoids, or adds them to `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinusoidOp {
    pub spec: Sinusoid,
    /// position of the first token, where there is no tensor of positions
    #[serde(default)]
    pub start: i64,
    /// multiplies x
    #[serde(default = "one")]
    pub scale: f64,
    /// type of what is written
    #[serde(default)]
    pub dtype: Written,
}

pub fn sinusoid_form() -> Form {
    let spec = Sinusoid::new(64);
    Form {
        about: "sinusoids of positions, written, or added to embeddings",
        reads: &[
            (
                "x",
                "f32, f16 or bf16, [tokens, dim] or [batch, tokens, dim]: x * scale + sinusoid; absent: sinusoids are written",
            ),
            ("positions", "i64 or i32, [tokens] for every sequence; needed without x"),
        ],
        writes: &[("out", "as x, or [positions, dim] of dtype")],
        examples: vec![Op::Sinusoid(SinusoidOp { spec, start: 0, scale: 8.0, dtype: Written::F32 })],
    }
}

/// An embedding's shape: `[tokens, dim]` or `[batch, tokens, dim]`.
fn tokens_of(name: &str, shape: &[usize]) -> Result<Tokens> {
    match *shape {
        [tokens, dim] => Ok(Tokens::new(1, tokens, dim)),
        [batch, tokens, dim] => Ok(Tokens::new(batch, tokens, dim)),
        _ => anyhow::bail!("{name} is {shape:?}, it must be [tokens, dim] or [batch, tokens, dim]"),
    }
}

impl Operation for SinusoidOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let dtype = inputs.get("x").map_or(self.dtype.dtype(), |x| x.dtype);
        by_type!(dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        Inputs::default().with_values("x", dtype, &[2, 3 * scale, self.spec.dim], &values(6 * scale * self.spec.dim))
    }
}

impl SinusoidOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let given = inputs.integers("positions")?;
        let (shape, x) = match (inputs.get("x"), &given) {
            (Some(tensor), _) => (tensor.shape.clone(), Some(elements::<T>("x", tensor)?)),
            (None, Some(list)) => (vec![list.len(), self.spec.dim], None),
            (None, None) => anyhow::bail!("the input has neither x nor positions, only {}", inputs.names()),
        };
        let tokens = tokens_of("x", &shape)?;
        let positions =
            given.unwrap_or_else(|| (0..tokens.tokens as i64).map(|token| self.start.wrapping_add(token)).collect());
        ensure!(positions.len() == tokens.tokens, "positions are {}, there must be {}", positions.len(), tokens.tokens);
        let expected = expected.then(|| {
            let place = |i: usize| (positions[i / self.spec.dim % tokens.tokens], i % self.spec.dim);
            let count = tokens.batch * tokens.tokens * self.spec.dim;
            let both = (0..count).map(|i| {
                let (position, channel) = place(i);
                let value = self.spec.value(position, channel);
                match &x {
                    Some(x) => {
                        let want = x[i].to_f64() * self.scale + value;
                        (want, rounded::<T>(want, self.spec.add_error_bound(position, x[i].to_f64(), self.scale)))
                    }
                    None => (value, rounded::<T>(value, self.spec.error_bound(position))),
                }
            });
            let (want, bound) = both.unzip();
            Expected { want, bound }
        });
        let mut out = x.clone().unwrap_or_else(|| vec![T::from_f64(0.0); tokens.tokens * self.spec.dim]);
        match (device, &x) {
            (Device::Cpu, Some(_)) => {
                self.spec.add(&mut out, &tokens, Positions::<&[i64]>::ids(&positions[..]).shared(), self.scale)?
            }
            (Device::Cpu, None) => self.spec.write(&mut out, &positions)?,
            (Device::Gpu(gpu), _) => {
                let stream = gpu.stream();
                let (mut y, ids) = (stream.clone_htod(&out)?, stream.clone_htod(&positions)?);
                let plan = SinusoidPlan::<T>::new(gpu, &self.spec)?;
                let places = Positions::ids(&ids);
                match x {
                    Some(_) => plan.add(tokens.of_mut(&mut y), places.shared(), self.scale)?,
                    None => plan.write(tokens.of_mut(&mut y), places)?,
                }
                out = stream.clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &shape, &out, expected)])
    }
}

/// Writes embeddings of timesteps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestepOp {
    pub spec: Sinusoid,
    /// type of what is written
    #[serde(default)]
    pub dtype: Written,
}

pub fn timestep_form() -> Form {
    Form {
        about: "sinusoids of timesteps with a fraction",
        reads: &[("t", "f32, [timesteps]")],
        writes: &[("out", "[timesteps, dim] of dtype")],
        examples: vec![Op::Timestep(TimestepOp { spec: Sinusoid::timestep(320), dtype: Written::Bf16 })],
    }
}

impl Operation for TimestepOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(self.dtype.dtype(), T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, _: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let t: Vec<f64> = values(5 * scale).iter().map(|value| value * 500.0 + 500.0).collect();
        Inputs::default().with_values("t", Dtype::F32, &[5 * scale], &t)
    }
}

impl TimestepOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let [count] = sizes("t", inputs.main("t")?, "[timesteps]")?;
        let t = elements::<f32>("t", inputs.main("t")?)?;
        let dim = self.spec.dim;
        self.spec.check()?;
        let mut out = vec![T::from_f64(0.0); count * dim];
        match device {
            Device::Cpu => self.spec.write_times(&mut out, &t)?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (mut y, t) = (stream.clone_htod(&out)?, stream.clone_htod(&t)?);
                TimestepPlan::<T>::new(gpu, &self.spec)?.write(Tokens::new(1, count, dim).of_mut(&mut y), &t)?;
                out = stream.clone_dtoh(&y)?;
            }
        }
        let expected = expected.then(|| {
            let value = |i: usize| self.spec.value_at(f64::from(t[i / dim]), i % dim);
            let want: Vec<f64> = (0..count * dim).map(value).collect();
            let bound = want.iter().map(|&want| rounded::<T>(want, self.spec.time_error_bound(want))).collect();
            Expected { want, bound }
        });
        Ok(vec![Out::new("out", &[count, dim], &out, expected)])
    }
}

/// Writes embeddings of a grid, or adds them to `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridOp {
    pub spec: Grid,
    pub size: GridSize,
    /// multiplies x
    #[serde(default = "one")]
    pub scale: f64,
    /// how counts of a mask become coordinates
    #[serde(default)]
    pub counted: Option<Counted>,
    /// type of what is written
    #[serde(default)]
    pub dtype: Written,
}

pub fn grid_form() -> Form {
    let (spec, size) = (Grid::columns_first(64), GridSize::image(3, 4));
    let detr =
        GridOp { spec: Grid::detr(64, 1e4), counted: Some(Counted::default()), size, scale: 1.0, dtype: Written::F32 };
    Form {
        about: "sinusoids of an image's or a video's rows, columns and frames, written, or added to embeddings",
        reads: &[
            ("x", "f32, f16 or bf16, [tokens, dim] or [batch, tokens, dim]; absent: the grid is written"),
            ("mask", "i64 or i32, [batch, tokens], with counted: 1 for a token of the image, 0 for padding"),
        ],
        writes: &[("out", "as x, or [tokens, dim] of dtype; of a mask [batch, tokens, dim]")],
        examples: vec![Op::Grid(GridOp { spec, size, scale: 1.0, counted: None, dtype: Written::F32 }), Op::Grid(detr)],
    }
}

impl Operation for GridOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let dtype = inputs.get("x").map_or(self.dtype.dtype(), |x| x.dtype);
        by_type!(dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (tokens, dim) = (self.size.frames * self.size.rows * self.size.columns, self.spec.dim());
        if self.counted.is_some() {
            let mask: Vec<f64> = (0..2 * tokens).map(|token| f64::from(token % 5 != 3)).collect();
            return Inputs::default().with_values("mask", Dtype::I32, &[2, tokens], &mask);
        }
        Inputs::default().with_values("x", dtype, &[2 * scale, tokens, dim], &values(2 * scale * tokens * dim))
    }
}

impl GridOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        self.spec.check()?;
        let (count, dim) = (self.size.tokens()?, self.spec.dim());
        if let Some(counted) = self.counted {
            return self.masked::<T>(inputs, device, expected, counted);
        }
        let x = inputs.get("x").map(|x| elements::<T>("x", x)).transpose()?;
        let shape = inputs.get("x").map_or_else(|| vec![count, dim], |x| x.shape.clone());
        let tokens = tokens_of("x", &shape)?;
        let mut out = x.clone().unwrap_or_else(|| vec![T::from_f64(0.0); count * dim]);
        match (device, &x) {
            (Device::Cpu, Some(_)) => self.spec.add(&mut out, &tokens, self.size, self.scale)?,
            (Device::Cpu, None) => self.spec.write(&mut out, self.size)?,
            (Device::Gpu(gpu), _) => {
                let mut y = gpu.stream().clone_htod(&out)?;
                let plan = GridPlan::<T>::new(gpu, &self.spec)?;
                match x {
                    Some(_) => plan.add(tokens.of_mut(&mut y), self.size, self.scale)?,
                    None => plan.write(tokens.of_mut(&mut y), self.size)?,
                }
                out = gpu.stream().clone_dtoh(&y)?;
            }
        }
        let expected = expected.then(|| {
            let both = (0..tokens.batch * count * dim).map(|i| {
                let (place, channel) = (self.size.place(i / dim % count), i % dim);
                let value = self.spec.value(place, channel);
                match &x {
                    Some(x) => {
                        let want = x[i].to_f64() * self.scale + value;
                        (want, rounded::<T>(want, self.spec.add_error_bound(place, x[i].to_f64(), self.scale)))
                    }
                    None => (value, rounded::<T>(value, self.spec.error_bound(place))),
                }
            });
            let (want, bound) = both.unzip();
            Expected { want, bound }
        });
        Ok(vec![Out::new("out", &shape, &out, expected)])
    }
}

impl GridOp {
    /// A table for each image, counted over its mask.
    fn masked<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool, counted: Counted) -> Result<Vec<Out>> {
        let (count, dim) = (self.size.tokens()?, self.spec.dim());
        let list = inputs.integers("mask")?;
        let list = list.ok_or_else(|| anyhow::anyhow!("the input has no tensor \"mask\", only {}", inputs.names()))?;
        ensure!(count > 0 && list.len() % count == 0, "the mask has {} tokens, an image has {count}", list.len());
        let (batch, mask) = (list.len() / count, list.iter().map(|&it| u8::from(it != 0)).collect::<Vec<_>>());
        let mut out = vec![T::from_f64(0.0); batch * count * dim];
        // Refuses what cannot be counted, too.
        self.spec.write_masked(&mut out, &mask, batch, self.size, counted)?;
        if let Device::Gpu(gpu) = device {
            let stream = gpu.stream();
            let (mask, mut y) = (stream.clone_htod(&mask)?, stream.clone_htod(&out)?);
            let images = Tokens::new(batch, count, dim).of_mut(&mut y);
            GridPlan::<T>::new(gpu, &self.spec)?.write_masked(images, &mask, self.size, counted)?;
            out = stream.clone_dtoh(&y)?;
        }
        let expected = expected.then(|| {
            let mut expected = Expected { want: Vec::new(), bound: Vec::new() };
            for (image, token) in (0..batch).flat_map(|image| (0..count).map(move |token| (image, token))) {
                let [_, row, column] = self.size.place(token);
                let there = |row: usize, column: usize| mask[image * count + row * self.size.columns + column] != 0;
                let down = |rows: usize| (0..rows).filter(|&row| there(row, column)).count();
                let across = |columns: usize| (0..columns).filter(|&column| there(row, column)).count();
                let y = counted.coordinate(down(row + 1), down(self.size.rows));
                let x = counted.coordinate(across(column + 1), across(self.size.columns));
                for channel in 0..dim {
                    let (axis, inner) = self.spec.channel(channel);
                    let axis = &self.spec.axes[axis];
                    let want = axis.sinusoid.value_at(if axis.along == Along::Rows { y } else { x }, inner);
                    expected.want.push(want);
                    expected.bound.push(rounded::<T>(want, axis.sinusoid.time_error_bound(want)));
                }
            }
            expected
        });
        Ok(vec![Out::new("out", &[batch, count, dim], &out, expected)])
    }
}

/// Sums rows of learned tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedOp {
    pub spec: Learned,
    /// position of the first token, where there is no tensor of positions and the spec counts none itself
    #[serde(default)]
    pub start: Option<i64>,
}

const TABLES: &[(&str, &str)] = &[
    ("ids", "i64 or i32, [batch, tokens]; for a token table, types' and padding's rows"),
    ("token, position, type", "f32, f16 or bf16, [rows, dim]: the tables; each is optional"),
    ("x", "of the tables' type, [batch, tokens, dim]: in place of rows of a token table"),
    ("gain, bias", "[dim], of a norm; optional"),
    ("types, positions", "i64 or i32, [batch, tokens]; optional"),
];

pub fn learned_form() -> Form {
    let spec = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(64) };
    Form {
        about: "rows of learned tables of tokens, positions and types, summed, with a norm behind",
        reads: TABLES,
        writes: &[("out", "[batch, tokens, dim]")],
        examples: vec![Op::Learned(LearnedOp { spec, start: None })],
    }
}

/// Tables and look-ups of a call on the host.
struct Gathered<T> {
    shape: Tokens,
    x: Option<Vec<T>>,
    /// token, position, type, gain, bias
    tables: [Option<Vec<T>>; 5],
    ids: Option<Vec<i64>>,
    types: Option<Vec<i64>>,
    positions: Option<Vec<i64>>,
}

/// The same on a device.
struct DeviceGathered<T> {
    tables: [Option<CudaSlice<T>>; 5],
    /// ids, types, positions
    lists: [Option<CudaSlice<i64>>; 3],
}

impl LearnedOp {
    fn dtype(inputs: &Inputs) -> Result<Dtype> {
        let first = ["token", "position", "type", "x"].into_iter().find_map(|name| inputs.get(name));
        match first {
            Some(tensor) => Ok(tensor.dtype),
            None => anyhow::bail!("the input has no table and no x, only {}", inputs.names()),
        }
    }

    fn read<T: Float>(&self, inputs: &Inputs) -> Result<Gathered<T>> {
        let dim = self.spec.dim;
        let [batch, tokens] = match (inputs.get("ids"), inputs.get("x")) {
            (Some(ids), _) => sizes("ids", ids, "[batch, tokens]")?,
            (None, Some(x)) => {
                let [batch, tokens, _] = sizes("x", x, "[batch, tokens, dim]")?;
                [batch, tokens]
            }
            (None, None) => anyhow::bail!("the input has neither ids nor x, only {}", inputs.names()),
        };
        let table = |name: &str| inputs.get(name).map(|tensor| elements::<T>(name, tensor)).transpose();
        let positions = match (inputs.integers("positions")?, self.start) {
            (None, Some(start)) => {
                Some((0..tokens as i64).map(|token| start.wrapping_add(token)).collect::<Vec<_>>().repeat(batch))
            }
            (list, _) => list,
        };
        Ok(Gathered {
            shape: Tokens::new(batch, tokens, dim),
            x: inputs.values("x", &[batch, tokens, dim])?,
            tables: [table("token")?, table("position")?, table("type")?, table("gain")?, table("bias")?],
            ids: inputs.integers("ids")?,
            types: inputs.integers("types")?,
            positions,
        })
    }

    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let read = self.read::<T>(inputs)?;
        let (shape, tables, lookup) = (&read.shape, read.tables(), read.lookup());
        let mut out = read.x.clone().unwrap_or_else(|| vec![T::from_f64(0.0); shape.batch * shape.tokens * shape.dim]);
        let expected = expected.then(|| self.spec.expect(&out, shape, &tables, &lookup)).transpose()?;
        match device {
            Device::Cpu => self.spec.gather(&mut out, shape, &tables, &lookup)?,
            Device::Gpu(gpu) => {
                let uploaded = read.upload(gpu)?;
                let mut y = gpu.stream().clone_htod(&out)?;
                let plan = LearnedPlan::<T>::new(gpu, &self.spec)?;
                plan.gather_checked(shape.of_mut(&mut y), &uploaded.tables(), &uploaded.lookup())?;
                out = gpu.stream().clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &[shape.batch, shape.tokens, shape.dim], &out, expected)])
    }
}

impl<T: Float> Gathered<T> {
    fn tables(&self) -> HostTables<'_, T> {
        let [token, position, types, gain, bias] = self.tables.each_ref().map(Option::as_deref);
        HostTables { token, position, types, gain, bias }
    }

    fn lookup(&self) -> HostLookup<'_> {
        HostLookup {
            ids: self.ids.as_deref(),
            types: self.types.as_deref(),
            positions: self.positions.as_ref().map_or(Positions::counted(), Positions::ids),
            ..HostLookup::default()
        }
    }

    fn upload(&self, gpu: &Gpu) -> Result<DeviceGathered<T>> {
        let stream = gpu.stream();
        let up = |at: usize| self.tables[at].as_ref().map(|values| stream.clone_htod(values)).transpose();
        let list = |list: &Option<Vec<i64>>| list.as_ref().map(|list| stream.clone_htod(list)).transpose();
        Ok(DeviceGathered {
            tables: [up(0)?, up(1)?, up(2)?, up(3)?, up(4)?],
            lists: [list(&self.ids)?, list(&self.types)?, list(&self.positions)?],
        })
    }
}

impl<T: Float> DeviceGathered<T> {
    fn tables(&self) -> DeviceTables<'_, T> {
        let [token, position, types, gain, bias] = self.tables.each_ref().map(|it| it.as_ref().map(|it| it as _));
        DeviceTables { token, position, types, gain, bias }
    }

    fn lookup(&self) -> DeviceLookup<'_> {
        let [ids, types, positions] = &self.lists;
        DeviceLookup {
            ids: ids.as_ref().map(|ids| i64::ids(ids)),
            types: types.as_ref().map(|types| i64::ids(types)),
            positions: positions.as_ref().map_or(Positions::counted(), Positions::ids),
            ..DeviceLookup::default()
        }
    }
}

impl Operation for LearnedOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(Self::dtype(inputs)?, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let dim = self.spec.dim;
        let ids: Vec<f64> = (0..6 * scale).map(|i| (i * i % 8) as f64).collect();
        let mut inputs = Inputs::default().with_values("ids", Dtype::I64, &[2, 3 * scale], &ids);
        for (name, rows) in [("token", 8), ("position", 3 * scale)] {
            inputs = inputs.with_values(name, dtype, &[rows, dim], &values(rows * dim));
        }
        if self.spec.norm.is_some() {
            inputs = inputs.with_values("gain", dtype, &[dim], &values(dim));
        }
        inputs
    }
}

/// The gradients of learned tables and of the norm behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LearnedGradOp(pub LearnedOp);

pub fn learned_grad_form() -> Form {
    let normed = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(64) };
    let of = |spec| Op::LearnedGrad(LearnedGradOp(LearnedOp { spec, start: None }));
    Form {
        about: "gradients of learned tables and of the norm's gain and bias, from that of their sum",
        reads: &[
            ("ids, token, position, type, x, gain, bias, types, positions", "as in the operation learned"),
            ("grad", "of the tables' type, [batch, tokens, dim]: the gradient of the result"),
        ],
        writes: &[
            ("sum", "[batch, tokens, dim]: the gradient of the sum of rows, where there is a norm"),
            ("token, position, type, gain, bias", "of those that are there"),
        ],
        examples: vec![of(normed), of(Learned::new(64))],
    }
}

impl Operation for LearnedGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(LearnedOp::dtype(inputs)?, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let dim = self.0.spec.dim;
        let inputs = self.0.sample(dtype, scale, values);
        inputs.with_values("grad", dtype, &[2, 3 * scale, dim], &values(6 * scale * dim))
    }
}

impl LearnedGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.0.spec;
        let read = self.0.read::<T>(inputs)?;
        let (shape, tables, lookup) = (&read.shape, read.tables(), read.lookup());
        let (batch, tokens, dim) = (shape.batch, shape.tokens, shape.dim);
        let grad = inputs.given::<T>("grad", &[batch, tokens, dim])?;
        let x = read.x.as_deref().unwrap_or_default();
        let want = spec.grad((batch, tokens), x, &grad, &tables, &lookup)?;
        let rows = spec.rows(batch, tokens, &tables, &lookup)?;
        let round = |all: &[f64]| all.iter().map(|&value| T::from_f64(value)).collect::<Vec<T>>();
        // The sum, token, position, type, gain, bias.
        let wanted = [&want.sum, &want.token, &want.position, &want.types, &want.gain, &want.bias];
        let mut got = wanted.map(|all| round(all));
        if let Device::Gpu(gpu) = device {
            self.on_device(gpu, &read, &grad, &rows, &mut got)?;
        }
        let bounds = expected.then(|| self.bounds(&read, &grad, &want, &rows));
        let names = ["sum", "token", "position", "type", "gain", "bias"];
        let mut out = Vec::new();
        for (at, name) in names.into_iter().enumerate() {
            let is_there = match at {
                0 => spec.norm.is_some(),
                _ => read.tables[at - 1].is_some() && !wanted[at].is_empty(),
            };
            if is_there {
                let own = match at {
                    0 => vec![batch, tokens, dim],
                    1..=3 => vec![wanted[at].len() / dim.max(1), dim],
                    _ => vec![dim],
                };
                let expected = bounds.as_ref().map(|all| Expected { want: wanted[at].clone(), bound: all[at].clone() });
                out.push(Out::new(name, &own, &got[at], expected));
            }
        }
        Ok(out)
    }

    fn on_device<T: Float>(
        &self,
        gpu: &Gpu,
        read: &Gathered<T>,
        grad: &[T],
        rows: &[Row],
        got: &mut [Vec<T>; 6],
    ) -> Result<()> {
        let (spec, stream, shape) = (&self.0.spec, gpu.stream(), read.shape);
        let plan = LearnedGradPlan::<T>::new(gpu, spec, shape)?;
        let mut sums = stream.clone_htod(grad)?;
        if let Some(norm) = spec.norm {
            let uploaded = read.upload(gpu)?;
            let (given, blank) = (stream.clone_htod(grad)?, vec![T::from_f64(0.0); shape.dim]);
            let x = read.x.as_ref().map(|x| stream.clone_htod(x)).transpose()?;
            let (mut gain, mut bias) = (stream.clone_htod(&blank)?, stream.clone_htod(&blank)?);
            let is_layer = matches!(norm, Norm::Layer { .. });
            let out = NormGrad {
                gain: Some(&mut gain),
                bias: if is_layer { Some(&mut bias) } else { None },
                ..NormGrad::new(shape.of_mut(&mut sums))
            };
            let x = x.as_ref().map(|x| shape.of(x));
            plan.norm(out, shape.of(&given), x, &uploaded.tables(), &uploaded.lookup())?;
            (got[0], got[4]) = (stream.clone_dtoh(&sums)?, stream.clone_dtoh(&gain)?);
            if is_layer {
                got[5] = stream.clone_dtoh(&bias)?;
            }
        }
        let of = [
            rows.iter().map(|row| row.token).collect::<Option<Vec<_>>>(),
            rows.iter().map(|row| row.position).collect(),
            rows.iter().map(|row| row.types).collect(),
        ];
        for (at, ids) in of.into_iter().enumerate() {
            let (Some(ids), count) = (ids, got[at + 1].len() / shape.dim.max(1)) else { continue };
            let mut table = stream.clone_htod(&vec![T::from_f64(0.0); got[at + 1].len()])?;
            let scale = if at == 0 { spec.scale } else { 1.0 };
            let how = TableGrad { scale, ..TableGrad::new(count) };
            let first = ids.first().copied().unwrap_or(0);
            // Positions that are counted need no order.
            if at == 1 && ids.iter().enumerate().all(|(token, &row)| row == first + token % shape.tokens) {
                plan.counted(&mut table, shape.of(&sums), first, how)?;
            } else {
                let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
                let mut order = stream.clone_htod(&vec![0u32; ids.len()])?;
                let ids = stream.clone_htod(&ids)?;
                plan.order(&mut order, i64::ids(&ids), rows.len())?;
                plan.table(&mut table, shape.of(&sums), i64::ids(&ids), &order, how)?;
            }
            got[at + 1] = stream.clone_dtoh(&table)?;
        }
        Ok(())
    }

    /// The error allowed at each number of the sum's gradient, of the tables', and of gain and bias.
    fn bounds<T: Float>(&self, read: &Gathered<T>, grad: &[T], want: &Gradients, rows: &[Row]) -> [Vec<f64>; 6] {
        let (spec, dim) = (&self.0.spec, self.0.spec.dim);
        let at = |table: usize, place: usize| read.tables[table].as_ref().map_or(0.0, |table| table[place].to_f64());
        let mut sum_bound = vec![0.0; want.sum.len()];
        let (mut gain, mut bias) = (vec![(0.0, 0.0); dim], vec![0.0; dim]);
        for (index, row) in rows.iter().enumerate().filter(|_| spec.norm.is_some()) {
            // The sum of the row, and the largest magnitude of its terms.
            let terms = (0..dim).map(|c| {
                let x = read.x.as_ref().map_or(0.0, |x| x[index * dim + c].to_f64());
                let of = |table: usize, row: Option<usize>| row.map_or(0.0, |row| at(table, row * dim + c));
                let token = if row.token.is_some() { of(0, row.token) } else { x } * spec.scale;
                let (position, types) = (of(1, row.position), of(2, row.types));
                (token + position + types, token.abs() + position.abs() + types.abs())
            });
            let (v, sizes): (Vec<f64>, Vec<f64>) = terms.unzip();
            let magnitude = sizes.into_iter().fold(0.0, f64::max);
            let (mean, eps) = match spec.norm {
                Some(Norm::Layer { eps }) => (v.iter().sum::<f64>() / dim as f64, eps),
                Some(Norm::Rms { eps }) => (0.0, eps),
                _ => (0.0, 0.0),
            };
            let sigma = (v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64 + eps).sqrt();
            let y: Vec<f64> = v.iter().map(|v| (v - mean) / sigma).collect();
            let own = &grad[index * dim..][..dim];
            let g: Vec<f64> = (0..dim)
                .map(|c| own[c].to_f64() * read.tables[3].as_ref().map_or(1.0, |gain| gain[c].to_f64()))
                .collect();
            for (c, error) in spec.sum_grad_error_bound(&y, &g, magnitude, sigma).into_iter().enumerate() {
                sum_bound[index * dim + c] = rounded::<T>(want.sum[index * dim + c], error);
                let size = own[c].to_f64().abs();
                gain[c].0 += size * y[c].abs();
                gain[c].1 += size * spec.norm_error_bound(y[c], 1.0, 0.0, magnitude, sigma);
                bias[c] += size;
            }
        }
        let table = |wanted: &[f64], of: &dyn Fn(&Row) -> Option<usize>, scale: f64| {
            let mut sizes = vec![(0usize, 0.0, 0.0); wanted.len()];
            for (index, row) in rows.iter().enumerate() {
                let Some(row) = of(row) else { continue };
                for c in 0..dim {
                    let (count, magnitude, error) = &mut sizes[row * dim + c];
                    let (sum, off) = (want.sum[index * dim + c], sum_bound[index * dim + c]);
                    *count += 1;
                    *magnitude += (sum.abs() + off) * scale.abs();
                    *error += off * scale.abs();
                }
            }
            let bound = |(&want, (count, magnitude, error)): (&f64, (usize, f64, f64))| match count {
                0 => 0.0,
                _ => rounded::<T>(want, error + Learned::table_grad_error_bound(count, magnitude)),
            };
            wanted.iter().zip(sizes).map(bound).collect::<Vec<f64>>()
        };
        let tables = [
            table(&want.token, &|row| row.token, spec.scale),
            table(&want.position, &|row| row.position, 1.0),
            table(&want.types, &|row| row.types, 1.0),
        ];
        let [token, position, types] = tables;
        let vector = |want: &[f64], size: &dyn Fn(usize) -> (f64, f64)| {
            let bound = |(c, &want): (usize, &f64)| {
                let (magnitude, off) = size(c);
                rounded::<T>(want, off + Learned::table_grad_error_bound(rows.len(), magnitude))
            };
            want.iter().enumerate().map(bound).collect::<Vec<f64>>()
        };
        let gain = vector(&want.gain, &|c| gain[c]);
        let bias = vector(&want.bias, &|c| (bias[c], 0.0));
        [sum_bound, token, position, types, gain, bias]
    }
}

/// The gradient of a table that was resampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResampleGradOp(pub ResampleOp);

pub fn resample_grad_form() -> Form {
    let examples = resample_form().examples.into_iter().map(|op| match op {
        Op::Resample(op) => Op::ResampleGrad(ResampleGradOp(op)),
        other => other,
    });
    Form {
        about: "the gradient of a learned table from that of its resampled form",
        reads: &[("grad", "f32, f16 or bf16, [prefix + rows * columns, dim] of the new size")],
        writes: &[("table", "[prefix + rows * columns, dim] of the old size")],
        examples: examples.collect(),
    }
}

impl Operation for ResampleGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("grad")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let spec = &self.0.spec;
        let rows = spec.prefix + spec.to.rows * spec.to.columns;
        Inputs::default().with_values("grad", dtype, &[rows, 8 * scale], &values(rows * 8 * scale))
    }
}

impl ResampleGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.0.spec;
        let tensor = inputs.main("grad")?;
        let [rows, dim] = sizes("grad", tensor, "[prefix + rows * columns, dim]")?;
        spec.check()?;
        let [from, to] = [spec.from, spec.to].map(|size| size.tokens().map(|tokens| spec.prefix + tokens));
        let (from, to) = (from?, to?);
        ensure!(rows == to, "grad has {rows} rows, the resampled table has {to}");
        let grad = elements::<T>("grad", tensor)?;
        let mut out = vec![T::from_f64(0.0); from * dim];
        match device {
            Device::Cpu => spec.write_grad(&mut out, &grad, dim)?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, mut y) = (stream.clone_htod(&grad)?, stream.clone_htod(&out)?);
                let (from, to) = (Tokens::new(1, from, dim), Tokens::new(1, to, dim));
                ResamplePlan::<T>::new(gpu, spec)?.grad(from.of_mut(&mut y), to.of(&x), false)?;
                out = stream.clone_dtoh(&y)?;
            }
        }
        let expected = expected.then(|| {
            let prefix = spec.prefix * dim;
            let mut want = vec![0.0; from * dim];
            let mut size = want.clone();
            want.iter_mut().zip(&grad[..prefix]).for_each(|(want, grad)| *want = grad.to_f64());
            for (row, column) in (0..spec.to.rows).flat_map(|row| (0..spec.to.columns).map(move |column| (row, column)))
            {
                let (down, across) = (spec.taps(Along::Rows, row), spec.taps(Along::Columns, column));
                for (y, wy) in down.weights.iter().enumerate() {
                    for (x, wx) in across.weights.iter().enumerate() {
                        let place = (down.first + y) * spec.from.columns + across.first + x;
                        for channel in 0..dim {
                            let own = grad[prefix + (row * spec.to.columns + column) * dim + channel].to_f64();
                            want[prefix + place * dim + channel] += wy * wx * own;
                            size[prefix + place * dim + channel] += (wy * wx * own).abs();
                        }
                    }
                }
            }
            let most = spec.most_taps(true);
            let bound = |(at, size): (usize, &f64)| match at < prefix {
                true => 0.0,
                false => rounded::<T>(want[at], Resample::error_bound(most, *size)),
            };
            let bound = size.iter().enumerate().map(bound).collect();
            Expected { want, bound }
        });
        Ok(vec![Out::new("table", &[from, dim], &out, expected)])
    }
}

/// Resamples a learned table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResampleOp {
    pub spec: Resample,
}

pub fn resample_form() -> Form {
    let spec = Resample { prefix: 1, ..Resample::new(GridSize::image(4, 4), GridSize::image(6, 5)) };
    Form {
        about: "a learned table of an image's patches at another size",
        reads: &[("table", "f32, f16 or bf16, [prefix + rows * columns, dim]")],
        writes: &[("out", "[prefix + rows * columns, dim] of the new size")],
        examples: vec![Op::Resample(ResampleOp { spec })],
    }
}

impl Operation for ResampleOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.main("table")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let rows = self.spec.prefix + self.spec.from.rows * self.spec.from.columns;
        Inputs::default().with_values("table", dtype, &[rows, 8 * scale], &values(rows * 8 * scale))
    }
}

impl ResampleOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.spec;
        let tensor = inputs.main("table")?;
        let [rows, dim] = sizes("table", tensor, "[prefix + rows * columns, dim]")?;
        spec.check()?;
        let [from, to] = [spec.from, spec.to].map(|size| size.tokens().map(|tokens| spec.prefix + tokens));
        let (from, to) = (from?, to?);
        ensure!(rows == from, "the table has {rows} rows, the spec has {from}");
        let table = elements::<T>("table", tensor)?;
        let mut out = vec![T::from_f64(0.0); to * dim];
        match device {
            Device::Cpu => spec.write(&mut out, &table, dim)?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, mut y) = (stream.clone_htod(&table)?, stream.clone_htod(&out)?);
                let (from, to) = (Tokens::new(1, from, dim), Tokens::new(1, to, dim));
                ResamplePlan::<T>::new(gpu, spec)?.write(to.of_mut(&mut y), from.of(&x))?;
                out = stream.clone_dtoh(&y)?;
            }
        }
        let expected = expected.then(|| self.expect(&table, dim));
        Ok(vec![Out::new("out", &[to, dim], &out, expected)])
    }

    fn expect<T: Float>(&self, table: &[T], dim: usize) -> Expected {
        let spec = &self.spec;
        let prefix = spec.prefix * dim;
        let mut want: Vec<f64> = table[..prefix].iter().map(|value| value.to_f64()).collect();
        let mut bound = vec![0.0; prefix];
        let most = spec.most_taps(false);
        for (row, column) in (0..spec.to.rows).flat_map(|row| (0..spec.to.columns).map(move |column| (row, column))) {
            let (down, across) = (spec.taps(Along::Rows, row), spec.taps(Along::Columns, column));
            for channel in 0..dim {
                let (mut sum, mut size) = (0.0, 0.0);
                for (y, wy) in down.weights.iter().enumerate() {
                    for (x, wx) in across.weights.iter().enumerate() {
                        let place = (down.first + y) * spec.from.columns + across.first + x;
                        let term = wy * wx * table[prefix + place * dim + channel].to_f64();
                        sum += term;
                        size += term.abs();
                    }
                }
                want.push(sum);
                bound.push(rounded::<T>(sum, Resample::error_bound(most, size)));
            }
        }
        Expected { want, bound }
    }
}
