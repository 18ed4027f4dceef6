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

#[cfg(all(test, feature = "native", feature = "rustcrypto"))]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    #[test]
    fn both_implementations_give_the_same_verdicts() {
        let both: [&dyn Crypto; 2] = [&native::AwsLc, &rustcrypto::RustCrypto];
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let (message, point) = (b"a message", key.public_key().as_ref());
        let good: [u8; 96] = key
            .sign(&SystemRandom::new(), message)
            .unwrap()
            .as_ref()
            .try_into()
            .unwrap();
        let mut zero_r = good;
        zero_r[..48].fill(0);
        let mut zero_s = good;
        zero_s[48..].fill(0);
        let mut large = good;
        large[..48].fill(0xff);
        let mut flipped = good;
        flipped[20] ^= 1;
        for (row, signature, want) in [
            ("good", good, true),
            ("r = 0", zero_r, false),
            ("s = 0", zero_s, false),
            ("r ≥ n", large, false),
            ("one bit", flipped, false),
        ] {
            for crypto in both {
                assert_eq!(crypto.p384_sha384(point, message, &signature), want, "{row}");
                assert!(
                    !crypto.p384_sha384(point, b"another", &signature),
                    "{row}, another message"
                );
                assert!(!crypto.p384_sha384(&[], message, &signature), "{row}, no key");
                assert!(
                    !crypto.p384_sha384(&point[1..], message, &signature),
                    "{row}, short key"
                );
            }
        }
    }

    #[test]
    fn both_implementations_believe_amds_certificates() {
        for shipped in crate::roots::SHIPPED {
            for der in [shipped.ask, shipped.asvk] {
                let (tbs, signature, key) = crate::snp::signed_parts_of(der, shipped.ark);
                for crypto in [&native::AwsLc as &dyn Crypto, &rustcrypto::RustCrypto] {
                    assert!(crypto.rsa_pss_sha384(&key, &tbs, &signature));
                    assert!(!crypto.rsa_pss_sha384(&key, &tbs[1..], &signature));
                    assert!(!crypto.rsa_pss_sha384(&key, &tbs, &signature[1..]));
                    assert!(!crypto.rsa_pss_sha384(&[], &tbs, &signature));
                }
            }
        }
    }
}
