//! Learned tables: gather, add, norm, and their gradients.

use posenc::accuracy::{assert_close, compare, rounded};
use posenc::embed::{
    DeviceLookup, DeviceTables, ErrorFlag, HostLookup, HostTables, Learned, LearnedGradPlan, LearnedPlan, Norm,
    NormGrad, Rows, TableGrad, Tokens, order,
};
use posenc::{Gpu, Id, Ids, Positions, Scalar, embed};

use crate::golden;
use crate::support::{Data, Guarded, gpu, last_launch};

/// A table that there is, if it has elements.
fn present<T>(table: &[T]) -> Option<&[T]> {
    (!table.is_empty()).then_some(table)
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

// -------------------------------------------------------------------------------------------------------------- values

/// The rows that a rule gives for 2 sequences of 5 tokens and a table of 20 rows.
fn position_rows(rows: Rows, lookup: HostLookup<'_>) -> Vec<i64> {
    let learned = Learned { rows, ..Learned::new(1) };
    let tables = HostTables { position: Some(&[0.0f32; 20]), ..HostTables::default() };
    let rows = learned.rows(2, 5, &tables, &lookup).expect("the ids are inside");
    rows.iter().map(|row| row.position.expect("there is a table") as i64).collect()
}

#[test]
fn positions_are_those_of_real_models() {
    for case in golden::named("learned", "opt") {
        let mask: Vec<u8> = golden::integers(case, "mask").iter().map(|&one| u8::from(one == 1)).collect();
        let rows = Rows::Kept { padding: None, first: 2, padded: 1 };
        assert_eq!(
            position_rows(rows, HostLookup { mask: Some(&mask), ..HostLookup::default() }),
            golden::integers(case, "positions")
        );
    }
    for case in golden::named("learned", "gpt2 left") {
        let mask: Vec<u8> = golden::integers(case, "mask").iter().map(|&one| u8::from(one == 1)).collect();
        let rows = Rows::Kept { padding: None, first: 0, padded: 0 };
        let got = position_rows(rows, HostLookup { mask: Some(&mask), ..HostLookup::default() });
        assert_eq!(got, golden::integers(case, "positions"));
    }
    for case in golden::named("learned", "bart") {
        let past = golden::integers(&serde_json::json!({"past": [case["past"]]}), "past")[0];
        let positions: Vec<i64> = (0..10).map(|i| i % 5 + past).collect();
        let got = position_rows(
            Rows::Offset(2),
            HostLookup { positions: Positions::ids(&positions), ..HostLookup::default() },
        );
        assert_eq!(got, golden::integers(case, "positions"));
    }
    let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    for case in golden::named("learned", "roberta") {
        let ids = golden::integers(case, "ids");
        assert_eq!(
            position_rows(rows, HostLookup { ids: Some(&ids), ..HostLookup::default() }),
            golden::integers(case, "positions")
        );
    }
    for case in golden::named("sinusoid", "positions m2m100") {
        let ids = golden::integers(case, "ids");
        let lookup = HostLookup { ids: Some(&ids), ..HostLookup::default() };
        assert_eq!(position_rows(rows, lookup), golden::integers(case, "positions"));
        assert_eq!(
            position_rows(rows, HostLookup { positions: Positions::starts(&[3, 3]), ..lookup }),
            golden::integers(case, "past")
        );
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
        let tables = HostTables {
            token: Some(&tables[0]),
            position: Some(&tables[1]),
            types: Some(&tables[2]),
            gain: Some(&tables[3]),
            bias: Some(&tables[4]),
        };
        let (ids, types) = (golden::integers(case, "ids"), golden::integers(case, "types"));
        let lookup = HostLookup { ids: Some(&ids), types: Some(&types), ..HostLookup::default() };
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
        let tables = HostTables { gain: Some(&gain), ..HostTables::default() };
        let before = narrow(&read("x"));
        let mut x = before.clone();
        learned.gather(&mut x, &Tokens::new(1, 3, dim), &tables, &HostLookup::default()).unwrap();
        assert_close(&x, &read("values"), |_| 1e-6);
        let grad = narrow(&read("grad"));
        let got = learned.grad((1, 3), &before, &grad, &tables, &HostLookup::default()).unwrap();
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
        let lookup = HostLookup { ids: Some(&[3, 1]), ..HostLookup::default() };
        let alone = HostTables { token: Some(&token), ..HostTables::default() };
        Learned::new(3).gather(&mut x, &Tokens::new(1, 2, 3), &alone, &lookup).unwrap();
        assert_eq!(
            bytemuck::cast_slice::<_, u8>(&x),
            bytemuck::cast_slice::<_, u8>(&[&token[9..], &token[3..6]].concat())
        );
        let both = HostTables { token: Some(&token), position: Some(&position), ..HostTables::default() };
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
    let tables = HostTables { position: Some(&position), ..HostTables::default() };
    // The patches behind a class token.
    let tokens = Tokens { offset: 2, strides: [6, 2], ..Tokens::new(2, 2, 2) };
    let mut x = [100.0f32; 12];
    Learned { rows: Rows::Offset(1), ..Learned::new(2) }
        .gather(&mut x, &tokens, &tables, &HostLookup::default())
        .unwrap();
    assert_eq!(x, [100.0, 100.0, 102.0, 103.0, 104.0, 105.0, 100.0, 100.0, 102.0, 103.0, 104.0, 105.0]);
}

#[test]
fn a_norm_has_mean_zero_and_variance_one_before_gain_and_bias() {
    let x: Vec<f32> = (0..40).map(|i| ((i * i) as f32 * 0.37).sin() + 3.0).collect();
    for (norm, mean) in [(Norm::Layer { eps: 0.0 }, 0.0), (Norm::Rms { eps: 0.0 }, f64::NAN)] {
        let mut y = x.clone();
        let learned = Learned { norm: Some(norm), ..Learned::new(40) };
        learned.gather(&mut y, &Tokens::new(1, 1, 40), &HostTables::default(), &HostLookup::default()).unwrap();
        let got = y.iter().map(|&y| f64::from(y)).sum::<f64>() / 40.0;
        assert!(mean.is_nan() || got.abs() < 1e-7);
        let square = y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / 40.0;
        assert!((square - 1.0).abs() < 1e-6);
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let dim = 5;
    let mut data = Data::new(11);
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
        let lookup = HostLookup { ids: Some(&ids), types: Some(&types), ..HostLookup::default() };
        fn tables(parts: &[Vec<f32>; 5]) -> HostTables<'_, f32> {
            let [token, position, types, gain, bias] = parts.each_ref().map(|part| present(part));
            HostTables { token, position, types, gain, bias }
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

// -------------------------------------------------------------------------------------------- kernel against reference

/// One random call: tables, ids, and how they are laid out.
struct Case<T> {
    learned: Learned,
    tokens: Tokens,
    tables: [Vec<T>; 5],
    ids: Vec<i64>,
    types: Vec<i64>,
    mask: Vec<u8>,
    past: Vec<i64>,
    x: Vec<T>,
    shift: usize,
}

const TOKEN_ROWS: usize = 11;
const TYPE_ROWS: usize = 2;

impl<T: Scalar> Case<T> {
    fn new(learned: Learned, tokens: Tokens, present: [bool; 5], shift: usize, data: &mut Data) -> Self {
        let dim = learned.dim;
        let position_rows = tokens.tokens + 4;
        let rows = [TOKEN_ROWS, position_rows, TYPE_ROWS, 1, 1];
        let mut tables = [const { Vec::new() }; 5];
        for (i, table) in tables.iter_mut().enumerate() {
            let allowed = match i {
                3 => learned.norm.is_some(),
                4 => matches!(learned.norm, Some(Norm::Layer { .. })),
                _ => true,
            };
            if present[i] && allowed {
                *table = data.values::<T>(rows[i] * dim);
            }
        }
        let all = tokens.batch * tokens.tokens;
        Self {
            learned,
            tokens,
            tables,
            ids: (0..all).map(|_| data.below(TOKEN_ROWS) as i64).collect(),
            types: (0..all).map(|_| data.below(TYPE_ROWS) as i64).collect(),
            mask: (0..all).map(|_| data.below(3).min(1) as u8).collect(),
            past: (0..tokens.batch).map(|_| data.below(3) as i64).collect(),
            x: data.values::<T>(tokens.span().unwrap()),
            shift,
        }
    }

    fn tables(&self) -> HostTables<'_, T> {
        let [token, position, types, gain, bias] = self.tables.each_ref().map(|table| present(table));
        HostTables { token, position, types, gain, bias }
    }

    fn counts(&self) -> bool {
        matches!(self.learned.rows, Rows::Kept { .. })
    }

    fn lookup(&self) -> HostLookup<'_> {
        let positions = if self.counts() { Positions::starts(&self.past) } else { Positions::counted() };
        HostLookup { ids: Some(&self.ids), types: Some(&self.types), mask: Some(&self.mask), positions }
    }

    /// Runs `f` with everything on the device.
    fn on_device<R>(&self, gpu: &Gpu, f: impl FnOnce(&DeviceTables<'_, T>, &DeviceLookup<'_>) -> R) -> R {
        let stream = gpu.stream();
        let mut guarded: Vec<_> = self.tables.iter().map(|table| Guarded::new(gpu, table, self.shift)).collect();
        let views: Vec<_> = guarded.iter_mut().map(|table| table.view()).collect();
        let table = |i: usize| (!self.tables[i].is_empty()).then_some(&views[i] as posenc::gpu::Read<'_, T>);
        let ids: Vec<i32> = self.ids.iter().map(|&id| id as i32).collect();
        let ids = stream.clone_htod(&ids).unwrap();
        let types = stream.clone_htod(&self.types).unwrap();
        let mask = stream.clone_htod(&self.mask).unwrap();
        let past = stream.clone_htod(&self.past).unwrap();
        let tables =
            DeviceTables { token: table(0), position: table(1), types: table(2), gain: table(3), bias: table(4) };
        let lookup = DeviceLookup {
            ids: Some(i32::ids(&ids)),
            types: Some(i64::ids(&types)),
            mask: Some(&mask),
            positions: if self.counts() { Positions::starts(&past) } else { Positions::counted() },
        };
        f(&tables, &lookup)
    }

    fn check(&self, gpu: &Gpu) {
        let plan = LearnedPlan::<T>::new(gpu, &self.learned).unwrap();
        let mut x = Guarded::new(gpu, &self.x, self.shift);
        let mut flag = ErrorFlag::new(gpu).unwrap();
        self.on_device(gpu, |tables, lookup| {
            plan.gather(self.tokens.of_mut(&mut x.view()), tables, lookup, Some(&mut flag)).unwrap();
        });
        flag.check(gpu).unwrap();
        let expected = self.learned.expect(&self.x, &self.tokens, &self.tables(), &self.lookup()).unwrap();
        let worst = compare(&x.read(gpu), &expected.want, |i| expected.bound[i]);
        let present = self.tables.each_ref().map(|table| !table.is_empty());
        assert!(
            worst.share <= 1.0,
            "{} {:?} {:?} {present:?} shift {}: {worst:?}",
            T::NAME,
            self.learned,
            self.tokens,
            self.shift
        );
    }
}

fn rules() -> [Rows; 4] {
    [
        Rows::Offset(0),
        Rows::Offset(2),
        Rows::Kept { padding: Some(1), first: 2, padded: 1 },
        Rows::Kept { padding: None, first: 1, padded: 0 },
    ]
}

fn norms() -> [Option<Norm>; 3] {
    [None, Some(Norm::Layer { eps: 1e-5 }), Some(Norm::Rms { eps: 1e-6 })]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_reference_for_every_combination_of_tables() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(21);
        for norm in norms() {
            for rows in rules() {
                for bits in 0..32u32 {
                    let present = [0, 1, 2, 3, 4].map(|i| bits >> i & 1 == 1);
                    if norm.is_none() && bits >= 8 {
                        continue;
                    }
                    let learned = Learned { dim: 24, scale: data.pick(&[1.0, 4.5]), rows, norm };
                    Case::<T>::new(learned, Tokens::new(2, 5, 24), present, 0, &mut data).check(gpu);
                }
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
    check::<half::bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_reference_for_shapes_on_the_edges() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(22);
        // Around a unit, a warp, 256 threads of 1 unit, of 4 units, and beyond.
        for dim in [1, 2, 7, 8, 9, 12, 31, 255, 256, 260, 768, 2047, 2048, 2056, 4100, 8192, 8200] {
            for (norm, aligned) in norms().into_iter().flat_map(|norm| [(norm, true), (norm, false)]) {
                let (batch, count) = (1 + data.below(3), 1 + data.below(if dim > 300 { 3 } else { 20 }));
                // Multiples of 16 bytes as far as dim is one, and others.
                let (pad, offset, shift) = if aligned {
                    (data.pick(&[0, 8]), data.pick(&[0, 8]), 0)
                } else {
                    (data.pick(&[0, 8, 1]), data.pick(&[0, 8, 3]), data.pick(&[1, 4]))
                };
                let tokens = Tokens {
                    offset,
                    strides: [count * (dim + pad) + pad, dim + pad],
                    ..Tokens::new(batch, count, dim)
                };
                let learned = Learned { dim, scale: 1.5, rows: data.pick(&rules()), norm };
                Case::<T>::new(learned, tokens, [data.below(2) == 0, true, true, true, true], shift, &mut data)
                    .check(gpu);
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn all_widths_and_layouts_give_the_same_bits() {
    fn check<T: Scalar>(gpu: &Gpu) {
        for norm in norms() {
            let learned = Learned { norm, scale: 3.0, ..Learned::new(768) };
            let mut bits = Vec::new();
            for (shift, pad) in [(0, 0), (4, 0), (1, 0), (0, 8), (0, 1)] {
                let tokens = Tokens { strides: [3 * (768 + pad), 768 + pad], ..Tokens::new(2, 3, 768) };
                let mut data = Data::new(23);
                let case = Case::<T>::new(learned, tokens, [true; 5], shift, &mut data);
                let plan = LearnedPlan::<T>::new(gpu, &learned).unwrap();
                let mut x = Guarded::new(gpu, &case.x, shift);
                case.on_device(gpu, |tables, lookup| {
                    plan.gather(tokens.of_mut(&mut x.view()), tables, lookup, None).unwrap();
                });
                let x = x.read(gpu);
                let rows: Vec<T> = (0..6).flat_map(|row| x[row * (768 + pad)..][..768].to_vec()).collect();
                bits.push(bytemuck::cast_slice::<T, u8>(&rows).to_vec());
            }
            assert!(bits.iter().all(|other| *other == bits[0]), "{norm:?}");
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn ids_outside_their_tables_are_reported_and_never_read() {
    let gpu = gpu();
    let stream = gpu.stream();
    let table = stream.clone_htod(&[1.0f32; 8]).unwrap();
    let run = |ids: &[i64], types: &[u32], offset: i64| {
        let plan = LearnedPlan::<f32>::new(&gpu, &Learned { rows: Rows::Offset(offset), ..Learned::new(2) }).unwrap();
        let (ids, types) = (stream.clone_htod(ids).unwrap(), stream.clone_htod(types).unwrap());
        let mut x = Guarded::<f32>::poisoned(&gpu, 6, 0);
        let tables = DeviceTables {
            token: Some(&table),
            position: Some(&table),
            types: Some(&table),
            ..DeviceTables::default()
        };
        let lookup =
            DeviceLookup { ids: Some(i64::ids(&ids)), types: Some(u32::ids(&types)), ..DeviceLookup::default() };
        let tokens = Tokens::new(1, 3, 2);
        let checked = plan.gather_checked(tokens.of_mut(&mut x.view()), &tables, &lookup);
        let nans = |x: Vec<f32>| x.chunks(2).map(|row| row.iter().all(|x| x.is_nan())).collect::<Vec<bool>>();
        let nan = nans(x.read(&gpu));
        let mut unreported = Guarded::<f32>::poisoned(&gpu, 6, 0);
        plan.gather(tokens.of_mut(&mut unreported.view()), &tables, &lookup, None).unwrap();
        assert_eq!(nans(unreported.read(&gpu)), nan);
        (checked.err().map(|error| error.to_string()), nan)
    };
    assert_eq!(run(&[0, 3, 1], &[0, 1, 3], 1), (None, vec![false; 3]));
    assert_eq!(
        run(&[0, 4, i64::MIN], &[0; 3], 0),
        (Some("token 1: its id lies outside the token table of 4 rows".into()), vec![false, true, true])
    );
    assert_eq!(
        run(&[0, 1, 2], &[0, 0, u32::MAX], 0),
        (Some("token 2: its type lies outside the type table of 4 rows".into()), vec![false, false, true])
    );
    assert_eq!(
        run(&[0, 1, 2], &[0; 3], -1),
        (
            Some("token 0: its position's row lies outside the position table of 4 rows".into()),
            vec![true, false, false]
        )
    );
    // The first table of those that one token misses.
    assert_eq!(
        run(&[4, 1, 2], &[9, 0, 0], -1).0,
        Some("token 0: its id lies outside the token table of 4 rows".into())
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn given_and_packed_positions_choose_rows() {
    let gpu = gpu();
    let stream = gpu.stream();
    let table: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let table = stream.clone_htod(&table).unwrap();
    let plan = LearnedPlan::<f32>::new(&gpu, &Learned::new(1)).unwrap();
    let tables = DeviceTables { position: Some(&table), ..DeviceTables::default() };
    let run = |batch: usize, positions: Positions<Ids<'_>>| {
        let mut x = stream.clone_htod(&[0.0f32; 6]).unwrap();
        let lookup = DeviceLookup { positions, ..DeviceLookup::default() };
        plan.gather_checked(Tokens::new(batch, 6 / batch, 1).of_mut(&mut x), &tables, &lookup).unwrap();
        let mut rows = stream.clone_htod(&[-9i64; 6]).unwrap();
        plan.rows(&mut rows, batch, 6 / batch, &lookup).unwrap();
        let x: Vec<i64> = stream.clone_dtoh(&x).unwrap().iter().map(|&x| x as i64).collect();
        assert_eq!(x, stream.clone_dtoh(&rows).unwrap());
        x
    };
    let ids = stream.clone_htod(&[5, 0, 11, 3, 3, 7]).unwrap();
    assert_eq!(run(2, Positions::ids(&ids)), [5, 0, 11, 3, 3, 7]);
    let indptr = stream.clone_htod(&[0, 2, 2, 6]).unwrap();
    assert_eq!(run(1, Positions::packed(&indptr, 3)), [0, 1, 0, 1, 2, 3]);
    assert_eq!(run(2, Positions::counted()), [0, 1, 2, 0, 1, 2]);
}

/// Positions that count go on over the groups of a block, and every block counts those before its own.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn kept_tokens_are_counted_over_many_blocks() {
    let gpu = gpu();
    let stream = gpu.stream();
    let mut data = Data::new(31);
    let below_zero = u32::MAX;
    // Sequences that begin anywhere within 16 bytes, blocks of one group and of several, groups of 256 tokens and of 7.
    for (batch, tokens, dim) in [(1, 5000, 8), (5, 777, 8), (264, 1100, 8), (8, 1000, 264)] {
        let all = batch * tokens;
        let ids: Vec<u32> = (0..all).map(|_| data.pick(&[0, 1, 7, below_zero])).collect();
        let mask: Vec<u8> = (0..all + 3).map(|_| data.pick(&[0, 1, 128, 255])).collect();
        let past: Vec<i64> = (0..batch).map(|_| data.below(3) as i64).collect();
        let (mask_there, past_there) = (stream.clone_htod(&mask).unwrap(), stream.clone_htod(&past).unwrap());
        let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let narrow: Vec<i32> = ids.iter().map(|&id| id.cast_signed()).collect();
        let (wide, narrow) = (stream.clone_htod(&wide).unwrap(), stream.clone_htod(&narrow).unwrap());
        let ids_there = stream.clone_htod(&ids).unwrap();
        let table: Vec<f32> = (0..dim * (tokens + 9)).map(|i| (i / dim) as f32).collect();
        let table = stream.clone_htod(&table).unwrap();
        for (ids_are, padding) in
            [(None, None), (Some(0), Some(1)), (Some(0), Some(-1)), (Some(0), Some(1 << 32)), (Some(1), Some(7))]
                .into_iter()
                .chain([
                    (Some(1), Some(i64::from(below_zero))),
                    (Some(2), Some(i64::from(below_zero))),
                    (Some(2), Some(-1)),
                    // ids that have its low 32 bits
                    (Some(1), Some((1 << 32) + 7)),
                ])
        {
            let rule = Rows::Kept { padding, first: 4, padded: 2 };
            let kept = |i: usize| match (ids_are, padding) {
                (Some(0), Some(padding)) => i64::from(ids[i].cast_signed()) != padding,
                (Some(_), Some(padding)) => i64::from(ids[i]) != padding,
                _ => mask[i + 3] != 0,
            };
            let mut want = vec![2; all];
            for ((sequence, rows), past) in want.chunks_mut(tokens).enumerate().zip(&past) {
                let mut next = 4 + past;
                for (i, row) in rows.iter_mut().enumerate() {
                    if kept(sequence * tokens + i) {
                        *row = next;
                        next += 1;
                    }
                }
            }
            let view = mask_there.slice(3..);
            let lookup = DeviceLookup {
                ids: ids_are.map(|kind| [i32::ids(&narrow), i64::ids(&wide), u32::ids(&ids_there)][kind]),
                mask: Some(&view),
                positions: Positions::starts(&past_there),
                ..DeviceLookup::default()
            };
            let plan = LearnedPlan::<f32>::new(&gpu, &Learned { rows: rule, ..Learned::new(dim) }).unwrap();
            let mut rows = stream.clone_htod(&vec![-9i64; all]).unwrap();
            plan.rows(&mut rows, batch, tokens, &lookup).unwrap();
            assert!(stream.clone_dtoh(&rows).unwrap() == want, "{batch} x {tokens} x {dim}, {ids_are:?} {padding:?}");
            let mut x = stream.clone_htod(&vec![0.0f32; all * dim]).unwrap();
            let tables = DeviceTables { position: Some(&table), ..DeviceTables::default() };
            plan.gather_checked(Tokens::new(batch, tokens, dim).of_mut(&mut x), &tables, &lookup).unwrap();
            let x = stream.clone_dtoh(&x).unwrap();
            assert!(
                x.iter()
                    .zip(want.iter().flat_map(|row| std::iter::repeat_n(*row as f32, dim)))
                    .all(|(x, row)| *x == row)
            );
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_fused_embedding_moves_three_streams_with_wide_accesses() {
    let gpu = gpu();
    for norm in norms() {
        let (batch, count, dim) = (4, 16, 768);
        let learned = Learned { norm, ..Learned::new(dim) };
        let case = Case::<half::bf16>::new(
            learned,
            Tokens::new(batch, count, dim),
            [true, true, false, true, true],
            0,
            &mut Data::new(1),
        );
        let plan = LearnedPlan::<half::bf16>::new(&gpu, &learned).unwrap();
        let mut x = Guarded::new(&gpu, &case.x, 0);
        let report = case.on_device(&gpu, |tables, lookup| {
            plan.gather(case.tokens.of_mut(&mut x.view()), tables, lookup, None).unwrap();
            last_launch()
        });
        let Some(report) = report else { return };
        let rows = (batch * count) as u64;
        let row = (dim * 2) as u64;
        assert_eq!(report.counters.bytes_written, rows * row);
        // A token row and a position row, an id read by each thread; gain and bias once for each row, from a cache.
        let vectors = match norm {
            None => 0,
            Some(Norm::Layer { .. }) => 2,
            Some(_) => 1,
        };
        let ids = rows * u64::from(report.block[0]) * 4;
        assert_eq!(report.counters.bytes_read, rows * row * (2 + vectors) + ids, "{norm:?}");
        assert!(report.counters.share_of_wide_bytes() > 0.9, "{norm:?}");
        assert_eq!(report.counters.local_bytes_written, 0);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_read_what_they_must_with_wide_accesses() {
    let gpu = gpu();
    let stream = gpu.stream();
    let (batch, count, dim) = (2, 16, 768);
    let (tokens, row) = (Tokens::new(batch, count, dim), dim as u64 * 2);
    let learned = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(dim) };
    let case = Case::<half::bf16>::new(learned, tokens, [true, true, false, true, true], 0, &mut Data::new(2));
    let plan = LearnedGradPlan::<half::bf16>::new(&gpu, &learned, tokens).unwrap();
    let grad = stream.clone_htod(&case.x).unwrap();
    let mut sum = Guarded::<half::bf16>::poisoned(&gpu, case.x.len(), 0);
    let report = case.on_device(&gpu, |tables, lookup| {
        let mut sum = sum.view();
        plan.norm(NormGrad::new(tokens.of_mut(&mut sum)), tokens.of(&grad), None, tables, lookup).unwrap();
        last_launch()
    });
    let Some(report) = report else { return };
    let rows = (batch * count) as u64;
    // A block's partial sums are held and written at the end.
    let sums = u64::from(report.grid[0]) * 2 * dim as u64 * 4;
    assert_eq!(report.counters.bytes_written, rows * row + sums);
    // Two rows of tables, grad and gain; an id for each thread.
    let ids = rows * u64::from(report.block[0]) * 4;
    assert_eq!(report.counters.bytes_read, rows * row * (2 + 1 + 1) + ids);
    let narrow = (sums + ids) as f64 / (report.counters.bytes_written + report.counters.bytes_read) as f64;
    assert!(report.counters.share_of_wide_bytes() > 0.999 - narrow);
    assert_eq!(report.counters.local_bytes_written, 0);

    let mut table = Guarded::<half::bf16>::poisoned(&gpu, count * dim, 0);
    plan.counted(&mut table.view(), tokens.of(&grad), 0, TableGrad::new(count)).unwrap();
    let Some(report) = last_launch() else { return };
    assert_eq!(report.counters.bytes_read, rows * row);
    assert_eq!(report.counters.bytes_written, count as u64 * row);
    assert!(report.counters.share_of_wide_bytes() == 1.0);
}

/// Four of eight channels are a thread's where a row of f32 ends, and behind it ends the memory.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn nothing_behind_the_last_row_of_an_allocation_is_read() {
    let gpu = gpu();
    let stream = gpu.stream();
    let dim = 12;
    let learned = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(dim) };
    let tokens = Tokens::new(1, 3, dim);
    let up = |n: usize| stream.clone_htod(&Data::new(n as u64).values::<f32>(n)).unwrap();
    let (table, positions, gain) = (up(4 * dim), up(3 * dim), up(dim));
    let tables =
        DeviceTables { token: Some(&table), position: Some(&positions), gain: Some(&gain), ..DeviceTables::default() };
    let ids = stream.clone_htod(&[3i32, 0, 3]).unwrap();
    let lookup = DeviceLookup { ids: Some(i32::ids(&ids)), ..DeviceLookup::default() };
    let (grad, mut sum, mut out) = (up(3 * dim), up(3 * dim), up(3 * dim));
    LearnedPlan::<f32>::new(&gpu, &learned).unwrap().gather(tokens.of_mut(&mut out), &tables, &lookup, None).unwrap();
    let plan = LearnedGradPlan::<f32>::new(&gpu, &learned, tokens).unwrap();
    plan.norm(NormGrad::new(tokens.of_mut(&mut sum)), tokens.of(&grad), None, &tables, &lookup).unwrap();
    assert!(stream.clone_dtoh(&out).unwrap().iter().chain(&stream.clone_dtoh(&sum).unwrap()).all(|x| x.is_finite()));
}

/// All gradients of one case on the device, against the reference.
fn check_gradients<T: Scalar>(gpu: &Gpu, case: &Case<T>, accumulate: bool) {
    let stream = gpu.stream();
    let Case { learned, tokens, .. } = case;
    let (batch, count, dim) = (tokens.batch, tokens.tokens, learned.dim);
    let grad = Data::new(77).values::<T>(tokens.span().unwrap());
    let packed = |values: &[T]| -> Vec<T> {
        (0..batch * count).flat_map(|i| values[tokens.index(i / count, i % count, 0)..][..dim].to_vec()).collect()
    };
    let (x_rows, grad_rows) = (packed(&case.x), packed(&grad));
    let want = learned.grad((batch, count), &x_rows, &grad_rows, &case.tables(), &case.lookup()).unwrap();
    let rows = learned.rows(batch, count, &case.tables(), &case.lookup()).unwrap();
    let plan = LearnedGradPlan::<T>::new(gpu, learned, *tokens).unwrap();
    let what = format!("{} {learned:?} {tokens:?} {}", T::NAME, case.shift);

    let mut device_grad = Guarded::new(gpu, &grad, case.shift);
    let mut device_x = Guarded::new(gpu, &case.x, case.shift);
    let mut sum = Guarded::<T>::poisoned(gpu, tokens.span().unwrap(), case.shift);
    // What the tables' gradients are made from, and how far it is from the truth.
    let (sums, errors): (Vec<T>, Vec<f64>) = if learned.norm.is_some() {
        let before = Data::new(78).values::<T>(dim);
        let (mut gain, mut bias) = (Guarded::new(gpu, &before, 0), Guarded::new(gpu, &before, 0));
        case.on_device(gpu, |tables, lookup| {
            let (grad, x) = (device_grad.view(), device_x.view());
            let (mut sum, mut gain, mut bias) = (sum.view(), gain.view(), bias.view());
            let layer = matches!(learned.norm, Some(Norm::Layer { .. }));
            let out = NormGrad {
                gain: Some(&mut gain),
                bias: layer.then_some(&mut bias as posenc::gpu::Write<'_, T>),
                accumulate,
                ..NormGrad::new(tokens.of_mut(&mut sum))
            };
            let x = case.tables[0].is_empty().then_some(tokens.of(&x));
            plan.norm(out, tokens.of(&grad), x, tables, lookup).unwrap();
        });
        let got = packed(&sum.read(gpu));
        let bound: Vec<f64> = (0..batch * count)
            .flat_map(|i| {
                let g: Vec<f64> = (0..dim)
                    .map(|c| grad_rows[i * dim + c].to_f64() * case.tables[3].get(c).map_or(1.0, |x| x.to_f64()))
                    .collect();
                let (y, sigma, magnitude) = row_of(case, &rows[i], &x_rows[i * dim..][..dim]);
                learned.sum_grad_error_bound(&y, &g, magnitude, sigma)
            })
            .collect();
        let worst = compare(&got, &want.sum, |i| rounded::<T>(want.sum[i], bound[i]));
        assert!(worst.share <= 1.0, "sum of {what}: {worst:?}");

        for (got, want, which) in [(&gain, &want.gain, "gain"), (&bias, &want.bias, "bias")] {
            if want.is_empty() {
                continue;
            }
            let want: Vec<f64> =
                (0..dim).map(|c| want[c] + if accumulate { before[c].to_f64() } else { 0.0 }).collect();
            let bound = |c: usize| {
                let (mut magnitude, mut off) = (before[c].to_f64().abs(), 0.0);
                for i in 0..batch * count {
                    let (y, sigma, size) = row_of(case, &rows[i], &x_rows[i * dim..][..dim]);
                    let grad = grad_rows[i * dim + c].to_f64().abs();
                    if which == "gain" {
                        magnitude += grad * y[c].abs();
                        off += grad * learned.norm_error_bound(y[c], 1.0, 0.0, size, sigma);
                    } else {
                        magnitude += grad;
                    }
                }
                off + Learned::table_grad_error_bound(batch * count, magnitude)
            };
            let worst = compare(&got.read(gpu), &want, |c| rounded::<T>(want[c], bound(c)));
            assert!(worst.share <= 1.0, "{which} of {what}: {worst:?}");
        }
        (got, vec![0.0; want.sum.len()])
    } else {
        (grad_rows.clone(), vec![0.0; want.sum.len()])
    };
    drop(errors);

    // The tables, from the sums as the device has them.
    let mut scattered = case.x.clone();
    for i in 0..batch * count {
        scattered[tokens.index(i / count, i % count, 0)..][..dim].copy_from_slice(&sums[i * dim..][..dim]);
    }
    let mut sums_device = Guarded::new(gpu, &scattered, case.shift);
    let tables = [
        (0, rows.iter().map(|row| row.token).collect::<Vec<_>>(), learned.scale, None),
        (1, rows.iter().map(|row| row.position).collect(), 1.0, Some(1)),
        (2, rows.iter().map(|row| row.types).collect(), 1.0, None),
    ];
    for (table, ids, scale, skipped) in tables {
        let Some(ids) = ids.into_iter().collect::<Option<Vec<usize>>>() else { continue };
        let before = Data::new(79).values::<T>(case.tables[table].len());
        let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; before.len()];
        for row in 0..before.len() / dim {
            let readers: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == row).collect();
            if readers.is_empty() || skipped == Some(row as i64) {
                continue;
            }
            for c in 0..dim {
                let at = row * dim + c;
                let terms: Vec<f64> = readers.iter().map(|&i| sums[i * dim + c].to_f64() * scale).collect();
                let old = if accumulate { want[at] } else { 0.0 };
                let magnitude = terms.iter().map(|x| x.abs()).sum::<f64>() + old.abs();
                want[at] = terms.iter().sum::<f64>() + old;
                bound[at] = rounded::<T>(want[at], Learned::table_grad_error_bound(terms.len(), magnitude));
            }
        }
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let device_ids = stream.clone_htod(&ids).unwrap();
        let mut places = stream.clone_htod(&vec![u32::MAX; ids.len()]).unwrap();
        plan.order(&mut places, i64::ids(&device_ids), ids.len()).unwrap();
        assert_eq!(stream.clone_dtoh(&places).unwrap(), order(&ids).unwrap());
        let how = TableGrad { scale, skipped, accumulate, ..TableGrad::new(before.len() / dim) };
        let mut out = Guarded::new(gpu, &before, case.shift);
        let (ids, sums) = (i64::ids(&device_ids), sums_device.view());
        plan.table(&mut out.view(), tokens.of(&sums), ids, &places, how).unwrap();
        let worst = compare(&out.read(gpu), &want, |i| bound[i]);
        assert!(worst.share <= 1.0, "table {table} of {what}: {worst:?}");
    }
}

/// A row before gain and bias, what it was divided by, and the largest magnitude of its sums.
fn row_of<T: Scalar>(case: &Case<T>, row: &embed::Row, x: &[T]) -> (Vec<f64>, f64, f64) {
    let dim = case.learned.dim;
    let at = |table: usize, row: usize, c: usize| case.tables[table][row * dim + c].to_f64();
    let terms: Vec<[f64; 3]> = (0..dim)
        .map(|c| {
            [
                row.token.map_or_else(|| x[c].to_f64(), |row| at(0, row, c)) * case.learned.scale,
                row.position.map_or(0.0, |row| at(1, row, c)),
                row.types.map_or(0.0, |row| at(2, row, c)),
            ]
        })
        .collect();
    let v: Vec<f64> = terms.iter().map(|terms| terms.iter().sum()).collect();
    let magnitude = terms.iter().map(|terms| terms.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max);
    let (mean, eps) = match case.learned.norm {
        Some(Norm::Layer { eps }) => (v.iter().sum::<f64>() / dim as f64, eps),
        Some(Norm::Rms { eps }) => (0.0, eps),
        _ => (0.0, 1.0),
    };
    let sigma = (v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64 + eps).sqrt();
    (v.iter().map(|v| (v - mean) / sigma).collect(), sigma, magnitude)
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_meet_the_reference() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(31);
        for (dim, batch, count) in
            [(8, 2, 5), (5, 3, 4), (24, 1, 40), (130, 2, 3), (768, 3, 2), (2056, 1, 3), (8200, 1, 2)]
        {
            for norm in norms() {
                let tokens = Tokens::new(batch, count, dim);
                let learned = Learned { dim, scale: 2.5, rows: data.pick(&rules()), norm };
                let present = [data.below(3) > 0, true, true, data.below(2) == 0, true];
                let case = Case::<T>::new(learned, tokens, present, data.pick(&[0, 1, 4]), &mut data);
                check_gradients(gpu, &case, data.below(2) == 0);
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn many_tokens_share_a_row_and_many_blocks_their_sums() {
    let gpu = gpu();
    let mut data = Data::new(32);
    // More groups than blocks that keep partial sums: of sequences of one group, and of blocks that go on from one sequence
    // into the next.
    for (batch, count) in [(600, 2), (3, 1001)] {
        for rows in rules() {
            let learned = Learned { rows, norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(16) };
            let case = Case::<f32>::new(learned, Tokens::new(batch, count, 16), [true; 5], 0, &mut data);
            check_gradients(&gpu, &case, false);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn ids_are_ordered_in_tiles_and_merges_of_eight() {
    let gpu = gpu();
    let stream = gpu.stream();
    let plan = LearnedGradPlan::<f32>::new(&gpu, &Learned::new(1), Tokens::new(1, 65_537, 1)).unwrap();
    let mut data = Data::new(34);
    // Around a tile, eight of them, and 64: no merge, one, two, three.
    for count in [1, 2, 255, 1023, 1024, 1025, 3000, 8192, 8193, 20_000, 65_536, 65_537] {
        for values in [1, 3, 500, 1 << 40] {
            if count > 30_000 && values != 500 {
                continue;
            }
            let ids: Vec<i64> = (0..count).map(|_| data.below(values) as i64 - 2).collect();
            let device = stream.clone_htod(&ids).unwrap();
            let mut got = stream.clone_htod(&vec![u32::MAX; count]).unwrap();
            plan.order(&mut got, i64::ids(&device), count).unwrap();
            assert_eq!(stream.clone_dtoh(&got).unwrap(), order(&ids).unwrap(), "{count} ids of {values}");
        }
    }
    // The same bits mean another order in another type.
    let mut got = stream.clone_htod(&[9u32; 3]).unwrap();
    plan.order(&mut got, u32::ids(&stream.clone_htod(&[u32::MAX, 0, 1]).unwrap()), 3).unwrap();
    assert_eq!(stream.clone_dtoh(&got).unwrap(), [1, 2, 0]);
    plan.order(&mut got, i32::ids(&stream.clone_htod(&[-1, 0, 1]).unwrap()), 3).unwrap();
    assert_eq!(stream.clone_dtoh(&got).unwrap(), [0, 1, 2]);
}

/// Every way that an id may lie across the chunks of 16 places that the first kernel walks.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn ids_of_any_frequency_are_summed() {
    fn check<T: Scalar>(gpu: &Gpu, dim: usize, times: &[usize], shift: usize, data: &mut Data) {
        let stream = gpu.stream();
        let mut ids: Vec<i64> = times.iter().enumerate().flat_map(|(id, &n)| vec![id as i64 - 1; n]).collect();
        // Shuffled: the order is the kernel's to find.
        for i in (1..ids.len()).rev() {
            ids.swap(i, data.below(i + 1));
        }
        let (count, rows) = (ids.len(), times.len() - 2);
        let tokens = Tokens::new(1, count, dim);
        let grad = data.values::<T>(count * dim);
        let plan = LearnedGradPlan::<T>::new(gpu, &Learned::new(dim), tokens).unwrap();
        let how = TableGrad { scale: 1.5, skipped: Some(1), accumulate: true, rows };
        let before = data.values::<T>(rows * dim);
        let device_ids = stream.clone_htod(&ids).unwrap();
        let mut device_grad = Guarded::new(gpu, &grad, shift);
        let mut run = || {
            let mut places = stream.clone_htod(&vec![u32::MAX; count]).unwrap();
            plan.order(&mut places, i64::ids(&device_ids), count).unwrap();
            let mut out = Guarded::new(gpu, &before, shift);
            let (ids, grad) = (i64::ids(&device_ids), device_grad.view());
            plan.table(&mut out.view(), tokens.of(&grad), ids, &places, how).unwrap();
            out.read(gpu)
        };
        let got = run();
        let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
        let mut magnitude: Vec<f64> = want.iter().map(|x| x.abs()).collect();
        for (index, &id) in ids.iter().enumerate() {
            if (0..rows as i64).contains(&id) && id != 1 {
                for c in 0..dim {
                    let term = grad[index * dim + c].to_f64() * 1.5;
                    want[id as usize * dim + c] += term;
                    magnitude[id as usize * dim + c] += term.abs();
                }
            }
        }
        let bound = |i: usize| {
            // Rows that no token reads are not touched.
            let readers = times[i / dim + 1];
            if readers == 0 || i / dim == 1 {
                0.0
            } else {
                rounded::<T>(want[i], Learned::table_grad_error_bound(readers, magnitude[i]))
            }
        };
        let worst = compare(&got, &want, bound);
        assert!(worst.share <= 1.0, "{} dim {dim} {times:?} shift {shift}: {worst:?}", T::NAME);
        // Two runs, the same bits.
        assert_eq!(bytemuck::cast_slice::<T, u8>(&got), bytemuck::cast_slice::<T, u8>(&run()));
    }
    let gpu = gpu();
    let mut data = Data::new(35);
    // By id from -1 on; the first and the last lie outside the table, id 1 is skipped.
    for times in [
        &[0, 1, 0, 0][..],
        &[1, 16, 3, 16, 16, 0, 1],
        &[3, 13, 2, 14, 17, 31, 33, 5],
        &[0, 300, 40, 700, 0, 1, 1, 2, 64],
        &[5, 0, 20, 0, 15, 1, 1, 1, 15, 2, 0, 7],
    ] {
        check::<f32>(&gpu, 8, times, 0, &mut data);
        check::<f32>(&gpu, 5, times, 1, &mut data);
        check::<half::bf16>(&gpu, 136, times, 0, &mut data);
        check::<half::bf16>(&gpu, 20, times, 0, &mut data);
    }
    check::<half::f16>(&gpu, 1032, &[2, 40, 1, 9, 5], 0, &mut data);
    check::<half::f16>(&gpu, 260, &[2, 40, 1, 9, 5], 0, &mut data);
}

/// A table of two rows and many tokens: the second kernel reads partial sums, one row for 16 tokens, and no gradient again.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_table_of_two_rows_is_summed_in_two_stages() {
    let gpu = gpu();
    let stream = gpu.stream();
    let (count, dim) = (4096usize, 256usize);
    let tokens = Tokens::new(1, count, dim);
    let plan = LearnedGradPlan::<half::bf16>::new(&gpu, &Learned::new(dim), tokens).unwrap();
    let values = Data::new(36).values::<half::bf16>(count * dim);
    let grad = stream.clone_htod(&values).unwrap();
    let ids: Vec<i64> = (0..count as i64).map(|i| i % 2).collect();
    let places = stream.clone_htod(&order(&ids).unwrap()).unwrap();
    let ids = stream.clone_htod(&ids).unwrap();
    let mut out = Guarded::<half::bf16>::poisoned(&gpu, 2 * dim, 0);
    plan.table(&mut out.view(), tokens.of(&grad), i64::ids(&ids), &places, TableGrad::new(2)).unwrap();
    if let Some(report) = last_launch() {
        let written = 2 * dim as u64 * 2;
        assert_eq!(report.counters.bytes_written, written);
        // Ids and their order are read by fewer bytes at once.
        let sums = (count / 16 * dim * 4) as u64;
        assert_eq!(report.counters.global_accesses[4] * 16, sums + written, "{:?}", report.counters);
    }
    let want: Vec<f64> = (0..2 * dim)
        .map(|i| (0..count).filter(|t| t % 2 == i / dim).map(|t| values[t * dim + i % dim].to_f64()).sum())
        .collect();
    // Terms are between 0.5 and 2.
    let bound = Learned::table_grad_error_bound(count / 2, 2.0 * (count / 2) as f64);
    assert_close(&out.read(&gpu), &want, |i| rounded::<half::bf16>(want[i], bound));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn counted_positions_are_a_sum_over_the_batch() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(33);
        for (dim, batch, count, pad) in [(8, 5, 3, 0), (7, 2, 9, 1), (768, 3, 2, 8), (2056, 2, 1, 0)] {
            for accumulate in [false, true] {
                let tokens = Tokens { strides: [count * (dim + pad), dim + pad], ..Tokens::new(batch, count, dim) };
                let grad = data.values::<T>(tokens.span().unwrap());
                let before = data.values::<T>((count + 3) * dim);
                let plan = LearnedGradPlan::<T>::new(gpu, &Learned::new(dim), tokens).unwrap();
                let (mut device, mut out) = (Guarded::new(gpu, &grad, 0), Guarded::new(gpu, &before, 0));
                let how = TableGrad { scale: 1.5, accumulate, ..TableGrad::new(count + 3) };
                plan.counted(&mut out.view(), tokens.of(&device.view()), 2, how).unwrap();
                let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
                let mut bound = vec![0.0; want.len()];
                for token in 0..count {
                    for c in 0..dim {
                        let terms: Vec<f64> =
                            (0..batch).map(|b| grad[tokens.index(b, token, c)].to_f64() * 1.5).collect();
                        let at = (token + 2) * dim + c;
                        let old = if accumulate { want[at] } else { 0.0 };
                        want[at] = terms.iter().sum::<f64>() + old;
                        let magnitude = terms.iter().map(|x| x.abs()).sum::<f64>() + old.abs();
                        bound[at] = rounded::<T>(want[at], Learned::table_grad_error_bound(batch, magnitude));
                    }
                }
                assert_close(&out.read(gpu), &want, |i| bound[i]);
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
}

/// More sequences than a grid has blocks on its second axis.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn grids_at_their_limits() {
    let gpu = gpu();
    let learned = Learned { norm: Some(Norm::Rms { eps: 1e-5 }), ..Learned::new(2) };
    Case::<f32>::new(learned, Tokens::new(65_547, 1, 2), [true; 5], 0, &mut Data::new(37)).check(&gpu);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn ids_outside_their_tables_are_refused_and_nothing_is_written() {
    let table = [0.0f32; 8];
    let tables =
        HostTables { token: Some(&table), position: Some(&table), types: Some(&table[..4]), ..HostTables::default() };
    let mut x = [7.0f32; 6];
    let mut refused = |rows: Rows, lookup: HostLookup<'_>, message: &str| {
        let learned = Learned { rows, ..Learned::new(2) };
        let error = learned.gather(&mut x, &Tokens::new(1, 3, 2), &tables, &lookup).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(x, [7.0; 6]);
    };
    let good = HostLookup { ids: Some(&[0, 1, 2]), types: Some(&[0, 1, 0]), ..HostLookup::default() };
    let any = Rows::Offset(0);
    refused(any, HostLookup { ids: Some(&[0, 4, 0]), ..good }, "ids[1] is 4, the token table has 4 rows");
    refused(any, HostLookup { ids: Some(&[0, 0, -1]), ..good }, "ids[2] is -1, the token table has 4 rows");
    refused(any, HostLookup { types: Some(&[0, 0, 2]), ..good }, "types[2] is 2, the type table has 2 rows");
    refused(Rows::Offset(2), good, "the position row of token[2] is 4, the position table has 4 rows");
    let counted = Rows::Kept { padding: None, first: 1, padded: 0 };
    refused(
        counted,
        HostLookup { mask: Some(&[1, 1, 1]), positions: Positions::starts(&[i64::MAX]), ..good },
        "the position row of token[0] is -9223372036854775808, the position table has 4 rows",
    );
    refused(
        any,
        HostLookup { positions: Positions::ids(&[0, -1, 0]), ..good },
        "the position row of token[1] is -1, the position table has 4 rows",
    );
    refused(any, HostLookup { ids: Some(&[0, 1]), ..good }, "ids holds 2 elements, the call needs 3");
    refused(
        any,
        HostLookup { positions: Positions::ids(&[0]), ..good },
        "positions holds 1 elements, the shape needs 3",
    );
    refused(counted, good, "mask is missing, the spec counts tokens over it");
    refused(counted, HostLookup { mask: Some(&[1, 1]), ..good }, "mask holds 2 elements, the call needs 3");
    refused(any, HostLookup { types: None, ..good }, "types are missing, a table is read by them");
    refused(
        counted,
        HostLookup { mask: Some(&[1, 1, 1]), positions: Positions::ids(&[0, 1, 2]), ..good },
        "tokens are counted by the spec, positions must be counted() or starts",
    );
}

#[test]
fn specs_and_tables_are_refused_with_the_numbers() {
    let mut x = [7.0f32; 4];
    let mut refused = |learned: Learned, tables: HostTables<'_, f32>, message: &str| {
        let error = learned.gather(&mut x, &Tokens::new(1, 2, 2), &tables, &HostLookup::default()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(x, [7.0; 4]);
    };
    let plain = Learned::new(2);
    let none = HostTables::default();
    refused(Learned { dim: 3, ..plain }, none, "x has 2 channels, the encoding has 3");
    refused(Learned { scale: f64::INFINITY, ..plain }, none, "scale is inf, it must be finite and fit into f32");
    let norm = Some(Norm::Rms { eps: -1.0 });
    refused(Learned { norm, ..plain }, none, "eps is -1, it must be finite and at least 0");
    refused(
        plain,
        HostTables { position: Some(&[0.0; 5]), ..none },
        "the position table holds 5 elements, its rows hold 2",
    );
    refused(
        plain,
        HostTables { gain: Some(&[0.0; 2]), ..none },
        "there is a gain and the spec has no norm that uses it",
    );
    let norm = Some(Norm::Rms { eps: 1e-6 });
    refused(
        Learned { norm, ..plain },
        HostTables { bias: Some(&[0.0; 2]), ..none },
        "there is a bias and the spec has no norm that uses it",
    );
    refused(Learned { norm, ..plain }, HostTables { gain: Some(&[0.0; 3]), ..none }, "gain holds 3 elements, dim is 2");
    let error = plain.rows::<f32>(1 << 30, 1 << 30, &none, &HostLookup::default()).unwrap_err();
    assert_eq!(error.to_string(), "there is no memory for the rows of 1152921504606846976 tokens");
    let error = plain.grad((1 << 20, 1 << 20), &[], &[0.0f32; 4], &none, &HostLookup::default()).unwrap_err();
    assert_eq!(error.to_string(), "grad holds 4 elements, the shape needs 2199023255552");
    let error = embed::Learned::new(0).check().unwrap_err();
    assert_eq!(error.to_string(), "dim is 0, it must be between 1 and 2^31 - 1");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_refuse_before_anything_is_written() {
    let gpu = gpu();
    let stream = gpu.stream();
    let (table, ids) = (stream.clone_htod(&[0.0f32; 8]).unwrap(), stream.clone_htod(&[0i32; 3]).unwrap());
    let tokens = Tokens::new(1, 3, 2);
    let token = DeviceTables { token: Some(&table), ..DeviceTables::default() };
    let with_ids = DeviceLookup { ids: Some(i32::ids(&ids)), ..DeviceLookup::default() };
    let refused =
        |learned: Learned, tokens: Tokens, tables: &DeviceTables<'_, f32>, lookup: &DeviceLookup<'_>, message: &str| {
            let plan = LearnedPlan::<f32>::new(&gpu, &learned).unwrap();
            let mut x = Guarded::new(&gpu, &[7.0f32; 6], 0);
            let error = plan.gather(tokens.of_mut(&mut x.view()), tables, lookup, None).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert_eq!(x.read(&gpu), [7.0; 6]);
        };
    let plain = Learned::new(2);
    refused(plain, tokens, &token, &DeviceLookup::default(), "ids are missing, a table is read by them");
    refused(plain, Tokens::new(2, 3, 2), &token, &with_ids, "x holds 6 elements, the shape needs 12");
    let long = Tokens { strides: [0, 0], ..Tokens::new(1, 1, 2) };
    refused(
        plain,
        long,
        &DeviceTables { gain: Some(&table), ..token },
        &with_ids,
        "there is a gain and the spec has no norm that uses it",
    );
    let norm = Some(Norm::Layer { eps: 0.0 });
    refused(
        Learned { norm, ..plain },
        tokens,
        &DeviceTables { bias: Some(&table), ..token },
        &with_ids,
        "bias holds 8 elements, dim is 2",
    );
    refused(
        Learned { dim: 3, ..plain },
        Tokens::new(1, 2, 3),
        &token,
        &with_ids,
        "the token table holds 8 elements, its rows hold 3",
    );
    let rows = Rows::Kept { padding: None, first: 0, padded: 0 };
    let position = DeviceTables { position: Some(&table), ..token };
    refused(Learned { rows, ..plain }, tokens, &position, &with_ids, "mask is missing, the spec counts tokens over it");
    let given = DeviceLookup { positions: Positions::ids(&ids), ..with_ids };
    refused(
        Learned { rows, ..plain },
        tokens,
        &position,
        &given,
        "tokens are counted by the spec, positions must be counted() or starts",
    );
    let short = stream.clone_htod(&[0i32; 2]).unwrap();
    refused(
        plain,
        tokens,
        &token,
        &DeviceLookup { ids: Some(i32::ids(&short)), ..DeviceLookup::default() },
        "ids holds 2 elements, the shape needs 3",
    );

    let plan = LearnedGradPlan::<f32>::new(&gpu, &plain, tokens).unwrap();
    let grad = stream.clone_htod(&[0.0f32; 6]).unwrap();
    let mut out = Guarded::new(&gpu, &[7.0f32; 8], 0);
    let error = plan.counted(&mut out.view(), tokens.of(&grad), 2, TableGrad::new(4)).unwrap_err();
    assert_eq!(error.to_string(), "the last token reads row 4, the table has 4 rows");
    let error = plan.counted(&mut out.view(), tokens.of(&grad), 0, TableGrad::new(5)).unwrap_err();
    assert_eq!(error.to_string(), "table holds 8 elements, the shape needs 10");
    let how = TableGrad { skipped: Some(1), ..TableGrad::new(4) };
    let error = plan.counted(&mut out.view(), tokens.of(&grad), 0, how).unwrap_err();
    assert_eq!(error.to_string(), "skipped is an id, counted positions have none");
    let mut order = stream.clone_htod(&[7u32; 2]).unwrap();
    let error = plan.order(&mut order, i32::ids(&ids), 3).unwrap_err();
    assert_eq!(error.to_string(), "order holds 2 elements, the shape needs 3");
    let (mut long, many) = (stream.clone_htod(&[7u32; 1025]).unwrap(), stream.clone_htod(&[0i32; 1025]).unwrap());
    let error = plan.order(&mut long, i32::ids(&ids), 1025).unwrap_err();
    assert_eq!(error.to_string(), "ids holds 3 elements, the shape needs 1025");
    let error = plan.order(&mut long, i32::ids(&many), 1025).unwrap_err();
    let message = "the order of 1025 ids needs 1025 numbers of scratch memory, the plan was made with 5";
    assert_eq!(error.to_string(), message);
    let error = plan.table(&mut out.view(), tokens.of(&grad), i32::ids(&ids), &order, TableGrad::new(4)).unwrap_err();
    assert_eq!(error.to_string(), "order holds 2 elements, the shape needs 3");
    let far = Tokens { strides: [0, 0], ..Tokens::new(1, 17, 2) };
    let error = plan.table(&mut out.view(), far.of(&grad), i32::ids(&many), &long, TableGrad::new(4)).unwrap_err();
    let message = "the gradient of a table from 17 tokens of 2 channels needs 10 numbers of scratch memory, the plan was made with 5";
    assert_eq!(error.to_string(), message);
    if let Ok(other) = Gpu::open(1) {
        let error = ErrorFlag::new(&gpu).unwrap().check(&other).unwrap_err();
        let message = "the error flag lies in another CUDA context than the one this plan was made for";
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(out.read(&gpu), [7.0; 8]);
    assert_eq!(stream.clone_dtoh(&long).unwrap(), [7; 1025]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_norms_refuse_before_anything_is_written() {
    let gpu = gpu();
    let stream = gpu.stream();
    let (table, ids) = (stream.clone_htod(&[0.0f32; 8]).unwrap(), stream.clone_htod(&[0i32; 3]).unwrap());
    let tokens = Tokens::new(1, 3, 2);
    let lookup = DeviceLookup { ids: Some(i32::ids(&ids)), ..DeviceLookup::default() };
    let grad = stream.clone_htod(&[0.0f32; 12]).unwrap();
    let plain = Learned::new(2);
    let layer = Learned { norm: Some(Norm::Layer { eps: 0.0 }), ..plain };
    let rms = Learned { norm: Some(Norm::Rms { eps: 0.0 }), ..plain };
    /// What one call is made of.
    #[derive(Clone, Copy)]
    struct With {
        spec: Learned,
        most: Tokens,
        token: bool,
        grad: Tokens,
        x: bool,
        bias: bool,
        accumulate: bool,
    }
    let refused = |with: With, message: &str| {
        let plan = LearnedGradPlan::<f32>::new(&gpu, &with.spec, with.most).unwrap();
        let (mut sum, mut bias) = (Guarded::new(&gpu, &[7.0f32; 8], 0), Guarded::new(&gpu, &[7.0f32], 0));
        let (mut sum_view, mut bias_view) = (sum.view(), bias.view());
        let out = NormGrad {
            bias: with.bias.then_some(&mut bias_view as posenc::gpu::Write<'_, f32>),
            accumulate: with.accumulate,
            ..NormGrad::new(tokens.of_mut(&mut sum_view))
        };
        let tables = DeviceTables { token: with.token.then_some(&table as _), ..DeviceTables::default() };
        let x = with.x.then_some(tokens.of(&grad));
        let error = plan.norm(out, with.grad.of(&grad), x, &tables, &lookup).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(sum.read(&gpu), [7.0; 8]);
        assert_eq!(bias.read(&gpu), [7.0]);
    };
    let with = With { spec: layer, most: tokens, token: true, grad: tokens, x: false, bias: false, accumulate: false };
    refused(
        With { spec: plain, ..with },
        "the spec has no norm, the gradient of the sum is the gradient of the result",
    );
    refused(With { spec: rms, bias: true, ..with }, "there is a bias and the spec has no norm that uses it");
    refused(With { bias: true, ..with }, "bias holds 1 elements, the shape needs 2");
    refused(With { token: false, ..with }, "x is missing, without a token table its rows are what was added to");
    refused(With { x: true, ..with }, "there is an x, with a token table its rows are not read");
    refused(
        With { accumulate: true, ..with },
        "gradients of gain and bias are to be accumulated, neither is asked for",
    );
    refused(
        With { grad: Tokens::new(1, 4, 2), ..with },
        "grad has the sizes [1, 4, 2] and sum [1, 3, 2] (batch, tokens, dim), they must be equal",
    );
    refused(
        With { grad: Tokens { strides: [0, 4], ..tokens }, ..with },
        "grad has the strides [0, 4] and sum [6, 2], they must be equal",
    );
    refused(
        With { most: Tokens::new(1, 1, 2), ..with },
        "the gradient of 1 x 3 x 2 needs 20 numbers of scratch memory, the plan was made with 8",
    );
}
