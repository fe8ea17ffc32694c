use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use posenc::accuracy::{Expected, assert_close, rounded};
use posenc::attend::{HostInputs, RelativeTableGradPlan, RelativeValues, RelativeValuesGrad, RelativeValuesPlan};
use posenc::bias::{AnyNumbers, Distances, Numbers, Outside, Sign};
use posenc::{Gpu, Heads, Logits, Packed, Place, Places, Scalar, Softmax};

use crate::biases::{Buffers, Context, Host, every_place_of_a_pack};
use crate::cases::content;
use crate::support::{Data, Guarded, alias, gpu, last_launch};
use crate::terms_support::{Own, short};

/// One call with its data.
struct Case<T> {
    spec: RelativeValues,
    shape: Logits,
    numbers: Numbers,
    heads: Heads,
    p: Vec<T>,
    table: Vec<f32>,
    z: Vec<T>,
}

impl<T: Own> Case<T> {
    fn new(spec: &RelativeValues, shape: Logits, numbers: Numbers, heads: Heads, seed: u64) -> Self {
        let mut data = Data::new(seed);
        let table = short(&mut data, numbers.span().unwrap());
        let mut p: Vec<T> = data.values(shape.span().unwrap());
        // Keys that a softmax masked.
        p.iter_mut().step_by(7).for_each(|p| *p = T::from_f32(0.0));
        let z = data.values(heads.span().unwrap());
        Self { spec: spec.clone(), shape, numbers, heads, p, table, z }
    }

    fn expect(&self, places: &Host) -> Expected {
        let Self { spec, shape, numbers, heads, p, table, z } = self;
        spec.expect((p, *shape), (table, *numbers), (z, *heads), places).unwrap()
    }

    fn grad(&self, places: &Host) -> RelativeValuesGrad {
        let Self { spec, shape, numbers, heads, p, table, z } = self;
        spec.grad((p, *shape), (table, *numbers), (z, *heads), places).unwrap()
    }

    /// The values on the device; `shift` of p and z, and by its lowest bit a table of `T`.
    fn run(&self, gpu: &Gpu, places: &Host, shift: usize) -> Vec<T> {
        let buffers = Buffers::new(gpu, places);
        let (mut p, mut z) = (Guarded::new(gpu, &self.p, shift), Guarded::new(gpu, &self.z, shift));
        let table = Table::new(gpu, self);
        let table = table.view(shift);
        let plan = RelativeValuesPlan::<T>::new(gpu, &self.spec).unwrap();
        plan.add(self.shape.of(&p.view()), table, self.heads.of_mut(&mut z.view()), buffers.places(places)).unwrap();
        z.read(gpu)
    }

    /// The gradient of the probabilities over `before`, which is p.
    fn run_grad(&self, gpu: &Gpu, places: &Host, shift: usize, add: bool) -> Vec<T> {
        let buffers = Buffers::new(gpu, places);
        let (mut dp, mut dz) = (Guarded::new(gpu, &self.p, shift), Guarded::new(gpu, &self.z, shift));
        let table = Table::new(gpu, self);
        let plan = RelativeValuesPlan::<T>::new(gpu, &self.spec).unwrap();
        let (dz, mut view) = (dz.view(), dp.view());
        plan.grad(self.heads.of(&dz), table.view(shift), self.shape.of_mut(&mut view), buffers.places(places), add)
            .unwrap();
        dp.read(gpu)
    }

    fn run_table_grad(&self, gpu: &Gpu, places: &Host, shift: usize) -> Vec<f32> {
        let buffers = Buffers::new(gpu, places);
        let (mut p, mut dz) = (Guarded::new(gpu, &self.p, shift), Guarded::new(gpu, &self.z, shift));
        let (heads, dim) = (self.numbers.heads, self.heads.dim);
        let plan = RelativeTableGradPlan::<T>::new(gpu, &self.spec, heads, dim, self.shape).unwrap();
        let mut out = Guarded::<f32>::poisoned(gpu, plan.len(), 1);
        let (p, dz) = (p.view(), dz.view());
        plan.apply(self.shape.of(&p), self.heads.of(&dz), buffers.places(places), &mut out.view()).unwrap();
        out.read(gpu)
    }

