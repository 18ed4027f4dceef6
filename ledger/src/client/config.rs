//! Which ledger a client talks to: three settings, in `client.toml`.
//!
//! ```toml
//! url = "http://127.0.0.1:4943"
//! canister_id = "rwlgt-iiaaa-aaaaa-aaaaa-cai"
//! root_key = "308182…"   # the ledger's public key (DER, hexadecimal): every answer is checked against it
//! ```
//!
//! Going from the one-node ledger to the Internet Computer changes these three and nothing else. The root key is
//! pinned: no client of this project ever fetches it.

use std::path::{Path, PathBuf};

use candid::Principal;
use serde::{Deserialize, Serialize};

use super::Key;

/// The DER header of a BLS12-381 public key as the Internet Computer writes it; 96 bytes of key follow.
const ROOT_KEY_PREFIX: [u8; 37] = [
    0x30, 0x81, 0x82, 0x30, 0x1d, 0x06, 0x0d, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03,
    0x01, 0x02, 0x01, 0x06, 0x0c, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xdc, 0x7c, 0x05, 0x03, 0x02, 0x01,
    0x03, 0x61, 0x00,
];

/// What is wrong with a client's settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}; `ledgerd init` writes a client.toml to copy")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has the wrong form.
    #[error("{path} is no client.toml")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Not a URL that this client can use.
    #[error("url {url:?}: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// Not a BLS public key in DER.
    #[error(
        "root_key: expected the DER encoding of a BLS12-381 public key (133 bytes, beginning 308182301d06…); \
         `ledgerd init` prints the right one"
    )]
    RootKey,
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTP client: {0}")]
    Http(String),
}

/// `client.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// Where the ledger is, e.g. `http://127.0.0.1:4943` or `https://icp-api.io`.
    pub url: String,
    /// The ledger's canister id.
    pub canister_id: Principal,
    /// The pinned root key: DER, in hexadecimal.
    #[serde(with = "hex::serde")]
    pub root_key: Vec<u8>,
}

impl ClientFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let file: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        check(&file.url, &file.root_key)?;
        Ok(file)
    }

    /// With a key, all that [`super::Client::connect`] needs.
    pub fn with_key(self, key: Key) -> ClientConfig {
        ClientConfig {
            url: self.url,
            canister_id: self.canister_id,
            root_key: self.root_key,
            key,
        }
    }
}

/// Which ledger, and who is talking to it.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the ledger is.
    pub url: String,
    /// The ledger's canister id.
    pub canister_id: Principal,
    /// The pinned root key, DER.
    pub root_key: Vec<u8>,
    /// Who signs the calls.
    pub key: Key,
}

/// Checks what a type can't: the URL's form and the root key's.
pub(super) fn check(url: &str, root_key: &[u8]) -> Result<reqwest::Url, ConfigError> {
    let wrong = |why: String| ConfigError::Url {
        url: url.to_owned(),
        why,
    };
    let parsed = reqwest::Url::parse(url).map_err(|error| wrong(error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(wrong("expected http://HOST:PORT or https://HOST".to_owned()));
    }
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        return Err(wrong("expected only scheme, host and port".to_owned()));
    }
    if root_key.len() != ROOT_KEY_PREFIX.len() + 96 || !root_key.starts_with(&ROOT_KEY_PREFIX) {
        return Err(ConfigError::RootKey);
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::causes;

    #[test]
    fn settings_are_checked_before_use() {
        let key = [ROOT_KEY_PREFIX.as_slice(), &[9; 96]].concat();
        let good = format!(
            "url = 'http://127.0.0.1:1'\ncanister_id = 'rwlgt-iiaaa-aaaaa-aaaaa-cai'\nroot_key = '{}'\n",
            hex::encode(&key)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ClientFile::read(&path).map_err(|error| causes(&error))
        };
        assert_eq!(read(&good).unwrap().root_key, key);
        for (from, to, expected) in [
            ("http://127", "ftp://127", "http://HOST:PORT"),
            (":1'", ":1/api'", "only scheme"),
            ("http://127.0.0.1:1", "nonsense", "url"),
            ("308182", "308183", "root_key"),
            ("rwlgt", "rwlgx", "canister_id"),
            ("url =", "urls =", "unknown field"),
        ] {
            let error = read(&good.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{from} → {to}: {error}");
        }
        assert!(
            ClientFile::read(&dir.path().join("absent"))
                .unwrap_err()
                .to_string()
                .contains("ledgerd init")
        );
    }
}
