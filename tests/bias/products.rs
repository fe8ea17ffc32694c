use half::{bf16, f16};
use posenc::accuracy::{assert_close, rounded};
use posenc::bias::{
    BiasInputs, By, DeviceTermInputs, Distances, Numbers, Outside, ProductInputs, RelativeProducts,
    RelativeProductsPlan, Sign, Term,
};
use posenc::gpu::Read;
use posenc::{BiasPlan, Gpu, Heads, Logits, Packed, Place, Places, Scalar};

use crate::biases::{Buffers, Context, Host};
use crate::support::{Data, Guarded, alias, gpu, last_launch};

/// States, v and a table in host memory.
#[derive(Clone)]
struct Inputs<T> {
    states: (Vec<T>, Heads),
    bias: Option<Vec<f32>>,
    table: (Vec<T>, Numbers),
}

impl<T: Scalar> Inputs<T> {
    fn new(data: &mut Data, heads: Heads, numbers: Numbers, with_bias: bool) -> Self {
        Self {
            states: (data.values(heads.span().unwrap()), heads),
            bias: with_bias.then(|| data.values(heads.heads * heads.dim)),
            table: (data.values(numbers.span().unwrap()), numbers),
        }
    }

    /// Contiguous states and a table, of every head or of one.
    fn of(
        data: &mut Data,
        spec: &RelativeProducts,
        shape: &Logits,
        width: usize,
        (own, with_bias): (bool, bool),
    ) -> Self {
        let tokens = if spec.by == By::Keys { shape.keys } else { shape.queries };
        let table_heads = if own { shape.heads } else { 1 };
        let numbers = Numbers::rows(1, table_heads, spec.index.entries, width);
        Self::new(data, Heads::bthd(shape.batch, tokens, shape.heads, width), numbers, with_bias)
    }

    fn host(&self) -> ProductInputs<'_, T> {
        ProductInputs {
            states: (&self.states.0, self.states.1),
            bias: self.bias.as_deref(),
            table: (&self.table.0, self.table.1),
        }
    }
}

/// Writes or adds the products on the device; inputs lie between poisoned bands.
fn run<T: Scalar>(
    gpu: &Gpu,
    spec: &RelativeProducts,
    x: &[T],
    shape: &Logits,
    inputs: &Inputs<T>,
    places: &Host,
    (add, shift): (bool, usize),
) -> Vec<T> {
    let buffers = Buffers::new(gpu, places);
    let mut states = Guarded::new(gpu, &inputs.states.0, shift);
    let mut table = Guarded::new(gpu, &inputs.table.0, shift);
    let bias = inputs.bias.as_ref().map(|bias| gpu.stream().clone_htod(bias).unwrap());
    let mut x = Guarded::new(gpu, x, shift);
    let plan = RelativeProductsPlan::<T>::new(gpu, spec).unwrap();
    let call = if add { RelativeProductsPlan::add } else { RelativeProductsPlan::write };
    call(
        &plan,
        shape.of_mut(&mut x.view()),
        inputs.states.1.of(&states.view()),
        bias.as_ref().map(|bias| bias as Read<f32>),
        inputs.table.1.of(&table.view()),
        buffers.places(places),
    )
    .unwrap();
    x.read(gpu)
}

