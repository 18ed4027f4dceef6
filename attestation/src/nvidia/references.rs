//! What a caller has beside GPU evidence: reference manifests and OCSP responses, in any order.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::ocsp::OcspResponse;
use super::rim::{DOCUMENT_LEN_MAX, Rim, RimError};
use crate::endorsements::{EndorsementsError, Recognised, pem_blocks};

const RIMS_MAX: usize = 512;
const OCSP_MAX: usize = 256;
const CHAIN_LEN_MAX: usize = 64 * 1024;

/// Reference manifests (RIM) and OCSP responses. A manifest that can't be read is kept, too: whoever supplies it hears of
/// it.
#[derive(Clone, Debug, Default)]
pub(crate) struct References {
    pub(crate) rims: Vec<Result<Rim, RimError>>,
    pub(crate) ocsp: Vec<OcspResponse>,
    /// What the two were read from.
    contents: Vec<Vec<u8>>,
}

impl PartialEq for References {
    fn eq(&self, other: &Self) -> bool {
        self.contents == other.contents
    }
}

impl Eq for References {}

/// An answer of NVIDIA's RIM service, as far as it matters.
#[derive(Deserialize)]
struct ServiceAnswer {
    rim: String,
}

impl References {
    /// Takes a file's content if it is one of these: a manifest's XML or the RIM service's JSON around it; an OCSP
    /// response in DER or PEM.
    pub(crate) fn recognise(&mut self, content: &[u8]) -> Option<Result<Recognised, EndorsementsError>> {
        let text = std::str::from_utf8(content)
            .ok()
            .map(|text| text.trim_start_matches('\u{feff}'));
        if let Some(chain) = text.and_then(encoded_chain) {
            return Some(chain.map(|der| Recognised { der }));
        }
        let xml = text.and_then(manifest);
        let ocsp = match text {
            Some(text) if text.contains("-----BEGIN OCSP RESPONSE-----") => match pem_blocks(text) {
                Ok(blocks) => blocks.into_iter().map(|(_, der)| der).collect(),
                Err(e) => return Some(Err(e)),
            },
            _ if OcspResponse::looks_like(content) => vec![content.to_vec()],
            _ => Vec::new(),
        };
        if xml.is_none() && ocsp.is_empty() {
            return None;
        }
        if self.contents.iter().any(|known| known == content) {
            return Some(Ok(Recognised::default()));
        }
        if self.rims.len() >= RIMS_MAX || self.ocsp.len() + ocsp.len() > OCSP_MAX {
            return Some(Err(EndorsementsError::TooMuch));
        }
        for der in &ocsp {
            match OcspResponse::parse(der) {
                Ok(response) => self.ocsp.push(response),
                Err(e) => {
                    return Some(Err(EndorsementsError::Malformed(format!(
                        "an OCSP response: {e}"
                    ))));
                }
            }
        }
        self.rims
            .extend(xml.map(|xml| xml.and_then(|xml| Rim::parse(&xml))));
        self.contents.push(content.to_vec());
        Some(Ok(Recognised::default()))
    }
}

/// The certificates of base64 of PEM: how NVIDIA's tools hand a device's chain out.
fn encoded_chain(text: &str) -> Option<Result<Vec<Vec<u8>>, EndorsementsError>> {
    const BEGIN: &str = "LS0tLS1CRUdJTi"; // -----BEGIN
    let text = text.trim();
    if !text.starts_with(BEGIN) || text.len() > CHAIN_LEN_MAX {
        return None;
    }
    let text: String = text.split_ascii_whitespace().collect();
    let pem = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let blocks = pem_blocks(&pem).map(|blocks| blocks.into_iter().map(|(_, der)| der).collect());
    Some(blocks)
}

/// The XML of a manifest, if the text is one or holds one.
fn manifest(text: &str) -> Option<Result<String, RimError>> {
    let text = text.trim_start();
    if text.len() > 2 * DOCUMENT_LEN_MAX {
        let begins = text.starts_with('<') && text.get(..1024)?.contains("SoftwareIdentity");
        return begins.then_some(Err(RimError::Length { len: text.len() }));
    }
    if text.starts_with('<') {
        return text.contains("SoftwareIdentity").then(|| Ok(text.to_owned()));
    }
    if !(text.starts_with('{') && text.contains("\"rim\"")) {
        return None;
    }
    let answer: ServiceAnswer = serde_json::from_str(text).ok()?;
    let xml = STANDARD
        .decode(answer.rim)
        .ok()
        .and_then(|xml| String::from_utf8(xml).ok());
    Some(xml.ok_or_else(|| RimError::Xml("the service's answer holds no base64 of XML".to_owned())))
}
