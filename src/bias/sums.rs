//! What the gradients of a bias's parameters share: the checks of a call, and the sums that blocks leave to the last one.

use bytemuck::Zeroable;

use crate::bias::form::{ALL, check_heads, hold_places, rows};
use crate::bias::{BiasInputs, BiasPlan};
use crate::gpu::args::{Args, BiasArgs, BiasGradArgs};
use crate::gpu::{Call, Gpu, Launch, OnStream, Scratch, View, Write, widest};
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

/// How a call is cut: from the shape alone, so that every device sums alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// rows of a split, counted over sequences
    pub(super) rows: usize,
    /// splits
    pub(super) splits: usize,
    /// blocks of a head: side by side, and one behind another
    pub(super) blocks: [usize; 2],
    /// threads of a block
    pub(super) threads: usize,
    /// numbers that the blocks leave
    pub(super) sums: usize,
}

/// The bias where its gradient needs it, and the memory between blocks.
#[derive(Clone, Debug)]
pub(super) struct Sums<T> {
    gpu: Gpu,
    bias: Option<BiasPlan<T>>,
    pub(super) heads: usize,
    pub(super) scratch: Scratch,
}

impl<T: Scalar> OnStream for Sums<T> {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn move_to(&mut self, gpu: &Gpu) -> Result<()> {
        self.scratch = self.scratch.on(gpu)?;
        if let Some(bias) = &mut self.bias {
            bias.move_to(gpu)?;
        }
        self.gpu.move_to(gpu)
    }
}

impl<T: Scalar> Sums<T> {
    /// For `heads` heads and logits up to `max_shape`, whose blocks leave `sums` numbers at most.
    pub(super) fn new(
        gpu: &Gpu,
        bias: Option<BiasPlan<T>>,
        heads: usize,
        max_shape: &Logits,
        sums: usize,
    ) -> Result<Self> {
        if heads == 0 {
            return Err(Error::Value(format!("the bias has 0 heads, the logits have {}", max_shape.heads)));
        }
        check_heads(heads, max_shape)?;
        Ok(Self { gpu: gpu.clone(), bias, heads, scratch: Scratch::new(gpu, counters(heads), sums)? })
    }

    /// Opens a call.
    #[inline]
    pub(super) fn call(&self) -> Call<'_> {
        self.gpu.call()
    }

    /// Hands in the gradient of the bias, positions and gates.
    pub(super) fn read<'a>(
        &'a self,
        call: &mut Call<'a>,
        grad: View<'a, T, Logits>,
        inputs: BiasInputs<'a>,
    ) -> Result<BiasGradArgs> {
        let grad = call.view("grad", grad)?;
        let shape = &grad.shape;
        check_heads(self.heads, shape)?;
        // Kernels count them in 32 bits, and a gradient that is broadcast has many in a small buffer.
        rows(shape)?;
        check_grid(shape)?;
        let bias = match &self.bias {
            Some(bias) => bias.hold(call, shape, inputs, ALL)?.bias,
            None => hold_places(call, shape, &inputs)?,
        };
        Ok(BiasGradArgs {
            bias,
            grad: grad.at,
            strides: shape.strides.map(|stride| stride as i64),
            aligned: u32::from(widest(grad.steps) == 16),
            ..BiasGradArgs::zeroed()
        })
    }

    /// Hands in `out`, which gets `factor` times `numbers` sums, and the memory between the blocks of `cut`.
    pub(super) fn write<'a>(
        call: &mut Call<'a>,
        scratch: &'a Scratch,
        args: &mut BiasGradArgs,
        (out, numbers): (Write<'a, f32>, usize),
        factor: f32,
        cut: &Cut,
    ) -> Result<()> {
        let BiasArgs { batch, queries, keys, .. } = args.bias;
        let rows = u64::from(batch) * u64::from(queries);
        scratch.check(cut.sums, || format!("a call of {rows} rows of {keys} keys a head"))?;
        args.out = call.write("out", out, numbers)?;
        (args.counters, args.sums) = call.scratch(scratch)?;
        args.rows = small("rows", cut.rows)?;
        args.splits = small("splits", cut.splits)?;
        args.factor = factor;
        Ok(())
    }
}

/// Counters of each head, and one of all.
pub(super) const fn counters(heads: usize) -> usize {
    heads.saturating_add(1)
}

impl Cut {
    /// The launch for `heads` heads.
    pub(super) fn launch<A: Args>(&self, heads: usize, args: A) -> Result<Launch<A>> {
        let [x, z] = [small("blocks", self.blocks[0])?, small("blocks", self.blocks[1])?];
        Ok(Launch::new([x, small("heads", heads)?, z], [small("threads", self.threads)?, 1, 1], args))
    }
}

/// Refuses a largest call that none can be.
pub(super) fn check_largest(max_shape: &Logits) -> Result<()> {
    max_shape.check_sizes("max_shape")?;
    rows(max_shape)?;
    check_grid(max_shape)
}

/// Refuses more heads than a grid has blocks for.
fn check_grid(shape: &Logits) -> Result<()> {
    if shape.heads > 65535 {
        return Err(Error::Value(format!("the logits have {} heads, a gradient takes 65535", shape.heads)));
    }
    Ok(())
}

/// A count as a kernel takes it.
pub(super) fn small(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Overflow(format!("{n} {what}")))
}
