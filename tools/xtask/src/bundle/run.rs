//! On the machine with the GPU: runs one part of an unpacked bundle, and packs what came of it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::parts::{self, Part};
use super::report::{self, Outcome, Outcomes};
use crate::device;

/// What is left behind the deadline of a part for programs that end by themselves, and for packing.
pub const GRACE: Duration = Duration::from_secs(15);
/// A case of the benches ends within this: most of it goes into 13 GB of inputs.
const LONGEST_CASE: Duration = Duration::from_secs(25);
/// All peers of one case end within this: most of it goes into their compilers.
const LONGEST_PEER: Duration = Duration::from_secs(60);
/// Of a file of results; a longer one keeps its beginning and its end.
const MOST_BYTES: usize = 256 << 10;
/// Lines of a summary that name what failed or did not run.
const MOST_LINES: usize = 40;
const RESULTS: &str = "results";
const ARCHIVE: &str = "results.tar.gz";

/// Runs a part of the bundle that this program lies in, and gives the number of its programs that failed.
pub fn run(part: Part, arguments: &[String]) -> Result<usize> {
    let program = std::env::current_exe()?;
    let root = program.parent().context("a program has a folder")?;
    let time = match std::env::var("POSENC_SECONDS") {
        Ok(text) => {
            let wanted = text.parse().with_context(|| format!("POSENC_SECONDS is {text}, it must be a number"))?;
            Duration::from_secs(wanted).min(parts::TIME)
        }
        Err(_) => parts::TIME,
    };
    let run = Run::of(root, part, arguments, time)?;
    say(&format!("\n{}", run.write_summary()?));
    let archive = root.join(ARCHIVE);
    pack(&root.join(RESULTS), &archive, parts::RESULTS)?;
    say(&archive.display().to_string());
    Ok(run.failed)
}

/// Prints a line, also where nobody listens any more: the results are in files.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    By(ExitStatus),
    OutOfTime,
}

impl Ended {
    fn is_success(self) -> bool {
        matches!(self, Self::By(status) if status.success())
    }

    /// In words, where it was no ordinary end.
    fn words(self) -> Option<String> {
        match self {
            Self::OutOfTime => Some("out of time".into()),
            Self::By(status) => status.signal().map(|signal| format!("ended by signal {signal}")),
        }
    }
}

/// Runs `command` in a process group of its own, with its output in a file, and ends the whole group at the limit. One that cannot
/// be started ends with 127, as in a shell.
fn execute(command: &mut Command, output: &Path, limit: Duration) -> Result<(Ended, Duration)> {
    let mut file = File::create(output).with_context(|| output.display().to_string())?;
    let start = Instant::now();
    command.stdin(Stdio::null()).stderr(file.try_clone()?).stdout(file.try_clone()?).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            writeln!(file, "cannot start {command:?}: {error}")?;
            return Ok((Ended::By(ExitStatus::from_raw(127 << 8)), start.elapsed()));
        }
    };
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Ended::By(status);
        }
        if start.elapsed() >= limit {
            // What it started ends too, or it would go on using the device.
            let group = format!("kill -s KILL -- -{}", child.id());
            Command::new("sh").args(["-c", &group]).stderr(Stdio::null()).status()?;
            child.kill()?;
            child.wait()?;
            break Ended::OutOfTime;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Ok((ended, start.elapsed()))
}

struct Run {
    /// the unpacked bundle
    root: PathBuf,
    part: Part,
    /// of results
    folder: PathBuf,
    begun: Instant,
    time: Duration,
    device: String,
    commit: String,
    /// a line of each program
    programs: Vec<String>,
    /// what failed first in each program, what was not run, what passed in part
    notes: Vec<String>,
    failed: usize,
}

/// A test program that has run.
struct Suite {
    name: String,
    path: PathBuf,
    filter: &'static [&'static str],
    outcomes: Outcomes,
    /// tests that failed beside others and passed alone
    alone: usize,
    left_to_the_emulator: usize,
    skipped: Vec<(String, String)>,
    ended: Ended,
    time: Duration,
}

