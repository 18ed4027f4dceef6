//! `hostd evidence`, with swtpm as the host's TPM.

#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tpm;

use std::process::Command;

use attestation::{AnyEvidence, Endorsements, Policy, PolicyFile, Roots, verify_any};

use crate::tpm::Swtpm;

#[test]
fn the_hosts_evidence_is_verified_with_the_key_that_hostd_names() {
    let folder = tempfile::tempdir().unwrap();
    let tpm = Swtpm::start(folder.path());
    let out = folder.path().join("evidence.cbor");
    let nonce = "00112233445566778899aabbccddeeff";
    let output = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["--json", "evidence", "--nonce", nonce])
        .args(["--tpm", &tpm.tcti()])
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let policy: PolicyFile =
        serde_json::from_value(serde_json::json!({ "tpm": { "aks": [said["ak"]], "nonce": nonce } }))
            .unwrap();
    let policy = Policy::from_file(&policy).unwrap();
    let evidence = AnyEvidence::parse(&std::fs::read(&out).unwrap()).unwrap();
    let result = verify_any(
        &evidence,
        &Endorsements::none(),
        &Roots::pinned(),
        &policy,
        1_788_220_800,
    );
    assert!(result.is_verified(), "{result}");
}

#[test]
fn without_a_tpm_hostd_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["evidence", "--tpm", "device:/nonexistent/tpm", "--out"])
        .arg(folder.path().join("evidence.cbor"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("cannot use the TPM `device:/nonexistent/tpm`"),
        "{text}"
    );
}
