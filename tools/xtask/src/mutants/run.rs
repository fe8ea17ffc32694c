//! Running one mutant: a kernel's in a built test program, through the emulator's `EMULATOR_IMAGES`; the host's in a build of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::list::{Mutant, Tests};
use crate::{cargo, cuda, device};

const FOLDER: &str = "target/mutants";
/// Instructions after which a warp of a mutant is taken to be endless.
const BUDGET: &str = "30000000";
/// Only this architecture's images are compiled, and run.
const ARCHITECTURE: &str = "90";

#[path = "../../../../src/gpu/packed.rs"]
mod packed;
#[path = "../../../../src/gpu/ptx.rs"]
mod ptx;

/// Element types of the build, and the one that mutants are tried in first.
const TYPES: [&str; 3] = ["f32", "f16", "bf16"];
const FIRST_TYPE: &str = "f32";
/// What the time of the unchanged tests is multiplied with before a mutant is given up, and the least.
const PATIENCE: u32 = 6;
const LEAST_LIMIT: Duration = Duration::from_secs(90);

/// What became of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Killed,
    TimedOut,
    Survived,
    /// the compiler makes the same code of it
    SameCode,
    DoesNotCompile,
}

impl Outcome {
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Killed, "killed"),
        (Self::TimedOut, "timed out"),
        (Self::Survived, "survived"),
        (Self::SameCode, "same code"),
        (Self::DoesNotCompile, "does not compile"),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(outcome, _)| *outcome == self).map_or("", |(_, name)| name)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, other)| *other == name).map(|(outcome, _)| outcome)
    }
}

/// The test programs of a build, by name, and its build script.
struct Programs {
    tests: BTreeMap<String, PathBuf>,
    script: PathBuf,
    /// the script's output
    out: PathBuf,
}

impl Programs {
    /// Copies everything that runs to `folder`, so that the workspace may be built again meanwhile.
    fn keep(&mut self, folder: &Path) -> Result<()> {
        let folder = std::path::absolute(folder)?;
        fs::create_dir_all(&folder)?;
        for (name, path) in
            self.tests.iter_mut().map(|(name, path)| (name.as_str(), path)).chain([("build", &mut self.script)])
        {
            let to = folder.join(name);
            let _ = fs::remove_file(&to);
            fs::copy(&*path, &to).with_context(|| path.display().to_string())?;
            *path = to;
        }
        Ok(())
    }
}

/// Builds test programs of posenc in the workspace `root`; none if the compiler refuses.
fn build(cargo: &mut Command, root: &Path, programs: &[&str], is_quiet: bool) -> Result<Option<Programs>> {
    cargo.args(["test", "--quiet", "--no-run", "--package", "posenc", "--message-format=json"]).current_dir(root);
    for &program in programs {
        if program == "lib" {
            cargo.arg("--lib")
        } else {
            cargo.args(["--test", program])
        };
    }
    cargo.env("POSENC_ARCHS", ARCHITECTURE).stderr(if is_quiet { Stdio::null() } else { Stdio::inherit() });
    let output = cargo.output().with_context(|| format!("cannot start {cargo:?}"))?;
    if !output.status.success() {
        return Ok(None);
    }
    let manifest = root.join("Cargo.toml");
    let mut built = Programs { tests: BTreeMap::new(), script: PathBuf::new(), out: PathBuf::new() };
    for line in String::from_utf8(output.stdout)?.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        if text(&message["reason"]) == "build-script-executed" {
            let out = PathBuf::from(text(&message["out_dir"]));
            // target/debug/build/posenc-HASH/out
            let folder = out.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            if folder.rsplit_once('-').is_some_and(|(package, _)| package == "posenc") {
                built.out = out;
            }
        } else if Path::new(&text(&message["manifest_path"])) != manifest {
            // of another package
        } else if message["target"]["kind"][0] == "custom-build" {
            built.script = text(&message["filenames"][0]).into();
        } else if let Some(executable) = message["executable"].as_str() {
            let is_test = message["target"]["kind"][0] == "test";
            let name = if is_test { text(&message["target"]["name"]) } else { "lib".into() };
            built.tests.insert(name, executable.into());
        }
    }
    Ok(Some(built))
}

