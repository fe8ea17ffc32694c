//! The check of races.
//!
//! Every byte of shared memory and every two bytes of global memory have two [`Stamp`]s, of the last write and of the
//! reads since; accesses of one byte to global memory have theirs apart, one pair for each byte. Two accesses are ordered
//! if their thread is the same, or if barriers lead from one to the other: each warp has a clock, and knows up to which
//! value the clocks of the others are behind it (vector clocks at the grain of warps). Blocks are ordered by a fence, an
//! atomic and an atomic that reads it. What is not ordered and not atomic on both sides is a race, found whichever of the
//! two happens to run first.

use super::machine::{Cx, Grid};
use super::operand::{LANES, Order, Touch};
use super::stamp::{
    ALL_BLOCKS, BLOCK, CLOCK, CLOCK_MAX, READ_ONLY, SINGLE, SOME_LANES, SOME_WARPS, STRONG, Stamp, THREAD,
};
use super::state::Block;
use crate::device::PAGE;
use crate::fault::FaultKind;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// What orders the accesses of one warp.
struct Now<'a> {
    clocks: &'a [u32],
    /// Barriers of the block that had completed when this warp last took part in one.
    last_barrier: u32,
    epoch: u32,
    /// When the warp last read an atomic of another block.
    acquired: u64,
    grid: &'a Grid,
}

impl<'a> Now<'a> {
    fn of(cx: &'a Cx) -> Self {
        let warp = &cx.block.warps[cx.w];
        Self {
            clocks: &warp.clocks,
            last_barrier: warp.last_barrier,
            epoch: cx.block.epoch,
            acquired: warp.acquired,
            grid: cx.grid,
        }
    }

    /// Whether what `old` stands for happened before what `me` does now.
    fn ordered(&self, old: Stamp, me: Stamp) -> bool {
        if old.block() == ALL_BLOCKS {
            return self.acquired > 0;
        }
        if old.block() != me.block() {
            return self.acquired > 0
                && self.grid.released(old.block(), (old.thread() / 32) as usize, old, self.acquired);
        }
        if old.clock() == CLOCK_MAX {
            // too many barriers to tell
            return true;
        }
        match old.multi() {
            SOME_WARPS => u64::from(self.last_barrier) > old.clock(),
            _ => u64::from(self.clocks[(old.thread() / 32) as usize]) > old.clock(),
        }
    }

    /// Records an access and gives the one that it races with.
    #[inline(always)]
    fn visit(&self, write: &AtomicU64, read: &AtomicU64, me: Stamp, touch: Touch) -> Option<(Stamp, bool)> {
        if touch == Touch::Read {
            let old = Stamp(read.load(Ordering::Relaxed));
            if old != me {
                let new = self.reader(old, me);
                if new != old {
                    read.store(new.0, Ordering::SeqCst);
                }
            }
            return self.against(Stamp(write.load(Ordering::SeqCst)), None, me);
        }
        let mut w = Stamp(write.load(Ordering::Relaxed));
        if w != me {
            w = Stamp(write.swap(me.0, Ordering::SeqCst));
        }
        self.against(w, Some(Stamp(read.load(Ordering::SeqCst))), me)
    }

    /// The access that one races with, without recording it.
    fn peek(&self, write: &AtomicU64, read: &AtomicU64, me: Stamp, touch: Touch) -> Option<(Stamp, bool)> {
        let r = (touch != Touch::Read).then(|| Stamp(read.load(Ordering::SeqCst)));
        self.against(Stamp(write.load(Ordering::SeqCst)), r, me)
    }

    /// Which of the last write and, for a write, the reads since races with `me`; `true` for the write.
    #[inline(always)]
    fn against(&self, write: Stamp, read: Option<Stamp>, me: Stamp) -> Option<(Stamp, bool)> {
        if write.serial() == me.serial() && (me.read_only() || self.races(write, me)) {
            return Some((write, true));
        }
        let read = read?;
        (read.serial() == me.serial() && (read.read_only() || self.races(read, me))).then_some((read, false))
    }

    /// Two accesses of which one writes: another thread's, not both atomic, and not ordered.
    #[inline(always)]
    fn races(&self, old: Stamp, me: Stamp) -> bool {
        let both_strong = old.strong() && me.strong();
        !old.same_thread(me) && !both_strong && !self.ordered(old, me)
    }

