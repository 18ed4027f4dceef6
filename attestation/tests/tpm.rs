//! TPM quotes: what is verified, and every way of forging one that is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use attestation::eventlog::HashAlg;
use attestation::sim::{AK_ATTRIBUTES, AkIssuer, AkKind, Tpm};
use attestation::tpm::{
    AkPin, AttestationKey, PcrValues, Quote, REFERENCE_PAYLOAD_TYPE, ReferenceKey, Signature, TpmEvidence,
    reference_to_sign,
};
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Outcome, Policy, PolicyFile, Reason, Requirement,
    Roots, Trust, Verdict, verify_any,
};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

const AT: u64 = 1_788_220_800; // 2026-09-01
const NONCE: &[u8] = b"0123456789abcdef0123456789abcdef";
const AIK: &[u32] = &[2, 23, 133, 8, 3];

/// Values for PCR 0 to 11 of SHA-256.
fn pcrs() -> PcrValues {
    let values = (0..12).map(|pcr| (pcr, vec![pcr + 1; 32])).collect();
    BTreeMap::from([(HashAlg::Sha256, values)])
}

fn verify_with(evidence: &TpmEvidence, policy: &Policy, endorsements: &Endorsements) -> AttestationResult {
    let evidence = AnyEvidence::parse(&evidence.to_cbor()).unwrap();
    verify_any(&evidence, endorsements, &Roots::pinned(), policy, AT)
}

fn verify(evidence: &TpmEvidence, policy: &Policy) -> AttestationResult {
    verify_with(evidence, policy, &Endorsements::none())
}

/// A policy that pins the key by name and asks for the nonce.
fn pinning(tpm: &Tpm) -> Policy {
    let mut policy = Policy::default();
    policy.tpm.allowed_aks = Some(vec![AkPin::Name(tpm.name())]);
    policy.tpm.nonce = Some(NONCE.to_vec());
    policy
}

#[test]
fn a_quote_of_a_pinned_key_is_verified_with_every_kind_of_key() {
    for kind in [AkKind::P256, AkKind::P384, AkKind::RsaSsa, AkKind::RsaPss] {
        let tpm = Tpm::create(kind).unwrap();
        let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
        let result = verify(&evidence, &pinning(&tpm));
        assert_eq!(result.verdict, Verdict::Verified, "{kind:?}\n{result}");
        assert_eq!(
            (result.grade, result.trust),
            (Grade::HostVerified, Trust::Policy),
            "{kind:?}"
        );
        let named: Vec<&str> = result.not_checked().map(|(id, _)| id).collect();
        let want = [
            "appraise.event-log",
            "appraise.secure-boot",
            "appraise.measurement",
            "appraise.tcb-floor",
        ];
        assert_eq!(named, want, "{kind:?}");
    }
}

#[test]
fn the_same_key_is_known_in_all_its_forms() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let (area, spki) = (tpm.public_area(), tpm.spki().unwrap());
    let sized = [&(area.len() as u16).to_be_bytes(), area.as_slice()].concat();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&spki)
    );
    let key = AttestationKey::parse(&area).unwrap();
    assert_eq!(key.name(), Some(tpm.name().as_slice()));
    assert_eq!(AttestationKey::parse(&sized).unwrap(), key);
    for form in [spki.as_slice(), pem.as_bytes()] {
        let bare = AttestationKey::parse(form).unwrap();
        assert_eq!((bare.name(), bare.spki()), (None, spki.clone()));
        assert_eq!(bare.spki_sha256(), key.spki_sha256());
    }
    for kind in [AkKind::P384, AkKind::RsaSsa] {
        let tpm = Tpm::create(kind).unwrap();
        assert_eq!(
            AttestationKey::parse(&tpm.public_area()).unwrap().spki(),
            tpm.spki().unwrap()
        );
    }
    // Without attributes, only who pinned the key can vouch for them; the result says so.
    let mut evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    evidence.ak = spki;
    let mut policy = pinning(&tpm);
    policy.tpm.allowed_aks = Some(vec![AkPin::Spki(key.spki_sha256())]);
    let result = verify(&evidence, &policy);
    assert!(result.is_verified(), "{result}");
    assert!(
        result
            .not_checked()
            .any(|(id, _)| id == "authenticate.ak-attributes")
    );
}

