//! Whether a device that NVIDIA made signed a report.
//!
//! ```text
//! NVIDIA Device Identity CA (pinned) → GH100 Identity → Provisioner → the chip's ROM → its firmware ── signs ──▶ report
//! ```
//!
//! Certificates come from the evidence or the endorsements; among several leaves the one whose key signed is judged.

use super::evidence::GpuEvidence;
use super::fwid::{self, Firmware};
use super::ocsp::{self, Answer, Status};
use super::policy::GpuPolicy;
use super::report::Report;
use crate::Endorsements;
use crate::crypto::CRYPTO;
use crate::result::{Check, Reason, Trust};
use crate::roots::{RootKind, Roots};
use crate::show;
use crate::x509::{Cert, Crl, PublicKey, dates, find_path};

/// A report that a device of NVIDIA's signed. Only [`authenticate`] makes one. It says who signed, not whether that
/// key's certificates are still good, nor whether we like what was signed.
#[derive(Clone, Debug)]
pub struct Authentic {
    report: Report,
    device: Device,
}

/// What the certificates say about the device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// `GH100`, `GB100`, `LS10`: the first word of the leaf's name.
    pub(super) chip: String,
    /// Name of the ROM's certificate, like `GH100 A01 GSP BROM`.
    pub(super) model: String,
    /// The leaf's serial number in decimal.
    pub(super) ueid: String,
    pub(super) firmware: Option<Firmware>,
}

impl Authentic {
    /// The report.
    pub fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }
}

/// What authenticating gave.
pub(super) struct Authentication {
    pub(super) checks: Vec<Check>,
    pub(super) trust: Trust,
    /// The report, if a device's key signed it, whatever else is wrong: so that the result can list all of it.
    pub(super) authentic: Option<Authentic>,
    /// What the certificates say, believed or not.
    pub(super) device: Option<Device>,
}

/// Judges who signed `report`.
pub(super) fn authenticate(
    report: &Report,
    evidence: &GpuEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &GpuPolicy,
    at: u64,
) -> Authentication {
    let mut checks = Vec::new();
    let mut pool: Vec<Cert> = Vec::new();
    for cert in evidence
        .certificates
        .iter()
        .map(|der| Cert::parse(der))
        .chain(endorsements.certs().iter().cloned().map(Ok))
    {
        match cert {
            Ok(cert) if pool.iter().all(|known| known.der != cert.der) => pool.push(cert),
            Ok(_) => {}
            Err(e) => {
                let expected = "X.509 certificates";
                checks.push(Check::of(
                    "authenticate.certificates",
                    false,
                    Reason::ChainInvalid,
                    expected,
                    e,
                ));
            }
        }
    }
    let Some((leaf, signed)) = leaf(report, &pool) else {
        checks.push(no_leaf(&pool));
        return Authentication {
            checks,
            trust: Trust::None,
            authentic: None,
            device: None,
        };
    };
    let mut trust = Trust::None;
    let roots: Vec<_> = roots.of(RootKind::NvidiaDevice).collect();
    let path = find_path(leaf, &pool, &roots, at);
    match &path {
        Ok(path) => {
            trust = path.trust;
            let names: Vec<&str> = path.certs.iter().map(|cert| cert.subject_cn.as_str()).collect();
            checks.push(Check::passed("authenticate.chain", names.join(" ← ")));
            checks.push(dates("authenticate.dates", &path.certs, at));
        }
        Err(e) => {
            let expected = "a chain to NVIDIA's Device Identity CA";
            checks.push(Check::of(
                "authenticate.chain",
                false,
                e.reason,
                expected,
                &e.found,
            ));
        }
    }
    checks.push(Check::of(
        "authenticate.signature",
        signed,
        Reason::SignatureInvalid,
        "ECDSA P-384 by the device's key over the report's bytes",
        if signed { "valid" } else { "not valid" },
    ));
    let firmware = fwid::read(leaf);
    checks.push(firmware_id(report, &firmware));
    if let Ok(path) = &path {
        checks.push(revocation(
            "authenticate.revocation",
            &path.certs[1..],
            endorsements,
            policy,
            at,
        ));
    }
    let above = path.as_ref().ok().and_then(|path| path.certs.get(1));
    let device = Device {
        chip: leaf
            .subject_cn
            .split(' ')
            .next()
            .unwrap_or_default()
            .replace('_', ""),
        model: above.map(|cert| cert.subject_cn.clone()).unwrap_or_default(),
        ueid: decimal(&leaf.serial),
        firmware: firmware.ok().flatten(),
    };
    checks.push(product(report, &device));
    checks.extend(stated(report, evidence, &device));
    // A certificate that is over or revoked, or a wrong word around the report, is no reason to keep silent about the rest.
    let beside = [
        "authenticate.dates",
        "authenticate.revocation",
        "format.stated-nonce",
        "format.stated-arch",
    ];
    let signed = !checks
        .iter()
        .any(|check| check.is_failed() && !beside.contains(&check.id));
    let authentic = signed.then(|| Authentic {
        report: report.clone(),
        device: device.clone(),
    });
    Authentication {
        checks,
        trust,
        authentic,
        device: Some(device),
    }
}

