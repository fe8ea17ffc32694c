//! Allocation, copies and fills.

use super::call::{Call, export, give, refuse};
use super::capture::{Kind, Stream, Work, capture, unsafe_call};
use super::code::*;
use super::context::{Context, Device, context as context_of, current, current_any, device, devices, initialised};
use super::handle::{self, Handle, Object};
use super::stream::stream;
use super::timeline::{self, Begun};
use crate::exec::race;
use crate::written;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A pool, of which only its settings matter: memory is a device's.
#[derive(Default)]
pub(crate) struct Pool {
    settings: Mutex<BTreeMap<u32, u64>>,
    device: usize,
}

impl Object for Pool {}

/// A copy or fill, checked when it is performed.
#[derive(Clone, Debug)]
pub(crate) enum Transfer {
    /// `count` elements of `size` bytes.
    Fill { at: u64, value: u32, size: u8, count: usize, pitch: usize, rows: usize },
    /// From anywhere to anywhere.
    Copy { to: u64, from: u64, bytes: usize },
}

impl Work for Transfer {
    fn perform(&self, on: &Stream) -> Call {
        in_order(on, self)
    }

    fn kind(&self) -> Kind {
        Kind::Memory
    }
}

/// The owner of pinned host memory: it lies in a device's region, so that kernels reach it at the same address.
const HOST: u64 = 0;

/// The device in whose region an address lies.
pub(crate) fn owner(at: u64) -> Option<&'static Device> {
    devices().iter().find(|d| d.memory.holds(at))
}

/// What a range is: device memory, checked, or the host's.
fn check_range(at: u64, bytes: usize, what: &str) -> Result<Option<&'static Device>, u32> {
    match owner(at) {
        None if at == 0 && bytes > 0 => refuse(ERROR_INVALID_VALUE, format!("{what}: a null pointer")),
        None => Ok(None),
        Some(dev) => match dev.memory.check(at, bytes as u64) {
            Ok(()) => Ok(Some(dev)),
            Err(place) => refuse(
                ERROR_INVALID_VALUE,
                format!("{what}: {bytes} bytes at {at:#x} are not in one allocation, they are {place}"),
            ),
        },
    }
}

fn device_range(at: u64, bytes: usize, what: &str) -> Call {
    match check_range(at, bytes, what)? {
        Some(_) => Ok(()),
        None if bytes == 0 => Ok(()),
        None => refuse(ERROR_INVALID_VALUE, format!("{what}: {at:#x} is not an address of a device")),
    }
}

/// Does the work.
fn perform(work: &Transfer) -> Call {
    match *work {
        Transfer::Fill { at, value, size, count, pitch, rows } => {
            let row = count * size as usize;
            if size > 1 && at % u64::from(size) != 0 {
                return Err(ERROR_INVALID_VALUE);
            }
            for y in 0..rows {
                let at = at + (y * pitch) as u64;
                device_range(at, row, "a fill")?;
                let dev = owner(at);
                // SAFETY: the range is in one allocation, or in memory that the driver allocated on the host.
                unsafe {
                    match size {
                        1 => std::ptr::write_bytes(at as *mut u8, value as u8, count),
                        2 => (0..count).for_each(|i| (at as *mut u16).add(i).write_unaligned(value as u16)),
                        _ => (0..count).for_each(|i| (at as *mut u32).add(i).write_unaligned(value)),
                    }
                }
                if let Some(dev) = dev {
                    written::written(&dev.memory, at, row as u64);
                }
            }
            Ok(())
        }
        Transfer::Copy { to, from, bytes } => {
            if bytes == 0 {
                return Ok(());
            }
            let source = check_range(from, bytes, "the source of a copy")?;
            let target = check_range(to, bytes, "the target of a copy")?;
            if let (Some(dev), None) = (source, target)
                && crate::config::strictness().uninitialised
                && let Some(at) = written::first_unwritten(&dev.memory, from, bytes as u64)
            {
                let start = dev.memory.find(at).map_or(from, |a| a.start);
                return fault_outside(format!(
                    "a copy to the host reads byte {} of the allocation at {start:#x}, which nobody wrote",
                    at - start
                ));
            }
            // SAFETY: device ranges were checked; for the host's the caller vouches, as with a real driver.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            match (source, target) {
                (Some(a), Some(b)) => written::copied(&a.memory, from, &b.memory, to, bytes as u64),
                (None, Some(b)) => written::written(&b.memory, to, bytes as u64),
                _ => {}
            }
            Ok(())
        }
    }
}

