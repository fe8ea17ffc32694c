//! Which test programs can hold a test of a given name, by their sources: nothing is built to find that out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A program that `cargo test` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub package: &'static str,
    /// the test's name, or none for the unit tests of the package
    pub test: Option<String>,
    /// every test in it, as libtest names it: `rope::in_place_and_copied`
    pub names: Vec<String>,
}

/// Packages with their folders, and the root of their unit tests.
const PACKAGES: [(&str, &str, Option<&str>); 7] = [
    ("posenc", ".", Some("src/lib.rs")),
    ("posenc-c", "adapters/c", Some("src/lib.rs")),
    ("posenc-benches", "benches", None),
    ("demo", "tools/demo", Some("src/main.rs")),
    ("posenc-cli", "tools/cli", Some("src/main.rs")),
    ("warpcheck", "tools/emulator", Some("src/main.rs")),
    ("xtask", "tools/xtask", Some("src/main.rs")),
];

/// Programs that hold a test whose name contains `filter`.
pub fn programs(filter: &str) -> Result<Vec<Program>> {
    let mut all = all()?;
    all.iter_mut().for_each(|program| program.names.retain(|name| name.contains(filter)));
    all.retain(|program| !program.names.is_empty());
    Ok(all)
}

/// Tests of the package posenc whose folder is a room: they are what runs on a device of each generation.
pub fn rooms() -> Result<Vec<String>> {
    Ok(tests(Path::new("tests"))?
        .into_iter()
        .filter(|(_, root)| root.ends_with("main.rs"))
        .map(|(name, _)| name)
        .collect())
}

/// Every test program of a package that is one of [`PACKAGES`].
#[cfg(test)]
pub fn tests_of(package: &str) -> Result<Vec<String>> {
    let (_, folder, _) = PACKAGES.iter().find(|(name, ..)| *name == package).context("no such package")?;
    Ok(tests(&Path::new(folder).join("tests"))?.into_iter().map(|(name, _)| name).collect())
}

fn all() -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for (package, folder, root) in PACKAGES {
        let folder = Path::new(folder);
        if let Some(root) = root {
            programs.push(Program { package, test: None, names: names(&folder.join(root))? });
        }
        for (test, root) in tests(&folder.join("tests"))? {
            programs.push(Program { package, test: Some(test), names: names(&root)? });
        }
    }
    Ok(programs)
}

/// `tests/NAME.rs` and `tests/NAME/main.rs`.
fn tests(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((stem, path));
        } else if path.join("main.rs").exists() {
            found.push((stem, path.join("main.rs")));
        }
    }
    found.sort();
    Ok(found)
}

/// Names of the tests of the program whose root is this file.
fn names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let folder = root.parent().context("a file has a folder")?;
    collect(root, folder, &[], &mut names)?;
    Ok(names)
}

/// Reads one file: `folder` is where its modules are, `path` its own module's path.
fn collect(file: &Path, folder: &Path, path: &[String], names: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    // Modules in this file that are open, with the indentation of their closing brace.
    let mut open: Vec<(usize, String)> = Vec::new();
    let (mut is_test, mut elsewhere, mut twins) = (false, None, false);
    for line in text.lines() {
        let trimmed = line.trim();
        let indentation = line.len() - line.trim_start().len();
        if trimmed == "}" && open.last().is_some_and(|(outer, _)| *outer == indentation) {
            open.pop();
            continue;
        }
        // A macro of tests is given their names, and makes a module `gpu` of them.
        twins |= trimmed.contains("gpu_twins!") && !trimmed.starts_with("//");
        if twins {
            let words = trimmed.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            names.extend(words.map(|word| joined(path, &["gpu".into(), word.into()])));
            twins = !trimmed.ends_with([';', '}']);
            continue;
        }
        if let Some(value) = trimmed.strip_prefix("#[path = \"") {
            elsewhere = value.split('"').next().map(PathBuf::from);
        } else if trimmed == "#[test]" {
            is_test = true;
        } else if let Some(module) = module(trimmed) {
            let mut inner: Vec<String> = path.to_vec();
            inner.extend(open.iter().map(|(_, name)| name.clone()));
            inner.push(module.trim_end_matches([';', ' ', '{']).into());
            let name = inner[inner.len() - 1].clone();
            if trimmed.ends_with('{') {
                open.push((indentation, name));
            } else if trimmed.ends_with(';') {
                let below = open.iter().fold(folder.to_path_buf(), |folder, (_, name)| folder.join(name));
                let (file, folder) = match elsewhere.take() {
                    // Relative to the folder of this file.
                    Some(other) => {
                        let file = file.parent().unwrap_or(folder).join(other);
                        let folder = file.parent().unwrap_or(folder).to_path_buf();
                        (file, folder)
                    }
                    None if below.join(&name).with_extension("rs").exists() => {
                        (below.join(&name).with_extension("rs"), below.join(&name))
                    }
                    None => (below.join(&name).join("mod.rs"), below.join(&name)),
                };
                collect(&file, &folder, &inner, names)?;
            }
        } else if let Some(rest) = trimmed.strip_prefix("fn ").filter(|_| is_test) {
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            let mut inner: Vec<String> = open.iter().map(|(_, name)| name.clone()).collect();
            inner.push(name.into());
            if !name.is_empty() {
                names.push(joined(path, &inner));
            }
            is_test = false;
        }
    }
    Ok(())
}

/// What follows `mod` in the declaration of a module.
fn module(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
    line.strip_prefix("mod ").filter(|rest| rest.ends_with([';', '{']))
}

fn joined(path: &[String], inner: &[String]) -> String {
    path.iter().chain(inner).map(String::as_str).collect::<Vec<_>>().join("::")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    #[test]
    fn tests_are_named_by_the_path_of_their_module() {
        let folder = Folder::with(
            "names",
            &[
                (
                    "room/main.rs",
                    "mod one;\n#[path = \"../support/mod.rs\"]\nmod support;\nmod deep;\n\n#[test]\nfn at_the_root() {\n}\n",
                ),
                (
                    "room/one.rs",
                    "fn helper() {}\n\n#[test]\n#[ignore = \"why\"]\nfn first() {}\n\nmod tests {\n    #[test]\n    fn inner() {}\n}\n\n#[test]\nfn last() {}\n",
                ),
                ("room/deep/mod.rs", "mod below;\n"),
                ("room/deep/below.rs", "#[test]\nfn found() {}\n"),
                ("support/mod.rs", "mod calls;\n"),
                ("support/calls.rs", "support::gpu_twins! {\n    left, right,\n}\n"),
                ("single.rs", "#[test]\nfn alone() {}\n"),
            ],
        );
        let found = tests(&folder.0).expect("the folder");
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["room", "single"]);
        let names = names(&found[0].1).expect("the sources");
        for name in [
            "one::first",
            "one::tests::inner",
            "one::last",
            "support::calls::gpu::left",
            "deep::below::found",
            "at_the_root",
        ] {
            assert!(names.contains(&name.to_string()), "{name} is not in {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("helper")), "{names:?}");
    }

    #[test]
    fn this_test_is_found_by_its_name() {
        std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).expect("the workspace");
        let found = programs("find::tests::this_test_is_found").expect("the sources");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].package, &found[0].test), ("xtask", &None));
        assert!(rooms().expect("the sources").contains(&"rotate".to_string()));
    }
}
