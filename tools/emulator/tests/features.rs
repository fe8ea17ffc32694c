//! Everything that is not arithmetic of one lane: exchanges in warps, barriers, divergence, calls, spaces, atomics,
//! matrices, asynchronous copies. The expected values are computed here.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaFunction, CudaModule, PushKernelArg};
use half::bf16;
use std::sync::Arc;
use support::{Device, Machine, Text, shape};

/// NVRTC 12.9 for sm_90.
static PTX: Text = Text("features");

/// The oldest and the newest NVRTC, for all targets that they know.
static VERSIONS: [Text; 7] = [
    Text("features.12.0.sm_75"),
    Text("features.12.0.sm_80"),
    Text("features.12.0.sm_90"),
    Text("features.13.5.sm_75"),
    Text("features.13.5.sm_80"),
    Text("features.13.5.sm_90"),
    Text("features.13.5.sm_100"),
];

/// A device that takes all of them.
fn device() -> Device {
    support::claim("12.1");
    Device::new()
}

/// Target and text, for every target of every text.
fn texts() -> Vec<(u32, String)> {
    let number = |target: &str| target.trim().trim_start_matches("sm_").parse::<u32>().unwrap();
    let mut list = vec![(90, PTX.to_string())];
    for text in &VERSIONS {
        let line = text.lines().find(|l| l.starts_with(".target ")).unwrap();
        list.push((number(&line[8..]), text.to_string()));
        let others = text.lines().next().unwrap().split_once("target:").unwrap().1;
        for other in others.split_whitespace().filter(|o| *o != "none") {
            list.push((number(other), text.replacen(line, &format!(".target {other}"), 1)));
        }
    }
    list
}

/// Runs `body` with a kernel as each NVRTC makes it for each target from `since` on.
fn each(kernel: &str, since: u32, body: impl Fn(&Machine, &Arc<CudaModule>, &CudaFunction)) {
    support::claim("12.1");
    let m = Machine::new();
    let (mut ran, mut all) = (0, 0);
    for (target, text) in texts() {
        all += usize::from(target >= since);
        if target > m.capability() {
            continue;
        }
        let module = m.module(&text);
        match module.load_function(kernel) {
            Ok(f) => {
                assert!(target >= since, "{kernel} for sm_{target}");
                body(&m, &module, &f);
                ran += 1;
            }
            Err(_) => assert!(target < since, "{kernel} for sm_{target}"),
        }
    }
    assert!(ran == all || m.emulator.is_none(), "{kernel}: {ran} of {all} texts ran");
}

/// Runs a kernel over one buffer of zeros, as `each` does.
fn filled(name: &str, since: u32, elements: usize, block: u32, check: impl Fn(Vec<u32>)) {
    each(name, since, |m, _, f| {
        let mut o = m.stream.alloc_zeros::<u32>(elements).unwrap();
        unsafe { m.stream.launch_builder(f).arg(&mut o).launch(shape(1, block, 0)) }.unwrap();
        check(m.read(&o));
    });
}

support::gpu_twins! {
    shuffles,
    votes_and_matches,
    reductions,
    elections,
    barriers_that_reduce_and_barriers_of_some_warps,
    diverged_lanes_meet_again,
    calls_through_pointers_and_recursion,
    spaces_and_parameters,
    atomics,
    matrices_and_asynchronous_copies,
    blocks_that_wait_for_each_other,
    a_mixture_of_arithmetic,
}

#[test]
fn shuffles() {
    filled("shuffles", 75, 256, 32, |o| {
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
    });
}

#[test]
fn votes_and_matches() {
    let ballot = |p: &dyn Fn(u32) -> bool| (0..32).fold(0u32, |m, t| m | u32::from(p(t)) << t);
    filled("votes", 75, 192, 32, |o| {
        for t in 0..32u32 {
            let at = |i: usize| o[32 * i + t as usize];
            assert_eq!(at(0), ballot(&|t| t % 5 == 1));
            assert_eq!(at(1), 2);
            assert_eq!(at(2), ballot(&|u| u % 3 == t % 3));
            assert_eq!(at(3), u32::MAX.wrapping_add(1));
            assert_eq!(at(4), 0);
            assert_eq!(at(5), (t ^ 4).wrapping_add(0xaaaa_aaaa & 0xff << (t & 24)));
        }
    });
}

#[test]
fn reductions() {
    filled("reductions", 80, 96, 32, |o| {
        for t in 0..32usize {
            assert_eq!(o[t], (31 * 16) ^ 3 ^ (-9i32 as u32));
            assert_eq!(o[32 + t], 64u32.wrapping_add(31).wrapping_add(u32::MAX));
            assert_eq!(o[64 + t], if t < 11 { 0x7ff } else { 21 });
        }
    });
}

