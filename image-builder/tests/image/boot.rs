//! What one machine does from power on to READY, what it refuses to boot, and how the image gets onto a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use image_builder::appliance::flash::{FlashError, Target};
use image_builder::appliance::image::Image;
use image_builder::appliance::report;

use crate::machine::{Host, alone, image, named};

#[test]
fn two_builds_give_the_same_bytes() {
    let (_, first) = image();
    let second = Image::read(&named("DC_IMAGE_AGAIN")).unwrap();
    assert_eq!(report::diff(&first, &second), Vec::<String>::new());
    assert_eq!(first, second);
}

/// Goal: the machine does what the signed prediction says, and keeps its state for itself. Method: a blank machine
/// enrols the keys, boots, makes its state partition; PCRs are read on the console; the second boot opens the state.
#[test]
fn a_blank_machine_enrols_the_keys_boots_and_measures_what_was_predicted() {
    let _alone = alone();
    let (dir, image) = image();
    let mut host = Host::new(&dir, &image);
    for boot in ["first", "second"] {
        let ready = format!("READY {} {}", image.name, image.image_version);
        let mut running = host.boot();
        let text = running.until(&[&ready]);
        assert_eq!(
            boot == "first",
            text.contains("Custom Secure Boot keys successfully enrolled"),
            "{boot}"
        );
        assert_eq!(
            boot == "first",
            text.contains("recovery key of this machine"),
            "{boot}: {text}"
        );
        for line in ["secure boot  yes", "TPM          yes", "state        open"] {
            assert!(text.contains(line), "{boot} boot: no {line:?} in\n{text}");
        }
        let pcr = |number: &str| {
            let start = format!("  PCR {number}  ");
            let value = text
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix(&start))
                .unwrap_or_default();
            value.trim().to_lowercase()
        };
        assert_eq!(pcr("4"), image.pcr_4, "{boot} boot: PCR 4");
        assert_eq!(pcr("7"), image.pcr_7, "{boot} boot: PCR 7");
        let wanted = &image.profiles[0].pcr_11;
        assert!(
            wanted.contains(&pcr("11")),
            "{boot} boot: PCR 11 {} is none of {wanted:?}",
            pcr("11")
        );
    }
}

#[test]
fn one_flipped_bit_in_the_root_or_the_kernel_image_stops_the_boot() {
    let _alone = alone();
    let (dir, image) = image();
    let ready = format!("READY {} {}", image.name, image.image_version);
    // The kernel image holds its command lines as they are. erofs' superblock begins with its magic number, 1,024 bytes
    // into the root; the kernel image happens to hold these bytes too, so they are looked for behind its partition.
    let erofs = 0xe0f5_e1e2_u32.to_le_bytes();
    for (what, from_mib, wanted, at, refusals) in [
        (
            "root",
            1025,
            &erofs[..],
            20,
            &["is corrupted", "Failed to mount sysroot.mount", "emergency"][..],
        ),
        (
            "kernel image",
            1,
            b"systemd.import_credentials=no",
            27,
            &[
                "Access denied",
                "Access Denied",
                "Security Violation",
                "Security violation",
            ],
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
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("stick");
    fs::write(&path, "something small").unwrap();
    assert!(matches!(
        Target::open(&path, &image),
        Err(FlashError::TooSmall { size: 15, .. })
    ));
    // A larger disk with something at its end, where an older partition table's copy would lie.
    let file = File::create(&path).unwrap();
    let size = image.disk_size + (64 << 20);
    file.set_len(size).unwrap();
    file.write_all_at(b"EFI PART", size - 512).unwrap();
    let refused = Target::open(&path, &image).unwrap().confirm("stock");
    assert!(matches!(refused, Err(FlashError::NotConfirmed { .. })));
    Target::open(&path, &image)
        .unwrap()
        .confirm("stick\n")
        .unwrap()
        .write(&dir, &image, &|_, _, _| ())
        .unwrap();
    let mut end = [1; 8];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut end, size - 512)
        .unwrap();
    assert_eq!(end, [0; 8]);
    // A damaged image is found before the disk is touched.
    let damaged = scratch.path().join("image");
    fs::create_dir(&damaged).unwrap();
    let mut content = fs::read(dir.join(&image.disk.file)).unwrap();
    content[1 << 20] ^= 1;
    fs::write(damaged.join(&image.disk.file), content).unwrap();
    let target = Target::open(&path, &image).unwrap().confirm("stick").unwrap();
    let refused = target.write(&damaged, &image, &|_, _, _| ());
    assert!(matches!(refused, Err(FlashError::Damaged(_))), "{refused:?}");
}
