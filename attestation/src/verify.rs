//! The whole way from evidence to a result.

use serde_json::Value;

use crate::result::{Appraisal, AttestationResult, Check, Grade, Reason, Trust};
use crate::{AnyEvidence, CpuEvidence, Endorsements, Evidence, Policy, Roots, nvidia, snp, tdx, tpm};

/// Appraises a VM's evidence: pure, total, and the same for everyone with the same arguments. `at`: Unix seconds.
pub fn verify(
    evidence: &Evidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    let (appraisal, grade) = match &evidence.cpu {
        CpuEvidence::SevSnp { report, certificates } => {
            let keys = &evidence.guest_keys;
            let appraisal = snp::verify(report, certificates, keys, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
        CpuEvidence::Tdx { quote, event_log } => {
            let keys = &evidence.guest_keys;
            let appraisal = tdx::verify(quote, event_log.as_deref(), keys, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
        CpuEvidence::None => (host_signed(policy), Grade::HostSigned),
    };
    AttestationResult::conclude(appraisal, policy.required.iter().copied(), grade, at)
}

/// Appraises evidence of any kind; like [`verify`].
pub fn verify_any(
    evidence: &AnyEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    let (appraisal, grade) = match evidence {
        AnyEvidence::Vm(evidence) => return verify(evidence, endorsements, roots, policy, at),
        AnyEvidence::Gpu(gpus) => (
            several_gpus(gpus, endorsements, roots, policy, at),
            Grade::HardwareVerified,
        ),
        AnyEvidence::Tpm(quote) => {
            let appraisal = tpm::verify(quote, None, endorsements, roots, policy, at);
            (appraisal, Grade::HostVerified)
        }
        AnyEvidence::Azure(azure) => {
            let appraisal = tpm::verify_azure(azure, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
    };
    AttestationResult::conclude(appraisal, policy.required.iter().copied(), grade, at)
}

/// GPUs that nobody bound to a VM; the expected nonce is the policy's.
fn several_gpus(
    gpus: &[nvidia::GpuEvidence],
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let one = |gpu| nvidia::verify(gpu, None, endorsements, roots, policy, at);
    match gpus {
        [gpu] => one(gpu),
        _ => Appraisal::of_parts(
            gpus.iter()
                .enumerate()
                .map(|(n, gpu)| (crate::Part::Gpu(n), one(gpu))),
        ),
    }
}

/// A VM for which only its host speaks. That can be enough, but only for a policy that says so.
fn host_signed(policy: &Policy) -> Appraisal {
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
    Appraisal {
        checks,
        trust: Trust::None,
        warnings: vec!["no hardware speaks for this VM: everything here is its host's word".to_owned()],
        claims: Value::Null,
    }
}

/// The result for bytes that are no evidence.
pub fn refuse_malformed(why: &str, at: u64) -> AttestationResult {
    let check = Check::of(
        "format.evidence",
        false,
        Reason::Malformed,
        "well-formed evidence",
        why,
    );
    without_evidence(vec![check], at)
}

/// The result when there are no bytes to judge: a file that can't be read.
pub fn unreadable(why: &str, at: u64) -> AttestationResult {
    without_evidence(Vec::new(), at).with_unreadable(why)
}

fn without_evidence(checks: Vec<Check>, at: u64) -> AttestationResult {
    let appraisal = Appraisal {
        checks,
        trust: Trust::None,
        warnings: Vec::new(),
        claims: Value::Null,
    };
    AttestationResult::conclude(appraisal, [], Grade::Unconfirmed, at)
}
