//! Branches, calls, returns: operations that change what runs next.

use super::frame::{code_of, enter};
use super::lane::get;
use super::machine::{Cx, Flow, Op};
use super::operand::{FUNCTION_WINDOW, LANES};
use super::print;
use super::state::{Split, State};
use crate::fault::FaultKind;

/// Joins passed by one split while others are ready, before they get a turn (lanes that spin on one another).
const PATIENCE: u32 = 4096;

/// To another place, all lanes.
pub(crate) unsafe fn jump(cx: &mut Cx, op: &Op, _mask: u32) -> Flow {
    cx.pc = op.imm as u32;
    Flow::Jump
}

/// `bra`, guarded or not.
pub(crate) unsafe fn bra(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let target = op.imm as u32;
    if mask == cx.mask {
        cx.pc = target;
        return Flow::Jump;
    }
    cx.counters.divergent_branches += 1;
    let (rest, next) = (cx.mask & !mask, cx.pc + 1);
    let frame = cx.frame;
    let (now, later) = if target < next { ((target, mask), (next, rest)) } else { ((next, rest), (target, mask)) };
    cx.warp().push(Split { frame, pc: later.0, mask: later.1, state: State::Ready });
    (cx.pc, cx.mask) = now;
    Flow::Jump
}

/// `brx.idx`: a target per lane.
pub(crate) unsafe fn brx(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave a 32-bit register.
    let index = unsafe { get::<u32>(cx, op.a) };
    let code = cx.code;
    let table = &code.tables[op.imm as usize];
    let frame = cx.frame;
    let (rest, next) = (cx.mask & !mask, cx.pc + 1);
    if rest != 0 {
        cx.warp().push(Split { frame, pc: next, mask: rest, state: State::Ready });
    }
    let (mut left, mut ways) = (mask, u32::from(rest != 0));
    while left != 0 {
        let i = index[left.trailing_zeros() as usize];
        let same = (0..LANES).fold(0, |m, l| m | u32::from(index[l] == i) << l) & left;
        let Some(&target) = table.get(i as usize) else {
            return cx.fail(FaultKind::Target, same, &format!("branches to entry {i} of a table of {}", table.len()));
        };
        cx.warp().push(Split { frame, pc: target, mask: same, state: State::Ready });
        left &= !same;
        ways += 1;
    }
    cx.counters.divergent_branches += u64::from(ways > 1);
    Flow::Switch
}

/// The start of a block that several others lead to: splits that are here join, a lower one goes first.
pub(crate) unsafe fn join(cx: &mut Cx, _op: &Op, _mask: u32) -> Flow {
    if cx.warp().splits.is_empty() { Flow::Next } else { meet(cx) }
}

fn meet(cx: &mut Cx) -> Flow {
    let (frame, pc) = (cx.frame, cx.pc);
    let mut mask = cx.mask;
    let warp = cx.warp();
    warp.splits.retain(|s| {
        let here = s.frame == frame && s.pc == pc && s.state == State::Ready;
        if here {
            mask |= s.mask;
        }
        !here
    });
    let depth = warp.frames[frame as usize].depth;
    let mut next = None;
    if let Some(best) = warp.best() {
        let other = warp.splits[best];
        let deeper = warp.frames[other.frame as usize].depth > depth;
        warp.spin += 1;
        if warp.grace > 0 {
            warp.grace -= 1;
        } else if deeper || (other.frame == frame && other.pc < pc) {
            next = Some(best);
        } else if warp.spin > PATIENCE {
            // this split may wait for what the other one does
            warp.spin = 0;
            warp.grace = PATIENCE;
            next = Some(best);
        }
    }
    cx.mask = mask;
    match next {
        None => Flow::Next,
        Some(best) => {
            let warp = cx.warp();
            let other = warp.splits.swap_remove(best);
            // past the join, which would only bring it back here
            warp.push(Split { frame, pc, mask, state: State::Ready });
            cx.resume(other);
            Flow::Jump
        }
    }
}

