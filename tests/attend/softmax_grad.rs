use half::{bf16, f16};
use posenc::accuracy::{assert_close, rounded};
use posenc::attend::{DeviceBias, DeviceInputs, GradOptions, HostInputs, Inputs};
use posenc::bias::{DeviceTermInputs, DistanceGrad, Toeplitz};
use posenc::gpu::Read;
use posenc::{Alibi, Bias, Gpu, Logits, Places, Scalar, Softmax, SoftmaxPlan, T5Bias};

use crate::biases::{Buffers, Context, Host, Numbers, every_place_of_a_pack, plan};
use crate::softmax::{all, bits, run};
use crate::support::{Data, Guarded, gpu};
use crate::terms_support::{Own, TermBuffers, buffers as term_buffers};

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn gradients_are_those_of_finite_differences() {
    let shape = Logits::bhqk(1, 2, 3, 5);
    let count = shape.elements().unwrap();
    let slopes = Alibi::new(2).slopes().unwrap();
    let mut numbers = Numbers(13);
    let start: Vec<f32> = numbers.take(count, 2.0);
    let weights: Vec<f32> = numbers.take(count, 1.0);
    let mask: Vec<f32> = numbers.take(count, 1.0);
    let sinks = [0.3f32, -0.4];
    for softmax in all(Softmax::new(0.7)) {
        let (mask, bias) = (Some((&mask[..], shape)), Bias::Slopes(&slopes));
        let inputs = HostInputs { bias, sinks: Some(&sinks), mask, ..HostInputs::default() };
        let grad = softmax.grad(&start, &weights, &shape, &inputs).unwrap();
        let loss = |logits: &[f32], bias: Bias, sinks: &[f32]| -> f64 {
            let inputs = HostInputs { bias, sinks: Some(sinks), mask, ..HostInputs::default() };
            let output = softmax.expect(logits, &shape, &inputs).unwrap();
            output.want.iter().zip(&weights).map(|(p, w)| p * f64::from(*w)).sum()
        };
        let step = 1.0f32 / 512.0;
        let near = |got: f64, up: f64, down: f64, what: &str| {
            let want = (up - down) / (2.0 * f64::from(step));
            assert!((got - want).abs() < 1e-5, "{softmax:?} {what}: {got} and {want}");
        };
        for index in 0..count {
            let (mut up, mut down) = (start.clone(), start.clone());
            up[index] += step;
            down[index] -= step;
            let true_step = f64::from(up[index] - down[index]) / 2.0 / f64::from(step);
            near(grad.logits[index] * true_step, loss(&up, bias, &sinks), loss(&down, bias, &sinks), "logit");
        }
        for head in 0..2 {
            let change = |step: f32| {
                let mut sinks = sinks;
                sinks[head] += step;
                sinks
            };
            near(grad.sinks[head], loss(&start, bias, &change(step)), loss(&start, bias, &change(-step)), "sink");
        }
        // A row's bias at each distance, through the sums along diagonals.
        let sums: Vec<f32> = grad.bias.iter().map(|&x| x as f32).collect();
        let sums = DistanceGrad::new(&sums, &shape, &Places::bottom_right(), -4..=4).unwrap();
        let row = Toeplitz::from_law(2, -4..=4, |head, d| slopes.bias(0, head, d)).unwrap();
        for index in 0..row.values.len() {
            let (mut up, mut down) = (row.clone(), row.clone());
            up.values[index] += step;
            down.values[index] -= step;
            let (up, down) = (Bias::Toeplitz(&up), Bias::Toeplitz(&down));
            near(sums.values[index], loss(&start, up, &sinks), loss(&start, down, &sinks), "bias");
        }
    }
}

