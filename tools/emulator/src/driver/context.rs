//! Initialisation and contexts.

use super::call::{export, give, refuse};
use super::capture::{Stream, unsafe_call};
use super::code::*;
use super::failure;
use super::handle::{self, Handle, Object};
use super::timeline::DEFAULT;
use crate::config::config;
use crate::device::Memory;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bytes of stack of a thread, as a real driver has it at first.
const STACK: u64 = 1024;

/// A context.
pub(crate) struct Context {
    pub(crate) id: u64,
    pub(crate) device: usize,
    pub(crate) memory: Arc<Memory>,
    /// The sticky error, or 0.
    pub(crate) error: AtomicU32,
    pub(crate) stack_limit: AtomicU64,
    pub(crate) limits: Mutex<HashMap<u32, u64>>,
    pub(crate) flags: AtomicU32,
    cache: AtomicU32,
    pub(crate) default_stream: Stream,
}

impl Object for Context {}

/// The context behind a handle, or `INVALID_CONTEXT`.
pub(crate) fn context(on: Handle) -> Result<Arc<Context>, u32> {
    handle::get(on).map_err(|_| ERROR_INVALID_CONTEXT)
}

/// A device's part that outlives contexts.
pub(crate) struct Device {
    pub(crate) memory: Arc<Memory>,
    primary: Mutex<Primary>,
}

#[derive(Default)]
struct Primary {
    handle: u64,
    context: Option<Arc<Context>>,
    users: u32,
    flags: u32,
}

static READY: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Contexts of the thread, the current one last.
    static STACK_OF_CONTEXTS: RefCell<Vec<(u64, Arc<Context>)>> = const { RefCell::new(Vec::new()) };
}

/// All devices.
pub(crate) fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        (0..config().devices)
            .map(|_| Device { memory: Arc::new(Memory::new(config().memory)), primary: Mutex::default() })
            .collect()
    })
}

/// Whether `cuInit` was called.
pub(crate) fn initialised() -> Result<(), u32> {
    if READY.load(Ordering::Relaxed) { Ok(()) } else { Err(ERROR_NOT_INITIALIZED) }
}

/// A device by its number.
pub(crate) fn device(number: i32) -> Result<&'static Device, u32> {
    initialised()?;
    usize::try_from(number).ok().and_then(|n| devices().get(n)).ok_or(ERROR_INVALID_DEVICE)
}

/// The current context, whatever its state.
pub(crate) fn current_any() -> Result<Arc<Context>, u32> {
    initialised()?;
    STACK_OF_CONTEXTS.with(|s| s.borrow().last().map(|(_, c)| c.clone())).ok_or(ERROR_INVALID_CONTEXT)
}

/// The current context, if no kernel has failed in it.
pub(crate) fn current() -> Result<Arc<Context>, u32> {
    let context = current_any()?;
    let kept = failure::take_kept();
    if kept != 0 {
        context.error.store(kept, Ordering::Relaxed);
    }
    match context.error.load(Ordering::Relaxed) {
        0 => Ok(context),
        code => Err(code),
    }
}

fn make(device: usize, flags: u32) -> Arc<Context> {
    let id = handle::number();
    Arc::new(Context {
        id,
        device,
        memory: devices()[device].memory.clone(),
        error: AtomicU32::new(0),
        stack_limit: AtomicU64::new(STACK),
        limits: Mutex::default(),
        flags: AtomicU32::new(flags),
        cache: AtomicU32::new(0),
        default_stream: Stream { context: id, number: DEFAULT, ..Default::default() },
    })
}

/// Ends a context: its handles and its memory are gone.
fn end(number: u64, context: &Arc<Context>) {
    let id = context.id;
    handle::remove(number as Handle);
    context.error.store(ERROR_CONTEXT_IS_DESTROYED, Ordering::Relaxed);
    handle::remove_of(id);
    context.memory.release_all(id);
}

