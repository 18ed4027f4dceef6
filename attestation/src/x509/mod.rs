//! X.509 (RFC 5280) as the makers of the formats here use it: certificates and CRLs, read but not believed.
//!
//! | maker | keys | signatures |
//! |---|---|---|
//! | AMD | RSA-4096 for CAs, P-384 for VEKs | RSASSA-PSS, SHA-384 |
//! | Intel | P-256 | ECDSA, SHA-256 |
//! | NVIDIA | P-384 | ECDSA, SHA-384 |
//! | makers of TPMs | RSA-2048 to 4096, P-256, P-384 | PKCS #1 v1.5 and PSS, ECDSA |
//!
//! A signature is checked over the bytes that came, never over a re-encoding.

mod path;
mod signature;

use std::sync::Arc;

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode};
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::{Certificate, Version};

use crate::memory::Memory;

pub(crate) use path::{Path, dates, find_path};
pub(crate) use signature::{PublicKey, Signed, ecdsa_fixed};

const CN_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// Why bytes are no certificate or CRL that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CertError(String);

impl From<der::Error> for CertError {
    fn from(e: der::Error) -> Self {
        Self(e.to_string())
    }
}

/// A certificate, read but not believed.
#[derive(Clone, Debug)]
pub(crate) struct Cert {
    pub(crate) der: Vec<u8>,
    pub(crate) signed: Signed,
    pub(crate) key: PublicKey,
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) subject_cn: String,
    pub(crate) issuer_cn: String,
    pub(crate) serial: Vec<u8>,
    /// Unix seconds, inclusive.
    pub(crate) not_before: u64,
    /// Unix seconds, inclusive.
    pub(crate) not_after: u64,
    /// Basic constraints say CA, and key usage (if there) allows to sign certificates.
    pub(crate) may_issue: bool,
    extensions: Vec<(ObjectIdentifier, Vec<u8>)>,
}

/// Certificates that were read.
static READ: Memory<Cert> = Memory::new();

/// Forgets the certificates that were read.
#[cfg(feature = "sim")]
pub(crate) fn forget() {
    READ.forget();
}

impl Cert {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        READ.read(bytes, Self::read)
    }

    fn read(bytes: &[u8]) -> Result<Self, CertError> {
        let certificate = Certificate::from_der(bytes)?;
        let tbs = certificate.tbs_certificate();
        if tbs.version() != Version::V3 {
            return Err(CertError("not an X.509 version 3 certificate".to_owned()));
        }
        let key = PublicKey::from_spki(tbs.subject_public_key_info());
        let mut extensions = Vec::new();
        let (mut ca, mut sign) = (false, true);
        for extension in tbs.extensions().into_iter().flatten() {
            let value = extension.extn_value.as_bytes();
            if extensions.iter().any(|(oid, _)| *oid == extension.extn_id) {
                return Err(CertError(format!("extension {} twice", extension.extn_id)));
            }
            if extension.extn_id == BASIC_CONSTRAINTS_OID {
                ca = BasicConstraints::from_der(value)?.ca;
            } else if extension.extn_id == KEY_USAGE_OID {
                sign = KeyUsage::from_der(value)?.key_cert_sign();
            }
            extensions.push((extension.extn_id, value.to_vec()));
        }
        let signed = Signed::cut(bytes, certificate.signature_algorithm(), tbs.signature())?;
        Ok(Self {
            der: bytes.to_vec(),
            signed,
            key,
            subject: tbs.subject().to_der()?,
            issuer: tbs.issuer().to_der()?,
            subject_cn: common_name(tbs.subject()),
            issuer_cn: common_name(tbs.issuer()),
            serial: tbs.serial_number().as_bytes().to_vec(),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
            may_issue: ca && sign,
            extensions,
        })
    }

    /// An extension's content.
    pub(crate) fn extension(&self, oid: &ObjectIdentifier) -> Option<&[u8]> {
        self.extensions
            .iter()
            .find(|(id, _)| id == oid)
            .map(|(_, value)| value.as_slice())
    }
}

/// A revocation list, read but not believed. Clones share what is long.
#[derive(Clone, Debug)]
pub(crate) struct Crl {
    pub(crate) der: Arc<[u8]>,
    pub(crate) signed: Signed,
    pub(crate) issuer: Vec<u8>,
    pub(crate) issuer_cn: String,
    /// Unix seconds, inclusive.
    pub(crate) this_update: u64,
    /// Unix seconds, exclusive; AMD's always have one.
    pub(crate) next_update: Option<u64>,
    revoked: Arc<[Vec<u8>]>,
}

impl Crl {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let list: CertificateList = CertificateList::from_der(bytes)?;
        let tbs = &list.tbs_cert_list;
        let signed = Signed::cut(bytes, &list.signature_algorithm, &tbs.signature)?;
        let revoked = tbs.revoked_certificates.iter().flatten();
        Ok(Self {
            der: bytes.into(),
            signed,
            issuer: tbs.issuer.to_der()?,
            issuer_cn: common_name(&tbs.issuer),
            this_update: tbs.this_update.to_unix_duration().as_secs(),
            next_update: tbs.next_update.map(|time| time.to_unix_duration().as_secs()),
            revoked: revoked
                .map(|entry| entry.serial_number.as_bytes().to_vec())
                .collect(),
        })
    }

    /// Whether `serial` is on the list.
    pub(crate) fn revokes(&self, serial: &[u8]) -> bool {
        let strip = |serial: &[u8]| serial.iter().position(|byte| *byte != 0).unwrap_or(serial.len());
        let serial = &serial[strip(serial)..];
        self.revoked
            .iter()
            .any(|revoked| &revoked[strip(revoked)..] == serial)
    }
}

/// The same bytes.
impl PartialEq for Cert {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Cert {}

/// The same bytes.
impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Crl {}

/// Whether bytes are one certificate in DER and nothing else.
pub(crate) fn check_certificate(der: &[u8]) -> Result<(), CertError> {
    Cert::parse(der).map(drop)
}

/// The common name, if it is printable; else nothing.
fn common_name(name: &Name) -> String {
    let attributes = name.iter().filter(|attribute| attribute.oid == CN_OID);
    let texts = attributes.filter_map(|attribute| std::str::from_utf8(attribute.value.value()).ok());
    texts
        .filter(|text| text.chars().all(|c| c.is_ascii_graphic() || c == ' '))
        .last()
        .unwrap_or_default()
        .to_owned()
}
