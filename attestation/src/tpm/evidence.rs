//! What a host shows: its TPM's quote, and what explains it; one encoding.
//!
//! ```text
//! tpm-evidence = { 0: "tpm", 1: 1 (version),
//!                  2: TPMS_ATTEST: bytes,  3: TPMT_SIGNATURE: bytes,
//!                  4: attestation key: bytes (TPMT_PUBLIC, TPM2B_PUBLIC or SubjectPublicKeyInfo),
//!                  5: [* certificate: bytes (DER)],            of the attestation key, then its issuers
//!                  6: { * bank (TPM_ALG_ID) => { * PCR => value: bytes } },
//!                  7: firmware's event log: bytes / null,      binary_bios_measurements
//!                  8: systemd's event log: bytes / null }      tpm2-measure.log
//! ```
//!
//! Deterministic CBOR (RFC 8949, 4.2.1): the decoder accepts exactly what the encoder makes.

use std::collections::BTreeMap;

use minicbor::Decoder;
use minicbor::data::Type;

use crate::cbor::Writer;
use crate::eventlog::HashAlg;

/// The longest encoded evidence, in bytes: almost all of it are event logs.
pub const TPM_EVIDENCE_LEN_MAX: usize = 1024 * 1024;
/// How the encoding begins: a map of nine fields, the first of which is the text `tpm`.
pub(super) const START: [u8; 6] = [0xa9, 0x00, 0x63, b't', b'p', b'm'];
const VERSION: u8 = 1;
const QUOTE_LEN_MAX: usize = 1024;
const KEY_LEN_MAX: usize = 2048;
const CERTIFICATES_MAX: u64 = 8;
const CERTIFICATE_LEN_MAX: usize = 8 * 1024;
const BANKS_MAX: u64 = 5;
const PCRS_MAX: u64 = 32;

/// Values of PCRs by bank and number.
pub type PcrValues = BTreeMap<HashAlg, BTreeMap<u8, Vec<u8>>>;

/// A quote of one TPM, and what explains it. Holding one proves only that the encoding is well-formed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TpmEvidence {
    /// `TPMS_ATTEST`: what the TPM signed.
    pub quote: Vec<u8>,
    /// `TPMT_SIGNATURE` over it.
    pub signature: Vec<u8>,
    /// The key that signed: `TPMT_PUBLIC`, `TPM2B_PUBLIC`, or SubjectPublicKeyInfo.
    pub ak: Vec<u8>,
    /// DER: a certificate of that key, and its issuers', in any order; none if the verifier knows the key.
    pub certificates: Vec<Vec<u8>>,
    /// The values of the PCRs that were quoted, and no others.
    pub pcrs: PcrValues,
    /// The firmware's event log, if there is one.
    pub firmware_log: Option<Vec<u8>>,
    /// systemd's event log, if there is one.
    pub userspace_log: Option<Vec<u8>>,
}

impl TpmEvidence {
    /// The one encoding of this evidence.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        cbor.map(9).uint(0).text("tpm").uint(1).uint(VERSION.into());
        cbor.uint(2).bytes(&self.quote).uint(3).bytes(&self.signature);
        cbor.uint(4)
            .bytes(&self.ak)
            .uint(5)
            .array(self.certificates.len());
        for certificate in &self.certificates {
            cbor.bytes(certificate);
        }
        cbor.uint(6).map(self.pcrs.len());
        for (bank, values) in &self.pcrs {
            cbor.uint(bank.id().into()).map(values.len());
            for (pcr, value) in values {
                cbor.uint((*pcr).into()).bytes(value);
            }
        }
        for (field, log) in [(7, &self.firmware_log), (8, &self.userspace_log)] {
            cbor.uint(field);
            match log {
                Some(log) => cbor.bytes(log),
                None => cbor.null(),
            };
        }
        cbor.into_bytes()
    }

    /// Reads evidence from outside. Accepts exactly what [`TpmEvidence::to_cbor`] makes, within bounds; the error is a
    /// sentence.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, String> {
        if cbor.len() > TPM_EVIDENCE_LEN_MAX {
            return Err(format!("{} bytes (at most {TPM_EVIDENCE_LEN_MAX})", cbor.len()));
        }
        let mut d = Decoder::new(cbor);
        let evidence = decode(&mut d).map_err(|what| format!("at byte {}: {what}", d.position()))?;
        if evidence.to_cbor() != cbor {
            return Err("it isn't encoded in the one allowed way".to_owned());
        }
        Ok(evidence)
    }
}

