//! The signature checks that evidence needs, behind one trait: aws-lc-rs where it runs, RustCrypto elsewhere
//! (wasm32). Both give the same verdicts; a test compares them.

mod memory;
#[cfg(feature = "native")]
mod native;
#[cfg(all(feature = "rustcrypto", any(test, not(feature = "native"))))]
mod rustcrypto;

#[cfg(feature = "sim")]
pub use memory::forget_signatures;
pub(crate) use memory::{Statement, remembered};

/// Signature checks. Keys and signatures come as the formats carry them; anything unreadable is simply not valid.
///
/// EC keys: SEC 1, uncompressed; ECDSA signatures: r ‖ s, big-endian. RSA keys: PKCS #1 `RSAPublicKey` (DER) of 2048 to
/// 4096 bits.
pub(crate) trait Crypto {
    /// ECDSA P-256 with SHA-256.
    fn p256_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool;

    /// ECDSA P-384 with SHA-384.
    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool;

    /// ECDSA P-256 with SHA-384.
    fn p256_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool;

    /// ECDSA P-384 with SHA-256.
    fn p384_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool;

    /// RSASSA-PSS with SHA-256, MGF1-SHA-256, salt of 32 bytes.
    fn rsa_pss_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// RSASSA-PSS with SHA-256, MGF1-SHA-256, the longest salt that the key has room for.
    fn rsa_pss_sha256_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// RSASSA-PSS with SHA-384, MGF1-SHA-384, the longest salt that the key has room for.
    fn rsa_pss_sha384_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// RSASSA-PSS with SHA-384, MGF1-SHA-384, salt of 48 bytes.
    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// RSASSA-PKCS1-v1_5 with SHA-256.
    fn rsa_pkcs1_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;

    /// RSASSA-PKCS1-v1_5 with SHA-384.
    fn rsa_pkcs1_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool;
}

