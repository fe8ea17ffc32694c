//! A launch that runs: its sizes, its arguments, and the workers that take its blocks.

use super::machine::{Cx, Grid, Loose, Program};
use super::operand::Class;
use super::state::Block;
use super::unique::Unique;
use crate::config::Strict;
use crate::counters::Counters;
use crate::device::Memory;
use crate::fault::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A launch runs on the calling thread alone for so long, because starting threads costs more than small grids do.
const ALONE: Duration = Duration::from_micros(150);

/// What a launch is made of.
pub(crate) struct Launch {
    pub(crate) program: Arc<Program>,
    pub(crate) function: u32,
    pub(crate) grid_dim: [u32; 3],
    pub(crate) block_dim: [u32; 3],
    pub(crate) static_shared: usize,
    pub(crate) dynamic_shared: usize,
    pub(crate) params: Vec<u8>,
    pub(crate) stack_limit: usize,
    pub(crate) sms: u32,
    pub(crate) launch: u64,
    pub(crate) budget: u64,
    pub(crate) strict: Strict,
    pub(crate) memory: Arc<Memory>,
    pub(crate) cooperative: bool,
    pub(crate) loose: Loose,
    /// Counts distinct bytes.
    pub(crate) unique: Option<Unique>,
    pub(crate) threads: usize,
}

/// Helpers of all launches that run now, so that many host threads do not start too many.
static HELPERS: AtomicUsize = AtomicUsize::new(0);

/// How a launch went.
#[derive(Default)]
pub(crate) struct Outcome {
    /// What it did.
    pub(crate) counters: Counters,
    /// Warp instructions that read global memory, by their line in the PTX, if it counts distinct bytes.
    pub(crate) loads: BTreeMap<u32, u64>,
    /// What went wrong.
    pub(crate) fault: Option<Box<Fault>>,
}

fn keep(outcome: &Mutex<Outcome>, cx: &mut Cx) {
    let mut c = cx.counters;
    let class = |class: Class| cx.classes[class as usize];
    c.integer = class(Class::Integer);
    c.float32 = class(Class::Float32);
    c.float64 = class(Class::Float64);
    c.half = class(Class::Half);
    c.special = class(Class::Special);
    c.convert = class(Class::Convert);
    c.moves = class(Class::Move);
    c.memory = class(Class::Memory);
    c.control = class(Class::Control);
    c.warp = class(Class::Warp);
    c.atomic = class(Class::Atomic);
    c.matrix = class(Class::Matrix);
    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
    outcome.counters.add(&c);
    for (line, count) in std::mem::take(&mut cx.loads) {
        *outcome.loads.entry(line).or_default() += count;
    }
    if outcome.fault.is_none() {
        outcome.fault = cx.fault.take();
    }
}

thread_local! {
    /// A block's memory, kept from launch to launch: a small launch then allocates next to nothing.
    static SPARE: std::cell::RefCell<Option<Block>> = const { std::cell::RefCell::new(None) };
}

/// Runs a launch to its end, and gives the number in its stamps, too; 0 is none.
pub(crate) fn run(launch: Launch) -> (Outcome, u32) {
    let memory = launch.memory.clone();
    let serial = if launch.strict.races { memory.serial() } else { 0 };
    if !launch.strict.uninitialised {
        // what this launch writes will not be known
        memory.trust_all();
    }
    let _running = memory.running.read().unwrap_or_else(PoisonError::into_inner);
    let code = &launch.program.codes[launch.function as usize];
    let stack = code.local.next_multiple_of(16) + if code.calls_any { launch.stack_limit } else { 0 };
    let grid = Grid {
        table: launch.memory.table(),
        function: launch.function,
        grid_dim: launch.grid_dim,
        block_dim: launch.block_dim,
        shared_bytes: launch.static_shared + launch.dynamic_shared,
        dynamic_shared: launch.dynamic_shared,
        params: launch.params,
        stack,
        sms: launch.sms,
        launch: launch.launch,
        budget: launch.budget,
        strict: launch.strict,
        memory: launch.memory,
        cooperative: launch.cooperative,
        serial,
        releases: Default::default(),
        loose: launch.loose,
        unique: launch.unique,
        single_bytes: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(0),
        program: launch.program,
    };
    let outcome = Mutex::new(Outcome::default());
    let blocks = grid.blocks();
    let spare = SPARE.with(|s| s.borrow_mut().take());
    let mut cx = Cx::new(&grid, spare.unwrap_or_else(Block::new));
    if grid.cooperative && blocks > 1 {
        run_together(&mut cx, &grid, blocks);
    } else {
        let start = Instant::now();
        if take_blocks(&mut cx, &grid, blocks, Some(start)) {
            let left = blocks - grid.next.load(Ordering::Relaxed).min(blocks);
            let wanted = (launch.threads - 1).min(left as usize);
            let mut granted = 0;
            while granted < wanted && HELPERS.fetch_add(1, Ordering::Relaxed) < launch.threads {
                granted += 1;
            }
            if granted < wanted {
                HELPERS.fetch_sub(1, Ordering::Relaxed);
            }
            std::thread::scope(|scope| {
                for _ in 0..granted {
                    scope.spawn(|| {
                        let mut cx = Cx::new(&grid, Block::new());
                        take_blocks(&mut cx, &grid, blocks, None);
                        keep(&outcome, &mut cx);
                    });
                }
                take_blocks(&mut cx, &grid, blocks, None);
            });
            HELPERS.fetch_sub(granted, Ordering::Relaxed);
        }
    }
    keep(&outcome, &mut cx);
    let block = std::mem::replace(&mut cx.block, Block::new());
    SPARE.with(|s| *s.borrow_mut() = Some(block));
    (outcome.into_inner().unwrap_or_else(PoisonError::into_inner), serial)
}

/// Runs blocks until there are none; with `alone`, only for a while: `true` means that blocks are left.
fn take_blocks(cx: &mut Cx, grid: &Grid, blocks: u64, alone: Option<Instant>) -> bool {
    loop {
        if grid.stopped() {
            return false;
        }
        let index = grid.next.fetch_add(1, Ordering::Relaxed);
        if index >= blocks {
            return false;
        }
        cx.start_block(index);
        if !cx.run_block() {
            grid.stop.store(true, Ordering::Relaxed);
            return false;
        }
        if alone.is_some_and(|start| start.elapsed() > ALONE) {
            return index + 1 < blocks;
        }
    }
}

/// Runs all blocks in turns on one thread, because they may wait for each other.
fn run_together(cx: &mut Cx, grid: &Grid, blocks: u64) {
    let mut waiting: std::collections::VecDeque<Block> = std::collections::VecDeque::new();
    for index in 0..blocks {
        if index > 0 {
            cx.block = Block::new();
        }
        cx.start_block(index);
        waiting.push_back(std::mem::replace(&mut cx.block, Block::new()));
    }
    while let Some(block) = waiting.pop_front() {
        cx.block = block;
        // addresses of another block's registers and shared memory are not ours
        cx.regs = std::ptr::null_mut();
        match cx.turn() {
            Some(true) => {}
            Some(false) => waiting.push_back(std::mem::replace(&mut cx.block, Block::new())),
            None => {
                grid.stop.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}
