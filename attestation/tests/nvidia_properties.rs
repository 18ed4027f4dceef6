//! GPU evidence with flipped bits, cut off, or random: nothing of it is verified, and nothing panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod nvidia_case;

use attestation::nvidia::{GpuEvidence, Stated};
use attestation::sim::{GpuFacts, OcspSigner, OcspStatus};
use attestation::{AnyEvidence, Endorsements, Policy, Reason, Requirement, Roots, Verdict, verify_any};
use nvidia_case::{AT, FRESH, GPU, endorsements, read, recorded};
use proptest::prelude::*;

const DEVICES: [&str; 3] = [
    "gh100-nvtrust-gpu_evidence0-42b177",
    "gb100-services-blackwell-evidence0-1b2383",
    "ls10-sdk-multi_switch_ls100-352fc9",
];

fn recorded_device(name: &str) -> (Vec<u8>, Endorsements) {
    let chain = endorsements(&[&read(&format!("{name}/chain.pem"))]);
    (read(&format!("{name}/report.bin")), chain)
}

/// Every byte of a report, one bit of each: which one differs from byte to byte.
fn no_flipped_byte_is_verified(name: &str) {
    let (report, chain) = recorded_device(name);
    assert!(recorded(&report, &chain, &Policy::default()).is_verified());
    for at in 0..report.len() {
        let mut flipped = report.clone();
        flipped[at] ^= 1 << (at % 8);
        let result = recorded(&flipped, &chain, &Policy::default());
        assert_eq!(result.verdict, Verdict::Refused, "byte {at}:\n{result}");
    }
}

#[test]
fn no_flipped_byte_of_a_hopper_is_verified() {
    no_flipped_byte_is_verified(DEVICES[0]);
}

#[test]
fn no_flipped_byte_of_a_blackwell_is_verified() {
    no_flipped_byte_is_verified(DEVICES[1]);
}

#[test]
fn no_flipped_byte_of_a_switch_is_verified() {
    no_flipped_byte_is_verified(DEVICES[2]);
}

#[test]
fn no_truncation_is_verified() {
    for name in DEVICES {
        let (report, chain) = recorded_device(name);
        for len in 0..report.len() {
            let result = recorded(&report[..len], &chain, &Policy::default());
            assert_eq!(result.reasons(), [Reason::Malformed], "{name}, {len} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_flipped_bit_of_a_manifest_is_believed(at in 0_usize..20_000, bit in 0_u8..7) {
        let name = "ls10-sdk-multi_switch_ls100-352fc9";
        let mut rim = read("rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml");
        rim[at] ^= 1 << bit;
        let mut given = endorsements(&[&read(&format!("{name}/chain.pem"))]);
        // What isn't a manifest at all any more is refused when it is given.
        if given.add(&rim).is_ok() {
            let policy = Policy { required: [Requirement::Measurement].into(), ..Policy::default() };
            let result = recorded(&read(&format!("{name}/report.bin")), &given, &policy);
            prop_assert!(!result.is_verified() || is_white(&rim, at, bit), "byte {}:\n{}", at, result);
        }
    }

    #[test]
    fn no_cut_of_a_manifest_is_believed(from in 0_usize..25_000, len in 1_usize..3_000) {
        let name = "ls10-sdk-multi_switch_ls100-352fc9";
        let mut rim = read("rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml");
        let to = (from + len).min(rim.len() - 1);
        rim.drain(from.min(to)..to);
        let mut given = endorsements(&[&read(&format!("{name}/chain.pem"))]);
        if given.add(&rim).is_ok() {
            let policy = Policy { required: [Requirement::Measurement].into(), ..Policy::default() };
            let result = recorded(&read(&format!("{name}/report.bin")), &given, &policy);
            prop_assert!(!result.is_verified(), "{} bytes from {}", len, from);
        }
    }

    #[test]
    fn random_bytes_are_no_evidence_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let start = [0x11, 0xe0, 1, 0xff];
        let report = [&start[..], &bytes].concat();
        let result = recorded(&report, &Endorsements::none(), &Policy::default());
        prop_assert_eq!(result.reasons(), vec![Reason::Malformed]);
        let _ = AnyEvidence::parse(&bytes);
        let _ = Endorsements::none().add(&bytes);
    }

    #[test]
    fn a_flipped_bit_of_an_ocsp_response_never_makes_a_certificate_good(at in 0_usize..900, bit in 0_u8..8) {
        let hold = GPU.ocsp(1, OcspStatus::Hold, OcspSigner::Responder, FRESH).unwrap();
        let mut flipped = hold.clone();
        let at = at % flipped.len();
        flipped[at] ^= 1 << bit;
        let others = [2, 3].map(|n| GPU.ocsp(n, OcspStatus::Good, OcspSigner::Issuer, FRESH).unwrap());
        let mut given = Endorsements::none();
        for other in &others {
            given.add(other).unwrap();
        }
        if given.add(&flipped).is_ok() {
            let evidence = GpuEvidence {
                report: GPU.report(&GpuFacts::default()).unwrap(),
                certificates: GPU.chain(),
                stated: Stated::default(),
            };
            let roots = Roots::pinned().with_test_root(GPU.root()).unwrap();
            let policy = Policy { required: [Requirement::Revocation].into(), ..Policy::default() };
            let result = verify_any(&AnyEvidence::Gpu(vec![evidence]), &given, &roots, &policy, AT);
            prop_assert!(!result.is_verified(), "byte {}:\n{}", at, result);
        }
    }
}

/// Whether a flip only turned one blank between attributes into another.
fn is_white(rim: &[u8], at: usize, bit: u8) -> bool {
    let before = rim[at] ^ 1 << bit;
    rim[at].is_ascii_whitespace() && before.is_ascii_whitespace()
}
