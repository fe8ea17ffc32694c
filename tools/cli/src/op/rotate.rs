//! RoPE and xPos.

use anyhow::{Context, Result, bail, ensure};
use posenc::accuracy::Expected;
use posenc::cudarc::driver::CudaSlice;
use posenc::rotate::{
    Angles, Branch, Cache, CacheRows, HeadNorm, HostCache, HostStored, Mixed, OutOfRange, Projected, PrologueCall, Qkv,
    RopeGrad, RopeGradPlan, Rotation, Side, Table, TableValues, Vectors, Yarn,
};
use posenc::{Direction, Gpu, Heads, Id, Pairing, Positions, Prologue, ProloguePlan, Rope, RopePlan, Scaling, XPos};
use serde::{Deserialize, Serialize};

use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements, parts, sizes};
use crate::tensors::{Dtype, Tensor};

/// The order of a tensor's axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[tokens, heads, dim]`
    Thd,
    /// `[batch, tokens, heads, dim]`
    Bthd,
    /// `[batch, heads, tokens, dim]`
    Bhtd,
}

/// Rotates every tensor of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeOp {
    pub spec: Rope,
    /// order of the axes; tensors of three axes are `thd`, of two `[tokens, dim]`
    #[serde(default)]
    pub layout: Option<Layout>,
    /// position of the first token, where there is no tensor of positions
    #[serde(default)]
    pub start: i64,
    #[serde(default)]
    pub direction: Direction,
}

/// Rotates and scales `q` and `k`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XPosOp {
    pub spec: XPos,
    /// order of the axes; tensors of three axes are `thd`, of two `[tokens, dim]`
    #[serde(default)]
    pub layout: Option<Layout>,
    /// position of the first token, where there is no tensor of positions
    #[serde(default)]
    pub start: i64,
    #[serde(default)]
    pub direction: Direction,
}

/// Tensors that are not rotated.
const BESIDE: [&str; 4] = ["positions", "cos", "sin", "frequencies"];

const POSITIONS: (&str, &str) =
    ("positions", "i64 or i32, one for each token: [tokens], [batch, tokens], or axes before these; optional");

pub fn rope_form() -> Form {
    let plain = Rope::new(64, 10_000.0);
    let yarn = Yarn::new(4.0, 32_768.0);
    let scaled = Rope {
        pairing: Pairing::Interleaved,
        scaling: Scaling::Yarn(yarn),
        attention_factor: yarn.attention_factor(),
        ..Rope::new(128, 1e6)
    };
    let op = |spec, layout, start, direction| Op::Rope(RopeOp { spec, layout, start, direction });
    Form {
        about: "RoPE of queries and keys, with any scaling, by a table or by learned frequencies of heads",
        reads: &[
            ("any names", "f32, f16 or bf16, [tokens, heads, dim], or four axes as layout says"),
            POSITIONS,
            (
                "cos, sin",
                "f32 or of the tensors' type, [rows, pairs]: a table; positions beyond it take the nearest row; optional",
            ),
            (
                "frequencies",
                "f32, [axes, sets of heads, pairs]: in place of those of a spec with Mixed angles; optional",
            ),
        ],
        writes: &[("the same names", "the rotated tensors")],
        examples: vec![
            op(plain, None, 0, Direction::Forward),
            op(scaled, Some(Layout::Bhtd), 131_000, Direction::Inverse),
            op(mixed(), None, 0, Direction::Forward),
        ],
    }
}

/// Two axes, two sets of heads, four pairs.
fn mixed() -> Rope {
    let frequencies = (0..16).map(|i| f64::from(i + 1) / 8.0).collect();
    Rope { angles: Angles::Mixed(Mixed { axes: 2, heads: 2, frequencies }), ..Rope::new(8, 1e4) }
}

pub fn xpos_form() -> Form {
    let spec = XPos::new(Rope::new(64, 10_000.0));
    Form {
        about: "xPos: RoPE whose queries grow and whose keys shrink with the position",
        reads: &[("q, k", "f32, f16 or bf16, [tokens, heads, dim], or four axes as layout says"), POSITIONS],
        writes: &[("q, k", "the rotated tensors")],
        examples: vec![Op::Xpos(XPosOp { spec, layout: None, start: 0, direction: Direction::Forward })],
    }
}

