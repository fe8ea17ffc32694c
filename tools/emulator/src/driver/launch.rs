//! Launches: arguments and sizes are checked as a real driver does, then the grid runs to its end.

use super::call::{Call, export, refuse, report};
use super::capture::{Kind, Stream, Work, capture};
use super::code::*;
use super::context::current;
use super::device::limits;
use super::event;
use super::function::{blocks_per_sm, dynamic_limit, thread_limit};
use super::handle::{self, Handle};
use super::module::Function;
use super::stream::stream;
use super::summary;
use crate::config::{self, config};
use crate::counters::Counters;
use crate::exec::grid;
use crate::exec::unique::Unique;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A launch whose arguments were checked and copied.
struct Prepared {
    function: Arc<Function>,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: usize,
    params: Vec<u8>,
    cooperative: bool,
    overlaps: bool,
}

impl Work for Prepared {
    fn perform(&self, on: &Stream) -> Call {
        if config::noop() {
            note_nothing(&self.function, self.grid, self.block);
            return Ok(());
        }
        run(self, on)
    }

    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn context(&self) -> Option<u64> {
        Some(self.function.module.context.id)
    }
}

/// What a thread's last launch was.
#[derive(Clone)]
pub(crate) struct Report {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub(crate) dynamic: u32,
    pub(crate) counters: Counters,
    /// Lines of the PTX that read global memory, and how often a warp did.
    pub(crate) loads: Vec<(u32, u64)>,
}

/// Launches that a thread remembers; later ones are only counted.
const REMEMBERED: usize = 256;

#[derive(Default)]
struct Local {
    /// The function that was looked up last, and the age of handles then.
    known: Option<(u64, u64, Arc<Function>)>,
    report: Option<Report>,
    /// The first launches since the last reset.
    reports: Vec<Report>,
    sum: Counters,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::default());
}

static LAUNCHES: AtomicU64 = AtomicU64::new(1);

/// Sum of the thread's launches since the last reset.
pub(crate) fn sum() -> Counters {
    LOCAL.with(|l| l.borrow().sum)
}

/// Starts the sum and the list of launches anew.
pub(crate) fn reset() {
    LOCAL.with(|l| {
        let mut local = l.borrow_mut();
        local.sum = Counters::default();
        local.reports.clear();
    });
}

/// The thread's launch of this number since the last reset.
pub(crate) fn nth(index: usize) -> Option<Report> {
    LOCAL.with(|l| l.borrow().reports.get(index).cloned())
}

/// The thread's last launch.
pub(crate) fn last() -> Option<Report> {
    LOCAL.with(|l| l.borrow().report.clone())
}

fn function(on: Handle) -> Result<Arc<Function>, u32> {
    let age = handle::generation();
    let known = LOCAL.with(|l| match &l.borrow().known {
        Some((h, g, f)) if *h == on as u64 && *g == age => Some(f.clone()),
        _ => None,
    });
    if let Some(f) = known {
        return Ok(f);
    }
    let f: Arc<Function> = handle::get(on)?;
    LOCAL.with(|l| l.borrow_mut().known = Some((on as u64, age, f.clone())));
    Ok(f)
}

/// What `cuLaunchKernel` and its relatives are given.
struct Request {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic: u32,
    stream: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    cooperative: bool,
    /// It may begin before the launch before it has ended.
    overlaps: bool,
}

/// Checks sizes against the kernel and the device.
fn check(f: &Function, r: &Request) -> Call {
    let name = &f.kernel().name;
    let bad = |what: String| refuse(ERROR_INVALID_VALUE, format!("kernel `{name}`: {what}"));
    let [gx, gy, gz] = r.grid;
    let [bx, by, bz] = r.block;
    if gx == 0 || gy == 0 || gz == 0 || gx > 0x7fff_ffff || gy > 65535 || gz > 65535 {
        return bad(format!("a grid of ({gx},{gy},{gz}) blocks; extents go from 1 to 2147483647, 65535, 65535"));
    }
    if bx == 0 || by == 0 || bz == 0 || bx > 1024 || by > 1024 || bz > 64 {
        return bad(format!("blocks of ({bx},{by},{bz}) threads; extents go from 1 to 1024, 1024, 64"));
    }
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    if threads > 1024 {
        return bad(format!("{threads} threads in a block; there can be 1024"));
    }
    if let Some(exact) = f.kernel().exact_threads
        && exact != r.block
    {
        return bad(format!("blocks of ({bx},{by},{bz}) threads; it says .reqntid {exact:?}"));
    }
    if threads > u64::from(thread_limit(f)) {
        return bad(format!("{threads} threads in a block; it says .maxntid {}", thread_limit(f)));
    }
    let (limit, fixed) = (dynamic_limit(f), f.kernel().static_shared as u32);
    if r.dynamic > limit {
        return bad(format!(
            "{} bytes of dynamic shared memory; it may have {limit} (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES \
             raises that up to {})",
            r.dynamic,
            limits().shared_optin.saturating_sub(fixed)
        ));
    }
    if fixed + r.dynamic > limits().shared_optin {
        return bad(format!(
            "{} bytes of shared memory; sm_{} has {}",
            fixed + r.dynamic,
            config().cc,
            limits().shared_optin
        ));
    }
    if r.cooperative {
        let room = blocks_per_sm(f, threads as u32, r.dynamic as usize) * config().sms;
        let blocks = u64::from(gx) * u64::from(gy) * u64::from(gz);
        if blocks > u64::from(room) {
            return refuse(
                ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
                format!("kernel `{name}`: a cooperative launch of {blocks} blocks; the device holds {room} at once"),
            );
        }
    }
    if r.params.is_null() && r.extra.is_null() && f.kernel().param_bytes > 0 {
        return bad(format!("no arguments; it takes {}", f.kernel().params.len()));
    }
    Ok(())
}

