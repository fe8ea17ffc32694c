//! Loads the emulator as the process's CUDA driver, before cudarc looks for one; and the twins of tests on a device.
//!
//! A test that uses [`Machine`] runs on the emulator, and with `EMULATOR_REAL_GPU` on a device: `1` is the driver of this
//! machine, anything else a path to one. Listed in [`gpu_twins!`] it also has a twin `gpu::name`, ignored because it
//! needs a device, which runs it on both, one process each, and compares the bits of all results that it read back:
//! `cargo test -p warpcheck -- --ignored gpu::`.
#![allow(dead_code)]

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, result, sys,
};
use cudarc::nvrtc::Ptx;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

const REAL: &str = "EMULATOR_REAL_GPU";
const RECORD: &str = "EMULATOR_RECORD";

/// A text of `tests/ptx/texts.z`, by its name.
pub struct Text(pub &'static str);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        static ALL: OnceLock<String> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let bytes = miniz_oxide::inflate::decompress_to_vec_zlib(include_bytes!("../ptx/texts.z"));
            String::from_utf8(bytes.expect("deflated by make.py")).expect("PTX is text")
        });
        let head = format!("==== {}\n", self.0);
        let start = all.find(&head).unwrap_or_else(|| panic!("texts.z has no {}", self.0)) + head.len();
        let rest = &all[start..];
        &rest[..rest.find("==== ").unwrap_or(rest.len())]
    }
}

/// The shared library that cargo built beside this test, unless `EMULATOR_LIBRARY` names another.
pub fn library() -> PathBuf {
    std::env::var_os("EMULATOR_LIBRARY").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("a test knows its own path");
        let deps = exe.parent().expect("a test lies in a folder");
        let beside = deps.join("libwarpcheck.so");
        if beside.exists() { beside } else { deps.with_file_name("libwarpcheck.so") }
    })
}

fn open(path: &Path) {
    static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // SAFETY: a driver's library has no initialisers that matter here.
        unsafe { libloading::Library::new(path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    });
}

/// Loads the emulator.
pub fn load() -> warpcheck::Emulator {
    open(&library());
    warpcheck::attach().expect("the emulator is loaded as libcuda.so.1")
}

/// Has the emulator claim another compute capability than its default; before the first device of the process.
pub fn claim(capability: &str) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("EMULATOR_CC").is_none() {
            // SAFETY: the standard library guards the environment, and the emulator reads it later.
            unsafe { std::env::set_var("EMULATOR_CC", capability) };
        }
    });
}

/// A context of its own, so that a fault of one test is no other test's.
pub struct Device {
    pub emulator: warpcheck::Emulator,
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

/// The attribute of programmatic stream serialization: the launch may overlap the one before it.
pub fn overlap() -> sys::CUlaunchAttribute {
    // SAFETY: plain data.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    attribute
}

/// One block of 32 threads of a kernel that takes one address, with these attributes.
///
/// # Safety
/// The kernel may use what lies at the address.
pub unsafe fn launch_with(
    f: &CudaFunction,
    mut address: u64,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUresult {
    let mut params = [(&raw mut address).cast::<std::ffi::c_void>()];
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    // SAFETY: the caller answers for the address; parameter and attributes live until the driver has copied them.
    unsafe { sys::cuLaunchKernelEx(&config, f.cu_function(), params.as_mut_ptr(), std::ptr::null_mut()) }
}

/// A context that is not the primary one.
pub fn private_context(ordinal: usize) -> Arc<CudaContext> {
    result::init().expect("cuInit");
    let mut context = std::ptr::null_mut();
    // SAFETY: the place is ours; ownership goes to the wrapper.
    unsafe {
        sys::cuCtxCreate_v4(&mut context, std::ptr::null_mut(), 0, ordinal as i32).result().expect("cuCtxCreate");
        CudaContext::from_raw_context(ordinal, ordinal as i32, context).expect("a context")
    }
}

/// The emulator or a device, for tests whose results are the same bits on both.
pub struct Machine {
    /// `None` on a device.
    pub emulator: Option<warpcheck::Emulator>,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

impl Machine {
    pub fn new() -> Self {
        let (emulator, context) = match std::env::var_os(REAL) {
            None => (Some(load()), private_context(0)),
            Some(driver) => {
                if driver != "1" {
                    open(Path::new(&driver));
                }
                (None, CudaContext::new(0).expect("a device"))
            }
        };
        let stream = context.default_stream();
        Self { emulator, context, stream }
    }

    /// Compute capability: 90 for 9.0.
    pub fn capability(&self) -> u32 {
        let (major, minor) = self.context.compute_capability().expect("an attribute");
        (10 * major + minor) as u32
    }

    /// The emulator's reason, for messages.
    pub fn said(&self) -> String {
        self.emulator.and_then(|e| e.last_error()).unwrap_or_default()
    }

    pub fn module(&self, ptx: &str) -> Arc<CudaModule> {
        self.context.load_module(Ptx::from_src(ptx)).unwrap_or_else(|e| panic!("{e:?}: {}", self.said()))
    }

    pub fn kernel(&self, ptx: &str, name: &str) -> CudaFunction {
        self.module(ptx).load_function(name).expect("the kernel exists")
    }

    /// A result, read back and recorded for the comparison of twins.
    pub fn read<T: DeviceRepr + Default + Clone, S: DevicePtr<T>>(&self, slice: &S) -> Vec<T> {
        let values = self.stream.clone_dtoh(slice).unwrap_or_else(|e| panic!("{e:?}: {}", self.said()));
        // SAFETY: results are numbers, without padding.
        record(unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), std::mem::size_of_val(&values[..])) });
        values
    }
}

