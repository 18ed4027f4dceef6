//! Block rewards.

use super::*;

const BLOCK_S: u64 = 600;
const REWARD: Amount = 50 * DCT;

fn check_in(world: &mut World, who: Principal) -> CheckIn {
    match world.ok(who, Command::CheckIn) {
        Reply::CheckedIn(check_in) => check_in,
        other => panic!("{other:?}"),
    }
}

/// A world with more registered providers.
fn with_providers(names: &[&str]) -> (World, Vec<Principal>) {
    let mut world = World::new();
    let providers: Vec<Principal> = names.iter().map(|name| principal(name)).collect();
    for (name, who) in names.iter().zip(&providers) {
        let profile = profile(&format!("{name}.example"));
        world.ok(*who, Command::RegisterProvider(profile));
    }
    (world, providers)
}

#[test]
fn equal_participants_share_a_block_and_each_pays_a_hundredth_of_it() {
    let (mut world, providers) = with_providers(&["a", "b"]);
    let first = check_in(&mut world, providers[0]);
    assert_eq!(
        first,
        CheckIn {
            block: 0,
            ends_at: (START_S + BLOCK_S) * SECOND,
            weight: 1,
            fee: REWARD / 100,
        }
    );
    world.again(providers[0], Command::CheckIn);
    check_in(&mut world, providers[1]);
    let fees = world.money(world.state.genesis().fees_wallet);
    world.pass(BLOCK_S - 1);
    assert_eq!(world.money(providers[0]), 0, "the block isn't over");
    world.pass(1);
    for who in &providers {
        assert_eq!(world.money(*who), REWARD / 2 - REWARD / 100);
    }
    assert_eq!(
        world.money(world.state.genesis().fees_wallet) - fees,
        2 * REWARD / 100
    );
    assert_eq!(
        world.state.supply(),
        2_000 * DCT + REWARD,
        "all of it, and no more"
    );
    world.pass(10 * BLOCK_S);
    assert_eq!(
        world.state.supply(),
        2_000 * DCT + REWARD,
        "who doesn't check in again gets nothing more"
    );
    world.assert_replay();
}

#[test]
fn a_block_without_participants_carries_its_reward_over() {
    let (mut world, providers) = with_providers(&["a"]);
    world.pass(7 * BLOCK_S + 17);
    assert_eq!(world.state.supply(), 2_000 * DCT, "nothing is minted for nobody");
    let rewards = world.state.rewards(providers[0], world.now);
    assert_eq!(
        (rewards.block, rewards.pool, rewards.own_weight),
        (7, 8 * REWARD, None)
    );
    check_in(&mut world, providers[0]);
    let rewards = world.state.rewards(providers[0], world.now);
    assert_eq!((rewards.participants, rewards.own_weight), (1, Some(1)));
    world.pass(BLOCK_S);
    assert_eq!(world.money(providers[0]), rewards.share(1));
    assert_eq!(rewards.share(1), 8 * REWARD - REWARD / 100);
    world.assert_replay();
}

#[test]
fn the_weight_is_the_square_root_of_reputation_and_one() {
    let (mut world, providers) = with_providers(&["a"]);
    // 1 % of 31.00000007 DCT: 310,000,000 base units.
    world.active();
    world.pass(10 * HOUR);
    let score = world.state.reputation(&world.provider).score;
    assert_eq!(score, 310_000_000);
    let provider = world.provider;
    let own = check_in(&mut world, provider);
    assert_eq!(own.weight, 17_606 + 1);
    check_in(&mut world, providers[0]);
    let before = world.money(world.provider);
    let pool = world.state.rewards(providers[0], world.now).pool;
    world.pass(BLOCK_S);
    let fee = REWARD / 100;
    assert_eq!(
        world.money(world.provider) - before,
        (u128::from(pool) * 17_607 / 17_608) as u64 - fee
    );
    assert_eq!(world.money(providers[0]), (pool / 17_608).saturating_sub(fee));
    world.assert_replay();
}

#[test]
fn the_fee_never_exceeds_the_share() {
    let names: Vec<String> = (0..150).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut world, providers) = with_providers(&names);
    for who in &providers {
        check_in(&mut world, *who);
    }
    world.pass(BLOCK_S);
    assert!(providers.iter().all(|who| world.money(*who) == 0));
    let fees = world.money(world.state.genesis().fees_wallet);
    assert_eq!(fees, REWARD / 150 * 150, "what rounding leaves is carried over");
    world.assert_replay();
}

#[test]
fn only_registered_providers_take_part_and_only_for_themselves() {
    let mut world = World::new();
    for who in [world.developer, world.host, principal("stranger")] {
        world.refused(who, Command::CheckIn, "only registered providers");
    }
    let provider = world.provider;
    check_in(&mut world, provider);
    let seen_by_host = world.state.rewards(world.host, world.now);
    assert_eq!(seen_by_host.own_weight, Some(1), "its provider's");
}

/// However late it is noticed, a block is shared among those who took part in it.
#[test]
fn a_block_is_shared_as_of_its_end() {
    let (mut world, providers) = with_providers(&["a", "b"]);
    check_in(&mut world, providers[0]);
    world.now += 3 * BLOCK_S * SECOND;
    let late = check_in(&mut world, providers[1]);
    assert_eq!(late.block, 3);
    assert_eq!(world.money(providers[0]), REWARD - REWARD / 100);
    world.pass(BLOCK_S);
    assert_eq!(world.money(providers[1]), 3 * REWARD - REWARD / 100);
    world.assert_replay();
}

#[test]
fn after_the_last_era_nothing_is_minted_any_more() {
    let (mut world, providers) = with_providers(&["a"]);
    world.pass(36 * 210_000 * BLOCK_S);
    check_in(&mut world, providers[0]);
    world.pass(BLOCK_S);
    let cap = 20_999_999_996_850_000;
    assert_eq!(world.money(providers[0]), cap, "all that was carried over");
    assert_eq!(world.state.rewards(providers[0], world.now).minted, cap);
    world.refused(providers[0], Command::CheckIn, "every token has been minted");
    world.assert_replay();
}
