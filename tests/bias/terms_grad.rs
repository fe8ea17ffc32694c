use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::bias::{
    BiasInputs, DeviceTermInputs, Distances, Index, Numbers, ShiftedWindows, Term, TermGrad, TermGradPlan, TermInputs,
    Terms, Window,
};
use posenc::gpu::Read;
use posenc::{Bias, Gpu, Logits, Packed, Place, Places, Scalar};

use crate::biases::{Buffers, Context, Host, every_place_of_a_pack};
use crate::support::{Data, Guarded, alias, gpu, last_launch};
use crate::terms_support::{Own, TermBuffers, TermCase, TermValues, each_terms};

// --------------------------------------------------------------------------------------------------------------- cases

/// One gradient: a term, what decides its entries, and the layout of its numbers.
#[derive(Clone, Debug)]
struct GradCase {
    name: &'static str,
    term: Term,
    data: TermValues,
    numbers: Numbers,
    /// the keys' ends
    of_keys: bool,
}

impl GradCase {
    fn new(name: &'static str, term: Term, numbers: Numbers) -> Self {
        Self { name, term, data: TermValues::default(), numbers, of_keys: false }
    }

    /// The terms of a bias that have numbers, endpoints twice.
    fn all(case: &TermCase) -> Vec<Self> {
        let mut cases = Vec::new();
        for (term, data) in case.terms.iter().zip(&case.data) {
            let none = TermValues { numbers: None, key_numbers: None, ..data.clone() };
            for (numbers, of_keys) in [(&data.numbers, false), (&data.key_numbers, true)] {
                let Some((_, numbers)) = numbers else { continue };
                let entries = if matches!(term.index, Index::Endpoints) { 1 } else { numbers.entries };
                // Every number is written: heads that share them in memory are one.
                let heads = if numbers.strides[1] == 0 { 1 } else { numbers.heads };
                let numbers = Numbers { heads, entries, ..*numbers };
                cases.push(Self { name: case.name, term: term.clone(), data: none.clone(), numbers, of_keys });
            }
        }
        cases
    }

    fn expect<T: Scalar>(&self, grad: &[T], shape: &Logits, places: &Host) -> TermGrad {
        let call = if self.of_keys { Term::key_grad } else { Term::grad };
        call(&self.term, grad, shape, places, &self.data.host(), &self.numbers).unwrap()
    }

    /// This layout, and those that sum over sequences or heads.
    fn layouts(self) -> Vec<Self> {
        let numbers = self.numbers;
        let mut all = vec![self.clone()];
        for (batch, heads) in [(1, numbers.heads), (numbers.batch, 1), (1, 1)] {
            let numbers = Numbers { batch, heads, ..numbers };
            if all.iter().all(|case| case.numbers != numbers) {
                all.push(Self { numbers, ..self.clone() });
            }
        }
        all
    }
}

fn every_case(shape: &Logits, seed: u64) -> Vec<GradCase> {
    each_terms(shape, seed).iter().flat_map(GradCase::all).flat_map(GradCase::layouts).collect()
}

// -------------------------------------------------------------------------------------------------------------- values

/// transformers 5.24 `SwinRelativePositionBias`, a window of 2 x 2: f32 numbers whose sums are exact.
#[test]
fn swins_table_has_the_gradient_of_transformers() {
    #[rustfmt::skip]
    let upstream = [
        -1.1132812, 1.3359375, 0.26171875, 1.9765625, 0.5234375, 0.390625, -1.6953125, 1.2695312, -0.73828125, -1.890625,
        0.2109375, -1.1523438, 1.6523438, -0.046875, -1.1054688, -0.984375, -1.5195312, 1.1171875, -1.7265625, 0.140625,
        -1.90625, -0.74609375, -1.1640625, 0.30078125, -0.671875, -0.97265625, 1.8867188, 1.3046875, -0.8359375, -0.1015625,
        0.22265625, -0.9765625, 0.5703125, -1.625, -1.0273438, -1.1835938, -1.8710938, -1.1679688, 0.04296875, 0.3671875,
        -1.5039062, 1.1132812, 0.43359375, -0.421875, -0.0546875, -0.359375, 0.80078125, 0.0390625f32,
    ];
    // [entries, heads]
    #[rustfmt::skip]
    let want = [
        1.9765625, 0.140625, -1.1835938, 1.53125, -1.4257812, -0.66015625, -1.6953125, -1.1640625, 0.04296875, 0.18359375,
        2.421875, -2.046875, -1.4960938, -1.3554688, -0.125, -0.58203125, -1.6835938, -1.0703125, -1.890625, -0.97265625,
        1.1132812, -0.78515625, -0.7734375, -1.8632812, 1.6523438, -0.8359375, -0.0546875f32,
    ];
    let (shape, inputs) = (Logits::bhqk(1, 3, 4, 4), TermInputs::default());
    let term = Term::table(Window::swin(2, 2));
    let got = term.grad(&upstream, &shape, &Places::counted(0, 0), &inputs, &Numbers::table(9, 3)).unwrap();
    // Eight digits of f32.
    assert_close(&want, &got.values, |_| 1e-7);
}

