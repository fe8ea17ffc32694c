//! Logits become probabilities, on the host.

use posenc::attend::{HostInputs, MergePlan, RelativeValues, State, merge_expect, merge_grad_expect};
use posenc::bias::{Numbers, TermInputs};
use posenc::{Bias, Error, Gpu, Heads, Host, Logits, Places, Scalar, Shape, Softmax};

use super::{HostBias, Rows, at_least, few, put};
use crate::memory::{Scope, Space, slots, term_slots};
use crate::{
    Failure, Plan, PosencBias, PosencInputs, PosencMergeCall, PosencMergeGradCall, PosencRelativeTableGradCall,
    PosencRelativeValuesCall, PosencRelativeValuesGradCall, PosencSinkGradCall, PosencSoftmaxCall,
    PosencSoftmaxGradCall, PosencState, Spec, switch, term_inputs,
};

impl PosencInputs {
    /// Runs `body` with what the call reads, and its bias.
    fn on_host<'a, T: Scalar, R>(
        &self,
        inputs: HostInputs<'a, T>,
        shape: &Logits,
        scope: &Scope<'a, Host>,
        body: impl FnOnce(&HostInputs<'_, T>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // SAFETY: the header's rules promise a handle, or null.
        let handle = unsafe { self.bias.as_ref() };
        // SAFETY: the header's rules promise as many terms.
        let terms: &[TermInputs<'_>] = unsafe { term_inputs(self.terms, self.term_count, scope) }?;
        let Some(handle) = handle else {
            if !terms.is_empty() {
                return Err(Error::Value("the call brings inputs of terms, the bias has none".into()).into());
            }
            return body(&inputs);
        };
        let bias = handle.on_host::<T>()?;
        let places: Places<&[i32]> = inputs.places;
        bias.with(terms, shape, &places, |bias| body(&biased(&inputs, bias)))
    }
}

/// The same inputs with this bias.
fn biased<'b, 'a: 'b, T: Scalar>(inputs: &HostInputs<'a, T>, bias: Bias<'b>) -> HostInputs<'b, T> {
    let HostInputs::<T> { places, mask, sinks, gates, scales, .. } = *inputs;
    HostInputs::<T> { bias, places, mask, sinks, gates, scales }
}

impl PosencBias {
    /// The bias of the CPU, if it is for this element type.
    fn on_host<T: Scalar>(&self) -> Result<&HostBias, Failure> {
        let Plan::Cpu { spec, element } = &self.plan else {
            return Err(Failure::argument("the bias is a device's, the softmax is the CPU's".into()));
        };
        let name = crate::with_element!(element, E => E::NAME);
        if name != T::NAME {
            return Err(Failure::argument(format!("the bias is for {name}, the logits are {}", T::NAME)));
        }
        Ok(spec)
    }
}

impl PosencSoftmaxCall {
    pub(crate) fn apply<T: Scalar>(&self, softmax: &Softmax, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, shape, from) = if self.out.data == 0 || (self.out.data == self.x.data && self.in_place()) {
            let (x, shape) = self.shape.host_mut::<T>(&self.x, scope, "logits")?;
            (x, shape, None)
        } else {
            let (from, from_shape) = self.shape.host::<T>(&self.x, scope, "logits")?;
            let (out, shape) = self.out_shape.host_mut::<T>(&self.out, scope, "probabilities")?;
            from_shape.check_same("logits", &shape, "probabilities")?;
            (out, shape, Some(from_shape.gathered(from)))
        };
        let inputs = self.inputs.with_mask(self.inputs.without_bias(scope)?, scope)?;
        let rows = shape.rows()?;
        let lse = self.lse.lend_some::<f32>(scope, "lse", rows)?;
        let values = self.inputs.on_host(inputs, &shape, scope, |inputs| match from {
            None => Ok(softmax.apply(x, &shape, inputs)?),
            Some(mut values) => {
                let whole = Logits::bhqk(shape.batch, shape.heads, shape.queries, shape.keys);
                let lse = softmax.apply(&mut values, &whole, inputs)?;
                shape.scatter(&values, x);
                Ok(lse)
            }
        })?;
        if let Some(lse) = lse {
            lse.copy_from_slice(&values);
        }
        Ok(())
    }
}

