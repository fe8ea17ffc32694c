use crate::Numbers;
use posenc::{Bias, Fire, Logits, Places};

pub fn fire(heads: usize, width: usize, seed: u64) -> Fire {
    let mut numbers = Numbers(seed);
    let mut take = |count: usize| (0..count).map(|_| f64::from(numbers.next())).collect::<Vec<f64>>();
    Fire {
        threshold: 9.5,
        in_weight: take(width),
        in_bias: take(width),
        out_weight: take(heads * width),
        out_bias: take(heads),
        ..Fire::new()
    }
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn values_are_those_of_the_formula() {
    // arXiv 2310.04418, equation 4, by hand: c = 0.1, a query at 100 past a threshold of 50, a key 30 before it.
    let fire = Fire { threshold: 50.0, in_weight: vec![2.0, -1.0], in_bias: vec![0.5, 0.25], ..Fire::new() };
    let fire = Fire { out_weight: vec![3.0, 7.0], out_bias: vec![-1.0], ..fire };
    let x = 4f64.ln() / (11f64.ln() + 1e-6);
    assert!((fire.input(100, 70) - x).abs() < 1e-15);
    assert!((fire.bias(0, 100, 70) - (-1.0 + 3.0 * (2.0 * x + 0.5))).abs() < 1e-14);
    // Before the threshold all queries are normalised alike; and the future is as far as the past.
    assert_eq!(fire.input(10, 7), fire.input(50, 47));
    assert_eq!(fire.input(100, 130), fire.input(100, 70));
    // Near the query the second unit is up too: 7 * (0.25 - x).
    let x = fire.input(100, 99);
    assert!((fire.bias(0, 100, 99) - (-1.0 + 3.0 * (2.0 * x + 0.5) + 7.0 * (0.25 - x))).abs() < 1e-14);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn lines_are_the_network() {
    for (heads, width) in [(1, 1), (6, 32), (12, 7), (3, 64)] {
        let fire = fire(heads, width, width as u64);
        let lines = fire.lines().unwrap();
        let count = lines.breaks.len() + 1;
        assert!(lines.breaks.windows(2).all(|pair| pair[0] <= pair[1]));
        for (query, key) in (0..60).flat_map(|query| (0..70).map(move |key| (query, key))) {
            let x = fire.input(query, key);
            let line = lines.breaks.partition_point(|&at| f64::from(at) <= x);
            for head in 0..heads {
                let index = head * count + line;
                let got = f64::from(lines.slopes[index]) * x + f64::from(lines.intercepts[index]);
                let bound = fire.error_bound(head, x).unwrap();
                assert!((got - fire.bias(head, query, key)).abs() <= bound, "{heads} {width} {query} {key}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (heads, width) = (3, 5);
    let fire = fire(heads, width, 11);
    let shape = Logits::bhqk(2, heads, 7, 13);
    let positions = Places::last();
    let weights: Vec<f32> = Numbers(4).take(shape.elements().unwrap(), 1.0);
    let loss = |fire: &Fire| {
        let mut sum = 0.0;
        for batch in 0..2 {
            for head in 0..heads {
                for query in 0..7 {
                    for key in 0..13 {
                        let weight = f64::from(weights[shape.index(batch, head, query, key)]);
                        sum += weight * fire.bias(head, query as i64 + 6, key as i64);
                    }
                }
            }
        }
        sum
    };
    let grad = fire.grad(&weights, &shape, &positions).unwrap();
    let check = |got: f64, name: &str, change: &dyn Fn(&mut Fire, f64)| {
        let step = 1e-6;
        let (mut up, mut down) = (fire.clone(), fire.clone());
        change(&mut up, step);
        change(&mut down, -step);
        let want = (loss(&up) - loss(&down)) / (2.0 * step);
        assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{name}: {got} and {want}");
    };
    check(grad.c, "c", &|fire, step| fire.c += step);
    check(grad.threshold, "threshold", &|fire, step| fire.threshold += step);
    for k in 0..width {
        check(grad.in_weight[k], "in_weight", &|fire, step| fire.in_weight[k] += step);
        check(grad.in_bias[k], "in_bias", &|fire, step| fire.in_bias[k] += step);
    }
    for k in 0..heads * width {
        check(grad.out_weight[k], "out_weight", &|fire, step| fire.out_weight[k] += step);
    }
    for head in 0..heads {
        check(grad.out_bias[head], "out_bias", &|fire, step| fire.out_bias[head] += step);
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |fire: &Fire| fire.check().unwrap_err().to_string();
    let good = fire(2, 3, 1);
    assert_eq!(text(&Fire { c: 0.0, ..good.clone() }), "FIRE's c is 0, it must be finite and positive");
    let mut nan = good.clone();
    nan.out_weight[4] = f64::NAN;
    assert_eq!(text(&nan), "FIRE's out_weight 4 is NaN, it must be finite");
    assert_eq!(
        text(&Fire { out_bias: vec![0.0; 3], ..good.clone() }),
        "FIRE's network has 3 inputs' weights and 3 biases, 6 outputs' weights and 3 biases; \
         they must be w, w, heads x w and heads, none of them 0"
    );
    let mut out = [0.0f32; 12];
    let error = Bias::Fire(&good).write(&mut out, &Logits::bhqk(1, 3, 2, 2), &Places::from(0, 0)).unwrap_err();
    assert_eq!(error.to_string(), "the bias has 2 heads, the logits have 3");
}
