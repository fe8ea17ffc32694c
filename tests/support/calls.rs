//! Every operation that runs on a device, once, on a few tokens: what tests of all of them go through.

use half::bf16;
use posenc::attend::{
    DeviceBias, DeviceInputs, GradOptions, MergeGrad, MergePlan, RelativeTableGradPlan, RelativeValues,
    RelativeValuesPlan, State,
};
use posenc::bias::{
    BiasInputs, DeviceSwin2Weights, DeviceTermInputs, DistanceGradPlan, Distances, Fire, FireGradPlan, GateSums,
    GateSumsPlan, Numbers, RelativeProducts, RelativeProductsPlan, Swin2Bias, Swin2GradOut, Swin2Plan, Term,
    TermGradPlan, Window,
};
use posenc::embed::{
    Counted, DeviceLookup, DeviceTables, ErrorFlag, Grid, GridPlan, GridSize, Learned, LearnedGradPlan, LearnedPlan,
    Norm, NormGrad, Resample, ResamplePlan, Sinusoid, SinusoidPlan, TableGrad, TimestepPlan, Tokens,
};
use posenc::position::FixedPlan;
use posenc::rotate::{
    Angles, Branch, Cache, CacheRows, HeadNorm, Mixed, NormOver, OutOfRange, Projected, Prologue, PrologueCall,
    ProloguePlan, RopeGrad, RopeGradPlan, Rotation, Table, TableValues, Vectors, XPos,
};
use posenc::{
    Alibi, BiasPlan, Direction, Gpu, Heads, Id, Logits, Places, Positions, Rope, RopePlan, Softmax, SoftmaxPlan, T5Bias,
};

use super::Data;

/// What is done with each operation.
pub trait Visit {
    /// Calls it as often as it likes.
    fn call(&mut self, name: &str, call: &mut dyn FnMut() -> posenc::Result<()>);

    /// What the calls left.
    fn result(&mut self, name: &str, result: Vec<u8>);
}

struct Visitor<'a> {
    gpu: &'a Gpu,
    visit: &'a mut dyn Visit,
}

impl Visitor<'_> {
    fn upload<V: cudarc::driver::DeviceRepr>(&self, values: &[V]) -> cudarc::driver::CudaSlice<V> {
        self.gpu.stream().clone_htod(values).expect("the device takes a copy")
    }

    /// `n` values of bf16.
    fn data(&self, n: usize) -> cudarc::driver::CudaSlice<bf16> {
        self.upload(&Data::new(n as u64).values::<bf16>(n))
    }

    fn zeros<V: cudarc::driver::DeviceRepr + bytemuck::Zeroable + Clone>(
        &self,
        n: usize,
    ) -> cudarc::driver::CudaSlice<V> {
        self.upload(&vec![V::zeroed(); n])
    }

    fn read<V: bytemuck::Pod + cudarc::driver::DeviceRepr>(&mut self, name: &str, of: &cudarc::driver::CudaSlice<V>) {
        let values = self.gpu.stream().clone_dtoh(of).expect("the device gives a copy");
        self.visit.result(name, bytemuck::cast_slice(&values).to_vec());
    }
}

/// A call, then its result.
macro_rules! run {
    ($visitor:ident, $name:literal, $out:expr, $call:expr) => {
        $visitor.visit.call($name, &mut || $call);
        $visitor.read($name, &$out);
    };
}

/// Goes through all of them.
pub fn every_operation(gpu: &Gpu, visit: &mut dyn Visit) {
    let mut visitor = Visitor { gpu, visit };
    rotate(&mut visitor);
    embed(&mut visitor);
    learned(&mut visitor);
    bias(&mut visitor);
    gates(&mut visitor);
    attend(&mut visitor);
    relative_values(&mut visitor);
    merge(&mut visitor);
}

