//! Arithmetic, instruction by instruction: a table of PTX instructions, each with the function that it must be, written
//! here anew and in another way than the emulator has it (wide integers, exact sums in double precision rounded to odd,
//! the `half` crate, searches over all values of a format). Inputs are every pair of edge values and random bits.
//!
//! With `EMULATOR_REAL_GPU=1` the same table runs on the machine's GPU; the twins in `gpu` compare the two bit for bit.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks, clippy::type_complexity, clippy::if_same_then_else)]

#[path = "support/exact.rs"]
mod exact;
mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::{bf16, f16};
use std::fmt::Write;

/// What an operand is: `h` 16 bits, `r` 32, `l` 64, `f` a single, `d` a double, `g` f16, `b` bf16, `x` a pair of f16,
/// `y` a pair of bf16, `s` a shift or count, `p` a predicate.
type Kinds = &'static str;
type Want = Box<dyn Fn(u64, u64, u64) -> u64>;

struct Row {
    /// With `%d`, `%a`, `%b`, `%c`.
    ptx: String,
    /// Kinds of the result and of the sources.
    kinds: Kinds,
    want: Want,
}

fn row(ptx: &str, kinds: Kinds, want: impl Fn(u64, u64, u64) -> u64 + 'static) -> Row {
    Row { ptx: ptx.into(), kinds, want: Box::new(want) }
}

fn width(kind: char) -> u32 {
    match kind {
        'h' | 'g' | 'b' => 16,
        'l' | 'd' => 64,
        _ => 32,
    }
}

fn mask(kind: char) -> u64 {
    u64::MAX >> (64 - width(kind))
}

fn edges(kind: char) -> Vec<u64> {
    let ints = |bits: u32| -> Vec<u64> {
        let max = u64::MAX >> (64 - bits);
        [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 256]
            .into_iter()
            .chain([max, max - 1, max / 2, max / 2 + 1, max / 2 + 2, max / 3, 0x0123_4567_89ab_cdef])
            .map(|v| v & max)
            .collect()
    };
    match kind {
        'h' | 'r' | 'l' => ints(width(kind)),
        's' => (0..70).step_by(3).chain([31, 32, 63, 64, 255, 256, 0xffff_ffff]).collect(),
        'p' => vec![0, 1],
        'f' => [
            0u32,
            1,
            2,
            0x007f_ffff,
            0x0080_0000,
            0x0080_0001,
            0x3300_0000,
            0x3380_0001,
            0x3f00_0000,
            0x3f7f_ffff,
            0x3f80_0000,
            0x3f80_0001,
            0x3fc0_0000,
            0x4000_0000,
            0x4b00_0000,
            0x4b80_0001,
            0x4f00_0000,
            0x5f00_0000,
            0x7e80_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            0x477f_e000,
            0x477f_efff,
            0x477f_f000,
            0x3880_0000,
            0x3300_0001,
            0x43e0_0000,
            0x4040_0000,
            0x3b80_0000,
        ]
        .into_iter()
        .flat_map(|v| [u64::from(v), u64::from(v | 0x8000_0000)])
        .collect(),
        'd' => [
            0u64,
            1,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x3fe0_0000_0000_0000,
            0x3ff0_0000_0000_0000,
            0x3ff0_0000_0000_0001,
            0x3ff8_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
            0x43e0_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x4330_0000_0000_0001,
            0x3ca0_0000_0000_0000,
            0x36a0_0000_0000_0000,
            0x380f_ffff_ffff_ffff,
            0x47ef_ffff_f000_0000,
            3,
            0x0018_0000_0000_0001,
            0x1ff0_0000_0000_0001,
            0x2000_0000_0000_0000,
            0x5fdf_ffff_ffff_ffff,
            0x5ff0_0000_0000_0001,
            0x7fe0_0000_0000_0001,
        ]
        .into_iter()
        .flat_map(|v| [v, v | 1 << 63])
        .collect(),
        'g' => [
            0u64, 1, 2, 0x3ff, 0x400, 0x401, 0x1400, 0x3800, 0x3bff, 0x3c00, 0x3c01, 0x3e00, 0x4000, 0x6400, 0x7800,
            0x7bff, 0x7c00, 0x7e00,
        ]
        .into_iter()
        .flat_map(|v| [v, v | 0x8000])
        .collect(),
        'b' => [
            0u64, 1, 0x7f, 0x80, 0x3300, 0x3f00, 0x3f7f, 0x3f80, 0x3f81, 0x3fc0, 0x4000, 0x7f00, 0x7f7f, 0x7f80, 0x7fc0,
        ]
        .into_iter()
        .flat_map(|v| [v, v | 0x8000])
        .collect(),
        'x' => edges('g').into_iter().zip(edges('g').into_iter().rev()).map(|(a, b)| a | b << 16).collect(),
        'y' => edges('b').into_iter().zip(edges('b').into_iter().rev()).map(|(a, b)| a | b << 16).collect(),
        other => panic!("no kind {other}"),
    }
}

/// A generator with a fixed seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn of(&mut self, kind: char) -> u64 {
        let bits = self.next();
        match kind {
            's' => bits % 70,
            'p' => bits & 1,
            // half of the floats near one another, so that sums cancel and do not only absorb
            'f' if bits >> 63 != 0 => 0x3f00_0000 | bits & 0x80ff_ffff,
            'd' if bits >> 62 & 1 != 0 => 0x3fe0_0000_0000_0000 | bits & 0x803f_ffff_ffff_ffff,
            _ => bits & mask(kind),
        }
    }
}

fn inputs(kinds: &str) -> Vec<[u64; 3]> {
    let k: Vec<char> = kinds.chars().skip(1).collect();
    let kind = |i: usize| k.get(i).copied().unwrap_or('p');
    let mut random = Random(kinds.bytes().fold(1, |s, b| s * 31 + u64::from(b)));
    let mut out = Vec::new();
    for a in edges(kind(0)) {
        for b in if k.len() > 1 { edges(kind(1)) } else { vec![0] } {
            if k.len() > 2 {
                let all = edges(kind(2));
                for _ in 0..4 {
                    out.push([a, b, all[random.next() as usize % all.len()]]);
                }
            } else {
                out.push([a, b, 0]);
            }
        }
    }
    for _ in 0..1500 {
        out.push([random.of(kind(0)), random.of(kind(1)), random.of(kind(2))]);
    }
    out
}

const HEAD: &str = ".version 7.8\n.target sm_90\n.address_size 64\n";

