//! Barriers: lanes that wait for lanes of their warp, warps that wait for warps of their block.

use super::lane::{get, get_pred, put, put_pred};
use super::machine::{Cx, Exec, Flow, Op};
use super::operand::{BarKind, LANES, NONE};
use super::state::{Split, State};
use crate::fault::FaultKind;

/// Whether all lanes of `needed` that still live are here. If not, these wait and the warp goes on elsewhere.
pub(crate) fn together(cx: &mut Cx, mask: u32, needed: u32) -> Result<(), Flow> {
    let (frame, pc, all) = (cx.frame, cx.pc, cx.mask);
    let warp = cx.warp();
    if needed & warp.live & !mask == 0 {
        return Ok(());
    }
    // the guard's other lanes go on; those at the same place join the wait
    let mut here = mask;
    let mut wanted = needed;
    warp.splits.retain(|s| match s.state {
        State::Lanes { needed } if s.frame == frame && s.pc == pc => {
            here |= s.mask;
            wanted |= needed;
            false
        }
        _ => true,
    });
    let rest = all & !mask;
    if rest != 0 {
        warp.push(Split { frame, pc: pc + 1, mask: rest, state: State::Ready });
    }
    if wanted & warp.live & !here == 0 {
        // all have come: run the instruction again with all of them
        cx.mask = here;
        return Err(Flow::Jump);
    }
    warp.push(Split { frame, pc, mask: here, state: State::Lanes { needed: wanted } });
    Err(Flow::Switch)
}

/// `bar.warp.sync`
pub(crate) unsafe fn warp_sync(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave a 32-bit register.
    let wanted = unsafe { get::<u32>(cx, op.a) };
    let mut needed = 0;
    for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        if wanted[lane] >> lane & 1 == 0 {
            return cx.fail(
                FaultKind::Lane,
                1 << lane,
                &format!("is not in its own member mask {:#010x}", wanted[lane]),
            );
        }
        needed |= wanted[lane];
    }
    match together(cx, mask, needed) {
        Ok(()) => {
            let w = cx.w;
            let warp = cx.warp();
            // lanes with masks of their own are groups of their own
            let mut left = mask;
            while left != 0 {
                let group = wanted[left.trailing_zeros() as usize];
                warp.known.sync(w, group & mask, warp.live);
                left &= !group;
            }
            Flow::Next
        }
        Err(flow) => flow,
    }
}

/// When nothing in the warp is ready: whether lanes that ended have freed a split that waited. Otherwise the lanes wait
/// for each other for ever, unless all of them wait at block barriers.
pub(crate) fn retry(cx: &mut Cx) -> bool {
    let live = cx.warp().live;
    let warp = cx.warp();
    for split in &mut warp.splits {
        let free = match split.state {
            State::Lanes { needed } => needed & live & !split.mask == 0,
            State::Aligned => split.mask == live,
            _ => false,
        };
        if free {
            split.state = State::Ready;
            return true;
        }
    }
    let stuck = |s: &&Split| matches!(s.state, State::Lanes { .. } | State::Aligned);
    let Some(&first) = warp.splits.iter().find(stuck) else { return false };
    // bar.warp.sync may be met at different places
    let is_sync = |cx: &Cx, s: &Split| {
        let f = &cx.block.warps[cx.w].frames[s.frame as usize];
        let op = &cx.grid.program.codes[f.function as usize].ops[s.pc as usize];
        std::ptr::fn_addr_eq(op.exec, warp_sync as Exec)
    };
    if let State::Lanes { .. } = first.state {
        let splits = cx.warp().splits.clone();
        let syncs: Vec<&Split> =
            splits.iter().filter(|s| matches!(s.state, State::Lanes { .. }) && is_sync(cx, s)).collect();
        let here = syncs.iter().fold(0, |m, s| m | s.mask);
        let wanted = syncs.iter().fold(0, |m, s| if let State::Lanes { needed } = s.state { m | needed } else { m });
        if !syncs.is_empty() && wanted & live & !here == 0 {
            let w = cx.w;
            let warp = cx.warp();
            warp.known.sync(w, here, live);
            for split in &mut warp.splits {
                if here & split.mask != 0 && matches!(split.state, State::Lanes { .. }) {
                    split.state = State::Ready;
                    split.pc += 1;
                }
            }
            return true;
        }
    }
    let others: Vec<String> = {
        let splits = cx.warp().splits.clone();
        splits
            .iter()
            .map(|s| {
                let f = &cx.block.warps[cx.w].frames[s.frame as usize];
                let line = cx.grid.program.codes[f.function as usize].lines[s.pc as usize];
                format!("lanes {:#010x} at line {line}", s.mask)
            })
            .collect()
    };
    cx.resume(first);
    let what = match first.state {
        State::Aligned => format!(
            "the barrier is reached by a part of the warp only, and the rest waits elsewhere or has ended: {}",
            others.join(", ")
        ),
        State::Lanes { needed } => {
            format!("waits for lanes {:#010x}, which never come: {}", needed & live & !first.mask, others.join(", "))
        }
        _ => unreachable!("only stuck splits are looked at"),
    };
    cx.fail(FaultKind::Barrier, first.mask, &what);
    false
}

