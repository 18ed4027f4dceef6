//! The way from a certificate up to a trust anchor (RFC 5280, section 6, without names and policies, which the makers
//! here don't use).

use super::Cert;
use crate::result::{Check, Reason, Trust};
use crate::roots::Root;
use crate::show;

/// The longest chain, root included: NVIDIA's have five certificates.
const PATH_LEN_MAX: usize = 8;

/// A chain whose every signature holds and that ends at a trusted root. Its dates are for [`dates`] to judge.
#[derive(Clone, Debug)]
pub(crate) struct Path<'a> {
    /// From the leaf to the root.
    pub(crate) certs: Vec<&'a Cert>,
    /// How the root is trusted.
    pub(crate) trust: Trust,
}

/// Why there is no chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathError {
    /// [`Reason::ChainInvalid`], or [`Reason::UntrustedRoot`] if the chain ends at a root that nobody trusts.
    pub(crate) reason: Reason,
    /// What was found instead.
    pub(crate) found: String,
}

/// Finds a chain from `leaf` through `pool` to one of `roots`; one that is valid at `at` (Unix seconds) if there is one:
/// makers certify a key anew, so issuers are chosen by date, too.
pub(crate) fn find_path<'a>(
    leaf: &'a Cert,
    pool: &'a [Cert],
    roots: &[&'a Root],
    at: u64,
) -> Result<Path<'a>, PathError> {
    let current = |cert: &Cert| (cert.not_before..=cert.not_after).contains(&at);
    let search = Search { pool, roots };
    let found = search
        .climb(leaf, &current)
        .or_else(|| search.climb(leaf, &|_| true));
    found.ok_or_else(|| search.why_not(leaf))
}

struct Search<'s, 'a> {
    pool: &'a [Cert],
    roots: &'s [&'a Root],
}

impl<'a> Search<'_, 'a> {
    /// Breadth first; each certificate of the pool is visited once, so the work is bounded by the pool's size squared.
    fn climb(&self, leaf: &'a Cert, admitted: &dyn Fn(&Cert) -> bool) -> Option<Path<'a>> {
        let mut visited = vec![false; self.pool.len()];
        let mut open = vec![vec![leaf]];
        for _ in 1..PATH_LEN_MAX {
            let mut next = Vec::new();
            for chain in open {
                let top = *chain.last()?;
                let anchored = self.roots.iter().find(|root| {
                    admitted(&root.cert)
                        && (root.cert.der == top.der && chain.len() > 1 || issued(&root.cert, top))
                });
                if let Some(root) = anchored {
                    let mut certs = chain;
                    if root.cert.der != top.der {
                        certs.push(&root.cert);
                    }
                    return Some(Path {
                        certs,
                        trust: root.trust,
                    });
                }
                for (seen, issuer) in visited.iter_mut().zip(self.pool) {
                    if !*seen && admitted(issuer) && issuer.der != top.der && issued(issuer, top) {
                        *seen = true;
                        next.push(chain.iter().copied().chain([issuer]).collect());
                    }
                }
            }
            open = next;
        }
        None
    }

    /// The highest certificate that signatures lead to says what is wrong.
    fn why_not(&self, leaf: &'a Cert) -> PathError {
        let mut top = leaf;
        for _ in 0..PATH_LEN_MAX {
            match self
                .pool
                .iter()
                .find(|cert| cert.der != top.der && issued(cert, top))
            {
                Some(issuer) => top = issuer,
                None => break,
            }
        }
        let name = shown(&top.subject_cn);
        let own = |root: &&&Root| root.cert.subject == top.issuer;
        if top.subject == top.issuer && top.signed.is_signed_by(&top.key) {
            let found = format!("{name}, which isn't trusted");
            return PathError {
                reason: Reason::UntrustedRoot,
                found,
            };
        }
        let issuer = shown(&top.issuer_cn);
        let found = match self.roots.iter().find(own) {
            Some(_) => format!("{name}, which the trusted {issuer} didn't sign"),
            None => format!("{name}, whose issuer {issuer} isn't there or didn't sign it"),
        };
        PathError {
            reason: Reason::ChainInvalid,
            found,
        }
    }
}

fn issued(issuer: &Cert, cert: &Cert) -> bool {
    issuer.may_issue && issuer.subject == cert.issuer && cert.signed.is_signed_by(&issuer.key)
}

/// Whether every certificate is valid at `at`, Unix seconds; a line of the result.
pub(crate) fn dates(id: &'static str, chain: &[&Cert], at: u64) -> Check {
    let show = |cert: &Cert| {
        let (from, to) = (show::time(cert.not_before), show::time(cert.not_after));
        format!("{} {from}..{to}", shown(&cert.subject_cn))
    };
    let early = chain.iter().find(|cert| at < cert.not_before);
    let late = chain.iter().find(|cert| at > cert.not_after);
    let (reason, found) = match (late, early) {
        (Some(cert), _) => (Reason::CertificateExpired, show(cert)),
        (None, Some(cert)) => (Reason::CertificateNotYetValid, show(cert)),
        (None, None) => {
            let all: Vec<String> = chain.iter().map(|cert| show(cert)).collect();
            (Reason::CertificateExpired, all.join(", "))
        }
    };
    let holds = early.is_none() && late.is_none();
    Check::of(id, holds, reason, format!("valid at {}", show::time(at)), found)
}

fn shown(name: &str) -> String {
    format!("`{}`", name.chars().take(64).collect::<String>())
}
