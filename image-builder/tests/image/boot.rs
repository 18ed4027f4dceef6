//! What one machine does from power on to READY, what it refuses to boot, and how the image gets onto a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flash::{Confirmed, FlashError, Target};
use image_builder::appliance::image::{Image, ImageError};
use image_builder::appliance::qemu::{Part, keyboard};
use image_builder::appliance::report;

use crate::machine::{BOOT_TIME_MAX, Host, alone, image, named};
use crate::provider::Provider;

#[test]
fn two_builds_give_the_same_bytes() {
    let (_, first) = image();
    let second = Image::read(&named("DC_IMAGE_AGAIN")).unwrap();
    assert_eq!(report::diff(&first, &second), Vec::<String>::new());
    assert_eq!(first, second);
}

/// Value of a PCR in what the machine reported last.
pub(crate) fn pcr(report: &str, number: &str) -> String {
    let start = format!("  PCR {number}  ");
    let value = report.lines().rev().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_default().trim().to_lowercase()
}

/// Goal: one machine's life. The current fails in the middle of the first boot; then it does what the signed prediction
/// says, keeps its state for itself, runs hostd, and opens its state to nobody else but the holder of the recovery key.
/// Method: four boots of one disk; what the machine says on its serial ports is compared.
#[test]
fn a_blank_machine_becomes_a_host_and_keeps_its_state_for_itself() {
    let _alone = alone();
    let (dir, image) = image();
    let ready = format!("READY {} {}", image.name, image.image_version);
    let mut host = Host::new(&dir, &image);

    // First boot: keys are enrolled, partitions made, and the current fails before anything was mounted.
    let mut boot = host.boot();
    boot.until(&["Custom Secure Boot keys successfully enrolled"]);
    host.until_partition("state");
    drop(boot);

    // It goes on from there: no second enrolment, all as predicted, the image is good, and the recovery key is shown.
    let mut boot = host.boot();
    let text = boot.until(&[&ready]);
    assert!(!text.contains("successfully enrolled"), "{text}");
    for line in [
        "secure boot  yes",
        "TPM          yes",
        "state        open",
        "10.0.2.15/24",
        "hostd        not configured",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("FAILED "), "{text}");
    for (number, wanted) in [
        ("4", std::slice::from_ref(&image.pcr_4)),
        ("7", std::slice::from_ref(&image.pcr_7)),
        ("11", &image.profiles[0].pcr_11),
        ("12", &["0".repeat(64)]),
        ("13", &["0".repeat(64)]),
    ] {
        let found = pcr(&boot.report(), number);
        assert!(wanted.contains(&found), "PCR {number} is {found}, not {wanted:?}");
    }
    let text = boot.until(&["good since this boot"]);
    let key = recovery_key(&text).unwrap_or_else(|| panic!("no recovery key in\n{text}"));
    let first_principal = boot.principal();
    let provider = Provider::without_ledger();
    let delegation = STANDARD.encode(provider.delegation(&mut boot));
    let settings = provider.settings("under-test", &format!("delegation = \"{delegation}\""));
    fs::write(provider.at("seed"), settings).unwrap();
    drop(boot);

    // The settings come by the hypervisor, and with them a longer command line: that one shows in PCR 12, and nowhere else.
    let extra = [
        "-fw_cfg",
        &format!(
            "name=opt/io.systemd.credentials/provider-seed,file={}",
            provider.at("seed").display()
        ),
        "-smbios",
        "type=11,value=io.systemd.stub.kernel-cmdline-extra=quiet",
    ];
    let mut boot = host.boot_with(&[], &extra.map(str::to_owned));
    let status = boot.line("status ");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let text = boot.until(&[&ready]);
    assert!(!text.contains("recovery key"), "it is shown once\n{text}");
    let report = boot.report();
    assert!(
        report.contains(", good\n") && !report.contains("FAILED "),
        "{report}"
    );
    assert_eq!(pcr(&report, "4"), image.pcr_4);
    assert_ne!(pcr(&report, "12"), "0".repeat(64));
    assert_eq!(status["name"], "under-test", "{status}");
    assert_eq!(status["contracts"]["running"], 0, "{status}");
    // Its screen answers keys.
    let before = fs::read(&boot.logs[0]).unwrap().len();
    boot.type_keys("?");
    boot.until_after(before, "ends this page");
    drop(boot);

    // Another TPM doesn't open the state; a wrong key doesn't either; the recovery key does.
    let own_tpm_back = host.change_tpm();
    let mut boot = host.boot();
    let question = "Please enter recovery key";
    let text = boot.until(&[question, &ready]);
    assert!(
        text.contains("The state partition is LOCKED") && !text.contains(&ready),
        "{text}"
    );
    let before = fs::read(&boot.logs[0]).unwrap().len();
    boot.type_keys("wrong\r");
    boot.until_after(before, question);
    boot.type_keys(&format!("{key}\r"));
    let text = boot.until(&[&ready]);
    assert!(text.contains("state        open"), "{text}");
    // To the ledger this is another host: its key stayed in the other TPM. It waits for its provider's word.
    boot.until(&["delegation   missing"]);
    assert_ne!(boot.principal(), first_principal);
    drop(boot);
    own_tpm_back();
}

