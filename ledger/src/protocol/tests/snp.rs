//! SEV-SNP evidence of a simulated platform: accepted where everything holds, refused for each thing that doesn't.

use std::sync::OnceLock;

use attestation::nvidia::GpuEvidence;
use attestation::sim::{
    ASK_SERIAL, CrlIssuer, Gpu, GpuFacts, Launch, OcspSigner, OcspStatus, Platform, RimFacts,
};
use attestation::{Binding, Bundle, Composite, CpuEvidence, Evidence, GuestKeys, gpu_nonce};

use super::*;

const MEASUREMENT: [u8; 48] = [0x5a; 48];
/// SMT allowed, the reserved bit that must be set, no debugging.
const POLICY: u64 = 0x3_0000;
const DEBUG: u64 = 1 << 19;

/// The platform that the genesis names, and who signs its revocation lists. RSA keys take seconds: made once.
fn made() -> &'static (Platform, CrlIssuer) {
    static MADE: OnceLock<(Platform, CrlIssuer)> = OnceLock::new();
    MADE.get_or_init(|| Platform::create_with_crls().unwrap())
}

fn named() -> &'static Platform {
    &made().0
}

fn confidential(args: &mut RentArgs) {
    args.request.kind = VmKind::SevSnp;
    args.request.min_grade = Grade::HardwareVerified;
    args.allowed_measurements = vec![Measurement::from_slice(&MEASUREMENT).unwrap()];
}

fn world() -> World {
    world_by(|_| ())
}

fn world_by(change: impl FnOnce(&mut crate::protocol::Genesis)) -> World {
    let mut genesis = genesis();
    change(&mut genesis);
    genesis
        .test_roots
        .push(crate::protocol::Der(named().root().to_vec()));
    let mut world = World::with(genesis);
    world.offering = world.publish(
        world.host,
        OfferingSpec {
            test_platform: true,
            ..spec()
        },
    );
    world
}

/// An accepted confidential contract with a nonce.
fn asked(world: &mut World) -> (ContractId, Digest32) {
    asked_with(world, |_| ())
}

fn asked_with(world: &mut World, change: impl FnOnce(&mut RentArgs)) -> (ContractId, Digest32) {
    let id = world
        .rent_with(|args| {
            confidential(args);
            change(args);
        })
        .unwrap();
    world.ok(world.host, Command::Accept(id));
    let Reply::Nonce(nonce) = world.ok(world.host, Command::ContractNonce(id)) else {
        panic!()
    };
    (id, nonce)
}

/// What goes into a report, so that tests can lie about one part of it.
#[derive(Clone)]
struct Guest {
    launch: Launch,
    ledger: Principal,
    contract: [u8; 32],
    nonce: [u8; 32],
    keys: GuestKeys,
    shown_keys: GuestKeys,
}

fn honest(id: &ContractId, nonce: &Digest32) -> Guest {
    let keys = GuestKeys {
        wireguard: Some([7; 32]),
        settings: Some(settings(&[ed25519_line(1)])),
        ..GuestKeys::default()
    };
    Guest {
        launch: Launch {
            measurement: MEASUREMENT,
            host_data: id.0,
            policy: POLICY,
        },
        ledger: ledger(),
        contract: id.0,
        nonce: nonce.0,
        shown_keys: keys.clone(),
        keys,
    }
}

/// What a VM says that was set up with these keys, and with the user data that the contracts here ask for.
fn settings(ssh_public_keys: &[String]) -> [u8; 32] {
    let keys = ssh_public_keys.iter().map(String::as_str);
    attestation::settings_digest(keys, b"#cloud-config\n")
}

fn evidence(platform: &Platform, guest: &Guest) -> Evidence {
    let binding = Binding {
        ledger: guest.ledger.as_slice(),
        contract: guest.contract,
        nonce: guest.nonce,
    };
    let report = platform
        .report(&guest.launch, &binding.report_data(&guest.keys))
        .unwrap();
    Evidence {
        cpu: CpuEvidence::SevSnp {
            report,
            certificates: platform.certificates(),
        },
        guest_keys: guest.shown_keys.clone(),
    }
}

