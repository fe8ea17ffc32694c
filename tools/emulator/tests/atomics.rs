//! `atom` and `red`, type by type: the old value, the new one, and what is special of each.

// launches are unsafe; here every kernel gets the buffers that it was written for
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::PushKernelArg;
use half::{bf16, f16};
use support::{Machine, shape};

support::gpu_twins!(every_operation_and_type, vectors, sums_of_subnormals);

/// Runs `body` in one thread: `%a` is the value's address (global, or a copy of it in shared memory), `%w` the operands'.
/// Gives the value afterwards and what the body left in `[%o]`.
fn run(m: &Machine, shared: bool, value: [u64; 2], operands: [u64; 2], body: &str) -> ([u64; 2], u64) {
    let place = if shared {
        "mov.u64 %a, s;\ncvta.shared.u64 %a, %a;\nld.global.v2.u64 {%l1, %l2}, [%v];\nst.v2.u64 [%a], {%l1, %l2};"
    } else {
        "mov.u64 %a, %v;"
    };
    let text = format!(
        ".version 8.1\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 v, .param .u64 w, .param .u64 o)\n\
         {{\n.reg .b16 %h<9>;\n.reg .b32 %r<9>;\n.reg .b64 %l<9>, %v, %w, %o, %a;\n.shared .align 16 .b8 s[16];\n\
         ld.param.u64 %v, [v];\nld.param.u64 %w, [w];\nld.param.u64 %o, [o];\n{place}\n{body}\n\
         ld.v2.u64 {{%l1, %l2}}, [%a];\nst.global.v2.u64 [%v], {{%l1, %l2}};\nret;\n}}\n"
    );
    let f = m.kernel(&text, "k");
    let mut v = m.stream.clone_htod(&value).unwrap();
    let w = m.stream.clone_htod(&operands).unwrap();
    let mut o = m.stream.alloc_zeros::<u64>(1).unwrap();
    unsafe { m.stream.launch_builder(&f).arg(&mut v).arg(&w).arg(&mut o).launch(shape(1, 1, 0)) }.unwrap();
    let (v, o) = (m.read(&v), m.read(&o));
    ([v[0], v[1]], o[0])
}

fn pair<T>(low: T, high: T, bits: impl Fn(T) -> u16) -> u64 {
    u64::from(bits(low)) | u64::from(bits(high)) << 16
}

