//! From state to frame. Pure, and at home at every size: what has no room isn't drawn.
//!
//! ```text
//!  header     name, version, READY or why not, time, page
//!  alerts     none when all is well
//!  body       the page, the contract that is looked at, the help, or a question
//!  key bar    or what is being typed
//! ```

mod contract;
mod host;
mod overview;
mod pages;
mod parts;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use self::parts::{clock, heading, put, severity, since};
use super::keys::HELP;
use super::model::Link;
use super::state::{Confirm, Mode, Page, State};
use super::text::{clean, fit, width, wrap};
use super::theme::Theme;

/// Whether the page's list is one of contracts.
pub(super) fn lists_contracts(page: Page) -> bool {
    matches!(page, Page::Overview | Page::Contracts)
}

/// Whether the page is a text that is scrolled, not a list with a cursor.
pub(super) fn is_text(page: Page) -> bool {
    !lists_contracts(page) && page != Page::Doctor
}

/// Lines of the page's list.
pub(super) fn list_len(state: &State) -> usize {
    match state.page {
        page if lists_contracts(page) => state.contracts().len(),
        Page::Doctor => pages::findings(state).len(),
        _ => 0,
    }
}

/// Lines of the text that is shown.
pub(super) fn text_len(state: &State) -> usize {
    if state.open.is_none() && !is_text(state.page) {
        return 0;
    }
    text(state, &Theme::PLAIN, state.size.0).len()
}

/// The text that is shown, whole.
fn text(state: &State, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let columns = usize::from(columns);
    if state.open.is_some() {
        return contract::text(state, theme, columns);
    }
    match state.page {
        Page::Gpus => pages::gpus(state, theme, columns),
        Page::Network => pages::network(state, theme, columns),
        Page::Log => pages::log(state, theme, columns),
        Page::Host => host::text(state, theme, columns),
        Page::Overview | Page::Contracts | Page::Doctor => Vec::new(),
    }
}

/// Draws everything. `area` may have any size; nothing is written outside of it.
pub fn draw(state: &State, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    if area.is_empty() {
        return;
    }
    let rows = area.height;
    let mut alerts = alerts(state, theme, area.width);
    let room = match rows {
        0..6 => 0,
        6..12 => 1,
        12..24 => 2,
        _ => 3,
    };
    let more = alerts.len().saturating_sub(room);
    alerts.truncate(room);
    if let Some(last) = alerts.last_mut().filter(|_| more > 0) {
        last.push_span(Span::styled(format!(" (+{more}: page 7)"), theme.warn()));
        *last = parts::cut(last, usize::from(area.width));
    }
    let top = 1 + u16::try_from(alerts.len()).unwrap_or(0);
    let bottom = u16::from(rows >= 3);
    put(buffer, area, 0, &header(state, theme, area.width));
    for (row, line) in (1..).zip(&alerts) {
        put(buffer, area, row, line);
    }
    if bottom == 1 {
        put(buffer, area, rows - 1, &key_bar(state, theme, area.width));
    }
    let body = Rect {
        y: area.y + top.min(rows),
        height: rows.saturating_sub(top + bottom),
        ..area
    };
    if !body.is_empty() {
        draw_body(state, theme, body, buffer);
    }
    scrub(theme, area, buffer);
}

fn draw_body(state: &State, theme: &Theme, body: Rect, buffer: &mut Buffer) {
    let mut page = body;
    if let Mode::Confirm(confirm) = &state.mode {
        let lines = question(confirm, theme, usize::from(body.width));
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(body.height);
        page.height -= height;
        let area = Rect {
            y: body.y + page.height,
            height,
            ..body
        };
        parts::put_all(buffer, area, &lines);
    }
    if page.is_empty() {
        return;
    }
    if state.mode == Mode::Help {
        return parts::put_all(buffer, page, &help(theme, usize::from(page.width)));
    }
    if state.open.is_some() {
        return contract::draw(state, theme, page, buffer);
    }
    match state.page {
        Page::Overview => overview::draw(state, theme, page, buffer),
        Page::Contracts => overview::contracts(state, theme, page, buffer),
        Page::Doctor => pages::draw_doctor(state, theme, page, buffer),
        Page::Log => {
            let lines = text(state, theme, page.width);
            let height = usize::from(page.height);
            let last = lines.len().saturating_sub(height);
            let first = if state.follow {
                last.saturating_sub(state.scroll)
            } else {
                state.scroll.min(last)
            };
            parts::put_all(buffer, page, lines.get(first..).unwrap_or_default());
        }
        Page::Gpus | Page::Network | Page::Host => {
            let lines = text(state, theme, page.width);
            parts::put_all(buffer, page, lines.get(state.scroll..).unwrap_or_default());
        }
    }
}

/// The host's state in a word.
fn word(state: &State, theme: &Theme) -> (&'static str, Style) {
    match (&state.model.link, &state.model.status) {
        (Link::Lost { .. }, _) => ("NO ANSWER", theme.bad()),
        (Link::Waiting, _) | (Link::Up, None) => ("CONNECTING", theme.note()),
        (Link::Up, Some(status)) if status.maintenance.is_some() => ("MAINTENANCE", theme.warn()),
        (Link::Up, Some(status)) if status.draining => ("DRAINING", theme.warn()),
        (Link::Up, Some(status)) if status.ready => ("READY", theme.good()),
        (Link::Up, Some(_)) => ("NOT READY", theme.bad()),
    }
}

