//! Encryption at rest: LUKS2 by `cryptsetup`, one random key per disk, where the kernel has device-mapper.
//!
//! Making, from a crash's point of view: key file (synced) → header in the unfinished disk → rename. Opening gives
//! `/dev/mapper/dc-<contract>`. Destroying the key is what wipes: the header needs a key that is nowhere any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ledger::api::ContractId;
use serde::{Deserialize, Serialize};

use super::disk::Owner;
use super::{StorageError, files};

/// Size of LUKS2's header as `cryptsetup` makes it by default: data begins here.
pub(super) const HEADER_BYTES: u64 = 16 << 20;
/// Random bytes; the volume key itself comes from `cryptsetup`, this one opens its only slot.
const KEY_BYTES: usize = 64;
/// First bytes of a LUKS header (LUKS2 On-Disk Format Specification 1.1, section 2.1).
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";

/// Whether disks can be encrypted with a key of their own here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionSupport {
    /// Yes, LUKS2.
    Luks2,
    /// No, and every reason.
    Unavailable {
        /// In words.
        reasons: Vec<String>,
    },
}

impl EncryptionSupport {
    /// Whether it is there.
    pub fn is_available(&self) -> bool {
        matches!(self, Self::Luks2)
    }

    pub(super) fn require(&self) -> Result<(), StorageError> {
        match self {
            Self::Luks2 => Ok(()),
            Self::Unavailable { reasons } => Err(StorageError::EncryptionUnavailable {
                why: reasons.join("; "),
            }),
        }
    }
}

/// Looks under `root` (`/`, or a made-up tree in tests).
pub(super) fn support(root: &Path) -> EncryptionSupport {
    let mut reasons = Vec::new();
    // `/proc/misc` lists device-mapper when the driver is loaded; the node in /dev may be made by udev later.
    let misc = fs::read_to_string(root.join("proc/misc")).unwrap_or_default();
    if !misc
        .lines()
        .any(|l| l.split_whitespace().nth(1) == Some("device-mapper"))
    {
        reasons
            .push("the kernel has no device-mapper (module dm_mod; `modprobe dm_mod dm_crypt`)".to_owned());
    } else if !root.join("dev/mapper/control").exists() {
        reasons.push("/dev/mapper/control is missing (`dmsetup mknodes`)".to_owned());
    }
    let places = [
        "usr/sbin/cryptsetup",
        "sbin/cryptsetup",
        "usr/bin/cryptsetup",
        "usr/local/sbin/cryptsetup",
    ];
    if !places.iter().any(|p| root.join(p).exists()) {
        reasons.push("cryptsetup is not installed (package cryptsetup-bin)".to_owned());
    }
    if reasons.is_empty() {
        EncryptionSupport::Luks2
    } else {
        EncryptionSupport::Unavailable { reasons }
    }
}

/// Name of the opened mapping.
fn mapping_name(contract: &ContractId) -> String {
    format!("dc-{contract}")
}

/// The opened mapping, if it is open.
pub(super) fn mapping(contract: &ContractId) -> Option<PathBuf> {
    let path = Path::new("/dev/mapper").join(mapping_name(contract));
    path.exists().then_some(path)
}

/// Whether a LUKS header is at the file's start.
pub(super) fn has_header(path: &Path) -> Result<bool, StorageError> {
    let mut first = [0u8; MAGIC.len()];
    let read = File::open(path).and_then(|mut f| f.read_exact(&mut first));
    match read {
        Ok(()) => Ok(first == *MAGIC),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(StorageError::os(format!("read {}", path.display()))(e)),
    }
}

/// Makes a new key and a header that it opens.
pub(super) fn format(disk: &Path, key: &Path) -> Result<(), StorageError> {
    let mut bytes = [0u8; KEY_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(StorageError::os("read /dev/urandom"))?;
    files::write_whole(key, &bytes, 0o600, Owner::SELF)?;
    // The key has 512 random bits: a slow key derivation would protect nothing and cost a second and a GiB per disk.
    cryptsetup(
        "luksFormat",
        &[
            "--batch-mode".into(),
            "--type=luks2".into(),
            format!("--offset={}", HEADER_BYTES / 512),
            "--cipher=aes-xts-plain64".into(),
            "--key-size=512".into(),
            "--pbkdf=pbkdf2".into(),
            "--pbkdf-force-iterations=1000".into(),
            format!("--key-file={}", key.display()),
            disk.display().to_string(),
        ],
    )
    .map(drop)
}

/// Opens the disk, unless it is open.
pub(super) fn open(contract: &ContractId, disk: &Path, key: &Path) -> Result<PathBuf, StorageError> {
    if let Some(path) = mapping(contract) {
        return Ok(path);
    }
    let name = mapping_name(contract);
    cryptsetup(
        "open",
        &[
            "--type=luks2".into(),
            "--allow-discards".into(),
            format!("--key-file={}", key.display()),
            disk.display().to_string(),
            name.clone(),
        ],
    )?;
    Ok(Path::new("/dev/mapper").join(name))
}

/// Closes the mapping; one that isn't open is a success, one in use is [`StorageError::InUse`].
pub(super) fn close(contract: ContractId) -> Result<(), StorageError> {
    if mapping(&contract).is_none() {
        return Ok(());
    }
    match cryptsetup("close", &[mapping_name(&contract)]) {
        // cryptsetup(8), RETURN CODES: 5, device already exists or device is busy.
        Ok(5) => Err(StorageError::InUse {
            contract,
            why: "its mapping is open in some process".into(),
        }),
        Ok(_) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Overwrites, syncs and removes the key, also a half-written one. Says whether there was one.
pub(super) fn destroy_key(key: &Path) -> Result<bool, StorageError> {
    let mut found = false;
    for path in [key.to_owned(), key.with_extension("new")] {
        let overwrite = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            let length = file.metadata()?.len().min(4096);
            file.write_all(&vec![0u8; usize::try_from(length).unwrap_or(KEY_BYTES)])?;
            file.sync_all()
        };
        match overwrite() {
            Ok(()) => found |= files::remove(&path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(StorageError::os(format!("overwrite the key {}", path.display()))(
                    e,
                ));
            }
        }
    }
    Ok(found)
}

/// Runs `cryptsetup`; only 0 and 5 (busy) come back as a code.
fn cryptsetup(verb: &str, args: &[String]) -> Result<i32, StorageError> {
    let out = Command::new("cryptsetup")
        .arg(verb)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(StorageError::os(format!(
            "run cryptsetup {verb} (package cryptsetup-bin)"
        )))?;
    match out.status.code() {
        Some(0) => Ok(0),
        Some(5) if verb == "close" => Ok(5),
        _ => Err(StorageError::Tool {
            tool: format!("cryptsetup {verb}"),
            stderr: String::from_utf8_lossy(&out.stderr)
                .trim()
                .chars()
                .take(500)
                .collect(),
        }),
    }
}
