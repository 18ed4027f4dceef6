//! What must be refused of GPU evidence, and with which reason: the rows M60–M65 of the collection that the vectors come
//! from, and policies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::LazyLock;

use attestation::nvidia::{CcMode, GpuEvidence, GpuPolicy, Stated, Version};
use attestation::sim::{Gpu, GpuFacts, OcspSigner, OcspStatus, RimFacts};
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Policy, Reason, Requirement, Roots, Trust, Verdict,
    verify_any,
};

/// 2026-09-01.
const AT: u64 = 1_788_220_800;
/// A response's window around [`AT`].
const FRESH: [&str; 2] = ["20260831000000Z", "20260902000000Z"];
const OLD: [&str; 2] = ["20260801000000Z", "20260802000000Z"];

static GPU: LazyLock<Gpu> = LazyLock::new(|| Gpu::create(None).unwrap());

fn read(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/gpu");
    std::fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn endorsements(files: &[&[u8]]) -> Endorsements {
    let mut given = Endorsements::none();
    for file in files {
        given.add(file).unwrap();
    }
    given
}

fn recorded(report: &[u8], endorsements: &Endorsements, policy: &Policy) -> AttestationResult {
    let evidence = AnyEvidence::Gpu(vec![GpuEvidence {
        report: report.to_vec(),
        ..GpuEvidence::default()
    }]);
    verify_any(&evidence, endorsements, &Roots::pinned(), policy, AT)
}

#[track_caller]
fn assert_refused(result: &AttestationResult, reason: Reason, row: &str) {
    assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
    assert!(
        result.reasons().contains(&reason),
        "{row}: wanted {reason:?}:\n{result}"
    );
}

/// Everything about a simulated device that a test may change.
struct Case {
    gpu: &'static Gpu,
    facts: GpuFacts,
    policy: Policy,
    endorsements: Vec<Vec<u8>>,
    stated: Stated,
    at: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            gpu: &GPU,
            facts: GpuFacts::default(),
            policy: Policy::default(),
            endorsements: Vec::new(),
            stated: Stated::default(),
            at: AT,
        }
    }
}

impl Case {
    fn judge(&self) -> AttestationResult {
        let report = self.gpu.report(&self.facts).unwrap();
        let certificates = self.gpu.chain();
        let evidence = GpuEvidence {
            report,
            certificates,
            stated: self.stated.clone(),
        };
        let files: Vec<&[u8]> = self.endorsements.iter().map(Vec::as_slice).collect();
        let roots = Roots::pinned().with_test_root(self.gpu.root()).unwrap();
        verify_any(
            &AnyEvidence::Gpu(vec![evidence]),
            &endorsements(&files),
            &roots,
            &self.policy,
            self.at,
        )
    }

    fn with_gpu_policy(gpu: GpuPolicy) -> Self {
        Self {
            policy: Policy {
                gpu,
                ..Policy::default()
            },
            ..Self::default()
        }
    }
}

/// A manifest of the default device's driver, in which indexes 1 and 2 count.
fn driver() -> RimFacts {
    RimFacts {
        product: "GH100".to_owned(),
        version: "590.12".to_owned(),
        measurements: vec![
            (0, false, vec![vec![0xee; 48]]),
            (1, true, vec![vec![1; 48]]),
            (2, true, vec![vec![0xee; 48], vec![2; 48]]),
        ],
    }
}

fn vbios() -> RimFacts {
    RimFacts {
        version: "96.00.9F.00.01".to_owned(),
        measurements: vec![(3, true, vec![vec![3; 48]])],
        ..driver()
    }
}

fn rims(rims: &[RimFacts]) -> Vec<Vec<u8>> {
    rims.iter()
        .map(|rim| GPU.rim(rim).unwrap().into_bytes())
        .collect()
}

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