/// The key that was shown: eight groups of eight letters.
fn recovery_key(text: &str) -> Option<String> {
    let is_key = |line: &&str| {
        let groups: Vec<&str> = line.split('-').collect();
        groups.len() == 8 && groups.iter().all(|group| group.len() == 8)
    };
    text.lines().map(str::trim).find(is_key).map(str::to_owned)
}

/// Boots a machine from elsewhere than its disk: the whole system is in memory, and the disk stays as it is.
fn live_from(without: &[Part], extra: &[String]) {
    let (dir, image) = image();
    let mut host = Host::new(&dir, &image);
    let before = host.partitions();
    let mut boot = host.boot_with(without, extra);
    let text = boot.until(&[&format!("READY {} {}", image.name, image.image_version)]);
    assert!(text.contains("state        in memory"), "{text}");
    assert!(
        !text.contains("FAILED ") && !text.contains("recovery key"),
        "{text}"
    );
    drop(boot);
    assert_eq!(host.partitions(), before);
}

#[test]
fn the_iso_boots_to_ready_and_leaves_the_disk_alone() {
    let _alone = alone();
    let (dir, image) = image();
    live_from(&[], &disc(&dir, &image));
}

/// QEMU's arguments for a disc that the machine starts from.
pub(crate) fn disc(dir: &Path, image: &Image) -> [String; 6] {
    let iso = dir.join(&image.iso.as_ref().expect("built with --iso").file);
    let iso = fs::canonicalize(iso).unwrap();
    let disc = format!(
        "if=none,id=disc,format=raw,media=cdrom,readonly=on,file={}",
        iso.display()
    );
    let arguments = [
        "-drive",
        &disc,
        "-device",
        "virtio-scsi-pci",
        "-device",
        "scsi-cd,drive=disc,bootindex=0",
    ];
    arguments.map(str::to_owned)
}

/// The firmware asks the network (PXE), and loads the kernel image by TFTP from the folder that the build made.
#[test]
fn the_network_boots_to_ready_and_leaves_the_disk_alone() {
    let _alone = alone();
    let (dir, image) = image();
    let live = &image.live.as_ref().expect("built with --iso").file;
    let folder = fs::canonicalize(dir).unwrap();
    let server = format!("user,id=net,tftp={},bootfile={live}", folder.display());
    let card = ["-device", "virtio-net-pci,netdev=net,romfile=,bootindex=0"];
    let extra = ["-netdev", &server, card[0], card[1]];
    live_from(&[Part::Network], &extra.map(str::to_owned));
}

/// Each thing that is wrong with a machine is named on its console, with what to do, and it stays there.
#[test]
fn a_machine_without_tpm_secure_boot_and_network_says_what_is_missing() {
    let _alone = alone();
    let (dir, image) = image();
    let mut host = Host::new(&dir, &image);
    let extra = ["-rtc", "base=2001-01-01T00:00:00"].map(str::to_owned);
    let mut boot = host.boot_with(&[Part::Tpm, Part::SecureBoot, Part::Network], &extra);
    let text = boot.until(&["NO CARD", "READY "]);
    for line in [
        "secure boot  NO: ",
        "TPM          NO: in the firmware",
        "state        MISSING: it is made at the first boot with a TPM",
        "clock        ",
        "NOT CHECKED: no time server answered",
        "network      NO CARD",
        "on trial",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("READY "), "{text}");
}