/// One kernel that reads three words and writes one.
fn kernel(name: &str, row: &Row) -> String {
    let mut k: Vec<char> = row.kinds.chars().collect();
    let mut out = format!(
        ".visible .entry {name}(.param .u64 in, .param .u64 out, .param .u32 n)\n{{\n\
         .reg .pred %go, %pa, %pb, %pc, %pd;\n.reg .b16 %ha, %hb, %hc, %hd;\n.reg .b32 %ra, %rb, %rc, %rd, %i, %n, %t;\n\
         .reg .b64 %la, %lb, %lc, %ld, %p, %q, %o;\n\
         mov.u32 %i, %ctaid.x;\nmov.u32 %t, %ntid.x;\nmul.lo.u32 %i, %i, %t;\nmov.u32 %t, %tid.x;\nadd.u32 %i, %i, %t;\n\
         ld.param.u32 %n, [n];\nsetp.ge.u32 %go, %i, %n;\n@%go bra END;\n\
         ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n\
         mul.wide.u32 %o, %i, 24;\nadd.u64 %p, %p, %o;\nmul.wide.u32 %o, %i, 8;\nadd.u64 %q, %q, %o;\n\
         ld.global.u64 %la, [%p];\nld.global.u64 %lb, [%p+8];\nld.global.u64 %lc, [%p+16];\n"
    );
    let class = |kind: char| match (kind, width(kind)) {
        ('p', _) => 'p',
        (_, 16) => 'h',
        (_, 64) => 'l',
        _ => 'r',
    };
    k.truncate(4);
    for (i, letter) in ['a', 'b', 'c'].into_iter().enumerate() {
        match k.get(i + 1).map(|k| class(*k)) {
            Some('h') => writeln!(out, "cvt.u16.u64 %h{letter}, %l{letter};"),
            Some('r') => writeln!(out, "cvt.u32.u64 %r{letter}, %l{letter};"),
            Some('p') => writeln!(out, "setp.ne.u64 %p{letter}, %l{letter}, 0;"),
            _ => Ok(()),
        }
        .unwrap();
    }
    let mut ptx = row.ptx.clone();
    for (i, letter) in ['d', 'a', 'b', 'c'].into_iter().enumerate() {
        if let Some(kind) = k.get(i) {
            ptx = ptx.replace(&format!("%{letter}"), &format!("@@{}{letter}", class(*kind)));
        }
    }
    let end = if ptx.ends_with('}') { "" } else { ";" };
    writeln!(out, "{}{end}", ptx.replace("@@", "%")).unwrap();
    match class(k[0]) {
        'h' => writeln!(out, "cvt.u64.u16 %ld, %hd;"),
        'r' => writeln!(out, "cvt.u64.u32 %ld, %rd;"),
        'p' => writeln!(out, "selp.u64 %ld, 1, 0, %pd;"),
        _ => Ok(()),
    }
    .unwrap();
    out + "st.global.u64 [%q], %ld;\nEND:\nret;\n}\n"
}

