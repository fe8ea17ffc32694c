//! The command that runs a program on the emulator.

#[path = "../examples/race.rs"]
mod race;

use std::process::{Command, Output, Stdio};

const README: &str = include_str!("../README.md");

fn emulator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpcheck"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EMULATOR_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shell(flags: &[&str], script: &str) -> Output {
    emulator().arg("run").args(flags).args(["--", "sh", "-c", script]).output().expect("it runs")
}

/// This very program as the program to run: it does what the example does.
fn example(flags: &[&str]) -> Output {
    let own = std::env::current_exe().expect("a test knows its own path");
    let mut command = emulator();
    command.arg("run").args(flags).arg("--").arg(own).args(["--exact", "the_example", "--ignored", "--nocapture"]);
    command.output().expect("it runs")
}

#[test]
#[ignore = "other tests run it as a process"]
fn the_example() {
    match race::main() {
        Ok(()) => {}
        Err(error) => {
            eprintln!("Error: {error:?}");
            std::process::exit(1);
        }
    }
}

#[test]
fn exit_status_and_output_are_those_of_the_program() {
    for status in [0, 1, 77] {
        let output = shell(&[], &format!("echo out; echo err >&2; exit {status}"));
        assert_eq!(output.status.code(), Some(status));
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    }
    let killed = shell(&[], "kill -9 $$").status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed), Some(9));
    let none = emulator().args(["run", "--", "/nowhere/program"]).output().expect("it runs");
    assert_eq!(none.status.code(), Some(127));
    assert!(text(&none.stderr).contains("cannot run /nowhere/program"), "{}", text(&none.stderr));
}

#[test]
fn settings_and_the_driver_reach_the_program() {
    let output =
        shell(&["--cc", "8.6", "--memory", "1GiB"], "echo $EMULATOR_CC $EMULATOR_MEMORY; echo $LD_LIBRARY_PATH");
    let said = text(&output.stdout);
    let (settings, path) = said.split_once('\n').expect("two lines");
    assert_eq!(settings, "8.6 1073741824");
    let folder = path.split(':').next().expect("a folder").trim();
    let files = ["libcuda.so.1", "libcuda.so"].map(|name| std::fs::canonicalize(format!("{folder}/{name}")).unwrap());
    assert_eq!(files[0], files[1]);
    let printed = emulator().arg("folder").output().expect("it runs");
    assert_eq!(text(&printed.stdout).trim(), folder);
}

#[test]
fn the_race_of_the_readme_is_caught_with_these_words() {
    let output = example(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let said = text(&output.stderr);
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line(README).contains(&one_line(&said)), "README.md shows something else than\n{said}");
    // and its source
    let kernel = include_str!("../examples/race.cu").lines().skip(1).collect::<Vec<_>>().join("\n");
    assert!(README.contains(&kernel), "README.md shows another kernel");
    // a device may let it pass
    let unchecked = example(&["--strict", "none"]);
    assert!(unchecked.status.success());
    assert_eq!(text(&unchecked.stderr), "");
}

#[test]
fn counters_are_a_table_on_stderr() {
    let output = example(&["--strict", "bounds", "--counters"]);
    let said = text(&output.stderr);
    let rows: Vec<Vec<&str>> =
        said.lines().map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    let [head, row] = &rows[..] else { panic!("{said}") };
    let value = |name: &str| row[head.iter().position(|h| *h == name).unwrap_or_else(|| panic!("no {name}: {said}"))];
    assert_eq!(
        (value("kernel"), value("launches"), value("bytes read"), value("sectors written")),
        ("reverse", "1", "1024", "32")
    );
    assert_eq!(value("shared passes"), "16");
    assert!(!head.contains(&"distinct"));
    let unique = example(&["--strict", "bounds", "--counters", "--unique"]);
    assert!(text(&unique.stderr).contains("distinct"));
    assert_eq!(text(&example(&["--strict", "bounds"]).stderr), "");
}
