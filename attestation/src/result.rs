//! The attestation result: every check on a line of its own, then one verdict.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::policy::Requirement;

/// What appraising one piece of evidence gave.
#[derive(Clone, Debug, PartialEq)]
pub struct AttestationResult {
    /// The answer.
    pub verdict: Verdict,
    /// How well the evidence proves what it says; [`Grade::Unconfirmed`] unless verified.
    pub grade: Grade,
    /// What the chain rests on.
    pub trust: Trust,
    /// The time that was asked about, Unix seconds.
    pub at: u64,
    /// Every check, in the order of the stages: format, authentication, appraisal.
    pub checks: Vec<Check>,
    /// What a careful reader should know although nothing was refused for it.
    pub warnings: Vec<String>,
    /// What the evidence says, field by field; only believable when `verdict` is [`Verdict::Verified`].
    pub claims: Value,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable name, `stage.subject`.
    pub id: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was asked for.
    pub expected: String,
    /// What the evidence or the endorsements have.
    pub found: String,
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it must be.
    Passed,
    /// Not as it must be.
    Failed(Reason),
    /// Nobody asked, or an optional input isn't there or unusable: why.
    NotChecked(String),
    /// It had to be checked and couldn't be: what is missing, and why.
    Missing(Reason, String),
}

/// Why evidence is refused or can't be judged. The names are stable; they appear in JSON as they are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Reason {
    /// Wrong length, or reserved bits that aren't zero.
    Malformed,
    /// A report version that this verifier doesn't know.
    UnsupportedVersion,
    /// A signature algorithm that this verifier doesn't know.
    UnsupportedAlgorithm,
    /// A processor that this verifier doesn't know.
    UnsupportedProduct,
    /// Wrong signature over the report.
    SignatureInvalid,
    /// The certificates don't lead from the report's key to a root.
    ChainInvalid,
    /// They lead to a root that isn't trusted.
    UntrustedRoot,
    /// A certificate that had ended at the time asked about.
    CertificateExpired,
    /// A certificate that hadn't begun at the time asked about.
    CertificateNotYetValid,
    /// A certificate without a field that it must have.
    ExtensionMissing,
    /// A certificate with a field that can't be read.
    ExtensionMalformed,
    /// Signed by another kind of key than allowed or said.
    VekKindMismatch,
    /// The report's chip isn't the certificate's.
    ChipIdMismatch,
    /// The report's chip isn't one of those allowed.
    ChipNotAllowed,
    /// The report's TCB version isn't the certificate's.
    TcbMismatch,
    /// Report and certificate speak of different products.
    ProductMismatch,
    /// A product that the policy refuses.
    ProductRefused,
    /// A certificate of the chain is revoked.
    CrlRevoked,
    /// A CRL outside its window.
    CrlStale,
    /// A CRL with a wrong signature, or of another product.
    CrlInvalid,
    /// No CRL although the policy requires one.
    CrlMissing,
    /// No certificate for the key that signed the report.
    EndorsementsMissing,
    /// The guest may be debugged by its host.
    DebugAllowed,
    /// The guest may be moved by a migration agent.
    MigrateMaAllowed,
    /// Guest policy bits that must be set aren't.
    PolicyBitsMissing,
    /// Platform bits that must be set aren't, or the other way round.
    PlatformInfoMismatch,
    /// The report comes from a less privileged level than allowed.
    VmplTooLow,
    /// `REPORT_DATA` isn't the expected one: old evidence, or another machine's.
    ReportDataMismatch,
    /// The measurement isn't one of those allowed.
    MeasurementMismatch,
    /// `HOST_DATA` isn't the expected one.
    HostDataMismatch,
    /// The VM wasn't set up with the settings that were asked for.
    SettingsMismatch,
    /// The evidence doesn't say what the VM was set up with.
    SettingsMissing,
    /// `FAMILY_ID` isn't the expected one.
    FamilyIdMismatch,
    /// `IMAGE_ID` isn't the expected one.
    ImageIdMismatch,
    /// The ID key isn't one of those allowed.
    IdKeyDigestMismatch,
    /// The author key isn't one of those allowed.
    AuthorKeyDigestMismatch,
    /// A part of a TCB version below its floor.
    TcbTooLow,
    /// TCB versions that contradict each other.
    InconsistentTcb,
    /// Firmware older than allowed.
    FirmwareTooOld,
    /// A required mitigation isn't active.
    MitigationMissing,
    /// A policy that requires a check without giving its reference value.
    ReferenceMissing,
    /// No hardware speaks for this VM.
    NoHardwareEvidence,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything asked for was checked, and holds.
    Verified,
    /// Something is wrong.
    Refused,
    /// Nothing is known to be wrong, but not everything that must be checked could be.
    Indeterminate,
}

