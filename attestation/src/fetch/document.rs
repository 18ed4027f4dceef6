//! The documents that makers publish: where each is, and whether an answer is the one that was asked for.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::{Host, Url};

use super::{amd, intel, nvidia};
use crate::Roots;
use crate::endorsements::pem_blocks;
use crate::show;
use crate::snp::{Product, TcbVersion, VekKind};
use crate::x509::Cert;

/// One document of a maker's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "document", rename_all = "kebab-case")]
pub enum Document {
    /// The certificate of a chip's key at a TCB version (AMD 57230, section 4).
    Vcek {
        /// Product line.
        product: Product,
        /// `CHIP_ID` in hexadecimal: 64 bytes; for Turin 8.
        chip_id: String,
        /// TCB version in the product's layout, hexadecimal.
        tcb: String,
    },
    /// The intermediate that signs VCEKs or VLEKs, and its root.
    AmdChain {
        /// Product line.
        product: Product,
        /// Whose intermediate.
        vek: VekKind,
    },
    /// AMD's revocation list.
    AmdCrl {
        /// Product line.
        product: Product,
        /// Whose intermediates it is about.
        vek: VekKind,
    },
    /// TCB info of a TDX platform (PCS API version 4).
    TcbInfo {
        /// The platform's family, model, stepping, platform and custom SKU: 6 bytes in hexadecimal.
        fmspc: String,
    },
    /// Identity of the quoting enclave of TDX.
    QeIdentity,
    /// Revoked PCK certificates.
    PckCrl {
        /// Who issued them.
        ca: PckCa,
    },
    /// Revoked certificates of Intel's root.
    IntelRootCrl,
    /// A reference manifest of NVIDIA's.
    Rim {
        /// NVIDIA's name for it.
        id: String,
    },
    /// What NVIDIA's OCSP responder says of a certificate (RFC 6960).
    Ocsp {
        /// The certificate, DER in hexadecimal.
        certificate: String,
        /// Its issuer's, DER in hexadecimal.
        issuer: String,
    },
}

/// Intel's two issuers of PCK certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PckCa {
    /// Single-package platforms.
    Processor,
    /// Multi-package platforms.
    Platform,
}

impl PckCa {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }

    /// The common name of the issuer.
    pub(super) fn common_name(self) -> &'static str {
        match self {
            Self::Processor => "Intel SGX PCK Processor CA",
            Self::Platform => "Intel SGX PCK Platform CA",
        }
    }
}

/// Where documents come from. Only `https`, but to loopback addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// AMD's key distribution service.
    pub kds: Url,
    /// Intel's provisioning certification service, or a PCCS.
    pub pcs: Url,
    /// NVIDIA's service of reference manifests.
    pub rim: Url,
    /// NVIDIA's OCSP responder.
    pub ocsp: Url,
}

/// A base address that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {why}")]
pub struct SourcesError {
    /// As it was given.
    pub url: String,
    /// What is wrong with it.
    pub why: String,
}

const KDS: &str = "https://kdsintf.amd.com/";
const PCS: &str = "https://api.trustedservices.intel.com/";
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
const RIM: &str = "https://rim.attestation.nvidia.com/";
const OCSP: &str = "https://ocsp.ndis.nvidia.com/";

impl Default for Sources {
    fn default() -> Self {
        let url = |text: &str| Url::parse(text).expect("the makers' addresses are tested to be URLs");
        Self {
            kds: url(KDS),
            pcs: url(PCS),
            rim: url(RIM),
            ocsp: url(OCSP),
        }
    }
}

impl Sources {
    /// The makers' own, but those that are given.
    pub fn new(
        kds: Option<&str>,
        pcs: Option<&str>,
        rim: Option<&str>,
        ocsp: Option<&str>,
    ) -> Result<Self, SourcesError> {
        let mut sources = Self::default();
        for (given, field) in [
            (kds, &mut sources.kds),
            (pcs, &mut sources.pcs),
            (rim, &mut sources.rim),
            (ocsp, &mut sources.ocsp),
        ] {
            if let Some(text) = given {
                *field = base(text).map_err(|why| SourcesError {
                    url: text.to_owned(),
                    why,
                })?;
            }
        }
        Ok(sources)
    }
}

