//! The firmware identity in a device's leaf certificate (TCG DICE Attestation Architecture): the digest of the firmware
//! for which the device's ROM made the key.
//!
//! ```text
//! Hopper, NVSwitch   2.23.133.5.4.1    SEQUENCE { version, device key, FWID }
//! Blackwell          2.23.133.5.4.1.1  SEQUENCE { …, [6] { FWID, … }, [7] flags, … }
//! FWID                                 SEQUENCE { hash algorithm OBJECT IDENTIFIER, digest OCTET STRING }
//! ```

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};

use crate::x509::Cert;

const COMPOSITE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");
const TCB_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
/// `OperationalFlags`, bit 3: the firmware may be debugged.
const DEBUG_FLAG: usize = 3;

/// What a leaf certificate says about the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Firmware {
    /// SHA-384.
    pub(super) fwid: Vec<u8>,
    /// Whether it may be debugged; `None`: the certificate doesn't say.
    pub(super) debug: Option<bool>,
}

/// Whether a certificate says something about firmware: a device's leaf does.
pub(super) fn is_there(cert: &Cert) -> bool {
    [COMPOSITE, TCB_INFO]
        .iter()
        .any(|oid| cert.extension(oid).is_some())
}

/// Reads it. `Ok(None)`: no such extension.
pub(super) fn read(cert: &Cert) -> Result<Option<Firmware>, der::Error> {
    if let Some(bytes) = cert.extension(&TCB_INFO) {
        let fields = elements(AnyRef::from_der(bytes)?, Tag::Sequence)?;
        let field = |number| fields.iter().find(|field| is_context(field.tag(), number));
        let fwids = field(6).ok_or(der::ErrorKind::Failed)?;
        let first = AnyRef::decode(&mut SliceReader::new(fwids.value())?)?;
        let flag = |flags: &AnyRef<'_>| {
            let bits = flags.value().get(1 + DEBUG_FLAG / 8).copied().unwrap_or(0);
            bits & (0x80 >> (DEBUG_FLAG % 8)) != 0
        };
        return Ok(Some(Firmware {
            fwid: fwid(first)?,
            debug: field(7).map(flag),
        }));
    }
    let Some(bytes) = cert.extension(&COMPOSITE) else {
        return Ok(None);
    };
    match elements(AnyRef::from_der(bytes)?, Tag::Sequence)?[..] {
        [_, _, last] => Ok(Some(Firmware {
            fwid: fwid(last)?,
            debug: None,
        })),
        _ => Err(der::ErrorKind::Failed.into()),
    }
}

fn fwid(element: AnyRef<'_>) -> Result<Vec<u8>, der::Error> {
    match elements(element, Tag::Sequence)?[..] {
        [algorithm, digest] if algorithm.decode_as::<ObjectIdentifier>()? == SHA384 => {
            Ok(content(digest, Tag::OctetString)?.to_vec())
        }
        _ => Err(der::ErrorKind::Failed.into()),
    }
}

fn is_context(tag: Tag, number: u32) -> bool {
    matches!(tag, Tag::ContextSpecific { number: found, .. } if found == TagNumber(number))
}

/// What is in an element that must have this tag.
pub(super) fn elements<'a>(element: AnyRef<'a>, tag: Tag) -> Result<Vec<AnyRef<'a>>, der::Error> {
    let mut reader = SliceReader::new(content(element, tag)?)?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        found.push(AnyRef::decode(&mut reader)?);
    }
    Ok(found)
}

/// The content of an element that must have this tag.
pub(super) fn content<'a>(element: AnyRef<'a>, tag: Tag) -> Result<&'a [u8], der::Error> {
    match element.tag() == tag {
        true => Ok(element.value()),
        false => Err(der::ErrorKind::Failed.into()),
    }
}
