//! What a live image carries so that it can install itself.
//!
//! The live system runs the same root file system as an installed one, in memory. Beside it lies the disk without that
//! root ([`PAYLOAD`], in the signed and measured initrd, and after the start in [`FOLDER`]): partition table, EFI system
//! partition, hash tree. Both together are the disk, to the byte, which is what the installation reads back and compares.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Wanted;

/// Where the running live system has the payload.
pub const FOLDER: &str = "/run/decent-cloud/install";
/// Its description, JSON of [`Payload`].
pub const DESCRIPTION: &str = "payload.json";
/// The disk with zeros for its root, compressed with Zstandard.
pub const PAYLOAD: &str = "disk.zst";
/// A description is no longer than this.
const DESCRIPTION_MAX: u64 = 4096;

/// Describes the disk that the payload and the running root give together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// Always 1.
    pub version: u32,
    /// The image's name.
    pub name: String,
    /// The image's version.
    pub image_version: String,
    /// Length of the disk in bytes.
    pub disk_size: u64,
    /// The smallest disk in bytes that an installed system can make its own partitions on.
    pub disk_min: u64,
    /// SHA-256 of the disk in hex.
    pub disk_sha256: String,
    /// Where the root lies on the disk, in bytes.
    pub root_offset: u64,
    /// Length of the root in bytes.
    pub root_size: u64,
}

impl Payload {
    /// Reads the description in `folder`.
    ///
    /// # Errors
    /// `NotFound` where this is no live image; `InvalidData` for what is no description of version 1.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        let file = File::open(folder.join(DESCRIPTION))?;
        file.take(DESCRIPTION_MAX).read_to_end(&mut text)?;
        let payload: Self = serde_json::from_slice(&text)?;
        let root_end = payload.root_offset.checked_add(payload.root_size);
        if payload.version != 1 || root_end.is_none_or(|end| end > payload.disk_size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a payload of version 1",
            ));
        }
        Ok(payload)
    }

    /// What the disk shall hold.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            size: self.disk_size,
            sha256: self.disk_sha256.clone(),
        }
    }

    /// The whole disk out of the payload in `folder` and the root.
    pub fn disk<R: Read>(&self, folder: &Path, root: R) -> io::Result<impl Read + use<R>> {
        let rest = zstd::Decoder::new(File::open(folder.join(PAYLOAD))?)?;
        Ok(self.with_root(rest, root))
    }

    /// `disk`, with `root` instead of what lies there.
    pub fn with_root<D: Read, R: Read>(&self, disk: D, root: R) -> impl Read + use<D, R> {
        Spliced {
            disk,
            root,
            at: 0,
            from: self.root_offset,
            to: self.root_offset + self.root_size,
        }
    }
}

struct Spliced<D, R> {
    disk: D,
    root: R,
    at: u64,
    from: u64,
    to: u64,
}

impl<D: Read, R: Read> Read for Spliced<D, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.disk.read(buffer)?;
        let end = self.at + length as u64;
        let (from, to) = (self.from.max(self.at), self.to.min(end));
        if from < to {
            let part = (from - self.at) as usize..(to - self.at) as usize;
            self.root.read_exact(&mut buffer[part])?;
        }
        self.at = end;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte, then two, then three … at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            let length = self.1.min(buffer.len());
            self.0.read(&mut buffer[..length])
        }
    }

    fn payload(root_offset: u64, root_size: u64) -> Payload {
        Payload {
            version: 1,
            name: "os".to_owned(),
            image_version: "1".to_owned(),
            disk_size: 10,
            disk_min: 20,
            disk_sha256: "00".repeat(32),
            root_offset,
            root_size,
        }
    }

    #[test]
    fn the_root_comes_to_its_place_however_the_disk_is_read() {
        for (offset, root, wanted) in [
            (3, "ABCD", "012ABCD789"),
            (0, "ABCD", "ABCD456789"),
            (6, "ABCD", "012345ABCD"),
            (5, "", "0123456789"),
        ] {
            let mut text = String::new();
            let mut disk =
                payload(offset, root.len() as u64).with_root(Trickle(b"0123456789", 0), root.as_bytes());
            disk.read_to_string(&mut text).unwrap();
            assert_eq!(text, wanted);
        }
        // A root that ends too soon is no disk.
        let mut disk = payload(3, 4).with_root(&b"0123456789"[..], &b"AB"[..]);
        assert_eq!(
            disk.read_to_end(&mut Vec::new()).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_description_is_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &[u8]| {
            std::fs::write(folder.path().join(DESCRIPTION), text).unwrap();
            Payload::read(folder.path())
        };
        let good = serde_json::to_vec(&payload(6, 4)).unwrap();
        assert_eq!(read(&good).unwrap(), payload(6, 4));
        for bad in [
            serde_json::to_vec(&payload(7, 4)).unwrap(),
            serde_json::to_vec(&payload(u64::MAX, 4)).unwrap(),
            good[..good.len() - 1].to_vec(),
            Vec::new(),
        ] {
            assert!(read(&bad).is_err());
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(
            Payload::read(empty.path()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