fn merge(v: &mut Visitor<'_>) {
    let plan = MergePlan::<bf16>::new(v.gpu).expect("a plan");
    let (heads, rows) = (Heads::thd(3, 5, 64), Numbers::rows(1, 5, 3, 1));
    let (mut a, b) = (v.data(3 * 5 * 64), v.data(3 * 5 * 64));
    let mut a_lse = v.upload(&Data::new(1).values::<f32>(15));
    let b_lse = v.upload(&Data::new(2).values::<f32>(15));
    run!(v, "attention outputs put together", a, {
        let running = State { out: heads.of_mut(&mut a).into(), lse: rows.of_mut(&mut a_lse).into() };
        plan.merge(running, State { out: heads.of(&b), lse: rows.of(&b_lse) })
    });
    let (mut a_grad, mut b_grad) = (v.zeros::<bf16>(3 * 5 * 64), v.zeros::<bf16>(3 * 5 * 64));
    let (mut a_lse_grad, mut b_lse_grad) = (v.zeros::<f32>(15), v.zeros::<f32>(15));
    run!(v, "the gradient of attention outputs put together", a_lse_grad, {
        let [first, second] =
            [(&a, &a_lse), (&b, &b_lse)].map(|(x, lse)| State { out: heads.of(x), lse: rows.of(lse) });
        let out = MergeGrad {
            a: State { out: heads.of_mut(&mut a_grad), lse: rows.of_mut(&mut a_lse_grad) },
            b: State { out: heads.of_mut(&mut b_grad), lse: rows.of_mut(&mut b_lse_grad) },
        };
        plan.grad(first, second, heads.of(&b), Some(rows.of(&a_lse)), out)
    });
}

fn rotate(v: &mut Visitor<'_>) {
    let plan = RopePlan::<bf16>::new(v.gpu, &Rope::new(128, 10_000.0)).expect("a plan");
    let (q, k) = (Heads::thd(1, 32, 128), Heads::thd(1, 8, 128));
    let (mut q_x, mut k_x, mut q_y) = (v.data(32 * 128), v.data(8 * 128), v.zeros::<bf16>(32 * 128));
    let ids = v.upload(&[131_071i64]);
    let indptr = v.upload(&[0, 1]);
    run!(v, "rope in place", q_x, { plan.rotate(q.of_mut(&mut q_x), k.of_mut(&mut k_x), Positions::ids(&ids)) });
    run!(v, "rope copied, packed sequences", q_y, {
        let back = Rotation { direction: Direction::Inverse, ..Rotation::at(Positions::packed(&indptr, 1)) };
        plan.rotate(q.of(&q_x).to(q.of_mut(&mut q_y)), None, back)
    });
    let row = 48 * 128;
    let mut qkv = v.data(row);
    run!(v, "rope of packed queries, keys and values", qkv, {
        plan.rotate(q.row(row).of_mut(&mut qkv), k.row(row).at(32 * 128), Positions::starts(&ids))
    });
    let table = v.upload(&[0.5f32; 4 * 128]);
    run!(v, "rope by a table", q_x, {
        let values = TableValues::F32 { cos: &table, sin: None };
        let table = Some(Table { values, rows: 4, stride: 128, out_of_range: OutOfRange::Clamp });
        plan.rotate(q.of_mut(&mut q_x), None, Rotation { table, ..Rotation::at(Positions::ids(&ids)) })
    });
    let plan = RopePlan::<bf16>::xpos(v.gpu, &XPos::new(Rope::new(128, 10_000.0))).expect("a plan");
    run!(v, "xPos", q_x, { plan.rotate(q.of_mut(&mut q_x), k.of_mut(&mut k_x), Positions::counted()) });
    mixed(v);
    prologue(v);
}