/// A fault that a copy meets: sticky, like a kernel's.
fn fault_outside(message: String) -> Call {
    let context = current_any()?;
    context.error.store(ERROR_LAUNCH_FAILED, Ordering::Relaxed);
    refuse(ERROR_LAUNCH_FAILED, message)
}

impl Transfer {
    /// The ranges of device memory that it touches: start, bytes, and whether it writes them.
    fn ranges(&self) -> Vec<(u64, u64, bool)> {
        let all = match *self {
            Self::Fill { at, size, count, pitch, rows, .. } => {
                (0..rows).map(|y| (at + (y * pitch) as u64, count as u64 * u64::from(size), true)).collect()
            }
            Self::Copy { to, from, bytes } => vec![(from, bytes as u64, false), (to, bytes as u64, true)],
        };
        all.into_iter().filter(|&(at, bytes, _): &(u64, u64, bool)| bytes > 0 && owner(at).is_some()).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Fill { .. } => "a fill",
            Self::Copy { .. } => "a copy",
        }
    }
}

/// Ranges longer than this are not searched for what other streams did there.
const LONGEST_SEARCH: u64 = 256 << 20;

/// What nothing orders before an access of a range and cannot be beside it.
fn in_the_way(begun: &Begun, at: u64, bytes: u64, writes: bool) -> Option<(String, &'static str)> {
    let memory = &owner(at)?.memory;
    let born = memory.find(at)?.born;
    let loose = &begun.loose;
    let range =
        loose.ranges.iter().find(|r| r.at < at + bytes && at < r.end && (r.writes || writes) && r.moment > born);
    if let Some(range) = range {
        return Some((range.name.clone(), if range.writes { "wrote" } else { "read" }));
    }
    if bytes > LONGEST_SEARCH {
        return None;
    }
    let (kernel, _, wrote) = race::touched(memory, at, bytes, writes, &loose.kernels)?;
    (kernel.moment > born).then(|| (kernel.name.clone(), if wrote { "wrote" } else { "read" }))
}

/// Does work in a stream, and sees whether other streams' work is in order with it.
fn in_order(on: &Stream, work: &Transfer) -> Call {
    if !crate::config::strictness().races {
        return perform(work);
    }
    let begun = on.begin(false);
    let ranges = work.ranges();
    for &(at, bytes, writes) in &ranges {
        if let Some((other, did)) = in_the_way(&begun, at, bytes, writes) {
            return fault_outside(format!(
                "{} in {} {} {bytes} bytes at {at:#x}, which {other} {did}, and neither an event nor a synchronisation \
                 orders it before: a race",
                work.name(),
                timeline::name(on.number),
                if writes { "writes" } else { "reads" },
            ));
        }
    }
    perform(work)?;
    for (at, bytes, writes) in ranges {
        on.timeline.touched(&begun, at, bytes, writes, work.name());
    }
    Ok(())
}

/// Does the work now, or records it.
fn submit(on: Handle, work: Transfer) -> Call {
    let context = current()?;
    let stream = stream(&context, on)?;
    match capture(&stream) {
        Some(capture) => capture.add(&stream, Arc::new(work)),
        None => in_order(&stream, &work),
    }
}

/// Does the work now; while the thread captures that is not allowed.
fn now(work: Transfer) -> Call {
    let context = current()?;
    unsafe_call()?;
    in_order(&context.default_stream, &work)?;
    context.default_stream.awaited();
    Ok(())
}

fn allocate(context: &Context, out: *mut u64, bytes: usize) -> Call {
    if out.is_null() || bytes == 0 {
        return Err(ERROR_INVALID_VALUE);
    }
    match context.memory.allocate(bytes as u64, context.id) {
        Some(at) => {
            written::allocated(&context.memory, at, bytes as u64);
            give(out, at)
        }
        None => refuse(
            ERROR_OUT_OF_MEMORY,
            format!("{bytes} bytes do not fit: {} of {} are free", context.memory.free_bytes(), context.memory.claimed),
        ),
    }
}