fn retain(number: i32) -> Result<(u64, Arc<Context>), u32> {
    let dev = device(number)?;
    let mut primary = dev.primary.lock().unwrap_or_else(PoisonError::into_inner);
    if primary.context.is_none() {
        let context = make(number as usize, primary.flags);
        primary.handle = handle::insert(context.clone())? as u64;
        primary.context = Some(context);
    }
    primary.users += 1;
    let context = primary.context.clone().ok_or(ERROR_UNKNOWN)?;
    Ok((primary.handle, context))
}

export! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        if devices().is_empty() {
            return refuse(ERROR_NO_DEVICE, "EMULATOR_DEVICES is 0");
        }
        READY.store(true, Ordering::Relaxed);
        crate::config::nanoseconds();
        Ok(())
    }

    fn cuDriverGetVersion(version: *mut i32) {
        // 13.5, whose PTX is the newest understood
        give(version, 13050)
    }

    fn cuDevicePrimaryCtxRetain(out: *mut Handle, dev: i32) {
        if out.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let (handle, _) = retain(dev)?;
        give(out, handle as Handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(dev: i32) {
        let dev = device(dev)?;
        let mut primary = dev.primary.lock().unwrap_or_else(PoisonError::into_inner);
        if primary.users == 0 {
            return Err(ERROR_INVALID_CONTEXT);
        }
        primary.users -= 1;
        if primary.users == 0 && let Some(context) = primary.context.take() {
            end(primary.handle, &context);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxRelease(dev: i32) {
        // SAFETY: the same contract.
        match unsafe { cuDevicePrimaryCtxRelease_v2(dev) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuDevicePrimaryCtxReset_v2(dev: i32) {
        let dev = device(dev)?;
        let mut primary = dev.primary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = primary.context.take() {
            end(primary.handle, &context);
            // those who retained it keep their count; the next retain makes a new one
            let users = primary.users;
            let context = make(context.device, primary.flags);
            if users > 0 {
                primary.handle = handle::insert(context.clone())? as u64;
                primary.context = Some(context);
            }
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset(dev: i32) {
        // SAFETY: the same contract.
        match unsafe { cuDevicePrimaryCtxReset_v2(dev) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuDevicePrimaryCtxSetFlags_v2(dev: i32, flags: u32) {
        let dev = device(dev)?;
        dev.primary.lock().unwrap_or_else(PoisonError::into_inner).flags = flags;
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(dev: i32, flags: *mut u32, active: *mut i32) {
        let dev = device(dev)?;
        let primary = dev.primary.lock().unwrap_or_else(PoisonError::into_inner);
        give(flags, primary.flags)?;
        give(active, i32::from(primary.context.is_some()))
    }

    fn cuCtxCreate_v2(out: *mut Handle, flags: u32, dev: i32) {
        device(dev)?;
        if out.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let context = make(dev as usize, flags);
        let handle = handle::insert(context.clone())?;
        STACK_OF_CONTEXTS.with(|s| s.borrow_mut().push((handle as u64, context)));
        give(out, handle)
    }

    fn cuCtxCreate_v3(out: *mut Handle, _params: *mut c_void, _count: i32, flags: u32, dev: i32) {
        // SAFETY: the same contract for the arguments that are passed on.
        match unsafe { cuCtxCreate_v2(out, flags, dev) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuCtxCreate_v4(out: *mut Handle, _params: *mut c_void, flags: u32, dev: i32) {
        // SAFETY: the same contract for the arguments that are passed on.
        match unsafe { cuCtxCreate_v2(out, flags, dev) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuCtxDestroy_v2(handle: Handle) {
        initialised()?;
        let context = context(handle)?;
        let primary = devices()[context.device].primary.lock().unwrap_or_else(PoisonError::into_inner).handle;
        if primary == handle as u64 {
            return Err(ERROR_INVALID_CONTEXT);
        }
        end(handle as u64, &context);
        STACK_OF_CONTEXTS.with(|s| {
            let mut stack = s.borrow_mut();
            if stack.last().is_some_and(|(h, _)| *h == handle as u64) {
                stack.pop();
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(out: *mut Handle) {
        initialised()?;
        give(out, STACK_OF_CONTEXTS.with(|s| s.borrow().last().map_or(0, |(h, _)| *h)) as Handle)
    }

    fn cuCtxSetCurrent(handle: Handle) {
        initialised()?;
        let context = if handle.is_null() { None } else { Some(context(handle)?) };
        STACK_OF_CONTEXTS.with(|s| {
            let mut stack = s.borrow_mut();
            stack.pop();
            if let Some(context) = context {
                stack.push((handle as u64, context));
            }
        });
        Ok(())
    }

    fn cuCtxPushCurrent_v2(handle: Handle) {
        initialised()?;
        let context = context(handle)?;
        STACK_OF_CONTEXTS.with(|s| s.borrow_mut().push((handle as u64, context)));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(out: *mut Handle) {
        initialised()?;
        match STACK_OF_CONTEXTS.with(|s| s.borrow_mut().pop()) {
            None => Err(ERROR_INVALID_CONTEXT),
            Some((handle, _)) => if out.is_null() { Ok(()) } else { give(out, handle as Handle) },
        }
    }

    fn cuCtxSynchronize() {
        let context = current()?;
        unsafe_call()?;
        context.default_stream.timeline.host_waits_for_all();
        Ok(())
    }

    fn cuCtxGetDevice(out: *mut i32) {
        give(out, current_any()?.device as i32)
    }

    fn cuCtxSynchronize_v2(handle: Handle) {
        let context = if handle.is_null() { current()? } else { context(handle)? };
        unsafe_call()?;
        context.default_stream.timeline.host_waits_for_all();
        Ok(())
    }

    fn cuCtxGetDevice_v2(out: *mut i32, handle: Handle) {
        let context = if handle.is_null() { current_any()? } else { context(handle)? };
        give(out, context.device as i32)
    }

    fn cuCtxGetApiVersion(handle: Handle, out: *mut u32) {
        if handle.is_null() { current_any()? } else { context(handle)? };
        give(out, 13050)
    }

    fn cuCtxGetId(handle: Handle, out: *mut u64) {
        let context = if handle.is_null() { current_any()? } else { context(handle)? };
        give(out, context.id)
    }

    fn cuCtxGetFlags(out: *mut u32) {
        give(out, current_any()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) {
        current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetLimit(out: *mut usize, limit: u32) {
        let context = current()?;
        let value = match limit {
            0 => context.stack_limit.load(Ordering::Relaxed),
            1..=8 => {
                let set = context.limits.lock().unwrap_or_else(PoisonError::into_inner).get(&limit).copied();
                set.unwrap_or(match limit { 1 => 1 << 20, 2 => 8 << 20, _ => 0 })
            }
            _ => return Err(ERROR_INVALID_VALUE),
        };
        give(out, value as usize)
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        let context = current()?;
        match limit {
            0 if value > 512 << 10 => Err(ERROR_INVALID_VALUE),
            0 => {
                context.stack_limit.store((value as u64).next_multiple_of(16), Ordering::Relaxed);
                Ok(())
            }
            1..=8 => {
                context.limits.lock().unwrap_or_else(PoisonError::into_inner).insert(limit, value as u64);
                Ok(())
            }
            _ => Err(ERROR_INVALID_VALUE),
        }
    }

    fn cuCtxGetCacheConfig(out: *mut u32) {
        give(out, current()?.cache.load(Ordering::Relaxed))
    }

    fn cuCtxSetCacheConfig(config: u32) {
        // a preference, which changes nothing here
        current()?.cache.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) {
        current()?;
        if !least.is_null() {
            give(least, 0)?;
        }
        if !greatest.is_null() {
            give(greatest, -5)?;
        }
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: Handle, flags: u32) {
        current()?;
        context(peer)?;
        if flags == 0 { Ok(()) } else { Err(ERROR_INVALID_VALUE) }
    }

    fn cuCtxDisablePeerAccess(peer: Handle) {
        current()?;
        context(peer)?;
        Ok(())
    }

    fn cuProfilerStart() {
        current()?;
        Ok(())
    }

    fn cuProfilerStop() {
        current()?;
        Ok(())
    }
}