fn submit(world: &mut World, id: &ContractId, evidence: &Evidence) -> Result<Reply, LedgerError> {
    submit_bytes(world, id, with_crl(evidence))
}

/// With the revocation list that the ledger wants to see.
fn with_crl(evidence: &Evidence) -> Vec<u8> {
    Bundle {
        evidence: evidence.to_cbor(),
        endorsements: vec![named().crl().to_vec()],
    }
    .to_cbor()
}

fn submit_bytes(world: &mut World, id: &ContractId, evidence: Vec<u8>) -> Result<Reply, LedgerError> {
    let host = world.contract(id).host;
    let args = SubmitEvidenceArgs {
        contract: *id,
        evidence,
        endpoint: Endpoint {
            address: "203.0.113.1".into(),
            names: vec![],
            ports: vec![],
        },
    };
    world.apply(host, Command::SubmitEvidence(args))
}

#[test]
fn a_report_bound_to_the_contract_starts_the_clock_and_is_marked_test_root() {
    let mut world = world();
    let (id, nonce) = asked(&mut world);
    let good = evidence(named(), &honest(&id, &nonce));
    let Ok(Reply::Confirmed(confirmation)) = submit(&mut world, &id, &good) else {
        panic!("{:?}", submit(&mut world, &id, &good))
    };
    assert_eq!(
        (confirmation.grade, confirmation.trust.as_str()),
        (Grade::HardwareVerified, "test-root")
    );
    assert!(confirmation.result.contains("test-root"));
    let contract = world.contract(&id);
    assert_eq!(
        (contract.state, contract.active_since),
        (ContractState::Active, Some(world.now))
    );
    assert_eq!(world.state.evidence(&id).unwrap().evidence, with_crl(&good));
    world.pass(HOUR);
    world.ok(world.developer, Command::Cancel(id));
    assert_eq!(world.contract(&id).escrow.released, PRICE);
    world.assert_replay();
}

#[test]
fn every_forgery_is_refused_and_the_money_stays() {
    let (named, unnamed) = (named(), &Platform::create().unwrap());
    let mut world = world();
    let (first, first_nonce) = asked(&mut world);
    let replayed = evidence(named, &honest(&first, &first_nonce));
    submit(&mut world, &first, &replayed).unwrap();
    let (id, nonce) = asked(&mut world);
    let guest = honest(&id, &nonce);
    let lie = |change: fn(&mut Guest)| {
        let mut guest = guest.clone();
        change(&mut guest);
        evidence(named, &guest)
    };
    let cut = |change: fn(&mut Vec<u8>, &mut Vec<Vec<u8>>)| {
        let mut evidence = evidence(named, &guest);
        if let CpuEvidence::SevSnp { report, certificates } = &mut evidence.cpu {
            change(report, certificates);
        }
        evidence
    };
    let table: Vec<(&str, Evidence, &str)> = vec![
        ("the first contract's report", replayed, "HostData"),
        (
            "another image",
            lie(|g| g.launch.measurement = [1; 48]),
            "Measurement",
        ),
        (
            "another contract's launch",
            lie(|g| g.launch.host_data = [1; 32]),
            "HostData",
        ),
        ("an old nonce", lie(|g| g.nonce = [1; 32]), "ReportData"),
        ("another contract", lie(|g| g.contract = [1; 32]), "ReportData"),
        (
            "another ledger",
            lie(|g| g.ledger = Principal::from_slice(&[1])),
            "ReportData",
        ),
        (
            "other keys than the report's",
            lie(|g| g.shown_keys.wireguard = Some([8; 32])),
            "ReportData",
        ),
        (
            "a VM that let in the host's SSH key, too",
            lie(|g| {
                g.keys.settings = Some(settings(&[ed25519_line(1), ed25519_line(2)]));
                g.shown_keys = g.keys.clone();
            }),
            "SettingsMismatch",
        ),
        (
            "settings shown that the report doesn't bind",
            lie(|g| g.keys.settings = Some(settings(&[ed25519_line(2)]))),
            "ReportData",
        ),
        (
            "a VM that doesn't say how it was set up",
            lie(|g| {
                g.keys.settings = None;
                g.shown_keys = g.keys.clone();
            }),
            "SettingsMissing",
        ),
        (
            "a guest that can be debugged",
            lie(|g| g.launch.policy |= DEBUG),
            "Debug",
        ),
        ("a flipped bit", cut(|report, _| report[0x90] ^= 1), "Signature"),
        (
            "a cut report",
            cut(|report, _| report.truncate(1183)),
            "Malformed",
        ),
        (
            "no certificates",
            cut(|_, certificates| certificates.clear()),
            "Endorsements",
        ),
        (
            "a root that nobody named",
            evidence(unnamed, &guest),
            "UntrustedRoot",
        ),
        (
            "no report at all: the host's word instead",
            Evidence {
                cpu: CpuEvidence::None,
                guest_keys: guest.keys.clone(),
            },
            "NoHardwareEvidence",
        ),
    ];
    for (what, forged, reason) in &table {
        let before = world.contract(&id);
        let Err(LedgerError::EvidenceRefused { reasons, .. }) = submit(&mut world, &id, forged) else {
            panic!("{what} was not refused")
        };
        assert!(reasons.iter().any(|r| r.contains(reason)), "{what}: {reasons:?}");
        let after = world.contract(&id);
        assert_eq!(
            (after.state, after.escrow),
            (before.state, before.escrow),
            "{what}"
        );
        assert_eq!(after.refusals, reasons.clone());
    }
    submit(&mut world, &id, &evidence(named, &guest)).unwrap();
    world.assert_replay();
}