/// timm 1.0.31 `AttentionDownsample` of LeViT: 2 x 2 queries two steps apart on 3 x 4 keys, the first of two heads.
#[test]
fn levits_table_has_the_gradient_of_timm() {
    #[rustfmt::skip]
    let upstream = [
        -0.3046875, 1.6875, 1.734375, 1.5703125, -0.890625, -1.78125, 1.375, 1.6484375, 1.9765625, 0.15625, -1.2890625,
        0.28125, -1.3359375, -0.25, 0.203125, 1.296875, -0.44921875, -0.3984375, 1.4101562, 0.62890625, -0.609375,
        0.25390625, -0.67578125, -0.96484375, 1.3710938, -1.9609375, 1.7460938, 0.31640625, 0.9453125, -1.6992188, 0.984375,
        1.5546875, -1.4648438, 1.7890625, -1.5273438, -0.765625, -0.921875, 1.21875, -1.7578125, -1.3515625, -0.31640625,
        0.94921875, 0.30078125, -1.734375, -1.4492188, 0.125, -1.7148438, -1.3085938f32,
    ];
    #[rustfmt::skip]
    let want = [
        -3.28125, 3.3398438, -2.578125, 0.8046875, 1.765625, -4.0351562, 1.59375, 3.203125, 0.9140625, -2.6484375, -1.0742188,
        0.59765625f32,
    ];
    let (shape, inputs) = (Logits::bhqk(1, 1, 4, 12), TermInputs::default());
    let term = Term::table(Window::levit(3, 4, 2));
    let got = term.grad(&upstream, &shape, &Places::counted(0, 0), &inputs, &Numbers::by_head(1, 12)).unwrap();
    assert_close(&want, &got.values, |_| 1e-6);
}

/// x-transformers `DataDependentAlibi`, the first head of the first sequence: `F_i - F_j` with `F` the running sum of
/// `ln(sigmoid(f))`.
#[test]
fn forget_gates_have_the_gradient_of_x_transformers() {
    let f = [1.5390625, -1.3164062, -0.33203125, 1.8242188, 0.8203125, -1.4453125, 0.56640625f64];
    #[rustfmt::skip]
    let upstream = [
        0.6015625, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        0.1015625, -1.9140625, 0.0, 0.0, 0.0, 0.0, 0.0,
        1.3359375, 0.734375, -1.8242188, 0.0, 0.0, 0.0, 0.0,
        -0.85546875, -0.62109375, -0.15625, 1.9296875, 0.0, 0.0, 0.0,
        1.3515625, 1.234375, 0.6953125, 0.671875, 0.921875, 0.0, 0.0,
        1.84375, 1.046875, 0.0078125, -0.01171875, -1.0703125, 0.77734375, 0.0,
        -0.69921875, -0.60546875, -1.6835938, 1.078125, 1.4960938, -1.1992188, -0.55859375f32,
    ];
    let want = [0.0, 2.4273577, 2.774802, 0.21653298, 1.5069923, 1.134883, -0.5841151f32];
    let (shape, places, numbers) = (Logits::bhqk(1, 1, 7, 7), Places::counted(0, 0), Numbers::rows(1, 1, 7, 1));
    let (term, inputs) = (Term::endpoints(), TermInputs::default());
    let queries = term.grad(&upstream, &shape, &places, &inputs, &numbers).unwrap().values;
    let keys = term.key_grad(&upstream, &shape, &places, &inputs, &numbers).unwrap().values;
    let ends: Vec<f64> = queries.iter().zip(&keys).map(|(query, key)| query + key).collect();
    let got: Vec<f64> = (0..7).map(|t| ends[t..].iter().sum::<f64>() / (1.0 + f[t].exp())).collect();
    assert_close(&want, &got, |_| 1e-6);
}

