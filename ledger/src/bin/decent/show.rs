//! Pages for people. What others wrote (titles, names, reasons) is shown without its control characters.

use std::fmt::Write;

use ledger::api::{
    Capacity, CheckIn, Contract, ContractState, DCT, EndReason, EvidenceRecord, Grade, Invariants,
    LedgerInfo, Match, Offering, OfferingSpec, Penalty, Quota, Reputation, Rewards, TimeNs, Transport,
    VmKind, WhyNot,
};
use ledger::name_proof;

use crate::parse::{GRADES, KINDS};

/// Text of others, safe for a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// An amount with its unit; no zeros at the end.
pub(crate) fn dct(units: u64) -> String {
    let fraction = format!("{:09}", units % DCT);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        format!("{} DCT", units / DCT)
    } else {
        format!("{}.{fraction} DCT", units / DCT)
    }
}

/// A signed amount of reputation.
fn signed(units: i64) -> String {
    let text = dct(units.unsigned_abs());
    let text = text.trim_end_matches(" DCT");
    if units < 0 {
        format!("-{text}")
    } else {
        format!("+{text}")
    }
}

/// A reputation: the token's decimals, but no token.
fn reputation_score(units: u64) -> String {
    dct(units).trim_end_matches(" DCT").to_owned()
}

