//! Races, to the byte: which accesses of two threads are one, and that the message names both sides with their lines.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::PushKernelArg;
use support::{Device, shape};

const HEAD: &str = ".version 7.8\n.target sm_90\n.address_size 64\n";

/// A kernel over the buffer `%p` with the thread's number in `%t` (and in `%l` with 64 bits) and the block's in `%b`.
fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p)\n{{\n.reg .pred %q<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<9>, %t, %b;\n\
         .reg .b64 %x<9>, %p, %l, %a;\n.shared .align 16 .b8 s[256];\nld.param.u64 %p, [p];\n\
         mov.u32 %t, %tid.x;\nmov.u32 %b, %ctaid.x;\ncvt.u64.u32 %l, %t;\nadd.u64 %a, %p, %l;\nmov.u16 %h1, 7;\n\
         mov.u32 %r1, 9;\n{body}\nret;\n}}\n"
    )
}

/// What the emulator says of a launch over 256 bytes that the host wrote.
fn run(body: &str, grid: u32, block: u32) -> Option<String> {
    let d = Device::new();
    d.emulator.set_quiet(true);
    let f = d.kernel(&kernel(body), "k");
    let mut x = d.stream.alloc_zeros::<u8>(256).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&mut x).launch(shape(grid, block, 0)) }.unwrap();
    d.stream.synchronize().err().map(|_| d.emulator.last_error().unwrap())
}

fn fine(body: &str, grid: u32, block: u32) {
    let said = run(body, grid, block);
    assert!(said.is_none(), "{body}\n{}", said.unwrap());
}

/// Runs a body that races, and looks for both sides in what is said.
fn races(body: &str, grid: u32, block: u32, first: &str, second: &str) {
    let said = run(body, grid, block).unwrap_or_else(|| panic!("no race was seen:\n{body}"));
    for part in [first, second, "a race"] {
        assert!(said.contains(part), "{part:?} is missing:\n{said}");
    }
}

#[test]
fn both_sides_are_named() {
    let body = "@!%q1 bra GO;\nGO:\nsetp.eq.u32 %q2, %t, 0;\n@%q2 st.global.u32 [%p+8], %r1;\n\
                setp.eq.u32 %q3, %t, 40;\n@%q3 ld.global.u32 %r2, [%p+8];";
    let said = run(body, 1, 64).unwrap();
    let text = kernel(body);
    let line = |part: &str| text.lines().position(|l| l.contains(part)).unwrap() + 1;
    let want = format!(
        "kernel `k`, block (0,0,0), thread (40,0,0), PTX line {} `@%q3 ld.global.u32 %r2, [%p+8];`: reads 4 bytes of \
         global memory at ",
        line("@%q3 ld")
    );
    assert!(said.starts_with(&want), "{said}");
    let want = format!(
        " (byte 8 of an allocation of 256 bytes), which thread (0,0,0) of the same block wrote at PTX line {} `@%q2 \
         st.global.u32 [%p+8], %r1;` without a barrier or atomic between: a race",
        line("@%q2 st")
    );
    assert!(said.ends_with(&want), "{said}");
}

#[test]
fn the_line_is_one_of_few_where_a_kernel_has_many() {
    // more operations than a stamp can tell apart: those 256 apart, and only those that write
    let filler = "add.u32 %r3, %r3, 1;\n".repeat(255);
    let body = format!(
        "setp.eq.u32 %q2, %t, 0;\nsetp.eq.u32 %q3, %t, 40;\n@%q2 st.global.u32 [%p+8], %r1;\n{filler}\
         @%q2 st.global.u32 [%p+64], %r1;\n{filler}add.u32 %r3, %r3, 2;\n@%q3 ld.global.u32 %r2, [%p+8];"
    );
    let said = run(&body, 1, 64).unwrap();
    let first = kernel(&body).lines().position(|l| l.contains("st.global.u32 [%p+8]")).unwrap() + 1;
    let want = format!(
        "wrote at PTX line {first} `@%q2 st.global.u32 [%p+8], %r1;` or PTX line {} `@%q2 st.global.u32 [%p+64], %r1;`",
        first + 256
    );
    assert!(said.contains(&want), "{said}");
}

