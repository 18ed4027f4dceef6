//! GPUs, network, doctor, log.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::parts::{bytes, clock, heading, probe, put, put_all, rows, severity};
use crate::doctor::{Finding, Severity};
use crate::inventory::GpuMode;
use crate::tui::state::State;
use crate::tui::text::fit;
use crate::tui::theme::Theme;

pub(super) fn gpus(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let Some(inventory) = &state.model.inventory else {
        return vec![heading("GPUs", theme, columns), Line::raw("not heard yet")];
    };
    let sold = inventory.gpus.iter().filter(|gpu| gpu.is_compute()).count();
    let mut lines = vec![heading(&format!("GPUs: {sold} that compute"), theme, columns)];
    let plain = Style::new();
    for gpu in &inventory.gpus {
        let address = &gpu.pci.address;
        let vendor = gpu.vendor_name.as_deref().unwrap_or("unknown vendor");
        let head = format!("{address} {vendor} {:04x}:{:04x}", gpu.pci.vendor, gpu.pci.device);
        lines.push(Line::styled(fit(&head, columns), theme.strong()));
        let mut add = |name: &str, text: &str, style| lines.extend(rows(name, text, style, columns));
        add("  name", &probe(&gpu.name, String::clone), plain);
        add("  memory", &probe(&gpu.memory_bytes, |n| bytes(*n)), plain);
        let mode = |mode: &GpuMode| match mode {
            GpuMode::Open => "open: the host sees what runs on it".to_owned(),
            GpuMode::Confidential => "confidential".to_owned(),
        };
        add("  mode", &probe(&gpu.mode, mode), plain);
        add("  driver", gpu.pci.driver.as_deref().unwrap_or("none"), plain);
        let group = gpu
            .pci
            .iommu_group
            .map_or_else(|| "none".into(), |group| group.to_string());
        add("  group", &format!("IOMMU group {group}"), plain);
        let holder = state
            .model
            .contracts
            .iter()
            .find(|line| line.gpus.contains(address));
        match holder {
            Some(line) => add("  held by", &format!("contract {}", line.id), theme.good()),
            None if gpu.is_for_sale() => add("  held by", "nobody: free", plain),
            None => add("  held by", "not sold", theme.quiet()),
        }
        if let Some(obstacle) = gpu.obstacle.as_deref().filter(|_| gpu.is_compute()) {
            add("  because", obstacle, theme.warn());
        }
    }
    if inventory.gpus.is_empty() {
        lines.push(Line::raw("none"));
    }
    lines.extend(doctors_word(state, theme, columns, "iommu"));
    lines
}

pub(super) fn network(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Leased ports and names", theme, columns)];
    for line in state.contracts() {
        let slot = line
            .slot
            .map_or_else(|| "no slot".into(), |slot| format!("slot {slot}"));
        let head = format!("{:.16} {slot} {}", line.id, line.phase);
        lines.push(Line::styled(fit(&head, columns), theme.strong()));
        let ports = if line.ports.is_empty() {
            "none".into()
        } else {
            line.ports.join(", ")
        };
        lines.extend(rows("  ports", &ports, Style::new(), columns));
        for name in &line.names {
            lines.extend(rows("  name", name, Style::new(), columns));
        }
        if let Some(own) = &line.own_name {
            let style = if own.routed { theme.good() } else { theme.warn() };
            lines.extend(rows("  own name", &own.line(), style, columns));
        }
    }
    if lines.len() == 1 {
        lines.push(Line::raw("none"));
    }
    lines.extend(doctors_word(state, theme, columns, "network"));
    lines
}

/// The doctor's findings of one branch.
fn doctors_word(state: &State, theme: &Theme, columns: usize, branch: &str) -> Vec<Line<'static>> {
    let mut lines = vec![heading(&format!("Doctor: {branch}"), theme, columns)];
    let Some(report) = &state.model.doctor else {
        lines.push(Line::raw("being looked at"));
        return lines;
    };
    let of = |finding: &&Finding| finding.id == branch || finding.id.starts_with(&format!("{branch}."));
    for finding in report.walk().into_iter().map(|(_, finding)| finding).filter(of) {
        let (word, style) = severity(finding.severity, theme);
        lines.extend(rows(
            word,
            &format!("{}: {}", finding.id, finding.finding),
            style,
            columns,
        ));
        if let Some(fix) = &finding.fix {
            lines.extend(rows("  fix", fix, Style::new(), columns));
        }
    }
    lines
}