/// The shape of a tensor of queries or keys.
fn heads_of(name: &str, tensor: &Tensor, layout: Option<Layout>) -> Result<Heads> {
    Ok(match (&tensor.shape[..], layout) {
        (&[tokens, dim], None) => Heads::thd(tokens, 1, dim),
        (&[tokens, heads, dim], None | Some(Layout::Thd)) => Heads::thd(tokens, heads, dim),
        (&[batch, tokens, heads, dim], Some(Layout::Bthd)) => Heads::bthd(batch, tokens, heads, dim),
        (&[batch, heads, tokens, dim], Some(Layout::Bhtd)) => Heads::bhtd(batch, heads, tokens, dim),
        (&[_, _, _, _], None) => bail!("{name} is {:?}: say whether its layout is bthd or bhtd", tensor.shape),
        _ => bail!("{name} is {:?}, layouts are thd of three axes, bthd and bhtd of four", tensor.shape),
    })
}

/// Positions as `[axes, batch, tokens]`.
fn positions(inputs: &Inputs, axes: usize, heads: &Heads, start: i64) -> Result<Vec<i64>> {
    let (batch, tokens) = (heads.batch, heads.tokens);
    let Some(list) = inputs.integers("positions")? else {
        let counted = (0..tokens as i64).map(|token| start.checked_add(token));
        let counted: Option<Vec<i64>> = counted.collect();
        return Ok(counted.with_context(|| format!("positions from {start} on leave 64 bits"))?.repeat(axes * batch));
    };
    match list.len() {
        n if n == axes * batch * tokens => Ok(list),
        n if n == axes * tokens => Ok(list.chunks_exact(tokens.max(1)).flat_map(|row| row.repeat(batch)).collect()),
        n => bail!(
            "positions are {n}, there must be {axes} x {batch} x {tokens}, or {axes} x {tokens} for every sequence"
        ),
    }
}

impl Operation for RopeOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let mut out = Vec::new();
        for (name, tensor) in inputs.floats().filter(|(name, _)| !BESIDE.contains(name)) {
            out.push(
                by_type!(tensor.dtype, T => self.one::<T>(name, tensor, inputs, device, expected))
                    .with_context(|| name.to_string())?,
            );
        }
        ensure!(!out.is_empty(), "the input has no tensor to rotate, only {}", inputs.names());
        Ok(out)
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let dim = self.spec.offset + self.spec.rotary + 8;
        let inputs = sample_heads(dim, self.layout, dtype, scale, values);
        match &self.spec.angles {
            Angles::Mixed(mixed) => {
                let shape = [mixed.axes, mixed.heads, self.spec.pairs()];
                inputs.with_values("frequencies", Dtype::F32, &shape, &values(shape.iter().product()))
            }
            // A table for those of few tokens, so that both ways are taken.
            _ if scale > 1 => inputs,
            _ => ["cos", "sin"].into_iter().fold(inputs, |inputs, name| {
                let shape = [4, self.spec.pairs()];
                inputs.with_values(name, Dtype::F32, &shape, &values(shape.iter().product()))
            }),
        }
    }
}

/// Queries and keys, four heads and two.
fn sample_heads(
    dim: usize,
    layout: Option<Layout>,
    dtype: Dtype,
    scale: usize,
    values: &mut dyn FnMut(usize) -> Vec<f64>,
) -> Inputs {
    let tokens = 5 * scale;
    let shape = |heads: usize| match layout {
        None | Some(Layout::Thd) => vec![tokens, heads, dim],
        Some(Layout::Bthd) => vec![2, tokens, heads, dim],
        Some(Layout::Bhtd) => vec![2, heads, tokens, dim],
    };
    [("q", 4), ("k", 2)].into_iter().fold(Inputs::default(), |inputs, (name, heads)| {
        let shape = shape(heads);
        inputs.with_values(name, dtype, &shape, &values(shape.iter().product()))
    })
}

