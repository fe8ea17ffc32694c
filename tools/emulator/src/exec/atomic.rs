//! `atom`, `red`, and the fences that order what stands around them.

use super::float::{self, BF16, F16, Round, bf16_to_f32, canonical, f16_to_f32};
use super::lane::{get, put};
use super::machine::{Cx, Flow, Op};
use super::memory::addresses;
use super::operand::{LANES, NONE, Touch};
use super::race;
use super::reach::{lanes_of, reach};
use crate::ptx::ast::{Space, Ty};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

/// What an atomic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atom {
    And,
    Or,
    Xor,
    Cas,
    Exch,
    Add,
    Inc,
    Dec,
    Min,
    Max,
}

const ATOMS: [Atom; 10] =
    [Atom::And, Atom::Or, Atom::Xor, Atom::Cas, Atom::Exch, Atom::Add, Atom::Inc, Atom::Dec, Atom::Min, Atom::Max];

const ATOM_TYPES: [Ty; 14] = [
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U32,
    Ty::U64,
    Ty::S32,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::F16,
    Ty::Bf16,
    Ty::F16x2,
    Ty::Bf16x2,
    Ty::B128,
];

/// What an atomic does, from its constant.
fn decode(imm: u64) -> (Atom, Ty) {
    (ATOMS[(imm & 15) as usize], ATOM_TYPES[(imm >> 4 & 15) as usize])
}

/// The constant that says what an atomic does, or `None` if PTX has no such combination.
pub(crate) fn encode(atom: Atom, ty: Ty) -> Option<u64> {
    let a = ATOMS.iter().position(|x| *x == atom)?;
    let t = ATOM_TYPES.iter().position(|x| *x == ty)?;
    Some(a as u64 | (t as u64) << 4)
}

