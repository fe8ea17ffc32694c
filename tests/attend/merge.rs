//! Attention outputs put together by their log-sum-exps.

use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::attend::{HostInputs, MergeGrad, MergePlan, State, merge_expect, merge_grad_expect, merge_states};
use posenc::bias::Numbers;
use posenc::{Gpu, Heads, Logits, Places, Scalar, Softmax};

use crate::support::{Data, Guarded, gpu};

const NONE: f32 = f32::NEG_INFINITY;

// ---------------------------------------------------------------------------------------------------------------- laws

/// Softmaxes over the halves of a row's keys, put together, are the softmax over all of them.
#[test]
fn two_halves_are_the_whole() {
    let (mut data, keys, dim) = (Data::new(1), 10, 4);
    let logits = data.values::<f32>(keys);
    let values = data.values::<f32>(keys * dim);
    let attended = |keys: std::ops::Range<usize>| {
        let mut p = logits[keys.clone()].to_vec();
        let shape = Logits::bhqk(1, 1, 1, p.len());
        let lse = Softmax::new(1.0).apply(&mut p, &shape, &HostInputs::at(Places::bottom_right())).unwrap();
        let sum = |c: usize| p.iter().zip(keys.clone()).map(|(p, key)| p * values[key * dim + c]).sum::<f32>();
        ((0..dim).map(sum).collect::<Vec<_>>(), lse)
    };
    let (heads, rows) = (Heads::thd(1, 1, dim), Numbers::rows(1, 1, 1, 1));
    let (whole, lse) = attended(0..keys);
    for cut in [1, 4, 9] {
        let (a, b) = (attended(0..cut), attended(cut..keys));
        let mut out = vec![0f32; dim];
        let got = merge_states(
            State { out: (&a.0[..], heads), lse: (&a.1[..], rows) },
            State { out: (&b.0[..], heads), lse: (&b.1[..], rows) },
            &mut out,
            &heads,
        )
        .unwrap();
        assert!((got[0] - lse[0]).abs() < 1e-6, "{cut}: {} {}", got[0], lse[0]);
        for (got, want) in out.iter().zip(&whole) {
            assert!((got - want).abs() < 1e-6, "{cut}: {got} {want}");
        }
    }
}

/// The gradient by differences, in f64.
#[test]
fn gradients_are_differences() {
    let (mut data, dim) = (Data::new(2), 3);
    let (heads, rows) = (Heads::thd(1, 1, dim), Numbers::rows(1, 1, 1, 1));
    let (a, b, grad) = (data.values::<f32>(dim), data.values::<f32>(dim), data.values::<f32>(dim));
    let (lse, lse_grad) = ([0.75f32, -0.5], 1.5f32);
    let score = |a: &[f32], b: &[f32], lse: [f32; 2]| {
        let got = merge_expect(
            State { out: (a, heads), lse: (&lse[..1], rows) },
            State { out: (b, heads), lse: (&lse[1..], rows) },
        )
        .unwrap();
        let out: f64 = got.out.want.iter().zip(&grad).map(|(x, &g)| x * f64::from(g)).sum();
        out + got.lse.want[0] * f64::from(lse_grad)
    };
    let got = merge_grad_expect(
        State { out: (&a[..], heads), lse: (&lse[..1], rows) },
        State { out: (&b[..], heads), lse: (&lse[1..], rows) },
        (&grad, heads),
        Some(&[lse_grad]),
    )
    .unwrap();
    let step = 1.0 / 1024.0;
    for part in 0..2 {
        for channel in 0..dim {
            let moved = |step: f32| {
                let mut parts = [a.clone(), b.clone()];
                parts[part][channel] += step;
                score(&parts[0], &parts[1], lse)
            };
            let want = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((got.out[part].want[channel] - want).abs() < 1e-6);
        }
        let moved = |step: f32| {
            let mut lse = lse;
            lse[part] += step;
            score(&a, &b, lse)
        };
        let want = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        assert!((got.lse[part].want[0] - want).abs() < 1e-5, "{} {want}", got.lse[part].want[0]);
    }
}

// ------------------------------------------------------------------------------------------------------------- refusals

