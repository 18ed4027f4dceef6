//! Intel's collateral: which of what was given fits a platform and a time, and whether Intel signed it.
//!
//! It comes as Intel's service answers (`{"tcbInfo":…,"signature":"…"}`, `{"enclaveIdentity":…,"signature":"…"}`), with
//! the issuers' certificates and the CRLs in files of their own, or as one `QuoteCollateralV3` JSON. What is signed is the
//! text between the braces byte by byte, so that text is kept as it came.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::tcb::{QeIdentity, TcbInfo, TcbInfoHead, Window};
use crate::crypto::{CRYPTO, Statement, remembered};
use crate::endorsements::{EndorsementsError, Recognised};
use crate::eventlog::LOG_LEN_MAX;
use crate::x509::{Cert, Crl, PublicKey};

const DOCUMENTS_MAX: usize = 256;
const CERTIFICATES_MAX: usize = 256;
const EVENT_LOGS_MAX: usize = 16;
/// How a crypto-agile event log begins: behind the head of a record with a SHA-1 digest.
const SPEC_ID: &[u8] = b"Spec ID Event03\0";
const SPEC_ID_AT: usize = 32;
const JSON_LEN_MAX: usize = 1024 * 1024;
pub(super) const TCB_SIGNER: &str = "Intel SGX TCB Signing";

/// Intel's two certificates of its TCB signing key (2018 and 2025; the key is the same); see `roots/SOURCES`.
const SIGNERS: [&[u8]; 2] = [
    include_bytes!("../roots/intel/tcb-signing-2018.der"),
    include_bytes!("../roots/intel/tcb-signing-2025.der"),
];

static SHIPPED_SIGNERS: LazyLock<Vec<Cert>> = LazyLock::new(|| {
    let parse = |der: &&[u8]| Cert::parse(der).expect("the shipped certificates are tested to be readable");
    SIGNERS.iter().map(parse).collect()
});

/// TCB infos, quoting enclave identities, certificates, CRLs and event logs, as they were given. Holding one proves
/// nothing about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collateral {
    pub(super) tcb_infos: Vec<TcbInfoDocument>,
    pub(super) qe_identities: Vec<QeIdentityDocument>,
    certs: Vec<Cert>,
    crls: Vec<Crl>,
    /// CCEL areas.
    pub(super) event_logs: Vec<Vec<u8>>,
}

/// A text that Intel signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SignedText {
    text: Box<str>,
    signature: Option<([u8; 64], Statement)>,
}

impl SignedText {
    fn new(text: Box<str>, signature: Option<[u8; 64]>) -> Self {
        let signature = signature.map(|signature| (signature, Statement::of(text.as_bytes(), &signature)));
        Self { text, signature }
    }

    pub(super) fn is_signed_by(&self, signer: &Cert) -> bool {
        match (&signer.key, &self.signature) {
            (PublicKey::P256(key), Some((signature, statement))) => {
                let check = || CRYPTO.p256_sha256(key, self.text.as_bytes(), signature);
                remembered("collateral", key, *statement, check)
            }
            _ => false,
        }
    }
}

/// A TCB info; errors are sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TcbInfoDocument {
    pub(super) signed: SignedText,
    pub(super) head: Result<TcbInfoHead, String>,
    /// `Ok(None)`: not one for TDX.
    pub(super) info: Result<Option<TcbInfo>, String>,
}

/// An identity of a quoting enclave; the error is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QeIdentityDocument {
    pub(super) signed: SignedText,
    pub(super) identity: Result<QeIdentity, String>,
}

/// All shapes that a file may have, by their fields.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, rename = "tcbInfo")]
    intel_tcb_info: Option<&'a RawValue>,
    #[serde(borrow, rename = "enclaveIdentity")]
    intel_qe_identity: Option<&'a RawValue>,
    signature: Option<String>,

    tcb_info: Option<Box<str>>,
    tcb_info_signature: Option<String>,
    tcb_info_issuer_chain: Option<String>,
    qe_identity: Option<Box<str>>,
    qe_identity_signature: Option<String>,
    qe_identity_issuer_chain: Option<String>,
    pck_crl_issuer_chain: Option<String>,
    pck_certificate_chain: Option<String>,
    root_ca_crl: Option<String>,
    pck_crl: Option<String>,
}

impl Collateral {
    /// Takes a file's content if it is one of these.
    pub(crate) fn recognise(&mut self, content: &[u8]) -> Option<Result<Recognised, EndorsementsError>> {
        // A malformed log is kept, too: the verdict says so.
        if content.len() <= LOG_LEN_MAX
            && content
                .get(SPEC_ID_AT..)
                .is_some_and(|rest| rest.starts_with(SPEC_ID))
        {
            let result = push(&mut self.event_logs, content.to_vec(), EVENT_LOGS_MAX);
            return Some(result.map(|()| Recognised::default()));
        }
        let json = content
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(content)
            .trim_ascii();
        if !json.starts_with(b"{") || json.len() > JSON_LEN_MAX {
            return None;
        }
        let file: File<'_> = serde_json::from_slice(json).ok()?;
        let known = file.intel_tcb_info.is_some()
            || file.intel_qe_identity.is_some()
            || file.tcb_info.is_some() && file.qe_identity.is_some();
        known.then(|| self.add(file).map(|()| Recognised::default()))
    }

