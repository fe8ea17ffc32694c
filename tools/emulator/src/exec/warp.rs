//! Exchanges between the lanes of a warp: shuffles, votes, matches, reductions.

use super::barrier::together;
use super::lane::{get, get_pred, put, put_pred};
use super::machine::{Cx, Flow, Op};
use super::operand::{LANES, NONE};
use crate::fault::FaultKind;

/// Reads the member mask of each lane; all members must be here.
fn members(cx: &mut Cx, register: u32, mask: u32) -> Result<[u32; LANES], Flow> {
    // SAFETY: lowering gave a 32-bit register.
    let wanted = unsafe { get::<u32>(cx, register) };
    let mut needed = 0;
    for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        if wanted[lane] >> lane & 1 == 0 {
            let what = format!("lane {lane} is not in its own member mask {:#010x}", wanted[lane]);
            return Err(cx.fail(FaultKind::Lane, 1 << lane, &what));
        }
        needed |= wanted[lane];
    }
    together(cx, mask, needed)?;
    Ok(wanted)
}

/// The ways of `shfl`.
pub(crate) const UP: u64 = 0;
/// To lower lanes.
pub(crate) const DOWN: u64 = 1;
/// Butterfly.
pub(crate) const XOR: u64 = 2;
/// Any lane.
pub(crate) const IDX: u64 = 3;

/// `shfl.sync`: d = a of another lane, e (predicate) whether that lane is in range.
/// Operands: a value, b lane, c clamp and segment, imm: way and, above bit 32, the register of the member mask.
pub(crate) unsafe fn shfl(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let members = match members(cx, (op.imm >> 32) as u32, mask) {
        Ok(members) => members,
        Err(flow) => return flow,
    };
    // SAFETY: lowering gave 32-bit registers and a predicate.
    unsafe {
        let (a, b, c) = (get::<u32>(cx, op.a), get::<u32>(cx, op.b), get::<u32>(cx, op.c));
        let mut d = a;
        let mut valid = 0;
        for lane in (0..LANES as u32).filter(|l| mask >> l & 1 != 0) {
            let i = lane as usize;
            let (by, clamp, segment) = (b[i] & 0x1f, c[i] & 0x1f, c[i] >> 8 & 0x1f);
            let highest = (lane & segment) | (clamp & !segment);
            let lowest = lane & segment;
            let (from, ok) = match op.imm & 3 {
                UP => (lane.wrapping_sub(by), lane as i32 - by as i32 >= highest as i32),
                DOWN => (lane + by, lane + by <= highest),
                XOR => (lane ^ by, lane ^ by <= highest),
                _ => (lowest | (by & !segment), lowest | (by & !segment) <= highest),
            };
            let from = if ok { from } else { lane };
            valid |= u32::from(ok) << lane;
            if (mask & members[i]) >> from & 1 == 0 {
                let what = format!(
                    "lane {lane} reads lane {from}, which {}",
                    if mask >> from & 1 == 0 { "does not take part" } else { "is not in the member mask" }
                );
                return cx.fail(FaultKind::Lane, 1 << lane, &what);
            }
            d[i] = a[from as usize];
        }
        put(cx, op.d, &d, mask);
        if op.e != NONE {
            put_pred(cx, op.e, valid, mask);
        }
    }
    Flow::Next
}

/// The ways of `vote`.
pub(crate) const ALL: u64 = 0;
/// Any lane.
pub(crate) const ANY: u64 = 1;
/// All the same.
pub(crate) const UNI: u64 = 2;
/// One bit per lane.
pub(crate) const BALLOT: u64 = 3;
/// Set in `imm` where the predicate is negated.
pub(crate) const FLIP: u64 = 4;

/// `vote.sync`: a predicate, b the register of the member mask.
pub(crate) unsafe fn vote(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let members = match members(cx, op.b, mask) {
        Ok(members) => members,
        Err(flow) => return flow,
    };
    // SAFETY: lowering gave a predicate and a result of the way's kind.
    unsafe {
        let p = get_pred(cx, op.a) ^ if op.imm & FLIP != 0 { u32::MAX } else { 0 };
        let way = op.imm & 3;
        let value = |lane: usize| {
            let here = members[lane] & mask;
            match way {
                ALL => u32::from(p & here == here),
                ANY => u32::from(p & here != 0),
                UNI => u32::from(p & here == here || p & here == 0),
                _ => p & here,
            }
        };
        if way == BALLOT {
            let d: [u32; LANES] = std::array::from_fn(value);
            put(cx, op.d, &d, mask);
        } else {
            let bits = (0..LANES).filter(|l| mask >> l & 1 != 0).fold(0, |m, l| m | value(l) << l);
            put_pred(cx, op.d, bits, mask);
        }
    }
    Flow::Next
}

