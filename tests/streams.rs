//! One plan in several threads: on the per-thread default stream, and in graphs that run at the same time. All in safe Rust.
#![forbid(unsafe_code)]

use std::sync::{Arc, Barrier};

use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaStream};
use posenc::bias::DistanceGradPlan;
use posenc::{Bias, Gpu, Logits, Places, Softmax, SoftmaxPlan};

/// Runs `call` in two threads, on the per-thread default stream of each, captured into a graph of its own that is launched
/// `rounds` times; `check` gets the thread's number after each launch.
fn in_two_threads<B>(
    rounds: usize,
    make: impl Fn(&Arc<CudaStream>, usize) -> B + Sync,
    call: impl Fn(&mut B) + Sync,
    check: impl Fn(&Arc<CudaStream>, &B, usize) + Sync,
    stream: &Arc<CudaStream>,
) {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (barrier, make, call, check) = (&barrier, &make, &call, &check);
            scope.spawn(move || {
                stream.context().bind_to_thread().expect("a context");
                let mut buffers = make(stream, thread);
                // Once as it is, then as a graph.
                call(&mut buffers);
                stream.synchronize().expect("a run");
                check(stream, &buffers, thread);
                stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
                call(&mut buffers);
                let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
                let graph = stream.end_capture(flags).expect("a graph").expect("nodes");
                barrier.wait();
                for _ in 0..rounds {
                    graph.launch().and_then(|()| stream.synchronize()).expect("a run");
                    check(stream, &buffers, thread);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn two_threads_share_a_softmax_whose_rows_blocks_share() {
    let context = CudaContext::new(0).expect("a device");
    let stream = context.per_thread_stream();
    let gpu = Gpu::new(&stream).expect("kernels");
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).expect("a plan");
    let keys = 1 << 16;
    let shape = Logits::bhqk(1, 1, 1, keys);
    in_two_threads(
        6,
        |stream, thread| {
            let factor = [0.01, -0.003][thread];
            let x: Vec<f32> = (0..keys).map(|i| (i % 1000) as f32 * factor).collect();
            (stream.clone_htod(&x).expect("a copy"), stream.alloc_zeros::<f32>(keys).expect("memory"))
        },
        |(x, y)| plan.apply(shape.of(x).to(shape.of_mut(y)), &Default::default()).expect("a call"),
        |stream, (_, y), thread| {
            let y = stream.clone_dtoh(y).expect("a copy");
            let sum: f64 = y.iter().map(|&p| f64::from(p)).sum();
            assert!((sum - 1.0).abs() < 1e-3, "probabilities of thread {thread} sum to {sum}");
        },
        &stream,
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn two_threads_share_a_gradient_whose_blocks_leave_sums() {
    let context = CudaContext::new(0).expect("a device");
    let stream = context.per_thread_stream();
    let gpu = Gpu::new(&stream).expect("kernels");
    let shape = Logits::bhqk(1, 2, 256, 256);
    let plan = DistanceGradPlan::<f32>::slopes(&gpu, 2, shape).expect("a plan");
    // Minus the sum of all distances of one side of the diagonal, for each side and head.
    let side: i64 = -(1..256).map(|distance| distance * (256 - distance)).sum::<i64>();
    in_two_threads(
        6,
        |stream, thread| {
            let grad = vec![[1f32, -3.0][thread]; shape.elements().expect("small")];
            (stream.clone_htod(&grad).expect("a copy"), stream.alloc_zeros::<f32>(4).expect("memory"))
        },
        |(grad, out)| plan.apply(shape.of(grad), Places::bottom_right(), 1.0, out).expect("a call"),
        |stream, (_, out), thread| {
            let want = side as f32 * [1.0, -3.0][thread];
            let got = stream.clone_dtoh(out).expect("a copy");
            assert!(
                got.iter().all(|got| (got - want).abs() <= 1e-5 * want.abs()),
                "{got:?} of thread {thread}, {want}"
            );
        },
        &stream,
    );
}
