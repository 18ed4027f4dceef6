//! Blocks, replay, and the wire.

use super::*;
use crate::protocol::{MethodKind, Reject, method_kind};

fn a_life() -> World {
    let mut world = World::new();
    let id = world.active();
    world.pass(HOUR);
    world.ok(world.developer, Command::Cancel(id));
    world.ok(world.host, Command::Released(id));
    world.rent();
    world.pass(HOUR);
    world
}

#[test]
fn replaying_the_blocks_gives_the_identical_state() {
    let world = a_life();
    world.assert_replay();
    assert_eq!(world.state.height(), world.blocks.len() as u64);
    assert_eq!(world.state.tip(), world.blocks.last().unwrap().hash());
    assert_eq!(world.blocks.last().unwrap().method, "tick");
}

#[test]
fn an_altered_block_does_not_continue_the_ledger() {
    let world = a_life();
    let fresh = || State::new(world.state.genesis().clone(), ledger()).unwrap();
    let replay =
        |state: &mut State, blocks: &[Block]| blocks.iter().try_for_each(|block| state.replay(block));
    assert_eq!(replay(&mut fresh(), &world.blocks), Ok(()));
    for i in 0..world.blocks.len() {
        type Change = fn(&mut Block);
        let changes: [Change; 6] = [
            |b| b.height += 1,
            |b| b.parent.0[0] ^= 1,
            |b| b.time += 1,
            |b| b.caller = principal("somebody else"),
            |b| b.method = "settle".into(),
            |b| b.reply.0[0] ^= 1,
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut blocks = world.blocks.clone();
            change(&mut blocks[i]);
            let mut state = fresh();
            // A later time in the very last block makes another valid ledger, which nothing but its tip tells.
            let other = replay(&mut state, &blocks).is_err() || state.tip() != world.state.tip();
            assert!(other, "block {i}, change {n}");
        }
        let mut missing = world.blocks.clone();
        missing.remove(i);
        let seen = replay(&mut fresh(), &missing);
        // Without the last block it is a shorter chain, which nothing but its tip tells.
        assert_eq!(seen.is_err(), i + 1 < world.blocks.len(), "block {i} missing");
    }
    let mut other = world.state.genesis().clone();
    other.name = "another".into();
    assert!(replay(&mut State::new(other, ledger()).unwrap(), &world.blocks).is_err());
    let elsewhere = State::new(world.state.genesis().clone(), Principal::from_slice(&[9]));
    assert!(replay(&mut elsewhere.unwrap(), &world.blocks).is_err());
}

#[test]
fn time_never_runs_backwards() {
    let mut world = World::new();
    world.rent();
    let time = world.state.time();
    world.now = 0;
    world.rent();
    assert_eq!(world.state.time(), time);
    world.assert_replay();
}

#[test]
fn calls_over_the_wire_are_the_typed_commands() {
    let mut world = World::new();
    let argument = candid::encode_one(rent_args(world.offering)).unwrap();
    let reply = world
        .state
        .call(world.developer, "rent", &argument, world.now)
        .unwrap();
    let id = candid::decode_one::<Result<ContractId, LedgerError>>(&reply)
        .unwrap()
        .unwrap();
    world.blocks.extend(world.state.take_blocks());
    world.assert_replay();
    let reply = world
        .state
        .call(world.other, "cancel", &candid::encode_one(id).unwrap(), world.now)
        .unwrap();
    let error = candid::decode_one::<Result<Contract, LedgerError>>(&reply)
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, LedgerError::NotAllowed { .. }));
    let ask = |method: &str, argument: Vec<u8>| {
        world
            .state
            .query(world.developer, method, &argument, world.now)
            .unwrap()
    };
    let nothing = || candid::encode_args(()).unwrap();
    let contract = ask("contract", candid::encode_one(id).unwrap());
    assert_eq!(
        candid::decode_one::<Result<Contract, LedgerError>>(&contract)
            .unwrap()
            .unwrap()
            .id,
        id
    );
    let info: LedgerInfo = candid::decode_one(&ask("ledger_info", nothing())).unwrap();
    assert_eq!(
        (info.height, info.demo, info.ledger),
        (world.state.height(), true, ledger())
    );
    let books: Invariants = candid::decode_one(&ask("invariants", nothing())).unwrap();
    assert_eq!((books.supply, books.violations.len()), (2_000 * DCT, 0));
    let found = ask("match_offerings", candid::encode_one(request()).unwrap());
    assert_eq!(
        candid::decode_one::<Result<Vec<Match>, LedgerError>>(&found)
            .unwrap()
            .unwrap()
            .len(),
        1
    );
    let bad = Request {
        vcpus: 0,
        ..request()
    };
    let refused = ask("why_not", candid::encode_one(bad).unwrap());
    assert!(
        candid::decode_one::<Result<Vec<WhyNot>, LedgerError>>(&refused)
            .unwrap()
            .is_err()
    );
}

#[test]
fn malformed_calls_are_rejected_and_change_nothing() {
    let mut world = World::new();
    let before = world.state.clone();
    let many = b"DIDL\x01\x6d\x7f\x01\x00\xff\xff\xff\xff\x0f".to_vec(); // a vector of 2³² nulls
    for argument in [
        vec![],
        b"DIDL".to_vec(),
        b"garbage".to_vec(),
        vec![0xff; 3 << 20],
        many,
    ] {
        for method in [
            "rent",
            "submit_evidence",
            "icrc1_transfer",
            "register_host",
            "accept",
            "heartbeat",
        ] {
            let reject = world.state.call(world.developer, method, &argument, world.now);
            assert!(
                matches!(reject, Err(Reject::Malformed { .. })),
                "{method} {:?}",
                argument.get(..8)
            );
        }
        assert!(
            world
                .state
                .query(world.developer, "match_offerings", &argument, world.now)
                .is_err()
        );
    }
    for method in ["tick", "mint", "", "contract"] {
        let reject = world.state.call(world.developer, method, b"DIDL\0\0", world.now);
        assert!(matches!(reject, Err(Reject::UnknownMethod { .. })), "{method}");
    }
    assert_eq!(world.state, before);
}

#[test]
fn each_method_is_of_one_kind_and_can_be_reached() {
    let world = World::new();
    let mut state = world.state.clone();
    for (method, kind) in crate::protocol::command::all_methods() {
        assert_eq!(method_kind(method), Some(kind));
        let reject = match kind {
            MethodKind::Query => state.query(world.developer, method, b"DIDL\0\0", world.now).err(),
            MethodKind::Update => state.call(world.developer, method, b"DIDL\0\0", world.now).err(),
        };
        assert!(!matches!(reject, Some(Reject::UnknownMethod { .. })), "{method}");
    }
    assert_eq!(method_kind("tick"), None);
}

#[test]
fn a_ledger_does_not_start_from_a_genesis_that_breaks_its_books_or_roots() {
    let with = |change: fn(&mut Genesis)| {
        let mut genesis = genesis();
        change(&mut genesis);
        State::new(genesis, ledger()).unwrap_err().field
    };
    assert_eq!(
        with(|g| g
            .test_roots
            .push(crate::protocol::Der(b"no certificate".to_vec()))),
        "test_roots"
    );
    assert_eq!(with(|g| g.dao_wallet = ledger()), "dao_wallet, fees_wallet");
    assert_eq!(with(|g| g.balances[0].owner = ledger()), "balances");
}