#[test]
fn elections() {
    filled("elections", 90, 32, 32, |o| {
        for (t, v) in o.into_iter().enumerate() {
            assert_eq!(v, u32::from(t == 0));
        }
    });
}

#[test]
fn barriers_that_reduce_and_barriers_of_some_warps() {
    filled("barriers", 75, 288, 96, |o| {
        for t in 0..96 {
            assert_eq!(o[t], 32);
            assert_eq!(o[96 + t], 1);
            let want = if t < 32 { ((t + 32) * (t + 32)) as u32 } else { u32::from(t >= 64) };
            assert_eq!(o[192 + t], want);
        }
    });
}

#[test]
fn diverged_lanes_meet_again() {
    each("diverge", 75, |m, _, f| {
        let x: Vec<u32> = (0..64u32).map(|t| t * 7 % 29).collect();
        let dx = m.stream.clone_htod(&x).unwrap();
        let mut o = m.stream.alloc_zeros::<u32>(128).unwrap();
        unsafe { m.stream.launch_builder(f).arg(&mut o).arg(&dx).arg(&64i32).launch(shape(1, 64, 0)) }.unwrap();
        let o = m.read(&o);
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
        assert!(m.emulator.is_none_or(|e| e.counters().divergent_branches > 0));
    });
}

#[test]
fn calls_through_pointers_and_recursion() {
    each("calls", 75, |m, _, f| {
        // ten frames of recursion want more than the first kilobyte
        unsafe {
            use cudarc::driver::sys;
            sys::cuCtxSetLimit(sys::CUlimit::CU_LIMIT_STACK_SIZE, 8192).result().unwrap();
        }
        let mut o = m.stream.alloc_zeros::<u32>(40).unwrap();
        unsafe { m.stream.launch_builder(f).arg(&mut o).launch(shape(1, 40, 0)) }.unwrap();
        let fibonacci = [0u32, 1, 1, 2, 3, 5, 8, 13, 21, 34];
        let want: Vec<u32> = (0..40u32)
            .map(|t| if t & 1 == 1 { (t + 1) * (t + 1) } else { 2 * (t + 1) } + fibonacci[t as usize % 10])
            .collect();
        assert_eq!(m.read(&o), want);
    });
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
    each("spaces", 75, |m, module, f| {
        let many = Many { a: 1000, b: [1, 2, 3], c: 40.5, d: [10.0, 20.0, 30.0, 40.0, 50.0, 60.0] };
        let mut o = m.stream.alloc_zeros::<u32>(128).unwrap();
        let k = 5i32;
        unsafe { m.stream.launch_builder(f).arg(&mut o).arg(&many).arg(&k).launch(shape(1, 64, 256)) }.unwrap();
        let o = m.read(&o);
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
        let counter = module.get_global("counter", &m.stream).unwrap();
        let mut bytes = [0u8; 4];
        m.stream.memcpy_dtoh(&counter, &mut bytes).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 6);
    });
}

#[test]
fn atomics() {
    each("atomics", 75, |m, _, f| {
        let n = 96u32;
        let mut start = vec![0u32; 16 + n as usize];
        start[2] = 1000;
        start[4] = u32::MAX;
        let mut a = m.stream.clone_htod(&start).unwrap();
        let mut b = m.stream.clone_htod(&[1u64, 1000, i64::MIN as u64]).unwrap();
        let mut x = m.stream.clone_htod(&[0.25f32]).unwrap();
        let mut y = m.stream.clone_htod(&[0.5f64]).unwrap();
        let mut s = m.stream.clone_htod(&[0i32, i32::MIN]).unwrap();
        let mut launch = m.stream.launch_builder(f);
        launch.arg(&mut a).arg(&mut b).arg(&mut x).arg(&mut y).arg(&mut s);
        unsafe { launch.launch(shape(1, n, 0)) }.unwrap();
        let a = m.read(&a);
        assert_eq!(a[..3], [n * (n - 1) / 2, n - 1, 9]);
        assert_eq!((a[3], a[4]), (u32::MAX, 0));
        assert_eq!(a[5], (0..n).fold(0, |x, t| x ^ t));
        assert_eq!(a[6], n % 10);
        assert_eq!(a[7], (0..n).fold(0u32, |v, _| if v == 0 || v > 9 { 9 } else { v - 1 }));
        assert_eq!(a[8], n);
        assert_eq!(a[9..13], [24; 4]);
        assert_eq!(a[16..].iter().sum::<u32>(), n - 1, "one thread alone saw the zero");
        let sum: u64 = (0..u64::from(n)).sum();
        assert_eq!(m.read(&b), [1 + (sum << 32), 77, 0]);
        assert_eq!(m.read(&x), [0.25 + 48.0]);
        assert_eq!(m.read(&y), [0.5 + 24.0]);
        assert_eq!(m.read(&s), [-95, -5]);
    });
}

