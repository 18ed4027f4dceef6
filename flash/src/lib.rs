//! Writing an image to a disk or stick, and reading it back.
//!
//! | refused | how it is known |
//! |---|---|
//! | a disk that is mounted, or part of something | the kernel gives it to nobody else (`O_EXCL`), mounts are named |
//! | a disk that is smaller than the image | its size |
//! | a disk that the operator didn't mean | he types its name |
//!
//! What was at the end of the disk, an older partition table's copy, is wiped: firmware would find it.
//! `image-builder flash` does this from the provider's own machine, `hostd install` inside the live image ([`live`]).

pub mod live;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

const BLOCK: usize = 1 << 20;

/// Why a disk wasn't written, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// The image can't be read.
    #[error("cannot read the image")]
    Image(#[source] io::Error),
    /// Not a disk.
    #[error("{0} is neither a disk nor a file")]
    NotADisk(PathBuf),
    /// The target can't be used.
    #[error("cannot {what} {path}")]
    Target {
        /// What was tried.
        what: &'static str,
        /// The target.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The target is in use.
    #[error("{path} is in use{}; unmount it, or take another disk", mounts(.mounted))]
    InUse {
        /// The target.
        path: PathBuf,
        /// Where it, or a part of it, is mounted.
        mounted: Vec<String>,
    },
    /// The target is too small.
    #[error("{path} has {size} bytes, the image {needed}; take a larger disk")]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The image's.
        needed: u64,
    },
    /// What was typed isn't the target's name.
    #[error("{typed:?} is not {wanted:?}: nothing was written")]
    NotConfirmed {
        /// What was typed.
        typed: String,
        /// What would have been right.
        wanted: String,
    },
    /// What was read back isn't what was written.
    #[error(
        "{0} gave back other bytes than were written: the disk is broken, or something else writes to it"
    )]
    Verify(PathBuf),
}

fn mounts(mounted: &[String]) -> String {
    if mounted.is_empty() {
        String::new()
    } else {
        format!(" (mounted at {})", mounted.join(", "))
    }
}

/// What a disk shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// A target that was looked at: it is a disk or a file, large enough, and ours alone while this value lives.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
    size: u64,
    is_disk: bool,
    /// A file that was made for this, and goes away again if it isn't written.
    unused: Option<TempPath>,
}

impl Target {
    /// Looks at `path`. A file that doesn't exist yet is made; a disk must be there.
    pub fn open(path: &Path, wanted: &Wanted) -> Result<Self, FlashError> {
        let fail = |what| {
            move |source| FlashError::Target {
                what,
                path: path.to_owned(),
                source,
            }
        };
        // A name under /dev/disk/by-id leads to the disk.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let kind = match fs::metadata(path) {
            Ok(found) => Some(found.file_type()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.starts_with("/dev") => None,
            Err(error) => return Err(fail("read")(error)),
        };
        let is_disk = kind.is_some_and(|kind| kind.is_block_device());
        if !is_disk && kind.is_some_and(|kind| !kind.is_file()) {
            return Err(FlashError::NotADisk(path.to_owned()));
        }
        let mounted = mounted(path);
        if !mounted.is_empty() {
            return Err(FlashError::InUse {
                path: path.to_owned(),
                mounted,
            });
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(kind.is_none())
            .truncate(false);
        if is_disk {
            options.custom_flags(O_EXCL);
        }
        let mut file = options.open(path).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => FlashError::InUse {
                path: path.to_owned(),
                mounted: Vec::new(),
            },
            _ => fail("open")(source),
        })?;
        let unused = kind.is_none().then(|| TempPath::try_from_path(path));
        let size = if is_disk {
            file.seek(SeekFrom::End(0)).map_err(fail("measure"))?
        } else {
            let size = file.metadata().map_err(fail("measure"))?.len();
            if size == 0 { wanted.size } else { size }
        };
        if size < wanted.size {
            return Err(FlashError::TooSmall {
                path: path.to_owned(),
                size,
                needed: wanted.size,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            is_disk,
            unused: unused.transpose().map_err(fail("make"))?,
        })
    }

    /// The name that the operator types: `sdb` for `/dev/sdb`.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The target's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the operator's word, or refuses.
    pub fn confirm(self, typed: &str) -> Result<Confirmed, FlashError> {
        let wanted = self.name();
        if typed.trim() == wanted {
            Ok(Confirmed(self))
        } else {
            Err(FlashError::NotConfirmed {
                typed: typed.trim().chars().take(80).collect(),
                wanted,
            })
        }
    }
}

/// A target whose overwriting was asked for by name.
#[derive(Debug)]
pub struct Confirmed(Target);

