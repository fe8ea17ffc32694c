//! Everything that is not arithmetic of one lane: exchanges in warps, barriers, divergence, calls, spaces, atomics,
//! matrices, asynchronous copies. The expected values are computed here.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::bf16;
use support::Device;

const PTX: &str = include_str!("ptx/features.ptx");

fn shape(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

/// Runs a kernel over one buffer of zeros.
fn filled(name: &str, elements: usize, block: u32) -> Vec<u32> {
    let d = Device::new();
    let f = d.kernel(PTX, name);
    let mut o = d.stream.alloc_zeros::<u32>(elements).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut o).launch(shape(1, block, 0)) }.unwrap();
    d.stream.clone_dtoh(&o).unwrap_or_else(|e| panic!("{e:?}: {}", d.emulator.last_error().unwrap()))
}

#[test]
fn shuffles() {
    let o = filled("shuffles", 256, 32);
    for t in 0..32u32 {
        let at = |i: usize| o[32 * i + t as usize];
        assert_eq!(at(0), 105);
        assert_eq!(at(1), 100 + (t & 24) + ((t + 3) & 7));
        assert_eq!(at(2), 100 + if t >= 3 { t - 3 } else { t });
        assert_eq!(at(3), 100 + if t % 4 >= 1 { t - 1 } else { t });
        assert_eq!(at(4), 100 + if t + 7 < 32 { t + 7 } else { t });
        assert_eq!(at(5), 100 + if t % 16 + 2 < 16 { t + 2 } else { t });
        assert_eq!(at(6), 100 + (t ^ 9));
        assert_eq!(at(7), 100 + (t ^ 1));
    }
}

#[test]
fn votes_matches_and_reductions() {
    let o = filled("votes", 320, 32);
    let ballot = |p: &dyn Fn(u32) -> bool| (0..32).fold(0u32, |m, t| m | u32::from(p(t)) << t);
    for t in 0..32u32 {
        let at = |i: usize| o[32 * i + t as usize];
        assert_eq!(at(0), ballot(&|t| t % 5 == 1));
        assert_eq!(at(1), 2);
        assert_eq!(at(2), ballot(&|u| u % 3 == t % 3));
        assert_eq!(at(3), u32::MAX.wrapping_add(1));
        assert_eq!(at(4), 0);
        assert_eq!(at(5), (31 * 16) ^ 3 ^ (-9i32 as u32));
        assert_eq!(at(6), 64u32.wrapping_add(31).wrapping_add(u32::MAX));
        assert_eq!(at(7), if t < 11 { 0x7ff } else { 21 });
        assert_eq!(at(8), u32::from(t == 0));
        assert_eq!(at(9), (t ^ 4).wrapping_add(0xaaaa_aaaa & 0xff << (t & 24)));
    }
}

#[test]
fn barriers_that_reduce_and_barriers_of_some_warps() {
    let o = filled("barriers", 288, 96);
    for t in 0..96 {
        assert_eq!(o[t], 32);
        assert_eq!(o[96 + t], 1);
        let want = if t < 32 { ((t + 32) * (t + 32)) as u32 } else { u32::from(t >= 64) };
        assert_eq!(o[192 + t], want);
    }
}

#[test]
fn diverged_lanes_meet_again() {
    let d = Device::new();
    let f = d.kernel(PTX, "diverge");
    let x: Vec<u32> = (0..64u32).map(|t| t * 7 % 29).collect();
    let dx = d.stream.clone_htod(&x).unwrap();
    let mut o = d.stream.alloc_zeros::<u32>(128).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut o).arg(&dx).arg(&64i32).launch(shape(1, 64, 0)) }.unwrap();
    let o = d.stream.clone_dtoh(&o).unwrap();
    for t in 0..64usize {
        let mut v = 0u32;
        match x[t] % 8 {
            0 => v = 3,
            1 => v = x[t] * 5,
            2 => v = x[(t + 1) % 64] + 2,
            3 => v = !x[t],
            4 => v = (0..x[t]).map(|i| i * i).sum(),
            5 => v = x[t] / 7,
            6 => v = x[t] << 3,
            _ => {
                for i in 1.. {
                    v = v * 3 + i;
                    if v > 1000 + t as u32 {
                        break;
                    }
                }
            }
        }
        assert_eq!(o[t], v, "thread {t}");
        assert_eq!(o[64 + t], 32, "thread {t}");
    }
    assert!(d.emulator.counters().divergent_branches > 0);
}

