//! NVIDIA's compiler library, opened at run time.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fmt;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;

use crate::Source;
use crate::find::{PINNED, is_clone, libraries, places};

/// Leaves out NVRTC's declarations of textures and of the runtime: 10 of the 34 ms that an empty program takes. Known from
/// some NVRTC 12 on.
pub const MINIMAL: &str = "--minimal";
/// No output of a compiler is longer.
const LONGEST_OUTPUT: usize = 1 << 30;

type Program = *mut std::ffi::c_void;

/// What a compiler's images depend on.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub version: (u32, u32),
    pub architectures: Vec<u32>,
    /// it knows [`MINIMAL`]
    pub minimal: bool,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version: (major, minor), architectures, minimal } = self;
        let architectures: Vec<_> = architectures.iter().map(u32::to_string).collect();
        writeln!(f, "{major} {minor}\n{minimal}\n{}", architectures.join(" "))
    }
}

impl Identity {
    /// What is displayed, and the lines behind it: hashes and names.
    pub fn parse(text: &str) -> Option<(Self, HashMap<&str, u64>)> {
        let mut lines = text.lines();
        let numbers = |line: &str| line.split(' ').map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>();
        let [major, minor] = numbers(lines.next()?)?[..] else { return None };
        let minimal = lines.next()?.parse().ok()?;
        let architectures = numbers(lines.next()?)?;
        let images = lines.map(|line| {
            let (hash, name) = line.split_once(' ')?;
            Some((name, u64::from_str_radix(hash, 16).ok()?))
        });
        Some((Self { version: (major, minor), architectures, minimal }, images.collect::<Option<_>>()?))
    }
}

pub struct Nvrtc {
    library: Library,
    pub identity: Identity,
    _builtins: Option<Library>,
}

pub struct Compiled {
    /// of a real architecture
    pub cubin: Option<Vec<u8>>,
    pub ptx: String,
}

