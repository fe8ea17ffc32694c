//! Prefix sums of log gates on a device: one launch, and one for the gradient.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{GateSums, Gates, check_sizes};
use crate::bias::{AnyNumbers, Numbers};
use crate::gpu::args::{GATE_ITEMS, GateGradArgs, GateSumsArgs};
use crate::gpu::kernel::{GATE_SUMS, GATE_SUMS_GRAD};
use crate::gpu::{Gpu, Kernel, Launch, View, ViewMut, Write, on_stream, small};
use crate::shape::product;
use crate::{Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// A block for each row, of as many threads as it has use for.
fn launch<A>(gates: &Numbers, args: A) -> Result<Launch<A>> {
    let rows = product("batch x heads", &[gates.batch, gates.heads])?;
    let threads = gates.rows.div_ceil(GATE_ITEMS).next_power_of_two().clamp(32, 256) as u32;
    Ok(Launch::new([small("rows", rows)?, 1, 1], [threads, 1, 1], args))
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`GateSums`] on a [`Gpu`], for gates of f32 or of one element type.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct GateSumsPlan<T> {
    gpu: Gpu,
    spec: GateSums,
    kernel: Kernel<GateSumsArgs>,
    grad: Kernel<GateGradArgs>,
    element: PhantomData<T>,
}

on_stream! { GateSumsPlan { gpu } }

impl<T: Scalar> GateSumsPlan<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If they cannot be loaded.
    pub fn new(gpu: &Gpu, spec: GateSums) -> Result<Self> {
        let ([kernel], [grad]) = (gpu.load::<T, _, 1>(GATE_SUMS)?, gpu.load::<T, _, 1>(GATE_SUMS_GRAD)?);
        Ok(Self { gpu: gpu.clone(), spec, kernel, grad, element: PhantomData })
    }

    /// The spec.
    pub const fn spec(&self) -> GateSums {
        self.spec
    }

    /// Writes the prefix sums of the gates, as two floats each.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `gates` | `[batch, heads, tokens, 1]` | a view of f32 or `T`; `[batch, tokens, heads]` in memory is a matter of strides |
    /// | `out` | `[batch, heads, tokens, 2]` | written: numbers of [`Term::endpoints`](crate::bias::Term::endpoints), of a cache too |
    /// | `state` | `[batch, heads, 2]` | in place: what the tokens before sum to, 0 at the start of a sequence; becomes what they and these do. `None`: a whole sequence |
    ///
    /// Each gate is read once and each pair written once, a row by one block.
    ///
    /// # Accuracy
    /// [`GateSums::error_bound`]. The same bits on every device, and for the whole, its chunks and decode steps that hand on
    /// the state. A gate above 0 or NaN makes the sums from its token on NaN, those of later calls with the state too.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with one that is written, sizes differ, or elements
    /// of `out` overlap. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::{GateSums, GateSumsPlan, Numbers};
    /// use posenc::Gpu;
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = GateSumsPlan::<half::bf16>::new(&gpu, GateSums::logits())?;
    /// // A projection's output, [batch, tokens, heads].
    /// let (batch, heads, tokens) = (2, 12, 1024);
    /// let x = gpu.stream().alloc_zeros::<half::bf16>(batch * tokens * heads)?;
    /// let gates = Numbers { strides: [tokens * heads, 1, heads, 1], ..Numbers::rows(batch, heads, tokens, 1) };
    /// let mut sums = gpu.stream().alloc_zeros(batch * heads * tokens * 2)?;
    /// plan.write(gates.of(&x), Numbers::rows(batch, heads, tokens, 2).of_mut(&mut sums), None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(
        &'a self,
        gates: impl Into<AnyNumbers<'a>>,
        out: ViewMut<'a, f32, Numbers>,
        state: Option<Write<'a, u64>>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (gates, is_f32) = gates.into().hold::<T>(&mut call, "gates")?;
        let (out, shape) = (call.view_mut("the sums", out)?, gates.shape);
        check_sizes("gates", &shape, &shape, 1)?;
        check_sizes("the sums", &out.shape, &shape, 2)?;
        let need = product("batch x heads x 2", &[shape.batch, shape.heads, 2])?;
        let args = GateSumsArgs {
            gates: gates.at,
            out: out.at,
            state: call.write_some("state", state, need)?,
            gates_strides: shape.row_strides(),
            out_strides: out.shape.row_strides(),
            second: out.shape.strides[3] as i64,
            heads: small("heads", shape.heads)?,
            tokens: small("tokens", shape.rows)?,
            gates_f32: u32::from(is_f32),
            logits: u32::from(self.spec.gates == Gates::Logits),
            ..GateSumsArgs::zeroed()
        };
        if shape.batch == 0 || shape.rows == 0 {
            return Ok(());
        }
        call.launch(&self.kernel, &launch(&shape, args)?)
    }

    /// Writes the gradient of the gates' numbers from those of the sums.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `gates` | `[batch, heads, tokens, 1]` | as in [`GateSumsPlan::write`]; of logarithms not read |
    /// | `query_grad`, `key_grad` | `[batch, heads, tokens, 1]` | gradient of a token's sum as a query's end and as a key's |
    /// | `grad` | `[batch, heads, tokens, 1]` | written |
    ///
    /// # Accuracy
    /// [`GateSums::grad_error_bound`]. The same bits on every device.
    ///
    /// # Errors
    /// As [`GateSumsPlan::write`], with `grad` written.
    pub fn grad<'a>(
        &'a self,
        gates: impl Into<AnyNumbers<'a>>,
        query_grad: View<'a, f32, Numbers>,
        key_grad: View<'a, f32, Numbers>,
        grad: ViewMut<'a, f32, Numbers>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let (gates, is_f32) = gates.into().hold::<T>(&mut call, "gates")?;
        let query = call.view("the queries' gradients", query_grad)?;
        let key = call.view("the keys' gradients", key_grad)?;
        let (out, shape) = (call.view_mut("grad", grad)?, gates.shape);
        for (name, numbers) in [
            ("gates", &shape),
            ("the queries' gradients", &query.shape),
            ("the keys' gradients", &key.shape),
            ("the gates' gradients", &out.shape),
        ] {
            check_sizes(name, numbers, &shape, 1)?;
        }
        let args = GateGradArgs {
            gates: gates.at,
            query_grad: query.at,
            key_grad: key.at,
            out: out.at,
            gates_strides: shape.row_strides(),
            query_strides: query.shape.row_strides(),
            key_strides: key.shape.row_strides(),
            out_strides: out.shape.row_strides(),
            heads: small("heads", shape.heads)?,
            tokens: small("tokens", shape.rows)?,
            gates_f32: u32::from(is_f32),
            logits: u32::from(self.spec.gates == Gates::Logits),
            ..GateGradArgs::zeroed()
        };
        if shape.batch == 0 || shape.rows == 0 {
            return Ok(());
        }
        call.launch(&self.grad, &launch(&shape, args)?)
    }
}
