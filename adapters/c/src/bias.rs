//! A number is added to the attention logit: biases of distance, written and added, and their gradients.

use std::any::Any;
use std::ops::RangeInclusive;

use cudarc::driver::{CudaViewMut, DevicePtr, DeviceSlice};
use posenc::bias::{
    Alibi, BiasInputs, BiasPlan, DistanceGradPlan, Fire, FireGradPlan, Kerple, KerpleKind, KeyOnly, Sandwich, Sides,
    Slopes, T5Bias, Term, Toeplitz,
};
use posenc::{Device, Host, Scalar};

use crate::cpu::{Form, HostBias, HostDistanceGrad, fire_grad_len};
use crate::header::{Coded, header};
use crate::memory::{Scope, slots, term_slots};
use crate::{
    Failure, OfElement, Plan, PosencBuffer, PosencGpu, PosencLogits, PosencPlaces, PosencStatus, PosencTerm,
    PosencTermInputs, borrow, borrow_mut, each, factor, give, guarded, list, nested, slice, switch, term_inputs,
    versioned,
};

header! {{}
    codes Sides {
        POSENC_SIDES_SYMMETRIC = 0 => Symmetric: "Keys of the future: `-slope * |distance|` on both sides.",
        POSENC_SIDES_SIGNED = 1 => Signed: "`slope * distance`: the future is rewarded.",
        POSENC_SIDES_HALVES = 2 => Halves: "The first half of the heads sees the past alone, the second half the future \
            alone.",
    }
    codes KeyOnly {
        POSENC_KEY_ONLY_BLOOM = 0 => Bloom: "A library's own ALiBi, a number per key: Hugging Face's BLOOM.",
        POSENC_KEY_ONLY_MPT = 1 => Mpt: "Hugging Face's MPT and llm-foundry",
        POSENC_KEY_ONLY_FLASH_ATTENTION = 2 => FlashAttention: "flash-attention's causal kernels",
        POSENC_KEY_ONLY_FALCON = 3 => Falcon: "Falcon-RW",
    }
    codes KerpleKind {
        POSENC_KERPLE_LOG = 0 => Log: "KERPLE's kernels: `-p * ln(1 + a * |distance|)`.",
        POSENC_KERPLE_POWER = 1 => Power: "`-a * |distance|^p`",
    }

    /// ALiBi: the slopes of some of a model's heads.
    versioned struct PosencAlibiSpec {
        total_heads: u64 => "heads of the whole model",
        first: u64 => "first head of this shard",
        heads: u64 => "heads of this shard",
        max_bias: f64 => "8 in the paper",
        scale: f64 => "multiplies every slope: 1",
        sides: u32 => "`POSENC_SIDES_...`",
        key_only: u32 => "1: the key's position takes the place of the distance",
    }
    /// ALiBi as one library computes it, for keys from position 0 on.
    versioned struct PosencKeyOnlySpec {
        alibi: PosencAlibiSpec => "the slopes; `sides` and `key_only` are not read",
        library: u32 => "`POSENC_KEY_ONLY_...`",
        reserved: u32 => "0",
        keys: u64 => "the most keys of a call",
    }
    /// Slopes of the caller, one for the past and one for the future of each head.
    versioned struct PosencSlopesSpec {
        batch: u64 => "sequences with slopes of their own; 1: all share the same",
        heads: u64 => "heads",
        left: *const f32 => "`[batch, heads]` in host memory",
        right: *const f32 => "`[batch, heads]` in host memory; null: as `left`",
        key_only: u32 => "1: the key's position takes the place of the distance",
        reserved: u32 => "0",
    }
    /// T5: a number for each bucket of distances and each head.
    versioned struct PosencT5Spec {
        buckets: u64 => "32 in T5",
        max_distance: u64 => "the distance from which all share the last bucket: 128 in T5",
        heads: u64 => "heads",
        bidirectional: u32 => "1: the future has buckets of its own, as in an encoder",
        reserved: u32 => "0",
        table: *const f32 => "`[buckets, heads]` in host memory; null: zeros until `posenc_bias_set_table`",
    }
    /// Any law of distance: one row of numbers for each head.
    versioned struct PosencRowSpec {
        heads: u64 => "heads",
        first: i64 => "the distance (key - query) of the first number",
        distances: u64 => "numbers of each head",
        values: *const f32 => "`[heads, distances]` in host memory; a gradient does not read them",
        saturates: u32 => "1: distances outside take the number at the row's end",
        key_only: u32 => "1: the key's position takes the place of the distance",
    }
    /// KERPLE.
    versioned struct PosencKerpleSpec {
        kind: u32 => "`POSENC_KERPLE_...`",
        reserved: u32 => "0",
        heads: u64 => "heads",
        p: *const f64 => "`[heads]` in host memory",
        a: *const f64 => "`[heads]` in host memory",
        least: i64 => "the smallest distance of a call",
        most: i64 => "the largest distance of a call",
    }
    /// Sandwich.
    versioned struct PosencSandwichSpec {
        total_heads: u64 => "heads of the whole model",
        first: u64 => "first head of this shard",
        heads: u64 => "heads of this shard",
        width: u64 => "channels of the sinusoidal embedding: 128 in the paper",
        least: i64 => "the smallest distance of a call",
        most: i64 => "the largest distance of a call",
    }
    /// A sum of terms.
    versioned struct PosencTermsSpec {
        terms: *const PosencTerm => "`[count]` in host memory",
        count: u64 => "terms: 1 to 4",
    }
    /// FIRE.
    versioned struct PosencFireSpec {
        c: f64 => "stretches distances",
        threshold: f64 => "the position from which a query is normalised by its own",
        eps: f64 => "keeps the normaliser above 0",
        width: u64 => "inputs of the second layer",
        heads: u64 => "heads",
        in_weight: *const f64 => "`[width]` in host memory",
        in_bias: *const f64 => "`[width]` in host memory",
        out_weight: *const f64 => "`[heads, width]` in host memory",
        out_bias: *const f64 => "`[heads]` in host memory",
        reach: u64 => "larger positions and distances are taken as this one",
    }

    /// One call that writes or adds a bias.
    versioned struct PosencBiasCall {
        x: PosencBuffer => "written, or added to",
        shape: PosencLogits => "the shape of `x`",
        places: PosencPlaces => "positions of queries and keys",
        gates: PosencBuffer => "`[batch, heads, queries]` of f32, multiply the bias; or none",
        terms: *const PosencTermInputs => "what each term of a sum of terms reads, `[term_count]` in host memory",
        term_count: u64 => "as many as the bias has; 0 for other biases",
    }
    /// One call that takes a T5 table from the device.
    versioned struct PosencSetTableCall {
        table: PosencBuffer => "`[buckets, heads]` of f32",
    }

    /// A bias on a device, for one element type of logits: written, added, or given to a softmax.
    plan PosencBias(BiasPlan, HostBias);
    /// Makes a plan of ALiBi: uploads the slopes and loads the kernels for `element`.
    new posenc_bias_alibi_new(spec: PosencAlibiSpec) -> PosencBias as BiasPlan::new, BiasPlan::key_only
        where bias = HostBias::new(Form::Slopes(spec.alibi()?.slopes()?), spec.key_only)?, |gpu| bias.plan(gpu);
    /// Makes a plan of ALiBi in a library's rounding.
    new posenc_bias_key_only_new(spec: PosencKeyOnlySpec) -> PosencBias as BiasPlan::key_only
        where bias = HostBias::new(Form::Row(spec.row()?), 1)?, |gpu| bias.plan(gpu);
    /// Makes a plan of slopes of the caller.
    new posenc_bias_slopes_new(spec: PosencSlopesSpec) -> PosencBias as BiasPlan::new, BiasPlan::key_only
        where bias = HostBias::new(Form::Slopes(spec.slopes()?), spec.key_only)?, |gpu| bias.plan(gpu);
    /// Makes a plan of T5's bias.
    new posenc_bias_t5_new(spec: PosencT5Spec) -> PosencBias as BiasPlan::new, BiasPlan::t5
        where bias = HostBias::new(spec.form()?, 0)?, |gpu| bias.plan(gpu);
    /// Makes a plan of any law of distance.
    new posenc_bias_row_new(spec: PosencRowSpec) -> PosencBias as BiasPlan::new, BiasPlan::key_only
        where bias = HostBias::new(Form::Row(spec.row()?), spec.key_only)?, |gpu| bias.plan(gpu);
    /// Makes a plan of KERPLE's bias.
    new posenc_bias_kerple_new(spec: PosencKerpleSpec) -> PosencBias as BiasPlan::new
        where bias = HostBias::new(Form::Row(spec.kerple()?.row(spec.least..=spec.most)?), 0)?, |gpu| bias.plan(gpu);
    /// Makes a plan of Sandwich's bias.
    new posenc_bias_sandwich_new(spec: PosencSandwichSpec) -> PosencBias as BiasPlan::new
        where bias = HostBias::new(Form::Row(spec.sandwich().row(spec.least..=spec.most)?), 0)?, |gpu| bias.plan(gpu);
    /// Makes a plan of FIRE's bias.
    new posenc_bias_fire_new(spec: PosencFireSpec) -> PosencBias as BiasPlan::fire
        where bias = HostBias::new(Form::Fire(spec.fire()?, spec.reach as usize), 0)?, |gpu| bias.plan(gpu);
    /// Makes a plan of a sum of terms; a call brings what they read.
    new posenc_bias_terms_new(spec: PosencTermsSpec) -> PosencBias as BiasPlan::new
        where bias = HostBias::new(Form::Terms(spec.terms()?), 0)?, |gpu| bias.plan(gpu);
    on posenc_bias_on(bias: PosencBias) as BiasPlan::on;
    free posenc_bias_free(bias: PosencBias);
    /// Writes the bias of every query and key, in one kernel.
    verb posenc_bias_write(bias: PosencBias, call: PosencBiasCall) as BiasPlan::write where cpu = write, |plan, scope| {
        plan.write(call.shape.of_mut(&call.x, scope, "out")?, call.inputs(scope)?)
    };
    /// Adds the bias to logits in place, in one kernel.
    verb posenc_bias_add(bias: PosencBias, call: PosencBiasCall) as BiasPlan::add where cpu = add, |plan, scope| {
        plan.add(call.shape.of_mut(&call.x, scope, "logits")?, call.inputs(scope)?)
    };
    /// Takes a new T5 table from the device, in one kernel; the plan was made without one. No other call uses `bias` at the
    /// same time.
    fn posenc_bias_set_table(bias: *mut PosencBias, call: *const PosencSetTableCall) -> PosencStatus as BiasPlan::set_table {
        guarded(|| {
            let call = versioned("call", call)?;
            match &mut borrow_mut("bias", bias)?.plan {
                Plan::Gpu(plan) => {
                    let (mut slots, mut terms) = (slots::<Device>(), term_slots::<Device>());
                    let table = call.table.read(&Scope::<Device>::new(&mut slots, &mut terms), "table")?;
                    Ok(each!(plan, plan => plan.set_table(table))?)
                }
                Plan::Cpu { spec, .. } => {
                    let (mut slots, mut terms) = (slots::<Host>(), term_slots::<Host>());
                    spec.set_table(call.table.read(&Scope::<Host>::new(&mut slots, &mut terms), "table")?)
                }
            }
        })
    }
    /// Gives the numbers of a plan on the device, f32, to be read or trained in place: 0 the row `[heads, distances]` or the
    /// slopes of the past, 1 those of the future. They live as long as the plan. No other call uses `bias` at the same time.
    fn posenc_bias_numbers(bias: *mut PosencBias, which: u32, out: *mut PosencBuffer) -> PosencStatus
        as BiasPlan::slopes_mut, BiasPlan::row_mut {
        give(out, || {
            match &mut borrow_mut("bias", bias)?.plan {
                Plan::Gpu(plan) => each!(plan, plan => numbers(plan, which)),
                Plan::Cpu { spec, .. } => spec.numbers(which),
            }
        })
    }

    /// The heads whose slopes have a gradient.
    versioned struct PosencSlopesGradSpec {
        heads: u64 => "heads",
    }
    /// One call for the gradient of a bias's parameters.
    versioned struct PosencDistanceGradCall {
        grad: PosencBuffer => "the gradient of every logit after the bias",
        shape: PosencLogits => "its shape",
        places: PosencPlaces => "positions of queries and keys",
        gates: PosencBuffer => "`[batch, heads, queries]` of f32: those that multiplied the bias; or none",
        out: PosencBuffer => "f32, written, as many as `..._len` says: T5 `[buckets, heads]`, slopes and KERPLE `[2, \
            heads]`, a row `[heads, distances]`, FIRE `c`, `threshold` and its four layers in their order",
        factor: f32 => "multiplies the sums: 1",
        reserved: u32 => "0",
    }

    /// Gradients of a distance bias on a device, for one element type of logits. Its calls follow one another in the stream.
    plan PosencDistanceGrad(DistanceGradPlan, HostDistanceGrad);
    /// Makes a plan for T5's table; `max_shape` is the shape of the largest call.
    new posenc_distance_grad_t5_new(spec: PosencT5Spec, max_shape: PosencLogits) -> PosencDistanceGrad as DistanceGradPlan::t5
        where grad = HostDistanceGrad::T5(spec.t5()?, spec.heads as usize), |gpu| grad.plan(gpu, max_shape.shape());
    /// Makes a plan for slopes; `max_shape` is the shape of the largest call.
    new posenc_distance_grad_slopes_new(spec: PosencSlopesGradSpec, max_shape: PosencLogits) -> PosencDistanceGrad
        as DistanceGradPlan::slopes
        where grad = HostDistanceGrad::Slopes(spec.heads as usize), |gpu| grad.plan(gpu, max_shape.shape());
    /// Makes a plan for a row; `max_shape` is the shape of the largest call. The row's numbers are not read.
    new posenc_distance_grad_row_new(spec: PosencRowSpec, max_shape: PosencLogits) -> PosencDistanceGrad
        as DistanceGradPlan::row
        where grad = HostDistanceGrad::Row(spec.heads as usize, spec.range()?), |gpu| grad.plan(gpu, max_shape.shape());
    /// Makes a plan for KERPLE's `p` and `a`, at their present values; `max_shape` is the shape of the largest call.
    new posenc_distance_grad_kerple_new(spec: PosencKerpleSpec, max_shape: PosencLogits) -> PosencDistanceGrad
        as DistanceGradPlan::kerple
        where grad = HostDistanceGrad::Kerple(spec.kerple()?, spec.least..=spec.most), |gpu| grad.plan(gpu, max_shape.shape());
    on posenc_distance_grad_on(grad: PosencDistanceGrad) as DistanceGradPlan::on;
    free posenc_distance_grad_free(grad: PosencDistanceGrad);
    /// Gives the number of gradient values.
    fn posenc_distance_grad_len(grad: *const PosencDistanceGrad, out: *mut u64) -> PosencStatus as DistanceGradPlan::len {
        give(out, || match &borrow("grad", grad)?.plan {
            Plan::Gpu(plan) => Ok(each!(plan, plan => plan.len()) as u64),
            Plan::Cpu { spec, .. } => Ok(spec.len() as u64),
        })
    }
    /// Writes the gradient of the parameters, in one kernel.
    verb posenc_distance_grad_apply(grad: PosencDistanceGrad, call: PosencDistanceGradCall) as DistanceGradPlan::apply
        where cpu = distance_grad, |plan, scope| {
            let (factor, inputs) = (factor("factor", call.factor)?, inputs(&call.places, &call.gates, scope)?);
            plan.apply(call.shape.of(&call.grad, scope, "grad")?, inputs, factor, call.out.write(scope, "out")?)
        };

    /// Gradients of FIRE's parameters on a device, for one element type of logits. Its calls follow one another in the stream.
    plan PosencFireGrad(FireGradPlan, Fire);
    /// Makes a plan for FIRE's parameters, at their present values; `max_shape` is the shape of the largest call.
    new posenc_fire_grad_new(spec: PosencFireSpec, max_shape: PosencLogits) -> PosencFireGrad as FireGradPlan::new
        where fire = spec.fire()?, |gpu| FireGradPlan::new(gpu, &fire, spec.reach as usize, max_shape.shape());
    on posenc_fire_grad_on(grad: PosencFireGrad) as FireGradPlan::on;
    free posenc_fire_grad_free(grad: PosencFireGrad);
    /// Gives the number of gradient values.
    fn posenc_fire_grad_len(grad: *const PosencFireGrad, out: *mut u64) -> PosencStatus as FireGradPlan::len {
        give(out, || match &borrow("grad", grad)?.plan {
            Plan::Gpu(plan) => Ok(each!(plan, plan => plan.len()) as u64),
            Plan::Cpu { spec, .. } => Ok(fire_grad_len(spec) as u64),
        })
    }
    /// Writes the gradient of the parameters, in one kernel.
    verb posenc_fire_grad_apply(grad: PosencFireGrad, call: PosencDistanceGradCall) as FireGradPlan::apply where cpu = fire_grad, |plan, scope| {
        let (factor, inputs) = (factor("factor", call.factor)?, inputs(&call.places, &call.gates, scope)?);
        plan.apply(call.shape.of(&call.grad, scope, "grad")?, inputs, factor, call.out.write(scope, "out")?)
    };
}

