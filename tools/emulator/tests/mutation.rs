//! Kernels with one mistake each: every one must be caught, with the sentence that helps. Beside them stand the same
//! kernels without it, which must pass.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use support::{Device, Text};

static PTX: Text = Text("mutants");

fn shape(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

/// Two buffers and up to two numbers for a kernel of this file.
struct Case {
    grid: u32,
    block: u32,
    /// Elements of the first and the second buffer; the first is written, the second is not.
    sizes: (usize, usize),
    numbers: &'static [i32],
}

/// Runs a kernel over `x` and a fresh `y`; gives `y`, or the code and the sentence of the fault.
fn run(name: &str, case: &Case) -> Result<Vec<i32>, (CUresult, String)> {
    let d = Device::new();
    let f = d.kernel(&PTX, name);
    let host: Vec<i32> = (0..case.sizes.0 as i32).map(|i| i * 7 + 1).collect();
    let x = d.stream.clone_htod(&host).unwrap();
    // SAFETY: the emulator sees whether somebody reads what is not written.
    let mut y: CudaSlice<i32> = unsafe { d.stream.alloc(case.sizes.1) }.unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&x).arg(&mut y);
    for n in case.numbers {
        launch.arg(n);
    }
    // SAFETY: faults are what this file is about.
    unsafe { launch.launch(shape(case.grid, case.block)) }.unwrap();
    let result = d.stream.clone_dtoh(&y);
    let said = d.emulator.last_error().unwrap_or_default();
    d.emulator.clear_error();
    result.map_err(|e| (e.0, said))
}

fn passes(name: &str, case: Case) -> Vec<i32> {
    run(name, &case).unwrap_or_else(|(code, said)| panic!("{name}: {code:?}: {said}"))
}

fn caught(name: &str, case: Case, code: CUresult, parts: &[&str]) {
    match run(name, &case) {
        Ok(_) => panic!("{name} was not caught"),
        Err((found, said)) => {
            assert_eq!(found, code, "{name}: {said}");
            for part in parts {
                assert!(said.contains(part), "{name}: `{part}` is not in: {said}");
            }
        }
    }
}

const BOUNDS: CUresult = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
const FAILED: CUresult = CUresult::CUDA_ERROR_LAUNCH_FAILED;

fn blocks_of_128() -> Case {
    Case { grid: 3, block: 128, sizes: (384, 384), numbers: &[] }
}

fn hundred() -> Case {
    Case { grid: 1, block: 128, sizes: (100, 100), numbers: &[100] }
}

#[test]
fn the_right_kernels_pass() {
    passes("reverse", blocks_of_128());
    passes("copy", hundred());
    passes("transpose", Case { grid: 1, block: 128, sizes: (91, 91), numbers: &[7, 13] });
    passes("warp_sum", Case { grid: 1, block: 32, sizes: (32, 1), numbers: &[20] });
    passes("warp_through_shared", Case { grid: 1, block: 32, sizes: (32, 32), numbers: &[] });
}

#[test]
fn a_missing_barrier() {
    caught(
        "reverse_without_barrier",
        blocks_of_128(),
        FAILED,
        &[
            "kernel `reverse_without_barrier`, block (",
            "shared memory at",
            "of the same block",
            "without a barrier or atomic between: a race",
        ],
    );
}

#[test]
fn an_index_past_the_end_of_shared_memory() {
    caught(
        "reverse_off_by_one",
        blocks_of_128(),
        BOUNDS,
        &["thread (0,0,0)", "reads 4 bytes of shared memory at 0x200, the block has 512 bytes"],
    );
}

#[test]
fn shared_memory_that_nobody_wrote() {
    caught(
        "reverse_half_written",
        blocks_of_128(),
        FAILED,
        &["shared memory at 0x1fc", "was never written by this block"],
    );
}

#[test]
fn an_index_past_the_end() {
    caught(
        "copy_off_by_one",
        hundred(),
        BOUNDS,
        &["thread (100,0,0)", "reads 4 bytes of global memory", "0 bytes after the end of an allocation of 400 bytes"],
    );
}

