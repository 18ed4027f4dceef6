//! What a report says and how its checks went, by NVIDIA's names for claims (version 3) where there are some.

use serde_json::{Map, Value, json};

use super::authenticate::Device;
use super::evidence::GpuEvidence;
use super::fwid;
use super::report::{Measurement, Report};
use crate::result::{Check, Outcome};
use crate::show;
use crate::x509::Cert;

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
            "serial": show::hex(&cert.serial),
            "not_before": show::time(cert.not_before),
            "not_after": show::time(cert.not_after),
            "fwid": fwid::read(&cert).ok().flatten().map(|firmware| show::hex(firmware.fwid)),
        }),
        Err(e) => json!({ "unreadable": e.to_string() }),
    };
    let measurement = |block: &Measurement| json!({ "index": block.index, "type": block.value_type, "value": show::hex(&block.value) });
    let mut claims = of_report(&report, None);
    claims["measurements"] = report.measurements().iter().map(measurement).collect();
    claims["signature"] = json!(show::hex(report.signature()));
    claims["certificates"] = evidence.certificates.iter().map(certificate).collect();
    claims
}

/// What report and certificates say.
pub(super) fn of_report(report: &Report, device: Option<&Device>) -> Value {
    let opaque = report.opaque();
    let pdis: Vec<String> = opaque.pdis().map(show::hex).collect();
    let chip = device.map(|device| device.chip.as_str());
    let mut claims = json!({
        "eat_nonce": show::hex(report.nonce()),
        "hwmodel": device.map(|device| device.model.as_str()),
        "ueid": device.map(|device| device.ueid.as_str()),
        "fwid": opaque.fwid().map(show::hex),
        "opaque": opaque.claims(),
    });
    let more = if opaque.is_switch() {
        json!({
            "x-nvidia-device-type": "nvswitch",
            "x-nvidia-switch-bios-version": opaque.vbios_version(),
            "x-nvidia-switch-pdi": pdis.first(),
            "rim-ids": [opaque.vbios_rim_id()],
        })
    } else {
        let driver_rim = chip.and_then(|chip| opaque.driver_rim_id(chip));
        json!({
            "x-nvidia-device-type": "gpu",
            "x-nvidia-gpu-driver-version": opaque.driver_version(),
            "x-nvidia-gpu-vbios-version": opaque.vbios_version(),
            "x-nvidia-gpu-mode": opaque.cc_mode(),
            "x-nvidia-gpu-switch-pdis": pdis,
            "protected-pcie": opaque.protected_pcie(),
            "rim-ids": [driver_rim, opaque.vbios_rim_id()],
        })
    };
    merge(&mut claims, more);
    claims
}

/// How the checks went.
pub(super) fn of_checks(report: &Report, checks: &[Check]) -> Value {
    let prefix = prefix(report);
    let mut claims = Map::new();
    for (name, id) in [
        ("parsed", "format.report"),
        ("signature-verified", "authenticate.signature"),
        ("nonce-match", "appraise.report-data"),
        ("cert-chain-fwid-match", "authenticate.fwid"),
        ("cert-chain-valid", "authenticate.dates"),
    ] {
        let check = checks.iter().find(|check| check.id == id);
        let name = format!("{prefix}-attestation-report-{name}");
        claims.insert(name, json!(check.and_then(passed)));
    }
    Value::Object(claims)
}

/// How names of claims about this kind of device begin.
pub(super) fn prefix(report: &Report) -> &'static str {
    match report.opaque().is_switch() {
        true => "x-nvidia-switch",
        false => "x-nvidia-gpu",
    }
}

/// `None`: not checked.
pub(super) fn passed(check: &Check) -> Option<bool> {
    match check.outcome {
        Outcome::Passed => Some(true),
        Outcome::Failed(_) => Some(false),
        Outcome::NotChecked(_) | Outcome::Missing(..) => None,
    }
}

pub(super) fn merge(claims: &mut Value, more: Value) {
    if let (Some(claims), Value::Object(more)) = (claims.as_object_mut(), more) {
        claims.extend(more);
    }
}
