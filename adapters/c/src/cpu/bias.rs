//! A number is added to the attention logit, on the host.

use std::ops::RangeInclusive;

use posenc::bias::{
    DistanceGrad, GateSums, Index, Kerple, MOST_TERMS, Numbers, ProductInputs, RelativeProducts, Slopes, Swin2Bias,
    Term, TermGrad, TermInputs, Terms, Toeplitz,
};
use posenc::{Bias, BiasPlan, DistanceGradPlan, Error, Fire, Gpu, Host, Logits, Place, Places, Scalar, Shape, T5Bias};

use super::{Rows, at_least, few, put};
use crate::memory::Scope;
use crate::{
    Failure, PosencBiasCall, PosencBuffer, PosencDistanceGradCall, PosencGateSumsCall, PosencGateSumsGradCall,
    PosencRelativeProductsCall, PosencSwin2Call, PosencSwin2GradCall, PosencSwin2Weights, PosencTermGradCall, Spec,
    factor, switch, term_inputs,
};

/// What a bias is.
#[derive(Clone)]
pub(crate) enum Form {
    Slopes(Slopes),
    Row(Toeplitz),
    /// T5 whose table is still to come, and its heads
    T5(T5Bias, usize),
    Fire(Fire, usize),
    Terms(Vec<Term>),
}

/// A bias as the header describes it, and as the CPU computes it.
#[derive(Clone)]
pub(crate) struct HostBias {
    form: Form,
    /// the row of a T5 table that is still to come, zeros until then
    table: Option<Toeplitz>,
    key_only: bool,
}

impl Spec for HostBias {
    fn checked(&self) -> Result<(), Failure> {
        Ok(match &self.form {
            Form::Slopes(_) => Ok(()),
            Form::Row(row) => row.check(),
            Form::T5(t5, _) => t5.check(),
            Form::Fire(fire, reach) if *reach >= 1 << 30 => {
                fire.check().and(Err(Error::Value(format!("FIRE's reach is {reach}, it must be below 2^30"))))
            }
            Form::Fire(fire, _) => fire.check(),
            Form::Terms(terms) if terms.is_empty() || terms.len() > MOST_TERMS => {
                Err(Error::Value(format!("a bias has {} terms, there must be 1 to {MOST_TERMS}", terms.len())))
            }
            Form::Terms(terms) => terms.iter().try_for_each(Term::check),
        }?)
    }
}

impl HostBias {
    pub(crate) fn new(form: Form, key_only: u32) -> Result<Self, Failure> {
        let table = match form {
            Form::T5(t5, heads) => {
                let n = t5.buckets.checked_mul(heads).filter(|&n| n <= 1 << 30);
                let too_many = || Failure::argument(format!("{} buckets of {heads} heads are too many", t5.buckets));
                Some(t5.row(&vec![0.0; n.ok_or_else(too_many)?], heads)?)
            }
            _ => None,
        };
        Ok(Self { form, table, key_only: switch("key_only", key_only)? })
    }

    pub(crate) fn plan<T: Scalar>(&self, gpu: &Gpu) -> posenc::Result<BiasPlan<T>> {
        let bias = match &self.form {
            Form::Slopes(slopes) => Bias::Slopes(slopes),
            Form::Row(row) => Bias::Toeplitz(row),
            Form::T5(t5, heads) => return BiasPlan::t5(gpu, *t5, *heads),
            Form::Fire(fire, reach) => return BiasPlan::fire(gpu, fire, *reach),
            Form::Terms(terms) => return BiasPlan::new(gpu, &terms[..]),
        };
        if self.key_only { BiasPlan::key_only(gpu, bias) } else { BiasPlan::new(gpu, bias) }
    }

    /// Takes a T5 table, `[buckets, heads]`.
    pub(crate) fn set_table(&mut self, table: &[f32]) -> Result<(), Failure> {
        let (Form::T5(t5, heads), Some(row)) = (&self.form, &mut self.table) else {
            return Err(Error::Value("the plan of this bias has no T5 table".into()).into());
        };
        *row = t5.row(table, *heads)?;
        Ok(())
    }

    /// The numbers in host memory.
    pub(crate) fn numbers(&mut self, which: u32) -> Result<PosencBuffer, Failure> {
        let numbers = match (which, &mut self.form, &mut self.table) {
            (0, Form::Row(row), _) | (0, _, Some(row)) => &mut row.values,
            (0, Form::Slopes(slopes), _) => &mut slopes.left,
            (1, Form::Slopes(slopes), _) => &mut slopes.right,
            _ => return Err(Failure::argument(format!("the bias has no numbers {which}"))),
        };
        let data = numbers.as_mut_ptr().expose_provenance() as u64;
        Ok(PosencBuffer { data, len: numbers.len() as u64 })
    }

