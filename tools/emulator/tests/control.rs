//! Where lanes go: branches through tables, barriers with counts, and what each refuses. PTX by hand, because compilers
//! choose such instructions as they please.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::PushKernelArg;
use support::{Device, Machine, shape};

/// A kernel whose threads have their index in `%i`, its input `in[i]` in `%x`, and write `%y` to `out[i]`.
fn kernel(body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .pred %p<9>;\n.reg .b32 %r<20>, %x, %y, %i;\n.reg .b64 %l<9>, %in, %out;\n.shared .align 16 .b8 s[1024];\n\
         ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nmov.u32 %i, %tid.x;\nmul.wide.u32 %l1, %i, 4;\n\
         add.u64 %in, %in, %l1;\nadd.u64 %out, %out, %l1;\nld.global.u32 %x, [%in];\nmov.u32 %y, 0;\n{body}\n\
         END:\nst.global.u32 [%out], %y;\nret;\n}}\n"
    )
}

fn run(m: &Machine, body: &str, x: &[u32]) -> Vec<u32> {
    let f = m.kernel(&kernel(body), "k");
    let dx = m.stream.clone_htod(x).unwrap();
    let mut y = m.stream.alloc_zeros::<u32>(x.len()).unwrap();
    unsafe { m.stream.launch_builder(&f).arg(&dx).arg(&mut y).launch(shape(1, x.len() as u32, 0)) }.unwrap();
    m.read(&y)
}

/// The sentence with which the emulator ends a launch.
fn refused(body: &str, x: &[u32]) -> String {
    let d = Device::new();
    d.emulator.set_quiet(true);
    let f = d.kernel(&kernel(body), "k");
    let dx = d.stream.clone_htod(x).unwrap();
    let mut y = d.stream.alloc_zeros::<u32>(x.len()).unwrap();
    unsafe { d.stream.launch_builder(&f).arg(&dx).arg(&mut y).launch(shape(1, x.len() as u32, 0)) }.unwrap();
    assert!(d.stream.synchronize().is_err(), "nothing is refused:\n{body}");
    d.emulator.last_error().unwrap()
}

support::gpu_twins!(branches_through_tables, barriers_with_counts, barriers_that_reduce, words_read_as_bytes);

const TABLE: &str = "ways: .branchtargets A, B, C, A;\nbrx.idx %x, ways;\n\
                     A:\nadd.u32 %y, %y, 100;\nbra JOIN;\nB:\nmad.lo.u32 %y, %i, 3, 200;\nbra JOIN;\n\
                     C:\nmov.u32 %y, 300;\nadd.u32 %y, %y, %i;\nJOIN:\nactivemask.b32 %r2;\npopc.b32 %r2, %r2;\n\
                     mad.lo.u32 %y, %r2, 1000, %y;";

#[test]
fn branches_through_tables() {
    let m = Machine::new();
    let way = |i: u32, x: u32| match x {
        0 | 3 => 100,
        1 => 3 * i + 200,
        _ => 300 + i,
    };
    // all lanes the same way; four ways in one warp; whole warps that differ
    let inputs: [&dyn Fn(u32) -> u32; 4] = [&|_| 2, &|i| i % 4, &|i| i / 32 % 3, &|i| u32::from(i == 17)];
    for input in inputs {
        let x: Vec<u32> = (0..96).map(input).collect();
        let y = run(&m, TABLE, &x);
        for (i, (x, y)) in x.iter().zip(&y).enumerate() {
            // they meet again: all 32 are active behind the join
            assert_eq!(*y, 32_000 + way(i as u32, *x), "thread {i}");
        }
    }
    // On a device it runs too: twins compare all results in their order.
    let splits = |x: &[u32]| {
        m.emulator.inspect(warpcheck::Emulator::reset_counters);
        run(&m, TABLE, x);
        m.emulator.map(|e| e.counters().divergent_branches)
    };
    let found = [splits(&[1; 64]), splits(&(0..64).map(|i| i % 2).collect::<Vec<_>>())];
    assert!(m.emulator.is_none() || found == [Some(0), Some(2)], "{found:?}");
    // under a guard, the others go on; the table may stand after the branch's scope opens, and hold one label
    let guarded = "{ only: .branchtargets L;\nsetp.lt.u32 %p1, %x, 5;\nmov.u32 %r1, 0;\n@%p1 brx.idx.uni %r1, only;\n}\n\
                   mov.u32 %y, 7;\nbra END;\nL:\nmov.u32 %y, 9;";
    let y = run(&m, guarded, &(0..32).collect::<Vec<_>>());
    assert!(y.iter().enumerate().all(|(i, y)| *y == if i < 5 { 9 } else { 7 }), "{y:?}");
    // a loop through a table: each lane as often as it says
    let again = "mov.u32 %r3, 0;\nLOOP:\nadd.u32 %y, %y, %r3;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, %x;\n\
                 selp.u32 %r4, 1, 0, %p1;\nto: .branchtargets END, LOOP;\nbrx.idx %r4, to;";
    let y = run(&m, again, &(0..40).map(|i| i % 7 + 1).collect::<Vec<_>>());
    assert!(y.iter().enumerate().all(|(i, y)| *y == (0..i as u32 % 7 + 1).sum()), "{y:?}");
}