/// The reference: each pair's product in f64.
fn check<T: Scalar>(
    gpu: &Gpu,
    spec: &RelativeProducts,
    shape: &Logits,
    inputs: &Inputs<T>,
    places: &Host,
    shift: usize,
) {
    let _context = Context(|| {
        let (table, bias) = (inputs.table.1, inputs.bias.is_some());
        format!("{} {spec:?} {shape:?} {table:?} {bias} {places:?} {shift}", T::NAME)
    });
    let len = shape.span().unwrap();
    let before: Vec<T> = Data::new(5).values(len);
    let expected = spec.expect(shape, &inputs.host(), places).unwrap();
    for add in [false, true] {
        let got = run(gpu, spec, &before, shape, inputs, places, (add, shift));
        let (mut want, mut bound) = (before.iter().map(|x| x.to_f64()).collect::<Vec<_>>(), vec![0.0; len]);
        for row in 0..shape.batch * shape.heads * shape.queries {
            let (query, head) = (row % shape.queries, row / shape.queries % shape.heads);
            let first = shape.index(row / shape.queries / shape.heads, head, query, 0);
            for index in first..first + shape.keys {
                let product = expected.want[index];
                want[index] = product + if add { want[index] } else { 0.0 };
                // The fmaf that adds rounds once.
                let error = expected.bound[index] + f32::ROUNDOFF * want[index].abs();
                let untouched = product == 0.0 && expected.bound[index] == 0.0;
                bound[index] = if untouched || product.is_infinite() { 0.0 } else { rounded::<T>(want[index], error) };
            }
        }
        assert_close(&got, &want, |i| bound[i]);
    }
}

/// Every constructor, for distances within 80.
fn each_distances() -> Vec<Distances> {
    vec![
        Distances::shaw(5, 3),
        Distances::shaw(64, 8),
        Distances::vits(4),
        Distances::speecht5(20),
        Distances::gemma_audio(12, 2),
        Distances::bert(80),
        Distances::transformer_xl(75),
        Distances::xlnet(70, 75),
        Distances::conformer(75),
        Distances::inkling(30),
        Distances::inkling(1),
        Distances::deberta_v1(16),
        Distances::deberta(8, 40).unwrap(),
        Distances { outside: Outside::Zero, ..Distances::deberta(8, 20).unwrap() },
        Distances { outside: Outside::Zero, ..Distances::new(Sign::KeyMinusQuery, -2, 5) },
    ]
}

fn specs() -> impl Iterator<Item = RelativeProducts> {
    each_distances().into_iter().flat_map(|index| {
        [RelativeProducts::queries(index.clone()), RelativeProducts { factor: -0.75, ..RelativeProducts::keys(index) }]
    })
}

// -------------------------------------------------------------------------------------------- kernel against reference

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_distance() {
    let gpu = gpu();
    let mut data = Data::new(1);
    let shape = Logits::bhqk(1, 2, 70, 75).row(80);
    for (i, spec) in specs().enumerate() {
        let kind = (i / 2 % 2 == 0, i / 4 % 2 == 0);
        match i % 3 {
            0 => check::<bf16>(
                &gpu,
                &spec,
                &shape,
                &Inputs::of(&mut data, &spec, &shape, 16, kind),
                &Host::counted(0, 0),
                0,
            ),
            1 => check::<f16>(
                &gpu,
                &spec,
                &shape,
                &Inputs::of(&mut data, &spec, &shape, 8, kind),
                &Host::counted(3, 1),
                0,
            ),
            _ => check::<f32>(
                &gpu,
                &spec,
                &shape,
                &Inputs::of(&mut data, &spec, &shape, 5, kind),
                &Host::counted(0, 4),
                0,
            ),
        }
    }
}

/// Widths around a step of 16 channels, and beyond what shared memory holds of a row at once.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_width_and_type_is_the_reference() {
    let gpu = gpu();
    let mut data = Data::new(2);
    let shape = Logits::bhqk(2, 1, 17, 67);
    for (i, width) in [1, 7, 8, 16, 24, 64, 100, 128, 136, 300].into_iter().enumerate() {
        for (by, index) in [
            (By::Queries, Distances::shaw(10, 10)),
            (By::Keys, Distances::deberta(8, 40).unwrap()),
            (By::Queries, Distances::inkling(7)),
        ] {
            let spec = RelativeProducts { by, factor: 0.125, ..RelativeProducts::queries(index) };
            let kind = (true, i % 2 == 0);
            check::<f32>(&gpu, &spec, &shape, &Inputs::of(&mut data, &spec, &shape, width, kind), &OFFSET, 0);
            check::<f16>(&gpu, &spec, &shape, &Inputs::of(&mut data, &spec, &shape, width, kind), &OFFSET, 0);
            check::<bf16>(&gpu, &spec, &shape, &Inputs::of(&mut data, &spec, &shape, width, kind), &OFFSET, 0);
        }
    }
}