impl RopeOp {
    fn one<T: Float>(
        &self,
        name: &str,
        tensor: &Tensor,
        inputs: &Inputs,
        device: &Device,
        expected: bool,
    ) -> Result<Out> {
        let (spec, heads) = (learned(&self.spec, inputs)?, heads_of(name, tensor, self.layout)?);
        let ids = positions(inputs, spec.position_axes(), &heads, self.start)?;
        let x = elements::<T>(name, tensor)?;
        let wide = |name: &str| inputs.get(name).map(Tensor::to_f64);
        let table = wide("cos").zip(wide("sin"));
        let [cos, sin] = [inputs.get("cos"), inputs.get("sin")];
        ensure!(cos.is_some() == sin.is_some(), "a table has cosines and sines, one of cos and sin is missing");
        let wanted = match &table {
            Some((cos, sin)) => Some(spec.expect_by_table(&x, &heads, &ids[..], self.direction, (cos, sin))?),
            None => expected.then(|| spec.expect(&x, &heads, &ids[..], self.direction)).transpose()?,
        };
        let y = match (device, &table, &wanted) {
            (Device::Cpu, Some(_), Some(wanted)) => wanted.want.iter().map(|&value| T::from_f64(value)).collect(),
            (Device::Cpu, ..) => {
                let mut y = x.clone();
                spec.rotate_to((&x, &heads), (&mut y, &heads), &ids[..], self.direction)?;
                y
            }
            (Device::Gpu(gpu), ..) => {
                let stream = gpu.stream();
                let (x, ids, mut y) = (stream.clone_htod(&x)?, stream.clone_htod(&ids)?, stream.clone_htod(&x)?);
                let mut plan = RopePlan::<T>::new(gpu, &self.spec)?;
                if let (Angles::Mixed(mixed), true) = (&spec.angles, inputs.get("frequencies").is_some()) {
                    let own: Vec<f32> = mixed.frequencies.iter().map(|&frequency| frequency as f32).collect();
                    plan.set_frequencies(&stream.clone_htod(&own)?, None)?;
                }
                let rotation = Rotation { direction: self.direction, ..Rotation::at(Positions::ids(&ids)) };
                let to = heads.of(&x).to(heads.of_mut(&mut y));
                match (cos, sin) {
                    (Some(cos), Some(sin)) => {
                        let pairs = spec.pairs();
                        let rows = cos.len() / pairs.max(1);
                        if cos.dtype == Dtype::F32 {
                            let (cos, sin) = (upload::<f32>(gpu, "cos", cos)?, upload::<f32>(gpu, "sin", sin)?);
                            let values = TableValues::F32 { cos: &cos, sin: Some(&sin) };
                            let table = Table { values, rows, stride: pairs, out_of_range: OutOfRange::Clamp };
                            plan.rotate(to, None, Rotation { table: Some(table), ..rotation })?;
                        } else {
                            let (cos, sin) = (upload::<T>(gpu, "cos", cos)?, upload::<T>(gpu, "sin", sin)?);
                            let values = TableValues::Same { cos: &cos, sin: Some(&sin) };
                            let table = Table { values, rows, stride: pairs, out_of_range: OutOfRange::Clamp };
                            plan.rotate(to, None, Rotation { table: Some(table), ..rotation })?;
                        }
                    }
                    _ => plan.rotate(to, None, rotation)?,
                }
                stream.clone_dtoh(&y)?
            }
        };
        let expected = wanted.filter(|_| expected);
        Ok(Out::new(name, &tensor.shape, &y, expected))
    }
}

/// A tensor's elements on a device.
fn upload<T: Float>(gpu: &Gpu, name: &str, tensor: &Tensor) -> Result<CudaSlice<T>> {
    Ok(gpu.stream().clone_htod(&elements::<T>(name, tensor)?)?)
}

/// The spec, with frequencies of the input in place of its own.
fn learned(spec: &Rope, inputs: &Inputs) -> Result<Rope> {
    let mut spec = spec.clone();
    if let Some(tensor) = inputs.get("frequencies") {
        let Angles::Mixed(mixed) = &mut spec.angles else {
            bail!("the input has frequencies, the spec's angles are not Mixed");
        };
        let values = elements::<f32>("frequencies", tensor)?;
        mixed.frequencies = values.into_iter().map(f64::from).collect();
    }
    Ok(spec)
}

impl Operation for XPosOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let dtype = inputs.need("q")?.dtype;
        by_type!(dtype, T => self.both::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        sample_heads(self.spec.rope.offset + self.spec.rope.rotary, self.layout, dtype, scale, values)
    }
}

