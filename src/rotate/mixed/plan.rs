//! Gradients of RoPE's angles on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{RopeGrad, chunk};
use crate::gpu::args::{Divisor, In, RopeGradArgs, TensorGradArgs};
use crate::gpu::kernel::{FREQUENCY_GRAD, POSITION_GRAD};
use crate::gpu::{Call, Gpu, Kernel, Launch, Read, ScratchOnNeed, Uploaded, View, Write, on_stream, small, widest};
use crate::position::{Ids, Positions};
use crate::rotate::Rope;
use crate::shape::{Shape, product};
use crate::{Heads, Pairing, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Axes of one pass, and tokens of a chunk side by side: as in `kernels/rotate/rope_grad.cu`.
const AXES: usize = 4;
const ROWS: u32 = 8;
/// Chunks of one call, at most.
const MOST_CHUNKS: usize = 512;

// ---------------------------------------------------------------------------------------------------------------- plan

/// Gradients of the angles of a [`Rope`] on a [`Gpu`], for tensors of one element type: of learned frequencies ([`Mixed`]), and
/// of positions that are real numbers. The gradient of the tensors themselves is a rotation by
/// [`Direction::Inverse`](crate::Direction::Inverse).
///
/// A call allocates nothing once the first one has its partial sums, uploads nothing and synchronises nothing. Results are f32;
/// sums have one order and no number is added by an atomic: the same bits in every run, on every device and for every alignment.
///
/// [`Mixed`]: crate::rotate::Mixed
#[derive(Clone, Debug)]
pub struct RopeGradPlan<T> {
    gpu: Gpu,
    rope: Rope,
    frequencies: Uploaded<f32>,
    units: Uploaded<f32>,
    scratch: ScratchOnNeed,
    /// of frequencies: 16-byte accesses, single elements, and the sum of chunks
    frequency: [Kernel<RopeGradArgs>; 3],
    /// of positions: 16-byte accesses, single elements
    position: [Kernel<RopeGradArgs>; 2],
    element: PhantomData<T>,
}

on_stream! { RopeGradPlan { gpu; scratch } }

/// Queries, and keys if they have the same frequencies, each with its gradient.
type Tensors<'a, T> = (RopeGrad<View<'a, T, Heads>>, Option<RopeGrad<View<'a, T, Heads>>>);

impl<T: Scalar> RopeGradPlan<T> {
    /// Uploads the frequencies and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused or its axes are blocks of channels, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        rope.check_angles()?;
        let axes = rope.position_axes();
        let frequencies: Vec<f32> = rope.frequencies().into_iter().map(|frequency| frequency as f32).collect();
        let units: Vec<f32> = (0..axes).map(|axis| rope.unit(axis) as f32).collect();
        Ok(Self {
            gpu: gpu.clone(),
            rope: rope.clone(),
            scratch: ScratchOnNeed::new(0, product("partial sums", &[MOST_CHUNKS, frequencies.len()])?),
            frequencies: gpu.upload(&frequencies)?,
            units: gpu.upload(&units)?,
            frequency: gpu.load::<T, _, 3>(FREQUENCY_GRAD)?,
            position: gpu.load::<T, _, 2>(POSITION_GRAD)?,
            element: PhantomData,
        })
    }

    /// The spec.
    pub const fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Writes the gradient of frequencies, per radian per position: the sum over tokens and the heads of a set of
    /// `position * (a db - b da)`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q` | `[batch, tokens, heads, dim]` | queries and their gradient: both before the rotation, or both after it where `pairing_out` is `None` |
    /// | `k` | the same batch, tokens and dim | keys with the same frequencies, or `None` |
    /// | `positions` | as in [`RopePlan::rotate`](crate::RopePlan::rotate) | those of the rotation |
    /// | `out` | f32 `[axes, heads, pairs]` | written; one set of heads where angles are not [`Mixed`](crate::rotate::Mixed) |
    ///
    /// One kernel for up to 64 tokens, else two. Tensors and gradients are read once for each four axes.
    ///
    /// # Accuracy
    /// [`Rope::frequency_grad`] has the bound.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `out`, or sizes do not go together. Nothing is
    /// written then.
    pub fn frequencies<'a>(
        &'a self,
        q: RopeGrad<View<'a, T, Heads>>,
        k: Option<RopeGrad<View<'a, T, Heads>>>,
        positions: Positions<Ids<'a>>,
        out: Write<'a, f32>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (mut args, is_wide) = self.hold(&mut call, (q, k))?;
        let (axes, sets) = (self.rope.position_axes(), self.rope.sets());
        let rows = args.rows as usize;
        args.at = positions.hold(&mut call, axes, args.batch as usize, args.tokens as usize)?;
        args.out = call.write("out", out, axes * sets * self.rope.pairs())?;
        let chunk = chunk(rows);
        args.chunk = small("tokens of a block", chunk)?;
        // Without tokens one empty chunk, whose sums are 0.
        args.chunks = small("blocks", rows.div_ceil(chunk).max(1))?;
        if args.chunks > 1 {
            (_, args.parts) = call.scratch(self.scratch.get(&self.gpu)?)?;
        }
        let lanes = self.rope.pairs().div_ceil(16 / size_of::<T>()).min(32) as u32;
        let grid = [args.chunks, small("sets", sets)?, small("passes", axes.div_ceil(AXES))?];
        let count = args.axis_count * args.sets * args.pairs;
        let sums = Launch::new([count.div_ceil(256), 1, 1], [256, 1, 1], args);
        let chunks = args.chunks;
        call.launch(&self.frequency[usize::from(!is_wide)], &Launch::new(grid, [lanes, ROWS, 1], args))?;
        if chunks > 1 { call.launch(&self.frequency[2], &sums) } else { Ok(()) }
    }

    /// Writes the gradient of positions, per whole position: the sum over heads and pairs of `frequency * (a db - b da)`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q`, `k` | | as in [`RopeGradPlan::frequencies`] |
    /// | `frequencies` | f32 `[axes, heads, pairs]` | learned ones, in radians per position; `None`: those of the spec |
    /// | `out` | f32 `[axes, batch, tokens]` | written |
    ///
    /// One kernel. Tensors and gradients are read once for each four axes.
    ///
    /// # Accuracy
    /// [`Rope::position_grad`] has the bound.
    ///
    /// # Errors
    /// As [`RopeGradPlan::frequencies`].
    pub fn positions<'a>(
        &'a self,
        q: RopeGrad<View<'a, T, Heads>>,
        k: Option<RopeGrad<View<'a, T, Heads>>>,
        frequencies: Option<Read<'a, f32>>,
        out: Write<'a, f32>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (mut args, is_wide) = self.hold(&mut call, (q, k))?;
        let axes = self.rope.position_axes();
        args.frequencies = match frequencies {
            Some(frequencies) => call.read("frequencies", frequencies, self.frequencies.len())?,
            None => call.table("frequencies", &self.frequencies)?,
        };
        args.out = call.write("out", out, product("axes x batch x tokens", &[axes, args.rows as usize])?)?;
        if args.rows == 0 {
            return Ok(());
        }
        let grid = [args.rows.div_ceil(4), small("passes", axes.div_ceil(AXES))?, 1];
        call.launch(&self.position[usize::from(!is_wide)], &Launch::new(grid, [128, 1, 1], args))
    }

    /// Hands the tensors in; whether all of them allow 16-byte accesses.
    fn hold<'a>(&'a self, call: &mut Call<'a>, (q, k): Tensors<'a, T>) -> Result<(RopeGradArgs, bool)> {
        let rope = &self.rope;
        let shape = q.x.shape;
        rope.check_fits(shape.dim)?;
        if let Some(k) = &k {
            shape.check_pair(&k.x.shape)?;
        }
        let offset = rope.first_channel(shape.dim);
        let mut steps = ((rope.pairs() | offset) * size_of::<T>()) as u64;
        let groups = rope.pairs().div_ceil(16 / size_of::<T>());
        let mut args = RopeGradArgs {
            rows: small("tokens", product("batch x tokens", &[shape.batch, shape.tokens])?)?,
            tokens: small("tokens", shape.tokens)?,
            by_tokens: Divisor::new(small("tokens", shape.tokens)?.max(1)),
            groups: small("threads", groups)?,
            by_groups: Divisor::new(small("threads", groups)?),
            batch: small("sequences", shape.batch)?,
            pairs: small("pairs", rope.pairs())?,
            sets: small("sets", rope.sets())?,
            axis_count: small("axes", rope.position_axes())?,
            offset: small("channels before the rotary part", offset)?,
            interleaved: u32::from(rope.pairing == Pairing::Interleaved),
            units: call.table("units", &self.units)?,
            ..RopeGradArgs::zeroed()
        };
        let mut one = |names: [&'static str; 2], of: RopeGrad<View<'a, T, Heads>>| -> Result<TensorGradArgs> {
            rope.check_sets(names[0], of.x.shape.heads)?;
            of.x.shape.check_same(names[0], &of.grad.shape, names[1])?;
            let (x, grad) = (call.view(names[0], of.x)?, call.view(names[1], of.grad)?);
            steps |= x.steps | grad.steps;
            let strides = |shape: &Heads| shape.strides.map(|stride| stride as i64);
            Ok(TensorGradArgs {
                x: x.at,
                grad: grad.at,
                x_strides: strides(&x.shape),
                grad_strides: strides(&grad.shape),
                heads: small("heads", x.shape.heads)?,
                sharing: small("heads", x.shape.heads / rope.sets())?,
                by_sharing: Divisor::new(small("heads", x.shape.heads / rope.sets())?.max(1)),
                ..TensorGradArgs::zeroed()
            })
        };
        args.q = one(["q", "q_grad"], q)?;
        args.k = match k {
            Some(k) => one(["k", "k_grad"], k)?,
            None => TensorGradArgs { x: In::NULL, ..TensorGradArgs::zeroed() },
        };
        Ok((args, widest(steps) == 16))
    }
}