impl PosencSoftmaxGradCall {
    pub(crate) fn grad<T: Scalar>(&self, softmax: &Softmax, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (p, p_shape) = self.probabilities_shape.host::<T>(&self.probabilities, scope, "probabilities")?;
        let (grad, out, shape) = if self.out.data == 0 || (self.out.data == self.grad.data && self.in_place()) {
            let (grad, shape) = self.grad_shape.host_mut::<T>(&self.grad, scope, "grad")?;
            (shape.gathered(grad), grad, shape)
        } else {
            let (grad, shape) = self.grad_shape.host::<T>(&self.grad, scope, "grad")?;
            let (out, out_shape) = self.out_shape.host_mut::<T>(&self.out, scope, "logits_grad")?;
            shape.check_same("grad", &out_shape, "logits_grad")?;
            (shape.gathered(grad), out, out_shape)
        };
        p_shape.check_same("probabilities", &shape, "grad")?;
        let p = p_shape.gathered(p);
        let logits = match self.logits.data {
            0 if softmax.softcap.is_some() => {
                return Err(Error::Value("the gradient of a softcap needs the logits before the softmax".into()).into());
            }
            // Without a softcap their values do not matter.
            0 => p.clone(),
            _ => {
                let (logits, logits_shape) = self.logits_shape.host::<T>(&self.logits, scope, "logits")?;
                logits_shape.check_same("logits", &shape, "grad")?;
                logits_shape.gathered(logits)
            }
        };
        let whole = Logits::bhqk(shape.batch, shape.heads, shape.queries, shape.keys);
        let inputs = self.inputs.without_bias(scope)?;
        let bias_grad = self.bias_grad.lend_some::<T>(scope, "bias_grad", shape.span()?)?;
        let dots = self.dots.lend_some::<f32>(scope, "dots", shape.rows()?)?;
        let wanted = self
            .inputs
            .on_host(inputs, &whole, scope, |inputs| Ok(softmax.expect_grad(&p, &grad, &logits, &whole, inputs)?))?;
        let rounded = |values: &[f64]| values.iter().map(|value| T::from_f64(*value)).collect::<Vec<T>>();
        shape.scatter(&rounded(&wanted.logits), out);
        if let Some(bias_grad) = bias_grad {
            shape.scatter(&rounded(&wanted.bias), bias_grad);
        }
        if let Some(dots) = dots {
            dots.iter_mut().zip(&wanted.dots).for_each(|(place, dot)| put(place, *dot, false));
        }
        Ok(())
    }
}

impl PosencSoftmaxCall {
    fn in_place(&self) -> bool {
        self.shape.shape() == self.out_shape.shape()
    }
}

impl PosencSoftmaxGradCall {
    fn in_place(&self) -> bool {
        self.grad_shape.shape() == self.out_shape.shape()
    }
}

impl PosencSinkGradCall {
    /// The same for every element type.
    pub(crate) fn grad<T: Scalar>(&self, softmax: &Softmax, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (sinks, lse, dots): (&[f32], &[f32], &[f32]) =
            (self.sinks.read(scope, "sinks")?, self.lse.read(scope, "lse")?, self.dots.read(scope, "dots")?);
        let values = softmax.sink_grad(sinks, lse, dots, &self.shape.shape())?;
        let grad = self.grad.lend_exact::<f32>(scope, "grad", values.len())?;
        grad.iter_mut().zip(values).for_each(|(place, value)| put(place, value, false));
        Ok(())
    }
}

impl PosencRelativeValuesCall {
    pub(crate) fn add<T: Scalar>(&self, values: &RelativeValues, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let p = self.shape.host::<T>(&self.probabilities, scope, "probabilities")?;
        let table = Host::numbers(scope, "table", self.element, &self.table, &self.table_shape)?;
        let z = self.z_shape.host_mut::<T>(&self.z, scope, "z")?;
        Ok(values.add(p, table, z, &self.places.get(scope)?)?)
    }
}