#[test]
fn states_that_do_not_go_together_are_refused() {
    let (heads, rows) = (Heads::thd(2, 3, 4), Numbers::rows(1, 3, 2, 1));
    let (x, lse) = ([0f32; 24], [0f32; 6]);
    let refused = |b_heads: Heads, b_rows: Numbers, x: &[f32]| {
        let a = State { out: (&[0f32; 24][..], heads), lse: (&lse[..], rows) };
        let b = State { out: (x, b_heads), lse: (&lse[..], b_rows) };
        merge_states(a, b, &mut [0f32; 24], &heads).unwrap_err().to_string()
    };
    let sizes = "a has the sizes [1, 2, 3, 4] and b [1, 2, 3, 2] (batch, tokens, heads, dim), they must be equal";
    assert_eq!(refused(Heads::thd(2, 3, 2), rows, &x), sizes);
    assert_eq!(refused(heads, Numbers::rows(1, 2, 3, 1), &x), "b_lse is [1, 2, 3, 1], it must be [1, 3, 2, 1]");
    assert_eq!(refused(heads, rows, &x[1..]), "b holds 23 elements, the shape needs 24");
}

// ------------------------------------------------------------------------------------------- kernel against reference

/// Log-sum-exps near and far from one another, without keys, NaN, infinite.
fn lses(n: usize, data: &mut Data) -> [Vec<f32>; 2] {
    let pairs = [
        (0.5, -0.25),
        (-3.0, 80.0),
        (100.0, 12.5),
        (NONE, 2.0),
        (-7.0, NONE),
        (NONE, NONE),
        (1e30, -1e30),
        (87.0, 0.0),
        (f32::NAN, 1.0),
        (f32::INFINITY, 0.0),
        (-1e5, -1e5),
    ];
    let own = |i: usize, data: &mut Data| {
        if i < pairs.len() { pairs[i] } else { (8.0 * data.value() as f32, 8.0 * data.value() as f32) }
    };
    let all: Vec<_> = (0..n).map(|i| own(i, data)).collect();
    [all.iter().map(|pair| pair.0).collect(), all.iter().map(|pair| pair.1).collect()]
}

#[derive(Clone, Copy)]
struct Shape {
    heads: Heads,
    rows: Numbers,
}

/// Both results of one call, in place or not.
fn merged<T: Scalar>(
    gpu: &Gpu,
    shape: Shape,
    x: &[Vec<T>; 2],
    lse: &[Vec<f32>; 2],
    shift: usize,
    in_place: bool,
) -> (Vec<T>, Vec<f32>) {
    let plan = MergePlan::<T>::new(gpu).unwrap();
    let Shape { heads, rows } = shape;
    let [mut a, mut b] = [0, 1].map(|i| Guarded::new(gpu, &x[i], shift));
    let [mut a_lse, mut b_lse] = [0, 1].map(|i| Guarded::new(gpu, &lse[i], 0));
    let mut out = Guarded::<T>::poisoned(gpu, x[0].len(), shift);
    let mut out_lse = Guarded::<f32>::poisoned(gpu, lse[0].len(), 0);
    let (b_view, b_lse_view) = (b.view(), b_lse.view());
    let other = State { out: heads.of(&b_view), lse: rows.of(&b_lse_view) };
    if in_place {
        plan.merge(
            State { out: heads.of_mut(&mut a.view()).into(), lse: rows.of_mut(&mut a_lse.view()).into() },
            other,
        )
        .unwrap();
        return (a.read(gpu), a_lse.read(gpu));
    }
    {
        let (a, a_lse, mut out, mut out_lse) = (a.view(), a_lse.view(), out.view(), out_lse.view());
        let state =
            State { out: heads.of(&a).to(heads.of_mut(&mut out)), lse: rows.of(&a_lse).to(rows.of_mut(&mut out_lse)) };
        plan.merge(state, other).unwrap();
    }
    (out.read(gpu), out_lse.read(gpu))
}

