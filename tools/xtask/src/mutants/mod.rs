//! Mutants: each changes one place of a kernel or of a launch's arithmetic, and the tests must notice it.

mod list;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use list::Mutant;
use run::Outcome;

const RESULTS: &str = "target/mutants/results.tsv";
const REPORT: &str = "target/mutants/report.md";

#[derive(Args)]
pub struct Options {
    /// Only mutants of files whose path contains this
    file: Option<String>,
    /// Run those that survived once more
    #[arg(long)]
    survivors: bool,
    /// Forget earlier results of these files
    #[arg(long, conflicts_with = "survivors")]
    fresh: bool,
    /// Write the report of earlier results, run nothing
    #[arg(long, conflicts_with_all = ["survivors", "fresh"])]
    report: bool,
    /// Kernels' mutants at a time; as many as there are cores
    #[arg(long)]
    jobs: Option<usize>,
}

/// What an earlier run or this one found.
#[derive(Clone)]
struct Found {
    outcome: Outcome,
    seconds: u64,
    /// the test that failed
    by: String,
}

pub fn run_all(options: &Options) -> Result<()> {
    let mut mutants = list::read()?;
    if let Some(file) = &options.file {
        mutants.retain(|mutant| mutant.path.contains(file.as_str()));
        ensure!(!mutants.is_empty(), "there is no mutant of a file like {file}");
    }
    let mut results = earlier()?;
    let again = |mutant: &Mutant| match results.get(&key(mutant)) {
        None => true,
        Some(found) => options.fresh || (options.survivors && found.outcome == Outcome::Survived),
    };
    // One of each file in turn, so that an early look at the results sees all files.
    let mut turns: HashMap<&str, usize> = HashMap::new();
    let mut missing = Vec::new();
    for mutant in mutants.iter().filter(|mutant| !options.report && again(mutant)) {
        let turn = turns.entry(mutant.path.as_str()).or_default();
        missing.push((*turn, mutant));
        *turn += 1;
    }
    missing.sort_by_key(|(turn, _)| *turn);
    let missing: Vec<&Mutant> = missing.into_iter().map(|(_, mutant)| mutant).collect();
    let (kernels, host): (Vec<&Mutant>, Vec<&Mutant>) = missing.iter().partition(|mutant| mutant.is_kernel());
    println!("{} mutants, {} to run", mutants.len(), missing.len());
    let log = Log::open(missing.len())?;
    if !kernels.is_empty() {
        let shared = run::Kernels::new(&kernels)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let work = |worker| {
                while let Some(mutant) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                    log.run(mutant, || shared.run(mutant, worker))?;
                }
                Ok(())
            };
            let workers: Vec<_> = (0..options.jobs.unwrap_or(cores).max(1))
                .map(|worker| scope.spawn(move || -> Result<()> { work(worker) }))
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
    }
    if !host.is_empty() {
        let shared = run::Host::new()?;
        host.iter().try_for_each(|mutant| log.run(mutant, || shared.run(mutant)))?;
    }
    results = earlier()?;
    let report = report(&mutants, &results);
    println!("\n{}", report.text);
    fs::write(REPORT, &report.text)?;
    ensure!(report.doubts.is_empty(), "{}", report.doubts.join("\n"));
    Ok(())
}

/// A mutant in the file of results; a list that changes elsewhere keeps its results.
fn key(mutant: &Mutant) -> String {
    // Tabs and line breaks end fields and lines there.
    let clean = |text: &str| text.escape_debug().to_string();
    format!("{}\t{}\t{}", mutant.path, clean(&mutant.from), clean(&mutant.to))
}

/// Results of earlier runs: the last line of a mutant counts.
fn earlier() -> Result<HashMap<String, Found>> {
    let mut results = HashMap::new();
    if !Path::new(RESULTS).exists() {
        return Ok(results);
    }
    for line in fs::read_to_string(RESULTS)?.lines() {
        let mut fields = line.splitn(4, '\t');
        let (outcome, seconds, by, key) = (fields.next(), fields.next(), fields.next(), fields.next());
        // A run that was stopped may have left half a line.
        if let (Some(outcome), Some(seconds), Some(by), Some(key)) =
            (outcome.and_then(Outcome::from_name), seconds.and_then(|text| text.parse().ok()), by, key)
        {
            results.insert(key.to_string(), Found { outcome, seconds, by: by.to_string() });
        }
    }
    Ok(results)
}

/// The file of results, to which each mutant is appended as it comes.
struct Log {
    file: Mutex<fs::File>,
    done: AtomicUsize,
    all: usize,
}

impl Log {
    fn open(all: usize) -> Result<Self> {
        fs::create_dir_all(Path::new(RESULTS).parent().context("a folder")?)?;
        let file = OpenOptions::new().create(true).append(true).open(RESULTS)?;
        Ok(Self { file: Mutex::new(file), done: AtomicUsize::new(0), all })
    }

