//! The machine that a test boots, what it says on its serial port, and where the images are.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use image_builder::appliance::image::Image;
use image_builder::appliance::qemu::{Machine, Part, Running, Serial, keyboard};
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
    /// A machine whose disk is a flashed one.
    pub(crate) fn new(image: &Path, description: &Image) -> Self {
        let host = Self::powered_off();
        host.machine
            .insert_disk(&image.join(&description.disk.file))
            .unwrap();
        host
    }

    /// A machine with an empty disk.
    pub(crate) fn blank() -> Self {
        let host = Self::powered_off();
        fs::create_dir_all(&host.machine.dir).unwrap();
        File::create(host.machine.disk())
            .and_then(|disk| disk.set_len(u64::from(host.machine.disk_mib) << 20))
            .unwrap();
        host
    }

    fn powered_off() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine {
            dir: dir.path().join("machine"),
            memory_mib: 2048,
            cpus: 2,
            disk_mib: 6144,
            kvm: false,
            without: Vec::new(),
            forward: Vec::new(),
            extra: Vec::new(),
        };
        Self {
            dir,
            machine,
            boots: 0,
        }
    }

    pub(crate) fn boot(&mut self) -> Boot {
        self.boot_with(&[], &[])
    }

    /// Boots without some parts, and with further arguments for QEMU.
    pub(crate) fn boot_with(&mut self, without: &[Part], extra: &[String]) -> Boot {
        self.boots += 1;
        let log = |port: u8| self.dir.path().join(format!("serial-{}-{port}", self.boots));
        let logs = [log(0), log(1)];
        let mut machine = self.machine.clone();
        machine.without.extend(without);
        machine
            .extra
            .extend(["-serial".to_owned(), format!("file:{}", logs[1].display())]);
        machine.extra.extend_from_slice(extra);
        let running = machine.start(qemu(), &Serial::File(logs[0].clone())).unwrap();
        Boot { running, logs }
    }

    /// Gives the machine another TPM, as new, and returns what puts its own back.
    pub(crate) fn change_tpm(&self) -> impl FnOnce() + use<> {
        let (tpm, own) = (self.machine.dir.join("tpm"), self.machine.dir.join("tpm.own"));
        fs::rename(&tpm, &own).unwrap();
        move || {
            fs::remove_dir_all(&tpm).unwrap();
            fs::rename(&own, &tpm).unwrap();
        }
    }

    /// The names of the disk's partitions.
    pub(crate) fn partitions(&self) -> Vec<String> {
        self.table().into_iter().map(|(name, _)| name).collect()
    }

    /// Each partition's name, and where it begins, in bytes.
    fn table(&self) -> Vec<(String, u64)> {
        let disk = File::open(self.machine.disk()).unwrap();
        // 128 entries of 128 bytes from the third sector on; the name, in UTF-16, lies 56 bytes into each.
        let mut entries = [0; 128 * 128];
        disk.read_exact_at(&mut entries, 1024).unwrap();
        let names = entries.as_chunks::<128>().0.iter().map(|entry| {
            let units = entry[56..].as_chunks::<2>().0.iter();
            let units = units
                .map(|unit| u16::from_le_bytes(*unit))
                .take_while(|unit| *unit != 0);
            let name = char::decode_utf16(units)
                .map(|c| c.unwrap_or('?'))
                .collect::<String>();
            let sector = u64::from_le_bytes(*entry[32..].first_chunk().unwrap());
            (name, sector * 512)
        });
        names.filter(|(name, _)| !name.is_empty()).collect()
    }

    /// Waits until something was written to every partition `label`.
    pub(crate) fn until_written(&self, label: &str) {
        let start = Instant::now();
        let disk = File::open(self.machine.disk()).unwrap();
        let blank = |(_, at): &(String, u64)| {
            let mut beginning = [0; 4096];
            disk.read_exact_at(&mut beginning, *at).unwrap();
            beginning == [0; 4096]
        };
        while self.table().iter().filter(|(name, _)| name == label).any(blank) {
            assert!(start.elapsed() < BOOT_TIME_MAX, "{label:?} stays blank");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the disk has the partition `label`.
    pub(crate) fn until_partition(&self, label: &str) {
        let start = Instant::now();
        while !self.partitions().iter().any(|name| name == label) {
            assert!(start.elapsed() < BOOT_TIME_MAX, "no partition {label:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
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
    /// What came over the two serial ports.
    pub(crate) logs: [PathBuf; 2],
}

impl Boot {
    /// What came over both serial ports, one after the other, without the terminal's escapes.
    pub(crate) fn text(&self) -> String {
        self.logs.each_ref().map(|log| text(log)).concat()
    }

    /// What came over the second serial port.
    pub(crate) fn report(&self) -> String {
        text(&self.logs[1])
    }

    /// Waits for a whole line on the second serial port that begins with `start`, and returns the rest of the last one.
    pub(crate) fn line(&mut self, start: &str) -> String {
        loop {
            self.until(&[start]);
            let lines = self.report();
            let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(found) = whole.lines().rev().find_map(|line| line.strip_prefix(start)) {
                return found.to_owned();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Who the machine is to a ledger, as the console says.
    pub(crate) fn principal(&mut self) -> String {
        self.line("  principal    ")
    }

    /// Types on the first serial port. Whoever looks for whole words in the answer keeps the connection until it is there:
    /// QEMU may log a character twice when somebody hangs up.
    pub(crate) fn type_keys(&self, keys: &str) -> Keyboard {
        let mut port = UnixStream::connect(keyboard(&self.logs[0])).unwrap();
        port.write_all(keys.as_bytes()).unwrap();
        // The machine stands still when nobody reads what it answers.
        let mut answers = port.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        // QEMU reads what it has room for; closed at once, the rest would be lost.
        std::thread::sleep(Duration::from_secs(1));
        Keyboard(port)
    }

    /// Waits for `wanted` on the first serial port, behind its first `from` bytes.
    pub(crate) fn until_after(&self, from: usize, wanted: &str) {
        let start = Instant::now();
        while !screen(&fs::read(&self.logs[0]).unwrap_or_default()[from..]).contains(wanted) {
            assert!(
                start.elapsed() < BOOT_TIME_MAX,
                "no {wanted:?}: {}",
                tail(&text(&self.logs[0]))
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits for one of `wanted` and returns all that came until then.
    pub(crate) fn until(&mut self, wanted: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if wanted.iter().any(|wanted| text.contains(wanted)) {
                return text;
            }
            let tail = self
                .logs
                .each_ref()
                .map(|log| tail(&self::text(log)))
                .join("--\n");
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

/// A connection to the first serial port.
pub(crate) struct Keyboard(UnixStream);

impl Drop for Keyboard {
    fn drop(&mut self) {
        // The machine may be gone.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// What a serial port gave, without the terminal's escapes.
fn text(log: &Path) -> String {
    screen(&fs::read(log).unwrap_or_default())
}

fn screen(raw: &[u8]) -> String {
    let raw = String::from_utf8_lossy(raw).replace('\r', "\n");
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

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(30)..];
    tail.iter().map(|line| format!("{line}\n")).collect()
}
