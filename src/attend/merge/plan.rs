//! Attention outputs put together on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::{State, check_lse};
use crate::bias::Numbers;
use crate::gpu::args::{In, MergeArgs, MergeGradArgs};
use crate::gpu::kernel::{MERGE, MERGE_GRAD};
use crate::gpu::{Gpu, Kernel, Launch, Update, View, ViewMut, on_stream, small, widest};
use crate::shape::{Shape, product};
use crate::{Heads, Result, Scalar};

/// Threads of a block, and of a row: `LANES` in `kernels/attend/merge.cu`.
const THREADS: u32 = 128;
const LANES: u32 = 16;

fn launch<A>(rows: u32, args: A) -> Launch<A> {
    Launch::new([rows.div_ceil(THREADS / LANES), 1, 1], [THREADS, 1, 1], args)
}

fn tensor(heads: &Heads) -> [i64; 3] {
    heads.strides.map(|stride| stride as i64)
}

/// [`merge_states`](super::merge_states) on a [`Gpu`], and its gradient, for one element type.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct MergePlan<T> {
    gpu: Gpu,
    /// by 16-byte accesses, and single elements
    merge: [Kernel<MergeArgs>; 2],
    grad: [Kernel<MergeGradArgs>; 2],
    element: PhantomData<T>,
}

/// Gradients that [`MergePlan::grad`] writes.
#[derive(Debug)]
pub struct MergeGrad<'a, T> {
    /// of `a` and its log-sum-exp
    pub a: State<ViewMut<'a, T, Heads>, ViewMut<'a, f32, Numbers>>,
    /// of `b` and its log-sum-exp
    pub b: State<ViewMut<'a, T, Heads>, ViewMut<'a, f32, Numbers>>,
}

on_stream! { MergePlan { gpu } }