#[test]
fn keys_that_the_policy_does_not_know_are_refused_or_undecided() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    let other = Tpm::create(AkKind::P256).unwrap();
    let result = verify(&evidence, &pinning(&other));
    assert_eq!(result.reasons(), [Reason::AkMismatch]);
    assert_eq!((result.verdict, result.trust), (Verdict::Refused, Trust::None));
    let mut nobody = pinning(&tpm);
    nobody.tpm.allowed_aks = Some(vec![]);
    assert_eq!(verify(&evidence, &nobody).reasons(), [Reason::AkMismatch]);
    let result = verify(&evidence, &Policy::default());
    assert_eq!(result.verdict, Verdict::Indeterminate);
    assert_eq!(result.reasons(), [Reason::EndorsementsMissing]);
    assert_eq!(result.grade, Grade::Unconfirmed);
}

#[test]
fn certified_keys_are_believed_as_far_as_the_root_is_named() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let maker = AkIssuer::create().unwrap();
    let certificate = maker.certify(&tpm.spki().unwrap(), Some(AIK)).unwrap();
    let other_usage = maker
        .certify(&tpm.spki().unwrap(), Some(&[1, 3, 6, 1, 5, 5, 7, 3, 1]))
        .unwrap();
    let no_usage = maker.certify(&tpm.spki().unwrap(), None).unwrap();
    let root = maker.root().to_vec();
    let root_digest: [u8; 32] = {
        use sha2::Digest;
        sha2::Sha256::digest(&root).into()
    };
    let mut evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    evidence.certificates = vec![certificate.clone(), root.clone()];

    let untrusted = verify(&evidence, &Policy::default());
    assert_eq!(untrusted.reasons(), [Reason::UntrustedRoot]);
    let mut policy = Policy::default();
    policy.tpm.roots = vec![root_digest];
    let result = verify(&evidence, &policy);
    assert!(result.is_verified(), "{result}");
    assert_eq!(result.trust, Trust::Policy);
    let roots = Roots::pinned().with_test_root(&root).unwrap();
    let any = AnyEvidence::Tpm(evidence.clone());
    let test = verify_any(&any, &Endorsements::none(), &roots, &Policy::default(), AT);
    assert_eq!((test.verdict, test.trust), (Verdict::Verified, Trust::TestRoot));
    let late = verify_any(
        &any,
        &Endorsements::none(),
        &Roots::pinned(),
        &policy,
        4_102_444_800 * 2,
    );
    assert_eq!(late.reasons(), [Reason::CertificateExpired]);

    evidence.certificates = vec![other_usage, root.clone()];
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::ChainInvalid]);
    // A bare key with a certificate that doesn't say "attestation key" might sign anything.
    evidence.certificates = vec![no_usage, root.clone()];
    assert!(
        verify(&evidence, &policy).is_verified(),
        "the attributes are in the TPM's form of the key"
    );
    evidence.ak = tpm.spki().unwrap();
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::AkAttributes]);
    evidence.certificates = vec![certificate, root];
    assert!(verify(&evidence, &policy).is_verified());

    policy.required.insert(Requirement::Revocation);
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::CrlMissing]);
    let crls = maker.into_crl_issuer();
    for (row, revoked, from, to, reasons) in [
        ("fresh", vec![5], "260801000000Z", "261001000000Z", vec![]),
        (
            "revoked",
            vec![77],
            "260801000000Z",
            "261001000000Z",
            vec![Reason::CrlRevoked],
        ),
        (
            "revoked long ago",
            vec![77],
            "250801000000Z",
            "251001000000Z",
            vec![Reason::CrlRevoked],
        ),
        (
            "stale",
            vec![],
            "250801000000Z",
            "251001000000Z",
            vec![Reason::CrlStale],
        ),
        (
            "of the future",
            vec![],
            "270801000000Z",
            "271001000000Z",
            vec![Reason::CrlStale],
        ),
    ] {
        let mut endorsements = Endorsements::none();
        endorsements.add(&crls.crl(&revoked, from, to).unwrap()).unwrap();
        assert_eq!(
            verify_with(&evidence, &policy, &endorsements).reasons(),
            reasons,
            "{row}"
        );
    }
}

#[test]
fn keys_that_are_no_attestation_keys_are_refused() {
    for (row, attributes) in [
        ("not restricted", AK_ATTRIBUTES & !(1 << 16)),
        ("can't sign", AK_ATTRIBUTES & !(1 << 18)),
        ("not fixedTPM", AK_ATTRIBUTES & !(1 << 1)),
        ("not fixedParent", AK_ATTRIBUTES & !(1 << 4)),
        ("not sensitiveDataOrigin", AK_ATTRIBUTES & !(1 << 5)),
        ("decrypts", AK_ATTRIBUTES | 1 << 17),
    ] {
        let tpm = Tpm::create(AkKind::P256).unwrap().with_attributes(attributes);
        let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
        let result = verify(&evidence, &pinning(&tpm));
        assert_eq!(result.reasons(), [Reason::AkAttributes], "{row}\n{result}");
        assert!(
            result.failures()[0].contains(row),
            "{row}: {:?}",
            result.failures()
        );
    }
}

