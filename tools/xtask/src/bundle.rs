//! Tests and benches as binaries in one folder, for a machine that has a driver and nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{cargo, cuda};

const SCRIPT: &str = r#"#!/bin/sh
# Runs every test and then every bench in this folder on this machine's GPU. Needs an NVIDIA driver, nothing else.
# Results: results/<binary>.txt, one file each; the exit status is the number of binaries that failed.
cd "$(dirname "$0")" || exit 99
mkdir -p results
nvidia-smi > results/device.txt 2>&1
failed=0
for binary in tests/*; do
    name=$(basename "$binary")
    "$binary" --include-ignored > "results/$name.txt" 2>&1 || failed=$((failed + 1))
    tail -n 1 "results/$name.txt"
done
for binary in benches/*; do
    [ -x "$binary" ] || continue
    name=$(basename "$binary")
    "$binary" --bench > "results/$name.txt" 2>&1 || failed=$((failed + 1))
done
exit $failed
"#;

/// Builds `target/gpu-bundle`.
pub fn build() -> Result<()> {
    let tools = cuda::Tools::fetch()?;
    let folder = Path::new("target/gpu-bundle");
    let _ = fs::remove_dir_all(folder);
    for (kind, arguments) in [
        ("tests", ["test", "--no-run", "--release", "--package", "posenc", "--tests"].as_slice()),
        ("benches", ["bench", "--no-run", "--package", "posenc", "--benches"].as_slice()),
    ] {
        let into = folder.join(kind);
        fs::create_dir_all(&into)?;
        let output = cargo(&tools)
            .args(arguments)
            .arg("--message-format=json")
            .stderr(std::process::Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "the {kind} do not build");
        for line in String::from_utf8(output.stdout)?.lines() {
            // One JSON object a line; an executable is named by its last string field of that name.
            let Some(path) = line.split("\"executable\":\"").nth(1).and_then(|rest| rest.split('"').next()) else {
                continue;
            };
            let path = Path::new(path);
            let name = path.file_name().context("an executable without a name")?.to_string_lossy().into_owned();
            let stem = name.rsplit_once('-').map_or(name.as_str(), |(stem, _)| stem);
            fs::copy(path, into.join(stem))?;
        }
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    println!("{} is ready: copy it to a machine with a driver and start run.sh", folder.display());
    Ok(())
}
