//! NVIDIA GPUs (Hopper, Blackwell) and NVSwitches: `parse → authenticate → appraise`.
//!
//! | stage | takes | gives | proves |
//! |---|---|---|---|
//! | [`Report::parse`] | bytes | [`Report`] | every length fits, nothing is left over |
//! | `authenticate` | report, certificates, roots, time | [`Authentic`] | the firmware of a chip of NVIDIA's signed exactly these bytes |
//! | `appraise`, `measurement` | authentic report, manifests, policy | checks | it says what is asked for, and its measurements are those that NVIDIA published |
//!
//! | module | for |
//! |---|---|
//! | `report`, `opaque` | SPDM 1.1 measurements (DMTF DSP0274) and NVIDIA's fields behind them |
//! | `evidence` | the files that reports come in |
//! | `fwid` | the firmware's identity in the leaf certificate (TCG DICE) |
//! | `rim` | reference manifests: SWID tags with an XML signature |
//! | `ocsp` | revocation (RFC 6960) |
//!
//! What a report can't show: that the GPU is in *this* VM. Its nonce is derived from the VM's own report, so that the VM
//! asked it; and only the VM's driver, which is measured, could have asked another machine's.

mod appraise;
mod authenticate;
mod evidence;
mod fwid;
mod measurement;
mod ocsp;
mod opaque;
mod policy;
mod references;
mod report;
mod rim;

pub use authenticate::Authentic;
pub use evidence::{GpuEvidence, Stated};
pub use opaque::{CcMode, Opaque};
pub use policy::{GpuPolicy, Version};
pub use report::{Measurement, REPORT_LEN_MAX, Report, ReportError};

pub(crate) use evidence::recognise;
pub(crate) use policy::GpuPolicyFile;
pub(crate) use references::References;

#[cfg(feature = "sim")]
pub(crate) use rim::to_be_signed as rim_to_be_signed;

use serde_json::{Value, json};

use crate::result::{Appraisal, Check, Outcome, Reason, Trust};
use crate::roots::Roots;
use crate::x509::{Cert, show_time};
use crate::{Endorsements, Policy};
use authenticate::{Authentication, Device, authenticate};

/// All stages. `nonce`: what the request must hold, if the caller knows.
pub(crate) fn verify(
    evidence: &GpuEvidence,
    nonce: Option<[u8; 32]>,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let report = match Report::parse(&evidence.report) {
        Ok(report) => report,
        Err(e) => {
            let reason = match e {
                ReportError::OpaqueVersion(_) => Reason::UnsupportedVersion,
                _ => Reason::Malformed,
            };
            let format = Check::of(
                "format.report",
                false,
                reason,
                "an SPDM 1.1 measurement report",
                e,
            );
            return Appraisal {
                checks: [format].into_iter().chain(unappraised()).collect(),
                trust: Trust::None,
                warnings: Vec::new(),
                claims: Value::Null,
            };
        }
    };
    let blocks = report.measurements().len();
    let mut checks = vec![Check::passed("format.report", format!("{blocks} measurements"))];
    let Authentication {
        checks: authentication,
        mut trust,
        authentic,
        device,
    } = authenticate(&report, evidence, endorsements, roots, &policy.gpu, at);
    checks.extend(authentication);
    let mut claims = report_claims(&report, device.as_ref());
    let mut warnings = Vec::new();
    match &authentic {
        Some(authentic) => {
            checks.extend(appraise::appraise(authentic, nonce, policy));
            let comparison = measurement::compare(authentic, endorsements, roots, policy, at);
            checks.extend(comparison.checks);
            trust = comparison.trust.map_or(trust, |manifests| trust.and(manifests));
            merge(&mut claims, comparison.claims);
            if report.opaque().cc_mode() == Some(CcMode::Ppcie) {
                warnings.push("protected PCIe: traffic between the GPUs isn't encrypted".to_owned());
            }
        }
        None => checks.extend(unappraised()),
    }
    merge(&mut claims, outcome_claims(&checks));
    Appraisal {
        checks,
        trust,
        warnings,
        claims,
    }
}