    /// Runs `body` with this bias at the places of a call. A number for each key becomes a dense bias that all queries share.
    pub(super) fn with<R>(
        &self,
        inputs: &[TermInputs<'_>],
        shape: &Logits,
        places: &Places<&[i32]>,
        body: impl FnOnce(Bias<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let of_terms = matches!(self.form, Form::Terms(_));
        if !of_terms && !inputs.is_empty() {
            return Err(Error::Value("the call brings inputs of terms, the bias has none".into()).into());
        }
        let bias = match (&self.form, &self.table) {
            (_, Some(row)) | (Form::Row(row), _) => Bias::Toeplitz(row),
            (Form::Slopes(slopes), _) => Bias::Slopes(slopes),
            (Form::Fire(fire, _), _) => Bias::Fire(fire),
            (Form::Terms(terms), _) => Bias::Terms(Terms { terms, inputs }),
            (Form::T5(..), None) => unreachable!("made with its row"),
        };
        if !self.key_only {
            return body(bias);
        }
        places.check(shape)?;
        let heads = match bias {
            Bias::Toeplitz(row) => {
                self.check_reach(row, shape, places)?;
                row.heads
            }
            Bias::Slopes(slopes) => slopes.heads,
            _ => 0,
        };
        if heads != shape.heads {
            return Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", shape.heads)).into());
        }
        let mut values = Vec::new();
        for batch in 0..shape.batch {
            for head in 0..heads {
                values.extend((0..shape.keys).map(|key| bias.at(batch, head, 0, places.key(shape, batch, key)) as f32));
            }
        }
        let numbers = Numbers::rows(shape.batch, heads, 1, shape.keys);
        let inputs = [TermInputs::of((&values[..], numbers))];
        body(Bias::Terms(Terms { terms: &[Term::table(Index::Whole)], inputs: &inputs }))
    }

    /// Refuses keys that a row lacks.
    fn check_reach(&self, row: &Toeplitz, shape: &Logits, places: &Places<&[i32]>) -> Result<(), Failure> {
        let (first, last) = (row.first, row.first + row.distances() as i64 - 1);
        match places.keys {
            Place::Counted(key) if !row.saturates && (key < first || key + shape.keys as i64 - 1 > last) => {
                let keys = shape.keys;
                let text = format!("the call has {keys} keys from {key}, the row of the bias holds {first} to {last}");
                Err(Error::Value(text).into())
            }
            _ => Ok(()),
        }
    }
}

/// Gates of a call, one for each row.
fn gates<'a>(gates: &PosencBuffer, shape: &Logits, scope: &Scope<'a, Host>) -> Result<Option<&'a [f32]>, Failure> {
    let Some(gates) = gates.read_some::<_, f32>(scope, "gates")? else { return Ok(None) };
    at_least("gates", gates.len(), shape.rows()?)?;
    Ok(Some(gates))
}

impl PosencBiasCall {
    pub(crate) fn write<T: Scalar>(&self, bias: &HostBias, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        self.put::<T>(bias, scope, false, "out")
    }

    pub(crate) fn add<T: Scalar>(&self, bias: &HostBias, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        self.put::<T>(bias, scope, true, "logits")
    }

    fn put<T: Scalar>(
        &self,
        bias: &HostBias,
        scope: &Scope<'_, Host>,
        add: bool,
        name: &'static str,
    ) -> Result<(), Failure> {
        let (x, shape) = self.shape.host_mut::<T>(&self.x, scope, name)?;
        let (places, gates) = (self.places.get(scope)?, gates(&self.gates, &shape, scope)?);
        // SAFETY: the header's rules promise as many terms.
        let terms = unsafe { term_inputs(self.terms, self.term_count, scope) }?;
        bias.with(terms, &shape, &places, |bias| {
            let Some(gates) = gates else {
                return Ok(if add { bias.add(x, &shape, &places) } else { bias.write(x, &shape, &places) }?);
            };
            let want = bias.expect(&shape, &places)?.want;
            for (at, gate) in shape.starts().zip(gates) {
                for (place, value) in x[at..at + shape.keys].iter_mut().zip(&want[at..]) {
                    // What separates packed sequences has no gate.
                    let gated = if *value == f64::NEG_INFINITY { *value } else { value * f64::from(*gate) };
                    put(place, gated, add);
                }
            }
            Ok(())
        })
    }
}