fn inputs<'a>(
    places: &PosencPlaces,
    gates: &PosencBuffer,
    scope: &Scope<'a, Device>,
) -> Result<BiasInputs<'a>, Failure> {
    Ok(BiasInputs { places: places.get(scope)?, gates: gates.read_some(scope, "gates")?, terms: &[] })
}

fn numbers<T: Scalar>(plan: &mut BiasPlan<T>, which: u32) -> Result<PosencBuffer, Failure> {
    let buffer = |numbers: CudaViewMut<'_, f32>| {
        let (data, _order) = numbers.device_ptr(numbers.stream());
        PosencBuffer { data, len: numbers.len() as u64 }
    };
    let row = plan.row_mut()?.map(buffer);
    let slopes = plan.slopes_mut()?.map(|(left, right)| [left, right].map(buffer));
    match (which, row, slopes) {
        (0, Some(row), _) => Ok(row),
        (0 | 1, _, Some(slopes)) => Ok(slopes[which as usize]),
        _ => Err(Failure::argument(format!("the bias has no numbers {which}"))),
    }
}

impl PosencBias {
    /// The plan, if it is for this element type.
    pub(crate) fn of<T: Scalar>(&self) -> Result<&BiasPlan<T>, Failure> {
        let (plan, element): (&dyn Any, _) = match &self.plan {
            Plan::Gpu(OfElement::F32(plan)) => (plan, "f32"),
            Plan::Gpu(OfElement::F16(plan)) => (plan, "f16"),
            Plan::Gpu(OfElement::Bf16(plan)) => (plan, "bf16"),
            Plan::Cpu { .. } => {
                return Err(Failure::argument("the bias is the CPU's, the softmax is a device's".into()));
            }
        };
        plan.downcast_ref()
            .ok_or_else(|| Failure::argument(format!("the bias is for {element}, the logits are {}", T::NAME)))
    }
}

