//! The forms in which GPU evidence comes: the report as it is, and NVIDIA's and others' JSON around reports and chains.
//!
//! ```text
//! [ { "arch": "HOPPER", "nonce": hex, "evidence": base64, "certificate": base64 of PEM }, … ]    nvtrust, attestation-sdk
//! { "nonce": hex, "arch": …, "evidence_list": [ { "evidence": …, "certificate": … }, … ] }      NVIDIA's service (NRAS)
//! { "device_evidence_list": [ … ] }                                                            Confidential Containers
//! { "evidence": …, "certificate": … }
//! [ { "attestationReportHexStr": hex, "certChainBase64Encoded": base64 of PEM }, … ]           nvtrust before 2.0
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::report::{MAGIC, REPORT_LEN_MAX};

const JSON_LEN_MAX: usize = 4 * 1024 * 1024;
const DEVICES_MAX: usize = 64;
const CERTIFICATES_MAX: usize = 16;

/// Evidence of one GPU (or NVSwitch). Holding one proves nothing yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuEvidence {
    /// SPDM `GET_MEASUREMENTS` request (37 bytes) and the response.
    pub report: Vec<u8>,
    /// DER: the chain of the key that signed, in any order.
    pub certificates: Vec<Vec<u8>>,
    /// What the file around the report says about it. Nobody signed that; it must agree with the report.
    pub stated: Stated,
}

/// What a JSON file says about the report in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// The nonce, as the file writes it (hex).
    pub nonce: Option<String>,
    /// `HOPPER`, `BLACKWELL`, `LS10`.
    pub arch: Option<String>,
}

impl GpuEvidence {
    /// Evidence as a GPU gives it.
    pub fn new(report: Vec<u8>, certificates: Vec<Vec<u8>>) -> Self {
        Self {
            report,
            certificates,
            stated: Stated::default(),
        }
    }
}

#[derive(Deserialize)]
struct Item {
    #[serde(alias = "attestationReportHexStr")]
    evidence: String,
    #[serde(alias = "certChainBase64Encoded")]
    certificate: String,
    nonce: Option<String>,
    arch: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(alias = "device_evidence_list")]
    evidence_list: Vec<Item>,
    nonce: Option<String>,
    arch: Option<String>,
}

/// Takes a file's content if it is GPU evidence: a report, or JSON around reports.
pub(crate) fn recognise(content: &[u8]) -> Option<Result<Vec<GpuEvidence>, String>> {
    if content.starts_with(&MAGIC) {
        let report = content.to_vec();
        return Some(Ok(vec![GpuEvidence {
            report,
            ..GpuEvidence::default()
        }]));
    }
    let text = std::str::from_utf8(content).ok()?.trim_start();
    let has = |key: &str| text.contains(&format!("\"{key}\""));
    let list = has("evidence_list") || has("device_evidence_list");
    let item = has("evidence") && has("certificate")
        || has("attestationReportHexStr") && has("certChainBase64Encoded");
    if !text.starts_with(['{', '[']) || !(list || item) {
        return None;
    }
    Some(from_json(text, list))
}

fn from_json(text: &str, list: bool) -> Result<Vec<GpuEvidence>, String> {
    if text.len() > JSON_LEN_MAX {
        return Err(format!(
            "GPU evidence of {} bytes (at most {JSON_LEN_MAX})",
            text.len()
        ));
    }
    let wrong = |e: serde_json::Error| format!("GPU evidence: {e}");
    let items: Vec<Item> = match (text.starts_with('['), list) {
        (true, _) => serde_json::from_str(text).map_err(wrong)?,
        (false, true) => {
            let request: Request = serde_json::from_str(text).map_err(wrong)?;
            let (nonce, arch) = (request.nonce, request.arch);
            let items = request.evidence_list.into_iter();
            let own = |item: Item| Item {
                nonce: item.nonce.or_else(|| nonce.clone()),
                arch: item.arch.or_else(|| arch.clone()),
                ..item
            };
            items.map(own).collect()
        }
        (false, false) => vec![serde_json::from_str(text).map_err(wrong)?],
    };
    if !(1..=DEVICES_MAX).contains(&items.len()) {
        return Err(format!(
            "evidence of {} devices (1 to {DEVICES_MAX})",
            items.len()
        ));
    }
    items.into_iter().map(Item::decode).collect()
}

impl Item {
    fn decode(self) -> Result<GpuEvidence, String> {
        let report = bytes(&self.evidence).ok_or("GPU evidence: `evidence` is neither base64 nor hex")?;
        if report.len() > REPORT_LEN_MAX {
            return Err(format!(
                "a report of {} bytes (at most {REPORT_LEN_MAX})",
                report.len()
            ));
        }
        let pem = match self.certificate.contains("-----BEGIN ") {
            true => self.certificate,
            false => bytes(&self.certificate)
                .and_then(|pem| String::from_utf8(pem).ok())
                .ok_or("GPU evidence: `certificate` isn't base64 of PEM")?,
        };
        let stated = Stated {
            nonce: self.nonce,
            arch: self.arch,
        };
        Ok(GpuEvidence {
            report,
            certificates: chain(&pem)?,
            stated,
        })
    }
}

/// Hex or base64, with line breaks.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let text: String = text.split_ascii_whitespace().collect();
    hex::decode(&text).ok().or_else(|| STANDARD.decode(&text).ok())
}

fn chain(pem: &str) -> Result<Vec<Vec<u8>>, String> {
    let blocks = crate::endorsements::pem_blocks(pem).map_err(|e| e.to_string())?;
    let wrong = || "GPU evidence: `certificate` holds no certificates".to_owned();
    if blocks.is_empty() || blocks.iter().any(|(label, _)| *label != "CERTIFICATE") {
        return Err(wrong());
    }
    if blocks.len() > CERTIFICATES_MAX {
        return Err(format!(
            "a chain of {} certificates (at most {CERTIFICATES_MAX})",
            blocks.len()
        ));
    }
    Ok(blocks.into_iter().map(|(_, der)| der).collect())
}