    /// The stamp of the reads after one more.
    #[inline(always)]
    fn reader(&self, old: Stamp, me: Stamp) -> Stamp {
        if old.serial() != me.serial() {
            return me;
        }
        let keep = old.0 & READ_ONLY;
        // nothing new: what many threads read is read by one more, in the same way
        let covered = (old.read_only() || !me.read_only()) && (me.strong() || !old.strong());
        if covered {
            if old.block() == ALL_BLOCKS {
                return old;
            }
            let known = match old.multi() {
                SOME_LANES => old.thread() / 32 == me.thread() / 32 && old.clock() == me.clock(),
                SOME_WARPS => old.clock() == u64::from(self.epoch),
                _ => false,
            };
            if known && old.block() == me.block() {
                return old;
            }
        }
        if old.same_thread(me) {
            return Stamp(me.0 | keep);
        }
        let weak = if old.strong() { u64::MAX } else { !STRONG };
        if old.block() != me.block() {
            return Stamp(me.of_all_blocks().0 & weak | keep);
        }
        if old.block() != ALL_BLOCKS && self.ordered(old, me) {
            return Stamp(me.0 | keep);
        }
        let new = if old.multi() != SOME_WARPS && old.thread() / 32 == me.thread() / 32 {
            me.with_multi(SOME_LANES, me.clock())
        } else {
            me.with_multi(SOME_WARPS, self.epoch.into())
        };
        Stamp(new.0 & weak | keep)
    }
}

/// Fences of a block that are remembered.
const MOST_RELEASES: usize = 64;

impl Grid {
    /// Whether a fence of `block` came after the access `old` and before `acquired`.
    #[cold]
    fn released(&self, block: u64, warp: usize, old: Stamp, acquired: u64) -> bool {
        let list = self.releases.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.get(&block).is_some_and(|all| {
            all.iter()
                .any(|(time, clocks)| *time < acquired && clocks.get(warp).is_some_and(|c| u64::from(*c) > old.clock()))
        })
    }
}

/// A fence of the device: what the warp did, and what barriers ordered before, is released.
pub(crate) fn fence(cx: &mut Cx) {
    let w = cx.w;
    let time = cx.grid.releases.time.fetch_add(1, Ordering::SeqCst) + 1;
    cx.warp().clocks[w] += 1;
    let clocks = cx.warp().clocks.clone();
    let block = cx.block.index % ALL_BLOCKS;
    let mut list = cx.grid.releases.list.lock().unwrap_or_else(PoisonError::into_inner);
    let all = list.entry(block).or_default();
    if all.len() >= MOST_RELEASES {
        all.remove(MOST_RELEASES / 2);
    }
    all.push((time, clocks));
}

impl Block {
    /// After a barrier of the warps in `warps`: all that they did before is ordered before all that they do now.
    pub(crate) fn order(&mut self, warps: u32) {
        self.epoch += 1;
        let inside = |w: usize| warps >> w & 1 != 0;
        let n = self.warps.len();
        let mut joined = vec![0u32; n];
        let mut acquired = 0;
        for w in (0..n).filter(|&w| inside(w)) {
            self.warps[w].clocks[w] += 1;
            acquired = acquired.max(self.warps[w].acquired);
            for (all, own) in joined.iter_mut().zip(&self.warps[w].clocks) {
                *all = (*all).max(*own);
            }
        }
        for w in (0..n).filter(|&w| inside(w)) {
            self.warps[w].clocks.copy_from_slice(&joined);
            self.warps[w].acquired = acquired;
            self.warps[w].last_barrier = self.epoch;
        }
    }
}

/// The stamp of lane 0 of the current warp at the current operation.
fn stamp(cx: &Cx, serial: u32, order: Order, touch: Touch, block: u64) -> Stamp {
    let strong = matches!(order, Order::Strong | Order::Sync) || touch == Touch::Atomic;
    let read_only = order == Order::ReadOnly && touch == Touch::Read;
    let clock = cx.block.warps[cx.w].clocks[cx.w];
    Stamp(
        u64::from(serial) << 52
            | if read_only { READ_ONLY } else { 0 }
            | if strong { STRONG } else { 0 }
            | block << BLOCK
            | (32 * cx.w as u64) << THREAD
            | u64::from(clock).min(CLOCK_MAX) << CLOCK
            | u64::from(cx.pc as u8),
    )
}

/// Who a stamp is, for a message.
fn who(cx: &Cx, other: Stamp, me: Stamp) -> String {
    let grid = cx.grid;
    if other.block() == ALL_BLOCKS {
        return "threads of several blocks".into();
    }
    let block = if other.block() == me.block() {
        "of the same block".into()
    } else {
        format!("of block {}", grid.place_of_block(other.block()))
    };
    match other.multi() {
        SINGLE => format!("thread {} {block}", grid.place_of_thread(other.thread() as u32)),
        SOME_LANES => format!("several lanes of warp {} {block}", other.thread() / 32),
        _ => format!("several warps {block}"),
    }
}