pub(super) fn log(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let events = state
        .model
        .events()
        .iter()
        .filter(|event| state.matches(&event.text));
    let mut lines: Vec<_> = events
        .map(|event| {
            let (word, style) = match event.level.as_str() {
                "error" => ("ERROR", theme.bad()),
                "warn" => ("WARN ", theme.warn()),
                "info" => ("info ", theme.note()),
                _ => ("debug", theme.quiet()),
            };
            let text = fit(&event.text, columns.saturating_sub(15));
            Line::from(vec![
                Span::styled(clock(event.at_ms) + " ", theme.quiet()),
                Span::styled(word, style),
                Span::raw(format!(" {}", text.trim_end())),
            ])
        })
        .collect();
    if lines.is_empty() {
        let text = if state.model.log.is_none() {
            "not heard yet"
        } else {
            "nothing"
        };
        lines.push(Line::raw(text));
    }
    lines
}

/// The doctor's findings that the filter lets through, with their depths.
pub(super) fn findings(state: &State) -> Vec<(usize, &Finding)> {
    let Some(report) = &state.model.doctor else {
        return Vec::new();
    };
    let mut found = report.walk();
    found.retain(|(_, finding)| state.matches(&finding.id) || state.matches(&finding.finding));
    found
}

pub(super) fn draw_doctor(state: &State, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let columns = usize::from(area.width);
    let found = findings(state);
    let count = |severity| {
        found
            .iter()
            .filter(|(_, finding)| finding.severity == severity)
            .count()
    };
    let title = format!(
        "Doctor: {} failed, {} warnings",
        count(Severity::Fail),
        count(Severity::Warn)
    );
    put(buffer, area, 0, &heading(&title, theme, columns));
    let mut list = Rect {
        y: area.y + 1.min(area.height),
        height: area.height.saturating_sub(1),
        ..area
    };
    if state.model.doctor.is_none() {
        return put(
            buffer,
            list,
            0,
            &Line::raw(fit("looks at the machine; this takes some seconds", columns)),
        );
    }
    // The chosen finding in full below the list.
    if let Some((_, finding)) = found.get(state.selected).filter(|_| area.height >= 8) {
        let (word, style) = severity(finding.severity, theme);
        let mut lines = vec![heading(&finding.id, theme, columns)];
        lines.extend(rows(word, &finding.finding, style, columns));
        if !finding.evidence.is_empty() {
            lines.extend(rows("seen", &finding.evidence, Style::new(), columns));
        }
        if let Some(fix) = &finding.fix {
            lines.extend(rows("fix", fix, theme.strong(), columns));
        }
        let height = u16::try_from(lines.len())
            .unwrap_or(u16::MAX)
            .min(area.height / 2);
        list.height -= height;
        let below = Rect {
            y: list.y + list.height,
            height,
            ..area
        };
        put_all(buffer, below, &lines);
    }
    let rows = usize::from(list.height);
    let first = (state.selected + 1).saturating_sub(rows);
    for (number, (depth, finding)) in found.iter().enumerate().skip(first).take(rows) {
        let (word, style) = severity(finding.severity, theme);
        let text = format!(
            " {}{}  {}",
            "  ".repeat((*depth).min(8)),
            finding.id,
            finding.finding
        );
        let mut line = Line::from(vec![
            Span::styled(word, style),
            Span::raw(fit(&text, columns.saturating_sub(word.len()))),
        ]);
        if number == state.selected {
            line = line.patch_style(theme.selected());
        }
        put(
            buffer,
            list,
            u16::try_from(number - first).unwrap_or(u16::MAX),
            &line,
        );
    }
}
