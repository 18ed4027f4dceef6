//! Whether a key that somebody trusts signed a quote, and whether the PCR values are the quoted ones.
//!
//! ```text
//! a root that the policy names, or a test root ── … ── certifies ──▶ AK ┐
//! the policy's list of AKs ────────────────────────────── names ───▶ AK ┴─ signs ──▶ TPMS_ATTEST ── PCR digest ──▶ PCR values
//! ```
//!
//! No maker's root is pinned here: there are hundreds, and most attestation keys have no certificate. So whoever relies
//! on a TPM names the key, or the root, in the policy.

use std::collections::BTreeMap;

use der::asn1::ObjectIdentifier;
use sha2::{Digest, Sha256};
use x509_cert::ext::pkix::ExtendedKeyUsage;

use super::attest::Quote;
use super::evidence::{PcrValues, TpmEvidence};
use super::key::AttestationKey;
use super::policy::{AkPin, TpmPolicy};
use super::signature::Signature;
use crate::result::{Check, Outcome, Reason, Trust};
use crate::roots::{Root, RootKind};
use crate::show;
use crate::x509::{Cert, Crl, Path, PublicKey, dates, find_path};
use crate::{Endorsements, Roots};

const EXTENDED_KEY_USAGE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
/// What certificates of TPMs' own restricted keys say that they are for: `tcg-kp-AIKCertificate`, and
/// `tcg-kp-EKCertificate`, which some clouds give to the attestation keys of their virtual TPMs.
const TPM_KEY_OIDS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("2.23.133.8.3"),
    ObjectIdentifier::new_unwrap("2.23.133.8.1"),
];

/// A quote that a trusted attestation key signed, with the PCR values that it is about. Only [`authenticate`] and, for
/// Azure, [`super::azure`] make one.
#[derive(Clone, Debug)]
pub(super) struct Authentic {
    pub(super) quote: Quote,
    pub(super) pcrs: PcrValues,
    /// Whether counts and firmware version are the TPM's own (see [`Quote::firmware_version`]).
    pub(super) firmware_known: bool,
}

/// What authenticating gave.
pub(super) struct Authentication {
    pub(super) checks: Vec<Check>,
    pub(super) trust: Trust,
    pub(super) authentic: Option<Authentic>,
}

/// Every check that needs no wish of the policy's, beside which keys it trusts.
pub(super) fn authenticate(
    (quote, signature, ak): (&Quote, &Signature, &AttestationKey),
    evidence: &TpmEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &TpmPolicy,
    at: u64,
) -> Authentication {
    let certificates = evidence
        .certificates
        .iter()
        .filter_map(|der| Cert::parse(der).ok());
    let pool: Vec<Cert> = certificates.chain(endorsements.certs().iter().cloned()).collect();
    let named: Vec<Root> = pool
        .iter()
        .filter(|cert| policy.roots.contains(&Sha256::digest(&cert.der).into()))
        .map(|cert| Root {
            cert: cert.clone(),
            trust: Trust::Policy,
            kind: RootKind::Tpm,
        })
        .collect();
    let anchors: Vec<&Root> = named.iter().chain(roots.of(RootKind::Tpm)).collect();

    let (mut checks, trust, vouched) = trusted_key(ak, &pool, &anchors, endorsements, policy, at);
    checks.push(attributes(ak, vouched));
    let hierarchy = ak.hierarchy(&quote.qualified_signer);
    checks.push(match hierarchy {
        Some(hierarchy) => Check::passed(
            "authenticate.qualified-signer",
            format!("a primary key of the {hierarchy} hierarchy"),
        ),
        None => Check::not_checked(
            "authenticate.qualified-signer",
            "the key isn't a primary key, or its TPM name isn't known: the names of its parents aren't in the evidence",
            hex::encode(&quote.qualified_signer),
        ),
    });
    checks.extend(signed_values(quote, signature, &ak.key, &evidence.pcrs));
    // A certificate that is over or revoked is no reason to keep silent about the rest.
    let beside = ["authenticate.certificate-dates", "authenticate.revocation"];
    let sound = |check: &Check| {
        matches!(check.outcome, Outcome::Passed | Outcome::NotChecked(_)) || beside.contains(&check.id)
    };
    let authentic = checks.iter().all(sound).then(|| Authentic {
        quote: quote.clone(),
        pcrs: evidence.pcrs.clone(),
        firmware_known: matches!(hierarchy, Some("endorsement" | "platform")),
    });
    Authentication {
        checks,
        trust,
        authentic,
    }
}