fn count(name: &str, sizes: [u64; 2]) -> Result<u64, Failure> {
    let too_many = || Failure::argument(format!("{name} are {} x {}, which no memory holds", sizes[0], sizes[1]));
    sizes[0].checked_mul(sizes[1]).ok_or_else(too_many)
}

impl PosencAlibiSpec {
    fn alibi(&self) -> Result<Alibi, Failure> {
        Ok(Alibi {
            total_heads: self.total_heads as usize,
            first: self.first as usize,
            heads: self.heads as usize,
            max_bias: self.max_bias,
            scale: self.scale,
            sides: Sides::of("sides", self.sides)?,
        })
    }
}

impl PosencKeyOnlySpec {
    fn row(&self) -> Result<Toeplitz, Failure> {
        let alibi = nested("alibi", &self.alibi)?.alibi()?;
        Ok(KeyOnly::of("library", self.library)?.bias(&alibi, self.keys as usize)?)
    }
}

impl PosencSlopesSpec {
    /// # Safety
    /// `left` and `right` are null or point to `batch x heads` values.
    unsafe fn slopes(&self) -> Result<Slopes, Failure> {
        let n = count("slopes", [self.batch, self.heads])?;
        let right = if self.right.is_null() { self.left } else { self.right };
        // SAFETY: as the caller promises.
        let (left, right) = unsafe { (list("left", self.left, n)?, list("right", right, n)?) };
        Ok(Slopes::new(self.heads as usize, &left, &right)?)
    }
}

