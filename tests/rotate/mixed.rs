//! Frequencies for each head and sums over axes, positions between whole numbers, gradients of angles.

use astro_float::{BigFloat, Consts, RoundingMode};
use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::position::{FixedPlan, fixed};
use posenc::rotate::{Angles, Axes, Mixed, OutOfRange, RopeGrad, RopeGradPlan, Rotation, Table, TableValues, XPos};
use posenc::{Direction, Gpu, Heads, Ids, Pairing, Positions, Rope, RopePlan, Scalar, Scaling};
use serde_json::Value;

use super::rope::Case;
use crate::support::{Data, Guarded, gpu};

fn floats(bits: &Value) -> Vec<f64> {
    let float = |bits: &Value| f64::from(f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()));
    bits.as_array().unwrap().iter().map(float).collect()
}

fn mixed(axes: usize, heads: usize, frequencies: Vec<f64>, rotary: usize) -> Rope {
    Rope { angles: Angles::Mixed(Mixed { axes, heads, frequencies }), ..Rope::new(rotary, 1.0) }
}

/// Frequencies of up to 1.6 radians per position, some of them negative.
fn learned(axes: usize, heads: usize, rotary: usize, data: &mut Data) -> Rope {
    let frequencies = (0..axes * heads * rotary / 2).map(|_| data.value() * 0.8).collect();
    mixed(axes, heads, frequencies, rotary)
}

// -------------------------------------------------------------------------------------------------------------- values

/// timm 1.0.31 `RotaryEmbeddingMixed`; diffusers 0.42.1 `MochiRoPE`, whose positions lie between whole numbers, and
/// `LTX2AudioVideoRotaryPosEmbed` with `rope_type="split"`. All of them in f32: tolerances are of their angles.
#[test]
fn angles_are_those_of_timm_and_diffusers() {
    let golden: Value = serde_json::from_str(include_str!("../golden/rope_mixed.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let rows: Vec<Vec<f64>> = case["positions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect())
            .collect();
        let (axes, tokens) = (rows.len(), rows[0].len());
        let heads = usize::try_from(case["heads"].as_u64().unwrap()).unwrap();
        let (cos, sin) = (floats(&case["cos_f32_bits"]), floats(&case["sin_f32_bits"]));
        let pairs = cos.len() / (heads * tokens);
        // LTX-2: fractions of a base on -1..1, so that 2 * middle - base turns by frequency / base.
        let (rows, frequencies) = match case["base"].as_array() {
            None => (rows, floats(&case["frequencies_f32_bits"])),
            Some(base) => {
                let base: Vec<f64> = base.iter().map(|x| x.as_f64().unwrap()).collect();
                let theta = case["theta"].as_f64().unwrap();
                let rungs = heads * pairs / axes;
                let pad = heads * pairs - axes * rungs;
                let mut frequencies = vec![0.0; axes * heads * pairs];
                for (rung, axis) in (0..rungs).flat_map(|rung| (0..axes).map(move |axis| (rung, axis))) {
                    let power = theta.powf(rung as f64 / (rungs - 1) as f64);
                    let frequency = power * std::f64::consts::FRAC_PI_2 / base[axis];
                    frequencies[axis * heads * pairs + pad + rung * axes + axis] = frequency;
                }
                let around = |(row, base): (Vec<f64>, &f64)| row.into_iter().map(|x| 2.0 * x - base).collect();
                (rows.into_iter().zip(&base).map(around).collect(), frequencies)
            }
        };
        let bits = 30;
        let rope = Rope { fraction_bits: vec![bits; axes], ..mixed(axes, heads, frequencies, 2 * pairs) };
        let positions: Vec<i64> = rows.iter().flat_map(|row| fixed(row, bits).unwrap()).collect();
        let largest = rows.iter().flatten().fold(0f64, |largest, x| largest.max(x.abs()));
        let shape = Heads::bhtd(1, heads, tokens, 2 * pairs);
        let mut x = vec![0f32; shape.elements().unwrap()];
        x.chunks_exact_mut(2 * pairs).for_each(|head| head[..pairs].fill(1.0));
        rope.rotate(&mut x, &shape, &positions, Direction::Forward).unwrap();
        for (i, (got, (cos, sin))) in
            x.chunks_exact(2 * pairs).zip(cos.chunks(pairs).zip(sin.chunks(pairs))).enumerate()
        {
            for pair in 0..pairs {
                let (c, s) = (f64::from(got[pair]), f64::from(got[pairs + pair]));
                // f32 angles of up to 1.6e4 radians in LTX-2, of `largest` times 1 elsewhere.
                let near = if case["base"].is_null() { 1e-6 * (1.0 + largest) } else { 2.5e-3 };
                let (dc, ds) = ((c - cos[pair]).abs(), (s - sin[pair]).abs());
                assert!(
                    dc < near && ds < near,
                    "{name}, row {i}, pair {pair}: {c} {s}, not {} {}",
                    cos[pair],
                    sin[pair]
                );
            }
        }
    }
}

