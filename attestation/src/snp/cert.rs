//! X.509 as AMD uses it: RSASSA-PSS signatures with SHA-384 throughout, RSA-4096 keys for CAs, P-384 keys for VEKs.
//!
//! A signature is checked over the bytes that came, never over a re-encoding.

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode, Header, Reader, SliceReader};
use serde_json::{Value, json};
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::{Certificate, Version};

use super::{Product, VekKind, vek};
use crate::crypto::CRYPTO;

const PSS_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const CN_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// RSASSA-PSS-params: SHA-384, MGF1 with SHA-384, salt 48; the trailer field left out, or (AMD's own tools, against
/// DER's rule for defaults) written down.
const PSS_PARAMS: [&[u8]; 2] = [
    &hex_literal::<54, 108>(
        b"3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130",
    ),
    &hex_literal::<59, 118>(
        b"3039a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101",
    ),
];

const fn hex_literal<const N: usize, const M: usize>(hex: &[u8; M]) -> [u8; N] {
    const fn digit(c: u8) -> u8 {
        if c.is_ascii_digit() {
            c - b'0'
        } else {
            c - b'a' + 10
        }
    }
    assert!(N * 2 == M);
    let mut bytes = [0; N];
    let mut n = 0;
    while n < N {
        bytes[n] = digit(hex[2 * n]) << 4 | digit(hex[2 * n + 1]);
        n += 1;
    }
    bytes
}

/// Why bytes are no certificate or CRL that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CertError(String);

impl From<der::Error> for CertError {
    fn from(e: der::Error) -> Self {
        Self(e.to_string())
    }
}

/// The part of a signed DER structure that its signature covers, and the signature.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    tbs: Vec<u8>,
    signature: Vec<u8>,
    /// Whether the algorithm is the one that AMD uses.
    algorithm_ok: bool,
}

impl Signed {
    /// Whether `key` signed it.
    pub(crate) fn is_signed_by(&self, key: &PublicKey) -> bool {
        match key {
            PublicKey::Rsa(key) if self.algorithm_ok => {
                CRYPTO.rsa_pss_sha384(key, &self.tbs, &self.signature)
            }
            _ => false,
        }
    }
}

/// A key that occurs in AMD's hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// PKCS #1 `RSAPublicKey`, DER.
    Rsa(Vec<u8>),
    /// SEC 1, uncompressed.
    P384(Vec<u8>),
    /// Something else.
    Other,
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

