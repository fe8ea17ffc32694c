//! Attributes of functions, and occupancy.

use super::call::{Call, export, give, refuse};
use super::code::*;
use super::context::{current, device};
use super::device::{REGISTERS, SHARED_DEFAULT, SHARED_RESERVED, limits};
use super::handle::{self, Handle};
use super::module::Function;
use crate::config::config;
use std::ffi::c_char;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Dynamic shared memory that a launch may ask for.
pub(crate) fn dynamic_limit(f: &Function) -> u32 {
    match f.max_dynamic.load(Ordering::Relaxed) {
        -1 => SHARED_DEFAULT.saturating_sub(f.kernel().static_shared as u32),
        set => set as u32,
    }
}

/// Threads that a block may have: what the kernel says, and what its registers leave.
pub(crate) fn thread_limit(f: &Function) -> u32 {
    let kernel = f.kernel();
    let said = kernel.exact_threads.map(|t| t.iter().product()).or(kernel.max_threads).unwrap_or(1024);
    said.min(1024)
}

/// Blocks that a multiprocessor holds.
pub(crate) fn blocks_per_sm(f: &Function, threads: u32, dynamic: usize) -> u32 {
    let l = limits();
    if threads == 0 || threads > thread_limit(f) {
        return 0;
    }
    let warps = threads.div_ceil(32);
    let reserved = if config().cc >= 80 { SHARED_RESERVED as usize } else { 0 };
    let shared = f.kernel().static_shared + dynamic + reserved;
    let by_threads = l.threads_per_sm / (warps * 32);
    // registers are given to warps in pieces of 256
    let registers = (f.kernel().registers * 32).next_multiple_of(256) * warps;
    let by_registers = REGISTERS / registers.max(1);
    let by_shared = if shared == 0 { u32::MAX } else { l.shared_per_sm / shared as u32 };
    by_threads.min(by_registers).min(by_shared).min(l.blocks_per_sm)
}

type BlockToShared = Option<unsafe extern "C" fn(i32) -> usize>;

fn best_block(f: &Function, per_block: impl Fn(u32) -> usize, limit: i32) -> (u32, u32) {
    let top = if limit > 0 { thread_limit(f).min(limit as u32) } else { thread_limit(f) };
    let mut best = (0, 0);
    let mut threads = top;
    while threads > 0 {
        let blocks = blocks_per_sm(f, threads, per_block(threads));
        if blocks * threads > best.0 * best.1 {
            best = (blocks, threads);
        }
        threads = if threads % 32 != 0 { threads / 32 * 32 } else { threads - 32 };
    }
    (best.0 * config().sms, best.1)
}

fn attribute_of(f: &Function, attribute: u32) -> Result<i32, u32> {
    let kernel = f.kernel();
    Ok(match attribute {
        0 => thread_limit(f) as i32,
        1 => kernel.static_shared as i32,
        2 => kernel.constants as i32,
        3 => kernel.local as i32,
        4 => kernel.registers as i32,
        5 => f.module.versions.0,
        6 => config().cc as i32,
        7 => 0,
        8 => dynamic_limit(f) as i32,
        9 => f.carveout.load(Ordering::Relaxed),
        10..=15 => {
            let set = f.cluster.lock().unwrap_or_else(PoisonError::into_inner).get(&attribute).copied();
            set.unwrap_or(match (attribute, kernel.cluster) {
                (10, c) => i32::from(c.is_some()),
                (11..=13, Some(c)) => c[attribute as usize - 11] as i32,
                _ => 0,
            })
        }
        _ => return Err(ERROR_INVALID_VALUE),
    })
}

fn set_attribute(f: &Function, attribute: u32, value: i32) -> Call {
    match attribute {
        8 => {
            let (optin, fixed) = (limits().shared_optin, f.kernel().static_shared);
            if value < 0 || value > optin as i32 - fixed as i32 {
                return refuse(
                    ERROR_INVALID_VALUE,
                    format!(
                        "`{}` cannot have {value} bytes of dynamic shared memory: sm_{} has {optin} for a block, {fixed} \
                         are static",
                        f.kernel().name,
                        config().cc,
                    ),
                );
            }
            f.max_dynamic.store(value, Ordering::Relaxed);
            Ok(())
        }
        9 if (-1..=100).contains(&value) => {
            f.carveout.store(value, Ordering::Relaxed);
            Ok(())
        }
        11..=15 => {
            f.cluster.lock().unwrap_or_else(PoisonError::into_inner).insert(attribute, value);
            Ok(())
        }
        _ => Err(ERROR_INVALID_VALUE),
    }
}

fn name_of(f: &Function) -> Result<*const c_char, u32> {
    // names live as long as the process: they are asked for seldom
    let text = std::ffi::CString::new(f.kernel().name.clone()).map_err(|_| ERROR_UNKNOWN)?;
    Ok(Box::leak(text.into_boxed_c_str()).as_ptr())
}