fn is_signed_by(report: &Report, cert: &Cert) -> bool {
    match &cert.key {
        PublicKey::P384(key) => CRYPTO.p384_sha384(key, report.signed(), &report.signature()),
        _ => false,
    }
}

/// The certificate of the key that signed, and `true`; if there is none, the one that comes nearest, to say what is
/// wrong with it.
pub(super) fn leaf<'a>(report: &Report, pool: &'a [Cert]) -> Option<(&'a Cert, bool)> {
    let leaves = || pool.iter().filter(|cert| !cert.may_issue && fwid::is_there(cert));
    if let Some(signer) = leaves().find(|cert| is_signed_by(report, cert)) {
        return Some((signer, true));
    }
    let same_firmware = |cert: &&Cert| {
        let firmware = fwid::read(cert).ok().flatten();
        firmware.is_some_and(|firmware| report.opaque().fwid() == Some(firmware.fwid.as_slice()))
    };
    let nearest = leaves().find(same_firmware).or_else(|| leaves().next());
    nearest.map(|leaf| (leaf, false))
}

/// Certificates without a leaf are a broken chain; none at all are only missing.
fn no_leaf(pool: &[Cert]) -> Check {
    const ID: &str = "authenticate.chain";
    let devices = |cert: &&Cert| matches!(cert.key, PublicKey::P384(_)) && cert.may_issue;
    let names: Vec<&str> = pool
        .iter()
        .filter(devices)
        .map(|cert| cert.subject_cn.as_str())
        .collect();
    if names.is_empty() {
        let why = "no certificate chain for this device: the driver hands it out with the report";
        return Check::missing(ID, Reason::EndorsementsMissing, why);
    }
    let expected = "the certificate of the device's key, and its issuers";
    let found = format!(
        "only {}",
        names.iter().take(4).copied().collect::<Vec<_>>().join(", ")
    );
    Check::of(ID, false, Reason::ChainInvalid, expected, found)
}

fn firmware_id(report: &Report, firmware: &Result<Option<Firmware>, der::Error>) -> Check {
    const ID: &str = "authenticate.fwid";
    let own = report.opaque().fwid();
    match (firmware, own) {
        (Err(e), _) => Check::of(
            ID,
            false,
            Reason::ExtensionMalformed,
            "a firmware id in the certificate",
            e,
        ),
        (Ok(None), _) => Check::of(
            ID,
            false,
            Reason::ExtensionMissing,
            "a firmware id in the certificate",
            "none",
        ),
        (Ok(Some(firmware)), None) => {
            Check::not_checked(ID, "the report doesn't repeat it", show::hex(&firmware.fwid))
        }
        (Ok(Some(firmware)), Some(own)) => Check::of(
            ID,
            firmware.fwid == own,
            Reason::FwidMismatch,
            format!("{} (certificate)", show::hex(&firmware.fwid)),
            show::hex(own),
        ),
    }
}

/// Looks every issued certificate of `chain` up, from the first to the one below the root, in OCSP responses and CRLs.
/// A device's leaf isn't among them: the device makes it itself, at every start.
pub(super) fn revocation(
    id: &'static str,
    chain: &[&Cert],
    endorsements: &Endorsements,
    policy: &GpuPolicy,
    at: u64,
) -> Check {
    let responses = &endorsements.gpu.ocsp;
    let crls = endorsements.crl_list();
    let (mut good, mut open) = (Vec::new(), Vec::new());
    for pair in chain.windows(2) {
        let [cert, issuer] = pair else { continue };
        let name = &cert.subject_cn;
        match ocsp::answer(responses, cert, issuer, at).or_crl(crls, cert, issuer, at) {
            Answer::Forged => {
                let expected = "OCSP responses and CRLs signed by the certificate's issuer or its responder";
                return Check::of(
                    id,
                    false,
                    Reason::OcspInvalid,
                    expected,
                    format!("a wrong one about `{name}`"),
                );
            }
            Answer::Current(Status::Revoked) => {
                return Check::of(
                    id,
                    false,
                    Reason::Revoked,
                    "not revoked",
                    format!("`{name}` is revoked"),
                );
            }
            Answer::Current(Status::Hold) if !policy.allow_hold => {
                let found = format!("`{name}`: certificateHold");
                return Check::of(id, false, Reason::RevokedHold, "not revoked, not on hold", found);
            }
            Answer::Current(Status::Hold) => good.push(format!("`{name}` on hold, which the policy allows")),
            Answer::Current(Status::Good) => good.push(format!("`{name}` good")),
            Answer::Current(Status::Unknown) => {
                open.push((None, format!("`{name}`: the responder doesn't know it")))
            }
            Answer::Stale => {
                let why = format!("no OCSP response or CRL about `{name}` covers {}", show::time(at));
                open.push((Some(Reason::OcspStale), why));
            }
            Answer::None => open.push((None, format!("no OCSP response about `{name}`"))),
        }
    }
    let found = good.join(", ");
    match open
        .iter()
        .find(|(reason, _)| reason.is_some())
        .or_else(|| open.first())
    {
        None => Check::passed(id, found),
        Some((Some(reason), why)) => Check::unusable(id, *reason, why, found),
        Some((None, _)) if responses.is_empty() && crls.is_empty() => {
            Check::not_checked(id, "no OCSP response was given", "")
        }
        Some((None, why)) => Check::not_checked(id, why, found),
    }
}