fn decode(d: &mut Decoder<'_>) -> Result<TpmEvidence, String> {
    if length(d, 9, Decoder::map)? != 9 {
        return Err("TPM evidence has nine fields".to_owned());
    }
    field(d, 0)?;
    if d.str().map_err(|e| e.to_string())? != "tpm" {
        return Err("it isn't TPM evidence".to_owned());
    }
    field(d, 1)?;
    let version = d.u8().map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!(
            "version {version}; this verifier knows version {VERSION}"
        ));
    }
    let mut evidence = TpmEvidence::default();
    field(d, 2)?;
    evidence.quote = bytes(d, QUOTE_LEN_MAX)?;
    field(d, 3)?;
    evidence.signature = bytes(d, QUOTE_LEN_MAX)?;
    field(d, 4)?;
    evidence.ak = bytes(d, KEY_LEN_MAX)?;
    field(d, 5)?;
    for _ in 0..length(d, CERTIFICATES_MAX, Decoder::array)? {
        evidence.certificates.push(bytes(d, CERTIFICATE_LEN_MAX)?);
    }
    field(d, 6)?;
    for _ in 0..length(d, BANKS_MAX, Decoder::map)? {
        let id = d.u16().map_err(|e| e.to_string())?;
        let bank = HashAlg::from_id(id).ok_or_else(|| format!("an unknown PCR bank {id:04x}"))?;
        let mut values = BTreeMap::new();
        for _ in 0..length(d, PCRS_MAX, Decoder::map)? {
            let pcr = d.u8().map_err(|e| e.to_string())?;
            let value = bytes(d, bank.size())?;
            if value.len() != bank.size() {
                return Err(format!("PCR {pcr} of {bank} has {} bytes", value.len()));
            }
            values.insert(pcr, value);
        }
        evidence.pcrs.insert(bank, values);
    }
    field(d, 7)?;
    evidence.firmware_log = optional_bytes(d)?;
    field(d, 8)?;
    evidence.userspace_log = optional_bytes(d)?;
    Ok(evidence)
}

fn field(d: &mut Decoder<'_>, key: u8) -> Result<(), String> {
    match d.u8() {
        Ok(found) if found == key => Ok(()),
        Ok(found) => Err(format!("field {found} where {key} must be")),
        Err(e) => Err(format!("field {key}: {e}")),
    }
}

fn bytes(d: &mut Decoder<'_>, max: usize) -> Result<Vec<u8>, String> {
    let bytes = d.bytes().map_err(|e| e.to_string())?;
    if bytes.len() > max {
        return Err(format!("{} bytes (at most {max})", bytes.len()));
    }
    Ok(bytes.to_vec())
}

fn optional_bytes(d: &mut Decoder<'_>) -> Result<Option<Vec<u8>>, String> {
    match d.datatype().map_err(|e| e.to_string())? {
        Type::Null => d.null().map(|()| None).map_err(|e| e.to_string()),
        _ => bytes(d, TPM_EVIDENCE_LEN_MAX).map(Some),
    }
}

/// A definite length of an array or map, at most `max`.
fn length<'b>(
    d: &mut Decoder<'b>,
    max: u64,
    read: fn(&mut Decoder<'b>) -> Result<Option<u64>, minicbor::decode::Error>,
) -> Result<u64, String> {
    match read(d) {
        Ok(Some(len)) if len <= max => Ok(len),
        Ok(Some(len)) => Err(format!("{len} entries (at most {max})")),
        Ok(None) => Err("an indefinite length".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}
