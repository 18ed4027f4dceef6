//! Other verifiers beside ours, on the same evidence.
//!
//! | peer | for | what it judges |
//! |---|---|---|
//! | `sev` (virtee) | SNP reports | chain and signature; no dates, no revocation, no policy |
//! | `snpguest` (virtee) | SNP reports | the same by OpenSSL, as a program: `verify certs` and `verify attestation` |
//! | `dcap-qvl` (Phala) | TDX quotes | everything of DCAP but the freshness of the evidence |
//!
//! Nothing here is part of a shipped program: only tests and benchmarks use it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use dcap_qvl::QuoteCollateralV3;
use sev::certs::snp::{Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;

/// An SNP certificate chain as `sev` holds it.
pub struct SevChain(Chain);

impl SevChain {
    /// From DER.
    pub fn new(ark: &[u8], ask: &[u8], vek: &[u8]) -> Result<Self, String> {
        Chain::from_der(ark, ask, vek)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Whether `sev` believes that the chain's key signed the report.
    pub fn verify(&self, report: &[u8]) -> Result<(), String> {
        let report = AttestationReport::from_bytes(report).map_err(|error| error.to_string())?;
        (&self.0, &report).verify().map_err(|error| error.to_string())
    }
}

/// What `snpguest` says of a folder of certificates and of a report: its two commands, each by exit status.
pub struct SnpGuest<'a> {
    /// The program.
    pub program: &'a Path,
    /// Certificates: `ark.der`, then `ask.der` and `vcek.der`, or `asvk.der` and `vlek.der`.
    pub certificates: &'a Path,
}

impl SnpGuest<'_> {
    fn verify(&self, arguments: &[&OsStr]) -> Result<(), String> {
        let mut command = Command::new(self.program);
        let ran = command.arg("verify").args(arguments).output();
        let ran = ran.map_err(|error| format!("{}: {error}", self.program.display()))?;
        let words = || String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        ran.status.success().then_some(()).ok_or_else(words)
    }

    /// `snpguest verify certs`.
    pub fn certificates(&self) -> Result<(), String> {
        self.verify(&["certs".as_ref(), self.certificates.as_ref()])
    }

    /// `snpguest verify attestation`. `product`: of reports that don't say it (version 2).
    pub fn report(&self, report: &Path, product: Option<&str>) -> Result<(), String> {
        let mut arguments: Vec<&OsStr> = vec![OsStr::new("attestation")];
        if let Some(product) = product {
            arguments.extend([OsStr::new("-p"), OsStr::new(product)]);
        }
        arguments.extend([self.certificates.as_os_str(), report.as_os_str()]);
        self.verify(&arguments)
    }
}

/// Intel's collateral from the JSON that this repository's vectors use (CRLs and signatures in hexadecimal).
pub fn collateral(json: &[u8]) -> Result<QuoteCollateralV3, String> {
    let json: serde_json::Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let text = |key: &str| {
        json[key]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("no {key}"))
    };
    let bytes = |key: &str| {
        let hex = text(key)?;
        let pairs = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap_or_default());
        let bytes: Result<Vec<u8>, _> = pairs.map(|pair| u8::from_str_radix(pair, 16)).collect();
        bytes.map_err(|error| format!("{key}: {error}"))
    };
    Ok(QuoteCollateralV3 {
        pck_crl_issuer_chain: text("pck_crl_issuer_chain")?,
        root_ca_crl: bytes("root_ca_crl")?,
        pck_crl: bytes("pck_crl")?,
        tcb_info_issuer_chain: text("tcb_info_issuer_chain")?,
        tcb_info: text("tcb_info")?,
        tcb_info_signature: bytes("tcb_info_signature")?,
        qe_identity_issuer_chain: text("qe_identity_issuer_chain")?,
        qe_identity: text("qe_identity")?,
        qe_identity_signature: bytes("qe_identity_signature")?,
        pck_certificate_chain: text("pck_certificate_chain").ok(),
    })
}

/// What `dcap-qvl` says about a quote: the merged TCB status, or why it refuses.
pub fn dcap(quote: &[u8], collateral: &QuoteCollateralV3, at: u64) -> Result<String, String> {
    let report = dcap_qvl::verify::ring::verify(quote, collateral, at);
    report
        .map(|report| report.status)
        .map_err(|error| format!("{error:#}"))
}