    fn add(&mut self, file: File<'_>) -> Result<(), EndorsementsError> {
        let signature = |hex: &Option<String>| {
            let bytes = hex::decode(hex.as_ref()?.trim()).ok()?;
            bytes.try_into().ok()
        };
        if let Some(text) = file.intel_tcb_info {
            self.add_tcb_info(exact(text), signature(&file.signature))?;
        }
        if let Some(text) = file.intel_qe_identity {
            self.add_qe_identity(exact(text), signature(&file.signature))?;
        }
        if let Some(text) = file.tcb_info {
            self.add_tcb_info(text, signature(&file.tcb_info_signature))?;
        }
        if let Some(text) = file.qe_identity {
            self.add_qe_identity(text, signature(&file.qe_identity_signature))?;
        }
        let chains = [
            file.tcb_info_issuer_chain,
            file.qe_identity_issuer_chain,
            file.pck_crl_issuer_chain,
            file.pck_certificate_chain,
        ];
        for chain in chains.into_iter().flatten() {
            let blocks = crate::endorsements::pem_blocks(&chain)?;
            for (_, der) in blocks {
                if self.certs.iter().any(|cert| cert.der == der) {
                    continue;
                }
                let cert = Cert::parse(&der).map_err(|e| {
                    EndorsementsError::Malformed(format!("a certificate in Intel's collateral: {e}"))
                })?;
                limit(self.certs.len(), CERTIFICATES_MAX)?;
                self.certs.push(cert);
            }
        }
        for text in [file.root_ca_crl, file.pck_crl].into_iter().flatten() {
            let der = crl_der(&text)?;
            if self.crls.iter().any(|crl| *crl.der == der) {
                continue;
            }
            let crl = Crl::parse(&der)
                .map_err(|e| EndorsementsError::Malformed(format!("a CRL in Intel's collateral: {e}")))?;
            limit(self.crls.len(), CERTIFICATES_MAX)?;
            self.crls.push(crl);
        }
        Ok(())
    }

    fn add_tcb_info(&mut self, text: Box<str>, signature: Option<[u8; 64]>) -> Result<(), EndorsementsError> {
        let head = TcbInfoHead::parse(text.as_bytes());
        let info = match &head {
            Ok(head) if head.is_tdx() => TcbInfo::parse(text.as_bytes()).map(Some),
            _ => Ok(None),
        };
        let signed = SignedText::new(text, signature);
        push(
            &mut self.tcb_infos,
            TcbInfoDocument { signed, head, info },
            DOCUMENTS_MAX,
        )
    }

    fn add_qe_identity(
        &mut self,
        text: Box<str>,
        signature: Option<[u8; 64]>,
    ) -> Result<(), EndorsementsError> {
        let identity = QeIdentity::parse(text.as_bytes());
        let signed = SignedText::new(text, signature);
        push(
            &mut self.qe_identities,
            QeIdentityDocument { signed, identity },
            DOCUMENTS_MAX,
        )
    }

    pub(super) fn certs(&self) -> &[Cert] {
        &self.certs
    }

    pub(super) fn crls(&self) -> &[Crl] {
        &self.crls
    }
}

/// Intel's certificates of its TCB signing key: they count when nobody gave a genuine one.
pub(super) fn shipped_signers() -> &'static [Cert] {
    &SHIPPED_SIGNERS
}

impl Window {
    pub(super) fn contains(self, at: u64) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

/// The signed text: as it lies in the file, or what a JSON string of it means.
fn exact(value: &RawValue) -> Box<str> {
    let text = value.get();
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// A CRL in hex, base64 or PEM.
fn crl_der(text: &str) -> Result<Vec<u8>, EndorsementsError> {
    if let Some((_, der)) = crate::endorsements::pem_blocks(text)?.pop() {
        return Ok(der);
    }
    let text: String = text.split_ascii_whitespace().collect();
    let der = hex::decode(&text).ok().or_else(|| STANDARD.decode(&text).ok());
    der.ok_or_else(|| {
        EndorsementsError::Malformed("a CRL in Intel's collateral that is neither hex nor base64".to_owned())
    })
}

fn push<T: PartialEq>(list: &mut Vec<T>, item: T, max: usize) -> Result<(), EndorsementsError> {
    if !list.contains(&item) {
        limit(list.len(), max)?;
        list.push(item);
    }
    Ok(())
}

fn limit(len: usize, max: usize) -> Result<(), EndorsementsError> {
    if len < max {
        Ok(())
    } else {
        Err(EndorsementsError::TooMuch)
    }
}