// ---------------------------------------------------------------------------------------------------------------- tests

/// How tests ended.
enum End {
    Passed,
    /// the first test that failed, or how the program ended
    Failed(String),
    TimedOut,
}

/// A test program on the emulator, one test after another.
struct Runner {
    /// folder of the emulator, before the loader's other folders
    libraries: OsString,
}

impl Runner {
    fn new() -> Result<Self> {
        let mut command = Command::new("");
        device::Device::Emulator(device::emulator()?).prepare(&mut command)?;
        let libraries = command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH").and_then(|(_, value)| value);
        Ok(Self { libraries: libraries.context("the emulator needs a folder")?.into() })
    }

    /// Runs the tests that are named like `filter`, of those that need a device or of all, up to the first that fails.
    fn run(
        &self,
        program: &Path,
        filter: &str,
        on_device: bool,
        images: Option<&Path>,
        limit: Duration,
    ) -> Result<End> {
        let mut command = Command::new(program);
        command.args([if on_device { "--ignored" } else { "--include-ignored" }, "--test-threads=1", filter]);
        command.env("LD_LIBRARY_PATH", &self.libraries).env("EMULATOR_CC", "9.0").env("EMULATOR_STRICT", "all");
        command.env("EMULATOR_BUDGET", BUDGET).env("EMULATOR_THREADS", "1").env("EMULATOR_VERBOSE", "0");
        command.env("RAYON_NUM_THREADS", "1");
        if let Some(images) = images {
            command.env("EMULATOR_IMAGES", images);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let end = Self::watch(&mut child, limit);
        // Nothing is left running, whatever the answer.
        let _ = child.kill();
        let status = child.wait()?;
        Ok(match end? {
            Some(end) => end,
            None if status.success() => End::Passed,
            None => End::Failed(status.to_string()),
        })
    }

    /// Reads what the program says until a test fails, the time is over, or it ends.
    fn watch(child: &mut Child, limit: Duration) -> Result<Option<End>> {
        let output = child.stdout.take().context("the program has no output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)).ok();
        });
        let deadline = Instant::now() + limit;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
                        return Ok(Some(End::Failed(name.into())));
                    }
                    ensure!(line != "running 0 tests", "no test has this name");
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Some(End::TimedOut)),
                Err(RecvTimeoutError::Disconnected) => {
                    // The program has closed its output: it ends now.
                    child.wait()?;
                    return Ok(None);
                }
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- kernels

/// Everything that mutants of kernels share: one build.
pub struct Kernels {
    nvrtc: PathBuf,
    runner: Runner,
    programs: Programs,
    /// PTX of the unchanged kernels: `embed_grid.bf16` and its text, and all names of files of images
    originals: BTreeMap<String, String>,
    images: Vec<PathBuf>,
    /// what a mutant's tests may take, once they have passed without it
    limits: BTreeMap<Tests, OnceLock<Result<Duration, String>>>,
}

