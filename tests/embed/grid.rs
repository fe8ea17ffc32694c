//! Sinusoids of grids.

use posenc::accuracy::{assert_close, compare, rounded};
use posenc::embed::{Along, Blocks, Counted, Grid, GridPlan, GridSize, Odd, Sinusoid, Tokens, Wave};
use posenc::{Gpu, Pairing, Scalar};

use crate::golden;
use crate::support::{Data, Guarded, gpu, last_launch};

fn image(case: &serde_json::Value) -> GridSize {
    GridSize::image(golden::size(case, "rows"), golden::size(case, "columns"))
}

// -------------------------------------------------------------------------------------------------------------- values

#[track_caller]
fn meets(grid: &Grid, size: GridSize, want: &[f64], bound: f64) {
    let mut got = vec![f32::NAN; want.len()];
    grid.write(&mut got, size).unwrap();
    assert_close(&got, want, |_| bound);
}

#[test]
fn mae_puts_columns_first_and_stretches_coordinates() {
    for case in golden::named("grid", "mae") {
        let scales = golden::floats(case, "scales");
        let grid = Grid::columns_first(16).scaled(Along::Rows, scales[0]).scaled(Along::Columns, scales[1]);
        meets(&grid, image(case), &golden::floats(case, "values"), 5e-7);
    }
}

#[test]
fn hugging_face_puts_rows_first_and_zeros_for_a_class_token() {
    for case in golden::named("grid", "hf") {
        meets(&Grid::rows_first(16), image(case), &golden::floats(case, "values"), 6e-8);
    }
    for case in golden::named("grid", "hf class") {
        let want = golden::floats(case, "values");
        assert_eq!(want[..16], [0.0; 16]);
        meets(&Grid::rows_first(16), image(case), &want[16..], 6e-8);
    }
}

#[test]
fn timm_orders_blocks_by_wave_or_by_axis() {
    for case in golden::named("grid", "timm") {
        meets(&Grid::by_wave(16), image(case), &golden::floats(case, "values"), 5e-7);
    }
    for case in golden::named("grid", "timm interleaved") {
        meets(&Grid::rows_first(16), image(case), &golden::floats(case, "values"), 5e-7);
    }
}

#[test]
fn sd3_crops_the_centre_of_a_larger_grid() {
    for case in golden::named("grid", "sd3") {
        let (crop, scale) = (golden::integers(case, "crop"), golden::float(case, "scale"));
        let grid = Grid::columns_first(16)
            .cropped(Along::Rows, crop[0])
            .cropped(Along::Columns, crop[1])
            .scaled(Along::Rows, scale)
            .scaled(Along::Columns, scale);
        meets(&grid, image(case), &golden::floats(case, "values"), 5e-7);
    }
}

#[test]
fn cogvideox_gives_a_quarter_to_time() {
    for case in golden::named("grid", "cogvideox") {
        let (spatial, temporal) = (1.0 / golden::float(case, "spatial"), 1.0 / golden::float(case, "temporal"));
        let grid = Grid::video(32)
            .scaled(Along::Frames, temporal)
            .scaled(Along::Rows, spatial)
            .scaled(Along::Columns, spatial);
        let size = GridSize { frames: golden::size(case, "frames"), ..image(case) };
        meets(&grid, size, &golden::floats(case, "values"), 5e-7);
    }
}

