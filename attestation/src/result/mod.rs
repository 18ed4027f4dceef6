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
    /// The contract id doesn't stand for this salt and these settings.
    ContractIdMismatch,
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
    /// A file that was named can't be read, or isn't what it should be.
    Unreadable,
    /// Another number of GPUs than asked for.
    GpuCountMismatch,

    // TDX.
    /// A TDREPORT or something else of Intel's that only its own machine can check.
    NotAQuote,
    /// The TD may be debugged by its host.
    DebugTd,
    /// TD attributes that must be set aren't, or the other way round.
    TdAttributes,
    /// A service TD is bound to this TD.
    ServiceTdPresent,
    /// `MRCONFIGID`, `MROWNER` or `MROWNERCONFIG` isn't the expected one.
    MrConfigMismatch,
    /// The TDX module (`MRSEAM`, `MRSIGNERSEAM`) isn't one that Intel names, or one allowed.
    TdxModuleMismatch,
    /// The event log doesn't replay to the run-time measurements, or these aren't those allowed.
    RtmrMismatch,
    /// The quoting enclave isn't the one that Intel names.
    QeIdentityMismatch,
    /// The quoting enclave's report doesn't bind the key that signed the quote.
    QeBindingInvalid,
    /// No TCB level of Intel's matches.
    TcbUnrecognised,
    /// The platform's TCB is out of date.
    OutOfDate,
    /// The platform needs another configuration.
    ConfigurationNeeded,
    /// Both.
    OutOfDateConfigurationNeeded,
    /// The platform needs another configuration, and the software in the TD must defend itself.
    ConfigurationAndSWHardeningNeeded,
    /// The TD was launched on a TCB that was out of date and has been updated since.
    TDRelaunchAdvised,
    /// That, and the platform needs another configuration.
    TDRelaunchAdvisedConfigurationNeeded,
    /// An advisory of Intel's that the policy refuses.
    AdvisoryRefused,
    /// Intel revoked the TCB level, or NVIDIA a certificate (OCSP).
    Revoked,
    /// The collateral is of another platform, kind or maker.
    CollateralMismatch,
    /// The collateral's signature doesn't hold over its exact bytes.
    CollateralSignatureInvalid,
    /// Collateral outside its window: over.
    CollateralExpired,
    /// Collateral outside its window: not begun.
    CollateralNotYetValid,
    /// No TCB info, quoting enclave identity or CRL for this platform.
    CollateralMissing,
    /// Intel revoked the platform's certificate.
    PckRevoked,

    // NVIDIA GPU.
    /// The nonce isn't the expected one.
    NonceMismatch,
    /// The firmware id in the evidence isn't the certificate's.
    FwidMismatch,
    /// A reference manifest after its certificate's time.
    RimExpired,
    /// A reference manifest before its certificate's time.
    RimNotYetValid,
    /// A reference manifest with a wrong signature.
    RimSignatureInvalid,
    /// A reference manifest that can't be read, or of another schema.
    RimMalformed,
    /// Reference manifests of driver and VBIOS that speak of the same measurement.
    RimConflict,
    /// The GPU isn't in a mode of confidential computing that is accepted.
    CcModeMismatch,
    /// Evidence of one device that passes for two.
    DuplicateDevice,
    /// NVIDIA put a certificate on hold (OCSP).
    #[serde(rename = "Revoked(hold)")]
    RevokedHold,
    /// An OCSP response with a wrong signature or of another certificate.
    OcspInvalid,
    /// An OCSP response outside its window.
    OcspStale,

    // TPM 2.0.
    /// It doesn't begin as what TPMs make does.
    NotTpmGenerated,
    /// An attestation key that isn't one of those allowed.
    AkMismatch,
    /// A key that isn't a restricted signing key, made in its TPM and fixed to it.
    AkAttributes,
    /// The quoted PCR digest isn't that of the PCR values given.
    PcrDigestMismatch,
    /// No PCR of a bank that a verdict may rest on; SHA-1 isn't one.
    PcrBankRefused,
    /// A PCR that must be quoted isn't.
    PcrSelectionIncomplete,
    /// A PCR isn't one of the values allowed.
    PcrMismatch,
    /// No event log, and the policy needs one.
    EventLogMissing,
    /// The event log doesn't replay to the PCR values.
    EventLogMismatch,
    /// Reference values that no key of the policy signed.
    ReferenceSignatureInvalid,
    /// Secure Boot is off.
    SecureBootOff,
    /// The runtime data isn't what the report binds.
    RuntimeDataMismatch,
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

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::Gpu(n) => write!(f, "gpu {n}"),
            Self::Host => f.write_str("host"),
            Self::Vtpm => f.write_str("vtpm"),
        }
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
            Self::Policy => "policy",
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
            crate::x509::show_time(self.at)
        )?;
        if self.trust == Trust::TestRoot {
            writeln!(
                f,
                "\n  !! TEST ROOT: this rests on a root that was named for this run, not on the maker's."
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
