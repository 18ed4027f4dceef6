//! Whether Intel's keys signed a quote: chain, dates, revocation, quoting enclave, signatures.
//!
//! ```text
//! SGX Root CA (pinned, or a named test root) ─▶ PCK Platform or Processor CA ─▶ PCK ── signs ──▶ QE report
//!      │                                                                       binds (SHA-256) ▼
//!      └─▶ TCB Signing ── signs ──▶ TCB info, QE identity          attestation key ── signs ──▶ quote
//! ```
//!
//! The chain is the quote's own: PCK, its CA, the root, in this order and nothing else. Its last certificate must be the
//! trusted one: nobody needs it, but bytes that may be anything are how one quote becomes many.

use sha2::{Digest, Sha256};

use super::collateral::{QeIdentityDocument, SignedText, TCB_SIGNER, TcbInfoDocument, shipped_signers};
use super::pck::{self, Platform};
use super::quote::Quote;
use super::tcb::{QeIdentity, TcbInfo, TcbInfoHead, Window};
use crate::crypto::CRYPTO;
use crate::result::{Check, Reason, Trust};
use crate::roots::{Root, RootKind};
use crate::show;
use crate::x509::{Cert, Crl, PublicKey, dates};
use crate::{Endorsements, Roots};

const PCK: &str = "Intel SGX PCK Certificate";
const PCK_CAS: [&str; 2] = ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];
const REVOCATION: &str = "authenticate.revocation";

/// The quote's own chain, whose signatures hold up to a trusted root.
struct Chain<'r> {
    leaf: &'r Cert,
    ca: &'r Cert,
    root: &'r Root,
}

/// What authenticating gave.
pub(super) struct Authentication<'e> {
    pub(super) checks: Vec<Check>,
    pub(super) trust: Trust,
    /// Whether Intel's keys signed exactly this quote. Neither dates nor collateral change that.
    pub(super) authentic: bool,
    /// From the PCK certificate, if the chain holds.
    pub(super) platform: Option<Platform>,
    /// Genuine and current.
    pub(super) tcb_info: Option<(&'e TcbInfoHead, &'e TcbInfo)>,
    /// Genuine and current.
    pub(super) qe_identity: Option<&'e QeIdentity>,
}

/// Judges who signed `quote`.
pub(super) fn authenticate<'e>(
    quote: &Quote<'_>,
    endorsements: &'e Endorsements,
    roots: &Roots,
    padding: bool,
    at: u64,
) -> Authentication<'e> {
    let mut checks = quote.format_checks(padding);
    let roots: Vec<&Root> = roots.of(RootKind::Intel).collect();
    let read = pck::Chain::read(quote.pck_chain);
    let chain = read.as_ref().map_err(Clone::clone);
    let chain = chain.and_then(|chain| judge_chain(&chain.certs, &roots));
    let (chain, trust) = match chain {
        Ok(chain) => {
            let (leaf, ca, root) = (
                &chain.leaf.subject_cn,
                &chain.ca.subject_cn,
                &chain.root.cert.subject_cn,
            );
            let trust = chain.root.trust;
            checks.push(Check::passed(
                "authenticate.chain",
                format!("{leaf} → {ca} → {root} ({trust})"),
            ));
            checks.push(dates(
                "authenticate.dates",
                &[chain.leaf, chain.ca, &chain.root.cert],
                at,
            ));
            (Some(chain), trust)
        }
        Err((reason, found)) => {
            let expected = "PCK, its CA and a trusted root, in this order";
            checks.push(Check::of("authenticate.chain", false, reason, expected, found));
            (None, Trust::None)
        }
    };
    let platform = match (&chain, &read) {
        (Some(_), Ok(read)) => Some(read.platform.clone()),
        _ => None,
    };
    let platform = match platform {
        Some(Ok(platform)) => {
            checks.push(Check::passed(
                "authenticate.platform",
                format!("FMSPC {}", show::hex(platform.fmspc)),
            ));
            Some(platform)
        }
        Some(Err((reason, found))) => {
            let expected = "a PCK certificate that describes its platform";
            checks.push(Check::of("authenticate.platform", false, reason, expected, found));
            None
        }
        None => None,
    };
    checks.extend(signatures(quote, chain.as_ref()));
    // A certificate that is over is no reason to keep silent about the rest.
    let authentic = !checks
        .iter()
        .any(|check| check.is_failed() && check.id != "authenticate.dates");

    let Some(chain) = chain else {
        let why = "there is no chain to a trusted root";
        checks.extend(
            [REVOCATION, "collateral.tcb-info", "collateral.qe-identity"]
                .map(|id| Check::not_checked(id, why, "")),
        );
        return Authentication {
            checks,
            trust,
            authentic,
            platform,
            tcb_info: None,
            qe_identity: None,
        };
    };
    let supplied = endorsements.tdx.certs().iter().chain(endorsements.certs());
    let signers = Signers::gather(supplied, &chain.root.cert, at);
    let crls: Vec<&Crl> = endorsements
        .tdx
        .crls()
        .iter()
        .chain(endorsements.crl_list())
        .collect();
    let (tcb_info, used_by_info) =
        signers.tcb_info(&endorsements.tdx.tcb_infos, platform.as_ref(), at, &mut checks);
    let (qe_identity, used_by_qe) = signers.qe_identity(&endorsements.tdx.qe_identities, at, &mut checks);
    let mut used: Vec<&Cert> = used_by_info.into_iter().chain(used_by_qe).collect();
    used.dedup_by(|a, b| a.der == b.der);
    let issuers_current = match used.is_empty() {
        true => true,
        false => {
            let check = dates("collateral.issuer-dates", &used, at);
            let holds = !check.is_failed();
            checks.push(check);
            holds
        }
    };
    checks.push(pck_revocation(&chain, &crls, at));
    used.insert(0, chain.ca);
    checks.push(ca_revocation(&used, &chain.root.cert, &crls, at));
    Authentication {
        checks,
        trust,
        authentic,
        platform,
        tcb_info: tcb_info.filter(|_| issuers_current),
        qe_identity: qe_identity.filter(|_| issuers_current),
    }
}

