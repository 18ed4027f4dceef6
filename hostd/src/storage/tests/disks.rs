//! Disks and seeds: made, locked, half made by a crash, wiped.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use ledger::api::Bytes;

use super::super::*;
use super::store;
use crate::seed::SeedNetwork;

const ID: ContractId = Bytes([0xC0; 32]);
const OTHER: ContractId = Bytes([0xC1; 32]);

#[tokio::test]
async fn a_disk_is_reserved_whole_and_wiped_to_nothing_and_both_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    assert_eq!(store.observe_disk(ID).await.unwrap(), DiskState::Absent);
    let path = store
        .create_disk(ID, 1, Encryption::None, Owner { uid: 0, gid: 0 })
        .await
        .unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.len(), meta.blocks() * 512 >= 1 << 30, meta.mode() & 0o777),
        (1 << 30, true, 0o600)
    );
    assert!(store.space().await.unwrap().used_bytes >= 1 << 30);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(b"LUKS\xba\xbe tenant's own header")
        .unwrap();
    let again = store
        .create_disk(ID, 1, Encryption::None, Owner::SELF)
        .await
        .unwrap();
    assert_eq!(again, path);
    assert!(
        std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"LUKS")),
        "content stays"
    );
    let error = store
        .create_disk(ID, 2, Encryption::None, Owner::SELF)
        .await
        .unwrap_err();
    assert!(matches!(error, StorageError::OtherDisk { .. }), "{error}");
    assert_eq!(store.disks().await.unwrap(), [ID]);
    let report = store.wipe(ID).await.unwrap();
    assert_eq!(
        report,
        WipeReport {
            disk_removed: true,
            ..WipeReport::default()
        }
    );
    assert_eq!(store.wipe(ID).await.unwrap(), WipeReport::default());
    assert_eq!(
        (
            store.space().await.unwrap().used_bytes,
            store.disks().await.unwrap()
        ),
        (0, vec![])
    );
}

#[tokio::test]
async fn a_disk_that_a_process_holds_locked_is_not_wiped() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let path = store
        .create_disk(ID, 1, Encryption::None, Owner::SELF)
        .await
        .unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // QEMU locks single bytes (from 100 on) shared, Cloud Hypervisor all of them.
    let one_byte = libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&one_byte)).unwrap();
    let error = store.wipe(ID).await.unwrap_err();
    assert!(
        matches!(error, StorageError::InUse { .. }) && error.is_transient(),
        "{error}"
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
    drop(file);
    assert!(store.wipe(ID).await.unwrap().disk_removed);
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_found_replaced_and_wiped() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    for left in [
        format!("disks/{ID}.raw.new"),
        format!("keys/{ID}.key"),
        format!("keys/{ID}.new"),
    ] {
        std::fs::write(dir.path().join(&left), b"half").unwrap();
        assert_eq!(store.disks().await.unwrap(), [ID], "{left}");
        store.wipe(ID).await.unwrap();
        assert_eq!(store.disks().await.unwrap(), [], "{left}");
        std::fs::write(dir.path().join(&left), b"half").unwrap();
        store
            .create_disk(ID, 1, Encryption::None, Owner::SELF)
            .await
            .unwrap();
        assert!(!dir.path().join(&left).exists(), "{left}");
        store.wipe(ID).await.unwrap();
    }
    // A disk whose header a crash in mid-wipe discarded, with the key not yet gone: never handed out as a plain one.
    std::fs::write(dir.path().join(format!("disks/{ID}.raw")), [0; 4096]).unwrap();
    std::fs::write(dir.path().join(format!("keys/{ID}.key")), [0; 64]).unwrap();
    assert!(matches!(
        store.observe_disk(ID).await.unwrap(),
        DiskState::Partial(_)
    ));
    assert!(store.wipe(ID).await.unwrap().key_destroyed);
}

#[tokio::test]
async fn a_disk_that_does_not_fit_or_has_no_sane_size_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    for (gib, want) in [
        (0, "1 to 1048576 GiB"),
        (1 << 20, "are available in"),
        (u64::MAX, "1 to 1048576 GiB"),
    ] {
        let error = store
            .create_disk(ID, gib, Encryption::None, Owner::SELF)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{gib}: {error}");
    }
    assert_eq!(store.disks().await.unwrap(), []);
}

#[tokio::test]
async fn encryption_is_given_or_refused_but_never_silently_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let outcome = store.create_disk(ID, 1, Encryption::Luks2, Owner::SELF).await;
    if store.at_rest().is_available() {
        encrypted_disk(&store, &outcome.unwrap()).await;
    } else {
        assert!(
            matches!(outcome, Err(StorageError::EncryptionUnavailable { .. })),
            "{outcome:?}"
        );
        assert_eq!(store.disks().await.unwrap(), []);
    }
}

