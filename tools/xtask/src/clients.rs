//! Programs that nobody here wrote, on the emulator: the examples of cudarc, and from Python cuda.core and numba-cuda.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::steps::Steps;
use crate::{cuda, device, pip, run};

/// Scripts for clients in Python, and what they need.
const SCRIPTS: &str = "tools/emulator/tests/clients";
/// What is built and fetched.
const FOLDER: &str = "target/clients";
/// Examples of libraries beside the driver, which the emulator is not.
const OTHER_LIBRARIES: [&str; 2] = ["08-cupti", "cufile-copy"];

/// Runs all of them. Where Python or its packages are missing its clients are left out with a sentence, unless `all` are
/// demanded.
pub fn run_all(all: bool, steps: &mut Steps) -> Result<()> {
    let nvrtc = cuda::nvrtc()?;
    let emulator = device::emulator()?;
    steps.run("cudarc's examples on the emulator", || cudarc(&nvrtc, &emulator))?;
    let python = match interpreter() {
        Ok(python) => python,
        Err(error) if !all => {
            println!("not run: the clients in Python, because their packages cannot be fetched: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    steps.run("clients in Python on the emulator", || scripts(&python, &emulator))
}

/// Builds cudarc's examples out of its package in cargo's registry, and runs each.
fn cudarc(nvrtc: &Path, emulator: &Path) -> Result<()> {
    let metadata = Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--locked"]).output()?;
    ensure!(metadata.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&metadata.stderr));
    // One JSON object, its paths without escapes on this side of Windows.
    let manifest = String::from_utf8(metadata.stdout)?;
    let manifest = manifest
        .split('"')
        .find(|text| text.contains("/cudarc-") && text.ends_with("/Cargo.toml"))
        .context("cargo metadata does not name cudarc")?;
    let folder = Path::new(manifest).parent().context("a manifest has a folder")?;
    let mut examples = Vec::new();
    for entry in fs::read_dir(folder.join("examples"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && !OTHER_LIBRARIES.contains(&name.as_str()) {
            examples.push(name);
        }
    }
    examples.sort();
    ensure!(!examples.is_empty(), "{} holds no examples", folder.display());
    let target = std::path::absolute(Path::new(FOLDER).join("cudarc"))?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--manifest-path", manifest, "--no-default-features"]);
    build.args(["--features", "std,driver,nvrtc,dynamic-loading,cuda-12090"]).arg("--target-dir").arg(&target);
    // The workspace's choice is another, and cudarc takes one version alone.
    build.env("CUDARC_CUDA_VERSION", "12090");
    run(build.args(examples.iter().flat_map(|name| ["--example", name])).env_remove("CARGO_TARGET_DIR"))?;
    for name in &examples {
        let mut example = Command::new(target.join("debug/examples").join(name));
        example.current_dir(folder).env("LD_LIBRARY_PATH", search_path(emulator, nvrtc)?);
        expect(example.env("EMULATOR_STRICT", "all"), name)?;
    }
    println!("{} examples of {} ran: {}", examples.len(), name(folder), examples.join(", "));
    Ok(())
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the loader finds the emulator and NVRTC.
fn search_path(emulator: &Path, nvrtc: &Path) -> Result<OsString> {
    let nvrtc = if nvrtc.is_file() { nvrtc.parent().context("a file has a folder")? } else { nvrtc };
    Ok(std::env::join_paths([emulator, nvrtc])?)
}

/// Runs a program that must succeed without a word of the emulator.
fn expect(command: &mut Command, name: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    let complains = errors.lines().any(|line| line.starts_with("warpcheck: "));
    if !output.status.success() || complains {
        bail!("{name}: {}\n{said}{errors}", output.status);
    }
    Ok(())
}

/// An interpreter with the packages, fetched once for each version of Python and of their list. An environment of its own,
/// because NVIDIA's packages look for one another's libraries in the folders of the interpreter alone.
fn interpreter() -> Result<PathBuf> {
    let folder = std::path::absolute(Path::new(FOLDER).join("python"))?;
    let python = folder.join("bin/python3");
    let mut venv = Command::new("python3");
    let output = venv.args(["-m", "venv", "--without-pip"]).arg(&folder).output().context("cannot start python3")?;
    ensure!(output.status.success(), "python3 makes no environment: {}", String::from_utf8_lossy(&output.stderr));
    let mut ask = Command::new(&python);
    let output = ask.args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')"]).output()?;
    ensure!(output.status.success(), "{} does not say where packages are", python.display());
    let packages = PathBuf::from(String::from_utf8(output.stdout)?);
    let wanted = fs::read_to_string(Path::new(SCRIPTS).join("requirements.txt"))?;
    let list = packages.join("requirements.txt");
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        return Ok(python);
    }
    pip::fetch(&packages, &wanted, "cuda.core and numba-cuda")?;
    fs::write(list, wanted)?;
    Ok(python)
}

/// Runs every script.
fn scripts(python: &Path, emulator: &Path) -> Result<()> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(SCRIPTS)? {
        scripts.push(entry?.path());
    }
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    scripts.sort();
    ensure!(!scripts.is_empty(), "{SCRIPTS} holds no scripts");
    for script in &scripts {
        // Warnings are about grids that would not fill a real device.
        let mut run = Command::new(python);
        run.args(["-B", "-W", "ignore"]).arg(script).env("LD_LIBRARY_PATH", emulator).env("EMULATOR_STRICT", "all");
        expect(&mut run, &name(script))?;
        println!("{} ran", name(script));
    }
    Ok(())
}
