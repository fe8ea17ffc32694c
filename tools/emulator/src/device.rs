//! The memory of a device: address space reserved once and committed by the host when it is touched.
//!
//! A device pointer is the host's address of the byte, so that loads need no translation; it is valid only where the
//! table of allocations says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Allocations start at multiples of this, as those of a real driver do.
const GRAIN: u64 = 512;
/// Bytes between allocations that belong to none, so that running over an end is always seen.
const GAP: u64 = 512;
/// Freed blocks that are remembered for messages.
const REMEMBERED: usize = 256;

/// Values of the 12 bits that tell one launch (or one block, for shared memory) from another.
pub(crate) const SERIALS: u32 = (1 << 12) - 1;
/// Bytes that share a mark of [`Memory::byte_shadow`].
pub(crate) const PAGE: u64 = 4096;

/// A number that is larger than all before it.
pub(crate) fn moment() -> u64 {
    static MOMENTS: AtomicU64 = AtomicU64::new(1);
    MOMENTS.fetch_add(1, Ordering::Relaxed)
}

/// One allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The context that made it; 0 for memory of the host.
    pub(crate) owner: u64,
    /// A launch without the check of uninitialised reads may have written it.
    pub(crate) trusted: bool,
    /// When it was made: what came before does not matter to it.
    pub(crate) born: u64,
}

/// Allocations at one moment, for a launch to look at without locks.
#[derive(Debug, Default)]
pub(crate) struct Table {
    list: Vec<Allocation>,
    freed: Vec<Allocation>,
    region: (u64, u64),
}

impl Table {
    /// The allocation that holds an address.
    pub(crate) fn find(&self, at: u64) -> Option<&Allocation> {
        let i = self.list.partition_point(|a| a.start <= at);
        self.list[..i].last().filter(|a| at < a.end)
    }

    /// Whether the bytes lie in the reserved region.
    pub(crate) fn reserved(&self, at: u64, bytes: u64) -> bool {
        at >= self.region.0 && at.checked_add(bytes).is_some_and(|end| end <= self.region.1)
    }

    /// Where an address is, as the end of a sentence.
    pub(crate) fn describe(&self, at: u64, bytes: u64) -> String {
        if at < 4096 {
            return "a null pointer".into();
        }
        let i = self.list.partition_point(|a| a.start <= at);
        let before = self.list[..i].last();
        if let Some(a) = before.filter(|a| at < a.end) {
            let (size, over) = (a.end - a.start, at + bytes - a.end);
            return format!("{over} bytes past the end of an allocation of {size} bytes at {:#x}", a.start);
        }
        if let Some(a) = self.freed.iter().rev().find(|a| at >= a.start && at < a.end) {
            let size = a.end - a.start;
            return format!(
                "{} bytes into an allocation of {size} bytes at {:#x} that was freed",
                at - a.start,
                a.start
            );
        }
        if !self.reserved(at, bytes) {
            return "outside the memory of the device".into();
        }
        let after = self.list.get(i);
        let past = before.map(|a| (at - a.end, a));
        let ahead = after.map(|a| (a.start - at, a));
        match (past, ahead) {
            (Some((p, a)), Some((q, _))) if p <= q => beyond(p, a),
            (Some((p, a)), None) => beyond(p, a),
            (_, Some((q, a))) => {
                format!("{q} bytes before an allocation of {} bytes at {:#x}", a.end - a.start, a.start)
            }
            (None, None) => "in no allocation, there are none".into(),
        }
    }
}

fn beyond(distance: u64, a: &Allocation) -> String {
    format!("{distance} bytes after the end of an allocation of {} bytes at {:#x}", a.end - a.start, a.start)
}

#[derive(Debug, Default)]
struct Heap {
    used: BTreeMap<u64, Allocation>,
    /// Free ranges by start.
    free: BTreeMap<u64, u64>,
    freed: Vec<Allocation>,
    bytes: u64,
    /// The snapshot, until something changes.
    table: Option<Arc<Table>>,
}

/// A device's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    base: u64,
    size: u64,
    /// Bytes it claims to have.
    pub(crate) claimed: u64,
    heap: Mutex<Heap>,
    /// Launches hold it shared; whoever clears shadow memory holds it alone.
    pub(crate) running: RwLock<()>,
    /// A bit per byte, and 16 bytes per two bytes; 0 where the system refused the address space.
    written: u64,
    races: u64,
    /// 16 bytes per byte for accesses of one byte, and which launch made one in a page; 0 as above.
    bytes: u64,
    marks: u64,
    serials: Mutex<u32>,
}

