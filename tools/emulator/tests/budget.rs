//! Settings from the environment: a small budget ends an endless kernel, the device is what it is told to be, and a folder
//! gives other texts for a program's kernels.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::{CUdevice_attribute, CUresult};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use support::Text;

static PTX: Text = Text("features");

/// A kernel that stores a number.
fn store(name: &str, number: u32) -> String {
    format!(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry {name}(.param .u64 y)\n{{\n.reg .b64 %y;\n\
         ld.param.u64 %y, [y];\ncvta.to.global.u64 %y, %y;\nst.global.u32 [%y], {number};\nret;\n}}\n"
    )
}

#[test]
fn settings() {
    let images = std::env::temp_dir().join(format!("emulator-images-{}", std::process::id()));
    std::fs::create_dir_all(&images).unwrap();
    std::fs::write(images.join("replaced.ptx"), store("replaced", 2)).unwrap();
    // SAFETY: the only test of this program, before any thread is started.
    unsafe {
        std::env::set_var("EMULATOR_BUDGET", "1_000_000");
        std::env::set_var("EMULATOR_CC", "12.0");
        std::env::set_var("EMULATOR_SMS", "170");
        std::env::set_var("EMULATOR_DEVICES", "3");
        std::env::set_var("EMULATOR_MEMORY", "1000000000");
        std::env::set_var("EMULATOR_IMAGES", &images);
    }
    let d = support::Device::new();
    assert_eq!(d.context.compute_capability().unwrap(), (12, 0));
    let sms = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    assert_eq!(d.context.attribute(sms).unwrap(), 170);
    assert_eq!(cudarc::driver::CudaContext::device_count().unwrap(), 3);
    assert_eq!(d.context.total_mem().unwrap(), 1_000_000_000);
    assert_eq!(unsafe { d.stream.alloc::<u8>(1_000_000_001) }.unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let one = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    let mut y = d.stream.alloc_zeros::<u32>(1).unwrap();
    for (name, stored) in [("replaced", 2), ("kept", 1)] {
        let f = d.kernel(&store(name, 1), name);
        unsafe { d.stream.launch_builder(&f).arg(&mut y).launch(one) }.unwrap();
        assert_eq!(d.stream.clone_dtoh(&y).unwrap(), [stored], "{name}");
    }
    std::fs::remove_dir_all(&images).unwrap();
    // It ends if it reads anything but 0.
    d.stream.memset_zeros(&mut y).unwrap();
    let f = d.kernel(&PTX, "endless");
    unsafe { d.stream.launch_builder(&f).arg(&mut y).launch(one) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    let said = d.emulator.last_error().unwrap();
    assert!(
        said.contains("has run 1000000 instructions and does not end (EMULATOR_BUDGET raises the limit)"),
        "{said}"
    );
}
