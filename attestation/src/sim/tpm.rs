//! A simulated TPM: an attestation key in software that signs quotes in the real format.

use std::collections::BTreeMap;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RSA_PSS_SHA384, RsaKeyPair, RsaPssSaltLength,
};

use super::SimError;
use super::certificates::Issuer;
use crate::eventlog::HashAlg;
use crate::tpm::{PcrValues, TpmEvidence};

/// `fixedTPM`, `fixedParent`, `sensitiveDataOrigin`, `userWithAuth`, `restricted`, `sign`: what an attestation key has.
pub const AK_ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 18;
const ENDORSEMENT: u32 = 0x4000_000b;

/// What a simulated attestation key signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AkKind {
    /// ECDSA P-256 with SHA-256.
    P256,
    /// ECDSA P-384 with SHA-384.
    P384,
    /// RSA-2048, RSASSA with SHA-256.
    RsaSsa,
    /// RSA-2048, RSAPSS with SHA-384 and a salt as long as the digest.
    RsaPss,
    /// RSA-2048, RSAPSS with SHA-256 and the longest salt.
    RsaPssLongSalt,
}

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// One simulated TPM.
pub struct Tpm {
    kind: AkKind,
    key: Key,
    attributes: u32,
    clock: u64,
}

impl Tpm {
    /// A new TPM with an attestation key of its own.
    pub fn create(kind: AkKind) -> Result<Self, SimError> {
        let ec = |algorithm| EcdsaKeyPair::generate(algorithm).map(Key::Ec);
        let key = match kind {
            AkKind::P256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            AkKind::P384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            AkKind::RsaSsa | AkKind::RsaPss | AkKind::RsaPssLongSalt => {
                RsaKeyPair::generate(KeySize::Rsa2048).map(Key::Rsa)
            }
        };
        Ok(Self {
            kind,
            key: key.map_err(|_| SimError("cannot make an attestation key"))?,
            attributes: AK_ATTRIBUTES,
            clock: 1000,
        })
    }

    /// The same key with other attributes: what a real TPM wouldn't sign quotes with.
    pub fn with_attributes(mut self, attributes: u32) -> Self {
        self.attributes = attributes;
        self
    }

    /// `TPMT_PUBLIC` of the attestation key.
    pub fn public_area(&self) -> Vec<u8> {
        let mut area = Vec::new();
        let mut put = |number: u16| area.extend(number.to_be_bytes());
        let (kind, scheme, hash) = match self.kind {
            AkKind::P256 => (0x0023, 0x0018, 0x000b),
            AkKind::P384 => (0x0023, 0x0018, 0x000c),
            AkKind::RsaSsa => (0x0001, 0x0014, 0x000b),
            AkKind::RsaPss => (0x0001, 0x0016, 0x000c),
            AkKind::RsaPssLongSalt => (0x0001, 0x0016, 0x000b),
        };
        put(kind);
        put(0x000b); // names by SHA-256
        put((self.attributes >> 16) as u16);
        put(self.attributes as u16);
        put(0); // no policy
        put(0x0010); // no symmetric part
        put(scheme);
        put(hash);
        match &self.key {
            Key::Ec(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                put(if self.kind == AkKind::P256 { 3 } else { 4 });
                put(0x0010); // no key derivation
                put(x.len() as u16);
                area.extend(x);
                area.extend((y.len() as u16).to_be_bytes());
                area.extend(y);
            }
            Key::Rsa(key) => {
                let modulus = key.public_key().modulus().big_endian_without_leading_zero();
                put(2048);
                area.extend([0; 4]); // the usual exponent
                area.extend((modulus.len() as u16).to_be_bytes());
                area.extend(modulus);
            }
        }
        area
    }

    /// The key's name.
    pub fn name(&self) -> Vec<u8> {
        let digest = HashAlg::Sha256.digest(&[&self.public_area()]);
        [&[0, 0x0b], digest.unwrap_or_default().as_slice()].concat()
    }

