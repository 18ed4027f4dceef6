//! A VM with its GPUs and its host: one encoding, one verdict.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attestation::nvidia::GpuEvidence;
use attestation::sim::{Gpu, GpuFacts, Launch, Platform};
use attestation::{
    Composite, CpuEvidence, Endorsements, Evidence, GuestKeys, Outcome, Part, Policy, Reason, Roots, Verdict,
    gpu_nonce, host_qualifying_data, verify, verify_composite,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// 2026-09-01.
const AT: u64 = 1_788_220_800;

fn any_bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn any_gpu() -> impl Strategy<Value = GpuEvidence> {
    (any_bytes(300), vec(any_bytes(100), 0..4)).prop_map(|(report, certs)| GpuEvidence::new(report, certs))
}

fn any_composite() -> impl Strategy<Value = Composite> {
    let cpu = prop_oneof![
        Just(CpuEvidence::None),
        (any_bytes(1300), vec(any_bytes(100), 0..4))
            .prop_map(|(report, certificates)| CpuEvidence::SevSnp { report, certificates }),
        (any_bytes(5000), proptest::option::of(any_bytes(600)))
            .prop_map(|(quote, event_log)| CpuEvidence::Tdx { quote, event_log }),
    ];
    let vm = cpu.prop_map(|cpu| Evidence {
        cpu,
        guest_keys: GuestKeys::default(),
    });
    (vm, vec(any_gpu(), 0..3)).prop_map(|(vm, gpus)| Composite { vm, gpus, host: None })
}

proptest! {
    #[test]
    fn composite_evidence_has_one_encoding(composite in any_composite(), cut in any::<prop::sample::Index>()) {
        let cbor = composite.to_cbor();
        prop_assert_eq!(&Composite::from_cbor(&cbor), &Ok(composite.clone()));
        prop_assert!(Composite::from_cbor(&cbor[..cut.index(cbor.len())]).is_err());
        prop_assert!(Composite::from_cbor(&[&cbor[..], &[0]].concat()).is_err());
        let alone = Evidence::from_cbor(&cbor);
        prop_assert_eq!(alone.is_ok(), composite.gpus.is_empty(), "a VM alone is evidence as it always was");
    }

    #[test]
    fn changed_bytes_are_other_evidence_or_none(composite in any_composite(), at in any::<prop::sample::Index>()) {
        let mut cbor = composite.to_cbor();
        let at = at.index(cbor.len());
        cbor[at] ^= 0x21;
        prop_assert!(Composite::from_cbor(&cbor) != Ok(composite.clone()));
    }
}

#[test]
fn the_parts_bindings_differ_with_report_data_and_with_each_other() {
    let (a, b) = ([1; 64], [2; 64]);
    let all = [
        gpu_nonce(&a),
        gpu_nonce(&b),
        host_qualifying_data(&a),
        host_qualifying_data(&b),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(!all[..n].contains(one));
    }
    // Computed by another program: the agent and the host must derive the same.
    assert_eq!(
        hex::encode(gpu_nonce(&[0; 64])),
        "a898e03580a5bbc9b4600ac4ce8e5211a70f0e1f2c0402364ae5a902fb293c3f"
    );
    assert_eq!(
        hex::encode(host_qualifying_data(&[0; 64])),
        "7a9253a5355be06f5e42101d150ab3a3e067f7c8d98ae5e638425f6f8356c0fa"
    );
}

#[test]
fn a_bad_gpu_refuses_the_whole() {
    let platform = Platform::create().unwrap();
    let launch = Launch {
        measurement: [0xcc; 48],
        host_data: [0xaa; 32],
        policy: 0x3_0000,
    };
    let report = platform.report(&launch, &[7; 64]).unwrap();
    let certificates = platform.certificates();
    let cpu = CpuEvidence::SevSnp { report, certificates };
    let vm = Evidence {
        cpu,
        guest_keys: GuestKeys::default(),
    };
    let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    let (none, policy) = (Endorsements::none(), Policy::default());
    let alone = verify(&vm, &none, &roots, &policy, AT);
    assert_eq!(alone.verdict, Verdict::Verified, "{alone}");
    assert_eq!(
        verify_composite(&vm.clone().into(), &none, &roots, &policy, AT),
        alone
    );

    let gpu = GpuEvidence::new(vec![0; 100], vec![vec![1]]);
    let with = |gpus: Vec<GpuEvidence>| Composite {
        vm: vm.clone(),
        gpus,
        host: None,
    };
    let result = verify_composite(&with(vec![gpu.clone()]), &none, &roots, &policy, AT);
    assert_eq!(result.verdict, Verdict::Refused, "{result}");
    // As EAR has it: a test root warns, a failed part is contraindicated, and with it the whole.
    let statuses = |result: &attestation::AttestationResult| result.to_json()["submods"].clone();
    assert_eq!(
        statuses(&alone),
        serde_json::json!({ "vm": { "ear.status": 32 } })
    );
    assert_eq!(
        statuses(&result),
        serde_json::json!({ "vm": { "ear.status": 96 }, "gpu 0": { "ear.status": 96 } })
    );
    let failed = |check: &&attestation::Check| matches!(check.outcome, Outcome::Failed(_));
    assert!(
        result
            .checks
            .iter()
            .filter(failed)
            .all(|check| check.part == Part::Gpu(0)),
        "{result}"
    );
    assert!(
        result.not_checked().any(|(id, _)| id == "appraise.gpus"),
        "{result}"
    );
    let lines = result.to_json()["checks"].as_array().unwrap().clone();
    assert!(lines.iter().any(|line| line["part"] == "gpu 0"));
    assert!(lines.iter().any(|line| line.get("part").is_none()));

    let asked = Policy {
        gpus: Some(1),
        ..policy
    };
    let result = verify_composite(&with(Vec::new()), &none, &roots, &asked, AT);
    assert_eq!(
        result.reasons(),
        [Reason::GpuCountMismatch],
        "a GPU that isn't shown isn't there"
    );
}

#[test]
fn a_gpu_counts_for_the_vm_that_asked_it_and_once() {
    let (platform, gpu) = (Platform::create().unwrap(), Gpu::create(None).unwrap());
    let launch = Launch {
        measurement: [0xcc; 48],
        host_data: [0xaa; 32],
        policy: 0x3_0000,
    };
    let report = platform.report(&launch, &[7; 64]).unwrap();
    let certificates = platform.certificates();
    let vm = Evidence {
        cpu: CpuEvidence::SevSnp { report, certificates },
        guest_keys: GuestKeys::default(),
    };
    let answer = |nonce| {
        let facts = GpuFacts {
            nonce,
            ..GpuFacts::default()
        };
        GpuEvidence::new(gpu.report(&facts).unwrap(), gpu.chain())
    };
    let roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    let roots = roots.with_test_root(gpu.root()).unwrap();
    let own = answer(gpu_nonce(&[7; 64]));
    for (row, gpus, want) in [
        ("the VM's nonce", vec![own.clone()], &[][..]),
        (
            "another VM's",
            vec![answer(gpu_nonce(&[8; 64]))],
            &[Reason::NonceMismatch],
        ),
        (
            "one GPU twice",
            vec![own, answer(gpu_nonce(&[7; 64]))],
            &[Reason::DuplicateDevice],
        ),
    ] {
        let composite = Composite {
            vm: vm.clone(),
            gpus,
            host: None,
        };
        let result = verify_composite(&composite, &Endorsements::none(), &roots, &Policy::default(), AT);
        assert_eq!(result.reasons(), want, "{row}:\n{result}");
    }
}
