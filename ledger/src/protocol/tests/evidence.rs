//! Evidence at the ledger's door.

use super::*;
use crate::protocol::REFUSALS_MAX;

/// Submits evidence of an accepted contract and gives the reasons of the refusal.
#[track_caller]
fn refused_evidence(world: &mut World, id: &ContractId, evidence: Vec<u8>) -> Vec<String> {
    let Command::SubmitEvidence(mut args) = world.plain_evidence(id) else {
        panic!()
    };
    args.evidence = evidence;
    let before = world.contract(id);
    let error = world
        .apply(world.host, Command::SubmitEvidence(args))
        .unwrap_err();
    let LedgerError::EvidenceRefused { reasons, .. } = error else {
        panic!("{error}")
    };
    let after = world.contract(id);
    assert_eq!(
        (after.state, after.escrow, after.nonce),
        (ContractState::Accepted, before.escrow, before.nonce)
    );
    assert_eq!(after.refusals, reasons, "the refusal is on record");
    reasons
}

fn asked(world: &mut World) -> ContractId {
    let id = world.accepted();
    world.ok(world.host, Command::ContractNonce(id));
    id
}

#[test]
fn a_plain_vm_is_confirmed_by_its_hosts_word_and_says_so() {
    let mut world = World::new();
    let id = asked(&mut world);
    let evidence = world.plain_evidence(&id);
    let Reply::Confirmed(confirmation) = world.ok(world.host, evidence.clone()) else {
        panic!()
    };
    assert_eq!(
        (confirmation.grade, confirmation.trust.as_str()),
        (Grade::HostSigned, "none")
    );
    let contract = world.contract(&id);
    assert_eq!((contract.grade, contract.nonce), (Grade::HostSigned, None));
    assert_eq!(world.state.evidence(&id).unwrap().confirmation, confirmation);
    // A lost answer is given again; other evidence can't replace what confirmed the contract.
    assert_eq!(
        world.again(world.host, evidence.clone()),
        Reply::Confirmed(confirmation)
    );
    let Command::SubmitEvidence(mut other) = evidence else {
        panic!()
    };
    other.evidence = b"other".to_vec();
    world.refused(world.host, Command::SubmitEvidence(other), "active");
    world.assert_replay();
}

#[test]
fn garbage_is_refused_recorded_and_moves_no_money() {
    let mut world = World::new();
    let id = asked(&mut world);
    for garbage in [
        vec![],
        b"garbage".to_vec(),
        vec![0xff; EVIDENCE_MAX],
        vec![0x9b; 9],
    ] {
        let reasons = refused_evidence(&mut world, &id, garbage);
        assert!(reasons[0].starts_with("not evidence"), "{reasons:?}");
    }
    let snp = attestation::Evidence {
        cpu: attestation::CpuEvidence::SevSnp {
            report: vec![0; 1184],
            certificates: vec![],
        },
        guest_keys: Default::default(),
    };
    assert!(refused_evidence(&mut world, &id, snp.to_cbor())[0].contains("plain contract"));
    world.assert_replay();
    // After all that, good evidence still confirms.
    world.ok(world.host, world.plain_evidence(&id));
}

#[test]
fn refused_submissions_are_bounded() {
    let mut world = World::new();
    let id = asked(&mut world);
    for _ in 0..REFUSALS_MAX {
        refused_evidence(&mut world, &id, vec![]);
    }
    world.refused(world.host, world.plain_evidence(&id), "fewer refused submissions");
    world.pass(HOUR);
    assert_eq!(world.contract(&id).escrow.refunded, 10 * PRICE);
}

#[test]
fn only_the_host_submits_and_only_after_a_nonce() {
    let mut world = World::new();
    let requested = world.rent();
    world.refused(world.host, Command::ContractNonce(requested), "accepted");
    let id = world.accepted();
    world.refused(world.host, world.plain_evidence(&id), "nonce");
    world.refused(world.other, Command::ContractNonce(id), "host or developer");
    let nonce = world.ok(world.developer, Command::ContractNonce(id));
    assert_eq!(
        world.again(world.host, Command::ContractNonce(id)),
        nonce,
        "the same until it is used"
    );
    let second = world.accepted();
    assert_ne!(world.ok(world.host, Command::ContractNonce(second)), nonce);
    world.refused(
        world.developer,
        world.plain_evidence(&id),
        "only the contract's host",
    );
    let Command::SubmitEvidence(mut big) = world.plain_evidence(&id) else {
        panic!()
    };
    big.evidence = vec![0; EVIDENCE_MAX + 1];
    world.refused(world.host, Command::SubmitEvidence(big), "evidence: 524289 bytes");
    world.ok(world.host, world.plain_evidence(&id));
    world.refused(world.host, Command::ContractNonce(id), "accepted");
}

#[test]
fn an_endpoint_names_only_what_the_contract_asked_for() {
    type Change = fn(&mut Endpoint);
    let table: &[(&str, Change)] = &[
        ("endpoint.address", |e| e.address = "not an address".into()),
        ("endpoint.names", |e| e.names.push("www.bank.example".into())),
        ("endpoint.names", |e| e.names.push(e.names[0].clone())),
        ("endpoint.ports", |e| e.ports[0].vm_port = 23),
        ("endpoint.ports", |e| e.ports[0].transport = Transport::Udp),
        ("endpoint.ports", |e| e.ports[0].public_port = 0),
        ("endpoint.ports", |e| e.ports.push(e.ports[0])),
    ];
    let mut world = World::new();
    let id = asked(&mut world);
    for (field, change) in table {
        let Command::SubmitEvidence(mut args) = world.plain_evidence(&id) else {
            panic!()
        };
        change(&mut args.endpoint);
        world.refused(world.host, Command::SubmitEvidence(args), field);
    }
}
