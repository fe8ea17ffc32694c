//! The sinusoid at fractional positions.

use posenc::accuracy::{assert_close, compare, rounded};
use posenc::embed::{Frequencies, Odd, Sinusoid, TimestepPlan, Tokens, Wave};
use posenc::{Gpu, Pairing, Scalar};

use crate::golden;
use crate::support::{Data, Guarded, gpu, last_launch};

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn every_flag_of_diffusers_is_met() {
    for case in golden::named("timestep", "diffusers") {
        let spec = Sinusoid {
            first: if case["flip"] == true { Wave::Cosine } else { Wave::Sine },
            shift: golden::float(case, "shift"),
            scale: golden::float(case, "scale"),
            max_period: golden::float(case, "max_period"),
            ..Sinusoid::timestep(golden::size(case, "dim"))
        };
        let (t, want) = (golden::floats(case, "t"), golden::floats(case, "values"));
        let mut got = vec![f32::NAN; want.len()];
        spec.write_times(&mut got, &t).unwrap();
        // Their f32 angle is rounded three times, up to scale * 999.
        let bound = 4.0 * (spec.scale * 999.0 + 1.0) / 16777216.0;
        let worst = compare(&got, &want, |_| bound);
        assert!(worst.share <= 1.0, "{case}: {worst:?}");
    }
}

#[test]
fn the_functions_that_descend_from_glide_are_met() {
    for case in golden::named("timestep", "glide") {
        let spec =
            Sinusoid { max_period: golden::float(case, "max_period"), ..Sinusoid::timestep(golden::size(case, "dim")) };
        let (t, want) = (golden::floats(case, "t"), golden::floats(case, "values"));
        let mut got = vec![f32::NAN; want.len()];
        spec.write_times(&mut got, &t).unwrap();
        assert_close(&got, &want, |_| 4.0 * 1000.0 / 16777216.0);
    }
    // In f64 throughout.
    for case in golden::named("timestep", "skyreels") {
        let first = if case["flip"] == true { Wave::Cosine } else { Wave::Sine };
        let spec = Sinusoid { first, ..Sinusoid::timestep(golden::size(case, "dim")) };
        let (t, want) = (golden::floats(case, "t"), golden::floats(case, "values"));
        for (i, want) in want.iter().enumerate() {
            assert!((spec.value_at(t[i / spec.dim], i % spec.dim) - want).abs() < 3e-13, "{case} at {i}");
        }
    }
}

