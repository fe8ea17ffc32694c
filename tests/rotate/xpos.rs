//! xPos: the paper's and x-transformers' numbers, laws, refusals.

use posenc::rotate::{Side, XPos};
use posenc::{Direction, Heads, Rope};

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

// ---------------------------------------------------------------------------------------------------------------- laws

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
    for (shift, center) in [(1, 0), (1000, 0), (-500, 0), (1000, 900), (1_000_000, 1_000_000)] {
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

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn parameters_outside_the_law_are_refused() {
    let xpos = XPos::new(Rope::new(8, 1e4));
    for (xpos, message) in [
        (XPos { gamma: 0.0, ..xpos.clone() }, "xPos's gamma is 0, it must be finite and above 0"),
        (XPos { scale_base: -1.0, ..xpos.clone() }, "xPos's scale_base is -1, it must be finite and above 0"),
        (XPos::new(Rope::new(7, 1e4)), "rotary is 7, it must be even and at least 2"),
    ] {
        assert_eq!(xpos.check().unwrap_err().to_string(), message);
    }
    let mut x = [0f32; 8];
    let error = xpos.rotate(&mut x, &Heads::thd(1, 1, 8), &[], Side::Query, Direction::Forward).unwrap_err();
    assert_eq!(error.to_string(), "positions holds 0 elements, the shape needs 1");
}
