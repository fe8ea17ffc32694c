//! Compiles `kernels/**/*.cu` for f32, f16 and bf16 through NVRTC, into cubins for each architecture and portable PTX.
//!
//! No CUDA toolkit, compiler or GPU is needed, only libnvrtc. Without it the crate is built without kernels.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;

#[path = "src/gpu/args/mod.rs"]
#[allow(missing_docs, dead_code, reason = "only its C++ text is used here")]
mod args;
#[path = "src/gpu/kernel.rs"]
#[allow(missing_docs, dead_code, reason = "only the list itself is used here")]
mod kernel;

/// Architectures that cubins are made for, with the lowest PTX version that their instructions need: a driver accepts
/// PTX up to its own version, so a lower one loads on older drivers.
const ARCHITECTURES: [(u32, &str); 5] = [(75, "6.3"), (80, "7.0"), (90, "7.8"), (100, "8.6"), (120, "8.7")];
/// Architectures whose PTX ships beside the cubins: a device without a cubin takes the newest one that it has the instructions of,
/// so that one of a later generation copies asynchronously, reduces in one instruction and may overlap its launches.
const SHIPPED_PTX: [u32; 3] = [75, 80, 90];
/// Counts changes of what this script makes of a source, so that older images are not taken for new ones.
const IMAGE_FORMAT: u32 = 5;
const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=kernels");
    // DEP_POSENC_INCLUDE in a dependent's build script: the folder of `#include "bias/bias.cuh"`.
    println!("cargo::metadata=include={}", std::env::current_dir()?.join("kernels").display());
    println!("cargo::rerun-if-changed=src/gpu/args");
    println!("cargo::rerun-if-changed=src/gpu/kernel.rs");
    for name in SEARCHED {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-env-changed=POSENC_PTX");
    println!("cargo::rerun-if-env-changed=POSENC_ARCHS");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let nvrtc = match Nvrtc::find() {
        Ok(nvrtc) => nvrtc,
        Err(tried) => {
            println!(
                "cargo::warning=posenc is built without its kernels: no NVRTC was found ({tried}). Run `pip install \
                 nvidia-cuda-nvrtc-cu12==12.9.86` or point POSENC_NVRTC at the folder that holds libnvrtc."
            );
            fs::write(out.join("images.rs"), "&[]")?;
            return Ok(());
        }
    };

    let sources = Sources::read()?;
    for listed in kernel::kernels() {
        let there = sources.kernels.iter().any(|file| file.stem() == listed.file);
        ensure!(there, "the list of kernels names {}, there is no kernels/{}.cu", listed.entry, listed.file);
    }
    let wanted = wanted_architectures()?;
    // All PTX is wanted where every code path is to be run without its device.
    let all_ptx = std::env::var("POSENC_PTX").is_ok_and(|value| value == "all");
    let known: Vec<_> = ARCHITECTURES
        .into_iter()
        .map(|(sm, ptx_version)| Target { sm, ptx_version, ptx: all_ptx || SHIPPED_PTX.contains(&sm) })
        .filter(|target| nvrtc.knows(target.sm))
        .collect();
    let is_wanted = |target: &&Target| wanted.is_empty() || wanted.contains(&target.sm);
    let mut targets: Vec<_> = known.iter().filter(is_wanted).cloned().collect();
    match targets.first_mut() {
        Some(lowest) => lowest.ptx = true,
        None => bail!("NVRTC {:?} knows none of the architectures {wanted:?}", nvrtc.version),
    }

    let cache = out.join("images");
    fs::create_dir_all(&cache)?;
    let mut jobs = jobs(&sources, &targets, &nvrtc)?;
    // The longest first, so that no thread works alone at the end.
    let length = |job: &Job| job.headers.iter().map(|header| header.text.len()).sum::<usize>() + job.file.text.len();
    jobs.sort_by_key(|job| std::cmp::Reverse(length(job)));

    // NVRTC compiles programs side by side; one thread per core takes the next job until none is left.
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            // NVRTC recurses as deep as a kernel's inlining; a thread's usual 2 MB are not sure to hold it.
            let compile = std::thread::Builder::new().stack_size(64 << 20);
            let started = compile.spawn_scoped(scope, || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = job.run(&nvrtc, &cache) {
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                        next.store(usize::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
            if let Err(error) = started {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.into());
            }
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }

    let mut text = String::from("&[\n");
    for file in &sources.kernels {
        for dtype in DTYPES {
            let of_module = |job: &&Job| job.file.name == file.name && job.dtype == dtype;
            let mut images: Vec<(&Target, [PathBuf; 2])> = Vec::new();
            for job in jobs.iter().filter(of_module) {
                images.extend(job.targets.iter().map(|&target| (target, job.paths(target, &nvrtc, &cache))));
            }
            images.sort_by_key(|(target, _)| target.sm);
            writeln!(text, "Images {{ file: {:?}, dtype: {dtype:?}, cubins: &[", file.stem())?;
            for (Target { sm, .. }, [cubin, _]) in &images {
                writeln!(text, "    Image {{ sm: {sm}, deflated: include_bytes!({cubin:?}) }},")?;
            }
            text += "], ptx: &[\n";
            for (Target { sm, .. }, [_, ptx]) in images.iter().filter(|(target, _)| target.ptx) {
                writeln!(text, "    Image {{ sm: {sm}, deflated: include_bytes!({ptx:?}) }},")?;
            }
            text += "] },\n";
        }
    }
    text += "]\n";
    fs::write(out.join("images.rs"), text)?;
    // Images of architectures that are not wanted now stay for the next build that wants them.
    let all = self::jobs(&sources, &known, &nvrtc)?;
    let current = all.iter().flat_map(|job| job.targets.iter().flat_map(|target| job.paths(target, &nvrtc, &cache)));
    remove_stale(&cache, &current.collect::<Vec<_>>())
}

/// What makes the images of every kernel for `targets`.
fn jobs<'a>(sources: &'a Sources, targets: &'a [Target], nvrtc: &Nvrtc) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    for file in &sources.kernels {
        let headers = sources.included(file);
        let mut generations: BTreeMap<u32, Vec<&Target>> = BTreeMap::new();
        for target in targets {
            generations.entry(generation(file, &headers, target.sm)).or_default().push(target);
        }
        for (dtype, (generation, targets)) in
            DTYPES.into_iter().flat_map(|dtype| generations.iter().map(move |of| (dtype, of)))
        {
            // The lowest that NVRTC knows, wanted or not, so that the choice of architectures changes no image.
            let base =
                ARCHITECTURES.map(|(sm, _)| sm).into_iter().find(|&sm| 10 * sm >= *generation && nvrtc.knows(sm));
            let base = base.context("no architecture")?;
            jobs.push(Job { file, headers: headers.clone(), dtype, base, targets: targets.clone() });
        }
    }
    Ok(jobs)
}

