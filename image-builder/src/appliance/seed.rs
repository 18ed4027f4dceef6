//! The seed partition of a flashed disk: a small FAT with the provider's settings, that the machine reads at its first boot
//! and then overwrites.
//!
//! The partition is in every image, empty, so nothing measured or signed changes when it is filled.

use std::fs::File;
use std::io::{self, Cursor, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// The partition's label in the GPT.
pub const LABEL: &str = "decent-seed";
/// Its size.
pub const MIB: u32 = 8;
/// The largest file that hostd reads.
const FILE_MAX: usize = 64 * 1024;

/// Why the settings aren't on the disk.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The file can't be used.
    #[error("{path}: {why}; `hostd seed check` tells more")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk.
    #[error("cannot write the settings to {path}")]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No such partition: the image is from before there was one.
    #[error("{0} has no partition {LABEL}: build the image anew")]
    NoPartition(PathBuf),
}

/// Settings that may go onto a disk: text, TOML, small, and without a private key. hostd checks the rest.
#[derive(Debug)]
pub struct Seed(Vec<u8>);

impl Seed {
    /// Reads and looks at the file.
    pub fn read(path: &Path) -> Result<Self, SeedError> {
        let wrong = |why: String| SeedError::File {
            path: path.to_owned(),
            why,
        };
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        if bytes.len() > FILE_MAX {
            return Err(wrong("is larger than 64 KiB".to_owned()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
        if text.contains("PRIVATE KEY") {
            return Err(wrong(
                "holds a private key, and none of yours belongs on the host".to_owned(),
            ));
        }
        toml::from_str::<toml::Table>(text).map_err(|error| wrong(error.message().to_owned()))?;
        Ok(Self(bytes))
    }

    /// Writes it into the seed partition of a disk that was flashed, and reads it back.
    pub fn write(&self, disk: &Path) -> Result<(), SeedError> {
        let failed = |source| SeedError::Disk {
            path: disk.to_owned(),
            source,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(disk)
            .map_err(failed)?;
        let place = partition(&file).map_err(failed)?;
        let (start, size) = place.ok_or_else(|| SeedError::NoPartition(disk.to_owned()))?;
        let volume = volume(&self.0, size).map_err(failed)?;
        file.write_all_at(&volume, start).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let mut back = vec![0; volume.len()];
        file.read_exact_at(&mut back, start).map_err(failed)?;
        if back == volume {
            Ok(())
        } else {
            Err(failed(io::Error::other("it gave back other bytes")))
        }
    }
}

fn volume(settings: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let size = size.min(u64::from(MIB) << 20);
    let mut disk = Cursor::new(vec![0; size as usize]);
    format_volume(
        &mut disk,
        FormatVolumeOptions::new().volume_label(*b"SEED       "),
    )?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    let mut file = volume.root_dir().create_file("provider-seed.toml")?;
    file.write_all(settings)?;
    file.flush()?;
    drop(file);
    volume.unmount()?;
    Ok(disk.into_inner())
}

/// Where the seed partition begins and how long it is, bytes (UEFI 2.10, 5.3: header in the second sector, entries of 128
/// bytes or more).
fn partition(disk: &File) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, 512)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (first, count, length) = (u64_at(&header, 72), u32_at(80).min(128), u32_at(84));
    if !(128..=4096).contains(&length) {
        return Ok(None);
    }
    let wanted: Vec<u8> = LABEL
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    for index in 0..count {
        let mut entry = vec![0; length as usize];
        let at = first
            .saturating_mul(512)
            .saturating_add(u64::from(index) * u64::from(length));
        disk.read_exact_at(&mut entry, at)?;
        if entry[56..].starts_with(&wanted) {
            let (start, end) = (u64_at(&entry, 32), u64_at(&entry, 40));
            let sectors = end.saturating_sub(start).saturating_add(1);
            return Ok(start.checked_mul(512).zip(sectors.checked_mul(512)));
        }
    }
    Ok(None)
}
