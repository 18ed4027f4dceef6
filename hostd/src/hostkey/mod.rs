//! The host's own key: with it hostd speaks to the ledger. It acts for the provider only by the provider's signed
//! delegation; the provider's own key is never on this machine.
//!
//! Two kinds of file, told apart by the PEM label, so that one setting (`ledger.host_key`) names either:
//!
//! | label | the key is |
//! |---|---|
//! | `TSS2 PRIVATE KEY` | in this machine's TPM ([`tpm`], feature `tpm`): the file is worth nothing elsewhere |
//! | `PRIVATE KEY`, `EC PRIVATE KEY` | in the file, as `decent key new` makes it: for a machine without a TPM |

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ledger::client::{Key, KeyError};

#[cfg(feature = "tpm")]
pub mod tpm;

/// PEM label of a key that only a TPM can use ("ASN.1 Specification for TPM 2.0 Key Files").
const TSS2_LABEL: &str = "TSS2 PRIVATE KEY";

/// The largest key file that is read.
const FILE_MAX: u64 = 16 * 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeyError {
    /// The file.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A key in a file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The TPM, or its key file.
    #[cfg(feature = "tpm")]
    #[error(transparent)]
    Tpm(#[from] tpm::TpmKeyError),
    /// A key of a TPM, and a program that can't speak to one.
    #[error(
        "{} is a key in a TPM, but this hostd was built without TPM support (cargo feature `tpm`)",
        .0.display()
    )]
    NoTpmSupport(PathBuf),
}

impl HostKeyError {
    /// Whether the key is one of another TPM, and no other trouble stands in the way.
    pub fn is_foreign(&self) -> bool {
        #[cfg(feature = "tpm")]
        return matches!(self, Self::Tpm(tpm::TpmKeyError::Foreign(_)));
        #[cfg(not(feature = "tpm"))]
        return false;
    }
}

/// The key of the file `path`; one of a TPM's is loaded into the TPM that tpm2-tss calls `tcti`.
pub fn read(path: &Path, tcti: &str) -> Result<Key, HostKeyError> {
    let failed = |source| HostKeyError::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
        .map_err(failed)?;
    if !text.contains(TSS2_LABEL) {
        return Ok(Key::from_pem(&text)?);
    }
    #[cfg(feature = "tpm")]
    return Ok(tpm::TpmKey::from_pem(&text, tcti)?.into_key()?);
    #[cfg(not(feature = "tpm"))]
    {
        let _ = tcti;
        Err(HostKeyError::NoTpmSupport(path.to_owned()))
    }
}

/// The key of the file `path`; if there is no such file, a new key that the TPM makes and only it can use. A file that is
/// there is never replaced. Killed half-way it leaves no file, and the next call makes another key.
#[cfg(feature = "tpm")]
pub fn read_or_create(path: &Path, tcti: &str) -> Result<Key, HostKeyError> {
    let there = path.try_exists().map_err(|source| HostKeyError::File {
        what: "look for",
        path: path.to_owned(),
        source,
    })?;
    if there {
        return read(path, tcti);
    }
    let key = tpm::TpmKey::create(tcti)?;
    crate::setup::write::file(path, key.to_pem().as_bytes(), 0o600).map_err(|source| HostKeyError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })?;
    Ok(key.into_key()?)
}

/// The same without support for TPMs: only what is there is read.
#[cfg(not(feature = "tpm"))]
pub fn read_or_create(path: &Path, tcti: &str) -> Result<Key, HostKeyError> {
    read(path, tcti)
}

/// The name of the TPM's attestation key (`name:` and 34 bytes in hexadecimal), which the provider's delegation names so that
/// the ledger believes this host's quotes.
#[cfg(feature = "tpm")]
pub fn attestation_key(tcti: &str) -> Result<String, String> {
    let ak = attestation::tpm::TpmDevice::open(tcti)
        .and_then(|mut tpm| tpm.attestation_key())
        .map_err(|error| crate::wiring::chain(&error))?;
    let ak = attestation::tpm::AttestationKey::parse(&ak).map_err(|error| error.to_string())?;
    let name = ak.name().ok_or("the attestation key has no name")?;
    Ok(format!("name:{}", hex::encode(name)))
}

/// The same without support for TPMs.
#[cfg(not(feature = "tpm"))]
pub fn attestation_key(_: &str) -> Result<String, String> {
    Err("this hostd was built without TPM support (cargo feature `tpm`)".to_owned())
}
