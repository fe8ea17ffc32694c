//! The machine: operations and the code that they make up, the launch that all blocks share, and the state of a worker.
//!
//! An operation is a function of the worker's state, and that state holds the code: the types of this file need one
//! another, everything above only uses them.

use super::causal::Releases;
use super::operand::{Access, Bar, CLASSES, Call, Fill, Kind};
use super::state::{Block, Warp};
use super::unique::Unique;
use crate::config::Strict;
use crate::counters::Counters;
use crate::device::{Memory, Table};
use crate::fault::{Fault, FaultKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Runs an operation for the lanes of a mask, which is never empty.
///
/// # Safety
/// The operation's registers lie in the current frame and are of the kinds that the function expects.
pub(crate) type Exec = unsafe fn(&mut Cx, &Op, u32) -> Flow;

/// What happens after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next operation.
    Next,
    /// The operation at [`Cx::pc`], with the mask in [`Cx::mask`].
    Jump,
    /// Another split; this one ended or waits.
    Switch,
    /// The launch has failed; [`Cx::fault`] says how.
    Fault,
}

/// A lowered operation. Registers are byte offsets into the frame.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub(crate) exec: Exec,
    pub(crate) imm: u64,
    pub(crate) d: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    pub(crate) e: u32,
    /// Guarding predicate or [`NONE`].
    pub(crate) guard: u32,
    /// All ones where the guard is negated.
    pub(crate) guard_flip: u32,
    pub(crate) class: u8,
}

/// A function ready to run.
pub(crate) struct Code {
    pub(crate) name: String,
    /// A kernel.
    pub(crate) entry: bool,
    pub(crate) ops: Vec<Op>,
    /// PTX line of each operation.
    pub(crate) lines: Vec<u32>,
    /// Bytes of a frame.
    pub(crate) frame: usize,
    /// Registers to fill: place, kind and value.
    pub(crate) fills: Vec<(u32, Kind, Fill)>,
    /// Operands too many for an [`Op`].
    pub(crate) mems: Vec<Access>,
    pub(crate) calls: Vec<Call>,
    pub(crate) bars: Vec<Bar>,
    pub(crate) tables: Vec<Vec<u32>>,
    pub(crate) lists: Vec<Vec<u32>>,
    /// Bytes of local memory.
    pub(crate) local: usize,
    /// Where parameters stand in local memory: offset and size. Empty for kernels.
    pub(crate) params: Vec<(u32, u32)>,
    /// Where results stand in local memory.
    pub(crate) results: Vec<(u32, u32)>,
    /// Whether it calls.
    pub(crate) calls_any: bool,
}

/// All functions of a module.
pub(crate) struct Program {
    pub(crate) codes: Vec<Code>,
    /// The text's lines.
    pub(crate) text: Vec<String>,
}

/// Everything that the blocks of a launch share.
pub(crate) struct Grid {
    pub(crate) program: Arc<Program>,
    /// Number of the kernel's code.
    pub(crate) function: u32,
    pub(crate) grid_dim: [u32; 3],
    pub(crate) block_dim: [u32; 3],
    pub(crate) shared_bytes: usize,
    pub(crate) dynamic_shared: usize,
    pub(crate) params: Vec<u8>,
    /// Bytes of local memory of a thread.
    pub(crate) stack: usize,
    pub(crate) sms: u32,
    /// Number of the launch.
    pub(crate) launch: u64,
    pub(crate) budget: u64,
    pub(crate) strict: Strict,
    pub(crate) table: Arc<Table>,
    pub(crate) memory: Arc<Memory>,
    /// Blocks may wait for each other, so all must make progress.
    pub(crate) cooperative: bool,
    /// Tells this launch's stamps from those of others.
    pub(crate) serial: u32,
    pub(crate) releases: Releases,
    /// What nothing orders before this launch.
    pub(crate) loose: Loose,
    /// Which bytes were touched, if that is counted.
    pub(crate) unique: Option<Unique>,
    /// Whether an access to global memory was of one byte.
    pub(crate) single_bytes: AtomicBool,
    pub(crate) stop: AtomicBool,
    pub(crate) next: AtomicU64,
}

impl Grid {
    #[inline]
    pub(crate) fn kernel(&self) -> &Code {
        &self.program.codes[self.function as usize]
    }

    pub(crate) fn threads(&self) -> u32 {
        self.block_dim.iter().product()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.grid_dim.iter().map(|&d| u64::from(d)).product()
    }

    pub(crate) fn thread_axis(&self, thread: u32, axis: u8) -> u32 {
        let [x, y, _] = self.block_dim;
        match axis {
            0 => thread % x,
            1 => thread / x % y,
            _ => thread / x / y,
        }
    }

    pub(crate) fn block_axis(&self, block: u64, axis: u8) -> u32 {
        let (x, y) = (u64::from(self.grid_dim[0]), u64::from(self.grid_dim[1]));
        (match axis {
            0 => block % x,
            1 => block / x % y,
            _ => block / x / y,
        }) as u32
    }

