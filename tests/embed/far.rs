//! Elements on both sides of 2^31 and of 2^32: buffers are reserved, and touched only where a call reads or writes.
//!
//! Timesteps, masked grids and resampled tables are contiguous and written whole, so that no buffer of theirs can be left
//! untouched; a table that is resampled can.

use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::accuracy::{assert_close, rounded};
use posenc::embed::{
    DeviceLookup, DeviceTables, Filter, Grid, GridPlan, GridSize, HostLookup, HostTables, Learned, LearnedGradPlan,
    LearnedPlan, Norm, NormGrad, Resample, ResamplePlan, Rows, Sinusoid, SinusoidPlan, TableGrad, Tokens,
};
use posenc::{Gpu, Id, Positions};

use crate::support::{Data, gpu};

const DIM: usize = 16;
/// Three tokens: the second one's elements lie beyond 2^31, the last one's beyond 2^32.
const STRIDE: usize = (1 << 31) + 8;
const FAR: Tokens = Tokens { batch: 1, tokens: 3, dim: DIM, offset: 0, strides: [0, STRIDE] };
const NEAR: Tokens = Tokens { strides: [0, DIM], ..FAR };

fn reserve(gpu: &Gpu, len: usize) -> CudaSlice<bf16> {
    // SAFETY: every element that is read has been written before, by these tests or by a kernel.
    unsafe { gpu.stream().alloc(len).expect("room, reserved") }
}

/// Rows of `DIM` elements, `stride` apart, in a buffer of `len` elements.
fn scatter(gpu: &Gpu, values: &[bf16], stride: usize, len: usize) -> CudaSlice<bf16> {
    let mut far = reserve(gpu, len);
    for (row, values) in values.chunks_exact(DIM).enumerate() {
        gpu.stream().memcpy_htod(values, &mut far.slice_mut(row * stride..row * stride + DIM)).expect("a copy");
    }
    far
}