#[test]
fn what_the_policy_asks_for_is_asked() {
    use Reason::*;
    let version = |text| Version::parse(text).unwrap();
    let blackwell = |debug| -> &'static Gpu { Box::leak(Box::new(Gpu::create(Some(debug)).unwrap())) };
    let (quiet, debugged) = (blackwell(false), blackwell(true));
    let with = |gpu| Case::with_gpu_policy(gpu);
    let default = GpuPolicy::default;
    let modes = |mode: CcMode| GpuPolicy {
        cc_modes: Some([mode].into()),
        ..default()
    };
    let no_mode = GpuFacts::default().with_field(34, None);
    for (row, case, want) in [
        ("the default", Case::default(), None),
        (
            "the driver",
            with(GpuPolicy {
                min_driver: Some(version("590.12")),
                ..default()
            }),
            None,
        ),
        (
            "a newer driver",
            with(GpuPolicy {
                min_driver: Some(version("590.13")),
                ..default()
            }),
            Some(TcbTooLow),
        ),
        ("the mode", with(modes(CcMode::Spt)), None),
        ("another mode", with(modes(CcMode::Mpt)), Some(CcModeMismatch)),
        (
            "no mode said",
            Case {
                facts: no_mode,
                ..with(modes(CcMode::Spt))
            },
            Some(CcModeMismatch),
        ),
        (
            "the device",
            with(GpuPolicy {
                devices: Some(["5".to_owned()].into()),
                ..default()
            }),
            None,
        ),
        (
            "another device",
            with(GpuPolicy {
                devices: Some(["6".to_owned()].into()),
                ..default()
            }),
            Some(ChipNotAllowed),
        ),
        (
            "firmware without debugging",
            Case {
                gpu: quiet,
                ..Case::default()
            },
            None,
        ),
        (
            "firmware with debugging",
            Case {
                gpu: debugged,
                ..Case::default()
            },
            Some(DebugAllowed),
        ),
        (
            "firmware with debugging, allowed",
            Case {
                gpu: debugged,
                ..with(GpuPolicy {
                    allow_debug: true,
                    ..default()
                })
            },
            None,
        ),
    ] {
        let result = case.judge();
        assert_eq!(
            result.reasons(),
            want.into_iter().collect::<Vec<_>>(),
            "{row}:\n{result}"
        );
    }
}

#[test]
fn one_device_isnt_two() {
    let evidence = |facts: &GpuFacts| GpuEvidence {
        report: GPU.report(facts).unwrap(),
        certificates: GPU.chain(),
        stated: Stated::default(),
    };
    let again = GpuFacts {
        nonce: [8; 32],
        ..GpuFacts::default()
    };
    let twice = AnyEvidence::Gpu(vec![evidence(&GpuFacts::default()), evidence(&again)]);
    let roots = Roots::pinned().with_test_root(GPU.root()).unwrap();
    let judge = |gpus| {
        let policy = Policy {
            gpus,
            ..Policy::default()
        };
        verify_any(&twice, &Endorsements::none(), &roots, &policy, AT)
    };
    let counted = judge(Some(2));
    assert_eq!(counted.reasons(), [Reason::DuplicateDevice], "{counted}");
    // In a list that nobody counts it is named.
    let list = judge(None);
    assert!(list.is_verified(), "{list}");
    assert!(
        list.warnings.iter().any(|warning| warning.contains("again")),
        "{list}"
    );
}

#[test]
fn the_video_decoders_firmware_counts_only_while_it_is_in_use() {
    let rim = RimFacts {
        measurements: vec![(35, true, vec![vec![0xaa; 48]])],
        ..driver()
    };
    for (status, want) in [(0x55, Verdict::Verified), (0xaa, Verdict::Refused)] {
        let facts = GpuFacts::default().with_field(11, Some(&[status]));
        let result = Case {
            facts,
            endorsements: rims(std::slice::from_ref(&rim)),
            ..Case::default()
        }
        .judge();
        assert_eq!(result.verdict, want, "{status:#x}:\n{result}");
    }
}

#[test]
fn what_is_required_and_cant_be_checked_is_missing() {
    use Requirement::*;
    let judge = |required: Requirement, endorsements| {
        let policy = Policy {
            required: [required].into(),
            ..Policy::default()
        };
        Case {
            policy,
            endorsements,
            ..Case::default()
        }
        .judge()
    };
    for (required, endorsements, want) in [
        (Freshness, Vec::new(), vec![Reason::ReferenceMissing]),
        (Revocation, Vec::new(), vec![Reason::CrlMissing]),
        (Tcb, Vec::new(), vec![Reason::ReferenceMissing]),
        (Measurement, Vec::new(), vec![Reason::ReferenceMissing]),
        (Measurement, rims(&[driver()]), vec![Reason::ReferenceMissing]),
        (Measurement, rims(&[vbios()]), vec![Reason::ReferenceMissing]),
        (Measurement, rims(&[driver(), vbios()]), vec![]),
    ] {
        let result = judge(required, endorsements);
        assert_eq!(result.reasons(), want, "{required:?}:\n{result}");
        assert_eq!(result.is_verified(), want.is_empty(), "{required:?}");
    }
}

