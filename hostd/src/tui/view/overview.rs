//! The first page: capacity, trust, money, contracts, log.

use std::collections::BTreeMap;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::pages;
use super::parts::{bytes, dct, heading, mib, probe, put, put_all, row};
use crate::inventory::{Inventory, Probe, Readiness};
use crate::surface::model::{ContractLine, Share};
use crate::tui::model::Model;
use crate::tui::state::State;
use crate::tui::text::{clean, fit};
use crate::tui::theme::Theme;

/// Below this the three panels aren't legible beside each other.
const WIDE: u16 = 76;
/// Below this the panels would leave no room for contracts.
const TALL: u16 = 16;
/// Rows of a panel: its title and six facts.
const PANEL: u16 = 7;

pub(super) fn draw(state: &State, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let model = &state.model;
    let columns = usize::from(area.width);
    let top = if area.width >= WIDE && area.height >= TALL {
        let width = area.width / 3;
        let panels = [
            (
                "Capacity",
                capacity as fn(&Model, &Theme, usize) -> Vec<Line<'static>>,
            ),
            ("Trust", trust),
            ("Money (DCT)", money),
        ];
        for (number, (title, lines)) in (0..).zip(panels) {
            let panel = Rect {
                x: area.x + number * width,
                width: width.saturating_sub(1),
                height: PANEL,
                ..area
            };
            let columns = usize::from(panel.width);
            put(buffer, panel, 0, &heading(title, theme, columns));
            let below = Rect {
                y: panel.y + 1,
                height: PANEL - 1,
                ..panel
            };
            put_all(buffer, below, &lines(model, theme, columns));
        }
        PANEL
    } else {
        let lines = brief(model, theme, columns);
        let rows = if area.height >= 8 { 3 } else { 0 };
        put_all(buffer, Rect { height: rows, ..area }, &lines);
        rows
    };
    let left = area.height - top;
    let log = match left {
        0..7 => 0,
        7..12 => 3,
        _ => left / 3,
    };
    let table = Rect {
        y: area.y + top,
        height: left - log,
        ..area
    };
    contracts(state, theme, table, buffer);
    if log > 0 {
        let area = Rect {
            y: table.y + table.height,
            height: log,
            ..area
        };
        put(buffer, area, 0, &heading("Log", theme, columns));
        let lines = pages::log(state, theme, columns);
        let rows = usize::from(log) - 1;
        let below = Rect {
            y: area.y + 1,
            height: log - 1,
            ..area
        };
        put_all(buffer, below, &lines[lines.len().saturating_sub(rows)..]);
    }
}

/// The facts of each panel in a line.
fn brief(model: &Model, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let line = |name: &str, text: String| row(name, Span::raw(text), columns);
    let capacity = model.status.as_ref().map_or_else(
        || "not heard yet".to_owned(),
        |status| {
            let c = &status.capacity;
            let share = |share: &Share| format!("{}/{}", share.used, share.total);
            format!(
                "vCPU {} mem {}/{} GPU {} ports {}",
                share(&c.vcpus),
                mib(c.memory_mib.used),
                mib(c.memory_mib.total),
                share(&c.gpus),
                share(&c.ports)
            )
        },
    );
    let trust = model.inventory.as_ref().map_or_else(
        || "not heard yet".to_owned(),
        |inventory| {
            format!(
                "secure boot {}, SNP {}, TDX {}",
                probe(&inventory.boot.secure_boot, on_off),
                readiness(&inventory.sev_snp, theme).0,
                readiness(&inventory.tdx, theme).0
            )
        },
    );
    let money = model.money.as_ref().map_or_else(
        || "not heard yet".to_owned(),
        |money| {
            format!(
                "escrow {}, accrued {}, balance {}",
                probe(&money.escrow, |n| dct(*n)),
                probe(&money.accrued, |n| dct(*n)),
                probe(&money.balance, |n| dct(*n))
            )
        },
    );
    vec![
        line("capacity", capacity),
        line("trust", trust),
        line("money", money),
    ]
}