/// Cosine and sine of `frequency * units * 2^-bits`, in 256 bits.
fn truth(frequency: f64, units: i64, bits: u32, consts: &mut Consts) -> (f64, f64) {
    let angle = BigFloat::from_f64(frequency * 0.5f64.powi(bits as i32), BITS).mul(
        &BigFloat::from_i64(units, BITS),
        BITS,
        RoundingMode::ToEven,
    );
    let value = |x: BigFloat| x.to_string().parse::<f64>().unwrap();
    (value(angle.cos(BITS, RoundingMode::ToEven, consts)), value(angle.sin(BITS, RoundingMode::ToEven, consts)))
}
const BITS: usize = 256;

/// Phases of frequencies and fractions that f64 holds exactly, against the truth in 256 bits: an hour, a day and 2^31 units.
#[test]
fn fractional_positions_are_exact_for_a_day_and_beyond() {
    let mut consts = Consts::new().unwrap();
    for (seconds, bits) in [(3600.0, 19), (86_400.0, 14), (86_400.0, 19), ((1u64 << 31) as f64 / 8192.0, 13)] {
        for frequency in [1.0, 0.3371, 2.5e-4, 6.5] {
            for step in 0..50 {
                let rope = Rope { fraction_bits: vec![bits], ..mixed(1, 1, vec![frequency], 2) };
                let at = seconds - f64::from(step) * 1.37;
                let units = fixed(&[at], bits).unwrap()[0];
                let (cos, sin) = truth(frequency, units, bits, &mut consts);
                let angle = rope.angle(units, 0);
                let off = (angle.cos() - cos).abs().max((angle.sin() - sin).abs());
                let stated = (units.unsigned_abs() as f64) * 2f64.powi(-65) * std::f64::consts::TAU;
                assert!(off <= stated + 4e-16, "{at} s in {bits} bits: off by {off:e}, stated {stated:e}");
            }
        }
    }
}

