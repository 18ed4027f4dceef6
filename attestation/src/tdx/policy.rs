//! What is asked of TDX quotes, beside what is asked of every VM.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::tcb::TcbStatus;
use crate::PolicyError;
use crate::policy::{list, one};

/// What is asked of TDX quotes, beside what [`crate::Policy`] asks of every VM: `host_data` is compared with the first 32
/// bytes of `MRCONFIGID` (the rest zero), `report_data` with `REPORTDATA`, `allowed_measurements` with
/// [`crate::tdx::measurement`]; `allow_debug` and `allow_migration` count here, too.
///
/// The default is what a tenant wants: `SEPT_VE_DISABLE` set, no PERFMON, no profiling, no service TD, a TCB between
/// `UpToDate` and `SWHardeningNeeded`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxPolicy {
    /// Accepted `MRTD`s: what was in the TD's memory when it started, which is its firmware.
    pub allowed_mr_td: Option<Vec<[u8; 48]>>,
    /// Accepted values of RTMR0 to RTMR3.
    pub allowed_rtmrs: [Option<Vec<[u8; 48]>>; 4],
    /// Accepted TDX modules, by `MRSEAM`. Which modules are Intel's, its TCB info says without this.
    pub allowed_mr_seam: Option<Vec<[u8; 48]>>,
    /// `MRCONFIGID`, all of it.
    pub mr_config_id: Option<[u8; 48]>,
    /// `MROWNER`.
    pub mr_owner: Option<[u8; 48]>,
    /// `MROWNERCONFIG`.
    pub mr_owner_config: Option<[u8; 48]>,
    /// Accepted platforms, by the PPID in the PCK certificate: the one protection from a machine that somebody has in hand.
    pub allowed_ppids: Option<Vec<[u8; 16]>>,
    /// Accepted TCB statuses; `Revoked` never is.
    pub accepted_status: BTreeSet<TcbStatus>,
    /// Advisories that refuse a platform whatever its status is: `INTEL-SA-00960`.
    pub refused_advisories: BTreeSet<String>,
    /// The least `tcbEvaluationDataNumber` of Intel's collateral: which TCB recoveries it must know of.
    pub min_evaluation_number: Option<u32>,
    /// TD attributes that must be set, beside `SEPT_VE_DISABLE`.
    pub required_attributes: u64,
    /// XFAM bits that may be set; `None`: any.
    pub allowed_xfam: Option<u64>,
    /// Accept a TD without `SEPT_VE_DISABLE`, as Azure's and Google's are: its host may make its memory fault.
    pub allow_sept_ve: bool,
    /// Accept a TD that counts performance events.
    pub allow_perfmon: bool,
    /// Accept a TD whose host may profile it.
    pub allow_profiling: bool,
    /// Accept a TD with service TDs.
    pub allow_service_td: bool,
    /// Accept zeros behind the end of a quote, as some guests' buffers have them.
    pub allow_padding: bool,
}

impl Default for TdxPolicy {
    fn default() -> Self {
        Self {
            allowed_mr_td: None,
            allowed_rtmrs: [None, None, None, None],
            allowed_mr_seam: None,
            mr_config_id: None,
            mr_owner: None,
            mr_owner_config: None,
            allowed_ppids: None,
            accepted_status: [TcbStatus::UpToDate, TcbStatus::SWHardeningNeeded].into(),
            refused_advisories: BTreeSet::new(),
            min_evaluation_number: None,
            required_attributes: 0,
            allowed_xfam: None,
            allow_sept_ve: false,
            allow_perfmon: false,
            allow_profiling: false,
            allow_service_td: false,
            allow_padding: false,
        }
    }
}

/// The policy as a file has it: strict, everything optional, bytes in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TdxPolicyFile {
    mr_td: Option<Vec<String>>,
    rtmr0: Option<Vec<String>>,
    rtmr1: Option<Vec<String>>,
    rtmr2: Option<Vec<String>>,
    rtmr3: Option<Vec<String>>,
    mr_seam: Option<Vec<String>>,
    mr_config_id: Option<String>,
    mr_owner: Option<String>,
    mr_owner_config: Option<String>,
    ppids: Option<Vec<String>>,
    accepted_status: Option<BTreeSet<TcbStatus>>,
    refused_advisories: BTreeSet<String>,
    min_evaluation_number: Option<u32>,
    required_attributes: u64,
    allowed_xfam: Option<u64>,
    allow_sept_ve: bool,
    allow_perfmon: bool,
    allow_profiling: bool,
    allow_service_td: bool,
    allow_padding: bool,
}

impl TdxPolicy {
    pub(crate) fn from_file(file: &TdxPolicyFile) -> Result<Self, PolicyError> {
        let default = Self::default();
        Ok(Self {
            allowed_mr_td: list("tdx.mr_td", &file.mr_td)?,
            allowed_rtmrs: [
                list("tdx.rtmr0", &file.rtmr0)?,
                list("tdx.rtmr1", &file.rtmr1)?,
                list("tdx.rtmr2", &file.rtmr2)?,
                list("tdx.rtmr3", &file.rtmr3)?,
            ],
            allowed_mr_seam: list("tdx.mr_seam", &file.mr_seam)?,
            mr_config_id: one("tdx.mr_config_id", &file.mr_config_id)?,
            mr_owner: one("tdx.mr_owner", &file.mr_owner)?,
            mr_owner_config: one("tdx.mr_owner_config", &file.mr_owner_config)?,
            allowed_ppids: list("tdx.ppids", &file.ppids)?,
            accepted_status: file.accepted_status.clone().unwrap_or(default.accepted_status),
            refused_advisories: file.refused_advisories.clone(),
            min_evaluation_number: file.min_evaluation_number,
            required_attributes: file.required_attributes,
            allowed_xfam: file.allowed_xfam,
            allow_sept_ve: file.allow_sept_ve,
            allow_perfmon: file.allow_perfmon,
            allow_profiling: file.allow_profiling,
            allow_service_td: file.allow_service_td,
            allow_padding: file.allow_padding,
        })
    }
}