#[test]
fn rounded_frequencies_meet_qwen_image() {
    for case in golden::named("timestep", "qwen") {
        let spec = Sinusoid { frequencies: Frequencies::Bf16, ..Sinusoid::timestep(golden::size(case, "dim")) };
        let (t, want) = (golden::floats(case, "t"), golden::floats(case, "values"));
        let mut got = vec![f32::NAN; want.len()];
        spec.write_times(&mut got, &t).unwrap();
        assert_close(&got, &want, |_| 2.0 * 938.0 / 16777216.0);
        // Exact frequencies are another function.
        Sinusoid::timestep(spec.dim).write_times(&mut got, &t).unwrap();
        assert!(compare(&got, &want, |_| 1.0).error > 0.1);
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

/// Numbers between 0 and 1 that repeat on every machine.
fn noise(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn results_are_within_one_ulp_of_the_f64_formula_up_to_a_million() {
    fn check<T: Scalar>() {
        let spec = Sinusoid::timestep(32);
        let mut seed = 7;
        for size in [1.0, 1e3, 1e6] {
            let t: Vec<f64> = (0..500).map(|_| (2.0 * noise(&mut seed) - 1.0) * size).collect();
            let mut got = vec![T::from_f64(9.0); t.len() * 32];
            spec.write_times(&mut got, &t).unwrap();
            let want: Vec<f64> = (0..got.len())
                .map(|i| {
                    let (t, channel) = (t[i / 32], i % 32);
                    let angle = t * 10_000f64.powf(-((channel % 16) as f64) / 16.0);
                    T::from_f64(if channel < 16 { angle.cos() } else { angle.sin() }).to_f64()
                })
                .collect();
            // One ulp of T, and what the formula itself is off by: its angle is rounded twice, its frequency once.
            assert_close(&got, &want, |i| want[i].abs() * 2.0 * T::ROUNDOFF + T::TINY + size / 2f64.powi(51));
        }
    }
    check::<f32>();
    check::<half::f16>();
    check::<half::bf16>();
}

#[test]
fn whole_timesteps_are_positions() {
    let spec = Sinusoid { scale: 0.37, offset: -5, padding: Some(2), ..Sinusoid::timestep(10) };
    for position in [-70_001i64, -1, 0, 7, 8, 131_071, 16_777_217] {
        for channel in 0..10 {
            let off = spec.value(position, channel) - spec.value_at(position as f64, channel);
            assert!(off.abs() < 1e-11, "{position} {channel}: {off:e}");
        }
    }
    assert_eq!(spec.value_at(7.0, 0), 0.0);
}

#[test]
fn zeros_of_sine_keep_their_relative_accuracy() {
    // The f64 nearest to 2^k pi is off pi by a known amount, which is then the sine.
    let spec = Sinusoid { first: Wave::Sine, ..Sinusoid::timestep(2) };
    // pi - (f64 nearest to pi)
    let rest = 1.2246467991473532e-16;
    for k in [0, 1, 10, 18] {
        let scale = f64::from(1 << k);
        let want = if k == 0 { rest } else { -rest * scale };
        let got = spec.value_at(std::f64::consts::PI * scale, 0);
        assert!((got / want - 1.0).abs() < 1e-13, "2^{k} pi: {got:e} {want:e}");
    }
    assert_eq!(spec.value_at(1e-300, 0), 1e-300);
}

#[test]
fn f32_and_f64_timesteps_are_the_same_number() {
    let spec = Sinusoid::timestep(12);
    let (mut a, mut b) = ([0.0f32; 12], [0.0f32; 12]);
    spec.write_times(&mut a, &[0.1f32]).unwrap();
    spec.write_times(&mut b, &[f64::from(0.1f32)]).unwrap();
    assert_eq!(a, b);
    let want: Vec<f64> = (0..12).map(|channel| spec.value_at(f64::from(0.1f32), channel)).collect();
    assert_close(&a, &want, |i| rounded::<f32>(want[i], spec.time_error_bound(want[i])));
}

// -------------------------------------------------------------------------------------------- kernel against reference

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_nearest_value_or_its_neighbour() {
    fn check<T: Scalar>(gpu: &Gpu, spec: &Sinusoid, t: &[f64]) {
        let plan = TimestepPlan::<T>::new(gpu, spec).unwrap();
        let single: Vec<f32> = t.iter().map(|&t| t as f32).collect();
        let rounded_t: Vec<f64> = single.iter().map(|&t| f64::from(t)).collect();
        let (t64, t32) = (gpu.stream().clone_htod(t).unwrap(), gpu.stream().clone_htod(&single).unwrap());
        for (double, t) in [(true, t), (false, &rounded_t[..])] {
            for shift in [0, 1] {
                let mut out = Guarded::<T>::poisoned(gpu, t.len() * spec.dim, shift);
                let rows = Tokens::new(1, t.len(), spec.dim);
                if double {
                    plan.write(rows.of_mut(&mut out.view()), &t64).unwrap();
                } else {
                    plan.write(rows.of_mut(&mut out.view()), &t32).unwrap();
                }
                let got = out.read(gpu);
                let want: Vec<f64> = (0..got.len()).map(|i| spec.value_at(t[i / spec.dim], i % spec.dim)).collect();
                let bound = |i: usize| rounded::<T>(want[i], spec.time_error_bound(want[i]));
                let worst = compare(&got, &want, bound);
                assert!(worst.share <= 1.0, "{} {spec:?} {t:?}: {worst:?}", T::NAME);
            }
        }
    }
    let gpu = gpu();
    let mut data = Data::new(4);
    let pi = std::f64::consts::PI;
    // Zeros of both waves, where an absolute error would show, and the ends of the promise.
    let mut t =
        vec![0.0, 1.0, 937.0, 0.25, 1e-30, 1e-300, pi, pi / 2.0, pi * 262_144.0, 3e5 * pi, -999.5, 1e6, -1e6, 1e12];
    t.extend((0..20).map(|_| data.value() * 10f64.powi(data.below(7) as i32)));
    for (dim, pairing, first, odd, shift) in [
        (256, Pairing::Half, Wave::Cosine, Odd::Zero, 0.0),
        (8, Pairing::Interleaved, Wave::Sine, Odd::Zero, 1.0),
        (7, Pairing::Half, Wave::Sine, Odd::Zero, 0.0),
        (9, Pairing::Half, Wave::Cosine, Odd::Longer, 0.5),
        (11, Pairing::Interleaved, Wave::Cosine, Odd::Zero, 0.0),
        (1, Pairing::Interleaved, Wave::Sine, Odd::Longer, 0.0),
    ] {
        for (scale, offset, padding) in [(1.0, 0, None), (1000.0, 1, Some(2))] {
            let spec = Sinusoid { pairing, first, odd, shift, scale, offset, padding, ..Sinusoid::timestep(dim) };
            check::<f32>(&gpu, &spec, &t);
            check::<half::f16>(&gpu, &spec, &t);
            check::<half::bf16>(&gpu, &spec, &t);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_rounds_once() {
    // Bit for bit the rounded f64 value: a second rounding on the way to a half type would differ at ties.
    fn check<T: Scalar>(gpu: &Gpu) {
        let spec = Sinusoid::timestep(64);
        let plan = TimestepPlan::<T>::new(gpu, &spec).unwrap();
        let mut data = Data::new(8);
        let mut t: Vec<f64> = (0..200).map(|_| data.value() * 500.0).collect();
        // And times with a value just above the middle of two neighbours of which the lower one is even: f32's first bits are
        // those of the middle.
        let dropped = match size_of::<T>() {
            4 => 0,
            _ if T::NAME == "f16" => 13,
            _ => 16,
        };
        let is_tie = |value: f64| {
            let near = value.abs() as f32;
            let cut = if f64::from(near) > value.abs() { near.to_bits() - 1 } else { near.to_bits() };
            // Below 2^-14 the numbers of f16 are spaced otherwise.
            f64::from(f32::from_bits(cut)) != value.abs()
                && cut & ((2 << dropped) - 1) == 1 << (dropped - 1)
                && value.abs() > 1e-4
        };
        let ties = std::iter::repeat_with(|| data.value() * 500.0)
            .filter(|&t| (0..64).any(|channel| is_tie(spec.value_at(t, channel))));
        t.extend(ties.take(if dropped > 0 { 3 } else { 0 }));
        let mut out = Guarded::<T>::poisoned(gpu, t.len() * 64, 0);
        plan.write(Tokens::new(1, t.len(), 64).of_mut(&mut out.view()), &gpu.stream().clone_htod(&t).unwrap()).unwrap();
        for (i, got) in out.read(gpu).into_iter().enumerate() {
            let value = spec.value_at(t[i / 64], i % 64);
            // f64 to f32 towards zero, the last bit set if anything was cut off: no tie is made that was none.
            let mut cut = value as f32;
            if f64::from(cut).abs() > value.abs() {
                cut = f32::from_bits(cut.to_bits() - 1);
            }
            if f64::from(cut) != value {
                cut = f32::from_bits(cut.to_bits() | 1);
            }
            let want = if size_of::<T>() == 4 { T::from_f64(value) } else { T::from_f32(cut) };
            assert_eq!(got.to_f64(), want.to_f64(), "{} {i}: {value:e}", T::NAME);
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
    check::<half::bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_is_no_time_makes_nan_rows_on_the_device() {
    let gpu = gpu();
    let plan = TimestepPlan::<f32>::new(&gpu, &Sinusoid::timestep(4)).unwrap();
    let t = gpu.stream().clone_htod(&[f32::NAN, f32::INFINITY, 1.0, 1e30, -1e30]).unwrap();
    let mut out = Guarded::<f32>::poisoned(&gpu, 20, 0);
    plan.write(Tokens::new(1, 5, 4).of_mut(&mut out.view()), &t).unwrap();
    let nan: Vec<bool> = out.read(&gpu).iter().map(|x| x.is_nan()).collect();
    let want: Vec<bool> = (0..20).map(|i| i / 4 != 2).collect();
    assert_eq!(nan, want);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_channel_is_written_once_in_wide_accesses() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let plan = TimestepPlan::<T>::new(gpu, &Sinusoid::timestep(256)).unwrap();
        let t = gpu.stream().clone_htod(&[0.5f64, 7.0, 999.0, 1e5]).unwrap();
        let mut out = Guarded::<T>::poisoned(gpu, 4 * 256, 0);
        plan.write(Tokens::new(1, 4, 256).of_mut(&mut out.view()), &t).unwrap();
        let Some(report) = last_launch() else { return };
        let (counters, bytes) = (report.counters, 4 * 256 * size_of::<T>() as u64);
        assert_eq!(counters.bytes_written, bytes);
        assert!(counters.global_accesses[4] * 16 >= bytes, "{counters:?}");
        // 16 bytes a pair, and a timestep for each thread.
        let threads = bytes / 32;
        assert_eq!(counters.bytes_read, 4 * 128 * 16 + threads * 8, "{counters:?}");
        assert_eq!((counters.launches, counters.local_bytes_written), (1, 0));
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::bf16>(&gpu);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn timesteps_that_are_no_times_are_refused() {
    let spec = Sinusoid::timestep(4);
    let mut out = [7.0f32; 8];
    let error = spec.write_times(&mut out, &[1.0, f64::NAN]).unwrap_err();
    assert_eq!(error.to_string(), "t[1] is NaN, timesteps must be finite");
    let error = spec.write_times(&mut out, &[f32::NEG_INFINITY]).unwrap_err();
    assert_eq!(error.to_string(), "t[0] is -inf, timesteps must be finite");
    let error = spec.write_times(&mut out, &[1e16]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "t[0] is 1e16 and the fastest channel turns 1.5915494309189535e-1 times per unit, together at most 2^48 turns are held"
    );
    let error = spec.write_times(&mut out, &[1.0, 2.0, 3.0]).unwrap_err();
    assert_eq!(error.to_string(), "out holds 8 elements, the shape needs 12");
    assert_eq!(out, [7.0; 8]);
}

/// Rows behind others, in one sequence or one row in each: the bits of contiguous ones, and nothing between them.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn rows_may_lie_apart() {
    let gpu = gpu();
    for (dim, pad) in [(16, 8), (16, 1), (7, 3)] {
        let plan = TimestepPlan::<f32>::new(&gpu, &Sinusoid::timestep(dim)).unwrap();
        let t = gpu.stream().clone_htod(&[0.5f32, 7.0, 999.0, -1e5]).unwrap();
        let mut want = Guarded::<f32>::poisoned(&gpu, 4 * dim, 0);
        plan.write(Tokens::new(1, 4, dim).of_mut(&mut want.view()), &t).unwrap();
        let want = want.read(&gpu);
        let row = dim + pad;
        for (batch, tokens, strides) in [(1, 4, [0, row]), (4, 1, [row, 0]), (2, 2, [2 * row, row])] {
            let rows = Tokens { offset: pad, strides, ..Tokens::new(batch, tokens, dim) };
            let mut out = Guarded::new(&gpu, &vec![7.0f32; 4 * row], 0);
            plan.write(rows.of_mut(&mut out.view()), &t).unwrap();
            let got = out.read(&gpu);
            for (got, want) in got.chunks(row).zip(want.chunks(dim)) {
                assert_eq!(got[..pad], vec![7.0; pad]);
                assert_eq!(&got[pad..], want);
            }
        }
        let apart = Tokens { strides: [3 * row, row], ..Tokens::new(2, 2, dim) };
        let mut out = Guarded::new(&gpu, &vec![7.0f32; 5 * row], 0);
        let error = plan.write(apart.of_mut(&mut out.view()), &t).unwrap_err();
        assert!(error.to_string().ends_with("its rows must be evenly spaced"), "{error}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_refuse_short_buffers() {
    let gpu = gpu();
    let plan = TimestepPlan::<f32>::new(&gpu, &Sinusoid::timestep(4)).unwrap();
    let t = gpu.stream().clone_htod(&[1.0f64]).unwrap();
    let mut out = Guarded::new(&gpu, &[7.0f32; 8], 0);
    let error = plan.write(Tokens::new(1, 2, 4).of_mut(&mut out.view()), &t).unwrap_err();
    assert_eq!(error.to_string(), "t holds 1 elements, the shape needs 2");
    let error = plan.write(Tokens::new(1, 3, 4).of_mut(&mut out.view()), &t).unwrap_err();
    assert_eq!(error.to_string(), "out holds 8 elements, the shape needs 12");
    plan.write(Tokens::new(1, 0, 4).of_mut(&mut out.view()), &t).unwrap();
    assert_eq!(out.read(&gpu), [7.0; 8]);
}
