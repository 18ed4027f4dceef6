//! Evidence: what a VM shows about itself, and its one encoding.
//!
//! CBOR (RFC 8949), deterministic: the decoder accepts exactly the bytes that the encoder makes, so that a key, a length
//! or an unknown field can't hide anything and two encodings of one evidence can't exist.
//!
//! ```text
//! evidence   = { 0: 1 (version), 1: cpu, 2: keys }
//! cpu        = [0]                                   nothing but the host's word
//!            / [1, report: bytes, [* certificate: bytes (DER)]]       AMD SEV-SNP
//!            / [2, quote: bytes, event log: bytes / null]             Intel TDX
//! keys       = { ? 0: "ssh-ed25519 AAAA…", ? 1: TLS SubjectPublicKeyInfo (DER), ? 2: WireGuard key (32 bytes),
//!                ? 3: digest of the tenant's settings (32 bytes) }
//! ```
//!
//! Nothing here says that evidence is true: that is [`crate::verify()`]'s.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minicbor::Decoder;
use minicbor::data::Type;
use sha2::{Digest, Sha256};

use crate::cbor::Writer;

/// The longest encoded evidence, in bytes. Real evidence has about 6 KiB.
pub const EVIDENCE_LEN_MAX: usize = 192 * 1024;
const REPORT_LEN_MAX: usize = 8 * 1024;
const QUOTE_LEN_MAX: usize = 16 * 1024;
/// The longest event log that evidence carries, in bytes; real ones have up to 20 KiB before their padding.
pub(crate) const EVENT_LOG_LEN_MAX: usize = 128 * 1024;
pub(crate) const CERTIFICATES_MAX: usize = 8;
pub(crate) const CERTIFICATE_LEN_MAX: usize = 8 * 1024;
const SSH_KEY_LEN_MAX: usize = 1024;
const TLS_SPKI_LEN_MAX: usize = 1024;
const VERSION: u8 = 1;
/// Of [`crate::Composite`]; one VM's has three.
const FIELDS_MAX: u64 = 5;

/// What one VM shows about itself. Holding one proves only that it is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What its CPU says.
    pub cpu: CpuEvidence,
    /// The public keys that the VM made for itself, and the settings that it applied. `REPORT_DATA` binds them (see
    /// [`crate::Binding`]).
    pub guest_keys: GuestKeys,
}

/// What the CPU says about the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuEvidence {
    /// AMD SEV-SNP.
    SevSnp {
        /// The attestation report as the chip signed it (AMD 56860, `ATTESTATION_REPORT`).
        report: Vec<u8>,
        /// DER: the VCEK or VLEK, its intermediate (ASK or ASVK), perhaps the ARK, in any order.
        certificates: Vec<Vec<u8>>,
    },
    /// Intel TDX.
    Tdx {
        /// The quote as the quoting enclave signed it.
        quote: Vec<u8>,
        /// The firmware's event log (CCEL), if the VM gave it.
        event_log: Option<Vec<u8>>,
    },
    /// Nothing: an ordinary VM, for which only its host speaks.
    None,
}

/// The public keys of a VM, and the settings that it applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestKeys {
    /// SSH host key.
    pub ssh_host_key: Option<SshHostKey>,
    /// `SubjectPublicKeyInfo` (DER) of the TLS server's key.
    pub tls_spki: Option<Vec<u8>>,
    /// WireGuard public key.
    pub wireguard: Option<[u8; 32]>,
    /// What the VM was set up with, as [`crate::settings_digest`] has it.
    pub settings: Option<[u8; 32]>,
}

/// An OpenSSH public key: its type, a space, base64; no comment, no line break.
///
/// Holding one proves that it may be written behind a host name into a `known_hosts` file without adding a line or a
/// marker, and that the type named is the one inside the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SshHostKey(String);

/// Why a line is no SSH host key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SshHostKeyError {
    /// Too long.
    #[error("an SSH key of {len} bytes (at most {SSH_KEY_LEN_MAX})")]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// Not `TYPE BASE64`.
    #[error("not an OpenSSH public key: expected `TYPE BASE64`, as in a .pub file")]
    Format,
    /// The type before the key isn't the one inside it.
    #[error("the SSH key's type differs from the type inside the key")]
    Type,
}

/// Why bytes are no evidence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Longer than [`EVIDENCE_LEN_MAX`].
    #[error("evidence of {len} bytes (at most {EVIDENCE_LEN_MAX})")]
    TooLong {
        /// Bytes found.
        len: usize,
    },
    /// Not the CBOR that this format asks for.
    #[error("malformed evidence at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: String,
    },
    /// A version from the future.
    #[error("evidence of version {0}; this verifier knows version {VERSION}")]
    Version(u8),
    /// The SSH host key.
    #[error(transparent)]
    SshHostKey(#[from] SshHostKeyError),
    /// Meaning the same, but not encoded as this format prescribes (lengths, order, trailing bytes).
    #[error("evidence that isn't encoded in the one allowed way")]
    NotCanonical,
}

