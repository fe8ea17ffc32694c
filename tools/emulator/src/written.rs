//! Which bytes of a device's memory somebody wrote: one bit for each.

use crate::device::Memory;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What memory holds that nobody wrote: as a float it is absurd, as an index it is far outside.
pub(crate) const POISON: u8 = 0xcb;
/// Allocations larger than this are not filled with [`POISON`], which would commit their memory.
const LARGEST_POISONED: u64 = 16 << 20;

/// Sets the bits of a range.
fn mark(memory: &Memory, at: u64, bytes: u64, value: bool) {
    let Some(base) = memory.written_shadow() else { return };
    if bytes == 0 {
        return;
    }
    let (first, last) = (at - memory.base(), at - memory.base() + bytes);
    let bit = |n: u64| {
        let byte = (base + n / 8) as *const AtomicU8;
        // SAFETY: the shadow covers the device's region, and the range lies in it.
        let byte = unsafe { &*byte };
        if value {
            byte.fetch_or(1 << (n % 8), Ordering::Relaxed);
        } else {
            byte.fetch_and(!(1 << (n % 8)), Ordering::Relaxed);
        }
    };
    let (from, to) = (first.next_multiple_of(8), last / 8 * 8);
    if from >= to {
        (first..last).for_each(bit);
        return;
    }
    (first..from).for_each(bit);
    (to..last).for_each(bit);
    let (start, n) = (base + from / 8, (to - from) / 8);
    if !value && n >= 1 << 20 {
        // large ranges are given back instead of cleared
        let (low, high) = (start.next_multiple_of(4096), (start + n) & !4095);
        // SAFETY: as above; whole pages of our own mapping become zero.
        unsafe {
            std::ptr::write_bytes(start as *mut u8, 0, (low - start) as usize);
            libc::madvise(low as *mut libc::c_void, (high - low) as usize, libc::MADV_DONTNEED);
            std::ptr::write_bytes(high as *mut u8, 0, (start + n - high) as usize);
        }
        return;
    }
    // SAFETY: as above.
    unsafe { std::ptr::write_bytes(start as *mut u8, if value { 0xff } else { 0 }, n as usize) };
}

/// Fresh memory: nobody has written it.
pub(crate) fn allocated(memory: &Memory, at: u64, bytes: u64) {
    mark(memory, at, bytes, false);
    if crate::config::strictness().uninitialised && bytes <= LARGEST_POISONED {
        // SAFETY: the range was just allocated.
        unsafe { std::ptr::write_bytes(at as *mut u8, POISON, bytes as usize) };
    }
}

/// The driver wrote a range.
pub(crate) fn written(memory: &Memory, at: u64, bytes: u64) {
    mark(memory, at, bytes, true);
}

/// The driver copied a range from device to device: what was unwritten stays so.
pub(crate) fn copied(from: &Memory, at: u64, to: &Memory, there: u64, bytes: u64) {
    match first_unwritten(from, at, bytes) {
        None => mark(to, there, bytes, true),
        Some(_) => {
            let bits: Vec<bool> = (0..bytes).map(|i| is_written(from, at + i)).collect();
            for (i, written) in bits.into_iter().enumerate() {
                mark(to, there + i as u64, 1, written);
            }
        }
    }
}

/// Whether somebody wrote a byte, as far as is known.
pub(crate) fn is_written(memory: &Memory, at: u64) -> bool {
    let Some(base) = memory.written_shadow() else { return true };
    let n = at - memory.base();
    // SAFETY: the shadow covers the region.
    let byte = unsafe { &*((base + n / 8) as *const AtomicU8) };
    byte.load(Ordering::Relaxed) >> (n % 8) & 1 != 0 || memory.trusted(at)
}

/// The first byte of a range that nobody wrote.
pub(crate) fn first_unwritten(memory: &Memory, at: u64, bytes: u64) -> Option<u64> {
    let base = memory.written_shadow()?;
    if memory.trusted(at) {
        return None;
    }
    let (mut n, last) = (at - memory.base(), at - memory.base() + bytes);
    while n < last {
        if n % 64 == 0 && n + 64 <= last {
            // SAFETY: the shadow covers the region; the word is aligned.
            let word = unsafe { &*((base + n / 8) as *const AtomicU64) };
            if word.load(Ordering::Relaxed) == u64::MAX {
                n += 64;
                continue;
            }
        }
        if !is_written(memory, memory.base() + n) {
            return Some(memory.base() + n);
        }
        n += 1;
    }
    None
}