impl PosencT5Spec {
    fn t5(&self) -> Result<T5Bias, Failure> {
        let (buckets, max_distance) = (self.buckets as usize, self.max_distance as usize);
        Ok(T5Bias { buckets, max_distance, bidirectional: switch("bidirectional", self.bidirectional)? })
    }

    /// # Safety
    /// `table` is null or points to `buckets x heads` values.
    unsafe fn form(&self) -> Result<Form, Failure> {
        let (t5, heads, n) = (self.t5()?, self.heads as usize, count("buckets x heads", [self.buckets, self.heads])?);
        if self.table.is_null() {
            return Ok(Form::T5(t5, heads));
        }
        // SAFETY: as the caller promises.
        Ok(Form::Row(t5.row(unsafe { slice("table", self.table, n) }?, heads)?))
    }
}

impl PosencRowSpec {
    /// # Safety
    /// `values` is null or points to `heads x distances` values.
    unsafe fn row(&self) -> Result<Toeplitz, Failure> {
        // SAFETY: as the caller promises.
        let values = unsafe { list("values", self.values, count("heads x distances", [self.heads, self.distances])?) }?;
        let saturates = switch("saturates", self.saturates)?;
        Ok(Toeplitz { heads: self.heads as usize, first: self.first, values, saturates })
    }

