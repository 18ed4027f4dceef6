//! Signed reference values: which PCR values an image gives, in the words of whoever built it.
//!
//! A file is a DSSE envelope (github.com/secure-systems-lab/dsse), in JSON, around a statement, in JSON:
//!
//! ```json
//! { "payloadType": "application/vnd.decent-cloud.tpm-reference+json", "payload": "<base64>",
//!   "signatures": [{ "keyid": "<SHA-256 of the signer's SubjectPublicKeyInfo, hex>", "sig": "<base64>" }] }
//!
//! { "version": 1, "image": "provider-os 0.4.0",
//!   "pcrs": { "sha256": { "4": ["<hex>"], "7": ["<hex>"], "11": ["<hex>", "<hex>"] } },
//!   "sections": { ".linux": "<SHA-256>", ".initrd": "<SHA-256>", ".cmdline": "<SHA-256>" },
//!   "verity_root_hash": "<hex>" }
//! ```
//!
//! The signature is ECDSA P-256 with SHA-256 (DER) over DSSE's pre-authentication encoding of the payload's exact bytes.
//! A PCR's list holds every value that is right at some time of the boot (PCR 11 goes on with the phases of the boot).
//! `sections`: the UKI's, as systemd-stub measures them into PCR 11; `verity_root_hash` stands in the command line that
//! `.cmdline` is the digest of. Both explain; what is compared are the PCRs, and with an event log the sections.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::crypto::CRYPTO;
use crate::endorsements::EndorsementsError;
use crate::eventlog::HashAlg;
use crate::x509::{PublicKey, ecdsa_fixed};

use super::appraise::UKI_PCR;
use super::policy::{ReferenceKey, pcr_values, trusted};

/// DSSE's type of these statements.
pub const REFERENCE_PAYLOAD_TYPE: &str = "application/vnd.decent-cloud.tpm-reference+json";
const REFERENCES_MAX: usize = 64;
const SIGNATURES_MAX: usize = 8;
const FILE_LEN_MAX: usize = 256 * 1024;

/// The signed reference values that a caller has. Holding one proves that each is well-formed, not who signed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TpmReferences {
    envelopes: Vec<Envelope>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Envelope {
    signed: Vec<u8>,
    signatures: Vec<Vec<u8>>,
    statement: Statement,
}

/// What a builder says of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) image: String,
    pub(super) pcrs: BTreeMap<HashAlg, BTreeMap<u8, Vec<Vec<u8>>>>,
    pub(super) sections: BTreeMap<String, [u8; 32]>,
    pub(super) verity_root_hash: Option<Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeFile {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<SignatureFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureFile {
    /// A hint that a verifier may not rely on (DSSE, "keyid"): every key is tried.
    #[serde(rename = "keyid", default)]
    _keyid: String,
    sig: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementFile {
    version: u32,
    image: String,
    pcrs: BTreeMap<HashAlg, BTreeMap<String, Vec<String>>>,
    #[serde(default)]
    sections: BTreeMap<String, String>,
    verity_root_hash: Option<String>,
}

/// What must be signed so that a reference file says `payload` (DSSE, "PAE"). For whoever makes such files.
pub fn reference_to_sign(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {REFERENCE_PAYLOAD_TYPE} {} ",
        REFERENCE_PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

impl TpmReferences {
    /// Takes a file's content if it is an envelope of this type.
    pub(crate) fn recognise(&mut self, content: &[u8]) -> Option<Result<(), EndorsementsError>> {
        if content.len() > FILE_LEN_MAX || !content.trim_ascii_start().starts_with(b"{") {
            return None;
        }
        let file: EnvelopeFile = serde_json::from_slice(content).ok()?;
        if file.payload_type != REFERENCE_PAYLOAD_TYPE {
            return None;
        }
        let malformed = |what| EndorsementsError::Malformed(format!("TPM reference values: {what}"));
        Some(match envelope(file) {
            Ok(envelope) if self.envelopes.contains(&envelope) => Ok(()),
            Ok(_) if self.envelopes.len() == REFERENCES_MAX => Err(EndorsementsError::TooMuch),
            Ok(envelope) => {
                self.envelopes.push(envelope);
                Ok(())
            }
            Err(what) => Err(malformed(what)),
        })
    }

    /// Whether there is none at all.
    pub(super) fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }

    /// The statements that one of `keys` signed.
    pub(super) fn signed_by<'a>(
        &'a self,
        keys: &'a [ReferenceKey],
    ) -> impl Iterator<Item = (&'a Statement, &'a ReferenceKey)> {
        self.envelopes.iter().filter_map(|envelope| {
            let signer = keys.iter().find(|signer| envelope.is_signed_by(&signer.key))?;
            Some((&envelope.statement, signer))
        })
    }
}

impl Envelope {
    fn is_signed_by(&self, key: &PublicKey) -> bool {
        let PublicKey::P256(key) = key else {
            return false;
        };
        let mut signatures = self.signatures.iter();
        signatures.any(|der| {
            ecdsa_fixed::<32, 64>(der).is_some_and(|rs| CRYPTO.p256_sha256(key, &self.signed, &rs))
        })
    }
}

fn envelope(file: EnvelopeFile) -> Result<Envelope, String> {
    if !(1..=SIGNATURES_MAX).contains(&file.signatures.len()) {
        return Err(format!(
            "{} signatures (1 to {SIGNATURES_MAX})",
            file.signatures.len()
        ));
    }
    let base64 = |text: &str| STANDARD.decode(text).map_err(|e| format!("base64: {e}"));
    let payload = base64(&file.payload)?;
    let signatures = file.signatures.iter().map(|signature| base64(&signature.sig));
    Ok(Envelope {
        signed: reference_to_sign(&payload),
        signatures: signatures.collect::<Result<_, _>>()?,
        statement: statement(&payload)?,
    })
}

fn statement(payload: &[u8]) -> Result<Statement, String> {
    let file: StatementFile = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    if file.version != 1 {
        return Err(format!("version {}; this verifier knows version 1", file.version));
    }
    if file.image.len() > 200 || file.image.chars().any(char::is_control) {
        return Err("`image`: a name of at most 200 characters on one line".to_owned());
    }
    let mut pcrs = BTreeMap::new();
    for (bank, values) in &file.pcrs {
        if !trusted(*bank) {
            return Err("`pcrs`: banks are sha256, sha384 and sha512".to_owned());
        }
        pcrs.insert(*bank, pcr_values(*bank, values)?);
    }
    if pcrs.values().all(BTreeMap::is_empty) {
        return Err("`pcrs` names no PCR".to_owned());
    }
    let mut sections = BTreeMap::new();
    for (name, digest) in file.sections {
        let digest = hex::decode(digest).ok().and_then(|digest| digest.try_into().ok());
        sections.insert(name, digest.ok_or("`sections`: SHA-256 in hex")?);
    }
    // Whoever boots something else can measure these afterwards; only the PCR's value shows that he did.
    let pcr_11 = pcrs
        .get(&HashAlg::Sha256)
        .is_some_and(|values| values.contains_key(&UKI_PCR));
    if !sections.is_empty() && !pcr_11 {
        return Err("`sections` without values of PCR 11 of sha256".to_owned());
    }
    let verity = file
        .verity_root_hash
        .map(|hash| hex::decode(hash).map_err(|e| e.to_string()));
    Ok(Statement {
        image: file.image,
        pcrs,
        sections,
        verity_root_hash: verity.transpose()?,
    })
}
