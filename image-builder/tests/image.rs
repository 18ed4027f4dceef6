//! The provider's image in a real machine: OVMF with secure boot, swtpm, QEMU without hardware virtualization.
//!
//! Run by `make test-image`, which builds two images first and names them: `DC_IMAGE`, and `DC_IMAGE_AGAIN`, built at
//! another time into another directory; `IMAGE_BUILDER_CACHE` holds QEMU. One machine runs at a time.
#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use image_builder::appliance::flash::{FlashError, Target};
use image_builder::appliance::image::Image;
use image_builder::appliance::qemu::{Machine, Running, Serial};
use image_builder::appliance::report;
use image_builder::appliance::tools::{self, Tools};
use image_builder::apt::Apt;

/// Generous: beside five builds on two cores the first boot took more than seven minutes, alone it takes one or two.
const BOOT_TIME_MAX: Duration = Duration::from_secs(900);

fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run this test by `make test-image`"))
        .into()
}

fn image() -> (PathBuf, Image) {
    let dir = named("DC_IMAGE");
    let image = Image::read(&dir).unwrap();
    (dir, image)
}

fn qemu() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let apt = Apt {
            cache: named("IMAGE_BUILDER_CACHE"),
            refresh: false,
        };
        Tools::prepare(&apt, "run", &tools::RUN, &"trixie".parse().unwrap(), None).unwrap()
    })
}

/// Only one emulator at a time, whoever runs the tests.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A machine with a disk of its own, which is gone with it.
struct Host {
    dir: tempfile::TempDir,
    machine: Machine,
    boots: u32,
}

impl Host {
    fn new(image: &Path, description: &Image) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine {
            dir: dir.path().join("machine"),
            memory_mib: 2048,
            cpus: 2,
            disk_mib: 6144,
            kvm: false,
            forward: Vec::new(),
            extra: Vec::new(),
        };
        machine.insert_disk(&image.join(&description.disk.file)).unwrap();
        Self {
            dir,
            machine,
            boots: 0,
        }
    }

    fn boot(&mut self) -> Boot {
        self.boots += 1;
        let log = self.dir.path().join(format!("serial-{}", self.boots));
        let running = self.machine.start(qemu(), &Serial::File(log.clone())).unwrap();
        Boot { running, log }
    }

    /// Flips one bit of the disk: `at` bytes behind the first place from `from` on that holds `wanted`.
    fn flip(&self, from: u64, wanted: &[u8], at: u64) {
        let disk = File::options()
            .read(true)
            .write(true)
            .open(self.machine.disk())
            .unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut start = from;
        let place = loop {
            let length = disk.read_at(&mut buffer, start).unwrap();
            assert!(
                length > wanted.len(),
                "the disk doesn't hold what is to be flipped"
            );
            match buffer[..length]
                .windows(wanted.len())
                .position(|window| window == wanted)
            {
                Some(found) => break start + found as u64 + at,
                None => start += (length - wanted.len()) as u64,
            }
        };
        let mut byte = [0];
        disk.read_exact_at(&mut byte, place).unwrap();
        disk.write_all_at(&[byte[0] ^ 1], place).unwrap();
    }
}

struct Boot {
    running: Running,
    log: PathBuf,
}

impl Boot {
    /// What came over the serial port, without the terminal's escapes.
    fn text(&self) -> String {
        let raw = fs::read(&self.log).unwrap_or_default();
        let raw = String::from_utf8_lossy(&raw).replace('\r', "\n");
        let mut text = String::new();
        let mut rest = raw.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            text.push_str(before);
            let end = after
                .find(|c: char| c.is_ascii_alphabetic())
                .map_or(after.len(), |at| at + 1);
            rest = &after[end..];
        }
        text + rest
    }

    /// Waits for one of `wanted` and returns all that came until then.
    fn until(&mut self, wanted: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if wanted.iter().any(|wanted| text.contains(wanted)) {
                return text;
            }
            let tail: String = text
                .lines()
                .rev()
                .take(40)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .map(|l| format!("{l}\n"))
                .collect();
            assert!(
                !self.running.has_ended(),
                "the machine ended without {wanted:?}:\n{tail}"
            );
            assert!(
                start.elapsed() < BOOT_TIME_MAX,
                "no {wanted:?} in {BOOT_TIME_MAX:?}:\n{tail}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

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