#[test]
fn a_tcb_below_the_contracts_floor_is_refused() {
    let mut world = world();
    let (id, nonce) = asked_with(&mut world, |args| args.min_tcb.microcode = Some(255));
    let Err(LedgerError::EvidenceRefused { reasons, .. }) =
        submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce)))
    else {
        panic!()
    };
    assert!(reasons.iter().any(|r| r.contains("Tcb")), "{reasons:?}");
}

#[test]
fn a_request_may_raise_the_ledgers_floor_and_not_lower_it() {
    let floor = |snp| {
        Some(TcbFloor {
            snp: Some(snp),
            ..TcbFloor::default()
        })
    };
    // The simulated platform has SNP firmware 23: (the ledger's floor, the request's, the reason).
    let table = [
        (floor(23), None, None),
        (floor(24), None, Some("TcbTooLow")),
        (floor(24), Some(1), Some("TcbTooLow")),
        (floor(1), Some(24), Some("TcbTooLow")),
        (floor(1), Some(23), None),
        (None, Some(23), None),
        (None, None, Some("ReferenceMissing")),
    ];
    for (ours, asked, reason) in table {
        let mut world = world_by(|genesis| genesis.min_tcb.genoa = ours);
        let (id, nonce) = asked_with(&mut world, |args| args.min_tcb.snp = asked);
        let result = submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce)));
        match (result, reason) {
            (Ok(_), None) => {}
            (Err(LedgerError::EvidenceRefused { reasons, .. }), Some(reason)) => {
                assert!(
                    reasons.iter().any(|r| r.contains(reason)),
                    "{ours:?} {asked:?}: {reasons:?}"
                );
            }
            (other, _) => panic!("{ours:?} {asked:?}: {other:?}"),
        }
    }
}

#[test]
fn without_a_test_root_in_the_genesis_the_simulated_chip_proves_nothing() {
    let mut world = World::new();
    let (id, nonce) = asked(&mut world);
    let refused = submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce)));
    assert!(
        matches!(refused, Err(LedgerError::EvidenceRefused { .. })),
        "{refused:?}"
    );
    world.pass(HOUR);
    assert_eq!(world.money(world.developer), 1_000 * DCT, "all of it comes back");
}

