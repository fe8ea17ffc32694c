//! The state of warps and blocks: registers, local and shared memory, where lanes are, what they wait for.

use super::causal::Known;
use super::operand::LANES;
use super::stamp::SharedShadow;

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

/// A copy to shared memory under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    pub(crate) to: u32,
    /// Number of its group, once it is committed.
    pub(crate) group: Option<u32>,
    pub(crate) data: [u8; 16],
    /// Its line in the text.
    pub(crate) line: u32,
    /// Where it reads, and who wrote there last when it began.
    pub(crate) from: u64,
    pub(crate) sources: [u64; 8],
}

/// The copies of a warp.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copies {
    pub(crate) pending: Vec<Pending>,
    /// Groups that each lane has committed.
    pub(crate) committed: [u32; LANES],
}

impl Copies {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.committed = [0; LANES];
    }
}

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
    /// What it knows to have happened before.
    pub(crate) known: Known,
    pub(crate) copies: Copies,
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
    pub(crate) filled: u64,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Vec<u8>,
    pub(crate) barriers: [Barrier; 16],
    /// Barriers completed.
    pub(crate) epoch: u32,
    pub(crate) shadow: SharedShadow,
}

impl Warp {
    pub(crate) fn new() -> Self {
        Self {
            live: 0,
            splits: Vec::new(),
            frames: Vec::new(),
            regs: Vec::new(),
            local: Vec::new(),
            spin: 0,
            grace: 0,
            ran: 0,
            known: Known::default(),
            copies: Default::default(),
        }
    }

    /// The split that should run: deepest call first, then the lowest place.
    #[inline]
    pub(crate) fn best(&self) -> Option<usize> {
        let ready = self.splits.iter().enumerate().filter(|(_, s)| s.state == State::Ready);
        ready.min_by_key(|(_, s)| (u32::MAX - self.frames[s.frame as usize].depth, s.pc)).map(|(i, _)| i)
    }

    /// Adds a split, or its lanes to one at the same place.
    #[inline]
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
    /// After a barrier of the warps in `warps`: all that they did before is ordered before all that they do now.
    pub(crate) fn order(&mut self, warps: u32) {
        self.epoch += 1;
        let inside = self.warps.iter_mut().enumerate().filter(|(w, _)| warps >> w & 1 != 0);
        let mut inside: Vec<(usize, &mut Known)> = inside.map(|(w, warp)| (w, &mut warp.known)).collect();
        Known::barrier(&mut inside, self.epoch);
    }

    pub(crate) fn new() -> Self {
        Self {
            index: 0,
            filled: 0,
            warps: Vec::new(),
            shared: Vec::new(),
            barriers: [Barrier::default(); 16],
            epoch: 0,
            shadow: SharedShadow::default(),
        }
    }
}