/// Queries in the middle of the keys.
const OFFSET: Host<'static> = Places::counted(40, 0);

/// Every place of queries and keys: decode, a window to the left, lengths, ids, packed sequences of which some are empty, some end
/// inside a tile and one is longer than a tile.
fn each_places(test: &mut dyn FnMut(&Logits, &Host)) {
    let shape = Logits::bhqk(2, 2, 9, 131);
    test(&Logits { queries: 1, ..shape }, &Host::counted(130, 0));
    test(&Logits { queries: 1, ..shape }, &Host::bottom_right());
    test(&shape, &Host::counted(-1_000_000, 1 << 20));
    test(&shape, &Host::counted((1 << 30) - 9, -(1 << 30)));
    test(&shape, &Host::counted(-(1 << 30), (1 << 30) - 131));
    let lengths =
        Places { query_lengths: Some(&[9, 4][..]), key_lengths: Some(&[131, 20][..]), ..Host::bottom_right() };
    test(&shape, &lengths);
    let mut data = Data::new(9);
    let mut ids = |count: usize| (0..count).map(|_| data.below(200) as i32 - 40).collect::<Vec<_>>();
    let (queries, keys) = (ids(2 * 9), ids(2 * 131));
    test(&shape, &Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) });
    test(&shape, &Places { queries: Place::Ids(&queries), ..Host::counted(0, 3) });
    test(&shape, &Places { keys: Place::Ids(&keys), ..Host::counted(100, 0) });
    // The third has the keys from one behind a tile's first to one before another's last.
    let (firsts, key_firsts) = ([2, 7, 7, 140, 145], [0, 6, 65, 191, 250]);
    let packed = Packed { queries: &firsts[..], keys: &key_firsts[..], sequences: 4 };
    let shape = Logits::bhqk(1, 1, 150, 260);
    test(&shape, &Places { packed: Some(packed), ..Host::counted(0, 2) });
    test(&shape, &Places { packed: Some(packed), ..Host::bottom_right() });
    let ids: Vec<i32> = (0..150).map(|i| i * 3 % 70).collect();
    test(&shape, &Places { packed: Some(packed), queries: Place::Ids(&ids), ..Host::counted(0, 0) });
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_place_is_the_reference() {
    let gpu = gpu();
    let mut data = Data::new(3);
    let specs = [
        RelativeProducts::queries(Distances::shaw(40, 9)),
        RelativeProducts::keys(Distances::deberta(8, 40).unwrap()),
        RelativeProducts { factor: 0.5, ..RelativeProducts::queries(Distances::inkling(20)) },
        RelativeProducts::keys(Distances::vits(30)),
    ];
    for spec in &specs {
        each_places(&mut |shape, places| {
            check::<f32>(&gpu, spec, shape, &Inputs::of(&mut data, spec, shape, 6, (true, true)), places, 0);
            check::<bf16>(&gpu, spec, shape, &Inputs::of(&mut data, spec, shape, 20, (false, true)), places, 0);
        });
    }
}

/// States inside packed queries, keys and values; a table by channels, as Inkling stores it, and one inside wider rows; tables of
/// each sequence; rows of logits and buffers at any element.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_layout_is_the_reference() {
    let gpu = gpu();
    let mut data = Data::new(4);
    let (batch, heads, width) = (2, 3, 16);
    let index = Distances::shaw(9, 4);
    let entries = index.entries;
    let tables = [
        Numbers { strides: [0, 0, 1, entries], ..Numbers::rows(1, 1, entries, width) },
        Numbers { strides: [0, width, 3 * width + 8, 1], offset: 8, ..Numbers::rows(1, heads, entries, width) },
        Numbers { strides: [7, 0, width + 1, 1], ..Numbers::rows(batch, 1, entries, width) },
    ];
    for by in [By::Queries, By::Keys] {
        let spec = RelativeProducts { by, ..RelativeProducts::queries(index.clone()) };
        for (i, table) in tables.into_iter().enumerate() {
            let shape = Logits::bhqk(batch, heads, 20, 33).row([33, 40, 37][i]).at(i);
            let tokens = if by == By::Keys { 33 } else { 20 };
            let packed = Heads::bthd(batch, tokens, heads, width).row(3 * heads * width + 8 * i).at(i);
            let order = Heads::bhtd(batch, heads, tokens, width);
            for (shift, states) in [(0, packed), (1, order), (0, order)] {
                let with_bias = shift == 0;
                check::<f16>(
                    &gpu,
                    &spec,
                    &shape,
                    &Inputs::new(&mut data, states, table, with_bias),
                    &Host::counted(5, 0),
                    shift,
                );
                check::<f32>(
                    &gpu,
                    &spec,
                    &shape,
                    &Inputs::new(&mut data, states, table, with_bias),
                    &Host::counted(5, 0),
                    shift,
                );
            }
        }
    }
}