fn judge_chain<'r>(certs: &'r [Cert], roots: &[&'r Root]) -> Result<Chain<'r>, (Reason, String)> {
    let invalid = |what: String| Err((Reason::ChainInvalid, what));
    let [leaf, ca, top] = certs else {
        return invalid(format!("{} certificates", certs.len()));
    };
    for (cert, names) in [(leaf, &[PCK][..]), (ca, &PCK_CAS)] {
        if !names.contains(&cert.subject_cn.as_str()) {
            return invalid(format!(
                "`{}` where {} belongs",
                cert.subject_cn,
                names.join(" or ")
            ));
        }
    }
    if leaf.may_issue || !ca.may_issue || !top.may_issue {
        return invalid("a CA that may not issue, or a PCK that may".to_owned());
    }
    // The certificate itself, or another one that its key signed for itself: Intel's root has been certified twice.
    let own = |root: &&&Root| {
        root.cert.der == top.der
            || root.cert.key == top.key
                && root.cert.subject == top.subject
                && top.signed.is_signed_by(&root.cert.key)
    };
    let Some(root) = roots.iter().find(own) else {
        let self_signed = top.subject == top.issuer && top.signed.is_signed_by(&top.key);
        let reason = if self_signed {
            Reason::UntrustedRoot
        } else {
            Reason::ChainInvalid
        };
        let what = format!(
            "`{}`, SHA-256 {}, which isn't trusted",
            top.subject_cn,
            show::hex(Sha256::digest(&top.der))
        );
        return Err((reason, what));
    };
    for (cert, issuer) in [(leaf, ca), (ca, &root.cert)] {
        if cert.issuer != issuer.subject || !cert.signed.is_signed_by(&issuer.key) {
            return invalid(format!(
                "`{}`, which `{}` didn't sign",
                cert.subject_cn, issuer.subject_cn
            ));
        }
    }
    Ok(Chain { leaf, ca, root })
}

/// The three links below the PCK.
fn signatures(quote: &Quote<'_>, chain: Option<&Chain<'_>>) -> [Check; 3] {
    let shown = |holds: bool| if holds { "valid" } else { "not valid" };
    let qe = match chain.map(|chain| &chain.leaf.key) {
        Some(PublicKey::P256(key)) => {
            let holds = CRYPTO.p256_sha256(key, quote.qe_report.0, &quote.qe_report_signature);
            let expected = "ECDSA P-256 by the PCK over the quoting enclave's report";
            Check::of(
                "authenticate.qe-report",
                holds,
                Reason::SignatureInvalid,
                expected,
                shown(holds),
            )
        }
        Some(_) => Check::of(
            "authenticate.qe-report",
            false,
            Reason::UnsupportedAlgorithm,
            "a PCK on P-256",
            "another kind of key",
        ),
        None => Check::not_checked("authenticate.qe-report", "the PCK isn't authentic", ""),
    };
    let digest = Sha256::new()
        .chain_update(quote.attestation_key)
        .chain_update(quote.qe_auth_data)
        .finalize();
    let report_data = quote.qe_report.report_data();
    let binds = report_data[..32] == digest[..] && report_data[32..] == [0; 32];
    let binding = Check::of(
        "authenticate.qe-binding",
        binds,
        Reason::QeBindingInvalid,
        format!("{} and zeros", show::hex(digest)),
        show::hex(report_data),
    );
    let mut point = [4; 65];
    point[1..].copy_from_slice(&quote.attestation_key);
    let holds = CRYPTO.p256_sha256(&point, quote.signed(), &quote.signature);
    let expected = "ECDSA P-256 by the attestation key over header and body";
    let signed = Check::of(
        "authenticate.signature",
        holds,
        Reason::SignatureInvalid,
        expected,
        shown(holds),
    );
    [qe, binding, signed]
}

/// The certificates of the TCB signing key that the quote's root signed; those valid at the time asked about come first.
pub(super) struct Signers<'a> {
    certs: Vec<&'a Cert>,
    /// None, but others were given under that name.
    foreign: bool,
}

