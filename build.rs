//! Compiles `kernels/**/*.cu` for f32, f16 and bf16 through NVRTC, into cubins for each architecture and portable PTX.
//!
//! No CUDA toolkit, compiler or GPU is needed, only libnvrtc, and not even that in a package, which holds the images. A build
//! without kernels is one that asks for it: cargo hides a dependency's warnings, and a program would find out when it runs.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

#[path = "src/gpu/args/mod.rs"]
#[allow(missing_docs, dead_code, reason = "only its C++ text is used here")]
mod args;
#[path = "src/gpu/kernel.rs"]
#[allow(missing_docs, dead_code, reason = "only the list itself is used here")]
mod kernel;

#[path = "build/find.rs"]
mod find;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "src/gpu/packed.rs"]
mod packed;
#[path = "build/pages.rs"]
mod pages;
#[path = "src/gpu/ptx.rs"]
mod ptx;

use lzma_rust2::{LzmaOptions, LzmaWriter};
use nvrtc::{Compiled, Identity, MINIMAL, Nvrtc};
use ptx::{ARCHITECTURES, choose, for_architecture};

/// Counts changes of what this script makes of a source, so that older images are not taken for new ones.
const IMAGE_FORMAT: u32 = 7;
const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];
/// A package's images, beside its manifest; a clone has them only while `cargo xtask package` packs it.
const PACKAGED: &str = "images";
/// Cargo adds this file to a package, and to nothing else.
const PACKED: &str = ".cargo_vcs_info.json";
/// What made the images of a folder, and each one's name and hash.
const MANIFEST: &str = "manifest.txt";

/// Folders of kernels.
const ROOMS: [&str; 4] = ["embed", "rotate", "bias", "attend"];

/// Where the kernels of this build come from.
enum Kernels {
    /// there are none
    None,
    /// the package's images
    Packaged,
    /// compiled from `kernels`
    Source,
}

