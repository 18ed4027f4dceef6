//! Signature checks by aws-lc-rs.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_FIXED,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RsaPssSaltLength, UnparsedPublicKey, VerificationAlgorithm,
};
use der::Encode;
use der::asn1::UintRef;

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

/// r ‖ s as `Ecdsa-Sig-Value`, for the algorithms that only take that.
fn in_der(signature: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at(signature.len() / 2);
    vec![UintRef::new(r).ok()?, UintRef::new(s).ok()?].to_der().ok()
}

impl Crypto for AwsLc {
    fn p256_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 64]) -> bool {
        in_der(signature).is_some_and(|signature| valid(&ECDSA_P256_SHA384_ASN1, key, message, &signature))
    }

    fn p384_sha256(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        in_der(signature).is_some_and(|signature| valid(&ECDSA_P384_SHA256_ASN1, key, message, &signature))
    }

    fn rsa_pss_sha256_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let algorithm = &const { RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
        rsa_key_fits(key) && valid(algorithm, key, message, signature)
    }

    fn rsa_pss_sha384_long_salt(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let algorithm = &const { RSA_PSS_2048_8192_SHA384.with_pss_salt_length(RsaPssSaltLength::Max) };
        rsa_key_fits(key) && valid(algorithm, key, message, signature)
    }

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