impl Confirmed {
    /// Writes all of `from` and reads it back. `progress` hears of each step `(what, done)`, in bytes.
    ///
    /// # Errors
    /// Whatever the disk or `from` fails with, and [`FlashError::Verify`] if the disk holds something else than `wanted` in
    /// the end.
    pub fn write(
        self,
        from: &mut impl Read,
        wanted: &Wanted,
        progress: &dyn Fn(&str, u64),
    ) -> Result<(), FlashError> {
        let Target {
            path,
            file,
            size,
            is_disk,
            unused,
        } = self.0;
        let fail = |what| {
            let path = path.clone();
            move |source| FlashError::Target { what, path, source }
        };
        if !is_disk {
            // What was in the file is gone before the new content comes; holes read as zeros.
            file.set_len(0)
                .and_then(|()| file.set_len(size))
                .map_err(fail("write"))?;
        }
        let mut at = 0;
        let mut block = Vec::with_capacity(BLOCK);
        while next_block(from, &mut block).map_err(FlashError::Image)? {
            // Never past what was announced: the rest of a file isn't ours, and a disk ends.
            if at + block.len() as u64 > wanted.size {
                return Err(FlashError::Verify(path));
            }
            if is_disk || !is_zero(&block) {
                file.write_all_at(&block, at).map_err(fail("write"))?;
            }
            at += block.len() as u64;
            progress("write", at);
        }
        if size > wanted.size {
            let end = (size - wanted.size).min(BLOCK as u64);
            file.write_all_at(&vec![0; end as usize], size - end)
                .map_err(fail("write"))?;
        }
        file.sync_all().map_err(fail("write"))?;
        // The kernel forgets what it knows of the disk, so that the disk itself answers.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        drop(file);
        let file = File::open(&path).map_err(fail("read"))?;
        let mut read = 0;
        let mut reader = Counted {
            from: file.take(wanted.size),
            heard: |length| {
                read += length as u64;
                progress("verify", read);
            },
        };
        let (digest, _) = digest(&mut reader).map_err(fail("read"))?;
        if digest != wanted.sha256 {
            return Err(FlashError::Verify(path));
        }
        if let Some(unused) = unused {
            unused.keep().map_err(|e| fail("write")(e.error))?;
        }
        Ok(())
    }

    /// [`Self::write`] with a bar on standard error, where a person looks.
    pub fn write_with_bar(self, from: &mut impl Read, wanted: &Wanted) -> Result<(), FlashError> {
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::new(wanted.size);
        let style = "{msg:>7} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
        let written = self.write(from, wanted, &|what, done| {
            if bar.message() != what {
                bar.set_message(what.to_owned());
                bar.reset_elapsed();
            }
            bar.set_position(done);
        });
        bar.finish_and_clear();
        written
    }
}

/// `open(2)`: on a disk, only if nobody else uses it.
const O_EXCL: i32 = 0o200;

/// Where `disk` or one of its partitions is mounted.
pub fn mounted(disk: &Path) -> Vec<String> {
    let disk = disk.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounted_in(&table, &disk)
}

fn mounted_in(table: &str, disk: &str) -> Vec<String> {
    let is_part = |device: &str| {
        device.strip_prefix(disk).is_some_and(|rest| {
            let rest = rest.strip_prefix('p').unwrap_or(rest);
            rest.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    table
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
        .filter(|(device, _)| is_part(device))
        .map(|(_, place)| place.to_owned())
        .collect()
}

struct Counted<R, F> {
    from: R,
    heard: F,
}

impl<R: Read, F: FnMut(usize)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        (self.heard)(length);
        Ok(length)
    }
}

/// Writes all that `from` gives to the beginning of an empty file, with holes for zeros; returns how much it was.
pub fn write_sparse(from: &mut impl Read, to: &File) -> io::Result<u64> {
    let mut at = 0;
    let mut block = Vec::with_capacity(BLOCK);
    while next_block(from, &mut block)? {
        if !is_zero(&block) {
            to.write_all_at(&block, at)?;
        }
        at += block.len() as u64;
    }
    Ok(at)
}

/// SHA-256 in hex and length of everything that `reader` gives.
pub fn digest(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut block = Vec::with_capacity(BLOCK);
    while next_block(&mut reader, &mut block)? {
        hash.update(&block);
        size += block.len() as u64;
    }
    Ok((hex::encode(hash.finalize()), size))
}

/// Fills `block` with the next [`BLOCK`] bytes, or with what is left; whether there was something.
fn next_block(from: &mut impl Read, block: &mut Vec<u8>) -> io::Result<bool> {
    block.clear();
    Ok(from.take(BLOCK as u64).read_to_end(block)? > 0)
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_a_mounted_partition_is_in_use_and_its_neighbour_is_not() {
        let table = "/dev/sda1 /boot ext4 rw 0 0\n/dev/sdb / ext4 rw 0 0\n/dev/nvme0n1p2 /x ext4 rw 0 0\n/dev/sdaa1 /y ext4 rw 0 0\n";
        for (disk, wanted) in [
            ("/dev/sda", &["/boot"][..]),
            ("/dev/sdb", &["/"]),
            ("/dev/sdc", &[]),
            ("/dev/nvme0n1", &["/x"]),
            ("/dev/nvme0", &[]),
        ] {
            assert_eq!(mounted_in(table, disk), wanted, "{disk}");
        }
    }
}
