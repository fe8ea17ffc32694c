//! The softmax of attention with its bias, and its gradients.

use posenc::attend::{DeviceBias, GradOptions, Inputs, Order};
use posenc::{Bias, Device, Scalar, Softmax, SoftmaxPlan};

use crate::header::{Coded, header};
use crate::memory::{Scope, Space};
use crate::{
    Failure, PosencBias, PosencBuffer, PosencGpu, PosencLogits, PosencPlaces, PosencStatus, PosencTermInputs, factor,
    switch, term_inputs,
};

header! {{}
    codes Order {
        POSENC_SOFTCAP_THEN_BIAS = 0 => SoftcapThenBias: "Orders of scale, softcap and bias: `softcap(scale * s) + bias`.",
        POSENC_BIAS_THEN_SOFTCAP = 1 => BiasThenSoftcap: "`softcap(scale * s + bias)`",
        POSENC_BIAS_THEN_SCALE = 2 => BiasThenScale: "`softcap(scale * (s + bias))`",
    }

    /// A softmax: what to compute.
    versioned struct PosencSoftmaxSpec {
        scale: f32 => "multiplies the logit",
        softcap: f32 => "the logit's limit; 0: none",
        order: u32 => "in which order they act, and the bias",
        has_left: u32 => "1: a key may lie at most `left` before its query",
        left: u32 => "see `has_left`",
        has_right: u32 => "1: a key may lie at most `right` after its query; 0 there is a causal softmax",
        right: u32 => "see `has_right`",
        reserved: u32 => "0",
    }
    /// Bias, mask, sinks, gates and scales of one softmax call.
    struct PosencInputs {
        bias: *const PosencBias => "the bias, made for the same element type; null: none",
        places: PosencPlaces => "positions of queries and keys",
        terms: *const PosencTermInputs => "what each term of a sum of terms reads, `[term_count]` in host memory",
        term_count: u64 => "as many as the bias has; 0 for other biases",
        gates: PosencBuffer => "`[batch, heads, queries]` of f32, multiply the bias; or none",
        mask: PosencBuffer => "added last, -inf masks; or none. A gradient does not read it",
        mask_shape: PosencLogits => "the shape of `mask`: each size but the keys' may be 1",
        sinks: PosencBuffer => "`[heads]` of f32, logits without keys; or none. A gradient does not read them",
        scales: PosencBuffer => "`[heads]` of f32, multiply `scale` (cosine attention, `posenc_swin2_logit_scale`); or none",
    }
    /// One call.
    versioned struct PosencSoftmaxCall {
        x: PosencBuffer => "logits",
        shape: PosencLogits => "their shape",
        out: PosencBuffer => "probabilities; none: in place",
        out_shape: PosencLogits => "their shape",
        inputs: PosencInputs => "bias, places, mask, sinks, gates, scales",
        lse: PosencBuffer => "`[batch, heads, queries]` of f32, written: the log-sum-exp; or none",
    }
    /// One call for the gradients of logits and bias.
    versioned struct PosencSoftmaxGradCall {
        probabilities: PosencBuffer => "what the softmax gave",
        probabilities_shape: PosencLogits => "their shape",
        grad: PosencBuffer => "the gradient of the probabilities",
        grad_shape: PosencLogits => "its shape",
        out: PosencBuffer => "the gradient of the logits; none: in place of `grad`",
        out_shape: PosencLogits => "its shape",
        inputs: PosencInputs => "as in the softmax",
        logits: PosencBuffer => "the logits, where a softcap needs them",
        logits_shape: PosencLogits => "their shape",
        bias_grad: PosencBuffer => "written: the gradient of the bias, laid out as that of the logits; or none",
        dots: PosencBuffer => "`[batch, heads, queries]` of f32, written: the sum of probability and gradient of each \
            row; or none",
    }
    /// One call for the gradient of the sinks.
    versioned struct PosencSinkGradCall {
        sinks: PosencBuffer => "`[heads]` of f32, as in the softmax",
        lse: PosencBuffer => "of the softmax",
        dots: PosencBuffer => "of its gradient",
        grad: PosencBuffer => "`[heads]` of f32, written",
        shape: PosencLogits => "the shape of the logits",
    }

    /// Softmax on a device, for one element type. Its calls follow one another in the stream.
    plan PosencSoftmax(SoftmaxPlan, Softmax);
    /// Makes a plan: loads the kernels for `element`. A call brings its bias.
    new posenc_softmax_new(spec: PosencSoftmaxSpec) -> PosencSoftmax as SoftmaxPlan::new
        where softmax = spec.softmax()?, |gpu| SoftmaxPlan::new(gpu, &softmax, Bias::None);
    on posenc_softmax_on(softmax: PosencSoftmax) as SoftmaxPlan::on;
    free posenc_softmax_free(softmax: PosencSoftmax);
    /// The softmax of every row, in one kernel.
    verb posenc_softmax_apply(softmax: PosencSoftmax, call: PosencSoftmaxCall)
        as SoftmaxPlan::apply, SoftmaxPlan::apply_with_lse where cpu = apply, |plan, scope| {
            let inputs = call.inputs.forward(scope)?;
            let out = (&call.out, &call.out_shape);
            let logits = call.shape.update(&call.x, out, scope, ["logits", "probabilities"])?;
            match call.lse.write_some(scope, "lse")? {
                None => plan.apply(logits, &inputs),
                Some(lse) => plan.apply_with_lse(logits, &inputs, lse),
            }
        };
    /// The gradients of the logits, and of the bias if it is wanted, in one kernel.
    verb posenc_softmax_grad(softmax: PosencSoftmax, call: PosencSoftmaxGradCall) as SoftmaxPlan::grad where cpu = grad, |plan, scope| {
        let inputs = call.inputs.backward(scope)?;
        let probabilities = call.probabilities_shape.of(&call.probabilities, scope, "probabilities")?;
        let out = (&call.out, &call.out_shape);
        let grad = call.grad_shape.update(&call.grad, out, scope, ["grad", "logits_grad"])?;
        let options = GradOptions {
            logits: call.logits_shape.of_some(&call.logits, scope, "logits")?,
            bias: call.bias_grad.write_some(scope, "bias_grad")?,
            dots: call.dots.write_some(scope, "dots")?,
        };
        plan.grad(probabilities, grad, &inputs, options)
    };
    /// The gradient of the sinks, in one kernel.
    verb posenc_softmax_sink_grad(softmax: PosencSoftmax, call: PosencSinkGradCall) as SoftmaxPlan::sink_grad where cpu = grad, |plan, scope| {
        let (sinks, lse) = (call.sinks.read(scope, "sinks")?, call.lse.read(scope, "lse")?);
        plan.sink_grad(sinks, lse, call.dots.read(scope, "dots")?, call.shape.shape(), call.grad.write(scope, "grad")?)
    };
}

