//! A report for people.

use std::fmt::Write as _;

use super::{Finding, Report, Severity};

const ID_COLUMNS: usize = 28;
const STATE_COLUMNS: usize = 6;

pub(super) fn table(report: &Report, width: usize) -> String {
    let mut out = String::new();
    for (depth, finding) in report.walk() {
        let id = format!("{:indent$}{}", "", finding.id, indent = depth * 2);
        let head = format!("{:STATE_COLUMNS$}{id:ID_COLUMNS$} ", word(finding.severity));
        paragraph(
            &mut out,
            &head,
            &finding.finding,
            STATE_COLUMNS + ID_COLUMNS + 1,
            width,
        );
        if finding.severity >= Severity::Info {
            details(&mut out, finding, width);
        }
    }
    let count = |severity| {
        report
            .walk()
            .iter()
            .filter(|(_, f)| f.severity == severity)
            .count()
    };
    let (fails, warns, infos) = (
        count(Severity::Fail),
        count(Severity::Warn),
        count(Severity::Info),
    );
    writeln!(
        out,
        "\n{fails} failed, {warns} warnings, {infos} notes, {} ok, {} skipped",
        count(Severity::Ok),
        count(Severity::Skipped)
    )
    .expect("writing to a String can't fail");
    out
}

fn details(out: &mut String, finding: &Finding, width: usize) {
    let indent = STATE_COLUMNS + 2;
    if !finding.evidence.is_empty() {
        paragraph(
            out,
            &format!("{:indent$}seen: ", ""),
            &finding.evidence,
            indent + 6,
            width,
        );
    }
    if let Some(fix) = &finding.fix {
        paragraph(out, &format!("{:indent$}fix:  ", ""), fix, indent + 6, width);
    }
}

/// A state is always a word, so that it survives a terminal without colours.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Skipped => "skip",
        Severity::Ok => "ok",
        Severity::Info => "note",
        Severity::Warn => "WARN",
        Severity::Fail => "FAIL",
    }
}

/// `head`, then `text` wrapped at words; further lines begin at column `indent`. A word longer than the line stays whole.
fn paragraph(out: &mut String, head: &str, text: &str, indent: usize, width: usize) {
    let mut line = head.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}