// ----------------------------------------------------------------------------------------------------------- reference

/// A bias is linear in its numbers: the gradient of a number is the sum of `grad` times the bias of that number alone.
#[test]
fn the_reference_is_the_derivative_of_the_bias() {
    let shape = Logits::bhqk(2, 2, 12, 11).row(13);
    let places = Places { key_lengths: Some(&[11, 6][..]), ..Host::counted(1, 0) };
    let mut data = Data::new(2);
    let grad: Vec<f32> = data.values(shape.span().unwrap());
    for case in every_case(&shape, 4) {
        let got = case.expect(&grad, &shape, &places);
        let _context = Context(|| format!("{case:?}"));
        let mut zeros = TermValues { numbers: Some((vec![0.0], Numbers::rows(1, 1, 1, 1))), ..case.data.clone() };
        if matches!(case.term.index, Index::Endpoints) {
            let ends = |rows: usize| Some((vec![0.0; rows], Numbers::rows(1, 1, rows, 1)));
            (zeros.numbers, zeros.key_numbers) = (ends(12), ends(11));
        }
        for _ in 0..20 {
            let n = case.numbers;
            let [b, h, r, e] = [n.batch, n.heads, n.rows, n.entries].map(|size| data.below(size));
            let index = n.index(b, h, r, e);
            let mut values = vec![0.0; n.span().unwrap()];
            values[index] = 1.0;
            let own = if case.of_keys { &mut zeros.key_numbers } else { &mut zeros.numbers };
            *own = Some((values, n));
            let mut logits = vec![0.0f32; grad.len()];
            let terms = Terms { terms: std::slice::from_ref(&case.term), inputs: &[zeros.host()] };
            Bias::Terms(terms).add(&mut logits, &shape, &places).unwrap();
            // Padding of rows has no bias; keys beyond a length have one, and no gradient.
            let mut want = 0.0;
            for row in 0..2 * 2 * 12 {
                let keys = if row < 24 { 11 } else { 6 };
                want += (row * 13..row * 13 + keys).map(|i| f64::from(logits[i]) * f64::from(grad[i])).sum::<f64>();
            }
            assert!((got.values[index] - want).abs() <= 1e-12 * got.sizes[index], "{} {want}", got.values[index]);
        }
    }
}

