//! Signature checks in pure Rust, for wasm32.

use p384::ecdsa::signature::Verifier;
use p384::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::RsaPublicKey;
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256, Sha384};

use super::{Crypto, rsa_key_fits};

pub(crate) struct RustCrypto;

fn rsa_key(key: &[u8]) -> Option<RsaPublicKey> {
    RsaPublicKey::from_pkcs1_der(key)
        .ok()
        .filter(|_| rsa_key_fits(key))
}

/// The curve's own type of signature and key don't share a trait with a constructor, so the shape is written once here.
macro_rules! ecdsa {
    ($curve:ident, $key:expr, $message:expr, $signature:expr) => {{
        let (key, signature) = (
            $curve::ecdsa::VerifyingKey::from_sec1_bytes($key),
            $curve::ecdsa::Signature::from_slice($signature),
        );
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify($message, &signature).is_ok())
    }};
}

macro_rules! rsa {
    ($scheme:ident, $hash:ty, $key:expr, $message:expr, $signature:expr) => {{
        let key = rsa_key($key).map(rsa::$scheme::VerifyingKey::<$hash>::new);
        let signature = rsa::$scheme::Signature::try_from($signature);
        matches!((key, signature), (Some(key), Ok(signature)) if key.verify($message, &signature).is_ok())
    }};
}

/// The same for a digest of another length than the curve's.
macro_rules! ecdsa_of_digest {
    ($curve:ident, $key:expr, $digest:expr, $signature:expr) => {{
        let (key, signature) = (
            $curve::ecdsa::VerifyingKey::from_sec1_bytes($key),
            $curve::ecdsa::Signature::from_slice($signature),
        );
        matches!((key, signature), (Ok(key), Ok(signature)) if key.verify_prehash(&$digest, &signature).is_ok())
    }};
}

/// With the longest salt that the key has room for (RFC 8017, 9.1.1: emLen − hLen − 2).
macro_rules! rsa_long_salt {
    ($hash:ty, $key:expr, $message:expr, $signature:expr) => {{
        let key = rsa_key($key).and_then(|key| {
            let len = (key.n_bits_precision() as usize + 6) / 8;
            let salt = len.checked_sub(<$hash>::output_size() + 2)?;
            Some(rsa::pss::VerifyingKey::<$hash>::new_with_salt_len(key, salt))
        });
        let signature = rsa::pss::Signature::try_from($signature);
        matches!((key, signature), (Some(key), Ok(signature)) if key.verify($message, &signature).is_ok())
    }};
}

impl Crypto for RustCrypto {
    fn p256_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
        ecdsa_of_digest!(p256, key, Sha384::digest(message), signature)
    }

    fn p384_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        ecdsa_of_digest!(p384, key, Sha256::digest(message), signature)
    }

    fn rsa_pss_sha256_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_long_salt!(Sha256, key, message, signature)
    }

    fn rsa_pss_sha384_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_long_salt!(Sha384, key, message, signature)
    }

    fn p256_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
        ecdsa!(p256, key, message, signature)
    }

    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        ecdsa!(p384, key, message, signature)
    }

    fn rsa_pss_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa!(pss, Sha256, key, message, signature)
    }

    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa!(pss, Sha384, key, message, signature)
    }

    fn rsa_pkcs1_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa!(pkcs1v15, Sha256, key, message, signature)
    }

    fn rsa_pkcs1_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa!(pkcs1v15, Sha384, key, message, signature)
    }
}