fn header(state: &State, theme: &Theme, columns: u16) -> Line<'static> {
    let (word, style) = word(state, theme);
    let mut left = vec![Span::styled(word, style)];
    if let Some(status) = &state.model.status {
        left.push(Span::styled(
            format!(" {}", fit(&status.name, width(&clean(&status.name)).min(24))),
            theme.strong(),
        ));
        let up = since(status.started_ms, state.now_ms);
        left.push(Span::raw(clean(&format!("  hostd {} up {up}", status.version))));
    }
    if let Link::Lost { since_ms, .. } = &state.model.link {
        left.push(Span::styled(
            format!("  since {}", since(*since_ms, state.now_ms)),
            theme.warn(),
        ));
    }
    let only = if state.read_only { "read only  " } else { "" };
    let right = format!(
        "{only}{} {}/7  {} UTC",
        state.page.name(),
        state.page.number(),
        clock(state.now_ms)
    );
    parts::spread(left, &right, theme, usize::from(columns))
}

fn alerts(state: &State, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let columns = usize::from(columns);
    let alerts = state.model.alerts();
    alerts
        .iter()
        .map(|alert| {
            let (word, style) = severity(alert.severity, theme);
            let text = fit(&alert.text, columns.saturating_sub(word.len() + 1));
            Line::from(vec![
                Span::styled(word, style),
                Span::raw(format!(" {}", text.trim_end())),
            ])
        })
        .collect()
}

fn key_bar(state: &State, theme: &Theme, columns: u16) -> Line<'static> {
    let columns = usize::from(columns);
    // What is typed stays visible at its end, where the cursor is.
    let prompt = |head: &str, typed: &str| {
        let typed = clean(typed);
        let room = columns.saturating_sub(head.len() + 1);
        let skip = typed.chars().count().saturating_sub(room);
        let tail: String = typed.chars().skip(skip).collect();
        Line::from(vec![
            Span::styled(head.to_owned(), theme.strong()),
            Span::raw(tail),
            Span::styled(" ", theme.selected()),
        ])
    };
    match &state.mode {
        Mode::Filter(text) => return prompt("/", text),
        Mode::Command(text) => return prompt(":", text),
        Mode::Confirm(confirm) => {
            let head = if confirm.reason {
                "reason: ".to_owned()
            } else {
                format!("type {} to confirm: ", clean(&confirm.want))
            };
            return prompt(&head, &confirm.typed);
        }
        Mode::Look | Mode::Help => {}
    }
    if let Some(notice) = &state.notice {
        let style = if notice.bad { theme.warn() } else { theme.note() };
        return Line::styled(fit(&notice.text, columns), style);
    }
    let keys = match (state.open.is_some(), state.page) {
        (true, _) => "esc back  j k scroll  f console  :end end it  r refresh  ? help  q quit",
        (false, Page::Overview | Page::Contracts) => {
            "? help  q quit  1-7 page  enter look  / filter  s sort  r refresh  : command"
        }
        (false, Page::Host) => "? help  q quit  1-7 page  d drain  m maintenance  : command  r refresh",
        (false, _) => "? help  q quit  1-7 page  j k move  / filter  f follow  r refresh  : command",
    };
    let filter = if state.filter.is_empty() {
        String::new()
    } else {
        format!("/{} (esc ends it)  ", state.filter)
    };
    Line::styled(fit(&format!("{filter}{keys}"), columns), theme.quiet())
}

fn help(theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Keys (any key ends this page)", theme, columns)];
    for (keys, function, meaning) in HELP {
        let head = format!("{} {} ", fit(keys, 11), fit(function, 4));
        for (number, part) in wrap(meaning, columns.saturating_sub(head.len()))
            .into_iter()
            .enumerate()
        {
            let head = if number == 0 {
                head.clone()
            } else {
                " ".repeat(head.len())
            };
            lines.push(Line::from(vec![
                Span::styled(head, theme.strong()),
                Span::raw(part),
            ]));
        }
    }
    lines
}

fn question(confirm: &Confirm, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    use super::state::Order;
    let mut lines = vec![heading("Are you sure?", theme, columns)];
    lines.extend(
        wrap(confirm.order.warning(), columns)
            .into_iter()
            .map(|text| Line::styled(text, theme.warn())),
    );
    if let Order::End { id, .. } = &confirm.order {
        lines.extend(
            wrap(&format!("contract {id}"), columns)
                .into_iter()
                .map(Line::raw),
        );
    }
    if let Order::End { reason, .. } | Order::Maintenance { reason: Some(reason) } = &confirm.order
        && !reason.is_empty()
    {
        lines.extend(
            wrap(&format!("reason: {reason}"), columns)
                .into_iter()
                .map(Line::raw),
        );
    }
    if let Some(wrong) = &confirm.wrong {
        lines.push(Line::styled(fit(wrong, columns), theme.bad()));
    }
    lines.push(Line::raw(fit("esc: do nothing", columns)));
    lines
}

/// The last look at a frame: no cell holds what this terminal can't show or would obey.
fn scrub(theme: &Theme, area: Rect, buffer: &mut Buffer) {
    for position in area.positions() {
        let cell = &mut buffer[position];
        if clean(cell.symbol()) != cell.symbol() {
            cell.set_symbol(" ");
        }
        if let Some(spelling) = theme.spell(cell.symbol()) {
            // A wide character takes two cells; the second one is a blank already.
            cell.set_symbol(spelling);
        }
    }
}
