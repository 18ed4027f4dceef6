//! Event logs: what was measured, in what order, so that the values in a register can be understood.
//!
//! | log | who writes it | here |
//! |---|---|---|
//! | binary, "crypto-agile" (TCG PC Client Platform Firmware Profile 1.06, section 10) | the firmware, until `ExitBootServices` | [`EventLog::parse`] |
//! | the same structure in ACPI's `CCEL` area (UEFI 2.10, section 38; TDX) | the TD's firmware | [`EventLog::parse_padded`] |
//! | JSON records (TCG CEL, close to it) | systemd, from the running system | [`userspace`] |
//!
//! A log is nobody's word by itself: nothing signs it. [`EventLog::replay`] folds its digests into the registers' values;
//! when those equal quoted ones, the digests are the ones that were measured. Even then an event's *data* is only
//! believable if it is what the digest is of ([`Event::data_is_measured`]): for many types (`EV_EFI_BOOT_SERVICES_…`,
//! systemd's `EV_IPL`) the data merely describes what was measured, and anybody may rewrite it.
//!
//! Everything borrows from the bytes, so that a log can't ask for memory that it doesn't have.

mod binary;
mod replay;
pub mod userspace;

pub use binary::{Event, EventLog, EventLogError, LOG_LEN_MAX};
pub use replay::{Registers, ReplayError, extend};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// A hash algorithm as TPMs number them (`TPM_ALG_ID`, TPM 2.0 Part 2, 6.3), and a bank of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HashAlg {
    /// SHA-1: it can be read, and no verdict rests on it.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// SM3: it can be read, not computed.
    Sm3,
}

impl HashAlg {
    /// By its number.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            0x0004 => Some(Self::Sha1),
            0x000b => Some(Self::Sha256),
            0x000c => Some(Self::Sha384),
            0x000d => Some(Self::Sha512),
            0x0012 => Some(Self::Sm3),
            _ => None,
        }
    }

    /// Its number.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
            Self::Sm3 => 0x0012,
        }
    }

    /// Size of a digest, in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// As everybody writes it: `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sm3 => "sm3_256",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512, Self::Sm3]
            .into_iter()
            .find(|alg| alg.name() == name)
    }

    /// The digest of `parts`, one after the other; nothing for algorithms that aren't computed here (SHA-1, SM3).
    pub fn digest(self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        fn run<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        }
        match self {
            Self::Sha256 => Some(run::<Sha256>(parts)),
            Self::Sha384 => Some(run::<Sha384>(parts)),
            Self::Sha512 => Some(run::<Sha512>(parts)),
            Self::Sha1 | Self::Sm3 => None,
        }
    }
}

impl std::fmt::Display for HashAlg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
