//! Progress bars.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bars appear after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// A bar on standard error that appears after two seconds, and only on a terminal.
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

impl Progress {
    pub fn new(steps: u64, what: impl Into<String>) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}").expect("a fixed template");
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden()).with_style(style);
        Self { bar: bar.with_message(what.into()), begun: Instant::now(), shown: false }
    }

    pub fn step(&mut self, steps: u64) {
        if !self.shown && self.begun.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.inc(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