impl<'a> Signers<'a> {
    pub(super) fn gather(supplied: impl Iterator<Item = &'a Cert>, root: &Cert, at: u64) -> Self {
        let genuine = |cert: &&Cert| cert.issuer == root.subject && cert.signed.is_signed_by(&root.key);
        let named: Vec<&Cert> = supplied
            .filter(|cert| cert.subject_cn == TCB_SIGNER && !cert.may_issue)
            .collect();
        let foreign = !named.is_empty();
        let mut found: Vec<&Cert> = named.into_iter().filter(genuine).collect();
        if found.is_empty() {
            found.extend(shipped_signers().iter().filter(genuine));
        }
        found.sort_by_key(|cert| !(cert.not_before..=cert.not_after).contains(&at));
        let mut certs: Vec<&Cert> = Vec::new();
        for cert in found {
            // Of one key's certificates the best by date.
            if certs.iter().all(|known| known.key != cert.key) {
                certs.push(cert);
            }
        }
        Self {
            foreign: foreign && certs.is_empty(),
            certs,
        }
    }

    pub(super) fn signer_of(&self, text: &SignedText) -> Option<&'a Cert> {
        self.certs.iter().copied().find(|cert| text.is_signed_by(cert))
    }

    fn signature_check(&self, id: &'static str, signer: Option<&Cert>) -> Check {
        let found = match signer {
            Some(_) => "valid",
            None if self.foreign => "no certificate of that key leads to the quote's root",
            None => "not valid",
        };
        let expected = format!("ECDSA P-256 by `{TCB_SIGNER}` over the exact bytes");
        Check::of(
            id,
            signer.is_some(),
            Reason::CollateralSignatureInvalid,
            expected,
            found,
        )
    }

    /// The TCB info for a platform: genuine before forged, current before stale, then the one that knows of most TCB
    /// recoveries, then the newest.
    fn tcb_info<'e>(
        &self,
        documents: &'e [TcbInfoDocument],
        platform: Option<&Platform>,
        at: u64,
        checks: &mut Vec<Check>,
    ) -> (Option<(&'e TcbInfoHead, &'e TcbInfo)>, Option<&'a Cert>) {
        const ID: &str = "collateral.tcb-info";
        let Some(platform) = platform else {
            checks.push(Check::not_checked(ID, "the platform isn't known", ""));
            return (None, None);
        };
        let wanted = format!(
            "TDX, FMSPC {}, PCE {}",
            show::hex(platform.fmspc),
            show::hex(platform.pce_id)
        );
        if documents.is_empty() {
            let why = format!(
                "no TCB info for this platform ({wanted}); Intel's service has it as \
                 tdx/certification/v4/tcb?fmspc={}",
                show::hex(platform.fmspc)
            );
            checks.push(Check::missing(ID, Reason::CollateralMissing, why));
            return (None, None);
        }
        let fitting = documents.iter().filter_map(|document| {
            let head = document.head.as_ref().ok()?;
            let fits = head.is_tdx() && head.fmspc.0 == platform.fmspc && head.pce_id.0 == platform.pce_id;
            fits.then(|| (document, head, self.signer_of(&document.signed)))
        });
        let best = fitting.max_by_key(|(_, head, signer)| {
            (
                signer.is_some(),
                head.window().contains(at),
                head.tcb_evaluation_data_number,
                head.issue_date,
            )
        });
        let Some((document, head, signer)) = best else {
            checks.push(misfit(ID, &wanted, documents.iter().map(TcbInfoDocument::what)));
            return (None, None);
        };
        let number = head.tcb_evaluation_data_number;
        checks.push(Check::passed(
            ID,
            format!("{wanted}, evaluation data number {number}"),
        ));
        checks.push(self.signature_check("collateral.tcb-info-signature", signer));
        let window = window_check("collateral.tcb-info-window", head.window(), at);
        let usable = signer.is_some() && !window.is_failed();
        checks.push(window);
        let info = match &document.info {
            Ok(info) => info.as_ref(),
            Err(what) => {
                checks.push(malformed("collateral.tcb-info-content", what));
                None
            }
        };
        (info.filter(|_| usable).map(|info| (head, info)), signer)
    }

    /// The identity of the quoting enclave; chosen like a TCB info.
    fn qe_identity<'e>(
        &self,
        documents: &'e [QeIdentityDocument],
        at: u64,
        checks: &mut Vec<Check>,
    ) -> (Option<&'e QeIdentity>, Option<&'a Cert>) {
        const ID: &str = "collateral.qe-identity";
        if documents.is_empty() {
            let why = "no identity of TDX's quoting enclave; Intel's service has it as tdx/certification/v4/qe/identity";
            checks.push(Check::missing(ID, Reason::CollateralMissing, why));
            return (None, None);
        }
        let fitting = documents.iter().filter_map(|document| {
            let identity = document
                .identity
                .as_ref()
                .ok()
                .filter(|identity| identity.is_td_qe())?;
            Some((identity, self.signer_of(&document.signed)))
        });
        let best = fitting.max_by_key(|(identity, signer)| {
            let current = identity.window().contains(at);
            (
                signer.is_some(),
                current,
                identity.tcb_evaluation_data_number,
                identity.issue_date,
            )
        });
        let Some((identity, signer)) = best else {
            checks.push(misfit(
                ID,
                "TD_QE",
                documents.iter().map(QeIdentityDocument::what),
            ));
            return (None, None);
        };
        let number = identity.tcb_evaluation_data_number;
        checks.push(Check::passed(
            ID,
            format!("TD_QE, evaluation data number {number}"),
        ));
        checks.push(self.signature_check("collateral.qe-identity-signature", signer));
        let window = window_check("collateral.qe-identity-window", identity.window(), at);
        let usable = signer.is_some() && !window.is_failed();
        checks.push(window);
        (Some(identity).filter(|_| usable), signer)
    }
}

