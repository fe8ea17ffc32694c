//! Loading modules: PTX is compiled, everything else is not for this device.

use super::call::{Call, export, give, refuse, remark, report};
use super::code::*;
use super::context::{Context, current};
use super::handle::{self, Handle, Object};
use crate::config::config;
use crate::exec::machine::Program;
use crate::exec::operand::FUNCTION_WINDOW;
use crate::lower::{self, Kernel};
use crate::ptx::ast::Space;
use crate::ptx::{PtxError, parser};
use crate::written;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A loaded module.
pub(crate) struct Module {
    pub(crate) context: Arc<Context>,
    pub(crate) program: Arc<Program>,
    pub(crate) kernels: Vec<Kernel>,
    /// Variables: address and size.
    pub(crate) globals: HashMap<String, (u64, u64)>,
    /// PTX version and target.
    pub(crate) versions: (i32, i32),
    pub(crate) functions: Mutex<HashMap<String, u64>>,
    /// Not yet unloaded; graphs may hold its functions for longer.
    pub(crate) loaded: AtomicBool,
}

impl Module {
    /// Frees its variables, once.
    fn unload(&self) {
        if self.loaded.swap(false, Ordering::AcqRel) {
            for (at, _) in self.globals.values() {
                self.context.memory.release_of(*at, self.context.id);
            }
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.unload();
    }
}

impl Object for Module {
    fn context(&self) -> Option<u64> {
        Some(self.context.id)
    }
}

/// A module that was loaded as a library.
struct Library(Arc<Module>);

impl Object for Library {
    fn context(&self) -> Option<u64> {
        Some(self.0.context.id)
    }
}

/// A kernel of a module.
pub(crate) struct Function {
    pub(crate) module: Arc<Module>,
    pub(crate) kernel: usize,
    pub(crate) max_dynamic: AtomicI32,
    pub(crate) carveout: AtomicI32,
    pub(crate) cluster: Mutex<HashMap<u32, i32>>,
}

impl Function {
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.module.kernels[self.kernel]
    }
}

impl Object for Function {
    fn context(&self) -> Option<u64> {
        Some(self.module.context.id)
    }
}

const FATBIN: &str = "the image is a fatbin; load its PTX";

const LOG_INFO: u32 = 3;
const LOG_INFO_SIZE: u32 = 4;
const LOG_ERROR: u32 = 5;
const LOG_ERROR_SIZE: u32 = 6;

/// Compiles an image for the context's device.
fn load(context: &Arc<Context>, image: *const c_void) -> Result<Module, (u32, String)> {
    if image.is_null() {
        return Err((ERROR_INVALID_VALUE, "the image is a null pointer".into()));
    }
    // SAFETY: an image has at least four bytes: a text its final zero, a binary its head.
    let first = unsafe { image.cast::<u8>().read() };
    let magic = if first == 0 {
        0
    } else {
        // SAFETY: read byte by byte up to the first zero, so that a short text is not overrun.
        (0..4)
            .map_while(|i| Some(unsafe { image.cast::<u8>().add(i).read() }).filter(|b| *b != 0))
            .enumerate()
            .fold(0u32, |m, (i, b)| m | u32::from(b) << (8 * i))
    };
    match magic {
        0x464c_457f => {
            let what = "the image is a cubin: machine code of a GPU, which a CPU does not run; load its PTX";
            return Err((ERROR_NO_BINARY_FOR_GPU, what.into()));
        }
        0xba55_ed50 | 0x4662_43b1 => {
            return Err((ERROR_NO_BINARY_FOR_GPU, FATBIN.into()));
        }
        _ => {}
    }
    // SAFETY: what is not a binary is a text with a final zero, as the driver's interface says.
    let bytes = unsafe { CStr::from_ptr(image.cast()) }.to_bytes();
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err((ERROR_INVALID_IMAGE, "the image is neither a binary nor text".into()));
    };
    load_text(context, text)
}

/// The text that is loaded in the place of this one: EMULATOR_IMAGES/NAME.ptx, NAME being the first entry of `text`.
fn replacement(text: &str) -> Option<Result<String, (u32, String)>> {
    let folder = config().images.as_ref()?;
    let (_, rest) = text.split_once(".entry")?;
    let name = rest.trim_start().split(|c: char| c == '(' || c.is_whitespace()).next()?;
    let path = folder.join(name).with_extension("ptx");
    path.is_file().then(|| {
        std::fs::read_to_string(&path)
            .map_err(|e| (ERROR_INVALID_IMAGE, format!("{} (EMULATOR_IMAGES): {e}", path.display())))
    })
}

