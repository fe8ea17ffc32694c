//! The sinusoid at whole positions.

use half::{bf16, f16};
use posenc::accuracy::{assert_close, rounded};
use posenc::embed::{Frequencies, Odd, Sinusoid, SinusoidPlan, Tokens, Wave};
use posenc::{Gpu, Ids, Pairing, Positions, Scalar};

use crate::golden;
use crate::support::{Data, Guarded, gpu, last_launch};

/// The knobs of the models in the golden file.
fn of_model(name: &str, dim: usize, padding: Option<i64>) -> Sinusoid {
    let plain = Sinusoid::new(dim);
    let halves = Sinusoid { pairing: Pairing::Half, ..plain.clone() };
    match name {
        "distilbert" | "xlm" | "diffusers" | "parakeet" => plain,
        "ctrl" | "xlnet" => halves,
        "marian" => Sinusoid { odd: Odd::Longer, ..halves },
        "whisper" => Sinusoid { shift: 1.0, odd: Odd::Refuse, ..halves },
        "musicgen" => Sinusoid { shift: 1.0, odd: Odd::Zero, first: Wave::Cosine, ..halves },
        "m2m100" | "xglm" | "speech2text" | "fsmt" => Sinusoid { shift: 1.0, odd: Odd::Zero, padding, ..halves },
        other => panic!("no knobs for {other}"),
    }
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn every_public_table_is_met_by_its_knobs() {
    for case in golden::cases("sinusoid").iter().filter(|case| case.get("dim").is_some()) {
        let (name, dim) = (golden::name(case), golden::size(case, "dim"));
        let spec = of_model(name, dim, case.get("padding").map(|padding| padding.as_i64().unwrap()));
        let positions = golden::integers(case, "positions");
        let want = golden::floats(case, "values");
        let mut got = vec![f32::NAN; want.len()];
        spec.write(&mut got, &positions).unwrap();
        // Their angle is rounded in f32, twice or three times, and so are frequency and result.
        let far = positions.iter().map(|position| position.unsigned_abs()).max().unwrap() as f64;
        let bound = 4.0 * (far + 1.0) / 16777216.0;
        let worst = posenc::accuracy::compare(&got, &want, |_| bound);
        assert!(worst.share <= 1.0, "{name} of {dim}: {worst:?}");
    }
}

#[test]
fn a_value_of_the_paper() {
    // PE(3, 4) and PE(3, 5) of 8 channels: sin and cos of 3 / 10000^(4/8)
    let spec = Sinusoid::new(8);
    assert!((spec.value(3, 4) - 0.03f64.sin()).abs() < 1e-15);
    assert!((spec.value(3, 5) - 0.03f64.cos()).abs() < 1e-15);
}

#[test]
fn rounded_frequencies_are_qwen_images() {
    for case in golden::named("timestep", "qwen frequencies") {
        let dim = golden::size(case, "dim");
        let spec = Sinusoid { frequencies: Frequencies::Bf16, ..Sinusoid::timestep(dim) };
        for (pair, bits) in golden::integers(case, "bits").into_iter().enumerate() {
            let want = half::bf16::from_bits(u16::try_from(bits).unwrap());
            assert_eq!(spec.frequency(pair), want.to_f64(), "pair {pair} of {dim} channels");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

fn specs() -> Vec<Sinusoid> {
    let mut specs = Vec::new();
    for dim in [2, 3, 8, 9, 64] {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            for first in [Wave::Sine, Wave::Cosine] {
                for odd in [Odd::Zero, Odd::Longer] {
                    for (shift, scale, offset) in [(0.0, 1.0, 0), (0.5, 7.25, -3)] {
                        let padding = if offset == 0 { None } else { Some(1) };
                        specs.push(Sinusoid {
                            pairing,
                            first,
                            odd,
                            shift,
                            scale,
                            offset,
                            padding,
                            ..Sinusoid::new(dim)
                        });
                    }
                }
            }
        }
    }
    specs
}

#[test]
fn every_channel_belongs_to_one_pair_and_wave() {
    for spec in specs() {
        let channels: Vec<_> = (0..spec.dim).map(|channel| spec.channel(channel)).collect();
        let zeros = channels.iter().filter(|channel| channel.is_none()).count();
        assert_eq!(zeros, usize::from(spec.odd == Odd::Zero && spec.dim % 2 == 1), "{spec:?}");
        for pair in 0..spec.pairs() {
            let count = |wave| channels.iter().filter(|&&channel| channel == Some((pair, wave))).count();
            assert_eq!(count(spec.first), 1, "{spec:?}");
            let both = spec.dim % 2 == 0 || spec.odd == Odd::Zero || pair + 1 < spec.pairs();
            assert_eq!(count(spec.first.other()), usize::from(both), "{spec:?}");
        }
    }
}

#[test]
fn the_two_waves_of_a_pair_have_norm_one_and_the_sum_of_angles_holds() {
    for spec in specs() {
        let find = |pair, wave| (0..spec.dim).find(|&channel| spec.channel(channel) == Some((pair, wave)));
        for pair in 0..spec.dim / 2 {
            let (Some(sine), Some(cosine)) = (find(pair, Wave::Sine), find(pair, Wave::Cosine)) else { continue };
            let at = |row: i64| {
                let position = row - spec.offset;
                (spec.value(position, sine), spec.value(position, cosine))
            };
            for (a, b) in [(5, 7), (-131_071, 16_777_217), (2_147_483_647, -2)] {
                let ((sin_a, cos_a), (sin_b, cos_b), (sin, cos)) = (at(a), at(b), at(a + b));
                assert!((sin_a.hypot(cos_a) - 1.0).abs() < 1e-14);
                assert!((sin_a * cos_b + cos_a * sin_b - sin).abs() < 3e-9, "{spec:?} {a} {b}");
                assert!((cos_a * cos_b - sin_a * sin_b - cos).abs() < 3e-9, "{spec:?} {a} {b}");
            }
        }
    }
}

#[test]
fn the_shift_makes_the_last_period_the_longest() {
    let spec = Sinusoid { shift: 1.0, pairing: Pairing::Half, ..Sinusoid::new(512) };
    assert_eq!(spec.frequency(0), 1.0);
    assert_eq!(spec.frequency(255), 1e-4);
}

#[test]
fn negative_positions_mirror_sines_and_keep_cosines() {
    let spec = Sinusoid::new(16);
    for position in [1, 2, 1000, 131_071, 2_147_483_647] {
        for channel in 0..16 {
            let sign = if channel % 2 == 0 { -1.0 } else { 1.0 };
            assert!((spec.value(-position, channel) - sign * spec.value(position, channel)).abs() < 1e-15);
        }
    }
}

#[test]
fn the_padding_row_is_zero_and_only_it() {
    let spec = Sinusoid { padding: Some(1), offset: 2, ..Sinusoid::new(4) };
    let mut rows = [9.0f32; 12];
    spec.write(&mut rows, &[-1, 0, -2]).unwrap();
    assert_eq!(rows[..4], [0.0; 4]);
    assert!(rows[4..].iter().all(|&x| x != 9.0) && rows[4] == 2f64.sin() as f32 && rows[9] == 1.0);
}

fn added<T: Scalar>() {
    let spec = Sinusoid::new(6);
    let tokens = Tokens { offset: 1, strides: [20, 9], ..Tokens::new(2, 2, 6) };
    let x: Vec<T> = (0..tokens.span().unwrap() + 1).map(|i| T::from_f64((i as f64 * 0.7).sin())).collect();
    let mut got = x.clone();
    let positions = [4, 5, -4, 70_000];
    spec.add(&mut got, &tokens, &positions, 3.0).unwrap();
    let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    let mut bound = vec![0.0; x.len()];
    for (index, &position) in positions.iter().enumerate() {
        for channel in 0..6 {
            let at = tokens.index(index / 2, index % 2, channel);
            want[at] = want[at] * 3.0 + spec.value(position, channel);
            bound[at] = rounded::<T>(want[at], 1e-15);
        }
    }
    assert_close(&got, &want, |i| bound[i]);
}

#[test]
fn adding_touches_the_tokens_and_nothing_between_them() {
    added::<f32>();
    added::<half::f16>();
    added::<half::bf16>();
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// Writes and adds on the device, and compares both with the law.
fn check_kernel<T: Scalar>(
    gpu: &Gpu,
    spec: &Sinusoid,
    tokens: Tokens,
    shift: usize,
    scale: f64,
    at: (&[i64], Positions<Ids<'_>>),
    data: &mut Data,
) {
    let plan = SinusoidPlan::<T>::new(gpu, spec).unwrap();
    let span = tokens.span().unwrap();
    let x = data.values::<T>(span);
    let what = format!("{} {spec:?} {tokens:?} shift {shift}", T::NAME);
    let value = |index: usize, channel: usize| spec.value(at.0[index], channel);
    for add in [false, true] {
        let mut device = Guarded::new(gpu, &x, shift);
        if add {
            plan.add(tokens.of_mut(&mut device.view()), at.1, scale).unwrap();
        } else {
            plan.write(tokens.of_mut(&mut device.view()), at.1).unwrap();
        }
        let got = device.read(gpu);
        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; span];
        for index in 0..tokens.batch * tokens.tokens {
            for channel in 0..tokens.dim {
                let i = tokens.index(index / tokens.tokens, index % tokens.tokens, channel);
                let (position, value) = (at.0[index], value(index, channel));
                if add {
                    let error = spec.add_error_bound(position, want[i], scale);
                    want[i] = want[i] * scale + value;
                    bound[i] = rounded::<T>(want[i], error);
                } else {
                    want[i] = value;
                    bound[i] = rounded::<T>(value, spec.error_bound(position));
                }
            }
        }
        let worst = posenc::accuracy::compare(&got, &want, |i| bound[i]);
        assert!(worst.share <= 1.0, "add {add} {what}: {worst:?}");
    }
}

fn check_all_types(spec: &Sinusoid, tokens: Tokens, shift: usize, scale: f64, seed: u64) {
    fn check<T: Scalar>(gpu: &Gpu, spec: &Sinusoid, tokens: Tokens, shift: usize, scale: f64, seed: u64) {
        let mut data = Data::new(seed);
        let stream = gpu.stream();
        let (batch, count) = (tokens.batch, tokens.tokens);
        let ids: Vec<i64> = (0..batch * count).map(|_| data.position()).collect();
        let device = stream.clone_htod(&ids).unwrap();
        check_kernel::<T>(gpu, spec, tokens, shift, scale, (&ids, Positions::ids(&device)), &mut data);
        let shared: Vec<i64> = (0..batch * count).map(|i| ids[i % count]).collect();
        let positions = Positions::ids(&device).shared();
        check_kernel::<T>(gpu, spec, tokens, shift, scale, (&shared, positions), &mut data);
        let counted: Vec<i64> = (0..batch * count).map(|i| (i % count) as i64).collect();
        check_kernel::<T>(gpu, spec, tokens, shift, scale, (&counted, Positions::counted()), &mut data);
        let starts: Vec<i32> = (0..batch).map(|b| 1000 - 7 * b as i32).collect();
        let device = stream.clone_htod(&starts).unwrap();
        let started: Vec<i64> = (0..batch * count).map(|i| i64::from(starts[i / count]) + (i % count) as i64).collect();
        check_kernel::<T>(gpu, spec, tokens, shift, scale, (&started, Positions::starts(&device)), &mut data);
    }
    let gpu = gpu();
    check::<f32>(&gpu, spec, tokens, shift, scale, seed);
    check::<f16>(&gpu, spec, tokens, shift, scale, seed);
    check::<bf16>(&gpu, spec, tokens, shift, scale, seed);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_law_for_every_layout_and_small_dim() {
    for (seed, spec) in specs().into_iter().enumerate() {
        check_all_types(&spec, Tokens::new(2, 3, spec.dim), 0, 1.0, seed as u64);
    }
    for dim in 1..=34 {
        let spec = Sinusoid { pairing: [Pairing::Half, Pairing::Interleaved][dim % 2], ..Sinusoid::new(dim) };
        check_all_types(&spec, Tokens::new(1, 2, dim), dim % 3, 2.0, dim as u64);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_law_for_random_shapes() {
    let mut data = Data::new(99);
    for seed in 0..30 {
        let dim = data.pick(&[2, 16, 62, 128, 130, 257, 512, 768, 2050]);
        let spec = Sinusoid {
            pairing: data.pick(&[Pairing::Half, Pairing::Interleaved]),
            first: data.pick(&[Wave::Sine, Wave::Cosine]),
            odd: data.pick(&[Odd::Zero, Odd::Longer]),
            shift: data.pick(&[0.0, 0.25]),
            offset: data.pick(&[0, 2, -5]),
            padding: data.pick(&[None, Some(3)]),
            ..Sinusoid::new(dim)
        };
        let (batch, count) = (1 + data.below(9), 1 + data.below(17));
        let row = dim + data.pick(&[0, 8, 3]);
        let offset = data.pick(&[0, 8, 5]);
        let tokens =
            Tokens { offset, strides: [count * row + data.pick(&[0, 16, 7]), row], ..Tokens::new(batch, count, dim) };
        check_all_types(&spec, tokens, data.pick(&[0, 1, 8]), data.pick(&[1.0, -3.5, 22.627417]), seed);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_start_over() {
    let gpu = gpu();
    let spec = Sinusoid::new(8);
    let indptr = gpu.stream().clone_htod(&[0, 3, 3, 7, 10]).unwrap();
    let positions: Vec<i64> = [0, 1, 2, 0, 1, 2, 3, 0, 1, 2].to_vec();
    let at = (&positions[..], Positions::packed(&indptr, 4));
    check_kernel::<f32>(&gpu, &spec, Tokens::new(1, 10, 8), 0, 1.0, at, &mut Data::new(5));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn all_widths_of_access_give_the_same_bits() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(3);
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let spec = Sinusoid { pairing, ..Sinusoid::new(64) };
            let plan = SinusoidPlan::<T>::new(gpu, &spec).unwrap();
            let tokens = Tokens::new(2, 5, 64);
            let x = data.values::<T>(640);
            let run = |shift: usize| {
                let mut device = Guarded::new(gpu, &x, shift);
                plan.add(tokens.of_mut(&mut device.view()), Positions::counted(), 8.0).unwrap();
                bytemuck::cast_slice::<T, u8>(&device.read(gpu)).to_vec()
            };
            let wide = run(0);
            assert_eq!(wide, run(8 / size_of::<T>()));
            assert_eq!(wide, run(1));
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<f16>(&gpu);
    check::<bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn adding_moves_each_element_once_each_way_and_reads_no_table() {
    fn check<T: Scalar>(gpu: &Gpu, pairing: Pairing) {
        let (batch, count, dim) = (8, 64, 512);
        let plan = SinusoidPlan::<T>::new(gpu, &Sinusoid { pairing, ..Sinusoid::new(dim) }).unwrap();
        let mut x = Guarded::new(gpu, &Data::new(1).values::<T>(batch * count * dim), 0);
        plan.add(Tokens::new(batch, count, dim).of_mut(&mut x.view()), Positions::counted(), 2.0).unwrap();
        let Some(report) = last_launch() else { return };
        let bytes = (batch * count * dim * size_of::<T>()) as u64;
        let counters = report.counters;
        assert_eq!(counters.bytes_written, bytes);
        // No sector in two halves.
        assert_eq!(32 * counters.sectors_written, bytes);
        // Rates, 8 bytes a pair, once for each token and group of sequences that walk together.
        let rates = (count * dim / 2 * 8) as u64 * u64::from(report.grid[1]);
        assert_eq!(counters.bytes_read, bytes + rates, "{counters:?}");
        assert!(counters.share_of_wide_bytes() > 0.99, "{counters:?}");
        assert_eq!(counters.local_bytes_written, 0);
        assert_eq!(counters.launches, 1);
    }
    let gpu = gpu();
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        check::<f32>(&gpu, pairing);
        check::<bf16>(&gpu, pairing);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn angles_are_made_once_for_many_sequences() {
    let gpu = gpu();
    let (count, dim) = (256, 64);
    let plan = SinusoidPlan::<f16>::new(&gpu, &Sinusoid::new(dim)).unwrap();
    let run = |batch: usize| {
        let x = vec![f16::ONE; batch * count * dim];
        let mut x = gpu.stream().clone_htod(&x).unwrap();
        plan.add(Tokens::new(batch, count, dim).of_mut(&mut x), Positions::counted(), 1.0).unwrap();
        last_launch()
    };
    // Few sequences are spread over the multiprocessors; of many, each thread walks as many as keep these busy.
    let blocks = 16 * gpu.multiprocessors() as usize;
    let batch = 5 * blocks / 8;
    let (Some(few), Some(many)) = (run(2), run(batch)) else { return };
    assert_eq!(few.grid[1], 2);
    assert!(u64::from(many.grid[1]) * 4 <= batch as u64, "{many:?}");
    let bytes = (batch * count * dim * 2) as u64;
    assert_eq!(many.counters.bytes_written, bytes);
    assert_eq!(many.counters.bytes_read, bytes + (count * dim / 2 * 8) as u64 * u64::from(many.grid[1]));
    // The integer products and the polynomials are what is saved.
    let each = |report: &emulator::LaunchReport, batch: usize| report.counters.instructions() as f64 / batch as f64;
    assert!(each(&many, batch) < 0.5 * each(&few, 2), "{} {}", each(&many, batch), each(&few, 2));
}

/// More sequences than a grid has blocks on its second axis.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn grids_at_their_limits() {
    let gpu = gpu();
    let batch = 65_537 + 10;
    let starts: Vec<i32> = (0..batch as i32).map(|b| b * 31 - 7).collect();
    let positions: Vec<i64> = starts.iter().map(|&start| i64::from(start)).collect();
    let starts = gpu.stream().clone_htod(&starts).unwrap();
    let at = (&positions[..], Positions::starts(&starts));
    check_kernel::<f32>(&gpu, &Sinusoid::new(2), Tokens::new(batch, 1, 2), 0, 1.0, at, &mut Data::new(6));
}

/// One sequence more than threads walk one each: they walk two, and the last one walks one.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_last_thread_walks_fewer_sequences() {
    let gpu = gpu();
    let batch = 16 * gpu.multiprocessors() as usize + 1;
    let at = (&vec![0; batch][..], Positions::counted());
    check_kernel::<f32>(&gpu, &Sinusoid::new(2), Tokens::new(batch, 1, 2), 0, 1.0, at, &mut Data::new(7));
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[track_caller]
fn refused(spec: Sinusoid, message: &str) {
    let mut out = [7.0f32; 64];
    let error = spec.write(&mut out, &[1]).unwrap_err();
    assert_eq!(error.to_string(), message);
    assert_eq!(out, [7.0; 64]);
}

#[test]
fn specs_outside_the_law_are_refused_with_the_numbers() {
    let spec = Sinusoid::new(8);
    refused(Sinusoid::new(0), "dim is 0, it must be between 1 and 2^32 - 1");
    refused(
        Sinusoid { odd: Odd::Refuse, ..Sinusoid::new(7) },
        "dim is 7, it must be even unless odd says what the last channel holds",
    );
    refused(
        Sinusoid { odd: Odd::Zero, ..Sinusoid::new(1) },
        "dim is 1, with a zero in the last channel it must be at least 2",
    );
    refused(
        Sinusoid { shift: 1.0, ..Sinusoid::new(2) },
        "shift is 1 and half of dim 2 is 1, half - shift divides the exponent and must be above 0",
    );
    refused(Sinusoid { shift: f64::NAN, ..spec.clone() }, "shift is NaN, it must be finite");
    refused(Sinusoid { max_period: 0.0, ..spec.clone() }, "max_period is 0, it must be finite and above 0");
    refused(Sinusoid { scale: f64::INFINITY, ..spec.clone() }, "scale is inf, it must be finite");
    refused(Sinusoid { scale: 1e13, ..spec.clone() }, "scale is 10000000000000, its magnitude must be at most 1e12");
    refused(
        Sinusoid { shift: 3.99, ..spec },
        "shift is 3.99 and max_period 10000, the last frequency is max_period^(-3 / 0.009999999999999787) and leaves f64",
    );
}

#[test]
fn buffers_and_shapes_are_refused_before_anything_is_written() {
    let spec = Sinusoid::new(4);
    let mut x = [7.0f32; 11];
    let error = spec.write(&mut x, &[0, 1, 2]).unwrap_err();
    assert_eq!(error.to_string(), "out holds 11 elements, the shape needs 12");
    let error = spec.add(&mut x, &Tokens::new(1, 3, 4), &[0, 1, 2], 1.0).unwrap_err();
    assert_eq!(error.to_string(), "x holds 11 elements, the shape needs 12");
    let error = spec.add(&mut x, &Tokens::new(1, 2, 5), &[0, 1], 1.0).unwrap_err();
    assert_eq!(error.to_string(), "x has 5 channels, the encoding has 4");
    let error = spec.add(&mut x, &Tokens::new(2, 1, 4), &[0], 1.0).unwrap_err();
    assert_eq!(error.to_string(), "positions holds 1 elements, the shape needs 2");
    let error = spec.add(&mut x, &Tokens::new(1, 1, 4), &[0], f64::NAN).unwrap_err();
    assert_eq!(error.to_string(), "scale is NaN, it must be finite and fit into f32");
    let overlapping = Tokens { strides: [0, 3], ..Tokens::new(1, 2, 4) };
    assert!(spec.add(&mut x, &overlapping, &[0, 1], 1.0).is_err());
    assert_eq!(x, [7.0; 11]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_refuse_before_anything_is_written() {
    let gpu = gpu();
    let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(4)).unwrap();
    let mut x = Guarded::new(&gpu, &[7.0f32; 11], 0);
    let error = plan.write(Tokens::new(1, 3, 4).of_mut(&mut x.view()), Positions::counted()).unwrap_err();
    assert_eq!(error.to_string(), "out holds 11 elements, the shape needs 12");
    let error = plan.add(Tokens::new(1, 2, 5).of_mut(&mut x.view()), Positions::counted(), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "x has 5 channels, the encoding has 4");
    let ids = gpu.stream().clone_htod(&[1i32, 2]).unwrap();
    let error = plan.add(Tokens::new(2, 2, 2).of_mut(&mut x.view()), Positions::ids(&ids), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "x has 2 channels, the encoding has 4");
    let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(2)).unwrap();
    let error = plan.add(Tokens::new(2, 2, 2).of_mut(&mut x.view()), Positions::ids(&ids), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "positions holds 2 elements, the shape needs 4");
    assert_eq!(x.read(&gpu), [7.0; 11]);
    plan.add(Tokens::new(0, 2, 2).of_mut(&mut x.view()), Positions::counted(), 1.0).unwrap();
    assert_eq!(x.read(&gpu), [7.0; 11]);
    assert!(SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(0)).is_err());
}
