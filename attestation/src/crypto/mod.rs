//! The three signature checks that evidence needs, behind one trait: aws-lc-rs where it runs, RustCrypto elsewhere
//! (wasm32). Both give the same verdicts; a test compares them.

#[cfg(feature = "native")]
mod native;
#[cfg(all(feature = "rustcrypto", any(test, not(feature = "native"))))]
mod rustcrypto;

/// Signature checks. Keys and signatures come as the formats carry them; anything unreadable is simply not valid.
pub(crate) trait Crypto {
    /// ECDSA P-384 with SHA-384. `key`: SEC 1, uncompressed (97 bytes); `signature`: r ‖ s, 48 bytes each, big-endian.
    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool;

    /// RSASSA-PSS with SHA-384, MGF1-SHA-384, salt of 48 bytes. `key`: PKCS #1 `RSAPublicKey` (DER), 4096 bits.
    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;
}

/// The implementation of this build.
#[cfg(feature = "native")]
pub(crate) const CRYPTO: &dyn Crypto = &native::AwsLc;
#[cfg(all(feature = "rustcrypto", not(feature = "native")))]
pub(crate) const CRYPTO: &dyn Crypto = &rustcrypto::RustCrypto;
#[cfg(not(any(feature = "native", feature = "rustcrypto")))]
pub(crate) const CRYPTO: &dyn Crypto = &NoCrypto;

/// For the guest agent, which carries evidence and judges none: nothing verifies.
#[cfg(not(any(feature = "native", feature = "rustcrypto")))]
pub(crate) struct NoCrypto;

#[cfg(not(any(feature = "native", feature = "rustcrypto")))]
impl Crypto for NoCrypto {
    fn p384_sha384(&self, _: &[u8], _: &[u8], _: &[u8; 96]) -> bool {
        false
    }

    fn rsa_pss_sha384(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }
}
