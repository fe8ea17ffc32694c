//! Tests: all of them, or only the programs that can hold those asked for.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::steps::Steps;
use crate::{cargo, cuda, device, emulator, find, run};

#[derive(Args)]
pub struct Options {
    /// Use the emulator even where there is a GPU
    #[arg(long)]
    pub emulator: bool,
    /// With NAME: at every compute capability, as without NAME
    #[arg(long, conflicts_with = "cc")]
    pub all_capabilities: bool,
    /// At this compute capability alone, such as 8.0; 9.0 where NAME is given
    #[arg(long, value_name = "CC", value_parser = capability)]
    pub cc: Option<String>,
    /// Only tests whose name contains this, such as rope or softmax::causal; builds only what can hold them
    #[arg(value_name = "NAME")]
    pub filter: Option<String>,
    /// All but the tests of the emulator itself.
    #[arg(skip)]
    without_its_own: bool,
}

impl Options {
    /// Every test, on the emulator; with its own, or without.
    pub fn every_on_the_emulator(with_its_own: bool) -> Self {
        Self { emulator: true, all_capabilities: false, cc: None, filter: None, without_its_own: !with_its_own }
    }
}

/// The generations whose code paths differ; the emulator claims each in turn.
const CAPABILITIES: [&str; 4] = ["9.0", "8.0", "7.5", "12.0"];
/// What runs kernels, in the groups that cargo tests together. Cargo builds dependencies with the features that the chosen
/// packages ask for, so another group would build some of them, and posenc, once more.
const GROUPS: [&[&str]; 2] = [&["posenc"], &["posenc-c", "posenc-benches", "demo"]];
/// What build.rs makes images for.
const ARCHITECTURES: [u32; 5] = [75, 80, 90, 100, 120];

pub fn run_all(options: &Options, steps: &mut Steps) -> Result<()> {
    match &options.filter {
        Some(filter) => some(options, filter, steps),
        None => every(options, steps),
    }
}

/// The capabilities that tests run at, and the one architecture that they need, if it is one.
struct Plan {
    capabilities: Vec<String>,
    architecture: Option<u32>,
}

impl Plan {
    fn new(options: &Options, device: &device::Device) -> Result<Self> {
        let one = match (device.capability(), &options.cc) {
            (Some(real), cc) => {
                if cc.as_ref().is_some_and(|cc| *cc != real) {
                    bail!(
                        "--cc is the emulator's: this machine's GPU has compute capability {real}, or add --emulator"
                    );
                }
                Some(real)
            }
            (None, Some(cc)) => Some(cc.clone()),
            (None, None) => {
                (options.filter.is_some() && !options.all_capabilities).then(|| CAPABILITIES[0].to_string())
            }
        };
        // A whole run on a GPU builds every image, whose tables it compares too.
        let is_short = (options.filter.is_some() && !options.all_capabilities) || options.cc.is_some();
        let architecture = one.as_ref().filter(|_| is_short).map(|cc| architecture(cc));
        let capabilities = one.map_or_else(|| CAPABILITIES.map(String::from).to_vec(), |one| vec![one]);
        Ok(Self { capabilities, architecture: architecture.transpose()? })
    }

    /// Cargo for a run at the `i`-th capability.
    fn cargo(&self, i: usize, device: &device::Device) -> Result<Command> {
        let mut command = cargo();
        command.arg("test");
        device.prepare(&mut command)?;
        command.env("EMULATOR_CC", &self.capabilities[i]).env("EMULATOR_STRICT", "all");
        // A choice in the environment stays.
        if let Some(architecture) = self.architecture
            && std::env::var_os("POSENC_ARCHS").is_none()
        {
            command.env("POSENC_ARCHS", architecture.to_string());
        }
        Ok(command)
    }
}

fn every(options: &Options, steps: &mut Steps) -> Result<()> {
    cuda::fetch_for_tests()?;
    let device = device::Device::find(options.emulator)?;
    println!("tests that need a device run on {device}");
    let plan = Plan::new(options, &device)?;
    if !options.without_its_own {
        emulator::tests(false, steps)?;
    }
    steps.run("tests of xtask", || run(cargo().args(["test", "--package", "xtask"])))?;
    steps.run("tests of the program", || run(&mut program_alone("posenc-cli")))?;
    let rooms = find::rooms()?;
    for (i, capability) in plan.capabilities.iter().enumerate() {
        // Each generation runs its own images; what needs no device, and is no image, need not be run again.
        let groups = if i == 0 { GROUPS.as_slice() } else { &GROUPS[..1] };
        for group in groups {
            let mut tests = plan.cargo(i, &device)?;
            tests.args(group.iter().flat_map(|package| ["--package", package]));
            if i == 0 {
                tests.args(["--", "--include-ignored"]);
            } else {
                tests.args(rooms.iter().flat_map(|room| ["--test", room])).args(["--", "--ignored"]);
            }
            steps.run(&format!("{} at compute capability {capability}", group.join(", ")), || run(&mut tests))?;
        }
    }
    Ok(())
}

