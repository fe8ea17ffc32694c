//! Resampling of learned tables.

use posenc::Scalar;
use posenc::accuracy::{assert_close, compare, rounded};
use posenc::embed::{Along, Filter, GridSize, Resample, ResamplePlan, Taps, Tokens, Weighting};

use crate::golden;
use crate::support::{Data, Guarded, gpu, last_launch};

const CHANNELS: usize = 2;

fn of_case(case: &serde_json::Value) -> Resample {
    let size = |key: &str| {
        let size = golden::integers(case, key);
        GridSize::image(size[0] as usize, size[1] as usize)
    };
    Resample {
        filter: if case["mode"] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear },
        antialias: case["antialias"] == true,
        align_corners: case["align_corners"] == true,
        factors: case.get("factors").map(|_| {
            let factors = golden::floats(case, "factors");
            [factors[0], factors[1]]
        }),
        prefix: case.get("prefix").map_or(0, |_| golden::size(case, "prefix")),
        ..Resample::new(size("from"), size("to"))
    }
}

/// The resampled table, or the transpose, in f64 from the law alone; and the sum of magnitudes of each element.
fn by_law(spec: &Resample, table: &[f64], dim: usize, transposed: bool) -> (Vec<f64>, Vec<f64>) {
    let (from, to) = (spec.from, spec.to);
    let into = if transposed { from } else { to };
    let mut out = vec![0.0; (spec.prefix + into.rows * into.columns) * dim];
    let mut magnitude = vec![0.0; out.len()];
    out[..spec.prefix * dim].copy_from_slice(&table[..spec.prefix * dim]);
    for y in 0..to.rows {
        let rows = spec.taps(Along::Rows, y);
        for x in 0..to.columns {
            let columns = spec.taps(Along::Columns, x);
            for (i, row) in rows.weights.iter().enumerate() {
                for (j, column) in columns.weights.iter().enumerate() {
                    let near = spec.prefix + (rows.first + i) * from.columns + columns.first + j;
                    let far = spec.prefix + y * to.columns + x;
                    let (target, source) = if transposed { (near, far) } else { (far, near) };
                    for c in 0..dim {
                        let term = row * column * table[source * dim + c];
                        out[target * dim + c] += term;
                        magnitude[target * dim + c] += term.abs();
                    }
                }
            }
        }
    }
    (out, magnitude)
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn the_law_is_torchs_in_f64_and_so_is_its_transpose() {
    for case in
        golden::cases("resample").iter().filter(|case| case.get("values").is_some() && case.get("f32").is_some())
    {
        let spec = of_case(case);
        let (got, _) = by_law(&spec, &golden::floats(case, "table"), CHANNELS, false);
        for (i, (got, want)) in got.iter().zip(golden::floats(case, "values")).enumerate() {
            assert!((got - want).abs() < 1e-13, "{spec:?} at {i}: {got} {want}");
        }
        if case.get("grad").is_some() {
            let (got, _) = by_law(&spec, &golden::floats(case, "grad"), CHANNELS, true);
            for (i, (got, want)) in got.iter().zip(golden::floats(case, "table_grad")).enumerate() {
                assert!((got - want).abs() < 1e-13, "{spec:?} gradient at {i}: {got} {want}");
            }
        }
    }
}

#[test]
fn the_weights_are_torchs_in_f32_to_the_bit() {
    for case in golden::named("resample", "weights") {
        let spec = Resample { weighting: Weighting::TorchF32, ..of_case(case) };
        let bits = golden::integers(case, "bits");
        for (output, want) in bits.chunks(spec.from.columns).enumerate() {
            let taps = spec.taps(Along::Columns, output);
            for (input, &want) in want.iter().enumerate() {
                let weight = input.checked_sub(taps.first).and_then(|tap| taps.weights.get(tap)).copied();
                let want = f32::from_bits(u32::from_ne_bytes(i32::try_from(want).unwrap().to_ne_bytes()));
                assert_eq!(weight.unwrap_or(0.0), f64::from(want), "{spec:?}, output {output}, input {input}");
            }
        }
    }
}

/// A case as torch computes it in f32 and in f64, with the weights that each makes.
fn both_torchs(case: &serde_json::Value) -> [(Resample, Vec<f64>); 2] {
    let exact = of_case(case);
    let single = Resample { weighting: Weighting::TorchF32, ..exact };
    [(exact, golden::floats(case, "values")), (single, golden::floats(case, "f32"))]
}

#[test]
fn the_reference_is_torchs_to_a_millionth() {
    for case in golden::named("resample", "size")
        .chain(golden::named("resample", "factor"))
        .chain(golden::named("resample", "aligned"))
    {
        let table: Vec<f32> = golden::floats(case, "table").iter().map(|&x| x as f32).collect();
        for (spec, want) in both_torchs(case) {
            let mut got = vec![f32::NAN; want.len()];
            spec.write(&mut got, &table, CHANNELS).unwrap();
            assert_close(&got, &want, |_| 1e-6);
        }
    }
    for case in golden::named("resample", "timm") {
        let table: Vec<f32> = golden::floats(case, "table").iter().map(|&x| x as f32).collect();
        let want = golden::floats(case, "values");
        let mut got = vec![f32::NAN; want.len()];
        of_case(case).write(&mut got, &table, CHANNELS).unwrap();
        assert_eq!(got[..CHANNELS], table[..CHANNELS]);
        assert_close(&got, &want, |_| 1e-6);
    }
}

/// Why there are two: torch's weights in f32 are further from the truth than a millionth.
#[test]
fn torch_in_f32_is_not_torch_in_f64() {
    let most = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let worst = golden::named("resample", "size")
        .map(|case| most(&golden::floats(case, "values"), &golden::floats(case, "f32")))
        .fold(0.0, f64::max);
    assert!(worst > 1e-6, "{worst:e}");
    // Among 64 inputs, the weights themselves.
    let exact = Resample::new(GridSize::image(1, 64), GridSize::image(1, 37));
    let single = Resample { weighting: Weighting::TorchF32, ..exact };
    let taps = |spec: &Resample| (0..37).flat_map(|i| spec.taps(Along::Columns, i).weights).collect::<Vec<_>>();
    let worst = most(&taps(&exact), &taps(&single));
    assert!((5e-7..4e-6).contains(&worst), "{worst:e}");
}

// ---------------------------------------------------------------------------------------------------------------- laws

fn specs() -> Vec<Resample> {
    let mut specs = Vec::new();
    for (from, to) in [
        ((7, 5), (11, 6)),
        ((14, 9), (7, 5)),
        ((3, 4), (3, 4)),
        ((1, 6), (3, 2)),
        ((5, 4), (1, 1)),
        ((16, 16), (3, 20)),
    ] {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for antialias in [false, true] {
                for factors in [false, true] {
                    let factor = |from: usize, to: usize| (to as f64 + 0.1) / from as f64;
                    specs.push(Resample {
                        filter,
                        antialias,
                        factors: factors.then(|| [factor(from.0, to.0), factor(from.1, to.1)]),
                        prefix: from.0 % 3,
                        weighting: if factors == antialias { Weighting::Exact } else { Weighting::TorchF32 },
                        ..Resample::new(GridSize::image(from.0, from.1), GridSize::image(to.0, to.1))
                    });
                }
            }
        }
    }
    for (from, to) in [((7, 5), (11, 6)), ((14, 9), (7, 5)), ((1, 6), (3, 1))] {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for weighting in [Weighting::Exact, Weighting::TorchF32] {
                let sizes = (GridSize::image(from.0, from.1), GridSize::image(to.0, to.1));
                specs.push(Resample {
                    filter,
                    align_corners: true,
                    weighting,
                    prefix: 1,
                    ..Resample::new(sizes.0, sizes.1)
                });
            }
        }
    }
    specs
}