    fn run(&self, mutant: &Mutant, work: impl FnOnce() -> Result<(Outcome, String)>) -> Result<()> {
        let start = Instant::now();
        let (outcome, by) = work().with_context(|| format!("{} {}", mutant.path, mutant.change()))?;
        let seconds = start.elapsed().as_secs();
        let by = by.replace(['\t', '\n'], " ");
        let line = format!("{}\t{seconds}\t{by}\t{}\n", outcome.name(), key(mutant));
        self.file.lock().expect("no worker panics").write_all(line.as_bytes())?;
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let (name, place) = (outcome.name(), format!("{}:{}", mutant.path, mutant.line()));
        println!("{done}/{} {name} in {seconds} s: {place} {} ({by})", self.all, mutant.change());
        Ok(())
    }
}

struct Report {
    text: String,
    /// what should not be
    doubts: Vec<String>,
}

/// A table of the files, then everything that was not killed.
fn report(mutants: &[Mutant], results: &HashMap<String, Found>) -> Report {
    let mut rows: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut alive = String::new();
    let mut doubts = Vec::new();
    for mutant in mutants {
        let Some(found) = results.get(&key(mutant)) else { continue };
        let is_dead = matches!(found.outcome, Outcome::Killed | Outcome::TimedOut);
        let place = format!("`{}:{}` {}", mutant.path, mutant.line(), mutant.change());
        // Equal ones are counted apart, by the word of the list or of the compiler.
        let column = match (found.outcome, &mutant.equal) {
            (Outcome::Survived, Some(_)) | (Outcome::SameCode, _) => "equal",
            (outcome, _) => outcome.name(),
        };
        for file in [mutant.path.as_str(), "all"] {
            *rows.entry(file).or_default().entry(column).or_default() += 1;
        }
        match (found.outcome, &mutant.equal, &mutant.survives) {
            (Outcome::Survived, Some(why), _) => writeln!(alive, "* {place}: equal, {why}").unwrap_or_default(),
            (Outcome::SameCode, ..) => writeln!(alive, "* {place}: equal, the same code").unwrap_or_default(),
            (Outcome::Survived, _, Some(why)) => writeln!(alive, "* {place}: survives, {why}").unwrap_or_default(),
            (Outcome::Survived, ..) => doubts.push(format!("survived: {place}")),
            (Outcome::DoesNotCompile, ..) => doubts.push(format!("does not compile: {place} {}", found.by)),
            _ if is_dead && mutant.equal.is_some() => doubts.push(format!("said to be equal, but killed: {place}")),
            _ if is_dead && mutant.survives.is_some() => doubts.push(format!("said to survive, but killed: {place}")),
            _ => {}
        }
    }
    let count = |row: &BTreeMap<&str, usize>, column: &str| row.get(column).copied().unwrap_or(0);
    let mut text =
        String::from("| file | killed | timed out | survived | equal | killed of those that are not equal |\n");
    text += "|---|---|---|---|---|---|\n";
    let all = rows.remove("all");
    for (file, row) in rows.iter().map(|(file, row)| (*file, row)).chain(all.iter().map(|row| ("all", row))) {
        let [killed, late, survived, equal] =
            ["killed", "timed out", "survived", "equal"].map(|column| count(row, column));
        let share = 100.0 * (killed + late) as f64 / (killed + late + survived).max(1) as f64;
        writeln!(text, "| {file} | {killed} | {late} | {survived} | {equal} | {share:.0} % |").unwrap_or_default();
    }
    let seconds: u64 = mutants.iter().filter_map(|mutant| results.get(&key(mutant))).map(|found| found.seconds).sum();
    writeln!(text, "\n{} minutes of work.\n\n{alive}", seconds / 60).unwrap_or_default();
    Report { text, doubts }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(from: &str, equal: bool, survives: bool) -> Mutant {
        Mutant {
            path: "kernels/a.cu".into(),
            from: from.into(),
            to: "x".into(),
            tests: Vec::new(),
            equal: equal.then(|| "why".into()),
            survives: survives.then(|| "why".into()),
        }
    }

    #[test]
    fn a_report_counts_equal_ones_apart_and_doubts_what_the_list_does_not_explain() {
        let mutants = [
            mutant("a", false, false),
            mutant("b", false, false),
            mutant("c", true, false),
            mutant("d", false, true),
            mutant("e", true, false),
            mutant("f", false, false),
            mutant("not run", false, false),
        ];
        let outcomes = [
            Outcome::Killed,
            Outcome::Survived,
            Outcome::Survived,
            Outcome::Survived,
            Outcome::TimedOut,
            Outcome::SameCode,
        ];
        let found = |outcome| Found { outcome, seconds: 20, by: String::new() };
        let results = mutants.iter().map(key).zip(outcomes.map(found)).collect();
        let report = report(&mutants, &results);
        assert!(report.text.contains("| kernels/a.cu | 1 | 1 | 2 | 2 | 50 % |\n| all |"), "{}", report.text);
        assert!(report.text.contains("2 minutes of work"), "{}", report.text);
        let doubts =
            ["survived: `kernels/a.cu:0` `b` -> `x`", "said to be equal, but killed: `kernels/a.cu:0` `e` -> `x`"];
        assert_eq!(report.doubts, doubts);
    }
}