fn prologue(v: &mut Visitor<'_>) {
    let norm = Some(HeadNorm::rms(1e-6));
    let normed = Branch { norm, ..Branch::rotated() };
    let spec = Prologue { q: normed, k: normed, ..Prologue::new(Rope::new(64, 10_000.0)) };
    let plan = ProloguePlan::<bf16>::new(v.gpu, &spec).expect("a plan");
    // Partly rotated heads, whose sums are exchanged.
    let row = 8 * 80;
    let (q, k) = (Heads::thd(3, 4, 80).row(row), Heads::thd(3, 2, 80).row(row));
    let (qkv, q_weight, k_weight) = (v.data(3 * row), v.data(80), v.data(160));
    let mut out = v.zeros::<bf16>(3 * 4 * 80);
    let (mut k_cache, mut v_cache) = (v.zeros::<bf16>(2 * 2 * 2 * 80), v.zeros::<bf16>(2 * 2 * 2 * 80));
    let (ids, slots) = (v.upload(&[131_071i64, 5, -1]), v.upload(&[2i32, -1, 1]));
    run!(v, "prologue into a cache", out, {
        let pages = Heads::bhtd(2, 2, 2, 80);
        let call = PrologueCall {
            q: Vectors::weight(&q_weight),
            k: Vectors::weight(&k_weight),
            cache: Some(Cache {
                k: pages.of_mut(&mut k_cache).into(),
                v: Some(pages.of_mut(&mut v_cache).into()),
                rows: CacheRows::Slots(i32::ids(&slots)),
                flag: None,
            }),
            ..PrologueCall::at(Positions::ids(&ids))
        };
        let to = Heads::thd(3, 4, 80).of_mut(&mut out);
        plan.apply(q.of(&qkv).to(to), k.at(4 * 80).of(&qkv), k.at(6 * 80).of(&qkv), call)
    });
    v.read("keys in the cache of the prologue", &k_cache);
    v.read("values in the cache of the prologue", &v_cache);
    let all = Some(HeadNorm { over: NormOver::AllHeads, ..HeadNorm::rms(1e-6) });
    let spec = Prologue { k: Branch { norm: all, ..Branch::rotated() }, ..Prologue::new(Rope::new(6, 10_000.0)) };
    let plan = ProloguePlan::<bf16>::new(v.gpu, &spec).expect("a plan");
    let keys = Heads::thd(3, 2, 80);
    let mut k_out = v.data(3 * 2 * 80);
    run!(v, "prologue of keys in place", k_out, {
        let call = PrologueCall { k: Vectors::weight(&k_weight), ..PrologueCall::at(Positions::ids(&ids)) };
        plan.apply(Projected::None, keys.of_mut(&mut k_out), Projected::None, call)
    });
}

fn mixed(v: &mut Visitor<'_>) {
    let frequencies = Data::new(1).values::<f32>(2 * 4 * 16);
    let learned = v.upload(&frequencies);
    let zeros = Mixed { axes: 2, heads: 4, frequencies: vec![0.0; 2 * 4 * 16] };
    let rope = Rope { angles: Angles::Mixed(zeros), fraction_bits: vec![3, 0], ..Rope::new(32, 1.0) };
    let mut plan = RopePlan::<bf16>::new(v.gpu, &rope).expect("a plan");
    // More than one chunk of tokens.
    let (q, k) = (Heads::thd(70, 8, 32), Heads::thd(70, 4, 32));
    let (mut q_x, mut k_x) = (v.data(70 * 8 * 32), v.data(70 * 4 * 32));
    let ids = v.upload(&(0..140).map(|i| i % 9).collect::<Vec<i32>>());
    v.visit.call("learned frequencies", &mut || plan.set_frequencies(&learned, None));
    run!(v, "mixed rope", q_x, { plan.rotate(q.of_mut(&mut q_x), k.of_mut(&mut k_x), Positions::ids(&ids)) });
    let (seconds, mut units) = (v.upload(&[0.0f32, 0.04, 1e3]), v.zeros::<i64>(3));
    let fixed = FixedPlan::new(v.gpu).expect("a plan");
    run!(v, "units of positions", units, fixed.write(&seconds, 13, &mut units, None));
    let plan = RopeGradPlan::<bf16>::new(v.gpu, &rope).expect("a plan");
    let grad = v.data(70 * 8 * 32);
    let (mut frequency, mut position) = (v.zeros::<f32>(2 * 4 * 16), v.zeros::<f32>(140));
    run!(v, "the gradient of frequencies", frequency, {
        let (q, k) = (RopeGrad { x: q.of(&q_x), grad: q.of(&grad) }, RopeGrad { x: k.of(&k_x), grad: k.of(&grad) });
        plan.frequencies(q, Some(k), Positions::ids(&ids), &mut frequency)
    });
    run!(v, "the gradient of positions", position, {
        plan.positions(RopeGrad { x: q.of(&q_x), grad: q.of(&grad) }, None, Some(&learned), &mut position)
    });
}

