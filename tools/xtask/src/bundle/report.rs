//! What a test program printed, in numbers.

use std::collections::BTreeMap;

/// Outcome of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// with the first words of why
    Failed(String),
    /// the program ended before it
    NotRun,
}

/// Tests by name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Words of a test that looks at what only the emulator counts.
const LEFT_TO_THE_EMULATOR: &str = "left to the emulator: ";
/// Words of a test that lacks something on this machine.
const SKIPPED: &str = "not run: ";

/// Names in the output of `--list`.
pub fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_suffix(": test")).map(String::from).collect()
}

/// The outcome of each of `names` in what libtest printed.
pub fn outcomes(names: &[String], output: &str) -> Outcomes {
    let mut found: Outcomes = names.iter().map(|name| (name.clone(), Outcome::NotRun)).collect();
    for line in output.lines() {
        // Something else may stand before it on the line: what a child or a driver printed.
        let Some((_, line)) = line.split_once("test ") else { continue };
        let Some((name, result)) = line.rsplit_once(" ... ") else { continue };
        let name = name.split(" - should panic").next().unwrap_or(name);
        let Some(outcome) = found.get_mut(name) else { continue };
        if result.starts_with("ok") {
            *outcome = Outcome::Passed;
        } else if result.starts_with("FAILED") {
            *outcome = Outcome::Failed(why(section(output, name)));
        }
    }
    found
}

/// What a test printed, by libtest's heading.
fn section<'a>(output: &'a str, name: &str) -> &'a str {
    let heading = format!("---- {name} stdout ----");
    let Some((_, rest)) = output.split_once(&heading) else { return "" };
    rest.split("\n---- ").next().unwrap_or(rest).split("\n\nfailures:").next().unwrap_or(rest)
}

/// Where a test panicked and the first line of what it said.
fn why(printed: &str) -> String {
    let mut lines = printed.lines().skip_while(|line| !line.contains("panicked at"));
    let Some(first) = lines.next() else { return "no message".into() };
    let place = first.split_once("panicked at ").map_or(first, |(_, place)| place);
    let said: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("note:")).collect();
    shortened(&format!("{place} {}", said.iter().take(3).copied().collect::<Vec<_>>().join(" ")), 240)
}

/// The first `most` characters.
pub fn shortened(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short += "...";
    }
    short
}

/// Tests that passed without their counts, which are the emulator's.
pub fn left_to_the_emulator(outcomes: &Outcomes, output: &str) -> usize {
    let names = outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Passed);
    names.filter(|(name, _)| section(output, name).contains(LEFT_TO_THE_EMULATOR)).count()
}

/// Tests that passed because this machine lacks something, with what it is.
pub fn skipped(outcomes: &Outcomes, output: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, _) in outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Passed) {
        let said = section(output, name).lines().find_map(|line| line.strip_prefix(SKIPPED));
        found.extend(said.map(|said| (name.clone(), said.to_string())));
    }
    found
}

/// Errors that a tool of compute-sanitizer counted; `None` if it did not come to its end.
pub fn errors(log: &str) -> Option<u64> {
    let line = log.lines().rev().find(|line| line.starts_with("========= ") && line.contains("SUMMARY: "))?;
    line.split("SUMMARY: ").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// The first error in a log of compute-sanitizer: its first three lines.
pub fn first_error(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("========= ")).collect();
    let is_error = |line: &str| {
        !line.starts_with(' ') && !line.contains("COMPUTE-SANITIZER") && !line.contains("SUMMARY") && !line.is_empty()
    };
    let at = lines.iter().position(|line| is_error(line))?;
    let words: Vec<&str> = lines[at..].iter().take(3).map(|line| line.trim()).collect();
    Some(shortened(&words.join(" "), 240))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 5 tests
test rope::ends ... ok
emulator: something test rope::counts ... ok
test rope::wrong ... FAILED
test rope::pending - should panic ... ok

successes:

---- rope::counts stdout ----
left to the emulator: counters

---- rope::ends stdout ----
not run: no C compiler

successes:
    rope::counts

failures:

---- rope::wrong stdout ----
some words

thread 'rope::wrong' (17) panicked at tests/rotate/rope.rs:12:5:
assertion `left == right` failed: token 3
  left: 1
 right: 2
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace


failures:
    rope::wrong

test result: FAILED. 3 passed; 1 failed
";

    fn names() -> Vec<String> {
        listed(
            "rope::ends: test\nrope::counts: test\nrope::wrong: test\nrope::pending: test\nrope::hangs: test\n\n5 tests, 0 benchmarks\n",
        )
    }

    #[test]
    fn each_test_has_its_outcome() {
        let found = outcomes(&names(), OUTPUT);
        assert_eq!(found.len(), 5);
        assert_eq!(found["rope::ends"], Outcome::Passed);
        assert_eq!(found["rope::counts"], Outcome::Passed);
        assert_eq!(found["rope::pending"], Outcome::Passed);
        assert_eq!(found["rope::hangs"], Outcome::NotRun);
        let why = "tests/rotate/rope.rs:12:5: assertion `left == right` failed: token 3 left: 1 right: 2";
        assert_eq!(found["rope::wrong"], Outcome::Failed(why.into()));
        assert_eq!(left_to_the_emulator(&found, OUTPUT), 1);
        assert_eq!(skipped(&found, OUTPUT), [("rope::ends".to_string(), "no C compiler".to_string())]);
    }

    #[test]
    fn a_program_that_is_killed_leaves_the_rest_not_run() {
        let cut = OUTPUT.split("test rope::wrong").next().expect("a beginning");
        let found = outcomes(&names(), cut);
        assert_eq!(found.values().filter(|outcome| **outcome == Outcome::NotRun).count(), 3);
        // A failure whose message was not printed any more.
        let cut = OUTPUT.split("test rope::pending").next().expect("a beginning");
        assert_eq!(outcomes(&names(), cut)["rope::wrong"], Outcome::Failed("no message".into()));
    }

    #[test]
    fn errors_of_each_tool_are_counted() {
        let log = "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at rope_wide_bf16+0x10\n=========     by thread (0,0,0)\n========= ERROR SUMMARY: 3 errors\n";
        assert_eq!(errors(log), Some(3));
        let first = "Invalid __global__ read of size 4 bytes at rope_wide_bf16+0x10 by thread (0,0,0)";
        assert_eq!(first_error(log).as_deref(), Some(first));
        let races =
            "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n";
        assert_eq!((errors(races), first_error(races)), (Some(0), None));
        assert_eq!(errors("========= COMPUTE-SANITIZER\n========= Error: Device not supported\n"), None);
    }
}
