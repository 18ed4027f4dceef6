//! Signature checks by aws-lc-rs.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};

use super::Crypto;

pub(crate) struct AwsLc;

impl Crypto for AwsLc {
    fn p384_sha384(&self, key: &[u8], message: &[u8], signature: &[u8; 96]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
            .verify(message, signature)
            .is_ok()
    }

    fn rsa_pss_sha384(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key)
            .verify(message, signature)
            .is_ok()
    }
}
