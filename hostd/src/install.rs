//! `hostd install`: a live image puts the system that it runs onto a disk of the machine.
//!
//! What is written is the disk of the build, to the byte: the payload in the live image's initrd and the root that runs
//! ([`flash::live`]). Both are part of the signed kernel image, so nothing is fetched and nothing else is trusted. The disk
//! is read back and compared; its first boot then makes what belongs to this machine alone (keys, second slot, state).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flash::live::Payload;
use serde::Serialize;

use crate::inventory::{self, BlockDevice};

/// A disk of the machine, with what an operator must know to choose it or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// `nvme0n1`.
    pub name: String,
    /// Its size in bytes, if the kernel knows it.
    pub bytes: Option<u64>,
    /// Model and serial number, as the disk tells them.
    pub identity: String,
    /// What is on it, as far as udev sees.
    pub content: String,
    /// Why it can't be taken.
    pub obstacle: Option<String>,
}

/// The disks of the machine under `root` (`/`; a made-up tree in tests), for what the payload describes. `mounts` says where
/// a disk or a part of it is mounted.
pub fn choices(root: &Path, payload: &Payload, mounts: impl Fn(&Path) -> Vec<String>) -> Vec<Choice> {
    let disks = inventory::disks(root);
    let choices = disks.into_iter().map(|disk| {
        let udev = udev(root, &disk.name);
        Choice {
            identity: identity(&disk, &udev),
            content: content(root, &disk.name, &udev),
            obstacle: obstacle(root, &disk, payload, &mounts(&Path::new("/dev").join(&disk.name))),
            bytes: disk.bytes.known().copied(),
            name: disk.name,
        }
    });
    choices.collect()
}

