//! Whether AMD's key signed a report: chain, dates, revocation, signature, and that certificate and report agree.
//!
//! ```text
//! ARK (pinned, or a named test root) ── signs ──▶ ASK ── signs ──▶ VCEK ── signs ──▶ report
//!                                    └─ signs ──▶ ASVK ─ signs ──▶ VLEK ┘
//! ```
//!
//! Certificates come from the evidence, from the endorsements, or are shipped; whatever fits is used. Intermediates
//! that are shipped count only when nobody supplied any: who supplies the wrong ones hears of it. With several VEKs
//! the one with the fewest faults is judged, and all of that one's faults are listed.

use std::fmt::Display;

use super::report::Report;
use super::{Product, VekKind, vek};
use crate::crypto::CRYPTO;
use crate::result::{Check, Reason, Trust};
use crate::roots::{RootKind, amd_intermediates, is_shipped_chain};
use crate::show;
use crate::x509::{Cert, Crl, PublicKey, dates};
use crate::{Endorsements, Roots};

/// A report that a trusted key signed, with a certificate that agrees with it. Only [`authenticate`] makes one. It says
/// who signed, not whether we like what was signed.
#[derive(Clone, Debug)]
pub struct Authentic {
    report: Report,
    product: Product,
    vek: VekKind,
}

impl Authentic {
    /// The report.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The product, as the certificate's issuer says (and the report, from version 3 on).
    pub fn product(&self) -> Product {
        self.product
    }

    /// The kind of key that signed.
    pub fn vek(&self) -> VekKind {
        self.vek
    }
}

/// What authenticating gave.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// Every check made.
    pub checks: Vec<Check>,
    /// What the chain rests on.
    pub trust: Trust,
    /// The report, if every check passed.
    pub authentic: Option<Authentic>,
    /// The report, if a trusted key signed it, whatever else is wrong: so that the result can list all of it.
    pub(super) signed: Option<Authentic>,
    /// The product as far as it is known.
    pub product: Option<Product>,
}

/// All certificates at hand, sorted by what they can be.
struct Pool {
    veks: Vec<Cert>,
    intermediates: Vec<Cert>,
    /// Self-signed certificates that somebody supplied; they explain an untrusted root and never make one trusted.
    supplied_roots: Vec<Cert>,
    roots: Vec<(Cert, Trust)>,
    crls: Vec<Crl>,
    unreadable: Vec<String>,
    at: u64,
    supplied: bool,
}

/// Judges who signed `report`.
pub fn authenticate(
    report: Report,
    certificates: &[Vec<u8>],
    endorsements: &Endorsements,
    roots: &Roots,
    at: u64,
) -> Authentication {
    let pool = Pool::gather(certificates, endorsements, roots, at);
    let best = pool
        .veks
        .iter()
        .map(|vek| pool.judge(&report, vek))
        .min_by_key(|judged| judged.checks.iter().filter(|check| check.is_failed()).count());
    let Some(mut judged) = best else {
        let product = report.product();
        let mut checks = report.format_checks(product);
        checks.extend(pool.unreadable_checks());
        checks.push(Check::missing(
            "authenticate.vek",
            Reason::EndorsementsMissing,
            format!(
                "no VCEK or VLEK certificate for this report: {}",
                kds_hint(&report)
            ),
        ));
        return Authentication {
            checks,
            trust: Trust::None,
            authentic: None,
            signed: None,
            product,
        };
    };
    let at_vek = judged
        .checks
        .iter()
        .position(|check| check.id.starts_with("authenticate"))
        .unwrap_or(0);
    judged.checks.splice(at_vek..at_vek, pool.unreadable_checks());
    let clean = !judged.checks.iter().any(Check::is_failed);
    // What doesn't touch who signed which bytes: a certificate that is over is no reason to keep silent about the rest.
    let broken = judged.checks.iter().any(|check| {
        check.is_failed() && !["authenticate.dates", "authenticate.revocation"].contains(&check.id)
    });
    let signed = match (broken, judged.product, judged.kind) {
        (false, Some(product), Some(vek)) => Some(Authentic { report, product, vek }),
        _ => None,
    };
    Authentication {
        checks: judged.checks,
        trust: judged.trust,
        authentic: signed.clone().filter(|_| clean),
        signed,
        product: judged.product,
    }
}

