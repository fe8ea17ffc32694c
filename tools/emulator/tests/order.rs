//! Order that a device does not promise: copies that nobody waited for, fences in the wrong place or of too small a scope,
//! lanes that did not synchronise. Each mistake is a kernel of a few lines, and beside it stands the right one.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::PushKernelArg;
use support::{Device, shape};

/// A kernel over 4096 bytes at `%p` with the thread's number in `%t`, its block's in `%b`, and `%a` = `%p` + 4 `%t`.
/// `%q1` is true in thread 0, `%q2` in thread 1, `%q3` in thread 32; `%c` is the address of a counter.
fn kernel(body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %q<16>;\n\
         .reg .b32 %r<16>, %t, %b, %s, %o;\n.reg .b64 %x<9>, %p, %a, %c;\n.shared .align 16 .b8 s[1024];\n\
         ld.param.u64 %p, [p];\nmov.u32 %t, %tid.x;\nmov.u32 %b, %ctaid.x;\nmad.wide.u32 %a, %t, 4, %p;\n\
         add.u64 %c, %p, 2048;\nmov.u32 %s, s;\nmad.lo.u32 %s, %t, 16, %s;\nmov.u32 %o, s;\nmov.u32 %r1, 9;\n\
         setp.eq.u32 %q1, %t, 0;\nsetp.eq.u32 %q2, %t, 1;\nsetp.eq.u32 %q3, %t, 32;\nsetp.eq.u32 %q4, %b, 0;\n\
         setp.eq.u32 %q5, %b, 1;\n{body}\nret;\n}}\n"
    )
}

/// What the emulator says of a launch, in turns of all blocks if it is cooperative.
fn run(body: &str, grid: u32, block: u32) -> Option<String> {
    let d = Device::new();
    d.emulator.set_quiet(true);
    let f = d.kernel(&kernel(body), "k");
    let mut x = d.stream.alloc_zeros::<u8>(4096).unwrap();
    let mut launch = d.stream.launch_builder(&f);
    launch.arg(&mut x);
    unsafe { launch.launch_cooperative(shape(grid, block, 0)) }.unwrap();
    d.stream.synchronize().err().map(|_| d.emulator.last_error().unwrap())
}

fn fine(body: &str, grid: u32, block: u32) {
    let said = run(body, grid, block);
    assert!(said.is_none(), "{body}\n{}", said.unwrap());
}

fn caught(body: &str, grid: u32, block: u32, parts: &[&str]) {
    let said = run(body, grid, block).unwrap_or_else(|| panic!("nothing was seen:\n{body}"));
    for part in parts.iter().chain(&["a race"]) {
        assert!(said.contains(part), "{part:?} is missing:\n{said}");
    }
}

// ---- copies under way ------------------------------------------------------------------------------------------------

/// Each thread writes its 16 bytes of shared memory and begins a copy there.
const COPY: &str = "mad.wide.u32 %x1, %t, 16, %p;\nst.shared.v4.u32 [%s], {%r1, %r1, %r1, %r1};\n\
                    cp.async.cg.shared.global [%s], [%x1], 16;\ncp.async.commit_group;\n";
const READ: &str = "ld.shared.u32 %r2, [%s];\n";

#[test]
fn a_thread_reads_before_its_copy_has_landed() {
    caught(&format!("{COPY}{READ}"), 1, 32, &["which its own cp.async at PTX line", "is still writing"]);
    // a barrier is no wait
    caught(&format!("{COPY}bar.sync 0;\n{READ}"), 1, 64, &["its own cp.async"]);
    fine(&format!("{COPY}cp.async.wait_all;\n{READ}"), 1, 32);
    fine(&format!("{COPY}cp.async.wait_group 0;\n{READ}"), 1, 32);
}

