//! The committed list of mutants: `tools/xtask/mutants/*.toml`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const LISTS: &str = "tools/xtask/mutants";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    file: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    tests: Vec<String>,
    mutant: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    from: String,
    to: String,
    tests: Option<Vec<String>>,
    equal: Option<String>,
    survives: Option<String>,
}

/// Tests of one program whose names contain `filter`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tests {
    /// a room, or `lib` for the unit tests
    pub program: String,
    pub filter: String,
}

/// One change of one file, and the tests that should notice it.
#[derive(Debug, Clone)]
pub struct Mutant {
    pub path: String,
    pub from: String,
    pub to: String,
    pub tests: Vec<Tests>,
    /// why it computes the same
    pub equal: Option<String>,
    /// why no test can notice it
    pub survives: Option<String>,
}

impl Mutant {
    /// The text of its file with the change.
    pub fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(&self.from).count();
        ensure!(count == 1, "{}: {:?} is there {count} times, it must be there once", self.path, self.from);
        ensure!(self.from != self.to, "{}: {:?} changes nothing", self.path, self.from);
        Ok(text.replacen(&self.from, &self.to, 1))
    }

    pub fn is_kernel(&self) -> bool {
        self.path.starts_with("kernels/")
    }

    /// The line of its file that changes first.
    pub fn line(&self) -> usize {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let same = self.from.bytes().zip(self.to.bytes()).take_while(|(a, b)| a == b).count();
        text.find(&self.from).map_or(0, |at| 1 + text.bytes().take(at + same).filter(|&byte| byte == b'\n').count())
    }

    /// The change as one line each.
    pub fn change(&self) -> String {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("`{}` -> `{}`", one_line(&self.from), one_line(&self.to))
    }
}

/// All mutants, in the order of the lists.
pub fn read() -> Result<Vec<Mutant>> {
    let mut paths = fs::read_dir(LISTS)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut mutants = Vec::new();
    for path in paths {
        mutants.extend(read_one(&path)?);
    }
    Ok(mutants)
}

fn read_one(path: &Path) -> Result<Vec<Mutant>> {
    let list: List = toml::from_str(&fs::read_to_string(path)?).with_context(|| path.display().to_string())?;
    let mut mutants = Vec::new();
    for file in list.file {
        for Entry { from, to, tests, equal, survives } in file.mutant {
            let tests = tests.as_ref().unwrap_or(&file.tests).iter().map(|tests| {
                let (program, filter) = tests.split_once(' ').unwrap_or((tests, ""));
                Tests { program: program.into(), filter: filter.into() }
            });
            mutants.push(Mutant { path: file.path.clone(), from, to, tests: tests.collect(), equal, survives });
        }
    }
    Ok(mutants)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::find;

    #[test]
    fn every_mutant_applies_and_has_tests() {
        std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).expect("the workspace");
        let mutants = read().expect("the lists");
        assert!(mutants.len() >= 150, "{}", mutants.len());
        let (mut seen, mut by_file) = (BTreeSet::new(), BTreeMap::new());
        for mutant in &mutants {
            let text = fs::read_to_string(&mutant.path).expect(&mutant.path);
            mutant.apply(&text).expect("the change");
            assert!(seen.insert((&mutant.path, &mutant.from, &mutant.to)), "{} {} twice", mutant.path, mutant.change());
            assert!(mutant.equal.is_none() || mutant.survives.is_none(), "{} {}", mutant.path, mutant.change());
            *by_file.entry(mutant.path.clone()).or_insert(0) += 1;
        }
        for Tests { program, filter } in mutants.iter().flat_map(|mutant| &mutant.tests).collect::<BTreeSet<_>>() {
            let wanted = (program != "lib").then_some(program);
            let programs = find::programs(filter).expect("the sources");
            let found = programs.iter().any(|of| of.package == "posenc" && of.test.as_ref() == wanted);
            assert!(found, "no test of {program} is named like {filter:?}");
        }
        let kernels = crate::check::kernels(Path::new("kernels")).expect("the kernels");
        // A file of entries alone has few places to change.
        let few: Vec<_> = kernels
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .filter(|path| !by_file.contains_key(path))
            .collect();
        assert!(few.is_empty(), "no mutants of {few:?}");
    }

    #[test]
    fn a_change_must_be_there_once() {
        let mutant = |from: &str| Mutant {
            path: "file".into(),
            from: from.into(),
            to: "b".into(),
            tests: Vec::new(),
            equal: None,
            survives: None,
        };
        assert_eq!(mutant("a").apply("x a y").expect("once"), "x b y");
        for (from, count) in [("a", 2), ("c", 0)] {
            let error = mutant(from).apply("a a").expect_err("not once").to_string();
            assert_eq!(error, format!("file: {from:?} is there {count} times, it must be there once"));
        }
    }
}