fn map(bytes: u64, protection: libc::c_int) -> Option<u64> {
    // SAFETY: an anonymous mapping at an address of the system's choice touches nothing of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (at != libc::MAP_FAILED).then_some(at as u64)
}

/// Reserves address space that costs nothing until it is touched.
fn reserve(bytes: u64) -> Option<u64> {
    map(bytes, libc::PROT_READ | libc::PROT_WRITE)
}

/// Address space that costs nothing until it is touched, and is zero; given back at its end.
pub(crate) struct Reservation {
    start: u64,
    bytes: u64,
}

impl Reservation {
    /// `None` where the system refuses.
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        reserve(bytes).map(|start| Self { start, bytes })
    }

    /// Its first address.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: a mapping of its own, which nobody uses any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.bytes as usize) };
    }
}

/// Reserves address space that nobody can read or write.
pub(crate) fn reserve_inaccessible(bytes: u64) -> Option<u64> {
    map(bytes, libc::PROT_NONE)
}

impl Memory {
    /// Reserves a device's memory; less than claimed where the system refuses.
    pub(crate) fn new(claimed: u64) -> Self {
        let mut size = claimed.max(1 << 20).next_multiple_of(1 << 20);
        let base = loop {
            match reserve(size) {
                Some(base) => break base,
                None if size > 64 << 20 => size /= 2,
                None => break 0,
            }
        };
        if base == 0 {
            size = 0;
        }
        let mut free = BTreeMap::new();
        free.insert(base + GAP, base + size);
        Self {
            base,
            size,
            claimed,
            heap: Mutex::new(Heap { free, ..Heap::default() }),
            running: RwLock::new(()),
            written: reserve(size / 8 + 4096).unwrap_or(0),
            races: reserve(size * 8 + 4096).unwrap_or(0),
            bytes: reserve(size * 16 + 4096).unwrap_or(0),
            marks: reserve(size / PAGE * 2 + 4096).unwrap_or(0),
            serials: Mutex::new(0),
        }
    }

    /// Where the region starts.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Bytes of the region.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The bits of written bytes.
    pub(crate) fn written_shadow(&self) -> Option<u64> {
        (self.written != 0).then_some(self.written)
    }

    /// The stamps of accesses.
    pub(crate) fn race_shadow(&self) -> Option<u64> {
        (self.races != 0).then_some(self.races)
    }

    /// The stamps of accesses of one byte, and the marks of pages that have some.
    pub(crate) fn byte_shadow(&self) -> Option<(u64, u64)> {
        (self.bytes != 0 && self.marks != 0).then_some((self.bytes, self.marks))
    }

    /// A number for a launch's stamps. When numbers run out, all stamps are cleared.
    pub(crate) fn serial(&self) -> u32 {
        let mut serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
        *serials += 1;
        if *serials > SERIALS {
            let _alone = self.running.write().unwrap_or_else(PoisonError::into_inner);
            let marks = self.size / PAGE * 2;
            for (at, bytes) in [(self.races, self.size * 8), (self.bytes, self.size * 16), (self.marks, marks)] {
                if at != 0 {
                    // SAFETY: our own mapping, which no launch uses now.
                    unsafe { libc::madvise(at as *mut libc::c_void, bytes as usize, libc::MADV_DONTNEED) };
                }
            }
            *serials = 1;
        }
        *serials
    }

    /// All that is allocated now may be written without a trace.
    pub(crate) fn trust_all(&self) {
        let mut heap = self.heap();
        if heap.used.values().any(|a| !a.trusted) {
            heap.used.values_mut().for_each(|a| a.trusted = true);
            heap.table = None;
        }
    }

    /// Whether an address is in memory that may have been written without a trace.
    pub(crate) fn trusted(&self, at: u64) -> bool {
        self.find(at).is_some_and(|a| a.trusted)
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes not allocated, of those claimed.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.claimed.saturating_sub(self.heap().bytes)
    }