    fn range(&self) -> Result<RangeInclusive<i64>, Failure> {
        let (first, n) = (self.first, self.distances);
        let last = i64::try_from(n).ok().and_then(|n| first.checked_add(n - 1));
        let far = || Failure::argument(format!("a row of {n} distances from {first}, both must lie within 2^30"));
        Ok(first..=last.ok_or_else(far)?)
    }
}

impl PosencKerpleSpec {
    /// # Safety
    /// `p` and `a` are null or point to `heads` values.
    unsafe fn kerple(&self) -> Result<Kerple, Failure> {
        let kind = KerpleKind::of("kind", self.kind)?;
        // SAFETY: as the caller promises.
        let (p, a) = unsafe { (list("p", self.p, self.heads)?, list("a", self.a, self.heads)?) };
        Ok(Kerple { kind, p, a })
    }
}

impl PosencTermsSpec {
    /// # Safety
    /// `terms` is null or points to `count` terms, each as [`PosencTerm::term`] asks.
    unsafe fn terms(&self) -> Result<Vec<Term>, Failure> {
        // SAFETY: as the caller promises.
        let terms = unsafe { slice("terms", self.terms, self.count) }?;
        // SAFETY: as the caller promises.
        terms.iter().map(|term| unsafe { term.term() }).collect()
    }
}

