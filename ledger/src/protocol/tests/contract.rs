//! The life of a contract: every state, every exit, and where the money is.

use super::*;
use crate::protocol::settlement::basis_points;

fn nothing_lost(world: &World, id: &ContractId, reason: EndReason) {
    let contract = world.contract(id);
    assert_eq!(contract.state, ContractState::Ended(reason));
    assert_eq!(
        contract.escrow.refunded, contract.escrow.funded,
        "all of it comes back"
    );
    assert_eq!(world.money(world.developer), 1_000 * DCT);
    assert_eq!(
        world.money(world.provider),
        0,
        "no fee and no payment for what never ran"
    );
    assert_eq!(world.state.reputation(&world.provider).score, 0);
    world.assert_replay();
}

#[test]
fn renting_moves_the_exact_price_into_escrow_and_gives_the_id() {
    let mut world = World::new();
    let id = world.rent();
    let contract = world.contract(&id);
    assert_eq!(contract.price_per_hour, PRICE);
    assert_eq!(contract.state, ContractState::Requested);
    assert_eq!(
        contract.escrow,
        Escrow {
            funded: 10 * PRICE,
            held: 10 * PRICE,
            ..Escrow::default()
        }
    );
    assert_eq!(world.money(world.developer), 1_000 * DCT - 10 * PRICE);
    assert_eq!(contract.deadline, Some(world.now + 60 * SECOND));
    world.assert_replay();
}

#[test]
fn the_id_is_the_digest_of_salt_and_settings() {
    let mut world = World::new();
    let (first, second) = (world.rent(), world.rent());
    let [first, second] = [first, second].map(|id| world.contract(&id));
    for contract in [&first, &second] {
        let keys = contract.args.ssh_public_keys.iter().map(String::as_str);
        let settings = attestation::settings_digest(keys, &contract.args.user_data);
        assert_eq!(
            contract.id.0,
            attestation::contract_id(&contract.salt.0, &settings)
        );
    }
    // The same settings twice are two contracts.
    assert_eq!(first.args.ssh_public_keys, second.args.ssh_public_keys);
    assert_ne!((first.salt, first.id), (second.salt, second.id));
}

#[test]
fn fees_are_never_taken_when_the_provider_never_answers() {
    let mut world = World::new();
    let id = world.rent();
    assert_eq!(world.state.next_deadline(), Some(world.now + 60 * SECOND));
    world.pass(59);
    assert_eq!(world.contract(&id).state, ContractState::Requested);
    world.pass(1);
    nothing_lost(&world, &id, EndReason::AcceptTimeout);
    assert_eq!(world.state.next_deadline(), None);
    world.refused(world.host, Command::Accept(id), "ended");
}

#[test]
fn evidence_that_never_comes_refunds_all_later_for_more_memory() {
    let mut world = World::new();
    let small = world.accepted();
    let big = world
        .rent_with(|args| args.request.memory_mib = 8 * 1024 + 1)
        .unwrap();
    world.ok(world.host, Command::Accept(big));
    // 240 s, and 60 s for each GiB begun.
    assert_eq!(world.contract(&small).deadline, Some(world.now + 360 * SECOND));
    assert_eq!(world.contract(&big).deadline, Some(world.now + 780 * SECOND));
    world.pass(360);
    assert_eq!(
        world.contract(&small).state,
        ContractState::Ended(EndReason::ConfirmTimeout)
    );
    assert_eq!(world.contract(&big).state, ContractState::Accepted);
    world.pass(10_000);
    // Noticed late, it still ended at its deadline.
    assert_eq!(world.contract(&big).ended_at, Some((START_S + 780) * SECOND));
    nothing_lost(&world, &big, EndReason::ConfirmTimeout);
}

#[test]
fn refuse_vm_gone_and_cancel_before_confirmation_refund_all() {
    type Make = fn(&World, ContractId) -> (Principal, Command);
    let refuse: Make = |w, id| {
        (
            w.host,
            Command::Refuse(RefuseArgs {
                contract: id,
                reason: "full".into(),
            }),
        )
    };
    let gone: Make = |w, id| {
        (
            w.host,
            Command::VmGone(VmGoneArgs {
                contract: id,
                reason: "no boot".into(),
            }),
        )
    };
    let cancel: Make = |w, id| (w.developer, Command::Cancel(id));
    for (accept, make, reason) in [
        (false, refuse, EndReason::Refused),
        (true, refuse, EndReason::Refused),
        (true, gone, EndReason::VmGone),
        (false, cancel, EndReason::Cancelled),
        (true, cancel, EndReason::Cancelled),
    ] {
        let mut world = World::new();
        let id = if accept { world.accepted() } else { world.rent() };
        let (who, command) = make(&world, id);
        world.ok(who, command.clone());
        world.again(who, command); // a lost answer
        nothing_lost(&world, &id, reason);
        assert_eq!(
            world.contract(&id).released,
            !accept && reason == EndReason::Refused
        );
    }
}

