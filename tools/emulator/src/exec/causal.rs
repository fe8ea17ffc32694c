//! What a warp knows to have happened before: barriers, fences, and signals through atomics.
//!
//! Each warp has a clock that advances when something orders it, and stamps bear its value. Barriers of a block hand
//! clocks on (vector clocks at the grain of warps); `bar.warp.sync` does it for the lanes of its mask. Between blocks, and
//! between warps that meet at no barrier, order needs all of this, in this sequence: a fence of the writer
//! ([`Known::fence`]), a strong write behind it ([`Releases::signal`]), a strong read that finds it ([`Releases::look`]),
//! and a fence of the reader behind that, or the same in one instruction with `.release` and `.acquire`. Each of the four
//! must be of the device's scope to reach another block.

use super::operand::LANES;
use super::stamp::{SOME_WARPS, Stamp};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a warp knows.
#[derive(Default)]
pub(crate) struct Known {
    /// Its own clock.
    pub(crate) now: u32,
    /// Up to which values of the clocks of the block's warps all its lanes know what was done; of its own too.
    pub(crate) clocks: Vec<u32>,
    /// Barriers of the block that had completed when it last took part in one.
    pub(crate) last_barrier: u32,
    /// Its own clock after that barrier.
    pub(crate) since_barrier: u32,
    /// The same of its own clock lane by lane, once a part of the warp has synchronised.
    lanes: Option<Box<[[u32; LANES]; LANES]>>,
    /// What fences of the block's scope, and of the device's, have made ready for a signal.
    fenced: [Option<Arc<Fenced>>; 2],
    /// Signals that were seen.
    sights: Vec<Sight>,
    /// Lanes behind which the launches are that this one may overlap.
    pub(crate) waited: u32,
}

/// Accesses that came before a fence.
#[derive(Clone)]
struct Fenced {
    rows: Vec<Row>,
    /// Barriers that had completed.
    epoch: u32,
}

/// Up to which value of a warp's clock its accesses are covered.
#[derive(Clone, Default)]
struct Row {
    all: u32,
    /// More for some lanes.
    lanes: Option<Box<[u32; LANES]>>,
}

impl Row {
    fn of(&self, lane: usize) -> u32 {
        self.lanes.as_ref().map_or(self.all, |l| l[lane].max(self.all))
    }

    fn raise(&mut self, lane: usize, to: u32) {
        if to > self.of(lane) {
            let all = self.all;
            self.lanes.get_or_insert_with(|| Box::new([all; LANES]))[lane] = to;
        }
    }

    fn raise_all(&mut self, to: u32) {
        self.all = self.all.max(to);
        if self.lanes.as_ref().is_some_and(|l| l.iter().all(|&x| x <= to)) {
            self.lanes = None;
        }
    }

    fn join(&mut self, other: &Self) {
        if let Some(lanes) = &other.lanes {
            for (lane, &to) in lanes.iter().enumerate() {
                self.raise(lane, to);
            }
        }
        self.raise_all(other.all);
    }
}

impl Fenced {
    fn covers(&self, old: Stamp) -> bool {
        if old.multi() == SOME_WARPS {
            return u64::from(self.epoch) >= old.clock();
        }
        let row = self.rows.get((old.thread() / 32) as usize);
        row.is_some_and(|row| u64::from(row.of((old.thread() % 32) as usize)) > old.clock())
    }

    fn join(&mut self, other: &Self) {
        self.epoch = self.epoch.max(other.epoch);
        for (own, row) in self.rows.iter_mut().zip(&other.rows) {
            own.join(row);
        }
    }
}

/// Where a signal is: an address of global memory, or a block's number and an address of its shared memory.
pub(crate) type Place = (u64, u64);
/// The block of a [`Place`] in global memory.
pub(crate) const GLOBAL: u64 = u64::MAX;

/// Signals at a place that lanes have seen.
#[derive(Clone)]
struct Sight {
    lanes: u32,
    place: Place,
    /// The first and the end of the place's signals.
    from: u32,
    to: u32,
    /// The read was of the device's scope.
    wide: bool,
    /// What the reader did to order its accesses behind.
    fence: Reach,
}

/// How far an order reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Nowhere,
    Block,
    Device,
}

/// Sights of a warp beyond which those of one place become one.
const MOST_SIGHTS: usize = 32;

impl Known {
    /// Forgets everything: warp `w` of a new block of so many.
    pub(crate) fn start(&mut self, w: usize, warps: usize) {
        self.clocks.clear();
        self.clocks.resize(warps, 0);
        // its own clock is ahead of what the others know of it
        self.now = 1;
        self.clocks[w] = 1;
        self.last_barrier = 0;
        self.since_barrier = 1;
        self.lanes = None;
        self.fenced = [None, None];
        self.sights.clear();
        self.waited = 0;
    }

