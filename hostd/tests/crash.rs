//! No crash loses, leaks or releases anything twice.
//!
//! Method: a clean run of the whole life of a contract counts the moments at which hostd can die (before and after each
//! journal write, before and after each effect, in the middle of a launch). Then each of them in turn is the last one,
//! for the daemon alone or for the whole machine; the next life of hostd may die too, at every moment of a sample; the
//! last one must bring the contract to its end with nothing left and the money where it belongs.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod sim;

use std::sync::Arc;

use ledger::api::{ContractState, EndReason};
use sim::{Life, NEVER, State, World, id, money::request};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    /// `kill -9` of hostd; VMs run on.
    Daemon,
    /// The machine reboots.
    Power,
}

const ME: u8 = 1;

fn active(state: &State) -> bool {
    state.contracts[&id(ME)].state == ContractState::Active
}

fn over(state: &State) -> bool {
    matches!(state.contracts[&id(ME)].state, ContractState::Ended(_))
}

fn released(state: &State) -> bool {
    state.contracts[&id(ME)].released
}

/// The developer's part of the story: waits for the VM, uses it, cancels. Returns when hostd has died or all is done.
async fn story(life: &Life) {
    life.until("active or over", |state| active(state) || over(state))
        .await;
    if life.fuse.is_blown() {
        return;
    }
    life.world.change(|state| {
        if active(state) {
            state.end(id(ME), EndReason::Cancelled);
        }
    });
    life.until("released", released).await;
    // The last thing hostd does is a line in its journal.
    for _ in 0..2000 {
        if life.fuse.is_blown()
            || life
                .journal
                .open_records()
                .await
                .is_ok_and(|records| records.is_empty())
        {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("released, but still open in the journal");
}

async fn one(cuts: &[usize], crash: Crash) -> (Arc<World>, Vec<usize>) {
    let world = World::new();
    world.change(|state| state.rent(request(id(ME), 1)));
    let mut moments = Vec::new();
    for cut in cuts.iter().copied().chain([NEVER]) {
        let life = Life::start(&world, cut).await;
        story(&life).await;
        moments.push(life.fuse.moments());
        let allocations = life.journal.allocations().await;
        let died = life.fuse.is_blown();
        if !died {
            assert_eq!(
                allocations.unwrap(),
                [],
                "{crash:?} after {cuts:?}: capacity isn't free again"
            );
        }
        life.kill().await;
        if died && crash == Crash::Power {
            world.power_cycle();
        }
    }
    (world, moments)
}

fn check(world: &World, cuts: &[usize], crash: Crash) {
    assert_eq!(
        world.leftovers(),
        [] as [String; 0],
        "{crash:?} after {cuts:?} moments"
    );
    let contract = world.contract(id(ME));
    let ContractState::Ended(reason) = contract.state else {
        panic!("{:?}", contract.state)
    };
    let full_refund = contract.escrow.refunded == contract.escrow.funded;
    match (contract.active_since, reason) {
        // It went on, and ended as the developer said, or with the machine.
        (Some(_), EndReason::Cancelled) => {}
        (Some(_), EndReason::VmGone) => assert_eq!(crash, Crash::Power, "after {cuts:?} moments"),
        // It never ran: all of the money is back.
        (None, _) => assert!(full_refund, "{crash:?} after {cuts:?}: {:?}", contract.escrow),
        (Some(_), other) => panic!("{crash:?} after {cuts:?}: ended as {other:?}"),
    }
    // A crash of the daemon alone never costs a contract.
    assert!(
        crash == Crash::Power || contract.active_since.is_some(),
        "after {cuts:?} moments"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_survives_a_crash_after_any_journal_write_and_any_effect() {
    let (world, moments) = one(&[], Crash::Daemon).await;
    check(&world, &[], Crash::Daemon);
    let clean = moments[0];
    assert!(
        (40..400).contains(&clean),
        "{clean} moments; is everything behind the fuse?"
    );
    for crash in [Crash::Daemon, Crash::Power] {
        for cut in 0..clean {
            let (world, _) = one(&[cut], crash).await;
            check(&world, &[cut], crash);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_survives_a_crash_too() {
    let (_, moments) = one(&[], Crash::Daemon).await;
    let clean = moments[0];
    // Every first cut; second cuts early in the recovery, where it differs, and one that walks through all of it.
    for crash in [Crash::Daemon, Crash::Power] {
        for first in 0..clean {
            for second in [0, 1, 3, (first * 7) % clean] {
                let cuts = [first, second];
                let (world, _) = one(&cuts, crash).await;
                check(&world, &cuts, crash);
            }
        }
    }
}
