//! Trust anchors: AMD's root keys (ARK), pinned in the program, and test roots that somebody named.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::result::Trust;
use crate::snp::Cert;

/// A trust anchor.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) cert: Cert,
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

/// The shipped certificates, read once: roots, and intermediates.
static PARSED: LazyLock<(Vec<Cert>, Vec<Cert>)> = LazyLock::new(|| {
    let parse = |der: &[u8]| Cert::parse(der).expect("the shipped certificates are tested to be readable");
    let intermediates = SHIPPED.iter().flat_map(|shipped| [shipped.ask, shipped.asvk]);
    (
        SHIPPED.iter().map(|shipped| parse(shipped.ark)).collect(),
        intermediates.map(parse).collect(),
    )
});

/// ASK and ASVK of every product.
pub(crate) fn shipped_intermediates() -> &'static [Cert] {
    &PARSED.1
}

impl Roots {
    /// AMD's roots for Milan, Genoa and Turin.
    pub fn pinned() -> Self {
        let pinned = |cert: &Cert| Root {
            cert: cert.clone(),
            trust: Trust::Pinned,
        };
        Self {
            roots: PARSED.0.iter().map(pinned).collect(),
        }
    }

    /// Trusts one more root (DER). Every result that rests on it says `trust: test-root`.
    pub fn with_test_root(mut self, der: &[u8]) -> Result<Self, RootsError> {
        let cert = Cert::parse(der).map_err(|e| RootsError::NotACertificate(e.to_string()))?;
        if self.roots.iter().all(|root| root.cert.der != der) {
            let trust = Trust::TestRoot;
            self.roots.push(Root { cert, trust });
        }
        Ok(self)
    }

    /// SHA-256 of every root's DER, with how it is trusted.
    pub fn fingerprints(&self) -> impl Iterator<Item = ([u8; 32], Trust)> {
        self.roots
            .iter()
            .map(|root| (Sha256::digest(&root.cert.der).into(), root.trust))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter()
    }
}