/// Where AMD's key service has the certificate; for a person, nothing is fetched here.
fn kds_hint(report: &Report) -> String {
    if report.signing_key() == Some(VekKind::Vlek) {
        return "its VLEK certificate comes from the cloud provider, with the extended report".to_owned();
    }
    let Some(product) = report.product() else {
        return "give it with --endorsements (AMD's key service has it under the chip id)".to_owned();
    };
    let tcb = report.reported_tcb(product);
    let fmc = tcb.fmc.map(|fmc| format!("fmcSPL={fmc:02}&")).unwrap_or_default();
    let chip = report.chip_id();
    let id = if product == Product::Turin {
        &chip[..8]
    } else {
        &chip[..]
    };
    format!(
        "AMD's key service has it as vcek/v1/{product}/{}?{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        show::hex(id),
        tcb.bootloader,
        tcb.tee,
        tcb.snp,
        tcb.microcode
    )
}

struct Judged {
    checks: Vec<Check>,
    trust: Trust,
    product: Option<Product>,
    kind: Option<VekKind>,
}

impl Pool {
    fn gather(certificates: &[Vec<u8>], endorsements: &Endorsements, roots: &Roots, at: u64) -> Self {
        let mut pool = Self {
            veks: Vec::new(),
            intermediates: Vec::new(),
            supplied_roots: Vec::new(),
            roots: Vec::new(),
            crls: Vec::new(),
            unreadable: Vec::new(),
            at,
            supplied: false,
        };
        for (n, der) in certificates.iter().enumerate() {
            if certificates[..n].contains(der) {
                continue;
            }
            match Cert::parse(der) {
                Ok(cert) => pool.add(cert),
                // A host's certificate table may hold AMD's CRL too.
                Err(e) => match Crl::parse(der) {
                    Ok(crl) => pool.crls.push(crl),
                    Err(_) => pool.unreadable.push(e.to_string()),
                },
            }
        }
        let others = endorsements
            .certs()
            .iter()
            .filter(|cert| !certificates.contains(&cert.der));
        others.for_each(|cert| pool.add(cert.clone()));
        pool.supplied = !pool.intermediates.is_empty();
        if !pool.supplied {
            pool.intermediates.extend_from_slice(amd_intermediates());
        }
        pool.roots.extend(
            roots
                .of(RootKind::Amd)
                .map(|root| (root.cert.clone(), root.trust)),
        );
        pool.crls.extend_from_slice(endorsements.crl_list());
        pool
    }

    fn add(&mut self, cert: Cert) {
        if vek::kind(&cert).is_some() {
            self.veks.push(cert);
        } else if cert.issuer == cert.subject {
            self.supplied_roots.push(cert);
        } else if cert.subject_cn.starts_with("SEV-") {
            self.intermediates.push(cert);
        } // else another maker's
    }

    fn unreadable_checks(&self) -> Vec<Check> {
        let line = |error: &String| {
            Check::of(
                "authenticate.certificates",
                false,
                Reason::ChainInvalid,
                "X.509 certificates in DER",
                error,
            )
        };
        self.unreadable.iter().map(line).collect()
    }