impl XPosOp {
    fn both<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let sides = [("q", Side::Query), ("k", Side::Key)];
        let mut tensors = Vec::new();
        for (name, side) in sides {
            let tensor = inputs.need(name)?;
            let heads = heads_of(name, tensor, self.layout)?;
            tensors.push((name, side, tensor, heads, elements::<T>(name, tensor)?));
        }
        let ids = positions(inputs, 1, &tensors[0].3, self.start)?;
        let mut results: Vec<Vec<T>> = tensors.iter().map(|tensor| tensor.4.clone()).collect();
        match device {
            Device::Cpu => {
                for ((_, side, _, heads, _), y) in tensors.iter().zip(&mut results) {
                    self.spec.rotate(y, heads, &ids, *side, self.direction)?;
                }
            }
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (mut q, mut k) = (stream.clone_htod(&results[0])?, stream.clone_htod(&results[1])?);
                let places = stream.clone_htod(&ids)?;
                let plan = RopePlan::<T>::xpos(gpu, &self.spec)?;
                let rotation = Rotation { direction: self.direction, ..Rotation::at(Positions::ids(&places)) };
                plan.rotate(tensors[0].3.of_mut(&mut q), tensors[1].3.of_mut(&mut k), rotation)?;
                results = vec![stream.clone_dtoh(&q)?, stream.clone_dtoh(&k)?];
            }
        }
        let outs = tensors.into_iter().zip(results).map(|((name, side, tensor, heads, x), y)| {
            let expected = expected.then(|| self.spec.expect(&x, &heads, &ids, side, self.direction)).transpose()?;
            Ok(Out::new(name, &tensor.shape, &y, expected))
        });
        outs.collect()
    }
}

/// Gradients of frequencies and positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeGradOp {
    pub spec: Rope,
    /// order of the axes; tensors of three axes are `thd`, of two `[tokens, dim]`
    #[serde(default)]
    pub layout: Option<Layout>,
    /// position of the first token, where there is no tensor of positions
    #[serde(default)]
    pub start: i64,
}

pub fn rope_grad_form() -> Form {
    let of = |spec| Op::RopeGrad(RopeGradOp { spec, layout: None, start: 3 });
    Form {
        about: "gradients of RoPE's frequencies and positions; that of the tensors is a rotation by direction Inverse",
        reads: &[
            (
                "q, k",
                "f32, f16 or bf16, [tokens, heads, dim], or four axes as layout says: before the rotation; k is optional",
            ),
            ("q_grad, k_grad", "of their types and shapes: their gradients, before the rotation too"),
            POSITIONS,
            (
                "frequencies",
                "f32, [axes, sets of heads, pairs]: in place of those of a spec with Mixed angles; optional",
            ),
        ],
        writes: &[
            ("frequencies", "f32, [axes, sets of heads, pairs], per radian per position"),
            ("positions", "f32, [axes, batch, tokens], per whole position"),
        ],
        examples: vec![of(Rope::new(64, 1e4)), of(mixed())],
    }
}

impl Operation for RopeGradOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        by_type!(inputs.need("q")?.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let inputs = sample_heads(self.spec.offset + self.spec.rotary, self.layout, dtype, scale, values);
        ["q", "k"].into_iter().fold(inputs, |inputs, name| {
            let shape = inputs.get(name).expect("a tensor").shape.clone();
            inputs.with_values(&format!("{name}_grad"), dtype, &shape, &values(shape.iter().product()))
        })
    }
}