#[test]
fn the_wrong_group_is_waited_for() {
    let second = "add.u64 %x2, %x1, 1024;\nadd.u32 %r3, %s, 512;\ncp.async.cg.shared.global [%r3], [%x2], 16;\n\
                  cp.async.commit_group;\n";
    fine(&format!("{COPY}{second}cp.async.wait_group 1;\n{READ}"), 1, 32);
    caught(&format!("{COPY}{second}cp.async.wait_group 1;\nld.shared.u32 %r2, [%r3];\n"), 1, 32, &["its own cp.async"]);
    fine(&format!("{COPY}{second}cp.async.wait_group 0;\nld.shared.u32 %r2, [%r3];\n"), 1, 32);
}

#[test]
fn another_thread_meets_a_copy_under_way() {
    let other = "xor.b32 %r4, %t, 1;\nmad.lo.u32 %r4, %r4, 16, %o;\n";
    caught(
        &format!("{COPY}bar.sync 0;\n{other}ld.shared.u32 %r2, [%r4];\ncp.async.wait_all;\n"),
        1,
        64,
        &["reads 4 bytes of shared memory", "which the cp.async of thread ("],
    );
    caught(&format!("{COPY}bar.sync 0;\n{other}st.shared.u32 [%r4], %r1;\ncp.async.wait_all;\n"), 1, 64, &["writes 4"]);
    caught(&format!("{COPY}st.shared.u32 [%s], %r1;\ncp.async.wait_all;\n"), 1, 64, &["its own cp.async"]);
    caught(&format!("{COPY}cp.async.cg.shared.global [%s], [%x1], 16;\n"), 1, 64, &["copies to 16 bytes", "its own"]);
    // waited for, but not by a barrier
    caught(&format!("{COPY}cp.async.wait_all;\n{other}ld.shared.u32 %r2, [%r4];\n"), 1, 64, &["without a barrier"]);
    fine(&format!("{COPY}cp.async.wait_all;\nbar.sync 0;\n{other}ld.shared.u32 %r2, [%r4];\n"), 1, 64);
}

#[test]
fn a_copy_begins_where_another_thread_still_reads() {
    let other = "xor.b32 %r4, %t, 32;\nmad.lo.u32 %r4, %r4, 16, %o;\n";
    let copy = "cp.async.cg.shared.global [%s], [%x1], 16;\nbar.sync 0;\ncp.async.wait_all;\n";
    let head = "mad.wide.u32 %x1, %t, 16, %p;\nst.shared.v4.u32 [%s], {%r1, %r1, %r1, %r1};\nbar.sync 0;\n";
    caught(&format!("{head}{other}ld.shared.u32 %r2, [%r4];\n{copy}"), 1, 64, &["shared memory"]);
    fine(&format!("{head}{other}ld.shared.u32 %r2, [%r4];\nbar.sync 0;\n{copy}"), 1, 64);
}

#[test]
fn the_source_of_a_copy_is_overwritten() {
    caught(
        &format!("{COPY}st.global.u32 [%x1+4], %r1;\ncp.async.wait_all;\n"),
        1,
        32,
        &["waits for the cp.async at PTX line", "whose source, 16 bytes of global memory", "thread (0,0,0)"],
    );
    let other = "xor.b32 %r4, %t, 32;\nmad.wide.u32 %x3, %r4, 16, %p;\nst.global.u32 [%x3], %r1;\n";
    caught(&format!("{COPY}bar.sync 0;\n{other}cp.async.wait_all;\n"), 1, 64, &["thread (32,0,0)"]);
    fine(&format!("{COPY}cp.async.wait_all;\nst.global.u32 [%x1+4], %r1;\n"), 1, 32);
    fine(&format!("{COPY}cp.async.wait_all;\nbar.sync 0;\n{other}"), 1, 64);
}

// ---- blocks that tell one another ------------------------------------------------------------------------------------

/// Each thread of a block writes its element, then `signal`; thread 0 of block 1 waits for the counter by `poll`, then
/// `behind`; the block reads what block 0 wrote.
fn message(signal: &str, poll: &str, behind: &str) -> String {
    format!(
        "@!%q4 bra READER;\nst.global.u32 [%a], %r1;\n{signal}\nbra END;\nREADER:\n@!%q1 bra JOIN;\nWAIT:\n{poll}\n\
         setp.eq.u32 %q6, %r5, 0;\n@%q6 bra WAIT;\n{behind}\nJOIN:\nbar.sync 0;\nld.global.u32 %r2, [%a];\nEND:"
    )
}

