use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::attend::Inputs;
use posenc::bias::{BiasInputs, DistanceGrad, DistanceGradPlan, Kerple, KerpleKind, Slopes};
use posenc::{Alibi, Bias, Gpu, Logits, Place, Places, Scalar, Softmax, T5Bias};

use crate::biases::{Buffers, Context, Host};
use crate::support::{Data, Guarded, gpu};

// -------------------------------------------------------------------------------------------- kernel against reference

fn run<T: Scalar>(
    gpu: &Gpu,
    plan: &DistanceGradPlan<T>,
    grad: &[T],
    shape: &Logits,
    host: &Host,
    factor: f32,
) -> Vec<f32> {
    let buffers = Buffers::new(gpu, host);
    let mut grad = Guarded::new(gpu, grad, 0);
    let mut out = Guarded::<f32>::poisoned(gpu, plan.len(), 1);
    plan.apply(shape.of(&grad.view()), buffers.places(host), factor, &mut out.view()).unwrap();
    out.read(gpu)
}

/// Every kind of parameter, from one gradient.
fn check<T: Scalar>(gpu: &Gpu, shape: &Logits, host: &Host) {
    let heads = shape.heads;
    let len = shape.span().unwrap();
    let grad: Vec<T> = Data::new(len as u64).values(len);
    let sizes: Vec<T> = grad.iter().map(|x| T::from_f64(x.to_f64().abs())).collect();
    let sums = |x: &[T], range| DistanceGrad::new(x, shape, host, range).unwrap();
    let _context = Context(|| format!("{} {shape:?} {host:?}", T::NAME));

    for spec in [T5Bias::new(32, 128, true), T5Bias::new(8, 12, false), T5Bias::new(32, 9, true)] {
        let plan = DistanceGradPlan::<T>::t5(gpu, spec, heads, *shape).unwrap();
        let got = run(gpu, &plan, &grad, shape, host, 2.0);
        let want: Vec<f64> = spec.grad(&sums(&grad, spec.distances())).unwrap().iter().map(|x| 2.0 * x).collect();
        let size = spec.grad(&sums(&sizes, spec.distances())).unwrap();
        assert_close(&got, &want, |i| 2.0 * DistanceGrad::error_bound(size[i]));
    }

    let all = -10_000..=10_000;
    let plan = DistanceGradPlan::<T>::slopes(gpu, heads, *shape).unwrap();
    let got = run(gpu, &plan, &grad, shape, host, 1.0);
    let (want, size) = (Slopes::grad(&sums(&grad, all.clone())), Slopes::grad(&sums(&sizes, all.clone())));
    let want = [want.left, want.right].concat();
    let size = [size.left, size.right].concat();
    assert_close(&got, &want, |i| DistanceGrad::error_bound(size[i].abs()));

    // Blocks leave sums of few outputs, or of all distances.
    for range in [-5..=9, -700..=700] {
        let plan = DistanceGradPlan::<T>::row(gpu, heads, range.clone(), *shape).unwrap();
        let got = run(gpu, &plan, &grad, shape, host, 1.0);
        let (want, size) = (sums(&grad, range.clone()).values, sums(&sizes, range).values);
        assert_close(&got, &want, |i| DistanceGrad::error_bound(size[i]));
    }

    for kind in [KerpleKind::Log, KerpleKind::Power] {
        let parameters: Vec<f64> = (1..=heads).map(|head| head as f64 / (heads + 1) as f64).collect();
        let kerple = Kerple { kind, p: parameters.clone(), a: parameters };
        let plan = DistanceGradPlan::<T>::kerple(gpu, &kerple, all.clone(), *shape).unwrap();
        let got = run(gpu, &plan, &grad, shape, host, 1.0);
        let want = kerple.grad(&sums(&grad, all.clone())).unwrap();
        let mut size = vec![0.0; 2 * heads];
        let sizes = sums(&sizes, all.clone());
        for head in 0..heads {
            for (distance, value) in sizes.of(head) {
                let by = kerple.derivatives(head, distance);
                size[head] += (value * by[0]).abs();
                size[heads + head] += (value * by[1]).abs();
            }
        }
        assert_close(&got, &[want.p, want.a].concat(), |i| DistanceGrad::error_bound(size[i]));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_parameters_are_the_reference() {
    let gpu = gpu();
    for (queries, keys) in [(1, 1), (1, 300), (9, 8), (65, 65), (70, 300)] {
        let shape = Logits::bhqk(2, 3, queries, keys).row(keys + 1).at(1);
        check::<f32>(&gpu, &shape, &Host::bottom_right());
        check::<bf16>(&gpu, &shape, &Host::counted(3, -2));
    }
    let shape = Logits::bhqk(2, 6, 20, 30);
    check::<f32>(
        &gpu,
        &shape,
        &Places { query_lengths: Some(&[20, 7]), key_lengths: Some(&[11, 30]), ..Host::bottom_right() },
    );
    check::<f32>(
        &gpu,
        &shape,
        &Places { query_lengths: Some(&[0, 20]), key_lengths: Some(&[30, 0]), ..Host::counted(1, 5) },
    );
    // More queries than one split sums.
    check::<f32>(&gpu, &Logits::bhqk(1, 1, 4100, 3), &Host::counted(0, 0));
    for heads in [1, 6, 12, 40, 71, 112] {
        check::<f16>(&gpu, &Logits::bhqk(1, heads, 5, 9), &Host::bottom_right());
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_packed_sequences_and_of_positions_one_by_one_are_the_reference() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 50, 90).row(92);
    // An empty sequence, one without queries, padding at both ends.
    let places = Places::packed(&[1, 1, 30, 37, 37, 47][..], &[3, 3, 60, 67, 80, 90], 5);
    check::<f32>(&gpu, &shape, &places);
    check::<bf16>(&gpu, &shape, &Places { queries: Place::Counted(4), ..places });
    // Sequences beyond the first split.
    let firsts = [0, 4000, 4100, 4101, 8200];
    let places = Places::packed(&firsts[..], &[0, 2, 5, 6, 9], 4);
    check::<f32>(&gpu, &Logits::bhqk(1, 1, 8200, 9), &places);

    let mut data = Data::new(5);
    for (batch, queries, keys, spread) in [(1, 3, 5, 4), (2, 70, 100, 300), (3, 50, 33, 9000)] {
        let mut positions = |n: usize| (0..n).map(|_| data.below(spread) as i32 - 3).collect::<Vec<i32>>();
        let (query, key) = (positions(batch * queries), positions(batch * keys));
        let each = Places { queries: Place::Ids(&query[..]), keys: Place::Ids(&key[..]), ..Places::counted(0, 0) };
        check::<f32>(&gpu, &Logits::bhqk(batch, 2, queries, keys), &each);
        check::<bf16>(&gpu, &Logits::bhqk(batch, 2, queries, keys), &Places { keys: Place::Counted(7), ..each });
        let lengths = vec![keys as i32 / 2; batch];
        check::<f32>(&gpu, &Logits::bhqk(batch, 2, queries, keys), &Places { key_lengths: Some(&lengths), ..each });
    }
}

/// Rows of several blocks that begin at multiples of 16 bytes, or do not.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn long_rows_of_any_layout_are_the_reference_and_give_the_same_bits() {
    fn bits<T: Scalar>(gpu: &Gpu, shape: &Logits, host: &Host, values: &[f32]) -> Vec<f32> {
        check::<T>(gpu, shape, host);
        // The same numbers, laid out as the shape says.
        let mut grad = vec![T::from_f64(f64::NAN); shape.span().unwrap()];
        let mut values = values.iter();
        for (head, query) in (0..shape.heads).flat_map(|head| (0..shape.queries).map(move |query| (head, query))) {
            for key in 0..shape.keys {
                let value = values.next().unwrap();
                grad[shape.index(0, head, query, key)] = T::from_f64(f64::from(*value));
            }
        }
        let table = DistanceGradPlan::<T>::t5(gpu, T5Bias::new(32, 128, true), shape.heads, *shape).unwrap();
        let row = DistanceGradPlan::<T>::row(gpu, shape.heads, -3000..=100, *shape).unwrap();
        [run(gpu, &table, &grad, shape, host, 1.0), run(gpu, &row, &grad, shape, host, 1.0)].concat()
    }
    let gpu = gpu();
    let (heads, queries, keys) = (2, 35, 2101);
    let values = Data::new(3).values::<f32>(heads * queries * keys);
    let shape = Logits::bhqk(1, heads, queries, keys);
    // The last one's first query sits at key 5: its tiles begin before it.
    for host in [Host::bottom_right(), Host::counted(5, -2)] {
        let [wide, moved, narrow] = [shape.row(2104), shape.row(2112).at(8), shape.row(2103).at(1)]
            .map(|shape| bits::<bf16>(&gpu, &shape, &host, &values));
        assert_eq!(wide, moved);
        assert_eq!(wide, narrow);
    }
    check::<f32>(&gpu, &shape.row(2104), &Host::bottom_right());
    // Every thread has distances of its own, the last one too.
    check::<bf16>(&gpu, &Logits::bhqk(1, 1, 128, 128), &Host::bottom_right());
    let (query_lengths, key_lengths) = (Some(&[33][..]), Some(&[2090][..]));
    let places = Places { query_lengths, key_lengths, ..Host::bottom_right() };
    check::<f16>(&gpu, &shape.row(2104), &places);
    check::<f16>(&gpu, &shape.row(2104), &Places::packed(&[1, 20, 35][..], &[3, 1000, 2101], 2));
}

/// The sum of each distance.
fn check_row<T: Scalar>(gpu: &Gpu, shape: &Logits, host: &Host, range: std::ops::RangeInclusive<i64>, grad: &[T]) {
    let sizes: Vec<T> = grad.iter().map(|x| T::from_f64(x.to_f64().abs())).collect();
    let sums = |x: &[T]| DistanceGrad::new(x, shape, host, range.clone()).unwrap().values;
    let (want, size) = (sums(grad), sums(&sizes));
    let plan = DistanceGradPlan::<T>::row(gpu, shape.heads, range.clone(), *shape).unwrap();
    let got = run(gpu, &plan, grad, shape, host, 1.0);
    let _context = Context(|| format!("{} {shape:?} {host:?}", T::NAME));
    assert_close(&got, &want, |i| DistanceGrad::error_bound(size[i]));
}

/// Tiles are 8 x 8, read in 16 bytes a row: sequences and splits end, and packed keys begin, at every place of one.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tiles_end_with_the_rows_and_keys_that_are_theirs() {
    let gpu = gpu();
    let mut data = Data::new(12);
    let mut check = |shape: Logits, host: &Host| {
        let grad = data.values::<bf16>(shape.span().unwrap());
        check_row(&gpu, &shape, host, -150..=150, &grad);
    };
    for queries in 57..=64 {
        check(Logits::bhqk(2, 2, queries, 64).row(72), &Host::bottom_right());
        check(Logits::bhqk(2, 1, queries, 61).row(64), &Host::counted(3, 0));
    }
    for length in 1..=16 {
        let lengths = [length, 20];
        check(Logits::bhqk(2, 1, 20, 24), &Places { query_lengths: Some(&lengths), ..Host::bottom_right() });
        check(Logits::bhqk(2, 1, 20, 24), &Places { key_lengths: Some(&lengths), ..Host::counted(0, 0) });
    }
    for first in 8..16 {
        check(Logits::bhqk(1, 1, 40, 48), &Places::packed(&[0, 9, 40][..], &[0, first, 48], 2));
        check(Logits::bhqk(1, 1, 40, 48), &Places::packed(&[0, first, 40][..], &[0, 24, 48], 2));
    }
    // All threads of a block have distances, and later sequences begin within a tile of their split.
    let counted = Host::counted(0, 0);
    check(Logits::bhqk(8, 1, 129, 128), &Places { query_lengths: Some(&[129; 8]), ..counted });
    for first in 1..8 {
        let queries = [0, first, 129];
        let packed = Places::packed(&queries[..], &[0, 0, 128], 2);
        check(Logits::bhqk(1, 1, 129, 128), &Places { queries: Place::Counted(0), ..packed });
    }
}