#[test]
fn positions_are_rounded_to_units_or_refused() {
    assert_eq!(fixed(&[0.5f32, -0.75, 1.25, 2.5], 1).unwrap(), [1, -2, 2, 5]);
    assert_eq!(fixed(&[-1.0f64, 2f64.powi(30)], 32).unwrap(), [-(1 << 32), 1 << 62]);
    let error = |value: f64, bits| fixed(&[0.0, value], bits).unwrap_err().to_string();
    assert_eq!(error(2f64.powi(31), 32), "position 1 is 2147483648, with 32 fraction bits it must lie within 2^31");
    assert_eq!(error(f64::NAN, 3), "position 1 is NaN, with 3 fraction bits it must lie within 2^60");
    assert_eq!(error(f64::INFINITY, 0), "position 1 is inf, with 0 fraction bits it must lie within 2^63");
    assert_eq!(error(0.0, 63), "positions have 63 fraction bits, at most 62 are possible");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn real_positions_on_the_device_are_those_of_the_host() {
    let gpu = gpu();
    let plan = FixedPlan::new(&gpu).unwrap();
    let mut values: Vec<f64> = vec![0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e-9, 1.0 / 24.0, -86_400.0, 3.0e9];
    values.extend((1..300).map(|i| f64::from(i) * 0.37 - 40.0));
    let mut flag = gpu.stream().alloc_zeros::<u32>(1).unwrap();
    let n = values.len();
    for bits in [0, 1, 13, 31] {
        let mut out = gpu.stream().alloc_zeros::<i64>(n).unwrap();
        let reals = gpu.stream().clone_htod(&values).unwrap();
        plan.write(&reals, bits, &mut out, Some(&mut flag)).unwrap();
        assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), fixed(&values, bits).unwrap(), "{bits} bits");
        let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let reals = gpu.stream().clone_htod(&narrow).unwrap();
        plan.write(&reals, bits, &mut out, Some(&mut flag)).unwrap();
        assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), fixed(&narrow, bits).unwrap(), "{bits} bits");
    }
    assert_eq!(gpu.stream().clone_dtoh(&flag).unwrap(), [0]);
    let mut out = gpu.stream().alloc_zeros::<i64>(2).unwrap();
    // The first that does not fit, and the last that does.
    for (value, bits, units, flagged) in [
        (2f64.powi(31), 32, 0, 1),
        (-(2f64.powi(31)), 32, i64::MIN, 0),
        (f64::NAN, 3, 0, 1),
        (f64::NEG_INFINITY, 0, 0, 1),
    ] {
        let mut flag = gpu.stream().alloc_zeros::<u32>(1).unwrap();
        let reals = gpu.stream().clone_htod(&[1.0, value]).unwrap();
        plan.write(&reals, bits, &mut out, Some(&mut flag)).unwrap();
        assert_eq!(gpu.stream().clone_dtoh(&out).unwrap(), [1 << bits, units], "{value}");
        assert_eq!(gpu.stream().clone_dtoh(&flag).unwrap(), [flagged], "{value}");
        plan.write(&reals, bits, &mut out, None).unwrap();
    }
    let reals = gpu.stream().clone_htod(&[0.0f32; 3]).unwrap();
    let error = |bits: u32, out: &mut CudaSlice<i64>| plan.write(&reals, bits, out, None).unwrap_err().to_string();
    assert_eq!(error(63, &mut out), "positions have 63 fraction bits, at most 62 are possible");
    assert_eq!(error(3, &mut out), "out holds 2 elements, the shape needs 3");
}

// ---------------------------------------------------------------------------------------------------------------- laws

/// One axis, one set, the frequencies of a ladder: bit for bit the rope that has it.
#[test]
fn a_ladder_written_out_is_the_ladder() {
    let plain = Rope { scaling: Scaling::Linear { factor: 4.0 }, ..Rope::new(16, 10_000.0) };
    let written = mixed(1, 1, (0..8).map(|pair| plain.frequency(pair)).collect(), 16);
    let mut data = Data::new(1);
    let heads = Heads::thd(5, 3, 16);
    let x = data.values::<f32>(heads.elements().unwrap());
    // f64 frequencies are 1e-16 from the ladder's, so positions are those whose phases agree in f32.
    let positions = [0, 1, -1, 4095, 77];
    let rotated = |rope: &Rope| {
        let mut y = x.clone();
        rope.rotate(&mut y, &heads, &positions, Direction::Forward).unwrap();
        y
    };
    assert_eq!(rotated(&plain), rotated(&written));
}

/// Half a position in units of a half is a position; a quarter of the frequency at four times the position.
#[test]
fn fraction_bits_scale_positions_alone() {
    let ropes = |bits: Vec<u32>| {
        [Angles::Exact, Angles::HfCompat].map(|angles| Rope {
            angles,
            fraction_bits: bits.clone(),
            ..Rope::new(12, 1e4)
        })
    };
    for (whole, quarters) in ropes(vec![]).into_iter().zip(ropes(vec![2])) {
        for (position, pair) in [(1, 0), (131_071, 2), (-77, 5), (1 << 21, 1)] {
            // Half a unit of 2^-64 turns for each of them.
            let off = whole.angle(position, pair) - quarters.angle(4 * position, pair);
            assert!(off.abs() < 6.0 * position.unsigned_abs() as f64 * 2f64.powi(-62), "{off:e}");
        }
        assert_eq!(whole.frequency(1), quarters.frequency(1));
    }
    // Each axis has its own.
    let rope = Rope { axes: Axes::Sections(vec![3, 3]), fraction_bits: vec![0, 3], ..Rope::new(12, 1e4) };
    assert!(rope.rate(3).abs_diff(Rope::new(12, 1e4).rate(3) / 8) <= 1);
    assert_eq!(rope.rate(1), Rope::new(12, 1e4).rate(1));
}