#[test]
fn neighbouring_bytes_are_no_race() {
    // a byte of each thread, in one block and in two
    fine("st.global.u8 [%a], %h1;", 1, 256);
    fine("mad.wide.u32 %x1, %b, 128, %a;\nst.global.b8 [%x1], %h1;\nld.global.u8 %h2, [%x1];", 2, 128);
    fine("mov.u32 %r2, s;\nadd.u32 %r2, %r2, %t;\nst.shared.u8 [%r2], %h1;", 1, 256);
    // every second byte by one thread, the others by the next
    fine("shl.b64 %x1, %l, 1;\nadd.u64 %x1, %x1, %p;\nst.global.u8 [%x1], %h1;\nst.global.u8 [%x1+1], %h1;", 1, 96);
    // f8 pairs of single bytes
    fine(
        "mov.b32 %r2, 0f3F800000;\ncvt.rn.satfinite.e4m3x2.f32 %h3, %r2, %r2;\nst.global.b8 [%a], %h3;\n\
         ld.global.b8 %h4, [%a];",
        1,
        200,
    );
    // words beside bytes
    let beside = "setp.eq.u32 %q1, %t, 0;\nsetp.eq.u32 %q2, %t, 33;\nsetp.eq.u32 %q3, %t, 70;\n\
                  @%q1 st.global.u32 [%p+4], %r1;\n@%q2 st.global.u8 [%p+3], %h1;\n@%q3 st.global.u8 [%p+8], %h1;";
    fine(beside, 1, 96);
    // the same byte after a barrier
    fine("setp.eq.u32 %q1, %t, 0;\n@%q1 st.global.u8 [%p], %h1;\nbar.sync 0;\nld.global.u8 %h2, [%p];", 1, 96);
    fine("setp.eq.u32 %q1, %t, 0;\n@%q1 st.global.u8 [%p+1], %h1;\nbar.sync 0;\nld.global.u32 %r2, [%p];", 1, 96);
    // all read
    fine("ld.global.u8 %h2, [%p];\nld.global.u16 %h3, [%p];\nld.global.u32 %r2, [%p];", 2, 96);
}

#[test]
fn the_same_byte_is_a_race() {
    let (one, other) = ("setp.eq.u32 %q1, %t, 0;\n", "setp.eq.u32 %q2, %t, 33;\n");
    let pair = |a: &str, b: &str| format!("{one}{other}@%q1 {a}\n@%q2 {b}");
    for (a, b) in [
        ("st.global.u8 [%p+5], %h1;", "st.global.u8 [%p+5], %h1;"),
        ("st.global.u8 [%p+5], %h1;", "ld.global.u8 %h2, [%p+5];"),
        ("ld.global.u8 %h2, [%p+5];", "st.global.b8 [%p+5], %h1;"),
        ("st.global.u8 [%p+5], %h1;", "ld.global.u16 %h2, [%p+4];"),
        ("st.global.u8 [%p+7], %h1;", "st.global.u32 [%p+4], %r1;"),
        ("st.global.u32 [%p+4], %r1;", "ld.global.u8 %h2, [%p+7];"),
        ("ld.global.u32 %r2, [%p+4];", "st.global.u8 [%p+4], %h1;"),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%p];", "st.global.u8 [%p+15], %h1;"),
        ("st.global.u8 [%p+15], %h1;", "st.global.v2.u64 [%p], {%x1, %x2};"),
        ("st.shared.u8 [s+5], %h1;", "st.shared.u8 [s+5], %h1;"),
        ("st.shared.u8 [s+7], %h1;", "st.shared.u32 [s+4], %r1;"),
    ] {
        races(&pair(a, b), 1, 64, &format!("`@%q2 {b}`"), &format!("`@%q1 {a}`"));
    }
    // a third thread's access is not hidden by a neighbour's
    let three = format!(
        "{one}{other}setp.eq.u32 %q3, %t, 70;\n@%q1 st.global.u8 [%p], %h1;\n@%q2 st.global.u8 [%p+1], %h1;\n\
         @%q3 st.global.u8 [%p], %h1;"
    );
    races(&three, 1, 96, "thread (70,0,0)", "which thread (0,0,0) of the same block wrote");
    // two blocks
    races("st.global.u8 [%p], %h1;", 2, 1, "writes 1 bytes", "which thread (0,0,0) of block (");
}

#[test]
fn read_only_bytes_may_not_be_written() {
    let body = "setp.eq.u32 %q1, %t, 0;\nld.global.nc.u8 %h2, [%a];\nbar.sync 0;\n@%q1 st.global.u8 [%p+9], %h1;";
    let said = run(body, 1, 64).unwrap();
    let want = "but thread (9,0,0) of the same block read them as read-only (ld.global.nc) at PTX line ";
    assert!(said.contains(want) && said.ends_with("`ld.global.nc.u8 %h2, [%a];` in the same launch"), "{said}");
    // the neighbour may be
    fine("setp.gt.u32 %q1, %t, 31;\nld.global.nc.u8 %h2, [%p];\n@%q1 st.global.u8 [%a+1], %h1;", 1, 64);
}
