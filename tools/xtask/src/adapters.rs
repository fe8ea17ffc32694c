//! The wheel for Python, built out of the C library, installed into an environment of its own and tested there; and the crate for candle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::steps::Steps;
use crate::{cargo, cuda, device, pip, run};

const PACKAGE: &str = "adapters/python";
/// Environments, one for each form of the tests.
const FOLDER: &str = "target/adapters";

#[derive(clap::Args)]
pub struct Options {
    /// Without candle, torch, transformers and clients of the driver: numpy alone, in less than a minute
    #[arg(long)]
    short: bool,
    /// Of pytest, such as `-k rope`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Options {
    pub fn in_short() -> Self {
        Self { short: true, arguments: Vec::new() }
    }
}

/// Builds the library, installs the wheel and runs its tests.
pub fn run_all(options: &Options, steps: &mut Steps) -> Result<()> {
    cuda::nvrtc()?;
    // As for generated input, so that both share what is built.
    steps.run("the library of the wheel", || {
        run(cargo().args(["build", "--package", "posenc-c", "--package", "fuzz"]))
    })?;
    let python = steps.run("an environment for the wheel", || environment(options.short))?;
    steps.run("tests of the wheel", || tests(&python, options))?;
    if options.short {
        return Ok(());
    }
    steps.run("a wheel for aarch64", || wheel_for_aarch64(&python))?;
    // A workspace of its own, on the CPU.
    steps.run("tests of the crate for candle", || {
        let mut tests = cargo();
        tests.args(["test", "--quiet", "--manifest-path", "adapters/candle/Cargo.toml"]);
        run(tests.env("POSENC_KERNELS", "none"))
    })?;
    steps.run("tests of the crate for candle on a device", || {
        device::emulator()?;
        run(Command::new("adapters/candle/tests/on-device").arg("--quiet").env("CUDA_HOME", toolkit()?))
    })
}

/// Builds a wheel of the CPU for another machine and the oldest glibc, and asks auditwheel what it is.
fn wheel_for_aarch64(python: &Path) -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let installed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    if !installed.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).lines().any(|line| line == TARGET)) {
        println!("not run: the wheel for aarch64, because Rust's target is missing: rustup target add {TARGET}");
        return Ok(());
    }
    let folder = std::path::absolute(Path::new(FOLDER).join("aarch64"))?;
    let wheels = folder.join("wheels");
    let _ = fs::remove_dir_all(&wheels);
    fs::create_dir_all(&wheels)?;
    let mut path = python.parent().context("a program has a folder")?.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // The environment has no pip, of which this is the part that builds.
    let code = format!("from setuptools import build_meta; build_meta.build_wheel({:?})", wheels.display().to_string());
    let mut build = Command::new(python);
    build.args(["-c", &code]).current_dir(PACKAGE).env("PATH", path).env("POSENC_KERNELS", "none");
    build.env("CARGO_TARGET_DIR", folder.join("target")).env("CARGO_BUILD_TARGET", TARGET).env("POSENC_GLIBC", "2.17");
    run(build.env_remove("POSENC_LIBRARY").stdout(std::process::Stdio::null()))?;
    let wheel = fs::read_dir(&wheels)?.next().context("pip built no wheel")??.path();
    let shown = Command::new(python).args(["-m", "auditwheel", "show"]).arg(&wheel).output()?;
    let said = String::from_utf8_lossy(&shown.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let tag = "manylinux_2_17_aarch64";
    ensure!(wheel.to_string_lossy().contains(tag), "{} is not tagged {tag}", wheel.display());
    ensure!(said.contains(&format!("consistent with the following platform tag: \"{tag}\"")), "auditwheel says {said}");
    Ok(())
}

/// nvcc and its headers, of Python packages, in the folders of a toolkit.
fn toolkit() -> Result<PathBuf> {
    let wanted = fs::read_to_string("adapters/candle/tests/requirements.txt")?;
    let folder = std::path::absolute("target/candle-cuda/nvcc")?;
    let list = folder.join("requirements.txt");
    if !fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        pip::fetch(&folder, &wanted, "nvcc")?;
        fs::write(&list, &wanted)?;
    }
    let toolkit = folder.join("nvidia/cu13");
    ensure!(toolkit.join("bin/nvcc").is_file(), "{} holds no bin/nvcc", toolkit.display());
    Ok(toolkit)
}

/// An interpreter with what the tests need, and the wheel.
fn environment(short: bool) -> Result<PathBuf> {
    let folder = std::path::absolute(Path::new(FOLDER).join(if short { "short" } else { "all" }))?;
    let python = folder.join("bin/python3");
    let list = folder.join("requirements.txt");
    let [hashed, others] = ["requirements.txt", "requirements-all.txt"]
        .map(|name| fs::read_to_string(Path::new(PACKAGE).join("tests").join(name)));
    let (hashed, others) = (hashed?, others?);
    let wanted = if short { hashed.clone() } else { format!("{hashed}{others}") };
    if !fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        let _ = fs::remove_dir_all(&folder);
        run(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&folder))?;
        let mut ask = Command::new(&python);
        let output = ask.args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')"]).output()?;
        ensure!(output.status.success(), "{} does not say where packages are", python.display());
        pip::fetch(Path::new(&String::from_utf8(output.stdout)?), &hashed, "what the wheel's tests need")?;
        if !short {
            // Their own dependencies are many, and not all for every Python.
            let file = folder.join("others.txt");
            fs::write(&file, &others)?;
            run(of_pip(&python).args(["install", "--quiet", "--requirement"]).arg(file))?;
        }
        fs::write(&list, &wanted)?;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let library = std::path::absolute(target.join("debug/libposenc_c.so"))?;
    ensure!(library.is_file(), "{} is not there", library.display());
    let mut install = of_pip(&python);
    install.args(["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]);
    run(install.arg(PACKAGE).env("POSENC_LIBRARY", library))?;
    Ok(python)
}

/// The machine's pip, for an environment without one.
fn of_pip(python: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(python);
    command
}

/// Runs them from their own folder, so that the package is the installed one.
fn tests(python: &Path, options: &Options) -> Result<()> {
    let pytest = |what: &str| {
        let mut command = Command::new(python);
        command.args(["-B", "-m", "pytest", "-p", "no:cacheprovider", what]).args(&options.arguments);
        command.current_dir(Path::new(PACKAGE).join("tests")).env_remove("POSENC_LIBRARY").env_remove("PYTHONPATH");
        command
    };
    if options.short {
        return run(&mut pytest("."));
    }
    run(Command::new(python).args(["-m", "mypy"]).current_dir(PACKAGE)).context("types")?;
    // What is not installed is then a failure, not a test that is left out. PyTorch must not find the emulator, which has no cuBLAS.
    run(pytest(".").env("POSENC_TEST_ALL", "1"))?;
    let mut on_device = pytest("test_device.py");
    device::Device::find(false)?.prepare(&mut on_device)?;
    run(on_device.env("POSENC_TEST_DEVICE", "1").env("EMULATOR_STRICT", "all"))
}