    /// Allocates, or `None` if there is no room.
    pub(crate) fn allocate(&self, bytes: u64, owner: u64) -> Option<u64> {
        let mut heap = self.heap();
        let room = bytes.checked_next_multiple_of(GRAIN)?.checked_add(GAP)?;
        if owner != 0 && heap.bytes.checked_add(bytes)? > self.claimed {
            return None;
        }
        let (&start, &end) = heap.free.iter().find(|(s, e)| *e - *s >= room)?;
        heap.free.remove(&start);
        if end - start > room {
            heap.free.insert(start + room, end);
        }
        // memory that is used again is no longer freed memory
        heap.freed.retain(|a| a.start >= start + room || a.end <= start);
        heap.used.insert(start, Allocation { start, end: start + bytes, owner, trusted: false, born: moment() });
        if owner != 0 {
            heap.bytes += bytes;
        }
        heap.table = None;
        Some(start)
    }

    /// Frees an allocation; `false` if none starts there.
    pub(crate) fn release(&self, start: u64) -> bool {
        let mut heap = self.heap();
        let Some(found) = heap.used.remove(&start) else { return false };
        self.give_back(&mut heap, found);
        true
    }

    /// Frees an allocation if it is still that of `owner`.
    pub(crate) fn release_of(&self, start: u64, owner: u64) {
        let mut heap = self.heap();
        if heap.used.get(&start).is_some_and(|a| a.owner == owner)
            && let Some(found) = heap.used.remove(&start)
        {
            self.give_back(&mut heap, found);
        }
    }

    /// Frees everything of a context.
    pub(crate) fn release_all(&self, owner: u64) {
        let mut heap = self.heap();
        let list: Vec<Allocation> = heap.used.values().filter(|a| a.owner == owner).copied().collect();
        for found in list {
            heap.used.remove(&found.start);
            self.give_back(&mut heap, found);
        }
    }

    fn give_back(&self, heap: &mut Heap, found: Allocation) {
        let bytes = found.end - found.start;
        if found.owner != 0 {
            heap.bytes -= bytes;
        }
        heap.table = None;
        let (mut start, mut end) = (found.start, found.start + bytes.next_multiple_of(GRAIN) + GAP);
        if bytes >= 1 << 20 {
            // whole pages inside it go back to the system
            let (from, to) = (start.next_multiple_of(4096), (found.end) & !4095);
            if to > from {
                // SAFETY: the range lies in our mapping, and nobody owns it any more.
                unsafe { libc::madvise(from as *mut libc::c_void, (to - from) as usize, libc::MADV_DONTNEED) };
                for (shadow, times) in [(self.races, 8), (self.bytes, 16)].into_iter().filter(|s| s.0 != 0) {
                    let (low, bytes) = (shadow + (from - self.base) * times, (to - from) * times);
                    // SAFETY: the stamps of that range, in a mapping of ours; a launch that uses freed memory is wrong.
                    unsafe { libc::madvise(low as *mut libc::c_void, bytes as usize, libc::MADV_DONTNEED) };
                }
            }
        }
        if heap.freed.len() >= REMEMBERED {
            heap.freed.remove(0);
        }
        heap.freed.push(found);
        if let Some((&s, &e)) = heap.free.range(..start).next_back()
            && e == start
        {
            heap.free.remove(&s);
            start = s;
        }
        if let Some(e) = heap.free.remove(&end) {
            end = e;
        }
        heap.free.insert(start, end);
    }

    /// The allocations of this moment.
    pub(crate) fn table(&self) -> Arc<Table> {
        let mut heap = self.heap();
        if let Some(table) = &heap.table {
            return table.clone();
        }
        let table = Arc::new(Table {
            list: heap.used.values().copied().collect(),
            freed: heap.freed.clone(),
            region: (self.base, self.base + self.size),
        });
        heap.table = Some(table.clone());
        table
    }

    /// The allocation that holds an address.
    pub(crate) fn find(&self, at: u64) -> Option<Allocation> {
        let heap = self.heap();
        heap.used
            .range(..=at)
            .next_back()
            .map(|(_, a)| *a)
            .filter(|a| at < a.end || (a.start == a.end && at == a.start))
    }

    /// Whether all bytes lie in one allocation; if not, where they are.
    pub(crate) fn check(&self, at: u64, bytes: u64) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        match self.find(at) {
            Some(a) if at.checked_add(bytes).is_some_and(|end| end <= a.end) => Ok(()),
            _ => Err(self.table().describe(at, bytes)),
        }
    }

    /// Whether an address is in the device's region.
    pub(crate) fn holds(&self, at: u64) -> bool {
        at >= self.base && at < self.base + self.size
    }
}