/// `match.any.sync` and `match.all.sync` of 32 and 64 bits: bit 0 of imm: all, bit 1: 64 bits.
pub(crate) unsafe fn matches(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let members = match members(cx, op.b, mask) {
        Ok(members) => members,
        Err(flow) => return flow,
    };
    // SAFETY: lowering gave registers of these kinds.
    unsafe {
        let a: [u64; LANES] = if op.imm & 2 != 0 { get::<u64>(cx, op.a) } else { get::<u32>(cx, op.a).map(u64::from) };
        let mut d = [0u32; LANES];
        let mut same = 0;
        for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let here = members[lane] & mask;
            let equal = (0..LANES).filter(|l| here >> l & 1 != 0 && a[*l] == a[lane]).fold(0u32, |m, l| m | 1 << l);
            if op.imm & 1 == 0 {
                d[lane] = equal;
            } else if equal == here {
                d[lane] = here;
                same |= 1 << lane;
            }
        }
        put(cx, op.d, &d, mask);
        if op.e != NONE {
            put_pred(cx, op.e, same, mask);
        }
    }
    Flow::Next
}

/// The ways of `redux`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
    MinF,
    MaxF,
    MinFNan,
    MaxFNan,
    MinFAbs,
    MaxFAbs,
    MinFAbsNan,
    MaxFAbsNan,
}

/// `redux.sync`
pub(crate) unsafe fn redux(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let members = match members(cx, op.b, mask) {
        Ok(members) => members,
        Err(flow) => return flow,
    };
    // SAFETY: lowering gave 32-bit registers.
    unsafe {
        let a = get::<u32>(cx, op.a);
        let way = op.imm;
        let is = |w: Redux| way == w as u64;
        let fold = |x: u32, y: u32| -> u32 {
            if way >= Redux::MinF as u64 {
                let abs = way >= Redux::MinFAbs as u64;
                let get = |v: u32| f32::from_bits(if abs { v & 0x7fff_ffff } else { v });
                let (p, q) = (get(x), get(y));
                let nan = is(Redux::MinFNan) || is(Redux::MaxFNan) || is(Redux::MinFAbsNan) || is(Redux::MaxFAbsNan);
                if p.is_nan() || q.is_nan() {
                    if nan || (p.is_nan() && q.is_nan()) {
                        return super::float::NAN32;
                    }
                    return if p.is_nan() { q.to_bits() } else { p.to_bits() };
                }
                let least = is(Redux::MinF) || is(Redux::MinFNan) || is(Redux::MinFAbs) || is(Redux::MinFAbsNan);
                return if (p.total_cmp(&q).is_lt()) == least { p.to_bits() } else { q.to_bits() };
            }
            match () {
                () if is(Redux::Add) => x.wrapping_add(y),
                () if is(Redux::MinU) => x.min(y),
                () if is(Redux::MaxU) => x.max(y),
                () if is(Redux::MinS) => (x as i32).min(y as i32) as u32,
                () if is(Redux::MaxS) => (x as i32).max(y as i32) as u32,
                () if is(Redux::And) => x & y,
                () if is(Redux::Or) => x | y,
                () => x ^ y,
            }
        };
        let mut d = [0u32; LANES];
        for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let here = members[lane] & mask;
            let mut values = (0..LANES).filter(|l| here >> l & 1 != 0).map(|l| a[l]);
            let first = values.next().unwrap_or(0);
            d[lane] = values.fold(first, fold);
        }
        put(cx, op.d, &d, mask);
    }
    Flow::Next
}

/// `activemask`
pub(crate) unsafe fn activemask(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave a 32-bit register.
    unsafe { put(cx, op.d, &[mask; LANES], mask) };
    Flow::Next
}

/// `elect.sync`: the lowest member is elected; e gets true there alone, d its number.
pub(crate) unsafe fn elect(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let members = match members(cx, op.a, mask) {
        Ok(members) => members,
        Err(flow) => return flow,
    };
    // SAFETY: lowering gave a 32-bit register and a predicate.
    unsafe {
        let leader: [u32; LANES] = std::array::from_fn(|l| (members[l] & mask).trailing_zeros() & 31);
        let chosen = (0..LANES).fold(0, |m, l| m | u32::from(leader[l] as usize == l) << l);
        if op.d != NONE {
            put(cx, op.d, &leader, mask);
        }
        put_pred(cx, op.e, chosen, mask);
    }
    Flow::Next
}

/// `mov` from `%clock`, `%clock64`, `%globaltimer`: imm says which.
pub(crate) unsafe fn clock(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let value = match op.imm {
        0..=2 => {
            let fuel = cx.fuel;
            let warp = cx.warp();
            warp.ran.wrapping_mul(4).wrapping_add(u64::from(u32::MAX - fuel))
        }
        _ => crate::config::nanoseconds(),
    };
    // SAFETY: lowering gave a register of the width.
    unsafe {
        match op.imm {
            0 | 4 => put(cx, op.d, &[value as u32; LANES], mask),
            1 | 5 => put(cx, op.d, &[(value >> 32) as u32; LANES], mask),
            _ => put(cx, op.d, &[value; LANES], mask),
        }
    }
    Flow::Next
}