#[test]
fn bucket_gradients_of_a_head_sum_to_zero() {
    let spec = T5Bias::new(32, 128, true);
    let shape = Logits::bhqk(2, 4, 60, 80);
    let mut numbers = Numbers(21);
    let table: Vec<f32> = numbers.take(32 * 4, 1.0);
    let row = spec.row(&table, 4).unwrap();
    let count = shape.elements().unwrap();
    let (logits, weights): (Vec<f32>, Vec<f32>) = (numbers.take(count, 2.0), numbers.take(count, 1.0));
    let inputs = HostInputs { bias: Bias::Toeplitz(&row), ..HostInputs::at(Places::bottom_right()) };
    let grad = Softmax::causal(1.0).grad(&logits, &weights, &shape, &inputs).unwrap();
    let bias: Vec<f32> = grad.bias.iter().map(|&x| x as f32).collect();
    let sums = DistanceGrad::new(&bias, &shape, &Places::bottom_right(), spec.distances()).unwrap();
    let table = spec.grad(&sums).unwrap();
    for head in 0..4 {
        let column = || (0..32).map(|bucket| table[bucket * 4 + head]);
        let size: f64 = column().map(f64::abs).sum();
        assert!(size > 0.1 && column().sum::<f64>().abs() < 1e-6 * size, "{size}");
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// The gradient on the device against the one of the reference, from the same probabilities.
pub fn check_grad<T: Own>(
    gpu: &Gpu,
    softmax: &Softmax,
    shape: &Logits,
    inputs: &HostInputs<T>,
    seed: u64,
    shift: usize,
) {
    let len = shape.span().unwrap();
    let mut data = Data::new(seed);
    let (logits, dp): (Vec<T>, Vec<T>) = (data.values(len), data.values(len));
    let mut p = logits.clone();
    softmax.apply(&mut p, shape, inputs).unwrap();
    let want = softmax.expect_grad(&p, &dp, &logits, shape, inputs).unwrap();
    let buffers = Buffers::new(gpu, &inputs.places);
    let terms = term_buffers::<T>(gpu, inputs.bias, shift % 2 == 1);
    let terms: Vec<DeviceTermInputs> = terms.iter().map(TermBuffers::device).collect();
    let [gates, scales] =
        [inputs.gates, inputs.scales].map(|values| gpu.stream().clone_htod(values.unwrap_or(&[0.0])).unwrap());
    let call = DeviceInputs::<T> {
        gates: inputs.gates.map(|_| &gates as Read<f32>),
        scales: inputs.scales.map(|_| &scales as Read<f32>),
        bias: DeviceBias::terms(&terms),
        ..DeviceInputs::at(buffers.places(&inputs.places))
    };
    let (mut p, mut x) = (Guarded::new(gpu, &p, shift), Guarded::new(gpu, &logits, shift));
    let mut dx = Guarded::new(gpu, &dp, shift);
    let mut dbias = Guarded::new(gpu, &vec![T::from_f32(0.0); len], shift);
    let mut dots = Guarded::<f32>::poisoned(gpu, shape.rows().unwrap(), 0);
    let plan = SoftmaxPlan::<T>::new(gpu, softmax, plan::<T>(gpu, inputs.bias)).unwrap();
    let (x, mut dbias_view, mut dots_view) = (x.view(), dbias.view(), dots.view());
    let options = GradOptions { logits: Some(shape.of(&x)), bias: Some(&mut dbias_view), dots: Some(&mut dots_view) };
    plan.grad(shape.of(&p.view()), shape.of_mut(&mut dx.view()), &call, options).unwrap();
    let inside = |index: usize| {
        (0..shape.rows().unwrap()).any(|row| {
            let at = shape.index(
                row / shape.queries / shape.heads,
                row / shape.queries % shape.heads,
                row % shape.queries,
                0,
            );
            (at..at + shape.keys).contains(&index)
        })
    };
    let _context = Context(|| format!("{} {softmax:?} {shape:?} {:?}", T::NAME, inputs.places));
    let kept: Vec<f64> = (0..len).map(|i| if inside(i) { want.logits[i] } else { dp[i].to_f64() }).collect();
    assert_close(&dx.read(gpu), &kept, |i| want.logits_bound[i]);
    assert_close(&dbias.read(gpu), &want.bias, |i| want.bias_bound[i]);
    assert_close(&dots.read(gpu), &want.dots, |i| want.dots_bound[i]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_is_the_reference() {
    let gpu = gpu();
    let slopes = Alibi::new(3).slopes().unwrap();
    let gates: Vec<f32> = Data::new(1).values(2 * 3 * 4);
    let host = Host { query_lengths: Some(&[3, 4]), key_lengths: Some(&[20, 7]), ..Host::bottom_right() };
    for (seed, softmax) in all(Softmax::new(0.7)).into_iter().enumerate() {
        let shape = Logits::bhqk(2, 3, 4, 21).row(24);
        let inputs = |positions| HostInputs {
            bias: Bias::Slopes(&slopes),
            gates: Some(&gates),
            ..HostInputs::<f32>::at(positions)
        };
        check_grad(&gpu, &softmax, &shape, &inputs(host), seed as u64, seed % 3);
        let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::<bf16>::at(Host::bottom_right()) };
        check_grad(&gpu, &softmax, &shape, &inputs, seed as u64, 0);
    }
    let places = Places::packed(&[1, 1, 3, 7][..], &[0, 2, 11, 20], 3);
    let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::<f32>::at(places) };
    let capped = Softmax { softcap: Some(1.5), ..Softmax::causal(0.7) };
    check_grad(&gpu, &capped, &Logits::bhqk(1, 3, 8, 21), &inputs, 1, 0);
    let (shape, places) = every_place_of_a_pack();
    check_grad(&gpu, &Softmax::new(0.7), &shape, &HostInputs::<f32>::at(places), 2, 0);
    check_grad(&gpu, &Softmax::new(0.7), &shape, &HostInputs::<bf16>::at(places), 3, 0);
    for keys in [1, 7, 8, 33, 300, 1023, 1025, 3000, 8191, 8193, 17_000, 33_000] {
        let shape = Logits::bhqk(1, 1, 2, keys);
        check_grad(&gpu, &Softmax::new(1.0), &shape, &HostInputs::<f16>::at(Host::bottom_right()), keys as u64, 0);
        check_grad(&gpu, &Softmax::causal(1.0), &shape, &HostInputs::<f32>::at(Host::bottom_right()), keys as u64, 1);
    }
}

/// What the device gives for a row's logits and bias from `p`, `dp` and `x`.
fn gradient<T: Scalar>(
    gpu: &Gpu,
    softmax: &Softmax,
    [p, dp, x]: [&[T]; 3],
    shape: &Logits,
    inputs: &HostInputs<T>,
) -> (Vec<T>, Vec<T>) {
    let buffers = Buffers::new(gpu, &inputs.places);
    let call = Inputs::at(buffers.places(&inputs.places));
    let [mut p, mut dx, mut x] = [p, dp, x].map(|values| Guarded::new(gpu, values, 0));
    let mut dbias = Guarded::poisoned(gpu, shape.span().unwrap(), 0);
    let (mut dbias_view, x) = (dbias.view(), x.view());
    let options = GradOptions { logits: Some(shape.of(&x)), bias: Some(&mut dbias_view), ..GradOptions::default() };
    let plan = SoftmaxPlan::<T>::new(gpu, softmax, plan::<T>(gpu, inputs.bias)).unwrap();
    plan.grad(shape.of(&p.view()), shape.of_mut(&mut dx.view()), &call, options).unwrap();
    (dx.read(gpu), dbias.read(gpu))
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_does_not_see_what_has_no_weight() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 4, 40);
    let slopes = Alibi::new(2).slopes().unwrap();
    let places = Places::packed(&[0, 2, 3][..], &[3, 21, 34], 2);
    let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::<f32>::at(places) };
    let mut data = Data::new(7);
    let len = shape.elements().unwrap();
    let (logits, dp): (Vec<f32>, Vec<f32>) = (data.values(len), data.values(len));
    for softmax in all(Softmax::new(0.7)) {
        let mut p = logits.clone();
        softmax.apply(&mut p, &shape, &inputs).unwrap();
        let want = gradient(&gpu, &softmax, [&p, &dp, &logits], &shape, &inputs);
        let [mut stale, mut dp, mut x] = [p.clone(), dp.clone(), logits.clone()];
        for i in (0..len).filter(|&i| p[i] == 0.0) {
            (dp[i], x[i]) = (f32::NAN, f32::NAN);
            // Keys of no sequence, and rows of padding: anything may be left there.
            let (query, key) = (i / 40 % 4, i % 40);
            if !(3..34).contains(&key) || query == 3 || (query < 2) != (key < 21) {
                stale[i] = f32::NAN;
            }
        }
        let got = gradient(&gpu, &softmax, [&stale, &dp, &x], &shape, &inputs);
        assert_eq!(got, want, "{softmax:?}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_long_rows_have_the_same_bits_held_shared_and_read_twice() {
    let gpu = gpu();
    let many = gpu.multiprocessors() as usize;
    // Chunks that a block holds, and more than it does; but for the last all rows are empty.
    for keys in [16_400, 33_000] {
        let mut data = Data::new(6);
        let (logits, dp): (Vec<f32>, Vec<f32>) = (data.values(keys), data.values(keys));
        let inputs = HostInputs::<f32>::at(Host::counted(keys as i64 - 1, 0));
        let (softmax, shape) = (Softmax::new(3.0), Logits::bhqk(1, 1, 1, keys));
        let mut p = logits.clone();
        softmax.apply(&mut p, &shape, &inputs).unwrap();
        let want = gradient(&gpu, &softmax, [&p, &dp, &logits], &shape, &inputs);
        let mut lengths = vec![0; many];
        lengths[many - 1] = keys as i32;
        let inputs = HostInputs::at(Places { key_lengths: Some(&lengths[..]), ..inputs.places });
        let last = (many - 1) * keys;
        let behind = |x: &[f32]| [&vec![0.0; last], x].concat();
        let all = [behind(&p), behind(&dp), behind(&logits)];
        let shape = Logits::bhqk(many, 1, 1, keys);
        let got = gradient(&gpu, &softmax, [&all[0], &all[1], &all[2]], &shape, &inputs);
        assert_eq!(bits(&got.0[last..]), bits(&want.0), "{keys}");
        assert_eq!(bits(&got.1[last..]), bits(&want.1), "{keys}");
    }
}

/// The error that a kernel may have in `-sum over rows of exp(sink - lse) * dot`, whose terms have these sizes.
fn sink_bound(want: f64, terms: impl Iterator<Item = (f64, f64)>) -> f64 {
    let sum: f64 = terms.map(|(distance, size)| (8.0 + distance) * f32::ROUNDOFF * size).sum();
    rounded::<f32>(want, sum)
}

/// One thread adds the first query of all sequences: each of these is below half of what 1 is rounded to.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_sinks_keep_the_small_terms_of_many_rows() {
    let gpu = gpu();
    let shape = Logits::bhqk(300, 1, 257, 1);
    let rows = shape.rows().unwrap();
    let small = 2f32.powi(-25);
    let mut dots = vec![small; rows];
    dots[0] = 1.0;
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).unwrap();
    let upload = |x: &[f32]| gpu.stream().clone_htod(x).unwrap();
    let (sinks, lse, buffer) = (upload(&[0.5]), upload(&vec![0.5; rows]), upload(&dots));
    let mut out = Guarded::<f32>::poisoned(&gpu, 1, 1);
    plan.sink_grad(&sinks, &lse, &buffer, shape, &mut out.view()).unwrap();
    let want = -1.0 - (rows - 1) as f64 * f64::from(small);
    // The sum without them is off by 2e-3.
    assert_close(&out.read(&gpu), &[want], |_| sink_bound(want, dots.iter().map(|dot| (0.0, f64::from(*dot)))));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_of_sinks_is_the_reference() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 3, 5, 9);
    let mut data = Data::new(3);
    let len = shape.elements().unwrap();
    let (logits, dp): (Vec<f32>, Vec<f32>) = (data.values(len), data.values(len));
    let sinks: Vec<f32> = data.values(3);
    let inputs = HostInputs { sinks: Some(&sinks), ..HostInputs::at(Host::counted(0, 0)) };
    let softmax = Softmax::causal(0.8);
    let want = softmax.grad(&logits, &dp, &shape, &inputs).unwrap().sinks;
    let (p, lse) = run(&gpu, &softmax, &logits, &shape, &inputs, 0);
    let expected = softmax.expect(&logits, &shape, &inputs).unwrap();
    let expected_grad = softmax.expect_grad(&p, &dp, &logits, &shape, &inputs).unwrap();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &softmax, Bias::None).unwrap();
    let upload = |x: &[f32]| gpu.stream().clone_htod(x).unwrap();
    let (p_buffer, mut dx, mut dots, mut out) =
        (upload(&p), upload(&dp), upload(&vec![0.0; lse.len()]), Guarded::<f32>::poisoned(&gpu, 3, 1));
    let options = GradOptions { dots: Some(&mut dots), ..GradOptions::default() };
    plan.grad(shape.of(&p_buffer), shape.of_mut(&mut dx), &Inputs::at(Places::counted(0, 0)), options).unwrap();
    plan.sink_grad(&upload(&sinks), &upload(&lse), &dots, shape, &mut out.view()).unwrap();
    let headless = Logits::bhqk(2, 0, 5, 9);
    let error = plan.sink_grad(&upload(&sinks), &upload(&lse), &dots, headless, &mut out.view()).unwrap_err();
    assert_eq!(error.to_string(), "logits has 0 heads, there must be at least 1");
    let bound = |head: usize| {
        let rows = (0..shape.rows().unwrap()).filter(|row| row / 5 % 3 == head);
        let share = |row: usize| (f64::from(sinks[head]) - expected.lse[row]).exp();
        // The errors of the log-sum-exp, of the dots, and of the probabilities that the dots are made of.
        let before: f64 = (rows.clone())
            .map(|row| {
                let p_error: f64 =
                    (0..9).map(|key| expected.bound[row * 9 + key] * f64::from(dp[row * 9 + key]).abs()).sum();
                let dot = expected_grad.dots[row].abs();
                share(row) * (expected_grad.dots_bound[row] + p_error + expected.lse_bound[row] * dot)
            })
            .sum();
        let terms = rows.map(|row| {
            let distance = (f64::from(sinks[head]) - expected.lse[row]).abs();
            (distance, share(row) * expected_grad.dots[row].abs())
        });
        before + sink_bound(want[head], terms)
    };
    assert_close(&out.read(&gpu), &want, bound);
}