#[test]
fn a_second_accept_charges_and_changes_nothing() {
    let mut world = World::new();
    let id = world.accepted();
    world.pass(10);
    world.again(world.host, Command::Accept(id));
    world.refused(world.developer, Command::Accept(id), "only the contract's host");
    world.refused(world.other, Command::Cancel(id), "only the contract's developer");
}

#[test]
fn the_clock_starts_at_confirmation_and_accrues_by_the_second() {
    let mut world = World::new();
    let id = world.accepted();
    world.pass(300); // provisioning costs nothing
    world.ok(world.host, Command::ContractNonce(id));
    world.ok(world.host, world.plain_evidence(&id));
    let contract = world.contract(&id);
    assert_eq!(contract.active_since, Some(world.now));
    assert_eq!(contract.deadline, Some(world.now + 10 * HOUR * SECOND));
    world.pass(1_234);
    world.ok(world.other, Command::Settle(id)); // anyone may
    let accrued = PRICE * 1_234 / 3_600;
    let (fee, dao) = (
        basis_points(accrued, 200),
        basis_points(basis_points(accrued, 200), 2_500),
    );
    let escrow = world.contract(&id).escrow;
    assert_eq!(escrow.released, accrued);
    assert_eq!(
        (escrow.to_provider, escrow.to_dao, escrow.to_fees),
        (accrued - fee, dao, fee - dao)
    );
    assert_eq!(world.money(world.provider), accrued - fee);
    assert_eq!(world.money(world.state.genesis().dao_wallet), dao);
    world.again(world.other, Command::Settle(id)); // nothing new: no block
    world.assert_replay();
}

#[test]
fn settling_each_second_pays_what_settling_once_pays() {
    let (mut often, mut once) = (World::new(), World::new());
    let (a, b) = (often.active(), once.active());
    for _ in 0..200 {
        often.pass(1);
        often.ok(often.other, Command::Settle(a));
    }
    once.pass(200);
    once.ok(once.other, Command::Settle(b));
    assert_eq!(often.contract(&a).escrow, once.contract(&b).escrow);
    let (x, y) = (
        often.state.reputation(&often.provider),
        once.state.reputation(&once.provider),
    );
    assert_eq!(x.score, y.score);
    assert_eq!(
        x.history.len(),
        1,
        "one line for one contract, however often it is settled"
    );
}

#[test]
fn cancelling_pays_the_time_used_and_refunds_the_rest() {
    let mut world = World::new();
    let id = world.active();
    world.pass(HOUR);
    let Reply::Now(contract) = world.ok(world.developer, Command::Cancel(id)) else {
        panic!()
    };
    assert_eq!(contract.escrow.released, PRICE);
    assert_eq!(contract.escrow.refunded, 9 * PRICE);
    assert_eq!(contract.escrow.held, 0);
    assert_eq!(world.money(world.developer), 1_000 * DCT - PRICE);
    world.again(world.developer, Command::Cancel(id));
    world.pass(100 * HOUR);
    assert_eq!(
        world.contract(&id).escrow,
        contract.escrow,
        "an ended contract accrues nothing"
    );
    world.assert_replay();
}

#[test]
fn accrual_stops_when_the_host_reports_the_vm_gone() {
    let mut world = World::new();
    let id = world.active();
    world.pass(HOUR / 2);
    world.ok(
        world.host,
        Command::VmGone(VmGoneArgs {
            contract: id,
            reason: "crashed".into(),
        }),
    );
    let contract = world.contract(&id);
    assert_eq!(contract.state, ContractState::Ended(EndReason::VmGone));
    assert_eq!(contract.escrow.released, PRICE / 2);
    assert!(contract.refusals[0].contains("crashed"));
    world.refused(
        world.host,
        Command::Refuse(RefuseArgs {
            contract: id,
            reason: String::new(),
        }),
        "ended",
    );
}

#[test]
fn a_period_that_is_over_pays_all_of_it_and_ends_at_its_end() {
    let mut world = World::new();
    let id = world.active();
    let end = world.contract(&id).deadline.unwrap();
    world.pass(50 * HOUR); // nobody looked for days
    let contract = world.contract(&id);
    assert_eq!(contract.state, ContractState::Ended(EndReason::PeriodOver));
    assert_eq!(contract.ended_at, Some(end));
    assert_eq!(
        (contract.escrow.released, contract.escrow.refunded),
        (10 * PRICE, 0)
    );
    world.refused(world.developer, Command::Cancel(id), "ended");
    world.assert_replay();
}

