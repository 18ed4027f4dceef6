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
//! | `collect` (feature `gpu`) | the guest's side: evidence of its GPUs by NVML |
//!
//! What a report can't show: that the GPU is in *this* VM. Its nonce is derived from the VM's own report, so that the VM
//! asked it; and only the VM's driver, which is measured, could have asked another machine's.

mod appraise;
mod authenticate;
mod claims;
#[cfg(feature = "gpu")]
pub mod collect;
mod evidence;
mod fwid;
mod measurement;
mod ocsp;
mod opaque;
mod policy;
mod references;
mod report;
mod rim;
#[cfg(feature = "fetch")]
mod wanted;

pub use authenticate::Authentic;
pub use evidence::{GpuEvidence, Stated};
pub use opaque::{CcMode, Opaque};
pub use policy::{GpuPolicy, Version};
pub use report::{Measurement, REPORT_LEN_MAX, Report, ReportError};

pub(crate) use claims::claims;
pub(crate) use evidence::recognise;
pub(crate) use policy::GpuPolicyFile;
pub(crate) use references::References;
#[cfg(feature = "fetch")]
pub(crate) use wanted::{answered_ocsp, manifest_chains, wants};

#[cfg(feature = "sim")]
pub(crate) use rim::to_be_signed as rim_to_be_signed;

use serde_json::Value;

use crate::result::{Appraisal, Check, Reason, Trust};
use crate::roots::Roots;
use crate::{Endorsements, Policy};
use authenticate::{Authentication, authenticate};

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
    let mut claims = claims::of_report(&report, device.as_ref());
    let mut warnings = Vec::new();
    match &authentic {
        Some(authentic) => {
            checks.extend(appraise::appraise(authentic, nonce, policy));
            let comparison = measurement::compare(authentic, endorsements, roots, policy, at);
            checks.extend(comparison.checks);
            warnings.extend(comparison.warnings);
            trust = comparison.trust.map_or(trust, |manifests| trust.and(manifests));
            claims::merge(&mut claims, comparison.claims);
            if report.opaque().cc_mode() == Some(CcMode::Ppcie) {
                warnings.push("protected PCIe: traffic between the GPUs isn't encrypted".to_owned());
            }
        }
        None => checks.extend(unappraised()),
    }
    claims::merge(&mut claims, claims::of_checks(&report, &checks));
    Appraisal {
        checks,
        trust,
        warnings,
        claims,
    }
}

/// Whether it matters that one device is shown twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    /// Somebody counts on the number of devices.
    Refused,
    /// A list that nobody counts: NVIDIA's own samples repeat a switch.
    Named,
}

/// One device's evidence given twice isn't evidence of two devices: each later one says so.
pub(crate) fn tell_apart(appraisals: &mut [Appraisal], twice: Twice) {
    let mut seen: Vec<Value> = Vec::new();
    for appraisal in appraisals {
        let ueid = appraisal.claims["ueid"].clone();
        match (seen.contains(&ueid), twice) {
            (true, Twice::Refused) => {
                let expected = "each device once";
                let check = Check::of(
                    "appraise.distinct",
                    false,
                    Reason::DuplicateDevice,
                    expected,
                    ueid,
                );
                appraisal.checks.push(check);
            }
            (true, Twice::Named) => appraisal.warnings.push(format!("device {ueid} again")),
            (false, _) if ueid.is_null() => {}
            (false, _) => seen.push(ueid),
        }
    }
}

/// Judges a reference manifest by itself: who signed it, and whether its certificates are valid at `at` (Unix seconds).
/// No line failed: NVIDIA published these values. What they are the values of is for a report to say.
pub fn judge_manifest(content: &[u8], roots: &Roots, at: u64) -> Vec<Check> {
    const SCHEMA: &str = "rim.schema";
    let mut references = References::default();
    let _ = references.recognise(content);
    match references.rims.first() {
        Some(Ok(rim)) => {
            let schema = Check::passed(SCHEMA, rim.shown());
            let rest = rim.authenticate(["rim.signature", "rim.chain", "rim.dates"], roots, at);
            [schema].into_iter().chain(rest.checks).collect()
        }
        Some(Err(e)) => vec![Check::of(
            SCHEMA,
            false,
            Reason::RimMalformed,
            "a SWID tag of NVIDIA's",
            e,
        )],
        None => {
            let found = "no manifest";
            vec![Check::of(
                SCHEMA,
                false,
                Reason::RimMalformed,
                "a SWID tag of NVIDIA's",
                found,
            )]
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
