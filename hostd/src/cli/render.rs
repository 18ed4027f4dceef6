//! The API's answers for people. Pure.

use std::fmt::Write as _;

use crate::journal::StepState;
use crate::surface::model::{ContractLine, Explanation, Share, Status, VmInfo};

/// Columns as wide as their widest cell; the last one as it comes.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let pad = width.saturating_sub(cell.chars().count());
            let _ = write!(text, "{cell}{}  ", " ".repeat(pad));
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

/// The host at a glance.
pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    let ready = if status.ready { "ready" } else { "NOT READY" };
    let test = if status.test_platform {
        ", TEST PLATFORM (confidential kinds are simulated)"
    } else {
        ""
    };
    let _ = writeln!(text, "{} — hostd {}: {ready}{test}", status.name, status.version);
    for why in &status.not_ready {
        let _ = writeln!(text, "  ! {why}");
    }
    let ledger = &status.ledger;
    let heard = ledger
        .heard_ms_ago
        .map_or_else(|| "never heard".to_owned(), |ms| format!("heard {} ago", age(ms)));
    let offering = ledger
        .offering
        .map_or_else(|| "none".to_owned(), |id| id.to_string());
    let _ = writeln!(
        text,
        "ledger    {} at height {}, {heard}; offering {offering}",
        ledger.url, ledger.height
    );
    let _ = writeln!(text, "host      {}", ledger.host);
    if let Some(trust) = &status.host_trust {
        let runs = trust.image.as_deref().unwrap_or("unknown to the ledger");
        let grade = if trust.verified {
            "host-verified"
        } else {
            "host-signed"
        };
        let _ = writeln!(text, "trust     {grade}; runs {runs}");
        if let Some(key) = trust.attestation_key.as_ref().filter(|_| !trust.verified) {
            let _ = writeln!(text, "          attestation key {key}");
        }
        if let Some(trouble) = &trust.trouble {
            let _ = writeln!(text, "  ! {trouble}");
        }
    }
    if let Some(update) = &status.update {
        let trial = if update.on_trial { ", on trial" } else { "" };
        let _ = writeln!(
            text,
            "image     {}{trial}; update: {}",
            update.running,
            super::update::phase(&update.phase)
        );
    }
    let share =
        |name: &str, share: &Share, unit: &str| format!("{name} {}/{}{unit}", share.used, share.total);
    let capacity = &status.capacity;
    let _ = writeln!(
        text,
        "capacity  {}, {}, {}, {}, {} (used/total)",
        share("vCPUs", &capacity.vcpus, ""),
        share("memory", &capacity.memory_mib, " MiB"),
        share("storage", &capacity.storage_gib, " GiB"),
        share("GPUs", &capacity.gpus, ""),
        share("ports", &capacity.ports, ""),
    );
    let counts = status.contracts;
    let _ = writeln!(
        text,
        "contracts {} running, {} provisioning, {} removing, {} degraded",
        counts.running, counts.provisioning, counts.removing, counts.degraded
    );
    if counts.names_not_routed > 0 {
        let _ = writeln!(
            text,
            "names     {} of tenants' own names not routed; why: hostd contracts",
            counts.names_not_routed
        );
    }
    for vmm in &status.vmms {
        let kinds = vmm.kinds.iter().map(|(kind, why)| {
            if why.is_empty() {
                format!("{kind} yes")
            } else {
                format!("{kind} no: {why}")
            }
        });
        let _ = writeln!(
            text,
            "vmm       {} ({}): {}",
            vmm.name,
            vmm.version,
            kinds.collect::<Vec<_>>().join("; ")
        );
    }
    for object in &status.quarantine {
        let _ = writeln!(
            text,
            "unknown   {} {}: {}",
            object.kind, object.name, object.detail
        );
    }
    text
}

/// Contracts as a table.
pub(super) fn contracts(lines: &[ContractLine]) -> String {
    if lines.is_empty() {
        return "no contracts on this host\n".into();
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let trouble = line
                .degraded
                .as_deref()
                .or(line.last_error.as_deref())
                .unwrap_or_default();
            vec![
                line.id.chars().take(16).collect(),
                line.phase.clone(),
                line.ledger.clone(),
                line.activity.clone(),
                line.kind.clone(),
                line.vcpus.to_string(),
                line.memory_mib.to_string(),
                line.slot.map(|slot| slot.to_string()).unwrap_or_default(),
                trouble.to_owned(),
            ]
        })
        .collect();
    let mut text = table(
        &[
            "CONTRACT", "PHASE", "LEDGER", "DOING", "KIND", "VCPU", "MIB", "SLOT", "TROUBLE",
        ],
        &rows,
    );
    for line in lines {
        if let Some(name) = &line.own_name {
            let id: String = line.id.chars().take(8).collect();
            let _ = writeln!(text, "name of {id}  {}", name.line());
        }
    }
    text
}

