//! The gradient of the softmax on a device: one launch, and one more for the sinks.

use bytemuck::Zeroable;

use crate::attend::DeviceInputs;
use crate::attend::softmax::plan::{Rows, SoftmaxPlan};
use crate::bias::{Held, rows};
use crate::gpu::args::{SinkGradArgs, SoftmaxGradArgs, SoftmaxGradTermsArgs};
use crate::gpu::{Launch, Read, Update, View, Write, widest};
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- plan

/// Optional inputs and outputs of [`SoftmaxPlan::grad`].
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `logits` | the logits' | read: the logits before the softmax, which a softcap needs; without one they are not read |
/// | `bias` | laid out as the gradient of the logits | written: the gradient of the bias at every query and key |
/// | `dots` | `[batch, heads, queries]` | written: the sum of probability and gradient of each row, for [`SoftmaxPlan::sink_grad`] |
pub struct GradOptions<'a, T> {
    /// read: the logits before the softmax
    pub logits: Option<View<'a, T, Logits>>,
    /// written: the gradient of the bias
    pub bias: Option<Write<'a, T>>,
    /// written: the sum of probability and gradient of each row
    pub dots: Option<Write<'a, f32>>,
}

impl<T> Default for GradOptions<'_, T> {
    fn default() -> Self {
        Self { logits: None, bias: None, dots: None }
    }
}

impl<T> std::fmt::Debug for GradOptions<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { logits, bias, dots } = self;
        let mut debug = f.debug_struct("GradOptions");
        debug.field("logits", logits).field("bias", &bias.as_ref().map(|bias| bias.len()));
        debug.field("dots", &dots.as_ref().map(|dots| dots.len())).finish()
    }
}

