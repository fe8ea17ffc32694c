//! Programs in the style of cudarc's own examples and tests: allocation, copies, launches, streams, events, graphs,
//! several devices, several host threads. None of them knows that there is no GPU.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, Barrier};
use std::thread;
use support::Text;

static FEATURES: Text = Text("features");
static BENCH: Text = Text("bench");

/// `sin_kernel` of cudarc's examples, by hand: 6 instructions of arithmetic, one bound.
const SIN: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry sin_kernel(.param .u64 out, .param .u64 inp, .param .u64 n)
{
    .reg .pred %p;
    .reg .b32 %r<4>;
    .reg .f32 %f<3>;
    .reg .b64 %d<8>;
    ld.param.u64 %d1, [out];
    ld.param.u64 %d2, [inp];
    ld.param.u64 %d3, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r1, %r1, %r2, %r3;
    cvt.u64.u32 %d4, %r1;
    setp.ge.u64 %p, %d4, %d3;
    @%p bra END;
    cvta.to.global.u64 %d1, %d1;
    cvta.to.global.u64 %d2, %d2;
    shl.b64 %d4, %d4, 2;
    add.u64 %d5, %d2, %d4;
    ld.global.f32 %f1, [%d5];
    sin.approx.f32 %f2, %f1;
    add.u64 %d6, %d1, %d4;
    st.global.f32 [%d6], %f2;
END:
    ret;
}
";

fn launch_sin(
    stream: &Arc<CudaStream>,
    module: &Arc<CudaModule>,
    x: &CudaSlice<f32>,
    y: &mut CudaSlice<f32>,
) -> Result<(), DriverError> {
    let f = module.load_function("sin_kernel")?;
    let n = x.len();
    unsafe { stream.launch_builder(&f).arg(y).arg(x).arg(&n).launch(LaunchConfig::for_num_elems(n as u32)) }?;
    Ok(())
}

#[test]
fn allocate_copy_launch() -> Result<(), DriverError> {
    support::load();
    let ctx = CudaContext::new(0)?;
    let stream = ctx.default_stream();
    let module = ctx.load_module(Ptx::from_src(SIN))?;
    let x: Vec<f32> = (0..1000).map(|i| i as f32 / 100.0).collect();
    let a = stream.clone_htod(&x)?;
    let mut b = stream.alloc_zeros::<f32>(1000)?;
    launch_sin(&stream, &module, &a, &mut b)?;
    let y = stream.clone_dtoh(&b)?;
    assert!(x.iter().zip(&y).all(|(x, y)| (x.sin() - y).abs() < 1e-5));
    // views, device copies, fills
    let mut c = stream.clone_dtod(&b)?;
    stream.memset_zeros(&mut c.slice_mut(10..20))?;
    let back = stream.clone_dtoh(&c)?;
    assert_eq!(back[..10], y[..10]);
    assert_eq!(back[10..20], [0.0; 10]);
    assert_eq!(back[20..], y[20..]);
    let mut part = vec![0.0; 5];
    stream.memcpy_dtoh(&c.slice(20..25), &mut part)?;
    assert_eq!(part, y[20..25]);
    assert_eq!(ctx.name()?, "Emulator sm_90 (132 multiprocessors)");
    ctx.synchronize()
}

#[test]
fn streams_and_events() -> Result<(), DriverError> {
    support::load();
    let ctx = CudaContext::new(0)?;
    let module = ctx.load_module(Ptx::from_src(SIN))?;
    let main = ctx.default_stream();
    let side = ctx.new_stream()?;
    let x = main.clone_htod(&vec![1.0f32; 4096])?;
    let mut y = side.alloc_zeros::<f32>(4096)?;
    side.join(&main)?;
    let start = side.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
    launch_sin(&side, &module, &x, &mut y)?;
    let end = side.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
    main.wait(&end)?;
    end.synchronize()?;
    let ms = start.elapsed_ms(&end)?;
    assert!(ms > 0.0 && ms < 1000.0, "{ms} ms");
    assert!(main.clone_dtoh(&y)?.iter().all(|v| (v - 1f32.sin()).abs() < 1e-6));
    // timing a launch by its own pair of events
    let f = module.load_function("sin_kernel")?;
    let mut builder = side.launch_builder(&f);
    builder.record_kernel_launch(CUevent_flags::CU_EVENT_DEFAULT);
    let n = x.len();
    let pair = unsafe { builder.arg(&mut y).arg(&x).arg(&n).launch(LaunchConfig::for_num_elems(n as u32)) }?;
    let (a, b) = pair.expect("two events");
    assert!(a.elapsed_ms(&b)? > 0.0);
    let low = ctx.new_stream_with_priority(-1)?;
    low.synchronize()?;
    Ok(())
}

