//! Hosts: pages for people, and the files with which a host's evidence is verified again.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use attestation::HostBinding;
use ledger::api::{
    Contract, ContractState, EvidenceRecord, Grade, HostInfo, LedgerInfo, TimeNs, TpmName, UpdateNotice,
};

use crate::show::{clean, grade, row, table, time, word};

fn ak(name: Option<TpmName>) -> String {
    name.map_or_else(
        || "none named by its provider".to_owned(),
        |name| format!("name:{name}"),
    )
}

/// What the ledger knows of what the host runs.
fn runs(host: &HostInfo) -> String {
    match &host.verified {
        Some(verified) => clean(&verified.image),
        None => "not verified".to_owned(),
    }
}

fn until(host: &HostInfo, now: TimeNs) -> String {
    match &host.verified {
        Some(verified) if now < verified.until => time(verified.until),
        Some(verified) => format!("over since {}", time(verified.until)),
        None => "-".to_owned(),
    }
}

/// `hosts`.
pub(crate) fn list(hosts: &[HostInfo], now: TimeNs) -> String {
    let mut rows = vec![row(&["HOST", "GRADE", "RUNS", "VERIFIED UNTIL", "HEARD AT"])];
    rows.extend(hosts.iter().map(|host| {
        vec![
            host.host.to_text(),
            grade(host.grade(now)).to_owned(),
            runs(host),
            until(host, now),
            time(host.heard_at),
        ]
    }));
    table(&rows)
}

/// `host show`.
pub(crate) fn page(host: &HostInfo, now: TimeNs) -> String {
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let mut text = table(&[
        line("host", host.host.to_text()),
        line("provider", host.provider.to_text()),
        line("grade of plain VMs", grade(host.grade(now)).to_owned()),
        line("runs", runs(host)),
        line("verified until", until(host, now)),
        line("attestation key", ak(host.attestation_key)),
        line("hostd", clean(&host.version)),
        line("image", host.update.as_ref().map_or("-".to_owned(), image)),
        line("draining", if host.draining { "yes" } else { "no" }.to_owned()),
        line("heard at", time(host.heard_at)),
        line("delegated until", time(host.delegated_until)),
    ]);
    if !host.refusals.is_empty() {
        text.push_str("\nits last evidence was refused:\n");
        for why in &host.refusals {
            let _ = writeln!(text, "  {}", clean(why));
        }
    }
    if host.grade(now) == Grade::HostVerified {
        text.push_str(
            "\nits provider vouches that this key lives in the machine's own TPM; the ledger can't see that\n",
        );
    }
    text
}

/// The image of a host that updates itself.
fn image(update: &UpdateNotice) -> String {
    let mut text = clean(&update.running);
    if let Some(next) = &update.next {
        let _ = match update.away_from {
            Some(at) => write!(text, "; it may restart into {} from {}", clean(next), time(at)),
            None => write!(text, "; {} waits for the host to be empty", clean(next)),
        };
    }
    if let Some(returned) = &update.returned {
        let _ = write!(text, "; {} was tried and did not work", clean(returned));
    }
    text
}

/// Below a contract's page: what its host has announced, while that matters to the contract.
pub(crate) fn maintenance(host: &HostInfo, contract: &Contract) -> String {
    if matches!(contract.state, ContractState::Ended(_)) {
        return String::new();
    }
    let window = host
        .update
        .as_ref()
        .and_then(|update| Some((update.next.as_ref()?, update.away_from?)));
    match window {
        Some((next, at)) => format!(
            "\nthe host announced maintenance: from {} on it may restart into image {}; that ends this contract, and what \
             isn't used yet comes back\n",
            time(at),
            clean(next)
        ),
        None if host.draining => {
            "\nthe host takes no new contracts; this one goes on, and can't be extended\n".to_owned()
        }
        None => String::new(),
    }
}

/// What `attest verify` is given.
pub(crate) struct Files {
    evidence: String,
    policy: String,
}

/// The policy by which the ledger judges a host's quote, as `attest` reads it. `nonce`: what the quote must be over; `None`: what
/// it is bound to beside it, the VM's keys.
pub(crate) fn policy(
    host: &HostInfo,
    ledger: &LedgerInfo,
    nonce: Option<&[u8; 32]>,
) -> anyhow::Result<String> {
    let mut policy = serde_json::json!({
        "min_grade": "host-verified",
        "require": ["freshness", "measurement"],
        "tpm": {
            "aks": host.attestation_key.map(|name| format!("name:{name}")).into_iter().collect::<Vec<_>>(),
            "required_pcrs": { "sha256": [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13] },
            "reference_keys": ledger.host_images.keys,
            "refused_images": ledger.host_images.refused,
            "require_event_log": true,
            "require_secure_boot": true,
        },
    });
    if let Some(nonce) = nonce {
        policy["tpm"]["nonce"] = hex::encode(nonce).into();
    }
    toml::to_string(&policy).context("cannot write the policy as TOML")
}

/// Writes the evidence, and beside it the policy that the ledger judged it by.
pub(crate) fn write(
    out: &Path,
    host: &HostInfo,
    record: &EvidenceRecord,
    ledger: &LedgerInfo,
) -> anyhow::Result<Files> {
    let binding = HostBinding {
        ledger: ledger.ledger.as_slice(),
        host: host.host.as_slice(),
        nonce: record.nonce.0,
    };
    let policy = policy(host, ledger, Some(&binding.qualifying_data()))?;
    let put = |suffix: &str, content: &[u8]| {
        let mut path = out.as_os_str().to_owned();
        path.push(suffix);
        let path = Path::new(&path);
        std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok::<_, anyhow::Error>(path.to_string_lossy().into_owned())
    };
    Ok(Files {
        evidence: put("", &record.evidence)?,
        policy: put(".policy.toml", policy.as_bytes())?,
    })
}

/// `host evidence`.
pub(crate) fn evidence(host: &HostInfo, record: &EvidenceRecord, files: Option<&Files>) -> String {
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let mut text = table(&[
        line("host", host.host.to_text()),
        line("runs", runs(host)),
        line("verified at", time(record.at)),
        line("trust", clean(&record.confirmation.trust)),
        line("nonce", record.nonce.to_string()),
        line("attestation key", ak(host.attestation_key)),
        line("evidence", format!("{} bytes of CBOR", record.evidence.len())),
    ]);
    match files {
        None => text.push_str("\n--out FILE writes the evidence for `attest verify`\n"),
        Some(Files { evidence, policy }) => {
            let _ = writeln!(
                text,
                "\ncheck it yourself:\n  attest verify {} --policy {} --at {}",
                word(evidence),
                word(policy),
                record.at / 1_000_000_000
            );
            text.push_str("the policy's nonce is SHA-256 of ledger, host and nonce; its keys are the ledger's and the provider's word\n");
        }
    }
    text
}