#[test]
fn extending_keeps_the_contract_and_is_charged_once() {
    let mut world = World::new();
    let id = world.active();
    world.pass(HOUR);
    let extend = |period_s, memo| {
        Command::Extend(ExtendArgs {
            contract: id,
            period_s,
            max_total: 5 * PRICE,
            memo,
        })
    };
    let Reply::Now(contract) = world.ok(world.developer, extend(2 * HOUR, 1)) else {
        panic!()
    };
    assert_eq!(contract.period_s, 12 * HOUR);
    assert_eq!(contract.deadline, Some((START_S + 12 * HOUR) * SECOND));
    assert_eq!(contract.escrow.funded, 12 * PRICE);
    assert_eq!(contract.state, ContractState::Active);
    world.again(world.developer, extend(2 * HOUR, 1));
    world.refused(world.developer, extend(3 * HOUR, 1), "memo");
    world.refused(world.developer, extend(0, 2), "period_s");
    world.refused(world.developer, extend(6 * HOUR, 3), "max_total");
    world.refused(world.developer, extend(u64::MAX, 4), "period_s");
    world.refused(world.other, extend(HOUR, 5), "only the contract's developer");
    let ahead = 366 * 24 * HOUR;
    let big = ExtendArgs {
        contract: id,
        period_s: ahead,
        max_total: u64::MAX,
        memo: 6,
    };
    world.refused(world.developer, Command::Extend(big), "paid ahead");
    world.pass(11 * HOUR);
    assert_eq!(world.contract(&id).escrow.released, 12 * PRICE);
    world.refused(world.developer, extend(HOUR, 7), "active");
    world.assert_replay();
}

#[test]
fn a_drained_host_takes_no_extension() {
    let mut world = World::new();
    let id = world.active();
    let beat = HeartbeatArgs {
        version: "1".into(),
        degraded: vec![id],
        draining: true,
        update: None,
    };
    world.ok(world.host, Command::Heartbeat(beat));
    let extend = ExtendArgs {
        contract: id,
        period_s: HOUR,
        max_total: u64::MAX,
        memo: 1,
    };
    world.refused(world.developer, Command::Extend(extend), "drained");
    assert!(
        matches!(world.rent_with(|_| ()), Err(LedgerError::DoesNotFit { reasons }) if reasons[0].field == "host")
    );
}

#[test]
fn capacity_is_held_until_the_host_releases_and_never_counted_twice() {
    let mut world = World::new();
    let free = |world: &World| world.state.offerings()[0].free;
    let id = world.active();
    assert_eq!(
        free(&world),
        Capacity {
            vcpus: 6,
            memory_mib: 14_336,
            storage_gib: 90,
            gpus: 0
        }
    );
    world.refused(world.host, Command::Released(id), "ended");
    world.ok(world.developer, Command::Cancel(id));
    assert_eq!(free(&world).vcpus, 6, "the host still holds it");
    assert_eq!(world.state.host_contracts(world.host, &world.host).len(), 1);
    world.ok(world.host, Command::Released(id));
    world.again(world.host, Command::Released(id));
    assert_eq!(free(&world), spec().capacity);
    assert!(world.state.host_contracts(world.host, &world.host).is_empty());
    for _ in 0..4 {
        world.rent();
    }
    let refused = world.rent_with(|_| ());
    assert!(
        matches!(refused, Err(LedgerError::DoesNotFit { reasons }) if reasons.iter().any(|r| r.field == "vcpus"))
    );
}

#[test]
fn both_sides_gain_one_percent_of_the_payment_up_to_the_cap() {
    let mut world = World::new();
    let id = world.active();
    world.pass(HOUR);
    world.ok(world.other, Command::Settle(id));
    for who in [world.developer, world.provider] {
        assert_eq!(world.state.reputation(&who).score, PRICE / 100);
        assert_eq!(world.state.reputation(&who).history[0].contract, Some(id));
    }
    let mut genesis = genesis();
    genesis.parameters.reputation_cap = 5;
    let mut world = World::with(genesis);
    let id = world.active();
    for _ in 0..5 {
        world.pass(HOUR);
        world.ok(world.other, Command::Settle(id));
    }
    assert_eq!(
        world.state.reputation(&world.provider).score,
        5,
        "the cap is for the contract, not for a settlement"
    );
}

#[test]
fn paying_oneself_gives_no_reputation() {
    let mut genesis = genesis();
    let provider = World::empty(genesis.clone()).provider;
    genesis.balances.push(InitialBalance {
        owner: provider,
        amount: 100 * DCT,
        reason: "self-dealing".into(),
    });
    let mut world = World::with(genesis);
    world.developer = provider;
    world.ok(provider, Command::RegisterDeveloper);
    let id = world.active();
    world.pass(10 * HOUR);
    assert_eq!(world.contract(&id).escrow.released, 10 * PRICE);
    assert_eq!(world.state.reputation(&provider).score, 0);
}
