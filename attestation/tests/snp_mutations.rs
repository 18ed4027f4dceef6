//! What must be refused, and with which reason: the rows M01–M25 of the collection that the vectors come from. Rows
//! about vectors that aren't here use the simulated platform or the nearest recorded one, and say so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::LazyLock;

use attestation::sim::{ASK_SERIAL, Launch, Platform};
use attestation::snp::{Product, TcbFloor, TcbFloors, VekKind};
use attestation::{
    AttestationResult, CpuEvidence, Endorsements, Evidence, GuestKeys, Outcome, Policy, Reason, Requirement,
    Roots, Trust, Verdict, verify,
};

const AT: u64 = 1_788_220_800; // 2026-09-01, inside AMD's recorded CRLs
const AT_VLEK: u64 = 1_748_736_000; // 2025-06-01
/// Where the signed part ends.
const SIGNED: usize = 0x2a0;

/// One simulated chip for all tests, kept between processes: making its RSA keys takes seconds.
static SIM: LazyLock<Platform> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-chip.json");
    let kept = || serde_json::from_slice(&std::fs::read(&path).ok()?).ok();
    if let Some(platform) = kept().and_then(|parts| Platform::from_parts(parts).ok()) {
        return platform;
    }
    let platform = Platform::create().unwrap();
    // Whole or not at all: other processes may be doing the same.
    let new = path.with_extension(std::process::id().to_string());
    std::fs::write(&new, serde_json::to_vec(&platform.to_parts()).unwrap()).unwrap();
    std::fs::rename(&new, &path).unwrap();
    platform
});

