//! What all pages are made of.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::doctor::Severity;
use crate::inventory::Probe;
use crate::tui::text::{clean, fit, width, wrap};
use crate::tui::theme::Theme;

/// Smallest units in one token.
const DCT: u64 = ledger::api::DCT;

/// Writes a line into a row of the area, if it has that row.
pub(super) fn put(buffer: &mut Buffer, area: Rect, row: u16, line: &Line<'_>) {
    if row < area.height {
        buffer.set_line(area.x, area.y + row, line, area.width);
    }
}

/// Writes lines from the top; what has no room isn't written.
pub(super) fn put_all(buffer: &mut Buffer, area: Rect, lines: &[Line<'_>]) {
    for (row, line) in (0..area.height).zip(lines) {
        put(buffer, area, row, line);
    }
}

/// A line of at most so many columns.
pub(super) fn cut(line: &Line<'_>, columns: usize) -> Line<'static> {
    let mut room = columns;
    let mut spans = Vec::new();
    // From the end: what was added last is what must stay.
    for span in line.spans.iter().rev() {
        let text = if width(&span.content) <= room {
            span.content.to_string()
        } else {
            fit(&span.content, room)
        };
        room = room.saturating_sub(width(&text));
        spans.push(Span::styled(text, span.style));
    }
    spans.reverse();
    Line::from(spans)
}

/// Left and right in one line; the right one goes first when there is no room for both.
pub(super) fn spread(left: Vec<Span<'static>>, right: &str, theme: &Theme, columns: usize) -> Line<'static> {
    let mut line = Line::from(left);
    let gap = columns.saturating_sub(line.width() + width(right));
    if gap >= 2 {
        line.push_span(Span::raw(" ".repeat(gap)));
        line.push_span(Span::styled(right.to_owned(), theme.quiet()));
    }
    line
}

/// The title of a part.
pub(super) fn heading(title: &str, theme: &Theme, columns: usize) -> Line<'static> {
    let title = fit(title, width(&clean(title)).min(columns));
    let rest = columns.saturating_sub(width(&title) + 1);
    Line::from(vec![
        Span::styled(title, theme.strong()),
        Span::styled(format!(" {}", theme.rule().repeat(rest)), theme.quiet()),
    ])
}

/// `name  value`.
pub(super) fn row(name: &str, value: Span<'static>, columns: usize) -> Line<'static> {
    const NAME: usize = 12;
    let text = fit(&value.content, columns.saturating_sub(NAME));
    Line::from(vec![
        Span::raw(fit(name, NAME.min(columns))),
        Span::styled(text.trim_end().to_owned(), value.style),
    ])
}

/// `name  value` with all of the value, in as many lines as it takes.
pub(super) fn rows(name: &str, value: &str, style: Style, columns: usize) -> Vec<Line<'static>> {
    const NAME: usize = 12;
    let lines = wrap(value, columns.saturating_sub(NAME)).into_iter().enumerate();
    lines
        .map(|(number, text)| {
            let name = if number == 0 { name } else { "" };
            Line::from(vec![
                Span::raw(fit(name, NAME.min(columns))),
                Span::styled(text, style),
            ])
        })
        .collect()
}

/// A severity's word.
pub(super) fn severity(severity: Severity, theme: &Theme) -> (&'static str, Style) {
    match severity {
        Severity::Skipped => ("skip", theme.quiet()),
        Severity::Ok => ("ok  ", theme.good()),
        Severity::Info => ("note", theme.note()),
        Severity::Warn => ("WARN", theme.warn()),
        Severity::Fail => ("FAIL", theme.bad()),
    }
}

/// A fact, or that it isn't known and why.
pub(super) fn probe<T>(value: &Probe<T>, show: impl FnOnce(&T) -> String) -> String {
    match value {
        Probe::Known(value) => show(value),
        Probe::Unknown(why) => format!("unknown: {why}"),
    }
}

/// An amount of tokens; no zeros at the end.
pub(super) fn dct(units: u64) -> String {
    let fraction = format!("{:09}", units % DCT);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        (units / DCT).to_string()
    } else {
        format!("{}.{fraction}", units / DCT)
    }
}

/// MiB, or GiB when they are whole or many.
pub(super) fn mib(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        _ if mib.is_multiple_of(1024) || mib >= 64 * 1024 => format!("{} GiB", mib / 1024),
        _ => format!("{:.1} GiB", mib as f64 / 1024.0),
    }
}

/// Bytes in the unit that fits.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => mib(bytes >> 20),
    }
}

/// How long ago, or how long it took.
pub(super) fn since(then_ms: i64, now_ms: i64) -> String {
    span(now_ms.saturating_sub(then_ms))
}

/// A span of time.
pub(super) fn span(ms: i64) -> String {
    match ms / 1000 {
        ..0 => "0 s".into(),
        0 => format!("{ms} ms"),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Time of day, UTC.
pub(super) fn clock(ms: i64) -> String {
    let second = ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}