#[test]
fn calls_through_pointers_and_recursion() {
    let d = Device::new();
    // ten frames of recursion want more than the first kilobyte
    unsafe {
        use cudarc::driver::sys;
        sys::cuCtxSetLimit(sys::CUlimit::CU_LIMIT_STACK_SIZE, 8192).result().unwrap();
    }
    let f = d.kernel(PTX, "calls");
    let mut o = d.stream.alloc_zeros::<u32>(40).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut o).launch(shape(1, 40, 0)) }.unwrap();
    let fibonacci = [0u32, 1, 1, 2, 3, 5, 8, 13, 21, 34];
    let want: Vec<u32> = (0..40u32)
        .map(|t| if t & 1 == 1 { (t + 1) * (t + 1) } else { 2 * (t + 1) } + fibonacci[t as usize % 10])
        .collect();
    assert_eq!(d.stream.clone_dtoh(&o).unwrap(), want);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Many {
    a: u32,
    b: [u8; 3],
    c: f64,
    d: [f32; 6],
}
// SAFETY: plain numbers, laid out as the kernel's struct.
unsafe impl cudarc::driver::DeviceRepr for Many {}

#[test]
fn spaces_and_parameters() {
    let d = Device::new();
    let module = d.module(PTX);
    let f = module.load_function("spaces").unwrap();
    let m = Many { a: 1000, b: [1, 2, 3], c: 40.5, d: [10.0, 20.0, 30.0, 40.0, 50.0, 60.0] };
    let mut o = d.stream.alloc_zeros::<u32>(128).unwrap();
    let k = 5i32;
    unsafe { d.stream.launch_builder(&f).arg(&mut o).arg(&m).arg(&k).launch(shape(1, 64, 256)) }.unwrap();
    let o = d.stream.clone_dtoh(&o).unwrap_or_else(|e| panic!("{e:?}: {}", d.emulator.last_error().unwrap()));
    for t in 0..64u32 {
        let either = if t % 3 != 0 { t + if t & 1 == 1 { 1 } else { 2 } } else { 3 * t };
        let want = either
            + ((t + 5) & 15) * t
            + [11, 22, 33, 44][(t as usize + 5) & 3]
            + 1000
            + [1, 2, 3][t as usize % 3]
            + 40
            + [10, 20, 30, 40, 50, 60][t as usize % 6];
        assert_eq!(o[t as usize], want, "thread {t}");
        assert_eq!(o[64 + t as usize], 8 + 4 + 2 + u32::from(t % 3 != 0));
    }
    // a variable of the module, seen from the host
    let counter = module.get_global("counter", &d.stream).unwrap();
    let mut bytes = [0u8; 4];
    d.stream.memcpy_dtoh(&counter, &mut bytes).unwrap();
    assert_eq!(u32::from_ne_bytes(bytes), 6);
}

