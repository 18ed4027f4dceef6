//! Signature checks by aws-lc-rs.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey, VerificationAlgorithm,
};

use super::{Crypto, rsa_key_fits};

pub(crate) struct AwsLc;

fn valid(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    UnparsedPublicKey::new(algorithm, key)
        .verify(message, signature)
        .is_ok()
}

impl Crypto for AwsLc {
    fn p256_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
        valid(&ECDSA_P256_SHA256_FIXED, key, message, signature)
    }

    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        valid(&ECDSA_P384_SHA384_FIXED, key, message, signature)
    }

    fn rsa_pss_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_key_fits(key) && valid(&RSA_PSS_2048_8192_SHA256, key, message, signature)
    }

    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_key_fits(key) && valid(&RSA_PSS_2048_8192_SHA384, key, message, signature)
    }

    fn rsa_pkcs1_sha256(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_key_fits(key) && valid(&RSA_PKCS1_2048_8192_SHA256, key, message, signature)
    }

    fn rsa_pkcs1_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        rsa_key_fits(key) && valid(&RSA_PKCS1_2048_8192_SHA384, key, message, signature)
    }
}
