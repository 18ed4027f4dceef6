//! TPM 2.0: quotes with event logs, the evidence of hosts; `parse → authenticate → appraise`.

#![allow(dead_code, reason = "tdx, nvidia and tpm are being written on this")]

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::result::{Appraisal, Check, Reason, Trust};
use crate::{Endorsements, Policy, PolicyError, Roots};

/// What is asked of this kind of evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TpmPolicy {}

/// The policy as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TpmPolicyFile {}

impl TpmPolicy {
    pub(crate) fn from_file(_file: &TpmPolicyFile) -> Result<Self, PolicyError> {
        Ok(Self {})
    }
}

/// A quote of one TPM and what explains it. Holding one proves nothing yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmEvidence {}

impl TpmEvidence {
    /// The one encoding of this evidence.
    pub fn to_cbor(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads evidence from outside.
    pub fn from_cbor(_cbor: &[u8]) -> Result<Self, String> {
        Err("TPM evidence isn't in this build yet".to_owned())
    }
}

/// Evidence of Azure's confidential VMs: the report of the CPU is about a paravisor, whose vTPM speaks for the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureEvidence {}

/// What [`recognise`] can find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recognised {
    Tpm(TpmEvidence),
    Azure(AzureEvidence),
}

/// Takes a file's content (text is already decoded from hex or base64) if it is TPM evidence or Azure's.
pub(crate) fn recognise(_content: &[u8]) -> Option<Result<Recognised, String>> {
    None
}

/// All stages. `qualifying_data`: what the quote must hold, if the caller knows.
pub(crate) fn verify(
    _evidence: &TpmEvidence,
    _qualifying_data: Option<&[u8]>,
    _endorsements: &Endorsements,
    _roots: &Roots,
    _policy: &Policy,
    _at: u64,
) -> Appraisal {
    let found = "TPM evidence isn't in this build yet";
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

/// All stages of Azure's evidence: the CPU's report, the runtime data that it binds, the vTPM's quote.
pub(crate) fn verify_azure(
    _evidence: &AzureEvidence,
    _endorsements: &Endorsements,
    _roots: &Roots,
    _policy: &Policy,
    _at: u64,
) -> Appraisal {
    let found = "Azure's evidence isn't in this build yet";
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
pub(crate) fn claims(_evidence: &TpmEvidence) -> Value {
    Value::Null
}

/// Every field, decoded; nothing is verified.
pub(crate) fn azure_claims(_evidence: &AzureEvidence) -> Value {
    Value::Null
}