/// Notes bits that a twin must have too.
pub fn record(bytes: &[u8]) {
    use std::io::Write;
    let Some(path) = std::env::var_os(RECORD) else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the record");
    file.write_all(&(bytes.len() as u64).to_le_bytes()).and_then(|()| file.write_all(bytes)).expect("the record");
}

/// Runs a test of this program in a process of its own, on the emulator or on the driver `device`, and gives its record.
fn run(test: &str, device: Option<&str>) -> Vec<Vec<u8>> {
    let kind = if device.is_some() { "device" } else { "emulator" };
    let path = std::env::temp_dir().join(format!("emulator-{}-{test}-{kind}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().expect("a test knows its own path"));
    command.args([test, "--exact", "--test-threads=1"]).env(RECORD, &path).env_remove(REAL);
    // cudarc asks for libcuda.so, which a machine with a device has: here the emulator comes before it under both names.
    let names = std::env::temp_dir().join(format!("emulator-{}-{test}-names", std::process::id()));
    match device {
        Some(driver) => {
            command.env(REAL, driver);
        }
        None => {
            std::fs::create_dir_all(&names).expect("a folder");
            for name in ["libcuda.so", "libcuda.so.1"] {
                std::os::unix::fs::symlink(library(), names.join(name)).expect("a name");
            }
            let mut path = names.clone().into_os_string();
            path.push(":");
            path.push(std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
            command.env("LD_LIBRARY_PATH", path);
        }
    }
    let output = command.output().expect("the test runs");
    let _ = std::fs::remove_dir_all(&names);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{test} on the {kind}: {}{}", text(&output.stdout), text(&output.stderr));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{test} recorded nothing on the {kind}: {e}"));
    let _ = std::fs::remove_file(&path);
    let mut rest = &bytes[..];
    let mut records = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<8>() {
        let (record, after) = after.split_at(u64::from_le_bytes(*size) as usize);
        records.push(record.to_vec());
        rest = after;
    }
    records
}

/// The first difference of two records, as a sentence.
pub fn difference(emulator: &[Vec<u8>], device: &[Vec<u8>]) -> Option<String> {
    for (i, (a, b)) in emulator.iter().zip(device).enumerate() {
        if a.len() != b.len() {
            return Some(format!("result {i} has {} bytes on the emulator, {} on the device", a.len(), b.len()));
        }
        if let Some(at) = (0..a.len()).find(|&at| a[at] != b[at]) {
            let word = |x: &[u8]| x[at / 8 * 8..].iter().take(8).map(|v| format!("{v:02x}")).collect::<String>();
            return Some(format!(
                "byte {at} of result {i}: {} on the emulator, {} on the device (8 bytes from {})",
                word(a),
                word(b),
                at / 8 * 8
            ));
        }
    }
    let (a, b) = (emulator.len(), device.len());
    (a != b).then(|| format!("{a} results on the emulator, {b} on the device"))
}

/// Runs a test on the emulator and on a device, and compares the bits of what it read back.
pub fn compare_with_device(test: &str, device: &str) {
    let (emulator, device) = (run(test, None), run(test, Some(device)));
    assert!(!emulator.is_empty(), "{test} recorded nothing");
    if let Some(what) = difference(&emulator, &device) {
        panic!("{test}: {what}");
    }
}

/// Declares the twin of each test: the same test on the emulator and on this machine's device, compared bit for bit.
#[allow(unused_macros)]
macro_rules! gpu_twins {
    ($($name:ident),* $(,)?) => {
        mod gpu {
            $(
                #[test]
                #[ignore = "needs a GPU"]
                fn $name() {
                    let device = std::env::var("EMULATOR_REAL_GPU").unwrap_or_else(|_| "1".into());
                    crate::support::compare_with_device(stringify!($name), &device);
                }
            )*
        }
    };
}
#[allow(unused_imports)]
pub(crate) use gpu_twins;

/// One block of so many threads with so much dynamic shared memory, or several.
pub fn shape(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}
