use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::bias::{BiasInputs, Fire, FireGradPlan};
use posenc::{Bias, BiasPlan, Gpu, Logits, Place, Places, Scalar};

use crate::biases::{Buffers, Context, Host, Numbers, fire};
use crate::support::{Data, Guarded, gpu};

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn values_are_those_of_the_formula() {
    // arXiv 2310.04418, equation 4, by hand: c = 0.1, a query at 100 past a threshold of 50, a key 30 before it.
    let fire = Fire { threshold: 50.0, in_weight: vec![2.0, -1.0], in_bias: vec![0.5, 0.25], ..Fire::new() };
    let fire = Fire { out_weight: vec![3.0, 7.0], out_bias: vec![-1.0], ..fire };
    let x = 4f64.ln() / (11f64.ln() + 1e-6);
    assert!((fire.input(100, 70) - x).abs() < 1e-15);
    assert!((fire.bias(0, 100, 70) - (-1.0 + 3.0 * (2.0 * x + 0.5))).abs() < 1e-14);
    // Before the threshold all queries are normalised alike; and the future is as far as the past.
    assert_eq!(fire.input(10, 7), fire.input(50, 47));
    assert_eq!(fire.input(100, 130), fire.input(100, 70));
    // Near the query the second unit is up too: 7 * (0.25 - x).
    let x = fire.input(100, 99);
    assert!((fire.bias(0, 100, 99) - (-1.0 + 3.0 * (2.0 * x + 0.5) + 7.0 * (0.25 - x))).abs() < 1e-14);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn lines_are_the_network() {
    for (heads, width) in [(1, 1), (6, 32), (12, 7), (3, 64)] {
        let fire = fire(heads, width, width as u64);
        let lines = fire.lines().unwrap();
        let count = lines.breaks.len() + 1;
        assert!(lines.breaks.windows(2).all(|pair| pair[0] <= pair[1]));
        for (query, key) in (0..60).flat_map(|query| (0..70).map(move |key| (query, key))) {
            let x = fire.input(query, key);
            let line = lines.breaks.partition_point(|&at| f64::from(at) <= x);
            for head in 0..heads {
                let index = head * count + line;
                let got = f64::from(lines.slopes[index]) * x + f64::from(lines.intercepts[index]);
                let bound = fire.error_bound(head, x).unwrap();
                assert!((got - fire.bias(head, query, key)).abs() <= bound, "{heads} {width} {query} {key}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (heads, width) = (3, 5);
    let fire = fire(heads, width, 11);
    let shape = Logits::bhqk(2, heads, 7, 13);
    let positions = Places::bottom_right();
    let weights: Vec<f32> = Numbers(4).take(shape.elements().unwrap(), 1.0);
    let loss = |fire: &Fire| {
        let mut sum = 0.0;
        for batch in 0..2 {
            for head in 0..heads {
                for query in 0..7 {
                    for key in 0..13 {
                        let weight = f64::from(weights[shape.index(batch, head, query, key)]);
                        sum += weight * fire.bias(head, query as i64 + 6, key as i64);
                    }
                }
            }
        }
        sum
    };
    let grad = fire.grad(&weights, &shape, &positions).unwrap();
    let check = |got: f64, name: &str, change: &dyn Fn(&mut Fire, f64)| {
        let step = 1e-6;
        let (mut up, mut down) = (fire.clone(), fire.clone());
        change(&mut up, step);
        change(&mut down, -step);
        let want = (loss(&up) - loss(&down)) / (2.0 * step);
        assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{name}: {got} and {want}");
    };
    check(grad.c, "c", &|fire, step| fire.c += step);
    check(grad.threshold, "threshold", &|fire, step| fire.threshold += step);
    for k in 0..width {
        check(grad.in_weight[k], "in_weight", &|fire, step| fire.in_weight[k] += step);
        check(grad.in_bias[k], "in_bias", &|fire, step| fire.in_bias[k] += step);
    }
    for k in 0..heads * width {
        check(grad.out_weight[k], "out_weight", &|fire, step| fire.out_weight[k] += step);
    }
    for head in 0..heads {
        check(grad.out_bias[head], "out_bias", &|fire, step| fire.out_bias[head] += step);
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

fn check<T: Scalar>(gpu: &Gpu, fire: &Fire, shape: &Logits, host: &Host, gated: bool) {
    let len = shape.span().unwrap();
    let mut data = Data::new(len as u64);
    let grad: Vec<T> = data.values(len);
    let gates: Vec<f32> = data.values(shape.rows().unwrap().max(1));
    // Gates by row, and so by the gradient: 2^-24 of each product is within the bound.
    let mut weighed: Vec<f64> = grad.iter().map(|x| x.to_f64()).collect();
    let rows = shape.batch * shape.heads * shape.queries;
    for row in (0..rows).filter(|_| gated) {
        let (batch, head) = (row / shape.queries / shape.heads, row / shape.queries % shape.heads);
        for key in 0..shape.keys {
            weighed[shape.index(batch, head, row % shape.queries, key)] *= f64::from(gates[row]);
        }
    }
    let weighed: Vec<f32> = weighed.iter().map(|&x| x as f32).collect();
    let (want, bound) = fire.expect_grad(&weighed, shape, host).unwrap();
    let plan = FireGradPlan::<T>::new(gpu, fire, 16_384, *shape).unwrap();
    let buffers = Buffers::new(gpu, host);
    let gates = gpu.stream().clone_htod(&gates).unwrap();
    let mut grad = Guarded::new(gpu, &grad, 1);
    let mut run = || {
        let mut out = Guarded::<f32>::poisoned(gpu, plan.len(), 1);
        let gates = gated.then_some(&gates as posenc::gpu::Read<f32>);
        let inputs = BiasInputs { gates, ..buffers.places(host).into() };
        plan.apply(shape.of(&grad.view()), inputs, 2.0, &mut out.view()).unwrap();
        out.read(gpu)
    };
    let got = run();
    let want: Vec<f64> = want.flat().iter().map(|x| 2.0 * x).collect();
    let bound = bound.flat();
    let _context = Context(|| format!("{} {shape:?} {host:?} gated {gated}", T::NAME));
    assert_close(&got, &want, |i| 2.0 * bound[i]);
    // The counters are as before, and so are the sums.
    assert_eq!(run(), got);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_on_the_device_are_the_reference() {
    let gpu = gpu();
    for (heads, width) in [(1, 1), (6, 32), (3, 40)] {
        let fire = fire(heads, width, 7 * width as u64);
        let shape = Logits::bhqk(2, heads, 9, 70).row(71).at(1);
        check::<f32>(&gpu, &fire, &shape, &Host::bottom_right(), false);
        check::<bf16>(&gpu, &fire, &shape, &Host::counted(-4, 3), true);
        check::<f16>(&gpu, &Fire { threshold: 1e9, ..fire.clone() }, &shape, &Host::counted(5, 0), false);
        let lengths =
            Places { query_lengths: Some(&[9, 4][..]), key_lengths: Some(&[33, 0][..]), ..Host::bottom_right() };
        check::<f32>(&gpu, &fire, &shape, &lengths, true);
        let mut data = Data::new(3);
        let mut each = |n: usize| (0..n).map(|_| data.below(200) as i32 - 9).collect::<Vec<_>>();
        let (queries, keys) = (each(18), each(140));
        let each = Places { queries: Place::Ids(&queries[..]), keys: Place::Ids(&keys[..]), ..Host::counted(0, 0) };
        check::<f32>(&gpu, &fire, &shape, &each, false);
        let packed = Places::packed(&[1, 1, 90, 140, 150][..], &[0, 4, 20, 20, 37], 4);
        check::<f32>(&gpu, &fire, &Logits::bhqk(1, heads, 150, 40), &packed, false);
    }
    // Ramps that are flat, up, down, never up, and two that bend at one place.
    let network = Fire { in_weight: vec![0.0, 0.0, -1.0, 2.0, -3.0, 4.0], ..Fire::new() };
    let network = Fire { in_bias: vec![0.5, -0.5, 0.25, 1.0, -0.1, -1.0], threshold: 20.0, ..network };
    let network = Fire { out_weight: (1..=12).map(f64::from).collect(), out_bias: vec![0.0; 2], ..network };
    check::<f32>(&gpu, &network, &Logits::bhqk(1, 2, 40, 40), &Host::bottom_right(), false);
    check::<f32>(&gpu, &network, &Logits::bhqk(1, 2, 0, 40), &Host::counted(0, 0), false);
}

/// Equal numbers that are no power of two: each addition without compensation would be off to the same side.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn long_sums_of_equal_numbers_are_within_their_bound() {
    let gpu = gpu();
    let (queries, keys) = ([50; 64], [30; 4096]);
    let host = Places { queries: Place::Ids(&queries[..]), keys: Place::Ids(&keys[..]), ..Host::counted(0, 0) };
    let (fire, shape) = (fire(1, 3, 5), Logits::bhqk(1, 1, 64, 4096));
    let (want, bound) = fire.expect_grad(&[1.1f32; 64 * 4096], &shape, &host).unwrap();
    let (want, bound) = (want.flat(), bound.flat());
    let plan = FireGradPlan::<f32>::new(&gpu, &fire, 100, shape).unwrap();
    let buffers = Buffers::new(&gpu, &host);
    let grad = gpu.stream().clone_htod(&[1.1f32; 64 * 4096]).unwrap();
    let mut out = Guarded::<f32>::poisoned(&gpu, plan.len(), 0);
    plan.apply(shape.of(&grad), buffers.places(&host), 1.0, &mut out.view()).unwrap();
    assert_close(&out.read(&gpu), &want, |i| bound[i]);
}

/// The difference of two positions beyond 2^30 may leave 32 bits: what it gives has no meaning, and reads the tables alone.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn positions_beyond_their_limit_read_no_other_memory() {
    let gpu = gpu();
    let (fire, shape) = (fire(2, 3, 1), Logits::bhqk(1, 2, 3, 5));
    let upload = |positions: &[i32]| gpu.stream().clone_htod(positions).unwrap();
    let (queries, keys) = (upload(&[0, i32::MIN, i32::MAX]), upload(&[i32::MIN, i32::MAX, -1, 0, 7]));
    let places = Places::counted(0, 0).query_positions(&queries).key_positions(&keys);
    let mut x = gpu.stream().clone_htod(&[0.0f32; 30]).unwrap();
    BiasPlan::fire(&gpu, &fire, 100).unwrap().write(shape.of_mut(&mut x), places).unwrap();
    assert!(gpu.stream().clone_dtoh(&x).unwrap().iter().all(|x| x.is_finite()));
    let plan = FireGradPlan::<f32>::new(&gpu, &fire, 100, shape).unwrap();
    let mut out = gpu.stream().clone_htod(&vec![0.0f32; plan.len()]).unwrap();
    plan.apply(shape.of(&x), places, 1.0, &mut out).unwrap();
    assert!(gpu.stream().clone_dtoh(&out).unwrap().iter().all(|x| x.is_finite()));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_is_one_kernel_that_reads_each_number_once() {
    let gpu = gpu();
    let (fire, shape) = (fire(2, 32, 5), Logits::bhqk(1, 2, 200, 500));
    let len = shape.elements().unwrap();
    let plan = FireGradPlan::<f32>::new(&gpu, &fire, 500, shape).unwrap();
    let grad = gpu.stream().clone_htod(&vec![1.0f32; len]).unwrap();
    let mut out = gpu.stream().clone_htod(&vec![0.0f32; plan.len()]).unwrap();
    let Some(emulator) = crate::support::emulator() else { return };
    emulator.reset_counters();
    plan.apply(shape.of(&grad), Places::bottom_right(), 1.0, &mut out).unwrap();
    let counters = emulator.counters();
    assert_eq!(counters.launches, 1);
    // Beside its own number each element reads two tables and five breaks, from a cache.
    assert!((4 * len as u64..4 * 11 * len as u64).contains(&counters.bytes_read), "{counters:?}");
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_a_gradient_is_refused() {
    let gpu = gpu();
    let (fire, shape) = (fire(2, 3, 1), Logits::bhqk(1, 2, 4, 4));
    let plan = FireGradPlan::<f32>::new(&gpu, &fire, 100, shape).unwrap();
    let grad = gpu.stream().clone_htod(&[0.0f32; 1024]).unwrap();
    let mut out = gpu.stream().clone_htod(&vec![7.0f32; plan.len()]).unwrap();
    let mut text = |shape: Logits| {
        let error = plan.apply(shape.of(&grad), Places::bottom_right(), 1.0, &mut out).unwrap_err().to_string();
        assert!(gpu.stream().clone_dtoh(&out).unwrap().iter().all(|&x| x == 7.0));
        error
    };
    assert_eq!(text(Logits::bhqk(1, 3, 4, 4)), "the bias has 2 heads, the logits have 3");
    assert_eq!(text(Logits::bhqk(1, 2, 32, 32)), "grad holds 1024 elements, the shape needs 2048");
    let lines = fire.lines().unwrap().breaks.len() + 1;
    assert_eq!(
        text(Logits::bhqk(1, 2, 65, 4)),
        format!(
            "a call of 65 rows of 4 keys a head needs {} numbers of scratch memory, the plan was made with {}",
            8 * 2 * 2 * lines,
            8 * 2 * lines
        )
    );
    let error = FireGradPlan::<f32>::new(&gpu, &fire, 100, Logits::bhqk(1, 3, 4, 4)).err().unwrap().to_string();
    assert_eq!(error, "the bias has 2 heads, the logits have 3");
}

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |fire: &Fire| fire.check().unwrap_err().to_string();
    let good = fire(2, 3, 1);
    assert_eq!(text(&Fire { c: 0.0, ..good.clone() }), "FIRE's c is 0, it must be finite and positive");
    let mut nan = good.clone();
    nan.out_weight[4] = f64::NAN;
    assert_eq!(text(&nan), "FIRE's out_weight 4 is NaN, it must be finite");
    assert_eq!(
        text(&Fire { out_bias: vec![0.0; 3], ..good.clone() }),
        "FIRE's network has 3 inputs' weights and 3 biases, 6 outputs' weights and 3 biases; \
         they must be w, w, heads x w and heads, none of them 0"
    );
    let mut out = [0.0f32; 12];
    let error = Bias::Fire(&good).write(&mut out, &Logits::bhqk(1, 3, 2, 2), &Places::counted(0, 0)).unwrap_err();
    assert_eq!(error.to_string(), "the bias has 2 heads, the logits have 3");
}