/// `bar`, `barrier`
pub(crate) unsafe fn bar(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let bar = &code.bars[op.imm as usize];
    let (frame, pc) = (cx.frame, cx.pc);
    let first = mask.trailing_zeros() as usize;
    let rest = cx.mask & !mask;
    if rest != 0 {
        cx.warp().push(Split { frame, pc: pc + 1, mask: rest, state: State::Ready });
        cx.mask = mask;
    }
    let mut mask = mask;
    if bar.aligned {
        let warp = cx.warp();
        warp.splits.retain(|s| {
            let here = s.frame == frame && s.pc == pc && s.state == State::Aligned;
            if here {
                mask |= s.mask;
            }
            !here
        });
        cx.mask = mask;
        let warp = cx.warp();
        if mask != warp.live {
            warp.push(Split { frame, pc, mask, state: State::Aligned });
            return Flow::Switch;
        }
    }
    // SAFETY: lowering gave 32-bit registers and a predicate.
    let (id, count, pred) = unsafe {
        (
            get::<u32>(cx, bar.id)[first],
            if bar.count == NONE { 0 } else { get::<u32>(cx, bar.count)[first] },
            if bar.pred == NONE { 0 } else { get_pred(cx, bar.pred) ^ bar.pred_flip },
        )
    };
    if id > 15 {
        return cx.fail(FaultKind::Barrier, mask, &format!("barrier {id} does not exist, there are 16"));
    }
    if count % 32 != 0 {
        return cx.fail(FaultKind::Barrier, mask, &format!("a barrier for {count} threads: not a multiple of 32"));
    }
    let threads = cx.grid.threads();
    if count > threads.next_multiple_of(32) {
        return cx.fail(FaultKind::Barrier, mask, &format!("a barrier for {count} threads in a block of {threads}"));
    }
    let w = cx.w;
    let barrier = &mut cx.block.barriers[id as usize];
    if barrier.arrived != 0 && barrier.expected != count {
        let known = barrier.expected;
        return cx.fail(
            FaultKind::Barrier,
            mask,
            &format!("barrier {id} is entered for {count} threads by some and for {known} by others (0: all)"),
        );
    }
    barrier.expected = count;
    // a count is in warps' worth of threads, even where the last warp is not full
    barrier.arrived += if count != 0 && bar.aligned { 32 } else { mask.count_ones() };
    barrier.trues += (pred & mask).count_ones();
    barrier.warps |= 1 << w;
    cx.counters.barriers += 1;
    if bar.kind != BarKind::Arrive {
        cx.warp().push(Split { frame, pc: pc + 1, mask, state: State::Barrier { id: id as u8 } });
    }
    let barrier = cx.block.barriers[id as usize];
    let needed = if count == 0 { threads } else { count };
    if barrier.arrived >= needed {
        release(cx, id as u8);
    }
    if bar.kind == BarKind::Arrive { Flow::Next } else { Flow::Switch }
}

