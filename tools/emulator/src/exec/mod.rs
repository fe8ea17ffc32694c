//! Runs lowered kernels: a warp at a time, 32 lanes in lockstep under a mask.
//!
//! A warp that diverges becomes several *splits*, each a mask and a program counter. The split with the lowest counter
//! runs first; lowering lays blocks out so that a join comes after everything that leads to it, hence splits meet
//! again at the join (thread frontiers, Diamos et al. 2011). A split that waits for others (`shfl.sync`, `bar.sync`)
//! steps aside, so lanes make progress independently, as they do since Volta.

pub(crate) mod block;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod float;
pub(crate) mod grid;
pub(crate) mod lane;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod mods;
pub(crate) mod table;
pub(crate) mod warp;

pub(crate) use block::{Block, Split, State, Warp};
pub(crate) use grid::Grid;

use crate::fault::{Fault, FaultKind};
use table::CLASSES;

/// No register.
pub(crate) const NONE: u32 = u32::MAX;
/// Generic addresses of shared memory start here.
pub(crate) const SHARED_WINDOW: u64 = 1 << 32;
/// Generic addresses of local memory start here.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 32;
/// Addresses of kernel parameters start here.
pub(crate) const PARAM_WINDOW: u64 = 3 << 32;

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

/// What fills a register when a frame is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fill {
    /// A constant.
    Const(u64),
    /// `%tid`
    Tid(u8),
    /// `%ntid`
    Ntid(u8),
    /// `%ctaid`
    Ctaid(u8),
    /// `%nctaid`
    Nctaid(u8),
    /// `%laneid`
    Lane,
    /// `%warpid`
    Warp,
    /// `%nwarpid`
    Warps,
    /// `%smid`
    Sm,
    /// `%nsmid`
    Sms,
    /// `%gridid`
    Grid,
    /// `%lanemask_eq`, `le`, `lt`, `ge`, `gt`
    LaneMask(u8),
    /// `%dynamic_smem_size`
    DynamicShared,
    /// `%total_smem_size`
    TotalShared,
    /// Offset of the frame's part of local memory.
    LocalBase,
    /// Offset of dynamic shared memory.
    DynamicStart,
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
    pub(crate) fills: Vec<(u32, lane::Kind, Fill)>,
    /// Operands too many for an [`Op`].
    pub(crate) mems: Vec<memory::Access>,
    pub(crate) calls: Vec<control::Call>,
    pub(crate) bars: Vec<control::Bar>,
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
    pub(crate) counters: crate::counters::Counters,
    pub(crate) fault: Option<Box<Fault>>,
    /// Allocations that instructions met last, by their place in the code.
    pub(crate) cache: [(u64, u64); 32],
    /// Operations until the warp must let others run.
    pub(crate) fuel: u32,
    /// Fuel that its turn began with, less what `nanosleep` gave up.
    pub(crate) given: u32,
}

impl<'g> Cx<'g> {
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
