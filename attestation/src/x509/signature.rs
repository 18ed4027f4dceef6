//! What signs X.509 structures here, and the check.

use std::sync::{Arc, OnceLock};

use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode, Encode, Header, Reader, SliceReader};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::CertError;
use crate::crypto::{CRYPTO, Statement, remembered};

const RSA_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const PSS_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const EC_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ECDSA_SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const P256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// RSASSA-PSS-params: SHA-384, MGF1 with SHA-384, salt 48; the trailer field left out, or (AMD's own tools, against
/// DER's rule for defaults) written down. A hash's own parameters are NULL or left out (RFC 4055, 2.1: both are to be read).
const PSS_SHA384_PARAMS: [&str; 4] = [
    "3030a00d300b0609608648016503040202a11a301806092a864886f70d010108300b0609608648016503040202a203020130",
    "3035a00d300b0609608648016503040202a11a301806092a864886f70d010108300b0609608648016503040202a203020130a303020101",
    "3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130",
    "3039a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101",
];

/// A signature algorithm of X.509.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    RsaPssSha384,
    RsaPkcs1Sha256,
    RsaPkcs1Sha384,
    EcdsaSha256,
    EcdsaSha384,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::RsaPssSha384 => "RSA PSS SHA-384",
            Self::RsaPkcs1Sha256 => "RSA PKCS1 SHA-256",
            Self::RsaPkcs1Sha384 => "RSA PKCS1 SHA-384",
            Self::EcdsaSha256 => "ECDSA SHA-256",
            Self::EcdsaSha384 => "ECDSA SHA-384",
        }
    }

    fn of(identifier: &AlgorithmIdentifierOwned) -> Option<Self> {
        let parameters = || identifier.parameters.as_ref()?.to_der().ok();
        // RFC 4055 asks for NULL, RFC 5758 for nothing.
        let null = || parameters().is_some_and(|der| der == [5, 0]);
        let absent = identifier.parameters.is_none();
        match identifier.oid {
            PSS_OID => {
                let hex = hex::encode(parameters()?);
                PSS_SHA384_PARAMS
                    .contains(&hex.as_str())
                    .then_some(Self::RsaPssSha384)
            }
            RSA_SHA256_OID => null().then_some(Self::RsaPkcs1Sha256),
            RSA_SHA384_OID => null().then_some(Self::RsaPkcs1Sha384),
            ECDSA_SHA256_OID => absent.then_some(Self::EcdsaSha256),
            ECDSA_SHA384_OID => absent.then_some(Self::EcdsaSha384),
            _ => None,
        }
    }
}

/// The part of a signed DER structure that its signature covers, and the signature. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Signed(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    tbs: Vec<u8>,
    signature: Vec<u8>,
    /// `None`: one that isn't known, or not the same outside and inside.
    algorithm: Option<Algorithm>,
    /// Of both, once somebody asked.
    statement: OnceLock<Statement>,
}

impl Signed {
    /// Cuts `SEQUENCE { tbs, algorithm, BIT STRING }` where the bytes lie.
    pub(crate) fn cut(
        bytes: &[u8],
        outer: &AlgorithmIdentifierOwned,
        inner: &AlgorithmIdentifierOwned,
    ) -> Result<Self, CertError> {
        let mut reader = SliceReader::new(bytes)?;
        Header::decode(&mut reader)?;
        let tbs = reader.tlv_bytes()?.to_vec();
        reader.tlv_bytes()?;
        let signature = der::asn1::BitString::decode(&mut reader)?;
        Ok(Self(Arc::new(Parts {
            tbs,
            signature: signature.as_bytes().unwrap_or_default().to_vec(),
            algorithm: Algorithm::of(outer).filter(|_| outer == inner),
            statement: OnceLock::new(),
        })))
    }