/// Runs rows and compares bits; NaN of a double may have any payload. Where a device may be another within an error, the
/// rows are not `exact`.
fn check(rows: Vec<Row>, exact: bool, same: impl Fn(&Row, [u64; 3], u64, u64) -> bool) {
    let m = support::Machine::new();
    let mut text = HEAD.to_owned();
    for (i, row) in rows.iter().enumerate() {
        text += &kernel(&format!("row{i}"), row);
    }
    let (stream, module) = (&m.stream, m.module(&text));
    let mut failures = String::new();
    for (i, row) in rows.iter().enumerate() {
        let f = module.load_function(&format!("row{i}")).unwrap();
        let all = inputs(row.kinds);
        let flat: Vec<u64> = all.iter().flatten().copied().collect();
        let x = stream.clone_htod(&flat).unwrap();
        let mut y = stream.alloc_zeros::<u64>(all.len()).unwrap();
        let n = all.len() as u32;
        let mut launch = stream.launch_builder(&f);
        launch.arg(&x).arg(&mut y).arg(&n);
        unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
        let got = stream.clone_dtoh(&y).unwrap();
        if exact {
            // the payload of a double's NaN is the device's own
            let nan = |v: u64| row.kinds.starts_with('d') && v & 0x7fff_ffff_ffff_ffff > 0x7ff0_0000_0000_0000;
            let bits: Vec<u8> = got.iter().flat_map(|v| if nan(*v) { u64::MAX } else { *v }.to_le_bytes()).collect();
            support::record(&bits);
        }
        let mut bad = 0;
        for (input, got) in all.iter().zip(&got) {
            let m = mask(row.kinds.chars().next().unwrap());
            let want = (row.want)(input[0], input[1], input[2]) & m;
            if !same(row, *input, *got, want) {
                if bad == 0 {
                    writeln!(
                        failures,
                        "{}: a {:#x} b {:#x} c {:#x}: got {got:#x}, want {want:#x}",
                        row.ptx, input[0], input[1], input[2]
                    )
                    .unwrap();
                }
                bad += 1;
            }
        }
        if bad > 1 {
            writeln!(failures, "    and {} more of {}", bad - 1, all.len()).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

fn bits(row: &Row, _: [u64; 3], got: u64, want: u64) -> bool {
    let nan64 = |v: u64| v & 0x7fff_ffff_ffff_ffff > 0x7ff0_0000_0000_0000;
    got == want || (row.kinds.starts_with('d') && nan64(got) && nan64(want))
}

fn s32(v: u64) -> i128 {
    i128::from(v as u32 as i32)
}
fn u32_(v: u64) -> i128 {
    i128::from(v as u32)
}
fn s64(v: u64) -> i128 {
    i128::from(v as i64)
}
fn u64_(v: u64) -> i128 {
    i128::from(v)
}
fn s16(v: u64) -> i128 {
    i128::from(v as u16 as i16)
}
fn u16_(v: u64) -> i128 {
    i128::from(v as u16)
}

support::gpu_twins!(integers, singles, doubles, halves, conversions);

#[test]
fn integers() {
    let mut rows = Vec::new();
    type Read = fn(u64) -> i128;
    let types: [(&str, Kinds, Kinds, Read, u32); 6] = [
        ("s16", "hhh", "hhhh", s16, 16),
        ("u16", "hhh", "hhhh", u16_, 16),
        ("s32", "rrr", "rrrr", s32, 32),
        ("u32", "rrr", "rrrr", u32_, 32),
        ("s64", "lll", "llll", s64, 64),
        ("u64", "lll", "llll", u64_, 64),
    ];
    for (t, two, three, v, n) in types {
        let low = move |x: i128| x as u64;
        rows.push(row(&format!("add.{t} %d, %a, %b"), two, move |a, b, _| low(v(a) + v(b))));
        rows.push(row(&format!("sub.{t} %d, %a, %b"), two, move |a, b, _| low(v(a) - v(b))));
        rows.push(row(&format!("mul.lo.{t} %d, %a, %b"), two, move |a, b, _| low(v(a).wrapping_mul(v(b)))));
        rows.push(row(&format!("mul.hi.{t} %d, %a, %b"), two, move |a, b, _| {
            if t == "u64" { ((u128::from(a) * u128::from(b)) >> 64) as u64 } else { low((v(a) * v(b)) >> n) }
        }));
        rows.push(row(&format!("mad.lo.{t} %d, %a, %b, %c"), three, move |a, b, c| {
            low(v(a).wrapping_mul(v(b)).wrapping_add(v(c)))
        }));
        rows.push(row(&format!("mad.hi.{t} %d, %a, %b, %c"), three, move |a, b, c| {
            let high = if t == "u64" { ((u128::from(a) * u128::from(b)) >> 64) as i128 } else { (v(a) * v(b)) >> n };
            low(high + v(c))
        }));
        // a division by zero has no result that PTX fixes
        rows.push(row(
            &format!("div.{t} %d, %a, %b"),
            two,
            move |a, b, _| if v(b) == 0 { u64::MAX } else { low(v(a) / v(b)) },
        ));
        rows.push(row(
            &format!("rem.{t} %d, %a, %b"),
            two,
            move |a, b, _| if v(b) == 0 { a } else { low(v(a) % v(b)) },
        ));
        rows.push(row(&format!("min.{t} %d, %a, %b"), two, move |a, b, _| low(v(a).min(v(b)))));
        rows.push(row(&format!("max.{t} %d, %a, %b"), two, move |a, b, _| low(v(a).max(v(b)))));
        rows.push(row(&format!("sad.{t} %d, %a, %b, %c"), three, move |a, b, c| low((v(a) - v(b)).abs() + v(c))));
        let shift: Kinds = match n {
            16 => "hhs",
            32 => "rrs",
            _ => "lls",
        };
        rows.push(row(&format!("shr.{t} %d, %a, %b"), shift, move |a, b, _| low(v(a) >> b.min(127))));
        for (name, test) in [
            ("eq", (|a, b| a == b) as fn(i128, i128) -> bool),
            ("ne", |a, b| a != b),
            ("lt", |a, b| a < b),
            ("le", |a, b| a <= b),
            ("gt", |a, b| a > b),
            ("ge", |a, b| a >= b),
        ] {
            let kinds: Kinds = match n {
                16 => "phh",
                32 => "prr",
                _ => "pll",
            };
            rows.push(row(&format!("setp.{name}.{t} %d, %a, %b"), kinds, move |a, b, _| u64::from(test(v(a), v(b)))));
        }
    }
    for (t, wide, v) in [("s16", "rhh", s16 as Read), ("u16", "rhh", u16_), ("s32", "lrr", s32), ("u32", "lrr", u32_)] {
        rows.push(row(&format!("mul.wide.{t} %d, %a, %b"), wide, move |a, b, _| (v(a) * v(b)) as u64));
        let mad: Kinds = if wide == "rhh" { "rhhr" } else { "lrrl" };
        rows.push(row(&format!("mad.wide.{t} %d, %a, %b, %c"), mad, move |a, b, c| {
            (v(a) * v(b)).wrapping_add(i128::from(c)) as u64
        }));
    }
    for (t, k, n) in [("b16", "hhs", 16), ("b32", "rrs", 32), ("b64", "lls", 64)] {
        rows.push(row(&format!("shl.{t} %d, %a, %b"), k, move |a, b, _| if b >= n { 0 } else { a << b }));
    }
    for (t, k) in [("b16", "hhh"), ("b32", "rrr"), ("b64", "lll")] {
        rows.push(row(&format!("and.{t} %d, %a, %b"), k, |a, b, _| a & b));
        rows.push(row(&format!("or.{t} %d, %a, %b"), k, |a, b, _| a | b));
        rows.push(row(&format!("xor.{t} %d, %a, %b"), k, |a, b, _| a ^ b));
        rows.push(row(&format!("not.{t} %d, %a"), &k[..2], |a, _, _| !a));
        rows.push(row(&format!("cnot.{t} %d, %a"), &k[..2], |a, _, _| u64::from(a == 0)));
    }
    for (t, k) in [("s16", "hh"), ("s32", "rr"), ("s64", "ll")] {
        let sign = move |a: u64| {
            if t == "s16" {
                s16(a)
            } else if t == "s32" {
                s32(a)
            } else {
                s64(a)
            }
        };
        rows.push(row(&format!("neg.{t} %d, %a"), k, move |a, _, _| (-sign(a)) as u64));
        rows.push(row(&format!("abs.{t} %d, %a"), k, move |a, _, _| sign(a).unsigned_abs() as u64));
    }
    let count = |a: u64, n: u32| (0..n).filter(|i| a >> i & 1 != 0).count() as u64;
    rows.push(row("popc.b32 %d, %a", "rr", move |a, _, _| count(a, 32)));
    rows.push(row("popc.b64 %d, %a", "rl", move |a, _, _| count(a, 64)));
    let lead = |a: u64, n: u32| (0..n).rev().position(|i| a >> i & 1 != 0).map_or(u64::from(n), |p| p as u64);
    rows.push(row("clz.b32 %d, %a", "rr", move |a, _, _| lead(a, 32)));
    rows.push(row("clz.b64 %d, %a", "rl", move |a, _, _| lead(a, 64)));
    rows.push(row("brev.b32 %d, %a", "rr", |a, _, _| (0..32).fold(0, |d, i| d | (a >> i & 1) << (31 - i))));
    rows.push(row("brev.b64 %d, %a", "ll", |a, _, _| (0..64).fold(0, |d, i| d | (a >> i & 1) << (63 - i))));
    rows.push(row("bfind.u32 %d, %a", "rr", move |a, _, _| 31u64.wrapping_sub(lead(a, 32))));
    rows.push(row("bfind.s32 %d, %a", "rr", move |a, _, _| {
        31u64.wrapping_sub(lead(if s32(a) < 0 { !a & 0xffff_ffff } else { a }, 32))
    }));
    rows.push(row("bfind.shiftamt.u64 %d, %a", "rl", move |a, _, _| if a == 0 { u64::MAX } else { lead(a, 64) }));
    rows.push(row("lop3.b32 %d, %a, %b, %c, 0xe8", "rrrr", |a, b, c| a & b | a & c | b & c));
    rows.push(row("lop3.b32 %d, %a, %b, %c, 0x1e", "rrrr", |a, b, c| a ^ (b | c)));
    let join = |hi: u64, lo: u64| (hi & 0xffff_ffff) << 32 | lo & 0xffff_ffff;
    rows.push(row("shf.l.wrap.b32 %d, %a, %b, %c", "rrrs", move |a, b, c| (join(b, a) << (c % 32)) >> 32));
    rows.push(row("shf.r.wrap.b32 %d, %a, %b, %c", "rrrs", move |a, b, c| join(b, a) >> (c % 32)));
    rows.push(row(
        "shf.l.clamp.b32 %d, %a, %b, %c",
        "rrrs",
        move |a, b, c| if c > 31 { a } else { (join(b, a) << c) >> 32 },
    ));
    rows.push(row("shf.r.clamp.b32 %d, %a, %b, %c", "rrrs", move |a, b, c| if c > 31 { b } else { join(b, a) >> c }));
    rows.push(row("prmt.b32 %d, %a, %b, %c", "rrrr", move |a, b, c| {
        let bytes: Vec<u8> = join(b, a).to_le_bytes().to_vec();
        (0..4).fold(0, |d, i| {
            let s = (c >> (4 * i) & 15) as usize;
            let byte = bytes[s & 7];
            d | u64::from(if s < 8 { byte } else { ((byte as i8) >> 7) as u8 }) << (8 * i)
        })
    }));
    rows.push(row("prmt.b32.f4e %d, %a, %b, %c", "rrrr", move |a, b, c| join(b, a).rotate_right(8 * (c & 3) as u32)));
    // a field of len bits from pos, in the words of the manual
    let field = |a: u64, pos: u64, len: u64, n: u32, signed: bool| -> u64 {
        let (pos, len) = ((pos & 255) as i128, (len & 255) as i128);
        let value = if signed { if n == 32 { s32(a) } else { s64(a) } } else { i128::from(a) };
        if len == 0 {
            return 0;
        }
        let shifted = value >> pos.min(126);
        let shifted = if !signed && pos >= i128::from(n) { 0 } else { shifted };
        if len >= i128::from(n) || pos + len >= i128::from(n) {
            return shifted as u64;
        }
        let part = shifted & ((1 << len) - 1);
        (if signed && part >> (len - 1) & 1 != 0 { part - (1 << len) } else { part }) as u64
    };
    rows.push(row("bfe.u32 %d, %a, %b, %c", "rrss", move |a, b, c| field(a, b, c, 32, false)));
    rows.push(row("bfe.s32 %d, %a, %b, %c", "rrss", move |a, b, c| field(a, b, c, 32, true)));
    rows.push(row("bfe.u64 %d, %a, %b, %c", "llss", move |a, b, c| field(a, b, c, 64, false)));
    rows.push(row("bfe.s64 %d, %a, %b, %c", "llss", move |a, b, c| field(a, b, c, 64, true)));
    rows.push(row("bfi.b32 %d, %a, %b, 5, 9", "rrr", |a, b, _| b & !(0x1ff << 5) | (a & 0x1ff) << 5));
    rows.push(row("bfi.b64 %d, %a, %b, 60, 9", "lll", |a, b, _| b & !(0xf << 60) | (a & 0xf) << 60));
    rows.push(row("bfi.b32 %d, %a, 0, %b, 4", "rrs", |a, b, _| if b & 255 > 31 { 0 } else { (a & 15) << (b & 255) }));
    rows.push(row("dp4a.s32.u32 %d, %a, %b, %c", "rrrr", |a, b, c| {
        (0..4).fold(c, |d, i| d.wrapping_add(((a >> (8 * i)) as i8 as i64 * (b >> (8 * i)) as u8 as i64) as u64))
    }));
    rows.push(row("dp2a.hi.u32.s32 %d, %a, %b, %c", "rrrr", |a, b, c| {
        (0..2).fold(c, |d, i| d.wrapping_add(((a >> (16 * i)) as u16 as i64 * (b >> (16 + 8 * i)) as i8 as i64) as u64))
    }));
    let bytes = |v: u64| (0..4).map(move |i| v >> (8 * i) & 255);
    rows.push(row("vabsdiff4.u32.u32.u32 %d, %a, %b, %c", "rrrr", move |a, b, _| {
        bytes(a).zip(bytes(b)).enumerate().map(|(i, (a, b))| a.abs_diff(b) << (8 * i)).sum()
    }));
    rows.push(row("vabsdiff4.u32.u32.u32.add %d, %a, %b, %c", "rrrr", move |a, b, c| {
        bytes(a).zip(bytes(b)).map(|(a, b)| a.abs_diff(b)).sum::<u64>() + c
    }));
    rows.push(row("vabsdiff4.s32.s32.s32.add %d, %a, %b, %c", "rrrr", move |a, b, c| {
        bytes(a).zip(bytes(b)).map(|(a, b)| u64::from((a as i8).abs_diff(b as i8))).sum::<u64>() + c
    }));
    rows.push(row("mul24.lo.s32 %d, %a, %b", "rrr", |a, b, _| {
        let low = |v: u64| ((v << 40) as i64 >> 40) as i128;
        (low(a) * low(b)) as u64
    }));
    rows.push(row("add.sat.s32 %d, %a, %b", "rrr", |a, b, _| {
        (s32(a) + s32(b)).clamp(-(1 << 31), (1 << 31) - 1) as u64
    }));
    rows.push(row("sub.sat.s32 %d, %a, %b", "rrr", |a, b, _| {
        (s32(a) - s32(b)).clamp(-(1 << 31), (1 << 31) - 1) as u64
    }));
    rows.push(row("selp.b32 %d, %a, %b, %c", "rrrp", |a, b, c| if c != 0 { a } else { b }));
    rows.push(row("slct.b64.s32 %d, %a, %b, %c", "lllr", |a, b, c| if s32(c) >= 0 { a } else { b }));
    rows.push(row("setp.lt.and.s32 %d, %a, %b, %c", "prrp", |a, b, c| u64::from(s32(a) < s32(b) && c != 0)));
    rows.push(row("setp.hi.or.u32 %d, %a, %b, !%c", "prrp", |a, b, c| u64::from(a > b || c == 0)));
    rows.push(row("set.ge.u32.s32 %d, %a, %b", "rrr", |a, b, _| if s32(a) >= s32(b) { u64::MAX } else { 0 }));
    rows.push(row(
        "{ .reg .b32 lo, hi; add.cc.u32 lo, %a, %b; addc.u32 hi, 0, 0; mov.b64 %d, {lo, hi}; }",
        "lrr",
        |a, b, _| a + b,
    ));
    rows.push(row(
        "{ .reg .b32 lo, hi; sub.cc.u32 lo, %a, %b; subc.u32 hi, 0, 0; mov.b64 %d, {lo, hi}; }",
        "lrr",
        |a, b, _| a.wrapping_sub(b),
    ));
    rows.push(row(
        "{ .reg .b32 lo, hi; mad.lo.cc.u32 lo, %a, %b, %c; madc.hi.u32 hi, %a, %b, 0; mov.b64 %d, {lo, hi}; }",
        "lrrr",
        |a, b, c| a * b + c,
    ));
    check(rows, true, bits);
}

// ---- floats ----------------------------------------------------------------------------------------------------------

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}
fn d(v: u64) -> f64 {
    f64::from_bits(v)
}
const NAN: u64 = 0x7fff_ffff;

fn single(v: f32) -> u64 {
    if v.is_nan() { NAN } else { u64::from(v.to_bits()) }
}

fn flush(v: u64) -> u64 {
    if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v }
}

/// The exact sum of two doubles, in double precision rounded to odd: rounding that again to fewer bits is rounding once.
fn sum_to_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    let bb = s - a;
    let e = (a - (s - bb)) + (b - bb);
    if e == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    // towards the error: away from zero if it has the sign of the sum
    let away = (e > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// A double to single with a direction, by comparing neighbours.
fn to_single(v: f64, mode: &str) -> f32 {
    let near = v as f32;
    if v.is_nan() || f64::from(near) == v {
        return near;
    }
    let below = if f64::from(near) < v { near } else { near.next_down() };
    let above = if f64::from(near) > v { near } else { near.next_up() };
    match mode {
        "rn" => near,
        "rm" => below,
        "rp" => above,
        _ if v > 0.0 => below,
        _ => above,
    }
}

fn zero_sum(exact: f64, a: f64, b: f64, mode: &str) -> f64 {
    // x - x is +0, and -0 only when rounding down
    if exact == 0.0 && a == -b && a != 0.0 {
        if mode == "rm" { -0.0 } else { 0.0 }
    } else if exact == 0.0 && a == 0.0 && b == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
        if mode == "rm" { -0.0 } else { 0.0 }
    } else {
        exact
    }
}

#[test]
fn singles() {
    let mut rows = Vec::new();
    for mode in ["rn", "rz", "rm", "rp"] {
        for ftz in ["", ".ftz"] {
            let z = !ftz.is_empty();
            let i = move |v: u64| if z { flush(v) } else { v };
            let o = move |v: f64| {
                let v = single(to_single(v, mode));
                if z { flush(v) } else { v }
            };
            rows.push(row(&format!("add.{mode}{ftz}.f32 %d, %a, %b"), "fff", move |a, b, _| {
                let (a, b) = (f64::from(f(i(a))), f64::from(f(i(b))));
                o(zero_sum(sum_to_odd(a, b), a, b, mode))
            }));
            rows.push(row(&format!("sub.{mode}{ftz}.f32 %d, %a, %b"), "fff", move |a, b, _| {
                let (a, b) = (f64::from(f(i(a))), -f64::from(f(i(b))));
                o(zero_sum(sum_to_odd(a, b), a, b, mode))
            }));
            rows.push(row(&format!("mul.{mode}{ftz}.f32 %d, %a, %b"), "fff", move |a, b, _| {
                o(f64::from(f(i(a))) * f64::from(f(i(b))))
            }));
            rows.push(row(&format!("fma.{mode}{ftz}.f32 %d, %a, %b, %c"), "ffff", move |a, b, c| {
                let (p, c) = (f64::from(f(i(a))) * f64::from(f(i(b))), f64::from(f(i(c))));
                o(zero_sum(sum_to_odd(p, c), p, c, mode))
            }));
            rows.push(row(&format!("div.{mode}{ftz}.f32 %d, %a, %b"), "fff", move |a, b, _| {
                let (a, b) = (f64::from(f(i(a))), f64::from(f(i(b))));
                o(quotient_to_odd(a, b))
            }));
            rows.push(row(&format!("rcp.{mode}{ftz}.f32 %d, %a"), "ff", move |a, _, _| {
                o(quotient_to_odd(1.0, f64::from(f(i(a)))))
            }));
            rows.push(row(&format!("sqrt.{mode}{ftz}.f32 %d, %a"), "ff", move |a, _, _| {
                let x = f64::from(f(i(a)));
                let r = x.sqrt();
                // a root of 24 bits is exact or far from a tie; its error has the sign of the residue
                let e = r.mul_add(-r, x);
                let odd = if e == 0.0 || !r.is_finite() || r.to_bits() & 1 == 1 {
                    r
                } else if e > 0.0 {
                    r.next_up()
                } else {
                    r.next_down()
                };
                o(odd)
            }));
        }
    }
    let sat = |v: f32| if v > 0.0 { v.min(1.0) } else { 0.0 };
    rows.push(row("add.sat.f32 %d, %a, %b", "fff", move |a, b, _| single(sat(f(a) + f(b)))));
    rows.push(row("mul.ftz.sat.f32 %d, %a, %b", "fff", move |a, b, _| {
        flush(single(sat(f(flush(single(f(flush(a)) * f(flush(b))))))))
    }));
    rows.push(row("fma.rn.sat.f32 %d, %a, %b, %c", "ffff", move |a, b, c| single(sat(f(a).mul_add(f(b), f(c))))));
    let least = |a: u64, b: u64, more: bool, nan: bool| -> u64 {
        let (x, y) = (f(a), f(b));
        if x.is_nan() || y.is_nan() {
            return if nan || (x.is_nan() && y.is_nan()) {
                NAN
            } else if x.is_nan() {
                b
            } else {
                a
            };
        }
        let key = |v: u64| if v & 0x8000_0000 != 0 { !(v as u32) as i64 - (1 << 32) } else { i64::from(v as u32) };
        if (key(a) < key(b)) != more { a } else { b }
    };
    rows.push(row("min.f32 %d, %a, %b", "fff", move |a, b, _| least(a, b, false, false)));
    rows.push(row("max.f32 %d, %a, %b", "fff", move |a, b, _| least(a, b, true, false)));
    rows.push(row("min.NaN.f32 %d, %a, %b", "fff", move |a, b, _| least(a, b, false, true)));
    rows.push(row("max.ftz.f32 %d, %a, %b", "fff", move |a, b, _| least(flush(a), flush(b), true, false)));
    for (name, less, equal, more, unordered) in [
        ("eq", false, true, false, false),
        ("ne", true, false, true, false),
        ("lt", true, false, false, false),
        ("le", true, true, false, false),
        ("gt", false, false, true, false),
        ("ge", false, true, true, false),
        ("equ", false, true, false, true),
        ("neu", true, false, true, true),
        ("ltu", true, false, false, true),
        ("leu", true, true, false, true),
        ("gtu", false, false, true, true),
        ("geu", false, true, true, true),
        ("num", true, true, true, false),
        ("nan", false, false, false, true),
    ] {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let pick = move |o: Option<std::cmp::Ordering>| {
            u64::from(match o {
                Some(Less) => less,
                Some(Equal) => equal,
                Some(Greater) => more,
                None => unordered,
            })
        };
        rows.push(row(&format!("setp.{name}.f32 %d, %a, %b"), "pff", move |a, b, _| pick(f(a).partial_cmp(&f(b)))));
        rows.push(row(&format!("setp.{name}.ftz.f32 %d, %a, %b"), "pff", move |a, b, _| {
            pick(f(flush(a)).partial_cmp(&f(flush(b))))
        }));
        rows.push(row(&format!("setp.{name}.f64 %d, %a, %b"), "pdd", move |a, b, _| pick(d(a).partial_cmp(&d(b)))));
        rows.push(row(&format!("setp.{name}.f16 %d, %a, %b"), "pgg", move |a, b, _| {
            pick(f16::from_bits(a as u16).partial_cmp(&f16::from_bits(b as u16)))
        }));
        rows.push(row(&format!("setp.{name}.bf16 %d, %a, %b"), "pbb", move |a, b, _| {
            pick(bf16::from_bits(a as u16).partial_cmp(&bf16::from_bits(b as u16)))
        }));
    }
    rows.push(row("abs.f32 %d, %a", "ff", |a, _, _| a & 0x7fff_ffff));
    rows.push(row("neg.ftz.f32 %d, %a", "ff", |a, _, _| flush(a) ^ 0x8000_0000));
    rows.push(row("copysign.f32 %d, %a, %b", "fff", |a, b, _| a & 0x8000_0000 | b & 0x7fff_ffff));
    rows.push(row("testp.subnormal.f32 %d, %a", "pf", |a, _, _| u64::from(a & 0x7f80_0000 == 0 && a & 0x7f_ffff != 0)));
    rows.push(row("testp.normal.f32 %d, %a", "pf", |a, _, _| {
        u64::from(a & 0x7fff_ffff == 0 || (1..255).contains(&(a >> 23 & 255)))
    }));
    check(rows, true, |row, input, got, want| {
        // abs and neg of NaN may be any NaN
        bits(row, input, got, want)
            || (row.ptx.starts_with("abs") || row.ptx.starts_with("neg")) && f(got).is_nan() && f(want).is_nan()
    });
}

/// `a / b` in double precision, rounded to odd.
fn quotient_to_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 || b.is_infinite() {
        return q;
    }
    let e = (-q).mul_add(b, a);
    if e == 0.0 || q.to_bits() & 1 == 1 {
        return q;
    }
    if (e > 0.0) == (b > 0.0) { q.next_up() } else { q.next_down() }
}