impl TcbInfoDocument {
    /// Whom it is about, or why it can't be read.
    fn what(&self) -> Result<String, &str> {
        let head = self.head.as_ref().map_err(String::as_str)?;
        let id = if head.id.is_empty() { "SGX" } else { &head.id };
        Ok(format!(
            "{id} version {}, FMSPC {}",
            head.version,
            show::hex(head.fmspc.0)
        ))
    }
}

impl QeIdentityDocument {
    fn what(&self) -> Result<String, &str> {
        let identity = self.identity.as_ref().map_err(String::as_str)?;
        Ok(format!("{} version {}", identity.id, identity.version))
    }
}

/// Nothing fits: what is there instead, or why it can't be read.
fn misfit<'d>(id: &'static str, wanted: &str, given: impl Iterator<Item = Result<String, &'d str>>) -> Check {
    let mut found = Vec::new();
    for what in given {
        match what {
            Ok(what) => found.push(what),
            Err(what) => return malformed(id, what),
        }
    }
    found.dedup();
    found.truncate(4);
    Check::of(id, false, Reason::CollateralMismatch, wanted, found.join("; "))
}

fn malformed(id: &'static str, what: &str) -> Check {
    Check::of(
        id,
        false,
        Reason::Malformed,
        "JSON as Intel's service gives it",
        what,
    )
}

