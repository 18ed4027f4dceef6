//! What a relying party asks of evidence: reference values and limits.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nvidia::{GpuPolicy, GpuPolicyFile};
use crate::result::Grade;
use crate::snp::{Product, TcbFloor, TcbFloors, VekKind};
use crate::tdx::{TdxPolicy, TdxPolicyFile};
use crate::tpm::{TpmPolicy, TpmPolicyFile};

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
    /// What the VM must say it was set up with (see [`crate::settings_digest`]). Only evidence whose `REPORT_DATA` is
    /// compared shows it.
    pub settings: Option<[u8; 32]>,
    /// The contract's salt: `host_data` must be [`crate::contract_id`] of it and `settings`.
    pub salt: Option<[u8; 32]>,
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
    /// A floor for each product line, for all three TCB versions; the higher of both counts.
    pub product_tcb: BTreeMap<Product, TcbFloor>,
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
    /// How many GPUs the VM must show, exactly. They are bound to the VM's report (see [`crate::gpu_nonce`]).
    pub gpus: Option<usize>,
    /// The least grade that is accepted. Below [`Grade::HardwareVerified`] a VM without CPU evidence can be verified.
    pub min_grade: Grade,
    /// What must have been checked for the verdict `verified`.
    pub required: BTreeSet<Requirement>,
    /// What is asked of TDX quotes beside the above.
    pub tdx: TdxPolicy,
    /// What is asked of GPUs.
    pub gpu: GpuPolicy,
    /// What is asked of TPM quotes.
    pub tpm: TpmPolicy,
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
    /// A value of `[tpm]`.
    #[error("policy section `tpm`, {0}")]
    Tpm(&'static str),
    /// Not a version.
    #[error("`{0}` is no version: numbers with dots between, like 550.90.07")]
    Version(String),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allowed_measurements: None,
            host_data: None,
            report_data: None,
            settings: None,
            salt: None,
            family_id: None,
            image_id: None,
            allowed_id_keys: None,
            allowed_author_keys: None,
            allowed_chips: None,
            min_tcb: TcbFloors::default(),
            product_tcb: BTreeMap::new(),
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
            gpus: None,
            min_grade: Grade::HardwareVerified,
            required: BTreeSet::new(),
            tdx: TdxPolicy::default(),
            gpu: GpuPolicy::default(),
            tpm: TpmPolicy::default(),
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

/// A policy as a file has it (TOML or JSON): strict, everything optional, bytes in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyFile {
    measurements: Option<Vec<String>>,
    report_data: Option<String>,
    host_data: Option<String>,
    settings: Option<String>,
    salt: Option<String>,
    family_id: Option<String>,
    image_id: Option<String>,
    id_keys: Option<Vec<String>>,
    author_keys: Option<Vec<String>>,
    chips: Option<Vec<String>>,
    min_tcb: TcbFloors,
    product_tcb: BTreeMap<Product, TcbFloor>,
    min_firmware: Option<[u8; 3]>,
    required_mitigations: u64,
    required_policy_bits: u64,
    required_platform_bits: u64,
    forbidden_platform_bits: u64,
    refused_products: BTreeSet<Product>,
    vek: Option<VekKind>,
    allow_debug: bool,
    allow_migration: bool,
    allow_inconsistent_tcb: bool,
    max_vmpl: u32,
    gpus: Option<usize>,
    min_grade: Option<Grade>,
    require: BTreeSet<Requirement>,
    tdx: TdxPolicyFile,
    gpu: GpuPolicyFile,
    tpm: TpmPolicyFile,
}

impl Policy {
    /// From a file's content; every byte string must have its whole length.
    pub fn from_file(file: &PolicyFile) -> Result<Self, PolicyError> {
        let default = Self::default();
        Ok(Self {
            allowed_measurements: list("measurements", &file.measurements)?,
            host_data: one("host_data", &file.host_data)?,
            report_data: one("report_data", &file.report_data)?,
            settings: one("settings", &file.settings)?,
            salt: one("salt", &file.salt)?,
            family_id: one("family_id", &file.family_id)?,
            image_id: one("image_id", &file.image_id)?,
            allowed_id_keys: list("id_keys", &file.id_keys)?,
            allowed_author_keys: list("author_keys", &file.author_keys)?,
            allowed_chips: list("chips", &file.chips)?,
            min_tcb: file.min_tcb,
            product_tcb: file.product_tcb.clone(),
            min_firmware: file.min_firmware,
            required_mitigations: file.required_mitigations,
            required_policy_bits: file.required_policy_bits,
            required_platform_bits: file.required_platform_bits,
            forbidden_platform_bits: file.forbidden_platform_bits,
            refused_products: file.refused_products.clone(),
            vek: file.vek,
            allow_debug: file.allow_debug,
            allow_migration: file.allow_migration,
            allow_inconsistent_tcb: file.allow_inconsistent_tcb,
            max_vmpl: file.max_vmpl,
            gpus: file.gpus,
            min_grade: file.min_grade.unwrap_or(default.min_grade),
            required: file.require.clone(),
            tdx: TdxPolicy::from_file(&file.tdx)?,
            gpu: GpuPolicy::from_file(&file.gpu)?,
            tpm: TpmPolicy::from_file(&file.tpm)?,
        })
    }
}

/// `N` bytes in hex, if the field is there.
pub(crate) fn one<const N: usize>(
    field: &'static str,
    hex: &Option<String>,
) -> Result<Option<[u8; N]>, PolicyError> {
    hex.as_ref().map(|hex| parse_hex(field, hex)).transpose()
}

/// A list of `N` bytes in hex, if the field is there.
pub(crate) fn list<const N: usize>(
    field: &'static str,
    hex: &Option<Vec<String>>,
) -> Result<Option<Vec<[u8; N]>>, PolicyError> {
    let parse = |list: &Vec<String>| list.iter().map(|hex| parse_hex(field, hex)).collect();
    hex.as_ref().map(parse).transpose()
}

fn parse_hex<const N: usize>(field: &'static str, hex: &str) -> Result<[u8; N], PolicyError> {
    let bytes = hex::decode(hex).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(PolicyError::Hex { field, len: N })
}
