//! Runs a program on the emulator, without a word of its own where nothing is wrong.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The shared library as cargo names it, beside this program or in `deps`.
const LIBRARY: &str = concat!("lib", env!("CARGO_CRATE_NAME"), ".so");
/// The folder with the driver's names, beside the library.
const FOLDER: &str = concat!(env!("CARGO_CRATE_NAME"), "-driver");

#[derive(Parser)]
#[command(version, about = "A CUDA driver for the CPU that finds races and wrong accesses")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs a program with the emulator as its CUDA driver; its exit status is the program's
    Run(Run),
    /// Prints the folder for LD_LIBRARY_PATH that holds the emulator as libcuda.so.1
    Folder,
}

#[derive(Args)]
struct Run {
    /// Claimed compute capability
    #[arg(long, value_name = "MAJOR.MINOR", value_parser = capability)]
    cc: Option<String>,
    /// What is checked: everything is the default
    #[arg(long)]
    strict: Option<Strict>,
    /// Claimed multiprocessors
    #[arg(long)]
    sms: Option<u32>,
    /// Devices, up to 16
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=16))]
    devices: Option<u32>,
    /// Claimed bytes of a device, such as 80GiB or 512MiB
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// Host threads that run the blocks of a launch
    #[arg(long)]
    threads: Option<u32>,
    /// Instructions of one warp after which it is taken to be endless
    #[arg(long)]
    budget: Option<u64>,
    /// Lets a call of the driver fail: CALL:N:CODE or CALL:N:CODE:sticky; several times for several calls
    #[arg(long, value_name = "FAILURE", value_parser = failure)]
    fail: Vec<String>,
    /// Counts what each kernel did, and prints a table to stderr at the end
    #[arg(long)]
    counters: bool,
    /// Counts distinct bytes, too
    #[arg(long, requires = "counters")]
    unique: bool,
    /// Prints no faults and no refusals
    #[arg(long)]
    quiet: bool,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Strict {
    /// Races, uninitialised reads, bounds, alignment, barriers
    All,
    /// Bounds and alignment
    Bounds,
    /// What a device itself notices
    None,
}