#[test]
fn weights_sum_to_one_and_stay_inside_the_table() {
    for spec in specs() {
        for (along, from, to) in
            [(Along::Rows, spec.from.rows, spec.to.rows), (Along::Columns, spec.from.columns, spec.to.columns)]
        {
            for index in 0..to {
                let taps = spec.taps(along, index);
                let off = if spec.weighting == Weighting::Exact { 1e-14 } else { 2e-6 };
                assert!((taps.weights.iter().sum::<f64>() - 1.0).abs() < off, "{spec:?} {index}");
                assert!(!taps.weights.is_empty() && taps.first + taps.weights.len() <= from, "{spec:?} {index}");
            }
        }
    }
}

#[test]
fn the_same_size_is_the_same_table() {
    for filter in [Filter::Bilinear, Filter::Bicubic] {
        for antialias in [false, true] {
            let size = GridSize::image(4, 3);
            let spec = Resample { filter, antialias, prefix: 2, ..Resample::new(size, size) };
            let table: Vec<f32> = (0..42).map(|i| (i as f32 * 0.9).sin()).collect();
            let mut out = vec![0.0; 42];
            spec.write(&mut out, &table, 3).unwrap();
            assert_eq!(out, table);
        }
    }
}

#[test]
fn the_transpose_is_the_transpose() {
    let mut data = Data::new(6);
    for spec in specs() {
        let count = |size: GridSize| (spec.prefix + size.rows * size.columns) * 3;
        let (x, g) = (data.values::<f32>(count(spec.from)), data.values::<f32>(count(spec.to)));
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (out, grad) = (by_law(&spec, &wide(&x), 3, false).0, by_law(&spec, &wide(&g), 3, true).0);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!((dot(&out, &wide(&g)) - dot(&wide(&x), &grad)).abs() < 1e-10, "{spec:?}");
        let mut reference = vec![0.0f32; count(spec.from)];
        spec.write_grad(&mut reference, &g, 3).unwrap();
        assert_close(&reference, &grad, |i| rounded::<f32>(grad[i], 1e-13));
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_law_and_so_does_its_transpose() {
    fn check<T: Scalar>(gpu: &posenc::Gpu) {
        let mut data = Data::new(7);
        for spec in specs() {
            let dim = data.pick(&[1, 3, 8, 20, 64]);
            let shift = data.pick(&[0, 1, 4]);
            let plan = ResamplePlan::<T>::new(gpu, &spec).unwrap();
            for transposed in [false, true] {
                let (read, written) = if transposed { (spec.to, spec.from) } else { (spec.from, spec.to) };
                let count = |size: GridSize| (spec.prefix + size.rows * size.columns) * dim;
                let table = data.values::<T>(count(read));
                let before = data.values::<T>(count(written));
                let accumulate = transposed && data.below(2) == 0;
                let wide: Vec<f64> = table.iter().map(|x| x.to_f64()).collect();
                let (mut want, mut magnitude) = by_law(&spec, &wide, dim, transposed);
                if accumulate {
                    for (i, before) in before.iter().enumerate() {
                        want[i] += before.to_f64();
                        magnitude[i] += want[i].abs() + before.to_f64().abs();
                    }
                }
                let mut out = Guarded::new(gpu, &before, shift);
                let mut table = Guarded::new(gpu, &table, shift);
                let [read, written] =
                    [read, written].map(|size| Tokens::new(1, spec.prefix + size.rows * size.columns, dim));
                let (mut out_view, table) = (out.view(), table.view());
                let (out_view, table) = (written.of_mut(&mut out_view), read.of(&table));
                if transposed {
                    plan.grad(out_view, table, accumulate).unwrap();
                } else {
                    plan.write(out_view, table).unwrap();
                }
                let taps = spec.most_taps(transposed);
                let bound = |i: usize| {
                    if i < spec.prefix * dim && !accumulate {
                        0.0
                    } else {
                        rounded::<T>(want[i], Resample::error_bound(taps, magnitude[i]))
                    }
                };
                let worst = compare(&out.read(gpu), &want, bound);
                assert!(worst.share <= 1.0, "{} {spec:?} dim {dim} transposed {transposed}: {worst:?}", T::NAME);
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
    check::<half::bf16>(&gpu);
}

/// `interpolate(x, scale_factor=(1.025, 2.05), mode="bilinear")` leaves the columns of four rows as they are in torch 2.15 on a CPU,
/// and so does a bicubic one with `antialias=True`; without, it steps by 1 / 1.025.
#[test]
fn torch_copies_an_axis_whose_size_stays() {
    let (from, to) = (GridSize::image(4, 2), GridSize::image(4, 4));
    let bicubic = Resample { factors: Some([1.025, 2.05]), weighting: Weighting::TorchF32, ..Resample::new(from, to) };
    let copied = |spec: Resample| {
        let own = |index| spec.taps(Along::Rows, index) == Taps { first: index, weights: vec![1.0] };
        (0..4).all(own)
    };
    let [antialiased, bilinear] =
        [Resample { antialias: true, ..bicubic }, Resample { filter: Filter::Bilinear, ..bicubic }];
    assert!(copied(antialiased) && copied(bilinear) && !copied(bicubic));
    assert!(!copied(Resample { weighting: Weighting::Exact, ..bilinear }));
    assert_eq!(bilinear.taps(Along::Columns, 1).weights.len(), 2);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_torchs_to_a_millionth() {
    let gpu = gpu();
    for case in golden::named("resample", "size").chain(golden::named("resample", "factor")) {
        let table: Vec<f32> = golden::floats(case, "table").iter().map(|&x| x as f32).collect();
        let rows = Tokens::new(1, table.len() / CHANNELS, CHANNELS);
        let table = gpu.stream().clone_htod(&table).unwrap();
        for (spec, want) in both_torchs(case) {
            let mut out = Guarded::<f32>::poisoned(&gpu, want.len(), 0);
            let plan = ResamplePlan::new(&gpu, &spec).unwrap();
            let resampled = Tokens::new(1, want.len() / CHANNELS, CHANNELS);
            plan.write(resampled.of_mut(&mut out.view()), rows.of(&table)).unwrap();
            assert_close(&out.read(&gpu), &want, |_| 1e-6);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_output_is_written_once_with_wide_accesses() {
    let gpu = gpu();
    let spec = Resample { prefix: 1, ..Resample::new(GridSize::image(7, 7), GridSize::image(10, 9)) };
    let plan = ResamplePlan::<half::bf16>::new(&gpu, &spec).unwrap();
    let table = Guarded::new(&gpu, &Data::new(1).values::<half::bf16>(50 * 256), 0);
    let mut table = table;
    let mut out = Guarded::<half::bf16>::poisoned(&gpu, 91 * 256, 0);
    plan.write(Tokens::new(1, 91, 256).of_mut(&mut out.view()), Tokens::new(1, 50, 256).of(&table.view())).unwrap();
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, 91 * 256 * 2);
        // An input is read once in each tile of outputs that has it among its taps: here in one, or in both.
        let rows = report.counters.global_accesses[4] * 16 / (256 * 2);
        assert!((91 + 50..91 + 2 * 50).contains(&rows), "{:?}", report.counters);
        // Besides: spans in 8 bytes and weights in 4, once for each tile.
        assert!(report.counters.bytes_read < 2 * 50 * 256 * 2 + report.counters.blocks * 1024, "{:?}", report.counters);
        assert_eq!(report.counters.global_accesses[..2], [0; 2]);
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn specs_and_buffers_are_refused_with_the_numbers() {
    let mut out = [7.0f32; 4];
    let mut refused = |spec: Resample, dim: usize, message: &str| {
        let error = spec.write(&mut out, &[0.0; 4], dim).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(out, [7.0; 4]);
    };
    let size = GridSize::image(2, 2);
    let spec = Resample::new(size, size);
    refused(
        Resample::new(size, GridSize::image(0, 3)),
        1,
        "the grid has 1 frames, 0 rows and 3 columns, each must be at least 1",
    );
    refused(
        Resample { from: GridSize { frames: 2, ..size }, ..spec },
        1,
        "the grid has 2 frames, a table of images has 1",
    );
    refused(Resample { factors: Some([0.0, 1.0]), ..spec }, 1, "a factor is 0, it must be finite and above 0");
    refused(
        Resample { factors: Some([1.0, 0.5]), ..spec },
        1,
        "a factor is 0.5, the last of 2 outputs would stand at 3.0 of 2",
    );
    refused(
        Resample { factors: Some([1e-300, 1.0]), ..spec },
        1,
        "a factor is 1e-300, the last of 2 outputs would stand at 1.5e300 of 2",
    );
    let far = usize::MAX;
    refused(
        Resample { prefix: far, ..spec },
        1,
        "prefix + rows x columns (18446744073709551615) does not fit into 63 bits",
    );
    refused(spec, 0, "dim is 0, it must be at least 1");
    refused(spec, 2, "table holds 4 elements, the shape needs 8");
    refused(Resample { prefix: 1, ..spec }, 1, "table holds 4 elements, the shape needs 5");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_refuse_tables_of_another_shape() {
    let gpu = gpu();
    let plan = ResamplePlan::<f32>::new(&gpu, &Resample::new(GridSize::image(2, 2), GridSize::image(2, 3))).unwrap();
    let (small, large) = (Tokens::new(1, 4, 2), Tokens::new(1, 6, 2));
    let mut table = Guarded::new(&gpu, &[1.0f32; 40], 0);
    let refused = |out: Tokens, table: &mut Guarded<f32>, of: Tokens, message: &str| {
        let mut x = Guarded::new(&gpu, &[7.0f32; 40], 0);
        let error = plan.write(out.of_mut(&mut x.view()), of.of(&table.view())).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(x.read(&gpu), [7.0; 40]);
    };
    let apart = Tokens { strides: [0, 3], ..large };
    refused(apart, &mut table, small, "out has rows of 2 channels 3 elements apart, it must be contiguous");
    refused(large, &mut table, large, "table has 1 sequences of 6 tokens, it must have 1 of 4");
    refused(Tokens::new(2, 6, 2), &mut table, small, "out has 2 sequences of 6 tokens, it must have 1 of 6");
    refused(large, &mut table, Tokens::new(1, 4, 3), "table has 3 channels and out 2, they must be equal");
    refused(Tokens::new(1, 6, 0), &mut table, Tokens::new(1, 4, 0), "dim is 0, it must be at least 1");
    refused(large.at(29), &mut table, small, "out holds 40 elements, the shape needs 41");
    // Offsets are free.
    let mut out = Guarded::new(&gpu, &[7.0f32; 40], 0);
    plan.write(large.at(3).of_mut(&mut out.view()), small.at(5).of(&table.view())).unwrap();
    let want: Vec<f32> = (0..40).map(|i| if (3..15).contains(&i) { 1.0 } else { 7.0 }).collect();
    assert_eq!(out.read(&gpu), want);
}
