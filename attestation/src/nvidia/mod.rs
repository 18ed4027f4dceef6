//! NVIDIA GPUs: SPDM evidence, `parse → authenticate → appraise`.

#![allow(dead_code, reason = "tdx, nvidia and tpm are being written on this")]

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endorsements::{EndorsementsError, Recognised};
use crate::result::{Appraisal, Check, Reason, Trust};
use crate::{Endorsements, Policy, PolicyError, Roots};

/// What is asked of this kind of evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuPolicy {}

/// The policy as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GpuPolicyFile {}

impl GpuPolicy {
    pub(crate) fn from_file(_file: &GpuPolicyFile) -> Result<Self, PolicyError> {
        Ok(Self {})
    }
}

/// Reference manifests (RIM) and OCSP responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {}

impl References {
    /// Takes a file's content if it is one of these.
    pub(crate) fn recognise(&mut self, _content: &[u8]) -> Option<Result<Recognised, EndorsementsError>> {
        None
    }
}

/// Evidence of one GPU (or NVSwitch). Holding one proves nothing yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuEvidence {
    /// SPDM `GET_MEASUREMENTS` request (37 bytes) and the response.
    pub report: Vec<u8>,
    /// DER: the chain of the key that signed, in any order.
    pub certificates: Vec<Vec<u8>>,
}

impl GpuEvidence {
    /// Evidence as a GPU gives it.
    pub fn new(report: Vec<u8>, certificates: Vec<Vec<u8>>) -> Self {
        Self { report, certificates }
    }
}

/// Takes a file's content (text is already decoded from hex or base64) if it is GPU evidence: raw, or NVIDIA's JSON.
pub(crate) fn recognise(_content: &[u8]) -> Option<Result<Vec<GpuEvidence>, String>> {
    None
}

/// All stages. `nonce`: what the request must hold, if the caller knows.
pub(crate) fn verify(
    _evidence: &GpuEvidence,
    _nonce: Option<[u8; 32]>,
    _endorsements: &Endorsements,
    _roots: &Roots,
    _policy: &Policy,
    _at: u64,
) -> Appraisal {
    let found = "GPU evidence isn't in this build yet";
    let check = Check::of(
        "format.kind",
        false,
        Reason::UnsupportedVersion,
        "a known format",
        found,
    );
    Appraisal {
        checks: vec![check],
        trust: Trust::None,
        warnings: Vec::new(),
        claims: Value::Null,
    }
}

/// Every field, decoded; nothing is verified.
pub(crate) fn claims(_evidence: &GpuEvidence) -> Value {
    Value::Null
}