#[test]
fn atomics() {
    let d = Device::new();
    let f = d.kernel(PTX, "atomics");
    let n = 96u32;
    let mut start = vec![0u32; 16 + n as usize];
    start[2] = 1000;
    start[4] = u32::MAX;
    let mut a = d.stream.clone_htod(&start).unwrap();
    let mut b = d.stream.clone_htod(&[1u64, 1000, i64::MIN as u64]).unwrap();
    let mut x = d.stream.clone_htod(&[0.25f32]).unwrap();
    let mut y = d.stream.clone_htod(&[0.5f64]).unwrap();
    let mut s = d.stream.clone_htod(&[0i32, i32::MIN]).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut a).arg(&mut b).arg(&mut x).arg(&mut y).arg(&mut s);
    unsafe { launch.launch(shape(1, n, 0)) }.unwrap();
    let a = d.stream.clone_dtoh(&a).unwrap_or_else(|e| panic!("{e:?}: {}", d.emulator.last_error().unwrap()));
    assert_eq!(a[..3], [n * (n - 1) / 2, n - 1, 9]);
    assert_eq!((a[3], a[4]), (u32::MAX, 0));
    assert_eq!(a[5], (0..n).fold(0, |x, t| x ^ t));
    assert_eq!(a[6], n % 10);
    assert_eq!(a[7], (0..n).fold(0u32, |v, _| if v == 0 || v > 9 { 9 } else { v - 1 }));
    assert_eq!(a[8], n);
    assert_eq!(a[9..13], [24; 4]);
    assert_eq!(a[16..].iter().sum::<u32>(), n - 1, "one thread alone saw the zero");
    let sum: u64 = (0..u64::from(n)).sum();
    assert_eq!(d.stream.clone_dtoh(&b).unwrap(), [1 + (sum << 32), 77, 0]);
    assert_eq!(d.stream.clone_dtoh(&x).unwrap(), [0.25 + 48.0]);
    assert_eq!(d.stream.clone_dtoh(&y).unwrap(), [0.5 + 24.0]);
    assert_eq!(d.stream.clone_dtoh(&s).unwrap(), [-95, -5]);
}

#[test]
fn matrices_and_asynchronous_copies() {
    let d = Device::new();
    let f = d.kernel(PTX, "matrix");
    let a: Vec<bf16> = (0..256).map(|i| bf16::from_f32((i * 37 % 23) as f32 - 11.0)).collect();
    let b: Vec<bf16> = (0..128).map(|i| bf16::from_f32((i * 29 % 17) as f32 - 8.0)).collect();
    let (da, db) = (d.stream.clone_htod(&a).unwrap(), d.stream.clone_htod(&b).unwrap());
    let mut c = d.stream.alloc_zeros::<f32>(160).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&da).arg(&db).arg(&mut c).launch(shape(1, 32, 0)) }.unwrap();
    let c = d.stream.clone_dtoh(&c).unwrap_or_else(|e| panic!("{e:?}: {}", d.emulator.last_error().unwrap()));
    for row in 0..16 {
        for column in 0..8 {
            let product: f32 = (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32()).sum();
            let addend = [[1.0, 2.0], [3.0, 4.0]][row / 8][column % 2];
            assert_eq!(c[row * 8 + column], product + addend, "row {row} column {column}");
        }
    }
    for t in 0..32 {
        // the first matrix of A, row by row
        let (row, column) = (t / 8, t % 8);
        assert_eq!(c[128 + t], f32::from(a[row * 16 + column].to_bits()));
    }
}

#[test]
fn a_copy_that_is_not_awaited_has_not_landed() {
    let d = Device::new();
    let f = d.kernel(PTX, "copies_not_awaited");
    let a = d.stream.clone_htod(&[7u32; 32]).unwrap();
    let mut o = d.stream.alloc_zeros::<u32>(32).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&a).arg(&mut o).launch(shape(1, 32, 0)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("shared memory") && said.contains("was never written by this block"), "{said}");
}

#[test]
fn blocks_that_wait_for_each_other() {
    let d = Device::new();
    let module = d.module(PTX);
    let f = module.load_function("grid_barrier").unwrap();
    let (blocks, threads) = (20u32, 64u32);
    let n = (blocks * threads) as usize;
    let mut x = d.stream.alloc_zeros::<u32>(n).unwrap();
    let mut y = d.stream.alloc_zeros::<u32>(n).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut x).arg(&mut y);
    unsafe { launch.launch_cooperative(shape(blocks, threads, 0)) }.unwrap();
    let got = d.stream.clone_dtoh(&y).unwrap_or_else(|e| panic!("{e:?}: {}", d.emulator.last_error().unwrap()));
    assert!(got.iter().enumerate().all(|(i, v)| *v as usize == (n - 1 - i) * 3));
    // more blocks than the device holds at once
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut x).arg(&mut y);
    let code = unsafe { launch.launch_cooperative(shape(132 * 32 + 1, threads, 0)) }.unwrap_err();
    assert_eq!(code.0, CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
}

