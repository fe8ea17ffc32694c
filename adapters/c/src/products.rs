//! Products of states and a table of relative positions, made where they are added.

use posenc::bias::{Index, RelativeProducts, RelativeProductsPlan};

use crate::header::header;
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencHeads, PosencLogits, PosencNumbers, PosencPlaces, PosencStatus, PosencTerm,
};

header! {{}
    /// Products of queries' or keys' states with a table of relative positions: the numbers that a term by queries or keys
    /// reads, made where they are added and never stored.
    versioned struct PosencRelativeProductsSpec {
        term: PosencTerm => "a term of distances, as `posenc_term_shaw` to `posenc_term_deberta` fill it in: the row of the \
            table, whose states are multiplied (`by`), and `factor`",
    }
    /// One call that adds products to logits, or writes them.
    versioned struct PosencRelativeProductsCall {
        x: PosencBuffer => "the logits, changed in place, or written",
        shape: PosencLogits => "their shape",
        states: PosencBuffer => "states of the queries, or of the keys, of the plan's element type",
        states_shape: PosencHeads => "their shape, `[batch, tokens, heads, width]`",
        bias: PosencBuffer => "`v`, `[heads, width]` of f32, added to the states: Transformer-XL's; or none",
        table: PosencBuffer => "the table, of the plan's element type",
        table_shape: PosencNumbers => "its shape, `[batch or 1, heads or 1, entries, width]`",
        places: PosencPlaces => "positions of queries and keys",
    }

    /// Products of states and a table on a device, for one element type.
    plan PosencRelativeProducts(RelativeProductsPlan, RelativeProducts);
    /// Makes a plan: uploads the lookup, if there is one, and loads the kernels for `element`.
    new posenc_relative_products_new(spec: PosencRelativeProductsSpec) -> PosencRelativeProducts as RelativeProductsPlan::new
        where products = products(&spec.term)?, |gpu| RelativeProductsPlan::new(gpu, &products);
    on posenc_relative_products_on(products: PosencRelativeProducts) as RelativeProductsPlan::on;
    free posenc_relative_products_free(products: PosencRelativeProducts);
    /// Adds the products to logits, in one kernel.
    verb posenc_relative_products_add(products: PosencRelativeProducts, call: PosencRelativeProductsCall)
        as RelativeProductsPlan::add where cpu = add, |plan, scope| {
            let (x, states) = (call.shape.of_mut(&call.x, scope, "x")?, call.states_shape.of(&call.states, scope, "states")?);
            let (bias, table) = (call.bias.read_some(scope, "bias")?, call.table_shape.of(&call.table, scope, "table")?);
            plan.add(x, states, bias, table, call.places.get(scope)?)
        };
    /// Writes the products of every query and key, in one kernel.
    verb posenc_relative_products_write(products: PosencRelativeProducts, call: PosencRelativeProductsCall)
        as RelativeProductsPlan::write where cpu = write, |plan, scope| {
            let (x, states) = (call.shape.of_mut(&call.x, scope, "x")?, call.states_shape.of(&call.states, scope, "states")?);
            let (bias, table) = (call.bias.read_some(scope, "bias")?, call.table_shape.of(&call.table, scope, "table")?);
            plan.write(x, states, bias, table, call.places.get(scope)?)
        };
}

/// # Safety
/// As [`PosencTerm::term`].
unsafe fn products(term: &PosencTerm) -> Result<RelativeProducts, Failure> {
    // SAFETY: as the caller promises.
    let own = unsafe { term.term() }?;
    let Index::Distance(index) = own.index else {
        let text = format!(
            "the kind of a term of products is {}, it must be POSENC_TERM_DISTANCE or POSENC_TERM_DEBERTA",
            term.kind
        );
        return Err(Failure::argument(text));
    };
    Ok(RelativeProducts { index, by: own.by, factor: own.factor })
}
