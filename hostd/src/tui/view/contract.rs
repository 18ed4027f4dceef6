//! One contract: what happened to it step by step, what its evidence proved, how it is reached, what its VM says.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use serde_json::Value;

use super::overview::state_word;
use super::parts::{bytes, clock, dct, heading, mib, put, put_all, rows, span};
use crate::journal::StepState;
use crate::surface::model::{EvidenceView, Explanation, VmInfo};
use crate::tui::model::Detail;
use crate::tui::state::State;
use crate::tui::text::{console, fit};
use crate::tui::theme::Theme;

/// Evidence checks that are shown.
const CHECKS_MAX: usize = 100;

pub(super) fn draw(state: &State, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let columns = usize::from(area.width);
    let lines = text(state, theme, columns);
    let follows = state.follow && area.height >= 12;
    let below = if follows { area.height / 3 } else { 0 };
    let top = Rect {
        height: area.height - below,
        ..area
    };
    put_all(buffer, top, lines.get(state.scroll..).unwrap_or_default());
    if follows && let Some(detail) = &state.model.detail {
        let area = Rect {
            y: area.y + top.height,
            height: below,
            ..area
        };
        put(
            buffer,
            area,
            0,
            &heading("Console (live; f: stand still)", theme, columns),
        );
        let lines = console_lines(detail, columns);
        let rows = usize::from(below.saturating_sub(1));
        let under = Rect {
            y: area.y + 1,
            height: below - 1,
            ..area
        };
        put_all(buffer, under, &lines[lines.len().saturating_sub(rows)..]);
    }
}

fn console_lines(detail: &Detail, columns: usize) -> Vec<Line<'static>> {
    let lines = match &detail.console {
        Ok(text) => console(text.trim_end()),
        Err(why) => vec![format!("no console: {why}")],
    };
    lines.iter().map(|line| Line::raw(fit(line, columns))).collect()
}

/// Everything, from the top.
pub(super) fn text(state: &State, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let id = state.open.as_deref().unwrap_or_default();
    let mut lines = vec![heading(&format!("Contract {id}"), theme, columns)];
    let Some(detail) = &state.model.detail else {
        lines.push(Line::raw("the daemon is asked"));
        return lines;
    };
    match &detail.explanation {
        Err(why) => lines.extend(rows("", why, theme.warn(), columns)),
        Ok(explanation) => {
            lines.extend(facts(state, explanation, theme, columns));
            lines.extend(steps(explanation, theme, columns));
        }
    }
    lines.extend(evidence(detail, theme, columns));
    if let Ok(explanation) = &detail.explanation {
        lines.extend(network(explanation, detail.vm.as_ref(), theme, columns));
    }
    lines.extend(machine(detail, theme, columns));
    if !state.follow {
        lines.push(heading("Console", theme, columns));
        lines.extend(console_lines(detail, columns));
    }
    lines
}

fn facts(state: &State, explanation: &Explanation, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let line = &explanation.line;
    let plain = Style::new();
    let (word, style) = state_word(line, theme);
    let mut lines = rows(
        "state",
        &format!("{word}; ledger: {}; doing: {}", line.ledger, line.activity),
        style,
        columns,
    );
    let mut add = |name: &str, text: &str, style| lines.extend(rows(name, text, style, columns));
    if let Some(why) = &line.degraded {
        add("degraded", why, theme.bad());
    }
    if let Some(why) = &line.last_error {
        add("tried again", why, theme.warn());
    }
    if let Some(removal) = &explanation.removal {
        let why = removal
            .tell()
            .unwrap_or_else(|| "the ledger says that it is over".into());
        add("removed", &why, theme.warn());
    }
    let gpus = if line.gpus.is_empty() {
        String::new()
    } else {
        format!(", GPUs {}", line.gpus.join(" "))
    };
    let slot = line.slot.map(|slot| format!(", slot {slot}")).unwrap_or_default();
    add(
        "VM",
        &format!(
            "{}, {} vCPU, {}{gpus}{slot}",
            line.kind,
            line.vcpus,
            mib(line.memory_mib)
        ),
        plain,
    );
    add("tenant", &explanation.developer, plain);
    let money = state
        .model
        .money
        .as_ref()
        .and_then(|money| money.contracts.get(&line.id));
    let text = money.map_or_else(
        || "unknown: the ledger doesn't show this contract now".to_owned(),
        |money| {
            let accrued = money.accrued.map_or_else(|| "unknown".into(), dct);
            format!(
                "{} DCT an hour; escrow {}, accrued {accrued}, paid out {}, refunded {}",
                dct(money.price_per_hour),
                dct(money.held),
                dct(money.paid_out),
                dct(money.refunded)
            )
        },
    );
    add("money", &text, plain);
    lines
}