/// A time of the ledger's clock, UTC, to the second.
pub(crate) fn time(at: TimeNs) -> String {
    let seconds = at / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970, in the proleptic Gregorian calendar, counted in years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// A period in its largest whole unit.
pub(crate) fn period(seconds: u64) -> String {
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds >= unit && seconds.is_multiple_of(unit) {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

fn quota(quota: Quota, unit: &str) -> String {
    match quota {
        Quota::Unlimited => "unlimited".to_owned(),
        Quota::Limited(number) => format!("{number} {unit}"),
    }
}

/// A grade as it is typed.
pub(crate) fn grade(grade: Grade) -> &'static str {
    GRADES
        .iter()
        .find(|(_, value)| *value == grade)
        .map_or("?", |(name, _)| name)
}

fn kinds(kinds: &[VmKind]) -> String {
    let names: Vec<&str> = KINDS
        .iter()
        .filter(|(_, kind)| kinds.contains(kind))
        .map(|(name, _)| *name)
        .collect();
    names.join("+")
}

/// A contract's state in words.
pub(crate) fn state(state: ContractState) -> String {
    match state {
        ContractState::Requested => "requested",
        ContractState::Accepted => "accepted",
        ContractState::Active => "active",
        ContractState::Ended(EndReason::Refused) => "ended: refused by the host, all refunded",
        ContractState::Ended(EndReason::AcceptTimeout) => "ended: not accepted in time, all refunded",
        ContractState::Ended(EndReason::ConfirmTimeout) => "ended: not confirmed in time, all refunded",
        ContractState::Ended(EndReason::Cancelled) => "ended: cancelled",
        ContractState::Ended(EndReason::PeriodOver) => "ended: the paid period is over",
        ContractState::Ended(EndReason::VmGone) => "ended: the VM is gone",
    }
    .to_owned()
}

/// Columns aligned, the header first.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
    text
}

pub(crate) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn size(capacity: &Capacity) -> String {
    let mut text = format!(
        "{} vCPU, {} MiB, {} GiB",
        capacity.vcpus, capacity.memory_mib, capacity.storage_gib
    );
    if capacity.gpus > 0 {
        let _ = write!(text, ", {} GPU", capacity.gpus);
    }
    text
}

fn platform(spec: &OfferingSpec) -> String {
    let mut text = kinds(&spec.kinds);
    if spec.test_platform {
        text.push_str(" (SIMULATED)");
    }
    text
}

/// `match`.
pub(crate) fn matches(found: &[Match]) -> String {
    if found.is_empty() {
        return "no offering fits; `decent why-not` with the same request says why\n".to_owned();
    }
    let mut rows = vec![row(&[
        "OFFERING",
        "PER HOUR",
        "IN ALL",
        "PROVIDER",
        "REPUTATION",
        "REGION",
        "KINDS",
        "BEST GRADE",
        "FREE",
        "TITLE",
    ])];
    for Match {
        offering,
        price_per_hour,
        total,
    } in found
    {
        rows.push(vec![
            offering.id.to_string(),
            dct(*price_per_hour),
            dct(*total),
            clean(&offering.provider_name),
            reputation_score(offering.provider_reputation),
            clean(&offering.spec.region),
            platform(&offering.spec),
            grade(offering.spec.best_grade).to_owned(),
            size(&offering.free),
            clean(&offering.spec.title),
        ]);
    }
    table(&rows)
}

/// `why-not`.
pub(crate) fn misfits(found: &[WhyNot]) -> String {
    if found.is_empty() {
        return "there is no offering that doesn't fit; see `decent match`, `decent offerings`\n".to_owned();
    }
    let mut text = String::new();
    for WhyNot { offering, reasons } in found {
        let _ = writeln!(
            text,
            "offering {} of {} ({})",
            offering.id,
            clean(&offering.provider_name),
            clean(&offering.spec.title)
        );
        let rows: Vec<Vec<String>> = reasons
            .iter()
            .map(|reason| {
                vec![
                    format!("  {}", clean(&reason.field)),
                    format!("wanted {}", clean(&reason.wanted)),
                    format!("offered {}", clean(&reason.offered)),
                ]
            })
            .collect();
        text.push_str(&table(&rows));
    }
    text
}

/// `offerings`.
pub(crate) fn offerings(found: &[Offering]) -> String {
    let mut rows = vec![row(&[
        "OFFERING",
        "PROVIDER",
        "REGION",
        "KINDS",
        "BEST GRADE",
        "FREE",
        "BANDWIDTH",
        "VM/H",
        "VCPU/H",
        "GIB RAM/H",
        "GIB DISK/H",
        "TITLE",
    ])];
    for offering in found {
        let spec = &offering.spec;
        rows.push(vec![
            offering.id.to_string(),
            clean(&offering.provider_name),
            clean(&spec.region),
            platform(spec),
            grade(spec.best_grade).to_owned(),
            size(&offering.free),
            quota(spec.bandwidth_mbps, "Mbit/s"),
            dct(spec.prices.vm_hour),
            dct(spec.prices.vcpu_hour),
            dct(spec.prices.memory_gib_hour),
            dct(spec.prices.storage_gib_hour),
            clean(&spec.title),
        ]);
    }
    table(&rows)
}

/// `info`.
pub(crate) fn info(info: &LedgerInfo) -> String {
    let mut rows = vec![
        vec!["name".to_owned(), clean(&info.name)],
        vec!["ledger".to_owned(), info.ledger.to_text()],
        vec!["ledger time".to_owned(), time(info.now)],
        vec!["blocks".to_owned(), info.height.to_string()],
        vec!["tip".to_owned(), info.tip.to_string()],
        vec![
            "fees".to_owned(),
            format!(
                "{} bp of a payment (of that {} bp for the DAO); {} a transfer",
                info.fee_bps,
                info.dao_bps,
                dct(info.transfer_fee)
            ),
        ],
    ];
    if info.demo {
        rows.push(row(&["DEMO", "its balances are out of nothing"]));
    }
    if info.clock_rate != 1 {
        rows.push(vec![
            "CLOCK".to_owned(),
            format!("runs {} times as fast as the wall clock", info.clock_rate),
        ]);
    }
    for root in &info.test_roots {
        rows.push(vec![
            "TEST ROOT".to_owned(),
            format!("{root} (SHA-256): evidence under it proves nothing real"),
        ]);
    }
    table(&rows)
}

/// `contract list`.
pub(crate) fn contracts(found: &[Contract]) -> String {
    let mut rows = vec![row(&[
        "CONTRACT", "STATE", "GRADE", "PERIOD", "HELD", "PAID", "REFUNDED", "UNTIL",
    ])];
    for contract in found {
        rows.push(vec![
            contract.id.to_string(),
            state(contract.state),
            grade(contract.grade).to_owned(),
            period(contract.period_s),
            dct(contract.escrow.held),
            dct(contract.escrow.released),
            dct(contract.escrow.refunded),
            contract.deadline.map_or_else(|| "-".to_owned(), time),
        ]);
    }
    table(&rows)
}

/// `contract show`.
pub(crate) fn contract(c: &Contract) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut line = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    line("contract", c.id.to_string());
    line("state", state(c.state));
    line(
        "grade",
        format!(
            "{} (asked for: {})",
            grade(c.grade),
            grade(c.args.request.min_grade)
        ),
    );
    if let Some(deadline) = c.deadline {
        line("deadline", time(deadline));
    }
    line("paid at", time(c.created_at));
    for (name, at) in [("active since", c.active_since), ("ended at", c.ended_at)] {
        if let Some(at) = at {
            line(name, time(at));
        }
    }
    line(
        "price",
        format!("{} per hour, for {}", dct(c.price_per_hour), period(c.period_s)),
    );
    let e = &c.escrow;
    line(
        "escrow",
        format!(
            "{} = {} held + {} paid + {} refunded",
            dct(e.funded),
            dct(e.held),
            dct(e.released),
            dct(e.refunded)
        ),
    );
    line(
        "of the paid",
        format!(
            "{} provider, {} DAO, {} fees",
            dct(e.to_provider),
            dct(e.to_dao),
            dct(e.to_fees)
        ),
    );
    line("developer", c.developer.to_text());
    line("provider", c.provider.to_text());
    line("host", c.host.to_text());
    let r = &c.args.request;
    line(
        "machine",
        format!(
            "{}, {} vCPU, {} MiB, disk {}, bandwidth {}",
            kinds(&[r.kind]),
            r.vcpus,
            r.memory_mib,
            quota(r.storage_gib, "GiB"),
            quota(r.bandwidth_mbps, "Mbit/s")
        ),
    );
    line(
        "image",
        format!("{} ({})", c.args.image.manifest, clean(&c.args.image.url)),
    );
    if let Some(endpoint) = &c.endpoint {
        line("address", clean(&endpoint.address));
        for name in &endpoint.names {
            line("name", clean(name));
        }
        for port in &endpoint.ports {
            let transport = match port.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            line(
                "port",
                format!("{transport} {} → {} in the VM", port.public_port, port.vm_port),
            );
        }
    }
    let over = matches!(c.state, ContractState::Ended(_));
    if let Some(name) = c.args.tls_name.as_ref().filter(|_| !over) {
        line(
            "own name",
            format!(
                "{}: routed while DNS has {} TXT \"{}\"",
                clean(name),
                clean(&name_proof::record_name(name)),
                name_proof::record_value(c.developer)
            ),
        );
    }
    for refusal in &c.refusals {
        line("refused", clean(refusal));
    }
    if over {
        line(
            "released",
            if c.released {
                "yes"
            } else {
                "not yet: the host still holds something"
            }
            .to_owned(),
        );
    }
    table(&rows)
}

