//! What must be refused of GPU evidence, and with which reason: the rows M60–M65 of the collection that the vectors come
//! from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod nvidia_case;

use attestation::nvidia::{GpuEvidence, GpuPolicy, Stated};
use attestation::sim::{GpuFacts, OcspSigner, OcspStatus, RimFacts};
use attestation::{
    AnyEvidence, Endorsements, Policy, Reason, Requirement, Roots, Trust, Verdict, verify_any,
};
use nvidia_case::{AT, Case, FRESH, GPU, assert_refused, driver, endorsements, read, recorded, rims, vbios};

/// A response's window before [`AT`].
const OLD: [&str; 2] = ["20260801000000Z", "20260802000000Z"];

#[test]
fn m60_a_report_that_its_device_didnt_sign() {
    for name in [
        "neg-gh100-sdk-hopperInvalidSignature-53e055",
        "neg-ls10-sdk-switchInvalidSignature",
    ] {
        let chain = read(&format!("{name}/chain.pem"));
        let result = recorded(
            &read(&format!("{name}/report.bin")),
            &endorsements(&[&chain]),
            &Policy::default(),
        );
        assert_refused(&result, Reason::SignatureInvalid, name);
    }
}

#[test]
fn m61_a_nonce_other_than_the_expected_one() {
    for name in [
        "gh100-nvtrust-hopper-c438e7",
        "gb100-services-blackwell-evidence0-1b2383",
        "ls10-sdk-multi_switch_ls100-352fc9",
    ] {
        let (report, chain) = (
            read(&format!("{name}/report.bin")),
            read(&format!("{name}/chain.pem")),
        );
        let right: [u8; 32] = report[4..36].try_into().unwrap();
        let mut wrong = right;
        wrong[31] ^= 1;
        let judge = |nonce, data| {
            let gpu = GpuPolicy {
                nonce,
                ..GpuPolicy::default()
            };
            let policy = Policy {
                gpu,
                report_data: data,
                ..Policy::default()
            };
            recorded(&report, &endorsements(&[&chain]), &policy)
        };
        let data = |nonce: [u8; 32], rest: u8| {
            let data: [u8; 64] = [nonce, [rest; 32]].concat().try_into().unwrap();
            Some(data)
        };
        for (nonce, data) in [(Some(right), None), (None, data(right, 0))] {
            assert!(judge(nonce, data).is_verified(), "{name}");
        }
        for (nonce, data) in [
            (Some(wrong), None),
            (None, data(wrong, 0)),
            (None, data(right, 1)),
        ] {
            assert_refused(&judge(nonce, data), Reason::NonceMismatch, name);
        }
    }
    let stated = Stated {
        nonce: Some("07".repeat(32)),
        arch: Some("hopper".to_owned()),
    };
    assert!(
        Case {
            stated,
            ..Case::default()
        }
        .judge()
        .is_verified()
    );
    let stated = Stated {
        nonce: Some("08".repeat(32)),
        arch: None,
    };
    assert_refused(
        &Case {
            stated,
            ..Case::default()
        }
        .judge(),
        Reason::NonceMismatch,
        "the file says another",
    );
    let stated = Stated {
        nonce: None,
        arch: Some("BLACKWELL".to_owned()),
    };
    assert_refused(
        &Case {
            stated,
            ..Case::default()
        }
        .judge(),
        Reason::ProductMismatch,
        "the file says another",
    );
}

#[test]
fn m62_the_chain_of_another_device() {
    let names = [
        "gh100-nvtrust-gpu_evidence0-42b177",
        "gh100-nvtrust-hopper-c438e7",
        "gb100-sdk-blackwell-5fec34",
        "gb100-services-blackwell-evidence0-1b2383",
        "ls10-nvtrust-switch_evidence0-e73d38",
        "ls10-sdk-multi_switch_ls100-352fc9",
    ];
    for report in names {
        for chain in names.into_iter().filter(|chain| *chain != report) {
            let given = endorsements(&[&read(&format!("{chain}/chain.pem"))]);
            let result = recorded(&read(&format!("{report}/report.bin")), &given, &Policy::default());
            assert_refused(
                &result,
                Reason::SignatureInvalid,
                &format!("{report} with {chain}"),
            );
        }
        // With all chains at hand the right one is found.
        let all: Vec<Vec<u8>> = names
            .iter()
            .map(|name| read(&format!("{name}/chain.pem")))
            .collect();
        let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let result = recorded(
            &read(&format!("{report}/report.bin")),
            &endorsements(&all),
            &Policy::default(),
        );
        assert!(result.is_verified(), "{report}:\n{result}");
    }
    // The same firmware's key, another firmware in the report.
    let facts = GpuFacts::default().with_field(20, Some(&[0x99; 48]));
    let result = Case {
        facts,
        ..Case::default()
    }
    .judge();
    assert_eq!(result.reasons(), [Reason::FwidMismatch]);
}

