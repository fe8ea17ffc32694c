//! The way to memory: every address is checked and counted, and becomes a pointer of the host.

use super::machine::Cx;
use super::operand::{Access, LANES, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, Touch};
use super::{init, race};
use crate::fault::FaultKind;
use crate::ptx::ast::Space;

/// The lanes of a mask, in order.
#[inline]
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

/// Checks and counts an access, and turns addresses into host pointers. `false`: the launch has failed.
#[inline]
pub(crate) fn reach(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch) -> bool {
    let bytes = access.bytes();
    match access.space {
        Space::Global | Space::Const => reach_global(cx, access, addr, mask, touch, bytes),
        Space::Shared => reach_shared(cx, access, addr, mask, touch, bytes),
        Space::Local => reach_local(cx, access, addr, mask, touch, bytes),
        Space::Param => reach_param(cx, access, addr, mask, touch, bytes),
        Space::Generic => {
            let mut left = mask;
            while left != 0 {
                let window = addr[left.trailing_zeros() as usize] >> 32;
                let same = lanes_of(left)
                    .filter(|&l| {
                        let other = addr[l] >> 32;
                        other == window || (other > 3 && window > 3) || (other == 0 && window > 3)
                    })
                    .fold(0, |m, l| m | 1 << l);
                let cut = |addr: &mut [u64; LANES], base: u64| {
                    for l in lanes_of(same) {
                        addr[l] -= base;
                    }
                };
                let fine = match window << 32 {
                    SHARED_WINDOW => {
                        cut(addr, SHARED_WINDOW);
                        reach_shared(cx, access, addr, same, touch, bytes)
                    }
                    LOCAL_WINDOW => {
                        cut(addr, LOCAL_WINDOW);
                        reach_local(cx, access, addr, same, touch, bytes)
                    }
                    PARAM_WINDOW => {
                        cut(addr, PARAM_WINDOW);
                        reach_param(cx, access, addr, same, touch, bytes)
                    }
                    _ => reach_global(cx, access, addr, same, touch, bytes),
                };
                if !fine {
                    return false;
                }
                left &= !same;
            }
            true
        }
    }
}

fn misaligned(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, space: &str) -> bool {
    for l in lanes_of(mask) {
        if !addr[l].is_multiple_of(bytes) {
            let what =
                format!("{} {bytes} bytes of {space} memory at {:#x}, which is misaligned", touch.verb(), addr[l]);
            cx.fail(FaultKind::Misaligned, 1 << l, &what);
            return true;
        }
    }
    false
}

#[inline]
fn reach_global(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let first = addr[mask.trailing_zeros() as usize];
    let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
    for l in 0..LANES {
        let a = if mask >> l & 1 != 0 { addr[l] } else { first };
        low = low.min(a);
        high = high.max(a);
        bits |= a;
    }
    if bits & (bytes - 1) != 0 && cx.grid.strict.bounds && misaligned(cx, addr, mask, touch, bytes, "global") {
        return false;
    }
    let slot = cx.pc as usize % cx.cache.len();
    let (start, end) = cx.cache[slot];
    if (low < start || high > end.wrapping_sub(bytes) || end < bytes) && !locate(cx, addr, mask, touch, bytes, slot) {
        return false;
    }
    // counters
    let lanes = u64::from(mask.count_ones());
    let (sectors, lines) = footprint(addr, mask, bytes, low, high, lanes);
    let c = &mut cx.counters;
    c.global_wavefronts += lines;
    c.global_accesses[bytes.trailing_zeros() as usize & 7] += lanes;
    if touch != Touch::Write {
        c.bytes_read += lanes * bytes;
        c.sectors_read += sectors;
    }
    if touch != Touch::Read {
        c.bytes_written += lanes * bytes;
        c.sectors_written += sectors;
    }
    if cx.grid.unique.is_some() {
        if touch != Touch::Write {
            count_load(cx);
        }
        count_unique(cx, addr, mask, bytes, touch);
    }
    let strict = cx.grid.strict;
    if strict.uninitialised && !init::global(cx, addr, mask, touch, bytes) {
        return false;
    }
    if strict.races && !race::global(cx, addr, mask, touch, bytes, access) {
        return false;
    }
    true
}