/// What `decent evidence --out` wrote.
pub(crate) struct EvidenceFiles {
    /// The evidence itself.
    pub(crate) evidence: String,
    /// The policy for the host's quote, if the grade rests on it.
    pub(crate) policy: Option<String>,
    /// The contract's SSH keys, if it has any.
    pub(crate) ssh_keys: Option<String>,
    /// The contract's user data, if it has any.
    pub(crate) user_data: Option<String>,
    /// Whether the reader gets to see what the VM was to be set up with.
    pub(crate) settings_known: bool,
}

/// `evidence`: what to give to `attest verify`.
pub(crate) fn evidence(
    c: &Contract,
    ledger: &str,
    record: &EvidenceRecord,
    files: Option<&EvidenceFiles>,
) -> String {
    let trust = clean(&record.confirmation.trust);
    let mut text = table(&[
        vec!["grade".to_owned(), grade(record.confirmation.grade).to_owned()],
        vec!["trust".to_owned(), trust.clone()],
        vec!["verified at".to_owned(), time(record.at)],
        vec!["ledger".to_owned(), ledger.to_owned()],
        vec!["contract".to_owned(), c.id.to_string()],
        vec!["salt".to_owned(), c.salt.to_string()],
        vec!["nonce".to_owned(), record.nonce.to_string()],
        vec![
            "evidence".to_owned(),
            format!("{} bytes of CBOR", record.evidence.len()),
        ],
    ]);
    let Some(files) = files else {
        text.push_str("\n--out FILE writes the evidence for `attest verify`\n");
        return text;
    };
    let _ = writeln!(
        text,
        "\ncheck it yourself:\n  {}",
        verify_line(c, ledger, record, files)
    );
    if !files.settings_known {
        text.push_str("only the developer can check the settings: user data is not shown to others\n");
    } else if files.ssh_keys.is_some() || files.user_data.is_some() {
        text.push_str("the named keys and user data are the ledger's copy; your own files are as good\n");
    }
    if files.policy.is_some() {
        text.push_str(
            "the policy's keys are the provider's word (the TPM's) and the ledger's (who signs images)\n",
        );
    }
    if trust == "test-root" {
        text.push_str("a test root signed this: add --trust-root FILE with its certificate\n");
    }
    text
}

