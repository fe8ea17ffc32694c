//! A block: its warps, its shared memory, its barriers, and the loop that runs a warp.

use super::lane::{FULL, Kind, LANES};
use super::{Cx, Fill, Flow, NONE, Program, control};
use crate::fault::FaultKind;

/// Operations a warp runs before another one gets its turn.
const QUANTUM: u32 = 50_000;
/// Joins passed by one split while others are ready, before they get a turn (lanes that spin on one another).
pub(crate) const PATIENCE: u32 = 4096;

/// What a split waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Ready,
    /// Lanes of its warp, at this operation.
    Lanes { needed: u32 },
    /// All lanes of its warp, at an aligned barrier.
    Aligned,
    /// A block barrier it has arrived at.
    Barrier { id: u8 },
}

/// Lanes that are at one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) frame: u32,
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) state: State,
}

/// Registers and local memory of a function that lanes are in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Number of the function.
    pub(crate) function: u32,
    /// First byte in the register file.
    pub(crate) base: usize,
    /// Its end in the register file.
    pub(crate) end: usize,
    /// First byte in local memory.
    pub(crate) local: u32,
    /// Its end in local memory.
    pub(crate) local_end: u32,
    pub(crate) parent: u32,
    pub(crate) depth: u32,
    /// Where lanes go on in the parent.
    pub(crate) back: u32,
    /// The call in the parent's code, for its results.
    pub(crate) call: u32,
    /// Lanes inside, in it or in what it calls.
    pub(crate) lanes: u32,
}

/// 64 bytes with the alignment that vectors want.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// 32 threads.
pub(crate) struct Warp {
    pub(crate) live: u32,
    pub(crate) splits: Vec<Split>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) regs: Vec<Line>,
    pub(crate) local: Vec<u8>,
    /// Joins passed while others were ready.
    pub(crate) spin: u32,
    /// Joins to pass before the lowest split may take over again.
    pub(crate) grace: u32,
    /// Operations run.
    pub(crate) ran: u64,
    /// The race detector's clock of this warp, and what it knows of the others'.
    pub(crate) clocks: Vec<u32>,
    /// Barriers of the block that had completed when it last took part in one.
    pub(crate) last_barrier: u32,
    pub(crate) copies: super::copy::Copies,
    /// When it last read an atomic, in the time of [`crate::check::Releases`].
    pub(crate) acquired: u64,
}

/// A block barrier.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Barrier {
    /// Threads that have arrived.
    pub(crate) arrived: u32,
    /// Threads it takes; 0: all of the block.
    pub(crate) expected: u32,
    /// Warps that have arrived, as bits.
    pub(crate) warps: u32,
    /// Reduction: threads whose predicate is true.
    pub(crate) trues: u32,
}

/// A block that runs.
pub(crate) struct Block {
    pub(crate) index: u64,
    /// The launch whose constants stand in the kernel's frames: they need not be filled in again for its next block.
    filled: u64,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Vec<u8>,
    pub(crate) barriers: [Barrier; 16],
    /// Barriers completed.
    pub(crate) epoch: u32,
    pub(crate) shadow: crate::check::SharedShadow,
}

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

impl Warp {
    fn new() -> Self {
        Self {
            live: 0,
            splits: Vec::new(),
            frames: Vec::new(),
            regs: Vec::new(),
            local: Vec::new(),
            spin: 0,
            grace: 0,
            ran: 0,
            clocks: Vec::new(),
            copies: Default::default(),
            last_barrier: 0,
            acquired: 0,
        }
    }

    /// The split that should run: deepest call first, then the lowest place.
    pub(crate) fn best(&self) -> Option<usize> {
        let ready = self.splits.iter().enumerate().filter(|(_, s)| s.state == State::Ready);
        ready.min_by_key(|(_, s)| (u32::MAX - self.frames[s.frame as usize].depth, s.pc)).map(|(i, _)| i)
    }

    /// Adds a split, or its lanes to one at the same place.
    pub(crate) fn push(&mut self, split: Split) {
        for known in &mut self.splits {
            if known.frame == split.frame && known.pc == split.pc && known.state == split.state {
                known.mask |= split.mask;
                return;
            }
        }
        self.splits.push(split);
    }

    /// Makes a frame on top of the register file.
    pub(crate) fn enter(&mut self, frame: Frame) -> u32 {
        let lines = frame.end.div_ceil(64);
        if self.regs.len() < lines {
            self.regs.resize(lines, Line([0; 64]));
        }
        // a frame whose lanes have all left makes room, unless it is the kernel's
        let free = (1..self.frames.len()).find(|&i| self.frames[i].lanes == 0);
        match free {
            Some(i) => {
                self.frames[i] = frame;
                i as u32
            }
            None => {
                self.frames.push(frame);
                self.frames.len() as u32 - 1
            }
        }
    }

    /// First free byte of the register file.
    pub(crate) fn top(&self) -> usize {
        self.frames.iter().filter(|f| f.lanes != 0).map(|f| f.end).max().unwrap_or(0).next_multiple_of(64)
    }
}

