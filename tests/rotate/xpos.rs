//! xPos: torchscale's and x-transformers' numbers, laws, the kernel against the reference, refusals.

use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::gpu::Update;
use posenc::rotate::{Angles, Axes, OutOfRange, Rotation, Side, Table, TableValues, XPos};
use posenc::{Direction, Gpu, Heads, Pairing, Positions, Rope, RopePlan, Scalar};
use serde_json::Value;

use crate::support::{Data, Guarded, gpu, last_launch, poison};

use super::rope::sincos_phase;

// -------------------------------------------------------------------------------------------------------------- values

/// x-transformers 2.31.10, RotaryEmbedding(dim=8, use_xpos=True): scale = (arange(0, 8, 2) + 0.4 * 8) / (1.4 * 8).
#[test]
fn zetas_are_those_of_x_transformers() {
    let xpos = XPos::new(Rope::new(8, 1e4));
    for (pair, want) in
        [0.2857142857142857, 0.4642857142857143, 0.6428571428571429, 0.8214285714285714].iter().enumerate()
    {
        assert!((xpos.zeta(pair) - want).abs() < 1e-15, "pair {pair}");
    }
    // power (t - center) / 512 at t = 100: 0.2857142857^(100/512)
    assert!((xpos.scale(100, 0, Side::Query) - 0.782954834501328).abs() < 1e-15);
}

