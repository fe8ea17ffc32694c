//! A driver call: its outcome, the reason of a refusal, and the frame that every exported function has.

use super::{code, failure};
use std::cell::RefCell;

/// A driver call's outcome: nothing, or an error code.
pub(crate) type Call = Result<(), u32>;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Tells the reason of a fault or a refusal to stderr and to the client.
pub(crate) fn report(message: &str) {
    tell(message, 1);
}

/// Tells what an application expects to happen: to the client, and to stderr only where it is to be verbose.
pub(crate) fn remark(message: &str) {
    tell(message, 2);
}

fn tell(message: &str, from: u32) {
    if crate::config::verbosity() >= from {
        eprintln!("warpcheck: {message}");
    }
    LAST.with(|last| *last.borrow_mut() = Some(message.to_owned()));
}

/// Refuses with a reason.
pub(crate) fn refuse<T>(code: u32, message: impl AsRef<str>) -> Result<T, u32> {
    report(message.as_ref());
    Err(code)
}

/// The calling thread's last reason.
pub(crate) fn last_error() -> Option<String> {
    LAST.with(|last| last.borrow().clone())
}

/// Runs an exported function's body; a panic becomes `CUDA_ERROR_UNKNOWN`.
pub(crate) fn enter(name: &str, body: impl FnOnce() -> Call) -> u32 {
    let (_under, failure) = failure::enter(name);
    if let Some(code) = failure {
        let what = code::describe(code).map_or("an unknown error", |d| d.0.trim_end_matches('\0'));
        report(&format!("{name} fails with {code}, {what}, because it was asked to"));
        return code;
    }
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => {
            report(&format!("{name} failed inside the emulator"));
            code::ERROR_UNKNOWN
        }
    }
}

/// Writes a result; a null destination is an invalid value.
pub(crate) fn give<T>(to: *mut T, value: T) -> Call {
    if to.is_null() {
        return Err(code::ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller of the driver gives a pointer to a place for the result; null is excluded.
    unsafe { to.write(value) };
    Ok(())
}

/// Declares exported functions.
macro_rules! export {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
                $crate::driver::call::enter(stringify!($name), || $body)
            }
        )*
    };
}
pub(crate) use export;
