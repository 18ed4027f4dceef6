//! What Intel says about TCB versions: TCB info (version 3), identities of quoting enclaves, statuses and how they merge.
//!
//! Formats: Intel PCS API v4, "Get TDX TCB Info", "Get Quote Identity"; the order of matching and the merging of
//! statuses are those of Intel's Quote Verification Library.

use std::fmt;

use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};

use crate::result::Reason;
use crate::show;

/// A TCB level's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing to do.
    UpToDate,
    /// Software in the TD must defend itself against known attacks.
    SWHardeningNeeded,
    /// The platform must be configured otherwise.
    ConfigurationNeeded,
    /// Both of the above.
    ConfigurationAndSWHardeningNeeded,
    /// The TD was launched on an old TCB that has been updated since: launch it anew.
    TDRelaunchAdvised,
    /// That, and another configuration.
    TDRelaunchAdvisedConfigurationNeeded,
    /// The platform needs an update.
    OutOfDate,
    /// That, and another configuration.
    OutOfDateConfigurationNeeded,
    /// Not to be trusted any more.
    Revoked,
}

impl TcbStatus {
    /// Why evidence with this status is refused, where the policy doesn't accept it.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::UpToDate | Self::SWHardeningNeeded => Reason::TcbUnrecognised,
            Self::ConfigurationNeeded => Reason::ConfigurationNeeded,
            Self::ConfigurationAndSWHardeningNeeded => Reason::ConfigurationAndSWHardeningNeeded,
            Self::TDRelaunchAdvised => Reason::TDRelaunchAdvised,
            Self::TDRelaunchAdvisedConfigurationNeeded => Reason::TDRelaunchAdvisedConfigurationNeeded,
            Self::OutOfDate => Reason::OutOfDate,
            Self::OutOfDateConfigurationNeeded => Reason::OutOfDateConfigurationNeeded,
            Self::Revoked => Reason::Revoked,
        }
    }

    fn wants_configuration(self) -> bool {
        matches!(
            self,
            Self::ConfigurationNeeded
                | Self::ConfigurationAndSWHardeningNeeded
                | Self::OutOfDateConfigurationNeeded
                | Self::TDRelaunchAdvisedConfigurationNeeded
        )
    }

    /// A platform's status with that of a component (TDX module, quoting enclave): only an old or revoked component
    /// changes it.
    fn with_component(self, component: Self) -> Self {
        match (component, self) {
            (Self::Revoked, _) | (_, Self::Revoked) => Self::Revoked,
            (Self::OutOfDate, status) if status.wants_configuration() => Self::OutOfDateConfigurationNeeded,
            (Self::OutOfDate, _) => Self::OutOfDate,
            // Intel's library drops these; what a component needs must not vanish.
            (Self::OutOfDateConfigurationNeeded, _) => Self::OutOfDateConfigurationNeeded,
            (Self::ConfigurationNeeded, Self::UpToDate) => Self::ConfigurationNeeded,
            (Self::ConfigurationNeeded, Self::SWHardeningNeeded) => Self::ConfigurationAndSWHardeningNeeded,
            (Self::ConfigurationNeeded, Self::OutOfDate) => Self::OutOfDateConfigurationNeeded,
            (_, status) => status,
        }
    }

    /// The status at the launch with the one now: an old launch on a platform that was updated since.
    fn with_current(self, current: Self) -> Self {
        let old = matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded);
        match current {
            Self::Revoked => Self::Revoked,
            Self::OutOfDate | Self::OutOfDateConfigurationNeeded => self.with_component(current),
            _ if old && (self.wants_configuration() || current.wants_configuration()) => {
                Self::TDRelaunchAdvisedConfigurationNeeded
            }
            _ if old => Self::TDRelaunchAdvised,
            _ => self,
        }
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `N` bytes in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex<const N: usize>(pub(crate) [u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| {
            D::Error::invalid_value(Unexpected::Str(text), &"bytes in hex of the right length")
        })?;
        Ok(Self(bytes))
    }
}

/// `2026-03-01T19:36:43Z`, as Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        let time: der::DateTime = text.parse().map_err(|_| {
            D::Error::invalid_value(Unexpected::Str(text), &"a time such as 2026-03-01T19:36:43Z")
        })?;
        Ok(Self(time.unix_duration().as_secs()))
    }
}

