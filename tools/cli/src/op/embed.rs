//! What is added to the token embedding.

use anyhow::{Result, ensure};
use posenc::accuracy::{Expected, rounded};
use posenc::embed::{
    Along, DeviceLookup, DeviceTables, GridSize, HostLookup, HostTables, LearnedPlan, Norm, ResamplePlan, SinusoidPlan,
    TimestepPlan, Tokens,
};
use posenc::{Grid, GridPlan, Id, Learned, Positions, Resample, Sinusoid};
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
    /// type of what is written
    #[serde(default)]
    pub dtype: Written,
}

pub fn grid_form() -> Form {
    let (spec, size) = (Grid::columns_first(64), GridSize::image(3, 4));
    Form {
        about: "sinusoids of an image's or a video's rows, columns and frames, written, or added to embeddings",
        reads: &[("x", "f32, f16 or bf16, [tokens, dim] or [batch, tokens, dim]; absent: the grid is written")],
        writes: &[("out", "as x, or [tokens, dim] of dtype")],
        examples: vec![Op::Grid(GridOp { spec, size, scale: 1.0, dtype: Written::F32 })],
    }
}

impl Operation for GridOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let dtype = inputs.get("x").map_or(self.dtype.dtype(), |x| x.dtype);
        by_type!(dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let (tokens, dim) = (self.size.frames * self.size.rows * self.size.columns, self.spec.dim());
        Inputs::default().with_values("x", dtype, &[2 * scale, tokens, dim], &values(2 * scale * tokens * dim))
    }
}

impl GridOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        self.spec.check()?;
        let (count, dim) = (self.size.tokens()?, self.spec.dim());
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

/// Sums rows of learned tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedOp {
    pub spec: Learned,
    /// position of the first token, where there is no tensor of positions and the spec counts none itself
    #[serde(default)]
    pub start: Option<i64>,
}

pub fn learned_form() -> Form {
    let spec = Learned { norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(64) };
    Form {
        about: "rows of learned tables of tokens, positions and types, summed, with a norm behind",
        reads: &[
            ("ids", "i64 or i32, [batch, tokens]"),
            ("token, position, type", "f32, f16 or bf16, [rows, dim]: the tables; position and type are optional"),
            ("gain, bias", "[dim], of a norm; optional"),
            ("types, positions", "i64 or i32, [batch, tokens]; optional"),
        ],
        writes: &[("out", "[batch, tokens, dim]")],
        examples: vec![Op::Learned(LearnedOp { spec, start: None })],
    }
}

impl Operation for LearnedOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let dtype = inputs.need("token")?.dtype;
        by_type!(dtype, T => self.typed::<T>(inputs, device, expected))
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

impl LearnedOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let ids_tensor = inputs.need("ids")?;
        let [batch, tokens] = sizes("ids", ids_tensor, "[batch, tokens]")?;
        let table = |name: &str| inputs.get(name).map(|tensor| elements::<T>(name, tensor)).transpose();
        let (token, position, kinds) = (table("token")?, table("position")?, table("type")?);
        let (gain, bias) = (table("gain")?, table("bias")?);
        let ids = inputs.integers("ids")?;
        let types = inputs.integers("types")?;
        let positions = match (inputs.integers("positions")?, self.start) {
            (Some(list), _) => Some(list),
            (None, Some(start)) => {
                Some((0..tokens as i64).map(|token| start.wrapping_add(token)).collect::<Vec<_>>().repeat(batch))
            }
            (None, None) => None,
        };
        let shape = Tokens::new(batch, tokens, self.spec.dim);
        let tables = HostTables {
            token: token.as_deref(),
            position: position.as_deref(),
            types: kinds.as_deref(),
            gain: gain.as_deref(),
            bias: bias.as_deref(),
        };
        let lookup = HostLookup {
            ids: ids.as_deref(),
            types: types.as_deref(),
            positions: positions.as_ref().map_or(Positions::counted(), Positions::ids),
            ..HostLookup::default()
        };
        let mut out = vec![T::from_f64(0.0); batch * tokens * self.spec.dim];
        let expected = expected.then(|| self.spec.expect(&out, &shape, &tables, &lookup)).transpose()?;
        match device {
            Device::Cpu => self.spec.gather(&mut out, &shape, &tables, &lookup)?,
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let up = |values: &Option<Vec<T>>| values.as_ref().map(|values| stream.clone_htod(values)).transpose();
                let up_ids =
                    |values: &Option<Vec<i64>>| values.as_ref().map(|values| stream.clone_htod(values)).transpose();
                let (token, position, kinds, gain, bias) =
                    (up(&token)?, up(&position)?, up(&kinds)?, up(&gain)?, up(&bias)?);
                let (ids, types, positions) = (up_ids(&ids)?, up_ids(&types)?, up_ids(&positions)?);
                let tables = DeviceTables {
                    token: token.as_ref().map(|it| it as _),
                    position: position.as_ref().map(|it| it as _),
                    types: kinds.as_ref().map(|it| it as _),
                    gain: gain.as_ref().map(|it| it as _),
                    bias: bias.as_ref().map(|it| it as _),
                };
                let lookup = DeviceLookup {
                    ids: ids.as_ref().map(|ids| i64::ids(ids)),
                    types: types.as_ref().map(|types| i64::ids(types)),
                    positions: positions.as_ref().map_or(Positions::counted(), Positions::ids),
                    ..DeviceLookup::default()
                };
                let mut y = stream.clone_htod(&out)?;
                LearnedPlan::<T>::new(gpu, &self.spec)?.gather_checked(shape.of_mut(&mut y), &tables, &lookup)?;
                out = stream.clone_dtoh(&y)?;
            }
        }
        Ok(vec![Out::new("out", &[batch, tokens, self.spec.dim], &out, expected)])
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
