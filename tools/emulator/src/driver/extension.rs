//! What this driver can do beyond a real one, for the client: a table of functions behind one symbol.

use super::context::current_any;
use super::{call, failure, launch};
use crate::config;
use crate::counters::Counters;
use std::sync::atomic::Ordering;

/// Version of [`Table`]; a client of another version does not attach.
pub(crate) const TABLE_VERSION: u32 = 5;

/// A launch as it crosses the boundary; the name is cut where it is longer than its room.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Status {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic: u32,
    pub(crate) name_length: u32,
    pub(crate) name: [u8; 512],
    pub(crate) counters: Counters,
}

/// A line of PTX that read global memory.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) line: u64,
    pub(crate) count: u64,
}

/// The functions.
#[repr(C)]
pub(crate) struct Table {
    pub(crate) version: u32,
    /// Bytes of [`Counters`], which may grow.
    pub(crate) counters_size: u32,
    pub(crate) counters: unsafe extern "C" fn(*mut Counters),
    pub(crate) reset_counters: unsafe extern "C" fn(),
    /// 1 if there was a launch.
    pub(crate) last_launch: unsafe extern "C" fn(*mut Status) -> u32,
    /// The launch of that number since the last reset; 1 if there was one and it is remembered.
    pub(crate) launch: unsafe extern "C" fn(usize, *mut Status) -> u32,
    /// Lines that read global memory in the launch of that number, and how often a warp did: copies as many as there is room
    /// for and returns how many there are.
    pub(crate) loads: unsafe extern "C" fn(usize, *mut Load, usize) -> usize,
    /// Copies the message, returns its length; `usize::MAX` if there is none.
    pub(crate) last_error: unsafe extern "C" fn(*mut u8, usize) -> usize,
    pub(crate) strictness: unsafe extern "C" fn() -> u32,
    pub(crate) set_strictness: unsafe extern "C" fn(u32),
    pub(crate) set_noop: unsafe extern "C" fn(u32),
    pub(crate) set_quiet: unsafe extern "C" fn(u32),
    pub(crate) set_unique: unsafe extern "C" fn(u32),
    /// Forgets the current context's sticky error.
    pub(crate) clear_error: unsafe extern "C" fn(),
    /// The name and its length, which call, the code, 1 for later calls too; 0 if that says nothing.
    pub(crate) fail: unsafe extern "C" fn(*const u8, usize, u64, u32, u32) -> u32,
    pub(crate) forget_failures: unsafe extern "C" fn() -> u32,
}

unsafe extern "C" fn counters(out: *mut Counters) {
    // SAFETY: the client gives a place.
    unsafe { out.write(launch::sum()) };
}

unsafe extern "C" fn reset_counters() {
    launch::reset();
}

unsafe extern "C" fn last_launch(out: *mut Status) -> u32 {
    // SAFETY: the client gives a place.
    unsafe { give(launch::last(), out) }
}

unsafe extern "C" fn nth_launch(index: usize, out: *mut Status) -> u32 {
    // SAFETY: the client gives a place.
    unsafe { give(launch::nth(index), out) }
}

unsafe extern "C" fn loads(index: usize, out: *mut Load, room: usize) -> usize {
    let loads = launch::nth(index).map_or_else(Vec::new, |report| report.loads);
    for (i, &(line, count)) in loads.iter().enumerate().take(room) {
        // SAFETY: the client gives places for `room` lines.
        unsafe { out.add(i).write(Load { line: line.into(), count }) };
    }
    loads.len()
}

/// Writes a launch, if there is one, and says whether there was.
unsafe fn give(report: Option<launch::Report>, out: *mut Status) -> u32 {
    let Some(report) = report else { return 0 };
    let text = report.function.kernel().name.as_bytes();
    let n = text.len().min(512);
    let mut name = [0; 512];
    name[..n].copy_from_slice(&text[..n]);
    let launch::Report { grid, block, dynamic, counters, .. } = report;
    let status = Status { grid, block, dynamic, name_length: n as u32, name, counters };
    // SAFETY: the caller gives a place.
    unsafe { out.write(status) };
    1
}

unsafe extern "C" fn last_error(out: *mut u8, room: usize) -> usize {
    let Some(text) = call::last_error() else { return usize::MAX };
    let n = text.len().min(room);
    // SAFETY: the client gives `room` bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), out, n) };
    text.len()
}

unsafe extern "C" fn strictness() -> u32 {
    config::strict_level()
}

unsafe extern "C" fn set_strictness(level: u32) {
    config::set_strictness(level);
}

unsafe extern "C" fn set_noop(on: u32) {
    config::set_noop(on != 0);
}

unsafe extern "C" fn set_quiet(on: u32) {
    config::set_quiet(on != 0);
}

unsafe extern "C" fn set_unique(on: u32) {
    config::set_unique(on != 0);
}

unsafe extern "C" fn clear_error() {
    if let Ok(context) = current_any() {
        context.error.store(0, Ordering::Relaxed);
    }
}

unsafe extern "C" fn fail(name: *const u8, length: usize, nth: u64, code: u32, sticky: u32) -> u32 {
    // SAFETY: the client gives a name of that length.
    let name = unsafe { std::slice::from_raw_parts(name, length) };
    std::str::from_utf8(name).is_ok_and(|name| failure::add(name, nth, code, sticky != 0)).into()
}

unsafe extern "C" fn forget_failures() -> u32 {
    failure::forget().into()
}

static TABLE: Table = Table {
    version: TABLE_VERSION,
    counters_size: size_of::<Counters>() as u32,
    counters,
    reset_counters,
    last_launch,
    launch: nth_launch,
    loads,
    last_error,
    strictness,
    set_strictness,
    set_noop,
    set_quiet,
    set_unique,
    clear_error,
    fail,
    forget_failures,
};

/// The table. A driver without this symbol is not the emulator.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn emulator_table() -> *const Table {
    &TABLE
}
