//! `cargo xtask`: everything around posenc that is not the crate.

mod bench;
mod bundle;
mod cuda;
mod device;
mod peers;
mod plot;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Fetches, tests, shows and packs posenc")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Rotates a model's queries and keys on this machine and shows how exact that is
    Demo {
        /// A model's config.json; without it, the values of Llama-3.1-8B
        config: Option<PathBuf>,
        /// Tokens to rotate, at positions spread from 0 to 131071
        #[arg(long, default_value_t = 128)]
        tokens: usize,
    },
    /// Runs every test: on a GPU if there is one, else on the emulator
    Test {
        /// Use the emulator even where there is a GPU
        #[arg(long)]
        emulator: bool,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Measures every kernel on a GPU; without one, checks the same cases on the emulator and counts what they move
    Bench {
        /// Write the rows to benches/record/DATE-DEVICE.csv and draw them; on the emulator ten minutes on two cores
        #[arg(long)]
        record: bool,
        /// Use the emulator even where there is a GPU
        #[arg(long)]
        emulator: bool,
        /// Only this room: embed, rotate or bias
        #[arg(long)]
        room: Option<String>,
        /// Only cases whose name contains this
        filter: Option<String>,
    },
    /// Runs posenc beside PyTorch and what else is installed, on a GPU; python3 needs PyTorch
    Peers {
        /// Without a GPU: compares every result at a small size, posenc on the emulator and the others on the CPU
        #[arg(long)]
        check: bool,
        /// Only this room: embed, rotate or bias
        #[arg(long)]
        room: Option<String>,
    },
    /// Draws cost against size from a record of the benches, and says how each family grows
    Plot {
        /// benches/record/DATE-DEVICE.csv; without it, the youngest of that folder
        record: Option<PathBuf>,
    },
    /// Checks formatting, lints, documentation and the package
    Check,
    /// Fetches NVRTC and the disassembler, and prints the environment that uses them
    Fetch,
    /// Builds tests, benches and the C library into one folder that needs only a driver to run
    GpuBundle {
        /// Then run a copy of the folder on the emulator
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace has no root")?;
    let mut task = Cli::parse().task;
    // A path is relative to where the user stands.
    if let Task::Demo { config: Some(path), .. } | Task::Plot { record: Some(path) } = &mut task {
        *path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    }
    std::env::set_current_dir(root)?;
    match task {
        Task::Demo { config, tokens } => demo(config, tokens),
        Task::Test { emulator, filter } => test(emulator, filter.as_deref()),
        Task::Bench { record, emulator, room, filter } => {
            bench::run_all(record, emulator, room.as_deref(), filter.as_deref())
        }
        Task::Peers { check, room } => peers::run_all(check, room.as_deref()),
        Task::Plot { record } => {
            let record = match record {
                Some(record) => record,
                None => plot::youngest(Path::new(bench::RECORDS))?,
            };
            println!("{}", plot::draw(&record)?.display());
            Ok(())
        }
        Task::Check => check(),
        Task::Fetch => {
            let tools = cuda::Tools::fetch()?;
            for (name, value) in tools.environment() {
                println!("export {name}={}", value.display());
            }
            Ok(())
        }
        Task::GpuBundle { check } => bundle::build(check),
    }
}

/// Cargo, with the fetched tools in its environment.
fn cargo(tools: &cuda::Tools) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.envs(tools.environment());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn demo(config: Option<PathBuf>, tokens: usize) -> Result<()> {
    let tools = cuda::Tools::fetch_or_explain();
    let mut command = cargo(&tools);
    // Not quiet: the first build takes minutes, and cargo shows how far it is.
    command.args(["run", "--release", "--example", "demo", "--"]);
    command.arg(tokens.to_string());
    command.args(config);
    if tools.has_nvrtc() {
        device::Device::find(false)?.prepare(&mut command)?;
    }
    run(&mut command)
}

/// The generations whose code paths differ; the emulator claims each in turn.
const CAPABILITIES: [&str; 4] = ["9.0", "8.0", "7.5", "12.0"];

fn test(emulator: bool, filter: Option<&str>) -> Result<()> {
    let tools = cuda::Tools::fetch()?;
    let device = device::Device::find(emulator)?;
    println!("tests that need a device run on {device}");

    let mut tests = cargo(&tools);
    tests.args(["test", "--workspace", "--exclude", "posenc", "--exclude", "posenc-c"]).args(filter);
    run(&mut tests)?;
    for (i, capability) in CAPABILITIES.iter().enumerate() {
        let mut tests = cargo(&tools);
        tests.args(["test", "--package", "posenc", "--package", "posenc-c"]);
        // Each generation runs its own images; what needs no device, and is no image, need not be run again.
        if i > 0 {
            tests.args(["--test", "rotate", "--test", "embed", "--test", "bias"]);
        }
        device.prepare(&mut tests)?;
        tests.env("EMULATOR_CC", capability).env("EMULATOR_STRICT", "all");
        tests.arg("--").args(if i == 0 { "--include-ignored" } else { "--ignored" }.split(' ')).args(filter);
        println!("\n---- compute capability {}", if device.is_real() { "of the device" } else { capability });
        run(&mut tests)?;
        if device.is_real() {
            break;
        }
    }
    Ok(())
}

/// A folder of its own: packages build under the workspace's own names, and cargo would take one's artifacts for the other's.
const PACKAGE_TARGET: &str = "target/package-check";

fn check() -> Result<()> {
    let tools = cuda::Tools::fetch()?;
    run(Command::new(env!("CARGO")).args(["fmt", "--all", "--check"]))?;
    run(cargo(&tools).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run(cargo(&tools).args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    // The package builds from itself alone, with and without NVRTC.
    // One architecture stands for all: they were compiled for the tests.
    let mut package = cargo(&tools);
    package.args(["package", "--package", "posenc", "--allow-dirty", "--target-dir", PACKAGE_TARGET]);
    run(package.env("POSENC_ARCHS", "90"))?;
    let mut bare = Command::new(env!("CARGO"));
    bare.args(["package", "--package", "posenc", "--allow-dirty", "--target-dir", PACKAGE_TARGET])
        .env("POSENC_NVRTC", "/nowhere");
    run(&mut bare)
}