/// POSENC_ARCHS, such as `90` or `80,90`: a build for known devices alone is that much shorter. Empty: all.
fn wanted_architectures() -> Result<Vec<u32>> {
    let Ok(text) = std::env::var("POSENC_ARCHS") else { return Ok(Vec::new()) };
    let known = ARCHITECTURES.map(|(sm, _)| sm);
    text.split(',')
        .map(|name| {
            let sm = name.trim().parse().ok().filter(|sm| known.contains(sm));
            sm.with_context(|| format!("POSENC_ARCHS is {text:?}, it must list some of {known:?}"))
        })
        .collect()
}

/// Writes beside a file and renames, so that a build that is killed leaves no half of an image under an image's name.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    fs::write(&beside, bytes).with_context(|| format!("cannot write {}", Path::new(&beside).display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether an image is there and inflates to the end to a cubin (an ELF file) or PTX: a disk that was full or a machine that
/// lost its power may have cut it short. All images of a build take some tenths of a second in an optimised build script.
fn is_whole(path: &Path) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let image = miniz_oxide::inflate::decompress_to_vec(&bytes);
    // The comments before PTX's first line are taken out, the empty line behind them stays.
    let starts = [&b"\x7fELF"[..], b".version "];
    image.is_ok_and(|image| starts.iter().any(|start| image.trim_ascii_start().starts_with(start)))
}