const DIM: usize = 64;

fn embed(v: &mut Visitor<'_>) {
    let tokens = Tokens::new(1, 4, DIM);
    let mut x = v.data(4 * DIM);
    let sinusoid = SinusoidPlan::<bf16>::new(v.gpu, &Sinusoid::new(DIM)).expect("a plan");
    run!(v, "sinusoid written", x, sinusoid.write(tokens.of_mut(&mut x), Positions::counted()));
    run!(v, "sinusoid added", x, sinusoid.add(tokens.of_mut(&mut x), Positions::counted(), 0.5));
    let timestep = TimestepPlan::<bf16>::new(v.gpu, &Sinusoid::timestep(DIM)).expect("a plan");
    let t = v.upload(&[0.0f32, 0.25, 10.0, 999.0]);
    run!(v, "timesteps", x, timestep.write(tokens.of_mut(&mut x), &t));
    let grid = GridPlan::<bf16>::new(v.gpu, &Grid::columns_first(DIM)).expect("a plan");
    let size = GridSize::image(2, 2);
    run!(v, "grid written", x, grid.write(tokens.of_mut(&mut x), size));
    run!(v, "grid added", x, grid.add(tokens.of_mut(&mut x), size, 0.5));
    let mask = v.upload(&[1u8, 1, 1, 0]);
    run!(v, "grid counted over a mask", x, {
        grid.write_masked(tokens.of_mut(&mut x), &mask, size, Counted::default())
    });
    let spec = Resample::new(size, GridSize::image(3, 3));
    let resample = ResamplePlan::<bf16>::new(v.gpu, &spec).expect("a plan");
    let (mut large, resampled) = (v.zeros::<bf16>(9 * DIM), Tokens::new(1, 9, DIM));
    run!(v, "resampled", large, resample.write(resampled.of_mut(&mut large), tokens.of(&x)));
    run!(v, "the gradient of resampling", x, resample.grad(tokens.of_mut(&mut x), resampled.of(&large), false));
}

fn learned(v: &mut Visitor<'_>) {
    let spec = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(DIM) };
    let tokens = Tokens::new(1, 4, DIM);
    let (token, position, gain, bias) = (v.data(8 * DIM), v.data(5 * DIM), v.data(DIM), v.data(DIM));
    let ids = v.upload(&[3i32, 1, 3, 7]);
    let mut flag = ErrorFlag::new(v.gpu).expect("a flag");
    let tables = DeviceTables {
        token: Some(&token),
        position: Some(&position),
        gain: Some(&gain),
        bias: Some(&bias),
        ..DeviceTables::default()
    };
    let lookup = DeviceLookup { ids: Some(i32::ids(&ids)), ..DeviceLookup::default() };
    let plan = LearnedPlan::<bf16>::new(v.gpu, &spec).expect("a plan");
    let mut x = v.zeros::<bf16>(4 * DIM);
    run!(v, "learned tables", x, plan.gather(tokens.of_mut(&mut x), &tables, &lookup, Some(&mut flag)));
    let mut rows = v.zeros::<i64>(4);
    run!(v, "rows of positions", rows, plan.rows(&mut rows, 1, 4, &lookup));
    let plan = LearnedGradPlan::<bf16>::new(v.gpu, &spec, tokens).expect("a plan");
    let grad = v.data(4 * DIM);
    let mut sum = v.zeros::<bf16>(4 * DIM);
    let (mut gain_grad, mut bias_grad) = (v.zeros::<bf16>(DIM), v.zeros::<bf16>(DIM));
    run!(v, "the gradient of the sum", sum, {
        let out = NormGrad { flag: Some(&mut flag), ..NormGrad::new(tokens.of_mut(&mut sum)) };
        plan.norm(out, tokens.of(&grad), None, &tables, &lookup)
    });
    run!(v, "the gradients of gain and bias", gain_grad, {
        let (gain, bias) = (Some(&mut gain_grad as _), Some(&mut bias_grad as _));
        let out = NormGrad { gain, bias, ..NormGrad::new(tokens.of_mut(&mut sum)) };
        plan.norm(out, tokens.of(&grad), None, &tables, &lookup)
    });
    let mut table = v.zeros::<bf16>(8 * DIM);
    run!(v, "the gradient of counted positions", table, {
        plan.counted(&mut table, tokens.of(&grad), 0, TableGrad::new(5))
    });
    let mut order = v.zeros::<u32>(4);
    run!(v, "the order of ids", order, plan.order(&mut order, i32::ids(&ids), 4));
    run!(v, "the gradient of a table", table, {
        plan.table(&mut table, tokens.of(&grad), i32::ids(&ids), &order, TableGrad::new(8))
    });
}

