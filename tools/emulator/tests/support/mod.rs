//! Loads the emulator as the process's CUDA driver, before cudarc looks for one.
#![allow(dead_code)]

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, OnceLock};

/// Loads the shared library that cargo built beside this test, unless `EMULATOR_LIBRARY` names another.
pub fn load() -> emulator::Emulator {
    static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = std::env::var_os("EMULATOR_LIBRARY").map(std::path::PathBuf::from).unwrap_or_else(|| {
            let exe = std::env::current_exe().expect("a test knows its own path");
            let deps = exe.parent().expect("a test lies in a folder");
            let beside = deps.join("libemulator.so");
            if beside.exists() { beside } else { deps.with_file_name("libemulator.so") }
        });
        // SAFETY: the library has no initialisers.
        unsafe { libloading::Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    });
    emulator::attach().expect("the emulator is loaded as libcuda.so.1")
}

/// The emulator, or nothing where `EMULATOR_REAL_GPU` asks for the machine's own driver: suites that compare results bit
/// for bit run on both.
pub fn load_or_real() -> Option<emulator::Emulator> {
    if std::env::var_os("EMULATOR_REAL_GPU").is_some() { emulator::attach() } else { Some(load()) }
}

/// A context of its own, so that a fault of one test is no other test's.
pub struct Device {
    pub emulator: emulator::Emulator,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

impl Device {
    /// A fresh context on device 0.
    pub fn new() -> Self {
        let emulator = load();
        let context = private_context(0);
        let stream = context.default_stream();
        Self { emulator, context, stream }
    }

    /// Loads PTX.
    pub fn module(&self, ptx: &str) -> Arc<CudaModule> {
        self.context
            .load_module(Ptx::from_src(ptx))
            .unwrap_or_else(|e| panic!("{e:?}: {}", self.emulator.last_error().unwrap_or_default()))
    }

    /// Loads one kernel.
    pub fn kernel(&self, ptx: &str, name: &str) -> CudaFunction {
        self.module(ptx).load_function(name).expect("the kernel exists")
    }
}

/// A context that is not the primary one.
pub fn private_context(ordinal: usize) -> Arc<CudaContext> {
    use cudarc::driver::sys;
    cudarc::driver::result::init().expect("cuInit");
    let mut context = std::ptr::null_mut();
    // SAFETY: the place is ours; ownership goes to the wrapper.
    unsafe {
        sys::cuCtxCreate_v4(&mut context, std::ptr::null_mut(), 0, ordinal as i32).result().expect("cuCtxCreate");
        CudaContext::from_raw_context(ordinal, ordinal as i32, context).expect("a context")
    }
}