/// Equal numbers that are no power of two: each addition without compensation would be off to the same side.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn long_sums_of_equal_numbers_are_within_their_bound() {
    let gpu = gpu();
    // One bin.
    let shape = Logits::bhqk(1, 1, 64, 4096);
    let (queries, keys) = ([5; 64], [3; 4096]);
    let each = Places { queries: Place::Ids(&queries[..]), keys: Place::Ids(&keys[..]), ..Places::counted(0, 0) };
    check_row(&gpu, &shape, &each, -5..=5, &[1.1f32; 64 * 4096]);
    // One diagonal.
    check_row(&gpu, &Logits::bhqk(1 << 12, 1, 64, 1), &Host::counted(0, 0), -64..=64, &[1.1f32; 64 << 12]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gates_weigh_the_gradient() {
    let gpu = gpu();
    let (spec, heads) = (T5Bias::new(32, 128, true), 3);
    let shape = Logits::bhqk(2, heads, 20, 40);
    let mut data = Data::new(8);
    let grad: Vec<f32> = data.values(shape.elements().unwrap());
    let gates: Vec<f32> = data.values(shape.rows().unwrap());
    let weighed: Vec<f32> = grad.iter().zip(0..).map(|(x, i)| x * gates[i / shape.keys]).collect();
    let positions: Vec<i32> = (0..2 * 40).map(|_| data.below(300) as i32).collect();
    for host in [Host::bottom_right(), Places { keys: Place::Ids(&positions), ..Host::counted(100, 0) }] {
        let sums = |x: &[f32]| DistanceGrad::new(x, &shape, &host, spec.distances()).unwrap();
        let sizes: Vec<f32> = weighed.iter().map(|x| x.abs()).collect();
        let (want, size) = (spec.grad(&sums(&weighed)).unwrap(), spec.grad(&sums(&sizes)).unwrap());
        let plan = DistanceGradPlan::<f32>::t5(&gpu, spec, heads, shape).unwrap();
        let upload = |x: &[f32]| gpu.stream().clone_htod(x).unwrap();
        let (grad, gates, buffers) = (upload(&grad), upload(&gates), Buffers::new(&gpu, &host));
        let mut out = Guarded::<f32>::poisoned(&gpu, plan.len(), 0);
        let inputs = BiasInputs { gates: Some(&gates), ..buffers.places(&host).into() };
        plan.apply(shape.of(&grad), inputs, 1.0, &mut out.view()).unwrap();
        let _context = Context(|| format!("{host:?}"));
        assert_close(&out.read(&gpu), &want, |i| DistanceGrad::error_bound(size[i]));
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_heads_buckets_sum_to_zero_and_each_number_is_read_once() {
    let gpu = gpu();
    let (heads, spec) = (2, T5Bias::new(32, 128, false));
    let shape = Logits::bhqk(2, heads, 200, 200);
    let mut data = Data::new(2);
    let len = shape.elements().unwrap();
    let (logits, weights): (Vec<f32>, Vec<f32>) = (data.values(len), data.values(len));
    let slopes = Alibi::new(heads).slopes().unwrap();
    let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Host::bottom_right()) };
    let grad = Softmax::causal(1.0).grad(&logits, &weights, &shape, &inputs).unwrap().bias;
    let grad: Vec<f32> = grad.iter().map(|&x| x as f32).collect();
    let plan = DistanceGradPlan::<f32>::t5(&gpu, spec, heads, shape).unwrap();
    let buffer = gpu.stream().clone_htod(&grad).unwrap();
    let mut out = gpu.stream().clone_htod(&vec![0.0f32; plan.len()]).unwrap();
    let mut calls = 0;
    let mut call = |places: &Places<posenc::gpu::Read<i32>>, out: &mut cudarc::driver::CudaSlice<f32>| {
        if let Some(emulator) = crate::support::emulator() {
            emulator.reset_counters();
        }
        plan.apply(shape.of(&buffer), places, 1.0, out).unwrap();
        if let Some(emulator) = crate::support::emulator() {
            // One launch, which reads every number of the gradient once; sums and intervals are a small part.
            let counters = emulator.counters();
            assert_eq!(counters.launches, 1);
            let numbers = 4 * len as u64;
            assert!((numbers..numbers * 115 / 100).contains(&counters.bytes_read), "{counters:?}");
            calls += 1;
        }
    };
    call(&Places::bottom_right(), &mut out);
    let table = gpu.stream().clone_dtoh(&out).unwrap();
    for head in 0..heads {
        let column = || (0..32).map(|bucket| f64::from(table[bucket * heads + head]));
        let size: f64 = column().map(f64::abs).sum();
        assert!(size > 0.1 && column().sum::<f64>().abs() < 1e-5 * size, "{size}");
    }
    // Twice the same bits.
    let mut again = gpu.stream().clone_htod(&vec![0.0f32; plan.len()]).unwrap();
    call(&Places::bottom_right(), &mut again);
    assert_eq!(gpu.stream().clone_dtoh(&again).unwrap(), table);
    assert!(calls == 0 || calls == 2);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_a_call_is_refused() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 4, 4);
    let plan = DistanceGradPlan::<f32>::slopes(&gpu, 2, shape).unwrap();
    let grad = gpu.stream().clone_htod(&[0.0f32; 1024]).unwrap();
    let positions = gpu.stream().clone_htod(&[0i32; 3]).unwrap();
    let mut out = gpu.stream().clone_htod(&[7.0f32; 4]).unwrap();
    let mut text = |shape: Logits, places: Places<posenc::gpu::Read<i32>>| {
        let error = plan.apply(shape.of(&grad), places, 1.0, &mut out).unwrap_err().to_string();
        assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), [7.0; 4]);
        error
    };
    assert_eq!(text(Logits::bhqk(1, 3, 4, 4), Places::bottom_right()), "the bias has 2 heads, the logits have 3");
    assert_eq!(
        text(Logits::bhqk(1, 2, 32, 32), Places::bottom_right()),
        "grad holds 1024 elements, the shape needs 2048"
    );
    // Four splits leave two sums of each head.
    assert_eq!(
        text(Logits::bhqk(1, 2, 97, 4), Places::bottom_right()),
        "a call of 97 rows of 4 keys a head needs 16 numbers of scratch memory, the plan was made with 4"
    );
    assert_eq!(
        text(shape, Places { queries: Place::Ids(&positions), ..Places::counted(0, 0) }),
        "query positions holds 3 elements, the shape needs 4"
    );
    let error = DistanceGradPlan::<f32>::slopes(&gpu, 3, shape).err().unwrap().to_string();
    assert_eq!(error, "the bias has 3 heads, the logits have 2");
    // Beyond 32 bits, whatever the weights.
    let far = (1i64 << 32)..=(1 << 32) + 3;
    let row = DistanceGradPlan::<f32>::row(&gpu, 2, far.clone(), shape).err().unwrap().to_string();
    let kerple = Kerple { kind: KerpleKind::Log, p: vec![1.0; 2], a: vec![1.0; 2] };
    let kerple = DistanceGradPlan::<f32>::kerple(&gpu, &kerple, far, shape).err().unwrap().to_string();
    assert_eq!([row, kerple], ["a row of 4 distances from 4294967296, both must lie within 2^30"; 2]);
    // Few numbers that many rows read.
    let many = Logits { strides: [0; 3], ..Logits::bhqk(1 << 17, 2, 1 << 13, 4) };
    let message = "the call has 2147483648 rows (batch x heads x queries), one takes 2147483647";
    assert_eq!(text(many, Places::counted(0, 0)), message);
    let max_shape = Logits::bhqk(1, 2, 4, usize::MAX / 2);
    let error = DistanceGradPlan::<f32>::slopes(&gpu, 2, max_shape).err().unwrap().to_string();
    assert_eq!(error, "max_shape has 9223372036854775807 keys, there may be 2147483647");
}