/// `exit`, and `ret` of a kernel.
pub(crate) unsafe fn exit(cx: &mut Cx, _op: &Op, mask: u32) -> Flow {
    let rest = cx.mask & !mask;
    let warp = cx.warp();
    warp.live &= !mask;
    for frame in &mut warp.frames {
        frame.lanes &= !mask;
    }
    if rest == 0 {
        return Flow::Switch;
    }
    cx.mask = rest;
    Flow::Next
}

/// `ret` of a function: results to the caller, lanes back to it.
pub(crate) unsafe fn ret(cx: &mut Cx, _op: &Op, mask: u32) -> Flow {
    let current = cx.frame as usize;
    let frame = cx.warp().frames[current];
    let grid = cx.grid;
    let code = cx.code;
    let caller = &grid.program.codes[{
        let parent = &cx.warp().frames[frame.parent as usize];
        code_of(&grid.program, parent)
    }];
    let call = &caller.calls[frame.call as usize];
    let parent = cx.warp().frames[frame.parent as usize];
    let stack = grid.stack;
    let warp = cx.warp();
    for (&(from, size), &(to, room)) in code.results.iter().zip(&call.results) {
        let size = size.min(room) as usize;
        for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let from = lane * stack + (frame.local + from) as usize;
            let to = lane * stack + (parent.local + to) as usize;
            warp.local.copy_within(from..from + size, to);
        }
    }
    let here = cx.frame;
    let rest = cx.mask & !mask;
    let warp = cx.warp();
    warp.frames[here as usize].lanes &= !mask;
    warp.push(Split { frame: frame.parent, pc: frame.back, mask, state: State::Ready });
    if rest == 0 {
        return Flow::Switch;
    }
    cx.mask = rest;
    Flow::Next
}

/// `call`
pub(crate) unsafe fn call(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let call = &code.calls[op.imm as usize];
    if let Some(builtin) = call.builtin {
        return print::builtin(cx, builtin, call, mask);
    }
    let (frame, next) = (cx.frame, cx.pc + 1);
    let rest = cx.mask & !mask;
    if let Some(target) = call.target {
        if !enter(cx, target, op.imm as u32, mask, next) {
            return Flow::Fault;
        }
    } else {
        // SAFETY: lowering gave a 64-bit register.
        let address = unsafe { get::<u64>(cx, call.register) };
        let mut left = mask;
        while left != 0 {
            let to = address[left.trailing_zeros() as usize];
            let same = (0..LANES).fold(0, |m, l| m | u32::from(address[l] == to) << l) & left;
            let number = to.wrapping_sub(FUNCTION_WINDOW) / 16;
            let known = to >= FUNCTION_WINDOW && to % 16 == 0 && (number as usize) < cx.grid.program.codes.len();
            if !known || cx.grid.program.codes[number as usize].ops.is_empty() {
                return cx.fail(FaultKind::Target, same, &format!("calls {to:#x}, which is not a function"));
            }
            if !enter(cx, number as u32, op.imm as u32, same, next) {
                return Flow::Fault;
            }
            left &= !same;
        }
    }
    if rest != 0 {
        cx.warp().push(Split { frame, pc: next, mask: rest, state: State::Ready });
    }
    Flow::Switch
}

/// `trap`
pub(crate) unsafe fn trap(cx: &mut Cx, _op: &Op, mask: u32) -> Flow {
    cx.fail(FaultKind::Trap, mask, "the kernel stops itself with a trap")
}

/// `nanosleep`: the rest of the warp's turn is given up, so that what it waits for can come.
pub(crate) unsafe fn sleep(cx: &mut Cx, _op: &Op, _mask: u32) -> Flow {
    cx.given -= cx.fuel - 1;
    cx.fuel = 1;
    Flow::Next
}

/// `griddepcontrol.wait`: launches that this one may overlap have ended.
pub(crate) unsafe fn wait_for_launches(cx: &mut Cx, _op: &Op, mask: u32) -> Flow {
    cx.warp().known.waited |= mask;
    Flow::Next
}

/// Nothing: prefetches, hints.
pub(crate) unsafe fn nothing(_cx: &mut Cx, _op: &Op, _mask: u32) -> Flow {
    Flow::Next
}
