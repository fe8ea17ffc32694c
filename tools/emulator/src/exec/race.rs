//! The check of races.
//!
//! Every byte of shared memory and every two bytes of global memory have two [`Stamp`]s, of the last write and of the
//! reads since; accesses of one byte to global memory have theirs apart, one pair for each byte. Two accesses are ordered
//! if their thread is the same, or if what [`Known`] tells leads from one to the other. What is not ordered, and not
//! strong on both sides for each other's thread, is a race, found whichever of the two happens to run first.
//!
//! A copy to shared memory may land at any moment until it is waited for: nobody may touch its place before, nor write its
//! source.

use super::causal::{GLOBAL, Known, Reach};
use super::machine::{Cx, Grid, LooseKernel};
use super::operand::{Access, LANES, Order, Touch};
use super::stamp::{
    ALL_BLOCKS, BLOCK, CLOCK, CLOCK_MAX, KIND, NARROW, READ_ONLY, SINGLE, SOME_LANES, SOME_WARPS, Stamp, THREAD, WEAK,
    WIDE,
};
use super::state::Pending;
use crate::device::{Memory, PAGE};
use crate::fault::FaultKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// What orders the accesses of one warp: to shared memory if it is `NEAR`, else to global memory.
struct Now<'a, const NEAR: bool> {
    known: &'a Known,
    /// Barriers of the block that have completed.
    epoch: u32,
    block: u64,
    grid: &'a Grid,
    /// The access is strong.
    strong: bool,
}

impl<'a, const NEAR: bool> Now<'a, NEAR> {
    fn of(cx: &'a Cx, me: Stamp) -> Self {
        let known = &cx.block.warps[cx.w].known;
        Self { known, epoch: cx.block.epoch, block: cx.block.index, grid: cx.grid, strong: me.strong() }
    }

    /// Whether what `old` stands for happened before what `me` does now.
    #[inline(always)]
    fn ordered(&self, old: Stamp, me: Stamp) -> bool {
        if old.block() == me.block() {
            let known = match old.multi() {
                SOME_WARPS => u64::from(self.known.last_barrier) > old.clock(),
                _ => u64::from(self.known.clocks[(old.thread() / 32) as usize]) > old.clock(),
            };
            if known {
                return true;
            }
        }
        self.told(old, me)
    }

    /// The same where no barrier has ordered them for all lanes.
    #[cold]
    #[inline(never)]
    fn told(&self, old: Stamp, me: Stamp) -> bool {
        let (far, lane) = (old.block() != me.block(), (me.thread() % 32) as usize);
        if !far {
            let own = old.multi() != SOME_WARPS && old.thread() / 32 == me.thread() / 32;
            // beyond the last value of a clock nothing can be told
            if old.clock() == CLOCK_MAX || own && self.known.lane_knows(old, lane) {
                return true;
            }
        }
        let block = if far { old.block() } else { self.block % ALL_BLOCKS };
        self.known.saw_any() && self.known.signalled(&self.grid.releases, old, block, far, lane)
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
        if w != me && !(self.strong && self.stays(w, me)) {
            w = Stamp(write.swap(me.0, Ordering::SeqCst));
        }
        self.against(w, Some(Stamp(read.load(Ordering::SeqCst))), me)
    }

    /// Whether the stamp of an ordinary write stays behind an atomic write of its own warp: until a barrier other warps could
    /// still meet the former, and the atomic would hide it.
    #[inline(always)]
    fn stays(&self, old: Stamp, me: Stamp) -> bool {
        !old.strong()
            && old.serial() == me.serial()
            && old.same_warp(me)
            && old.clock() >= u64::from(self.known.since_barrier)
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
        if NEAR {
            return !old.same_thread(me) && !meet(old, me) && !self.ordered(old, me);
        }
        self.races_far(old, me)
    }

    /// The same for global memory, where launches seldom meet their own accesses: out of the way of the others.
    #[inline(never)]
    fn races_far(&self, old: Stamp, me: Stamp) -> bool {
        !old.same_thread(me) && !meet(old, me) && !self.ordered(old, me)
    }

    /// The stamp of the reads after one more.
    #[inline(always)]
    fn reader(&self, old: Stamp, me: Stamp) -> Stamp {
        if old.serial() != me.serial() {
            return me;
        }
        if NEAR { self.reads(old, me) } else { self.reads_far(old, me) }
    }

    /// As [`Self::races_far`].
    #[inline(never)]
    fn reads_far(&self, old: Stamp, me: Stamp) -> Stamp {
        self.reads(old, me)
    }

