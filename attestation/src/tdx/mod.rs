//! Intel TDX: `parse → authenticate → appraise`.

#![allow(dead_code, reason = "tdx, nvidia and tpm are being written on this")]

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endorsements::{EndorsementsError, Recognised};
use crate::result::{Appraisal, Check, Reason, Trust};
use crate::{Endorsements, GuestKeys, Policy, PolicyError, Roots};

/// What is asked of this kind of evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TdxPolicy {}

/// The policy as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TdxPolicyFile {}

impl TdxPolicy {
    pub(crate) fn from_file(_file: &TdxPolicyFile) -> Result<Self, PolicyError> {
        Ok(Self {})
    }
}

/// TCB infos, quoting enclave identities: what Intel says about platforms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collateral {}

impl Collateral {
    /// Takes a file's content if it is one of these.
    pub(crate) fn recognise(&mut self, _content: &[u8]) -> Option<Result<Recognised, EndorsementsError>> {
        None
    }
}

/// All stages. `quote`: raw; `event_log`: a CCEL, if there is one.
pub(crate) fn verify(
    _quote: &[u8],
    _event_log: Option<&[u8]>,
    _keys: &GuestKeys,
    _endorsements: &Endorsements,
    _roots: &Roots,
    _policy: &Policy,
    _at: u64,
) -> Appraisal {
    let found = "TDX isn't in this build yet";
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

/// Whether bytes (decoded already) are a quote or something of Intel's that passes for one.
pub(crate) fn recognise(_content: &[u8]) -> bool {
    false
}

/// Every field, decoded; nothing is verified.
pub(crate) fn claims(_quote: &[u8]) -> Value {
    Value::Null
}

/// The `REPORT_DATA` of a quote that may be believed or not; `None`: bytes that are no quote.
pub(crate) fn report_data(_quote: &[u8]) -> Option<[u8; 64]> {
    None
}