/// Builds the C library, and what generates input for it and for the readers; runs that on the emulator.
pub fn fuzz(arguments: &[String]) -> Result<()> {
    cuda::nvrtc()?;
    // One build of both, so that the crate is built once.
    run(cargo().args(["build", "--package", "posenc-c", "--package", "fuzz"]))?;
    let mut command = Command::new("target/debug/fuzz");
    device::Device::find(true)?.prepare(&mut command)?;
    command.env("EMULATOR_STRICT", "all").env("EMULATOR_VERBOSE", "0").env("EMULATOR_BUDGET", "20000000");
    run(command.args(arguments))
}

fn some(options: &Options, filter: &str, steps: &mut Steps) -> Result<()> {
    let programs = find::programs(filter)?;
    if programs.is_empty() && !is_documentation(filter) {
        bail!("no test is named like {filter}");
    }
    for program in &programs {
        let what = program.test.as_ref().map_or_else(|| "unit tests".into(), |test| format!("test {test}"));
        println!("{} of {} by that name in {} ({what})", program.names.len(), filter, program.package);
    }
    // These packages need neither kernels nor a device.
    let (tools_alone, programs): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(|program| ["posenc-cli", "warpcheck", "xtask"].contains(&program.package));
    for program in tools_alone {
        let mut tests = program_alone(program.package);
        match &program.test {
            Some(test) => tests.args(["--test", test]),
            None => tests.arg("--bins"),
        };
        steps.run(program.package, || run(tests.args(["--", filter])))?;
    }
    if programs.is_empty() && !is_documentation(filter) {
        return Ok(());
    }
    // One test alone asks for the assembler.
    let assembles = programs.iter().any(|program| program.test.as_deref() == Some("artifact"));
    if assembles {
        cuda::fetch_for_tests()?;
    } else {
        cuda::nvrtc()?;
    }
    let device = device::Device::find(options.emulator)?;
    println!("tests that need a device run on {device}");
    let plan = Plan::new(options, &device)?;
    let rooms = find::rooms()?;
    for (i, capability) in plan.capabilities.iter().enumerate() {
        for group in GROUPS {
            let mut arguments = Vec::new();
            for program in programs.iter().filter(|program| group.contains(&program.package)) {
                match &program.test {
                    // Each generation runs its own images; what needs no device, and is no image, need not be run again.
                    Some(test) if i == 0 || rooms.contains(test) => arguments.extend(["--test", test]),
                    None if i == 0 => arguments.extend(["--lib", "--bins"]),
                    _ => {}
                }
            }
            if !arguments.is_empty() {
                let mut tests = plan.cargo(i, &device)?;
                tests.args(group.iter().flat_map(|package| ["--package", package])).args(arguments);
                tests.args(["--", if i == 0 { "--include-ignored" } else { "--ignored" }, filter]);
                steps.run(&format!("{} at compute capability {capability}", group.join(", ")), || run(&mut tests))?;
            }
        }
    }
    if is_documentation(filter) {
        let mut tests = plan.cargo(0, &device)?;
        tests.args(["--package", "posenc", "--doc", "--", filter]);
        steps.run("examples in the documentation", || run(&mut tests))?;
    }
    Ok(())
}

/// Tests of a package that needs no kernels.
fn program_alone(package: &str) -> Command {
    let mut tests = cargo();
    tests.args(["test", "--package", package]).env("POSENC_KERNELS", "none");
    tests
}

/// Whether a test by that name may be an example in the documentation, such as `src/rotate/rope.rs - Rope::new (line 12)`.
fn is_documentation(filter: &str) -> bool {
    filter.starts_with("src/") || filter.contains(" - ")
}

/// The architecture of the images that a device of this compute capability loads.
pub fn architecture(capability: &str) -> Result<u32> {
    let number: u32 = capability.replace('.', "").parse().with_context(|| format!("{capability} is not like 9.0"))?;
    let architecture = ARCHITECTURES.into_iter().rfind(|architecture| *architecture <= number);
    architecture.with_context(|| format!("there is no image for compute capability {capability}"))
}

fn capability(text: &str) -> Result<String, String> {
    let parts = text.split_once('.').map(|(major, minor)| (major.parse::<u32>(), minor.parse::<u32>()));
    match parts {
        Some((Ok(_), Ok(minor))) if minor < 10 => Ok(text.into()),
        _ => Err("a compute capability is like 9.0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_has_the_images_of_the_next_lower_architecture() {
        for (capability, want) in [("7.5", 75), ("8.6", 80), ("9.0", 90), ("10.3", 100), ("12.1", 120)] {
            assert_eq!(architecture(capability).expect(capability), want);
        }
        assert!(architecture("7.0").is_err());
        assert!(capability("9").is_err() && capability("9.x").is_err() && capability("8.6").is_ok());
    }
}
