//! Learned tables: gather, add, norm, and their gradients.

use posenc::accuracy::{assert_close, rounded};
use posenc::embed::{Learned, Lookup, Norm, Rows, Tables, Tokens, order};
use posenc::{Scalar, embed};

use crate::golden;

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

// -------------------------------------------------------------------------------------------------------------- values

/// The rows that a rule gives for 2 sequences of 5 tokens and a table of 20 rows.
fn position_rows(rows: Rows, lookup: Lookup<'_>) -> Vec<i64> {
    let learned = Learned { rows, ..Learned::new(1) };
    let tables = Tables { position: &[0.0f32; 20], ..Tables::default() };
    let rows = learned.rows(2, 5, &tables, &lookup).expect("the ids are inside");
    rows.iter().map(|row| row.position.expect("there is a table") as i64).collect()
}

#[test]
fn positions_are_those_of_real_models() {
    for case in golden::named("learned", "opt") {
        let mask: Vec<u8> = golden::integers(case, "mask").iter().map(|&one| u8::from(one == 1)).collect();
        let rows = Rows::Kept { padding: None, first: 2, padded: 1 };
        assert_eq!(
            position_rows(rows, Lookup { mask: &mask, ..Lookup::default() }),
            golden::integers(case, "positions")
        );
    }
    for case in golden::named("learned", "bart") {
        let past = golden::integers(&serde_json::json!({"past": [case["past"]]}), "past")[0];
        let positions: Vec<i64> = (0..10).map(|i| i % 5 + past).collect();
        let got = position_rows(Rows::Offset(2), Lookup { positions: &positions, ..Lookup::default() });
        assert_eq!(got, golden::integers(case, "positions"));
    }
    let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    for case in golden::named("learned", "roberta") {
        let ids = golden::integers(case, "ids");
        assert_eq!(position_rows(rows, Lookup { ids: &ids, ..Lookup::default() }), golden::integers(case, "positions"));
    }
    for case in golden::named("sinusoid", "positions m2m100") {
        let ids = golden::integers(case, "ids");
        let lookup = Lookup { ids: &ids, ..Lookup::default() };
        assert_eq!(position_rows(rows, lookup), golden::integers(case, "positions"));
        assert_eq!(position_rows(rows, Lookup { past: &[3, 3], ..lookup }), golden::integers(case, "past"));
    }
}

#[test]
fn bert_and_every_gradient_of_it() {
    for case in golden::named("learned", "bert") {
        let read = |key: &str| golden::floats(case, key);
        let (dim, batch, tokens) =
            (golden::size(case, "dim"), golden::size(case, "batch"), golden::size(case, "tokens"));
        let learned = Learned { norm: Some(Norm::Layer { eps: golden::float(case, "eps") }), ..Learned::new(dim) };
        let tables = ["token_table", "position_table", "type_table", "gain", "bias"].map(|key| narrow(&read(key)));
        let tables =
            Tables { token: &tables[0], position: &tables[1], types: &tables[2], gain: &tables[3], bias: &tables[4] };
        let (ids, types) = (golden::integers(case, "ids"), golden::integers(case, "types"));
        let lookup = Lookup { ids: &ids, types: &types, ..Lookup::default() };
        let mut x = vec![0.0f32; batch * tokens * dim];
        learned.gather(&mut x, &Tokens::new(batch, tokens, dim), &tables, &lookup).unwrap();
        // Their tables are f64, ours are those rounded to f32.
        assert_close(&x, &read("values"), |_| 2e-6);
        let grad = narrow(&read("grad"));
        let got = learned.grad((batch, tokens), &[], &grad, &tables, &lookup).unwrap();
        for (got, key) in [
            (&got.token, "token_grad"),
            (&got.position, "position_grad"),
            (&got.types, "type_grad"),
            (&got.gain, "gain_grad"),
            (&got.bias, "bias_grad"),
        ] {
            let got: Vec<f32> = narrow(got);
            assert_close(&got, &read(key), |_| 5e-6);
        }
    }
}

