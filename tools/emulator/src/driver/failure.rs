//! Faults on demand: the n-th call of a function of the driver fails, so that a program can try what it does then.

use super::code;
use crate::config::config;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// A call that is to fail.
#[derive(Debug, Clone)]
struct Failure {
    /// The function without its version; `*` for any.
    call: String,
    /// Calls until then, this one included; 0: it has failed.
    left: u64,
    code: u32,
    /// Later calls fail too.
    sticky: bool,
}

/// Whether there may be failures: not known, no, yes.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

/// Failures of all threads, as the environment asks for them.
static SHARED: Mutex<Vec<Failure>> = Mutex::new(Vec::new());

thread_local! {
    /// Failures of the thread, as the client asks for them.
    static OWN: RefCell<Vec<Failure>> = const { RefCell::new(Vec::new()) };
    /// Calls under way: those that the driver makes of itself do not count.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// An error that the current context is to keep.
    static KEPT: Cell<u32> = const { Cell::new(0) };
}

/// The name of a function without its version: `cuMemAlloc` for `cuMemAlloc_v2`.
fn plain(name: &str) -> &str {
    match name.rsplit_once("_v") {
        Some((plain, version)) if version.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => name,
    }
}

/// `CALL:N:CODE[:sticky]`; the code is a number or a name such as `CUDA_ERROR_OUT_OF_MEMORY`.
fn parse(text: &str) -> Option<Failure> {
    let mut parts = text.trim().split(':');
    let (call, left, code) = (parts.next()?, parts.next()?, parts.next()?);
    let sticky = match parts.next() {
        None => false,
        Some("sticky") => true,
        Some(_) => return None,
    };
    let left = left.parse().ok().filter(|n| *n > 0)?;
    let code = code.parse().ok().or_else(|| code::named(code)).filter(|c| *c != 0)?;
    (parts.next().is_none() && !call.is_empty()).then(|| Failure { call: plain(call).into(), left, code, sticky })
}

/// Reads what the environment asks for.
#[cold]
fn begin() {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if STATE.load(Ordering::Relaxed) != UNKNOWN {
        return;
    }
    for text in config().fail.split(',').filter(|t| !t.trim().is_empty()) {
        match parse(text) {
            Some(failure) => shared.push(failure),
            None => eprintln!("warpcheck: EMULATOR_FAIL={text} is not of the form CALL:N:CODE or CALL:N:CODE:sticky"),
        }
    }
    STATE.store(if shared.is_empty() { NONE } else { SOME }, Ordering::Relaxed);
}

/// Lets the n-th call from now on of a function fail in this thread; `false` if that says nothing.
pub(crate) fn add(call: &str, nth: u64, code: u32, sticky: bool) -> bool {
    if nth == 0 || code == 0 || call.is_empty() {
        return false;
    }
    if STATE.load(Ordering::Relaxed) == UNKNOWN {
        begin();
    }
    OWN.with(|own| own.borrow_mut().push(Failure { call: plain(call).into(), left: nth, code, sticky }));
    STATE.store(SOME, Ordering::Relaxed);
    true
}

/// Forgets the failures of this thread; whether one was still to come.
pub(crate) fn forget() -> bool {
    KEPT.with(|k| k.set(0));
    OWN.with(|own| own.take()).iter().any(|failure| failure.left > 0)
}

/// A call of the application, until it is dropped.
pub(crate) struct Under(bool);

impl Drop for Under {
    fn drop(&mut self) {
        if self.0 {
            DEPTH.with(|d| d.set(d.get() - 1));
        }
    }
}

/// A call begins: if it is to fail, with which code.
#[inline]
pub(crate) fn enter(name: &str) -> (Under, Option<u32>) {
    if STATE.load(Ordering::Relaxed) == NONE { (Under(false), None) } else { counted(name) }
}

#[cold]
fn counted(name: &str) -> (Under, Option<u32>) {
    if STATE.load(Ordering::Relaxed) == UNKNOWN {
        begin();
    }
    let depth = DEPTH.with(|d| d.replace(d.get() + 1));
    if depth > 0 {
        return (Under(true), None);
    }
    let name = plain(name);
    let due = |all: &mut Vec<Failure>| {
        let mut found = None;
        for failure in all.iter_mut().filter(|f| f.call == name || f.call == "*") {
            let now = failure.left == 1 || failure.left == 0 && failure.sticky;
            failure.left = failure.left.saturating_sub(1);
            if now && found.is_none() {
                found = Some((failure.code, failure.sticky));
            }
        }
        found
    };
    let found = OWN
        .with(|own| due(&mut own.borrow_mut()))
        .or_else(|| due(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner)));
    if let Some((code, true)) = found
        && code::kept(code)
    {
        KEPT.with(|k| k.set(code));
    }
    (Under(true), found.map(|f| f.0))
}

/// The error of a failed call that its context keeps, as on a device: once.
#[inline]
pub(crate) fn take_kept() -> u32 {
    if STATE.load(Ordering::Relaxed) == NONE { 0 } else { KEPT.with(|k| k.replace(0)) }
}