#[test]
fn no_flipped_bit_of_a_quote_is_verified() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let good = tpm.evidence(&pcrs(), NONCE).unwrap();
    let policy = pinning(&tpm);
    for bit in 0..8 * good.quote.len() {
        let mut evidence = good.clone();
        evidence.quote[bit / 8] ^= 1 << (bit % 8);
        let result = verify(&evidence, &policy);
        let format = [Reason::Malformed, Reason::NotTpmGenerated, Reason::NotAQuote];
        let reasons = result.reasons();
        let expected =
            reasons.contains(&Reason::SignatureInvalid) || reasons.iter().any(|r| format.contains(r));
        assert!(
            expected && result.verdict == Verdict::Refused,
            "bit {bit}: {reasons:?}"
        );
    }
    for bit in 0..8 * good.signature.len() {
        let mut evidence = good.clone();
        evidence.signature[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            verify(&evidence, &policy).verdict,
            Verdict::Refused,
            "bit {bit} of the signature"
        );
    }
    for bit in 0..8 * good.ak.len() {
        let mut evidence = good.clone();
        evidence.ak[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            verify(&evidence, &policy).verdict,
            Verdict::Refused,
            "bit {bit} of the key"
        );
    }
    for pcr in 0..12 {
        let mut evidence = good.clone();
        evidence
            .pcrs
            .get_mut(&HashAlg::Sha256)
            .unwrap()
            .get_mut(&pcr)
            .unwrap()[3] ^= 1;
        assert_eq!(
            verify(&evidence, &policy).reasons(),
            [Reason::PcrDigestMismatch],
            "PCR {pcr}"
        );
    }
}

#[test]
fn every_truncation_is_refused_as_malformed() {
    let tpm = Tpm::create(AkKind::RsaSsa).unwrap();
    let good = tpm.evidence(&pcrs(), NONCE).unwrap();
    let policy = pinning(&tpm);
    let parts: [fn(&mut TpmEvidence) -> &mut Vec<u8>; 3] =
        [|e| &mut e.quote, |e| &mut e.signature, |e| &mut e.ak];
    for part in parts {
        let len = part(&mut good.clone()).len();
        for cut in 0..len {
            let mut evidence = good.clone();
            part(&mut evidence).truncate(cut);
            let reasons = verify(&evidence, &policy).reasons();
            let known = [vec![Reason::Malformed], vec![Reason::NotTpmGenerated]];
            assert!(known.contains(&reasons), "{cut} of {len}: {reasons:?}");
        }
        let mut evidence = good.clone();
        part(&mut evidence).push(0);
        assert_eq!(
            verify(&evidence, &policy).reasons(),
            [Reason::Malformed],
            "a byte more"
        );
    }
    let cbor = good.to_cbor();
    for cut in 0..cbor.len() {
        assert!(TpmEvidence::from_cbor(&cbor[..cut]).is_err(), "{cut}");
    }
    assert_eq!(TpmEvidence::from_cbor(&cbor), Ok(good));
}

/// A quote that the key really signed, but that no TPM would make or that shows too little.
fn signed(tpm: &Tpm, quote: Vec<u8>) -> TpmEvidence {
    let mut evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    evidence.signature = tpm.sign(&quote).unwrap();
    evidence.quote = quote;
    evidence
}

#[test]
fn what_is_signed_must_be_a_quote_of_a_tpm() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let good = tpm.attest(&pcrs(), NONCE);
    let with = |at: usize, bytes: &[u8]| {
        let mut quote = good.clone();
        quote[at..at + bytes.len()].copy_from_slice(bytes);
        quote
    };
    let policy = pinning(&tpm);
    for (row, quote, reason) in [
        (
            "another magic",
            with(0, &[0xff, 0x54, 0x43, 0x48]),
            Reason::NotTpmGenerated,
        ),
        ("a certification", with(4, &[0x80, 0x17]), Reason::NotAQuote),
        ("`safe` of 2", with(6 + 36 + 34 + 16, &[2]), Reason::Malformed),
    ] {
        let result = verify(&signed(&tpm, quote), &policy);
        assert_eq!(result.reasons(), [reason], "{row}\n{result}");
    }
    let mut evidence = signed(&tpm, good);
    evidence.signature[3] = 0x04; // SHA-1
    assert_eq!(
        verify(&evidence, &policy).reasons(),
        [Reason::UnsupportedAlgorithm]
    );
    evidence.signature[..2].copy_from_slice(&[0, 0x05]); // HMAC
    assert_eq!(
        verify(&evidence, &policy).reasons(),
        [Reason::UnsupportedAlgorithm]
    );
}