/// On a device that launch runs code that is gone.
#[test]
fn a_graph_of_an_unloaded_module_is_refused() -> Result<(), DriverError> {
    let emulator = support::load();
    let ctx = support::private_context(0);
    // SAFETY: everything is on one stream.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream()?;
    let module = ctx.load_module(Ptx::from_src(SIN))?;
    let x = stream.clone_htod(&[0.0f32; 64])?;
    let mut y = stream.alloc_zeros::<f32>(64)?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    launch_sin(&stream, &module, &x, &mut y)?;
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.expect("a graph");
    graph.launch()?;
    stream.synchronize()?;
    drop(module);
    emulator.set_quiet(true);
    assert_eq!(graph.launch().unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(emulator.last_error().unwrap(), "kernel `sin_kernel` is in a graph; its module was unloaded");
    Ok(())
}

#[test]
fn graphs_replay_what_was_captured() -> Result<(), DriverError> {
    support::load();
    let ctx = support::private_context(0);
    // SAFETY: everything is on one stream, or joined by events recorded inside the capture.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream()?;
    let module = ctx.load_module(Ptx::from_src(SIN))?;
    let mut x = stream.clone_htod(&[0.0f32; 64])?;
    let mut y = stream.alloc_zeros::<f32>(64)?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    // what would synchronise or allocate is refused while the thread captures
    let mut at = 0;
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut at, 16) }, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    launch_sin(&stream, &module, &x, &mut y)?;
    // a second stream that joins
    let side = ctx.new_stream()?;
    let fork = ctx.new_event(None)?;
    fork.record(&stream)?;
    side.wait(&fork)?;
    side.memset_zeros(&mut x)?;
    let join = ctx.new_event(None)?;
    join.record(&side)?;
    stream.wait(&join)?;
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.expect("a graph");
    stream.memcpy_htod(&[0.5f32; 64], &mut x)?;
    graph.upload()?;
    graph.launch()?;
    assert!(stream.clone_dtoh(&y)?.iter().all(|v| (v - 0.5f32.sin()).abs() < 1e-6));
    assert_eq!(stream.clone_dtoh(&x)?, [0.0; 64]);
    graph.launch()?;
    assert_eq!(stream.clone_dtoh(&y)?, [0.0; 64]);
    // cudarc's own tests of flags, and of a capture that cannot be
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    stream.memset_zeros(&mut x)?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
        | CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    assert_eq!(stream.end_capture(flags).err().map(|e| e.0), Some(sys::CUresult::CUDA_ERROR_INVALID_VALUE));
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    assert_eq!(stream.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert!(stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
    stream.synchronize()
}

#[test]
fn what_a_thread_captures_is_its_own() -> Result<(), DriverError> {
    support::load();
    let ctx = support::private_context(0);
    // SAFETY: each thread waits for its own stream alone.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.per_thread_stream();
    let mut x = ctx.default_stream().clone_htod(&[1.0f32; 64])?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    stream.memset_zeros(&mut x)?;
    // Another thread's work is done meanwhile, on the stream that all share and on its own.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<[Vec<f32>; 2], DriverError> {
            ctx.bind_to_thread()?;
            let of = |stream: Arc<CudaStream>| stream.clone_dtoh(&stream.clone_htod(&[2.0f32; 64])?);
            Ok([of(ctx.default_stream())?, of(ctx.per_thread_stream())?])
        });
        assert_eq!(other.join().expect("the thread ends")?, [[2.0; 64], [2.0; 64]]);
        Ok(())
    })?;
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.expect("a graph");
    assert_eq!(stream.clone_dtoh(&x)?, [1.0; 64]);
    graph.launch()?;
    assert_eq!(stream.clone_dtoh(&x)?, [0.0; 64]);
    Ok(())
}

#[test]
fn two_devices() -> Result<(), DriverError> {
    support::load();
    assert_eq!(CudaContext::device_count()?, 2);
    let (one, two) = (CudaContext::new(0)?, CudaContext::new(1)?);
    assert_ne!(one.uuid()?.bytes, two.uuid()?.bytes);
    let (a, b) = (one.default_stream(), two.default_stream());
    let x = a.clone_htod(&[1.0f32, 2.0, 3.0])?;
    let y = b.clone_dtod(&x)?;
    assert_eq!(b.clone_dtoh(&y)?, [1.0, 2.0, 3.0]);
    let module = two.load_module(Ptx::from_src(SIN))?;
    let mut z = b.alloc_zeros::<f32>(3)?;
    launch_sin(&b, &module, &y, &mut z)?;
    assert!((b.clone_dtoh(&z)?[1] - 2f32.sin()).abs() < 1e-6);
    Ok(())
}

