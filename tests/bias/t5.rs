use posenc::accuracy::assert_close;
use posenc::bias::{BiasInputs, DistanceGrad, Toeplitz};
use posenc::{Bias, BiasPlan, Logits, Place, Places, T5Bias};

use crate::biases::{Buffers, Context, Numbers, bits, double, golden, wavlm};
use crate::support::{Guarded, gpu};

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn thresholds_are_those_of_the_real_models() {
    let from = |spec: T5Bias, exact: usize| spec.thresholds().unwrap()[exact..].to_vec();
    assert_eq!(from(T5Bias::new(32, 128, true), 8), [8, 12, 16, 23, 32, 46, 64, 91]);
    assert_eq!(
        from(T5Bias::new(32, 128, false), 16),
        [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    );
    assert_eq!(
        from(T5Bias::new(64, 256, true), 16),
        [16, 20, 23, 27, 32, 39, 46, 54, 64, 77, 91, 108, 128, 153, 182, 216]
    );
}

#[test]
fn the_most_buckets_have_thresholds_at_once() {
    let thresholds = T5Bias::new(1 << 16, 1 << 20, false).thresholds().unwrap();
    assert!(thresholds.len() == 1 << 16 && thresholds.is_sorted());
    // Half of the wide ones lie below 32768 * 32^(1/2) = 185363.8.
    assert_eq!([(1 << 15), 3 << 14].map(|bucket: usize| thresholds[bucket]), [1 << 15, 185_364]);
    // 64 to the power of every sixth is a whole number.
    let thresholds = T5Bias::new(3 << 13, 3 << 18, false).thresholds().unwrap();
    let (exact, wide) = (3 << 12, 3 << 12);
    for sixth in 0..6 {
        assert_eq!(thresholds[exact + sixth * wide / 6], exact << sixth);
    }
}

#[test]
fn buckets_are_those_of_hugging_face() {
    let golden = golden();
    let cases = golden["buckets"].as_array().unwrap();
    assert!(cases.len() >= 15);
    for case in cases {
        let number = |name: &str| case[name].as_i64().unwrap();
        let spec = T5Bias::new(
            number("buckets") as usize,
            number("max_distance") as usize,
            case["bidirectional"].as_bool().unwrap(),
        );
        let lookup = spec.lookup().unwrap();
        let (low, high) = (*spec.distances().start(), *spec.distances().end());
        let mut distance = number("first");
        for run in case["runs"].as_array().unwrap() {
            for _ in 0..run[1].as_i64().unwrap() {
                let got = lookup[(distance.clamp(low, high) - low) as usize];
                assert_eq!(i64::from(got), run[0].as_i64().unwrap(), "{spec:?} at {distance}: {}", case["source"]);
                distance += 1;
            }
        }
    }
}

#[test]
fn the_gated_bias_is_wavlms() {
    let (shape, row, gates, want) = wavlm();
    let got = |index: usize| {
        let (key, rest) = (index % shape.keys, index / shape.keys);
        let (query, head) = (rest % shape.queries, rest / shape.queries % shape.heads);
        f64::from(gates[rest]) * row.bias(head, key as i64 - query as i64)
    };
    // Hugging Face's sigmoids are in f32.
    let got: Vec<f64> = (0..want.len()).map(got).collect();
    assert_close(&want, &got, |i| 2e-6 * (1.0 + got[i].abs()));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gated_bias_on_the_device_is_wavlms() {
    let gpu = gpu();
    let (shape, row, gates, bias) = wavlm();
    let logits: Vec<f32> = Numbers(3).take(bias.len(), 1.0);
    // Written, and added to logits, for any other attention.
    let plan = BiasPlan::new(&gpu, &row).unwrap();
    let gates = gpu.stream().clone_htod(&gates).unwrap();
    let inputs = BiasInputs { gates: Some(&gates), ..Places::counted(0, 0).into() };
    let mut x = Guarded::<f32>::poisoned(&gpu, bias.len(), 0);
    plan.write(shape.of_mut(&mut x.view()), inputs).unwrap();
    let want = double(&bias);
    assert_close(&x.read(&gpu), &want, |i| 2e-6 * (1.0 + want[i].abs()));
    let mut x = Guarded::new(&gpu, &logits, 0);
    plan.add(shape.of_mut(&mut x.view()), inputs).unwrap();
    let want: Vec<f64> = bias.iter().zip(&logits).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
    assert_close(&x.read(&gpu), &want, |i| 2e-6 * (1.0 + want[i].abs()));
    let short = gpu.stream().clone_htod(&[0.0f32; 3]).unwrap();
    let error = plan.add(shape.of_mut(&mut x.view()), BiasInputs { gates: Some(&short), ..inputs }).unwrap_err();
    assert_eq!(error.to_string(), "gates holds 3 elements, the shape needs 66");
    // Gates of nothing.
    let none = BiasPlan::<f32>::new(&gpu, Bias::None).unwrap();
    let error = none.add(shape.of_mut(&mut x.view()), inputs).unwrap_err();
    assert_eq!(error.to_string(), "gates multiply a bias, and there is none");
}

/// A model's 1-D bias and those of the places of its tokens on a page, and Hugging Face's sum of them.
struct Page {
    shape: Logits,
    /// rows, and positions
    parts: [(Toeplitz, Vec<i32>); 3],
    sum: Vec<f64>,
}

fn page(name: &str, far: T5Bias) -> Page {
    let case = &golden()[name];
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    let (heads, tokens) = (number("heads"), number("tokens"));
    let place = |name: &str| case[name].as_array().unwrap().iter().map(|p| p.as_i64().unwrap() as i32).collect();
    let row = |spec: T5Bias, name: &str| spec.row(&bits(&case[name]), heads).unwrap();
    let parts = [
        (row(T5Bias::new(32, 128, true), "table"), (0..tokens as i32).collect()),
        (row(far, "table_x"), place("x")),
        (row(far, "table_y"), place("y")),
    ];
    let sum = bits(&case["bias"]).into_iter().map(f64::from).collect();
    Page { shape: Logits::bhqk(1, heads, tokens, tokens), parts, sum }
}

const PAGES: [(&str, T5Bias); 2] = [("layoutlmv3", T5Bias::new(64, 256, true)), ("udop", T5Bias::new(32, 100, true))];

#[test]
fn sums_of_biases_are_those_of_layoutlmv3_and_udop() {
    for (name, far) in PAGES {
        let Page { shape, parts, sum: want } = page(name, far);
        let mut got = vec![0.0f32; want.len()];
        for (row, positions) in &parts {
            let each = Place::Ids(&positions[..]);
            Bias::Toeplitz(row)
                .add(&mut got, &shape, &Places { queries: each, keys: each, ..Places::counted(0, 0) })
                .unwrap();
        }
        // Two sums, each rounded, in one order or the other.
        let _context = Context(|| name.into());
        assert_close(&got, &want, |_| 8.0 * f64::from(f32::EPSILON));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn sums_of_biases_on_the_device_are_those_of_layoutlmv3_and_udop() {
    let gpu = gpu();
    for (name, far) in PAGES {
        let Page { shape, parts, sum: want } = page(name, far);
        let mut sum = Guarded::<f32>::poisoned(&gpu, want.len(), 0);
        for (index, (row, positions)) in parts.iter().enumerate() {
            let each = Place::Ids(&positions[..]);
            let host = Places { queries: each, keys: each, ..Places::counted(0, 0) };
            let (buffers, plan) = (Buffers::new(&gpu, &host), BiasPlan::new(&gpu, row).unwrap());
            let places = buffers.places(&host);
            if index == 0 {
                plan.write(shape.of_mut(&mut sum.view()), places).unwrap();
            } else {
                plan.add(shape.of_mut(&mut sum.view()), places).unwrap();
            }
        }
        let _context = Context(|| name.into());
        assert_close(&sum.read(&gpu), &want, |_| 8.0 * f64::from(f32::EPSILON));
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn buckets_grow_with_the_distance_and_meet_the_formula_in_f64() {
    for (side, reach) in (2..40usize).flat_map(|side| [side / 2 + 1, 2 * side, 129, 500].map(|reach| (side, reach))) {
        let exact = side / 2;
        if reach <= exact {
            continue;
        }
        let spec = T5Bias::new(2 * side, reach, true);
        let thresholds = spec.thresholds().unwrap();
        assert_eq!(thresholds.len(), side);
        assert!(thresholds.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(thresholds.iter().all(|&threshold| threshold <= reach));
        for n in 0..2 * reach as i64 {
            let bucket = spec.bucket(-n).unwrap() as i64;
            assert_eq!(spec.bucket(n).unwrap() as i64, if n == 0 { 0 } else { bucket + side as i64 });
            let e = exact as f64;
            let wide = (side - exact) as f64;
            let real = (n as f64 / e).ln() / (reach as f64 / e).ln() * wide;
            // Where the logarithm is an integer f64 may fall on either side; integers do not.
            if n >= exact as i64 && (real - real.round()).abs() > 1e-9 {
                assert_eq!(bucket, (exact as i64 + real.floor() as i64).min(side as i64 - 1), "{spec:?} at {n}");
            }
        }
    }
}

#[test]
fn the_row_is_exact_at_every_distance() {
    for spec in [T5Bias::new(32, 128, true), T5Bias::new(32, 128, false), T5Bias::new(320, 800, true)] {
        let heads = 6;
        let table: Vec<f32> = Numbers(9).take(spec.buckets * heads, 1.0);
        let row = spec.row(&table, heads).unwrap();
        for distance in (-3000..3000).chain([-(1 << 30), 1 << 30]) {
            let bucket = spec.bucket(distance.clamp(-2000, 2000)).unwrap();
            for head in 0..heads {
                assert_eq!(row.bias(head, distance), f64::from(table[bucket * heads + head]));
            }
        }
    }
}

#[test]
fn the_gradient_of_the_table_is_exact() {
    let (heads, spec) = (3, T5Bias::new(8, 12, true));
    let shape = Logits::bhqk(2, heads, 17, 19);
    let positions = Places::bottom_right();
    let weights: Vec<f32> = Numbers(5).take(shape.elements().unwrap(), 1.0);
    let grad = DistanceGrad::new(&weights, &shape, &positions, spec.distances()).unwrap();
    let grad = spec.grad(&grad).unwrap();
    for bucket in 0..spec.buckets {
        for head in 0..heads {
            // The bias is linear in the table: a table with a single 1 gives that number's derivative.
            let mut table = vec![0.0; spec.buckets * heads];
            table[bucket * heads + head] = 1.0;
            let row = spec.row(&table, heads).unwrap();
            let mut bias = vec![0.0f32; weights.len()];
            Bias::Toeplitz(&row).write(&mut bias, &shape, &positions).unwrap();
            let want: f64 = bias.iter().zip(&weights).map(|(b, w)| f64::from(*b) * f64::from(*w)).sum();
            assert!((grad[bucket * heads + head] - want).abs() < 1e-9);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |spec: T5Bias| spec.thresholds().unwrap_err().to_string();
    assert_eq!(text(T5Bias::new(31, 128, true)), "buckets is 31, two sides need an even number");
    assert_eq!(text(T5Bias::new(2, 128, true)), "buckets is 2, it must lie between 4 and 65536");
    assert_eq!(text(T5Bias::new(1, 128, false)), "buckets is 1, it must lie between 2 and 65536");
    assert_eq!(
        text(T5Bias::new(32, 8, true)),
        "max_distance is 8, it must be above the 8 distances that have buckets of their own, and at most 2^20"
    );
    let error = T5Bias::new(32, 128, true).row(&[0.0; 100], 12).unwrap_err();
    assert_eq!(error.to_string(), "table holds 100 elements, 32 buckets of 12 heads are 384");
}