fn read(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/snp");
    std::fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn report(name: &str) -> Vec<u8> {
    read(&format!("{name}/report.bin"))
}

fn evidence(report: Vec<u8>, certificates: &[&str]) -> Evidence {
    let certificates = certificates.iter().map(|path| read(path)).collect();
    Evidence {
        cpu: CpuEvidence::SevSnp { report, certificates },
        guest_keys: GuestKeys::default(),
    }
}

fn judge(report: Vec<u8>, certificates: &[&str]) -> AttestationResult {
    judge_by(report, certificates, &Policy::default(), AT)
}

fn judge_by(report: Vec<u8>, certificates: &[&str], policy: &Policy, at: u64) -> AttestationResult {
    verify(
        &evidence(report, certificates),
        &Endorsements::none(),
        &Roots::pinned(),
        policy,
        at,
    )
}

#[track_caller]
fn assert_refused(result: &AttestationResult, reason: Reason, row: &str) {
    assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
    assert!(
        result.reasons().contains(&reason),
        "{row}: wanted {reason:?}:\n{result}"
    );
}

fn sim_launch() -> Launch {
    Launch {
        measurement: [1; 48],
        host_data: [2; 32],
        policy: 0x3_0000,
    }
}

/// A report of the simulated chip, changed and signed again: what only a chip could say.
fn sim_judge(change: impl FnOnce(&mut Vec<u8>), policy: &Policy) -> AttestationResult {
    let platform = &*SIM;
    let mut report = platform.report(&sim_launch(), &[3; 64]).unwrap();
    change(&mut report);
    platform.sign(&mut report).unwrap();
    let evidence = Evidence {
        cpu: CpuEvidence::SevSnp {
            report,
            certificates: platform.certificates(),
        },
        guest_keys: GuestKeys::default(),
    };
    let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    verify(&evidence, &Endorsements::none(), &roots, policy, AT)
}

#[test]
fn m01_a_flip_of_any_signed_bit_is_noticed() {
    for name in ["milan-v3-msft", "genoa-v3-msft", "turin-v5-msft"] {
        let good = report(name);
        let vek = format!("{name}/vek.der");
        for at in 0..SIGNED {
            // All bits of the bytes that others re-encode; elsewhere one, another for each byte.
            let subtle = [0x38..0x40, 0x180..0x188, 0x1e0..0x1e8, 0x1f0..0x1f8]
                .iter()
                .any(|r| r.contains(&at));
            for bit in if subtle { 0..8 } else { at % 8..at % 8 + 1 } {
                let mut flipped = good.clone();
                flipped[at] ^= 1 << bit;
                let result = judge(flipped, &[&vek]);
                assert_refused(
                    &result,
                    Reason::SignatureInvalid,
                    &format!("{name} byte {at:#x} bit {bit}"),
                );
            }
        }
    }
}

#[test]
fn m02_bytes_that_nothing_signs_must_be_zero() {
    for at in (0x2d0..0x2e8).chain(0x318..0x4a0).step_by(5) {
        let mut bytes = report("milan-v3-msft");
        bytes[at] ^= 0x10;
        assert_refused(
            &judge(bytes, &["milan-v3-msft/vek.der"]),
            Reason::Malformed,
            &format!("{at:#x}"),
        );
    }
}

#[test]
fn m03_signatures_outside_the_range_are_refused_and_the_twin_is_valid() {
    // The order of P-384, little-endian.
    let order = hex::decode(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    )
    .unwrap();
    let order: Vec<u8> = order.into_iter().rev().collect();
    for offset in [0x2a0, 0x2e8] {
        for (row, number) in [
            ("0", vec![0; 48]),
            ("n", order.clone()),
            ("all ones", vec![0xff; 48]),
        ] {
            let mut bytes = report("milan-v3-msft");
            bytes[offset..offset + 48].copy_from_slice(&number);
            let result = judge(bytes, &["milan-v3-msft/vek.der"]);
            assert_refused(
                &result,
                Reason::SignatureInvalid,
                &format!("{row} at {offset:#x}"),
            );
        }
    }
    // s → n − s is valid ECDSA: two files, one report. So a hash of evidence is no identity.
    let mut bytes = report("milan-v3-msft");
    let mut borrow = false;
    for n in 0..48 {
        let (value, under) = order[n].overflowing_sub(bytes[0x2e8 + n]);
        let (value, under_again) = value.overflowing_sub(borrow.into());
        bytes[0x2e8 + n] = value;
        borrow = under || under_again;
    }
    let result = judge(bytes, &["milan-v3-msft/vek.der"]);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn m04_other_lengths_are_malformed() {
    let good = report("milan-v3-msft");
    let mut long = good.clone();
    long.push(0);
    for bytes in [good[..1183].to_vec(), long, Vec::new(), vec![0; 8192]] {
        let row = format!("{} bytes", bytes.len());
        assert_refused(&judge(bytes, &["milan-v3-msft/vek.der"]), Reason::Malformed, &row);
    }
}

#[test]
fn m05_m06_unknown_versions_and_algorithms_are_refused() {
    for version in [0u32, 1, 4, 6, 255, u32::MAX] {
        let mut bytes = report("milan-v3-msft");
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        let result = judge(bytes, &["milan-v3-msft/vek.der"]);
        assert_refused(&result, Reason::UnsupportedVersion, &version.to_string());
    }
    for algorithm in [0u32, 2, 0x101] {
        let mut bytes = report("milan-v3-msft");
        bytes[0x34..0x38].copy_from_slice(&algorithm.to_le_bytes());
        let result = judge(bytes, &["milan-v3-msft/vek.der"]);
        assert_refused(&result, Reason::UnsupportedAlgorithm, &algorithm.to_string());
    }
    // Signed by the chip, and still unknown.
    let result = sim_judge(|report| report[0] = 6, &Policy::default());
    assert_eq!(result.reasons(), [Reason::UnsupportedVersion], "{result}");
}

#[test]
fn m07_m08_debug_and_vmpl_are_the_policys_to_allow() {
    let debug = Policy {
        allow_debug: true,
        ..Policy::default()
    };
    let name = "milan-v2-google-DEBUG";
    let result = judge_by(report(name), &[&format!("{name}/vek.der")], &debug, AT);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
    let vmpl = Policy {
        max_vmpl: 1,
        ..Policy::default()
    };
    for (name, at) in [
        ("milan-v2-gcp-vmpl1", AT),
        ("milan-v3-aws-vlek-trustee-vmpl1", AT_VLEK),
    ] {
        let vek = format!("{name}/vek.der");
        assert_refused(
            &judge_by(report(name), &[&vek], &Policy::default(), at),
            Reason::VmplTooLow,
            name,
        );
        let result = judge_by(report(name), &[&vek], &vmpl, at);
        assert_eq!(result.verdict, Verdict::Verified, "{name}:\n{result}");
    }
    // A report that the host asked for has all ones.
    let result = sim_judge(|report| report[0x30..0x34].fill(0xff), &vmpl);
    assert_eq!(result.reasons(), [Reason::VmplTooLow]);
}

#[test]
fn m09_m10_another_chips_or_another_tcbs_key_is_refused() {
    let result = judge(report("milan-v3-msft"), &["milan-v3-azure-sidecar/vek.der"]);
    assert_refused(&result, Reason::ChipIdMismatch, "another chip");
    assert_refused(&result, Reason::SignatureInvalid, "another chip");
    let name = "neg-azure-wrong-tcb-vcek";
    let result = judge(report(name), &[&format!("{name}/vek.der")]);
    assert_refused(&result, Reason::TcbMismatch, name);
    assert_refused(&result, Reason::SignatureInvalid, name);
}

#[test]
fn m11_m15_intermediates_that_dont_fit_are_refused() {
    for (name, others, at) in [
        ("turin-v5-msft", ["ca/milan/ask.der", "ca/milan/asvk.der"], AT),
        (
            "milan-v3-aws-vlek-trustee-vmpl1",
            ["ca/milan/ask.der", "ca/milan/ark.der"],
            AT_VLEK,
        ),
    ] {
        let vek = format!("{name}/vek.der");
        let policy = Policy {
            max_vmpl: 1,
            ..Policy::default()
        };
        let result = judge_by(report(name), &[&vek, others[0], others[1]], &policy, at);
        assert_eq!(result.reasons(), [Reason::ChainInvalid], "{name}:\n{result}");
        assert_eq!(result.trust, Trust::None);
    }
    // Fitting ones among others, in any order, are found.
    let all = [
        "ca/milan/ask.der",
        "ca/turin/asvk.der",
        "turin-v5-msft/vek.der",
        "ca/turin/ask.der",
        "ca/milan/ark.der",
    ];
    let result = judge(report("turin-v5-msft"), &all);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn m12_a_turin_report_is_read_in_turins_layout() {
    let result = judge(report("turin-v5-msft"), &["turin-v5-msft/vek.der"]);
    assert_eq!(result.claims["tcb"]["reported"]["fmc"], 1);
    assert_eq!(result.claims["tcb"]["reported"]["snp"], 4);
}

#[test]
fn m13_m14_a_vlek_lives_one_year_and_names_no_chip() {
    let name = "milan-v3-aws-vlek-trustee-vmpl1";
    let vek = format!("{name}/vek.der");
    let policy = Policy {
        max_vmpl: 1,
        ..Policy::default()
    };
    for (at, want) in [
        (1_733_868_860, Some(Reason::CertificateNotYetValid)), // one second early
        (1_733_868_861, None),
        (1_765_404_861, None),
        (1_765_404_862, Some(Reason::CertificateExpired)),
    ] {
        let result = judge_by(report(name), &[&vek], &policy, at);
        assert_eq!(
            result.reasons(),
            want.into_iter().collect::<Vec<_>>(),
            "{at}:\n{result}"
        );
    }
    let result = judge_by(report(name), &[&vek], &policy, AT_VLEK);
    assert_eq!(result.claims["chip_id"], "00".repeat(64));
    // A VCEK must name the chip: a masked id is only for VLEKs.
    let result = sim_judge(|report| report[0x1a0..0x1e0].fill(0), &Policy::default());
    assert_eq!(result.reasons(), [Reason::ChipIdMismatch]);
}

#[test]
fn m16_the_kind_of_key_must_be_what_report_certificate_and_policy_say() {
    let name = "milan-v3-aws-vlek-trustee-vmpl1";
    let policy = Policy {
        max_vmpl: 1,
        vek: Some(VekKind::Vcek),
        ..Policy::default()
    };
    let result = judge_by(report(name), &[&format!("{name}/vek.der")], &policy, AT_VLEK);
    assert_eq!(result.reasons(), [Reason::VekKindMismatch]);
    let says_vlek = sim_judge(|report| report[0x48] = 1 << 2, &Policy::default());
    assert_eq!(says_vlek.reasons(), [Reason::VekKindMismatch]);
    let unsigned = sim_judge(|report| report[0x48] = 7 << 2, &Policy::default());
    assert_eq!(unsigned.reasons(), [Reason::VekKindMismatch]);
}

fn with_crl(crl: &[u8], policy: &Policy, at: u64) -> AttestationResult {
    let mut endorsements = Endorsements::none();
    endorsements.add(crl).unwrap();
    let evidence = evidence(report("genoa-v3-msft"), &["genoa-v3-msft/vek.der"]);
    verify(&evidence, &endorsements, &Roots::pinned(), policy, at)
}

#[test]
fn m17_m18_a_crl_counts_inside_its_window_and_under_its_own_root() {
    let crl = read("ca/genoa/vcek-crl.der");
    let required = Policy {
        required: [Requirement::Revocation].into(),
        ..Policy::default()
    };
    let revocation = |result: &AttestationResult| {
        result
            .checks
            .iter()
            .find(|check| check.id == "authenticate.revocation")
            .unwrap()
            .outcome
            .clone()
    };
    let fresh = with_crl(&crl, &required, AT);
    assert_eq!(
        (fresh.verdict, revocation(&fresh)),
        (Verdict::Verified, Outcome::Passed),
        "{fresh}"
    );
    for (row, at, reason) in [
        ("after", 1_791_158_400, Reason::CrlStale),      // 2026-10-05
        ("at its end", 1_791_072_000, Reason::CrlStale), // exclusive
        ("before", 1_787_148_540, Reason::CrlStale),
    ] {
        let asked = with_crl(&crl, &required, at);
        assert_eq!(
            (asked.verdict, asked.reasons()),
            (Verdict::Indeterminate, vec![reason]),
            "{row}:\n{asked}"
        );
        let unasked = with_crl(&crl, &Policy::default(), at);
        assert_eq!(unasked.verdict, Verdict::Verified, "{row}: counts as not given");
        assert!(
            unasked
                .warnings
                .iter()
                .any(|warning| warning.contains("CrlStale")),
            "{row}: but is named"
        );
    }
    // A host's certificate table may hold the list, too: who brings it doesn't matter, it is signed.
    let table = ["genoa-v3-msft/vek.der", "ca/genoa/vcek-crl.der"];
    let brought = judge_by(report("genoa-v3-msft"), &table, &required, AT);
    assert_eq!(brought.verdict, Verdict::Verified, "{brought}");
    for product in ["milan", "turin"] {
        let other = read(&format!("ca/{product}/vcek-crl.der"));
        let alone = with_crl(&other, &Policy::default(), AT);
        assert_refused(&alone, Reason::CrlInvalid, "another product's");
        let mut both = Endorsements::none();
        both.add(&other).unwrap();
        both.add(&crl).unwrap();
        let good = evidence(report("genoa-v3-msft"), &["genoa-v3-msft/vek.der"]);
        let beside = verify(&good, &both, &Roots::pinned(), &required, AT);
        assert_eq!(
            beside.verdict,
            Verdict::Verified,
            "beside the right one:\n{beside}"
        );
    }
    // A maker of something else isn't meant.
    let intel = read("../collateral/crl-Intel-SGX-Root-CA-2024-03-20-6b9fff78ab4a0316.der");
    assert_eq!(
        with_crl(&intel, &Policy::default(), AT).verdict,
        Verdict::Verified
    );
    let mut forged = crl.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_refused(
        &with_crl(&forged, &Policy::default(), AT),
        Reason::CrlInvalid,
        "flipped signature",
    );
    let none = judge_by(report("genoa-v3-msft"), &["genoa-v3-msft/vek.der"], &required, AT);
    assert_eq!(
        (none.verdict, none.reasons()),
        (Verdict::Indeterminate, vec![Reason::CrlMissing])
    );
}

#[test]
fn m19_a_revoked_intermediate_is_refused() {
    let (platform, issuer) = Platform::create_with_crls().unwrap();
    let evidence = Evidence {
        cpu: CpuEvidence::SevSnp {
            report: platform.report(&sim_launch(), &[3; 64]).unwrap(),
            certificates: platform.certificates(),
        },
        guest_keys: GuestKeys::default(),
    };
    let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    let judge = |revoked: &[u32], from: &str, to: &str| {
        let mut endorsements = Endorsements::none();
        endorsements.add(&issuer.crl(revoked, from, to).unwrap()).unwrap();
        verify(&evidence, &endorsements, &roots, &Policy::default(), AT)
    };
    let (from, to) = ("260819000000Z", "261004000000Z");
    assert_eq!(judge(&[], from, to).verdict, Verdict::Verified);
    assert_eq!(judge(&[ASK_SERIAL + 1, 0], from, to).verdict, Verdict::Verified);
    assert_refused(&judge(&[7, ASK_SERIAL], from, to), Reason::CrlRevoked, "fresh");
    let other = Roots::pinned().with_test_root(SIM.root()).unwrap();
    let other = verify(&evidence, &Endorsements::none(), &other, &Policy::default(), AT);
    assert_eq!(
        other.reasons(),
        [Reason::UntrustedRoot],
        "another simulated platform's root"
    );
    // Revocation has no way back.
    assert_refused(
        &judge(&[ASK_SERIAL], "250101000000Z", "250201000000Z"),
        Reason::CrlRevoked,
        "stale",
    );
}

#[test]
fn m20_altered_certificates_break_the_chain() {
    for path in [
        "neg-vcek/test-vcek-invalid-new.der",
        "neg-vcek/test-vcek-invalid-legacy.der",
    ] {
        assert_refused(
            &judge(report("milan-v3-msft"), &[path]),
            Reason::ChainInvalid,
            path,
        );
    }
}

#[test]
fn m21_flips_in_a_certificate_are_refused_and_never_panic() {
    let good = read("milan-v3-msft/vek.der");
    for at in 0..good.len() {
        let mut certificate = good.clone();
        certificate[at] ^= 1 << (at % 8);
        let cpu = CpuEvidence::SevSnp {
            report: report("milan-v3-msft"),
            certificates: vec![certificate],
        };
        let evidence = Evidence {
            cpu,
            guest_keys: GuestKeys::default(),
        };
        let result = verify(
            &evidence,
            &Endorsements::none(),
            &Roots::pinned(),
            &Policy::default(),
            AT,
        );
        assert_ne!(result.verdict, Verdict::Verified, "byte {at:#x}:\n{result}");
    }
}

#[test]
fn m22_m23_reference_values_are_compared_whole() {
    let mut data = [3; 64];
    data[63] = 4;
    let default = Policy::default;
    for (policy, want) in [
        (
            Policy {
                report_data: Some([3; 64]),
                ..default()
            },
            None,
        ),
        (
            Policy {
                report_data: Some(data),
                ..default()
            },
            Some(Reason::ReportDataMismatch),
        ),
        (
            Policy {
                host_data: Some([2; 32]),
                ..default()
            },
            None,
        ),
        (
            Policy {
                host_data: Some([0; 32]),
                ..default()
            },
            Some(Reason::HostDataMismatch),
        ),
        (
            Policy {
                allowed_measurements: Some(vec![[9; 48], [1; 48]]),
                ..default()
            },
            None,
        ),
        (
            Policy {
                allowed_measurements: Some(vec![[9; 48]]),
                ..default()
            },
            Some(Reason::MeasurementMismatch),
        ),
        (
            Policy {
                allowed_measurements: Some(vec![]),
                ..default()
            },
            Some(Reason::MeasurementMismatch),
        ),
        (
            Policy {
                family_id: Some([1; 16]),
                ..default()
            },
            Some(Reason::FamilyIdMismatch),
        ),
        (
            Policy {
                image_id: Some([1; 16]),
                ..default()
            },
            Some(Reason::ImageIdMismatch),
        ),
        (
            Policy {
                allowed_id_keys: Some(vec![[0; 48]]),
                ..default()
            },
            None,
        ),
        (
            Policy {
                allowed_id_keys: Some(vec![[1; 48]]),
                ..default()
            },
            Some(Reason::IdKeyDigestMismatch),
        ),
        (
            Policy {
                allowed_author_keys: Some(vec![[1; 48]]),
                ..default()
            },
            Some(Reason::AuthorKeyDigestMismatch),
        ),
        (
            Policy {
                allowed_chips: Some(vec![[1; 64]]),
                ..default()
            },
            Some(Reason::ChipNotAllowed),
        ),
        (
            Policy {
                refused_products: [Product::Milan].into(),
                ..default()
            },
            None,
        ),
        (
            Policy {
                refused_products: [Product::Genoa].into(),
                ..default()
            },
            Some(Reason::ProductRefused),
        ),
        (
            Policy {
                min_firmware: Some([1, 55, 0]),
                ..default()
            },
            None,
        ),
        (
            Policy {
                min_firmware: Some([1, 56, 0]),
                ..default()
            },
            Some(Reason::FirmwareTooOld),
        ),
        (
            Policy {
                required_mitigations: 1,
                ..default()
            },
            Some(Reason::MitigationMissing),
        ),
        (
            Policy {
                required_platform_bits: 1 << 5,
                ..default()
            },
            None,
        ),
        (
            Policy {
                forbidden_platform_bits: 1,
                ..default()
            },
            Some(Reason::PlatformInfoMismatch),
        ),
        (
            Policy {
                required_policy_bits: 1 << 24,
                ..default()
            },
            Some(Reason::PolicyBitsMissing),
        ),
    ] {
        let result = sim_judge(|_| {}, &policy);
        assert_eq!(
            result.reasons(),
            want.into_iter().collect::<Vec<_>>(),
            "{policy:?}:\n{result}"
        );
        assert_eq!(result.trust, Trust::TestRoot);
    }
    let migration = sim_judge(|report| report[10] |= 1 << 2, &Policy::default());
    assert_eq!(migration.reasons(), [Reason::MigrateMaAllowed]);
}

#[test]
fn every_fault_is_listed_not_only_the_first() {
    let policy = Policy {
        report_data: Some([0; 64]),
        host_data: Some([0; 32]),
        allowed_measurements: Some(vec![]),
        ..Policy::default()
    };
    let result = sim_judge(|report| report[10] |= 1 << 3, &policy);
    assert_eq!(
        result.reasons(),
        [
            Reason::ReportDataMismatch,
            Reason::HostDataMismatch,
            Reason::MeasurementMismatch,
            Reason::DebugAllowed
        ]
    );
    assert_eq!(result.failures().len(), 4);
}

#[test]
fn m24_tcb_floors_hold_for_each_part_and_each_version() {
    let floor = |part: &str, value: u8| {
        let mut floor = TcbFloor::default();
        *match part {
            "fmc" => &mut floor.fmc,
            "bootloader" => &mut floor.bootloader,
            "tee" => &mut floor.tee,
            "snp" => &mut floor.snp,
            _ => &mut floor.microcode,
        } = Some(value);
        floor
    };
    // The simulated chip has bootloader 10, tee 0, snp 23, microcode 84.
    for (part, exact) in [("bootloader", 10), ("tee", 0), ("snp", 23), ("microcode", 84)] {
        let judge = |floors| {
            sim_judge(
                |_| {},
                &Policy {
                    min_tcb: floors,
                    ..Policy::default()
                },
            )
        };
        assert_eq!(
            judge(TcbFloors::all(floor(part, exact))).reasons(),
            [],
            "{part} at its floor"
        );
        let above = floor(part, exact + 1);
        for floors in [
            TcbFloors {
                reported: above,
                ..TcbFloors::default()
            },
            TcbFloors {
                committed: above,
                ..TcbFloors::default()
            },
            TcbFloors {
                launch: above,
                ..TcbFloors::default()
            },
        ] {
            let result = judge(floors);
            assert_eq!(result.reasons(), [Reason::TcbTooLow], "{part}");
            assert!(result.failures()[0].contains(part), "{}", result.failures()[0]);
        }
    }
    let fmc = Policy {
        min_tcb: TcbFloors::all(floor("fmc", 0)),
        ..Policy::default()
    };
    assert_eq!(
        sim_judge(|_| {}, &fmc).reasons(),
        [Reason::TcbTooLow],
        "Genoa has no FMC"
    );
}

#[test]
fn m25_tcb_versions_above_the_current_one_contradict_it() {
    // current_tcb's microcode down by one: reported and committed are above it.
    let lower = |report: &mut Vec<u8>| report[0x3f] -= 1;
    assert_eq!(
        sim_judge(lower, &Policy::default()).reasons(),
        [Reason::InconsistentTcb]
    );
    let allowed = Policy {
        allow_inconsistent_tcb: true,
        ..Policy::default()
    };
    assert_eq!(sim_judge(lower, &allowed).verdict, Verdict::Verified);
}

#[test]
fn a_test_root_is_believed_only_by_name_and_taints_the_result() {
    let platform = &*SIM;
    let evidence = Evidence {
        cpu: CpuEvidence::SevSnp {
            report: platform.report(&sim_launch(), &[3; 64]).unwrap(),
            certificates: platform.certificates(),
        },
        guest_keys: GuestKeys::default(),
    };
    let pinned = verify(
        &evidence,
        &Endorsements::none(),
        &Roots::pinned(),
        &Policy::default(),
        AT,
    );
    assert_eq!(
        (pinned.verdict, pinned.reasons()),
        (Verdict::Refused, vec![Reason::UntrustedRoot]),
        "{pinned}"
    );
    let named = sim_judge(|_| {}, &Policy::default());
    assert_eq!((named.verdict, named.trust), (Verdict::Verified, Trust::TestRoot));
    assert_eq!(named.to_json()["trust"], "test-root");
    assert!(named.to_string().contains("TEST ROOT"), "the page is loud");
    // And AMD's own evidence stays pinned beside it.
    let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    let genuine = amds_evidence();
    let result = verify(&genuine, &Endorsements::none(), &roots, &Policy::default(), AT);
    assert_eq!((result.verdict, result.trust), (Verdict::Verified, Trust::Pinned));
}

fn amds_evidence() -> Evidence {
    evidence(report("genoa-v3-msft"), &["genoa-v3-msft/vek.der"])
}

#[test]
fn without_certificates_nobody_can_tell() {
    let result = judge(report("genoa-v3-msft"), &[]);
    assert_eq!(
        (result.verdict, result.reasons()),
        (Verdict::Indeterminate, vec![Reason::EndorsementsMissing])
    );
    let result = judge(report("genoa-v3-msft"), &["ca/genoa/ask.der", "ca/genoa/ark.der"]);
    assert_eq!(result.verdict, Verdict::Indeterminate);
}

#[test]
fn settings_count_only_as_asked_for_and_only_where_the_report_binds_them() {
    use attestation::Reason::{ReferenceMissing, ReportDataMismatch, SettingsMismatch, SettingsMissing};
    let binding = attestation::Binding {
        ledger: &[1],
        contract: [2; 32],
        nonce: [3; 32],
    };
    let roots = Roots::pinned().with_test_root(SIM.root()).unwrap();
    // Bound by the report, shown beside it, asked for, REPORT_DATA compared.
    for (bound, shown, asked, compared, reasons) in [
        (Some(1), Some(1), Some(1), true, vec![]),
        (Some(1), Some(1), None, true, vec![]),
        (None, None, None, true, vec![]),
        (Some(2), Some(2), Some(1), true, vec![SettingsMismatch]),
        (Some(2), Some(1), Some(1), true, vec![ReportDataMismatch]),
        (None, None, Some(1), true, vec![SettingsMissing]),
        (Some(1), Some(1), Some(1), false, vec![ReferenceMissing]),
    ] {
        let digest = |byte: Option<u8>| byte.map(|byte| [byte; 32]);
        let keys = |byte| GuestKeys {
            settings: digest(byte),
            ..GuestKeys::default()
        };
        let evidence = Evidence {
            cpu: CpuEvidence::SevSnp {
                report: SIM
                    .report(&sim_launch(), &binding.report_data(&keys(bound)))
                    .unwrap(),
                certificates: SIM.certificates(),
            },
            guest_keys: keys(shown),
        };
        let policy = Policy {
            report_data: compared.then(|| binding.report_data(&evidence.guest_keys)),
            settings: digest(asked),
            ..Policy::default()
        };
        let result = verify(&evidence, &Endorsements::none(), &roots, &policy, AT);
        assert_eq!(
            result.reasons(),
            reasons,
            "{bound:?} {shown:?} {asked:?}: {result}"
        );
        let named = result.not_checked().any(|(id, _)| id == "appraise.settings");
        assert_eq!(named, asked.is_none(), "{result}");
    }
}

#[test]
fn a_plain_vm_is_host_signed_only_where_that_is_asked_for() {
    let evidence = Evidence {
        cpu: CpuEvidence::None,
        guest_keys: GuestKeys::default(),
    };
    let judge = |policy| verify(&evidence, &Endorsements::none(), &Roots::pinned(), &policy, AT);
    let default = judge(Policy::default());
    assert_eq!(default.reasons(), [Reason::NoHardwareEvidence]);
    let asked = judge(Policy {
        min_grade: attestation::Grade::HostSigned,
        ..Policy::default()
    });
    assert_eq!(
        (asked.verdict, asked.grade),
        (Verdict::Verified, attestation::Grade::HostSigned)
    );
}
