//! How the threads of a softmax are shared among its rows.

use bytemuck::Zeroable;

use crate::Result;
use crate::gpu::args::{CHUNK, KEYS as PACK, TeamArgs};
use crate::gpu::{Gpu, Kernel, Launch};

/// Packs of a chunk that a thread has at most.
const PACKS: u32 = 8;
/// Threads of the largest block.
const THREADS: u32 = 256;
/// Parts of shared rows that a plan has room for: 512 KiB.
pub(super) const PARTS: usize = 65536;
/// Bytes of shared memory for a key that is held: a float.
pub(super) const HELD: u32 = 4;
/// The same in the gradient: two elements.
pub(super) const fn held_grad<T>() -> u32 {
    2 * size_of::<T>() as u32
}
/// Bytes of shared memory that the kernels have of their own, rounded up.
const OWN: u32 = 2048;
/// The most chunks that a block holds.
const MOST_HELD: usize = 8;
/// Threads of a multiprocessor below which rows get more threads than they need.
const FULL: u64 = 1024;

/// The shape of an entry whose rows stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowShape {
    /// threads of a row
    pub(super) lanes: u32,
    /// packs of eight keys that each has
    pub(super) packs: u32,
    /// keys of the shortest row that it takes
    least: usize,
    /// threads of a multiprocessor that rows must give for it
    busy: u64,
    /// which entry takes rows that fill it and of which every key is seen, if one is made for these
    pub(super) whole: Option<usize>,
}

/// Each shape, in the order of its entries and of preference. The more packs a thread has, the less its start costs, and the fewer
/// threads there are to hide the memory's latency.
pub(super) const SHAPES: [RowShape; 7] = [
    RowShape { lanes: 16, packs: 8, least: 257, busy: 512, whole: None },
    RowShape { lanes: 32, packs: 8, least: 1025, busy: 128, whole: None },
    RowShape { lanes: 64, packs: 8, least: 2049, busy: 128, whole: None },
    RowShape { lanes: 128, packs: 8, least: 4097, busy: 128, whole: None },
    RowShape { lanes: 32, packs: 4, least: 257, busy: 128, whole: Some(0) },
    RowShape { lanes: 128, packs: 1, least: 513, busy: 0, whole: Some(1) },
    RowShape { lanes: 256, packs: 1, least: 1025, busy: 0, whole: None },
];

impl RowShape {
    /// The index of the one for `rows` rows of `keys`, if there is one.
    pub(super) fn of(rows: u32, keys: usize, multiprocessors: u32) -> Option<usize> {
        SHAPES.iter().position(|shape| {
            let threads = u64::from(rows) * u64::from(shape.lanes) / u64::from(multiprocessors);
            (shape.least..=shape.places()).contains(&keys) && threads >= shape.busy
        })
    }

    /// Keys that it has room for.
    pub(super) const fn places(self) -> usize {
        (self.lanes * self.packs) as usize * PACK
    }

    /// The launch.
    pub(super) fn launch<A>(self, rows: u32, args: A) -> Launch<A> {
        // Teams of more than a warp are a block.
        let threads = if self.lanes > 32 { self.lanes } else { 128 };
        Launch::new([rows.div_ceil(threads / self.lanes), 1, 1], [threads, 1, 1], args)
    }
}

/// What a device has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) multiprocessors: u32,
    /// bytes of shared memory for the keys of a block
    pub(super) shared: u32,
    /// bytes of a key there
    pub(super) key: u32,
    /// blocks that the device has at once if each holds 1, 2, ... chunks
    pub(super) together: [u32; MOST_HELD],
}