#[test]
fn rms_norm_and_its_gradients() {
    for case in golden::named("learned", "rms") {
        let read = |key: &str| golden::floats(case, key);
        let dim = golden::size(case, "dim");
        let learned = Learned { norm: Some(Norm::Rms { eps: golden::float(case, "eps") }), ..Learned::new(dim) };
        let gain = narrow(&read("gain"));
        let tables = Tables { gain: &gain, ..Tables::default() };
        let before = narrow(&read("x"));
        let mut x = before.clone();
        learned.gather(&mut x, &Tokens::new(1, 3, dim), &tables, &Lookup::default()).unwrap();
        assert_close(&x, &read("values"), |_| 1e-6);
        let grad = narrow(&read("grad"));
        let got = learned.grad((1, 3), &before, &grad, &tables, &Lookup::default()).unwrap();
        assert_close(&narrow(&got.sum), &read("x_grad"), |_| 2e-6);
        assert_close(&narrow(&got.gain), &read("gain_grad"), |_| 2e-6);
        assert!(got.bias.is_empty());
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn a_gather_of_one_table_is_a_copy_and_scale_multiplies_tokens_alone() {
    fn check<T: Scalar>() {
        let token: Vec<T> = (0..12).map(|i| T::from_f64(-0.3 * f64::from(i))).collect();
        let position: Vec<T> = (0..12).map(|i| T::from_f64(0.7 + f64::from(i))).collect();
        let mut x = vec![T::from_f64(9.0); 6];
        let lookup = Lookup { ids: &[3, 1], ..Lookup::default() };
        let alone = Tables { token: &token, ..Tables::default() };
        Learned::new(3).gather(&mut x, &Tokens::new(1, 2, 3), &alone, &lookup).unwrap();
        assert_eq!(
            bytemuck::cast_slice::<_, u8>(&x),
            bytemuck::cast_slice::<_, u8>(&[&token[9..], &token[3..6]].concat())
        );
        let both = Tables { token: &token, position: &position, ..Tables::default() };
        let learned = Learned { scale: 3.0, ..Learned::new(3) };
        learned.gather(&mut x, &Tokens::new(1, 2, 3), &both, &lookup).unwrap();
        let want: Vec<f64> =
            (0..6).map(|i| token[[9, 10, 11, 3, 4, 5][i]].to_f64() * 3.0 + position[i].to_f64()).collect();
        assert_close(&x, &want, |i| rounded::<T>(want[i], 0.0));
    }
    check::<f32>();
    check::<half::f16>();
    check::<half::bf16>();
}

#[test]
fn without_a_token_table_the_rows_of_x_are_added_to() {
    let position: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let tables = Tables { position: &position, ..Tables::default() };
    // The patches behind a class token.
    let tokens = Tokens { offset: 2, strides: [6, 2], ..Tokens::new(2, 2, 2) };
    let mut x = [100.0f32; 12];
    Learned { rows: Rows::Offset(1), ..Learned::new(2) }.gather(&mut x, &tokens, &tables, &Lookup::default()).unwrap();
    assert_eq!(x, [100.0, 100.0, 102.0, 103.0, 104.0, 105.0, 100.0, 100.0, 102.0, 103.0, 104.0, 105.0]);
}

#[test]
fn a_norm_has_mean_zero_and_variance_one_before_gain_and_bias() {
    let x: Vec<f32> = (0..40).map(|i| ((i * i) as f32 * 0.37).sin() + 3.0).collect();
    for (norm, mean) in [(Norm::Layer { eps: 0.0 }, 0.0), (Norm::Rms { eps: 0.0 }, f64::NAN)] {
        let mut y = x.clone();
        let learned = Learned { norm: Some(norm), ..Learned::new(40) };
        learned.gather(&mut y, &Tokens::new(1, 1, 40), &Tables::default(), &Lookup::default()).unwrap();
        let got = y.iter().map(|&y| f64::from(y)).sum::<f64>() / 40.0;
        assert!(mean.is_nan() || got.abs() < 1e-7);
        let square = y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / 40.0;
        assert!((square - 1.0).abs() < 1e-6);
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let dim = 5;
    let mut data = crate::support::Data::new(11);
    for norm in [None, Some(Norm::Layer { eps: 1e-3 }), Some(Norm::Rms { eps: 1e-3 })] {
        let rows = Rows::Kept { padding: Some(2), first: 1, padded: 0 };
        let learned = Learned { dim, scale: 1.5, rows, norm };
        let layer = matches!(norm, Some(Norm::Layer { .. }));
        // f32 holds these exactly enough: differences are taken over 2^-8.
        let mut values = |n: usize| data.values::<half::bf16>(n).iter().map(|x| x.to_f64() as f32).collect::<Vec<_>>();
        let mut parts = [values(4 * dim), values(5 * dim), values(2 * dim), values(dim), values(dim)];
        let grad = values(6 * dim);
        if norm.is_none() {
            parts[3].clear();
        }
        if !layer {
            parts[4].clear();
        }
        let (ids, types) = ([0, 3, 2, 3, 1, 3], [1, 1, 0, 0, 0, 1]);
        let lookup = Lookup { ids: &ids, types: &types, ..Lookup::default() };
        fn tables(parts: &[Vec<f32>; 5]) -> Tables<'_, f32> {
            Tables { token: &parts[0], position: &parts[1], types: &parts[2], gain: &parts[3], bias: &parts[4] }
        }
        let loss = |parts: &[Vec<f32>; 5]| {
            let x = vec![0.0f32; 6 * dim];
            let expected = learned.expect(&x, &Tokens::new(2, 3, dim), &tables(parts), &lookup).unwrap();
            expected.want.iter().zip(&grad).map(|(x, &g)| x * f64::from(g)).sum::<f64>()
        };
        let got = learned.grad((2, 3), &[], &grad, &tables(&parts), &lookup).unwrap();
        let step = 1.0 / 256.0f32;
        for (part, got) in [&got.token, &got.position, &got.types, &got.gain, &got.bias].into_iter().enumerate() {
            assert_eq!(got.len(), parts[part].len());
            for (i, got) in got.iter().enumerate() {
                let [mut up, mut down] = [parts.clone(), parts.clone()];
                up[part][i] += step;
                down[part][i] -= step;
                let difference = (loss(&up) - loss(&down)) / (2.0 * f64::from(step));
                assert!(
                    (got - difference).abs() < 2e-3 * (1.0 + got.abs()),
                    "{norm:?} part {part} at {i}: {got} {difference}"
                );
            }
        }
    }
}

#[test]
fn an_order_is_stable() {
    assert_eq!(order(&[5, -1, 5, 0, -1]).unwrap(), [1, 4, 3, 0, 2]);
    assert!(order(&[]).unwrap().is_empty());
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn ids_outside_their_tables_are_refused_and_nothing_is_written() {
    let table = [0.0f32; 8];
    let tables = Tables { token: &table, position: &table, types: &table[..4], ..Tables::default() };
    let mut x = [7.0f32; 6];
    let mut refused = |rows: Rows, lookup: Lookup<'_>, message: &str| {
        let learned = Learned { rows, ..Learned::new(2) };
        let error = learned.gather(&mut x, &Tokens::new(1, 3, 2), &tables, &lookup).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(x, [7.0; 6]);
    };
    let good = Lookup { ids: &[0, 1, 2], types: &[0, 1, 0], ..Lookup::default() };
    let any = Rows::Offset(0);
    refused(any, Lookup { ids: &[0, 4, 0], ..good }, "ids[1] is 4, the token table has 4 rows");
    refused(any, Lookup { ids: &[0, 0, -1], ..good }, "ids[2] is -1, the token table has 4 rows");
    refused(any, Lookup { types: &[0, 0, 2], ..good }, "types[2] is 2, the type table has 2 rows");
    refused(Rows::Offset(2), good, "the position row of token[2] is 4, the position table has 4 rows");
    refused(
        any,
        Lookup { positions: &[0, -1, 0], ..good },
        "the position row of token[1] is -1, the position table has 4 rows",
    );
    refused(any, Lookup { ids: &[0, 1], ..good }, "ids holds 2 elements, the call needs 3");
    refused(any, Lookup { positions: &[0], ..good }, "positions holds 1 elements, the call needs 3");
    refused(Rows::Kept { padding: None, first: 0, padded: 0 }, good, "mask holds 0 elements, the call needs 3");
}

#[test]
fn specs_and_tables_are_refused_with_the_numbers() {
    let mut x = [7.0f32; 4];
    let mut refused = |learned: Learned, tables: Tables<'_, f32>, message: &str| {
        let error = learned.gather(&mut x, &Tokens::new(1, 2, 2), &tables, &Lookup::default()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(x, [7.0; 4]);
    };
    let plain = Learned::new(2);
    let none = Tables::default();
    refused(Learned { dim: 3, ..plain }, none, "x has 2 channels, the encoding has 3");
    refused(Learned { scale: f64::INFINITY, ..plain }, none, "scale is inf, it must be finite and fit into f32");
    let norm = Some(Norm::Rms { eps: -1.0 });
    refused(Learned { norm, ..plain }, none, "eps is -1, it must be finite and at least 0");
    refused(plain, Tables { position: &[0.0; 5], ..none }, "the position table holds 5 elements, its rows hold 2");
    refused(plain, Tables { gain: &[0.0; 2], ..none }, "there is a gain and the spec has no norm that uses it");
    let norm = Some(Norm::Rms { eps: 1e-6 });
    refused(
        Learned { norm, ..plain },
        Tables { bias: &[0.0; 2], ..none },
        "there is a bias and the spec has no norm that uses it",
    );
    refused(Learned { norm, ..plain }, Tables { gain: &[0.0; 3], ..none }, "gain holds 3 elements, dim is 2");
    let error = embed::Learned::new(0).check().unwrap_err();
    assert_eq!(error.to_string(), "dim is 0, it must be between 1 and 2^31 - 1");
}
