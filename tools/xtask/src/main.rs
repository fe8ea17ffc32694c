//! `cargo xtask`: everything around posenc that is not the crate.

mod adapters;
mod bench;
mod bundle;
mod check;
mod cinstall;
mod clients;
mod cuda;
mod demo;
mod device;
mod emulator;
mod find;
#[cfg(test)]
mod folder;
mod mutants;
mod package;
mod peers;
mod pip;
mod plot;
mod steps;
mod test;

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
    Demo(demo::Options),
    /// Runs every test: on a GPU if there is one, else on the emulator; with NAME, only what can hold NAME
    Test(test::Options),
    /// Measures every kernel on a GPU; without one, checks the same cases on the emulator and counts what they move
    Bench {
        /// Write the rows to benches/record/DATE-DEVICE.csv and draw them; on the emulator ten minutes on two cores
        #[arg(long)]
        record: bool,
        /// Use the emulator even where there is a GPU
        #[arg(long)]
        emulator: bool,
        /// Only this room: embed, rotate, bias or attend
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
        /// Only this room: embed, rotate, bias or attend
        #[arg(long)]
        room: Option<String>,
        /// Without a GPU or PyTorch: compiles the peers' kernels and counts them on the emulator beside ours; 500 MB to fetch
        #[arg(long, conflicts_with_all = ["check", "room"])]
        count: bool,
        /// Of --count: write the rows to benches/record and draw them
        #[arg(long, requires = "count")]
        record: bool,
        /// Of --count: only cases whose name contains this
        #[arg(requires = "count")]
        filter: Option<String>,
    },
    /// Draws cost against size from a record of the benches, and says how each family grows
    Plot {
        /// benches/record/DATE-DEVICE.csv; without it, the youngest of that folder
        record: Option<PathBuf>,
    },
    /// Checks formatting, lints, documentation, the oldest Rust, licences and the package
    Check,
    /// Every test on the emulator and every check, with the time of each step
    Ci {
        /// Only the emulator's own tests and its clients, even if they passed before on the same sources
        #[arg(long)]
        emulator: bool,
        /// All but these
        #[arg(long, conflicts_with = "emulator")]
        no_emulator: bool,
    },
    /// Builds the wheel for Python, installs it and tests it: with PyTorch, transformers and cuda.core, which are 5 GB
    TestAdapters(adapters::Options),
    /// Generated input for configs, GGUF, shapes, PTX and the C library, on the emulator
    Fuzz {
        /// Those of the program: `--help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs programs of others on the emulator: cudarc's examples, cuda.core and numba-cuda
    Clients,
    /// Formats Rust, kernels and Python
    Format,
    /// Checks licences, sources and duplicates of dependencies with cargo-deny, which it builds once
    Deny,
    /// Compares the public items with the newest published version, if there is one
    Semver,
    /// Breaks kernels and launch arithmetic in one place each, by a list, and reports which changes no test notices
    Mutants(mutants::Options),
    /// Builds the C library and installs it with its header and files for pkg-config and CMake
    CInstall(cinstall::Options),
    /// Fetches NVRTC, the assembler and the disassembler and builds the emulator, which plain cargo then finds
    Fetch,
    /// Packs the crate with the images of its kernels
    Package {
        /// Leave the images in the folder images, for `cargo publish --allow-dirty`
        #[arg(long)]
        keep_images: bool,
        /// Then build a program with the package where there is neither NVRTC nor Python
        #[arg(long, conflicts_with = "keep_images")]
        check: bool,
    },
    /// Packs tests, benches and the C library into one archive for a machine that has a driver and nothing else
    GpuBundle {
        /// The architecture of that machine's GPU: 75, 80, 90, 100 or 120
        #[arg(long, default_value_t = 90)]
        arch: u32,
        /// Then unpack the archive elsewhere and run each part on the emulator
        #[arg(long)]
        check: bool,
    },
    /// Runs one part of the bundle that this program lies in: what run.sh calls
    #[command(hide = true)]
    GpuRun {
        part: bundle::Part,
        /// Of the sanitizer: tools; of the benches: a part of the wanted cases' names; of the peers: what peers/run.py takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace has no root")?;
    let mut task = Cli::parse().task;
    // On a machine without the sources.
    if let Task::GpuRun { part, arguments } = task {
        std::process::exit(bundle::run(part, &arguments)?.min(99) as i32);
    }
    // A path is relative to where the user stands.
    if let Task::Demo(demo::Options { config: Some(path), .. }) | Task::Plot { record: Some(path) } = &mut task {
        *path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    }
    if let Task::Demo(demo::Options { plot: Some(path), .. }) = &mut task {
        *path = std::path::absolute(&*path)?;
    }
    std::env::set_current_dir(root)?;
    match task {
        Task::Demo(options) => demo::run_all(&options),
        Task::Test(options) => test::run_all(&options, &mut steps::Steps::new()),
        Task::Bench { record, emulator, room, filter } => {
            bench::run_all(record, emulator, room.as_deref(), filter.as_deref())
        }
        Task::Peers { count: true, record, filter, .. } => peers::count::run_all(record, filter.as_deref()),
        Task::Peers { check, room, .. } => peers::run_all(check, room.as_deref()),
        Task::Plot { record } => {
            let record = match record {
                Some(record) => record,
                None => plot::youngest(Path::new(bench::RECORDS))?,
            };
            println!("{}", plot::draw(&record)?.display());
            Ok(())
        }
        Task::Check => check::run_all(&mut steps::Steps::new()),
        Task::Ci { emulator, no_emulator } => {
            let mut steps = steps::Steps::new();
            if emulator {
                emulator::tests(true, &mut steps)?;
                return emulator::clients(true, &mut steps);
            }
            test::run_all(&test::Options::every_on_the_emulator(!no_emulator), &mut steps)?;
            if !no_emulator {
                emulator::clients(false, &mut steps)?;
            }
            steps.run("generated input", || test::fuzz(&[]))?;
            adapters::run_all(&adapters::Options::in_short(), &mut steps)?;
            check::run_all(&mut steps)
        }
        Task::TestAdapters(options) => adapters::run_all(&options, &mut steps::Steps::new()),
        Task::Fuzz { arguments } => test::fuzz(&arguments),
        Task::Clients => clients::run_all(false, &mut steps::Steps::new()),
        Task::Format => check::format(false),
        Task::Deny => check::deny(true),
        Task::Semver => check::semver(),
        Task::Mutants(options) => mutants::run_all(&options),
        Task::CInstall(options) => cinstall::install(&options),
        Task::Fetch => {
            for (name, path) in cuda::fetch()? {
                println!("export {name}={}", path.display());
            }
            device::emulator()?;
            eprintln!("cargo finds them by itself in this clone; the variables are for builds elsewhere");
            Ok(())
        }
        Task::Package { check: true, .. } => package::check(),
        Task::Package { keep_images, check: false } => {
            let package = package::pack(keep_images)?;
            println!("{}", package.display());
            Ok(())
        }
        Task::GpuBundle { arch, check } => bundle::build(arch, check),
        Task::GpuRun { .. } => Ok(()),
    }
}

fn cargo() -> Command {
    Command::new(env!("CARGO"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
