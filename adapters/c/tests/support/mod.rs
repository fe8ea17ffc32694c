#![allow(dead_code, reason = "each test uses a part")]
//! What the tests of the header and of its C++ share: types of Rust in C, comments, compilers.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Columns of a line.
pub const WIDTH: usize = 120;

/// A type of Rust in C, ready for a name. What came through several macros has spaces behind its stars.
pub fn c_type(ty: &str) -> String {
    let ty = &ty.replace("* ", "*");
    let number = match ty.as_str() {
        "u8" | "u16" | "u32" | "u64" | "i32" | "i64" => {
            format!("{}int{}_t ", if ty.starts_with('u') { "u" } else { "" }, &ty[1..])
        }
        "f32" => "float ".into(),
        "f64" => "double ".into(),
        "c_char" => "char ".into(),
        "c_void" => "void ".into(),
        _ => String::new(),
    };
    if !number.is_empty() {
        return number;
    }
    match (ty.strip_prefix("*const "), ty.strip_prefix("*mut ")) {
        (Some(inner), _) if inner.starts_with('*') => format!("{}const *", c_type(inner)),
        (Some(inner), _) => format!("const {}*", c_type(inner)),
        (_, Some(inner)) => format!("{}*", c_type(inner)),
        _ => format!("{ty} "),
    }
}

pub fn declaration(name: &str, ty: &str) -> String {
    match ty.strip_prefix('[').and_then(|ty| ty.strip_suffix(']')).and_then(|ty| ty.split_once("; ")) {
        Some((element, count)) => format!("{}{name}[{count}]", c_type(element)),
        None => format!("{}{name}", c_type(ty)),
    }
}

/// A comment, each line behind `indent`.
pub fn comment(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for paragraph in text.split("\n\n") {
        if lines.len() > 1 || !lines[0].is_empty() {
            lines.extend([String::new(), String::new()]);
        }
        for word in paragraph.split_whitespace() {
            let last = lines.len() - 1;
            if !lines[last].is_empty() && indent.len() + 3 + lines[last].len() + 1 + word.len() + 3 > WIDTH {
                lines.push(word.into());
            } else {
                let space = if lines[last].is_empty() { "" } else { " " };
                lines[last] = format!("{}{space}{word}", lines[last]);
            }
        }
    }
    let text = lines.join(&format!("\n{indent}   "));
    let text: Vec<_> = text.lines().map(str::trim_end).collect();
    format!("{indent}/* {} */\n", text.join("\n"))
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The committed file of this name, which must be what the library says; with POSENC_BLESS it is written.
pub fn check_current(name: &str, text: &str) {
    let path = root().join(name);
    if std::env::var_os("POSENC_BLESS").is_some() {
        std::fs::write(&path, text).expect("the file is written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let bless = "POSENC_BLESS=1 cargo test -p posenc-c --test header --test cpp";
    assert!(committed == text, "adapters/c/{name} is not current: {bless}");
}

/// The machine's compiler of C or C++ with every warning, for a language standard.
pub fn compiler(standard: &str) -> Command {
    let (variable, default) = if standard.starts_with("c++") { ("CXX", "c++") } else { ("CC", "cc") };
    let mut command = Command::new(std::env::var(variable).unwrap_or_else(|_| default.into()));
    command.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-I"]).arg(root());
    command
}

#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// The folder of the built library: the test's own, or the one above it.
pub fn library() -> PathBuf {
    let own = std::env::current_exe().expect("the test's path");
    let mut folders = own.ancestors().skip(1).take(2);
    folders.find(|folder| folder.join("libposenc_c.so").exists()).expect("libposenc_c.so beside the test").into()
}
