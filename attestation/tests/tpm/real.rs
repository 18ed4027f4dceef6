//! Quotes of Google Compute Engine's virtual TPM (RSASSA), with its firmware's event log: three banks of one machine,
//! and one quote without a nonce. The fields are the recorded ones; only the encoding around them is ours.

use serde_json::json;

use super::*;

const SHA1: &[u8] = include_bytes!("../vectors/tpm/gce-cos-85-nonce9009-sha1.cbor");
const SHA256: &[u8] = include_bytes!("../vectors/tpm/gce-cos-85-nonce9009-sha256.cbor");
const SHA384: &[u8] = include_bytes!("../vectors/tpm/gce-cos-85-nonce9009-sha384.cbor");
const NO_NONCE: &[u8] = include_bytes!("../vectors/tpm/gce-cos-85-no-nonce-sha256.cbor");

/// Pins the machine's key; asks for the nonce, Secure Boot, and the PCRs of one bank.
fn asking(bank: HashAlg) -> Policy {
    let name = "000bf175bdb57297b2b289973f819863d6c9d09c236725676914f4248c9a2404c2a4";
    let mut policy = Policy::default();
    policy.tpm.allowed_aks = Some(vec![AkPin::Name(hex::decode(name).unwrap())]);
    policy.tpm.nonce = Some(vec![0x90, 0x09]);
    policy.tpm.require_secure_boot = true;
    policy.tpm.required_pcrs = BTreeMap::from([(bank, (0..=15).collect())]);
    policy
}

#[test]
fn real_quotes_are_verified_with_their_event_log() {
    for (bank, evidence) in [(HashAlg::Sha256, SHA256), (HashAlg::Sha384, SHA384)] {
        let evidence = TpmEvidence::from_cbor(evidence).unwrap();
        let result = verify(&evidence, &asking(bank));
        assert!(result.is_verified(), "{bank}\n{result}");
        assert_eq!(result.claims["proven"]["secure_boot"], true);
        assert_eq!(result.claims["proven"]["event_log"]["bank"], json!(bank));
    }
}

#[test]
fn real_quotes_are_refused_for_what_they_lack() {
    let evidence = |bytes| TpmEvidence::from_cbor(bytes).unwrap();
    let refused = |evidence: &TpmEvidence| verify(evidence, &asking(HashAlg::Sha256)).reasons();
    let sha1 = refused(&evidence(SHA1));
    let nothing_proven = [
        Reason::PcrBankRefused,
        Reason::EventLogMismatch,
        Reason::EventLogMissing,
    ];
    assert_eq!(sha1, nothing_proven);
    assert_eq!(refused(&evidence(NO_NONCE)), [Reason::ReportDataMismatch]);
    let other_bank = [Reason::PcrSelectionIncomplete];
    assert_eq!(refused(&evidence(SHA384)), other_bank);
    let mut mixed = evidence(SHA256);
    mixed.signature = evidence(NO_NONCE).signature;
    assert_eq!(refused(&mixed), [Reason::SignatureInvalid]);
    let mut mixed = evidence(SHA256);
    mixed.firmware_log.as_mut().unwrap()[300] ^= 1;
    let found = refused(&mixed);
    assert!(
        found.contains(&Reason::EventLogMismatch) || found.contains(&Reason::Malformed),
        "{found:?}"
    );
    for bit in (0..8 * 115).step_by(11) {
        let mut flipped = evidence(SHA256);
        flipped.quote[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            verify(&flipped, &asking(HashAlg::Sha256)).verdict,
            Verdict::Refused,
            "bit {bit}"
        );
    }
}
