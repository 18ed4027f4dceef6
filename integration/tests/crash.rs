//! hostd dies by SIGKILL at every write of its journal, and nothing is lost, doubled or left behind: the real process, the
//! real ledger, real namespaces and disks, VMs that are the fake Cloud Hypervisor's processes.
//!
//! Needs root, and a hostd built with the feature `fault-injection` beside this test's programs: `make test`.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::fleet::{DieAt, Fleet, Options};
use ledger::api::{Contract, ContractState, EndReason};

/// A whole life has at least so many writes; fewer deaths mean that hostd doesn't know HOSTD_DIE_AT_WRITE.
const WRITES_MIN: u32 = 8;
/// And surely not more than so many.
const WRITES_MAX: u32 = 100;
/// Most that one life may take, deaths included.
const LIFE: Duration = Duration::from_secs(30);

fn fleet(prefix: &str) -> Result<Fleet> {
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_demo"));
    let programs = demo.parent().context("a program lies in a folder")?;
    let mut fleet = Fleet::start(&Options::new(prefix, programs.to_owned()))?;
    fleet.start_hostd(None)?;
    fleet.wait_offering(Duration::from_secs(30))?;
    Ok(fleet)
}

/// Whether hostd has nothing left to do.
fn idle(fleet: &Fleet) -> bool {
    fleet.status().is_ok_and(|status| {
        let counts = status.contracts;
        counts.provisioning + counts.running + counts.removing == 0
    })
}

/// One contract from rent to release on a hostd that dies as told, up to `times` times. Answers how often it died, and
/// the contract at its end.
fn life(fleet: &mut Fleet, die_at: DieAt, times: u32) -> Result<(u32, Contract)> {
    fleet.kill_hostd()?;
    fleet.start_hostd(Some(die_at))?;
    let id = fleet.rent(1)?[0];
    let (started, mut deaths, mut cancelled) = (Instant::now(), 0, false);
    loop {
        if let Some(status) = fleet.hostd_ended()? {
            ensure!(status.signal() == Some(9), "hostd ended by itself with {status}");
            deaths += 1;
            fleet.start_hostd((deaths < times).then_some(die_at))?;
        }
        let contract = fleet.contract(id)?;
        if contract.state == ContractState::Active && !cancelled {
            fleet.cancel(&[id])?;
            cancelled = true;
        }
        if contract.released && idle(fleet) {
            return Ok((deaths, contract));
        }
        ensure!(
            started.elapsed() < LIFE,
            "after {LIFE:?} the contract is {:?}, hostd says {:?}",
            contract.state,
            fleet.get("/v1/contracts")
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Money accounted for once, nothing of the VM left.
fn check(fleet: &Fleet, contract: &Contract, balance_before: u64) -> Result<()> {
    let ContractState::Ended(reason) = contract.state else {
        anyhow::bail!("released, but {:?}", contract.state);
    };
    ensure!(
        reason == EndReason::Cancelled,
        "ended as {reason:?}: {:?}",
        contract.refusals
    );
    let escrow = contract.escrow;
    ensure!(
        escrow.held == 0 && escrow.funded == escrow.released + escrow.refunded,
        "{escrow:?}"
    );
    ensure!(
        escrow.released == escrow.to_provider + escrow.to_dao + escrow.to_fees,
        "{escrow:?}"
    );
    let paid = balance_before - fleet.balance()?;
    ensure!(
        paid == escrow.released,
        "the developer paid {paid}, the contract {escrow:?}"
    );
    let books = fleet.invariants()?;
    ensure!(
        books.violations.is_empty() && books.supply == books.balances,
        "{books:?}"
    );
    let left = fleet.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    let status = fleet.status()?;
    ensure!(
        status.quarantine.is_empty(),
        "hostd doesn't know its own: {:?}",
        status.quarantine
    );
    ensure!(
        status.capacity.vcpus.used == 0,
        "capacity is lost: {:?}",
        status.capacity
    );
    Ok(())
}

/// Every N from 1 until hostd outlives a whole life; odd ones before the commit, even ones after it when `odd_before`,
/// the other way round when not, so that two rounds cover both moments of every write.
fn every_write(fleet: &mut Fleet, times: u32, odd_before: bool) -> Result<u32> {
    let mut all_deaths = 0;
    for write in 1..=WRITES_MAX {
        let before = (write % 2 == 1) == odd_before;
        let balance = fleet.balance()?;
        let die_at = DieAt { write, before };
        let step = || format!("{die_at:?}, up to {times} deaths");
        let (deaths, contract) = life(fleet, die_at, times).with_context(step)?;
        check(fleet, &contract, balance).with_context(step)?;
        all_deaths += deaths;
        if deaths == 0 {
            println!(
                "up to {times} death(s) at each of {} writes: {all_deaths} deaths",
                write - 1
            );
            return Ok(write - 1);
        }
    }
    anyhow::bail!("more than {WRITES_MAX} writes in one life")
}

/// Goal: no write of the journal is a bad moment to die. Method: kill -9 at the N-th write, for every N of a whole life
/// (rent, active, cancel, released); once in one round, twice in a row in another.
#[test]
fn hostd_may_die_at_every_write_of_its_journal_once_or_twice_and_nothing_is_lost_doubled_or_left() {
    let mut fleet = fleet("dccr").unwrap();
    for (times, odd_before) in [(1, true), (2, false)] {
        let started = Instant::now();
        let result = every_write(&mut fleet, times, odd_before)
            .with_context(|| format!("hostd's log ends:\n{}", fleet.world.log_tail("hostd", 30)));
        let writes = result.unwrap();
        println!("… in {:.1} s", started.elapsed().as_secs_f32());
        assert!(
            writes >= WRITES_MIN,
            "hostd died at {writes} writes only: it is built without `fault-injection`; run `make test`"
        );
    }
    fleet.remove().unwrap();
}

/// Goal: what the benchmarks stand on holds. Method: ten VMs at once, hostd killed under them, adopted, all cancelled.
#[test]
fn ten_vms_rented_at_once_outlive_their_hostd_and_leave_nothing() {
    let mut fleet = fleet("dcfl").unwrap();
    let ids = fleet.rent(10).unwrap();
    fleet.wait_active(&ids, Duration::from_secs(60)).unwrap();
    let vmms = fleet.vmms().unwrap();
    assert_eq!(vmms.len(), 10);
    let there = fleet.leftovers().unwrap();
    for kind in ["VMM ", "namespace ", "link ", "rule ", "file "] {
        let found = there.iter().filter(|what| what.starts_with(kind)).count();
        assert!(found > 0, "no {kind}is seen while ten VMs run: {there:?}");
    }
    assert!(fleet.metrics().unwrap().contains("hostd_contracts"));
    println!("hostd with ten VMs: {} KiB", fleet.hostd_rss_kib().unwrap());
    fleet.kill_hostd().unwrap();
    fleet.start_hostd(None).unwrap();
    let status = fleet.wait_hostd(Duration::from_secs(30)).unwrap();
    assert_eq!(status.contracts.running, 10);
    assert_eq!(
        fleet.vmms().unwrap(),
        vmms,
        "the VMs are adopted, not started again"
    );
    fleet.cancel(&ids).unwrap();
    fleet.wait_released(&ids, Duration::from_secs(60)).unwrap();
    assert_eq!(fleet.leftovers().unwrap(), Vec::<String>::new());
    fleet.remove().unwrap();
}