const FENCE: &str = "fence.acq_rel.gpu;\n";
const ADD: &str = "atom.global.add.u32 %r3, [%c], 1;\n";
const POLL: &str = "ld.acquire.gpu.global.u32 %r5, [%c];";
const RELAXED: &str = "ld.relaxed.gpu.global.u32 %r5, [%c];";

fn guarded(text: &str) -> String {
    text.lines().map(|l| format!("@%q1 {l}\n")).collect()
}

#[test]
fn a_message_between_blocks() {
    let signals = [
        // a fence of thread 0 after the block's barrier
        format!("bar.sync 0;\n{}", guarded(&format!("{FENCE}{ADD}"))),
        // each thread's fence, the barrier, the atomic
        format!("{FENCE}bar.sync 0;\n{}", guarded(ADD)),
        "bar.sync 0;\n@%q1 atom.release.gpu.global.add.u32 %r3, [%c], 1;\n".into(),
        "bar.sync 0;\n@%q1 st.release.gpu.global.u32 [%c], 1;\n".into(),
        "bar.sync 0;\n@%q1 red.release.sys.global.add.u32 [%c], 1;\n".into(),
        "bar.sync 0;\n@%q1 membar.gl;\n@%q1 st.volatile.global.u32 [%c], 1;\n".into(),
    ];
    let polls = [
        (POLL, ""),
        (RELAXED, FENCE),
        ("ld.volatile.global.u32 %r5, [%c];", "membar.gl;"),
        ("atom.acquire.gpu.global.or.b32 %r5, [%c], 0;", ""),
        ("atom.global.or.b32 %r5, [%c], 0;", FENCE),
    ];
    for signal in &signals {
        for (poll, behind) in polls {
            fine(&message(signal, poll, behind), 2, 64);
        }
    }
    // the fence of all readers behind the barrier
    let late =
        message(&signals[0], RELAXED, "").replace("bar.sync 0;\nld.global", "bar.sync 0;\nmembar.gl;\nld.global");
    fine(&late, 2, 64);
}

#[test]
fn the_writer_does_not_release() {
    let parts = ["block (1,0,0)", "of block (0,0,0)"];
    // nothing, a fence behind the signal alone, a fence of the block
    caught(&message(&format!("bar.sync 0;\n{}", guarded(ADD)), POLL, ""), 2, 64, &parts);
    caught(&message(&format!("bar.sync 0;\n{}", guarded(&format!("{ADD}{FENCE}"))), POLL, ""), 2, 64, &parts);
    let narrow = format!("bar.sync 0;\n{}", guarded(&format!("fence.acq_rel.cta;\n{ADD}")));
    caught(&message(&narrow, POLL, ""), 2, 64, &parts);
    // the fence of thread 0 alone, before the barrier
    caught(&message(&format!("{}bar.sync 0;\n{}", guarded(FENCE), guarded(ADD)), POLL, ""), 2, 64, &parts);
    // no barrier: other warps, other lanes
    caught(&message(&guarded(&format!("{FENCE}{ADD}")), POLL, ""), 2, 64, &parts);
    caught(&message(&guarded(&format!("{FENCE}{ADD}")), POLL, ""), 2, 32, &parts);
    fine(&message(&format!("bar.warp.sync -1;\n{}", guarded(&format!("{FENCE}{ADD}"))), POLL, ""), 2, 32);
}

#[test]
fn the_reader_does_not_acquire() {
    let signal = format!("bar.sync 0;\n{}", guarded(&format!("{FENCE}{ADD}")));
    let parts = ["block (1,0,0)", "of block (0,0,0)"];
    caught(&message(&signal, RELAXED, ""), 2, 64, &parts);
    caught(&message(&signal, "ld.volatile.global.u32 %r5, [%c];", ""), 2, 64, &parts);
    caught(&message(&signal, "atom.global.or.b32 %r5, [%c], 0;", ""), 2, 64, &parts);
    caught(&message(&signal, RELAXED, "fence.acq_rel.cta;"), 2, 64, &parts);
    // other lanes read without bar.warp.sync
    let alone = message(&signal, POLL, "").replace("JOIN:\nbar.sync 0;", "JOIN:");
    caught(&alone, 2, 32, &parts);
    fine(&alone.replace("JOIN:", "JOIN:\nbar.warp.sync -1;"), 2, 32);
}

