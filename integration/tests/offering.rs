//! What hostd offers stays true while others fill its file system.
//!
//! Needs root: `make test`.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fleet::{Fleet, Options, wait_for};

/// Goal: never more storage is offered than there is. Method: 100,000 GiB configured on a file system of 8; then somebody
/// takes 3 of them; then gives them back.
#[test]
fn the_offered_storage_follows_the_file_system() {
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_demo"));
    let mut fleet = Fleet::start(&Options {
        storage_gib: 8,
        ..Options::new("dcof", demo.parent().unwrap().to_owned())
    })
    .unwrap();
    story(&mut fleet)
        .with_context(|| format!("hostd's log ends:\n{}", fleet.world.log_tail("hostd", 20)))
        .unwrap();
    fleet.remove().unwrap();
}

/// Goal: a host that can't run VMs when hostd starts offers as soon as it can, without anybody's help. Method: the VMM isn't
/// there yet.
#[test]
fn a_host_whose_vmm_comes_late_offers_then() {
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_demo"));
    let programs = demo.parent().unwrap();
    let late = tempfile::tempdir().unwrap();
    let vmm = late.path().join("vmm");
    let mut fleet = Fleet::start(&Options {
        vmm: Some(vmm.clone()),
        ..Options::new("dclv", programs.to_owned())
    })
    .unwrap();
    fleet.start_hostd(None).unwrap();
    let trouble = wait_for("hostd to say why", Duration::from_secs(30), || {
        Ok(fleet
            .status()
            .ok()
            .and_then(|status| status.ledger.registration_trouble))
    })
    .unwrap();
    assert!(trouble.contains("no kind of VM can be hosted here"), "{trouble}");
    std::os::unix::fs::symlink(programs.join("fake-cloud-hypervisor"), &vmm).unwrap();
    fleet.wait_offering(Duration::from_secs(30)).unwrap();
    fleet.remove().unwrap();
}

fn offered(fleet: &Fleet) -> Result<u64> {
    Ok(fleet.offered()?.capacity.storage_gib)
}

fn story(fleet: &mut Fleet) -> Result<()> {
    fleet.start_hostd(None)?;
    fleet.wait_offering(Duration::from_secs(30))?;
    let all = offered(fleet)?;
    ensure!(
        (6..=7).contains(&all),
        "{all} GiB are offered of a file system of 8"
    );
    ensure!(
        fleet.status()?.capacity.storage_gib.total == all,
        "the status says otherwise"
    );

    // A contract's own disk is no loss.
    let ids = fleet.rent(2)?;
    fleet.wait_active(&ids, Duration::from_secs(30))?;
    let filler = fleet.world.path("storage/somebody-elses");
    let file = File::create(&filler)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 3 << 30)?;
    wait_for("less to be offered", Duration::from_secs(20), || {
        Ok((offered(fleet)? == all - 3).then_some(()))
    })?;
    drop(file);
    std::fs::remove_file(&filler)?;
    wait_for("all to be offered again", Duration::from_secs(20), || {
        Ok((offered(fleet)? == all).then_some(()))
    })?;
    fleet.cancel(&ids)?;
    fleet.wait_released(&ids, Duration::from_secs(30))
}