/// Copies the arguments.
fn arguments(f: &Function, r: &Request) -> Result<Vec<u8>, u32> {
    let kernel = f.kernel();
    let mut bytes = vec![0u8; kernel.param_bytes];
    if !r.params.is_null() {
        for (i, &(at, size)) in kernel.params.iter().enumerate() {
            // SAFETY: the application gives a pointer for each parameter.
            let from = unsafe { *r.params.add(i) };
            if from.is_null() {
                return refuse(
                    ERROR_INVALID_VALUE,
                    format!("kernel `{}`: argument {i} is a null pointer", kernel.name),
                );
            }
            // SAFETY: each points to a value of the parameter's size.
            unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), bytes.as_mut_ptr().add(at), size) };
        }
    } else if !r.extra.is_null() {
        let (mut buffer, mut size) = (std::ptr::null::<u8>(), usize::MAX);
        // SAFETY: a list of pairs that ends in null, as the driver's interface says.
        unsafe {
            let mut at = r.extra;
            while !(*at).is_null() {
                match *at as usize {
                    1 => buffer = (*at.add(1)).cast(),
                    2 => size = *(*at.add(1)).cast::<usize>(),
                    _ => return Err(ERROR_INVALID_VALUE),
                }
                at = at.add(2);
            }
        }
        if buffer.is_null() && !bytes.is_empty() || size != bytes.len() {
            return refuse(
                ERROR_INVALID_VALUE,
                format!("kernel `{}`: {size} bytes of arguments; it takes {}", kernel.name, bytes.len()),
            );
        }
        // SAFETY: the buffer has `size` bytes.
        unsafe { std::ptr::copy_nonoverlapping(buffer, bytes.as_mut_ptr(), size) };
    }
    Ok(bytes)
}

fn launch(r: &Request) -> Call {
    let context = current()?;
    let f = function(r.function)?;
    if f.module.context.id != context.id {
        return refuse(ERROR_INVALID_HANDLE, "the function belongs to another context than the current one");
    }
    let stream = stream(&context, r.stream)?;
    check(&f, r)?;
    let capture = capture(&stream);
    if capture.is_none() && config::noop() {
        note_nothing(&f, r.grid, r.block);
        return Ok(());
    }
    let params = arguments(&f, r)?;
    let prepared = Prepared {
        function: f,
        grid: r.grid,
        block: r.block,
        dynamic: r.dynamic as usize,
        params,
        cooperative: r.cooperative,
        overlaps: r.overlaps,
    };
    match capture {
        Some(capture) => capture.add(&stream, Arc::new(prepared)),
        None => run(&prepared, &stream),
    }
}

fn note(report: Report) {
    if config().counters {
        summary::note(&report.function.kernel().name, &report.counters);
    }
    LOCAL.with(|l| {
        let mut local = l.borrow_mut();
        local.sum.add(&report.counters);
        if local.reports.len() < REMEMBERED {
            local.reports.push(report.clone());
        }
        local.report = Some(report);
    });
}

/// Notes a launch that ran nothing: in few steps, because it is there to measure what else a launch costs.
fn note_nothing(f: &Arc<Function>, grid: [u32; 3], block: [u32; 3]) {
    LOCAL.with(|l| {
        let mut local = l.borrow_mut();
        local.sum.launches += 1;
        if let Some(report) = &mut local.report
            && Arc::ptr_eq(&report.function, f)
            && report.counters.warp_instructions == 0
        {
            (report.grid, report.block) = (grid, block);
            return;
        }
        let counters = Counters { launches: 1, ..Counters::default() };
        local.report = Some(Report { function: f.clone(), grid, block, dynamic: 0, counters, loads: Vec::new() });
    });
}

