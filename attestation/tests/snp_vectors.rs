//! Every recorded SNP report against the verdict that is known for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use attestation::{
    CpuEvidence, Endorsements, Evidence, GuestKeys, Outcome, Policy, Reason, Roots, Trust, Verdict, verify,
};

/// 2026-09-01: after the newest certificate, inside AMD's recorded CRLs.
const AT: u64 = 1_788_220_800;
/// 2025-06-01: inside the VLEK's year.
const AT_VLEK: u64 = 1_748_736_000;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/snp")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(vectors().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn evidence(name: &str, certificates: &[&str]) -> Evidence {
    let certificates = certificates.iter().map(|path| read(path)).collect();
    let report = read(&format!("{name}/report.bin"));
    Evidence {
        cpu: CpuEvidence::SevSnp { report, certificates },
        guest_keys: GuestKeys::default(),
    }
}

#[test]
fn recorded_reports_get_the_verdict_that_is_known_for_them() {
    use Reason::*;
    for (name, at, want) in [
        ("genoa-v3-azure-trustee", AT, &[][..]),
        ("genoa-v3-msft", AT, &[]),
        ("genoa-v5-lunal-a-siena", AT, &[]),
        ("milan-v2-automata", AT, &[]),
        ("milan-v2-azure-hcl", AT, &[]),
        ("milan-v2-cmc", AT, &[]),
        ("milan-v2-gcp-vmpl1", AT, &[VmplTooLow]),
        ("milan-v2-google-DEBUG", AT, &[DebugAllowed]),
        ("milan-v2-trustee", AT, &[]),
        ("milan-v2-virtee", AT, &[]),
        ("milan-v3-aws-vlek-trustee-vmpl1", AT_VLEK, &[VmplTooLow]),
        (
            "milan-v3-aws-vlek-trustee-vmpl1",
            AT,
            &[CertificateExpired, VmplTooLow],
        ),
        ("milan-v3-azure-sidecar", AT, &[]),
        ("milan-v3-dstack-gcp", AT, &[]),
        ("milan-v3-msft", AT, &[]),
        ("turin-v5-msft", AT, &[]),
        ("neg-azure-wrong-tcb-vcek", AT, &[SignatureInvalid, TcbMismatch]),
    ] {
        let evidence = evidence(name, &[&format!("{name}/vek.der")]);
        let result = verify(
            &evidence,
            &Endorsements::none(),
            &Roots::pinned(),
            &Policy::default(),
            at,
        );
        assert_eq!(result.reasons(), want, "{name}:\n{result}");
        let verdict = if want.is_empty() {
            Verdict::Verified
        } else {
            Verdict::Refused
        };
        assert_eq!(result.verdict, verdict, "{name}:\n{result}");
        if want.is_empty() {
            assert_eq!(result.trust, Trust::Pinned, "{name}");
            assert!(
                !result
                    .checks
                    .iter()
                    .any(|check| matches!(check.outcome, Outcome::Failed(_))),
                "{name}"
            );
        }
    }
}