impl Room {
    pub(super) fn of<A>(gpu: &Gpu, kernel: &Kernel<A>, key: u32) -> Result<Self> {
        let shared = gpu.shared_memory()?.saturating_sub(OWN);
        kernel.reserve(shared)?;
        let mut room = Self { multiprocessors: gpu.multiprocessors(), shared, key, together: [0; MOST_HELD] };
        for (chunks, together) in (1..).zip(&mut room.together) {
            let bytes = chunks * CHUNK as u32 * key;
            if bytes <= shared {
                *together = gpu.cooperative_blocks(kernel, THREADS, bytes)?;
            }
        }
        Ok(room)
    }

    /// The same without cooperative launches.
    pub(super) fn alone(&self) -> Self {
        Self { together: [0; MOST_HELD], ..*self }
    }
}

/// How the threads of a call are shared among its rows. No bit depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// threads of a row, a power of two: up to 32 are lanes of a warp, more are a block
    pub(super) lanes: u32,
    /// packs of a chunk that a thread has
    pub(super) packs: u32,
    /// chunks of a row
    pub(super) chunks: u32,
    /// blocks that share a row, and so wait for one another
    pub(super) share: u32,
    /// chunks that a block keeps in shared memory: all that it has; or 0, and it reads them twice
    pub(super) held: u32,
    /// threads of a block
    pub(super) threads: u32,
    /// blocks
    pub(super) blocks: u32,
}

impl Work {
    /// For `rows` rows, at least 1, of up to 2^31 keys.
    pub(super) fn of(rows: u32, keys: usize, room: &Room) -> Self {
        let chunks = keys.div_ceil(CHUNK).max(1);
        // At most 1024.
        let packs = keys.min(CHUNK).div_ceil(PACK).max(1) as u32;
        // A thread's start costs as much as four packs, so that it takes many; two lanes read a sector of 32 bytes.
        let mut lanes = packs.div_ceil(PACKS).next_power_of_two().max(packs.min(2));
        // Few rows: more threads to each, as long as they have a pack.
        let full = FULL * u64::from(room.multiprocessors);
        while lanes < THREADS.min(packs) && u64::from(rows) * u64::from(lanes) < full {
            lanes *= 2;
        }
        let packs = packs.div_ceil(lanes);
        let chunk = lanes * packs * PACK as u32 * room.key;
        let fits = ((room.shared / chunk) as usize).min(MOST_HELD);
        let mut work = Self {
            lanes,
            packs,
            chunks: chunks as u32,
            share: 1,
            held: if chunks <= fits { chunks as u32 } else { 0 },
            threads: lanes,
            blocks: rows,
        };
        // Few long rows: as many blocks to each as the device has at once, if they hold it; else as many as read it twice.
        if rows < room.multiprocessors && chunks > 1 && rows as usize * chunks <= PARTS {
            let blocks = |each: usize| rows as usize * chunks.div_ceil(each);
            let holds = (1..=fits.min(chunks)).find(|&each| blocks(each) <= room.together[each - 1] as usize);
            let least = chunks.div_ceil((room.together[0] / rows).max(1) as usize);
            let share = chunks.div_ceil(holds.unwrap_or(least));
            // At most PARTS.
            (work.share, work.blocks) = (share as u32, rows * share as u32);
            work.held = if holds.is_some() { chunks.div_ceil(share) as u32 } else { 0 };
        }
        if lanes <= 32 {
            // Few short rows are spread over the device, and no block takes more shared memory than a chunk's.
            let even = u64::from(rows) * u64::from(lanes) / u64::from(room.multiprocessors);
            let fits = |&n: &u32| u64::from(n) <= even && n * packs * PACK as u32 * room.key <= CHUNK as u32 * HELD;
            work.threads = [256, 128, 64].into_iter().find(fits).unwrap_or(32);
            work.blocks = rows.div_ceil(work.threads / lanes);
        }
        work
    }

    /// Of `rows` rows, those that the work was cut for.
    pub(super) fn team(&self, rows: u32, aligned: u32) -> TeamArgs {
        let Self { packs, chunks, share, held, .. } = *self;
        TeamArgs { rows, chunks, aligned, held, lanes_log: self.lanes.ilog2(), packs, share, ..TeamArgs::zeroed() }
    }

