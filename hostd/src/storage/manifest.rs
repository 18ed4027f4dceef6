//! `manifest.json` of an image, parsed strictly: it comes from a stranger's server, though under a digest that the
//! tenant chose.

use std::fmt;

use ledger::api::Digest32;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Largest manifest, bytes.
pub(super) const BYTES_MAX: usize = 64 * 1024;
/// Longest kernel command line: x86's `COMMAND_LINE_SIZE` is 2048 with the ending NUL.
const CMDLINE_BYTES_MAX: usize = 2047;

/// What an image consists of. Its identity is the SHA-256 of the JSON's bytes, not of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format: 1.
    pub version: Version,
    /// For people.
    pub name: Label,
    /// bzImage.
    pub kernel: FileRef,
    /// Initrd.
    #[serde(default)]
    pub initrd: Option<FileRef>,
    /// Kernel command line; the same for all contracts, since it is measured.
    pub cmdline: Cmdline,
    /// Firmware for confidential VMs.
    #[serde(default)]
    pub firmware: Option<FileRef>,
    /// A read-only root disk, for images whose root isn't in the initrd.
    #[serde(default)]
    pub root: Option<FileRef>,
    /// Version of the guest agent inside, for people.
    #[serde(default)]
    pub agent_version: Option<Label>,
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// Name beside the manifest.
    pub file: FileName,
    /// Of its content.
    pub sha256: Digest32,
    /// Bytes, at least 1.
    #[serde(deserialize_with = "at_least_one")]
    pub size: u64,
}

/// The manifest's format version; there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Version;

/// A file name: 1–128 of `A-Z a-z 0-9 . _ -`, not starting with a dot. Holding one proves that it names a file beside
/// the manifest and nothing else: no separator, no `..`, no query, no scheme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

/// 1–128 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

/// Printable ASCII that fits the kernel's limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cmdline(String);

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too large to be looked at.
    #[error("{found} bytes; at most {BYTES_MAX}")]
    TooLarge {
        /// Bytes (at least).
        found: usize,
    },
    /// Not what is expected, and where.
    #[error("{0}")]
    Json(String),
}

impl Manifest {
    /// Parses the bytes; anything unknown, missing, doubled or out of bounds is an error that names the place.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > BYTES_MAX {
            return Err(ManifestError::TooLarge { found: bytes.len() });
        }
        serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))
    }

    /// All files, each once in the manifest's order.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        [
            Some(&self.kernel),
            self.initrd.as_ref(),
            self.firmware.as_ref(),
            self.root.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// Bytes of all files together; saturates, since every size is a stranger's number.
    pub fn total_bytes(&self) -> u64 {
        self.files().fold(0u64, |sum, file| sum.saturating_add(file.size))
    }
}

macro_rules! text {
    ($($type:ident, $valid:expr, $what:literal;)*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) { Ok(Self(text)) } else { Err(format!("{text:.200?} is not {}", $what)) }
            }
        }
        impl From<$type> for String {
            fn from(text: $type) -> Self {
                text.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl $type {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    )*};
}

text! {
    FileName, is_file_name, "a file name (1–128 of A-Z a-z 0-9 . _ -, not starting with a dot)";
    Label, |t| (1..=128).contains(&t.len()) && is_printable(t), "a label (1–128 printable ASCII characters)";
    Cmdline, |t| t.len() <= CMDLINE_BYTES_MAX && is_printable(t), "a kernel command line (at most 2047 printable ASCII characters)";
}

fn is_file_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~'))
}

impl TryFrom<u64> for Version {
    type Error = String;
    fn try_from(version: u64) -> Result<Self, String> {
        if version == 1 {
            Ok(Self)
        } else {
            Err(format!("manifest version {version}; this host knows version 1"))
        }
    }
}

impl From<Version> for u64 {
    fn from(_: Version) -> Self {
        1
    }
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(de::Error::custom("an image's file can't be empty")),
        size => Ok(size),
    }
}
