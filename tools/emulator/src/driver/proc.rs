//! `cuGetProcAddress`: functions by name, as the runtime library and newer bindings look them up.

use super::call::{Call, export, give};
use super::code::*;
use std::ffi::{CStr, CString, c_char, c_void};

/// Newest variants first: an application asks for the name without its suffix.
const SUFFIXES: [&str; 4] = ["_v4", "_v3", "_v2", ""];

fn find(name: &str) -> *mut c_void {
    // the library that holds this very function
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is one of ours, the place is for the result.
    let library = unsafe {
        if libc::dladdr(find as *const c_void, info.as_mut_ptr()) == 0 {
            return std::ptr::null_mut();
        }
        libc::dlopen(info.assume_init().dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD)
    };
    if library.is_null() {
        return std::ptr::null_mut();
    }
    for suffix in SUFFIXES {
        let Ok(symbol) = CString::new(format!("{name}{suffix}")) else { break };
        // SAFETY: the library stays loaded, this code is in it.
        let found = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        if !found.is_null() {
            return found;
        }
    }
    std::ptr::null_mut()
}

fn lookup(symbol: *const c_char, out: *mut *mut c_void, status: *mut u32) -> Call {
    if symbol.is_null() {
        return Err(ERROR_INVALID_VALUE);
    }
    // SAFETY: the application gives a text with a final zero.
    let name = unsafe { CStr::from_ptr(symbol) }.to_str().map_err(|_| ERROR_NOT_FOUND)?;
    let found = find(name);
    if !status.is_null() {
        // found, or not in this version
        give(status, u32::from(found.is_null()))?;
    }
    give(out, found)?;
    if found.is_null() { Err(ERROR_NOT_FOUND) } else { Ok(()) }
}

export! {
    fn cuGetProcAddress_v2(symbol: *const c_char, out: *mut *mut c_void, _version: i32, _flags: u64, status: *mut u32) {
        lookup(symbol, out, status)
    }

    fn cuGetProcAddress(symbol: *const c_char, out: *mut *mut c_void, _version: i32, _flags: u64) {
        lookup(symbol, out, std::ptr::null_mut())
    }
}