fn free(at: u64) -> Call {
    if at == 0 {
        return Ok(());
    }
    let Some(dev) = owner(at) else {
        return refuse(ERROR_INVALID_VALUE, format!("{at:#x} was not allocated"));
    };
    if dev.memory.release(at) {
        return Ok(());
    }
    refuse(
        ERROR_INVALID_VALUE,
        format!("{at:#x} is not the start of an allocation: it is {}", dev.memory.table().describe(at, 1)),
    )
}

fn host_memory(at: u64) -> Option<&'static Device> {
    owner(at).filter(|d| d.memory.find(at).is_some_and(|a| a.owner == HOST && a.start == at))
}

fn async_allocation(out: *mut u64, bytes: usize, on: Handle) -> Call {
    let context = current()?;
    let stream = stream(&context, on)?;
    // captured, it becomes the graph's: its address is fixed now and serves every replay
    let _ = capture(&stream);
    allocate(&context, out, bytes)
}

fn default_pool(dev: i32) -> Result<Handle, u32> {
    static POOLS: Mutex<BTreeMap<i32, u64>> = Mutex::new(BTreeMap::new());
    device(dev)?;
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = pools.get(&dev) {
        return Ok(*known as Handle);
    }
    let handle = handle::insert(Arc::new(Pool { device: dev as usize, ..Pool::default() }))?;
    pools.insert(dev, handle as u64);
    Ok(handle)
}

static PEAK: AtomicU64 = AtomicU64::new(0);

