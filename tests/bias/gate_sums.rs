use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::bias::{AnyNumbers, GateSums, GateSumsPlan, Gates, Numbers};
use posenc::{Gpu, Scalar};

use crate::cases::content;
use crate::support::{Data, Guarded, alias, gpu, last_launch};
use crate::terms_support::Own;

/// Logarithms of gates, from nearly 0 to a few whole ones; or logits of either sign.
fn numbers(spec: GateSums, count: usize, seed: u64) -> Vec<f32> {
    let mut data = Data::new(seed);
    (0..count)
        .map(|i| {
            let x = data.value();
            match spec.gates {
                Gates::Logits => 4.0 * x as f32,
                _ => -(x.abs() * [1e-9, 1e-4, 0.1, 3.0][i % 4]) as f32,
            }
        })
        .collect()
}

/// Sums in integers: of each gate's multiples of 2^-40, and of what is left in units of 2^-109. Gates that the latter cut off are
/// below any f32 of this test.
fn exact(gates: impl Iterator<Item = f32>) -> Vec<[f64; 2]> {
    let (mut upper, mut lower) = (0i128, 0i128);
    gates
        .map(|gate| {
            let gate = f64::from(gate);
            let whole = (gate * f64::exp2(40.0)).trunc();
            upper += whole as i128;
            lower += ((gate - whole * f64::exp2(-40.0)) * f64::exp2(109.0)) as i128;
            [upper as f64 * f64::exp2(-40.0), lower as f64 * f64::exp2(-109.0)]
        })
        .collect()
}

// -------------------------------------------------------------------------------------------------------------- values