/// Rows whose last 16 bytes are not all channels: what lies behind the channels is not read into a product.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_lies_between_rows_is_not_multiplied() {
    let gpu = gpu();
    let (heads, width, row) = (2, 18, 24);
    let shape = Logits::bhqk(1, heads, 20, 33);
    for by in [By::Queries, By::Keys] {
        let spec = RelativeProducts { by, ..RelativeProducts::queries(Distances::shaw(9, 4)) };
        let entries = spec.index.entries;
        let tokens = if by == By::Keys { 33 } else { 20 };
        let states = Heads { strides: [0, heads * row, row], ..Heads::thd(tokens, heads, width) };
        let table = Numbers { strides: [0, entries * row, row, 1], ..Numbers::rows(1, heads, entries, width) };
        for with_bias in [false, true] {
            let mut inputs = Inputs::<bf16>::new(&mut Data::new(14), states, table, with_bias);
            for values in [&mut inputs.states.0, &mut inputs.table.0] {
                values.iter_mut().enumerate().filter(|(i, _)| i % row >= width).for_each(|(_, x)| *x = bf16::NAN);
            }
            check(&gpu, &spec, &shape, &inputs, &Host::counted(5, 0), 0);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ equality

/// `count` queries and keys from the given ones on, of sequence `batch` alone: the same memory, other offsets.
fn chunk<T: Clone>(
    spec: &RelativeProducts,
    shape: &Logits,
    inputs: &Inputs<T>,
    [batch, query, key]: [usize; 3],
    [queries, keys]: [usize; 2],
) -> (Logits, Inputs<T>) {
    let part = Logits { batch: 1, queries, keys, ..*shape }.at(shape.index(batch, 0, query, key));
    let (from, tokens) = if spec.by == By::Keys { (key, keys) } else { (query, queries) };
    let (states, heads) = inputs.states.clone();
    let heads = Heads { batch: 1, tokens, ..heads.at(heads.index(batch, from, 0, 0)) };
    (part, Inputs { states: (states, heads), ..inputs.clone() })
}

fn chunks_are_slices<T: Scalar>(gpu: &Gpu, spec: &RelativeProducts, width: usize) {
    let _context = Context(|| format!("{} {spec:?} {width}", T::NAME));
    let mut data = Data::new(6);
    let shape = Logits::bhqk(2, 2, 100, 150);
    let inputs = Inputs::<T>::of(&mut data, spec, &shape, width, (true, true));
    let before: Vec<T> = data.values(shape.span().unwrap());
    let whole = run(gpu, spec, &before, &shape, &inputs, &Host::counted(10, 0), (true, 0));
    for ([batch, query, key], size) in
        [([1, 0, 0], [100, 150]), ([0, 37, 0], [63, 150]), ([1, 5, 91], [70, 59]), ([0, 99, 0], [1, 150])]
    {
        let (part, own) = chunk(spec, &shape, &inputs, [batch, query, key], size);
        // By counting, and by ids, which takes each pair for itself.
        let start = [query as i64 + 10, key as i64];
        let ids = [0, 1].map(|i| (0..size[i]).map(|n| (start[i] + n as i64) as i32).collect::<Vec<_>>());
        let by_ids = Places { queries: Place::Ids(&ids[0][..]), keys: Place::Ids(&ids[1][..]), ..Host::counted(0, 0) };
        for places in [Host::counted(start[0], start[1]), by_ids] {
            let got = run(gpu, spec, &before, &part, &own, &places, (true, 0));
            for head in 0..2 {
                for i in 0..size[0] {
                    let at = part.index(0, head, i, 0);
                    assert_eq!(at, shape.index(batch, head, query + i, key));
                    let bits = |x: &[T]| x[at..at + size[1]].iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&whole), "{batch} {head} {query} {key} {i} {places:?}");
                }
            }
        }
    }
}