/// A gradient of logits, multiplied by gates if there are any.
struct Gated<'a, T> {
    grad: &'a [T],
    gated: Option<Vec<f32>>,
    shape: Logits,
}

impl<'a, T: Scalar> Gated<'a, T> {
    fn new((grad, shape): (&'a [T], Logits), by: &PosencBuffer, scope: &Scope<'_, Host>) -> Result<Self, Failure> {
        let mut gated = None;
        if let Some(gates) = gates(by, &shape, scope)? {
            let mut values = vec![0.0; grad.len()];
            for (at, gate) in shape.starts().zip(gates) {
                for index in at..at + shape.keys {
                    values[index] = grad[index].to_f64() as f32 * gate;
                }
            }
            gated = Some(values);
        }
        Ok(Self { grad, gated, shape })
    }
}

/// Runs one expression on a gradient, gated or not.
macro_rules! on_grad {
    ($gated:expr, $grad:ident => $value:expr) => {
        match &$gated.gated {
            Some($grad) => $value,
            None => {
                let $grad = $gated.grad;
                $value
            }
        }
    };
}

/// The parameters of a distance bias whose gradient is wanted.
#[derive(Clone)]
pub(crate) enum HostDistanceGrad {
    T5(T5Bias, usize),
    Slopes(usize),
    Row(usize, RangeInclusive<i64>),
    Kerple(Kerple, RangeInclusive<i64>),
}

impl Spec for HostDistanceGrad {
    fn checked(&self) -> Result<(), Failure> {
        match self {
            Self::T5(t5, _) => t5.check(),
            Self::Kerple(kerple, _) => kerple.check(),
            Self::Slopes(_) | Self::Row(..) => Ok(()),
        }?;
        few("gradient values", &[self.heads(), self.of_head()])
    }
}

impl HostDistanceGrad {
    pub(crate) fn plan<T: Scalar>(&self, gpu: &Gpu, max_shape: Logits) -> posenc::Result<DistanceGradPlan<T>> {
        match self {
            Self::T5(t5, heads) => DistanceGradPlan::t5(gpu, *t5, *heads, max_shape),
            Self::Slopes(heads) => DistanceGradPlan::slopes(gpu, *heads, max_shape),
            Self::Row(heads, distances) => DistanceGradPlan::row(gpu, *heads, distances.clone(), max_shape),
            Self::Kerple(kerple, distances) => DistanceGradPlan::kerple(gpu, kerple, distances.clone(), max_shape),
        }
    }

    fn heads(&self) -> usize {
        match self {
            Self::T5(_, heads) | Self::Slopes(heads) | Self::Row(heads, _) => *heads,
            Self::Kerple(kerple, _) => kerple.p.len(),
        }
    }

    /// Gradient values of a head.
    fn of_head(&self) -> usize {
        match self {
            Self::T5(t5, _) => t5.buckets,
            Self::Slopes(_) | Self::Kerple(..) => 2,
            Self::Row(_, distances) => (distances.end() - distances.start() + 1) as usize,
        }
    }