impl SshHostKey {
    /// The line: `ssh-ed25519 AAAA…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SshHostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SshHostKey {
    type Err = SshHostKeyError;

    /// Reads a line of a `.pub` file; a comment behind the key is dropped.
    fn from_str(line: &str) -> Result<Self, SshHostKeyError> {
        if line.len() > SSH_KEY_LEN_MAX {
            return Err(SshHostKeyError::Length { len: line.len() });
        }
        let line = line.strip_suffix('\n').unwrap_or(line);
        let mut words = line.split(' ');
        let (Some(kind), Some(key)) = (words.next(), words.next()) else {
            return Err(SshHostKeyError::Format);
        };
        let kind_ok = kind.starts_with(|c: char| c.is_ascii_lowercase())
            && kind
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-.@".contains(&b));
        if !kind_ok || line.contains(|c: char| c.is_control()) {
            return Err(SshHostKeyError::Format);
        }
        let blob = STANDARD.decode(key).map_err(|_| SshHostKeyError::Format)?;
        let inner = blob
            .split_first_chunk::<4>()
            .and_then(|(len, rest)| rest.get(..u32::from_be_bytes(*len) as usize))
            .ok_or(SshHostKeyError::Format)?;
        if inner != kind.as_bytes() {
            return Err(SshHostKeyError::Type);
        }
        Ok(Self(format!("{kind} {key}")))
    }
}

impl GuestKeys {
    /// SHA-256 of the key set's encoding: what `REPORT_DATA` binds.
    pub fn digest(&self) -> [u8; 32] {
        let mut cbor = Writer::default();
        self.encode(&mut cbor);
        Sha256::digest(cbor.into_bytes()).into()
    }

    fn encode(&self, cbor: &mut Writer) {
        let present = [
            self.ssh_host_key.is_some(),
            self.tls_spki.is_some(),
            self.wireguard.is_some(),
            self.settings.is_some(),
        ];
        cbor.map(present.into_iter().filter(|present| *present).count());
        if let Some(key) = &self.ssh_host_key {
            cbor.uint(0).text(key.as_str());
        }
        if let Some(spki) = &self.tls_spki {
            cbor.uint(1).bytes(spki);
        }
        if let Some(key) = &self.wireguard {
            cbor.uint(2).bytes(key);
        }
        if let Some(digest) = &self.settings {
            cbor.uint(3).bytes(digest);
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, EvidenceError> {
        let mut keys = Self::default();
        for _ in 0..length(d, "the key set", 4, Decoder::map)? {
            match d.u8().at(d, "a key's kind")? {
                0 => {
                    let line = d.str().at(d, "an SSH host key")?;
                    let key = SshHostKey::from_str(line)?;
                    if key.as_str() != line {
                        return Err(SshHostKeyError::Format.into());
                    }
                    keys.ssh_host_key = Some(key);
                }
                1 => keys.tls_spki = Some(bytes(d, "a TLS key", TLS_SPKI_LEN_MAX)?),
                2 => keys.wireguard = Some(bytes_32(d, "a WireGuard key")?),
                3 => keys.settings = Some(bytes_32(d, "a digest of settings")?),
                _ => return Err(malformed(d, "an unknown kind of key")),
            }
        }
        Ok(keys)
    }
}

impl Evidence {
    /// The one encoding of this evidence.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        self.encode(&mut cbor, 0);
        cbor.into_bytes()
    }

    /// Writes the fields 0 to 2 of a map that has `more` besides.
    pub(crate) fn encode(&self, cbor: &mut Writer, more: usize) {
        cbor.map(3 + more).uint(0).uint(VERSION.into()).uint(1);
        match &self.cpu {
            CpuEvidence::None => {
                cbor.array(1).uint(0);
            }
            CpuEvidence::SevSnp { report, certificates } => {
                cbor.array(3).uint(1).bytes(report);
                encode_certificates(cbor, certificates);
            }
            CpuEvidence::Tdx { quote, event_log } => {
                cbor.array(3).uint(2).bytes(quote);
                match event_log {
                    Some(log) => cbor.bytes(log),
                    None => cbor.null(),
                };
            }
        }
        cbor.uint(2);
        self.guest_keys.encode(cbor);
    }

    /// Reads evidence from outside. Accepts exactly what [`Evidence::to_cbor`] makes, within bounds.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, EvidenceError> {
        if cbor.len() > EVIDENCE_LEN_MAX {
            return Err(EvidenceError::TooLong { len: cbor.len() });
        }
        let d = &mut Decoder::new(cbor);
        let (evidence, more) = Self::decode(d)?;
        if more != 0 {
            return Err(malformed(d, "evidence of one VM has three fields"));
        }
        if evidence.to_cbor() != cbor {
            return Err(EvidenceError::NotCanonical);
        }
        Ok(evidence)
    }

