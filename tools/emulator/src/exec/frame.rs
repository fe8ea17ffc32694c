//! Frames: the registers and local memory of a function that lanes are in.

use super::machine::{Cx, Program};
use super::operand::{FULL, Fill, Kind, LANES};
use super::state::{Frame, Split, State};
use crate::fault::FaultKind;

impl Cx<'_> {
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
    #[inline]
    pub(crate) fn resume(&mut self, split: Split) {
        self.pc = split.pc;
        self.mask = split.mask;
        self.enter_frame(split.frame);
    }

    /// Makes a frame current.
    #[inline]
    pub(crate) fn enter_frame(&mut self, frame: u32) {
        self.frame = frame;
        let grid = self.grid;
        let warp = &mut self.block.warps[self.w];
        let f = &warp.frames[frame as usize];
        self.code = &grid.program.codes[f.function as usize];
        // SAFETY: `enter` made the register file long enough for the frame.
        self.regs = unsafe { warp.regs.as_mut_ptr().cast::<u8>().add(f.base) };
    }
}

/// Puts lanes at the start of a function.
pub(crate) fn enter(cx: &mut Cx, target: u32, call_number: u32, mask: u32, back: u32) -> bool {
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

/// The function of a frame.
pub(crate) fn code_of(program: &Program, frame: &Frame) -> usize {
    debug_assert!((frame.function as usize) < program.codes.len());
    frame.function as usize
}