    /// Whether `lane` knows an access of another lane of the warp, though not all its lanes do.
    pub(crate) fn lane_knows(&self, old: Stamp, lane: usize) -> bool {
        self.lanes.as_ref().is_some_and(|l| u64::from(l[lane][(old.thread() % 32) as usize]) > old.clock())
    }

    /// `bar.warp.sync` of the lanes in `mask`, of which `live` still run, in warp `w`.
    pub(crate) fn sync(&mut self, w: usize, mask: u32, live: u32) {
        self.now += 1;
        let now = self.now;
        if self.waited & mask != 0 {
            self.waited |= mask;
        }
        for sight in self.sights.iter_mut().filter(|s| s.lanes & mask != 0) {
            sight.lanes |= mask;
        }
        if mask & live == live {
            self.clocks[w] = now;
            self.lanes = None;
            return;
        }
        let whole = self.clocks[w];
        let lanes = self.lanes.get_or_insert_with(|| Box::new([[whole; LANES]; LANES]));
        let inside = |l: &usize| mask >> l & 1 != 0;
        let mut joined = [0; LANES];
        for l in (0..LANES).filter(inside) {
            for (all, own) in joined.iter_mut().zip(&lanes[l]) {
                *all = (*all).max(*own);
            }
        }
        for l in (0..LANES).filter(inside) {
            joined[l] = now;
        }
        for l in (0..LANES).filter(inside) {
            lanes[l] = joined;
        }
    }

    /// A barrier of some warps of a block, the `epoch`th that completed: all that they did is behind all that they do.
    pub(crate) fn barrier(warps: &mut [(usize, &mut Known)], epoch: u32) {
        let Some((_, first)) = warps.first() else { return };
        let mut joined = vec![0u32; first.clocks.len()];
        let mut fenced: [Option<Arc<Fenced>>; 2] = [None, None];
        let mut sights = Vec::new();
        let mut waited = 0;
        for (w, known) in warps.iter_mut() {
            known.now += 1;
            known.clocks[*w] = known.now;
            waited |= known.waited;
            for (all, own) in joined.iter_mut().zip(&known.clocks) {
                *all = (*all).max(*own);
            }
            for (all, own) in fenced.iter_mut().zip(&mut known.fenced) {
                match (all.as_mut(), own.take()) {
                    (_, None) => {}
                    (None, own) => *all = own,
                    (Some(all), Some(own)) if Arc::ptr_eq(all, &own) => {}
                    (Some(all), Some(own)) => Arc::make_mut(all).join(&own),
                }
            }
            for mut sight in known.sights.drain(..) {
                sight.lanes = u32::MAX;
                add(&mut sights, sight);
            }
        }
        for (_, known) in warps.iter_mut() {
            known.clocks.copy_from_slice(&joined);
            known.since_barrier = known.now;
            known.lanes = None;
            known.waited = if waited == 0 { 0 } else { u32::MAX };
            known.last_barrier = epoch;
            known.fenced = fenced.clone();
            known.sights.clone_from(&sights);
        }
    }

    /// A fence of the lanes in `mask` of warp `w`: what they know is ready for a signal, what they saw is behind them.
    pub(crate) fn fence(&mut self, w: usize, mask: u32, live: u32, wide: bool) {
        self.now += 1;
        let now = self.now;
        let warps = self.clocks.len();
        let fenced = self.fenced[usize::from(wide)]
            .get_or_insert_with(|| Arc::new(Fenced { rows: vec![Row::default(); warps], epoch: 0 }));
        let fenced = Arc::make_mut(fenced);
        fenced.epoch = fenced.epoch.max(self.last_barrier);
        for (v, row) in fenced.rows.iter_mut().enumerate() {
            if v != w {
                row.raise_all(self.clocks[v]);
                continue;
            }
            row.raise_all(if mask & live == live { now } else { self.clocks[w] });
            for l in (0..LANES).filter(|l| mask >> l & 1 != 0) {
                row.raise(l, now);
                if let Some(lanes) = &self.lanes {
                    for (k, &to) in lanes[l].iter().enumerate() {
                        row.raise(k, to);
                    }
                }
            }
        }
        let reach = if wide { Reach::Device } else { Reach::Block };
        for i in 0..self.sights.len() {
            let sight = &mut self.sights[i];
            let both = sight.lanes & mask;
            if both == 0 || sight.fence >= reach {
                continue;
            }
            if both == sight.lanes {
                sight.fence = reach;
            } else {
                let part = Sight { lanes: both, fence: reach, ..sight.clone() };
                self.sights.push(part);
            }
        }
    }

