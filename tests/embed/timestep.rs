//! The sinusoid at fractional positions.

use posenc::Scalar;
use posenc::accuracy::{assert_close, compare, rounded};
use posenc::embed::{Frequencies, Sinusoid, Wave};

use crate::golden;

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