#[test]
fn clocks_advance() {
    let d = Device::new();
    let f = d.kernel(PTX, "clocks");
    let mut o = d.stream.alloc_zeros::<u64>(2).unwrap();
    let mut last = 0;
    for _ in 0..3 {
        unsafe { d.stream.launch_builder(&f).arg(&mut o).launch(shape(1, 1, 0)) }.unwrap();
        let o = d.stream.clone_dtoh(&o).unwrap();
        assert!(o[0] >= last && o[1] > 0 && o[1] < 1000, "{o:?}");
        last = o[0];
    }
}

#[test]
fn bank_conflicts_are_counted() {
    let d = Device::new();
    let f = d.kernel(PTX, "bank_conflicts");
    let mut o = d.stream.alloc_zeros::<u32>(32).unwrap();
    for (stride, extra) in [(1i32, 0), (2, 2), (3, 0), (8, 14), (32, 62)] {
        d.emulator.reset_counters();
        unsafe { d.stream.launch_builder(&f).arg(&mut o).arg(&stride).launch(shape(1, 32, 0)) }.unwrap();
        let c = d.emulator.counters();
        assert_eq!(c.bank_conflicts, extra, "stride {stride}");
        assert_eq!((c.shared_bytes_read, c.shared_bytes_written), (128, 128));
        assert_eq!((c.bytes_written, c.sectors_written), (128, 4));
    }
}

#[test]
fn dependent_launches_and_their_attributes() {
    use cudarc::driver::{DevicePtrMut, sys};
    let d = Device::new();
    let f = d.kernel(PTX, "dependents");
    let mut o = d.stream.alloc_zeros::<u32>(32).unwrap();
    {
        let (address, _guard) = o.device_ptr_mut(&d.stream);
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: 1,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: 32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: std::ptr::null_mut(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let mut params = [std::ptr::from_ref(&address) as *mut std::ffi::c_void];
        for _ in 0..2 {
            unsafe { sys::cuLaunchKernelEx(&config, f.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()) }
                .result()
                .unwrap();
        }
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim.x = 2;
        attribute.value.clusterDim.y = 1;
        attribute.value.clusterDim.z = 1;
        let config = sys::CUlaunchConfig { attrs: &mut attribute, ..config };
        let code =
            unsafe { sys::cuLaunchKernelEx(&config, f.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()) };
        assert_eq!(code, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    assert_eq!(d.stream.clone_dtoh(&o).unwrap(), [2; 32]);
}

#[test]
fn tensors_beyond_two_to_the_31_elements() {
    let d = Device::new();
    let f = d.kernel(PTX, "far");
    let n = (1usize << 31) + 4096;
    // SAFETY: written before it is read.
    let mut x = unsafe { d.stream.alloc::<f32>(n) }.unwrap();
    let at = (1u64 << 31) + 1000;
    unsafe { d.stream.launch_builder(&f).arg(&mut x).arg(&at).launch(shape(1, 64, 0)) }.unwrap();
    let part = x.slice(at as usize..at as usize + 64);
    let want: Vec<f32> = (0..64).map(|i| i as f32).collect();
    assert_eq!(d.stream.clone_dtoh(&part).unwrap(), want);
    let (free, total) = d.context.mem_get_info().unwrap();
    assert!(total == 80 << 30 && free < total - (8 << 30));
    let end = n as u64 - 63;
    unsafe { d.stream.launch_builder(&f).arg(&mut x).arg(&end).launch(shape(1, 64, 0)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(d.emulator.last_error().unwrap().contains("thread (63,0,0)"));
}

#[test]
fn printf_runs() {
    let d = Device::new();
    let f = d.kernel(PTX, "hello");
    unsafe { d.stream.launch_builder(&f).arg(&255i32).launch(shape(1, 1, 0)) }.unwrap();
    d.stream.synchronize().unwrap();
}