/// One device's evidence given twice isn't evidence of two devices: each later one gets a failed line.
pub(crate) fn tell_apart(appraisals: &mut [Appraisal]) {
    let mut seen: Vec<Value> = Vec::new();
    for appraisal in appraisals {
        let ueid = &appraisal.claims["ueid"];
        if seen.contains(ueid) {
            let expected = "each device once";
            let check = Check::of(
                "appraise.distinct",
                false,
                Reason::DuplicateDevice,
                expected,
                ueid,
            );
            appraisal.checks.push(check);
        } else if !ueid.is_null() {
            seen.push(ueid.clone());
        }
    }
}

/// The appraisal of a report that isn't authentic: named, and not made.
fn unappraised() -> impl Iterator<Item = Check> {
    let not = |id| {
        Check::not_checked(
            id,
            "the report isn't authentic, so what it says doesn't count",
            "",
        )
    };
    appraise::CHECKS.into_iter().map(not)
}

/// Every field, decoded; nothing is verified.
pub(crate) fn claims(evidence: &GpuEvidence) -> Value {
    let report = match Report::parse(&evidence.report) {
        Ok(report) => report,
        Err(e) => return json!({ "unreadable": e.to_string() }),
    };
    let certificate = |der: &Vec<u8>| match Cert::parse(der) {
        Ok(cert) => json!({
            "subject": cert.subject_cn,
            "issuer": cert.issuer_cn,
            "serial": hex::encode(&cert.serial),
            "not_before": show_time(cert.not_before),
            "not_after": show_time(cert.not_after),
            "fwid": fwid::read(&cert).ok().flatten().map(|firmware| hex::encode(firmware.fwid)),
        }),
        Err(e) => json!({ "unreadable": e.to_string() }),
    };
    let measurement = |block: &Measurement| json!({ "index": block.index, "type": block.value_type, "value": hex::encode(&block.value) });
    let mut claims = report_claims(&report, None);
    claims["measurements"] = report.measurements().iter().map(measurement).collect();
    claims["signature"] = json!(hex::encode(report.signature()));
    claims["certificates"] = evidence.certificates.iter().map(certificate).collect();
    claims
}

/// What report and certificates say, by NVIDIA's names for claims where there are some.
fn report_claims(report: &Report, device: Option<&Device>) -> Value {
    let opaque = report.opaque();
    let kind = if opaque.driver_version().is_some() {
        "gpu"
    } else {
        "nvswitch"
    };
    let chip = device.map(|device| device.chip.as_str());
    json!({
        "x-nvidia-device-type": kind,
        "eat_nonce": hex::encode(report.nonce()),
        "hwmodel": device.map(|device| device.model.as_str()),
        "ueid": device.map(|device| device.ueid.as_str()),
        "x-nvidia-gpu-driver-version": opaque.driver_version(),
        "x-nvidia-gpu-vbios-version": opaque.vbios_version(),
        "x-nvidia-gpu-mode": opaque.cc_mode(),
        "x-nvidia-gpu-switch-pdis": opaque.pdis().map(hex::encode).collect::<Vec<_>>(),
        "protected-pcie": opaque.protected_pcie(),
        "fwid": opaque.fwid().map(hex::encode),
        "opaque": opaque.claims(),
        "rim-ids": [chip.and_then(|chip| opaque.driver_rim_id(chip)), opaque.vbios_rim_id()],
    })
}

/// How the checks went, by NVIDIA's names for claims.
fn outcome_claims(checks: &[Check]) -> Value {
    let passed = |id: &str| {
        let check = checks.iter().find(|check| check.id == id)?;
        match check.outcome {
            Outcome::Passed => Some(true),
            Outcome::Failed(_) => Some(false),
            Outcome::NotChecked(_) | Outcome::Missing(..) => None,
        }
    };
    json!({
        "x-nvidia-gpu-attestation-report-parsed": passed("format.report"),
        "x-nvidia-gpu-attestation-report-signature-verified": passed("authenticate.signature"),
        "x-nvidia-gpu-attestation-report-nonce-match": passed("appraise.report-data"),
        "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": passed("authenticate.fwid"),
        "x-nvidia-gpu-attestation-report-cert-chain-valid": passed("authenticate.dates"),
    })
}

fn merge(claims: &mut Value, more: Value) {
    if let (Some(claims), Value::Object(more)) = (claims.as_object_mut(), more) {
        claims.extend(more);
    }
}