/// The recorded bad manifests are in `nvidia_vectors.rs`; here is what simulated ones add.
#[test]
fn m63_manifests_that_are_over_or_dont_match_or_arent_signed() {
    use Reason::*;
    let other = RimFacts {
        version: "1.2".to_owned(),
        ..driver()
    };
    let wrong = RimFacts {
        measurements: vec![(1, true, vec![vec![0xaa; 48]])],
        ..driver()
    };
    let absent = RimFacts {
        measurements: vec![(64, true, vec![vec![1; 48]])],
        ..driver()
    };
    let overlapping = RimFacts {
        measurements: vec![(2, true, vec![vec![2; 48]])],
        ..vbios()
    };
    let changed = |from: &str, to: &str| {
        let xml = String::from_utf8(rims(&[driver()]).remove(0)).unwrap();
        assert!(xml.contains(from), "{from}");
        vec![xml.replacen(from, to, 1).into_bytes()]
    };
    const BEGUN: u64 = 1_767_312_000; // 2026-01-02
    for (row, rims, at, want) in [
        ("both match", rims(&[driver(), vbios()]), AT, &[][..]),
        ("another driver's", rims(&[other]), AT, &[]),
        (
            "a wrong value",
            rims(&[wrong.clone(), vbios()]),
            AT,
            &[MeasurementMismatch],
        ),
        (
            "a wrong one and a right one",
            rims(&[wrong, driver(), vbios()]),
            AT,
            &[],
        ),
        (
            "an index that the report lacks",
            rims(&[absent]),
            AT,
            &[MeasurementMismatch],
        ),
        (
            "two for one index",
            rims(&[driver(), overlapping]),
            AT,
            &[RimConflict],
        ),
        (
            "not begun",
            rims(&[driver()]),
            BEGUN - 3 * 86_400,
            &[RimNotYetValid],
        ),
        ("just begun", rims(&[driver()]), BEGUN, &[]),
        ("over", rims(&[driver()]), 1_861_920_000, &[RimExpired]),
        (
            "another value",
            changed(&"01".repeat(48), &"0a".repeat(48)),
            AT,
            &[RimSignatureInvalid, MeasurementMismatch],
        ),
        (
            "another version",
            changed("590.12", "590.13"),
            AT,
            &[RimSignatureInvalid],
        ),
        (
            "not active any more",
            changed("True", "False"),
            AT,
            &[RimSignatureInvalid],
        ),
        (
            "another signature",
            changed("SignatureValue>", "SignatureValue>AAAA"),
            AT,
            &[RimMalformed],
        ),
        (
            "half a value",
            changed(&"01".repeat(48), &"01".repeat(47)),
            AT,
            &[RimMalformed],
        ),
        ("no XML", vec![b"<SoftwareIdentity".to_vec()], AT, &[RimMalformed]),
        (
            "a changed one beside what is needed",
            [changed("590.12", "590.13"), rims(&[driver(), vbios()])].concat(),
            AT,
            &[],
        ),
        // Spaces between attributes mean nothing.
        ("written differently", changed(" active=", "\n  active="), AT, &[]),
    ] {
        let result = Case {
            endorsements: rims,
            at,
            ..Case::default()
        }
        .judge();
        assert_eq!(result.reasons(), want, "{row}:\n{result}");
        assert_eq!(result.trust, Trust::TestRoot, "{row}");
    }
}

