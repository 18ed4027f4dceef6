//! The attestation result: every check on a line of its own, then one verdict.

mod page;
mod reason;

pub use reason::Reason;

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
    /// Which part of the evidence it is about.
    pub part: Part,
    /// Stable name, `stage.subject`.
    pub id: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was asked for.
    pub expected: String,
    /// What the evidence or the endorsements have.
    pub found: String,
}

/// A part of composite evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// What the evidence is about: the VM's CPU, or the one thing that was given.
    #[default]
    Main,
    /// One of the VM's GPUs, by its place in the evidence.
    Gpu(usize),
    /// The VM's host.
    Host,
    /// The VM's virtual TPM, where the CPU's evidence vouches for it (Azure).
    Vtpm,
}

/// What judging one part of the evidence gave, before there is a verdict.
#[derive(Clone, Debug)]
pub(crate) struct Appraisal {
    pub(crate) checks: Vec<Check>,
    pub(crate) trust: Trust,
    pub(crate) warnings: Vec<String>,
    pub(crate) claims: Value,
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
    /// A key or a root that the policy names: for TPMs, whose makers' roots nobody pins.
    Policy,
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
            part: Part::Main,
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
            part: Part::Main,
            id,
            outcome,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn not_checked(id: &'static str, why: impl fmt::Display, found: impl fmt::Display) -> Self {
        let outcome = Outcome::NotChecked(why.to_string());
        Self {
            part: Part::Main,
            id,
            outcome,
            expected: String::new(),
            found: found.to_string(),
        }
    }

    pub(crate) fn missing(id: &'static str, reason: Reason, why: impl fmt::Display) -> Self {
        let outcome = Outcome::Missing(reason, why.to_string());
        Self {
            part: Part::Main,
            id,
            outcome,
            expected: String::new(),
            found: String::new(),
        }
    }

    /// An optional input that can't be used: it counts as not given, and is named.
    pub(crate) fn unusable(
        id: &'static str,
        reason: Reason,
        why: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::not_checked(id, format!("{reason:?}: {why}"), found)
    }

    /// Whether it failed.
    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// The reason with which [`Check::unusable`] begins its sentence.
fn unusable_reason(why: &str) -> Option<Reason> {
    const UNUSABLE: [Reason; 7] = [
        Reason::CrlStale,
        Reason::CrlInvalid,
        Reason::CollateralExpired,
        Reason::CollateralNotYetValid,
        Reason::RimExpired,
        Reason::OcspStale,
        Reason::OcspInvalid,
    ];
    let (word, _) = why.split_once(": ")?;
    UNUSABLE.into_iter().find(|reason| format!("{reason:?}") == word)
}

impl Appraisal {
    /// Several parts as one: every line says its part; the trust is the least of them.
    pub(crate) fn of_parts(parts: impl IntoIterator<Item = (Part, Self)>) -> Self {
        let mut whole = Self {
            checks: Vec::new(),
            trust: Trust::Pinned,
            warnings: Vec::new(),
            claims: json!({}),
        };
        for (part, appraisal) in parts {
            whole
                .checks
                .extend(appraisal.checks.into_iter().map(|check| Check { part, ..check }));
            whole
                .warnings
                .extend(appraisal.warnings.into_iter().map(|w| format!("{part}: {w}")));
            whole.trust = whole.trust.and(appraisal.trust);
            whole.claims[part.to_string()] = appraisal.claims;
        }
        whole
    }
}

impl Trust {
    /// What two chains rest on together.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::TestRoot, _) | (_, Self::TestRoot) => Self::TestRoot,
            (Self::Policy, _) | (_, Self::Policy) => Self::Policy,
            (Self::Pinned, Self::Pinned) => Self::Pinned,
        }
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
        appraisal: Appraisal,
        required: impl IntoIterator<Item = Requirement>,
        grade: Grade,
        at: u64,
    ) -> Self {
        let Appraisal {
            mut checks,
            trust,
            mut warnings,
            claims,
        } = appraisal;
        for check in &checks {
            if let Outcome::NotChecked(why) = &check.outcome
                && unusable_reason(why).is_some()
                && !warnings.contains(why)
            {
                warnings.push(why.clone());
            }
        }
        if trust == Trust::TestRoot {
            let holder = "anybody who holds the test root's key can make this evidence";
            warnings.push(format!("trust: test-root: {holder}"));
        }
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
                    let reason = match (unusable_reason(why), requirement) {
                        (Some(reason), _) => reason,
                        (None, Requirement::Revocation) => Reason::CrlMissing,
                        (None, _) => Reason::ReferenceMissing,
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

    /// Names something that the caller gave and that couldn't be read: evidence is never verified without it.
    pub fn with_unreadable(mut self, what: &str) -> Self {
        self.checks
            .push(Check::missing("input.readable", Reason::Unreadable, what));
        if self.verdict == Verdict::Verified {
            self.verdict = Verdict::Indeterminate;
            self.grade = Grade::Unconfirmed;
        }
        self
    }

    /// The caller expects fewer bytes of report data (or of a nonce) than this evidence carries: that is never the same,
    /// since a comparison of the beginning would let anything stand behind it.
    pub fn with_short_report_data(mut self, expected: &[u8], reason: Reason) -> Self {
        const ID: &str = "appraise.report-data";
        let why = format!("{} ({} bytes, not all)", hex::encode(expected), expected.len());
        let found = self
            .checks
            .iter()
            .find(|check| check.id == ID)
            .map(|check| check.found.clone());
        self.checks.retain(|check| check.id != ID);
        self.checks
            .push(Check::of(ID, false, reason, why, found.unwrap_or_default()));
        self.verdict = Verdict::Refused;
        self.grade = Grade::Unconfirmed;
        self
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
        let mut submods = json!({ "vm": { "ear.status": status } });
        for check in self.checks.iter().filter(|check| check.part != Part::Main) {
            let part = &mut submods[check.part.to_string()]["ear.status"];
            // The worst of its checks; a part is never better than the whole's trust.
            let own = match check.outcome {
                Outcome::Failed(_) => 96,
                Outcome::Missing(..) => 0,
                Outcome::Passed | Outcome::NotChecked(_) if self.trust == Trust::TestRoot => 32,
                Outcome::Passed | Outcome::NotChecked(_) => 2,
            };
            *part = match (part.as_u64(), own) {
                (Some(96), _) | (_, 96) => json!(96),
                (Some(0), _) | (_, 0) => json!(0),
                (_, own) => json!(own),
            };
        }
        let checks: Vec<Value> = self.checks.iter().map(Check::to_json).collect();
        let not_checked: Vec<Value> = self
            .not_checked()
            .map(|(id, why)| json!({ "id": id, "why": why }))
            .collect();
        json!({
            "eat_profile": "tag:github.com,2023:veraison/ear",
            "iat": self.at,
            "ear.verifier-id": { "developer": "decent-cloud", "build": concat!("attestation ", env!("CARGO_PKG_VERSION")) },
            "submods": submods,
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
        if self.part != Part::Main {
            line["part"] = json!(self.part.to_string());
        }
        if let Some(reason) = reason {
            line["reason"] = json!(reason);
        }
        if let Some(why) = why {
            line["why"] = json!(why);
        }
        line
    }
}
