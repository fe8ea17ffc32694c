use half::{bf16, f16};
use posenc::accuracy::{assert_close, rounded};
use posenc::bias::{BiasInputs, DistanceGrad, Slopes, Toeplitz};
use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Place, Places, Scalar, T5Bias};

use crate::biases::{Buffers, Context, Host, Numbers, each_form, every_place_of_a_pack, plan};
use crate::support::{Data, Guarded, gpu, last_launch, poison};

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn a_shard_or_chunk_is_the_slice_of_the_whole() {
    let (batch, heads, queries, keys) = (2, 6, 9, 11);
    let slopes = Alibi::new(heads).slopes().unwrap();
    let whole = Logits::bhqk(batch, heads, queries, keys);
    let start: Vec<f32> = Numbers(2).take(whole.elements().unwrap(), 3.0);
    let mut want = start.clone();
    Bias::Slopes(&slopes).add(&mut want, &whole, &Places::counted(2, 0)).unwrap();
    // Heads 2..5, queries 3..7, keys 4..9, in place inside the same buffer.
    let part = Logits { heads: 3, queries: 4, keys: 5, ..whole };
    let part = part.at(whole.index(0, 2, 3, 4));
    let shard = Alibi::new(heads).shard(2, 3).slopes().unwrap();
    let mut got = start.clone();
    Bias::Slopes(&shard).add(&mut got, &part, &Places::counted(2 + 3, 4)).unwrap();
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..queries {
                for j in 0..keys {
                    let index = whole.index(b, h, i, j);
                    let inside = (2..5).contains(&h) && (3..7).contains(&i) && (4..9).contains(&j);
                    assert_eq!(got[index], if inside { want[index] } else { start[index] });
                }
            }
        }
    }
}