#[test]
fn the_signal_is_of_the_block_alone() {
    let signal = "bar.sync 0;\n@%q1 fence.acq_rel.gpu;\n@%q1 atom.cta.global.add.u32 %r3, [%c], 1;\n";
    caught(&message(signal, POLL, ""), 2, 64, &["block ("]);
    let signal = format!("bar.sync 0;\n{}", guarded(&format!("{FENCE}{ADD}")));
    caught(&message(&signal, "ld.acquire.cta.global.u32 %r5, [%c];", ""), 2, 64, &["block ("]);
    // inside a block it serves
    let inside = |scope: &str| {
        format!(
            "@%q1 st.global.u32 [%p], %r1;\n@%q1 fence.acq_rel.{scope};\n@%q1 st.relaxed.{scope}.global.u32 [%c], 1;\n\
             @!%q3 bra END;\nWAIT:\nld.acquire.{scope}.global.u32 %r5, [%c];\nsetp.eq.u32 %q6, %r5, 0;\n@%q6 bra WAIT;\n\
             ld.global.u32 %r2, [%p];\nEND:"
        )
    };
    fine(&inside("cta"), 1, 64);
    fine(&inside("gpu"), 1, 64);
    caught(&inside("cta").replace("@%q1 fence.acq_rel.cta;\n", ""), 1, 64, &["thread (32,0,0)"]);
    // and through shared memory
    let shared = inside("cta")
        .replace(".global.u32 [%c]", ".shared.u32 [s]")
        .replace(".global.u32 %r5, [%c]", ".shared.u32 %r5, [s]");
    let zero = format!("@%q1 st.shared.u32 [s], 0;\nbar.sync 0;\n{shared}");
    fine(&zero, 1, 64);
    caught(&zero.replace("ld.acquire.cta", "ld.relaxed.cta"), 1, 64, &["thread (32,0,0)"]);
}

#[test]
fn another_counter_orders_nothing() {
    let signal = format!("bar.sync 0;\n{}", guarded(&format!("{FENCE}{ADD}")));
    // the poll is right, but relaxed; what is acquired is a place that the writer never touched
    let body = message(&signal, RELAXED, "ld.acquire.gpu.global.u32 %r6, [%c+64];");
    caught(&body, 2, 64, &["of block (0,0,0)"]);
}

#[test]
fn a_message_is_handed_on() {
    // block 0 tells block 1, which tells block 2
    let body = |middle: &str| {
        format!(
            "setp.eq.u32 %q7, %b, 2;\n@!%q1 bra END;\n@%q5 bra SECOND;\n@%q7 bra THIRD;\nst.global.u32 [%p], %r1;\n\
             fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%c], 1;\nbra END;\nSECOND:\n\
             ld.relaxed.gpu.global.u32 %r5, [%c];\nsetp.eq.u32 %q6, %r5, 0;\n@%q6 bra SECOND;\n{middle}\n\
             st.relaxed.gpu.global.u32 [%c+64], 1;\nbra END;\nTHIRD:\nld.acquire.gpu.global.u32 %r5, [%c+64];\n\
             setp.eq.u32 %q6, %r5, 0;\n@%q6 bra THIRD;\nld.global.u32 %r2, [%p];\nEND:"
        )
    };
    fine(&body(FENCE), 3, 32);
    caught(&body(""), 3, 32, &["block (2,0,0)", "of block (0,0,0)"]);
}

// ---- lanes -----------------------------------------------------------------------------------------------------------

