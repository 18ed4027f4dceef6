//! Trust anchors: the makers' root certificates, pinned in the program, and test roots that somebody named.

use std::sync::LazyLock;

use crate::result::Trust;
use crate::x509::Cert;

/// What a root may vouch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootKind {
    /// AMD's root keys (ARK): SEV-SNP reports.
    Amd,
    /// Intel's SGX Root CA: TDX quotes and their collateral.
    Intel,
    /// NVIDIA's Device Identity CA: GPU evidence.
    NvidiaDevice,
    /// NVIDIA's root of reference integrity manifests.
    NvidiaRim,
    /// Makers of TPMs, and whoever certifies attestation keys. None is pinned: there are hundreds.
    Tpm,
    /// Anything: a test root that somebody named.
    Any,
}

/// A trust anchor.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) cert: Cert,
    pub(crate) trust: Trust,
    pub(crate) kind: RootKind,
}

/// The certificates that may stand at the end of a chain.
#[derive(Clone, Debug)]
pub struct Roots {
    named: Vec<Root>,
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
pub(crate) struct Amd {
    pub(crate) ark: &'static [u8],
    pub(crate) ask: &'static [u8],
    pub(crate) asvk: &'static [u8],
}

pub(crate) const AMD: [Amd; 3] = [
    Amd {
        ark: include_bytes!("roots/amd/milan-ark.der"),
        ask: include_bytes!("roots/amd/milan-ask.der"),
        asvk: include_bytes!("roots/amd/milan-asvk.der"),
    },
    Amd {
        ark: include_bytes!("roots/amd/genoa-ark.der"),
        ask: include_bytes!("roots/amd/genoa-ask.der"),
        asvk: include_bytes!("roots/amd/genoa-asvk.der"),
    },
    Amd {
        ark: include_bytes!("roots/amd/turin-ark.der"),
        ask: include_bytes!("roots/amd/turin-ask.der"),
        asvk: include_bytes!("roots/amd/turin-asvk.der"),
    },
];

/// Roots of the other makers; see `roots/SOURCES`.
const OTHERS: [(RootKind, &[u8]); 3] = [
    (RootKind::Intel, include_bytes!("roots/intel/sgx-root-ca.der")),
    (
        RootKind::NvidiaDevice,
        include_bytes!("roots/nvidia/device-identity-ca.der"),
    ),
    (
        RootKind::NvidiaRim,
        include_bytes!("roots/nvidia/rim-signing-root-ca.der"),
    ),
];

fn shipped(der: &[u8]) -> Cert {
    Cert::parse(der).expect("the shipped certificates are tested to be readable")
}

/// The pinned roots, read once.
static PINNED: LazyLock<Vec<Root>> = LazyLock::new(|| {
    let amd = AMD.iter().map(|amd| (RootKind::Amd, amd.ark));
    let root = |(kind, der): (RootKind, &[u8])| Root {
        cert: shipped(der),
        trust: Trust::Pinned,
        kind,
    };
    amd.chain(OTHERS).map(root).collect()
});

static AMD_INTERMEDIATES: LazyLock<Vec<Cert>> = LazyLock::new(|| {
    AMD.iter()
        .flat_map(|amd| [amd.ask, amd.asvk])
        .map(shipped)
        .collect()
});

/// ASK and ASVK of every product.
pub(crate) fn amd_intermediates() -> &'static [Cert] {
    &AMD_INTERMEDIATES
}

/// Whether both certificates are shipped, and `intermediate` is `root`'s: then nobody needs to check the signature
/// again, a test did.
pub(crate) fn is_shipped_chain(intermediate: &Cert, root: &Cert) -> bool {
    let has =
        |amd: &Amd| root.der == amd.ark && (intermediate.der == amd.ask || intermediate.der == amd.asvk);
    AMD.iter().any(has)
}

impl Roots {
    /// The makers' roots: AMD's for Milan, Genoa and Turin, Intel's, NVIDIA's two.
    pub fn pinned() -> Self {
        Self { named: Vec::new() }
    }

    /// Trusts one more root (DER), for evidence of any kind. Every result that rests on it says `trust: test-root`.
    pub fn with_test_root(mut self, der: &[u8]) -> Result<Self, RootsError> {
        let cert = Cert::parse(der).map_err(|e| RootsError::NotACertificate(e.to_string()))?;
        if self.iter().all(|root| root.cert.der != der) {
            let (trust, kind) = (Trust::TestRoot, RootKind::Any);
            self.named.push(Root { cert, trust, kind });
        }
        Ok(self)
    }

    fn iter(&self) -> impl Iterator<Item = &Root> {
        PINNED.iter().chain(&self.named)
    }

    /// The roots that may vouch for `kind`: the pinned ones of that kind, and those that somebody named.
    pub(crate) fn of(&self, kind: RootKind) -> impl Iterator<Item = &Root> {
        self.iter()
            .filter(move |root| root.kind == kind || root.kind == RootKind::Any)
    }
}

#[cfg(all(test, any(feature = "native", feature = "rustcrypto")))]
mod tests {
    use super::*;

    #[test]
    fn shipped_intermediates_are_signed_by_their_own_root_and_no_other() {
        for (n, own) in AMD.iter().enumerate() {
            for (m, other) in AMD.iter().enumerate() {
                let root = shipped(other.ark);
                for der in [own.ask, own.asvk] {
                    let cert = shipped(der);
                    let signed = cert.issuer == root.subject && cert.signed.is_signed_by(&root.key);
                    assert_eq!((signed, is_shipped_chain(&cert, &root)), (n == m, n == m));
                }
            }
        }
    }
}