impl RopeGradOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = learned(&self.spec, inputs)?;
        let mut tensors = Vec::new();
        for name in ["q", "k"] {
            let Some(tensor) = inputs.get(name) else { continue };
            let grad = inputs.given::<T>(&format!("{name}_grad"), &tensor.shape)?;
            tensors.push((elements::<T>(name, tensor)?, grad, heads_of(name, tensor, self.layout)?));
        }
        let heads = tensors[0].2;
        let ids = positions(inputs, spec.position_axes(), &heads, self.start)?;
        let host: Vec<_> = tensors
            .iter()
            .map(|(x, grad, heads)| RopeGrad { x: (&x[..], *heads), grad: (&grad[..], *heads) })
            .collect();
        let by_frequency = spec.frequency_grad(&host, &ids[..])?;
        let by_position = spec.position_grad(&host)?;
        let (axes, pairs) = (spec.position_axes(), spec.pairs());
        let sets = by_frequency.want.len() / (axes * pairs).max(1);
        let single = |wanted: &Expected| wanted.want.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        let (frequencies, places) = match device {
            Device::Cpu => (single(&by_frequency), single(&by_position)),
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let plan = RopeGradPlan::<T>::new(gpu, &spec)?;
                let buffers = tensors
                    .iter()
                    .map(|(x, grad, heads)| Ok((stream.clone_htod(x)?, stream.clone_htod(grad)?, *heads)));
                let buffers: Vec<_> = buffers.collect::<Result<_>>()?;
                let of = |at: usize| {
                    let (x, grad, heads) = buffers.get(at)?;
                    Some(RopeGrad { x: heads.of(x), grad: heads.of(grad) })
                };
                let q = || of(0).expect("queries");
                let ids = stream.clone_htod(&ids)?;
                let mut by_rate = stream.clone_htod(&vec![0f32; by_frequency.want.len()])?;
                let mut by_place = stream.clone_htod(&vec![0f32; by_position.want.len()])?;
                plan.frequencies(q(), of(1), Positions::ids(&ids), &mut by_rate)?;
                plan.positions(q(), of(1), None, &mut by_place)?;
                (stream.clone_dtoh(&by_rate)?, stream.clone_dtoh(&by_place)?)
            }
        };
        let mut out =
            parts(&[("frequencies", vec![axes, sets, pairs])], &frequencies, expected.then_some(by_frequency));
        let shape = vec![axes, heads.batch, heads.tokens];
        out.extend(parts(&[("positions", shape)], &places, expected.then_some(by_position)));
        Ok(out)
    }
}

/// What an engine does with queries, keys and values before attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrologueOp {
    pub spec: Prologue,
    /// order of the axes; tensors of three axes are `thd`, of two `[tokens, dim]`
    #[serde(default)]
    pub layout: Option<Layout>,
    /// position of the first token, where there is no tensor of positions
    #[serde(default)]
    pub start: i64,
}

pub fn prologue_form() -> Form {
    let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
    let biased = |branch| Branch { bias: true, ..branch };
    let rope = Rope::new(64, 1e6);
    let qwen3 = Prologue { q: normed, k: normed, ..Prologue::new(rope.clone()) };
    let rotated = biased(Branch::rotated());
    let qwen2 = Prologue { q: rotated, k: rotated, v: biased(Branch::plain()), ..Prologue::new(rope) };
    let op = |spec, layout| Op::Prologue(PrologueOp { spec, layout, start: 40 });
    Form {
        about: "the prologue of attention: bias, norm of heads, RoPE and factor of queries, keys and values, and a KV cache",
        reads: &[
            ("q, k, v", "f32, f16 or bf16, [tokens, heads, dim], or four axes as layout says; at least one of them"),
            ("q_weight, k_weight, v_weight", "[dim], or [heads, dim] over all heads: of a norm"),
            ("q_bias, k_bias, v_bias", "[heads, dim]"),
            POSITIONS,
            ("k_cache, v_cache", "[pages, rows of a page, heads, dim]; optional"),
            (
                "slots",
                "i64 or i32, [tokens] or [batch, tokens]: page * rows + row of each token, below 0: not cached; with a cache",
            ),
        ],
        writes: &[("q, k, v", "as they are"), ("k_cache, v_cache", "the caches, with these tokens")],
        examples: vec![op(qwen3, None), op(qwen2, Some(Layout::Bhtd))],
    }
}

/// One of queries, keys and values of a call.
struct Projection<T> {
    which: Qkv,
    name: &'static str,
    shape: Vec<usize>,
    heads: Heads,
    x: Vec<T>,
    weight: Option<Vec<T>>,
    bias: Option<Vec<T>>,
    /// elements of the cache and their shape
    cache: Option<(Vec<T>, Heads)>,
}

impl Operation for PrologueOp {
    fn apply(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let Some(tensor) = ["q", "k", "v"].into_iter().find_map(|name| inputs.get(name)) else {
            bail!("the input has none of q, k and v, only {}", inputs.names());
        };
        by_type!(tensor.dtype, T => self.typed::<T>(inputs, device, expected))
    }

