//! The table of docs/rotate.md: how far each source of angles is from the truth.

use astro_float::{BigFloat, Consts, RoundingMode};
use half::{bf16, f16};
use posenc::Rope;
use posenc::rotate::Angles;

use super::rope::sincos_phase;

const BITS: usize = 256;
const NEAREST: RoundingMode = RoundingMode::ToEven;

/// Turns per position of a pair in units of 2^-128, from 256-bit arithmetic: what a phase at 2^31 is off by is 2^-97 turns.
fn true_rate(base: f64, rotary: usize, pair: usize, consts: &mut Consts) -> u128 {
    let big = |x: f64| BigFloat::from_f64(x, BITS);
    let exponent = big(-2.0 * pair as f64).div(&big(rotary as f64), BITS, NEAREST);
    let frequency = big(base).pow(&exponent, BITS, NEAREST, consts);
    let tau = consts.pi(BITS, NEAREST).mul(&big(2.0), BITS, NEAREST);
    let mut turns = frequency.div(&tau, BITS, NEAREST);
    let digit = big(65536.0);
    // 8 digits of 16 bits, each exact in f64
    let mut rate = 0u128;
    for _ in 0..8 {
        turns = turns.fract().mul(&digit, BITS, NEAREST);
        let whole: f64 = turns.floor().to_string().parse().expect("a decimal number");
        rate = rate << 16 | whole as u128;
    }
    rate
}

fn true_angle(rate: u128, position: i64) -> f64 {
    let phase = rate.wrapping_mul(position as u128) as i128;
    phase as f64 * (std::f64::consts::TAU / 2f64.powi(128))
}

/// The truth used here against the cosine of a 256-bit angle.
#[test]
fn the_truth_is_true() {
    let mut consts = Consts::new().expect("constants");
    for (pair, position) in [(0, 2147483647), (1, 131071), (31, 10_000_000), (63, 2147483647)] {
        let rate = true_rate(5e5, 128, pair, &mut consts);
        let exponent = BigFloat::from_f64(2.0 * pair as f64 / 128.0, BITS);
        let wavelength = BigFloat::from_f64(5e5, BITS).pow(&exponent, BITS, NEAREST, &mut consts);
        let angle = BigFloat::from_i64(position, BITS).div(&wavelength, BITS, NEAREST);
        let want: f64 = angle.cos(BITS, NEAREST, &mut consts).to_string().parse().expect("a decimal number");
        assert!((true_angle(rate, position).cos() - want).abs() < 1e-15, "pair {pair} at {position}");
    }
}

const POSITIONS: [i64; 6] = [4096, 32768, 131072, 1 << 20, 10_000_000, 2147483647];
const BASES: [f64; 3] = [1e4, 5e5, 1e6];

const SOURCES: [&str; 6] = [
    "exact: the phase",
    "exact: the kernel's cos and sin",
    "`HfCompat`",
    "a true table in f32",
    "a true table in f16",
    "a true table in bf16",
];

/// Cosine and sine from each source; `angle` is the true one.
fn sources(rate: u64, compat: f32, position: i64, angle: f64) -> [(f64, f64); SOURCES.len()] {
    let (sin, cos) = angle.sin_cos();
    let phase = rate.wrapping_mul(position as u64);
    let (exact_sin, exact_cos) = (phase as i64 as f64 * (std::f64::consts::TAU / 2f64.powi(64))).sin_cos();
    let (kernel_sin, kernel_cos) = sincos_phase(phase);
    // The nearest cosine and sine of the rounded f32 product.
    let (compat_sin, compat_cos) = f64::from(compat * position as f32).sin_cos();
    let f32_of = |x: f64| f64::from(x as f32);
    [
        (exact_cos, exact_sin),
        (f64::from(kernel_cos), f64::from(kernel_sin)),
        (f32_of(compat_cos), f32_of(compat_sin)),
        (f32_of(cos), f32_of(sin)),
        (f16::from_f64(cos).to_f64(), f16::from_f64(sin).to_f64()),
        (bf16::from_f64(cos).to_f64(), bf16::from_f64(sin).to_f64()),
    ]
}

/// Recomputes the table, the largest error over 128 channels and the 2048 positions up to each of `POSITIONS`, and compares it
/// with the page row by row.
#[test]
fn the_page_has_the_errors_of_each_source() {
    let mut consts = Consts::new().expect("constants");
    let mut worst = [[0f64; POSITIONS.len()]; SOURCES.len()];
    for base in BASES {
        let rope = Rope::new(128, base);
        for pair in 0..64 {
            let rate = true_rate(base, 128, pair, &mut consts);
            let (exact, compat) = (rope.rate(pair), rope.compat_frequency(pair));
            for (column, last) in POSITIONS.into_iter().enumerate() {
                for position in last - 2047..=last {
                    let angle = true_angle(rate, position);
                    let (sin, cos) = angle.sin_cos();
                    for (worst, (got_cos, got_sin)) in worst.iter_mut().zip(sources(exact, compat, position, angle)) {
                        worst[column] = worst[column].max((got_cos - cos).abs()).max((got_sin - sin).abs());
                    }
                }
            }
        }
    }
    // The documented bound of the kernel's cosine and sine.
    assert!(worst[1].iter().all(|&error| error <= 1e-7), "{:?}", worst[1]);
    let page = include_str!("../../docs/rotate.md");
    let rows = SOURCES.iter().zip(worst).map(|(name, row)| {
        let numbers: Vec<_> = row.iter().map(|error| format!("{error:.1e}")).collect();
        format!("| {name} | {} |", numbers.join(" | "))
    });
    let missing: Vec<_> = rows.filter(|row| !page.contains(row)).collect();
    assert!(missing.is_empty(), "docs/rotate.md lacks\n{}", missing.join("\n"));
}

/// Compat is what it is called: the source differs from the exact one by what the page says, and only in the angle.
#[test]
fn compat_is_a_source_of_angles() {
    let rope = Rope { angles: Angles::HfCompat, ..Rope::new(128, 1e4) };
    assert!((rope.angle(131071, 1) - Rope::new(128, 1e4).angle(131071, 1)).sin().abs() > 1e-4);
}