#[test]
fn an_index_before_the_start() {
    caught("copy_before_start", hundred(), BOUNDS, &["thread (0,0,0)", "4 bytes before an allocation of 400 bytes"]);
}

#[test]
fn an_output_that_is_not_written() {
    caught("copy_unwritten_tail", hundred(), FAILED, &["a copy to the host reads byte 396", "which nobody wrote"]);
}

#[test]
fn a_vector_that_is_not_aligned() {
    caught(
        "copy_vector_misaligned",
        hundred(),
        CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
        &["thread (0,0,0)", "ld.global.v4", "reads 16 bytes of global memory", "misaligned"],
    );
}

#[test]
fn two_threads_that_write_one_element() {
    caught(
        "copy_all_to_one",
        hundred(),
        FAILED,
        &[
            "thread (1,0,0)",
            "writes 4 bytes of global memory",
            "byte 0 of an allocation of 400 bytes",
            "which thread (0,0,0) of the same block wrote",
        ],
    );
}

#[test]
fn a_stride_that_is_swapped() {
    caught(
        "transpose_swapped_stride",
        Case { grid: 1, block: 128, sizes: (91, 91), numbers: &[7, 13] },
        BOUNDS,
        &["writes 4 bytes of global memory", "after the end of an allocation of 364 bytes"],
    );
}

#[test]
fn a_shuffle_in_a_branch() {
    let case = Case { grid: 1, block: 32, sizes: (32, 33), numbers: &[20] };
    caught("warp_sum_in_branch", case, FAILED, &["lane", "does not take part", "shfl.sync.bfly"]);
}

#[test]
fn a_member_mask_without_the_caller() {
    let case = Case { grid: 1, block: 32, sizes: (32, 1), numbers: &[20] };
    caught("warp_sum_wrong_mask", case, FAILED, &["lane 16 is not in its own member mask 0x0000ffff"]);
}

#[test]
fn a_shuffle_from_outside_the_mask() {
    let case = Case { grid: 1, block: 32, sizes: (32, 1), numbers: &[20] };
    caught("warp_sum_narrow_mask", case, FAILED, &["lane 0 reads lane 16, which does not take part"]);
}

#[test]
fn warps_that_forget_syncwarp() {
    let case = Case { grid: 1, block: 32, sizes: (32, 32), numbers: &[] };
    caught("warp_through_shared_without_sync", case, FAILED, &["shared memory at", "a race"]);
}

#[test]
fn freed_memory() {
    let d = Device::new();
    let f = d.kernel(&PTX, "freed");
    let x = d.stream.clone_htod(&[1i32; 32]).unwrap();
    let mut y = d.stream.alloc_zeros::<i32>(32).unwrap();
    let address = {
        use cudarc::driver::DevicePtr;
        x.device_ptr(&d.stream).0
    };
    drop(x);
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&address).arg(&mut y);
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, BOUNDS);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("0 bytes into an allocation of 128 bytes") && said.contains("that was freed"), "{said}");
    d.emulator.clear_error();
}

/// Runs a kernel over one buffer that holds zeros, and one number.
fn over_one(name: &str, elements: usize, config: LaunchConfig, number: Option<i32>) -> Option<(CUresult, String)> {
    let d = Device::new();
    let f = d.kernel(&PTX, name);
    let mut x = d.stream.alloc_zeros::<i32>(elements).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut x);
    if let Some(n) = &number {
        launch.arg(n);
    }
    unsafe { launch.launch(config) }.unwrap();
    let result = d.stream.synchronize();
    let said = d.emulator.last_error().unwrap_or_default();
    d.emulator.clear_error();
    result.err().map(|e| (e.0, said))
}

