//! Formatting, lints, documentation, the oldest compiler, licences and the package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::steps::Steps;
use crate::{cargo, cuda, package, pip, run};

/// A folder of its own: another compiler would build everything anew.
const OLDEST_TARGET: &str = "target/oldest-rust";
/// Where tools of cargo are installed.
const TOOLS: &str = "target/tools";
/// Python tools.
const PYTHON_TOOLS: &str = "target/tools/python";
const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
const CARGO_SEMVER_CHECKS: (&str, &str) = ("cargo-semver-checks", "0.44.0");
/// Columns of a line of a kernel, as in `.clang-format`.
const COLUMNS: usize = 120;

pub fn run_all(steps: &mut Steps) -> Result<()> {
    cuda::nvrtc()?;
    steps.run("format", || format(true))?;
    steps.run("clippy", || run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])))?;
    steps.run("features", features)?;
    steps.run("documentation", || {
        run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.run("the oldest Rust", oldest_rust)?;
    steps.run("licences and sources", || deny(false))?;
    steps.run("package", package::check)
}

/// Each feature of the crate builds alone, and the specs survive a round trip through serde.
fn features() -> Result<()> {
    for feature in ["", "cuda", "cpu", "models", "serde"] {
        let mut check = Command::new(env!("CARGO"));
        check.args([
            "clippy",
            "--quiet",
            "--package",
            "posenc",
            "--lib",
            "--no-default-features",
            "--features",
            feature,
        ]);
        run(check.args(["--", "-D", "warnings"]).env("POSENC_KERNELS", "none"))?;
    }
    // Without the feature `cpu` every operation on the CPU is its plain reference.
    for (features, test) in [("serde,models", "serde"), ("models", "plain")] {
        let mut tests = Command::new(env!("CARGO"));
        tests.args(["test", "--quiet", "--package", "posenc", "--no-default-features", "--features", features]);
        run(tests.args(["--test", test]).env("POSENC_KERNELS", "none"))?;
    }
    Ok(())
}

/// Checks libraries, programs and examples with the compiler that Cargo.toml names as the oldest, where rustup has it. Tests
/// may be newer.
fn oldest_rust() -> Result<()> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let mut there = Command::new("rustup");
    there.args(["run", version, "rustc", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !there.status().is_ok_and(|status| status.success()) {
        println!(
            "not checked: rustup has no Rust {version} (rustup toolchain install {version} --profile minimal); clippy has \
             looked for newer functions of the standard library"
        );
        return Ok(());
    }
    let mut check = Command::new("rustup");
    check.args(["run", version, "cargo", "check", "--workspace", "--lib", "--bins", "--examples"]);
    check.args(["--target-dir", OLDEST_TARGET]);
    // What the kernels are does not depend on the compiler.
    run(check.env("POSENC_KERNELS", "none").env_remove("CARGO").env_remove("RUSTC"))
}

// --------------------------------------------------------------------------------------------------------------- format

/// Formats Rust, kernels and Python, or says what is not formatted.
pub fn format(only_check: bool) -> Result<()> {
    run(Command::new(env!("CARGO")).args(["fmt", "--all"]).args(only_check.then_some("--check")))?;

    let clang_format = pip::package(PYTHON_TOOLS, "clang-format", "clang_format/data/bin/clang-format")?;
    let kernels = kernels(Path::new("kernels"))?;
    let mut long = Vec::new();
    for kernel in &kernels {
        let text = fs::read_to_string(kernel)?;
        if only_check {
            let lines = text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
            long.extend(lines.map(|(i, _)| format!("{}:{}", kernel.display(), i + 1)));
        } else {
            fs::write(kernel, wrap_comments(&text))?;
        }
    }
    let mut command = Command::new(clang_format);
    command.args(if only_check { ["--dry-run", "-Werror"].as_slice() } else { &["-i"] }).args(&kernels);
    run(&mut command).context("cargo xtask format formats kernels")?;
    ensure!(long.is_empty(), "longer than {COLUMNS} columns, cargo xtask format wraps comments: {}", long.join(" "));

    let ruff = pip::package(PYTHON_TOOLS, "ruff", "bin/ruff")?;
    let ruff = |arguments: &[&str]| run(Command::new(&ruff).args(arguments).arg("."));
    ruff(if only_check { &["check", "--quiet", "--no-cache"] } else { &["check", "--quiet", "--no-cache", "--fix"] })?;
    ruff(if only_check { &["format", "--no-cache", "--check"] } else { &["format", "--no-cache"] })
}

/// Every `.cu` and `.cuh`.
pub fn kernels(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(kernels(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Breaks comments that are too long, and moves what is left over to the front of the next line of the same comment.
/// clang-format would fill every line anew, tables too.
fn wrap_comments(text: &str) -> String {
    let mut lines = Vec::new();
    let mut rest: Option<(String, String)> = None;
    for line in text.lines() {
        let mut line = line.to_string();
        if let Some((start, words)) = rest.take() {
            // A line of a table, which has spaces in a row, begins something of its own.
            let of_same = line
                .strip_prefix(&start)
                .filter(|rest| !rest.trim().is_empty() && !rest.starts_with(' ') && !rest.contains("  "));
            match of_same {
                Some(next) => line = format!("{start}{words} {next}"),
                None => lines.push(format!("{start}{words}")),
            }
        }
        let start = &line[..line.len() - line.trim_start().len()];
        if line.chars().count() > COLUMNS && line.trim_start().starts_with("// ") {
            let start = format!("{start}// ");
            let end = line.char_indices().nth(COLUMNS).map_or(line.len(), |(at, _)| at);
            // The space may stand just behind the last column.
            let longest = line[..end].len() + usize::from(line[end..].starts_with(' '));
            if let Some(at) = line[..longest].rfind(' ').filter(|at| *at > start.len()) {
                rest = Some((start, line[at + 1..].to_string()));
                line.truncate(at);
            }
        }
        lines.push(line);
    }
    lines.extend(rest.map(|(start, words)| format!("{start}{words}")));
    lines.join("\n") + "\n"
}

// ---------------------------------------------------------------------------------------------------------- cargo's tools

/// Checks licences, sources and duplicates of dependencies by `deny.toml`; without `install`, only where cargo-deny is.
pub fn deny(install: bool) -> Result<()> {
    let Some(program) = cargo_tool(CARGO_DENY, install)? else {
        println!("not checked: cargo-deny {} is not in {TOOLS} (cargo xtask deny builds it, in minutes)", CARGO_DENY.1);
        return Ok(());
    };
    run(Command::new(program).args(["--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

/// Compares the public items with the newest published version; says so where there is none.
pub fn semver() -> Result<()> {
    let package = "posenc";
    // Elsewhere, so that cargo asks the registry and not this workspace.
    let output = Command::new(env!("CARGO")).args(["info", package]).current_dir(std::env::temp_dir()).output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("could not find") {
        println!("no version of {package} is published: there is nothing to compare with");
        return Ok(());
    }
    ensure!(output.status.success(), "cargo info {package} failed: {message}");
    let program = cargo_tool(CARGO_SEMVER_CHECKS, true)?.context("it was just installed")?;
    run(Command::new(program).args(["semver-checks", "--package", package]).env("POSENC_KERNELS", "none"))
}

/// A tool of cargo in its pinned version, installed if asked for.
fn cargo_tool((name, version): (&str, &str), install: bool) -> Result<Option<PathBuf>> {
    // Each version has a folder, so that one that is there is the right one.
    let root = std::path::absolute(TOOLS)?.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        if !install {
            return Ok(None);
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["install", "--locked", name, "--version", version, "--root"]).arg(&root);
        run(&mut cargo)?;
    }
    Ok(Some(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_comment_flows_into_the_next_line_and_no_further_than_it_must() {
        let words = "word ".repeat(30);
        let text = format!("    // {}\n    // next line\nint x;\n", words.trim());
        let wrapped = wrap_comments(&text);
        let lines: Vec<&str> = wrapped.lines().collect();
        assert_eq!(lines.len(), 3, "{wrapped}");
        assert!(lines[0].len() <= COLUMNS && lines[0].ends_with("word"), "{wrapped}");
        assert!(lines[1].starts_with("    // word word") && lines[1].ends_with(" next line"), "{wrapped}");
        assert_eq!(lines[2], "int x;");
    }

    #[test]
    fn the_rest_of_a_comment_gets_a_line_of_its_own_before_code_and_before_a_table() {
        let long = format!("// {}", "word ".repeat(24) + "end");
        let wrapped = wrap_comments(&format!("{long}\nint x;\n{long}\n// x     [rows]\n"));
        let lines: Vec<&str> = wrapped.lines().collect();
        assert_eq!(lines[1..3], ["// word end", "int x;"], "{wrapped}");
        assert_eq!(lines[4..], ["// word end", "// x     [rows]"], "{wrapped}");
    }

    #[test]
    fn what_fits_and_what_is_code_stays() {
        let text = format!("// {}\nint {};\n", "x".repeat(117), "y ".repeat(100));
        assert_eq!(wrap_comments(&text), text);
    }
}
