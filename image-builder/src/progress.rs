//! Progress on standard error: a spinner where a person looks, one plain line a step elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows steps one after the other; standard output stays free for the result.
#[derive(Debug, Default)]
pub struct Progress {
    quiet: bool,
}

impl Progress {
    /// Shows nothing; for tests.
    pub fn quiet() -> Self {
        Self { quiet: true }
    }

    /// Runs `work` under the title `what`, and says how it ended and how long it took.
    pub fn step<T, E>(&self, what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if self.quiet {
            return work();
        }
        let start = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a constant template"),
            );
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let result = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let mark = if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!("{mark:>6}  {what} ({:.1} s)", start.elapsed().as_secs_f64());
        result
    }
}