fn apply(atom: Atom, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let f = |x: u64| f32::from_bits(x as u32);
    let half2 = |op: &dyn Fn(u64, u64) -> u64| {
        (0..2).fold(0, |all, i| all | op(old >> (16 * i) & 0xffff, b >> (16 * i) & 0xffff) << (16 * i))
    };
    let min16 = |format, max: bool| {
        move |x: u64, y: u64| {
            let wide = |v: u64| if format == F16 { f16_to_f32(v as u16) } else { bf16_to_f32(v as u16) };
            let (p, q) = (wide(x), wide(y));
            match () {
                () if p.is_nan() => y,
                () if q.is_nan() => x,
                () => {
                    if (p.total_cmp(&q).is_lt()) != max {
                        x
                    } else {
                        y
                    }
                }
            }
        }
    };
    match (atom, ty) {
        (Atom::And, _) => old & b,
        (Atom::Or, _) => old | b,
        (Atom::Xor, _) => old ^ b,
        (Atom::Exch, _) => b,
        (Atom::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Atom::Add, Ty::F32) => u64::from(canonical(f(old) + f(b)).to_bits()),
        (Atom::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Atom::Add, Ty::F16) => float::add(old, b, F16, Round::Near),
        (Atom::Add, Ty::Bf16) => float::add(old, b, BF16, Round::Near),
        (Atom::Add, Ty::F16x2) => half2(&|x, y| float::add(x, y, F16, Round::Near)),
        (Atom::Add, Ty::Bf16x2) => half2(&|x, y| float::add(x, y, BF16, Round::Near)),
        (Atom::Min, Ty::F16) => min16(F16, false)(old, b),
        (Atom::Max, Ty::F16) => min16(F16, true)(old, b),
        (Atom::Min, Ty::Bf16) => min16(BF16, false)(old, b),
        (Atom::Max, Ty::Bf16) => min16(BF16, true)(old, b),
        (Atom::Min, Ty::F16x2) => half2(&min16(F16, false)),
        (Atom::Max, Ty::F16x2) => half2(&min16(F16, true)),
        (Atom::Min, Ty::Bf16x2) => half2(&min16(BF16, false)),
        (Atom::Max, Ty::Bf16x2) => half2(&min16(BF16, true)),
        (Atom::Add, Ty::U32 | Ty::S32) => u64::from((old as u32).wrapping_add(b as u32)),
        (Atom::Add, _) => old.wrapping_add(b),
        (Atom::Inc, _) => {
            if old as u32 >= b as u32 {
                0
            } else {
                old + 1
            }
        }
        (Atom::Dec, _) => {
            if old as u32 == 0 || old as u32 > b as u32 {
                b
            } else {
                old - 1
            }
        }
        (Atom::Min, Ty::S32) => u64::from((old as i32).min(b as i32) as u32),
        (Atom::Max, Ty::S32) => u64::from((old as i32).max(b as i32) as u32),
        (Atom::Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (Atom::Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (Atom::Min, _) => old.min(b),
        (Atom::Max, _) => old.max(b),
    }
}

/// `atom` and `red`: a address, b and c operands, d the old value or [`NONE`].
pub(crate) unsafe fn atom(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    // sums of singles in global memory have no subnormals, in shared memory they have (PTX ISA, `atom`)
    let windows = addr;
    let global = |l: usize| match access.space {
        Space::Generic => windows[l] >> 32 > 4,
        space => space == Space::Global,
    };
    if !reach(cx, access, &mut addr, mask, Touch::Atomic) {
        return Flow::Fault;
    }
    // the code stands where a load has its signedness and slots
    let (what, ty) = decode(u64::from(access.slots[0]));
    // SAFETY: lowering gave registers of the access's size; `reach` made aligned pointers.
    unsafe {
        let read = |cx: &Cx, at: u32| -> [u64; LANES] {
            if at == NONE {
                return [0; LANES];
            }
            match access.size {
                2 => get::<u16>(cx, at).map(u64::from),
                4 => get::<u32>(cx, at).map(u64::from),
                _ => get::<u64>(cx, at),
            }
        };
        let mut old = [0u64; LANES];
        let count = access.count as usize;
        for v in 0..count {
            // vectors: element registers stand in the lists
            let (b_at, d_at) = if count == 1 {
                (op.b, op.d)
            } else {
                let list = &code.lists[op.c as usize];
                (list[v], if op.d == NONE { NONE } else { list[count + v] })
            };
            let b = read(cx, b_at);
            let c = if count == 1 { read(cx, op.c) } else { [0; LANES] };
            for l in lanes_of(mask) {
                let at = addr[l] as usize + v * access.size as usize;
                let flushes = (what, ty) == (Atom::Add, Ty::F32) && global(l);
                let flush = |x: u64| if flushes && x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x };
                let f = |x: u64| flush(apply(what, ty, flush(x), flush(b[l]), c[l]));
                old[l] = match access.size {
                    2 => u64::from(
                        (*(at as *const AtomicU16))
                            .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u16))
                            .unwrap_or_default(),
                    ),
                    4 => u64::from(
                        (*(at as *const AtomicU32))
                            .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u32))
                            .unwrap_or_default(),
                    ),
                    _ => (*(at as *const AtomicU64)).fetch_update(SeqCst, SeqCst, |x| Some(f(x))).unwrap_or_default(),
                };
            }
            if d_at != NONE {
                match access.size {
                    2 => put(cx, d_at, &old.map(|x| x as u16), mask),
                    4 => put(cx, d_at, &old.map(|x| x as u32), mask),
                    _ => put(cx, d_at, &old, mask),
                }
            }
        }
    }
    race::found(cx, &addr, mask, access);
    Flow::Next
}

/// `fence` and `membar`: earlier writes are ordered before later atomics, and earlier atomics before later reads; for the
/// device where `imm` is 1, else for the block.
pub(crate) unsafe fn fence(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    std::sync::atomic::fence(SeqCst);
    if cx.grid.strict.races {
        race::fence(cx, mask, op.imm != 0);
    }
    Flow::Next
}
