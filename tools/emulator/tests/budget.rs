//! Settings from the environment: a small budget ends an endless kernel, and the device is what it is told to be.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use support::Text;

static PTX: Text = Text("features");

#[test]
fn settings() {
    // SAFETY: the only test of this program, before any thread is started.
    unsafe {
        std::env::set_var("EMULATOR_BUDGET", "1_000_000");
        std::env::set_var("EMULATOR_CC", "12.0");
        std::env::set_var("EMULATOR_SMS", "170");
        std::env::set_var("EMULATOR_DEVICES", "3");
        std::env::set_var("EMULATOR_MEMORY", "1000000000");
    }
    let d = support::Device::new();
    assert_eq!(d.context.compute_capability().unwrap(), (12, 0));
    let sms = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    assert_eq!(d.context.attribute(sms).unwrap(), 170);
    assert_eq!(cudarc::driver::CudaContext::device_count().unwrap(), 3);
    assert_eq!(d.context.total_mem().unwrap(), 1_000_000_000);
    assert_eq!(unsafe { d.stream.alloc::<u8>(1_000_000_001) }.unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let one = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    let f = d.kernel(&PTX, "endless");
    let mut y = d.stream.alloc_zeros::<u32>(1).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut y).launch(one) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    let said = d.emulator.last_error().unwrap();
    assert!(
        said.contains("has run 1000000 instructions and does not end (EMULATOR_BUDGET raises the limit)"),
        "{said}"
    );
}