#[test]
fn lanes_that_did_not_synchronise() {
    let body = |sync: &str, from: u32| {
        format!(
            "st.shared.u32 [%s], %r1;\n{sync}\nsetp.eq.u32 %q6, %t, 3;\nmov.u32 %r4, s;\nadd.u32 %r4, %r4, {};\n\
             @%q6 ld.shared.u32 %r2, [%r4];",
            from * 16
        )
    };
    let low = "setp.lt.u32 %q7, %t, 16;\n@%q7 bar.warp.sync 65535;";
    caught(&body(low, 19), 1, 32, &["thread (3,0,0)", "thread (19,0,0)"]);
    fine(&body(low, 7), 1, 32);
    // two halves at once
    let halves = "setp.lt.u32 %q7, %t, 16;\nselp.b32 %r6, 65535, -65536, %q7;\nbar.warp.sync %r6;";
    caught(&body(halves, 19), 1, 32, &["thread (3,0,0)", "thread (19,0,0)"]);
    fine(&body(halves, 7), 1, 32);
    // halves that overlap hand on: 19 to 10 by the second, 10 to 3 by the third
    let chain = format!(
        "{halves}\nsetp.ge.u32 %q8, %t, 8;\nsetp.lt.u32 %q9, %t, 24;\nand.pred %q8, %q8, %q9;\n\
         @%q8 bar.warp.sync 16776960;\n@%q7 bar.warp.sync 65535;"
    );
    fine(&body(&chain, 19), 1, 32);
    caught(&body(&chain.replace("@%q8 bar", "@%q9 bra NO;\nNO: // bar"), 19), 1, 32, &["thread (19,0,0)"]);
    fine(&body("bar.warp.sync -1;", 19), 1, 32);
    // a fence is no synchronisation
    caught(&body("membar.gl;", 19), 1, 32, &["thread (19,0,0)"]);
}

// ---- a store behind the thread's own atomic --------------------------------------------------------------------------

#[test]
fn a_store_hides_behind_no_atomic_of_its_own_thread() {
    for (address, space) in [("%p", "global"), ("s", "shared")] {
        let body = |between: &str| {
            format!("@%q1 st.{space}.u32 [{address}], 0;\n{between}\natom.{space}.add.u32 %r2, [{address}], 1;")
        };
        caught(&body(""), 1, 64, &["thread (1,0,0)", "which thread (0,0,0) of the same block wrote"]);
        caught(&body("bar.warp.sync -1;"), 1, 64, &["thread (32,0,0)", "which thread (0,0,0) of the same block wrote"]);
        fine(&body("bar.sync 0;"), 1, 64);
    }
}

// ---- blocks that run at the same time --------------------------------------------------------------------------------

/// A read finds the signal that wrote its value, whatever other workers do between the two.
#[test]
fn the_last_of_blocks_that_run_at_the_same_time_sees_all() {
    const BLOCKS: u32 = 2000;
    let d = Device::new();
    // Each block writes its word and adds to the counter behind them; the last one reads every word.
    let text = kernel(
        "mad.wide.u32 %x1, %b, 4, %p;\nst.global.u32 [%x1], %r1;\nadd.u64 %c, %p, 8000;\n\
         atom.acq_rel.gpu.global.add.u32 %r2, [%c], 1;\nsetp.ne.u32 %q6, %r2, 1999;\n@%q6 bra END;\n\
         mov.u32 %r3, 0;\nNEXT:\nmad.wide.u32 %x1, %r3, 4, %p;\nld.global.u32 %r4, [%x1];\nadd.u32 %r3, %r3, 1;\n\
         setp.lt.u32 %q7, %r3, 2000;\n@%q7 bra NEXT;\nEND:",
    );
    let f = d.kernel(&text, "k");
    for _ in 0..30 {
        let mut x = d.stream.alloc_zeros::<u8>(8004).unwrap();
        let mut launch = d.stream.launch_builder(&f);
        launch.arg(&mut x);
        unsafe { launch.launch(shape(BLOCKS, 1, 0)) }.unwrap();
        d.stream.synchronize().unwrap_or_else(|_| panic!("{}", d.emulator.last_error().unwrap()));
    }
}