/// A signature that holds over one part while another is read: the known ways to wrap.
#[test]
fn m63_a_manifest_wrapped_around_another_is_no_manifest() {
    let xml = String::from_utf8(rims(&[driver()]).remove(0)).unwrap();
    let signature = &xml[xml.find("<ds:Signature").unwrap()..xml.find("</SoftwareIdentity>").unwrap()];
    let payload = &xml[xml.find("<ns0:Payload").unwrap()..xml.find("<ds:Signature").unwrap()];
    let evil = payload.replace(&"01".repeat(48), &"0a".repeat(48));
    for (row, wrapped) in [
        (
            "two signatures",
            xml.replace(signature, &format!("{signature}{signature}")),
        ),
        ("two payloads", xml.replace(payload, &format!("{evil}{payload}"))),
        (
            "a payload in the signature",
            xml.replace("</ds:KeyInfo>", &format!("{evil}</ds:KeyInfo>")),
        ),
        (
            "a payload beside the transforms",
            xml.replace("<ds:DigestMethod", &format!("{evil}<ds:DigestMethod")),
        ),
        ("a reference to a part", xml.replace("URI=\"\"", "URI=\"#part\"")),
        ("another algorithm", xml.replace("ecdsa-sha384", "ecdsa-sha1")),
        ("no transform", xml.replace("#enveloped-signature", "#base64")),
        ("a document type", format!("<!DOCTYPE x [<!ENTITY a 'b'>]>{xml}")),
        (
            "a comment in a value",
            xml.replace("DigestValue>", "DigestValue><!-- -->"),
        ),
        ("inside another", format!("<a>{xml}</a>")),
    ] {
        assert_ne!(wrapped, xml, "{row}");
        let result = Case {
            endorsements: vec![wrapped.into_bytes()],
            ..Case::default()
        }
        .judge();
        assert_refused(&result, Reason::RimMalformed, row);
    }
}

#[test]
fn m64_certificates_that_nvidia_revoked_or_put_on_hold() {
    use OcspSigner::*;
    use OcspStatus::*;
    use Reason::{OcspInvalid, OcspStale, Revoked as ReasonRevoked, RevokedHold};
    let word = |index, status, signer, window| GPU.ocsp(index, status, signer, window).unwrap();
    let rom = |status, signer, window| word(1, status, signer, window);
    let others = || [word(2, Good, Issuer, FRESH), word(3, Good, Issuer, FRESH)];
    let hold = GpuPolicy {
        allow_hold: true,
        ..GpuPolicy::default()
    };
    let strict = GpuPolicy::default;
    let verified = Verdict::Verified;
    let refused = Verdict::Refused;
    for (row, responses, gpu, verdict, reasons, checked) in [
        (
            "good",
            vec![rom(Good, Issuer, FRESH)],
            strict(),
            verified,
            &[][..],
            true,
        ),
        (
            "by a responder",
            vec![rom(Good, Responder, FRESH)],
            strict(),
            verified,
            &[],
            true,
        ),
        (
            "hold",
            vec![rom(Hold, Responder, FRESH)],
            strict(),
            refused,
            &[RevokedHold],
            true,
        ),
        (
            "hold, allowed",
            vec![rom(Hold, Responder, FRESH)],
            hold.clone(),
            verified,
            &[],
            true,
        ),
        (
            "revoked",
            vec![rom(Revoked, Issuer, FRESH)],
            hold.clone(),
            refused,
            &[ReasonRevoked],
            true,
        ),
        (
            "revoked, long ago",
            vec![rom(Revoked, Issuer, OLD)],
            strict(),
            refused,
            &[ReasonRevoked],
            true,
        ),
        (
            "good and revoked",
            vec![rom(Good, Issuer, FRESH), rom(Revoked, Issuer, FRESH)],
            strict(),
            refused,
            &[ReasonRevoked],
            true,
        ),
        (
            "unknown",
            vec![rom(Unknown, Issuer, FRESH)],
            strict(),
            verified,
            &[],
            false,
        ),
        (
            "old",
            vec![rom(Good, Issuer, OLD)],
            strict(),
            verified,
            &[],
            false,
        ),
        (
            "hold, over",
            vec![rom(Hold, Issuer, OLD)],
            strict(),
            verified,
            &[],
            false,
        ),
        (
            "no responder",
            vec![rom(Good, NotAResponder, FRESH)],
            strict(),
            refused,
            &[OcspInvalid],
            true,
        ),
    ] {
        let endorsements: Vec<Vec<u8>> = responses.into_iter().chain(others()).collect();
        let policy = Policy {
            gpu,
            ..Policy::default()
        };
        let result = Case {
            endorsements,
            policy,
            ..Case::default()
        }
        .judge();
        assert_eq!(
            (result.verdict, &result.reasons()[..]),
            (verdict, reasons),
            "{row}:\n{result}"
        );
        let unchecked = result
            .not_checked()
            .any(|(id, _)| id == "authenticate.revocation");
        assert_eq!(!unchecked, checked, "{row}:\n{result}");
    }
    // Part of the chain isn't all of it, and old words don't count where a word is needed.
    let policy = Policy {
        required: [Requirement::Revocation].into(),
        ..Policy::default()
    };
    for (row, endorsements, want) in [
        (
            "only the ROM's",
            vec![rom(Good, Issuer, FRESH)],
            Reason::CrlMissing,
        ),
        (
            "an old one",
            others().into_iter().chain([rom(Good, Issuer, OLD)]).collect(),
            OcspStale,
        ),
    ] {
        let result = Case {
            endorsements,
            policy: policy.clone(),
            ..Case::default()
        }
        .judge();
        assert_eq!(
            (result.verdict, result.reasons()),
            (Verdict::Indeterminate, vec![want]),
            "{row}:\n{result}"
        );
    }
    let json = serde_json::to_value(RevokedHold).unwrap();
    assert_eq!(json, "Revoked(hold)");
    // The manifests' signer, too.
    let mut endorsements = rims(&[driver(), vbios()]);
    endorsements.push(word(0, Revoked, Issuer, FRESH));
    assert_refused(
        &Case {
            endorsements,
            ..Case::default()
        }
        .judge(),
        ReasonRevoked,
        "the manifests' signer",
    );
}