    fn sample(&self, dtype: Dtype, scale: usize, values: &mut dyn FnMut(usize) -> Vec<f64>) -> Inputs {
        let dim = self.spec.rope.as_ref().map_or(16, |rope| rope.offset + rope.rotary);
        let inputs = sample_heads(dim, self.layout, dtype, scale, values);
        let k = inputs.get("k").expect("keys").shape.clone();
        let count = k.iter().product::<usize>();
        let mut inputs = inputs.with_values("v", dtype, &k, &values(count));
        for (name, which, heads) in [("q", Qkv::Query, 4), ("k", Qkv::Key, 2), ("v", Qkv::Value, 2)] {
            let branch = self.spec.branch(which);
            if branch.norm.is_some() {
                inputs = inputs.with_values(&format!("{name}_weight"), dtype, &[dim], &values(dim));
            }
            if branch.bias {
                inputs = inputs.with_values(&format!("{name}_bias"), dtype, &[heads, dim], &values(heads * dim));
            }
        }
        // Pages of four rows; the last tokens come first, and the first is not cached.
        let tokens = count / (2 * dim);
        let (pages, slots) = (tokens.div_ceil(4) + 1, (0..tokens).map(|token| token as f64 - 1.0).rev());
        for name in ["k_cache", "v_cache"] {
            inputs = inputs.with_values(name, dtype, &[pages, 4, 2, dim], &values(pages * 8 * dim));
        }
        inputs.with_values("slots", Dtype::I64, &[tokens], &slots.collect::<Vec<_>>())
    }
}

impl PrologueOp {
    fn typed<T: Float>(&self, inputs: &Inputs, device: &Device, expected: bool) -> Result<Vec<Out>> {
        let spec = &self.spec;
        let slots = inputs.integers("slots")?;
        let mut all: Vec<Projection<T>> = Vec::new();
        for (name, which) in [("q", Qkv::Query), ("k", Qkv::Key), ("v", Qkv::Value)] {
            let Some(tensor) = inputs.get(name) else { continue };
            let heads = heads_of(name, tensor, self.layout)?;
            let vector = |what: &str| {
                let name = format!("{name}_{what}");
                inputs.get(&name).map(|tensor| elements::<T>(&name, tensor)).transpose()
            };
            let cache = inputs.get(&format!("{name}_cache")).filter(|_| which != Qkv::Query);
            let cache = cache.map(|cache| -> Result<_> {
                let name = format!("{name}_cache");
                let [pages, rows, heads, dim] = sizes(&name, cache, "[pages, rows of a page, heads, dim]")?;
                Ok((elements::<T>(&name, cache)?, Heads::bthd(pages, rows, heads, dim)))
            });
            ensure!(cache.is_none() || slots.is_some(), "{name}_cache is there, and no slots of its tokens");
            all.push(Projection {
                which,
                name,
                shape: tensor.shape.clone(),
                heads,
                x: elements::<T>(name, tensor)?,
                weight: vector("weight")?,
                bias: vector("bias")?,
                cache: cache.transpose()?,
            });
        }
        let axes = spec.rope.as_ref().map_or(1, Rope::position_axes);
        let ids = positions(inputs, axes, &all[0].heads, self.start)?;
        let slots = slots.unwrap_or_default();
        let mut wanted = Vec::new();
        for one in all.iter().filter(|_| expected) {
            wanted.push(self.wanted(one, &ids, &slots)?);
        }
        match device {
            Device::Cpu => self.on_host(&mut all, &ids, &slots)?,
            Device::Gpu(gpu) => self.on_device(&mut all, gpu, &ids, &slots)?,
        }
        let mut wanted = wanted.into_iter();
        let mut out = Vec::new();
        for one in &all {
            let [x, cache] = wanted.next().unwrap_or_default();
            out.push(Out::new(one.name, &one.shape, &one.x, x));
            if let Some((values, shape)) = &one.cache {
                let shape = [shape.batch, shape.tokens, shape.heads, shape.dim];
                out.push(Out::new(&format!("{}_cache", one.name), &shape, values, cache));
            }
        }
        Ok(out)
    }

