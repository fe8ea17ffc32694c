//! A block that runs: its warps take turns, and a warp's splits run one at a time.

use super::barrier::{retry, unblock};
use super::lane::wide;
use super::machine::{Cx, Flow};
use super::operand::{FULL, LANES, NONE};
use super::state::{Barrier, Frame, Split, State, Warp};
use crate::fault::FaultKind;
use crate::written::POISON;

/// Operations a warp runs before another one gets its turn.
const QUANTUM: u32 = 50_000;

/// Why a warp stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All its threads have ended.
    Done,
    /// Everything in it waits.
    Blocked,
    /// Its turn is over.
    Turn,
    /// The launch has failed.
    Fault,
}

impl Cx<'_> {
    /// Prepares the block with number `index`.
    pub(crate) fn start_block(&mut self, index: u64) {
        let grid = self.grid;
        let threads = grid.threads();
        let warps = threads.div_ceil(LANES as u32) as usize;
        let code = grid.kernel();
        self.block.index = index;
        while self.block.warps.len() < warps {
            self.block.warps.push(Warp::new());
        }
        self.block.warps.truncate(warps);
        self.block.shared.resize(grid.shared_bytes, 0);
        self.block.barriers = [Barrier::default(); 16];
        self.block.epoch = 0;
        self.block.shadow.start(grid.shared_bytes, grid.strict);
        if grid.strict.uninitialised {
            self.block.shared.fill(POISON);
        }
        for w in 0..warps {
            let here = (threads - w as u32 * 32).min(32);
            let live = if here == 32 { FULL } else { (1 << here) - 1 };
            let warp = &mut self.block.warps[w];
            warp.live = live;
            warp.splits.clear();
            warp.frames.clear();
            warp.spin = 0;
            warp.grace = 0;
            warp.ran = 0;
            warp.copies.clear();
            warp.known.start(w, warps);
            let local = grid.stack * LANES;
            if warp.local.len() < local {
                warp.local.resize(local, 0);
            }
            warp.enter(Frame {
                function: grid.function,
                base: 0,
                end: code.frame,
                local: 0,
                local_end: code.local as u32,
                parent: 0,
                depth: 0,
                back: 0,
                call: NONE,
                lanes: live,
            });
            warp.push(Split { frame: 0, pc: 0, mask: live, state: State::Ready });
            self.w = w;
            self.fill(0, self.block.filled == grid.launch);
        }
        self.block.filled = grid.launch;
    }

    /// Runs the whole current block; `false`: the launch has failed.
    pub(crate) fn run_block(&mut self) -> bool {
        loop {
            match self.turn() {
                None => return false,
                Some(true) => return true,
                Some(false) if self.grid.stopped() => return false,
                Some(false) => {}
            }
        }
    }

    /// Gives each warp of the block one turn. `Some(true)`: the block is done; `None`: the launch has failed.
    pub(crate) fn turn(&mut self) -> Option<bool> {
        let (mut progress, mut done) = (false, true);
        for w in 0..self.block.warps.len() {
            self.w = w;
            if self.block.warps[w].live == 0 {
                continue;
            }
            match self.run_warp() {
                Stop::Done => progress = true,
                Stop::Blocked => done = false,
                Stop::Turn => {
                    progress = true;
                    done = false;
                }
                Stop::Fault => return None,
            }
        }
        if done {
            self.counters.blocks += 1;
            if self.block.shadow.pending.is_some() {
                self.fault = self.block.shadow.pending.take();
                return None;
            }
            return Some(true);
        }
        // a warp that blocked may have been released by a later one
        let ready = self.block.warps.iter().any(|w| w.best().is_some());
        if !progress && !ready && !unblock(self) {
            return None;
        }
        Some(false)
    }

    /// Runs the current warp until it stops.
    pub(crate) fn run_warp(&mut self) -> Stop {
        (self.fuel, self.given) = (QUANTUM, QUANTUM);
        let stop = loop {
            let warp = &mut self.block.warps[self.w];
            if warp.live == 0 {
                break Stop::Done;
            }
            let Some(best) = warp.best() else {
                if retry(self) {
                    continue;
                }
                break if self.fault.is_some() { Stop::Fault } else { Stop::Blocked };
            };
            let split = warp.splits.swap_remove(best);
            self.resume(split);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `wide` has seen the features; the frame is the split's.
            let flow = unsafe { if wide() { self.run_split_wide() } else { self.run_split() } };
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: the frame is the split's.
            let flow = unsafe { self.run_split() };
            match flow {
                Flow::Fault => break Stop::Fault,
                Flow::Switch => {}
                Flow::Next | Flow::Jump => {
                    // out of fuel
                    let split = Split { frame: self.frame, pc: self.pc, mask: self.mask, state: State::Ready };
                    self.warp().push(split);
                    break Stop::Turn;
                }
            }
        };
        let ran = u64::from(self.given - self.fuel);
        self.counters.warp_instructions += ran;
        let budget = self.grid.budget;
        let warp = self.warp();
        warp.ran += ran;
        if warp.ran > budget && stop == Stop::Turn {
            let mask = self.mask;
            self.fail(
                FaultKind::Budget,
                mask,
                &format!("the warp has run {budget} instructions and does not end (EMULATOR_BUDGET raises the limit)"),
            );
            return Stop::Fault;
        }
        stop
    }

    /// # Safety
    /// The current frame is that of the current code.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    unsafe fn run_split_wide(&mut self) -> Flow {
        // SAFETY: the caller's promise.
        unsafe { self.run_split() }
    }

    /// Runs the current split until it ends, waits or has no fuel.
    ///
    /// # Safety
    /// The current frame is that of the current code.
    #[inline(always)]
    unsafe fn run_split(&mut self) -> Flow {
        let mut ops = self.code.ops.as_ptr();
        loop {
            // SAFETY: every block of operations ends in one that leaves it, so the counter stays inside the code.
            let op = unsafe { &*ops.add(self.pc as usize) };
            let mut mask = self.mask;
            if op.guard != NONE {
                // SAFETY: lowering gave a predicate of the frame.
                mask &= unsafe { *self.regs.add(op.guard as usize).cast::<u32>() } ^ op.guard_flip;
                if mask == 0 {
                    self.pc += 1;
                    continue;
                }
            }
            self.classes[op.class as usize] += u64::from(mask.count_ones());
            // SAFETY: lowering checked the registers of the operation.
            match unsafe { (op.exec)(self, op, mask) } {
                Flow::Next => self.pc += 1,
                Flow::Jump => ops = self.code.ops.as_ptr(),
                other => return other,
            }
            self.fuel -= 1;
            if self.fuel == 0 {
                return Flow::Jump;
            }
        }
    }
}