/// A pair's sum depends on the width alone, whatever tile it falls into and whether positions follow one another.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn chunks_of_batch_queries_and_keys_are_slices_of_the_whole() {
    let gpu = gpu();
    for spec in [
        RelativeProducts { factor: 0.3, ..RelativeProducts::queries(Distances::shaw(40, 20)) },
        RelativeProducts { factor: 0.3, ..RelativeProducts::keys(Distances::inkling(33)) },
    ] {
        chunks_are_slices::<bf16>(&gpu, &spec, 40);
        chunks_are_slices::<f16>(&gpu, &spec, 9);
        chunks_are_slices::<f32>(&gpu, &spec, 13);
    }
}

/// A packed sequence is that sequence alone, in tiles of its own and in tiles that it shares.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_are_those_apart() {
    let gpu = gpu();
    let mut data = Data::new(7);
    let (firsts, key_firsts) = ([0, 70, 80, 230], [0, 20, 160, 300]);
    let shape = Logits::bhqk(1, 2, 230, 300);
    let packed = Places {
        packed: Some(Packed { queries: &firsts[..], keys: &key_firsts[..], sequences: 3 }),
        ..Host::counted(0, 0)
    };
    for by in [By::Queries, By::Keys] {
        let spec = RelativeProducts { by, ..RelativeProducts::queries(Distances::shaw(30, 30)) };
        let inputs = Inputs::<bf16>::of(&mut data, &spec, &shape, 18, (true, false));
        let zeros = vec![bf16::ZERO; shape.span().unwrap()];
        let all = run(&gpu, &spec, &zeros, &shape, &inputs, &packed, (false, 0));
        for s in 0..3 {
            let [from, key] = [firsts[s] as usize, key_firsts[s] as usize];
            let size = [firsts[s + 1] as usize - from, key_firsts[s + 1] as usize - key];
            let (part, own) = chunk(&spec, &shape, &inputs, [0, from, key], size);
            let alone = run(&gpu, &spec, &zeros, &part, &own, &Host::counted(0, 0), (false, 0));
            for (head, i) in (0..2).flat_map(|head| (0..size[0]).map(move |i| (head, i))) {
                let at = part.index(0, head, i, 0);
                assert_eq!(all[at..at + size[1]], alone[at..at + size[1]], "{by:?} {s} {head} {i}");
            }
        }
    }
}

/// The walk over tiles, which depends on the device's size, changes no bit.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_block_that_walks_over_many_tiles_is_many_that_walk_over_one() {
    const INNER: &str = "POSENC_PRODUCTS_INNER";
    let results = || {
        let gpu = gpu();
        let mut data = Data::new(8);
        let mut sum = 0u64;
        // The last width is more than shared memory holds of a row at once.
        for (index, start, width, sizes) in [
            (Distances::shaw(100, 300), 700, 16, [200, 1300]),
            (Distances::inkling(90), 1000, 16, [200, 1300]),
            (Distances::shaw(300, 300), 300, 136, [130, 600]),
        ] {
            let shape = Logits::bhqk(1, 1, sizes[0], sizes[1]);
            for by in [By::Queries, By::Keys] {
                let spec = RelativeProducts { by, ..RelativeProducts::queries(index.clone()) };
                let inputs = Inputs::<f16>::of(&mut data, &spec, &shape, width, (true, false));
                let zeros = vec![f16::ZERO; shape.span().unwrap()];
                let got = run(&gpu, &spec, &zeros, &shape, &inputs, &Host::counted(start, 0), (false, 0));
                for value in got {
                    sum = sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(value.to_bits());
                }
            }
        }
        format!("sum of bits: {sum:016x}")
    };
    if std::env::var_os(INNER).is_some() {
        println!("{}", results());
        return;
    }
    if crate::support::emulator().is_none() {
        return; // a real device keeps its multiprocessors
    }
    let name = "products::a_block_that_walks_over_many_tiles_is_many_that_walk_over_one";
    let mut inner = std::process::Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", name, "--include-ignored", "--nocapture"]).env(INNER, "1").env("EMULATOR_SMS", "1");
    let output = inner.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&results()), "{text}");
}

