//! NVIDIA's reference manifests, and its OCSP responder (RFC 6960).

use der::Encode;
use der::asn1::{ObjectIdentifier, OctetString};
use serde::Deserialize;
use sha2::{Digest, Sha384};

use super::Needs;
use super::document::{Document, Window};
use crate::nvidia::{GpuEvidence, answered_ocsp, judge_manifest, manifest_chains, wants};
use crate::x509::{Cert, PublicKey};
use crate::{Endorsements, Roots};

const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const RIM_ID_LEN_MAX: usize = 128;

/// What devices' evidence needs.
pub(super) fn needs(gpus: &[GpuEvidence], known: &Endorsements, roots: &Roots, at: u64, needs: &mut Needs) {
    if gpus.is_empty() {
        return;
    }
    let mut pairs = Vec::new();
    for gpu in gpus {
        match wants(gpu, roots, at) {
            Ok((ids, chain)) => {
                for id in ids {
                    match is_id(&id) {
                        true => needs.want(Document::Rim { id }),
                        false => {
                            needs.lack("a reference manifest: the report's versions are no part of a name")
                        }
                    }
                }
                pairs.extend(chain);
            }
            Err(what) => needs.lack(what),
        }
    }
    pairs.extend(manifest_chains(known, roots, at));
    for (certificate, issuer) in pairs {
        needs.want(Document::Ocsp {
            certificate: hex::encode(certificate),
            issuer: hex::encode(issuer),
        });
    }
}

/// The parts come from the device: they must not lead elsewhere.
fn is_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    id.len() <= RIM_ID_LEN_MAX && id.bytes().all(plain) && !id.contains("..")
}

/// An answer of the service: the manifest in base64, and its name.
#[derive(Deserialize)]
struct RimAnswer {
    id: Option<String>,
}

pub(super) fn check_rim(content: &[u8], id: &str, roots: &Roots, at: u64) -> Result<Window, String> {
    let said: Option<RimAnswer> = serde_json::from_slice(content).ok();
    if let Some(other) = said.and_then(|said| said.id).filter(|said| said != id) {
        return Err(format!("another manifest ({})", other.escape_default()));
    }
    let failed = judge_manifest(content, roots, at)
        .into_iter()
        .find(|check| check.is_failed());
    match failed {
        None => Ok(Window { from: 0, until: None }),
        Some(check) => Err(format!(
            "{}: expected {}, found {}",
            check.id, check.expected, check.found
        )),
    }
}

/// A request (RFC 6960, section 4.1.1) for one certificate, without a nonce, so that the responder may answer from its
/// store; both certificates are DER in hexadecimal. Empty if they can't be read: then no answer will pass its check.
pub(super) fn ocsp_request(certificate: &str, issuer: &str) -> Vec<u8> {
    build_request(certificate, issuer).unwrap_or_default()
}

fn build_request(certificate: &str, issuer: &str) -> Option<Vec<u8>> {
    #[derive(der::Sequence)]
    struct Algorithm {
        oid: ObjectIdentifier,
    }
    #[derive(der::Sequence)]
    struct CertId {
        algorithm: Algorithm,
        issuer_name_hash: OctetString,
        issuer_key_hash: OctetString,
        serial: der::asn1::Int,
    }
    #[derive(der::Sequence)]
    struct One {
        certificate: CertId,
    }
    #[derive(der::Sequence)]
    struct ToBeSigned {
        list: Vec<One>,
    }
    #[derive(der::Sequence)]
    struct OcspRequest {
        tbs: ToBeSigned,
    }
    let (cert, issuer) = (parse(certificate)?, parse(issuer)?);
    let key = match &issuer.key {
        PublicKey::Rsa(key) | PublicKey::P256(key) | PublicKey::P384(key) => key.as_slice(),
        PublicKey::Other => return None,
    };
    let hash = |bytes: &[u8]| OctetString::new(Sha384::digest(bytes).to_vec()).ok();
    let certificate = CertId {
        algorithm: Algorithm { oid: SHA384 },
        issuer_name_hash: hash(&issuer.subject)?,
        issuer_key_hash: hash(key)?,
        serial: der::asn1::Int::new(&cert.serial).ok()?,
    };
    let tbs = ToBeSigned {
        list: vec![One { certificate }],
    };
    OcspRequest { tbs }.to_der().ok()
}

pub(super) fn check_ocsp(content: &[u8], certificate: &str, issuer: &str, at: u64) -> Result<Window, String> {
    let (cert, issuer) = parse(certificate)
        .zip(parse(issuer))
        .ok_or("certificates that can't be read")?;
    let (from, until) = answered_ocsp(content, &cert, &issuer, at)?;
    Ok(Window {
        from,
        until: Some(until),
    })
}

pub(super) fn certificate_name(certificate: &str) -> String {
    parse(certificate).map_or("an unreadable certificate".to_owned(), |cert| cert.subject_cn)
}

fn parse(hexadecimal: &str) -> Option<Cert> {
    Cert::parse(&hex::decode(hexadecimal).ok()?).ok()
}