#[test]
fn one_chip_can_not_pose_as_two_hosts() {
    let mut world = world();
    let (id, nonce) = asked(&mut world);
    submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce))).unwrap();
    // The same host again: fine. Another host with the same chip: refused.
    let (id, nonce) = asked(&mut world);
    submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce))).unwrap();
    let second = principal("second host");
    world.ok(second, Command::RegisterHost(delegation(2, second, "q.example")));
    world.host = second;
    world.offering = world.publish(
        second,
        OfferingSpec {
            test_platform: true,
            ..spec()
        },
    );
    let (id, nonce) = asked(&mut world);
    let Err(LedgerError::EvidenceRefused { reasons, .. }) =
        submit(&mut world, &id, &evidence(named(), &honest(&id, &nonce)))
    else {
        panic!()
    };
    assert!(reasons[0].contains("another host"), "{reasons:?}");
    assert_eq!(world.contract(&id).state, ContractState::Accepted);
}

/// A host with two GPUs; the ledger also trusts the maker of this one.
fn world_with(gpu: &Gpu) -> World {
    let mut genesis = genesis();
    for root in [named().root(), gpu.root()] {
        genesis.test_roots.push(crate::protocol::Der(root.to_vec()));
    }
    let mut world = World::with(genesis);
    let mut spec = spec();
    spec.test_platform = true;
    spec.capacity.gpus = 2;
    spec.gpu_model = Some("SIMULATED H100".into());
    world.offering = world.publish(world.host, spec);
    world
}

/// NVIDIA's manifests for the simulated device's driver and VBIOS, its word that no certificate of the device's is revoked,
/// and AMD's.
fn endorsements(gpu: &Gpu) -> Vec<Vec<u8>> {
    let driver = RimFacts {
        product: "GH100".to_owned(),
        version: "590.12".to_owned(),
        measurements: vec![(1, true, vec![vec![1; 48]])],
    };
    let vbios = RimFacts {
        version: "96.00.9F.00.01".to_owned(),
        measurements: vec![(3, true, vec![vec![3; 48]])],
        ..driver.clone()
    };
    let rims = [driver, vbios].map(|facts| gpu.rim(&facts).unwrap().into_bytes());
    let window = ["20260901000000Z", "20261201000000Z"];
    let good = |index| {
        gpu.ocsp(index, OcspStatus::Good, OcspSigner::Issuer, window)
            .unwrap()
    };
    let crl = named().crl().to_vec();
    rims.into_iter().chain([1, 2, 3].map(good)).chain([crl]).collect()
}