/// What the chain rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// A root that is pinned in this program.
    Pinned,
    /// A test root that somebody named. Anybody can make such evidence.
    TestRoot,
    /// No root: the chain didn't hold, or there is none.
    None,
}

/// How well a VM's provisioning is proven, worst first (DESIGN 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// Not at all.
    Unconfirmed,
    /// Only the provider's word.
    HostSigned,
    /// The host's TPM quote proves which provider OS runs the VM.
    HostVerified,
    /// The CPU's own report proves what runs in the VM.
    HardwareVerified,
}

impl Check {
    pub(crate) fn passed(id: &'static str, found: impl fmt::Display) -> Self {
        Self {
            id,
            outcome: Outcome::Passed,
            expected: found.to_string(),
            found: found.to_string(),
        }
    }

    /// Passed or failed, as `holds` says.
    pub(crate) fn of(
        id: &'static str,
        holds: bool,
        reason: Reason,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        let outcome = if holds {
            Outcome::Passed
        } else {
            Outcome::Failed(reason)
        };
        Self {
            id,
            outcome,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn not_checked(id: &'static str, why: impl fmt::Display, found: impl fmt::Display) -> Self {
        let outcome = Outcome::NotChecked(why.to_string());
        Self {
            id,
            outcome,
            expected: String::new(),
            found: found.to_string(),
        }
    }

    pub(crate) fn missing(id: &'static str, reason: Reason, why: impl fmt::Display) -> Self {
        let outcome = Outcome::Missing(reason, why.to_string());
        Self {
            id,
            outcome,
            expected: String::new(),
            found: String::new(),
        }
    }

    /// Whether it failed.
    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

impl Requirement {
    fn check_id(self) -> &'static str {
        match self {
            Self::Freshness => "appraise.report-data",
            Self::Revocation => "authenticate.revocation",
            Self::Measurement => "appraise.measurement",
            Self::Tcb => "appraise.tcb-floor",
        }
    }
}

impl AttestationResult {
    /// Draws the verdict from the checks. `grade` is what it has if verified.
    pub(crate) fn conclude(
        mut checks: Vec<Check>,
        required: impl IntoIterator<Item = Requirement>,
        grade: Grade,
        trust: Trust,
        at: u64,
        warnings: Vec<String>,
        claims: Value,
    ) -> Self {
        // What wasn't looked at for a deeper fault needs no second reason.
        let sound = checks
            .iter()
            .all(|c| matches!(c.outcome, Outcome::Passed | Outcome::NotChecked(_)));
        for requirement in required.into_iter().filter(|_| sound) {
            for check in checks
                .iter_mut()
                .filter(|check| check.id == requirement.check_id())
            {
                if let Outcome::NotChecked(why) = &check.outcome {
                    let reason = match requirement {
                        Requirement::Revocation if why.starts_with("CrlStale") => Reason::CrlStale,
                        Requirement::Revocation if why.starts_with("CrlInvalid") => Reason::CrlInvalid,
                        Requirement::Revocation => Reason::CrlMissing,
                        _ => Reason::ReferenceMissing,
                    };
                    check.outcome = Outcome::Missing(reason, why.clone());
                }
            }
        }
        let verdict = if checks.iter().any(Check::is_failed) {
            Verdict::Refused
        } else if checks
            .iter()
            .any(|check| matches!(check.outcome, Outcome::Missing(..)))
        {
            Verdict::Indeterminate
        } else {
            Verdict::Verified
        };
        let grade = if verdict == Verdict::Verified {
            grade
        } else {
            Grade::Unconfirmed
        };
        Self {
            verdict,
            grade,
            trust,
            at,
            checks,
            warnings,
            claims,
        }
    }

    /// Whether everything asked for was checked and holds.
    pub fn is_verified(&self) -> bool {
        self.verdict == Verdict::Verified
    }

    /// Why it wasn't verified: each reason once, in the order of the checks.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for check in &self.checks {
            if let Outcome::Failed(reason) | Outcome::Missing(reason, _) = check.outcome
                && !reasons.contains(&reason)
            {
                reasons.push(reason);
            }
        }
        reasons
    }