    pub(crate) fn place_of_block(&self, block: u64) -> String {
        format!("({},{},{})", self.block_axis(block, 0), self.block_axis(block, 1), self.block_axis(block, 2))
    }

    pub(crate) fn place_of_thread(&self, thread: u32) -> String {
        format!("({},{},{})", self.thread_axis(thread, 0), self.thread_axis(thread, 1), self.thread_axis(thread, 2))
    }

    /// Whether another worker has met a fault.
    #[inline]
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Work that nothing orders before a launch, though it came first here.
#[derive(Default, Clone)]
pub(crate) struct Loose {
    /// Launches of other streams.
    pub(crate) kernels: Vec<Arc<LooseKernel>>,
    /// Copies and fills in other streams.
    pub(crate) ranges: Vec<Arc<LooseRange>>,
    /// Launches of the same stream that threads overlap until they have waited (`griddepcontrol.wait`).
    pub(crate) ahead: Vec<Arc<LooseKernel>>,
}

/// A launch, by the number in its stamps.
pub(crate) struct LooseKernel {
    pub(crate) serial: u32,
    pub(crate) moment: u64,
    pub(crate) name: String,
}

/// A copy or a fill, by the bytes that it touched.
pub(crate) struct LooseRange {
    pub(crate) at: u64,
    pub(crate) end: u64,
    pub(crate) writes: bool,
    pub(crate) moment: u64,
    pub(crate) name: String,
}

impl Loose {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.kernels.is_empty() && self.ranges.is_empty() && self.ahead.is_empty()
    }
}

/// The state of a worker while it runs blocks.
pub(crate) struct Cx<'g> {
    /// The frame of the current split.
    pub(crate) regs: *mut u8,
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) frame: u32,
    /// The code of the current frame.
    pub(crate) code: &'g Code,
    /// Index of the current warp.
    pub(crate) w: usize,
    pub(crate) block: Block,
    pub(crate) grid: &'g Grid,
    pub(crate) classes: [u64; CLASSES],
    pub(crate) counters: Counters,
    /// Warp instructions that read global memory, by their line, if a launch counts distinct bytes.
    pub(crate) loads: BTreeMap<u32, u64>,
    pub(crate) fault: Option<Box<Fault>>,
    /// Allocations that instructions met last, by their place in the code.
    pub(crate) cache: [(u64, u64); 32],
    /// Operations until the warp must let others run.
    pub(crate) fuel: u32,
    /// Fuel that its turn began with, less what `nanosleep` gave up.
    pub(crate) given: u32,
}

impl<'g> Cx<'g> {
    /// A worker's state.
    pub(crate) fn new(grid: &'g Grid, block: Block) -> Self {
        Self {
            regs: std::ptr::null_mut(),
            pc: 0,
            mask: 0,
            frame: 0,
            code: grid.kernel(),
            w: 0,
            block,
            grid,
            classes: [0; CLASSES],
            counters: Default::default(),
            loads: BTreeMap::new(),
            fault: None,
            cache: [(1, 0); 32],
            fuel: 0,
            given: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn warp(&mut self) -> &mut Warp {
        &mut self.block.warps[self.w]
    }

    /// Records a fault at the current operation and the first lane of `lanes`.
    #[cold]
    pub(crate) fn fail(&mut self, kind: FaultKind, lanes: u32, what: &str) -> Flow {
        let lane = if lanes == 0 { 0 } else { lanes.trailing_zeros() };
        self.fail_at(kind, self.pc, lane, what)
    }

    /// Records a fault at the operation `pc`.
    #[cold]
    pub(crate) fn fail_at(&mut self, kind: FaultKind, pc: u32, lane: u32, what: &str) -> Flow {
        if self.fault.is_none() {
            let fault = self.fault_at(kind, pc, lane, what);
            // what was read before it was written may be the cause
            let earlier = self.block.shadow.pending.take().filter(|_| kind != FaultKind::Race);
            self.fault = Some(earlier.unwrap_or_else(|| Box::new(fault)));
        }
        Flow::Fault
    }

    /// A fault at the operation `pc`, with its full sentence.
    pub(crate) fn fault_at(&self, kind: FaultKind, pc: u32, lane: u32, what: &str) -> Fault {
        let line = self.code.lines.get(pc as usize).copied().unwrap_or(0);
        let text = self.grid.program.text.get((line as usize).wrapping_sub(1)).map_or("", |t| t.trim());
        let thread = self.w as u32 * 32 + lane;
        let kernel = &self.grid.kernel().name;
        let inside = if std::ptr::eq(self.code, self.grid.kernel()) {
            String::new()
        } else {
            format!(" in function `{}`", self.code.name)
        };
        let message = format!(
            "kernel `{kernel}`{inside}, block {}, thread {}, PTX line {line} `{text}`: {what}",
            self.grid.place_of_block(self.block.index),
            self.grid.place_of_thread(thread),
        );
        Fault { kind, message }
    }
}
