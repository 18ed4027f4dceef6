//! TPM quotes: what is verified, and every way of forging one that is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use attestation::eventlog::HashAlg;
use attestation::sim::{AK_ATTRIBUTES, AkIssuer, AkKind, Tpm};
use attestation::tpm::{AkPin, AttestationKey, PcrValues, Quote, Signature, TpmEvidence};
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Policy, Reason, Requirement, Roots, Trust, Verdict,
    verify_any,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

mod logs;
mod real;
mod reference;

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
    for kind in [
        AkKind::P256,
        AkKind::P384,
        AkKind::RsaSsa,
        AkKind::RsaPss,
        AkKind::RsaPssLongSalt,
    ] {
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
    let ek_usage = maker
        .certify(&tpm.spki().unwrap(), Some(&[2, 23, 133, 8, 1]))
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
    // A key with a certificate that doesn't say "key of a TPM" might sign anything, whatever it says of itself.
    evidence.certificates = vec![no_usage, root.clone()];
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::AkAttributes]);
    evidence.certificates = vec![ek_usage, root.clone()];
    assert!(verify(&evidence, &policy).is_verified());
    evidence.ak = tpm.spki().unwrap();
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
