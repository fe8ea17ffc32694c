use crate::Numbers;
use posenc::{Alibi, Bias, DistanceGrad, Inputs, Logits, Order, Places, Softmax, T5Bias};

fn all(softmax: Softmax) -> Vec<Softmax> {
    let mut all = Vec::new();
    for order in [Order::SoftcapThenBias, Order::BiasThenSoftcap, Order::BiasThenScale] {
        for softcap in [None, Some(1.5)] {
            for (left, right) in [(None, None), (None, Some(0)), (Some(2), Some(1))] {
                all.push(Softmax { order, softcap, left, right, ..softmax });
            }
        }
    }
    all
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn orders_are_those_of_their_libraries() {
    let at = |order, softcap| Softmax { order, softcap, ..Softmax::new(0.5) }.logit(3.0, -2.0);
    assert_eq!(at(Order::SoftcapThenBias, None), 1.5 - 2.0);
    assert_eq!(at(Order::BiasThenSoftcap, None), 1.5 - 2.0);
    assert_eq!(at(Order::BiasThenScale, None), 0.5);
    assert_eq!(at(Order::SoftcapThenBias, Some(2.0)), 2.0 * 0.75f64.tanh() - 2.0);
    assert_eq!(at(Order::BiasThenSoftcap, Some(2.0)), 2.0 * (-0.25f64).tanh());
    assert_eq!(at(Order::BiasThenScale, Some(2.0)), 2.0 * 0.25f64.tanh());
}

#[test]
fn a_sink_takes_its_share() {
    let shape = Logits::bhqk(1, 2, 1, 2);
    let mut logits = [0.0f32; 4];
    let inputs = Inputs { sinks: Some(&[0.0, f32::NEG_INFINITY]), ..Inputs::at(Places::last()) };
    let lse = Softmax::new(1.0).apply(&mut logits, &shape, &inputs).unwrap();
    let third = 1.0f32 / 3.0;
    assert_eq!(logits, [third, third, 0.5, 0.5]);
    assert_eq!(lse, [3f32.ln(), 2f32.ln()]);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn rows_sum_to_one_and_rows_without_keys_are_zero() {
    let shape = Logits::bhqk(2, 3, 5, 7);
    let slopes = Alibi::new(3).slopes().unwrap();
    let start: Vec<f32> = Numbers(6).take(shape.elements().unwrap(), 3.0);
    // Queries from -2: the first two see no key when causal.
    let positions = Places { query_lengths: Some(&[5, 3][..]), key_lengths: Some(&[7, 0][..]), ..Places::from(-2, 0) };
    for softmax in all(Softmax::new(0.7)) {
        let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(positions) };
        let mut p = start.clone();
        let lse = softmax.apply(&mut p, &shape, &inputs).unwrap();
        for batch in 0..2 {
            for head in 0..3 {
                for query in 0..5 {
                    let row = shape.index(batch, head, query, 0);
                    let sum: f32 = p[row..row + 7].iter().sum();
                    let seen = batch == 0 && (0..7).any(|key| softmax.sees(key - (query as i64 - 2)));
                    assert!((sum - f32::from(u8::from(seen))).abs() < 1e-6, "{softmax:?} {batch} {head} {query}");
                    let lse = lse[(batch * 3 + head) * 5 + query];
                    assert_eq!(lse == f32::NEG_INFINITY, !seen);
                    for key in 0..7 {
                        if !softmax.sees(key - (query as i64 - 2)) {
                            assert_eq!(p[row + key as usize], 0.0);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let shape = Logits::bhqk(1, 2, 3, 5);
    let count = shape.elements().unwrap();
    let slopes = Alibi::new(2).slopes().unwrap();
    let mut numbers = Numbers(13);
    let start: Vec<f32> = numbers.take(count, 2.0);
    let weights: Vec<f32> = numbers.take(count, 1.0);
    let mask: Vec<f32> = numbers.take(count, 1.0);
    let sinks = [0.3f32, -0.4];
    for softmax in all(Softmax::new(0.7)) {
        let with_mask = Inputs { mask: Some((&mask[..], shape)), ..Inputs::at(Places::last()) };
        let bias = Bias::Slopes(&slopes);
        let grad = softmax.grad(&start, &weights, &shape, &Inputs { bias, sinks: Some(&sinks), ..with_mask }).unwrap();
        let loss = |logits: &[f32], bias: Bias, sinks: &[f32]| -> f64 {
            let output = softmax.expect(logits, &shape, &Inputs { bias, sinks: Some(sinks), ..with_mask }).unwrap();
            output.want.iter().zip(&weights).map(|(p, w)| p * f64::from(*w)).sum()
        };
        let step = 1.0f32 / 512.0;
        let near = |got: f64, up: f64, down: f64, what: &str| {
            let want = (up - down) / (2.0 * f64::from(step));
            assert!((got - want).abs() < 1e-5, "{softmax:?} {what}: {got} and {want}");
        };
        for index in 0..count {
            let (mut up, mut down) = (start.clone(), start.clone());
            up[index] += step;
            down[index] -= step;
            let true_step = f64::from(up[index] - down[index]) / 2.0 / f64::from(step);
            near(grad.logits[index] * true_step, loss(&up, bias, &sinks), loss(&down, bias, &sinks), "logit");
        }
        for head in 0..2 {
            let change = |step: f32| {
                let mut sinks = sinks;
                sinks[head] += step;
                sinks
            };
            near(grad.sinks[head], loss(&start, bias, &change(step)), loss(&start, bias, &change(-step)), "sink");
        }
        // A row's bias at each distance, through the sums along diagonals.
        let sums: Vec<f32> = grad.bias.iter().map(|&x| x as f32).collect();
        let sums = DistanceGrad::new(&sums, &shape, &Places::last(), -4..=4).unwrap();
        let row = posenc::Toeplitz::from_law(2, -4..=4, |head, d| slopes.bias(0, head, d)).unwrap();
        for index in 0..row.values.len() {
            let (mut up, mut down) = (row.clone(), row.clone());
            up.values[index] += step;
            down.values[index] -= step;
            let (up, down) = (Bias::Toeplitz(&up), Bias::Toeplitz(&down));
            near(sums.values[index], loss(&start, up, &sinks), loss(&start, down, &sinks), "bias");
        }
    }
}

#[test]
fn bucket_gradients_of_a_head_sum_to_zero() {
    let spec = T5Bias::new(32, 128, true);
    let shape = Logits::bhqk(2, 4, 60, 80);
    let mut numbers = Numbers(21);
    let table: Vec<f32> = numbers.take(32 * 4, 1.0);
    let row = spec.row(&table, 4).unwrap();
    let count = shape.elements().unwrap();
    let (logits, weights): (Vec<f32>, Vec<f32>) = (numbers.take(count, 2.0), numbers.take(count, 1.0));
    let inputs = Inputs { bias: Bias::Toeplitz(&row), ..Inputs::at(Places::last()) };
    let grad = Softmax::causal(1.0).grad(&logits, &weights, &shape, &inputs).unwrap();
    let bias: Vec<f32> = grad.bias.iter().map(|&x| x as f32).collect();
    let sums = DistanceGrad::new(&bias, &shape, &Places::last(), spec.distances()).unwrap();
    let table = spec.grad(&sums).unwrap();
    for head in 0..4 {
        let column = || (0..32).map(|bucket| table[bucket * 4 + head]);
        let size: f64 = column().map(f64::abs).sum();
        assert!(size > 0.1 && column().sum::<f64>().abs() < 1e-6 * size, "{size}");
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_a_call_is_refused() {
    let shape = Logits::bhqk(2, 3, 2, 4);
    let text = |softmax: Softmax, inputs: Inputs<f32>| {
        let mut logits = [1.0f32; 48];
        let error = softmax.apply(&mut logits, &shape, &inputs).unwrap_err().to_string();
        assert_eq!(logits, [1.0; 48]);
        error
    };
    let plain = Inputs::at(Places::last());
    assert_eq!(text(Softmax::new(f32::NAN), plain), "scale is NaN, it must be finite");
    assert_eq!(
        text(Softmax { softcap: Some(0.0), ..Softmax::new(1.0) }, plain),
        "softcap is 0, it must be finite and above 0"
    );
    assert_eq!(text(Softmax::new(1.0), Inputs { sinks: Some(&[0.0; 2]), ..plain }), "there are 2 sinks for 3 heads");
    assert_eq!(
        text(Softmax::new(1.0), Inputs { sinks: Some(&[0.0, f32::NAN, 0.0]), ..plain }),
        "the sink of head 1 is NaN, it must be below inf"
    );
    assert_eq!(
        text(Softmax::new(1.0), Inputs { mask: Some((&[0.0; 12], Logits::bhqk(1, 1, 3, 4))), ..plain }),
        "the mask is [1, 1, 3, 4] and the logits [2, 3, 2, 4]: each of the first three must be equal or 1, \
         and the keys equal"
    );
    assert_eq!(
        text(Softmax::new(1.0), Inputs { mask: Some((&[0.0; 7], Logits::bhqk(1, 1, 2, 4))), ..plain }),
        "mask holds 7 elements, the shape needs 8"
    );
}
