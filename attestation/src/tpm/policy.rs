//! What is asked of a host's TPM.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::PolicyError;
use crate::eventlog::HashAlg;
use crate::x509::PublicKey;

use super::key::AttestationKey;

/// What a relying party asks of TPM quotes. Keys and roots are named here, because nobody pins them for you: there are
/// hundreds of TPM makers' roots, and most attestation keys have no certificate at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmPolicy {
    /// Attestation keys that are accepted; `Some` of nothing refuses all. `None`: any key that a trusted root certifies.
    pub allowed_aks: Option<Vec<AkPin>>,
    /// SHA-256 of root certificates (DER) that may certify attestation keys. The certificates themselves come with the
    /// evidence or the endorsements.
    pub roots: Vec<[u8; 32]>,
    /// What the quote must hold as qualifying data, byte for byte.
    pub nonce: Option<Vec<u8>>,
    /// PCRs that must be quoted, by bank.
    pub required_pcrs: BTreeMap<HashAlg, BTreeSet<u8>>,
    /// Accepted values by bank and PCR: every PCR named here must have one of its values.
    pub pcrs: BTreeMap<HashAlg, BTreeMap<u8, Vec<Vec<u8>>>>,
    /// Who may sign reference values: P-256 keys. If any is named, signed reference values must be given and fit.
    pub reference_keys: Vec<ReferenceKey>,
    /// Images (by the name that their signed reference values have) that are refused whoever signed for them.
    pub refused_images: BTreeSet<String>,
    /// The event log must be there and replay to the quoted values.
    pub require_event_log: bool,
    /// UEFI's Secure Boot must be on, as a measured variable in the event log says.
    pub require_secure_boot: bool,
    /// Least firmware version of the TPM, as the quote has it.
    pub min_firmware: Option<u64>,
}

/// How an attestation key is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AkPin {
    /// Its name (TPM 2.0 Part 1, "Names"), 34 bytes or more: binds the attributes, too.
    Name(Vec<u8>),
    /// SHA-256 of its SubjectPublicKeyInfo: whoever pins this vouches for the attributes.
    Spki([u8; 32]),
}

/// A key that signs reference values: P-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceKey {
    pub(super) key: PublicKey,
    pub(super) spki_sha256: [u8; 32],
}

impl ReferenceKey {
    /// Reads a SubjectPublicKeyInfo (DER or PEM); nothing but P-256 is accepted.
    pub fn parse(spki: &[u8]) -> Option<Self> {
        let parsed = AttestationKey::parse(spki)
            .ok()
            .filter(|key| key.name().is_none())?;
        let spki_sha256 = parsed.spki_sha256();
        matches!(parsed.key, PublicKey::P256(_)).then_some(Self {
            key: parsed.key,
            spki_sha256,
        })
    }
}

impl Default for TpmPolicy {
    /// The SHA-256 bank with the PCRs of the firmware and the boot loader (0 to 7).
    fn default() -> Self {
        Self {
            allowed_aks: None,
            roots: Vec::new(),
            nonce: None,
            required_pcrs: BTreeMap::from([(HashAlg::Sha256, (0..=7).collect())]),
            pcrs: BTreeMap::new(),
            reference_keys: Vec::new(),
            refused_images: BTreeSet::new(),
            require_event_log: false,
            require_secure_boot: false,
            min_firmware: None,
        }
    }
}

/// The policy as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TpmPolicyFile {
    aks: Option<Vec<String>>,
    roots: Option<Vec<String>>,
    nonce: Option<String>,
    required_pcrs: Option<BTreeMap<HashAlg, BTreeSet<u8>>>,
    // TOML's keys are texts.
    pcrs: BTreeMap<HashAlg, BTreeMap<String, Vec<String>>>,
    reference_keys: Vec<String>,
    refused_images: BTreeSet<String>,
    require_event_log: bool,
    require_secure_boot: bool,
    min_firmware: Option<u64>,
}