#[test]
fn a_quote_must_cover_what_is_asked_for() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let policy = pinning(&tpm);
    let mut few = pcrs();
    few.get_mut(&HashAlg::Sha256).unwrap().remove(&7);
    let result = verify(&tpm.evidence(&few, NONCE).unwrap(), &policy);
    assert_eq!(result.reasons(), [Reason::PcrSelectionIncomplete], "{result}");
    let sha1: PcrValues = [(HashAlg::Sha1, (0..8).map(|pcr| (pcr, vec![1; 20])).collect())].into();
    let result = verify(&tpm.evidence(&sha1, NONCE).unwrap(), &policy);
    assert_eq!(result.reasons(), [Reason::PcrBankRefused], "{result}");
    let result = verify(&tpm.evidence(&PcrValues::new(), NONCE).unwrap(), &policy);
    assert_eq!(result.reasons(), [Reason::PcrBankRefused], "{result}");
    // More banks than asked for do no harm, and all their values count.
    let mut both = pcrs();
    both.extend(sha1);
    let evidence = tpm.evidence(&both, NONCE).unwrap();
    assert!(verify(&evidence, &policy).is_verified());
    let mut less = evidence.clone();
    less.pcrs.remove(&HashAlg::Sha1);
    assert_eq!(verify(&less, &policy).reasons(), [Reason::PcrDigestMismatch]);
    let mut more = tpm.evidence(&few, NONCE).unwrap();
    more.pcrs = pcrs();
    assert_eq!(
        verify(&more, &policy).reasons(),
        [Reason::PcrDigestMismatch],
        "unquoted values"
    );
}

#[test]
fn freshness_is_the_whole_nonce() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    for nonce in [&NONCE[..31], b"", &[NONCE, b"\0"].concat()] {
        let mut policy = pinning(&tpm);
        policy.tpm.nonce = Some(nonce.to_vec());
        assert_eq!(verify(&evidence, &policy).reasons(), [Reason::ReportDataMismatch]);
    }
    // 64 bytes of expected report data: the quote's, filled up with zeros.
    let mut policy = pinning(&tpm);
    policy.tpm.nonce = None;
    let mut padded = [0; 64];
    padded[..32].copy_from_slice(NONCE);
    policy.report_data = Some(padded);
    policy.required.insert(Requirement::Freshness);
    assert!(verify(&evidence, &policy).is_verified());
    padded[63] = 1;
    policy.report_data = Some(padded);
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::ReportDataMismatch]);
    policy.report_data = None;
    let result = verify(&evidence, &policy);
    assert_eq!(
        (result.verdict, result.reasons()),
        (Verdict::Indeterminate, vec![Reason::ReferenceMissing])
    );
}

#[test]
fn pcr_values_are_compared_line_by_line() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    let mut policy = pinning(&tpm);
    let value = |pcr: u8| vec![pcr + 1; 32];
    let wanted = BTreeMap::from([(4, vec![value(9), value(4)]), (11, vec![value(11)])]);
    policy.tpm.pcrs.insert(HashAlg::Sha256, wanted);
    policy.required.insert(Requirement::Measurement);
    let result = verify(&evidence, &policy);
    assert!(result.is_verified(), "{result}");
    let lines = result
        .checks
        .iter()
        .filter(|check| check.id == "appraise.measurement");
    assert_eq!(lines.count(), 2);
    for (row, pcr, values, reason) in [
        ("another value", 4, vec![value(9)], Reason::PcrMismatch),
        ("no value is right", 4, vec![], Reason::PcrMismatch),
        ("not quoted", 12, vec![value(12)], Reason::PcrSelectionIncomplete),
    ] {
        let mut policy = policy.clone();
        policy
            .tpm
            .pcrs
            .get_mut(&HashAlg::Sha256)
            .unwrap()
            .insert(pcr, values);
        let result = verify(&evidence, &policy);
        assert_eq!(
            (result.verdict, result.reasons()),
            (Verdict::Refused, vec![reason]),
            "{row}"
        );
    }
    policy.tpm.min_firmware = Some(0x0001_0002_0003_0005);
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::TcbTooLow]);
}