#[test]
fn malformed_reports_are_refused_for_what_is_wrong() {
    let good = GPU.report(&GpuFacts::default()).unwrap();
    let judge = |report: Vec<u8>| {
        let evidence = GpuEvidence {
            report,
            certificates: GPU.chain(),
            stated: Stated::default(),
        };
        let roots = Roots::pinned().with_test_root(GPU.root()).unwrap();
        let evidence = AnyEvidence::Gpu(vec![evidence]);
        verify_any(&evidence, &Endorsements::none(), &roots, &Policy::default(), AT)
    };
    let with = |at: usize, value: u8| {
        let mut report = good.clone();
        report[at] = value;
        report
    };
    for (row, report) in [
        ("nothing", Vec::new()),
        ("another SPDM version", with(0, 0x12)),
        ("no signature asked for", with(2, 0)),
        ("one measurement asked for", with(3, 1)),
        ("slot 8", with(36, 8)),
        ("another slot in the answer", with(40, 1)),
        ("an error for an answer", with(38, 0x7f)),
        ("no blocks", with(41, 0)),
        ("a block less", with(41, 63)),
        ("a record too long", with(44, 0xff)),
        ("index 0", with(45, 0)),
        ("another specification", with(46, 2)),
        ("a size too small", with(47, 2)),
        ("a byte behind it", [&good[..], &[1]].concat()),
        ("two bytes behind it", [&good[..], &[0, 0]].concat()),
        ("64 KiB of zeros behind it", [&good[..], &[0; 65536]].concat()),
    ] {
        let result = judge(report);
        assert_eq!(result.reasons(), [Reason::Malformed], "{row}:\n{result}");
    }
    let facts = GpuFacts::default();
    let field = |kind, value: &[u8]| facts.clone().with_field(kind, Some(value));
    let mut twice = facts.clone();
    twice.opaque.push((3, b"1".to_vec()));
    for (row, facts, want) in [
        ("a field twice", twice, Reason::Malformed),
        (
            "no VBIOS version",
            facts.clone().with_field(6, None),
            Reason::Malformed,
        ),
        (
            "a driver version that isn't text",
            field(3, &[0xff]),
            Reason::Malformed,
        ),
        ("a decoder in no known state", field(11, &[0]), Reason::Malformed),
        ("a firmware id of SHA-256", field(20, &[0; 32]), Reason::Malformed),
        ("a mode that isn't known", field(36, &[9, 0]), Reason::Malformed),
        (
            "opaque data from the future",
            field(34, &[2, 0]),
            Reason::UnsupportedVersion,
        ),
    ] {
        assert_eq!(judge(GPU.report(&facts).unwrap()).reasons(), [want], "{row}");
    }
    // A field that nobody knows is kept.
    assert!(judge(GPU.report(&field(999, b"new")).unwrap()).is_verified());
}

#[test]
fn files_that_arent_evidence_say_what_is_wrong() {
    let list: serde_json::Value = serde_json::from_slice(&read("json/hopper_evidence.json")).unwrap();
    let item = list[0].to_string();
    for (row, file) in [
        ("no devices", r#"{"evidence_list": []}"#.to_owned()),
        ("no base64", item.replace("\"EeAB", "\"*eAB")),
        (
            "no certificates",
            r#"{"evidence": "EeAB", "certificate": "AAAA"}"#.to_owned(),
        ),
        ("a field twice", item.replacen('{', r#"{"evidence": "EeAB","#, 1)),
        ("cut off", item[..item.len() - 10].to_owned()),
        (
            "too many devices",
            format!("[{}]", vec![item.clone(); 65].join(",")),
        ),
    ] {
        assert!(AnyEvidence::parse(file.as_bytes()).is_err(), "{row}");
    }
}