/// The signature over the quote's bytes, and the digest over the values: what every quote needs.
pub(super) fn signed_values(
    quote: &Quote,
    signature: &Signature,
    key: &PublicKey,
    pcrs: &PcrValues,
) -> [Check; 2] {
    let signed = Check::of(
        "authenticate.signature",
        signature.is_by(key, quote.raw()),
        Reason::SignatureInvalid,
        "the attestation key's signature over the quote",
        signature.shown(),
    );
    [signed, pcr_digest(quote, signature, pcrs)]
}

fn pcr_digest(quote: &Quote, signature: &Signature, pcrs: &PcrValues) -> Check {
    const ID: &str = "authenticate.pcr-digest";
    let mut values = Vec::new();
    let mut used = 0;
    for selection in &quote.selections {
        for pcr in &selection.pcrs {
            let Some(value) = pcrs.get(&selection.bank).and_then(|bank| bank.get(pcr)) else {
                let found = format!("no value of PCR {pcr} of {}", selection.bank);
                return Check::of(
                    ID,
                    false,
                    Reason::PcrDigestMismatch,
                    "a value of every PCR quoted",
                    found,
                );
            };
            used += 1;
            values.push(value.as_slice());
        }
    }
    if used != pcrs.values().map(BTreeMap::len).sum::<usize>() {
        let found = "values of PCRs that weren't quoted";
        return Check::of(
            ID,
            false,
            Reason::PcrDigestMismatch,
            "the values of the PCRs quoted",
            found,
        );
    }
    let digest = signature.hash().digest(&values).unwrap_or_default();
    Check::of(
        ID,
        digest == quote.pcr_digest,
        Reason::PcrDigestMismatch,
        hex::encode(&quote.pcr_digest),
        hex::encode(digest),
    )
}

/// Who vouches for the key's attributes. The key's own word doesn't count: a key that isn't restricted signs anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vouched {
    /// The policy, by the TPM's name of the key, which is a digest of its attributes, too.
    ByName,
    /// The policy, by a digest of the bare key.
    BySpki,
    /// A certificate that says "key of a TPM".
    ByCertificate,
    /// Nobody, although the key is trusted.
    No,
    /// The key isn't trusted in the first place.
    Untrusted,
}

/// Whether the key is one that the policy names, or that a trusted root certifies.
fn trusted_key(
    ak: &AttestationKey,
    pool: &[Cert],
    anchors: &[&Root],
    endorsements: &Endorsements,
    policy: &TpmPolicy,
    at: u64,
) -> (Vec<Check>, Trust, Vouched) {
    const ID: &str = "authenticate.ak";
    let found = match ak.name() {
        Some(name) => format!("name:{}", hex::encode(name)),
        None => format!("spki-sha256:{}", hex::encode(ak.spki_sha256())),
    };
    let mut checks = Vec::new();
    if let Some(pins) = &policy.allowed_aks {
        let by_name = |pin: &AkPin| matches!(pin, AkPin::Name(name) if ak.name() == Some(name));
        let by_spki = |pin: &AkPin| matches!(pin, AkPin::Spki(digest) if ak.spki_sha256() == *digest);
        let vouched = match pins {
            _ if pins.iter().any(by_name) => Vouched::ByName,
            _ if pins.iter().any(by_spki) => Vouched::BySpki,
            _ => Vouched::Untrusted,
        };
        let named = vouched != Vouched::Untrusted;
        let expected = format!("one of the {} keys that the policy names", pins.len());
        checks.push(Check::of(ID, named, Reason::AkMismatch, expected, found));
        let pinned = "the policy's own list says which keys are accepted";
        checks.push(Check::passed("authenticate.revocation", pinned));
        let trust = if named { Trust::Policy } else { Trust::None };
        return (checks, trust, vouched);
    }
    let own: Vec<&Cert> = pool.iter().filter(|cert| cert.key == ak.key).collect();
    if own.is_empty() {
        let why = format!("no certificate of the attestation key ({found}), and the policy names no keys");
        checks.push(Check::missing(ID, Reason::EndorsementsMissing, why));
        return (checks, Trust::None, Vouched::Untrusted);
    }
    let paths: Vec<_> = own
        .iter()
        .map(|cert| find_path(cert, pool, anchors, at))
        .collect();
    let valid = |path: &&Path<'_>| !dates("", &path.certs, at).is_failed();
    let found_paths = || paths.iter().filter_map(|path| path.as_ref().ok());
    let Some(path) = found_paths().find(valid).or_else(|| found_paths().next()) else {
        if let Some(Err(error)) = paths.first() {
            let expected =
                "a chain to a root that the policy or --trust-root names (no TPM maker's root is pinned)";
            checks.push(Check::of(
                "authenticate.chain",
                false,
                error.reason,
                expected,
                &error.found,
            ));
        }
        return (checks, Trust::None, Vouched::Untrusted);
    };
    let names: Vec<&str> = path.certs.iter().map(|cert| cert.subject_cn.as_str()).collect();
    checks.push(Check::passed(ID, found));
    checks.push(Check::passed("authenticate.chain", names.join(" ← ")));
    checks.push(dates("authenticate.certificate-dates", &path.certs, at));
    let vouched = match key_usage(path.certs[0]) {
        Ok(vouched) => {
            checks.push(Check::passed(
                "authenticate.certificate-usage",
                "none, or keys of TPMs",
            ));
            vouched
        }
        Err(what) => {
            let (id, expected) = (
                "authenticate.certificate-usage",
                "a key of a TPM (2.23.133.8.3 or .1)",
            );
            checks.push(Check::of(id, false, Reason::ChainInvalid, expected, what));
            Vouched::Untrusted
        }
    };
    checks.push(revocation(path, endorsements, at));
    (checks, path.trust, vouched)
}