#[test]
fn places_agree() {
    let shape = Logits::bhqk(2, 1, 3, 5);
    let slopes = Slopes::symmetric(1, &[1.0]).unwrap();
    let write = |positions: Places<&[i32]>| {
        let mut out = [0.0f32; 30];
        Bias::Slopes(&slopes).write(&mut out, &shape, &positions).unwrap();
        out
    };
    let each: Places<&[i32]> = Places {
        queries: Place::Ids(&[2, 3, 4, 2, 3, 4]),
        keys: Place::Ids(&[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
        ..Places::counted(0, 0)
    };
    assert_eq!(write(Places::bottom_right()), write(Places::counted(2, 0)));
    assert_eq!(write(each), write(Places::counted(2, 0)));
    // Two of three queries, three of five keys: the second query sits at the third key.
    let short = Places { query_lengths: Some(&[2, 3][..]), key_lengths: Some(&[3, 5][..]), ..Places::bottom_right() };
    assert_eq!(write(short)[..5], [-1.0, 0.0, -1.0, -2.0, -3.0]);
}

#[test]
fn packed_sequences_are_each_alone() {
    let shape = Logits::bhqk(1, 1, 6, 7);
    let slopes = Slopes::symmetric(1, &[1.0]).unwrap();
    let mut out = [0.0f32; 42];
    // Two sequences of 2 queries and 3 keys, 3 and 3; a query and a key of padding.
    let places = Places::packed(&[0, 2, 5][..], &[1, 4, 7], 2);
    Bias::Slopes(&slopes).write(&mut out, &shape, &places).unwrap();
    let none = f32::NEG_INFINITY;
    let want = [
        [none, -1.0, 0.0, -1.0, none, none, none],
        [none, -2.0, -1.0, 0.0, none, none, none],
        [none, none, none, none, 0.0, -1.0, -2.0],
        [none, none, none, none, -1.0, 0.0, -1.0],
        [none, none, none, none, -2.0, -1.0, 0.0],
        [none; 7],
    ];
    assert_eq!(out, *want.as_flattened());
}

#[test]
fn sums_by_distance_keep_every_number() {
    let shape = Logits::bhqk(3, 2, 7, 8).row(9).at(1);
    let grad: Vec<f32> = Numbers(8).take(shape.span().unwrap(), 1.0);
    for range in [-10..=10, -3..=2, 0..=0] {
        let sums = DistanceGrad::new(&grad, &shape, &Places::counted(0, 0), range).unwrap();
        for head in 0..2 {
            let mut want = 0.0;
            for (b, i, j) in (0..3).flat_map(|b| (0..7).flat_map(move |i| (0..8).map(move |j| (b, i, j)))) {
                want += f64::from(grad[shape.index(b, head, i, j)]);
            }
            let got: f64 = sums.of(head).map(|(_, value)| value).sum();
            assert!((got - want).abs() < 1e-9);
        }
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

fn check<T: Scalar>(gpu: &Gpu, name: &str, bias: Bias, shape: &Logits, host: &Host, shift: usize) {
    let plan = plan::<T>(gpu, bias);
    let buffers = Buffers::new(gpu, host);
    let len = shape.span().unwrap();
    let start: Vec<T> = Data::new(len as u64).values(len);
    for add in [false, true] {
        let mut x = if add { Guarded::new(gpu, &start, shift) } else { Guarded::poisoned(gpu, len, shift) };
        if add {
            plan.add(shape.of_mut(&mut x.view()), buffers.places(host)).unwrap();
        } else {
            plan.write(shape.of_mut(&mut x.view()), buffers.places(host)).unwrap();
        }
        let before = if add { start.clone() } else { vec![poison::<T>(); len] };
        let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; len];
        for (batch, head) in (0..shape.batch).flat_map(|batch| (0..shape.heads).map(move |head| (batch, head))) {
            for (query, key) in (0..shape.queries).flat_map(|query| (0..shape.keys).map(move |key| (query, key))) {
                let index = shape.index(batch, head, query, key);
                let (value, error) = match positions(host, shape, batch, query, key) {
                    Some((at, key)) => (bias.at(batch, head, at, key), bias.error_bound(batch, head, at, key)),
                    None => (f64::NEG_INFINITY, 0.0),
                };
                want[index] = if add { want[index] } else { 0.0 } + value;
                // The sum is rounded once in f32, then to T.
                let error = error + f64::EPSILON + want[index].abs() * f32::ROUNDOFF;
                bound[index] = rounded::<T>(want[index], error);
            }
        }
        let _context = Context(|| format!("{name} {} add {add} {shape:?} {host:?} shift {shift}", T::NAME));
        assert_close(&x.read(gpu), &want, |i| bound[i]);
    }
}

/// The positions of a query and a key; none where they are of different packed sequences, or of none.
fn positions(host: &Host, shape: &Logits, batch: usize, query: usize, key: usize) -> Option<(i64, i64)> {
    let (mut first, mut counts) = ([0; 2], [shape.queries as i64, shape.keys as i64]);
    if let Some(packed) = host.packed {
        let of = |firsts: &[i32], i: usize| {
            (0..packed.sequences).find(|&s| (firsts[s]..firsts[s + 1]).contains(&(i as i32)))
        };
        let sequence = of(packed.queries, query)?;
        if of(packed.keys, key)? != sequence {
            return None;
        }
        first = [packed.queries, packed.keys].map(|firsts| i64::from(firsts[sequence]));
        counts = [packed.queries, packed.keys].map(|firsts| i64::from(firsts[sequence + 1] - firsts[sequence]));
    }
    for (count, lengths) in counts.iter_mut().zip([host.query_lengths, host.key_lengths]) {
        *count = lengths.map_or(*count, |lengths| i64::from(lengths[batch]));
    }
    let at = |place: Place<&[i32]>, size: usize, index: usize, first: i64| match place {
        Place::Counted(start) => start + index as i64 - first,
        Place::BottomRight => counts[1] - counts[0] + index as i64 - first,
        Place::Ids(positions) => i64::from(positions[batch * size + index]),
    };
    Some((at(host.queries, shape.queries, query, first[0]), at(host.keys, shape.keys, key, first[1])))
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_form_type_and_place() {
    let gpu = gpu();
    let mut data = Data::new(1);
    for heads in [1, 6] {
        let shape = Logits::bhqk(2, heads, 3, 21);
        let queries: Vec<i32> = (0..6).map(|_| data.below(300) as i32 - 20).collect();
        let keys: Vec<i32> = (0..42).map(|_| data.below(300) as i32 - 20).collect();
        let hosts = [
            Host::counted(18, 0),
            Host::counted(-5, 130),
            Host::bottom_right(),
            Places { query_lengths: Some(&[2, 3]), key_lengths: Some(&[20, 1]), ..Host::bottom_right() },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) },
        ];
        each_form(heads, |name, bias| {
            for host in &hosts {
                for (shape, shift) in [(shape, 0), (shape.row(24), 0), (shape.row(25).at(3), 1)] {
                    check::<f32>(&gpu, name, bias, &shape, host, shift);
                    if heads == 6 {
                        check::<f16>(&gpu, name, bias, &shape, host, shift);
                        check::<bf16>(&gpu, name, bias, &shape, host, shift);
                    }
                }
            }
        });
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_the_head_counts_of_models() {
    let gpu = gpu();
    for heads in [12, 40, 71, 112] {
        each_form(heads, |name, bias| {
            check::<f32>(&gpu, name, bias, &Logits::bhqk(1, heads, 2, 11), &Host::counted(20, 3), 0);
        });
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_at_every_width_of_row() {
    let gpu = gpu();
    let slopes = Alibi::new(2).slopes().unwrap();
    let table: Vec<f32> = Data::new(4).values(64);
    let row = T5Bias::new(32, 128, true).row(&table, 2).unwrap();
    for keys in (1..=34).chain([255, 256, 257, 2047, 2049, 4100]) {
        let shape = Logits::bhqk(1, 2, 2, keys);
        for bias in [Bias::Slopes(&slopes), Bias::Toeplitz(&row)] {
            check::<f32>(&gpu, "edge", bias, &shape, &Host::bottom_right(), 0);
            check::<bf16>(&gpu, "edge", bias, &shape.row(keys.next_multiple_of(8)), &Host::bottom_right(), 0);
        }
    }
    // A million keys away, and at the ends of what positions may be.
    for start in [1 << 20, (1 << 24) + 1, (1 << 30) - 3, -(1 << 30)] {
        check::<f32>(&gpu, "far", Bias::Slopes(&slopes), &Logits::bhqk(1, 2, 2, 9), &Host::counted(start, 0), 0);
        check::<f32>(&gpu, "far", Bias::Toeplitz(&row), &Logits::bhqk(1, 2, 2, 9), &Host::counted(start, 0), 0);
    }
    let end = 1 << 30;
    for host in [Host::counted(-end, end - 9), Host::counted(end - 2, -end)] {
        check::<f32>(&gpu, "ends", Bias::Slopes(&slopes), &Logits::bhqk(1, 2, 2, 9), &host, 0);
        check::<f32>(&gpu, "ends", Bias::Toeplitz(&row), &Logits::bhqk(1, 2, 2, 9), &host, 0);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shards_and_alignments_give_the_same_bits() {
    let gpu = gpu();
    let (heads, queries, keys) = (12, 5, 40);
    let whole = Logits::bhqk(1, heads, queries, keys);
    let len = whole.elements().unwrap();
    let write = |bias: Bias, shape: &Logits, host: &Host, shift: usize| {
        let mut out = Guarded::<f32>::poisoned(&gpu, shape.span().unwrap(), shift);
        let (plan, buffers) = (plan::<f32>(&gpu, bias), Buffers::new(&gpu, host));
        plan.write(shape.of_mut(&mut out.view()), buffers.places(host)).unwrap();
        out.read(&gpu)
    };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let all = write(Bias::Slopes(&Alibi::new(heads).slopes().unwrap()), &whole, &Host::counted(1000, 3), 0);
    let shifted = write(Bias::Slopes(&Alibi::new(heads).slopes().unwrap()), &whole, &Host::counted(1000, 3), 1);
    assert_eq!(bits(&all), bits(&shifted));
    assert_eq!(all.len(), len);
    let part = Logits::bhqk(1, 5, 2, 11);
    let shard = Alibi::new(heads).shard(4, 5).slopes().unwrap();
    let got = write(Bias::Slopes(&shard), &part, &Host::counted(1000 + 3, 3 + 17), 0);
    for (h, i, j) in (0..5).flat_map(|h| (0..2).flat_map(move |i| (0..11).map(move |j| (h, i, j)))) {
        let (got, want) = (got[part.index(0, h, i, j)], all[whole.index(0, 4 + h, 3 + i, 17 + j)]);
        assert_eq!(got.to_bits(), want.to_bits(), "head {h} query {i} key {j}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_table_on_the_device_is_the_row_of_the_spec() {
    let gpu = gpu();
    for (spec, heads) in
        [(T5Bias::new(32, 128, true), 12), (T5Bias::new(32, 128, false), 71), (T5Bias::new(320, 800, true), 1)]
    {
        let table: Vec<f32> = Data::new(7).values(spec.buckets * heads);
        let mut plan = BiasPlan::<f32>::t5(&gpu, spec, heads).unwrap();
        plan.set_table(&gpu.stream().clone_htod(&table).unwrap()).unwrap();
        let got = gpu.stream().clone_dtoh(&plan.row_mut().unwrap().unwrap()).unwrap();
        assert_eq!(got, spec.row(&table, heads).unwrap().values);
        let error = plan.set_table(&gpu.stream().clone_htod(&table[1..]).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("table holds "), "{error}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_on_the_device_are_the_reference() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 6, 50, 90).row(96);
    let places = Places::packed(&[1, 1, 30, 37, 37, 47][..], &[3, 3, 60, 67, 80, 90], 5);
    // Padding before a sequence that is not empty; positions one by one, of the tensor's queries.
    let padded = Places::packed(&[2, 30, 47][..], &[3, 60, 90], 2);
    let positions: Vec<i32> = (0..50).map(|query| query * query % 67).collect();
    let each = Places { queries: Place::Ids(&positions[..]), ..padded };
    each_form(6, |name, bias| {
        for host in [places, Places { queries: Place::Counted(-4), keys: Place::Counted(9), ..places }, padded, each] {
            check::<f32>(&gpu, name, bias, &shape, &host, 0);
        }
    });
    let (shape, places) = every_place_of_a_pack();
    each_form(2, |name, bias| check::<f32>(&gpu, name, bias, &shape, &places, 0));
}

/// They are the caller's error, which a device cannot report: the memory outside is left alone.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn lengths_outside_the_tensor_are_those_at_its_ends() {
    let gpu = gpu();
    let slopes = Alibi::new(2).slopes().unwrap();
    let plan = BiasPlan::<f32>::new(&gpu, Bias::Slopes(&slopes)).unwrap();
    let same = |shape: Logits, [wrong, right]: [Host; 2]| {
        let [got, want] = [wrong, right].map(|host| {
            let mut out = Guarded::<f32>::poisoned(&gpu, shape.span().unwrap(), 0);
            let buffers = Buffers::new(&gpu, &host);
            plan.write(shape.of_mut(&mut out.view()), buffers.places(&host)).unwrap();
            out.read(&gpu).iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(got, want, "{wrong:?}");
    };
    let lengths =
        |queries, keys| Places { query_lengths: Some(queries), key_lengths: Some(keys), ..Host::bottom_right() };
    same(Logits::bhqk(2, 2, 3, 9), [lengths(&[7, -2], &[9, 5]), lengths(&[3, 0], &[9, 5])]);
    same(Logits::bhqk(2, 2, 3, 9), [lengths(&[3, 2], &[-3, 30]), lengths(&[3, 2], &[0, 9])]);
    let packed = |keys| Places { queries: Place::Counted(1), ..Places::packed(&[0, 1, 3][..], keys, 2) };
    same(Logits::bhqk(1, 2, 3, 9), [packed(&[-5, 4, 30]), packed(&[0, 4, 9])]);
    same(Logits::bhqk(1, 2, 3, 9), [packed(&[0, 20, 30]), packed(&[0, 9, 9])]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn far_keys_share_one_number_of_a_t5_row() {
    let gpu = gpu();
    let spec = T5Bias::new(32, 128, true);
    let row = spec.row(&Data::new(1).values::<f32>(32), 1).unwrap();
    let plan = BiasPlan::<bf16>::new(&gpu, Bias::Toeplitz(&row)).unwrap();
    // Fewer queries than make a tile.
    let shape = Logits::bhqk(1, 1, 3, 2048);
    let packs = shape.elements().unwrap() as u64 / 8;
    let mut out = Guarded::<bf16>::poisoned(&gpu, shape.elements().unwrap(), 0);
    let mut read = |query: i64| {
        plan.write(shape.of_mut(&mut out.view()), Places::counted(query, 0)).unwrap();
        last_launch().map(|report| report.counters.bytes_read)
    };
    // A thread has eight keys here and reads the row's two ends, 4 bytes each; keys nearer than the ends read one number
    // each.
    let Some(far) = read(2048 + 127) else { return };
    assert_eq!(far, 8 * packs);
    let near = read(1024).unwrap();
    let within = 3 * (2 * 128 / 8 + 1);
    assert!((8 * packs + 32 * (within - 6)..=8 * packs + 32 * within).contains(&near), "{near}");
}

/// A pack beyond the ends of a row of numbers takes one number; a pack of distances that f32 does not tell apart rounds each
/// of them. Queries in a row bring every distance to every place of a pack.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_key_has_the_bits_of_its_own_distance_whatever_its_pack() {
    let gpu = gpu();
    let row = Toeplitz { saturates: true, ..Toeplitz::from_law(1, -5..=6, |_, distance| distance as f64).unwrap() };
    let slopes = Alibi::new(8).shard(0, 1).slopes().unwrap();
    // Fewer queries than make a tile.
    let shape = Logits::bhqk(1, 1, 2, 40);
    for (bias, first) in [
        (Bias::Toeplitz(&row), 10),
        (Bias::Slopes(&slopes), 10),
        (Bias::Slopes(&slopes), (1 << 24) + 20),
        (Bias::Slopes(&slopes), -(1 << 24) - 20),
        (Bias::Slopes(&slopes), (1 << 27) + 1),
        (Bias::Slopes(&slopes), -(1 << 27) - 1),
    ] {
        let plan = plan::<f32>(&gpu, bias);
        for start in first..first + 20 {
            let mut out = Guarded::<f32>::poisoned(&gpu, shape.elements().unwrap(), 0);
            plan.write(shape.of_mut(&mut out.view()), Places::counted(start, 0)).unwrap();
            let got = out.read(&gpu);
            for (query, key) in (0..2).flat_map(|query| (0..40).map(move |key| (query, key))) {
                let distance = key as i64 - start - query as i64;
                // Whole numbers; halves, of which f32 rounds the distance alone.
                let want = match bias {
                    Bias::Toeplitz(_) => distance.clamp(-5, 6) as f32,
                    _ => -0.5 * (distance.abs() as f32),
                };
                assert_eq!(got[shape.index(0, 0, query, key)], want, "query {query} from {start}, key {key}");
            }
        }
    }
}

/// Queries of a tile share the numbers of their distances; a call whose keys have positions of their own gives the same bits.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tiles_of_queries_share_their_numbers() {
    let gpu = gpu();
    let mut data = Data::new(9);
    let row = T5Bias::new(32, 128, true).row(&data.values::<f32>(64), 2).unwrap();
    let bias = Bias::Toeplitz(&row);
    for (queries, keys) in [(16, 1), (16, 7), (17, 40), (33, 129), (21, 1023), (16, 1025), (19, 2050)] {
        let shape = Logits::bhqk(2, 2, queries, keys);
        let lengths = [[3, queries as i32], [keys as i32, keys.min(30) as i32]];
        let [query_lengths, key_lengths] = lengths.each_ref().map(|lengths| Some(&lengths[..]));
        let short = Places { query_lengths, key_lengths, ..Host::bottom_right() };
        for host in [&Host::bottom_right(), &Host::counted(-3, 20), &short] {
            check::<f32>(&gpu, "tile", bias, &shape.row(keys + 3), host, 1);
            check::<bf16>(&gpu, "tile", bias, &shape.row(keys.next_multiple_of(8)), host, 0);
        }
    }
    let (queries, keys) = (21, 1033);
    let shape = Logits::bhqk(2, 2, queries, keys);
    let gates = gpu.stream().clone_htod(&data.values::<f32>(4 * queries)).unwrap();
    let x: Vec<bf16> = data.values(shape.elements().unwrap());
    let positions = |start: i32, count: usize| -> Vec<i32> {
        (0..2).flat_map(|_| (0..count as i32).map(move |i| start + i)).collect()
    };
    let (at, of) = (positions(500, queries), positions(2, keys));
    let each = Places { queries: Place::Ids(&at[..]), keys: Place::Ids(&of[..]), ..Host::counted(0, 0) };
    each_form(2, |name, bias| {
        // Gates of nothing are refused.
        let gates = (!matches!(bias, Bias::None)).then_some(&gates as _);
        let plan = plan::<bf16>(&gpu, bias);
        let [tiled, alone] = [Host::counted(500, 2), each].map(|host| {
            let buffers = Buffers::new(&gpu, &host);
            let mut out = Guarded::new(&gpu, &x, 0);
            let inputs = BiasInputs { gates, ..buffers.places(&host).into() };
            plan.add(shape.of_mut(&mut out.view()), inputs).unwrap();
            out.read(&gpu).iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(tiled, alone, "{name}");
    });

    let plan = BiasPlan::<bf16>::new(&gpu, bias).unwrap();
    let shape = Logits::bhqk(1, 2, 32, 1024);
    let mut out = Guarded::<bf16>::poisoned(&gpu, shape.elements().unwrap(), 0);
    plan.write(shape.of_mut(&mut out.view()), Places::bottom_right()).unwrap();
    if let Some(report) = last_launch() {
        // Two heads of two tiles, each with the distances of 16 queries and 1024 keys.
        assert_eq!(report.counters.bytes_read, 4 * 4 * (1024 + 15));
        assert_eq!(report.counters.bytes_written, 2 * shape.elements().unwrap() as u64);
        assert_eq!(report.counters.global_accesses[4] * 16, report.counters.bytes_written);
    }
}

/// A thread has eight keys at a time, unrolled: a division for each would be eight of them and more.
#[test]
fn no_kernel_divides_for_each_element() {
    let rooms = |file: &str| ["bias/", "attend/"].iter().any(|room| file.starts_with(room));
    for images in posenc::gpu::images().iter().filter(|images| rooms(images.file)) {
        for image in images.ptx {
            let text = String::from_utf8(image.bytes()).unwrap();
            for kernel in text.split(".visible .entry ").skip(1) {
                let divides = |line: &&str| {
                    let opcode = line.split_whitespace().next().unwrap_or_default();
                    ["div.", "rem.", "rcp.", "sqrt."].iter().any(|name| opcode.starts_with(name))
                };
                let count = kernel.lines().filter(divides).count();
                assert!(count < 8, "{count} divisions in {} of {}", kernel.split('(').next().unwrap(), images.file);
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn bytes_are_the_least() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 4, 8, 2048);
    let elements = shape.elements().unwrap() as u64;
    let slopes = Alibi::new(4).slopes().unwrap();
    let plan = plan::<bf16>(&gpu, Bias::Slopes(&slopes));
    let mut x = Guarded::<bf16>::poisoned(&gpu, elements as usize, 0);
    plan.write(shape.of_mut(&mut x.view()), Places::bottom_right()).unwrap();
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, 2 * elements);
        // 16 bytes each, but for the slopes.
        assert_eq!(report.counters.global_accesses[4], elements / 8);
    }
    plan.add(shape.of_mut(&mut x.view()), Places::bottom_right()).unwrap();
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, 2 * elements);
        assert_eq!(report.counters.global_accesses[4], 2 * (elements / 8));
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_a_call_is_refused_before_anything_is_written() {
    let shape = Logits::bhqk(2, 1, 3, 5);
    let slopes = Slopes::symmetric(1, &[1.0]).unwrap();
    let text = |bias: Bias, shape: Logits, positions: Places<&[i32]>| {
        let mut out = [7.0f32; 30];
        let error = bias.write(&mut out, &shape, &positions).unwrap_err().to_string();
        assert_eq!(out, [7.0; 30]);
        error
    };
    let bias = Bias::Slopes(&slopes);
    let from = Places::counted(0, 0);
    assert_eq!(text(bias, Logits::bhqk(2, 2, 3, 2), from), "the bias has 1 heads, the logits have 2");
    assert_eq!(text(bias, Logits::bhqk(3, 1, 3, 5), from), "out holds 30 elements, the shape needs 45");
    assert_eq!(
        text(bias, shape, Places { key_lengths: Some(&[5, 6][..]), ..from }),
        "key_lengths of sequence 1 is 6, the tensor has 5"
    );
    assert_eq!(
        text(bias, shape, Places { query_lengths: Some(&[-1, 3][..]), ..from }),
        "query_lengths of sequence 0 is -1, the tensor has 3"
    );
    assert_eq!(
        text(bias, shape, Places { queries: Place::Ids(&[0; 5][..]), ..from }),
        "query positions holds 5 elements, the shape needs 6"
    );
    assert_eq!(
        text(bias, shape, Places { keys: Place::BottomRight, ..from }),
        "keys are placed by Place::BottomRight, which is for queries alone"
    );
    let (one, packed) = (Logits::bhqk(1, 1, 3, 5), |queries, keys| Places::packed(queries, keys, 2));
    assert_eq!(
        text(bias, shape, packed(&[0, 1, 3][..], &[0, 2, 5][..])),
        "2 sequences are packed into a batch of 2, there must be at least 1 in a batch of 1"
    );
    assert_eq!(
        text(bias, one, packed(&[0, 2, 1], &[0, 2, 5])),
        "packed sequences begin at the queries [0, 2, 1], they must ascend from 0 to at most 3"
    );
    assert_eq!(
        text(bias, one, packed(&[0, 1, 3], &[0, 2, 6])),
        "packed sequences begin at the keys [0, 2, 6], they must ascend from 0 to at most 5"
    );
    assert_eq!(text(bias, one, packed(&[0, 1], &[0, 2, 5])), "the packed queries holds 2 elements, the shape needs 3");
    assert_eq!(
        text(bias, one, Places { key_lengths: Some(&[5][..]), ..packed(&[0, 1, 3], &[0, 2, 5]) }),
        "packed sequences have the lengths that their first tokens say, no others"
    );
    assert_eq!(
        text(bias, shape, Places::counted(1 << 31, 0)),
        "3 queries from position 2147483648, they must lie within 2^30 of 0"
    );
    let three = Slopes::new(1, &[1.0; 3], &[1.0; 3]).unwrap();
    assert_eq!(text(Bias::Slopes(&three), shape, from), "slopes are for 3 sequences, the logits have 2");
    let row = Toeplitz { heads: 2, first: 0, values: vec![0.0; 3], saturates: true };
    assert_eq!(
        text(Bias::Toeplitz(&row), shape, from),
        "a Toeplitz row of 3 numbers for 2 heads, it must hold the same count, at least 1, for each head"
    );
    let short = Toeplitz::from_law(1, -4..=1, |_, _| 0.0).unwrap();
    assert_eq!(
        text(Bias::Toeplitz(&short), shape, from),
        "the call has distances from -2 to 4, the row of the bias holds -4 to 1"
    );
    let error = Toeplitz::from_law(1, 0..=3, |_, d| if d == 2 { f64::NAN } else { 0.0 }).unwrap_err();
    assert_eq!(error.to_string(), "the bias of head 0 at distance 2 is NaN");
    let error = Toeplitz::from_law(1 << 40, 0..=(1 << 40), |_, _| 0.0).unwrap_err();
    assert_eq!(error.to_string(), "heads x distances (1099511627776 x 1099511627777) does not fit into 63 bits");
}
