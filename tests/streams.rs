//! One plan in several threads: on the per-thread default stream, and in graphs that run at the same time. All in safe Rust.
#![forbid(unsafe_code)]

use std::sync::{Arc, Barrier};

use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream};
use posenc::attend::{DeviceInputs, HostInputs};
use posenc::bias::{DistanceGradPlan, Slopes};
use posenc::{
    Alibi, Bias, BiasPlan, Direction, Gpu, Heads, Logits, Places, Positions, Rope, RopePlan, Softmax, SoftmaxPlan,
};

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

/// Captures `call` on the per-thread default stream.
fn captured(stream: &Arc<CudaStream>, call: impl FnOnce()) -> CudaGraph {
    stream.synchronize().expect("a run");
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    call();
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    stream.end_capture(flags).expect("a graph").expect("nodes")
}

/// ALiBi's bias of `[1, 2, 3, 3]` for bottom-right aligned queries, times `factor`.
fn alibi(factor: f32) -> Vec<f32> {
    let slopes = Alibi::new(2).slopes().expect("slopes").left;
    (0..18).map(|i: i32| -factor * slopes[i as usize / 9] * (i / 3 % 3 - i % 3).abs() as f32).collect()
}

const SMALL: Logits = Logits::bhqk(1, 2, 3, 3);

/// What a graph reads is there as long as the graph is: kernels and tables of plans that are dropped.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_graph_outlives_its_plans() {
    let stream = CudaContext::new(0).expect("a device").per_thread_stream();
    let free = || stream.context().mem_get_info().expect("the device's memory").0;
    let heads = Heads::thd(3, 2, 16);
    let start: Vec<f32> = (0..96).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut x = stream.alloc_zeros::<f32>(96).expect("memory");
    let mut logits = stream.alloc_zeros::<f32>(18).expect("memory");
    let rope = Rope::new(16, 10_000.0);
    let before = free();
    let gpu = Gpu::new(&stream).expect("kernels");
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let bias = BiasPlan::<f32>::new(&gpu, &Alibi::new(2)).expect("a plan");
    let graph = captured(&stream, || {
        plan.rotate(heads.of_mut(&mut x), None, Positions::counted()).expect("a call");
        bias.write(SMALL.of_mut(&mut logits), Places::bottom_right()).expect("a call");
    });
    drop((plan, bias, gpu));
    // What is freed goes to others, who write there.
    let others: Vec<_> = (0..64).map(|_| stream.clone_htod(&[f32::NAN; 64]).expect("memory")).collect();
    stream.memcpy_htod(&start, &mut x).expect("a copy");
    graph.launch().and_then(|()| stream.synchronize()).expect("a run");
    let mut want = start;
    rope.rotate(&mut want, &heads, &[0, 1, 2], Direction::Forward).expect("a rotation");
    let got = stream.clone_dtoh(&x).expect("a copy");
    assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-6), "{got:?}, {want:?}");
    assert_eq!(stream.clone_dtoh(&logits).expect("a copy"), alibi(1.0));
    drop((others, graph));
    // The last graph gives all of it back, in a thread of its own. A driver's memory pool may keep what is free.
    if emulator::attach().is_some() {
        let begun = std::time::Instant::now();
        while free() != before {
            assert!(begun.elapsed().as_secs() < 20, "{} bytes are not given back", before - free());
            std::thread::yield_now();
        }
    }
}

/// Numbers that are trained in place: graphs of the plan see them, clones of the plan do not.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn trained_slopes_are_their_plans_alone_and_its_graphs() {
    let stream = CudaContext::new(0).expect("a device").per_thread_stream();
    let gpu = Gpu::new(&stream).expect("kernels");
    let mut plan = BiasPlan::<f32>::new(&gpu, &Alibi::new(2)).expect("a plan");
    let [mut one, mut other] = [(); 2].map(|()| stream.alloc_zeros::<f32>(18).expect("memory"));
    let graph = captured(&stream, || plan.write(SMALL.of_mut(&mut one), Places::bottom_right()).expect("a call"));
    let double = |plan: &mut BiasPlan<f32>, factor: f32| {
        let slopes: Vec<f32> =
            Alibi::new(2).slopes().expect("slopes").left.iter().map(|slope| factor * slope).collect();
        let (mut left, mut right) = plan.slopes_mut().expect("memory").expect("slopes");
        stream.memcpy_htod(&slopes, &mut left).and_then(|()| stream.memcpy_htod(&slopes, &mut right)).expect("copies");
    };
    double(&mut plan, 2.0);
    graph.launch().expect("a run");
    assert_eq!(stream.clone_dtoh(&one).expect("a copy"), alibi(2.0));
    let mut clone = plan.clone();
    double(&mut clone, 4.0);
    plan.write(SMALL.of_mut(&mut one), Places::bottom_right()).expect("a call");
    clone.write(SMALL.of_mut(&mut other), Places::bottom_right()).expect("a call");
    assert_eq!(stream.clone_dtoh(&one).expect("a copy"), alibi(2.0));
    assert_eq!(stream.clone_dtoh(&other).expect("a copy"), alibi(4.0));
    graph.launch().expect("a run");
    assert_eq!(stream.clone_dtoh(&one).expect("a copy"), alibi(2.0));
}