    /// Number of gradient values.
    pub(crate) fn len(&self) -> usize {
        self.heads() * self.of_head()
    }
}

/// From the smallest distance of a call to the largest.
fn distances(shape: &Logits, places: &Places<&[i32]>) -> Result<RangeInclusive<i64>, Failure> {
    places.check(shape)?;
    let (mut least, mut most) = (0, 0);
    for batch in 0..shape.batch {
        let ends = |positions: &mut dyn Iterator<Item = i64>| {
            positions.fold((i64::MAX, i64::MIN), |(least, most), at| (least.min(at), most.max(at)))
        };
        let queries = ends(&mut (0..shape.queries).map(|query| places.query(shape, batch, query)));
        let keys = ends(&mut (0..shape.keys).map(|key| places.key(shape, batch, key)));
        if queries.0 <= queries.1 && keys.0 <= keys.1 {
            least = least.min(keys.0 - queries.1);
            most = most.max(keys.1 - queries.0);
        }
    }
    Ok(least..=most)
}

impl PosencDistanceGradCall {
    pub(crate) fn distance_grad<T: Scalar>(
        &self,
        of: &HostDistanceGrad,
        scope: &Scope<'_, Host>,
    ) -> Result<(), Failure> {
        let factor = factor("factor", self.factor)?;
        let grad = Gated::new(self.shape.host::<T>(&self.grad, scope, "grad")?, &self.gates, scope)?;
        let (places, shape) = (self.places.get(scope)?, grad.shape);
        if of.heads() != shape.heads {
            let text = format!("the bias has {} heads, the logits have {}", of.heads(), shape.heads);
            return Err(Error::Value(text).into());
        }
        let range = match of {
            HostDistanceGrad::T5(t5, _) => t5.distances(),
            HostDistanceGrad::Slopes(_) => distances(&shape, &places)?,
            HostDistanceGrad::Row(_, range) | HostDistanceGrad::Kerple(_, range) => range.clone(),
        };
        let sums = on_grad!(grad, grad => DistanceGrad::new(grad, &shape, &places, range))?;
        let values = match of {
            HostDistanceGrad::T5(t5, _) => t5.grad(&sums)?,
            HostDistanceGrad::Slopes(_) => {
                let of = Slopes::grad(&sums);
                [of.left, of.right].concat()
            }
            HostDistanceGrad::Row(..) => sums.values,
            HostDistanceGrad::Kerple(kerple, _) => {
                let of = kerple.grad(&sums)?;
                [of.p, of.a].concat()
            }
        };
        write_all(&values, f64::from(factor), &self.out, scope)
    }

    pub(crate) fn fire_grad<T: Scalar>(&self, fire: &Fire, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let factor = factor("factor", self.factor)?;
        let grad = Gated::new(self.shape.host::<T>(&self.grad, scope, "grad")?, &self.gates, scope)?;
        let places = self.places.get(scope)?;
        let values = on_grad!(grad, x => fire.grad(x, &grad.shape, &places))?.flat();
        write_all(&values, f64::from(factor), &self.out, scope)
    }
}

/// Number of gradient values of FIRE.
pub(crate) fn fire_grad_len(fire: &Fire) -> usize {
    2 + 2 * fire.in_weight.len() + fire.out_weight.len() + fire.out_bias.len()
}

/// Writes numbers, times a factor, into f32.
fn write_all(values: &[f64], factor: f64, out: &PosencBuffer, scope: &Scope<'_, Host>) -> Result<(), Failure> {
    let out = out.lend_exact::<f32>(scope, "out", values.len())?;
    out.iter_mut().zip(values).for_each(|(place, value)| put(place, value * factor, false));
    Ok(())
}

/// Where the elements of an array lie.
fn each(numbers: &Numbers) -> impl Iterator<Item = usize> + use<> {
    let of = *numbers;
    (0..of.batch).flat_map(move |b| {
        (0..of.heads)
            .flat_map(move |h| (0..of.rows).flat_map(move |r| (0..of.entries).map(move |e| of.index(b, h, r, e))))
    })
}

impl Spec for Term {
    fn checked(&self) -> Result<(), Failure> {
        self.check()?;
        Ok(self.check_has_numbers()?)
    }
}

impl PosencTermGradCall {
    pub(crate) fn apply<T: Scalar>(&self, term: &Term, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        self.sums::<T>(scope, |grad, shape, places, inputs, numbers| match grad {
            Ok(grad) => term.grad::<T>(grad, shape, places, inputs, numbers),
            Err(gated) => term.grad::<f32>(gated, shape, places, inputs, numbers),
        })
    }

    pub(crate) fn apply_keys<T: Scalar>(&self, term: &Term, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        self.sums::<T>(scope, |grad, shape, places, inputs, numbers| match grad {
            Ok(grad) => term.key_grad::<T>(grad, shape, places, inputs, numbers),
            Err(gated) => term.key_grad::<f32>(gated, shape, places, inputs, numbers),
        })
    }