/// When a document of Intel's is good: both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What of a TCB info says whom it is about; read first, so that one for somebody else needs no more reading.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TcbInfoHead {
    /// Absent before version 3, which is SGX's.
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) version: u32,
    pub(crate) fmspc: Hex<6>,
    pub(crate) pce_id: Hex<2>,
    pub(crate) issue_date: Time,
    pub(crate) next_update: Time,
    /// How the components are composed; 0 is the one way that there is.
    #[serde(default)]
    tcb_type: u32,
    #[serde(default)]
    pub(crate) tcb_evaluation_data_number: u32,
}

/// A TCB info for TDX; its levels in the order in which they are matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcbInfo {
    levels: Vec<TcbLevel>,
    module: Module,
    modules: Vec<ModuleIdentity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfoBody {
    tcb_levels: Vec<TcbLevel>,
    tdx_module: Module,
    #[serde(default)]
    tdx_module_identities: Vec<ModuleIdentity>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbLevel {
    tcb: Tcb,
    tcb_status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    advisories: Vec<String>,
    tcb_date: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Tcb {
    #[serde(rename = "sgxtcbcomponents")]
    sgx: [Component; 16],
    #[serde(rename = "tdxtcbcomponents")]
    tdx: [Component; 16],
    pcesvn: u16,
}

/// Wider than the byte that it is compared with: an SVN that no platform can have is just never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Component {
    svn: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Module {
    mrsigner: Hex<48>,
    attributes: Hex<8>,
    attributes_mask: Hex<8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleIdentity {
    id: String,
    mrsigner: Hex<48>,
    attributes: Hex<8>,
    attributes_mask: Hex<8>,
    tcb_levels: Vec<IsvLevel>,
}

/// A level of a component with one SVN: a TDX module, a quoting enclave.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IsvLevel {
    tcb: Isv,
    tcb_status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    advisories: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Isv {
    isvsvn: u16,
}

/// What a platform has: from the PCK certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlatformSvn {
    pub(crate) components: [u8; 16],
    pub(crate) pcesvn: u16,
}

/// A status with what explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) status: TcbStatus,
    pub(crate) advisories: Vec<String>,
    /// When Intel set the platform's level, Unix seconds.
    pub(crate) date: Option<u64>,
}

impl Level {
    fn merged(mut self, other: &Self, merge: impl Fn(TcbStatus, TcbStatus) -> TcbStatus) -> Self {
        self.status = merge(self.status, other.status);
        for advisory in &other.advisories {
            if !self.advisories.contains(advisory) {
                self.advisories.push(advisory.clone());
            }
        }
        self
    }

    /// With the level of the quoting enclave.
    pub(crate) fn with_component(self, component: &Self) -> Self {
        self.merged(component, TcbStatus::with_component)
    }

    /// With the level that the platform has now.
    pub(crate) fn with_current(self, current: &Self) -> Self {
        self.merged(current, TcbStatus::with_current)
    }
}

impl IsvLevel {
    fn level(&self) -> Level {
        Level {
            status: self.tcb_status,
            advisories: self.advisories.clone(),
            date: None,
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|e| e.to_string())
}

impl TcbInfoHead {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        parse(json)
    }

    pub(crate) fn window(&self) -> Window {
        Window {
            from: self.issue_date.0,
            to: self.next_update.0,
        }
    }

    /// Whether it is about TDX platforms, in the version that is known here.
    pub(crate) fn is_tdx(&self) -> bool {
        self.id == "TDX" && self.version == 3 && self.tcb_type == 0
    }
}

impl TcbInfo {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let TcbInfoBody {
            mut tcb_levels,
            tdx_module,
            tdx_module_identities,
        } = parse(json)?;
        // Intel promises no order: highest first.
        tcb_levels.sort_by(|a, b| {
            let key = |level: &TcbLevel| (level.tcb.sgx, level.tcb.pcesvn, level.tcb.tdx);
            key(b).cmp(&key(a))
        });
        let mut modules = tdx_module_identities;
        for module in &mut modules {
            sort(&mut module.tcb_levels);
        }
        Ok(Self {
            levels: tcb_levels,
            module: tdx_module,
            modules,
        })
    }

    /// The module's identity: by the version in the second SVN; version 0 has none of its own.
    fn identity(&self, svn: &[u8; 16]) -> Result<Option<&ModuleIdentity>, String> {
        if svn[1] == 0 {
            return Ok(None);
        }
        let id = format!("TDX_{:02X}", svn[1]);
        let found = self
            .modules
            .iter()
            .find(|module| module.id.eq_ignore_ascii_case(&id));
        found
            .map(Some)
            .ok_or_else(|| format!("the TCB info names no TDX module {id}"))
    }

    /// Whether the TDX module is one of Intel's: its signer and attributes. `Err`: why not.
    pub(crate) fn check_module(
        &self,
        svn: &[u8; 16],
        signer: [u8; 48],
        attributes: [u8; 8],
    ) -> Result<String, String> {
        let (name, expected_signer, expected, mask) = match self.identity(svn)? {
            Some(module) => (
                module.id.as_str(),
                module.mrsigner,
                module.attributes,
                module.attributes_mask,
            ),
            None => (
                "TDX",
                self.module.mrsigner,
                self.module.attributes,
                self.module.attributes_mask,
            ),
        };
        if signer != expected_signer.0 {
            return Err(format!("{name} has MRSIGNERSEAM {}", show::hex(signer)));
        }
        let bits = |bytes: [u8; 8]| u64::from_le_bytes(bytes);
        // Bits outside of the mask have no meaning yet, so none may be set.
        if bits(attributes) & bits(mask.0) != bits(expected.0) & bits(mask.0)
            || bits(attributes) & !bits(mask.0) != 0
        {
            return Err(format!("{name} has SEAMATTRIBUTES {}", show::hex(attributes)));
        }
        Ok(format!("{name} with SVN {}, signed by Intel", svn[0]))
    }

    /// The level of a platform with a TDX module of these SVNs. `Err`: none matches, and why.
    pub(crate) fn level(&self, platform: PlatformSvn, svn: &[u8; 16]) -> Result<Level, String> {
        // With a versioned module its identity judges the first two SVNs.
        let first = if svn[1] == 0 { 0 } else { 2 };
        let reached = |have: &[u8], need: &[Component]| {
            have.iter()
                .zip(need)
                .all(|(have, need)| u16::from(*have) >= need.svn)
        };
        let level = self.levels.iter().find(|level| {
            let tcb = &level.tcb;
            reached(&platform.components, &tcb.sgx)
                && platform.pcesvn >= tcb.pcesvn
                && reached(&svn[first..], &tcb.tdx[first..])
        });
        let level = level.ok_or_else(|| {
            format!(
                "no level for SVNs {} and PCE {}, TDX {}",
                show::hex(platform.components),
                platform.pcesvn,
                show::hex(svn)
            )
        })?;
        let platform_level = Level {
            status: level.tcb_status,
            advisories: level.advisories.clone(),
            date: Some(level.tcb_date.0),
        };
        let Some(module) = self.identity(svn)? else {
            return Ok(platform_level);
        };
        let module_level = module
            .tcb_levels
            .iter()
            .find(|level| u16::from(svn[0]) >= level.tcb.isvsvn);
        let module_level =
            module_level.ok_or_else(|| format!("no level for SVN {} of {}", svn[0], module.id))?;
        Ok(platform_level.with_component(&module_level.level()))
    }
}