#[test]
fn matrices_and_asynchronous_copies() {
    each("matrix", 80, |m, _, f| {
        let a: Vec<bf16> = (0..256).map(|i| bf16::from_f32((i * 37 % 23) as f32 - 11.0)).collect();
        let b: Vec<bf16> = (0..128).map(|i| bf16::from_f32((i * 29 % 17) as f32 - 8.0)).collect();
        let (da, db) = (m.stream.clone_htod(&a).unwrap(), m.stream.clone_htod(&b).unwrap());
        let mut c = m.stream.alloc_zeros::<f32>(160).unwrap();
        unsafe { m.stream.launch_builder(f).arg(&da).arg(&db).arg(&mut c).launch(shape(1, 32, 0)) }.unwrap();
        let c = m.read(&c);
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
    });
}

#[test]
fn a_mixture_of_arithmetic() {
    each("mixture", 75, |m, _, f| {
        let n = 200usize;
        let x: Vec<u32> = (0..4 * n as u32).map(|i| i.wrapping_mul(2_654_435_761) ^ i << 7).collect();
        let a: Vec<f64> = (0..n).map(|i| (i as f64 - 77.3) * 1.37).collect();
        let (dx, da) = (m.stream.clone_htod(&x).unwrap(), m.stream.clone_htod(&a).unwrap());
        let mut y = m.stream.alloc_zeros::<u32>(4 * n).unwrap();
        let mut b = m.stream.alloc_zeros::<f64>(n).unwrap();
        let count = n as i32;
        let mut launch = m.stream.launch_builder(f);
        launch.arg(&dx).arg(&mut y).arg(&da).arg(&mut b).arg(&count);
        unsafe { launch.launch(shape(2, 128, 0)) }.unwrap();
        let (y, b) = (m.read(&y), m.read(&b));
        for i in 0..n {
            let v = &x[4 * i..4 * i + 4];
            let (q, s) = (v[0] / 7 + v[1] % (v[2] | 1), (v[0] as i32).wrapping_div(v[3] as i32 | 1) as u32);
            let wide = (u64::from(v[0]) * u64::from(v[1])).wrapping_add(u64::from(v[2]) << 32 | u64::from(v[3]));
            let high = ((u128::from(wide) * u128::from(wide)) >> 64) as u64;
            let single = v[0] as f32 / 1_048_576.0;
            let (r, e) = (single / 3.0, half::f16::from_f32(single).to_f32());
            let c = i32::from((v[1] >> 3) as i8);
            let first = if v[3] == 0 { 0 } else { v[3].trailing_zeros() + 1 };
            assert_eq!(y[4 * i], q ^ s);
            assert_eq!(y[4 * i + 1], high as u32 ^ v[1].reverse_bits());
            let bits = r.mul_add(e, single.sqrt()).to_bits();
            assert_eq!(y[4 * i + 2], bits.wrapping_add(v[2].leading_zeros()).wrapping_add(first));
            let funnel = (((u64::from(v[3]) << 32 | u64::from(v[2])) << (v[0] & 31)) >> 32) as u32;
            assert_eq!(y[4 * i + 3], (v[0] & 0xffff | v[1] << 16) ^ (c * 3) as u32 ^ funnel);
            let d = a[i];
            let whole = if d < 0.0 { d.ceil() } else { d.floor() };
            let want = d.mul_add(d, 1.0 / d) + d as i64 as f64 + whole + f64::from(d as f32);
            assert_eq!(b[i].to_bits(), want.to_bits(), "{d}");
        }
    });
}

#[test]
fn a_copy_that_is_not_awaited_has_not_landed() {
    let d = device();
    let f = d.kernel(&PTX, "copies_not_awaited");
    let a = d.stream.clone_htod(&[7u32; 32]).unwrap();
    let mut o = d.stream.alloc_zeros::<u32>(32).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&a).arg(&mut o).launch(shape(1, 32, 0)) }.unwrap();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("shared memory") && said.contains("which its own cp.async at PTX line"), "{said}");
}

#[test]
fn blocks_that_wait_for_each_other() {
    each("grid_barrier", 75, |m, _, f| {
        let (blocks, threads) = (20u32, 64u32);
        let n = (blocks * threads) as usize;
        let mut x = m.stream.alloc_zeros::<u32>(n).unwrap();
        let mut y = m.stream.alloc_zeros::<u32>(n).unwrap();
        let mut launch = m.stream.launch_builder(f);
        launch.arg(&mut x).arg(&mut y);
        unsafe { launch.launch_cooperative(shape(blocks, threads, 0)) }.unwrap();
        let got = m.read(&y);
        assert!(got.iter().enumerate().all(|(i, v)| *v as usize == (n - 1 - i) * 3));
    });
}