    /// Whether `key` signed it.
    pub(crate) fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Some(algorithm) = self.0.algorithm else {
            return false;
        };
        let (tbs, signature) = (self.0.tbs.as_slice(), self.0.signature.as_slice());
        let (PublicKey::Rsa(bytes) | PublicKey::P256(bytes) | PublicKey::P384(bytes)) = key else {
            return false;
        };
        let check = || match (key, algorithm) {
            (PublicKey::Rsa(key), Algorithm::RsaPssSha384) => CRYPTO.rsa_pss_sha384(key, tbs, signature),
            (PublicKey::Rsa(key), Algorithm::RsaPkcs1Sha256) => CRYPTO.rsa_pkcs1_sha256(key, tbs, signature),
            (PublicKey::Rsa(key), Algorithm::RsaPkcs1Sha384) => CRYPTO.rsa_pkcs1_sha384(key, tbs, signature),
            (PublicKey::P256(key), Algorithm::EcdsaSha256) => {
                ecdsa_fixed::<32, 64>(signature).is_some_and(|rs| CRYPTO.p256_sha256(key, tbs, &rs))
            }
            (PublicKey::P384(key), Algorithm::EcdsaSha384) => {
                ecdsa_fixed::<48, 96>(signature).is_some_and(|rs| CRYPTO.p384_sha384(key, tbs, &rs))
            }
            (PublicKey::P256(key), Algorithm::EcdsaSha384) => {
                ecdsa_fixed::<32, 64>(signature).is_some_and(|rs| CRYPTO.p256_sha384(key, tbs, &rs))
            }
            (PublicKey::P384(key), Algorithm::EcdsaSha256) => {
                ecdsa_fixed::<48, 96>(signature).is_some_and(|rs| CRYPTO.p384_sha256(key, tbs, &rs))
            }
            _ => false,
        };
        let statement = self.0.statement.get_or_init(|| Statement::of(tbs, signature));
        remembered(algorithm.name(), bytes, *statement, check)
    }

    /// What is signed, and the signature; for tests of the signature checks.
    #[cfg(all(test, feature = "native", feature = "rustcrypto"))]
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        (&self.0.tbs, &self.0.signature)
    }
}

/// `Ecdsa-Sig-Value` (RFC 3279; DER) as r ‖ s, each of `HALF` bytes, big-endian; `None`: not DER, or too large.
pub(crate) fn ecdsa_fixed<const HALF: usize, const WHOLE: usize>(der: &[u8]) -> Option<[u8; WHOLE]> {
    const { assert!(2 * HALF == WHOLE) };
    let mut reader = SliceReader::new(der).ok()?;
    let (r, s) = reader
        .sequence(|reader| Ok::<_, der::Error>((UintRef::decode(reader)?, UintRef::decode(reader)?)))
        .ok()?;
    reader.finish().ok()?;
    let mut fixed = [0; WHOLE];
    for (half, number) in fixed.chunks_exact_mut(HALF).zip([r, s]) {
        let bytes = number.as_bytes();
        half[HALF.checked_sub(bytes.len())?..].copy_from_slice(bytes);
    }
    Some(fixed)
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// PKCS #1 `RSAPublicKey`, DER.
    Rsa(Vec<u8>),
    /// P-256; SEC 1, uncompressed.
    P256(Vec<u8>),
    /// P-384; SEC 1, uncompressed.
    P384(Vec<u8>),
    /// Something else.
    Other,
}

impl PublicKey {
    pub(crate) fn from_spki(spki: &SubjectPublicKeyInfoOwned) -> Self {
        let key = spki.subject_public_key.as_bytes().unwrap_or_default().to_vec();
        let curve = || {
            spki.algorithm
                .parameters
                .as_ref()?
                .decode_as::<ObjectIdentifier>()
                .ok()
        };
        match spki.algorithm.oid {
            RSA_OID => Self::Rsa(key),
            EC_OID if curve() == Some(P256_OID) => Self::P256(key),
            EC_OID if curve() == Some(P384_OID) => Self::P384(key),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecdsa_signatures_are_two_positive_integers_in_der_and_nothing_else() {
        let fixed = |der: &[u8]| ecdsa_fixed::<4, 8>(der);
        for (der, want) in [
            (&[0x30, 6, 2, 1, 5, 2, 1, 7][..], Some([0, 0, 0, 5, 0, 0, 0, 7])),
            (
                &[0x30, 8, 2, 2, 0, 0xff, 2, 2, 1, 0],
                Some([0, 0, 0, 0xff, 0, 0, 1, 0]),
            ),
            (&[0x30, 6, 2, 1, 0x85, 2, 1, 7], None), // negative
            (&[0x30, 7, 2, 2, 0, 5, 2, 1, 7], None), // a zero too many
            (&[0x30, 6, 2, 1, 5, 2, 1, 7, 0], None), // behind the end
            (&[0x30, 7, 2, 1, 5, 2, 1, 7, 0], None), // a third field
            (&[0x30, 10, 2, 5, 1, 0, 0, 0, 0, 2, 1, 7], None), // too large
            (&[0x30, 3, 2, 1, 5], None),
            (&[], None),
        ] {
            assert_eq!(fixed(der), want, "{der:02x?}");
        }
    }
}