#[test]
fn many_host_threads() {
    support::load();
    let ctx = CudaContext::new(0).unwrap();
    let module = ctx.load_module(Ptx::from_src(SIN)).unwrap();
    let start = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|k| {
            let (ctx, module, start) = (ctx.clone(), module.clone(), start.clone());
            thread::spawn(move || {
                let emulator = warpcheck::attach().unwrap();
                let stream = ctx.new_stream().unwrap();
                start.wait();
                for round in 0..20 {
                    let n = 500 + 37 * k + round;
                    let x: Vec<f32> = (0..n).map(|i| (i * (k + 1)) as f32 / 100.0).collect();
                    let a = stream.clone_htod(&x).unwrap();
                    let mut b = stream.alloc_zeros::<f32>(n).unwrap();
                    emulator.reset_counters();
                    launch_sin(&stream, &module, &a, &mut b).unwrap();
                    // counters are the thread's own
                    assert_eq!(emulator.counters().bytes_read, 4 * n as u64);
                    let y = stream.clone_dtoh(&b).unwrap();
                    assert!(x.iter().zip(&y).all(|(x, y)| (f64::from(*x).sin() - f64::from(*y)).abs() < 1e-6));
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
}

#[test]
fn pinned_and_managed_memory() -> Result<(), DriverError> {
    support::load();
    let ctx = CudaContext::new(0)?;
    let stream = ctx.default_stream();
    // SAFETY: plain numbers.
    let mut pinned = unsafe { ctx.alloc_pinned::<f32>(256) }?;
    pinned.as_mut_slice()?.copy_from_slice(&[1.5; 256]);
    let x = stream.clone_htod(&pinned)?;
    assert_eq!(stream.clone_dtoh(&x)?, [1.5; 256]);
    let module = ctx.load_module(Ptx::from_src(SIN))?;
    // SAFETY: plain numbers.
    let mut managed = unsafe { ctx.alloc_unified::<f32>(256, true) }?;
    managed.as_mut_slice()?.fill(0.25);
    let f = module.load_function("sin_kernel")?;
    let mut y = stream.alloc_zeros::<f32>(256)?;
    let n = 256usize;
    unsafe { stream.launch_builder(&f).arg(&mut y).arg(&managed).arg(&n).launch(LaunchConfig::for_num_elems(256)) }?;
    assert!(stream.clone_dtoh(&y)?.iter().all(|v| (v - 0.25f32.sin()).abs() < 1e-6));
    Ok(())
}

#[test]
fn functions_say_what_they_need() -> Result<(), DriverError> {
    support::load();
    let ctx = CudaContext::new(0)?;
    let module = ctx.load_module(Ptx::from_src(&*FEATURES))?;
    let f = module.load_function("spaces")?;
    use sys::CUfunction_attribute_enum as Attribute;
    assert_eq!(f.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?, 256);
    assert_eq!(f.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?, 88);
    assert!(f.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)? >= 64);
    assert_eq!(f.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?, 1024);
    f.set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100_000)?;
    assert_eq!(f.occupancy_max_active_blocks_per_multiprocessor(256, 100_000, None)?, 2);
    assert_eq!(f.occupancy_max_active_blocks_per_multiprocessor(1024, 0, None)?, 2);
    Ok(())
}

#[test]
fn launches_that_run_nothing() -> Result<(), DriverError> {
    let emulator = support::load();
    let ctx = CudaContext::new(0)?;
    let stream = ctx.default_stream();
    let module = ctx.load_module(Ptx::from_src(&*BENCH))?;
    let f = module.load_function("add_one")?;
    let x = stream.alloc_zeros::<u16>(64)?;
    let mut y = stream.alloc_zeros::<u16>(64)?;
    emulator.set_noop(true);
    emulator.reset_counters();
    let n = 64i32;
    for _ in 0..100 {
        unsafe { stream.launch_builder(&f).arg(&x).arg(&mut y).arg(&n).launch(LaunchConfig::for_num_elems(64)) }?;
    }
    let c = emulator.counters();
    assert_eq!((c.launches, c.instructions()), (100, 0));
    // refusals stay
    let config = LaunchConfig { grid_dim: (0, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    assert!(unsafe { stream.launch_builder(&f).arg(&x).arg(&mut y).arg(&n).launch(config) }.is_err());
    emulator.set_noop(false);
    assert_eq!(stream.clone_dtoh(&y)?, [0; 64]);
    Ok(())
}

#[test]
fn graphs_take_new_arguments() -> Result<(), DriverError> {
    let emulator = support::load();
    emulator.set_quiet(true);
    let ctx = support::private_context(0);
    // SAFETY: everything is on one stream.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream()?;
    let mut x = stream.clone_htod(&[1u32; 64])?;
    let capture = |bytes: &[u8], x: &mut cudarc::driver::CudaSlice<u32>| -> Result<sys::CUgraph, DriverError> {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        for byte in bytes {
            let (at, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(x, &stream);
            // SAFETY: a part of the buffer.
            unsafe { sys::cuMemsetD8Async(at, *byte, 16, stream.cu_stream()) }.result()?;
        }
        let mut graph = std::ptr::null_mut();
        // SAFETY: the place is ours.
        unsafe { sys::cuStreamEndCapture(stream.cu_stream(), &mut graph) }.result()?;
        Ok(graph)
    };
    let (one, two, three) = (capture(&[1], &mut x)?, capture(&[2], &mut x)?, capture(&[3, 3], &mut x)?);
    let mut exec = std::ptr::null_mut();
    // SAFETY: handles that were given, places that are ours.
    unsafe {
        sys::cuGraphInstantiateWithFlags(&mut exec, one, 0).result()?;
        sys::cuGraphLaunch(exec, stream.cu_stream()).result()?;
        assert_eq!(stream.clone_dtoh(&x)?[..5], [0x0101_0101, 0x0101_0101, 0x0101_0101, 0x0101_0101, 1]);
        let mut info: sys::CUgraphExecUpdateResultInfo = std::mem::zeroed();
        sys::cuGraphExecUpdate_v2(exec, two, &mut info).result()?;
        sys::cuGraphLaunch(exec, stream.cu_stream()).result()?;
        assert_eq!(stream.clone_dtoh(&x)?[..2], [0x0202_0202; 2]);
        // another number of nodes is refused, and the graph stays as it was
        let code = sys::cuGraphExecUpdate_v2(exec, three, &mut info);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        assert_eq!(info.result, sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
        assert!(emulator.last_error().unwrap().contains("it has another number of nodes"));
        sys::cuGraphLaunch(exec, stream.cu_stream()).result()?;
        assert_eq!(stream.clone_dtoh(&x)?[..2], [0x0202_0202; 2]);
        assert_eq!(sys::cuGraphExecUpdate_v2(exec, exec.cast(), &mut info), sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
        sys::cuGraphExecDestroy(exec).result()?;
        for graph in [one, two, three] {
            sys::cuGraphDestroy(graph).result()?;
        }
    }
    Ok(())
}

#[test]
fn a_launch_records_the_event_that_it_is_given() -> Result<(), DriverError> {
    let emulator = support::load();
    emulator.set_quiet(true);
    let ctx = support::private_context(0);
    let stream = ctx.new_stream()?;
    let f = ctx.load_module(Ptx::from_src(&*FEATURES))?.load_function("hello")?;
    let (before, event) =
        (ctx.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?, ctx.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?);
    before.record(&stream)?;
    assert!(before.elapsed_ms(&event).is_err(), "it was never recorded");
    let x = 3i32;
    let mut params = [std::ptr::from_ref(&x) as *mut std::ffi::c_void];
    // SAFETY: the kernel takes one number; attributes and places are ours.
    unsafe {
        let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT;
        attribute.value.launchCompletionEvent.event = event.cu_event();
        let config = sys::CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 1,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        sys::cuLaunchKernelEx(&config, f.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()).result()?;
        assert!(before.elapsed_ms(&event)? >= 0.0);
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE;
        attribute.value.deviceUpdatableKernelNode.deviceUpdatable = 1;
        let config = sys::CUlaunchConfig { attrs: &mut attribute, ..config };
        let code = sys::cuLaunchKernelEx(&config, f.cu_function(), params.as_mut_ptr(), std::ptr::null_mut());
        assert_eq!(code, sys::CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    Ok(())
}

#[test]
fn a_capture_ends_when_its_branches_have_joined() -> Result<(), DriverError> {
    let emulator = support::load();
    emulator.set_quiet(true);
    let ctx = support::private_context(0);
    // SAFETY: the streams are ordered by the events below.
    unsafe { ctx.disable_event_tracking() };
    let (stream, side, third) = (ctx.new_stream()?, ctx.new_stream()?, ctx.new_stream()?);
    let mut x = stream.alloc_zeros::<u8>(64)?;
    let (fork, join, last) = (ctx.new_event(None)?, ctx.new_event(None)?, ctx.new_event(None)?);
    let mut capture = |joins: usize| -> Result<(), DriverError> {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        fork.record(&stream)?;
        side.wait(&fork)?;
        side.memset_zeros(&mut x)?;
        join.record(&side)?;
        // a branch of the branch
        third.wait(&join)?;
        third.memset_zeros(&mut x)?;
        last.record(&third)?;
        if joins > 0 {
            stream.wait(&join)?;
        }
        if joins > 1 {
            stream.wait(&last)?;
        }
        stream.end_capture(CUgraphInstantiate_flags(0)).map(|_| ())
    };
    for joins in 0..2 {
        let code = capture(joins).unwrap_err().0;
        assert_eq!(code, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        assert!(emulator.last_error().unwrap().contains("does not wait for it"));
    }
    capture(2)
}