impl<T: Scalar> MergePlan<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If they cannot be loaded.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let (merge, grad) = (gpu.load::<T, _, 2>(MERGE)?, gpu.load::<T, _, 2>(MERGE_GRAD)?);
        Ok(Self { gpu: gpu.clone(), merge, grad, element: PhantomData })
    }

    /// Puts two states together: the attention over both sets of keys.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `a` | [`State`] | `heads.of_mut(&mut a)` in place, `heads.of(&a).to(heads.of_mut(&mut out))` elsewhere; log-sum-exps likewise |
    /// | `b` | [`State`] of the same sizes | read |
    ///
    /// # Accuracy
    /// [`merge_expect`](super::merge_expect) has the bounds. The same bits on every device and for every alignment.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with one that is written, or sizes differ. Nothing is
    /// written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::attend::{MergePlan, State};
    /// use posenc::bias::Numbers;
    /// use posenc::{Gpu, Heads};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = MergePlan::<half::bf16>::new(&gpu)?;
    /// let stream = gpu.stream();
    /// // A running state of 16 queries with 32 heads of 128, and that of the next part of the keys.
    /// let (heads, rows) = (Heads::thd(16, 32, 128), Numbers::rows(1, 32, 16, 1));
    /// let (mut out, next) = (stream.alloc_zeros(16 * 32 * 128)?, stream.alloc_zeros(16 * 32 * 128)?);
    /// let (mut lse, next_lse) = (stream.alloc_zeros::<f32>(16 * 32)?, stream.alloc_zeros::<f32>(16 * 32)?);
    /// plan.merge(
    ///     State { out: heads.of_mut(&mut out).into(), lse: rows.of_mut(&mut lse).into() },
    ///     State { out: heads.of(&next), lse: rows.of(&next_lse) },
    /// )?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn merge<'a>(
        &'a self,
        a: State<Update<'a, T, Heads>, Update<'a, f32, Numbers>>,
        b: State<View<'a, T, Heads>, View<'a, f32, Numbers>>,
    ) -> Result<()> {
        let shape = *a.out.shape();
        check_lse("a_lse", a.lse.shape(), &shape)?;
        shape.check_same("a", &b.out.shape, "b")?;
        check_lse("b_lse", &b.lse.shape, &shape)?;
        let mut call = self.gpu.call();
        let a_out = call.update(["a", "out"], a.out)?;
        let a_lse = call.update(["a_lse", "lse"], a.lse)?;
        let (b_out, b_lse) = (call.view("b", b.out)?, call.view("b_lse", b.lse)?);
        let rows = small("rows", product("batch x tokens x heads", &[shape.batch, shape.tokens, shape.heads])?)?;
        if shape.is_empty() {
            return Ok(());
        }
        let steps = a_out.steps() | b_out.steps | (shape.dim * size_of::<T>()) as u64;
        let args = MergeArgs {
            a: a_out.x.at,
            b: b_out.at,
            out: a_out.y.at,
            a_lse: a_lse.x.at,
            b_lse: b_lse.at,
            lse: a_lse.y.at,
            a_strides: tensor(&a_out.x.shape),
            b_strides: tensor(&b_out.shape),
            out_strides: tensor(&a_out.y.shape),
            a_lse_strides: a_lse.x.shape.row_strides(),
            b_lse_strides: b_lse.shape.row_strides(),
            lse_strides: a_lse.y.shape.row_strides(),
            rows,
            tokens: small("tokens", shape.tokens)?,
            heads: small("heads", shape.heads)?,
            dim: small("channels", shape.dim)?,
            ..MergeArgs::zeroed()
        };
        call.launch(&self.merge[usize::from(widest(steps) != 16)], &launch(rows, args))
    }

    /// Writes the gradient of both states from that of the result.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `a`, `b` | [`State`] | as they were put in |
    /// | `grad` | the sizes of `a` | gradient of the result |
    /// | `lse_grad` | `[batch, heads, tokens, 1]` | gradient of its log-sum-exp; `None`: 0 |
    /// | `out` | [`MergeGrad`] | written |
    ///
    /// # Accuracy
    /// [`merge_grad_expect`](super::merge_grad_expect) has formulas and bounds. The same bits on every device and for every
    /// alignment.
    ///
    /// # Errors
    /// As [`MergePlan::merge`].
    pub fn grad<'a>(
        &'a self,
        a: State<View<'a, T, Heads>, View<'a, f32, Numbers>>,
        b: State<View<'a, T, Heads>, View<'a, f32, Numbers>>,
        grad: View<'a, T, Heads>,
        lse_grad: Option<View<'a, f32, Numbers>>,
        out: MergeGrad<'a, T>,
    ) -> Result<()> {
        let shape = a.out.shape;
        for (name, heads) in
            [("b", &b.out.shape), ("grad", &grad.shape), ("a_grad", &out.a.out.shape), ("b_grad", &out.b.out.shape)]
        {
            shape.check_same("a", heads, name)?;
        }
        for (name, lse) in [
            ("a_lse", Some(&a.lse.shape)),
            ("b_lse", Some(&b.lse.shape)),
            ("lse_grad", lse_grad.as_ref().map(|grad| &grad.shape)),
            ("a_lse_grad", Some(&out.a.lse.shape)),
            ("b_lse_grad", Some(&out.b.lse.shape)),
        ] {
            lse.map_or(Ok(()), |lse| check_lse(name, lse, &shape))?;
        }
        let mut call = self.gpu.call();
        let (a_out, a_lse) = (call.view("a", a.out)?, call.view("a_lse", a.lse)?);
        let (b_out, b_lse) = (call.view("b", b.out)?, call.view("b_lse", b.lse)?);
        let grad = call.view("grad", grad)?;
        let lse_grad = lse_grad.map(|grad| call.view("lse_grad", grad)).transpose()?;
        let (a_grad, a_lse_grad) = (call.view_mut("a_grad", out.a.out)?, call.view_mut("a_lse_grad", out.a.lse)?);
        let (b_grad, b_lse_grad) = (call.view_mut("b_grad", out.b.out)?, call.view_mut("b_lse_grad", out.b.lse)?);
        let rows = small("rows", product("batch x tokens x heads", &[shape.batch, shape.tokens, shape.heads])?)?;
        if shape.is_empty() {
            return Ok(());
        }
        let steps = a_out.steps | b_out.steps | grad.steps | a_grad.steps | b_grad.steps;
        let args = MergeGradArgs {
            a: a_out.at,
            b: b_out.at,
            grad: grad.at,
            a_grad: a_grad.at,
            b_grad: b_grad.at,
            a_lse: a_lse.at,
            b_lse: b_lse.at,
            lse_grad: lse_grad.as_ref().map_or(In::NULL, |grad| grad.at),
            a_lse_grad: a_lse_grad.at,
            b_lse_grad: b_lse_grad.at,
            a_strides: tensor(&a_out.shape),
            b_strides: tensor(&b_out.shape),
            grad_strides: tensor(&grad.shape),
            a_grad_strides: tensor(&a_grad.shape),
            b_grad_strides: tensor(&b_grad.shape),
            a_lse_strides: a_lse.shape.row_strides(),
            b_lse_strides: b_lse.shape.row_strides(),
            lse_grad_strides: lse_grad.as_ref().map_or([0; 3], |grad| grad.shape.row_strides()),
            a_lse_grad_strides: a_lse_grad.shape.row_strides(),
            b_lse_grad_strides: b_lse_grad.shape.row_strides(),
            rows,
            tokens: small("tokens", shape.tokens)?,
            heads: small("heads", shape.heads)?,
            dim: small("channels", shape.dim)?,
            ..MergeGradArgs::zeroed()
        };
        let is_narrow = widest(steps | (shape.dim * size_of::<T>()) as u64) != 16;
        call.launch(&self.grad[usize::from(is_narrow)], &launch(rows, args))
    }
}