/// Where the other access stands, as far as its stamp tells: the line of every operation that it may be.
fn place_of(cx: &Cx, other: Stamp, wrote: bool, space: &str) -> String {
    let program = &cx.grid.program;
    let reads = ["ld", "atom", "red", "cp", "mma", "call"];
    let writes = ["st", "atom", "red", "cp", "call"];
    let words: &[&str] = if wrote { &writes } else { &reads };
    let elsewhere = |text: &str| {
        let spaces = [".param", ".local", ".const", if space == "global" { ".shared" } else { ".global" }];
        !text.starts_with("cp") && spaces.iter().any(|s| text.contains(s))
    };
    let mut lines: Vec<u32> = program
        .codes
        .iter()
        .enumerate()
        .filter(|(i, code)| *i as u32 == cx.grid.function || (!code.entry && cx.grid.kernel().calls_any))
        .flat_map(|(_, code)| code.lines.iter().skip(other.site().into()).step_by(256).copied())
        .filter(|line| {
            let text = program.text.get((*line as usize).wrapping_sub(1)).map_or("", |t| t.trim());
            let text = if text.starts_with('@') { text.split_once(' ').map_or("", |t| t.1.trim()) } else { text };
            words.iter().any(|w| text.starts_with(w)) && !elsewhere(text)
        })
        .collect();
    lines.dedup();
    let said: Vec<String> = lines
        .iter()
        .take(3)
        .map(|line| format!("PTX line {line} `{}`", program.text[*line as usize - 1].trim()))
        .collect();
    if said.is_empty() { String::new() } else { format!(" at {}", said.join(" or ")) }
}

/// Checks and records an access to global memory.
#[inline]
pub(crate) fn global(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, order: Order) -> bool {
    let grid = cx.grid;
    let Some(shadow) = grid.memory.race_shadow() else { return true };
    if order == Order::Sync && touch != Touch::Read {
        fence(cx);
    }
    if touch != Touch::Write && matches!(order, Order::Strong | Order::Sync) {
        let time = grid.releases.time.load(Ordering::SeqCst) + 1;
        cx.warp().acquired = time;
    }
    let base = grid.memory.base();
    let now = Now::of(cx);
    let lane0 = stamp(cx, grid.serial, order, touch, cx.block.index % ALL_BLOCKS);
    let mut found = None;
    if bytes == 1 {
        found = single_bytes(&now, addr, mask, lane0, touch);
    } else {
        'lanes: for l in 0..LANES {
            if mask >> l & 1 == 0 {
                continue;
            }
            let me = lane0.of_lane(l);
            let first = addr[l].wrapping_sub(base) / 2;
            for g in first..first + bytes / 2 {
                // SAFETY: the bounds check came first, and the shadow has two words for each two bytes of the region.
                let (write, read) = unsafe { pair(shadow + g * 16) };
                if let Some((other, wrote)) = now.visit(write, read, me, touch) {
                    found = Some((l, addr[l], me, other, wrote));
                    break 'lanes;
                }
            }
        }
        if found.is_none() && grid.single_bytes.load(Ordering::SeqCst) {
            found = against_single_bytes(&now, addr, mask, lane0, touch, bytes);
        }
    }
    let Some((lane, at, me, other, wrote)) = found else { return true };
    race(cx, lane, at, bytes, me, other, wrote, touch, "global")
}

/// The stamps of a write and of reads.
///
/// # Safety
/// Two words of a shadow stand there.
unsafe fn pair<'a>(at: u64) -> (&'a AtomicU64, &'a AtomicU64) {
    // SAFETY: the caller's promise; shadows live as long as the process.
    unsafe { (&*(at as *const AtomicU64), &*(at as *const AtomicU64).add(1)) }
}

/// A lane, the address, its stamp, the other's stamp, and whether that is a write.
type Found = (usize, u64, Stamp, Stamp, bool);

/// Accesses of one byte have stamps of their own, one pair for each byte, in a shadow that wider accesses do not touch:
/// each kind looks at the other's.
fn single_bytes(now: &Now<'_>, addr: &[u64; LANES], mask: u32, lane0: Stamp, touch: Touch) -> Option<Found> {
    let memory = &now.grid.memory;
    let (wide, (single, marks)) = (memory.race_shadow()?, memory.byte_shadow()?);
    now.grid.single_bytes.store(true, Ordering::SeqCst);
    for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let me = lane0.of_lane(l);
        let n = addr[l].wrapping_sub(memory.base());
        // SAFETY: the bounds check came first; the shadows have two words for each byte and each two bytes of the region,
        // and a mark for each page.
        let (mark, own, shared) =
            unsafe { (&*((marks + n / PAGE * 2) as *const AtomicU16), pair(single + n * 16), pair(wide + n / 2 * 16)) };
        if mark.load(Ordering::Relaxed) != now.grid.serial as u16 {
            mark.store(now.grid.serial as u16, Ordering::SeqCst);
        }
        let found = now.visit(own.0, own.1, me, touch).or_else(|| now.peek(shared.0, shared.1, me, touch));
        if let Some((other, wrote)) = found {
            return Some((l, addr[l], me, other, wrote));
        }
    }
    None
}

