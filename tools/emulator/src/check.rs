//! The checks that a device does not make: uninitialised reads and races.

use crate::config::Strict;
use crate::exec::Cx;
use crate::exec::lane::LANES;
use crate::exec::memory::{Order, Touch};

/// What memory holds that nobody wrote.
pub(crate) const POISON: u8 = 0xcb;

/// What is known of a block's shared memory.
#[derive(Debug, Default)]
pub(crate) struct SharedShadow {}

impl SharedShadow {
    pub(crate) fn start(&mut self, _bytes: usize, _strict: Strict) {}
}

impl crate::exec::Block {
    /// After a barrier of the warps in `warps`: all that they did before is ordered before all that they do now.
    pub(crate) fn order(&mut self, _warps: u32) {
        self.epoch += 1;
    }
}

pub(crate) fn global_init(_cx: &mut Cx, _addr: &[u64; LANES], _mask: u32, _touch: Touch, _bytes: u64) -> bool {
    true
}

pub(crate) fn global_race(
    _cx: &mut Cx,
    _addr: &[u64; LANES],
    _mask: u32,
    _touch: Touch,
    _bytes: u64,
    _order: Order,
) -> bool {
    true
}

pub(crate) fn shared(
    _cx: &mut Cx,
    _addr: &[u64; LANES],
    _mask: u32,
    _touch: Touch,
    _bytes: u64,
    _order: Order,
) -> bool {
    true
}

pub(crate) fn fence(_cx: &mut Cx) {}

/// Fresh memory: nobody has written it.
pub(crate) fn allocated(_memory: &crate::device::Memory, at: u64, bytes: u64) {
    if crate::config::strictness().uninitialised && bytes <= 16 << 20 {
        // SAFETY: the range was just allocated.
        unsafe { std::ptr::write_bytes(at as *mut u8, POISON, bytes as usize) };
    }
}

/// The driver wrote a range.
pub(crate) fn written(_memory: &crate::device::Memory, _at: u64, _bytes: u64) {}

/// The driver copied a range from device to device.
pub(crate) fn copied(_from: &crate::device::Memory, _at: u64, _to: &crate::device::Memory, _there: u64, _bytes: u64) {}

/// The first byte of a range that nobody wrote.
pub(crate) fn first_unwritten(_memory: &crate::device::Memory, _at: u64, _bytes: u64) -> Option<u64> {
    None
}