/// x-transformers' forget gates, their bias and the gates' gradient: `tests/golden/content.json`.
#[test]
fn forget_gates_are_those_of_x_transformers() {
    let case = content().into_iter().find(|case| case.name() == "forget_causal").unwrap();
    let [batch, heads, tokens] = ["batch", "heads", "tokens"].map(|name| case.size(name));
    let logits = case.f32s("f");
    let gates = Numbers { strides: [tokens * heads, 1, heads, 1], ..Numbers::rows(batch, heads, tokens, 1) };
    let pairs = Numbers::rows(batch, heads, tokens, 2);
    let mut sums = vec![0.0f32; batch * heads * tokens * 2];
    let spec = GateSums::logits();
    spec.write((&logits, gates), (&mut sums, pairs), None).unwrap();
    let (bias, upstream) = (case.f64s("bias"), case.f64s("upstream"));
    let ends = Numbers::rows(batch, heads, tokens, 1);
    let [mut query_grad, mut key_grad] = [0, 1].map(|_| vec![0.0f64; batch * heads * tokens]);
    for row in 0..batch * heads {
        for [i, j] in (0..tokens * tokens).map(|n| [n / tokens, n % tokens]) {
            let at = |t: usize| 2 * (row * tokens + t);
            let got = (sums[at(i)] - sums[at(j)]) + (sums[at(i) + 1] - sums[at(j) + 1]);
            let index = (row * tokens + i) * tokens + j;
            assert!((f64::from(got) - bias[index]).abs() < 2e-6, "{row} {i} {j}: {got} and {}", bias[index]);
            query_grad[row * tokens + i] += upstream[index];
            key_grad[row * tokens + j] -= upstream[index];
        }
    }
    let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let (query_grad, key_grad) = (f32s(&query_grad), f32s(&key_grad));
    let (grad, _) = spec.grad((&logits, gates), (&query_grad, ends), (&key_grad, ends)).unwrap();
    let want = case.f64s("f_gradient");
    for (index, got) in grad.iter().enumerate() {
        let [row, token] = [index / tokens, index % tokens];
        let want = want[(row / heads * tokens + token) * heads + row % heads];
        assert!((got - want).abs() < 5e-6, "{index}: {got} and {want}");
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn a_difference_has_the_error_of_its_own_size_after_a_million_gates() {
    let count = 1_000_000;
    for scale in [1.0, 64.0] {
        let gates: Vec<f32> = numbers(GateSums::logs(), count, 3).iter().map(|x| x * scale).collect();
        let mut sums = vec![0.0f32; 2 * count];
        let (shape, pairs) = (Numbers::rows(1, 1, count, 1), Numbers::rows(1, 1, count, 2));
        GateSums::logs().write((&gates, shape), (&mut sums, pairs), None).unwrap();
        let want = exact(gates.iter().copied());
        let mut data = Data::new(4);
        for turn in 0..200_000 {
            let i = data.below(count);
            // Neighbours, and any.
            let j = if turn % 2 == 0 { i.saturating_sub(1 + data.below(30)) } else { data.below(count) };
            let got = (sums[2 * i] - sums[2 * j]) + (sums[2 * i + 1] - sums[2 * j + 1]);
            let size = |t: usize| (want[t][0] + want[t][1]).abs();
            let difference = (want[i][0] - want[j][0]) + (want[i][1] - want[j][1]);
            let bound = 3.0 * f32::ROUNDOFF * difference.abs()
                + f64::exp2(-46.0) * (size(i) + size(j))
                + i.abs_diff(j) as f64 * f64::exp2(-64.0);
            assert!((f64::from(got) - difference).abs() <= bound, "{i} {j}: {got} and {difference}");
            let sum = f64::from(sums[2 * i]) + f64::from(sums[2 * i + 1]);
            assert!((sum + size(i)).abs() <= GateSums::logs().error_bound(count, size(i)));
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let shape = Numbers::rows(1, 2, 6, 1);
    let mut data = Data::new(8);
    let (query_grad, key_grad): (Vec<f32>, Vec<f32>) = (data.values(12), data.values(12));
    for spec in [GateSums::logs(), GateSums::logits()] {
        let start = numbers(spec, 12, 9);
        let (grad, _) = spec.grad((&start, shape), (&query_grad, shape), (&key_grad, shape)).unwrap();
        let loss = |x: &[f64]| -> f64 {
            (0..12)
                .map(|t| {
                    let sum: f64 = x[t / 6 * 6..=t].iter().map(|&x| spec.gate(x)).sum();
                    sum * (f64::from(query_grad[t]) + f64::from(key_grad[t]))
                })
                .sum()
        };
        for s in 0..12 {
            let at = |step: f64| {
                let mut x: Vec<f64> = start.iter().map(|&x| f64::from(x)).collect();
                x[s] += step;
                loss(&x)
            };
            let want = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((grad[s] - want).abs() < 1e-6 * (1.0 + want.abs()), "{spec:?} {s}: {} and {want}", grad[s]);
        }
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// Sums on the device, of gates as f32 or `T`; the state is changed.
fn run<T: Own>(
    gpu: &Gpu,
    spec: GateSums,
    (gates, shape): (&[f32], Numbers),
    pairs: Numbers,
    own: bool,
    state: Option<&mut Vec<u64>>,
) -> Vec<f32> {
    let (f32s, own_values) = (upload(gpu, gates), gates.iter().map(|&x| T::from_f32(x)).collect::<Vec<_>>());
    let own_values = upload(gpu, &own_values);
    let view: AnyNumbers = if own { T::numbers(&own_values, shape) } else { shape.of(&f32s).into() };
    let mut out = Guarded::<f32>::poisoned(gpu, pairs.span().unwrap(), 1);
    let plan = GateSumsPlan::<T>::new(gpu, spec).unwrap();
    if let Some(state) = state {
        let mut device = upload(gpu, state);
        plan.write(view, pairs.of_mut(&mut out.view()), Some(&mut device)).unwrap();
        *state = gpu.stream().clone_dtoh(&device).unwrap();
    } else {
        plan.write(view, pairs.of_mut(&mut out.view()), None).unwrap();
    }
    out.read(gpu)
}

fn upload<V: cudarc::driver::DeviceRepr>(gpu: &Gpu, values: &[V]) -> cudarc::driver::CudaSlice<V> {
    gpu.stream().clone_htod(values).unwrap()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_has_the_bits_of_the_reference_at_every_length() {
    let gpu = gpu();
    for tokens in [1, 2, 31, 33, 127, 128, 129, 1023, 1024, 1025, 3000] {
        let (batch, heads) = (2, 3);
        let gates = numbers(GateSums::logs(), batch * heads * tokens, tokens as u64);
        let plain = Numbers::rows(batch, heads, tokens, 1);
        // Heads innermost, and floats apart.
        let turned = Numbers { strides: [tokens * heads, 1, heads, 1], ..plain };
        let apart = Numbers {
            strides: [heads * tokens, tokens, 1, batch * heads * tokens],
            ..Numbers::rows(batch, heads, tokens, 2)
        };
        for (shape, pairs) in [(plain, Numbers::rows(batch, heads, tokens, 2)), (turned, apart)] {
            let mut want = vec![0.0f32; pairs.span().unwrap()];
            GateSums::logs().write((&gates, shape), (&mut want, pairs), None).unwrap();
            assert!(same(&run::<f32>(&gpu, GateSums::logs(), (&gates, shape), pairs, false, None), &want), "{tokens}");
        }
        let halves: Vec<f32> = gates.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        let pairs = Numbers::rows(batch, heads, tokens, 2);
        let mut want = vec![0.0f32; pairs.span().unwrap()];
        GateSums::logs().write((&halves, plain), (&mut want, pairs), None).unwrap();
        assert!(same(&run::<bf16>(&gpu, GateSums::logs(), (&gates, plain), pairs, true, None), &want), "{tokens}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_hundred_thousand_gates_are_read_once() {
    let gpu = gpu();
    let tokens = 100_000;
    let gates = numbers(GateSums::logs(), tokens, 5);
    let (shape, pairs) = (Numbers::rows(1, 1, tokens, 1), Numbers::rows(1, 1, tokens, 2));
    let mut want = vec![0.0f32; 2 * tokens];
    GateSums::logs().write((&gates, shape), (&mut want, pairs), None).unwrap();
    assert!(same(&run::<f32>(&gpu, GateSums::logs(), (&gates, shape), pairs, false, None), &want));
    if let Some(report) = last_launch() {
        assert_eq!([report.counters.bytes_read, report.counters.bytes_written], [4 * tokens as u64, 8 * tokens as u64]);
    }
}

/// Chunks of any lengths and single steps, on either side, go on from the state.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn chunks_and_steps_have_the_bits_of_the_whole() {
    let gpu = gpu();
    let (batch, heads, tokens) = (2, 2, 1500);
    for spec in [GateSums::logs(), GateSums::logits()] {
        let gates = numbers(spec, batch * heads * tokens, 6);
        let shape = Numbers::rows(batch, heads, tokens, 1);
        let pairs = Numbers::rows(batch, heads, tokens, 2);
        let mut whole_state = vec![0u64; 8];
        let whole = run::<f16>(&gpu, spec, (&gates, shape), pairs, false, Some(&mut whole_state));
        let mut state = vec![0u64; 8];
        let mut first = 0;
        for count in [1, 1, 700, 1, 300, 497] {
            let chunk = Numbers { rows: count, offset: first, ..shape };
            let own = Numbers::rows(batch, heads, count, 2);
            let got = run::<f16>(&gpu, spec, (&gates, chunk), own, false, Some(&mut state));
            for (row, got) in got.chunks(2 * count).enumerate() {
                let at = 2 * (row * tokens + first);
                assert!(same(got, &whole[at..at + 2 * count]), "{spec:?} {row} {first}");
            }
            first += count;
        }
        assert_eq!((first, &state), (tokens, &whole_state));
        if spec == GateSums::logs() {
            let (mut host, mut out) = (vec![0u64; 8], vec![0.0f32; whole.len()]);
            spec.write((&gates, shape), (&mut out, pairs), Some(&mut host)).unwrap();
            assert_eq!(host, whole_state);
        }
    }
}

/// Of logits each gate is within 2^-21 of itself, from far below 0 to where its gate is 1.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gates_of_logits_are_within_their_bound() {
    let gpu = gpu();
    let mut x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.0201).collect();
    x.extend([0.0, -0.0, 1e-20, -1e-20, 86.0, -1e4, -65536.0, 30.5]);
    let (shape, pairs) = (Numbers::rows(x.len(), 1, 1, 1), Numbers::rows(x.len(), 1, 1, 2));
    let spec = GateSums::logits();
    let got = run::<f32>(&gpu, spec, (&x, shape), pairs, false, None);
    for (x, pair) in x.iter().zip(got.chunks(2)) {
        let (got, want) = (f64::from(pair[0]) + f64::from(pair[1]), spec.gate(f64::from(*x)));
        assert!((got - want).abs() <= spec.error_bound(1, want), "{x}: {got} and {want}");
    }
    let ones = vec![1.0f32; x.len()];
    let (grad, bound) = spec.grad((&x, shape), (&ones, shape), (&ones, shape)).unwrap();
    assert_close(&run_grad::<f32>(&gpu, spec, (&x, shape), (&ones, &ones), shape), &grad, |i| bound[i]);
}

fn run_grad<T: Own>(
    gpu: &Gpu,
    spec: GateSums,
    (gates, shape): (&[f32], Numbers),
    (query_grad, key_grad): (&[f32], &[f32]),
    out: Numbers,
) -> Vec<f32> {
    let (gates, query, key) = (upload(gpu, gates), upload(gpu, query_grad), upload(gpu, key_grad));
    let mut grad = Guarded::<f32>::poisoned(gpu, out.span().unwrap(), 3);
    let plan = GateSumsPlan::<T>::new(gpu, spec).unwrap();
    let ends = Numbers::rows(shape.batch, shape.heads, shape.rows, 1);
    plan.grad(shape.of(&gates), ends.of(&query), ends.of(&key), out.of_mut(&mut grad.view())).unwrap();
    grad.read(gpu)
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_is_the_reference() {
    let gpu = gpu();
    for tokens in [1, 5, 128, 1030, 2500] {
        for spec in [GateSums::logs(), GateSums::logits()] {
            let count = 2 * 3 * tokens;
            let gates = numbers(spec, count, 1);
            let shape = Numbers { strides: [tokens * 3, 1, 3, 1], ..Numbers::rows(2, 3, tokens, 1) };
            let mut data = Data::new(tokens as u64);
            let (query, key): (Vec<f32>, Vec<f32>) = (data.values(count), data.values(count));
            let ends = Numbers::rows(2, 3, tokens, 1);
            let (want, bound) = spec.grad((&gates, shape), (&query, ends), (&key, ends)).unwrap();
            let got = run_grad::<f16>(&gpu, spec, (&gates, shape), (&query, &key), ends);
            assert_close(&got, &want, |i| bound[i]);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_gate_that_forgets_all_is_finite_and_a_broken_one_is_nan_from_its_token_on() {
    let gpu = gpu();
    let (shape, pairs) = (Numbers::rows(1, 1, 4, 1), Numbers::rows(1, 1, 4, 2));
    let run = |gates: [f32; 4], state: Option<&mut Vec<u64>>| {
        run::<f32>(&gpu, GateSums::logs(), (&gates, shape), pairs, false, state)
    };
    let got = run([-0.5, f32::NEG_INFINITY, -1.0, 0.0], None);
    assert_eq!(got, [-0.5, 0.0, -65536.5, 0.0, -65537.5, 0.0, -65537.5, 0.0]);
    for broken in [1e-30, 1.0, f32::INFINITY, f32::NAN] {
        let mut state = vec![0u64; 2];
        let got = run([-0.5, broken, -1.0, broken], Some(&mut state));
        assert_eq!(got[..2], [-0.5, 0.0]);
        assert!(got[2..].iter().all(|x| x.is_nan()), "{broken}: {got:?}");
        assert!(run([-0.5; 4], Some(&mut state)).iter().all(|x| x.is_nan()));
        // However many there are.
        for _ in 0..3 {
            assert!(run([broken; 4], Some(&mut state)).iter().all(|x| x.is_nan()));
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn gates_and_tensors_that_do_not_fit_are_refused() {
    let text = |gates: &[f32], shape: Numbers, pairs: Numbers, state: Option<&mut [u64]>| {
        let mut out = [7.0f32; 8];
        let error = GateSums::logs().write((gates, shape), (&mut out, pairs), state).unwrap_err().to_string();
        assert_eq!(out, [7.0; 8]);
        error
    };
    let (shape, pairs) = (Numbers::rows(1, 2, 2, 1), Numbers::rows(1, 2, 2, 2));
    assert_eq!(
        text(&[0.0, -1.0, -1.0, 0.5], shape, pairs, None),
        "the gate of sequence 0, head 1, token 1 is 0.5, it must be at most 0"
    );
    assert_eq!(
        text(&[0.0, f32::NAN, -1.0, 0.5], shape, pairs, None),
        "the gate of sequence 0, head 0, token 1 is NaN, it must be at most 0"
    );
    assert_eq!(text(&[0.0; 3], shape, pairs, None), "gates holds 3 elements, the shape needs 4");
    assert_eq!(
        text(&[0.0; 4], shape, Numbers::rows(1, 2, 2, 1), None),
        "the sums are [1, 2, 2, 1], they must be [1, 2, 2, 2]"
    );
    assert_eq!(
        text(&[0.0; 4], Numbers::rows(1, 2, 1, 2), pairs, None),
        "gates are [1, 2, 1, 2], they must be [1, 2, 1, 1]"
    );
    assert_eq!(text(&[0.0; 4], shape, pairs, Some(&mut [0; 3])), "state holds 3 elements, the shape needs 4");
    let (gates, grads) = ([0.0f32; 4], [0.0f32; 8]);
    assert_eq!(
        GateSums::logs().grad((&gates, shape), (&grads, shape), (&grads, pairs)).unwrap_err().to_string(),
        "the keys' gradients are [1, 2, 2, 2], they must be [1, 2, 2, 1]"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_on_the_device_that_do_not_fit_are_refused() {
    let gpu = gpu();
    let (shape, pairs) = (Numbers::rows(1, 2, 2, 1), Numbers::rows(1, 2, 2, 2));
    let gates = upload(&gpu, &[0.0f32; 4]);
    let mut out = upload(&gpu, &[7.0f32; 8]);
    let mut shared = alias::<u64, _>(&out, 0, 4);
    let mut state = upload(&gpu, &[0u64; 3]);
    let plan = GateSumsPlan::<f32>::new(&gpu, GateSums::logs()).unwrap();
    let text = |result: posenc::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        text(plan.write(shape.of(&gates), pairs.of_mut(&mut out), Some(&mut state))),
        "state holds 3 elements, the shape needs 4"
    );
    assert_eq!(
        text(plan.write(shape.of(&gates), pairs.of_mut(&mut out), Some(&mut shared))),
        "state is written and shares memory with the sums"
    );
    assert_eq!(
        text(plan.write(shape.of(&gates), shape.of_mut(&mut out), None)),
        "the sums are [1, 2, 2, 1], they must be [1, 2, 2, 2]"
    );
    let halves = upload(&gpu, &[f16::ZERO; 4]);
    assert_eq!(text(plan.write(shape.of(&halves), pairs.of_mut(&mut out), None)), "gates are f16, they must be f32");
    let mut grad = upload(&gpu, &[0.0f32; 8]);
    assert_eq!(
        text(plan.grad(shape.of(&gates), shape.of(&out), pairs.of(&out), shape.of_mut(&mut grad))),
        "the keys' gradients are [1, 2, 2, 2], they must be [1, 2, 2, 1]"
    );
    assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), [7.0; 8]);
    // Nothing to do.
    for none in [Numbers::rows(0, 2, 2, 1), Numbers::rows(1, 2, 0, 1)] {
        plan.write(none.of(&gates), Numbers { entries: 2, ..none }.of_mut(&mut out), None).unwrap();
        plan.grad(none.of(&gates), none.of(&gates), none.of(&gates), none.of_mut(&mut grad)).unwrap();
    }
    assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), [7.0; 8]);
}
