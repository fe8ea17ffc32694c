//! Which bytes of global memory a launch has read and written, for its count of distinct bytes.

use super::operand::{LANES, Touch};
use crate::device::{Memory, Reservation};
use std::sync::atomic::{AtomicU8, Ordering};

/// A bit per byte of the device's memory, and for reads and writes each.
pub(crate) struct Unique {
    base: u64,
    read: Reservation,
    written: Reservation,
}

impl Unique {
    /// Nothing is touched; `None` where the system refuses the address space.
    pub(crate) fn new(memory: &Memory) -> Option<Self> {
        let bits = || Reservation::new(memory.size() / 8 + 8);
        Some(Self { base: memory.base(), read: bits()?, written: bits()? })
    }

    /// Notes an access to checked addresses. How many of its bytes were not read before, and not written before.
    pub(crate) fn touch(&self, addr: &[u64; LANES], mask: u32, bytes: u64, touch: Touch) -> (u64, u64) {
        let (mut read, mut written) = (0, 0);
        for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let at = addr[l] - self.base;
            if touch != Touch::Write {
                read += fresh(&self.read, at, bytes);
            }
            if touch != Touch::Read {
                written += fresh(&self.written, at, bytes);
            }
        }
        (read, written)
    }
}

/// Sets the bits of a range, and counts those that were not set.
fn fresh(bits: &Reservation, at: u64, bytes: u64) -> u64 {
    let end = at + bytes;
    (at / 8..end.div_ceil(8))
        .map(|i| {
            let (low, high) = (at.saturating_sub(i * 8).min(8) as u32, (end - i * 8).min(8) as u32);
            let wanted = ((1u32 << high) - (1 << low)) as u8;
            // SAFETY: the range lies in the device's memory, of which the bits cover every byte.
            let byte = unsafe { &*((bits.start() + i) as *const AtomicU8) };
            u64::from((wanted & !byte.fetch_or(wanted, Ordering::Relaxed)).count_ones())
        })
        .sum()
}
