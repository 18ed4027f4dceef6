//! A FAT volume that somebody brings: reading a file of its root folder, and wiping it.
//!
//! The volume is read as it lies on the device, without the kernel's driver and without a mount. It comes from outside, and
//! the reader behind it isn't ours: a panic there is an error here, and systemd's time limit ends a volume whose
//! clusters run in a circle.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fatfs::{FileSystem, FsOptions};

use super::write::point;

fn volume<T>(
    device: &Path,
    write: bool,
    work: impl FnOnce(&FileSystem<File>) -> io::Result<T>,
) -> io::Result<T> {
    let file = OpenOptions::new().read(true).write(write).open(device)?;
    let sync = file.try_clone()?;
    let worked = catch_unwind(AssertUnwindSafe(|| {
        let volume = FileSystem::new(file, FsOptions::new())?;
        let result = work(&volume);
        if write {
            volume.unmount()?;
        } else {
            // Its `drop` would write; what was only read stays as it is.
            std::mem::forget(volume);
        }
        result
    }));
    let result = worked.unwrap_or_else(|_| Err(io::Error::other("the FAT volume is damaged")))?;
    if write {
        sync.sync_all()?;
    }
    Ok(result)
}

/// The content of a file, at most `max` bytes and one more; `None` if the volume has no such file.
pub(super) fn read(device: &Path, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
    volume(device, false, |volume| {
        let root = volume.root_dir();
        let file = match root.open_file(name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut content)?;
        Ok(Some(content))
    })
}

/// Overwrites a file's clusters with zeros, to the end of the last, and takes the file away. A file that isn't there is
/// wiped already.
pub(super) fn wipe(device: &Path, name: &str) -> io::Result<()> {
    volume(device, true, |volume| {
        let root = volume.root_dir();
        let mut file = match root.open_file(name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let length = file.seek(SeekFrom::End(0))?;
        let cluster = u64::from(volume.cluster_size());
        let mut left = length.div_ceil(cluster) * cluster;
        file.seek(SeekFrom::Start(0))?;
        let zeros = [0; 4096];
        while left > 0 {
            let piece = left.min(zeros.len() as u64) as usize;
            file.write_all(&zeros[..piece])?;
            left -= piece as u64;
        }
        file.flush()?;
        point();
        file.seek(SeekFrom::Start(0))?;
        file.truncate()?;
        drop(file);
        point();
        root.remove(name)
    })
}

/// The largest partition that is overwritten as a whole: `image-builder flash --seed` makes one of a few MiB.
const PARTITION_MAX: u64 = 64 << 20;

/// Overwrites a whole partition with zeros; one that is too large to be a seed's is left alone.
pub(super) fn wipe_all(device: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    if size > PARTITION_MAX {
        return Err(io::Error::other("the partition is too large to be a seed's"));
    }
    file.seek(SeekFrom::Start(0))?;
    // Its beginning first: a FAT no more, whatever happens then.
    io::copy(&mut io::repeat(0).take(size.min(4096)), &mut file)?;
    file.sync_all()?;
    point();
    io::copy(&mut io::repeat(0).take(size.saturating_sub(4096)), &mut file)?;
    file.sync_all()
}
