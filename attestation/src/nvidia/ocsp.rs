//! OCSP responses (RFC 6960): NVIDIA's word on whether a device's or a manifest's certificate still counts.
//!
//! A response counts for a certificate if it names it (issuer's name and key, serial number), if the issuer signed it,
//! or a responder whom the issuer certified for that (`id-kp-OCSPSigning`), and if its window covers the time asked about.

use der::asn1::{AnyRef, GeneralizedTime, Int, ObjectIdentifier};
use der::{Decode, Encode, SliceReader, Tag, TagNumber, Tagged};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384};
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::fwid::{content, elements};
use crate::x509::{Cert, PublicKey, Signed};

/// The longest response. Real ones have about 2 KiB.
const RESPONSE_LEN_MAX: usize = 64 * 1024;
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SHA1_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const CERTIFICATE_HOLD: u8 = 6;
const CERTIFICATES_MAX: usize = 8;
const ENTRIES_MAX: usize = 64;

/// A response, read but not believed.
#[derive(Clone, Debug)]
pub(crate) struct OcspResponse {
    signed: Signed,
    certs: Vec<Cert>,
    entries: Vec<Entry>,
}

/// What it says of one certificate.
#[derive(Clone, Debug)]
struct Entry {
    algorithm: ObjectIdentifier,
    issuer_name_hash: Vec<u8>,
    issuer_key_hash: Vec<u8>,
    serial: Vec<u8>,
    status: Status,
    this_update: u64,
    next_update: Option<u64>,
}

/// A certificate's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// In force.
    Good,
    /// Suspended, perhaps for a while.
    Hold,
    /// Not in force any more.
    Revoked,
    /// The responder doesn't know it.
    Unknown,
}

/// What the given responses say together about one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A genuine, current response.
    Current(Status),
    /// Genuine, and not of this time.
    Stale,
    /// The signature of a response about it is wrong.
    Forged,
    /// None is about it.
    None,
}

type Error = der::Error;

impl OcspResponse {
    /// Whether bytes begin like a response: a sequence whose first element is a status.
    pub(crate) fn looks_like(bytes: &[u8]) -> bool {
        let mut reader = match SliceReader::new(bytes) {
            Ok(reader) => reader,
            Err(_) => return false,
        };
        let outer = AnyRef::decode(&mut reader)
            .ok()
            .filter(|outer| outer.tag() == Tag::Sequence);
        outer.is_some_and(|outer| outer.value().first() == Some(&0x0a))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > RESPONSE_LEN_MAX {
            return failed();
        }
        let [status, body] = exactly(elements(AnyRef::from_der(bytes)?, Tag::Sequence)?)?;
        if status.value() != [0] {
            return failed();
        }
        let [body] = exactly(elements(body, context(0))?)?;
        let [kind, basic] = exactly(elements(body, Tag::Sequence)?)?;
        if kind.decode_as::<ObjectIdentifier>()? != BASIC {
            return failed();
        }
        let basic = content(basic, Tag::OctetString)?;
        let parts = elements(AnyRef::from_der(basic)?, Tag::Sequence)?;
        let (data, algorithm, certs) = match parts[..] {
            [data, algorithm, _] => (data, algorithm, Vec::new()),
            [data, algorithm, _, certs] => {
                let [list] = exactly(elements(certs, context(0))?)?;
                (data, algorithm, elements(list, Tag::Sequence)?)
            }
            _ => return failed(),
        };
        if certs.len() > CERTIFICATES_MAX {
            return failed();
        }
        let algorithm: AlgorithmIdentifierOwned = algorithm.decode_as()?;
        let read = |cert: AnyRef<'_>| Cert::parse(&cert.to_der().unwrap_or_default()).or_else(|_| failed());
        Ok(Self {
            signed: Signed::cut(basic, &algorithm, &algorithm).or_else(|_| failed())?,
            certs: certs.into_iter().map(read).collect::<Result<_, _>>()?,
            entries: entries(data)?,
        })
    }

    /// From when until when (Unix seconds, inclusive) its word about a certificate is good.
    #[cfg(feature = "fetch")]
    pub(super) fn window(&self, cert: &Cert, issuer: &Cert) -> Option<(u64, u64)> {
        let entry = self.entries.iter().find(|entry| entry.is_about(cert, issuer))?;
        // A responder that always has newer (no nextUpdate, RFC 6960, 4.2.2.1) is asked again after a week.
        let week = entry.this_update.saturating_add(7 * 24 * 3600);
        let until = entry.next_update.unwrap_or(week).saturating_sub(1);
        Some((entry.this_update, until))
    }

    /// Whether the certificate's issuer stands behind it. `at`: the responder's certificate must be valid then.
    fn is_genuine(&self, issuer: &Cert, at: u64) -> bool {
        let delegated = |cert: &&Cert| {
            cert.issuer == issuer.subject
                && (cert.not_before..=cert.not_after).contains(&at)
                && may_sign_responses(cert)
                && cert.signed.is_signed_by(&issuer.key)
        };
        self.signed.is_signed_by(&issuer.key)
            || self
                .certs
                .iter()
                .filter(delegated)
                .any(|cert| self.signed.is_signed_by(&cert.key))
    }
}

