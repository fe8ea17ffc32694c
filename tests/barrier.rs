//! The grid barrier: a block that never comes is an error of the context, not a device that hangs.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

#[path = "support/mod.rs"]
mod support;

const BARRIER: &str = include_str!("../kernels/common/barrier.cuh");
/// Two of `expected` blocks meet, or fewer, with a deadline in nanoseconds.
const KERNEL: &str = r#"
extern "C" __global__ void meeting(unsigned* counter, unsigned expected, unsigned long long deadline) {
    if (threadIdx.x == 0) meet(counter, expected, deadline);
}
"#;

/// The only test of its program: the context does not survive it.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_block_that_never_comes_traps_at_the_deadline() {
    let gpu = support::gpu();
    if !support::nvrtc() {
        println!("not run: libnvrtc.so.12 is neither in the folder POSENC_NVRTC nor in the loader's path");
        return;
    }
    let options = CompileOptions {
        arch: Some(if gpu.capability().0 >= 8 { "sm_80" } else { "sm_75" }),
        options: vec!["--std=c++17".into()],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(format!("{BARRIER}{KERNEL}"), options).expect("NVRTC takes the kernel");
    let stream = gpu.stream();
    let kernel = stream.context().load_module(ptx).expect("loads").load_function("meeting").expect("its entry");
    let mut counter = stream.alloc_zeros::<u32>(1).expect("memory");
    let two = LaunchConfig { grid_dim: (2, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    let mut meet = |expected: u32, deadline: u64| {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut counter).arg(&expected).arg(&deadline);
        // SAFETY: the kernel takes an address of a u32, a u32 and a u64, and both blocks are on the device at once.
        unsafe { launch.launch_cooperative(two) }.map(|_| ()).and_then(|()| stream.synchronize())
    };
    // Within any deadline that a loaded machine keeps; the last block leaves 0 behind.
    meet(2, 60_000_000_000).expect("two blocks meet");
    meet(2, 60_000_000_000).expect("and once more");
    let begun = std::time::Instant::now();
    let error = meet(3, 2_000_000).expect_err("one of three blocks is missing").to_string();
    assert!(begun.elapsed().as_secs() < 30, "it took {:?}", begun.elapsed());
    // A device says ILLEGAL_INSTRUCTION or LAUNCH_FAILED of a trap.
    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED") || error.contains("CUDA_ERROR_ILLEGAL"), "{error}");
    if let Some(emulator) = emulator::attach() {
        let said = emulator.last_error().unwrap_or_default();
        assert!(said.contains("the kernel stops itself with a trap"), "{said}");
    }
}