/// Extended key usage: where it is there, it must name keys of TPMs.
fn key_usage(cert: &Cert) -> Result<Vouched, &'static str> {
    use der::Decode;
    let Some(extension) = cert.extension(&EXTENDED_KEY_USAGE_OID) else {
        return Ok(Vouched::No);
    };
    let usage =
        ExtendedKeyUsage::from_der(extension).map_err(|_| "an extended key usage that can't be read")?;
    if TPM_KEY_OIDS.iter().any(|oid| usage.0.contains(oid)) {
        Ok(Vouched::ByCertificate)
    } else {
        Err("an extended key usage without it")
    }
}

fn attributes(ak: &AttestationKey, vouched: Vouched) -> Check {
    const ID: &str = "authenticate.ak-attributes";
    let expected = "restricted, signs, doesn't decrypt, made in this TPM and fixed to it";
    let shown = match ak.wrong_attributes() {
        Some(wrong) if !wrong.is_empty() => {
            return Check::of(ID, false, Reason::AkAttributes, expected, wrong.join(", "));
        }
        Some(_) => expected,
        None => "not shown: the key came without its TPM form",
    };
    match vouched {
        Vouched::ByName => Check::passed(ID, shown),
        Vouched::ByCertificate => Check::passed(ID, "its certificate says that it is a key of a TPM"),
        Vouched::BySpki => {
            let why =
                "the policy doesn't name the key by its TPM name: who named it vouches for its attributes";
            Check::not_checked(ID, why, shown)
        }
        Vouched::Untrusted => Check::not_checked(ID, "the key isn't trusted", shown),
        Vouched::No => {
            let why = "neither the policy nor a certificate says that this is a restricted key of a TPM";
            Check::missing(ID, Reason::AkAttributes, why)
        }
    }
}

/// Every certificate below the root, in its issuer's CRL.
fn revocation(path: &Path<'_>, endorsements: &Endorsements, at: u64) -> Check {
    const ID: &str = "authenticate.revocation";
    let crls = endorsements.crl_list();
    let mut unknown = None;
    for pair in path.certs.windows(2) {
        let (cert, issuer) = (pair[0], pair[1]);
        let of_issuer = crls.iter().filter(|crl| crl.issuer == issuer.subject);
        let genuine: Vec<&Crl> = of_issuer
            .clone()
            .filter(|crl| crl.signed.is_signed_by(&issuer.key))
            .collect();
        // A revocation isn't undone by time: an old list counts, too.
        if genuine
            .iter()
            .any(|crl| crl.this_update <= at && crl.revokes(&cert.serial))
        {
            let found = format!("`{}` is revoked", cert.subject_cn);
            return Check::of(ID, false, Reason::CrlRevoked, "no certificate revoked", found);
        }
        let current = |crl: &&Crl| crl.this_update <= at && crl.next_update.is_some_and(|next| at < next);
        if genuine.iter().any(current) {
            continue;
        }
        let name = &issuer.subject_cn;
        unknown = unknown.or_else(|| {
            Some(match (genuine.first(), of_issuer.count()) {
                (Some(crl), _) => {
                    let from = show::time(crl.this_update);
                    Check::unusable(
                        ID,
                        Reason::CrlStale,
                        format!("the CRL of `{name}` is of {from}"),
                        "",
                    )
                }
                (None, 1..) => Check::unusable(
                    ID,
                    Reason::CrlInvalid,
                    format!("`{name}` didn't sign its CRL"),
                    "",
                ),
                (None, 0) => Check::not_checked(ID, format!("no CRL of `{name}`"), ""),
            })
        });
    }
    unknown.unwrap_or_else(|| Check::passed(ID, "no certificate revoked"))
}