    #[track_caller]
    fn check(&self, gpu: &Gpu, places: &Host, shift: usize) {
        let _context = Context(|| format!("{} {:?} {:?} {places:?} {shift}", T::NAME, self.spec, self.shape));
        let want = self.expect(places);
        assert_close(&self.run(gpu, places, shift), &want.want, |i| want.bound[i]);
        let grad = self.grad(places);
        for add in [false, true] {
            let want: Vec<f64> = (0..self.p.len())
                .map(|i| {
                    let before = if add || !self.holds(i) { self.p[i].to_f64() } else { 0.0 };
                    before + grad.p[i]
                })
                .collect();
            let bound = |i: usize| {
                let error = grad.p_error[i] + if add { f32::ROUNDOFF * want[i].abs() } else { 0.0 };
                if grad.p_error[i] == 0.0 { 0.0 } else { rounded::<T>(want[i], error) }
            };
            assert_close(&self.run_grad(gpu, places, shift, add), &want, bound);
        }
        assert_close(&self.run_table_grad(gpu, places, shift), &grad.table, |i| grad.table_bound[i]);
    }

    /// True if an element of the buffer of p belongs to its tensor.
    fn holds(&self, index: usize) -> bool {
        let Logits { batch, heads, queries, keys, .. } = self.shape;
        (0..batch * heads * queries).any(|row| {
            let at = self.shape.index(row / queries / heads, row / queries % heads, row % queries, 0);
            (at..at + keys).contains(&index)
        })
    }
}

/// The table on the device, as f32 and as `T`.
struct Table<T> {
    numbers: Numbers,
    f32s: CudaSlice<f32>,
    own: CudaSlice<T>,
}

impl<T: Own> Table<T> {
    fn new(gpu: &Gpu, case: &Case<T>) -> Self {
        let own: Vec<T> = case.table.iter().map(|&x| T::from_f32(x)).collect();
        Self { numbers: case.numbers, f32s: gpu.upload(&case.table), own: gpu.upload(&own) }
    }

    /// Of `T` for odd shifts.
    fn view(&self, shift: usize) -> AnyNumbers<'_> {
        if shift % 2 == 1 { T::numbers(&self.own, self.numbers) } else { self.numbers.of(&self.f32s).into() }
    }
}