/// A base address: with a path that ends in `/`, so that paths are joined to it, not over it.
fn base(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|e| format!("not a URL ({e})"))?;
    let loopback = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => return Err("it names no host".to_owned()),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return Err("use https (http only to this machine)".to_owned()),
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a base address has no query and no fragment".to_owned());
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// One HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub url: Url,
    /// `None`: GET. Else POST of an OCSP request.
    pub ocsp: Option<Vec<u8>>,
    /// The answer's header that holds the signer's certificates: PEM, percent-encoded.
    pub issuer_chain: Option<&'static str>,
}

/// An answer, as its maker sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The body.
    pub content: Vec<u8>,
    /// The signer's certificates from the header: PEM.
    pub issuers: Option<Vec<u8>>,
}

/// The certificates that came with an answer, and those that are known.
fn pool(issuers: Option<&[u8]>, known: &[Vec<u8>]) -> Result<Vec<Cert>, String> {
    let text = std::str::from_utf8(issuers.unwrap_or_default()).map_err(|_| "issuers that aren't PEM")?;
    let blocks = pem_blocks(text).map_err(|e| e.to_string())?;
    let issuers = blocks.iter().map(|(_, der)| der);
    let parse = |der: &Vec<u8>| Cert::parse(der).map_err(|e| format!("an unreadable certificate: {e}"));
    issuers.chain(known).map(parse).collect()
}

/// What a check of an answer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Unix seconds, inclusive.
    pub(super) from: u64,
    /// Unix seconds, inclusive; `None`: no end.
    pub(super) until: Option<u64>,
}

impl Document {
    /// The certificate of a chip's key. `chip_id`: `CHIP_ID` as reports have it; of a Turin's only the first 8 bytes count
    /// (AMD 57230, 4.1).
    pub fn vcek(product: Product, chip_id: &[u8], tcb: TcbVersion) -> Self {
        let len = match product {
            Product::Turin => 8,
            Product::Milan | Product::Genoa => 64,
        };
        Self::Vcek {
            product,
            chip_id: hex::encode(&chip_id[..chip_id.len().min(len)]),
            tcb: hex::encode(tcb.to_bytes(product)),
        }
    }

    /// How to ask for it.
    pub fn request(&self, sources: &Sources) -> Result<Request, SourcesError> {
        let join = |base: &Url, path: &str| {
            base.join(path).map_err(|e| SourcesError {
                url: format!("{base}{path}"),
                why: e.to_string(),
            })
        };
        let get = |url: Url, issuer_chain| Request {
            url,
            ocsp: None,
            issuer_chain,
        };
        Ok(match self {
            Self::Vcek {
                product,
                chip_id,
                tcb,
            } => {
                let query = amd::query(*product, tcb);
                let path = format!("vcek/v1/{product}/{chip_id}?{query}");
                get(join(&sources.kds, &path)?, None)
            }
            Self::AmdChain { product, vek } => get(
                join(
                    &sources.kds,
                    &format!("{}/v1/{product}/cert_chain", amd::path(*vek)),
                )?,
                None,
            ),
            Self::AmdCrl { product, vek } => get(
                join(&sources.kds, &format!("{}/v1/{product}/crl", amd::path(*vek)))?,
                None,
            ),
            Self::TcbInfo { fmspc } => {
                let path = format!("tdx/certification/v4/tcb?fmspc={fmspc}");
                get(join(&sources.pcs, &path)?, Some("TCB-Info-Issuer-Chain"))
            }
            Self::QeIdentity => {
                let url = join(&sources.pcs, "tdx/certification/v4/qe/identity")?;
                get(url, Some("SGX-Enclave-Identity-Issuer-Chain"))
            }
            Self::PckCrl { ca } => {
                let path = format!("sgx/certification/v4/pckcrl?ca={}&encoding=der", ca.name());
                get(join(&sources.pcs, &path)?, Some("SGX-PCK-CRL-Issuer-Chain"))
            }
            // Intel's service doesn't have this one: it lies where the certificates say. A PCCS has it.
            Self::IntelRootCrl if sources.pcs.as_str() == PCS => {
                get(join(&sources.pcs, INTEL_ROOT_CRL)?, None)
            }
            Self::IntelRootCrl => get(join(&sources.pcs, "sgx/certification/v4/rootcacrl")?, None),
            Self::Rim { id } => get(join(&sources.rim, &format!("v1/rim/{id}"))?, None),
            Self::Ocsp { certificate, issuer } => Request {
                url: sources.ocsp.clone(),
                ocsp: Some(nvidia::ocsp_request(certificate, issuer)),
                issuer_chain: None,
            },
        })
    }