impl<T: Scalar> SoftmaxPlan<T> {
    /// The gradients of the logits, and of the bias if it is wanted, in one kernel.
    ///
    /// `dz = p * (dp - sum over keys of p * dp)`, and back through softcap and scale in the spec's order. Probability and
    /// gradient are read once where a row fits into a block's shared memory, as in [`SoftmaxPlan::apply`] with two elements
    /// a key instead of 4 bytes; longer rows are read twice.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `probabilities` | `[batch, heads, queries, keys]` | what [`SoftmaxPlan::apply`] gave |
    /// | `grad` | the same, in place or copied | the gradient of the probabilities; becomes that of the logits |
    /// | `inputs` | | as in the softmax; mask and sinks play no part |
    /// | `options` | | further outputs, and the logits where a softcap needs them |
    ///
    /// # Accuracy
    /// [`Softmax::expect_grad`](crate::Softmax::expect_grad) states it. The same bits on every device and for every alignment.
    ///
    /// # Errors
    /// As [`SoftmaxPlan::apply`]; if a softcap lacks the logits.
    ///
    /// # Example
    /// [`SoftmaxPlan::sink_grad`] has it.
    pub fn grad<'a, 'b: 'a>(
        &'a self,
        probabilities: View<'a, T, Logits>,
        grad: impl Into<Update<'a, T, Logits>>,
        inputs: &DeviceInputs<'b, T>,
        options: GradOptions<'a, T>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let p = call.view("probabilities", probabilities)?;
        let grad = call.update(["grad", "logits_grad"], grad.into())?;
        let (shape, out_shape) = (grad.x.shape, grad.y.shape);
        p.shape.check_same("probabilities", &shape, "grad")?;
        let Held { bias, terms } = self.hold_bias(&mut call, &shape, inputs)?;
        let mut call_args = SoftmaxGradArgs {
            bias,
            law: self.softmax.law(),
            p: p.at,
            dp: grad.x.at,
            dx: grad.y.at,
            dots: call.write_some("dots", options.dots, shape.rows()?)?,
            p_strides: p.shape.strides.map(|stride| stride as i64),
            dp_strides: shape.strides.map(|stride| stride as i64),
            dx_strides: out_shape.strides.map(|stride| stride as i64),
            ..SoftmaxGradArgs::zeroed()
        };
        let mut steps = p.steps | grad.steps();
        if let Some(logits) = options.logits {
            let logits = call.view("logits", logits)?;
            logits.shape.check_same("logits", &shape, "grad")?;
            if self.softmax.softcap.is_some() {
                (call_args.x, call_args.x_strides) = (logits.at, logits.shape.strides.map(|stride| stride as i64));
                steps |= logits.steps;
            }
        } else if self.softmax.softcap.is_some() {
            return Err(Error::Value("the gradient of a softcap needs the logits before the softmax".into()));
        }
        if let Some(bias) = options.bias {
            let bias = call.view_mut("bias_grad", out_shape.of_mut(bias))?;
            call_args.dbias = bias.at;
            steps |= bias.steps;
        }
        if shape.batch == 0 || shape.queries == 0 {
            return Ok(());
        }
        let aligned = u32::from(widest(steps) == 16);
        // Only a softcap's slope asks for the bias, and scales for the kernel of terms.
        let terms = terms.filter(|_| self.softmax.softcap.is_some() || inputs.scales.is_some());
        let rows = Rows { rows: rows(&shape)?, keys: shape.keys, aligned };
        let args = |team| {
            let mut args = call_args;
            args.team = team;
            args
        };
        match terms {
            None => self.grad.launch(&mut call, &self.scratch, rows, 0, args),
            Some(terms) => self.terms_grad.launch(&mut call, &self.scratch, rows, 0, |team| SoftmaxGradTermsArgs {
                call: args(team),
                terms,
                ..SoftmaxGradTermsArgs::zeroed()
            }),
        }
    }

    /// The gradient of the sinks, in one kernel: `-sum over rows of exp(sink - lse) * dot`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `sinks` | `[heads]` | as in the softmax |
    /// | `lse` | `[batch, heads, queries]` | from [`SoftmaxPlan::apply_with_lse`] |
    /// | `dots` | `[batch, heads, queries]` | from [`SoftmaxPlan::grad`] |
    /// | `shape` | | the logits' |
    /// | `grad` | `[heads]` | written |
    ///
    /// # Accuracy
    /// `(8 + |sink - lse|) * 2^-24` of the sum of the sizes of its terms, and the errors of `lse` and `dots`. The same
    /// bits on every device.
    ///
    /// # Errors
    /// If the shape has no heads or is too large, a buffer is too short, belongs to another context or shares memory with `grad`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::attend::{DeviceInputs, GradOptions};
    /// use posenc::{Bias, Gpu, Logits, Softmax, SoftmaxPlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0), Bias::None)?;
    /// let (stream, shape) = (gpu.stream(), Logits::bhqk(1, 8, 7, 7));
    /// let (sinks, mut p) = (stream.alloc_zeros(8)?, stream.alloc_zeros(8 * 7 * 7)?);
    /// let (mut lse, mut dots) = (stream.alloc_zeros(8 * 7)?, stream.alloc_zeros(8 * 7)?);
    /// let inputs = DeviceInputs { sinks: Some(&sinks), ..DeviceInputs::default() };
    /// plan.apply_with_lse(shape.of_mut(&mut p), &inputs, &mut lse)?;
    /// let (mut grad, mut sinks_grad) = (stream.alloc_zeros(8 * 7 * 7)?, stream.alloc_zeros(8)?);
    /// let options = GradOptions { dots: Some(&mut dots), ..GradOptions::default() };
    /// plan.grad(shape.of(&p), shape.of_mut(&mut grad), &inputs, options)?;
    /// plan.sink_grad(&sinks, &lse, &dots, shape, &mut sinks_grad)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sink_grad<'a>(
        &'a self,
        sinks: Read<'a, f32>,
        lse: Read<'a, f32>,
        dots: Read<'a, f32>,
        shape: Logits,
        grad: Write<'a, f32>,
    ) -> Result<()> {
        shape.check_sizes("logits")?;
        let rows = rows(&shape)? as usize;
        let mut call = self.gpu.call();
        let args = SinkGradArgs {
            sinks: call.read("sinks", sinks, shape.heads)?,
            lse: call.read("lse", lse, rows)?,
            dots: call.read("dots", dots, rows)?,
            grad: call.write("sinks_grad", grad, shape.heads)?,
            // Below 2^31, as was just seen.
            batch: shape.batch as u32,
            heads: shape.heads as u32,
            queries: shape.queries as u32,
            ..SinkGradArgs::zeroed()
        };
        call.launch(&self.sink_grad, &Launch::new([args.heads, 1, 1], [256, 1, 1], args))
    }
}