fn load_text(context: &Arc<Context>, text: &str) -> Result<Module, (u32, String)> {
    let replaced = replacement(text).transpose()?;
    let text = replaced.as_deref().unwrap_or(text);
    let broken =
        |e: PtxError| (if e.newer_isa { ERROR_UNSUPPORTED_PTX_VERSION } else { ERROR_INVALID_PTX }, e.to_string());
    let ast = parser::parse(text).map_err(broken)?;
    let cc = config().cc;
    let exact = ast.target.ends_with('a');
    let family = ast.target.ends_with('f');
    if ast.sm > cc || (exact && ast.sm != cc) || (family && ast.sm / 10 != cc / 10) {
        return Err((
            ERROR_NO_BINARY_FOR_GPU,
            format!("the PTX is for {}, this device is sm_{cc} (EMULATOR_CC)", ast.target),
        ));
    }
    let versions = ((ast.version.0 * 10 + ast.version.1) as i32, ast.sm as i32);
    let mut globals = HashMap::new();
    let release = |globals: &HashMap<String, (u64, u64)>| {
        for (at, _) in globals.values() {
            context.memory.release_of(*at, context.id);
        }
    };
    let mut addresses = lower::Addresses::new();
    let variables = || ast.vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const) && !v.external);
    for var in variables() {
        let size = var.size.max(1) as u64;
        let Some(at) = context.memory.allocate(size, context.id) else {
            release(&globals);
            return Err((ERROR_OUT_OF_MEMORY, format!("`{}` of {size} bytes does not fit", var.name)));
        };
        globals.insert(var.name.clone(), (at, var.size as u64));
        addresses.insert(var.name.clone(), at);
        // SAFETY: the range was just allocated; nobody else has it.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, size as usize) };
        written::written(&context.memory, at, size);
    }
    for var in variables() {
        let Some(init) = &var.init else { continue };
        let at = addresses[&var.name];
        // SAFETY: the parser gave no more bytes than the variable has.
        unsafe { std::ptr::copy_nonoverlapping(init.bytes.as_ptr(), at as *mut u8, init.bytes.len()) };
        for (place, name, offset) in &init.relocations {
            let function = ast.functions.iter().position(|f| f.name == *name);
            let target = match (addresses.get(name), function) {
                (Some(&at), _) => at,
                (None, Some(i)) => FUNCTION_WINDOW + i as u64 * 16,
                (None, None) => {
                    release(&globals);
                    let e = PtxError::new(var.line, format!("`{name}` is not declared"));
                    return Err((ERROR_INVALID_PTX, e.to_string()));
                }
            };
            let value = target.wrapping_add(*offset as u64);
            // SAFETY: as above: eight bytes stand in `init.bytes` at this place.
            unsafe { ((at + *place as u64) as *mut u64).write_unaligned(value) };
        }
    }
    match lower::lower(ast, &addresses) {
        Ok(lowered) => Ok(Module {
            context: context.clone(),
            program: Arc::new(lowered.program),
            kernels: lowered.kernels,
            globals,
            versions,
            functions: Mutex::default(),
            loaded: AtomicBool::new(true),
        }),
        Err(e) => {
            release(&globals);
            Err((ERROR_INVALID_PTX, e.to_string()))
        }
    }
}

/// Fills the buffers of `cuModuleLoadDataEx`.
pub(crate) struct Logs {
    buffers: [*mut u8; 2],
    rooms: [usize; 2],
    sizes: [*mut *mut c_void; 2],
}

