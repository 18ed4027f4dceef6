//! Other verifiers beside ours, on the same evidence.
//!
//! | peer | for | what it judges |
//! |---|---|---|
//! | `sev` (virtee) | SNP reports | chain and signature; no dates, no revocation, no policy |
//! | `dcap-qvl` (Phala) | TDX quotes | everything of DCAP but the freshness of the evidence |
//!
//! Nothing here is part of a shipped program: only tests and benchmarks use it.

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