fn bias(v: &mut Visitor<'_>) {
    let shape = Logits::bhqk(1, 4, 2, 40);
    let len = 4 * 2 * 40;
    let mut x = v.data(len);
    let alibi = BiasPlan::<bf16>::new(v.gpu, &Alibi::new(4)).expect("a plan");
    run!(v, "ALiBi written", x, alibi.write(shape.of_mut(&mut x), Places::bottom_right()));
    let spec = T5Bias::new(32, 128, true);
    let mut t5 = BiasPlan::<bf16>::t5(v.gpu, spec, 4).expect("a plan");
    let table = v.upload(&Data::new(1).values::<f32>(32 * 4));
    run!(v, "a T5 table taken", x, t5.set_table(&table));
    run!(v, "T5 added", x, t5.add(shape.of_mut(&mut x), Places::bottom_right()));
    let fire = Fire { in_weight: vec![1.0], in_bias: vec![0.0], ..Fire::new() };
    let fire = Fire { out_weight: vec![0.5; 4], out_bias: vec![0.0; 4], ..fire };
    let plan = BiasPlan::<bf16>::fire(v.gpu, &fire, 64).expect("a plan");
    run!(v, "FIRE added", x, plan.add(shape.of_mut(&mut x), Places::bottom_right()));
    let band = Term::queries(Distances::inkling(8));
    let numbers = Numbers::rows(1, 4, 2, 8);
    let products = v.data(4 * 2 * 8);
    let terms = [DeviceTermInputs::of(numbers.of(&products))];
    let plan = BiasPlan::<bf16>::new(v.gpu, &band).expect("a plan");
    run!(v, "a term added", x, {
        plan.add(shape.of_mut(&mut x), BiasInputs { terms: &terms, ..Places::bottom_right().into() })
    });
    let relative = RelativeProducts::queries(Distances::inkling(8));
    let plan = RelativeProductsPlan::<bf16>::new(v.gpu, &relative).expect("a plan");
    let (states, table, added) = (v.data(2 * 4 * 16), v.data(8 * 16), v.upload(&[0.5f32; 4 * 16]));
    let mut sums = v.data(len);
    run!(v, "products of states and a table added", sums, {
        let (states, table) = (Heads::thd(2, 4, 16).of(&states), Numbers::rows(1, 1, 8, 16).of(&table));
        plan.add(shape.of_mut(&mut sums), states, Some(&added), table, Places::bottom_right())
    });
    let plan = DistanceGradPlan::<bf16>::t5(v.gpu, spec, 4, shape).expect("a plan");
    let mut table = v.zeros::<f32>(32 * 4);
    run!(v, "the gradient of T5's table", table, { plan.apply(shape.of(&x), Places::bottom_right(), 1.0, &mut table) });
    let plan = FireGradPlan::<bf16>::new(v.gpu, &fire, 64, shape).expect("a plan");
    let mut parameters = v.zeros::<f32>(plan.len());
    run!(v, "the gradient of FIRE", parameters, {
        plan.apply(shape.of(&x), Places::bottom_right(), 1.0, &mut parameters)
    });
    swin2(v);
    terms_grad(v);
}