impl Kernels {
    /// Builds the tests that these mutants need.
    pub fn new(mutants: &[&Mutant]) -> Result<Self> {
        let mut wanted: Vec<&Tests> = mutants.iter().flat_map(|mutant| &mutant.tests).collect();
        wanted.sort();
        wanted.dedup();
        let mut names: Vec<&str> = wanted.iter().map(|tests| tests.program.as_str()).collect();
        names.dedup();
        let nvrtc = cuda::nvrtc()?;
        let runner = Runner::new()?;
        let root = std::env::current_dir()?;
        let mut programs = build(&mut cargo(), &root, &names, false)?.context("the tests do not build")?;
        programs.keep(&Path::new(FOLDER).join("programs"))?;
        let mut kernels =
            Self { nvrtc, runner, programs, originals: BTreeMap::new(), images: Vec::new(), limits: BTreeMap::new() };
        let kept = std::path::absolute(Path::new(FOLDER).join("images"))?;
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir_all(&kept)?;
        for entry in fs::read_dir(kernels.programs.out.join("images"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains(".compute_") || name.contains(&format!(".sm_{ARCHITECTURE}.")) {
                let kept = kept.join(&name);
                fs::copy(&path, &kept)?;
                kernels.images.push(kept);
            }
        }
        kernels.originals = texts(&kernels.images)?.into_iter().map(|(module, (_, text))| (module, text)).collect();
        kernels.limits = wanted.into_iter().map(|tests| (tests.clone(), OnceLock::new())).collect();
        Ok(kernels)
    }

    /// Runs tests unchanged, once: they must pass, and their time is what a mutant's is compared with.
    fn limit(&self, tests: &Tests) -> Result<Duration> {
        let limit = self.limits.get(tests).context("tests of no mutant")?.get_or_init(|| {
            let start = Instant::now();
            let program = self.program(tests).map_err(|error| error.to_string())?;
            match self.runner.run(program, &tests.filter, true, None, Duration::from_secs(3600)) {
                Ok(End::Passed) => Ok((start.elapsed() * PATIENCE).max(LEAST_LIMIT)),
                Ok(End::Failed(what)) => Err(format!("{what} fails without a mutant")),
                Ok(End::TimedOut) => Err("takes more than an hour without a mutant".into()),
                Err(error) => Err(error.to_string()),
            }
        });
        limit.clone().map_err(|why| anyhow::anyhow!("{} {}: {why}", tests.program, tests.filter))
    }

    fn program(&self, tests: &Tests) -> Result<&Path> {
        let path = self.programs.tests.get(&tests.program);
        Ok(path.with_context(|| format!("there is no test program {}", tests.program))?)
    }

    /// Runs one mutant in the folder of worker `worker`: in kernels of f32 alone, which compile in a third of the time and whose
    /// tests see most; and of all element types if it survives that.
    pub fn run(&self, mutant: &Mutant, worker: usize) -> Result<(Outcome, String)> {
        let folder = std::path::absolute(Path::new(FOLDER).join(format!("worker-{worker}")))?;
        let mut changed = false;
        for only in [Some(FIRST_TYPE), None] {
            match self.compile(mutant, &folder, only)? {
                Compiled::Refused(why) => return Ok((Outcome::DoesNotCompile, why)),
                Compiled::Same => continue,
                Compiled::Changed => changed = true,
            }
            for tests in &mutant.tests {
                let limit = self.limit(tests)?;
                match self.runner.run(self.program(tests)?, &tests.filter, true, Some(&folder.join("ptx")), limit)? {
                    End::Passed => {}
                    End::Failed(what) => return Ok((Outcome::Killed, format!("{} {what}", tests.program))),
                    End::TimedOut => return Ok((Outcome::TimedOut, format!("{} {}", tests.program, tests.filter))),
                }
            }
        }
        Ok((if changed { Outcome::Survived } else { Outcome::SameCode }, String::new()))
    }

    /// Runs the crate's own build script on a copy of the kernels, and leaves the PTX that changed in `folder/ptx`, for the
    /// emulator to load.
    fn compile(&self, mutant: &Mutant, folder: &Path, only: Option<&str>) -> Result<Compiled> {
        let (out, ptx) = (folder.join("out"), folder.join("ptx"));
        let mut sources = sources(Path::new("kernels"))?;
        let path = Path::new(&mutant.path);
        let text = sources.get_mut(path).with_context(|| format!("there is no {}", mutant.path))?;
        *text = mutant.apply(text)?;
        if let Some(only) = only {
            for path in including(&sources, path) {
                let stubs = self.stubs(&path, only);
                sources.entry(path).and_modify(|text| *text = stubs.replace("BODY", text));
            }
        }
        for (path, text) in &sources {
            let to = folder.join(path);
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::write(to, text)?;
        }
        // Unchanged kernels are found and not compiled.
        fs::create_dir_all(out.join("images"))?;
        for image in &self.images {
            let link = out.join("images").join(image.file_name().unwrap_or_default());
            if !link.exists() {
                fs::hard_link(image, &link).or_else(|_| fs::copy(image, &link).map(drop))?;
            }
        }
        let mut script = Command::new(&self.programs.script);
        script.current_dir(folder).env("POSENC_NVRTC", &self.nvrtc).env("POSENC_ARCHS", ARCHITECTURE);
        let output = script.env("OUT_DIR", &out).env("CARGO_FEATURE_CUDA", "1").output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let why = text.lines().find(|line| line.contains("error")).or(text.lines().next()).unwrap_or_default();
            return Ok(Compiled::Refused(why.trim().into()));
        }
        let _ = fs::remove_dir_all(&ptx);
        fs::create_dir_all(&ptx)?;
        let mut compiled = Compiled::Same;
        let made: Vec<PathBuf> =
            fs::read_dir(out.join("images"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let is_old = |path: &PathBuf| self.images.iter().any(|image| image.file_name() == path.file_name());
        let new: Vec<PathBuf> = made.into_iter().filter(|path| !is_old(path)).collect();
        for (module, (_, text)) in texts(&new)? {
            let is_stub = only.is_some_and(|only| module.rsplit_once('.').is_none_or(|(_, of)| of != only));
            if is_stub || self.originals.get(&module) == Some(&text) {
                continue;
            }
            compiled = Compiled::Changed;
            let entry = entries(&text).next().context("a kernel has an entry")?;
            fs::write(ptx.join(entry).with_extension("ptx"), &text)?;
        }
        Ok(compiled)
    }

    /// What a kernel file becomes so that the types but `only` have empty entries alone: BODY stands for the file.
    fn stubs(&self, path: &Path, only: &str) -> String {
        let stem =
            path.with_extension("").iter().skip(1).map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("_");
        let mut text = String::new();
        for (i, of) in TYPES.into_iter().enumerate() {
            text += &format!("#define {of} {}\n", i + 1);
        }
        let end = TYPES.map(|of| format!("#undef {of}\n")).concat();
        for (i, of) in TYPES.into_iter().enumerate().filter(|(_, of)| *of != only) {
            let original = self.originals.get(&format!("{stem}.{of}")).map_or("", String::as_str);
            let empty: String =
                entries(original).map(|entry| format!("extern \"C\" __global__ void {entry}() {{}}\n")).collect();
            text += &format!("#if DTYPE == {}\n{end}{empty}#else\n", i + 1);
        }
        text + &end + "BODY" + &"\n#endif".repeat(TYPES.len() - 1) + "\n"
    }
}

/// The PTX of each module, `embed_grid.bf16`, as it is loaded at 9.0: of several texts the newest that the device takes.
fn texts(images: &[PathBuf]) -> Result<BTreeMap<String, (u32, String)>> {
    let target: u32 = ARCHITECTURE.parse()?;
    let version = ptx::ARCHITECTURES.into_iter().find(|(sm, _)| *sm == target).context("9.0 has images")?.1;
    let mut texts: BTreeMap<String, (u32, String)> = BTreeMap::new();
    for path in images {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((module, rest)) = name.split_once(".compute_").filter(|_| name.ends_with(".ptx")) else { continue };
        let from: u32 = rest.split('.').next().unwrap_or_default().parse().with_context(|| name.clone())?;
        if from <= target && texts.get(module).is_none_or(|(other, _)| *other < from) {
            texts.insert(module.into(), (from, ptx::for_architecture(&unpacked(path)?, target, version)));
        }
    }
    Ok(texts)
}

/// What the build script made of a mutant.
enum Compiled {
    Refused(String),
    Same,
    Changed,
}

/// Names of a PTX text's entries.
fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry ").skip(1).filter_map(|rest| rest.split('(').next()).map(str::trim)
}

/// Kernel files that are `path`, or include it through any number of headers.
fn including(sources: &BTreeMap<PathBuf, String>, path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_path_buf()];
    let mut i = 0;
    while i < found.len() {
        let name = found[i].iter().skip(1).map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        for (other, text) in sources {
            if text.contains(&format!("#include \"{name}\"")) && !found.contains(other) {
                found.push(other.clone());
            }
        }
        i += 1;
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    found
}

/// The text of an image of the build, which keeps them packed.
fn unpacked(path: &Path) -> Result<String> {
    let Some(bytes) = packed::unpacked(&fs::read(path)?) else { bail!("{} is damaged", path.display()) };
    Ok(String::from_utf8(bytes)?)
}

/// Every kernel file below `folder` with its text.
fn sources(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    crate::check::kernels(folder)?.into_iter().map(|path| Ok((path.clone(), fs::read_to_string(path)?))).collect()
}

// ----------------------------------------------------------------------------------------------------------------- host

/// A copy of the workspace with a target folder of its own, for mutants that are built.
pub struct Host {
    nvrtc: PathBuf,
    runner: Runner,
    root: PathBuf,
}

impl Host {
    pub fn new() -> Result<Self> {
        let host = Self {
            nvrtc: cuda::nvrtc()?,
            runner: Runner::new()?,
            root: std::path::absolute(Path::new(FOLDER).join("workspace"))?,
        };
        let list =
            Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output()?;
        ensure!(list.status.success(), "git does not list the files of the workspace");
        for path in String::from_utf8(list.stdout)?.split_terminator('\0') {
            let Ok(bytes) = fs::read(path) else { continue };
            let to = host.root.join(path);
            // A file that is the same keeps its time, so that cargo builds what changed alone.
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::write(to, bytes)?;
        }
        Ok(host)
    }