impl TpmPolicy {
    pub(crate) fn from_file(file: &TpmPolicyFile) -> Result<Self, PolicyError> {
        let default = Self::default();
        let required_pcrs = file.required_pcrs.clone().unwrap_or(default.required_pcrs);
        if required_pcrs.values().flatten().any(|pcr| *pcr >= 24) {
            return Err(PolicyError::Tpm("`required_pcrs`: PCRs are numbered 0 to 23"));
        }
        if required_pcrs
            .keys()
            .chain(file.pcrs.keys())
            .any(|bank| !trusted(*bank))
        {
            return Err(PolicyError::Tpm(
                "`required_pcrs`, `pcrs`: banks are sha256, sha384 and sha512",
            ));
        }
        let mut pcrs = BTreeMap::new();
        for (bank, values) in &file.pcrs {
            pcrs.insert(*bank, pcr_values(*bank, values).map_err(PolicyError::Tpm)?);
        }
        let nonce = file.nonce.as_ref().map(|nonce| {
            let nonce = hex::decode(nonce)
                .ok()
                .filter(|nonce| (1..=64).contains(&nonce.len()));
            nonce.ok_or(PolicyError::Tpm("`nonce`: 1 to 64 bytes in hex"))
        });
        let aks = file
            .aks
            .as_ref()
            .map(|aks| aks.iter().map(|ak| pin(ak)).collect());
        let reference_key = |pem: &String| {
            ReferenceKey::parse(pem.as_bytes())
                .ok_or(PolicyError::Tpm("`reference_keys`: P-256 public keys in PEM"))
        };
        Ok(Self {
            allowed_aks: aks.transpose()?,
            roots: crate::policy::list("tpm.roots", &file.roots)?.unwrap_or_default(),
            nonce: nonce.transpose()?,
            required_pcrs,
            pcrs,
            reference_keys: file
                .reference_keys
                .iter()
                .map(reference_key)
                .collect::<Result<_, _>>()?,
            refused_images: file.refused_images.clone(),
            require_event_log: file.require_event_log,
            require_secure_boot: file.require_secure_boot,
            min_firmware: file.min_firmware,
        })
    }
}

/// Whether a verdict may rest on this bank.
pub(super) fn trusted(bank: HashAlg) -> bool {
    matches!(bank, HashAlg::Sha256 | HashAlg::Sha384 | HashAlg::Sha512)
}

/// Accepted values by PCR, as files have them: numbers as text, values in hex.
pub(super) fn pcr_values(
    bank: HashAlg,
    values: &BTreeMap<String, Vec<String>>,
) -> Result<BTreeMap<u8, Vec<Vec<u8>>>, &'static str> {
    let mut parsed = BTreeMap::new();
    for (pcr, values) in values {
        let number = pcr
            .parse::<u8>()
            .ok()
            .filter(|n| *n < 24 && n.to_string() == *pcr);
        let number = number.ok_or("`pcrs`: PCRs are numbered 0 to 23")?;
        let value = |hex: &String| hex::decode(hex).ok().filter(|value| value.len() == bank.size());
        let values: Option<Vec<Vec<u8>>> = values.iter().map(value).collect();
        parsed.insert(
            number,
            values.ok_or("`pcrs`: values in hex, of their bank's length")?,
        );
    }
    Ok(parsed)
}

fn pin(text: &str) -> Result<AkPin, PolicyError> {
    let wrong =
        PolicyError::Tpm("`aks`: `name:` with a TPM name in hex, or `spki-sha256:` with 32 bytes in hex");
    let (kind, digest) = text.split_once(':').unwrap_or_default();
    match (kind, hex::decode(digest)) {
        ("name", Ok(name)) if known_name(&name) => Ok(AkPin::Name(name)),
        ("spki-sha256", Ok(digest)) => digest.try_into().map(AkPin::Spki).map_err(|_| wrong),
        _ => Err(wrong),
    }
}

fn known_name(name: &[u8]) -> bool {
    let Some((id, digest)) = name.split_first_chunk::<2>() else {
        return false;
    };
    let alg = HashAlg::from_id(u16::from_be_bytes(*id));
    alg.is_some_and(|alg| trusted(alg) && alg.size() == digest.len())
}