impl PosencRelativeValuesGradCall {
    pub(crate) fn grad<T: Scalar>(&self, values: &RelativeValues, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let add = switch("add", self.add)?;
        let dz = self.dz_shape.host::<T>(&self.dz, scope, "dz")?;
        let table = Host::numbers(scope, "table", self.element, &self.table, &self.table_shape)?;
        let (dp, shape) = self.dp_shape.host_mut::<T>(&self.dp, scope, "dp")?;
        // Their own gradient does not depend on the probabilities.
        let p = vec![T::from_f64(0.0); shape.span()?];
        let grad = values.grad((&p, shape), table, dz, &self.places.get(scope)?)?;
        for at in shape.starts().flat_map(|at| at..at + shape.keys) {
            put(&mut dp[at], grad.p[at], add);
        }
        Ok(())
    }
}

/// The table of relative values whose gradient is wanted.
#[derive(Clone)]
pub(crate) struct HostTableGrad {
    pub(crate) values: RelativeValues,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

impl Spec for HostTableGrad {
    fn checked(&self) -> Result<(), Failure> {
        self.values.check()?;
        let (heads, dim) = (self.heads, self.dim);
        if heads == 0 || dim == 0 {
            let text = format!("the table has {heads} heads of {dim} channels, both must be at least 1");
            return Err(Error::Value(text).into());
        }
        few("gradient values", &[heads, self.values.index.entries, dim])
    }
}

impl HostTableGrad {
    /// Number of gradient values.
    pub(crate) fn len(&self) -> usize {
        self.heads * self.values.index.entries * self.dim
    }
}

impl PosencRelativeTableGradCall {
    pub(crate) fn table_grad<T: Scalar>(&self, of: &HostTableGrad, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let p = self.shape.host::<T>(&self.probabilities, scope, "probabilities")?;
        let dz = self.dz_shape.host::<T>(&self.dz, scope, "dz")?;
        let (heads, dim) = (p.1.heads, dz.1.dim);
        if (of.heads != 1 && of.heads != heads) || of.dim != dim {
            let planned = format!("the table was planned with {} of {}", of.heads, of.dim);
            return Err(Error::Value(format!("the call has {heads} heads of {dim} channels, {planned}")).into());
        }
        // The gradient does not depend on the table.
        let (table, entries) = (vec![0.0; of.len()], of.values.index.entries);
        let numbers = Numbers::rows(1, of.heads, entries, of.dim);
        let grad = of.values.grad(p, (&table, numbers), dz, &self.places.get(scope)?)?;
        at_least("out", self.out.len as usize, of.len())?;
        let out = self.out.lend_exact::<f32>(scope, "out", of.len())?;
        out.iter_mut().zip(grad.table).for_each(|(place, value)| put(place, value, false));
        Ok(())
    }
}

/// Attention outputs put together.
#[derive(Clone, Copy)]
pub(crate) struct HostMerge;

impl HostMerge {
    pub(crate) fn plan<T: Scalar>(self, gpu: &Gpu) -> posenc::Result<MergePlan<T>> {
        MergePlan::new(gpu)
    }
}

impl Spec for HostMerge {
    fn checked(&self) -> Result<(), Failure> {
        Ok(())
    }
}

/// A state on the host.
type HostState<'a, T> = State<(&'a [T], Heads), (&'a [f32], Numbers)>;

impl PosencState {
    fn host<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Host>,
        [name, lse_name]: [&'static str; 2],
    ) -> Result<HostState<'a, T>, Failure> {
        let out = self.heads.host(&self.out, scope, name)?;
        Ok(State { out, lse: self.lse_shape.host(&self.lse, scope, lse_name)? })
    }

    /// Writes log-sum-exps, or gradients of them, that are `[batch, heads, tokens]`.
    fn put_rows(
        &self,
        scope: &Scope<'_, Host>,
        name: &'static str,
        sizes: &Heads,
        rows: &[f64],
    ) -> Result<(), Failure> {
        let (out, shape) = self.lse_shape.host_mut::<f32>(&self.lse, scope, name)?;
        let of = Numbers::rows(sizes.batch, sizes.heads, sizes.tokens, 1);
        of.check_same(name, &shape, "a")?;
        for (index, row) in rows.iter().enumerate() {
            let (batch, rest) = (index / (sizes.heads * sizes.tokens), index % (sizes.heads * sizes.tokens));
            out[shape.index(batch, rest / sizes.tokens, rest % sizes.tokens, 0)] = *row as f32;
        }
        Ok(())
    }

    /// Writes the elements of a tensor whose values lie as those of `from` do.
    fn put_elements<T: Scalar>(
        &self,
        scope: &Scope<'_, Host>,
        name: &'static str,
        from: &Heads,
        values: &[f64],
    ) -> Result<(), Failure> {
        let (out, shape) = self.heads.host_mut::<T>(&self.out, scope, name)?;
        from.check_same("a", &shape, name)?;
        for batch in 0..if shape.tokens == 0 { 0 } else { shape.batch } {
            for (token, head) in (0..shape.tokens).flat_map(|token| (0..shape.heads).map(move |head| (token, head))) {
                let at = from.index(batch, token, head, 0);
                let places = &mut out[shape.index(batch, token, head, 0)..][..shape.dim];
                places.iter_mut().zip(&values[at..]).for_each(|(place, value)| put(place, *value, false));
            }
        }
        Ok(())
    }
}