    /// SubjectPublicKeyInfo of the attestation key, DER.
    pub fn spki(&self) -> Result<Vec<u8>, SimError> {
        let spki: Result<PublicKeyX509Der<'_>, _> = match &self.key {
            Key::Ec(key) => key.public_key().as_der(),
            Key::Rsa(key) => key.public_key().as_der(),
        };
        spki.map(|der| der.as_ref().to_vec())
            .map_err(|_| SimError("cannot encode the attestation key"))
    }

    /// `TPMS_ATTEST` over all of `pcrs`, with `extra` as qualifying data.
    pub fn attest(&self, pcrs: &PcrValues, extra: &[u8]) -> Vec<u8> {
        let name = self.name();
        let qualified = HashAlg::Sha256
            .digest(&[&ENDORSEMENT.to_be_bytes(), &name])
            .unwrap_or_default();
        let mut out = [0xff54_4347u32.to_be_bytes().as_slice(), &0x8018u16.to_be_bytes()].concat();
        out.extend(34u16.to_be_bytes());
        out.extend([0, 0x0b]);
        out.extend(qualified);
        out.extend((extra.len() as u16).to_be_bytes());
        out.extend(extra);
        out.extend(self.clock.to_be_bytes());
        out.extend([0, 0, 0, 7, 0, 0, 0, 1, 1]); // 7 resets, 1 restart, a safe clock
        out.extend(0x0001_0002_0003_0004u64.to_be_bytes());
        out.extend((pcrs.len() as u32).to_be_bytes());
        for (bank, values) in pcrs {
            let bits = values.keys().fold(0u32, |bits, pcr| bits | 1 << pcr);
            out.extend(bank.id().to_be_bytes());
            out.push(3);
            out.extend(&bits.to_le_bytes()[..3]);
        }
        let values: Vec<&[u8]> = pcrs
            .values()
            .flat_map(BTreeMap::values)
            .map(Vec::as_slice)
            .collect();
        let hash = match self.kind {
            AkKind::P256 | AkKind::RsaSsa | AkKind::RsaPssLongSalt => HashAlg::Sha256,
            AkKind::P384 | AkKind::RsaPss => HashAlg::Sha384,
        };
        let digest = hash.digest(&values).unwrap_or_default();
        out.extend((digest.len() as u16).to_be_bytes());
        out.extend(digest);
        out
    }

    /// `TPMT_SIGNATURE` over any bytes: this is how tests forge what a TPM wouldn't sign.
    pub fn sign(&self, attest: &[u8]) -> Result<Vec<u8>, SimError> {
        let cannot = |_| SimError("cannot sign a quote");
        let (scheme, hash): (u16, u16) = match self.kind {
            AkKind::P256 => (0x0018, 0x000b),
            AkKind::P384 => (0x0018, 0x000c),
            AkKind::RsaSsa => (0x0014, 0x000b),
            AkKind::RsaPss => (0x0016, 0x000c),
            AkKind::RsaPssLongSalt => (0x0016, 0x000b),
        };
        let mut out = [scheme.to_be_bytes(), hash.to_be_bytes()].concat();
        let mut sized = |bytes: &[u8]| {
            out.extend((bytes.len() as u16).to_be_bytes());
            out.extend(bytes);
        };
        match &self.key {
            Key::Ec(key) => {
                let signature = key.sign(&SystemRandom::new(), attest).map_err(cannot)?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                sized(r);
                sized(s);
            }
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let random = SystemRandom::new();
                match self.kind {
                    AkKind::RsaPss => key.sign(&RSA_PSS_SHA384, &random, attest, &mut signature),
                    AkKind::RsaPssLongSalt => {
                        let scheme = &const { RSA_PSS_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
                        key.sign(scheme, &random, attest, &mut signature)
                    }
                    _ => key.sign(&RSA_PKCS1_SHA256, &random, attest, &mut signature),
                }
                .map_err(cannot)?;
                sized(&signature);
            }
        }
        Ok(out)
    }

    /// Evidence over `pcrs` with `extra` as qualifying data; without certificates and logs.
    pub fn evidence(&self, pcrs: &PcrValues, extra: &[u8]) -> Result<TpmEvidence, SimError> {
        let quote = self.attest(pcrs, extra);
        Ok(TpmEvidence {
            signature: self.sign(&quote)?,
            quote,
            ak: self.public_area(),
            pcrs: pcrs.clone(),
            ..TpmEvidence::default()
        })
    }
}

/// A maker of TPMs, or whoever else certifies attestation keys.
pub struct AkIssuer {
    issuer: Issuer,
    root: Vec<u8>,
}

impl AkIssuer {
    /// A new root. Takes a second: an RSA-4096 key is made.
    pub fn create() -> Result<Self, SimError> {
        let issuer = Issuer::generate("TPM CA".to_owned())?;
        let root = issuer.certify_ca(&issuer, 1)?;
        Ok(Self { issuer, root })
    }

    /// Its certificate (DER).
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// A certificate for an attestation key (serial 77). `usage`: arcs of an extended key usage, if there is to be one;
    /// `2.23.133.8.3` is the attestation key's.
    pub fn certify(&self, spki: &[u8], usage: Option<&[u32]>) -> Result<Vec<u8>, SimError> {
        self.issuer.certify_ak(spki, usage)
    }

    /// A list of revoked serial numbers, as [`super::CrlIssuer::crl`].
    pub fn into_crl_issuer(self) -> super::CrlIssuer {
        super::CrlIssuer(self.issuer)
    }
}