impl Run {
    /// Runs a part to its end.
    fn of(root: &Path, part: Part, arguments: &[String], time: Duration) -> Result<Self> {
        ensure!(arguments.is_empty() || part != Part::Tests, "the tests run all that there are");
        let mut run = Self::new(root, part, time)?;
        run.write_summary()?;
        match part {
            Part::Tests => run.tests()?,
            Part::Sanitizer => run.sanitizer(arguments)?,
            Part::Benches => run.benches(arguments)?,
            Part::Peers => run.peers(arguments)?,
        }
        run.write_summary()?;
        Ok(run)
    }

    fn new(root: &Path, part: Part, time: Duration) -> Result<Self> {
        let folder = root.join(RESULTS).join(part.name());
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let commit = fs::read_to_string(root.join("commit")).unwrap_or_default().trim().into();
        let device = device::describe().unwrap_or_else(|| "no device".into());
        // What nvidia-smi adds: clocks, power, other programs on the device.
        if let Ok(output) = Command::new("nvidia-smi").arg("-q").output() {
            fs::write(folder.join("nvidia-smi.txt"), output.stdout)?;
        }
        let (programs, notes) = (Vec::new(), Vec::new());
        Ok(Self {
            root: root.into(),
            part,
            folder,
            begun: Instant::now(),
            time,
            device,
            commit,
            programs,
            notes,
            failed: 0,
        })
    }

    fn left(&self) -> Duration {
        self.time.saturating_sub(self.begun.elapsed())
    }

    /// A line of the summary, written at once: whoever ends this program has what came so far.
    fn line(&mut self, line: String) -> Result<()> {
        say(&line);
        self.programs.push(line);
        self.write_summary()?;
        Ok(())
    }

    fn summary(&self) -> String {
        let mut text = format!("posenc {}, {}\n{}\n", self.commit, self.part.name(), self.device);
        let _ = writeln!(text, "{} s of {} s\n", self.begun.elapsed().as_secs(), self.time.as_secs());
        for line in &self.programs {
            let _ = writeln!(text, "{line}");
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in self.notes.iter().take(MOST_LINES) {
            let _ = writeln!(text, "{note}");
        }
        if self.notes.len() > MOST_LINES {
            let _ = writeln!(text, "and {} more: see the files beside this one", self.notes.len() - MOST_LINES);
        }
        text
    }

    fn write_summary(&self) -> Result<String> {
        let text = self.summary();
        fs::write(self.folder.join("summary.txt"), &text)?;
        Ok(text)
    }

    // ---------------------------------------------------------------------------------------------------------- tests

    fn tests(&mut self) -> Result<()> {
        let programs = parts::TESTS.iter().map(|name| ("tests", *name, &[][..]));
        let twins = parts::TWINS.iter().map(|name| ("twins", *name, &["gpu::"][..]));
        let mut suites = Vec::new();
        for (folder, name, filter) in programs.chain(twins) {
            suites.push(self.suite(folder, name, filter)?);
            self.programs = suites.iter().map(Suite::line).collect();
            say(self.programs.last().map_or("", String::as_str));
            self.write_summary()?;
        }
        // An error of the device fails whatever its process does next: only a test that fails alone is known to be wrong.
        for suite in &mut suites {
            self.again(suite)?;
        }
        self.programs = suites.iter().map(Suite::line).collect();
        for suite in &suites {
            self.failed += usize::from(suite.is_failed());
            self.notes.extend(suite.notes());
        }
        Ok(())
    }

    fn suite(&self, folder: &str, name: &str, filter: &'static [&'static str]) -> Result<Suite> {
        let path = self.root.join(folder).join(name);
        let output = self.folder.join(format!("{name}.txt"));
        let mut list = Command::new(&path);
        list.arg("--list").args(filter);
        execute(&mut list, &output, GRACE)?;
        let listed = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        let names = report::listed(&listed);
        let mut command = self.test_program(&path);
        command.args(filter);
        // One that hangs leaves half of the time to the others.
        let (ended, time) = match self.left() {
            Duration::ZERO => (Ended::OutOfTime, Duration::ZERO),
            left => execute(&mut command, &output, left / 2)?,
        };
        let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        let mut outcomes = report::outcomes(&names, &text);
        if outcomes.is_empty() {
            // It does not even start: a library or a version of glibc is missing.
            outcomes.insert("any test".into(), Outcome::Failed(report::shortened(listed.trim(), 240)));
        }
        let left_to_the_emulator = report::left_to_the_emulator(&outcomes, &text);
        let skipped = report::skipped(&outcomes, &text);
        Ok(Suite { name: name.into(), path, filter, outcomes, alone: 0, left_to_the_emulator, skipped, ended, time })
    }