/// The term reads products that are stored: both are within their bounds of the same numbers.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn products_and_the_term_that_reads_them_agree() {
    let gpu = gpu();
    let mut data = Data::new(10);
    let shape = Logits::bhqk(2, 2, 40, 70);
    for spec in specs().step_by(3) {
        let inputs = Inputs::<f16>::of(&mut data, &spec, &shape, 24, (true, true));
        let places = Host::counted(0, 0);
        let zeros = vec![f16::ZERO; shape.span().unwrap()];
        let got = run(&gpu, &spec, &zeros, &shape, &inputs, &places, (false, 0));
        let (stored, numbers) = stored(&spec, &shape, &inputs);
        let stored = gpu.stream().clone_htod(&stored).unwrap();
        let term = Term { factor: spec.factor, by: spec.by, ..Term::queries(spec.index.clone()) };
        let plan = BiasPlan::<f16>::new(&gpu, &term).unwrap();
        let mut x = gpu.stream().clone_htod(&zeros).unwrap();
        let terms = [DeviceTermInputs::of(numbers.of(&stored))];
        let call = BiasInputs { terms: &terms, ..Places::counted(0, 0).into() };
        plan.write(shape.of_mut(&mut x), call).unwrap();
        let read: Vec<f64> = gpu.stream().clone_dtoh(&x).unwrap().into_iter().map(f16::to_f64).collect();
        let expected = spec.expect(&shape, &inputs.host(), &places).unwrap();
        let term_error = |want: f64| rounded::<f16>(want, 4.0 * f32::ROUNDOFF * want.abs());
        assert_close(&got, &read, |i| {
            rounded::<f16>(expected.want[i], expected.bound[i]) + term_error(expected.want[i])
        });
    }
}

/// Every state's products with every entry, in f32, as an engine would store them.
fn stored<T: Scalar>(spec: &RelativeProducts, shape: &Logits, inputs: &Inputs<T>) -> (Vec<f32>, Numbers) {
    let ((states, heads), (table, entries)) = (&inputs.states, &inputs.table);
    let numbers = Numbers::rows(shape.batch, shape.heads, heads.tokens, spec.index.entries);
    let mut out = vec![0.0; numbers.span().unwrap()];
    for (b, h) in (0..shape.batch).flat_map(|b| (0..shape.heads).map(move |h| (b, h))) {
        for (row, entry) in (0..numbers.rows).flat_map(|row| (0..numbers.entries).map(move |entry| (row, entry))) {
            let channel = |c: usize| {
                let bias = inputs.bias.as_ref().map_or(0.0, |bias| f64::from(bias[h * heads.dim + c]));
                let own = if entries.heads == 1 { 0 } else { h };
                (states[heads.index(b, row, h, c)].to_f64() + bias) * table[entries.index(0, own, entry, c)].to_f64()
            };
            out[numbers.index(b, h, row, entry)] = (0..heads.dim).map(channel).sum::<f64>() as f32;
        }
    }
    (out, numbers)
}

