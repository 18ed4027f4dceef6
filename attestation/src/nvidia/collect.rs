//! The guest's side: evidence of the GPUs in this VM, by NVIDIA's `libnvidia-ml.so`.
//!
//! `nvmlDeviceGetConfComputeGpuAttestationReport` gives the SPDM request and response over a nonce,
//! `nvmlDeviceGetConfComputeGpuCertificate` the chain of the key that signed. NVSwitches are another library's (NSCQ) and
//! aren't asked.
#![expect(
    unsafe_code,
    reason = "two functions of NVML that nvml-wrapper has no safe form for"
)]

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem;
use std::path::Path;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};

use super::GpuEvidence;
use crate::endorsements::pem_blocks;
use crate::x509::check_certificate;

/// PCI vendor id.
const NVIDIA: &str = "0x10de";
/// PCI class of display controllers: VGA-compatible (00) and 3D (02).
const DISPLAY: &str = "0x03";
/// Where the nonce stands in a report: behind the head of SPDM's request.
const NONCE: std::ops::Range<usize> = 4..36;

/// No evidence.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// PCI devices can't be listed.
    #[error("cannot list the PCI devices: {0}")]
    Pci(#[from] io::Error),
    /// No driver, or one that doesn't work.
    #[error("NVML doesn't start: {0}")]
    Nvml(NvmlError),
    /// One that is on the bus, but not in NVML's hands.
    #[error("NVML has {found} of the {expected} NVIDIA GPUs that are on the PCI bus")]
    Missing {
        /// NVML's.
        found: u32,
        /// PCI's.
        expected: usize,
    },
    /// A GPU that gives no evidence, though it could.
    #[error("GPU {index}: {why}")]
    Device {
        /// NVML's index.
        index: u32,
        /// Why.
        why: String,
    },
}

/// What the GPUs say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Evidence of those in confidential-computing mode, in NVML's order.
    pub gpus: Vec<GpuEvidence>,
    /// NVML's indices of the others, which can give none.
    pub open: Vec<u32>,
}

/// How many NVIDIA GPUs are on the PCI bus (`pci`: `/sys/bus/pci/devices`).
pub fn gpus_on_bus(pci: &Path) -> io::Result<usize> {
    let mut found = 0;
    for device in fs::read_dir(pci)? {
        let device = device?.path();
        let is = |file, start: &str| {
            fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim().starts_with(start))
        };
        found += usize::from(is("vendor", NVIDIA) && is("class", DISPLAY));
    }
    Ok(found)
}

/// Asks all GPUs for evidence over `nonce`. A VM without GPUs needs no driver. `library`: the path of NVML, if it isn't
/// where the loader looks.
pub fn collect(pci: &Path, library: Option<&Path>, nonce: &[u8; 32]) -> Result<Collected, CollectError> {
    let mut collected = Collected::default();
    let expected = gpus_on_bus(pci)?;
    if expected == 0 {
        return Ok(collected);
    }
    // The name without a version is only there where the driver's headers are.
    let library = library.map_or(OsStr::new("libnvidia-ml.so.1"), Path::as_os_str);
    let nvml = Nvml::builder().lib_path(library).init();
    let nvml = nvml.map_err(CollectError::Nvml)?;
    let found = nvml.device_count().map_err(CollectError::Nvml)?;
    if found as usize != expected {
        return Err(CollectError::Missing { found, expected });
    }
    for index in 0..found {
        let failed = |why| CollectError::Device { index, why };
        let device = nvml.device_by_index(index).map_err(|e| failed(e.to_string()))?;
        match report(&nvml, &device, nonce) {
            Ok(report) if report.get(NONCE) != Some(&nonce[..]) => {
                return Err(failed("its report answers another nonce".to_owned()));
            }
            Ok(report) => {
                let certificates = certificates(&nvml, &device).map_err(failed)?;
                collected.gpus.push(GpuEvidence::new(report, certificates));
            }
            Err(NvmlError::NotSupported) => collected.open.push(index),
            Err(error) => return Err(failed(format!("no attestation report: {error}"))),
        }
    }
    Ok(collected)
}

fn report(nvml: &Nvml, device: &Device<'_>, nonce: &[u8; 32]) -> Result<Vec<u8>, NvmlError> {
    let ask = nvml_sym(nvml.lib().nvmlDeviceGetConfComputeGpuAttestationReport.as_ref())?;
    // SAFETY: the structure is integers and arrays of bytes, for which zeroes are values. The device's handle is NVML's
    // own, and NVML writes nothing but this structure, whose layout nvml-wrapper generated from its header.
    let answer = unsafe {
        let mut answer: nvml_wrapper_sys::bindings::nvmlConfComputeGpuAttestationReport_t = mem::zeroed();
        answer.nonce = *nonce;
        nvml_try(ask(device.handle(), &mut answer))?;
        answer
    };
    let report = answer
        .attestationReport
        .get(..answer.attestationReportSize as usize);
    report.map(<[u8]>::to_vec).ok_or(NvmlError::Unknown)
}

fn certificates(nvml: &Nvml, device: &Device<'_>) -> Result<Vec<Vec<u8>>, String> {
    let words = |e: NvmlError| format!("no certificates: {e}");
    let ask = nvml_sym(nvml.lib().nvmlDeviceGetConfComputeGpuCertificate.as_ref()).map_err(words)?;
    // SAFETY: as in `report`.
    let answer = unsafe {
        let mut answer: nvml_wrapper_sys::bindings::nvmlConfComputeGpuCertificate_t = mem::zeroed();
        nvml_try(ask(device.handle(), &mut answer)).map_err(words)?;
        answer
    };
    let chain = answer
        .attestationCertChain
        .get(..answer.attestationCertChainSize as usize)
        .and_then(|chain| std::str::from_utf8(chain).ok())
        .ok_or("its certificate chain is no text")?;
    let blocks = pem_blocks(chain).map_err(|e| format!("its certificate chain: {e}"))?;
    let certificates: Vec<_> = blocks.into_iter().map(|(_, der)| der).collect();
    for certificate in &certificates {
        check_certificate(certificate).map_err(|e| format!("its certificate chain: {e}"))?;
    }
    if certificates.is_empty() {
        return Err("its certificate chain is empty".to_owned());
    }
    Ok(certificates)
}