    /// Every check that failed or is missing, as a sentence for a person.
    pub fn failures(&self) -> Vec<String> {
        let sentence = |check: &Check| match &check.outcome {
            Outcome::Failed(reason) => Some(format!(
                "{reason:?}: expected {}, found {}",
                check.expected, check.found
            )),
            Outcome::Missing(reason, why) => Some(format!("{reason:?}: {why}")),
            Outcome::Passed | Outcome::NotChecked(_) => None,
        };
        self.checks.iter().filter_map(sentence).collect()
    }

    /// What nobody asked for or couldn't be looked at: id of the check, and why.
    pub fn not_checked(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.checks.iter().filter_map(|check| match &check.outcome {
            Outcome::NotChecked(why) => Some((check.id, why.as_str())),
            _ => None,
        })
    }

    /// The result as EAT Attestation Result claims (EAR), with the checks beside them.
    pub fn to_json(&self) -> Value {
        // ear.status of draft-ietf-rats-ear: affirming 2, warning 32, contraindicated 96, none 0.
        let status = match (self.verdict, self.trust) {
            (Verdict::Verified, Trust::TestRoot) => 32,
            (Verdict::Verified, _) => 2,
            (Verdict::Refused, _) => 96,
            (Verdict::Indeterminate, _) => 0,
        };
        let checks: Vec<Value> = self.checks.iter().map(Check::to_json).collect();
        let not_checked: Vec<Value> = self
            .not_checked()
            .map(|(id, why)| json!({ "id": id, "why": why }))
            .collect();
        json!({
            "eat_profile": "tag:github.com,2023:veraison/ear",
            "iat": self.at,
            "ear.verifier-id": { "developer": "decent-cloud", "build": concat!("attestation ", env!("CARGO_PKG_VERSION")) },
            "submods": { "vm": { "ear.status": status } },
            "verdict": self.verdict,
            "grade": self.grade,
            "trust": self.trust,
            "reasons": self.reasons(),
            "not_checked": not_checked,
            "warnings": self.warnings,
            "checks": checks,
            "claims": self.claims,
        })
    }
}

impl Check {
    fn to_json(&self) -> Value {
        let (outcome, reason, why) = match &self.outcome {
            Outcome::Passed => ("passed", None, None),
            Outcome::Failed(reason) => ("failed", Some(reason), None),
            Outcome::NotChecked(why) => ("not checked", None, Some(why)),
            Outcome::Missing(reason, why) => ("missing", Some(reason), Some(why)),
        };
        let mut line =
            json!({ "id": self.id, "outcome": outcome, "expected": self.expected, "found": self.found });
        if let Some(reason) = reason {
            line["reason"] = json!(reason);
        }
        if let Some(why) = why {
            line["why"] = json!(why);
        }
        line
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unconfirmed => "unconfirmed",
            Self::HostSigned => "host-signed",
            Self::HostVerified => "host-verified",
            Self::HardwareVerified => "hardware-verified",
        })
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "pinned",
            Self::TestRoot => "test-root",
            Self::None => "none",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "VERIFIED",
            Self::Refused => "REFUSED",
            Self::Indeterminate => "CAN'T TELL",
        })
    }
}

/// The page for a person: the verdict first, then what is wrong, then every check.
impl fmt::Display for AttestationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}  grade {}, trust {}, at {}",
            self.verdict,
            self.grade,
            self.trust,
            crate::snp::show_time(self.at)
        )?;
        if self.trust == Trust::TestRoot {
            writeln!(
                f,
                "\n  !! TEST ROOT: this rests on a root that was named for this run, not on AMD's."
            )?;
            writeln!(
                f,
                "  !! Whoever holds that root's key can make such evidence without any hardware."
            )?;
        }
        for failure in self.failures() {
            writeln!(f, "  ✗ {failure}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  ! {warning}")?;
        }
        writeln!(f)?;
        let width = self.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for check in &self.checks {
            let (mark, text) = match &check.outcome {
                Outcome::Passed => ("ok", check.found.clone()),
                Outcome::Failed(reason) => (
                    "FAIL",
                    format!("{reason:?}: expected {}, found {}", check.expected, check.found),
                ),
                Outcome::NotChecked(why) if check.found.is_empty() => ("-", format!("not checked: {why}")),
                Outcome::NotChecked(why) => ("-", format!("not checked: {why} (found {})", check.found)),
                Outcome::Missing(reason, why) => ("?", format!("{reason:?}: {why}")),
            };
            writeln!(f, "  {mark:4} {:width$}  {text}", check.id)?;
        }
        Ok(())
    }
}
