//! Spending reputation.

use super::*;

fn penalty(contract: ContractId, amount: u64, memo: u64) -> Command {
    Command::Penalise(PenaliseArgs {
        contract,
        amount,
        reason: "the disk was slow".into(),
        memo,
    })
}

/// A contract that gave both sides 310,000,000 base units.
fn settled() -> (World, ContractId) {
    let mut world = World::new();
    let id = world.active();
    world.pass(10 * HOUR);
    (world, id)
}

fn score(world: &World, who: Principal) -> u64 {
    world.state.reputation(&who).score
}

#[test]
fn a_penalty_takes_twice_what_it_costs_and_both_histories_say_why() {
    let (mut world, id) = settled();
    let reply = world.ok(world.developer, penalty(id, 100_000_000, 1));
    assert_eq!(
        reply,
        Reply::Penalised(Penalty {
            spent: 100_000_000,
            lost: 200_000_000
        })
    );
    assert_eq!(score(&world, world.developer), 210_000_000);
    assert_eq!(score(&world, world.provider), 110_000_000);
    for (who, delta, words) in [
        (
            world.developer,
            -100_000_000,
            "spent to penalise: the disk was slow",
        ),
        (world.provider, -200_000_000, "penalised: the disk was slow"),
    ] {
        let history = world.state.reputation(&who).history;
        let last = history.last().unwrap();
        assert_eq!(
            (last.delta, last.reason.as_str(), last.contract),
            (delta, words, Some(id))
        );
        let sum: i64 = history.iter().map(|change| change.delta).sum();
        assert_eq!(sum, score(&world, who) as i64, "the history is the whole story");
    }
    world.assert_replay();
}

#[test]
fn nobody_falls_below_zero() {
    let (mut world, id) = settled();
    let all = score(&world, world.provider);
    world.refused(world.provider, penalty(id, all + 1, 1), "your own reputation");
    world.refused(world.provider, penalty(id, u64::MAX, 1), "your own reputation");
    world.refused(world.provider, penalty(id, 0, 1), "from 1");
    let reply = world.ok(world.provider, penalty(id, all, 1));
    assert_eq!(
        reply,
        Reply::Penalised(Penalty {
            spent: all,
            lost: all
        })
    );
    assert_eq!(score(&world, world.provider), 0);
    assert_eq!(score(&world, world.developer), 0);
    world.refused(world.developer, penalty(id, 1, 1), "your own reputation, 0");
    world.assert_replay();
}

#[test]
fn a_repeated_penalty_happens_once_and_a_side_has_four() {
    let (mut world, id) = settled();
    let first = world.ok(world.developer, penalty(id, 1, 1));
    assert_eq!(world.again(world.developer, penalty(id, 1, 1)), first);
    world.refused(
        world.developer,
        penalty(id, 2, 1),
        "another penalty of yours has it",
    );
    for memo in 2..=4 {
        world.ok(world.developer, penalty(id, 1, memo));
    }
    world.refused(world.developer, penalty(id, 1, 5), "four penalties");
    world.ok(world.provider, penalty(id, 1, 1));
}

#[test]
fn only_the_sides_of_a_contract_penalise_and_only_each_other() {
    let (mut world, id) = settled();
    for who in [world.other, world.host, principal("stranger")] {
        world.refused(who, penalty(id, 1, 1), "only a side of the contract");
    }
    let unknown = ContractId::from_slice(&[7; 32]).unwrap();
    world.refused(world.developer, penalty(unknown, 1, 1), "not found");
    let mut args = PenaliseArgs {
        contract: id,
        amount: 1,
        reason: "\u{1b}[2J".into(),
        memo: 1,
    };
    world.refused(world.developer, Command::Penalise(args.clone()), "reason");
    args.reason = "x".repeat(201);
    world.refused(world.developer, Command::Penalise(args), "reason");
}

/// Nobody pays themselves into reputation, and so nobody spends it on themselves either.
#[test]
fn a_provider_that_rented_from_itself_has_no_other_side() {
    let mut genesis = genesis();
    let own = World::empty(genesis.clone()).provider;
    genesis.balances.push(InitialBalance {
        owner: own,
        amount: 1_000 * DCT,
        reason: "its own customer".into(),
    });
    let mut world = World::with(genesis);
    world.ok(own, Command::RegisterDeveloper);
    let args = RentArgs {
        memo: 9,
        ..rent_args(world.offering)
    };
    let Reply::Contract(id) = world.ok(own, Command::Rent(args)) else {
        panic!()
    };
    world.refused(own, penalty(id, 1, 1), "only the other");
}
