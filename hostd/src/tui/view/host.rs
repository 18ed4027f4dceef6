//! The host in full: alerts, reasons that found no room elsewhere, actions.

use ratatui::style::Style;
use ratatui::text::Line;

use super::overview::{grades, measured, on_off};
use super::parts::{dct, heading, probe, rows, severity, since};
use crate::inventory::{Probe, Readiness};
use crate::tui::state::State;
use crate::tui::theme::Theme;
use crate::update::Phase;

pub(super) fn text(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Alerts", theme, columns)];
    let alerts = state.model.alerts();
    for alert in &alerts {
        let (word, style) = severity(alert.severity, theme);
        lines.extend(rows(word, &alert.text, style, columns));
    }
    if alerts.is_empty() {
        lines.push(Line::styled("none: all is well", theme.good()));
    }
    lines.extend(actions(state, theme, columns));
    lines.extend(ledger(state, theme, columns));
    lines.extend(money(state, theme, columns));
    lines.extend(trust(state, theme, columns));
    lines
}

fn actions(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Actions", theme, columns)];
    if state.read_only {
        lines.push(Line::raw("read only: none"));
        return lines;
    }
    let status = state.model.status.as_ref();
    let maintenance = status.and_then(|status| status.maintenance.as_ref());
    let plain = Style::new();
    match (maintenance, status.is_some_and(|status| status.draining)) {
        (Some(maintenance), _) => {
            let text = format!(
                "since {}: {}",
                since(maintenance.since_ms, state.now_ms),
                maintenance.reason
            );
            lines.extend(rows("maintenance", &text, theme.warn(), columns));
            lines.extend(rows(
                ":",
                "maintenance end: take new contracts again",
                plain,
                columns,
            ));
        }
        (None, true) => lines.extend(rows(":", "drain end: take new contracts again", plain, columns)),
        (None, false) => lines.extend(rows(
            "d",
            "drain: no new contracts; those here go on",
            plain,
            columns,
        )),
    }
    if maintenance.is_none() {
        lines.extend(rows(
            "m",
            "maintenance: the same with a reason that is logged",
            plain,
            columns,
        ));
    }
    if let Some(update) = status.and_then(|status| status.update.as_ref()) {
        let text = match &update.phase {
            Phase::Staged { version, .. } => format!("approve the update to {version}: reboot into it"),
            _ => "approve an update, once one is staged (hostd update stage)".to_owned(),
        };
        lines.extend(rows("u", &text, plain, columns));
    }
    lines.extend(rows(
        ":",
        "end CONTRACT: stop a VM and destroy its disk",
        plain,
        columns,
    ));
    lines
}

fn ledger(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Ledger", theme, columns)];
    let Some(status) = &state.model.status else {
        lines.push(Line::raw("not heard yet"));
        return lines;
    };
    let ledger = &status.ledger;
    let plain = Style::new();
    let heard = ledger.heard_ms_ago.map_or_else(
        || "never heard".to_owned(),
        |ms| {
            format!(
                "heard {} ago",
                super::parts::span(i64::try_from(ms).unwrap_or(i64::MAX))
            )
        },
    );
    let mut add = |name: &str, text: &str, style| lines.extend(rows(name, text, style, columns));
    add(
        "url",
        &format!("{} at height {}, {heard}", ledger.url, ledger.height),
        plain,
    );
    if let Some(trouble) = &ledger.trouble {
        add("trouble", trouble, theme.bad());
    }
    add("host", &ledger.host, plain);
    let offering = match (&ledger.offering, &ledger.registration_trouble) {
        (Some(id), _) => id.to_string(),
        (None, Some(why)) => format!("none: {why}"),
        (None, None) => "none yet".into(),
    };
    add("offering", &offering, plain);
    lines
}

fn money(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Money (DCT)", theme, columns)];
    let Some(money) = &state.model.money else {
        lines.push(Line::raw("not heard yet"));
        return lines;
    };
    let mut add = |name: &str, value: &Probe<u64>| {
        lines.extend(rows(name, &probe(value, |n| dct(*n)), Style::new(), columns));
    };
    add("escrow", &money.escrow);
    add("accrued", &money.accrued);
    add("an hour", &money.per_hour);
    add("paid out", &money.paid_out);
    add("balance", &money.balance);
    add("reputation", &money.reputation);
    add("next reward", &money.next_reward);
    lines.extend(rows("provider", &money.provider, Style::new(), columns));
    lines
}

fn trust(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Trust", theme, columns)];
    let Some(inventory) = &state.model.inventory else {
        lines.push(Line::raw("not heard yet"));
        return lines;
    };
    let boot = &inventory.boot;
    let plain = Style::new();
    let mut add = |name: &str, text: &str| lines.extend(rows(name, text, plain, columns));
    add("secure boot", &probe(&boot.secure_boot, on_off));
    add("setup mode", &probe(&boot.setup_mode, on_off));
    add("measured", &measured(inventory));
    add(
        "firmware",
        boot.firmware
            .as_deref()
            .unwrap_or("unknown: the machine doesn't tell"),
    );
    let status = state.model.status.as_ref();
    if let Some(trust) = status.and_then(|status| status.host_trust.as_ref()) {
        let grade = if trust.verified {
            "host-verified"
        } else {
            "host-signed"
        };
        let runs = trust.image.as_deref().unwrap_or("unknown to the ledger");
        let trouble = trust
            .trouble
            .as_ref()
            .map_or_else(String::new, |why| format!("; {why}"));
        add("this host", &format!("{grade}; runs {runs}{trouble}"));
    }
    add("VMs", &grades(&state.model.contracts));
    for (name, readiness) in [
        ("KVM", &inventory.kvm),
        ("SEV-SNP", &inventory.sev_snp),
        ("TDX", &inventory.tdx),
    ] {
        match readiness {
            Readiness::Ready { warnings } if warnings.is_empty() => add(name, "ready"),
            Readiness::Ready { warnings } => add(name, &format!("ready; {}", warnings.join("; "))),
            Readiness::NotThisMachine { why } => add(name, &format!("not here: {why}")),
            Readiness::NotReady { missing } => {
                for missing in missing {
                    add(name, &format!("{}. {}", missing.found, missing.fix));
                }
            }
        }
    }
    lines
}
