//! Launches of kernels that are known by their mangled names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};

use anyhow::{Context, Result, ensure};
use cudarc::driver::{result, sys};
use emulator::LaunchReport;
use posenc_benches::support::machine::Entry;
use posenc_benches::support::model;

use crate::Bench;

thread_local! {
    /// Entries of the modules that the current call has loaded.
    static ENTRIES: RefCell<BTreeMap<String, Entry>> = RefCell::default();
}

/// Starts a call.
pub fn forget() {
    ENTRIES.with(|entries| entries.borrow_mut().clear());
}

/// The entry of each launch, of modules that were loaded since the call began.
pub fn entries_of(launches: &[LaunchReport]) -> Result<Vec<Entry>> {
    let entry = |launch: &LaunchReport| {
        let known = ENTRIES.with(|entries| entries.borrow().get(&launch.kernel).cloned());
        known.with_context(|| format!("{} has no machine code here", launch.kernel))
    };
    launches.iter().map(entry).collect()
}

/// A loaded PTX text with its machine code.
pub struct Module {
    raw: sys::CUmodule,
    entries: BTreeMap<String, Entry>,
}

impl Module {
    pub fn load(ptx: String, entries: BTreeMap<String, Entry>) -> Result<Self> {
        let text = CString::new(ptx).context("PTX is text")?;
        // SAFETY: the text ends in a zero, and a context is current: the bench has made one on this thread.
        let raw = unsafe { result::module::load_data(text.as_ptr().cast()) }?;
        ENTRIES.with(|known| known.borrow_mut().extend(entries.clone()));
        Ok(Self { raw, entries })
    }

    /// The one entry whose mangled name contains all of these.
    pub fn entry(&self, parts: &[&str]) -> Result<&str> {
        let mut found = self.entries.keys().filter(|name| parts.iter().all(|part| name.contains(part)));
        let name = found.next().with_context(|| format!("no entry is named like {parts:?}"))?;
        ensure!(found.next().is_none(), "more than one entry is named like {parts:?}");
        Ok(name)
    }

    /// Blocks of so many threads that a multiprocessor holds.
    pub fn resident(&self, entry: &str, threads: u32) -> u32 {
        let entry = &self.entries[entry];
        model::resident(entry.registers, entry.shared, threads)
    }

    /// Launches an entry and waits for it.
    pub fn launch(
        &self,
        bench: &Bench,
        entry: &str,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        arguments: &mut [Argument],
    ) -> Result<()> {
        let name = CString::new(entry).context("a name")?;
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| a.0.as_mut_ptr().cast()).collect();
        let triple = |n: [u32; 3]| (n[0], n[1], n[2]);
        // SAFETY: the module is loaded and the arguments are those of the entry's parameters, each at least as long; the
        // emulator checks every access.
        unsafe {
            let function = result::module::get_function(self.raw, name)?;
            if shared > 48 << 10 {
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                result::function::set_function_attribute(function, attribute, shared as i32)?;
            }
            result::launch_kernel(
                function,
                triple(grid),
                triple(block),
                shared,
                bench.stream.cu_stream(),
                &mut pointers,
            )?;
        }
        bench.stream.synchronize()?;
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`, and unloaded once. An error has no one to go to.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}

/// One parameter of a kernel, as words of memory.
pub struct Argument(Vec<u64>);

impl Argument {
    /// A struct out of its fields, each of which is 4 or 8 bytes and begins at a multiple of its size.
    pub fn structure(fields: &[Argument4or8]) -> Self {
        let mut bytes = Vec::new();
        for field in fields {
            match *field {
                Argument4or8::Four(value) => bytes.extend(value.to_le_bytes()),
                Argument4or8::Eight(value) => {
                    bytes.resize(bytes.len().next_multiple_of(8), 0);
                    bytes.extend(value.to_le_bytes());
                }
            }
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Self(bytes.chunks_exact(8).map(word).collect())
    }
}

/// A field of a struct.
#[derive(Clone, Copy)]
pub enum Argument4or8 {
    Four(u32),
    Eight(u64),
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self(vec![value])
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self(vec![value.cast_unsigned()])
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self(vec![value.into()])
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        value.cast_unsigned().into()
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        value.to_bits().into()
    }
}

impl From<bool> for Argument {
    fn from(value: bool) -> Self {
        u32::from(value).into()
    }
}

/// Arguments of a launch.
#[macro_export]
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &mut [$($crate::driver::Argument::from($value)),*] };
}