    /// Whether `answer` is this document, its maker signed it, and it is good at `at` (Unix seconds); if so, until when
    /// (Unix seconds; `None`: no end). `known`: certificates (DER) that may lie between its signer and a root. The error
    /// is a sentence. Content in hexadecimal, as some services give it, is made DER.
    pub fn check(
        &self,
        answer: &mut Answer,
        known: &[Vec<u8>],
        roots: &Roots,
        at: u64,
    ) -> Result<Option<u64>, String> {
        let pool = pool(answer.issuers.as_deref(), known)?;
        let content = &mut answer.content;
        let window = match self {
            Self::Vcek {
                product,
                chip_id,
                tcb,
            } => amd::check_vcek(content, *product, chip_id, tcb, pool, roots, at),
            Self::AmdChain { product, vek } => amd::check_chain(content, *product, *vek, roots, at),
            Self::AmdCrl { product, .. } => amd::check_crl(content, *product, roots),
            Self::TcbInfo { fmspc } => intel::check_tcb_info(content, fmspc, &pool, roots, at),
            Self::QeIdentity => intel::check_qe_identity(content, &pool, roots, at),
            Self::PckCrl { ca } => intel::check_pck_crl(content, *ca, &pool, roots, at),
            Self::IntelRootCrl => intel::check_root_crl(content, roots),
            Self::Rim { id } => nvidia::check_rim(content, id, roots, at),
            Self::Ocsp { certificate, issuer } => nvidia::check_ocsp(content, certificate, issuer, at),
        }?;
        if window.from > at {
            return Err(format!("it isn't valid before {}", show::time(window.from)));
        }
        match window.until {
            Some(until) if until < at => Err(format!("it was valid until {}", show::time(until))),
            until => Ok(until),
        }
    }

    /// A name for files: what it is, and a digest of all that tells it from others.
    pub fn file_name(&self) -> String {
        let (what, extension) = match self {
            Self::Vcek { product, .. } => (format!("vcek-{product}"), "der"),
            Self::AmdChain { product, vek } => (format!("{}-chain-{product}", amd::path(*vek)), "pem"),
            Self::AmdCrl { product, vek } => (format!("{}-crl-{product}", amd::path(*vek)), "der"),
            Self::TcbInfo { fmspc } => (format!("tdx-tcb-{fmspc}"), "json"),
            Self::QeIdentity => ("tdx-qe-identity".to_owned(), "json"),
            Self::PckCrl { ca } => (format!("pck-{}-crl", ca.name()), "der"),
            Self::IntelRootCrl => ("intel-root-crl".to_owned(), "der"),
            Self::Rim { .. } => ("rim".to_owned(), "json"),
            Self::Ocsp { .. } => ("ocsp".to_owned(), "der"),
        };
        let all = serde_json::to_vec(self).expect("a document is strings in an enum");
        let digest = hex::encode(&Sha256::digest(all)[..6]);
        format!("{}-{digest}.{extension}", what.to_ascii_lowercase())
    }
}

impl std::fmt::Display for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vcek {
                product,
                chip_id,
                tcb,
            } => {
                let version: Option<[u8; 8]> = hex::decode(tcb).ok().and_then(|tcb| tcb.try_into().ok());
                let version = version.map(|tcb| TcbVersion::from_bytes(tcb, *product));
                write!(f, "VCEK of {product} chip {}…", &chip_id[..chip_id.len().min(16)])?;
                version.map_or(Ok(()), |version| write!(f, " at TCB {version}"))
            }
            Self::AmdChain { product, vek } => write!(f, "AMD's {} chain for {product}", amd::path(*vek)),
            Self::AmdCrl { product, vek } => write!(f, "AMD's {} CRL for {product}", amd::path(*vek)),
            Self::TcbInfo { fmspc } => write!(f, "TDX TCB info for FMSPC {fmspc}"),
            Self::QeIdentity => f.write_str("identity of the TDX quoting enclave"),
            Self::PckCrl { ca } => write!(f, "Intel's PCK CRL ({} CA)", ca.name()),
            Self::IntelRootCrl => f.write_str("Intel's root CRL"),
            Self::Rim { id } => write!(f, "NVIDIA's reference manifest {id}"),
            Self::Ocsp { certificate, .. } => {
                write!(f, "OCSP response for {}", nvidia::certificate_name(certificate))
            }
        }
    }
}