    fn build(&self, mutant: &Mutant) -> Result<Option<Programs>> {
        let mut programs: Vec<&str> = mutant.tests.iter().map(|tests| tests.program.as_str()).collect();
        programs.dedup();
        let mut cargo = cargo();
        cargo.env("POSENC_NVRTC", &self.nvrtc);
        cargo.env("CARGO_TARGET_DIR", std::path::absolute(Path::new(FOLDER).join("target"))?);
        // A build for each mutant: what counts is the compiler's time.
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        build(&mut cargo, &self.root, &programs, true)
    }

    pub fn run(&self, mutant: &Mutant) -> Result<(Outcome, String)> {
        let (path, text) = (self.root.join(&mutant.path), fs::read_to_string(&mutant.path)?);
        fs::write(&path, mutant.apply(&text)?)?;
        let result = self.run_changed(mutant);
        fs::write(&path, text)?;
        result
    }

    fn run_changed(&self, mutant: &Mutant) -> Result<(Outcome, String)> {
        let Some(programs) = self.build(mutant)? else { return Ok((Outcome::DoesNotCompile, String::new())) };
        for tests in &mutant.tests {
            let program = programs.tests.get(&tests.program);
            let program = program.with_context(|| format!("there is no test program {}", tests.program))?;
            match self.runner.run(program, &tests.filter, false, None, Duration::from_secs(900))? {
                End::Passed => {}
                End::Failed(what) => return Ok((Outcome::Killed, format!("{} {what}", tests.program))),
                End::TimedOut => return Ok((Outcome::TimedOut, format!("{} {}", tests.program, tests.filter))),
            }
        }
        Ok((Outcome::Survived, String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_included_through_headers() {
        let texts = [
            ("kernels/a/one.cu", "#include \"a/x.cuh\"\n"),
            ("kernels/a/two.cu", "#include \"y.cuh\"\n"),
            ("kernels/a/x.cuh", "#include \"y.cuh\"\n"),
            ("kernels/b.cu", "#include \"a/x.cuh2\"\n"),
            ("kernels/y.cuh", ""),
        ];
        let sources = texts.map(|(path, text)| (path.into(), text.to_string())).into();
        let of = |path: &str| including(&sources, Path::new(path));
        assert_eq!(of("kernels/y.cuh"), [PathBuf::from("kernels/a/two.cu"), "kernels/a/one.cu".into()]);
        assert_eq!(of("kernels/a/x.cuh"), [PathBuf::from("kernels/a/one.cu")]);
        assert_eq!(of("kernels/b.cu"), [PathBuf::from("kernels/b.cu")]);
    }
}
