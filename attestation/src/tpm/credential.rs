//! A secret that only the TPM with a certain endorsement key (EK) can open, and only if a certain attestation key (AK)
//! lives in it, too (TPM 2.0 Part 1, "Credential Protection").
//!
//! Whoever trusts an EK, by its maker's certificate or because it was read at the machine itself, learns so that an AK is
//! in the same TPM: seal a random secret with [`make_credential`]; the host opens it with its TPM
//! (`TPM2_ActivateCredential`) and gives it back. Then the AK's name can be pinned.
//!
//! This draws random numbers, so it is no part of the verifier.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

use super::key::AttestationKey;
use crate::x509::PublicKey;

const SECRET_LEN_MAX: usize = 32;

/// What goes to the host: both parts as `TPM2_ActivateCredential` takes them, without their sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// `TPMS_ID_OBJECT`: the secret, encrypted and bound to the AK's name.
    pub blob: Vec<u8>,
    /// The key for it, encrypted to the EK.
    pub encrypted_seed: Vec<u8>,
}

/// Why no credential can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The endorsement key can't be used.
    #[error(
        "the endorsement key isn't an RSA key with SHA-256 names, as the TCG's default template makes it"
    )]
    EndorsementKey,
    /// The attestation key's name isn't known.
    #[error("the attestation key came without its TPM form, so it has no name")]
    NoName,
    /// Too long.
    #[error("a secret of {len} bytes (1 to {SECRET_LEN_MAX})")]
    Secret {
        /// Its length.
        len: usize,
    },
    /// No random numbers.
    #[error("the cryptography failed")]
    Crypto,
}

/// Seals `secret` (1 to 32 bytes) to the TPM of the endorsement key `ek` (`TPMT_PUBLIC` or `TPM2B_PUBLIC`, RSA) and to the
/// attestation key `ak`.
pub fn make_credential(ek: &[u8], ak: &AttestationKey, secret: &[u8]) -> Result<Credential, CredentialError> {
    let ek = AttestationKey::parse(ek).map_err(|_| CredentialError::EndorsementKey)?;
    let sha256_names = ek.name().is_some_and(|name| name.starts_with(&[0x00, 0x0b]));
    if !sha256_names || !matches!(ek.key, PublicKey::Rsa(_)) {
        return Err(CredentialError::EndorsementKey);
    }
    let name = ak.name().ok_or(CredentialError::NoName)?;
    if !(1..=SECRET_LEN_MAX).contains(&secret.len()) {
        return Err(CredentialError::Secret { len: secret.len() });
    }
    let mut seed = [0; 32];
    let random = SystemRandom::new();
    random.fill(&mut seed).map_err(|_| CredentialError::Crypto)?;
    let encrypted_seed = encrypt_seed(&ek, &seed).ok_or(CredentialError::Crypto)?;
    let sized = [&(secret.len() as u16).to_be_bytes(), secret].concat();
    let encrypted = encrypt_secret(&seed, name, sized).ok_or(CredentialError::Crypto)?;
    let key = kdfa(&seed, "INTEGRITY", &[], 256);
    let integrity = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &key),
        &[&encrypted, name].concat(),
    );
    let blob = [&32u16.to_be_bytes(), integrity.as_ref(), &encrypted].concat();
    Ok(Credential { blob, encrypted_seed })
}

fn encrypt_seed(ek: &AttestationKey, seed: &[u8; 32]) -> Option<Vec<u8>> {
    let key = PublicEncryptingKey::from_der(&ek.spki()).ok()?;
    let key = OaepPublicEncryptingKey::new(key).ok()?;
    let mut out = vec![0; key.ciphertext_size()];
    let algorithm = &OAEP_SHA256_MGF1SHA256;
    key.encrypt(algorithm, seed, &mut out, Some(b"IDENTITY\0")).ok()?;
    Some(out)
}

/// AES-128 in CFB mode with a vector of zeros, which is sound because the key is used once.
fn encrypt_secret(seed: &[u8; 32], name: &[u8], mut secret: Vec<u8>) -> Option<Vec<u8>> {
    let key = kdfa(seed, "STORAGE", name, 128);
    let key = UnboundCipherKey::new(&AES_128, &key).ok()?;
    let key = EncryptingKey::cfb128(key).ok()?;
    let zeros = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    key.less_safe_encrypt(&mut secret, zeros).ok()?;
    Some(secret)
}

/// KDFa (Part 1, "Key Derivation Function") with HMAC-SHA-256, for at most 256 bits.
fn kdfa(key: &[u8], label: &str, context: &[u8], bits: u32) -> Vec<u8> {
    let (counter, bits_field) = (1u32.to_be_bytes(), bits.to_be_bytes());
    let message = [&counter, label.as_bytes(), &[0], context, &bits_field].concat();
    let digest = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &message);
    digest.as_ref()[..bits as usize / 8].to_vec()
}