export! {
    fn cuMemAlloc_v2(out: *mut u64, bytes: usize) {
        let context = current()?;
        unsafe_call()?;
        allocate(&context, out, bytes)
    }

    fn cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, _element: u32) {
        let context = current()?;
        unsafe_call()?;
        let row = width.checked_next_multiple_of(512).ok_or(ERROR_INVALID_VALUE)?;
        give(pitch, row)?;
        allocate(&context, out, row.checked_mul(height).ok_or(ERROR_INVALID_VALUE)?)
    }

    fn cuMemAllocManaged(out: *mut u64, bytes: usize, _flags: u32) {
        current()?;
        if bytes == 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        // device memory is host memory here, so the same address serves both
        let context = current()?;
        allocate(&context, out, bytes)?;
        // SAFETY: `allocate` has written there.
        let at = unsafe { out.read() };
        written::written(&context.memory, at, bytes as u64);
        Ok(())
    }

    fn cuMemFree_v2(at: u64) {
        let context = current()?;
        unsafe_call()?;
        // as a device does it: it waits for all work first
        context.default_stream.timeline.host_waits_for_all();
        free(at)
    }

    fn cuMemAllocAsync(out: *mut u64, bytes: usize, on: Handle) {
        async_allocation(out, bytes, on)
    }

    fn cuMemAllocFromPoolAsync(out: *mut u64, bytes: usize, pool: Handle, on: Handle) {
        handle::get::<Pool>(pool)?;
        async_allocation(out, bytes, on)
    }

    fn cuMemFreeAsync(at: u64, on: Handle) {
        let context = current()?;
        let stream = stream(&context, on)?;
        if capture(&stream).is_some() {
            // the graph keeps the memory for its next replay
            return Ok(());
        }
        if crate::config::strictness().races
            && let Some(found) = owner(at).and_then(|d| d.memory.find(at)).filter(|a| a.start == at)
        {
            let begun = stream.begin(false);
            if let Some((other, did)) = in_the_way(&begun, at, found.end - at, true) {
                return fault_outside(format!(
                    "{} frees {} bytes at {at:#x}, which {other} {did}, and neither an event nor a synchronisation orders \
                     it before: a race",
                    timeline::name(stream.number),
                    found.end - at,
                ));
            }
        }
        free(at)
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let context = current()?;
        PEAK.fetch_max(context.memory.claimed - context.memory.free_bytes(), Ordering::Relaxed);
        give(free, context.memory.free_bytes() as usize)?;
        give(total, context.memory.claimed as usize)
    }

    fn cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, at: u64) {
        current()?;
        let found = owner(at).and_then(|d| d.memory.find(at)).ok_or(ERROR_NOT_FOUND)?;
        if !base.is_null() {
            give(base, found.start)?;
        }
        if !size.is_null() {
            give(size, (found.end - found.start) as usize)?;
        }
        Ok(())
    }

    fn cuPointerGetAttribute(out: *mut c_void, attribute: u32, at: u64) {
        current_any()?;
        let found = owner(at).and_then(|d| d.memory.find(at));
        let host = found.is_some_and(|a| a.owner == HOST);
        if found.is_none() {
            return Err(ERROR_INVALID_VALUE);
        }
        match attribute {
            // memory type: host 1, device 2
            2 => give(out.cast::<u32>(), if host { 1 } else { 2 }),
            3 | 4 => give(out.cast::<u64>(), at),
            7 => give(out.cast::<u64>(), found.map_or(at, |a| a.start)),
            8 => give(out.cast::<u32>(), 0),
            9 => give(out.cast::<i32>(), devices().iter().position(|d| d.memory.holds(at)).unwrap_or(0) as i32),
            10 => give(out.cast::<u64>(), found.map_or(at, |a| a.start)),
            11 => give(out.cast::<usize>(), found.map_or(1, |a| (a.end - a.start) as usize)),
            12 => give(out.cast::<u32>(), 1),
            _ => Err(ERROR_NOT_SUPPORTED),
        }
    }

    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: u32) {
        let context = current()?;
        if out.is_null() || bytes == 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        unsafe_call()?;
        match context.memory.allocate(bytes as u64, HOST) {
            Some(at) => {
                // the host writes it unseen
                written::written(&context.memory, at, bytes as u64);
                give(out, at as *mut c_void)
            }
            None => Err(ERROR_OUT_OF_MEMORY),
        }
    }

    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) {
        // SAFETY: the same contract.
        match unsafe { cuMemHostAlloc(out, bytes, 0) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuMemFreeHost(at: *mut c_void) {
        initialised()?;
        match host_memory(at as u64) {
            Some(dev) if dev.memory.release(at as u64) => Ok(()),
            _ => Err(ERROR_INVALID_VALUE),
        }
    }

    fn cuMemHostRegister_v2(_at: *mut c_void, bytes: usize, _flags: u32) {
        current()?;
        if bytes == 0 { Err(ERROR_INVALID_VALUE) } else { Ok(()) }
    }

    fn cuMemHostUnregister(_at: *mut c_void) {
        current()?;
        Ok(())
    }

    fn cuMemHostGetDevicePointer_v2(out: *mut u64, at: *mut c_void, _flags: u32) {
        current()?;
        let at = at as u64;
        match owner(at).and_then(|d| d.memory.find(at)) {
            Some(a) if a.owner == HOST => give(out, at),
            _ => Err(ERROR_INVALID_VALUE),
        }
    }

    fn cuMemHostGetFlags(out: *mut u32, _at: *mut c_void) {
        current()?;
        give(out, 0)
    }

    fn cuMemsetD8_v2(at: u64, value: u8, count: usize) {
        now(Transfer::Fill { at, value: value.into(), size: 1, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD16_v2(at: u64, value: u16, count: usize) {
        now(Transfer::Fill { at, value: value.into(), size: 2, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD32_v2(at: u64, value: u32, count: usize) {
        now(Transfer::Fill { at, value, size: 4, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD8Async(at: u64, value: u8, count: usize, on: Handle) {
        submit(on, Transfer::Fill { at, value: value.into(), size: 1, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD16Async(at: u64, value: u16, count: usize, on: Handle) {
        submit(on, Transfer::Fill { at, value: value.into(), size: 2, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD32Async(at: u64, value: u32, count: usize, on: Handle) {
        submit(on, Transfer::Fill { at, value, size: 4, count, pitch: 0, rows: 1 })
    }

    fn cuMemsetD2D8_v2(at: u64, pitch: usize, value: u8, width: usize, rows: usize) {
        now(Transfer::Fill { at, value: value.into(), size: 1, count: width, pitch, rows })
    }

    fn cuMemcpy(to: u64, from: u64, bytes: usize) {
        now(Transfer::Copy { to, from, bytes })
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, on: Handle) {
        submit(on, Transfer::Copy { to, from, bytes })
    }

    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        current()?;
        device_range(to, bytes, "a copy to the device")?;
        now(Transfer::Copy { to, from: from as u64, bytes })
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, on: Handle) {
        current()?;
        device_range(to, bytes, "a copy to the device")?;
        submit(on, Transfer::Copy { to, from: from as u64, bytes })
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        current()?;
        device_range(from, bytes, "a copy to the host")?;
        now(Transfer::Copy { to: to as u64, from, bytes })
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, on: Handle) {
        current()?;
        device_range(from, bytes, "a copy to the host")?;
        submit(on, Transfer::Copy { to: to as u64, from, bytes })
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        current()?;
        device_range(from, bytes, "the source of a copy")?;
        device_range(to, bytes, "the target of a copy")?;
        now(Transfer::Copy { to, from, bytes })
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, on: Handle) {
        current()?;
        device_range(from, bytes, "the source of a copy")?;
        device_range(to, bytes, "the target of a copy")?;
        submit(on, Transfer::Copy { to, from, bytes })
    }

    fn cuMemcpyPeer(to: u64, to_context: Handle, from: u64, from_context: Handle, bytes: usize) {
        context_of(to_context)?;
        context_of(from_context)?;
        now(Transfer::Copy { to, from, bytes })
    }

    fn cuMemcpyPeerAsync(to: u64, to_context: Handle, from: u64, from_context: Handle, bytes: usize, on: Handle) {
        context_of(to_context)?;
        context_of(from_context)?;
        submit(on, Transfer::Copy { to, from, bytes })
    }

    fn cuMemAdvise_v2(_at: u64, _bytes: usize, _advice: u32, _location: u64) {
        current()?;
        Ok(())
    }

    fn cuMemPrefetchAsync_v2(_at: u64, _bytes: usize, _location: u64, _flags: u32, on: Handle) {
        let context = current()?;
        stream(&context, on)?;
        Ok(())
    }

    fn cuDeviceGetDefaultMemPool(out: *mut Handle, dev: i32) {
        give(out, default_pool(dev)?)
    }

    fn cuDeviceGetMemPool(out: *mut Handle, dev: i32) {
        give(out, default_pool(dev)?)
    }

    fn cuDeviceSetMemPool(dev: i32, pool: Handle) {
        device(dev)?;
        handle::get::<Pool>(pool)?;
        Ok(())
    }

    fn cuMemPoolCreate(out: *mut Handle, _properties: *const c_void) {
        current_any()?;
        give(out, handle::insert(Arc::<Pool>::default())?)
    }

    fn cuMemPoolDestroy(pool: Handle) {
        handle::get::<Pool>(pool)?;
        handle::remove(pool);
        Ok(())
    }

    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) {
        handle::get::<Pool>(pool)?;
        Ok(())
    }

    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        let pool = handle::get::<Pool>(pool)?;
        if value.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: attributes 1 to 3 are ints, the others 64-bit.
        let value = unsafe { if attribute <= 3 { u64::from(*value.cast::<u32>()) } else { *value.cast::<u64>() } };
        pool.settings.lock().unwrap_or_else(PoisonError::into_inner).insert(attribute, value);
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        let pool = handle::get::<Pool>(pool)?;
        let known = pool.settings.lock().unwrap_or_else(PoisonError::into_inner).get(&attribute).copied();
        match attribute {
            1..=3 => give(value.cast::<u32>(), known.unwrap_or(1) as u32),
            4 => give(value.cast::<u64>(), known.unwrap_or(0)),
            5..=8 => {
                let memory = &devices()[pool.device].memory;
                give(value.cast::<u64>(), memory.claimed - memory.free_bytes())
            }
            _ => Err(ERROR_INVALID_VALUE),
        }
    }
}
