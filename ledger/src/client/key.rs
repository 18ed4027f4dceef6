//! Private keys as PEM files, and what they sign outside of ordinary calls.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use candid::Principal;
use ic_agent::Identity;
use ic_agent::identity::{AnonymousIdentity, BasicIdentity, Prime256v1Identity, Secp256k1Identity};
use p256::pkcs8::{EncodePrivateKey, LineEnding};

use crate::api::{HostDelegation, HostStatement};
use crate::crypto;

/// The DER encodings of the algorithm (Ed25519) or curve identifiers, by which a PEM file's kind is known.
const OIDS: [(KeyKind, &[u8]); 3] = [
    (KeyKind::Ed25519, &[0x06, 0x03, 0x2b, 0x65, 0x70]),
    (
        KeyKind::P256,
        &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
    ),
    (KeyKind::Secp256k1, &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a]),
];

/// The largest key file that is read.
const KEY_FILE_MAX: u64 = 16 * 1024;

/// The kinds of key that the Internet Computer's interface takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RFC 8032: the default.
    Ed25519,
    /// NIST P-256, as TPMs have it.
    P256,
    /// The curve of Bitcoin and of `icp`'s default identities.
    Secp256k1,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ed25519 => "ed25519",
            Self::P256 => "p256",
            Self::Secp256k1 => "secp256k1",
        })
    }
}

impl FromStr for KeyKind {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        OIDS.iter()
            .map(|(kind, _)| *kind)
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| KeyError::Kind {
                found: text.to_owned(),
            })
    }
}

/// What can go wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Unknown kind.
    #[error("unknown kind of key {found:?}: ed25519, p256 or secp256k1")]
    Kind {
        /// What was given.
        found: String,
    },
    /// The file can't be read or written.
    #[error("cannot access key file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no key.
    #[error(
        "{what}; expected an unencrypted PEM private key (PKCS#8 or SEC1) of kind ed25519, p256 or secp256k1, \
         as `decent key new` makes it"
    )]
    Pem {
        /// What is wrong.
        what: String,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// A private key, or nobody (anonymous). Cheap to clone. Never shown: `Debug` prints the principal.
#[derive(Clone)]
pub struct Key {
    identity: Arc<dyn Identity>,
    principal: Principal,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.principal)
    }
}

impl Key {
    /// Nobody: enough to read.
    pub fn anonymous() -> Self {
        Self {
            identity: Arc::new(AnonymousIdentity),
            principal: Principal::anonymous(),
        }
    }

    /// Any identity of `ic-agent`, for instance one whose key is in a TPM.
    pub fn from_identity(identity: Arc<dyn Identity>) -> Result<Self, KeyError> {
        let principal = identity.sender().map_err(KeyError::Sign)?;
        Ok(Self { identity, principal })
    }

    /// Makes a new key; the answer is its PEM text (PKCS#8 of version 1, which OpenSSL reads too), a secret.
    pub fn generate(kind: KeyKind) -> Result<String, KeyError> {
        // A random scalar is outside the curve's order with a chance below 2⁻³²; then another one is drawn.
        for _ in 0..8 {
            let mut secret = [0u8; 32];
            getrandom::fill(&mut secret).map_err(|error| KeyError::Random(error.to_string()))?;
            let pem = match kind {
                KeyKind::Ed25519 => Some(
                    ic_ed25519::PrivateKey::deserialize_raw_32(&secret)
                        .serialize_pkcs8_pem(ic_ed25519::PrivateKeyFormat::Pkcs8v1),
                ),
                KeyKind::P256 => p256::SecretKey::from_slice(&secret)
                    .ok()
                    .and_then(|key| key.to_pkcs8_pem(LineEnding::LF).ok())
                    .map(|pem| pem.to_string()),
                KeyKind::Secp256k1 => k256::SecretKey::from_slice(&secret)
                    .ok()
                    .and_then(|key| key.to_pkcs8_pem(LineEnding::LF).ok())
                    .map(|pem| pem.to_string()),
            };
            if let Some(pem) = pem {
                return Ok(pem);
            }
        }
        Err(KeyError::Random(
            "eight draws gave no valid scalar: the generator is broken".to_owned(),
        ))
    }

    /// Makes a new key and keeps it in a new file that only its owner may read. Never overwrites.
    pub fn create(kind: KeyKind, path: &Path) -> Result<Self, KeyError> {
        let pem = Self::generate(kind)?;
        let at = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(at)?;
        file.write_all(pem.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(at)?;
        Self::from_pem(&pem)
    }

    /// Reads a PEM file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        use std::io::Read;
        let at = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .map_err(at)?
            .take(KEY_FILE_MAX)
            .read_to_string(&mut text)
            .map_err(at)?;
        Self::from_pem(&text)
    }