/// What `responses` say about `cert` at `at` (Unix seconds). Revocation outweighs everything, a current word an old one.
pub(crate) fn answer(responses: &[OcspResponse], cert: &Cert, issuer: &Cert, at: u64) -> Answer {
    let (mut current, mut stale, mut forged) = (Vec::new(), false, false);
    for response in responses {
        for entry in response
            .entries
            .iter()
            .filter(|entry| entry.is_about(cert, issuer))
        {
            if !response.is_genuine(issuer, at) {
                // A responder whose certificate has ended since is old, not forged.
                match response.is_genuine(issuer, entry.this_update) {
                    true => stale = true,
                    false => forged = true,
                }
            } else if entry.this_update <= at && entry.next_update.is_none_or(|next| at < next) {
                current.push(entry.status);
            } else if entry.status == Status::Revoked {
                // There is no way back from it.
                current.push(Status::Revoked);
            } else {
                stale = true;
            }
        }
    }
    let worst = [Status::Revoked, Status::Hold, Status::Unknown, Status::Good];
    match worst.into_iter().find(|status| current.contains(status)) {
        _ if forged => Answer::Forged,
        Some(status) => Answer::Current(status),
        None if stale => Answer::Stale,
        None => Answer::None,
    }
}

impl Entry {
    fn is_about(&self, cert: &Cert, issuer: &Cert) -> bool {
        let hash = |bytes: &[u8]| match self.algorithm {
            SHA1_OID => Sha1::digest(bytes).to_vec(),
            SHA256_OID => Sha256::digest(bytes).to_vec(),
            SHA384_OID => Sha384::digest(bytes).to_vec(),
            _ => Vec::new(),
        };
        let key = match &issuer.key {
            PublicKey::Rsa(key) | PublicKey::P256(key) | PublicKey::P384(key) => key.as_slice(),
            PublicKey::Other => return false,
        };
        let strip = |serial: &[u8]| serial.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>();
        self.issuer_name_hash == hash(&issuer.subject)
            && self.issuer_key_hash == hash(key)
            && strip(&self.serial) == strip(&cert.serial)
    }
}

fn entries(data: AnyRef<'_>) -> Result<Vec<Entry>, Error> {
    let mut fields = elements(data, Tag::Sequence)?.into_iter().peekable();
    // Version 1 is the default, and DER leaves it out.
    fields.next_if(|field| field.tag() == context(0));
    let (_responder, _produced_at) = (fields.next(), fields.next());
    let list = fields.next().ok_or(der::ErrorKind::Failed)?;
    let list = elements(list, Tag::Sequence)?;
    if list.len() > ENTRIES_MAX {
        return failed();
    }
    list.into_iter().map(entry).collect()
}

fn entry(single: AnyRef<'_>) -> Result<Entry, Error> {
    let mut fields = elements(single, Tag::Sequence)?.into_iter();
    let mut next = || fields.next().ok_or_else(|| Error::from(der::ErrorKind::Failed));
    let [algorithm, name, key, serial] = exactly(elements(next()?, Tag::Sequence)?)?;
    let octets = |element| Ok::<_, Error>(content(element, Tag::OctetString)?.to_vec());
    let status = next()?;
    let status = match status.tag() {
        Tag::ContextSpecific {
            number: TagNumber(0), ..
        } => Status::Good,
        Tag::ContextSpecific {
            number: TagNumber(2), ..
        } => Status::Unknown,
        tag if tag == context(1) => match elements(status, context(1))?[..] {
            [_when, reason] if reason.value() == [0x0a, 1, CERTIFICATE_HOLD] => Status::Hold,
            [_when] | [_when, _] => Status::Revoked,
            _ => return failed(),
        },
        _ => return failed(),
    };
    let this_update = time(next()?)?;
    let next_update = match fields.next() {
        Some(field) if field.tag() == context(0) => {
            let [next] = exactly(elements(field, context(0))?)?;
            Some(time(next)?)
        }
        _ => None,
    };
    Ok(Entry {
        algorithm: algorithm.decode_as::<AlgorithmIdentifierOwned>()?.oid,
        issuer_name_hash: octets(name)?,
        issuer_key_hash: octets(key)?,
        serial: serial.decode_as::<Int>()?.as_bytes().to_vec(),
        status,
        this_update,
        next_update,
    })
}

fn time(element: AnyRef<'_>) -> Result<u64, Error> {
    Ok(element
        .decode_as::<GeneralizedTime>()?
        .to_unix_duration()
        .as_secs())
}

fn may_sign_responses(cert: &Cert) -> bool {
    let Some(extension) = cert.extension(&EXTENDED_KEY_USAGE) else {
        return false;
    };
    let purposes = AnyRef::from_der(extension).and_then(|list| elements(list, Tag::Sequence));
    purposes.is_ok_and(|list| {
        list.iter().any(|purpose| {
            purpose
                .decode_as::<ObjectIdentifier>()
                .is_ok_and(|oid| oid == OCSP_SIGNING)
        })
    })
}

fn context(number: u32) -> Tag {
    Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(number),
    }
}

fn exactly<const N: usize>(elements: Vec<AnyRef<'_>>) -> Result<[AnyRef<'_>; N], Error> {
    elements.try_into().or_else(|_| failed())
}

fn failed<T>() -> Result<T, Error> {
    Err(der::ErrorKind::Failed.into())
}