/// `attest verify` with everything that it can check, ready to paste.
fn verify_line(c: &Contract, ledger: &str, record: &EvidenceRecord, files: &EvidenceFiles) -> String {
    let mut line = format!(
        "attest verify {} --ledger {ledger} --contract {} --nonce {}",
        word(&files.evidence),
        c.id,
        record.nonce
    );
    for measurement in &c.args.allowed_measurements {
        let _ = write!(line, " --measurement {measurement}");
    }
    match &files.policy {
        Some(policy) => {
            let _ = write!(
                line,
                " --policy {} --at {}",
                word(policy),
                record.at / 1_000_000_000
            );
        }
        None if c.args.request.kind == VmKind::Plain => line.push_str(" --min-grade host-signed"),
        None => {}
    }
    if files.settings_known {
        let _ = write!(line, " --salt {}", c.salt);
    }
    for (option, file) in [("--ssh-key", &files.ssh_keys), ("--user-data", &files.user_data)] {
        if let Some(file) = file {
            let _ = write!(line, " {option} {}", word(file));
        }
    }
    line
}

/// A word that a shell takes as it is.
pub(crate) fn word(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(harmless) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// `reputation`.
pub(crate) fn reputation(r: &Reputation) -> String {
    let mut text = format!("{}\n", reputation_score(r.score));
    let rows: Vec<Vec<String>> = r
        .history
        .iter()
        .map(|change| {
            vec![
                time(change.at),
                signed(change.delta),
                clean(&change.reason),
                change.contract.map_or_else(String::new, |id| id.short()),
            ]
        })
        .collect();
    text.push_str(&table(&rows));
    text
}

/// `penalise`.
pub(crate) fn penalty(p: &Penalty) -> String {
    format!(
        "spent {}; the other side lost {}\n",
        reputation_score(p.spent),
        reputation_score(p.lost)
    )
}

/// `check_in`.
pub(crate) fn check_in(c: &CheckIn) -> String {
    format!(
        "takes part in block {} with weight {}; it is shared at {}, less at most {}\n",
        c.block,
        c.weight,
        time(c.ends_at),
        dct(c.fee)
    )
}

/// `rewards`.
pub(crate) fn rewards(r: &Rewards) -> String {
    let own = match r.own_weight {
        Some(weight) => format!(
            "{} with weight {weight}, if nobody else checks in",
            dct(r.share(weight))
        ),
        None => "not checked in (providers: decent provider check-in)".to_owned(),
    };
    format!(
        "block         {}, shared at {}\nshared        {} ({} of this block's own)\ncosts         at most {}\nparticipants  {}, weight {}\n\
         yours         {own}\nminted        {} of {}\nhalves at     {}\n",
        r.block,
        time(r.ends_at),
        dct(r.pool),
        dct(r.reward),
        dct(r.fee),
        r.participants,
        r.weights,
        dct(r.minted),
        dct(r.cap),
        time(r.halves_at),
    )
}

/// `invariants`.
pub(crate) fn invariants(i: &Invariants) -> String {
    let mut text = format!(
        "supply     {}\nbalances   {}\ncontracts  {}\n",
        dct(i.supply),
        dct(i.balances),
        i.contracts
    );
    if i.violations.is_empty() {
        text.push_str("all hold: supply = Σ balances; per contract funded = held + released + refunded\n");
    }
    for violation in &i.violations {
        let _ = writeln!(text, "VIOLATION  {}", clean(violation));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_periods_and_amounts_read_well() {
        for (at, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(time(at * 1_000_000_000), want);
        }
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (5_400, "90m"),
            (7_200, "2h"),
            (86_400, "1d"),
            (86_401, "86401s"),
        ] {
            assert_eq!(period(seconds), want);
        }
        for (units, want) in [
            (0, "0 DCT"),
            (1, "0.000000001 DCT"),
            (DCT, "1 DCT"),
            (12_500_000_000, "12.5 DCT"),
        ] {
            assert_eq!(dct(units), want);
        }
        assert_eq!(
            (signed(-1_500_000_000).as_str(), signed(0).as_str()),
            ("-1.5", "+0")
        );
        assert_eq!(clean("a\u{1b}[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    }
}
