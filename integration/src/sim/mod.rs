//! A simulated SEV-SNP machine: what stands in for the silicon where there is none.
//!
//! ```text
//!  libvirt ──▶ snp-sim-qemu (the emulator it was told to use)
//!                │ same arguments as on a real machine: -object sev-snp-guest,host-data=…,policy=…,kernel-hashes=on
//!                ├─ measures firmware, kernel, initrd, command line and vCPUs, as the real launch does
//!                ├─ starts the chip ◀───── socket ─────┐
//!                └─ becomes QEMU, without those arguments, with one more virtio-serial port ──▶ the guest asks there
//! ```
//!
//! Certificates and revocation list come from the maker's service, as AMD's do: `snp-sim-qemu kds`.
//!
//! The chip reports what was really on the emulator's command line: nobody can tell it a measurement. Its reports are
//! real ones but for their root ([`attestation::sim`]). Two things differ from silicon, and docs/threat-model.md says
//! so: memory isn't encrypted, and the firmware is measured but not run (QEMU boots the kernel directly).

mod arguments;
mod chip;
mod kds;

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use attestation::sim::Platform;

pub use arguments::{Invocation, SnpLaunch, parse};
pub use chip::{measure, serve};
pub use kds::serve as serve_kds;

/// The chip's keys and chain.
const PLATFORM: &str = "platform.json";
/// The root certificate (DER): what the demo's genesis names.
const ROOT: &str = "ark.der";
/// What libvirt is told to run.
pub const EMULATOR: &str = "qemu";

/// Makes a chip with a chain of its own in `dir`, and `dir/qemu`, the emulator that has this chip.
pub fn init(dir: &Path, wrapper: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let platform = Platform::create()?;
    let file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(dir.join(PLATFORM));
    let file = file.with_context(|| format!("cannot make {}", dir.join(PLATFORM).display()))?;
    serde_json::to_writer(file, &platform.to_parts())?;
    fs::write(dir.join(ROOT), platform.root())?;
    match std::os::unix::fs::symlink(wrapper, dir.join(EMULATOR)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", dir.join(EMULATOR).display()))
        }
        _ => Ok(()),
    }
}

/// The chip in `dir`.
pub fn load(dir: &Path) -> Result<Platform> {
    let path = dir.join(PLATFORM);
    let text = fs::read(&path)
        .with_context(|| format!("cannot read {}; make it with `snp-sim-qemu init`", path.display()))?;
    Ok(Platform::from_parts(serde_json::from_slice(&text)?)?)
}