impl Block {
    pub(crate) fn new() -> Self {
        Self {
            index: 0,
            filled: 0,
            warps: Vec::new(),
            shared: Vec::new(),
            barriers: [Barrier::default(); 16],
            epoch: 0,
            shadow: crate::check::SharedShadow::default(),
        }
    }
}

impl<'g> Cx<'g> {
    /// A worker's state.
    pub(crate) fn new(grid: &'g super::Grid, block: Block) -> Self {
        Self {
            regs: std::ptr::null_mut(),
            pc: 0,
            mask: 0,
            frame: 0,
            code: grid.kernel(),
            w: 0,
            block,
            grid,
            classes: [0; super::table::CLASSES],
            counters: Default::default(),
            fault: None,
            cache: [(1, 0); 32],
            fuel: 0,
            given: 0,
        }
    }

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
            self.block.shared.fill(crate::check::POISON);
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
            warp.last_barrier = 0;
            warp.acquired = 0;
            warp.clocks.clear();
            warp.clocks.resize(warps, 0);
            // its own clock is ahead of what the others know of it
            warp.clocks[w] = 1;
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

    /// Fills the constants and special registers of a frame, or only those that differ from block to block.
    pub(crate) fn fill(&mut self, frame: u32, again: bool) {
        let grid = self.grid;
        let w = self.w;
        let (code, base, local) = {
            let f = &self.block.warps[w].frames[frame as usize];
            (&grid.program.codes[f.function as usize], f.base, f.local)
        };
        let first = self.block.warps[w].regs.as_mut_ptr().cast::<u8>();
        for &(at, kind, fill) in &code.fills {
            if again && !matches!(fill, Fill::Ctaid(_) | Fill::Sm) {
                continue;
            }
            let value = |lane: u32| -> u64 {
                let thread = w as u32 * 32 + lane;
                u64::from(match fill {
                    Fill::Const(value) => return value,
                    Fill::Tid(axis) => grid.thread_axis(thread, axis),
                    Fill::Ntid(axis) => grid.block_dim[axis as usize],
                    Fill::Ctaid(axis) => grid.block_axis(self.block.index, axis),
                    Fill::Nctaid(axis) => grid.grid_dim[axis as usize],
                    Fill::Lane => lane,
                    Fill::Warp => w as u32,
                    Fill::Warps => grid.threads().div_ceil(32),
                    Fill::Sm => (self.block.index % u64::from(grid.sms)) as u32,
                    Fill::Sms => grid.sms,
                    Fill::Grid => return grid.launch,
                    Fill::LaneMask(0) => 1 << lane,
                    Fill::LaneMask(1) => FULL >> (31 - lane),
                    Fill::LaneMask(2) => (1 << lane) - 1,
                    Fill::LaneMask(3) => FULL << lane,
                    Fill::LaneMask(_) => FULL << lane << 1 & if lane == 31 { 0 } else { FULL },
                    Fill::DynamicShared => grid.dynamic_shared as u32,
                    Fill::TotalShared => grid.shared_bytes as u32,
                    Fill::LocalBase => local,
                    Fill::DynamicStart => (grid.shared_bytes - grid.dynamic_shared) as u32,
                })
            };
            // SAFETY: lowering put `at` inside the frame, and the frame inside the register file.
            unsafe {
                let slot = first.add(base + at as usize);
                match kind {
                    Kind::Pred => *slot.cast::<u32>() = if value(0) != 0 { FULL } else { 0 },
                    Kind::W16 => *slot.cast::<[u16; LANES]>() = std::array::from_fn(|i| value(i as u32) as u16),
                    Kind::W32 | Kind::F32 => {
                        *slot.cast::<[u32; LANES]>() = std::array::from_fn(|i| value(i as u32) as u32);
                    }
                    Kind::W64 | Kind::F64 => *slot.cast::<[u64; LANES]>() = std::array::from_fn(|i| value(i as u32)),
                    Kind::W128 => *slot.cast::<[u128; LANES]>() = std::array::from_fn(|i| u128::from(value(i as u32))),
                }
            }
        }
    }

    /// Makes a split current.
    pub(crate) fn resume(&mut self, split: Split) {
        self.pc = split.pc;
        self.mask = split.mask;
        self.enter_frame(split.frame);
    }

    /// Makes a frame current.
    pub(crate) fn enter_frame(&mut self, frame: u32) {
        self.frame = frame;
        let grid = self.grid;
        let warp = &mut self.block.warps[self.w];
        let f = &warp.frames[frame as usize];
        self.code = &grid.program.codes[f.function as usize];
        // SAFETY: `enter` made the register file long enough for the frame.
        self.regs = unsafe { warp.regs.as_mut_ptr().cast::<u8>().add(f.base) };
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
        if !progress && !ready && !control::unblock(self) {
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
                if control::retry(self) {
                    continue;
                }
                break if self.fault.is_some() { Stop::Fault } else { Stop::Blocked };
            };
            let split = warp.splits.swap_remove(best);
            self.resume(split);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `wide` has seen the features; the frame is the split's.
            let flow = unsafe { if super::lane::wide() { self.run_split_wide() } else { self.run_split() } };
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

/// The function of a frame.
pub(crate) fn code_of(program: &Program, frame: &Frame) -> usize {
    debug_assert!((frame.function as usize) < program.codes.len());
    frame.function as usize
}