fn steps(explanation: &Explanation, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Steps", theme, columns)];
    let mut steps: Vec<_> = explanation.steps.iter().collect();
    steps.sort_by_key(|(step, line)| (line.started_ms, **step));
    for (step, line) in steps {
        let (word, style) = match line.state {
            StepState::Started => ("started", theme.note()),
            StepState::Done => ("done", theme.good()),
            StepState::Failed => ("FAILED", theme.bad()),
        };
        let took = line
            .ended_ms
            .map(|end| span(end.saturating_sub(line.started_ms)))
            .unwrap_or_default();
        let tries = if line.attempts > 1 {
            format!("{} tries ", line.attempts)
        } else {
            String::new()
        };
        let head = format!("{} {} ", clock(line.started_ms), fit(step.name(), 8));
        let tail = format!(
            " {} {tries}{}",
            fit(&took, 7),
            line.detail.as_deref().unwrap_or_default()
        );
        lines.push(Line::from(vec![
            Span::raw(head.clone()),
            Span::styled(fit(word, 7), style),
            Span::raw(
                fit(&tail, columns.saturating_sub(head.len() + 7))
                    .trim_end()
                    .to_owned(),
            ),
        ]));
    }
    if lines.len() == 1 {
        lines.push(Line::raw("none yet"));
    }
    lines
}

fn evidence(detail: &Detail, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Evidence", theme, columns)];
    if let Ok(explanation) = &detail.explanation {
        let text = explanation.evidence.as_ref().map_or_else(
            || "none yet".to_owned(),
            |evidence| format!("{} bytes, sha256 {}", evidence.bytes, evidence.sha256),
        );
        lines.extend(rows("handed in", &text, Style::new(), columns));
    }
    let Some(EvidenceView {
        verdict,
        why,
        refusals,
    }) = &detail.evidence
    else {
        lines.push(Line::raw("the ledger is asked"));
        return lines;
    };
    for refusal in refusals {
        lines.extend(rows("REFUSED", refusal, theme.bad(), columns));
    }
    if let Some(why) = why {
        lines.extend(rows(
            "verdict",
            &format!("unknown: {why}"),
            theme.quiet(),
            columns,
        ));
    }
    let Some(verdict) = verdict else {
        return lines;
    };
    let trust = if verdict.trust == "test-root" {
        theme.warn()
    } else {
        theme.good()
    };
    lines.extend(rows(
        "grade",
        &format!(
            "{} at {} UTC (ledger's clock)",
            verdict.grade,
            clock(verdict.at_ms)
        ),
        theme.good(),
        columns,
    ));
    lines.extend(rows("trust", &verdict.trust, trust, columns));
    lines.extend(checks(&verdict.result, theme, columns));
    lines
}

/// The checks of an attestation result (EAR with ours beside it); from the ledger, so nothing is taken for granted.
fn checks(result: &Value, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let Some(checks) = result.get("checks").and_then(Value::as_array) else {
        return rows("checks", "unknown: the result lists none", theme.quiet(), columns);
    };
    let text = |check: &Value, key: &str| match check.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    checks
        .iter()
        .take(CHECKS_MAX)
        .flat_map(|check| {
            let outcome = text(check, "outcome");
            let style = match outcome.as_str() {
                "passed" => theme.good(),
                "not checked" => theme.quiet(),
                _ => theme.bad(),
            };
            let said = match outcome.as_str() {
                "passed" => text(check, "found"),
                "not checked" => text(check, "why"),
                _ => format!(
                    "{}: expected {}, found {}",
                    text(check, "reason"),
                    text(check, "expected"),
                    text(check, "found")
                ),
            };
            rows(&outcome, &format!("{} {said}", text(check, "id")), style, columns)
        })
        .collect()
}

fn network(
    explanation: &Explanation,
    vm: Option<&VmInfo>,
    theme: &Theme,
    columns: usize,
) -> Vec<Line<'static>> {
    let mut lines = vec![heading("Network", theme, columns)];
    let plain = Style::new();
    let address = explanation
        .endpoint
        .as_ref()
        .map_or("not reachable yet", |endpoint| &endpoint.address);
    lines.extend(rows("address", address, plain, columns));
    for name in &explanation.line.names {
        lines.extend(rows("name", name, plain, columns));
    }
    if let Some(own) = &explanation.line.own_name {
        let style = if own.routed { theme.good() } else { theme.warn() };
        lines.extend(rows("own name", &own.line(), style, columns));
    }
    lines.extend(rows("ports", &explanation.line.ports.join(", "), plain, columns));
    if let Some(traffic) = vm.and_then(|vm| vm.traffic) {
        let text = format!(
            "{} from the VM, {} to it",
            bytes(traffic.from_vm_bytes),
            bytes(traffic.to_vm_bytes)
        );
        lines.extend(rows("traffic", &text, plain, columns));
    }
    lines
}

fn machine(detail: &Detail, theme: &Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading("VM", theme, columns)];
    let Some(vm) = &detail.vm else {
        lines.push(Line::raw("no VM"));
        return lines;
    };
    let (word, style) = if vm.alive {
        ("alive", theme.good())
    } else {
        ("not running", theme.warn())
    };
    let pid = vm.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    let adapter = vm.adapter.as_deref().unwrap_or("no adapter");
    lines.extend(rows(
        "process",
        &format!("{word} ({adapter}{pid})"),
        style,
        columns,
    ));
    if let Some(counters) = vm.counters {
        let text = format!(
            "CPU {}, resident {}, read {}, written {}",
            span(i64::try_from(counters.cpu_us / 1000).unwrap_or(i64::MAX)),
            bytes(counters.rss_bytes),
            bytes(counters.disk_read_bytes),
            bytes(counters.disk_written_bytes)
        );
        lines.extend(rows("counters", &text, Style::new(), columns));
    }
    for trouble in &vm.trouble {
        lines.extend(rows("unknown", trouble, theme.warn(), columns));
    }
    lines
}
