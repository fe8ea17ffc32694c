//! The check of reads: global memory that nobody wrote.

use super::machine::Cx;
use super::operand::{LANES, Touch};
use crate::fault::FaultKind;
use crate::written::is_written;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

/// Checks and records an access to global memory.
#[inline]
pub(crate) fn global(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let grid = cx.grid;
    let memory = &grid.memory;
    let Some(shadow) = memory.written_shadow() else { return true };
    let base = memory.base();
    for l in 0..LANES {
        if mask >> l & 1 == 0 {
            continue;
        }
        let n = addr[l].wrapping_sub(base);
        let at = shadow + n / 8;
        // accesses are aligned to their size, so their bits are too
        macro_rules! word {
            ($atomic:ty, $wanted:expr) => {{
                // SAFETY: the bounds check came first, and the shadow covers the region.
                let word = unsafe { &*(at as *const $atomic) };
                let (seen, wanted) = (word.load(Ordering::Relaxed), $wanted);
                if seen & wanted != wanted {
                    if touch != Touch::Write && !unwritten(cx, addr[l], l, bytes) {
                        return false;
                    }
                    if touch != Touch::Read {
                        word.fetch_or(wanted, Ordering::Relaxed);
                    }
                }
            }};
        }
        match bytes {
            16 => word!(AtomicU16, u16::MAX),
            32 => word!(AtomicU32, u32::MAX),
            _ => word!(AtomicU8, (((1u16 << bytes) - 1) << (n % 8)) as u8),
        }
    }
    true
}

/// `true` if the bytes may be read all the same.
#[cold]
fn unwritten(cx: &mut Cx, at: u64, lane: usize, bytes: u64) -> bool {
    let grid = cx.grid;
    let memory = &grid.memory;
    let Some(first) = (at..at + bytes).find(|&a| !is_written(memory, a)) else { return true };
    let Some(a) = grid.table.find(at).copied() else { return true };
    let what = format!(
        "reads {bytes} bytes of global memory at {at:#x}, of which byte {} of an allocation of {} bytes at {:#x} was \
         never written",
        first - a.start,
        a.end - a.start,
        a.start
    );
    cx.fail(FaultKind::Uninitialised, 1 << lane, &what);
    false
}
