//! Every call of this room in a CUDA graph: captured without running, replayed with the bits of the direct call.

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaContext, CudaSlice};
use posenc::accuracy::{assert_close, rounded};
use posenc::embed::{
    Counted, DeviceLookup, DeviceTables, Filter, Grid, GridPlan, GridSize, Learned, LearnedGradPlan, LearnedPlan, Norm,
    NormGrad, Resample, ResamplePlan, Rows, Sinusoid, SinusoidPlan, TableGrad, TimestepPlan, Tokens,
};
use posenc::{Gpu, Id, Positions, Scalar};

use crate::support::Data;

/// A context of its own settings: events recorded outside a capture cannot be waited for inside it.
fn gpu_without_events() -> Gpu {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    // SAFETY: every buffer of these tests is used on this one stream.
    unsafe { context.disable_event_tracking() };
    Gpu::new(&stream).expect("a device")
}

/// `call` writes `out`, which holds `before`: directly, then twice from a graph.
#[track_caller]
fn captured<T>(gpu: &Gpu, before: &[T], mut call: impl FnMut(&mut CudaSlice<T>))
where
    T: bytemuck::Pod + cudarc::driver::DeviceRepr,
{
    let stream = gpu.stream();
    let mut out = stream.clone_htod(before).expect("a copy");
    let read = |out: &CudaSlice<T>| bytemuck::cast_slice::<T, u8>(&stream.clone_dtoh(out).expect("a copy")).to_vec();
    let untouched = read(&out);
    call(&mut out);
    let want = read(&out);
    assert_ne!(want, untouched);
    stream.memcpy_htod(before, &mut out).expect("a copy");
    stream.synchronize().expect("a stream");

    stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    call(&mut out);
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph that is not empty");
    assert_eq!(read(&out), untouched);
    for _ in 0..2 {
        stream.memcpy_htod(before, &mut out).expect("a copy");
        graph.launch().expect("a replay");
        assert_eq!(read(&out), want);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn sinusoids_timesteps_and_grids() {
    let gpu = gpu_without_events();
    let mut data = Data::new(61);
    let tokens = Tokens::new(2, 6, 16);
    let x = data.values::<f32>(2 * 6 * 16);

    let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(16)).unwrap();
    captured(&gpu, &x, |x| plan.add(tokens.of_mut(x), Positions::counted(), 4.0).unwrap());
    captured(&gpu, &x, |x| plan.write(tokens.of_mut(x), Positions::counted()).unwrap());

    let plan = TimestepPlan::<f32>::new(&gpu, &Sinusoid::timestep(16)).unwrap();
    let t = gpu.stream().clone_htod(&[0.5f32, 999.0, -3.0]).unwrap();
    captured(&gpu, &x[..48], |out| plan.write(Tokens::new(1, 3, 16).of_mut(out), &t).unwrap());

    let size = GridSize::image(2, 3);
    let plan = GridPlan::<f32>::new(&gpu, &Grid::columns_first(16)).unwrap();
    captured(&gpu, &x, |x| plan.add(tokens.of_mut(x), size, 2.0).unwrap());
    captured(&gpu, &x, |x| plan.write(tokens.of_mut(x), size).unwrap());
    let plan = GridPlan::<f32>::new(&gpu, &Grid::detr(16, 20.0)).unwrap();
    let mask = gpu.stream().clone_htod(&[1u8, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0]).unwrap();
    captured(&gpu, &x, |x| plan.write_masked(tokens.of_mut(x), &mask, size, Counted::default()).unwrap());
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn positions_are_read_when_the_graph_runs() {
    let gpu = gpu_without_events();
    let stream = gpu.stream();
    let spec = Sinusoid::new(8);
    let plan = SinusoidPlan::<f32>::new(&gpu, &spec).unwrap();
    let mut ids = stream.clone_htod(&[1i64, 2]).unwrap();
    let mut out = stream.clone_htod(&[9.0f32; 16]).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    plan.write(Tokens::new(1, 2, 8).of_mut(&mut out), Positions::ids(&ids)).unwrap();
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for positions in [[1, 2], [-70_000, 2_147_483_647]] {
        stream.memcpy_htod(&positions, &mut ids).unwrap();
        graph.launch().unwrap();
        let want: Vec<f64> = (0..16).map(|i| spec.value(positions[i / 8], i % 8)).collect();
        assert_close(&stream.clone_dtoh(&out).unwrap(), &want, |i| {
            rounded::<f32>(want[i], spec.error_bound(positions[i / 8]))
        });
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tables_norms_and_their_gradients() {
    let gpu = gpu_without_events();
    let stream = gpu.stream();
    let mut data = Data::new(62);
    let (dim, count) = (24, 1500);
    let tokens = Tokens::new(1, count, dim);
    let mut values = |n: usize| data.values::<f32>(n);
    let (x, token, position) = (values(count * dim), values(11 * dim), values((count + 2) * dim));
    let (gain, bias) = (values(dim), values(dim));
    let upload = |values: &[f32]| stream.clone_htod(values).unwrap();
    let [grad, token, position, gain, bias] = [&x, &token, &position, &gain, &bias].map(|values| upload(values));
    let ids: Vec<i32> = (0..count as i32).map(|i| i * i % 11).collect();
    let ids = stream.clone_htod(&ids).unwrap();
    let mask = stream.clone_htod(&vec![1u8; count]).unwrap();
    let lookup = DeviceLookup { ids: Some(i32::ids(&ids)), mask: Some(&mask), ..DeviceLookup::default() };
    for norm in [None, Some(Norm::Layer { eps: 1e-5 })] {
        let learned = Learned { norm, rows: Rows::Kept { padding: None, first: 1, padded: 0 }, ..Learned::new(dim) };
        let mut tables = DeviceTables { token: Some(&token), position: Some(&position), ..DeviceTables::default() };
        if norm.is_some() {
            tables = DeviceTables { gain: Some(&gain), bias: Some(&bias), ..tables };
        }
        let plan = LearnedPlan::<f32>::new(&gpu, &learned).unwrap();
        captured(&gpu, &x, |x| plan.gather(tokens.of_mut(x), &tables, &lookup, None).unwrap());
        captured(&gpu, &vec![-7i64; count], |rows| plan.rows(rows, 1, count, &lookup).unwrap());

        let plan = LearnedGradPlan::<f32>::new(&gpu, &learned, tokens).unwrap();
        if norm.is_some() {
            let mut vector = upload(&vec![0.0; dim]);
            captured(&gpu, &x, |sum| {
                let gain = Some(&mut vector as posenc::gpu::Write<'_, f32>);
                let out = NormGrad { gain, ..NormGrad::new(tokens.of_mut(sum)) };
                plan.norm(out, tokens.of(&grad), None, &tables, &lookup).unwrap();
            });
            let mut sum = upload(&x);
            captured(&gpu, &vec![0.0f32; dim], |bias| {
                let out = NormGrad { bias: Some(bias), accumulate: true, ..NormGrad::new(tokens.of_mut(&mut sum)) };
                plan.norm(out, tokens.of(&grad), None, &tables, &lookup).unwrap();
            });
        }
        let table = vec![0.0f32; (count + 2) * dim];
        captured(&gpu, &table, |table| plan.counted(table, tokens.of(&grad), 2, TableGrad::new(count + 2)).unwrap());
        captured(&gpu, &vec![u32::MAX; count], |order| plan.order(order, i32::ids(&ids), count).unwrap());
        let mut order = stream.clone_htod(&vec![0u32; count]).unwrap();
        plan.order(&mut order, i32::ids(&ids), count).unwrap();
        captured(&gpu, &table[..11 * dim], |table| {
            let how = TableGrad { accumulate: true, ..TableGrad::new(11) };
            plan.table(table, tokens.of(&grad), i32::ids(&ids), &order, how).unwrap();
        });
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn resampling_and_its_transpose() {
    fn check<T: Scalar>(gpu: &Gpu) {
        let mut data = Data::new(63);
        let (from, to) = (GridSize::image(4, 3), GridSize::image(5, 7));
        let spec = Resample { filter: Filter::Bicubic, prefix: 1, antialias: true, ..Resample::new(from, to) };
        let plan = ResamplePlan::<T>::new(gpu, &spec).unwrap();
        let (small, large) = (data.values::<T>(13 * 8), data.values::<T>(36 * 8));
        let (table, grad) = (gpu.stream().clone_htod(&small).unwrap(), gpu.stream().clone_htod(&large).unwrap());
        let (rows, resampled) = (Tokens::new(1, 13, 8), Tokens::new(1, 36, 8));
        captured(gpu, &large, |out| plan.write(resampled.of_mut(out), rows.of(&table)).unwrap());
        captured(gpu, &small, |table| plan.grad(rows.of_mut(table), resampled.of(&grad), true).unwrap());
    }
    let gpu = gpu_without_events();
    check::<f32>(&gpu);
    check::<half::bf16>(&gpu);
}
