use posenc::bias::{DistanceGrad, Kerple, KerpleKind};

use crate::biases::Numbers;

fn spec(kind: KerpleKind) -> Kerple {
    Kerple { kind, p: vec![0.3, 1.1, 1.9], a: vec![0.2, 0.9, 0.05] }
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn values_are_those_of_the_formula() {
    // arXiv 2205.09921, equations 6 and 7, by hand: -0.5 * ln(1 + 2 * 4) and -2 * 4^0.5.
    let one = |kind| Kerple { kind, p: vec![0.5], a: vec![2.0] };
    assert_eq!(one(KerpleKind::Log).bias(0, -4), -0.5 * 9f64.ln());
    assert_eq!(one(KerpleKind::Power).bias(0, 4), -4.0);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn zero_at_the_query_and_falling_on_both_sides() {
    for kind in [KerpleKind::Log, KerpleKind::Power] {
        let spec = spec(kind);
        let row = spec.row(-3000..=3000).unwrap();
        for head in 0..3 {
            assert_eq!(spec.bias(head, 0), 0.0);
            for distance in 0..3000 {
                assert!(spec.bias(head, distance + 1) < spec.bias(head, distance));
                assert_eq!(spec.bias(head, -distance), spec.bias(head, distance));
                assert_eq!(row.bias(head, -distance), f64::from(spec.bias(head, distance) as f32));
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let values: Vec<f64> = Numbers(1).take::<f32>(3 * 21, 1.0).iter().map(|&x| f64::from(x)).collect();
    let grad = DistanceGrad { heads: 3, first: -12, values };
    for kind in [KerpleKind::Log, KerpleKind::Power] {
        let spec = spec(kind);
        let got = spec.grad(&grad).unwrap();
        let loss = |spec: &Kerple, head: usize| {
            grad.of(head).map(|(distance, value)| value * spec.bias(head, distance)).sum::<f64>()
        };
        for head in 0..3 {
            let step = 1e-6;
            let (mut up, mut down) = (spec.clone(), spec.clone());
            up.p[head] += step;
            down.p[head] -= step;
            let want = (loss(&up, head) - loss(&down, head)) / (2.0 * step);
            assert!((got.p[head] - want).abs() < 1e-6 * (1.0 + want.abs()), "{} {want}", got.p[head]);
            let (mut up, mut down) = (spec.clone(), spec.clone());
            up.a[head] += step;
            down.a[head] -= step;
            let want = (loss(&up, head) - loss(&down, head)) / (2.0 * step);
            assert!((got.a[head] - want).abs() < 1e-6 * (1.0 + want.abs()), "{} {want}", got.a[head]);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |spec: Kerple| spec.check().unwrap_err().to_string();
    let with = |p: f64, a: f64| Kerple { kind: KerpleKind::Power, p: vec![1.0, p], a: vec![1.0, a] };
    assert_eq!(text(with(0.0, 1.0)), "p of head 1 is 0, it must be finite and above 0");
    assert_eq!(text(with(1.0, f64::NAN)), "a of head 1 is NaN, it must be finite and above 0");
    assert_eq!(text(with(2.5, 1.0)), "p of head 1 is 2.5, a power is at most 2");
    assert_eq!(
        text(Kerple { kind: KerpleKind::Log, p: vec![], a: vec![] }),
        "KERPLE has 0 p and 0 a, there must be one of both for each of at least 1 head"
    );
    let error = spec(KerpleKind::Log).grad(&DistanceGrad { heads: 2, first: 0, values: vec![0.0; 2] }).unwrap_err();
    assert_eq!(error.to_string(), "the gradient has 2 heads, KERPLE has 3");
}