#[test]
fn doubles() {
    let mut rows = Vec::new();
    for mode in ["rz", "rm", "rp"] {
        rows.push(row(&format!("add.{mode}.f64 %d, %a, %b"), "ddd", move |a, b, _| {
            exact::fma(d(a), 1.0, d(b), mode).to_bits()
        }));
        rows.push(row(&format!("sub.{mode}.f64 %d, %a, %b"), "ddd", move |a, b, _| {
            exact::fma(d(a), 1.0, -d(b), mode).to_bits()
        }));
        rows.push(row(&format!("mul.{mode}.f64 %d, %a, %b"), "ddd", move |a, b, _| {
            exact::mul(d(a), d(b), mode).to_bits()
        }));
        rows.push(row(&format!("fma.{mode}.f64 %d, %a, %b, %c"), "dddd", move |a, b, c| {
            exact::fma(d(a), d(b), d(c), mode).to_bits()
        }));
        rows.push(row(&format!("div.{mode}.f64 %d, %a, %b"), "ddd", move |a, b, _| {
            exact::div(d(a), d(b), mode).to_bits()
        }));
        rows.push(row(&format!("rcp.{mode}.f64 %d, %a"), "dd", move |a, _, _| exact::div(1.0, d(a), mode).to_bits()));
        rows.push(row(&format!("sqrt.{mode}.f64 %d, %a"), "dd", move |a, _, _| exact::sqrt(d(a), mode).to_bits()));
    }
    // to the nearest there is one answer, the host's
    rows.push(row("add.rn.f64 %d, %a, %b", "ddd", |a, b, _| (d(a) + d(b)).to_bits()));
    rows.push(row("sub.rn.f64 %d, %a, %b", "ddd", |a, b, _| (d(a) - d(b)).to_bits()));
    rows.push(row("mul.rn.f64 %d, %a, %b", "ddd", |a, b, _| (d(a) * d(b)).to_bits()));
    rows.push(row("div.rn.f64 %d, %a, %b", "ddd", |a, b, _| (d(a) / d(b)).to_bits()));
    rows.push(row("sqrt.rn.f64 %d, %a", "dd", |a, _, _| d(a).sqrt().to_bits()));
    rows.push(row("fma.rn.f64 %d, %a, %b, %c", "dddd", |a, b, c| d(a).mul_add(d(b), d(c)).to_bits()));
    rows.push(row("min.f64 %d, %a, %b", "ddd", |a, b, _| {
        if d(a).is_nan() {
            b
        } else if d(b).is_nan() {
            a
        } else if d(a).total_cmp(&d(b)).is_lt() {
            a
        } else {
            b
        }
    }));
    rows.push(row("max.f64 %d, %a, %b", "ddd", |a, b, _| {
        if d(a).is_nan() {
            b
        } else if d(b).is_nan() {
            a
        } else if d(a).total_cmp(&d(b)).is_gt() {
            a
        } else {
            b
        }
    }));
    rows.push(row("rcp.rn.f64 %d, %a", "dd", |a, _, _| (1.0 / d(a)).to_bits()));
    check(rows, true, bits);
}

