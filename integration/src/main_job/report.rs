//! What the audience sees: a line when something happens, a sign of life on long steps, and a table at the end.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// One row of the closing table.
struct Row {
    step: &'static str,
    what: String,
    took: Duration,
}

/// Collects and prints; see the module.
pub struct Report {
    started: Instant,
    rows: Vec<Row>,
    colour: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// Starts the clock.
    pub fn new() -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            started: Instant::now(),
            rows: Vec::new(),
            colour,
        }
    }

    /// The heading of a step.
    pub fn heading(&self, step: &str, text: &str) {
        let (on, off) = if self.colour {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.line(&format!("{on}── {step}: {text}{off}"));
    }

    /// Something that was run or seen, on a line (or more) of its own.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("   {line}"));
        }
    }

    /// A command as the person in this step would type it.
    pub fn command(&self, words: &str) {
        let shown: String = words.chars().take(300).collect();
        let more = if words.chars().count() > 300 { " …" } else { "" };
        self.line(&format!("   $ {shown}{more}"));
    }

    /// A step is done: it goes into the table.
    pub fn done(&mut self, step: &'static str, what: impl Into<String>, took: Duration) {
        let what = what.into();
        self.line(&format!("   ✓ {what} ({})", seconds(took)));
        self.rows.push(Row { step, what, took });
    }

    fn line(&self, text: &str) {
        // A closed stderr is no reason to stop the job.
        let _ = writeln!(
            std::io::stderr(),
            "[{:>6.1}s] {text}",
            self.started.elapsed().as_secs_f64()
        );
    }

    /// The closing table.
    pub fn table(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|row| row.what.chars().count())
            .max()
            .unwrap_or(0)
            .max(13);
        let mut table = String::new();
        let rule = format!("{}┼{}┼{}\n", "─".repeat(6), "─".repeat(width + 2), "─".repeat(10));
        let _ = writeln!(
            table,
            " {:<5}│ {:<width$} │ {:>8}",
            "step", "what happened", "took"
        );
        table.push_str(&rule);
        for row in &self.rows {
            let _ = writeln!(
                table,
                " {:<5}│ {:<width$} │ {:>8}",
                row.step,
                row.what,
                seconds(row.took)
            );
        }
        table.push_str(&rule);
        let _ = writeln!(
            table,
            " {:<5}│ {:<width$} │ {:>8}",
            "",
            "in all",
            seconds(self.started.elapsed())
        );
        table
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}
