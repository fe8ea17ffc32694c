//! A kernel that lacks a barrier: `race.cu` beside this file, as NVRTC compiles it.
//!
//! `cargo run -p warpcheck -- run -- target/debug/examples/race`

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

/// Reverses 256 numbers on the device.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(include_str!("race.ptx")))?;
    let reverse = module.load_function("reverse")?;
    let mut values = stream.clone_htod(&(0..256).collect::<Vec<i32>>())?;
    let one_block = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel reads and writes 256 numbers.
    unsafe { stream.launch_builder(&reverse).arg(&mut values).launch(one_block) }?;
    println!("{:?}", stream.clone_dtoh(&values)?);
    Ok(())
}
