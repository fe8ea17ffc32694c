//! Counters of memory on kernels whose traffic is known by hand.

mod support;

use cudarc::driver::{CudaSlice, PushKernelArg};
use support::{Device, shape};
use warpcheck::{Counters, Strictness};

/// A thread's element of this width, as PTX loads and stores it: instruction suffix and registers.
fn element(bytes: u32) -> (&'static str, &'static str) {
    match bytes {
        1 => ("u8", "h1"),
        2 => ("u16", "h1"),
        4 => ("u32", "w1"),
        8 => ("u64", "d1"),
        16 => ("v2.u64", "{d1, d2}"),
        _ => ("v4.u64", "{d1, d2, d3, d4}"),
    }
}

/// Each thread loads an element from `from + stride * thread` and stores it to `to + bytes * thread`. Through shared
/// memory: it stores and loads it there at `stride * thread`, too.
fn copy(bytes: u32, shared: bool) -> String {
    let (suffix, register) = element(bytes);
    let detour = format!(
        "st.shared.{suffix} [s], {register};\n\
         bar.sync 0;\n\
         ld.shared.{suffix} {register}, [s];\n"
    );
    let (detour, step) = if shared { (detour.as_str(), bytes) } else { ("", 0) };
    // through shared memory the global side is dense, so that it says nothing
    let load_step = if shared { format!("mov.u32 p, {step};") } else { "mov.u32 p, stride;".to_string() };
    format!(
        ".version 8.8\n.target sm_100\n.address_size 64\n\
         .extern .shared .align 32 .b8 room[];\n\
         .visible .entry copy(.param .u64 a, .param .u64 b, .param .u32 c) {{\n\
         .reg .b16 h<2>; .reg .b32 w<2>, t, s, p, stride; .reg .b64 d<5>, from, to, x;\n\
         ld.param.u64 from, [a];\n ld.param.u64 to, [b];\n ld.param.u32 stride, [c];\n\
         mov.u32 t, %tid.x;\n\
         {load_step}\n\
         mad.wide.u32 from, t, p, from;\n\
         mad.wide.u32 to, t, {bytes}, to;\n\
         mov.u32 s, room;\n\
         mad.lo.u32 s, t, stride, s;\n\
         ld.global.{suffix} {register}, [from];\n\
         {detour}\
         st.global.{suffix} [to], {register};\n\
         ret;\n}}\n"
    )
}

struct Run {
    device: Device,
    memory: CudaSlice<u8>,
}

impl Run {
    fn new() -> Self {
        support::claim("10.0");
        let device = Device::new();
        let memory = device.stream.alloc_zeros(1 << 16).unwrap();
        Self { device, memory }
    }

    /// What so many threads do that load elements of `bytes` from `offset + stride * thread`.
    fn copy(&self, bytes: u32, shared: bool, threads: u32, offset: u64, stride: u32) -> Counters {
        let f = self.device.kernel(&copy(bytes, shared), "copy");
        let mut out = self.device.stream.alloc_zeros::<u8>(32 * 1024).unwrap();
        let from = self.memory.slice(offset as usize..);
        self.device.emulator.reset_counters();
        let mut launch = self.device.stream.launch_builder(&f);
        // SAFETY: every element lies in its buffer.
        unsafe { launch.arg(&from).arg(&mut out).arg(&stride).launch(shape(1, threads, 40 << 10)) }.unwrap();
        self.device.stream.synchronize().unwrap_or_else(|e| panic!("{e:?}: {:?}", self.device.emulator.last_error()));
        self.device.emulator.counters()
    }
}

#[test]
fn dense_accesses_touch_each_sector_once_and_a_line_of_128_bytes_a_pass() {
    let run = Run::new();
    for bytes in [1, 2, 4, 8, 16, 32] {
        let c = run.copy(bytes, false, 32, 0, bytes);
        let all = u64::from(bytes) * 32;
        assert_eq!((c.bytes_read, c.bytes_written), (all, all), "{bytes}");
        assert_eq!((c.sectors_read, c.sectors_written), (all / 32, all / 32), "{bytes}");
        assert_eq!(c.global_wavefronts, 2 * all.div_ceil(128), "{bytes}");
        assert_eq!(c.l1_wavefronts(), c.global_wavefronts, "{bytes}");
    }
}

#[test]
fn reads_and_writes_are_apart_and_strides_cost_sectors_and_lines() {
    let run = Run::new();
    // width, offset, stride: sectors and passes of the loads
    for (bytes, offset, stride, sectors, passes) in [
        (4, 32, 4, 4, 2),     // not aligned to a line
        (4, 0, 8, 8, 2),      // every other word
        (4, 0, 128, 32, 32),  // a column of a matrix whose rows are lines
        (4, 0, 0, 1, 1),      // one word for all
        (8, 0, 16, 16, 4),    // halves of the warp: two lines each
        (8, 64, 8, 8, 4),     // halves of the warp that begin inside a line
        (16, 0, 32, 32, 8),   // quarters of the warp: two lines each
        (16, 64, 16, 16, 8),  // quarters that begin inside a line
        (32, 0, 64, 32, 16),  // eighths: two lines each
        (2, 0, 1024, 32, 32), // far apart
    ] {
        let c = run.copy(bytes, false, 32, offset, stride);
        let written = u64::from(bytes) * 32;
        assert_eq!(c.sectors_read, sectors, "{bytes} bytes, offset {offset}, stride {stride}");
        assert_eq!(c.sectors_written, written / 32, "{bytes} bytes, stride {stride}");
        let own = written.div_ceil(128);
        assert_eq!(c.global_wavefronts - own, passes, "{bytes} bytes, offset {offset}, stride {stride}");
    }
    // a part of a warp touches what its threads touch: 5 x 16 bytes, in a whole quarter
    let c = run.copy(16, false, 5, 0, 16);
    assert_eq!((c.sectors_read, c.sectors_written, c.global_wavefronts), (3, 3, 2));
    // and 9 threads begin a second quarter
    let c = run.copy(16, false, 9, 0, 16);
    assert_eq!((c.sectors_read, c.sectors_written, c.global_wavefronts), (5, 5, 4));
}

