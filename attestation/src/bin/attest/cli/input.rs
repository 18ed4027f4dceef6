//! What comes from files and arguments, read in bounds and made into the library's types.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use attestation::{AnyEvidence, AnyEvidenceError, Endorsements, EndorsementsError};

const EVIDENCE_FILE_MAX: u64 = 4 * 1024 * 1024;
const ENDORSEMENT_FILE_MAX: u64 = 4 * 1024 * 1024;
const SSH_KEYS_FILE_MAX: u64 = 64 * 1024;
const FOLDER_DEPTH_MAX: usize = 4;
const FOLDER_FILES_MAX: usize = 1000;

/// A whole file, at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!metadata.is_dir(), "{} is a directory", path.display());
    let mut content = Vec::new();
    // A limit on the reading, not on the size that the file claims: it may grow, or be a pipe.
    file.take(max + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        content.len() as u64 <= max,
        "{} is longer than {max} bytes",
        path.display()
    );
    Ok(content)
}

/// Evidence of any kind. An error inside: the file could be read, and is no evidence.
pub(super) fn evidence(path: &Path) -> Result<Result<AnyEvidence, AnyEvidenceError>> {
    Ok(AnyEvidence::parse(&read(path, EVIDENCE_FILE_MAX)?))
}

/// OpenSSH public keys, one a line; empty lines and comments are skipped, as `decent rent` does.
pub(super) fn ssh_keys(path: &Path) -> Result<Vec<String>> {
    let Ok(text) = String::from_utf8(read(path, SSH_KEYS_FILE_MAX)?) else {
        bail!("{} is not text", path.display());
    };
    ensure!(
        !text.contains("PRIVATE KEY"),
        "{} is a private key: give the file that ends in .pub",
        path.display()
    );
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    ensure!(!keys.is_empty(), "{} holds no SSH public key", path.display());
    Ok(keys)
}

/// Certificates and CRLs from files and folders. In a folder, files that are neither are passed over.
pub(super) fn endorsements(paths: &[impl AsRef<Path>]) -> Result<Endorsements> {
    let mut endorsements = Endorsements::none();
    for path in paths {
        let path = path.as_ref();
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            let mut files = 0;
            add_folder(&mut endorsements, path, FOLDER_DEPTH_MAX, &mut files)?;
        } else {
            let content = read(path, ENDORSEMENT_FILE_MAX)?;
            endorsements
                .add(&content)
                .with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(endorsements)
}

fn add_folder(endorsements: &mut Endorsements, folder: &Path, depth: usize, files: &mut usize) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        *files += 1;
        ensure!(
            *files <= FOLDER_FILES_MAX,
            "{} has more than {FOLDER_FILES_MAX} files",
            folder.display()
        );
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        }; // a dangling link
        if metadata.is_dir() {
            if depth > 0 {
                add_folder(endorsements, &path, depth - 1, files)?;
            }
        } else if metadata.is_file() && metadata.len() <= ENDORSEMENT_FILE_MAX {
            match endorsements.add(&read(&path, ENDORSEMENT_FILE_MAX)?) {
                Ok(()) | Err(EndorsementsError::Unknown(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
            }
        }
    }
    Ok(())
}

/// A root certificate, DER or PEM.
pub(super) fn root(path: &Path) -> Result<Vec<u8>> {
    let mut file = Endorsements::none();
    file.add(&read(path, ENDORSEMENT_FILE_MAX)?)
        .with_context(|| format!("{}", path.display()))?;
    let mut certificates = file.certificates();
    match (certificates.next(), certificates.next()) {
        (Some(root), None) => Ok(root.to_vec()),
        _ => bail!("{} must hold exactly one certificate", path.display()),
    }
}

/// `N` bytes in hex; for clap.
pub(super) fn hex_bytes<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let bytes = hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|e| e.to_string())?;
    bytes
        .try_into()
        .map_err(|bytes: Vec<u8>| format!("expected {N} bytes in hex, found {}", bytes.len()))
}

/// Unix seconds, or `2026-08-19`, or `2026-08-19T14:09:01Z`; for clap.
pub(super) fn time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let full = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let time: der::DateTime = full
        .parse()
        .map_err(|_| "expected Unix seconds, 2026-08-19 or 2026-08-19T14:09:01Z".to_owned())?;
    Ok(time.unix_duration().as_secs())
}

/// Now, in Unix seconds.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A ledger's id: a principal's text (`ryjl3-tyaaa-…`) or its bytes in hex; for clap.
pub(super) fn ledger(text: &str) -> Result<Vec<u8>, String> {
    let bytes = if text.contains('-') {
        principal(text)?
    } else {
        hex::decode(text).map_err(|e| e.to_string())?
    };
    match bytes.len() {
        1..=29 => Ok(bytes),
        len => Err(format!("a principal has 1 to 29 bytes, not {len}")),
    }
}

/// Base32 of CRC-32 and bytes, in groups of five (Internet Computer interface specification, "Textual representation
/// of principals").
fn principal(text: &str) -> Result<Vec<u8>, String> {
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for c in text.bytes().filter(|c| *c != b'-') {
        let value = match c {
            b'a'..=b'z' => c - b'a',
            b'2'..=b'7' => c - b'2' + 26,
            _ => return Err("not a principal: unexpected character".to_owned()),
        };
        bits = (bits << 5 | u32::from(value)) & 0xfff;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    let (crc, id) = bytes
        .split_first_chunk::<4>()
        .ok_or("not a principal: too short")?;
    if u32::from_be_bytes(*crc) != crc32(id) {
        return Err("not a principal: wrong checksum".to_owned());
    }
    Ok(id.to_vec())
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_read_as_the_internet_computer_writes_them() {
        for (text, want) in [
            ("aaaaa-aa", Ok(vec![])), // the management canister: no bytes, and no ledger
            ("2vxsx-fae", Ok(vec![4])),
            (
                "ryjl3-tyaaa-aaaaa-aaaba-cai",
                Ok(vec![0, 0, 0, 0, 0, 0, 0, 2, 1, 1]),
            ),
            ("ryjl3-tyaaa-aaaaa-aaaba-caa", Err(())),
            ("RYJL3", Err(())),
            ("a", Err(())),
        ] {
            assert_eq!(principal(text).map_err(drop), want, "{text}");
        }
        assert!(ledger("aaaaa-aa").is_err());
        assert_eq!(ledger("00ff"), Ok(vec![0, 0xff]));
    }

    #[test]
    fn times_are_seconds_or_dates() {
        assert_eq!(time("1788220800"), Ok(1_788_220_800));
        assert_eq!(time("2026-09-01"), Ok(1_788_220_800));
        assert_eq!(time("2026-09-01T00:00:01Z"), Ok(1_788_220_801));
        assert!(time("yesterday").is_err());
    }
}
