//! What a policy asks of GPU evidence, and what malformed evidence is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod nvidia_case;

use attestation::nvidia::{CcMode, GpuEvidence, GpuPolicy, Stated, Version};
use attestation::sim::{Gpu, GpuFacts, RimFacts};
use attestation::{AnyEvidence, Endorsements, Policy, Reason, Requirement, Roots, Verdict, verify_any};
use nvidia_case::{AT, Case, GPU, driver, read, rims, vbios};

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
            "a switch's report by a GPU",
            Case {
                facts: GpuFacts::default().with_field(3, None),
                ..Case::default()
            },
            Some(ProductMismatch),
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
