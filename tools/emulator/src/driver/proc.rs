//! `cuGetProcAddress`: functions by name, as the runtime library and newer bindings look them up.

use super::call::{Call, export, give, remark};
use super::code::*;
use std::ffi::{CStr, CString, c_char, c_void};

/// The versions of CUDA in which each variant of a function appeared, the first without a suffix, then `_v2` and so on
/// (cudaTypedefs.h): those of which an application asks for an older variant than the newest.
const VARIANTS: &[(&str, &[i32])] = &[
    ("cuCtxCreate", &[2000, 3020, 11040, 12050]),
    ("cuCtxGetDevice", &[2000, 13000]),
    ("cuCtxSynchronize", &[2000, 13000]),
    ("cuDeviceGetUuid", &[9020, 11040]),
    ("cuDevicePrimaryCtxRelease", &[7000, 11000]),
    ("cuDevicePrimaryCtxReset", &[7000, 11000]),
    ("cuDevicePrimaryCtxSetFlags", &[7000, 11000]),
    ("cuEventElapsedTime", &[2000, 12080]),
    ("cuGetProcAddress", &[11030, 12000]),
    ("cuGraphAddDependencies", &[10000, 12030]),
    ("cuGraphAddKernelNode", &[10000, 12000]),
    ("cuGraphAddNode", &[12020, 12030, 13040]),
    ("cuGraphExecKernelNodeSetParams", &[10010, 12000]),
    ("cuGraphExecUpdate", &[10020, 12000]),
    ("cuGraphGetEdges", &[10000, 12030]),
    ("cuGraphInstantiate", &[10000, 11000]),
    ("cuGraphKernelNodeGetParams", &[10000, 12000]),
    ("cuGraphKernelNodeSetParams", &[10000, 12000]),
    ("cuGraphNodeGetDependencies", &[10000, 12030]),
    ("cuGraphNodeGetDependentNodes", &[10000, 12030]),
    ("cuGraphNodeSetParams", &[12020, 13040]),
    ("cuGraphRemoveDependencies", &[10000, 12030]),
    ("cuIpcOpenMemHandle", &[4010, 11000]),
    ("cuLaunchHostFunc", &[10000, 13010]),
    ("cuMemAdvise", &[8000, 12020]),
    ("cuMemPrefetchAsync", &[8000, 12020]),
    ("cuMemcpy3DBatchAsync", &[12080, 13000]),
    ("cuMemcpyBatchAsync", &[12080, 13000]),
    ("cuMulticastBindAddr", &[12010, 13010]),
    ("cuMulticastBindMem", &[12010, 13010]),
    ("cuStreamBatchMemOp", &[8000, 11070]),
    ("cuStreamBeginCapture", &[10000, 10010]),
    ("cuStreamGetCaptureInfo", &[10010, 11030, 12030]),
    ("cuStreamGetCtx", &[9020, 12050]),
    ("cuStreamUpdateCaptureDependencies", &[11030, 12030]),
    ("cuStreamWaitValue32", &[8000, 11070]),
    ("cuStreamWaitValue64", &[9000, 11070]),
    ("cuStreamWriteValue32", &[8000, 11070]),
    ("cuStreamWriteValue64", &[9000, 11070]),
];

/// Variants that may stand for a name, the one to be taken first.
fn candidates(name: &str, version: i32) -> Vec<String> {
    match VARIANTS.iter().find(|(known, _)| *known == name) {
        Some((_, versions)) => match versions.iter().filter(|&&first| first <= version).count() {
            0 => vec![],
            1 => vec![name.into()],
            n => vec![format!("{name}_v{n}")],
        },
        // the others changed before CUDA 7, and nobody asks for what they were
        None => ["_v3", "_v2", ""].iter().map(|suffix| format!("{name}{suffix}")).collect(),
    }
}

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`
const PER_THREAD: u64 = 2;
/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`, `CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT`
const NOT_FOUND: u32 = 1;
const TOO_OLD: u32 = 2;

fn find(names: &[String]) -> *mut c_void {
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
    for name in names {
        let Ok(symbol) = CString::new(name.as_str()) else { break };
        // SAFETY: the library stays loaded, this code is in it.
        let found = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        if !found.is_null() {
            return found;
        }
    }
    std::ptr::null_mut()
}

fn lookup(symbol: *const c_char, out: *mut *mut c_void, version: i32, flags: u64, status: *mut u32) -> Call {
    if symbol.is_null() {
        return Err(ERROR_INVALID_VALUE);
    }
    // SAFETY: the application gives a text with a final zero.
    let name = unsafe { CStr::from_ptr(symbol) }.to_str().map_err(|_| ERROR_NOT_FOUND)?;
    let names = candidates(name, version);
    let found = if flags & PER_THREAD == 0 {
        find(&names)
    } else {
        // the runtime library asks for all of them at its start
        remark(&format!("`{name}` for per-thread default streams is not implemented"));
        std::ptr::null_mut()
    };
    if !status.is_null() {
        let reason = if names.is_empty() { TOO_OLD } else { NOT_FOUND };
        give(status, if found.is_null() { reason } else { 0 })?;
    }
    give(out, found)?;
    if found.is_null() { Err(ERROR_NOT_FOUND) } else { Ok(()) }
}

export! {
    fn cuGetProcAddress_v2(symbol: *const c_char, out: *mut *mut c_void, version: i32, flags: u64, status: *mut u32) {
        lookup(symbol, out, version, flags, status)
    }

    fn cuGetProcAddress(symbol: *const c_char, out: *mut *mut c_void, version: i32, flags: u64) {
        lookup(symbol, out, version, flags, std::ptr::null_mut())
    }
}
