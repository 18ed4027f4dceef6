//! Signature checks in pure Rust, for wasm32.

use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};
use rsa::RsaPublicKey;
use rsa::pkcs1::DecodeRsaPublicKey;
use sha2::Sha384;

use super::Crypto;

pub(crate) struct RustCrypto;

impl Crypto for RustCrypto {
    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        let (Ok(key), Ok(signature)) = (
            VerifyingKey::from_sec1_bytes(key),
            Signature::from_slice(signature),
        ) else {
            return false;
        };
        key.verify(message, &signature).is_ok()
    }

    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let (Ok(key), Ok(signature)) = (
            RsaPublicKey::from_pkcs1_der(key),
            rsa::pss::Signature::try_from(signature),
        ) else {
            return false;
        };
        rsa::pss::VerifyingKey::<Sha384>::new(key)
            .verify(message, &signature)
            .is_ok()
    }
}
