//! The machine that a test boots, what it says on its serial port, and where the images are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use image_builder::appliance::image::Image;
use image_builder::appliance::qemu::{Machine, Running, Serial};
use image_builder::appliance::tools::{self, Tools};
use image_builder::apt::Apt;

/// Generous: beside five builds on two cores the first boot took more than seven minutes, alone it takes one or two.
pub(crate) const BOOT_TIME_MAX: Duration = Duration::from_secs(900);

pub(crate) fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run this test by `make test-image`"))
        .into()
}

pub(crate) fn image() -> (PathBuf, Image) {
    let dir = named("DC_IMAGE");
    let image = Image::read(&dir).unwrap();
    (dir, image)
}

pub(crate) fn qemu() -> &'static Tools {
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
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A machine with a disk of its own, which is gone with it.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) machine: Machine,
    boots: u32,
}

impl Host {
    pub(crate) fn new(image: &Path, description: &Image) -> Self {
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

    pub(crate) fn boot(&mut self) -> Boot {
        self.boots += 1;
        let log = self.dir.path().join(format!("serial-{}", self.boots));
        let running = self.machine.start(qemu(), &Serial::File(log.clone())).unwrap();
        Boot { running, log }
    }

    /// Flips one bit of the disk: `at` bytes behind the first place from `from` on that holds `wanted`.
    pub(crate) fn flip(&self, from: u64, wanted: &[u8], at: u64) {
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

pub(crate) struct Boot {
    pub(crate) running: Running,
    pub(crate) log: PathBuf,
}

impl Boot {
    /// What came over the serial port, without the terminal's escapes.
    pub(crate) fn text(&self) -> String {
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
    pub(crate) fn until(&mut self, wanted: &[&str]) -> String {
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
