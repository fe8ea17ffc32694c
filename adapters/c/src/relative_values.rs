//! Relative positions on the value side.

use posenc::Device;
use posenc::attend::{RelativeTableGradPlan, RelativeValues, RelativeValuesPlan};

use crate::cpu::HostTableGrad;
use crate::header::header;
use crate::memory::Space;
use crate::{
    Failure, Plan, PosencBuffer, PosencDistances, PosencGpu, PosencHeads, PosencLogits, PosencNumbers, PosencPlaces,
    PosencStatus, borrow, each, give, switch,
};

header! {{}
    /// Shaw's relative positions on the value side: each key adds the vector of a table that its distance chooses.
    versioned struct PosencRelativeValuesSpec {
        distances: PosencDistances => "the entry of each distance: `distances` of a term that `posenc_term_shaw` or \
            `posenc_term_vits` fills in",
    }
    /// One call that adds to values.
    versioned struct PosencRelativeValuesCall {
        probabilities: PosencBuffer => "what the softmax gave",
        shape: PosencLogits => "their shape",
        table: PosencBuffer => "the vectors of the entries",
        table_shape: PosencNumbers => "their shape, `[1, heads or 1, entries, dim]`",
        element: u32 => "type of `table`: `POSENC_F32`, or the plan's",
        reserved: u32 => "0",
        z: PosencBuffer => "the values, changed in place",
        z_shape: PosencHeads => "their shape, `[batch, queries, heads, dim]`",
        places: PosencPlaces => "positions of queries and keys",
    }
    /// One call for the gradient of the probabilities.
    versioned struct PosencRelativeValuesGradCall {
        dz: PosencBuffer => "the gradient of the values",
        dz_shape: PosencHeads => "its shape, `[batch, queries, heads, dim]`",
        table: PosencBuffer => "the vectors of the entries",
        table_shape: PosencNumbers => "their shape, `[1, heads or 1, entries, dim]`",
        element: u32 => "type of `table`: `POSENC_F32`, or the plan's",
        add: u32 => "1: added to what is there; 0: written",
        dp: PosencBuffer => "the gradient of the probabilities",
        dp_shape: PosencLogits => "its shape",
        places: PosencPlaces => "positions of queries and keys",
    }
    /// The table whose gradient is wanted.
    versioned struct PosencRelativeTableGradSpec {
        distances: PosencDistances => "as in `PosencRelativeValuesSpec`",
        heads: u64 => "heads of the table; 1: all share it",
        dim: u64 => "channels of a head",
    }
    /// One call for the gradient of the table.
    versioned struct PosencRelativeTableGradCall {
        probabilities: PosencBuffer => "what the softmax gave",
        shape: PosencLogits => "their shape",
        dz: PosencBuffer => "the gradient of the values",
        dz_shape: PosencHeads => "its shape, `[batch, queries, heads, dim]`",
        places: PosencPlaces => "positions of queries and keys",
        out: PosencBuffer => "`[heads or 1, entries, dim]` of f32, written",
    }

    /// Relative positions on the value side on a device, for one element type.
    plan PosencRelativeValues(RelativeValuesPlan, RelativeValues);
    /// Makes a plan: loads the kernels for `element`.
    new posenc_relative_values_new(spec: PosencRelativeValuesSpec) -> PosencRelativeValues as RelativeValuesPlan::new
        where values = values(&spec.distances)?, |gpu| RelativeValuesPlan::new(gpu, &values);
    on posenc_relative_values_on(values: PosencRelativeValues) as RelativeValuesPlan::on;
    free posenc_relative_values_free(values: PosencRelativeValues);
    /// Adds the sum over keys of probability and vector to every value, in one kernel.
    verb posenc_relative_values_add(values: PosencRelativeValues, call: PosencRelativeValuesCall) as RelativeValuesPlan::add where cpu = add,
        |plan, scope| {
            let p = call.shape.of(&call.probabilities, scope, "probabilities")?;
            let table = Device::numbers(scope, "table", call.element, &call.table, &call.table_shape)?;
            plan.add(p, table, call.z_shape.of_mut(&call.z, scope, "z")?, call.places.get(scope)?)
        };
    /// Writes or adds the gradient of the probabilities, in one kernel.
    verb posenc_relative_values_grad(values: PosencRelativeValues, call: PosencRelativeValuesGradCall)
        as RelativeValuesPlan::grad where cpu = grad, |plan, scope| {
            let (dz, add) = (call.dz_shape.of(&call.dz, scope, "dz")?, switch("add", call.add)?);
            let table = Device::numbers(scope, "table", call.element, &call.table, &call.table_shape)?;
            plan.grad(dz, table, call.dp_shape.of_mut(&call.dp, scope, "dp")?, call.places.get(scope)?, add)
        };

    /// The gradient of the table of relative values on a device, for one element type. Its calls follow one another in the
    /// stream.
    plan PosencRelativeTableGrad(RelativeTableGradPlan, HostTableGrad);
    /// Makes a plan; `max_shape` is the shape of the probabilities of the largest call.
    new posenc_relative_table_grad_new(spec: PosencRelativeTableGradSpec, max_shape: PosencLogits) -> PosencRelativeTableGrad
        as RelativeTableGradPlan::new
        where grad = HostTableGrad { values: values(&spec.distances)?, heads: spec.heads as usize, dim: spec.dim as usize },
        |gpu| RelativeTableGradPlan::new(gpu, &grad.values, grad.heads, grad.dim, max_shape.shape());
    on posenc_relative_table_grad_on(grad: PosencRelativeTableGrad) as RelativeTableGradPlan::on;
    free posenc_relative_table_grad_free(grad: PosencRelativeTableGrad);
    /// Gives the number of gradient values.
    fn posenc_relative_table_grad_len(grad: *const PosencRelativeTableGrad, out: *mut u64) -> PosencStatus
        as RelativeTableGradPlan::len {
        give(out, || match &borrow("grad", grad)?.plan {
            Plan::Gpu(plan) => Ok(each!(plan, plan => plan.len()) as u64),
            Plan::Cpu { spec, .. } => Ok(spec.len() as u64),
        })
    }
    /// Writes the gradient of the table, in one kernel.
    verb posenc_relative_table_grad_apply(grad: PosencRelativeTableGrad, call: PosencRelativeTableGradCall)
        as RelativeTableGradPlan::apply where cpu = table_grad, |plan, scope| {
            let p = call.shape.of(&call.probabilities, scope, "probabilities")?;
            let dz = call.dz_shape.of(&call.dz, scope, "dz")?;
            plan.apply(p, dz, call.places.get(scope)?, call.out.write(scope, "out")?)
        };
}

/// # Safety
/// As [`PosencDistances::distances`].
unsafe fn values(distances: &PosencDistances) -> Result<RelativeValues, Failure> {
    // SAFETY: as the caller promises.
    Ok(RelativeValues { index: unsafe { distances.distances() }? })
}