#[test]
fn shared_memory_takes_a_pass_for_32_banks_and_one_more_for_each_word_that_meets_another() {
    let run = Run::new();
    // all threads store to one word in one row below, which is a race
    run.device.emulator.set_strictness(Strictness::Bounds);
    // width, stride: passes and conflicts of one access
    for (bytes, stride, passes, conflicts) in [
        (4, 4, 1, 0),      // a word a bank
        (4, 0, 1, 0),      // one word for all: broadcast
        (4, 8, 2, 1),      // two words a bank
        (4, 128, 32, 31),  // all in one bank
        (4, 132, 1, 0),    // padded: no two in one bank
        (1, 1, 1, 0),      // four threads a word
        (2, 128, 32, 31),  // narrow and in one bank
        (8, 8, 2, 0),      // halves of the warp
        (8, 16, 4, 2),     // halves of the warp, each with two words a bank
        (16, 16, 4, 0),    // quarters of the warp
        (16, 32, 8, 4),    // quarters, each with two words a bank
        (16, 128, 32, 28), // quarters, each in four banks
    ] {
        let c = run.copy(bytes, true, 32, 0, stride);
        let what = format!("{bytes} bytes, stride {stride}");
        let lanes = u64::from(bytes) * 32;
        assert_eq!((c.shared_bytes_read, c.shared_bytes_written), (lanes, lanes), "{what}");
        // a store and a load
        assert_eq!((c.shared_wavefronts, c.bank_conflicts), (2 * passes, 2 * conflicts), "{what}");
        assert_eq!(c.l1_wavefronts(), c.global_wavefronts + c.shared_wavefronts, "{what}");
    }
}

#[test]
fn distinct_bytes_are_counted_once_a_launch_if_asked_for() {
    let run = Run::new();
    let unasked = run.copy(4, false, 64, 0, 4);
    assert_eq!((unasked.unique_bytes_read, unasked.unique_bytes_written), (0, 0));
    run.device.emulator.set_unique(true);
    // width, threads, stride: distinct bytes read
    for (bytes, threads, stride, read) in [
        (4, 64, 4, 256),
        (4, 64, 0, 4),
        (4, 1024, 8, 4096),
        (8, 32, 0, 8),
        (16, 100, 16, 1600),
        (2, 33, 2, 66),
        (1, 7, 1, 7),
        (1, 7, 0, 1),
        (32, 32, 32, 1024),
    ] {
        let c = run.copy(bytes, false, threads, 32, stride);
        assert_eq!(c.unique_bytes_read, read, "{bytes} bytes, {threads} threads, stride {stride}");
        assert_eq!(c.unique_bytes_written, u64::from(bytes * threads), "{bytes} bytes, {threads} threads");
        assert_eq!(c.bytes_read, u64::from(bytes * threads));
    }
    run.device.emulator.set_unique(false);
    assert_eq!(run.copy(4, false, 64, 0, 4).unique_bytes_read, 0);
}

/// Each thread of each block reads what the thread of every other block reads, and all add to one word.
const SHARED_BY_BLOCKS: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry all(.param .u64 a, .param .u64 b) {
    .reg .b32 t, v, old;
    .reg .b64 from, sum;
    ld.param.u64 from, [a];
    ld.param.u64 sum, [b];
    mov.u32 t, %tid.x;
    mad.wide.u32 from, t, 4, from;
    ld.global.u32 v, [from];
    ld.global.u32 old, [from];
    red.global.add.u32 [sum], v;
    ret;
}
";

#[test]
fn distinct_bytes_are_those_of_all_blocks_and_atomics_read_and_write() {
    let run = Run::new();
    let d = &run.device;
    d.emulator.set_unique(true);
    d.emulator.reset_counters();
    let f = d.kernel(SHARED_BY_BLOCKS, "all");
    let line = |text: &str| SHARED_BY_BLOCKS.lines().position(|line| line.contains(text)).unwrap() as u32 + 1;
    let mut sum = d.stream.alloc_zeros::<u32>(1).unwrap();
    for launches in 1..=2u64 {
        // enough blocks for helpers, too
        // SAFETY: 256 words are read, one is written.
        unsafe { d.stream.launch_builder(&f).arg(&run.memory).arg(&mut sum).launch(shape(500, 256, 0)) }.unwrap();
        let c = d.emulator.last_launch().unwrap().counters;
        assert_eq!((c.unique_bytes_read, c.unique_bytes_written), (256 * 4 + 4, 4));
        assert_eq!(c.bytes_read, 500 * 256 * 3 * 4);
        let warps = 500 * 256 / 32;
        let wanted = ["ld.global.u32 v", "ld.global.u32 old", "red.global"].map(|text| (line(text), warps));
        assert_eq!(d.emulator.loads(launches as usize - 1), wanted);
        // a sum over launches counts each anew
        assert_eq!(d.emulator.counters().unique_bytes_written, 4 * launches);
    }
    d.emulator.set_unique(false);
}