fn capacity(model: &Model, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let Some(status) = &model.status else {
        return vec![Line::raw("not heard yet")];
    };
    let c = &status.capacity;
    let gib = |share: Share| Share {
        total: share.total / 1024,
        used: share.used.div_ceil(1024),
    };
    let shares = [
        ("vCPU", c.vcpus, ""),
        ("mem", gib(c.memory_mib), " GiB"),
        ("disk", c.storage_gib, " GiB"),
        ("GPU", c.gpus, ""),
        ("ports", c.ports, ""),
    ];
    let mut lines: Vec<_> = shares
        .into_iter()
        .map(|(name, share, unit)| {
            let text = format!(" {}/{}{unit}", share.used, share.total);
            let room = columns.saturating_sub(6 + text.len()).min(10);
            let (full, empty) = theme.bar();
            let part = u128::from(share.used) * room as u128 / u128::from(share.total.max(1));
            let part = usize::try_from(part).unwrap_or(room).min(room);
            let style = if share.used >= share.total {
                theme.warn()
            } else {
                theme.good()
            };
            Line::from(vec![
                Span::raw(fit(name, 6)),
                Span::styled(full.repeat(part), style),
                Span::styled(empty.repeat(room - part), theme.quiet()),
                Span::raw(text),
            ])
        })
        .collect();
    let counts = &status.contracts;
    lines.push(Line::raw(format!(
        "{} running, {} starting",
        counts.running, counts.provisioning
    )));
    lines
}

/// On or off.
pub(super) fn on_off(on: &bool) -> String {
    if *on { "on" } else { "off" }.to_owned()
}

/// A readiness in a word or two.
pub(super) fn readiness(readiness: &Readiness, theme: &Theme) -> (String, Style) {
    match readiness {
        Readiness::Ready { .. } => ("ready".into(), theme.good()),
        Readiness::NotReady { missing } => (format!("not ready ({})", missing.len()), theme.warn()),
        Readiness::NotThisMachine { .. } => ("not here".into(), theme.quiet()),
    }
}

/// What the boot was measured by.
pub(super) fn measured(inventory: &Inventory) -> String {
    let tpm = match &inventory.tpm {
        None => return "no TPM".into(),
        Some(tpm) => probe(&tpm.version, |version| format!("TPM {version}")),
    };
    match &inventory.boot.event_log_bytes {
        Probe::Known(length) => format!("{tpm}, log {}", bytes(*length)),
        Probe::Unknown(why) => format!("{tpm}, log unknown: {why}"),
    }
}

/// How many VMs have which grade.
pub(super) fn grades(lines: &[ContractLine]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *counts
            .entry(line.grade.as_deref().unwrap_or("grade unknown"))
            .or_default() += 1;
    }
    if counts.is_empty() {
        return "none".into();
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(grade, count)| format!("{count} {grade}"))
        .collect();
    parts.join(", ")
}

fn trust(model: &Model, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let Some(inventory) = &model.inventory else {
        return vec![Line::raw("not heard yet")];
    };
    let boot = &inventory.boot;
    let style = |good: Option<bool>| match good {
        Some(true) => theme.good(),
        Some(false) => theme.warn(),
        None => theme.quiet(),
    };
    let (snp, snp_style) = readiness(&inventory.sev_snp, theme);
    let (tdx, tdx_style) = readiness(&inventory.tdx, theme);
    let image = boot.image.as_ref().map_or_else(
        || "not the appliance".to_owned(),
        |image| {
            format!(
                "{} {}",
                image.id,
                image.version.as_deref().unwrap_or("(no version)")
            )
        },
    );
    [
        (
            "secure boot",
            probe(&boot.secure_boot, on_off),
            style(boot.secure_boot.known().copied()),
        ),
        (
            "measured",
            measured(inventory),
            style(boot.event_log_bytes.known().map(|_| inventory.tpm.is_some())),
        ),
        ("SEV-SNP", snp, snp_style),
        ("TDX", tdx, tdx_style),
        ("VMs", grades(&model.contracts), Style::new()),
        ("image", image, Style::new()),
    ]
    .map(|(name, text, style)| row(name, Span::styled(text, style), columns))
    .into()
}

fn money(model: &Model, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let Some(money) = &model.money else {
        return vec![Line::raw("not heard yet")];
    };
    let amount = |name: &str, value: &Probe<u64>| {
        let style = if value.known().is_some() {
            Style::new()
        } else {
            theme.quiet()
        };
        row(name, Span::styled(probe(value, |n| dct(*n)), style), columns)
    };
    vec![
        amount("escrow", &money.escrow),
        amount("accrued", &money.accrued),
        amount("an hour", &money.per_hour),
        amount("balance", &money.balance),
        amount("reputation", &money.reputation),
        amount("next reward", &money.next_reward),
    ]
}