fn window_check(id: &'static str, window: Window, at: u64) -> Check {
    let reason = if at < window.from {
        Reason::CollateralNotYetValid
    } else {
        Reason::CollateralExpired
    };
    let found = format!("{}..{}", show::time(window.from), show::time(window.to));
    Check::of(
        id,
        window.contains(at),
        reason,
        format!("valid at {}", show::time(at)),
        found,
    )
}

/// Looks the platform's certificate up in the CRL of the CA that issued it.
fn pck_revocation(chain: &Chain<'_>, crls: &[&Crl], at: u64) -> Check {
    let other = |crl: &&&Crl| PCK_CAS.contains(&crl.issuer_cn.as_str()) && crl.issuer != chain.ca.subject;
    let own = crls.iter().any(|crl| crl.issuer == chain.ca.subject);
    if let (false, Some(crl)) = (own, crls.iter().find(other)) {
        let (expected, found) = (
            format!("a CRL of `{}`", chain.ca.subject_cn),
            format!("one of `{}`", crl.issuer_cn),
        );
        return Check::of(REVOCATION, false, Reason::CollateralMismatch, expected, found);
    }
    revocation(&[chain.leaf], Reason::PckRevoked, chain.ca, crls, at)
}

/// Looks the CA and the collateral's issuers up in the root's CRL.
fn ca_revocation(certs: &[&Cert], root: &Cert, crls: &[&Crl], at: u64) -> Check {
    revocation(certs, Reason::CrlRevoked, root, crls, at)
}

fn revocation(certs: &[&Cert], revoked: Reason, issuer: &Cert, crls: &[&Crl], at: u64) -> Check {
    let name = &issuer.subject_cn;
    let own: Vec<&Crl> = crls
        .iter()
        .copied()
        .filter(|crl| crl.issuer == issuer.subject)
        .collect();
    if own.is_empty() {
        return Check::not_checked(REVOCATION, format!("no CRL of `{name}` was given"), "");
    }
    // Another root may have given its CA the same name: such a CRL is passed over if there is a genuine one.
    let own: Vec<&Crl> = own
        .into_iter()
        .filter(|crl| crl.signed.is_signed_by(&issuer.key))
        .collect();
    if own.is_empty() {
        let expected = format!("a CRL signed by `{name}`");
        return Check::of(
            REVOCATION,
            false,
            Reason::CrlInvalid,
            expected,
            "a wrong signature",
        );
    }
    // Revocation has no way back, so an old list's word counts too.
    let on_a_list = |cert: &&&Cert| own.iter().any(|crl| crl.revokes(&cert.serial));
    if let Some(cert) = certs.iter().find(on_a_list) {
        let found = format!(
            "`{}` serial 0x{} is revoked",
            cert.subject_cn,
            show::hex(&cert.serial)
        );
        return Check::of(REVOCATION, false, revoked, "not revoked", found);
    }
    let window = |crl: &Crl| {
        let next = crl.next_update.map_or("no end".to_owned(), show::time);
        format!("`{}` {}..{next}", crl.issuer_cn, show::time(crl.this_update))
    };
    let begun = |crl: &&&Crl| crl.this_update <= at;
    // RFC 5280 calls nextUpdate the time by which the next list is issued: this one is good before it.
    let fresh = |crl: &&&Crl| begun(crl) && crl.next_update.is_some_and(|next| at < next);
    if let Some(crl) = own.iter().find(fresh) {
        let serials: Vec<String> = certs
            .iter()
            .map(|cert| format!("0x{}", show::hex(&cert.serial)))
            .collect();
        return Check::passed(
            REVOCATION,
            format!("{} not in {}", serials.join(", "), window(crl)),
        );
    }
    let reason = match own.iter().find(begun) {
        Some(_) => Reason::CollateralExpired,
        None => Reason::CollateralNotYetValid,
    };
    let windows: Vec<String> = own.iter().take(4).map(|crl| window(crl)).collect();
    let expected = format!("a CRL of `{name}` that is valid at {}", show::time(at));
    Check::of(REVOCATION, false, reason, expected, windows.join(", "))
}
