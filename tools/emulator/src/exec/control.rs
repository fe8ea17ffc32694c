//! Branches, calls, barriers: operations that change what runs next.

use super::block::{Frame, PATIENCE};
use super::lane::{LANES, get, get_pred, put, put_pred};
use super::{Cx, Flow, NONE, Op, Split, State};
use crate::fault::FaultKind;

/// A call.
pub(crate) struct Call {
    /// The function's number, or `None` where a register says it.
    pub(crate) target: Option<u32>,
    /// Register with the address, for an indirect call.
    pub(crate) register: u32,
    /// Local memory of the arguments in the caller.
    pub(crate) arguments: Vec<(u32, u32)>,
    /// Local memory of the results in the caller.
    pub(crate) results: Vec<(u32, u32)>,
    /// Register parameters: the caller's registers are copied bytewise through local memory by lowering; this is the
    /// built-in, where the callee is one.
    pub(crate) builtin: Option<Builtin>,
}

/// Functions that the driver brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// `vprintf(format, arguments)`
    Print,
    /// `__assertfail(message, file, line, function, char size)`
    Assert,
}

/// What a barrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A barrier instruction.
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// All threads of a warp must run it together.
    pub(crate) aligned: bool,
    /// Register of the barrier's number.
    pub(crate) id: u32,
    /// Register of the thread count, or [`NONE`].
    pub(crate) count: u32,
    /// Predicate of a reduction.
    pub(crate) pred: u32,
    pub(crate) pred_flip: u32,
    /// Result of a reduction.
    pub(crate) dst: u32,
}

/// Addresses of functions, as `mov` gives them: recognisable, and never an address of memory.
pub(crate) const FUNCTION_WINDOW: u64 = 4 << 32;

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
        super::block::code_of(&grid.program, parent)
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
        return super::memory::builtin(cx, builtin, call, mask);
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

/// Puts lanes at the start of a function.
fn enter(cx: &mut Cx, target: u32, call_number: u32, mask: u32, back: u32) -> bool {
    let grid = cx.grid;
    let code = cx.code;
    let call = &code.calls[call_number as usize];
    let callee = &grid.program.codes[target as usize];
    let caller = cx.frame;
    let (parent_local, depth, local) = {
        let f = &cx.warp().frames[caller as usize];
        (f.local, f.depth + 1, f.local_end.next_multiple_of(16))
    };
    let local_end = local as usize + callee.local;
    if local_end > grid.stack {
        cx.fail(
            FaultKind::Stack,
            mask,
            &format!(
                "calls `{}` at depth {depth}: {local_end} bytes of stack, a thread has {} (cuCtxSetLimit raises it)",
                callee.name, grid.stack
            ),
        );
        return false;
    }
    let sizes: (u32, u32) = (callee.params.iter().map(|p| p.1).sum(), call.arguments.iter().map(|a| a.1).sum());
    if callee.params.len() != call.arguments.len() || sizes.0 != sizes.1 {
        cx.fail(
            FaultKind::Target,
            mask,
            &format!("passes {} arguments, `{}` takes {}", call.arguments.len(), callee.name, callee.params.len()),
        );
        return false;
    }
    let stack = grid.stack;
    let warp = cx.warp();
    for (&(from, size), &(to, _)) in call.arguments.iter().zip(&callee.params) {
        for lane in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let from = lane * stack + (parent_local + from) as usize;
            let to = lane * stack + (local + to) as usize;
            warp.local.copy_within(from..from + size as usize, to);
        }
    }
    let base = warp.top();
    let frame = Frame {
        function: target,
        base,
        end: base + callee.frame,
        local,
        local_end: local_end as u32,
        parent: caller,
        depth,
        back,
        call: call_number,
        lanes: mask,
    };
    let frame = warp.enter(frame);
    warp.push(Split { frame, pc: 0, mask, state: State::Ready });
    cx.fill(frame, false);
    true
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

/// Nothing: `membar`, `fence`, prefetches.
pub(crate) unsafe fn nothing(_cx: &mut Cx, _op: &Op, _mask: u32) -> Flow {
    Flow::Next
}

// ---- lanes of a warp -------------------------------------------------------------------------------------------------

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
            cx.warp().clocks[w] += 1;
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
        std::ptr::fn_addr_eq(op.exec, warp_sync as super::Exec)
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
            warp.clocks[w] += 1;
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

// ---- barriers of a block ---------------------------------------------------------------------------------------------

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