/// One VM.
pub(super) fn vm(info: &VmInfo) -> String {
    let mut text = contracts(std::slice::from_ref(&info.line));
    let alive = if info.alive { "alive" } else { "not running" };
    let pid = info.pid.map(|pid| format!("pid {pid}, ")).unwrap_or_default();
    let _ = writeln!(
        text,
        "vmm       {} ({pid}{alive})",
        info.adapter.as_deref().unwrap_or("none")
    );
    if let Some(counters) = info.counters {
        let _ = writeln!(
            text,
            "counters  CPU {:.1} s, resident {} MiB, disk read {} KiB, written {} KiB",
            counters.cpu_us as f64 / 1e6,
            counters.rss_bytes >> 20,
            counters.disk_read_bytes >> 10,
            counters.disk_written_bytes >> 10
        );
    }
    if let Some(traffic) = info.traffic {
        let (from, to) = (traffic.from_vm_bytes >> 10, traffic.to_vm_bytes >> 10);
        let _ = writeln!(text, "traffic   {from} KiB from the VM, {to} KiB to it");
    }
    for trouble in &info.trouble {
        let _ = writeln!(text, "  ! {trouble}");
    }
    text
}

/// Everything about one contract.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let mut text = contracts(std::slice::from_ref(&explanation.line));
    let _ = writeln!(
        text,
        "id        {}\ntenant    {}",
        explanation.line.id, explanation.developer
    );
    if let Some(endpoint) = &explanation.endpoint {
        let ports: Vec<_> = endpoint
            .ports
            .iter()
            .map(|p| format!("{:?} {}→{}", p.transport, p.public_port, p.vm_port).to_lowercase())
            .collect();
        let _ = writeln!(
            text,
            "reached   {} {} {}",
            endpoint.address,
            endpoint.names.join(" "),
            ports.join(" ")
        );
    }
    if let Some(removal) = &explanation.removal {
        let _ = writeln!(
            text,
            "removal   {}",
            removal
                .tell()
                .unwrap_or_else(|| "the ledger says that it is over".into())
        );
    }
    if let Some(evidence) = &explanation.evidence {
        let _ = writeln!(
            text,
            "evidence  {} bytes, sha256 {}",
            evidence.bytes, evidence.sha256
        );
    }
    let mut steps: Vec<_> = explanation.steps.iter().collect();
    steps.sort_by_key(|(step, line)| (line.started_ms, **step));
    let rows: Vec<Vec<String>> = steps
        .into_iter()
        .map(|(step, line)| {
            let state = match line.state {
                StepState::Started => "started",
                StepState::Done => "done",
                StepState::Failed => "FAILED",
            };
            let took = line
                .ended_ms
                .map(|end| format!("{} ms", end - line.started_ms))
                .unwrap_or_default();
            let detail = line.detail.clone().unwrap_or_default();
            vec![
                step.name().into(),
                state.into(),
                took,
                line.attempts.to_string(),
                detail,
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&table(&["STEP", "STATE", "TOOK", "TRIES", "DETAIL"], &rows));
    for config in &explanation.configs {
        let _ = writeln!(text, "\n--- {} ---\n{}", config.name, config.text.trim_end());
    }
    text
}

/// A guest's bytes without anything that a terminal would obey: line feeds, tabs and text stay.
pub(super) fn harmless(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .filter(|byte| matches!(byte, b'\n' | b'\t' | 0x20..=0x7e | 0xa0..))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_a_guest_do_not_reach_the_terminal() {
        assert_eq!(
            harmless(b"ok\x1b]0;owned\x07\r\n\x9b2J\tend"),
            b"ok]0;owned\n2J\tend"
        );
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [vec!["aaaa".into(), "b".into()], vec!["a".into(), "bb".into()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\naaaa  b\na     bb\n");
    }
}
