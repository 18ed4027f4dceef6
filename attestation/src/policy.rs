//! What a relying party asks of evidence: reference values and limits.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::result::Grade;
use crate::snp::{Product, TcbFloors, VekKind};

/// An appraisal policy. What is `None` or empty isn't asked for, and the result names it under `not_checked`.
///
/// The default refuses what is never right for a tenant (DEBUG, migration agents, VMPL above 0, TCB versions that
/// contradict each other) and asks for nothing that only the caller can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Launch measurements that are accepted; `Some` of nothing refuses all.
    pub allowed_measurements: Option<Vec<[u8; 48]>>,
    /// What the launch must carry as `HOST_DATA`: the contract id.
    pub host_data: Option<[u8; 32]>,
    /// What the report must carry as `REPORT_DATA` (see [`crate::Binding`]). All 64 bytes are compared.
    pub report_data: Option<[u8; 64]>,
    /// `FAMILY_ID`.
    pub family_id: Option<[u8; 16]>,
    /// `IMAGE_ID`.
    pub image_id: Option<[u8; 16]>,
    /// Accepted digests of the key that signed the ID block.
    pub allowed_id_keys: Option<Vec<[u8; 48]>>,
    /// Accepted digests of the author's key.
    pub allowed_author_keys: Option<Vec<[u8; 48]>>,
    /// Accepted chips. The one way to notice evidence of a machine that isn't where it should be.
    pub allowed_chips: Option<Vec<[u8; 64]>>,
    /// Floors for TCB versions.
    pub min_tcb: TcbFloors,
    /// Least firmware version: major, minor, build; of the running and the committed one.
    pub min_firmware: Option<[u8; 3]>,
    /// Mitigation bits (report version 5) that must be set now and at the launch.
    pub required_mitigations: u64,
    /// Bits that the guest policy must have set (bit 24: ciphertext hiding, …).
    pub required_policy_bits: u64,
    /// Bits of `PLATFORM_INFO` that must be set (bit 5: alias check complete, …).
    pub required_platform_bits: u64,
    /// Bits of `PLATFORM_INFO` that must be clear (bit 0: SMT, …).
    pub forbidden_platform_bits: u64,
    /// Product lines that are refused whatever else they show.
    pub refused_products: BTreeSet<Product>,
    /// The only kind of key that may sign; `None`: VCEK and VLEK.
    pub vek: Option<VekKind>,
    /// Accept a guest that its host may debug: such a guest has no secrets.
    pub allow_debug: bool,
    /// Accept a guest that a migration agent may move.
    pub allow_migration: bool,
    /// Accept a committed or reported TCB above the current one (provisional firmware).
    pub allow_inconsistent_tcb: bool,
    /// The highest VMPL that a report may come from: 0 is the VM's most privileged level.
    pub max_vmpl: u32,
    /// The least grade that is accepted. Below [`Grade::HardwareVerified`] a VM without CPU evidence can be verified.
    pub min_grade: Grade,
    /// What must have been checked for the verdict `verified`.
    pub required: BTreeSet<Requirement>,
}

/// A check that can only be made when the caller gives what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// `REPORT_DATA` was compared with an expected value.
    Freshness,
    /// The intermediate key was looked up in a fresh CRL.
    Revocation,
    /// The measurement was compared with reference values.
    Measurement,
    /// TCB versions were compared with a floor.
    Tcb,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not the JSON or TOML of a policy.
    #[error("not a policy: {0}")]
    Format(String),
    /// A value of the wrong length or alphabet.
    #[error("policy field `{field}`: expected {len} bytes in hex")]
    Hex {
        /// Which field.
        field: &'static str,
        /// Bytes expected.
        len: usize,
    },
    /// An unknown requirement.
    #[error("unknown requirement `{0}`; known: freshness, revocation, measurement, tcb")]
    Requirement(String),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allowed_measurements: None,
            host_data: None,
            report_data: None,
            family_id: None,
            image_id: None,
            allowed_id_keys: None,
            allowed_author_keys: None,
            allowed_chips: None,
            min_tcb: TcbFloors::default(),
            min_firmware: None,
            required_mitigations: 0,
            required_policy_bits: 0,
            required_platform_bits: 0,
            forbidden_platform_bits: 0,
            refused_products: BTreeSet::new(),
            vek: None,
            allow_debug: false,
            allow_migration: false,
            allow_inconsistent_tcb: false,
            max_vmpl: 0,
            min_grade: Grade::HardwareVerified,
            required: BTreeSet::new(),
        }
    }
}

impl FromStr for Requirement {
    type Err = PolicyError;

    fn from_str(word: &str) -> Result<Self, PolicyError> {
        match word {
            "freshness" => Ok(Self::Freshness),
            "revocation" => Ok(Self::Revocation),
            "measurement" => Ok(Self::Measurement),
            "tcb" => Ok(Self::Tcb),
            _ => Err(PolicyError::Requirement(word.to_owned())),
        }
    }
}