    fn test_program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command.args(["--include-ignored", "--show-output"]);
        if path.parent().is_some_and(|folder| folder.ends_with("twins")) {
            // The side that a device is compared with: with all checks, whatever the other tests are run with.
            command.env("EMULATOR_LIBRARY", self.root.join("twins/libemulator.so")).env("EMULATOR_STRICT", "all");
        }
        command
    }

    /// Runs what failed, and what a program did not come to, in processes of their own.
    fn again(&self, suite: &mut Suite) -> Result<()> {
        let is_failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        let mut again: Vec<String> = suite.names(is_failed);
        again.extend(suite.names(|outcome| *outcome == Outcome::NotRun));
        for name in again {
            if self.left().is_zero() {
                break;
            }
            let output = self.folder.join(format!("{}-{}.txt", suite.name, name.replace("::", "-")));
            let mut command = self.test_program(&suite.path);
            command.args(["--exact", &name]);
            // One that is alone for two minutes hangs; one that had less was not run.
            let (alone, left) = (self.time / 4, self.left());
            let (ended, _) = execute(&mut command, &output, alone.min(left))?;
            if ended == Ended::OutOfTime && left < alone {
                break;
            }
            let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
            let outcome = report::outcomes(std::slice::from_ref(&name), &text).remove(&name);
            let outcome = match (outcome, ended.words()) {
                (Some(Outcome::NotRun) | None, Some(words)) => Outcome::Failed(format!("alone: {words}")),
                (Some(outcome), _) => outcome,
                (None, None) => Outcome::NotRun,
            };
            let has_failed = suite.outcomes.get(&name).is_some_and(is_failed);
            suite.alone += usize::from(outcome == Outcome::Passed && has_failed);
            // What says nothing alone leaves what was said before.
            if outcome != Outcome::NotRun {
                suite.outcomes.insert(name, outcome);
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------ sanitizer

    fn sanitizer(&mut self, arguments: &[String]) -> Result<()> {
        let is_wanted = |tool: &str| arguments.is_empty() || arguments.iter().any(|wanted| wanted == tool);
        let tools: Vec<&str> = parts::TOOLS.into_iter().filter(|tool| is_wanted(tool)).collect();
        ensure!(!tools.is_empty(), "the tools are {:?}", parts::TOOLS);
        let (program, test) = parts::EVERY_OPERATION;
        let Some(sanitizer) = self.find_sanitizer(program, test)? else {
            self.notes.push(
                "not run: no compute-sanitizer works here; what each said is in the files beside this one".into(),
            );
            return Ok(());
        };
        self.notes.push(format!("with {}", sanitizer.display()));
        // Every operation under every tool, then the rooms, whose tests run every kernel at every width.
        let short = tools.iter().map(|tool| (*tool, program, Some(test)));
        let whole = tools.iter().flat_map(|tool| parts::SANITIZED.iter().map(|name| (*tool, *name, None)));
        for (tool, program, test) in short.chain(whole) {
            self.sanitize(&sanitizer, tool, program, test)?;
        }
        Ok(())
    }

    /// The machine's own, which is as new as its driver, or the bundle's: the first that runs a test to its end.
    fn find_sanitizer(&self, program: &str, test: &str) -> Result<Option<PathBuf>> {
        let mut candidates: Vec<PathBuf> =
            std::env::var_os("COMPUTE_SANITIZER").map(PathBuf::from).into_iter().collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join("compute-sanitizer")));
        candidates.push("/usr/local/cuda/bin/compute-sanitizer".into());
        candidates.push(self.root.join("sanitizer/compute-sanitizer"));
        for (i, candidate) in candidates.iter().filter(|candidate| candidate.exists()).enumerate() {
            let log = self.folder.join(format!("probe-{i}.log"));
            let mut command = self.sanitizer_command(candidate, "memcheck", &log, program, Some(test));
            let limit = Duration::from_secs(90).min(self.left());
            execute(&mut command, &self.folder.join(format!("probe-{i}.txt")), limit)?;
            if fs::read_to_string(&log).is_ok_and(|log| report::errors(&log).is_some()) {
                return Ok(Some(candidate.clone()));
            }
        }
        Ok(None)
    }

    fn sanitize(&mut self, sanitizer: &Path, tool: &str, program: &str, test: Option<&str>) -> Result<()> {
        let what = format!("{tool} {}", if test.is_some() { "every operation" } else { program });
        let left = self.left();
        if left.is_zero() {
            return self.line(format!("{what:28} not run: out of time"));
        }
        let stem = format!("{tool}-{program}{}", if test.is_some() { "-every-operation" } else { "" });
        let log = self.folder.join(format!("{stem}.log"));
        let mut command = self.sanitizer_command(sanitizer, tool, &log, program, test);
        let output = self.folder.join(format!("{stem}.txt"));
        // One that hangs leaves half of the time to the others.
        let (ended, time) = execute(&mut command, &output, (left / 2).max(left.min(GRACE)))?;
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (log, output) = (read(&log).unwrap_or_default(), read(&output).unwrap_or_default());
        let tests = output.lines().filter(|line| line.ends_with("... ok")).count();
        let failed = output.lines().filter(|line| line.ends_with("... FAILED")).count();
        let counted = report::errors(&log);
        let errors = counted.map_or_else(|| "no end".into(), |errors| format!("{errors} errors"));
        let words = ended.words().map_or_else(String::new, |words| format!(", {words}: the rest was not run"));
        // Errors are in its log as they come, their number where it ends by itself.
        let error = report::first_error(&log).filter(|_| counted != Some(0));
        self.failed += usize::from(failed > 0 || error.is_some() || counted.is_none() && ended != Ended::OutOfTime);
        if let Some(error) = error {
            self.notes.push(format!("{what}: {error}"));
        }
        let seconds = time.as_secs();
        self.line(format!("{what:28} {errors}, {tests} tests passed, {failed} failed, {seconds} s{words}"))
    }

    /// A program of the tests under a tool, its log in a file. Tests that ask the driver for what it must refuse are no errors.
    fn sanitizer_command(
        &self,
        sanitizer: &Path,
        tool: &str,
        log: &Path,
        program: &str,
        test: Option<&str>,
    ) -> Command {
        let mut command = Command::new(sanitizer);
        command.args(["--tool", tool, "--print-limit", "20", "--launch-timeout", "60", "--log-file"]).arg(log);
        command.args(["--target-processes", "application-only"]);
        if tool == "memcheck" {
            command.args(["--report-api-errors", "no"]);
        }
        command.arg(self.root.join("tests").join(program)).arg("--include-ignored").args(test);
        command
    }

    // -------------------------------------------------------------------------------------------------------- benches

    fn benches(&mut self, arguments: &[String]) -> Result<()> {
        for (i, room) in parts::BENCHES.iter().enumerate() {
            // What a room leaves over goes to those behind it.
            let share = self.left() / u32::try_from(parts::BENCHES.len() - i)?;
            let output = self.folder.join(format!("{room}.txt"));
            let mut command = Command::new(self.root.join("benches").join(room));
            let cases = share.saturating_sub(LONGEST_CASE).max(share / 2);
            command.arg("--bench").args(arguments).env("POSENC_SECONDS", cases.as_secs().to_string());
            command.env("POSENC_RECORD", self.folder.join("record"));
            command.env("POSENC_COMMIT", &self.commit);
            // The program ends itself between two cases.
            let (ended, time) = execute(&mut command, &output, share + GRACE / 2)?;
            let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
            let outcome = if ended.is_success() { "ok" } else { "FAILED" };
            self.failed += usize::from(!ended.is_success());
            let said: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("summary: ")).collect();
            let words = ended.words().map_or_else(String::new, |words| format!(", {words}"));
            let first = said.first().copied().unwrap_or("nothing was measured");
            self.notes.extend(said.iter().skip(1).map(|line| format!("{room}: {line}")));
            if !ended.is_success() {
                let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                self.notes.push(format!("{room}: {}", report::shortened(last, 240)));
            }
            self.line(format!("{room:8} {outcome}{words}, {} s: {first}", time.as_secs()))?;
        }
        Ok(())
    }

    // ---------------------------------------------------------------------------------------------------------- peers

    fn peers(&mut self, arguments: &[String]) -> Result<()> {
        let python = std::env::var_os("POSENC_PYTHON").unwrap_or_else(|| "python3".into());
        let mut torch = Command::new(&python);
        torch.args(["-c", "import torch"]);
        let there = execute(&mut torch, &self.folder.join("torch.txt"), Duration::from_secs(120));
        if !there.is_ok_and(|(ended, _)| ended.is_success()) {
            return self.line("peers not run: python3 has no PyTorch (POSENC_PYTHON names another interpreter)".into());
        }
        let output = self.folder.join("peers.txt");
        let mut command = Command::new(&python);
        command.args(["-B", "-u", "-W", "ignore"]).arg(self.root.join("peers/run.py"));
        command.arg("--library").arg(self.root.join("lib/libposenc_c.so"));
        if std::env::var_os("POSENC_REHEARSE").is_some() {
            command.arg("--check");
        } else {
            command.arg("--out").arg(self.folder.join("peers.csv"));
        }
        let cases = self.left().saturating_sub(LONGEST_PEER).max(self.left() / 2);
        command.args(["--seconds", &cases.as_secs().to_string()]).args(arguments);
        let (ended, time) = execute(&mut command, &output, self.left() + GRACE / 2)?;
        let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        self.failed += usize::from(!ended.is_success());
        self.notes.extend(text.lines().filter_map(|line| line.strip_prefix("summary: ")).map(String::from));
        if !ended.is_success() {
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            self.notes.push(report::shortened(last, 240));
        }
        let outcome = ended.words().unwrap_or_else(|| if ended.is_success() { "ok" } else { "FAILED" }.into());
        self.line(format!("peers {outcome}, {} s", time.as_secs()))
    }
}

