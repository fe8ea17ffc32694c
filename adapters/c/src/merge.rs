//! Attention outputs put together by their log-sum-exps.

use posenc::Device;
use posenc::attend::{MergeGrad, MergePlan, State};
use posenc::bias::Numbers;
use posenc::gpu::{View, ViewMut};
use posenc::{Heads, Scalar};

use crate::cpu::HostMerge;
use crate::header::header;
use crate::memory::Scope;
use crate::{Failure, PosencBuffer, PosencGpu, PosencHeads, PosencNumbers, PosencStatus};

header! {{}
    /// Attention outputs put together.
    versioned struct PosencMergeSpec {
        reserved: u64 => "0",
    }
    /// Attention of queries over some of their keys.
    struct PosencState {
        out: PosencBuffer => "probabilities times values; of a call's result no `data`: in place",
        heads: PosencHeads => "its shape",
        lse: PosencBuffer => "f32: natural logarithms of the sums of exponentials; -inf: no keys",
        lse_shape: PosencNumbers => "its shape, `[batch, heads, tokens, 1]`",
    }
    /// One call that puts two states together.
    versioned struct PosencMergeCall {
        a: PosencState => "over some of the keys; changed in place if there is no `result.out.data`",
        b: PosencState => "over others",
        result: PosencState => "written: the attention over both; or nothing",
    }
    /// One call for the gradient of both states.
    versioned struct PosencMergeGradCall {
        a: PosencState => "as it was put in",
        b: PosencState => "as it was put in",
        grad: PosencState => "gradients of the result and of its log-sum-exps; no `lse.data`: those are 0",
        a_grad: PosencState => "written: gradients of `a` and of its log-sum-exps",
        b_grad: PosencState => "written: gradients of `b` and of its log-sum-exps",
    }

    /// Attention outputs put together, for one element type.
    plan PosencMerge(MergePlan, HostMerge);
    /// Makes a plan: loads the kernels for `element`.
    new posenc_merge_new(spec: PosencMergeSpec) -> PosencMerge as MergePlan::new
        where merge = spec.merge(), |gpu| merge.plan(gpu);
    on posenc_merge_on(merge: PosencMerge) as MergePlan::on;
    free posenc_merge_free(merge: PosencMerge);
    /// Puts two states together: the attention over both sets of keys, in one kernel.
    verb posenc_merge_states(merge: PosencMerge, call: PosencMergeCall) as MergePlan::merge where cpu = merge, |plan, scope| {
        let PosencState { out, heads, lse, lse_shape } = &call.result;
        // Both in place, or neither.
        let lse = if out.data == 0 { PosencBuffer { data: 0, len: 0 } } else { *lse };
        let a = State {
            out: call.a.heads.update(&call.a.out, (out, heads), scope, ["a", "out"])?,
            lse: call.a.lse_shape.update(&call.a.lse, (&lse, lse_shape), scope, ["a_lse", "lse"])?,
        };
        plan.merge(a, call.b.get(scope, ["b", "b_lse"])?)
    };
    /// Writes the gradient of both states from that of the result, in one kernel.
    verb posenc_merge_grad(merge: PosencMerge, call: PosencMergeGradCall) as MergePlan::grad where cpu = grad, |plan, scope| {
        let (a, b) = (call.a.get(scope, ["a", "a_lse"])?, call.b.get(scope, ["b", "b_lse"])?);
        let grad = call.grad.heads.of(&call.grad.out, scope, "grad")?;
        let lse_grad = call.grad.lse_shape.of_some(&call.grad.lse, scope, "lse_grad")?;
        let a_grad = call.a_grad.get_mut(scope, ["a_grad", "a_lse_grad"])?;
        plan.grad(a, b, grad, lse_grad, MergeGrad { a: a_grad, b: call.b_grad.get_mut(scope, ["b_grad", "b_lse_grad"])? })
    };
}

impl PosencMergeSpec {
    const fn merge(&self) -> HostMerge {
        HostMerge
    }
}

/// A state that is read, and one that is written.
type Read<'a, T> = State<View<'a, T, Heads>, View<'a, f32, Numbers>>;
type Written<'a, T> = State<ViewMut<'a, T, Heads>, ViewMut<'a, f32, Numbers>>;

impl PosencState {
    fn get<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        [name, lse_name]: [&'static str; 2],
    ) -> Result<Read<'a, T>, Failure> {
        let out = self.heads.of(&self.out, scope, name)?;
        Ok(State { out, lse: self.lse_shape.of(&self.lse, scope, lse_name)? })
    }

    fn get_mut<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Device>,
        [name, lse_name]: [&'static str; 2],
    ) -> Result<Written<'a, T>, Failure> {
        let out = self.heads.of_mut(&self.out, scope, name)?;
        Ok(State { out, lse: self.lse_shape.of_mut(&self.lse, scope, lse_name)? })
    }
}