/// Four results of one gradient.
fn gradients<T: Scalar>(
    gpu: &Gpu,
    shape: Shape,
    x: &[Vec<T>; 2],
    lse: &[Vec<f32>; 2],
    grad: &[T],
    lse_grad: Option<&[f32]>,
    shift: usize,
) -> ([Vec<T>; 2], [Vec<f32>; 2]) {
    let plan = MergePlan::<T>::new(gpu).unwrap();
    let Shape { heads, rows } = shape;
    let [mut a, mut b] = [0, 1].map(|i| Guarded::new(gpu, &x[i], shift));
    let [mut a_lse, mut b_lse] = [0, 1].map(|i| Guarded::new(gpu, &lse[i], 0));
    let mut grad = Guarded::new(gpu, grad, shift);
    let mut lse_grad = lse_grad.map(|grad| Guarded::new(gpu, grad, 0));
    let mut grads = [0, 1].map(|_| Guarded::<T>::poisoned(gpu, x[0].len(), shift));
    let mut lse_grads = [0, 1].map(|_| Guarded::<f32>::poisoned(gpu, lse[0].len(), 0));
    {
        let (a, b, a_lse, b_lse, grad) = (a.view(), b.view(), a_lse.view(), b_lse.view(), grad.view());
        let lse_grad = lse_grad.as_mut().map(Guarded::view);
        let [mut a_grad, mut b_grad] = grads.each_mut().map(|grad| grad.view());
        let [mut a_lse_grad, mut b_lse_grad] = lse_grads.each_mut().map(|grad| grad.view());
        plan.grad(
            State { out: heads.of(&a), lse: rows.of(&a_lse) },
            State { out: heads.of(&b), lse: rows.of(&b_lse) },
            heads.of(&grad),
            lse_grad.as_ref().map(|grad| rows.of(grad)),
            MergeGrad {
                a: State { out: heads.of_mut(&mut a_grad), lse: rows.of_mut(&mut a_lse_grad) },
                b: State { out: heads.of_mut(&mut b_grad), lse: rows.of_mut(&mut b_lse_grad) },
            },
        )
        .unwrap();
    }
    (grads.map(|grad| grad.read(gpu)), lse_grads.map(|grad| grad.read(gpu)))
}

/// NaN where it is wanted, else within the bound.
#[track_caller]
fn assert_near<T: Scalar>(got: &[T], want: &[f64], bound: &[f64]) {
    let settled: Vec<f64> = got
        .iter()
        .zip(want)
        .map(|(got, want)| {
            assert_eq!(got.to_f64().is_nan(), want.is_nan());
            if want.is_finite() { *want } else { 0.0 }
        })
        .collect();
    let got: Vec<T> = got
        .iter()
        .zip(want)
        .map(|(got, want)| {
            if want.is_infinite() {
                assert_eq!(got.to_f64(), *want);
            }
            if want.is_finite() { *got } else { T::from_f64(0.0) }
        })
        .collect();
    assert_close(&got, &settled, |i| bound[i]);
}