impl Suite {
    fn names(&self, is_wanted: impl Fn(&Outcome) -> bool) -> Vec<String> {
        self.outcomes.iter().filter(|(_, outcome)| is_wanted(outcome)).map(|(name, _)| name.clone()).collect()
    }

    fn count(&self, is_wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.values().filter(|outcome| is_wanted(outcome)).count()
    }

    fn is_failed(&self) -> bool {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_))) > 0
    }

    fn line(&self) -> String {
        let passed = self.count(|outcome| *outcome == Outcome::Passed);
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let not_run = self.count(|outcome| *outcome == Outcome::NotRun);
        let mut line = format!("{:12} {passed:4} passed, {failed:3} failed, {not_run:3} not run", self.name);
        let _ = write!(line, ", {} s", self.time.as_secs());
        if !self.filter.is_empty() {
            line += ", emulator against device";
        }
        if self.left_to_the_emulator > 0 {
            let _ = write!(line, ", counts of {} left to the emulator", self.left_to_the_emulator);
        }
        if self.alone > 0 {
            let _ = write!(line, ", {} of the passed only alone", self.alone);
        }
        if let Some(words) = self.ended.words() {
            let _ = write!(line, ", {words}");
        }
        line
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let failed = self.outcomes.iter().find_map(|(name, outcome)| match outcome {
            Outcome::Failed(why) => Some((name, why)),
            _ => None,
        });
        notes.extend(failed.map(|(name, why)| format!("failed: {} {name}: {why}", self.name)));
        let not_run = self.names(|outcome| *outcome == Outcome::NotRun);
        if !not_run.is_empty() {
            let names = report::shortened(&not_run.join(", "), 400);
            notes.push(format!("not run: {} of {}: {names}", not_run.len(), self.name));
        }
        notes.extend(self.skipped.iter().map(|(name, why)| format!("skipped: {} {name}: {why}", self.name)));
        notes
    }
}

