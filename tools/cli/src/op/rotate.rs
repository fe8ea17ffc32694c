//! RoPE and xPos.

use anyhow::{Context, Result, bail, ensure};
use posenc::rotate::{Rotation, Side, Yarn};
use posenc::{Direction, Heads, Pairing, Positions, Rope, RopePlan, Scaling, XPos};
use serde::{Deserialize, Serialize};

use super::{Device, Float, Form, Inputs, Op, Operation, Out, by_type, elements};
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
        about: "RoPE of queries and keys, with any scaling",
        reads: &[("any names", "f32, f16 or bf16, [tokens, heads, dim], or four axes as layout says"), POSITIONS],
        writes: &[("the same names", "the rotated tensors")],
        examples: vec![
            op(plain, None, 0, Direction::Forward),
            op(scaled, Some(Layout::Bhtd), 131_000, Direction::Inverse),
        ],
    }
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
        for (name, tensor) in inputs.floats().filter(|(name, _)| *name != "positions") {
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
        sample_heads(dim, self.layout, dtype, scale, values)
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
        let (spec, heads) = (&self.spec, heads_of(name, tensor, self.layout)?);
        let ids = positions(inputs, spec.position_axes(), &heads, self.start)?;
        let x = elements::<T>(name, tensor)?;
        let expected = expected.then(|| spec.expect(&x, &heads, &ids[..], self.direction)).transpose()?;
        let y = match device {
            Device::Cpu => {
                let mut y = x.clone();
                spec.rotate_to((&x, &heads), (&mut y, &heads), &ids[..], self.direction)?;
                y
            }
            Device::Gpu(gpu) => {
                let stream = gpu.stream();
                let (x, ids, mut y) = (stream.clone_htod(&x)?, stream.clone_htod(&ids)?, stream.clone_htod(&x)?);
                let plan = RopePlan::<T>::new(gpu, spec)?;
                let rotation = Rotation { direction: self.direction, ..Rotation::at(Positions::ids(&ids)) };
                plan.rotate(heads.of(&x).to(heads.of_mut(&mut y)), None, rotation)?;
                stream.clone_dtoh(&y)?
            }
        };
        Ok(Out::new(name, &tensor.shape, &y, expected))
    }
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
