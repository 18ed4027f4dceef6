//! Which kind of VM this is, asked from inside it, so that its host can't choose the answer.
//!
//! The host decides which devices a VM sees and what `CPUID` says, so neither may make a confidential VM believe that
//! it is something weaker. What counts:
//!
//! | found | then | why the host can't hide it |
//! |---|---|---|
//! | `SEV_STATUS` (MSR 0xc0010131) bit 2 | [`Platform::SevSnp`] | the CPU answers a guest's read itself (AMD 24593, 15.34.10) |
//! | `/sys/devices/platform/sev-guest` | [`Platform::SevSnp`] | the kernel, which is measured, makes it when it found that bit while it booted |
//! | flag `tdx_guest` of `/proc/cpuinfo` | [`Platform::Tdx`] | the kernel sets it from `CPUID` leaf 0x21, which the TDX module answers |
//! | none of these, and the simulator's port | [`Platform::Simulated`] | nothing: a plain VM's host can do anything with it |
//! | nothing | [`Platform::Plain`] | |
//!
//! One sign is enough, so a host that fakes one for a plain VM only makes it ask for a report that it can't get. Where
//! the register can't be looked at (no module `msr`), nothing is known, and that is an error.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::simulator::SIMULATOR_PORT;

/// AMD 24593, 15.34.10.
const SEV_STATUS: u64 = 0xc001_0131;
const SNP_ACTIVE: u64 = 1 << 2;
/// `EIO`: the read raised #GP, so there is no such register.
const EIO: i32 = 5;

/// What protects this VM from its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
    /// Nothing does, but a simulator stands in for SEV-SNP.
    Simulated,
    /// Nothing.
    Plain,
}

/// It can't be told.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot tell whether this VM is confidential: {path}: {why}; the image needs the kernel module `msr` (CONFIG_X86_MSR)"
)]
pub struct PlatformError {
    /// What was read.
    path: &'static str,
    /// Why not.
    why: io::Error,
}

/// What was found; see the table.
#[derive(Debug, Default)]
struct Signs {
    /// `None`: the CPU has no such register.
    sev_status: Option<u64>,
    sev_guest_device: bool,
    tdx_guest: bool,
    simulator_port: bool,
}

impl Platform {
    /// Asks the CPU and the kernel. Needs root.
    pub fn detect() -> Result<Self, PlatformError> {
        Ok(decide(&Signs {
            sev_status: sev_status()?,
            sev_guest_device: Path::new("/sys/devices/platform/sev-guest").exists(),
            tdx_guest: tdx_guest()?,
            simulator_port: Path::new("/dev/virtio-ports").join(SIMULATOR_PORT).exists(),
        }))
    }

    /// In one word, for scripts.
    pub fn name(self) -> &'static str {
        match self {
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
            Self::Simulated => "simulated",
            Self::Plain => "plain",
        }
    }
}

fn decide(signs: &Signs) -> Platform {
    if signs.sev_guest_device || signs.sev_status.is_some_and(|bits| bits & SNP_ACTIVE != 0) {
        Platform::SevSnp
    } else if signs.tdx_guest {
        Platform::Tdx
    } else if signs.simulator_port {
        Platform::Simulated
    } else {
        Platform::Plain
    }
}

fn sev_status() -> Result<Option<u64>, PlatformError> {
    const PATH: &str = "/dev/cpu/0/msr";
    let fail = |why| PlatformError { path: PATH, why };
    let file = File::open(PATH).map_err(fail)?;
    let mut bits = [0; 8];
    match file.read_exact_at(&mut bits, SEV_STATUS) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bits))),
        Err(why) if why.raw_os_error() == Some(EIO) => Ok(None),
        Err(why) => Err(fail(why)),
    }
}

fn tdx_guest() -> Result<bool, PlatformError> {
    const PATH: &str = "/proc/cpuinfo";
    let cpus = fs::read_to_string(PATH).map_err(|why| PlatformError { path: PATH, why })?;
    let mut flags = cpus.lines().filter(|line| line.starts_with("flags"));
    Ok(flags.any(|line| line.split_whitespace().any(|flag| flag == "tdx_guest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sign_that_a_host_can_add_or_take_away_makes_a_confidential_vm_a_weaker_one() {
        for simulator_port in [false, true] {
            for (sev_status, sev_guest_device, tdx_guest, platform) in [
                (Some(0b111), true, false, Platform::SevSnp),
                (Some(0b111), false, false, Platform::SevSnp),
                (Some(0b100), false, true, Platform::SevSnp),
                (Some(0), true, false, Platform::SevSnp),
                (None, true, false, Platform::SevSnp),
                (None, false, true, Platform::Tdx),
                (Some(0), false, true, Platform::Tdx),
            ] {
                let signs = Signs {
                    sev_status,
                    sev_guest_device,
                    tdx_guest,
                    simulator_port,
                };
                assert_eq!(decide(&signs), platform, "{signs:?}");
            }
        }
        // SEV and SEV-ES without SNP protect no memory's integrity and give no such report.
        for sev_status in [None, Some(0), Some(0b11)] {
            let plain = Signs {
                sev_status,
                ..Signs::default()
            };
            assert_eq!(decide(&plain), Platform::Plain);
            let simulated = Signs {
                simulator_port: true,
                ..plain
            };
            assert_eq!(decide(&simulated), Platform::Simulated);
        }
    }
}