impl Kernels {
    /// Their origin, and the rooms that are wanted.
    fn choice() -> Result<(Self, Vec<&'static str>)> {
        let setting = setting("POSENC_KERNELS")?;
        let rooms = match setting.as_deref() {
            Some("none") => return Ok((Self::None, Vec::new())),
            Some("source") => return Ok((Self::Source, ROOMS.to_vec())),
            Some(text) => {
                let room = |name: &str| ROOMS.into_iter().find(|room| *room == name.trim());
                text.split(',').map(room).collect::<Option<_>>().with_context(|| {
                    format!(
                        "POSENC_KERNELS is {text:?}, it may be none (the CPU alone), source (compile them) or a list of {}",
                        ROOMS.join(", ")
                    )
                })?
            }
            None => ROOMS.to_vec(),
        };
        let origin = if env::var_os("DOCS_RS").is_some() {
            // It shows the same pages without kernels, and has no network.
            Self::None
        } else if env::var_os("POSENC_NVRTC").is_some() {
            Self::Source
        } else if Path::new(PACKAGED).is_dir() {
            Self::Packaged
        } else {
            // `cargo publish` builds what it packs.
            ensure!(
                !Path::new(PACKED).exists(),
                "this package was packed without the images of its kernels: `cargo xtask package --keep-images` makes them; \
                 POSENC_KERNELS=source compiles them by NVRTC"
            );
            Self::Source
        };
        Ok((origin, rooms))
    }
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The sentence alone: a backtrace of this script would hide it.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    println!("cargo::rerun-if-changed=kernels");
    // DEP_POSENC_INCLUDE in a dependent's build script: the folder of `#include "bias/bias.cuh"`.
    println!("cargo::metadata=include={}", env::current_dir()?.join("kernels").display());
    println!("cargo::rerun-if-changed=src/gpu/args");
    println!("cargo::rerun-if-changed=src/gpu/kernel.rs");
    for name in ["POSENC_KERNELS", "POSENC_NVRTC", "POSENC_ARCHS", "POSENC_VECTORS", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    vectors()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Documentation alone reads them: a change of a page compiles nothing anew.
    if Path::new("docs").is_dir() {
        pages::write(Path::new(""), &out.join("pages"))?;
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let wanted = wanted_architectures()?;
    let (kernels, rooms) = Kernels::choice()?;
    let text = match kernels {
        Kernels::None => String::from("&[]"),
        Kernels::Packaged => packaged(&rooms, &wanted)?,
        Kernels::Source => compiled(&rooms, &wanted, &out)?,
    };
    fs::write(out.join("images.rs"), text)?;
    Ok(())
}

/// Whether the CPU's loops are compiled for AVX-512, too.
fn vectors() -> Result<()> {
    println!("cargo::rustc-check-cfg=cfg(avx512)");
    match setting("POSENC_VECTORS")?.as_deref() {
        Some("avx2") => {}
        Some(other) => bail!("POSENC_VECTORS is {other:?}, it may be avx2 (no loops for AVX-512)"),
        // Its target features are stable since then.
        None if autocfg::AutoCfg::new().is_ok_and(|rustc| rustc.probe_rustc_version(1, 89)) => {
            println!("cargo::rustc-cfg=avx512");
        }
        None => {}
    }
    Ok(())
}

/// Compiles the kernels, and gives the list of their images as Rust.
fn compiled(rooms: &[&str], wanted: &[u32], out: &Path) -> Result<String> {
    for name in find::variables() {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvrtc = Nvrtc::find(out)?;
    let mut sources = Sources::read()?;
    for listed in kernel::kernels() {
        let there = sources.kernels.iter().any(|file| file.stem() == listed.file);
        ensure!(there, "the list of kernels names {}, there is no kernels/{}.cu", listed.entry, listed.file);
    }
    let cache = out.join("images");
    fs::create_dir_all(&cache)?;
    let every: Vec<_> = jobs(&sources, &[], &nvrtc.identity)?.iter().flat_map(Job::images).collect();
    sources.keep(rooms);
    let mut jobs = jobs(&sources, wanted, &nvrtc.identity)?;
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

    let mut manifest = nvrtc.identity.to_string();
    for name in jobs.iter().flat_map(Job::images) {
        writeln!(manifest, "{:016x} {name}", hash(&[&fs::read(cache.join(&name))?]))?;
    }
    write_whole(&cache.join(MANIFEST), manifest.as_bytes())?;
    // Images of architectures and rooms that are not wanted now stay for the next build that wants them.
    remove_stale(&cache, &every)?;
    list_of_images(&sources, &jobs, &cache)
}

/// The package's images, if they are those of its sources.
fn packaged(rooms: &[&str], wanted: &[u32]) -> Result<String> {
    println!("cargo::rerun-if-changed={PACKAGED}");
    let folder = env::current_dir()?.join(PACKAGED);
    let text =
        fs::read_to_string(folder.join(MANIFEST)).with_context(|| format!("cannot read {PACKAGED}/{MANIFEST}"))?;
    let (identity, hashes) = Identity::parse(&text).with_context(|| format!("{PACKAGED}/{MANIFEST} is damaged"))?;
    let mut sources = Sources::read()?;
    sources.keep(rooms);
    let jobs = jobs(&sources, wanted, &identity)?;
    for (job, name) in jobs.iter().flat_map(|job| job.images().into_iter().map(move |name| (job, name))) {
        let way_out = "POSENC_KERNELS=source compiles the kernels by NVRTC, and so does a clone without that folder";
        let Some(&known) = hashes.get(name.as_str()) else {
            bail!("{PACKAGED} holds no image of kernels/{} as it is now ({name}): {way_out}", job.file.name);
        };
        let bytes =
            fs::read(folder.join(&name)).with_context(|| format!("cannot read {PACKAGED}/{name}: {way_out}"))?;
        ensure!(hash(&[&bytes]) == known, "{PACKAGED}/{name} is damaged: {way_out}");
    }
    list_of_images(&sources, &jobs, &folder)
}

/// A constant expression of type `&[Images]`.
fn list_of_images(sources: &Sources, jobs: &[Job], folder: &Path) -> Result<String> {
    let include = |name: &str| format!("include_bytes!({:?})", folder.join(name));
    let mut text = String::from("{\n");
    for (i, job) in jobs.iter().enumerate() {
        writeln!(text, "const PTX_{i}: &[u8] = {};", include(&job.ptx))?;
    }
    text += "&[\n";
    for file in &sources.kernels {
        for dtype in DTYPES {
            let of_module = |(_, job): &(usize, &Job)| job.file.name == file.name && job.dtype == dtype;
            let mut images: Vec<_> = jobs
                .iter()
                .enumerate()
                .filter(of_module)
                .flat_map(|(i, job)| job.targets.iter().map(move |target| (i, target)))
                .collect();
            images.sort_by_key(|(_, target)| target.sm);
            writeln!(text, "Images {{ file: {:?}, dtype: {dtype:?}, cubins: &[", file.stem())?;
            for (_, Target { sm, cubin, .. }) in &images {
                writeln!(text, "    Image {{ sm: {sm}, packed: {}, ptx_version: None }},", include(cubin))?;
            }
            text += "], ptx: &[\n";
            for (i, Target { sm, ptx_version, .. }) in &images {
                writeln!(text, "    Image {{ sm: {sm}, packed: PTX_{i}, ptx_version: Some({ptx_version:?}) }},")?;
            }
            text += "] },\n";
        }
    }
    text += "]\n}\n";
    Ok(text)
}

/// What makes the images of every kernel for the architectures that are wanted, or for all.
fn jobs<'a>(sources: &'a Sources, wanted: &[u32], by: &Identity) -> Result<Vec<Job<'a>>> {
    let known: Vec<_> = ARCHITECTURES.into_iter().filter(|(sm, _)| by.architectures.contains(sm)).collect();
    let mut targets = known.clone();
    targets.retain(|(sm, _)| wanted.is_empty() || wanted.contains(sm));
    ensure!(!targets.is_empty(), "NVRTC {}.{} knows none of the architectures {wanted:?}", by.version.0, by.version.1);
    let mut jobs = Vec::new();
    for file in &sources.kernels {
        let headers = sources.included(file);
        let mut generations: BTreeMap<u32, Vec<(u32, &'static str)>> = BTreeMap::new();
        for &target in &targets {
            generations.entry(generation(file, &headers, target.0)).or_default().push(target);
        }
        for dtype in DTYPES {
            for (generation, targets) in &generations {
                // The lowest that NVRTC knows, wanted or not, so that the choice of architectures changes no image.
                let base = known.iter().map(|(sm, _)| *sm).find(|&sm| 10 * sm >= *generation);
                jobs.push(Job::new(file, &headers, dtype, base.context("no architecture")?, targets, by));
            }
        }
    }
    Ok(jobs)
}

/// A variable that this script reads.
fn setting(name: &str) -> Result<Option<String>> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    let text = value.into_string().map_err(|value| anyhow::anyhow!("{name} is {value:?}, which is not UTF-8"))?;
    Ok(Some(text))
}

/// POSENC_ARCHS, such as `90` or `80,90`: a build for known devices alone is that much shorter. Empty: all.
fn wanted_architectures() -> Result<Vec<u32>> {
    let Some(text) = setting("POSENC_ARCHS")? else { return Ok(Vec::new()) };
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

/// An image as it lies in the crate. Instructions are 16 bytes, which `lp` and `pb` say; preset 6 saves 9 % more and takes seven times
/// as long.
fn packed_image(image: &[u8]) -> Result<Vec<u8>> {
    let size = image.len() as u64;
    let dict_size = image.len().next_power_of_two().clamp(1 << 16, 1 << 22) as u32;
    let options = LzmaOptions { dict_size, lc: 0, lp: 4, pb: 4, ..LzmaOptions::with_preset(1) };
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(size)).context("an image's compression")?;
    writer.write_all(image)?;
    writer.finish().context("an image's compression")
}

/// A cubin (an ELF file) or PTX, if it is there and whole: a disk that was full or a machine that lost its power
/// may have cut it short. All images of a build take some tenths of a second in an optimised build script.
fn read_whole(path: &Path) -> Option<Vec<u8>> {
    let image = packed::unpacked(&fs::read(path).ok()?)?;
    [&b"\x7fELF"[..], b".version "].iter().any(|start| image.starts_with(start)).then_some(image)
}

/// FNV-1a over the length and the bytes of each part. The standard library's hash may be another in the next Rust, and a
/// package is older than the Rust that builds it.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}

/// Images of kernels as they were before the last change.
fn remove_stale(cache: &Path, current: &[String]) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != MANIFEST && !current.iter().any(|current| name == current.as_str()) {
            fs::remove_file(entry.path())?;
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

    /// Leaves out the kernels of other rooms; they may include each other's headers.
    fn keep(&mut self, rooms: &[&str]) {
        self.kernels.retain(|file| rooms.iter().any(|room| file.name.split('/').next() == Some(room)));
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
struct Target {
    sm: u32,
    ptx_version: &'static str,
    /// the cubin's file
    cubin: String,
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
    /// the file of the text that serves them all
    ptx: String,
    targets: Vec<Target>,
}

impl<'a> Job<'a> {
    /// Files are named by everything that goes into them, so that an unchanged kernel is found and not compiled again.
    fn new(
        file: &'a Source,
        headers: &[&'a Source],
        dtype: &'static str,
        base: u32,
        targets: &[(u32, &'static str)],
        by: &Identity,
    ) -> Self {
        let mut parts = vec![file.text.as_bytes()];
        parts.extend(headers.iter().flat_map(|header| [header.name.as_bytes(), header.text.as_bytes()]));
        let sources = hash(&parts);
        let stem = file.stem().replace('/', "_");
        let named = |architecture: &str, version: &str, kind: &str| {
            let made = format!("{IMAGE_FORMAT} {:?} {base} {version} {sources}", by.version);
            let options = options(dtype, architecture, by.minimal).join(" ");
            let hash = hash(&[made.as_bytes(), options.as_bytes()]);
            format!("{stem}.{dtype}.{architecture}.{hash:016x}.{kind}")
        };
        let ptx = named(&format!("compute_{base}"), "", "ptx");
        let target =
            |&(sm, ptx_version)| Target { sm, ptx_version, cubin: named(&format!("sm_{sm}"), ptx_version, "cubin") };
        let targets = targets.iter().map(target).collect();
        Self { file, headers: headers.to_vec(), dtype, base, ptx, targets }
    }

    /// Every file that it makes.
    fn images(&self) -> Vec<String> {
        std::iter::once(&self.ptx).chain(self.targets.iter().map(|target| &target.cubin)).cloned().collect()
    }

    fn run(&self, nvrtc: &Nvrtc, cache: &Path) -> Result<()> {
        // A program links the images of every device and loads those of one.
        let write = |name: &str, image: &[u8]| write_whole(&cache.join(name), &packed_image(image)?);
        let ptx = match read_whole(&cache.join(&self.ptx)) {
            Some(ptx) => String::from_utf8(ptx)?,
            None => {
                let ptx = self.compile(nvrtc)?;
                write(&self.ptx, ptx.as_bytes())?;
                ptx
            }
        };
        for target in self.targets.iter().filter(|target| read_whole(&cache.join(&target.cubin)).is_none()) {
            let cubin = self.assemble(&for_architecture(&ptx, target.sm, target.ptx_version), target.sm, nvrtc)?;
            write(&target.cubin, &cubin)?;
        }
        Ok(())
    }

    /// PTX for all of them, without the comments that choose nothing.
    fn compile(&self, nvrtc: &Nvrtc) -> Result<String> {
        let options = options(self.dtype, &format!("compute_{}", self.base), nvrtc.identity.minimal);
        let made = nvrtc.compile(self.file, &self.headers, &options)?.ptx;
        for listed in kernel::kernels().iter().filter(|listed| listed.file == self.file.stem()) {
            let entry = format!(".entry {}_{}(", listed.entry, self.dtype);
            ensure!(made.contains(&entry), "kernels/{} has no entry {}", self.file.name, listed.entry);
        }
        let lines = made.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && (!line.starts_with("//") || line.starts_with("//sm_")));
        let ptx = lines.collect::<Vec<_>>().join("\n") + "\n";
        ensure!(
            ptx.starts_with(".version ") && ptx.contains("\n.target "),
            "NVRTC made PTX without a .version or .target"
        );
        Ok(ptx)
    }

    /// A cubin of `ptx`. NVRTC takes no PTX; as inline assembly that ends its own function and begins another one, it does.
    fn assemble(&self, ptx: &str, sm: u32, nvrtc: &Nvrtc) -> Result<Vec<u8>> {
        let lines = ptx.lines().skip_while(|line| !line.starts_with(".address_size")).skip(1).collect::<Vec<_>>();
        let text = format!(
            "extern \"C\" __device__ __attribute__((used)) void first() {{ asm volatile(R\"PTX(ret;\n}}\n{}\n.func last() {{)PTX\"); \
             }}",
            lines.join("\n")
        );
        let options = options(self.dtype, &format!("sm_{sm}"), nvrtc.identity.minimal);
        let assembled = nvrtc.compile(&Source { name: self.file.name.clone(), text }, &[], &options);
        if let Ok(Compiled { cubin: Some(cubin), .. }) = assembled {
            let sections = String::from_utf8_lossy(&cubin);
            let mut entries = lines.iter().filter_map(|line| line.strip_prefix(".visible .entry "));
            if entries.all(|entry| sections.contains(&format!(".text.{}\0", entry.trim_end_matches('(')))) {
                return Ok(cubin);
            }
        }
        // An NVRTC that does otherwise compiles the source for this architecture alone.
        let own = |of: &Source| Source { name: of.name.clone(), text: choose(&of.text, sm) };
        let headers: Vec<_> = self.headers.iter().map(|header| own(header)).collect();
        let headers: Vec<_> = headers.iter().collect();
        nvrtc.compile(&own(self.file), &headers, &options)?.cubin.context("NVRTC made no cubin")
    }
}

fn options(dtype: &str, architecture: &str, minimal: bool) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        format!("-DDTYPE={dtype}"),
        "--std=c++17".into(),
        // What is written is what is computed, on every device.
        "--fmad=false".into(),
    ];
    options.extend(minimal.then(|| MINIMAL.into()));
    options
}
