//! AMD SEV-SNP.

mod cert;
mod product;
mod tcb;

pub(crate) use cert::{check_certificate, check_crl};
pub use product::Product;
pub use tcb::{TcbFloor, TcbFloors, TcbPart, TcbVersion};

/// Which key signed a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VekKind {
    /// Versioned chip endorsement key: derived from one chip's secret.
    Vcek,
    /// Versioned loaded endorsement key: given by AMD to a cloud provider, names no chip.
    Vlek,
}

use crate::result::{AttestationResult, Check, Grade, Reason, Trust};
pub(crate) fn verify(
    _report: &[u8],
    _certificates: &[Vec<u8>],
    _endorsements: &crate::Endorsements,
    _roots: &crate::Roots,
    policy: &crate::Policy,
    at: u64,
) -> AttestationResult {
    let checks = vec![Check::missing(
        "authenticate.signature",
        Reason::EndorsementsMissing,
        "the SNP verifier isn't in this commit yet",
    )];
    AttestationResult::conclude(
        checks,
        policy.required.iter().copied(),
        Grade::HardwareVerified,
        Trust::None,
        at,
        vec![],
        serde_json::Value::Null,
    )
}