fn sort(levels: &mut [IsvLevel]) {
    levels.sort_by_key(|level| std::cmp::Reverse(level.tcb.isvsvn));
}

/// An identity of a quoting enclave.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QeIdentity {
    pub(crate) id: String,
    pub(crate) version: u32,
    pub(crate) issue_date: Time,
    pub(crate) next_update: Time,
    #[serde(default)]
    pub(crate) tcb_evaluation_data_number: u32,
    miscselect: Hex<4>,
    miscselect_mask: Hex<4>,
    attributes: Hex<16>,
    attributes_mask: Hex<16>,
    mrsigner: Hex<32>,
    isvprodid: u16,
    tcb_levels: Vec<IsvLevel>,
}

impl QeIdentity {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let mut identity: Self = parse(json)?;
        sort(&mut identity.tcb_levels);
        Ok(identity)
    }

    pub(crate) fn window(&self) -> Window {
        Window {
            from: self.issue_date.0,
            to: self.next_update.0,
        }
    }

    /// Whether it is the quoting enclave of TDX, in a version that is known here.
    pub(crate) fn is_td_qe(&self) -> bool {
        self.id == "TD_QE" && (2..=3).contains(&self.version)
    }

    /// Faults of a quoting enclave's report; none: it is the enclave that Intel names.
    pub(crate) fn faults(&self, report: &super::quote::QeReport<'_>) -> Vec<String> {
        fn masked<const N: usize>(value: [u8; N], mask: &[u8; N]) -> [u8; N] {
            std::array::from_fn(|n| value[n] & mask[n])
        }
        let mut faults = Vec::new();
        let mut fault = |holds: bool, what: String| {
            if !holds {
                faults.push(what);
            }
        };
        fault(
            report.mr_signer() == self.mrsigner.0,
            format!("MRSIGNER {}", show::hex(report.mr_signer())),
        );
        fault(
            report.isv_prod_id() == self.isvprodid,
            format!("ISVPRODID {}", report.isv_prod_id()),
        );
        let (misc, attributes) = (report.misc_select(), report.attributes());
        fault(
            masked(misc, &self.miscselect_mask.0) == masked(self.miscselect.0, &self.miscselect_mask.0),
            format!("MISCSELECT {}", show::hex(misc)),
        );
        fault(
            masked(attributes, &self.attributes_mask.0) == masked(self.attributes.0, &self.attributes_mask.0),
            format!("ATTRIBUTES {}", show::hex(attributes)),
        );
        fault(!report.is_debug(), "a debuggable enclave".to_owned());
        faults
    }

    /// The level of an enclave with this SVN.
    pub(crate) fn level(&self, isv_svn: u16) -> Option<Level> {
        let level = self.tcb_levels.iter().find(|level| isv_svn >= level.tcb.isvsvn);
        level.map(IsvLevel::level)
    }
}

