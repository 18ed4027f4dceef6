//! Files that are whole or not there: write aside, sync, rename, sync the folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use super::StorageError;
use super::disk::Owner;

/// Makes a folder with exactly this mode, whatever the umask, and syncs its parent.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), StorageError> {
    let make = || {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        path.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    make().map_err(StorageError::os(format!("make the folder {}", path.display())))
}

/// Makes what happened in the folder of `path` survive a power cut.
pub(super) fn sync_dir_of(path: &Path) -> Result<(), StorageError> {
    let parent = path
        .parent()
        .expect("every path of the store lies in one of its folders");
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(StorageError::os(format!("sync the folder {}", parent.display())))
}

/// Gives a finished file its final name. Afterwards it is there even if the power fails.
pub(super) fn publish(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::rename(from, to).map_err(StorageError::os(format!(
        "rename {} to {}",
        from.display(),
        to.display()
    )))?;
    sync_dir_of(to)
}

/// Removes a file and syncs the folder. A file that isn't there is a success. Says whether it was.
pub(super) fn remove(path: &Path) -> Result<bool, StorageError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir_of(path).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StorageError::os(format!("remove {}", path.display()))(e)),
    }
}

/// Opens a new empty file for writing, in place of whatever a crash left under that name.
pub(super) fn create(path: &Path, mode: u32) -> Result<File, StorageError> {
    let open = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(file)
    };
    open().map_err(StorageError::os(format!("create {}", path.display())))
}

/// Gives an open file away.
pub(super) fn give(file: &File, path: &Path, owner: Owner) -> Result<(), StorageError> {
    if owner == Owner::SELF {
        return Ok(());
    }
    fchown(file, Some(owner.uid), Some(owner.gid)).map_err(StorageError::os(format!(
        "give {} to uid {}",
        path.display(),
        owner.uid
    )))
}

/// Writes a small file as a whole.
pub(super) fn write_whole(path: &Path, content: &[u8], mode: u32, owner: Owner) -> Result<(), StorageError> {
    let aside = path.with_extension("new");
    let mut file = create(&aside, mode)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(StorageError::os(format!("write {}", aside.display())))?;
    give(&file, &aside, owner)?;
    publish(&aside, path)
}

/// Size of the file system, and what is free of it, bytes.
pub(super) fn space(dir: &Path) -> Result<(u64, u64), StorageError> {
    let stat = nix::sys::statvfs::statvfs(dir)
        .map_err(|e| StorageError::os(format!("look at the free space of {}", dir.display()))(e.into()))?;
    let unit = stat.fragment_size();
    Ok((
        stat.blocks().saturating_mul(unit),
        stat.blocks_available().saturating_mul(unit),
    ))
}
