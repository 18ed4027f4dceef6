//! Endorsements from outside the evidence: certificates and revocation lists, in any order; the verifier finds what fits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::snp::{check_certificate, check_crl};

const CERTIFICATES_MAX: usize = 64;
const CRLS_MAX: usize = 16;
const DER_LEN_MAX: usize = 1024 * 1024;

/// Certificates and CRLs (DER) that a caller has beside the evidence. Holding one proves that each is well-formed, not
/// that any is genuine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endorsements {
    certificates: Vec<Vec<u8>>,
    crls: Vec<Vec<u8>>,
}

/// Why bytes are no endorsement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndorsementsError {
    /// Neither a certificate nor a CRL, in DER or PEM.
    #[error("neither an X.509 certificate nor a CRL (DER or PEM): {0}")]
    Unknown(String),
    /// More than the verifier wants to look at.
    #[error(
        "too many or too large endorsements (at most {CERTIFICATES_MAX} certificates, {CRLS_MAX} CRLs, 1 MiB each)"
    )]
    TooMuch,
}

impl Endorsements {
    /// None: the evidence must bring its certificates.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a file's content: one certificate or CRL in DER, or any number of both in PEM (LF or CRLF).
    pub fn add(&mut self, content: &[u8]) -> Result<(), EndorsementsError> {
        match std::str::from_utf8(content) {
            Ok(text) if text.contains("-----BEGIN ") => {
                for (label, der) in pem_blocks(text)? {
                    match label {
                        "CERTIFICATE" | "X509 CRL" => self.add_der(der)?,
                        other => {
                            let what = format!("a PEM block `{}`", other.escape_default());
                            return Err(EndorsementsError::Unknown(what));
                        }
                    }
                }
                Ok(())
            }
            _ => self.add_der(content.to_vec()),
        }
    }

    fn add_der(&mut self, der: Vec<u8>) -> Result<(), EndorsementsError> {
        if der.len() > DER_LEN_MAX {
            return Err(EndorsementsError::TooMuch);
        }
        let Err(not_a_certificate) = check_certificate(&der) else {
            return add(&mut self.certificates, der, CERTIFICATES_MAX);
        };
        match check_crl(&der) {
            Ok(()) => add(&mut self.crls, der, CRLS_MAX),
            Err(_) => Err(EndorsementsError::Unknown(not_a_certificate.to_string())),
        }
    }

    /// The certificates, in the order they came.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(Vec::as_slice)
    }

    /// The CRLs, in the order they came.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(Vec::as_slice)
    }
}

fn add(list: &mut Vec<Vec<u8>>, der: Vec<u8>, max: usize) -> Result<(), EndorsementsError> {
    if list.contains(&der) {
        return Ok(());
    }
    if list.len() == max {
        return Err(EndorsementsError::TooMuch);
    }
    list.push(der);
    Ok(())
}

/// The blocks of a PEM text; text between blocks is skipped, as every tool does.
fn pem_blocks(text: &str) -> Result<Vec<(&str, Vec<u8>)>, EndorsementsError> {
    let unknown = |what: &str| EndorsementsError::Unknown(what.to_owned());
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after
            .split_once("-----")
            .ok_or_else(|| unknown("a PEM block without a label"))?;
        let end = format!("-----END {label}-----");
        let (body, after) = after
            .split_once(&end)
            .ok_or_else(|| unknown("a PEM block without an end"))?;
        let body: String = body.split_ascii_whitespace().collect();
        blocks.push((
            label,
            STANDARD
                .decode(body)
                .map_err(|_| unknown("a PEM block that isn't base64"))?,
        ));
        rest = after;
    }
    Ok(blocks)
}