impl PosencBiasCall {
    /// # Safety
    /// `terms` is null or points to `term_count` of them.
    unsafe fn inputs<'a>(&self, scope: &Scope<'a, Device>) -> Result<BiasInputs<'a>, Failure> {
        // SAFETY: as the caller promises.
        let terms = unsafe { term_inputs(self.terms, self.term_count, scope) }?;
        Ok(BiasInputs { terms, ..inputs(&self.places, &self.gates, scope)? })
    }
}

impl PosencSandwichSpec {
    fn sandwich(&self) -> Sandwich {
        let [total_heads, first, heads, width] =
            [self.total_heads, self.first, self.heads, self.width].map(|size| size as usize);
        Sandwich { total_heads, first, heads, width }
    }
}

impl PosencFireSpec {
    /// # Safety
    /// The four layers are null or point to as many values as `width` and `heads` say.
    unsafe fn fire(&self) -> Result<Fire, Failure> {
        let weights = count("heads x width", [self.heads, self.width])?;
        // SAFETY: as the caller promises.
        let layer = |name, pointer, n| unsafe { list(name, pointer, n) };
        Ok(Fire {
            c: self.c,
            threshold: self.threshold,
            eps: self.eps,
            in_weight: layer("in_weight", self.in_weight, self.width)?,
            in_bias: layer("in_bias", self.in_bias, self.width)?,
            out_weight: layer("out_weight", self.out_weight, weights)?,
            out_bias: layer("out_bias", self.out_bias, self.heads)?,
        })
    }
}
