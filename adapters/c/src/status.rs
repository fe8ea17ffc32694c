//! The status of a call, and the sentence to it.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::header::header;

/// 0 for success, else one of the constants below.
pub type PosencStatus = i32;

header! {{}
    constants PosencStatus {
        POSENC_OK = 0: "Statuses: done.",
        POSENC_ARGUMENT = 1: "A pointer is null, a struct has an unknown version or another size, a constant is unknown.",
        POSENC_VALUE = 2: "A value, a length or a shape breaks a rule.",
        POSENC_DEVICE = 3: "There is no driver, no device, or no kernel for it.",
        POSENC_DRIVER = 4: "The driver refused a call.",
        POSENC_INTERNAL = 5: "A bug of this library.",
    }

    /// The sentence to the last status of this thread that was not 0; empty if there was none. It stays until the thread's next
    /// call that fails.
    fn posenc_last_error() -> *const c_char {
        LAST.with(|last| last.borrow().as_ptr())
    }
    /// Major version times 10000, minor times 100, patch.
    fn posenc_version() -> u32 {
        let part = |text: &str| text.bytes().fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        let [major, minor, patch] =
            [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")].map(part);
        major * 10_000 + minor * 100 + patch
    }
}

/// Why a call failed.
pub(crate) struct Failure {
    status: PosencStatus,
    text: String,
}

impl Failure {
    pub(crate) fn argument(text: String) -> Self {
        Self { status: POSENC_ARGUMENT, text }
    }
}

impl From<posenc::Error> for Failure {
    fn from(error: posenc::Error) -> Self {
        use posenc::Error as E;
        let status = match error {
            E::NoDevice(_) | E::NoKernels | E::Load { .. } => POSENC_DEVICE,
            E::Driver { .. } => POSENC_DRIVER,
            _ => POSENC_VALUE,
        };
        Self { status, text: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of a function; a panic becomes a status.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> PosencStatus {
    // Nothing is shared but the crate's own state, which a panic leaves whole: its locks forgive poison.
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Failure { status: POSENC_INTERNAL, text: format!("posenc is at fault: {text}") })
    });
    match result {
        Ok(()) => POSENC_OK,
        Err(Failure { status, text }) => {
            let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
            LAST.with(|last| *last.borrow_mut() = text);
            status
        }
    }
}