/// What udev found out about a disk: its database's `E:` lines.
fn udev(root: &Path, name: &str) -> BTreeMap<String, String> {
    let number = read(root, &format!("sys/block/{name}/dev"));
    let text = read(root, &format!("run/udev/data/b{number}"));
    text.lines()
        .filter_map(|line| line.strip_prefix("E:")?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn read(root: &Path, path: &str) -> String {
    let bytes = crate::setup::source::bounded(&root.join(path), 64 << 10);
    let text = bytes.ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Folders below `/sys/block/NAME` of its partitions.
fn partitions(root: &Path, name: &str) -> Vec<String> {
    let folder = root.join("sys/block").join(name);
    let mut parts = names(&folder);
    parts.retain(|part| folder.join(part).join("partition").exists());
    parts
}

fn identity(disk: &BlockDevice, udev: &BTreeMap<String, String>) -> String {
    let serial = udev.get("ID_SERIAL_SHORT").or_else(|| udev.get("ID_SERIAL"));
    let parts = [disk.model.as_ref(), serial];
    let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
    parts.join(", ")
}

fn content(root: &Path, name: &str, udev: &BTreeMap<String, String>) -> String {
    let label = |part: &String| {
        let uevent = read(root, &format!("sys/block/{name}/{part}/uevent"));
        let label = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME="));
        label
            .filter(|label| !label.is_empty())
            .unwrap_or("unnamed")
            .to_owned()
    };
    let parts: Vec<String> = partitions(root, name).iter().map(label).collect();
    if !parts.is_empty() {
        return format!("partitions: {}", parts.join(", "));
    }
    match (udev.get("ID_FS_TYPE"), udev.get("ID_PART_TABLE_TYPE")) {
        (Some(kind), _) => match udev.get("ID_FS_LABEL") {
            Some(label) => format!("{kind} {label:?}"),
            None => kind.clone(),
        },
        (None, Some(kind)) => format!("an empty {kind} partition table"),
        (None, None) => "nothing known".to_owned(),
    }
}

fn obstacle(root: &Path, disk: &BlockDevice, payload: &Payload, mounts: &[String]) -> Option<String> {
    let folder = format!("sys/block/{}", disk.name);
    let used = |folder: &str| !names(&root.join(folder).join("holders")).is_empty();
    let parts = partitions(root, &disk.name);
    if read(root, &format!("{folder}/ro")) == "1" {
        Some("it can only be read".to_owned())
    } else if !mounts.is_empty() {
        Some(format!("it is mounted at {}", mounts.join(", ")))
    } else if used(&folder) || parts.iter().any(|part| used(&format!("{folder}/{part}"))) {
        Some("another device is built on it (RAID, LVM, encryption)".to_owned())
    } else {
        match disk.bytes.known() {
            None => Some("its size isn't known".to_owned()),
            Some(&bytes) if bytes < payload.disk_min => {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                let (has, needs) = (gib(bytes), gib(payload.disk_min));
                Some(format!("too small: {has:.1} GiB, and {needs:.1} GiB are needed"))
            }
            Some(_) => None,
        }
    }
}

/// The root that runs, as a device.
pub fn running_root() -> io::Result<File> {
    let device = fs::metadata("/")?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    File::open(format!("/dev/block/{major}:{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn each_disk_shows_what_is_on_it_and_why_it_cannot_be_taken() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path();
        let gib = |gib: u64| (gib << 21).to_string();
        for (name, number, sectors) in [
            ("sda", "8:0", gib(100)),
            ("sdb", "8:16", gib(100)),
            ("sdc", "8:32", gib(1)),
            ("sdd", "8:48", gib(100)),
            ("sde", "8:64", gib(100)),
            ("sdf", "8:80", "?".to_owned()),
            ("loop0", "7:0", gib(100)),
        ] {
            write(root, &format!("sys/block/{name}/dev"), number);
            write(root, &format!("sys/block/{name}/size"), &sectors);
        }
        write(root, "sys/block/sda/device/model", "FAST 9000\n");
        write(
            root,
            "run/udev/data/b8:0",
            "S:disk/by-id/x\nE:ID_SERIAL=FAST_9000_S1\nE:ID_SERIAL_SHORT=S1\nE:ID_PART_TABLE_TYPE=gpt\n",
        );
        for (part, label) in [("sdb1", "ESP"), ("sdb2", "state"), ("sdb3", "")] {
            write(root, &format!("sys/block/sdb/{part}/partition"), "1");
            write(
                root,
                &format!("sys/block/sdb/{part}/uevent"),
                &format!("MINOR=1\nPARTNAME={label}\n"),
            );
        }
        write(root, "sys/block/sdb/sdb2/holders/dm-0", "");
        write(
            root,
            "run/udev/data/b8:32",
            "E:ID_FS_TYPE=iso9660\nE:ID_FS_LABEL=DECENT_CLOUD\n",
        );
        write(root, "sys/block/sdd/ro", "1\n");
        let payload = Payload {
            version: 1,
            name: "os".to_owned(),
            image_version: "1".to_owned(),
            disk_size: 2 << 30,
            disk_min: 4 << 30,
            disk_sha256: String::new(),
            root_offset: 0,
            root_size: 0,
        };
        let mounts = |disk: &Path| match disk.to_str() {
            Some("/dev/sde") => vec!["/mnt".to_owned()],
            _ => Vec::new(),
        };
        let found: Vec<_> = choices(root, &payload, mounts)
            .into_iter()
            .map(|c| (c.name, c.identity, c.content, c.obstacle.unwrap_or_default()))
            .collect();
        let wanted = [
            ("sda", "FAST 9000, S1", "an empty gpt partition table", ""),
            (
                "sdb",
                "",
                "partitions: ESP, state, unnamed",
                "another device is built on it (RAID, LVM, encryption)",
            ),
            (
                "sdc",
                "",
                "iso9660 \"DECENT_CLOUD\"",
                "too small: 1.0 GiB, and 4.0 GiB are needed",
            ),
            ("sdd", "", "nothing known", "it can only be read"),
            ("sde", "", "nothing known", "it is mounted at /mnt"),
            ("sdf", "", "nothing known", "its size isn't known"),
        ];
        assert_eq!(
            found,
            wanted.map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()))
        );
    }
}
