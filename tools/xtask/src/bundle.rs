//! Tests, benches, the C library and the peers' script in one folder, for a machine that has a driver and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{bench, cargo, cuda, device, find, run};

const FOLDER: &str = "target/gpu-bundle";
/// The tests beside those of the rooms; artifact reads the source tree, and checks what a GPU does not change.
const TESTS: [&str; 3] = ["overlap", "loading", "host_cost"];

/// The newest glibc that the bundle may need: Debian 12's.
const GLIBC: (u32, u32) = (2, 36);
/// What `run.sh` may take.
const LIMIT: Duration = Duration::from_secs(600);
/// Elements of the largest case that a check on the emulator runs: a GPU is a thousand times as fast.
const MOST_IN_A_CHECK: u64 = 1 << 16;

const SCRIPT: &str = r#"#!/bin/sh
# Runs every test and then every bench in this folder on this machine's GPU, and the peers where python3 has PyTorch.
# Needs an NVIDIA driver (R570 or later for the benches), nothing else, and less than 10 minutes.
# Results: results/summary.txt with a line and the seconds of each program, results/<name>.txt with what it said,
# results/record/<date>-<device>.{csv,txt}, results/peers.csv. The exit status is the number of programs that failed.
# With the argument `tests`, only the tests run.
cd "$(dirname "$0")" || exit 99
mkdir -p results
: > results/summary.txt
(nvidia-smi || echo "no nvidia-smi") > results/device.txt 2>&1
failed=0
begun=$(date +%s)
run() {
    name=$1
    shift
    start=$(date +%s)
    if "$@" > "results/$name.txt" 2>&1; then
        outcome=ok
    else
        outcome=FAILED
        failed=$((failed + 1))
    fi
    last=$(grep -E 'test result|recorded in|^[^ ]*panicked' "results/$name.txt" | tail -n 1)
    echo "$outcome $(($(date +%s) - start)) s $name: $last" | tee -a results/summary.txt
}
end() {
    echo "$failed failed, $(($(date +%s) - begun)) s in all" | tee -a results/summary.txt
    exit $failed
}
for binary in tests/*; do
    run "test-$(basename "$binary")" "$binary" --include-ignored
done
[ "$1" = tests ] && end
POSENC_RECORD=results/record
POSENC_COMMIT=@COMMIT@
export POSENC_RECORD POSENC_COMMIT
for binary in benches/*; do
    run "bench-$(basename "$binary")" "$binary" --bench
done
if python3 -c 'import torch' 2> /dev/null; then
    run peers python3 -B peers/run.py --library lib/libposenc_c.so --out results/peers.csv
else
    echo "peers: not measured, python3 has no PyTorch" | tee -a results/summary.txt
fi
end
"#;

/// Builds the folder, and, if asked, runs a copy of it on the emulator with an empty environment.
pub fn build(check: bool) -> Result<()> {
    cuda::nvrtc()?;
    let folder = Path::new(FOLDER);
    let _ = fs::remove_dir_all(folder);
    let mut glibc = (0, 0);
    // Tests keep the checks of the profile they are developed in: overflows above all.
    let mut tests = vec!["test", "--no-run", "--package", "posenc"];
    let rooms = find::rooms()?;
    tests.extend(rooms.iter().map(String::as_str).chain(TESTS).flat_map(|test| ["--test", test]));
    for (kind, arguments) in [
        ("tests", tests.as_slice()),
        ("benches", ["bench", "--no-run", "--package", "posenc-benches", "--bench", "*"].as_slice()),
        ("lib", ["build", "--release", "--package", "posenc-c"].as_slice()),
    ] {
        let into = folder.join(kind);
        fs::create_dir_all(&into)?;
        for path in built(cargo().env_remove("POSENC_ARCHS").args(arguments))
            .with_context(|| format!("the {kind} do not build"))?
        {
            let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
            let stem = name.rsplit_once('-').map_or(name.as_str(), |(stem, _)| stem);
            fs::copy(&path, into.join(stem)).with_context(|| path.display().to_string())?;
            if !name.ends_with(".a") {
                glibc = glibc.max(newest_glibc(&fs::read(&path)?));
            }
        }
    }
    fs::copy("adapters/c/posenc.h", folder.join("lib/posenc.h"))?;
    fs::create_dir_all(folder.join("peers"))?;
    for entry in fs::read_dir("benches/peers")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".py") && !name.starts_with("test_") {
            fs::copy(&path, folder.join("peers").join(name))?;
        }
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT.replace("@COMMIT@", &bench::commit()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    let (major, minor) = glibc;
    ensure!(
        glibc <= GLIBC,
        "the programs need glibc {major}.{minor}, more than {}.{}: build on an older system",
        GLIBC.0,
        GLIBC.1
    );
    println!(
        "{} is ready: copy it to a machine with a driver and glibc {major}.{minor}, and start run.sh",
        folder.display()
    );
    if check { check_on_the_emulator(folder) } else { Ok(()) }
}

/// The newest version of glibc whose symbols a program asks for, by the names of versions in it.
fn newest_glibc(program: &[u8]) -> (u32, u32) {
    const PREFIX: &[u8] = b"GLIBC_";
    let versions =
        program.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX).filter_map(|(at, _)| {
            let text = program[at + PREFIX.len()..].iter().take_while(|c| c.is_ascii_digit() || **c == b'.');
            let text: String = text.map(|c| char::from(*c)).collect();
            let mut parts = text.split('.').map(|part| part.parse().ok());
            Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
        });
    versions.max().unwrap_or((0, 0))
}

/// What cargo built: executables, and shared and static libraries of the package.
pub fn built(command: &mut Command) -> Result<Vec<PathBuf>> {
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
    command.env("POSENC_MOST", MOST_IN_A_CHECK.to_string());
    let start = Instant::now();
    let status = command.status()?;
    let (results, time) = (fs::read_dir(copy.join("results"))?.count(), start.elapsed());
    ensure!(status.success(), "{status}: see {}", copy.join("results").display());
    ensure!(time < LIMIT, "run.sh took {time:.0?}, at most {LIMIT:?} are allowed");
    println!("the bundle ran on the emulator, {results} results in {time:.0?}");
    // And the way that a GPU takes, which the emulator's counts do not: graphs, events, floors.
    for entry in fs::read_dir(copy.join("benches"))? {
        let mut bench = Command::new(entry?.path());
        bench.arg("--bench").env_clear().env("LD_LIBRARY_PATH", &emulator).current_dir(&copy);
        run(bench.env("POSENC_REHEARSE", "1").env("POSENC_MOST", "4096").stdout(Stdio::null()))?;
    }
    println!("the benches rehearsed what they do on a GPU");
    fs::remove_dir_all(copy)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::newest_glibc;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newest_glibc(b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0"), (2, 34));
        assert_eq!(newest_glibc(b"none"), (0, 0));
    }
}