    fn judge(&self, report: &Report, vek: &Cert) -> Judged {
        let issued = vek::issued_by(&vek.issuer_cn);
        let cert_product = issued.map(|(_, product)| product);
        // A report of version 3 on says its product itself, and then that decides how its bytes are read.
        let layout = report.product().or(cert_product);
        let mut checks = report.format_checks(layout);
        let mut check = |check: Check| checks.push(check);

        let kind = vek::kind(vek);
        let said = report.signing_key();
        let show = |kind: Option<VekKind>| {
            kind.map_or("neither VCEK nor VLEK".to_owned(), |kind| format!("{kind:?}"))
        };
        let kinds_agree = said.is_some() && said == kind && issued.map(|(kind, _)| kind) == kind;
        check(Check::of(
            "authenticate.vek-kind",
            kinds_agree,
            Reason::VekKindMismatch,
            format!("{} as the report says", show(said)),
            format!("{} issued by {}", show(kind), quoted(&vek.issuer_cn)),
        ));
        check(match (report.cpuid(), report.product()) {
            (Some([family, model, _]), None) => Check::of(
                "authenticate.product",
                false,
                Reason::UnsupportedProduct,
                "Milan, Genoa or Turin",
                format!("CPUID family {family:#x} model {model:#x}"),
            ),
            (_, said) => {
                let named = vek::product_name(vek);
                let name_fits = |product: Product| named.as_ref().is_ok_and(|name| product.owns_name(name));
                let fits = cert_product
                    .is_some_and(|product| name_fits(product) && said.is_none_or(|p| p == product));
                let reason = named
                    .as_ref()
                    .map_or_else(|e| e.reason, |_| Reason::ProductMismatch);
                let name = named.unwrap_or_else(|e| e.what);
                let expected = layout.map_or("a known product".to_owned(), |product| product.to_string());
                let found = format!("{name}, issued by {}", quoted(&vek.issuer_cn));
                Check::of("authenticate.product", fits, reason, expected, found)
            }
        });
        let (chain_checks, trust) = self.chain(vek);
        for line in chain_checks {
            check(line);
        }
        let key = match &vek.key {
            PublicKey::P384(key) => key.as_slice(),
            _ => &[],
        };
        let signed = CRYPTO.p384_sha384(key, report.signed(), &report.signature());
        check(Check::of(
            "authenticate.signature",
            signed,
            Reason::SignatureInvalid,
            "ECDSA P-384 by the VEK over the report's bytes",
            if signed { "valid" } else { "not valid" },
        ));
        if let Some(product) = layout {
            check(match vek::tcb(vek, product) {
                Ok(tcb) => {
                    let reported = report.reported_tcb(product);
                    let reason = Reason::TcbMismatch;
                    Check::of(
                        "authenticate.tcb",
                        tcb == reported,
                        reason,
                        format!("{tcb} (certificate)"),
                        reported,
                    )
                }
                Err(e) => Check::of(
                    "authenticate.tcb",
                    false,
                    e.reason,
                    "TCB parts in the VEK",
                    e.what,
                ),
            });
        }
        check(chip(report, vek, kind));
        Judged {
            checks,
            trust,
            product: layout,
            kind,
        }
    }

    /// From the VEK up to a root: issuers, dates, revocation.
    fn chain(&self, vek: &Cert) -> (Vec<Check>, Trust) {
        let mut checks = Vec::new();
        let fits = |issuer: &&Cert| issuer.subject == vek.issuer && vek.signed.is_signed_by(&issuer.key);
        let candidates: Vec<&Cert> = self
            .intermediates
            .iter()
            .filter(fits)
            .filter(|cert| cert.may_issue)
            .collect();
        // Choose by date: an issuer may have been certified anew with the same key.
        let valid = candidates
            .iter()
            .find(|cert| (cert.not_before..=cert.not_after).contains(&self.at));
        let Some(intermediate) = valid.or(candidates.first()) else {
            let names: Vec<String> = self
                .intermediates
                .iter()
                .map(|cert| quoted(&cert.subject_cn))
                .collect();
            let found = if self.supplied {
                names.join(", ")
            } else {
                "none of those shipped".to_owned()
            };
            let expected = format!(
                "an intermediate {} whose key signed the VEK",
                quoted(&vek.issuer_cn)
            );
            checks.push(Check::of(
                "authenticate.chain",
                false,
                Reason::ChainInvalid,
                expected,
                found,
            ));
            checks.push(self.dates(&[vek]));
            checks.push(Check::not_checked(
                "authenticate.revocation",
                "the chain is broken",
                "",
            ));
            return (checks, Trust::None);
        };
        let signs = |root: &Cert| {
            is_shipped_chain(intermediate, root)
                || root.subject == intermediate.issuer && intermediate.signed.is_signed_by(&root.key)
        };
        let root = self.roots.iter().find(|(root, _)| signs(root) && root.may_issue);
        let Some((root, trust)) = root else {
            let untrusted = self.supplied_roots.iter().find(|root| signs(root));
            let (reason, found) = match untrusted {
                Some(root) => (
                    Reason::UntrustedRoot,
                    format!(
                        "{}, SHA-256 {}, which isn't trusted",
                        quoted(&root.subject_cn),
                        digest(&root.der)
                    ),
                ),
                None if self
                    .roots
                    .iter()
                    .any(|(root, _)| root.subject == intermediate.issuer) =>
                {
                    (
                        Reason::UntrustedRoot,
                        format!(
                            "{}, which the trusted {} didn't sign",
                            quoted(&intermediate.subject_cn),
                            quoted(&intermediate.issuer_cn)
                        ),
                    )
                }
                None => (
                    Reason::ChainInvalid,
                    format!(
                        "{}, which no trusted root signed",
                        quoted(&intermediate.subject_cn)
                    ),
                ),
            };
            checks.push(Check::of(
                "authenticate.chain",
                false,
                reason,
                "a chain to a trusted root",
                found,
            ));
            checks.push(self.dates(&[vek, intermediate]));
            checks.push(Check::not_checked(
                "authenticate.revocation",
                "the chain is broken",
                "",
            ));
            return (checks, Trust::None);
        };
        let trust = *trust;
        let path = format!(
            "{} → {} → {} ({trust})",
            vek.subject_cn, intermediate.subject_cn, root.subject_cn
        );
        checks.push(Check::passed("authenticate.chain", path));
        checks.push(self.dates(&[vek, intermediate, root]));
        checks.push(self.revocation(intermediate, root));
        (checks, trust)
    }

