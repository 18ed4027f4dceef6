//! `TPMS_ATTEST` of a quote (TPM 2.0 Part 2, 10.12): what the TPM signed.

use crate::eventlog::HashAlg;

use super::wire::{Reader, WireError};

/// `TPM_GENERATED_VALUE`: a restricted key signs nothing from outside that begins with it.
const MAGIC: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
const QUOTE: u16 = 0x8018;
const NAME_LEN_MAX: usize = 66;
/// The longest qualifying data that a TPM takes: a digest of SHA-512 with its number.
pub const QUALIFYING_DATA_LEN_MAX: usize = 66;
const SELECTIONS_MAX: usize = 16;
const SELECT_LEN_MAX: usize = 4;

/// A quote. Holding one proves that it is well-formed, not that any TPM made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    raw: Vec<u8>,
    /// The qualified name of the key that signed: its name and those of its parents, hashed together.
    pub qualified_signer: Vec<u8>,
    /// What the caller wanted to have in it: a nonce.
    pub extra_data: Vec<u8>,
    /// Time and counts.
    pub clock: ClockInfo,
    /// The TPM's firmware. For keys outside the endorsement and platform hierarchies a TPM obfuscates it, as it does the
    /// counts (Part 2, 10.12.12).
    pub firmware_version: u64,
    /// The PCRs that were quoted, in the order of the digest.
    pub selections: Vec<PcrSelection>,
    /// Digest of their values, one after the other.
    pub pcr_digest: Vec<u8>,
}

/// `TPMS_CLOCK_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds that the TPM was powered.
    pub clock: u64,
    /// Number of resets: boots.
    pub reset_count: u32,
    /// Number of resumes and restarts since the last reset.
    pub restart_count: u32,
    /// Whether the clock never showed a later value.
    pub safe: bool,
}

/// The PCRs of one bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// The bank.
    pub bank: HashAlg,
    /// The PCRs, ascending, each once.
    pub pcrs: Vec<u8>,
}

/// Why bytes are no quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// Not the structure.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// Not made inside a TPM.
    #[error("the first four bytes are {0:08x}, not TPM_GENERATED_VALUE (ff544347): no TPM made this")]
    Magic(u32),
    /// A TPM's, but of another kind.
    #[error("a TPM's attestation of type {0:04x}, not a quote (8018)")]
    Type(u16),
}

impl Quote {
    /// Reads a `TPMS_ATTEST`; nothing may be left over.
    pub fn parse(raw: &[u8]) -> Result<Self, QuoteError> {
        let mut reader = Reader::new("TPMS_ATTEST", raw);
        let magic = reader.u32("magic")?;
        if magic != MAGIC {
            return Err(QuoteError::Magic(magic));
        }
        let kind = reader.u16("type")?;
        if kind != QUOTE {
            return Err(QuoteError::Type(kind));
        }
        let qualified_signer = reader.sized(NAME_LEN_MAX, "qualifiedSigner")?.to_vec();
        let extra_data = reader.sized(QUALIFYING_DATA_LEN_MAX, "extraData")?.to_vec();
        let clock = ClockInfo {
            clock: reader.u64("clock")?,
            reset_count: reader.u32("resetCount")?,
            restart_count: reader.u32("restartCount")?,
            safe: match reader.u8("safe")? {
                0 => false,
                1 => true,
                other => return Err(reader.wrong(format!("`safe` is {other}, not 0 or 1")).into()),
            },
        };
        let firmware_version = reader.u64("firmwareVersion")?;
        let selections = selections(&mut reader)?;
        let pcr_digest = reader.sized(64, "pcrDigest")?.to_vec();
        reader.finish()?;
        Ok(Self {
            raw: raw.to_vec(),
            qualified_signer,
            extra_data,
            clock,
            firmware_version,
            selections,
            pcr_digest,
        })
    }

    /// The bytes that were signed.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Whether this PCR was quoted.
    pub fn selects(&self, bank: HashAlg, pcr: u8) -> bool {
        self.selections
            .iter()
            .any(|selection| selection.bank == bank && selection.pcrs.contains(&pcr))
    }
}

/// `TPML_PCR_SELECTION`.
fn selections(reader: &mut Reader<'_>) -> Result<Vec<PcrSelection>, WireError> {
    let count = reader.u32("pcrSelect count")?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= SELECTIONS_MAX);
    let count = count.ok_or_else(|| reader.wrong(format!("more than {SELECTIONS_MAX} PCR selections")))?;
    let mut selections: Vec<PcrSelection> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = reader.u16("bank")?;
        let bank =
            HashAlg::from_id(id).ok_or_else(|| reader.wrong(format!("an unknown PCR bank {id:04x}")))?;
        if selections.iter().any(|known| known.bank == bank) {
            return Err(reader.wrong(format!("the bank {bank} twice")));
        }
        let len = usize::from(reader.u8("sizeofSelect")?);
        if len > SELECT_LEN_MAX {
            return Err(reader.wrong(format!(
                "a PCR selection of {len} bytes (at most {SELECT_LEN_MAX})"
            )));
        }
        let bits = reader.take(len, "pcrSelect")?;
        let pcrs = (0..8 * len as u8).filter(|pcr| bits[usize::from(pcr / 8)] >> (pcr % 8) & 1 == 1);
        selections.push(PcrSelection {
            bank,
            pcrs: pcrs.collect(),
        });
    }
    Ok(selections)
}