#[test]
fn an_index_outside_its_table() {
    let said = refused(TABLE, &(0..32).map(|i| if i == 9 { 4 } else { 1 }).collect::<Vec<_>>());
    assert!(said.contains("thread (9,0,0), PTX line") && said.contains("`brx.idx %x, ways;`"), "{said}");
    assert!(said.ends_with("branches to entry 4 of a table of 4"), "{said}");
    assert!(refused(TABLE, &[u32::MAX; 3]).ends_with("branches to entry 4294967295 of a table of 4"));
    for (body, part) in [
        ("brx.idx %x, nothing;", "the list of targets `nothing` does not exist"),
        ("t: .branchtargets A, NOWHERE;\nbrx.idx %x, t;\nA:", "the label `NOWHERE` does not exist"),
        ("t: .branchtargets A;\nbrx.idx %l1, t;\nA:", "64 bits, 32 bits are needed"),
        ("brx.idx %x;", "needs an index and a list of targets"),
    ] {
        let d = Device::new();
        d.emulator.set_quiet(true);
        assert!(d.context.load_module(cudarc::nvrtc::Ptx::from_src(kernel(body))).is_err(), "{body}");
        let said = d.emulator.last_error().unwrap();
        assert!(said.contains(part), "{body}: {said}");
    }
}

#[test]
fn barriers_with_counts() {
    let m = Machine::new();
    // two pairs of warps, each at a barrier of its own; the pairs never meet
    let pairs = "shr.u32 %r1, %i, 6;\nadd.u32 %r1, %r1, 1;\nmov.u32 %r2, s;\nmad.lo.u32 %r3, %i, 4, %r2;\n\
                 st.shared.u32 [%r3], %x;\nbarrier.sync %r1, 64;\nxor.b32 %r4, %i, 32;\nmad.lo.u32 %r3, %r4, 4, %r2;\n\
                 ld.shared.u32 %y, [%r3];";
    let x: Vec<u32> = (0..128).map(|i| i * 7).collect();
    let y = run(&m, pairs, &x);
    assert!(y.iter().enumerate().all(|(i, y)| *y == (i as u32 ^ 32) * 7), "{y:?}");
    // producers arrive and go on, consumers wait
    let produce = "setp.ge.u32 %p1, %i, 64;\nmov.u32 %r2, s;\nand.b32 %r5, %i, 63;\nmad.lo.u32 %r3, %r5, 4, %r2;\n\
                   @%p1 bra PRODUCE;\nbar.sync 4, 128;\nld.shared.u32 %y, [%r3];\nbra END;\nPRODUCE:\n\
                   st.shared.u32 [%r3], %x;\nbar.arrive 4, 128;\nmov.u32 %y, 1;";
    let y = run(&m, produce, &x);
    assert!(y.iter().enumerate().all(|(i, y)| *y == if i < 64 { (i as u32 + 64) * 7 } else { 1 }), "{y:?}");
    // the same barrier over and over, and lanes that come to one that is not aligned from two places
    let twice = "mov.u32 %r1, 0;\nAGAIN:\nbar.sync 1;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 5;\n@%p1 bra AGAIN;\n\
                 setp.lt.u32 %p2, %x, 100;\n@%p2 bra LOW;\nbarrier.sync 2;\nmov.u32 %y, 3;\nbra END;\nLOW:\n\
                 barrier.sync 2;\nmov.u32 %y, 2;";
    let y = run(&m, twice, &x);
    assert!(y.iter().zip(&x).all(|(y, x)| *y == if *x < 100 { 2 } else { 3 }), "{y:?}");
}

