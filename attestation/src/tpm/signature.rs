//! `TPMT_SIGNATURE` (TPM 2.0 Part 2, 11.3.4), and its check over the raw bytes of a quote.

use crate::crypto::CRYPTO;
use crate::eventlog::HashAlg;
use crate::x509::PublicKey;

use super::wire::{Reader, WireError};

const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;

/// Bytes of a number of P-384, the largest curve here.
const HALF_MAX: usize = 48;

/// A signature, read but not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    scheme: Scheme,
    hash: HashAlg,
    /// RSA: as it is; ECDSA: r ‖ s, each of [`HALF_MAX`] bytes, since only the key says which curve it is.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    RsaSsa,
    RsaPss,
    Ecdsa,
}

/// Why bytes are no signature that can be checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not the structure.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// A scheme or hash that no verdict rests on: HMAC, SHA-1, ….
    #[error(
        "signature scheme {scheme:04x} with hash {hash:04x}: known are RSASSA, RSAPSS and ECDSA with SHA-256 and SHA-384"
    )]
    Unsupported {
        /// `TPM_ALG_ID` of the scheme.
        scheme: u16,
        /// `TPM_ALG_ID` of the hash.
        hash: u16,
    },
}

impl Signature {
    /// Reads a `TPMT_SIGNATURE`; nothing may be left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let mut reader = Reader::new("TPMT_SIGNATURE", bytes);
        let id = reader.u16("sigAlg")?;
        let hash_id = reader.u16("hash")?;
        let unsupported = SignatureError::Unsupported {
            scheme: id,
            hash: hash_id,
        };
        let scheme = match id {
            RSASSA => Scheme::RsaSsa,
            RSAPSS => Scheme::RsaPss,
            ECDSA => Scheme::Ecdsa,
            _ => return Err(unsupported),
        };
        let hash = HashAlg::from_id(hash_id).filter(|hash| matches!(hash, HashAlg::Sha256 | HashAlg::Sha384));
        let hash = hash.ok_or(unsupported)?;
        let bytes = match scheme {
            Scheme::RsaSsa | Scheme::RsaPss => reader.sized(512, "sig")?.to_vec(),
            Scheme::Ecdsa => {
                let mut whole = Vec::with_capacity(2 * HALF_MAX);
                for half in ["signatureR", "signatureS"] {
                    let number = reader.sized(HALF_MAX, half)?; // perhaps without leading zeros
                    whole.resize(whole.len() + HALF_MAX - number.len(), 0);
                    whole.extend(number);
                }
                whole
            }
        };
        reader.finish()?;
        Ok(Self { scheme, hash, bytes })
    }

    /// RSASSA with SHA-256: what Azure's virtual TPM signs with, and gives without the structure around it.
    pub(super) fn rsassa_sha256(bytes: &[u8]) -> Self {
        Self {
            scheme: Scheme::RsaSsa,
            hash: HashAlg::Sha256,
            bytes: bytes.to_vec(),
        }
    }

    /// The hash of the scheme; the PCR digest is computed with it, too.
    pub fn hash(&self) -> HashAlg {
        self.hash
    }

    /// `RSASSA with sha256`, for people.
    pub(super) fn shown(&self) -> String {
        let scheme = match self.scheme {
            Scheme::RsaSsa => "RSASSA",
            Scheme::RsaPss => "RSAPSS",
            Scheme::Ecdsa => "ECDSA",
        };
        format!("{scheme} with {}", self.hash)
    }

    /// r ‖ s as a curve of `WHOLE / 2` bytes has them; `None`: too large for it.
    fn halves<const WHOLE: usize>(&self) -> Option<[u8; WHOLE]> {
        let mut whole = [0; WHOLE];
        for (number, half) in self.bytes.chunks(HALF_MAX).zip(whole.chunks_mut(WHOLE / 2)) {
            let (zeros, number) = number.split_at_checked(HALF_MAX.checked_sub(WHOLE / 2)?)?;
            half.copy_from_slice(number);
            if zeros.iter().any(|byte| *byte != 0) {
                return None;
            }
        }
        Some(whole)
    }

    /// Whether `key` made it over `message`. A PSS salt is as long as the digest (TPMs in FIPS mode), or the longest that the
    /// key has room for (all others; Part 1, B.7).
    pub(super) fn is_by(&self, key: &PublicKey, message: &[u8]) -> bool {
        let bytes = self.bytes.as_slice();
        match (self.scheme, self.hash, key) {
            (Scheme::RsaSsa, HashAlg::Sha256, PublicKey::Rsa(key)) => {
                CRYPTO.rsa_pkcs1_sha256(key, message, bytes)
            }
            (Scheme::RsaSsa, HashAlg::Sha384, PublicKey::Rsa(key)) => {
                CRYPTO.rsa_pkcs1_sha384(key, message, bytes)
            }
            (Scheme::RsaPss, HashAlg::Sha256, PublicKey::Rsa(key)) => {
                CRYPTO.rsa_pss_sha256(key, message, bytes)
                    || CRYPTO.rsa_pss_sha256_long_salt(key, message, bytes)
            }
            (Scheme::RsaPss, HashAlg::Sha384, PublicKey::Rsa(key)) => {
                CRYPTO.rsa_pss_sha384(key, message, bytes)
                    || CRYPTO.rsa_pss_sha384_long_salt(key, message, bytes)
            }
            (Scheme::Ecdsa, HashAlg::Sha256, PublicKey::P256(key)) => self
                .halves()
                .is_some_and(|rs| CRYPTO.p256_sha256(key, message, &rs)),
            (Scheme::Ecdsa, HashAlg::Sha384, PublicKey::P256(key)) => self
                .halves()
                .is_some_and(|rs| CRYPTO.p256_sha384(key, message, &rs)),
            (Scheme::Ecdsa, HashAlg::Sha256, PublicKey::P384(key)) => self
                .halves()
                .is_some_and(|rs| CRYPTO.p384_sha256(key, message, &rs)),
            (Scheme::Ecdsa, HashAlg::Sha384, PublicKey::P384(key)) => self
                .halves()
                .is_some_and(|rs| CRYPTO.p384_sha384(key, message, &rs)),
            _ => false,
        }
    }
}