impl Run {
    /// The settings as the emulator reads them.
    fn environment(&self) -> Vec<(&'static str, String)> {
        fn set<T: ToString>(name: &'static str, value: Option<T>) -> Option<(&'static str, String)> {
            value.map(|value| (name, value.to_string()))
        }
        let strict = self.strict.map(|strict| match strict {
            Strict::All => "all",
            Strict::Bounds => "bounds",
            Strict::None => "none",
        });
        [
            set("EMULATOR_CC", self.cc.clone()),
            set("EMULATOR_STRICT", strict),
            set("EMULATOR_SMS", self.sms),
            set("EMULATOR_DEVICES", self.devices),
            set("EMULATOR_MEMORY", self.memory),
            set("EMULATOR_THREADS", self.threads),
            set("EMULATOR_BUDGET", self.budget),
            set("EMULATOR_FAIL", (!self.fail.is_empty()).then(|| self.fail.join(","))),
            set("EMULATOR_COUNTERS", self.counters.then_some(1)),
            set("EMULATOR_UNIQUE", self.unique.then_some(1)),
            set("EMULATOR_VERBOSE", self.quiet.then_some(0)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn capability(text: &str) -> Result<String, String> {
    match text.split_once('.').map(|(major, minor)| (major.parse::<u32>(), minor.parse::<u32>())) {
        Some((Ok(major), Ok(minor))) if major < 100 && minor < 10 => Ok(text.into()),
        _ => Err("a compute capability is like 9.0".into()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("a size is a number of bytes, KiB, MiB or GiB".into()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "a size begins with a number")?;
    number.checked_mul(unit).ok_or_else(|| "that is more than 64 bits can count".into())
}

fn failure(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [call, nth, code] | [call, nth, code, "sticky"]
            if !call.is_empty() && !code.is_empty() && nth.parse::<u64>().is_ok_and(|nth| nth > 0) =>
        {
            Ok(text.into())
        }
        _ => Err("a failure is like cuMemAlloc:3:CUDA_ERROR_OUT_OF_MEMORY or cuMemAlloc:3:2:sticky".into()),
    }
}

/// The folder that holds the emulator under both names of the driver.
fn folder() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program does not find itself: {error}"))?;
    let beside = own.parent().ok_or("this program lies in no folder")?;
    // what cargo built last is in `deps`
    let places = [beside.join("deps"), beside.to_path_buf(), beside.join("../lib")];
    let place = places.iter().find(|place| place.join(LIBRARY).exists()).ok_or_else(|| {
        format!("{LIBRARY} is not beside {}: cargo build makes both, cargo install this program alone", own.display())
    })?;
    let folder = place.join(FOLDER);
    let fail = |error: std::io::Error| format!("cannot write {}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(fail)?;
    for name in ["libcuda.so.1", "libcuda.so"] {
        link(&Path::new("..").join(LIBRARY), &folder.join(name)).map_err(fail)?;
    }
    Ok(folder)
}

/// A link that is replaced at once, so that a program that starts meanwhile finds one.
fn link(to: &Path, at: &Path) -> std::io::Result<()> {
    if std::fs::read_link(at).is_ok_and(|there| there == to) {
        return Ok(());
    }
    let partial = at.with_extension(std::process::id().to_string());
    std::os::unix::fs::symlink(to, &partial)?;
    std::fs::rename(partial, at)
}

/// Becomes the program; returns only where that is impossible.
fn run(run: &Run) -> Result<ExitCode, String> {
    let folder = folder()?;
    let others = std::env::var_os("LD_LIBRARY_PATH").filter(|others| !others.is_empty());
    let mut path = folder.clone().into_os_string();
    if let Some(others) = others {
        path.push(":");
        path.push(others);
    }
    let (program, arguments) = run.program.split_first().ok_or("there is no program")?;
    let error = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", path).envs(run.environment()).exec();
    eprintln!("warpcheck: cannot run {}: {error}", Path::new(program).display());
    // as a shell says it
    Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Run(options) => run(&options),
        Task::Folder => folder().map(|folder| {
            println!("{}", folder.display());
            ExitCode::SUCCESS
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("warpcheck: {error}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_settings() {
        let line = "warpcheck run --cc 8.6 --strict bounds --sms 4 --memory 2GiB --fail cuMemAlloc:1:2 --fail \
                    cuMemFree:2:1:sticky --counters --unique --quiet -- program --cc 7.0";
        let Task::Run(run) = Cli::try_parse_from(line.split_whitespace()).expect("flags").task else {
            panic!("another task")
        };
        let settings = run.environment();
        let want = [
            ("EMULATOR_CC", "8.6"),
            ("EMULATOR_STRICT", "bounds"),
            ("EMULATOR_SMS", "4"),
            ("EMULATOR_MEMORY", "2147483648"),
            ("EMULATOR_FAIL", "cuMemAlloc:1:2,cuMemFree:2:1:sticky"),
            ("EMULATOR_COUNTERS", "1"),
            ("EMULATOR_UNIQUE", "1"),
            ("EMULATOR_VERBOSE", "0"),
        ];
        assert_eq!(settings, want.map(|(name, value)| (name, value.to_string())));
        assert_eq!(run.program, ["program", "--cc", "7.0"]);
    }

    #[test]
    fn what_the_emulator_would_not_understand_is_refused() {
        for flags in ["--cc 9", "--cc 9.x", "--memory 1TB", "--memory x", "--memory 99999999999GiB", "--devices 17"] {
            assert!(Cli::try_parse_from(format!("warpcheck run {flags} -- x").split_whitespace()).is_err(), "{flags}");
        }
        for failure in ["cuMemAlloc", "cuMemAlloc:0:2", "cuMemAlloc:x:2", ":1:2", "cuMemAlloc:1:2:often"] {
            assert!(super::failure(failure).is_err(), "{failure}");
        }
        assert!(Cli::try_parse_from(["warpcheck", "run"]).is_err());
    }
}