/// A contract's state in a word.
pub(super) fn state_word(line: &ContractLine, theme: &Theme) -> (String, Style) {
    match (line.degraded.is_some(), line.phase.as_str()) {
        (true, _) => ("DEGRADED".into(), theme.bad()),
        (false, "running") => ("running".into(), theme.good()),
        (false, "provisioning") => ("provisioning".into(), theme.note()),
        (false, phase) => (clean(phase), theme.warn()),
    }
}

/// The table of contracts, with the cursor.
pub(super) fn contracts(state: &State, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let lines = state.contracts();
    let width = usize::from(area.width);
    let all = state.model.contracts.len();
    let count = if lines.len() == all {
        all.to_string()
    } else {
        format!("{} of {all}", lines.len())
    };
    let title = format!("Contracts: {count}, by {}", state.sort.name());
    put(buffer, area, 0, &heading(&title, theme, width));
    // From the left as many as fit; the last one takes the rest.
    let columns: &[(&str, usize)] = match width {
        0..76 => &[("CONTRACT", 8), ("STATE", 12), ("KIND", 7), ("GRADE", 17)],
        76..110 => &[
            ("CONTRACT", 8),
            ("STATE", 12),
            ("KIND", 7),
            ("CPU", 3),
            ("MEM", 8),
            ("GRADE", 17),
            ("DCT/H", 6),
        ],
        _ => &[
            ("CONTRACT", 16),
            ("STATE", 12),
            ("LEDGER", 10),
            ("KIND", 7),
            ("CPU", 4),
            ("MEM", 8),
            ("GPU", 3),
            ("GRADE", 17),
            ("DCT/H", 10),
        ],
    };
    let head: Vec<String> = columns.iter().map(|(name, width)| fit(name, *width)).collect();
    put(
        buffer,
        area,
        1,
        &Line::styled(fit(&format!("{} DOING", head.join(" ")), width), theme.quiet()),
    );
    let rows = usize::from(area.height.saturating_sub(2));
    let first = (state.selected + 1).saturating_sub(rows);
    let below = Rect {
        y: area.y + 2.min(area.height),
        height: area.height.saturating_sub(2),
        ..area
    };
    if lines.is_empty() {
        let text = match (&state.model.status, all) {
            (None, _) => "not heard yet",
            (Some(_), 0) => "no contracts on this host",
            (Some(_), _) => "no contract matches the filter",
        };
        put(buffer, below, 0, &Line::raw(fit(text, width)));
    }
    let money = state.model.money.as_ref();
    for (number, line) in lines.iter().enumerate().skip(first).take(rows) {
        let (word, style) = state_word(line, theme);
        let mut spans = Vec::new();
        for (name, width) in columns {
            let (text, style) = match *name {
                "CONTRACT" => (line.id.clone(), theme.strong()),
                "STATE" => (word.clone(), style),
                "LEDGER" => (line.ledger.clone(), Style::new()),
                "KIND" => (line.kind.clone(), Style::new()),
                "CPU" => (line.vcpus.to_string(), Style::new()),
                "MEM" => (mib(line.memory_mib), Style::new()),
                "GPU" => (line.gpus.len().to_string(), Style::new()),
                "GRADE" => (
                    line.grade.clone().unwrap_or_else(|| "unknown".into()),
                    Style::new(),
                ),
                _ => {
                    let known = money.and_then(|money| money.contracts.get(&line.id));
                    (
                        known.map_or_else(|| "unknown".into(), |m| dct(m.price_per_hour)),
                        Style::new(),
                    )
                }
            };
            // An id is told by its beginning: nothing shows that it was cut.
            let text = if *name == "CONTRACT" {
                text.chars().take(*width).collect()
            } else {
                text
            };
            spans.push(Span::styled(fit(&text, *width) + " ", style));
        }
        let trouble = line.degraded.as_ref().or(line.last_error.as_ref());
        let doing = trouble.map_or_else(|| line.activity.clone(), |why| format!("! {why}"));
        let used: usize = columns.iter().map(|(_, width)| width + 1).sum();
        spans.push(Span::raw(fit(&doing, width.saturating_sub(used))));
        let mut drawn = Line::from(spans);
        if number == state.selected {
            drawn = drawn.patch_style(theme.selected());
        }
        put(
            buffer,
            below,
            u16::try_from(number - first).unwrap_or(u16::MAX),
            &drawn,
        );
    }
}
