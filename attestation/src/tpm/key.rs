//! The attestation key: its public area as the TPM has it (`TPMT_PUBLIC`, TPM 2.0 Part 2, 12.2.4), or as the rest of the
//! world has it (SubjectPublicKeyInfo).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use der::asn1::UintRef;
use der::{Decode, Encode, Header, Tag};
use sha2::{Digest, Sha256};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::eventlog::HashAlg;
use crate::x509::PublicKey;

use super::wire::{Reader, WireError};

const RSA: u16 = 0x0001;
const NULL: u16 = 0x0010;
const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
const ECC: u16 = 0x0023;
const P256: u16 = 0x0003;
const P384: u16 = 0x0004;

const KEY_LEN_MAX: usize = 2048;
const RSA_OID: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
const P256_OID: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
const P384_OID: [u8; 18] = [
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// `TPMA_OBJECT`: the bits that make a key an attestation key, and one that must be clear.
const ATTRIBUTES: [(u32, &str); 5] = [
    (1, "fixedTPM"),
    (4, "fixedParent"),
    (5, "sensitiveDataOrigin"),
    (16, "restricted"),
    (18, "sign"),
];
const DECRYPT: u32 = 17;

/// An attestation key, read but not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationKey {
    pub(super) key: PublicKey,
    public_area: Option<PublicArea>,
}

/// What only the TPM's own form says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PublicArea {
    name: Vec<u8>,
    attributes: u32,
}

impl AttestationKey {
    /// Reads a `TPM2B_PUBLIC` or `TPMT_PUBLIC` (TPM), or a SubjectPublicKeyInfo (DER, PEM).
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > KEY_LEN_MAX {
            let what = format!("{} bytes (at most {KEY_LEN_MAX})", bytes.len());
            return Err(WireError {
                structure: "attestation key",
                what,
            });
        }
        if let Some(der) = spki_of_pem(bytes) {
            return from_spki(&der);
        }
        match bytes {
            [0x30, ..] => from_spki(bytes),
            [0x00, 0x01 | 0x23, ..] => from_public_area(bytes),
            _ => {
                let mut reader = Reader::new("TPM2B_PUBLIC", bytes);
                let area = reader.sized(KEY_LEN_MAX, "publicArea")?;
                reader.finish()?;
                from_public_area(area)
            }
        }
    }

    /// The key's name (Part 1, "Names"): the digest of its public area, attributes included. Only the TPM's own form has
    /// one.
    pub fn name(&self) -> Option<&[u8]> {
        self.public_area.as_ref().map(|area| area.name.as_slice())
    }

    /// SHA-256 of its SubjectPublicKeyInfo (DER).
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.spki()).into()
    }

    /// Its SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> Vec<u8> {
        let (algorithm, key): (&[u8], &[u8]) = match &self.key {
            PublicKey::Rsa(key) => (&RSA_OID, key),
            PublicKey::P256(key) => (&P256_OID, key),
            PublicKey::P384(key) => (&P384_OID, key),
            PublicKey::Other => (&[], &[]), // no parser here makes one
        };
        let bits = tlv(Tag::BitString, &[&[0], key]);
        tlv(Tag::Sequence, &[algorithm, &bits])
    }

    /// What is wrong with its attributes: nothing, for a restricted signing key that was made in this TPM and can't leave
    /// it. `None`: its form has no attributes.
    pub(super) fn wrong_attributes(&self) -> Option<Vec<&'static str>> {
        let attributes = self.public_area.as_ref()?.attributes;
        let missing = ATTRIBUTES
            .iter()
            .filter(|(bit, _)| attributes >> bit & 1 == 0)
            .map(|(_, name)| match *name {
                "fixedTPM" => "not fixedTPM",
                "fixedParent" => "not fixedParent",
                "sensitiveDataOrigin" => "not sensitiveDataOrigin",
                "restricted" => "not restricted",
                _ => "can't sign",
            });
        let decrypt = (attributes >> DECRYPT & 1 == 1).then_some("decrypts, too");
        Some(missing.chain(decrypt).collect())
    }

    /// The hierarchy whose primary key this is, going by the qualified name in its signature (Part 1, "Qualified Names":
    /// the name of a hierarchy is its handle).
    pub(super) fn hierarchy(&self, qualified_name: &[u8]) -> Option<&'static str> {
        let name = self.name()?;
        let (id, _) = name.split_first_chunk::<2>()?;
        let algorithm = HashAlg::from_id(u16::from_be_bytes(*id))?;
        let hierarchies: [(u32, &str); 4] = [
            (0x4000_0001, "owner"),
            (0x4000_0007, "null"),
            (0x4000_000b, "endorsement"),
            (0x4000_000c, "platform"),
        ];
        let found = hierarchies.into_iter().find(|(handle, _)| {
            let digest = algorithm.digest(&[&handle.to_be_bytes(), name]);
            digest.is_some_and(|digest| qualified_name == [id.as_slice(), &digest].concat())
        });
        found.map(|(_, hierarchy)| hierarchy)
    }
}