impl Cert {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let certificate = Certificate::from_der(bytes)?;
        let tbs = certificate.tbs_certificate();
        if tbs.version() != Version::V3 {
            return Err(CertError("not an X.509 version 3 certificate".to_owned()));
        }
        let spki = tbs.subject_public_key_info();
        let key_bytes = spki.subject_public_key.as_bytes().unwrap_or_default();
        let curve = || {
            spki.algorithm
                .parameters
                .as_ref()?
                .decode_as::<ObjectIdentifier>()
                .ok()
        };
        let key = if spki.algorithm.oid == RSA_OID {
            PublicKey::Rsa(key_bytes.to_vec())
        } else if spki.algorithm.oid == EC_OID && curve() == Some(P384_OID) {
            PublicKey::P384(key_bytes.to_vec())
        } else {
            PublicKey::Other
        };
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
        let signed = signed_parts(bytes, certificate.signature_algorithm(), tbs.signature())?;
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

/// A revocation list, read but not believed.
#[derive(Clone, Debug)]
pub(crate) struct Crl {
    pub(crate) signed: Signed,
    pub(crate) issuer: Vec<u8>,
    pub(crate) issuer_cn: String,
    /// Unix seconds, inclusive.
    pub(crate) this_update: u64,
    /// Unix seconds, exclusive; AMD's always have one.
    pub(crate) next_update: Option<u64>,
    revoked: Vec<Vec<u8>>,
}

impl Crl {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertError> {
        let list: CertificateList = CertificateList::from_der(bytes)?;
        let tbs = &list.tbs_cert_list;
        let signed = signed_parts(bytes, &list.signature_algorithm, &tbs.signature)?;
        let revoked = tbs.revoked_certificates.iter().flatten();
        Ok(Self {
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
        let strip = |serial: &[u8]| serial.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>();
        self.revoked.iter().any(|revoked| strip(revoked) == strip(serial))
    }
}

/// Unix seconds as `2026-08-19T14:09:01Z`, for people; as a number where the calendar ends (year 9999).
pub(crate) fn show_time(seconds: u64) -> String {
    let time = der::DateTime::from_unix_duration(std::time::Duration::from_secs(seconds));
    time.map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// A certificate's fields, for showing; nothing is verified.
pub fn certificate_claims(der: &[u8]) -> Value {
    let cert = match Cert::parse(der) {
        Ok(cert) => cert,
        Err(e) => return json!({ "unreadable": e.to_string() }),
    };
    let issued = vek::issued_by(&cert.issuer_cn);
    let product = issued.map(|(_, product)| product);
    let is_vek = vek::kind(&cert).is_some();
    let show =
        |claim: Result<Value, vek::ExtensionError>| claim.unwrap_or_else(|e| json!({ "unreadable": e.what }));
    json!({
        "subject": cert.subject_cn,
        "issuer": cert.issuer_cn,
        "serial": hex::encode(&cert.serial),
        "not_before": show_time(cert.not_before),
        "not_after": show_time(cert.not_after),
        "product": product.map(Product::name),
        "product_name": is_vek.then(|| show(vek::product_name(&cert).map(|name| json!(name)))),
        "tcb": product.filter(|_| is_vek).map(|product| show(vek::tcb(&cert, product).map(|tcb| json!(tcb)))),
        "hardware_id": (vek::kind(&cert) == Some(VekKind::Vcek))
            .then(|| show(vek::hardware_id(&cert).map(|id| json!(hex::encode(id.as_chip_id()))))),
    })
}

/// Whether bytes are one certificate in DER and nothing else.
pub(crate) fn check_certificate(der: &[u8]) -> Result<(), CertError> {
    Cert::parse(der).map(drop)
}

/// Whether bytes are one CRL in DER and nothing else.
pub(crate) fn check_crl(der: &[u8]) -> Result<(), CertError> {
    Crl::parse(der).map(drop)
}

type AlgorithmIdentifier = x509_cert::spki::AlgorithmIdentifierOwned;

/// Cuts `SEQUENCE { tbs, algorithm, BIT STRING }` where the bytes lie.
fn signed_parts(
    bytes: &[u8],
    outer: &AlgorithmIdentifier,
    inner: &AlgorithmIdentifier,
) -> Result<Signed, CertError> {
    let mut reader = SliceReader::new(bytes)?;
    Header::decode(&mut reader)?;
    let tbs = reader.tlv_bytes()?.to_vec();
    reader.tlv_bytes()?;
    let signature = der::asn1::BitString::decode(&mut reader)?;
    let params = || outer.parameters.as_ref()?.to_der().ok();
    let params_ok = params().is_some_and(|params| PSS_PARAMS.contains(&params.as_slice()));
    Ok(Signed {
        tbs,
        signature: signature.as_bytes().unwrap_or_default().to_vec(),
        algorithm_ok: outer == inner && outer.oid == PSS_OID && params_ok,
    })
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

/// What a certificate's signature covers, the signature, and its issuer's key; for tests of the signature checks.
#[cfg(all(test, feature = "native", feature = "rustcrypto"))]
pub(crate) fn signed_parts_of(der: &[u8], issuer: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (cert, issuer) = (Cert::parse(der), Cert::parse(issuer));
    let cert = cert.expect("a shipped certificate");
    let issuer = issuer.expect("a shipped certificate");
    let PublicKey::Rsa(key) = issuer.key else {
        panic!("AMD's CAs have RSA keys")
    };
    (cert.signed.tbs, cert.signed.signature, key)
}