#[test]
fn m64_a_revocation_list_says_as_much_as_a_response() {
    let window = ["260831000000Z", "260902000000Z"];
    let crl = |index, lists, forged| GPU.crl(index, lists, forged, window).unwrap();
    let good = || [2, 3].map(|index| crl(index, false, false));
    for (row, first, want, checked) in [
        ("not listed", crl(1, false, false), None, true),
        ("listed", crl(1, true, false), Some(Reason::Revoked), true),
        ("forged", crl(1, false, true), Some(Reason::OcspInvalid), true),
        (
            "old",
            GPU.crl(1, false, false, ["260801000000Z", "260802000000Z"])
                .unwrap(),
            None,
            false,
        ),
    ] {
        let endorsements = [first].into_iter().chain(good()).collect();
        let case = Case {
            endorsements,
            ..Case::default()
        };
        let result = case.judge();
        assert_eq!(
            result.reasons(),
            want.into_iter().collect::<Vec<_>>(),
            "{row}:\n{result}"
        );
        let unchecked = result
            .not_checked()
            .any(|(id, _)| id == "authenticate.revocation");
        assert_eq!(!unchecked, checked, "{row}:\n{result}");
    }
}

#[test]
fn m65_broken_chains() {
    let report = read("gh100-nvtrust-hopper-c438e7/report.bin");
    for case in 2..=4 {
        let chain = read(&format!("trustee/hopper_cert_chain_case{case}.txt"));
        let result = recorded(&report, &endorsements(&[&chain]), &Policy::default());
        assert_refused(&result, Reason::ChainInvalid, &format!("case {case}"));
    }
    let none = recorded(&report, &Endorsements::none(), &Policy::default());
    assert_eq!(
        (none.verdict, none.reasons()),
        (Verdict::Indeterminate, vec![Reason::EndorsementsMissing])
    );
    // A chain that is whole and ends at a root that nobody named.
    let evidence = GpuEvidence {
        report: GPU.report(&GpuFacts::default()).unwrap(),
        certificates: GPU.chain(),
        stated: Stated::default(),
    };
    let evidence = AnyEvidence::Gpu(vec![evidence]);
    let result = verify_any(
        &evidence,
        &Endorsements::none(),
        &Roots::pinned(),
        &Policy::default(),
        AT,
    );
    assert_eq!(
        (result.reasons(), result.trust),
        (vec![Reason::UntrustedRoot], Trust::None)
    );
    // Before its certificates, and after.
    for (at, want) in [
        (0, Reason::CertificateNotYetValid),
        (4_102_444_800, Reason::CertificateExpired),
    ] {
        assert_refused(
            &Case {
                at,
                ..Case::default()
            }
            .judge(),
            want,
            "dates",
        );
    }
}