/// Lets everyone at a barrier go on, with a reduction's result.
fn release(cx: &mut Cx, id: u8) {
    let barrier = std::mem::take(&mut cx.block.barriers[id as usize]);
    let all = if barrier.expected == 0 { cx.grid.threads() } else { barrier.arrived };
    let current = cx.w;
    let (frame, pc, mask) = (cx.frame, cx.pc, cx.mask);
    for w in 0..cx.block.warps.len() {
        cx.w = w;
        for i in 0..cx.block.warps[w].splits.len() {
            let split = cx.block.warps[w].splits[i];
            if split.state != (State::Barrier { id }) {
                continue;
            }
            cx.block.warps[w].splits[i].state = State::Ready;
            cx.enter_frame(split.frame);
            let code = cx.code;
            let op = &code.ops[split.pc as usize - 1];
            let bar = &code.bars[op.imm as usize];
            // SAFETY: lowering gave a register of the reduction's kind.
            unsafe {
                match bar.kind {
                    BarKind::Popc => put(cx, bar.dst, &[barrier.trues; LANES], split.mask),
                    BarKind::And => {
                        put_pred(cx, bar.dst, if barrier.trues == all { u32::MAX } else { 0 }, split.mask);
                    }
                    BarKind::Or => put_pred(cx, bar.dst, if barrier.trues != 0 { u32::MAX } else { 0 }, split.mask),
                    BarKind::Sync | BarKind::Arrive => {}
                }
            }
        }
    }
    cx.w = current;
    cx.enter_frame(frame);
    (cx.pc, cx.mask) = (pc, mask);
    cx.block.order(barrier.warps);
}

/// When no warp can go on: barriers whose missing threads have all ended. Hardware counts those as arrived; with every
/// check on it is a fault, because CUDA leaves it undefined.
pub(crate) fn unblock(cx: &mut Cx) -> bool {
    let threads = cx.grid.threads();
    let live: u32 = cx.block.warps.iter().map(|w| w.live.count_ones()).sum();
    let waiting: Vec<(usize, Split)> = cx
        .block
        .warps
        .iter()
        .enumerate()
        .flat_map(|(w, warp)| warp.splits.iter().map(move |s| (w, *s)))
        .filter(|(_, s)| matches!(s.state, State::Barrier { .. }))
        .collect();
    for &(w, split) in &waiting {
        let State::Barrier { id } = split.state else { continue };
        let barrier = cx.block.barriers[id as usize];
        if barrier.expected == 0 && barrier.arrived + (threads - live) >= threads && !cx.grid.strict.barriers {
            cx.w = w;
            cx.resume(split);
            release(cx, id);
            return true;
        }
    }
    let Some(&(w, split)) = waiting.first() else {
        cx.fail(FaultKind::Internal, 0, "no thread can go on, and none waits at a barrier");
        return false;
    };
    let State::Barrier { id } = split.state else { return false };
    let barrier = cx.block.barriers[id as usize];
    let needed = if barrier.expected == 0 { threads } else { barrier.expected };
    cx.w = w;
    cx.resume(split);
    let mut elsewhere = String::new();
    for &(other, s) in &waiting {
        if s.state != split.state {
            let f = &cx.block.warps[other].frames[s.frame as usize];
            let line = cx.grid.program.codes[f.function as usize].lines[s.pc as usize - 1];
            elsewhere = format!("; warp {other} waits at another barrier, line {line}");
            break;
        }
    }
    let missing = (0..cx.block.warps.len())
        .map(|w| {
            let exist = if threads - w as u32 * 32 >= 32 { u32::MAX } else { (1 << (threads - w as u32 * 32)) - 1 };
            let here =
                waiting.iter().filter(|(x, s)| *x == w && s.state == split.state).fold(0, |m, (_, s)| m | s.mask);
            (w, exist & !here)
        })
        .find(|(_, m)| *m != 0);
    let who = missing.map_or(String::new(), |(w, m)| {
        let thread = w as u32 * 32 + m.trailing_zeros();
        let ended = cx.block.warps[w].live >> m.trailing_zeros() & 1 == 0;
        let place = cx.grid.place_of_thread(thread);
        format!("; thread {place} is missing{}", if ended { ", it has ended" } else { "" })
    });
    cx.fail_at(
        FaultKind::Barrier,
        split.pc - 1,
        split.mask.trailing_zeros(),
        &format!("barrier {id} is reached by {} of {needed} threads{who}{elsewhere}", barrier.arrived),
    );
    false
}