    /// Reads the fields 0 to 2 of a map, and says how many fields follow.
    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<(Self, usize), EvidenceError> {
        let fields = length(d, "evidence", FIELDS_MAX, Decoder::map)?;
        let Some(more) = fields.checked_sub(3) else {
            return Err(malformed(d, "evidence has at least three fields"));
        };
        field(d, 0)?;
        let version = d.u8().at(d, "the version")?;
        if version != VERSION {
            return Err(EvidenceError::Version(version));
        }
        field(d, 1)?;
        let parts = length(d, "the CPU's part", 3, Decoder::array)?;
        let kind = d.u8().at(d, "the CPU's kind")?;
        let cpu = match (kind, parts) {
            (0, 1) => CpuEvidence::None,
            (1, 3) => {
                let report = bytes(d, "the report", REPORT_LEN_MAX)?;
                let certificates = decode_certificates(d)?;
                CpuEvidence::SevSnp { report, certificates }
            }
            (2, 3) => {
                let quote = bytes(d, "the quote", QUOTE_LEN_MAX)?;
                let event_log = match d.datatype().at(d, "the event log")? {
                    Type::Null => {
                        d.null().at(d, "the event log")?;
                        None
                    }
                    _ => Some(bytes(d, "the event log", EVENT_LOG_LEN_MAX)?),
                };
                CpuEvidence::Tdx { quote, event_log }
            }
            _ => return Err(malformed(d, "an unknown kind of CPU evidence")),
        };
        field(d, 2)?;
        let guest_keys = GuestKeys::decode(d)?;
        Ok((Self { cpu, guest_keys }, more as usize))
    }
}

/// An array of certificates.
pub(crate) fn encode_certificates(cbor: &mut Writer, certificates: &[Vec<u8>]) {
    cbor.array(certificates.len());
    for certificate in certificates {
        cbor.bytes(certificate);
    }
}

/// What [`encode_certificates`] wrote, within bounds.
pub(crate) fn decode_certificates(d: &mut Decoder<'_>) -> Result<Vec<Vec<u8>>, EvidenceError> {
    let count = length(d, "the certificates", CERTIFICATES_MAX as u64, Decoder::array)?;
    (0..count)
        .map(|_| bytes(d, "a certificate", CERTIFICATE_LEN_MAX))
        .collect()
}

pub(crate) fn malformed(d: &Decoder<'_>, what: impl Into<String>) -> EvidenceError {
    EvidenceError::Malformed {
        at: d.position(),
        what: what.into(),
    }
}

pub(crate) trait At<T> {
    fn at(self, d: &Decoder<'_>, what: &str) -> Result<T, EvidenceError>;
}

impl<T> At<T> for Result<T, minicbor::decode::Error> {
    fn at(self, d: &Decoder<'_>, what: &str) -> Result<T, EvidenceError> {
        self.map_err(|e| malformed(d, format!("{what}: {e}")))
    }
}

pub(crate) fn field(d: &mut Decoder<'_>, key: u8) -> Result<(), EvidenceError> {
    if d.u8().at(d, "a field")? == key {
        Ok(())
    } else {
        Err(malformed(d, format!("expected field {key}")))
    }
}

pub(crate) fn bytes(d: &mut Decoder<'_>, what: &str, max: usize) -> Result<Vec<u8>, EvidenceError> {
    let bytes = d.bytes().at(d, what)?;
    if bytes.len() > max {
        return Err(malformed(
            d,
            format!("{what} of {} bytes (at most {max})", bytes.len()),
        ));
    }
    Ok(bytes.to_vec())
}

fn bytes_32(d: &mut Decoder<'_>, what: &str) -> Result<[u8; 32], EvidenceError> {
    let bytes = bytes(d, what, 32)?;
    bytes
        .try_into()
        .map_err(|_| malformed(d, format!("{what} has 32 bytes")))
}

/// A definite length of an array or map, at most `max`.
pub(crate) fn length<'b>(
    d: &mut Decoder<'b>,
    what: &str,
    max: u64,
    read: fn(&mut Decoder<'b>) -> Result<Option<u64>, minicbor::decode::Error>,
) -> Result<u64, EvidenceError> {
    match read(d).at(d, what)? {
        Some(len) if len <= max => Ok(len),
        Some(len) => Err(malformed(d, format!("{what}: {len} entries (at most {max})"))),
        None => Err(malformed(d, format!("{what}: indefinite length"))),
    }
}