/// Clamped and not, both signs, one distance, a lookup.
fn each_index() -> Vec<RelativeValues> {
    let band = |first, count| Distances { outside: Outside::Zero, ..Distances::new(Sign::QueryMinusKey, first, count) };
    [
        Distances::shaw(4, 4),
        Distances::shaw(3, 0),
        Distances::shaw(0, 0),
        Distances::bert(6),
        Distances::inkling(5),
        band(-2, 6),
        band(3, 1),
        Distances::new(Sign::QueryMinusKey, -40, 90),
        Distances::deberta(4, 9).unwrap(),
        Distances { lookup: vec![2, 0, 1, 1, 2], entries: 3, ..Distances::shaw(2, 2) },
    ]
    .into_iter()
    .map(RelativeValues::new)
    .chain([RelativeValues::vits(4)])
    .collect()
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn equation_3_of_shaw_by_hand() {
    // arXiv 1803.02155, equation 3, with a clipping distance of 1: z = sum of p_j (v_j + a_clip(j - i)).
    let p = [0.5f32, 0.125, 0.125, 0.25];
    let values = RelativeValues::new(Distances::shaw(1, 1));
    let table = [1.0f32, 10.0, 2.0, 20.0, 4.0, 40.0];
    for (query, want) in [(0, [0.5 * 2.0 + 0.5 * 4.0, 25.0]), (1, [2.25, 22.5]), (3, [0.75 + 0.5, 12.5])] {
        let mut z = [0.0f32, 5.0];
        let (shape, heads) = (Logits::bhqk(1, 1, 1, 4), Heads::bthd(1, 1, 1, 2));
        let table = (&table[..], Numbers::rows(1, 1, 3, 2));
        values.add((&p, shape), table, (&mut z, heads), &Places::counted(query, 0)).unwrap();
        let want = if query == 0 { [3.0, 30.0 + 5.0] } else { [want[0], want[1] + 5.0] };
        assert_eq!(z, want, "query {query}");
    }
}

/// Hugging Face's VitsAttention, from its scores to its output and back: `tests/golden/content.json`.
#[test]
fn vits_is_hugging_face() {
    for case in content().iter().filter(|case| case.name().starts_with("vits_")) {
        let [batch, heads, tokens, dim, window] =
            ["batch", "heads", "tokens", "dim", "window"].map(|name| case.size(name));
        let (shape, values) = (Logits::bhqk(batch, heads, tokens, tokens), Heads::bhtd(batch, heads, tokens, dim));
        let mut p = case.f32s("scores");
        Softmax::new(1.0).apply(&mut p, &shape, &HostInputs::default()).unwrap();
        let (v, dz, table) = (case.f32s("v"), case.f32s("upstream"), case.f32s("table_v"));
        let mut z = vec![0.0f32; v.len()];
        for [b, h, i] in (0..batch * heads * tokens).map(|r| [r / tokens / heads, r / tokens % heads, r % tokens]) {
            for c in 0..dim {
                let term = |j: usize| p[shape.index(b, h, i, j)] * v[values.index(b, j, h, c)];
                z[values.index(b, i, h, c)] = (0..tokens).map(term).sum();
            }
        }
        let spec = RelativeValues::vits(window);
        let table = (&table[..], Numbers::rows(1, 1, 2 * window + 1, dim));
        spec.add((&p, shape), table, (&mut z, values), &Places::counted(0, 0)).unwrap();
        assert_close(&z, &case.f64s("output"), |_| 2e-6);
        let grad = spec.grad((&p, shape), table, (&dz, values), &Places::counted(0, 0)).unwrap();
        let got: Vec<f32> = grad.table.iter().map(|&x| x as f32).collect();
        assert_close(&got, &case.f64s("table_v_gradient"), |_| 2e-6);
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn gradients_are_those_of_finite_differences() {
    let (shape, heads) = (Logits::bhqk(2, 2, 3, 5), Heads::bthd(2, 3, 2, 4));
    let places = Host { key_lengths: Some(&[5, 3]), ..Host::counted(1, 0) };
    for spec in each_index() {
        for table_heads in [1, 2] {
            let numbers = Numbers::rows(1, table_heads, spec.index.entries, 4);
            let mut case = Case::<f32>::new(&spec, shape, numbers, heads, 3);
            let dz: Vec<f32> = Data::new(9).values(case.z.len());
            let grad = case.spec.grad((&case.p, shape), (&case.table, numbers), (&dz, heads), &places).unwrap();
            let loss = |case: &Case<f32>| -> f64 {
                case.expect(&places).want.iter().zip(&dz).map(|(z, dz)| z * f64::from(*dz)).sum()
            };
            let step = 1.0 / 256.0f32;
            let near = |got: f64, up: f64, down: f64, what: &str| {
                let want = (up - down) / f64::from(2.0 * step);
                assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{what}: {got} and {want}");
            };
            for i in 0..case.p.len() {
                let kept = case.p[i];
                // Multiples of the step, so that both differences are exact.
                let middle = (kept * 256.0).round() / 256.0;
                let mut at = |p: f32| {
                    case.p[i] = p;
                    loss(&case)
                };
                let (up, down) = (at(middle + step), at(middle - step));
                case.p[i] = kept;
                near(grad.p[i], up, down, "probability");
            }
            for i in 0..case.table.len() {
                let kept = case.table[i];
                let middle = (kept * 256.0).round() / 256.0;
                let mut at = |x: f32| {
                    case.table[i] = x;
                    loss(&case)
                };
                let (up, down) = (at(middle + step), at(middle - step));
                case.table[i] = kept;
                near(grad.table[i], up, down, "table");
            }
        }
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_index_and_place() {
    let gpu = gpu();
    let mut data = Data::new(5);
    for (turn, spec) in each_index().iter().enumerate() {
        let mut ids = |count: usize| (0..count).map(|_| data.below(14) as i32 - 2).collect::<Vec<_>>();
        let (queries, keys) = (ids(14), ids(38));
        let hosts = [
            Host::counted(5, 0),
            Host::bottom_right(),
            Host::counted(-3, 4),
            Places { query_lengths: Some(&[3, 7]), key_lengths: Some(&[19, 6]), ..Host::bottom_right() },
            Places { queries: Place::Ids(&queries), ..Host::counted(0, 2) },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) },
        ];
        let shape = Logits::bhqk(2, 3, 7, 19);
        let entries = spec.index.entries;
        for (i, places) in hosts.iter().enumerate() {
            let shared = Numbers::rows(1, 1, entries, 5);
            let own = Numbers { strides: [0, entries * 8, 8, 1], offset: 2, ..Numbers::rows(1, 3, entries, 5) };
            // Channels outermost.
            let turned = Numbers { strides: [0, 1, 3, 3 * entries], ..own };
            let (heads, other) = (Heads::bthd(2, 7, 3, 5), Heads::bhtd(2, 3, 7, 5).row(16).at(3));
            let other = Heads { strides: [7 * 64, 64, 16], ..other };
            let turn = turn + i;
            Case::<f32>::new(spec, shape.row(24), [shared, own, turned][turn % 3], heads, 1).check(&gpu, places, 0);
            Case::<bf16>::new(spec, shape, [own, shared][turn % 2], other, 2).check(&gpu, places, 1);
            Case::<f16>::new(spec, shape.row(24), own, heads, 3).check(&gpu, places, 8 * (turn % 2));
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_are_those_apart() {
    let gpu = gpu();
    let (firsts, key_firsts) = ([1, 5, 5, 11], [0, 6, 8, 16]);
    let packed = |places| Places {
        packed: Some(Packed { queries: &firsts[..], keys: &key_firsts[..], sequences: 3 }),
        ..places
    };
    let (shape, heads) = (Logits::bhqk(1, 2, 12, 16), Heads::thd(12, 2, 9));
    for spec in each_index() {
        let numbers = Numbers::rows(1, 2, spec.index.entries, 9);
        Case::<f32>::new(&spec, shape, numbers, heads, 4).check(&gpu, &packed(Host::counted(1, 0)), 1);
        Case::<bf16>::new(&spec, shape, numbers, heads, 5).check(&gpu, &packed(Host::bottom_right()), 0);
    }
    let ((shape, places), heads) = (every_place_of_a_pack(), Heads::thd(8, 2, 9));
    for spec in each_index() {
        let numbers = Numbers::rows(1, 2, spec.index.entries, 9);
        Case::<bf16>::new(&spec, shape, numbers, heads, 6).check(&gpu, &places, 0);
    }
}

/// Channels of several passes, rows beyond a warp's, keys beyond a warp's step, tables beyond a tile, splits.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_at_every_edge() {
    let gpu = gpu();
    let place = Host::counted(40, 0);
    for dim in [1, 31, 32, 33, 64, 128, 129, 300] {
        let spec = RelativeValues::new(Distances::shaw(16, 16));
        let (shape, heads) = (Logits::bhqk(1, 2, 5, 70).row(72), Heads::thd(5, 2, dim));
        Case::<bf16>::new(&spec, shape, Numbers::rows(1, 1, 33, dim), heads, dim as u64).check(&gpu, &place, 0);
        Case::<f32>::new(&spec, shape, Numbers::rows(1, 2, 33, dim), heads, dim as u64).check(&gpu, &place, 1);
    }
    let place = Host::counted(300, 0);
    for (left, right, keys) in [(255, 256, 600), (300, 212, 601), (700, 520, 1400)] {
        let index = Distances::new(Sign::QueryMinusKey, -right, (left + right + 1) as usize);
        let band = RelativeValues::new(Distances { outside: Outside::Zero, ..index.clone() });
        let (shape, heads) = (Logits::bhqk(1, 1, 3, keys), Heads::thd(3, 1, 130));
        for spec in [band, index.into()] {
            let numbers = Numbers::rows(1, 1, spec.index.entries, 130);
            Case::<f16>::new(&spec, shape, numbers, heads, 6).check(&gpu, &place, 0);
        }
    }
    // A lookup and positions of more entries than a tile of bins.
    let lookup = (0..1100).map(|i| (i * 7 % 600) as u16).collect();
    let index = Distances { lookup, entries: 600, ..Distances::new(Sign::KeyMinusQuery, -550, 1100) };
    let (shape, heads) = (Logits::bhqk(1, 1, 2, 900), Heads::thd(2, 1, 33));
    let ids: Vec<i32> = (0..900).rev().collect();
    let ids = Places { keys: Place::Ids(&ids[..]), ..Host::counted(450, 0) };
    Case::<f32>::new(&index.clone().into(), shape, Numbers::rows(1, 1, 600, 33), heads, 7).check(&gpu, &place, 0);
    Case::<bf16>::new(&index.into(), shape, Numbers::rows(1, 1, 600, 33), heads, 8).check(&gpu, &ids, 0);
}

/// Many rows: warps of four, and splits of the table's gradient.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn many_rows_are_the_reference() {
    let gpu = gpu();
    // Keys beyond the window count, so that every row has weights.
    let spec = RelativeValues::new(Distances::shaw(4, 4));
    let (shape, heads) = (Logits::bhqk(3, 4, 1111, 9), Heads::bthd(3, 1111, 4, 8));
    let place = Host::counted(2, 0);
    for table_heads in [1, 4] {
        let case = Case::<bf16>::new(&spec, shape, Numbers::rows(1, table_heads, 9, 8), heads, 8);
        let want = case.expect(&place);
        assert_close(&case.run(&gpu, &place, 0), &want.want, |i| want.bound[i]);
        let grad = case.grad(&place);
        assert_close(&case.run_table_grad(&gpu, &place, 0), &grad.table, |i| grad.table_bound[i]);
        // The first queries alone have the same bits, whatever a warp's rows are.
        let few = Case::<bf16> { shape: Logits { queries: 5, ..shape }, heads: Heads { tokens: 5, ..heads }, ..case };
        let (few_z, all_z) = (few.run(&gpu, &place, 1), Case { shape, heads, ..few }.run(&gpu, &place, 0));
        for [b, h, i] in (0..3 * 4 * 5).map(|r| [r / 20, r / 5 % 4, r % 5]) {
            let at = heads.index(b, i, h, 0);
            assert_eq!(few_z[at..at + 8], all_z[at..at + 8]);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shards_of_queries_and_longer_caches_are_slices_of_the_whole() {
    let gpu = gpu();
    for spec in each_index() {
        let entries = spec.index.entries;
        let (shape, heads) = (Logits::bhqk(1, 2, 9, 30), Heads::bthd(1, 9, 2, 20));
        let whole = Case::<f32>::new(&spec, shape, Numbers::rows(1, 2, entries, 20), heads, 12);
        let z = whole.run(&gpu, &Host::counted(21, 0), 0);
        let dp = whole.run_grad(&gpu, &Host::counted(21, 0), 0, false);
        for (first, count) in [(0, 4), (4, 5), (8, 1)] {
            let part = Logits { queries: count, offset: first * 30, ..shape };
            let own = Heads { tokens: count, offset: first * 40, ..heads };
            let case = Case::<f32> { shape: part, heads: own, ..Case::new(&spec, shape, whole.numbers, heads, 12) };
            let place = Host::counted(21 + first as i64, 0);
            let (part_z, part_dp) = (case.run(&gpu, &place, 1), case.run_grad(&gpu, &place, 0, false));
            for (h, i) in (0..2 * count).map(|r| (r / count, first + r % count)) {
                let at = heads.index(0, i, h, 0);
                assert_eq!(part_z[at..at + 20], z[at..at + 20], "{spec:?} {h} {i}");
                let at = shape.index(0, h, i, 0);
                assert_eq!(part_dp[at..at + 30], dp[at..at + 30], "{spec:?} {h} {i}");
            }
        }
        // Behind the keys that have a weight there are more.
        let longer = Logits::bhqk(1, 2, 9, 300);
        let mut p = vec![0.0f32; longer.elements().unwrap()];
        for row in 0..18 {
            p[row * 300..row * 300 + 30].copy_from_slice(&whole.p[row * 30..row * 30 + 30]);
        }
        let case = Case { shape: longer, p, ..whole };
        assert_eq!(case.run(&gpu, &Host::counted(21, 0), 0), z, "{spec:?}");
    }
}

/// One query at the end of a cache: each key is read once.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn each_probability_is_read_once() {
    let gpu = gpu();
    let (keys, dim) = (4096, 64);
    for (spec, queries, read) in [
        (RelativeValues::new(Distances::shaw(16, 16)), 1, keys),
        (RelativeValues::new(Distances::shaw(16, 16)), 64, keys),
        (RelativeValues::vits(4), 1, 16),
    ] {
        let (shape, heads) = (Logits::bhqk(1, 2, queries, keys), Heads::bthd(1, queries, 2, dim));
        let mut case = Case::<bf16>::new(&spec, shape, Numbers::rows(1, 1, spec.index.entries, dim), heads, 3);
        // An entry without weight is not read.
        case.p = Data::new(8).values(case.p.len());
        let place = Host::counted((keys - queries) as i64 / 2, 0);
        let want = case.expect(&place);
        assert_close(&case.run(&gpu, &place, 0), &want.want, |i| want.bound[i]);
        let Some(report) = last_launch() else { continue };
        // Few rows: a warp for each, which reads the table.
        let rows = 2 * queries;
        let table = rows * spec.index.entries * dim * 4;
        let got = report.counters.bytes_read - table as u64;
        let least = (rows * (read + dim) * 2) as f64;
        assert!(got as f64 <= 1.1 * least, "{got} bytes of p and z, {least} are there");
        assert_eq!(report.counters.bytes_written, (rows * dim * 2) as u64);
    }
}

/// Added, the gradient of probabilities touches the keys of the window alone; the table's reads no others.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_leave_keys_beyond_the_window_alone() {
    let gpu = gpu();
    let (rows, keys, dim) = (64, 4096, 64);
    let (shape, heads) = (Logits::bhqk(1, 1, rows, keys), Heads::thd(rows, 1, dim));
    let case = Case::<bf16>::new(&RelativeValues::vits(4), shape, Numbers::rows(1, 1, 9, dim), heads, 3);
    let place = Host::counted(2000, 0);
    case.run_grad(&gpu, &place, 0, true);
    let Some(report) = last_launch() else { return };
    assert_eq!(report.counters.bytes_written, (rows * 9 * 2) as u64);
    case.run_table_grad(&gpu, &place, 0);
    let report = last_launch().expect("the emulator counts");
    // Nine keys lie in up to three packs of eight, and three warps of four entries read dz.
    assert!(report.counters.bytes_read <= (rows * (24 + 3 * dim) * 2) as u64, "{:?}", report.counters.bytes_read);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn an_entry_without_weight_may_hold_anything() {
    let gpu = gpu();
    let spec = RelativeValues::new(Distances::shaw(4, 4));
    let (shape, heads) = (Logits::bhqk(1, 1, 2, 6), Heads::thd(2, 1, 8));
    let mut case = Case::<f32>::new(&spec, shape, Numbers::rows(1, 1, 9, 8), heads, 3);
    // Positions 4 and 5: no key of the future but one.
    case.table[6 * 8..].fill(f32::NAN);
    let want = case.expect(&Host::counted(4, 0));
    assert_close(&case.run(&gpu, &Host::counted(4, 0), 0), &want.want, |i| want.bound[i]);
    // Of the four rows of each warp one meets NaN.
    let rows = 20_000;
    let (shape, heads) = (Logits::bhqk(1, 1, rows, 1), Heads::thd(rows, 1, 8));
    let mut case = Case::<f32>::new(&spec, shape, Numbers::rows(1, 1, 9, 8), heads, 3);
    case.table[..8].fill(f32::NAN);
    case.p.fill(0.5);
    let queries: Vec<i32> = (0..rows as i32).map(|i| if i % 4 == 1 { 9 } else { 0 }).collect();
    let places = Places { queries: Place::Ids(&queries[..]), ..Host::counted(0, 0) };
    let want = case.expect(&places);
    assert_eq!(want.want.iter().filter(|z| z.is_nan()).count(), rows * 2);
    assert_close(&case.run(&gpu, &places, 0), &want.want, |i| want.bound[i]);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn calls_that_do_not_fit_are_refused() {
    let spec = RelativeValues::vits(2);
    let (shape, heads) = (Logits::bhqk(1, 2, 3, 4), Heads::bthd(1, 3, 2, 8));
    let (p, z, table) = ([0.0f32; 24], [0.0f32; 48], [0.0f32; 80]);
    let with = |shape: Logits, numbers: Numbers, heads: Heads| {
        spec.expect((&p, shape), (&table, numbers), (&z, heads), &Host::bottom_right()).unwrap_err().to_string()
    };
    let numbers = Numbers::rows(1, 1, 5, 8);
    assert_eq!(
        with(shape, numbers, Heads::bthd(1, 3, 1, 8)),
        "z has 1 sequences, 3 tokens and 1 heads, the probabilities have 1, 3 and 2"
    );
    assert_eq!(
        with(shape, Numbers::rows(1, 2, 4, 8), heads),
        "the table is [1, 2, 4, 8], it must be [1, 2 or 1, 5, 8]"
    );
    assert_eq!(
        with(shape, Numbers::rows(1, 1, 5, 16), heads),
        "the table is [1, 1, 5, 16], it must be [1, 2 or 1, 5, 8]"
    );
    assert_eq!(with(shape, Numbers::rows(1, 3, 5, 8), heads), "the table holds 80 elements, the shape needs 120");
    assert_eq!(with(shape.at(1), numbers, heads), "probabilities holds 24 elements, the shape needs 25");
    assert_eq!(with(shape, numbers, heads.at(1)), "z holds 48 elements, the shape needs 49");
    assert_eq!(
        RelativeValues::new(Distances::inkling(0)).check().unwrap_err().to_string(),
        "a term has 0 distances from 0, there must be at least 1 and all within 2^30"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_on_the_device_that_do_not_fit_are_refused() {
    let gpu = gpu();
    let spec = RelativeValues::vits(2);
    let (shape, heads, numbers) = (Logits::bhqk(1, 2, 3, 4), Heads::bthd(1, 3, 2, 8), Numbers::rows(1, 1, 5, 8));
    let (p, table) = (gpu.upload(&[0.5f32; 24]), gpu.upload(&[0.5f32; 40]));
    let mut z = gpu.upload(&[1.0f32; 48]);
    let shared = alias::<f32, _>(&z, 47 * 4, 40);
    let text = |result: posenc::Result<()>| result.unwrap_err().to_string();
    let plan = RelativeValuesPlan::<f32>::new(&gpu, &spec).unwrap();
    let at = || Places::bottom_right();
    assert_eq!(
        text(plan.add(shape.of(&p), Numbers::rows(1, 1, 5, 7).of(&table), heads.of_mut(&mut z), at())),
        "the table is [1, 1, 5, 7], it must be [1, 2 or 1, 5, 8]"
    );
    let other = Heads::bthd(1, 2, 2, 8);
    assert_eq!(
        text(plan.add(shape.of(&p), numbers.of(&table), other.of_mut(&mut z), at())),
        "z has 1 sequences, 2 tokens and 2 heads, the probabilities have 1, 3 and 2"
    );
    let halves = gpu.stream().clone_htod(&[f16::ONE; 40]).unwrap();
    assert_eq!(
        text(plan.add(shape.of(&p), numbers.of(&halves), heads.of_mut(&mut z), at())),
        "the table are f16, they must be f32"
    );
    let error = text(plan.add(shape.of(&p), numbers.of(&shared), heads.of_mut(&mut z), at()));
    assert_eq!(
        error,
        "z (offset 0, strides [48, 16, 8]) and the table (offset 47, strides [40, 40, 8]) may overlap in one buffer"
    );
    let error = text(plan.add(shape.of(&shared), numbers.of(&table), heads.of_mut(&mut z), at()));
    assert_eq!(
        error,
        "probabilities (offset 47, strides [24, 12, 4]) and z (offset 0, strides [48, 16, 8]) may overlap in one buffer"
    );
    let error = text(plan.grad(
        heads.of(&z),
        numbers.of(&table),
        shape.row(2).of_mut(&mut gpu.upload(&[0f32; 24])),
        at(),
        true,
    ));
    assert_eq!(
        error,
        "dp is written and its elements overlap: a dimension of 3 has stride 2, and 4 elements lie below it"
    );
    let grad = RelativeTableGradPlan::<f32>::new(&gpu, &spec, 1, 8, shape).unwrap();
    let mut short = gpu.upload(&[0f32; 39]);
    assert_eq!(
        text(grad.apply(shape.of(&p), heads.of(&z), at(), &mut short)),
        "out holds 39 elements, the shape needs 40"
    );
    let many = Logits::bhqk(1, 2, 900, 4);
    let (p, dz) = (gpu.upload(&vec![0f32; 7200]), gpu.upload(&vec![0f32; 900 * 16]));
    let mut out = gpu.upload(&[0f32; 40]);
    assert_eq!(
        text(grad.apply(many.of(&p), Heads::bthd(1, 900, 2, 8).of(&dz), at(), &mut out)),
        "a call of 1800 rows of a table needs 760 numbers of scratch memory, the plan was made with 0"
    );
    assert_eq!(
        text(RelativeTableGradPlan::<f32>::new(&gpu, &spec, 3, 8, shape).unwrap().apply(
            shape.of(&gpu.upload(&[0f32; 24])),
            heads.of(&z),
            at(),
            &mut gpu.upload(&[0f32; 120])
        )),
        "the call has 2 heads of 8 channels, the table was planned with 3 of 8"
    );
    assert_eq!(gpu.stream().clone_dtoh(&z).unwrap(), [1.0; 48]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn no_tokens_are_nothing_to_do_and_a_gradient_of_zero() {
    let gpu = gpu();
    let spec = RelativeValues::vits(1);
    let (table, p) = (gpu.upload(&[1f32; 24]), gpu.upload(&[1f32; 8]));
    let mut z = gpu.upload(&[3f32; 16]);
    let plan = RelativeValuesPlan::<f32>::new(&gpu, &spec).unwrap();
    for (batch, queries, keys) in [(0, 2, 2), (1, 0, 2), (1, 1, 0)] {
        let (shape, heads) = (Logits::bhqk(batch, 1, queries, keys), Heads::bthd(batch, queries, 1, 8));
        let places = Places::counted(0, 0);
        plan.add(shape.of(&p), Numbers::rows(1, 1, 3, 8).of(&table), heads.of_mut(&mut z), places).unwrap();
        let grad = RelativeTableGradPlan::<f32>::new(&gpu, &spec, 1, 8, shape).unwrap();
        let mut out = Guarded::<f32>::poisoned(&gpu, 24, 0);
        grad.apply(shape.of(&p), heads.of(&z), places, &mut out.view()).unwrap();
        assert_eq!(out.read(&gpu), [0.0; 24]);
    }
    assert_eq!(gpu.stream().clone_dtoh(&z).unwrap(), [3.0; 16]);
}

trait Upload {
    fn upload<V: cudarc::driver::DeviceRepr>(&self, values: &[V]) -> cudarc::driver::CudaSlice<V>;
}

impl Upload for Gpu {
    fn upload<V: cudarc::driver::DeviceRepr>(&self, values: &[V]) -> cudarc::driver::CudaSlice<V> {
        self.stream().clone_htod(values).unwrap()
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_of_tables_beyond_any_call_are_refused() {
    let (gpu, spec) = (gpu(), RelativeValues { index: Distances::shaw(64, 64) });
    let refused = |heads, dim, shape, want: &str| {
        let error = RelativeTableGradPlan::<f32>::new(&gpu, &spec, heads, dim, shape).unwrap_err();
        assert_eq!(error.to_string(), want);
    };
    let shape = Logits::bhqk(1, 8, 64, 64);
    let want = "tables x entries x channels (4611686018427387904 x 5 x 1) does not fit into 63 bits";
    refused(1 << 62, 64, shape, want);
    let want = "heads x splits x entries x dim (1099511627776 x 1 x 129 x 1048576) does not fit into 63 bits";
    refused(1 << 40, 1 << 20, shape, want);
    let want = "the call has 8796093022208 rows (batch x heads x queries), one takes 2147483647";
    refused(8, 64, Logits::bhqk(1 << 20, 8, 1 << 20, 64), want);
    // No rows are shared out to no heads.
    refused(2, 64, Logits::bhqk(1, 0, 64, 64), "max_shape has 0 heads, there must be at least 1");
}
