//! What a relying party asks of a GPU.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::CcMode;
use crate::PolicyError;
use crate::policy::one;

/// What is asked of GPUs (and NVSwitches). What is `None` isn't asked for, and the result names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuPolicy {
    /// The nonce that the request must hold. Where the GPU's evidence is part of a VM's, its binding decides instead.
    pub nonce: Option<[u8; 32]>,
    /// Modes of confidential computing that are accepted.
    pub cc_modes: Option<BTreeSet<CcMode>>,
    /// The least driver version, like `550.90.07`.
    pub min_driver: Option<Version>,
    /// Accepted devices, by UEID: the leaf certificate's serial number in decimal, as NVIDIA writes it.
    pub devices: Option<BTreeSet<String>>,
    /// Accept certificates that NVIDIA has put on hold.
    pub allow_hold: bool,
    /// Accept firmware that may be debugged.
    pub allow_debug: bool,
}

/// A driver's version: numbers with dots between, compared number by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u32>);

impl Version {
    /// Reads `550.90.07`.
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.split('.').map(|number| {
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| number.parse().ok()).flatten()
        });
        let mut numbers: Vec<u32> = numbers.collect::<Option<_>>()?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Some(Self(numbers))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

/// The policy as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GpuPolicyFile {
    nonce: Option<String>,
    cc_modes: Option<BTreeSet<CcMode>>,
    min_driver: Option<String>,
    devices: Option<BTreeSet<String>>,
    allow_hold: bool,
    allow_debug: bool,
}

impl GpuPolicy {
    pub(crate) fn from_file(file: &GpuPolicyFile) -> Result<Self, PolicyError> {
        let version = |text: &String| Version::parse(text).ok_or_else(|| PolicyError::Version(text.clone()));
        Ok(Self {
            nonce: one("gpu.nonce", &file.nonce)?,
            cc_modes: file.cc_modes.clone(),
            min_driver: file.min_driver.as_ref().map(version).transpose()?,
            devices: file.devices.clone(),
            allow_hold: file.allow_hold,
            allow_debug: file.allow_debug,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_number_by_number() {
        let version = |text| Version::parse(text).unwrap();
        for (lower, higher) in [
            ("550.90.07", "550.144.03"),
            ("99.1", "535.0"),
            ("550", "550.1"),
            ("550.90.7", "550.90.08"),
        ] {
            assert!(version(lower) < version(higher), "{lower} {higher}");
        }
        assert_eq!(version("560.00"), version("560"));
        assert_eq!(version("550.090.07"), version("550.90.7"));
        for wrong in ["", "550.", ".1", "550.x", "550.-1", "550 1", "99999999999"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }
}
