//! Tests of the emulator and its clients: a part of their own, which is not run again where it has passed on the same inputs.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::steps::Steps;
use crate::{clients, run};

const FOLDER: &str = "tools/emulator";
/// What else the tests and clients are made of.
const OTHERS: [&str; 5] = [
    "Cargo.toml",
    "tools/xtask/requirements.txt",
    "tools/xtask/src/clients.rs",
    "tools/xtask/src/emulator.rs",
    "tools/xtask/src/pip.rs",
];
/// Where each part that passed is noted, with its inputs.
const PASSED: &str = "target/passed";

/// Runs the emulator's tests, unless they have passed with these inputs and `again` is false.
pub fn tests(again: bool, steps: &mut Steps) -> Result<()> {
    let mut tests = Command::new(env!("CARGO"));
    tests.args(["test", "--package", "warpcheck"]);
    unless_passed("tests of the emulator", again, steps, inputs, |steps| {
        steps.run("tests of the emulator", || run(&mut tests))
    })
}

/// Runs the clients, all of which are demanded, unless they have passed with these inputs and `again` is false.
pub fn clients(again: bool, steps: &mut Steps) -> Result<()> {
    unless_passed("clients of the emulator", again, steps, inputs, |steps| clients::run_all(true, steps))
}

fn unless_passed(
    what: &str,
    again: bool,
    steps: &mut Steps,
    inputs: impl Fn() -> Result<String>,
    work: impl FnOnce(&mut Steps) -> Result<()>,
) -> Result<()> {
    let note = Path::new(PASSED).join(what.replace(' ', "-"));
    let now = inputs()?;
    if !again && fs::read_to_string(&note).is_ok_and(|then| then == now) {
        println!("\n---- {what}: passed before, with the same sources, dependencies and compiler ({})", note.display());
        return Ok(());
    }
    work(steps)?;
    // What changed meanwhile has not passed.
    if inputs()? == now {
        fs::create_dir_all(PASSED)?;
        fs::write(&note, now)?;
    }
    Ok(())
}

/// A number for everything that the tests depend on: files, versions and features of dependencies, the compiler.
fn inputs() -> Result<String> {
    let mut files =
        lines(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard", FOLDER]))?;
    ensure!(!files.is_empty(), "git lists no file of {FOLDER}");
    files.extend(OTHERS.map(String::from));
    let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
    let mut texts = lines(Command::new(env!("CARGO")).args([
        "tree",
        "--locked",
        "--package",
        "warpcheck",
        "--edges",
        "normal,build,dev",
        "--prefix=none",
        "--format={p} {f}",
    ]))?;
    texts.extend(lines(Command::new("rustc").arg("-vV"))?);
    number(&files, &texts)
}

fn number(files: &[PathBuf], texts: &[String]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        // A file that git knows and that is gone is a change.
        fs::read(file).ok().hash(&mut hasher);
    }
    texts.hash(&mut hasher);
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn lines(command: &mut Command) -> Result<Vec<String>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_an_input_changes_the_number() {
        let folder = std::env::temp_dir().join(format!("posenc-inputs-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let [a, b] = ["a", "b"].map(|name| folder.join(name));
        let versions = ["cudarc v1".to_string()];
        let of = |files: &[&PathBuf], texts: &[String]| {
            let files: Vec<PathBuf> = files.iter().map(|file| file.to_path_buf()).collect();
            number(&files, texts).expect("a number")
        };
        fs::write(&a, "one").expect("a file");
        let first = of(&[&a], &versions);
        assert_eq!(of(&[&a], &versions), first);
        let mut seen = vec![first];
        fs::write(&a, "two").expect("a file");
        seen.push(of(&[&a], &versions));
        fs::write(&b, "").expect("a file");
        seen.push(of(&[&a, &b], &versions));
        seen.push(of(&[&a], &["cudarc v2".into()]));
        fs::remove_file(&a).expect("it was there");
        seen.push(of(&[&a], &versions));
        for (i, number) in seen.iter().enumerate() {
            assert!(!seen[..i].contains(number), "change {i} was not seen: {seen:?}");
        }
        fs::remove_dir_all(folder).expect("it was there");
    }

    #[test]
    fn a_part_is_run_again_only_where_something_changed_or_it_failed() {
        std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).expect("the workspace");
        let what = format!("a part of test {}", std::process::id());
        let mut ran = 0;
        let mut go = |inputs: &str, again: bool, fails: bool| {
            let result = unless_passed(
                &what,
                again,
                &mut Steps::new(),
                || Ok(inputs.into()),
                |_| {
                    ran += 1;
                    ensure!(!fails, "it fails");
                    Ok(())
                },
            );
            (ran, result.is_ok())
        };
        assert_eq!(go("a", false, true), (1, false));
        assert_eq!(go("a", false, false), (2, true), "what failed has not passed");
        assert_eq!(go("a", false, false), (2, true));
        assert_eq!(go("a", true, false), (3, true));
        assert_eq!(go("b", false, false), (4, true));
        assert_eq!(go("a", false, true), (5, false), "only the last inputs are known");
        let note = Path::new(PASSED).join(what.replace(' ', "-"));
        fs::remove_file(note).expect("the note");
    }
}
