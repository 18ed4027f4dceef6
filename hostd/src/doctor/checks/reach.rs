//! Whether names lead here, whether the ingress answers at the public address, and whether makers' services are reached.

use super::{ok, outcome};
use crate::doctor::facts::Facts;
use crate::doctor::{Outcome, Part, Severity, Standing};
use crate::inventory::Probe;

pub(super) fn dns(facts: &Facts) -> Outcome {
    let mut parts = Vec::new();
    for fact in &facts.dns {
        let name = &fact.name;
        let (finding, fix) = match (&fact.found, fact.want) {
            (Probe::Unknown(why), want) => (
                format!("{name} can't be resolved: {why}"),
                want.map_or_else(
                    || "look at /etc/resolv.conf, and whether port 53 to these servers is open: resolvectl query".to_owned(),
                    |want| format!("at your DNS provider make a wildcard record: *.{} A {want}", parent(name)),
                ),
            ),
            (Probe::Known(found), Some(want)) if !found.contains(&want.into()) => {
                let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                (
                    format!("{name} leads to {}, not to this host ({want})", found.join(", ")),
                    format!("at your DNS provider: *.{} A {want}; or correct [network] public_ip4", parent(name)),
                )
            }
            (Probe::Known(_), _) => continue,
        };
        parts.push(Part {
            id: name.clone(),
            // Without the ledger's name nothing works; a tenant's name that leads elsewhere is only not reached.
            severity: if fact.want.is_some() {
                Severity::Warn
            } else {
                Severity::Fail
            },
            finding,
            fix: Some(fix),
        });
    }
    let worst = parts
        .iter()
        .map(|part| part.severity)
        .max()
        .unwrap_or(Severity::Ok);
    let text = match (facts.dns.len(), parts.len()) {
        (0, _) => "no names to look up".to_owned(),
        (all, 0) => format!("{all} names resolve as they should"),
        (all, bad) => format!("{bad} of {all} names don't resolve as they should"),
    };
    Outcome {
        parts,
        ..outcome(worst, text, "")
    }
}

fn parent(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, parent)| parent)
}

pub(super) fn reachable(facts: &Facts) -> Outcome {
    let closed: Vec<String> = facts
        .reachable
        .iter()
        .filter_map(|(_, probe)| match probe {
            Probe::Known(()) => None,
            Probe::Unknown(why) => Some(why.clone()),
        })
        .collect();
    if closed.is_empty() {
        return match facts.reachable.len() {
            0 => ok("nobody is asked while hostd doesn't run, or without an ingress"),
            count => ok(format!(
                "{count} ingress ports answer at the public address (asked from this host)"
            )),
        };
    }
    outcome(
        Severity::Warn,
        "the ingress doesn't answer at the public address (asked from this host)",
        closed.join("; "),
    )
    .fix(
        "open these ports in the firewall in front of this host, and the lease ports too; behind a router that can't hairpin \
         this is also seen when all is well: try from outside",
    )
}

pub(super) fn endorsements(facts: &Facts) -> Outcome {
    let fix = "look at hostd's log for the maker's answer; HTTPS must be open to kdsintf.amd.com, api.trustedservices.intel.com, \
               certificates.trustedservices.intel.com, rim.attestation.nvidia.com and ocsp.ndis.nvidia.com, or to the mirrors \
               named in [endorsements]";
    let mut parts = Vec::new();
    for fact in &facts.endorsements {
        let document = &fact.document;
        let finding = match fact.standing(facts.now) {
            Standing::Missing => format!("{document} is missing: evidence that needs it is refused"),
            Standing::Ending => {
                let hours = fact.until.unwrap_or(0).saturating_sub(facts.now) / 3600;
                format!("{document} ends in {hours} h, and couldn't be renewed")
            }
            Standing::Current => continue,
        };
        parts.push(Part {
            id: document.clone(),
            severity: Severity::Warn,
            finding,
            fix: None,
        });
    }
    let text = match (facts.endorsements.len(), parts.len()) {
        (0, _) => "no evidence of this machine has needed a maker's document yet".to_owned(),
        (all, 0) => format!("{all} documents of the processor's and GPUs' makers are there and current"),
        (all, bad) => format!("{bad} of {all} documents of makers are missing or end soon"),
    };
    if parts.is_empty() {
        return ok(text);
    }
    Outcome {
        parts,
        ..outcome(Severity::Warn, text, "").fix(fix)
    }
}
