//! The checks that a device does not make: uninitialised reads and races.
//!
//! *Written bytes.* One bit per byte of device memory says that somebody wrote it; shared memory has a byte per byte.
//!
//! *Races.* Every byte of shared memory and every two bytes of global memory have two [`Stamp`]s, of the last write and
//! of the reads since; accesses of one byte to global memory have theirs apart, one pair for each byte. Two accesses are ordered if their thread is the same, or if barriers lead from one to the other:
//! each warp has a clock, and knows up to which value the clocks of the others are behind it (vector clocks at the
//! grain of warps). Blocks are ordered by a fence, an atomic and an atomic that reads it. What is not ordered and not
//! atomic on both sides is a race, found whichever of the two happens to run first.

use crate::config::Strict;
use crate::device::Memory;
use crate::exec::Cx;
use crate::exec::lane::LANES;
use crate::exec::memory::{Order, Touch};
use crate::fault::FaultKind;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// What memory holds that nobody wrote: as a float it is absurd, as an index it is far outside.
pub(crate) const POISON: u8 = 0xcb;
/// Allocations larger than this are not filled with [`POISON`], which would commit their memory.
const LARGEST_POISONED: u64 = 16 << 20;

// ---- written bytes ---------------------------------------------------------------------------------------------------

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

fn is_written(memory: &Memory, at: u64) -> bool {
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

/// Checks and records an access to global memory.
#[inline]
pub(crate) fn global_init(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
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

// ---- races -----------------------------------------------------------------------------------------------------------

/// Values of the 12 bits that tell one launch (or one block, for shared memory) from another.
pub(crate) const SERIALS: u32 = (1 << 12) - 1;
const CLOCK_MAX: u64 = (1 << 12) - 1;
const ALL_BLOCKS: u64 = (1 << 18) - 1;

/// Who accessed something last, and where:
/// launch 12 | read-only 1 | strong 1 | multi 2 | block 18 | thread 10 | clock 12 | place in the code 8.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

const BLOCK: u32 = 30;
const THREAD: u32 = 20;
const CLOCK: u32 = 8;
const MULTI: u32 = 48;
const STRONG: u64 = 1 << 50;
const READ_ONLY: u64 = 1 << 51;

/// One thread.
const SINGLE: u64 = 0;
/// Several lanes of the warp of [`Stamp::thread`].
const SOME_LANES: u64 = 1;
/// Several warps of the block; the clock is then the number of barriers that had completed.
const SOME_WARPS: u64 = 2;

impl Stamp {
    fn serial(self) -> u64 {
        self.0 >> 52
    }
    fn read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }
    fn strong(self) -> bool {
        self.0 & STRONG != 0
    }
    fn multi(self) -> u64 {
        self.0 >> MULTI & 3
    }
    fn block(self) -> u64 {
        self.0 >> BLOCK & ALL_BLOCKS
    }
    fn thread(self) -> u64 {
        self.0 >> THREAD & 1023
    }
    fn clock(self) -> u64 {
        self.0 >> CLOCK & CLOCK_MAX
    }
    /// The last bits of the operation's number.
    fn site(self) -> u8 {
        self.0 as u8
    }
    fn of_lane(self, lane: usize) -> Self {
        Self(self.0 | (lane as u64) << THREAD)
    }
    fn with_multi(self, multi: u64, clock: u64) -> Self {
        let rest = self.0 & !(3 << MULTI) & !(CLOCK_MAX << CLOCK);
        Self(rest | multi << MULTI | clock.min(CLOCK_MAX) << CLOCK)
    }
    fn of_all_blocks(self) -> Self {
        Self(self.0 | ALL_BLOCKS << BLOCK)
    }
    /// The same thread of the same launch, whatever else.
    fn same_thread(self, other: Self) -> bool {
        const WHO: u64 = 3 << MULTI | ALL_BLOCKS << BLOCK | 1023 << THREAD;
        (self.0 ^ other.0) & WHO == 0 && self.multi() == SINGLE && self.block() != ALL_BLOCKS
    }
}

/// What orders the accesses of one warp.
struct Now<'a> {
    clocks: &'a [u32],
    /// Barriers of the block that had completed when this warp last took part in one.
    last_barrier: u32,
    epoch: u32,
    /// When the warp last read an atomic of another block.
    acquired: u64,
    grid: &'a crate::exec::Grid,
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

/// Time between blocks: releases by fences.
#[derive(Default)]
pub(crate) struct Releases {
    time: AtomicU64,
    list: std::sync::Mutex<std::collections::HashMap<u64, Vec<Release>>>,
}

/// When a fence was, and the clocks of the warps whose accesses it releases.
type Release = (u64, Vec<u32>);

/// Fences of a block that are remembered.
const MOST_RELEASES: usize = 64;

impl crate::exec::Grid {
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

impl crate::exec::Block {
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

fn verb(touch: Touch) -> &'static str {
    match touch {
        Touch::Read => "reads",
        Touch::Write => "writes",
        Touch::Atomic => "updates",
    }
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
fn place(cx: &Cx, other: Stamp, wrote: bool, space: &str) -> String {
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
pub(crate) fn global_race(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, order: Order) -> bool {
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

/// Bytes that share a mark of [`Memory::byte_shadow`].
pub(crate) const PAGE: u64 = 4096;

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
    let (who, line) = (who(cx, other, me), self::place(cx, other, wrote, space));
    let head = format!("{} {bytes} bytes of {space} memory at {at:#x}{place}", verb(touch));
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

/// What is known of a block's shared memory.
#[derive(Default)]
pub(crate) struct SharedShadow {
    serial: u32,
    written: Vec<u8>,
    stamps: Vec<AtomicU64>,
    /// A read of bytes that nobody wrote. It is held back: if somebody writes them later without a barrier between, the
    /// race is what was wrong.
    pub(crate) pending: Option<Box<crate::fault::Fault>>,
}

impl SharedShadow {
    /// Forgets everything: a new block.
    pub(crate) fn start(&mut self, bytes: usize, strict: Strict) {
        self.pending = None;
        if strict.uninitialised {
            self.written.clear();
            self.written.resize(bytes, 0);
        }
        if strict.races {
            self.serial += 1;
            if self.stamps.len() < 2 * bytes {
                self.stamps.resize_with(2 * bytes, AtomicU64::default);
            }
            if self.serial > SERIALS {
                self.serial = 1;
                self.stamps.iter().for_each(|s| s.store(0, Ordering::Relaxed));
            }
        }
    }
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
