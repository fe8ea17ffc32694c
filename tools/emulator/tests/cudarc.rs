//! Unmodified cudarc on the emulator.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::bf16;
use support::{Device, Text};

static FIRST: [Text; 3] = [Text("first.sm_75"), Text("first.sm_80"), Text("first.sm_90")];

fn shape(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

#[test]
fn bf16_vectors_and_64_bit_products() {
    for ptx in &FIRST {
        let d = Device::new();
        let f = d.kernel(ptx, "scale");
        let n = 1000usize;
        let host: Vec<bf16> = (0..8 * n).map(|i| bf16::from_f32((i as f32 - 3000.0) * 0.37)).collect();
        let x = d.stream.clone_htod(&host).unwrap();
        let mut y = d.stream.alloc_zeros::<bf16>(8 * n).unwrap();
        let mut phase = d.stream.alloc_zeros::<u64>(n).unwrap();
        let (a, rate, count) = (1.7f32, 0x9e37_79b9_7f4a_7c15u64, n as i32);
        d.emulator.reset_counters();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&x).arg(&mut y).arg(&mut phase).arg(&a).arg(&rate).arg(&count);
        unsafe { launch.launch(shape(8, 128)) }.unwrap();
        let (y, phase) = (d.stream.clone_dtoh(&y).unwrap(), d.stream.clone_dtoh(&phase).unwrap());
        for (i, (x, y)) in host.iter().zip(&y).enumerate() {
            assert_eq!(y.to_bits(), bf16::from_f32(x.to_f32() * a).to_bits(), "element {i}");
        }
        for (i, p) in phase.iter().enumerate() {
            assert_eq!(*p, (i as u64).wrapping_mul(rate));
        }
        let c = d.emulator.counters();
        assert_eq!(c.bytes_read, 16 * n as u64);
        assert_eq!(c.bytes_written, 24 * n as u64);
        assert_eq!(c.sectors_read, 16 * n as u64 / 32);
        assert_eq!(c.global_accesses, [0, 0, 0, n as u64, 2 * n as u64, 0]);
        let last = d.emulator.last_launch().unwrap();
        assert_eq!((last.kernel.as_str(), last.grid, last.block), ("scale", [8, 1, 1], [128, 1, 1]));
        assert_eq!((last.dynamic_shared, last.counters), (0, c));
        assert_eq!(d.emulator.launches(), [last]);
        d.emulator.reset_counters();
        assert_eq!(d.emulator.launches(), []);
    }
}

#[test]
fn shuffles_shared_memory_and_barriers() {
    for ptx in &FIRST {
        let d = Device::new();
        let f = d.kernel(ptx, "block_sum");
        let host: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let x = d.stream.clone_htod(&host).unwrap();
        let mut out = d.stream.alloc_zeros::<f32>(4).unwrap();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&x).arg(&mut out).arg(&1000i32);
        unsafe { launch.launch(shape(4, 256)) }.unwrap();
        let sums: Vec<f32> = host.chunks(256).map(|c| c.iter().sum()).collect();
        assert_eq!(d.stream.clone_dtoh(&out).unwrap(), sums);
    }
}

#[test]
fn calls_and_divergent_loops() {
    for ptx in &FIRST {
        let d = Device::new();
        let f = d.kernel(ptx, "steps");
        let mut out = d.stream.alloc_zeros::<u32>(300).unwrap();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&mut out).arg(&300u32);
        unsafe { launch.launch(shape(3, 128)) }.unwrap();
        let want: Vec<u32> = (1..=300u32)
            .map(|mut n| {
                let mut steps = 0;
                while n != 1 {
                    n = if n & 1 == 1 { 3 * n + 1 } else { n / 2 };
                    steps += 1;
                }
                steps
            })
            .collect();
        assert_eq!(d.stream.clone_dtoh(&out).unwrap(), want);
    }
}

#[test]
fn atomics_and_ballots() {
    for ptx in &FIRST {
        let d = Device::new();
        let f = d.kernel(ptx, "count");
        let mut counter = d.stream.alloc_zeros::<u32>(1).unwrap();
        let mut ballots = d.stream.alloc_zeros::<u32>(4).unwrap();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&mut counter).arg(&mut ballots);
        unsafe { launch.launch(shape(1, 128)) }.unwrap();
        assert_eq!(d.stream.clone_dtoh(&counter).unwrap(), [127 * 128 / 2]);
        let want: Vec<u32> =
            (0..4).map(|w| (0..32).fold(0, |m, l| m | u32::from((32 * w + l) % 3 == 0) << l)).collect();
        assert_eq!(d.stream.clone_dtoh(&ballots).unwrap(), want);
    }
}

#[test]
fn an_address_past_the_end_is_named() {
    let d = Device::new();
    let f = d.kernel(&FIRST[1], "steps");
    let mut out = d.stream.alloc_zeros::<u32>(100).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut out).arg(&101u32);
    unsafe { launch.launch(shape(1, 128)) }.unwrap();
    let error = d.stream.synchronize().unwrap_err();
    assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("kernel `steps`, block (0,0,0), thread (100,0,0), PTX line"), "{said}");
    assert!(said.contains("writes 4 bytes of global memory at"), "{said}");
    assert!(said.contains("0 bytes after the end of an allocation of 400 bytes"), "{said}");
    // sticky
    assert!(d.stream.alloc_zeros::<u32>(1).is_err());
    d.emulator.clear_error();
}

#[test]
fn a_graph_replays_launches_and_fills() {
    let d = Device::new();
    // SAFETY: one stream, so no waits are needed.
    unsafe { d.context.disable_event_tracking() };
    let stream = d.context.new_stream().unwrap();
    let f = d.kernel(&FIRST[1], "count");
    let mut counter = stream.alloc_zeros::<u32>(1).unwrap();
    let mut ballots = stream.alloc_zeros::<u32>(4).unwrap();
    stream.begin_capture(cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    for _ in 0..2 {
        let mut launch = stream.launch_builder(&f);
        launch.arg(&mut counter).arg(&mut ballots);
        unsafe { launch.launch(shape(1, 128)) }.unwrap();
    }
    let graph = stream.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), [0], "capture runs nothing");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&counter).unwrap(), [4 * 127 * 128 / 2]);
}
