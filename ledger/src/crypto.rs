//! Public keys and signatures as the Internet Computer's interface specification knows them: Ed25519, and ECDSA with
//! SHA-256 on secp256k1 and on P-256 (what a TPM has). Pure; one implementation, so that the node, the protocol and,
//! later, the canister agree on every bit.

use candid::Principal;
use ic_ed25519::PublicKey as Ed25519;
use k256::ecdsa::signature::Verifier;
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use sha2::{Digest, Sha256};

use crate::api::HostStatement;

/// What a provider's signature over a `HostStatement` is prefixed with; the first byte is the length of the rest.
pub const HOST_DELEGATION_DOMAIN: &[u8; 23] = b"\x16decent-host-delegation";

/// Why a key or a signature isn't accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// Not the DER encoding of a key of the three kinds.
    #[error(
        "the public key is not a DER SubjectPublicKeyInfo of an Ed25519, secp256k1 or P-256 key (points uncompressed)"
    )]
    Key,
    /// Not a signature of 64 bytes.
    #[error("the signature is not a raw one of 64 bytes")]
    Format,
    /// The key did not make this signature over this message.
    #[error("the signature does not belong to this key and message")]
    Mismatch,
}

/// A parsed public key.
#[derive(Clone, Debug)]
pub struct PublicKey(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Ed25519(Ed25519),
    Secp256k1(k256::ecdsa::VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Parses a SubjectPublicKeyInfo. Only the one canonical encoding of a key is taken, so that one key is one
    /// principal.
    pub fn from_der(spki: &[u8]) -> Result<Self, CryptoError> {
        let kind = if let Ok(key) = Ed25519::deserialize_rfc8410_der(spki) {
            Kind::Ed25519(key)
        } else if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(spki) {
            Kind::P256(key)
        } else if let Ok(key) = k256::ecdsa::VerifyingKey::from_public_key_der(spki) {
            Kind::Secp256k1(key)
        } else {
            return Err(CryptoError::Key);
        };
        let key = Self(kind);
        if key.to_der()? == spki {
            Ok(key)
        } else {
            Err(CryptoError::Key)
        }
    }

    /// The SubjectPublicKeyInfo.
    fn to_der(&self) -> Result<Vec<u8>, CryptoError> {
        let document = match &self.0 {
            Kind::Ed25519(key) => return Ok(key.serialize_rfc8410_der()),
            Kind::P256(key) => key.to_public_key_der(),
            Kind::Secp256k1(key) => key.to_public_key_der(),
        };
        document
            .map(|document| document.into_vec())
            .map_err(|_| CryptoError::Key)
    }

    /// Whether this key made `signature` (64 bytes; for ECDSA r ‖ s over SHA-256 of the message).
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if signature.len() != 64 {
            return Err(CryptoError::Format);
        }
        match &self.0 {
            Kind::Ed25519(key) => key
                .verify_signature(message, signature)
                .map_err(|_| CryptoError::Mismatch),
            Kind::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .and_then(|signature| key.verify(message, &signature))
                .map_err(|_| CryptoError::Mismatch),
            // secp256k1 signers differ in which of the two valid s they give; k256 wants the low one.
            Kind::Secp256k1(key) => k256::ecdsa::Signature::from_slice(signature)
                .map(|signature| signature.normalize_s().unwrap_or(signature))
                .and_then(|signature| key.verify(message, &signature))
                .map_err(|_| CryptoError::Mismatch),
        }
    }
}

/// Checks `signature` over `message` by the key in `spki`.
pub fn verify(spki: &[u8], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    PublicKey::from_der(spki)?.verify(message, signature)
}

/// The self-authenticating principal of the key in `spki`.
pub fn principal_of(spki: &[u8]) -> Result<Principal, CryptoError> {
    PublicKey::from_der(spki).map(|_| Principal::self_authenticating(spki))
}

/// What a provider signs to let a host act for it: domain ‖ SHA-256(Candid encoding of the statement).
pub fn host_delegation_message(statement: &HostStatement) -> Result<Vec<u8>, candid::Error> {
    let mut message = HOST_DELEGATION_DOMAIN.to_vec();
    message.extend_from_slice(&Sha256::digest(candid::encode_one(statement)?));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k256::ecdsa::signature::Signer;

    fn keys() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
        let ed = ic_ed25519::PrivateKey::deserialize_raw_32(&[7; 32]);
        let p = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let k = k256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let (ps, ks): (p256::ecdsa::Signature, k256::ecdsa::Signature) = (p.sign(b"hello"), k.sign(b"hello"));
        vec![
            (
                "ed25519",
                ed.public_key().serialize_rfc8410_der(),
                ed.sign_message(b"hello").to_vec(),
            ),
            (
                "p256",
                p.verifying_key().to_public_key_der().unwrap().into_vec(),
                ps.to_vec(),
            ),
            (
                "secp256k1",
                k.verifying_key().to_public_key_der().unwrap().into_vec(),
                ks.to_vec(),
            ),
        ]
    }

    #[test]
    fn each_kind_of_key_verifies_its_own_signature_and_nothing_else() {
        for (name, key, signature) in keys() {
            assert_eq!(verify(&key, b"hello", &signature), Ok(()), "{name}");
            assert_eq!(
                verify(&key, b"hellp", &signature),
                Err(CryptoError::Mismatch),
                "{name}"
            );
            assert_eq!(
                verify(&key, b"hello", &signature[1..]),
                Err(CryptoError::Format),
                "{name}"
            );
            assert_eq!(
                verify(&key, b"hello", &[0; 64]),
                Err(CryptoError::Mismatch),
                "{name}"
            );
            assert_eq!(
                verify(&key, b"hello", &[0xff; 64]),
                Err(CryptoError::Mismatch),
                "{name}"
            );
            assert_eq!(
                verify(&key[1..], b"hello", &signature),
                Err(CryptoError::Key),
                "{name}"
            );
            let mut longer = key.clone();
            longer.push(0);
            assert_eq!(
                verify(&longer, b"hello", &signature),
                Err(CryptoError::Key),
                "{name}"
            );
        }
        assert_eq!(verify(&[], b"", &[0; 64]), Err(CryptoError::Key));
    }

    #[test]
    fn a_compressed_point_is_not_a_second_principal_of_the_same_key() {
        let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let point = key.verifying_key().to_encoded_point(true);
        let mut der = hex::decode("3039301306072a8648ce3d020106082a8648ce3d030107032200").unwrap();
        der.extend_from_slice(point.as_bytes());
        assert!(
            p256::PublicKey::from_public_key_der(&der).is_ok(),
            "well-formed, if unusual"
        );
        assert_eq!(principal_of(&der), Err(CryptoError::Key));
    }

    #[test]
    fn the_domain_carries_its_own_length() {
        assert_eq!(
            usize::from(HOST_DELEGATION_DOMAIN[0]) + 1,
            HOST_DELEGATION_DOMAIN.len()
        );
    }
}