/// What a wider access has to do with accesses of single bytes in the same launch.
#[cold]
fn against_single_bytes(
    now: &Now<'_>,
    addr: &[u64; LANES],
    mask: u32,
    lane0: Stamp,
    touch: Touch,
    bytes: u64,
) -> Option<Found> {
    let memory = &now.grid.memory;
    let (single, marks) = memory.byte_shadow()?;
    for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let me = lane0.of_lane(l);
        let n = addr[l].wrapping_sub(memory.base());
        // SAFETY: as above; an access is aligned, so it lies in one page.
        if unsafe { &*((marks + n / PAGE * 2) as *const AtomicU16) }.load(Ordering::SeqCst) != now.grid.serial as u16 {
            continue;
        }
        for byte in n..n + bytes {
            // SAFETY: as above.
            let (write, read) = unsafe { pair(single + byte * 16) };
            if let Some((other, wrote)) = now.peek(write, read, me, touch) {
                return Some((l, addr[l], me, other, wrote));
            }
        }
    }
    None
}

#[cold]
#[allow(clippy::too_many_arguments)]
fn race(
    cx: &mut Cx,
    lane: usize,
    at: u64,
    bytes: u64,
    me: Stamp,
    other: Stamp,
    wrote: bool,
    touch: Touch,
    space: &str,
) -> bool {
    let place = match cx.grid.table.find(at) {
        Some(a) if space == "global" => {
            format!(" (byte {} of an allocation of {} bytes)", at - a.start, a.end - a.start)
        }
        _ => String::new(),
    };
    let (who, line) = (who(cx, other, me), place_of(cx, other, wrote, space));
    let head = format!("{} {bytes} bytes of {space} memory at {at:#x}{place}", touch.verb());
    let (kind, what) = if me.read_only() {
        (
            FaultKind::ReadOnly,
            format!("{head} as read-only (ld.global.nc), but {who} wrote them{line} in the same launch"),
        )
    } else if other.read_only() && !wrote {
        (
            FaultKind::ReadOnly,
            format!("{head}, but {who} read them as read-only (ld.global.nc){line} in the same launch"),
        )
    } else {
        let did = if wrote { "wrote" } else { "read" };
        (FaultKind::Race, format!("{head}, which {who} {did}{line} without a barrier or atomic between: a race"))
    };
    cx.fail(kind, 1 << lane, &what);
    false
}

/// Checks and records an access to shared memory.
pub(crate) fn shared(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, order: Order) -> bool {
    let strict = cx.grid.strict;
    if strict.uninitialised {
        for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
            let range = addr[l] as usize..(addr[l] + bytes) as usize;
            let known = &mut cx.block.shadow.written[range];
            if touch != Touch::Write
                && let Some(i) = known.iter().position(|w| *w == 0)
            {
                if cx.block.shadow.pending.is_none() {
                    let at = addr[l];
                    let what = format!(
                        "reads {bytes} bytes of shared memory at {at:#x}, of which byte {:#x} was never written by this \
                         block",
                        at + i as u64
                    );
                    let fault = cx.fault_at(FaultKind::Uninitialised, cx.pc, l as u32, &what);
                    cx.block.shadow.pending = Some(Box::new(fault));
                }
                continue;
            }
            if touch != Touch::Read {
                known.fill(1);
            }
        }
    }
    if !strict.races {
        return true;
    }
    let now = Now::of(cx);
    let lane0 = stamp(cx, cx.block.shadow.serial, order, touch, 0);
    let mut found = None;
    'lanes: for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let me = lane0.of_lane(l);
        for byte in addr[l] as usize..(addr[l] + bytes) as usize {
            let (write, read) = (&cx.block.shadow.stamps[2 * byte], &cx.block.shadow.stamps[2 * byte + 1]);
            if let Some((other, wrote)) = now.visit(write, read, me, touch) {
                found = Some((l, addr[l], me, other, wrote));
                break 'lanes;
            }
        }
    }
    let Some((lane, at, me, other, wrote)) = found else { return true };
    race(cx, lane, at, bytes, me, other, wrote, touch, "shared")
}