// ------------------------------------------------------------------------------------------------------------- refusals

#[test]
fn mixed_frequencies_are_refused_by_name() {
    let refused = |rope: Rope| rope.check().unwrap_err().to_string();
    assert_eq!(
        refused(mixed(2, 3, vec![0.0; 23], 8)),
        "mixed angles have 23 frequencies, 2 axes of 3 heads with 4 pairs need 24"
    );
    assert_eq!(refused(mixed(0, 1, vec![], 8)), "mixed angles have 0 axes, 1 to 256 are possible");
    assert_eq!(
        refused(mixed(1, 1, vec![0.0, f64::INFINITY], 4)),
        "the mixed frequencies hold inf at 1, they must be below 2^40 in magnitude"
    );
    assert_eq!(
        refused(Rope { axes: Axes::Dealt(2), ..mixed(2, 1, vec![0.0; 8], 8) }),
        "mixed angles have axes of their own, `axes` must be `One`"
    );
    assert_eq!(
        refused(Rope { fraction_bits: vec![1, 2], ..Rope::new(8, 1e4) }),
        "fraction_bits holds 2 numbers, positions have 1 axes"
    );
    assert_eq!(
        refused(Rope { fraction_bits: vec![63], ..Rope::new(8, 1e4) }),
        "fraction_bits holds 63, a position has at most 62"
    );
    let xpos = |rope| XPos::new(rope).check().unwrap_err().to_string();
    assert_eq!(xpos(mixed(1, 1, vec![0.0; 4], 8)), "the rope's angles are mixed, xPos has those of one ladder");
    assert_eq!(
        xpos(Rope { fraction_bits: vec![3], ..Rope::new(8, 1e4) }),
        "positions have 3 fraction bits, xPos's are whole"
    );
    let rope = mixed(1, 4, vec![0.0; 16], 8);
    let error = rope.rotate(&mut [0f32; 48], &Heads::thd(1, 6, 8), &[0], Direction::Forward).unwrap_err();
    assert_eq!(error.to_string(), "x has 6 heads, which 4 sets of frequencies do not share equally");
    let error = rope.rotate(&mut [0f32; 32], &Heads::thd(1, 4, 8), &[], Direction::Forward).unwrap_err();
    assert_eq!(error.to_string(), "positions holds 0 elements, the shape needs 1");
}

// ------------------------------------------------------------------------------------------- kernel against reference

fn small_cases(data: &mut Data) -> Vec<Case> {
    let mut cases = Vec::new();
    for (axes, sets, q, k, rotary, dim) in [
        (1, 1, 3, 1, 8, 8),
        (2, 2, 4, 2, 16, 24),
        (3, 6, 6, 6, 32, 32),
        (5, 1, 2, 0, 6, 10),
        (2, 3, 9, 3, 64, 64),
        (3, 8, 8, 8, 128, 128),
    ] {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let offset = data.pick(&[0, dim - rotary]);
            let rope = Rope { pairing, offset, attention_factor: 1.25, ..learned(axes, sets, rotary, data) };
            let tokens = data.pick(&[1, 3, 7]);
            let k = (k > 0).then(|| Heads::bthd(2, tokens, k, dim));
            cases.push(Case::in_place(&rope, Heads::bthd(2, tokens, q, dim), k, data));
        }
    }
    cases
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn mixed_rotations_are_the_reference_and_keep_their_bits() {
    let (gpu, mut data) = (gpu(), Data::new(2));
    for mut case in small_cases(&mut data) {
        case.check_all(&gpu, &mut data);
        if case.rope.rotary >= 32 {
            case.check_bits::<bf16>(&gpu, &mut data, "rope_mixed_wide");
            case.check_bits::<f32>(&gpu, &mut data, "rope_mixed_wide");
        }
        case.out = Some((case.q, case.k));
        case.check_all(&gpu, &mut data);
        // Pairs move.
        case.rope.pairing_out = Some(Pairing::Half);
        case.check_all(&gpu, &mut data);
    }
}