struct Builder(EcdsaKeyPair);

impl Builder {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    fn key(&self) -> ReferenceKey {
        let spki: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        ReferenceKey::parse(spki.as_ref()).unwrap()
    }

    fn sign(&self, statement: &serde_json::Value) -> serde_json::Value {
        let payload = statement.to_string();
        let to_sign = reference_to_sign(payload.as_bytes());
        let signature = self.0.sign(&SystemRandom::new(), &to_sign).unwrap();
        json!({
            "payloadType": REFERENCE_PAYLOAD_TYPE,
            "payload": STANDARD.encode(payload),
            "signatures": [{ "keyid": "", "sig": STANDARD.encode(signature.as_ref()) }],
        })
    }
}

fn statement(pcr_4: u8) -> serde_json::Value {
    let hex = |byte: u8| hex::encode([byte; 32]);
    json!({ "version": 1, "image": "provider-os 1", "pcrs": { "sha256": { "4": [hex(pcr_4)], "11": [hex(1), hex(12)] } } })
}

#[test]
fn signed_reference_values_count_if_a_key_of_the_policy_signed_them() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    let (builder, stranger) = (Builder::new(), Builder::new());
    let mut policy = pinning(&tpm);
    policy.tpm.reference_keys = vec![builder.key()];
    let good = builder.sign(&statement(5));
    let mut tampered = good.clone();
    tampered["payload"] = json!(STANDARD.encode(statement(6).to_string()));
    for (row, files, reasons) in [
        ("right", vec![good.clone()], vec![]),
        ("none", vec![], vec![Reason::ReferenceMissing]),
        (
            "another image's",
            vec![builder.sign(&statement(6))],
            vec![Reason::PcrMismatch],
        ),
        (
            "one of two fits",
            vec![builder.sign(&statement(6)), good.clone()],
            vec![],
        ),
        (
            "a stranger's",
            vec![stranger.sign(&statement(5))],
            vec![Reason::ReferenceSignatureInvalid],
        ),
        (
            "a stranger's beside",
            vec![stranger.sign(&statement(6)), good.clone()],
            vec![],
        ),
        (
            "tampered with",
            vec![tampered],
            vec![Reason::ReferenceSignatureInvalid],
        ),
    ] {
        let mut endorsements = Endorsements::none();
        for file in files {
            endorsements.add(file.to_string().as_bytes()).unwrap();
        }
        let result = verify_with(&evidence, &policy, &endorsements);
        assert_eq!(result.reasons(), reasons, "{row}\n{result}");
        let image = &result.claims["proven"]["image"]["name"];
        assert_eq!(image == "provider-os 1", reasons.is_empty(), "{row}: {image}");
    }
    // Values of a file count for nobody who names no key.
    policy.tpm.reference_keys = vec![];
    policy.required.insert(Requirement::Measurement);
    let mut endorsements = Endorsements::none();
    endorsements.add(good.to_string().as_bytes()).unwrap();
    let result = verify_with(&evidence, &policy, &endorsements);
    assert_eq!(result.reasons(), [Reason::ReferenceMissing]);
}

#[test]
fn reference_files_are_read_strictly() {
    let builder = Builder::new();
    for (row, change) in [
        ("version 2", json!({ "version": 2 })),
        ("an unknown field", json!({ "more": 1 })),
        ("PCR 24", json!({ "pcrs": { "sha256": { "24": [] } } })),
        ("PCR 04", json!({ "pcrs": { "sha256": { "04": [] } } })),
        ("SHA-1", json!({ "pcrs": { "sha1": { "4": [] } } })),
        ("a short value", json!({ "pcrs": { "sha256": { "4": ["00"] } } })),
        ("no PCR", json!({ "pcrs": {} })),
        ("a short section", json!({ "sections": { ".linux": "00" } })),
        ("a name of two lines", json!({ "image": "a\nb" })),
        (
            "sections without their PCR",
            json!({ "pcrs": { "sha256": { "4": [] } }, "sections": { ".linux": "00".repeat(32) } }),
        ),
    ] {
        let mut statement = statement(5);
        statement
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let file = builder.sign(&statement).to_string();
        let error = Endorsements::none().add(file.as_bytes());
        assert!(error.is_err(), "{row}");
    }
    for not_p256 in [AkKind::P384, AkKind::RsaSsa] {
        assert_eq!(
            ReferenceKey::parse(&Tpm::create(not_p256).unwrap().spki().unwrap()),
            None
        );
    }
}