fn check<T: Scalar>(gpu: &Gpu, heads: Heads, rows: Numbers, data: &mut Data) {
    let shape = Shape { heads, rows };
    let n = heads.span().unwrap();
    let count = heads.batch * heads.heads * heads.tokens;
    let x = [data.values::<T>(n), data.values::<T>(n)];
    let lse = lses(count, data);
    let host = |i: usize| State { out: (&x[i][..], heads), lse: (&lse[i][..], rows) };
    let expected = merge_expect(host(0), host(1)).unwrap();
    // Log-sum-exps of the reference are [batch, heads, tokens]; those of the buffer have strides.
    let places: Vec<usize> = (0..count)
        .map(|i| rows.index(i / (heads.heads * heads.tokens), i / heads.tokens % heads.heads, i % heads.tokens, 0))
        .collect();
    let (out, out_lse) = merged(gpu, shape, &x, &lse, 0, false);
    assert_near(&out, &expected.out.want, &expected.out.bound);
    let ordered = |of: &[f32]| places.iter().map(|&at| of[at]).collect::<Vec<_>>();
    assert_near(&ordered(&out_lse), &expected.lse.want, &expected.lse.bound);
    let bits = |x: &[T]| bytemuck::cast_slice::<T, u8>(x).to_vec();
    let (same, same_lse) = merged(gpu, shape, &x, &lse, 0, true);
    assert_eq!(bits(&same), bits(&out));
    assert!(same_lse.iter().zip(&out_lse).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert_eq!(bits(&merged(gpu, shape, &x, &lse, 1, false).0), bits(&out));
    // The CPU's own.
    let mut own = x[0].clone();
    let own_lse = merge_states(host(0), host(1), &mut own, &heads).unwrap();
    let half = |want: &[f64]| {
        want.iter().map(|want| posenc::accuracy::rounded::<T>(*want, want.abs() * 1e-15)).collect::<Vec<_>>()
    };
    assert_near(&own, &expected.out.want, &half(&expected.out.want));
    assert_near(&own_lse, &expected.lse.want, &expected.lse.bound);

    let grad = data.values::<T>(n);
    let lse_grad = data.values::<f32>(count);
    for given in [true, false] {
        let want = merge_grad_expect(host(0), host(1), (&grad, heads), given.then_some(&lse_grad[..])).unwrap();
        let mut strided = vec![0f32; lse[0].len()];
        places.iter().zip(&lse_grad).for_each(|(&at, &grad)| strided[at] = grad);
        let run = |shift| gradients(gpu, shape, &x, &lse, &grad, given.then_some(&strided[..]), shift);
        let (grads, lse_grads) = run(0);
        for i in 0..2 {
            assert_near(&grads[i], &want.out[i].want, &want.out[i].bound);
            assert_near(&ordered(&lse_grads[i]), &want.lse[i].want, &want.lse[i].bound);
        }
        let (other, other_lse) = run(1);
        for i in 0..2 {
            assert_eq!(bits(&other[i]), bits(&grads[i]));
            assert!(other_lse[i].iter().zip(&lse_grads[i]).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn merges_on_the_device_are_the_reference_and_keep_their_bits() {
    let (gpu, mut data) = (gpu(), Data::new(3));
    for (batch, tokens, heads, dim) in [(1, 1, 1, 2), (1, 3, 5, 8), (2, 7, 3, 40), (1, 5, 4, 128), (2, 3, 2, 576)] {
        // Log-sum-exps by head, and by token as FlashInfer has them.
        let by_head = Numbers::rows(batch, heads, tokens, 1);
        let by_token = Numbers { strides: [tokens * heads, 1, heads, 1], ..by_head };
        for (shape, rows) in
            [(Heads::bthd(batch, tokens, heads, dim), by_head), (Heads::bhtd(batch, heads, tokens, dim), by_token)]
        {
            check::<f32>(&gpu, shape, rows, &mut data);
            check::<f16>(&gpu, shape, rows, &mut data);
            check::<bf16>(&gpu, shape, rows, &mut data);
        }
    }
}

/// What a part without keys left in its output is not looked at.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_part_without_keys_changes_no_bit() {
    let (gpu, mut data) = (gpu(), Data::new(4));
    let shape = Shape { heads: Heads::thd(3, 2, 16), rows: Numbers::rows(1, 2, 3, 1) };
    let (x, nan) = (data.values::<bf16>(96), vec![bf16::NAN; 96]);
    let (lse, none) = (data.values::<f32>(6), vec![NONE; 6]);
    let (out, out_lse) = merged(&gpu, shape, &[x.clone(), nan.clone()], &[lse.clone(), none.clone()], 0, true);
    assert_eq!((out, out_lse), (x.clone(), lse.clone()));
    let (out, out_lse) = merged(&gpu, shape, &[nan.clone(), x.clone()], &[none.clone(), lse.clone()], 0, false);
    assert_eq!((out, out_lse), (x.clone(), lse.clone()));
    let (out, out_lse) = merged(&gpu, shape, &[nan.clone(), nan.clone()], &[none.clone(), none.clone()], 0, false);
    assert_eq!((out, out_lse), (vec![bf16::ZERO; 96], none.clone()));
    let (grads, lse_grads) = gradients(&gpu, shape, &[x.clone(), nan], &[lse.clone(), none], &x, Some(&lse), 0);
    assert_eq!(grads, [x, vec![bf16::ZERO; 96]]);
    assert_eq!(lse_grads, [lse, vec![0.0; 6]]);
}