/// torchscale 0.3.0's XPOS (the paper's authors' code) in f32: up to 4096 tokens, positions up to 1e-4 rad off there.
#[test]
fn queries_and_keys_are_those_of_torchscale() {
    let golden: Value = serde_json::from_str(include_str!("../golden/rope_xpos.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let count = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let floats = |key: &str| -> Vec<f32> {
            let bits = case[key].as_array().unwrap().iter();
            bits.map(|bits| f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap())).collect()
        };
        let positions: Vec<i64> = case["positions"].as_array().unwrap().iter().map(|at| at.as_i64().unwrap()).collect();
        let dim = count("dim");
        let xpos = XPos {
            scale_base: count("scale_base") as f64,
            center: count("center") as i64,
            ..XPos::new(Rope { pairing: Pairing::Interleaved, ..Rope::new(dim, 1e4) })
        };
        let heads = Heads::thd(positions.len(), 1, dim);
        for (side, x, want) in
            [(Side::Query, "q_f32_bits", "q_out_f32_bits"), (Side::Key, "k_f32_bits", "k_out_f32_bits")]
        {
            let mut x = floats(x);
            xpos.rotate(&mut x, &heads, &positions, side, Direction::Forward).unwrap();
            let want: Vec<f64> = floats(want).into_iter().map(f64::from).collect();
            assert_close(&x, &want, |i| {
                let (position, pair) = (positions[i / dim], i % dim / 2);
                // Of a pair below 1, angles in f32 and a power in f32 of an exponent up to 4.
                xpos.scale(position, pair, side) * (3e-7 * (1.0 + position as f64) + 2e-6)
            });
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

/// Rotation and factor are written out here from the paper (arXiv 2212.10554, algorithm 1), without any law of the crate.
#[test]
fn a_rotation_is_that_of_the_paper_written_out() {
    let (rotary, offset, base, center) = (8, 1, 100.0f64, -3);
    let heads = Heads::thd(3, 2, 11);
    let positions = [-5i64, 0, 700];
    let x: Vec<f32> = (0..66).map(|i| (i % 13) as f32 / 4.0 - 1.5).collect();
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let rope = Rope { pairing, offset, ..Rope::new(rotary, base) };
        let xpos = XPos { center, ..XPos::new(rope) };
        for (side, power) in [(Side::Query, 1.0), (Side::Key, -1.0)] {
            for (direction, sign) in [(Direction::Forward, 1.0), (Direction::Inverse, -1.0)] {
                let got = xpos.expect(&x, &heads, &positions, side, direction).expect("the reference");
                let mut want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                for (row, &position) in (0..).zip(&positions).flat_map(|(t, p)| [(2 * t, p), (2 * t + 1, p)]) {
                    for pair in 0..rotary / 2 {
                        let (a, b) = if pairing == Pairing::Half { (pair, pair + 4) } else { (2 * pair, 2 * pair + 1) };
                        let [a, b] = [a, b].map(|channel| row * 11 + offset + channel);
                        let share = 2.0 * pair as f64 / rotary as f64;
                        let angle = sign * position as f64 * base.powf(-share);
                        let zeta = (share + 0.4) / 1.4;
                        let factor = zeta.powf(power * (position - center) as f64 / 512.0);
                        let (from_a, from_b) = (f64::from(x[a]), f64::from(x[b]));
                        want[a] = factor * (from_a * angle.cos() - from_b * angle.sin());
                        want[b] = factor * (from_a * angle.sin() + from_b * angle.cos());
                    }
                }
                for (i, (got, want)) in got.want.iter().zip(&want).enumerate() {
                    assert!((got - want).abs() < 1e-11, "{pairing:?} {side:?} {direction:?} {i}: {got} {want}");
                }
            }
        }
    }
}

fn score(xpos: &XPos, q_at: i64, k_at: i64) -> f64 {
    let heads = Heads::thd(1, 1, 8);
    let mut q = [0.9f32, -0.4, 1.1, 0.3, -0.8, 0.7, 0.5, -1.2];
    let mut k = [0.6f32, 1.0, -0.7, 0.8, 1.3, -0.5, 0.4, 0.9];
    xpos.rotate(&mut q, &heads, &[q_at], Side::Query, Direction::Forward).unwrap();
    xpos.rotate(&mut k, &heads, &[k_at], Side::Key, Direction::Forward).unwrap();
    q.iter().zip(k).map(|(&q, k)| f64::from(q) * f64::from(k)).sum()
}

#[test]
fn scores_depend_on_the_distance_alone_and_not_on_the_center() {
    let xpos = XPos::new(Rope::new(8, 1e4));
    let want = score(&xpos, 30, 0);
    for (shift, center) in [(1, 0), (1000, 0), (-500, 0), (1000, 900), (1_000_000, 1_000_000), (20_000, 0)] {
        let got = score(&XPos { center, ..xpos.clone() }, 30 + shift, shift);
        assert!((got - want).abs() < 1e-5, "{got} at {shift} around {center}, {want} at 0");
    }
    assert!((score(&xpos, 0, 30) - want).abs() > 0.1);
}

#[test]
fn a_key_before_its_query_shrinks_and_one_after_it_grows() {
    let xpos = XPos::new(Rope::new(8, 1e4));
    for pair in 0..4 {
        let product = |m, n| xpos.scale(m, pair, Side::Query) * xpos.scale(n, pair, Side::Key);
        let zeta = xpos.zeta(pair);
        assert!((product(700, 188) - zeta).abs() < 1e-14);
        assert!((product(188, 700) - 1.0 / zeta).abs() < 1e-14);
        assert!((product(77, 77) - 1.0).abs() < 1e-15);
    }
}

#[test]
fn the_gradient_is_the_transposed_map() {
    // <g, X q> = <X' g, q> for every pair of vectors
    let xpos = XPos::new(Rope::new(8, 1e4));
    let heads = Heads::thd(1, 1, 8);
    let q = [0.9f32, -0.4, 1.1, 0.3, -0.8, 0.7, 0.5, -1.2];
    let g = [0.6f32, 1.0, -0.7, 0.8, 1.3, -0.5, 0.4, 0.9];
    for side in [Side::Query, Side::Key] {
        let (mut forward, mut back) = (q, g);
        xpos.rotate(&mut forward, &heads, &[300], side, Direction::Forward).unwrap();
        xpos.rotate(&mut back, &heads, &[300], side, Direction::Inverse).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        assert!((dot(&g, &forward) - dot(&back, &q)).abs() < 1e-6);
    }
}

#[test]
fn the_reach_is_where_the_fastest_pair_leaves_2_to_the_120() {
    for xpos in [
        XPos::new(Rope::new(8, 1e4)),
        XPos { gamma: 0.05, scale_base: 100.0, ..XPos::new(Rope::new(128, 1e4)) },
        XPos { scale_base: 1e6, center: -5, ..XPos::new(Rope::new(64, 1e4)) },
    ] {
        let reach = i64::try_from(xpos.reach()).unwrap();
        let factor = |distance: i64| xpos.scale(xpos.center + distance, 0, Side::Key).log2();
        assert!(factor(reach) <= 120.0 && factor(reach + 1) > 120.0, "{xpos:?}: {reach}");
        assert!((1..xpos.rope.pairs()).all(|pair| xpos.exponent(pair) > xpos.exponent(pair - 1)));
    }
}

/// The kernel's power of two, in the same operations.
fn exp2_fixed(e: i64) -> f32 {
    let n = (e + (1 << 55)) >> 56;
    let f = ((e - (n << 56)) >> 24) as i32 as f32 * 2f32.powi(-32);
    let g = [0.000_155_946_78f32, 0.001_340_664_3, 0.009_617_693, 0.055_503_104, 0.240_226_52, 0.693_147_24];
    let g = g[1..].iter().fold(g[0], |sum, &c| sum.mul_add(f, c));
    g.mul_add(f, 1.0) * 2f32.powi(n as i32)
}

#[test]
fn the_kernels_power_of_two_is_within_9_4e_8() {
    let mut worst = 0f64;
    for n in [-120i64, -7, 0, 119] {
        for step in 0..400_000i64 {
            let e = (n << 56) + step * ((1 << 56) / 400_000) + step;
            let true_power = (e as f64 / (1u64 << 56) as f64).exp2();
            worst = worst.max((f64::from(exp2_fixed(e)) / true_power - 1.0).abs());
        }
    }
    assert!(worst < 9.4e-8, "{worst:e}");
    assert_eq!((exp2_fixed(0), exp2_fixed(-3 << 56), exp2_fixed(120 << 56)), (1.0, 0.125, 2f32.powi(120)));
}

// ------------------------------------------------------------------------------------------- kernel against reference

/// Rotates queries and keys of every element of two tensors in one call, and compares both with the reference.
fn check<T: Scalar>(gpu: &Gpu, xpos: &XPos, q: Heads, k: Heads, copy: bool, shift: usize, data: &mut Data) {
    let plan = RopePlan::<T>::xpos(gpu, xpos).expect("a plan");
    let reach = i64::try_from(xpos.reach()).expect("small");
    // Factors of f16 from 2^-10 to 2^10, of the others from end to end.
    let span = if T::NAME == "f16" { reach / 12 } else { reach };
    let positions: Vec<i64> = (0..q.batch * q.tokens)
        .map(|_| {
            xpos.center + data.pick(&[0, 1, -1, span, -span, span / 2]) - data.below(7) as i64 * data.below(2) as i64
        })
        .map(|position| position.clamp(xpos.center - span, xpos.center + span))
        .collect();
    let ids = gpu.stream().clone_htod(&positions).expect("a copy");
    let direction = data.pick(&[Direction::Forward, Direction::Inverse]);
    let inputs = [q, k].map(|heads| data.values::<T>(heads.span().expect("small")));
    let mut x = [0, 1].map(|i| Guarded::new(gpu, &inputs[i], shift));
    let mut y = [0, 1].map(|i| Guarded::poisoned(gpu, inputs[i].len(), shift));
    {
        let [mut q_x, mut k_x] = x.each_mut().map(|x| x.view());
        let [mut q_y, mut k_y] = y.each_mut().map(|y| y.view());
        let (q, k): (Update<T, Heads>, Update<T, Heads>) = if copy {
            (q.of(&q_x).to(q.of_mut(&mut q_y)), k.of(&k_x).to(k.of_mut(&mut k_y)))
        } else {
            (q.of_mut(&mut q_x).into(), k.of_mut(&mut k_x).into())
        };
        plan.rotate(q, k, Rotation { direction, ..Rotation::at(Positions::ids(&ids)) }).expect("a call");
    }
    for (i, (heads, side)) in [(q, Side::Query), (k, Side::Key)].into_iter().enumerate() {
        let want = xpos.expect(&inputs[i], &heads, &positions, side, direction).expect("reference");
        if copy {
            // What no element of the tensor lies at stays poisoned.
            let got = y[i].read(gpu);
            let lies = |index: &usize| {
                (0..heads.batch).any(|b| {
                    (0..heads.tokens).any(|t| {
                        (0..heads.heads).any(|h| {
                            let first = heads.index(b, t, h, 0);
                            (first..first + heads.dim).contains(index)
                        })
                    })
                })
            };
            let at: Vec<usize> = (0..got.len()).filter(lies).collect();
            let got: Vec<T> = at.iter().map(|&j| got[j]).collect();
            let wanted: Vec<f64> = at.iter().map(|&j| want.want[j]).collect();
            assert_close(&got, &wanted, |j| want.bound[at[j]]);
        } else {
            assert_close(&x[i].read(gpu), &want.want, |j| want.bound[j]);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn queries_and_keys_are_scaled_apart_in_one_kernel() {
    let (gpu, mut data) = (gpu(), Data::new(71));
    let plain = XPos::new(Rope::new(16, 1e4));
    let interleaved = Rope { pairing: Pairing::Interleaved, offset: 4, attention_factor: 1.25, ..Rope::new(16, 1e4) };
    let cases = [
        (plain.clone(), Heads::thd(5, 3, 16), Heads::thd(5, 1, 16)),
        (XPos { center: 1_000_000, ..XPos::new(interleaved) }, Heads::thd(3, 2, 24), Heads::thd(3, 2, 24)),
        (XPos { scale_base: 64.0, ..XPos::new(Rope::new(12, 1e4)) }, Heads::thd(4, 5, 13), Heads::thd(4, 2, 13)),
        (XPos::new(Rope::new(64, 5e5)), Heads::bhtd(2, 4, 5, 64), Heads::bthd(2, 5, 1, 64).row(100).at(3)),
        (XPos::new(Rope::new(128, 1e4)), Heads::thd(200, 8, 128), Heads::thd(200, 2, 128)),
    ];
    for (xpos, q, k) in cases {
        for copy in [false, true] {
            if copy && q.tokens > 100 {
                continue;
            }
            for shift in [0, 1] {
                check::<f32>(&gpu, &xpos, q, k, copy, shift, &mut data);
                check::<f16>(&gpu, &xpos, q, k, copy, shift, &mut data);
                check::<bf16>(&gpu, &xpos, q, k, copy, shift, &mut data);
            }
        }
    }
    // Pairs that move: read interleaved, written in halves.
    let moved = Rope { pairing: Pairing::Interleaved, pairing_out: Some(Pairing::Half), ..Rope::new(16, 1e4) };
    check::<f32>(&gpu, &XPos::new(moved), Heads::thd(3, 2, 16), Heads::thd(3, 1, 16), true, 0, &mut data);
    // A thread walks queries and keys.
    let tokens = crate::rope::tokens_with_uneven_walks(&gpu);
    let (q, k) = (Heads::thd(tokens, 5, 256), Heads::thd(tokens, 2, 256));
    check::<f16>(&gpu, &XPos::new(Rope::new(256, 1e4)), q, k, false, 1, &mut data);
}

/// Cosine, sine and factor of every pair, in the same f32 operations: phase, polynomial, power of two, product.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn scaled_cosines_are_equal_bit_for_bit() {
    let gpu = gpu();
    let xpos = XPos { center: 100, ..XPos::new(Rope::new(64, 1e4)) };
    let plan = RopePlan::<f32>::xpos(&gpu, &xpos).expect("a plan");
    let positions: Vec<i64> = (0..40).map(|i| 100 + (i - 20) * 1699).collect();
    let heads = Heads::thd(positions.len(), 1, 64);
    let one_zero: Vec<f32> = (0..40 * 64).map(|i| f32::from(i % 64 < 32)).collect();
    let stream = gpu.stream();
    let (mut q, mut k) = (stream.clone_htod(&one_zero).expect("a copy"), stream.clone_htod(&one_zero).expect("a copy"));
    let ids = stream.clone_htod(&positions).expect("a copy");
    let (q_operand, k_operand) = (heads.of_mut(&mut q), heads.of_mut(&mut k));
    plan.rotate(q_operand, k_operand, Positions::ids(&ids)).expect("a call");
    let (q, k) = (stream.clone_dtoh(&q).expect("a copy"), stream.clone_dtoh(&k).expect("a copy"));
    for (t, &position) in positions.iter().enumerate() {
        for pair in 0..32 {
            let (sin, cos) = sincos_phase(xpos.rope.rate(pair).wrapping_mul(position as u64));
            let exponent = (position - 100) * xpos.exponent(pair);
            for (got, scale) in [(&q, exp2_fixed(exponent)), (&k, exp2_fixed(-exponent))] {
                let got = (got[t * 64 + pair].to_bits(), got[t * 64 + 32 + pair].to_bits());
                assert_eq!(got, ((cos * scale).to_bits(), (sin * scale).to_bits()), "{position}, pair {pair}");
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn keys_alone_and_packed_ones_are_the_same() {
    let (gpu, mut data) = (gpu(), Data::new(72));
    let xpos = XPos { center: 2000, ..XPos::new(Rope::new(32, 1e4)) };
    let plan = RopePlan::<bf16>::xpos(&gpu, &xpos).expect("a plan");
    let (tokens, hq, hk, dim) = (6, 3, 1, 32);
    let row = (hq + 2 * hk) * dim;
    let (q, k) = (Heads::thd(tokens, hq, dim).row(row), Heads::thd(tokens, hk, dim).row(row).at(hq * dim));
    let x = data.values::<bf16>(tokens * row);
    let starts = gpu.stream().clone_htod(&[300i32]).expect("a copy");
    let mut packed = Guarded::new(&gpu, &x, 0);
    plan.rotate(q.of_mut(&mut packed.view()), k, Positions::starts(&starts)).expect("a call");
    let mut apart = Guarded::new(&gpu, &x, 0);
    {
        let mut view = apart.view();
        plan.rotate(q.of_mut(&mut view), None, Positions::starts(&starts)).expect("a call");
    }
    {
        let mut view = apart.view();
        plan.rotate(
            k.of_mut(&mut view),
            None,
            Rotation { xpos: Some(Side::Key), ..Rotation::at(Positions::starts(&starts)) },
        )
        .expect("a call");
    }
    assert_eq!(packed.read(&gpu), apart.read(&gpu));
    let positions: Vec<i64> = (300..306).collect();
    let want = xpos.expect(&x, &k, &positions, Side::Key, Direction::Forward).expect("reference");
    let got = packed.read(&gpu);
    let at: Vec<usize> = (0..x.len()).filter(|&i| want.bound[i] > 0.0).collect();
    let got: Vec<_> = at.iter().map(|&i| got[i]).collect();
    let wanted: Vec<f64> = at.iter().map(|&i| want.want[i]).collect();
    assert_close(&got, &wanted, |i| want.bound[at[i]]);
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, (tokens * hk * dim * 2) as u64);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_token_out_of_reach_is_nan() {
    let gpu = gpu();
    let xpos = XPos::new(Rope::new(8, 1e4));
    let reach = i64::try_from(xpos.reach()).expect("small");
    let plan = RopePlan::<f32>::xpos(&gpu, &xpos).expect("a plan");
    let positions = [reach, reach + 1, -reach, -reach - 1, i64::MAX, i64::MIN, 0];
    let heads = Heads::thd(positions.len(), 1, 10);
    let ids = gpu.stream().clone_htod(&positions).expect("a copy");
    let mut x = gpu.stream().clone_htod(&[1.5f32; 70]).expect("a copy");
    plan.rotate(heads.of_mut(&mut x), None, Rotation { xpos: Some(Side::Key), ..Rotation::at(Positions::ids(&ids)) })
        .expect("a call");
    let x = gpu.stream().clone_dtoh(&x).expect("a copy");
    for (token, row) in x.chunks_exact(10).enumerate() {
        let out = [1, 3, 4, 5].contains(&token);
        assert!(row[..8].iter().all(|x| x.is_nan() == out), "token {token}: {row:?}");
        // Channels beside the rotary part are not touched.
        assert_eq!(row[8..], [1.5, 1.5]);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn each_element_is_read_once_and_written_once() {
    let gpu = gpu();
    if crate::support::emulator().is_none() {
        return;
    }
    let xpos = XPos::new(Rope::new(64, 1e4));
    let plan = RopePlan::<bf16>::xpos(&gpu, &xpos).expect("a plan");
    let (q, k) = (Heads::thd(32, 8, 128), Heads::thd(32, 2, 128));
    let alloc =
        |heads: &Heads| gpu.stream().clone_htod(&vec![bf16::ONE; heads.span().expect("small")]).expect("a copy");
    let (mut q_x, mut k_x) = (alloc(&q), alloc(&k));
    let (q, k) = (q.of_mut(&mut q_x), k.of_mut(&mut k_x));
    plan.rotate(q, k, Positions::counted()).expect("a call");
    let report = last_launch().expect("the emulator counts");
    let tensor = 32 * 10 * 64 * 2;
    assert_eq!(report.counters.bytes_written, tensor);
    // Beside the tensors: a rate and an exponent for each pair, once for each side of a walk over heads.
    let tables = report.counters.bytes_read - tensor;
    let walks = 32 * u64::from(report.grid[1] * report.block[2]);
    assert!(tables <= 2 * walks * 32 * 16 && tables >= walks * 32 * 16, "{tables} bytes in {walks} walks: {report:?}");
    assert_eq!(report.counters.local_bytes_read, 0);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn parameters_outside_the_law_are_refused() {
    let xpos = XPos::new(Rope::new(8, 1e4));
    let with = |rope: Rope| XPos { rope, ..xpos.clone() };
    for (xpos, message) in [
        (XPos { gamma: 0.0, ..xpos.clone() }, "xPos's gamma is 0, it must be finite and above 0"),
        (XPos { scale_base: -1.0, ..xpos.clone() }, "xPos's scale_base is -1, it must be finite and above 0"),
        (
            XPos { scale_base: 0.01, ..xpos.clone() },
            "xPos's scale_base is 0.01, beside the center no position has a factor between 2^-120 and 2^120",
        ),
        (XPos { center: 1 << 32, ..xpos.clone() }, "xPos's center is 4294967296, it must lie within 2^31 of 0"),
        (with(Rope::new(7, 1e4)), "rotary is 7, it must be even and at least 2"),
        (
            with(Rope { axes: Axes::Sections(vec![2, 2]), ..Rope::new(8, 1e4) }),
            "the rope has 2 axes of position, xPos has one",
        ),
        (
            with(Rope { angles: Angles::HfCompat, ..Rope::new(8, 1e4) }),
            "the rope's angles are products in f32, xPos has exact ones alone",
        ),
    ] {
        assert_eq!(xpos.check().unwrap_err().to_string(), message);
    }
    let mut x = [0.5f32; 8];
    let mut refused = |positions: &[i64]| {
        let error = xpos.rotate(&mut x, &Heads::thd(1, 1, 8), positions, Side::Query, Direction::Forward).unwrap_err();
        assert_eq!(x, [0.5; 8]);
        error.to_string()
    };
    assert_eq!(refused(&[]), "positions holds 0 elements, the shape needs 1");
    assert_eq!(refused(&[33_995]), "position 33995 is 33995 from xPos's center 0, factors stay in range up to 33994");
    assert_eq!(
        refused(&[i64::MIN]),
        "position -9223372036854775808 is 9223372036854775808 from xPos's center 0, factors stay in range up to 33994"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_that_do_not_fit_are_refused() {
    let gpu = gpu();
    let plan = RopePlan::<f32>::xpos(&gpu, &XPos::new(Rope::new(8, 1e4))).expect("a plan");
    let mut x = Guarded::new(&gpu, &[poison::<f32>(); 16], 0);
    let mut view = x.view();
    let keys = Heads::thd(3, 1, 8).of_mut(&mut view);
    let error = plan
        .rotate(keys, None, Rotation { xpos: Some(Side::Key), ..Rotation::at(Positions::counted()) })
        .expect_err("too short");
    assert_eq!(error.to_string(), "k holds 16 elements, the shape needs 24");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn options_that_do_not_go_with_xpos_are_refused() {
    let gpu = gpu();
    let heads = Heads::thd(2, 1, 8);
    let mut x = gpu.stream().clone_htod(&[1f32; 16]).expect("a copy");
    let mut y = gpu.stream().clone_htod(&[1f32; 16]).expect("a copy");
    let cache = gpu.stream().clone_htod(&[1f32; 16]).expect("a copy");
    let xpos = RopePlan::<f32>::xpos(&gpu, &XPos::new(Rope::new(8, 1e4))).expect("a plan");
    let plain = RopePlan::<f32>::new(&gpu, &Rope::new(8, 1e4)).expect("a plan");
    fn keys<'a>() -> Rotation<'a, f32> {
        Rotation { xpos: Some(Side::Key), ..Rotation::at(Positions::counted()) }
    }
    let error = plain.rotate(heads.of_mut(&mut x), None, keys()).expect_err("no xPos");
    assert_eq!(error.to_string(), "the rotation is of xPos's Key, the plan is not made of an XPos");
    let error = xpos.rotate(heads.of_mut(&mut x), heads.of_mut(&mut y), keys()).expect_err("keys twice");
    assert_eq!(error.to_string(), "the first tensor is keys, there are no others beside it");
    let values = TableValues::F32 { cos: &cache, sin: None };
    let table = Some(Table { values, rows: 2, stride: 8, out_of_range: OutOfRange::Clamp });
    let by_table = Rotation { table, ..Rotation::at(Positions::counted()) };
    let error = xpos.rotate(heads.of_mut(&mut x), None, by_table).expect_err("a table");
    assert_eq!(error.to_string(), "the rotation has a table, which xPos's factors do not go with");
    let moved = heads.of(&cache).to(heads.of_mut(&mut y));
    let error = plain.rotate(moved, heads.at(0), Positions::counted()).expect_err("beside a copy");
    assert_eq!(error.to_string(), "k lies in the buffer of q, which then is rotated in place");
}
