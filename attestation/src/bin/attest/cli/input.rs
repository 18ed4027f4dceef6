//! What comes from files and arguments, read in bounds and made into the library's types.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use attestation::{AnyEvidence, Bundle, Endorsements, EndorsementsError};

pub(super) const EVIDENCE_FILE_MAX: u64 = 4 * 1024 * 1024;
const ENDORSEMENT_FILE_MAX: u64 = 4 * 1024 * 1024;
const SSH_KEYS_FILE_MAX: u64 = 64 * 1024;
/// How long a pipe may be silent.
const PIPE_IDLE_MAX: Duration = Duration::from_secs(10);
const FOLDER_DEPTH_MAX: usize = 4;
const FOLDER_FILES_MAX: usize = 10_000;

/// Why a file's content isn't there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The system doesn't give it.
    #[error("cannot read {path}")]
    Io {
        path: String,
        #[source]
        source: std::io::Error,
    },
    /// There is more of it than anything here needs.
    #[error("{path} has more than {max} bytes")]
    TooLong { path: String, max: u64 },
}

/// A whole file, at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    let shown = || path.display().to_string();
    let io = |source| ReadError::Io {
        path: shown(),
        source,
    };
    let mut content = Vec::new();
    // A limit on the reading, not on the size that the file claims: it may grow, or be a pipe.
    if fs::metadata(path).map_err(io)?.file_type().is_fifo() {
        read_pipe(path, max, &mut content).map_err(io)?;
    } else {
        let file = File::open(path).map_err(io)?;
        file.take(max + 1).read_to_end(&mut content).map_err(io)?;
    }
    if content.len() as u64 > max {
        return Err(ReadError::TooLong { path: shown(), max });
    }
    Ok(content)
}

/// Reads a pipe, at most a byte more than `max`, without waiting for ever for somebody to write into it.
fn read_pipe(path: &Path, max: u64, content: &mut Vec<u8>) -> std::io::Result<()> {
    const O_NONBLOCK: i32 = 0o4000;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    let mut progress = Instant::now();
    let mut chunk = [0; 64 * 1024];
    while content.len() as u64 <= max {
        match file.read(&mut chunk) {
            // Before anybody writes, a pipe looks like one at its end.
            Ok(0) if !content.is_empty() => return Ok(()),
            Ok(read) if read > 0 => {
                content.extend_from_slice(&chunk[..read]);
                progress = Instant::now();
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ if progress.elapsed() > PIPE_IDLE_MAX => {
                return Err(std::io::Error::new(
                    ErrorKind::TimedOut,
                    "a pipe into which nobody writes",
                ));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(())
}

/// Why there is no evidence to judge.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoEvidence {
    /// Nothing could be read.
    #[error(transparent)]
    Unreadable(ReadError),
    /// The file could be read, and is no evidence.
    #[error("{0}")]
    Malformed(String),
}

/// Evidence of any kind. A bundle's endorsements go to those that were found.
pub(super) fn evidence(path: &Path, found: &mut Found) -> Result<AnyEvidence, NoEvidence> {
    let malformed = |error: &dyn std::error::Error| NoEvidence::Malformed(chain(error));
    let mut content = read(path, Bundle::LEN_MAX as u64).map_err(|error| match error {
        ReadError::Io { .. } => NoEvidence::Unreadable(error),
        ReadError::TooLong { .. } => malformed(&error),
    })?;
    if Bundle::is_one(&content) {
        let bundle = Bundle::from_cbor(&content).map_err(|error| malformed(&error))?;
        bundle
            .add_to(&mut found.endorsements)
            .map_err(|error| malformed(&error))?;
        content = bundle.evidence;
    }
    if content.len() as u64 > EVIDENCE_FILE_MAX {
        let (path, max) = (path.display().to_string(), EVIDENCE_FILE_MAX);
        return Err(malformed(&ReadError::TooLong { path, max }));
    }
    AnyEvidence::parse(&content).map_err(|error| malformed(&error))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
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

/// Endorsements, and what couldn't be used of that which was named.
#[derive(Default)]
pub(super) struct Found {
    pub(super) endorsements: Endorsements,
    /// The content of every file that holds some.
    pub(super) files: Vec<Vec<u8>>,
    /// Files that the caller named: nothing is verified without them.
    pub(super) unreadable: Vec<String>,
    /// Files in folders that the caller named: counted as not given.
    pub(super) passed_over: Vec<String>,
}

/// Endorsements from files and folders. In a folder, files that are no endorsements at all are passed over silently;
/// those that can't be read are named.
pub(super) fn endorsements(paths: &[impl AsRef<Path>]) -> Result<Found> {
    let mut found = Found::default();
    for path in paths.iter().map(AsRef::as_ref) {
        if path.is_dir() {
            // Named, so it must be readable; what is further down in it need not.
            if let Err(error) = fs::read_dir(path) {
                let error = format!("cannot read {}: {error}", path.display());
                found.unreadable.push(error);
                continue;
            }
            let mut files = 0;
            found.add_folder(path, FOLDER_DEPTH_MAX, &mut files)?;
            continue;
        }
        let added = read(path, ENDORSEMENT_FILE_MAX).map_err(anyhow::Error::from);
        let added = added.and_then(|content| {
            let context = || format!("{} is no endorsement", path.display());
            found.add(content).with_context(context)
        });
        if let Err(error) = added {
            found.unreadable.push(format!("{error:#}"));
        }
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, content: Vec<u8>) -> Result<(), EndorsementsError> {
        self.endorsements.add(&content)?;
        if !self.files.contains(&content) {
            self.files.push(content);
        }
        Ok(())
    }

    fn add_folder(&mut self, folder: &Path, depth: usize, files: &mut usize) -> Result<()> {
        let paths = fs::read_dir(folder).and_then(|entries| {
            let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
            paths
        });
        let mut paths = match paths {
            Ok(paths) => paths,
            Err(error) => {
                self.passed_over
                    .push(format!("cannot read {}: {error}", folder.display()));
                return Ok(());
            }
        };
        paths.sort();
        for path in paths {
            *files += 1;
            let shown = folder.display();
            ensure!(
                *files <= FOLDER_FILES_MAX,
                "{shown} has more than {FOLDER_FILES_MAX} files"
            );
            match fs::metadata(&path) {
                // A dangling link, or a circle of them.
                Err(error) => self
                    .passed_over
                    .push(format!("cannot read {}: {error}", path.display())),
                Ok(metadata) if metadata.is_dir() && depth > 0 => self.add_folder(&path, depth - 1, files)?,
                Ok(metadata) if metadata.is_dir() => {
                    self.passed_over.push(format!("{} is too deep", path.display()));
                }
                Ok(metadata) if metadata.is_file() && metadata.len() <= ENDORSEMENT_FILE_MAX => {
                    self.add_file(&path)
                }
                Ok(_) => {} // a device, a pipe, or far too large
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) {
        let added = read(path, ENDORSEMENT_FILE_MAX).map_err(anyhow::Error::from);
        let added = added.and_then(|content| match self.add(content) {
            Err(EndorsementsError::Unknown(_)) => Ok(()),
            added => added.with_context(|| path.display().to_string()),
        });
        if let Err(error) = added {
            self.passed_over.push(format!("{error:#}"));
        }
    }
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
