//! Who accessed memory last, as one word; and the shadow memory of blocks.

use crate::config::Strict;
use crate::device::SERIALS;
use crate::fault::Fault;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const CLOCK_MAX: u64 = (1 << 12) - 1;
pub(crate) const ALL_BLOCKS: u64 = (1 << 18) - 1;

/// Who accessed something last, and where:
/// launch 12 | kind 2 | multi 2 | block 18 | thread 10 | clock 12 | place in the code 8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(pub(crate) u64);

pub(crate) const BLOCK: u32 = 30;
pub(crate) const THREAD: u32 = 20;
pub(crate) const CLOCK: u32 = 8;
pub(crate) const MULTI: u32 = 48;
pub(crate) const KIND: u32 = 50;
/// An ordinary access.
pub(crate) const WEAK: u64 = 0;
/// A strong one, for the threads of its block.
pub(crate) const NARROW: u64 = 1;
/// A strong one, for all threads.
pub(crate) const WIDE: u64 = 2;
/// A read of memory that must not change.
pub(crate) const READ_ONLY: u64 = 3;
/// One thread.
pub(crate) const SINGLE: u64 = 0;
/// Several lanes of the warp of [`Stamp::thread`].
pub(crate) const SOME_LANES: u64 = 1;
/// Several warps of the block; the clock is then the number of barriers that had completed.
pub(crate) const SOME_WARPS: u64 = 2;

impl Stamp {
    #[inline]
    pub(crate) fn serial(self) -> u64 {
        self.0 >> 52
    }
    #[inline]
    pub(crate) fn read_only(self) -> bool {
        self.kind() == READ_ONLY
    }
    #[inline]
    pub(crate) fn strong(self) -> bool {
        matches!(self.kind(), NARROW | WIDE)
    }
    #[inline]
    pub(crate) fn kind(self) -> u64 {
        self.0 >> KIND & 3
    }
    #[inline]
    pub(crate) fn with_kind(self, kind: u64) -> Self {
        Self(self.0 & !(3 << KIND) | kind << KIND)
    }
    /// The kind of two accesses of which one stamp tells.
    #[inline]
    pub(crate) fn kind_with(self, other: Self) -> u64 {
        if self.read_only() || other.read_only() { READ_ONLY } else { self.kind().min(other.kind()) }
    }
    #[inline]
    pub(crate) fn multi(self) -> u64 {
        self.0 >> MULTI & 3
    }
    #[inline]
    pub(crate) fn block(self) -> u64 {
        self.0 >> BLOCK & ALL_BLOCKS
    }
    #[inline]
    pub(crate) fn thread(self) -> u64 {
        self.0 >> THREAD & 1023
    }
    #[inline]
    pub(crate) fn clock(self) -> u64 {
        self.0 >> CLOCK & CLOCK_MAX
    }
    /// The last bits of the operation's number.
    #[inline]
    pub(crate) fn site(self) -> u8 {
        self.0 as u8
    }
    #[inline]
    pub(crate) fn of_lane(self, lane: usize) -> Self {
        Self(self.0 | (lane as u64) << THREAD)
    }
    #[inline]
    pub(crate) fn with_multi(self, multi: u64, clock: u64) -> Self {
        let rest = self.0 & !(3 << MULTI) & !(CLOCK_MAX << CLOCK);
        Self(rest | multi << MULTI | clock.min(CLOCK_MAX) << CLOCK)
    }
    #[inline]
    pub(crate) fn of_all_blocks(self) -> Self {
        Self(self.0 | ALL_BLOCKS << BLOCK)
    }
    #[inline]
    pub(crate) fn of_several_blocks(self) -> bool {
        self.block() == ALL_BLOCKS
    }
    /// One thread of the same warp.
    #[inline]
    pub(crate) fn same_warp(self, other: Self) -> bool {
        const WHO: u64 = 3 << MULTI | ALL_BLOCKS << BLOCK | (1023 / 32 * 32) << THREAD;
        (self.0 ^ other.0) & WHO == 0 && self.multi() == SINGLE && !self.of_several_blocks()
    }
    /// The same thread of the same launch, whatever else.
    #[inline]
    pub(crate) fn same_thread(self, other: Self) -> bool {
        const WHO: u64 = 3 << MULTI | ALL_BLOCKS << BLOCK | 1023 << THREAD;
        (self.0 ^ other.0) & WHO == 0 && self.multi() == SINGLE && self.block() != ALL_BLOCKS
    }
}

/// What is known of a block's shared memory.
#[derive(Default)]
pub(crate) struct SharedShadow {
    pub(crate) serial: u32,
    pub(crate) written: Vec<u8>,
    pub(crate) stamps: Vec<AtomicU64>,
    /// Bytes to which a copy is under way; empty where there was none.
    pub(crate) flying: Vec<bool>,
    /// A read of bytes that nobody wrote. It is held back: if somebody writes them later without a barrier between, the
    /// race is what was wrong.
    pub(crate) pending: Option<Box<Fault>>,
}

impl SharedShadow {
    /// Forgets everything: a new block.
    pub(crate) fn start(&mut self, bytes: usize, strict: Strict) {
        self.pending = None;
        self.flying.clear();
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
