//! Tests, benches, the C library and the peers' script in one folder, for a machine that has a driver and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{cargo, cuda, device, run};

const FOLDER: &str = "target/gpu-bundle";
/// Test binaries that read the source tree, and check what a GPU does not change.
const NOT_FOR_A_GPU: [&str; 2] = ["artifact", "counts"];

const SCRIPT: &str = r#"#!/bin/sh
# Runs every test and then every bench in this folder on this machine's GPU, and the peers where python3 has PyTorch.
# Needs an NVIDIA driver (R570 or later for the benches), nothing else.
# Results: results/<name>.txt, results/record/<date>-<device>.{csv,txt}, results/peers.csv. The exit status is the number
# of programs that failed. With the argument `tests`, only the tests run.
cd "$(dirname "$0")" || exit 99
mkdir -p results
(nvidia-smi || echo "no nvidia-smi") > results/device.txt 2>&1
failed=0
run() {
    name=$1
    shift
    if "$@" > "results/$name.txt" 2>&1; then
        echo "$name: $(tail -n 2 "results/$name.txt" | tr '\n' ' ')"
    else
        failed=$((failed + 1))
        echo "$name FAILED, see results/$name.txt: $(tail -n 2 "results/$name.txt" | tr '\n' ' ')"
    fi
}
for binary in tests/*; do
    run "test-$(basename "$binary")" "$binary" --include-ignored
done
[ "$1" = tests ] && exit $failed
POSENC_RECORD=results/record
export POSENC_RECORD
for binary in benches/*; do
    run "bench-$(basename "$binary")" "$binary" --bench
done
if python3 -c 'import torch' 2> /dev/null; then
    run peers python3 -B peers/run.py --library lib/libposenc_c.so --out results/peers.csv
else
    echo "peers: not measured, python3 has no PyTorch" | tee results/peers.txt
fi
exit $failed
"#;

/// Builds the folder, and, if asked, runs a copy of it on the emulator with an empty environment.
pub fn build(check: bool) -> Result<()> {
    let tools = cuda::Tools::fetch()?;
    let folder = Path::new(FOLDER);
    let _ = fs::remove_dir_all(folder);
    for (kind, arguments) in [
        ("tests", ["test", "--no-run", "--release", "--package", "posenc", "--test", "*"].as_slice()),
        ("benches", ["bench", "--no-run", "--package", "posenc", "--bench", "*"].as_slice()),
        ("lib", ["build", "--release", "--package", "posenc-c"].as_slice()),
    ] {
        let into = folder.join(kind);
        fs::create_dir_all(&into)?;
        for path in built(cargo(&tools).args(arguments)).with_context(|| format!("the {kind} do not build"))? {
            let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
            let stem = name.rsplit_once('-').map_or(name.as_str(), |(stem, _)| stem);
            if !NOT_FOR_A_GPU.contains(&stem) {
                fs::copy(&path, into.join(stem)).with_context(|| path.display().to_string())?;
            }
        }
    }
    fs::copy("adapters/c/posenc.h", folder.join("lib/posenc.h"))?;
    fs::create_dir_all(folder.join("peers"))?;
    for file in ["posenc.py", "run.py"] {
        fs::copy(Path::new("benches/peers").join(file), folder.join("peers").join(file))?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    println!("{} is ready: copy it to a machine with a driver and start run.sh", folder.display());
    if check { check_on_the_emulator(folder) } else { Ok(()) }
}

/// What cargo built: executables, and shared and static libraries of the package.
fn built(command: &mut Command) -> Result<Vec<PathBuf>> {
    let output = command.arg("--message-format=json").stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    let mut paths = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        // One JSON object a line, its paths without escapes on this side of Windows.
        if let Some(path) = line.split("\"executable\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
            paths.push(path.into());
        } else if line.contains("\"posenc_c\"") && line.contains("\"compiler-artifact\"") {
            let names =
                line.split('"').filter(|text| text.ends_with("libposenc_c.so") || text.ends_with("libposenc_c.a"));
            paths.extend(names.map(PathBuf::from));
        }
    }
    Ok(paths)
}

/// A copy elsewhere, with the emulator as the driver and nothing of this machine's environment.
fn check_on_the_emulator(folder: &Path) -> Result<()> {
    let emulator = device::emulator()?;
    let copy = std::env::temp_dir().join(format!("posenc-bundle-{}", std::process::id()));
    run(Command::new("cp").arg("-r").arg(folder).arg(&copy))?;
    let mut command = Command::new(copy.join("run.sh"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LD_LIBRARY_PATH", &emulator).current_dir("/");
    let status = command.status()?;
    let results = fs::read_dir(copy.join("results"))?.count();
    ensure!(status.success(), "{status}: see {}", copy.join("results").display());
    println!("the bundle ran on the emulator, {results} results");
    fs::remove_dir_all(copy)?;
    Ok(())
}