    /// The stamp of the reads of a launch after one more of its own.
    #[inline(always)]
    fn reads(&self, old: Stamp, me: Stamp) -> Stamp {
        let kind = old.kind_with(me);
        // nothing new: what many threads read is read by one more, in the same way
        if kind == old.kind() {
            if old.of_several_blocks() {
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
        let alone = if old.read_only() { READ_ONLY } else { me.kind() };
        if old.same_thread(me) {
            return me.with_kind(if old.clock() == me.clock() { kind } else { alone });
        }
        if old.block() != me.block() {
            return me.of_all_blocks().with_kind(kind);
        }
        if !old.of_several_blocks() && self.ordered(old, me) {
            return me.with_kind(alone);
        }
        let new = if old.multi() != SOME_WARPS && old.thread() / 32 == me.thread() / 32 {
            me.with_multi(SOME_LANES, me.clock())
        } else {
            me.with_multi(SOME_WARPS, self.epoch.into())
        };
        new.with_kind(kind)
    }
}

/// Whether both accesses are strong, each for the other's thread.
#[inline(always)]
fn meet(old: Stamp, me: Stamp) -> bool {
    me.strong() && old.strong() && (old.block() == me.block() || old.kind_with(me) == WIDE)
}

/// A fence of the lanes in `mask`, of the device's scope if it is `wide`, else of the block's.
pub(crate) fn fence(cx: &mut Cx, mask: u32, wide: bool) {
    let w = cx.w;
    let warp = cx.warp();
    warp.known.fence(w, mask, warp.live, wide);
}

/// What a strong read finds: signals behind which its lanes stand.
#[cold]
fn look(cx: &mut Cx, block: u64, addr: &[u64; LANES], mask: u32, access: &Access) {
    let releases = &cx.grid.releases;
    let fence = match (access.order.acquires(), access.narrow) {
        (false, _) => Reach::Nowhere,
        (true, true) => Reach::Block,
        (true, false) => Reach::Device,
    };
    let known = &mut cx.block.warps[cx.w].known;
    let mut left = mask;
    while left != 0 {
        let at = addr[left.trailing_zeros() as usize];
        let same = (0..LANES).fold(0, |m, l| m | u32::from(addr[l] == at) << l) & left;
        releases.look(known, (block, at), same, !access.narrow, fence);
        left &= !same;
    }
}

/// Behind a strong read of global memory: what it may have found. Workers run blocks at the same time, so that a look before
/// the read would miss a signal that the read then finds.
#[inline]
pub(crate) fn found(cx: &mut Cx, addr: &[u64; LANES], mask: u32, access: &Access) {
    if access.order.strong() && cx.grid.strict.races && cx.grid.releases.any() {
        look(cx, GLOBAL, addr, mask, access);
    }
}

/// What a strong write tells: that all is done that came before a fence of its lane.
#[cold]
fn signal(cx: &mut Cx, block: u64, addr: &[u64; LANES], mask: u32, access: &Access, touch: Touch) {
    if access.order.releases() {
        fence(cx, mask, !access.narrow);
    }
    let (releases, own) = (&cx.grid.releases, cx.block.index % ALL_BLOCKS);
    let known = &cx.block.warps[cx.w].known;
    for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        releases.signal(known, (block, addr[l]), own, l, !access.narrow, touch == Touch::Atomic);
    }
}

/// The stamp of lane 0 of the current warp at the current operation.
fn stamp(cx: &Cx, serial: u32, access: &Access, touch: Touch, block: u64) -> Stamp {
    let kind = match access.order {
        Order::ReadOnly if touch == Touch::Read => READ_ONLY,
        Order::Weak | Order::ReadOnly if touch != Touch::Atomic => WEAK,
        _ if access.narrow => NARROW,
        _ => WIDE,
    };
    let clock = cx.block.warps[cx.w].known.now;
    Stamp(
        u64::from(serial) << 52
            | kind << KIND
            | block << BLOCK
            | (32 * cx.w as u64) << THREAD
            | u64::from(clock).min(CLOCK_MAX) << CLOCK
            | u64::from(cx.pc as u8),
    )
}

/// Who a stamp is, for a message.
fn who(cx: &Cx, other: Stamp, me: Stamp) -> String {
    let grid = cx.grid;
    if other.of_several_blocks() {
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
pub(crate) fn global(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, access: &Access) -> bool {
    let grid = cx.grid;
    let Some(shadow) = grid.memory.race_shadow() else { return true };
    let strong = access.order.strong();
    if !grid.loose.is_empty() && !across(cx, addr, mask, touch, bytes) {
        return false;
    }
    let base = grid.memory.base();
    let lane0 = stamp(cx, grid.serial, access, touch, cx.block.index % ALL_BLOCKS);
    let now = Now::<false>::of(cx, lane0);
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
    let Some((lane, at, me, other, wrote)) = found else {
        if strong && touch != Touch::Read {
            signal(cx, GLOBAL, addr, mask, access, touch);
        }
        return true;
    };
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
fn single_bytes(now: &Now<'_, false>, addr: &[u64; LANES], mask: u32, lane0: Stamp, touch: Touch) -> Option<Found> {
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
    now: &Now<'_, false>,
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
pub(crate) fn shared(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, access: &Access) -> bool {
    let strict = cx.grid.strict;
    if !cx.block.shadow.flying.is_empty() && !landed(cx, addr, mask, touch.verb(), bytes) {
        return false;
    }
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
    let strong = access.order.strong();
    let block = cx.block.index % ALL_BLOCKS;
    if strong && touch != Touch::Write && cx.grid.releases.any() {
        look(cx, block, addr, mask, access);
    }
    if !ordered_in_shared(cx, addr, mask, touch, bytes, access) {
        return false;
    }
    if strong && touch != Touch::Read {
        signal(cx, block, addr, mask, access, touch);
    }
    true
}

/// Visits the stamps of shared memory.
fn ordered_in_shared(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, access: &Access) -> bool {
    let lane0 = stamp(cx, cx.block.shadow.serial, access, touch, 0);
    let now = Now::<true>::of(cx, lane0);
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

// ---- other launches --------------------------------------------------------------------------------------------------

/// Which of some launches touched bytes of global memory last, and whether it wrote them; reads matter to writes alone.
pub(crate) fn touched<'a>(
    memory: &Memory,
    at: u64,
    bytes: u64,
    writes: bool,
    launches: &'a [Arc<LooseKernel>],
) -> Option<(&'a LooseKernel, u64, bool)> {
    if launches.is_empty() {
        return None;
    }
    let known = |stamp: &AtomicU64| {
        let serial = Stamp(stamp.load(Ordering::SeqCst)).serial();
        launches.iter().find(|k| serial != 0 && u64::from(k.serial) == serial)
    };
    let n = at.wrapping_sub(memory.base());
    let first = |start: u64, granules: std::ops::Range<u64>, size: u64| {
        granules.into_iter().find_map(|g| {
            // SAFETY: the range lies in one allocation, and the shadow has two words for each granule of the region.
            let (write, read) = unsafe { pair(start + g * 16) };
            let found = known(write).map(|k| (k, true)).or_else(|| known(read).filter(|_| writes).map(|k| (k, false)));
            found.map(|(k, wrote)| (&**k, memory.base() + g * size, wrote))
        })
    };
    let wide = memory.race_shadow().and_then(|start| first(start, n / 2..(n + bytes).div_ceil(2), 2));
    wide.or_else(|| memory.byte_shadow().and_then(|(start, _)| first(start, n..n + bytes, 1)))
}

/// Whether no launch, copy or fill that nothing orders before this launch touched the bytes.
#[cold]
fn across(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let grid = cx.grid;
    let loose = &grid.loose;
    let writes = touch != Touch::Read;
    for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let at = addr[l];
        // memory that was made since is another one
        let born = grid.table.find(at).map_or(0, |a| a.born);
        let range =
            loose.ranges.iter().find(|r| r.at < at + bytes && at < r.end && (r.writes || writes) && r.moment > born);
        let other = range.map(|r| (r.name.as_str(), r.writes)).or_else(|| {
            let found = touched(&grid.memory, at, bytes, writes, &loose.kernels);
            found.filter(|(k, ..)| k.moment > born).map(|(k, _, wrote)| (k.name.as_str(), wrote))
        });
        let waited = cx.block.warps[cx.w].known.waited >> l & 1 != 0;
        let ahead = || {
            let found = touched(&grid.memory, at, bytes, writes, &loose.ahead);
            found.filter(|(k, ..)| k.moment > born).map(|(k, _, wrote)| (k.name.as_str(), wrote))
        };
        let (name, wrote, why) = match (other, if waited { None } else { ahead() }) {
            (Some((name, wrote)), _) => {
                (name, wrote, "and neither an event nor a synchronisation orders it before this launch")
            }
            (None, Some((name, wrote))) => {
                (name, wrote, "and this launch may overlap it until the thread has run griddepcontrol.wait")
            }
            (None, None) => continue,
        };
        let place = grid.table.find(at).map_or(String::new(), |a| {
            format!(" (byte {} of an allocation of {} bytes)", at - a.start, a.end - a.start)
        });
        let did = if wrote { "wrote" } else { "read" };
        let what = format!(
            "{} {bytes} bytes of global memory at {at:#x}{place}, which {name} {did}, {why}: a race",
            touch.verb()
        );
        cx.fail(FaultKind::Race, 1 << l, &what);
        return false;
    }
    true
}

// ---- copies under way ------------------------------------------------------------------------------------------------

/// A line of the text, in a message.
fn line(cx: &Cx, line: u32) -> String {
    let text = cx.grid.program.text.get((line as usize).wrapping_sub(1)).map_or("", |t| t.trim());
    format!("PTX line {line} `{text}`")
}

/// Whether no copy is under way to the bytes; `verb` says what happens to them.
#[cold]
fn landed(cx: &mut Cx, addr: &[u64; LANES], mask: u32, verb: &str, bytes: u64) -> bool {
    for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
        let range = addr[l] as usize..(addr[l] + bytes) as usize;
        let Some(i) = cx.block.shadow.flying[range].iter().position(|f| *f) else { continue };
        let byte = addr[l] as u32 + i as u32;
        let copies =
            cx.block.warps.iter().enumerate().flat_map(|(w, warp)| warp.copies.pending.iter().map(move |p| (w, p)));
        let copy = copies.into_iter().find(|(_, p)| (p.to..p.to + u32::from(p.bytes)).contains(&byte));
        let who = copy.map_or(String::new(), |(w, p)| {
            let thread = 32 * w as u32 + u32::from(p.lane);
            let whose = if thread == 32 * cx.w as u32 + l as u32 {
                "its own cp.async".into()
            } else {
                format!("the cp.async of thread {}", cx.grid.place_of_thread(thread))
            };
            format!("{whose} at {}", line(cx, p.line))
        });
        let what = format!(
            "{verb} {bytes} bytes of shared memory at {:#x}, which {who} is still writing, for it was not waited for: \
             a race",
            addr[l]
        );
        cx.fail(FaultKind::Race, 1 << l, &what);
        return false;
    }
    true
}

/// A copy of a lane to shared memory begins: from now on nobody may touch the place until the lane waits for it.
pub(crate) fn depart(cx: &mut Cx, to: u32, lane: usize, access: &Access) -> bool {
    let bytes = access.bytes();
    let size = cx.block.shared.len();
    if to as usize + bytes as usize > size {
        // the wait will say so
        return true;
    }
    cx.block.shadow.flying.resize(size, false);
    let addr = [u64::from(to); LANES];
    if !landed(cx, &addr, 1 << lane, "copies to", bytes)
        || !ordered_in_shared(cx, &addr, 1 << lane, Touch::Write, bytes, access)
    {
        return false;
    }
    cx.block.shadow.flying[to as usize..to as usize + bytes as usize].fill(true);
    true
}

/// A copy lands.
pub(crate) fn land(cx: &mut Cx, to: u32, bytes: u8) {
    let range = to as usize..to as usize + bytes as usize;
    if let Some(flying) = cx.block.shadow.flying.get_mut(range) {
        flying.fill(false);
    }
}

/// Who wrote the source of a copy last, two bytes by two.
pub(crate) fn sources(cx: &Cx, from: u64, bytes: u8) -> [u64; 8] {
    let mut found = [0; 8];
    let Some(shadow) = cx.grid.memory.race_shadow() else { return found };
    let first = from.wrapping_sub(cx.grid.memory.base()) / 2;
    for (g, stamp) in (first..).zip(found.iter_mut().take(bytes as usize / 2)) {
        // SAFETY: the copy has read its source, so the bounds check came first.
        *stamp = unsafe { pair(shadow + g * 16) }.0.load(Ordering::SeqCst);
    }
    found
}

/// Whether nobody wrote the source of a copy of `lane` while it was under way.
pub(crate) fn untouched(cx: &mut Cx, copy: &Pending) -> bool {
    let now = sources(cx, copy.from, copy.bytes);
    let changed = now.iter().zip(&copy.sources).position(|(now, then)| now != then);
    let Some(i) = changed.filter(|&i| Stamp(now[i]).serial() == u64::from(cx.grid.serial)) else { return true };
    let other = Stamp(now[i]);
    let me = Stamp((32 * cx.w as u64) << THREAD | (cx.block.index % ALL_BLOCKS) << BLOCK).of_lane(copy.lane.into());
    let (who, at) = (who(cx, other, me), place_of(cx, other, true, "global"));
    let what = format!(
        "waits for the cp.async at {}, whose source, {} bytes of global memory at {:#x}, {who} wrote{at} before it had \
         landed: a race",
        line(cx, copy.line),
        copy.bytes,
        copy.from
    );
    cx.fail(FaultKind::Race, 1 << copy.lane, &what);
    false
}