#[test]
fn every_operation_and_type() {
    let m = Machine::new();
    let (h, b) = (|v: f32| u64::from(f16::from_f32(v).to_bits()), |v: f32| u64::from(bf16::from_f32(v).to_bits()));
    let hh = |x: f32, y: f32| pair(x, y, |v| f16::from_f32(v).to_bits());
    let bb = |x: f32, y: f32| pair(x, y, |v| bf16::from_f32(v).to_bits());
    let f = |v: f32| u64::from(v.to_bits());
    let neg = |v: i64| v as u64;
    // operation and type, what is there, the operands, what is there then
    let cases: [(&str, u64, [u64; 2], u64); 40] = [
        ("and.b32", 0b1100, [0b1010, 0], 0b1000),
        ("or.b32", 0b1100, [0b1010, 0], 0b1110),
        ("xor.b32", 0b1100, [0b1010, 0], 0b0110),
        ("and.b64", u64::MAX, [1 << 50 | 1, 0], 1 << 50 | 1),
        ("or.b64", 1 << 40, [1, 0], 1 << 40 | 1),
        ("xor.b64", 3 << 40, [1 << 40, 0], 2 << 40),
        ("exch.b32", 7, [9, 0], 9),
        ("exch.b64", 7, [9 << 40, 0], 9 << 40),
        ("cas.b16", 7, [7, 9], 9),
        ("cas.b16", 8, [7, 9], 8),
        ("cas.b32", 7, [7, 9], 9),
        ("cas.b32", 8, [7, 9], 8),
        ("cas.b64", 7 << 40, [7 << 40, 9], 9),
        ("add.u32", 0xffff_ffff, [3, 0], 2),
        ("add.s32", 5, [neg(-9) & 0xffff_ffff, 0], neg(-4) & 0xffff_ffff),
        ("add.u64", u64::MAX, [3, 0], 2),
        ("add.f32", f(1.5), [f(2.25), 0], f(3.75)),
        ("add.f64", 1.5f64.to_bits(), [(-4.0f64).to_bits(), 0], (-2.5f64).to_bits()),
        ("add.noftz.f16", h(1.5), [h(0.25), 0], h(1.75)),
        ("add.noftz.bf16", b(1.5), [b(0.25), 0], b(1.75)),
        ("add.noftz.f16x2", hh(1.5, -2.0), [hh(0.25, 65504.0), 0], hh(1.75, 65504.0)),
        ("add.noftz.bf16x2", bb(1.5, -2.0), [bb(0.25, 0.5), 0], bb(1.75, -1.5)),
        ("min.noftz.f16x2", hh(1.5, -2.0), [hh(0.25, 3.0), 0], hh(0.25, -2.0)),
        ("max.noftz.f16x2", hh(1.5, -2.0), [hh(0.25, 3.0), 0], hh(1.5, 3.0)),
        ("min.noftz.bf16x2", bb(1.5, -2.0), [bb(0.25, f32::NAN), 0], bb(0.25, -2.0)),
        ("max.noftz.bf16x2", bb(f32::NAN, -0.0), [bb(0.25, 0.0), 0], bb(0.25, 0.0)),
        ("inc.u32", 4, [5, 0], 5),
        ("inc.u32", 5, [5, 0], 0),
        ("dec.u32", 0, [5, 0], 5),
        ("dec.u32", 9, [5, 0], 5),
        ("dec.u32", 4, [5, 0], 3),
        ("min.u32", 0x8000_0000, [7, 0], 7),
        ("min.s32", 0x8000_0000, [7, 0], 0x8000_0000),
        ("max.u32", 0x8000_0000, [7, 0], 0x8000_0000),
        ("max.s32", 0x8000_0000, [7, 0], 7),
        ("min.u64", neg(-1), [7, 0], 7),
        ("min.s64", neg(-1), [7, 0], neg(-1)),
        ("max.u64", neg(-1), [7, 0], neg(-1)),
        ("max.s64", neg(-1), [7, 0], 7),
        ("add.f32", f(f32::MAX), [f(f32::MAX), 0], f(f32::INFINITY)),
    ];
    for (op, old, [x, y], new) in cases {
        let bits = match op.rsplit('.').next().unwrap() {
            "b16" | "f16" | "bf16" => 16,
            "b64" | "u64" | "s64" | "f64" => 64,
            _ => 32,
        };
        let r = match bits {
            16 => "h",
            32 => "r",
            _ => "l",
        };
        let arguments = if op.starts_with("cas") { format!("%{r}4, %{r}5") } else { format!("%{r}4") };
        let loads = format!("ld.global.b{bits} %{r}4, [%w];\nld.global.b{bits} %{r}5, [%w+8];\n");
        // above the value stands what must not change
        let above = 0x5a5a_5a5a_5a5a_5a5a << (bits % 64) & if bits == 64 { 0 } else { u64::MAX };
        let value = [old | above, 42];
        for shared in [false, true] {
            let body = format!("{loads}atom.{op} %{r}6, [%a], {arguments};\nst.global.b{bits} [%o], %{r}6;");
            let (after, said) = run(&m, shared, value, [x, y], &body);
            assert_eq!((after, said), ([new | above, 42], old), "atom.{op} of {old:#x} and {x:#x}, shared {shared}");
            if op.starts_with("cas") || op.starts_with("exch") {
                continue;
            }
            let scope = if shared { "relaxed.cta." } else { "relaxed.gpu.global." };
            let (after, _) = run(&m, shared, value, [x, y], &format!("{loads}red.{scope}{op} [%a], {arguments};"));
            assert_eq!(after, [new | above, 42], "red.{op} of {old:#x} and {x:#x}, shared {shared}");
        }
    }
}

#[test]
fn vectors() {
    let m = Machine::new();
    let two = |x: f32, y: f32| u64::from(x.to_bits()) | u64::from(y.to_bits()) << 32;
    let loads = "ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%w];\n";
    let (old, add) = ([two(1.0, 2.0), two(3.0, 4.0)], [two(0.5, 0.25), two(-1.0, 8.0)]);
    let body = format!(
        "{loads}atom.global.v4.f32.add {{%r4, %r5, %r6, %r7}}, [%a], {{%r0, %r1, %r2, %r3}};\nst.global.b32 [%o], %r7;"
    );
    let (after, said) = run(&m, false, old, add, &body);
    assert_eq!((after, said), ([two(1.5, 2.25), two(2.0, 12.0)], u64::from(4f32.to_bits())));
    let (after, _) = run(&m, false, old, add, &format!("{loads}red.global.add.v2.f32 [%a+8], {{%r2, %r3}};"));
    assert_eq!(after, [old[0], two(2.0, 12.0)]);
}

#[test]
fn sums_of_subnormals() {
    let m = Machine::new();
    let body = "ld.global.b32 %r4, [%w];\natom.add.f32 %r5, [%a], %r4;";
    // 2^-149 and 2^-148 are lost in global memory, and kept in shared memory
    assert_eq!(run(&m, false, [1, 0], [2, 0], body).0, [0, 0]);
    assert_eq!(run(&m, true, [1, 0], [2, 0], body).0, [3, 0]);
    let (least, below) = (0x0080_0000u64, 0x8000_0001u64);
    assert_eq!(run(&m, false, [least, 0], [below, 0], body).0, [least, 0]);
    assert_eq!(run(&m, true, [least, 0], [below, 0], body).0, [0x007f_ffff, 0]);
}
