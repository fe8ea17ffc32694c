//! Gradients of the numbers that a term of a bias reads.

use posenc::Device;
use posenc::bias::{BiasInputs, Term, TermGradPlan};

use crate::header::header;
use crate::memory::Scope;
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencLogits, PosencNumbers, PosencPlaces, PosencStatus, PosencTerm,
    PosencTermInputs, factor, term_inputs,
};

header! {{}
    /// The term whose numbers have a gradient.
    versioned struct PosencTermGradSpec {
        term: PosencTerm => "as `posenc_term_...` fills it in",
    }
    /// One call for the gradient of a term's numbers.
    versioned struct PosencTermGradCall {
        grad: PosencBuffer => "the gradient of every logit after the bias",
        shape: PosencLogits => "its shape",
        places: PosencPlaces => "positions of queries and keys",
        gates: PosencBuffer => "`[batch, heads, queries]` of f32: those that multiplied the bias; or none",
        inputs: PosencTermInputs => "the term's indices or coordinates, without its numbers; zeros where it has neither",
        out: PosencBuffer => "f32, written",
        out_shape: PosencNumbers => "its shape, that of the numbers: a size of 1 sums over that dimension. Endpoints have one \
            entry",
        factor: f32 => "multiplies the sums, the term's own factor on top: 1; `1 / scale` if `grad` is that of the logits",
        reserved: u32 => "0",
    }

    /// Gradients of a term's numbers on a device, for one element type of logits. Its calls follow one another in the stream.
    plan PosencTermGrad(TermGradPlan, Term);
    /// Makes a plan for the numbers of a term; `max_shape` is the shape of the largest call.
    new posenc_term_grad_new(spec: PosencTermGradSpec, max_shape: PosencLogits) -> PosencTermGrad as TermGradPlan::new
        where term = spec.term.term()?, |gpu| TermGradPlan::new(gpu, &term, max_shape.shape());
    on posenc_term_grad_on(grad: PosencTermGrad) as TermGradPlan::on;
    free posenc_term_grad_free(grad: PosencTermGrad);
    /// Writes the gradient of the numbers, in one kernel; of `POSENC_TERM_ENDPOINTS` that of the queries' numbers.
    verb posenc_term_grad_apply(grad: PosencTermGrad, call: PosencTermGradCall) as TermGradPlan::apply where cpu = apply, |plan, scope| {
        let (grad, factor) = (call.shape.of(&call.grad, scope, "grad")?, factor("factor", call.factor)?);
        plan.apply(grad, call.inputs(scope)?, factor, call.out_shape.shape(), call.out.write(scope, "out")?)
    };
    /// Writes the gradient of the keys' numbers of `POSENC_TERM_ENDPOINTS`, which are subtracted, in one kernel.
    verb posenc_term_grad_apply_keys(grad: PosencTermGrad, call: PosencTermGradCall) as TermGradPlan::apply_keys where cpu = apply_keys,
        |plan, scope| {
            let (grad, factor) = (call.shape.of(&call.grad, scope, "grad")?, factor("factor", call.factor)?);
            plan.apply_keys(grad, call.inputs(scope)?, factor, call.out_shape.shape(), call.out.write(scope, "out")?)
        };
}

impl PosencTermGradCall {
    fn inputs<'a>(&self, scope: &Scope<'a, Device>) -> Result<BiasInputs<'a>, Failure> {
        // SAFETY: the inputs are in this struct.
        let terms = unsafe { term_inputs(&self.inputs, 1, scope) }?;
        Ok(BiasInputs { places: self.places.get(scope)?, gates: self.gates.read_some(scope, "gates")?, terms })
    }
}
