//! Tests, benches, the C library and the peers' script in one archive, for a machine that has a driver and nothing else: no
//! toolkit, no Rust, no network, and no more than ten minutes for a command.

mod parts;
mod report;
mod run;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

pub use parts::Part;
pub use run::run;

use crate::{bench, cargo, cuda, device};

const FOLDER: &str = "target/gpu-bundle";
/// The newest glibc that the programs may need: Debian 12's.
const GLIBC: (u32, u32) = (2, 36);
/// Elements of the largest case of the benches in a rehearsal.
const MOST_IN_A_REHEARSAL: u64 = 1 << 14;

const SCRIPT: &str = r#"#!/bin/sh
# usage: sh run.sh PART, where PART is one of
#   tests      every test that runs kernels, and the emulator's instructions against the device's
#   sanitizer  the same kernels under compute-sanitizer, the machine's own, else the one in this folder; further arguments: the
#              tools, else memcheck racecheck initcheck synccheck
#   benches    every case as a share of the measured copy bandwidth, or those whose names contain a further argument; for a
#              driver of R570 or later
#   peers      other libraries beside posenc, where python3 has PyTorch; further arguments: those of peers/run.py
# Needs an NVIDIA driver, tar and gzip. Each part ends within nine minutes, goes on after a failure, lists what it did not
# run, and leaves results/PART/summary.txt and results.tar.gz, which holds the results of all parts so far. The exit status
# is the number of programs that failed.
exec "$(dirname "$0")/xtask" gpu-run "$@"
"#;

/// Packs by tarfile, as python3 is there for pip: the dictionary of this preset reaches from each program to the same images in
/// the next.
const PACK: &str = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w:xz', preset=9) as archive:
    archive.add(sys.argv[2], sys.argv[3])
";

/// Builds the archive for one architecture, and, if asked, unpacks it elsewhere and runs each part on the emulator.
pub fn build(arch: u32, check: bool) -> Result<()> {
    cuda::nvrtc()?;
    let sanitizer = cuda::sanitizer()?;
    let name = format!("posenc-gpu-{arch}");
    let folder = Path::new(FOLDER).join(&name);
    let _ = fs::remove_dir_all(FOLDER);
    let mut packing = Packing { folder, glibc: (0, 0) };
    // Tests keep the checks of the profile they are developed in: overflows above all.
    for (into, command, flag, names) in [
        ("tests", ["test", "--no-run", "--package", "posenc"], "--test", &parts::TESTS[..]),
        ("twins", ["test", "--no-run", "--package", "warpcheck"], "--test", &parts::TWINS),
        ("benches", ["bench", "--no-run", "--package", "posenc-benches"], "--bench", &parts::BENCHES),
        ("lib", ["build", "--release", "--package", "posenc-c"], "", &["libposenc_c.so"]),
    ] {
        let mut cargo = cargo();
        cargo.env("POSENC_ARCHS", arch.to_string()).args(command);
        if !flag.is_empty() {
            cargo.args(names.iter().flat_map(|name| [flag, *name]));
        }
        // Beside them cargo builds programs and static libraries of the same packages.
        for path in built(&mut cargo).with_context(|| format!("what {into} holds does not build"))? {
            if names.contains(&stem(&path)?.as_str()) {
                packing.program(&path, into)?;
            }
        }
    }
    packing.program(&device::emulator()?.join("libcuda.so.1"), "twins/libemulator.so")?;
    // This program, also where cargo has put another into its place meanwhile.
    packing.program(Path::new("/proc/self/exe"), "xtask")?;
    packing.file(Path::new("adapters/c/posenc.h"), "lib/posenc.h")?;
    for entry in fs::read_dir("benches/peers")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".py") && !name.starts_with("test_") {
            packing.file(&path, &format!("peers/{name}"))?;
        }
    }
    // In one folder, as in a toolkit: it looks for its libraries beside itself.
    for folder in ["bin", "lib"] {
        for entry in fs::read_dir(sanitizer.join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            packing.file(&path, &format!("sanitizer/{name}"))?;
        }
    }
    let Packing { folder, glibc: (major, minor) } = packing;
    fs::write(folder.join("commit"), bench::commit())?;
    fs::write(folder.join("run.sh"), SCRIPT)?;
    for program in ["run.sh", "sanitizer/compute-sanitizer"] {
        fs::set_permissions(folder.join(program), fs::Permissions::from_mode(0o755))?;
    }
    ensure!(
        (major, minor) <= GLIBC,
        "the programs need glibc {major}.{minor}, more than {}.{}: build on an older system",
        GLIBC.0,
        GLIBC.1
    );
    let archive = Path::new(FOLDER).join(format!("{name}.tar.xz"));
    crate::run(Command::new("python3").args(["-c", PACK]).arg(&archive).arg(&folder).arg(&name))?;
    let (size, unpacked) = (fs::metadata(&archive)?.len(), size(&folder)?);
    println!("{}: {:.1} MiB, {:.1} unpacked", archive.display(), mib(size), mib(unpacked));
    ensure!(size <= parts::ARCHIVE, "{size} bytes, at most {} are allowed", parts::ARCHIVE);
    println!(
        "carry it to a machine with a driver and glibc {major}.{minor}; there: tar xf {name}.tar.xz, or python3 -m tarfile -e \
         {name}.tar.xz where tar lacks xz; then sh {name}/run.sh tests"
    );
    if check { rehearse(&archive, &name) } else { Ok(()) }
}