/// A PKCS #1 `RSAPublicKey` (DER); an exponent of 0 is the TPM's way to say 65537.
pub(super) fn rsa_key(modulus: &[u8], exponent: u32) -> Option<PublicKey> {
    let exponent = if exponent == 0 { 65_537 } else { exponent };
    let exponent = exponent.to_be_bytes();
    let n = UintRef::new(modulus).and_then(|n| n.to_der()).ok()?;
    let e = UintRef::new(&exponent).and_then(|e| e.to_der()).ok()?;
    Some(PublicKey::Rsa(tlv(Tag::Sequence, &[&n, &e])))
}

fn tlv(tag: Tag, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let len = u32::try_from(content.len()).expect("keys are at most some KiB");
    let mut out = Header::new(tag, der::Length::from(len.min(65_535) as u16))
        .to_der()
        .expect("a header of a short element can be written");
    out.extend(content);
    out
}

fn spki_of_pem(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let body = text.strip_prefix("-----BEGIN PUBLIC KEY-----")?;
    let body = body.strip_suffix("-----END PUBLIC KEY-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}

fn from_spki(der: &[u8]) -> Result<AttestationKey, WireError> {
    let wrong = |what: String| WireError {
        structure: "SubjectPublicKeyInfo",
        what,
    };
    let spki = SubjectPublicKeyInfoOwned::from_der(der).map_err(|e| wrong(e.to_string()))?;
    let attestation_key = AttestationKey {
        key: PublicKey::from_spki(&spki),
        public_area: None,
    };
    // The one encoding: so that its digest is a name.
    if attestation_key.key == PublicKey::Other || attestation_key.spki() != der {
        return Err(wrong("not an RSA, P-256 or P-384 key in DER".to_owned()));
    }
    Ok(attestation_key)
}

fn from_public_area(area: &[u8]) -> Result<AttestationKey, WireError> {
    let mut reader = Reader::new("TPMT_PUBLIC", area);
    let kind = reader.u16("type")?;
    let name_alg = reader.u16("nameAlg")?;
    let attributes = reader.u32("objectAttributes")?;
    reader.sized(64, "authPolicy")?;
    let hash = HashAlg::from_id(name_alg).and_then(|alg| alg.digest(&[area]));
    let hash = hash.ok_or_else(|| {
        reader.wrong(format!(
            "name algorithm {name_alg:04x} isn't SHA-256, -384 or -512"
        ))
    })?;
    match reader.u16("symmetric")? {
        NULL => {}
        _ => {
            reader.u16("keyBits")?;
            reader.u16("mode")?;
        }
    }
    let scheme = reader.u16("scheme")?;
    if matches!(scheme, RSASSA | RSAPSS | ECDSA) {
        reader.u16("scheme's hash")?;
    } else if scheme != NULL {
        return Err(reader.wrong(format!(
            "signing scheme {scheme:04x} isn't RSASSA, RSAPSS or ECDSA"
        )));
    }
    let key = match kind {
        RSA => rsa(&mut reader)?,
        ECC => ecc(&mut reader)?,
        _ => return Err(reader.wrong(format!("type {kind:04x} is neither RSA nor ECC"))),
    };
    reader.finish()?;
    let name = [&name_alg.to_be_bytes(), hash.as_slice()].concat();
    Ok(AttestationKey {
        key,
        public_area: Some(PublicArea { name, attributes }),
    })
}

fn rsa(reader: &mut Reader<'_>) -> Result<PublicKey, WireError> {
    let bits = usize::from(reader.u16("keyBits")?);
    let exponent = reader.u32("exponent")?;
    let modulus = reader.sized(512, "modulus")?;
    let sound = (2048..=4096).contains(&bits) && 8 * modulus.len() == bits && modulus[0] & 0x80 != 0;
    sound
        .then(|| rsa_key(modulus, exponent))
        .flatten()
        .ok_or_else(|| {
            reader.wrong(format!(
                "a modulus of {} bytes for {bits} bits (2048 to 4096)",
                modulus.len()
            ))
        })
}

fn ecc(reader: &mut Reader<'_>) -> Result<PublicKey, WireError> {
    let curve = reader.u16("curveID")?;
    if reader.u16("kdf")? != NULL {
        reader.u16("kdf's hash")?;
    }
    let size = match curve {
        P256 => 32,
        P384 => 48,
        _ => return Err(reader.wrong(format!("curve {curve:04x} is neither P-256 nor P-384"))),
    };
    let mut point = vec![0x04];
    for coordinate in ["x", "y"] {
        // A TPM may leave leading zeros out.
        let bytes = reader.sized(size, coordinate)?;
        point.resize(point.len() + size - bytes.len(), 0);
        point.extend(bytes);
    }
    Ok(match curve {
        P256 => PublicKey::P256(point),
        _ => PublicKey::P384(point),
    })
}