/// Where a band ends in zeros, a logit keeps its bits, and states that are not finite touch only what they multiply.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn outside_a_band_nothing_changes() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 1, 70, 200);
    for by in [By::Queries, By::Keys] {
        let spec = RelativeProducts { by, ..RelativeProducts::queries(Distances::inkling(3)) };
        let mut inputs = Inputs::<bf16>::of(&mut Data::new(1), &spec, &shape, 16, (true, false));
        inputs.states.0.fill(bf16::INFINITY);
        let before = vec![bf16::NEG_ZERO; shape.span().unwrap()];
        let got = run(&gpu, &spec, &before, &shape, &inputs, &Host::counted(60, 0), (true, 0));
        for (index, value) in got.iter().enumerate() {
            let (query, key) = (index / 200 + 60, index % 200);
            let inside = key <= query && query - key < 3;
            assert_eq!(value.to_bits() == 0x8000, !inside, "{by:?} {query} {key} {value}");
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- counts

/// Bytes: logits are read and written once, states once for each walk, and of the table the rows of a tile's 128 distances.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn bytes_are_those_of_logits_states_and_rows() {
    let gpu = gpu();
    let mut data = Data::new(12);
    let (heads, tokens, width) = (2, 256, 64);
    let shape = Logits::bhqk(1, heads, tokens, tokens);
    let logits = (heads * tokens * tokens) as u64;
    for by in [By::Queries, By::Keys] {
        // Tiles that are not skipped, rows of the table that each stages, and matrix instructions of a warp in each: four steps of
        // one load of states, five loads of rows and ten products; where all distances are one entry, one load and two products.
        for (index, start, tiles, rows, matrix) in [
            (Distances::conformer(tokens), 0, 16u64, 128, 4 * (1 + 5 + 10)),
            (Distances::inkling(64), 0, 7, 128, 4 * (1 + 5 + 10)),
            (Distances::shaw(64, 8), 10_000, 16, 16, 4 * (1 + 1 + 2)),
        ] {
            let spec = RelativeProducts { by, ..RelativeProducts::queries(index) };
            let inputs = Inputs::<bf16>::of(&mut data, &spec, &shape, width, (true, false));
            let zeros = vec![bf16::ZERO; shape.span().unwrap()];
            run(&gpu, &spec, &zeros, &shape, &inputs, &Host::counted(start, 0), (true, 0));
            let Some(report) = last_launch() else { return };
            let tiles = tiles * heads as u64;
            let (count, row) = (report.counters, 2 * width as u64);
            let most = tiles * (64 * 64 * 2 + (64 + rows) * row);
            println!(
                "{by:?} {}: {:.2} bytes read and {:.2} written a logit of a tile, {:.2} matrix instructions, {:.2} instructions and \
                 {:.2} bank conflicts of a warp a tile",
                spec.index.entries,
                count.bytes_read as f64 / (tiles * 64 * 64) as f64,
                count.bytes_written as f64 / (tiles * 64 * 64) as f64,
                count.matrix as f64 / 32.0 / tiles as f64,
                count.warp_instructions as f64 / tiles as f64,
                count.bank_conflicts as f64 / tiles as f64
            );
            assert!(count.bytes_read <= most, "{by:?}: {} bytes are read, {most} may be", count.bytes_read);
            assert_eq!(count.bytes_written, tiles * 64 * 64 * 2, "{by:?}");
            assert!(count.bytes_written <= 2 * logits);
            let matrix = if gpu.capability() >= (8, 0) { 4 * 32 * matrix } else { 0 };
            assert!(count.matrix <= tiles * matrix, "{by:?}: {} matrix instructions", count.matrix / 32);
            assert_eq!(count.local_bytes_read + count.local_bytes_written, 0);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

/// What a call on the device refuses, and the reference with the same words.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn broken_products_are_refused() {
    let gpu = gpu();
    let made = |spec: RelativeProducts| RelativeProductsPlan::<f32>::new(&gpu, &spec).unwrap_err().to_string();
    let shaw = RelativeProducts::queries(Distances::shaw(2, 2));
    assert_eq!(
        made(RelativeProducts { by: By::Table, ..shaw.clone() }),
        "products are by Table, they must be by Queries or Keys"
    );
    assert_eq!(
        made(RelativeProducts { factor: f32::NAN, ..shaw.clone() }),
        "the factor of products is NaN, it must be finite"
    );
    assert_eq!(
        made(RelativeProducts::keys(Distances::inkling(0))),
        "a term has 0 distances from 0, there must be at least 1 and all within 2^30"
    );

    let shape = Logits::bhqk(2, 3, 9, 11);
    let check = |spec: &RelativeProducts, heads: Heads, numbers: Numbers, lengths: [usize; 3], want: &str| {
        let [states, bias, table] = lengths.map(|length| vec![0.5f32; length]);
        let inputs =
            ProductInputs { states: (&states[..], heads), bias: Some(&bias[..]), table: (&table[..], numbers) };
        let mut x = [1.0f32; 594];
        let error = spec.add(&mut x, &shape, &inputs, &Host::counted(0, 0)).unwrap_err();
        assert_eq!(error.to_string(), want);
        let [states, bias, table, mut x] =
            [&states[..], &bias[..], &table[..], &x[..]].map(|values| gpu.stream().clone_htod(values).unwrap());
        let plan = RelativeProductsPlan::<f32>::new(&gpu, spec).unwrap();
        let (states, table) = (heads.of(&states), numbers.of(&table));
        let error = plan.add(shape.of_mut(&mut x), states, Some(&bias), table, Places::counted(0, 0)).unwrap_err();
        assert_eq!(error.to_string(), want);
        assert!(gpu.stream().clone_dtoh(&x).unwrap().iter().all(|&x| x == 1.0));
    };
    let (heads, numbers) = (Heads::bthd(2, 9, 3, 4), Numbers::rows(1, 3, 5, 4));
    let (states, bias, table) = (2 * 9 * 3 * 4, 12, 60);
    for (wrong, want) in [
        (Heads { tokens: 11, ..heads }, "[2, 11, 3, 4]"),
        (Heads { heads: 2, ..heads }, "[2, 9, 2, 4]"),
        (Heads { batch: 1, ..heads }, "[1, 9, 3, 4]"),
    ] {
        let want = format!("states are {want}, they must be [2, 9, 3, at most 65536]");
        check(&shaw, wrong, numbers, [999, bias, table], &want);
    }
    let by_keys = RelativeProducts { by: By::Keys, ..shaw.clone() };
    let want = "states are [2, 9, 3, 4], they must be [2, 11, 3, at most 65536]";
    check(&by_keys, heads, numbers, [states, bias, table], want);
    for (wrong, want) in [
        (Numbers::rows(1, 2, 5, 4), "[1, 2, 5, 4]"),
        (Numbers::rows(1, 3, 6, 4), "[1, 3, 6, 4]"),
        (Numbers::rows(1, 3, 5, 3), "[1, 3, 5, 3]"),
        (Numbers::rows(3, 1, 5, 4), "[3, 1, 5, 4]"),
    ] {
        let want = format!("the table is {want}, it must be [2 or 1, 3 or 1, 5, 4]");
        check(&shaw, heads, wrong, [states, bias, 99], &want);
    }
    check(&shaw, heads, numbers, [states - 1, bias, table], "states holds 215 elements, the shape needs 216");
    check(&shaw, heads, numbers, [states, bias - 1, table], "bias holds 11 elements, the shape needs 12");
    check(&shaw, heads, numbers, [states, bias, table - 1], "table holds 59 elements, the shape needs 60");
    let empty = Heads { dim: 0, ..heads };
    check(&shaw, empty, numbers, [states, bias, table], "states has 3 heads of 0 channels, both must be at least 1");

    // States that are written over.
    let mut x = gpu.stream().alloc_zeros::<f32>(594).unwrap();
    let states = alias::<f32, _>(&x, 0, states);
    let table = gpu.stream().alloc_zeros::<f32>(60).unwrap();
    let plan = RelativeProductsPlan::<f32>::new(&gpu, &shaw).unwrap();
    let call = plan.write(shape.of_mut(&mut x), heads.of(&states), None, numbers.of(&table), Places::counted(0, 0));
    let error = call.unwrap_err().to_string();
    assert!(error.contains("may overlap"), "{error}");
}