#[test]
fn a_policy_file_is_read_strictly() {
    let read = |tpm: serde_json::Value| {
        let file: PolicyFile = serde_json::from_value(json!({ "tpm": tpm })).map_err(|e| e.to_string())?;
        Policy::from_file(&file).map_err(|e| e.to_string())
    };
    let name = hex::encode(Tpm::create(AkKind::P256).unwrap().name());
    let policy = read(json!({
        "aks": [format!("name:{name}"), format!("spki-sha256:{}", "11".repeat(32))],
        "roots": ["22".repeat(32)],
        "nonce": "0011",
        "required_pcrs": { "sha384": [0, 7] },
        "pcrs": { "sha256": { "4": ["33".repeat(32)] } },
        "require_event_log": true,
        "require_secure_boot": true,
        "min_firmware": 5,
    }))
    .unwrap();
    assert_eq!(policy.tpm.allowed_aks.as_ref().map(Vec::len), Some(2));
    assert_eq!(policy.tpm.pcrs[&HashAlg::Sha256][&4], [vec![0x33; 32]]);
    assert_eq!(read(json!({})).unwrap(), Policy::default());
    for (row, tpm) in [
        ("an unknown field", json!({ "ak": [] })),
        ("a pin without a kind", json!({ "aks": [name] })),
        (
            "a name of SHA-1",
            json!({ "aks": [format!("name:0004{}", "00".repeat(20))] }),
        ),
        ("a short name", json!({ "aks": ["name:000b00"] })),
        ("a short root", json!({ "roots": ["22"] })),
        ("a nonce of 65 bytes", json!({ "nonce": "00".repeat(65) })),
        ("PCR 24", json!({ "required_pcrs": { "sha256": [24] } })),
        ("SHA-1", json!({ "required_pcrs": { "sha1": [0] } })),
        ("a value of SHA-1", json!({ "pcrs": { "sha1": {} } })),
        (
            "a PCR by another name",
            json!({ "pcrs": { "sha256": { "x": [] } } }),
        ),
        (
            "no key",
            json!({ "reference_keys": ["-----BEGIN PUBLIC KEY-----"] }),
        ),
    ] {
        assert!(read(tpm).is_err(), "{row}");
    }
}

mod logs {
    use super::*;
    use sha2::{Digest, Sha256};

    const EV_SEPARATOR: u32 = 4;
    const EV_IPL: u32 = 0xd;
    const EV_VARIABLE: u32 = 0x8000_0001;

    fn sha256(bytes: &[u8]) -> Vec<u8> {
        Sha256::digest(bytes).to_vec()
    }

    fn event(pcr: u32, kind: u32, digest: &[u8], data: &[u8]) -> Vec<u8> {
        let mut out = [pcr.to_le_bytes(), kind.to_le_bytes(), 1u32.to_le_bytes()].concat();
        out.extend([0x0b, 0]);
        out.extend(digest);
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        out
    }

    fn secure_boot(value: u8) -> Vec<u8> {
        let mut data = hex::decode("61dfe48bca93d211aa0d00e098032b8c").unwrap();
        data.extend(10u64.to_le_bytes());
        data.extend(1u64.to_le_bytes());
        data.extend("SecureBoot".encode_utf16().flat_map(u16::to_le_bytes));
        data.push(value);
        data
    }