/// One plan on two streams at once: kernels and tables are shared, scratch memory is not. Nothing but the plan's own order keeps
/// the second stream behind the uploads of the first, and the memory behind the last reader.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_plan_runs_on_two_streams_at_once() {
    let context = CudaContext::new(0).expect("a device");
    let [one, other] = [(); 2].map(|()| context.new_stream().expect("a stream"));
    let gpu = Gpu::new(&one).expect("kernels");
    let keys = 1 << 16;
    let shape = Logits::bhqk(1, 1, 1, keys);
    let x: Vec<f32> = (0..keys).map(|i| (i % 1000) as f32 * 0.01).collect();
    let places = Places::counted(keys as i64 - 1, 0);
    let inputs = DeviceInputs { places, ..DeviceInputs::default() };
    let want = |slopes: &Slopes| {
        let mut want = x.clone();
        let inputs = HostInputs { bias: Bias::Slopes(slopes), ..HostInputs::at(Places::counted(keys as i64 - 1, 0)) };
        Softmax::new(1.0).apply(&mut want, &shape, &inputs).expect("a softmax");
        want
    };
    let slopes = Slopes::symmetric(1, &[0.001]).expect("slopes");
    let first = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), &slopes).expect("a plan");
    let second = first.on(&other).expect("the same plan");
    let mut all: Vec<_> = [&one, &other].map(|stream| stream.clone_htod(&x).expect("a copy")).into_iter().collect();
    for (plan, x) in [&first, &second].into_iter().zip(&mut all) {
        plan.apply(shape.of_mut(x), &inputs).expect("a call");
    }
    // The memory of the tables goes when both are done with it.
    drop((first, second, gpu));
    let others: Vec<_> = (0..64).map(|_| one.clone_htod(&[f32::NAN; 64]).expect("memory")).collect();
    let want = want(&slopes);
    for x in &all {
        let got = one.clone_dtoh(x).expect("a copy");
        assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 3e-6 * want.max(1e-6)));
    }
    drop(others);
    let elsewhere = CudaContext::new(1);
    if let Ok(elsewhere) = elsewhere {
        let gpu = Gpu::new(&one).expect("kernels");
        let error = RopePlan::<f32>::new(&gpu, &Rope::new(8, 1e4)).expect("a plan").on(&elsewhere.default_stream());
        let error = error.expect_err("another device").to_string();
        assert_eq!(error, "the stream lies in another CUDA context than the one this plan was made for");
    }
}

/// cudarc records an event when a buffer is made, and waits for it inside the capture, which the driver refuses.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_capture_with_event_tracking_names_the_cure() {
    let context = CudaContext::new(0).expect("a device");
    let (stream, other) = (context.new_stream().expect("a stream"), context.new_stream().expect("a stream"));
    let plan = RopePlan::<f32>::new(&Gpu::new(&stream).expect("kernels"), &Rope::new(16, 1e4)).expect("a plan");
    let mut x = other.alloc_zeros::<f32>(96).expect("memory");
    context.synchronize().expect("a run");
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    let error = plan.rotate(Heads::thd(3, 2, 16).of_mut(&mut x), None, Positions::counted()).expect_err("a refusal");
    let message = error.to_string();
    assert!(message.starts_with("cuStreamWaitEvent failed: CUDA_ERROR_STREAM_CAPTURE_ISOLATION: "), "{message}");
    assert!(message.contains("disable_event_tracking") && message.contains("Gpu::new"), "{message}");
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    assert!(stream.end_capture(flags).is_err(), "the capture is spoilt");
}