impl Answer {
    /// A genuine CRL of the issuer says as much as a response.
    fn or_crl(self, crls: &[Crl], cert: &Cert, issuer: &Cert, at: u64) -> Self {
        let own = || crls.iter().filter(|crl| crl.issuer == issuer.subject);
        if own().any(|crl| !crl.signed.is_signed_by(&issuer.key)) {
            return Self::Forged;
        }
        let fresh = |crl: &Crl| crl.this_update <= at && crl.next_update.is_some_and(|next| at < next);
        if own().any(|crl| crl.revokes(&cert.serial)) {
            return Self::Current(Status::Revoked);
        }
        match self {
            Self::None | Self::Stale if own().any(fresh) => Self::Current(Status::Good),
            Self::None if own().next().is_some() => Self::Stale,
            answer => answer,
        }
    }
}

/// NVIDIA's root stands above devices of many kinds; only GPUs and NVSwitches count, each with reports of its own kind.
fn product(report: &Report, device: &Device) -> Check {
    const ID: &str = "authenticate.product";
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| device.chip.starts_with(prefix));
    let (gpu, switch) = (is(&["GH", "GB"]), is(&["LS"]));
    let reason = match gpu || switch {
        true => Reason::ProductMismatch,
        false => Reason::UnsupportedProduct,
    };
    let (holds, expected) = match report.opaque().is_switch() {
        true => (switch, "an NVSwitch (LS10), as the report says"),
        false => (gpu, "a Hopper or Blackwell GPU, as the report says"),
    };
    let chip: String = device.chip.chars().take(32).collect();
    Check::of(ID, holds, reason, expected, chip)
}

/// What the file around the report says must be what the report says.
fn stated<'a>(
    report: &'a Report,
    evidence: &'a GpuEvidence,
    device: &'a Device,
) -> impl Iterator<Item = Check> + 'a {
    let nonce = evidence.stated.nonce.as_ref().map(|stated| {
        let own = show::hex(report.nonce());
        let same = stated.trim_start_matches("0x").eq_ignore_ascii_case(&own);
        let shown = stated.chars().take(64).collect::<String>();
        Check::of(
            "format.stated-nonce",
            same,
            Reason::NonceMismatch,
            format!("{shown} as the file says"),
            own,
        )
    });
    let arch = evidence.stated.arch.as_ref().map(|stated| {
        let prefix = match stated.to_ascii_uppercase().as_str() {
            "HOPPER" => "GH",
            "BLACKWELL" => "GB",
            "LS10" => "LS10",
            _ => "?",
        };
        let same = device.chip.starts_with(prefix);
        let expected = format!("{} as the file says", stated.chars().take(32).collect::<String>());
        Check::of(
            "format.stated-arch",
            same,
            Reason::ProductMismatch,
            expected,
            &device.chip,
        )
    });
    nonce.into_iter().chain(arch)
}

/// A big-endian number in decimal.
fn decimal(bytes: &[u8]) -> String {
    let mut digits = vec![0_u8];
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 10) as u8;
            carry /= 10;
        }
        while carry > 0 {
            digits.push((carry % 10) as u8);
            carry /= 10;
        }
    }
    digits
        .iter()
        .rev()
        .map(|digit| char::from(b'0' + digit))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_shown_in_decimal() {
        for (bytes, want) in [
            (&[][..], "0"),
            (&[0], "0"),
            (&[0, 255], "255"),
            (&[1, 0], "256"),
            (&[0xff; 8], "18446744073709551615"),
        ] {
            assert_eq!(decimal(bytes), want);
        }
    }
}
