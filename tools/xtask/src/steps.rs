//! How long each step took.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Steps that have ended, and the one that runs; printed as a table when it goes, however the steps ended.
pub struct Steps {
    begun: Instant,
    ended: Vec<(String, Duration)>,
    current: Option<(String, Instant)>,
    failed: bool,
}

impl Steps {
    pub fn new() -> Self {
        Self { begun: Instant::now(), ended: Vec::new(), current: None, failed: false }
    }

    /// Runs `work` as the step `name`.
    pub fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n---- {name}");
        self.current = Some((name.into(), Instant::now()));
        let result = work();
        if let Some((name, start)) = self.current.take() {
            self.ended.push((name, start.elapsed()));
        }
        self.failed |= result.is_err();
        result
    }

    fn table(&self) -> String {
        let mut rows = self.ended.clone();
        rows.extend(self.current.iter().map(|(name, start)| (format!("{name} (not ended)"), start.elapsed())));
        rows.push(("all".into(), self.begun.elapsed()));
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (i, (name, time)) in rows.iter().enumerate() {
            let seconds = time.as_secs();
            let mark = if self.failed && i + 2 == rows.len() { "  FAILED" } else { "" };
            text += &format!("{name:width$}  {:>3}:{:02}{mark}\n", seconds / 60, seconds % 60);
        }
        text
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if self.ended.len() > 1 || self.failed {
            println!("\n{}", self.table());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_failed_is_the_last_and_is_marked() {
        let mut steps = Steps::new();
        steps.run("first", || Ok(())).expect("it does not fail");
        steps.run("second step", || -> Result<()> { anyhow::bail!("no") }).expect_err("it fails");
        let table = steps.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines, ["first          0:00", "second step    0:00  FAILED", "all            0:00"]);
    }
}
