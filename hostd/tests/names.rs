//! Names that tenants bring, on the simulated host: routed by proof only, for as long as it holds, through any crash.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod sim;

use std::sync::Arc;
use std::time::Duration;

use ledger::api::{Contract, ContractState, EndReason};
use ledger::name_proof::{record_name, record_value};
use sim::money::request;
use sim::{Life, NEVER, State, World, id};

const NAME: &str = "shop.tenant.example";

fn named(n: u8) -> Contract {
    let mut contract = request(id(n), n);
    contract.args.tls_name = Some(NAME.into());
    contract
}

/// What DNS says of the name from now on; `None`: its servers fail.
fn publish(world: &World, texts: Option<&[String]>) {
    world.change(|state| state.dns.insert(record_name(NAME), texts.map(<[String]>::to_vec)));
}

fn record_of(contract: &Contract) -> String {
    record_value(contract.developer)
}

/// The slot that the name leads to.
fn route(state: &State) -> Option<u16> {
    state.network.routes.get(&NAME.parse().unwrap()).copied()
}

async fn active(world: &Arc<World>, n: u8) {
    world
        .until("active", |state| {
            state.contracts[&id(n)].state == ContractState::Active
        })
        .await;
}

async fn slot(life: &Life, n: u8) -> u16 {
    let record = life.journal.record(id(n)).await.unwrap().unwrap();
    record.allocation.unwrap().slot
}

#[tokio::test]
async fn a_contract_becomes_active_without_its_name_and_the_name_is_routed_by_its_own_developers_record_only()
{
    let world = World::new();
    let life = Life::start(&world, NEVER).await;
    let (mine, theirs) = (named(1), named(2));
    assert_ne!(record_of(&mine), record_of(&theirs));
    publish(&world, Some(&[record_of(&theirs), "v=spf1 -all".into()]));
    world.change(|state| state.rent(mine.clone()));
    active(&world, 1).await;
    let lack = loop {
        match life.ctx.names.lack(id(1)) {
            Some(lack) => break lack,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert!(lack.contains("names another developer"), "{lack}");
    assert_eq!(world.state().network.routes.len(), 1, "the derived name only");

    publish(&world, Some(&[record_of(&theirs), record_of(&mine)]));
    world.until("routed", |state| route(state).is_some()).await;
    let slot = slot(&life, 1).await;
    assert_eq!(route(&world.state()), Some(slot));

    // Servers that fail say nothing, for however long; a definite no ends the route.
    publish(&world, None);
    while !life
        .ctx
        .names
        .lack(id(1))
        .is_some_and(|lack| lack.contains("SERVFAIL"))
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(route(&world.state()).is_some());
    publish(&world, Some(&[]));
    world.until("withdrawn", |state| route(state).is_none()).await;
    assert_eq!(world.contract(id(1)).state, ContractState::Active);
    life.kill().await;
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[tokio::test]
async fn of_two_contracts_with_one_name_the_first_keeps_it_and_the_other_follows_when_it_goes() {
    let world = World::new();
    let life = Life::start(&world, NEVER).await;
    let (first, second) = (named(1), named(2));
    publish(&world, Some(&[record_of(&first), record_of(&second)]));
    world.change(|state| state.rent(first));
    active(&world, 1).await;
    world.until("routed", |state| route(state).is_some()).await;
    let held = route(&world.state());
    world.change(|state| state.rent(second));
    active(&world, 2).await;
    while !life
        .ctx
        .names
        .lack(id(2))
        .is_some_and(|lack| lack.contains("leads to contract 01010101"))
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(route(&world.state()), held);
    world.change(|state| state.end(id(1), EndReason::Cancelled));
    let next = slot(&life, 2).await;
    world
        .until("the second has it", |state| route(state) == Some(next))
        .await;
    assert_eq!(life.ctx.names.lack(id(1)), None, "what is over is not shown");
    life.kill().await;
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

/// hostd dies at every moment of the life of a contract with a name. After the last start the name is routed; a start
/// with a proved name never takes the route away, even while DNS is down.
#[tokio::test]
async fn a_proved_name_survives_every_crash() {
    let mut cuts = 0;
    for cut in (0..).step_by(3) {
        let world = World::new();
        let contract = named(1);
        publish(&world, Some(&[record_of(&contract)]));
        world.change(|state| state.rent(contract));
        let life = Life::start(&world, cut).await;
        life.until("routed and active", |state| {
            route(state).is_some() && state.contracts[&id(1)].state == ContractState::Active
        })
        .await;
        let whole = !life.fuse.is_blown();
        let proved = life_proved(&life).await;
        life.kill().await;

        if proved {
            publish(&world, None);
        }
        let life = Life::start(&world, NEVER).await;
        active(&world, 1).await;
        world.until("routed again", |state| route(state).is_some()).await;
        if proved {
            tokio::time::sleep(Duration::from_millis(60)).await;
            assert!(route(&world.state()).is_some(), "cut {cut}");
        }
        life.kill().await;
        assert_eq!(world.leftovers(), [] as [String; 0], "cut {cut}");
        if whole {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 8, "only {cuts} crashes");
}

/// Whether the journal of a (perhaps dead) life has the proof: read by a life of its own.
async fn life_proved(life: &Life) -> bool {
    let journal = hostd::journal::Journal::open(&life.world.dir.path().join("journal.db")).unwrap();
    let record = journal.record(id(1)).await.unwrap();
    record.is_some_and(|record| record.own_name.is_some())
}