fn gather(gpu: &Gpu, far: &CudaSlice<bf16>) -> Vec<bf16> {
    (0..3).flat_map(|row| gpu.stream().clone_dtoh(&far.slice(row * STRIDE..row * STRIDE + DIM)).unwrap()).collect()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn sinusoids_and_grids_are_added_to_far_tokens() {
    let gpu = gpu();
    let values = Data::new(71).values::<bf16>(3 * DIM);
    let len = FAR.span().unwrap();

    let spec = Sinusoid::new(DIM);
    let mut x = scatter(&gpu, &values, STRIDE, len);
    SinusoidPlan::new(&gpu, &spec).unwrap().add(FAR.of_mut(&mut x), Positions::counted(), 1.5).unwrap();
    let mut near = values.clone();
    spec.add(&mut near, &NEAR, &[0, 1, 2], 1.5).unwrap();
    let close = |got: &[bf16], want: &[bf16]| {
        let want: Vec<f64> = want.iter().map(|x| x.to_f64()).collect();
        assert_close(got, &want, |i| 2.0 * rounded::<bf16>(want[i], 1e-6));
    };
    close(&gather(&gpu, &x), &near);

    // The batch is what lies far apart.
    let far = Tokens { batch: 3, tokens: 1, strides: [STRIDE, DIM], ..FAR };
    let mut x = scatter(&gpu, &values, STRIDE, len);
    SinusoidPlan::new(&gpu, &spec).unwrap().add(far.of_mut(&mut x), Positions::counted(), 1.5).unwrap();
    let mut near = values.clone();
    spec.add(&mut near, &Tokens { strides: [DIM, DIM], ..far }, Positions::ids(&[0]).shared(), 1.5).unwrap();
    close(&gather(&gpu, &x), &near);

    let grid = Grid::columns_first(DIM);
    let size = GridSize::image(3, 1);
    let mut x = scatter(&gpu, &values, STRIDE, len);
    GridPlan::new(&gpu, &grid).unwrap().add(FAR.of_mut(&mut x), size, 1.5).unwrap();
    let mut near = values;
    grid.add(&mut near, &NEAR, size, 1.5).unwrap();
    close(&gather(&gpu, &x), &near);
}

/// The rows of a table that are used: one of the first, one beyond 2^31 elements, and one beyond 2^32.
const ROWS: [usize; 3] = [2, 1 << 27, (1 << 28) + 5];
const TABLE: usize = ((1 << 28) + 6) * DIM;

fn table(gpu: &Gpu, values: &[bf16]) -> CudaSlice<bf16> {
    let mut far = reserve(gpu, TABLE);
    for (row, values) in ROWS.into_iter().zip(values.chunks_exact(DIM)) {
        gpu.stream().memcpy_htod(values, &mut far.slice_mut(row * DIM..(row + 1) * DIM)).expect("a copy");
    }
    far
}

fn table_rows(gpu: &Gpu, far: &CudaSlice<bf16>) -> Vec<bf16> {
    ROWS.into_iter().flat_map(|row| gpu.stream().clone_dtoh(&far.slice(row * DIM..(row + 1) * DIM)).unwrap()).collect()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn far_rows_are_gathered_into_far_tokens_and_so_are_their_gradients() {
    let gpu = gpu();
    let stream = gpu.stream();
    let mut data = Data::new(72);
    let mut values = || data.values::<bf16>(3 * DIM);
    let (tokens, positions, grads) = (values(), values(), values());
    let (token_table, position_table) = (table(&gpu, &tokens), table(&gpu, &positions));
    let far = ROWS.map(|row| row as i64);
    let ids = stream.clone_htod(&far).unwrap();
    let far_lookup =
        DeviceLookup { ids: Some(i64::ids(&ids)), positions: Positions::ids(&ids), ..DeviceLookup::default() };
    let far_tables =
        DeviceTables { token: Some(&token_table), position: Some(&position_table), ..DeviceTables::default() };
    // On the CPU the used rows lie side by side.
    let tables = HostTables { token: Some(&tokens), position: Some(&positions), ..HostTables::default() };
    let lookup = HostLookup { ids: Some(&[0, 1, 2]), ..HostLookup::default() };
    for norm in [None, Some(Norm::Layer { eps: 1e-5 })] {
        let learned = Learned { norm, rows: Rows::Offset(0), ..Learned::new(DIM) };
        let plan = LearnedPlan::<bf16>::new(&gpu, &learned).unwrap();
        let mut x = reserve(&gpu, FAR.span().unwrap());
        plan.gather_checked(FAR.of_mut(&mut x), &far_tables, &far_lookup).unwrap();
        let want = learned.expect(&[bf16::ZERO; 3 * DIM], &NEAR, &tables, &lookup).unwrap();
        assert_close(&gather(&gpu, &x), &want.want, |i| want.bound[i]);

        let grad = scatter(&gpu, &grads, STRIDE, FAR.span().unwrap());
        let want = learned.grad((1, 3), &[], &grads, &tables, &lookup).unwrap();
        let plan = LearnedGradPlan::<bf16>::new(&gpu, &learned, FAR).unwrap();
        // Of the second order in 2^-9: what bf16 sums are off by.
        let close = |got: &[bf16], want: &[f64]| assert_close(got, want, |i| 0.02 * (1.0 + want[i].abs()));
        let sum = if norm.is_some() {
            let mut sum = reserve(&gpu, FAR.span().unwrap());
            let out = NormGrad::new(FAR.of_mut(&mut sum));
            plan.norm(out, FAR.of(&grad), None, &far_tables, &far_lookup).unwrap();
            close(&gather(&gpu, &sum), &want.sum);
            sum
        } else {
            grad
        };
        let order = stream.clone_htod(&[0u32, 1, 2]).unwrap();
        let mut out = reserve(&gpu, TABLE);
        plan.table(&mut out, FAR.of(&sum), i64::ids(&ids), &order, TableGrad::new(TABLE / DIM)).unwrap();
        close(&table_rows(&gpu, &out), &want.token);
        // Counted from a row that lies far.
        let mut out = reserve(&gpu, TABLE);
        plan.counted(&mut out, FAR.of(&sum), TABLE / DIM - 3, TableGrad::new(TABLE / DIM)).unwrap();
        close(&stream.clone_dtoh(&out.slice(TABLE - 3 * DIM..)).unwrap(), &want.sum);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_far_corner_of_a_table_is_resampled() {
    let gpu = gpu();
    let stream = gpu.stream();
    // 2^32 elements and a few; two outputs a side take the middles of its quarters.
    let (from, to) = (GridSize::image(1 << 13, (1 << 15) + 2), GridSize::image(2, 2));
    let spec = Resample { filter: Filter::Bilinear, ..Resample::new(from, to) };
    let plan = ResamplePlan::<bf16>::new(&gpu, &spec).unwrap();
    let mut table = reserve(&gpu, from.rows * from.columns * DIM);
    let mut data = Data::new(73);
    let mut want = Vec::new();
    for y in [1 << 11, 3 << 11] {
        // DeviceLookup y - 1 and y weigh a half each; so do two of the columns, or one of them wholly.
        for x in [(from.columns as f64 / 4.0) - 0.5, (from.columns as f64 * 0.75) - 0.5] {
            let mut sum = [0.0; DIM];
            for (row, row_weight) in [(y - 1, 0.5), (y, 0.5)] {
                for (column, weight) in [(x.floor(), 1.0 - x.fract()), (x.floor() + 1.0, x.fract())] {
                    let values = data.values::<bf16>(DIM);
                    let at = (row * from.columns + column as usize) * DIM;
                    stream.memcpy_htod(&values, &mut table.slice_mut(at..at + DIM)).unwrap();
                    for (sum, value) in sum.iter_mut().zip(&values) {
                        *sum += row_weight * weight * value.to_f64();
                    }
                }
            }
            want.extend(sum);
        }
    }
    let mut out = stream.alloc_zeros(4 * DIM).unwrap();
    plan.write(Tokens::new(1, 4, DIM).of_mut(&mut out), Tokens::new(1, from.rows * from.columns, DIM).of(&table))
        .unwrap();
    assert_close(&stream.clone_dtoh(&out).unwrap(), &want, |i| rounded::<bf16>(want[i], 1e-5));
}