/// Whether the DER of a PKCS #1 key can hold a modulus of 2048 to 4096 bits: both implementations then judge alike.
#[cfg(any(feature = "native", feature = "rustcrypto"))]
fn rsa_key_fits(key: &[u8]) -> bool {
    (266..=530).contains(&key.len())
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
    fn p256_sha256(&self, _: &[u8], _: &[u8], _: &[u8; 64]) -> bool {
        false
    }

    fn p384_sha384(&self, _: &[u8], _: &[u8], _: &[u8; 96]) -> bool {
        false
    }

    fn p256_sha384(&self, _: &[u8], _: &[u8], _: &[u8; 64]) -> bool {
        false
    }

    fn p384_sha256(&self, _: &[u8], _: &[u8], _: &[u8; 96]) -> bool {
        false
    }

    fn rsa_pss_sha256(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn rsa_pss_sha256_long_salt(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn rsa_pss_sha384_long_salt(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn rsa_pss_sha384(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn rsa_pkcs1_sha256(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn rsa_pkcs1_sha384(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        false
    }
}

#[cfg(all(test, feature = "native", feature = "rustcrypto"))]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair};

    use super::*;

    const BOTH: [&dyn Crypto; 2] = [&native::AwsLc, &rustcrypto::RustCrypto];

    /// A good signature and what becomes of it when bits or numbers change: all but the first are invalid.
    fn ecdsa_cases<const N: usize>(good: [u8; N]) -> [(&'static str, [u8; N]); 5] {
        let half = N / 2;
        let changed = |change: &dyn Fn(&mut [u8; N])| {
            let mut signature = good;
            change(&mut signature);
            signature
        };
        [
            ("good", good),
            ("r = 0", changed(&|s| s[..half].fill(0))),
            ("s = 0", changed(&|s| s[half..].fill(0))),
            ("r ≥ n", changed(&|s| s[..half].fill(0xff))),
            ("one bit", changed(&|s| s[20] ^= 1)),
        ]
    }

    #[test]
    fn both_implementations_give_the_same_verdicts_on_ecdsa() {
        let message = b"a message";
        let random = SystemRandom::new();
        let p384 = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let p256 = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let (point_384, point_256) = (p384.public_key().as_ref(), p256.public_key().as_ref());
        for crypto in BOTH {
            let good = p384.sign(&random, message).unwrap().as_ref().try_into().unwrap();
            for (row, rs) in ecdsa_cases::<96>(good) {
                let check = |key: &[u8], message: &[u8]| crypto.p384_sha384(key, message, &rs);
                assert_eq!(check(point_384, message), row == "good", "P-384 {row}");
                for (key, message) in [
                    (point_384, &b"another"[..]),
                    (&[], message),
                    (&point_384[1..], message),
                ] {
                    assert!(!check(key, message), "P-384 {row}");
                }
                assert!(!check(point_256, message), "P-384 {row}, a key of P-256");
            }
            let good = p256.sign(&random, message).unwrap().as_ref().try_into().unwrap();
            for (row, rs) in ecdsa_cases::<64>(good) {
                let check = |key: &[u8], message: &[u8]| crypto.p256_sha256(key, message, &rs);
                assert_eq!(check(point_256, message), row == "good", "P-256 {row}");
                for (key, message) in [
                    (point_256, &b"another"[..]),
                    (&[], message),
                    (&point_256[1..], message),
                ] {
                    assert!(!check(key, message), "P-256 {row}");
                }
                assert!(!check(point_384, message), "P-256 {row}, a key of P-384");
            }
        }
    }

    #[test]
    fn both_implementations_take_a_digest_of_another_length_than_the_curves() {
        use p384::ecdsa::signature::hazmat::PrehashSigner;
        use sha2::{Digest, Sha256, Sha384};
        let message = b"a message";
        let p256 = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let p384 = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
        let (key_256, key_384) = (
            p256.verifying_key().to_sec1_point(false),
            p384.verifying_key().to_sec1_point(false),
        );
        let long: p256::ecdsa::Signature = p256.sign_prehash(&Sha384::digest(message)).unwrap();
        let short: p384::ecdsa::Signature = p384.sign_prehash(&Sha256::digest(message)).unwrap();
        for crypto in BOTH {
            for (row, rs) in ecdsa_cases::<64>(long.to_bytes().into()) {
                let good = crypto.p256_sha384(key_256.as_bytes(), message, &rs);
                assert_eq!(good, row == "good", "P-256 {row}");
                assert!(!crypto.p256_sha384(key_256.as_bytes(), b"another", &rs));
                assert!(!crypto.p256_sha256(key_256.as_bytes(), message, &rs));
            }
            for (row, rs) in ecdsa_cases::<96>(short.to_bytes().into()) {
                let good = crypto.p384_sha256(key_384.as_bytes(), message, &rs);
                assert_eq!(good, row == "good", "P-384 {row}");
                assert!(!crypto.p384_sha256(key_384.as_bytes(), b"another", &rs));
                assert!(!crypto.p384_sha384(key_384.as_bytes(), message, &rs));
            }
        }
    }

    #[test]
    fn both_implementations_give_the_same_verdicts_on_rsa() {
        type Check = fn(&dyn Crypto, &[u8], &[u8], &[u8]) -> bool;
        use signature::RsaPssSaltLength::Max;
        let schemes: [(&str, &dyn signature::RsaEncoding, Check); 6] = [
            (
                "PSS SHA-256, long salt",
                &const { signature::RSA_PSS_SHA256.with_pss_salt_length(Max) },
                |c, k, m, s| c.rsa_pss_sha256_long_salt(k, m, s),
            ),
            (
                "PSS SHA-384, long salt",
                &const { signature::RSA_PSS_SHA384.with_pss_salt_length(Max) },
                |c, k, m, s| c.rsa_pss_sha384_long_salt(k, m, s),
            ),
            ("PSS SHA-256", &signature::RSA_PSS_SHA256, |c, k, m, s| {
                c.rsa_pss_sha256(k, m, s)
            }),
            ("PSS SHA-384", &signature::RSA_PSS_SHA384, |c, k, m, s| {
                c.rsa_pss_sha384(k, m, s)
            }),
            ("PKCS1 SHA-256", &signature::RSA_PKCS1_SHA256, |c, k, m, s| {
                c.rsa_pkcs1_sha256(k, m, s)
            }),
            ("PKCS1 SHA-384", &signature::RSA_PKCS1_SHA384, |c, k, m, s| {
                c.rsa_pkcs1_sha384(k, m, s)
            }),
        ];
        let message = b"a message";
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = key.public_key().as_ref();
        assert_eq!(
            PublicKeyComponents::<Vec<u8>>::from(key.public_key()).n.len(),
            256
        );
        for (signed_by, encoding, _) in schemes {
            let mut good = vec![0; key.public_modulus_len()];
            key.sign(encoding, &SystemRandom::new(), message, &mut good)
                .unwrap();
            let mut flipped = good.clone();
            flipped[100] ^= 4;
            for (checked_by, _, check) in schemes {
                for crypto in BOTH {
                    let row = format!("signed by {signed_by}, checked by {checked_by}");
                    assert_eq!(
                        check(crypto, public, message, &good),
                        signed_by == checked_by,
                        "{row}"
                    );
                    assert!(!check(crypto, public, b"another", &good), "{row}");
                    assert!(!check(crypto, public, message, &flipped), "{row}");
                    assert!(!check(crypto, public, message, &good[1..]), "{row}");
                    assert!(!check(crypto, &public[1..], message, &good), "{row}");
                    assert!(!check(crypto, &[], message, &good), "{row}");
                }
            }
        }
    }

    #[test]
    fn both_implementations_believe_amds_certificates() {
        use crate::x509::{Cert, PublicKey};
        for shipped in crate::roots::AMD {
            for der in [shipped.ask, shipped.asvk] {
                let (cert, issuer) = (Cert::parse(der).unwrap(), Cert::parse(shipped.ark).unwrap());
                let PublicKey::Rsa(key) = &issuer.key else {
                    panic!("AMD's CAs have RSA keys")
                };
                let (tbs, signature) = cert.signed.parts();
                for crypto in BOTH {
                    assert!(crypto.rsa_pss_sha384(key, tbs, signature));
                    assert!(!crypto.rsa_pss_sha384(key, &tbs[1..], signature));
                    assert!(!crypto.rsa_pss_sha384(key, tbs, &signature[1..]));
                    assert!(!crypto.rsa_pss_sha384(&[], tbs, signature));
                }
            }
        }
    }
}