#[track_caller]
fn is_caught(found: Option<(CUresult, String)>, code: CUresult, parts: &[&str]) {
    let (have, said) = found.expect("a fault");
    assert_eq!(have, code, "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn barriers_that_not_all_reach() {
    let part = over_one("barrier_in_branch", 128, shape(1, 64), Some(40));
    is_caught(part, FAILED, &["barrier 0 is reached by 40 of 64 threads", "thread (40,0,0) is missing, it has ended"]);
    let part = over_one("barriers_that_differ", 128, shape(1, 32), Some(10));
    is_caught(
        part,
        FAILED,
        &["the barrier is reached by a part of the warp only", "lanes 0x000003ff at line", "lanes 0xfffffc00 at line"],
    );
    let part = over_one("barrier_in_branch", 128, shape(1, 96), Some(64));
    is_caught(part, FAILED, &["barrier 0 is reached by 64 of 96 threads", "thread (64,0,0) is missing, it has ended"]);
    let part = over_one("barrier_after_return", 128, shape(1, 96), Some(40));
    is_caught(part, FAILED, &["barrier 0 is reached by 40 of 96 threads", "has ended"]);
    let part = over_one("barriers_that_differ", 128, shape(1, 64), Some(32));
    is_caught(part, FAILED, &["barrier 1 is reached by 32 of 64 threads", "warp 1 waits at another barrier"]);
}

#[test]
fn a_grid_that_reads_what_it_writes() {
    let found = over_one("shift_in_place", 512, shape(4, 128), Some(512));
    is_caught(found, FAILED, &["global memory", "a race"]);
}

#[test]
fn memory_that_is_read_only_and_written() {
    let d = Device::new();
    let f = d.kernel(&PTX, "read_only_then_written");
    let x = d.stream.alloc_zeros::<i32>(64).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&x).arg(&x).arg(&64i32);
    unsafe { launch.launch(shape(1, 64)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, FAILED);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("read them as read-only (ld.global.nc) at PTX line "), "{said}");
    d.emulator.clear_error();
}

#[test]
fn the_last_block_needs_a_fence() {
    let go = |name: &str| {
        let d = Device::new();
        let f = d.kernel(&PTX, name);
        let x = d.stream.clone_htod(&(0..640).collect::<Vec<i32>>()).unwrap();
        let mut part = d.stream.alloc_zeros::<i32>(20).unwrap();
        let mut y = d.stream.alloc_zeros::<i32>(1).unwrap();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&x).arg(&mut part).arg(&mut y);
        unsafe { launch.launch(shape(20, 32)) }.unwrap();
        let out = d.stream.clone_dtoh(&y).map_err(|e| (e.0, d.emulator.last_error().unwrap_or_default()));
        d.emulator.clear_error();
        out
    };
    assert_eq!(go("last_block").unwrap(), [639 * 640 / 2]);
    let (code, said) = go("last_block_without_fence").unwrap_err();
    assert_eq!(code, FAILED);
    assert!(said.contains("of block (") && said.contains("a race"), "{said}");
}

#[test]
fn kernels_that_stop_badly() {
    is_caught(
        over_one("stack_overflow", 1, shape(1, 1), None),
        CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
        &["bytes of stack, a thread has", "cuCtxSetLimit raises it"],
    );
    is_caught(over_one("trap", 1, shape(1, 32), None), FAILED, &["thread (3,0,0)", "stops itself with a trap"]);
    let d = Device::new();
    let f = d.kernel(&PTX, "assertion");
    unsafe { d.stream.launch_builder(&f).arg(&5i32).launch(shape(1, 32)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ASSERT);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("thread (5,0,0)") && said.contains("`x != n` of mutants.cu:7 does not hold"), "{said}");
    let d = Device::new();
    let f = d.kernel(&PTX, "null_pointer");
    unsafe { d.stream.launch_builder(&f).arg(&0u64).launch(shape(1, 1)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, BOUNDS);
    assert!(d.emulator.last_error().unwrap().contains("a null pointer"));
}

#[test]
fn what_is_not_strict_is_not_checked() {
    let d = Device::new();
    d.emulator.set_strictness(warpcheck::Strictness::Bounds);
    let f = d.kernel(&PTX, "shift_in_place");
    let mut x = d.stream.alloc_zeros::<i32>(512).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut x).arg(&512i32).launch(shape(4, 128)) }.unwrap();
    d.stream.synchronize().unwrap();
    // what an unchecked launch wrote counts as written
    d.emulator.set_strictness(warpcheck::Strictness::All);
    d.stream.clone_dtoh(&x).unwrap();
}