    /// Parses PEM text: PKCS#8 of the three kinds, or SEC1 of the two ECDSA kinds.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let (kind, pem) = private_key_block(text)?;
        let invalid = |error: String| KeyError::Pem {
            what: format!("not a valid {kind} key: {error}"),
        };
        let identity: Arc<dyn Identity> = match kind {
            KeyKind::Ed25519 => {
                // Parsed here first: ic-agent's own parser doesn't look at the algorithm and may index out of bounds.
                let key = ic_ed25519::PrivateKey::deserialize_pkcs8_pem(&pem)
                    .map_err(|error| invalid(format!("{error:?}")))?;
                Arc::new(BasicIdentity::from_raw_key(&key.serialize_raw()))
            }
            KeyKind::P256 => {
                Arc::new(Prime256v1Identity::from_pem(&pem).map_err(|error| invalid(error.to_string()))?)
            }
            KeyKind::Secp256k1 => {
                Arc::new(Secp256k1Identity::from_pem(&pem).map_err(|error| invalid(error.to_string()))?)
            }
        };
        Self::from_identity(identity)
    }

    /// Who signs with this key.
    pub fn principal(&self) -> Principal {
        self.principal
    }

    /// The public key as DER SubjectPublicKeyInfo; none for nobody.
    pub fn public_key(&self) -> Option<Vec<u8>> {
        self.identity.public_key()
    }

    /// The identity for `ic-agent`.
    pub fn identity(&self) -> Arc<dyn Identity> {
        self.identity.clone()
    }

    /// Signs, as a provider, that a host may act for it (see [`HostStatement`]).
    pub fn sign_host_delegation(&self, statement: HostStatement) -> Result<HostDelegation, KeyError> {
        let message =
            crypto::host_delegation_message(&statement).map_err(|error| KeyError::Sign(error.to_string()))?;
        let signature = self.identity.sign_arbitrary(&message).map_err(KeyError::Sign)?;
        match (self.public_key(), signature.signature) {
            (Some(provider_key), Some(signature)) => Ok(HostDelegation {
                statement,
                provider_key,
                signature,
            }),
            _ => Err(KeyError::Sign(
                "nobody can't delegate; give the provider's key".to_owned(),
            )),
        }
    }
}

/// The private key's block of PEM text, with lines of 64 characters as RFC 7468 wants them (some tools write one long
/// line, and curve parameters before the key), and the kind of key in it.
fn private_key_block(text: &str) -> Result<(KeyKind, String), KeyError> {
    let wrong = |what: &str| KeyError::Pem {
        what: what.to_owned(),
    };
    if text.contains("ENCRYPTED") {
        return Err(wrong("the key is encrypted"));
    }
    let label = ["PRIVATE KEY", "EC PRIVATE KEY"]
        .into_iter()
        .find(|label| text.contains(&format!("-----BEGIN {label}-----")))
        .ok_or_else(|| wrong("no PEM private key found"))?;
    let body = text
        .split_once(&format!("-----BEGIN {label}-----"))
        .and_then(|(_, rest)| rest.split_once(&format!("-----END {label}-----")))
        .map(|(body, _)| body.split_ascii_whitespace().collect::<String>())
        .filter(|body| body.is_ascii())
        .ok_or_else(|| wrong("the PEM block is damaged"))?;
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (place, character) in body.chars().enumerate() {
        if place > 0 && place % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str(&format!("\n-----END {label}-----\n"));
    let (_, der) =
        p256::pkcs8::der::pem::decode_vec(pem.as_bytes()).map_err(|_| wrong("the PEM block is damaged"))?;
    let kind = OIDS
        .iter()
        .find(|(_, oid)| der.windows(oid.len()).any(|window| window == *oid))
        .map(|(kind, _)| *kind)
        .ok_or_else(|| wrong("a private key of another kind"))?;
    Ok((kind, pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_of_each_kind_is_read_back_and_its_delegation_verifies() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [KeyKind::Ed25519, KeyKind::P256, KeyKind::Secp256k1] {
            let path = dir.path().join(kind.to_string());
            let key = Key::create(kind, &path).unwrap();
            assert_eq!(Key::read(&path).unwrap().principal(), key.principal(), "{kind}");
            let one_line = std::fs::read_to_string(&path).unwrap().replace('\n', "");
            assert_eq!(
                Key::from_pem(&one_line).unwrap().principal(),
                key.principal(),
                "{kind} in one line"
            );
            assert_eq!(kind.to_string().parse::<KeyKind>().unwrap(), kind);
            assert!(
                matches!(Key::create(kind, &path), Err(KeyError::File { .. })),
                "{kind}: overwrites nothing"
            );
            let statement = HostStatement {
                ledger: Principal::from_slice(&[1]),
                profile: crate::api::ProviderProfile {
                    name: "P".into(),
                    domain: "p.example".into(),
                    contact: "p@p.example".into(),
                    legal_contract: crate::api::Bytes([1; 32]),
                },
                host: Principal::from_slice(&[2]),
                expires_at: 9,
                attestation_key: None,
            };
            let delegation = key.sign_host_delegation(statement.clone()).unwrap();
            let message = crypto::host_delegation_message(&statement).unwrap();
            assert_eq!(
                crypto::verify(&delegation.provider_key, &message, &delegation.signature),
                Ok(())
            );
            assert_eq!(
                crypto::principal_of(&delegation.provider_key),
                Ok(key.principal())
            );
            assert!(Key::anonymous().sign_host_delegation(statement).is_err());
        }
    }

    #[test]
    fn what_is_no_key_is_named() {
        for (text, expected) in [
            ("", "no PEM private key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA", "damaged"),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "another kind",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nBgMrZXA=\n-----END PRIVATE KEY-----\n",
                "not a valid ed25519 key",
            ),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "encrypted"),
            ("-----BEGIN PRIVATE KEY-----\u{e9}", "damaged"),
        ] {
            let error = Key::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