fn swin2(v: &mut Visitor<'_>) {
    let plan = Swin2Plan::<bf16>::new(v.gpu, &Swin2Bias::new([3, 3], 40, 4)).expect("a plan");
    let (w1, b1, w2) = (v.data(80), v.data(40), v.data(160));
    let weights = DeviceSwin2Weights { w1: &w1, b1: &b1, w2: &w2, b2: None };
    let mut table = v.zeros::<f32>(25 * 4);
    run!(v, "Swin v2's table", table, plan.write(weights, &mut table));
    let (mut w1_grad, mut b1_grad, mut w2_grad) = (v.zeros::<f32>(80), v.zeros::<f32>(40), v.zeros::<f32>(160));
    run!(v, "the gradient of Swin v2's network", w2_grad, {
        let out = Swin2GradOut { w1: &mut w1_grad, b1: &mut b1_grad, w2: &mut w2_grad, b2: None };
        plan.grad(weights, &table, out)
    });
}

/// Every form of a term's numbers; tables and rows of keys from several blocks each.
fn terms_grad(v: &mut Visitor<'_>) {
    let shape = Logits::bhqk(12, 2, 49, 49);
    let (x, places) = (v.data(12 * 2 * 49 * 49), Places::counted(0, 0));
    let plan = |term: Term| TermGradPlan::<bf16>::new(v.gpu, &term, shape).expect("a plan");
    let (table, shaw) = (plan(Term::table(Window::swin(7, 7))), Distances::shaw(8, 4));
    let (queries, keys, whole) = (plan(Term::queries(shaw.clone())), plan(Term::keys(shaw)), plan(Term::whole()));
    let mut out = v.zeros::<f32>(12 * 2 * 49 * 13);
    run!(v, "the gradient of a window's table", out, {
        table.apply(shape.of(&x), places, 1.0, Numbers::table(169, 2), &mut out)
    });
    run!(v, "the gradient of rows of queries", out, {
        queries.apply(shape.of(&x), places, 1.0, Numbers::rows(12, 2, 49, 13), &mut out)
    });
    run!(v, "the gradient of rows of keys", out, {
        keys.apply(shape.of(&x), places, 1.0, Numbers::rows(1, 2, 49, 13), &mut out)
    });
    run!(v, "the gradient of a pair bias", out, {
        whole.apply(shape.of(&x), places, 1.0, Numbers::rows(1, 2, 49, 49), &mut out)
    });
}