/// The name of a program without cargo's own ending, which is a hash.
fn stem(path: &Path) -> Result<String> {
    let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
    Ok(name.rsplit_once('-').map_or_else(|| name.clone(), |(stem, _)| stem.into()))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// The folder that is packed.
struct Packing {
    folder: PathBuf,
    /// the newest that a program needs
    glibc: (u32, u32),
}

impl Packing {
    /// A program or a shared library, without its symbols; into a folder by the name that cargo knows it by, or as the file `into`.
    fn program(&mut self, path: &Path, into: &str) -> Result<()> {
        let is_folder = ["tests", "twins", "benches", "lib"].contains(&into);
        let to = if is_folder { format!("{into}/{}", stem(path)?) } else { into.to_string() };
        self.glibc = self.glibc.max(newest_glibc(&fs::read(path)?));
        self.file(path, &to)?;
        crate::run(Command::new("strip").arg("--strip-all").arg(self.folder.join(to)))
    }

    fn file(&self, path: &Path, to: &str) -> Result<()> {
        let to = self.folder.join(to);
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::copy(path, to).with_context(|| path.display().to_string())?;
        Ok(())
    }
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

/// Stands in for compute-sanitizer where there is no GPU: runs the program, and writes a log as a run without errors does.
const FAKE_SANITIZER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --log-file) log=$2; shift 2 ;;
    --*) shift 2 ;;
    *) break ;;
    esac
done
"$@"
status=$?
echo "========= ERROR SUMMARY: 0 errors" > "$log"
exit $status
"#;

/// Unpacks the archive elsewhere and runs each part as on the machine with the GPU: with nothing of this one's environment, the
/// emulator as the driver, and in the place of compute-sanitizer a script that runs the program.
fn rehearse(archive: &Path, name: &str) -> Result<()> {
    let emulator = device::emulator()?;
    let elsewhere = std::env::temp_dir().join(format!("posenc-bundle-{}", std::process::id()));
    let (bin, folder) = (elsewhere.join("bin"), elsewhere.join(name));
    fs::create_dir_all(&bin)?;
    fs::write(bin.join("compute-sanitizer"), FAKE_SANITIZER)?;
    fs::set_permissions(bin.join("compute-sanitizer"), fs::Permissions::from_mode(0o755))?;
    crate::run(Command::new("tar").arg("xf").arg(archive).arg("-C").arg(&elsewhere))?;
    for part in Part::ALL {
        let mut command = Command::new("sh");
        command.arg(folder.join("run.sh")).arg(part.name()).current_dir("/");
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        command.env("LD_LIBRARY_PATH", &emulator).env("EMULATOR_VERBOSE", "0");
        // A GPU is a thousand times as fast: what the tests check is checked without the emulator's own checks.
        command.env("EMULATOR_STRICT", "bounds");
        command.env("POSENC_REHEARSE", "1").env("POSENC_MOST", MOST_IN_A_REHEARSAL.to_string());
        if part == Part::Sanitizer {
            // Enough for the first pass; the rest is listed as not run.
            command.env("POSENC_SECONDS", "180");
        }
        if let Some(python) = std::env::var_os("POSENC_PYTHON") {
            command.env("POSENC_PYTHON", python);
        }
        let start = Instant::now();
        let status = command.status()?;
        let summary = folder.join("results").join(part.name()).join("summary.txt");
        ensure!(status.success(), "{} fails: {status}, see {}", part.name(), summary.display());
        ensure!(start.elapsed() < parts::TIME + run::GRACE, "{} took {:.0?}", part.name(), start.elapsed());
        let listed = Command::new("tar").arg("tzf").arg(folder.join("results.tar.gz")).output()?;
        let wanted = format!("results/{}/summary.txt", part.name());
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(listed.lines().any(|line| line == wanted), "results.tar.gz does not hold {wanted}");
        println!("{} ran on the emulator in {:.0?}", part.name(), start.elapsed());
    }
    fs::remove_dir_all(elsewhere)?;
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
