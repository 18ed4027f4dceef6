//! The whole way from evidence to a result.

use serde_json::Value;

use crate::result::{AttestationResult, Check, Grade, Reason, Trust};
use crate::{CpuEvidence, Endorsements, Evidence, Policy, Roots};

/// Appraises evidence: pure, total, and the same for everyone with the same arguments. `at`: Unix seconds.
pub fn verify(
    evidence: &Evidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    match &evidence.cpu {
        CpuEvidence::SevSnp { report, certificates } => {
            let keys = &evidence.guest_keys;
            crate::snp::verify(report, certificates, keys, endorsements, roots, policy, at)
        }
        CpuEvidence::None => host_signed(policy, at),
    }
}

/// A VM for which only its host speaks. That can be enough, but only for a policy that says so.
fn host_signed(policy: &Policy, at: u64) -> AttestationResult {
    let grade = Grade::HostSigned;
    let nothing = "an ordinary VM has no report";
    let checks = vec![
        Check::of(
            "grade",
            policy.min_grade <= grade,
            Reason::NoHardwareEvidence,
            policy.min_grade,
            grade,
        ),
        Check::not_checked("authenticate.signature", nothing, ""),
        Check::not_checked("authenticate.revocation", nothing, ""),
        Check::not_checked("appraise.report-data", "the keys are only the host's word", ""),
        Check::not_checked("appraise.host-data", nothing, ""),
        Check::not_checked("appraise.settings", "the settings are only the host's word", ""),
        Check::not_checked("appraise.measurement", nothing, ""),
        Check::not_checked("appraise.tcb-floor", nothing, ""),
    ];
    let warnings = vec!["no hardware speaks for this VM: everything here is its host's word".to_owned()];
    let required = policy.required.iter().copied();
    AttestationResult::conclude(checks, required, grade, Trust::None, at, warnings, Value::Null)
}

/// The result for bytes that are no evidence.
pub fn refuse_malformed(why: &str, at: u64) -> AttestationResult {
    let checks = vec![Check::of(
        "format.evidence",
        false,
        Reason::Malformed,
        "well-formed evidence",
        why,
    )];
    AttestationResult::conclude(
        checks,
        [],
        Grade::Unconfirmed,
        Trust::None,
        at,
        Vec::new(),
        Value::Null,
    )
}