    /// Whether a signal that `lane` saw came behind an access of `block`, another one if it is `far`.
    #[cold]
    pub(crate) fn signalled(&self, releases: &Releases, old: Stamp, block: u64, far: bool, lane: usize) -> bool {
        let mut seen = self.seen(lane, far);
        if old.of_several_blocks() {
            return seen.next().is_some();
        }
        let places = releases.places.lock().unwrap_or_else(PoisonError::into_inner);
        seen.any(|sight| {
            let Some(log) = places.get(&sight.place) else { return false };
            let Some(numbers) = log.by_block.get(&block) else { return false };
            let inside = numbers.iter().filter(|n| (sight.from..sight.to).contains(n));
            inside.into_iter().any(|&n| {
                let signal = &log.signals[n as usize];
                let fences = if far { &signal.fenced[1..] } else { &signal.fenced[..] };
                (!far || signal.wide) && fences.iter().flatten().any(|f| f.covers(old))
            })
        })
    }

    /// The sights that order what a lane does now.
    fn seen(&self, lane: usize, far: bool) -> impl Iterator<Item = &Sight> {
        let needed = if far { Reach::Device } else { Reach::Block };
        self.sights.iter().filter(move |s| s.lanes >> lane & 1 != 0 && s.fence >= needed && (s.wide || !far))
    }

    /// Whether it saw any signal.
    #[inline]
    pub(crate) fn saw_any(&self) -> bool {
        !self.sights.is_empty()
    }
}

/// Adds a sight, or what it adds to one that is there.
fn add(sights: &mut Vec<Sight>, new: Sight) {
    for known in sights.iter_mut() {
        let alike = known.place == new.place && known.wide == new.wide && known.fence == new.fence;
        if alike && known.from == new.from && known.lanes & !new.lanes == 0 && known.to <= new.to {
            *known = new;
            return;
        }
        if alike && known.from == new.from && new.lanes & !known.lanes == 0 && new.to <= known.to {
            return;
        }
        if alike && known.lanes == new.lanes && sights_full(known, &new) {
            known.from = known.from.min(new.from);
            known.to = known.to.max(new.to);
            return;
        }
    }
    sights.push(new);
    if sights.len() > MOST_SIGHTS {
        // as if all signals of a place had been seen by whoever saw one
        let mut few: Vec<Sight> = Vec::new();
        for sight in sights.drain(..) {
            match few.iter_mut().find(|s| s.place == sight.place && s.wide == sight.wide && s.fence == sight.fence) {
                Some(known) => {
                    known.lanes |= sight.lanes;
                    known.from = known.from.min(sight.from);
                    known.to = known.to.max(sight.to);
                }
                None => few.push(sight),
            }
        }
        *sights = few;
    }
}

/// Whether two sights of the same lanes touch, so that one can stand for both.
fn sights_full(a: &Sight, b: &Sight) -> bool {
    a.from <= b.to && b.from <= a.to
}

/// The signals of a launch.
#[derive(Default)]
pub(crate) struct Releases {
    /// Whether there is one.
    any: AtomicBool,
    places: Mutex<HashMap<Place, Log>>,
}

/// The signals at a place, in order.
#[derive(Default)]
struct Log {
    signals: Vec<Signal>,
    by_block: HashMap<u64, Vec<u32>>,
    /// A store that was no signal has overwritten those before.
    start: u32,
    /// What those who signalled had seen.
    carried: Vec<Sight>,
}

/// A strong write behind a fence.
struct Signal {
    fenced: [Option<Arc<Fenced>>; 2],
    /// It was of the device's scope.
    wide: bool,
}

impl Releases {
    /// Whether a strong read may find a signal.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// A strong read of lanes: what was signalled at the place is seen, and behind them if the read acquires.
    #[cold]
    pub(crate) fn look(&self, known: &mut Known, place: Place, lanes: u32, wide: bool, fence: Reach) {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = places.get(&place) else { return };
        let to = log.signals.len() as u32;
        if to > log.start {
            add(&mut known.sights, Sight { lanes, place, from: log.start, to, wide, fence });
            for carried in &log.carried {
                add(&mut known.sights, Sight { lanes, wide: wide && carried.wide, fence, ..carried.clone() });
            }
        }
    }

    /// A strong write of a lane of block `block`; `keeps`: it read what it replaced, so that earlier signals stay.
    #[cold]
    pub(crate) fn signal(&self, known: &Known, place: Place, block: u64, lane: usize, wide: bool, keeps: bool) {
        let ready = known.fenced.iter().any(Option::is_some);
        if !ready && (keeps || !self.any()) {
            return;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready && !places.contains_key(&place) {
            return;
        }
        let log = places.entry(place).or_default();
        if !keeps {
            log.start = log.signals.len() as u32;
            log.carried.clear();
        }
        if !ready {
            return;
        }
        self.any.store(true, Ordering::Relaxed);
        log.by_block.entry(block).or_default().push(log.signals.len() as u32);
        log.signals.push(Signal { fenced: known.fenced.clone(), wide });
        for sight in known.seen(lane, false).filter(|s| s.place != place) {
            let wide = wide && sight.wide && sight.fence == Reach::Device;
            add(&mut log.carried, Sight { lanes: u32::MAX, wide, ..sight.clone() });
        }
    }
}