#[test]
fn a_host_that_keeps_the_revocation_list_to_itself_is_not_believed() {
    let mut world = world();
    let (id, nonce) = asked(&mut world);
    let good = evidence(named(), &honest(&id, &nonce));
    let refused = submit_bytes(&mut world, &id, good.to_cbor());
    let Err(LedgerError::EvidenceRefused { reasons, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(reasons.iter().any(|r| r.contains("CrlMissing")), "{reasons:?}");
    submit(&mut world, &id, &good).unwrap();
}

#[test]
fn evidence_under_a_revoked_intermediate_or_with_an_old_list_confirms_nothing() {
    let mut world = world();
    let (id, nonce) = asked(&mut world);
    let good = evidence(named(), &honest(&id, &nonce));
    let window = ["260801000000Z", "490101000000Z"];
    // (revoked serial numbers, the list's times, the reason): a rogue host may show an older list, from before the revocation.
    let table = [
        (&[ASK_SERIAL][..], window, "CrlRevoked"),
        (&[], ["260701000000Z", "260801000000Z"], "CrlStale"),
    ];
    for (revoked, [from, until], reason) in table {
        let crl = made().1.crl(revoked, from, until).unwrap();
        let bundle = Bundle {
            evidence: good.to_cbor(),
            endorsements: vec![crl],
        };
        let refused = submit_bytes(&mut world, &id, bundle.to_cbor());
        let Err(LedgerError::EvidenceRefused { reasons, .. }) = refused else {
            panic!("{reason}: {refused:?}")
        };
        assert!(
            reasons.iter().any(|r| r.starts_with(reason)),
            "{reason}: {reasons:?}"
        );
        assert_eq!(world.contract(&id).state, ContractState::Accepted);
    }
    // A list that names somebody else is no obstacle.
    let crl = made().1.crl(&[ASK_SERIAL + 100], window[0], window[1]).unwrap();
    let bundle = Bundle {
        evidence: good.to_cbor(),
        endorsements: vec![crl],
    };
    submit_bytes(&mut world, &id, bundle.to_cbor()).unwrap();
}

#[test]
fn a_vm_with_gpus_is_confirmed_with_all_of_them_bound_and_measured_and_not_otherwise() {
    let gpu = Gpu::create(None).unwrap();
    let mut world = world_with(&gpu);
    let (id, nonce) = asked_with(&mut world, |args| args.request.gpus = 1);
    let vm = evidence(named(), &honest(&id, &nonce));
    let report_data = Binding {
        ledger: ledger().as_slice(),
        contract: id.0,
        nonce: nonce.0,
    }
    .report_data(&vm.guest_keys);
    let answer = |nonce: [u8; 32], measurement: u8| {
        let mut facts = GpuFacts {
            nonce,
            ..GpuFacts::default()
        };
        facts.measurements[1] = vec![measurement; 48];
        GpuEvidence::new(gpu.report(&facts).unwrap(), gpu.chain())
    };
    let own = answer(gpu_nonce(&report_data), 1);
    let with = |gpus: &[&GpuEvidence]| Composite {
        vm: vm.clone(),
        gpus: gpus.iter().map(|gpu| (*gpu).clone()).collect(),
        host: None,
    };
    let bundle = |composite: Composite| {
        let bundle = Bundle {
            evidence: composite.to_cbor(),
            endorsements: endorsements(&gpu),
        };
        bundle.to_cbor()
    };
    let (stranger, other) = (answer(gpu_nonce(&[9; 64]), 1), answer(gpu_nonce(&report_data), 7));
    let mut broken = Bundle::from_cbor(&bundle(with(&[&own]))).unwrap();
    broken.endorsements[0] = b"no endorsement".to_vec();
    for (what, bytes, reason) in [
        ("no GPU", bundle(with(&[])), "GpuCount"),
        ("one GPU for two", bundle(with(&[&own, &own])), "GpuCount"),
        ("a GPU that another VM asked", bundle(with(&[&stranger])), "Nonce"),
        ("another driver", bundle(with(&[&other])), "Measurement"),
        ("no manifests", with(&[&own]).to_cbor(), "ReferenceMissing"),
        (
            "what is no endorsement",
            broken.to_cbor(),
            "not evidence: endorsement 0",
        ),
    ] {
        let before = world.contract(&id);
        let Err(LedgerError::EvidenceRefused { reasons, .. }) = submit_bytes(&mut world, &id, bytes) else {
            panic!("{what} was not refused")
        };
        assert!(reasons.iter().any(|r| r.contains(reason)), "{what}: {reasons:?}");
        let after = world.contract(&id);
        assert_eq!(
            (after.state, after.escrow),
            (before.state, before.escrow),
            "{what}"
        );
    }
    let good = bundle(with(&[&own]));
    let Reply::Confirmed(confirmation) = submit_bytes(&mut world, &id, good.clone()).unwrap() else {
        panic!()
    };
    assert_eq!(confirmation.grade, Grade::HardwareVerified);
    assert_eq!(world.state.evidence(&id).unwrap().evidence, good);
    world.assert_replay();

    // Nobody paid for this one.
    let (id, nonce) = asked(&mut world);
    let vm = evidence(named(), &honest(&id, &nonce));
    let mut more = Composite::from(vm);
    more.gpus.push(own);
    let Err(LedgerError::EvidenceRefused { reasons, .. }) = submit_bytes(&mut world, &id, bundle(more))
    else {
        panic!("a GPU that the contract doesn't have was not refused")
    };
    assert!(reasons.iter().any(|r| r.contains("GpuCount")), "{reasons:?}");
}