#[test]
fn barriers_that_reduce() {
    let m = Machine::new();
    let x: Vec<u32> = (0..100).map(|i| i % 3).collect();
    let zeros = x.iter().filter(|x| **x == 0).count() as u32;
    let y = run(&m, "setp.eq.u32 %p1, %x, 0;\nbar.red.popc.u32 %y, 0, %p1;", &x);
    assert_eq!(y, vec![zeros; 100]);
    let y = run(&m, "setp.eq.u32 %p1, %x, 0;\nbar.red.popc.u32 %y, 0, !%p1;", &x);
    assert_eq!(y, vec![100 - zeros; 100]);
    for (op, test, want) in
        [("and", "lt.u32 %p1, %x, 3", 1), ("and", "lt.u32 %p1, %x, 2", 0), ("or", "gt.u32 %p1, %i, 98", 1)]
    {
        let body = format!("setp.{test};\nbarrier.red.{op}.pred %p2, 7, %p1;\nselp.u32 %y, 1, 0, %p2;");
        assert_eq!(run(&m, &body, &x), vec![want; 100], "{op} {test}");
    }
    // of 64 of 128 threads
    let part = "setp.ge.u32 %p1, %i, 64;\n@%p1 bra END;\nsetp.lt.u32 %p2, %x, 2;\nbar.red.popc.u32 %y, 3, 64, %p2;";
    let x: Vec<u32> = (0..128).map(|i| i % 4).collect();
    let y = run(&m, part, &x);
    assert!(y.iter().enumerate().all(|(i, y)| *y == if i < 64 { 32 } else { 0 }), "{y:?}");
}

#[test]
fn barriers_that_are_refused() {
    let x = [0u32; 64];
    for (body, part) in [
        ("bar.sync 16;", "barrier 16 does not exist, there are 16"),
        ("bar.sync 1, 33;", "a barrier for 33 threads: not a multiple of 32"),
        ("bar.sync 1, 96;", "a barrier for 96 threads in a block of 64"),
        (
            "setp.lt.u32 %p1, %i, 32;\n@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 1, 32;",
            "barrier 1 is entered for 32 threads by some and for 64 by others",
        ),
        ("setp.lt.u32 %p1, %i, 32;\n@%p1 bar.sync 1;\n@!%p1 bar.sync 2;", "waits at another barrier"),
    ] {
        let said = refused(body, &x);
        assert!(said.contains(part), "{body}: {said}");
    }
}

#[test]
fn words_read_as_bytes() {
    // what is written as words is read as bytes and the other way round, with signs
    let m = Machine::new();
    let body = "mov.u32 %r2, s;\nmad.lo.u32 %r3, %i, 4, %r2;\nst.shared.u32 [%r3], %x;\nld.shared.s8 %r4, [%r3+3];\n\
                ld.shared.u8 %r5, [%r3+1];\nadd.u32 %y, %r4, %r5;\nst.shared.u16 [%r3], %y;\nld.shared.u32 %y, [%r3];";
    let x: Vec<u32> = (0..64u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let y = run(&m, body, &x);
    for (x, y) in x.iter().zip(y) {
        let sum = ((x >> 24) as i8 as i32 as u32).wrapping_add(x >> 8 & 255);
        assert_eq!(y, x & 0xffff_0000 | sum & 0xffff);
    }
}