#[test]
fn detr_counts_over_the_mask() {
    for case in golden::named("grid", "detr") {
        let grid = Grid::detr(16, golden::float(case, "temperature"));
        // Deformable DETR counts from a half.
        let centre = case.get("centre").map_or(0.0, |_| golden::float(case, "centre"));
        let counted = Counted { normalize: case["normalize"] == true, centre, ..Counted::default() };
        let mask: Vec<u8> = golden::integers(case, "mask").iter().map(|&one| u8::from(one == 1)).collect();
        let want = golden::floats(case, "values");
        let mut got = vec![f32::NAN; want.len()];
        grid.write_masked(&mut got, &mask, 2, image(case), counted).unwrap();
        // Where nothing is left of a row, (0 - 0.5) / 1e-6 turns half a million times, and their angle is rounded.
        let off = if centre == 0.0 { 1e-14 } else { 3.2e6 / 2f64.powi(51) };
        assert_close(&got, &want, |i| rounded::<f32>(want[i], off));
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn every_layout_is_a_permutation_of_the_same_channels() {
    let place = [0, 5, 9];
    let sorted = |grid: &Grid| {
        let mut values: Vec<f64> = (0..grid.dim()).map(|channel| grid.value(place, channel)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let want = sorted(&Grid::columns_first(24));
    assert_eq!(sorted(&Grid::rows_first(24)), want);
    assert_eq!(sorted(&Grid::by_wave(24)), want);
    assert_eq!(sorted(&Grid::detr(24, 10_000.0)), want);
}

#[test]
fn places_run_frame_by_frame_and_row_by_row() {
    let size = GridSize { frames: 2, rows: 3, columns: 5 };
    let mut token = 0;
    for frame in 0..2 {
        for row in 0..3 {
            for column in 0..5 {
                assert_eq!(size.place(token), [frame, row, column]);
                token += 1;
            }
        }
    }
    assert_eq!(size.tokens().unwrap(), token);
}

#[test]
fn an_unmasked_image_counts_from_one() {
    let grid = Grid::detr(8, 10_000.0);
    let counted = Counted { normalize: false, ..Counted::default() };
    let size = GridSize::image(3, 2);
    let (mut got, mut want) = ([0.0f32; 48], [0.0f32; 48]);
    grid.write_masked(&mut got, &[1; 6], 1, size, counted).unwrap();
    grid.cropped(Along::Rows, 1).cropped(Along::Columns, 1).write(&mut want, size).unwrap();
    assert_eq!(got, want);
}

#[test]
fn deformable_detr_counts_from_a_half() {
    let counted = Counted { centre: 0.5, ..Counted::default() };
    let unit = std::f64::consts::TAU;
    assert_eq!(counted.coordinate(1, 4), 0.5 / (4.0 + 1e-6) * unit);
    assert_eq!(Counted::default().coordinate(4, 4), 4.0 / (4.0 + 1e-6) * unit);
}

#[test]
fn adding_is_the_table_added() {
    let grid = Grid::by_wave(8);
    let size = GridSize::image(2, 3);
    let mut table = [0.0f32; 48];
    grid.write(&mut table, size).unwrap();
    // Behind a class token.
    let tokens = Tokens { offset: 8, strides: [56, 8], ..Tokens::new(2, 6, 8) };
    let mut x = [0.25f32; 112];
    grid.add(&mut x, &tokens, size, 2.0).unwrap();
    for batch in 0..2 {
        assert_eq!(x[batch * 56..batch * 56 + 8], [0.25; 8]);
        for (x, table) in x[batch * 56 + 8..].iter().zip(&table) {
            assert!((f64::from(*x) - 0.5 - f64::from(*table)).abs() < 1.3e-7);
        }
    }
    assert!(compare(&x[8..56], &x[64..112].iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), |_| 0.0).error == 0.0);
}

// -------------------------------------------------------------------------------------------- kernel against reference

fn grids() -> Vec<Grid> {
    let mut odd = Grid::detr(12, 100.0);
    odd.axes[0].sinusoid = Sinusoid { odd: Odd::Zero, dim: 7, first: Wave::Cosine, ..odd.axes[0].sinusoid.clone() };
    odd.axes[1].sinusoid =
        Sinusoid { odd: Odd::Longer, dim: 5, pairing: Pairing::Half, ..odd.axes[1].sinusoid.clone() };
    vec![
        Grid::columns_first(16).cropped(Along::Rows, 11).scaled(Along::Columns, 0.3),
        Grid::rows_first(8),
        Grid::by_wave(24).cropped(Along::Columns, -4),
        Grid::video(32).scaled(Along::Frames, 0.8),
        Grid::detr(12, 20.0),
        odd,
    ]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_meets_the_law() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(41);
        for grid in grids() {
            let plan = GridPlan::<T>::new(gpu, &grid).unwrap();
            for size in [GridSize::image(1, 1), GridSize::image(3, 5), GridSize { frames: 2, rows: 3, columns: 4 }] {
                for (batch, shift, pad, offset) in [(1, 0, 0, 0), (3, 1, 0, 0), (2, 0, 8, 8), (4, 4, 1, 3)] {
                    let (dim, count) = (grid.dim(), size.tokens().unwrap());
                    let tokens = Tokens {
                        offset,
                        strides: [count * (dim + pad) + 2 * pad, dim + pad],
                        ..Tokens::new(batch, count, dim)
                    };
                    let x = data.values::<T>(tokens.span().unwrap());
                    let scale = data.pick(&[1.0, -2.5]);
                    for add in [false, true] {
                        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
                        let mut bound = vec![0.0; want.len()];
                        for index in 0..batch * count {
                            let place = size.place(index % count);
                            for channel in 0..dim {
                                let at = tokens.index(index / count, index % count, channel);
                                let value = grid.value(place, channel);
                                let (new, error) = if add {
                                    (want[at] * scale + value, grid.add_error_bound(place, want[at], scale))
                                } else {
                                    (value, grid.error_bound(place))
                                };
                                want[at] = new;
                                bound[at] = rounded::<T>(new, error);
                            }
                        }
                        let mut device = Guarded::new(gpu, &x, shift);
                        if add {
                            plan.add(tokens.of_mut(&mut device.view()), size, scale).unwrap();
                        } else {
                            plan.write(tokens.of_mut(&mut device.view()), size).unwrap();
                        }
                        let worst = compare(&device.read(gpu), &want, |i| bound[i]);
                        assert!(worst.share <= 1.0, "{} {grid:?} {size:?} {tokens:?}: {worst:?}", T::NAME);
                    }
                }
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::f16>(&gpu);
    check::<half::bf16>(&gpu);
}

/// One sequence more than threads walk one each: they walk two, and the last one walks one.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_last_thread_walks_fewer_sequences() {
    let gpu = gpu();
    let (grid, batch) = (Grid::columns_first(4), 16 * gpu.multiprocessors() as usize + 1);
    let size = GridSize::image(1, 1);
    let mut out = Guarded::<f32>::poisoned(&gpu, batch * 4, 0);
    let tokens = Tokens::new(batch, 1, 4);
    GridPlan::new(&gpu, &grid).unwrap().write(tokens.of_mut(&mut out.view()), size).unwrap();
    let want: Vec<f64> = (0..batch * 4).map(|i| grid.value(size.place(0), i % 4)).collect();
    let bound = grid.error_bound(size.place(0));
    assert!(compare(&out.read(&gpu), &want, |i| rounded::<f32>(want[i], bound)).share <= 1.0);
}

/// So many tokens that threads walk several of one index: on every axis, in lines that their steps do not divide, with units of
/// several axes, over several sequences, in both kernels.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn threads_walk_the_tokens_of_one_index() {
    fn check<T: Scalar>(gpu: &Gpu, grid: &Grid, size: GridSize, batch: usize, shift: usize) {
        let (dim, count) = (grid.dim(), size.tokens().unwrap());
        let tokens = Tokens::new(batch, count, dim);
        let x = vec![T::from_f64(0.5); batch * count * dim];
        let mut device = Guarded::new(gpu, &x, shift);
        GridPlan::<T>::new(gpu, grid).unwrap().add(tokens.of_mut(&mut device.view()), size, 2.0).unwrap();
        if let Some(report) = last_launch() {
            // Waves are made once for two tokens or more, but for units of several axes.
            let (tensor, waves) = ((batch * count * dim * size_of::<T>()) as u64, (17 * count * dim) as u64);
            assert!(dim == 8 || report.counters.bytes_read < tensor + waves * 3 / 4, "{:?}", report.counters);
        }
        let got = device.read(gpu);
        for index in 0..count {
            let place = size.place(index);
            let want: Vec<f64> = (0..dim).map(|channel| 1.0 + grid.value(place, channel)).collect();
            let error = grid.add_error_bound(place, 0.5, 2.0);
            for sequence in 0..batch {
                let at = (sequence * count + index) * dim;
                let worst = compare(&got[at..at + dim], &want, |i| rounded::<T>(want[i], error));
                assert!(worst.share <= 1.0, "{} {size:?} {index}: {worst:?}", T::NAME);
            }
        }
    }
    let gpu = gpu();
    // Threads for each multiprocessor from which on they walk two tokens: 512.
    let side = (512.0 * f64::from(gpu.multiprocessors())).sqrt() as usize;
    check::<f32>(&gpu, &Grid::columns_first(16), GridSize::image(side + 7, side / 2 + 1), 1, 0);
    check::<half::bf16>(&gpu, &Grid::columns_first(32), GridSize::image(side / 3, side * 2 + 5), 1, 0);
    check::<half::bf16>(&gpu, &Grid::rows_first(8), GridSize::image(side + 3, side + 5), 1, 0);
    check::<half::bf16>(&gpu, &Grid::video(64), GridSize { frames: 5, rows: side / 4, columns: side / 4 + 1 }, 3, 0);
    check::<half::f16>(&gpu, &Grid::columns_first(4), GridSize::image(side + 1, side), 1, 1);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_masked_kernel_counts_as_the_reference_does() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(42);
        // So far away that an f64 of turns for a unit is not exact enough.
        let mut far = Grid::detr(16, 20.0);
        far.axes.iter_mut().for_each(|axis| axis.sinusoid.offset = 1 << 40);
        for grid in grids().into_iter().chain([far]).filter(|grid| grid.axes.len() == 2) {
            let plan = GridPlan::<T>::new(gpu, &grid).unwrap();
            for (batch, rows, columns, shift) in [(1, 1, 1, 0), (2, 3, 5, 1), (3, 40, 2, 0), (1, 2, 70, 0)] {
                for counted in [
                    Counted::default(),
                    Counted { normalize: false, ..Counted::default() },
                    Counted { centre: 0.5, scale: 3.0, normalize: true },
                ] {
                    let size = GridSize::image(rows, columns);
                    let mask: Vec<u8> = (0..batch * rows * columns).map(|_| data.below(4).min(1) as u8 * 255).collect();
                    let images = Tokens::new(batch, rows * columns, grid.dim());
                    let count = mask.len() * grid.dim();
                    // f64 from the reference, through f32 for the bound alone.
                    let mut want = vec![0.0f32; count];
                    grid.write_masked(&mut want, &mask, batch, size, counted).unwrap();
                    let mut out = Guarded::<T>::poisoned(gpu, count, shift);
                    let mask = gpu.stream().clone_htod(&mask).unwrap();
                    plan.write_masked(images.of_mut(&mut out.view()), &mask, size, counted).unwrap();
                    let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
                    let bound = |i: usize| rounded::<T>(want[i], rounded::<f32>(want[i], 1e-14));
                    let worst = compare(&out.read(gpu), &want, bound);
                    assert!(worst.share <= 1.0, "{} {grid:?} {size:?} {counted:?}: {worst:?}", T::NAME);
                }
            }
        }
    }
    let gpu = gpu();
    check::<f32>(&gpu);
    check::<half::bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn masked_tables_are_contiguous() {
    let gpu = gpu();
    let (size, dim) = (GridSize::image(2, 3), 16);
    let plan = GridPlan::<f32>::new(&gpu, &Grid::detr(dim, 20.0)).unwrap();
    let mask = gpu.stream().clone_htod(&[1u8, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0]).unwrap();
    let mut out = Guarded::new(&gpu, &[7.0f32; 14 * 16], 0);
    let mut refused = |out_shape: Tokens, message: &str| {
        let result = plan.write_masked(out_shape.of_mut(&mut out.view()), &mask, size, Counted::default());
        assert_eq!(result.unwrap_err().to_string(), message);
        assert_eq!(out.read(&gpu), [7.0; 14 * 16]);
    };
    refused(Tokens::new(1, 5, dim), "out has 5 tokens, a grid of 1 x 2 x 3 has 6");
    refused(
        Tokens { strides: [6 * 17, 17], ..Tokens::new(2, 6, dim) },
        "out has rows of 16 channels 17 elements apart, it must be contiguous",
    );
    refused(
        Tokens { strides: [7 * 16, 16], ..Tokens::new(2, 6, dim) },
        "out has 2 sequences 112 elements apart and 6 tokens 16 apart, its rows must be evenly spaced",
    );
    // An offset is free.
    let table = Tokens::new(2, 6, dim).at(3);
    plan.write_masked(table.of_mut(&mut out.view()), &mask, size, Counted::default()).unwrap();
    assert_eq!(out.read(&gpu).iter().filter(|&&x| x == 7.0).count(), 2 * 16);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_grid_is_added_with_wide_accesses_and_one_read_and_write() {
    let gpu = gpu();
    let plan = GridPlan::<half::bf16>::new(&gpu, &Grid::columns_first(256)).unwrap();
    let size = GridSize::image(4, 5);
    let mut x = Guarded::new(&gpu, &Data::new(1).values::<half::bf16>(3 * 20 * 256), 0);
    plan.add(Tokens::new(3, 20, 256).of_mut(&mut x.view()), size, 1.0).unwrap();
    if let Some(report) = last_launch() {
        let bytes = 3 * 20 * 256 * 2;
        assert_eq!(report.counters.bytes_written, bytes);
        // 17 bytes a channel, for each token and group of sequences.
        assert_eq!(report.counters.bytes_read, bytes + 20 * 256 * 17 * u64::from(report.grid[1]));
        // All of it in 16-byte accesses, but for the bytes that name the channels' axes.
        let channels = 20 * 256 * 16 * u64::from(report.grid[1]);
        assert_eq!(report.counters.global_accesses[4] * 16, 2 * bytes + channels);
        assert_eq!(report.counters.launches, 1);
    }
    let plan = GridPlan::<half::bf16>::new(&gpu, &Grid::detr(256, 20.0)).unwrap();
    let mask = gpu.stream().clone_htod(&[1u8; 60]).unwrap();
    plan.write_masked(Tokens::new(3, 20, 256).of_mut(&mut x.view()), &mask, size, Counted::default()).unwrap();
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, 3 * 20 * 256 * 2);
        assert!(report.counters.global_accesses[4] * 16 >= 3 * 20 * 256 * 2);
        assert_eq!(report.counters.local_bytes_written, 0);
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn grids_outside_the_law_are_refused_with_the_numbers() {
    let mut out = [7.0f32; 64];
    let size = GridSize::image(2, 2);
    let mut refused = |grid: Grid, size: GridSize, message: &str| {
        let error = grid.write(&mut out, size).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(out, [7.0; 64]);
    };
    refused(
        Grid::rows_first(8),
        GridSize { frames: 1, rows: 0, columns: 3 },
        "the grid has 1 frames, 0 rows and 3 columns, each must be at least 1",
    );
    refused(
        Grid::rows_first(6),
        size,
        "axis 0 of the grid: dim is 3, it must be even unless odd says what the last channel holds",
    );
    refused(Grid { axes: Vec::new(), blocks: Blocks::ByAxis }, size, "axes is empty, a grid needs at least one axis");
    refused(
        Grid { blocks: Blocks::ByWave, ..Grid::detr(8, 20.0) },
        size,
        "axis 0 of the grid has 4 channels in the pairing Interleaved, blocks by wave need an even number in halves",
    );
    let mut odd = Grid::by_wave(8);
    odd.axes[1].sinusoid = Sinusoid { odd: Odd::Longer, dim: 5, ..odd.axes[1].sinusoid.clone() };
    refused(
        odd,
        size,
        "axis 1 of the grid has 5 channels in the pairing Half, blocks by wave need an even number in halves",
    );
    let mut padded = Grid::rows_first(8);
    padded.axes[1].sinusoid.padding = Some(0);
    refused(padded, size, "axis 1 of the grid has its padding at 0, the tokens of a grid have none");
    refused(Grid::rows_first(32), size, "out holds 64 elements, the shape needs 128");
}

#[test]
fn masks_and_tensors_of_another_size_are_refused() {
    let grid = Grid::detr(8, 20.0);
    let mut out = [7.0f32; 64];
    let error = grid.write_masked(&mut out, &[1; 3], 1, GridSize::image(2, 2), Counted::default()).unwrap_err();
    assert_eq!(error.to_string(), "mask holds 3 elements, the shape needs 4");
    let frames = GridSize { frames: 2, rows: 1, columns: 2 };
    let error = grid.write_masked(&mut out, &[1; 4], 1, frames, Counted::default()).unwrap_err();
    assert_eq!(error.to_string(), "the grid has 2 frames, a mask is counted over images of 1");
    let error = Grid::video(32).write_masked(&mut out, &[1], 1, GridSize::image(1, 1), Counted::default()).unwrap_err();
    assert_eq!(error.to_string(), "an axis runs along frames, a mask is counted over rows and columns");
    let error = grid.add(&mut out, &Tokens::new(1, 3, 8), GridSize::image(2, 2), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "x has 3 tokens, a grid of 1 x 2 x 2 has 4");
    // A coordinate of -1e18: the mask's only token is none.
    let counted = Counted { centre: 1e6, scale: 1e6, normalize: true };
    let error = grid.write_masked(&mut out, &[0], 1, GridSize::image(1, 1), counted).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the coordinate of token 0 of image 0 is -1e18 and the fastest channel turns 1.5915494309189535e-1 times per \
         unit, together at most 2^48 turns are held"
    );
    let counted = Counted { scale: f64::NAN, ..Counted::default() };
    let error = grid.write_masked(&mut out, &[1; 4], 1, GridSize::image(2, 2), counted).unwrap_err();
    assert_eq!(error.to_string(), "scale is NaN and centre 0, both must be finite and at most 1e6");
    assert_eq!(out, [7.0; 64]);
}