#[test]
fn one_flipped_bit_in_root_kernel_or_command_line_stops_the_boot() {
    let _alone = alone();
    let (dir, image) = image();
    let ready = format!("READY {} {}", image.name, image.image_version);
    // The kernel image holds its command lines as they are, and a part of the compressed kernel in its middle. erofs'
    // superblock begins with its magic number, 1,024 bytes into the root; the kernel image happens to hold these bytes
    // too, so they are looked for behind its partition.
    let erofs = 0xe0f5_e1e2_u32.to_le_bytes();
    let uki = fs::read(dir.join(&image.uki.file)).unwrap();
    let middle = (uki.len() / 2) & !4095;
    let secure_boot = [
        "Access denied",
        "Access Denied",
        "Security Violation",
        "Security violation",
    ];
    for (what, from_mib, wanted, at, refusals) in [
        (
            "root",
            1025,
            &erofs[..],
            20,
            &["The root of this image does not check out"][..],
        ),
        ("kernel image", 1, &uki[middle..middle + 64], 7, &secure_boot),
        (
            "command line",
            1,
            b"systemd.import_credentials=no",
            27,
            &secure_boot,
        ),
    ] {
        let mut host = Host::new(&dir, &image);
        host.flip(from_mib << 20, wanted, at);
        let mut boot = host.boot();
        let text = boot.until(&[refusals, &[&ready]].concat());
        assert!(
            !text.contains(&ready),
            "a flipped bit in the {what} went unnoticed:\n{text}"
        );
    }
}

#[test]
fn flashing_asks_for_the_name_refuses_small_disks_and_reads_back() {
    let (dir, image) = image();
    let wanted = image.wanted();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("stick");
    fs::write(&path, "something small").unwrap();
    assert!(matches!(
        Target::open(&path, &wanted),
        Err(FlashError::TooSmall { size: 15, .. })
    ));
    // A larger disk with something at its end, where an older partition table's copy would lie.
    let file = File::create(&path).unwrap();
    let size = image.disk_size + (64 << 20);
    file.set_len(size).unwrap();
    file.write_all_at(b"EFI PART", size - 512).unwrap();
    let refused = Target::open(&path, &wanted).unwrap().confirm("stock");
    assert!(matches!(refused, Err(FlashError::NotConfirmed { .. })));
    Target::open(&path, &wanted)
        .unwrap()
        .confirm("stick\n")
        .unwrap()
        .write(&mut image.disk(&dir).unwrap(), &wanted, &|_, _| ())
        .unwrap();
    let mut end = [1; 8];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut end, size - 512)
        .unwrap();
    assert_eq!(end, [0; 8]);
    // A damaged image is found before any disk is touched, and one that is another than was wanted at the end.
    let damaged = scratch.path().join("image");
    fs::create_dir(&damaged).unwrap();
    let mut content = fs::read(dir.join(&image.disk.file)).unwrap();
    content[1 << 20] ^= 1;
    fs::write(damaged.join(&image.disk.file), content).unwrap();
    let refused = image.disk(&damaged).map(drop);
    assert!(matches!(refused, Err(ImageError::Damaged(_))), "{refused:?}");
    let confirmed = Target::open(&path, &wanted).unwrap().confirm("stick").unwrap();
    let refused = confirmed.write(&mut &b"something else"[..], &wanted, &|_, _| ());
    assert!(matches!(refused, Err(FlashError::Verify(_))), "{refused:?}");
    // A new file is whole or not there.
    let new = scratch.path().join("new");
    let open = || Target::open(&new, &wanted).unwrap();
    let broken = |confirmed: Confirmed| confirmed.write(&mut &b"short"[..], &wanted, &|_, _| ());
    for refused in [
        open().confirm("old").map(drop),
        open().confirm("new").and_then(broken),
    ] {
        assert!(refused.is_err() && !new.exists(), "{refused:?}");
    }
    // A file system's place in the tree is no disk, and neither is a folder.
    let refused = Target::open(scratch.path(), &wanted);
    assert!(matches!(refused, Err(FlashError::NotADisk(_))), "{refused:?}");
}

/// Ended by a signal, `image-builder run` leaves no machine behind.
#[test]
fn a_machine_ends_with_the_command_that_runs_it() {
    let _alone = alone();
    let (dir, _) = image();
    let scratch = tempfile::tempdir().unwrap();
    let log = scratch.path().join("serial");
    let mut command = Command::new(env!("CARGO_BIN_EXE_image-builder"))
        .arg("run")
        .arg(&dir)
        .arg("--state")
        .arg(scratch.path())
        .arg("--serial")
        .arg(&log)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let connect = || UnixStream::connect(keyboard(&log));
    while connect().is_err() {
        assert!(start.elapsed() < BOOT_TIME_MAX && command.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(
        Command::new("kill")
            .arg(command.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    command.wait().unwrap();
    while connect().is_ok() {
        assert!(start.elapsed() < BOOT_TIME_MAX, "the machine goes on");
        std::thread::sleep(Duration::from_millis(200));
    }
}