#[cfg(test)]
mod tests {
    use super::TcbStatus::*;

    #[test]
    fn an_old_or_revoked_component_makes_the_platform_so() {
        for (platform, component, want) in [
            (UpToDate, UpToDate, UpToDate),
            (UpToDate, OutOfDate, OutOfDate),
            (SWHardeningNeeded, OutOfDate, OutOfDate),
            (SWHardeningNeeded, UpToDate, SWHardeningNeeded),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (
                ConfigurationAndSWHardeningNeeded,
                OutOfDate,
                OutOfDateConfigurationNeeded,
            ),
            (
                OutOfDateConfigurationNeeded,
                OutOfDate,
                OutOfDateConfigurationNeeded,
            ),
            (OutOfDate, UpToDate, OutOfDate),
            (OutOfDate, OutOfDate, OutOfDate),
            (ConfigurationNeeded, Revoked, Revoked),
            (Revoked, UpToDate, Revoked),
            (Revoked, OutOfDateConfigurationNeeded, Revoked),
            (
                UpToDate,
                OutOfDateConfigurationNeeded,
                OutOfDateConfigurationNeeded,
            ),
            (UpToDate, ConfigurationNeeded, ConfigurationNeeded),
            (
                SWHardeningNeeded,
                ConfigurationNeeded,
                ConfigurationAndSWHardeningNeeded,
            ),
        ] {
            assert_eq!(
                platform.with_component(component),
                want,
                "{platform} with {component}"
            );
        }
    }

    #[test]
    fn an_update_under_a_running_td_advises_a_relaunch() {
        for (launch, current, want) in [
            (OutOfDate, UpToDate, TDRelaunchAdvised),
            (OutOfDate, SWHardeningNeeded, TDRelaunchAdvised),
            (
                OutOfDate,
                ConfigurationNeeded,
                TDRelaunchAdvisedConfigurationNeeded,
            ),
            (
                OutOfDateConfigurationNeeded,
                UpToDate,
                TDRelaunchAdvisedConfigurationNeeded,
            ),
            (OutOfDate, OutOfDate, OutOfDate),
            (OutOfDate, Revoked, Revoked),
            (UpToDate, Revoked, Revoked),
            (UpToDate, UpToDate, UpToDate),
            (UpToDate, OutOfDate, OutOfDate),
            (ConfigurationNeeded, UpToDate, ConfigurationNeeded),
        ] {
            assert_eq!(launch.with_current(current), want, "{launch}, now {current}");
        }
    }
}