impl Logs {
    /// # Safety
    /// `count` options and values stand there, and buffers are as long as their sizes say.
    pub(crate) unsafe fn read(count: u32, options: *const u32, values: *mut *mut c_void) -> Self {
        let mut logs = Self { buffers: [std::ptr::null_mut(); 2], rooms: [0; 2], sizes: [std::ptr::null_mut(); 2] };
        if options.is_null() || values.is_null() {
            return logs;
        }
        for i in 0..count as usize {
            // SAFETY: the caller's promise.
            let (option, value) = unsafe { (*options.add(i), values.add(i)) };
            match option {
                // SAFETY: the value is there.
                LOG_INFO => logs.buffers[0] = unsafe { *value }.cast(),
                // SAFETY: the value is there.
                LOG_ERROR => logs.buffers[1] = unsafe { *value }.cast(),
                LOG_INFO_SIZE => {
                    // SAFETY: the value is there; sizes are numbers in the place of pointers.
                    logs.rooms[0] = unsafe { *value } as usize & 0xffff_ffff;
                    logs.sizes[0] = value;
                }
                LOG_ERROR_SIZE => {
                    // SAFETY: the value is there.
                    logs.rooms[1] = unsafe { *value } as usize & 0xffff_ffff;
                    logs.sizes[1] = value;
                }
                _ => {}
            }
        }
        logs
    }

    /// Writes the text of a log: 0 tells, 1 explains an error.
    pub(crate) fn write(&self, which: usize, text: &str) {
        let n = text.len().min(self.rooms[which].saturating_sub(1));
        if !self.buffers[which].is_null() && self.rooms[which] > 0 {
            // SAFETY: the buffer has `rooms` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr(), self.buffers[which], n);
                self.buffers[which].add(n).write(0);
            }
        }
        if !self.sizes[which].is_null() {
            // SAFETY: the place is the caller's.
            unsafe { *self.sizes[which] = n as *mut c_void };
        }
    }
}

/// A loader tries one image after another, so an image for another device is no news; what is wrong with a text is.
fn told(code: u32, reason: &str) {
    if code == ERROR_NO_BINARY_FOR_GPU { remark(reason) } else { report(reason) }
}

fn loaded(out: *mut Handle, image: *const c_void, logs: Option<&Logs>) -> Call {
    let context = current()?;
    if out.is_null() {
        return Err(ERROR_INVALID_VALUE);
    }
    match load(&context, image) {
        Ok(module) => {
            if let Some(logs) = logs {
                logs.write(0, "");
                logs.write(1, "");
            }
            give(out, handle::insert(Arc::new(module))?)
        }
        Err((code, reason)) => {
            if let Some(logs) = logs {
                logs.write(1, &reason);
            }
            told(code, &reason);
            Err(code)
        }
    }
}

/// A C string of the application.
fn name<'a>(text: *const c_char) -> Result<&'a str, u32> {
    if text.is_null() {
        return Err(ERROR_INVALID_VALUE);
    }
    // SAFETY: the application gives a text with a final zero.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| ERROR_NOT_FOUND)
}

/// An image in a file, with a final zero.
fn file(path: *const c_char) -> Result<Vec<u8>, u32> {
    let path = name(path)?;
    let Ok(mut bytes) = std::fs::read(path) else {
        return refuse(ERROR_FILE_NOT_FOUND, format!("`{path}` cannot be read"));
    };
    bytes.push(0);
    Ok(bytes)
}

fn load_library(out: *mut Handle, image: *const c_void) -> Call {
    let context = current()?;
    match load(&context, image) {
        Ok(module) => give(out, handle::insert(Arc::new(Library(Arc::new(module))))?),
        Err((code, reason)) => {
            told(code, &reason);
            Err(code)
        }
    }
}

fn find_variable(module: &Module, at: *mut u64, bytes: *mut usize, text: *const c_char) -> Call {
    let name = name(text)?;
    let Some(&(start, size)) = module.globals.get(name) else {
        return refuse(ERROR_NOT_FOUND, format!("the module has no variable `{name}`"));
    };
    if !at.is_null() {
        give(at, start)?;
    }
    if !bytes.is_null() {
        give(bytes, size as usize)?;
    }
    Ok(())
}

fn find_function(module: &Arc<Module>, name: &str) -> Result<Handle, u32> {
    let Some(kernel) = module.kernels.iter().position(|k| k.name == name) else {
        let known: Vec<&str> = module.kernels.iter().map(|k| k.name.as_str()).collect();
        return refuse(ERROR_NOT_FOUND, format!("the module has no kernel `{name}`; it has: {}", known.join(", ")));
    };
    let mut functions = module.functions.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = functions.get(name) {
        return Ok(*known as Handle);
    }
    let handle = handle::insert(Arc::new(Function {
        module: module.clone(),
        kernel,
        max_dynamic: AtomicI32::new(-1),
        carveout: AtomicI32::new(-1),
        cluster: Mutex::default(),
    }))?;
    functions.insert(name.to_owned(), handle as u64);
    Ok(handle)
}

