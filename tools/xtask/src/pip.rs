//! Python packages, fetched by pip in the versions and with the hashes of `requirements.txt`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

const REQUIREMENTS: &str = include_str!("../requirements.txt");

/// The file or folder `inside` the package `name`, which is fetched into `folder` if it is not there.
pub fn package(folder: &str, name: &str, inside: &str) -> Result<PathBuf> {
    let requirement =
        requirement(REQUIREMENTS, name).with_context(|| format!("requirements.txt does not name {name}"))?;
    let version = requirement.split_whitespace().next().unwrap_or_default();
    let folder = std::env::current_dir()?.join(folder).join(version.replace("==", "-"));
    let wanted = folder.join(inside);
    if wanted.exists() {
        return Ok(wanted);
    }
    fetch(&folder, &requirement, version)?;
    if !wanted.exists() {
        bail!("{version} does not hold {inside}");
    }
    Ok(wanted)
}

/// Fetches what `requirements` names into `folder`, which is there afterwards as a whole or not at all.
pub fn fetch(folder: &Path, requirements: &str, what: &str) -> Result<()> {
    let bar = ProgressBar::new_spinner().with_message(format!("fetching {what} through pip"));
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    // A half-fetched package must not be taken for a whole one: it gets its name when it is complete.
    let partial = with_ending(folder, "partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    // pip takes hashes from a file alone.
    let file = with_ending(folder, "txt");
    fs::write(&file, requirements)?;
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--require-hashes", "--target"])
        .arg(&partial)
        .arg("--requirement")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .context("cannot start python3")?;
    bar.finish_and_clear();
    fs::remove_file(&file)?;
    if !output.status.success() {
        bail!("pip does not fetch {what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let _ = fs::remove_dir_all(folder);
    fs::rename(&partial, folder)?;
    Ok(())
}

/// `clang-format-20.1.8.txt`: the version's last number is no ending that may be replaced.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The requirement of one package of a list, on one line.
pub fn requirement(list: &str, name: &str) -> Option<String> {
    let joined = list.replace("\\\n", " ");
    let line = joined.lines().find(|line| line.starts_with(&format!("{name}==")))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_has_its_version_and_its_hashes() {
        let ruff = requirement(REQUIREMENTS, "ruff").expect("ruff is listed");
        assert!(ruff.starts_with("ruff==") && ruff.contains(" --hash=sha256:") && !ruff.contains('\\'), "{ruff}");
        assert_eq!(requirement(REQUIREMENTS, "ruf"), None);
    }

    #[test]
    fn an_ending_is_added_and_replaces_nothing() {
        assert_eq!(with_ending(Path::new("a/ruff-0.14.0"), "txt"), Path::new("a/ruff-0.14.0.txt"));
    }
}