fn run(p: &Prepared, on: &Stream) -> Call {
    let f = &p.function;
    if !f.module.loaded.load(Ordering::Acquire) {
        let name = &f.kernel().name;
        return refuse(ERROR_INVALID_HANDLE, format!("kernel `{name}` is in a graph; its module was unloaded"));
    }
    let context = &f.module.context;
    let strict = config::strictness();
    let unique = config::unique().then(|| Unique::new(&context.memory));
    if let Some(None) = unique {
        return refuse(ERROR_OUT_OF_MEMORY, "the system has no address space for the count of distinct bytes");
    }
    let begun = strict.races.then(|| on.begin(p.overlaps));
    let (mut outcome, serial) = grid::run(grid::Launch {
        program: f.module.program.clone(),
        function: f.kernel().function,
        grid_dim: p.grid,
        block_dim: p.block,
        static_shared: f.kernel().static_shared,
        dynamic_shared: p.dynamic,
        params: p.params.clone(),
        stack_limit: context.stack_limit.load(Ordering::Relaxed) as usize,
        sms: config().sms,
        launch: LAUNCHES.fetch_add(1, Ordering::Relaxed),
        budget: config().budget,
        strict,
        memory: context.memory.clone(),
        cooperative: p.cooperative,
        unique: unique.flatten(),
        loose: begun.as_ref().map(|b| b.loose.clone()).unwrap_or_default(),
        threads: config().threads,
    });
    if let Some(begun) = begun {
        on.timeline.launched(&begun, serial, &f.kernel().name);
    }
    let mut counters = outcome.counters;
    counters.launches = 1;
    let loads = std::mem::take(&mut outcome.loads).into_iter().collect();
    note(Report { function: f.clone(), grid: p.grid, block: p.block, dynamic: p.dynamic as u32, counters, loads });
    if let Some(fault) = outcome.fault {
        // as on a device, the launch itself succeeds and everything after it fails
        context.error.store(fault.kind.code(), Ordering::Relaxed);
        report(&fault.message);
    }
    Ok(())
}

/// `CUlaunchAttribute`
#[repr(C)]
pub(crate) struct Attribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

/// `CUlaunchConfig`
#[repr(C)]
pub(crate) struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    attributes: *const Attribute,
    count: u32,
}

export! {
    fn cuLaunchKernel(
        f: Handle, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, on: Handle,
        params: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        launch(&Request {
            function: f,
            grid: [gx, gy, gz],
            block: [bx, by, bz],
            dynamic: shared,
            stream: on,
            params,
            extra,
            cooperative: false,
            overlaps: false,
        })
    }

    fn cuLaunchCooperativeKernel(
        f: Handle, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, on: Handle,
        params: *mut *mut c_void,
    ) {
        launch(&Request {
            function: f,
            grid: [gx, gy, gz],
            block: [bx, by, bz],
            dynamic: shared,
            stream: on,
            params,
            extra: std::ptr::null_mut(),
            cooperative: true,
            overlaps: false,
        })
    }

    fn cuLaunchKernelEx(config: *const LaunchConfig, f: Handle, params: *mut *mut c_void, extra: *mut *mut c_void) {
        if config.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: the application gives a configuration.
        let c = unsafe { &*config };
        let (mut cooperative, mut overlaps) = (false, false);
        let mut events = Vec::new();
        for i in 0..c.count as usize {
            if c.attributes.is_null() {
                return Err(ERROR_INVALID_VALUE);
            }
            // SAFETY: `count` attributes stand there.
            let a = unsafe { &*c.attributes.add(i) };
            match a.id {
                2 => cooperative = a.value[0] != 0,
                6 => overlaps = a.value[0] != 0,
                4 | 11 if a.value[..3].iter().any(|&d| d > 1) => {
                    return refuse(ERROR_NOT_SUPPORTED, format!(
                        "a cluster of ({},{},{}) blocks: clusters of more than one block are not implemented",
                        a.value[0], a.value[1], a.value[2],
                    ));
                }
                // to be recorded when blocks begin, or when they are done: both are moments of this call
                7 | 12 => events.push((u64::from(a.value[1]) << 32 | u64::from(a.value[0])) as Handle),
                13 if a.value[0] != 0 => {
                    return refuse(ERROR_NOT_SUPPORTED, "nodes that the device updates are not implemented");
                }
                // the order of launches in a stream is kept, whatever these ask for
                0..=14 => {}
                id => return refuse(ERROR_NOT_SUPPORTED, format!("the launch attribute {id} is not implemented")),
            }
        }
        launch(&Request {
            function: f,
            grid: c.grid,
            block: c.block,
            dynamic: c.shared,
            stream: c.stream,
            params,
            extra,
            cooperative,
            overlaps,
        })?;
        events.into_iter().try_for_each(|marked| event::record(marked, c.stream))
    }
}