    fn dates(&self, chain: &[&Cert]) -> Check {
        dates("authenticate.dates", chain, self.at)
    }

    /// Looks the intermediate up. A VEK can't be revoked by itself: every VCEK has the serial number 0.
    fn revocation(&self, intermediate: &Cert, root: &Cert) -> Check {
        const ID: &str = "authenticate.revocation";
        let own: Vec<&Crl> = self
            .crls
            .iter()
            .filter(|crl| crl.issuer == root.subject)
            .collect();
        if own.is_empty() {
            // Other makers' lists may lie in the same folder; another product's is a wrong one.
            let others = self.crls.iter().filter(|crl| crl.issuer_cn.starts_with("ARK-"));
            let names: Vec<String> = others.map(|crl| quoted(&crl.issuer_cn)).collect();
            if names.is_empty() {
                return Check::not_checked(ID, "no CRL was given", "");
            }
            let expected = format!("a CRL of {}", quoted(&root.subject_cn));
            return Check::of(ID, false, Reason::CrlInvalid, expected, names.join(", "));
        }
        let (genuine, forged): (Vec<&Crl>, Vec<&Crl>) = own
            .into_iter()
            .partition(|crl| crl.signed.is_signed_by(&root.key));
        if !forged.is_empty() {
            let expected = format!("a CRL signed by {}", quoted(&root.subject_cn));
            return Check::of(ID, false, Reason::CrlInvalid, expected, "a wrong signature");
        }
        // Revocation has no way back, so an old list's word counts too.
        if genuine.iter().any(|crl| crl.revokes(&intermediate.serial)) {
            let found = format!(
                "{} serial 0x{} is revoked",
                quoted(&intermediate.subject_cn),
                show::hex(&intermediate.serial)
            );
            return Check::of(ID, false, Reason::CrlRevoked, "not revoked", found);
        }
        let fresh =
            |crl: &&&Crl| crl.this_update <= self.at && crl.next_update.is_some_and(|next| self.at < next);
        let window = |crl: &Crl| {
            let next = crl.next_update.map_or("no end".to_owned(), show::time);
            format!(
                "{} {}..{next}",
                quoted(&crl.issuer_cn),
                show::time(crl.this_update)
            )
        };
        match genuine.iter().find(fresh) {
            Some(crl) => {
                let found = format!("0x{} not in {}", show::hex(&intermediate.serial), window(crl));
                Check::passed(ID, found)
            }
            None => {
                let windows: Vec<String> = genuine.iter().map(|crl| window(crl)).collect();
                let why = format!("no CRL given covers {}", show::time(self.at));
                Check::unusable(ID, Reason::CrlStale, why, windows.join(", "))
            }
        }
    }
}

/// Whether the report's chip is the certificate's.
fn chip(report: &Report, vek: &Cert, kind: Option<VekKind>) -> Check {
    const ID: &str = "authenticate.chip-id";
    let found = show::hex(report.chip_id());
    if kind == Some(VekKind::Vlek) {
        return Check::not_checked(ID, "a VLEK names no chip", found);
    }
    match vek::hardware_id(vek) {
        Ok(id) => {
            let expected = id.as_chip_id();
            let same = report.chip_id() == expected;
            Check::of(ID, same, Reason::ChipIdMismatch, show::hex(expected), found)
        }
        Err(e) => Check::of(ID, false, e.reason, "the chip's id in the VEK", e.what),
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.chars().take(64).collect::<String>())
}

fn digest(der: &[u8]) -> impl Display {
    use sha2::{Digest, Sha256};
    show::hex(Sha256::digest(der))
}
