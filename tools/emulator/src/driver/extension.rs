//! What this driver can do beyond a real one, for the client: a table of functions behind one symbol.

use super::context::current_any;
use super::{call, failure, launch};
use crate::config;
use crate::counters::Counters;
use std::sync::atomic::Ordering;

/// Version of [`Table`]; a client of another version does not attach.
pub(crate) const TABLE_VERSION: u32 = 4;

/// A launch as it crosses the boundary; the name is cut where it is longer than its room.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Status {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) name_length: u32,
    pub(crate) name: [u8; 512],
    pub(crate) counters: Counters,
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
    let Some(report) = launch::last() else { return 0 };
    let text = report.function.kernel().name.as_bytes();
    let n = text.len().min(512);
    let mut name = [0; 512];
    name[..n].copy_from_slice(&text[..n]);
    let status =
        Status { grid: report.grid, block: report.block, name_length: n as u32, name, counters: report.counters };
    // SAFETY: the client gives a place.
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