#[test]
fn the_exact_reference_knows_the_ends_of_the_range() {
    let (max, min, tiny) = (f64::MAX, f64::MIN_POSITIVE, f64::from_bits(1));
    // the sum, product and quotient beyond the largest double, and below the smallest
    assert_eq!(exact::fma(max, 1.0, max, "rz"), max);
    assert_eq!(exact::fma(max, 1.0, tiny, "rp"), f64::INFINITY);
    assert_eq!(exact::fma(-max, 1.0, -tiny, "rp"), -max);
    assert_eq!(exact::mul(max, -max, "rm"), f64::NEG_INFINITY);
    assert_eq!(exact::mul(tiny, 0.5, "rp"), tiny);
    assert_eq!(exact::mul(tiny, -0.5, "rp").to_bits(), 1 << 63);
    assert_eq!(exact::div(min, 3.0, "rm"), f64::from_bits(0x0005_5555_5555_5555));
    assert_eq!(exact::div(min, -3.0, "rm"), -f64::from_bits(0x0005_5555_5555_5556));
    assert_eq!(exact::fma(1.0, 1.0, -tiny, "rz"), 1.0f64.next_down());
    assert_eq!(exact::fma(0.0, -1.0, 0.0, "rm").to_bits(), 1 << 63);
    assert_eq!(exact::sqrt(2.0, "rp"), std::f64::consts::SQRT_2);
    assert_eq!(exact::sqrt(2.0, "rm"), std::f64::consts::SQRT_2.next_down());
}