/// What only a kernel with device-mapper can show.
async fn encrypted_disk(store: &Store, path: &Path) {
    assert!(path.starts_with("/dev/mapper"));
    let ready = store.observe_disk(ID).await.unwrap();
    assert!(
        matches!(&ready, DiskState::Ready { encryption: Encryption::Luks2, path: p, .. } if p == path),
        "{ready:?}"
    );
    let mut mapped = OpenOptions::new().read(true).write(true).open(path).unwrap();
    assert_eq!(
        std::io::Seek::seek(&mut mapped, std::io::SeekFrom::End(0)).unwrap(),
        1 << 30,
        "the size that was paid"
    );
    std::io::Seek::rewind(&mut mapped).unwrap();
    mapped
        .write_all(b"a tenant's secret that must not be readable on the disk")
        .unwrap();
    mapped.sync_all().unwrap();
    let file = std::fs::read(store.config().dir.join(format!("disks/{ID}.raw"))).unwrap();
    assert!(!file[..32 << 20].windows(15).any(|w| w == b"tenant's secret"));
    let error = store.wipe(ID).await.unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    drop(mapped);
    // As after a reboot: everything is there, only not open; another uid gets it.
    luks::close(ID).unwrap();
    assert_eq!(store.observe_disk(ID).await.unwrap(), DiskState::Locked);
    let owner = Owner {
        uid: 12345,
        gid: 12345,
    };
    assert_eq!(
        store.create_disk(ID, 1, Encryption::Luks2, owner).await.unwrap(),
        path
    );
    assert_eq!(std::fs::metadata(path).unwrap().uid(), 12345);
    let mut again = [0; 17];
    std::io::Read::read_exact(&mut std::fs::File::open(path).unwrap(), &mut again).unwrap();
    assert_eq!(&again, b"a tenant's secret");
    let error = store
        .create_disk(ID, 1, Encryption::None, Owner::SELF)
        .await
        .unwrap_err();
    assert!(matches!(error, StorageError::OtherDisk { .. }), "{error}");
    assert!(store.wipe(ID).await.unwrap().key_destroyed);
    assert_eq!(store.observe_disk(ID).await.unwrap(), DiskState::Absent);
    assert!(!path.exists());
}

#[test]
fn encryption_support_names_every_missing_part() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let reasons = || match luks::support(root.path()) {
        EncryptionSupport::Luks2 => vec![],
        EncryptionSupport::Unavailable { reasons } => reasons,
    };
    assert_eq!(reasons().len(), 2);
    put("proc/misc", "236 device-mapper\n");
    assert!(reasons()[0].contains("/dev/mapper/control"));
    put("dev/mapper/control", "");
    assert_eq!(
        reasons(),
        ["cryptsetup is not installed (package cryptsetup-bin)"]
    );
    put("usr/sbin/cryptsetup", "");
    assert_eq!(luks::support(root.path()), EncryptionSupport::Luks2);
}

/// The part of encryption that needs no kernel support: a real header, opened by exactly the key that is on disk.
#[test]
fn cryptsetup_makes_a_header_that_the_key_file_opens_and_nothing_does_after_the_key_is_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, key) = (dir.path().join("disk"), dir.path().join("key"));
    std::fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    luks::format(&disk, &key).unwrap();
    assert!(luks::has_header(&disk).unwrap());
    let opens = || {
        let out = std::process::Command::new("cryptsetup")
            .args(["open", "--test-passphrase", "--type=luks2", "--key-file"])
            .args([&key, &disk])
            .output()
            .expect("cryptsetup is installed (package cryptsetup-bin)");
        out.status.success()
    };
    assert!(opens());
    assert!(luks::destroy_key(&key).unwrap());
    assert!(!key.exists() && !opens());
    assert!(!luks::destroy_key(&key).unwrap());
}

#[tokio::test]
async fn a_seed_is_written_replaced_and_removed_with_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let spec = SeedSpec {
        contract: OTHER,
        salt: OTHER,
        public_keys: vec![],
        tls_names: vec![],
        user_data: b"#!/bin/sh\n".to_vec(),
        network: SeedNetwork {
            mac: "02:00:00:00:00:01".into(),
            address: "100.64.0.1".parse().unwrap(),
            gateway: "169.254.1.1".parse().unwrap(),
            nameservers: vec![],
            mtu: None,
        },
    };
    let path = store.write_seed(spec.clone(), Owner::SELF).await.unwrap();
    assert_eq!(store.write_seed(spec.clone(), Owner::SELF).await.unwrap(), path);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let bad = SeedSpec {
        public_keys: vec!["nonsense".into()],
        ..spec
    };
    assert!(matches!(
        store.write_seed(bad, Owner::SELF).await,
        Err(StorageError::Seed(_))
    ));
    assert_eq!(store.disks().await.unwrap(), [OTHER]);
    assert!(store.wipe(OTHER).await.unwrap().seed_removed);
    assert_eq!(store.disks().await.unwrap(), []);
}