    fn sums<T: Scalar>(
        &self,
        scope: &Scope<'_, Host>,
        sums: impl FnOnce(
            Result<&[T], &[f32]>,
            &Logits,
            &Places<&[i32]>,
            &TermInputs<'_>,
            &Numbers,
        ) -> posenc::Result<TermGrad>,
    ) -> Result<(), Failure> {
        let factor = factor("factor", self.factor)?;
        let grad = Gated::new(self.shape.host::<T>(&self.grad, scope, "grad")?, &self.gates, scope)?;
        let (places, numbers) = (self.places.get(scope)?, self.out_shape.shape());
        // SAFETY: the inputs are in this struct.
        let inputs = unsafe { term_inputs(&self.inputs, 1, scope) }?;
        let of = grad.gated.as_deref().map_or(Ok(grad.grad), Err);
        let values = sums(of, &grad.shape, &places, &inputs[0], &numbers)?.values;
        let (out, _) = self.out_shape.host_mut::<f32>(&self.out, scope, "out")?;
        for at in each(&numbers) {
            put(&mut out[at], values[at] * f64::from(factor), false);
        }
        Ok(())
    }
}

impl PosencRelativeProductsCall {
    pub(crate) fn add<T: Scalar>(&self, of: &RelativeProducts, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, shape) = self.shape.host_mut::<T>(&self.x, scope, "x")?;
        Ok(of.add(x, &shape, &self.inputs(scope)?, &self.places.get(scope)?)?)
    }

    pub(crate) fn write<T: Scalar>(&self, of: &RelativeProducts, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, shape) = self.shape.host_mut::<T>(&self.x, scope, "x")?;
        Ok(of.write(x, &shape, &self.inputs(scope)?, &self.places.get(scope)?)?)
    }

    fn inputs<'a, T: Scalar>(&self, scope: &Scope<'a, Host>) -> Result<ProductInputs<'a, T>, Failure> {
        Ok(ProductInputs {
            states: self.states_shape.host(&self.states, scope, "states")?,
            bias: self.bias.read_some(scope, "bias")?,
            table: self.table_shape.host(&self.table, scope, "table")?,
        })
    }
}

impl PosencSwin2Call {
    pub(crate) fn write<T: Scalar>(&self, of: &Swin2Bias, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let values = of.table::<T>(&self.weights.get(scope)?)?;
        let table = self.table.lend_exact::<f32>(scope, "table", values.len())?;
        table.iter_mut().zip(values).for_each(|(place, value)| put(place, value, false));
        Ok(())
    }
}

impl PosencSwin2GradCall {
    pub(crate) fn grad<T: Scalar>(&self, of: &Swin2Bias, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let table_grad: &[f32] = self.table_grad.read(scope, "table_grad")?;
        let grad = of.grad::<T>(&self.weights.get(scope)?, table_grad)?;
        let PosencSwin2Weights { w1, b1, w2, b2 } = &self.out;
        let outs = [
            Some((w1.lend_exact::<f32>(scope, "w1_grad", grad.w1.len())?, grad.w1)),
            Some((b1.lend_exact::<f32>(scope, "b1_grad", grad.b1.len())?, grad.b1)),
            Some((w2.lend_exact::<f32>(scope, "w2_grad", grad.w2.len())?, grad.w2)),
            b2.lend_some::<f32>(scope, "b2_grad", grad.b2.len())?.map(|b2| (b2, grad.b2)),
        ];
        for (out, values) in outs.into_iter().flatten() {
            out.iter_mut().zip(values).for_each(|(place, value)| put(place, value, false));
        }
        Ok(())
    }
}

impl Spec for GateSums {
    fn checked(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl PosencGateSumsCall {
    /// The same for every element type: gates say their own.
    pub(crate) fn write<T: Scalar>(&self, sums: &GateSums, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let gates = scope.floats("gates", self.element, &self.gates)?;
        let (out, shape) = self.out_shape.host_mut::<f32>(&self.out, scope, "out")?;
        let state = if self.state.data == 0 { None } else { Some(self.state.lend_plain::<u64>(scope, "state")?) };
        Ok(sums.write((gates, self.gates_shape.shape()), (out, shape), state)?)
    }
}

impl PosencGateSumsGradCall {
    /// The same for every element type: gates say their own.
    pub(crate) fn grad<T: Scalar>(&self, sums: &GateSums, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let gates = scope.floats("gates", self.element, &self.gates)?;
        let query_grad = self.query_grad_shape.host::<f32>(&self.query_grad, scope, "query_grad")?;
        let key_grad = self.key_grad_shape.host::<f32>(&self.key_grad, scope, "key_grad")?;
        let (out, shape) = self.grad_shape.host_mut::<f32>(&self.grad, scope, "grad")?;
        let gates_shape = self.gates_shape.shape();
        shape.check_same("grad", &gates_shape, "gates")?;
        let (values, _) = sums.grad((gates, gates_shape), query_grad, key_grad)?;
        for (at, value) in each(&shape).zip(values) {
            put(&mut out[at], value, false);
        }
        Ok(())
    }
}