fn parameter(f: &Function, index: usize, offset: *mut usize, size: *mut usize) -> Call {
    let &(at, bytes) = f.kernel().params.get(index).ok_or(ERROR_INVALID_VALUE)?;
    give(offset, at)?;
    if size.is_null() { Ok(()) } else { give(size, bytes) }
}

export! {
    fn cuFuncGetAttribute(out: *mut i32, attribute: u32, on: Handle) {
        current()?;
        give(out, attribute_of(&*handle::get::<Function>(on)?, attribute)?)
    }

    fn cuKernelGetAttribute(out: *mut i32, attribute: u32, on: Handle, dev: i32) {
        device(dev)?;
        give(out, attribute_of(&*handle::get::<Function>(on)?, attribute)?)
    }

    fn cuFuncSetAttribute(on: Handle, attribute: u32, value: i32) {
        current()?;
        set_attribute(&*handle::get::<Function>(on)?, attribute, value)
    }

    fn cuKernelSetAttribute(attribute: u32, value: i32, on: Handle, dev: i32) {
        device(dev)?;
        set_attribute(&*handle::get::<Function>(on)?, attribute, value)
    }

    fn cuKernelSetCacheConfig(on: Handle, _config: u32, dev: i32) {
        device(dev)?;
        handle::get::<Function>(on)?;
        Ok(())
    }

    fn cuKernelGetName(out: *mut *const c_char, on: Handle) {
        give(out, name_of(&*handle::get::<Function>(on)?)?)
    }

    fn cuKernelGetParamInfo(on: Handle, index: usize, offset: *mut usize, size: *mut usize) {
        parameter(&*handle::get::<Function>(on)?, index, offset, size)
    }

    fn cuKernelGetParamCount(on: Handle, count: *mut usize) {
        give(count, handle::get::<Function>(on)?.kernel().params.len())
    }

    fn cuFuncGetParamCount(on: Handle, count: *mut usize) {
        give(count, handle::get::<Function>(on)?.kernel().params.len())
    }

    fn cuFuncLoad(on: Handle) {
        // it is loaded with its module
        handle::get::<Function>(on)?;
        Ok(())
    }

    fn cuFuncIsLoaded(out: *mut u32, on: Handle) {
        handle::get::<Function>(on)?;
        give(out, 1)
    }

    fn cuFuncSetCacheConfig(on: Handle, _config: u32) {
        current()?;
        handle::get::<Function>(on)?;
        Ok(())
    }

    fn cuFuncGetModule(_out: *mut Handle, on: Handle) {
        handle::get::<Function>(on)?;
        refuse(ERROR_NOT_SUPPORTED, "cuFuncGetModule is not implemented")
    }

    fn cuFuncGetName(out: *mut *const c_char, on: Handle) {
        give(out, name_of(&*handle::get::<Function>(on)?)?)
    }

    fn cuFuncGetParamInfo(on: Handle, index: usize, offset: *mut usize, size: *mut usize) {
        parameter(&*handle::get::<Function>(on)?, index, offset, size)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut i32, on: Handle, threads: i32, dynamic: usize) {
        current()?;
        let f = handle::get::<Function>(on)?;
        if threads <= 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        give(out, blocks_per_sm(&f, threads as u32, dynamic) as i32)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out: *mut i32, on: Handle, threads: i32, dynamic: usize, _flags: u32) {
        // SAFETY: the same contract.
        match unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(out, on, threads, dynamic) } {
            0 => Ok(()),
            code => Err(code),
        }
    }

    fn cuOccupancyMaxPotentialBlockSize(grid: *mut i32, block: *mut i32, on: Handle, shared: BlockToShared, dynamic: usize, limit: i32) {
        current()?;
        let f = handle::get::<Function>(on)?;
        let per_block = |threads: u32| match shared {
            // SAFETY: the application's function.
            Some(shared) => unsafe { shared(threads as i32) },
            None => dynamic,
        };
        let best = best_block(&f, per_block, limit);
        give(grid, best.0 as i32)?;
        give(block, best.1 as i32)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut i32, block: *mut i32, on: Handle, shared: BlockToShared, dynamic: usize, limit: i32, _flags: u32,
    ) {
        // SAFETY: the same contract.
        match unsafe { cuOccupancyMaxPotentialBlockSize(grid, block, on, shared, dynamic, limit) } {
            0 => Ok(()),
            code => Err(code),
        }
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(out: *mut usize, on: Handle, blocks: i32, _threads: i32) {
        current()?;
        let f = handle::get::<Function>(on)?;
        if blocks <= 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        let l = limits();
        let share = (l.shared_per_sm / blocks as u32).min(l.shared_optin);
        give(out, (share as usize).saturating_sub(f.kernel().static_shared + SHARED_RESERVED as usize))
    }
}