/// Notes that the current instruction read global memory.
#[cold]
fn count_load(cx: &mut Cx) {
    let line = cx.code.lines.get(cx.pc as usize).copied().unwrap_or(0);
    *cx.loads.entry(line).or_default() += 1;
}

#[cold]
fn count_unique(cx: &mut Cx, addr: &[u64; LANES], mask: u32, bytes: u64, touch: Touch) {
    let Some(unique) = &cx.grid.unique else { return };
    let (read, written) = unique.touch(addr, mask, bytes, touch);
    cx.counters.unique_bytes_read += read;
    cx.counters.unique_bytes_written += written;
}

/// Distinct sectors of 32 bytes, and distinct lines of 128 bytes of each group of lanes that passes at once.
#[inline(always)]
fn footprint(addr: &[u64; LANES], mask: u32, bytes: u64, low: u64, high: u64, lanes: u64) -> (u64, u64) {
    // consecutive lanes at consecutive addresses: the usual case needs no list
    if high - low == (lanes - 1) * bytes {
        let dense = {
            let mut next = low;
            let mut dense = true;
            for l in lanes_of(mask) {
                dense &= addr[l] == next;
                next += bytes;
            }
            dense
        };
        if dense && (mask == u32::MAX || bytes <= 4) {
            let spans = |unit: u64| (high + bytes - 1) / unit - low / unit + 1;
            // a group of a full warp has 128 bytes, which are one line or lie on two
            let lines = if bytes <= 4 { spans(128) } else { (bytes / 4) << u32::from(low & 127 != 0) };
            return (spans(32), lines);
        }
    }
    scattered(addr, mask, bytes)
}

/// The same for lanes that are anywhere.
#[inline(never)]
fn scattered(addr: &[u64; LANES], mask: u32, bytes: u64) -> (u64, u64) {
    let lines = groups(bytes).map(|group| distinct(addr, mask & group, 128)).sum();
    (distinct(addr, mask, 32), lines)
}

/// The lanes that an access of this width serves in one pass, if they are in one line or in different banks.
fn groups(bytes: u64) -> impl Iterator<Item = u32> {
    let size = (128 / bytes.max(4)) as u32;
    (0..32).step_by(size as usize).map(move |start| (u32::MAX >> (32 - size)) << start)
}

/// Distinct units of so many bytes.
#[inline]
fn distinct(addr: &[u64; LANES], mask: u32, unit: u64) -> u64 {
    let mut list = [0u64; LANES];
    let mut n = 0;
    let mut sorted = true;
    for l in lanes_of(mask) {
        let place = addr[l] / unit;
        if n > 0 && place == list[n - 1] {
            continue;
        }
        sorted &= n == 0 || place > list[n - 1];
        list[n] = place;
        n += 1;
    }
    if !sorted {
        list[..n].sort_unstable();
        let mut distinct = 1;
        for i in 1..n {
            distinct += usize::from(list[i] != list[i - 1]);
        }
        n = distinct;
    }
    n as u64
}

/// Finds the allocations of all lanes.
#[cold]
fn locate(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, slot: usize) -> bool {
    let grid = cx.grid;
    for l in lanes_of(mask) {
        match grid.table.find(addr[l]) {
            Some(found) if addr[l] + bytes <= found.end => {
                cx.cache[slot] = (found.start, found.end);
            }
            _ => {
                // without checks the whole reserved region may be touched, as on a device
                if !grid.strict.bounds && grid.table.reserved(addr[l], bytes) {
                    continue;
                }
                let place = grid.table.describe(addr[l], bytes);
                let what = format!("{} {bytes} bytes of global memory at {:#x}, {place}", touch.verb(), addr[l]);
                cx.fail(FaultKind::Bounds, 1 << l, &what);
                return false;
            }
        }
    }
    true
}

