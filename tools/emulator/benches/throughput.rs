//! PTX instructions per second, by kernel and strictness: `cargo bench -p warpcheck`.
//!
//! Instructions are counted per thread, as the counters do. Each line is the best of several runs.

#[path = "../tests/support/mod.rs"]
mod support;

use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use std::time::Instant;
use support::{Device, Text};
use warpcheck::Strictness;

static PTX: Text = Text("bench");

fn shape(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

fn main() {
    let d = Device::new();
    let f: Vec<CudaFunction> = ["rotate", "softmax", "add_one"].iter().map(|n| d.kernel(&PTX, n)).collect();
    let (tokens, heads) = (1024i32, 8i32);
    let elements = (tokens * heads) as usize * 128;
    let x = d.stream.alloc_zeros::<u16>(elements).unwrap();
    let mut y = d.stream.alloc_zeros::<u16>(elements).unwrap();
    let rates: Vec<u64> = (0..64).map(|i| 0x0123_4567_89ab_cdef_u64 / (i + 1)).collect();
    let rates = d.stream.clone_htod(&rates).unwrap();
    let (rows, n) = (512u32, 1000i32);
    let a = d.stream.clone_htod(&vec![0.5f32; rows as usize * n as usize]).unwrap();
    let mut b = d.stream.alloc_zeros::<f32>(rows as usize * n as usize).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{threads} host threads; millions of PTX instructions per second");
    println!("{:<10} {:>8} {:>8} {:>8}", "kernel", "all", "bounds", "none");
    for (k, name) in ["rotate", "softmax", "add_one"].iter().enumerate() {
        let mut line = format!("{name:<10}");
        for level in [Strictness::All, Strictness::Bounds, Strictness::None] {
            d.emulator.set_strictness(level);
            let mut best = 0f64;
            for _ in 0..5 {
                d.emulator.reset_counters();
                let start = Instant::now();
                let mut launch = d.stream.launch_builder(&f[k]);
                let count = elements as i32;
                let slope = -0.25f32;
                let config = match k {
                    0 => {
                        launch.arg(&x).arg(&mut y).arg(&rates).arg(&tokens).arg(&heads);
                        shape(tokens as u32 / 16, 128)
                    }
                    1 => {
                        launch.arg(&a).arg(&mut b).arg(&slope).arg(&n);
                        shape(rows, 256)
                    }
                    _ => {
                        launch.arg(&x).arg(&mut y).arg(&count);
                        shape(elements.div_ceil(256) as u32, 256)
                    }
                };
                // SAFETY: the buffers fit the kernels.
                unsafe { launch.launch(config) }.unwrap();
                d.stream.synchronize().unwrap();
                let seconds = start.elapsed().as_secs_f64();
                best = best.max(d.emulator.counters().instructions() as f64 / seconds / 1e6);
            }
            line += &format!(" {best:>8.0}");
        }
        println!("{line}");
    }
    host_cost(&d, &f[2]);
}

/// What a launch that runs nothing costs the host.
fn host_cost(d: &Device, f: &CudaFunction) {
    let mut arguments = [0u64; 3];
    let mut params: Vec<_> = arguments.iter_mut().map(|a| std::ptr::from_mut(a).cast::<std::ffi::c_void>()).collect();
    d.emulator.set_noop(true);
    for (name, stream) in [("default", d.stream.clone()), ("made", d.context.new_stream().unwrap())] {
        let (n, start) = (1_000_000, Instant::now());
        for _ in 0..n {
            // SAFETY: nothing runs.
            unsafe {
                cudarc::driver::sys::cuLaunchKernel(
                    f.cu_function(),
                    1,
                    1,
                    1,
                    32,
                    1,
                    1,
                    0,
                    stream.cu_stream(),
                    params.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
        }
        println!(
            "a launch that runs nothing, {name} stream: {:.0} ns",
            start.elapsed().as_nanos() as f64 / f64::from(n)
        );
    }
    d.emulator.set_noop(false);
}