#[test]
fn halves() {
    let mut rows = Vec::new();
    let nan = 0x7fffu64;
    let g = |v: u64| f64::from(f16::from_bits(v as u16));
    let b = |v: u64| f64::from(bf16::from_bits(v as u16));
    let to_g = move |v: f64| if v.is_nan() { nan } else { u64::from(to_half_slowly(v, 5, 10)) };
    let to_b = move |v: f64| if v.is_nan() { nan } else { u64::from(to_half_slowly(v, 8, 7)) };
    macro_rules! both {
        ($name:expr, $k1:expr, $k2:expr, $v:expr, $to:expr) => {{
            let (v, to) = ($v, $to);
            rows.push(row(&format!("add.{} %d, %a, %b", $name), $k1, move |x, y, _| {
                to(zero_sum(sum_to_odd(v(x), v(y)), v(x), v(y), "rn"))
            }));
            rows.push(row(&format!("sub.{} %d, %a, %b", $name), $k1, move |x, y, _| {
                to(zero_sum(sum_to_odd(v(x), -v(y)), v(x), -v(y), "rn"))
            }));
            rows.push(row(&format!("mul.{} %d, %a, %b", $name), $k1, move |x, y, _| to(v(x) * v(y))));
            rows.push(row(&format!("fma.rn.{} %d, %a, %b, %c", $name), $k2, move |x, y, z| {
                to(zero_sum(sum_to_odd(v(x) * v(y), v(z)), v(x) * v(y), v(z), "rn"))
            }));
            rows.push(row(&format!("min.{} %d, %a, %b", $name), $k1, move |x, y, _| {
                if v(x).is_nan() && v(y).is_nan() {
                    nan
                } else if v(x).is_nan() {
                    y
                } else if v(y).is_nan() {
                    x
                } else if v(x).total_cmp(&v(y)).is_lt() {
                    x
                } else {
                    y
                }
            }));
            rows.push(row(&format!("max.NaN.{} %d, %a, %b", $name), $k1, move |x, y, _| {
                if v(x).is_nan() || v(y).is_nan() {
                    nan
                } else if v(x).total_cmp(&v(y)).is_gt() {
                    x
                } else {
                    y
                }
            }));
        }};
    }
    both!("f16", "ggg", "gggg", g, to_g);
    both!("bf16", "bbb", "bbbb", b, to_b);
    let two =
        |one: fn(u64, u64) -> u64| move |x: u64, y: u64| one(x & 0xffff, y & 0xffff) | one(x >> 16, y >> 16) << 16;
    let add_g = two(|x, y| {
        let v = f16::from_bits(x as u16).to_f64() + f16::from_bits(y as u16).to_f64();
        if v.is_nan() { 0x7fff } else { u64::from(f16::from_f64(v).to_bits()) }
    });
    rows.push(row("add.f16x2 %d, %a, %b", "xxx", move |x, y, _| add_g(x, y)));
    let mul_b = two(|x, y| {
        let v = bf16::from_bits(x as u16).to_f64() * bf16::from_bits(y as u16).to_f64();
        if v.is_nan() { 0x7fff } else { u64::from(bf16::from_f64(v).to_bits()) }
    });
    rows.push(row("mul.bf16x2 %d, %a, %b", "yyy", move |x, y, _| mul_b(x, y)));
    rows.push(row("neg.f16x2 %d, %a", "xx", |a, _, _| a ^ 0x8000_8000));
    rows.push(row("abs.bf16 %d, %a", "bb", |a, _, _| a & 0x7fff));
    check(rows, true, |row, input, got, want| {
        bits(row, input, got, want)
            || (row.ptx.starts_with("abs") || row.ptx.starts_with("neg"))
                && got & 0x7fff > 0x7c00
                && want & 0x7fff > 0x7c00
    });
}

/// A double to a format of 16 bits: the nearest of all its values, the even one of two.
fn to_half_slowly(v: f64, exp: u32, man: u32) -> u16 {
    let bias = (1 << (exp - 1)) - 1;
    let value = |code: u16| -> f64 {
        let (e, m) = (i32::from(code >> man), f64::from(code & ((1 << man) - 1)));
        let one = f64::from(1u32 << man);
        if e == 0 { m / one * 2f64.powi(1 - bias) } else { (1.0 + m / one) * 2f64.powi(e - bias) }
    };
    let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
    let x = v.abs();
    let inf = ((1u16 << exp) - 1) << man;
    // the largest code whose value is not above x; beyond the last finite one the next step counts as a value
    let (mut low, mut high) = (0u16, inf);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if value(middle) <= x { low = middle } else { high = middle - 1 }
    }
    if low >= inf {
        return sign | inf;
    }
    let (down, up) = (x - value(low), value(low + 1) - x);
    sign | if down < up || (down == up && low & 1 == 0) { low } else { low + 1 }
}

