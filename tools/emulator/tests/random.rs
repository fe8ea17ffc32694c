//! Random programs: straight arithmetic, branches and loops that differ from thread to thread, and shuffles where all
//! threads meet, run on the emulator and evaluated here thread by thread. The same seed makes the same program.

// launches are unsafe; here every kernel gets the buffers that it was written for
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use std::fmt::Write;
use support::Machine;

const THREADS: usize = 64;
const VARIABLES: usize = 6;

/// A generator with a fixed seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

/// Words, long words and singles of a thread.
#[derive(Clone, Default)]
struct State {
    r: [u32; VARIABLES],
    l: [u64; VARIABLES],
    f: [f32; VARIABLES],
}

/// An operation: its PTX with `$d $a $b $c` for numbers of variables, and what it does.
type Operation = (&'static str, fn(&mut State, [usize; 4]));

fn canonical(v: f32) -> f32 {
    if v.is_nan() { f32::from_bits(0x7fff_ffff) } else { v }
}

const OPERATIONS: [Operation; 24] = [
    ("add.u32 %r$d, %r$a, %r$b;", |s, [d, a, b, _]| s.r[d] = s.r[a].wrapping_add(s.r[b])),
    ("sub.s32 %r$d, %r$a, %r$b;", |s, [d, a, b, _]| s.r[d] = s.r[a].wrapping_sub(s.r[b])),
    ("mad.lo.u32 %r$d, %r$a, %r$b, %r$c;", |s, [d, a, b, c]| s.r[d] = s.r[a].wrapping_mul(s.r[b]).wrapping_add(s.r[c])),
    ("mul.hi.s32 %r$d, %r$a, %r$b;", |s, [d, a, b, _]| {
        s.r[d] = ((i64::from(s.r[a] as i32) * i64::from(s.r[b] as i32)) >> 32) as u32
    }),
    ("and.b32 %r$d, %r$a, %r$b;", |s, [d, a, b, _]| s.r[d] = s.r[a] & s.r[b]),
    ("xor.b32 %r$d, %r$a, 0x5bd1e995;", |s, [d, a, ..]| s.r[d] = s.r[a] ^ 0x5bd1_e995),
    ("shf.l.wrap.b32 %r$d, %r$a, %r$a, %r$b;", |s, [d, a, b, _]| s.r[d] = s.r[a].rotate_left(s.r[b] & 31)),
    ("shr.s32 %r$d, %r$a, 3;", |s, [d, a, ..]| s.r[d] = ((s.r[a] as i32) >> 3) as u32),
    ("min.s32 %r$d, %r$a, %r$b;", |s, [d, a, b, _]| s.r[d] = (s.r[a] as i32).min(s.r[b] as i32) as u32),
    ("popc.b32 %r$d, %r$a;", |s, [d, a, ..]| s.r[d] = s.r[a].count_ones()),
    ("mul.wide.u32 %l$d, %r$a, %r$b;", |s, [d, a, b, _]| s.l[d] = u64::from(s.r[a]) * u64::from(s.r[b])),
    ("mul.lo.u64 %l$d, %l$a, %l$b;", |s, [d, a, b, _]| s.l[d] = s.l[a].wrapping_mul(s.l[b])),
    ("mul.hi.u64 %l$d, %l$a, %l$b;", |s, [d, a, b, _]| {
        s.l[d] = ((u128::from(s.l[a]) * u128::from(s.l[b])) >> 64) as u64
    }),
    ("sub.u64 %l$d, %l$a, %l$b;", |s, [d, a, b, _]| s.l[d] = s.l[a].wrapping_sub(s.l[b])),
    ("shr.u64 %l$d, %l$a, 7;", |s, [d, a, ..]| s.l[d] = s.l[a] >> 7),
    ("cvt.u32.u64 %r$d, %l$a;", |s, [d, a, ..]| s.r[d] = s.l[a] as u32),
    ("{ .reg .b32 t; mov.b64 {t, %r$d}, %l$a; }", |s, [d, a, ..]| s.r[d] = (s.l[a] >> 32) as u32),
    ("mov.b64 %l$d, {%r$a, %r$b};", |s, [d, a, b, _]| s.l[d] = u64::from(s.r[a]) | u64::from(s.r[b]) << 32),
    ("cvt.rn.f32.s32 %f$d, %r$a;", |s, [d, a, ..]| s.f[d] = s.r[a] as i32 as f32),
    ("fma.rn.f32 %f$d, %f$a, %f$b, %f$c;", |s, [d, a, b, c]| s.f[d] = canonical(s.f[a].mul_add(s.f[b], s.f[c]))),
    ("mul.f32 %f$d, %f$a, 0f3A83126F;", |s, [d, a, ..]| s.f[d] = canonical(s.f[a] * f32::from_bits(0x3a83_126f))),
    ("sub.f32 %f$d, %f$a, %f$b;", |s, [d, a, b, _]| s.f[d] = canonical(s.f[a] - s.f[b])),
    ("div.rn.f32 %f$d, %f$a, %f$b;", |s, [d, a, b, _]| s.f[d] = canonical(s.f[a] / s.f[b])),
    ("cvt.rzi.s32.f32 %r$d, %f$a;", |s, [d, a, ..]| s.r[d] = s.f[a] as i32 as u32),
];

enum Statement {
    Do(usize, [usize; 4]),
    /// If a bit of a word is set.
    If(usize, u32, Vec<Statement>, Vec<Statement>),
    /// As often as the low three bits of a word say.
    Loop(usize, Vec<Statement>),
    /// Leave the innermost loop if a bit of a word is set.
    Break(usize, u32),
    /// Among all threads of a warp.
    Shuffle(usize, usize, u32),
}

fn body(random: &mut Random, depth: u32, inside: bool) -> Vec<Statement> {
    let n = 2 + random.below(6);
    (0..n)
        .map(|_| {
            let mut v = || random.below(VARIABLES as u64) as usize;
            let (places, bit_of) = ([v(), v(), v(), v()], v());
            match random.below(if depth == 0 { 6 } else { 10 }) {
                0 if depth == 3 => Statement::Shuffle(places[0], places[1], 1 + random.below(31) as u32),
                0 if inside => Statement::Break(bit_of, random.below(32) as u32),
                6 | 7 => {
                    let bit = random.below(32) as u32;
                    let yes = body(random, depth - 1, inside);
                    let no = if random.below(2) == 0 { Vec::new() } else { body(random, depth - 1, inside) };
                    Statement::If(bit_of, bit, yes, no)
                }
                8 | 9 => Statement::Loop(bit_of, body(random, depth - 1, true)),
                _ => Statement::Do(random.below(OPERATIONS.len() as u64) as usize, places),
            }
        })
        .collect()
}

/// Writes PTX; `end` is the label behind the innermost loop.
fn emit(list: &[Statement], out: &mut String, labels: &mut u32, end: u32) {
    for statement in list {
        let mut fresh = || {
            *labels += 1;
            *labels
        };
        match statement {
            Statement::Do(i, [d, a, b, c]) => {
                let text = OPERATIONS[*i].0.replace("$d", &d.to_string()).replace("$a", &a.to_string());
                writeln!(out, "{}", text.replace("$b", &b.to_string()).replace("$c", &c.to_string())).unwrap();
            }
            Statement::If(r, bit, yes, no) => {
                let (other, join) = (fresh(), fresh());
                writeln!(out, "and.b32 %t, %r{r}, {};\nsetp.eq.u32 %p, %t, 0;\n@%p bra L{other};", 1u32 << bit)
                    .unwrap();
                emit(yes, out, labels, end);
                writeln!(out, "bra L{join};\nL{other}:").unwrap();
                emit(no, out, labels, end);
                writeln!(out, "L{join}:").unwrap();
            }
            Statement::Loop(r, inner) => {
                let (head, exit) = (fresh(), fresh());
                writeln!(out, "and.b32 %n{exit}, %r{r}, 7;\nL{head}:\nsetp.eq.u32 %p, %n{exit}, 0;\n@%p bra L{exit};")
                    .unwrap();
                writeln!(out, "sub.u32 %n{exit}, %n{exit}, 1;").unwrap();
                emit(inner, out, labels, exit);
                writeln!(out, "bra L{head};\nL{exit}:").unwrap();
            }
            Statement::Break(r, bit) => {
                writeln!(out, "and.b32 %t, %r{r}, {};\nsetp.ne.u32 %p, %t, 0;\n@%p bra L{end};", 1u32 << bit).unwrap();
            }
            Statement::Shuffle(d, a, by) => {
                writeln!(out, "shfl.sync.bfly.b32 %r{d}, %r{a}, {by}, 31, 0xffffffff;").unwrap();
            }
        }
    }
}

/// Runs statements for one thread; `true`: the innermost loop is left.
fn evaluate(list: &[Statement], s: &mut State) -> bool {
    for statement in list {
        match statement {
            Statement::Do(i, places) => OPERATIONS[*i].1(s, *places),
            Statement::If(r, bit, yes, no) => {
                if evaluate(if s.r[*r] >> bit & 1 != 0 { yes } else { no }, s) {
                    return true;
                }
            }
            Statement::Loop(r, inner) => {
                for _ in 0..s.r[*r] & 7 {
                    if evaluate(inner, s) {
                        break;
                    }
                }
            }
            Statement::Break(r, bit) => {
                if s.r[*r] >> bit & 1 != 0 {
                    return true;
                }
            }
            Statement::Shuffle(..) => unreachable!("only at the top"),
        }
    }
    false
}

support::gpu_twins!(random_programs);

#[test]
fn random_programs() {
    let d = Machine::new();
    for seed in 0..60u64 {
        let program = body(&mut Random(seed), 3, false);
        let mut text = String::new();
        let mut labels = 0;
        emit(&program, &mut text, &mut labels, 0);
        let v = VARIABLES;
        let ptx = format!(
            ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %p;\n\
             .reg .b32 %r<{v}>, %t, %i, %n<{}>;\n.reg .b64 %l<{v}>, %a, %o;\n.reg .f32 %f<{v}>;\n\
             ld.param.u64 %a, [p];\nmov.u32 %i, %tid.x;\nmul.wide.u32 %o, %i, {};\nadd.u64 %a, %a, %o;\n{}{text}{}ret;\n}}\n",
            labels + 1,
            16 * v,
            (0..v).map(|i| move_all("ld.global", i, true)).collect::<String>(),
            (0..v).map(|i| move_all("st.global", i, false)).collect::<String>(),
        );
        let mut random = Random(seed ^ 0xabcd);
        let mut states: Vec<State> = (0..THREADS)
            .map(|_| State {
                r: std::array::from_fn(|_| random.below(1 << 32) as u32),
                l: std::array::from_fn(|_| random.below(u64::MAX)),
                f: std::array::from_fn(|_| random.below(1 << 20) as f32 / 1024.0 - 500.0),
            })
            .collect();
        let bytes = |states: &[State]| -> Vec<u8> {
            states
                .iter()
                .flat_map(|s| {
                    let r = s.r.iter().flat_map(|x| x.to_le_bytes());
                    let l = s.l.iter().flat_map(|x| x.to_le_bytes());
                    l.chain(r).chain(s.f.iter().flat_map(|x| x.to_le_bytes())).collect::<Vec<u8>>()
                })
                .collect()
        };
        let mut x = d.stream.clone_htod(&bytes(&states)).unwrap();
        let f = d.kernel(&ptx, "k");
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        unsafe { d.stream.launch_builder(&f).arg(&mut x).launch(config) }.unwrap();
        let got = d.read(&x);
        for statement in &program {
            if let Statement::Shuffle(to, from, by) = statement {
                let old: Vec<u32> = states.iter().map(|s| s.r[*from]).collect();
                for (t, s) in states.iter_mut().enumerate() {
                    s.r[*to] = old[t ^ *by as usize];
                }
            } else {
                for s in &mut states {
                    evaluate(std::slice::from_ref(statement), s);
                }
            }
        }
        let want = bytes(&states);
        let size = 16 * v;
        for t in 0..THREADS {
            let range = t * size..(t + 1) * size;
            assert!(got[range.clone()] == want[range], "seed {seed}, thread {t}\n{ptx}");
        }
    }
}

/// Loads or stores the i-th variable of each kind.
fn move_all(op: &str, i: usize, load: bool) -> String {
    let v = VARIABLES;
    [("b64", "l", 8 * i), ("b32", "r", 8 * v + 4 * i), ("f32", "f", 12 * v + 4 * i)]
        .iter()
        .map(|(ty, kind, at)| {
            if load {
                format!("{op}.{ty} %{kind}{i}, [%a+{at}];\n")
            } else {
                format!("{op}.{ty} [%a+{at}], %{kind}{i};\n")
            }
        })
        .collect()
}
