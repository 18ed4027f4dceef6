//! The disk: a GPT with the EFI system partition and the first slot of the root.
//!
//! ```text
//! 1 MiB ─ ESP (FAT32) ─ verity, slot A ─ root, slot A ─ seed │ made at the first boot: verity B ─ root B ─ state (LUKS2)
//! ```
//!
//! The partitions' UUIDs are the two halves of the root hash (UAPI.2 Discoverable Partitions Specification), so the
//! `roothash=` of a signed command line names both. The second slot and the state aren't in the image: systemd-repart
//! makes them on the disk that it finds itself on, whatever its size. The seed partition is empty until `flash --seed`
//! fills it ([`super::seed`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::config::Disk;
use super::tools::{Job, ToolError};

const MIB: u64 = 1 << 20;
const SECTORS_PER_MIB: u64 = MIB / 512;

/// The least that a state partition has, in MiB: SizeMinBytes of systemd/repart.d/40-state.conf.
const STATE_MIB: u32 = 512;

/// What the first boot needs of a disk beyond the image, in bytes: the second slot, the state, and room to align them.
pub fn made_at_first_boot(disk: Disk) -> u64 {
    const ALIGNMENT_MIB: u32 = 4;
    [disk.root_mib, disk.verity_mib, STATE_MIB, ALIGNMENT_MIB]
        .into_iter()
        .map(|mib| u64::from(mib) * MIB)
        .sum()
}

/// A file of the EFI system partition: its path with `/`, and the content.
pub type EspFile<'a> = (&'a str, &'a [u8]);

/// The digest at the top of the root's hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootHash(String);

impl RootHash {
    /// Takes 64 hex digits.
    pub fn parse(hex: &str) -> Option<Self> {
        (hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
        .then(|| Self(hex.to_owned()))
    }

    /// The digest in hex.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// UUIDs of the root's and the hash tree's partition.
    pub fn uuids(&self) -> [String; 2] {
        [&self.0[..32], &self.0[32..]].map(uuid)
    }
}

/// A UUID's text from its 32 hex digits.
pub fn uuid(hex: &str) -> String {
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]].join("-")
}

/// Makes the file system of the EFI system partition as `name` in the job. `id`: its volume id, 8 hex digits.
pub fn esp(job: &Job<'_>, name: &str, mib: u32, id: &str, files: &[EspFile<'_>]) -> Result<(), ToolError> {
    create(job, name, u64::from(mib) * MIB)?;
    job.run(
        "mkfs.vfat",
        ["--invariant", "-F", "32", "-n", "ESP", "-i", id, name],
    )?;
    let mut made: Vec<&str> = Vec::new();
    for (path, content) in files {
        for (at, _) in path.match_indices('/') {
            let dir = &path[..at];
            if !made.contains(&dir) {
                job.run("mmd", ["-i", name, &format!("::/{dir}")])?;
                made.push(dir);
            }
        }
        job.write("esp-file", content)?;
        job.run("mcopy", ["-i", name, "esp-file", &format!("::/{path}")])?;
    }
    Ok(())
}

/// Makes the whole disk as `name` in the job out of the job's files `esp`, `root` and `verity`. Returns where the root
/// begins, in bytes.
pub fn assemble(
    job: &Job<'_>,
    name: &str,
    disk: Disk,
    label: &str,
    hash: &RootHash,
) -> Result<u64, ToolError> {
    let [root_uuid, verity_uuid] = hash.uuids();
    // Everything else that wants an id takes it from the root hash too: two images never share one.
    let derived =
        |what: &str| uuid(&crate::manifest::sha256(format!("{what} {}", hash.hex()).as_bytes())[..32]);
    let parts = [
        (
            "esp",
            "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
            "ESP",
            disk.esp_mib,
            derived("esp"),
        ),
        (
            "verity",
            "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5",
            &*format!("verity_{label}"),
            disk.verity_mib,
            verity_uuid,
        ),
        (
            "root",
            "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
            label,
            disk.root_mib,
            root_uuid,
        ),
        (
            // Basic data: a type that systemd-repart looks for nowhere.
            "",
            "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
            super::seed::LABEL,
            super::seed::MIB,
            derived("seed"),
        ),
    ];
    let mut script = format!(
        "label: gpt\nlabel-id: {}\nunit: sectors\nfirst-lba: 2048\n",
        derived("disk")
    );
    let mut at = 1;
    let mut root = 0;
    let mut starts = Vec::new();
    for (file, kind, part_label, mib, part_uuid) in &parts {
        let (start, size) = (at * SECTORS_PER_MIB, u64::from(*mib) * SECTORS_PER_MIB);
        script.push_str(&format!(
            "start={start}, size={size}, type={kind}, uuid={part_uuid}, name=\"{part_label}\"\n"
        ));
        starts.push((*file, at * MIB));
        if *file == "root" {
            root = at * MIB;
        }
        at += u64::from(*mib);
    }
    create(job, name, (at + 1) * MIB)?;
    job.write("layout", script)?;
    job.run("sh", ["-c", &format!("sfdisk --quiet {name} < layout")])?;
    let out = open(job, name)?;
    for (file, start) in starts.into_iter().filter(|(file, _)| !file.is_empty()) {
        copy_sparse(&open(job, file)?, &out, start).map_err(|source| ToolError::File {
            path: job.path(name),
            source,
        })?;
    }
    Ok(root)
}

/// Makes an empty sparse file.
fn create(job: &Job<'_>, name: &str, size: u64) -> Result<(), ToolError> {
    let path = job.path(name);
    File::create(&path)
        .and_then(|file| file.set_len(size))
        .map_err(|source| ToolError::File { path, source })
}

fn open(job: &Job<'_>, name: &str) -> Result<File, ToolError> {
    let path = job.path(name);
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|source| ToolError::File { path, source })
}

/// Copies `from` to `to` at `offset`, leaving out blocks of zeros: `to` holds zeros there already.
pub fn copy_sparse(from: &File, to: &File, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; MIB as usize];
    let mut at = 0;
    loop {
        let length = from.read_at(&mut buffer, at)?;
        if length == 0 {
            return Ok(());
        }
        let block = &buffer[..length];
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(block, offset + at)?;
        }
        at += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_the_root_hash_name_the_partitions() {
        let hash = RootHash::parse(&"0123456789abcdef".repeat(4)).unwrap();
        assert_eq!(
            hash.uuids(),
            ["01234567-89ab-cdef-0123-456789abcdef"; 2].map(str::to_owned)
        );
        for bad in ["", "0", &"g".repeat(64), &"A".repeat(64)] {
            assert_eq!(RootHash::parse(bad), None, "{bad}");
        }
    }
}
