//! Trust anchors: AMD's root keys (ARK), pinned in the program, and test roots that somebody named.

use sha2::{Digest, Sha256};

use crate::result::Trust;

/// A trust anchor with the intermediates that are shipped with it.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) der: Vec<u8>,
    pub(crate) trust: Trust,
}

/// The certificates that may stand at the end of a chain.
#[derive(Clone, Debug)]
pub struct Roots {
    roots: Vec<Root>,
}

/// Why a file can't be a trust anchor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// No X.509 certificate in DER.
    #[error("a trust root must be one X.509 certificate in DER: {0}")]
    NotACertificate(String),
}

/// AMD's certificates, as its key distribution service gives them; see `roots/SOURCES`.
pub(crate) struct Shipped {
    pub(crate) ark: &'static [u8],
    pub(crate) ask: &'static [u8],
    pub(crate) asvk: &'static [u8],
}

pub(crate) const SHIPPED: [Shipped; 3] = [
    Shipped {
        ark: include_bytes!("roots/amd/milan-ark.der"),
        ask: include_bytes!("roots/amd/milan-ask.der"),
        asvk: include_bytes!("roots/amd/milan-asvk.der"),
    },
    Shipped {
        ark: include_bytes!("roots/amd/genoa-ark.der"),
        ask: include_bytes!("roots/amd/genoa-ask.der"),
        asvk: include_bytes!("roots/amd/genoa-asvk.der"),
    },
    Shipped {
        ark: include_bytes!("roots/amd/turin-ark.der"),
        ask: include_bytes!("roots/amd/turin-ask.der"),
        asvk: include_bytes!("roots/amd/turin-asvk.der"),
    },
];

impl Roots {
    /// AMD's roots for Milan, Genoa and Turin.
    pub fn pinned() -> Self {
        let pinned = |shipped: &Shipped| Root {
            der: shipped.ark.to_vec(),
            trust: Trust::Pinned,
        };
        Self {
            roots: SHIPPED.iter().map(pinned).collect(),
        }
    }

    /// Trusts one more root (DER). Every result that rests on it says `trust: test-root`.
    pub fn with_test_root(mut self, der: &[u8]) -> Result<Self, RootsError> {
        crate::snp::check_certificate(der).map_err(|e| RootsError::NotACertificate(e.to_string()))?;
        if self.roots.iter().all(|root| root.der != der) {
            self.roots.push(Root {
                der: der.to_vec(),
                trust: Trust::TestRoot,
            });
        }
        Ok(self)
    }

    /// SHA-256 of every root's DER, with how it is trusted.
    pub fn fingerprints(&self) -> impl Iterator<Item = ([u8; 32], Trust)> {
        self.roots
            .iter()
            .map(|root| (Sha256::digest(&root.der).into(), root.trust))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter()
    }
}
