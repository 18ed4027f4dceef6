//! Whether we like what an authentic quote says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::authenticate::Authentic;
use super::policy::{TpmPolicy, trusted};
use super::reference::{Statement, TpmReferences};
use crate::eventlog::{Event, EventLog, HashAlg, Registers, userspace};
use crate::result::{Check, Reason};

const NOT_ASKED: &str = "no reference value was given";
pub(super) const UKI_PCR: u8 = 11;
const SECURE_BOOT_PCR: u8 = 7;
const EV_SEPARATOR: u32 = 4;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
/// `EFI_GLOBAL_VARIABLE`, as it lies in memory.
const GLOBAL_VARIABLE: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];

/// Ids of all checks that an appraisal makes.
pub(super) const CHECKS: [&str; 6] = [
    "appraise.report-data",
    "appraise.pcr-selection",
    "appraise.event-log",
    "appraise.secure-boot",
    "appraise.measurement",
    "appraise.tcb-floor",
];

/// The logs that came with a quote.
#[derive(Clone, Copy, Default)]
pub(super) struct Logs<'a> {
    pub(super) firmware: Option<&'a [u8]>,
    pub(super) userspace: Option<&'a [u8]>,
}

/// What the quote must hold as qualifying data.
#[derive(Clone, Copy, Default)]
pub(super) struct Expected<'a> {
    /// Byte for byte.
    pub(super) exact: Option<&'a [u8]>,
    /// The quote's data, filled up with zeros to 64 bytes.
    pub(super) padded: Option<&'a [u8; 64]>,
}

/// Compares an authentic quote with a policy; gives the claims that the logs prove, too.
pub(super) fn appraise(
    authentic: &Authentic,
    logs: Logs<'_>,
    references: &TpmReferences,
    expected: Expected<'_>,
    policy: &TpmPolicy,
) -> (Vec<Check>, Value) {
    let mut checks = freshness(&authentic.quote.extra_data, expected, policy.nonce.as_deref());
    checks.push(selection(authentic, policy));
    let (check, explained) = event_log(authentic, logs, policy);
    checks.push(check);
    let secure_boot = explained.as_ref().and_then(Explained::secure_boot);
    checks.push(secure_boot_check(secure_boot, policy));
    let (measured, image) = measurement(authentic, explained.as_ref(), references, policy);
    checks.extend(measured);
    checks.push(firmware(authentic, policy));
    let claims = json!({
        "secure_boot": secure_boot,
        "event_log": explained.map(|explained| explained.events_claims()),
        "image": image,
    });
    (checks, claims)
}

fn freshness(found: &[u8], expected: Expected<'_>, nonce: Option<&[u8]>) -> Vec<Check> {
    const ID: &str = "appraise.report-data";
    let line = |holds, wanted: &[u8]| {
        let reason = Reason::ReportDataMismatch;
        Check::of(ID, holds, reason, hex::encode(wanted), hex::encode(found))
    };
    let exact = expected.exact.into_iter().chain(nonce);
    let mut checks: Vec<Check> = exact.map(|wanted| line(wanted == found, wanted)).collect();
    if let Some(wanted) = expected.padded {
        let rest = wanted.strip_prefix(found);
        let holds = rest.is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
        checks.push(line(holds, wanted));
    }
    if checks.is_empty() {
        checks.push(Check::not_checked(ID, NOT_ASKED, hex::encode(found)));
    }
    checks
}

fn selection(authentic: &Authentic, policy: &TpmPolicy) -> Check {
    const ID: &str = "appraise.pcr-selection";
    let show = |bank: HashAlg, pcrs: &mut dyn Iterator<Item = u8>| {
        let pcrs: Vec<String> = pcrs.map(|pcr| pcr.to_string()).collect();
        format!("{bank}:{}", pcrs.join(","))
    };
    let required = policy.required_pcrs.iter();
    let wanted: Vec<String> = required
        .clone()
        .map(|(bank, pcrs)| show(*bank, &mut pcrs.iter().copied()))
        .collect();
    let quoted = &authentic.quote.selections;
    let found: Vec<String> = quoted
        .iter()
        .map(|selection| show(selection.bank, &mut selection.pcrs.iter().copied()))
        .collect();
    let (wanted, found) = (wanted.join(" "), found.join(" "));
    if !quoted.iter().any(|s| trusted(s.bank) && !s.pcrs.is_empty()) {
        let expected = "a PCR of a SHA-256, SHA-384 or SHA-512 bank";
        return Check::of(ID, false, Reason::PcrBankRefused, expected, found);
    }
    let missing = required
        .flat_map(|(bank, pcrs)| pcrs.iter().map(move |pcr| (*bank, *pcr)))
        .any(|(bank, pcr)| !authentic.quote.selects(bank, pcr));
    Check::of(ID, !missing, Reason::PcrSelectionIncomplete, wanted, found)
}

