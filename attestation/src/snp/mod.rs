//! AMD SEV-SNP: `parse → authenticate → appraise`.
//!
//! | stage | takes | gives | proves |
//! |---|---|---|---|
//! | [`Report::parse`] | bytes | [`Report`] | the length |
//! | [`authenticate()`] | report, certificates, roots, time | [`Authentic`] | AMD's key signed exactly these bytes, for this chip and TCB |
//! | [`appraise()`] | authentic report, policy | checks | it says what the policy asks for |
//!
//! Formats: AMD 56860 (SEV-SNP firmware ABI) and 57230 (VCEK certificates). The signature is checked over the bytes
//! as they came: a verifier that re-encodes accepts flips in what it didn't read.

mod appraise;
mod authenticate;
mod cert;
mod product;
mod report;
mod tcb;
pub(crate) mod vek;

pub use appraise::appraise;
pub use authenticate::{Authentic, Authentication, authenticate};
pub use cert::certificate_claims;
pub use product::Product;
pub use report::{REPORT_LEN, Report, ReportLength, SIGNED_LEN, VERSIONS};
pub use tcb::{TcbFloor, TcbFloors, TcbPart, TcbVersion};

use serde_json::Value;

use crate::result::{Appraisal, Check, Reason, Trust};
use crate::{Endorsements, GuestKeys, Policy, Roots};

/// Which key signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VekKind {
    /// Versioned chip endorsement key: derived from one chip's secret.
    Vcek,
    /// Versioned loaded endorsement key: given by AMD to a cloud provider, names no chip.
    Vlek,
}

/// All stages.
pub(crate) fn verify(
    report: &[u8],
    certificates: &[Vec<u8>],
    keys: &GuestKeys,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let report = match Report::parse(report) {
        Ok(report) => report,
        Err(e) => {
            let found = format!("{} bytes", e.len);
            let length = Check::of("format.length", false, Reason::Malformed, REPORT_LEN, found);
            return Appraisal {
                checks: [length].into_iter().chain(unappraised()).collect(),
                trust: Trust::None,
                warnings: Vec::new(),
                claims: Value::Null,
            };
        }
    };
    let length = Check::passed("format.length", REPORT_LEN);
    let authentication = authenticate(report.clone(), certificates, endorsements, roots, at);
    let mut checks = vec![length];
    checks.extend(authentication.checks);
    let mut warnings = Vec::new();
    match &authentication.signed {
        Some(authentic) => {
            checks.extend(appraise(authentic, policy));
            checks.push(crate::compare::contract_id(policy));
            checks.push(crate::compare::settings(keys, policy));
            warnings.extend(appraise::warnings(authentic));
        }
        None => checks.extend(unappraised()),
    }
    Appraisal {
        checks,
        trust: authentication.trust,
        warnings,
        claims: report.claims(authentication.product),
    }
}

/// The appraisal of a report that no trusted key signed: named, and not made.
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
