//! Endorsements from outside the evidence, in any order: certificates, revocation lists, Intel's collateral, NVIDIA's
//! manifests. The verifier finds what fits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::kind::decode_text;
use crate::nvidia::References;
use crate::tdx::Collateral;
use crate::tpm::TpmReferences;
use crate::x509::{Cert, Crl};

const CERTIFICATES_MAX: usize = 1024;
const CRLS_MAX: usize = 256;
const DER_LEN_MAX: usize = 1024 * 1024;

/// What a caller has beside the evidence. Holding one proves that each part is well-formed, not that any is genuine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endorsements {
    certificates: Vec<Cert>,
    crls: Vec<Crl>,
    /// Intel's collateral for TDX.
    pub(crate) tdx: Collateral,
    /// NVIDIA's reference manifests and OCSP responses.
    pub(crate) gpu: References,
    /// Signed reference values for TPMs.
    pub(crate) tpm: TpmReferences,
}

/// What a format's module found in a file that it recognised, beside what it keeps: certificates and CRLs (DER), for
/// every format to use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recognised {
    pub(crate) der: Vec<Vec<u8>>,
}

/// Why bytes are no endorsement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndorsementsError {
    /// Nothing that is known.
    #[error("no certificate or CRL (DER or PEM), no collateral of Intel's, no manifest of NVIDIA's: {0}")]
    Unknown(String),
    /// Collateral or a manifest that can't be read.
    #[error("{0}")]
    Malformed(String),
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

    /// Adds a file's content: one certificate or CRL in DER, any number of both in PEM (LF or CRLF), Intel's collateral
    /// as its service gives it or as `QuoteCollateralV3` JSON, NVIDIA's manifests and OCSP responses, signed
    /// reference values for TPMs.
    pub fn add(&mut self, content: &[u8]) -> Result<(), EndorsementsError> {
        let recognised = self.tdx.recognise(content);
        if let Some(recognised) = recognised.or_else(|| self.gpu.recognise(content)) {
            return recognised?.der.into_iter().try_for_each(|der| self.add_der(der));
        }
        if let Some(recognised) = self.tpm.recognise(content) {
            return recognised;
        }
        let Ok(text) = std::str::from_utf8(content) else {
            return self.add_der(content.to_vec());
        };
        if !text.contains("-----BEGIN ") {
            return self.add_der(decode_text(text).unwrap_or_else(|| content.to_vec()));
        }
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

    fn add_der(&mut self, der: Vec<u8>) -> Result<(), EndorsementsError> {
        if der.len() > DER_LEN_MAX {
            return Err(EndorsementsError::TooMuch);
        }
        let not_a_certificate = match Cert::parse(&der) {
            Ok(cert) => return add(&mut self.certificates, cert, CERTIFICATES_MAX),
            Err(error) => error,
        };
        match Crl::parse(&der) {
            Ok(crl) => add(&mut self.crls, crl, CRLS_MAX),
            Err(_) => Err(EndorsementsError::Unknown(not_a_certificate.to_string())),
        }
    }

    /// The certificates, in the order they came.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(|cert| cert.der.as_slice())
    }

    /// The CRLs, in the order they came.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(|crl| &*crl.der)
    }

    /// The certificates, read.
    pub(crate) fn certs(&self) -> &[Cert] {
        &self.certificates
    }

    /// The CRLs, read.
    pub(crate) fn crl_list(&self) -> &[Crl] {
        &self.crls
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T, max: usize) -> Result<(), EndorsementsError> {
    if list.contains(&item) {
        return Ok(());
    }
    if list.len() == max {
        return Err(EndorsementsError::TooMuch);
    }
    list.push(item);
    Ok(())
}

/// The blocks of a PEM text; text between blocks is skipped, as every tool does.
pub(crate) fn pem_blocks(text: &str) -> Result<Vec<(&str, Vec<u8>)>, EndorsementsError> {
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
