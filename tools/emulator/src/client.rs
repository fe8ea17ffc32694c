//! What a test sees of the emulator: counters, the last launch, the last error, settings.

use crate::counters::Counters;
use crate::driver::{Load, Status, TABLE_VERSION, Table};

/// How much is checked. The default is [`Strictness::All`], or what `EMULATOR_STRICT` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What cannot be left out: limits, barriers that can never be passed, addresses outside the device.
    None,
    /// Every address lies in one allocation and is aligned.
    Bounds,
    /// Also uninitialised reads, races, read-only memory, barriers that ended threads would have to reach.
    All,
}

/// A launch that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchReport {
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// What it did.
    pub counters: Counters,
}

/// The launch that `fill` writes; `None` if it says that there is none.
fn report(fill: impl FnOnce(&mut Status) -> u32) -> Option<LaunchReport> {
    let mut status = Status {
        grid: [0; 3],
        block: [0; 3],
        dynamic: 0,
        name_length: 0,
        name: [0; 512],
        counters: Counters::default(),
    };
    if fill(&mut status) == 0 {
        return None;
    }
    let name = &status.name[..(status.name_length as usize).min(512)];
    Some(LaunchReport {
        kernel: String::from_utf8_lossy(name).into_owned(),
        grid: status.grid,
        block: status.block,
        dynamic_shared: status.dynamic,
        counters: status.counters,
    })
}

/// The emulator that is loaded in this process. Everything it says is about the calling thread.
#[derive(Clone, Copy)]
pub struct Emulator {
    table: &'static Table,
}

/// Finds the emulator; `None` if the process has a real driver, or none.
pub fn attach() -> Option<Emulator> {
    let found = [c"libcuda.so", c"libcuda.so.1"].into_iter().find_map(|name| {
        // SAFETY: asks for a library that is loaded already.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        (!library.is_null()).then_some(library)
    });
    // SAFETY: loads the driver as any application does.
    let library = found.unwrap_or_else(|| unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) });
    if library.is_null() {
        return None;
    }
    // SAFETY: the library is loaded; its handle is never closed, so the table lives as long as the process.
    unsafe {
        let symbol = libc::dlsym(library, c"emulator_table".as_ptr());
        if symbol.is_null() {
            return None;
        }
        let table = std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> *const Table>(symbol)();
        let table = table.as_ref()?;
        if table.version != TABLE_VERSION || table.counters_size as usize != size_of::<Counters>() {
            return None;
        }
        Some(Emulator { table })
    }
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("strictness", &self.strictness()).finish()
    }
}

impl Emulator {
    /// Sum of the launches that this thread issued since [`Emulator::reset_counters`].
    pub fn counters(&self) -> Counters {
        let mut out = Counters::default();
        // SAFETY: the place is ours and of the size that `attach` compared.
        unsafe { (self.table.counters)(&mut out) };
        out
    }

    /// Starts the sum and the list of launches anew.
    pub fn reset_counters(&self) {
        // SAFETY: no arguments.
        unsafe { (self.table.reset_counters)() };
    }

    /// The last launch of this thread.
    pub fn last_launch(&self) -> Option<LaunchReport> {
        // SAFETY: the place is one of a launch.
        report(|status| unsafe { (self.table.last_launch)(status) })
    }

    /// Lines of the loaded PTX text that read global memory in the launch of that index in [`Emulator::launches`], first line 1,
    /// and how many warp instructions did; empty unless [`Emulator::set_unique`] was on.
    pub fn loads(&self, launch: usize) -> Vec<(u32, u64)> {
        let mut out = Vec::new();
        loop {
            // SAFETY: there are as many places as the call says.
            let n = unsafe { (self.table.loads)(launch, out.as_mut_ptr(), out.len()) };
            if n <= out.len() {
                return out[..n].iter().map(|load| (load.line as u32, load.count)).collect();
            }
            out.resize(n, Load::default());
        }
    }

    /// This thread's launches since [`Emulator::reset_counters`], of which at most 256 are remembered.
    pub fn launches(&self) -> Vec<LaunchReport> {
        // SAFETY: the place is one of a launch.
        (0..).map_while(|index| report(|status| unsafe { (self.table.launch)(index, status) })).collect()
    }

    /// The full sentence of the last fault or refusal that this thread met.
    pub fn last_error(&self) -> Option<String> {
        let mut text = vec![0u8; 8192];
        // SAFETY: the buffer has the length that is given.
        let n = unsafe { (self.table.last_error)(text.as_mut_ptr(), text.len()) };
        if n == usize::MAX {
            return None;
        }
        text.truncate(n);
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// How much is checked in launches of this thread.
    pub fn strictness(&self) -> Strictness {
        // SAFETY: no arguments.
        match unsafe { (self.table.strictness)() } {
            0 => Strictness::None,
            1 => Strictness::Bounds,
            _ => Strictness::All,
        }
    }

    /// Sets how much is checked in launches of this thread.
    pub fn set_strictness(&self, level: Strictness) {
        // SAFETY: a number.
        unsafe { (self.table.set_strictness)(level as u32) };
    }

    /// Launches of this thread check their arguments and run nothing: what remains is the host's cost of a launch.
    pub fn set_noop(&self, on: bool) {
        // SAFETY: a number.
        unsafe { (self.table.set_noop)(u32::from(on)) };
    }

    /// Faults and refusals of this thread's calls are no longer written to stderr; [`Emulator::last_error`] has them still.
    pub fn set_quiet(&self, on: bool) {
        // SAFETY: a number.
        unsafe { (self.table.set_quiet)(u32::from(on)) };
    }

    /// Launches of this thread count the distinct bytes that they touch, which makes them slower: see
    /// [`Counters::unique_bytes_read`]. They also count which lines read global memory: see [`Emulator::loads`].
    pub fn set_unique(&self, on: bool) {
        // SAFETY: a number.
        unsafe { (self.table.set_unique)(u32::from(on)) };
    }

    /// Forgets the sticky error of the thread's current context, which a device would keep until the context's end.
    pub fn clear_error(&self) {
        // SAFETY: no arguments.
        unsafe { (self.table.clear_error)() };
    }

    /// The `nth` call from now on of a function of the driver fails in this thread with an error code, and does nothing
    /// else; with `sticky`, every later call of it too, and where the code is that of a kernel's fault the context keeps
    /// it, as on a device. A name without its version stands for all versions: `cuMemAllocAsync`, `cuMemAlloc`.
    ///
    /// `EMULATOR_FAIL=CALL:N:CODE[:sticky]` asks for the same in all threads.
    ///
    /// # Panics
    /// `nth` or `code` is 0, or the name is empty.
    pub fn fail(&self, call: &str, nth: u64, code: u32, sticky: bool) {
        // SAFETY: the name is as long as it says.
        let known = unsafe { (self.table.fail)(call.as_ptr(), call.len(), nth, code, u32::from(sticky)) };
        assert!(known != 0, "the call {nth} of `{call}` cannot fail with {code}");
    }

    /// Forgets what [`Emulator::fail`] asked for in this thread; whether a failure was still to come.
    pub fn forget_failures(&self) -> bool {
        // SAFETY: no arguments.
        unsafe { (self.table.forget_failures)() != 0 }
    }
}
