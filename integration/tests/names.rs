//! Names that tenants bring, against a real DNS server and a real HAProxy: real ledger, hostd and namespaces, VMs that are the
//! fake Cloud Hypervisor's processes (so what reaches a VM gets no answer, and what isn't routed is closed at once).
//!
//! Needs root, haproxy and dnsmasq: `make test`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candid::Principal;
use hostd::names::OwnName;
use hostd::surface::model::ContractLine;
use integration::dns;
use integration::fleet::{Fleet, Options, wait_for};
use integration::main_job::world::{self, HOST_ADDRESS, Place, WAN_ADDRESS};
use ledger::api::ContractId;
use ledger::name_proof::{record_name, record_value};

const NAME: &str = "shop.example.test";
const SOON: Duration = Duration::from_secs(15);

fn fleet() -> Result<Fleet> {
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_demo"));
    let programs = demo.parent().context("a program lies in a folder")?;
    let mut fleet = Fleet::start(&Options {
        ingress: true,
        more_config: format!("[names]\nnameservers = [\"{WAN_ADDRESS}\"]\nretry_max_s = 1\nrecheck_s = 1\n"),
        ..Options::new("dcnm", programs.to_owned())
    })?;
    publish(&mut fleet, &[Principal::anonymous()])?;
    fleet.start_hostd(None)?;
    fleet.wait_offering(Duration::from_secs(30))?;
    Ok(fleet)
}

/// What DNS says: whose the name is.
fn publish(fleet: &mut Fleet, developers: &[Principal]) -> Result<()> {
    let records: Vec<_> = developers
        .iter()
        .map(|developer| (record_name(NAME), record_value(*developer)))
        .collect();
    dns::serve(&mut fleet.world, &records)
}

/// What hostd says of a contract's name.
fn own_name(fleet: &Fleet, id: ContractId) -> Result<OwnName> {
    let lines: Vec<ContractLine> = serde_json::from_str(&fleet.get("/v1/contracts?all=false")?)?;
    let line = lines.into_iter().find(|line| line.id == id.to_string());
    line.and_then(|line| line.own_name)
        .context("hostd doesn't show the contract's name")
}

/// Waits until hostd says of it what `says` holds.
fn until_said(fleet: &Fleet, id: ContractId, routed: bool, says: &str) -> Result<()> {
    let mut last = None;
    wait_for("hostd to say it", SOON, || {
        let name = own_name(fleet, id)?;
        let done = name.routed == routed && name.line().contains(says);
        last = Some(name);
        Ok(done.then_some(()))
    })
    .with_context(|| format!("wanted routed = {routed} and {says:?}, last {last:?}"))
}

/// Whether HAProxy forwards to a VM by this name: over TLS by SNI, and by the Host header. What has no route is closed at
/// once; what has one waits for a guest that never answers (curl exits with 28).
fn is_routed(fleet: &Fleet, name: &str) -> Result<bool> {
    let mut ways = Vec::new();
    for (scheme, port) in [("https", 443), ("http", 80)] {
        let mut curl = fleet.world.command(Place::Internet, "curl");
        curl.args([
            "-sk",
            "--max-time",
            "1",
            "--resolve",
            &format!("{name}:{port}:{HOST_ADDRESS}"),
        ]);
        curl.arg(format!("{scheme}://{name}/"));
        let code = world::output(&mut curl)?.status.code();
        ensure!(
            matches!(code, Some(28 | 35 | 52 | 56)),
            "curl {scheme}: exit {code:?}"
        );
        ways.push(code == Some(28));
    }
    ensure!(ways[0] == ways[1], "TLS and HTTP are routed differently");
    Ok(ways[0])
}

fn network_changes(fleet: &Fleet) -> usize {
    fleet
        .world
        .log_tail("hostd", usize::MAX)
        .matches("network changed")
        .count()
}

#[test]
fn a_name_is_routed_for_whom_dns_names_through_restarts_and_outages_and_for_nobody_else() {
    let mut fleet = fleet().unwrap();
    let result = story(&mut fleet)
        .with_context(|| format!("hostd's log ends:\n{}", fleet.world.log_tail("hostd", 30)));
    result.unwrap();
    fleet.remove().unwrap();
}

fn story(fleet: &mut Fleet) -> Result<()> {
    let me = fleet.developer()?;
    let first = fleet.rent_named(NAME)?;
    fleet.wait_active(&[first], SOON)?;
    let derived = format!("{}.vm.provider.test", first.short());
    ensure!(is_routed(fleet, &derived)?, "the derived name isn't routed");

    // Somebody else's record, then none.
    until_said(fleet, first, false, "names another developer")?;
    ensure!(!is_routed(fleet, NAME)?, "routed by somebody else's record");
    publish(fleet, &[])?;
    until_said(fleet, first, false, "no such TXT record")?;
    let name = own_name(fleet, first)?;
    ensure!(
        name.record == record_name(NAME) && name.value == record_value(me),
        "{name:?}"
    );
    ensure!(
        fleet.status()?.contracts.names_not_routed == 1,
        "not in the status"
    );

    // Ours, beside somebody else's.
    publish(fleet, &[Principal::anonymous(), me])?;
    until_said(fleet, first, true, "routed")?;
    ensure!(is_routed(fleet, NAME)?, "proved and not routed");
    println!("hostd, one VM, name proved: {} KiB", fleet.hostd_rss_kib()?);

    // DNS is down, hostd is killed and starts again: nothing changes.
    dns::stop(&mut fleet.world)?;
    fleet.kill_hostd()?;
    ensure!(is_routed(fleet, NAME)?, "the route went with hostd");
    let changes = network_changes(fleet);
    fleet.start_hostd(None)?;
    fleet.wait_hostd(SOON)?;
    until_said(fleet, first, true, "routed, but DNS doesn't answer")?;
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(5) {
        ensure!(own_name(fleet, first)?.routed, "an outage took the route away");
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(is_routed(fleet, NAME)?, "an outage took the route away");
    ensure!(network_changes(fleet) == changes, "a restart changed the network");

    // A second contract of the same developer: the first keeps the name while it lives.
    publish(fleet, &[me])?;
    until_said(fleet, first, true, "routed")?;
    let second = fleet.rent_named(NAME)?;
    fleet.wait_active(&[second], SOON)?;
    until_said(
        fleet,
        second,
        false,
        &format!("leads to contract {}", first.short()),
    )?;
    fleet.cancel(&[first])?;
    fleet.wait_released(&[first], SOON)?;
    until_said(fleet, second, true, "routed")?;
    ensure!(
        is_routed(fleet, NAME)?,
        "the second contract has the name and no route"
    );

    // The record goes: the route goes, the VM stays.
    publish(fleet, &[])?;
    until_said(fleet, second, false, "no such TXT record")?;
    ensure!(!is_routed(fleet, NAME)?, "routed without a record");
    let derived = format!("{}.vm.provider.test", second.short());
    ensure!(is_routed(fleet, &derived)?, "the derived name went too");
    fleet.cancel(&[second])?;
    fleet.wait_released(&[second], SOON)?;
    let left = fleet.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
