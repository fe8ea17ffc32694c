//! `cp.async`: copies from global to shared memory that land when they are waited for, and not before.

use super::lane::{get, get_pred};
use super::machine::{Cx, Flow, Op};
use super::operand::{Access, Kind, LANES, NONE, Order, Touch};
use super::race;
use super::reach::reach;
use super::state::Pending;
use crate::ptx::ast::Space;

fn access(space: Space, bytes: u8) -> Access {
    Access {
        space,
        size: bytes,
        count: 1,
        signed: false,
        wide: true,
        order: Order::Weak,
        narrow: false,
        slots: [NONE; 8],
        kind: Kind::W32,
    }
}

/// `cp.async [a + imm low], [b + imm high], size`: bytes in `d`, source size in the register `c`, e: predicate that
/// ignores the source; `c` and `e` may be missing. The destination has 32 bits where bit 31 of `d` says so.
pub(crate) unsafe fn start(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let bytes = (op.d & 0xff) as u8;
    let narrow = op.d >> 31 != 0;
    let (to_offset, from_offset) = (op.imm as u32 as i32 as i64 as u64, (op.imm >> 32) as u32 as i32 as i64 as u64);
    // SAFETY: lowering gave registers of these kinds; `reach` makes pointers to what was checked.
    unsafe {
        let to: [u64; LANES] = if narrow {
            get::<u32>(cx, op.a).map(|a| u64::from(a.wrapping_add(to_offset as u32)))
        } else {
            get::<u64>(cx, op.a).map(|a| a.wrapping_add(to_offset))
        };
        let from = get::<u64>(cx, op.b).map(|a| a.wrapping_add(from_offset));
        let take = if op.c == NONE { [u32::from(bytes); LANES] } else { get::<u32>(cx, op.c) };
        let ignored = if op.e == NONE { 0 } else { get_pred(cx, op.e) };
        let taken = |lane: usize| if ignored >> lane & 1 != 0 { 0 } else { take[lane].min(bytes.into()) as usize };
        // Whole copies are aligned to their size and are one access of the warp; parts are read byte by byte.
        let whole = (0..LANES).filter(|&l| mask >> l & 1 != 0 && taken(l) == bytes as usize).fold(0, |m, l| m | 1 << l);
        let mut sources = from;
        if whole != 0 && !reach(cx, &access(Space::Global, bytes), &mut sources, whole, Touch::Read) {
            return Flow::Fault;
        }
        for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let mut data = [0u8; 16];
            if whole >> lane & 1 != 0 {
                std::ptr::copy_nonoverlapping(sources[lane] as *const u8, data.as_mut_ptr(), bytes.into());
            } else {
                for (i, byte) in data.iter_mut().enumerate().take(taken(lane)) {
                    let mut addr = [from[lane] + i as u64; LANES];
                    if !reach(cx, &access(Space::Global, 1), &mut addr, 1 << lane, Touch::Read) {
                        return Flow::Fault;
                    }
                    *byte = *(addr[lane] as *const u8);
                }
            }
            let to = to[lane] as u32;
            let mut copy =
                Pending { lane: lane as u8, bytes, to, group: None, data, line: 0, from: from[lane], sources: [0; 8] };
            if cx.grid.strict.races {
                if !race::depart(cx, to, lane, &access(Space::Shared, bytes)) {
                    return Flow::Fault;
                }
                copy.line = cx.code.lines[cx.pc as usize];
                if whole >> lane & 1 != 0 {
                    copy.sources = race::sources(cx, copy.from, bytes);
                }
            }
            cx.warp().copies.pending.push(copy);
        }
    }
    Flow::Next
}

/// `cp.async.commit_group`
pub(crate) unsafe fn commit(cx: &mut Cx, _op: &Op, mask: u32) -> Flow {
    let copies = &mut cx.warp().copies;
    for p in copies.pending.iter_mut().filter(|p| p.group.is_none() && mask >> p.lane & 1 != 0) {
        p.group = Some(copies.committed[p.lane as usize]);
    }
    for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        copies.committed[lane] += 1;
    }
    Flow::Next
}

/// `cp.async.wait_group imm`, or `wait_all` where imm is all ones.
pub(crate) unsafe fn wait(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let all = op.imm == u64::MAX;
    let copies = &mut cx.warp().copies;
    let committed = copies.committed;
    let mut done = Vec::new();
    copies.pending.retain(|p| {
        let waited = mask >> p.lane & 1 != 0
            && (all || p.group.is_some_and(|g| u64::from(g) + op.imm < u64::from(committed[p.lane as usize])));
        if waited {
            done.push(*p);
        }
        !waited
    });
    for p in done {
        race::land(cx, p.to, p.bytes);
        if cx.grid.strict.races && p.sources != [0; 8] && !race::untouched(cx, &p) {
            return Flow::Fault;
        }
        let mut addr = [u64::from(p.to); LANES];
        let lane = p.lane as usize;
        if !reach(cx, &access(Space::Shared, p.bytes), &mut addr, 1 << lane, Touch::Write) {
            return Flow::Fault;
        }
        // SAFETY: `reach` made a pointer to so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(p.data.as_ptr(), addr[lane] as *mut u8, p.bytes as usize) };
    }
    Flow::Next
}