impl PosencMergeCall {
    pub(crate) fn merge<T: Scalar>(&self, _: &HostMerge, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let b = self.b.host::<T>(scope, ["b", "b_lse"])?;
        let in_place = self.result.out.data == 0;
        let sizes = self.a.heads.shape();
        let expected = if in_place {
            // What is written is read first: in a scope of its own, which is gone when it is written.
            let (mut slots, mut terms) = (slots::<Host>(), term_slots::<Host>());
            merge_expect(self.a.host::<T>(&Scope::new(&mut slots, &mut terms), ["a", "a_lse"])?, b)?
        } else {
            merge_expect(self.a.host::<T>(scope, ["a", "a_lse"])?, b)?
        };
        let (to, names) = if in_place { (&self.a, ["a", "a_lse"]) } else { (&self.result, ["out", "lse"]) };
        to.put_elements::<T>(scope, names[0], &sizes, &expected.out.want)?;
        to.put_rows(scope, names[1], &sizes, &expected.lse.want)
    }
}

impl PosencMergeGradCall {
    pub(crate) fn grad<T: Scalar>(&self, _: &HostMerge, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (a, b) = (self.a.host::<T>(scope, ["a", "a_lse"])?, self.b.host::<T>(scope, ["b", "b_lse"])?);
        let grad = self.grad.heads.host::<T>(&self.grad.out, scope, "grad")?;
        let sizes = a.out.1;
        let rows = Numbers::rows(sizes.batch, sizes.heads, sizes.tokens, 1);
        let lse_grad = if self.grad.lse.data == 0 {
            None
        } else {
            let (values, shape) = self.grad.lse_shape.host::<f32>(&self.grad.lse, scope, "lse_grad")?;
            rows.check_same("a", &shape, "lse_grad")?;
            let of = |index: usize| {
                let (batch, rest) = (index / (sizes.heads * sizes.tokens), index % (sizes.heads * sizes.tokens));
                values[shape.index(batch, rest / sizes.tokens, rest % sizes.tokens, 0)]
            };
            Some((0..sizes.batch * sizes.heads * sizes.tokens).map(of).collect::<Vec<f32>>())
        };
        let expected = merge_grad_expect(a, b, grad, lse_grad.as_deref())?;
        let parts =
            [(&self.a_grad, ["a_grad", "a_lse_grad"], a.out.1), (&self.b_grad, ["b_grad", "b_lse_grad"], b.out.1)];
        for (i, (to, names, from)) in parts.into_iter().enumerate() {
            to.put_elements::<T>(scope, names[0], &from, &expected.out[i].want)?;
            to.put_rows(scope, names[1], &sizes, &expected.lse[i].want)?;
        }
        Ok(())
    }
}