/// What the logs give for one bank that was quoted.
struct Replay<'a> {
    bank: HashAlg,
    quoted: &'a BTreeMap<u8, Vec<u8>>,
    replayed: Registers,
}

/// A log that replays to the quoted values of one bank.
struct Explained<'a> {
    bank: HashAlg,
    events: Vec<Event<'a>>,
    records: Vec<userspace::Record>,
    /// PCRs whose quoted value the log gives.
    proven: BTreeSet<u8>,
}

fn event_log<'a>(
    authentic: &Authentic,
    logs: Logs<'a>,
    policy: &TpmPolicy,
) -> (Check, Option<Explained<'a>>) {
    const ID: &str = "appraise.event-log";
    let Some(firmware) = logs.firmware else {
        let why = "no event log came with the quote";
        let check = if policy.require_event_log || policy.require_secure_boot {
            Check::missing(ID, Reason::EventLogMissing, why)
        } else {
            Check::not_checked(ID, why, "")
        };
        return (check, None);
    };
    let malformed = |what: String| {
        (
            Check::of(ID, false, Reason::Malformed, "an event log", what),
            None,
        )
    };
    let log = match EventLog::parse(firmware) {
        Ok(log) => log,
        Err(e) => return malformed(e.to_string()),
    };
    let records = match userspace::parse(logs.userspace.unwrap_or_default()) {
        Ok(records) => records,
        Err(e) => return malformed(e.to_string()),
    };
    let quoted = authentic.pcrs.iter().filter(|(bank, _)| trusted(**bank));
    let replays: Vec<Replay<'_>> = quoted
        .filter_map(|(bank, quoted)| {
            let mut replayed = log.replay(*bank).ok()?;
            userspace::replay(&records, *bank, &mut replayed).ok()?;
            let bank = *bank;
            Some(Replay {
                bank,
                quoted,
                replayed,
            })
        })
        .collect();
    if replays.is_empty() {
        let found = "no bank of the log that is quoted, too";
        let check = Check::of(
            ID,
            false,
            Reason::EventLogMismatch,
            "a log of a quoted bank",
            found,
        );
        return (check, None);
    }
    let mut unexplained = BTreeSet::new();
    for Replay {
        bank,
        quoted,
        replayed,
    } in &replays
    {
        for (pcr, value) in *quoted {
            match replayed.get(&u32::from(*pcr)) {
                Some(replayed) if replayed == value => {}
                None if is_reset(*pcr, value) => {}
                None if *pcr > SECURE_BOOT_PCR => {
                    unexplained.insert(*pcr);
                }
                replayed => {
                    let (pcr, value) = (format!("PCR {pcr} of {bank}"), hex::encode(value));
                    let replayed = replayed.map_or("no event".to_owned(), hex::encode);
                    let (expected, found) =
                        (format!("{pcr}: {value}"), format!("{pcr} by the log: {replayed}"));
                    return (
                        Check::of(ID, false, Reason::EventLogMismatch, expected, found),
                        None,
                    );
                }
            }
        }
    }
    let Replay { bank, quoted, .. } = &replays[0];
    let proven = quoted
        .keys()
        .copied()
        .filter(|pcr| !unexplained.contains(pcr))
        .collect();
    let events = log.events().to_vec();
    let left = if unexplained.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = unexplained.iter().map(u8::to_string).collect();
        format!("; the logs say nothing of PCR {}", list.join(", "))
    };
    let found = format!(
        "{} events replay to the quoted values{left}",
        events.len() + records.len()
    );
    let explained = Explained {
        bank: *bank,
        events,
        records,
        proven,
    };
    (Check::passed(ID, found), Some(explained))
}

