//! Where kernels run: a real GPU, or the emulator.

use std::ffi::c_int;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use libloading::Library;

/// What answers to the driver's name.
pub enum Device {
    /// the machine's own driver
    Real(Real),
    /// `tools/emulator`, in this folder
    Emulator(PathBuf),
}

/// Devices of the machine's own driver.
pub struct Real {
    count: c_int,
    /// of the first
    capability: (c_int, c_int),
}

impl Device {
    /// The machine's GPU, or the emulator, built for the purpose.
    pub fn find(force_emulator: bool) -> Result<Self> {
        let real = if force_emulator { None } else { Self::real() };
        real.map_or_else(|| Ok(Self::Emulator(emulator()?)), Ok)
    }

    /// The machine's GPU; nothing is built.
    pub fn real() -> Option<Self> {
        devices().map(Self::Real)
    }

    pub fn is_real(&self) -> bool {
        matches!(self, Self::Real(_))
    }

    /// The compute capability of a real device, such as `9.0`; the emulator claims any.
    pub fn capability(&self) -> Option<String> {
        match self {
            Self::Real(Real { capability: (major, minor), .. }) => Some(format!("{major}.{minor}")),
            Self::Emulator(_) => None,
        }
    }

    /// Makes `command` find this device.
    pub fn prepare(&self, command: &mut Command) -> Result<()> {
        if let Self::Emulator(folder) = self {
            let mut path = folder.clone().into_os_string();
            if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
                path.push(":");
                path.push(others);
            }
            command.env("LD_LIBRARY_PATH", path);
        }
        Ok(())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Real(Real { count, .. }) => write!(f, "this machine's GPU ({count} found)"),
            Self::Emulator(_) => write!(f, "the emulator"),
        }
    }
}

/// `None` without driver or device.
fn devices() -> Option<Real> {
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    /// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    const CAPABILITY: [c_int; 2] = [75, 76];
    // SAFETY: the driver's initialisers have no preconditions, and these functions have had these signatures since
    // CUDA 5.0; each pointer is to a live integer. The first device's handle is 0.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let init = driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0").ok()?;
        let count_of = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0").ok()?;
        let attribute_of = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").ok()?;
        let (mut count, mut capability) = (0, [0; 2]);
        if init(0) != 0 || count_of(&mut count) != 0 || count <= 0 {
            return None;
        }
        for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
            if attribute_of(value, attribute, 0) != 0 {
                return None;
            }
        }
        Some(Real { count, capability: capability.into() })
    }
}

/// The first device and its driver in words, for a page of results; `None` without them.
pub fn describe() -> Option<String> {
    let Real { capability: (major, minor), .. } = devices()?;
    let mut name = [0u8; 128];
    let mut version = 0;
    // SAFETY: as in `devices`, which has initialised the driver; the name ends within the length that is given.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let name_of = driver.get::<unsafe extern "C" fn(*mut u8, c_int, c_int) -> c_int>(b"cuDeviceGetName\0").ok()?;
        let version_of = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion\0").ok()?;
        if name_of(name.as_mut_ptr(), 128, 0) != 0 || version_of(&mut version) != 0 {
            return None;
        }
    }
    let name = name.split(|byte| *byte == 0).next().map(String::from_utf8_lossy)?;
    let cuda = format!("a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
    let number = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let number = number.as_deref().and_then(|text| text.lines().next()).map_or("", str::trim);
    Some(format!("{name}, compute capability {major}.{minor}, {cuda}\n{number}").trim().into())
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Builds the emulator and gives it the driver's name.
pub fn emulator() -> Result<PathBuf> {
    crate::run(Command::new(env!("CARGO")).args(["build", "--package", "warpcheck"]))?;
    let target = target();
    named_as_the_driver(&target.join("debug/libwarpcheck.so"), &target.join("emulator"))
}

/// Gives the emulator that was built the driver's name in a folder, which is what the loader needs.
pub fn named_as_the_driver(built: &Path, folder: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    fs::create_dir_all(&folder)?;
    // Renamed into place, so that a program that runs on the old one keeps it whole. Both names are one file, as in a real
    // driver: a program that opens one of them and cudarc, which opens the other, must meet in one library.
    let [first, second] = ["libcuda.so.1", "libcuda.so"].map(|name| folder.join(name));
    let partial = folder.join(format!("libcuda.{}", std::process::id()));
    fs::copy(built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
    let _ = fs::remove_file(&second);
    fs::hard_link(&partial, &second).with_context(|| format!("cannot link {}", second.display()))?;
    fs::rename(partial, first)?;
    Ok(folder)
}