/// Packs a folder of results; where that is too much, with shorter files.
fn pack(folder: &Path, archive: &Path, limit: u64) -> Result<()> {
    let (parent, name) = (folder.parent().context("no folder above")?, folder.file_name().context("no name")?);
    for most in [MOST_BYTES, MOST_BYTES / 8, MOST_BYTES / 64] {
        shorten(folder, most)?;
        let mut tar = Command::new("tar");
        tar.arg("czf").arg(archive).arg("-C").arg(parent).arg(name);
        let packed = tar.status().context("cannot start tar")?;
        ensure!(packed.success(), "tar does not pack {}: {packed}", folder.display());
        if fs::metadata(archive)?.len() <= limit {
            return Ok(());
        }
    }
    bail!("{} is larger than {limit} bytes", archive.display())
}

/// Keeps the first and the last bytes of every long file but rows of numbers.
fn shorten(folder: &Path, most: usize) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            shorten(&path, most)?;
            continue;
        }
        let bytes = fs::read(&path)?;
        if bytes.len() > most && path.extension().is_none_or(|extension| extension != "csv") {
            let (first, last) = (&bytes[..most / 2], &bytes[bytes.len() - most / 2..]);
            let left_out = format!("\n... {} bytes left out ...\n", bytes.len() - most);
            fs::write(&path, [first, left_out.as_bytes(), last].concat())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    #[test]
    fn a_program_that_hangs_is_ended_with_all_that_it_started() {
        let folder = Folder::new("hangs");
        let [output, child] = ["output", "child"].map(|name| folder.0.join(name));
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & echo $! > \"$0\"; echo begun; wait"]).arg(&child);
        let (ended, time) = execute(&mut command, &output, Duration::from_millis(500)).expect("it starts");
        assert_eq!(ended, Ended::OutOfTime);
        assert!(time < Duration::from_secs(20), "{time:?}");
        assert_eq!(fs::read_to_string(output).expect("its output"), "begun\n");
        let child = fs::read_to_string(child).expect("a number");
        // Gone, or waiting to be taken note of; the kernel takes its time.
        let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        let is_gone = || state().map_or(true, |state| state.contains(") Z "));
        let gone = (0..500).any(|_| is_gone() || (std::thread::sleep(Duration::from_millis(20)), false).1);
        assert!(gone, "{:?}", state());
    }

    #[test]
    fn an_end_says_what_it_was() {
        let folder = Folder::new("ends");
        let output = folder.0.join("output");
        let end = |script: &str| {
            let mut command = Command::new("sh");
            execute(command.args(["-c", script]), &output, Duration::from_secs(20)).expect("it starts").0
        };
        assert!(end("exit 0").is_success());
        let failed = end("exit 3");
        assert!(!failed.is_success() && failed.words().is_none());
        assert_eq!(end("kill -SEGV $$").words().as_deref(), Some("ended by signal 11"));
        let missing = execute(&mut Command::new("/nowhere/program"), &output, Duration::ZERO).expect("an end").0;
        assert!(!missing.is_success() && missing.words().is_none());
        assert!(fs::read_to_string(&output).expect("its output").contains("cannot start \"/nowhere/program\": "));
    }

    #[test]
    fn results_are_packed_within_their_limit() {
        let folder = Folder::new("packs");
        let results = folder.0.join("results");
        fs::create_dir_all(results.join("tests")).expect("a folder");
        let long = "a line of a long log\n".repeat(1 << 20);
        for name in ["long.log", "tests/long.log", "rows.csv"] {
            fs::write(results.join(name), &long).expect("a file");
        }
        fs::write(results.join("short.txt"), "short").expect("a file");
        let archive = folder.0.join("results.tar.gz");
        pack(&results, &archive, parts::RESULTS).expect("it packs");
        let read = |name: &str| fs::read(results.join(name)).expect("a file");
        assert!(read("tests/long.log").len() < MOST_BYTES + 100);
        assert!(String::from_utf8(read("long.log")).expect("text").contains("bytes left out"));
        assert_eq!((read("short.txt"), read("rows.csv")), (b"short".to_vec(), long.into_bytes()));
        // Noise, which no compression makes smaller.
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for i in 0..4 {
            let bytes: Vec<u8> = (0..MOST_BYTES).map(|_| noise()).collect();
            fs::write(results.join(format!("noise-{i}")), bytes).expect("a file");
        }
        pack(&results, &archive, 4 * MOST_BYTES as u64 / 3).expect("it packs shorter files");
        assert!(fs::metadata(&archive).expect("an archive").len() <= 4 * MOST_BYTES as u64 / 3);
        assert!(pack(&results, &archive, 1000).expect_err("too small").to_string().contains("larger than 1000 bytes"));
    }

    /// A bundle of scripts that talk as libtest does.
    fn bundle(name: &str, programs: &[(&str, &str)]) -> Folder {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new(name);
        fs::write(folder.0.join("commit"), "0123456789ab").expect("a file");
        for (path, script) in programs {
            let path = folder.0.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        folder
    }

    const GOOD: &str = "[ $1 = --list ] && echo 'one: test' || echo 'test one ... ok'";
    /// `sick` breaks the device for `victim`; `sick` fails alone too, `victim` does not. `asleep` hangs.
    const BAD: &str = "case \"$*\" in
--list*) printf 'asleep: test\nfine: test\nsick: test\nvictim: test\n' ;;
*--exact\\ sick*) printf 'test sick ... FAILED\n---- sick stdout ----\nthread panicked at a.rs:1:2:\nan illegal address\n' ;;
*--exact\\ victim*) echo 'test victim ... ok' ;;
*--exact*) sleep 100 ;;
*) printf 'test fine ... ok\ntest sick ... FAILED\ntest victim ... FAILED\n'; sleep 100 ;;
esac";

    #[test]
    fn tests_go_on_after_a_failure_and_name_what_did_not_run() {
        let good = parts::TESTS.iter().map(|name| (format!("tests/{name}"), GOOD));
        let twins = parts::TWINS.iter().map(|name| (format!("twins/{name}"), GOOD));
        let mut programs: Vec<(String, &str)> = good.chain(twins).collect();
        programs[1].1 = BAD;
        programs[2].1 = "echo 'libnothing.so is missing' >&2; exit 127";
        programs.remove(3);
        let programs: Vec<(&str, &str)> = programs.iter().map(|(path, script)| (path.as_str(), *script)).collect();
        let folder = bundle("tests", &programs);
        let run = Run::of(&folder.0, Part::Tests, &[], Duration::from_secs(8)).expect("it runs");
        let summary = fs::read_to_string(folder.0.join("results/tests/summary.txt")).expect("a summary");
        let [bad, missing, gone] = [1, 2, 3].map(|i| parts::TESTS[i]);
        assert!(summary.starts_with("posenc 0123456789ab, tests\n"), "{summary}");
        assert!(summary.contains(&format!("{bad:12}    2 passed,   2 failed,   0 not run, ")), "{summary}");
        assert!(summary.contains(" s, 1 of the passed only alone, out of time\n"), "{summary}");
        assert!(summary.contains(&format!("failed: {bad} asleep: alone: out of time")), "{summary}");
        assert!(summary.contains(&format!("failed: {missing} any test: libnothing.so is missing")), "{summary}");
        assert!(summary.contains(&format!("failed: {gone} any test: cannot start ")), "{summary}");
        assert_eq!(summary.matches("1 passed,   0 failed,   0 not run").count(), programs.len() - 2, "{summary}");
        assert_eq!(run.failed, 3);
        let alone = fs::read_to_string(folder.0.join(format!("results/tests/{bad}-sick.txt"))).expect("its output");
        assert!(alone.contains("an illegal address"));
        assert!(Run::of(&folder.0, Part::Tests, &["rope".into()], Duration::ZERO).is_err());
        // Without time everything is listed and nothing is run.
        let run = Run::of(&folder.0, Part::Tests, &[], Duration::ZERO).expect("it runs");
        let summary = run.summary();
        assert!(summary.contains(&format!("not run: 4 of {bad}: asleep, fine, sick, victim")), "{summary}");
    }

    #[test]
    fn the_first_sanitizer_that_works_runs_every_program() {
        const WORKS: &str = "while [ $# -gt 0 ]; do case $1 in --tool) tool=$2; shift 2 ;; --log-file) log=$2; shift 2 ;; \
                             --*) shift 2 ;; *) break ;; esac; done; \"$@\"; \
                             errors=0; [ $tool = racecheck ] && errors=2; echo \"========= Race reported between\" > $log; \
                             echo \"========= ERROR SUMMARY: $errors errors\" >> $log";
        let names = parts::SANITIZED.iter().chain([&parts::EVERY_OPERATION.0]);
        let mut programs: Vec<(String, &str)> = names.map(|name| (format!("tests/{name}"), GOOD)).collect();
        programs.push(("sanitizer/compute-sanitizer".into(), WORKS));
        let programs: Vec<(&str, &str)> = programs.iter().map(|(path, script)| (path.as_str(), *script)).collect();
        let folder = bundle("sanitizer", &programs);
        let tools = ["memcheck".into(), "racecheck".into()];
        let run = Run::of(&folder.0, Part::Sanitizer, &tools, Duration::from_secs(60)).expect("it runs");
        let summary = run.summary();
        assert!(summary.contains("memcheck every operation     0 errors, 1 tests passed, 0 failed"), "{summary}");
        assert!(summary.contains("racecheck rotate             2 errors, 1 tests passed, 0 failed"), "{summary}");
        assert_eq!(summary.matches(": Race reported between").count(), 1 + parts::SANITIZED.len(), "{summary}");
        assert_eq!(run.programs.len(), 2 * (1 + parts::SANITIZED.len()), "{summary}");
        assert_eq!(run.failed, 1 + parts::SANITIZED.len());
        // One that does not work is no failure of the kernels.
        fs::write(folder.0.join("sanitizer/compute-sanitizer"), "#!/bin/sh\nexit 1\n").expect("a program");
        let run = Run::of(&folder.0, Part::Sanitizer, &[], Duration::from_secs(60)).expect("it runs");
        assert!(run.summary().contains("not run: no compute-sanitizer works here"), "{}", run.summary());
        assert!(Run::of(&folder.0, Part::Sanitizer, &["leaks".into()], Duration::from_secs(60)).is_err());
    }
}
