//! What a VEK certificate says about the chip and its firmware (AMD 57230, "VCEK Certificate").

use der::asn1::ObjectIdentifier;

use super::{Product, TcbVersion, VekKind};
use crate::result::Reason;
use crate::x509::Cert;

const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

/// The chip that a VCEK belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HardwareId {
    /// Milan, Genoa.
    Long([u8; 64]),
    /// Turin: the rest of the report's field is zero.
    Short([u8; 8]),
}

impl HardwareId {
    /// As the report's `CHIP_ID` has it.
    pub(crate) fn as_chip_id(self) -> [u8; 64] {
        match self {
            Self::Long(id) => id,
            Self::Short(id) => {
                let mut chip = [0; 64];
                chip[..8].copy_from_slice(&id);
                chip
            }
        }
    }
}

/// An extension that is missing or unreadable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtensionError {
    pub(crate) reason: Reason,
    pub(crate) what: String,
}

/// The kind of VEK that a certificate claims to be by its own name; `None`: it's no VEK.
pub(crate) fn kind(cert: &Cert) -> Option<VekKind> {
    match cert.subject_cn.as_str() {
        "SEV-VCEK" => Some(VekKind::Vcek),
        "SEV-VLEK" => Some(VekKind::Vlek),
        _ => None,
    }
}

/// The kind of VEK that an intermediate of this name may issue, and for which product.
pub(crate) fn issued_by(intermediate_cn: &str) -> Option<(VekKind, Product)> {
    let product = Product::from_intermediate(intermediate_cn)?;
    let kind = if intermediate_cn.starts_with("SEV-VLEK-") {
        VekKind::Vlek
    } else {
        VekKind::Vcek
    };
    Some((kind, product))
}

/// The TCB version that the key was derived for.
pub(crate) fn tcb(cert: &Cert, product: Product) -> Result<TcbVersion, ExtensionError> {
    Ok(TcbVersion {
        fmc: match product {
            Product::Turin => Some(integer(cert, &FMC, "fmc")?),
            Product::Milan | Product::Genoa => None,
        },
        bootloader: integer(cert, &BOOTLOADER, "bootloader")?,
        tee: integer(cert, &TEE, "tee")?,
        snp: integer(cert, &SNP, "snp")?,
        microcode: integer(cert, &MICROCODE, "microcode")?,
    })
}

/// The product's name with its stepping: `Milan-B0`, `Turin`.
pub(crate) fn product_name(cert: &Cert) -> Result<String, ExtensionError> {
    let bytes = required(cert, &PRODUCT_NAME, "product name")?;
    let text = match bytes {
        // IA5String of less than 128 characters.
        [0x16, len, text @ ..] if usize::from(*len) == text.len() && *len < 0x80 => text,
        _ => return Err(malformed("product name")),
    };
    match std::str::from_utf8(text) {
        Ok(text) if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(malformed("product name")),
    }
}

/// The chip that a VCEK names. AMD writes the bytes as they are; older certificates wrap them in an OCTET STRING.
pub(crate) fn hardware_id(cert: &Cert) -> Result<HardwareId, ExtensionError> {
    let bytes = required(cert, &HARDWARE_ID, "hardware id")?;
    if let Ok(id) = bytes.try_into() {
        return Ok(HardwareId::Long(id));
    }
    if let Ok(id) = bytes.try_into() {
        return Ok(HardwareId::Short(id));
    }
    match bytes {
        [0x04, 64, id @ ..] => id
            .try_into()
            .map(HardwareId::Long)
            .map_err(|_| malformed("hardware id")),
        [0x04, 8, id @ ..] => id
            .try_into()
            .map(HardwareId::Short)
            .map_err(|_| malformed("hardware id")),
        _ => Err(malformed("hardware id")),
    }
}

/// A DER INTEGER from 0 to 255.
fn integer(cert: &Cert, oid: &ObjectIdentifier, what: &str) -> Result<u8, ExtensionError> {
    parse_integer(required(cert, oid, what)?).ok_or_else(|| malformed(what))
}

fn parse_integer(der: &[u8]) -> Option<u8> {
    match der {
        [0x02, 1, value @ 0..=0x7f] => Some(*value),
        [0x02, 2, 0, value @ 0x80..=0xff] => Some(*value),
        _ => None,
    }
}

fn required<'a>(cert: &'a Cert, oid: &ObjectIdentifier, what: &str) -> Result<&'a [u8], ExtensionError> {
    cert.extension(oid).ok_or_else(|| ExtensionError {
        reason: Reason::ExtensionMissing,
        what: format!("no {what} ({oid})"),
    })
}

fn malformed(what: &str) -> ExtensionError {
    ExtensionError {
        reason: Reason::ExtensionMalformed,
        what: format!("unreadable {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_integer_is_one_byte_in_der() {
        for (der, want) in [
            (&[2, 1, 0][..], Some(0)),
            (&[2, 1, 0x7f], Some(0x7f)),
            (&[2, 2, 0, 0x80], Some(0x80)),
            (&[2, 2, 0, 0xff], Some(0xff)),
            (&[2, 1, 0x80], None),    // negative
            (&[2, 2, 0, 0x7f], None), // a zero too many
            (&[2, 2, 1, 0], None),    // 256
            (&[2, 0], None),
            (&[2, 3, 0, 0, 1], None),
            (&[2, 1], None),
            (&[2, 1, 1, 1], None),
            (&[4, 1, 1], None),
            (&[], None),
        ] {
            assert_eq!(parse_integer(der), want, "{der:02x?}");
        }
    }
}