fn unload(module: &Arc<Module>) {
    module.unload();
    let handles: Vec<u64> =
        module.functions.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, h)| h).collect();
    for old in handles {
        handle::remove(old as Handle);
    }
}

export! {
    fn cuModuleLoadData(out: *mut Handle, image: *const c_void) {
        loaded(out, image, None)
    }

    fn cuModuleLoadDataEx(out: *mut Handle, image: *const c_void, count: u32, options: *const u32, values: *mut *mut c_void) {
        // SAFETY: the application's promise.
        let logs = unsafe { Logs::read(count, options, values) };
        loaded(out, image, Some(&logs))
    }

    fn cuModuleLoadFatBinary(_out: *mut Handle, _image: *const c_void) {
        current()?;
        told(ERROR_NO_BINARY_FOR_GPU, FATBIN);
        Err(ERROR_NO_BINARY_FOR_GPU)
    }

    fn cuModuleLoad(out: *mut Handle, path: *const c_char) {
        current()?;
        loaded(out, file(path)?.as_ptr().cast(), None)
    }

    fn cuModuleUnload(on: Handle) {
        current()?;
        let module = handle::get::<Module>(on)?;
        unload(&module);
        handle::remove(on);
        Ok(())
    }

    fn cuModuleGetFunction(out: *mut Handle, on: Handle, text: *const c_char) {
        current()?;
        let module = handle::get::<Module>(on)?;
        give(out, find_function(&module, name(text)?)?)
    }

    fn cuModuleGetFunctionCount(out: *mut u32, on: Handle) {
        current()?;
        give(out, handle::get::<Module>(on)?.kernels.len() as u32)
    }

    fn cuModuleGetGlobal_v2(at: *mut u64, bytes: *mut usize, on: Handle, text: *const c_char) {
        current()?;
        find_variable(&*handle::get::<Module>(on)?, at, bytes, text)
    }

    fn cuModuleGetLoadingMode(out: *mut u32) {
        // eager
        give(out, 1)
    }

    fn cuLibraryLoadData(
        out: *mut Handle, image: *const c_void, _jit: *const u32, _jit_values: *mut *mut c_void, _jit_count: u32,
        _options: *const u32, _values: *mut *mut c_void, _count: u32,
    ) {
        load_library(out, image)
    }

    fn cuLibraryLoadFromFile(
        out: *mut Handle, path: *const c_char, _jit: *const u32, _jit_values: *mut *mut c_void, _jit_count: u32,
        _options: *const u32, _values: *mut *mut c_void, _count: u32,
    ) {
        load_library(out, file(path)?.as_ptr().cast())
    }

    fn cuLibraryUnload(on: Handle) {
        let module = handle::get::<Library>(on)?.0.clone();
        unload(&module);
        handle::remove(on);
        Ok(())
    }

    fn cuLibraryGetKernel(out: *mut Handle, on: Handle, text: *const c_char) {
        let module = handle::get::<Library>(on)?.0.clone();
        give(out, find_function(&module, name(text)?)?)
    }

    fn cuLibraryGetGlobal(at: *mut u64, bytes: *mut usize, on: Handle, text: *const c_char) {
        find_variable(&handle::get::<Library>(on)?.0, at, bytes, text)
    }

    fn cuLibraryGetKernelCount(out: *mut u32, on: Handle) {
        give(out, handle::get::<Library>(on)?.0.kernels.len() as u32)
    }

    fn cuLibraryEnumerateKernels(out: *mut Handle, room: u32, on: Handle) {
        let module = handle::get::<Library>(on)?.0.clone();
        if out.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        for (i, kernel) in module.kernels.iter().enumerate().take(room as usize) {
            // SAFETY: the application gives room for so many.
            unsafe { out.add(i).write(find_function(&module, &kernel.name)?) };
        }
        Ok(())
    }

    fn cuLibraryGetModule(out: *mut Handle, on: Handle) {
        let module = handle::get::<Library>(on)?.0.clone();
        give(out, handle::insert(module)?)
    }

    fn cuKernelGetFunction(out: *mut Handle, kernel: Handle) {
        // a kernel of a library is a function here
        handle::get::<Function>(kernel)?;
        give(out, kernel)
    }
}
