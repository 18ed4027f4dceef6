//! systemd's log of what the running system measured: `/run/log/systemd/tpm2-measure.log`.
//!
//! JSON text sequences (RFC 7464: each record stands between a byte 1E and a line feed) of records close to TCG's CEL-JSON:
//! `{"pcr":11,"digests":[{"hashAlg":"sha256","digest":"…"}],"content_type":"systemd","content":{"eventType":"phase",
//! "string":"enter-initrd",…}}`. The firmware's log ends where this one begins.

use serde::Deserialize;

use super::{HashAlg, Registers, ReplayError, extend};

/// The longest log that is read, in bytes. A boot writes some kB.
pub const LOG_LEN_MAX: usize = 1024 * 1024;
const RECORDS_MAX: usize = 4096;
const DIGESTS_MAX: usize = 8;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The register; `None` for measurements into something else (an NV index).
    pub pcr: Option<u32>,
    /// Digests by algorithm; never two of one.
    pub digests: Vec<(HashAlg, Vec<u8>)>,
    /// systemd's name of what this is: `phase`, `machine-id`, ….
    pub event_type: Option<String>,
    /// What systemd says about it; the measured words themselves for a `phase`.
    pub string: Option<String>,
}

/// Why bytes are no such log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceLogError {
    /// Too long.
    #[error("a userspace log of {len} bytes (at most {LOG_LEN_MAX})")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Too many records.
    #[error("a userspace log of more than {RECORDS_MAX} records")]
    TooMany,
    /// A record that can't be read, counted from 1.
    #[error("userspace log, record {record}: {what}")]
    Record {
        /// Which.
        record: usize,
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize)]
struct RawRecord {
    pcr: Option<u32>,
    digests: Vec<RawDigest>,
    content: Option<RawContent>,
}

#[derive(Deserialize)]
struct RawDigest {
    #[serde(rename = "hashAlg")]
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct RawContent {
    #[serde(rename = "eventType")]
    event_type: Option<String>,
    string: Option<String>,
}

/// Reads a log. An empty one is a log without measurements.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, UserspaceLogError> {
    if bytes.len() > LOG_LEN_MAX {
        return Err(UserspaceLogError::TooLong { len: bytes.len() });
    }
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |record, what: &str| UserspaceLogError::Record {
        record,
        what: what.to_owned(),
    };
    let Some(bytes) = bytes.strip_prefix(b"\x1e") else {
        return Err(wrong(1, "it doesn't begin with a record separator (1E)"));
    };
    let mut records = Vec::new();
    for (n, text) in bytes.split(|byte| *byte == 0x1e).enumerate() {
        if n == RECORDS_MAX {
            return Err(UserspaceLogError::TooMany);
        }
        let text = text
            .strip_suffix(b"\n")
            .ok_or_else(|| wrong(n + 1, "it doesn't end with a line feed: cut off"))?;
        let record = serde_json::from_slice(text)
            .map_err(|e| e.to_string())
            .and_then(record)
            .map_err(|what| UserspaceLogError::Record { record: n + 1, what })?;
        records.push(record);
    }
    Ok(records)
}

fn record(raw: RawRecord) -> Result<Record, String> {
    if !(1..=DIGESTS_MAX).contains(&raw.digests.len()) {
        return Err(format!("{} digests (1 to {DIGESTS_MAX})", raw.digests.len()));
    }
    let mut digests = Vec::with_capacity(raw.digests.len());
    for RawDigest { algorithm, digest } in raw.digests {
        let alg = HashAlg::from_name(&algorithm)
            .ok_or_else(|| format!("an unknown hash algorithm `{}`", algorithm.escape_default()))?;
        let digest = hex::decode(digest).map_err(|e| e.to_string())?;
        if digest.len() != alg.size() {
            return Err(format!("a {alg} digest of {} bytes", digest.len()));
        }
        if digests.iter().any(|(known, _)| *known == alg) {
            return Err(format!("two {alg} digests"));
        }
        digests.push((alg, digest));
    }
    let content = raw.content;
    Ok(Record {
        pcr: raw.pcr,
        digests,
        event_type: content.as_ref().and_then(|content| content.event_type.clone()),
        string: content.and_then(|content| content.string),
    })
}

/// Goes on from where the firmware's log ended: extends `registers` by every record. A register that the firmware left
/// alone begins at zero.
pub fn replay(records: &[Record], algorithm: HashAlg, registers: &mut Registers) -> Result<(), ReplayError> {
    for record in records {
        let Some(pcr) = record.pcr else { continue };
        let digest = record.digests.iter().find(|(alg, _)| *alg == algorithm);
        let (_, digest) = digest.ok_or(ReplayError::NoBank(algorithm))?;
        let value = registers.entry(pcr).or_insert_with(|| vec![0; algorithm.size()]);
        extend(algorithm, value, digest)?;
    }
    Ok(())
}