/// Many tokens and heads: walks over several heads and over the border from queries to keys.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn mixed_rotations_of_long_calls() {
    let (gpu, mut data) = (gpu(), Data::new(3));
    for (sets, q, k, tokens) in [(1, 24, 24, 1100), (2, 16, 4, 700), (12, 12, 12, 300)] {
        let rope = learned(3, sets, 32, &mut data);
        let case = Case::in_place(&rope, Heads::thd(tokens, q, 32), Some(Heads::thd(tokens, k, 32)), &mut data);
        case.check::<bf16>(&gpu, &mut data);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn fractional_positions_on_the_device() {
    let (gpu, mut data) = (gpu(), Data::new(4));
    for angles in [Angles::Exact, Angles::HfCompat] {
        let rope = Rope {
            axes: Axes::Sections(vec![8, 5, 3]),
            fraction_bits: vec![10, 0, 3],
            angles,
            ..Rope::new(32, 10_000.0)
        };
        Case::in_place(&rope, Heads::thd(9, 2, 32), Some(Heads::thd(9, 1, 32)), &mut data).check_all(&gpu, &mut data);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn learned_frequencies_replace_those_of_the_spec() {
    let (gpu, mut data) = (gpu(), Data::new(5));
    let (axes, sets, rotary) = (2, 3, 16);
    for bits in [vec![], vec![4, 0]] {
        let mut values: Vec<f32> = (0..axes * sets * rotary / 2).map(|_| data.value() as f32).collect();
        values[..6].copy_from_slice(&[0.0, -1e-7, 1e-30, 1e9, -3e11, f32::MIN_POSITIVE]);
        let frequencies = values.iter().map(|&x| f64::from(x)).collect();
        let spec = Rope { fraction_bits: bits, ..mixed(axes, sets, frequencies, rotary) };
        let blank =
            Rope { angles: Angles::Mixed(Mixed { axes, heads: sets, frequencies: vec![0.0; 48] }), ..spec.clone() };
        let mut plan = RopePlan::<f32>::new(&gpu, &blank).unwrap();
        let before = plan.clone();
        let on_device = gpu.stream().clone_htod(&values).unwrap();
        let mut flag = gpu.stream().alloc_zeros::<u32>(1).unwrap();
        plan.set_frequencies(&on_device, Some(&mut flag)).unwrap();
        assert_eq!(gpu.stream().clone_dtoh(&flag).unwrap(), [0]);
        let heads = Heads::thd(4, 6, rotary);
        let x = data.values::<f32>(heads.elements().unwrap());
        let positions: Vec<i64> = vec![0, 1, 131_071, -(1 << 31), 5, -6, (1 << 31) - 1, 1];
        let ids = gpu.stream().clone_htod(&positions).unwrap();
        let run = |plan: &RopePlan<f32>| {
            let mut y = Guarded::new(&gpu, &x, 0);
            plan.rotate(heads.of_mut(&mut y.view()), None, Positions::ids(&ids)).unwrap();
            y.read(&gpu)
        };
        let expected = spec.expect(&x, &heads, &positions, Direction::Forward).unwrap();
        assert_close(&run(&plan), &expected.want, |i| expected.bound[i]);
        // A clone keeps its own.
        assert_eq!(run(&before), x);

        values[7] = f32::NAN;
        let on_device = gpu.stream().clone_htod(&values).unwrap();
        plan.set_frequencies(&on_device, Some(&mut flag)).unwrap();
        assert_eq!(gpu.stream().clone_dtoh(&flag).unwrap(), [1]);
        let short = gpu.stream().alloc_zeros::<f32>(47).unwrap();
        let error = plan.set_frequencies(&short, None).unwrap_err().to_string();
        assert_eq!(error, "frequencies holds 47 elements, the shape needs 48");
    }
    let mut plan = RopePlan::<f32>::new(&gpu, &Rope::new(8, 1e4)).unwrap();
    let some = gpu.stream().alloc_zeros::<f32>(4).unwrap();
    let error = plan.set_frequencies(&some, None).unwrap_err().to_string();
    assert_eq!(error, "the plan's angles are not mixed, it has no learned frequencies");
}

fn rows(cache: &CudaSlice<f32>) -> Table<'_, f32> {
    let values = TableValues::F32 { cos: cache, sin: None };
    Table { values, rows: 8, stride: 8, out_of_range: OutOfRange::Clamp }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_that_do_not_fit_mixed_angles_are_refused() {
    let gpu = gpu();
    let plan = RopePlan::<f32>::new(&gpu, &mixed(2, 2, vec![0.5; 16], 8)).unwrap();
    let mut q = gpu.stream().alloc_zeros::<f32>(4 * 6 * 8).unwrap();
    let mut k = gpu.stream().alloc_zeros::<f32>(4 * 3 * 8).unwrap();
    let ids = gpu.stream().clone_htod(&[0i64; 8]).unwrap();
    let cache = gpu.stream().alloc_zeros::<f32>(64).unwrap();
    let mut refused = |q_heads: usize, k_heads: usize, counted: bool, by_table: bool| {
        let (q_heads, k_heads) = (Heads::thd(4, q_heads, 8), Heads::thd(4, k_heads, 8));
        let at = if counted { Positions::counted() } else { Positions::ids(&ids) };
        let rotation = Rotation { table: by_table.then(|| rows(&cache)), ..Rotation::at(at) };
        plan.rotate(q_heads.of_mut(&mut q), k_heads.of_mut(&mut k), rotation).unwrap_err().to_string()
    };
    assert_eq!(refused(3, 2, false, false), "q has 3 heads, which 2 sets of frequencies do not share equally");
    assert_eq!(refused(4, 3, false, false), "k has 3 heads, which 2 sets of frequencies do not share equally");
    assert_eq!(refused(4, 2, true, false), "the spec has 2 axes, positions without ids have one");
    assert_eq!(
        refused(4, 2, false, true),
        "a table has a row for each position, mixed angles depend on all axes and on the head"
    );
    let fractions = RopePlan::<f32>::new(&gpu, &Rope { fraction_bits: vec![3], ..Rope::new(8, 1e4) }).unwrap();
    let by_table = Rotation { table: Some(rows(&cache)), ..Rotation::at(Positions::counted()) };
    let error = fractions.rotate(Heads::thd(4, 6, 8).of_mut(&mut q), None, by_table).unwrap_err().to_string();
    assert_eq!(error, "a table has rows for whole positions, these have fraction bits");
}

// ----------------------------------------------------------------------------------------------------------- gradients

/// The derivative of a score by a frequency and by a position, by differences.
#[test]
fn gradients_are_differences_of_the_score() {
    let mut data = Data::new(6);
    let (axes, sets, rotary) = (2, 2, 8);
    let rope = Rope {
        pairing: Pairing::Interleaved,
        attention_factor: 1.5,
        fraction_bits: vec![20; 2],
        ..learned(axes, sets, rotary, &mut data)
    };
    let heads = Heads::thd(3, 4, rotary);
    let n = heads.elements().unwrap();
    let (x, weights) = (data.values::<f32>(n), data.values::<f32>(n));
    let reals: Vec<f64> = (0..axes * 3).map(|_| data.value()).collect();
    let score = |rope: &Rope, reals: &[f64]| {
        let expected = rope.expect(&x, &heads, &fixed(reals, 20).unwrap(), Direction::Forward).unwrap();
        expected.want.iter().zip(&weights).map(|(y, &w)| y * f64::from(w)).sum::<f64>()
    };
    // The gradient of the output is `weights`; back to the input by the inverse rotation.
    let positions = fixed(&reals, 20).unwrap();
    let back = rope.expect(&weights, &heads, &positions, Direction::Inverse).unwrap();
    let back: Vec<f32> = back.want.iter().map(|&x| x as f32).collect();
    let y = rope.expect(&x, &heads, &positions, Direction::Forward).unwrap();
    let y: Vec<f32> = y.want.iter().map(|&x| x as f32).collect();
    for (x, grad) in [(&x, &back), (&y, &weights)] {
        let tensors = [RopeGrad { x: (&x[..], heads), grad: (&grad[..], heads) }];
        let by_frequency = rope.frequency_grad(&tensors, &positions).unwrap().want;
        let by_position = rope.position_grad(&tensors).unwrap().want;
        for (i, got) in by_frequency.iter().enumerate() {
            let moved = |step: f64| {
                let Angles::Mixed(mixed) = &rope.angles else { unreachable!() };
                let mut mixed = mixed.clone();
                mixed.frequencies[i] += step;
                score(&Rope { angles: Angles::Mixed(mixed), ..rope.clone() }, &reals)
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((got - want).abs() < 1e-4, "frequency {i}: {got}, by differences {want}");
        }
        for (i, got) in by_position.iter().enumerate() {
            let moved = |step: f64| {
                let mut reals = reals.clone();
                reals[i] += step;
                score(&rope, &reals)
            };
            let step = 64.0 / f64::from(1 << 20);
            let want = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((got - want).abs() < 1e-4, "position {i}: {got}, by differences {want}");
        }
    }
}

#[test]
fn gradients_of_blocks_of_channels_are_refused() {
    let rope = Rope { axes: Axes::Blocks(2), ..Rope::new(8, 1e4) };
    let heads = Heads::thd(1, 1, 8);
    let tensors = [RopeGrad { x: (&[0f32; 8][..], heads), grad: (&[0f32; 8][..], heads) }];
    let error = rope.frequency_grad(&tensors, &[0, 0]).unwrap_err().to_string();
    assert_eq!(error, "gradients of angles know no blocks of channels, the axes have 2");
}

/// Both gradients of one shape in one alignment: the bits.
fn gradients<T: Scalar>(
    gpu: &Gpu,
    rope: &Rope,
    shapes: &[Heads],
    positions: &[i64],
    values: &[Vec<T>],
    shift: usize,
) -> [Vec<f32>; 2] {
    let plan = RopeGradPlan::<T>::new(gpu, rope).unwrap();
    let mut buffers: Vec<Guarded<T>> = values.iter().map(|x| Guarded::new(gpu, x, shift)).collect();
    let views: Vec<_> = buffers.iter_mut().map(Guarded::view).collect();
    let ids = gpu.stream().clone_htod(positions).unwrap();
    let of = |i: usize| {
        shapes.get(i).map(|shape| RopeGrad { x: shape.of(&views[2 * i]), grad: shape.of(&views[2 * i + 1]) })
    };
    let rows = shapes[0].batch * shapes[0].tokens;
    let count =
        rope.position_axes() * rope.rotary / 2 * if let Angles::Mixed(mixed) = &rope.angles { mixed.heads } else { 1 };
    let mut frequency = Guarded::<f32>::poisoned(gpu, count, 0);
    let mut position = Guarded::<f32>::poisoned(gpu, rope.position_axes() * rows, 0);
    plan.frequencies(of(0).unwrap(), of(1), Positions::ids(&ids), &mut frequency.view()).unwrap();
    plan.positions(of(0).unwrap(), of(1), None, &mut position.view()).unwrap();
    [frequency.read(gpu), position.read(gpu)]
}

#[track_caller]
fn check_gradients<T: Scalar>(gpu: &Gpu, rope: &Rope, shapes: &[Heads], data: &mut Data) {
    let rows = shapes[0].batch * shapes[0].tokens;
    let positions: Vec<i64> = (0..rope.position_axes() * rows).map(|_| data.below(2000) as i64 - 1000).collect();
    let values: Vec<Vec<T>> =
        shapes.iter().flat_map(|shape| [*shape; 2]).map(|shape| data.values(shape.span().unwrap())).collect();
    let got = gradients(gpu, rope, shapes, &positions, &values, 0);
    let tensors: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| RopeGrad { x: (&values[2 * i][..], *shape), grad: (&values[2 * i + 1][..], *shape) })
        .collect();
    let [by_frequency, by_position] =
        [rope.frequency_grad(&tensors, &positions).unwrap(), rope.position_grad(&tensors).unwrap()];
    assert_close(&got[0], &by_frequency.want, |i| by_frequency.bound[i]);
    assert_close(&got[1], &by_position.want, |i| by_position.bound[i]);
    let misaligned = gradients(gpu, rope, shapes, &positions, &values, 1);
    assert_eq!(got, misaligned, "{rope:?}");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_on_the_device_are_the_reference_and_keep_their_bits() {
    let (gpu, mut data) = (gpu(), Data::new(7));
    for (axes, sets, q, k, rotary, dim, tokens) in [
        (1, 1, 1, 0, 2, 2, 1),
        (2, 2, 4, 2, 16, 24, 9),
        (3, 6, 6, 6, 32, 32, 70),
        (5, 1, 2, 0, 6, 10, 65),
        (2, 3, 9, 3, 64, 64, 30),
        (3, 2, 2, 2, 576, 576, 3),
    ] {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let bits = data.pick(&[vec![].as_slice(), &[7]]).iter().copied().cycle().take(axes).collect::<Vec<u32>>();
            let offset = data.pick(&[0, dim - rotary]);
            let rope = Rope { pairing, offset, fraction_bits: bits, ..learned(axes, sets, rotary, &mut data) };
            let mut shapes = vec![Heads::bthd(2, tokens, q, dim)];
            shapes.extend((k > 0).then(|| Heads::bhtd(2, k, tokens, dim)));
            check_gradients::<f32>(&gpu, &rope, &shapes, &mut data);
            check_gradients::<f16>(&gpu, &rope, &shapes, &mut data);
            check_gradients::<bf16>(&gpu, &rope, &shapes, &mut data);
        }
    }
    // Other angles: several axes of one ladder, angles in f32.
    let sections = Rope { axes: Axes::Sections(vec![2, 1, 1]), ..Rope::new(8, 100.0) };
    check_gradients::<f32>(&gpu, &sections, &[Heads::thd(11, 2, 8)], &mut data);
    let compat = Rope { angles: Angles::HfCompat, fraction_bits: vec![2], ..Rope::new(8, 100.0) };
    check_gradients::<f32>(&gpu, &compat, &[Heads::thd(11, 2, 8)], &mut data);
}

/// Chunks of more than 64 tokens, and more of them than are added at once.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_many_tokens() {
    let (gpu, mut data) = (gpu(), Data::new(8));
    let rope = learned(2, 1, 4, &mut data);
    for tokens in [64 * 8, 64 * 21 + 5, 64 * 512 + 1] {
        check_gradients::<bf16>(&gpu, &rope, &[Heads::thd(tokens, 1, 4)], &mut data);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_without_tokens_are_zero_and_wrong_sizes_refused() {
    let gpu = gpu();
    let rope = mixed(2, 2, vec![0.5; 16], 8);
    let plan = RopeGradPlan::<f32>::new(&gpu, &rope).unwrap();
    let x = gpu.stream().alloc_zeros::<f32>(64).unwrap();
    let ids = gpu.stream().clone_htod(&[0i64; 4]).unwrap();
    let mut out = Guarded::<f32>::poisoned(&gpu, 16, 0);
    let none = Heads::thd(0, 2, 8);
    let of = |x_heads: Heads, grad_heads: Heads| RopeGrad { x: x_heads.of(&x), grad: grad_heads.of(&x) };
    plan.frequencies(of(none, none), None, Positions::ids(&ids), &mut out.view()).unwrap();
    assert_eq!(out.read(&gpu), [0.0; 16]);
    let heads = Heads::thd(2, 2, 8);
    let mut refused = |q, k, len: usize| {
        let ids: Ids<'_> = posenc::Id::ids(&ids);
        plan.frequencies(q, k, Positions::ids(ids), &mut out.view().slice_mut(0..len)).unwrap_err().to_string()
    };
    assert_eq!(
        refused(of(heads, Heads::thd(2, 1, 8)), None, 16),
        "q has the sizes [1, 2, 2, 8] and q_grad [1, 2, 1, 8] (batch, tokens, heads, dim), they must be equal"
    );
    assert_eq!(refused(of(heads, heads), None, 15), "out holds 15 elements, the shape needs 16");
    let k = Heads::thd(1, 2, 8);
    assert_eq!(refused(of(heads, heads), Some(of(k, k)), 16), "q has 2 tokens and k 1, they must be equal");
    let odd = Heads::thd(2, 1, 8);
    assert_eq!(refused(of(odd, odd), None, 16), "q has 1 heads, which 2 sets of frequencies do not share equally");
}