impl Nvrtc {
    /// The one that POSENC_NVRTC names, or the first that loads. `out` lies in the project that is built.
    pub fn find(out: &Path) -> Result<Self> {
        if let Some(path) = std::env::var_os("POSENC_NVRTC").map(PathBuf::from) {
            return Self::named(&path).with_context(|| format!("POSENC_NVRTC is {path:?}"));
        }
        let (mut tried, mut refused) = (String::new(), Vec::new());
        for place in places(out) {
            let libraries = place.libraries();
            if libraries.is_empty() {
                tried += &format!("\n  {}", place.path.display());
            }
            for path in libraries {
                match Self::open(&path) {
                    Ok(nvrtc) => return Ok(nvrtc),
                    Err(error) => tried += &format!("\n  {}: {error:#}", path.display()),
                }
                refused.extend(path.file_name().map(OsStr::to_owned));
            }
        }
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"] {
            // The loader may take the very one that was refused.
            if !refused.iter().any(|refused| refused == name)
                && let Ok(nvrtc) = Self::open(Path::new(name))
            {
                return Ok(nvrtc);
            }
        }
        let fetch = if is_clone() { "run `cargo xtask fetch`, or " } else { "" };
        bail!(
            "posenc finds no NVRTC, which compiles its kernels: no libnvrtc is in the loader's path nor in{tried}\n\
             Three ways out: {fetch}install it by `pip install {PINNED}` and build again; set POSENC_NVRTC to the file or folder \
             of libnvrtc; or set POSENC_KERNELS=none to build without kernels, for the CPU alone."
        )
    }

    fn named(path: &Path) -> Result<Self> {
        ensure!(
            !path.as_os_str().is_empty(),
            "it must name the file or folder of libnvrtc; unset, NVRTC is searched for"
        );
        if path.is_file() {
            return Self::open(path);
        }
        ensure!(path.is_dir(), "there is no such file or folder");
        let libraries = libraries(path, "nvrtc");
        let mut refused = None;
        for library in &libraries {
            match Self::open(library).with_context(|| library.display().to_string()) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| anyhow::anyhow!("no libnvrtc is in that folder")))
    }

    fn open(path: &Path) -> Result<Self> {
        // NVRTC 13.0 does not find its builtins beside itself when it is opened by path; opened first, they are found.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let builtins = folder.and_then(|folder| libraries(folder, "nvrtc-builtins").into_iter().next());
        let builtins =
            builtins.map(|path| open_globally(&path).with_context(|| path.display().to_string())).transpose()?;
        let library = open_globally(path)?;
        let mut version = (0, 0);
        let mut count = 0;
        // SAFETY: these are NVRTC's documented signatures, stable since 11.2, and every pointer is to a live local.
        let architectures = unsafe {
            let get = library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion\0")?;
            ensure!(get(&mut version.0, &mut version.1) == 0, "nvrtcVersion failed");
            let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"nvrtcGetNumSupportedArchs\0")?;
            ensure!(get(&mut count) == 0, "nvrtcGetNumSupportedArchs failed");
            ensure!((1..=1000).contains(&count), "it says that it knows {count} architectures");
            let mut architectures = vec![0; usize::try_from(count)?];
            let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"nvrtcGetSupportedArchs\0")?;
            ensure!(get(architectures.as_mut_ptr()) == 0, "nvrtcGetSupportedArchs failed");
            architectures
        };
        ensure!(version.0 >= 12, "NVRTC {}.{} is older than 12.0", version.0, version.1);
        let version = (u32::try_from(version.0)?, u32::try_from(version.1)?);
        let architectures = architectures.into_iter().filter_map(|sm| u32::try_from(sm).ok()).collect();
        let identity = Identity { version, architectures, minimal: false };
        let mut nvrtc = Self { library, identity, _builtins: builtins };
        let program = Source { name: String::new(), text: String::from("__device__ int x;") };
        nvrtc.identity.minimal = nvrtc.compile(&program, &[], &[MINIMAL.into()]).is_ok();
        if !nvrtc.identity.minimal {
            nvrtc.compile(&program, &[], &[]).context("it does not compile a program of one line")?;
        }
        Ok(nvrtc)
    }

    pub fn compile(&self, source: &Source, headers: &[&Source], options: &[String]) -> Result<Compiled> {
        let name = CString::new(format!("kernels/{}", source.name))?;
        let text = CString::new(source.text.as_str())?;
        let strings = |f: &dyn Fn(&Source) -> &str| -> Result<Vec<CString>> {
            headers.iter().map(|header| Ok(CString::new(f(header))?)).collect()
        };
        let header_texts = strings(&|header| &header.text)?;
        let header_names = strings(&|header| &header.name)?;
        let options: Vec<CString> = options.iter().map(|o| Ok(CString::new(o.as_str())?)).collect::<Result<_>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (header_texts, header_names, options) =
            (pointers(&header_texts), pointers(&header_names), pointers(&options));

        // SAFETY: NVRTC's documented signatures; every pointer is to a live buffer of the stated length, and the
        // program is destroyed once, after its last use.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            let mut program: Program = std::ptr::null_mut();
            let create = self.library.get::<Create>(b"nvrtcCreateProgram\0")?;
            let code = create(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                c_int::try_from(headers.len())?,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            );
            ensure!(code == 0, "nvrtcCreateProgram failed with {code}");
            let compile = self
                .library
                .get::<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int>(b"nvrtcCompileProgram\0")?;
            let code = compile(program, c_int::try_from(options.len())?, options.as_ptr());
            let result = if code == 0 {
                self.output(program, b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0").map(|ptx| Compiled {
                    cubin: self.output(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0").ok(),
                    ptx: text_of(&ptx),
                })
            } else {
                let log = self.output(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?;
                Err(anyhow::anyhow!("NVRTC refuses kernels/{}:\n{}", source.name, text_of(&log)))
            };
            let destroy = self.library.get::<unsafe extern "C" fn(*mut Program) -> c_int>(b"nvrtcDestroyProgram\0")?;
            destroy(&mut program);
            result
        }
    }

    /// # Safety
    /// `program` is alive, and the symbols are one of NVRTC's pairs of size and content.
    unsafe fn output(&self, program: Program, size_symbol: &[u8], symbol: &[u8]) -> Result<Vec<u8>> {
        let mut size = 0usize;
        // SAFETY: as the caller promises; the buffer has the size that NVRTC asked for.
        unsafe {
            let get = self.library.get::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(size_symbol)?;
            ensure!(get(program, &mut size) == 0, "NVRTC does not give the size of its output");
            ensure!(size <= LONGEST_OUTPUT, "NVRTC says that its output has {size} bytes");
            let mut bytes = vec![0u8; size];
            let get = self.library.get::<unsafe extern "C" fn(Program, *mut u8) -> c_int>(symbol)?;
            ensure!(get(program, bytes.as_mut_ptr()) == 0, "NVRTC does not give its output");
            if bytes.is_empty() {
                bail!("NVRTC made no code");
            }
            Ok(bytes)
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map_or_else(|_| String::from_utf8_lossy(bytes), CStr::to_string_lossy)
        .into_owned()
}

#[cfg(unix)]
fn open_globally(path: &Path) -> Result<Library> {
    check_whole(path)?;
    use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVRTC's initialisers have no preconditions.
    Ok(unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?.into())
}

#[cfg(not(unix))]
fn open_globally(path: &Path) -> Result<Library> {
    // SAFETY: NVRTC's initialisers have no preconditions.
    Ok(unsafe { Library::new(path) }?)
}

/// The loader maps a library without a look at its length, and reading what a file lacks ends a process by SIGBUS: what its
/// headers name must be in it. A bare name is looked up by the loader, and is not checked.
fn check_whole(path: &Path) -> Result<()> {
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let length = file.metadata()?.len();
    let mut header = Vec::new();
    file.by_ref().take(64).read_to_end(&mut header)?;
    // 64-bit and little-endian; anything else the loader refuses in words.
    if header.len() < 64 || !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(());
    }
    let number = |bytes: &[u8], at: usize, size: usize| {
        bytes[at..at + size].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let table = |offset: usize, sizes: usize| {
        (number(&header, offset, 8), number(&header, sizes, 2) * number(&header, sizes + 2, 2))
    };
    let ((programs, programs_size), (sections, sections_size)) = (table(32, 54), table(40, 58));
    let mut needed = programs.saturating_add(programs_size).max(sections.saturating_add(sections_size));
    if needed <= length {
        let mut segments = Vec::new();
        file.seek(SeekFrom::Start(programs))?;
        file.take(programs_size).read_to_end(&mut segments)?;
        for segment in segments.chunks_exact(56) {
            needed = needed.max(number(segment, 8, 8).saturating_add(number(segment, 32, 8)));
        }
    }
    ensure!(needed <= length, "the file is cut short: its headers name {needed} bytes, it has {length}");
    Ok(())
}