/// Images of kernels as they were before the last change.
fn remove_stale(cache: &Path, current: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if !current.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

// -------------------------------------------------------------------------------------------------------------- sources

struct Source {
    /// path below `kernels`, with forward slashes
    name: String,
    text: String,
}

impl Source {
    /// `rotate/rope` of `rotate/rope.cu`
    fn stem(&self) -> &str {
        self.name.trim_end_matches(".cu")
    }
}

struct Sources {
    kernels: Vec<Source>,
    /// what a kernel may include, the printed argument structs among them
    headers: Vec<Source>,
}

impl Sources {
    fn read() -> Result<Self> {
        let mut files = Vec::new();
        list(Path::new("kernels"), &mut files)?;
        files.sort();
        let mut kernels = Vec::new();
        let mut headers = vec![Source { name: "args.cuh".into(), text: args::header() + &kernel::header() }];
        for path in files {
            let name =
                path.strip_prefix("kernels")?.to_str().context("a kernel's path is not UTF-8")?.replace('\\', "/");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if name.ends_with(".cu") {
                kernels.push(Source { name, text });
            } else if name.ends_with(".cuh") {
                headers.push(Source { name, text });
            }
        }
        Ok(Self { kernels, headers })
    }

    /// The headers that `kernel` includes, directly or through another header.
    fn included<'a>(&'a self, kernel: &'a Source) -> Vec<&'a Source> {
        let mut found: Vec<&Source> = Vec::new();
        let mut texts = vec![&kernel.text];
        while let Some(text) = texts.pop() {
            for header in &self.headers {
                let named = text.contains(&format!("#include \"{}\"", header.name));
                if named && !found.iter().any(|other| other.name == header.name) {
                    found.push(header);
                    texts.push(&header.text);
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

// -------------------------------------------------------------------------------------------------------------- compile

/// An architecture that a cubin is made for.
#[derive(Clone)]
struct Target {
    sm: u32,
    ptx_version: &'static str,
    /// its PTX is wanted too
    ptx: bool,
}

/// The highest number that `__CUDA_ARCH__` of `sm` passes, of those that a file and its headers compare it with; 0: none.
/// Architectures of one generation have the same PTX.
fn generation(file: &Source, headers: &[&Source], sm: u32) -> u32 {
    let texts = std::iter::once(file).chain(headers.iter().copied()).map(|source| source.text.as_str());
    let tests = texts.flat_map(|text| text.split("__CUDA_ARCH__ >= ").skip(1));
    let numbers = tests.filter_map(|test| test.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    numbers.filter(|&number| number <= 10 * sm).max().unwrap_or(0)
}

/// One file for one element type and one generation of architectures. NVRTC's front end and optimiser, two thirds of a
/// compilation, make PTX for the lowest of them, which is assembled for each.
struct Job<'a> {
    file: &'a Source,
    headers: Vec<&'a Source>,
    dtype: &'static str,
    /// the lowest
    base: u32,
    targets: Vec<&'a Target>,
}

impl Job<'_> {
    fn options(&self, architecture: String, nvrtc: &Nvrtc) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            format!("-DDTYPE={}", self.dtype),
            "--std=c++17".into(),
            // What is written is what is computed, on every device.
            "--fmad=false".into(),
        ];
        options.extend(nvrtc.minimal.then(|| MINIMAL.into()));
        options
    }

    /// A cubin's and a PTX's, named by everything that goes into them, so that an unchanged kernel is found and not
    /// compiled again.
    fn paths(&self, target: &Target, nvrtc: &Nvrtc, cache: &Path) -> [PathBuf; 2] {
        let mut hash = DefaultHasher::new();
        (IMAGE_FORMAT, nvrtc.version, self.base, self.options(format!("sm_{}", target.sm), nvrtc)).hash(&mut hash);
        (target.ptx_version, &self.file.text).hash(&mut hash);
        for header in &self.headers {
            (&header.name, &header.text).hash(&mut hash);
        }
        let stem = self.file.stem().replace('/', "_");
        let hash = hash.finish();
        ["cubin", "ptx"].map(|kind| cache.join(format!("{stem}.{}.sm_{}.{hash:016x}.{kind}", self.dtype, target.sm)))
    }

    fn run(&self, nvrtc: &Nvrtc, cache: &Path) -> Result<()> {
        let mut missing: Vec<_> =
            self.targets.iter().map(|&target| (target, self.paths(target, nvrtc, cache))).collect();
        missing.retain(|(target, [cubin, ptx])| !is_whole(cubin) || (target.ptx && !is_whole(ptx)));
        if missing.is_empty() {
            return Ok(());
        }
        let options = self.options(format!("compute_{}", self.base), nvrtc);
        let made = nvrtc.compile(self.file, &self.headers, &options)?;
        for listed in kernel::kernels().iter().filter(|listed| listed.file == self.file.stem()) {
            let entry = format!(".entry {}_{}(", listed.entry, self.dtype);
            ensure!(made.ptx.contains(&entry), "kernels/{} has no entry {}", self.file.name, listed.entry);
        }
        for (target, [cubin_path, ptx_path]) in missing {
            let ptx = for_target(&made.ptx, target)?;
            let cubin = self.assemble(&ptx, target, nvrtc)?;
            // A cubin shrinks to a quarter; a program links the images of every device and loads those of one. Level 6
            // saves 5 % more and takes three times as long.
            let deflate = |bytes: &[u8]| miniz_oxide::deflate::compress_to_vec(bytes, 4);
            if target.ptx {
                write_whole(&ptx_path, &deflate(ptx.as_bytes()))?;
            }
            write_whole(&cubin_path, &deflate(&cubin))?;
        }
        Ok(())
    }

    /// A cubin of `ptx`. NVRTC takes no PTX; as inline assembly that ends its own function and begins another one, it does.
    fn assemble(&self, ptx: &str, target: &Target, nvrtc: &Nvrtc) -> Result<Vec<u8>> {
        let lines = ptx.lines().skip_while(|line| !line.starts_with(".address_size")).skip(1).collect::<Vec<_>>();
        let text = format!(
            "extern \"C\" __device__ __attribute__((used)) void first() {{ asm volatile(R\"PTX(ret;\n}}\n{}\n.func last() {{)PTX\"); \
             }}",
            lines.join("\n")
        );
        let options = self.options(format!("sm_{}", target.sm), nvrtc);
        let assembled = nvrtc.compile(&Source { name: self.file.name.clone(), text }, &[], &options);
        if let Ok(Compiled { cubin: Some(cubin), .. }) = assembled {
            let sections = String::from_utf8_lossy(&cubin);
            let mut entries = lines.iter().filter_map(|line| line.strip_prefix(".visible .entry "));
            if entries.all(|entry| sections.contains(&format!(".text.{}\0", entry.trim_end_matches('(')))) {
                return Ok(cubin);
            }
        }
        // An NVRTC that does otherwise compiles the source for this architecture alone.
        let own = |of: &Source| Source { name: of.name.clone(), text: choose(&of.text, target.sm) };
        let headers: Vec<_> = self.headers.iter().map(|header| own(header)).collect();
        let headers: Vec<_> = headers.iter().collect();
        nvrtc.compile(&own(self.file), &headers, &options)?.cubin.context("NVRTC made no cubin")
    }
}

/// Inline assembly for the architecture `sm`. A line that begins with `//sm_80+ ` is for 8.0 and later ones, a line that begins
/// with `//sm_80- ` for those before it. To NVRTC both are comments, so that one PTX serves every architecture.
fn choose(text: &str, sm: u32) -> String {
    let mut parts = text.split("//sm_");
    let mut chosen = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (from, line) = part.split_at(digits);
        let later = from.parse().is_ok_and(|from: u32| sm >= from);
        match line.strip_prefix(if later { "+ " } else { "- " }) {
            Some(line) => chosen += line,
            None => write!(chosen, "//{line}").unwrap_or_default(),
        }
    }
    chosen
}

/// PTX for one architecture. NVRTC states its own PTX version; what the instructions need is older. The one newer thing,
/// `used_bytes_mask` (8.3), is a hint for tools that look for uninitialised reads, and goes.
fn for_target(ptx: &str, target: &Target) -> Result<String> {
    ensure!(ptx.contains("\n.version ") && ptx.contains("\n.target "), "NVRTC made PTX without a .version or .target");
    let mut text = String::with_capacity(ptx.len());
    for line in choose(ptx, target.sm).lines().map(str::trim) {
        if line.starts_with(".version ") {
            writeln!(text, ".version {}", target.ptx_version)?;
        } else if line.starts_with(".target ") {
            writeln!(text, ".target sm_{}", target.sm)?;
        } else if !line.starts_with(".pragma \"used_bytes_mask") && !line.starts_with("//") {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

// ---------------------------------------------------------------------------------------------------------------- NVRTC

/// Environment that decides where NVRTC is looked for.
const SEARCHED: [&str; 7] =
    ["POSENC_NVRTC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "VIRTUAL_ENV", "CONDA_PREFIX"];

/// Leaves out NVRTC's declarations of textures and of the runtime: 10 of the 34 ms that an empty program takes. Known from
/// some NVRTC 12 on.
const MINIMAL: &str = "--minimal";

type Program = *mut std::ffi::c_void;

struct Nvrtc {
    library: Library,
    version: (c_int, c_int),
    architectures: Vec<c_int>,
    /// it knows `MINIMAL`
    minimal: bool,
    _builtins: Option<Library>,
}

struct Compiled {
    /// of a real architecture
    cubin: Option<Vec<u8>>,
    ptx: String,
}

impl Nvrtc {
    /// The first that loads, or a list of the places that were tried.
    fn find() -> Result<Self, String> {
        let explicit = std::env::var_os("POSENC_NVRTC").map(PathBuf::from);
        let folders = if let Some(path) = &explicit { vec![path.clone()] } else { folders() };
        let mut tried = Vec::new();
        for folder in folders {
            let candidates = if folder.is_file() { vec![folder.clone()] } else { libraries(&folder, "nvrtc") };
            for path in candidates {
                match Self::open(&path) {
                    Ok(nvrtc) => return Ok(nvrtc),
                    Err(error) => tried.push(format!("{}: {error}", path.display())),
                }
            }
        }
        if let Some(path) = explicit {
            return Err(if tried.is_empty() {
                format!("POSENC_NVRTC is {} and no libnvrtc is there", path.display())
            } else {
                tried.join("; ")
            });
        }
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"] {
            if let Ok(nvrtc) = Self::open(Path::new(name)) {
                return Ok(nvrtc);
            }
        }
        tried.push(
            "CUDA_HOME, CUDA_PATH, the usual folders, the active Python environment and the loader's path".into(),
        );
        Err(tried.join("; "))
    }

    fn open(path: &Path) -> Result<Self> {
        // NVRTC 13.0 does not find its builtins beside itself when it is opened by path; opened first, they are found.
        let builtins = path
            .parent()
            .and_then(|folder| libraries(folder, "nvrtc-builtins").into_iter().next())
            .and_then(|path| open_globally(&path).ok());
        let library = open_globally(path)?;
        let mut version = (0, 0);
        let mut count = 0;
        // SAFETY: these are NVRTC's documented signatures, stable since 11.2, and every pointer is to a live local.
        let architectures = unsafe {
            let get = library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion\0")?;
            ensure!(get(&mut version.0, &mut version.1) == 0, "nvrtcVersion failed");
            let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"nvrtcGetNumSupportedArchs\0")?;
            ensure!(get(&mut count) == 0, "nvrtcGetNumSupportedArchs failed");
            let mut architectures = vec![0; usize::try_from(count)?];
            let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"nvrtcGetSupportedArchs\0")?;
            ensure!(get(architectures.as_mut_ptr()) == 0, "nvrtcGetSupportedArchs failed");
            architectures
        };
        ensure!(version.0 >= 12, "NVRTC {}.{} is older than 12.0", version.0, version.1);
        let mut nvrtc = Self { library, version, architectures, minimal: false, _builtins: builtins };
        let empty = Source { name: String::new(), text: String::from("__device__ int x;") };
        nvrtc.minimal = nvrtc.compile(&empty, &[], &[MINIMAL.into()]).is_ok();
        Ok(nvrtc)
    }

    fn knows(&self, sm: u32) -> bool {
        self.architectures.iter().any(|&known| u32::try_from(known) == Ok(sm))
    }

    fn compile(&self, source: &Source, headers: &[&Source], options: &[String]) -> Result<Compiled> {
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
    use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVRTC's initialisers have no preconditions.
    Ok(unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?.into())
}

#[cfg(not(unix))]
fn open_globally(path: &Path) -> Result<Library> {
    // SAFETY: NVRTC's initialisers have no preconditions.
    Ok(unsafe { Library::new(path) }?)
}

/// Folders that may hold NVRTC, best first.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .collect();
    toolkits.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    for toolkit in toolkits {
        for below in ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin/x64", "bin"] {
            folders.push(toolkit.join(below));
        }
    }
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from) {
        let mut packages = vec![environment.join("Lib/site-packages")];
        if let Ok(entries) = fs::read_dir(environment.join("lib")) {
            packages.extend(entries.flatten().map(|entry| entry.path().join("site-packages")));
        }
        for packages in packages {
            for below in ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/bin", "nvidia/cu13/bin/x86_64"]
            {
                folders.push(packages.join(below));
            }
        }
    }
    folders
}

/// Shared libraries called `stem` in `folder`, whatever their version; development copies (`.alt`) last.
fn libraries(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&format!("lib{stem}.so"))
                || name.starts_with(&format!("lib{stem}.alt"))
                || (name.starts_with(&format!("{stem}64_")) && name.ends_with(".dll"))
        })
        .collect();
    found.sort_by_key(|path| (path.to_string_lossy().contains(".alt"), std::cmp::Reverse(path.clone())));
    found
}