fn reach_shared(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let size = cx.block.shared.len() as u64;
    let mut bits = 0;
    for l in lanes_of(mask) {
        bits |= addr[l];
        if addr[l].checked_add(bytes).is_none_or(|end| end > size) {
            let what = format!(
                "{} {bytes} bytes of shared memory at {:#x}, the block has {size} bytes",
                touch.verb(),
                addr[l]
            );
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
    }
    if bits & (bytes - 1) != 0 && cx.grid.strict.bounds && misaligned(cx, addr, mask, touch, bytes, "shared") {
        return false;
    }
    let lanes = u64::from(mask.count_ones());
    if touch != Touch::Write {
        cx.counters.shared_bytes_read += lanes * bytes;
    }
    if touch != Touch::Read {
        cx.counters.shared_bytes_written += lanes * bytes;
    }
    let (passes, conflicts) = passes(addr, mask, bytes);
    cx.counters.shared_wavefronts += passes;
    cx.counters.bank_conflicts += conflicts;
    let strict = cx.grid.strict;
    if (strict.uninitialised || strict.races) && !race::shared(cx, addr, mask, touch, bytes, access) {
        return false;
    }
    let base = cx.block.shared.as_mut_ptr() as u64;
    for a in addr.iter_mut().enumerate().filter(|(l, _)| mask >> l & 1 != 0) {
        *a.1 += base;
    }
    true
}

/// Passes over shared memory, and those of them that conflicts cost: 4-byte words in 32 banks.
fn passes(addr: &[u64; LANES], mask: u32, bytes: u64) -> (u64, u64) {
    let (mut passes, mut extra) = (0, 0);
    for part in groups(bytes).map(|group| mask & group).filter(|&part| part != 0) {
        passes += 1;
        // words in order of lanes: no conflict is the usual case, seen by a bank being met with one word only
        let mut words = [u64::MAX; 32];
        let mut clash = false;
        for l in lanes_of(part) {
            let first = addr[l] / 4;
            for word in first..first + bytes.div_ceil(4) {
                let bank = (word % 32) as usize;
                clash |= words[bank] != u64::MAX && words[bank] != word;
                words[bank] = word;
            }
        }
        if clash {
            let mut all: Vec<u64> = lanes_of(part)
                .flat_map(|l| {
                    let first = addr[l] / 4;
                    first..first + bytes.div_ceil(4)
                })
                .collect();
            all.sort_unstable();
            all.dedup();
            let mut load = [0u64; 32];
            for word in all {
                load[(word % 32) as usize] += 1;
            }
            extra += load.iter().max().map_or(0, |m| m - 1);
        }
    }
    (passes + extra, extra)
}

fn reach_local(cx: &mut Cx, _access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let stack = cx.grid.stack as u64;
    for l in lanes_of(mask) {
        if addr[l].checked_add(bytes).is_none_or(|end| end > stack) {
            let what =
                format!("{} {bytes} bytes of local memory at {:#x}, a thread has {stack} bytes", touch.verb(), addr[l]);
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
        if addr[l] & (bytes - 1) != 0 && cx.grid.strict.bounds {
            misaligned(cx, addr, 1 << l, touch, bytes, "local");
            return false;
        }
    }
    let lanes = u64::from(mask.count_ones());
    match touch {
        Touch::Read => cx.counters.local_bytes_read += lanes * bytes,
        _ => cx.counters.local_bytes_written += lanes * bytes,
    }
    let base = cx.warp().local.as_mut_ptr() as u64;
    for l in lanes_of(mask) {
        addr[l] += base + l as u64 * stack;
    }
    true
}

fn reach_param(cx: &mut Cx, _access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let size = cx.grid.params.len() as u64;
    for l in lanes_of(mask) {
        if touch != Touch::Read {
            cx.fail(FaultKind::Space, 1 << l, "writes to the kernel's parameters");
            return false;
        }
        if addr[l].checked_add(bytes).is_none_or(|end| end > size) {
            let what =
                format!("reads {bytes} bytes of parameters at {:#x}, the kernel has {size} bytes of them", addr[l]);
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
    }
    let base = cx.grid.params.as_ptr() as u64;
    for l in lanes_of(mask) {
        addr[l] += base;
    }
    true
}