#[test]
fn conversions() {
    let mut rows = Vec::new();
    type Read = fn(u64) -> i128;
    let ints: [(&str, char, Read, i128, i128); 8] = [
        ("u8", 'h', |v| i128::from(v as u8), 0, 255),
        ("s8", 'h', |v| i128::from(v as i8), -128, 127),
        ("u16", 'h', u16_, 0, 0xffff),
        ("s16", 'h', s16, -0x8000, 0x7fff),
        ("u32", 'r', u32_, 0, 0xffff_ffff),
        ("s32", 'r', s32, -(1 << 31), (1 << 31) - 1),
        ("u64", 'l', u64_, 0, (1 << 64) - 1),
        ("s64", 'l', s64, -(1 << 63), (1 << 63) - 1),
    ];
    fn kinds(a: char, b: char) -> Kinds {
        Box::leak(format!("{a}{b}").into_boxed_str())
    }
    for (t, k, read, low, high) in ints {
        for (u, l, other, least, most) in ints {
            // from u to t
            rows.push(row(&format!("cvt.{t}.{u} %d, %a"), kinds(k, l), move |a, _, _| read(other(a) as u64) as u64));
            // ptxas refuses what cannot saturate
            if least < low || most > high {
                rows.push(row(&format!("cvt.sat.{t}.{u} %d, %a"), kinds(k, l), move |a, _, _| {
                    other(a).clamp(low, high) as u64
                }));
            }
        }
        for (mode, round) in [
            ("rni", f64::round_ties_even as fn(f64) -> f64),
            ("rzi", f64::trunc),
            ("rmi", f64::floor),
            ("rpi", f64::ceil),
        ] {
            let size = high - low + 1;
            let clamp = move |v: f64, double: bool| -> u64 {
                if v.is_nan() {
                    return if double || size == 1 << 64 { (size / 2) as u64 } else { 0 };
                }
                (round(v) as i128).clamp(low, high) as u64
            };
            rows.push(row(&format!("cvt.{mode}.{t}.f32 %d, %a"), kinds(k, 'f'), move |a, _, _| {
                clamp(f64::from(f(a)), false)
            }));
            rows.push(row(&format!("cvt.{mode}.ftz.{t}.f32 %d, %a"), kinds(k, 'f'), move |a, _, _| {
                clamp(f64::from(f(flush(a))), false)
            }));
            rows.push(row(&format!("cvt.{mode}.{t}.f64 %d, %a"), kinds(k, 'd'), move |a, _, _| clamp(d(a), true)));
            rows.push(row(&format!("cvt.{mode}.{t}.f16 %d, %a"), kinds(k, 'g'), move |a, _, _| {
                clamp(f16::from_bits(a as u16).to_f64(), false)
            }));
        }
        for mode in ["rn", "rz", "rm", "rp"] {
            // an integer as two doubles whose sum is exact
            let parts = move |a: u64| {
                let v = read(a);
                let high = (v >> 32) << 32;
                (high as f64, (v - high) as f64)
            };
            rows.push(row(&format!("cvt.{mode}.f32.{t} %d, %a"), kinds('f', k), move |a, _, _| {
                let (x, y) = parts(a);
                single(to_single(sum_to_odd(x, y), mode))
            }));
            rows.push(row(&format!("cvt.{mode}.f64.{t} %d, %a"), kinds('d', k), move |a, _, _| {
                let (x, y) = parts(a);
                let s = x + y;
                let e = y - (s - x);
                let s = match mode {
                    "rz" if e != 0.0 && (e < 0.0) == (s > 0.0) => {
                        if s > 0.0 {
                            s.next_down()
                        } else {
                            s.next_up()
                        }
                    }
                    "rm" if e < 0.0 => s.next_down(),
                    "rp" if e > 0.0 => s.next_up(),
                    _ => s,
                };
                s.to_bits()
            }));
        }
        rows.push(row(&format!("cvt.rn.f16.{t} %d, %a"), kinds('g', k), move |a, _, _| {
            u64::from(to_half_slowly(sum_to_odd((read(a) >> 32 << 32) as f64, (read(a) & 0xffff_ffff) as f64), 5, 10))
        }));
    }
    for mode in ["rn", "rz", "rm", "rp"] {
        rows.push(row(&format!("cvt.{mode}.f32.f64 %d, %a"), "fd", move |a, _, _| single(to_single(d(a), mode))));
        rows.push(row(&format!("cvt.{mode}.ftz.f32.f64 %d, %a"), "fd", move |a, _, _| {
            flush(single(to_single(d(a), mode)))
        }));
    }
    rows.push(row("cvt.f64.f32 %d, %a", "df", |a, _, _| f64::from(f(a)).to_bits()));
    rows.push(row("cvt.rni.f32.f32 %d, %a", "ff", |a, _, _| single(f(a).round_ties_even())));
    rows.push(row("cvt.rmi.ftz.f32.f32 %d, %a", "ff", |a, _, _| single(f(flush(a)).floor())));
    rows.push(row("cvt.rpi.f64.f64 %d, %a", "dd", |a, _, _| d(a).ceil().to_bits()));
    rows.push(row("cvt.sat.f32.f32 %d, %a", "ff", |a, _, _| single(if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 })));
    let g = |v: f32| if v.is_nan() { 0x7fff } else { u64::from(to_half_slowly(v.into(), 5, 10)) };
    let b = |v: f32| if v.is_nan() { 0x7fff } else { u64::from(to_half_slowly(v.into(), 8, 7)) };
    // towards zero: the nearest, one less where that is above
    let cut = |v: f32, near: u64, back: fn(u16) -> f64| {
        if v.is_nan() || v.is_infinite() || back(near as u16).abs() <= f64::from(v.abs()) { near } else { near - 1 }
    };
    let back_g = |c: u16| if c & 0x7fff == 0x7c00 { f64::INFINITY } else { f16::from_bits(c).to_f64() };
    let back_b = |c: u16| if c & 0x7fff == 0x7f80 { f64::INFINITY } else { bf16::from_bits(c).to_f64() };
    rows.push(row("cvt.rn.f16.f32 %d, %a", "gf", move |a, _, _| g(f(a))));
    rows.push(row("cvt.rz.f16.f32 %d, %a", "gf", move |a, _, _| cut(f(a), g(f(a)), back_g)));
    rows.push(row("cvt.rn.bf16.f32 %d, %a", "bf", move |a, _, _| b(f(a))));
    rows.push(row("cvt.rz.bf16.f32 %d, %a", "bf", move |a, _, _| cut(f(a), b(f(a)), back_b)));
    rows.push(row("cvt.rn.relu.bf16.f32 %d, %a", "bf", move |a, _, _| {
        if f(a).is_nan() {
            0x7fff
        } else if f(a) < 0.0 || a >> 31 != 0 {
            0
        } else {
            b(f(a))
        }
    }));
    rows.push(row("cvt.rn.f16x2.f32 %d, %a, %b", "xff", move |x, y, _| g(f(x)) << 16 | g(f(y))));
    rows.push(row("cvt.rn.bf16x2.f32 %d, %a, %b", "yff", move |x, y, _| b(f(x)) << 16 | b(f(y))));
    rows.push(row("cvt.rz.bf16x2.f32 %d, %a, %b", "yff", move |x, y, _| {
        cut(f(x), b(f(x)), back_b) << 16 | cut(f(y), b(f(y)), back_b)
    }));
    rows.push(row("cvt.f32.f16 %d, %a", "fg", |a, _, _| single(f16::from_bits(a as u16).to_f32())));
    rows.push(row("cvt.f32.bf16 %d, %a", "fb", |a, _, _| a << 16));
    rows.push(row("cvt.f64.f16 %d, %a", "dg", |a, _, _| f16::from_bits(a as u16).to_f64().to_bits()));
    rows.push(row("cvt.rn.f16.f64 %d, %a", "gd", move |a, _, _| {
        if d(a).is_nan() { 0x7fff } else { u64::from(to_half_slowly(d(a), 5, 10)) }
    }));
    rows.push(row("cvt.rna.tf32.f32 %d, %a", "ff", |a, _, _| {
        if f(a).is_nan() {
            NAN
        } else if f(a).is_infinite() {
            a
        } else {
            (a + 0x1000) & !0x1fff
        }
    }));
    // 8 bits: the nearest of all finite values
    fn fp8(v: f32, exp: u32, man: u32, most: u8) -> u64 {
        if v.is_nan() {
            return 0x7f;
        }
        let code = u64::from(to_half_slowly(v.abs().into(), exp + 1, man)) as i64;
        // the wider exponent has its own bias: values by search instead
        let _ = code;
        let bias = (1 << (exp - 1)) - 1;
        let value = |c: u8| {
            let (e, m) = (i32::from(c >> man), f64::from(c & ((1 << man) - 1)) / f64::from(1u32 << man));
            if e == 0 { m * 2f64.powi(1 - bias) } else { (1.0 + m) * 2f64.powi(e - bias) }
        };
        let x = f64::from(v.abs());
        let best = (0..=most).min_by(|a, b| {
            let (p, q) = ((value(*a) - x).abs(), (value(*b) - x).abs());
            p.total_cmp(&q).then((a & 1).cmp(&(b & 1)))
        });
        let code = if x >= value(most) { most } else { best.unwrap() };
        u64::from(code) | if v.is_sign_negative() { 0x80 } else { 0 }
    }
    let e4 = |v: f32| fp8(v, 4, 3, 0x7e);
    let e5 = |v: f32| fp8(v, 5, 2, 0x7b);
    rows.push(row("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b", "hff", move |x, y, _| e4(f(x)) << 8 | e4(f(y))));
    rows.push(row("cvt.rn.satfinite.e5m2x2.f32 %d, %a, %b", "hff", move |x, y, _| e5(f(x)) << 8 | e5(f(y))));
    let h = |v: u64| f16::from_bits(v as u16).to_f32();
    rows.push(row("cvt.rn.satfinite.e4m3x2.f16x2 %d, %a", "hx", move |x, _, _| e4(h(x >> 16)) << 8 | e4(h(x))));
    rows.push(row("cvt.rn.f16x2.e4m3x2 %d, %a", "xh", |a, _, _| {
        let one = |c: u64| {
            let (s, e, m) = ((c & 0x80) << 8, (c >> 3 & 15) as i32, (c & 7) as f64);
            if c & 0x7f == 0x7f {
                return 0x7fff;
            }
            let v = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) };
            s | u64::from(f16::from_f64(v).to_bits())
        };
        one(a >> 8) << 16 | one(a & 255)
    }));
    rows.push(row("cvt.rn.f16x2.e5m2x2 %d, %a", "xh", |a, _, _| {
        let one = |c: u64| if c & 0x7f > 0x7c { 0x7fff } else { c << 8 };
        one(a >> 8 & 255) << 16 | one(a & 255)
    }));
    rows.push(row("cvt.pack.sat.u16.s32 %d, %a, %b", "rrr", |a, b, _| {
        (s32(a).clamp(0, 0xffff) << 16 | s32(b).clamp(0, 0xffff)) as u64
    }));
    rows.push(row("cvt.pack.sat.s8.s32.b32 %d, %a, %b, %c", "rrrr", |a, b, c| {
        c << 16 | (s32(a).clamp(-128, 127) as u8 as u64) << 8 | s32(b).clamp(-128, 127) as u8 as u64
    }));
    check(rows, true, |row, input, got, want| {
        // a signed result in a register of 16 bits is extended to it
        let narrow = row.ptx.contains(".s8.") && row.kinds.starts_with('h') && !row.ptx.contains("x2");
        if narrow {
            return got as u16 == want as u8 as i8 as i16 as u16;
        }
        // whether a bf16 NaN keeps its payload is open
        bits(row, input, got, want) || row.kinds == "fb" && f(got).is_nan() && f(want).is_nan()
    });
}

