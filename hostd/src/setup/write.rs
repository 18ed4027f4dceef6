//! Files that are either whole or not there, whatever happens to the power.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Puts `content` at `path`: written beside it, synced, renamed. What was there before stays until the new content is on
/// disk. The folder must be there.
pub(crate) fn file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut beside = std::ffi::OsString::from(".new-");
    beside.push(name);
    let beside = folder.join(beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)?;
    // Left over from a try that was cut off, it may have other permissions.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    point();
    rename(&beside, path)
}

/// Gives a file another name in its folder.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let folder = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()?;
    point();
    Ok(())
}

/// A moment at which the power may go. Test builds with the feature `fault-injection` die by SIGKILL at the N-th:
/// `HOSTD_DIE_AT_POINT=N`.
#[cfg(feature = "fault-injection")]
pub(crate) fn point() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    let wanted = std::env::var("HOSTD_DIE_AT_POINT").ok();
    if wanted.and_then(|at| at.parse().ok()) == Some(now) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// A moment at which the power may go.
#[cfg(not(feature = "fault-injection"))]
pub(crate) fn point() {}