#[test]
fn a_tables_gradient_of_rows_without_a_sum_has_none() {
    // As a softmax's are.
    let shape = Logits::bhqk(3, 2, 16, 16);
    let grad: Vec<f64> = Data::new(1).values::<f32>(shape.elements().unwrap()).into_iter().map(f64::from).collect();
    let even: Vec<f32> = grad.chunks(16).flat_map(|row| [row[0] as f32, -row[0] as f32].repeat(8)).collect();
    let term = Term::table(Window::swin(4, 4));
    let inputs = TermInputs::default();
    let numbers = Numbers::table(49, 2);
    let got = term.grad(&even, &shape, &Places::counted(0, 0), &inputs, &numbers).unwrap();
    for head in 0..2 {
        let sum: f64 = (0..49).map(|entry| got.values[numbers.index(0, head, 0, entry)]).sum();
        assert!(sum.abs() < 1e-12, "{sum}");
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// What a call brings beside its shape.
#[derive(Clone, Copy, Debug)]
struct With<'a> {
    places: Host<'a>,
    gates: Option<&'a [f32]>,
    factor: f32,
}

impl<'a> With<'a> {
    fn of(places: Host<'a>) -> Self {
        Self { places, gates: None, factor: 1.0 }
    }
}

/// The gradient on the device, from an aligned buffer or not.
fn run<T: Own>(gpu: &Gpu, case: &GradCase, grad: &[T], shape: &Logits, with: &With, shift: usize) -> Vec<f32> {
    let buffers = Buffers::new(gpu, &with.places);
    let data = TermBuffers::<T>::new(gpu, &case.data.host(), false);
    let terms: [DeviceTermInputs; 1] = [data.device()];
    let gates = with.gates.map(|gates| gpu.stream().clone_htod(gates).unwrap());
    let inputs = BiasInputs {
        gates: gates.as_ref().map(|gates| gates as Read<f32>),
        terms: &terms,
        ..buffers.places(&with.places).into()
    };
    let mut grad = Guarded::new(gpu, grad, shift);
    let mut out = Guarded::<f32>::poisoned(gpu, case.numbers.span().unwrap(), shift);
    let plan = TermGradPlan::<T>::new(gpu, &case.term, *shape).unwrap();
    let call = if case.of_keys { TermGradPlan::apply_keys } else { TermGradPlan::apply };
    call(&plan, shape.of(&grad.view()), inputs, with.factor, case.numbers, &mut out.view()).unwrap();
    out.read(gpu)
}

/// The numbers of an output in order, without what lies between them.
fn packed(numbers: &Numbers, out: &[f32]) -> Vec<f32> {
    let Numbers { batch, heads, rows, entries, .. } = *numbers;
    let index = |i: usize| {
        numbers.index(i / entries / rows / heads, i / entries / rows % heads, i / entries % rows, i % entries)
    };
    (0..batch * heads * rows * entries).map(|i| out[index(i)]).collect()
}

fn check<T: Own>(gpu: &Gpu, case: &GradCase, shape: &Logits, with: &With) {
    let _context = Context(|| format!("{} {shape:?} {with:?} {case:?}", T::NAME));
    let grad: Vec<T> = Data::new(5).values(shape.span().unwrap());
    let got = run(gpu, case, &grad, shape, with, 0);
    // The reference has no gates.
    let mut gated: Vec<f32> = grad.iter().map(|x| x.to_f64() as f32).collect();
    if let Some(gates) = with.gates {
        for (row, gate) in gates.iter().enumerate() {
            let (head, query) = (row / shape.queries, row % shape.queries);
            let first = shape.index(head / shape.heads, head % shape.heads, query, 0);
            gated[first..first + shape.keys].iter_mut().for_each(|x| *x *= gate);
        }
    }
    let want = case.expect(&gated, shape, &with.places);
    let factor = f64::from(with.factor);
    let in_order = |of: &[f64]| packed_f64(&case.numbers, of);
    let (values, sizes) = (in_order(&want.values), in_order(&want.sizes));
    let values: Vec<f64> = values.iter().map(|x| x * factor).collect();
    assert_close(&packed(&case.numbers, &got), &values, |i| TermGrad::error_bound(factor.abs() * sizes[i]));
}

fn packed_f64(numbers: &Numbers, of: &[f64]) -> Vec<f64> {
    let Numbers { batch, heads, rows, entries, .. } = *numbers;
    let mut all = Vec::new();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        for (r, e) in (0..rows).flat_map(|r| (0..entries).map(move |e| (r, e))) {
            all.push(of[numbers.index(b, h, r, e)]);
        }
    }
    all
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_the_gradient_of_every_term() {
    let gpu = gpu();
    let mut data = Data::new(11);
    for (heads, keys) in [(1, 13), (3, 9)] {
        let shape = Logits::bhqk(2, heads, 12, keys).row(keys + 3);
        let gates: Vec<f32> = data.values(2 * heads * 12);
        let mut ids = |count: usize| (0..count).map(|_| data.below(16) as i32 - 1).collect::<Vec<_>>();
        let (queries, key_ids) = (ids(24), ids(2 * keys));
        let hosts = [
            Host::counted(1, 0),
            Places { query_lengths: Some(&[12, 7]), key_lengths: Some(&[5, 9]), ..Host::counted(1, 0) },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&key_ids), ..Host::counted(0, 0) },
        ];
        for (i, case) in every_case(&shape, 3 + heads as u64).iter().enumerate() {
            check::<f32>(&gpu, case, &shape, &With::of(hosts[i % 3]));
            check::<f16>(&gpu, case, &shape, &With { factor: -0.75, ..With::of(hosts[(i + 1) % 3]) });
            check::<bf16>(&gpu, case, &shape, &With { gates: Some(&gates), ..With::of(hosts[(i + 2) % 3]) });
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_terms_of_packed_sequences_are_the_reference() {
    let gpu = gpu();
    let (firsts, key_firsts) = ([0, 5, 5, 11], [1, 6, 8, 16]);
    let shape = Logits::bhqk(1, 2, 12, 16);
    let places = Places {
        packed: Some(Packed { queries: &firsts[..], keys: &key_firsts[..], sequences: 3 }),
        ..Host::counted(0, 0)
    };
    for case in every_case(&shape, 8) {
        check::<f32>(&gpu, &case, &shape, &With::of(places));
    }
    let (shape, places) = every_place_of_a_pack();
    for case in large(&shape).iter().filter(|case| !case.name.contains("chunks")) {
        check::<f32>(&gpu, case, &shape, &With::of(places));
        check::<bf16>(&gpu, case, &shape, &With::of(places));
    }
    // A sequence that begins inside a warp's step of 256 keys and goes on behind it.
    let (shape, places) = (Logits::bhqk(1, 1, 4, 600), Places::packed(&[0, 2, 4][..], &[0, 5, 600], 2));
    for case in large(&shape).iter().filter(|case| ["few entries", "one number"].contains(&case.name)) {
        check::<f32>(&gpu, case, &shape, &With::of(places));
    }
}

/// Layouts of grad that 16-byte accesses fit and that they do not fit give the same bits, and so do two runs.
fn same_bits(gpu: &Gpu, case: &GradCase, shape: Logits, with: &With) {
    let _context = Context(|| format!("{shape:?} {with:?} {case:?}"));
    let keys = shape.keys;
    let values: Vec<bf16> = Data::new(9).values(shape.elements().unwrap());
    let bits = |shape: Logits, shift: usize| {
        let mut grad = vec![bf16::NAN; shape.span().unwrap()];
        for (row, values) in values.chunks(keys.max(1)).enumerate() {
            let (head, query) = (row / shape.queries, row % shape.queries);
            let first = shape.index(head / shape.heads, head % shape.heads, query, 0);
            grad[first..first + keys].copy_from_slice(values);
        }
        let out = run(gpu, case, &grad, &shape, with, shift);
        packed(&case.numbers, &out).iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let wide = shape.row(keys.next_multiple_of(8));
    let first = bits(wide, 0);
    assert_eq!(first, bits(wide, 0), "twice");
    assert_eq!(first, bits(wide.row(keys.next_multiple_of(8) + 8).at(8), 0), "other rows");
    assert_eq!(first, bits(shape.row(keys.next_multiple_of(8) + 1).at(1), 1), "narrow");
}

/// Several steps of a row, several parts of an item, several chunks of a row's entries.
fn large(shape: &Logits) -> Vec<GradCase> {
    let Logits { batch, heads, queries, keys, .. } = *shape;
    let rows = |rows: usize, entries: usize| Numbers::rows(batch, heads, rows, entries);
    vec![
        GradCase::new("few entries", Term::table(Distances::shaw(6, 3)), Numbers::table(10, heads)),
        GradCase::new("one table", Term::table(Distances::deberta(32, 300).unwrap()), Numbers::by_head(1, 64)),
        GradCase::new("chunks", Term::table(Distances::bert(3100)), Numbers::table(6199, heads)),
        GradCase::new("one number", Term::whole(), Numbers::rows(1, 1, 1, 1)),
        GradCase::new("shaw", Term::queries(Distances::shaw(40, 8)), rows(queries, 49)),
        GradCase::new("bert", Term::queries(Distances::bert(512)), rows(queries, 1023)),
        GradCase::new("chunks of queries", Term::queries(Distances::bert(3100)), rows(queries, 6199)),
        GradCase::new("key chunks", Term::keys(Distances::bert(400)), Numbers::rows(1, heads, keys, 799)),
        GradCase::new("deberta", Term::keys(Distances::deberta(128, 300).unwrap()), rows(keys, 256)),
        GradCase::new("few of keys", Term::keys(Distances::shaw(6, 3)), rows(keys, 10)),
        GradCase::new("key row", Term::whole(), Numbers::rows(1, 1, 1, keys)),
        GradCase::new("query column", Term::whole(), Numbers::rows(1, heads, queries, 1)),
        GradCase::new("pairs", Term::whole(), Numbers::rows(1, heads, queries, keys)),
        GradCase::new("all pairs", Term::whole(), Numbers::rows(1, 1, queries, keys)),
        GradCase::new("own pairs", Term::whole(), rows(queries, keys)),
        GradCase::new("ends", Term::endpoints(), rows(queries, 1)),
        GradCase { of_keys: true, ..GradCase::new("key ends", Term::endpoints(), rows(keys, 1)) },
    ]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn long_rows_of_any_layout_give_the_same_bits() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 2, 300, 290);
    for case in large(&shape) {
        check::<bf16>(&gpu, &case, &shape.row(292), &With::of(Host::counted(3, 0)));
        same_bits(&gpu, &case, shape, &With::of(Host::counted(0, 0)));
    }
}

/// The entries of a row are summed in chunks of 6008, those of keys' rows in chunks of 695: the first and the last entry and
/// those at a chunk's border, in turn.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn entries_at_the_border_of_a_chunk_are_their_own() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 1, 16, 64);
    let in_turn = |of: [i32; 6], count: usize| of.into_iter().cycle().take(count).collect::<Vec<_>>();
    // The first entry is the distance -3099 or 3099, -399 or 399.
    let (zeros, keys) = ([0; 64], in_turn([-3099, -2909, -2908, 2908, 2909, 3099], 64));
    let by_keys = Places { queries: Place::Ids(&zeros[..16]), keys: Place::Ids(&keys[..]), ..Places::counted(0, 0) };
    let table = GradCase::new("table", Term::table(Distances::bert(3100)), Numbers::by_head(1, 6199));
    let rows = GradCase::new("queries", Term::queries(Distances::bert(3100)), Numbers::rows(1, 1, 16, 6199));
    check::<f32>(&gpu, &table, &shape, &With::of(by_keys));
    check::<f32>(&gpu, &rows, &shape, &With::of(by_keys));
    let queries = in_turn([399, 296, 295, -295, -296, -399], 16);
    let by_queries = Places { queries: Place::Ids(&queries[..]), keys: Place::Ids(&zeros[..]), ..by_keys };
    let columns = GradCase::new("keys", Term::keys(Distances::bert(400)), Numbers::rows(1, 1, 64, 799));
    check::<f32>(&gpu, &columns, &shape, &With::of(by_queries));
}

/// Rows of grad and of the output that begin at multiples of 16 bytes and fill whole packs, steps and blocks.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_terms_of_aligned_rows_are_the_reference() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 4, 128, 256);
    for case in large(&shape) {
        check::<f32>(&gpu, &case, &shape, &With::of(Host::counted(0, 0)));
        check::<bf16>(&gpu, &case, &shape, &With::of(Host::counted(0, 0)));
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn each_number_of_a_terms_gradient_is_read_once() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 2, 256, 512);
    for case in large(&shape) {
        let grad: Vec<f32> = Data::new(5).values(shape.span().unwrap());
        run(&gpu, &case, &grad, &shape, &With::of(Host::counted(0, 0)), 0);
        let Some(report) = last_launch() else { return };
        // Of 4 and 16 bytes; entries of distances are of 2.
        let [_, _, single, _, wide, _] = report.counters.global_accesses;
        let (size, read) = (4 * grad.len() as u64, 4 * single + 16 * wide - report.counters.bytes_written);
        println!(
            "{}: {read} bytes of {size}, {} instructions for each number",
            case.name,
            report.counters.instructions() / grad.len() as u64
        );
        assert!((size..=size * 11 / 10).contains(&read), "{} {report:?}", case.name);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_call_without_pairs_has_gradients_of_zero() {
    let gpu = gpu();
    for shape in [Logits::bhqk(2, 2, 0, 5), Logits::bhqk(2, 2, 5, 0), Logits::bhqk(0, 2, 5, 5)] {
        for case in large(&shape).into_iter().filter(|case| case.numbers.entries > 0) {
            let got = run::<f32>(&gpu, &case, &[], &shape, &With::of(Host::counted(0, 0)), 0);
            assert!(packed(&case.numbers, &got).iter().all(|&x| x == 0.0), "{case:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_the_gradient_of_a_term_is_refused() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 2, 4, 4);
    let grad = gpu.stream().clone_htod(&[0.0f32; 4096]).unwrap();
    let ids = gpu.stream().clone_htod(&[0i32; 64]).unwrap();
    let mut out = gpu.stream().clone_htod(&[7.0f32; 64]).unwrap();
    let mut text = |term: &Term, shape: Logits, inputs: &[DeviceTermInputs], numbers: Numbers| {
        let plan = TermGradPlan::<f32>::new(&gpu, term, Logits::bhqk(2, 2, 4, 4)).unwrap();
        let inputs = BiasInputs { terms: inputs, ..Places::counted(0, 0).into() };
        let error = plan.apply(shape.of(&grad), inputs, 1.0, numbers, &mut out).unwrap_err().to_string();
        assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), [7.0; 64]);
        error
    };
    let (window, whole) = (Term::table(Window::swin(2, 2)), Term::whole());
    let table = Numbers::table(9, 2);
    assert_eq!(
        text(&window, shape, &[], Numbers::table(8, 2)),
        "the numbers of a term are [1, 2, 1, 8], they must be [2 or 1, 2 or 1, 1, 9]"
    );
    assert_eq!(text(&window, shape, &[], table.at(60)), "out holds 64 elements, the shape needs 78");
    assert_eq!(
        text(&whole, shape, &[], Numbers { strides: [0, 16, 4, 1], ..Numbers::rows(2, 2, 4, 4) }),
        "out is written and its elements overlap: a dimension of 2 has stride 0, and 1 elements lie below it"
    );
    assert_eq!(
        text(&window, Logits::bhqk(2, 2, 5, 4), &[], table),
        "the call has queries at positions 0 to 4, a term by coordinates has 4"
    );
    assert_eq!(text(&window, Logits::bhqk(300, 2, 4, 4), &[], table), "grad holds 4096 elements, the shape needs 9600");
    assert_eq!(
        text(&whole, Logits::bhqk(1, 1, 1024, 4), &[], Numbers::rows(1, 1, 1, 1)),
        "a call of 1024 queries and 4 keys needs 8 numbers of scratch memory, the plan was made with 0"
    );
    let numbers = gpu.stream().clone_htod(&[0.0f32; 64]).unwrap();
    let brings = DeviceTermInputs::of(Numbers::table(9, 2).of(&numbers));
    assert_eq!(
        text(&window, shape, &[brings], table),
        "the gradient of a term does not depend on its numbers: leave them out"
    );
    let at = DeviceTermInputs { query_at: Some(&ids as _), ..DeviceTermInputs::default() };
    assert_eq!(text(&whole, shape, &[at], Numbers::rows(1, 1, 4, 4)), "a term by query and key reads no query_at");
    assert_eq!(text(&window, shape, &[at, at], table), "the call brings inputs of 2 terms, the gradient is of one");
    let given = Term::table(Index::Given { rows: 4, columns: 4, entries: 9 });
    assert_eq!(text(&given, shape, &[], table), "a term by given indices needs indices, there are none");
    assert_eq!(
        text(&Term::endpoints(), shape, &[], Numbers::rows(2, 2, 4, 2)),
        "the gradients of the queries' ends are [2, 2, 4, 2], they must be [2 or 1, 2 or 1, 4, 1]"
    );
    assert_eq!(
        text(&Term::endpoints(), shape, &[], Numbers::rows(2, 2, 3, 1)),
        "the gradients of the queries' ends are [2, 2, 3, 1], they must be [2 or 1, 2 or 1, 4, 1]"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_has_no_gradient_and_memory_that_is_shared_is_refused() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 4, 4);
    let shifted = ShiftedWindows { height: 4, width: 4, window: [2, 2], shift: [1, 1] };
    let error = TermGradPlan::<f32>::new(&gpu, &Term::shifted(shifted, -100.0), shape).unwrap_err().to_string();
    assert_eq!(error, "a term by shifted windows reads no numbers, there is no gradient");
    let mut grad = gpu.stream().clone_htod(&[0.0f32; 64]).unwrap();
    let plan = TermGradPlan::<f32>::new(&gpu, &Term::table(Window::swin(2, 2)), shape).unwrap();
    let table = Numbers::table(9, 2);
    let mut inside = alias::<f32, _>(&grad, 4 * 8, 18);
    let error = plan.apply(shape.of(&grad), Places::counted(0, 0), 1.0, table, &mut inside).unwrap_err().to_string();
    assert!(error.ends_with("may overlap in one buffer"), "{error}");
    let places = Places::counted(0, 0);
    let error =
        plan.apply_keys(shape.of(&gpu.stream().clone_htod(&[0.0f32; 32]).unwrap()), places, 1.0, table, &mut grad);
    assert_eq!(error.unwrap_err().to_string(), "a term by coordinates has no numbers of the keys' ends");
}