/// Approximations: PTX gives the largest error.
#[test]
fn approximations() {
    struct Bound {
        ptx: &'static str,
        exact: fn(f64) -> f64,
        /// Largest error, relative and absolute: either suffices.
        relative: f64,
        absolute: f64,
        range: (f64, f64),
    }
    let p = |n: f64| 2f64.powf(n);
    let all = (f64::NEG_INFINITY, f64::INFINITY);
    let bounds = [
        Bound { ptx: "ex2.approx.f32", exact: f64::exp2, relative: p(-22.0), absolute: 0.0, range: (-126.0, 127.9) },
        Bound {
            ptx: "ex2.approx.ftz.f32",
            exact: f64::exp2,
            relative: p(-22.0),
            absolute: 0.0,
            range: (-126.0, 127.9),
        },
        Bound { ptx: "lg2.approx.f32", exact: f64::log2, relative: p(-22.0), absolute: p(-22.0), range: (1e-37, 1e38) },
        Bound { ptx: "rcp.approx.f32", exact: |x| 1.0 / x, relative: p(-23.0), absolute: p(-149.0), range: all },
        Bound {
            ptx: "rsqrt.approx.f32",
            exact: |x| 1.0 / x.sqrt(),
            relative: p(-22.9),
            absolute: 0.0,
            range: (1e-37, 1e38),
        },
        Bound { ptx: "sqrt.approx.f32", exact: f64::sqrt, relative: p(-23.0), absolute: p(-149.0), range: (0.0, 1e38) },
        Bound { ptx: "sin.approx.f32", exact: f64::sin, relative: 0.0, absolute: p(-20.5), range: (-3.15, 3.15) },
        Bound { ptx: "cos.approx.f32", exact: f64::cos, relative: 0.0, absolute: p(-20.5), range: (-3.15, 3.15) },
        Bound { ptx: "tanh.approx.f32", exact: f64::tanh, relative: p(-11.0), absolute: 0.0, range: all },
    ];
    let rows = bounds.iter().map(|b| {
        let exact = b.exact;
        row(&format!("{} %d, %a", b.ptx), "ff", move |a, _, _| single(exact(f64::from(f(a))) as f32))
    });
    let limits: Vec<(String, f64, f64, (f64, f64), fn(f64) -> f64)> =
        bounds.iter().map(|b| (format!("{} %d, %a", b.ptx), b.relative, b.absolute, b.range, b.exact)).collect();
    check(rows.collect(), false, move |row, input, got, want| {
        let (_, relative, absolute, range, exact) = limits.iter().find(|l| l.0 == row.ptx).unwrap();
        let x = f64::from(f(input[0]));
        if !(range.0..=range.1).contains(&x) || x.abs() < 1e-37 {
            // infinities, zeros and NaN are exact, where no error is documented the sign is
            return f(got).is_nan() == f(want).is_nan() || x.abs() < 1e-37;
        }
        let (v, w) = (exact(x), f64::from(f(got)));
        if v.abs() > f64::from(f32::MAX) || w.is_infinite() {
            return got == want;
        }
        let flushed = row.ptx.contains("ftz") && v.abs() < f64::from(f32::MIN_POSITIVE);
        (v - w).abs() <= (relative * v.abs()).max(*absolute) || flushed || v.abs() < f64::from(f32::MIN_POSITIVE) * 2.0
    });
}
