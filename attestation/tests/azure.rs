//! Azure's confidential VMs: real evidence, and what breaks it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Part, Policy, Reason, Requirement, Roots, Trust,
    Verdict, verify_any,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

const AT: u64 = 1_785_542_400; // 2026-08-01
const GENOA: &str = include_str!("vectors/azure/snp-genoa-vtpm-evidence.json");
const MILAN: &str = include_str!("vectors/azure/snp-vtpm-live.json");
const TDX: &str = include_str!("vectors/azure/tdx-vtpm-evidence-v1.json");
const TDX_HCL: &[u8] = include_bytes!("vectors/azure/tdx-hcl-report.bin");

fn verify(content: &[u8], policy: &Policy) -> AttestationResult {
    let evidence = AnyEvidence::parse(content).unwrap();
    assert!(matches!(evidence, AnyEvidence::Azure(_)), "{evidence:?}");
    verify_any(&evidence, &Endorsements::none(), &Roots::pinned(), policy, AT)
}

fn genoa() -> Value {
    serde_json::from_str(GENOA).unwrap()
}

fn reasons(evidence: &Value) -> Vec<Reason> {
    verify(evidence.to_string().as_bytes(), &Policy::default()).reasons()
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn real_evidence_is_verified_through_the_paravisors_key() {
    for (name, json, nonce) in [
        (
            "Genoa",
            GENOA,
            bytes(&genoa()["quote"]["message"])[44..92].to_vec(),
        ),
        ("Milan", MILAN, b"attestation-test-fixture".to_vec()),
    ] {
        let mut policy = Policy::default();
        let mut expected = [0; 64];
        expected[..nonce.len()].copy_from_slice(&nonce);
        policy.report_data = Some(expected);
        policy.required.insert(Requirement::Freshness);
        let result = verify(json.as_bytes(), &policy);
        assert_eq!(result.verdict, Verdict::Verified, "{name}\n{result}");
        assert_eq!(
            (result.grade, result.trust),
            (Grade::HardwareVerified, Trust::Pinned)
        );
        let vtpm = result.checks.iter().filter(|check| check.part == Part::Vtpm);
        assert!(vtpm.clone().count() > 8);
        expected[63] ^= 1;
        policy.report_data = Some(expected);
        assert_eq!(
            verify(json.as_bytes(), &policy).reasons(),
            [Reason::ReportDataMismatch],
            "{name}"
        );
    }
}

#[test]
fn what_the_hardware_signed_is_not_freshness() {
    let mut policy = Policy::default();
    policy.required.insert(Requirement::Freshness);
    let result = verify(MILAN.as_bytes(), &policy);
    assert_eq!(
        (result.verdict, result.reasons()),
        (Verdict::Indeterminate, vec![Reason::ReferenceMissing])
    );
}

#[test]
fn every_form_of_the_same_bytes_is_read() {
    let whole = genoa();
    let (message, signature) = (
        bytes(&whole["quote"]["message"]),
        bytes(&whole["quote"]["signature"]),
    );
    let report = bytes(&whole["report"]);
    let pcrs: Vec<String> = whole["quote"]["pcrs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pcr| hex::encode(bytes(pcr)))
        .collect();
    let new = json!({
        "version": 1,
        "tpm_quote": { "message": hex::encode(&message), "signature": hex::encode(&signature), "pcrs": pcrs },
        "hcl_report": URL_SAFE_NO_PAD.encode(&report),
        "vcek": whole["vcek"],
    });
    let mut padded = new.clone();
    padded["hcl_report"] = json!(STANDARD.encode(&report));
    padded["tpm_quote"]["message"] = json!(message);
    let enveloped = json!({ "platform": "az-snp", "evidence": new });
    for (row, evidence) in [("new", &new), ("padded", &padded), ("enveloped", &enveloped)] {
        assert_eq!(reasons(evidence), [], "{row}");
    }
    let mut future = new.clone();
    future["version"] = json!(3);
    assert!(AnyEvidence::parse(future.to_string().as_bytes()).is_err());
    // Version 2 says that the runtime data hold the nonce, too; these don't.
    let mut second = new.clone();
    second["version"] = json!(2);
    assert_eq!(reasons(&second), [Reason::RuntimeDataMismatch]);
    for (field, value) in [
        ("hcl_report", json!(5)),
        ("hcl_report", json!("?")),
        ("hcl_report", json!([256])),
        ("vcek", json!("00")),
    ] {
        let mut odd = new.clone();
        odd[field] = value;
        assert!(
            AnyEvidence::parse(odd.to_string().as_bytes()).is_err(),
            "{field}: {}",
            odd[field]
        );
    }
}

#[test]
fn the_vcek_may_come_as_an_endorsement() {
    let mut evidence = genoa();
    let vcek = evidence["vcek"].take();
    let parsed = AnyEvidence::parse(evidence.to_string().as_bytes()).unwrap();
    let verify = |endorsements: &Endorsements| {
        verify_any(&parsed, endorsements, &Roots::pinned(), &Policy::default(), AT)
    };
    let result = verify(&Endorsements::none());
    assert_eq!(
        (result.verdict, result.reasons()),
        (Verdict::Indeterminate, vec![Reason::EndorsementsMissing])
    );
    let mut endorsements = Endorsements::none();
    endorsements.add(vcek.as_str().unwrap().as_bytes()).unwrap();
    assert!(verify(&endorsements).is_verified());
}

/// The evidence with one bit of a field of bytes flipped.
fn flipped(path: &str, at: usize, bit: u8) -> Value {
    let mut evidence = genoa();
    let byte = evidence.pointer_mut(&format!("{path}/{at}")).unwrap();
    *byte = json!(byte.as_u64().unwrap() ^ (1 << bit));
    evidence
}

#[test]
fn flipped_bits_are_refused_for_what_they_break() {
    const RUNTIME: usize = 32 + 1184 + 20;
    for at in (32..32 + 0x2a0).step_by(13) {
        let found = reasons(&flipped("/report", at, 2));
        assert!(
            found.contains(&Reason::SignatureInvalid)
                || found.contains(&Reason::UnsupportedAlgorithm)
                || found.contains(&Reason::UnsupportedVersion)
                || found.contains(&Reason::Malformed),
            "{at}: {found:?}"
        );
    }
    for at in (RUNTIME..RUNTIME + 1200).step_by(17) {
        let found = reasons(&flipped("/report", at, 0));
        assert!(found.contains(&Reason::RuntimeDataMismatch), "{at}: {found:?}");
    }
    for at in 0..161 {
        let found = reasons(&flipped("/quote/message", at, 5));
        let known = [
            Reason::SignatureInvalid,
            Reason::Malformed,
            Reason::NotTpmGenerated,
            Reason::NotAQuote,
        ];
        assert!(
            known.iter().any(|reason| found.contains(reason)),
            "{at}: {found:?}"
        );
    }
    for at in (0..256).step_by(31) {
        assert_eq!(
            reasons(&flipped("/quote/signature", at, 7)),
            [Reason::SignatureInvalid],
            "{at}"
        );
    }
    for pcr in 0..24 {
        assert_eq!(
            reasons(&flipped(&format!("/quote/pcrs/{pcr}"), 31, 0)),
            [Reason::PcrDigestMismatch]
        );
    }
    // Behind the runtime data and in the header nothing is signed, so nothing may be there.
    for at in [16, 31, RUNTIME + 1200, 2599] {
        assert_eq!(reasons(&flipped("/report", at, 0)), [Reason::Malformed], "{at}");
    }
    for (at, reason) in [
        (0, None), // no paravisor's report, and nothing else
        (4, Some(Reason::UnsupportedVersion)),
        (8, Some(Reason::Malformed)),
        (12, Some(Reason::UnsupportedVersion)),
        (RUNTIME - 20, Some(Reason::Malformed)),
        (RUNTIME - 16, Some(Reason::UnsupportedVersion)),
        (RUNTIME - 12, Some(Reason::UnsupportedVersion)),
        (RUNTIME - 4, Some(Reason::Malformed)),
    ] {
        let found = reasons(&flipped("/report", at, 4));
        assert_eq!(found, [reason.unwrap_or(Reason::Malformed)], "{at}");
    }
}

#[test]
fn parts_of_two_machines_do_not_make_one() {
    let milan: Value = serde_json::from_str(MILAN).unwrap();
    let milan = &milan["evidence"];
    let mut swapped = genoa();
    let quote = swapped["quote"].as_object_mut().unwrap();
    for field in ["message", "signature"] {
        let bytes = hex::decode(milan["tpm_quote"][field].as_str().unwrap()).unwrap();
        quote.insert(field.to_owned(), json!(bytes));
    }
    let pcrs = milan["tpm_quote"]["pcrs"].as_array().unwrap().iter();
    let pcrs: Vec<Vec<u8>> = pcrs
        .map(|pcr| hex::decode(pcr.as_str().unwrap()).unwrap())
        .collect();
    quote.insert("pcrs".to_owned(), json!(pcrs));
    assert_eq!(reasons(&swapped), [Reason::SignatureInvalid]);
    let mut few = genoa();
    few["quote"]["pcrs"].as_array_mut().unwrap().pop();
    assert_eq!(reasons(&few), [Reason::PcrDigestMismatch]);
}

#[test]
fn every_truncation_of_the_paravisors_report_is_refused() {
    for len in 4..TDX_HCL.len() {
        let result = verify(&TDX_HCL[..len], &Policy::default());
        assert_eq!(result.verdict, Verdict::Refused, "{len}");
        // The end is padding, which isn't counted.
        let whole = 32 + 1184 + 20 + 1201;
        let reason = if len < whole {
            Reason::Malformed
        } else {
            Reason::NotAQuote
        };
        assert_eq!(result.reasons(), [reason], "{len}");
    }
}

#[test]
fn a_bare_report_shows_its_runtime_data_and_names_what_is_missing() {
    let report = bytes(&genoa()["report"]);
    let parsed = AnyEvidence::parse(&report).unwrap();
    let mut endorsements = Endorsements::none();
    endorsements
        .add(genoa()["vcek"].as_str().unwrap().as_bytes())
        .unwrap();
    let verify = |policy: &Policy| verify_any(&parsed, &endorsements, &Roots::pinned(), policy, AT);
    let mut policy = Policy::default();
    let result = verify(&policy);
    assert!(result.is_verified(), "{result}");
    assert!(
        result
            .not_checked()
            .any(|(id, why)| id == "appraise.report-data" && why.contains("virtual TPM"))
    );
    // Without a quote, the guest's own field in the report is what can be fresh.
    policy.report_data = Some([0; 64]);
    assert!(verify(&policy).is_verified());
    policy.report_data = Some([1; 64]);
    assert_eq!(verify(&policy).reasons(), [Reason::ReportDataMismatch]);
}

#[test]
fn a_td_report_without_a_quote_proves_nothing() {
    assert_eq!(verify(TDX_HCL, &Policy::default()).reasons(), [Reason::NotAQuote]);
    let mut evidence: Value = serde_json::from_str(TDX).unwrap();
    evidence.as_object_mut().unwrap().remove("td_quote");
    let result = verify(evidence.to_string().as_bytes(), &Policy::default());
    assert_eq!(
        (result.verdict, result.reasons()),
        (Verdict::Refused, vec![Reason::NotAQuote])
    );
}

proptest! {
    #[test]
    fn no_json_makes_the_parser_panic(text in "[ -~]{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let json = json!({ "hcl_report": text, "tpm_quote": { "message": text, "signature": bytes, "pcrs": [text] } });
        let _ = AnyEvidence::parse(json.to_string().as_bytes());
        let report = [b"HCLA".as_slice(), &bytes].concat();
        let report = json!({ "hcl_report": report });
        let _ = reasons(&report);
    }
}