/// The value of a PCR that nothing was measured into (Part 1, "PCR Attributes by Platform Specification").
fn is_reset(pcr: u8, value: &[u8]) -> bool {
    let all = |byte: u8| value.iter().all(|b| *b == byte);
    all(0) || (17..=22).contains(&pcr) && all(0xff)
}

impl Explained<'_> {
    /// Whether UEFI's Secure Boot was on; `None`: no measured variable says so.
    fn secure_boot(&self) -> Option<bool> {
        if !self.proven.contains(&SECURE_BOOT_PCR) {
            return None;
        }
        // Only the firmware's own: what runs later measures behind the separator.
        let early = self
            .events
            .iter()
            .filter(|event| event.register == u32::from(SECURE_BOOT_PCR));
        let mut variables = early
            .take_while(|event| event.kind != EV_SEPARATOR)
            .filter(|event| event.kind == EV_EFI_VARIABLE_DRIVER_CONFIG && event.data_is_measured(self.bank));
        variables.find_map(|event| match variable(event.data)? {
            (GLOBAL_VARIABLE, "SecureBoot", value) => Some(value == [1]),
            _ => None,
        })
    }

    /// Whether something with this SHA-256 was measured into the UKI's PCR. Digests of a bank that wasn't replayed are
    /// only somebody's word.
    fn measured_section(&self, digest: &[u8; 32]) -> bool {
        let proven = self.bank == HashAlg::Sha256 && self.proven.contains(&UKI_PCR);
        let sections = self.events.iter();
        let sections = sections.filter(|event| event.register == u32::from(UKI_PCR) && !event.is_no_action());
        let mut digests = sections.filter_map(|event| event.digest(HashAlg::Sha256));
        proven && digests.any(|found| found == digest)
    }

    fn events_claims(&self) -> Value {
        let phases = self
            .records
            .iter()
            .filter(|record| record.event_type.as_deref() == Some("phase"));
        let measured = phases.filter(|record| {
            let string = record.string.as_deref().unwrap_or_default().as_bytes();
            let digest = record.digests.iter().find(|(bank, _)| *bank == self.bank);
            digest.map(|(_, digest)| digest) == self.bank.digest(&[string]).as_ref()
        });
        json!({
            "bank": self.bank,
            "events": self.events.len(),
            "userspace_records": self.records.len(),
            "boot_phases": measured.filter_map(|record| record.string.as_deref()).collect::<Vec<_>>(),
        })
    }
}

/// `UEFI_VARIABLE_DATA` with a name in ASCII: GUID, name, value.
fn variable(data: &[u8]) -> Option<([u8; 16], &'static str, &[u8])> {
    let (guid, rest) = data.split_first_chunk::<16>()?;
    let (name_len, rest) = rest.split_first_chunk::<8>()?;
    let (data_len, rest) = rest.split_first_chunk::<8>()?;
    let name_len = usize::try_from(u64::from_le_bytes(*name_len)).ok()?;
    let (name, value) = rest.split_at_checked(name_len.checked_mul(2)?)?;
    let wanted = "SecureBoot";
    let is_wanted = name
        .iter()
        .copied()
        .eq(wanted.encode_utf16().flat_map(u16::to_le_bytes));
    let whole = u64::try_from(value.len()).ok()? == u64::from_le_bytes(*data_len);
    (is_wanted && whole).then_some((*guid, wanted, value))
}

fn secure_boot_check(found: Option<bool>, policy: &TpmPolicy) -> Check {
    const ID: &str = "appraise.secure-boot";
    let shown = match found {
        Some(true) => "on",
        Some(false) => "off",
        None => "no measured variable says",
    };
    match (policy.require_secure_boot, found) {
        (false, _) => Check::not_checked(ID, "not asked for", shown),
        (true, None) => Check::missing(
            ID,
            Reason::EventLogMissing,
            "no log that proves PCR 7 says whether it is on",
        ),
        (true, Some(on)) => Check::of(ID, on, Reason::SecureBootOff, "on", shown),
    }
}