    /// The launch, with shared memory for `slots` chunks of `key` bytes a key.
    pub(super) fn launch<A>(&self, slots: u32, key: u32, args: A) -> Launch<A> {
        let launch = Launch::new([self.blocks, 1, 1], [self.threads, 1, 1], args);
        Launch { shared: self.shared(slots, key), cooperative: self.share > 1, ..launch }
    }

    /// Bytes of shared memory for `slots` chunks of every row of a block.
    pub(super) fn shared(&self, slots: u32, key: u32) -> u32 {
        slots * self.threads * self.packs * PACK as u32 * key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compute capability 9.0 with 132 multiprocessors, 7.5 with 72, and a device whose blocks cannot wait for others.
    fn rooms() -> [Room; 4] {
        let room = |multiprocessors: u32, shared: u32, key: u32| {
            let chunk = CHUNK as u32 * key;
            let together = std::array::from_fn(|i| {
                let bytes = (i as u32 + 1) * chunk;
                if bytes > shared { 0 } else { multiprocessors * ((shared + OWN) / (bytes + OWN)).min(3) }
            });
            Room { multiprocessors, shared, key, together }
        };
        let alone = room(132, 230_400, 4).alone();
        [room(132, 230_400, 4), room(132, 230_400, 8), room(72, 63_488, 8), alone]
    }

    #[test]
    fn every_length_has_threads_for_all_of_its_keys_and_few_that_idle() {
        let lengths = (0..=16_384).chain([16_385, 57_344, 57_345, 131_072, 1 << 20, (1 << 20) + 1, (1 << 31) - 1]);
        for keys in lengths {
            for room in rooms() {
                for rows in [1, 32, room.multiprocessors, 4096, 1 << 20, i32::MAX as u32] {
                    let work = Work::of(rows, keys, &room);
                    let context = || format!("{rows} rows of {keys}: {work:?} in {room:?}");
                    assert!(work.lanes.is_power_of_two() && work.lanes <= THREADS, "{}", context());
                    assert!((1..=PACKS).contains(&work.packs), "{}", context());
                    // All keys of a chunk have a thread, and no pass over it is without keys.
                    let most = keys.clamp(1, CHUNK);
                    let reach = |packs: u32| work.lanes as usize * packs as usize * PACK;
                    assert!(reach(work.packs) >= most && reach(work.packs - 1) < most, "{}", context());
                    assert!(work.lanes == 1 || work.lanes as usize * PACK < 2 * most, "{}", context());
                    assert!(work.chunks as usize * CHUNK >= keys, "{}", context());
                    // A row is a team of a warp, a block, or blocks that the device has at once.
                    let teams = work.threads / work.lanes;
                    assert!(teams == 1 || work.lanes <= 32, "{}", context());
                    assert!(work.blocks >= 1 && work.blocks <= i32::MAX as u32, "{}", context());
                    if work.share == 1 {
                        assert!(u64::from(work.blocks) * u64::from(teams) >= u64::from(rows), "{}", context());
                        assert!(work.held == work.chunks || work.held == 0, "{}", context());
                    } else {
                        assert_eq!(work.blocks, rows * work.share, "{}", context());
                        assert!(work.blocks <= room.together[work.held.max(1) as usize - 1], "{}", context());
                        assert!(work.held == 0 || work.held * work.share >= work.chunks, "{}", context());
                        assert!(rows as usize * work.chunks as usize <= PARTS, "{}", context());
                    }
                    assert!(work.shared(work.held, room.key) <= room.shared, "{}", context());
                    if work.lanes <= 32 {
                        assert!(work.shared(1, room.key) <= 32 << 10, "{}", context());
                    }
                }
            }
        }
    }

    #[test]
    fn rows_stay_in_registers_where_an_entry_has_places_for_them() {
        let of = |rows, keys| RowShape::of(rows, keys, 132).map(|index| (SHAPES[index].lanes, SHAPES[index].packs));
        for (rows, keys, want) in [
            (16, 1024, Some((128, 1))),
            (1024, 1024, Some((32, 4))),
            (4224, 1024, Some((16, 8))),
            (1 << 20, 256, None),
            (16, 512, None),
            (263, 2048, Some((256, 1))),
            (16, 4096, None),
            (528, 2048, Some((32, 8))),
            (264, 4096, Some((64, 8))),
            (16, 8192, None),
            (132, 8192, Some((128, 8))),
            (528, 8192, Some((128, 8))),
            (1 << 20, 8193, None),
            (1, 0, None),
        ] {
            assert_eq!(of(rows, keys), want, "{rows} rows of {keys}");
        }
        for shape in SHAPES {
            for rows in [1, 7, 8, 9, i32::MAX as u32] {
                let Launch { grid, block, .. } = shape.launch(rows, ());
                let teams = u64::from(grid[0]) * u64::from(block[0] / shape.lanes);
                assert!((u64::from(rows)..u64::from(rows) + 8).contains(&teams) && block[0] <= 256, "{shape:?} {rows}");
                assert!(shape.lanes <= 32 || block[0] == shape.lanes, "{shape:?}");
            }
        }
    }

    #[test]
    fn regimes_follow_the_length_and_the_count_of_rows() {
        let [h100, h100_grad_f32, turing, alone] = rooms();
        let of = |rows, keys, room: &Room| {
            let work = Work::of(rows, keys, room);
            (work.lanes, work.packs, work.share, work.held)
        };
        // Many rows: a few lanes, a warp, a block, and a block that reads twice.
        assert_eq!(of(1 << 20, 1, &h100), (1, 1, 1, 1));
        assert_eq!(of(1 << 20, 32, &h100), (2, 2, 1, 1));
        assert_eq!(of(1 << 20, 1024, &h100), (16, 8, 1, 1));
        assert_eq!(of(1 << 20, 1025, &h100), (32, 5, 1, 1));
        assert_eq!(of(1 << 20, 4096, &h100), (64, 8, 1, 1));
        assert_eq!(of(1 << 20, 8192, &h100), (128, 8, 1, 1));
        assert_eq!(of(1 << 20, 57_344, &h100), (128, 8, 1, 7));
        assert_eq!(of(1 << 20, 57_345, &h100), (128, 8, 1, 0));
        assert_eq!(of(1 << 20, 24_577, &h100_grad_f32), (128, 8, 1, 0));
        // Few rows: more threads to each, then more blocks, which hold more chunks the more there are.
        assert_eq!(of(32, 1024, &h100), (128, 1, 1, 1));
        assert_eq!(of(32, 8192, &h100), (256, 4, 1, 1));
        assert_eq!(of(32, 65_536, &h100), (256, 4, 8, 1));
        assert_eq!(of(8, 262_144, &h100), (256, 4, 32, 1));
        assert_eq!(of(16, 262_144, &h100), (256, 4, 16, 2));
        assert_eq!(of(32, 262_144, &h100), (256, 4, 11, 0));
        assert_eq!(of(1, 1 << 20, &h100), (256, 4, 128, 1));
        assert_eq!(of(1, 7_000_000, &h100), (256, 4, 123, 7));
        assert_eq!(of(1, 1 << 23, &h100), (256, 4, 342, 0));
        assert_eq!(of(1, 1 << 20, &alone), (256, 4, 1, 0));
        // 64 KiB hold no chunk of two floats a key, but rows of 6144 keys.
        assert_eq!(of(1 << 20, 4096, &turing), (64, 8, 1, 1));
        assert_eq!(of(1 << 20, 6144, &turing), (128, 6, 1, 1));
        assert_eq!(of(1 << 20, 8192, &turing), (128, 8, 1, 0));
    }
}