    /// What a tensor and its cache should be.
    fn wanted<T: Float>(&self, one: &Projection<T>, ids: &[i64], slots: &[i64]) -> Result<[Option<Expected>; 2]> {
        let Projection { which, heads, x, cache, .. } = one;
        let packed = self.spec.expect(*which, (x, heads), one.vectors(), ids)?;
        let mut own = Expected { want: vec![0.0; x.len()], bound: vec![0.0; x.len()] };
        let mut kept = cache.as_ref().map(|(values, _)| Expected {
            want: values.iter().map(|value| value.to_f64()).collect(),
            bound: vec![0.0; values.len()],
        });
        for (at, (&want, &bound)) in packed.want.iter().zip(&packed.bound).enumerate() {
            let (channel, head) = (at % heads.dim, at / heads.dim % heads.heads);
            let row = at / heads.dim / heads.heads;
            let index = heads.index(row / heads.tokens, row % heads.tokens, head, channel);
            (own.want[index], own.bound[index]) = (want, bound);
            if let (Some(kept), Some((_, shape)), Some(&slot)) = (&mut kept, cache, slots.get(row))
                && let Ok(slot) = usize::try_from(slot)
            {
                let index = shape.index(slot / shape.tokens, slot % shape.tokens, head, channel);
                (kept.want[index], kept.bound[index]) = (want, bound);
            }
        }
        Ok([Some(own), kept])
    }

    fn on_host<T: Float>(&self, all: &mut [Projection<T>], ids: &[i64], slots: &[i64]) -> Result<()> {
        for one in all {
            let mut y = one.x.clone();
            let mut cache = one.cache.take();
            let into = cache.as_mut().map(|(values, shape)| HostCache {
                x: HostStored::Same(values),
                shape: *shape,
                rows: CacheRows::Slots(slots),
            });
            let (x, to) = ((&one.x[..], &one.heads), Some((&mut y[..], &one.heads)));
            self.spec.apply_to(one.which, x, to, one.vectors(), ids, into)?;
            (one.x, one.cache) = (y, cache);
        }
        Ok(())
    }

    fn on_device<T: Float>(&self, all: &mut [Projection<T>], gpu: &Gpu, ids: &[i64], slots: &[i64]) -> Result<()> {
        let stream = gpu.stream();
        let (ids, slots) = (stream.clone_htod(ids)?, stream.clone_htod(slots)?);
        let up = |values: &Option<Vec<T>>| values.as_ref().map(|values| stream.clone_htod(values)).transpose();
        let mut vectors = Vec::new();
        let (mut tensors, mut caches) = (Vec::new(), Vec::new());
        for one in all.iter() {
            vectors.push((one.which, up(&one.weight)?, up(&one.bias)?));
            tensors.push((one.which, stream.clone_htod(&one.x)?, one.heads));
            if let Some((values, shape)) = &one.cache {
                caches.push((one.which, stream.clone_htod(values)?, *shape));
            }
        }
        let of = |which: Qkv| {
            let own = vectors.iter().find(|(own, ..)| *own == which);
            own.map_or(Vectors::none(), |(_, weight, bias)| Vectors {
                weight: weight.as_ref().map(|it| it as _),
                bias: bias.as_ref().map(|it| it as _),
            })
        };
        let mut call = PrologueCall {
            q: of(Qkv::Query),
            k: of(Qkv::Key),
            v: of(Qkv::Value),
            ..PrologueCall::at(Positions::ids(&ids))
        };
        let mut stored = caches.iter_mut().map(|(which, buffer, shape)| (*which, shape.of_mut(buffer)));
        if let Some((first, k)) = stored.next() {
            ensure!(first == Qkv::Key, "there is a v_cache and no k_cache, values are kept beside keys");
            let v = stored.next().map(|(_, v)| v.into());
            call.cache = Some(Cache { k: k.into(), v, rows: CacheRows::Slots(i64::ids(&slots)), flag: None });
        }
        let [mut q, mut k, mut v] = [Projected::None, Projected::None, Projected::None];
        for (which, buffer, heads) in &mut tensors {
            let to: Projected<'_, T> = heads.of_mut(buffer).into();
            match which {
                Qkv::Query => q = to,
                Qkv::Key => k = to,
                Qkv::Value => v = to,
            }
        }
        ProloguePlan::<T>::new(gpu, &self.spec)?.apply(q, k, v, call)?;
        for one in all.iter_mut() {
            for (_, buffer, _) in tensors.iter().filter(|(which, ..)| *which == one.which) {
                one.x = stream.clone_dtoh(buffer)?;
            }
            for (_, buffer, shape) in caches.iter().filter(|(which, ..)| *which == one.which) {
                one.cache = Some((stream.clone_dtoh(buffer)?, *shape));
            }
        }
        Ok(())
    }
}

impl<T> Projection<T> {
    fn vectors(&self) -> Vectors<&[T]> {
        Vectors { weight: self.weight.as_deref(), bias: self.bias.as_deref() }
    }
}
