//! A live image puts its system onto a disk of the machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::boot::{disc, pcr};
use crate::machine::{BOOT_TIME_MAX, Host, alone, image};

/// Goal: a machine with an empty disk, started from the ISO, becomes what a flashed disk makes of it, and the disk that
/// isn't meant stays as it is.
/// Method: the conversation on the serial console with a disk that is too small, one that isn't there, and a name that is
/// typed wrongly; then the disk's content is compared, and it boots.
#[test]
fn a_live_image_installs_itself_and_the_disk_boots() {
    let _alone = alone();
    let (dir, image) = image();
    let mut host = Host::blank();
    let small = host.dir.path().join("small");
    let old = b"an older partition table's copy";
    File::create(&small)
        .and_then(|file| file.set_len(1 << 30))
        .unwrap();
    let end = (u64::from(host.machine.disk_mib) << 20) - 512;
    let disk = File::options()
        .read(true)
        .write(true)
        .open(host.machine.disk())
        .unwrap();
    disk.write_all_at(old, end).unwrap();
    let drive = format!("if=none,id=small,format=raw,file={}", small.display());
    let extra = [
        &disc(&dir, &image)[..],
        &[
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=small",
            "-no-reboot",
        ]
        .map(str::to_owned),
    ];
    let mut boot = host.boot_with(&[], &extra.concat());
    boot.until(&["Press Enter here to install this system"]);
    for (typed, answers) in [
        ("", &["Type the name of the disk"][..]),
        ("sdz", &["There is no disk \"sdz\"", "Type the name"]),
        (
            "vdb",
            &["vdb can't be taken: too small: 1.0 GiB", "Type the name"],
        ),
        ("vda", &["Everything on vda (6.0 GiB", "Type vda again"]),
        (
            "vdb",
            &["\"vdb\" is not \"vda\": nothing was written", "Type the name"],
        ),
        ("vda", &["Type vda again"]),
    ] {
        let before = fs::read(&boot.logs[0]).unwrap().len();
        let _port = boot.type_keys(&format!("{typed}\r"));
        for answer in answers {
            boot.until_after(before, answer);
        }
    }
    let mut start = [0; 4096];
    disk.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [0; 4096], "written before its name was typed twice");
    let before = fs::read(&boot.logs[0]).unwrap().len();
    let port = boot.type_keys("vda\r");
    let done = format!("vda holds {} {}", image.name, image.image_version);
    boot.until_after(before, &done);
    boot.until_after(before, "then press Enter");
    drop(port);
    boot.type_keys("\r");
    let waiting = Instant::now();
    while !boot.running.has_ended() {
        assert!(waiting.elapsed() < BOOT_TIME_MAX, "the machine doesn't restart");
        std::thread::sleep(Duration::from_millis(500));
    }
    drop(boot);

    let mut found = [0; 31];
    disk.read_exact_at(&mut found, end).unwrap();
    assert_eq!(found, [0; 31]);
    let mut whole = File::open(host.machine.disk()).unwrap();
    let (digest, _) = flash::digest(&mut std::io::Read::take(&mut whole, image.disk_size)).unwrap();
    assert_eq!(digest, image.disk_sha256);

    let mut boot = host.boot();
    boot.until(&["Custom Secure Boot keys successfully enrolled"]);
    boot.until(&["good since this boot"]);
    let report = boot.report();
    for line in ["secure boot  yes", "state        open"] {
        assert!(report.contains(line), "no {line:?} in\n{report}");
    }
    assert_eq!(pcr(&report, "4"), image.pcr_4);
    assert_eq!(pcr(&report, "7"), image.pcr_7);
}