/// The policy's own values, then those that somebody signed. Also what the signed ones say of the image.
fn measurement(
    authentic: &Authentic,
    explained: Option<&Explained<'_>>,
    references: &TpmReferences,
    policy: &TpmPolicy,
) -> (Vec<Check>, Value) {
    const ID: &str = "appraise.measurement";
    let mut checks = compare(authentic, &policy.pcrs);
    let mut image = Value::Null;
    if policy.reference_keys.is_empty() {
        if checks.is_empty() {
            let why = if references.is_empty() {
                NOT_ASKED
            } else {
                "the policy names no key whose reference values count"
            };
            checks.push(Check::not_checked(ID, why, ""));
        }
        return (checks, image);
    }
    if references.is_empty() {
        let why =
            "the policy names keys that sign reference values, and no signed reference values were given";
        checks.push(Check::missing(ID, Reason::ReferenceMissing, why));
        return (checks, image);
    }
    let failed = |lines: &[Check]| lines.iter().filter(|line| line.is_failed()).count();
    let signed = references.signed_by(&policy.reference_keys);
    let best = signed
        .map(|(statement, signer)| {
            (
                compare_statement(authentic, explained, statement, &policy.refused_images),
                statement,
                signer,
            )
        })
        .min_by_key(|(lines, _, _)| failed(lines));
    match best {
        Some((lines, statement, signer)) => {
            if failed(&lines) == 0 {
                image = json!({
                    "name": statement.image,
                    "signer_spki_sha256": hex::encode(signer.spki_sha256),
                    "verity_root_hash": statement.verity_root_hash.as_ref().map(hex::encode),
                });
            }
            checks.extend(lines);
        }
        None => checks.push(Check::of(
            ID,
            false,
            Reason::ReferenceSignatureInvalid,
            "reference values that a key of the policy signed",
            "none of those given",
        )),
    }
    (checks, image)
}

fn compare_statement(
    authentic: &Authentic,
    explained: Option<&Explained<'_>>,
    statement: &Statement,
    refused: &BTreeSet<String>,
) -> Vec<Check> {
    let mut lines = compare(authentic, &statement.pcrs);
    if refused.contains(&statement.image) {
        let expected = "an image that the policy doesn't refuse";
        let reason = Reason::MeasurementMismatch;
        lines.push(Check::of(
            "appraise.measurement",
            false,
            reason,
            expected,
            &statement.image,
        ));
    }
    let Some(explained) = explained else {
        return lines;
    };
    for (name, digest) in &statement.sections {
        lines.push(Check::of(
            "appraise.measurement",
            explained.measured_section(digest),
            Reason::MeasurementMismatch,
            format!("{name} of `{}`: {}", statement.image, hex::encode(digest)),
            "events of PCR 11",
        ));
    }
    lines
}

/// A line for each PCR that has reference values.
fn compare(authentic: &Authentic, wanted: &BTreeMap<HashAlg, BTreeMap<u8, Vec<Vec<u8>>>>) -> Vec<Check> {
    let all = wanted
        .iter()
        .flat_map(|(bank, pcrs)| pcrs.iter().map(move |(pcr, values)| (*bank, *pcr, values)));
    let line = |(bank, pcr, values): (HashAlg, u8, &Vec<Vec<u8>>)| {
        let found = authentic.pcrs.get(&bank).and_then(|values| values.get(&pcr));
        let allowed: Vec<String> = values.iter().map(hex::encode).collect();
        let (reason, shown) = match found {
            Some(found) => (Reason::PcrMismatch, hex::encode(found)),
            None => (Reason::PcrSelectionIncomplete, "not quoted".to_owned()),
        };
        Check::of(
            "appraise.measurement",
            found.is_some_and(|found| values.contains(found)),
            reason,
            format!("PCR {pcr} of {bank}: {}", allowed.join(" or ")),
            shown,
        )
    };
    all.map(line).collect()
}

fn firmware(authentic: &Authentic, policy: &TpmPolicy) -> Check {
    const ID: &str = "appraise.tcb-floor";
    let found = format!("{:016x}", authentic.quote.firmware_version);
    match policy.min_firmware {
        None => Check::not_checked(ID, "no least firmware version was given", found),
        Some(_) if !authentic.firmware_known => {
            let why = "a TPM shows its firmware version only under keys of the endorsement and platform hierarchies";
            Check::missing(ID, Reason::ReferenceMissing, why)
        }
        Some(min) => Check::of(
            ID,
            authentic.quote.firmware_version >= min,
            Reason::TcbTooLow,
            format!("at least {min:016x}"),
            found,
        ),
    }
}