#[test]
fn more_blocks_than_can_wait_for_each_other() {
    let d = device();
    let f = d.kernel(&PTX, "grid_barrier");
    let mut x = d.stream.alloc_zeros::<u32>(64).unwrap();
    let mut y = d.stream.alloc_zeros::<u32>(64).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut x).arg(&mut y);
    let code = unsafe { launch.launch_cooperative(shape(132 * 32 + 1, 64, 0)) }.unwrap_err();
    assert_eq!(code.0, CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
}

/// Blocks that wait for the last one, and sleep meanwhile, read the counter a few times each and not thousands.
#[test]
fn a_warp_that_sleeps_gives_up_its_turn() {
    let text = ".version 7.0
.target sm_80
.address_size 64
.visible .entry meet(.param .u64 p)
{
.reg .b32 %r<9>;
.reg .b64 %a<3>;
.reg .pred %p;
ld.param.u64 %a1, [p];
cvta.to.global.u64 %a2, %a1;
mov.u32 %r1, %nctaid.x;
atom.global.add.u32 %r2, [%a2], 1;
WAIT:
ld.acquire.gpu.global.u32 %r3, [%a2];
setp.ge.u32 %p, %r3, %r1;
@%p bra DONE;
nanosleep.u32 32;
bra WAIT;
DONE:
ret;
}
";
    let d = device();
    let f = d.kernel(text, "meet");
    let mut counter = d.stream.alloc_zeros::<u32>(1).unwrap();
    d.emulator.reset_counters();
    let blocks = 64;
    unsafe { d.stream.launch_builder(&f).arg(&mut counter).launch_cooperative(shape(blocks, 1, 0)) }.unwrap();
    assert_eq!(d.stream.clone_dtoh(&counter).unwrap(), [blocks]);
    // 8 for each block and 5 for each sleep: all but the last block sleep once, and find the counter full then.
    assert_eq!(d.emulator.counters().warp_instructions, u64::from(8 * blocks + 5 * (blocks - 1)));
}

#[test]
fn clocks_advance() {
    let d = device();
    let f = d.kernel(&PTX, "clocks");
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
    let d = device();
    let f = d.kernel(&PTX, "bank_conflicts");
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
    let d = device();
    let f = d.kernel(&PTX, "dependents");
    let mut o = d.stream.alloc_zeros::<u32>(32).unwrap();
    {
        let (address, _guard) = o.device_ptr_mut(&d.stream);
        let mut attribute = support::overlap();
        for _ in 0..2 {
            unsafe { support::launch_with(&f, address, std::ptr::null_mut(), &mut [attribute]) }.result().unwrap();
        }
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim.x = 2;
        attribute.value.clusterDim.y = 1;
        attribute.value.clusterDim.z = 1;
        let code = unsafe { support::launch_with(&f, address, std::ptr::null_mut(), &mut [attribute]) };
        assert_eq!(code, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    assert_eq!(d.stream.clone_dtoh(&o).unwrap(), [2; 32]);
}

#[test]
fn tensors_beyond_two_to_the_31_elements() {
    let d = device();
    let f = d.kernel(&PTX, "far");
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
    let d = device();
    let f = d.kernel(&PTX, "hello");
    unsafe { d.stream.launch_builder(&f).arg(&255i32).launch(shape(1, 1, 0)) }.unwrap();
    d.stream.synchronize().unwrap();
}

#[test]
fn twins_compare_bits() {
    // the emulator in the place of a device: another process, another copy of the driver, the same bits
    let folder = std::env::temp_dir().join(format!("emulator-device-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let device = folder.join("libcuda.so.1");
    std::fs::copy(support::library(), &device).unwrap();
    support::compare_with_device("atomics", device.to_str().unwrap());
    // a test that fails on the device is a failure, with its own words
    let broken = std::panic::catch_unwind(|| support::compare_with_device("atomics", "/no/such/driver"));
    let said = broken.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("atomics on the device") && said.contains("/no/such/driver"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
    let (a, b) = (vec![vec![1u8, 2, 3], vec![4; 16]], vec![vec![1u8, 2, 3], vec![4; 16]]);
    assert_eq!(support::difference(&a, &b), None);
    let mut c = b.clone();
    c[1][9] = 5;
    let said = support::difference(&a, &c).unwrap();
    assert_eq!(
        said,
        "byte 9 of result 1: 0404040404040404 on the emulator, 0405040404040404 on the device (8 bytes from 8)"
    );
    assert_eq!(support::difference(&a, &c[..1]).unwrap(), "2 results on the emulator, 1 on the device");
    c[0].pop();
    assert_eq!(support::difference(&a, &c).unwrap(), "result 0 has 3 bytes on the emulator, 2 on the device");
}
