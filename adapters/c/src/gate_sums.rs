//! Prefix sums of log gates: the endpoints of a forgetting attention.

use posenc::Device;
use posenc::bias::{GateSums, GateSumsPlan, Gates};

use crate::header::{Coded, header};
use crate::memory::Space;
use crate::{Failure, PosencBuffer, PosencGpu, PosencNumbers, PosencStatus};

header! {{}
    codes Gates {
        POSENC_GATES_LOGS = 0 => Logs: "Numbers of gates: their logarithms, at most 0.",
        POSENC_GATES_LOGITS = 1 => Logits: "`x`, of the gate `ln(sigmoid(x))`: the output of a projection",
    }

    /// Prefix sums of log gates along the tokens of each head, as two floats each.
    versioned struct PosencGateSumsSpec {
        gates: u32 => "`POSENC_GATES_...`",
        reserved: u32 => "0",
    }
    /// One call that writes sums.
    versioned struct PosencGateSumsCall {
        element: u32 => "type of `gates`: `POSENC_F32`, or the plan's",
        reserved: u32 => "0",
        gates: PosencBuffer => "the gates",
        gates_shape: PosencNumbers => "their shape, `[batch, heads, tokens, 1]`",
        out: PosencBuffer => "f32, written: `numbers` and `key_numbers` of `POSENC_TERM_ENDPOINTS`",
        out_shape: PosencNumbers => "its shape, `[batch, heads, tokens, 2]`",
        state: PosencBuffer => "`[batch, heads, 2]` of 64 bits, changed in place: the sums of the tokens before, 0 at the start \
            of a sequence, become those with these tokens; none: a whole sequence",
    }
    /// One call for the gradient of the gates' numbers.
    versioned struct PosencGateSumsGradCall {
        element: u32 => "type of `gates`: `POSENC_F32`, or the plan's",
        reserved: u32 => "0",
        gates: PosencBuffer => "as in the sums; logarithms are not read",
        gates_shape: PosencNumbers => "their shape, `[batch, heads, tokens, 1]`",
        query_grad: PosencBuffer => "f32: the gradient of the sums as queries' numbers, of `posenc_term_grad_apply`",
        query_grad_shape: PosencNumbers => "its shape, `[batch, heads, tokens, 1]`",
        key_grad: PosencBuffer => "f32: as keys' numbers, of `posenc_term_grad_apply_keys`",
        key_grad_shape: PosencNumbers => "its shape, `[batch, heads, tokens, 1]`",
        grad: PosencBuffer => "f32, written",
        grad_shape: PosencNumbers => "its shape, `[batch, heads, tokens, 1]`",
    }

    /// Prefix sums of log gates on a device, for gates of f32 or of one element type.
    plan PosencGateSums(GateSumsPlan, GateSums);
    /// Makes a plan: loads the kernels for `element`.
    new posenc_gate_sums_new(spec: PosencGateSumsSpec) -> PosencGateSums as GateSumsPlan::new
        where sums = spec.sums()?, |gpu| GateSumsPlan::new(gpu, sums);
    on posenc_gate_sums_on(sums: PosencGateSums) as GateSumsPlan::on;
    free posenc_gate_sums_free(sums: PosencGateSums);
    /// Writes the sums, in one kernel.
    verb posenc_gate_sums_write(sums: PosencGateSums, call: PosencGateSumsCall) as GateSumsPlan::write where cpu = write, |plan, scope| {
        let gates = Device::numbers(scope, "gates", call.element, &call.gates, &call.gates_shape)?;
        plan.write(gates, call.out_shape.of_mut(&call.out, scope, "out")?, call.state.write_some(scope, "state")?)
    };
    /// Writes the gradient of the gates' numbers, in one kernel.
    verb posenc_gate_sums_grad(sums: PosencGateSums, call: PosencGateSumsGradCall) as GateSumsPlan::grad where cpu = grad, |plan, scope| {
        let gates = Device::numbers(scope, "gates", call.element, &call.gates, &call.gates_shape)?;
        let query_grad = call.query_grad_shape.of(&call.query_grad, scope, "query_grad")?;
        let key_grad = call.key_grad_shape.of(&call.key_grad, scope, "key_grad")?;
        plan.grad(gates, query_grad, key_grad, call.grad_shape.of_mut(&call.grad, scope, "grad")?)
    };
}

impl PosencGateSumsSpec {
    fn sums(&self) -> Result<GateSums, Failure> {
        Ok(GateSums { gates: Gates::of("gates", self.gates)? })
    }
}