    pub(crate) fn firmware(secure_boot_value: u8) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
        let mut log = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
        log.extend([0; 20]);
        log.extend((spec.len() as u32).to_le_bytes());
        log.extend(spec);
        let variable = secure_boot(secure_boot_value);
        log.extend(event(7, EV_VARIABLE, &sha256(&variable), &variable));
        for pcr in 0..8 {
            log.extend(event(pcr, EV_SEPARATOR, &sha256(&[0; 4]), &[0; 4]));
        }
        log.extend(event(11, EV_IPL, &sha256(b"kernel"), b".linux"));
        log
    }

    pub(crate) fn userspace(words: &[&str]) -> Vec<u8> {
        let record = |word: &&str| {
            let record = json!({
                "pcr": 11,
                "digests": [{ "hashAlg": "sha256", "digest": hex::encode(sha256(word.as_bytes())) }],
                "content_type": "systemd",
                "content": { "eventType": "phase", "string": word },
            });
            format!("\u{1e}{record}\n")
        };
        words.iter().map(record).collect::<String>().into_bytes()
    }

    /// The values that the logs give, for PCR 0 to 11.
    pub(crate) fn replayed(firmware: &[u8], userspace_log: &[u8]) -> PcrValues {
        let log = attestation::eventlog::EventLog::parse(firmware).unwrap();
        let mut registers = log.replay(HashAlg::Sha256).unwrap();
        let records = attestation::eventlog::userspace::parse(userspace_log).unwrap();
        attestation::eventlog::userspace::replay(&records, HashAlg::Sha256, &mut registers).unwrap();
        let value = |pcr: u8| registers.get(&u32::from(pcr)).cloned().unwrap_or(vec![0; 32]);
        [(HashAlg::Sha256, (0..12).map(|pcr| (pcr, value(pcr))).collect())].into()
    }

    fn booted(tpm: &Tpm) -> TpmEvidence {
        let (firmware, userspace) = (firmware(1), userspace(&["enter-initrd", "ready"]));
        let mut evidence = tpm.evidence(&replayed(&firmware, &userspace), NONCE).unwrap();
        evidence.firmware_log = Some(firmware);
        evidence.userspace_log = Some(userspace);
        evidence
    }

    #[test]
    fn logs_that_replay_prove_what_was_measured() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let mut policy = pinning(&tpm);
        policy.tpm.require_event_log = true;
        policy.tpm.require_secure_boot = true;
        let result = verify(&booted(&tpm), &policy);
        assert!(result.is_verified(), "{result}");
        let proven = &result.claims["proven"];
        assert_eq!(proven["secure_boot"], true);
        assert_eq!(
            proven["event_log"]["boot_phases"],
            json!(["enter-initrd", "ready"])
        );
    }

    #[test]
    fn logs_that_were_tampered_with_are_refused() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let mut policy = pinning(&tpm);
        policy.tpm.require_secure_boot = true;
        let good = booted(&tpm);
        let log = good.firmware_log.clone().unwrap();
        let changed = |change: &dyn Fn(&mut TpmEvidence)| {
            let mut evidence = good.clone();
            change(&mut evidence);
            verify(&evidence, &policy).reasons()
        };
        let mismatch = vec![Reason::EventLogMismatch, Reason::EventLogMissing];
        assert_eq!(
            changed(&|e| e.userspace_log = None),
            mismatch,
            "PCR 11 isn't explained"
        );
        assert_eq!(
            changed(&|e| e.userspace_log = Some(userspace(&["ready"]))),
            mismatch
        );
        assert_eq!(changed(&|e| e.firmware_log = Some(firmware(0))), mismatch);
        assert_eq!(changed(&|e| e.firmware_log = None), [Reason::EventLogMissing]);
        let cut = changed(&|e| e.firmware_log = Some(log[..log.len() - 1].to_vec()));
        assert_eq!(cut, [Reason::Malformed, Reason::EventLogMissing]);
        let odd = changed(&|e| e.userspace_log = Some(b"{}".to_vec()));
        assert_eq!(odd, [Reason::Malformed, Reason::EventLogMissing]);
        // A log's text that isn't what was measured proves nothing: replay holds, the claim goes.
        let mut lie = log.clone();
        let at = head_len() + event(7, EV_VARIABLE, &[0; 32], &secure_boot(1)).len() - 1;
        assert_eq!(lie[at], 1, "the variable's value");
        lie[at] = 0;
        assert_eq!(
            changed(&|e| e.firmware_log = Some(lie.clone())),
            [Reason::EventLogMissing]
        );
        // Every bit of the digests counts.
        for bit in 8 * head_len()..8 * log.len() {
            let mut flipped = log.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let reasons = changed(&|e| e.firmware_log = Some(flipped.clone()));
            assert!(!reasons.is_empty() || is_text(&log, bit / 8), "bit {bit}");
        }
    }

    /// Whether the byte is an event's text or type, which no register holds.
    fn is_text(log: &[u8], at: usize) -> bool {
        let mut rest = head_len();
        while rest < log.len() {
            let len_at = rest + 12 + 34;
            let len = u32::from_le_bytes(log[len_at..len_at + 4].try_into().unwrap()) as usize;
            let end = len_at + 4 + len;
            if at < end {
                return (rest + 4..rest + 8).contains(&at) || at >= len_at + 4;
            }
            rest = end;
        }
        false
    }

    fn head_len() -> usize {
        32 + 33
    }

    #[test]
    fn secure_boot_that_is_off_is_refused_where_it_is_asked_for() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let (firmware, userspace) = (firmware(0), userspace(&[]));
        let mut evidence = tpm.evidence(&replayed(&firmware, &userspace), NONCE).unwrap();
        evidence.firmware_log = Some(firmware);
        let mut policy = pinning(&tpm);
        let result = verify(&evidence, &policy);
        assert!(result.is_verified(), "{result}");
        assert_eq!(result.claims["proven"]["secure_boot"], false);
        policy.tpm.require_secure_boot = true;
        assert_eq!(verify(&evidence, &policy).reasons(), [Reason::SecureBootOff]);
    }

    #[test]
    fn secure_boot_is_what_the_firmware_measured_before_it_let_others() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let fake = secure_boot(1);
        let mut firmware = firmware(0);
        let first = event(7, EV_VARIABLE, &[0; 32], &fake).len();
        firmware.drain(head_len()..head_len() + first); // a firmware that measures no variable
        firmware.extend(event(7, EV_VARIABLE, &sha256(&fake), &fake)); // and somebody who makes up for it
        let mut evidence = tpm.evidence(&replayed(&firmware, &[]), NONCE).unwrap();
        evidence.firmware_log = Some(firmware);
        let mut policy = pinning(&tpm);
        policy.tpm.require_secure_boot = true;
        let result = verify(&evidence, &policy);
        let want = (Verdict::Indeterminate, vec![Reason::EventLogMissing]);
        assert_eq!((result.verdict, result.reasons()), want);
    }

    #[test]
    fn sections_of_a_reference_file_must_have_been_measured() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let evidence = booted(&tpm);
        let builder = Builder::new();
        let mut policy = pinning(&tpm);
        policy.tpm.reference_keys = vec![builder.key()];
        let pcr_11 = hex::encode(&evidence.pcrs[&HashAlg::Sha256][&11]);
        for (kernel, reasons) in [
            (b"kernel", vec![]),
            (b"other!", vec![Reason::MeasurementMismatch]),
        ] {
            let statement = json!({
                "version": 1, "image": "provider-os 1", "pcrs": { "sha256": { "11": [pcr_11] } },
                "sections": { ".linux": hex::encode(sha256(kernel)) }, "verity_root_hash": "aabb",
            });
            let mut endorsements = Endorsements::none();
            endorsements
                .add(builder.sign(&statement).to_string().as_bytes())
                .unwrap();
            let result = verify_with(&evidence, &policy, &endorsements);
            assert_eq!(result.reasons(), reasons, "{result}");
        }
    }

    #[test]
    fn a_pcr_that_the_logs_do_not_name_is_named() {
        let tpm = Tpm::create(AkKind::P256).unwrap();
        let (firmware, userspace) = (firmware(1), userspace(&[]));
        let mut values = replayed(&firmware, &userspace);
        values.get_mut(&HashAlg::Sha256).unwrap().insert(10, vec![9; 32]); // IMA's
        let mut evidence = tpm.evidence(&values, NONCE).unwrap();
        evidence.firmware_log = Some(firmware);
        let result = verify(&evidence, &pinning(&tpm));
        assert!(result.is_verified());
        let line = result
            .checks
            .iter()
            .find(|check| check.id == "appraise.event-log")
            .unwrap();
        assert_eq!(line.outcome, Outcome::Passed);
        assert!(
            line.found.ends_with("the logs say nothing of PCR 10"),
            "{}",
            line.found
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Quote::parse(&bytes);
        let _ = Quote::parse(&[&[0xff, 0x54, 0x43, 0x47, 0x80, 0x18], bytes.as_slice()].concat());
        let _ = Signature::parse(&bytes);
        let _ = Signature::parse(&[&[0, 0x18, 0, 0x0b], bytes.as_slice()].concat());
        let _ = AttestationKey::parse(&bytes);
        let _ = AttestationKey::parse(&[&[0, 0x23, 0, 0x0b], bytes.as_slice()].concat());
        let _ = AttestationKey::parse(&[&[0, 0x01, 0, 0x0b], bytes.as_slice()].concat());
        let _ = TpmEvidence::from_cbor(&bytes);
        let _ = TpmEvidence::from_cbor(&[b"\xa9\0\x63tpm\x01\x01", bytes.as_slice()].concat());
    }

    #[test]
    fn evidence_survives_its_encoding(
        quote in proptest::collection::vec(any::<u8>(), 0..100),
        certificates in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8),
        values in proptest::collection::btree_map(0u8..24, proptest::array::uniform32(any::<u8>()), 0..24),
        log in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
    ) {
        let values = values.into_iter().map(|(pcr, value)| (pcr, value.to_vec())).collect();
        let evidence = TpmEvidence {
            quote, certificates, pcrs: [(HashAlg::Sha256, values)].into(), firmware_log: log, ..TpmEvidence::default()
        };
        prop_assert_eq!(TpmEvidence::from_cbor(&evidence.to_cbor()), Ok(evidence));
    }
}