fn attend(v: &mut Visitor<'_>) {
    let shape = Logits::bhqk(1, 4, 2, 40);
    let len = 4 * 2 * 40;
    let x = v.data(len);
    let softmax = SoftmaxPlan::<bf16>::new(v.gpu, &Softmax::causal(0.125), &Alibi::new(4)).expect("a plan");
    let (mut p, mut lse, mut dots) = (v.zeros::<bf16>(len), v.zeros::<f32>(8), v.zeros::<f32>(8));
    let sinks = v.upload(&[0.5f32; 4]);
    let inputs = DeviceInputs { sinks: Some(&sinks), ..DeviceInputs::default() };
    run!(v, "softmax", p, softmax.apply_with_lse(shape.of(&x).to(shape.of_mut(&mut p)), &inputs, &mut lse));
    // 512 keys, of which every one is seen or not.
    let wide = Logits::bhqk(1, 4, 150, 512);
    let mut held = v.data(4 * 150 * 512);
    run!(v, "a softmax in registers", held, softmax.apply(wide.of_mut(&mut held), &inputs));
    let all = SoftmaxPlan::<bf16>::new(v.gpu, &Softmax::new(0.125), &Alibi::new(4)).expect("a plan");
    let whole = Logits::bhqk(1, 4, 4, 1024);
    let mut held = v.data(4 * 4 * 1024);
    run!(v, "a softmax of whole rows in registers", held, all.apply(whole.of_mut(&mut held), &inputs));
    let mut dx = v.zeros::<bf16>(len);
    run!(v, "the gradient of a softmax", dx, {
        let options = GradOptions { dots: Some(&mut dots), ..GradOptions::default() };
        softmax.grad(shape.of(&p), shape.of(&x).to(shape.of_mut(&mut dx)), &inputs, options)
    });
    let mut sink_grad = v.zeros::<f32>(4);
    run!(v, "the gradient of sinks", sink_grad, softmax.sink_grad(&sinks, &lse, &dots, shape, &mut sink_grad));
    let products = v.data(4 * 2 * 8);
    let terms = [DeviceTermInputs::of(Numbers::rows(1, 4, 2, 8).of(&products))];
    let capped = Softmax { softcap: Some(2.0), ..Softmax::causal(0.125) };
    let banded = SoftmaxPlan::<bf16>::new(v.gpu, &capped, &Term::queries(Distances::inkling(8))).expect("a plan");
    let of_terms = DeviceInputs { bias: DeviceBias::terms(&terms), ..DeviceInputs::default() };
    run!(v, "a softmax with a term", p, banded.apply(shape.of(&x).to(shape.of_mut(&mut p)), &of_terms));
    run!(v, "the gradient of a softmax with a term", dx, {
        let options = GradOptions { logits: Some(shape.of(&x)), ..GradOptions::default() };
        banded.grad(shape.of(&p), shape.of(&x).to(shape.of_mut(&mut dx)), &of_terms, options)
    });
    let decode = Logits::bhqk(1, 4, 1, 40_000);
    let mut long = v.data(4 * 40_000);
    run!(v, "a decode against 40000 keys", long, softmax.apply(decode.of_mut(&mut long), &inputs));
}

fn gates(v: &mut Visitor<'_>) {
    let plan = GateSumsPlan::<bf16>::new(v.gpu, GateSums::logits()).expect("a plan");
    let (shape, pairs) = (Numbers::rows(1, 4, 40, 1), Numbers::rows(1, 4, 40, 2));
    let (x, mut sums, mut state) = (v.data(160), v.zeros::<f32>(320), v.zeros::<u64>(8));
    run!(v, "prefix sums of gates", sums, plan.write(shape.of(&x), pairs.of_mut(&mut sums), Some(&mut state)));
    let ends = v.upload(&Data::new(3).values::<f32>(160));
    let mut grad = v.zeros::<f32>(160);
    run!(v, "the gradient of gates", grad, {
        plan.grad(shape.of(&x), shape.of(&ends), shape.of(&ends), shape.of_mut(&mut grad))
    });
}

fn relative_values(v: &mut Visitor<'_>) {
    let (shape, heads) = (Logits::bhqk(1, 4, 2, 40), Heads::bthd(1, 2, 4, DIM));
    let numbers = Numbers::rows(1, 1, 9, DIM);
    let (p, table, mut z, mut dp) = (v.data(320), v.data(9 * DIM), v.data(8 * DIM), v.data(320));
    let spec = RelativeValues::vits(4);
    let plan = RelativeValuesPlan::<bf16>::new(v.gpu, &spec).expect("a plan");
    let places = Places::bottom_right;
    run!(v, "relative values", z, plan.add(shape.of(&p), numbers.of(&table), heads.of_mut(&mut z), places()));
    run!(v, "the gradient of relative values", dp, {
        plan.grad(heads.of(&z), numbers.of(&table), shape.of_mut(&mut dp), places(), true)
    });
    let plan = RelativeTableGradPlan::<bf16>::new(v.gpu, &spec, 1, DIM, shape).expect("a plan");
    let mut grad = v.zeros::<f32>(plan.len());
    run!(v, "the gradient of a table of relative values", grad, {
        plan.apply(shape.of(&p), heads.of(&z), places(), &mut grad)
    });
}
