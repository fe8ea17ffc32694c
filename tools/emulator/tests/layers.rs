//! The package is built in layers: a file uses files of the layers below it, and none above. The list is the design,
//! README.md tells it; a new file takes its place here.

use std::path::{Path, PathBuf};

/// Files from the ground up, each with a folder's files where the folder begins. A file may use what stands before it.
const ORDER: &[&str] = &[
    // settings, counts, kinds of faults
    "config",
    "counters",
    "fault",
    // device memory, and which of its bytes were written
    "device",
    "written",
    // PTX
    "ptx::ast",
    "ptx",
    "ptx::lexer",
    "ptx::parser",
    // values: what an operation is made of
    "exec::float",
    "exec::mods",
    "exec::operand",
    // state: what runs
    "exec::stamp",
    "exec::causal",
    "exec::state",
    "exec::unique",
    "exec::machine",
    // lanes: instructions that are functions of scalars
    "exec::lane",
    "exec::convert",
    "exec::table",
    // memory
    "exec::init",
    "exec::race",
    "exec::reach",
    "exec::memory",
    "exec::atomic",
    "exec::print",
    // control: the program counter, and lanes that wait for one another
    "exec::frame",
    "exec::control",
    "exec::barrier",
    "exec::warp",
    "exec::matrix",
    "exec::copy",
    // blocks and grids
    "exec::block",
    "exec::grid",
    "exec",
    // lowering
    "lower::order",
    "lower",
    "lower::emit",
    // calls and handles
    "driver::code",
    "driver::failure",
    "driver::call",
    "driver::handle",
    "driver::user",
    // streams and contexts
    "driver::timeline",
    "driver::capture",
    "driver::context",
    "driver::device",
    "driver::stream",
    // what streams order
    "driver::event",
    "driver::memory",
    // code
    "driver::module",
    "driver::link",
    "driver::function",
    // what runs
    "driver::summary",
    "driver::launch",
    "driver::graph",
    // the edge
    "driver::extension",
    "driver::proc",
    "driver::unsupported",
    "driver",
    "client",
    "lib",
    "main",
];

/// A folder's `mod.rs` that only names its modules and hands things on, or holds what they share: it may name them all.
const FACES: &[&str] = &["ptx", "exec", "lower", "driver", "lib"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The module of a file: `exec::lane` for `src/exec/lane.rs`.
fn module(root: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(root).expect("inside src").with_extension("");
    let parts: Vec<_> = inside.iter().map(|p| p.to_str().expect("plain names")).filter(|p| *p != "mod").collect();
    parts.join("::")
}

/// Paths that a file names after `crate::` and `super::`, lists in braces opened.
fn named(text: &str, own: &str, face: bool) -> Vec<String> {
    // in a file `super` is its folder; in a folder's face it is the folder above
    let parent = |path: &str| path.rsplit_once("::").map_or(String::new(), |(p, _)| p.to_owned());
    let up = parent(own);
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut out = Vec::new();
    for (word, base) in [("crate::", String::new()), ("super::", up), ("self::", own.to_owned())] {
        if face && word == "super::" {
            continue;
        }
        for (at, _) in code.match_indices(word) {
            let rest = &code[at + word.len()..];
            open(rest, &base, &mut out);
        }
    }
    out
}

/// One path, or each of a list in braces.
fn open(rest: &str, base: &str, out: &mut Vec<String>) {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let path = &rest[..end];
    let whole = if base.is_empty() { path.to_owned() } else { format!("{base}::{path}") };
    if !rest[end..].starts_with('{') {
        out.push(whole.trim_end_matches(':').to_owned());
        return;
    }
    let (mut depth, mut start) = (0, end + 1);
    for (i, c) in rest.char_indices().skip(end) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            open(rest[start..i].trim(), whole.trim_end_matches(':'), out);
            start = i + 1;
        }
        if depth == 0 {
            return;
        }
    }
}

#[test]
fn no_file_uses_a_layer_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in &files {
        let own = module(&root, file);
        let Some(here) = place(&own) else {
            wrong.push(format!("src/{own} has no place in the list of layers"));
            continue;
        };
        let text = std::fs::read_to_string(file).expect("a source");
        for path in named(&text, &own, file.ends_with("mod.rs")) {
            // the longest beginning that is a file; a name of a folder's own face belongs to the face
            let mut known = path.as_str();
            let there = loop {
                if let Some(there) = place(known) {
                    break Some(there);
                }
                match known.rsplit_once("::") {
                    Some((shorter, _)) => known = shorter,
                    None => break None,
                }
            };
            let Some(there) = there else { continue };
            seen += 1;
            let inside_own_folder = FACES.contains(&own.as_str()) && known.starts_with(&format!("{own}::"));
            if there > here && !inside_own_folder {
                wrong.push(format!("{own} uses {path}, which stands above it"));
            }
        }
    }
    assert!(seen > 200, "only {seen} uses were found: the test reads them wrongly");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for known in ORDER {
        assert!(files.iter().any(|f| module(&root, f) == *known), "{known} stands in the list and is no file");
    }
}

#[test]
fn lists_in_braces_are_opened() {
    let text = "use super::{a::{B, c::D}, e};\nuse crate::f::g; // use crate::no;\n";
    let mut names = named(text, "exec::x", false);
    names.sort();
    assert_eq!(names, ["exec::a::B", "exec::a::c::D", "exec::e", "f::g"]);
}