impl PosencSoftmaxSpec {
    fn softmax(&self) -> Result<Softmax, Failure> {
        Ok(Softmax {
            scale: factor("scale", self.scale)?,
            softcap: (self.softcap != 0.0).then_some(self.softcap),
            order: Order::of("order", self.order)?,
            left: switch("has_left", self.has_left)?.then_some(self.left),
            right: switch("has_right", self.has_right)?.then_some(self.right),
        })
    }
}

impl PosencInputs {
    /// # Safety
    /// `bias` is null or comes from a constructor; `terms` is null or points to `term_count` of them.
    unsafe fn forward<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<Inputs<'a, T, Device>, Failure> {
        // SAFETY: as the caller promises.
        let inputs = unsafe { self.backward(scope) }?;
        self.with_mask(inputs, scope)
    }

    /// # Safety
    /// As [`PosencInputs::forward`].
    unsafe fn backward<'a, T: Scalar>(&self, scope: &Scope<'a, Device>) -> Result<Inputs<'a, T, Device>, Failure> {
        // SAFETY: as the caller promises.
        let plan = unsafe { self.bias.as_ref() }.map(PosencBias::of).transpose()?;
        // SAFETY: as the caller promises.
        let terms = unsafe { term_inputs(self.terms, self.term_count, scope) }?;
        Ok(Inputs { bias: DeviceBias { plan, terms }, ..self.without_bias(scope)? })
    }

    /// What a softmax and its gradient read beside the bias.
    pub(crate) fn without_bias<'a, T: Scalar, M: Space>(
        &self,
        scope: &Scope<'a, M>,
    ) -> Result<Inputs<'a, T, M>, Failure> {
        Ok(Inputs {
            bias: M::default_bias(),
            places: self.places.get(scope)?,
            mask: None,
            sinks: None,
            gates: self.gates.read_some(scope, "gates")?,
            scales: self.scales.read_some(scope, "scales")?,
        })
    }

    /// Adds what a softmax alone reads.
    pub(crate) fn with_mask<'a, T: Scalar, M: Space>(
        &self,
        inputs: Inputs<'a, T, M>,
        scope: &Scope<'a, M>,
    ) -> Result<Inputs<'a, T, M>, Failure> {
        let mask = match self.mask.data {
            0 => None,
            _ => Some(M::mask(scope, &self.mask, &self.mask_shape)?),
        };
        Ok(Inputs { mask, sinks: self.sinks.read_some(scope, "sinks")?, ..inputs })
    }
}
